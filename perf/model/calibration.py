"""Corrections of the static model from recorded rows: multipliers and measured constants.

A multiplier is the median, over the measured plans of a family, or of a kernel in one memory
format, of the time measured over the time that the model predicts with the measured constants.
A file with them, put into ops/plan/measured/ under the device's name, is read by the planner.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...ops.plan import choose
from ...ops.plan.device import Device
from ...ops.plan.measured import parse
from ...ops.plan.problem import Plan, Problem
from ...ops.plan.times import key_of, times_of
from ...ops.plan.times import seconds_of as calibrated_seconds
from ..providers import OURS
from ..rows import Row
from ..workloads import ALL_OPS, Workload, known
from .planned import PlannedCall, all_plans, describe, seconds_of

#: A family is far from the model beyond this factor, either way.
FAR = 1.5


@dataclass(frozen=True)
class Sample:
    """A measured plan and its problem."""

    row: Row
    plan: Plan
    problem: Problem

    @property
    def call(self) -> tuple[str, str, str, str]:
        """(workload, op, dtype, format)."""
        return self.row.workload, self.row.op, self.row.dtype, self.row.format

    @property
    def seconds(self) -> float:
        """Measured."""
        return (self.row.ms or 0.0) / 1e3

    @property
    def kernel(self) -> str:
        """The key of its multiplier."""
        return key_of(self.plan, self.problem)

    def ratio(self, exposed: float | None = None) -> float:
        """Measured over predicted, without multipliers, with another share exposed if given.

        The copies of an exchange have no multiplier: their predicted time, or nine tenths of the
        measured time if that is less, is taken from both.
        """
        times = times_of(self.plan.work(self.problem), self.problem.device)
        if exposed is not None:
            times = times._replace(exposed=exposed)
        kernel = max(self.seconds - times.exchange, self.seconds / 10)
        return kernel / (times.predicted - times.exchange)

    def predicted(self, device: Device) -> float:
        """Seconds with the multipliers of a device."""
        return calibrated_seconds(self.plan, replace(self.problem, device=device))

    def error(self, device: Device) -> float:
        """|log(measured / predicted)| with the multipliers of a device."""
        return abs(math.log(self.seconds / self.predicted(device)))


def with_constants(device: Device, rates: dict[str, float]) -> Device:
    """The device with the measured constants and no multipliers."""
    return replace(device, measured=parse({"measured": "now", "rates": rates, "families": {}}))


def samples(
    rows: Iterable[Row],
    planned_for: Device,
    measured: Device,
    workload: Callable[[str], Workload | None] = known,
) -> list[Sample]:
    """The fastest row, caches cold, of every plan of ours that the planner can make again.

    Args:
        rows: of any provider.
        planned_for: the device as it was when the plans were made.
        measured: the device whose constants predict the times.
        workload: by name; None where there is none any more.
    """
    fastest: dict[tuple[object, ...], Row] = {}
    for row in rows:
        ours = row.provider.partition("@")[0] == OURS and row.op in ALL_OPS and row.plan
        if ours and row.status == "ok" and row.cache == "cold":
            key = (row.workload, row.op, row.dtype, row.format, row.plan)
            if key not in fastest or (row.ms or 0) < (fastest[key].ms or 0):
                fastest[key] = row
    found = []
    for row in fastest.values():
        table = workload(row.workload)
        if table is not None and (planned := plan_of(row, table, planned_for)) is not None:
            plan, problem = planned
            found.append(Sample(row, plan, replace(problem, device=measured)))
    return found


def plan_of(row: Row, workload: Workload, device: Device) -> tuple[Plan, Problem] | None:
    """The plan that a row describes, and its problem; None if no family offers it any more.

    Of several that are described alike, the planner would have taken the fastest.
    """
    problem = PlannedCall(workload, row.op, row.dtype, row.format).problem(device)
    plans = [plan for plan in all_plans(problem) if describe(plan) == row.plan]
    if not plans:
        return None
    return min(plans, key=lambda plan: seconds_of(plan, problem)), problem


@dataclass(frozen=True)
class Multiplier:
    """Measured over predicted time of a family or kernel: median, quartiles, number of calls."""

    multiplier: float
    low: float
    high: float
    calls: int


@dataclass(frozen=True)
class Calibration:
    """The measurements of one device.

    Attributes:
        device: its name.
        measured: when, UTC.
        versions: of the driver, PyTorch, Triton, and the revision.
        rates: copy and L2 bytes per second, seconds of a launch and of a load, where measured.
        families: by name.
        kernels: by kernel and memory format.
    """

    device: str
    measured: str
    versions: dict[str, str | None]
    rates: dict[str, float]
    families: dict[str, Multiplier]
    kernels: dict[str, Multiplier]

    def lines(self) -> Iterator[str]:
        """A line for each family; families far from the model are marked."""
        for name, f in sorted(self.families.items(), key=lambda item: -item[1].multiplier):
            far = f.multiplier > FAR or f.multiplier < 1 / FAR
            yield (
                f"{name:8} takes {f.multiplier:.2f} times its prediction ({f.low:.2f} to "
                f"{f.high:.2f}, {f.calls} calls){'  FAR FROM THE MODEL' * far}"
            )


def calibration_of(found: Sequence[Sample], rates: dict[str, float]) -> Calibration:
    """The multipliers that samples give; at least one sample."""
    last = max((s.row for s in found), key=lambda row: row.time)
    versions = {name: getattr(last, name) for name in ("driver", "torch", "triton", "revision")}
    families = _multipliers((s.plan.family, s) for s in found)
    kernels = _multipliers((s.kernel, s) for s in found)
    return Calibration(last.device, last.time, versions, rates, families, kernels)


def _multipliers(named: Iterable[tuple[str, Sample]]) -> dict[str, Multiplier]:
    groups: dict[str, list[float]] = defaultdict(list)
    for name, sample in named:
        groups[name].append(sample.ratio())
    found = {}
    for name, ratios in sorted(groups.items()):
        ratios.sort()
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        found[name] = Multiplier(statistics.median(ratios), low, high, len(ratios))
    return found


def changed_plans(
    found: Calibration, device: Device, calls: Sequence[PlannedCall]
) -> list[dict[str, str]]:
    """Calls that the planner plans otherwise once it reads the calibration."""
    calibrated = replace(device, measured=parse(asdict(found)))
    changed = []
    for call in calls:
        was, now = (choose.plan(call.problem(d)) for d in (device, calibrated))
        if was != now:
            changed.append({"call": call.name, "was": describe(was), "now": describe(now)})
    return changed


def write(path: Path, found: Calibration, changed: list[dict[str, str]]) -> None:
    """Writes calibration.json."""
    text = json.dumps(asdict(found) | {"changes": changed}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
