"""Rows kernels: windows of up to 7x7 and few channels, walked down row by row in registers.

There are two kinds of tiles. Where rows come in pieces of whole vectors (Layout.x_align), a lane
has such a vector, and the lanes of a program are counted through (plane, vector): vector_tile.
Else lanes are single columns, or planes in channels_last: tile_for. The tile itself is in
rows_tile.py, what it walks over in rows_walk.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from . import banded
from .cost import is_launchable, splits_that_fill
from .integers import cdiv, power_of_two, row_block
from .problem import Problem
from .rows_tile import LANE_Q, THREADS, RowsTile
from .rows_walk import Extents, extents, is_strided_gradient, row_macs, vector_of

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
#: Fewest groups that are lanes in channels_last: fewer neighbours are not worth a load.
MIN_GROUPS = 8
#: Bytes of a lane's vectors that are under way: with five programs of 128 threads, which is what
#: registers leave room for, 20 KB of a multiprocessor. Three terabytes a second and a microsecond
#: of latency are 20 KB for reads and writes together.
UNDER_WAY = 32
#: Most input rows of a step of several output rows: 8 spill up to 168 bytes (sm_90).
MAX_ROWS = 4
#: Threads of a multiprocessor that leave no doubt that one of them can go on; the second where a
#: program has several planes, and masks on all loads.
ROOMY_THREADS = (640, 768)
#: Most multiply-adds of a step, for all its rows are unrolled.
MAX_UNROLLED = 800
#: Threads of a multiprocessor below which it is no faster with fewer of them: with UNDER_WAY bytes
#: each, 16 KB are loaded ahead. With 384 threads, 5x5 and 7x7 windows on an H100 took 16 to 19 us
#: longer than a copy of the image, 3x3 with 512 and more five. The second is for several planes and
#: ROW_MACS multiply-adds of an output and more: rows that two programs read cost more than waiting.
LEAST_THREADS, ROW_MACS = (512, 384), 25
#: The architecture whose tiles have no register limit, see RowsTile.max_registers: ptxas then
#: spills 24 to 104 bytes of weight gradients with four rows a step, or eight columns of a plane.
UNLIMITED = "100"
#: What starting and ending a program costs, in rows. Assumed.
START_ROWS = 6


def is_legal(problem: Problem) -> bool:
    """Whether a rows kernel can compute this, in some dtype and layout."""
    g = problem.geometry
    if problem.op == "dgrad_frame" or max(g.R, g.S) > MAX_WINDOW:
        return False
    if min(g.y_numel, g.group_C) == 0 or max(*g.stride, *g.dilation) > MAX_STEP:
        return False
    e = extents(problem)
    if e.reduced > MAX_REDUCED or e.open > MAX_OPEN:
        return False
    light = replace(problem, layout=replace(problem.layout, epilogue=0))
    return _block_k(light, 1, MAX_HELD) > 0


def tiles(problem: Problem) -> list[RowsTile]:
    """The tile that the planner takes for few channels; none where another family does better."""
    wanted = problem.has_few_channels and not banded.takes_over(problem)
    tile = tile_for(problem) if wanted else None
    return [] if tile is None else [tile]


def vector_tile(problem: Problem) -> RowsTile | None:
    """The tile whose lanes have the longest vectors that a thread has room for; None: none has."""
    if problem.op == "wgrad":
        return _gradient_of_vectors(problem)
    e, layout = extents(problem), problem.layout
    room = (MAX_HELD if not layout.int64 else MAX_HELD * 3 // 4) // problem.words
    lanes = [n for n in (8, 4, 2, 1) if vector_of(problem, n)[0] > 1]
    if is_strided_gradient(problem):
        # Neighbouring lanes store neighbouring vectors, if 16 bytes hold the pixels of one.
        stored = problem.geometry.stride[1] * problem.dtype.itemsize
        lanes = [n for n in lanes if n * stored <= 16] or lanes[-1:]
    for lane_q in lanes:
        x_align, y_align = vector_of(problem, lane_q)
        for block_k in (k for k in range(min(e.filters, 8), 0, -1) if e.filters % k == 0):
            tile = RowsTile(e.rows, 0, 1, block_k, LANE_Q=lane_q, X_ALIGN=x_align, Y_ALIGN=y_align)
            tile = _with_lanes(tile, problem)
            if tile.held(problem) <= room:
                return _with_heights(_with_steps(tile, problem, room), problem)
    return None


def _gradient_of_vectors(problem: Problem) -> RowsTile | None:
    """`vector_tile` of a weight gradient; lanes of a plane are as many as a power of two."""
    e, layout = extents(problem), problem.layout
    room = (MAX_HELD if not layout.int64 else MAX_HELD * 3 // 4) // problem.words
    for lane_q in (8, 4, 2):
        x_align, y_align = vector_of(problem, lane_q)
        width = power_of_two(cdiv(e.columns, lane_q))
        lanes = min(width, THREADS)
        planes = max(1, min(THREADS // lanes, power_of_two(e.planes)))
        unlimited = problem.device.arch == UNLIMITED and planes > 1
        if x_align == 1 or (unlimited and lane_q == 8):
            continue
        for block_k in (k for k in range(min(e.filters, 8), 0, -1) if e.filters % k == 0):
            tile = RowsTile(
                1, lanes * lane_q, planes, block_k, 1, lane_q, x_align, y_align,
                num_warps=max(1, lanes * planes // problem.device.limits.lanes),
            )  # fmt: skip
            if tile.held(problem) <= room:
                return _in_strips(_with_gradient_steps(tile, problem, room), problem)
    return None


def _with_gradient_steps(tile: RowsTile, problem: Problem, room: int) -> RowsTile:
    """The tile of a weight gradient with the most rows of a step.

    Four of them where LEAST_THREADS fit all the same: a step moves the rows of dy that are still
    read from register to register. Two keep more bytes under way, whatever fits.
    """
    macs = tile.LANE_Q * tile.BLOCK_K * row_macs(problem)
    for step in (4, 2):
        taller = replace(tile, STEP_P=step)
        roomy = taller.resident(problem) * problem.threads(tile) >= LEAST_THREADS[0]
        fitting = taller.held(problem) <= room and step <= extents(problem).rows
        fitting &= step < 4 or problem.device.arch != UNLIMITED
        if fitting and step * macs <= MAX_UNROLLED and (step == 2 or roomy):
            return taller
    return tile


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
    e, stride = extents(problem), problem.geometry.stride[0]
    bytes_of_row = tile.X_ALIGN * problem.image_bytes * stride * e.reduced
    macs = tile.LANE_Q * tile.BLOCK_K * row_macs(problem)
    if is_strided_gradient(problem):
        return tile
    for step in (4, 2) if tile.BLOCK_C == 1 or e.open <= 2 else ():
        taller = replace(tile, STEP_P=step)
        threads = taller.resident(problem) * problem.threads(tile)
        roomy = threads >= ROOMY_THREADS[tile.BLOCK_C > 1]
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
    threads = LEAST_THREADS[tile.BLOCK_C > 1 and row_macs(problem) >= ROW_MACS]
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


def _in_strips(tile: RowsTile, problem: Problem) -> RowsTile:
    """The tile of a weight gradient with the height at which the busiest multiprocessor is first.

    See _with_heights; a program has several strips.
    """
    e, sms = extents(problem), problem.device.multiprocessors
    resident, programs = tile.resident(problem), tile.programs(problem)
    least = min(resident, cdiv(LEAST_THREADS[0], problem.threads(tile)))
    beside = problem.samples * cdiv(e.columns, tile.BLOCK_Q)
    most = splits_that_fill(tile, problem, beside * e.rows)
    best, least_time = 1, math.inf
    for count in range(1, cdiv(e.rows, 4) + 1):
        height = cdiv(cdiv(e.rows, count) + e.open, tile.STEP_P) * tile.STEP_P - e.open
        height = max(1, height)
        strips = beside * cdiv(e.rows, height)
        each = cdiv(strips, min(strips, most))
        rounds, last = divmod(cdiv(programs * cdiv(strips, each), sms), resident)
        slots = rounds * resident + (max(last, least) if last else 0)
        time = slots * (each * (height + e.open) + START_ROWS)
        if time < least_time:
            best, least_time = height, time
    return replace(tile, BLOCK_P=best)


def tile_for(problem: Problem) -> RowsTile | None:
    """The tile that follows from a problem; None where it has no kernel or would spill."""
    if not is_legal(problem):
        return None
    if (found := vector_tile(problem)) is not None:
        return found
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
    step = max(1, min(step // g.stride[0], e.rows))
    step = 1 if is_strided_gradient(problem) else step
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
        block_q = row_block(e.columns, lanes, 32)
        return block_q, min(lanes // block_q, planes)
    # A warp's lanes are planes; warps side by side share the columns between them in cache.
    beside = min(lanes // min(lanes // 4, planes), power_of_two(cdiv(e.columns, lane_q)))
    return beside * lane_q, min(lanes // beside, planes)


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
    steps = (1,) if is_strided_gradient(problem) else (1, 2, 4)
    sizes = itertools.product((8, 4, 2, 1), (1, 2, 4, 8), steps, (8, 16, 32, 64, 128))
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
