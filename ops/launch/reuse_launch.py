"""What fprop_reuse takes besides what every fprop kernel does: descriptors, in Gluon's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ... import kernels
from ...kernels.structs import TmaLayout, constant
from ...kernels.versions import BEFORE_3_7
from ..geometry import Geometry
from ..plan.problem import Plan
from ..plan.tma import reads_crosswise
from .descriptors import stored


def reuse_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    added: Sequence[torch.Tensor],
) -> dict[str, Any]:
    """LAYOUT and descriptors; `weight` is a matrix as fprop_reuse says.

    Of an input gradient, x is dy, y is dx, and the geometry is the adjoint.
    """
    tile: Any = plan.tile
    crosswise = plan.turned and reads_crosswise(plan.precision)
    out_axis, align = stored(geometry.group_K, geometry.Q, y, *added)
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
        "x_desc": _descriptor(x, sizes, strides, [1, tile.BLOCK_P, *row]),
        # The rows of a column of taps beyond those of a box, in boxes of powers of two.
        "x_rest_desc": _descriptor(x, sizes, strides, [1, rest & -rest, *row]),
        "weight_desc": _descriptor(weight, matrix, [step, 1], block),
    }


def _descriptor(base: torch.Tensor, sizes: list[int], strides: list[int], block: list[int]) -> Any:
    """One of boxes whose rows are swizzled in shared memory: by 128 bytes, or by theirs.

    float32 is rounded to TF32 on the way, see descriptors.py.
    """
    swizzle = min(128, block[-1] * base.itemsize)
    layout = kernels.NVMMASharedLayout(swizzle, 8 * base.itemsize, rank=len(block))
    if base.dtype == torch.float32 and not BEFORE_3_7:
        return kernels.GluonDescriptor(base, sizes, strides, block, layout, round_f32_to_tf32=True)
    return kernels.GluonDescriptor(base, sizes, strides, block, layout)
