"""Ways to the kernel between two images: time and peak memory, each in a process of its own.

    tricorr-normal   learn_kernel, normal equations: exact
    tricorr-cg       learn_kernel, conjugate gradients until they stand still: exact
    tricorr-gd       learn_kernel, ten steps of gradient descent, its step size found on the way
    pytorch-loop     ten steps of the textbook's loop in eager PyTorch, the step size given
    scipy-lstsq      scipy.linalg.lstsq on the explicit patches, as people answer the question
    fft-division     spectrum over spectrum, regularised, on images continued by zeros

The images are random, in float32, the target exact, so that an exact way finds the kernel to
rounding; the error says how far off each is. FFT division is wrong at the border, where the target
is not what a periodic or a zero border would have given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import resident
from .learning_bench import STEPS, TOLERANCE, pytorch_loop

if TYPE_CHECKING:
    from .measure import Session
    from .rows import Row

SIZES, WINDOWS = (512, 4096), (3, 7, 15, 31)
#: A pixel of float64, and two matrices: the patches, and what LAPACK makes of them.
LSTSQ_BYTES = 16


def images(size: int, window: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, target and kernel."""
    from ..autograd.functional import corr2d

    random = torch.Generator().manual_seed(0)
    x = torch.rand(size, size, generator=random).to(device)
    true = torch.randn(window, window, generator=random).to(device)
    rows = max(1, 2**22 // (size * window))  # on a CPU all at once needs the memory measured here
    bands = [corr2d(x[i : i + rows + window - 1], true) for i in range(0, size - window + 1, rows)]
    return x, torch.cat(bands), true


def tricorr_way(solver: str, steps: int | None = None) -> Callable[..., torch.Tensor]:
    """learn_kernel by a solver."""

    def way(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
        from ..learning.learn import learn_kernel

        return learn_kernel(x, y, window, solver=solver, steps=steps, progress=False).weight

    return way


def eager_loop(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
    """The textbook's loop, the step size half of the largest for numbers uniform in [0, 1]."""
    curvature = 2 * y.numel() * (window * window / 4 + 1 / 12)
    return pytorch_loop(x, y, window, STEPS, 1 / curvature)


def lstsq_on_patches(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
    """A row of R * S pixels for each pixel of the target, and LAPACK."""
    from scipy.linalg import lstsq

    image = x.double().numpy(force=True)
    patches = np.lib.stride_tricks.sliding_window_view(image, (window, window))
    rows = patches.reshape(-1, window * window)
    target = y.double().numpy(force=True).ravel()
    found = lstsq(rows, target, overwrite_a=True, overwrite_b=True, check_finite=False)[0]
    return torch.tensor(found).reshape(window, window)


def fft_division(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
    """conj(Y / X), regularised, y continued by zeros to the size of x."""
    spectrum = torch.fft.rfft2(x.double())
    target = torch.fft.rfft2(y.double(), s=x.shape)
    power = spectrum.abs().square()
    ratio = target.conj() * spectrum / (power + 1e-3 * power.median())
    return torch.fft.irfft2(ratio, s=x.shape)[:window, :window]


WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "tricorr-normal": tricorr_way("normal"),
    "tricorr-cg": tricorr_way("cg"),
    "tricorr-gd": tricorr_way("gd", STEPS),
    "pytorch-loop": eager_loop,
    "scipy-lstsq": lstsq_on_patches,
    "fft-division": fft_division,
}
#: These stop after ten steps, wherever they are.
LOOPS = ("tricorr-gd", "pytorch-loop")


def measure(way: str, size: int, window: int) -> dict[str, Any]:
    """Seconds, peak bytes beside the images, and error of one call in this process."""
    torch.set_num_threads(1)
    on_gpu = torch.cuda.is_available() and way != "scipy-lstsq"
    device = "cuda" if on_gpu else "cpu"
    call = WAYS[way]
    small = images(4 * window + 32, window, device)
    call(small[0], small[1], window)  # what is loaded or built once is not counted
    x, y, true = images(size, window, device)
    before = _begin_on_gpu() if on_gpu else resident.start()
    started = time.perf_counter()
    found = call(x, y, window)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else resident.peak(before)
    error = float((found.to(true) - true).abs().max() / true.abs().max())
    return {"seconds": seconds, "peak": peak, "error": error, "device": device}


def _begin_on_gpu() -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def run(session: Session, way: str, size: int, window: int, limit: float, repeats: int = 1) -> Row:
    """The row of one way, from fresh processes."""
    name = f"ways-{size}x{size}-{window}x{window}"
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"

    def row(status: str, note: str, **values: Any) -> Row:
        values |= {"status": status, "note": f"{note}; {load}"}
        return session.row_of(name, "learn", "learn", way, **values)

    needed = (size - window + 1) ** 2 * window**2 * LSTSQ_BYTES
    if way == "scipy-lstsq" and needed > 0.8 * _available():
        return row("failed", f"not run: patches of {needed / 2e9:.0f} GB, and as much again")
    taken = []
    for _ in range(repeats):
        try:
            taken.append(_fresh(way, size, window, limit))
        except subprocess.TimeoutExpired:
            return row("failed", f"stopped after {limit:g} s")
        except RuntimeError as error:
            return row("failed", str(error))
    times = sorted(1e3 * t["seconds"] for t in taken)
    middle = median(times)
    facts: dict[str, Any] = {
        "peak_bytes": max(t["peak"] for t in taken),
        "error": taken[0]["error"],
        "steps": STEPS if way in LOOPS else None,
        "samples": len(times),
    }
    if way not in LOOPS and not taken[0]["error"] <= TOLERANCE:
        facts |= {"error_bound": TOLERANCE}
        return row("wrong", f"off by {taken[0]['error']:.2g} after {middle:.4g} ms", **facts)
    if way not in LOOPS:
        facts |= {"error_bound": TOLERANCE}
    note = f"one thread, {taken[0]['device']}"
    return row("ok", note, ms=middle, ms_low=times[0], ms_high=times[-1], **facts)


def _fresh(way: str, size: int, window: int, limit: float) -> dict[str, Any]:
    from .worker import child_environment

    command = [sys.executable, "-m", "tricorr.perf.learning_ways", way, str(size), str(window)]
    done = subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, timeout=limit, check=False
    )
    if done.returncode:
        raise RuntimeError(f"failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _available() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return float("inf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, nargs="+", default=SIZES, help="sides of the images")
    parser.add_argument("--window", type=int, nargs="+", default=WINDOWS, help="sides of windows")
    parser.add_argument("--way", nargs="+", default=list(WAYS), choices=WAYS, help="default: all")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one call")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each number")
    parser.add_argument("--out", type=Path, metavar="FILE", help="appends rows to this .jsonl")


def main(options: argparse.Namespace) -> int:
    from .bench import local_session
    from .rows import Writer

    session = local_session()
    writer = Writer(options.out) if options.out else None
    print(f"{'workload':24} {'way':15} {'seconds':>9} {'peak MB':>9} {'error':>8}  note")
    for size in options.size:
        for window in options.window:
            for way in options.way:
                row = run(session, way, size, window, options.limit, options.repeats)
                if writer:
                    writer.write(row)
                seconds = "-" if row.ms is None else f"{row.ms / 1e3:.3f}"
                peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
                error = "-" if row.error is None else f"{row.error:.1e}"
                line = f"{row.workload:24} {way:15} {seconds:>9} {peak:>9} {error:>8}  {row.note}"
                print(line, flush=True)
    if writer:
        writer.close()
    return 0


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
