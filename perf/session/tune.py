"""The search for a plan that is faster than the planner's, and the file of those that are.

For an operator, dtype and memory format of a workload: the table's plan is timed against itself,
which gives the noise; candidates of every family, and register limits, are timed against it in
turns, those that the static model likes first; the best few are timed again for longer. One that is
still faster in four turns of five, by more than the noise and by more than MIN_GAIN, is written to
the device's file with the measurements that justify it; put into ops/plan/tuned/, the planner takes
it from then on. A key that was searched again and did not win is taken out.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ...ops import ArgumentError
from ...ops.plan import choose
from ...ops.plan.device import Device
from ...ops.plan.problem import Plan, Problem
from ...ops.plan.tuned import key_of
from ..model.planned import PlannedCall, alternatives, describe, seconds_of
from ..providers import Operands, Result
from ..timing.correctness import Truth, first_of, truth_of
from ..timing.machine import Clocks
from ..timing.timers import Timer, cause_of, quantile

#: A smaller gain is not worth an entry, however well it is measured.
MIN_GAIN = 0.02
#: Turns (A B) of a first look, and of the measurements that decide.
LOOK_TURNS, DECIDE_TURNS = 5, 25
#: Candidates that are measured again, and the share of the time that the first look may take.
FINALISTS, LOOK_SHARE = 3, 0.7
#: Limits of a thread's registers to try, None for none, and families that hold their sums, rows
#: and weights in registers: with fewer, more programs fit.
REGISTERS = (64, 80, 96, None)
LIMITED = ("rows", "columns")


def table_plan(call: PlannedCall, device: Device) -> Plan:
    """The plan of the tables, whatever was tuned before."""
    return choose.plan(call.problem(replace(device, name="")))


@dataclass(frozen=True)
class Comparison:
    """Two plans timed in turns.

    Attributes:
        base_ms, ms: medians.
        ratio: base / candidate, the median over the turns: above 1 the candidate is faster.
        ratio_low, ratio_high: 20th and 80th percentile of the same.
        problem: why the candidate cannot be used: it did not run, or its result is another.
    """

    base_ms: float = math.nan
    ms: float = math.nan
    ratio: float = 0.0
    ratio_low: float = 0.0
    ratio_high: float = 0.0
    problem: str = ""


#: measure(job, base, candidate, turns): checks the candidate's result, then times both in turns.
Measure: TypeAlias = Callable[[PlannedCall, Plan, Plan, int], Comparison]


@dataclass(frozen=True)
class Outcome:
    """The result of a search.

    Attributes:
        job: searched for.
        base: the table's plan.
        best: the plan that won, None where none did.
        comparison: of the best against the base; of the closest finalist where none won.
        noise: how far from 1 the base was against itself.
        tried, candidates: how many of how many were timed.
        problems: plans that did not run or were wrong, in words.
    """

    job: PlannedCall
    base: Plan
    best: Plan | None
    comparison: Comparison
    noise: float
    tried: int
    candidates: int
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = self.comparison
        said = f"{self.job.name}: tried {self.tried} of {self.candidates}, noise {self.noise:.1%}; "
        if self.best is not None:
            said += (
                f"{describe(self.best)} wins: {found.ratio:.3f} ({found.ratio_low:.3f} to "
                f"{found.ratio_high:.3f}) of the table's speed, {found.ms:.4g} ms, table "
                f"{found.base_ms:.4g}"
            )
        else:
            said += f"nothing wins outside the noise, the closest had {found.ratio:.3f}"
        return said + "".join(f"; {problem}" for problem in self.problems[:3])


def candidates(job: PlannedCall, device: Device) -> list[Plan]:
    """The legal plans of every family but the table's own plan, the most likely first."""
    base, problem = table_plan(job, device), job.problem(replace(device, name=""))
    plans: dict[Plan, float] = {}
    for origin in alternatives(problem):
        for plan in _around(origin, problem):
            if plan != base:
                plans.setdefault(plan, _cost(plan, origin, problem))
    return sorted(plans, key=lambda plan: plans[plan])


