"""The launches that fill dw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ..geometry import Geometry
from ..plan.cost import is_reordered
from ..plan.problem import Plan
from .call import Call
from .copies import copy_calls
from .exchanged import exchanged
from .families import as_read, family_arguments, planes_as_rows
from .flat_launch import flat_call
from .kernel_arguments import Tensors, call_of, samples_of, weight_walk
from .layout import is_read_as_it_is
from .partial_sums import gradient_partials, sum_partials_call


def wgrad_calls(
    x: torch.Tensor, dy: torch.Tensor, dw: torch.Tensor, geometry: Geometry, plan: Plan
) -> Iterator[Call]:
    """The launches that fill dense dw: one, or partials and then their sum, see is_reordered."""
    if plan.exchange:
        met, alone = exchanged(plan, geometry, dy.itemsize)
        x, dy = met.x(x), met.y(dy)
        first, *rest = wgrad_calls(x, dy, met.weight_gradient(dw), met.seen, alone)
        yield met.after(first)
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
    geometry, t = planes_as_rows(Tensors(x, result["dw_ptr"], dy), geometry, plan)
    x, x_copy = as_read(t.x, plan)
    dy, dy_copy = as_read(t.y, plan)
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
        **family_arguments(replace(t, x=x, y=dy), geometry, plan),
    )
    return replace(call, before=copy_calls(x_copy, dy_copy))
