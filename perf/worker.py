"""A process that measures jobs for another, so that a crash costs one row and not the run.

The parent sends a line of JSON for each job; the answers are lines too, in this order:

    {"machine": {...}}                  once, at the start
    {"at": [provider, format]}          before each step that may take the process down
    {"row": {...}}                      a row
    {"done": true}                      the job is finished
    {"error": "..."}                    it is not, and the process ends: the device is poisoned
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import rows
from .machine import child_environment

ENTRY = "from tricorr.perf.worker import serve; serve()"


class WorkerError(RuntimeError):
    """The process ended or had to be ended before it had finished a job.

    Attributes:
        timed_out: it was ended because it took too long.
    """

    def __init__(self, message: str, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Worker:
    """The parent's end. The process starts with the first job and again after an error."""

    def __init__(self, log: Path, providers: list[str] | None = None) -> None:
        """The process is started by the first job.

        Args:
            log: takes what the process and its compilers print.
            providers: only these; all if None.
        """
        self.log, self.providers = log, providers
        self.machine: dict[str, Any] | None = None
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.stack = contextlib.ExitStack()

    def hello(self, timeout: float) -> dict[str, Any]:
        """Starts the process and waits until it says where it runs."""
        if self.process is None:
            self._start()
        while self.machine is None:
            answer = self._answer(time.monotonic() + timeout, timeout)
            self.machine = answer.get("machine")
        return self.machine

    def run(self, request: Mapping[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
        """The answers to one job, "done" left out.

        Raises:
            WorkerError: the process is gone.
        """
        deadline = time.monotonic() + timeout
        process = self.process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(dict(request)) + "\n")
            process.stdin.flush()
        except OSError as error:
            raise WorkerError(self._ended()) from error
        while True:
            answer = self._answer(deadline, timeout)
            if "machine" in answer:
                self.machine = answer["machine"]
            elif "error" in answer:
                self.close()
                raise WorkerError(answer["error"])
            elif "done" in answer:
                return
            else:
                yield answer

    def _answer(self, deadline: float, timeout: float) -> dict[str, Any]:
        try:
            # A job that goes on and on sends answers too: those do not extend its time.
            line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.close()
            raise WorkerError(f"took more than {timeout:.0f} s", timed_out=True) from None
        if line is None:
            raise WorkerError(self._ended())
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self.process = None
        self.stack.close()

    def _start(self) -> subprocess.Popen[str]:
        settings = {"providers": self.providers}
        log = self.stack.enter_context(self.log.open("a", encoding="utf-8"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=child_environment(),
        )
        self.lines = queue.Queue()
        threading.Thread(target=_pump, args=(self.process, self.lines), daemon=True).start()
        return self.process

    def _ended(self) -> str:
        """In words, how the process ended."""
        code = self.process.wait() if self.process is not None else 0
        self.close()
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process ended ({reason}), see {self.log.name}"


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError):  # closed while it was read
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def serve() -> None:
    """The child's end: answers jobs until there are no more."""
    # Compilers print: what they say must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    settings = json.loads(sys.argv[1])
    from .measure import PoisonedError

    session = _session(settings, lambda *at: send({"at": at}))
    send({"machine": asdict(session.machine)})
    for line in sys.stdin:
        try:
            for row in _rows_of(json.loads(line), session):
                send({"row": json.loads(rows.to_json(row))})
        except PoisonedError as error:
            send({"error": str(error)})
            answers.flush()
            os._exit(1)  # the device's own clean-up would hang or crash
        send({"done": True})


def _session(settings: Mapping[str, Any], announce: Any) -> Any:
    import torch

    from .machine import Clocks, machine, measure_ceilings
    from .measure import CpuTimer, GpuTimer, Session, median_seconds
    from .providers import PROVIDERS

    names = settings["providers"]
    chosen = [p for p in PROVIDERS if names is None or p.name in names]
    if not torch.cuda.is_available():
        # More threads wait for each other wherever something else runs.
        torch.set_num_threads(1)
        facts = machine("cpu")
        return Session(CpuTimer(), facts, chosen, announce=announce, budget=0.1)
    timer = GpuTimer()
    ceilings = measure_ceilings(lambda call: median_seconds(timer, call))
    facts = machine("gpu")
    return Session(timer, facts, chosen, ceilings, Clocks(), announce)


def _rows_of(request: Mapping[str, Any], session: Any) -> list[rows.Row]:
    from . import learning, measure, startup, workloads

    if request["op"] == "learn":
        return learning.run(request["workload"], session)
    if request["op"] == "startup":
        return startup.run(session)
    workload = workloads.find(request["workload"])
    job = measure.Job(workload, request["op"], request["dtype"], request["group"])
    skip = {(provider, format): why for provider, format, why in request["skip"]}
    return measure.run_job(job, session, skip)
