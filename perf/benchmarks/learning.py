"""Learning the kernel between two images: time, error, and memory of images on disk.

    tricorr-normal   learn_kernel, normal equations: exact
    tricorr-gd       learn_kernel, ten steps of gradient descent, its step size found on the way
    pytorch-loop     ten steps of the textbook's loop in eager PyTorch, the step size given
    scipy-lstsq      scipy.linalg.lstsq on the explicit patches, the usual answer: exact
    fft-toeplitz     normal equations from the autocorrelation by transforms, as if without a border
    numpy-shifts     normal equations from products of shifted images, in NumPy: exact

`turns` times these in turns, `peers` other tasks beside other libraries (`learning_peers.py`), and
`stream` learns from two images on disk that are read a few rows at a time. Images are random
float32 and the target is exact, so that an exact method finds the kernel to rounding.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...autograd.functional import corr2d
from ...learning.accumulator import KernelAccumulator
from ...learning.learn import learn_kernel
from ...learning.streaming import accumulate
from ..providers import configure
from ..rows import Row, Writer
from ..timing.measure import Session, local_session
from . import learning_peers
from .learning_peers import Contest, rows_of

#: (side of the image, side of the window) of `learn` on a GPU, and on a CPU.
SIZES = {
    "gpu": ((512, 3), (2048, 3), (2048, 7), (8192, 3), (64, 3)),
    "cpu": ((64, 3), (512, 3), (512, 7), (512, 15), (512, 31), (2048, 15)),
}
#: Steps of the loops, which stop there wherever they are.
STEPS = 10
#: Largest error of an exact way, relative to the kernel's largest element.
TOLERANCE = 1e-3
#: Rows of an image that are made and written at a time.
BAND = 128


def learned(solver: str, steps: int | None = None) -> Callable[..., torch.Tensor]:
    """learn_kernel by a solver."""

    def way(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
        return learn_kernel(x, y, window, solver=solver, steps=steps, progress=False).weight

    return way


def pytorch_loop(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
    """The textbook's loop: a layer, a squared error, a step along the gradient.

    The step is half of the largest stable one for pixels uniform in [0, 1].
    """
    step_size = 1 / (2 * y.numel() * (window * window / 4 + 1 / 12))
    images, target = x[None, None], y[None, None]
    with torch.enable_grad():
        weight = torch.zeros(1, 1, window, window, device=x.device, requires_grad=True)
        for _ in range(STEPS):
            loss = ((F.conv2d(images, weight) - target) ** 2).sum()
            loss.backward()
            assert weight.grad is not None
            with torch.no_grad():
                weight -= step_size * weight.grad
            weight.grad = None
        return weight.detach()[0, 0]


def lstsq_on_patches(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
    """LAPACK on an explicit matrix: a row of R * S pixels for each pixel of the target."""
    from scipy.linalg import lstsq

    image = x.double().numpy(force=True)
    patches = np.lib.stride_tricks.sliding_window_view(image, (window, window))
    rows = patches.reshape(-1, window * window)
    target = y.double().numpy(force=True).ravel()
    found = lstsq(rows, target, overwrite_a=True, overwrite_b=True, check_finite=False)[0]
    return torch.tensor(found).reshape(window, window)


def fft_toeplitz(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
    """Sums over lags of all of x, by SciPy, as the normal matrix; prediction and residual too."""
    import scipy.fft
    import scipy.linalg

    image, target = x.double().numpy(), y.double().numpy()
    size = [scipy.fft.next_fast_len(n + window - 1, real=True) for n in image.shape]
    spectrum, other = (scipy.fft.rfft2(a, size, workers=1) for a in (image, target))
    lags = scipy.fft.irfft2(spectrum * spectrum.conj(), size, workers=1)
    moments = scipy.fft.irfft2(spectrum * other.conj(), size, workers=1)[:window, :window]
    steps = np.arange(window)[:, None] - np.arange(window)
    gram = lags[steps[:, None, :, None], steps[None, :, None, :]].reshape(window**2, window**2)
    factor = scipy.linalg.cho_factor(gram)
    kernel = scipy.linalg.cho_solve(factor, moments.ravel()).reshape(window, window)
    taps = scipy.fft.rfft2(kernel, size, workers=1).conj()
    prediction = scipy.fft.irfft2(spectrum * taps, size, workers=1)
    prediction[: target.shape[0], : target.shape[1]] -= target
    return torch.from_numpy(kernel)


def numpy_shifts(x: torch.Tensor, y: torch.Tensor, window: int) -> torch.Tensor:
    """A product of shifted images for each element of the normal matrix; the residual too."""
    image, target = x.double().numpy(), y.double().numpy()
    P, Q = target.shape
    views = [image[r : r + P, s : s + Q] for r in range(window) for s in range(window)]
    gram = np.empty((len(views), len(views)))
    for i, view in enumerate(views):
        for j in range(i, len(views)):
            gram[i, j] = gram[j, i] = np.einsum("ij,ij->", view, views[j])
    kernel = np.linalg.solve(gram, [np.einsum("ij,ij->", view, target) for view in views])
    residual = -target
    for element, view in zip(kernel, views, strict=True):
        residual += element * view
    return torch.from_numpy(kernel.reshape(window, window))


WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "tricorr-normal": learned("normal"),
    "tricorr-gd": learned("gd", STEPS),
    "pytorch-loop": pytorch_loop,
    "scipy-lstsq": lstsq_on_patches,
    "fft-toeplitz": fft_toeplitz,
    "numpy-shifts": numpy_shifts,
}
#: Peers of the normal equations on a CPU, by the largest window that they have; explicit patches of
#: larger images take gigabytes.
PEERS = {
    3: ("numpy-shifts", "scipy-lstsq"),
    7: ("fft-toeplitz", "scipy-lstsq"),
    31: ("fft-toeplitz",),
}


def images(size: int, window: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, target and kernel."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(size, size, generator=random).to(device)
    true = torch.randn(window, window, generator=random).to(device)
    rows = max(1, 2**22 // (size * window))  # in bands: a CPU unfolds them, which takes memory
    bands = [corr2d(x[i : i + rows + window - 1], true) for i in range(0, size - window + 1, rows)]
    return x, torch.cat(bands), true


def error_of(found: torch.Tensor, true: torch.Tensor) -> float:
    """Largest deviation over the kernel's largest element."""
    return float((found.to(true) - true).abs().max() / true.abs().max())


