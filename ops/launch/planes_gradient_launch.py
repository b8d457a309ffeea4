"""Descriptors of wgrad_planes: rows of x and of dy, one plane below the other."""

from __future__ import annotations

from typing import Any

import torch

from ..geometry import Geometry
from ..plan.problem import Plan, Problem
from ..plan.reuse_gradient import MAX_RUNS, runs_of
from .kernel_arguments import Tensors
from .layout import as_row
from .reuse_launch import gluon_descriptor


def planes_gradient_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """Boxes of a row of x, of the columns beside it, and of a row of runs of filters of dy."""
    tile: Any = plan.tile
    x, dy = tensors.x, tensors.y
    if tile.FOLDED > 1:
        x, dy = as_row(x), as_row(dy)
    rest = tile.rest_bytes(Problem(plan.op, geometry, x.dtype)) // x.itemsize
    runs = [*runs_of(tile.BLOCK_F), *[0] * MAX_RUNS][:MAX_RUNS]
    return {
        "x_desc": _rows(x, tile.BLOCK_C, tile.BLOCK_Q, swizzle=0),
        "x_rest_desc": _rows(x, tile.BLOCK_C, rest, swizzle=0),
        **{
            f"dy{i}_desc": _rows(dy, run, tile.BLOCK_Q, swizzle=128) if run else None
            for i, run in enumerate(runs)
        },
    }


def _rows(image: torch.Tensor, channels: int, columns: int, swizzle: int) -> Any:
    """A descriptor of boxes of `channels` and columns of a row of one image."""
    sizes, strides = [*image.shape], [*image.stride()]
    piece = 16 // image.itemsize
    for axis in (2, 1, 0):  # a step along one element may be anything but a descriptor's
        if sizes[axis] == 1:
            strides[axis] = -(-sizes[3] // piece) * piece
    return gluon_descriptor(image, sizes, strides, [1, channels, 1, columns], swizzle)
