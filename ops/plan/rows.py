"""The rows kernels' part of planning: which calls they serve, with which tile, and its counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..geometry import Geometry
from .integers import cdiv, power_of_two

if TYPE_CHECKING:
    from .choose import Layout
    from .device import Device


@dataclass(frozen=True)
class RowsTile:
    """One program's outputs, how its lanes share them, and what the compiler is told.

    Attributes:
        BLOCK_P, BLOCK_Q: output rows and columns; for an input gradient with a stride, steps of it.
        BLOCK_C: planes (n, group), or groups in a weight gradient.
        BLOCK_K: filters of each group.
        STEP_P: output rows that are unrolled.
        LANE_Q: neighbouring columns of one lane.
        num_warps, num_stages: of the launch.
    """

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_C: int
    BLOCK_K: int = 1
    STEP_P: int = 1
    LANE_Q: int = 1
    num_warps: int = 4
    num_stages: int = 2


#: Largest window of a rows kernel along one axis.
MAX_WINDOW = 7
#: Largest stride and dilation: the rows and columns between are unrolled, if only to be left out.
MAX_STEP = 64
#: Most channels of a group that are summed over: they are unrolled.
MAX_REDUCED = 8
#: Most output rows that are open beside the one that is finished next.
MAX_AHEAD = 12
#: Numbers of 32 bits that one thread keeps in registers at most: weights, open sums, pixels.
MAX_HELD = 128
#: Input rows that are unrolled together, by the most multiply-adds that a lane does for one: more
#: have more loads under way, and more code.
STEPS = {12: 4, 25: 2}
#: Threads of a program, and columns of a lane in channels_last.
THREADS, LANE_Q = 128, 4
#: Fewest groups that are lanes in channels_last: fewer neighbours are not worth a load.
MIN_GROUPS = 8


class Extents(NamedTuple):
    """What a rows kernel's walk is like, whichever operator it is.

    Attributes:
        planes: that lanes can be.
        rows, columns: of outputs.
        reduced, filters: channels of a group that are loaded, and that are computed.
        ahead: output rows that are open beside the one that is finished.
        row: sums of one lane and column in one output row, for one filter.
    """

    planes: int
    rows: int
    columns: int
    reduced: int
    filters: int
    ahead: int
    row: int


def is_turned(op: str, geometry: Geometry) -> bool:
    """Whether the input gradient is a forward correlation of dy: with stride 1."""
    return op == "dgrad" and geometry.stride == (1, 1)


def has_rows_kernel(op: str, geometry: Geometry) -> bool:
    """Whether a rows kernel can compute `op`, in some type and layout."""
    g = geometry
    if op == "dgrad_frame" or max(g.R, g.S) > MAX_WINDOW or min(g.y_numel, g.group_C) == 0:
        return False
    if max(*g.steps(0), *g.steps(1)) > MAX_STEP:
        return False
    if op == "dgrad" and g.stride != (1, 1) and min(g.padding[0][0], g.padding[1][0]) < 0:
        return False
    e = _extents(op, g)
    if e.reduced > MAX_REDUCED or e.ahead > MAX_AHEAD:
        return False
    return _block_k(op, g, 1, MAX_HELD) > 0


def rows_tile(
    op: str, geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device
) -> RowsTile | None:
    """The tile of a rows kernel; None where a stencil serves the call better."""
    if not has_rows_kernel(op, geometry):
        return None
    words = 2 if dtype == torch.float64 else 1
    # 64-bit addresses take registers too.
    room = (MAX_HELD // 2 if layout.wide else MAX_HELD) // words
    e = _extents(op, geometry)
    across = layout.channels_last and geometry.groups >= MIN_GROUPS  # lanes are channels
    lane_q = min(LANE_Q, power_of_two(e.columns)) if across else 1
    while not (block_k := _block_k(op, geometry, lane_q, room, layout.crowded)):
        if lane_q == 1:
            return None
        lane_q //= 2
    step = next((n for most, n in STEPS.items() if _macs(op, geometry) * block_k <= most), 1)
    step = max(1, min(step // geometry.steps(0)[0], e.rows))
    step = 1 if op == "dgrad" and not is_turned(op, geometry) else step
    tile = RowsTile(e.rows, 0, 0, block_k, step, lane_q)
    # 16 bytes of neighbours, or less.
    plain = op != "wgrad" and geometry.stride == (1, 1) and not layout.channels_last
    plain &= dtype.itemsize == 2
    for vector in (8, 4, 2, 1) if plain else (4, 2, 1):
        block_q, block_c = _lanes(e, vector * THREADS, lane_q, across)
        tile = replace(tile, BLOCK_Q=block_q, BLOCK_C=block_c)
        if rows_held(op, geometry, tile, layout.crowded) <= room:
            break
    else:
        step = 1
    # By machine code, 4 rows of an image take 3 % less instructions than 3 in a weight gradient and
    # 30 registers more; of several planes, 1 % less than 2, and 20 to 40 more.
    step = min(step, 2) if tile.BLOCK_C > 1 else min(step, 3) if op == "wgrad" else step
    tile = replace(tile, STEP_P=step)
    most = 64 if e.ahead > 2 else 32
    for height in (most, most // 2, most // 4):
        rows = cdiv(e.rows, cdiv(e.rows, height))  # tiles of one height, none nearly empty
        rows = cdiv(rows + e.ahead, step) * step - e.ahead  # whole steps
        tile = replace(tile, BLOCK_P=max(1, rows))
        strips = rows_strips(geometry, tile) if op == "wgrad" else 1
        if strips * rows_programs(op, geometry, tile) >= 2 * device.multiprocessors:
            break
    return tile


def _lanes(e: Extents, lanes: int, lane_q: int, across: bool) -> tuple[int, int]:
    """(BLOCK_Q, BLOCK_C) of a tile with so many lanes, which are planes first if `across`."""
    planes = power_of_two(e.planes)
    if not across:
        block_q = _row_block(e.columns, lanes)
        return block_q, min(lanes // block_q, planes)
    # A warp's lanes are planes; warps side by side share the columns between them in cache.
    beside = min(lanes // min(lanes // 4, planes), power_of_two(cdiv(e.columns, lane_q)))
    return beside * lane_q, min(lanes // beside, planes)


def rows_programs(op: str, geometry: Geometry, tile: RowsTile) -> int:
    """How many programs cover all results, a weight gradient's before it is split."""
    e = _extents(op, geometry)
    planes = cdiv(e.planes, tile.BLOCK_C) * cdiv(e.filters, tile.BLOCK_K)
    if op == "wgrad":
        return (geometry.N if geometry.per_sample else 1) * planes
    return planes * cdiv(e.rows, tile.BLOCK_P) * cdiv(e.columns, tile.BLOCK_Q)


