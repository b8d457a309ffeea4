"""Plans whose kernel runs on copies of the images, made in the format that suits it best.

A plan of any family can carry an Exchange. Its kernel meets another problem, `Exchange.seen`:
images in channels_last, or those pixels alone that a 1x1 window with a stride reads. The launches
around it copy what is read and, where the result is computed in the other format too, the result.
kernels/copy_images.py makes the copies; ops/launch/exchanged.py builds the launches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..geometry import Geometry
from .device import MAX_COPY_BYTES
from .integers import cdiv

if TYPE_CHECKING:
    from .cost import Work
    from .problem import Problem

#: Device.arch of the devices that these plans are made for: copies were timed on sm_90.
ARCHITECTURES = ("90", "100")


@dataclass(frozen=True)
class Exchange:
    """What is copied before and after a plan's kernel.

    Attributes:
        reads: images that the kernel reads are copied to channels_last.
        result: the result is an image that is computed in channels_last, then copied.
        sampled: of a 1x1 window with a stride. Copies of x hold the pixels that the window meets,
            and the kernel's window has no stride. An input gradient's other pixels are zero.
    """

    reads: bool = False
    result: bool = False
    sampled: bool = False

    def __str__(self) -> str:
        return "+".join(name for name, is_so in vars(self).items() if is_so)

    @property
    def in_words(self) -> str:
        """What is copied, for people."""
        said = {
            "reads channels_last copies": self.reads,
            "result copied from channels_last": self.result,
            "copies of every stride-th pixel": self.sampled,
        }
        return " and ".join(text for text, is_so in said.items() if is_so)

    @property
    def is_mixed(self) -> bool:
        """Whether the kernel reads one format and stores another: planned for GEMMs alone."""
        return self.reads != self.result

    def geometry(self, geometry: Geometry) -> Geometry:
        """The geometry that the kernel meets."""
        if not self.sampled:
            return geometry
        return replace(geometry, H=geometry.P, W=geometry.Q, stride=(1, 1))

    def seen(self, problem: Problem) -> Problem:
        """The problem that the kernel meets."""
        g, layout = self.geometry(problem.geometry), problem.layout
        piece = 16 // problem.dtype.itemsize
        x_last = self.result if problem.op == "dgrad" else self.reads
        y_last = self.result if problem.op == "fprop" else self.reads
        x_boxes, x_align = layout.x_boxes, layout.x_align
        y_boxes, y_align = layout.y_boxes, layout.y_align
        if x_last:
            x_boxes, x_align = "NHWC", 1
        elif self.sampled:
            x_boxes, x_align = "" if g.W % piece else "NCHW", math.gcd(piece, g.W)
        if y_last:
            y_boxes, y_align = "NHWC", 1
        return replace(
            problem,
            geometry=g,
            layout=replace(
                layout,
                channels_last=x_last or y_last,
                x_boxes=x_boxes,
                y_boxes=y_boxes,
                x_align=x_align,
                y_align=y_align,
                as_rows=layout.as_rows and not self.sampled,
            ),
        )

    def with_copies(self, work: Work, problem: Problem) -> Work:
        """The work with the launches that make the copies, given that of the kernel alone."""
        before, after = self._before(problem), self._after(problem)
        launches = bool(before) + bool(after)
        if before and work.copy_bytes:  # one launch copies the weight too
            work = replace(work, launches=work.launches - 1)
        moved = sum(map(sum, (*before, *after)))
        return replace(work, exchanged_bytes=moved, exchange_launches=launches)

    def memory(self, problem: Problem) -> int:
        """Bytes of the copies, and of the result before it is copied."""
        written = sum(written for _, written in self._before(problem))
        return written + sum(read for read, _ in self._after(problem))

    def _before(self, problem: Problem) -> list[tuple[int, int]]:
        """(bytes read, bytes written) for each copy of what the kernel reads."""
        g, itemsize, found = problem.geometry, problem.dtype.itemsize, []
        piece = 16 // itemsize

        def copied(channels: int, pixels: int) -> int:
            """Bytes of a copy: channels are filled up to whole pieces of 16 bytes."""
            return g.N * cdiv(channels, piece) * 16 * pixels

        if problem.op != "dgrad" and (self.reads or self.sampled):
            rows, columns = (g.P, g.Q) if self.sampled else (g.H, g.W)
            written = (
                copied(g.C, rows * columns) if self.reads else g.N * g.C * rows * columns * itemsize
            )
            found.append((g.N * g.C * rows * g.W * itemsize, written))
        if problem.op != "fprop" and self.reads:
            found.append((g.y_numel * itemsize, copied(g.K, g.P * g.Q)))
        return found

    def _after(self, problem: Problem) -> list[tuple[int, int]]:
        """The same of the result, [] if the kernel stores it where it belongs."""
        g, itemsize = problem.geometry, problem.dtype.itemsize
        if problem.op == "dgrad" and (self.result or self.sampled):
            computed = g.N * g.C * g.P * g.Q if self.sampled else g.x_numel
            return [(computed * itemsize, g.x_numel * itemsize)]
        if problem.op == "fprop" and self.result:
            return [(g.y_numel * itemsize,) * 2]
        return []


def exchanges(problem: Problem) -> list[Exchange]:
    """The exchanges to compare for a problem, [] where copies cannot be made or are never worth it.

    Windows of a stride leave lines of a plane half used: a kernel that reads or stores them as they
    lie moves single elements.
    """
    g, op, layout = problem.geometry, problem.op, problem.layout
    if layout.channels_last or layout.converts or op == "dgrad_frame":
        return []
    if problem.device.arch not in ARCHITECTURES or g.per_sample or g.group_C * g.group_K == 1:
        return []
    if problem.has_few_channels and op != "wgrad":
        return []  # patches of few channels are read as they lie
    if problem.product not in ("half", "tf32"):
        return []
    formats = [Exchange(), Exchange(reads=True)]
    if op == "dgrad" or (op == "fprop" and not layout.heavy_epilogue):
        formats.append(Exchange(reads=True, result=True))
    strided = (g.steps(0)[0], g.steps(1)[0]) != (1, 1)
    found = formats
    if op == "dgrad" and strided:  # pixels of a phase would be stored one by one
        found = [one for one in formats if one.result]
    if strided and g.R * g.S == 1 and g.padding == ((0, 0), (0, 0)):
        found = [*found, *(replace(one, sampled=True) for one in formats)]
    return [one for one in found if 0 < one.memory(problem) <= MAX_COPY_BYTES]
