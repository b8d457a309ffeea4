"""Rows kernels: windows of up to 7x7 and few channels, walked down row by row in registers.

There are two kinds of tiles. Where rows come in pieces of whole vectors (Layout.x_align), a lane
has such a vector, and the lanes of a program are counted through (plane, vector): vector_tile.
Else lanes are single columns, or planes in channels_last: tile_for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from . import banded
from .cost import (
    REGISTERS,
    Work,
    device_bytes,
    is_launchable,
    partial_bytes,
    splits_that_fill,
)
from .cost import THREADS as RESIDENT_THREADS
from .device import ALL_REGISTERS, MAX_REGISTERS
from .integers import cdiv, power_of_two
from .problem import Plan, Problem

#: Largest window along one axis.
MAX_WINDOW = 7
#: Largest stride and dilation: the rows and columns between are unrolled, if only to be left out.
MAX_STEP = 64
#: Most channels of a group that are summed over: they are unrolled.
MAX_REDUCED = 8
#: Most output rows that are open beside the one that is finished next.
MAX_OPEN = 12
#: Most 32-bit registers of a thread for weights, open sums and pixels.
MAX_HELD = 128
#: Input rows that are unrolled together, by the most multiply-adds that a lane does for one: more
#: have more loads under way, and more code.
STEPS = {12: 4, 25: 2}
#: Threads of a program, and columns of a lane in channels_last.
THREADS, LANE_Q = 128, 4
#: Fewest groups that are lanes in channels_last: fewer neighbours are not worth a load.
MIN_GROUPS = 8
#: Lane instructions for a multiply-add, and besides for an output (sm_90): 0.5 to 2 of the former
#: by perf/results/codegen.json, twice as many in a weight gradient and four times in an input
#: gradient with a stride. Masks on every load make them half as many again.
INSTRUCTIONS = {"fprop": (1.25, 4.0), "dgrad": (4.0, 0.0), "wgrad": (2.0, 0.0)}
MASKED = 1.5
#: The same of lanes that have vectors (3x3 to 7x7, sm_90).
VECTOR_INSTRUCTIONS, VECTOR_MASKED = (1.1, 4.5), 1.1
#: Bytes of a lane's vectors that are under way: with five programs of 128 threads, which is what
#: registers leave room for, 20 KB of a multiprocessor. Three terabytes a second and a microsecond
#: of latency are 20 KB for reads and writes together.
UNDER_WAY = 32
#: Most input rows of a step of several output rows: 8 spill up to 168 bytes (sm_90).
MAX_ROWS = 4
#: Threads of a multiprocessor that leave no doubt that one of them can go on.
ROOMY_THREADS = 768
#: Most multiply-adds of a step, for all its rows are unrolled.
MAX_UNROLLED = 800
#: Registers of a thread beside what `held` counts: addresses, masks and the loop's (sm_90); the
#: second where lanes have planes of their own.
OTHER_REGISTERS = (20, 32)
#: Most taps that NVIDIA's compiler keeps in the 63 uniform registers, if all lanes have the same
#: plane and sums are in float32.
UNIFORM_TAPS = 49
#: Threads of a multiprocessor below which it is no faster with fewer of them, by the most
#: multiply-adds of an output: loads under way, then arithmetic. And what starting and ending a
#: program costs, in rows. Assumed.
LEAST_THREADS, START_ROWS = {24: 512, 10**9: 384}, 6


@dataclass(frozen=True)
class RowsTile:
    """Outputs of one program, how its lanes share them, and what the compiler is told.

    Attributes:
        BLOCK_P, BLOCK_Q: output rows and columns; for an input gradient with a stride, steps of it.
        BLOCK_C: planes (n, group), or groups in a weight gradient.
        BLOCK_K: filters of each group.
        STEP_P: output rows that are unrolled.
        LANE_Q: neighbouring columns of one lane.
        X_ALIGN: columns of an input row that a lane loads as one vector, those of LANE_Q outputs;
            1 where it loads each by itself.
        Y_ALIGN: columns that it stores as one vector.
        num_warps, num_stages: of the launch.
    """

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_C: int
    BLOCK_K: int = 1
    STEP_P: int = 1
    LANE_Q: int = 1
    X_ALIGN: int = 1
    Y_ALIGN: int = 1
    num_warps: int = 4
    num_stages: int = 2

    family: ClassVar[str] = "rows"
    partials: ClassVar[int] = 1

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, a weight gradient's before it is split."""
        e = extents(problem)
        planes = cdiv(e.planes, self.BLOCK_C) * cdiv(e.filters, self.BLOCK_K)
        if problem.op == "wgrad":
            return problem.banks * planes
        return planes * cdiv(e.rows, self.BLOCK_P) * cdiv(e.columns, self.BLOCK_Q)

    def strips(self, problem: Problem) -> int:
        """Tiles of output rows and columns of one problem, that a weight gradient sums."""
        g = problem.geometry
        return problem.samples * cdiv(g.P, self.BLOCK_P) * cdiv(g.Q, self.BLOCK_Q)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: STEP_P rows of BLOCK_K filters; a strip, of a weight gradient."""
        if op == "wgrad":
            return self.BLOCK_C * self.BLOCK_K, 1, self.BLOCK_P * self.BLOCK_Q
        return self.STEP_P * self.BLOCK_Q * self.BLOCK_C, self.BLOCK_K, 1

    def splits(self, problem: Problem) -> int:
        """Parts that a weight gradient's strips are best dealt out to."""
        return splits_that_fill(self, problem, self.strips(problem))

    def shared_bytes(self, problem: Problem) -> int:
        """Shared memory of a program: none."""
        return 0

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to, see device.py.

        Without a limit it saves those for the loads of the next step, which it then makes when it
        is done with this one. All with which as many programs fit are allowed.
        """
        if self.X_ALIGN > 1:
            other = OTHER_REGISTERS[self.BLOCK_C > 1] * (1 + problem.layout.int64)
            other += self._more_registers(problem)
            if problem.correlated.padding_mode != "zeros":  # single pixels, each where it is folded
                other += 4 * columns_beside(problem, self.LANE_Q, 1)
            held = problem.words * (self.held(problem) + other)
            room = REGISTERS // (32 * self.num_warps)
            programs = max(1, room // (cdiv(held, 8) * 8))
            return min(ALL_REGISTERS, room // programs // 8 * 8)
        across = problem.layout.channels_last and self.LANE_Q > 1
        limited = problem.op == "wgrad" and not across and problem.device.arch != "100"
        return MAX_REGISTERS if limited else None

    def _more_registers(self, problem: Problem) -> int:
        """Registers that some tiles of vectors need besides; by 240 drawn plans (sm_90)."""
        g, e = problem.correlated, extents(problem)
        beside = columns_beside(problem, self.LANE_Q, max(1, 4 // problem.image_bytes))
        if _clear_tiles(problem, 1, self.BLOCK_Q, self.STEP_P)[1] and self.is_full():
            in_parts = self.Y_ALIGN < self.LANE_Q and self.Y_ALIGN * problem.dtype.itemsize < 16
            return 5 * (e.reduced - 1) + 8 * in_parts
        if self.BLOCK_C > 1:
            loads, folded = self._rows(problem) * (1 + beside), g.padding_mode != "zeros"
            return max(0, loads - 8) + 2 * beside * folded + 5 * (e.reduced - 1)
        if {g.steps(0), g.steps(1)} == {(1, 1)} and e.reduced * self.BLOCK_K == 1:
            return 8 if self.STEP_P * columns_beside(problem, self.LANE_Q, 1) >= 16 else 0
        # Masked loads of the next step come before all arithmetic of this one, and taps leave the
        # uniform registers to addresses and masks.
        taps = row_macs(problem) * self.BLOCK_K
        return 8 + self._loaded(problem) + (taps if taps <= UNIFORM_TAPS else 0)

    def _rows(self, problem: Problem) -> int:
        """Input rows of a step of a tile of vectors, of all channels."""
        return self.STEP_P * problem.geometry.steps(0)[0] * extents(problem).reduced

    def _loaded(self, problem: Problem) -> int:
        """Words of a lane's vectors, and beside them, that a step loads."""
        word = max(1, 4 // problem.image_bytes)
        own = self.X_ALIGN // word
        return self._rows(problem) * (own + columns_beside(problem, self.LANE_Q, word))

    def is_full(self) -> bool:
        """Whether each lane has columns."""
        return self.lanes() == self.BLOCK_Q // self.LANE_Q * self.BLOCK_C

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return self.X_ALIGN == 1 or (
            vector_of(problem, self.LANE_Q) == (self.X_ALIGN, self.Y_ALIGN)
        )

    def lanes(self) -> int:
        """Lanes of a program along columns; of vectors, through all planes, with those idle."""
        if self.X_ALIGN == 1:
            return self.BLOCK_Q // self.LANE_Q
        return power_of_two(self.BLOCK_Q // self.LANE_Q * self.BLOCK_C)

    def resident(self, problem: Problem) -> int:
        """Programs that a multiprocessor has room for, by registers where there is a limit."""
        threads = problem.threads(self)
        most = RESIDENT_THREADS // threads
        if self.X_ALIGN == 1:
            return max(1, most // 2)
        registers = (self.max_registers(problem) or ALL_REGISTERS) * threads
        return max(1, min(most, REGISTERS * problem.device.limits.lanes // 32 // registers, 32))

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"interior": interior(self, problem), "turned": problem.is_turned}

    def held(self, problem: Problem) -> int:
        """Values that a thread holds: weights, sums of the open rows, and the pixels of one more.

        Another row of values is in flight where something is added to it (a heavy epilogue), and of
        dy in a weight gradient.
        """
        e, taps = extents(problem), row_macs(problem) * self.BLOCK_K
        if self.X_ALIGN > 1:
            return self._held_of_vectors(problem)
        g, gradient = problem.geometry, problem.op == "wgrad"
        in_flight = problem.layout.heavy_epilogue or gradient
        vector = max(1, self.BLOCK_Q // self.LANE_Q * self.BLOCK_C // THREADS)
        stride, dilation = g.steps(1)
        loaded = min(g.steps(0)[0], g.R)  # input rows for one output row
        columns = {q * stride + s * dilation for q in range(self.LANE_Q) for s in range(g.S)}
        rows = (e.open + self.STEP_P + in_flight) * self.BLOCK_K * self.LANE_Q * e.row
        own_weights = gradient or self.BLOCK_C > 1
        return taps * (vector if own_weights else 1) + (rows + len(columns) * loaded) * vector

    def _held_of_vectors(self, problem: Problem) -> int:
        """`held` of a tile whose lanes have vectors: the next step's rows are loaded meanwhile."""
        e, taps = extents(problem), row_macs(problem) * self.BLOCK_K
        loaded = self._loaded(problem)
        pixels = self.X_ALIGN + columns_beside(problem, self.LANE_Q, 1)
        sums = (e.open + self.STEP_P) * self.BLOCK_K * self.LANE_Q
        added = self.LANE_Q * problem.layout.heavy_epilogue
        uniform = self.BLOCK_C == 1 and problem.words == 1 and taps <= UNIFORM_TAPS
        return (0 if uniform else taps) + loaded + pixels + sums + added

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        if self.X_ALIGN > 1:
            return self._vector_work(plan, problem)
        g, walk = problem.geometry, walk_of(self, problem)
        pixel, itemsize = problem.image_bytes, problem.dtype.itemsize
        wgrad, strided = plan.op == "wgrad", problem.op == "dgrad" and not plan.turned
        strips = plan.split_strips if wgrad else 1
        stride, dilation = g.steps(1)
        window = min(g.S, (g.S - 1) * dilation + 1)
        # Shifts of a row are loads from L1 of what L2 delivers once.
        shifts = window if self.LANE_Q == 1 or strided else (self.LANE_Q - 1) * stride + window
        fresh = 1 if strided else self.LANE_Q * stride
        dy = self.BLOCK_P * self.BLOCK_Q * self.BLOCK_C * self.BLOCK_K * itemsize if wgrad else 0
        loads = strips * (walk.loads * pixel + dy)
        from_l2 = strips * (walk.loads * pixel * min(1.0, fresh / shifts) + dy)
        macs, threads = strips * walk.macs, problem.threads(self)
        mac, output = INSTRUCTIONS["fprop" if plan.turned else plan.op]
        masked = MASKED if plan.interior == "none" else 1.0
        instructions = masked * (mac * macs + output * walk.outputs) / threads
        between = partial_bytes(plan, problem)
        return Work(
            plan.grid,
            threads,
            device_bytes(problem, plan.grid, g.R * g.S * g.group_C) + between,
            from_l2,
            loads,
            macs,
            "float64" if problem.dtype == torch.float64 else "fma",
            instructions,
            self.resident(problem),
            2 if between else 1,
            between,
            outputs=walk.outputs,
            steps=walk.steps * strips,
            loaded_bytes=loads,
        )

    def _vector_work(self, plan: Plan, problem: Problem) -> Work:
        """`work` of a tile whose lanes have vectors."""
        g, e, threads = problem.geometry, extents(problem), problem.threads(self)
        steps = cdiv(self.BLOCK_P + e.open, self.STEP_P)
        rows, pixel = steps * self.STEP_P, problem.image_bytes
        outputs = self.lanes() * self.LANE_Q * self.BLOCK_K
        added = rows * outputs
        masked = 1.0 if plan.interior == "all" else VECTOR_MASKED
        if self.STEP_P == 1:  # rows of padding are passed by
            added = min(rows, e.rows if self.BLOCK_P >= e.rows else rows) * outputs
        macs = added * row_macs(problem)
        mac, output = VECTOR_INSTRUCTIONS
        instructions = masked * (mac * macs + output * rows * outputs) / threads
        word = max(1, 4 // pixel)
        own = self.X_ALIGN * pixel
        beside = columns_beside(problem, self.LANE_Q, word) * max(4, pixel)
        lanes = self.lanes() * rows * g.steps(0)[0] * e.reduced
        return Work(
            plan.grid,
            threads,
            device_bytes(problem, plan.grid, g.R * g.S * g.group_C),
            lanes * own,
            lanes * (own + beside),
            macs,
            "float64" if problem.dtype == torch.float64 else "fma",
            instructions,
            self.resident(problem),
            outputs=self.BLOCK_P * self.BLOCK_Q * self.BLOCK_C * self.BLOCK_K,
            steps=steps,
            loaded_bytes=lanes * (own + beside),
        )


class Extents(NamedTuple):
    """What a rows kernel walks over, whichever operator it is.

    Attributes:
        planes: that lanes can be.
        rows, columns: of outputs.
        reduced, filters: channels of a group that are loaded, and that are computed.
        open: largest number of output rows still being summed when another one is finished.
        row: sums of one lane and column in one output row, for one filter.
    """

    planes: int
    rows: int
    columns: int
    reduced: int
    filters: int
    open: int
    row: int


def extents(problem: Problem) -> Extents:
    """The extents of a problem's walk."""
    g = problem.geometry
    (stride_h, dil_h), (stride_w, _) = g.steps(0), g.steps(1)
    unfinished = (g.R - 1) * dil_h // stride_h
    if problem.op == "dgrad" and not problem.is_turned:
        rows, columns = (
            (extent - 1 + pad) // stride + 1 - pad // stride
            for extent, pad, stride in (
                (g.H, g.padding[0][0], stride_h),
                (g.W, g.padding[1][0], stride_w),
            )
        )
        row = stride_h * stride_w * g.group_C  # a program has all channels
        return Extents(g.N * g.groups, rows, columns, g.group_K, 1, unfinished, row)
    g = problem.correlated
    planes = g.groups if problem.op == "wgrad" else g.N * g.groups
    return Extents(planes, g.P, g.Q, g.group_C, g.group_K, unfinished, 1)


def row_macs(problem: Problem) -> int:
    """Multiply-adds for one output row of one lane and filter."""
    g = problem.geometry
    strided = problem.op == "dgrad" and not problem.is_turned
    channels = g.group_C * g.group_K if strided else extents(problem).reduced
    return channels * g.R * g.S


class Walk(NamedTuple):
    """What one program does, rows that only lead into its tile included.

    Attributes:
        outputs: results: pixels, or elements of a weight gradient.
        loads: of pixels of x, or of dy for an input gradient.
        macs: multiply-adds.
        steps: passes of the loop down the rows.
    """

    outputs: int
    loads: int
    macs: int
    steps: int


def walk_of(tile: RowsTile, problem: Problem) -> Walk:
    """The walk of one program; of a weight gradient's, for one strip."""
    g, e = problem.geometry, extents(problem)
    (stride_h, _), (stride_w, dil_w) = g.steps(0), g.steps(1)
    lanes = tile.BLOCK_Q // tile.LANE_Q * tile.BLOCK_C
    steps = cdiv(tile.BLOCK_P + e.open, tile.STEP_P)
    rows = steps * tile.STEP_P
    columns = tile.BLOCK_Q * tile.BLOCK_C * tile.BLOCK_K
    macs = rows * columns * row_macs(problem)
    if problem.op == "dgrad" and not problem.is_turned:
        loads = lanes * rows * e.reduced * (tile.LANE_Q + (g.S - 1) * dil_w // stride_w)
        return Walk(tile.BLOCK_P * columns * e.row, loads, macs, steps)
    window = min(g.S, (g.S - 1) * dil_w + 1)
    loads = lanes * rows * stride_h * e.reduced * ((tile.LANE_Q - 1) * stride_w + window)
    if problem.op == "wgrad":
        return Walk(tile.BLOCK_C * tile.BLOCK_K * e.reduced * g.R * g.S, loads, macs, steps)
    return Walk(tile.BLOCK_P * columns, loads, macs, steps)


def is_legal(problem: Problem) -> bool:
    """Whether a rows kernel can compute this, in some dtype and layout."""
    g = problem.geometry
    if problem.op == "dgrad_frame" or max(g.R, g.S) > MAX_WINDOW:
        return False
    if min(g.y_numel, g.group_C) == 0 or max(*g.steps(0), *g.steps(1)) > MAX_STEP:
        return False
    strided = problem.op == "dgrad" and not problem.is_turned
    if strided and min(g.padding[0][0], g.padding[1][0]) < 0:
        return False
    e = extents(problem)
    if e.reduced > MAX_REDUCED or e.open > MAX_OPEN:
        return False
    light = replace(problem, layout=replace(problem.layout, heavy_epilogue=False))
    return _block_k(light, 1, MAX_HELD) > 0


def tiles(problem: Problem) -> list[RowsTile]:
    """The tile that the planner takes for few channels; none where another family does better."""
    wanted = problem.has_few_channels and not banded.takes_over(problem)
    tile = tile_for(problem) if wanted else None
    return [] if tile is None else [tile]


def vector_of(problem: Problem, lane_q: int) -> tuple[int, int]:
    """(columns that a lane with so many outputs loads, and stores, as a vector); (1, 1): none."""
    g, layout = problem.correlated, problem.layout
    if problem.op == "wgrad" or (problem.op == "dgrad" and not problem.is_turned):
        return 1, 1
    read, written = layout.x_align, layout.y_align
    if problem.op == "dgrad":
        read, written = written, read
    x, y = lane_q * g.stride[1], math.gcd(lane_q, written)
    if x < 2 or read % x or not 4 <= x * problem.image_bytes <= 16:
        return 1, 1
    if y * problem.dtype.itemsize < 4:
        return 1, 1
    # What a padding mode shows is no vector of the image.
    if g.padding_mode != "zeros" and cdiv(g.Q, lane_q) * x > g.W:
        return 1, 1
    return x, y


def columns_beside(problem: Problem, lane_q: int, piece: int) -> int:
    """Pieces of so many columns that a lane's outputs read beside the lane's own columns."""
    g = problem.correlated
    (stride, dilation), pad = g.steps(1), g.padding[1][0]
    read = {q * stride + s * dilation - pad for q in range(lane_q) for s in range(g.S)}
    return len({c // piece for c in read if not 0 <= c < lane_q * stride})


def vector_tile(problem: Problem) -> RowsTile | None:
    """The tile whose lanes have the longest vectors that a thread has room for; None: none has."""
    e, layout = extents(problem), problem.layout
    room = (MAX_HELD if not layout.int64 else MAX_HELD * 3 // 4) // problem.words
    for lane_q in (8, 4, 2, 1):
        x_align, y_align = vector_of(problem, lane_q)
        if x_align == 1:
            continue
        for block_k in (k for k in range(min(e.filters, 8), 0, -1) if e.filters % k == 0):
            tile = RowsTile(e.rows, 0, 1, block_k, LANE_Q=lane_q, X_ALIGN=x_align, Y_ALIGN=y_align)
            tile = _with_lanes(tile, problem)
            if tile.held(problem) <= room:
                return _with_heights(_with_steps(tile, problem, room), problem)
    return None


def _with_lanes(tile: RowsTile, problem: Problem) -> RowsTile:
    """The tile with columns and planes for up to THREADS lanes, of which the fewest are idle."""
    e, warp = extents(problem), problem.device.limits.lanes
    width = cdiv(e.columns, tile.LANE_Q)
    best, busy = tile, 0.0
    # A program of one plane has its taps in uniform registers.
    sizes = [n for n in (THREADS, THREADS // 2, THREADS // 4) if n >= warp] or [warp]
    for lanes in sizes:
        tiles = cdiv(width, lanes)
        share = width / (tiles * power_of_two(cdiv(width, tiles)))
        if share > 1.1 * busy:
            best, busy = replace(tile, BLOCK_Q=lanes * tile.LANE_Q, BLOCK_C=1), share
    if width < THREADS and e.planes > 1:
        planes = min(e.planes, THREADS // width)
        share = width * planes / power_of_two(width * planes)
        if share > 1.1 * busy or width < warp:
            best = replace(tile, BLOCK_Q=width * tile.LANE_Q, BLOCK_C=planes)
    if best.BLOCK_C == 1 and width < best.BLOCK_Q // tile.LANE_Q:
        best = replace(best, BLOCK_Q=max(1, power_of_two(width)) * tile.LANE_Q)
    return replace(best, num_warps=max(1, best.lanes() // warp))


def _with_steps(tile: RowsTile, problem: Problem, room: int) -> RowsTile:
    """The tile with enough rows of a step to have UNDER_WAY bytes of a lane loaded ahead.

    Twice as many where ROOMY_THREADS fit all the same: four rows take fewer instructions for each
    than two. One row where several planes have many taps: their padding, which is passed by in
    whole steps, is a good part of all rows.
    """
    e, stride = extents(problem), problem.geometry.steps(0)[0]
    bytes_of_row = tile.X_ALIGN * problem.image_bytes * stride * e.reduced
    macs = tile.LANE_Q * tile.BLOCK_K * row_macs(problem)
    for step in (4, 2) if tile.BLOCK_C == 1 or e.open <= 2 else ():
        taller = replace(tile, STEP_P=step)
        roomy = taller.resident(problem) * problem.threads(tile) >= ROOMY_THREADS
        enough = 2 * UNDER_WAY if roomy else UNDER_WAY
        if step > e.rows or step * bytes_of_row > enough or step * macs > MAX_UNROLLED:
            continue
        if step * stride * e.reduced > MAX_ROWS:
            continue
        if taller.held(problem) <= room:
            return taller
    return tile


def _with_heights(tile: RowsTile, problem: Problem) -> RowsTile:
    """The tile with the height at which the busiest multiprocessor is done first.

    It runs its programs in rounds of as many as it has room for; the last one takes as long as
    LEAST_THREADS threads do, if it has fewer.
    """
    e, sms = extents(problem), problem.device.multiprocessors
    resident = tile.resident(problem)
    threads = next(n for most, n in LEAST_THREADS.items() if row_macs(problem) <= most)
    least = min(resident, cdiv(threads, problem.threads(tile)))
    flat = replace(tile, BLOCK_P=e.rows).programs(problem)
    best, least_time = tile, math.inf
    for count in range(cdiv(e.rows, 128), cdiv(e.rows, 4) + 1):
        height = cdiv(e.rows, count)
        height = max(1, cdiv(height + e.open, tile.STEP_P) * tile.STEP_P - e.open)
        busiest = cdiv(flat * cdiv(e.rows, height), sms)
        rounds, last = divmod(busiest, resident)
        slots = rounds * resident + (max(last, least) if last else 0)
        time = slots * (height + e.open + START_ROWS)
        if time < least_time:
            best, least_time = replace(tile, BLOCK_P=height), time
    return best


def tile_for(problem: Problem) -> RowsTile | None:
    """The tile that follows from a problem; None where it has no kernel or would spill."""
    if not is_legal(problem):
        return None
    if (found := vector_tile(problem)) is not None:
        return found
    if (in_pieces := _gradient_in_pieces(problem)) is not None:
        return in_pieces
    g, layout = problem.geometry, problem.layout
    # 64-bit addresses take registers too.
    room = (MAX_HELD // 2 if layout.int64 else MAX_HELD) // problem.words
    e = extents(problem)
    across = layout.channels_last and g.groups >= MIN_GROUPS  # lanes are channels
    lane_q = min(LANE_Q, power_of_two(e.columns)) if across else 1
    while not (block_k := _block_k(problem, lane_q, room)):
        if lane_q == 1:
            return None
        lane_q //= 2
    step = next((n for most, n in STEPS.items() if row_macs(problem) * block_k <= most), 1)
    step = max(1, min(step // g.steps(0)[0], e.rows))
    step = 1 if problem.op == "dgrad" and not problem.is_turned else step
    tile = RowsTile(e.rows, 0, 0, block_k, step, lane_q)
    # Vectors of neighbours, 16 bytes at most.
    plain = problem.op != "wgrad" and g.stride == (1, 1) and not layout.channels_last
    plain &= problem.dtype.itemsize == 2
    for vector in (8, 4, 2, 1) if plain else (4, 2, 1):
        block_q, block_c = _lanes(e, vector * THREADS, lane_q, across)
        tile = replace(tile, BLOCK_Q=block_q, BLOCK_C=block_c)
        if tile.held(problem) <= room:
            break
    else:
        step = 1
    # Fewer rows unrolled: 4 of an image save 3 % of the instructions of 3 in a weight gradient and
    # take 30 registers more; of several planes, 1 % of those of 2, and 20 to 40 more (sm_90).
    if tile.BLOCK_C > 1:
        step = min(step, 2)
    elif problem.op == "wgrad":
        step = min(step, 3)
    tile = replace(tile, STEP_P=step)
    return _in_height(tile, problem)


def _gradient_in_pieces(problem: Problem) -> RowsTile | None:
    """The tile of a weight gradient whose lanes load LANE_Q columns at once.

    None where rows are not aligned, or so narrow that few tiles are inside of the image.
    """
    g, layout = problem.geometry, problem.layout
    aligned = layout.x_boxes == layout.y_boxes == "NCHW" and problem.words == 1
    if problem.op != "wgrad" or not aligned or {g.steps(0), g.steps(1)} != {(1, 1)}:
        return None
    block_k = _block_k(problem, LANE_Q, MAX_HELD)
    step = next((n for most, n in STEPS.items() if row_macs(problem) * block_k <= most), 2)
    block_q = THREADS * LANE_Q
    tile = RowsTile(g.P, block_q, 1, block_k, max(1, min(step, 3, g.P)), LANE_Q)
    if not block_k or tile.held(problem) > MAX_HELD or cdiv(g.Q, block_q) * block_q > 1.2 * g.Q:
        return None
    tile = _in_height(tile, problem)
    return None if interior(tile, problem) == "none" else tile


def _in_height(tile: RowsTile, problem: Problem) -> RowsTile:
    """The tile with as many rows as leave programs for every multiprocessor."""
    e, step = extents(problem), tile.STEP_P
    most = 64 if e.open > 2 else 32
    for height in (most, most // 2, most // 4):
        rows = cdiv(e.rows, cdiv(e.rows, height))  # tiles of one height, none nearly empty
        rows = cdiv(rows + e.open, step) * step - e.open  # whole steps
        tile = replace(tile, BLOCK_P=max(1, rows))
        strips = tile.strips(problem) if problem.op == "wgrad" else 1
        if strips * tile.programs(problem) >= 2 * problem.device.multiprocessors:
            break
    return tile


def _block_k(problem: Problem, lane_q: int, room: int) -> int:
    """Filters of a group that one program can hold, the most that divide them; 0: not even one."""
    filters = extents(problem).filters
    for k in range(min(filters, 8), 0, -1):
        if filters % k == 0 and RowsTile(1, lane_q, 1, k, 1, lane_q).held(problem) <= room:
            return k
    return 0


def _lanes(e: Extents, lanes: int, lane_q: int, across: bool) -> tuple[int, int]:
    """(BLOCK_Q, BLOCK_C) of a tile with this many lanes, planes first if `across`."""
    planes = power_of_two(e.planes)
    if not across:
        block_q = _row_block(e.columns, lanes)
        return block_q, min(lanes // block_q, planes)
    # A warp's lanes are planes; warps side by side share the columns between them in cache.
    beside = min(lanes // min(lanes // 4, planes), power_of_two(cdiv(e.columns, lane_q)))
    return beside * lane_q, min(lanes // beside, planes)


def _row_block(columns: int, most: int) -> int:
    """Columns of a tile: the most among those that leave about the least of the last tile empty."""
    blocks = [most >> i for i in range(most.bit_length()) if most >> i >= 32]
    covered = {block: cdiv(columns, block) * block for block in blocks}
    close = [block for block, width in covered.items() if width <= 1.1 * min(covered.values())]
    return min(close[0], power_of_two(columns))


def interior(tile: RowsTile, problem: Problem) -> str:
    """Which tiles run without masks: "all"; "some", if a quarter can; else "none"."""
    if tile.X_ALIGN > 1 and not tile.is_full():
        return "none"
    inside = total = 1
    for axis, block in enumerate((tile.BLOCK_P, tile.BLOCK_Q)):
        count, clear = _clear_tiles(problem, axis, block, tile.STEP_P)
        total *= count
        inside *= clear
    full = extents(problem).planes % tile.BLOCK_C == 0
    if inside == total and full:
        return "all"
    return "some" if 4 * inside >= total else "none"


def _clear_tiles(problem: Problem, axis: int, block: int, step: int) -> tuple[int, int]:
    """(tiles along an axis, how many of them load and store inside the image only)."""
    g = problem.correlated
    (stride, dilation), pad = g.steps(axis), g.padding[axis][0]
    inputs, outputs, window = ((g.H, g.P, g.R), (g.W, g.Q, g.S))[axis]
    reach = (window - 1) * dilation
    if problem.op == "dgrad" and not problem.is_turned:
        first = pad // stride
        count = cdiv((inputs - 1 + pad) // stride + 1 - first, block)
        clear = [
            t
            for t in range(first, first + count * block, block)
            if t >= reach // stride
            and t + block <= outputs
            and t * stride >= pad
            and (t + block) * stride <= inputs + pad
        ]
        return count, len(clear)
    if axis == 0:  # whole steps are loaded
        reach = cdiv(block + reach // stride, step) * step * stride - 1
    else:
        reach += (block - 1) * stride
    # Tiles t with 0 <= t * block * stride - pad and t * block * stride - pad + reach < inputs.
    first = max(0, cdiv(pad, block * stride))
    last = min((inputs - 1 - reach + pad) // (block * stride), outputs // block - 1)
    return cdiv(outputs, block), max(0, last - first + 1)


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (RowsTile,)


def neighbours(tile: RowsTile, problem: Problem) -> Iterator[RowsTile]:
    """The tiles that a tuner tries: other blocks of rows, columns and planes, other vectors."""
    if tile.X_ALIGN > 1:
        yield from _vector_neighbours(tile, problem)
        return
    channels = problem.geometry.groups * (1 if problem.op == "wgrad" else problem.geometry.N)
    blocks = itertools.product(
        (8, 16, 32, 64), [2**i for i in range(3, 11)], [2**i for i in range(8)], (1, 2, 4, 8)
    )
    for p, q, c, warps in blocks:
        if 128 <= q * c <= 1024 and c < 2 * channels:
            block_q = q * tile.LANE_Q
            found = replace(tile, BLOCK_P=p, BLOCK_Q=block_q, BLOCK_C=c, num_warps=warps)
            if fits(found, problem):
                yield found


def _vector_neighbours(tile: RowsTile, problem: Problem) -> Iterator[RowsTile]:
    e, warp = extents(problem), problem.device.limits.lanes
    sizes = itertools.product((8, 4, 2, 1), (1, 2, 4, 8), (1, 2, 4), (8, 16, 32, 64, 128))
    for lane_q, warps, step, height in sizes:
        x_align, y_align = vector_of(problem, lane_q)
        if x_align == 1:
            continue
        width = cdiv(e.columns, lane_q)
        found = replace(
            tile,
            BLOCK_P=max(1, cdiv(min(height, e.rows) + e.open, step) * step - e.open),
            BLOCK_Q=min(width, warps * warp) * lane_q,
            BLOCK_C=max(1, min(e.planes, warps * warp // width)),
            STEP_P=step,
            LANE_Q=lane_q,
            X_ALIGN=x_align,
            Y_ALIGN=y_align,
            num_warps=warps,
        )
        full = found.lanes() == warps * warp or warps == 1
        if full and found.held(problem) * problem.words <= MAX_HELD:
            yield found


def fits(tile: RowsTile, problem: Problem) -> bool:
    """Whether a tile does not spill, by count: three rows of sums or dy, three shifts of a row."""
    if not is_launchable(tile, problem):
        return False
    held = tile.BLOCK_Q // tile.LANE_Q * tile.BLOCK_C / problem.threads(tile)
    return (
        1 <= held
        and held * 6 * problem.words <= problem.device.limits.registers // 2
        and tile.BLOCK_P >= 1
    )
