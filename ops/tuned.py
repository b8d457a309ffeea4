"""Tiles that were measured to be better than the tables' on one device: data, looked up by key.

A file of ops/tuned/ is written by `python -m tricorr.perf tune` on the device that it is named
after, with the measurements that justify it. It is read once, when the first plan for that device
is made; nothing is tuned at run time, and without a file, or without an entry, the tables of
plan.py decide.

    {"device": "...", "entries": [{"key": {op, problem, dtype, precision, channels_last},
                                   "tile": {BLOCK_M, ...}, "splits": 1, "evidence": {...}}]}
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .geometry import Geometry

DIRECTORY = Path(__file__).parent / "tuned"


@dataclass(frozen=True)
class Key:
    """What an entry is looked up by, exactly.

    Attributes:
        op: "fprop", "dgrad" or "wgrad".
        problem: the geometry's class, by `problem_of`.
        dtype: of the weight or of dy, without "torch.".
        precision: how float32 is multiplied; "ieee" for every other dtype.
        channels_last: neighbouring channels are neighbours in memory.
    """

    op: str
    problem: str
    dtype: str
    precision: str
    channels_last: bool


@dataclass(frozen=True)
class Tuned:
    """What an entry says: the fields of a GemmTile or StencilTile, and how often wgrad splits."""

    tile: Mapping[str, int]
    splits: int = 1

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.tile.items())), self.splits))


def problem_of(geometry: Geometry) -> str:
    """The class of geometries that share a tile: channels, window, steps, and planes of a size.

    Planes count by powers of two: batch, height and width decide how many programs there are and
    how their rows lie in memory. Padding decides nothing that a tile depends on.
    """
    g = geometry
    sizes = (g.N, g.P, g.Q)
    planes = "x".join(f"2^{max(0, n - 1).bit_length()}" for n in sizes)
    return (
        f"C{g.group_C} K{g.group_K} groups {g.groups} window {g.R}x{g.S} "
        f"stride {g.stride[0]}x{g.stride[1]} dilation {g.dilation[0]}x{g.dilation[1]} "
        f"NPQ {planes}" + (" per sample" if g.per_sample else "")
    )


def key_of(
    op: str, geometry: Geometry, dtype: torch.dtype, precision: str, channels_last: bool
) -> Key:
    """The key of a call; `precision` is the plan's, so "ieee" for all but float32."""
    name = str(dtype).removeprefix("torch.")
    return Key(op, problem_of(geometry), name, precision, channels_last)


def file_of(device_name: str) -> Path:
    """Where the tuned tiles of a device are, whether or not there are any."""
    slug = re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_")
    return DIRECTORY / f"{slug}.json"


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
        Key(**entry["key"]): Tuned(entry["tile"], entry.get("splits", 1))
        for entry in file["entries"]
    }
