"""A run: its budget, its processes, the kernels that are off, and the rows that are written.

Every result is on the disk before the next measurement begins, and the run ends inside its budget.
stages.py has the stages.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ops.plan import choose
from .. import report, rows
from ..compared import processors
from ..model.planned import PlannedCall, alternatives, describe
from ..providers import OURS, PROVIDERS
from ..rows import Row
from .processes import Child, Pool, ProcessError
from .requests import At, Done, Environment, Here, Measure, serve_builds
from .requests import serve as serve_measurements
from .rig import GpuRig
from .tasks import Task

if TYPE_CHECKING:
    from ...ops.plan.problem import Plan
    from ..model.calibration import Calibration
    from .tune import Outcome

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
#: Times that one job may end the measuring process.
MOST_RESTARTS = 4
#: Losses, wins and plans that change with the calibration, that the last lines show at most.
LOSSES, WINS, CHANGES = 15, 10, 10


@dataclass
class Run:
    """One run; everything that it finds is in `out`.

    Attributes:
        rig: the device, as processes reach it.
        out: directory of results.
        seconds: the budget.
        stages: of STAGES.
        tasks: the rows that are wanted, in order.
        peers: names of the peers that take part.
        say: prints a line.
        left: tasks for which there was no time.
        off: why a kernel is left out in a dtype, by (kernel, dtype).
    """

    rig: GpuRig
    out: Path
    seconds: float
    stages: Sequence[str] = STAGES
    tasks: Sequence[Task] = ()
    peers: tuple[str, ...] = tuple(p.name for p in PROVIDERS if p.name != OURS)
    say: Callable[[str], None] = print
    left: list[Task] = field(default_factory=list)
    off: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = self.out / "worker.log"
        path = self.out / rows.FILE
        self.recorded = rows.read(path) if path.exists() else []
        self.writer = rows.Writer(path)
        self.costs = dict(GUESSES[self.rig.kind])
        self.child = Child(self.log, serve_measurements, self.rig, None)
        self.pools: list[Pool] = []
        self.early: list[tuple[Any, Any]] = []
        self.plans: dict[PlannedCall, Plan] = {}
        self.calibration: Calibration | None = None
        self.changed: list[dict[str, str]] = []
        self.outcomes: list[Outcome] = []

    @property
    def remaining(self) -> float:
        """Seconds until the report has to be written."""
        return self.seconds - RESERVE - (time.monotonic() - self.start)

    def left_of(self, stage: str) -> float:
        """Seconds in which a stage may begin something."""
        share = UNTIL[stage] if set(self.stages) - {stage} else 1.0
        return min(self.remaining, share * self.seconds - (time.monotonic() - self.start))

    @contextlib.contextmanager
    def costing(self, group: str) -> Iterator[None]:
        """Learns the seconds of a group's job; one very long job does not rule out the next."""
        start = time.monotonic()
        yield
        guess, cost = self.costs[group], time.monotonic() - start
        self.costs[group] = 0.7 * guess + 0.3 * min(cost, 4 * guess)

    def end(self) -> None:
        """Ends all processes, then writes the report."""
        for pool in self.pools:
            pool.end()
        self.child.end()
        self.writer.close()
        self.finish()

    # -- the device and its processes -----------------------------------------------------------

    def begin(self) -> None:
        """Starts the measuring process, which says where it runs, and the pool of builders."""
        here = self.child.answer(time.monotonic() + min(120.0, max(5.0, self.remaining)))
        assert isinstance(here, Here)
        m = self.machine = here.machine
        self.device = here.device
        self.say(f"{m.device}, driver {m.driver}, PyTorch {m.torch}, Triton {m.triton}")
        builders = max(1, (os.cpu_count() or 1) - 2)
        self.builds = self.pool(builders, self.rig.build_limit, serve_builds, self.device)

    def pool(
        self, size: int, limit: float, serve: Any, *arguments: Any, reuse: bool = True
    ) -> Pool:
        """A pool of processes that ends with the run; see Pool."""
        made = Pool(size, limit, lambda: Child(self.log, serve, self.rig, *arguments), reuse)
        self.pools.append(made)
        return made

    def measure_environment(self) -> None:
        """Waits for the ceilings of the device; builds go on meanwhile."""
        deadline = time.monotonic() + max(5.0, self.remaining)
        while not self.child.start().poll(0.1) and time.monotonic() < deadline:
            self.early += self.builds.answers(time.monotonic())
        known = self.child.answer(deadline)
        assert isinstance(known, Environment)
        self.ceilings = known.ceilings
        if known.ceilings is not None:
            self.say(str(known.ceilings))
        if known.sm_clock is not None:
            self.say(f"SM clock {known.sm_clock} MHz, throttle reasons {known.throttle}")
        self.child.arguments = (self.rig, known)

    def built(self, until: float) -> Iterator[tuple[Any, Any]]:
        """(name, "" or the compiler's message) of tiny calls whose builds are done.

        The key of any other build is (kernel, dtype), which is off if it does not compile.
        """
        early, self.early = self.early, []
        for key, problem in [*early, *self.builds.answers(until)]:
            if not isinstance(key, tuple):
                yield key, problem
            elif problem:
                kernel, dtype = key
                self.turn_off(kernel, dtype, f"does not compile: {problem}")

    def first_plan(self, call: PlannedCall) -> Plan:
        """The planner's plan of a call that is not planned yet."""
        if call not in self.plans:
            self.plans[call] = choose.plan(call.problem(self.device))
        return self.plans[call]

    def plan_of(self, call: PlannedCall) -> Plan | None:
        """The same without the kernels that are off; None where none is left."""
        first = self.first_plan(call)
        if not self.is_off(first, call.dtype):
            return first
        others = alternatives(call.problem(self.device))
        return next((plan for plan in others if not self.is_off(plan, call.dtype)), None)

    def is_off(self, plan: Plan, dtype: str) -> bool:
        """Whether the plan's kernel is left out."""
        return (plan.kernel, dtype) in self.off

    def turn_off(self, kernel: str, dtype: str, why: str) -> None:
        """Leaves a kernel out for the rest of the run, in one dtype."""
        if (kernel, dtype) not in self.off:
            self.off[kernel, dtype] = why
            self.say(f"OFF {kernel} {dtype}: {why}")

    # -- measuring and rows ---------------------------------------------------------------------

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
        """Writes the rows of a job, again without the provider that took the process down.

        False if the run's time was over first.
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
                            plan = self.plan_of(job.call(answer.format))
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
                    plan = self.plan_of(job.call(at.format))
                if plan is not None:  # no other plan with that kernel is tried
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

    def failed(self, task: Task, provider: str, memory_format: str, why: str) -> Row:
        """A row for a provider whose process could not write one."""
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
            time=now(),
            precision="tf32" if task.dtype == "tf32" else "ieee",
            **asdict(self.machine),
        )

    # -- the end --------------------------------------------------------------------------------

    def finish(self) -> None:
        """Writes the report and prints its summary."""
        text = "\n".join(self.summary())
        report.write(self.recorded, self.out, head=text)
        self.say(text)

    def summary(self) -> Iterator[str]:
        """Families far from the model and what follows; last, kernels off, losses and wins."""
        if self.calibration is not None:
            yield from self.calibration.lines()
            for change in self.changed[:CHANGES]:
                yield f"  plan changes: {change['call']}: {change['was']} -> {change['now']}"
        yield from map(str, self.outcomes)
        yield f"kernels off: {len(self.off)}"
        for (kernel, dtype), why in self.off.items():
            yield f"  {kernel} {dtype}: {why}"
        for processor in processors(self.recorded):
            cases = [case for case in processor.cases() if case.ratio is not None]
            losses = [case for case in cases if (case.ratio or 0) < 1]
            yield f"{processor.device}: slower in {len(losses)} of {len(cases)} cases"
            for case in [*losses[:LOSSES], *cases[len(losses) :][-WINS:]]:
                row, best = case.ours, case.best
                yield (
                    f"  {case.ratio:6.2f}  {row.workload} {row.op} {row.dtype} {row.format} "
                    f"{row.ms:.4g} ms, {best.provider if best else ''} ({row.plan or ''})"
                )


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
