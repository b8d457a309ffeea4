"""Tiles of the reuse family for weight gradients: rows of x are loaded once for taps of a column.

Boxes are those of tma.py, but rows vary slowest in shared memory, then images, columns and
channels. A row of a box is a whole number of periods of the swizzle then, also where few columns
divide the image: 8 columns of one image, or 2 of 4 images.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..geometry import Geometry
from . import tma
from .boxes import MAX_BOX, Boxed, covered, covers_planes, may_overhang
from .cost import (
    Code,
    Work,
    is_launchable,
    line_bytes,
    matrix_work,
    partial_bytes,
    resident_programs,
    splits_that_fill,
)
from .integers import cdiv, filled, power_of_two
from .problem import Plan, Problem
from .tma_copies import copied_problem, may_copy

#: Pixels of a row of a box: whole periods of the swizzle, which are 8.
ROW_PIXELS = (8, 16, 32, 64)
#: Pixels of a box at most, and rows: more do not save much.
MAX_PIXELS, MAX_ROWS = 128, 16
#: Summed pixels of one instruction of a matrix unit.
DEPTH = 16
#: Runs of rows of a box at most: each has a descriptor.
MAX_RUNS = 3
#: What a step and a run of rows cost beside their loads, in bytes that L2 sends meanwhile; assumed.
STEP_BYTES, RUN_BYTES = 4096, 512
#: A box that overhangs planes is taken if it loads less than this share of what those load that
#: divide them: only the latter were timed.
OVERHANG_MARGIN = 0.85
#: Shared memory for barriers, beside that for boxes.
BARRIER_BYTES = 1024
#: Places for boxes, most first.
STAGES = (5, 4, 3)


class BoxedGradient(Boxed, ABC):
    """A tile of a weight gradient whose boxes of dy and of x lie in shared memory, in stages."""

    BLOCK_F: int
    BLOCK_C: int
    num_stages: int
    copied: bool

    @property
    def dy_reads(self) -> int:
        """Times that the products of a step read dy from shared memory."""
        return 1

    @abstractmethod
    def rows(self, problem: Problem) -> int:
        """Rows of x that a step loads."""

    @abstractmethod
    def code(self, problem: Problem) -> Code:
        """The code of a program: of one step, and outside of the loop."""

    def runs(self, problem: Problem) -> int:
        """Loads of a step."""
        return len(runs_of(self.BLOCK_P)) + len(runs_of(self.rows(problem)))

    def strips(self, problem: Problem) -> int:
        """Boxes of pixels of dy."""
        g = problem.boxed
        return covered((g.N, g.P, g.Q), self.box) // self.pixels

    def elements(self, problem: Problem) -> tuple[int, int]:
        """Elements of dy, and of x, that one step loads."""
        x = self.rows(problem) * self.BLOCK_I * self.BLOCK_Q * self.BLOCK_C
        return self.pixels * self.BLOCK_F, x

    def step_bytes(self, problem: Problem) -> int:
        """Bytes that one step loads."""
        return sum(self.elements(problem)) * problem.dtype.itemsize

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program: the operands of every stage."""
        return self.step_bytes(problem) * self.num_stages + BARRIER_BYTES

    def most_stages(self, problem: Problem) -> int:
        """As many of STAGES as there is room for; the fewest if there is none."""
        room = (problem.device.limits.shared - BARRIER_BYTES) // self.step_bytes(problem)
        return max(STAGES[-1], min(STAGES[0], room))

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision, "as_rows": problem.layout.as_rows}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        g, device, itemsize = problem.boxed, problem.device, problem.dtype.itemsize
        m, n, k = plan.tile.step(plan.op)
        code, steps, planes = self.code(problem), plan.split_strips, (g.N, g.P, g.Q)
        work = matrix_work(
            plan,
            problem,
            code,
            steps,
            m * n,
            plan.grid,
            image_first=False,
            descriptors=True,
            slices=(cdiv(g.group_K, self.BLOCK_F), cdiv(g.group_C, self.BLOCK_C)),
        ).with_partials(partial_bytes(plan, problem))
        # What lies outside of the images is not read.
        inside = math.prod(planes) / covered(planes, self.box)
        filters, channels = filled(g.group_K, self.BLOCK_F), filled(g.group_C, self.BLOCK_C)
        dy, x = self.elements(problem)
        loaded = steps * itemsize * (dy + x)
        read = steps * itemsize * k * (m * self.dy_reads + n * cdiv(m, device.rates.rows or m))
        scattered = problem.layout.repacks and not work.partial_bytes
        work = work._replace(
            l2_bytes=steps * itemsize * inside * (dy * filters + x * channels),
            shared_bytes=loaded + read,
            loaded_bytes=loaded,
            resident=resident_programs(plan, problem, self.shared_bytes(problem), code.registers),
            # Taps lie between the channels of a contiguous gradient.
            scattered_bytes=m * n * line_bytes(32, g.R * g.S * itemsize) if scattered else 0,
        )
        return tma.after_copies(work, problem, 0, self.copied)


