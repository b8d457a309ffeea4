"""Tiles of the banded family for weight gradients: kernels/wgrad_banded.py has the product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..geometry import Geometry
from .bands import COLUMN_STEP, Band, band_of, is_narrow, rows_read
from .cost import (
    REGISTERS,
    Code,
    Work,
    matrix_work,
    partial_bytes,
    pipeline_bytes,
    splits_that_fill,
)
from .device import ALL_REGISTERS
from .integers import cdiv, power_of_two
from .problem import Plan, Problem

#: Strips that a split of a weight gradient sums at least, to make its last reduction worth it.
MIN_SPLIT_STRIPS = 4
#: Strips of a weight gradient whose row groups hold several rows that take as long as what is
#: outside of the loop: 1900 instructions, of 383 for a strip of 56 columns (sm_90).
OUTSIDE_STRIPS = 5
#: Most accumulator elements per thread of a weight gradient on sm_90; elsewhere half of them.
MAX_GRAD_RESULTS = 128
#: Lane instructions for a number that is loaded alone (sm_90).
LANES_PER_NUMBER = 25


@dataclass(frozen=True)
class BandedGradTile:
    """One program's BLOCK_R rows and BLOCK_I columns of a window's gradient, with their diagonals.

    A step of its reduction is BLOCK_H groups of ROW_GROUP rows by BLOCK_W groups of COLUMN_STEP
    columns of dy, and STRIDE_H rows of x for each row. BLOCK_R counts the rows of dy that a group
    of rows of x reaches. A split leaves PARTIALS results: one for each row of a group, or one for
    each of its columns where a window has more than BLOCK_I.
    """

    BLOCK_R: int
    BLOCK_I: int
    BLOCK_H: int
    BLOCK_W: int
    num_warps: int
    num_stages: int
    ROW_GROUP: int = 1
    STRIDE_H: int = 1
    PARTIALS: int = COLUMN_STEP

    family: ClassVar[str] = "banded"

    def __post_init__(self) -> None:
        if self.ROW_GROUP > 1:
            object.__setattr__(self, "PARTIALS", self.ROW_GROUP)

    @property
    def partials(self) -> int:
        """Results of one split."""
        return self.PARTIALS

    def band(self, geometry: Geometry) -> Band:
        """The band of COLUMN_STEP columns of dy."""
        if self.ROW_GROUP > 1 and is_narrow(geometry):
            half = COLUMN_STEP // 2
            return Band(-half, geometry.padding[1][0] - half, 2 * COLUMN_STEP)
        return band_of(geometry, COLUMN_STEP)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before they are split."""
        g = problem.geometry
        rows, columns = cdiv(g.R, self.STRIDE_H) + self.ROW_GROUP - 1, self.band(g).columns
        return problem.banks * g.K * cdiv(rows, self.BLOCK_R) * cdiv(columns, self.BLOCK_I)

    def strips(self, problem: Problem) -> int:
        """Steps of the reduction of one problem."""
        g = problem.geometry
        lines = cdiv(problem.samples * cdiv(rows_read(g)[1], self.ROW_GROUP), self.BLOCK_H)
        return lines * cdiv(g.Q, self.BLOCK_W * COLUMN_STEP)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: M are rows of dy times places within a group."""
        n = self.ROW_GROUP * self.STRIDE_H * self.BLOCK_I
        return self.BLOCK_R * COLUMN_STEP, n, self.BLOCK_H * self.BLOCK_W

    def splits(self, problem: Problem) -> int:
        """Parts that the strips are best dealt out to."""
        strips = self.strips(problem)
        # Windows that see only padding have no strips.
        most = max(1, splits_that_fill(self, problem, cdiv(strips, MIN_SPLIT_STRIPS)))
        if self.ROW_GROUP == 1:
            return most
        side_by_side = 2 * problem.device.multiprocessors
        programs = self.programs(problem)
        return min(
            range(1, most + 1),
            key=lambda n: cdiv(programs * n, side_by_side) * (cdiv(strips, n) + OUTSIDE_STRIPS),
        )

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program, about: the operands of every pipeline stage."""
        return pipeline_bytes(self, problem)

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to, so that two programs fit.

        Groups of 8 rows in pieces of 8 bytes at least need no more (sm_90); others would spill 8 to
        48 bytes. Without a limit others spill 8 to 24 bytes on sm_80 and sm_100, see device.py.
        """
        small = min(pieces(problem)) < COLUMN_STEP // 2
        if self.ROW_GROUP == 8 and problem.device.arch == "90" and not small:
            return REGISTERS // (2 * problem.threads(self))
        return ALL_REGISTERS if problem.device.arch != "90" or self.ROW_GROUP > 1 else None

    def suits(self, problem: Problem) -> bool:
        """Whether it can serve a problem without spills, and sums groups of rows over all columns.

        128 results of a thread spill 8 bytes on sm_80 and sm_100.
        """
        m, n, _ = self.step(problem.op)
        most = MAX_GRAD_RESULTS // (1 if problem.device.arch == "90" else 2)
        if self.STRIDE_H != problem.geometry.stride[0] or m * n > most * problem.threads(self):
            return False
        whole = self.band(problem.geometry).columns <= self.BLOCK_I
        if self.ROW_GROUP == 1:
            return whole or self.PARTIALS > 1
        plain = problem.geometry.padding_mode == "zeros" and not problem.layout.int64
        return plain and whole

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision}

    def bands_bytes(self, problem: Problem) -> int:
        """Bytes of the bands of all filters: there are none."""
        return 0

    def fitted(self, problem: Problem) -> BandedGradTile:
        """The tile for the call's window, its steps as wide as the image and higher if narrow."""
        g, step = problem.geometry, self.BLOCK_H * self.BLOCK_W
        width = min(step, power_of_two(cdiv(g.Q, COLUMN_STEP)))
        whole = self.ROW_GROUP > 1 or self.band(g).columns <= self.BLOCK_I
        # Sums of diagonals spill 8 bytes in TF32 (sm_80).
        whole &= problem.unit == "half" or problem.device.rates.rows is not None
        return replace(
            self,
            BLOCK_H=step // width,
            BLOCK_W=width,
            PARTIALS=self.ROW_GROUP if whole else COLUMN_STEP,
        )

    def others(self, problem: Problem) -> Iterator[BandedGradTile]:
        """Tiles of other extents, with steps as wide."""
        width, stride = self.BLOCK_W, self.STRIDE_H
        steps = itertools.product((4, 8, 16, 32), (16, 32, 64, 128), (16, 32, 64), (4, 8), (2, 3))
        for r, i, step, warps, stages in steps:
            if step >= width and r < 2 * problem.geometry.R:
                tile = BandedGradTile(r, i, step // width, width, warps, stages, STRIDE_H=stride)
                yield tile.fitted(problem)

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        m, n, k = self.step(plan.op)
        x_piece, y_piece = pieces(problem)
        if self.band(problem.geometry).first % x_piece:
            x_piece //= 2
        loads = k * (m / y_piece + n / x_piece) / problem.threads(self)
        # Asynchronous copies bring 4 bytes at least.
        lone = k * m * (y_piece * problem.dtype.itemsize < 4)
        lone += k * n * (x_piece * problem.image_bytes < 4)
        sums = m * n / problem.threads(self)
        registers = min(self.max_registers(problem) or ALL_REGISTERS, 100 + sums)
        return matrix_work(
            plan,
            problem,
            Code(100 + LANES_PER_NUMBER * loads, 900, registers),
            plan.split_strips,
            self.BLOCK_R * self.BLOCK_I,
            plan.grid,
            image_first=False,
            lone=lone,
            operands="registers",
        ).with_partials(partial_bytes(plan, problem))


def pieces(problem: Problem) -> tuple[int, int]:
    """Columns of x and of dy that a weight gradient loads at once."""
    layout = problem.layout
    if layout.int64:
        return 1, 1
    return math.gcd(COLUMN_STEP, layout.x_align), math.gcd(COLUMN_STEP, layout.y_align)


#: For each kind of product, tiles of weight gradients. BLOCK_H and BLOCK_W are for wide images, see
#: fitted.
BANDED_GRAD_TILES: dict[str, tuple[BandedGradTile, ...]] = {
    "half": (
        BandedGradTile(32, 64, 1, 64, num_warps=8, num_stages=3),
        BandedGradTile(16, 32, 1, 64, num_warps=4, num_stages=3),
        BandedGradTile(16, 16, 1, 64, num_warps=8, num_stages=3, ROW_GROUP=8),
        BandedGradTile(16, 32, 1, 64, num_warps=8, num_stages=3, ROW_GROUP=4),
    ),
    "tf32": (
        BandedGradTile(16, 64, 1, 32, num_warps=4, num_stages=3),
        BandedGradTile(16, 32, 1, 32, num_warps=4, num_stages=3),
        BandedGradTile(16, 16, 1, 32, num_warps=8, num_stages=3, ROW_GROUP=8),
        BandedGradTile(16, 32, 1, 32, num_warps=8, num_stages=3, ROW_GROUP=4),
    ),
    "tf32x3": (BandedGradTile(16, 32, 1, 32, num_warps=4, num_stages=2),),
}
#: The same with a stride of rows.
STRIDED_GRAD_TILES: dict[str, tuple[BandedGradTile, ...]] = {
    "half": (
        BandedGradTile(16, 64, 1, 64, num_warps=8, num_stages=3, STRIDE_H=2),
        BandedGradTile(16, 32, 1, 64, num_warps=8, num_stages=3, ROW_GROUP=4, STRIDE_H=2),
        BandedGradTile(8, 32, 1, 32, num_warps=8, num_stages=3, ROW_GROUP=4, STRIDE_H=2),
    ),
    "tf32": (
        BandedGradTile(16, 64, 1, 32, num_warps=8, num_stages=3, STRIDE_H=2),
        BandedGradTile(16, 32, 1, 32, num_warps=8, num_stages=3, STRIDE_H=2),
        BandedGradTile(8, 32, 1, 32, num_warps=8, num_stages=3, ROW_GROUP=4, STRIDE_H=2),
    ),
    "tf32x3": (BandedGradTile(16, 32, 1, 32, num_warps=8, num_stages=2, STRIDE_H=2),),
}
