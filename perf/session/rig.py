"""The device of a run, as its processes reach it: a GPU, or the CPU fallback."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..model.planned import launches_of
from ..providers import PROVIDERS, Call, Operands, Provider
from ..timing.ceilings import Ceilings, measure_ceilings
from ..timing.machine import Clocks, Machine, machine
from ..timing.timers import BUDGET, CpuTimer, GpuTimer, Timer
from ..workloads import Workload, known

if TYPE_CHECKING:
    from ...ops.plan.device import Device
    from ...ops.plan.problem import Plan


@dataclass(frozen=True)
class Entrant:
    """One way to run a call with our kernels.

    Attributes:
        name: in rows: "tricorr", or "tricorr@" and the difference.
        format: of the tensors.
        plan: of the launch.
    """

    name: str
    format: str
    plan: Plan


@dataclass(frozen=True)
class GpuRig:
    """A GPU. Only methods touch it, so that processes can be forked before.

    Attributes:
        kind: "gpu" or "cpu", as in a row.
        device: of tensors.
        check_limit, build_limit, job_limit: seconds for one tiny call with all its set-up, for one
            build, and for one job.
        search_seconds: of one search of tiles, at least and at most.
        budget: seconds of sampling one job in one state of the caches.
        caches: states of the caches that are timed.
        cold: the one in which families are compared.
        host_calls: calls that are timed together for the host's cost, and how often.
        by_public_call: whether our times are those of the public functions, where the planner's
            plan is on.
    """

    kind: str = "gpu"
    device: str = "cuda"
    check_limit: float = 15.0
    build_limit: float = 60.0
    job_limit: float = 90.0
    search_seconds: tuple[float, float] = (8.0, 60.0)
    budget: float = BUDGET
    caches: tuple[str, ...] = GpuTimer.caches
    cold: tuple[str, ...] = GpuTimer.caches[:1]
    host_calls: tuple[int, int] = (500, 7)
    by_public_call: bool = True

    @property
    def providers(self) -> Sequence[Provider]:
        """Ours and the peers. A rig is sent to processes, providers cannot be."""
        return PROVIDERS

    def workload(self, name: str) -> Workload | None:
        """A workload of the table, by name; None if there is none."""
        return known(name)

    def is_checked(self, kernel: str, dtype: str) -> bool:
        """Whether tiny calls of a kernel are made: of all."""
        return True

    def planned_for(self) -> Device:
        """The device as the planner knows it."""
        from ...ops.launch.layout import device_of

        return device_of(torch.empty(0, device=self.device))

    def facts(self) -> Machine:
        """Fields that are the same in every row."""
        return machine(self.kind)

    def timer(self) -> Timer:
        """A timer for calls on it."""
        return GpuTimer()

    def clocks(self) -> Clocks | None:
        """A reader of its clocks."""
        return Clocks()

    def ceilings(self, timer: Timer) -> Ceilings | None:
        """Measures the ceilings; one that cannot be measured is None."""
        return measure_ceilings(timer, self.planned_for())

    def ours(self, operands: Operands) -> Call:
        """The public function, as the planner decides."""
        return PROVIDERS[0].prepare(operands)

    def call(self, operands: Operands, entrant: Entrant) -> Call:
        """A call of our kernels with a plan; its launches are prepared, as those of users are."""
        from ...ops.launch import entry

        o, g, plan, activation = (
            operands,
            operands.geometry,
            entrant.plan,
            operands.workload.activation,
        )

        def fprop() -> torch.Tensor:
            return entry.fprop(o.x, o.weight, o.bias, g, o.precision, activation, o.residual, plan)

        def dgrad() -> torch.Tensor:
            return entry.dgrad(o.dy, o.weight, g, o.precision, plan=plan)

        def wgrad() -> torch.Tensor:
            return entry.wgrad(o.x, o.dy, g, o.precision, plan=plan)

        def backward() -> tuple[torch.Tensor, torch.Tensor]:
            return entry.backward(o.x, o.dy, o.weight, g, o.precision, plan)

        calls: dict[str, Call] = {
            "fprop": fprop,
            "dgrad": dgrad,
            "wgrad": wgrad,
            "backward": backward,
        }
        return calls[o.op]

    def build(self, operands: Operands, plan: Plan, device: Device) -> None:
        """Compiles a call of meta tensors into Triton's cache, as its launch will look it up."""
        import triton
        from triton.backends.compiler import GPUTarget

        from ..model.machine_code import source_of

        amd = device.arch.startswith("gfx")
        gpu = GPUTarget("hip", device.arch, 64) if amd else GPUTarget("cuda", int(device.arch), 32)
        _, calls = launches_of(operands, plan, device)
        for call in calls:
            for launch in call.launches():
                source, options = source_of(launch, gpu)
                _build_launcher(triton.compile(source, target=gpu, options=options))


def _build_launcher(compiled: Any) -> None:
    """Compiles the C launcher of a kernel, which Triton before 3.7 does at the first launch.

    One that cannot be built here is built, or fails, there.
    """
    from ...kernels.versions import BEFORE_3_7

    if BEFORE_3_7 and "cubin" in compiled.asm:
        from triton.backends.nvidia.driver import CudaLauncher

        with contextlib.suppress(Exception):
            CudaLauncher(compiled.src, compiled.metadata)


@dataclass(frozen=True)
class CpuRig(GpuRig):
    """PyTorch's CPU convolution behind our functions, in one thread."""

    kind: str = "cpu"
    device: str = "cpu"
    budget: float = 0.1
    caches: tuple[str, ...] = ("warm",)
    cold: tuple[str, ...] = ("warm",)

    def timer(self) -> Timer:
        """A timer of this process, in one thread: more wait wherever something else runs."""
        torch.set_num_threads(1)
        return CpuTimer()

    def facts(self) -> Machine:
        """Fields that are the same in every row, the number of threads among them."""
        torch.set_num_threads(1)
        return machine(self.kind)

    def clocks(self) -> Clocks | None:
        """None: they are not read."""
        return None

    def ceilings(self, timer: Timer) -> Ceilings | None:
        """None: they are not measured."""
        return None
