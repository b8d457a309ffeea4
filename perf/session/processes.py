"""Processes that answer requests, so that a crash or a hang costs one answer and not the run.

They are forked from a server that has imported PyTorch, Triton and this package and has touched no
device: a new one is there in milliseconds, and its device is its own. Each is a process group, so
that a compiler which it started ends with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
#: Modules that the server imports once for all processes; missing ones are passed over.
#: `use_deterministic_algorithms` imports the first.
PRELOADED = ("torch._inductor.config", "tricorr.kernels")
#: The function that a process runs: serve(connection, *arguments).
Serve = Callable[..., None]


class ProcessError(RuntimeError):
    """A process ended, or had to be ended, before it answered.

    Attributes:
        timed_out: it was ended because it took too long.
    """

    def __init__(self, message: str, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Child:
    """The parent's end of a process. It is started by `start` and again after an error."""

    def __init__(self, log: Path, serve: Serve, *arguments: Any) -> None:
        """A process that is started later.

        Args:
            log: file for the output of the process and its compilers.
            serve: runs in the process: serve(connection, *arguments), both picklable.
            arguments: for it.
        """
        self.log, self.serve, self.arguments = log, serve, arguments
        self.process: Any = None
        self.connection: Connection | None = None

    def start(self) -> Connection:
        """The connection to the process, which is started if there is none."""
        if self.connection is None:
            CONTEXT.set_forkserver_preload([self.serve.__module__, *PRELOADED])
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(
                target=_main, args=(theirs, self.log, self.serve, self.arguments), daemon=True
            )
            process.start()
            theirs.close()
            self.process, self.connection = process, ours
        return self.connection

    def ask(self, request: Any) -> None:
        """Sends a request.

        Raises:
            ProcessError: the process is gone.
        """
        try:
            self.start().send(request)
        except OSError as error:
            raise ProcessError(self.ended()) from error

    def answer(self, deadline: float) -> Any:
        """The next answer, waited for until `time.monotonic()` is at `deadline`.

        Raises:
            ProcessError: the process is gone, or was ended because no answer came in time.
        """
        start = time.monotonic()
        connection = self.start()
        if not connection.poll(max(0.0, deadline - start)):
            self.end()
            raise ProcessError(f"took more than {deadline - start:.3g} s", timed_out=True)
        try:
            return connection.recv()
        except (EOFError, OSError) as error:
            raise ProcessError(self.ended()) from error

    def ended(self) -> str:
        """How the process ended, in words."""
        if self.process is not None:
            self.process.join(5)
        code = self.process.exitcode if self.process is not None else 0
        self.end()
        reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"the process ended ({reason}), see {self.log.name}"

    def end(self) -> None:
        """Ends the process and whatever it started."""
        if self.process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(OSError, ValueError):
                self.process.kill()
            self.process.join(5)
            self.process = None
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _main(connection: Connection, log: Path, serve: Serve, arguments: tuple[Any, ...]) -> None:
    """Body of a process: makes a process group, redirects output to the log, serves."""
    os.setpgid(0, 0)
    with log.open("ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # the parent is done
        serve(connection, *arguments)


class Pool:
    """Children that take requests from a queue, a new one for each that ends."""

    def __init__(
        self, size: int, limit: float, make: Callable[[], Child], reuse: bool = True
    ) -> None:
        """A pool without processes, which are started as requests come.

        Args:
            size: processes at most.
            limit: seconds for one answer.
            make: a child that answers each request once.
            reuse: whether a process gets another request after its answer.
        """
        self.size, self.limit, self.make, self.reuse = size, limit, make, reuse
        self.waiting: list[tuple[Any, Any]] = []
        self.busy: dict[Child, tuple[Any, float]] = {}
        self.idle: list[Child] = []

    def put(self, key: Any, request: Any) -> None:
        """Queues a request; its answer comes back with its key."""
        self.waiting.append((key, request))

    def __len__(self) -> int:
        """Requests without an answer."""
        return len(self.waiting) + len(self.busy)

    def answers(self, until: float) -> Iterator[tuple[Any, Any]]:
        """(key, answer or ProcessError) as they come, at least those that are there already.

        Args:
            until: `time.monotonic()` up to which to wait for answers.
        """
        while self.waiting or self.busy:
            while self.waiting and len(self.busy) < self.size:
                child = self.idle.pop() if self.idle else self.make()
                key, request = self.waiting.pop(0)
                child.ask(request)
                self.busy[child] = key, time.monotonic() + self.limit
            now = time.monotonic()
            next_limit = min(deadline for _, deadline in self.busy.values())
            by_connection = {child.start(): child for child in self.busy}
            ready = wait(list(by_connection), timeout=max(0.0, min(next_limit, until) - now))
            late = [c for c, (_, deadline) in self.busy.items() if deadline <= time.monotonic()]
            for child in {*(by_connection[r] for r in ready if isinstance(r, Connection)), *late}:
                key, deadline = self.busy.pop(child)
                try:
                    answer = child.answer(time.monotonic() if child in late else deadline)
                    if self.reuse:
                        self.idle.append(child)
                    else:
                        child.end()
                    yield key, answer
                except ProcessError as error:
                    if error.timed_out:
                        error = ProcessError(f"took more than {self.limit:g} s", timed_out=True)
                    yield key, error
            if not ready and not late and time.monotonic() >= until:
                return

    def end(self) -> None:
        """Ends all processes and drops the requests that wait."""
        for child in (*self.busy, *self.idle):
            child.end()
        self.waiting, self.busy, self.idle = [], {}, []
