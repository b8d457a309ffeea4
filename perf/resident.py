"""How much memory a process has needed: its largest resident set, from here on."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start() -> int:
    """Begins anew, and gives the bytes resident now (elsewhere than on Linux, the largest ever)."""
    try:
        _REFS.write_text("5")  # proc(5): resets VmHWM to what is resident
    except OSError:
        return _largest_ever()
    return _field("VmRSS")


def peak(since: int) -> int:
    """Bytes above `since`, what `start` gave, at the worst moment after it."""
    largest = _field("VmHWM") if _STATUS.exists() else _largest_ever()
    return max(0, largest - since)


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return _largest_ever()


def _largest_ever() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
