"""Plans whose kernel runs on copies of the images, or on views, in the form that suits it best.

A plan of any family can carry an Exchange. Its kernel meets another problem, `Exchange.seen`:
images in another format, or those pixels alone that a 1x1 window with a stride reads. The launches
around it copy what is read and, where the result is computed in the other format too, the result.
kernels/copy_images.py makes the copies; ops/launch/exchanged.py builds the launches.

Where windows lie side by side, a product needs no taps. Images in channels_last are seen with the
columns of a window as channels: nothing is copied but a contiguous weight. Of contiguous images,
kernels/copy_patches.py makes patches, one pixel of (c, r, s) for each window. Where windows of few
channels overlap, pixels of a copy of x do: one pixel of (s, c) for a row of each window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..geometry import Geometry
from .device import GEMM_MIN, MAX_COPY_BYTES
from .integers import cdiv
from .patch_copies import PatchCopy

if TYPE_CHECKING:
    from .cost import Work
    from .problem import Problem

#: Device.arch of the devices that channels_last copies are made for: they were timed on sm_90.
ARCHITECTURES = ("90", "100")
#: Fewest taps of a window of few channels that is read from copies in planes: kernels for smaller
#: ones read any format about as fast as it can be copied.
MIN_TAPS = 25
#: Bytes of the pieces in which kernels load patches, and merged columns, at least.
MIN_PIECE = 8
#: Most channels of x, or dy, whose windows are rows of a copy: more fill steps of a product.
MOST_OVERLAPPED = 16


@dataclass(frozen=True)
class Exchange:
    """The copies before and after a plan's kernel.

    Attributes:
        reads: images that the kernel reads are copied to `format`.
        result: the result is an image that is computed in `format`, then copied.
        sampled: of a 1x1 window with a stride. Copies of x hold the pixels that the window meets,
            and the kernel's window has no stride. An input gradient's other pixels are zero.
        format: "NHWC", channels_last; or "NCHW", planes whose rows begin at multiples of 16 bytes.
        merged: x is seen with its columns merged, see Geometry.merged_columns.
        patches: x is copied to patches, see Geometry.of_patches, in this order of their channels;
            "" if it is not. An input gradient is computed so.
        overlapped: "x", or "dy" of an input gradient: that image is copied to channels_last with
            more channels and columns of zeros, and seen with the columns of each window as
            channels, see `overlap_of`.
    """

    reads: bool = False
    result: bool = False
    sampled: bool = False
    format: str = "NHWC"
    merged: bool = False
    patches: str = ""
    overlapped: str = ""

    def __str__(self) -> str:
        names = ("reads", "result", "sampled", "merged", "patches", "overlapped")
        copied = [name for name in names if getattr(self, name)]
        return "+".join(copied) + (" planes" if self.format == "NCHW" else "")

    @property
    def in_words(self) -> str:
        """What is copied, for people."""
        form = "channels_last" if self.format == "NHWC" else "contiguous"
        said = {
            f"reads {form} copies": self.reads,
            f"result copied from {form}": self.result,
            "copies of every stride-th pixel": self.sampled,
            "columns of the window seen as channels": self.merged,
            f"patches ({', '.join(self.patches)}) as pixels": bool(self.patches),
            "rows of windows of a copy as overlapping pixels": bool(self.overlapped),
        }
        return " and ".join(text for text, is_so in said.items() if is_so)

    def copies_x(self, op: str) -> bool:
        """Whether the kernel reads or stores a copy of x in `format`."""
        return bool(self.patches) or (self.result if op == "dgrad" else self.reads)

    def copies_y(self, op: str) -> bool:
        """The same of y."""
        return self.result if op == "fprop" else self.reads

    def is_mixed(self, op: str) -> bool:
        """Whether the kernel reads one format and stores another: planned for GEMMs alone."""
        return self.format == "NHWC" and self.copies_x(op) != self.copies_y(op)

    def geometry(self, op: str, geometry: Geometry, piece: int) -> Geometry:
        """The geometry that the kernel meets.

        Columns of zeros fill rows of planes up to whole pieces: those of x, or of an input
        gradient's dy. A weight gradient's dy has none: zeros times an infinity are NaN.

        Args:
            op: of the plan.
            geometry: of the call.
            piece: elements of 16 bytes.
        """
        g = geometry
        if self.merged:
            return g.merged_columns()
        if self.patches:
            return g.of_patches()
        if self.overlapped:
            made, rows = overlap_of(self.overlapped, g, piece), g.padding[0]
            seen = replace(g, S=1, padding=(rows, (0, 0)), given_stride=(g.given_stride[0], 1))
            if self.overlapped == "dy":
                return replace(seen, K=made.channels * made.taps)
            return replace(seen, C=made.channels * made.taps, W=g.Q)
        if self.sampled:
            return replace(g, H=g.P, W=g.Q, given_stride=(1, 1))
        if self.format == "NHWC":
            return g
        rows, (left, right) = g.padding
        if op == "dgrad":
            more = -g.Q % piece if g.Q > 1 else 0
            padding = rows, (left, right + more * g.stride[1])
            return replace(g, padding=padding, padding_mode="zeros")
        if g.padding_mode != "zeros":
            return g
        more = -g.W % piece
        return replace(g, W=g.W + more, padding=(rows, (left, right - more)))

    def seen(self, problem: Problem) -> Problem:
        """The problem that the kernel meets."""
        piece, op, layout = 16 // problem.dtype.itemsize, problem.op, problem.layout
        g = self.geometry(op, problem.geometry, piece)
        if self.merged:
            boxes = layout.merged or ""
            layout = replace(layout, x_boxes=boxes, x_row="", x_align=1, repacks=False)
            return replace(problem, geometry=g, layout=replace(layout, merged=None, order=""))
        if self.overlapped == "x":
            layout = replace(layout, x_boxes="NHWC", x_row="", x_align=1)
        elif self.overlapped:
            layout = replace(layout, y_boxes="NHWC", y_row="", y_align=1)
        if self.overlapped:
            repacks = self.overlapped == "dy" and layout.repacks
            layout = replace(layout, repacks=repacks, merged=None, order="")
            return replace(problem, geometry=g, layout=layout)
        x_copied, y_copied = self.copies_x(op), self.copies_y(op)
        x_boxes, x_align = layout.x_boxes, layout.x_align
        y_boxes, y_align = layout.y_boxes, layout.y_align
        last = self.format == "NHWC"
        if x_copied:
            x_boxes, x_align = self._format_of(g.W, piece, op != "dgrad")
        elif self.sampled:
            x_boxes, x_align = "" if g.W % piece else "NCHW", math.gcd(piece, g.W)
        if y_copied:
            y_boxes, y_align = self._format_of(g.Q, piece, op != "fprop")
        return replace(
            problem,
            geometry=g,
            layout=replace(
                layout,
                channels_last=last and (x_copied or y_copied),
                x_boxes=x_boxes,
                y_boxes=y_boxes,
                x_row="NHWC" * last if x_copied else "" if self.sampled else layout.x_row,
                y_row="NHWC" * last if y_copied else layout.y_row,
                x_align=x_align,
                y_align=y_align,
                as_rows=layout.as_rows and not self.sampled,
                repacks=layout.repacks and not self.patches,
                merged=None,
                order="",
            ),
        )

    def _format_of(self, columns: int, piece: int, is_read: bool) -> tuple[str, int]:
        """(boxes, columns of a piece) of an image in `format`, see Layout.

        What is read is copied to rows that are whole pieces apart; a result is contiguous.
        """
        if self.format == "NHWC":
            return "NHWC", 1
        return "NCHW" if is_read or columns % piece == 0 else "", math.gcd(piece, columns)

    def with_copies(self, work: Work, problem: Problem) -> Work:
        """The work with the launches that make the copies, given that of the kernel alone."""
        if self.merged:
            weight = problem.geometry.weight_numel * problem.dtype.itemsize
            return work.after_copies([weight] * problem.layout.repacks)
        before, after = self._before(problem), self._after(problem)
        if self.overlapped:  # pixels are seen several times, and read once
            seen = self.seen(problem)
            again = seen.read_bytes[0] - before[0][1]
            work = work._replace(dram_bytes=work.dram_bytes - again)
        launches = bool(before) + bool(after)
        moved: float = sum(map(sum, (*before, *after)))
        if self.patches:  # made by a launch of their own
            launches += len(before) > 1
            copy = PatchCopy(problem.geometry, self.patches, problem.op == "dgrad")
            least = copy.seconds(problem.dtype.itemsize, problem.device)
            own = sum((after if copy.back else before)[0])
            moved += max(0.0, least * problem.device.copy_rate - own)
        elif before and work.copy_bytes:  # one launch copies the weight too
            work = work._replace(launches=work.launches - 1)
        return work._replace(exchanged_bytes=moved, exchange_launches=launches)

    def memory(self, problem: Problem) -> int:
        """Bytes of the copies of images, and of the result before it is copied."""
        written = sum(written for _, written in self._before(problem))
        return written + sum(read for read, _ in self._after(problem))

    def _before(self, problem: Problem) -> list[tuple[int, int]]:
        """(bytes read, bytes written) for each copy of an image that the kernel reads."""
        g, layout, itemsize = problem.geometry, problem.layout, problem.dtype.itemsize
        piece, found = 16 // itemsize, []
        seen = self.geometry(problem.op, g, piece)
        reads_x, reads_y = problem.op != "dgrad", problem.op != "fprop"
        if self.format == "NCHW":
            planes = (
                (reads_x and layout.x_align < piece, g.x_numel, g.C * g.H, seen.W),
                (reads_y and layout.y_align < piece, g.y_numel, g.K * g.P, seen.Q),
                # A residual; counted for any heavy epilogue.
                (self.result and not reads_y and layout.heavy_epilogue, g.y_numel, g.K * g.P, g.Q),
            )
            return [
                (read * itemsize, g.N * rows * cdiv(columns, piece) * 16)
                for is_copied, read, rows, columns in planes
                if is_copied
            ]

        def copied(channels: int, pixels: int) -> int:
            """Bytes of a copy: channels are filled up to whole pieces of 16 bytes."""
            return g.N * cdiv(channels, piece) * 16 * pixels

        if self.overlapped:
            made = overlap_of(self.overlapped, g, piece)
            read, rows = (g.y_numel, g.P) if reads_y else (g.x_numel, g.H)
            written = g.N * rows * made.columns * made.channels
            return [(read * itemsize, written * itemsize)]
        if reads_x and self.patches:
            written = copied(g.C * g.R * g.S, g.P * g.Q)
            found.append((g.N * g.C * g.P * g.R * g.W * itemsize, written))
        elif reads_x and (self.reads or self.sampled):
            rows, columns = (g.P, g.Q) if self.sampled else (g.H, g.W)
            written = (
                copied(g.C, rows * columns) if self.reads else g.N * g.C * rows * columns * itemsize
            )
            found.append((g.N * g.C * rows * g.W * itemsize, written))
        if reads_y and self.reads:
            found.append((g.y_numel * itemsize, copied(g.K, g.P * g.Q)))
        return found

    def _after(self, problem: Problem) -> list[tuple[int, int]]:
        """The same of the result, [] if the kernel stores it where it belongs."""
        g, itemsize = problem.geometry, problem.dtype.itemsize
        if problem.op == "dgrad" and self.patches:
            computed = g.N * g.C * g.P * g.R * g.Q * g.S
            return [(computed * itemsize, g.x_numel * itemsize)]
        if problem.op == "dgrad" and (self.result or self.sampled):
            computed = g.N * g.C * g.P * g.Q if self.sampled else g.x_numel
            return [(computed * itemsize, g.x_numel * itemsize)]
        if problem.op == "fprop" and self.result:
            return [(g.y_numel * itemsize,) * 2]
        return []


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


def overlap_of(image: str, geometry: Geometry, piece: int) -> Overlap:
    """The smallest copy whose windows begin at multiples of 16 bytes, `piece` elements.

    A row of a window has a multiple of GEMM_MIN elements, which are the channels of a product.

    Args:
        image: "x", or "dy" whose window of pixel w are the columns w + PAD_W - s, stride 1.
        geometry: of the call.
        piece: see above.
    """
    g, step, pad = geometry, geometry.stride[1], geometry.padding[1][0]
    read, windows, first = g.C, g.Q, pad
    if image == "dy":
        read, windows, first, step = g.K, g.W, g.S - 1 - pad, 1
    least = piece // math.gcd(piece, step)
    channels = cdiv(read, least) * least
    more = GEMM_MIN // math.gcd(GEMM_MIN, channels)
    taps = cdiv(g.S, more) * more
    return Overlap(channels, taps, step * (windows - 1) + taps, first, step, windows)


def exchanges(problem: Problem) -> list[Exchange]:
    """The exchanges to compare for a problem, [] where copies cannot be made or are never worth it.

    Windows of a stride leave lines of a plane half used: a kernel that reads or stores them as they
    lie moves single elements.
    """
    g, layout = problem.geometry, problem.layout
    if problem.op == "dgrad_frame":
        return []
    views = [Exchange(merged=True)] if _merges(problem) else []
    found = [] if layout.converts else _to_planes(problem)
    copied = problem.device.arch in ARCHITECTURES and problem.product in ("half", "tf32")
    if copied and _overlaps(problem):
        views.append(Exchange(overlapped="x" if problem.op == "fprop" else "dy"))
    if copied and not (layout.channels_last or layout.converts or g.per_sample):
        found = [*(found or _to_pixels(problem)), *_to_patches(problem)]
    most = MAX_COPY_BYTES
    return [one for one in views + found if one.merged or 0 < one.memory(problem) <= most]


def _merges(problem: Problem) -> bool:
    """Whether x can be seen with its columns merged, and the result can be stored so."""
    g, op, layout = problem.geometry, problem.op, problem.layout
    if not layout.channels_last or layout.merged is None:
        return False
    if op == "dgrad":
        return g.W == g.Q * g.S  # no view has columns that no window meets
    # Pieces of 4 bytes of x take a weight gradient as long as single elements (sm_90).
    whole = g.S * g.C * problem.image_bytes % MIN_PIECE == 0
    return op != "wgrad" or (whole and not layout.repacks)


def _overlaps(problem: Problem) -> bool:
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


def _to_pixels(problem: Problem) -> list[Exchange]:
    """Those whose kernel reads or stores channels_last images, or sampled ones."""
    g, op = problem.geometry, problem.op
    if g.group_C * g.group_K == 1:
        return []
    if problem.has_few_channels and op != "wgrad":
        return []  # patches of few channels are read as they lie
    formats = [Exchange(), Exchange(reads=True)]
    if op == "dgrad" or (op == "fprop" and not problem.layout.heavy_epilogue):
        formats.append(Exchange(reads=True, result=True))
    strided = g.stride != (1, 1)
    found = formats
    if op == "dgrad" and strided:  # pixels of a phase would be stored one by one
        found = [one for one in formats if one.result]
    if strided and g.R * g.S == 1 and g.padding == ((0, 0), (0, 0)):
        found = [*found, *(replace(one, sampled=True) for one in formats)]
    return found


def _to_patches(problem: Problem) -> list[Exchange]:
    """Those whose kernel multiplies patches, of pieces that it loads asynchronously.

    dy in planes is loaded so in 16 bits alone, and where all rows of its tiles are whole pieces.
    """
    op, layout, patches = problem.op, problem.layout, Exchange(patches=problem.layout.order)
    if not patches.patches or patches.seen(problem).has_few_channels:
        return []
    g = problem.geometry
    if g.group_C * g.R * g.S * problem.dtype.itemsize % MIN_PIECE:
        return []
    if op == "fprop":
        return [patches] if layout.heavy_epilogue else [patches, replace(patches, result=True)]
    planes = op == "dgrad" and problem.product == "half" and layout.y_row == "NCHW"
    return [*[patches] * planes, replace(patches, reads=True)]


def _to_planes(problem: Problem) -> list[Exchange]:
    """The exchange to planes to compare, of large windows of few channels.

    Where images are channels_last, or where rows of planes do not begin at multiples of 16 bytes.
    """
    g, op, layout = problem.geometry, problem.op, problem.layout
    if not problem.has_few_channels or g.R * g.S < MIN_TAPS:
        return []
    if not problem.in_planes:
        return [Exchange(reads=True, result=op != "wgrad", format="NCHW")]
    align = layout.y_align if op == "dgrad" else layout.x_align
    whole = op == "wgrad" or align * problem.dtype.itemsize == 16
    return [] if whole else [Exchange(reads=True, format="NCHW")]
