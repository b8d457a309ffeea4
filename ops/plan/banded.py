"""Banded kernels: large windows of one channel per group, on the matrix units.

One channel per group leaves a matrix unit nothing to reduce over but the window, so an output row
is multiplied by a matrix with a band: see kernels/fprop_banded.py and kernels/wgrad_banded.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

from ..geometry import Geometry
from . import stencil
from .cost import (
    REGISTERS,
    Code,
    Work,
    fits_matrix_unit,
    matrix_work,
    partial_bytes,
    pipeline_bytes,
    splits_that_fill,
)
from .device import ALL_REGISTERS, DEVICES, LIMITS, MAX_WORKSPACE, RATES
from .integers import cdiv, power_of_two
from .problem import Plan, Problem

#: Columns come in steps of 16 bytes of 16-bit numbers: what one load instruction brings.
COLUMN_STEP = 8
#: Largest stride of a weight gradient: larger ones leave few products in the band.
MAX_STRIDE = 2
#: Strips that a split of a weight gradient sums at least, to make its last reduction worth it.
MIN_SPLIT_STRIPS = 4
#: Strips of a weight gradient whose row groups hold several rows that take as long as what is
#: outside of the loop: 1900 instructions, of 383 for a strip of 56 columns (sm_90).
OUTSIDE_STRIPS = 5
#: Fewest taps of a window that a rows kernel could hold whose weight gradient comes from groups of
#: rows. By machine code for sm_90 (Triton 3.7.1) and the rates of a H200, an 8192^2 image in
#: bfloat16 takes 81 us whatever the window; row by row it takes 66 (3x3), 115 (5x5), 215 (7x7).
MIN_GROUPED_TAPS = 25
#: Most accumulator elements per thread whose columns do not come in pieces of 16 bytes, see
#: in_pieces: each is stored, and what is added to it loaded, at a place of its own. 32 spill up to
#: 200 bytes, 64 up to 1500, and on sm_80 also where only the columns of x do not.
MAX_LONE_RESULTS = 16
#: Instructions of one lane that a H200 issues while L2 delivers a byte: 4.4. A banded kernel issues
#: 1.3 to 1.6 for a byte, by machine code for sm_90, and a matrix unit multiplies 15 to 60 pairs
#: meanwhile: L2 is what it waits for.
LANES_PER_BYTE = (
    RATES["90"].issue * LIMITS["90"].lanes * DEVICES["h200"].multiprocessors / RATES["90"].l2
)
#: Most accumulator elements per thread, except of 16-bit products on sm_90: with 128 those take 215
#: to 232 registers; sm_80 spills 40 bytes, sm_100 248 of TF32 (Triton 3.6.0 and 3.7.1).
MAX_RESULTS = 64
#: Most accumulator elements per thread of a weight gradient on sm_90; elsewhere half of them.
MAX_GRAD_RESULTS = 128
#: Lane instructions for a number that is loaded alone (sm_90).
LANES_PER_NUMBER = 25
#: Lane instructions outside of the loop, for one output (sm_90).
BANDED_LANES = 50


@dataclass(frozen=True)
class BandedTile:
    """One program's BLOCK_M blocks of BLOCK_P x BLOCK_Q outputs, and the launch options.

    A step of its reduction is BLOCK_K elements (row, column) of the input that a block reads.
    """

    BLOCK_M: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    family: ClassVar[str] = "banded"
    partials: ClassVar[int] = 1

    @property
    def results(self) -> int:
        """Accumulator elements per thread, for 32-thread warps."""
        return self.BLOCK_M * self.BLOCK_P * self.BLOCK_Q // (32 * self.num_warps)

    def band(self, geometry: Geometry) -> Band:
        """The band of a block; of an input gradient, `geometry` is the adjoint.

        If one block holds a whole row of the output, the columns are those of the image, without
        zeros.
        """
        band = _band(geometry, self.BLOCK_Q)
        if geometry.Q > self.BLOCK_Q or geometry.padding_mode != "zeros":
            return band
        left = geometry.padding[1][0]
        first = max(band.first, 0)
        end = min(geometry.W, geometry.Q - 1 + geometry.S - left)
        return Band(first, first + left, _round_up(max(1, end - first)))

    def bands_shape(self, geometry: Geometry) -> tuple[int, ...]:
        """Shape of the workspace of build_bands: (bank, filter, q, row, column)."""
        rows = geometry.R + 2 * (self.BLOCK_P - 1)
        banks = geometry.N if geometry.per_sample else 1
        return (banks, geometry.K, self.BLOCK_Q, rows, self.band(geometry).columns)

    def bands_bytes(self, problem: Problem) -> int:
        """Bytes of the bands of all filters."""
        return math.prod(self.bands_shape(problem.correlated)) * problem.dtype.itemsize

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results."""
        g = problem.correlated
        blocks = problem.samples * cdiv(g.P, self.BLOCK_P) * cdiv(g.Q, self.BLOCK_Q)
        return problem.banks * g.K * cdiv(blocks, self.BLOCK_M)

    def strips(self, problem: Problem) -> int:
        """Steps of a program's reduction."""
        g = problem.correlated
        rows = self.BLOCK_P + g.R - 1
        if g.padding_mode == "zeros":
            rows = min(rows, g.H)
        return cdiv(rows * self.band(g).columns, self.BLOCK_K)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: blocks are the rows."""
        return self.BLOCK_M, self.BLOCK_P * self.BLOCK_Q, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """Parts of a reduction: one. Weight gradients have BandedGradTile."""
        return 1

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program, about: the operands of every pipeline stage."""
        return pipeline_bytes(self, problem)

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it: no spills."""
        if self.results > MAX_RESULTS:
            plain = problem.correlated.padding_mode == "zeros" and problem.product == "half"
            if problem.device.arch != "90" or problem.layout.heavy_epilogue or not plain:
                return False
        return in_pieces(problem) or self.results <= MAX_LONE_RESULTS

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision, "turned": problem.is_turned}

    def fitted(self, problem: Problem) -> BandedTile:
        """The tile for an image of this size: itself."""
        return self

    def others(self, problem: Problem) -> Iterator[BandedTile]:
        """Tiles of other extents."""
        extents = itertools.product(
            (16, 32, 64, 128, 256), (2, 4, 8, 16), (8, 16, 32), (16, 32, 64), (4, 8), (2, 3, 4)
        )
        return (BandedTile(*extent) for extent in extents)

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch, and of the one that builds the bands."""
        m, n, _ = self.step(plan.op)
        return matrix_work(
            plan,
            problem,
            Code(180, 900, 120),
            self.strips(problem),
            m * n,
            plan.grid,
            image_first=True,
            between_bytes=self.bands_bytes(problem),
            operands="registers",
        )


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
        if self.ROW_GROUP > 1 and _is_narrow(geometry):
            half = COLUMN_STEP // 2
            return Band(-half, geometry.padding[1][0] - half, 2 * COLUMN_STEP)
        return _band(geometry, COLUMN_STEP)

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