def rows_strips(geometry: Geometry, tile: RowsTile) -> int:
    """Tiles of output rows and columns of one problem, that a weight gradient runs over."""
    samples = 1 if geometry.per_sample else geometry.N
    return samples * cdiv(geometry.P, tile.BLOCK_P) * cdiv(geometry.Q, tile.BLOCK_Q)


def interior_tiles(op: str, geometry: Geometry, tile: RowsTile) -> str:
    """Which tiles run without masks: "all"; "some", if a quarter can; else "none"."""
    inside = total = 1
    for axis, block in enumerate((tile.BLOCK_P, tile.BLOCK_Q)):
        tiles, clear = _clear_tiles(op, geometry, axis, block, tile.STEP_P)
        total *= tiles
        inside *= clear
    e = _extents(op, geometry)
    full = e.planes % tile.BLOCK_C == 0
    if inside == total and full:
        return "all"
    return "some" if 4 * inside >= total else "none"


def _clear_tiles(op: str, geometry: Geometry, axis: int, block: int, step: int) -> tuple[int, int]:
    """(tiles along an axis, how many of them have all that they load and store inside)."""
    g = geometry.adjoint() if is_turned(op, geometry) else geometry
    (stride, dilation), pad = g.steps(axis), g.padding[axis][0]
    inputs, outputs, window = ((g.H, g.P, g.R), (g.W, g.Q, g.S))[axis]
    reach = (window - 1) * dilation
    if op == "dgrad" and not is_turned(op, geometry):
        first = pad // stride
        tiles = cdiv((inputs - 1 + pad) // stride + 1 - first, block)
        clear = [
            t
            for t in range(first, first + tiles * block, block)
            if t >= reach // stride
            and t + block <= outputs
            and t * stride >= pad
            and (t + block) * stride <= inputs + pad
        ]
        return tiles, len(clear)
    if axis == 0:  # whole steps are loaded
        reach = cdiv(block + reach // stride, step) * step * stride - 1
    else:
        reach += (block - 1) * stride
    tiles = cdiv(outputs, block)
    # Tiles t with 0 <= t * block * stride - pad and t * block * stride - pad + reach < inputs.
    first = max(0, cdiv(pad, block * stride))
    last = min((inputs - 1 - reach + pad) // (block * stride), outputs // block - 1)
    return tiles, max(0, last - first + 1)


def _extents(op: str, geometry: Geometry) -> Extents:
    g = geometry
    (stride_h, dil_h), (stride_w, _) = g.steps(0), g.steps(1)
    ahead = (g.R - 1) * dil_h // stride_h
    if op == "dgrad" and not is_turned(op, geometry):
        rows, columns = (
            (extent - 1 + pad) // stride + 1 - pad // stride
            for extent, pad, stride in (
                (g.H, g.padding[0][0], stride_h),
                (g.W, g.padding[1][0], stride_w),
            )
        )
        row = stride_h * stride_w * g.group_C  # a program has all channels
        return Extents(g.N * g.groups, rows, columns, g.group_K, 1, ahead, row)
    g = g.adjoint() if op == "dgrad" else g
    planes = g.groups if op == "wgrad" else g.N * g.groups
    return Extents(planes, g.P, g.Q, g.group_C, g.group_K, ahead, 1)


def _macs(op: str, geometry: Geometry) -> int:
    """Multiply-adds for one output row of one lane and filter."""
    g, e = geometry, _extents(op, geometry)
    channels = g.group_C * g.group_K if op == "dgrad" and not is_turned(op, g) else e.reduced
    return channels * g.R * g.S


def rows_held(op: str, geometry: Geometry, tile: RowsTile, crowded: bool = False) -> int:
    """Numbers that a thread keeps: weights, sums of the open rows, and the pixels for one more.

    As many numbers as a row of sums has besides are under way where something is added to it
    (`crowded`, see Layout), and of dy in a weight gradient.
    """
    e, taps = _extents(op, geometry), _macs(op, geometry) * tile.BLOCK_K
    gradient = op == "wgrad"
    under_way = crowded or gradient
    vector = max(1, tile.BLOCK_Q // tile.LANE_Q * tile.BLOCK_C // THREADS)
    stride, dilation = geometry.steps(1)
    loaded = min(geometry.steps(0)[0], geometry.R)  # rows of pixels for one of outputs
    columns = {q * stride + s * dilation for q in range(tile.LANE_Q) for s in range(geometry.S)}
    rows = (e.ahead + tile.STEP_P + under_way) * tile.BLOCK_K * tile.LANE_Q * e.row
    own_weights = gradient or tile.BLOCK_C > 1
    return taps * (vector if own_weights else 1) + (rows + len(columns) * loaded) * vector


def _block_k(op: str, geometry: Geometry, lane_q: int, room: int, crowded: bool = False) -> int:
    """Filters of a group that one program can hold, the most that divide them; 0: not even one."""
    filters = _extents(op, geometry).filters
    for k in range(min(filters, 8), 0, -1):
        tile = RowsTile(1, lane_q, 1, k, 1, lane_q)
        if filters % k == 0 and rows_held(op, geometry, tile, crowded) <= room:
            return k
    return 0


class Work(NamedTuple):
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


def rows_work(op: str, geometry: Geometry, tile: RowsTile) -> Work:
    """The work of one program, of a weight gradient's for one strip."""
    g, e = geometry, _extents(op, geometry)
    (stride_h, _), (stride_w, dil_w) = g.steps(0), g.steps(1)
    lanes = tile.BLOCK_Q // tile.LANE_Q * tile.BLOCK_C
    steps = cdiv(tile.BLOCK_P + e.ahead, tile.STEP_P)
    rows = steps * tile.STEP_P
    columns = tile.BLOCK_Q * tile.BLOCK_C * tile.BLOCK_K
    macs = rows * columns * _macs(op, geometry)
    if op == "dgrad" and not is_turned(op, geometry):
        loads = lanes * rows * e.reduced * (tile.LANE_Q + (g.S - 1) * dil_w // stride_w)
        return Work(tile.BLOCK_P * columns * e.row, loads, macs, steps)
    window = min(g.S, (g.S - 1) * dil_w + 1)
    loads = lanes * rows * stride_h * e.reduced * ((tile.LANE_Q - 1) * stride_w + window)
    if op == "wgrad":
        return Work(tile.BLOCK_C * tile.BLOCK_K * e.reduced * g.R * g.S, loads, macs, steps)
    return Work(tile.BLOCK_P * columns, loads, macs, steps)


def _row_block(columns: int, most: int) -> int:
    """Columns of a tile: the most that leave little more of the last tile empty than any do."""
    blocks = [most >> i for i in range(most.bit_length()) if most >> i >= 32]
    covered = {block: cdiv(columns, block) * block for block in blocks}
    close = [block for block, width in covered.items() if width <= 1.1 * min(covered.values())]
    return min(close[0], power_of_two(columns))
