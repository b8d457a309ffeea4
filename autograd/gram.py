"""The sums of a least-squares fit, in float64: G = A^T W A, b = A^T W y and c = y^T W y.

    G[(c,r,s), (c',r',s')] = sum_{n,p,q} weights * x[n,c,p+r,q+s] * x[n,c',p+r',q+s']

Two ways to G, both over pieces of the images, so that the windows (R * S * H * W numbers) are never
written out. With weights, windows of a few thousand pixels at a time and their matrix product.
Without, an entry depends on the lag (r'-r, s'-s) and, through the border alone, on (r, s): one
product image per lag serves every entry of that lag, by its sum over the first position's pixels,
then for each further row or column what enters minus what leaves. That is (2R-1)(2S-1)/2 passes
over the image instead of (R*S)^2 / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F

from ..ops import Geometry
from .background import Background
from .function import weight_gradient
from .pairs import ImagePair

Report: TypeAlias = Callable[[int], object]
#: Elements of the windows, or pixels of a product image, that are held at a time.
ROW_ELEMENTS = 2**22
LAG_PIXELS = 2**18


@dataclass
class Sums:
    """What a fit needs to know of the images: D = C/groups * R * S + T unknowns of K filters.

    Attributes:
        gram: (groups, D, D), or (K, D, D) if the weights differ between filters; (0, D, D) where
            it was not asked for.
        moments: (K, D).
        squares: sum weights * y^2, (K,).
        target_sum: sum weights * y, (K,).
        weight_sum: sum weights, (K,).
        pixels: values of y whose weight is not zero, (K,).
        varies: whether x changes from row to row and from column to column, (2,), as counts.
    """

    gram: torch.Tensor
    moments: torch.Tensor
    squares: torch.Tensor
    target_sum: torch.Tensor
    weight_sum: torch.Tensor
    pixels: torch.Tensor
    varies: torch.Tensor

    @classmethod
    def zeros(cls, grams: int, weight_shape: tuple[int, ...], terms: int) -> Sums:
        """Those of no image, on the CPU."""
        filters, channels, R, S = weight_shape
        unknowns = channels * R * S + terms
        shapes = ((grams, unknowns, unknowns), (filters, unknowns), *[(filters,)] * 4, (2,))
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, other: Sums) -> None:
        """Adds the sums over other pixels to these."""
        filters = len(self.moments)
        if self.gram.shape != other.gram.shape:
            self.gram, grown = (_per_filter(s.gram, filters) for s in (self, other))
            self.gram = self.gram + grown
        else:
            self.gram = self.gram + other.gram
        for name in ("moments", "squares", "target_sum", "weight_sum", "pixels", "varies"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to(self, device: torch.device | str) -> Sums:
        """The same on another device."""
        return Sums(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def _per_filter(gram: torch.Tensor, filters: int) -> torch.Tensor:
    return gram.repeat_interleave(filters // len(gram), dim=0)


def sums_of(pair: ImagePair, background: Background, with_gram: bool = True) -> Sums:
    """The sums over one pair in one piece; `gather` takes many, and any size."""
    weights = pair.weights
    y = pair.y.double()
    ones = y.new_ones(1).expand(y.shape) if weights is None else weights.double().expand(y.shape)
    weighted = y if weights is None else y * ones
    g = pair.geometry
    unknowns = g.group_C * g.R * g.S + len(background.terms)
    gram, moments = y.new_zeros(0, unknowns, unknowns), y.new_zeros(g.K, unknowns)
    if with_gram:
        gram, moments = (_by_lags if weights is None else _by_rows)(pair, background)
    return Sums(
        gram,
        moments,
        squares=(weighted * y).sum((0, 2, 3)),
        target_sum=weighted.sum((0, 2, 3)),
        weight_sum=ones.sum((0, 2, 3)),
        pixels=(ones > 0).sum((0, 2, 3)).double(),
        varies=y.new_zeros(2),
    )


def gather(
    pairs: list[ImagePair],
    background: Background,
    with_gram: bool = True,
    report: Report | None = None,
) -> Sums:
    """The sums over all pairs, a block of rows at a time.

    Args:
        pairs: at least one.
        background: fitted too.
        with_gram: False leaves G and b out, which are nearly all of the work.
        report: called with the number of outputs after each block.
    """
    total: Sums | None = None
    for pair in pairs:
        for block in pair.blocks(block_pixels(pair, background)):
            part = sums_of(block, background, with_gram)
            if total is None:
                total = part
            else:
                total.add(part)
            if report is not None:
                report(block.y.numel())
        assert total is not None
        # Of the whole image: a block may be a single row.
        changes = [(pair.x != pair.x.narrow(axis, 0, 1)).any() for axis in (-2, -1)]
        total.varies = total.varies + torch.stack(changes).double()
    assert total is not None
    return total


def block_pixels(pair: ImagePair, background: Background) -> int:
    """Outputs of a block for `sums_of`."""
    g = pair.geometry
    if pair.weights is None:
        return max(LAG_PIXELS, 8 * g.R * g.Q)  # rows that blocks share are worked on twice
    return max(1, ROW_ELEMENTS // (g.group_C * g.R * g.S + len(background.terms)))


def _by_lags(pair: ImagePair, background: Background) -> tuple[torch.Tensor, torch.Tensor]:
    """gram (groups, D, D) and moments (K, D) of a pair without weights."""
    g, T = pair.geometry, len(background.terms)
    x, y = pair.x.double(), pair.y.double()
    N = g.N
    images = background.images(pair.extent, pair.place, y)
    # The background is a few targets more, for each group.
    per_group = y.view(N, g.groups, g.group_K, g.P, g.Q)
    surfaces = images.expand(N, g.groups, T, g.P, g.Q)
    targets = torch.cat([per_group, surfaces], 2).flatten(1, 2)
    geometry = replace(g, K=g.groups * (g.group_K + T))
    products = weight_gradient(x, targets, geometry, "ieee")
    products = products.view(g.groups, g.group_K + T, -1)
    of_targets, mixed = products[:, : g.group_K], products[:, g.group_K :]
    constant = N * images.flatten(1) @ images.flatten(1).T
    blocks = []
    for group in range(g.groups):
        channels = slice(group * g.group_C, (group + 1) * g.group_C)
        kernel = gram_matrix(x[:, channels], replace(g, C=g.group_C, K=1, groups=1))
        cross = mixed[group]
        upper = torch.cat([kernel, cross.T], 1)
        blocks.append(torch.cat([upper, torch.cat([cross, constant], 1)], 0))
    moments = torch.cat([of_targets.flatten(0, 1), background.moments(y, pair.place)], 1)
    return torch.stack(blocks), moments


def _by_rows(pair: ImagePair, background: Background) -> tuple[torch.Tensor, torch.Tensor]:
    """gram (groups or K, D, D) and moments (K, D) of a pair with weights."""
    assert pair.weights is not None
    g = pair.geometry
    (top, bottom), (left, right) = g.padding
    x = F.pad(pair.x.double(), (left, right, top, bottom))
    windows = x.unfold(2, g.R, 1).unfold(3, g.S, 1)  # (N, C, P, Q, R, S), a view
    windows = windows.permute(1, 4, 5, 0, 2, 3).reshape(g.groups, g.group_C * g.R * g.S, -1)
    surfaces = background.images(pair.extent, pair.place, x)[:, None]
    surfaces = surfaces.expand(-1, g.N, -1, -1).reshape(1, len(surfaces), g.N * g.P * g.Q)
    rows = torch.cat([windows, surfaces.expand(g.groups, -1, -1)], 1)  # (groups, D, pixels)
    shared = pair.weights.shape[1] == 1
    root = pair.weights.double().sqrt().transpose(0, 1).flatten(1)  # (1 or K, pixels)
    y = pair.y.double().transpose(0, 1).flatten(1) * root  # (K, pixels)
    grams, moments = [], []
    for k in range(g.K):
        if not shared or k % g.group_K == 0:
            scaled = rows[k // g.group_K] * root[0 if shared else k]
            grams.append(scaled @ scaled.T)
        moments.append(scaled @ y[k])
    return torch.stack(grams), torch.stack(moments)


def gram_matrix(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """A^T A of the map from one filter (C, R, S) to its output, in float64.

    Args:
        x: (N, C, H, W).
        geometry: of the fit; stride and dilation 1, one group.

    Returns:
        (C*R*S, C*R*S), symmetric, on the device of x.
    """
    (top, bottom), (left, right) = geometry.padding
    x = F.pad(x.double(), (left, right, top, bottom))
    C, R, S, P, Q = geometry.C, geometry.R, geometry.S, geometry.P, geometry.Q
    gram = x.new_zeros(C, R, S, C, R, S)
    for lag_r in range(R):
        for lag_s in range(-S + 1 if lag_r else 0, S):
            # Positions (r, s) for which (r + lag_r, s + lag_s) is a position too.
            r = torch.arange(R - lag_r, device=x.device)[:, None]
            s = torch.arange(max(0, -lag_s), S - max(0, lag_s), device=x.device)[None, :]
            rows, columns = P + R - 1 - lag_r, Q + S - 1 - abs(lag_s)
            first, second = max(0, -lag_s), max(0, lag_s)
            here = x[..., :rows, first : first + columns]
            there = x[..., lag_r : lag_r + rows, second : second + columns]
            for c in range(C):
                for other in range(C):
                    sums = _window_sums((here[:, c] * there[:, other]).sum(0), P, Q)
                    gram[c, r, s, other, r + lag_r, s + lag_s] = sums
                    gram[other, r + lag_r, s + lag_s, c, r, s] = sums
    return gram.reshape(C * R * S, C * R * S)


def _window_sums(image: torch.Tensor, P: int, Q: int) -> torch.Tensor:
    """Sums of `image` over every P x Q window that fits, one after the other."""
    columns = image.shape[1] - Q
    entering = image[:, Q : Q + columns] - image[:, :columns]
    strips = F.pad(entering.cumsum(1), (1, 0)) + image[:, :Q].sum(1, keepdim=True)
    rows = image.shape[0] - P
    entering = strips[P : P + rows] - strips[:rows]
    return F.pad(entering.cumsum(0), (0, 0, 1, 0)) + strips[:P].sum(0, keepdim=True)
