"""Calls drawn at random, for combinations that no table of cases has.

Sizes range from photographs to layers of networks; every operator, dtype, format, padding mode and
epilogue is drawn.
"""

from __future__ import annotations

from tricorr.ops import geometry_of
from tricorr.ops.errors import ArgumentError
from tricorr.ops.plan import choose
from tricorr.perf.model.planned import PlannedCall
from tricorr.perf.workloads import Workload

#: (activation, whether a tensor is added).
EPILOGUES = [("none", False), ("relu", False), ("relu", True), ("gelu", False), ("silu", True)]
DTYPES = ["float32", "tf32", "tf32x3", "bfloat16", "bfloat16", "float16", "float64"]


def calls(rng, device):
    """An endless sequence of planned calls for a device; equal for equal random numbers."""
    while True:
        try:
            call = _call(rng)
            plan = choose.plan(call.problem(device))
        except ArgumentError:  # no such correlation, or more programs than a launch can have
            continue
        yield PlannedCall(call.workload, call.op, call.dtype, call.format, plan)


def _call(rng):
    channels, filters, groups, banks = _channels(rng)
    height = rng.choice([7, 14, 28, 56, 112, 224, 250, 1024])
    width = height + rng.choice([0, 0, 0, 3])
    R = rng.choice([1, 1, 2, 3, 3, 3, 3, 5, 5, 7, 7, 9, 11, 13, 15, 21, 31])
    R = min(R, 7) if channels // groups > 8 else R
    S = rng.choice([R, R, R, R, R, 1, 3, 5, 9])
    dilation = rng.choice([1, 1, 1, 1, 2, 3])
    same = rng.random() < 0.8
    pads = ((n - 1) * dilation // 2 if same else 0 for n in (R, S))
    N = rng.choice([1, 8, 64])
    geometry = geometry_of(
        (N, channels, height, width),
        ((N,) if banks else ()) + (filters, channels // groups, R, S),
        stride=rng.choice([(1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (3, 3)]),
        padding=tuple((pad, pad) for pad in pads),
        dilation=(dilation, dilation),
        groups=groups,
        padding_mode=rng.choice([*4 * ["zeros"], "reflect", "replicate", "circular"]),
    )
    op = rng.choice(["fprop", "fprop", "dgrad", "wgrad"])
    if op == "dgrad" and geometry.frame_pixels:
        op = rng.choice(["dgrad", "dgrad_frame"])
    dtype = rng.choice(DTYPES + ([] if op.startswith("dgrad") else ["uint8"]))
    activation, residual = rng.choice(EPILOGUES) if op == "fprop" else ("none", False)
    bias, form = rng.random() < 0.5, rng.choice(["NCHW", "channels_last"])
    workload = Workload(str(geometry), "drawn", geometry, (), (op,), bias, activation, residual)
    return PlannedCall(workload, op, dtype, form)


def _channels(rng):
    """(channels, filters, groups, whether each sample has a bank): images and depthwise, mostly."""
    kind = rng.choice(["image", "few", "depthwise", "depthwise", "multiplier", "bank", *4 * "m"])
    if kind == "image":
        return 1, rng.choice([1, 1, 2, 3, 4, 8]), 1, False
    if kind == "few":
        return rng.choice([2, 3, 4]), rng.choice([1, 2, 3, 4, 8, 16]), 1, False
    if kind == "bank":
        return *rng.choice([(1, 1, 1), (3, 3, 3), (2, 4, 1)]), True
    if kind == "m":
        sizes = [16, 24, 32, 64, 67, 128, 256]
        groups = rng.choice([1, 1, 1, 2, 8])
        return groups * rng.choice(sizes), groups * rng.choice(sizes), groups, False
    groups = rng.choice([3, 12, 32, 64, 96, 144, 384])
    times = rng.choice([2, 3, 4]) if kind == "multiplier" else 1
    return groups, groups * times, groups, False
