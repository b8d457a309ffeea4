"""Tensors to kernels: allocate the result, ask for the plan, launch. One function per operator.

Importing this imports triton: only operators.py does so, when a call needs a kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...kernels.structs import GemmLayout, constant
from .. import backend
from ..geometry import Geometry
from ..plan import choose
from ..plan.backward import takes_both
from ..plan.cost import is_reordered
from ..plan.gemm import SECTOR
from ..plan.problem import Plan, Problem
from ..plan.tma import reads_crosswise, tap_columns
from .backward_launch import backward_calls
from .banded_launch import band_arguments, fprop_banded_call
from .call import Call
from .copies import (
    Copy,
    after_copies,
    channels_innermost,
    copy_calls,
    filters_innermost,
    in_boxes,
)
from .descriptors import (
    dgrad_descriptors,
    fprop_descriptors,
    is_matrix,
    stored,
    wgrad_descriptors,
)
from .exchanged import around, geometry_seen, x_read, x_workspace, y_read, y_workspace
from .flat_launch import flat_call
from .formats import empty_in_format
from .kernel_arguments import (
    call_of,
    read_of_gradient,
    residual_arguments,
    samples_of,
    weight_walk,
)
from .layout import (
    alignment,
    as_row,
    device_of,
    is_read_as_it_is,
    is_row,
    layout_of,
    run_of,
    step_along,
)
from .partial_sums import gradient_partials, partials_of, sum_partials_call
from .patch_launch import patch_arguments, patch_call
from .prepared import facts_of, is_separate, keep_separate, prepare, prepared
from .resident_launch import resident_call
from .reuse_launch import reuse_arguments
from .spread_launch import spread_call


def fprop(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    precision: str = "ieee",
    activation: str = "none",
    residual: torch.Tensor | None = None,
    plan: Plan | None = None,
) -> torch.Tensor:
    """y (N, K, P, Q) by a Triton kernel; see operators.fprop. `plan` replaces the planner's."""
    operands = (x, weight, bias, residual)
    key = ("fprop", geometry, precision, activation, plan, *map(facts_of, operands))
    if ready := prepared(key):
        return ready.run(operands, x.device)[0]
    y = empty_in_format(geometry.y_shape, weight.dtype, like=x)
    if y.numel() == 0:
        return y
    layout = layout_of(geometry, x, weight, y, residual, activation)
    chosen = plan or choose.plan(
        Problem(
            "fprop", geometry, weight.dtype, precision, layout, device_of(x), _bytes_of(x, weight)
        )
    )

    def calls(x: Any, weight: Any, bias: Any, residual: Any, y: Any) -> Iterator[Call]:
        yield fprop_call(x, weight, bias, y, geometry, chosen, activation, residual)

    return run_calls(key, list(operands), [y], calls)[0]


def dgrad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    bias: torch.Tensor | None = None,
    plan: Plan | None = None,
) -> torch.Tensor:
    """dx (N, C, H, W) by a Triton kernel; see operators.dgrad. `plan` replaces the planner's."""
    key = ("dgrad", geometry, precision, plan, facts_of(dy), facts_of(weight), facts_of(bias))
    if ready := prepared(key):
        return ready.run((dy, weight, bias), dy.device)[0]
    dx = empty_in_format(geometry.x_shape, dy.dtype, like=dy)
    if dx.numel() == 0:
        return dx
    layout = layout_of(geometry, dx, weight, dy)
    chosen = plan or choose.plan(
        Problem("dgrad", geometry, dy.dtype, precision, layout, device_of(dy))
    )
    frame = None
    if geometry.frame_pixels:
        frame = choose.plan(
            Problem("dgrad_frame", geometry, dy.dtype, precision, layout, device_of(dy))
        )

    def calls(dy: Any, weight: Any, bias: Any, dx: Any) -> Iterator[Call]:
        yield dgrad_call(dy, weight, bias, dx, geometry, chosen)
        if frame:
            yield dgrad_call(dy, weight, bias, dx, geometry, frame)

    return run_calls(key, [dy, weight, bias], [dx], calls)[0]


