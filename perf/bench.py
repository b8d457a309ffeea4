"""`python -m tricorr.perf all`: every row there is time for, the most valuable first.

Jobs run in a process of their own, which is started again after a crash. Each row is on the disk
before the next job begins; what is there already is not measured again; the run ends inside its
budget. With no GPU the same jobs run scaled down on PyTorch's CPU fallback, labelled "cpu".
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch

from . import learning, rows
from .machine import Machine
from .measure import CpuTimer, GpuTimer, Job, contenders_of
from .providers import OURS, PROVIDERS, Provider
from .rows import Row
from .worker import Worker, WorkerError
from .workloads import OPS, SUITES, Workload, select

#: How much later a group's jobs come, in priorities: compilers take long.
GROUPS = {"core": 0.0, "compile": 1.0, "max-autotune": 2.0}
#: First guesses of a job's seconds, by kind and group; what was measured replaces them.
GUESSES = {
    "gpu": {"core": 4.0, "compile": 15.0, "max-autotune": 40.0, "learn": 10.0, "startup": 60.0},
    "cpu": {"core": 1.0, "compile": 1.0, "max-autotune": 1.0, "learn": 5.0, "startup": 40.0},
}
#: A job that takes longer than this failed.
JOB_LIMIT = 150.0
#: A job may end the process so often at most.
MOST_RESTARTS = 8
#: Seconds of the budget that are kept for the end.
RESERVE = 3.0
#: Seconds between lines of progress where there is no terminal.
LINE_SECONDS = 30.0


class BenchError(RuntimeError):
    """Something a user can mend; the message is one line."""


class Executor(Protocol):
    """What runs requests: a Worker, or a fake in tests."""

    machine: dict[str, Any] | None

    def run(self, request: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """A line of the plan: a convolution's job, a size of learning, or the start-up.

    Attributes:
        request: what the worker is sent.
        job: of a convolution, else None.
        rank: the lowest is measured first.
    """

    request: dict[str, Any] = field(hash=False)
    job: Job | None
    rank: float

    @property
    def group(self) -> str:
        return self.job.group if self.job is not None else self.request["op"]

    def __str__(self) -> str:
        parts = [self.request["workload"]]
        if self.job is not None:
            parts += [self.job.op, self.job.dtype, *([self.group] * (self.group != "core"))]
        return " ".join(parts)


def tasks_of(
    kind: str,
    *,
    suites: Sequence[str] = (),
    ops: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    providers: Sequence[Provider] = PROVIDERS,
) -> list[Task]:
    """All tasks of a machine, in the order of their value; empty filters let all through."""
    found = []
    for position, workload in _positions(select(s for s in suites if s in SUITES)):
        if suites and workload.suite not in suites:
            continue
        item = workload if kind == "gpu" else workload.scaled()
        # A CPU has neither TF32 nor a reason to measure 16 bits.
        kinds = workload.dtypes if kind == "gpu" else ("float32",)
        for i, dtype in enumerate(kinds):
            for j, op in enumerate(OPS):
                if op not in workload.ops or (op != "fprop" and dtype == "uint8"):
                    continue
                if (ops and op not in ops) or (dtypes and dtype not in dtypes):
                    continue
                for group, later in GROUPS.items():
                    if group != "core" and (i > 0 or kind == "cpu"):
                        continue
                    job = Job(item, op, dtype, group)
                    if contenders_of(job, providers, "cuda" if kind == "gpu" else "cpu"):
                        rank = workload.priority + i + j / 3 + later + position / 100
                        found.append(Task(_request(job), job, rank))
    if not dtypes or "float32" in dtypes:
        if (not ops or "learn" in ops) and (not suites or "learn" in suites):
            for i, name in enumerate(learning.names(kind)):
                found.append(Task({"workload": name, "op": "learn"}, None, 0.3 + i / 4))
        if (not ops or "startup" in ops) and (not suites or "startup" in suites):
            # After the first of every suite, before the second dtypes and the compilers.
            found.append(Task({"workload": "startup", "op": "startup"}, None, 0.95))
    return sorted(found, key=lambda task: task.rank)


def _positions(workloads: Iterable[Workload]) -> Iterator[tuple[int, Workload]]:
    """Each with its place in its suite, so that every suite's first comes before any second."""
    count: Counter[str] = Counter()
    for workload in workloads:
        yield count[workload.suite], workload
        count[workload.suite] += 1


def _request(job: Job) -> dict[str, Any]:
    return {
        "workload": job.workload.name,
        "op": job.op,
        "dtype": job.dtype,
        "group": job.group,
        "skip": [],
    }


@dataclass
class Run:
    """One run through the tasks.

    Attributes:
        worker: runs them.
        providers: that take part.
        write: takes each row as it comes.
        recorded: rows that need not be measured again.
        seconds: the budget.
        clock: seconds; can be replaced in tests.
        show: is told of each task before it runs, with the number of tasks and the seconds left.
    """

    worker: Executor
    providers: Sequence[Provider]
    write: Callable[[Row], None]
    recorded: list[Row]
    seconds: float
    clock: Callable[[], float] = time.monotonic
    show: Callable[[Task, int, float], None] = lambda task, left, seconds: None

    def __post_init__(self) -> None:
        self.start = self.clock()
        self.costs: dict[str, float] = {}
        self.left: list[Task] = []

    @property
    def remaining(self) -> float:
        return self.seconds - RESERVE - (self.clock() - self.start)

    def all(self, tasks: Sequence[Task]) -> None:
        """Runs what is not recorded yet and fits; the rest is in `left` then."""
        facts = Machine(**self.worker.machine) if self.worker.machine else None
        assert facts is not None, "the worker has said where it runs"
        todo = [task for task in tasks if not self._is_done(task, facts)]
        self.costs = dict(GUESSES[facts.kind])
        self._note_missing(todo, facts)
        for number, task in enumerate(todo):
            if self.costs[task.group] > self.remaining:
                self.left.append(task)
                continue
            self.show(task, len(todo) - number, self.remaining)
            start = self.clock()
            if not self._one(task, facts):
                self.left.append(task)
            # A moving average in which one very long job does not rule out all short ones after it:
            # a job that overruns the budget is ended, and comes first in the next run.
            guess, cost = self.costs[task.group], self.clock() - start
            self.costs[task.group] = 0.7 * guess + 0.3 * min(cost, 4 * guess)

    def _one(self, task: Task, facts: Machine) -> bool:
        """Runs one task, again without whoever took the process down. False if time ran out."""
        skip: list[list[str]] = []
        written: set[rows.Key] = set()
        for _ in range(MOST_RESTARTS):
            at = None
            timeout = max(1.0, min(JOB_LIMIT, self.remaining + RESERVE / 2))
            try:
                for answer in self.worker.run({**task.request, "skip": skip}, timeout):
                    if "at" in answer:
                        at = answer["at"]
                        continue
                    row = rows.from_json(json.dumps(answer["row"]))
                    if row.key not in written:
                        self.write(row)
                        self.recorded.append(row)
                        written.add(row.key)
                return True
            except WorkerError as error:
                if error.timed_out and timeout < JOB_LIMIT:
                    return False  # the budget's end, nobody's fault
                if at is None or [*at, str(error)] in skip or task.job is None:
                    row = _failed(task, facts, OURS, "NCHW", str(error))
                    self.write(row)
                    self.recorded.append(row)
                    return True
                skip.append([*at, str(error)])
        return True

    def _is_done(self, task: Task, facts: Machine) -> bool:
        mine = [
            row
            for row in self.recorded
            if row.workload == task.request["workload"] or task.group == row.op == "startup"
            if (row.device, row.revision, row.op)
            == (facts.device, facts.revision, task.request["op"])
        ]
        if task.job is None:
            return bool(mine)
        job = task.job
        last = _caches(facts.kind)[-1]
        have = {
            (row.provider, row.format)
            for row in mine
            if row.dtype == job.dtype and (row.cache == last or row.status != "ok")
        }
        wanted = {
            (provider.name, format)
            for provider, format in contenders_of(job, self.providers, _device(facts.kind))
            if job.group == "core" or provider.name != OURS
        }
        return wanted <= have

    def _note_missing(self, todo: Sequence[Task], facts: Machine) -> None:
        """A row for each provider that is not there, at the first job it would have met."""
        jobs = [task for task in todo if task.job is not None]
        for provider in self.providers:
            reason = provider.available()
            known = any(
                (row.provider, row.device, row.revision, row.status)
                == (provider.name, facts.device, facts.revision, "unavailable")
                for row in self.recorded
            )
            if reason is None or known:
                continue
            for task in jobs:
                assert task.job is not None
                job = task.job
                if provider.supports(job.workload, job.op, job.dtype, _device(facts.kind)) is None:
                    row = _failed(task, facts, provider.name, provider.formats[0], reason)
                    row = replace(row, status="unavailable")
                    self.write(row)
                    self.recorded.append(row)
                    break


def _failed(task: Task, facts: Machine, provider: str, format: str, why: str) -> Row:
    """A row for what the worker could not say itself."""
    job = task.job
    return Row(
        workload=task.request["workload"],
        suite=job.workload.suite if job is not None else task.request["op"],
        op=task.request["op"],
        dtype=job.dtype if job is not None else "float32",
        format=format,
        provider=provider,
        cache=_caches(facts.kind)[0] if job is not None else "warm",
        status="failed",
        note=why,
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        precision="tf32" if job is not None and job.dtype == "tf32" else "ieee",
        **asdict(facts),
    )


