"""Copies of operands in the order in which a kernel reads them, made by kernels/copy_image.py."""

from __future__ import annotations

import math

import torch

from ... import kernels
from ...kernels.structs import CopyLayout, constant
from ..plan.integers import cdiv, power_of_two
from .call import Call
from .layout import NARROW_LIMIT, alignment, as_row, is_row, last_offset, step_along

#: Channels and pixels of a program of copy_image.
TILE = (64, 64)


def copied(x: torch.Tensor) -> tuple[torch.Tensor, tuple[Call, ...]]:
    """A copy with the channels innermost, and the launch that fills it.

    Args:
        x: (G, N, C, H, W) of any strides.

    Returns:
        The copy is (G * N, C, H, W).
    """
    G, N, C, H, W = x.shape
    out = torch.empty(
        (G * N, C, H, W), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    return out, (copy_call(x, out),)


def filters_innermost(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """A weight (K, C/groups, R, S) as (groups, C/groups, K/groups, R, S)."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2)


def copy_call(x: torch.Tensor, out: torch.Tensor) -> Call:
    """The launch that copies x (G, N, C, H, W) to `out` (G * N, C or more, H, W)."""
    outer, image = x.stride(0), x[0]
    one_row = is_row(image) and is_row(out)
    source, target = (as_row(image), as_row(out)) if one_row else (image, out)
    N, C, H, W = source.shape
    x_axis, out_axis = (int(step_along(t, 3) < step_along(t, 1)) for t in (source, target))
    align = alignment(source, 3 if x_axis else 1, W if x_axis else C)
    layout = CopyLayout(
        X_AXIS=x_axis,
        OUT_AXIS=out_axis,
        X_ALIGN=math.gcd(align, outer) if len(x) > 1 else align,
        OUT_ALIGN=alignment(target, 3 if out_axis else 1, W if out_axis else target.shape[1]),
        ONE_ROW=one_row,
    )
    channels = target.shape[1]
    block_c, block_p = (
        min(most, power_of_two(extent))
        for most, extent in zip(TILE, (channels, H * W), strict=True)
    )
    return Call(
        kernels.copy_image,
        len(target) * cdiv(channels, block_c) * cdiv(H * W, block_p),
        {
            "x_ptr": x,
            "out_ptr": out,
            "INNER": N,
            "x_shape": (C, H, W),
            "CHANNELS": channels,
            "x_stride_g": outer,
            "x_strides": source.stride(),
            "out_strides": target.stride(),
            "LAYOUT": constant(layout),
            "INT64": max(last_offset(x), last_offset(out)) > NARROW_LIMIT,
            "BLOCK_C": block_c,
            "BLOCK_P": block_p,
        },
        num_warps=4,
        num_stages=1,
        scratch=out,
    )
