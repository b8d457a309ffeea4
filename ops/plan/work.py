"""Which of several plans is expected to take the least time, by the static model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..geometry import Geometry
from .cost import (
    STENCIL_LANES,
    THREADS,
    Code,
    Work,
    code_of,
    gemm_work,
    reread_bytes,
    times_of,
)
from .device import LIMITS, SMALLEST, Device
from .integers import cdiv
from .tma import TmaTile, tma_programs

if TYPE_CHECKING:
    from .choose import Plan

#: Plans that take so much longer than the fastest are as good to the model: it is no better than
#: its rates. Of those the one is taken that keeps all units together busy for the shortest time.
CLOSE = 1.1
#: A stencil is left for a matrix unit that mostly multiplies zeros only where that takes so much
#: less of its time that the model may be as wrong.
MARGIN = 0.5
#: The two tensors that an operator reads, the one with pixels first.
READ = {"fprop": ("x", "weight"), "dgrad": ("y", "weight"), "wgrad": ("x", "y")}


def cheapest(
    plans: Sequence[Plan],
    geometry: Geometry,
    dtype: torch.dtype,
    device: Device,
    planes: bool = False,
) -> Plan:
    """The one of several plans of GEMMs and stencils that the model expects to be done first."""
    if len(plans) == 1:
        return plans[0]
    works = [plan_work(p, geometry, dtype, dtype.itemsize, device, planes=planes) for p in plans]
    times = {plan: times_of(work, device) for plan, work in zip(plans, works, strict=True)}
    if plans[0].family == "stencil":
        plan = min(times, key=lambda plan: times[plan].predicted)
        gains = times[plan].predicted < MARGIN * times[plans[0]].predicted
        return plan if gains else plans[0]
    least = min(time.predicted for time in times.values())
    close = [plan for plan, time in times.items() if time.predicted <= CLOSE * least]
    return min(close, key=lambda plan: times[plan].busy)


def plan_work(
    plan: Plan,
    geometry: Geometry,
    dtype: torch.dtype,
    x_bytes: int,
    device: Device,
    code: Code | None = None,
    planes: bool = False,
) -> Work:
    """What a plan of a gemm, tma or stencil kernel asks of a device.

    Args:
        plan: of the launch.
        geometry: of the call.
        dtype: of the weight, or of dy.
        x_bytes: of an element of x.
        device: to run on.
        code: of a program, where it was counted.
        planes: images are (N, C, H, W) in memory.
    """
    threads = LIMITS.get(device.arch, SMALLEST).lanes * plan.tile.num_warps
    if plan.family == "stencil":
        return _stencil_work(plan, geometry, dtype, x_bytes, threads, device)
    gemm = plan.gemm
    unit = unit_of(dtype, plan.precision)
    itemsize = dtype.itemsize
    # Rows of a box of planes are multiplied one by one.
    cut = planes and isinstance(plan.tile, TmaTile) and plan.op != "wgrad"
    parts = vars(plan.tile)["BLOCK_P"] if cut else 1
    alone = gemm[2] * (gemm[0] + gemm[1] * (plan.op == "wgrad"))
    if not planes or plan.family != "gemm" or geometry.is_point or itemsize > 2:
        alone = 0
    if code is None:
        flat = plan.family == "gemm" and plan.op != "wgrad" and not plan.one_tap
        precision = plan.precision if unit == "tf32" else unit
        code = code_of(plan.family, plan.op, gemm, threads, flat, precision, parts, alone)
    pixels = itemsize if plan.op == "dgrad" else x_bytes
    itemsizes = (itemsize, pixels) if plan.op == "wgrad" else (pixels, itemsize)
    if plan.family == "tma" and plan.op != "wgrad":  # filters are the rows
        itemsizes = itemsizes[::-1]
    return gemm_work(
        plan.family,
        gemm,
        passes(plan, geometry),
        programs_of(plan, geometry),
        threads,
        (gemm[0] + gemm[1]) * gemm[2] * itemsize * plan.tile.num_stages,
        itemsizes,
        unit,
        3 if plan.precision == "tf32x3" else 1,
        device_bytes(plan, geometry, x_bytes, itemsize, device),
        code,
        device,
        partial_bytes(plan, geometry, itemsize),
        parts,
        alone,
    )


def _stencil_work(
    plan: Plan, geometry: Geometry, dtype: torch.dtype, x_bytes: int, threads: int, device: Device
) -> Work:
    """Every tap of every channel that is summed loads its pixel through L1.

    From L2 comes, of each row of the window, what the taps of it overlap in.
    """
    g, itemsize = geometry, dtype.itemsize
    blocks = vars(plan.tile)
    m, c = blocks["BLOCK_M"], blocks["BLOCK_C"]
    if plan.op == "wgrad":
        macs = cdiv(plan.split_pixels, m) * m * c
        loads = fresh = macs * (x_bytes + itemsize)
    else:
        first = x_bytes if plan.op == "fprop" else itemsize
        summed = g.group_C if plan.op == "fprop" else g.group_K
        macs = g.R * g.S * summed * m * c
        loads = macs * first + g.R * g.S * summed * c * itemsize
        row = min(m * g.stride[1] + (g.S - 1) * g.dilation[1], m * g.S)
        fresh = g.R * row * c * summed * first
    between = partial_bytes(plan, g, itemsize)
    return Work(
        plan.grid,
        threads,
        device_bytes(plan, g, x_bytes, itemsize, device),
        fresh,
        loads,
        macs,
        "float64" if dtype == torch.float64 else "fma",
        STENCIL_LANES[plan.op[:5]] * macs / threads,
        THREADS // 2 // threads,
        2 if between else 1,
        between,
    )


def programs_of(plan: Plan, geometry: Geometry) -> int:
    """Programs that a launch would have if none did the work of several."""
    if isinstance(plan.tile, TmaTile) and plan.tile.programs:
        planned = geometry.as_rows() if plan.as_rows else geometry
        return tma_programs(plan.op, planned, plan.tile)
    return plan.grid


def passes(plan: Plan, geometry: Geometry) -> float:
    """Passes of the loop of one program of a gemm or tma kernel; of a dgrad's phase, on average."""
    _, _, k = plan.gemm
    if plan.op == "wgrad":
        return plan.split_strips or cdiv(plan.split_pixels, k)
    taps = geometry.R * geometry.S / (math.prod(geometry.phases) if plan.op == "dgrad" else 1)
    summed = geometry.group_C if plan.op == "fprop" else geometry.group_K
    if plan.family == "tma" or plan.one_tap:
        return taps * cdiv(summed, k)
    rows, columns = geometry.phases if plan.op == "dgrad" else (1, 1)
    return window_steps(cdiv(geometry.R, rows), cdiv(geometry.S, columns), summed, k)


def window_steps(rows: int, columns: int, channels: int, block: int) -> int:
    """Steps of a GEMM through all taps of few channels, whole rows of the window if they fit."""
    row = columns * channels
    return cdiv(rows, max(1, block // row)) * cdiv(row, block)


def device_bytes(
    plan: Plan, geometry: Geometry, x_bytes: int, itemsize: int, device: Device
) -> int:
    """Bytes through device memory: compulsory ones, what L2 cannot keep, partial sums."""
    g = geometry
    sizes = {
        "x": g.x_numel * x_bytes,
        "weight": g.weight_numel * itemsize,
        "y": g.y_numel * itemsize,
    }
    first, second = (sizes[name] for name in READ[plan.op[:5]])
    moved = g.compulsory_bytes(x_bytes, itemsize, itemsize)
    batches = g.N if g.per_sample else 1
    sharers = g.R * g.S * g.group_C
    if plan.family in ("gemm", "tma", "banded"):
        sharers = programs_of(plan, g) // max(1, plan.splits * g.groups * batches)
    moved += reread_bytes(plan.op, first, second, programs_of(plan, g), sharers, device)
    return moved + partial_bytes(plan, g, itemsize)  # are written


def partial_bytes(plan: Plan, geometry: Geometry, itemsize: int) -> int:
    """Bytes of a weight gradient's partial sums."""
    return (plan.partials > 1) * plan.partials * geometry.weight_numel * max(4, itemsize)


def unit_of(dtype: torch.dtype, precision: str) -> str:
    """Which of a device's units multiplies on the way of a GEMM, see model.Rates."""
    if dtype == torch.float64:
        return "float64"
    if dtype.itemsize == 2:
        return "half"
    return "fma" if precision == "ieee" else "tf32"
