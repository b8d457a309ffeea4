"""Tiles of the planes family for weight gradients: TF32 images in planes, read as they lie.

kernels/wgrad_planes.py has the product: rows and channels of x by rows and filters of dy, summed
over the columns of a row.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from . import tma
from .cost import (
    REGISTERS,
    THREADS,
    Code,
    Work,
    matrix_work,
    partial_bytes,
    splits_that_fill,
)
from .integers import cdiv, filled, power_of_two
from .problem import Plan, Problem
from .reuse_gradient import BARRIER_BYTES, MAX_RUNS, runs_of

#: Columns of a step: 128 bytes, a row of the swizzle.
PIXELS = 32
#: Elements of a row of x as it is copied: a power of two and 4.
PITCH = 68
#: Columns of x beside those of a step: of boxes of 32 bytes, in powers of two.
REST = 8
#: Rows and channels of x that a product has, by the warps that read them.
ROWS = (64, 128)
#: Rows and filters of dy, at most: those of one instruction.
MAX_COLUMNS = 256
#: Sums of a thread at most: with two operands they take 254 registers (sm_90, Triton 3.7.1).
MAX_SUMS = 128
#: Rows of x of a step.
STEP_ROWS = (4, 3, 2, 1)
#: Places for boxes, most first.
STAGES = (4, 3)
#: Clocks from the end of a product to that of the operand loads for the one after the next: a
#: barrier and 16 loads; and of a step, from its boxes to the first product. Assumed.
PRODUCT_CLOCKS, STEP_CLOCKS = 110, 200
#: Channels and filters of a group, at least, of calls that the planner compares such tiles for.
MIN_CHANNELS = 4
#: Tiles that the planner compares.
COMPARED = 6


@dataclass(frozen=True)
class PlanesGradientTile:
    """The rows of a step, the results of a program, and the launch options.

    Attributes:
        BLOCK_P: rows of x of a step.
        BLOCK_I: rows of x of a product.
        BLOCK_R: rows of dy of a product.
        BLOCK_S: taps of a row that share what is loaded.
        BLOCK_C: channels of x.
        BLOCK_F: filters, a multiple of 8.
        num_warps, num_stages: of the launch; stages are the places for boxes.
    """

    BLOCK_P: int
    BLOCK_I: int
    BLOCK_R: int
    BLOCK_S: int
    BLOCK_C: int
    BLOCK_F: int
    num_warps: int
    num_stages: int

    family: ClassVar[str] = "planes"
    partials: ClassVar[int] = 1
    #: Left operands of products go through registers, see TmaTile.is_run.
    is_run: ClassVar[bool] = False

    @property
    def taps(self) -> int:
        """Taps of a column of a program."""
        return self.BLOCK_I * self.BLOCK_R

    @property
    def columns(self) -> int:
        """Columns of a product: rows and filters of dy, and those behind them."""
        return power_of_two(self.BLOCK_R * self.BLOCK_F)

    @property
    def x_rows(self) -> int:
        """Rows of x that a step loads."""
        return self.BLOCK_P + (self.BLOCK_I - 1) * self.BLOCK_R

    @property
    def dy_rows(self) -> int:
        """Rows of dy that a step loads."""
        return self.BLOCK_P + self.BLOCK_R - 1

    def rest(self, problem: Problem) -> int:
        """Columns of x of a step beside PIXELS: those of other taps, from a multiple of 4 on."""
        return power_of_two(max(REST, 3 + (self.BLOCK_S - 1) * problem.geometry.dilation[1]))

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        g = problem.geometry
        blocks = cdiv(g.group_K, self.BLOCK_F) * cdiv(g.group_C, self.BLOCK_C)
        return g.groups * cdiv(g.R, self.taps) * cdiv(g.S, self.BLOCK_S) * blocks

    def strips(self, problem: Problem) -> int:
        """Steps that cover all images."""
        g = problem.geometry
        return g.N * cdiv(g.Q, PIXELS) * cdiv(g.P + self.BLOCK_R - 1, self.BLOCK_P)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: rows are rows and channels of x."""
        return self.BLOCK_I * self.BLOCK_C, self.columns * self.BLOCK_S, self.BLOCK_P * PIXELS

    def splits(self, problem: Problem) -> int:
        """Parts that steps are best dealt out to. See cost.gradient_splits."""
        most = cdiv(self.strips(problem), tma.MIN_SPLIT_STRIPS)
        return splits_that_fill(self, problem, most, side_by_side=2)

    def copy_bytes(self) -> int:
        """Bytes of the rows of x as they are copied."""
        return 4 * self.x_rows * self.BLOCK_C * PITCH

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program: x needs two stages less than dy.

        Rows of dy go on as far as the last product of a step reads.
        """
        dy = ((self.BLOCK_P - 1) * self.BLOCK_F + self.columns) * PIXELS * self.num_stages
        x = self.x_rows * self.BLOCK_C * (PIXELS + self.rest(problem)) * (self.num_stages - 2)
        return 4 * (dy + x) + self.copy_bytes() + BARRIER_BYTES

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem) and fits(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        g, device = problem.geometry, problem.device
        m, n, k = self.step(plan.op)
        code, steps, threads = self.code(problem), plan.split_strips, problem.threads(self)
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
        x = self.x_rows * self.BLOCK_C * (PIXELS + self.rest(problem))
        dy = self.dy_rows * self.BLOCK_F * PIXELS
        inside = g.Q / (cdiv(g.Q, PIXELS) * PIXELS)
        loaded = 4 * steps * (x + dy)
        # x is copied, then read by warps for every tap, again where they share its rows; each
        # product reads dy for every 64 rows.
        across = self.num_warps * 16 // m
        read = 8 * steps * x
        read += 4 * steps * k * (self.BLOCK_S * m * across + n * (m // 64))
        resident = min(
            device.limits.shared // self.shared_bytes(problem),
            int(REGISTERS // (threads * code.registers)),
            THREADS // threads,
        )
        channels = filled(g.group_C, self.BLOCK_C)
        return work._replace(
            l2_bytes=4 * steps * inside * (x * channels + dy * filled(g.group_K, self.BLOCK_F)),
            shared_bytes=loaded + read,
            loaded_bytes=loaded,
            resident=max(1, resident),
            stalls=steps * self.idle_clocks(problem) / device.latency,
        )

    def code(self, problem: Problem) -> Code:
        """The code of a program: of one step, and outside of the loop. Counted for sm_90."""
        m, n, _ = self.step(problem.op)
        sums, products = m * n / problem.threads(self), self.BLOCK_P * self.BLOCK_S
        boxes = 2 * self.x_rows + self.dy_rows * len(runs_of(self.BLOCK_F))
        pieces = self.x_rows * cdiv(self.BLOCK_C * (PIXELS + REST) // 4, problem.threads(self))
        loop = 80 + 34 * products + 15 * boxes + 4 * pieces
        return Code(loop, 750 + 5 * sums, sums + 100)

    def idle_clocks(self, problem: Problem) -> float:
        """Clocks of a step in which the matrix units of a program without another beside it wait.

        For its own copy, and where products are shorter than a pass through one.
        """
        m, n = self.BLOCK_I * self.BLOCK_C, self.columns
        product = m * n * PIXELS / problem.device.rates.macs["tf32"]
        return STEP_CLOCKS + self.BLOCK_P * self.BLOCK_S * max(0.0, PRODUCT_CLOCKS - product)


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this: rows of both images begin at multiples of 16 bytes."""
    g, layout = problem.geometry, problem.layout
    if problem.op != "wgrad" or problem.device.arch != "90" or not layout.gluon:
        return False
    if problem.product != "tf32" or layout.converts or layout.boxes("wgrad") != "NCHW":
        return False
    if g.per_sample or g.padding_mode != "zeros":
        return False
    reach = max(g.N, g.C, g.K, g.H + g.P + g.R, g.W + g.Q + g.S * g.dilation[1])
    return g.stride == (1, 1) and g.dilation[0] == 1 and reach <= tma.MAX_COORDINATE


