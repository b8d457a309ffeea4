"""The launch of wgrad_flat, and the one before it that copies its operands.

Copies that are too large at once are made in parts, each with a launch of wgrad_flat behind it.
"""

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

#: Channels, or lanes, of a program of copy_flat, and all of its elements.
ROWS, ELEMENTS = 64, 4096


def flat_call(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, plan: Plan, **arguments: Any
) -> Call:
    """The last launch that fills dw, which `arguments` describe, after all others."""
    tile: Any = plan.tile
    g, made = geometry, flat.copies_of(geometry, tile.unfolded)
    x_flat = x.new_empty(made.x_planes * g.C, made.x_length)
    dy_flat = dy.new_empty(made.dy_planes * g.K, made.dy_length)
    x_planes = (made.x_rows, made.x_columns, made.first)
    x_copy, programs = _copy_arguments(x, x_flat, made, g.group_C, x_planes)
    dy_planes = (made.band_rows, made.pitch, 0)
    dy_copy, more = _copy_arguments(dy, dy_flat, made, g.group_K, dy_planes)
    copy = Call(
        kernels.copy_flat,
        programs + more,
        {
            **dict(zip(("x_ptr", "x_out_ptr", "x_sizes", "x_strides"), x_copy, strict=False)),
            **dict(zip(("dy_ptr", "dy_out_ptr", "dy_sizes", "dy_strides"), dy_copy, strict=False)),
            "N": g.N,
            "PITCH": made.pitch,
            "LANES": made.lanes,
            "FIRST_LANE": 0,
            "bands": (made.bands, made.band_rows),
            "PROGRAMS": programs,
            "WINDOW": constant(window_of(g)),
            "UNFOLDED": tile.unfolded,
            "X_LAYOUT": x_copy[-1],
            "DY_LAYOUT": dy_copy[-1],
        },
        num_warps=4,
        num_stages=1,
        scratch=(x_flat, dy_flat),
    )
    product = call_of(
        plan,
        g,
        x_desc=_descriptor(x_flat, [tile.BLOCK_C, tile.BLOCK_L]),
        dy_desc=_descriptor(dy_flat, [tile.BLOCK_F, tile.BLOCK_L]),
        ROW=made.pitch * made.lanes,
        LANES=made.lanes,
        FIRST=made.first,
        LENGTH=made.dy_length,
        UNFOLDED=tile.unfolded,
        ADD=False,
        **arguments,
    )
    launches = []
    for part in range(made.parts):
        lanes = {"FIRST_LANE": part * made.lanes}
        launches.append(replace(copy, arguments=copy.arguments | lanes))
        launches.append(replace(product, arguments=product.arguments | {"ADD": part > 0}))
    return replace(launches[-1], before=tuple(launches[:-1]))


def _copy_arguments(
    image: torch.Tensor,
    out: torch.Tensor,
    made: flat.Copies,
    group: int,
    planes: tuple[int, int, int],
) -> tuple[tuple[Any, ...], int]:
    """((image, copy, sizes, strides, layout) as the kernel takes them, programs).

    Args:
        image: of which the copy is made.
        out: the copy.
        made: how it lies.
        group: channels of a group.
        planes: rows and columns of a plane of the copy, and its first row.
    """
    _, C, H, W = image.shape
    cells = planes[0] * made.pitch
    axis = int(step_along(image, 3) < step_along(image, 1))
    rows = min(ROWS, power_of_two(made.lanes if axis else C))
    columns = min(ELEMENTS // rows, power_of_two(C * cells if axis else out.shape[1]))
    layout = CopyLayout(
        X_AXIS=axis,
        OUT_AXIS=1,
        X_ALIGN=alignment(image, 3 if axis else 1, W if axis else C),
        OUT_ALIGN=flat.PIECE,
        ONE_ROW=False,
        INT64=max(last_offset(image), out.numel()) > NARROW_LIMIT,
        BLOCK_C=rows,
        BLOCK_P=columns,
    )
    given = (image, out, (C, group, H, W, *planes), image.stride(), constant(layout))
    tiles = out.shape[0] // C
    if axis:
        tiles *= cdiv(C * cells, columns) * cdiv(made.lanes, rows)
    else:
        tiles *= cdiv(out.shape[1], columns) * cdiv(C, rows)
    return given, tiles


def _descriptor(planes: torch.Tensor, block: list[int]) -> TensorDescriptor:
    """Of planes one below the other, whose values were rounded to TF32 as they were copied."""
    return TensorDescriptor(planes, [*planes.shape], [*planes.stride()], block)
