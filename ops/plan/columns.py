"""Columns kernels: windows too large for rows kernels, multiplied exactly: see fprop_columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .cost import REGISTERS, Code, Work, device_bytes, is_launchable
from .device import Device
from .integers import cdiv, power_of_two
from .problem import Plan, Problem

#: Rows of a column that a lane sums, and input rows that are loaded together: ROWS of the kernel.
BLOCK_P, ROWS = 8, 8
#: Largest step down the image: rows that reach no output of a tile through some tap are unrolled.
MAX_STRIDE = 4
#: Threads of a program, and elements of a row of outputs that each has.
THREADS, PER_THREAD = 128, 4
#: Registers of a thread with four elements: 110 to 128 (sm_90, Triton 3.7.1).
HELD = 128
#: Lane instructions for a pixel's load, beside the multiply-adds; for its mask; for a tap's load;
#: for a column of taps; and for the conversion of each that is not float32 (sm_90, Triton 3.7.1).
PIXEL, MASK, TAP, COLUMN, CONVERT = 2, 2, 1, 13, 1


@dataclass(frozen=True)
class ColumnsTile:
    """One program's outputs: BLOCK_P rows and BLOCK_Q columns of BLOCK_N or BLOCK_K planes.

    Attributes:
        BLOCK_P: output rows, all of which each lane has.
        BLOCK_Q: output columns, which lanes share.
        BLOCK_N: samples, which lanes share, of one filter; 1 if BLOCK_K is not.
        BLOCK_K: filters, which lanes share, of one sample.
        num_warps, num_stages: of the launch.
    """

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_N: int = 1
    BLOCK_K: int = 1
    num_warps: int = 4
    num_stages: int = 2

    family: ClassVar[str] = "columns"
    partials: ClassVar[int] = 1

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results."""
        g = problem.correlated
        planes = cdiv(g.N, self.BLOCK_N) * cdiv(g.K, self.BLOCK_K)
        return planes * cdiv(g.P, self.BLOCK_P) * cdiv(g.Q, self.BLOCK_Q)

    @property
    def planes(self) -> int:
        """Planes of one program."""
        return self.BLOCK_N * self.BLOCK_K

    def strips(self, problem: Problem) -> int:
        """Passes of a program's loops: columns of taps, of every channel and step of rows."""
        g = problem.correlated
        return g.group_C * g.S * cdiv(self.rows(problem), ROWS)

    def rows(self, problem: Problem) -> int:
        """Input rows that a tile reads."""
        g = problem.correlated
        return (self.BLOCK_P - 1) * g.steps(0)[0] + g.R

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: a tap of all outputs."""
        return self.BLOCK_P * self.BLOCK_Q, self.planes, 1

    def held(self, problem: Problem) -> float:
        """32-bit words of a thread in a row of the tile's outputs."""
        return self.BLOCK_Q * self.planes * problem.words / problem.threads(self)

    def splits(self, problem: Problem) -> int:
        """Parts of a reduction: one. There is no weight gradient."""
        return 1

    def shared_bytes(self, problem: Problem) -> int:
        """Shared memory of a program: none, pixels are read from L1 again and again."""
        return 0

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"turned": problem.is_turned}

    def loads(self, problem: Problem) -> tuple[float, float]:
        """Pixels and taps that a thread loads for one channel, whether inside the image or not."""
        g, rows, threads = problem.correlated, self.rows(problem), problem.threads(self)
        pixels = rows * g.S * self.BLOCK_Q * self.planes / threads
        lead = rows - g.R
        taps = cdiv(rows, ROWS) * lead + rows  # of one column and plane, at most
        each = 1.0  # planes of a thread with filters of their own
        if self.BLOCK_K > 1 and not problem.layout.channels_last:
            each = max(each, self.BLOCK_K * self.BLOCK_Q / threads)
        return pixels, taps * g.S * each

    def work(self, plan: Plan, problem: Problem, code: Code | None = None) -> Work:
        """What a launch asks of a device; `code` is not used: there are three loops."""
        g, threads, itemsize = problem.correlated, problem.threads(self), problem.dtype.itemsize
        pixels, taps = self.loads(problem)
        outputs = self.BLOCK_P * self.BLOCK_Q * self.planes
        macs = outputs * g.R * g.S * g.group_C
        convert = CONVERT if itemsize == 2 else 0
        inside = g.W >= 2 * self.BLOCK_Q * g.steps(1)[0]  # half of the tiles have no masks
        instructions = pixels * (PIXEL + convert + MASK / (2 if inside else 1))
        instructions += taps * (TAP + convert) + self.strips(problem) / g.group_C * COLUMN
        columns = (self.BLOCK_Q - 1) * g.steps(1)[0] + (g.S - 1) * g.steps(1)[1] + 1
        planes = self.BLOCK_N * cdiv(self.BLOCK_K, g.group_K)
        return Work(
            plan.grid,
            threads,
            device_bytes(problem, plan.grid, 1),
            self.rows(problem) * columns * planes * g.group_C * problem.image_bytes,
            g.group_C * threads * (pixels * problem.image_bytes + taps * 4),
            macs,
            "float64" if problem.dtype == torch.float64 else "fma",
            macs / threads + g.group_C * instructions,
            resident(problem.device, threads),
            outputs=outputs,
            steps=self.strips(problem),
            loaded_bytes=g.group_C * threads * (pixels * problem.image_bytes + taps * itemsize),
        )


