"""The launch of wgrad_flat, and the one before it that copies its operands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ... import kernels
from ...kernels import TensorDescriptor
from ...kernels.structs import CopyLayout, constant
from ..geometry import Geometry
from ..plan import flat
from ..plan.integers import cdiv, power_of_two
from ..plan.problem import Plan
from .call import Call
from .kernel_arguments import call_of, window_of
from .layout import NARROW_LIMIT, alignment, last_offset, step_along

#: Channels and pixels of a program of copy_flat.
TILE = (64, 64)


def flat_call(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, plan: Plan, **arguments: Any
) -> Call:
    """The launch that fills dw, which `arguments` describe, after the one that copies x and dy."""
    tile: Any = plan.tile
    copies, pitch = flat.copies(geometry), flat.pitch(geometry)
    x_flat = x.new_empty(copies * geometry.N * geometry.C, flat.x_length(geometry))
    dy_flat = dy.new_empty(geometry.N * geometry.K, flat.dy_length(geometry))
    x_copy, programs = _copy_arguments(x, x_flat, copies)
    dy_copy, more = _copy_arguments(dy, dy_flat)
    copy = Call(
        kernels.copy_flat,
        programs + more,
        {
            **dict(zip(("x_ptr", "x_out_ptr", "x_sizes", "x_strides"), x_copy, strict=False)),
            **dict(zip(("dy_ptr", "dy_out_ptr", "dy_sizes", "dy_strides"), dy_copy, strict=False)),
            "N": geometry.N,
            "PITCH": pitch,
            "PROGRAMS": programs,
            "WINDOW": constant(window_of(geometry)),
            "X_LAYOUT": x_copy[-1],
            "DY_LAYOUT": dy_copy[-1],
        },
        num_warps=4,
        num_stages=1,
        scratch=(x_flat, dy_flat),
    )
    call = call_of(
        plan,
        geometry,
        x_desc=_descriptor(x_flat, [tile.BLOCK_C, tile.BLOCK_L]),
        dy_desc=_descriptor(dy_flat, [tile.BLOCK_F, tile.BLOCK_L]),
        PITCH=pitch,
        LENGTH=dy_flat.shape[1],
        COPIES=copies,
        **arguments,
    )
    return replace(call, before=(copy,))


def _copy_arguments(
    image: torch.Tensor, out: torch.Tensor, copies: int = 1
) -> tuple[tuple[Any, ...], int]:
    """((image, copy, sizes, strides, layout) as the kernel takes them, programs)."""
    N, C, H, W = image.shape
    length = out.shape[1]
    axis = int(step_along(image, 3) < step_along(image, 1))
    block_c, block_p = (
        min(most, power_of_two(n)) for most, n in zip(TILE, (C, length), strict=True)
    )
    layout = CopyLayout(
        X_AXIS=axis,
        OUT_AXIS=1,
        X_ALIGN=alignment(image, 3 if axis else 1, W if axis else C),
        OUT_ALIGN=flat.PIECE,
        ONE_ROW=False,
        INT64=max(last_offset(image), out.numel()) > NARROW_LIMIT,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    given = (image, out, (C, H, W, length, copies), image.stride(), constant(layout))
    return given, copies * N * cdiv(C, block_c) * cdiv(length, block_p)


def _descriptor(planes: torch.Tensor, block: list[int]) -> TensorDescriptor:
    """Of planes one below the other, whose values were rounded to TF32 as they were copied."""
    return TensorDescriptor(planes, [*planes.shape], [*planes.stride()], block)
