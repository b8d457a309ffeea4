"""The tile of a rows kernel: programs, registers and work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from .cost import REGISTERS, Work, device_bytes, line_bytes, partial_bytes, splits_that_fill
from .cost import THREADS as RESIDENT_THREADS
from .device import ALL_REGISTERS, MAX_REGISTERS
from .integers import cdiv, power_of_two
from .problem import Plan, Problem
from .rows_walk import (
    clear_tiles,
    columns_beside,
    extents,
    gradient_reads,
    is_strided_gradient,
    pieces_beside,
    row_macs,
    vector_of,
)

#: Threads of a program, and columns of a lane in channels_last.
THREADS, LANE_Q = 128, 4
#: Lane instructions for a multiply-add, and besides for an output (sm_90): 0.5 to 2 of the former
#: by perf/results/codegen.json, twice as many in a weight gradient and four times in an input
#: gradient with a stride. Masks on every load make them half as many again.
INSTRUCTIONS = {"fprop": (1.25, 4.0), "dgrad": (4.0, 0.0), "wgrad": (2.0, 0.0)}
MASKED = 1.5
#: The same of lanes that have vectors (3x3 to 7x7, sm_90).
VECTOR_INSTRUCTIONS, VECTOR_MASKED = (1.1, 4.5), 1.1
#: Registers of a thread beside what `held` counts: addresses, masks and the loop's (sm_90); the
#: second where lanes have planes of their own, and no input gradient with a stride.
OTHER_REGISTERS = (20, 32)
#: Most values of a thread, see `held`, of a weight gradient that loads a step ahead within
#: MAX_REGISTERS.
HELD_AHEAD = 96
#: Most taps that NVIDIA's compiler keeps in the 63 uniform registers, if all lanes have the same
#: plane and sums are in float32.
UNIFORM_TAPS = 49


@dataclass(frozen=True)
class RowsTile:
    """Outputs of one program, how its lanes share them, and the launch options.

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
        is done with this one. All with which as many programs fit are allowed. For sm_100 there is
        no limit: with one, ptxas spills 8 to 88 bytes that it does not spill by itself.
        """
        if problem.device.arch == "100":
            return None
        return self._registers(problem)

    def _registers(self, problem: Problem) -> int | None:
        """Registers of a thread with a limit; None for tiles that have none."""
        if self.X_ALIGN > 1:
            own_planes = self.BLOCK_C > 1 and not is_strided_gradient(problem)
            other = OTHER_REGISTERS[own_planes] * (1 + problem.layout.int64)
            other += self._more_registers(problem)
            if problem.correlated.padding_mode != "zeros":  # single pixels, each where it is folded
                other += 4 * columns_beside(problem, self.LANE_Q, 1)
                other += self._of_dilated_column(problem)
            held = problem.words * (self.held(problem) + other)
            room = REGISTERS // (32 * self.num_warps)
            programs = max(1, room // (cdiv(held, 8) * 8))
            return min(ALL_REGISTERS, room // programs // 8 * 8)
        if problem.op != "wgrad":
            return None
        across = problem.layout.channels_last and self.LANE_Q > 1
        return MAX_REGISTERS if not across or self._fits_ahead(problem) else None

    def _fits_ahead(self, problem: Problem) -> bool:
        """Whether a weight gradient loads a step ahead (see kernels/rows.py) within MAX_REGISTERS.

        Three programs of a 7x7 window then fit where two did, and do not spill (sm_90).
        """
        g = problem.geometry
        ahead = self.STEP_P == 1 and {g.stride, g.dilation} == {(1, 1)}
        plain = not problem.layout.int64 and g.padding_mode == "zeros" and problem.words == 1
        return ahead and plain and self.BLOCK_K == 1 and self.held(problem) <= HELD_AHEAD

    def _more_registers(self, problem: Problem) -> int:
        """Registers that some tiles of vectors need besides; by 240 drawn plans (sm_90)."""
        g, e = problem.correlated, extents(problem)
        beside = pieces_beside(problem, self.LANE_Q)[0]
        if clear_tiles(problem, 1, self.BLOCK_Q, self.STEP_P)[1] and self.is_full():
            in_parts = self.Y_ALIGN < self.LANE_Q and self.Y_ALIGN * problem.dtype.itemsize < 16
            return 5 * (e.reduced - 1) + 8 * in_parts
        if self.BLOCK_C > 1:
            loads, folded = self._rows(problem) * (1 + beside), g.padding_mode != "zeros"
            return max(0, loads - 8) + 2 * beside * folded + 5 * (e.reduced - 1)
        if {g.stride, g.dilation} == {(1, 1)} and e.reduced * self.BLOCK_K == 1:
            across = columns_beside(problem, self.LANE_Q, 1)
            return 8 * (self.STEP_P * across >= 16) + 16 * (self.LANE_Q == 2 <= across)
        # Masked loads of the next step come before all arithmetic of this one, and taps leave the
        # uniform registers to addresses and masks.
        taps = row_macs(problem) * self.BLOCK_K
        return 8 + self._loaded(problem) + (taps if taps <= UNIFORM_TAPS else 0)

    def _of_dilated_column(self, problem: Problem) -> int:
        """Registers for dilated windows of one column over folded rows of several channels.

        Taps leave the uniform registers, and half of the open rows' sums are held twice: at most 19
        more than needed in 12 builds of 5x1 and 7x1 (sm_90).
        """
        g, e = problem.correlated, extents(problem)
        beside = columns_beside(problem, self.LANE_Q, 1)
        if beside or g.dilation[0] == 1 or e.reduced == 1 or self.BLOCK_C > 1:
            return 0
        return row_macs(problem) * self.BLOCK_K + e.open // 2 * self.BLOCK_K * self.LANE_Q

    def _rows(self, problem: Problem) -> int:
        """Input rows of a step of a tile of vectors, of all channels."""
        stride = 1 if is_strided_gradient(problem) else problem.geometry.stride[0]
        return self.STEP_P * stride * extents(problem).reduced

    def _loaded(self, problem: Problem) -> int:
        """Words of a lane's vectors, and beside them, that a step loads."""
        word = max(1, 4 // problem.image_bytes)
        return self._rows(problem) * (loaded_columns(self, problem) // word)

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
        registers = (self._registers(problem) or ALL_REGISTERS) * threads
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
        stride, dilation = g.stride[1], g.dilation[1]
        loaded = min(g.stride[0], g.R)  # input rows for one output row
        columns = {q * stride + s * dilation for q in range(self.LANE_Q) for s in range(g.S)}
        rows = (e.open + self.STEP_P + in_flight) * self.BLOCK_K * self.LANE_Q * e.row
        own_weights = gradient or self.BLOCK_C > 1
        return taps * (vector if own_weights else 1) + (rows + len(columns) * loaded) * vector

    def _held_of_vectors(self, problem: Problem) -> int:
        """`held` of a tile whose lanes have vectors: the next step's rows are loaded meanwhile."""
        e, taps = extents(problem), row_macs(problem) * self.BLOCK_K
        loaded = self._loaded(problem)
        pixels = self.X_ALIGN + columns_beside(problem, self.LANE_Q, 1)
        if problem.op == "wgrad":  # rows of dy, and words of the next ones, beside the sums
            row = self.BLOCK_K * self.LANE_Q
            words = cdiv(row * problem.dtype.itemsize, 4) // problem.words
            return taps + loaded + pixels + (e.open + self.STEP_P) * row + self.STEP_P * words
        sums = (e.open + self.STEP_P) * self.BLOCK_K * self.LANE_Q * e.row
        added = self.LANE_Q * problem.layout.heavy_epilogue
        uniform = self.BLOCK_C == 1 and problem.words == 1 and taps <= UNIFORM_TAPS
        return (0 if uniform else taps) + loaded + pixels + sums + added

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        if self.X_ALIGN > 1 and plan.op != "wgrad":
            return self._vector_work(plan, problem)
        g, walk = problem.geometry, walk_of(self, problem)
        pixel, itemsize = problem.image_bytes, problem.dtype.itemsize
        wgrad, strided = plan.op == "wgrad", is_strided_gradient(problem)
        strips = plan.split_strips if wgrad else 1
        stride, dilation = g.stride[1], g.dilation[1]
        window = min(g.S, (g.S - 1) * dilation + 1)
        # Shifts of a row are loads from L1 of what L2 delivers once.
        shifts = window if self.LANE_Q == 1 or strided else (self.LANE_Q - 1) * stride + window
        fresh = 1 if strided else self.LANE_Q * stride
        if self.X_ALIGN > 1:
            shifts = loaded_columns(self, problem)
        dy = self.BLOCK_P * self.BLOCK_Q * self.BLOCK_C * self.BLOCK_K * itemsize if wgrad else 0
        loads = strips * (walk.loads * pixel + dy)
        in_l1: float = loads
        if self.X_ALIGN == 1:
            in_l1 = strips * (walk.loads + dy / itemsize) * self._line_bytes(problem)
        from_l2 = strips * (walk.loads * pixel * min(1.0, fresh / shifts) + dy)
        macs, threads = strips * walk.macs, problem.threads(self)
        mac, output = INSTRUCTIONS["fprop" if plan.turned else plan.op]
        computed: float = walk.outputs
        masked = MASKED if plan.interior == "none" else 1.0
        if self.X_ALIGN > 1:  # of a weight gradient, for each element of dy
            (mac, output), computed = VECTOR_INSTRUCTIONS, macs / row_macs(problem)
            masked = VECTOR_MASKED if plan.interior == "none" else 1.0
        if wgrad and problem.layout.channels_last and self.LANE_Q > 1:
            masked = 1.0  # counted with masks: 2.03 for 7x7
        # Lanes without columns take part in the instructions of the others.
        lanes = threads if self.X_ALIGN == 1 else self.lanes()
        instructions = masked * (mac * macs + output * computed) / lanes
        ahead = self.X_ALIGN > 1 or not wgrad or self._fits_ahead(problem)
        return Work(
            plan.grid,
            threads,
            device_bytes(problem, plan.grid, g.R * g.S * g.group_C),
            from_l2,
            in_l1,
            macs,
            "float64" if problem.dtype == torch.float64 else "fma",
            instructions,
            self.resident(problem),
            outputs=walk.outputs,
            steps=walk.steps * strips,
            loaded_bytes=loads,
            stalls=0 if ahead else walk.steps * strips,
            operands="ahead" if self.X_ALIGN > 1 else "registers",
        ).with_partials(partial_bytes(plan, problem))

    def _line_bytes(self, problem: Problem) -> float:
        """Bytes that L1 reads for a load of one lane: of neighbouring channels, or columns."""
        pixel, stride = problem.image_bytes, problem.geometry.stride[1]
        if problem.layout.channels_last:
            return line_bytes(self.BLOCK_C, pixel)
        return line_bytes(self.BLOCK_Q // self.LANE_Q, stride * pixel)

    def _vector_work(self, plan: Plan, problem: Problem) -> Work:
        """`work` of a tile whose lanes have vectors."""
        g, e, threads = problem.geometry, extents(problem), problem.threads(self)
        steps = cdiv(self.BLOCK_P + e.open, self.STEP_P)
        rows, pixel = steps * self.STEP_P, problem.image_bytes
        outputs = self.lanes() * self.LANE_Q * self.BLOCK_K * e.row
        added = rows * outputs
        masked = 1.0 if plan.interior == "all" else VECTOR_MASKED
        if self.STEP_P == 1:  # rows of padding are passed by
            added = min(rows, e.rows if self.BLOCK_P >= e.rows else rows) * outputs
        macs = added // e.row * row_macs(problem)
        mac, output = VECTOR_INSTRUCTIONS
        instructions = masked * (mac * macs + output * rows * outputs) / self.lanes()
        own = self.X_ALIGN * pixel
        beside = (loaded_columns(self, problem) - self.X_ALIGN) * pixel
        lanes = self.lanes() * steps * self._rows(problem)
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
            outputs=self.BLOCK_P * self.BLOCK_Q * self.BLOCK_C * self.BLOCK_K * e.row,
            steps=steps,
            loaded_bytes=lanes * (own + beside),
            operands="ahead",
        )


class Walk(NamedTuple):
    """Work of one program, including rows that it reads only for those of its tile.

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
    (stride_h, stride_w), dil_w = g.stride, g.dilation[1]
    lanes = tile.BLOCK_Q // tile.LANE_Q * tile.BLOCK_C
    steps = cdiv(tile.BLOCK_P + e.open, tile.STEP_P)
    rows = steps * tile.STEP_P
    columns = tile.BLOCK_Q * tile.BLOCK_C * tile.BLOCK_K
    macs = rows * columns * row_macs(problem)
    if is_strided_gradient(problem):
        loads = lanes * rows * e.reduced * (tile.LANE_Q + gradient_reads(g, 1)[1] - 1)
        return Walk(tile.BLOCK_P * columns * e.row, loads, macs, steps)
    window = min(g.S, (g.S - 1) * dil_w + 1)
    loaded = (tile.LANE_Q - 1) * stride_w + window
    if tile.X_ALIGN > 1:
        loaded = loaded_columns(tile, problem)
    loads = lanes * rows * stride_h * e.reduced * loaded
    if problem.op == "wgrad":
        return Walk(tile.BLOCK_C * tile.BLOCK_K * e.reduced * g.R * g.S, loads, macs, steps)
    return Walk(tile.BLOCK_P * columns, loads, macs, steps)


def loaded_columns(tile: RowsTile, problem: Problem) -> int:
    """Columns of a row that a lane with vectors loads, those of pieces beside them included."""
    return tile.X_ALIGN + math.prod(pieces_beside(problem, tile.LANE_Q))


def interior(tile: RowsTile, problem: Problem) -> str:
    """Which tiles run without masks: "all"; "some", if a quarter can; else "none"."""
    if tile.X_ALIGN > 1 and not tile.is_full():
        return "none"
    inside = total = 1
    for axis, block in enumerate((tile.BLOCK_P, tile.BLOCK_Q)):
        count, clear = clear_tiles(problem, axis, block, tile.STEP_P)
        total *= count
        inside *= clear
    full = extents(problem).planes % tile.BLOCK_C == 0
    if inside == total and full:
        return "all"
    return "some" if 4 * inside >= total else "none"
