"""The launches that fill y, or an input gradient that is computed as a forward correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..geometry import Geometry
from ..plan.problem import Plan
from .banded_launch import fprop_banded_call
from .call import Call
from .copies import copy_calls
from .exchanged import exchanged
from .families import as_read, family_arguments, packed, planes_as_rows
from .kernel_arguments import Tensors, call_of, samples_of, weight_walk
from .partial_sums import partials_of, sum_partials_call
from .patch_launch import patch_call
from .resident_launch import resident_call
from .spread_launch import spread_call
from .strip_launch import strip_call

#: Makes the launches of families whose kernels do not read x and the weight themselves.
OWN_CALLS: dict[str, Callable[[Tensors, Geometry, Plan], Call]] = {
    "banded": fprop_banded_call,
    "resident": resident_call,
    "spread": spread_call,
    "patch": patch_call,
    "strip": strip_call,
}


def fprop_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launch that fills y, after those of partial sums and of copies, if there are any."""
    t = tensors
    if plan.exchange:
        met, alone = exchanged(plan, geometry, t.x.itemsize)
        x, y = met.x(t.x), met.workspace(t.y)
        residual = None if t.residual is None else met.y(t.residual)
        seen = replace(t, x=x, weight=met.weight(t.weight), y=y, residual=residual)
        return met.stored(met.after(fprop_call(seen, met.seen, alone)), y, t.y, None)
    if plan.splits == 1:
        return forward_call(t, geometry, plan)
    partials = partials_of(t.y, plan.splits)
    first = forward_call(Tensors(t.x, t.weight, partials[0]), geometry, plan)
    last = sum_partials_call(partials, t.y, plan.splits, t.bias, t.residual, t.activation)
    return replace(last, before=(replace(first, scratch=(*first.scratch, partials)),))


def forward_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launch of the plan's kernel that fills y, or the parts of which it is the first.

    Of a turned plan x is dy, y is dx, and the geometry the adjoint, see Geometry.adjoint.
    """
    if make := OWN_CALLS.get(plan.family):
        return make(tensors, geometry, plan)
    geometry, tensors = planes_as_rows(tensors, geometry, plan)
    x, copy = as_read(tensors.x, plan)
    weight, packing = packed(tensors.weight, geometry.adjoint() if plan.turned else geometry, plan)
    t = replace(tensors, x=x, weight=weight)
    more = family_arguments(t, geometry, plan)
    walk, (n, k, c, r, s) = weight_walk(weight, geometry)
    group = geometry.group_K * k
    if plan.turned:  # filters and channels change places
        group, k, c = geometry.group_C * k, c, k
    call = call_of(
        plan,
        geometry,
        PIXELS=geometry.P * geometry.Q * samples_of(geometry),
        x_ptr=x,
        weight_ptr=walk,
        y_ptr=t.y,
        x_strides=x.stride(),
        weight_strides=(n, k, c, r, s),
        weight_stride_g=group,
        STRIDE_R=r,
        y_strides=t.y.stride(),
        split_stride=t.y.numel() if plan.splits > 1 else 0,
        **t.epilogue(),
        **more,
    )
    return replace(call, before=copy_calls(packing, copy))
