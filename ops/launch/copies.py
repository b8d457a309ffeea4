"""Copies of operands in the order in which a kernel reads them, made by kernels/copy_images.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from ... import kernels
from ...kernels.structs import CopyLayout, constant
from ..geometry import Pair
from ..plan.integers import cdiv, power_of_two
from .call import Call
from .layout import NARROW_LIMIT, alignment, as_row, boxes_of, is_row, last_offset, step_along

#: Channels and pixels of a program of copy_images. Of planes with fewer pixels, as a weight's, it
#: has more channels: 64 of a 3x3 window are 1 kB, too few for the programs of a multiprocessor to
#: keep memory busy. With 64, NCHW calls of sd-unet-1280x16x16-1280-3x3 took 30 us longer on an H100
#: than channels_last ones; the bytes of the copies take 21. With more channels, not timed.
TILE = (64, 64)
#: What copy_images is given for each of its copies, in the order of _copy_arguments.
FIRST = ("x_ptr", "out_ptr", "INNER", "sizes", "x_strides", "out_strides", "LAYOUT")
SECOND = ("x2_ptr", "out2_ptr", "INNER2", "sizes2", "x2_strides", "out2_strides", "LAYOUT2")


@dataclass(frozen=True)
class Copy:
    """A copy to be made: of x (G, N, C, H, W), in `out` (G * N, C or more, H, W).

    `memory` is what `out` is a view of where it is made for this copy. With a `step`, pixels of x
    are that many rows and columns of `out` apart, and `bias`, or zero, is between them. Otherwise
    column `first` of `out` has the first column of x, and those that x does not have are zero;
    `turned`, columns are read backwards.
    """

    x: torch.Tensor
    out: torch.Tensor
    memory: torch.Tensor | None = None
    step: Pair = (1, 1)
    bias: torch.Tensor | None = None
    first: int = 0
    turned: bool = False


def channels_innermost(x: torch.Tensor, channels: int = 0) -> Copy:
    """A copy with the channels innermost.

    Args:
        x: (G, N, C, H, W) of any strides.
        channels: of the copy, if there are more than C: zeros.
    """
    G, N, C, H, W = x.shape
    shape = (G * N, channels or C, H, W)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return Copy(x, out, out)


def filters_innermost(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """A weight (K, C/groups, R, S) as (groups, C/groups, K/groups, R, S)."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2)


def in_boxes(image: torch.Tensor, boxes: str) -> tuple[torch.Tensor, Copy | None]:
    """(the image, or a copy, that descriptors describe in a format; that copy).

    Args:
        image: (N, C, H, W) of any strides.
        boxes: "NHWC" or "NCHW", see boxes_of.
    """
    if boxes_of(image) == boxes:
        return image, None
    N, C, H, W = image.shape
    piece = 16 // image.itemsize
    if boxes == "NHWC":
        copy = channels_innermost(image[None], cdiv(C, piece) * piece)
        return copy.out[:, :C], copy
    memory = image.new_empty(N, C, H, cdiv(W, piece) * piece)
    return memory[..., :W], Copy(image[None], memory[..., :W], memory)


def copy_calls(*copies: Copy | None) -> tuple[Call, ...]:
    """The launch that makes these copies, two at most; none if there are none."""
    made = [copy for copy in copies if copy is not None]
    if not made:
        return ()
    first, *rest = [_copy_arguments(copy) for copy in made]
    second: dict[str, Any] = dict.fromkeys(SECOND)
    for arguments, _ in rest:
        second = dict(zip(SECOND, arguments.values(), strict=True))
    bias = made[0].bias
    given = {"bias_ptr": bias, "bias_stride": 0 if bias is None else bias.stride(0)}
    call = Call(
        kernels.copy_images,
        sum(programs for _, programs in (first, *rest)),
        {**first[0], **second, **given, "PROGRAMS": first[1]},
        num_warps=4,
        num_stages=1,
        scratch=tuple(copy.memory for copy in made if copy.memory is not None),
    )
    return (call,)


def after_copies(call: Call, *copies: Copy | None) -> Call:
    """`call`, with the launch that makes these copies before all of its own.

    One launch makes them and the only copy of the first launch of the call, if that makes one.
    """
    made = copy_calls(*copies)
    if not made:
        return call
    if call.before and call.before[0].before:
        return replace(call, before=(after_copies(call.before[0], *copies), *call.before[1:]))
    own = call.before[0] if call.before else None
    if own is None or own.kernel is not kernels.copy_images or _is_full(own) or _is_full(made[0]):
        return replace(call, before=(*made, *call.before))
    return replace(call, before=(_joined(made[0], own), *call.before[1:]))


def _is_full(call: Call) -> bool:
    return call.arguments["x2_ptr"] is not None


def _joined(first: Call, second: Call) -> Call:
    """The launch that makes both copies."""
    more = {name: second.arguments[other] for name, other in zip(SECOND, FIRST, strict=True)}
    return replace(
        first,
        grid=first.grid + second.grid,
        arguments=first.arguments | more,
        scratch=(*first.scratch, *second.scratch),
    )


def _copy_arguments(copy: Copy) -> tuple[dict[str, Any], int]:
    """(what the kernel is given for one copy, its programs)."""
    x, out = copy.x, copy.out
    outer, image = x.stride(0), x[0]
    has_steps = copy.step != (1, 1)
    longer = (out.shape[3] != image.shape[3] or copy.first != 0 or copy.turned) and not has_steps
    one_row = is_row(image) and is_row(out) and not has_steps and not longer
    out_row = is_row(out) and not one_row
    source = as_row(image) if one_row else image
    target = as_row(out) if one_row or out_row else out
    N, C = source.shape[:2]
    channels, H, W = (target if one_row else out).shape[1:]
    x_axis, out_axis = (int(step_along(t, 3) < step_along(t, 1)) for t in (source, target))
    align, out_align = (
        alignment(t, 3 if axis else 1, t.shape[3] if axis else t.shape[1])
        for t, axis in ((source, x_axis), (target, out_axis))
    )
    block_p = min(TILE[1], power_of_two(H * W))
    if copy.first:  # few channels
        block_p = min(math.prod(TILE) // power_of_two(channels), power_of_two(H * W))
    block_c = min(math.prod(TILE) // block_p, 4 * TILE[0], power_of_two(channels))
    layout = CopyLayout(
        X_AXIS=x_axis,
        OUT_AXIS=out_axis,
        X_ALIGN=1 if copy.turned else math.gcd(align, outer) if len(x) > 1 else align,
        OUT_ALIGN=out_align,
        ONE_ROW=one_row,
        INT64=max(last_offset(x), last_offset(out)) > NARROW_LIMIT,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        STEP_H=copy.step[0],
        STEP_W=copy.step[1],
        OUT_ROW=out_row,
        COLUMNS=image.shape[3] if longer else 0,
        FIRST_COLUMN=copy.first,
    )
    arguments = {
        "x_ptr": x[..., -1:] if copy.turned else x,
        "out_ptr": out,
        "INNER": N,
        "sizes": (C, H, W, channels, outer),
        "x_strides": (*source.stride()[:3], (-1 if copy.turned else 1) * source.stride(3)),
        "out_strides": target.stride(),
        "LAYOUT": constant(layout),
    }
    return arguments, len(target) * cdiv(channels, block_c) * cdiv(H * W, block_p)
