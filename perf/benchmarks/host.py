"""Host cost of a call: Python's share of it, with the kernels themselves left out.

Calls take the way that they take on a GPU, down to Triton's C launcher, in whose place a function
stands that does nothing. Arguments, geometry, autograd, allocation and the arguments of the launch
remain; the launcher and the driver come on top of that (tests/launched/host_cost.py times the
former too). PyTorch's own call is timed whole, on CPU, on an image small enough for its work
not to matter: on a GPU its launches add to it too.
"launch", "autograd", "corr2d" and "Conv2D" each have the one before in their path; the registered
operator, which they call only where a compiler traces them, stands beside, and so does a launch
that is not prepared (ops/launch/prepared.py), as the first call of its kind. Each number is the
least CPU time of repeated runs, taken in turns: other load only adds to it.
"""

from __future__ import annotations

import argparse
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from ...autograd.function import correlate
from ...autograd.functional import corr2d
from ...autograd.modules import Conv2D
from ...ops import backend, geometry_of
from ...ops.launch.formats import empty_in_format
from ...ops.plan.device import Device
from ...ops.schema import steps_of

if TYPE_CHECKING:
    from ..rows import Row
    from ..timing.measure import Session

#: Calls that are timed together, and how often in turns.
CALLS, REPEATS = 1000, 15


class _Unlaunched:
    """A kernel that takes everything and does nothing."""

    def __init__(self, kernel: Any) -> None:
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: tuple[int]) -> Callable[..., Any]:
        return self._launch

    def _launch(self, *arguments: Any, **options: Any) -> _Unlaunched:
        return self

    pre_run_hooks: tuple[Any, ...] = ()


def _launched_nowhere(compiled: Any, grid: int, arguments: Sequence[Any]) -> Any:
    """A launch past Triton's JIT whose last step does nothing."""
    from ...ops.launch.compiled import DirectLaunch, Place

    at_run_time = [value for value in arguments if not isinstance(value, str | bool)]
    pointers = [
        (place, value.tensor, value.offset)
        for place, value in enumerate(at_run_time)
        if isinstance(value, Place)
    ]
    return DirectLaunch(_nothing, (grid, 1, 1), (), at_run_time, pointers, [], False)


def _nothing(*arguments: Any) -> None:
    pass


@contextmanager
def without_work() -> Iterator[None]:
    """Operators that do all but run their kernels."""
    from ... import kernels
    from ...ops.launch import prepared

    with ExitStack() as stack:

        def replace(module: Any, name: str, value: Any) -> None:
            stack.enter_context(patch.object(module, name, value))

        for name in kernels.__all__:
            if hasattr(kernel := getattr(kernels, name), "arg_names"):
                replace(kernels, name, _Unlaunched(kernel))
        replace(backend, "CPU_DEVICE", Device("a GPU without work", "none", 4))
        replace(prepared, "direct_launch", _launched_nowhere)
        replace(prepared, "current_stream", lambda device: 0)
        prepared.forget_prepared()
        stack.callback(prepared.forget_prepared)
        yield


def paths() -> dict[str, Callable[[], Any]]:
    """Calls by name, from PyTorch's to each layer of ours."""
    from ...ops.launch import entry as launch
    from ...ops.launch.prepared import forget_prepared

    x = torch.rand(1, 1, 6, 8)
    weight, learned = torch.rand(1, 1, 1, 2), torch.rand(1, 1, 1, 2, requires_grad=True)
    geometry = geometry_of((1, 1, 6, 8), (1, 1, 1, 2))
    registered = (x, weight, None, None, "none", *steps_of(geometry), "ieee")
    theirs, ours = torch.nn.Conv2d(1, 1, (1, 2)), Conv2D(1, 1, (1, 2))

    def unprepared() -> torch.Tensor:
        forget_prepared()
        return launch.fprop(x, weight, None, geometry)

    return {
        "F.conv2d": lambda: F.conv2d(x, weight),
        "F.conv2d, with gradients": lambda: F.conv2d(x, learned),
        "nn.Conv2d, with gradients": lambda: theirs(x),
        "allocation": lambda: empty_in_format(geometry.y_shape, x.dtype, like=x),
        "launch": lambda: launch.fprop(x, weight, None, geometry),
        "launch, not prepared": unprepared,
        "registered operator": lambda: torch.ops.tricorr.fprop(*registered),
        "autograd": lambda: correlate(x, weight, None, geometry, "ieee"),
        "autograd, with gradients": lambda: correlate(x, learned, None, geometry, "ieee"),
        "corr2d": lambda: corr2d(x, weight),
        "corr2d, with gradients": lambda: corr2d(x, learned),
        "Conv2D, with gradients": lambda: ours(x),
    }


def least(
    paths: dict[str, Callable[[], Any]], calls: int = CALLS, repeats: int = REPEATS
) -> dict[str, float]:
    """Microseconds of CPU time of one call, by path: the least of runs that are taken in turns."""
    timers = {name: timeit.Timer(call, timer=time.thread_time) for name, call in paths.items()}
    found: dict[str, list[float]] = {name: [] for name in timers}
    for timer in timers.values():
        timer.timeit(max(2, calls // 10))
    for _ in range(repeats):
        for name, timer in timers.items():
            found[name].append(timer.timeit(calls) / calls * 1e6)
    return {name: min(times) for name, times in found.items()}


def measure(calls: int = CALLS, repeats: int = REPEATS) -> dict[str, float]:
    """Microseconds of one call, by path, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with without_work():
            return least(paths(), calls, repeats)
    finally:
        torch.set_num_threads(threads)


def peer_of(path: str) -> str:
    """PyTorch's call of the same kind."""
    if path.startswith("Conv2D"):
        return "nn.Conv2d, with gradients"
    return "F.conv2d, with gradients" if "gradients" in path else "F.conv2d"


def run(session: Session, calls: int, repeats: int) -> Iterator[Row]:
    """A row for each path."""
    found = measure(calls, repeats)
    for path, microseconds in found.items():
        theirs = path.startswith(("F.", "nn."))
        yield session.row_of(
            f"host-{path.replace(',', '').replace(' ', '-')}",
            "host",
            "host",
            "pytorch" if theirs else "tricorr",
            status="ok",
            note=f"least CPU time, no work; {microseconds / found[peer_of(path)]:.2f} of PyTorch's",
            ms=microseconds / 1e3,
            samples=repeats,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--calls", type=int, default=CALLS, help="calls timed together")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often, in turns")


def main(options: argparse.Namespace) -> int:
    """Prints microseconds per call and their ratio to PyTorch's call of the same kind."""
    if options.calls < 1 or options.repeats < 1:
        raise ValueError("--calls and --repeats must be at least 1")
    found = measure(options.calls, options.repeats)
    print("host time of one call on this CPU, our kernels left out")
    for name, microseconds in found.items():
        ratio = microseconds / found[peer_of(name)]
        print(f"{name:28} {microseconds:8.1f} us {ratio:6.2f} x {peer_of(name)}")
    return 0
