"""Matrix products through pointers: any call with many channels, and few channels of long sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .cost import (
    LINE,
    Code,
    Work,
    fits_matrix_unit,
    matrix_work,
    partial_bytes,
    pipeline_bytes,
    repacked_bytes,
    splits_that_fill,
)
from .device import MAX_REGISTERS
from .integers import cdiv, filled
from .problem import Plan, Problem

#: Bytes that L1 reads of memory at least, and bytes of a weight that it is assumed to keep.
SECTOR, KEPT_BYTES = 32, 2**17
#: Rows that a warp holds of a column of the sums: 8 x 8 blocks of them are one instruction's.
FRAGMENT = 8
#: Tiles of rows that are paired with one tile of columns before the next one, see next_tile in
#: kernels/schedule.py.
TILE_GROUP = 8
#: A split of a weight gradient sums at least this many pixels, so that partials stay few.
MIN_SPLIT_PIXELS = 256
#: Accumulator elements per thread of an image that is split, at most: 128 spill up to 80 bytes
#: (sm_90, Triton 3.7.1). Neither are steps through several taps in float64 (8 bytes, sm_100).
MAX_SPLIT_RESULTS = 64


@dataclass(frozen=True)
class GemmTile:
    """Extents of one program's GEMM, and the launch options.

    Attributes:
        BLOCK_M: pixels; filters, of a weight gradient.
        BLOCK_N: channels of the result; columns (tap, channel), of a weight gradient.
        BLOCK_K: elements (tap, channel) of a step of the sum; pixels, of a weight gradient.
        num_warps, num_stages: of the launch.
        in_place: a weight whose channels are not innermost is read as it lies, not copied first.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    in_place: bool = False

    family: ClassVar[str] = "gemm"
    partials: ClassVar[int] = 1

    @property
    def results(self) -> int:
        """Accumulator elements per thread, for 32-thread warps."""
        return self.BLOCK_M * self.BLOCK_N // (32 * self.num_warps)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        g = problem.geometry
        if problem.op == "wgrad":
            rows, columns, problems = g.group_K, g.group_C * g.R * g.S, g.groups
        else:
            rows, columns, problems = problem.pixels, problem.group_channels, g.groups
        if problem.op == "dgrad":  # each phase has programs of its own
            rows = problem.samples * math.prod(g.phase_shape[1:])
            problems *= math.prod(g.phases)
        problems *= problem.banks
        return problems * cdiv(rows, self.BLOCK_M) * cdiv(columns, self.BLOCK_N)

    def strips(self, problem: Problem) -> int:
        """Runs of BLOCK_K pixels that a weight gradient sums; steps of another's shortest loop.

        One where that is not split, see MAX_SPLIT_RESULTS.
        """
        g = problem.geometry
        if problem.op == "wgrad":
            return cdiv(problem.pixels, self.BLOCK_K)
        through_taps = problem.reduced < self.BLOCK_K
        if self.results > MAX_SPLIT_RESULTS or (through_taps and problem.words > 1):
            return 1
        taps = problem.fewest_taps if problem.op == "dgrad" else (g.R, g.S)
        return math.floor(self._steps(problem, *taps))

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step of the loop."""
        return self.BLOCK_M, self.BLOCK_N, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """Parts that a weight gradient's pixels are best cut into."""
        if problem.op != "wgrad":  # see cost.image_splits
            return 1
        return splits_that_fill(self, problem, cdiv(problem.pixels, MIN_SPLIT_PIXELS))

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program, about: the operands of every pipeline stage."""
        return pipeline_bytes(self, problem)

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to, see device.py."""
        # Exact products with few results spill 8 bytes in a 1x1 window otherwise (sm_90).
        parks = problem.op == "wgrad" and problem.product == "ieee" and self.results <= 8
        blackwell = problem.op == "wgrad" and problem.device.arch == "100"
        parks |= blackwell and problem.product == "tf32"
        # A limit makes ptxas spill 16 or 32 bytes of float64 there.
        blackwell |= problem.op == "dgrad_frame" and problem.device.arch == "100"
        parks |= problem.dtype == torch.float64 and not blackwell
        return MAX_REGISTERS if parks else None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it: always."""
        return True

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        fills_a_step = problem.op != "wgrad" and problem.reduced >= self.BLOCK_K
        return {"precision": problem.precision, "one_tap": fills_a_step}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        g, weights = problem.geometry, self._scattered(problem)
        steps = self._steps_of_part(plan, problem)
        work = matrix_work(
            plan,
            problem,
            self.code(plan, problem),
            steps,
            self.BLOCK_M * self.BLOCK_N,
            plan.grid,
            image_first=plan.op != "wgrad",
            lone=self._lone(problem),
            filled=self._filled(problem),
            slices=self._slices(problem),
            operands="registers" if self._is_rearranged(plan, problem) else None,
        ).with_partials(partial_bytes(plan, problem))
        # A pass computes addresses, then waits for its products: short ones take 1.6 times as long
        # as ones of twice the length (36 and 23 us, one program on a multiprocessor of an H100).
        work = work._replace(waits=work.waits or plan.op != "wgrad")
        if plan.op == "dgrad" and not problem.layout.channels_last and g.stride[1] > 1:
            # Columns of a phase are apart: a warp stores FRAGMENT of them to each line.
            lines = self.BLOCK_M * self.BLOCK_N / FRAGMENT
            work = work._replace(scattered_bytes=LINE * lines)
        one_by_one = problem.device.arch == "90" and problem.product == "tf32"
        if one_by_one and plan.op == "wgrad" and problem.layout.channels_last:
            # Lanes write single elements to few banks of shared memory: fitted to the 300 us that
            # an H100 took for 256 channels at 14 x 14.
            work = work._replace(shared_bytes=work.shared_bytes + 10 * work.loaded_bytes)
        if not weights:
            return work.after_copies([] if self.in_place else repacked_bytes(problem))
        # L1 reads all taps to find one, and keeps them for the steps through the others. The
        # pipeline has no loads of 16 bits: each that L1 does not find is waited for.
        taps, itemsize = g.R * g.S, problem.dtype.itemsize
        return work._replace(
            shared_bytes=work.shared_bytes + steps * weights * min(taps * itemsize, SECTOR),
            stalls=steps / taps if itemsize < 4 else 0,
        )

    def _is_rearranged(self, plan: Plan, problem: Problem) -> bool:
        """Whether an image passes registers: in single elements, or for a TF32 matrix of columns.

        The matrix unit reads TF32 from shared memory only where summed elements are neighbours.
        """
        if plan.op == "wgrad":
            return False
        planes = not problem.layout.channels_last and problem.unit == "tf32"
        return planes or not plan.one_tap

    def _scattered(self, problem: Problem) -> int:
        """Elements of the weight in a step whose neighbours are not next to them in memory."""
        if problem.op == "wgrad" or not (self.in_place and problem.layout.repacks):
            return 0
        return self.BLOCK_N * self.BLOCK_K

    def _filled(self, problem: Problem) -> tuple[float, float, float]:
        """Shares of (M, N, K) of a step that are elements: other lanes load nothing."""
        g = problem.geometry
        if problem.op == "wgrad":
            columns = g.group_C * g.R * g.S
            return filled(g.group_K, self.BLOCK_M), filled(columns, self.BLOCK_N), 1
        summed = filled(problem.reduced, self.BLOCK_K) if problem.reduced >= self.BLOCK_K else 1
        return (
            filled(problem.pixels, self.BLOCK_M),
            filled(problem.group_channels, self.BLOCK_N),
            summed,
        )

    def _slices(self, problem: Problem) -> tuple[int, int]:
        """Groups of rows, see next_tile, and slices of x whose taps are next to each other."""
        g = problem.geometry
        rows = cdiv(cdiv(g.group_K, self.BLOCK_M), TILE_GROUP)
        return rows, g.group_C // self.BLOCK_N if g.group_C % self.BLOCK_N == 0 else 1

    def _steps_of_part(self, plan: Plan, problem: Problem) -> float:
        """Passes of a program's loop; of an input gradient, the mean over its phases."""
        g = problem.geometry
        if plan.op == "wgrad":
            return plan.split_strips
        phases = g.phases if plan.op == "dgrad" else (1, 1)
        return self._steps(problem, g.R / phases[0], g.S / phases[1]) / plan.splits

    def _steps(self, problem: Problem, rows: float, columns: float) -> float:
        """Steps of the loop to an image, through rows x columns taps."""
        if problem.reduced >= self.BLOCK_K:
            return rows * columns * cdiv(problem.reduced, self.BLOCK_K)
        # Whole rows of the window in a step, if they fit.
        row = math.ceil(columns) * problem.reduced
        return cdiv(math.ceil(rows), max(1, self.BLOCK_K // row)) * cdiv(row, self.BLOCK_K)

    def _lone(self, problem: Problem) -> int:
        """16-bit elements of a pass that are loaded one by one: of planes, moved by a window."""
        if problem.layout.channels_last or problem.geometry.is_point or problem.dtype.itemsize > 2:
            return 0
        return self.BLOCK_K * (self.BLOCK_M + self.BLOCK_N * (problem.op == "wgrad"))

    def code(self, plan: Plan, problem: Problem) -> Code:
        """The code of a program, fitted to perf/results/codegen.json for sm_90; a test checks it.

        A pass loads every element of its operands that a thread has in pieces of 16 bytes, and one
        by one where each has a tap of its own; lone elements are put in pairs besides. Single
        channels of x have an address each in a weight gradient.
        """
        threads = problem.threads(self)
        sums = self.BLOCK_M * self.BLOCK_N / threads
        elements = (self.BLOCK_M + self.BLOCK_N) * self.BLOCK_K / threads
        each_a_tap = plan.op != "wgrad" and not plan.one_tap
        loop = 85 + (2.5 if each_a_tap else 0.8) * elements + 2.7 * self._lone(problem) / threads
        loop += 3 * self._scattered(problem) / threads
        if plan.op == "wgrad":  # decodes pixels, unless all are equally far from the next
            single = 70 if self._lone(problem) or problem.product == "tf32x3" else 55
            loop += 0 if problem.geometry.is_point else single
            channels = problem.geometry.group_C
            if problem.layout.channels_last and channels % 2 and channels > 1:
                near = channels * problem.dtype.itemsize <= SECTOR
                loop += (12 if near else 30) * self.BLOCK_N * self.BLOCK_K / threads
        if problem.product == "tf32":
            loop += 40
        if problem.product == "tf32x3":  # both halves of every operand are made in registers
            loop += 18 * elements
        if problem.unit == "fma":
            loop += sums * self.BLOCK_K
        return Code(loop, 350 + 10 * sums, sums + (30 if problem.unit == "fma" else 55))


#: For each kind of product, tiles from the largest down, the last one for few columns. The largest
#: that fills the device is taken: it reads each input the fewest times. By machine code for sm_90,
#: a warp issues for 2048 multiply-adds in bf16 (4 cycles of a H100's matrix unit, 8 of an A100's)
#: and channels_last 1.1 instructions with 128x256x64, 2.2 with 128x128x64, 3.9 with 128x64x32 and
#: 6.3 with 64x64x32. None has been tuned on a GPU yet; each is checked ahead of time for spills on
#: sm_80, sm_90, sm_100 and gfx942.
GEMM_TILES: dict[str, tuple[GemmTile, ...]] = {
    "half": (
        # Four stages: by shared memory for sm_90 and sm_100 only. On sm_80 it would spill.
        GemmTile(128, 256, 64, num_warps=8, num_stages=4),
        GemmTile(128, 128, 64, num_warps=8, num_stages=3),
        GemmTile(128, 128, 32, num_warps=8, num_stages=3),
        GemmTile(128, 64, 32, num_warps=4, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(128, 32, 32, num_warps=4, num_stages=3),
        GemmTile(128, 16, 32, num_warps=4, num_stages=3),
    ),
    "tf32": (
        GemmTile(128, 128, 32, num_warps=8, num_stages=3),
        GemmTile(128, 64, 32, num_warps=8, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(128, 32, 32, num_warps=4, num_stages=3),
        GemmTile(128, 16, 32, num_warps=4, num_stages=3),
    ),
    # Three products per product: operands are held twice, so tiles are smaller.
    "tf32x3": (
        GemmTile(64, 64, 32, num_warps=8, num_stages=2),
        GemmTile(64, 32, 32, num_warps=4, num_stages=2),
    ),
    # No matrix unit multiplies float32 exactly: fused multiply-adds from registers.
    "ieee": (
        GemmTile(128, 64, 16, num_warps=8, num_stages=2),
        GemmTile(64, 64, 16, num_warps=8, num_stages=2),
        GemmTile(64, 32, 16, num_warps=4, num_stages=3),
    ),
    "float64": (
        GemmTile(64, 32, 16, num_warps=8, num_stages=2),
        GemmTile(32, 32, 16, num_warps=4, num_stages=2),
    ),
}

#: Summed channels of a step that only channels_last loads: in 16 bits, where pixels are neighbours
#: instead, every element passes through a register of its own, and more of them spill (sm_80).
LONG_STEP = 64

#: Most accumulator elements per thread where the channels of neither, one and both of the images
#: come in pieces that 16 bytes do not divide: such elements are loaded and stored one by one, each
#: at an offset of its own. 64 spill with one such image (sm_80 in the loop, sm_90 after it); with
#: two, those of WIDE_GEMM_TILES are left.
LONE_RESULTS = (math.inf, 32, 0)

#: For offsets that take two registers or are not shared: every element has one of its own, see
#: LONE_RESULTS; or a reduction or columns run through several taps while offsets have 64 bits or
#: taps are counted at run time, as those of an input gradient's phase are. No tile spills there
#: with as few accumulator elements per thread as these have.
WIDE_GEMM_TILES: dict[str, GemmTile] = {
    "half": GemmTile(64, 64, 32, num_warps=8, num_stages=3),
    "tf32": GemmTile(64, 64, 32, num_warps=8, num_stages=3),
    "tf32x3": GemmTile(64, 32, 32, num_warps=8, num_stages=2),
    "ieee": GemmTile(64, 64, 16, num_warps=8, num_stages=2),
    "float64": GemmTile(64, 32, 16, num_warps=8, num_stages=2),
}

#: Tiles of weight gradients: for many filters and columns, for few, and as WIDE_GEMM_TILES; then
#: those for fewer than 64 filters, which a warp's own instruction multiplies, not a warpgroup's.
#: Rows are filters there, and splits fill the device, so the size does not depend on the pixels.
GEMM_GRADIENT_TILES: dict[str, tuple[GemmTile, ...]] = {
    "half": (
        GemmTile(128, 128, 32, num_warps=8, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(64, 64, 32, num_warps=8, num_stages=3),
        GemmTile(32, 128, 32, num_warps=8, num_stages=3),
        GemmTile(16, 128, 32, num_warps=4, num_stages=3),
    ),
    "tf32": (
        GemmTile(128, 64, 32, num_warps=8, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(64, 64, 32, num_warps=8, num_stages=3),
        GemmTile(32, 128, 32, num_warps=8, num_stages=3),
        GemmTile(16, 128, 32, num_warps=4, num_stages=3),
    ),
    "tf32x3": (
        GemmTile(64, 64, 32, num_warps=8, num_stages=2),
        GemmTile(64, 32, 32, num_warps=8, num_stages=2),
        GemmTile(64, 32, 32, num_warps=8, num_stages=2),
    ),
    "ieee": (
        GemmTile(64, 64, 16, num_warps=8, num_stages=3),
        GemmTile(64, 32, 16, num_warps=4, num_stages=2),
        GemmTile(64, 32, 16, num_warps=8, num_stages=3),
    ),
    "float64": (
        GemmTile(64, 32, 16, num_warps=4, num_stages=2),
        GemmTile(32, 32, 16, num_warps=4, num_stages=2),
        GemmTile(64, 32, 16, num_warps=8, num_stages=2),
    ),
}


def tiles(problem: Problem) -> list[GemmTile]:
    """The tiles that the planner may take.

    Columns (rows, of a weight gradient) are at most twice the channels: with few channels the rest
    of a matrix unit multiplies zeros, but a stencil pays for every product, so both are compared.
    """
    if problem.op == "wgrad":
        many, few, wide, *narrow = GEMM_GRADIENT_TILES[problem.product]
        if problem.layout.int64 or _ragged_images(problem) == 2:
            return [wide]
        filters = max(16, problem.geometry.group_K)
        if problem.product == "tf32" and problem.device.arch == "100":
            narrow = []  # 16 filters spill 272 bytes (sm_100, Triton 3.7.1)
        return [many, few, *(tile for tile in narrow if filters <= tile.BLOCK_M < 2 * filters)]
    if not problem.reduced:  # nothing to sum
        return []
    g = problem.geometry
    if problem.product == "tf32" and problem.reduced * g.R * g.S == 1:
        # Nothing to sum but one product, for which others are faster. Triton can keep such an
        # image in registers, and write them while a wgmma reads them (dgrad of one column).
        return []
    found = _pixel_tiles(problem)
    if problem.layout.heavy_epilogue:  # 128 x 256 sums would spill, and 128 x 128 of NCHW images
        columns = 256 if problem.layout.channels_last else 128
        found = [tile for tile in found if tile.BLOCK_N < columns]
    narrowest = min(tile.BLOCK_N for tile in found)
    columns = max(problem.group_channels, narrowest)
    found = [tile for tile in found if tile.BLOCK_N < 2 * columns]
    return [*found, *(replace(tile, in_place=True) for tile in found if _keeps(tile, problem))]


def mixed_tiles(problem: Problem) -> list[GemmTile]:
    """The tiles for images that are read in one format and stored in another: Exchange.is_mixed."""
    found = tiles(problem)
    if problem.layout.heavy_epilogue:  # 64 results of a thread spill 456 bytes (Triton 3.6)
        found = [tile for tile in found if tile.results <= MAX_SPLIT_RESULTS // 2]
    return found


def _keeps(tile: GemmTile, problem: Problem) -> bool:
    """Whether the planner may take this tile with the weight in place: if L1 keeps all its taps.

    Larger tiles are for more work than a copy of the weight is worth.
    """
    g = problem.geometry
    taps = g.R * g.S * problem.dtype.itemsize
    # 64 results of a thread spill up to 112 bytes without a warpgroup's product (sm_80).
    most = MAX_SPLIT_RESULTS if problem.device.rates.rows else MAX_SPLIT_RESULTS // 2
    small = tile.results <= most and problem.product in ("half", "tf32")
    fits = tile.BLOCK_N * tile.BLOCK_K * taps <= KEPT_BYTES
    return problem.layout.repacks and small and fits


def _pixel_tiles(problem: Problem) -> list[GemmTile]:
    """The tiles of fprop and dgrad that neither spill nor overflow shared memory."""
    layout, reduced = problem.layout, problem.reduced
    long_steps = layout.channels_last and reduced % LONG_STEP == 0 and not layout.int64
    table = [t for t in tiles_with_room(problem) if long_steps or t.BLOCK_K < LONG_STEP]
    if problem.op == "dgrad_frame":  # has few pixels, and two loops that take registers
        table = [tile for tile in table if tile.BLOCK_N >= 32][-1:]
    by_phases = problem.op == "dgrad" and math.prod(problem.geometry.phases) > 1
    long_offsets = 0 if layout.int64 or by_phases else math.inf
    most, safe = LONE_RESULTS[_ragged_images(problem)], WIDE_GEMM_TILES[problem.product].results
    kept = [
        tile
        for tile in table
        if tile.results <= max(safe, most if reduced >= tile.BLOCK_K else long_offsets)
    ]
    ragged = problem.op == "fprop" and _ragged(problem, problem.geometry.group_K)
    if ragged or layout.int64 or problem.group_channels > 16:
        # ptxas serializes 16 columns whose results are stored one by one (sm_90, Triton 3.7.1).
        kept = [tile for tile in kept if tile.BLOCK_N > 16]
    return kept if len(kept) == len(table) else [*kept, WIDE_GEMM_TILES[problem.product]]


def tiles_with_room(problem: Problem) -> list[GemmTile]:
    """The tiles of GEMM_TILES whose operands a device has the shared memory for."""
    room = problem.device.limits.shared
    return [t for t in GEMM_TILES[problem.product] if t.shared_bytes(problem) <= room]


def _ragged_images(problem: Problem) -> int:
    """How many of x and y have channels that do not come in pieces of 16 bytes."""
    g = problem.geometry
    return _ragged(problem, g.group_C) + _ragged(problem, g.group_K)


def _ragged(problem: Problem, channels: int) -> bool:
    return channels % max(1, 16 // problem.dtype.itemsize) != 0


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (GemmTile,)


def neighbours(tile: GemmTile, problem: Problem) -> Iterator[GemmTile]:
    """The tiles that a tuner tries: of any size that the channels can fill half of."""
    g = problem.geometry
    wgrad = problem.op == "wgrad"
    rows = g.group_K if wgrad else math.inf
    columns = g.group_C * g.R * g.S if wgrad else problem.group_channels
    for m, n, k, warps, stages in itertools.product(
        (32, 64, 128, 256), (16, 32, 64, 128, 256), (16, 32, 64, 128), (4, 8), (2, 3, 4)
    ):
        if m < 2 * max(rows, 32) and n < 2 * max(columns, 16):
            found = GemmTile(m, n, k, warps, stages, tile.in_place)
            if fits(found, problem):
                yield found


def fits(tile: GemmTile, problem: Problem) -> bool:
    """Whether a tile neither spills nor overflows, by count."""
    return fits_matrix_unit(tile, problem)
