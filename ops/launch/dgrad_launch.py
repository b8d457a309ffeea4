"""The launches that fill dx, or its frame."""

from __future__ import annotations

import itertools
from dataclasses import replace

from ..geometry import Geometry
from ..plan.problem import Plan, Problem
from .call import Call
from .copies import copy_calls
from .exchanged import exchanged
from .families import as_read, family_arguments, packed, planes_as_rows
from .fprop_launch import OWN_CALLS, forward_call
from .kernel_arguments import Tensors, call_of, samples_of, weight_walk
from .partial_sums import partials_of, sum_partials_call


def dgrad_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launch that fills dx, or its frame, see Geometry.hole, where the plan is for that.

    After those of partial sums and of copies, if there are any.

    Args:
        tensors: x is dx, y is dy.
        geometry: of the forward correlation.
        plan: of the input gradient.
    """
    t = tensors
    if plan.exchange:
        met, alone = exchanged(plan, geometry, t.y.itemsize)
        dx, dy, weight = met.workspace(t.x), met.y(t.y), met.weight(t.weight)
        bias = None if t.bias is None else met.bias(t.bias)
        seen = replace(t, x=dx, weight=weight, y=dy, bias=bias)
        return met.stored(met.after(dgrad_call(seen, met.seen, alone)), dx, t.x, t.bias)
    if plan.splits == 1:
        return _dgrad_call(t, geometry, plan)
    partials = partials_of(t.x, plan.splits)
    first = _dgrad_call(Tensors(partials[0], t.weight, t.y), geometry, plan)
    last = sum_partials_call(partials, t.x, plan.splits, t.bias)
    return replace(last, before=(replace(first, scratch=(*first.scratch, partials)),))


def _dgrad_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launch of the plan's kernel that fills dx, or the parts of which it is the first."""
    if plan.family in ("spread", "patch", "strip"):
        return forward_call(tensors.adjoint(), geometry, plan)
    if plan.turned:
        shown = geometry.without_padding_mode()
        if geometry.stride != (1, 1) and plan.family not in OWN_CALLS:
            return _phases_call(tensors, shown, plan)
        return forward_call(tensors.adjoint(), shown.adjoint(), plan)
    geometry, tensors = planes_as_rows(tensors, geometry, plan)
    dy, copy = as_read(tensors.y, plan)
    weight, packing = packed(tensors.weight, geometry, plan)
    t = replace(tensors, y=dy, weight=weight)
    more = family_arguments(t, geometry, plan)
    pixels = geometry.frame_pixels if plan.op == "dgrad_frame" else geometry.H * geometry.W
    walk, strides = weight_walk(weight, geometry)
    call = call_of(
        plan,
        geometry,
        PIXELS=pixels * samples_of(geometry),
        dy_ptr=dy,
        weight_ptr=walk,
        dx_ptr=t.x,
        dy_strides=dy.stride(),
        weight_strides=strides,
        weight_stride_g=geometry.group_K * strides[1],
        dx_strides=t.x.stride(),
        split_stride=t.x.numel() if plan.splits > 1 else 0,
        **t.epilogue(),
        **more,
    )
    return replace(call, before=copy_calls(packing, copy))


def _phases_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launches that fill dx, one for each phase of its pixels: see Geometry.phase_gradient."""
    stride_h, stride_w = geometry.stride
    calls: list[Call] = []
    for a, b in itertools.product(*map(range, geometry.phases)):
        part = geometry.phase_gradient((a, b))
        r, s = geometry.first_taps((a, b))
        if geometry.flip:  # taps are counted from the end
            r, s = (geometry.R - 1 - r) % stride_h, (geometry.S - 1 - s) % stride_w
        taps = tensors.weight[..., r::stride_h, s::stride_w]
        pixels = tensors.x[..., a::stride_h, b::stride_w]
        grid = plan.tile.programs(Problem("dgrad", part))
        phase = replace(tensors, x=pixels, weight=taps).adjoint()
        calls.append(forward_call(phase, part.adjoint(), replace(plan, grid=grid)))
    return replace(calls[-1], before=tuple(calls[:-1]))
