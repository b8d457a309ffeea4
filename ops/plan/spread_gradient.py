"""Tiles of the spread family for weight gradients: rows of dy and taps of x as rows and columns.

A matrix unit multiplies 64 rows at a time: 16 filters fill a quarter of them, rows of dy side by
side fill all. kernels/wgrad_spread.py has the product; boxes are those of reuse_gradient.py, but
may overhang a plane.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from . import reuse_gradient, tma
from .boxes import MAX_BOX
from .cost import Code, is_launchable, splits_that_fill
from .device import MAX_WORKSPACE
from .integers import cdiv, power_of_two
from .problem import Problem
from .tma_copies import copied_problem, may_copy

#: Rows of a product: filters of all rows of a patch.
ROWS = 64
#: Filters, and channels of x, of a program: rows of a swizzle.
BLOCKS = (16, 32, 64)
#: Columns of a product: channels of all places.
COLUMNS = (32, 64, 128, 256)
#: Filters or channels, whichever are fewer, of calls that the planner compares such tiles for.
MOST_CHANNELS = 48
#: Partials that sum_partials adds up in few microseconds.
MAX_PARTIALS = 512


@dataclass(frozen=True)
class SpreadGradientTile(reuse_gradient.BoxedGradient):
    """A box of pixels of a step, the results of a program, and the launch options.

    Attributes:
        BLOCK_I: images of the box.
        BLOCK_P: rows of the box, a multiple of PATCH_P.
        BLOCK_Q: columns of the box.
        BLOCK_R: places of a column of taps, which are columns of the product.
        BLOCK_F: filters.
        BLOCK_C: channels of x.
        PATCH_P: rows of dy that are rows of the product.
        num_warps, num_stages: of the launch; stages are the places for boxes.
        copied: images that are not NHWC are copied to it first, see copied_problem.
    """

    BLOCK_I: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_R: int
    BLOCK_F: int
    BLOCK_C: int
    PATCH_P: int
    num_warps: int
    num_stages: int
    copied: bool = False

    family: ClassVar[str] = "spread"

    @property
    def partials(self) -> int:
        """Each row of a patch leaves a weight gradient of its own."""
        return self.PATCH_P

    def tiles_of_places(self, problem: Problem) -> int:
        """Tiles of the places that taps of one phase reach from all rows of a patch."""
        g = problem.boxed
        return cdiv(cdiv(g.R, g.stride[0]) + self.PATCH_P - 1, self.BLOCK_R)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        g = problem.boxed
        blocks = cdiv(g.group_K, self.BLOCK_F) * cdiv(g.group_C, self.BLOCK_C)
        return g.groups * g.S * g.stride[0] * self.tiles_of_places(problem) * blocks

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step; K are the pixels of every PATCH_P-th row."""
        m, n = self.PATCH_P * self.BLOCK_F, self.BLOCK_R * self.BLOCK_C
        return m, n, self.pixels // self.PATCH_P

    def splits(self, problem: Problem) -> int:
        """Parts that the boxes are best dealt out to, at most."""
        most = min(cdiv(self.strips(problem), tma.MIN_SPLIT_STRIPS), MAX_PARTIALS // self.PATCH_P)
        return max(1, splits_that_fill(self, problem, most))

    def rows(self, problem: Problem) -> int:
        """Rows of x that a step loads."""
        return self.BLOCK_P + self.BLOCK_R - 1

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem, self.copied) and fits(self, problem)

    def code(self, problem: Problem) -> Code:
        """The code of a program: of one step, and outside of the loop. Counted for sm_90."""
        m, n, _ = self.step(problem.op)
        sums = m * n / problem.threads(self)
        multiplies = self.pixels // self.PATCH_P / reuse_gradient.DEPTH
        return Code(95 + 25 * self.runs(problem) + 6 * multiplies, 500 + 8 * sums, sums + 34)


def is_legal(problem: Problem, copied: bool = False) -> bool:
    """Whether the kernel can compute this: from the images as they lie, or from copies of them."""
    if copied:
        return may_copy(problem) and is_legal(copied_problem(problem))
    return reuse_gradient.is_legal(problem) and problem.boxed.dilation[0] == 1