def tiles(problem: Problem) -> list[PlanesGradientTile]:
    """The tiles that the planner may take: those that keep matrix units and memory least busy."""
    if min(problem.geometry.group_C, problem.geometry.group_K) < MIN_CHANNELS:
        return []
    if not is_legal(problem):
        return []
    return _tiles(problem)


@functools.lru_cache(maxsize=4096)
def _tiles(problem: Problem) -> list[PlanesGradientTile]:
    found: dict[tuple[int, ...], tuple[float, PlanesGradientTile]] = {}
    for tile in _shapes(problem):
        made = next((t for t in _in_shared(tile) if fits(t, problem)), None)
        if made is not None:
            key = (made.BLOCK_I, made.BLOCK_R, made.BLOCK_S, made.BLOCK_C, made.BLOCK_F)
            clocks = _clocks(made, problem)
            if key not in found or clocks < found[key][0]:
                found[key] = clocks, made
    best = sorted(found.values(), key=lambda pair: pair[0])
    return [tile for _, tile in best[:COMPARED]]


def _shapes(problem: Problem) -> Iterator[PlanesGradientTile]:
    """Tiles of one row and stage: by channels, rows of both images, filters and taps of a row."""
    g = problem.geometry
    for rows, channels in itertools.product(ROWS, (16, 32, 64, 128)):
        if channels > min(rows, max(64, power_of_two(g.group_C))):
            continue
        taps = rows // channels
        for dy_rows, filters, columns in itertools.product(
            range(1, g.R + 1), _filters(g.group_K), range(1, min(g.S, 8) + 1)
        ):
            if taps // 2 * dy_rows >= g.R or columns != cdiv(g.S, cdiv(g.S, columns)):
                continue
            for warps in (rows // 16, 8)[: 1 + (rows == ROWS[0])]:
                yield PlanesGradientTile(1, taps, dy_rows, columns, channels, filters, warps, 3)


@functools.cache
def _filters(filters: int) -> tuple[int, ...]:
    """Filters of a block: of one, two or more blocks of about as many."""
    blocks = (cdiv(cdiv(filters, count), 8) * 8 for count in range(1, 9))
    fit = [block for block in blocks if block <= MAX_COLUMNS and len(runs_of(block)) <= MAX_RUNS]
    return tuple(dict.fromkeys(fit[:3]))


def _in_shared(tile: PlanesGradientTile) -> Iterator[PlanesGradientTile]:
    """The tile with more rows in a step, and more stages, most first."""
    for rows, stages in itertools.product(STEP_ROWS, STAGES):
        yield replace(tile, BLOCK_P=rows, num_stages=stages)


def _clocks(tile: PlanesGradientTile, problem: Problem) -> float:
    """About the clocks that a multiprocessor takes for all results, if its programs fill it."""
    rates = problem.device.rates
    m, n, k = tile.step("wgrad")
    x = tile.x_rows * tile.BLOCK_C * (PIXELS + tile.rest(problem))
    dy = tile.dy_rows * tile.BLOCK_F * PIXELS
    across = tile.num_warps * 16 // m
    shared = 12 * x + 4 * dy + 4 * k * (tile.BLOCK_S * m * across + n * (m // 64))
    step = max(shared / rates.shared, m * n * k / rates.macs["tf32"])
    step += tile.idle_clocks(problem) / 2
    return tile.programs(problem) * tile.strips(problem) * step


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (PlanesGradientTile,)


def neighbours(tile: PlanesGradientTile, problem: Problem) -> Iterator[PlanesGradientTile]:
    """The tiles that a tuner tries: other shapes, rows of a step and stages."""
    for shape in _shapes(problem):
        for other in _in_shared(shape):
            if fits(other, problem):
                yield other


def fits(tile: PlanesGradientTile, problem: Problem) -> bool:
    """Whether warps share the sums evenly and have room for them, and boxes in shared memory."""
    m, n, _ = tile.step("wgrad")
    across = tile.num_warps * 16 // m
    return (
        m in ROWS
        and tile.num_warps in (4, 8)
        and tile.BLOCK_C >= 16
        and tile.BLOCK_F % 8 == 0
        and len(runs_of(tile.BLOCK_F)) <= MAX_RUNS
        and across > 0
        and 16 * across <= tile.columns <= MAX_COLUMNS * across
        and m * n <= MAX_SUMS * problem.threads(tile)
        and PIXELS + tile.rest(problem) <= PITCH - 4
        and tile.num_stages > 2
        and tile.BLOCK_P * tile.BLOCK_S > 1
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )
