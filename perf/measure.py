"""Measuring one job: every provider of one operator, right first, then timed in turn.

Contenders are timed A B A B: what drifts (clocks, temperature, other load) meets all of them alike,
and the ratio of two is taken within each turn. A timer turns a call into samples; there is one for
the GPU (events, flushed caches, CUDA graphs) and one for a CPU, whose clock can be replaced.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol, TypeVar

import torch

from ..ops import backend
from .correctness import Truth, truth_of
from .machine import Ceilings, Clocks, Machine, machine
from .providers import (
    OURS,
    PROVIDERS,
    PYTORCH,
    TENSOR_DTYPES,
    Operands,
    Provider,
    configure,
    make_operands,
)
from .rows import Row
from .workloads import Workload

#: Seconds spent on sampling all contenders of a job in one state of the caches.
BUDGET = 0.25
#: Turns that are taken at least and at most.
LEAST, MOST = 5, 50
#: Times its budget that a job may take, if its estimates were wrong.
OVERRUN = 8
#: A turn that takes longer than this is long enough for three of them to tell.
LONG_TURN = 0.5

K = TypeVar("K", bound=Hashable)
Sampler = Callable[[], float]


class PoisonedError(RuntimeError):
    """The device answers nothing any more: this process can measure no further."""


@dataclass(frozen=True)
class Job:
    """What is measured in one go.

    Attributes:
        workload: what to run.
        op, dtype: as in a row.
        group: which providers meet ours.
    """

    workload: Workload
    op: str
    dtype: str
    group: str = "core"


class Timer(Protocol):
    """Turns calls into seconds."""

    @property
    def device(self) -> str: ...

    @property
    def caches(self) -> tuple[str, ...]: ...

    def seconds(self, call: Callable[[], Any]) -> float:
        """A first estimate, after calls that warm up."""
        ...

    def sampler(self, call: Callable[[], Any], cache: str, seconds: float, host: float) -> Sampler:
        """What measures the call once in that state of the caches, in seconds per call."""
        ...

    def host_seconds(self, call: Callable[[], Any], seconds: float) -> float | None:
        """Host time to issue a call, None where a call is host time."""
        ...

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """Memory that a call needs besides its inputs, None where it is not known."""
        ...

    def recover(self) -> None:
        """After an error. Raises PoisonedError if there is no going on."""
        ...


@dataclass
class CpuTimer:
    """Wall-clock time. The clock can be replaced: a test knows the delays."""

    clock: Callable[[], float] = time.perf_counter
    device: str = "cpu"
    caches: tuple[str, ...] = ("warm",)
    #: A sample repeats short calls up to this time.
    sample_seconds: float = 0.002

    def seconds(self, call: Callable[[], Any]) -> float:
        call()
        start = self.clock()
        call()
        return self.clock() - start

    def sampler(self, call: Callable[[], Any], cache: str, seconds: float, host: float) -> Sampler:
        repeats = _repeats(self.sample_seconds, seconds, 100)

        def sample() -> float:
            start = self.clock()
            for _ in range(repeats):
                call()
            return (self.clock() - start) / repeats

        return sample

    def host_seconds(self, call: Callable[[], Any], seconds: float) -> float | None:
        return None

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        return None

    def recover(self) -> None:
        gc.collect()


class GpuTimer:
    """Device time between events.

    cold: caches flushed before each call, and the device kept busy with that until the host has
    issued the call. warm: calls one after the other, after a first that is not timed. graph: the
    replay of a CUDA graph that holds some calls, after a first replay that is not timed. Long calls
    need no first: their start is a small part of them.
    """

    device = "cuda"
    caches = ("cold", "warm", "graph")

    def __init__(self) -> None:
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
        self.flushed = torch.empty(max(2**28, 4 * cache), dtype=torch.uint8, device="cuda")
        self.flush_seconds = 1e-4
        self.flush_seconds = self.seconds(self.flushed.zero_)

    def seconds(self, call: Callable[[], Any]) -> float:
        for _ in range(2):
            call()
        return self._between(call)

    def sampler(self, call: Callable[[], Any], cache: str, seconds: float, host: float) -> Sampler:
        if cache == "cold":
            # Issuing a flush takes the host a part of the time that it takes the device.
            flushes = min(20, 1 + math.ceil(host / (0.7 * self.flush_seconds)))

            def cold() -> float:
                for _ in range(flushes):
                    self.flushed.zero_()
                return self._between(call)

            return cold
        repeats, long = _repeats(0.002, seconds, 20), seconds > 0.01
        if cache == "warm":

            def several() -> None:
                for _ in range(repeats):
                    call()

            def warm() -> float:
                if not long:
                    call()
                return self._between(several) / repeats

            return warm
        graph = self._captured(call, repeats)

        def replay() -> float:
            if not long:
                graph.replay()
            return self._between(graph.replay) / repeats

        return replay

    def host_seconds(self, call: Callable[[], Any], seconds: float) -> float | None:
        repeats = _repeats(0.02, seconds, 20)
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        issued = time.perf_counter() - start
        torch.cuda.synchronize()
        return issued / repeats

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before

    def recover(self) -> None:
        gc.collect()
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.zeros(1, device="cuda").item()
        except RuntimeError as error:
            raise PoisonedError(_one_line(error)) from error

    def _between(self, call: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _captured(self, call: Callable[[], Any], repeats: int) -> torch.cuda.CUDAGraph:
        # What a call sets up on its first run on a stream must not be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                call()
        return graph


def median_seconds(timer: Timer, call: Callable[[], object], samples: int = 15) -> float:
    """Median warm time of a call, for ceilings."""
    sample = timer.sampler(call, "warm", timer.seconds(call), 0.0)
    return quantile([sample() for _ in range(samples)], 0.5)


def interleave(
    samplers: Mapping[K, Sampler],
    seconds: Mapping[K, float],
    budget: float = BUDGET,
    on_error: Callable[[K, Exception], None] | None = None,
) -> dict[K, list[float]]:
    """Samples of all, in turns: A B A B. Who raises drops out, if `on_error` does not raise.

    Args:
        samplers: each takes one sample, in seconds.
        seconds: an estimate for each, from which the number of turns follows.
        budget: seconds for all turns together, as far as the estimates hold.
        on_error: is told of an exception.
    """
    turn = sum(seconds[name] for name in samplers)
    turns = max(3 if turn > LONG_TURN else LEAST, _repeats(budget, turn, MOST))
    samples: dict[K, list[float]] = {name: [] for name in samplers}
    start = time.monotonic()
    for taken in range(turns):
        # The estimates may be far off: they do not decide alone how long a job takes.
        if taken >= LEAST and time.monotonic() - start > OVERRUN * budget:
            break
        for name in list(samples):
            try:
                samples[name].append(samplers[name]())
            except Exception as error:
                if on_error is None:
                    raise
                on_error(name, error)
                del samples[name]
    return samples


def quantile(samples: Sequence[float], fraction: float) -> float:
    """By linear interpolation between the two nearest."""
    ordered = sorted(samples)
    at = fraction * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    # In this form it is exact where both are equal: low <= median <= high then holds.
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


@dataclass
class Contender:
    """One provider in one format, on its way through a job."""

    provider: str
    format: str
    call: Callable[[], torch.Tensor]
    error: float
    bound: float
    rms: float = 0.0
    seconds: float = 0.0
    host: float | None = None
    peak: int | None = None


@dataclass
class Session:
    """What the jobs of one process share.

    Attributes:
        timer: takes the times.
        machine: goes into every row.
        providers: all that take part.
        ceilings, clocks: None where they are not known.
        announce: is told (provider, format) before each step that may take the process down.
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
        note = why if isinstance(why, str) else _one_line(why)
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
    """Who can take part in a job, in which formats; ours alone is no contest outside "core"."""
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
        session: with what.
        skip: (provider, format) that took a process down before, with the reason: not run again.
        caches: only these states; all of the timer's if None.

    Raises:
        PoisonedError: the process can measure no further. What was announced last is to blame.
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
        except Exception as error:
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
    except Exception as error:
        timer.recover()
        return type(error)(f"the inputs or their check: {_one_line(error)}")


