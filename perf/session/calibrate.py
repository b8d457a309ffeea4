"""Corrections of the static model from measured times: its constants, and multipliers.

A multiplier is the median, over the measured calls of a family, or of a kernel in one memory
format, of the time measured over the time that the model predicts with the measured constants.
`calibration.json` has all of them, with the plans that change by them: put into ops/plan/measured/
under the device's name, the planner reads it. `python -m tricorr.perf fit` makes the same from rows
that were recorded before.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from ...ops.plan import choose
from ...ops.plan.cost import key_of
from ...ops.plan.measured import parse
from ..model.planned import PlannedCall, all_plans, describe, seconds_of
from ..timing.ceilings import Ceilings
from ..timing.machine import Machine

if TYPE_CHECKING:
    from ...ops.plan.device import Device
    from ...ops.plan.problem import Plan, Problem
    from ..rows import Row
    from ..workloads import Workload

#: A family is far from the model beyond this factor, either way.
FAR = 1.5


@dataclass(frozen=True)
class Timed:
    """One measured call: seconds, measured and predicted, and the host's microseconds.

    `kernel` is the key of its multiplier, see measured.kernel_key.
    """

    family: str
    kernel: str
    measured: float
    predicted: float
    host_us: float | None = None


@dataclass(frozen=True)
class Family:
    """A family or kernel: the median of measured over predicted, quartiles, host microseconds."""

    multiplier: float
    low: float
    high: float
    calls: int
    host_us: float | None = None


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
    families: dict[str, Family]
    kernels: dict[str, Family]

    def lines(self) -> Iterator[str]:
        """A line for each family; families far from the model are marked."""
        for name, f in sorted(self.families.items(), key=lambda item: -item[1].multiplier):
            far = f.multiplier > FAR or f.multiplier < 1 / FAR
            yield (
                f"{name:8} takes {f.multiplier:.2f} times its prediction ({f.low:.2f} to "
                f"{f.high:.2f}, {f.calls} calls){'  FAR FROM THE MODEL' * far}"
            )


def with_constants(device: Device, ceilings: Ceilings | None) -> Device:
    """The device with the measured constants and no multipliers."""
    rates = {} if ceilings is None else ceilings.constants()
    return replace(device, measured=parse({"measured": "now", "rates": rates, "families": {}}))


def timed_by(row: Row, workload: Workload, device: Device, measured: Device) -> Iterator[Timed]:
    """The measured call of a row of ours, if its plan is one of those that can be made again.

    Args:
        row: of an operator that was timed.
        workload: that it is of.
        device: that the plan was made for.
        measured: the device with its measured constants, which predict the time: a multiplier
            holds only the part that they do not explain.
    """
    if (found := plan_of(row, workload, device)) is not None:
        plan, problem = found
        predicted = seconds_of(plan, replace(problem, device=measured))
        key = key_of(plan, problem)
        yield Timed(plan.family, key, (row.ms or 0.0) / 1e3, predicted, row.host_us)


def plan_of(row: Row, workload: Workload, device: Device) -> tuple[Plan, Problem] | None:
    """The plan that a row describes, and its problem; None if no family offers it any more.

    Of several that are described alike, the planner would have taken the fastest.
    """
    problem = PlannedCall(workload, row.op, row.dtype, row.format).problem(device)
    plans = [plan for plan in all_plans(problem) if describe(plan) == row.plan]
    if not plans:
        return None
    return min(plans, key=lambda plan: seconds_of(plan, problem)), problem


def calibration(
    device: Device, machine: Machine, ceilings: Ceilings | None, timed: Iterable[Timed]
) -> Calibration:
    """The calibration that measured calls give."""
    timed = list(timed)
    rates = {} if ceilings is None else ceilings.constants()
    versions = {name: getattr(machine, name) for name in ("driver", "torch", "triton", "revision")}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    families = grouped((call.family, call) for call in timed)
    kernels = grouped((call.kernel, call) for call in timed)
    return Calibration(device.name, now, versions, rates, families, kernels)


def grouped(timed: Iterable[tuple[str, Timed]]) -> dict[str, Family]:
    """The median and quartiles of each group of calls."""
    groups: dict[str, list[Timed]] = defaultdict(list)
    for name, call in timed:
        groups[name].append(call)
    found = {}
    for name, calls in sorted(groups.items()):
        ratios = sorted(call.measured / call.predicted for call in calls)
        hosts = [call.host_us for call in calls if call.host_us is not None]
        found[name] = Family(
            multiplier=statistics.median(ratios),
            low=ratios[len(ratios) // 4],
            high=ratios[-1 - len(ratios) // 4],
            calls=len(ratios),
            host_us=statistics.median(hosts) if hosts else None,
        )
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
            name = f"{call.workload.name} {call.op} {call.dtype} {call.format}"
            changed.append({"call": name, "was": describe(was), "now": describe(now)})
    return changed


def write(path: Path, found: Calibration, changed: list[dict[str, str]]) -> None:
    """Writes calibration.json."""
    text = json.dumps(asdict(found) | {"changes": changed}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