def wgrad(
    x: torch.Tensor,
    dy: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    plan: Plan | None = None,
) -> torch.Tensor:
    """dw, shaped as the weight, by Triton kernels; see operators.wgrad."""
    key = ("wgrad", geometry, precision, plan, facts_of(x), facts_of(dy))
    if ready := prepared(key):
        return ready.run((x, dy), x.device)[0]
    dw = empty_in_format(geometry.weight_shape, dy.dtype, like=x)
    if dw.numel() == 0:
        return dw
    layout = layout_of(geometry, x, dw, dy)
    chosen = plan or choose.plan(
        Problem("wgrad", geometry, dy.dtype, precision, layout, device_of(x), _bytes_of(x, dy))
    )

    def calls(x: Any, dy: Any, dw: Any) -> Iterator[Call]:
        return wgrad_calls(x, dy, dw, geometry, chosen)

    return run_calls(key, [x, dy], [dw], calls)[0]


def backward(
    x: torch.Tensor,
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dw), by one Triton kernel where that is faster than two; see operators.backward."""
    both = None
    if plan is not None or (x.dtype == dy.dtype == weight.dtype and takes_both(geometry)):
        both = _both(x, dy, weight, geometry, precision, plan)
    if both is None:
        return dgrad(dy, weight, geometry, precision), wgrad(x, dy, geometry, precision)
    return both


def _both(
    x: torch.Tensor,
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str,
    plan: Plan | None,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`backward` by one kernel; None where two launches are planned."""
    key = ("backward", geometry, precision, plan, facts_of(x), facts_of(dy), facts_of(weight))
    if ready := prepared(key):
        dx, dw = ready.run((x, dy, weight), x.device)
        return dx, dw
    if is_separate(key):
        return None
    dx = empty_in_format(geometry.x_shape, dy.dtype, like=dy)
    dw = empty_in_format(geometry.weight_shape, dy.dtype, like=x)
    layouts = layout_of(geometry, dx, weight, dy), layout_of(geometry, x, dw, dy)
    chosen = plan or choose.plan_both(
        *(
            Problem(op, geometry, dy.dtype, precision, layout, device_of(x))
            for op, layout in zip(("dgrad", "wgrad"), layouts, strict=True)
        )
    )
    if chosen is None:
        keep_separate(key)
        return None

    def calls(x: Any, dy: Any, weight: Any, dx: Any, dw: Any) -> Iterator[Call]:
        return backward_calls(x, dy, weight, dx, dw, geometry, chosen)

    dx, dw = run_calls(key, [x, dy, weight], [dx, dw], calls)
    return dx, dw


def run_calls(
    key: Any,
    operands: list[torch.Tensor | None],
    results: list[torch.Tensor],
    calls: Callable[..., Iterable[Call]],
) -> list[torch.Tensor]:
    """The results, filled by the calls; these are prepared for the next time."""
    device = results[0].device
    given, targets = _interpretable(operands, results)
    for call in calls(*given, *targets):
        call.run(device)
    if targets is not results:
        return [result.copy_(target) for result, target in zip(results, targets, strict=True)]
    prepare(key, tuple(operands), results, calls)
    return results