AnyBandedTile: TypeAlias = BandedTile | BandedGradTile


@dataclass(frozen=True)
class Band:
    """The input that a block of outputs reads, as columns of a matrix.

    Attributes:
        first: column of the input at i = 0, counted from the block's first output column.
        shift: tap s of column i and output column q: s = i + shift - q.
        columns: of the matrix, a multiple of COLUMN_STEP.
    """

    first: int
    shift: int
    columns: int


def _band(geometry: Geometry, block: int) -> Band:
    """The band of `block` output columns.

    The first column lies on a step, so that loads are aligned where the image's rows are.
    """
    left = geometry.padding[1][0]
    first = -_round_up(left)
    read = (block - 1) * geometry.stride[1] + geometry.S
    return Band(first, first + left, _round_up(max(1, read - left - first)))


def _is_narrow(geometry: Geometry) -> bool:
    """Whether a group of COLUMN_STEP columns reads at most half a group on each side of it."""
    left, right = geometry.padding[1][0], geometry.S - 1 - geometry.padding[1][0]
    return geometry.stride[1] == 1 and max(left, right) <= COLUMN_STEP // 2


def _round_up(number: int) -> int:
    return cdiv(number, COLUMN_STEP) * COLUMN_STEP


def rows_read(geometry: Geometry) -> tuple[int, int]:
    """(first, count) of the rows of the padded image that some output reads, without zeros.

    With a stride, rows are counted in runs of a stride: an output starts at the first row of a run.
    """
    top, stride = geometry.padding[0][0], geometry.stride[0]
    rows = geometry.P + (geometry.R - 1) // stride
    if geometry.padding_mode != "zeros":
        return 0, rows
    first = max(0, top // stride)
    return first, max(0, min(rows, cdiv(geometry.H + top, stride)) - first)


#: For each kind of product, tiles of fprop and dgrad. The one that loads the least is taken.
BANDED_TILES: dict[str, tuple[BandedTile, ...]] = {
    "half": (
        BandedTile(256, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(128, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(64, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(32, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(32, 8, 8, 64, num_warps=8, num_stages=3),
    ),
    "tf32": (
        BandedTile(128, 8, 16, 32, num_warps=8, num_stages=3),
        BandedTile(32, 8, 16, 32, num_warps=8, num_stages=3),
        BandedTile(32, 8, 8, 32, num_warps=8, num_stages=3),
    ),
    "tf32x3": (
        BandedTile(128, 8, 8, 32, num_warps=8, num_stages=2),
        BandedTile(64, 8, 8, 32, num_warps=8, num_stages=2),
    ),
}
#: The same of weight gradients. BLOCK_H and BLOCK_W here are for wide images, see fitted.
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


def is_legal(problem: Problem) -> bool:
    """Whether a banded kernel can compute this: columns of images are neighbours."""
    g = problem.geometry
    if not problem.in_planes or problem.op == "dgrad_frame":
        return False
    if g.group_C != 1 or g.dilation != (1, 1):
        return False
    if max(g.stride) > (MAX_STRIDE if problem.op == "wgrad" else 1):
        return False
    if problem.product not in BANDED_TILES:
        return False
    return problem.op != "dgrad" or g.group_K == 1


def tiles(problem: Problem) -> list[AnyBandedTile]:
    """The tiles that the planner may take; of an image one, none where a stencil costs no more.

    Of two kernels whose arithmetic hides behind what feeds it, the cheaper to feed is taken: a
    stencil issues a dozen instructions for every tap, a banded kernel reads (BLOCK_P + R - 1) *
    columns * (1 / BLOCK_M + 1 / BLOCK_N) numbers from L2 for every output. choose.py compares the
    tile with that of a rows or columns kernel.
    """
    few = problem.has_few_channels or problem.op == "wgrad"
    if not few or problem.geometry.y_numel == 0 or not is_legal(problem):
        return []
    found = tiles_with_room(problem)
    if problem.op == "wgrad":
        return found
    costs = {
        tile: lanes_per_output(tile, problem)
        for tile in found
        if tile.bands_bytes(problem) <= MAX_WORKSPACE
    }
    best = min(costs, key=lambda tile: costs[tile], default=None)
    if best is None or costs[best] >= stencil.lanes_per_output(problem):
        return []
    return [best]


def takes_over(problem: Problem) -> bool:
    """Whether a weight gradient that a rows kernel could compute costs less here."""
    g = problem.geometry
    if problem.op != "wgrad" or g.R * g.S < MIN_GROUPED_TAPS or problem.product != "half":
        return False
    if g.stride != (1, 1) or min(pieces(problem)) < COLUMN_STEP:
        return False
    grouped = [tile for tile in BANDED_GRAD_TILES["half"] if tile.ROW_GROUP > 1]
    room = problem.device.limits.shared
    fitting = [t for t in grouped if t.suits(problem) and t.shared_bytes(problem) <= room]
    return bool(fitting) and is_legal(problem)


def tiles_with_room(problem: Problem) -> list[AnyBandedTile]:
    """The tiles of the tables that neither spill nor overflow shared memory."""
    tables: Mapping[str, Sequence[AnyBandedTile]] = BANDED_TILES
    if problem.op == "wgrad":
        tables = BANDED_GRAD_TILES if problem.geometry.stride[0] == 1 else STRIDED_GRAD_TILES
    room = problem.device.limits.shared
    found = (tile.fitted(problem) for tile in tables[problem.product])
    return [tile for tile in found if tile.suits(problem) and tile.shared_bytes(problem) <= room]


def pieces(problem: Problem) -> tuple[int, int]:
    """Columns of x and of dy that a weight gradient loads at once."""
    layout = problem.layout
    if layout.int64:
        return 1, 1
    return math.gcd(COLUMN_STEP, layout.x_align), math.gcd(COLUMN_STEP, layout.y_align)


def in_pieces(problem: Problem) -> bool:
    """Whether columns of x and y come in pieces of 16 bytes, at places that 32 bits hold."""
    g, layout = problem.geometry, problem.layout
    return not layout.int64 and g.W % COLUMN_STEP == g.Q % COLUMN_STEP == 0


def lanes_per_output(tile: AnyBandedTile, problem: Problem) -> float:
    """Lane instructions for one output, waiting for L2 counted as instructions.

    Those that a multiprocessor without a program could have issued meanwhile are counted, too.
    """
    g = problem.correlated
    m, n, k = tile.step(problem.op)
    banded = pixel = problem.dtype.itemsize * LANES_PER_BYTE
    if g.W % COLUMN_STEP or g.Q % COLUMN_STEP or g.padding_mode != "zeros":
        pixel = max(pixel, LANES_PER_NUMBER)
    sms = problem.device.multiprocessors
    programs = cdiv(tile.programs(problem), sms) * sms
    loads = programs * k * tile.strips(problem)
    return loads * (m * pixel + n * banded) / g.y_numel + BANDED_LANES


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (BandedTile, BandedGradTile)


def neighbours(tile: AnyBandedTile, problem: Problem) -> Iterator[AnyBandedTile]:
    """The tiles that a tuner tries: of all extents; of a weight gradient, with steps as wide."""
    return (other for other in tile.others(problem) if fits(other, problem))


def fits(tile: AnyBandedTile, problem: Problem) -> bool:
    """Whether a tile neither spills nor overflows, by count."""
    return fits_matrix_unit(tile, problem)
