"""Columns kernels: windows too large for rows kernels, multiplied exactly: see fprop_columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch

from ..geometry import Geometry
from .cost import (
    REGISTERS,
    Work,
    device_bytes,
    is_launchable,
    line_bytes,
    partial_bytes,
    splits_that_fill,
)
from .device import ALL_REGISTERS, MAX_REGISTERS, Device
from .integers import cdiv, power_of_two, row_block
from .problem import Plan, Problem

#: Rows of a column that a lane sums, and input rows that are loaded together: ROWS of the kernel.
BLOCK_P, ROWS = 8, 8
#: Largest step down the image: rows that reach no output of a tile through some tap are unrolled.
MAX_STRIDE = 4
#: Fewest taps of an input gradient with a stride: below, a phase has too few to be worth a launch.
MIN_TAPS_IN_PHASES = 50
#: Threads of a program, and elements of a row of outputs that each has.
THREADS, PER_THREAD = 128, 4
#: Registers of a thread with four elements: 110 to 128 (sm_90, Triton 3.7.1).
HELD = 128
#: Most rows and columns of taps of one program of a weight gradient: 8 x 8 take 254 registers and
#: spill where there is a stride, 8 x 4 take 128 to 160 (sm_90, Triton 3.7.1).
TAPS_R, TAPS_S = 8, 4
#: Fewest strips of a split: what is added up last then takes a tenth of the instructions at most.
MIN_SPLIT_STRIPS = 16
#: Instructions with which the lanes of a program add up a tap (sm_90, Triton 3.7.1).
LAST_SUM = 20
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
        """Programs that cover all results, of every part."""
        return sum(
            cdiv(g.N, self.BLOCK_N)
            * cdiv(g.K, self.BLOCK_K)
            * cdiv(g.P, self.BLOCK_P)
            * cdiv(g.Q, self.BLOCK_Q)
            for g in parts(problem)
        )

    @property
    def planes(self) -> int:
        """Planes of one program."""
        return self.BLOCK_N * self.BLOCK_K

    def strips(self, problem: Problem) -> int:
        """Passes of a program's loops: columns of taps, of every channel and step of rows."""
        g = walked(problem)
        return g.group_C * g.S * cdiv(self.rows(problem), ROWS)

    def rows(self, problem: Problem) -> int:
        """Input rows that a tile reads."""
        g = walked(problem)
        return (self.BLOCK_P - 1) * g.stride[0] + g.R

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
        return {"turned": problem.op == "dgrad"}

    def values(self, problem: Problem) -> int:
        """Sums and pixels of a thread for each of its elements in a row of outputs."""
        return self.BLOCK_P + ROWS

    def others(self, problem: Problem) -> Iterator[ColumnsTile]:
        """Tiles of other extents."""
        g = walked(problem)
        sizes = [2**i for i in range(8)]
        planes = [(n, 1) for n in sizes if n < 2 * g.N and not g.per_sample]
        planes += [(1, k) for k in sizes[1:] if k < 2 * g.K]
        for p, q, (n, k) in itertools.product((4, 8, 16), [2**i for i in range(2, 11)], planes):
            yield replace(self, BLOCK_P=p, BLOCK_Q=q, BLOCK_N=n, BLOCK_K=k)

    def loads(self, problem: Problem) -> tuple[float, float]:
        """Pixels and taps that a thread loads for one channel, whether inside the image or not."""
        g, rows, threads = walked(problem), self.rows(problem), problem.threads(self)
        pixels = rows * g.S * self.BLOCK_Q * self.planes / threads
        lead = rows - g.R
        taps = cdiv(rows, ROWS) * lead + rows  # of one column and plane, at most
        each = 1.0  # planes of a thread with filters of their own
        if self.BLOCK_K > 1 and not problem.layout.channels_last:
            each = max(each, self.BLOCK_K * self.BLOCK_Q / threads)
        return pixels, taps * g.S * each

    def _line_bytes(self, problem: Problem) -> float:
        """Bytes that L1 reads for a pixel of one lane: of neighbouring channels, or columns."""
        if problem.layout.channels_last:
            return line_bytes(self.planes, problem.image_bytes)
        return line_bytes(self.BLOCK_Q, walked(problem).stride[1] * problem.image_bytes)

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch, whose code has three loops."""
        g, threads, itemsize = walked(problem), problem.threads(self), problem.dtype.itemsize
        pixels, taps = self.loads(problem)
        outputs = self.BLOCK_P * self.BLOCK_Q * self.planes
        macs = outputs * g.R * g.S * g.group_C
        convert = CONVERT if itemsize == 2 else 0
        inside = g.W >= 2 * self.BLOCK_Q * g.stride[1]  # half of the tiles have no masks
        instructions = pixels * (PIXEL + convert + MASK / (2 if inside else 1))
        instructions += taps * (TAP + convert) + self.strips(problem) / g.group_C * COLUMN
        columns = (self.BLOCK_Q - 1) * g.stride[1] + (g.S - 1) * g.dilation[1] + 1
        planes = self.BLOCK_N * cdiv(self.BLOCK_K, g.group_K)
        launches = len(parts(problem))
        # Each phase of an input gradient reads dy, and writes to every row of sectors of dx.
        again = (launches - 1) * problem.read_bytes[0]
        if launches > 1 and not problem.layout.channels_last:
            strided = problem.geometry.stride[1] - 1
            again += strided * problem.geometry.x_numel * itemsize
        return Work(
            plan.grid,
            threads,
            device_bytes(problem, plan.grid, 1) + again,
            self.rows(problem) * columns * planes * g.group_C * problem.image_bytes,
            g.group_C * threads * (pixels * self._line_bytes(problem) + taps * 4),
            macs,
            "float64" if problem.dtype == torch.float64 else "fma",
            macs / threads + g.group_C * instructions,
            resident(problem.device, threads),
            launches=launches,
            outputs=outputs,
            steps=self.strips(problem),
            loaded_bytes=g.group_C * threads * (pixels * problem.image_bytes + taps * itemsize),
        )


@dataclass(frozen=True)
class ColumnsGradTile:
    """One program's TAPS_R x TAPS_S taps of a channel, and the strips that it sums.

    Attributes:
        TAPS_R, TAPS_S: rows and columns of taps, all of which each lane has.
        BLOCK_P, BLOCK_Q: rows and columns of dy in a strip; lanes share the columns.
        BLOCK_N: samples in a strip, which lanes share; 1 if BLOCK_K is not.
        BLOCK_K: filters, which lanes share.
        num_warps, num_stages: of the launch.
    """

    TAPS_R: int
    TAPS_S: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_N: int = 1
    BLOCK_K: int = 1
    num_warps: int = 4
    num_stages: int = 2

    family: ClassVar[str] = "columns"
    partials: ClassVar[int] = 1

    def programs(self, problem: Problem) -> int:
        """Programs that cover all taps, before they are split."""
        g = problem.geometry
        taps = cdiv(g.R, self.TAPS_R) * cdiv(g.S, self.TAPS_S)
        return problem.banks * cdiv(g.K, self.BLOCK_K) * g.group_C * taps

    def strips(self, problem: Problem) -> int:
        """Strips that the sum of one tap has."""
        g = problem.geometry
        rows, columns = cdiv(g.P, self.BLOCK_P), cdiv(g.Q, self.BLOCK_Q)
        return rows * columns * cdiv(problem.samples, self.BLOCK_N)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: K pixels of a strip."""
        return self.TAPS_R * self.TAPS_S, self.BLOCK_K, self.BLOCK_P * self.BLOCK_Q * self.BLOCK_N

    def splits(self, problem: Problem) -> int:
        """Parts that the strips are best dealt out to."""
        return splits_that_fill(self, problem, cdiv(self.strips(problem), MIN_SPLIT_STRIPS))

    def shared_bytes(self, problem: Problem) -> int:
        """Shared memory of a program: next to none, for the last sum."""
        return 0

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to, see device.py."""
        return ALL_REGISTERS if problem.layout.int64 or problem.words > 1 else MAX_REGISTERS

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem) and problem.op == "wgrad"

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides: none."""
        return {}

    def held(self, problem: Problem) -> float:
        """32-bit words of a thread for one tap."""
        lanes = self.BLOCK_Q * self.BLOCK_N * self.BLOCK_K
        return lanes * problem.words / problem.threads(self)

    def values(self, problem: Problem) -> int:
        """Sums and pixels of a thread for each of its lanes."""
        return self.TAPS_R * self.TAPS_S + self.BLOCK_P + self.rows(problem)

    def others(self, problem: Problem) -> Iterator[ColumnsGradTile]:
        """Tiles of other extents, with as many filters."""
        sizes = [2**i for i in range(8)]
        samples = sizes if self.BLOCK_K == 1 else [1]
        extents = itertools.product((4, 6, 8), (2, 4, 8), (4, 8), sizes, samples)
        for r, s, p, q, n in extents:
            if n < 2 * problem.samples:
                yield replace(self, TAPS_R=r, TAPS_S=s, BLOCK_P=p, BLOCK_Q=q, BLOCK_N=n)

    def rows(self, problem: Problem) -> int:
        """Rows of x from the first to the last that a strip reads."""
        g = problem.geometry
        return (self.BLOCK_P - 1) * g.stride[0] + (self.TAPS_R - 1) * g.dilation[0] + 1

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch, whose code has two loops."""
        g, threads, itemsize = problem.geometry, problem.threads(self), problem.dtype.itemsize
        lanes = self.BLOCK_Q * self.BLOCK_N * self.BLOCK_K
        taps, strips = self.TAPS_R * self.TAPS_S, plan.split_strips
        macs = strips * taps * self.BLOCK_P * lanes
        dy, x = strips * self.BLOCK_P * lanes, strips * self.rows(problem) * self.TAPS_S * lanes
        columns = (self.BLOCK_Q - 1) * g.stride[1] + (self.TAPS_S - 1) * g.dilation[1] + 1
        # Rows that the strip before has read are in L1.
        rows = min(self.rows(problem), self.BLOCK_P * g.stride[0])
        fresh = strips * rows * columns * self.BLOCK_N * cdiv(self.BLOCK_K, g.group_K)
        convert = CONVERT if itemsize == 2 else 0
        inside = g.Q >= 4 * self.BLOCK_Q and g.padding_mode == "zeros"
        each = PIXEL + convert + (MASK / 2 if inside else MASK)
        across = self.BLOCK_K if problem.layout.channels_last else self.BLOCK_Q
        in_l1 = line_bytes(across, problem.image_bytes)
        return Work(
            plan.grid,
            threads,
            device_bytes(problem, plan.grid, cdiv(g.R * g.S, taps) * g.group_C),
            fresh * problem.image_bytes + dy * itemsize,
            (x + dy) * in_l1,
            macs,
            "float64" if problem.dtype == torch.float64 else "fma",
            (macs + each * (dy + x)) / threads + taps * LAST_SUM,
            resident(problem.device, threads),
            outputs=taps * self.BLOCK_K,
            steps=strips,
            loaded_bytes=x * problem.image_bytes + dy * itemsize,
            stalls=strips,
        ).with_partials(partial_bytes(plan, problem))


AnyColumnsTile: TypeAlias = ColumnsTile | ColumnsGradTile


def parts(problem: Problem) -> list[Geometry]:
    """The forward correlations that are computed, each by a launch, the largest first.

    An input gradient with a stride has one for each phase of its pixels.
    """
    g = problem.geometry
    if problem.op != "dgrad" or problem.is_turned:
        return [problem.correlated]
    rows, columns = g.phases
    found = [g.phase_gradient(phase) for phase in itertools.product(range(rows), range(columns))]
    return sorted((part.adjoint() for part in found), key=lambda part: -part.macs)


def walked(problem: Problem) -> Geometry:
    """The largest of the parts, for which the tile is chosen."""
    return parts(problem)[0]


def resident(device: Device, threads: int) -> int:
    """Programs that a multiprocessor has registers for."""
    return max(1, REGISTERS * (device.limits.lanes // 32) // (threads * HELD))


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this, in any dtype and layout."""
    g = problem.correlated
    if problem.op == "dgrad_frame" or min(g.y_numel, g.group_C) == 0:
        return False
    (stride, stride_w), (dilation, dilation_w) = g.stride, g.dilation
    if problem.op == "dgrad" and not problem.is_turned:  # every phase has taps
        most = min(g.R, MAX_STRIDE), min(g.S, MAX_STRIDE)
        return dilation == dilation_w == 1 and stride <= most[0] and stride_w <= most[1]
    return stride <= MAX_STRIDE and dilation <= (MAX_STRIDE if problem.op == "wgrad" else 1)