def fprop_call(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> Call:
    """The launch that fills y, after those of partial sums and of copies, if there are any."""
    if exchange := plan.exchange:
        seen, alone = geometry_seen("fprop", geometry, exchange, x), replace(plan, exchange=None)
        x, copy = x_read(x, geometry, seen, exchange)
        target, residual_copy = y_workspace(y, exchange), None
        if residual is not None and exchange.result:
            residual, residual_copy = y_read(residual, seen, exchange)
        call = fprop_call(x, weight, bias, target, seen, alone, activation, residual)
        return around(call, (copy, residual_copy), target, y)
    if plan.splits == 1:
        return _fprop_call(x, weight, bias, y, geometry, plan, activation, residual)
    partials = partials_of(y, plan.splits)
    first = _fprop_call(x, weight, None, partials[0], geometry, plan)
    last = sum_partials_call(partials, y, plan.splits, bias, residual, activation)
    return replace(last, before=(replace(first, scratch=(*first.scratch, partials)),))


def _fprop_call(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> Call:
    """The launch of the plan's kernel that fills y, or the parts of which it is the first."""
    if plan.family == "banded":
        return fprop_banded_call(x, weight, bias, y, geometry, plan, activation, residual)
    if plan.family == "resident":
        return resident_call(x, weight, bias, y, geometry, plan, activation, residual)
    if plan.family == "spread":
        return spread_call(x, weight, bias, y, geometry, plan, activation, residual)
    if plan.family == "patch":
        return patch_call(x, weight, bias, y, geometry, plan, activation, residual)
    added = [] if residual is None else [residual]
    geometry, (x, y, *added) = _planes_as_rows(geometry, plan, x, y, *added)
    weight, packing = _packed(weight, geometry, plan)
    x, copy = _boxed(x, plan)
    more = _family_arguments(x, weight, y, geometry, plan, added)
    weight, weight_strides = weight_walk(weight, geometry)
    call = call_of(
        plan,
        geometry,
        PIXELS=geometry.P * geometry.Q * samples_of(geometry),
        x_ptr=x,
        weight_ptr=weight,
        bias_ptr=bias,
        y_ptr=y,
        ACTIVATION=activation,
        **residual_arguments(*added),
        x_strides=x.stride(),
        weight_strides=weight_strides,
        weight_stride_g=geometry.group_K * weight_strides[1],
        STRIDE_R=weight_strides[3],
        bias_stride=0 if bias is None else bias.stride(0),
        y_strides=y.stride(),
        split_stride=y.numel() if plan.splits > 1 else 0,
        **more,
    )
    return replace(call, before=copy_calls(packing, copy))


def dgrad_call(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dx: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
) -> Call:
    """The launch that fills dx, or its frame, see Geometry.hole, where the plan is for that.

    After those of partial sums and of copies, if there are any.
    """
    if exchange := plan.exchange:
        seen, alone = geometry_seen("dgrad", geometry, exchange, dy), replace(plan, exchange=None)
        dy, copy = y_read(dy, seen, exchange)
        target = x_workspace(dx, seen, exchange)
        call = dgrad_call(dy, weight, bias, target, seen, alone)
        step = geometry.stride if exchange.sampled else (1, 1)
        return around(call, (copy,), target, dx, step, bias)
    if plan.splits == 1:
        return _dgrad_call(dy, weight, bias, dx, geometry, plan)
    partials = partials_of(dx, plan.splits)
    first = _dgrad_call(dy, weight, None, partials[0], geometry, plan)
    last = sum_partials_call(partials, dx, plan.splits, bias)
    return replace(last, before=(replace(first, scratch=(*first.scratch, partials)),))


def _dgrad_call(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dx: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
) -> Call:
    """The launch of the plan's kernel that fills dx, or the parts of which it is the first."""
    if plan.family == "spread":
        return spread_call(dy, weight, bias, dx, geometry, plan)
    if plan.family == "patch":
        return patch_call(dy, weight, bias, dx, geometry, plan)
    if plan.turned:
        shown = geometry.without_padding_mode()
        if plan.family == "banded":
            return fprop_banded_call(dy, weight, bias, dx, shown.adjoint(), plan)
        if plan.family == "resident":
            return resident_call(dy, weight, bias, dx, shown.adjoint(), plan)
        if geometry.stride != (1, 1):
            return _phases_call(dy, weight, bias, dx, shown, plan)
        return _turned_call(dy, weight, bias, dx, shown, plan)
    geometry, (dx, dy) = _planes_as_rows(geometry, plan, dx, dy)
    weight, packing = _packed(weight, geometry, plan)
    dy, copy = _boxed(dy, plan)
    more = _family_arguments(dx, weight, dy, geometry, plan)
    pixels = geometry.frame_pixels if plan.op == "dgrad_frame" else geometry.H * geometry.W
    weight, weight_strides = weight_walk(weight, geometry)
    call = call_of(
        plan,
        geometry,
        PIXELS=pixels * samples_of(geometry),
        dy_ptr=dy,
        weight_ptr=weight,
        bias_ptr=bias,
        dx_ptr=dx,
        dy_strides=dy.stride(),
        weight_strides=weight_strides,
        weight_stride_g=geometry.group_K * weight_strides[1],
        bias_stride=0 if bias is None else bias.stride(0),
        dx_strides=dx.stride(),
        split_stride=dx.numel() if plan.splits > 1 else 0,
        **more,
    )
    return replace(call, before=copy_calls(packing, copy))


def _phases_call(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dx: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
) -> Call:
    """The launches that fill dx, one for each phase of its pixels: see Geometry.phase_gradient."""
    (stride_h, _), (stride_w, _) = geometry.steps(0), geometry.steps(1)
    calls: list[Call] = []
    for a, b in itertools.product(*map(range, geometry.phases)):
        part = geometry.phase_gradient((a, b))
        r, s = geometry.first_taps((a, b))
        if geometry.flip:  # taps are counted from the end
            r, s = (geometry.R - 1 - r) % stride_h, (geometry.S - 1 - s) % stride_w
        taps = weight[..., r::stride_h, s::stride_w]
        pixels = dx[..., a::stride_h, b::stride_w]
        grid = plan.tile.programs(Problem("dgrad", part))
        calls.append(_turned_call(dy, taps, bias, pixels, part, replace(plan, grid=grid)))
    return replace(calls[-1], before=tuple(calls[:-1]))


def _turned_call(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dx: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
) -> Call:
    """The launch that fills dx as the output of the adjoint, its weight's axes swapped."""
    turned = geometry.adjoint()
    weight, packing = _packed(weight, geometry, plan)
    dy, copy = _boxed(dy, plan)
    more = _family_arguments(dy, weight, dx, turned, plan)
    weight, (n, k, c, r, s) = weight_walk(weight, turned)
    call = call_of(
        plan,
        turned,
        x_ptr=dy,
        weight_ptr=weight,
        bias_ptr=bias,
        y_ptr=dx,
        x_strides=dy.stride(),
        weight_strides=(n, c, k, r, s),
        weight_stride_g=geometry.group_K * k,
        STRIDE_R=r,
        ACTIVATION="none",
        **residual_arguments(),
        bias_stride=0 if bias is None else bias.stride(0),
        y_strides=dx.stride(),
        **more,
    )
    return replace(call, before=copy_calls(packing, copy))


def wgrad_calls(
    x: torch.Tensor, dy: torch.Tensor, dw: torch.Tensor, geometry: Geometry, plan: Plan
) -> Iterator[Call]:
    """The launches that fill dense dw: one, or partials and then their sum, see is_reordered."""
    if exchange := plan.exchange:
        seen, alone = geometry_seen("wgrad", geometry, exchange, dy), replace(plan, exchange=None)
        x, x_copy = x_read(x, geometry, seen, exchange)
        dy, dy_copy = y_read(dy, seen, exchange)
        first, *rest = wgrad_calls(x, dy, dw, seen, alone)
        yield after_copies(first, x_copy, dy_copy)
        yield from rest
        return
    is_whole = plan.partials == 1 and not is_reordered(plan, geometry, not is_read_as_it_is(dw))
    target = dw if is_whole else gradient_partials(dw, plan.partials, plan.family)
    one_part = target if is_whole else target[0]
    walk, dw_strides = weight_walk(one_part, geometry)
    result = {
        "dw_ptr": walk,
        "dw_stride_split": dw.numel() if plan.partials > 1 else 0,
        "dw_strides": dw_strides,
    }
    make = flat_call if plan.family == "flat" else _wgrad_call
    call = make(x, dy, geometry, plan, **result)
    if is_whole:
        yield call
    else:
        yield replace(call, scratch=(target,))
        yield sum_partials_call(target, dw, plan.partials)


def _wgrad_call(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, plan: Plan, **result: Any
) -> Call:
    """The launch that fills dw, or parts of it, which `result` describes."""
    geometry, (x, dy) = _planes_as_rows(geometry, plan, x, dy)
    x, x_copy = _boxed(x, plan)
    dy, dy_copy = _boxed(dy, plan)
    call = call_of(
        plan,
        geometry,
        PIXELS=geometry.P * geometry.Q * samples_of(geometry),
        x_ptr=x,
        dy_ptr=dy,
        x_strides=x.stride(),
        dy_strides=dy.stride(),
        dw_stride_g=geometry.group_K * result["dw_strides"][1],
        **result,
        **_family_arguments(x, result["dw_ptr"], dy, geometry, plan),
    )
    return replace(call, before=copy_calls(x_copy, dy_copy))


def _family_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    added: Sequence[torch.Tensor] = (),
) -> dict[str, Any]:
    """What a family's kernels take besides what every kernel of an operator does.

    x, weight and y are the tensors of the operator or their gradients; `added` goes to its sums.
    """
    if plan.kernel == "dgrad_rows":
        return {"READ": constant(read_of_gradient(geometry))}
    make: dict[str, Callable[..., dict[str, Any]]] = {
        "banded": band_arguments,
        "gemm": _gemm_arguments,
        "patch": patch_arguments,
        "tma": _tma_arguments,
        "reuse": reuse_arguments,
        "spread": reuse_arguments,
    }
    if plan.family not in make:
        return {}
    return make[plan.family](x, weight, y, geometry, plan, added)


def _tma_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    added: Sequence[torch.Tensor],
) -> dict[str, Any]:
    tile: Any = plan.tile
    if plan.op == "wgrad":
        return wgrad_descriptors(x, y, geometry, tile)
    if plan.op == "dgrad":
        out_axis, align = stored(geometry.group_C, geometry.W, x)
        made = dgrad_descriptors(
            y, weight, geometry, tile, out_axis, align, plan.precision, plan.splits > 1
        )
    else:
        out_axis, align = stored(geometry.group_K, geometry.Q, y, *added)
        made = fprop_descriptors(x, weight, geometry, tile, out_axis, align, plan.splits > 1)
    return {"TAP_COLUMNS": weight.shape[1], **made}


