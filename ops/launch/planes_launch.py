"""Arguments of fprop_planes alone: descriptors, in Gluon's classes."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels.structs import TmaLayout, constant
from ..geometry import Geometry
from ..plan.planes import chunks_of
from ..plan.problem import Plan
from ..plan.tma import ROW_BYTES
from ..plan.tma_copies import reads_crosswise
from .descriptors import stored
from .kernel_arguments import Tensors
from .reuse_launch import gluon_descriptor


def planes_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """LAYOUT and descriptors; `weight` is as descriptors.is_matrix says.

    Of an input gradient, x is dy, y is dx, and the geometry is the adjoint.
    """
    x = tensors.x
    tile: Any = plan.tile
    crosswise = plan.turned and reads_crosswise(plan.precision)
    out_axis, align = stored(geometry.group_K, geometry.Q, tensors)
    layout = TmaLayout(
        True, FLIP=geometry.flip, CROSSWISE=crosswise, OUT_AXIS=out_axis, ALIGN=align
    )
    n, c, h, w = x.shape
    stride_n, stride_c, stride_h, _ = x.stride()
    row = -(-w * x.itemsize // 16) * 16 // x.itemsize
    strides = [
        stride if size > 1 else row  # a step along one element may be anything but a descriptor's
        for size, stride in ((n, stride_n), (h, stride_h), (c, stride_c))
    ]
    span = min(tile.BLOCK_W, ROW_BYTES // x.itemsize)
    block = [1, tile.run(geometry, x.itemsize), tile.BLOCK_K, span]
    return {
        "LAYOUT": constant(layout),
        "x_desc": gluon_descriptor(x, [n, h, c, w], [*strides, 1], block),
        "weight_desc": _weight_descriptor(tensors.weight, geometry, tile, crosswise),
    }


def _weight_descriptor(weight: torch.Tensor, geometry: Geometry, tile: Any, crosswise: bool) -> Any:
    """Of (rows, channels, R, S) as (taps, rows, channels); crosswise, rows are summed."""
    rows, channels, R, S = weight.shape
    step = weight.stride(0) if rows > 1 else R * S * channels
    chunk = tile.BLOCK_K // chunks_of(geometry, weight.dtype)
    block = [chunk, tile.BLOCK_F] if crosswise else [tile.BLOCK_F, chunk]
    return gluon_descriptor(weight, [R * S, rows, channels], [channels, step, 1], [1, *block])
