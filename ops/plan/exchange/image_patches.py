"""Images as patches: one pixel with a channel for each (c, r, s) where windows lie side by side.

A product of patches needs no taps, as in the first layer of a vision transformer.
kernels/copy_patches.py copies contiguous images to patches, and back.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...geometry import Geometry
from ..device import Device
from ..integers import cdiv, power_of_two
from .way import Exchange

if TYPE_CHECKING:
    from ..cost import Work
    from ..problem import Problem

#: Bytes of the pieces in which kernels load patches, and merged columns, at least.
MIN_PIECE = 8
#: Elements of a program, and of its runs in memory: a line of L1 in 16 bits.
TILE, RUN = 4096, 64
#: Warps of a program.
WARPS = 4
#: Instructions of a thread, and those for each of its loads and stores: 250 to 800 with 8 to 56 of
#: them (sm_90, Triton 3.6.0 and 3.7.1).
CODE, ACCESS = 220, 7.5


@dataclass(frozen=True)
class Patches(Exchange):
    """x is copied to patches, see Geometry.of_patches; an input gradient is computed in them.

    Attributes:
        order: of the channels of a patch, see Layout.order.
        y_last: y is computed in channels_last, then copied; dy is copied to channels_last.
    """

    order: str
    y_last: bool = False
    name: ClassVar[str] = "patches"

    @property
    def in_words(self) -> str:
        last = " and y in channels_last" * self.y_last
        return f"patches ({', '.join(self.order)}) as pixels{last}"

    def forms(self, op: str) -> dict[str, str]:
        return dict.fromkeys("xy" if self.y_last else "x", "NHWC")

    def geometry(self, op: str, geometry: Geometry, piece: int) -> Geometry:
        return geometry.of_patches()

    def layout(self, problem: Problem, geometry: Geometry) -> dict[str, Any]:
        return super().layout(problem, geometry) | {"repacks": False}

    def launches(self, problem: Problem) -> tuple[int, float]:
        """One for each image; instructions may bound that of the patches."""
        before, after = self.before(problem), self.after(problem)
        copy = PatchCopy(problem.geometry, self.order, problem.op == "dgrad")
        least = copy.seconds(problem.dtype.itemsize, problem.device) * problem.device.copy_rate
        slower = max(0.0, least - sum((after if copy.back else before)[0]))
        return len(before) + len(after), sum(map(sum, (*before, *after))) + slower

    def with_copies(self, work: Work, problem: Problem) -> Work:
        launches, moved = self.launches(problem)
        return work._replace(exchange_launches=launches, exchanged_bytes=moved)


@dataclass(frozen=True)
class PatchCopy:
    """One copy.

    Attributes:
        geometry: that is_patches.
        order: of channels of a patch, see Layout.order.
        back: patches are copied to the image, all of which is written.
    """

    geometry: Geometry
    order: str
    back: bool = False

    @property
    def groups(self) -> int:
        """Groups of channels: in the order (c,r,s) they go on from one group to the next."""
        return self.geometry.groups if self.order == "rsc" else 1

    @property
    def channels(self) -> int:
        """Channels of x in one of them."""
        return self.geometry.C // self.groups

    @property
    def area(self) -> tuple[int, int]:
        """Rows and columns of x that are read, or written."""
        g = self.geometry
        return (g.H, g.W) if self.back else (g.P * g.R, g.Q * g.S)

    @functools.cached_property
    def blocks(self) -> tuple[int, int, int, int]:
        """(channels, rows, patches, columns) of a program, powers of two: the fastest.

        RUN elements along the rows of x and along the channels of a patch if there are as many.
        """
        g = self.geometry
        columns = min(power_of_two(g.S), RUN)
        sizes = [
            [1 << i for i in range(power_of_two(extent).bit_length())]
            for extent in (self.channels, g.R, g.Q)
        ]
        found = []
        for c, r, q in itertools.product(*sizes):
            in_patch = c if self.order == "rsc" else c * r * columns
            most = sizes[0][-1] * (1 if self.order == "rsc" else sizes[1][-1] * columns)
            runs = in_patch >= min(RUN, most) and q * columns >= min(RUN, sizes[2][-1] * columns)
            # Rows of a patch come before its next channel.
            apart = self.order == "crs" and c > 1 and r < g.R
            if c * r * q * columns <= TILE and runs and not apart:
                found.append((c, r, q, columns))
        return min(found or [(1, 1, 1, columns)], key=lambda blocks: self._slots(blocks, 16))

    @property
    def programs(self) -> int:
        """Programs of the launch."""
        return self._programs(self.blocks)

    def seconds(self, itemsize: int, device: Device) -> float:
        """The least time that the programs' instructions take to be issued."""
        rate = device.multiprocessors * device.rates.issue * device.rates.clock
        return self._slots(self.blocks, 8 * itemsize) / rate

    def _programs(self, blocks: tuple[int, int, int, int]) -> int:
        g, (c, r, q, s) = self.geometry, blocks
        rows, columns = self.area
        lines = g.N * cdiv(rows, g.R) * cdiv(g.R, r)
        planes = self.groups * cdiv(self.channels, c)
        return lines * planes * cdiv(columns, q * g.S) * cdiv(g.S, s)

    def _slots(self, blocks: tuple[int, int, int, int], bits: int) -> float:
        """Instructions of all warps, for elements of so many bits."""
        g, (_, r, _, s) = self.geometry, blocks
        piece = 128 // bits
        of_x = math.gcd(piece, g.W, piece if s == g.S else g.S)
        of_z = math.gcd(piece, self.channels if self.order == "rsc" else self.channels * g.R * g.S)
        if self.order == "crs" and (r, s) != (g.R, g.S):
            of_z = math.gcd(of_z, g.S)
        accesses = math.prod(blocks) / (32 * WARPS) * (1 / of_x + 1 / of_z)
        return self._programs(blocks) * WARPS * (CODE + ACCESS * accesses)


def offered(problem: Problem) -> list[Exchange]:
    """Patches to compare, of pieces that the kernel loads asynchronously.

    dy in planes is loaded so in 16 bits alone, and where all rows of its tiles are whole pieces.
    """
    g, op, layout = problem.geometry, problem.op, problem.layout
    patches = Patches(layout.order)
    if not layout.order or patches.seen(problem).has_few_channels:
        return []
    if g.group_C * g.R * g.S * problem.dtype.itemsize % MIN_PIECE:
        return []
    last = Patches(layout.order, y_last=True)
    if op == "fprop":
        return [patches] if layout.heavy_epilogue else [patches, last]
    planes = op == "dgrad" and problem.product == "half" and layout.y_row == "NCHW"
    return [*[patches] * planes, last]