def names(kind: str) -> list[str]:
    """The workloads of `learn` on a machine."""
    return [f"learn-{size}x{size}-{window}x{window}" for size, window in SIZES[kind]]


def run(name: str, session: Session) -> Iterator[Row]:
    """One size of `learn`, warm: descent beside the loop, the normal equations beside a peer."""
    _, image, sides = name.split("-")
    size, window = (int(part.partition("x")[0]) for part in (image, sides))
    x, y, true = images(size, window, session.timer.device)
    configure("float32", session.timer.device)
    exact = next(peers for side, peers in PEERS.items() if window <= side)
    for ours, peers, bound, steps in (
        ("tricorr-gd", ("pytorch-loop",), None, STEPS),
        ("tricorr-normal", exact if session.machine.kind == "cpu" else (), TOLERANCE, None),
    ):
        calls = {way: partial(WAYS[way], x, y, window) for way in (ours, *peers)}
        first = ours, calls.pop(ours)
        contest = Contest(name, true, first, calls, bound, "float32", steps)
        yield from rows_of(contest, session)


def stream(session: Session, size: int, window: int, directory: Path, progress: bool) -> Row:
    """The row of a kernel learned from two .npy files, which are there for that time only."""
    true = torch.randn(window, window, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory(dir=directory) as place:
        x, y = write_images(Path(place), size, true)
        on_disk = x.stat().st_size + y.stat().st_size
        before = resident()
        started = time.perf_counter()
        sums = KernelAccumulator(window)
        accumulate(sums, x, y, device=session.timer.device, progress=progress)
        found = sums.solve().weight
        seconds = time.perf_counter() - started
        peak = peak_since(before)
    error = error_of(found, true)
    right = error <= TOLERANCE / 10
    note = f"{on_disk / 2**20:.0f} MiB on disk; peak is of the host; {_load()}"
    return session.row_of(
        f"stream-{size}x{size}-{window}x{window}",
        "learn",
        "learn",
        "tricorr-stream",
        status="ok" if right else "wrong",
        note=note if right else f"off by {error:.2g}; {note}",
        ms=seconds * 1e3 if right else None,
        samples=1,
        peak_bytes=peak,
        error=error,
        error_bound=TOLERANCE / 10,
    )


def write_images(directory: Path, size: int, true: torch.Tensor) -> tuple[Path, Path]:
    """Random x, and y = corr2d(x, true), written band by band."""
    random = torch.Generator().manual_seed(0)
    window, last = len(true), size - len(true) + 1
    paths = directory / "x.npy", directory / "y.npy"
    with paths[0].open("wb") as x_file, paths[1].open("wb") as y_file:
        for file, shape in ((x_file, (size, size)), (y_file, (last, last))):
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        held = torch.empty(0, size)
        for first in range(0, size, BAND):
            band = torch.rand(min(BAND, size - first), size, generator=random)
            x_file.write(band.numpy().tobytes())
            held = torch.cat([held, band])
            if len(held) >= window:
                y_file.write(corr2d(held, true).numpy().tobytes())
                held = held[len(held) - window + 1 :]
    return paths


def resident() -> int:
    """Bytes resident now, where a peak is counted from; the largest ever without a /proc."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to VmRSS
    except OSError:
        return _largest_ever()
    return _status("VmRSS")


def peak_since(before: int) -> int:
    """Bytes above `before`, which `resident` gave, at the worst moment since."""
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return _largest_ever()


def _largest_ever() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m tricorr.perf learn`."""
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    kinds.add_parser("turns", help="learn_kernel beside the loop, warm, in turns")
    kinds.add_parser("peers", help="fields, constraints, masks, predictions and stars beside peers")
    disk = kinds.add_parser("stream", help="from two images on disk, by default 1 GiB each")
    disk.add_argument("--size", type=int, default=16384, help="side of the images (16384)")
    disk.add_argument("--window", type=int, default=5, help="side of the window (5)")
    disk.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="for the files")
    for kind in kinds.choices.values():
        kind.add_argument("--out", type=Path, metavar="FILE", help="appends rows to this .jsonl")


def main(options: argparse.Namespace) -> int:
    """Measures, prints and appends the rows."""
    session = local_session()
    writer = Writer(options.out) if options.out else None
    print(
        f"{'workload':24} {'way':15} {'ms':>9} {'over ours':>9} {'peak MB':>9} {'error':>9}  note"
    )
    failed = False
    for row in _rows(options, session):
        if writer:
            writer.write(row)
        ms = "-" if row.ms is None else f"{row.ms:.3f}"
        ratio = "-" if row.ratio_to is None else f"{row.ratio_to:.2f}"
        peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
        error = "-" if row.error is None else f"{row.error:.1e}"
        print(
            f"{row.workload:24} {row.provider:15} {ms:>9} {ratio:>9} {peak:>9} {error:>9}  "
            f"{row.note}",
            flush=True,
        )
        failed |= row.provider.startswith("tricorr") and row.status != "ok"
    if writer:
        writer.close()
    return int(failed)


def _rows(options: argparse.Namespace, session: Session) -> Iterator[Row]:
    if options.what == "turns":
        for name in names(session.machine.kind):
            yield from run(name, session)
    elif options.what == "peers":
        yield from learning_peers.run(session)
    else:
        yield stream(session, options.size, options.window, options.dir, progress=True)
