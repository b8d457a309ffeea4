"""Tiles that were measured to be faster on a device than the planner's, looked up by key.

A file of ops/plan/tuned/ is written by `python -m tricorr.perf tune` on the device that it is named
after, with the measurements that justify it. It is read once, when the first plan for that device
is made; nothing is tuned at run time, and without a file, or without an entry, the families' tables
decide.

    {"device": "...", "entries": [{"key": {op, kind, sizes, dtype, precision, channels_last},
                                   "tile": {BLOCK_M, ...}, "splits": 1, "evidence": {...}}]}
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..geometry import Geometry
from .device import GEMM_MIN, slug_of
from .problem import Problem

DIRECTORY = Path(__file__).parent / "tuned"


#: Largest distance between a problem and the entry that serves it, in doublings of sizes, summed.
#: Beyond a factor of four in size, the static model is a better guide than a measurement.
MAX_DISTANCE = 2.0


@dataclass(frozen=True)
class Key:
    """What an entry is looked up by.

    Attributes:
        op: "fprop", "dgrad" or "wgrad".
        kind: what must be the same, by `kind_of`.
        sizes: (N, C, K, P, Q), channels those of a group: what may be near.
        dtype: of the weight or of dy, without "torch.".
        precision: how float32 is multiplied; "ieee" for every other dtype.
        channels_last: neighbouring channels are neighbours in memory.
    """

    op: str
    kind: str
    sizes: tuple[int, ...]
    dtype: str
    precision: str
    channels_last: bool

    def distance(self, other: Key) -> float:
        """Doublings between the sizes; infinite if one's tile may not do for the other."""
        if self._same != other._same:
            return math.inf
        for mine, others in zip(self.sizes[1:3], other.sizes[1:3], strict=True):
            if mine != others and min(mine, others) < GEMM_MIN:
                return math.inf  # few channels are in the registers or lanes of a kernel
        pairs = zip(self.sizes, other.sizes, strict=True)
        return sum(abs(math.log2(a / b)) for a, b in pairs if a != b)

    @functools.cached_property
    def _same(self) -> tuple[str | bool, ...]:
        """All but the sizes."""
        return self.kind, self.op, self.dtype, self.precision, self.channels_last


@dataclass(frozen=True)
class Tuned:
    """What an entry says.

    Attributes:
        tile: the fields of a tile.
        splits: parts that a weight gradient is split into.
        registers: the limit for a thread, 0 for none; None for the tile's own.
    """

    tile: Mapping[str, int]
    splits: int = 1
    registers: int | None = None

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.tile.items())), self.splits, self.registers))


def kind_of(geometry: Geometry) -> str:
    """The properties that geometries must share to share a tile.

    Groups, window, stride, dilation, and the pieces in which channels can be loaded. No tile
    depends on the padding.
    """
    g = geometry
    pieces = math.gcd(g.group_C, GEMM_MIN), math.gcd(g.group_K, GEMM_MIN)
    return (
        f"groups {g.groups} window {g.R}x{g.S} stride {g.stride[0]}x{g.stride[1]} "
        f"dilation {g.dilation[0]}x{g.dilation[1]} channels by {pieces[0]} and {pieces[1]}"
        + (" per sample" if g.per_sample else "")
    )


def key_of(problem: Problem) -> Key:
    """The key of a problem."""
    g, dtype = problem.geometry, str(problem.dtype).removeprefix("torch.")
    sizes = tuple(max(1, size) for size in (g.N, g.group_C, g.group_K, g.P, g.Q))
    last = problem.layout.channels_last
    return Key(problem.op, kind_of(g), sizes, dtype, problem.precision, last)


def tuned(problem: Problem) -> tuple[Tuned | None, float]:
    """(entry of the device's file for this problem or the nearest one, its distance)."""
    # Tuned without a heavy epilogue and 64-bit offsets, a tile may spill with them.
    if problem.layout.int64 or problem.layout.heavy_epilogue:
        return None, math.inf
    entries = tuned_for(problem.device.name)
    return nearest(entries, key_of(problem)) if entries else (None, math.inf)


def nearest(entries: Mapping[Key, Tuned], key: Key) -> tuple[Tuned | None, float]:
    """The entry for this very problem or the nearest one within MAX_DISTANCE; and how far it is."""
    best = min(entries, key=key.distance, default=None)
    if best is None or (distance := key.distance(best)) > MAX_DISTANCE:
        return None, math.inf
    return entries[best], distance


def file_of(device_name: str) -> Path:
    """Where the tuned tiles of a device are, whether or not there are any."""
    return DIRECTORY / f"{slug_of(device_name)}.json"


@functools.cache
def tuned_for(device_name: str) -> Mapping[Key, Tuned]:
    """The tuned tiles of a device, empty where there is no file."""
    path = file_of(device_name)
    if not path.exists():
        return {}
    return parse(json.loads(path.read_text(encoding="utf-8")))


def parse(file: Mapping[str, Any]) -> Mapping[Key, Tuned]:
    """The entries of a file as the planner looks them up."""
    return {
        Key(**entry["key"] | {"sizes": tuple(entry["key"]["sizes"])}): Tuned(
            entry["tile"], entry.get("splits", 1), entry.get("registers")
        )
        for entry in file["entries"]
    }
