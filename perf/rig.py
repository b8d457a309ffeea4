"""The device of a run, as its processes reach it: a GPU, or the CPU fallback."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..ops.plan import choose
from .machine import Ceilings, Clocks, Machine, machine, measure_ceilings
from .measure import BUDGET, CpuTimer, GpuTimer, Timer, median_seconds
from .predict import problem_of
from .providers import PROVIDERS, Call, Operands, Provider
from .workloads import Workload, find

if TYPE_CHECKING:
    from ..ops.launch import call as launches
    from ..ops.plan.device import Device
    from ..ops.plan.problem import Plan


@dataclass(frozen=True)
class Entrant:
    """One way to run a call with our kernels.

    Attributes:
        name: in rows: "tricorr", or "tricorr@" and what is different.
        format: of the tensors.
        plan: of the launch.
        copied: contiguous images are copied to channels_last first, which is timed.
    """

    name: str
    format: str
    plan: Plan
    copied: bool = False


@dataclass(frozen=True)
class GpuRig:
    """A GPU. Nothing touches it before a method is called, so that processes can be forked."""

    kind: str = "gpu"
    #: Of tensors.
    device: str = "cuda"
    #: Seconds for one tiny call with all its set-up, for one build, and for one job.
    check_limit: float = 15.0
    build_limit: float = 60.0
    job_limit: float = 90.0
    #: Seconds of one search of tiles, at least and at most; of sampling one job.
    search_seconds: tuple[float, float] = (8.0, 60.0)
    budget: float = BUDGET
    #: States of the caches that are timed, and in which families are compared.
    caches: tuple[str, ...] = GpuTimer.caches
    cold: tuple[str, ...] = GpuTimer.caches[:1]
    #: Whether our times are those of the public functions where the planner's plan is on.
    by_public_call: bool = True

    @property
    def providers(self) -> Sequence[Provider]:
        """Ours and the peers. A rig is sent to processes, providers cannot be."""
        return PROVIDERS

    def workload(self, name: str) -> Workload | None:
        """A workload of the table, by name; None if there is none."""
        try:
            return find(name)
        except KeyError:
            return None

    def is_checked(self, kernel: str, dtype: str) -> bool:
        """Whether tiny calls of a kernel are made: of all."""
        return True

    def planned_for(self) -> Device:
        """What the planner is told of it."""
        from ..ops.launch.layout import device_of

        return device_of(torch.empty(0, device=self.device))

    def facts(self) -> Machine:
        """What goes into every row."""
        return machine(self.kind)

    def timer(self) -> Timer:
        return GpuTimer()

    def clocks(self) -> Clocks | None:
        return Clocks()

    def ceilings(self, timer: Timer) -> Ceilings | None:
        """Measured on the spot; what cannot be is None."""
        found = measure_ceilings(lambda call: median_seconds(timer, call))
        try:
            from . import probes

            l2 = probes.l2_rate(timer, self.planned_for().multiprocessors)
            return replace(
                found,
                l2=l2,
                launch=probes.launch_seconds(timer),
                latency=probes.load_seconds(timer),
            )
        except Exception as error:  # a run goes on without
            print(f"no constants of the device: {error}", file=sys.stderr)
            return found

    def ours(self, operands: Operands) -> Call:
        """The public function, as the planner decides."""
        return PROVIDERS[0].prepare(operands)

    def call(self, operands: Operands, entrant: Entrant) -> Call:
        """A call of our kernels with a plan, and of nothing around them."""
        from ..ops.launch import arguments

        o, g, plan = operands, operands.geometry, entrant.plan
        activation = o.workload.activation

        def to_last(image: torch.Tensor) -> torch.Tensor:
            return image.contiguous(memory_format=torch.channels_last) if entrant.copied else image

        def fprop() -> torch.Tensor:
            x, residual = to_last(o.x), o.residual
            return arguments.fprop(x, o.weight, o.bias, g, o.precision, activation, residual, plan)

        def dgrad() -> torch.Tensor:
            return arguments.dgrad(to_last(o.dy), o.weight, g, o.precision, plan=plan)

        def wgrad() -> torch.Tensor:
            return arguments.wgrad(to_last(o.x), to_last(o.dy), g, o.precision, plan=plan)

        return {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}[o.op]

    def build(self, operands: Operands, plan: Plan, device: Device) -> None:
        """Compiles a call of meta tensors into Triton's cache, as its launch will look it up."""
        import triton
        from triton.backends.compiler import GPUTarget

        from .machine_code import source_of

        amd = device.arch.startswith("gfx")
        gpu = GPUTarget("hip", device.arch, 64) if amd else GPUTarget("cuda", int(device.arch), 32)
        _, calls = launches_of(operands, plan, device)
        for call in itertools.chain.from_iterable(call.launches() for call in calls):
            source, options = source_of(call, gpu)
            _build_launcher(triton.compile(source, target=gpu, options=options))


def _build_launcher(compiled: Any) -> None:
    """Compiles the C launcher of a kernel, which Triton before 3.7 does at the first launch.

    One that cannot be built here is built, or fails, there.
    """
    from ..kernels.versions import BEFORE_3_7

    if BEFORE_3_7 and "cubin" in compiled.asm:
        from triton.backends.nvidia.driver import CudaLauncher

        with contextlib.suppress(Exception):
            CudaLauncher(compiled.src, compiled.metadata)


def launches_of(
    operands: Operands, plan: Plan, device: Device
) -> tuple[torch.Tensor, list[launches.Call]]:
    """(the result, every kernel launch that fills it); operands may be meta tensors."""
    from ..ops.launch.arguments import dgrad_call, fprop_call, wgrad_calls
    from ..ops.launch.formats import empty_in_format

    o, g = operands, operands.geometry
    if o.op == "wgrad":
        dw = o.dy.new_empty(g.weight_shape)
        return dw, list(wgrad_calls(o.x, o.dy, dw, g, plan))
    if o.op == "fprop":
        y = empty_in_format(g.y_shape, o.weight.dtype, like=o.x)
        activation, residual = o.workload.activation, o.residual
        return y, [fprop_call(o.x, o.weight, o.bias, y, g, plan, activation, residual)]
    dx = empty_in_format(g.x_shape, o.dy.dtype, like=o.dy)
    plans = [plan]
    if g.frame_pixels:
        plans.append(choose.plan(problem_of(o, device, "dgrad_frame")))
    return dx, [dgrad_call(o.dy, o.weight, None, dx, g, chosen) for chosen in plans]


@dataclass(frozen=True)
class CpuRig(GpuRig):
    """PyTorch's CPU convolution behind our functions, in one thread."""

    kind: str = "cpu"
    device: str = "cpu"
    budget: float = 0.1
    caches: tuple[str, ...] = ("warm",)
    cold: tuple[str, ...] = ("warm",)

    def timer(self) -> Timer:
        torch.set_num_threads(1)  # more wait for each other wherever something else runs
        return CpuTimer()

    def facts(self) -> Machine:
        torch.set_num_threads(1)
        return machine(self.kind)

    def clocks(self) -> Clocks | None:
        return None

    def ceilings(self, timer: Timer) -> Ceilings | None:
        return None
