"""A fake GPU. PyTorch computes results on CPU, and a clock advances by the static model's times.

Faults can be built in: a kernel with wrong results, one that hangs, one that does not compile, and
a family that is slower than the model predicts.
"""

from __future__ import annotations

import random
import time
import zlib
from dataclasses import dataclass, replace

import torch

from tricorr.ops.plan import choose
from tricorr.ops.plan.device import DEVICES
from tricorr.perf.model.calibration import with_constants
from tricorr.perf.model.planned import problem_of, seconds_of
from tricorr.perf.providers import OURS, PROVIDERS, PYTORCH, Provider
from tricorr.perf.session.checks import whole_truth
from tricorr.perf.session.rig import Entrant, GpuRig
from tricorr.perf.timing.ceilings import Ceilings
from tricorr.perf.timing.machine import Machine
from tricorr.perf.timing.timers import CpuTimer
from tricorr.perf.workloads import find

NAME = "NVIDIA H200, rehearsed"
DEVICE = replace(DEVICES["h200"], name=NAME)
#: Its measured ceilings: L2 is slower than the planner assumes.
CEILINGS = Ceilings(4.3e12, {"bfloat16": 8e14, "float32": 6e13, "tf32": 4e14}, 5e12, 2e-6, 5e-7)
TRUE = with_constants(DEVICE, CEILINGS.constants())


class Clock:
    """A clock that advances only when its `now` is increased."""

    now = 0.0

    def __call__(self):
        return self.now


CLOCK = Clock()


#: The last operands and their result, since many calls with the same operands are timed in turns.
_LAST = []


def answer(operands):
    """The right result, computed in float32 or float64."""
    if not _LAST or _LAST[0] is not operands:
        _LAST[:] = [operands, computed(operands)]
    return _LAST[1]


def computed(operands):
    o = operands
    dtype = o.weight.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    g = o.geometry
    if o.residual is not None or (o.op != "fprop" and (g.per_sample or g.padding_mode != "zeros")):
        shapes = {"fprop": g.y_shape, "dgrad": g.x_shape, "wgrad": g.weight_shape}
        return whole_truth(o).values.view(shapes[o.op]).to(dtype)
    tensors = {n: t.to(wide) for n in ("x", "weight", "dy") if (t := getattr(o, n)) is not None}
    bias = None if o.bias is None else o.bias.to(wide)
    return PROVIDERS[1].prepare(replace(o, bias=bias, **tensors))().to(dtype)


def theirs(operands):
    """PyTorch's call: a fifth slower than the model's time of our plan."""
    problem = problem_of(operands, DEVICE)
    seconds = 1.2 * seconds_of(choose.plan(problem), replace(problem, device=TRUE))
    result = answer(operands)

    def call():
        CLOCK.now += seconds
        return result

    return call


@dataclass(frozen=True)
class FakeGpu(GpuRig):
    """The rig that the processes of a rehearsed run use.

    Attributes:
        names: the workloads, with one sample each.
        wrong, hanging, failing: (kernel, dtype) with that fault.
        slow: a family that takes three times as long as predicted.
        only: the kernels that have tiny calls.
    """

    device: str = "cpu"
    check_limit: float = 10.0
    build_limit: float = 10.0
    job_limit: float = 5.0
    search_seconds: tuple[float, float] = (0.3, 1.2)
    host_calls: tuple[int, int] = (20, 2)
    budget: float = 0.001
    caches: tuple[str, ...] = ("cold",)
    cold: tuple[str, ...] = ("cold",)
    by_public_call: bool = False
    names: tuple[str, ...] = ()
    wrong: tuple[str, str] = ("", "")
    hanging: tuple[str, str] = ("", "")
    failing: tuple[str, str] = ("", "")
    slow: str = ""
    only: tuple[str, ...] = ()

    @property
    def providers(self):
        return (Provider(PYTORCH, "core", theirs),)

    def workload(self, name):
        if name not in self.names:
            return None
        found = find(name)
        return replace(found, geometry=replace(found.geometry, N=1))

    def is_checked(self, kernel, dtype):
        return (kernel, dtype) in self.only

    def planned_for(self):
        return DEVICE

    def facts(self):
        return Machine("gpu", NAME, "rehearsed+1", "2.11", "0.1.0", "3.6", "9", "580")

    def timer(self):
        torch.set_num_threads(1)
        return CpuTimer(CLOCK, caches=("cold",), sample_seconds=1e-9)

    def clocks(self):
        return None

    def ceilings(self, timer):
        return CEILINGS

    def call(self, operands, entrant: Entrant):
        plan = entrant.plan
        fault = plan.kernel, operands.dtype
        seconds = seconds_of(plan, problem_of(operands, TRUE))
        seconds *= 3.0 if plan.family == self.slow else 1.0
        noise = random.Random(zlib.crc32(f"{plan}{operands.workload.name}".encode()))
        result = answer(operands)

        def call():
            if fault == self.hanging:
                time.sleep(60)
            CLOCK.now += seconds * noise.uniform(0.98, 1.02)
            return result + 1 if fault == self.wrong else result

        return call

    def ours(self, operands):
        return self.call(
            operands, Entrant(OURS, operands.format, choose.plan(problem_of(operands, DEVICE)))
        )

    def build(self, operands, plan, device):
        if (plan.kernel, operands.dtype) == self.failing:
            raise RuntimeError("PassManager::run failed")
