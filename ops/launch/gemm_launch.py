"""How GEMM kernels walk through memory, from the strides and addresses of their tensors."""

from __future__ import annotations

from typing import Any

from ...kernels.structs import GemmLayout, constant
from ..geometry import Geometry
from ..plan.gemm import SECTOR
from ..plan.problem import Plan
from .kernel_arguments import Tensors
from .layout import alignment, as_row, run_of, step_along


def gemm_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """The GemmLayout."""
    tile: Any = plan.tile
    x, weight, y = tensors.x, tensors.weight, tensors.y
    read, channels = (y, geometry.group_K) if plan.op.startswith("dgrad") else (x, geometry.group_C)
    flat = plan.op != "wgrad" and not plan.one_tap
    # Single channels are gathered anyway: then a lane has a tap of its own, and pixels share it. In
    # a weight gradient that is worth it where neighbouring pixels share sectors of memory.
    near = plan.op == "wgrad" and channels * read.itemsize <= SECTOR
    scattered = (flat or near) and alignment(read, 1, channels) == 1
    pixel_axis = int(scattered or step_along(read, 3) < step_along(read, 1))
    other = x if read is y else y
    other_axis = int(step_along(other, 3) < step_along(other, 1))
    x_axis, y_axis = (other_axis, pixel_axis) if read is y else (pixel_axis, other_axis)
    x_run = y_run = 0
    if plan.op == "wgrad":
        # Single pixels of dy share what is computed for those of x. TF32 in parts would take 135
        # registers, not 124: one program less on a multiprocessor (sm_90, Triton 3.6).
        shares = y_axis and pixel_axis and not geometry.is_point
        if not shares and plan.precision != "tf32x3":
            y_run = run_of(y[:1] if geometry.per_sample else y)
        if geometry.is_point:
            x_run = run_of(x[:1] if geometry.per_sample else x)
    rows, columns = (as_row(y), geometry.P * geometry.Q) if y_run else (y, geometry.Q)
    aligned = (
        alignment(x, 3, geometry.W) if x_axis else alignment(x, 1, geometry.group_C),
        alignment(rows, 3, columns) if y_axis else alignment(y, 1, geometry.group_K),
    )
    # A window moves pixels out of line by one, and a step leaves some out.
    together = aligned[read is y] if pixel_axis == 0 or geometry.is_point else 1
    one_tap = geometry.group_C % tile.BLOCK_N == 0  # of a weight gradient
    layout = GemmLayout(
        PIXEL_AXIS=pixel_axis,
        OTHER_AXIS=other_axis,
        X_ALIGN=aligned[0],
        WEIGHT_ALIGN=alignment(weight, -3, geometry.group_C),
        Y_ALIGN=aligned[1],
        FLATTEN_K=channels if flat else None,
        K_DIVIDES=channels % tile.BLOCK_K == 0,
        # With taps that differ in a tile, Triton 3.7 loads such a block without coalescing.
        PREFETCH=read.itemsize * together < 4 and (plan.op != "wgrad" or one_tap),
        ONE_TAP=one_tap,
        SPLIT=plan.op != "wgrad" and plan.splits > 1,
        IS_POINT=geometry.is_point,
        X_RUN=x_run,
        Y_RUN=y_run,
    )
    return {"LAYOUT": constant(layout)}