@dataclass(frozen=True)
class ReuseGradientTile(BoxedGradient):
    """A box of pixels of a step, the results of a program, and the launch options.

    Attributes:
        BLOCK_I: images of the box.
        BLOCK_P: rows of the box, of any number.
        BLOCK_Q: columns of the box.
        BLOCK_R: taps of one column that share what is loaded.
        BLOCK_F: filters.
        BLOCK_C: channels of x.
        num_warps, num_stages: of the launch; stages are the places for boxes.
        copied: images that are not NHWC are copied to it first, see copied_problem.
    """

    BLOCK_I: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_R: int
    BLOCK_F: int
    BLOCK_C: int
    num_warps: int
    num_stages: int
    copied: bool = False

    family: ClassVar[str] = "reuse"
    partials: ClassVar[int] = 1

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        g = problem.boxed
        blocks = cdiv(g.group_K, self.BLOCK_F) * cdiv(g.group_C, self.BLOCK_C)
        return g.groups * g.S * cdiv(g.R, self.BLOCK_R) * blocks

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: filters are the rows."""
        return self.BLOCK_F, self.BLOCK_C * self.BLOCK_R, self.pixels

    def splits(self, problem: Problem) -> int:
        """Parts that the boxes are best dealt out to, at most."""
        most = cdiv(self.strips(problem), tma.MIN_SPLIT_STRIPS)
        return splits_that_fill(self, problem, most, side_by_side=2)

    def rows(self, problem: Problem) -> int:
        """Rows of x that a step loads."""
        return self.BLOCK_P + (self.BLOCK_R - 1) * problem.boxed.dilation[0]

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem, self.copied) and fits(self, problem)

    @property
    def dy_reads(self) -> int:
        """Each tap reads both operands from shared memory."""
        return self.BLOCK_R

    def code(self, problem: Problem) -> Code:
        """The code of a program: of one step, and outside of the loop. Counted for sm_90."""
        m, n, _ = self.step(problem.op)
        sums, products = m * n / problem.threads(self), len(runs_of(self.BLOCK_P)) * self.BLOCK_R
        return Code(150 + 18 * products, 500 + 5 * sums, sums + 34)


#: (filters, channels, num_warps) by the taps of a column that a program owns, largest first: those
#: read each input the fewest times. Channels of several taps are one row of the swizzle.
SHAPES: dict[int, tuple[tuple[int, int, int], ...]] = {
    4: ((128, 64, 8), (64, 64, 4)),
    3: ((128, 64, 8), (64, 64, 4)),
    2: ((128, 64, 8), (64, 64, 4)),
    1: ((128, 256, 8), (128, 128, 8), (64, 128, 4), (128, 64, 8), (64, 64, 4)),
}


def is_legal(problem: Problem, copied: bool = False) -> bool:
    """Whether the kernel can compute this: from the images as they lie, or from copies of them."""
    if copied:
        return may_copy(problem) and is_legal(copied_problem(problem))
    g, layout = problem.boxed, problem.layout
    if problem.op != "wgrad" or problem.device.arch != "90" or not layout.gluon:
        return False
    if problem.dtype.itemsize != 2 or layout.boxes(problem.op) != "NHWC":
        return False
    # Phases of a stride are axes of x: each has as many rows and columns.
    return not (g.H % g.stride[0] or g.W % g.stride[1]) and tma.has_boxes(problem)


@functools.cache
def runs_of(rows: int) -> tuple[int, ...]:
    """Powers of two that sum up to a number of rows, the largest first."""
    return tuple(1 << i for i in reversed(range(rows.bit_length())) if rows >> i & 1)


def tiles(problem: Problem) -> list[ReuseGradientTile]:
    """The tiles that the planner may take: of each shape, the box that loads least."""
    copied = not is_legal(problem)
    if problem.has_few_channels or (copied and not is_legal(problem, copied)):
        return []
    g = problem.boxed
    found: list[ReuseGradientTile] = []
    for taps, (filters, channels, warps) in _shapes(g):
        if filters > max(64, power_of_two(g.group_K)):
            continue
        if channels > max(64, power_of_two(g.group_C)):
            continue
        shape = (taps, filters, channels, warps, STAGES[0])
        made = [ReuseGradientTile(*box, *shape, copied) for box in _boxes(problem, taps)]
        found += that_loads_least(made, problem, _loads, fits)
    return found


def that_loads_least(
    tiles: Iterable[Any],
    problem: Problem,
    loads: Callable[[Any, Problem], float],
    fits: Callable[[Any, Problem], bool],
) -> list[Any]:
    """The tile of those that fit, with most stages, for which `loads` is least; [] if none fits."""
    staged = []
    for tile in tiles:
        stages = tile.most_stages(problem)
        same = stages == tile.num_stages
        staged.append(tile if same else replace(tile, num_stages=stages))
    staged.sort(key=lambda tile: (loads(tile, problem), -tile.num_stages))
    return next(([tile] for tile in staged if fits(tile, problem)), [])


def _shapes(geometry: Geometry) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """(taps, shape) for a window: one tap, or as many of its rows as waste the fewest."""
    rows, stride = geometry.R, geometry.stride[0]
    several = [taps for taps in SHAPES if 1 < taps <= rows and stride == 1]
    best = sorted(several, key=lambda taps: (cdiv(rows, taps) * taps, -taps))[:1]
    return ((taps, shape) for taps in (*best, 1) for shape in SHAPES[taps])


def _boxes(problem: Problem, taps: int) -> Iterator[tuple[int, int, int]]:
    """(images, rows, columns) of boxes that divide a plane of dy, or may overhang it."""
    g = problem.boxed
    most = power_of_two(g.N)
    for pixels in ROW_PIXELS:
        widest = min(pixels, power_of_two(g.Q))
        numbers = [widest] if may_overhang(g, 1) else []
        if not g.is_point:
            numbers.append(min(g.Q & -g.Q, pixels))
        for columns in dict.fromkeys(numbers):
            images = pixels // columns
            if images > max(most, ROW_PIXELS[0] // columns):
                continue
            for rows in range(1, min(MAX_ROWS, MAX_PIXELS // pixels) + 1):
                overhangs = may_overhang(g, 0, taps) and rows <= power_of_two(g.P)
                if overhangs or g.P % rows == 0:
                    yield images, rows, columns


def _loads(tile: ReuseGradientTile, problem: Problem) -> float:
    """About the bytes that L2 could send while a program sums all boxes."""
    g, step = problem.boxed, tile.shared_bytes(problem) / tile.num_stages
    loads = tile.strips(problem) * (step + STEP_BYTES + tile.runs(problem) * RUN_BYTES)
    overhangs = (g.P % tile.BLOCK_P or g.Q % tile.BLOCK_Q) and not g.is_point
    return loads / OVERHANG_MARGIN if overhangs else loads


def neighbours(tile: ReuseGradientTile, problem: Problem) -> Iterator[ReuseGradientTile]:
    """The tiles that a tuner tries: other boxes, shapes and stages."""
    for taps, (filters, channels, warps) in _shapes(problem.boxed):
        for box, stages in itertools.product(_boxes(problem, taps), STAGES):
            other = ReuseGradientTile(*box, taps, filters, channels, warps, stages, tile.copied)
            if fits(other, problem):
                yield other


def fits(tile: ReuseGradientTile, problem: Problem) -> bool:
    """Whether warps share the sums evenly and have room for them, and boxes in shared memory."""
    g = problem.boxed
    m, n, _ = tile.step("wgrad")
    row = tile.BLOCK_I * tile.BLOCK_Q
    sums = m * n / problem.threads(tile)
    return (
        is_launchable(tile, problem)
        and covers_planes(g, tile.box, (tile.BLOCK_R, 1))
        and tile.BLOCK_F in (64, 128)
        and tile.num_warps == tile.BLOCK_F // 16
        and tile.BLOCK_C >= 64
        and (tile.BLOCK_R == 1 or tile.BLOCK_C == 64)
        and tile.BLOCK_R <= (g.R if g.stride[0] == 1 else 1)
        and row in ROW_PIXELS
        and row * runs_of(tile.BLOCK_P)[-1] % DEPTH == 0
        and max(len(runs_of(rows)) for rows in (tile.BLOCK_P, tile.rows(problem))) <= MAX_RUNS
        and max(tile.box) <= MAX_BOX
        and tile.num_stages > 1
        and sums <= problem.device.limits.registers // 2 + 1
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )
