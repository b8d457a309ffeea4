"""Measuring one job: every provider of one operator, right first, then timed in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch

from ...ops import backend
from ..model.planned import PlannedCall
from ..providers import (
    OURS,
    PROVIDERS,
    PYTORCH,
    TENSOR_DTYPES,
    Call,
    Operands,
    Provider,
    configure,
    make_operands,
)
from ..rows import Row
from ..workloads import Workload
from .ceilings import Ceilings
from .correctness import Truth, first_of, truth_of
from .machine import Clocks, Machine, machine
from .timers import (
    BUDGET,
    CpuTimer,
    GpuTimer,
    PoisonedError,
    Sampler,
    Timer,
    interleave,
    one_line,
    quantile,
    ratio_fields,
)


@dataclass(frozen=True)
class Job:
    """One operator of one workload, measured beside a group of providers.

    Attributes:
        workload: what to run.
        op, dtype: as in a row.
        group: of the providers that are compared with ours.
    """

    workload: Workload
    op: str
    dtype: str
    group: str = "core"

    def call(self, memory_format: str) -> PlannedCall:
        """The call of our kernels in a format, not planned yet."""
        return PlannedCall(self.workload, self.op, self.dtype, memory_format)


@dataclass
class Contender:
    """One provider in one format, on its way through a job."""

    provider: str
    format: str
    call: Call
    error: float
    bound: float
    rms: float = 0.0
    seconds: float = 0.0
    host: float | None = None
    peak: int | None = None


@dataclass
class Session:
    """State that the jobs of one process share.

    Attributes:
        timer: takes the times.
        machine: goes into every row.
        providers: all that take part.
        ceilings, clocks: None where they are not known.
        announce: called with (provider, format) before each step that may end the process.
        budget: as for interleave.
        now: the time, for rows.
    """

    timer: Timer
    machine: Machine
    providers: Sequence[Provider]
    ceilings: Ceilings | None = None
    clocks: Clocks | None = None
    announce: Callable[[str, str], None] = lambda provider, format: None
    budget: float = BUDGET
    now: Callable[[], datetime] = field(default=lambda: datetime.now(timezone.utc))

    def row(self, job: Job, provider: str, format: str, cache: str, **values: Any) -> Row:
        """A row of a job on this machine; `values` are its other fields."""
        workload = job.workload
        values |= {"dtype": job.dtype, "format": format, "cache": cache}
        return self.row_of(workload.name, workload.suite, job.op, provider, **values)

    def row_of(
        self,
        workload: str,
        suite: str,
        op: str,
        provider: str,
        dtype: str = "float32",
        **values: Any,
    ) -> Row:
        """A row of anything measured on this machine, by default warm and in NCHW."""
        defaults = {
            "format": "NCHW",
            "cache": "warm",
            "precision": "tf32" if dtype == "tf32" else "ieee",
            "time": self.now().isoformat(timespec="seconds"),
        }
        fields = {**asdict(self.machine), **defaults, **values}
        return Row(workload, suite, op, dtype, provider=provider, **fields)

    def failed(self, job: Job, provider: str, format: str, cache: str, why: object) -> Row:
        """The row of a provider that did not run."""
        note = why if isinstance(why, str) else one_line(why)
        return self.row(job, provider, format, cache, status="failed", note=note)


def local_session(budget: float = 0.1) -> Session:
    """A session in this process, for the small benchmarks."""
    if backend.interprets():
        raise ValueError("TRITON_INTERPRET is set: the interpreter's times say nothing; unset it")
    gpu = torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(1)  # more threads wait for each other wherever something else runs
    facts = machine("gpu" if gpu else "cpu")
    return Session(GpuTimer() if gpu else CpuTimer(), facts, PROVIDERS, budget=budget)


def contenders_of(
    job: Job, providers: Sequence[Provider], device: str
) -> list[tuple[Provider, str]]:
    """The (provider, format) pairs of a job; none outside "core" if only ours is left."""
    found = [
        (provider, format)
        for format in job.workload.formats
        for provider in providers
        if provider.group == job.group or provider.name == OURS
        if format in provider.formats
        if provider.available() is None
        if provider.supports(job.workload, job.op, job.dtype, device) is None
    ]
    peers = any(provider.name != OURS for provider, _ in found)
    return found if peers or job.group == "core" else []


def run_job(
    job: Job,
    session: Session,
    skip: Mapping[tuple[str, str], str] | None = None,
    caches: Sequence[str] | None = None,
) -> list[Row]:
    """All rows of a job.

    Args:
        job: what to measure.
        session: of this process.
        skip: (provider, format) that took a process down before, with the reason: not run again.
        caches: only these states; all of the timer's if None.

    Raises:
        PoisonedError: the process can measure no further; the last announced provider is to blame.
    """
    with torch.no_grad():
        return _run_job(job, session, skip or {}, caches or session.timer.caches)


def _run_job(
    job: Job, session: Session, skip: Mapping[tuple[str, str], str], caches: Sequence[str]
) -> list[Row]:
    timer, rows = session.timer, list[Row]()
    first = caches[0]
    configure(job.dtype, timer.device)
    ready: dict[tuple[str, str], Contender] = {}
    members = contenders_of(job, session.providers, timer.device)
    problems: dict[str, tuple[Operands, Truth] | Exception] = {}
    for provider, format in members:
        name = (provider.name, format)
        if name in skip:
            rows.append(session.failed(job, *name, first, skip[name]))
            continue
        session.announce(*name)
        try:
            if format not in problems:
                problems[format] = _problem(job, format, timer)
            found = problems[format]
            if isinstance(found, Exception):
                raise found
            contender = _checked(provider, *found)
            if contender.error > contender.bound:
                rows.append(_wrong(job, session, contender, first))
                continue
            contender.seconds = timer.seconds(contender.call)
            contender.host = timer.host_seconds(contender.call, contender.seconds)
            contender.peak = timer.peak_bytes(contender.call)
            ready[name] = contender
        except PoisonedError:
            raise
        except Exception as error:  # a provider may raise anything: it gets a row
            rows.append(session.failed(job, *name, first, error))
            timer.recover()
    for cache in caches:
        rows += _timed(job, session, ready, cache)
    ready.clear()
    problems.clear()
    timer.recover()
    if job.group != "core":  # ours was measured with "core"; here it is what peers are compared to
        rows = [row for row in rows if row.provider != OURS]
    return rows


def _problem(job: Job, format: str, timer: Timer) -> tuple[Operands, Truth] | Exception:
    """The tensors and the truth, or why there are none: then no provider can run."""
    try:
        problem = make_operands(job.workload, job.op, job.dtype, format, timer.device)
        return problem, truth_of(problem)
    except Exception as error:  # running out of memory, most of all
        timer.recover()
        return type(error)(f"the inputs or their check: {one_line(error)}")


def _checked(provider: Provider, problem: Operands, truth: Truth) -> Contender:
    """The provider's call, run once and compared with the truth."""
    call = provider.prepare(problem)
    dtype = TENSOR_DTYPES[problem.dtype][1]
    # An earlier, right result may still lie in the memory that this one gets.
    poison = torch.full(truth.shape, math.nan, dtype=dtype, device=problem.x.device)
    del poison
    result = call()
    error = truth.error(result, problem.precision)
    bound = truth.bound(first_of(result).dtype, problem.precision)
    rms = truth.rms_error(result) if math.isfinite(error) else math.inf
    return Contender(provider.name, problem.format, call, error, bound, rms)