def _checked(provider: Provider, problem: Operands, truth: Truth) -> Contender:
    """The provider's call, run once and compared with the truth."""
    call = provider.prepare(problem)
    dtype = TENSOR_DTYPES[problem.dtype][1]
    # An earlier, right result may still lie in the memory that this one gets.
    poison = torch.full(truth.shape, math.nan, dtype=dtype, device=problem.x.device)
    del poison
    result = call()
    error = truth.error(result)
    bound = truth.bound(result.dtype, problem.precision)
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
        except Exception as error:
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
    seconds = quantile(samples, 0.5)
    host = contender.host
    numbers: dict[str, Any] = {
        "note": "",
        "ms": seconds * 1e3,
        "ms_low": quantile(samples, 0.2) * 1e3,
        "ms_high": quantile(samples, 0.8) * 1e3,
        "samples": len(samples),
        "tflops": g.flops / seconds / 1e12,
        "gbps": moved / seconds / 1e9,
        "host_us": None if host is None else host * 1e6,
        "peak_bytes": contender.peak,
        "error": contender.error,
        "error_bound": contender.bound,
    }
    if ceilings is not None:
        numbers["roofline_fraction"] = ceilings.seconds(g.flops, moved, job.dtype) / seconds
        numbers["copy_gbps"] = ceilings.copy / 1e9
        numbers["matmul_tflops"] = ceilings.rate(job.dtype) / 1e12
    return numbers | ratio_fields(samples, ours)


def ratio_fields(samples: Sequence[float], ours: Sequence[float] | None) -> dict[str, float]:
    """ratio_to, ratio_low and ratio_high of samples taken in the same turns as ours."""
    if not ours or len(ours) != len(samples):  # one of the two dropped out
        return {}
    ratios = [theirs / our for theirs, our in zip(samples, ours, strict=True)]
    names = {"ratio_low": 0.2, "ratio_to": 0.5, "ratio_high": 0.8}
    return {name: quantile(ratios, fraction) for name, fraction in names.items()}


def _repeats(budget: float, seconds: float, most: int) -> int:
    return max(1, min(most, round(budget / max(seconds, 1e-9))))


def reason_of(error: BaseException) -> str:
    """What went wrong first, in a line: a compiler's errors have the reason in their last one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:300]


def _one_line(error: object) -> str:
    """An exception in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return (text if text.startswith(name) else f"{name}: {text}")[:300]
