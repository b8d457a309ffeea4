"""compute-sanitizer on tiny calls, where it is installed: memcheck and racecheck."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

from ..timing.machine import child_environment

#: Seconds without which a tool is not started, and that it may take.
LEAST, MOST = 20.0, 90.0
#: The tiny calls whose names match.
CALLS = "bfloat16|float32"


def sanitize(say: Callable[[str], None], left: Callable[[], float]) -> None:
    """memcheck and racecheck on tiny calls.

    Args:
        say: prints a line.
        left: seconds in which something may begin.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        say("compute-sanitizer is not installed: no memcheck, no racecheck")
        return
    environment = child_environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck"):
        limit = min(left(), MOST)
        if limit < LEAST:
            say(f"{tool}: no time")
            continue
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable]
        command += ["-m", "tricorr.perf.session.checks", CALLS]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            say(f"{tool}: stopped after {limit:.0f} s")
            continue
        said = [line for line in done.stdout.splitlines() if line.startswith("=====")]
        say(f"{tool}: {'errors' if done.returncode else 'none'}; {(said or [''])[-1]}")
