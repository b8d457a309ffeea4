"""Tensors to kernels: allocate the result, ask for the plan, launch. One function per operator.

Importing this imports triton: only operators.py does so, when a call needs a kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ... import kernels
from ...kernels.structs import (
    BandLayout,
    GemmLayout,
    PatchAxis,
    PatchLayout,
    Window,
    constant,
    tile_struct,
)
from .. import backend
from ..geometry import Geometry
from ..plan import choose
from ..plan.banded import COLUMN_STEP, BandedTile, rows_read
from ..plan.patch import Axis
from ..plan.problem import Plan, Problem
from ..plan.tma import reads_crosswise, tap_columns
from .call import Call
from .copies import Copy, channels_innermost, copy_calls, filters_innermost, in_boxes
from .descriptors import (
    dgrad_descriptors,
    fprop_descriptors,
    is_matrix,
    wgrad_descriptors,
)
from .formats import empty_in_format, suggests_channels_last
from .layout import (
    NARROW_LIMIT,
    alignment,
    as_row,
    device_of,
    is_read_as_it_is,
    is_row,
    layout_of,
    step_along,
)
from .prepared import facts_of, prepare, prepared


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
        return ready.run(operands, x.device)
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

    return run_calls(key, list(operands), y, calls)


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
        return ready.run((dy, weight, bias), dy.device)
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

    return run_calls(key, [dy, weight, bias], dx, calls)


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
        return ready.run((x, dy), x.device)
    dw = dy.new_empty(geometry.weight_shape)
    if dw.numel() == 0:
        return dw
    layout = layout_of(geometry, x, dw, dy)
    chosen = plan or choose.plan(
        Problem("wgrad", geometry, dy.dtype, precision, layout, device_of(x), _bytes_of(x, dy))
    )

    def calls(x: Any, dy: Any, dw: Any) -> Iterator[Call]:
        return wgrad_calls(x, dy, dw, geometry, chosen)

    return run_calls(key, [x, dy], dw, calls)


def run_calls(
    key: Any,
    operands: list[torch.Tensor | None],
    result: torch.Tensor,
    calls: Callable[..., Iterable[Call]],
) -> torch.Tensor:
    """The result, filled by the calls; these are prepared for the next time."""
    device = result.device
    given, target = _interpretable(operands, result)
    for call in calls(*given, target):
        call.run(device)
    if target is not result:
        return result.copy_(target)
    prepare(key, tuple(operands), result, calls)
    return result


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
    """The launch that fills y, with the one that fills partial sums before it, if there are any."""
    if plan.splits == 1:
        return _fprop_call(x, weight, bias, y, geometry, plan, activation, residual)
    partials = _partials_of(y, plan.splits)
    first = _fprop_call(x, weight, None, partials[0], geometry, plan)
    last = sum_partials_call(partials, y, plan.splits, bias, residual, activation)
    return replace(last, before=(replace(first, scratch=(partials,)),))


def _partials_of(image: torch.Tensor, splits: int) -> torch.Tensor:
    """Memory for as many partial sums of an image, each with the strides of it, which is dense."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    memory = image.new_empty(splits * image.numel(), dtype=dtype)
    return memory.as_strided((splits, *image.shape), (image.numel(), *image.stride()))


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
        return _fprop_banded_call(x, weight, bias, y, geometry, plan, activation, residual)
    if plan.family == "patch":
        return _patch_call(x, weight, bias, y, geometry, plan, activation, residual)
    added = [] if residual is None else [residual]
    geometry, (x, y, *added) = _planes_as_rows(geometry, plan, x, y, *added)
    weight, packing = _packed(weight, geometry, plan)
    x, copy = _boxed(x, plan)
    more = _family_arguments(x, weight, y, geometry, plan, added)
    weight, weight_strides = _weight_walk(weight, geometry)
    call = _call(
        plan,
        geometry,
        PIXELS=geometry.P * geometry.Q * _samples(geometry),
        x_ptr=x,
        weight_ptr=weight,
        bias_ptr=bias,
        y_ptr=y,
        ACTIVATION=activation,
        **_residual(*added),
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

    With the one that fills partial sums before it, if there are any.
    """
    if plan.splits == 1:
        return _dgrad_call(dy, weight, bias, dx, geometry, plan)
    partials = _partials_of(dx, plan.splits)
    first = _dgrad_call(dy, weight, None, partials[0], geometry, plan)
    last = sum_partials_call(partials, dx, plan.splits, bias)
    return replace(last, before=(replace(first, scratch=(partials,)),))


def _dgrad_call(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dx: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
) -> Call:
    """The launch of the plan's kernel that fills dx, or the parts of which it is the first."""
    if plan.family == "patch":
        return _patch_call(dy, weight, bias, dx, geometry, plan)
    if plan.turned:
        turned = geometry.without_padding_mode().adjoint()
        if plan.family == "banded":
            return _fprop_banded_call(dy, weight, bias, dx, turned, plan)
        return _turned_call(dy, weight, bias, dx, geometry, turned, plan)
    geometry, (dx, dy) = _planes_as_rows(geometry, plan, dx, dy)
    weight, packing = _packed(weight, geometry, plan)
    dy, copy = _boxed(dy, plan)
    more = _family_arguments(dx, weight, dy, geometry, plan)
    pixels = geometry.frame_pixels if plan.op == "dgrad_frame" else geometry.H * geometry.W
    weight, weight_strides = _weight_walk(weight, geometry)
    call = _call(
        plan,
        geometry,
        PIXELS=pixels * _samples(geometry),
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


def _turned_call(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dx: torch.Tensor,
    geometry: Geometry,
    turned: Geometry,
    plan: Plan,
) -> Call:
    """The launch that fills dx as the output of the adjoint, its weight's axes swapped."""
    weight, (n, k, c, r, s) = _weight_walk(weight, turned)
    return _call(
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
        **_residual(),
        bias_stride=0 if bias is None else bias.stride(0),
        y_strides=dx.stride(),
    )


def wgrad_calls(
    x: torch.Tensor, dy: torch.Tensor, dw: torch.Tensor, geometry: Geometry, plan: Plan
) -> Iterator[Call]:
    """The launches that fill dw, which is contiguous: one, or partials and then their sum."""
    target = dw
    if plan.partials > 1:
        partial_dtype = torch.float64 if dw.dtype == torch.float64 else torch.float32
        target = dw.new_empty((plan.partials, *geometry.weight_shape), dtype=partial_dtype)
    one_part = target if plan.partials == 1 else target[0]
    walk, dw_strides = _weight_walk(one_part, geometry)
    geometry, (x, dy) = _planes_as_rows(geometry, plan, x, dy)
    as_read = _in_planes if plan.family == "banded" else _boxed
    x, x_copy = as_read(x, plan)
    dy, dy_copy = as_read(dy, plan)
    call = _call(
        plan,
        geometry,
        PIXELS=geometry.P * geometry.Q * _samples(geometry),
        x_ptr=x,
        dy_ptr=dy,
        dw_ptr=walk,
        x_strides=x.stride(),
        dy_strides=dy.stride(),
        dw_stride_split=dw.numel() if plan.partials > 1 else 0,
        dw_strides=dw_strides,
        dw_stride_g=geometry.group_K * dw_strides[1],
        **_family_arguments(x, walk, dy, geometry, plan),
    )
    call = replace(call, before=copy_calls(x_copy, dy_copy))
    if plan.partials == 1:
        yield call
    else:
        yield replace(call, scratch=(target,))
        yield sum_partials_call(target, dw, plan.partials)


def _fprop_banded_call(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> Call:
    """The launches that fill y: bands are made of the weight, and images are read in planes."""
    result = y
    x, x_copy = _in_planes(x, plan)
    residual_copy = None
    if residual is not None:
        residual, residual_copy = _in_planes(residual, plan)
    if suggests_channels_last(y) and y.shape[1] > 1:
        y = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    tile: Any = plan.tile
    bands = weight.new_empty(tile.bands_shape(geometry))
    call = _call(
        plan,
        geometry,
        x_ptr=x,
        bands_ptr=bands,
        bias_ptr=bias,
        y_ptr=y,
        ACTIVATION=activation,
        **_residual(residual),
        x_strides=x.stride(),
        bias_stride=0 if bias is None else bias.stride(0),
        y_strides=y.stride(),
        **_family_arguments(x, weight, y, geometry, plan),
    )
    first = build_bands_call(weight, bands, geometry, tile, plan.int64)
    call = replace(call, before=(*copy_calls(x_copy, residual_copy), first), scratch=(bands,))
    if y is result:
        return call
    (back,) = copy_calls(Copy(y[None], result))
    return replace(back, before=(call,), scratch=(y,))


def _in_planes(image: torch.Tensor, _: Plan) -> tuple[torch.Tensor, Copy | None]:
    """(an image whose columns are neighbours; the copy that it is where they are not)."""
    if not suggests_channels_last(image) or image.shape[1] == 1:
        return image, None
    out = torch.empty(image.shape, dtype=image.dtype, device=image.device)
    return out, Copy(image[None], out, out)


def _patch_call(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    result: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> Call:
    """The launch that fills the result, y or dx, and before it the one that spreads the weight."""
    tile: Any = plan.tile
    shape = tile.spread_shape(plan.op, geometry, plan.one_tap)
    spread = weight.new_empty(shape)
    extents = {name: value for name, value in vars(tile).items() if name.isupper()}
    taps, (_, k, c, r, s) = _weight_walk(weight, geometry)
    channels = geometry.group_C
    if plan.op == "dgrad":
        channels, k, c = geometry.group_K, c, k
    arguments = _patch_arguments(image, weight, result, geometry, plan) | {
        "x_ptr": image,
        "weight_ptr": taps,
        "spread_ptr": spread,
        "bias_ptr": bias,
        "y_ptr": result,
        "x_shape": image.shape[2:],
        "y_shape": result.shape[2:],
        "GROUPS": geometry.groups,
        "GROUP_C": channels,
        "ELEMENTS": spread.numel(),
        "x_strides": image.stride(),
        "weight_strides": (geometry.group_K * taps.stride(0), k, c, r, s),
        "bias_stride": 0 if bias is None else bias.stride(0),
        "y_strides": result.stride(),
        "ACTIVATION": activation,
        "PRECISION": plan.precision,
        "STEPS": shape[-1] // tile.BLOCK_K,
        "INT64": plan.int64,
        "TILE": constant(tile_struct(extents)),
        "BLOCK_K": tile.BLOCK_K,
        "BLOCK_E": SPREAD_BLOCK,
        **_residual(residual),
    }
    spreads, multiplies = (
        {name: arguments[name] for name in kernel.arg_names}
        for kernel in (kernels.spread_weight, kernels.fprop_patch)
    )
    first = Call(kernels.spread_weight, -(-spread.numel() // SPREAD_BLOCK), spreads, 4, 2)
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


#: Elements of the spread weight that one program of spread_weight writes.
SPREAD_BLOCK = 1024


def _patch_arguments(
    image: torch.Tensor,
    weight: torch.Tensor,
    result: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    added: Sequence[torch.Tensor] = (),
) -> dict[str, Any]:
    """What patch kernels take besides tensors; of a weight gradient, `result` is dy."""
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
        STORED_LANES=min(STORED_COLUMNS, tile.BLOCK_N) if by_columns else STORED_PATCHES,
    )
    rows, columns = (constant(_patch_axis(axis)) for axis in axes)
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


#: Columns and patches that threads run along as they store.
STORED_COLUMNS, STORED_PATCHES = 8, 32
#: Columns of a patch that are stored as a row of a plane: 16 bytes of 16-bit numbers.
ACROSS_PITCH = 8


def _patch_axis(axis: Axis) -> PatchAxis:
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


#: Elements of the bands that one program of build_bands writes.
BANDS_BLOCK = 1024


def build_bands_call(
    weight: torch.Tensor, bands: torch.Tensor, geometry: Geometry, tile: BandedTile, wide: bool
) -> Call:
    """The launch that fills `bands`, of BandedTile.bands_shape, from the weight."""
    weight, strides = _weight_walk(weight, geometry)
    band, elements = tile.band(geometry), bands.numel()
    return Call(
        kernels.build_bands,
        -(-elements // BANDS_BLOCK),
        {
            "weight_ptr": weight,
            "bands_ptr": bands,
            "ELEMENTS": elements,
            "FILTERS": geometry.K,
            "weight_strides": strides,
            "R": geometry.R,
            "S": geometry.S,
            "SHIFT": band.shift,
            "COLUMNS": band.columns,
            "INT64": wide,
            "BLOCK_P": tile.BLOCK_P,
            "BLOCK_Q": tile.BLOCK_Q,
            "BLOCK_E": BANDS_BLOCK,
        },
        num_warps=4,
        num_stages=2,
    )


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
    if plan.kernel == "wgrad_rows":
        return {"IN_PIECES": _in_pieces(x, y, geometry, plan.tile)}
    make: dict[str, Callable[..., dict[str, Any]]] = {
        "banded": _band_arguments,
        "gemm": _gemm_arguments,
        "patch": _patch_arguments,
        "tma": _tma_arguments,
    }
    if plan.family not in make:
        return {}
    return make[plan.family](x, weight, y, geometry, plan, added)


def _in_pieces(x: torch.Tensor, y: torch.Tensor, geometry: Geometry, tile: Any) -> bool:
    """Whether a lane's columns of x and y are neighbours in memory, and aligned together."""
    aligned = math.gcd(alignment(x, 3, geometry.W), alignment(y, 3, geometry.Q))
    next_to_next = geometry.steps(1) == (1, 1)
    return next_to_next and tile.LANE_Q > 1 and aligned % tile.LANE_Q == 0


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
        out_axis, align = _stored(geometry.group_C, geometry.W, x)
        made = dgrad_descriptors(
            y, weight, geometry, tile, out_axis, align, plan.precision, plan.splits > 1
        )
    else:
        out_axis, align = _stored(geometry.group_K, geometry.Q, y, *added)
        made = fprop_descriptors(x, weight, geometry, tile, out_axis, align, plan.splits > 1)
    return {"TAP_COLUMNS": weight.shape[1], **made}


def _band_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    added: Sequence[torch.Tensor],
) -> dict[str, Any]:
    tile: Any = plan.tile
    band = tile.band(geometry)
    first_row, rows = rows_read(geometry)
    layout = BandLayout(
        FIRST_W=band.first,
        SHIFT=band.shift,
        COLUMNS=band.columns,
        COLUMN_GROUP=COLUMN_STEP,
        X_ALIGN=math.gcd(COLUMN_STEP, alignment(x, 3, geometry.W)),
        Y_ALIGN=math.gcd(COLUMN_STEP, alignment(y, 3, geometry.Q)),
    )
    groups = -(-rows // tile.ROW_GROUP) if plan.op == "wgrad" else rows
    return {"BAND": constant(layout), "FIRST_ROW": first_row, "ROWS": max(1, groups)}


def _stored(channels: int, columns: int, *written: torch.Tensor) -> tuple[int, int]:
    """OUT_AXIS and ALIGN of a TmaLayout: of the result, and of what is added to it."""
    result = written[0]
    out_axis = int(step_along(result, 3) < step_along(result, 1))
    axis, extent = (3, columns) if out_axis else (1, channels)
    return out_axis, math.gcd(*(alignment(tensor, axis, extent) for tensor in written))


def sum_partials_call(
    partials: torch.Tensor,
    out: torch.Tensor,
    splits: int,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str = "none",
) -> Call:
    """The launch that sums `splits` dense partials into dense `out`, in its order of elements.

    A bias or a residual, as fprop adds them, is for an image (N, K, P, Q).
    """
    elements = out.numel()
    block_s, block_e = sum_tile(splits)
    image = bias is not None or residual is not None
    return Call(
        kernels.sum_partials,
        -(-elements // block_e),
        {
            "partials_ptr": partials,
            "bias_ptr": bias,
            **_residual(residual),
            "out_ptr": out,
            "SPLITS": splits,
            "ELEMENTS": elements,
            "shape": tuple(out.shape) if image else (1, 1, 1, 1),
            "strides": tuple(out.stride()) if image else (1, 1, 1, 1),
            "bias_stride": 0 if bias is None else bias.stride(0),
            "ACTIVATION": activation,
            "INT64": splits * elements > NARROW_LIMIT,
            "BLOCK_S": block_s,
            "BLOCK_E": block_e,
        },
        num_warps=4,
        num_stages=2,
    )


def sum_tile(splits: int) -> tuple[int, int]:
    """(splits, elements) that one program of sum_partials adds at a time."""
    return (8, 128) if splits <= 8 else (32, 32)


def _call(plan: Plan, geometry: Geometry, **arguments: Any) -> Call:
    """A launch of the plan's kernel, which takes what it names of all these."""
    tile = plan.tile
    extents = {name: value for name, value in vars(tile).items() if name.isupper()}
    arguments |= {
        "x_shape": (geometry.H, geometry.W),
        "y_shape": (geometry.P, geometry.Q),
        "channels": (geometry.groups, geometry.group_C, geometry.group_K),
        "hole": tuple(itertools.chain(*geometry.hole)),
        "N": geometry.N,
        "PLANES": geometry.N * geometry.groups,
        "SAMPLES": _samples(geometry),
        "GROUPS": geometry.groups,
        "GROUP_C": geometry.group_C,
        "GROUP_K": geometry.group_K,
        "SPLITS": plan.splits,
        "SPLIT_PIXELS": plan.split_pixels,
        "SPLIT_STRIPS": plan.split_strips,
        "SPLIT_BOXES": plan.split_strips,
        "WINDOW": constant(_window(geometry)),
        "TILE": constant(tile_struct(extents)),
        "INT64": plan.int64,
        "PRECISION": plan.precision,
        "INTERIOR": plan.interior,
        **extents,
    }
    kernel = getattr(kernels, plan.kernel)
    taken = {name: arguments[name] for name in kernel.arg_names}
    return Call(kernel, plan.grid, taken, tile.num_warps, tile.num_stages, plan.max_registers)


def _window(geometry: Geometry) -> Window:
    """The window as kernels take it."""
    (pad_h, pad_bottom), (pad_w, pad_right) = geometry.padding
    (stride_h, dil_h), (stride_w, dil_w) = geometry.steps(0), geometry.steps(1)
    return Window(
        R=geometry.R,
        S=geometry.S,
        STRIDE_H=stride_h,
        STRIDE_W=stride_w,
        PAD_H=pad_h,
        PAD_W=pad_w,
        PAD_BOTTOM=pad_bottom,
        PAD_RIGHT=pad_right,
        DIL_H=dil_h,
        DIL_W=dil_w,
        MODE=geometry.padding_mode,
    )


def _bytes_of(x: torch.Tensor, other: torch.Tensor) -> int:
    """Bytes of an element of x where it is of another type, see Problem.x_bytes."""
    return x.itemsize if x.dtype != other.dtype else 0


def _samples(geometry: Geometry) -> int:
    """Samples whose pixels are counted through in one problem."""
    return 1 if geometry.per_sample else geometry.N


def _packed(
    weight: torch.Tensor, geometry: Geometry, plan: Plan
) -> tuple[torch.Tensor, Copy | None]:
    """(the weight, or a copy, in the order in which the kernel reads it; that copy).

    The copy is never kept for another call: an update of the weight in place must not be missed.
    """
    if plan.family == "tma":
        tile: Any = plan.tile
        columns = tap_columns(Problem(plan.op, geometry, weight.dtype, plan.precision), tile)
        turned = plan.op == "dgrad" and not reads_crosswise(plan.precision)
        is_read = not turned and is_matrix(weight) and weight.shape[1] == columns
    else:
        columns, turned = 0, False
        is_read = plan.family != "gemm" or is_read_as_it_is(weight)
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
    # Single channels are gathered anyway: then a lane has a tap of its own, and pixels share it.
    scattered = flat and alignment(read, 1, channels) == 1
    pixel_axis = int(scattered or step_along(read, 3) < step_along(read, 1))
    if pixel_axis == 0:
        aligned = alignment(x, 1, geometry.group_C), alignment(y, 1, geometry.group_K)
    else:
        aligned = alignment(x, 3, geometry.W), alignment(y, 3, geometry.Q)
    # A window moves pixels out of line by one, and a step leaves some out.
    together = aligned[read is y] if pixel_axis == 0 or geometry.is_point else 1
    one_tap = geometry.group_C % tile.BLOCK_N == 0  # of a weight gradient
    layout = GemmLayout(
        PIXEL_AXIS=pixel_axis,
        X_ALIGN=aligned[0],
        WEIGHT_ALIGN=alignment(weight, -3, geometry.group_C),
        Y_ALIGN=aligned[1],
        FLATTEN_K=channels if flat else None,
        K_DIVIDES=channels % tile.BLOCK_K == 0,
        # With taps that differ in a tile, Triton 3.7 loads such a block without coalescing.
        PREFETCH=read.itemsize * together < 4 and (plan.op != "wgrad" or one_tap),
        ONE_TAP=one_tap,
        SPLIT=plan.op != "wgrad" and plan.splits > 1,
    )
    return {"LAYOUT": constant(layout)}


def _residual(residual: torch.Tensor | None = None) -> dict[str, Any]:
    """What a kernel is told of the tensor that it adds to its sums, (N, K, P, Q), or of none."""
    strides = (0, 0, 0, 0) if residual is None else residual.stride()
    return {"residual_ptr": residual, "residual_strides": strides}


def _weight_walk(weight: torch.Tensor, geometry: Geometry) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Where a kernel starts in the weight, and its strides over (n, k, c, r, s).

    A flipped window is walked backwards from its last tap: no copy, nothing for kernels to know.
    """
    strides = weight.stride() if geometry.per_sample else (0, *weight.stride())
    if geometry.flip:
        weight = weight[..., geometry.R - 1 :, geometry.S - 1 :]
        strides = (*strides[:3], -strides[3], -strides[4])
    return weight, strides


def _interpretable(tensors: list[Any], result: torch.Tensor) -> tuple[list[Any], torch.Tensor]:
    """Operands and result as float32 if they are bfloat16 and the interpreter runs.

    Triton 3.6 to 3.8 interpret tl.dot on bfloat16 wrongly and truncate where a GPU rounds. Every
    bfloat16 is a float32, and kernels round once, at the store, so this computes the same thing.
    """
    if not backend.interprets() or result.dtype != torch.bfloat16:
        return tensors, result
    widened = [t.float() if t is not None and t.dtype == torch.bfloat16 else t for t in tensors]
    return widened, torch.empty_like(result, dtype=torch.float32)
