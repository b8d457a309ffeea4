"""Boxes of pixels that tensor descriptors load: sizes that cover planes with little beyond them."""

from __future__ import annotations

import functools
import math

from ..geometry import Geometry
from .integers import cdiv, power_of_two
from .problem import Problem

#: Elements of a box along one axis, by the hardware.
MAX_BOX = 256
#: Largest fraction of box pixels outside the image; above it the pointer kernel wastes less.
MAX_OVERHANG = 0.5


class Boxed:
    """A tile whose pixels are a box."""

    BLOCK_I: int
    BLOCK_P: int
    BLOCK_Q: int

    @property
    def box(self) -> tuple[int, int, int]:
        """(images, rows, columns)."""
        return self.BLOCK_I, self.BLOCK_P, self.BLOCK_Q

    @property
    def pixels(self) -> int:
        """Pixels of the box: what BLOCK_M is to a GEMM."""
        return math.prod(self.box)


def pixel_planes(problem: Problem) -> tuple[int, int, int]:
    """(images, rows, columns) of the pixels that boxes cover: of y or dy, or of a phase of dx."""
    g = problem.boxed
    return g.phase_shape if problem.op == "dgrad" else (g.N, g.P, g.Q)


def covered(planes: tuple[int, int, int], box: tuple[int, int, int]) -> int:
    """Pixels of all the boxes that cover (images, rows, columns)."""
    return math.prod(cdiv(n, block) * block for n, block in zip(planes, box, strict=True))


@functools.lru_cache(maxsize=4096)
def box_of(planes: tuple[int, int, int], pixels: int) -> tuple[int, int, int]:
    """(images, rows, columns), powers of two, of a box of `pixels` that overhangs least.

    Of boxes that overhang nearly as little, the one nearest to a square of a single image: its taps
    read the fewest pixels.
    """
    sizes = [1 << i for i in range(pixels.bit_length())]
    boxes = [
        (pixels // (rows * columns), rows, columns)
        for rows in sizes
        for columns in sizes
        if rows * columns <= pixels and max(pixels // (rows * columns), rows, columns) <= MAX_BOX
    ]
    least = min(covered(planes, box) for box in boxes)
    close = [box for box in boxes if covered(planes, box) <= 1.05 * least]
    return min(close, key=lambda box: (box[0] * (box[1] + box[2]), box))


def whole_box(planes: tuple[int, int, int], pixels: int) -> tuple[int, int, int]:
    """(images, rows, columns) of a box that divides rows and columns, of `pixels` at most.

    As many rows and columns as can be, and no more images than there are, up to a power of two.
    """
    images, rows, columns = planes
    most_rows, most_columns = rows & -rows, columns & -columns  # powers of two that divide them
    box_columns = min(most_columns, pixels)
    box_rows = min(most_rows, pixels // box_columns)
    box_images = min(power_of_two(images), pixels // (box_rows * box_columns))
    return box_images, box_rows, box_columns


def gradient_box(planes: tuple[int, int, int], pixels: int) -> tuple[int, int, int]:
    """(images, rows, columns) of a box that divides rows and columns, of `pixels` at most.

    That is a run (TmaTile.is_run) of `pixels` or half as many columns or images, if there is one
    with at most a fifth of its images beyond the last, else whole_box.
    """
    images, _, columns = planes
    for size in (pixels, pixels // 2):
        if columns % size == 0:
            return 1, 1, size
        if 4 * cdiv(images, size) * size <= 5 * images:
            return size, 1, 1
    return whole_box(planes, pixels)


def summed_box(problem: Problem, pixels: int, taps: int = 1) -> tuple[int, int, int]:
    """(images, rows, columns) of a weight gradient's box; `taps` of a row share it.

    It divides planes, but for 1x1 windows, and where fewer than half of `pixels` would be in it.
    """
    g, planes = problem.boxed, pixel_planes(problem)
    if problem.layout.boxes(problem.op) == "NCHW":
        return 1, 1, pixels
    if may_overhang(g, 0) and may_overhang(g, 1, taps):
        box = box_of(planes, pixels)
        few = 2 * math.prod(whole_box(planes, pixels)) < pixels
        fits = covered(planes, box) * (1 - MAX_OVERHANG) <= math.prod(planes)
        if g.is_point or (few and fits):
            return box
    return gradient_box(planes, pixels)


def covers_planes(geometry: Geometry, box: tuple[int, int, int], taps: tuple[int, int]) -> bool:
    """Whether boxes divide planes of dy or may overhang them, for (rows, columns) of taps."""
    extents = (geometry.P, geometry.Q)
    return all(
        extents[axis] % box[1 + axis] == 0 or may_overhang(geometry, axis, taps[axis])
        for axis in (0, 1)
    )


@functools.lru_cache(maxsize=4096)
def may_overhang(geometry: Geometry, axis: int, taps: int = 1) -> bool:
    """Whether boxes of a weight gradient may overhang an axis of dy, see first_pixel in kernels/.

    Each block of `taps` neighbouring taps, which share a box of dy, has to read zeros of x beside
    one end of dy. With a stride of 1, those with negative offsets do before the first pixel, and
    those with positive ones behind the last, if the window is padded by half of it.
    """
    g = geometry
    stride, dilation, pad = g.stride[axis], g.dilation[axis], g.padding[axis][0]
    window, extent, outputs = ((g.R, g.H, g.P), (g.S, g.W, g.Q))[axis]
    offsets = [tap * dilation - pad for tap in range(window)]
    blocks = (offsets[first : first + taps] for first in range(0, window, taps))
    return all(block[-1] < stride or outputs * stride + block[0] >= extent for block in blocks)
