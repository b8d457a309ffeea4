"""Search the legal tiles for workloads on this GPU, and record those that win outside the noise.

    python -m tricorr.perf tune resnet50-64x56x56-64-3x3 --op fprop --minutes 5

For every operator, dtype and memory format of a workload: the table's plan is timed against itself,
which gives the noise; candidates are timed against it in turns, those that the static model likes
first; the best few are timed again for longer. One that is still faster in four turns of five, by
more than the noise and by more than MIN_GAIN, is written to the device's file in ops/plan/tuned/,
with the measurements that justify it, and the planner takes it from then on. A key that was
searched again and did not win is taken out.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..ops import ArgumentError
from ..ops.explain import device_named
from ..ops.plan import choose
from ..ops.plan.device import DEVICES, INTERPRETER, Device
from ..ops.plan.problem import Plan
from ..ops.plan.problem import Problem as PlanProblem
from ..ops.plan.tuned import file_of, key_of
from .machine import Clocks
from .measure import GpuTimer, Timer, quantile
from .model import PRODUCTS, predict, problem_of
from .providers import Problem, make_problem
from .workloads import OPS, Workload, find

if TYPE_CHECKING:
    from .correctness import Truth

#: A smaller gain is not worth an entry, however well it is measured.
MIN_GAIN = 0.02
#: Turns (A B) of a first look, and of the measurements that decide.
LOOK_TURNS, DECIDE_TURNS = 5, 25
#: Candidates that are measured again, and the share of the time that the first look may take.
FINALISTS, LOOK_SHARE = 3, 0.7


@dataclass(frozen=True)
class Job:
    """What gets an entry of its own: an operator of a workload in a dtype and memory format."""

    workload: Workload
    op: str
    dtype: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.workload.name} {self.op} {self.dtype} {self.format}"

    @property
    def format(self) -> str:
        return "channels_last" if self.channels_last else "NCHW"

    def problem(self, device: Device) -> PlanProblem:
        """What is planned."""
        dtype, precision = PRODUCTS[self.dtype]
        return problem_of(
            self.workload.geometry, self.op, dtype, device, self.channels_last, precision
        )

    def table_plan(self, device: Device) -> Plan:
        """The plan of the tables, whatever was tuned before."""
        return choose.plan(replace(self.problem(replace(device, name="")), x_bytes=0))


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


#: Times the second plan against the first for so many turns, after checking its result.
Measure: TypeAlias = Callable[[Job, Plan, Plan, int], Comparison]


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        job: searched for.
        base: the table's plan.
        best: the plan that won, None where none did.
        comparison: of the best against the base; of the closest finalist where none won.
        noise: how far from 1 the base was against itself.
        tried, candidates: how many of how many were timed.
        problems: plans that did not run or were wrong, in words.
    """

    job: Job
    base: Plan
    best: Plan | None
    comparison: Comparison
    noise: float
    tried: int
    candidates: int
    problems: tuple[str, ...] = ()


def jobs_of(
    workload: Workload, ops: Iterable[str], dtypes: Iterable[str], formats: Iterable[str]
) -> Iterator[Job]:
    """The jobs of a workload, narrowed to what is named where something is."""
    ops, dtypes, formats = list(ops), list(dtypes), list(formats)
    for op in workload.ops:
        for dtype in workload.dtypes:
            for memory_format in workload.formats:
                if (
                    (not ops or op in ops)
                    and (not dtypes or dtype in dtypes)
                    and (not formats or memory_format in formats)
                ):
                    yield Job(workload, op, dtype, memory_format == "channels_last")


