"""The calls that are simulated in every run: every kernel, on every unit, architecture and format.

Each is small, and planned as on the device. Sizes are no multiples of the tiles', except where a
kernel requires multiples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from tricorr.ops import Geometry, geometry_of
from tricorr.ops.launch.prepared import forget_prepared
from tricorr.ops.plan import banded, choose, columns, gemm, rows, stencil, tma
from tricorr.ops.plan.patch import PatchTile

ARCHS = (80, 90)
#: An architecture of which only calls without tcgen05 are simulated.
NEWEST = 100
FORMATS = {"planes": torch.contiguous_format, "pixels": torch.channels_last}


@dataclass(frozen=True)
class Simulated:
    """One operator on one problem.

    Attributes:
        name: names the case that the call covers.
        op: "fprop_bias", "dgrad" or "wgrad".
        geometry: sizes and options of the correlation.
        dtype: of all tensors, except the image if `x_dtype` is given.
        precision: of products of float32.
        format: of images, a key of FORMATS.
        arch: compute capability times ten.
        kernel: the kernel that the planner takes.
        unit: the unit that multiplies: "fma", "mma.sync" or "wgmma".
        tile: used instead of the planner's, for kernels that it takes only for larger calls.
    """

    name: str
    op: str
    geometry: Geometry
    dtype: torch.dtype
    precision: str
    format: str
    arch: int
    kernel: str
    unit: str
    x_dtype: torch.dtype | None = None
    tile: PatchTile | None = None

    def __str__(self) -> str:
        dtype = str(self.x_dtype or self.dtype).removeprefix("torch.")
        kind = dtype if self.precision == "ieee" else self.precision
        return f"sm_{self.arch}-{self.kernel}-{self.unit}-{kind}-{self.format}-{self.name}"


#: Families that the planner takes for such small calls only if it compares no other family.
FORCED = {
    "banded": banded,
    "columns": columns,
    "gemm": gemm,
    "rows": rows,
    "stencil": stencil,
    "tma": tma,
}


@contextmanager
def planned_as_listed(call: Simulated) -> Iterator[None]:
    """Inside, the planner compares tiles of the call's family only, if it is one of FORCED."""
    family = call.kernel.rpartition("_")[2]
    if family not in FORCED or call.kernel != f"{call.op.removesuffix('_bias')}_{family}":
        yield
        return
    forget_prepared()
    choose.plan.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "candidates", FORCED[family].tiles)
        yield
    forget_prepared()
    choose.plan.cache_clear()


HALF, BRAIN, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
_SAME = ((1, 1), (1, 1))
_IMAGE = geometry_of((2, 1, 9, 11), (1, 1, 3, 3), (2, 1), _SAME)
_DEPTHWISE = geometry_of((2, 6, 9, 7), (6, 1, 3, 3), (1, 2), ((0, 2), (1, 1)), (1, 1), 6, True)
_FEW = geometry_of((2, 3, 9, 8), (5, 3, 3, 2), (2, 1), ((1, 1), (1, 0)), (1, 2))
_BYTES = geometry_of((1, 1, 9, 21), (2, 1, 2, 3), padding=((1, 0), (1, 1)))
_LARGE = geometry_of((2, 3, 9, 20), (3, 1, 9, 7), (2, 2), ((4, 4), (3, 2)), (1, 1), 3)
_GAPS = geometry_of((2, 3, 33, 20), (3, 1, 8, 3), (1, 2), ((4, 4), (3, 2)), (5, 1), 3)
_FEW_FRAMED = geometry_of((1, 3, 7, 8), (4, 3, 3, 3), padding=_SAME, padding_mode="reflect")
_DENSE = geometry_of((2, 20, 7, 9), (36, 20, 3, 3), padding=((1, 0), (1, 2)))
_STRIDED = geometry_of((2, 24, 9, 8), (24, 24, 3, 2), (2, 1), _SAME)
_FRAMED = geometry_of((2, 24, 6, 8), (32, 24, 3, 3), padding=_SAME, padding_mode="circular")
_POINT = geometry_of((2, 32, 6, 8), (48, 32, 1, 1))
_WINDOW = geometry_of((1, 2, 20, 21), (2, 1, 13, 13), padding=((6, 6), (6, 6)), groups=2)
_WIDE_WINDOW = geometry_of((1, 4, 20, 24), (4, 1, 31, 31), padding=((15, 15),) * 2, groups=4)
_STRIDED_WINDOW = geometry_of((1, 2, 19, 28), (2, 1, 9, 9), (2, 2), ((4, 4), (4, 4)), groups=2)
_BOXES = geometry_of((2, 16, 8, 8), (16, 16, 1, 1))
_ROWS_OUT = geometry_of((1, 128, 4, 128), (32, 128, 3, 3), padding=_SAME)
_ROWS_IN = geometry_of((1, 32, 4, 128), (128, 32, 3, 3), padding=_SAME)

