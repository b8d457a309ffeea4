"""How recorded rows differ from the static model, and the constants of it that would fit them.

Printed are the kernels with their multipliers, the shares of EXPOSED that make the median of
measured over predicted 1, and the calls of which several plans were timed, with how much longer
the planner's takes than the fastest. `--write` writes the multipliers, for ops/plan/measured/.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...ops.explain import device_named
from ...ops.plan import choose
from ...ops.plan.cost import EXPOSED, seconds_of, times_of
from ...ops.plan.device import DEVICES, Device
from ...ops.plan.measured import kernel_key, parse
from ...ops.plan.problem import Plan, Problem
from ..providers import OURS
from ..rows import Row, read
from ..session.calibrate import Calibration, Timed, grouped, plan_of
from ..workloads import BY_NAME, OPS, find
from .planned import describe

#: Shares of EXPOSED that are tried.
SHARES = [step / 20 for step in range(41)]
#: A plan within this factor of the fastest counts as right.
RIGHT = 1.1


@dataclass(frozen=True)
class Sample:
    """A measured launch, and what the planner knows of it."""

    row: Row
    plan: Plan
    problem: Problem

    @property
    def call(self) -> tuple[str, str, str, str]:
        """What was computed."""
        return self.row.workload, self.row.op, self.row.dtype, self.row.format

    @property
    def seconds(self) -> float:
        """Measured."""
        return (self.row.ms or 0.0) / 1e3

    @property
    def kernel(self) -> str:
        """The key of its multiplier."""
        return kernel_key(self.plan.kernel, self.problem.layout.channels_last)

    def ratio(self, exposed: float | None = None) -> float:
        """Measured over predicted, without multipliers, with another share exposed if given."""
        times = times_of(self.plan.tile.work(self.plan, self.problem), self.problem.device)
        if exposed is not None:
            times = replace(times, exposed=exposed)
        return self.seconds / times.predicted


def samples(rows: Iterable[Row], device: Device) -> list[Sample]:
    """The fastest row of every plan of ours that can be made again, caches cold."""
    fastest: dict[tuple[object, ...], Row] = {}
    for row in rows:
        ours = row.provider.partition("@")[0] == OURS and row.op in OPS and row.plan
        if not ours or row.status != "ok" or row.cache != "cold" or row.ms is None:
            continue
        if row.workload.removesuffix("-small") in BY_NAME:
            key = (row.workload, row.op, row.dtype, row.format, row.plan)
            if key not in fastest or row.ms < (fastest[key].ms or math.inf):
                fastest[key] = row
    found = []
    for row in fastest.values():
        if (planned := plan_of(row, find(row.workload), device)) is not None:
            found.append(Sample(row, *planned))
    return found


def calibration_of(found: Sequence[Sample], rates: dict[str, float]) -> Calibration:
    """The multipliers that samples give."""
    timed = [
        (s, Timed(s.plan.family, s.kernel, s.seconds, s.seconds / s.ratio(), s.row.host_us))
        for s in found
    ]
    last = max((s.row for s in found), key=lambda row: row.time)
    versions = {name: getattr(last, name) for name in ("driver", "torch", "triton", "revision")}
    families = grouped((sample.plan.family, entry) for sample, entry in timed)
    kernels = grouped((sample.kernel, entry) for sample, entry in timed)
    return Calibration(last.device, last.time, versions, rates, families, kernels)


def shares(found: Sequence[Sample]) -> dict[str, tuple[int, float]]:
    """By entry of EXPOSED: samples, and the share with which their median ratio is nearest 1."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in found:
        groups[sample.plan.tile.work(sample.plan, sample.problem).operands].append(sample)

    def off(group: list[Sample], share: float) -> float:
        return abs(math.log(statistics.median(sample.ratio(share) for sample in group)))

    return {
        name: (len(group), min(SHARES, key=lambda share: off(group, share)))
        for name, group in sorted(groups.items())
    }


def contests(found: Sequence[Sample], device: Device) -> list[tuple[float, str]]:
    """For each call with several plans: the planner's time over the fastest, and what it is of.

    Infinite where the planner takes a plan that was not timed.
    """
    groups: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in found:
        groups[sample.call].append(sample)
    lines = []
    for call, group in groups.items():
        best = min(group, key=lambda sample: sample.seconds)
        own = choose.plan(replace(best.problem, device=device))
        mine = [s.seconds for s in group if describe(s.plan) == describe(own)]
        if len(group) > 1:
            ratio = min(mine, default=math.inf) / best.seconds
            predicted = seconds_of(own, replace(best.problem, device=device)) * 1e6
            text = f"{' '.join(call)}: {describe(own)}, predicted {predicted:.1f} us"
            lines.append((ratio, f"{text}; {describe(best.plan)} {best.seconds * 1e6:.1f} us"))
    return sorted(lines, reverse=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf fit`."""
    parser.add_argument("rows", type=Path, nargs="+", help="rows.jsonl of a run on the device")
    parser.add_argument("--device", default="h100", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--rates", type=Path, help="calibration.json with measured constants")
    parser.add_argument("--constants", nargs="*", default=["copy", "launch"], help="those to take")
    parser.add_argument("--write", type=Path, help="file for the multipliers and constants")


def main(options: argparse.Namespace) -> int:
    """Prints how the rows differ from the model."""
    device, rates = device_named(options.device), {}
    if options.rates is not None:
        known = json.loads(options.rates.read_text(encoding="utf-8"))["rates"]
        rates = {name: known[name] for name in options.constants if name in known}
    constants = parse({"measured": "now", "rates": rates, "families": {}})
    rows = [row for path in options.rows for row in read(path)]
    found = samples(rows, replace(device, measured=constants))
    if not found:
        print("no row is of a plan that the planner still offers")
        return 1
    fitted = calibration_of(found, rates)
    print(f"{len(found)} plans timed on {fitted.device}\n\nmeasured over predicted:")
    for name, kernel in fitted.kernels.items():
        print(
            f"  {name:28} {kernel.multiplier:5.2f} ({kernel.low:.2f} to {kernel.high:.2f}, "
            f"{kernel.calls} calls)"
        )
    print("\nshares of EXPOSED that fit:")
    for name, (count, share) in shares(found).items():
        print(f"  {name:10} {share:.2f}, not {EXPOSED[name]:.2f} ({count} calls)")
    calibrated = replace(device, measured=parse(asdict(fitted)))
    close = [abs(math.log(_calibrated(s, calibrated))) for s in found]
    print(f"\nmedian of |log(measured / calibrated)|: {statistics.median(close):.3f}")
    lost = contests(found, calibrated)
    right = sum(ratio <= RIGHT for ratio, _ in lost)
    print(f"\nthe planner's plan is within {RIGHT} of the fastest in {right} of {len(lost)} calls:")
    for ratio, text in lost:
        print(f"  {ratio:5.2f} {text}")
    if options.write is not None:
        options.write.write_text(json.dumps(asdict(fitted), indent=1) + "\n", encoding="utf-8")
    return 0


def _calibrated(sample: Sample, device: Device) -> float:
    return sample.seconds / seconds_of(sample.plan, replace(sample.problem, device=device))
