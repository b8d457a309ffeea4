"""What wgrad_shifted takes besides what every weight gradient does: which image stays."""

from __future__ import annotations

from typing import Any

from ...kernels.structs import Window, constant
from ..geometry import Geometry
from ..plan import shifted
from ..plan.problem import Plan
from .descriptors import described
from .kernel_arguments import Tensors, window_of
from .layout import as_row, boxes_of


def shifted_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """The descriptor of the image that stays, and through which window the other one is read."""
    tile: Any = plan.tile
    of_x = tile.shifts == "x"
    still, other = (tensors.y, tensors.x) if of_x else (tensors.x, tensors.y)
    row = as_row(still)
    n, c, _, pixels = row.shape
    pixels_last = boxes_of(row) == "NCHW"
    sizes, strides = [n, pixels, c], [row.stride(0), row.stride(3), 1]
    block = [1, tile.BLOCK_K, tile.BLOCK_M]
    if pixels_last:
        sizes, strides = [n, c, pixels], [row.stride(0), row.stride(1), 1]
        block = [1, tile.BLOCK_M, tile.BLOCK_K]
    piece = 16 // still.itemsize
    for axis in (1, 0):  # a step along one element may be anything but a descriptor's
        if sizes[axis] == 1:
            strides[axis] = -(-sizes[axis + 1] * strides[axis + 1] // piece) * piece
    group_m, group_n = shifted.channels_of(geometry, tile.shifts)
    return {
        "still_desc": described(still, sizes, strides, block),
        "shifted_ptr": other,
        "still_shape": tuple(still.shape[2:]),
        "shifted_shape": tuple(other.shape[2:]),
        "GROUP_M": group_m,
        "GROUP_N": group_n,
        "shifted_strides": other.stride(),
        "READ": constant(_read(geometry, of_x)),
        "OF_X": of_x,
        "NHWC": not pixels_last,
    }


def _read(geometry: Geometry, of_x: bool) -> Window:
    """The window through which a pixel of the image that stays reads the other one.

    A pixel of x reads dy backwards: p = h + PAD_H - r * DIL_H, where the stride is 1.
    """
    window = window_of(geometry)
    if of_x:
        return window
    signs = ("PAD_H", "PAD_W", "DIL_H", "DIL_W")
    return window._replace(**{name: -getattr(window, name) for name in signs})
