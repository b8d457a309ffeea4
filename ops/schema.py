"""Geometry to and from the plain arguments of the registered operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .geometry import Geometry, geometry_of


def steps_of(
    geometry: Geometry,
) -> tuple[Sequence[int], Sequence[int], Sequence[int], int, bool, str]:
    """The geometry as an operator's registered arguments; `geometry_of_call` reads them back."""
    (top, bottom), (left, right) = geometry.padding
    padding = (top, bottom, left, right)
    steps = (geometry.given_stride, padding, geometry.given_dilation)
    return (*steps, geometry.groups, geometry.flip, geometry.padding_mode)


def _geometry(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    flip: bool,
    mode: str,
) -> Geometry:
    top, bottom, left, right = padding
    return geometry_of(
        tuple(x_shape),
        tuple(weight_shape),
        (stride[0], stride[1]),
        ((top, bottom), (left, right)),
        (dilation[0], dilation[1]),
        groups,
        flip,
        mode,
    )


def geometry_of_call(name: str, arguments: Sequence[Any]) -> Geometry:
    """The geometry of a call of operator `name` with its registered arguments."""
    *operands, stride, padding, dilation, groups, flip, mode, _ = arguments
    if name == "fprop":
        x, weight, *_ = operands
        x_shape, weight_shape = x.shape, weight.shape
    elif name == "dgrad":
        dy, weight, _, size = operands
        x_shape, weight_shape = (dy.shape[0], weight.shape[-3] * groups, *size), weight.shape
    else:
        x, _, weight_shape = operands
        x_shape = x.shape
    return _geometry(x_shape, weight_shape, stride, padding, dilation, groups, flip, mode)
