"""One command for the first minutes on a GPU: right before fast, and nothing left to chance.

    python -m tricorr.perf gpu --minutes 9 --out DIR     everything below; again: goes on
    python -m tricorr.perf all --minutes 8 --out DIR     rows only, also on a CPU
    python -m tricorr.perf tune WORKLOAD --out DIR       a search of tiles only

Builds run in processes of their own from the first second. One process measures:

 1. the ceilings of the device;
 2. check: tiny calls of every kernel, each alone in a process. A kernel that is wrong, hangs or
    does not compile is off for the rest of the run, and its calls take another family;
 3. families: families, formats, programs and register limits where the model has them close;
 4. rows: the table of workloads, one of every regime in all passes before a second of any;
 5. tune: a search of tiles where another family won;
 6. feedback: constants and a multiplier for each family, as data for the planner;
 7. sanitize, and Nsight Compute if asked for (tools.py).

Every result is on the disk before the next measurement begins, and the run ends inside its budget.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..ops.plan import choose
from ..ops.plan.tuned import file_of
from . import calibrate, checks, report, rows, tools, tune
from .compared import processors
from .measure import Job, contenders_of
from .planned import PlannedCall, alternatives, describe
from .processes import Child, Pool, ProcessError
from .providers import OURS, PROVIDERS
from .requests import (
    At,
    Done,
    Environment,
    Here,
    HostCost,
    Learn,
    Measure,
    Search,
    Start,
    serve_builds,
    serve_check,
)
from .requests import serve as serve_measurements
from .rig import CpuRig, Entrant, GpuRig
from .rows import Row
from .shootouts import shootouts
from .tasks import Task, tasks_of
from .workloads import BY_NAME, OPS, SUITES, Workload

if TYPE_CHECKING:
    from ..ops.plan.problem import Plan

STAGES = ("check", "families", "rows", "tune", "feedback", "sanitize")
#: Share of the budget after which a stage begins nothing new.
UNTIL = {"check": 0.35, "families": 0.55, "rows": 0.83, "tune": 0.95, "sanitize": 0.95}
#: Seconds that are kept for the report.
RESERVE = 4.0
#: First guesses of a job's seconds, by group; what was measured replaces them.
GUESSES = {
    "gpu": {
        "core": 4.0, "compile": 15.0, "max-autotune": 40.0, "learn": 10.0, "host": 6.0,
        "startup": 60.0,
    },
    "cpu": {
        "core": 1.0, "compile": 1.0, "max-autotune": 1.0, "learn": 5.0, "host": 6.0,
        "startup": 40.0,
    },
}  # fmt: skip
#: A job may end the process so often at most.
MOST_RESTARTS = 4
#: Tiny calls that run side by side.
SIDE_BY_SIDE = 4
#: Losses and wins that the last lines show.
LOSSES, WINS = 15, 10


@dataclass
class Run:
    """One run; everything that it finds is in `out`.

    Attributes:
        rig: the device, as processes reach it.
        out: directory of results.
        seconds: the budget.
        stages: of STAGES.
        tasks: what rows are wanted, in order.
        peers: names of those that take part.
        say: is told what happens, a line each.
        ncu: whether Nsight Compute is to look at some launches at the end.
    """

    rig: GpuRig
    out: Path
    seconds: float
    stages: Sequence[str] = STAGES
    tasks: Sequence[Task] = ()
    peers: tuple[str, ...] = tuple(p.name for p in PROVIDERS if p.name != OURS)
    say: Callable[[str], None] = print
    ncu: bool = False
    left: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = self.out / "worker.log"
        self.recorded = rows.read(self.out / rows.FILE) if (self.out / rows.FILE).exists() else []
        self.writer = rows.Writer(self.out / rows.FILE)
        self.notes = checks.Notes(self.out / "checks.jsonl")
        self.off: dict[tuple[str, str], str] = {}
        self.costs = dict(GUESSES[self.rig.kind])
        self.known: Environment | None = None
        self.calibration: calibrate.Calibration | None = None
        self.outcomes: list[tune.Outcome] = []
        self.child = Child(self.log, serve_measurements, self.rig, None)
        self.plans: dict[PlannedCall, Plan] = {}

    @property
    def remaining(self) -> float:
        """Seconds until the report has to be written."""
        return self.seconds - RESERVE - (time.monotonic() - self.start)

    def left_of(self, stage: str) -> float:
        """Seconds in which a stage may begin something."""
        share = UNTIL[stage] if set(self.stages) - {stage} else 1.0
        return min(self.remaining, share * self.seconds - (time.monotonic() - self.start))

    def all(self) -> None:
        """Every stage that is asked for, then the report, whatever happened before."""
        pools: list[Pool] = []
        try:
            self.begin(pools)
            for stage in STAGES:
                if stage in self.stages:
                    self.say(f"{time.monotonic() - self.start:5.0f} s  {stage}")
                    getattr(self, f"do_{stage}")()
        finally:
            for pool in pools:
                pool.end()
            self.child.end()
            self.writer.close()
            self.finish()

    # -- the device -----------------------------------------------------------------------------

    def begin(self, pools: list[Pool]) -> None:
        """Starts all processes; builds run while the measuring one finds how fast the device is.

        Args:
            pools: takes the pools, which the caller ends.
        """
        here = self.child.answer(time.monotonic() + min(120.0, max(5.0, self.remaining)))
        assert isinstance(here, Here)
        m = self.machine = here.machine
        self.device = here.device
        self.say(f"{m.device}, driver {m.driver}, PyTorch {m.torch}, Triton {m.triton}")
        self.builds = Pool(
            max(1, (os.cpu_count() or 1) - 2),
            self.rig.build_limit,
            lambda: Child(self.log, serve_builds, self.rig, self.device),
        )
        self.tiny = Pool(
            SIDE_BY_SIDE,
            self.rig.check_limit,
            lambda: Child(self.log, serve_check, self.rig),
            reuse=False,
        )
        pools += [self.builds, self.tiny]
        self.early: list[tuple[Any, Any]] = []
        self.wanted = self._checks_to_make() if "check" in self.stages else {}
        if self.rig.kind == "gpu":
            self.queue_builds()
        deadline = time.monotonic() + max(5.0, self.remaining)
        while not self.child.start().poll(0.1) and time.monotonic() < deadline:
            self.early += self.builds.answers(time.monotonic())
        self.known = self.child.answer(deadline)
        assert isinstance(self.known, Environment)
        if self.known.ceilings is not None:
            self.say(str(self.known.ceilings))
        if self.known.sm_clock is not None:
            self.say(f"SM clock {self.known.sm_clock} MHz, held back by {self.known.throttle}")
        self.child.arguments = (self.rig, self.known)

    def plan_of(self, workload: Workload, op: str, dtype: str, memory_format: str) -> Plan | None:
        """The plan of a call without the kernels that are off; None where none is left."""
        call = PlannedCall(workload, op, dtype, memory_format)
        if call not in self.plans:
            self.plans[call] = choose.plan(call.problem(self.device))
        if not self.is_off(self.plans[call], dtype):
            return self.plans[call]
        others = alternatives(call.problem(self.device))
        return next((plan for plan in others if not self.is_off(plan, dtype)), None)

    def is_off(self, plan: Plan, dtype: str) -> bool:
        return (plan.kernel, dtype) in self.off

    def turn_off(self, kernel: str, dtype: str, why: str) -> None:
        """Leaves a kernel out for the rest of the run, in one dtype."""
        if (kernel, dtype) not in self.off:
            self.off[kernel, dtype] = why
            self.say(f"OFF {kernel} {dtype}: {why}")

    # -- tiny calls -----------------------------------------------------------------------------

    def _checks_to_make(self) -> dict[str, PlannedCall]:
        """The tiny calls whose outcome is not known yet, by name."""
        wanted = {
            str(check): check
            for check in checks.checks(self.device)
            if self.rig.is_checked(check.kernel, check.dtype)
        }
        for name, note in self.notes.of(self.machine).items():
            if check := wanted.pop(name, None):
                self._checked(check, note, again=True)
        return wanted

    def do_check(self) -> None:
        """Runs the tiny calls as they are built, and turns off the kernels that are not right."""
        waiting = dict(self.wanted)
        while (waiting or len(self.tiny)) and self.left_of("check") > 0:
            built = [*self.early, *self.builds.answers(time.monotonic() + 0.2)]
            self.early = []
            for key, problem in built:
                check = waiting.pop(key, None)
                if check is None:
                    self._built(key, problem)
                elif problem:
                    self._checked(check, f"does not compile: {problem}")
                elif (check.kernel, check.dtype) not in self.off:
                    self.tiny.put(check, check)
            for check, problem in self.tiny.answers(time.monotonic() + 0.05):
                timed_out = isinstance(problem, ProcessError) and problem.timed_out
                self._checked(check, f"hangs: {problem}" if timed_out else str(problem))
        self.tiny.end()
        late, made = len(waiting), len(self.wanted) - len(waiting)
        self.say(f"{made} tiny calls, {len(self.off)} kernels off, {late} not begun")

    def _checked(self, check: PlannedCall, note: str, again: bool = False) -> None:
        if not again and (check.kernel, check.dtype) not in self.off:
            self.notes.write(check, note, self.machine)
        if note:
            self.turn_off(check.kernel, check.dtype, f"{note} ({check})")

    def queue_builds(self) -> None:
        """Everything that will be launched, in the order in which it will be."""
        for name, check in self.wanted.items():
            self.builds.put(name, check)
        for job, entrants in self._entrants() if "families" in self.stages else ():
            for e in entrants:
                call = PlannedCall(job.workload, job.op, job.dtype, e.format, e.plan)
                self.builds.put((call.kernel, call.dtype), call)
        for task in self.tasks if "rows" in self.stages else ():
            for call in self._calls(task):
                plan = self.plan_of(call.workload, call.op, call.dtype, call.format)
                if plan is not None:
                    self.builds.put((plan.kernel, call.dtype), replace(call, plan=plan))

    def _calls(self, task: Task) -> Iterator[PlannedCall]:
        """The calls of our kernels that a task measures, not planned yet."""
        if task.job is not None and task.group == "core":
            for memory_format in task.job.workload.formats:
                yield PlannedCall(task.job.workload, task.op, task.dtype, memory_format)

    def _built(self, key: Any, problem: Any) -> None:
        """A build that no tiny call waits for: a kernel that does not compile is off."""
        if problem and isinstance(key, tuple):
            kernel, dtype = key
            self.turn_off(kernel, dtype, f"does not compile: {problem}")

    # -- the measuring process ------------------------------------------------------------------

    def ask(self, request: Any, limit: float) -> Iterator[Any]:
        """The answers to a request.

        Raises:
            ProcessError: the process is gone.
        """
        if self.child.connection is None:  # a new one says where it is, and knows the ceilings
            for _ in range(2):
                self.child.answer(time.monotonic() + max(5.0, min(60.0, self.remaining)))
        self.child.ask(request)
        deadline = time.monotonic() + limit
        while True:
            answer = self.child.answer(deadline)
            if isinstance(answer, Done):
                if answer.error:
                    self.child.end()
                    raise ProcessError(answer.error)
                return
            yield answer

    def measure(self, request: Measure, limit: float) -> bool:
        """Writes the rows of a job, again without whoever took the process down.

        False if the time ran out that was left, which is nobody's fault.
        """
        named = {(e.name, e.format): e.plan for e in request.entrants}
        job, written = request.job, set()
        for _ in range(MOST_RESTARTS):
            at = At(OURS, "NCHW")
            timeout = max(1.0, min(limit, self.remaining + RESERVE / 2))
            try:
                for answer in self.ask(request, timeout):
                    if isinstance(answer, At):
                        at = answer
                    elif answer.key not in written:
                        plan = named.get((answer.provider, answer.format))
                        if answer.provider == OURS and plan is None:
                            plan = self.plan_of(job.workload, job.op, job.dtype, answer.format)
                        self.write(answer, plan)
                        written.add(answer.key)
                return True
            except ProcessError as error:
                if error.timed_out and timeout < limit:
                    return False
                skip = (at.provider, at.format, str(error))
                request = replace(request, skip=(*request.skip, skip))
                plan = named.get((at.provider, at.format))
                if at.provider == OURS and plan is None:
                    plan = self.plan_of(job.workload, job.op, job.dtype, at.format)
                if plan is not None:  # the others of that kernel need not be tried
                    where = f"{job.workload.name} {job.op} {at.format}"
                    why = f"{'hangs: ' * error.timed_out}{error} ({where}, {describe(plan)})"
                    self.turn_off(plan.kernel, job.dtype, why)
                    on = tuple(e for e in request.entrants if not self.is_off(e.plan, job.dtype))
                    request = replace(request, entrants=on)
        return True

    def write(self, row: Row, plan: Plan | None = None) -> None:
        """Writes a row, ours with its plan; a kernel that is wrong is off."""
        if plan is not None and self.rig.kind == "gpu":
            row = replace(row, plan=describe(plan))
            if row.status == "wrong":
                self.turn_off(plan.kernel, row.dtype, f"{row.note} ({row.workload}, {row.plan})")
        self.writer.write(row)
        self.recorded.append(row)

    def has(self, **fields: Any) -> list[Row]:
        """Rows of this machine and these sources with such fields."""
        here = (self.machine.device, self.machine.revision.rpartition("+")[2])
        return [
            row
            for row in self.recorded
            if (row.device, row.revision.rpartition("+")[2]) == here
            if all(getattr(row, name) == value for name, value in fields.items())
        ]

    # -- families -------------------------------------------------------------------------------

    def _entrants(self) -> Iterator[tuple[Job, list[Entrant]]]:
        """Jobs of the shoot-out without what is off; the first that is left stands for ours."""
        for job, entrants in shootouts(self.device, self.rig.workload):
            on = [e for e in entrants if not self.is_off(e.plan, job.dtype)]
            for memory_format in job.workload.formats:
                mine = [e for e in on if e.format == memory_format]
                if mine and mine[0].name != OURS:
                    on[on.index(mine[0])] = replace(mine[0], name=OURS)
            yield job, on

    def do_families(self) -> None:
        """Families, formats, programs and register limits, side by side, with cold caches."""
        for job, entrants in self._entrants():
            if self.left_of("families") < self.costs["core"]:
                return
            measured = self.has(workload=job.workload.name, op=job.op, dtype=job.dtype)
            names = {(row.provider, row.format, row.plan) for row in measured}
            new = [e for e in entrants if (e.name, e.format, describe(e.plan)) not in names]
            if new:
                with self._costing("core"):
                    request = Measure(job, tuple(entrants), ("pytorch",), self.rig.cold)
                    self.measure(request, self.rig.job_limit)

    # -- rows -----------------------------------------------------------------------------------

    def do_rows(self) -> None:
        """Rows of the table, until the time is over."""
        todo = [task for task in self.tasks if not self._is_done(task)]
        self._note_missing(todo)
        for task in todo:
            for key, problem in self.builds.answers(time.monotonic()):
                self._built(key, problem)
            if self.costs[task.group] > self.left_of("rows"):
                self.left.append(task)
                continue
            with self._costing(task.group):
                if not self._one(task):
                    self.left.append(task)
        self.say(f"{len(todo) - len(self.left)} jobs measured, {len(self.left)} are left")

    @contextlib.contextmanager
    def _costing(self, group: str) -> Iterator[None]:
        """Learns what a job of a group takes; one very long job does not rule out all after it."""
        start = time.monotonic()
        yield
        guess, cost = self.costs[group], time.monotonic() - start
        self.costs[group] = 0.7 * guess + 0.3 * min(cost, 4 * guess)

    def _one(self, task: Task) -> bool:
        """Measures a task. False if the time ran out."""
        job, limit = task.job, self.rig.job_limit
        if job is None:
            requests = {"learn": Learn(task.name), "host": HostCost(), "startup": Start()}
            request = requests[task.op]
            timeout = max(1.0, min(2 * limit, self.remaining + RESERVE / 2))
            try:
                for answer in self.ask(request, timeout):
                    if isinstance(answer, Row):
                        self.write(answer)
            except ProcessError as error:
                if error.timed_out and timeout < 2 * limit:
                    return False
                self.write(self._failed(task, OURS, "NCHW", str(error)))
            return True
        entrants = []
        for memory_format in job.workload.formats:
            plan = self.plan_of(job.workload, job.op, job.dtype, memory_format)
            first = self.plans[PlannedCall(job.workload, job.op, job.dtype, memory_format)]
            if plan is None:
                why = f"every kernel for it is off: {self.off[first.kernel, job.dtype]}"
                self.write(self._failed(task, OURS, memory_format, why))
                return True
            if plan != first or not self.rig.by_public_call:
                entrants.append(Entrant(OURS, memory_format, plan))
        return self.measure(Measure(job, tuple(entrants), self.peers), limit)

    def _is_done(self, task: Task) -> bool:
        mine = self.has(op=task.op)
        if task.job is None:
            return any(row.workload == task.name or task.op != "learn" for row in mine)
        job, last = task.job, self.rig.caches[-1]
        have = {
            (row.provider, row.format, row.plan if row.provider == OURS else None)
            for row in mine
            if (row.workload, row.dtype) == (task.name, task.dtype)
            if row.cache == last or row.status != "ok"
        }
        wanted = set()
        members = [p for p in self.rig.providers if p.name in (OURS, *self.peers)]
        for provider, memory_format in contenders_of(job, members, self.rig.device):
            text = None
            if provider.name == OURS:
                if job.group != "core":
                    continue
                plan = self.plan_of(job.workload, job.op, job.dtype, memory_format)
                text = None if plan is None or self.rig.kind == "cpu" else describe(plan)
            wanted.add((provider.name, memory_format, text))
        return wanted <= have

    def _note_missing(self, todo: Sequence[Task]) -> None:
        """A row for each provider that is not there, at the first job it would have met."""
        for provider in self.rig.providers:
            reason = provider.available()
            if reason is None or provider.name not in self.peers:
                continue
            if self.has(provider=provider.name, status="unavailable"):
                continue
            for task in todo:
                job = task.job
                if job is not None and not provider.supports(
                    job.workload, job.op, job.dtype, self.rig.device
                ):
                    row = self._failed(task, provider.name, provider.formats[0], reason)
                    self.write(replace(row, status="unavailable"))
                    break

    def _failed(self, task: Task, provider: str, memory_format: str, why: str) -> Row:
        """A row for what the process could not say itself."""
        return Row(
            workload=task.name,
            suite=task.job.workload.suite if task.job is not None else task.op,
            op=task.op,
            dtype=task.dtype,
            format=memory_format,
            provider=provider,
            cache=self.rig.caches[0] if task.job is not None else "warm",
            status="failed",
            note=why[:300],
            time=_now(),
            precision="tf32" if task.dtype == "tf32" else "ieee",
            **asdict(self.machine),
        )

    # -- tuning and feedback --------------------------------------------------------------------

    def do_tune(self) -> None:
        """Searches tiles where the planner's plan lost its shoot-out, or of the named workloads."""
        path = self.out / "tuned" / file_of(self.device.name).name
        searched = tune.searched(path)
        jobs = [job for job in self._undecided() if str(job) not in searched]
        for i, job in enumerate(jobs):
            least, most = self.rig.search_seconds
            share = min(most, max(least, self.left_of("tune") / (len(jobs) - i)))
            if share > self.left_of("tune"):
                self.say(f"{len(jobs) - i} searches are left")
                break
            limit = min(share + 30, self.remaining + 2 * RESERVE)
            search = Search(job, self.device, share, frozenset(self.off))
            try:
                for outcome in self.ask(search, limit):
                    if isinstance(outcome, tune.Outcome):
                        self.say(str(outcome))
                        self.outcomes.append(outcome)
                        facts = asdict(self.machine) | {"time": _now()}
                        tune.update(path, self.device, [outcome], facts)
            except ProcessError as error:
                self.say(f"search of {job}: {error}")

    def _undecided(self) -> list[tune.Job]:
        """Searches, where a loss is largest first."""
        if "families" not in self.stages:
            calls = [call for task in self.tasks for call in self._calls(task)]
            jobs = [tune.Job(c.workload, c.op, c.dtype, c.format == "channels_last") for c in calls]
            return list(dict.fromkeys(jobs))
        lost: dict[tune.Job, float] = {}
        for row in self.has(status="ok", cache=self.rig.cold[0]):
            workload = self.rig.workload(row.workload)
            if row.provider.startswith(f"{OURS}@") and row.ratio_to and workload:
                job = tune.Job(workload, row.op, row.dtype, row.format == "channels_last")
                lost[job] = min(lost.get(job, math.inf), row.ratio_to)
        return sorted((job for job, ratio in lost.items() if ratio < 1.05), key=lost.__getitem__)

    def do_feedback(self) -> None:
        """What the measured times say of the model's constants, as data for the planner."""
        assert self.known is not None
        ceilings = self.known.ceilings
        device = calibrate.with_constants(self.device, ceilings)
        timed = [
            timed
            for row in self.has(status="ok", cache=self.rig.cold[0])
            if row.provider.partition("@")[0] == OURS and row.op in OPS
            if (workload := self.rig.workload(row.workload))
            for timed in calibrate.timed_by(row, workload, self.device, device)
        ]
        calls = [call for task in self.tasks for call in self._calls(task)]
        self.calibration = calibrate.calibration(self.device, self.machine, ceilings, timed)
        self.changed = calibrate.changed_plans(self.calibration, self.device, calls)
        calibrate.write(self.out / "calibration.json", self.calibration, self.changed)
        for line in self.calibration.lines():
            self.say(line)
        self.say(f"{len(self.changed)} of {len(calls)} plans change with it")

    def do_sanitize(self) -> None:
        """memcheck and racecheck on tiny calls, then Nsight Compute if it is asked for."""
        if self.rig.kind == "gpu":
            tools.sanitize(self.say, lambda: self.left_of("sanitize"))
            if self.ncu:
                tools.profile(self.out, self.say, lambda: self.remaining)

    # -- the end --------------------------------------------------------------------------------

    def finish(self) -> None:
        """Writes the report, and says what a person can act on."""
        text = "\n".join(self.summary())
        plots = self.remaining > -RESERVE and find_spec("matplotlib") is not None
        report.write(self.recorded, self.out, head=text, plots=plots)
        self.say(text)

    def summary(self) -> Iterator[str]:
        """Kernels that are off, families far from the model, losses, wins."""
        yield f"kernels off: {len(self.off)}"
        for (kernel, dtype), why in self.off.items():
            yield f"  {kernel} {dtype}: {why}"
        if self.calibration is not None:
            yield from self.calibration.lines()
            for change in self.changed[:10]:
                yield f"  plan changes: {change}"
        for outcome in self.outcomes:
            yield str(outcome)
        for processor in processors(self.recorded):
            cases = [case for case in processor.cases() if case.ratio is not None]
            losses = [case for case in cases if (case.ratio or 0) < 1]
            yield f"{processor.device}: slower in {len(losses)} of {len(cases)} cases"
            shown = [*losses[:LOSSES], *cases[len(losses) :][-WINS:]]
            for case in shown:
                row, best = case.ours, case.best
                yield (
                    f"  {case.ratio:6.2f}  {row.workload} {row.op} {row.dtype} {row.format} "
                    f"{row.ms:.4g} ms, {best.provider if best else ''} ({row.plan or ''})"
                )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gpu`, `all` and `tune`."""
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="only these")
    parser.add_argument("--minutes", type=float, default=9.0, help="budget (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("perf-results"), metavar="DIR")
    parser.add_argument(
        "--stage", nargs="+", dest="stages", choices=STAGES, metavar="STAGE", default=list(STAGES),
        help=f"of {', '.join(STAGES)}",
    )  # fmt: skip
    others = ["learn", "host", "startup"]
    suites, ops = [*SUITES, *others], [*OPS, *others]
    parser.add_argument("--suite", nargs="+", default=[], choices=suites, metavar="SUITE")
    parser.add_argument("--op", nargs="+", default=[], choices=ops, metavar="OP")
    dtypes = rows.CHOICES["dtype"]
    parser.add_argument("--dtype", nargs="+", default=[], choices=dtypes, metavar="DTYPE")
    peers = [p.name for p in PROVIDERS if p.name != OURS]
    parser.add_argument("--peer", nargs="*", choices=peers, metavar="PEER", help="only these peers")
    parser.add_argument("--ncu", action="store_true", help="profile six launches at the end")
    parser.add_argument("--list", action="store_true", help="print the rows in order and stop")


def main(options: argparse.Namespace) -> int:
    """Runs, or prints what would be run."""
    if not options.minutes > 0 or not math.isfinite(options.minutes):
        raise ValueError(f"--minutes must be positive, got {options.minutes}")
    unknown = sorted(set(options.workloads) - set(BY_NAME))
    if unknown:
        raise ValueError(
            f"no workload is called {unknown[0]}; `python -m tricorr.perf workloads` lists them"
        )
    rig = GpuRig() if torch.cuda.is_available() else CpuRig()
    if rig.kind == "cpu" and not options.list and "rows" not in options.stages:
        raise ValueError("PyTorch finds no GPU here: only `all` measures its CPU fallback")
    tasks = tasks_of(
        rig.kind,
        names=options.workloads,
        suites=options.suite,
        ops=options.op,
        dtypes=options.dtype,
        peers=options.peer,
    )
    if not tasks:
        why = "" if rig.kind == "gpu" else "; with no GPU only float32 is measured"
        raise ValueError(f"nothing to measure: no workload passes the filters{why}")
    if options.list:
        for task in tasks:
            print(f"{task.rank:6.2f}  {task}")
        return 0
    stages = options.stages if rig.kind == "gpu" else ["rows"]
    peers = tuple(p.name for p in PROVIDERS if p.name != OURS)
    chosen = peers if options.peer is None else tuple(options.peer)
    run = Run(rig, options.out, 60 * options.minutes, stages, tasks, chosen, ncu=options.ncu)
    try:
        run.all()
    except ProcessError as error:
        raise ValueError(f"the measuring process did not start: {error}") from error
    except KeyboardInterrupt:
        print(f"\nstopped: {len(run.recorded)} rows are in {options.out}; the same command goes on")
        return 130
    print(f"everything is in {options.out}; the same command goes on with {len(run.left)} jobs")
    if rig.kind == "cpu":
        print(
            "No GPU: these are times of PyTorch's CPU convolution behind tricorr's API, on scaled "
            "workloads; they say nothing of the kernels."
        )
    return 0
