"""Shoot-outs: plans of one call that the static model does not tell apart, timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...ops.plan import choose, tma
from ..model.planned import alternatives, problem_of, seconds_of
from ..providers import OURS, make_operands
from ..timing.measure import Job
from ..workloads import Workload
from .rig import Entrant
from .tune import LIMITED, REGISTERS

if TYPE_CHECKING:
    from ...ops.plan.device import Device

#: (workload, operators, dtypes): rows or banded at 7x7; boxes, pointers, or boxes after a copy at
#: 56, 28, 14 and 7 pixels; a stencil or a GEMM with few channels; large windows; one image.
JOBS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("images-4096-7x7", ("fprop",), ("bfloat16", "float32")),
    ("convnext-t-96x56x56-96-7x7", ("fprop", "dgrad", "wgrad"), ("bfloat16",)),
    ("convnext-t-768x7x7-768-7x7", ("fprop", "wgrad"), ("bfloat16",)),
    ("resnet50-64x56x56-64-3x3", ("fprop", "dgrad", "wgrad"), ("bfloat16",)),
    ("resnet50-128x28x28-128-3x3", ("fprop", "wgrad"), ("bfloat16",)),
    ("resnet50-256x14x14-256-3x3", ("fprop", "dgrad", "wgrad"), ("bfloat16", "tf32")),
    ("resnet50-512x7x7-512-3x3", ("fprop", "wgrad"), ("bfloat16",)),
    ("sd-unet-4x64x64-320-3x3", ("dgrad", "wgrad"), ("bfloat16",)),
    ("resnet50-3x224x224-64-7x7-s2", ("fprop", "wgrad"), ("bfloat16",)),
    ("resnet50-64x56x56-256-1x1", ("fprop",), ("bfloat16",)),
    ("mobilenet-v2-144x56x56-144-3x3", ("fprop", "wgrad"), ("bfloat16",)),
    ("images-4096-3x3", ("fprop", "wgrad"), ("float32", "bfloat16")),
    ("images-4096-31x31", ("fprop",), ("bfloat16",)),
    ("replknet-128x56x56-128-31x31", ("fprop", "wgrad"), ("bfloat16",)),
)
#: A family with a predicted time above this multiple of the planner's is not timed.
CLOSE = 3.0


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
    operands = make_operands(job.workload, job.op, job.dtype, memory_format, "meta")
    problem = problem_of(operands, device)
    own, *others = alternatives(problem)
    yield Entrant(OURS, memory_format, own)
    for plan in others:
        if seconds_of(plan, problem) < CLOSE * seconds_of(own, problem):
            yield Entrant(f"{OURS}@{plan.family}", memory_format, plan)
    boxes: Any = own.tile
    if own.family == "tma" and job.op != "wgrad":
        persistent = 0 if boxes.persistent else device.multiprocessors
        other = replace(boxes, persistent=persistent)
        if tma.is_legal(problem, other):
            plan = choose.plan_with_tile(problem, other)
            yield Entrant(f"{OURS}@persistent{persistent}", memory_format, plan)
    if own.family == "tma":
        tiles = [tile for tile in tma.tiles(problem) if tile.copied != boxes.copied]
        plans = [choose.plan_with_tile(problem, tile, tile.splits(problem)) for tile in tiles]
        if plans:
            best = min(plans, key=lambda plan: seconds_of(plan, problem))
            yield Entrant(f"{OURS}@{'in-place' if boxes.copied else 'copied'}", memory_format, best)
    if own.family in LIMITED:
        for registers in REGISTERS:
            if registers != own.max_registers:
                plan = replace(own, max_registers=registers)
                yield Entrant(f"{OURS}@registers{registers or 0}", memory_format, plan)
