"""Time before the first result: the import, and the first call.

Every number comes from fresh processes. The import is what tricorr adds to torch's own. The first
call is timed with an empty cache of compiled kernels (cold) and with the one left by that (warm),
each beside F.conv2d's first call in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from statistics import median
from typing import TYPE_CHECKING, Any

from ..timing.machine import child_environment

if TYPE_CHECKING:
    from ..rows import Row
    from ..timing.measure import Session

#: Fresh processes for each number, among other benchmarks and alone.
RUNS, RUNS_ALONE = 2, 5

_IMPORT = """
import json, time
import torch
start = time.perf_counter()
import tricorr
print(json.dumps(time.perf_counter() - start))
"""
_FIRST_CALL = """
import json, sys, time
import torch
import tricorr
device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.rand(32, 64, 56, 56, device=device)
weight = torch.rand(64, 64, 3, 3, device=device)
call = tricorr.corr2d if sys.argv[1] == "tricorr" else torch.nn.functional.conv2d
def finish():
    if device == "cuda":
        torch.cuda.synchronize()
finish()
start = time.perf_counter()
call(x, weight, padding=1)
finish()
print(json.dumps(time.perf_counter() - start))
"""


def _fresh(code: str, *arguments: str, cache: str) -> float:
    """The number that the code prints in a new process, in seconds."""
    env = child_environment() | {"TRITON_CACHE_DIR": cache}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled to bytecode
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"a fresh process failed: {run.stderr.strip().splitlines()[-1]}")
    return float(json.loads(run.stdout.splitlines()[-1]))


def measure(runs: int) -> dict[tuple[str, str], list[float]]:
    """Seconds in fresh processes, by (what, provider)."""
    found: dict[tuple[str, str], list[float]] = {}

    def add(what: str, provider: str, seconds: float) -> None:
        found.setdefault((what, provider), []).append(seconds)

    for _ in range(runs):
        with tempfile.TemporaryDirectory() as cache:
            add("import", "tricorr", _fresh(_IMPORT, cache=cache))
            add("first-call-cold", "tricorr", _fresh(_FIRST_CALL, "tricorr", cache=cache))
            add("first-call-warm", "tricorr", _fresh(_FIRST_CALL, "tricorr", cache=cache))
            seconds = _fresh(_FIRST_CALL, "pytorch", cache=cache)
            add("first-call-cold", "pytorch", seconds)
    # PyTorch keeps no cache of kernels: its first call is the same.
    found["first-call-warm", "pytorch"] = found["first-call-cold", "pytorch"]
    return found


def run(session: Session) -> list[Row]:
    """The rows of this machine."""
    rows = []
    found = measure(RUNS)
    for (what, provider), seconds in found.items():
        ours = found[what, "tricorr"]
        middle = median(seconds)
        values: dict[str, Any] = {
            "status": "ok",
            "note": f"median of {len(seconds)} fresh processes",
            "ms": middle * 1e3,
            "ms_low": min(seconds) * 1e3,
            "ms_high": max(seconds) * 1e3,
            "samples": len(seconds),
        }
        if provider != "tricorr":
            values["ratio_to"] = middle / median(ours)
        rows.append(session.row_of(f"startup-{what}", "startup", "startup", provider, **values))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=RUNS_ALONE, help="processes for each number")


def main(options: argparse.Namespace) -> int:
    if options.runs < 1:
        raise ValueError(f"--runs must be positive, got {options.runs}")
    print(f"{'what':16} {'provider':8} {'median s':>9} {'least':>8} {'most':>8}")
    for (what, provider), seconds in measure(options.runs).items():
        low, middle, high = min(seconds), median(seconds), max(seconds)
        print(f"{what:16} {provider:8} {middle:9.3f} {low:8.3f} {high:8.3f}")
    return 0
