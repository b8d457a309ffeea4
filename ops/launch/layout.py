"""The Layout of a call's tensors and the Device that they are on, for the planner."""

from __future__ import annotations

import functools
import math

import torch

from ...kernels.versions import HAS_GLUON
from .. import backend
from ..geometry import Geometry
from ..plan.cost import epilogue_slots
from ..plan.device import INTERPRETER, Device, device_called
from ..plan.problem import Layout
from .formats import suggests_channels_last

#: Largest offset for 32-bit indices, with room for a tile that overhangs the end.
NARROW_LIMIT = 2**31 - 2**16


def layout_of(
    geometry: Geometry,
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    residual: torch.Tensor | None = None,
    activation: str = "none",
) -> Layout:
    """The layout of the tensors of one call, or of their gradients."""
    (top, bottom), (left, right) = geometry.padding
    # Kernels also compute offsets of pixels in the padding and of outputs beyond the end.
    beyond_h = max(0, top) + max(0, bottom) + (geometry.R - 1) * geometry.dilation[0]
    beyond_w = max(0, left) + max(0, right) + (geometry.S - 1) * geometry.dilation[1]
    largest = max(
        last_offset(weight),
        *(last_offset(t) + beyond_h * t.stride(2) + beyond_w * t.stride(3) for t in (x, y)),
        0 if residual is None else last_offset(residual),
        geometry.H + top + bottom,
        geometry.W + left + right,
        geometry.N * geometry.H * geometry.W,
        geometry.N * geometry.P * geometry.Q,
    )
    images = (x, y) if residual is None else (x, y, residual)
    as_rows = geometry.is_point and all(map(is_row, images))
    x_boxes, y_boxes = (boxes_of(as_row(t) if as_rows else t) for t in (x, y))
    merged = None
    if can_merge(x, geometry):
        merged = boxes_of(merged_columns(x, geometry)) if x.dtype == y.dtype else ""
    return Layout(
        channels_last=suggests_channels_last(x) or suggests_channels_last(y),
        int64=largest > NARROW_LIMIT,
        x_boxes=x_boxes if x.dtype == y.dtype else "",
        y_boxes=y_boxes if x.dtype == y.dtype else "",
        x_row=boxes_of(as_row(x)) if is_row(x) else "",
        y_row=boxes_of(as_row(y)) if is_row(y) else "",
        epilogue=epilogue_slots(residual is not None, activation, y.dtype),
        as_rows=as_rows,
        converts=x.dtype != y.dtype,
        repacks=not is_read_as_it_is(weight),
        x_align=columns_together(x),
        y_align=math.gcd(*map(columns_together, images[1:])),
        gluon=HAS_GLUON and not (x.is_cpu and backend.interprets()),
        merged=merged,
        order=order_of(weight) if geometry.is_patches else "",
    )


def order_of(weight: torch.Tensor) -> str:
    """Layout.order of a weight (K, C/groups, R, S)."""
    _, channels, R, S = weight.shape
    dense = {"crs": (R * S, S, 1), "rsc": (1, S * channels, channels)}
    for order, steps in dense.items():
        found = zip(weight.shape[1:], weight.stride()[1:], steps, strict=True)
        if all(a == b for n, a, b in found if n > 1):
            return order
    return ""


def can_merge(tensor: torch.Tensor, geometry: Geometry) -> bool:
    """Whether x, or a weight, is in memory as Geometry.merged_columns has it."""
    channels, columns = tensor.shape[1], tensor.shape[3]
    return (
        geometry.merges_columns
        and (channels == 1 or tensor.stride(1) == 1)
        and (columns == 1 or tensor.stride(3) == channels)
    )


