"""Windows whose columns are channels, of a view of x or of a copy whose windows overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...geometry import Geometry
from ..device import GEMM_MIN
from ..integers import cdiv
from .image_patches import MIN_PIECE
from .way import Exchange, Moved, piece_of

if TYPE_CHECKING:
    from ..cost import Work
    from ..problem import Problem

#: Most channels of x, or dy, whose windows are rows of a copy: more fill steps of a product.
MOST_OVERLAPPED = 16


@dataclass(frozen=True)
class Merged(Exchange):
    """x in channels_last is seen with its columns merged, see Geometry.merged_columns.

    Nothing is copied but a contiguous weight.
    """

    name: ClassVar[str] = "merged"

    @property
    def in_words(self) -> str:
        return "columns of the window seen as channels"

    def geometry(self, op: str, geometry: Geometry, piece: int) -> Geometry:
        return geometry.merged_columns()

    def layout(self, problem: Problem, geometry: Geometry) -> dict[str, Any]:
        boxes = problem.layout.merged or ""
        return {"x_boxes": boxes, "x_row": "", "x_align": 1, "repacks": False}

    def with_copies(self, work: Work, problem: Problem) -> Work:
        """The work with the copy of the weight, if it is contiguous."""
        weight = problem.geometry.weight_numel * problem.dtype.itemsize
        return work.after_copies([weight] * problem.layout.repacks)


def merges(problem: Problem) -> bool:
    """Whether x can be seen with its columns merged, and the result can be stored so."""
    g, op, layout = problem.geometry, problem.op, problem.layout
    if not layout.channels_last or layout.merged is None:
        return False
    if op == "dgrad":
        return g.W == g.Q * g.S  # no view has columns that no window meets
    # Pieces of 4 bytes of x take a weight gradient as long as single elements (sm_90).
    whole = g.S * g.C * problem.image_bytes % MIN_PIECE == 0
    return op != "wgrad" or (whole and not layout.repacks)


@dataclass(frozen=True)
class Overlapping(Exchange):
    """x, or dy of an input gradient, is copied so that a row of each window is one pixel (s, c).

    The copy is channels_last with more channels and columns of zeros, see overlap_of; its pixels
    overlap as the windows do.
    """

    name: ClassVar[str] = "overlapping"

    @property
    def in_words(self) -> str:
        return "rows of windows of a copy as overlapping pixels"

    def geometry(self, op: str, geometry: Geometry, piece: int) -> Geometry:
        g, made, rows = geometry, overlap_of(op, geometry, piece), geometry.padding[0]
        seen = replace(g, S=1, padding=(rows, (0, 0)), given_stride=(g.given_stride[0], 1))
        if op == "dgrad":
            return replace(seen, K=made.channels * made.taps)
        return replace(seen, C=made.channels * made.taps, W=g.Q)

    def layout(self, problem: Problem, geometry: Geometry) -> dict[str, Any]:
        if problem.op == "dgrad":
            return {"y_boxes": "NHWC", "y_row": "", "y_align": 1}
        return {"x_boxes": "NHWC", "x_row": "", "x_align": 1, "repacks": False}

    def before(self, problem: Problem) -> list[Moved]:
        g, itemsize = problem.geometry, problem.dtype.itemsize
        made = overlap_of(problem.op, g, piece_of(problem))
        read, rows = (g.y_numel, g.P) if problem.op == "dgrad" else (g.x_numel, g.H)
        return [Moved(read * itemsize, g.N * rows * made.columns * made.channels * itemsize)]

    def with_copies(self, work: Work, problem: Problem) -> Work:
        """As Exchange.with_copies; pixels are seen several times, and read once."""
        again = self.seen(problem).read_bytes[0] - self.before(problem)[0].written
        work = work._replace(dram_bytes=work.dram_bytes - again)
        return super().with_copies(work, problem)


@dataclass(frozen=True)
class Overlap:
    """A copy of x, or dy, (N, H, columns, channels) whose windows are rows of (column, channel).

    Attributes:
        channels: those of the image, and some of zeros.
        taps: columns of the window, backwards through dy, and some whose weight is zero.
        columns: the first is that of the first window's first tap.
        first: column that has the first one of the image.
        step: columns from one window to the next.
        windows: of a row.
    """

    channels: int
    taps: int
    columns: int
    first: int
    step: int
    windows: int


def overlap_of(op: str, geometry: Geometry, piece: int) -> Overlap:
    """The smallest copy whose windows begin at multiples of 16 bytes, `piece` elements.

    A row of a window has a multiple of GEMM_MIN elements, which are the channels of a product.
    The window of pixel w of an input gradient are the columns w + PAD_W - s of dy, stride 1.
    """
    g, step, first = geometry, geometry.stride[1], geometry.padding[1][0]
    read, windows = g.C, g.Q
    if op == "dgrad":
        read, windows, first, step = g.K, g.W, g.S - 1 - first, 1
    least = piece // math.gcd(piece, step)
    channels = cdiv(read, least) * least
    more = GEMM_MIN // math.gcd(GEMM_MIN, channels)
    taps = cdiv(g.S, more) * more
    return Overlap(channels, taps, step * (windows - 1) + taps, first, step, windows)


def overlaps(problem: Problem) -> bool:
    """Whether windows of few channels overlap, in a call that is one product."""
    g = problem.geometry
    if problem.op not in ("fprop", "dgrad") or problem.layout.converts:
        return False
    if problem.reduced > MOST_OVERLAPPED or 2 * problem.group_channels < GEMM_MIN:
        return False
    if g.groups > 1 or g.per_sample or g.flip or g.padding_mode != "zeros":
        return False
    is_single = problem.op == "fprop" or g.stride == (1, 1)
    return is_single and g.dilation[1] == 1 and g.S > g.stride[1]
