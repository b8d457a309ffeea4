"""Estimates of many planned calls beside their rooflines, to find calls that are planned badly.

    python -m tricorr.perf sweep [--device h100] [--all] [--worst 20]
    python -m tricorr.perf sweep --rows perf/results/gpu-h100-*.jsonl

Planes of 7 to 512 pixels, windows of 1 to 31, strides of 1 to 4, 1 to 2048 channels, groups, both
formats, bf16 and TF32, all three operators; nothing is run. An estimate is the planner's own
(ops/plan/times.py). It is divided by a launch plus the roofline: compulsory bytes at the rate of a
copy, or the multiply-adds that the result needs at the rate of the fastest unit, whichever takes
longer.

With --rows, measured times of the table of workloads instead: cuDNN's and ours over the same floor,
a yardstick for the estimates. Its roofline is that of the row: the ceilings measured in its run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...ops import ArgumentError, Geometry
from ...ops.explain import device_named
from ...ops.plan import choose
from ...ops.plan.device import DEVICES, Device
from ...ops.plan.times import seconds_of, times_of
from ..compared import processors
from ..providers import make_operands
from ..rows import Row, read
from ..workloads import FORMATS, OPS, Workload
from .planned import describe, problem_of

#: (C, K) of one group.
CHANNELS = (
    *((1, 1), (1, 16), (1, 64), (3, 8), (3, 16), (3, 64), (3, 96), (4, 320), (8, 8), (12, 12)),
    *((16, 3), (24, 3), (64, 1), (64, 3), (128, 3), (64, 4), (16, 16), (16, 64), (24, 24)),
    *((32, 32), (40, 40), (48, 96), (64, 64), (64, 256), (67, 71), (96, 96), (100, 100)),
    *((120, 120), (128, 128), (192, 384), (256, 64), (256, 256), (320, 320), (512, 512)),
    *((1024, 256), (640, 640), (1280, 1280), (2048, 16), (2048, 512), (16, 2048)),
)
#: (C, K, groups).
GROUPED = (
    *((c, c, c) for c in (3, 32, 64, 96, 144, 384, 960)),
    *((64, 128, 64), (96, 96, 8), (128, 128, 32), (256, 256, 32), (256, 256, 8), (512, 512, 4)),
    *((240, 240, 10), (1024, 1024, 32), (2048, 2048, 2)),
)
SIZES = (7, 8, 14, 16, 28, 32, 56, 64, 112, 224, 512)
#: (R, S, stride); padded to keep the size, patches not at all.
WINDOWS = (
    *((1, 1, 1), (1, 1, 2), (3, 3, 1), (3, 3, 2), (3, 3, 3), (3, 1, 1), (5, 5, 1), (5, 5, 2)),
    *((2, 2, 2), (4, 4, 4), (7, 7, 1), (7, 7, 2), (5, 9, 1), (9, 9, 1), (11, 11, 4), (15, 15, 1)),
    *((31, 31, 1), (31, 31, 2)),
)
#: Batch sizes, and the most elements of x or y: larger calls are left out.
BATCHES = (1, 8, 64)
MOST_ELEMENTS = 2**28
DTYPES = ("bfloat16", "tf32")
#: Calls drawn where not all 331,272 are asked for.
SAMPLE = 10_000
#: The provider of rows whose convolutions are cuDNN's on a GPU.
CUDNN = "pytorch"


@dataclass(frozen=True)
class Estimate:
    """One planned call, and its microseconds by the model over a launch and the roofline."""

    kind: str
    call: str
    plan: str
    us: float
    ratio: float


def geometries() -> Iterator[Geometry]:
    """Every shape of the sweep, in a fixed order."""
    channels = [(c, k, 1) for c, k in CHANNELS] + list(GROUPED)
    for (C, K, groups), size, (R, S, stride), N in itertools.product(
        channels, SIZES, WINDOWS, BATCHES
    ):
        patches = R == S == stride
        pads = ((0, 0), (0, 0)) if patches else (((R - 1) // 2,) * 2, ((S - 1) // 2,) * 2)
        if max(R, S) <= size and N * size * size * max(C, K) <= MOST_ELEMENTS:
            yield Geometry(N, C, size, size, K, R, S, (stride, stride), pads, groups=groups)


def kind_of(g: Geometry) -> str:
    """The class of a call: few channels are fewer than 16, odd ones no multiple of 8."""
    if g.group_C == 1 and g.groups > 1:
        return "depthwise"
    sort = "odd channels" if g.group_C % 8 or g.group_K % 8 else "ordinary"
    sort = "few channels" if min(g.group_C, g.group_K) < 16 else sort
    return ("grouped, " if g.groups > 1 else "") + sort


def estimate(g: Geometry, op: str, dtype: str, memory_format: str, device: Device) -> Estimate:
    """The estimate of one call."""
    operands = make_operands(Workload("", "", g, (dtype,)), op, dtype, memory_format, "meta")
    problem = problem_of(operands, device)
    plan = choose.plan(problem)
    work = plan.work(problem)
    times, macs = times_of(work, device), min(g.macs, round(work.programs * work.macs))
    roofline = max(
        problem.compulsory_bytes / device.copy_rate, macs / device.mac_rate(problem.unit)
    )
    seconds = seconds_of(plan, problem)
    return Estimate(
        f"{kind_of(g)}, {dtype}, {memory_format}",
        f"{op} {g.N}x{g.C}x{g.H}x{g.W}-{g.K}-{g.R}x{g.S}-s{g.stride[0]}-g{g.groups} {dtype} "
        f"{memory_format}",
        f"{describe(plan)}, {times.bound}",
        seconds * 1e6,
        seconds / (device.launch_seconds + roofline),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf sweep`."""
    parser.add_argument("--device", default="h100", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument(
        "--rows",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="print measured times of these rows, cuDNN's and ours, over the same floor",
    )
    parser.add_argument("--all", action="store_true", help=f"every call, not {SAMPLE} drawn ones")
    parser.add_argument("--worst", type=int, default=20, help="calls to list")
    parser.add_argument("--above", type=float, default=25, help="microseconds of those listed")


def main(options: argparse.Namespace) -> int:
    """Prints the distribution of each class and the worst calls; nothing is run."""
    device = device_named(options.device)
    if options.rows:
        print("\n".join(measured([row for file in options.rows for row in read(file)], device)))
        return 0
    calls = list(itertools.product(geometries(), OPS, DTYPES, FORMATS))
    if not options.all:
        calls = random.Random(0).sample(calls, min(SAMPLE, len(calls)))
    found = []
    for call in calls:
        try:
            found.append(estimate(*call, device))
        except ArgumentError:  # more programs than a launch can have
            continue
    print(f"{len(found)} calls on {device.name}, by the planner's model: nothing was run\n")
    print("\n".join(table(found)))
    long = [e for e in found if e.us > options.above]
    print(f"\nthe worst that take more than {options.above:g} us:")
    for e in sorted(long, key=lambda e: (-e.ratio, e.call))[: options.worst]:
        print(f"{e.ratio:6.1f} {e.us:9.1f} us  {e.call:58} {e.plan}")
    return 0


def measured(rows: Iterable[Row], device: Device) -> Iterator[str]:
    """Lines of Markdown: measured times of each class over a launch and the row's roofline.

    Calls that both ran, caches cold, in the same dtype and format; ours in the planner's plan. A
    call that was measured again has its last time.

    Raises:
        ValueError: no row is of both.
    """
    ratios = defaultdict(list)
    for processor in processors(row for row in rows if row.kind == "gpu"):
        for case in processor.cases():
            theirs = [p for p in case.peers if (p.provider, p.format) == (CUDNN, case.ours.format)]
            if case.workload is None or not theirs:
                continue
            floor = device.launch_seconds * 1e3 + _roofline_ms(theirs[0])
            pair = _ms(theirs[0]) / floor, _ms(case.ours) / floor
            kind = kind_of(case.workload.geometry)
            ratios[f"{kind}, {case.ours.dtype}, {case.ours.format}"].append(pair)
    if not ratios:
        raise ValueError("--rows: expected rows of a GPU by both PyTorch and tricorr, got none")
    yield "| measured: class | calls | cuDNN, median | 95 % | ours, median | 95 % | ours slower |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for kind, pairs in sorted(ratios.items()):
        cells = [kind, str(len(pairs))]
        for side in zip(*pairs, strict=True):
            cells += [f"{statistics.median(side):.2f}", f"{percentile_95(side):.2f}"]
        yield f"| {' | '.join(cells)} | {sum(ours > cudnn for cudnn, ours in pairs)} |"


def _ms(row: Row) -> float:
    """Its time: rows that are ok have one."""
    assert row.ms is not None
    return row.ms


def _roofline_ms(row: Row) -> float:
    """The shortest time that the ceilings of the row's run allow."""
    assert row.roofline_fraction is not None
    return _ms(row) * row.roofline_fraction


def percentile_95(ratios: Iterable[float]) -> float:
    """The smallest ratio that 95 % do not exceed."""
    ordered = sorted(ratios)
    return ordered[math.ceil(0.95 * len(ordered)) - 1]


def table(estimates: list[Estimate]) -> Iterator[str]:
    """A line for each class, and one for all of them."""
    yield f"{'class':46} calls  median    95 %    > 3x    > 6x   > 10x"
    for kind in [*sorted({e.kind for e in estimates}), "all"]:
        ratios = sorted(e.ratio for e in estimates if kind in (e.kind, "all"))
        shares = (sum(r > limit for r in ratios) / len(ratios) for limit in (3, 6, 10))
        yield (
            f"{kind:46} {len(ratios):5} {statistics.median(ratios):6.2f}x "
            f"{percentile_95(ratios):6.2f}x " + " ".join(f"{share:7.1%}" for share in shares)
        )
