"""Bands: the input columns that a block of outputs reads, as columns of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

from ..geometry import Geometry
from .integers import cdiv

#: Columns come in steps of 16 bytes of 16-bit numbers: what one load instruction brings.
COLUMN_STEP = 8


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


def band_of(geometry: Geometry, block: int) -> Band:
    """The band of `block` output columns.

    The first column lies on a step, so that loads are aligned where the image's rows are.
    """
    left = geometry.padding[1][0]
    first = -round_up(left)
    read = (block - 1) * geometry.stride[1] + geometry.S
    return Band(first, first + left, round_up(max(1, read - left - first)))


def is_narrow(geometry: Geometry) -> bool:
    """Whether a group of COLUMN_STEP columns reads at most half a group on each side of it."""
    left, right = geometry.padding[1][0], geometry.S - 1 - geometry.padding[1][0]
    return geometry.stride[1] == 1 and max(left, right) <= COLUMN_STEP // 2


def round_up(number: int) -> int:
    """The least multiple of COLUMN_STEP that is not less."""
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
