"""Which kernel a call would run, and what it costs, without running it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import backend
from .errors import ArgumentError
from .geometry import Geometry
from .launch.formats import empty_in_format
from .launch.layout import device_of, layout_of
from .plan import backward, choose
from .plan.cost import partial_bytes
from .plan.device import DEVICES, Device
from .plan.problem import Plan, Problem


@dataclass(frozen=True)
class Pass:
    """One operator of the call: its plan and its cost.

    Attributes:
        plan: kernel, tile, grid and splits; None where PyTorch's CPU convolution runs.
        flops: floating-point operations, two for a multiply-add.
        compulsory_bytes: each tensor moved once.
        workspace_bytes: partial sums of a split reduction.
        copy_bytes: memory of the copies of images and of the weight, in the order that the kernel
            reads.
        copy_parts: parts of the images that are copied one after the other in this memory.
        bound: "memory" or "arithmetic", by the device's datasheet; None for an unknown device.
        floor_seconds: the least time that this bound allows.
    """

    plan: Plan | None
    flops: int
    compulsory_bytes: int
    workspace_bytes: int
    copy_bytes: int
    copy_parts: int
    bound: str | None
    floor_seconds: float | None


@dataclass(frozen=True, repr=False)
class Explanation:
    """The operators of one call, printed in lines; `as_dict()` is for programs.

    `passes` has "fprop", "dgrad" and "wgrad", and "backward" where both gradients together, as
    autograd asks for them in training, are one launch.
    """

    geometry: Geometry
    dtype: torch.dtype
    backend: str
    device: Device | None
    passes: dict[str, Pass]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        passes = {}
        for op, cost in self.passes.items():
            entry = asdict(cost)
            if cost.plan is not None:
                entry["plan"]["family"] = cost.plan.family
                entry["plan"]["kernel"] = cost.plan.kernel
                if cost.plan.exchange is not None:
                    entry["plan"]["exchange"]["name"] = cost.plan.exchange.name
            passes[op] = entry
        return {
            "geometry": asdict(self.geometry) | {"P": self.geometry.P, "Q": self.geometry.Q},
            "dtype": str(self.dtype).removeprefix("torch."),
            "backend": self.backend,
            "device": None if self.device is None else asdict(self.device),
            "passes": passes,
        }

    def __str__(self) -> str:
        lines = [f"{self.geometry}", f"dtype {self.as_dict()['dtype']}, {self.backend}"]
        for op, cost in self.passes.items():
            lines.append(f"{op}{' (dgrad and wgrad)' * (op == 'backward')}: {_describe(cost)}")
        return "\n".join(lines)

    __repr__ = __str__


def explain(
    geometry: Geometry,
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    precision: str,
    device: Device | None,
) -> Explanation:
    """The Explanation of a call whose tensors are these (meta tensors will do).

    Args:
        geometry: of the call.
        x, weight, y: the tensors of the call; only shapes, strides and dtypes are read.
        precision: how float32 is multiplied.
        device: plan for this device instead of the tensors' own.
    """
    if device is not None:
        name = f"Triton kernels, as planned for {device.name}"
    else:
        name = backend.backend_name(x.device)
        device = device_of(x) if backend.runs_kernels(x.device) else None
    # The weight's gradient has a memory format of its own.
    dw = empty_in_format(geometry.weight_shape, weight.dtype, like=x, device="meta")
    layouts = {"fprop": layout_of(geometry, x, weight, y), "wgrad": layout_of(geometry, x, dw, y)}
    passes = {}
    for op in ("fprop", "dgrad", "wgrad"):
        plan, workspace, copies, parts, bound, floor = None, 0, 0, 1, None, None
        moved = geometry.compulsory_bytes(x.itemsize, weight.itemsize, y.itemsize)
        if device is not None and y.numel():
            own = x.itemsize if x.dtype != weight.dtype and op != "dgrad" else 0
            layout = layouts.get(op, layouts["fprop"])
            problem = Problem(op, geometry, weight.dtype, precision, layout, device, own)
            plan = choose.plan(problem)
            bound, floor = _bound(problem, plan, moved)
            work = plan.work(problem)
            parts, copies = work.parts, round(work.copy_bytes / work.parts)
            copies += plan.exchange.memory(problem) if plan.exchange else 0
            workspace = partial_bytes(plan, problem)
        passes[op] = Pass(plan, geometry.flops, moved, workspace, copies, parts, bound, floor)
    if device is not None and y.numel() and x.dtype == weight.dtype:
        dgrad, wgrad = (
            Problem(op, geometry, weight.dtype, precision, layout, device)
            for op, layout in (("dgrad", layouts["fprop"]), ("wgrad", layouts["wgrad"]))
        )
        if (plan := choose.plan_both(dgrad, wgrad)) is not None:
            problem = backward.both(dgrad, wgrad)
            moved = problem.compulsory_bytes
            bound, floor = _bound(problem, plan, moved)
            workspace = backward.partial_bytes_of(plan.splits, problem)
            passes["backward"] = Pass(
                plan, 2 * geometry.flops, moved, workspace, 0, 1, bound, floor
            )
    return Explanation(geometry, weight.dtype, name, device, passes)


def device_named(name: str) -> Device:
    """One of the devices of DEVICES, by a name in any case.

    Raises:
        ArgumentError: there is no such device.
    """
    key = name.lower().removeprefix("nvidia-")
    if key not in DEVICES:
        raise ArgumentError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    return DEVICES[key]


def _bound(problem: Problem, plan: Plan, moved: int) -> tuple[str | None, float | None]:
    """("memory" or "arithmetic", seconds) by the datasheet; None where it has no rate."""
    device, work = problem.device, plan.work(problem)
    rate = device.flops_per_second.get(work.unit)
    if rate is None or device.bandwidth is None:
        return None, None
    arithmetic = work.products * 2 * problem.macs / rate
    memory = moved / device.bandwidth
    return ("arithmetic" if arithmetic > memory else "memory"), max(arithmetic, memory)


def _describe(cost: Pass) -> str:
    parts = []
    if cost.plan is not None:
        plan = cost.plan
        tile = ", ".join(f"{name}={value}" for name, value in vars(plan.tile).items())
        parts.append(f"{plan.kernel} ({tile}), {plan.grid} programs")
        if plan.splits > 1:
            parts.append(f"{plan.splits} splits of {plan.split_strips} strips")
        if plan.int64:
            parts.append("64-bit offsets")
        if plan.exchange:
            parts.append(plan.exchange.in_words)
    parts.append(f"{_quantity(cost.flops)}FLOP")
    parts.append(f"{_quantity(cost.compulsory_bytes)}B compulsory")
    if cost.workspace_bytes:
        parts.append(f"{_quantity(cost.workspace_bytes)}B of partial sums")
    if cost.copy_bytes:
        times = f" in each of {cost.copy_parts} parts" if cost.copy_parts > 1 else ""
        parts.append(f"{_quantity(cost.copy_bytes)}B of copies{times}")
    if cost.floor_seconds is not None:
        parts.append(f"{cost.bound}-bound, at least {_quantity(cost.floor_seconds)}s by datasheet")
    return ", ".join(parts)


def _quantity(number: float) -> str:
    """A number with an SI prefix and three digits: 1.23 G."""
    if number >= 1:
        for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
            if number >= 10**power:
                return f"{number / 10**power:.3g} {prefix}"
        return f"{number:.3g} "
    for power, prefix in ((3, "m"), (6, "u"), (9, "n")):
        if number * 10**power >= 1:
            return f"{number * 10**power:.3g} {prefix}"
    return f"{number:.3g} "
