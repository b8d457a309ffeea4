"""Both gradients of a depthwise correlation by one launch: see ops/plan/backward.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ...kernels.structs import constant
from ..geometry import Geometry
from ..plan.problem import Plan
from .call import Call
from .kernel_arguments import call_of, read_of_gradient, weight_walk
from .partial_sums import gradient_partials, sum_partials_call


def backward_calls(
    x: torch.Tensor,
    dy: torch.Tensor,
    weight: torch.Tensor,
    dx: torch.Tensor,
    dw: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
) -> Iterator[Call]:
    """The launches that fill dx and dense dw: one, or partial sums of dw and then their sum."""
    target = dw if plan.splits == 1 else gradient_partials(dw, plan.splits, plan.family)
    walk, dw_strides = weight_walk(dw if plan.splits == 1 else target[0], geometry)
    weight, weight_strides = weight_walk(weight, geometry)
    call = call_of(
        plan,
        geometry,
        x_ptr=x,
        dy_ptr=dy,
        weight_ptr=weight,
        dx_ptr=dx,
        dw_ptr=walk,
        x_strides=x.stride(),
        dy_strides=dy.stride(),
        weight_strides=weight_strides,
        dx_strides=dx.stride(),
        dw_stride_split=dw.numel() if plan.splits > 1 else 0,
        dw_strides=dw_strides,
        READ=constant(read_of_gradient(geometry)),
    )
    if plan.splits == 1:
        yield call
    else:
        yield replace(call, scratch=(target,))
        yield sum_partials_call(target, dw, plan.splits)