def merged_columns(tensor: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """x (N, S * C, H, Q), or a weight (K, S * C, R, 1), a view of one that can_merge."""
    assert can_merge(tensor, geometry), tensor.stride()
    n, channels, h, _ = tensor.shape
    merged = geometry.S * channels
    columns = min(tensor.shape[3] // geometry.S, geometry.Q)
    n_step, _, h_step, _ = tensor.stride()
    return tensor.as_strided((n, merged, h, columns), (n_step, 1, h_step, merged))


def is_read_as_it_is(weight: torch.Tensor) -> bool:
    """Whether a GEMM reads the weight itself: its channels are innermost already, or one.

    So is a bank per sample: it is not read again and again by programs with other pixels.
    """
    return weight.dim() == 5 or weight.stride(1) == 1 or weight.shape[1] == 1


def columns_together(image: torch.Tensor) -> int:
    """Columns of a piece, see Layout.x_align."""
    *steps, step = image.stride()
    if (step != 1 and image.shape[3] > 1) or image.data_ptr() % image.itemsize:
        return 1
    steps = [s for size, s in zip(image.shape, steps, strict=False) if size > 1]
    first = image.data_ptr() // image.itemsize
    return math.gcd(16 // image.itemsize, first, image.shape[3], *steps)


def boxes_of(tensor: torch.Tensor) -> str:
    """The format in which a tensor descriptor can describe (N, C, H, W), with steps of 16 bytes.

    Returns "NHWC", channels innermost, "NCHW", contiguous rows of planes, or "" for neither.
    """
    if tensor.data_ptr() % 16:
        return ""
    n, c, h, w = tensor.stride()
    N, C, H, W = tensor.shape
    step = 16 // tensor.itemsize
    if (N > 1 and not _is_step(n, step)) or (H > 1 and not _is_step(h, step)):
        return ""
    if c == 1 and (W == 1 or _is_step(w, step)):
        return "NHWC"
    return "NCHW" if w == 1 and (C == 1 or _is_step(c, step)) else ""


def _is_step(stride: int, step: int) -> bool:
    return stride > 0 and stride % step == 0


def is_row(image: torch.Tensor) -> bool:
    """Whether a plane is one long row: its rows follow one another as its columns do."""
    return image.shape[2] == 1 or image.stride(2) == image.shape[3] * image.stride(3)


def as_row(image: torch.Tensor) -> torch.Tensor:
    """An image (N, C, H, W) that is_row as (N, C, 1, H * W)."""
    n, c, h, w = image.shape
    return image.as_strided((n, c, 1, h * w), (*image.stride()[:2], 0, image.stride(3)))


def run_of(image: torch.Tensor) -> int:
    """2 where pixels of all samples are equally far from one to the next, 1 of a plane, 0 of a row.

    Pixels are counted through (n, h, w).
    """
    n, _, h, w = image.shape
    if not is_row(image):
        return 0
    return 2 if n == 1 or image.stride(0) == h * w * image.stride(3) else 1


def step_along(image: torch.Tensor, axis: int) -> float:
    """Elements from one to the next along an axis; there is no next one along an extent of one."""
    return image.stride(axis) if image.shape[axis] > 1 else math.inf


def alignment(tensor: torch.Tensor, axis: int, extent: int) -> int:
    """Elements, of 16 bytes at most, in which pieces of `extent` along the innermost axis come."""
    if tensor.data_ptr() % 16 or (tensor.stride(axis) != 1 and tensor.shape[axis] > 1):
        return 1
    steps = [s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    steps.remove(1) if tensor.shape[axis] > 1 else None
    return math.gcd(max(1, 16 // tensor.itemsize), extent, *steps)


def last_offset(tensor: torch.Tensor) -> int:
    """Elements from a tensor's first one to the one that lies furthest behind it."""
    return sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)


def device_of(tensor: torch.Tensor) -> Device:
    """The planner's facts about the device a tensor is on."""
    return _device(tensor.device)


def _device(device: torch.device) -> Device:
    if device.type != "cuda":
        return backend.CPU_DEVICE or INTERPRETER
    return _gpu(device)


@functools.cache
def _gpu(device: torch.device) -> Device:
    facts = torch.cuda.get_device_properties(device)
    arch = getattr(facts, "gcnArchName", "").split(":")[0] if torch.version.hip else ""
    arch = arch or f"{facts.major}{facts.minor}"
    return device_called(facts.name, arch, facts.multi_processor_count)