def tiles(problem: Problem) -> list[SpreadGradientTile]:
    """The tiles that the planner may take: of each shape, the box that loads least."""
    g = problem.boxed
    copied = not is_legal(problem)
    if problem.has_few_channels or min(g.group_C, g.group_K) > MOST_CHANNELS:
        return []
    if copied and not is_legal(problem, copied):
        return []
    boxes, found = list(_boxes(problem)), []
    for filters, channels, columns in itertools.product(BLOCKS, BLOCKS, COLUMNS):
        shape = (columns // channels, filters, channels, ROWS // filters)
        if not _is_worth_it(shape, problem):
            continue
        options = (ROWS // 16, reuse_gradient.STAGES[0])
        made = [SpreadGradientTile(*box, *shape, *options, copied) for box in boxes]
        found += reuse_gradient.that_loads_least(made, problem, _loads, fits)
    return found


def _is_worth_it(shape: tuple[int, int, int, int], problem: Problem) -> bool:
    """Whether filters, channels and places (tap and row of a patch) fill half of their blocks."""
    places, filters, channels, patch = shape
    g = problem.boxed
    reached = cdiv(g.R, g.stride[0]) + patch - 1
    if places > 16 or places >= 2 * reached or patch >= 2 * g.P:
        return False
    return filters < 2 * max(16, g.group_K) and channels < 2 * max(16, g.group_C)


def _boxes(problem: Problem) -> Iterator[tuple[int, int, int]]:
    """(images, rows, columns) of boxes of about as many rows as there are."""
    g = problem.boxed
    images = power_of_two(g.N)
    for pixels in reuse_gradient.ROW_PIXELS[1:]:
        for columns in (1 << i for i in range(pixels.bit_length())):
            if columns > power_of_two(g.Q) or pixels // columns > max(images, 1):
                continue
            for rows in range(1, reuse_gradient.MAX_ROWS + 1):
                if rows <= power_of_two(g.P):
                    yield pixels // columns, rows, columns


def _loads(tile: SpreadGradientTile, problem: Problem) -> float:
    """About the bytes that L2 could send while a program sums all boxes."""
    step = tile.shared_bytes(problem) / tile.num_stages
    each = reuse_gradient.STEP_BYTES + tile.runs(problem) * reuse_gradient.RUN_BYTES
    # A clock of the matrix unit multiplies what it reads; the port of L2 has half as many bytes.
    m, n, k = tile.step("wgrad")
    multiplied = m * n * k / 25
    return tile.strips(problem) * max(step + each, multiplied)


def neighbours(tile: SpreadGradientTile, problem: Problem) -> Iterator[SpreadGradientTile]:
    """The tiles that a tuner tries: other boxes, shapes and stages."""
    for filters, channels, columns in itertools.product(BLOCKS, BLOCKS, COLUMNS):
        shape = (columns // channels, filters, channels, ROWS // filters)
        if not _is_worth_it(shape, problem):
            continue
        for box, stages in itertools.product(_boxes(problem), reuse_gradient.STAGES):
            other = SpreadGradientTile(*box, *shape, ROWS // 16, stages, tile.copied)
            if fits(other, problem):
                yield other


def fits(tile: SpreadGradientTile, problem: Problem) -> bool:
    """Whether warps share the sums evenly and have room for them, and boxes in shared memory."""
    m, n, _ = tile.step("wgrad")
    runs = (reuse_gradient.runs_of(rows) for rows in (tile.BLOCK_P, tile.rows(problem)))
    partial = problem.geometry.weight_numel * max(4, problem.dtype.itemsize)
    return (
        is_launchable(tile, problem)
        and tile.BLOCK_P % tile.PATCH_P == 0
        and tile.BLOCK_F in BLOCKS
        and tile.BLOCK_C in BLOCKS
        and n in COLUMNS
        and m == ROWS == 16 * tile.num_warps
        and tile.BLOCK_I * tile.BLOCK_Q in reuse_gradient.ROW_PIXELS[1:]
        and max(map(len, runs)) <= reuse_gradient.MAX_RUNS
        and max(tile.box) <= MAX_BOX
        and tile.num_stages > 1
        and (tile.PATCH_P == 1 or partial * tile.PATCH_P <= MAX_WORKSPACE)
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )


#: The types of these tiles.
KINDS: tuple[type[Any], ...] = (SpreadGradientTile,)
