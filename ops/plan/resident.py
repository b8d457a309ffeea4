"""Banded kernels whose filter stays in shared memory: large windows of few channels, sm_90.

As banded.py, but a program keeps the bands of a filter and goes from tile to tile, so that it reads
nothing but the image from L2: see kernels/fprop_resident.py.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..geometry import Geometry, Pair
from .bands import Band
from .cost import REGISTERS, Work, device_bytes, is_launchable
from .device import MAX_WORKSPACE
from .integers import cdiv
from .problem import Plan, Problem

#: Columns of a block and of a piece, over which one product sums.
PIECE = 16
#: Fewest taps of a window: rows kernels are as fast with smaller ones. By the model a 4096^2 image
#: in bfloat16 takes 44 us with 7x7 taps; an H100 took 48 with a rows kernel.
MIN_TAPS = 64
#: Shared memory that the hardware keeps for each program.
RESERVED = 1024
#: Slots for rows: with two, a row would be waited for; more than eight hide nothing more.
STAGES = (3, 8)
#: Strides of an input gradient: blocks of 8 x 16 outputs begin at a multiple of them.
UPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Correlation:
    """The forward correlation that the kernel computes.

    Attributes:
        geometry: of an input gradient the adjoint, whose image is dy with zeros between its pixels.
        up: rows, columns from one pixel of dy to the next there; 1 of the image itself.
        vector: elements of 16 bytes.
    """

    geometry: Geometry
    up: Pair
    vector: int

    @property
    def image(self) -> Pair:
        """Rows and columns in memory."""
        return (self.geometry.H - 1) // self.up[0] + 1, (self.geometry.W - 1) // self.up[1] + 1


def correlation_of(geometry: Geometry, image: Pair, vector: int) -> Correlation:
    """The correlation of an image of so many rows and columns, which may be the pixels of dy."""
    up_h, up_w = (
        (extent - 1) // max(1, pixels - 1) or 1
        for extent, pixels in zip((geometry.H, geometry.W), image, strict=True)
    )
    return Correlation(geometry, (up_h, up_w), vector)


@dataclass(frozen=True)
class ResidentTile:
    """BLOCK_M stacks of STACK blocks of BLOCK_P x BLOCK_Q outputs, and the launch options.

    Attributes:
        parts: programs that share the tiles of one filter.
        num_stages: slots for input rows of the blocks.
    """

    BLOCK_M: int
    BLOCK_P: int
    BLOCK_Q: int
    STACK: int
    num_warps: int
    num_stages: int
    parts: int = 1

    family: ClassVar[str] = "resident"
    partials: ClassVar[int] = 1

    def band(self, correlation: Correlation) -> Band:
        """The columns that a block reads: tap s = i * up + shift - q * stride of column i.

        If one block holds a whole row of the output, they are those of the image, without zeros.
        """
        g, up, columns = correlation.geometry, correlation.up[1], correlation.image[1]
        step = math.gcd(PIECE // up, columns, correlation.vector)  # what is copied at once divides
        left, stride = g.padding[1][0], g.stride[1]
        first, outputs = -(left // up) // step * step, PIECE
        if g.Q <= PIECE:
            first, outputs = max(first, 0), g.Q
        end = ((outputs - 1) * stride + g.S - 1 - left) // up + 1
        if g.Q <= PIECE:
            end = min(end, columns)
        shift = first * up + left
        return Band(first, shift, cdiv(max(1, end - first), PIECE) * PIECE)

    def rows(self, correlation: Correlation, blocks: int = 1) -> int:
        """Input rows that blocks on top of each other read."""
        g, up = correlation.geometry, correlation.up[0]
        last = (blocks * self.BLOCK_P - 1) * g.stride[0] + g.R - 1
        return (last - g.padding[0][0] % up) // up + 1

    def phase_lines(self, geometry: Geometry) -> int:
        """Lines of one phase of the stride in shared memory, with zeros around the window."""
        return (geometry.R - 1) // geometry.stride[0] + 1 + 2 * (self.BLOCK_P - 1)

    def lines_shape(self, correlation: Correlation) -> tuple[int, ...]:
        """Shape of the workspace of build_lines."""
        g, pieces = correlation.geometry, self.band(correlation).columns // PIECE
        banks = g.N if g.per_sample else 1
        lines = self.phase_lines(g) - 2 * (self.BLOCK_P - 1)
        return (banks, g.K, g.group_C, pieces, g.stride[0], lines, PIECE, PIECE)

    def lines_bytes(self, problem: Problem) -> int:
        """Bytes of the bands of all filters."""
        return math.prod(self.lines_shape(_seen(problem))) * problem.dtype.itemsize

    def tiles(self, problem: Problem) -> int:
        """Tiles of one filter."""
        g = _seen(problem).geometry
        stacks = cdiv(g.P, self.STACK * self.BLOCK_P) * cdiv(g.Q, self.BLOCK_Q)
        return cdiv(problem.samples * stacks, self.BLOCK_M)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results."""
        return problem.banks * _seen(problem).geometry.K * self.parts

    def strips(self, problem: Problem) -> int:
        """Input rows of a tile, of all channels."""
        seen = _seen(problem)
        return seen.geometry.group_C * min(self.rows(seen, self.STACK), seen.image[0])

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one product: blocks are the rows."""
        return self.BLOCK_M, self.BLOCK_P * self.BLOCK_Q, PIECE

    def splits(self, problem: Problem) -> int:
        """Parts of the reduction: one."""
        return 1

    def shared_bytes(self, problem: Problem) -> int:
        """What a program holds in shared memory: the bands of a filter, and slots for rows."""
        seen = _seen(problem)
        lines = math.prod(self.lines_shape(seen)[2:5]) * self.phase_lines(seen.geometry)
        row = self.BLOCK_M * self.band(seen).columns
        elements = cdiv(lines, 8) * 8 * PIECE * PIECE + self.num_stages * row
        return elements * problem.dtype.itemsize

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem) and fits(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision, "turned": problem.op == "dgrad"}

    def side_by_side(self, problem: Problem) -> int:
        """Programs that a multiprocessor has room for."""
        shared = problem.device.limits.shared + RESERVED
        shared //= self.shared_bytes(problem) + RESERVED
        # The sums, and the rest (sm_90).
        registers = 64 * self.STACK + 64 * (1 + problem.layout.heavy_epilogue)
        return max(1, min(shared, REGISTERS // (problem.threads(self) * registers)))

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch, and of the launch that makes the bands."""
        seen, itemsize = _seen(problem), problem.dtype.itemsize
        g, (m, n, k) = seen.geometry, self.step(plan.op)
        pieces = self.band(seen).columns // k
        height = min(self.rows(seen), seen.image[0])
        products = pieces * g.group_C * self.STACK * height  # of a tile
        rows, each = self.strips(problem), cdiv(self.tiles(problem), self.parts)
        row = m * k * pieces * itemsize
        lines = self.lines_bytes(problem) // (problem.banks * g.K)
        copies = 8 // aligned(problem)  # of a thread for a piece
        epilogue = problem.layout.epilogue * m * n / problem.threads(self) + 250
        # Counted for sm_90: copying lines, beginning a tile, a row.
        once, begun = 100 + 25 * lines / 4096, 400 + self.STACK * epilogue
        code = rows * (33 + (7 + 4.5 * copies) * pieces) + 8 * products
        moved = rows * row
        if problem.product == "tf32":  # a row is rounded; a load and two barriers, assumed
            code, moved = code + rows * (38 * pieces + 80), 3 * moved
        return Work(
            programs=plan.grid,
            threads=problem.threads(self),
            dram_bytes=device_bytes(problem, plan.grid, 1) + self.lines_bytes(problem),
            l2_bytes=each * rows * row + lines,
            shared_bytes=each * (moved + products * (m + n) * k * itemsize) + lines,
            macs=each * products * m * n * k,
            unit=problem.unit,
            instructions=once + each * (begun + code),
            resident=self.side_by_side(problem),
            launches=2,
            between_bytes=self.lines_bytes(problem),
            outputs=each * self.STACK * m * n,
            steps=each * rows,
            loaded_bytes=each * rows * row + lines,
            waits=True,  # at barriers, between the products of two rows: assumed
            operands="ahead",
            outside=once + each * begun,
        )