def candidates(job: Job, device: Device) -> list[Plan]:
    """The legal plans of the table's kernel family but the table's own, the most likely first."""
    base, problem = job.table_plan(device), job.problem(device)
    plans: dict[Plan, float] = {}
    for tile in choose.family_of(base.tile).neighbours(base.tile, problem):
        splits = [base.splits]
        if job.op == "wgrad":
            splits = sorted({max(1, base.splits // 2), base.splits, 2 * base.splits})
        for number in splits:
            try:
                plan = choose.plan_with_tile(problem, tile, number)
            except ArgumentError:  # more programs than a launch can have
                continue
            if plan != base:
                plans.setdefault(plan, _cost(job, plan, base, device))
    return sorted(plans, key=lambda plan: plans[plan])


def _cost(job: Job, plan: Plan, base: Plan, device: Device) -> float:
    """The model's microseconds, and a little more for every doubling away from the table's tile."""
    distance = sum(
        abs(math.log2(value / vars(base.tile)[name]))
        for name, value in vars(plan.tile).items()
        if name != "persistent"
    )
    if device.bandwidth is None:
        return distance
    dtype, precision = PRODUCTS[job.dtype]
    predicted = predict(
        job.workload.geometry,
        job.op,
        dtype,
        device,
        channels_last=job.channels_last,
        precision=precision,
        plan=plan,
    )
    return predicted.predicted_us * (1 + 0.02 * distance)


def search(
    job: Job,
    device: Device,
    measure: Measure,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """The best plan for a job within a time budget.

    Args:
        job: what to search for.
        device: to plan for.
        measure: times one plan against another.
        seconds: budget; the measurement that is running when it ends is finished.
        clock: seconds, from any start.
        say: gets a line for every new best.
    """
    start = clock()
    base = job.table_plan(device)
    plans = candidates(job, device)
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
        if not looked or found.ratio > max(ratio for ratio, _ in looked):
            say(f"  {describe(plan)}: {found.ratio:.3f}x the table's speed at first look")
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


def describe(plan: Plan) -> str:
    """A plan's tile and splits, for people."""
    tile = " ".join(f"{name}={value}" for name, value in vars(plan.tile).items())
    return tile + (f" splits={plan.splits}" if plan.op == "wgrad" else "")


def entry_of(outcome: Outcome, facts: dict[str, Any]) -> dict[str, Any]:
    """The entry of a device's file for a plan that won."""
    job, plan = outcome.job, outcome.best
    if plan is None:
        raise ValueError(f"nothing won for {job}")
    return {
        "key": _key(job),
        "tile": dict(vars(plan.tile)),
        "splits": plan.splits,
        "evidence": {
            "workload": job.workload.name,
            "table": describe(outcome.base),
            **{k: v for k, v in asdict(outcome.comparison).items() if k != "problem"},
            "noise": outcome.noise,
            "turns": DECIDE_TURNS,
            "tried": outcome.tried,
            **facts,
        },
    }


def _key(job: Job) -> dict[str, Any]:
    key = key_of(job.problem(INTERPRETER))
    return asdict(key) | {"sizes": list(key.sizes)}  # as they are read back


def update(path: Path, device_name: str, outcomes: Iterable[Outcome], facts: dict[str, Any]) -> int:
    """Writes the winners into a device's file; returns how many entries it has then.

    What was searched replaces what the file says of it, also where nothing won; the rest stays.
    """
    entries = []
    if path.exists():
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    for outcome in outcomes:
        key = _key(outcome.job)
        entries = [entry for entry in entries if entry["key"] != key]
        if outcome.best is not None:
            entries.append(entry_of(outcome, facts))
    entries.sort(key=lambda entry: json.dumps(entry["key"], sort_keys=True))
    if entries or path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(entry) for entry in entries)
        path.write_text(
            f'{{"device": {json.dumps(device_name)}, "entries": [\n{lines}\n]}}\n', encoding="utf-8"
        )
    return len(entries)


def call_of(problem: Problem, plan: Plan | None = None) -> Callable[[], torch.Tensor]:
    """A call of our kernels, and of nothing around them. `plan` replaces the planner's."""
    from ..ops.launch import arguments as launch

    p, g = problem, problem.geometry
    if p.op == "fprop":
        activation = p.workload.activation
        return lambda: launch.fprop(p.x, p.weight, p.bias, g, p.precision, activation, plan)
    if p.op == "dgrad":
        return lambda: launch.dgrad(p.dy, p.weight, g, p.precision, plan=plan)
    return lambda: launch.wgrad(p.x, p.dy, g, p.precision, plan=plan)


def measure_by(timer: Timer, clocks: Clocks | None = None) -> Measure:
    """A measure for `search`: the problem's elements are checked in float64, then both plans timed.

    Args:
        timer: of the device that the tensors are to be on.
        clocks: asked while plans are timed.
    """
    from .correctness import truth_of

    @functools.lru_cache(maxsize=1)
    def prepared(job: Job) -> tuple[Problem, Truth]:
        problem = make_problem(job.workload, job.op, job.dtype, job.format, timer.device)
        return problem, truth_of(problem)

    def measure(job: Job, base: Plan, plan: Plan, turns: int) -> Comparison:
        try:
            problem, truth = prepared(job)
            calls = [call_of(problem, base), call_of(problem, plan)]
            for call in calls:
                result = call()
                error, bound = truth.error(result), truth.bound(result.dtype, problem.precision)
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
        except Exception as error:
            timer.recover()
            reason = (str(error).splitlines() or [""])[0]
            return Comparison(problem=f"{type(error).__name__}: {reason}")
        ratios = [first / second for first, second in samples]
        return Comparison(
            1e3 * quantile([first for first, _ in samples], 0.5),
            1e3 * quantile([second for _, second in samples], 0.5),
            quantile(ratios, 0.5),
            quantile(ratios, 0.2),
            quantile(ratios, 0.8),
        )

    return measure


def on_gpu() -> tuple[Device, Measure, Callable[[], dict[str, Any]]]:
    """(the GPU of this process, how to time plans on it, what to note with what was found)."""
    from ..ops.launch.layout import device_of
    from .machine import machine

    clocks = Clocks()
    # Where the datasheet is known the model can put the candidates in order.
    device = device_of(torch.empty(0, device="cuda"))

    def facts() -> dict[str, Any]:
        clock, throttle = clocks.read()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return {**asdict(machine("gpu")), "time": now, "sm_clock": clock, "throttle": throttle}

    return device, measure_by(GpuTimer(), clocks), facts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf tune`."""
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD", help="a name from the table")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all of it (%(default)s)")
    parser.add_argument("--op", action="append", default=[], choices=OPS)
    parser.add_argument("--dtype", action="append", default=[], choices=sorted(PRODUCTS))
    parser.add_argument("--format", action="append", default=[], choices=("NCHW", "channels_last"))
    parser.add_argument("--out", type=Path, metavar="FILE", help="instead of the device's file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list what would be tried, in order; this is all that can be done without a GPU",
    )
    parser.add_argument(
        "--device", default="h200", help=f"to list for, of {', '.join(DEVICES)} (%(default)s)"
    )


def main(options: argparse.Namespace) -> int:
    """Searches and writes, or lists what it would try where there is no GPU."""
    try:
        workloads = [find(name) for name in options.workloads]
        device = device_named(options.device)
    except KeyError as error:
        print(f"no workload is called {error}; `python -m tricorr.perf workloads` lists them")
        return 2
    except ArgumentError as error:
        print(error)
        return 2
    jobs = [job for w in workloads for job in jobs_of(w, options.op, options.dtype, options.format)]
    wide = [job for job in jobs if job.problem(device).layout.int64]
    jobs = [job for job in jobs if not job.problem(device).layout.int64]
    for job in wide:
        print(f"{job}: left out, 64-bit offsets have tiles of their own")
    if not jobs:
        print("nothing to search: these workloads have no such operator, dtype or format")
        return 2
    if options.dry_run or not torch.cuda.is_available():
        if not options.dry_run:
            print("No GPU here, so nothing is timed and nothing is written.", end=" ")
        _list(jobs, device)
        return 0

    device, measure, facts = on_gpu()
    path = options.out or file_of(device.name)
    count = 0
    deadline = time.monotonic() + 60 * options.minutes
    for i, job in enumerate(jobs):
        share = (deadline - time.monotonic()) / (len(jobs) - i)
        if share <= 0:
            print(f"out of time: {len(jobs) - i} jobs are left")
            break
        print(job, flush=True)
        outcome = search(job, device, measure, share, say=lambda line: print(line, flush=True))
        _report(outcome)
        # After every job: a run that is cut off keeps what it found.
        count = update(path, device.name, [outcome], facts())
    print(f"{count} entries in {path}")
    return 0


def _list(jobs: list[Job], device: Device) -> None:
    print(f"What would be tried on {device.name}, the likeliest first by the static model:")
    for job in jobs:
        base = job.table_plan(device)
        plans = candidates(job, device)
        count = len(plans) or "no"
        print(f"\n{job}: {count} legal plans of {base.kernel}; the table has {describe(base)}")
        for plan in plans[:5]:
            print(f"  {describe(plan)}")


def _report(outcome: Outcome) -> None:
    print(f"  tried {outcome.tried} of {outcome.candidates}, noise {outcome.noise:.1%}")
    found = outcome.comparison
    if outcome.best is not None:
        print(
            f"  {describe(outcome.best)} wins: {found.ratio:.3f} ({found.ratio_low:.3f} to "
            f"{found.ratio_high:.3f}) of the table's speed, {found.ms:.4g} ms, table "
            f"{found.base_ms:.4g}"
        )
    else:
        print(f"  nothing wins outside the noise; the closest had {found.ratio:.3f}")
    for problem in outcome.problems:
        print(f"  {problem}")
