"""The launches of patch kernels: the spread weight, and the product of patches with it."""

from __future__ import annotations

import math
from typing import Any

from ... import kernels
from ...kernels.structs import PatchAxis, PatchLayout, constant, tile_struct
from ..geometry import Geometry
from ..plan.patch import Axis
from ..plan.problem import Plan
from .call import Call
from .kernel_arguments import Tensors, weight_walk
from .layout import alignment, step_along

#: Elements of the spread weight that one program of build_patch_weight writes.
PATCH_WEIGHT_BLOCK = 1024


#: Columns and patches that threads run along as they store.
STORED_COLUMNS, STORED_PATCHES = 8, 32
#: Columns of a patch that are stored as a row of a plane: 16 bytes of 16-bit numbers.
ACROSS_PITCH = 8


def patch_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launch that fills y, or dx where x is dy and y is dx, after that of the spread weight.

    Of a plan with several splits, y is the first part, and the others follow it.
    """
    tile: Any = plan.tile
    shape = tile.spread_shape(plan.op, geometry, plan.one_tap)
    spread = tensors.weight.new_empty(shape)
    extents = {name: value for name, value in vars(tile).items() if name.isupper()}
    taps, (_, k, c, r, s) = weight_walk(tensors.weight, geometry)
    channels = geometry.group_C
    if plan.op == "dgrad":
        channels, k, c = geometry.group_K, c, k
    arguments = patch_arguments(tensors, geometry, plan) | {
        "x_ptr": tensors.x,
        "weight_ptr": taps,
        "spread_ptr": spread,
        "y_ptr": tensors.y,
        "x_shape": tensors.x.shape[2:],
        "y_shape": tensors.y.shape[2:],
        "GROUP_C": channels,
        "ELEMENTS": spread.numel(),
        "x_strides": tensors.x.stride(),
        "weight_strides": (geometry.group_K * taps.stride(0), k, c, r, s),
        "y_strides": tensors.y.stride(),
        "SPLITS": plan.splits,
        "split_stride": tensors.y.numel() if plan.splits > 1 else 0,
        "PRECISION": plan.precision,
        "STEPS": shape[-1] // tile.BLOCK_K,
        "INT64": plan.int64,
        "TILE": constant(tile_struct(extents)),
        "BLOCK_K": tile.BLOCK_K,
        "BLOCK_E": PATCH_WEIGHT_BLOCK,
        **tensors.epilogue(),
    }
    spreads, multiplies = (
        {name: arguments[name] for name in kernel.arg_names}
        for kernel in (kernels.build_patch_weight, kernels.fprop_patch)
    )
    programs = -(-spread.numel() // PATCH_WEIGHT_BLOCK)
    first = Call(kernels.build_patch_weight, programs, spreads, 4, 2)
    return Call(
        kernels.fprop_patch,
        plan.grid,
        multiplies,
        tile.num_warps,
        tile.num_stages,
        plan.max_registers,
        before=(first,),
        scratch=(spread,),
    )


def patch_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """What patch kernels take besides tensors; of an input gradient, x is dy and y is dx."""
    image, result = tensors.x, tensors.y
    tile: Any = plan.tile
    axes = tile.axes(plan.op, geometry)
    channels, results = geometry.group_C, geometry.group_K
    if plan.op == "dgrad":
        channels, results = results, channels
    wgrad = plan.op == "wgrad"
    flat = not wgrad and not plan.one_tap
    y_axis = int(step_along(result, 3) < step_along(result, 1))
    if y_axis == 0:
        y_align = alignment(result, 1, results)
    else:  # a patch per thread, side by side
        y_align = 1 if wgrad or axes[1].pitch > 1 else alignment(result, 3, result.shape[3])
    x_align = alignment(image, 1, channels)
    # Single channels are gathered anyway: then a lane has places of its own, and patches share
    # them, unless every step has others.
    row = axes[1].window * channels
    scattered = x_align == 1 and (wgrad or (flat and row <= tile.BLOCK_K))
    pixel_axis = int(scattered or step_along(image, 3) < step_along(image, 1))
    x_align = 1 if pixel_axis else x_align
    inside = all(
        axis.pad <= 0 and (axis.count - 1) * axis.step - axis.pad + axis.window <= extent
        for axis, extent in zip(axes, image.shape[2:], strict=True)
    )
    fits = all(
        axis.shift == 0 and axis.count * axis.pitch == extent
        for axis, extent in zip(axes, result.shape[2:], strict=True)
    )
    one_tap = channels % tile.BLOCK_N == 0  # of a weight gradient
    across = not wgrad and y_axis == 1 and axes[1].pitch >= ACROSS_PITCH
    by_columns = not wgrad and (y_axis == 0 or across)
    layout = PatchLayout(
        PIXEL_AXIS=pixel_axis,
        X_ALIGN=x_align,
        Y_AXIS=y_axis,
        Y_ALIGN=y_align,
        FLATTEN_K=channels if flat else None,
        K_DIVIDES=channels % tile.BLOCK_K == 0,
        PREFETCH=image.itemsize * x_align < 4 and (not wgrad or one_tap),
        ONE_TAP=one_tap,
        RESULTS=results,
        ACROSS=across,
        CHECKED=geometry.padding_mode != "zeros" or not inside,
        CROPPED=not fits,
        LOOSE=x_align == 1,
        SPLIT=not wgrad and plan.splits > 1,
        STORED_LANES=min(STORED_COLUMNS, tile.BLOCK_N) if by_columns else STORED_PATCHES,
    )
    rows, columns = (constant(patch_axis(axis)) for axis in axes)
    return {
        "ROWS": rows,
        "COLUMNS": columns,
        "LAYOUT": constant(layout),
        "MODE": geometry.padding_mode if plan.op != "dgrad" else "zeros",
        "patch_shape": (axes[0].count, axes[1].count),
        "PATCHES": tile.patches(plan.op, geometry),
        "R": geometry.R,
        "S": geometry.S,
        "SPLIT_PATCHES": plan.split_pixels,
        "dw_stride_partial": math.prod(geometry.weight_shape),
    }


def patch_axis(axis: Axis) -> PatchAxis:
    """An axis as kernels take it."""
    return PatchAxis(
        PITCH=axis.pitch,
        SHIFT=axis.shift,
        STEP=axis.step,
        PAD=axis.pad,
        WINDOW=axis.window,
        TAP_OF_PLACE=axis.of_place,
        TAP_OF_RESULT=axis.of_result,
        FIRST_TAP=axis.first,
    )
