"""Few channels of the result: a program walks down a strip of an image and loads every row once.

With few channels of the result a matrix product has few columns, and kernels that load an image for
every tap, or every place of a patch, spend their time on that. Here the columns of the window are
columns of the product too, and a row of the image is loaded once for the whole window:
kernels/fprop_strip.py says how their sums meet. Rows of results in a patch are further columns.

Images are read as they lie, in either format.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..geometry import Geometry
from . import patch, tma
from .cost import REGISTERS, THREADS, Code, Work, device_bytes, is_launchable, line_bytes
from .integers import cdiv, power_of_two
from .patch import Axis
from .problem import Plan, Problem

#: Columns of a strip, rows of results in a patch, and columns of a product.
BLOCKS_Q, PATCH_ROWS, BLOCKS_N = (64, 128), (1, 2, 4), (8, 16, 32, 64, 128)
#: Bytes of reduced channels of one product.
BLOCK_BYTES = (128, 64, 32)
#: Patches ahead of which rows are loaded.
STAGES = (3, 2)
#: Channels of the result in a group, at most: more fill the columns of a product by themselves.
MOST_RESULTS = 32
#: Fewest patches of a program: each loads the rows around its own again.
MIN_SEGMENT = 8
#: Clocks of a patch that nothing of the program hides, beside those of storing its sums to shared
#: memory: barriers, the first product, latencies; assumed.
PATCH_CLOCKS = 300
#: The same of a product whose left operand is loaded to registers; assumed.
LOAD_CLOCKS = 30
#: Shared memory for barriers, beside that for rows, weights and sums.
BARRIER_BYTES = 1024
#: Sums of a thread, at most: it holds those of two patches. The second number is with a heavy
#: epilogue, phases, or an image in registers: twice as many spill up to 96 bytes (Triton 3.6).
MOST_SUMS = (64, 32)
#: Products of a patch, which are all written out.
MOST_PRODUCTS = 40
#: Least share of a patch's products that are with a tap, as for spread.
FEWEST_TAPS = 0.4


@dataclass(frozen=True)
class Strips:
    """How strips of columns cover a result.

    Attributes:
        pitch: columns of the result from one column of the image to the next.
        shift: columns of the result that lie before those of the image's first one.
        reach: columns from the first that a result reads to the last.
        first: column of the image at which the first strip begins.
        step: columns from one strip to the next.
        count: strips of an image.
        shifts: columns of sums to add up, reach + 1 up to a power of two, and at least two.
        first_tap: tap of the first of them; the others follow it, or precede it in a forward call.
    """

    pitch: int
    shift: int
    reach: int
    first: int
    step: int
    count: int
    shifts: int
    first_tap: int


@dataclass(frozen=True)
class StripTile:
    """The strip of a program, its products, and the launch options.

    Attributes:
        BLOCK_Q: columns of the image in a strip.
        BLOCK_N: columns (channel of the result, row of a patch, column of the window) of a product.
        BLOCK_K: reduced channels of one product.
        PATCH_P: rows of y, or dy, in a patch.
        num_warps, num_stages: of the launch; rows of the last num_stages - 1 patches are loaded
            ahead.
        segment: patches of one program.
    """

    BLOCK_Q: int
    BLOCK_N: int
    BLOCK_K: int
    PATCH_P: int
    num_warps: int
    num_stages: int
    segment: int

    family: ClassVar[str] = "strip"
    partials: ClassVar[int] = 1

    def rows(self, problem: Problem) -> Axis:
        """The patches along rows."""
        return rows_of(problem.op, problem.geometry, self.PATCH_P)

    def strips(self, problem: Problem) -> int:
        """Patches of a program: what a split would cut, if there were one."""
        return self.segment

    def columns(self, problem: Problem) -> Strips:
        """The strips along columns."""
        align = 1 if problem.layout.boxes(problem.op) == "NHWC" else 16 // problem.dtype.itemsize
        return strips_of(problem.op, problem.geometry, self.BLOCK_Q, align)

    def blocks(self, problem: Problem) -> int:
        """Blocks of reduced channels."""
        return cdiv(problem.reduced, self.BLOCK_K)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results."""
        g = problem.geometry
        parts = cdiv(self.rows(problem).count, self.segment)
        return g.N * g.groups * self.columns(problem).count * parts

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one product: pixels are the rows."""
        return self.BLOCK_Q, self.BLOCK_N, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """Parts of the reduction: one."""
        return 1

    def row_bytes(self, problem: Problem) -> int:
        """Bytes of one row of the strip in shared memory."""
        return self.BLOCK_Q * self.blocks(problem) * self.BLOCK_K * problem.dtype.itemsize

    def weight_bytes(self, problem: Problem) -> int:
        """Bytes of the weight in shared memory."""
        products = self.rows(problem).window * self.blocks(problem)
        return products * self.BLOCK_N * self.BLOCK_K * problem.dtype.itemsize

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program: rows, the weight, sums."""
        rows = self.rows(problem)
        ring = rows.window + rows.step * (self.num_stages - 1)
        sums = self.BLOCK_N * (self.BLOCK_Q + 6) * 4  # rows of them are apart
        held = ring * self.row_bytes(problem) + self.weight_bytes(problem) + sums
        return held + BARRIER_BYTES

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem) and fits(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision, "turned": problem.op == "dgrad"}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch, and of the one that orders the weight."""
        g, itemsize, device = problem.geometry, problem.dtype.itemsize, problem.device
        rows, columns = self.rows(problem), self.columns(problem)
        steps = rows.count / cdiv(rows.count, self.segment)
        m, n, k = self.step(plan.op)
        products = rows.window * self.blocks(problem)  # of a patch
        loaded = (steps - 1) * rows.step + rows.window
        row, weight = self.row_bytes(problem), self.weight_bytes(problem)
        # Columns beside the image are not read.
        width = (g.Q if plan.op == "dgrad" else g.W) / columns.count
        read = loaded * min(width + columns.reach, m) * problem.reduced * itemsize + weight
        # Lanes that store sums of two phases share banks.
        lines, stored = n / columns.shifts, 4 * m * n * (1 + (columns.pitch > 1))
        sums = stored + 4 * m * lines * (columns.reach + 1)
        shared = steps * (products * k * itemsize * (m + m // 64 * n) + sums)
        clocks = PATCH_CLOCKS + stored / device.rates.shared
        clocks += LOAD_CLOCKS * products * loads_to_registers(problem)
        code, threads = self.code(problem), problem.threads(self)
        epilogue = problem.layout.epilogue * m * n / columns.shifts / threads
        resident = min(
            (device.limits.shared + BARRIER_BYTES) // (self.shared_bytes(problem) + BARRIER_BYTES),
            int(REGISTERS // (threads * code.registers)),
            THREADS // threads,
        )
        # Lanes run along columns of the result, whose channels lie between them in channels_last.
        scattered, apart = 0.0, problem.channels * itemsize
        if problem.layout.channels_last and problem.channels > 1:
            scattered = steps * m * lines * line_bytes(32, apart)
        spread = g.groups * self.lines(problem) * columns.shifts * columns.pitch
        between = spread * products * k * itemsize
        outside = code.outside + steps * epilogue
        return Work(
            programs=plan.grid,
            threads=threads,
            dram_bytes=device_bytes(problem, plan.grid, 1) + between,
            l2_bytes=read,
            shared_bytes=shared + loaded * row + weight,
            macs=steps * products * m * n * k,
            unit=problem.unit,
            instructions=steps * (code.loop + epilogue) + code.outside,
            resident=max(1, resident),
            launches=2,
            between_bytes=between,
            outputs=round(steps * columns.step * columns.pitch * self.lines(problem)),
            steps=steps,
            loaded_bytes=loaded * row + weight,
            stalls=steps * clocks / device.latency,
            operands="ahead",
            outside=outside,
            scattered_bytes=scattered,
        )

    def lines(self, problem: Problem) -> int:
        """Rows (channel of the result, row of a patch) of one group."""
        return problem.group_channels * self.rows(problem).pitch

    def code(self, problem: Problem) -> Code:
        """The code of a program, of one patch and outside of the loop.

        Counted for sm_90 (Triton 3.7.1).
        """
        sums = self.BLOCK_Q * self.BLOCK_N / problem.threads(self)
        rows = self.rows(problem)
        products = rows.window * self.blocks(problem)
        # Of a warp, 32 bytes of channels and 16 pixels at a time.
        each = self.BLOCK_K * problem.dtype.itemsize / 32 * self.BLOCK_Q / 16 / self.num_warps
        # Of a thread, for a product.
        loads = loads_to_registers(problem) * self.BLOCK_Q * self.BLOCK_K / problem.threads(self)
        return Code(
            0.3 * products * loads
            + 5.2 * products * each
            + 12 * products
            + 40 * rows.step
            + 2.4 * sums,
            200 + 60 * products + 50 * rows.step + 3 * sums,
            1.4 * sums + 1.6 * products + 2 * loads + 22,
        )


def rows_of(op: str, geometry: Geometry, patch_rows: int) -> Axis:
    """The patches along rows, of these many rows of y, or of dy."""
    g = geometry
    return patch.axis_of(op, g.H, g.P, g.R, g.stride[0], g.padding[0][0], patch_rows)


def strips_of(op: str, geometry: Geometry, block: int, align: int) -> Strips:
    """The strips of `block` columns, which begin at multiples of `align`.

    Those of an input gradient begin at a multiple of the stride, where that takes no more columns
    of sums: phases of a column of dy are then stored together.
    """
    g = geometry
    if op == "dgrad":
        pitch, pad, results = g.stride[1], g.padding[1][0], g.W
        columns, aligned = (cdiv(g.S + more, pitch) for more in (0, -pad % pitch))
        first_tap = 0
        if power_of_two(aligned) == power_of_two(columns):
            columns, first_tap = aligned, -(-pad % pitch)
        shift, reach = pad - first_tap, columns - 1
    else:
        pitch, shift, reach = 1, g.S - 1 - g.padding[1][0], g.S - 1
        first_tap, results = g.S - 1, g.Q
    first = (shift // pitch - reach) // align * align
    step = (block - reach) // align * align
    last = (results - 1 + shift) // pitch
    count = cdiv(last + 1 - first - reach, step) if step > 0 else 0
    shifts = max(2, power_of_two(reach + 1))
    return Strips(pitch, shift, reach, first, step, count, shifts, first_tap)


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this."""
    g, layout = problem.geometry, problem.layout
    if problem.op not in ("fprop", "dgrad") or problem.device.arch != "90" or not layout.gluon:
        return False
    if layout.as_rows or layout.int64 or layout.converts or g.per_sample:
        return False
    if g.padding_mode != "zeros" or g.dilation != (1, 1) or problem.reduced == 0:
        return False
    if problem.op == "fprop" and g.stride != (1, 1):
        return False
    if problem.op == "dgrad" and g.stride[1] & (g.stride[1] - 1):
        return False  # rows of sums are powers of two apart
    if not layout.boxes(problem.op) or problem.product not in ("half", "tf32"):
        return False
    extents = (g.H, g.W, g.P, g.Q, *map(abs, (*g.padding[0], *g.padding[1])), g.N, g.C, g.K)
    return max(extents) <= tma.MAX_COORDINATE // 4