def tiles(problem: Problem) -> list[AnyColumnsTile]:
    """The tile that the planner may take for few channels."""
    g = problem.geometry
    in_phases = problem.op == "dgrad" and not problem.is_turned
    if not problem.has_few_channels or (in_phases and g.R * g.S < MIN_TAPS_IN_PHASES):
        return []
    return [tile_for(problem)] if is_legal(problem) else []


def tile_for(problem: Problem) -> AnyColumnsTile:
    """The tile for a problem that is_legal."""
    return _gradient_tile(problem) if problem.op == "wgrad" else _tile(problem)


def _gradient_tile(problem: Problem) -> ColumnsGradTile:
    """Taps in blocks of about one size, and lanes along a row, then over samples or channels."""
    g, lanes = problem.geometry, problem.device.limits.lanes
    taps_r, taps_s = (
        cdiv(extent, cdiv(extent, most))
        for extent, most in ((g.R, TAPS_R), (g.S, TAPS_S // problem.words))
    )
    if problem.layout.channels_last and g.K >= 16:
        block_k, block_n = min(lanes, power_of_two(g.K)), 1
        block_q = min(THREADS // block_k, power_of_two(g.Q))
    else:
        block_q, block_k = row_block(g.Q, THREADS, 16), 1
        block_n = min(THREADS // block_q, power_of_two(problem.samples))
    warps = min(4, power_of_two(cdiv(block_q * block_n * block_k, lanes)))
    rows = min(BLOCK_P, g.P)
    return ColumnsGradTile(taps_r, taps_s, rows, block_q, block_n, block_k, num_warps=warps)


def _tile(problem: Problem) -> ColumnsTile:
    """The largest tile that leaves no multiprocessor idle."""
    g, sms = walked(problem), problem.device.multiprocessors
    rows = min(BLOCK_P, g.P)
    for per_thread in (PER_THREAD, PER_THREAD // 2, 1):
        if per_thread > 1 and per_thread * problem.words > PER_THREAD:
            continue
        lanes = THREADS * per_thread
        if problem.layout.channels_last and g.K >= 16:  # lanes are channels
            across = min(lanes, 32, power_of_two(g.K))
            tile = ColumnsTile(rows, min(lanes // across, power_of_two(g.Q)), BLOCK_K=across)
        else:
            block_q = row_block(g.Q, lanes, 16)
            planes = lanes // block_q
            if g.per_sample or g.K >= 2 * g.N:
                tile = ColumnsTile(rows, block_q, BLOCK_K=min(planes, power_of_two(g.K)))
            else:
                tile = ColumnsTile(rows, block_q, BLOCK_N=min(planes, power_of_two(g.N)))
        # No more lanes than there are elements in a row of outputs.
        warps = cdiv(tile.BLOCK_Q * tile.planes, problem.device.limits.lanes)
        tile = replace(tile, num_warps=min(tile.num_warps, power_of_two(warps)))
        if tile.programs(problem) >= 2 * sms * len(parts(problem)):
            break
    return tile


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (ColumnsTile, ColumnsGradTile)


def neighbours(tile: AnyColumnsTile, problem: Problem) -> Iterator[AnyColumnsTile]:
    """The tiles that a tuner tries: other blocks of taps, rows, columns and planes."""
    return (other for other in tile.others(problem) if fits(other, problem))


def fits(tile: AnyColumnsTile, problem: Problem) -> bool:
    """Whether a tile does not spill, by count: its sums, and the pixels of a step."""
    if not is_launchable(tile, problem):
        return False
    held = tile.held(problem)
    return held >= problem.words and held * tile.values(problem) <= HELD
