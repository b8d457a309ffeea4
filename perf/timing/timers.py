"""Timers turn a call into seconds, on a GPU or a CPU; samples are taken in turns.

Contenders are sampled A B A B: drift (clocks, temperature, other load) meets all of them alike, and
the ratio of two is taken within each turn.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

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
    """The device does not answer any more: this process can measure no further."""


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
        """A function that times the call once in that state of the caches, in seconds."""
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
            raise PoisonedError(one_line(error)) from error

    def _between(self, call: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _captured(self, call: Callable[[], Any], repeats: int) -> torch.cuda.CUDAGraph:
        # The set-up of a first call on a stream must not be captured.
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


def median_seconds(timer: Timer, call: Callable[[], object], cache: str = "warm") -> float:
    """Median time of a call, for ceilings."""
    sample = timer.sampler(call, cache, timer.seconds(call), 0.0)
    return quantile([sample() for _ in range(15)], 0.5)


def interleave(
    samplers: Mapping[K, Sampler],
    seconds: Mapping[K, float],
    budget: float = BUDGET,
    on_error: Callable[[K, Exception], None] | None = None,
) -> dict[K, list[float]]:
    """Samples of all, in turns: A B A B. A sampler that raises drops out if `on_error` returns.

    Args:
        samplers: each takes one sample, in seconds.
        seconds: an estimate for each, from which the number of turns follows.
        budget: seconds for all turns together, if the estimates hold.
        on_error: called with the name and the exception.
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
            except Exception as error:  # a provider may raise anything
                if on_error is None:
                    raise
                on_error(name, error)
                del samples[name]
    return samples


def quantile(samples: Sequence[float], fraction: float) -> float:
    """A quantile, by linear interpolation between the two nearest samples."""
    ordered = sorted(samples)
    at = fraction * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    # In this form it is exact where both are equal: low <= median <= high then holds.
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def ratio_fields(samples: Sequence[float], ours: Sequence[float] | None) -> dict[str, float]:
    """ratio_to, ratio_low and ratio_high of samples taken in the same turns as ours."""
    if not ours or len(ours) != len(samples):  # one of the two dropped out
        return {}
    ratios = [theirs / our for theirs, our in zip(samples, ours, strict=True)]
    names = {"ratio_low": 0.2, "ratio_to": 0.5, "ratio_high": 0.8}
    return {name: quantile(ratios, fraction) for name, fraction in names.items()}


def _repeats(budget: float, seconds: float, most: int) -> int:
    return max(1, min(most, round(budget / max(seconds, 1e-9))))


def cause_of(error: BaseException) -> str:
    """The first cause in one line; a compiler's error has its reason in the last line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:300]


def one_line(error: object) -> str:
    """An exception in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return (text if text.startswith(name) else f"{name}: {text}")[:300]
