"""Predictions: bytes, waste and time of every workload's plan by arithmetic, before any run.

    python -m tricorr.perf predict [--device h200] [--suite images]

Nothing here was measured. A prediction exists to be compared with rows: where a row is far from it,
an assumption is wrong; the unit that leads says which. ops/plan/times.py and the families beside
it have the arithmetic and the rates, by which the planner chooses too. Besides:

 - Every element that a program asks for passes L1 once per use; programs share nothing there.
 - The roofline is the problem's, not the plan's: compulsory bytes at the rate of a copy, or the
   FLOPs at the rate of the fastest unit for this dtype and precision, whichever takes longer.
   Predicted fraction = roofline time / predicted time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ...ops.explain import device_named
from ...ops.plan import choose
from ...ops.plan.device import DEVICES, Device
from ...ops.plan.times import times_of
from ..providers import TENSOR_DTYPES
from ..workloads import ALL_OPS, OPS, SUITES, Workload, select
from .planned import PlannedCall, describe


@dataclass(frozen=True)
class Prediction:
    """One operator of one workload, by the model.

    Attributes:
        workload, suite, op, dtype, format: as in a row.
        kernel: the plan's kernel.
        tile: its extents, warps, stages and the rest of the plan.
        compulsory_bytes: each tensor moved once.
        device_bytes: through device memory, with what L2 cannot keep, partial sums and copies.
        load_bytes: that programs ask L1 for.
        waste: multiply-adds done, padding of tiles included, over those that the result needs.
        fill: share of the multiprocessors' time in which they have a program.
        dram_us, l2_us, shared_us, arithmetic_us, issue_us, latency_us: as in times.Times.
        launch_us: launches, and copies of an Exchange.
        predicted_us: of the launch, see times.py.
        bound: the unit that takes longest.
        roofline_us: the problem's own bound.
        roofline_fraction: roofline_us / predicted_us.
    """

    workload: str
    suite: str
    op: str
    dtype: str
    format: str
    kernel: str
    tile: str
    compulsory_bytes: int
    device_bytes: int
    load_bytes: int
    waste: float
    fill: float
    dram_us: float
    l2_us: float
    shared_us: float
    arithmetic_us: float
    issue_us: float
    latency_us: float
    launch_us: float
    predicted_us: float
    bound: str
    roofline_us: float
    roofline_fraction: float


def predict(call: PlannedCall, device: Device) -> Prediction:
    """The model's numbers for one call, with its plan or else the planner's.

    Raises:
        ValueError: the device's rates are not known.
    """
    if device.bandwidth is None:
        raise ValueError(f"the rates of {device.name} are not known")
    problem = call.problem(device)
    plan = call.plan or choose.plan(problem)
    problem = replace(problem, x_bytes=TENSOR_DTYPES[call.dtype][0].itemsize)
    work = plan.work(problem)
    found = times_of(work, device)
    programs, sms = work.programs, device.multiprocessors
    done = round(programs * work.macs)
    # A banded plan may leave out taps in the padding, which need not be computed.
    macs = min(problem.macs, done)
    compulsory = problem.compulsory_bytes
    arithmetic = problem.products * macs / device.mac_rate(problem.unit)
    roofline = max(compulsory / device.copy_rate, arithmetic)
    return Prediction(
        call.workload.name,
        call.workload.suite,
        call.op,
        call.dtype,
        call.format,
        plan.kernel,
        tile=describe(plan).partition(" ")[2],
        compulsory_bytes=compulsory,
        device_bytes=round(
            work.dram_bytes
            + work.between_bytes
            + work.copy_bytes
            + work.copied_bytes
            + work.exchanged_bytes
            + 2 * work.partial_bytes
        ),
        load_bytes=round(programs * work.loaded_bytes),
        waste=done / max(1, macs),
        fill=programs / (-(-programs // sms) * sms) if programs else 1.0,
        **{f"{unit}_us": seconds * 1e6 for unit, seconds in found.units.items()},
        launch_us=(found.launch + found.exchange) * 1e6,
        predicted_us=found.predicted * 1e6,
        bound=found.bound,
        roofline_us=roofline * 1e6,
        roofline_fraction=roofline / found.predicted,
    )


def predict_workloads(
    workloads: Iterable[Workload],
    device: Device,
    ops: Iterable[str] = OPS,
    dtypes: Iterable[str] = (),
) -> Iterator[Prediction]:
    """Every operator and format of the workloads, in each one's first dtype or in `dtypes`."""
    ops, dtypes = set(ops), list(dtypes)
    for workload in workloads:
        for dtype in [d for d in workload.dtypes if d in dtypes] if dtypes else workload.dtypes[:1]:
            for op in (op for op in workload.ops if op in ops):
                for memory_format in workload.formats:
                    yield predict(PlannedCall(workload, op, dtype, memory_format), device)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf predict`."""
    parser.add_argument("--device", default="h200", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--suite", action="append", default=[], choices=SUITES)
    parser.add_argument("--op", action="append", default=[], choices=ALL_OPS)
    parser.add_argument("--dtype", action="append", default=[], choices=sorted(TENSOR_DTYPES))


def main(options: argparse.Namespace) -> int:
    """Prints the table; nothing is run."""
    device = device_named(options.device)
    ops = options.op or OPS
    found = list(predict_workloads(select(options.suite), device, ops, options.dtype))
    if not found:
        raise ValueError("no workload of these suites has such an operator and dtype")
    print(
        f"Predicted for {device.name} by a model, not measured.\n"
        "ops/plan/times.py says what is assumed, and what is left out.\n"
    )
    print("\n".join(table(found)))
    return 0


def table(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Lines for people: formats that the model does not tell apart share one."""
    merged: dict[Prediction, list[str]] = {}
    for p in predictions:
        merged.setdefault(replace(p, format=""), []).append(p.format)
    suite = None
    for p, formats in merged.items():
        if p.suite != suite:
            yield (
                f"{p.suite:24} op    dtype    format        kernel        tile                    "
                "moved MB  waste fill  dram    l2 share arith issue laten       us bound      "
                "roofline"
            )
        suite = p.suite
        units = ("dram", "l2", "shared", "arithmetic", "issue", "latency")
        seconds = [getattr(p, f"{unit}_us") for unit in units]
        times = " ".join(f"{us:5.0f}" if us >= 100 else f"{us:5.1f}" for us in seconds)
        yield (
            f"{p.workload.removeprefix(p.suite + '-'):24} {p.op:5} {p.dtype:8} "
            f"{'both' if len(formats) > 1 else formats[0]:13} {p.kernel:13} {p.tile:23} "
            f"{p.device_bytes / 1e6:8.3g} {p.waste:6.3g} {p.fill:4.2f} {times} "
            f"{p.predicted_us:8.4g} {p.bound:10} {p.roofline_fraction:7.1%}"
        )
    yield (
        "\nmoved MB: each tensor once, what L2 cannot keep and partial sums. waste: multiply-adds "
        "done over needed.\nfill: share of multiprocessors at work. dram to latency: microseconds "
        "of each unit. us, bound: the slowest's and\nthe launch's, and which. roofline: the "
        "problem's own bound over us."
    )
