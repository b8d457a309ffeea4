"""The stages of a run, in their order; each is a function of the run.

check: tiny calls of every kernel, each alone in a process. A kernel that is wrong, hangs or does
    not compile is off for the rest of the run, and its calls take another family.
families: families, formats, programs and register limits where the model has them close.
rows: the table of workloads, one of every regime in all passes before a second of any.
tune: a search of tiles where another family won.
feedback: constants and a multiplier for each family, as data for the planner.
sanitize: memcheck and racecheck of the tiny calls.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from ...ops.plan.tuned import file_of
from ..model.calibration import calibration_of, changed_plans, samples, with_constants, write
from ..model.planned import PlannedCall, describe
from ..providers import OURS
from ..rows import Row
from ..timing.measure import Job, contenders_of
from . import checks, sanitizer
from . import tune as tuning
from .processes import ProcessError
from .requests import HostCost, Learn, Measure, Search, Start, serve_check
from .rig import Entrant
from .run import RESERVE, STAGES, Run, now
from .shootouts import shootouts
from .tasks import Task

#: Tiny calls that run side by side.
SIDE_BY_SIDE = 8


def carry_out(run: Run) -> None:
    """Every stage that is asked for, then the report, whatever happened before."""
    stages = {
        "check": check,
        "families": families,
        "rows": rows,
        "tune": tune,
        "feedback": feedback,
        "sanitize": sanitize,
    }
    try:
        run.begin()
        queue_builds(run)
        run.measure_environment()
        for name in STAGES:
            if name in run.stages:
                run.say(f"{time.monotonic() - run.start:5.0f} s  {name}")
                stages[name](run)
    finally:
        run.end()


def queue_builds(run: Run) -> None:
    """Queues everything that will be launched, in the order in which it will be."""
    if run.rig.kind != "gpu":
        return
    for name, check in _open_checks(run).items() if "check" in run.stages else ():
        run.builds.put(name, check)
    for job, entrants in _entrants(run) if "families" in run.stages else ():
        for entrant in entrants:
            call = replace(job.call(entrant.format), plan=entrant.plan)
            run.builds.put((call.kernel, call.dtype), call)
    for call in _calls(run) if "rows" in run.stages else ():
        if (plan := run.plan_of(call)) is not None:
            run.builds.put((plan.kernel, call.dtype), replace(call, plan=plan))


def _calls(run: Run) -> list[PlannedCall]:
    """The calls of our kernels among the rows that are wanted, not planned yet."""
    jobs = (task.job for task in run.tasks if task.job is not None and task.group == "core")
    return [job.call(memory_format) for job in jobs for memory_format in job.workload.formats]


def _notes(run: Run) -> checks.Notes:
    return checks.Notes(run.out / "checks.jsonl")


def _open_checks(run: Run) -> dict[str, PlannedCall]:
    """Tiny calls without an outcome yet, by name. Kernels that failed before are turned off."""
    wanted = {
        str(check): check
        for check in checks.checks(run.device)
        if run.rig.is_checked(check.kernel, check.dtype)
    }
    for name, note in _notes(run).of(run.machine).items():
        check = wanted.pop(name, None)
        if check is not None and note:
            run.turn_off(check.kernel, check.dtype, f"{note} ({check})")
    return wanted


def check(run: Run) -> None:
    """Runs the tiny calls as they are built, and turns off the kernels that are not right."""
    notes, waiting = _notes(run), _open_checks(run)
    wanted = len(waiting)
    tiny = run.pool(SIDE_BY_SIDE, run.rig.check_limit, serve_check, reuse=False)

    def found(check: PlannedCall, note: str) -> None:
        if (check.kernel, check.dtype) not in run.off:
            notes.write(check, note, run.machine)
        if note:
            run.turn_off(check.kernel, check.dtype, f"{note} ({check})")

    while (waiting or len(tiny)) and run.left_of("check") > 0:
        for name, problem in run.built(time.monotonic() + 0.2):
            check = waiting.pop(name)
            if problem:
                found(check, f"does not compile: {problem}")
            elif (check.kernel, check.dtype) not in run.off:
                tiny.put(check, check)
        for check, answer in tiny.answers(time.monotonic() + 0.05):
            hangs = isinstance(answer, ProcessError) and answer.timed_out
            found(check, f"hangs: {answer}" if hangs else str(answer))
    tiny.end()
    made, late = wanted - len(waiting), len(waiting)
    run.say(f"{made} tiny calls, {len(run.off)} kernels off, {late} not begun")


def _entrants(run: Run) -> Iterator[tuple[Job, list[Entrant]]]:
    """Jobs of the shoot-out without kernels that are off; the first entrant left is ours."""
    for job, entrants in shootouts(run.device, run.rig.workload):
        on = [e for e in entrants if not run.is_off(e.plan, job.dtype)]
        for memory_format in job.workload.formats:
            mine = [e for e in on if e.format == memory_format]
            if mine and mine[0].name != OURS:
                on[on.index(mine[0])] = replace(mine[0], name=OURS)
        yield job, on


def families(run: Run) -> None:
    """Several plans of a call side by side, with cold caches; see shootouts.py."""
    for job, entrants in _entrants(run):
        list(run.built(time.monotonic()))
        if run.left_of("families") < run.costs["core"]:
            return
        measured = run.has(workload=job.workload.name, op=job.op, dtype=job.dtype)
        names = {(row.provider, row.format, row.plan) for row in measured}
        if any((e.name, e.format, describe(e.plan)) not in names for e in entrants):
            with run.costing("core"):
                request = Measure(job, tuple(entrants), ("pytorch",), run.rig.cold)
                run.measure(request, run.rig.job_limit)


def rows(run: Run) -> None:
    """Rows of the table, until the time is over."""
    todo = [task for task in run.tasks if not _is_done(run, task)]
    _note_missing(run, todo)
    for task in todo:
        list(run.built(time.monotonic()))
        if run.costs[task.group] > run.left_of("rows"):
            run.left.append(task)
            continue
        with run.costing(task.group):
            done = _job(run, task, task.job) if task.job else _no_job(run, task)
        if not done:
            run.left.append(task)
    run.say(f"{len(todo) - len(run.left)} jobs measured, {len(run.left)} are left")


def _job(run: Run, task: Task, job: Job) -> bool:
    """Measures a job of the table. False if the time ran out."""
    entrants = []
    for memory_format in job.workload.formats:
        call = job.call(memory_format)
        first, plan = run.first_plan(call), run.plan_of(call)
        if plan is None:
            why = f"every kernel for it is off: {run.off[first.kernel, job.dtype]}"
            run.write(run.failed(task, OURS, memory_format, why))
            return True
        if plan != first or not run.rig.by_public_call:
            entrants.append(Entrant(OURS, memory_format, plan))
    return run.measure(Measure(job, tuple(entrants), run.peers), run.rig.job_limit)


def _no_job(run: Run, task: Task) -> bool:
    """Measures learning, host cost or the start-up. False if the time ran out."""
    requests: dict[str, Any] = {"learn": Learn(task.name), "host": HostCost(), "startup": Start()}
    limit = 2 * run.rig.job_limit
    timeout = max(1.0, min(limit, run.remaining + RESERVE / 2))
    try:
        for answer in run.ask(requests[task.op], timeout):
            if isinstance(answer, Row):
                run.write(answer)
    except ProcessError as error:
        if error.timed_out and timeout < limit:
            return False
        run.write(run.failed(task, OURS, "NCHW", str(error)))
    return True


def _is_done(run: Run, task: Task) -> bool:
    """Whether the rows of a task are there, ours by the plan that would be taken now."""
    mine, job = run.has(op=task.op), task.job
    if job is None:
        return any(row.workload == task.name or task.op != "learn" for row in mine)
    have = {
        (row.provider, row.format, row.plan if row.provider == OURS else None)
        for row in mine
        if (row.workload, row.dtype) == (task.name, task.dtype)
        if row.cache == run.rig.caches[-1] or row.status != "ok"
    }
    wanted = set()
    members = [p for p in run.rig.providers if p.name in (OURS, *run.peers)]
    for provider, memory_format in contenders_of(job, members, run.rig.device):
        text = None
        if provider.name == OURS:
            if job.group != "core":
                continue
            plan = run.plan_of(job.call(memory_format))
            text = None if plan is None or run.rig.kind == "cpu" else describe(plan)
        wanted.add((provider.name, memory_format, text))
    return wanted <= have


def _note_missing(run: Run, todo: Sequence[Task]) -> None:
    """A row for each provider that is not there, at the first job it would have met."""
    for provider in run.rig.providers:
        reason = provider.available()
        if reason is None or provider.name not in run.peers:
            continue
        if run.has(provider=provider.name, status="unavailable"):
            continue
        for task in todo:
            job = task.job
            if job and not provider.supports(job.workload, job.op, job.dtype, run.rig.device):
                row = run.failed(task, provider.name, provider.formats[0], reason)
                run.write(replace(row, status="unavailable"))
                break


def tune(run: Run) -> None:
    """Searches tiles where the planner's plan lost its shoot-out, or of the named workloads.

    A call whose planned kernel is off waits until that is right: it could hang the search.
    """
    path = run.out / "tuned" / file_of(run.device.name).name
    searched = tuning.searched(path)
    jobs = [
        job
        for job in _undecided(run)
        if job.name not in searched
        if not run.is_off(tuning.table_plan(job, run.device), job.dtype)
    ]
    for i, job in enumerate(jobs):
        least, most = run.rig.search_seconds
        share = min(most, max(least, run.left_of("tune") / (len(jobs) - i)))
        if share > run.left_of("tune"):
            run.say(f"{len(jobs) - i} searches are left")
            break
        search = Search(job, run.device, share, frozenset(run.off))
        try:
            for outcome in run.ask(search, min(share + 30, run.remaining + 2 * RESERVE)):
                if isinstance(outcome, tuning.Outcome):
                    run.say(str(outcome))
                    run.outcomes.append(outcome)
                    facts = asdict(run.machine) | {"time": now()}
                    tuning.update(path, run.device, [outcome], facts)
        except ProcessError as error:
            run.say(f"search of {job.name}: {error}")


def _undecided(run: Run) -> list[PlannedCall]:
    """Searches: where the shoot-out was lost by most first, or without one all that are wanted."""
    if "families" not in run.stages:
        return list(dict.fromkeys(_calls(run)))
    lost: dict[PlannedCall, float] = {}
    for row in run.has(status="ok", cache=run.rig.cold[0]):
        workload = run.rig.workload(row.workload)
        if row.provider.startswith(f"{OURS}@") and row.ratio_to and workload:
            job = PlannedCall(workload, row.op, row.dtype, row.format)
            lost[job] = min(lost.get(job, math.inf), row.ratio_to)
    return sorted((job for job, ratio in lost.items() if ratio < 1.05), key=lost.__getitem__)


def feedback(run: Run) -> None:
    """Writes calibration.json: how the measured times differ from the model."""
    rates = {} if run.ceilings is None else run.ceilings.constants()
    constants = with_constants(run.device, rates)
    found = samples(run.has(), run.device, constants, run.rig.workload)
    if not found:
        run.say("no row is of a plan: nothing to calibrate")
        return
    calls = _calls(run)
    run.calibration = calibration_of(found, rates)
    run.changed = changed_plans(run.calibration, run.device, calls)
    write(run.out / "calibration.json", run.calibration, run.changed)
    for line in run.calibration.lines():
        run.say(line)
    run.say(f"{len(run.changed)} of {len(calls)} plans change with it")


def sanitize(run: Run) -> None:
    """compute-sanitizer on tiny calls, where it is installed."""
    if run.rig.kind == "gpu":
        sanitizer.sanitize(run.say, lambda: run.left_of("sanitize"))