def _caches(kind: str) -> tuple[str, ...]:
    return GpuTimer.caches if kind == "gpu" else CpuTimer().caches


def _device(kind: str) -> str:
    return "cuda" if kind == "gpu" else "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=8.0, help="budget (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("perf-results"), metavar="DIR")
    suites = [*SUITES, "learn", "startup"]
    parser.add_argument("--suite", nargs="+", default=[], choices=suites, metavar="SUITE")
    ops = [*OPS, "learn", "startup"]
    parser.add_argument("--op", nargs="+", default=[], choices=ops, metavar="OP")
    dtypes = rows.CHOICES["dtype"]
    parser.add_argument("--dtype", nargs="+", default=[], choices=dtypes, metavar="DTYPE")
    peers = [p.name for p in PROVIDERS if p.name != OURS]
    parser.add_argument("--peer", nargs="*", choices=peers, metavar="PEER", help="only these peers")
    parser.add_argument("--list", action="store_true", help="print the plan and stop")


def main(options: argparse.Namespace) -> int:
    if not options.minutes > 0 or not math.isfinite(options.minutes):
        raise BenchError(f"--minutes must be positive, got {options.minutes}")
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    chosen = [p for p in PROVIDERS if options.peer is None or p.name in (OURS, *options.peer)]
    tasks = tasks_of(
        kind, suites=options.suite, ops=options.op, dtypes=options.dtype, providers=chosen
    )
    if not tasks:
        why = "" if kind == "gpu" else "; with no GPU only float32 is measured"
        raise BenchError(f"nothing to measure: no workload passes the filters{why}")
    if options.list:
        for task in tasks:
            print(f"{task.rank:6.2f}  {task}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    recorded = rows.read(options.out)
    worker = Worker(options.out / "worker.log", [p.name for p in chosen])
    before = len(recorded)
    with rows.Writer(options.out / rows.FILE) as writer:
        try:
            left = _measure(worker, chosen, writer, recorded, tasks, 60 * options.minutes)
        except KeyboardInterrupt:
            file = options.out / rows.FILE
            print(f"\nstopped: {len(recorded)} rows are in {file}; the same command goes on")
            return 130
        print(_summary(recorded[before:], len(left)))
    print(f"rows in {options.out / rows.FILE}")
    if kind == "cpu":
        print(
            "No GPU: these are times of PyTorch's CPU convolution behind tricorr's API, on scaled "
            "workloads; they say nothing of the kernels."
        )
    return 0


def _measure(
    worker: Worker,
    providers: Sequence[Provider],
    writer: rows.Writer,
    recorded: list[Row],
    tasks: Sequence[Task],
    seconds: float,
) -> list[Task]:
    """Runs the tasks on one worker; returns those that did not fit."""
    start = time.monotonic()
    try:
        worker.hello(max(30.0, seconds))
        bar = _bar(len(tasks))
        shown = -LINE_SECONDS

        def show(task: Task, left: int, remaining: float) -> None:
            nonlocal shown
            now = time.monotonic()
            if bar is not None:
                bar.n = len(tasks) - left
                bar.set_description(str(task))
                bar.set_postfix_str(f"{remaining / 60:.1f} min left")
            elif now - shown >= LINE_SECONDS:
                shown = now
                print(f"{left} jobs and {remaining / 60:.1f} min left: {task}", flush=True)

        spent = time.monotonic() - start
        run = Run(worker, providers, writer.write, recorded, seconds - spent, show=show)
        try:
            run.all(tasks)
        finally:
            if bar is not None:
                bar.close()
        return run.left
    except WorkerError as error:
        raise BenchError(f"the measuring process did not start: {error}") from error
    finally:
        worker.close()


def _bar(total: int) -> Any:
    """A progress bar; None where there is no terminal or no tqdm, and lines are printed instead."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    bar = tqdm(total=total, unit="job", disable=None)
    return None if bar.disable else bar


def _summary(measured: Sequence[Row], left: int) -> str:
    """What a run did, in a few lines."""
    counts = Counter(row.status for row in measured)
    words = ", ".join(f"{counts[s]} {s}" for s in rows.CHOICES["status"] if counts[s])
    lines = [f"{len(measured)} rows ({words or 'none new'}), {left} jobs left for a next run"]
    for row in measured:
        if row.status != "ok":
            where = f"{row.workload} {row.op} {row.dtype} {row.format}"
            lines.append(f"  {row.status:11} {row.provider:12} {where}: {row.note}")
    return "\n".join(lines)