def _around(origin: Plan, problem: Problem) -> Iterator[Plan]:
    """Plans of a family, around one of them: other tiles, splits and register limits."""
    splits = [origin.splits]
    if problem.op == "wgrad":
        splits = sorted({max(1, origin.splits // 2), origin.splits, 2 * origin.splits})
    for tile in choose.family_of(origin.tile).neighbours(origin.tile, problem):
        for number in splits:
            try:
                yield choose.plan_with_tile(problem, tile, number)
            except ArgumentError:  # more programs than a launch can have
                continue
    yield origin
    if origin.family in LIMITED:
        yield from (replace(origin, max_registers=number) for number in REGISTERS)


def _cost(plan: Plan, origin: Plan, problem: Problem) -> float:
    """The model's seconds, and a little more for every doubling away from a tile it would take."""
    distance = sum(
        abs(math.log2(value / vars(origin.tile)[name]))
        for name, value in vars(plan.tile).items()
        if name not in ("persistent", "copied", "in_place")
    )
    return seconds_of(plan, problem) * (1 + 0.02 * distance)


def search(
    job: PlannedCall,
    device: Device,
    measure: Measure,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    off: Container[tuple[str, str]] = (),
) -> Outcome:
    """The best plan for a job within a time budget.

    Args:
        job: what to search for.
        device: to plan for.
        measure: times one plan against another.
        seconds: budget; the measurement that is running when it ends is finished.
        clock: seconds, from any start.
        off: (kernel, dtype) of those that are left out.
    """
    start = clock()
    base = table_plan(job, device)
    plans = [p for p in candidates(job, device) if (p.kernel, job.dtype) not in off]
    itself = measure(job, base, base, DECIDE_TURNS)
    if itself.problem:
        return Outcome(job, base, None, itself, 0.0, 0, len(plans), (itself.problem,))
    noise = max(itself.ratio_high - 1, 1 - itself.ratio_low, 0.0)
    looked: list[tuple[float, Plan]] = []
    problems = []
    tried = 0
    for plan in plans:
        if clock() - start >= LOOK_SHARE * seconds:
            break
        tried += 1
        found = measure(job, base, plan, LOOK_TURNS)
        if found.problem:
            problems.append(f"{describe(plan)}: {found.problem}")
            continue
        looked.append((found.ratio, plan))
    looked.sort(key=lambda item: -item[0])
    best: tuple[Comparison, Plan] | None = None
    closest = Comparison()
    for ratio, plan in looked[:FINALISTS]:
        if ratio <= 1 or clock() - start >= seconds:
            break
        found = measure(job, base, plan, DECIDE_TURNS)
        if found.problem:
            problems.append(f"{describe(plan)}: {found.problem}")
            continue
        closest = max(closest, found, key=lambda c: c.ratio)
        wins = found.ratio_low > 1 + noise and found.ratio > 1 + max(noise, MIN_GAIN)
        if wins and (best is None or found.ratio > best[0].ratio):
            best = found, plan
    comparison, winner = best or (closest, None)
    return Outcome(job, base, winner, comparison, noise, tried, len(plans), tuple(problems))


def entry_of(outcome: Outcome, device: Device, facts: dict[str, Any]) -> dict[str, Any]:
    """The entry of a device's file for a plan that won."""
    job, plan = outcome.job, outcome.best
    if plan is None:
        raise ValueError(f"nothing won for {job.name}")
    entry: dict[str, Any] = {
        "key": _key(job, device),
        "tile": dict(vars(plan.tile)),
        "splits": plan.splits,
    }
    if plan.max_registers != plan.tile.max_registers(job.problem(device)):
        entry["registers"] = plan.max_registers or 0
    return entry | {
        "evidence": {
            "workload": job.workload.name,
            "table": describe(outcome.base),
            **{k: v for k, v in asdict(outcome.comparison).items() if k != "problem"},
            "noise": outcome.noise,
            "turns": DECIDE_TURNS,
            "tried": outcome.tried,
            **facts,
        }
    }


def _key(job: PlannedCall, device: Device) -> dict[str, Any]:
    key = key_of(job.problem(device))
    return asdict(key) | {"sizes": list(key.sizes)}  # as they are read back


def searched(path: Path) -> list[str]:
    """The jobs that a file says were searched."""
    if not path.exists():
        return []
    found: list[str] = json.loads(path.read_text(encoding="utf-8")).get("searched", [])
    return found


def update(path: Path, device: Device, outcomes: Iterable[Outcome], facts: dict[str, Any]) -> int:
    """Writes the winners into a device's file; returns how many entries it has then.

    What was searched replaces what the file says of it, also where nothing won; the rest stays.
    """
    entries, jobs = [], searched(path)
    if path.exists():
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    for outcome in outcomes:
        jobs = [*(job for job in jobs if job != outcome.job.name), outcome.job.name]
        key = _key(outcome.job, device)
        entries = [entry for entry in entries if entry["key"] != key]
        if outcome.best is not None:
            entries.append(entry_of(outcome, device, facts))
    entries.sort(key=lambda entry: json.dumps(entry["key"], sort_keys=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    head = f'"device": {json.dumps(device.name)}, "searched": {json.dumps(jobs)}'
    path.write_text(f'{{{head}, "entries": [\n{lines}\n]}}\n', encoding="utf-8")
    return len(entries)


def measure_by(
    timer: Timer,
    call_of: Callable[[Operands, Plan], Callable[[], Result]],
    clocks: Clocks | None = None,
) -> Measure:
    """A measure for `search`: the result's elements are checked in float64, then both plans timed.

    Args:
        timer: of the device that the tensors are to be on.
        call_of: a call of our kernels with a plan.
        clocks: asked while plans are timed.
    """

    @functools.lru_cache(maxsize=1)
    def prepared(job: PlannedCall) -> tuple[Operands, Truth]:
        operands = job.operands(timer.device)
        return operands, truth_of(operands)

    def measure(job: PlannedCall, base: Plan, plan: Plan, turns: int) -> Comparison:
        try:
            operands, truth = prepared(job)
            calls = [call_of(operands, base), call_of(operands, plan)]
            for call in calls:
                result = call()
                error, bound = (
                    truth.error(result, operands.precision),
                    truth.bound(first_of(result).dtype, operands.precision),
                )
                if not error <= bound:
                    return Comparison(problem=f"error {error:.2g} is above {bound:.2g}")
                del result
            samplers = []
            for call in calls:
                seconds = timer.seconds(call)
                host = timer.host_seconds(call, seconds) or 0.0
                samplers.append(timer.sampler(call, timer.caches[0], seconds, host))
            if clocks is not None:
                clocks.start()
            samples = [[sampler() for sampler in samplers] for _ in range(turns)]
        except Exception as error:  # compilers and launches raise anything
            timer.recover()
            return Comparison(problem=cause_of(error))
        ratios = [first / second for first, second in samples]
        return Comparison(
            1e3 * quantile([first for first, _ in samples], 0.5),
            1e3 * quantile([second for _, second in samples], 0.5),
            quantile(ratios, 0.5),
            quantile(ratios, 0.2),
            quantile(ratios, 0.8),
        )

    return measure
