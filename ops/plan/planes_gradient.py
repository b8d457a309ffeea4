"""Tiles of the planes family for weight gradients: images in planes, read as they lie.

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
from .cost import REGISTERS, THREADS, Code, Work, matrix_work, partial_bytes, splits_that_fill
from .integers import cdiv, filled, power_of_two
from .problem import Plan, Problem
from .reuse_gradient import BARRIER_BYTES, MAX_RUNS, runs_of

#: Bytes of columns of a step: a row of the swizzle.
ROW_BYTES = 128
#: Bytes of x beside those of a step at least, in powers of two; and from one row to the next as it
#: is copied.
REST_BYTES, PITCH_BYTES = 32, 272
#: Rows and channels of x that a product has, by the warps that read them.
ROWS = (64, 128)
#: Rows and filters of dy, at most: those of one instruction.
MAX_COLUMNS = 256
#: Sums of a thread at most: with two operands they take 254 registers (sm_90, Triton 3.7.1).
MAX_SUMS = 128
#: Products of a step, at least, by bytes of an element: one runs as the next step begins, which
#: loads its first operand meanwhile, in 16 bits also what the second is made of.
FEWEST_PRODUCTS = {4: 2, 2: 3}
#: Rows of x of a step.
STEP_ROWS = (4, 3, 2, 1)
#: Places for boxes, most first.
STAGES = (4, 3)
#: Clocks from the end of a product to that of the operand loads for the one after the next: a
#: barrier and 16 loads; and of a step, from its boxes to the first product. Assumed.
PRODUCT_CLOCKS, STEP_CLOCKS = 110, 200
#: Channels and filters of a group, at least, of calls that the planner compares such tiles for.
MIN_CHANNELS = 4
#: Parts, at most, of the window's rows, and of its columns, that programs own.
MOST_PARTS = 6
#: Tiles that the planner compares.
COMPARED = 6


@dataclass(frozen=True)
class PlanesGradientTile:
    """The rows of a step, the results of a program, and the launch options.

    Attributes:
        BLOCK_P: rows of x of a step.
        BLOCK_Q: columns of a step.
        BLOCK_I: rows of x of a product.
        BLOCK_R: rows of dy of a product.
        BLOCK_S: taps of a row that share what is loaded.
        BLOCK_C: channels of x.
        BLOCK_F: filters, a multiple of 8.
        num_warps, num_stages: of the launch; stages are the places for boxes.
        FOLDED: rows of a plane that are BLOCK_Q columns; 1 where these are of one row.
    """

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_I: int
    BLOCK_R: int
    BLOCK_S: int
    BLOCK_C: int
    BLOCK_F: int
    num_warps: int
    num_stages: int
    FOLDED: int = 1

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
        each = self.FOLDED if self.BLOCK_I > 1 else 1
        return each * (self.BLOCK_P - 1) + (self.BLOCK_I - 1) * self.BLOCK_R + 1

    @property
    def dy_rows(self) -> int:
        """Rows of dy that a step loads."""
        return self.FOLDED * (self.BLOCK_P - 1) + self.BLOCK_R

    def x_bytes(self, problem: Problem) -> int:
        """Bytes of x of a step, with columns of other taps from a multiple of 16 bytes on."""
        return self.x_rows * self.BLOCK_C * (ROW_BYTES + self.rest_bytes(problem))

    def rest_bytes(self, problem: Problem) -> int:
        """Bytes of a row of x beside ROW_BYTES."""
        itemsize = problem.dtype.itemsize
        # In 16 bits, words of an odd column are put together from those beside it.
        columns = (self.BLOCK_S - 1) * problem.geometry.dilation[1] + (itemsize == 2)
        return power_of_two(max(REST_BYTES, 16 - itemsize + columns * itemsize))

    def dy_bytes(self) -> int:
        """Bytes of dy of a step."""
        return self.dy_rows * self.BLOCK_F * ROW_BYTES

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        g = problem.geometry
        blocks = cdiv(g.group_K, self.BLOCK_F) * cdiv(g.group_C, self.BLOCK_C)
        return g.groups * cdiv(g.R, self.taps) * cdiv(g.S, self.BLOCK_S) * blocks

    def strips(self, problem: Problem) -> int:
        """Steps that cover all images."""
        g = problem.geometry
        rows = cdiv(g.P + self.BLOCK_R - 1, self.FOLDED * self.BLOCK_P)
        return g.N * cdiv(g.Q, self.BLOCK_Q) * rows

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: rows are rows and channels of x."""
        return self.BLOCK_I * self.BLOCK_C, self.columns * self.BLOCK_S, self.BLOCK_P * self.BLOCK_Q

    def splits(self, problem: Problem) -> int:
        """Parts that steps are best dealt out to. See cost.gradient_splits."""
        most = cdiv(self.strips(problem), tma.MIN_SPLIT_STRIPS)
        return splits_that_fill(self, problem, most, side_by_side=2)

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program: x needs two stages less than dy.

        Rows of dy go on as far as the last product of a step reads.
        """
        rows = (self.dy_rows - self.BLOCK_R) * self.BLOCK_F + self.columns
        dy = rows * ROW_BYTES * self.num_stages
        x = self.x_bytes(problem) * (self.num_stages - 2)
        return dy + x + self.x_rows * self.BLOCK_C * PITCH_BYTES + BARRIER_BYTES

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
        m, n, _ = self.step(plan.op)
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
        inside = filled(g.Q * self.FOLDED, self.BLOCK_Q)
        x, dy = self.x_bytes(problem), self.dy_bytes()
        loaded = steps * (x + dy)
        read = steps * self.read_bytes(problem)
        resident = min(
            device.limits.shared // self.shared_bytes(problem),
            int(REGISTERS // (threads * code.registers)),
            THREADS // threads,
        )
        channels = filled(g.group_C, self.BLOCK_C)
        return work._replace(
            l2_bytes=steps * inside * (x * channels + dy * filled(g.group_K, self.BLOCK_F)),
            shared_bytes=loaded + read,
            loaded_bytes=loaded,
            resident=max(1, resident),
            stalls=steps * self.idle_clocks(problem) / device.latency,
        )

    def read_bytes(self, problem: Problem) -> int:
        """Bytes of a step that are copied, and read from shared memory for products.

        Warps read x for every tap, again where they share its rows, and in 16 bits for one tap
        more; each product reads dy for every 64 rows.
        """
        m, n, k = self.step(problem.op)
        across = self.num_warps * 16 // m
        itemsize = problem.dtype.itemsize
        taps = self.BLOCK_S + (itemsize == 2)
        return 2 * self.x_bytes(problem) + itemsize * k * (taps * m * across + n * (m // 64))

    def code(self, problem: Problem) -> Code:
        """The code of a program: of one step, and outside of the loop. Counted for sm_90."""
        m, n, _ = self.step(problem.op)
        sums, products = m * n / problem.threads(self), self.BLOCK_P * self.BLOCK_S
        boxes = 2 * self.x_rows + self.dy_rows * len(runs_of(self.BLOCK_F))
        pieces = cdiv(self.x_bytes(problem) // 16, problem.threads(self))
        loop = 80 + 34 * products + 15 * boxes + 4 * pieces
        if self.FOLDED > 1:  # for columns that are beside their rows
            loop += 20 * products
        return Code(loop, 750 + 5 * sums, sums + 100)

    def idle_clocks(self, problem: Problem) -> float:
        """Clocks of a step in which the matrix units of a program without another beside it wait.

        For its own copy, and where products are shorter than a pass through one.
        """
        m, n = self.BLOCK_I * self.BLOCK_C, self.columns
        product = m * n * self.BLOCK_Q / problem.device.rates.macs[problem.unit]
        return STEP_CLOCKS + self.BLOCK_P * self.BLOCK_S * max(0.0, PRODUCT_CLOCKS - product)


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this: rows of both images begin at multiples of 16 bytes."""
    g, layout = problem.geometry, problem.layout
    if problem.op != "wgrad" or problem.device.arch != "90" or not layout.gluon:
        return False
    if (
        problem.product not in ("tf32", "half")
        or layout.converts
        or layout.boxes("wgrad") != "NCHW"
    ):
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
    g, pixels = problem.geometry, ROW_BYTES // problem.dtype.itemsize
    folded = _most_folded(problem)
    for rows, channels in itertools.product(ROWS, (16, 32, 64, 128)):
        if channels > min(rows, max(64, power_of_two(g.group_C))):
            continue
        taps = rows // channels
        for dy_rows, filters, columns in itertools.product(
            _parts(cdiv(g.R, taps), MOST_PARTS), _filters(g.group_K), _parts(g.S, MOST_PARTS)
        ):
            if taps // 2 * dy_rows >= g.R:
                continue
            for warps in (4, 8) if rows == ROWS[0] else (8,):
                if rows * power_of_two(dy_rows * filters) * columns <= 32 * warps * MAX_SUMS:
                    shape = (taps, dy_rows, columns, channels, filters)
                    yield PlanesGradientTile(1, pixels, *shape, warps, 3, folded)


