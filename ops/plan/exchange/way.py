"""Exchange, the base of all ways in which a plan's kernel can meet another problem than the call's.

A plan of any family can carry an Exchange. Its kernel meets `Exchange.seen`: images in another
format, only those pixels that windows reach, or windows as pixels. The launches around it copy the
images that it reads and, where it stores a copy of the result, the result. kernels/copy_images.py
and copy_patches.py make the copies; ops/launch/exchanged.py builds the launches.

format_copies.py has images in another format, image_patches.py and windows.py have windows as
pixels, and offered.py lists the exchanges that the planner compares.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ...geometry import Geometry
from ..integers import cdiv

if TYPE_CHECKING:
    from ..cost import Work
    from ..problem import Problem


#: The images that an operator reads, and its result if that is one.
READ = {"fprop": "x", "dgrad": "y", "wgrad": "xy"}
RESULT = {"fprop": "y", "dgrad": "x", "wgrad": ""}


class Moved(NamedTuple):
    """Bytes that one copy reads and writes."""

    read: int
    written: int


@dataclass(frozen=True)
class Exchange(ABC):
    """The copies, or views, on which a plan's kernel runs: one subclass for each way."""

    #: A word for tables.
    name: ClassVar[str]

    @property
    @abstractmethod
    def in_words(self) -> str:
        """What is copied or seen, for people."""

    def forms(self, op: str) -> dict[str, str]:
        """The formats, "NHWC" or "NCHW", of the images that are copied, "x" and "y"."""
        return {}

    def geometry(self, op: str, geometry: Geometry, piece: int) -> Geometry:
        """The geometry that the kernel meets.

        Args:
            op: of the plan.
            geometry: of the call.
            piece: elements of 16 bytes.
        """
        return geometry

    def layout(self, problem: Problem, geometry: Geometry) -> dict[str, Any]:
        """The fields of Layout that the kernel meets with other values; `geometry` is seen."""
        forms, piece = self.forms(problem.op), piece_of(problem)
        changes: dict[str, Any] = {"channels_last": "NHWC" in forms.values()}
        for image, form in forms.items():
            boxes, row, align = form, form, 1
            if form == "NCHW":
                columns = geometry.W if image == "x" else geometry.Q
                boxes, row, align = "" if columns % piece else form, "", math.gcd(piece, columns)
            changes |= {f"{image}_boxes": boxes, f"{image}_row": row, f"{image}_align": align}
        return changes

    def seen(self, problem: Problem) -> Problem:
        """The problem that the kernel meets, the same object each time: it keeps what it counts."""
        return _seen(self, problem)

    def before(self, problem: Problem) -> list[Moved]:
        """The copies of images that the kernel reads."""
        g, op, itemsize = problem.geometry, problem.op, problem.dtype.itemsize
        seen, forms, found = self.geometry(op, g, piece_of(problem)), self.forms(op), []
        if op != "dgrad" and "x" in forms:
            rows = seen.H * g.R // seen.R  # a row of patches is R of x
            written = seen.x_numel * itemsize
            if forms["x"] == "NHWC":
                written = last_bytes(problem, seen.C, seen.H * seen.W)
            found.append(Moved(g.N * g.C * rows * g.W * itemsize, written))
        if op != "fprop" and "y" in forms:
            found.append(Moved(g.y_numel * itemsize, last_bytes(problem, g.K, g.P * g.Q)))
        return found

    def after(self, problem: Problem) -> list[Moved]:
        """The copy of the result, [] if the kernel stores it where it belongs."""
        op, itemsize = problem.op, problem.dtype.itemsize
        if not RESULT[op] or RESULT[op] not in self.forms(op):
            return []
        seen = self.geometry(op, problem.geometry, piece_of(problem))
        computed = seen.x_numel if op == "dgrad" else seen.y_numel
        return [Moved(computed * itemsize, problem.result_numel * itemsize)]

    def is_mixed(self, op: str) -> bool:
        """Whether the kernel reads one format and stores another: planned for GEMMs alone."""
        return [*self.forms(op).values()].count("NHWC") == 1

    def launches(self, problem: Problem) -> tuple[int, float]:
        """(launches that make the copies; bytes that they move)."""
        before, after = self.before(problem), self.after(problem)
        return bool(before) + bool(after), sum(map(sum, (*before, *after)))

    def with_copies(self, work: Work, problem: Problem) -> Work:
        """The work with the launches that make the copies, given that of the kernel alone."""
        launches, moved = self.launches(problem)
        if work.copy_bytes and self.before(problem):  # one launch copies the weight too
            work = work._replace(launches=work.launches - 1)
        return work._replace(exchange_launches=launches, exchanged_bytes=moved)

    def memory(self, problem: Problem) -> int:
        """Bytes of the copies of images, and of the result before it is copied."""
        written = sum(copy.written for copy in self.before(problem))
        return written + sum(copy.read for copy in self.after(problem))

    def __str__(self) -> str:
        chosen = [field.name for field in fields(self) if getattr(self, field.name) is True]
        return "+".join([self.name, *chosen])


@functools.lru_cache(maxsize=4096)
def _seen(exchange: Exchange, problem: Problem) -> Problem:
    g = exchange.geometry(problem.op, problem.geometry, piece_of(problem))
    layout = replace(problem.layout, merged=None, order="", **exchange.layout(problem, g))
    return replace(problem, geometry=g, layout=layout)


def piece_of(problem: Problem) -> int:
    """Elements of 16 bytes."""
    return 16 // problem.dtype.itemsize


def last_bytes(problem: Problem, channels: int, pixels: int) -> int:
    """Bytes of a channels_last copy: channels are filled up to whole pieces of 16 bytes."""
    return problem.geometry.N * cdiv(channels, piece_of(problem)) * 16 * pixels