def _bytes_of(x: torch.Tensor, other: torch.Tensor) -> int:
    """Bytes of an element of x where it is of another type, see Problem.x_bytes."""
    return x.itemsize if x.dtype != other.dtype else 0


def _packed(
    weight: torch.Tensor, geometry: Geometry, plan: Plan
) -> tuple[torch.Tensor, Copy | None]:
    """(the weight, or a copy, in the order in which the kernel reads it; that copy).

    The copy is never kept for another call: an update of the weight in place must not be missed.
    """
    tile: Any = plan.tile
    if plan.family in ("tma", "reuse"):
        problem = Problem(plan.op, geometry, weight.dtype, plan.precision)
        columns = tap_columns(problem, tile.BLOCK_K)
        turned = plan.op == "dgrad" and not reads_crosswise(plan.precision)
        is_read = not turned and is_matrix(weight) and weight.shape[1] == columns
    else:
        columns, turned = 0, False
        copies = plan.family == "gemm" and not tile.in_place
        is_read = not copies or is_read_as_it_is(weight)
    if is_read:
        return weight, None
    axes = filters_innermost(weight, geometry.groups) if turned else weight[None]
    copy = channels_innermost(axes, columns)
    return copy.out, copy


def _boxed(image: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, Copy | None]:
    """(the image, or a copy, as the kernel reads it; that copy)."""
    if not getattr(plan.tile, "copied", False):
        return image, None
    planes = plan.op == "wgrad" and not reads_crosswise(plan.precision)
    return in_boxes(image, "NCHW" if planes else "NHWC")