def loads_to_registers(problem: Problem) -> bool:
    """Whether programs load the image from shared memory: wgmma takes no TF32 of planes there."""
    return problem.product == "tf32" and problem.layout.boxes(problem.op) == "NCHW"


def most_sums(problem: Problem) -> int:
    """Sums that a thread has room for."""
    has_phases = problem.op == "dgrad" and problem.geometry.stride[1] > 1
    crowded = problem.layout.heavy_epilogue or has_phases or loads_to_registers(problem)
    return MOST_SUMS[crowded]


def block_of(problem: Problem) -> int:
    """Reduced channels of a product: the widest row that leaves the fewest channels empty; or 0.

    Of several groups a block has channels of one alone: the next group's may be infinite.
    """
    blocks = [row // problem.dtype.itemsize for row in BLOCK_BYTES]
    if problem.geometry.groups > 1:
        return next((block for block in blocks if problem.reduced % block == 0), 0)
    return min(blocks, key=lambda block: cdiv(problem.reduced, block) * block)


def tiles(problem: Problem) -> list[StripTile]:
    """The tiles that the planner may take: of each patch, strips that few or many programs walk."""
    g = problem.geometry
    if not is_legal(problem) or not block_of(problem) or g.R * g.S == 1:
        return []
    if problem.group_channels > MOST_RESULTS or problem.reduced < 8:
        return []
    found: list[StripTile] = []
    for patch_rows, block, stages in itertools.product(PATCH_ROWS, BLOCKS_Q, STAGES):
        tile = StripTile(block, 0, block_of(problem), patch_rows, 4, stages, 1)
        tile = replace(tile, BLOCK_N=columns_of(tile, problem), segment=tile.rows(problem).count)
        sums = block * tile.BLOCK_N / problem.threads(tile)
        lone = 2 * tile.shared_bytes(problem) > problem.device.limits.shared
        if block == BLOCKS_Q[-1] and (lone or sums > most_sums(problem)):
            tile = replace(tile, num_warps=8)  # a lone program hides its own latencies
        rows = tile.rows(problem)
        if g.R * patch_rows < FEWEST_TAPS * rows.window * rows.pitch or not fits(tile, problem):
            continue
        found += _in_segments(tile, problem)
    return found


def columns_of(tile: StripTile, problem: Problem) -> int:
    """Columns of a product that all filters, rows of a patch and columns of the window need."""
    columns = tile.columns(problem)
    needed = tile.lines(problem) * columns.shifts * columns.pitch
    return max(BLOCKS_N[0], power_of_two(needed))


def _in_segments(tile: StripTile, problem: Problem) -> Iterator[StripTile]:
    """The tile with segments that fill one, two or four waves of programs."""
    patches, whole = tile.rows(problem).count, tile.programs(problem)
    shared = problem.device.limits.shared // tile.shared_bytes(problem)
    at_once = problem.device.multiprocessors * max(1, min(shared, 4))
    parts = (max(1, min(waves * at_once // whole, patches // MIN_SEGMENT)) for waves in (1, 2, 4))
    for segment in dict.fromkeys(cdiv(patches, part) for part in parts):
        yield replace(tile, segment=segment)


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (StripTile,)


def neighbours(tile: StripTile, problem: Problem) -> Iterator[StripTile]:
    """The tiles that a tuner tries: other strips, patches, warps, stages and segments."""
    segments = {tile.segment, 2 * tile.segment, cdiv(tile.segment, 2)}
    for patch_rows, block, warps, stages, segment in itertools.product(
        PATCH_ROWS, BLOCKS_Q, (4, 8), STAGES, sorted(segments)
    ):
        other = StripTile(block, 0, tile.BLOCK_K, patch_rows, warps, stages, segment)
        other = replace(other, BLOCK_N=columns_of(other, problem))
        if fits(other, problem):
            yield other


def fits(tile: StripTile, problem: Problem) -> bool:
    """Whether the kernel has this tile, and a program room for its rows, weights and sums."""
    columns = tile.columns(problem)
    blocks = [row // problem.dtype.itemsize for row in BLOCK_BYTES]
    return (
        is_launchable(replace(tile, segment=1), problem)
        and tile.segment >= 1
        and tile.BLOCK_Q in BLOCKS_Q
        and 16 * tile.num_warps <= tile.BLOCK_Q
        and tile.BLOCK_N in BLOCKS_N
        and tile.BLOCK_N == columns_of(tile, problem)
        and tile.BLOCK_K in blocks
        and (problem.geometry.groups == 1 or problem.reduced % tile.BLOCK_K == 0)
        and tile.BLOCK_Q * tile.BLOCK_N <= most_sums(problem) * problem.threads(tile)
        and tile.num_stages > 1
        and columns.step > 0
        and tile.rows(problem).window * tile.blocks(problem) <= MOST_PRODUCTS
        and 2 * columns.reach <= tile.BLOCK_Q
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )
