"""Large windows on the matrix units: tiles, the extents of a band, and what a tile costs.

One channel per group leaves a matrix unit nothing to reduce over but the window, so an output row
is multiplied by a matrix with a band: see kernels/fprop_banded.py and kernels/wgrad_banded.py. All
of this is counting; which tile is taken, and when, is decided in choose.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..geometry import Geometry

#: Columns come in steps of so many: 16 bytes of 16-bit numbers, what one load instruction brings.
COLUMN_STEP = 8


@dataclass(frozen=True)
class BandedTile:
    """One program's BLOCK_M blocks of BLOCK_P x BLOCK_Q outputs, and what the compiler is told."""

    BLOCK_M: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    @property
    def gemm(self) -> tuple[int, int, int]:
        """Extents of one step on the matrix unit: (M, N, K)."""
        return self.BLOCK_M, self.BLOCK_P * self.BLOCK_Q, self.BLOCK_K

    @property
    def results(self) -> int:
        """Of one thread, of 32 to a warp."""
        return self.BLOCK_M * self.BLOCK_P * self.BLOCK_Q // (32 * self.num_warps)


@dataclass(frozen=True)
class BandedGradTile:
    """One program's BLOCK_R rows and BLOCK_I columns of a window's gradient, with their diagonals.

    A step of its reduction is BLOCK_H rows by BLOCK_W groups of COLUMN_STEP columns of dy.
    """

    BLOCK_R: int
    BLOCK_I: int
    BLOCK_H: int
    BLOCK_W: int
    num_warps: int
    num_stages: int

    @property
    def gemm(self) -> tuple[int, int, int]:
        """Extents of one step on the matrix unit: (M, N, K)."""
        return self.BLOCK_R * COLUMN_STEP, self.BLOCK_I, self.BLOCK_H * self.BLOCK_W


AnyBandedTile: TypeAlias = BandedTile | BandedGradTile


@dataclass(frozen=True)
class Band:
    """The input that a block of outputs reads, as columns of a matrix.

    Attributes:
        first: column of the input that i = 0 is, counted from the block's first output column.
        shift: tap s of column i and output column q: s = i + shift - q.
        columns: of the matrix, a multiple of COLUMN_STEP.
    """

    first: int
    shift: int
    columns: int


def band_of(geometry: Geometry, tile: AnyBandedTile) -> Band:
    """The band of a tile's blocks; of an input gradient, `geometry` is the adjoint.

    The first column lies on a step, so that loads are aligned where the image's rows are. If one
    block holds a whole row of the output, the columns are those of the image, without zeros.
    """
    left = geometry.padding[1][0]
    block = tile.BLOCK_Q if isinstance(tile, BandedTile) else COLUMN_STEP
    first = -_round_up(left)
    end = block - 1 + geometry.S - left
    if isinstance(tile, BandedTile) and geometry.Q <= block and geometry.padding_mode == "zeros":
        first = max(first, 0)
        end = min(geometry.W, geometry.Q - 1 + geometry.S - left)
    return Band(first, first + left, _round_up(max(1, end - first)))


def bands_shape(geometry: Geometry, tile: BandedTile) -> tuple[int, ...]:
    """Of the workspace that build_bands fills: (banks, filters, q, rows, columns)."""
    rows = geometry.R + 2 * (tile.BLOCK_P - 1)
    banks = geometry.N if geometry.per_sample else 1
    return (banks, geometry.K, tile.BLOCK_Q, rows, band_of(geometry, tile).columns)


def rows_read(geometry: Geometry) -> tuple[int, int]:
    """(first, count) of the rows of the padded image that some output reads, without zeros."""
    top = geometry.padding[0][0]
    if geometry.padding_mode != "zeros":
        return 0, geometry.P + geometry.R - 1
    first = max(0, top)
    return first, max(0, min(geometry.P + geometry.R - 1, geometry.H + top) - first)


def grad_strips(geometry: Geometry, tile: BandedGradTile) -> int:
    """Strips of one problem of a weight gradient."""
    samples = 1 if geometry.per_sample else geometry.N
    lines = _cdiv(samples * rows_read(geometry)[1], tile.BLOCK_H)
    return lines * _cdiv(geometry.Q, tile.BLOCK_W * COLUMN_STEP)


def banded_programs(geometry: Geometry, tile: AnyBandedTile) -> int:
    """Programs of a launch, a weight gradient's before it is split; `geometry` as for band_of."""
    g = geometry
    filters = (g.N if g.per_sample else 1) * g.K
    if isinstance(tile, BandedGradTile):
        columns = band_of(g, tile).columns
        return filters * _cdiv(g.R, tile.BLOCK_R) * _cdiv(columns, tile.BLOCK_I)
    samples = 1 if g.per_sample else g.N
    blocks = samples * _cdiv(g.P, tile.BLOCK_P) * _cdiv(g.Q, tile.BLOCK_Q)
    return filters * _cdiv(blocks, tile.BLOCK_M)


def banded_steps(geometry: Geometry, tile: AnyBandedTile) -> int:
    """Steps of a program's reduction; of a weight gradient's, if it is not split."""
    if isinstance(tile, BandedGradTile):
        return grad_strips(geometry, tile)
    rows = tile.BLOCK_P + geometry.R - 1
    if geometry.padding_mode == "zeros":
        rows = min(rows, geometry.H)
    return _cdiv(rows * band_of(geometry, tile).columns, tile.BLOCK_K)


def _round_up(number: int, step: int = COLUMN_STEP) -> int:
    return _cdiv(number, step) * step


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