def _planes_as_rows(
    geometry: Geometry, plan: Plan, *images: torch.Tensor
) -> tuple[Geometry, Sequence[torch.Tensor]]:
    """The same with a plane as one row, as it was planned, or where a GEMM cannot tell them apart.

    A row of so many pixels can be read and written in pieces of 16 bytes more often.
    """
    if not plan.as_rows and not (
        plan.family == "gemm" and geometry.is_point and all(map(is_row, images))
    ):
        return geometry, images
    return geometry.as_rows(), [*map(as_row, images)]


def _gemm_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    added: Sequence[torch.Tensor],
) -> dict[str, Any]:
    tile: Any = plan.tile
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
        X_RUN=x_run,
        Y_RUN=y_run,
    )
    return {"LAYOUT": constant(layout)}


def _interpretable(
    tensors: list[Any], results: list[torch.Tensor]
) -> tuple[list[Any], list[torch.Tensor]]:
    """Operands and results as float32 if they are bfloat16 and the interpreter runs.

    Triton 3.6 to 3.8 interpret tl.dot on bfloat16 wrongly and truncate where a GPU rounds. Every
    bfloat16 is a float32, and kernels round once, at the store, so this computes the same thing.
    """
    if not backend.interprets() or results[0].dtype != torch.bfloat16:
        return tensors, results
    widened = [t.float() if t is not None and t.dtype == torch.bfloat16 else t for t in tensors]
    return widened, [torch.empty_like(result, dtype=torch.float32) for result in results]