def resident(device: Device, threads: int) -> int:
    """Programs that a multiprocessor has registers for."""
    return max(1, REGISTERS * (device.limits.lanes // 32) // (threads * HELD))


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this, in any dtype and layout."""
    g = problem.correlated
    if problem.op not in ("fprop", "dgrad") or (problem.op == "dgrad" and not problem.is_turned):
        return False
    stride, dilation = g.steps(0)
    return min(g.y_numel, g.group_C) > 0 and stride <= MAX_STRIDE and dilation == 1


def tiles(problem: Problem) -> list[ColumnsTile]:
    """The tile that the planner may take for few channels."""
    return [tile_for(problem)] if problem.has_few_channels and is_legal(problem) else []


def tile_for(problem: Problem) -> ColumnsTile:
    """The tile for a problem that is_legal: the largest that leaves no multiprocessor idle."""
    g, sms = problem.correlated, problem.device.multiprocessors
    rows = min(BLOCK_P, g.P)
    for per_thread in (PER_THREAD, PER_THREAD // 2, 1):
        if per_thread > 1 and per_thread * problem.words > PER_THREAD:
            continue
        lanes = THREADS * per_thread
        if problem.layout.channels_last and g.K >= 16:  # lanes are channels
            across = min(lanes, 32, power_of_two(g.K))
            tile = ColumnsTile(rows, min(lanes // across, power_of_two(g.Q)), BLOCK_K=across)
        else:
            block_q = _row_block(g.Q, lanes)
            planes = lanes // block_q
            if g.per_sample or g.K >= 2 * g.N:
                tile = ColumnsTile(rows, block_q, BLOCK_K=min(planes, power_of_two(g.K)))
            else:
                tile = ColumnsTile(rows, block_q, BLOCK_N=min(planes, power_of_two(g.N)))
        # No more lanes than there are elements in a row of outputs.
        warps = cdiv(tile.BLOCK_Q * tile.planes, problem.device.limits.lanes)
        tile = replace(tile, num_warps=min(tile.num_warps, power_of_two(warps)))
        if tile.programs(problem) >= 2 * sms:
            break
    return tile


def _row_block(columns: int, most: int) -> int:
    """Columns of a tile: the most among those that leave about the least of the last tile empty."""
    blocks = [most >> i for i in range(most.bit_length()) if most >> i >= 16]
    covered = {block: cdiv(columns, block) * block for block in blocks}
    close = [block for block, width in covered.items() if width <= 1.1 * min(covered.values())]
    return min(close[0], power_of_two(columns))


def lanes_per_output(problem: Problem) -> float:
    """Lane instructions for one output, lanes and multiprocessors without an output counted."""
    tile, sms = tile_for(problem), problem.device.multiprocessors
    plan = Plan(problem.op, tile, tile.programs(problem), problem.layout.int64)
    work = tile.work(plan, problem)
    lanes = cdiv(plan.grid, sms) * sms * work.instructions * work.threads
    return lanes / problem.correlated.y_numel


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (ColumnsTile,)


def neighbours(tile: ColumnsTile, problem: Problem) -> Iterator[ColumnsTile]:
    """The tiles that a tuner tries: other blocks of rows, columns and planes."""
    g = problem.correlated
    sizes = [2**i for i in range(8)]
    planes = [(n, 1) for n in sizes if n < 2 * g.N and not g.per_sample]
    planes += [(1, k) for k in sizes[1:] if k < 2 * g.K]
    for p, q, (n, k) in itertools.product((4, 8, 16), [2**i for i in range(2, 11)], planes):
        found = replace(tile, BLOCK_P=p, BLOCK_Q=q, BLOCK_N=n, BLOCK_K=k)
        if fits(found, problem):
            yield found


def fits(tile: ColumnsTile, problem: Problem) -> bool:
    """Whether a tile does not spill, by count: its sums, and the pixels of ROWS rows."""
    if not is_launchable(tile, problem):
        return False
    held = tile.held(problem)
    return held >= problem.words and held * (tile.BLOCK_P + ROWS) <= PER_THREAD * (BLOCK_P + ROWS)
