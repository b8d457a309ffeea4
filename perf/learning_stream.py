"""A kernel from images on disk that are read a few rows at a time: time and peak memory.

Two float32 .npy files are written (a size of 16384 takes 1 GiB each), a kernel is learned from them
in one pass, and they are deleted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import resident

if TYPE_CHECKING:
    from .measure import Session
    from .rows import Row

#: Of the exact answer, from float32 images.
TOLERANCE = 1e-4
#: Rows that are made and written at a time.
ROWS = 128


def write_images(directory: Path, size: int, true: torch.Tensor) -> tuple[Path, Path]:
    """Random x, and y = corr2d(x, true), written band by band."""
    from ..autograd.functional import corr2d

    random = torch.Generator().manual_seed(0)
    window, last = len(true), size - len(true) + 1
    paths = directory / "x.npy", directory / "y.npy"
    with paths[0].open("wb") as x_file, paths[1].open("wb") as y_file:
        for file, shape in ((x_file, (size, size)), (y_file, (last, last))):
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        held = torch.empty(0, size)
        for first in range(0, size, ROWS):
            band = torch.rand(min(ROWS, size - first), size, generator=random)
            x_file.write(band.numpy().tobytes())
            held = torch.cat([held, band])
            if len(held) >= window:
                y_file.write(corr2d(held, true).numpy().tobytes())
                held = held[len(held) - window + 1 :]
    return paths


def run(session: Session, size: int, window: int, directory: Path, progress: bool) -> Row:
    """The row of one size."""
    from ..learning.accumulator import KernelAccumulator
    from ..learning.streaming import accumulate

    true = torch.randn(window, window, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory(dir=directory) as place:
        x, y = write_images(Path(place), size, true)
        on_disk = x.stat().st_size + y.stat().st_size
        device = session.timer.device
        before = resident.start()
        started = time.perf_counter()
        sums = KernelAccumulator(window)
        accumulate(sums, x, y, device=device, progress=progress)
        found = sums.solve().weight
        seconds = time.perf_counter() - started
        peak = resident.peak(before)
    error = float((found - true).abs().max() / true.abs().max())
    name = f"stream-{size}x{size}-{window}x{window}"
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    note = f"{on_disk / 2**20:.0f} MiB on disk; peak is of the host; {load}"
    right = error <= TOLERANCE
    return session.row_of(
        name,
        "learn",
        "learn",
        "tricorr-stream",
        status="ok" if right else "wrong",
        note=note if right else f"off by {error:.2g}; {note}",
        ms=seconds * 1e3 if right else None,
        samples=1,
        peak_bytes=peak,
        error=error,
        error_bound=TOLERANCE,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=16384, help="side of the images (16384)")
    parser.add_argument("--window", type=int, default=5, help="side of the window (5)")
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the images go"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="appends a row to this .jsonl")


def main(options: argparse.Namespace) -> int:
    from .bench import local_session
    from .rows import Writer

    row = run(local_session(), options.size, options.window, options.dir, progress=True)
    if options.out:
        with Writer(options.out) as writer:
            writer.write(row)
    assert row.peak_bytes is not None
    seconds = "-" if row.ms is None else f"{row.ms / 1e3:.1f} s"
    print(
        f"{row.workload}: {seconds}, peak {row.peak_bytes / 2**20:.0f} MiB, error {row.error:.1e}"
    )
    print(row.note)
    return 0 if row.status == "ok" else 1
