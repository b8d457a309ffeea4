"""Tensors to descriptors, for the kernels that load through them.

A descriptor is made on the host, so that a launch needs no memory of its own on the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ...kernels import TensorDescriptor
from ...kernels.structs import TmaLayout, constant
from ...kernels.versions import BEFORE_3_7
from ..geometry import Geometry, Pair
from ..plan.problem import Plan
from ..plan.tma import MAX_PHASES, TmaTile, phases_with_taps
from ..plan.tma_copies import reads_crosswise
from .kernel_arguments import Tensors
from .layout import alignment, boxes_of, step_along

#: The axes (n, h, w, c), numbered in this order, of boxes of either format, outermost first.
NHWC, NCHW = (0, 1, 2, 3), (0, 3, 1, 2)


def tma_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """Arguments of the tma kernels alone: descriptors, and a TmaLayout."""
    t, split = tensors, plan.splits > 1
    tile: Any = plan.tile
    if plan.op == "wgrad":
        return wgrad_descriptors(t.x, t.y, geometry, tile)
    if plan.op == "dgrad":
        out = stored(geometry.group_C, geometry.W, t.adjoint())
        made = dgrad_descriptors(t.y, t.weight, geometry, tile, *out, plan.precision, split)
    else:
        out = stored(geometry.group_K, geometry.Q, t)
        made = fprop_descriptors(t.x, t.weight, geometry, tile, *out, split)
    return {"TAP_COLUMNS": t.weight.shape[1], **made}


def fprop_descriptors(
    x: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    tile: TmaTile,
    out_axis: int,
    align: int,
    split: bool = False,
) -> dict[str, Any]:
    """Arguments of fprop_tma alone; out_axis, align and split are those of TmaLayout."""
    layout = TmaLayout(
        boxes_of(x) == "NCHW",
        _phases(geometry),
        geometry.flip,
        PERSISTENT=tile.persistent > 0,
        OUT_AXIS=out_axis,
        ALIGN=align,
        SPLIT=split,
    )
    return {
        "LAYOUT": constant(layout),
        "weight_desc": _rows_descriptor(weight, [tile.BLOCK_N, tile.BLOCK_K]),
        **_phase_descriptors(x, geometry, tile, tile.BLOCK_K),
    }


def dgrad_descriptors(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    tile: TmaTile,
    out_axis: int,
    align: int,
    precision: str,
    split: bool = False,
) -> dict[str, Any]:
    """Arguments of dgrad_tma alone; out_axis, align and split are those of TmaLayout.

    `weight` is (K, C/groups, R, S) where reads_crosswise, else a copy of filters_innermost.
    """
    crosswise = reads_crosswise(precision)
    block = [tile.BLOCK_K, tile.BLOCK_N] if crosswise else [tile.BLOCK_N, tile.BLOCK_K]
    layout = TmaLayout(
        boxes_of(dy) == "NCHW",
        FLIP=geometry.flip,
        CROSSWISE=crosswise,
        PERSISTENT=tile.persistent > 0,
        OUT_AXIS=out_axis,
        ALIGN=align,
        SPLIT=split,
    )
    return {
        "LAYOUT": constant(layout),
        "dy_desc": _boxes_descriptor(dy, tile, tile.BLOCK_K),
        "weight_desc": _rows_descriptor(weight, block),
    }


def wgrad_descriptors(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, tile: TmaTile
) -> dict[str, Any]:
    """Arguments of wgrad_tma alone."""
    planes = boxes_of(x) == "NCHW"
    axes = _gradient_axes(tile, planes)
    layout = TmaLayout(planes, _phases(geometry), AXES=axes, IN_PLACE=tile.is_run)
    return {
        "LAYOUT": constant(layout),
        "dy_desc": _boxes_descriptor(dy, tile, tile.BLOCK_K, axes=axes),
        **_phase_descriptors(x, geometry, tile, tile.BLOCK_N, axes),
    }


def _gradient_axes(tile: TmaTile, planes: bool) -> tuple[int, ...]:
    """AXES of a TmaLayout: that of a run is next to the channels.

    Then the box is a matrix, which Triton multiplies from shared memory as left operand too.
    """
    if planes:
        return 0, 1, 3, 2
    if tile.pixels == tile.BLOCK_I:
        return 1, 2, 0, 3
    return (0, 2, 1, 3) if tile.pixels == tile.BLOCK_P else NHWC


def stored(channels: int, columns: int, tensors: Tensors) -> tuple[int, int]:
    """OUT_AXIS and ALIGN of a TmaLayout: of the result y, and of what is added to it."""
    result, residual = tensors.y, tensors.residual
    written = (result,) if residual is None else (result, residual)
    out_axis = int(step_along(result, 3) < step_along(result, 1))
    axis, extent = (3, columns) if out_axis else (1, channels)
    return out_axis, math.gcd(*(alignment(tensor, axis, extent) for tensor in written))


def _phases(geometry: Geometry) -> tuple[int, ...]:
    """PHASES of a TmaLayout."""
    found = [a * geometry.stride[1] + b for a, b in phases_with_taps(geometry)]
    return (*found, *[-1] * (MAX_PHASES - len(found)))


def _phase_descriptors(
    x: torch.Tensor,
    geometry: Geometry,
    tile: TmaTile,
    channels: int,
    axes: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """A descriptor for each phase of x that a tap reads, None for the others a kernel takes."""
    stride_h, stride_w = geometry.stride
    arguments: dict[str, Any] = dict.fromkeys(f"x{i}_desc" for i in range(MAX_PHASES))
    for i, (a, b) in enumerate(phases_with_taps(geometry)):
        arguments[f"x{i}_desc"] = _boxes_descriptor(
            x, tile, channels, (a, b), (stride_h, stride_w), axes
        )
    return arguments


def _boxes_descriptor(
    image: torch.Tensor,
    tile: TmaTile,
    channels: int,
    phase: Pair = (0, 0),
    stride: Pair = (1, 1),
    axes: tuple[int, ...] | None = None,
) -> TensorDescriptor:
    """A descriptor of boxes of one phase of (N, C, H, W), in the format of layout.boxes_of.

    Its axes are those of `axes`, as in TmaLayout; without, in the order of their strides.

    Written without views of the tensor where it can be: each takes the host microseconds.

    Strides are multiples of 16 bytes, which is all that drivers and CUTLASS check. The text of
    cuTensorMapEncodeTiled (cuda.h of CUDA 13.1) builds each as a multiple of the one before; the
    sample stride of every other row of an odd height is none. FlashAttention 3 relies on more than
    that: it passes the smaller stride of a head after that of a row.
    """
    n, c, h, w = image.shape
    stride_n, stride_c, stride_h, stride_w = image.stride()
    planes = boxes_of(image) == "NCHW"
    if phase != (0, 0):
        image = image[:, :, phase[0] :, phase[1] :]
    rows, columns = (-(-(e - a) // step) for e, a, step in zip((h, w), phase, stride, strict=True))
    if planes:
        order = NCHW
        # A step of the loop multiplies one row of pixels; kernels load the others of a box alone.
        block = [1, 1, tile.BLOCK_Q, channels]
    else:
        order = NHWC
        block = [tile.BLOCK_I, tile.BLOCK_P, tile.BLOCK_Q, channels]
    sizes = [n, rows, columns, c]
    strides = [stride_n, stride_h * stride[0], stride_w * stride[1], stride_c]
    strides[order[3]] = 1
    piece = 16 // image.itemsize
    # A step along one element may be anything but a descriptor's.
    for axis, inner in ((order[i], order[i + 1]) for i in (2, 1, 0)):
        if sizes[axis] == 1:
            strides[axis] = -(-sizes[inner] * strides[inner] // piece) * piece
    sizes, strides, block = ([of[i] for i in axes or order] for of in (sizes, strides, block))
    return described(image, sizes, strides, block)


def is_matrix(weight: torch.Tensor) -> bool:
    """Whether a descriptor describes (rows, channels, R, S) as a matrix (rows, (R, S, channels)).

    It does one with its channels innermost, as channels_last has it, and a 1x1 window in either
    format.
    """
    _, channels, R, S = weight.shape
    step, *steps = weight.stride()
    dense = (1, S * channels, channels)
    return (
        all(a == b for a, b, n in zip(steps, dense, (channels, R, S), strict=True) if n > 1)
        and step * weight.itemsize % 16 == 0
        and weight.data_ptr() % 16 == 0
    )


def _rows_descriptor(weight: torch.Tensor, block: list[int]) -> TensorDescriptor:
    """Of a weight (rows, channels, R, S) that is_matrix, as that."""
    rows, channels, R, S = weight.shape
    columns = R * S * channels
    return described(weight, [rows, columns], [weight.stride(0) if rows > 1 else columns, 1], block)


def described(
    base: torch.Tensor, sizes: list[int], strides: list[int], block: list[int]
) -> TensorDescriptor:
    """Of float32, which is multiplied as TF32: what is loaded is rounded to nearest on the way.

    A matrix unit cuts off bits that TF32 does not have. Before Triton 3.7 a descriptor cannot tell.
    """
    if base.dtype == torch.float32 and not BEFORE_3_7:
        return TensorDescriptor(base, sizes, strides, block, round_f32_to_tf32=True)
    return TensorDescriptor(base, sizes, strides, block)
