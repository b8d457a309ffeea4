"""The exchanges that the planner compares for a problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..device import MAX_COPY_BYTES
from . import image_patches
from .format_copies import to_pixels, to_planes
from .way import Exchange
from .windows import Merged, Overlapping, merges, overlaps

if TYPE_CHECKING:
    from ..problem import Problem

#: Device.arch of the devices that channels_last copies are made for: they were timed on sm_90.
ARCHITECTURES = ("90", "100")


def exchanges(problem: Problem) -> list[Exchange]:
    """The exchanges to compare, [] where copies cannot be made or are never worth it."""
    g, layout = problem.geometry, problem.layout
    if problem.op in ("dgrad_frame", "backward"):
        return []
    last = problem.device.arch in ARCHITECTURES and problem.product in ("half", "tf32")
    found: list[Exchange] = [] if layout.converts else to_planes(problem)
    if last and not (layout.channels_last or layout.converts or g.per_sample):
        found = [*(found or to_pixels(problem)), *image_patches.offered(problem)]
    if last and overlaps(problem):
        found.insert(0, Overlapping())
    copies = [one for one in found if 0 < one.memory(problem) <= MAX_COPY_BYTES]
    return [Merged()] * merges(problem) + copies
