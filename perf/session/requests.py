"""Requests to the measuring process and their answers, and the functions that processes run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

from ..benchmarks import host, learning, startup
from ..model.planned import PlannedCall
from ..providers import OURS, Operands, Provider
from ..timing.ceilings import Ceilings
from ..timing.machine import Machine
from ..timing.measure import Job, Session, run_job
from ..timing.timers import PoisonedError, cause_of
from . import checks, tune
from .rig import Entrant, GpuRig

if TYPE_CHECKING:
    from ...ops.plan.device import Device
    from ...ops.plan.problem import Plan


@dataclass(frozen=True)
class Here:
    """The first answer: where the process runs."""

    machine: Machine
    device: Device


@dataclass(frozen=True)
class Environment:
    """The second answer: the ceilings of the device, and its clock while they were measured.

    Attributes:
        ceilings: None where they are not measured.
        sm_clock, throttle: as in a row.
    """

    ceilings: Ceilings | None
    sm_clock: int | None = None
    throttle: str | None = None


@dataclass(frozen=True)
class At:
    """Sent before each step that may take the process down."""

    provider: str
    format: str


@dataclass(frozen=True)
class Done:
    """The last answer to a request; `error` says why the process can measure no further."""

    error: str = ""


@dataclass(frozen=True)
class Measure:
    """A job's rows.

    Attributes:
        job: of the table of workloads.
        entrants: ways to run it by our kernels, timed in turns with each other and the peers; in a
            format without any, ours is the public function.
        peers: only these.
        caches: only these states; all if None.
        skip: (provider, format, why) that took the process down before.
    """

    job: Job
    entrants: tuple[Entrant, ...] = ()
    peers: tuple[str, ...] = ()
    caches: tuple[str, ...] | None = None
    skip: tuple[tuple[str, str, str], ...] = ()

    def answers(self, session: Session, rig: GpuRig) -> Iterator[Any]:
        given = {entrant.format for entrant in self.entrants}
        formats = tuple(f for f in self.job.workload.formats if f not in given)
        ours = [Provider(OURS, "core", rig.ours, formats=formats)] if formats else []
        ours += [
            Provider(e.name, self.job.group, partial(rig.call, entrant=e), formats=(e.format,))
            for e in self.entrants
        ]
        members = [*ours, *(p for p in session.providers if p.name in self.peers)]
        skip = {(provider, format): why for provider, format, why in self.skip}
        yield from run_job(self.job, replace(session, providers=members), skip, self.caches)


@dataclass(frozen=True)
class Learn:
    """The rows of learning a kernel at one size."""

    name: str

    def answers(self, session: Session, rig: GpuRig) -> Iterator[Any]:
        yield from learning.run(self.name, session)


@dataclass(frozen=True)
class Start:
    """The rows of the import and the first call, in fresh processes."""

    def answers(self, session: Session, rig: GpuRig) -> Iterator[Any]:
        yield from startup.run(session)


@dataclass(frozen=True)
class HostCost:
    """The rows of a call's host cost, layer by layer."""

    def answers(self, session: Session, rig: GpuRig) -> Iterator[Any]:
        yield from host.run(session, *rig.host_calls)


@dataclass(frozen=True)
class Search:
    """The outcome of a search for a better plan."""

    job: PlannedCall
    device: Device
    seconds: float
    off: frozenset[tuple[str, str]] = field(default=frozenset())

    def answers(self, session: Session, rig: GpuRig) -> Iterator[Any]:
        def call(operands: Operands, plan: Plan) -> Any:
            return rig.call(operands, Entrant(OURS, operands.format, plan))

        measure = tune.measure_by(session.timer, call, session.clocks)
        yield tune.search(self.job, self.device, measure, self.seconds, off=self.off)


def serve(connection: Connection, rig: GpuRig, known: Environment | None) -> None:
    """Measures, one request after the other; a `known` environment is not measured again."""
    connection.send(Here(rig.facts(), rig.planned_for()))
    timer, clocks = rig.timer(), rig.clocks()
    if known is None:
        if clocks is not None:
            clocks.start()
        ceilings = rig.ceilings(timer)
        known = Environment(ceilings, *(clocks.read() if clocks is not None else ()))
    connection.send(known)

    def announce(provider: str, format: str) -> None:
        connection.send(At(provider, format))

    session = Session(
        timer, rig.facts(), rig.providers, known.ceilings, clocks, announce, rig.budget
    )
    while True:
        request = connection.recv()
        try:
            for answer in request.answers(session, rig):
                connection.send(answer)
        except PoisonedError as error:
            connection.send(Done(str(error)))
            os._exit(1)  # the device's own clean-up would hang or crash
        connection.send(Done())


def serve_builds(connection: Connection, rig: GpuRig, device: Device) -> None:
    """Compiles: receives a PlannedCall, sends "" or the compiler's message."""
    torch.set_num_threads(1)
    while True:
        call = connection.recv()
        try:
            rig.build(call.operands(), call.plan, device)
            connection.send("")
        except Exception as error:  # whatever a compiler raises is the answer
            connection.send(cause_of(error))


def serve_check(connection: Connection, rig: GpuRig) -> None:
    """Runs one check: receives a PlannedCall, sends "" or its fault in words."""
    torch.set_num_threads(1)
    check = connection.recv()
    try:
        connection.send(checks.run(check, rig))
    except Exception as error:  # whatever a check raises is its fault in words
        connection.send(cause_of(error))
