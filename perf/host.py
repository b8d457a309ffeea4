"""What a call costs the host: Python's share of it, with the work itself left out.

The operators are replaced by an empty allocation of their result, so what remains is arguments,
geometry, autograd and dispatch: on a GPU this runs beside the device, on a CPU before the work.
PyTorch's own call is timed whole, on an image small enough for its work not to matter. "autograd",
"corr2d" and "Conv2D" each have the one before in their path; the registered operator, which they
call only where a compiler traces them, stands beside. Medians of repeated runs, taken in turns.
"""

from __future__ import annotations

import argparse
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from ..autograd.function import correlate
from ..autograd.functional import corr2d
from ..autograd.modules import Conv2D
from ..ops import Geometry, direct, geometry_of, registration
from ..ops.formats import empty_in_format

#: Calls that are timed together, and how often in turns.
CALLS, REPEATS = 1000, 15


@contextmanager
def without_work() -> Iterator[None]:
    """Operators that allocate their result and leave it at that."""
    fprop = direct.fprop

    def stub(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry,
        precision: str = "ieee",
        activation: str = "none",
    ) -> torch.Tensor:
        return empty_in_format(geometry.y_shape, weight.dtype, like=x)

    direct.fprop = stub
    try:
        yield
    finally:
        direct.fprop = fprop


def paths() -> dict[str, Callable[[], Any]]:
    """Calls by name, from PyTorch's to each layer of ours."""
    x = torch.rand(1, 1, 6, 8)
    weight, learned = torch.rand(1, 1, 1, 2), torch.rand(1, 1, 1, 2, requires_grad=True)
    geometry = geometry_of((1, 1, 6, 8), (1, 1, 1, 2))
    theirs, ours = torch.nn.Conv2d(1, 1, (1, 2)), Conv2D(1, 1, (1, 2))
    return {
        "F.conv2d": lambda: F.conv2d(x, weight),
        "F.conv2d, with gradients": lambda: F.conv2d(x, learned),
        "nn.Conv2d, with gradients": lambda: theirs(x),
        "allocation": lambda: empty_in_format(geometry.y_shape, x.dtype, like=x),
        "registered operator": lambda: registration.fprop(x, weight, None, geometry),
        "autograd": lambda: correlate(x, weight, None, geometry, "ieee"),
        "autograd, with gradients": lambda: correlate(x, learned, None, geometry, "ieee"),
        "corr2d": lambda: corr2d(x, weight),
        "corr2d, with gradients": lambda: corr2d(x, learned),
        "Conv2D, with gradients": lambda: ours(x),
    }


def measure(calls: int = CALLS, repeats: int = REPEATS) -> dict[str, float]:
    """Median microseconds of one call, by path."""
    with without_work():
        timers = {name: timeit.Timer(call) for name, call in paths().items()}
        found: dict[str, list[float]] = {name: [] for name in timers}
        for timer in timers.values():
            timer.timeit(max(1, calls // 10))
        for _ in range(repeats):
            for name, timer in timers.items():
                found[name].append(timer.timeit(calls) / calls * 1e6)
    return {name: median(times) for name, times in found.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--calls", type=int, default=CALLS, help="calls timed together")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often, in turns")


def main(options: argparse.Namespace) -> int:
    """Prints microseconds per call and their ratio to PyTorch's call of the same kind."""
    if options.calls < 1 or options.repeats < 1:
        raise ValueError("--calls and --repeats must be at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = measure(options.calls, options.repeats)
    finally:
        torch.set_num_threads(threads)
    print("host time of one call on this CPU, the work of our operators left out")
    for name, microseconds in found.items():
        peer = "F.conv2d, with gradients" if "with" in name else "F.conv2d"
        peer = "nn.Conv2d, with gradients" if name.startswith("Conv2D") else peer
        print(f"{name:28} {microseconds:8.1f} us {microseconds / found[peer]:6.2f} x {peer}")
    return 0
