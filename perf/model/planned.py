"""Calls of our kernels as planned: the problem, every plan that could run it, its launches.

Operands may be meta tensors (providers.make_operands), for a device that need not be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ...ops.errors import ArgumentError
from ...ops.launch.formats import empty_in_format
from ...ops.launch.layout import layout_of
from ...ops.plan import banded, choose, rows, separable, stencil
from ...ops.plan.device import Device
from ...ops.plan.problem import Plan, Problem, Tile
from ...ops.plan.times import times_of
from ..providers import Operands, make_operands
from ..workloads import Workload

if TYPE_CHECKING:
    from ...ops.launch.call import Call


#: The plan of a call that is not planned yet.
NO_PLAN: Any = None


@dataclass(frozen=True)
class PlannedCall:
    """One operator of a workload, and the plan that runs it.

    Attributes:
        workload, op, dtype, format: as in a row; `op` may also be "dgrad_frame", "lag_sums" of the
            input, or "fprop_separable" with the first row and column of the window.
        plan: of the launch; None of the last two.
    """

    workload: Workload
    op: str
    dtype: str
    format: str
    plan: Plan = NO_PLAN

    @property
    def kernel(self) -> str:
        """The kernel that the plan names."""
        return self.op if self.plan is None else self.plan.kernel

    @property
    def name(self) -> str:
        """The call without its plan."""
        return f"{self.workload.name} {self.op} {self.dtype} {self.format}"

    def __str__(self) -> str:
        plan = self.op if self.plan is None else describe(self.plan)
        return f"{plan} {self.op} {self.dtype} {self.format} {self.workload.name}"

    def operands(self, device: str = "meta") -> Operands:
        """The tensors."""
        return make_operands(self.workload, self.op, self.dtype, self.format, device)

    def problem(self, device: Device) -> Problem:
        """The problem that the plan solves."""
        return problem_of(self.operands(), device)

    def launches(self, device: Device) -> list[Call]:
        """Every kernel launch of the call, on meta tensors, in order."""
        _, calls = launches_of(self.operands(), self.plan, device)
        return [launch for call in calls for launch in call.launches()]


def problem_of(operands: Operands, device: Device, op: str = "") -> Problem:
    """The problem of a call, or with `op` "dgrad_frame" of the frame of its input gradient."""
    o, g = operands, operands.geometry
    op = op or o.op
    last = o.format == "channels_last"
    memory_format = torch.channels_last if last else torch.contiguous_format

    def image(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)

    dtype = o.weight.dtype
    x = image(g.x_shape, dtype if op.startswith("dgrad") else o.x.dtype)
    y = image(g.y_shape, dtype)
    residual = y if o.residual is not None and op == "fprop" else None
    activation = o.workload.activation if op == "fprop" else "none"
    weight = o.weight
    if op in ("wgrad", "backward"):  # dw has a format of its own
        weight = empty_in_format(g.weight_shape, dtype, like=x)
    layout = layout_of(g, x, weight, y, residual, activation)
    x_bytes = x.itemsize if x.dtype != dtype else 0
    return Problem(op, g, dtype, o.precision, layout, device, x_bytes)


def tiles_of(family: ModuleType, problem: Problem) -> list[Tile]:
    """Tiles with which a family can run a problem, also where the planner asks another family."""
    if problem.op == "backward":
        return list(family.tiles(problem))
    if family is rows:
        tile = rows.tile_for(problem)
        return [] if tile is None else [tile]
    if family is banded:
        return list(banded.tiles_with_room(problem)) if banded.is_legal(problem) else []
    if family is stencil:
        return list(stencil.tiles(problem) or [stencil.tile_for(problem)])
    return list(family.tiles(problem))


def alternatives(problem: Problem) -> list[Plan]:
    """The planner's plan, then the best of every other family that can run the call, by time.

    Plans on copies of images are one family more: the best of them, and of the others.
    """
    own = choose.plan(problem)
    best = [] if own.exchange else choose.plans_on_copies(problem)[:1]
    for family in choose.families(problem):
        plans = [plan for tile in tiles_of(family, problem) for plan in _plans_with(tile, problem)]
        if plans and (own.exchange or plans[0].family != own.family):
            best.append(min(plans, key=lambda plan: seconds_of(plan, problem)))
    return [own, *sorted(best, key=lambda plan: seconds_of(plan, problem))]


def all_plans(problem: Problem) -> list[Plan]:
    """The planner's plan, every plan that any family offers, and the best ones on copies."""
    tiles = [tile for family in choose.families(problem) for tile in tiles_of(family, problem)]
    plans = [plan for tile in tiles for plan in _plans_with(tile, problem)]
    return [choose.plan(problem), *plans, *choose.plans_on_copies(problem)]


def _plans_with(tile: Tile, problem: Problem) -> list[Plan]:
    try:
        return choose.plans_with_tile(problem, tile)
    except ArgumentError:  # more programs than a launch can have
        return []


def seconds_of(plan: Plan, problem: Problem) -> float:
    """The static model's time of a plan, as the planner computes it before any calibration."""
    return times_of(plan.work(problem), problem.device).predicted


def describe(plan: Plan) -> str:
    """A plan in a few words: kernel, tile, warps, stages, programs, splits, register limit."""
    blocks = "x".join(str(v) for k, v in vars(plan.tile).items() if k.startswith("BLOCK"))
    rest = {k: v for k, v in vars(plan.tile).items() if k in ("LANE_Q", "persistent") and v > 1}
    return (
        f"{plan.kernel} {blocks} w{plan.tile.num_warps} s{plan.tile.num_stages}"
        + "".join(f" {name.lower()}{value}" for name, value in rest.items())
        + " copied" * getattr(plan.tile, "copied", False)
        + " in place" * getattr(plan.tile, "in_place", False)
        + (f" unfolded {unfolded}" if (unfolded := getattr(plan.tile, "unfolded", "")) else "")
        + (f" shifted {shifts}" if (shifts := getattr(plan.tile, "shifts", "")) else "")
        + (f" on {plan.exchange}" if plan.exchange else "")
        + f" /{plan.splits}" * (plan.splits > 1)
        + (f" r{plan.max_registers}" if plan.max_registers else "")
    )


def launches_of(operands: Operands, plan: Plan, device: Device) -> tuple[torch.Tensor, list[Call]]:
    """(the result, or dx of both gradients; the launches that fill it), also of meta tensors."""
    from ...ops.launch.backward_launch import backward_calls
    from ...ops.launch.dgrad_launch import dgrad_call
    from ...ops.launch.fprop_launch import fprop_call
    from ...ops.launch.kernel_arguments import Tensors
    from ...ops.launch.lag_launch import lag_sums_calls, tile_for
    from ...ops.launch.separable_launch import separable_call
    from ...ops.launch.wgrad_launch import wgrad_calls

    o, g = operands, operands.geometry
    if o.op == "lag_sums":
        part, lags = lagged(o), (g.R, g.S)
        sums = o.x.new_empty(g.C, g.C, *lags, dtype=torch.float64)
        tile, splits = tile_for(part, o.x, lags, device.multiprocessors)
        return sums, list(lag_sums_calls(part, o.x, sums, tile, splits))
    if o.op == "backward":
        dx = empty_in_format(g.x_shape, o.dy.dtype, like=o.dy)
        dw = empty_in_format(g.weight_shape, o.dy.dtype, like=o.x)
        return dx, list(backward_calls(o.x, o.dy, o.weight, dx, dw, g, plan))
    if o.op == "fprop_separable":
        in_one_pass = separable.plan(problem_of(o, device, "fprop"))
        assert in_one_pass is not None, o
        exact = torch.promote_types(o.weight.dtype, torch.float32)
        taps = torch.cat([o.weight[:1, 0, :, 0], o.weight[:1, 0, 0]], -1).to(exact)
        y = empty_in_format(g.y_shape, o.weight.dtype, like=o.x)
        return y, [separable_call(o.x, taps, y, g, in_one_pass)]
    if o.op == "wgrad":
        dw = empty_in_format(g.weight_shape, o.dy.dtype, like=o.x)
        return dw, list(wgrad_calls(o.x, o.dy, dw, g, plan))
    if o.op == "fprop":
        y = empty_in_format(g.y_shape, o.weight.dtype, like=o.x)
        tensors = Tensors(o.x, o.weight, y, o.bias, o.workload.activation, o.residual)
        return y, [fprop_call(tensors, g, plan)]
    dx = empty_in_format(g.x_shape, o.dy.dtype, like=o.dy)
    plans = [plan]
    if o.op == "dgrad" and g.frame_pixels:
        plans.append(choose.plan(problem_of(o, device, "dgrad_frame")))
    return dx, [dgrad_call(Tensors(dx, o.weight, o.dy), g, chosen) for chosen in plans]


def lagged(operands: Operands) -> torch.Tensor:
    """The part of x that every lag of a window meets."""
    g = operands.geometry
    return operands.x[..., : g.H - g.R + 1, : g.W - g.S + 1]
