"""NVIDIA's tools on our kernels, where they are installed: compute-sanitizer and Nsight Compute.

python -m tricorr.perf.session.tools       launches what Nsight Compute is to look at
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..timing.machine import child_environment

#: Seconds without which a tool is not started, and that it may take.
LEAST, MOST = 20.0, 90.0
#: What compute-sanitizer runs: the tiny calls whose names match.
SANITIZED = "bfloat16|float32"
#: (workload, operator, dtype, memory format) of launches for Nsight Compute: one of each family,
#: and of the two that matter most a gradient and the other format.
PROFILED = (
    ("images-4096-3x3", "fprop", "bfloat16", "NCHW"),
    ("convnext-t-96x56x56-96-7x7", "wgrad", "bfloat16", "channels_last"),
    ("replknet-128x56x56-128-31x31", "fprop", "bfloat16", "NCHW"),
    ("resnet50-256x14x14-256-3x3", "fprop", "bfloat16", "channels_last"),
    ("resnet50-256x14x14-256-3x3", "wgrad", "bfloat16", "channels_last"),
    ("resnet50-256x14x14-256-3x3", "fprop", "bfloat16", "NCHW"),
)

Say = Callable[[str], None]


def sanitize(say: Say, left: Callable[[], float]) -> None:
    """memcheck and racecheck on tiny calls.

    Args:
        say: prints a line.
        left: seconds in which something may begin.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        say("compute-sanitizer is not installed: no memcheck, no racecheck")
        return
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable]
        done = _ran([*command, "-m", "tricorr.perf.session.checks", SANITIZED], kind, say, left())
        if done is not None:
            said = [line for line in done.stdout.splitlines() if line.startswith("=====")]
            say(f"{kind}: {'errors' if done.returncode else 'none'}; {(said or [''])[-1]}")


def profile(out: Path, say: Say, left: Callable[[], float]) -> None:
    """Nsight Compute's figures of six launches, as text in `out`; clocks are left as they are."""
    tool = shutil.which("ncu")
    if tool is None:
        say("ncu is not installed: no launch is profiled")
        return
    file = out / "ncu.txt"
    command = [tool, "--clock-control", "none", "--set", "full", "--profile-from-start", "off"]
    command += ["--log-file", str(file), sys.executable, "-m", "tricorr.perf.session.tools"]
    done = _ran(command, "ncu", say, left())
    if done is not None and done.returncode == 0:
        say(f"ncu: {len(PROFILED)} launches are in {file}")
    elif done is not None:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        say(f"ncu failed: {last}")


def _ran(
    command: list[str], name: str, say: Say, left: float
) -> subprocess.CompletedProcess[str] | None:
    """The tool's run; None if there was no time for it or it took too long."""
    limit = min(left, MOST)
    if limit < LEAST:
        say(f"{name}: no time")
        return None
    environment = child_environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        say(f"{name}: stopped after {limit:.0f} s")
        return None


def main() -> None:
    """Launches each of PROFILED, warm, between marks for the profiler."""
    import torch

    from ..providers import PROVIDERS, make_operands
    from ..workloads import find

    for name, op, dtype, memory_format in PROFILED:
        call = PROVIDERS[0].prepare(make_operands(find(name), op, dtype, memory_format, "cuda"))
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
