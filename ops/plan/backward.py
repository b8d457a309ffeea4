"""Both gradients of a depthwise correlation in one launch, where that is predicted to be faster.

The autograd Function asks for dx and dw at once, and both read dy: backward_rows reads it once. Its
tiles are here, with their work; choose.plan_both compares the best with the two launches that it
replaces. Windows of at most 49 taps, zeros around the image, one channel and one filter per group.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..geometry import Geometry
from .cost import REGISTERS, Work, line_bytes
from .cost import THREADS as RESIDENT_THREADS
from .device import ALL_REGISTERS, MAX_WORKSPACE
from .integers import cdiv, power_of_two
from .problem import Plan, Problem
from .rows_walk import gradient_reads

#: Most taps of a window, and rows and columns of dy that the pixels of one step of a stride read.
MAX_TAPS, MAX_READ = 49, 7
#: Most rows or columns from one step of the stride to the next.
MAX_STRIDE = 4
#: Threads of a program.
THREADS = 128
#: Registers of a thread beside those that `held` counts (sm_90): addresses, masks and the loop's,
#: where lanes have columns, by the most taps; and in channels_last.
OTHER_REGISTERS, OTHER_OF_CHANNELS = {9: 30, 25: 40, 49: 64}, 48
#: Most taps of one group that NVIDIA's compiler keeps in uniform registers.
UNIFORM_TAPS = 25
#: Bytes of dy that a lane owns in a row at most, with more taps: longer vectors spill, and so do
#: lanes that are groups (sm_90). Half of them on sm_100, where no limit of registers is set.
MANY_TAPS_BYTES = 8
#: Instructions of a thread for a row of dy, for each further row of x that its step has, and for
#: an element of its lanes: of vectors, then of elements that are loaded alone. By 22 builds for
#: sm_90, of which the estimate is within 15 %.
ROW, ROW_OF_X, ELEMENT = 34.0, 10.0, 0.7
ROW_ALONE, ELEMENT_ALONE = 21.0, 6.5


@dataclass(frozen=True)
class BackwardTile:
    """Pixels of one program, and how its lanes share them.

    Attributes:
        BLOCK_P, BLOCK_Q: rows and columns of x, in steps of the stride.
        BLOCK_C: groups.
        BLOCK_N: samples.
        STEP_P: rows that are unrolled.
        LANE_Q: neighbouring columns of one lane, in steps of the stride.
        X_ALIGN: columns of dy that a lane loads as one vector: LANE_Q, or 1 where it loads each by
            itself.
        Y_ALIGN: columns of dx that it stores as one vector, and of x that it loads.
        num_warps, num_stages: of the launch.
    """

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_C: int = 1
    BLOCK_N: int = 1
    STEP_P: int = 1
    LANE_Q: int = 1
    X_ALIGN: int = 1
    Y_ALIGN: int = 1
    num_warps: int = 4
    num_stages: int = 2

    family: ClassVar[str] = "rows"
    partials: ClassVar[int] = 1

    def programs(self, problem: Problem) -> int:
        """Programs before the reduction of the weight gradient is split."""
        return problem.banks * cdiv(problem.geometry.groups, self.BLOCK_C)

    def strips(self, problem: Problem) -> int:
        """Tiles of samples, rows and columns of one group."""
        rows, columns = _steps_of(problem)
        tiles = cdiv(rows, self.BLOCK_P) * cdiv(columns, self.BLOCK_Q)
        return cdiv(problem.samples, self.BLOCK_N) * tiles

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of a strip, as a weight gradient's."""
        return self.BLOCK_C, 1, self.BLOCK_P * self.BLOCK_Q * self.BLOCK_N

    def splits(self, problem: Problem) -> int:
        """Parts that the strips are dealt out to if none are compared: those of one wave."""
        return splits(self, problem)[0]

    def shared_bytes(self, problem: Problem) -> int:
        """Shared memory of a program, but for the sums of its lanes: none."""
        return 0

    def suits(self, problem: Problem) -> bool:
        """Whether the vectors are those of the problem's tensors; nothing is tuned."""
        return self in set(_widths(problem))

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"interior": _interior(self, problem)}

    def lanes(self) -> int:
        """Lanes of a program, those idle included."""
        return power_of_two(self.BLOCK_Q // self.LANE_Q * self.BLOCK_N) * self.BLOCK_C

    def held(self, problem: Problem) -> int:
        """Values that a thread holds for its lanes."""
        g = problem.geometry
        (_, rows), (_, columns) = (gradient_reads(g, axis) for axis in (0, 1))
        stride_h, stride_w = g.stride[0], g.stride[1]
        taps, across = g.R * g.S, self.LANE_Q + columns - 1
        word = max(1, 4 // problem.dtype.itemsize) if self.X_ALIGN > 1 else 1
        pixels = self.STEP_P * stride_h * self.LANE_Q * stride_w
        beside = cdiv(columns - 1, word) + (columns > 1)
        loaded = self.STEP_P * (cdiv(self.LANE_Q, word) + beside) + pixels // word
        dys = (rows - 1 + self.STEP_P) * across
        uniform = self.BLOCK_C == 1 and problem.words == 1 and taps <= UNIFORM_TAPS
        values = taps * (1 if uniform else 2) + loaded + dys + pixels // self.STEP_P
        return values * self._vector(problem) * problem.words

    def _vector(self, problem: Problem) -> int:
        """Lanes of one thread."""
        return max(1, self.lanes() // problem.threads(self))

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to; see RowsTile.max_registers."""
        return None if problem.device.arch == "100" else self._registers(problem)

    def _registers(self, problem: Problem) -> int:
        needed = cdiv(self.needed(problem), 8) * 8
        room = REGISTERS // (32 * self.num_warps)
        return min(ALL_REGISTERS, room // max(1, room // needed) // 8 * 8)

    def needed(self, problem: Problem) -> int:
        """Registers with which a thread does not spill."""
        taps = problem.geometry.R * problem.geometry.S
        other = next(n for most, n in OTHER_REGISTERS.items() if taps <= most)
        if self.BLOCK_C > 1:
            other = OTHER_OF_CHANNELS
        return self.held(problem) + other * (1 + problem.layout.int64)

    def resident(self, problem: Problem) -> int:
        """Programs that a multiprocessor has room for, by registers."""
        threads = problem.threads(self)
        registers = self._registers(problem) * threads * 32 // problem.device.limits.lanes
        return max(1, min(RESIDENT_THREADS // threads, REGISTERS // registers, 32))

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        g, itemsize = problem.geometry, problem.dtype.itemsize
        (_, rows), (_, columns) = (gradient_reads(g, axis) for axis in (0, 1))
        stride_h, stride_w = g.stride[0], g.stride[1]
        strips, threads, lanes = plan.split_strips, problem.threads(self), self.lanes()
        word = max(1, 4 // itemsize) if self.X_ALIGN > 1 else 1
        beside = (cdiv(columns - 1, word) + (columns > 1)) * word if word > 1 else columns - 1
        # Of one lane and strip.
        dys = (self.BLOCK_P + rows - 1) * (self.LANE_Q + beside)
        pixels = self.BLOCK_P * stride_h * self.LANE_Q * stride_w
        macs = 2 * self.BLOCK_P * self.LANE_Q * g.R * g.S
        vector = self._vector(problem)
        row, element = ROW, ELEMENT
        if self.X_ALIGN == 1:
            row, element = ROW_ALONE, ELEMENT_ALONE
        # The rows of dy move up, from register to register, once in a step.
        moves = (rows - 1) * (self.LANE_Q + columns - 1) * self.BLOCK_P / self.STEP_P
        instructions = vector * (macs + moves) + element * (dys + 2 * pixels)
        instructions += (row + ROW_OF_X * stride_h) * (self.BLOCK_P + rows - 1)
        loads = strips * lanes * (dys + pixels) * itemsize
        fresh = strips * lanes * ((self.BLOCK_P + rows - 1) * self.LANE_Q + pixels) * itemsize
        in_l1: float = loads
        if self.X_ALIGN == 1:
            one_lane = self._line_bytes(problem)
            in_l1 = strips * lanes * (dys + 2 * pixels) * one_lane
        return Work(
            plan.grid,
            threads,
            problem.compulsory_bytes,
            fresh,
            in_l1,
            strips * lanes * macs,
            "float64" if problem.dtype == torch.float64 else "fma",
            strips * instructions,
            self.resident(problem),
            outputs=strips * lanes * pixels,
            steps=strips * self.BLOCK_P // self.STEP_P,
            loaded_bytes=loads,
            stalls=strips - 1,
            operands="ahead" if self.X_ALIGN > 1 else "registers",
        ).with_partials(partial_bytes_of(plan.splits, problem))

    def _line_bytes(self, problem: Problem) -> float:
        """Bytes that L1 reads for an element of one lane: of neighbouring groups, or columns."""
        itemsize, stride = problem.dtype.itemsize, problem.geometry.stride[1]
        if problem.layout.channels_last:
            return line_bytes(self.BLOCK_C, itemsize)
        return line_bytes(self.BLOCK_Q // self.LANE_Q, stride * itemsize)


def partial_bytes_of(splits: int, problem: Problem) -> int:
    """Bytes of `splits` partial sums of dw; 0 for a single one, which is dw itself."""
    if splits == 1:
        return 0
    return splits * problem.geometry.weight_numel * max(4, problem.dtype.itemsize)


def _steps_of(problem: Problem) -> tuple[int, int]:
    """Rows and columns of x, in steps of the stride."""
    g = problem.geometry
    return cdiv(g.H, g.stride[0]), cdiv(g.W, g.stride[1])


@functools.lru_cache(maxsize=4096)
def takes_both(geometry: Geometry) -> bool:
    """Whether backward_rows can compute both gradients, in some dtype and layout."""
    g = geometry
    if g.group_C != 1 or g.group_K != 1 or g.padding_mode != "zeros" or g.macs == 0:
        return False
    reads = [gradient_reads(g, axis)[1] for axis in (0, 1)]
    strides = g.stride[0], g.stride[1]
    return g.R * g.S <= MAX_TAPS and max(reads) <= MAX_READ and max(strides) <= MAX_STRIDE


def tiles(problem: Problem) -> list[BackwardTile]:
    """The tiles to compare; none where no kernel can compute both gradients."""
    if problem.op != "backward" or not takes_both(problem.geometry):
        return []
    rows, _ = _steps_of(problem)
    many = problem.geometry.R * problem.geometry.S > UNIFORM_TAPS
    longest = MANY_TAPS_BYTES // 2 if problem.device.arch == "100" else MANY_TAPS_BYTES
    found: list[BackwardTile] = []
    for tile in _widths(problem):
        across = tile.BLOCK_C > 1
        if many and (across or tile.LANE_Q * problem.dtype.itemsize > longest):
            continue
        heights = {cdiv(rows, cdiv(rows, most)) for most in (16, 32, 64, 128)}
        for height, step in itertools.product(sorted(heights), (1,) if across else (1, 2)):
            block_p = cdiv(height, step) * step
            sized = replace(tile, BLOCK_P=block_p, STEP_P=step)
            if sized.needed(problem) <= ALL_REGISTERS and block_p < rows + step:
                found.append(sized)
    return list(dict.fromkeys(found))


def _widths(problem: Problem) -> Iterator[BackwardTile]:
    """Tiles of one row: the ways to deal out lanes to columns, samples and groups."""
    g, layout = problem.geometry, problem.layout
    _, columns = _steps_of(problem)
    warp, stride = problem.device.limits.lanes, g.stride[1]
    if layout.channels_last and g.groups > 1:
        for lane_q, vector in itertools.product((4, 2, 1), (1, 2)):
            groups = min(power_of_two(g.groups), THREADS * vector)
            beside = min(THREADS * vector // groups, power_of_two(cdiv(columns, lane_q)))
            warps = max(1, min(THREADS, groups * beside) // warp)
            if lane_q < 2 * columns:
                yield BackwardTile(1, beside * lane_q, groups, LANE_Q=lane_q, num_warps=warps)
        return
    for lane_q in (8, 4, 2, 1):
        vector = is_vector(problem, lane_q)
        if lane_q > 1 and not vector:
            continue
        width = cdiv(columns, lane_q)
        lanes = min(THREADS, power_of_two(width))
        samples = [1]
        if width < THREADS:
            most = min(problem.samples, THREADS // width)
            even = cdiv(problem.samples, cdiv(problem.samples, most))
            samples, lanes = sorted({most, even}), width
        for n in samples:
            warps = max(1, power_of_two(lanes * n) // warp)
            yield BackwardTile(
                1, lanes * lane_q, 1, n, 1, lane_q, lane_q if vector else 1,
                lane_q * stride if vector else 1, num_warps=warps,
            )  # fmt: skip


def is_vector(problem: Problem, lane_q: int) -> bool:
    """Whether lanes of LANE_Q columns of dy load, and store, vectors of at most 16 bytes."""
    layout, itemsize = problem.layout, problem.dtype.itemsize
    of_x = lane_q * problem.geometry.stride[1]
    aligned = layout.y_align % lane_q == 0 and layout.x_align % of_x == 0
    power = of_x & (of_x - 1) == 0
    return aligned and power and lane_q > 1 and lane_q * itemsize >= 4 and of_x * itemsize <= 16


def _interior(tile: BackwardTile, problem: Problem) -> str:
    """Which tiles run without masks: "all"; "some", if a quarter can; else "none"."""
    g = problem.geometry
    if problem.layout.channels_last:  # two kinds of tiles take registers, and save no instructions
        return "none"
    if tile.lanes() != tile.BLOCK_Q // tile.LANE_Q * tile.BLOCK_N * tile.BLOCK_C:
        return "none"
    inside = total = 1
    for axis, block in enumerate((tile.BLOCK_P, tile.BLOCK_Q)):
        first, count = gradient_reads(g, axis)
        stride, extent, outputs = g.stride[axis], (g.H, g.W)[axis], (g.P, g.Q)[axis]
        starts = range(0, cdiv(extent, stride), block)
        total *= len(starts)
        inside *= sum(
            t + first >= 0
            and t + first + block + count - 1 <= outputs
            and (t + block) * stride <= extent
            for t in starts
        )
    full = problem.samples % tile.BLOCK_N == 0 and g.groups % tile.BLOCK_C == 0
    if inside == total and full:
        return "all"
    return "some" if 4 * inside >= total else "none"


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (BackwardTile,)


def neighbours(tile: BackwardTile, problem: Problem) -> Iterator[BackwardTile]:
    """The tiles that a tuner tries: all that are compared, and those with other heights."""
    for other in tiles(problem):
        for height in (other.BLOCK_P, *(8, 16, 32, 64, 128)):
            found = replace(other, BLOCK_P=cdiv(height, other.STEP_P) * other.STEP_P)
            if found != tile and height < 2 * _steps_of(problem)[0]:
                yield found


def splits(tile: BackwardTile, problem: Problem) -> list[int]:
    """Numbers of parts of the weight gradient to compare: those that fill whole waves."""
    partial = partial_bytes_of(2, problem) // 2
    most = max(1, min(tile.strips(problem), MAX_WORKSPACE // max(1, partial)))
    wave = problem.device.multiprocessors * tile.resident(problem)
    parts = (waves * wave // max(1, tile.programs(problem)) for waves in (1, 2, 4))
    return sorted({max(1, min(most, n)) for n in parts})


def both(dgrad: Problem, wgrad: Problem) -> Problem:
    """The problem of both gradients; vectors are as long as all tensors allow."""
    layout = replace(
        wgrad.layout,
        int64=wgrad.layout.int64 or dgrad.layout.int64,
        x_align=math.gcd(wgrad.layout.x_align, dgrad.layout.x_align),
        y_align=math.gcd(wgrad.layout.y_align, dgrad.layout.y_align),
    )
    return replace(wgrad, op="backward", layout=layout)
