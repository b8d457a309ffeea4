"""The launches of fprop_strip: the weight as a matrix, and the products of strips with it."""

from __future__ import annotations

from typing import Any

import torch

from ... import kernels
from ...kernels.structs import PatchAxis, SpreadLayout, StripLayout, constant, tile_struct
from ..geometry import Geometry
from ..plan.problem import Layout, Plan, Problem
from .call import Call
from .descriptors import stored
from .kernel_arguments import Tensors, weight_walk
from .layout import boxes_of
from .patch_launch import PATCH_WEIGHT_BLOCK, patch_axis
from .reuse_launch import gluon_descriptor


def strip_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launch that fills y, or dx where x is dy and y is dx, after that of the weight."""
    tile: Any = plan.tile
    x, y, weight = tensors.x, tensors.y, tensors.weight
    boxes = boxes_of(x)
    layout = Layout(x_boxes=boxes, y_boxes=boxes)
    problem = Problem(plan.op, geometry, weight.dtype, plan.precision, layout)
    rows, columns, blocks = tile.rows(problem), tile.columns(problem), tile.blocks(problem)
    matrix, first = _weight_matrix(weight, geometry, plan, problem)
    out_axis, align = stored(problem.group_channels, y.shape[3], tensors)
    made = StripLayout(
        NCHW=boxes == "NCHW",
        OUT_AXIS=out_axis,
        ALIGN=align,
        BLOCKS=blocks,
        RESULTS=problem.group_channels,
        PLACES=rows.window,
        STEP_H=rows.step,
        PAD_H=rows.pad,
        PITCH_H=rows.pitch,
        SHIFT_H=rows.shift,
        PITCH_W=columns.pitch,
        SHIFT_W=columns.shift,
        SHIFTS=columns.shifts,
        REACH=columns.reach,
        FIRST_W=columns.first,
        STEP_W=columns.step,
    )
    extents = {name: value for name, value in vars(tile).items() if name.isupper()}
    arguments = {
        "x_desc": _image_descriptor(x, tile),
        "weight_desc": gluon_descriptor(
            matrix, list(matrix.shape), [matrix.shape[1], 1], [tile.BLOCK_N, tile.BLOCK_K]
        ),
        "y_ptr": y,
        "y_shape": tuple(y.shape[2:]),
        "PATCHES": rows.count,
        "STRIPS": columns.count,
        "SEGMENT": tile.segment,
        "GROUPS": geometry.groups,
        "GROUP_C": problem.reduced,
        "y_strides": y.stride(),
        "LAYOUT": constant(made),
        "TILE": constant(tile_struct(extents)),
        "STAGES": tile.num_stages,
        "WARPS": tile.num_warps,
        **tensors.epilogue(),
    }
    kernel = getattr(kernels, plan.kernel)
    taken = {name: arguments[name] for name in kernel.arg_names}
    return Call(
        kernel,
        plan.grid,
        taken,
        tile.num_warps,
        tile.num_stages,
        plan.max_registers,
        before=(first,),
        scratch=(matrix,),
    )


def _image_descriptor(x: torch.Tensor, tile: Any) -> Any:
    """Of boxes of one row of pixels, and a block of channels, in the order in which they lie."""
    n, c, h, w = x.shape
    stride_n, stride_c, stride_h, stride_w = x.stride()
    if boxes_of(x) == "NCHW":
        sizes, strides = [n, c, h, w], [stride_n, stride_c, stride_h, 1]
        block = [1, tile.BLOCK_K, 1, tile.BLOCK_Q]
    else:
        sizes, strides = [n, h, w, c], [stride_n, stride_h, stride_w, 1]
        block = [1, 1, tile.BLOCK_Q, tile.BLOCK_K]
    piece = 16 // x.itemsize
    for axis in (2, 1, 0):
        if sizes[axis] == 1:  # a step along one element may be anything but a descriptor's
            step = sizes[axis + 1] * strides[axis + 1]
            strides[axis] = -(-step // piece) * piece
    return gluon_descriptor(x, sizes, strides, block)


def _weight_matrix(
    weight: torch.Tensor, geometry: Geometry, plan: Plan, problem: Problem
) -> tuple[torch.Tensor, Call]:
    """(the matrix (group, k, a, j, b) by (i, c), the launch that fills it).

    Channels are filled up to whole blocks, with zeros.
    """
    tile: Any = plan.tile
    rows, columns = tile.rows(problem), tile.columns(problem)
    channels = tile.blocks(problem) * tile.BLOCK_K
    across = columns.shifts * columns.pitch
    lines = geometry.groups * tile.lines(problem)
    matrix = weight.new_empty((lines * across, rows.window * channels))
    taps, (_, k, c, r, s) = weight_walk(weight, geometry)
    if plan.op == "dgrad":
        k, c = c, k
    layout = SpreadLayout(
        PHASES=(),
        OUT_AXIS=0,
        ALIGN=1,
        SPLIT=False,
        RESULTS=problem.group_channels,
        PITCH_H=rows.pitch,
        PITCH_W=across,
        SHIFT_H=0,
        SHIFT_W=0,
        ACROSS=True,
    )
    # Columns of the window are results of a patch that reads one place.
    places = PatchAxis(
        PITCH=across,
        SHIFT=0,
        STEP=1,
        PAD=0,
        WINDOW=1,
        TAP_OF_PLACE=0,
        TAP_OF_RESULT=1 if plan.op == "dgrad" else -1,
        FIRST_TAP=columns.first_tap,
    )
    arguments = {
        "weight_ptr": taps,
        "spread_ptr": matrix,
        "ELEMENTS": matrix.numel(),
        "GROUP_C": problem.reduced,
        "weight_strides": (geometry.group_K * taps.stride(0), k, c, r, s),
        "R": geometry.R,
        "S": geometry.S,
        "ROWS": constant(patch_axis(rows)),
        "COLUMNS": constant(places),
        "LAYOUT": constant(layout),
        "STEPS": rows.window,
        "INT64": plan.int64,
        "BLOCK_K": channels,
        "BLOCK_E": PATCH_WEIGHT_BLOCK,
    }
    programs = -(-matrix.numel() // PATCH_WEIGHT_BLOCK)
    return matrix, Call(kernels.build_patch_weight, programs, arguments, 4, 2)
