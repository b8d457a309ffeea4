"""Measured constants of a device, read from data files; they replace assumed ones.

A file of ops/plan/measured/ is the `calibration.json` of `python -m tricorr.perf gpu`, under the
name of the device that it was measured on. It is read once, when a plan for that device is made.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "measured"
#: Fewest calls whose median makes a family's multiplier.
FEWEST_CALLS = 3


@dataclass(frozen=True)
class Measured:
    """The measured constants, None for those that were not measured.

    Attributes:
        when: UTC, ISO 8601.
        copy: bytes per second of a copy, read and written.
        l2: bytes per second that all multiprocessors read from L2.
        latency: seconds of a load from device memory.
        launch: seconds of a kernel's start and end.
        families: measured time over the model's, by kernel family.
    """

    when: str
    copy: float | None
    l2: float | None
    latency: float | None
    launch: float | None
    families: tuple[tuple[str, float], ...]

    def slowdown(self, family: str) -> float:
        """How many times its predicted time a family takes; 1 where that is not known."""
        return dict(self.families).get(family, 1.0)


def parse(file: Mapping[str, Any]) -> Measured:
    """The constants of a calibration.json."""
    rates = {name: file["rates"].get(name) for name in ("copy", "l2", "latency", "launch")}
    families = tuple(
        (name, family["multiplier"])
        for name, family in sorted(file["families"].items())
        if family["calls"] >= FEWEST_CALLS
    )
    return Measured(file["measured"], **rates, families=families)


@functools.cache
def measured_on(slug: str) -> Measured | None:
    """The constants of a device; None where there is no file."""
    path = DIRECTORY / f"{slug}.json"
    return parse(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
