"""The machine a row was measured on: names, versions, clocks. All are read, none is set."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ... import __version__

ROOT = Path(__file__).resolve().parent.parent.parent
#: Folders whose sources decide our times: a change there is another revision.
SOURCES = ("kernels", "ops", "autograd")


@dataclass(frozen=True)
class Machine:
    """Fields that are the same in every row of a run; see Row."""

    kind: str
    device: str
    revision: str
    torch: str
    tricorr: str
    triton: str | None
    cudnn: str | None
    driver: str | None


def machine(kind: str) -> Machine:
    """The machine of this process."""
    gpu = kind == "gpu"
    cudnn = torch.backends.cudnn.version() if gpu else None
    query = smi("driver_version") if gpu else None
    return Machine(
        kind=kind,
        device=torch.cuda.get_device_name() if gpu else _cpu_name(),
        revision=revision_of(ROOT),
        torch=torch.__version__,
        tricorr=__version__,
        triton=_version("triton"),
        cudnn=None if cudnn is None else str(cudnn),
        driver=query[0] if query else None,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def child_environment() -> dict[str, str]:
    """The environment of a new process that imports this package and compiles kernels."""
    import tricorr

    package = Path(tricorr.__file__).parent
    path = [str(package.parent)] if package.name == "tricorr" else []
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # With the root on the path its directories would be top-level packages.
    return env | {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


@cache
def revision_of(root: Path) -> str:
    """The git revision of a checkout, if it is one, "+" and a hash of what decides a time of ours.

    A change of the documentation does not start all over, nor do tiles that were tuned: those are
    in the plan that a row names.
    """
    digest = hashlib.sha256()
    for path in sorted(p for name in SOURCES for p in (root / name).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    return f"{head or 'sources'}+{digest.hexdigest()[:12]}"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def smi(*fields: str) -> list[str] | None:
    """nvidia-smi's answer to a query of this GPU; None without one."""
    process = _start_smi(fields)
    return None if process is None else _answer(process, len(fields))


def _start_smi(fields: tuple[str, ...]) -> subprocess.Popen[str] | None:
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if uuid is not None:
        command.append(f"--id=GPU-{uuid}")
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return None


def _answer(process: subprocess.Popen[str], count: int) -> list[str] | None:
    try:
        out, _ = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    values = [value.strip() for value in out.strip().partition("\n")[0].split(",")]
    return values if process.returncode == 0 and len(values) == count and any(values) else None


class Clocks:
    """SM clock and reasons to throttle, read while something is measured.

    The query runs beside the measurement and is repeated every few seconds at most; in between the
    last answer stands.
    """

    def __init__(self, interval: float = 3.0) -> None:
        self.interval = interval
        self.asked = -interval
        self.process: subprocess.Popen[str] | None = None
        self.reasons = "clocks_event_reasons.active"
        self.last: tuple[int | None, str | None] = (None, None)

    def start(self) -> None:
        """Asks, without waiting for the answer."""
        now = time.monotonic()
        if self.process is None and now - self.asked >= self.interval:
            self.asked = now
            self.process = _start_smi(("clocks.sm", self.reasons))

    def read(self) -> tuple[int | None, str | None]:
        """(MHz, bit mask)."""
        if self.process is None:
            return self.last
        answer, self.process = _answer(self.process, 2), None
        if answer is None and "event" in self.reasons:  # the name that older drivers know
            self.reasons = "clocks_throttle_reasons.active"
            answer = smi("clocks.sm", self.reasons)
        if answer is not None:
            clock, reasons = answer
            self.last = (int(clock) if clock.isdigit() else None, reasons)
        return self.last
