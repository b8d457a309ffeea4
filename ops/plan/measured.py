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
#: Fewest calls whose median makes a multiplier.
FEWEST_CALLS = 3

#: Multiplier of a kernel that was not measured on a device where others were, so that the planner
#: prefers those unless this one is clearly faster. Assumed: the model is off by a tenth on average.
UNKNOWN = 1.15


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
        kernels: the same by kernel and memory format, see kernel_key.
    """

    when: str
    copy: float | None
    l2: float | None
    latency: float | None
    launch: float | None
    families: tuple[tuple[str, float], ...]
    kernels: tuple[tuple[str, float], ...] = ()

    def slowdown(self, family: str, kernel: str = "") -> float:
        """How many times its predicted time a kernel takes: its family where only that is known.

        UNKNOWN where neither was measured; 1 where no family was.
        """
        if not self.families:
            return 1.0
        families, kernels = self._multipliers
        return kernels[kernel] if kernel in kernels else families.get(family, UNKNOWN)

    @functools.cached_property
    def _multipliers(self) -> tuple[dict[str, float], dict[str, float]]:
        return dict(self.families), dict(self.kernels)


def kernel_key(kernel: str, channels_last: bool) -> str:
    """The name of a kernel's multiplier: it differs between memory formats."""
    return f"{kernel} {'channels_last' if channels_last else 'NCHW'}"


def parse(file: Mapping[str, Any]) -> Measured:
    """The constants of a calibration.json."""
    rates = {name: file["rates"].get(name) for name in ("copy", "l2", "latency", "launch")}
    families, kernels = (
        tuple(
            (name, entry["multiplier"])
            for name, entry in sorted(file.get(field, {}).items())
            if entry["calls"] >= FEWEST_CALLS
        )
        for field in ("families", "kernels")
    )
    return Measured(file["measured"], **rates, families=families, kernels=kernels)


@functools.cache
def measured_on(slug: str) -> Measured | None:
    """The constants of a device; None where there is no file."""
    path = DIRECTORY / f"{slug}.json"
    return parse(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
