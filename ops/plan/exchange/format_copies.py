"""Copies of images in another format: channels_last, planes of whole pieces, or a stride's pixels.

Windows with a stride leave lines of a plane half used: a kernel that reads or stores them as they
lie moves single elements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...geometry import Geometry
from ..integers import cdiv
from .way import READ, RESULT, Exchange, Moved, piece_of

if TYPE_CHECKING:
    from ..problem import Problem

#: Fewest taps of a window of few channels that is read from copies in planes: kernels for smaller
#: ones read any format about as fast as it can be copied.
MIN_TAPS = 25


@dataclass(frozen=True)
class ChannelsLast(Exchange):
    """All images that the kernel reads are copied to channels_last.

    Attributes:
        result: the result is computed in channels_last, then copied.
    """

    result: bool = False
    name: ClassVar[str] = "channels_last"

    @property
    def in_words(self) -> str:
        return "reads channels_last copies" + " and stores one" * self.result

    def forms(self, op: str) -> dict[str, str]:
        return dict.fromkeys(READ[op] + RESULT[op] * self.result, "NHWC")


@dataclass(frozen=True)
class Planes(Exchange):
    """Images are copied to planes whose rows begin at multiples of 16 bytes, unless they do.

    Columns of zeros fill the rows up to whole pieces: those of x, or of an input gradient's dy. A
    weight gradient's dy has none: zeros times an infinity are NaN.

    Attributes:
        result: the result is computed in contiguous planes, then copied.
    """

    result: bool = False
    name: ClassVar[str] = "planes"

    @property
    def in_words(self) -> str:
        return "reads contiguous copies" + " and stores one" * self.result

    def forms(self, op: str) -> dict[str, str]:
        return dict.fromkeys(READ[op] + RESULT[op] * self.result, "NCHW")

    def geometry(self, op: str, geometry: Geometry, piece: int) -> Geometry:
        g, (rows, (left, right)) = geometry, geometry.padding
        if op == "dgrad":
            more = -g.Q % piece if g.Q > 1 else 0
            padding = rows, (left, right + more * g.stride[1])
            return replace(g, padding=padding, padding_mode="zeros")
        if g.padding_mode != "zeros":
            return g
        more = -g.W % piece
        return replace(g, W=g.W + more, padding=(rows, (left, right - more)))

    def layout(self, problem: Problem, geometry: Geometry) -> dict[str, Any]:
        whole = {f"{image}_boxes": "NCHW" for image in READ[problem.op]}
        return super().layout(problem, geometry) | whole

    def before(self, problem: Problem) -> list[Moved]:
        g, op, layout = problem.geometry, problem.op, problem.layout
        itemsize, piece = problem.dtype.itemsize, piece_of(problem)
        seen = self.geometry(op, g, piece)
        planes = (
            (op != "dgrad" and layout.x_align < piece, g.x_numel, g.C * g.H, seen.W),
            (op != "fprop" and layout.y_align < piece, g.y_numel, g.K * g.P, seen.Q),
            # A residual; counted for any heavy epilogue.
            (self.result and op == "fprop" and layout.heavy_epilogue, g.y_numel, g.K * g.P, g.Q),
        )
        return [
            Moved(read * itemsize, g.N * rows * cdiv(columns, piece) * 16)
            for is_copied, read, rows, columns in planes
            if is_copied
        ]


@dataclass(frozen=True)
class Sampled(Exchange):
    """Copies hold the pixels of x that a 1x1 window with a stride meets: it has none in the kernel.

    Other pixels of an input gradient are zero, or the bias.

    Attributes:
        reads: all images that the kernel reads are copied to channels_last, not x alone to planes.
        result: the result is computed in channels_last, then copied.
    """

    reads: bool = False
    result: bool = False
    name: ClassVar[str] = "sampled"

    @property
    def in_words(self) -> str:
        last = " in channels_last, as the result" if self.result else " in channels_last"
        return "copies of every stride-th pixel" + last * self.reads

    def forms(self, op: str) -> dict[str, str]:
        last = READ[op] * self.reads + RESULT[op] * self.result
        return {"x": "NCHW", **dict.fromkeys(last, "NHWC")}

    def geometry(self, op: str, geometry: Geometry, piece: int) -> Geometry:
        return replace(geometry, H=geometry.P, W=geometry.Q, given_stride=(1, 1))

    def layout(self, problem: Problem, geometry: Geometry) -> dict[str, Any]:
        return super().layout(problem, geometry) | {"as_rows": False}


def to_pixels(problem: Problem) -> list[Exchange]:
    """Exchanges to compare whose kernel reads or stores channels_last images, or sampled ones."""
    g, op = problem.geometry, problem.op
    if g.group_C * g.group_K == 1:
        return []
    if problem.has_few_channels and op != "wgrad":
        return []  # patches of few channels are read as they lie
    stores = op == "dgrad" or (op == "fprop" and not problem.layout.heavy_epilogue)
    results = [False, True] if stores else [False]
    strided = g.stride != (1, 1)
    # Pixels of a phase would be stored one by one.
    found: list[Exchange] = [
        ChannelsLast(result) for result in results if result or op != "dgrad" or not strided
    ]
    if strided and g.R * g.S == 1 and g.padding == ((0, 0), (0, 0)):
        found += [Sampled(), *(Sampled(True, result) for result in results)]
    return found


def to_planes(problem: Problem) -> list[Exchange]:
    """The exchange to planes to compare, of large windows of few channels.

    Where images are channels_last, or where rows of planes do not begin at multiples of 16 bytes.
    """
    g, op, layout = problem.geometry, problem.op, problem.layout
    if not problem.has_few_channels or g.R * g.S < MIN_TAPS:
        return []
    if not problem.in_planes:
        return [Planes(result=op != "wgrad")]
    align = layout.y_align if op == "dgrad" else layout.x_align
    whole = op == "wgrad" or align * problem.dtype.itemsize == 16
    return [] if whole else [Planes()]
