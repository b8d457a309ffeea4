"""Calls drawn at random, as the planner would launch them: what no table of cases thinks of.

Sizes are those of photographs, of layers of convolutional networks and of what lies between; every
operator, type, format, padding mode and epilogue comes up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..ops.errors import ArgumentError
from ..ops.geometry import geometry_of
from ..ops.launch.layout import layout_of
from ..ops.plan import choose
from ..ops.plan.problem import Plan, Problem
from .configurations import Case, Configuration, Target, launched_geometry

_EPILOGUES = [("none", False), ("relu", False), ("relu", True), ("gelu", False), ("silu", True)]


def drawn(target: Target, count: int, seed: int) -> Iterator[Configuration]:
    """`count` planned calls for a target; the same ones for the same seed.

    The name of a case says all of it: its place here, the geometry and the options.
    """
    rng = random.Random(seed)
    made = 0
    while made < count:
        try:
            op, dtype, precision, case = _draw(rng)
            plan = _plan(op, dtype, precision, case, target)
        except ArgumentError:  # or there are more programs than a launch can have
            continue
        if plan is None:
            continue
        made += 1
        name = f"drawn{made} ({_options(precision, case)}) {case.geometry}"
        case = replace(case, geometry=launched_geometry(op, case))  # Configuration turns it back
        yield Configuration(plan.kernel, "", name, case, plan, dtype)


def _options(precision: str, case: Case) -> str:
    given = {"channels_last": case.channels_last, "bias": case.bias, "residual": case.residual}
    return ", ".join([precision, case.activation, *(name for name, on in given.items() if on)])


def _draw(rng: random.Random) -> tuple[str, torch.dtype, str, Case]:
    """(op, dtype, precision, case).

    Raises:
        ArgumentError: there is no such correlation.
    """
    channels, filters, groups, banks = _channels(rng)
    height = rng.choice([7, 14, 28, 56, 112, 224, 250, 1024])
    width = height + rng.choice([0, 0, 0, 3])
    R = rng.choice([1, 1, 2, 3, 3, 3, 3, 5, 5, 7, 7, 9, 11, 13, 15, 21, 31])
    R = min(R, 7) if channels // groups > 8 else R
    S = rng.choice([R, R, R, R, R, 1, 3, 5, 9])
    dilation = rng.choice([1, 1, 1, 1, 2, 3])
    same = rng.random() < 0.8
    pad_h, pad_w = ((n - 1) * dilation // 2 if same else 0 for n in (R, S))
    N = rng.choice([1, 8, 64])
    geometry = geometry_of(
        (N, channels, height, width),
        ((N,) if banks else ()) + (filters, channels // groups, R, S),
        stride=rng.choice([(1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (3, 3)]),
        padding=((pad_h, pad_h), (pad_w, pad_w)),
        dilation=(dilation, dilation),
        groups=groups,
        padding_mode=rng.choice([*4 * ["zeros"], "reflect", "replicate", "circular"]),
    )
    op = rng.choice(["fprop", "fprop", "dgrad", "wgrad"])
    if op == "dgrad" and geometry.padding_mode != "zeros":
        op = rng.choice(["dgrad", "dgrad_frame"])
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]
    dtype = rng.choice(dtypes + ([] if op.startswith("dgrad") else [torch.uint8]))
    activation, residual = rng.choice(_EPILOGUES) if op == "fprop" else ("none", False)
    case = Case(
        geometry,
        channels_last=rng.random() < 0.5,
        bias=rng.random() < 0.5,
        activation=activation,
        residual=residual,
    )
    return op, dtype, rng.choice(["ieee", "tf32", "tf32x3"]), case


def _channels(rng: random.Random) -> tuple[int, int, int, bool]:
    """(channels, filters, groups, whether each sample has a bank): images and depthwise, mostly."""
    kind = rng.choice(["image", "few", "depthwise", "depthwise", "multiplier", "bank", "many"])
    if kind == "image":
        return 1, rng.choice([1, 1, 2, 3, 4, 8]), 1, False
    if kind == "few":
        return rng.choice([2, 3, 4]), rng.choice([1, 2, 3, 4, 8, 16]), 1, False
    if kind == "bank":
        return *rng.choice([(1, 1, 1), (3, 3, 3), (2, 4, 1)]), True
    if kind == "many":
        sizes = [16, 24, 32, 64, 67, 128, 256]
        return rng.choice(sizes), rng.choice(sizes), 1, False
    groups = rng.choice([3, 12, 32, 64, 96, 144, 384])
    times = rng.choice([2, 3, 4]) if kind == "multiplier" else 1
    return groups, groups * times, groups, False


def _plan(op: str, dtype: torch.dtype, precision: str, case: Case, target: Target) -> Plan | None:
    """What the planner decides for contiguous or channels_last tensors."""
    geometry = case.geometry
    floating = torch.float32 if dtype == torch.uint8 else dtype
    x, y = (
        torch.empty(shape, dtype=kind, device="meta", memory_format=case.memory_format)
        for shape, kind in ((geometry.x_shape, dtype), (geometry.y_shape, floating))
    )
    if y.numel() == 0 or (op == "dgrad_frame" and not geometry.frame_pixels):
        return None
    weight = torch.empty(geometry.weight_shape, dtype=floating, device="meta")
    layout = layout_of(geometry, x, weight, y, y if case.residual else None, case.activation)
    return choose.plan(Problem(op, geometry, floating, precision, layout, target.device))