def _most_folded(problem: Problem) -> int:
    """Rows of a plane that BLOCK_Q columns can be: 1 where planes are no rows without gaps."""
    g, layout = problem.geometry, problem.layout
    pixels = ROW_BYTES // problem.dtype.itemsize
    is_row = layout.x_row == layout.y_row == "NCHW" and g.W == g.Q
    return pixels // g.Q if is_row and g.Q < pixels and pixels % g.Q == 0 else 1


def _parts(number: int, most: int) -> dict[int, None]:
    """Sizes of the parts that a number is cut into evenly, for `most` parts or fewer."""
    return dict.fromkeys(cdiv(number, parts) for parts in range(1, most + 1))


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
    shared = tile.x_bytes(problem) + tile.dy_bytes() + tile.read_bytes(problem)
    step = max(shared / rates.shared, m * n * k / rates.macs[problem.unit])
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
        and tile.BLOCK_Q * problem.dtype.itemsize == ROW_BYTES
        and tile.rest_bytes(problem) <= ROW_BYTES
        and tile.FOLDED in (1, _most_folded(problem))
        and _is_even(tile, problem)
        and tile.num_stages > 2
        and tile.BLOCK_P * tile.BLOCK_S >= FEWEST_PRODUCTS[problem.dtype.itemsize]
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )


def _is_even(tile: PlanesGradientTile, problem: Problem) -> bool:
    """Whether the first tap of every program reads an even column, or of every one an odd one.

    In 16 bits these are different code.
    """
    g = problem.geometry
    one = tile.BLOCK_S >= g.S or problem.dtype.itemsize == 4
    return one or tile.BLOCK_S * g.dilation[1] % 2 == 0
