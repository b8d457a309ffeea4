"""Shoot-outs: plans of one call that the static model does not tell apart, timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ...ops.plan.times import seconds_of
from ..model.planned import all_plans, describe, problem_of
from ..providers import OURS, make_operands
from ..timing.measure import Job
from ..workloads import Workload
from .rig import Entrant

if TYPE_CHECKING:
    from ...ops.plan.device import Device

F, D, W = "fprop", "dgrad", "wgrad"
B, T, S = "bfloat16", "tf32", "float32"
#: (workload, operators, dtypes), those with most to learn first: weight gradients of every size of
#: image, strides, 7 x 7 pixels, odd channels, windows of 7 to 31, few channels, images.
JOBS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("resnet50-64x56x56-64-3x3", (F, D, W), (B, T)),
    ("resnet50-256x14x14-256-3x3", (F, D, W), (B, T)),
    ("resnet50-512x7x7-512-3x3", (F, W), (B,)),
    ("resnet50-128x28x28-128-3x3", (F, W), (B, T)),
    ("resnet50-128x56x56-128-3x3-s2", (F, D, W), (B,)),
    ("sd-unet-1280x16x16-1280-3x3", (F, W), (B,)),
    ("resnet50-256x56x56-512-1x1-s2", (F, D, W), (B,)),
    ("convnext-t-96x56x56-192-2x2-s2", (F, D, W), (B,)),
    ("sd-unet-320x64x64-320-3x3", (F, W), (B,)),
    ("convnext-t-96x56x56-96-7x7", (F, D, W), (B,)),
    ("mobilenet-v2-144x56x56-144-3x3", (F, W), (B,)),
    ("images-4096-7x7", (F,), (B, S)),
    ("replknet-128x56x56-128-31x31", (F, W), (B,)),
    ("images-4096-31x31", (F,), (B,)),
    ("odd-67x55x57-71-3x3", (F, W), (B,)),
    ("resnet50-3x224x224-64-7x7-s2", (F, W), (B,)),
    ("images-4096-3x3", (F, W), (S, B)),
    ("convnext-t-768x7x7-768-7x7", (F, W), (B,)),
    ("replknet-1024x7x7-1024-13x13", (F, W), (B,)),
    ("resnet50-64x56x56-256-1x1", (F, W), (B,)),
    ("kernelbench-50", (F,), (T,)),
)
#: Plans of a family that are timed, and the multiple of the planner's time above which none is.
MOST, CLOSE = 2, 3.0


def shootouts(
    device: Device, workload: Callable[[str], Workload | None]
) -> Iterator[tuple[Job, list[Entrant]]]:
    """Jobs that have two ways or more, each with its entrants, the planner's first.

    Args:
        device: to plan for.
        workload: by name, None where there is none.
    """
    for name, ops, dtypes in JOBS:
        found = workload(name)
        if found is None:
            continue
        for dtype in dtypes:
            for op in ops:
                job = Job(found, op, dtype)
                entrants = [e for f in found.formats for e in _entrants(job, f, device)]
                if len(entrants) > len(found.formats):
                    yield job, entrants


def _entrants(job: Job, memory_format: str, device: Device) -> Iterator[Entrant]:
    """The planner's plan, then the MOST of every family that the model expects to be done first."""
    operands = make_operands(job.workload, job.op, job.dtype, memory_format, "meta")
    problem = problem_of(operands, device)
    own, *others = all_plans(problem)
    others.sort(key=lambda plan: seconds_of(plan, problem))
    yield Entrant(OURS, memory_format, own)
    taken = {describe(own)}
    counts = dict.fromkeys((plan.family for plan in [own, *others]), 0)
    for plan in others:
        text, close = describe(plan), CLOSE * seconds_of(own, problem)
        if text in taken or counts[plan.family] == MOST or seconds_of(plan, problem) > close:
            continue
        taken.add(text)
        counts[plan.family] += 1
        yield Entrant(f"{OURS}@{plan.family}{counts[plan.family]}", memory_format, plan)
