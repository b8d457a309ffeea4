"""Cases for compilers: operands with a reason to exist, by family of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ops.geometry import Geometry
from ..workloads import Workload

#: Dtypes of rows for each kind of product of a matrix unit, and of kernels without one.
PRODUCTS: dict[str, tuple[str, ...]] = {
    "half": ("bfloat16", "float16"),
    "tf32": ("tf32", "uint8-tf32"),
    "tf32x3": ("tf32x3",),
    "ieee": ("float32", "uint8"),
    "float64": ("float64",),
}
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


def case_of(
    *shape: int,
    stride: int | tuple[int, int] = 1,
    dilation: tuple[int, int] = (1, 1),
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
    extents: dict[str, Any] = dict(zip("NCHWKRS", shape, strict=True))
    g = Geometry(
        **extents, given_stride=strides, given_dilation=dilation, **{"padding": same, **geometry}
    )
    workload = Workload("", "case", g, (), tuple(ops.split()), bias, activation, residual)
    form = "channels_last" if last else "NCHW"
    return Case(workload, form, tuple(recorded.split()))


_case = case_of  # short, in a long table

#: Indivisible extents, strides, dilation, a flipped window, a filter per sample and 64-bit offsets:
#: no address expression simplifies.
_ODD: dict[str, Any] = {
    "stride": (2, 1),
    "padding": ((2, 1), (1, 2)),
    "dilation": (1, 2),
    "flip": True,
}
_ODD_SAMPLES = {**_ODD, "per_sample": True}

#: Cases by family; "frame" is the part of an input gradient that a padding mode adds.
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
    # Windows of a few rows and columns over images in planes, and rows of several sizes.
    "planes": {
        "dense": _case(
            32, 256, 56, 56, 256, 3, 3, ops="fprop", bias=True, recorded="bfloat16 tf32"
        ),
        "gradient": _case(32, 256, 56, 56, 256, 3, 3, ops="dgrad"),
        "point": _case(32, 256, 56, 56, 256, 1, 1, ops="fprop dgrad", recorded="fprop:tf32"),
        "few": _case(32, 128, 56, 56, 16, 3, 3, ops="fprop", bias=True),
        "few_gradient": _case(32, 128, 56, 56, 16, 3, 3, ops="dgrad"),
        "row": _case(32, 256, 112, 112, 256, 1, 2, ops="fprop", bias=True),
        "column": _case(32, 256, 32, 32, 256, 3, 1, ops="fprop", bias=True),
        "five": _case(32, 256, 56, 56, 256, 5, 5, ops="fprop", bias=True),
        "residual": _case(
            32, 256, 56, 56, 256, 3, 3, ops="fprop", bias=True, activation="silu", residual=True
        ),
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
    # Columns of a window with few results, phases of a stride, and several blocks of channels.
    "strip": {
        "three": _case(8, 24, 512, 512, 3, 3, 3, ops="fprop", bias=True, recorded="bfloat16"),
        "three_last": _case(8, 24, 512, 512, 3, 3, 3, ops="fprop", last=True, recorded="tf32"),
        "one": _case(8, 67, 256, 256, 1, 5, 5, ops="fprop", flip=True),
        "one_last": _case(8, 32, 512, 512, 1, 5, 5, ops="fprop", last=True, bias=True),
        "residual": _case(
            8, 64, 224, 224, 3, 3, 3, ops="fprop", bias=True, activation="silu", residual=True
        ),
        "residual_last": _case(
            8, 64, 224, 224, 6, 3, 5, ops="fprop", last=True, groups=2, activation="gelu",
            residual=True,
        ),
        "many": _case(32, 64, 112, 112, 32, 3, 3, ops="fprop", bias=True),
        "many_residual": _case(
            32, 16, 112, 112, 24, 3, 3, ops="fprop", bias=True, activation="silu", residual=True
        ),
        "gradient": _case(4, 64, 512, 512, 1, 9, 9, ops="dgrad"),
        "gradient_three": _case(8, 64, 224, 224, 3, 3, 3, ops="dgrad"),
        "gradient_many": _case(32, 32, 112, 112, 32, 3, 3, ops="dgrad", last=True),
        "gradient_last": _case(4, 16, 512, 512, 1, 3, 3, ops="dgrad", last=True),
        "phases": _case(32, 64, 224, 224, 3, 7, 7, stride=2, ops="dgrad", recorded="bfloat16"),
        "phases_last": _case(32, 64, 224, 224, 3, 7, 7, stride=2, ops="dgrad", last=True),
        "phases_many": _case(
            32, 64, 112, 112, 16, 4, 4, stride=2, ops="dgrad", padding=((1, 1), (1, 1))
        ),
        "phases_few": _case(32, 64, 224, 224, 1, 4, 4, stride=2, ops="dgrad", last=True),
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
    # Rows of x as rows of a product, rows of dy as columns, and both.
    "planes_gradient": {
        "dense": _case(32, 128, 56, 56, 256, 3, 3, ops="wgrad"),
        "few": _case(8, 16, 256, 256, 16, 3, 3, ops="wgrad"),
        "window": _case(64, 24, 112, 112, 24, 7, 7, ops="wgrad"),
        "folded": _case(128, 64, 16, 16, 96, 3, 3, ops="wgrad"),
        "odd": _case(
            31, 84, 51, 36, 80, 5, 3, ops="wgrad", groups=2, dilation=(1, 2), flip=True,
            padding=((2, 1), (2, 2)),
        ),
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
