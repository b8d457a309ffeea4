"""What measured times say of the static model: its constants, and a multiplier for each family.

A multiplier is the median, over the measured calls of a family, of the time measured over the time
that the model predicts. `calibration.json` has both, with the plans that would change by them.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from .machine import Ceilings, Machine
from .measure import Job
from .predict import alternatives, describe, problem_of, seconds_of
from .providers import make_operands

if TYPE_CHECKING:
    from ..ops.plan.device import Device

#: Fewest calls of a family from which a multiplier follows.
FEWEST = 3
#: A family is far from the model beyond this factor, either way.
FAR = 1.5
#: Another family has to be so much faster, by the calibrated model, to be taken instead.
MARGIN = 1.1


@dataclass(frozen=True)
class Timed:
    """One measured call: seconds, measured and predicted, and the host's microseconds."""

    family: str
    measured: float
    predicted: float
    host_us: float | None = None


@dataclass(frozen=True)
class Family:
    """A kernel family: the median of measured over predicted, its quartiles, host microseconds."""

    multiplier: float
    low: float
    high: float
    calls: int
    host_us: float | None = None


@dataclass(frozen=True)
class Calibration:
    """What was measured of one device.

    Attributes:
        device: its name.
        measured: when, UTC.
        versions: of the driver, PyTorch, Triton, and the revision.
        rates: copy and L2 bytes per second, seconds of a launch and of a load, where measured.
        families: by name.
    """

    device: str
    measured: str
    versions: dict[str, str | None]
    rates: dict[str, float]
    families: dict[str, Family]

    def lines(self) -> Iterator[str]:
        """What is far from the model, in words; a line for each family."""
        for name, f in sorted(self.families.items(), key=lambda item: -item[1].multiplier):
            far = f.multiplier > FAR or f.multiplier < 1 / FAR
            yield (
                f"{name:8} takes {f.multiplier:.2f} times its prediction ({f.low:.2f} to "
                f"{f.high:.2f}, {f.calls} calls){'  FAR FROM THE MODEL' * far}"
            )

    def multiplier(self, family: str) -> float:
        """Of a family; 1 where too few calls were measured."""
        found = self.families.get(family)
        return found.multiplier if found is not None and found.calls >= FEWEST else 1.0


def calibration(
    device: Device, machine: Machine, ceilings: Ceilings | None, timed: Iterable[Timed]
) -> Calibration:
    """The calibration that measured calls give."""
    by_family: dict[str, list[Timed]] = defaultdict(list)
    for call in timed:
        by_family[call.family].append(call)
    families = {}
    for name, calls in by_family.items():
        ratios = sorted(call.measured / call.predicted for call in calls)
        hosts = [call.host_us for call in calls if call.host_us is not None]
        families[name] = Family(
            multiplier=statistics.median(ratios),
            low=ratios[len(ratios) // 4],
            high=ratios[-1 - len(ratios) // 4],
            calls=len(ratios),
            host_us=statistics.median(hosts) if hosts else None,
        )
    rates = {} if ceilings is None else ceilings.constants()
    versions = {name: getattr(machine, name) for name in ("driver", "torch", "triton", "revision")}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Calibration(device.name, now, versions, rates, families)


def changed_plans(
    found: Calibration, device: Device, calls: Sequence[tuple[Job, str]]
) -> list[dict[str, str]]:
    """Calls for which another family is faster once each family's time has its multiplier."""
    changed = []
    for job, memory_format in calls:
        operands = make_operands(job.workload, job.op, job.dtype, memory_format, "meta")
        problem = problem_of(operands, device)
        plans = alternatives(problem)
        seconds = [found.multiplier(p.family) * seconds_of(p, problem) for p in plans]
        best = seconds.index(min(seconds))
        if MARGIN * seconds[best] < seconds[0]:
            call = f"{job.workload.name} {job.op} {job.dtype} {memory_format}"
            changed.append({"call": call, "was": describe(plans[0]), "now": describe(plans[best])})
    return changed


def write(path: Path, found: Calibration, changed: list[dict[str, str]]) -> None:
    """Writes calibration.json."""
    text = json.dumps(asdict(found) | {"changes": changed}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> Calibration:
    """The calibration of a file."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields.pop("changes", None)
    families = {name: Family(**values) for name, values in fields.pop("families").items()}
    return Calibration(**fields, families=families)