@functools.lru_cache(maxsize=4096)
def _gradient(geometry: Geometry, vector: int) -> Correlation:
    return correlation_of(geometry.adjoint(), (geometry.P, geometry.Q), vector)


def _seen(problem: Problem) -> Correlation:
    vector = 16 // problem.dtype.itemsize
    if problem.op == "dgrad":
        return _gradient(problem.geometry, vector)
    return Correlation(problem.geometry, (1, 1), vector)


def aligned(problem: Problem) -> int:
    """Columns that are copied at once, of 16 bytes at most."""
    align = problem.layout.y_align if problem.op == "dgrad" else problem.layout.x_align
    return math.gcd(PIECE // _seen(problem).up[1], align)


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this; from copies in planes, it can more (exchange.py)."""
    layout = problem.layout
    if problem.op not in ("fprop", "dgrad"):
        return False
    if layout.int64 or layout.converts or not problem.in_planes:
        return False
    if problem.device.arch != "90" or not layout.gluon:
        return False
    seen = _seen(problem)
    g = seen.geometry
    if problem.product not in ("half", "tf32") or g.padding_mode != "zeros":
        return False
    if seen.up[0] not in UPS or seen.up[1] not in UPS:
        return False
    if g.dilation != (1, 1) or g.y_numel == 0 or g.x_numel == 0:
        return False
    if problem.op == "dgrad" and g.groups > 1 and g.group_K > 1:
        return False
    # Of one column of outputs, Triton sees no runs of input columns (3.6, 3.7).
    # The least that cp.async copies is 4 bytes.
    return g.Q > 1 and aligned(problem) * problem.dtype.itemsize >= 4


def tiles(problem: Problem) -> list[ResidentTile]:
    """The tiles that the planner may take: as many slots as leave room for a second program."""
    g, found = _seen(problem).geometry, []
    if not problem.has_few_channels or g.R * g.S < MIN_TAPS or not is_legal(problem):
        return []
    for stack in (2, 1):
        tile = ResidentTile(64, 8, PIECE, stack, 4, STAGES[0])
        if stack > 1 and g.P <= tile.BLOCK_P:
            continue
        if tile.lines_bytes(problem) > MAX_WORKSPACE or not fits(tile, problem):
            continue
        tile = with_stages(tile, problem)
        filters, tiles_each = problem.banks * g.K, tile.tiles(problem)
        full = tile.side_by_side(problem) * problem.device.multiprocessors
        for parts in sorted({full // filters, cdiv(full, filters)} - {0}):
            each = cdiv(tiles_each, min(parts, tiles_each))
            found.append(replace(tile, parts=cdiv(tiles_each, each)))
    return list(dict.fromkeys(found))


def with_stages(tile: ResidentTile, problem: Problem) -> ResidentTile:
    """The tile with the most slots for which as many programs fit side by side."""
    least, most = STAGES
    beside = replace(tile, num_stages=least).side_by_side(problem)
    for stages in range(most, least, -1):
        other = replace(tile, num_stages=stages)
        if other.side_by_side(problem) == beside and fits(other, problem):
            return other
    return tile


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (ResidentTile,)


def neighbours(tile: ResidentTile, problem: Problem) -> Iterator[ResidentTile]:
    """The tiles that a tuner tries: single and stacked blocks, other slots, more or fewer parts."""
    every = tile.tiles(problem)
    for stack, stages, parts in itertools.product(
        (1, 2), range(STAGES[0], STAGES[1] + 1), (tile.parts // 2, tile.parts, 2 * tile.parts)
    ):
        other = replace(tile, STACK=stack, num_stages=stages, parts=max(1, min(parts, every)))
        if fits(other, problem):
            yield other


def fits(tile: ResidentTile, problem: Problem) -> bool:
    """Whether the kernel has this tile, and a program room for the bands and the slots."""
    extents, seen = (tile.BLOCK_M, tile.BLOCK_P, tile.BLOCK_Q, tile.num_warps), _seen(problem)
    between = tile.BLOCK_P * seen.geometry.stride[0] // seen.up[0]
    shares = tile.rows(seen, 2) > 2 * between  # stacked blocks read some row both
    return (
        extents == (64, 8, PIECE, 4)
        and tile.STACK in ((1, 2) if shares else (1,))
        and tile.num_stages >= STAGES[0]
        and tile.parts >= 1
        and is_launchable(replace(tile, parts=1), problem)
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )
