"""Configurations to compile for GPUs that need not be there: named cases with every tile.

A configuration is a case, an operator, a dtype and a tile. `configurations(target)` has all: for
each case of a family, every tile with which the family can run it on that target. `dealt(target)`
has one for each choice that a planner has there: kernel, kind of product and tile. Which one that
is moves on by one from choice to choice and from target to target. Choices that change little of
the code (64-bit offsets, steps across taps, boxes in a loop), and those of large windows, are built
on one of the targets each.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...ops.errors import ArgumentError
from ...ops.geometry import Geometry
from ...ops.launch.call import Call
from ...ops.plan import backward, banded, choose, gemm
from ...ops.plan.device import DEVICES, Device
from ...ops.plan.exchange import Exchange
from ...ops.plan.problem import Plan, Problem
from ...ops.plan.tuned import tuned_for
from ..providers import TENSOR_DTYPES
from ..workloads import ALL_OPS, Workload
from .planned import PlannedCall, tiles_of

#: Parts of an image's reduction: the code is the same for any number of them.
SOME_SPLITS = 5
#: Bytes per thread that ptxas may move to memory outside of the loop, to stay at a number of
#: registers with which one more program fits: see Target.parked.
PARKED = 16


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    Attributes:
        name: as compilers call it.
        gpu: backend, architecture and warp size, as triton's GPUTarget takes them.
        device: the one that is planned for.
        float64_mma: whether Triton (3.6, 3.7) multiplies float64 on the matrix units.
        parked: bytes per thread that may be spilled outside of the loop. None on sm_90, for which
            tiles are chosen; Triton 3.6, with which they were not chosen, may everywhere.
    """

    name: str
    gpu: tuple[str, int | str, int]
    device: Device
    float64_mma: bool = True
    parked: int = PARKED

    @property
    def is_amd(self) -> bool:
        """Whether the backend is HIP."""
        return self.gpu[0] == "hip"


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", ("cuda", 80, 32), DEVICES["a100"]),
        Target("sm_90", ("cuda", 90, 32), DEVICES["h200"], parked=0),
        Target("sm_100", ("cuda", 100, 32), DEVICES["b200"], float64_mma=False),
        Target("gfx942", ("hip", "gfx942", 64), DEVICES["mi300x"]),
    )
}

#: Dtypes of rows for each kind of product of a matrix unit, and of kernels without one.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "half": ("bfloat16", "float16"),
    "tf32": ("tf32", "uint8-tf32"),
    "tf32x3": ("tf32x3",),
    "ieee": ("float32", "uint8"),
    "float64": ("float64",),
}
#: The file of each family by the name that its tiles have.
MODULES = {f.__name__.rpartition(".")[2]: f for f in (*choose.FAMILIES, backward)}
#: Families whose products are of the kinds above.
PRODUCTS_OF = (
    *(name for name, f in MODULES.items() if f not in (*choose.DIRECT, backward)),
    "frame",
)
EXACT = ("float32", "bfloat16", "uint8", "float16", "float64")


@dataclass(frozen=True)
class Case:
    """Operands with a reason to exist. dgrad gets them with the channels swapped.

    Attributes:
        workload: geometry, epilogue, and the operators that it is a case of.
        format: memory format of the images.
        recorded: dtypes in which the table of machine code has it with the first of its tiles, or
            with "fprop:" before them that operator's. A leading "*" stands for every tile in the
            dtype after it.
    """

    workload: Workload
    format: str = "NCHW"
    recorded: tuple[str, ...] = ()


def _case(
    *shape: int,
    stride: int | tuple[int, int] = 1,
    last: bool = False,
    ops: str = "fprop dgrad wgrad",
    bias: bool = False,
    residual: bool = False,
    activation: str = "none",
    recorded: str = "",
    **geometry: Any,
) -> Case:
    """From (N, C, H, W, K, R, S), with the padding that keeps the size unless another is given."""
    R, S = shape[5:]
    same = ((R // 2, R // 2), (S // 2, S // 2))
    strides = (stride, stride) if isinstance(stride, int) else stride
    steps: dict[str, Any] = {"stride": strides, "padding": same, **geometry}
    extents: dict[str, Any] = dict(zip("NCHWKRS", shape, strict=True))
    g = Geometry(**extents, **steps)
    workload = Workload("", "case", g, (), tuple(ops.split()), bias, activation, residual)
    form = "channels_last" if last else "NCHW"
    return Case(workload, form, tuple(recorded.split()))


#: Indivisible extents, strides, dilation, a flipped window, a filter per sample and 64-bit offsets:
#: no address expression simplifies.
_ODD: dict[str, Any] = {
    "stride": (2, 1),
    "padding": ((2, 1), (1, 2)),
    "dilation": (1, 2),
    "flip": True,
}
_ODD_SAMPLES = {**_ODD, "per_sample": True}

#: By family; "frame" is the part of an input gradient that a padding mode adds.
CASES: dict[str, dict[str, Case]] = {
    "gemm": {
        "dense": _case(
            8, 64, 56, 56, 256, 3, 3, last=True, bias=True,
            recorded="* bfloat16 tf32 tf32x3 float32 float64",
        ),
        "planes": _case(8, 64, 56, 56, 256, 3, 3, bias=True, recorded="bfloat16"),
        "residual": _case(
            8, 64, 56, 56, 256, 3, 3, ops="fprop", bias=True, activation="silu", residual=True
        ),
        "pointwise": _case(64, 128, 1024, 1024, 256, 1, 1, recorded="fprop:bfloat16"),
        "stem": _case(8, 3, 224, 224, 64, 7, 7, stride=2, ops="fprop wgrad", recorded="bfloat16"),
        "phases": _case(8, 3, 224, 224, 64, 7, 7, stride=2, ops="dgrad"),
        "few": _case(8, 3, 112, 112, 256, 3, 3),
        "few_filters": _case(8, 3, 112, 112, 16, 3, 3),
        "filters32": _case(8, 64, 56, 56, 32, 3, 3, last=True),
        "planes16": _case(8, 64, 56, 56, 16, 3, 3, ops="fprop dgrad"),
        "filters16": _case(
            8, 64, 56, 56, 16, 3, 3, last=True, recorded="* bfloat16"
        ),
        "ragged": _case(8, 67, 55, 57, 71, 3, 3, last=True),
        "ragged_sum": _case(8, 67, 55, 57, 64, 3, 3, last=True),
        "ragged_result": _case(8, 64, 55, 57, 71, 3, 3, last=True),
        "ragged_point": _case(64, 131, 1024, 1024, 257, 1, 1),
        "odd": _case(
            311, 14, 1031, 1033, 34, 3, 3, groups=2, padding_mode="reflect", last=True, bias=True,
            activation="silu", residual=True, **_ODD_SAMPLES,
        ),
    },
    "stencil": {
        "image": _case(1, 1, 4096, 4096, 1, 3, 3, recorded="float32 bfloat16 uint8"),
        "scale": _case(64, 128, 1024, 1024, 128, 1, 1, groups=128),
        "wide4": _case(64, 4, 4096, 4096, 4, 3, 3, groups=4, last=True),
        "wide128": _case(64, 128, 1024, 1024, 128, 3, 3, groups=128, last=True),
        "last4": _case(32, 4, 112, 112, 4, 3, 3, groups=4, last=True, recorded="float32"),
        "last16": _case(
            32, 16, 112, 112, 16, 3, 3, groups=16, last=True, bias=True,
            recorded="float32",
        ),
        "depthwise": _case(
            32, 96, 112, 112, 96, 3, 3, groups=96, last=True, bias=True,
            recorded="bfloat16",
        ),
        "odd": _case(
            311, 14, 1031, 1033, 21, 3, 3, groups=7, padding_mode="circular", last=True, bias=True,
            activation="gelu", residual=True, **_ODD_SAMPLES,
        ),
    },
    # Each kind of window, layout and channels.
    "rows": {
        "image3": _case(1, 1, 4096, 4096, 1, 3, 3, recorded="float32 bfloat16"),
        "image5": _case(1, 1, 4096, 4096, 1, 5, 5, recorded="float32 bfloat16"),
        "image7": _case(1, 1, 4096, 4096, 1, 7, 7, recorded="float32 bfloat16"),
        "edge": _case(1, 1, 4096, 4096, 1, 1, 2, padding=((0, 0), (0, 0)), bias=True),
        "planes3": _case(
            64, 96, 56, 56, 96, 3, 3, groups=96, padding_mode="replicate", bias=True,
            activation="relu6", residual=True, recorded="float32",
        ),
        "planes7": _case(64, 96, 56, 56, 96, 7, 7, groups=96),
        "strided": _case(64, 96, 112, 112, 96, 3, 3, stride=2, groups=96, recorded="float32"),
        "last3": _case(64, 144, 56, 56, 144, 3, 3, groups=144, last=True, recorded="float32"),
        "last7": _case(64, 96, 56, 56, 96, 7, 7, groups=96, last=True, recorded="float32"),
        "strided_last": _case(
            64, 96, 112, 112, 96, 3, 3, stride=2, groups=96, last=True, recorded="float32"
        ),
        "dilated_last": _case(
            64, 64, 224, 224, 64, 7, 7, stride=(2, 1), padding=((6, 6), (6, 6)), dilation=(2, 2),
            groups=64, last=True,
        ),
        "few_last": _case(
            8, 3, 112, 112, 3, 1, 5, groups=3, padding_mode="replicate", last=True,
            activation="gelu",
        ),
        "small": _case(8, 64, 7, 7, 64, 3, 3, groups=64),
        "two_filters": _case(1, 1, 1024, 1024, 2, 3, 3),
        "colours": _case(1, 3, 2160, 3840, 1, 5, 5),
        "odd": _case(
            311, 14, 1031, 1033, 28, 3, 3, groups=14, padding_mode="reflect", bias=True,
            activation="gelu", **_ODD_SAMPLES,
        ),
    },
    # Both gradients: vectors of one image and of several samples, single columns, channels.
    "backward": {
        "image3": _case(1, 1, 4096, 4096, 1, 3, 3, ops="backward", recorded="float32 bfloat16"),
        "image5": _case(1, 1, 4096, 4096, 1, 5, 5, ops="backward"),
        "planes3": _case(64, 96, 56, 56, 96, 3, 3, ops="backward", groups=96),
        "planes7": _case(
            64, 96, 56, 56, 96, 7, 7, ops="backward", groups=96, recorded="bfloat16"
        ),
        "strided": _case(64, 96, 112, 112, 96, 3, 3, ops="backward", stride=2, groups=96),
        "small": _case(64, 960, 7, 7, 960, 3, 3, ops="backward", groups=960),
        "last3": _case(64, 144, 56, 56, 144, 3, 3, ops="backward", groups=144, last=True),
        "last5": _case(64, 144, 56, 56, 144, 5, 5, ops="backward", groups=144, last=True),
        "strided_last": _case(
            64, 96, 112, 112, 96, 3, 3, ops="backward", stride=2, groups=96, last=True
        ),
        "odd": _case(311, 14, 1031, 1033, 14, 3, 3, ops="backward", groups=14, **_ODD_SAMPLES),
    },
    # Lanes along a row, over samples, over channels; the input gradient runs fprop's.
    "columns": {
        "image31": _case(
            1, 1, 4096, 4096, 1, 31, 31, ops="fprop wgrad", recorded="float32 bfloat16"
        ),
        "strided9": _case(64, 60, 28, 28, 60, 9, 9, ops="fprop wgrad", stride=2, groups=60),
        "last9": _case(
            64, 96, 56, 56, 96, 9, 9, ops="fprop wgrad", groups=96, last=True, bias=True,
            activation="relu", recorded="bfloat16",
        ),
        "odd": _case(
            311, 14, 1031, 1033, 34, 9, 12, ops="fprop wgrad", groups=2, padding_mode="reflect",
            bias=True, activation="gelu", residual=True, **_ODD_SAMPLES,
        ),
    },
    # Rows in steps of 16 bytes, a window wider than a tile, strides, rows in smaller steps, columns
    # that are apart, and no simple address.
    "banded": {
        "image31": _case(1, 1, 4096, 4096, 1, 31, 31, recorded="bfloat16 tf32"),
        "image7": _case(1, 1, 4096, 4096, 1, 7, 7, ops="wgrad", recorded="bfloat16"),
        "planes5": _case(64, 96, 56, 56, 96, 5, 5, ops="wgrad", groups=96),
        "image13": _case(1, 1, 4096, 4096, 1, 13, 13, ops="wgrad"),
        "image63": _case(1, 1, 4096, 4096, 1, 63, 63, ops="wgrad"),
        "image15s2": _case(1, 1, 4096, 4096, 1, 15, 15, ops="wgrad", stride=2),
        "planes9s2": _case(64, 120, 28, 28, 120, 9, 9, ops="wgrad", stride=2, groups=120),
        "planes31s2": _case(32, 128, 56, 56, 128, 31, 31, ops="wgrad", stride=2, groups=128),
        "planes27": _case(32, 512, 14, 14, 512, 27, 27, groups=512, bias=True),
        "gelu27": _case(32, 512, 14, 14, 512, 27, 27, groups=512, activation="gelu"),
        "odd": _case(
            311, 14, 1031, 1033, 14, 9, 12, groups=14, flip=True, per_sample=True,
            padding=((5, 3), (4, 6)), bias=True, residual=True,
        ),
    },
    # An image, planes whose rows are in steps of 8 and of 4 bytes, strides, several channels.
    "resident": {
        "image31": _case(1, 1, 4096, 4096, 1, 31, 31, ops="fprop", recorded="bfloat16"),
        "image9": _case(1, 1, 4096, 4096, 1, 9, 9, ops="fprop", bias=True),
        "planes29": _case(32, 256, 28, 28, 256, 29, 29, ops="fprop", groups=256),
        "planes27": _case(
            32, 512, 14, 14, 512, 27, 27, ops="fprop", groups=512, activation="gelu"
        ),
        "strided9": _case(
            64, 60, 56, 56, 60, 9, 9, ops="fprop", stride=2, groups=60, bias=True, residual=True
        ),
        "colours": _case(4, 3, 1024, 1024, 8, 11, 11, ops="fprop", bias=True, activation="relu"),
        "halves31": _case(32, 128, 56, 56, 128, 31, 31, stride=2, ops="dgrad", groups=128),
    },
    # Few results, a photograph's gradient, single channels side by side, patches without zeros.
    "patch": {
        "head": _case(
            8, 16, 512, 512, 3, 3, 3, ops="fprop wgrad", bias=True
        ),
        "head_last": _case(
            8, 16, 512, 512, 3, 3, 3, ops="fprop wgrad", last=True, bias=True, activation="gelu",
            residual=True,
        ),
        "stem": _case(8, 3, 224, 224, 64, 7, 7, stride=2, ops="wgrad"),
        "phases": _case(8, 64, 224, 224, 3, 7, 7, stride=2, ops="dgrad"),
        "phases_last": _case(8, 64, 224, 224, 3, 7, 7, stride=2, ops="dgrad", last=True),
        "colours": _case(4, 3, 512, 512, 8, 11, 11, last=True, ops="fprop wgrad"),
        "patchify": _case(
            8, 768, 224, 224, 3, 16, 16, stride=16, padding=((0, 0), (0, 0)), ops="dgrad",
        ),
        "odd": _case(
            5, 38, 301, 303, 10, 5, 4, stride=(2, 1), padding=((2, 1), (1, 2)), groups=2,
            ops="fprop wgrad", padding_mode="reflect", flip=True, last=True, bias=True,
            activation="silu", residual=True,
        ),
        "odd_planes": _case(
            5, 38, 301, 303, 10, 5, 4, stride=(2, 1), padding=((2, 1), (1, 2)), groups=2,
            padding_mode="circular", flip=True, bias=True, activation="silu", residual=True,
            ops="fprop wgrad",
        ),
        "odd_phases": _case(
            5, 26, 301, 303, 20, 5, 4, stride=(2, 2), padding=((2, 1), (1, 2)), groups=2,
            flip=True, ops="dgrad", last=True,
        ),
    },
    # One loop, a loop for each phase of the input, programs for each of the gradient's phases, and
    # 64-bit offsets with everything that is not simple.
    "tma": {
        "dense": _case(
            32, 256, 56, 56, 256, 3, 3, last=True, bias=True, recorded="* bfloat16"
        ),
        "strided": _case(32, 128, 56, 56, 128, 3, 3, stride=2, last=True),
        "planes": _case(32, 256, 56, 56, 256, 3, 1, bias=True, recorded="* bfloat16"),
        "pointwise": _case(
            32, 256, 56, 56, 256, 1, 1, bias=True, activation="relu",
            recorded="fprop:bfloat16",
        ),
        "pointwise_residual": _case(
            32, 256, 56, 56, 256, 1, 1, ops="fprop", bias=True, activation="relu", residual=True
        ),
        "residual": _case(
            32, 256, 56, 56, 256, 3, 3, ops="fprop", last=True, bias=True, activation="relu",
            residual=True,
        ),
        "gelu": _case(
            32, 256, 56, 56, 256, 3, 3, ops="fprop", last=True, bias=True, activation="gelu"
        ),
        "short_rows": _case(32, 128, 28, 28, 256, 3, 3, bias=True),
        "short_rows_residual": _case(
            32, 131, 14, 14, 261, 3, 3, ops="fprop", bias=True, activation="silu", residual=True
        ),
        "ragged": _case(8, 131, 16, 24, 261, 3, 3, last=True),
        "ragged_planes": _case(8, 131, 16, 25, 261, 3, 1, activation="relu"),
        "odd": _case(
            311, 128, 1031, 1033, 128, 3, 3, groups=2, last=True, bias=True, **_ODD
        ),
        "odd_residual": _case(
            311, 128, 1031, 1033, 128, 3, 3, ops="fprop", groups=2, last=True, bias=True,
            activation="silu", residual=True, **_ODD,
        ),
    },
    "reuse": {
        "dense": _case(
            32, 256, 56, 56, 256, 3, 3, ops="fprop", last=True, bias=True, recorded="bfloat16 tf32"
        ),
        "seven": _case(32, 64, 56, 56, 256, 7, 9, ops="fprop", last=True),
        "gradient": _case(32, 256, 56, 56, 256, 3, 3, ops="dgrad", last=True),
        "gradient_five": _case(32, 256, 56, 56, 96, 5, 9, ops="dgrad", last=True),
        "residual": _case(
            32, 256, 56, 56, 256, 3, 3, ops="fprop", last=True, bias=True, activation="silu",
            residual=True,
        ),
        "planes": _case(32, 256, 56, 56, 256, 3, 3, ops="fprop", bias=True),
        "gradient_planes": _case(32, 256, 28, 28, 256, 3, 3, ops="dgrad"),
        "planes_residual": _case(
            32, 256, 14, 14, 256, 3, 3, ops="fprop", bias=True, activation="silu", residual=True
        ),
        "taps": _case(
            32, 256, 28, 28, 256, 3, 3, ops="wgrad", last=True, recorded="bfloat16"
        ),
        "taps_planes": _case(32, 256, 14, 14, 256, 3, 3, ops="wgrad"),
        "taps_five": _case(32, 256, 56, 56, 256, 5, 5, ops="wgrad", last=True),
        "taps_seven": _case(32, 256, 56, 56, 256, 7, 7, ops="wgrad", last=True),
        "taps_strided": _case(32, 256, 56, 56, 256, 3, 3, ops="wgrad", stride=2, last=True),
        "taps_point": _case(32, 256, 56, 56, 512, 1, 1, ops="wgrad", last=True),
    },
    # Few results as patches of rows, phases of a stride, and weight gradients of few channels.
    "spread": {
        "few": _case(32, 128, 56, 56, 16, 5, 5, ops="fprop", last=True, bias=True),
        "few_planes": _case(32, 128, 56, 56, 16, 3, 3, ops="fprop", bias=True),
        "forty": _case(
            32, 128, 56, 56, 40, 3, 3, ops="fprop", last=True, bias=True, recorded="bfloat16"
        ),
        "forty_planes": _case(32, 128, 56, 56, 40, 3, 3, ops="fprop", bias=True),
        "few_residual": _case(
            32, 128, 56, 56, 24, 7, 7, ops="fprop", last=True, bias=True, activation="gelu",
            residual=True,
        ),
        "residual_planes": _case(
            32, 128, 55, 57, 24, 7, 7, ops="fprop", bias=True, activation="silu", residual=True,
        ),
        "three": _case(8, 64, 224, 224, 3, 3, 3, ops="fprop", last=True, bias=True),
        "three_residual": _case(
            8, 64, 224, 224, 3, 3, 3, ops="fprop", last=True, bias=True, activation="silu",
            residual=True,
        ),
        "three_planes": _case(8, 64, 224, 224, 3, 3, 3, ops="fprop", bias=True),
        "three_phases": _case(8, 64, 224, 224, 3, 7, 7, stride=2, ops="dgrad", last=True),
        "three_phases_planes": _case(8, 64, 224, 224, 3, 7, 7, stride=2, ops="dgrad"),
        "gradient": _case(32, 128, 56, 56, 16, 5, 5, ops="dgrad", last=True),
        "phases": _case(32, 128, 56, 56, 40, 5, 5, ops="dgrad", stride=2, last=True),
        "phases_planes": _case(32, 128, 56, 56, 128, 3, 3, ops="dgrad", stride=2),
        "phases_odd": _case(
            32, 96, 55, 57, 80, 5, 4, ops="dgrad", stride=(3, 2), groups=2, flip=True
        ),
        "rows": _case(32, 16, 56, 56, 16, 5, 5, ops="wgrad", last=True, recorded="bfloat16"),
        "rows_planes": _case(32, 24, 28, 28, 24, 9, 9, ops="wgrad"),
        "filters": _case(8, 256, 28, 28, 16, 3, 3, ops="wgrad", last=True),
        "channels": _case(8, 16, 28, 28, 256, 7, 7, ops="wgrad", stride=2),
    },
    "flat": {
        "dense": _case(32, 256, 14, 14, 256, 3, 3, ops="wgrad", recorded="tf32"),
        "last": _case(32, 64, 56, 56, 64, 3, 3, ops="wgrad", last=True),
        "odd": _case(
            31, 134, 51, 33, 142, 3, 3, ops="wgrad", groups=2, dilation=(1, 2), flip=True,
            padding=((2, 1), (1, 2)), last=True,
        ),
        "strided": _case(32, 128, 56, 56, 256, 3, 3, ops="wgrad", stride=2, last=True),
        "few": _case(64, 16, 56, 56, 256, 5, 5, ops="wgrad"),
        "few_filters": _case(64, 256, 56, 56, 24, 7, 7, ops="wgrad", stride=2, last=True),
        "large": _case(64, 64, 1031, 1033, 256, 3, 3, ops="wgrad"),
    },
    # Filters that are shifted, channels with a stride that are, and boxes that overhang a plane.
    "shifted": {
        "filters": _case(32, 128, 112, 112, 3, 3, 3, ops="wgrad", recorded="bfloat16"),
        "filters_last": _case(32, 128, 112, 112, 3, 3, 3, ops="wgrad", last=True),
        "stem": _case(64, 3, 224, 224, 16, 3, 3, ops="wgrad", stride=2, recorded="bfloat16"),
        "stem_last": _case(64, 3, 224, 224, 128, 7, 7, ops="wgrad", stride=2, last=True),
        "groups": _case(32, 96, 28, 28, 64, 3, 3, ops="wgrad", groups=8, flip=True),
        "one": _case(8, 32, 512, 512, 1, 5, 5, ops="wgrad", dilation=(1, 2)),
        "one_filter": _case(8, 1, 512, 512, 16, 3, 3, ops="wgrad"),
    },
    "frame": {
        "dense": _case(
            8, 64, 56, 56, 64, 3, 3, ops="dgrad_frame", padding_mode="reflect", last=True,
            recorded="bfloat16",
        ),
        "image": _case(
            1, 1, 4096, 4096, 1, 5, 5, ops="dgrad_frame", padding_mode="replicate",
            recorded="bfloat16",
        ),
        "odd": _case(
            311, 14, 1031, 1033, 34, 3, 3, ops="dgrad_frame", groups=2, padding_mode="circular",
            **_ODD_SAMPLES,
        ),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """A kernel with everything that decides its code.

    Attributes:
        family: of the case, a key of CASES, or "helper" for kernels that prepare or add up.
        case: its name there.
        kernel: the kernel that is compiled.
        planned: the call that launches it.
        product: the kind of product of a matrix unit, "" of kernels without.
        recorded: whether the table of machine code has it, on sm_90.
    """

    family: str
    case: str
    kernel: str
    planned: PlannedCall
    product: str
    recorded: bool = False

    @property
    def plan(self) -> Plan:
        """The plan of the call."""
        return self.planned.plan

    @property
    def dtype(self) -> str:
        """Name of torch's dtype of x."""
        return str(TENSOR_DTYPES[self.planned.dtype][0]).removeprefix("torch.")

    @property
    def name(self) -> str:
        """Kernel, product, extents of the tile, dtype and case."""
        blocks = "" if self.family == "helper" else _blocks(self.plan)
        return "-".join(filter(None, (self.kernel, self.product, blocks, self.dtype, self.case)))

    @property
    def choice(self) -> tuple[Any, ...]:
        """The planner's decisions that change the code; for kernels with one tile, the case."""
        if self.family in ("helper", "frame"):
            return self.kernel, self.case
        plan, tile = self.plan, self.plan.tile
        if self.family in ("rows", "backward", "columns"):  # the tile follows from the geometry
            return self.kernel, self.planned.workload.geometry.weight_shape[-2:]
        if self.family in ("reuse", "spread"):
            # The rest are counts in the same code, and the store's axis.
            kinds = plan.op, getattr(tile, "BLOCK_R", 0), self.case.endswith("-split")
            return self.kernel, self.product, *tile.step(plan.op)[:2], tile.num_warps, *kinds
        if self.family == "resident":  # so are its lines, pieces and slots
            return self.kernel, self.product, getattr(tile, "STACK", 1), plan.op
        size = tile.step(plan.op), tile.num_warps, tile.num_stages
        if self.case.endswith("-split"):
            in_place = getattr(tile, "in_place", False)
            return self.kernel, self.product, "split", tile.step(plan.op), in_place
        reads = tuple(getattr(tile, name, 0) > 0 for name in ("persistent", "copied", "in_place"))
        reads += (getattr(tile, "unfolded", ""),)
        return self.kernel, self.product, *size, plan.one_tap, plan.int64, *reads

    @property
    def is_rare(self) -> bool:
        """Whether a choice is built on one target only, see the module."""
        if self.family in ("helper", "frame", "rows", "backward", "columns"):
            return False
        across_taps = self.kernel in ("fprop_gemm", "dgrad_gemm") and not self.plan.one_tap
        in_turn = self.case.endswith(("-loop", "-split", "-in_place"))
        return self.family in ("banded", "patch") or self.plan.int64 or across_taps or in_turn

    def wants_mma(self, target: Target) -> bool:
        """Whether the matrix units should do the arithmetic."""
        if self.product == "float64":
            return target.float64_mma
        return self.product not in ("", "ieee")

    def problem(self, target: Target) -> Problem:
        """The planned problem, with the size of an element of x."""
        problem = self.planned.problem(target.device)
        return replace(problem, x_bytes=TENSOR_DTYPES[self.planned.dtype][0].itemsize)

    def call(self) -> Call:
        """The launch, of meta tensors: however large, they take no memory."""
        launches = self.planned.launches(DEVICES["h200"])
        return next(call for call in launches if call.kernel.__name__ == self.kernel)


def _blocks(plan: Plan) -> str:
    return "x".join(str(v) for k, v in vars(plan.tile).items() if k.startswith("BLOCK"))


def configurations(target: Target) -> list[Configuration]:
    """All configurations of a target; of two tiles with one name, the second has a suffix."""
    return [*_untuned(target).values(), *_tuned(target)]


@functools.cache
def _untuned(target: Target) -> dict[str, Configuration]:
    found: dict[str, Configuration] = {}
    for made in itertools.chain(_of_cases(target), _helpers()):
        if made.family == "helper":
            found[made.name] = made
            continue
        tile = made.plan.tile
        if made.name in found and tile != found[made.name].plan.tile:
            launch = f"-w{tile.num_warps}-s{tile.num_stages}"
            made = replace(made, case=made.case + launch, recorded=False)
        found.setdefault(made.name, made)
    return found


def dealt(target: Target) -> list[Configuration]:
    """One configuration for each choice that a planner has on a target, see above."""
    choices: dict[Any, list[Configuration]] = {}
    for made in _untuned(target).values():
        choices.setdefault(made.choice, []).append(made)
    found = list(_tuned(target))
    for place, (choice, able) in enumerate(_choices().items()):
        members = choices.get(choice, [])
        if members and (not members[0].is_rare or able[place % len(able)] == target.name):
            found.append(members[(place + able.index(target.name)) % len(members)])
    return found


@functools.cache
def _choices() -> dict[Any, list[str]]:
    """Every choice that a planner has on some target, with the targets that have it."""
    found: dict[Any, list[str]] = {}
    for target in TARGETS.values():
        for choice in dict.fromkeys(made.choice for made in _untuned(target).values()):
            found.setdefault(choice, []).append(target.name)
    return found


def _of_cases(target: Target) -> Iterator[Configuration]:
    """Every case with every tile of its family, for each operator, one dtype after the other."""
    for family, cases in CASES.items():
        kinds = PRODUCTS if family in PRODUCTS_OF else {"": EXACT}
        for op, kind in itertools.product((*ALL_OPS, "dgrad_frame"), kinds):
            if kind == "tf32x3" and target.is_amd:
                continue  # it has none
            for dtype, (name, case) in itertools.product(kinds[kind], cases.items()):
                few = case.workload.geometry.group_C <= 3 and op in ("fprop", "wgrad")
                if op in case.workload.ops and (few or not dtype.startswith("uint8")):
                    yield from _of_case(family, name, case, op, kind, dtype, target)


def _of_case(
    family: str, name: str, case: Case, op: str, product: str, dtype: str, target: Target
) -> Iterator[Configuration]:
    """A case with every tile of its family."""
    every, g = case.recorded[:2] == ("*", dtype), case.workload.geometry
    for place, variants in enumerate(_plans(family, case, op, dtype, target)):
        for variant, planned in variants.items():
            wanted = {dtype, f"{op}:{dtype}"} & set(case.recorded)
            whole = [name for name in variants if not name.endswith("-split")]
            first = bool(wanted) and place == 0 and variant == whole[-1]
            kind = "" if planned.plan.family == "stencil" else product
            recorded = (every or first) and variant in whole and "-copied" not in variant
            recorded &= "-in_place" not in variant
            if op == "wgrad":  # of tiles that share dy among taps, those that share it most
                recorded &= getattr(planned.plan.tile, "BLOCK_S", 3) in (3, g.S)
            made = Configuration(family, name + variant, planned.kernel, planned, kind, recorded)
            # What turns into a forward call is a configuration of that, unless it reads the weight
            # in another way.
            if family in ("patch", "resident", "reuse", "spread") or not planned.plan.turned:
                yield made


def _plans(
    family: str, case: Case, op: str, dtype: str, target: Target
) -> Iterator[dict[str, PlannedCall]]:
    """For every tile that a launch can have: the calls, by suffix of the case's name."""
    g = case.workload.geometry
    if op == "dgrad":
        g = replace(g, C=g.K, K=g.C)
    call = PlannedCall(replace(case.workload, geometry=g), op, dtype, case.format)
    problem = call.problem(target.device)
    tiles = tiles_of(MODULES[family], problem) if family in MODULES else choose.candidates(problem)
    if family == "backward":  # of many tiles, the one that is planned
        tiles = [choose.plan(problem).tile] if tiles else []
    if family == "patch":  # the last, largest patch of each shape
        tiles = list({(tile.step(op), tile.num_warps): tile for tile in tiles}.values())
    if family == "spread":  # the rest are counts in the same code
        tiles = list({(tile.step(op)[:2], tile.num_warps): tile for tile in tiles}.values())
    for tile in tiles:
        copied = "-copied" if getattr(tile, "copied", False) else ""
        copied += "-in_place" if getattr(tile, "in_place", False) else ""
        copied += f"-unfolded_{unfolded}" if (unfolded := getattr(tile, "unfolded", "")) else ""
        copied += f"-shifted_{shifts}" if (shifts := getattr(tile, "shifts", "")) else ""
        variants: dict[str, Any] = {copied: tile}
        if getattr(tile, "persistent", 0):  # a loop over boxes is other code than one box
            boxes: Any = tile
            variants = {copied: replace(boxes, persistent=0), f"{copied}-loop": tile}
        plans = {}
        for variant, chosen in variants.items():
            with contextlib.suppress(ArgumentError):  # more programs than a launch can have
                plans[variant] = choose.plan_with_tile(problem, chosen, chosen.splits(problem))
                if variant != "-copied" and choose.splits_images(problem, chosen):
                    split = choose.plan_with_tile(problem, chosen, SOME_SPLITS)
                    plans |= {f"{variant}-split": split} if split.splits > 1 else {}
                if plans[variant].interior == "some":  # the code of the inside alone
                    plans["-interior"] = replace(plans[variant], interior="all")
        yield {variant: replace(call, plan=plan) for variant, plan in plans.items()}


#: (kernel, case, dtype) of helpers in the table of machine code.
RECORDED_HELPERS = (
    ("copy_flat", "dense", "tf32"),
    ("fprop_separable", "9x9", "float32"),
    ("lag_sums", "narrow", "float32"),
    ("sum_partials", "narrow", "float32"),
    ("sum_partials", "planes", "bfloat16"),
)


def _helpers() -> Iterator[Configuration]:
    """Kernels that prepare or add up, in every dtype, with offsets of 32 bits and of 64."""
    wide = _case(8, 2**15, 56, 56, 2**16, 1, 1, ops="wgrad")
    epilogue = _case(8, 64, 56, 56, 64, 3, 3, bias=True, residual=True, activation="gelu")
    image, images = _case(1, 1, 4096, 4096, 1, 7, 7), _case(32, 3, 8192, 8192, 1, 5, 5, last=True)
    windows = {
        f"{R}x{S}": _case(*shape, R, S, ops="fprop", padding_mode=mode, last=last, groups=shape[1])
        for shape, R, S, mode, last in (
            ((1, 1, 4096, 4096, 1), 3, 5, "replicate", False),
            ((1, 1, 4096, 4096, 1), 9, 9, "reflect", False),
            ((1, 1, 4096, 4096, 1), 31, 31, "reflect", False),
            ((1, 1, 4096, 4096, 1), 25, 25, "zeros", False),
            ((8, 3, 47, 56, 3), 15, 13, "circular", False),
            ((8, 3, 2161, 3839, 3), 12, 11, "reflect", False),
            ((8, 64, 56, 56, 64), 7, 7, "zeros", True),
        )
    }
    made: list[tuple[str, str, str, Case, str, Iterable[str]]] = [
        ("build_bands", "banded", "image31", CASES["banded"]["image31"], "fprop", PRODUCTS["half"]),
        ("build_bands", "banded", "image31", CASES["banded"]["image31"], "fprop", ("tf32",)),
        (
            "build_lines",
            "resident",
            "image31",
            CASES["resident"]["image31"],
            "fprop",
            PRODUCTS["half"],
        ),
        ("copy_images", "gemm", "weight", CASES["gemm"]["planes"], "fprop", PRODUCTS["half"]),
        ("copy_images", "gemm", "weight", CASES["gemm"]["planes"], "fprop", ("float32", "float64")),
        *(
            ("copy_images", "tma", f"{name}-{op}", CASES["tma"][name], op, dtypes.split())
            for name, op, dtypes in (
                ("short_rows", "fprop", "bfloat16 tf32"),
                ("ragged", "fprop", "bfloat16 tf32"),
                ("ragged", "wgrad", "bfloat16"),
                ("ragged_planes", "wgrad", "bfloat16 tf32"),
            )
        ),
        *(
            ("copy_flat", "flat", name, CASES["flat"][name], "wgrad", ("tf32",))
            for name in ("dense", "last", "strided")
        ),
        ("build_patch_weight", "patch", "head", CASES["patch"]["head"], "fprop", PRODUCTS["half"]),
        ("build_patch_weight", "patch", "head", CASES["patch"]["head"], "fprop", ("tf32",)),
        ("sum_partials", "gemm", "narrow", CASES["gemm"]["dense"], "wgrad", EXACT),
        ("sum_partials", "gemm", "wide", wide, "wgrad", EXACT),
        (
            "sum_partials",
            "gemm",
            "planes",
            CASES["gemm"]["planes"],
            "wgrad",
            ("bfloat16", "float32"),
        ),
        ("sum_partials", "gemm", "image", epilogue, "fprop", ("bfloat16", "float64")),
        ("lag_sums", "stencil", "narrow", image, "wgrad", EXACT),
        ("lag_sums", "stencil", "wide", images, "wgrad", EXACT),
        *(
            (
                "fprop_separable",
                "stencil",
                name,
                case,
                "fprop",
                EXACT if name == "9x9" else EXACT[:3],
            )
            for name, case in windows.items()
        ),
    ]
    for kernel, family, name, case, op, dtypes in made:
        for dtype in dtypes:
            if (kernel, dtype) == ("sum_partials", "uint8"):
                continue
            if kernel in ("lag_sums", "fprop_separable"):
                planned = PlannedCall(case.workload, kernel, dtype, case.format)
            else:
                variants = next(_plans(family, case, op, dtype, TARGETS["sm_90"]))
                planned = next(iter(variants.values()))
            if kernel == "sum_partials":
                planned = replace(planned, plan=replace(planned.plan, splits=100))
            recorded = (kernel, name, dtype) in RECORDED_HELPERS
            yield Configuration("helper", name, kernel, planned, "", recorded)
    yield from _on_copies()


def _on_copies() -> Iterator[Configuration]:
    """Copies of what a stride reads or reaches, in planes, of patches, and a kernel between."""
    points = _case(32, 256, 56, 56, 512, 1, 1, stride=2, ops="fprop dgrad")
    strided = _case(32, 128, 57, 56, 256, 3, 3, stride=3, ops="fprop")
    last = _case(64, 120, 28, 28, 120, 9, 9, groups=120, ops="fprop", last=True)
    cut: dict[str, Any] = {"padding": ((0, 0), (0, 0)), "ops": "fprop dgrad"}
    pixels = _case(64, 3, 224, 224, 768, 16, 16, stride=16, **cut)
    narrow = _case(32, 3, 224, 224, 1024, 14, 14, stride=14, **cut)
    deep = _case(8, 2048, 28, 28, 512, 4, 4, stride=4, **cut)
    ragged = _case(8, 67, 57, 59, 64, 3, 5, stride=(3, 5), **cut)
    sampled, mixed = Exchange(sampled=True), Exchange(reads=True)
    planes = Exchange(reads=True, result=True, format="NCHW")
    crs, rsc = Exchange(patches="crs"), Exchange(patches="rsc")
    for kernel, name, case, op, exchange in (
        ("copy_images", "samples", points, "fprop", sampled),
        ("copy_images", "spreads", points, "dgrad", sampled),
        ("copy_images", "rows", last, "fprop", planes),
        ("copy_patches", "pixels", pixels, "fprop", crs),
        ("copy_patches", "pixels-back", pixels, "dgrad", crs),
        ("copy_patches", "pixels-rsc", pixels, "fprop", rsc),
        ("copy_patches", "pixels-rsc-back", pixels, "dgrad", rsc),
        ("copy_patches", "narrow", narrow, "fprop", crs),
        ("copy_patches", "deep", deep, "fprop", crs),
        ("copy_patches", "deep-rsc-back", deep, "dgrad", rsc),
        ("copy_patches", "ragged", ragged, "fprop", rsc),
        ("copy_patches", "ragged-back", ragged, "dgrad", crs),
        ("fprop_gemm", "mixed", strided, "fprop", mixed),
    ):
        for dtype in ("bfloat16", "tf32"):
            call = PlannedCall(case.workload, op, dtype, case.format)
            seen = exchange.seen(call.problem(TARGETS["sm_90"].device))
            tile = (banded if exchange is planes else gemm).tiles(seen)[0]
            plan = replace(choose.plan_with_tile(seen, tile), exchange=exchange)
            yield Configuration("helper", name, kernel, replace(call, plan=plan), "")


def _tuned(target: Target) -> Iterator[Configuration]:
    """The tiles of the device's tuned file, each in a case of its family and format."""
    for key, found in tuned_for(target.device.name).items():
        tile = choose.tile_of(found.tile)
        dtype = key.dtype if key.precision == "ieee" else key.precision
        form = "channels_last" if key.channels_last else "NCHW"
        cases = CASES[tile.family]
        name = next((n for n, case in cases.items() if case.format == form), next(iter(cases)))
        case = cases[name]
        planned = PlannedCall(case.workload, key.op, dtype, case.format)
        problem = planned.problem(target.device)
        plan = choose.plan_with_tile(problem, tile, tile.splits(problem))
        planned = replace(planned, plan=plan)
        product = problem.product if tile.family in PRODUCTS_OF else ""
        launch = f"-tuned-w{tile.num_warps}-s{tile.num_stages}"
        yield Configuration(tile.family, name + launch, planned.kernel, planned, product)
