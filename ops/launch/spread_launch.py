"""The launches of fprop_spread: the spread weight, a copy of the image, the product of boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ... import kernels
from ...kernels.structs import SpreadLayout, constant
from ..geometry import Geometry
from ..plan import spread
from ..plan.problem import Layout, Plan, Problem
from ..plan.tma_copies import tap_columns
from .call import Call
from .copies import copy_calls, in_boxes
from .descriptors import fprop_descriptors, stored
from .kernel_arguments import Tensors, call_of, weight_walk
from .patch_launch import PATCH_WEIGHT_BLOCK, patch_axis


def spread_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launch that fills y, or dx where x is dy and y is dx, after those of its operands.

    Of a plan with several splits, y is the first part, and the others follow it.
    """
    tile: Any = plan.tile
    y, weight = tensors.y, tensors.weight
    problem = Problem(plan.op, geometry, weight.dtype, plan.precision, Layout())
    shown = spread.spread_problem(problem, tile.PATCH_P, tile.PATCH_Q)
    inner = shown.geometry
    x, copy = in_boxes(tensors.x, "NHWC")
    out_axis, align = stored(problem.group_channels, y.shape[3], tensors)
    axes = spread.axes_of(plan.op, geometry, tile.PATCH_P, tile.PATCH_Q)
    rows, columns = axes
    across = out_axis == 1 and columns.pitch > 1 and spread.is_power(columns.pitch)
    matrix, first = _spread_weight(weight, geometry, plan, shown, across)
    given = fprop_descriptors(x, matrix, inner, tile.boxes_tile, out_axis, align, plan.splits > 1)
    made: Any = given["LAYOUT"]
    layout = SpreadLayout(
        PHASES=made.PHASES,
        OUT_AXIS=made.OUT_AXIS,
        ALIGN=made.ALIGN,
        SPLIT=made.SPLIT,
        RESULTS=problem.group_channels,
        PITCH_H=rows.pitch,
        PITCH_W=columns.pitch,
        SHIFT_H=rows.shift,
        SHIFT_W=columns.shift,
        ACROSS=across,
    )
    call = call_of(
        replace(plan, op="fprop", turned=False),
        inner,
        y_ptr=y,
        patch_shape=(rows.count, columns.count),
        TAP_COLUMNS=matrix.shape[1],
        y_strides=y.stride(),
        split_stride=y.numel() if plan.splits > 1 else 0,
        **tensors.epilogue(),
        **given | {"LAYOUT": constant(layout)},
    )
    call.arguments["y_shape"] = tuple(y.shape[2:])
    return replace(call, before=(*copy_calls(copy), first), scratch=(matrix,))


def _spread_weight(
    weight: torch.Tensor, geometry: Geometry, plan: Plan, shown: Problem, across: bool
) -> tuple[torch.Tensor, Call]:
    """(the spread weight (column, channel, i, j), channels innermost; the launch that fills it)."""
    tile: Any = plan.tile
    inner = shown.geometry
    channels = tap_columns(shown, tile.BLOCK_K)
    matrix = torch.empty(
        (inner.K, channels, inner.R, inner.S),
        dtype=weight.dtype,
        device=weight.device,
        memory_format=torch.channels_last,
    )
    taps, (_, k, c, r, s) = weight_walk(weight, geometry)
    if plan.op == "dgrad":
        k, c = c, k
    rows, columns = spread.axes_of(plan.op, geometry, tile.PATCH_P, tile.PATCH_Q)
    layout = SpreadLayout(
        PHASES=(),
        OUT_AXIS=0,
        ALIGN=1,
        SPLIT=False,
        RESULTS=inner.group_K // (rows.pitch * columns.pitch),
        PITCH_H=rows.pitch,
        PITCH_W=columns.pitch,
        SHIFT_H=0,
        SHIFT_W=0,
        ACROSS=across,
    )
    arguments = {
        "weight_ptr": taps,
        "spread_ptr": matrix,
        "ELEMENTS": matrix.numel(),
        "GROUP_C": inner.group_C,
        "weight_strides": (geometry.group_K * taps.stride(0), k, c, r, s),
        "R": geometry.R,
        "S": geometry.S,
        "ROWS": constant(patch_axis(rows)),
        "COLUMNS": constant(patch_axis(columns)),
        "LAYOUT": constant(layout),
        "STEPS": inner.R * inner.S,
        "INT64": plan.int64,
        "BLOCK_K": channels,
        "BLOCK_E": PATCH_WEIGHT_BLOCK,
    }
    programs = -(-matrix.numel() // PATCH_WEIGHT_BLOCK)
    return matrix, Call(kernels.build_patch_weight, programs, arguments, 4, 2)
