"""A separable window in one pass, and whether that is faster than other ways: fprop_separable.

A problem here is the forward correlation of every plane with whole windows R x S, but the kernel
takes R + S taps of each: it is no family of those that `choose` compares.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from . import choose
from .cost import REGISTERS, THREADS, Work, line_bytes
from .device import ALL_REGISTERS
from .integers import cdiv, power_of_two
from .measured import kernel_key
from .problem import Plan, Problem
from .rows_walk import columns_beside, vector_of
from .times import seconds_of, times_of

#: Most values of a thread, see SeparableTile.held, with which no kernel spills (sm_80 to sm_100,
#: Triton 3.6 and 3.7.1).
MAX_HELD = 200
#: Registers that take pixels of 8 or 16 bits out of their words (sm_90, Triton 3.7.1).
UNPACKING = 8
#: Registers of a thread: for each of those values, and besides (sm_90, Triton 3.7.1).
PER_VALUE, OTHER_REGISTERS = 1.2, 22
#: Most taps that NVIDIA's compiler keeps in the 63 uniform registers.
UNIFORM_TAPS = 48
#: Bytes of pixels that a multiprocessor should have under way: as much as three terabytes a second
#: deliver to one of 132 in 0.45 microseconds.
UNDER_WAY = 10_000
#: Share of the time of the other ways below which one pass is taken.
MARGIN = 0.85
#: Warps of a multiprocessor below which fewer are no faster: assumed.
LEAST_WARPS = 8
#: Columns of a lane in channels_last, where lanes are planes, and fewest planes for that.
LANE_Q, MIN_PLANES = 4, 8
#: Lane instructions for each product, each load, and each step of rows (sm_90, Triton 3.7.1); tiles
#: at a border take AT_BORDER times as many.
PER_PRODUCT, PER_LOAD, PER_STEP, AT_BORDER = 1.35, 2, 25, 1.6


@dataclass(frozen=True)
class SeparableTile:
    """Outputs of one program, and how its lanes share them.

    Attributes:
        AHEAD: input rows of which a lane has loaded its own columns before it uses them.
        the others: as in RowsTile.
    """

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_C: int
    STEP_P: int = 1
    LANE_Q: int = 1
    X_ALIGN: int = 1
    Y_ALIGN: int = 1
    AHEAD: int = 1
    num_warps: int = 1
    num_stages: int = 2

    family: ClassVar[str] = "separable"
    partials: ClassVar[int] = 1

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results."""
        g = problem.geometry
        planes = cdiv(g.N * g.groups, self.BLOCK_C)
        return planes * cdiv(g.P, self.BLOCK_P) * cdiv(g.Q, self.BLOCK_Q)

    def strips(self, problem: Problem) -> int:
        """Parts of the reduction: one."""
        return 1

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: STEP_P rows of a tile."""
        return self.STEP_P * self.BLOCK_Q * self.BLOCK_C, 1, 1

    def splits(self, problem: Problem) -> int:
        """Parts of the reduction: one."""
        return 1

    def shared_bytes(self, problem: Problem) -> int:
        """Shared memory of a program: none."""
        return 0

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides: none."""
        return {}

    def lanes(self) -> int:
        """Lanes of a program, with those idle."""
        if self.X_ALIGN == 1:
            return self.BLOCK_Q // self.LANE_Q * self.BLOCK_C
        return power_of_two(self.BLOCK_Q // self.LANE_Q * self.BLOCK_C)

    def held(self, problem: Problem) -> int:
        """32-bit values of a thread: open sums, pixels of this row and of those loaded, taps."""
        g, word = problem.geometry, max(1, 4 // problem.image_bytes)
        taps = (g.R + g.S) * g.group_K
        uniform = self.BLOCK_C == 1 and problem.words == 1 and taps <= UNIFORM_TAPS
        sums = (g.R - 1 + self.STEP_P) * self.LANE_Q * g.group_K
        pixels, loaded = self.LANE_Q + g.S - 1, self.STEP_P * (self.LANE_Q + g.S - 1)
        if self.X_ALIGN > 1:
            loaded = self.AHEAD * cdiv(self.LANE_Q, word)
            loaded += self.STEP_P * cdiv(self._beside(problem), word)
            loaded += UNPACKING * (word > 1)
        each = max(1, self.lanes() // problem.threads(self))
        return problem.words * ((0 if uniform else taps) + each * (sums + pixels + loaded))

    def resident(self, problem: Problem) -> int:
        """Programs that a multiprocessor has room for."""
        threads, lanes = problem.threads(self), problem.device.limits.lanes
        registers = min(ALL_REGISTERS, int(PER_VALUE * self.held(problem)) + OTHER_REGISTERS)
        room = REGISTERS * (lanes // 32) // (cdiv(registers, 8) * 8 * threads)
        return max(1, min(room, THREADS // threads, 32))

    def side_by_side(self, problem: Problem) -> int:
        """Programs that the busiest multiprocessor runs at once."""
        busiest = cdiv(self.programs(problem), problem.device.multiprocessors)
        return max(1, min(self.resident(problem), busiest))

    def under_way(self, problem: Problem) -> int:
        """Bytes that the programs of a multiprocessor have under way from memory."""
        rows = self.AHEAD if self.X_ALIGN > 1 else self.STEP_P
        return self.side_by_side(problem) * self.lanes() * self.LANE_Q * rows * problem.image_bytes

    def _beside(self, problem: Problem) -> int:
        """Columns that a lane with vectors loads beside its own."""
        return columns_beside(problem, self.LANE_Q, self.LANE_Q) * self.LANE_Q

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        g, threads, pixel = problem.geometry, problem.threads(self), problem.image_bytes
        steps = cdiv(self.BLOCK_P + g.R - 1, self.STEP_P)
        rows = steps * self.STEP_P * self.lanes()  # of lanes
        products = self.LANE_Q * (g.R + g.S) * g.group_K
        if self.X_ALIGN > 1:
            columns = self.LANE_Q + self._beside(problem)
            loads, in_l1 = columns / self.LANE_Q, float(columns * pixel)
        else:
            columns = loads = self.LANE_Q + g.S - 1
            in_l1 = columns * self._line_bytes(problem)
        instructions = PER_PRODUCT * products + PER_LOAD * loads + PER_STEP / self.STEP_P
        instructions *= 1 + (AT_BORDER - 1) * self._at_border(problem)
        # Few warps do not hide each other's waits: then fewer of them are no faster.
        warps = self.side_by_side(problem) * self.num_warps
        instructions *= max(1.0, LEAST_WARPS / warps)
        row = instructions * warps / problem.device.rates.issue  # clocks, of all warps
        ahead = self.AHEAD if self.X_ALIGN > 1 else self.STEP_P
        return Work(
            plan.grid,
            threads,
            g.x_numel * pixel + g.y_numel * problem.dtype.itemsize,
            rows * self.LANE_Q * pixel,
            rows * in_l1,
            rows * products,
            "float64" if problem.dtype == torch.float64 else "fma",
            rows * instructions / threads,
            self.resident(problem),
            outputs=self.BLOCK_P * self.BLOCK_Q * self.BLOCK_C * g.group_K,
            steps=steps,
            loaded_bytes=rows * columns * pixel,
            stalls=round(steps * self.STEP_P * max(0.0, 1 / ahead - row / problem.device.latency)),
            operands="ahead",
        )

    def _at_border(self, problem: Problem) -> float:
        """Share of tiles that are not wholly inside of the image."""
        g = problem.geometry
        tiles = (cdiv(g.P, self.BLOCK_P), cdiv(g.Q, self.BLOCK_Q))
        inside = max(0, tiles[0] - 2) * max(0, tiles[1] - 2)
        return 1 - inside / (tiles[0] * tiles[1])

    def _line_bytes(self, problem: Problem) -> float:
        """Bytes that L1 reads for a load of one lane: of neighbouring channels, or columns."""
        pixel = problem.image_bytes
        if not problem.layout.channels_last:
            return line_bytes(self.BLOCK_Q // self.LANE_Q, self.LANE_Q * pixel)
        if self.BLOCK_C > 1:
            return line_bytes(self.BLOCK_C, pixel)
        return line_bytes(self.BLOCK_Q, problem.geometry.C * pixel)


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this, in some dtype and layout: as a filter does."""
    g = problem.geometry
    plain = problem.op == "fprop" and g.y_numel > 0 and {g.given_stride, g.dilation} == {(1, 1)}
    pads = [pad for sides in g.padding for pad in sides]
    inside = g.padding[0][0] < g.R and g.padding[1][0] < g.S and min(pads) >= 0
    return plain and inside and g.groups == g.C and not g.flip


def plan(problem: Problem) -> Plan | None:
    """The fastest plan of one pass, whatever other ways take; None where each would spill."""
    plans = [choose.plan_with_tile(problem, tile) for tile in tiles(problem)]
    return min(plans, key=lambda plan: seconds_of_pass(plan, problem), default=None)


def seconds_of_pass(plan: Plan, problem: Problem) -> float:
    """The predicted time of a plan of one pass.

    The kernel has not been measured: it counts as slow as fprop_rows, which walks down as it does.
    """
    key = kernel_key("fprop_rows", problem.layout.channels_last)
    slowdown = problem.device.slowdown("rows", key)
    return slowdown * times_of(plan.tile.work(plan, problem), problem.device).predicted


@functools.lru_cache(maxsize=1024)
def faster_plan(problem: Problem) -> Plan | None:
    """The plan of one pass; None where two passes or one R x S window are as fast, or faster."""
    found = plan(problem) if is_legal(problem) else None
    if found is None:
        return None
    at_once = choose.plan(problem)
    others = [seconds_of(at_once, problem)]
    others.append(sum(seconds_of(choose.plan(part), part) for part in two_passes(problem)))
    return found if seconds_of_pass(found, problem) < MARGIN * min(others) else None


def two_passes(problem: Problem) -> tuple[Problem, Problem]:
    """The pass across, whose result has the dtype of y, and the pass down."""
    g, layout = problem.geometry, problem.layout
    rows, columns = g.padding
    across = replace(g, R=1, padding=((0, 0), columns))
    down = replace(g, S=1, padding=(rows, (0, 0)))
    between = replace(layout, x_align=layout.y_align, x_boxes=layout.y_boxes, converts=False)
    return (
        replace(problem, geometry=across),
        replace(problem, geometry=down, layout=between, x_bytes=0),
    )


def tiles(problem: Problem) -> list[SeparableTile]:
    """The tiles to compare: of each number of columns of a lane, and of several heights."""
    if not is_legal(problem):
        return []
    found = []
    for tile in _across(problem):
        for step in (1, 2) if problem.geometry.P > 1 else (1,):
            for high in _heights(replace(tile, STEP_P=step), problem):
                ahead = _with_rows_ahead(high, problem)
                found += [ahead] if ahead.held(problem) <= MAX_HELD else []
    return found


def _across(problem: Problem) -> Iterator[SeparableTile]:
    """Tiles of one row, for programs of a warp."""
    g, lanes = problem.geometry, problem.device.limits.lanes
    planes = g.N * g.groups
    for lane_q in (8, 4, 2):
        x_align, y_align = vector_of(problem, lane_q)
        if x_align == 1:
            continue
        width = cdiv(g.Q, lane_q)
        beside = 1 if width >= lanes else min(planes, lanes // width)
        vectors = width if beside > 1 else min(lanes, power_of_two(width))
        yield SeparableTile(1, vectors * lane_q, beside, 1, lane_q, x_align, y_align)
    if problem.layout.channels_last and g.groups >= MIN_PLANES:
        block_c = min(lanes, power_of_two(planes))
        lane_q = min(LANE_Q, power_of_two(g.Q))
        yield SeparableTile(1, lanes // block_c * lane_q, block_c, 1, lane_q)
    else:
        block_q = min(lanes, power_of_two(g.Q))
        yield SeparableTile(1, block_q, min(lanes // block_q, power_of_two(planes)))


def _with_rows_ahead(tile: SeparableTile, problem: Problem) -> SeparableTile:
    """The tile with the fewest rows ahead that keep UNDER_WAY bytes under way."""
    for rows in (1, 2, 3, 4, 6, 8):
        if rows >= tile.STEP_P:
            tile = replace(tile, AHEAD=rows)
        if tile.under_way(problem) >= UNDER_WAY or tile.X_ALIGN == 1:
            break
    return tile


def _heights(tile: SeparableTile, problem: Problem) -> Iterator[SeparableTile]:
    """The tile with heights from 4 rows to 256, in whole steps."""
    g = problem.geometry
    for parts in sorted(
        {cdiv(g.P, rows) for rows in (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)}
    ):
        rows = cdiv(g.P, parts)
        rows = cdiv(rows + g.R - 1, tile.STEP_P) * tile.STEP_P - (g.R - 1)
        yield replace(tile, BLOCK_P=max(1, rows))


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (SeparableTile,)
