"""Copies of images to patches, and back: how programs of kernels/copy_patches.py are cut."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

from ..geometry import Geometry
from .device import Device
from .integers import cdiv, power_of_two

#: Elements of a program, and of its runs in memory: a line of L1 in 16 bits.
TILE, RUN = 4096, 64
#: Warps of a program.
WARPS = 4
#: Instructions of a thread, and those for each of its loads and stores: 250 to 800 with 8 to 56 of
#: them (sm_90, Triton 3.6.0 and 3.7.1).
CODE, ACCESS = 220, 7.5


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
