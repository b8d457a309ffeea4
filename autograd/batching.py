"""vmap's extra dimension, folded into the extents that the operators have.

B copies of an operator become one: more samples where both share the weight, more filters where
both share the image, a bank per sample where each has one sample and a weight of its own, and more
groups otherwise. The function that is returned takes the fold back out of the result, whose batch
dimension is the second thing it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch

from ..ops import Geometry

Unfold: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, int]]
Dims: TypeAlias = tuple[int | None, int | None]


def fold_weighted(
    op: str, B: int, dims: Dims, image: torch.Tensor, weight: torch.Tensor, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor, Geometry, Unfold]:
    """Operands of one fprop (image = x) or dgrad (image = dy) that does the work of B.

    Args:
        op: "fprop" or "dgrad".
        B: how many.
        dims: the batch dimensions of image and weight; None where all B share it.
        image: (N, C, H, W) or (N, K, P, Q), and B where it is batched.
        weight: (K, C/groups, R, S) or (N, K, C/groups, R, S), and B where it is batched.
        geometry: of one of the B.

    Returns:
        image, weight, the geometry of all, and what unfolds the result.
    """
    g = geometry
    if dims[1] is None:
        image = _first(image, dims[0], B).flatten(0, 1)
        if g.per_sample:
            weight = weight.expand(B, *weight.shape).flatten(0, 1)
        return image, weight, replace(g, N=B * g.N), lambda y: (y.unflatten(0, (B, g.N)), 0)
    if dims[0] is None and g.groups == 1 and not g.per_sample:
        weight = _first(weight, dims[1], B)
        if op == "fprop":
            more = replace(g, K=B * g.K)
            return image, weight.flatten(0, 1), more, lambda y: (y.unflatten(1, (B, g.K)), 1)
        more = replace(g, C=B * g.C)
        weight = weight.movedim(0, 1).flatten(1, 2)
        return image, weight, more, lambda dx: (dx.unflatten(1, (B, g.C)), 1)
    image, weight = _first(image, dims[0], B), _first(weight, dims[1], B)
    if g.per_sample or g.N == 1:
        weight = weight.flatten(0, 1) if g.per_sample else weight
        more = replace(g, N=B * g.N, per_sample=True)
        return image.flatten(0, 1), weight, more, lambda y: (y.unflatten(0, (B, g.N)), 0)
    channels = g.K if op == "fprop" else g.C
    return (
        image.movedim(0, 1).flatten(1, 2),
        weight.flatten(0, 1),
        replace(g, C=B * g.C, K=B * g.K, groups=B * g.groups),
        lambda y: (y.unflatten(1, (B, channels)), 1),
    )


def fold_wgrad(
    B: int, dims: Dims, x: torch.Tensor, dy: torch.Tensor, geometry: Geometry
) -> tuple[torch.Tensor, torch.Tensor, Geometry, Unfold]:
    """Operands of one wgrad that does the work of B; arguments and result as fold_weighted's."""
    g = geometry
    x, dy = _first(x, dims[0], B), _first(dy, dims[1], B)
    if g.per_sample or g.N == 1:
        more = replace(g, N=B * g.N, per_sample=True)
        folded = (x.flatten(0, 1), dy.flatten(0, 1), more)
        return *folded, lambda dw: (dw.unflatten(0, (B, g.N)) if g.per_sample else dw, 0)
    return (
        x.movedim(0, 1).flatten(1, 2),
        dy.movedim(0, 1).flatten(1, 2),
        replace(g, C=B * g.C, K=B * g.K, groups=B * g.groups),
        lambda dw: (dw.unflatten(0, (B, g.K)), 0),
    )


def fold_bias(bias: torch.Tensor | None, channels: int) -> torch.Tensor | None:
    """The bias that all B share, for as many channels as a folded operator has."""
    return bias if bias is None else bias.repeat(channels // bias.numel())


def _first(tensor: torch.Tensor, dim: int | None, B: int) -> torch.Tensor:
    """(B, ...): a shared tensor is expanded, without a copy."""
    return tensor.expand(B, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
