"""Banded kernels: large windows of one channel per group, on the matrix units.

One channel per group leaves a matrix unit nothing to reduce over but the window, so an output row
is multiplied by a matrix with a band: see kernels/fprop_banded.py. Weight gradients have tiles of
their own, in banded_gradient.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from ..geometry import Geometry
from . import stencil
from .banded_gradient import (
    BANDED_GRAD_TILES,
    LANES_PER_NUMBER,
    STRIDED_GRAD_TILES,
    BandedGradTile,
    pieces,
)
from .bands import COLUMN_STEP, Band, band_of, round_up
from .cost import Code, Work, fits_matrix_unit, matrix_work, pipeline_bytes
from .device import DEVICES, LIMITS, MAX_WORKSPACE, RATES
from .integers import cdiv
from .problem import Plan, Problem

#: Largest stride of a weight gradient: larger ones leave few products in the band.
MAX_STRIDE = 2
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
        band = band_of(geometry, self.BLOCK_Q)
        if geometry.Q > self.BLOCK_Q or geometry.padding_mode != "zeros":
            return band
        left = geometry.padding[1][0]
        first = max(band.first, 0)
        end = min(geometry.W, geometry.Q - 1 + geometry.S - left)
        return Band(first, first + left, round_up(max(1, end - first)))

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


AnyBandedTile: TypeAlias = BandedTile | BandedGradTile


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
