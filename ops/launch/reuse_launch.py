"""Arguments of the reuse kernels and wgrad_spread alone: descriptors, in Gluon's classes."""

from __future__ import annotations

from typing import Any

import torch

from ... import kernels
from ...kernels.structs import TmaLayout, constant
from ...kernels.versions import BEFORE_3_7
from ..geometry import Geometry, Pair
from ..plan.problem import Plan
from ..plan.reuse_gradient import MAX_RUNS, runs_of
from ..plan.tma_copies import reads_crosswise
from .descriptors import stored
from .kernel_arguments import Tensors


def reuse_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """LAYOUT and descriptors; `weight` is a matrix as fprop_reuse says.

    Of an input gradient, x is dy, y is dx, and the geometry is the adjoint.
    """
    x, weight = tensors.x, tensors.weight
    if plan.op == "wgrad":
        return _gradient_arguments(x, tensors.y, geometry, plan)
    tile: Any = plan.tile
    crosswise = plan.turned and reads_crosswise(plan.precision)
    out_axis, align = stored(geometry.group_K, geometry.Q, tensors)
    layout = TmaLayout(
        False, FLIP=geometry.flip, CROSSWISE=crosswise, OUT_AXIS=out_axis, ALIGN=align
    )
    n, c, h, w = x.shape
    stride_n, _, stride_h, stride_w = x.stride()
    sizes, strides = [n, h, w, c], [stride_n, stride_h, stride_w, 1]
    for axis in (2, 1, 0):  # a step along one element may be anything but a descriptor's
        if sizes[axis] == 1:
            strides[axis] = sizes[axis + 1] * strides[axis + 1]
    row, rest = [tile.BLOCK_Q, tile.BLOCK_K], geometry.R - 1
    rows, channels, R, S = weight.shape
    matrix = [rows, R * S * channels]
    step = weight.stride(0) if rows > 1 else matrix[1]
    block = [tile.BLOCK_K, tile.BLOCK_F] if crosswise else [tile.BLOCK_F, tile.BLOCK_K]
    return {
        "LAYOUT": constant(layout),
        "TAP_COLUMNS": channels,
        "x_desc": gluon_descriptor(x, sizes, strides, [1, tile.BLOCK_P, *row]),
        # The rows of a column of taps beyond those of a box, in boxes of powers of two.
        "x_rest_desc": gluon_descriptor(x, sizes, strides, [1, rest & -rest, *row]),
        "weight_desc": gluon_descriptor(weight, matrix, [step, 1], block),
    }


def _gradient_arguments(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, plan: Plan
) -> dict[str, Any]:
    """Descriptors of boxes whose rows vary slowest, then images, columns and channels."""
    tile: Any = plan.tile
    x_rows = tile.BLOCK_P + (tile.BLOCK_R - 1) * geometry.dilation[0]
    arguments: dict[str, Any] = {}
    stride = geometry.stride
    for name, image, rows, channels, steps in (
        ("x", x, x_rows, tile.BLOCK_C, stride),
        ("dy", dy, tile.BLOCK_P, tile.BLOCK_F, (1, 1)),
    ):
        runs = [*runs_of(rows), *[0] * MAX_RUNS][:MAX_RUNS]
        for i, run in enumerate(runs):
            made = _rows_descriptor(image, tile, run, channels, steps) if run else None
            arguments[f"{name}{i}_desc"] = made
    return arguments


def _rows_descriptor(image: torch.Tensor, tile: Any, rows: int, channels: int, stride: Pair) -> Any:
    """Of (rows, images, columns, channels); wgrad_reuse says of what where there are strides.

    The channels of all phases are one axis then. Of a view of larger images, a box that overhangs
    the view's channels reads others between them, whose sums are not stored. The axis ends with the
    view's last channel, so no box reads behind the view.
    """
    n, c, h, w = image.shape
    stride_n, _, stride_h, stride_w = image.stride()
    sizes, strides = [h, n, w, c], [stride_h, stride_n, stride_w, 1]
    block = [rows, tile.BLOCK_I, tile.BLOCK_Q, channels]
    if stride != (1, 1):
        down, across = stride
        sizes = [h // down, down, n, w // across, (across - 1) * stride_w + c]
        strides = [down * stride_h, stride_h, stride_n, across * stride_w, 1]
        block.insert(1, 1)
    piece = 16 // image.itemsize
    for axis, size in enumerate(sizes[:-1]):
        if size == 1:  # a step along one element may be anything but a descriptor's
            strides[axis] = -(-c // piece) * piece
    return gluon_descriptor(image, sizes, strides, block)


def gluon_descriptor(
    base: torch.Tensor, sizes: list[int], strides: list[int], block: list[int], swizzle: int = 128
) -> Any:
    """One of boxes whose rows are swizzled in shared memory: by 128 bytes, or by theirs, or by 0.

    float32 is rounded to TF32 on the way, see descriptors.py.
    """
    swizzle = min(swizzle, block[-1] * base.itemsize)
    layout = kernels.NVMMASharedLayout(swizzle, 8 * base.itemsize, rank=len(block))
    if base.dtype == torch.float32 and not BEFORE_3_7:
        return kernels.GluonDescriptor(base, sizes, strides, block, layout, round_f32_to_tf32=True)
    return kernels.GluonDescriptor(base, sizes, strides, block, layout)