def _wrong(job: Job, session: Session, contender: Contender, cache: str) -> Row:
    finite = math.isfinite(contender.error)
    note = f"error {contender.error:.3g} is above {contender.bound:.3g}"
    return session.row(
        job,
        contender.provider,
        contender.format,
        cache,
        status="wrong",
        note=note if finite else "not finite, or not of the right shape",
        error=contender.error if finite else None,
        error_bound=contender.bound,
    )


def _timed(
    job: Job, session: Session, ready: Mapping[tuple[str, str], Contender], cache: str
) -> list[Row]:
    """One row for each contender in one state of the caches."""
    timer, rows = session.timer, list[Row]()
    samplers: dict[tuple[str, str], Sampler] = {}

    def failed(name: tuple[str, str], error: Exception) -> None:
        rows.append(session.failed(job, *name, cache, error))
        timer.recover()

    for name, contender in ready.items():
        session.announce(*name)
        try:
            samplers[name] = timer.sampler(
                contender.call, cache, contender.seconds, contender.host or 0.0
            )
        except Exception as error:  # as above
            failed(name, error)
    if session.clocks is not None:
        session.clocks.start()
    announced = {name: _announced(session, name, sampler) for name, sampler in samplers.items()}
    seconds = {name: contender.seconds for name, contender in ready.items()}
    samples = interleave(announced, seconds, session.budget, failed)
    clock, throttle = session.clocks.read() if session.clocks is not None else (None, None)
    for name, taken in samples.items():
        ours = samples.get((OURS, name[1])) if name[0] != OURS else None
        numbers = _numbers(job, session, ready[name], taken, ours)
        peer = ready.get((PYTORCH, name[1]))
        if peer is not None and peer.rms > 0:
            numbers["error_to"] = ready[name].rms / peer.rms
        rows.append(
            session.row(
                job, *name, cache, status="ok", sm_clock=clock, throttle=throttle, **numbers
            )
        )
    return rows


def _announced(session: Session, name: tuple[str, str], sampler: Sampler) -> Sampler:
    def sample() -> float:
        session.announce(*name)
        return sampler()

    return sample


def _numbers(
    job: Job,
    session: Session,
    contender: Contender,
    samples: Sequence[float],
    ours: Sequence[float] | None,
) -> dict[str, Any]:
    """The fields of a row that come from samples."""
    g, ceilings = job.workload.geometry, session.ceilings
    image, other = TENSOR_DTYPES[job.dtype]
    moved = g.compulsory_bytes(image.itemsize, other.itemsize, other.itemsize)
    if job.workload.shared:
        moved -= (g.weight_numel - g.R * g.S) * other.itemsize
    flops = g.flops
    if job.op == "backward":
        moved, flops = moved + (g.x_numel + g.weight_numel) * other.itemsize, 2 * flops
    seconds = quantile(samples, 0.5)
    host = contender.host
    numbers: dict[str, Any] = {
        "note": "",
        "ms": seconds * 1e3,
        "ms_low": quantile(samples, 0.2) * 1e3,
        "ms_high": quantile(samples, 0.8) * 1e3,
        "samples": len(samples),
        "tflops": flops / seconds / 1e12,
        "gbps": moved / seconds / 1e9,
        "host_us": None if host is None else host * 1e6,
        "peak_bytes": contender.peak,
        "error": contender.error,
        "error_bound": contender.bound,
    }
    if ceilings is not None:
        numbers["roofline_fraction"] = ceilings.seconds(flops, moved, job.dtype) / seconds
        numbers["copy_gbps"] = ceilings.copy / 1e9
        numbers["matmul_tflops"] = ceilings.rate(job.dtype) / 1e12
    return numbers | ratio_fields(samples, ours)