_HEAD = geometry_of((2, 24, 9, 10), (6, 12, 3, 3), padding=((1, 1), (0, 2)), groups=2)
_STEM = geometry_of((1, 3, 15, 13), (20, 3, 5, 4), (2, 3), ((2, 1), (1, 2)))

ALL = ("fprop_bias", "dgrad", "wgrad")
_FMA = {80: "fma", 90: "fma"}
_MMA = {80: "mma.sync", 90: "mma.sync"}
_NEWEST = {80: "mma.sync", 90: "wgmma"}
_WGMMA = {90: "wgmma"}
#: (name, geometry, dtype, precision, format, family, operators, unit by architecture)
TABLE = [
    ("image", _IMAGE, FLOAT, "ieee", "planes", "rows", ALL, _FMA),
    ("depthwise", _DEPTHWISE, HALF, "ieee", "pixels", "rows", ALL, _FMA),
    ("few", _FEW, BRAIN, "ieee", "planes", "rows", ("wgrad",), _FMA),
    ("large", _LARGE, FLOAT, "ieee", "planes", "columns", ("fprop_bias", "wgrad"), _FMA),
    ("large", _LARGE, BRAIN, "ieee", "pixels", "columns", ("fprop_bias", "wgrad"), _FMA),
    ("gaps", _GAPS, FLOAT, "ieee", "planes", "stencil", ALL, _FMA),
    ("gaps", _GAPS, BRAIN, "ieee", "pixels", "stencil", ALL, _FMA),
    ("framed", _FEW_FRAMED, FLOAT, "ieee", "planes", "frame_stencil", ("dgrad",), _FMA),
    ("framed", _FEW_FRAMED, DOUBLE, "ieee", "pixels", "frame_stencil", ("dgrad",), _FMA),
    ("dense", _DENSE, FLOAT, "ieee", "planes", "gemm", ALL, _FMA),
    ("strided", _STRIDED, FLOAT, "ieee", "pixels", "gemm", ALL, _FMA),
    ("strided", _STRIDED, DOUBLE, "ieee", "planes", "gemm", ALL, _MMA),
    ("dense", _DENSE, DOUBLE, "ieee", "pixels", "gemm", ALL, _MMA),
    ("dense", _DENSE, HALF, "ieee", "planes", "gemm", ALL, _NEWEST),
    ("strided", _STRIDED, FLOAT, "tf32", "pixels", "gemm", ALL, _NEWEST),
    ("point", _POINT, FLOAT, "tf32x3", "planes", "gemm", ("wgrad",), _NEWEST),
    ("framed", _FRAMED, FLOAT, "ieee", "planes", "frame_gemm", ("dgrad",), _FMA),
    ("framed", _FRAMED, FLOAT, "ieee", "pixels", "frame_gemm", ("dgrad",), _FMA),
    ("framed", _FRAMED, DOUBLE, "ieee", "planes", "frame_gemm", ("dgrad",), _MMA),
    ("framed", _FRAMED, DOUBLE, "ieee", "pixels", "frame_gemm", ("dgrad",), _MMA),
    ("framed", _FRAMED, BRAIN, "ieee", "pixels", "frame_gemm", ("dgrad",), _NEWEST),
    ("window", _WINDOW, HALF, "ieee", "planes", "banded", ("fprop_bias",), _MMA),
    ("window", _WINDOW, HALF, "ieee", "planes", "banded", ("wgrad",), _NEWEST),
    ("strided_window", _STRIDED_WINDOW, HALF, "ieee", "planes", "banded", ("wgrad",), _NEWEST),
    ("wide_window", _WIDE_WINDOW, FLOAT, "tf32", "planes", "banded", ("fprop_bias",), _MMA),
    ("wide_window", _WIDE_WINDOW, FLOAT, "tf32", "planes", "banded", ("wgrad",), _NEWEST),
    ("boxes", _BOXES, BRAIN, "ieee", "pixels", "tma", ALL, _WGMMA),
    ("boxes", _BOXES, FLOAT, "tf32", "planes", "tma", ("wgrad",), _WGMMA),
    ("rows_out", _ROWS_OUT, HALF, "ieee", "planes", "tma", ("fprop_bias",), _WGMMA),
    ("rows_in", _ROWS_IN, HALF, "ieee", "planes", "tma", ("dgrad",), _WGMMA),
]  # fmt: skip
#: (name, operator, geometry, dtype, precision, format, kernel, tile, unit by architecture)
PATCHES = [
    ("head", "fprop_bias", _HEAD, HALF, "ieee", "planes", "fprop_patch",
     PatchTile(128, 64, 32, 2, 4, 4, 3), _NEWEST),
    ("head", "fprop_bias", _HEAD, FLOAT, "tf32", "pixels", "fprop_patch",
     PatchTile(128, 64, 32, 4, 2, 8, 2), _NEWEST),
    ("stem", "dgrad", _STEM, BRAIN, "ieee", "pixels", "fprop_patch",
     PatchTile(128, 32, 32, 1, 1, 4, 3), _NEWEST),
    ("stem", "dgrad", _STEM, FLOAT, "ieee", "planes", "fprop_patch",
     PatchTile(64, 32, 16, 1, 1, 4, 3), _FMA),
    ("head", "wgrad", _HEAD, BRAIN, "ieee", "planes", "wgrad_patch",
     PatchTile(64, 64, 32, 2, 4, 4, 3), _NEWEST),
    ("head", "wgrad", _HEAD, FLOAT, "tf32", "pixels", "wgrad_patch",
     PatchTile(64, 64, 32, 4, 2, 4, 3), _NEWEST),
]  # fmt: skip


def newest_calls() -> Iterator[Simulated]:
    """Calls of NEWEST that multiply by fma: in float32, and 16-bit ones without matrix units."""
    for call in calls():
        if call.arch == 90 and call.unit == "fma":
            yield replace(call, arch=NEWEST)


def calls() -> Iterator[Simulated]:
    """All of the table."""
    for name, geometry, dtype, precision, format, family, ops, units in TABLE:
        for op in ops:
            kernel = f"{op.removesuffix('_bias')}_{family}"
            for arch, unit in units.items():
                yield Simulated(name, op, geometry, dtype, precision, format, arch, kernel, unit)
    for name, op, geometry, dtype, precision, format, kernel, tile, units in PATCHES:
        for arch, unit in units.items():
            yield Simulated(
                name, op, geometry, dtype, precision, format, arch, kernel, unit, tile=tile
            )
    for arch in ARCHS:
        yield Simulated(
            "bytes", "fprop_bias", _BYTES, FLOAT, "ieee", "planes", arch, "fprop_rows", "fma",
            torch.uint8,
        )  # fmt: skip
