"""Weight gradient in TF32 whose operands come through descriptors, from copies of x and dy.

    dw[k,c,r,s] = sum_j dy'[k,j] * x'[phase,c, j + row * ROW + column * LANES]
    row = (r * DIL_H - PAD_H) // STRIDE_H - FIRST        column likewise, without FIRST

copy_flat makes the copies: planes as one row of elements (row, column, lane). A lane is a band of
rows of one image. So a tap is one offset, a multiple of 16 bytes, at which boxes have to start.
Columns of padding are zeros behind those of the row before, rows of padding lie outside of the
plane, where the hardware fills in zeros, or are in the copy. x has planes for every phase
(h % STRIDE_H, w % STRIDE_W) that a tap reads; taps r and r + tap_step(STRIDE_H, DIL_H) read the
same. Where x is not finite, all results of its channel may be so.

    GEMM_M = filters k of one group    GEMM_N = channels c    GEMM_K = elements j

Matrix units take TF32 with the summed axis innermost, as it is in both boxes. With UNFOLDED "x",
x' has planes of its own for every column s of the window, as far from dy' as that tap is from the
pixel: GEMM_N = (c,s) fills a tile where channels are few. With "dy" it is dy' that has them, for
each of the columns s of one phase: GEMM_M = (k,s).

A program owns BLOCK_S neighbouring taps, which share what is loaded of dy. Sums in float32; split i
sums boxes [i * SPLIT_BOXES, (i+1) * SPLIT_BOXES) and stores at `i * dw_stride_split`, as in
wgrad_gemm. Where images are copied in several parts, all launches but the first ADD to what is
there.
"""

import triton
import triton.language as tl

from .copy_flat import steps_of
from .hints import side_by_side_singly
from .phases import most_taps, tap_step
from .schedule import next_digit, widen


@triton.jit(do_not_specialize=["SPLIT_BOXES"])
def wgrad_flat(
    x_desc, dy_desc, dw_ptr, ROW, LANES, FIRST, LENGTH, channels, SPLIT_BOXES, dw_stride_split,
    dw_strides, WINDOW: tl.constexpr, UNFOLDED: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    GROUPS, GROUP_C, GROUP_K = channels
    PERIOD_H: tl.constexpr = tap_step(WINDOW.STRIDE_H, WINDOW.DIL_H)
    PERIOD_W: tl.constexpr = tap_step(WINDOW.STRIDE_W, WINDOW.DIL_W)
    PHASES_H: tl.constexpr = min(WINDOW.R, PERIOD_H)
    PHASES_W: tl.constexpr = 1 if UNFOLDED == "x" else min(WINDOW.S, PERIOD_W)
    # Columns of the window that are rows of an operand, and those that programs deal out.
    X_TAPS: tl.constexpr = WINDOW.S if UNFOLDED == "x" else 1
    DY_TAPS: tl.constexpr = (
        most_taps(WINDOW.S, WINDOW.STRIDE_W, WINDOW.DIL_W) if UNFOLDED == "dy" else 1
    )
    COLUMNS: tl.constexpr = WINDOW.S if UNFOLDED == "" else PHASES_W

    # Taps vary fastest: their programs read the same boxes of dy and overlapping boxes of x.
    tile_t, program = next_digit(tl.program_id(0), tl.cdiv(WINDOW.R * COLUMNS, TILE.BLOCK_S))
    tile_c, program = next_digit(program, tl.cdiv(GROUP_C * X_TAPS, TILE.BLOCK_C))
    tile_k, program = next_digit(program, tl.cdiv(GROUP_K * DY_TAPS, TILE.BLOCK_F))
    group, split = next_digit(program, GROUPS)

    first = split * SPLIT_BOXES
    last = tl.minimum(first + SPLIT_BOXES, tl.cdiv(LENGTH, TILE.BLOCK_L))
    # Every split has a box: without that, ptxas waits for each product, see wgrad_tma.
    tl.assume(last > first)
    phase = group
    if UNFOLDED == "dy":  # taps of a program have one phase
        phase = group * PHASES_W + tile_t * TILE.BLOCK_S // WINDOW.R
    dy_row = phase * (GROUP_K * DY_TAPS) + tile_k * TILE.BLOCK_F
    accs, rows, offsets = (), (), ()
    for i in tl.static_range(TILE.BLOCK_S):
        t = tile_t * TILE.BLOCK_S + i
        r, s = t % WINDOW.R, t // WINDOW.R
        offset = (steps_of(r, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H) - FIRST) * ROW
        if UNFOLDED == "":
            offset += steps_of(s, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W) * LANES
        phase = (group * PHASES_H + r % PERIOD_H) * PHASES_W + s % PERIOD_W
        accs += (tl.zeros([TILE.BLOCK_F, TILE.BLOCK_C], tl.float32),)
        rows += (phase * (GROUP_C * X_TAPS) + tile_c * TILE.BLOCK_C,)
        offsets += (offset,)
    for step in range(last - first):  # from 0: from `first` on, two passes become one (sm_100)
        j = (first + step) * TILE.BLOCK_L
        dy = dy_desc.load([dy_row, j])  # [BLOCK_F, BLOCK_L]
        added = ()
        for i in tl.static_range(TILE.BLOCK_S):
            x = x_desc.load([rows[i], j + offsets[i]])  # [BLOCK_C, BLOCK_L]
            added += (tl.dot(dy, x.T, accs[i], input_precision=PRECISION),)
        accs = added

    dw_ptr += widen(split, INT64) * dw_stride_split + widen(group * GROUP_K, INT64) * dw_strides[1]
    first_k, first_c = tile_k * TILE.BLOCK_F, tile_c * TILE.BLOCK_C
    QUARTER: tl.constexpr = TILE.BLOCK_C // 4
    for i in tl.static_range(TILE.BLOCK_S):
        t = tile_t * TILE.BLOCK_S + i
        if ADD:  # in quarters: what is added has no room beside all sums
            for part in tl.static_range(4):
                pointers, mask = places(
                    dw_ptr, dw_strides, t, first_k, first_c + part * QUARTER, GROUP_K, GROUP_C,
                    X_TAPS, DY_TAPS, COLUMNS, WINDOW, INT64, TILE.BLOCK_F, QUARTER,
                )  # fmt: skip
                sums = half(half(accs[i], part // 2), part % 2)
                tl.store(pointers, sums + tl.load(pointers, mask=mask, other=0.0), mask=mask)
        else:
            pointers, mask = places(
                dw_ptr, dw_strides, t, first_k, first_c, GROUP_K, GROUP_C,
                X_TAPS, DY_TAPS, COLUMNS, WINDOW, INT64, TILE.BLOCK_F, TILE.BLOCK_C,
            )  # fmt: skip
            tl.store(pointers, accs[i].to(dw_ptr.dtype.element_ty), mask=mask)


@triton.jit
def half(block, UPPER: tl.constexpr):
    """The columns of one half of a block [rows, columns]."""
    ROWS: tl.constexpr = block.shape[0]
    pair = tl.permute(block.reshape(ROWS, 2, block.shape[1] // 2), (0, 2, 1))
    lower, upper = tl.split(pair)
    return upper if UPPER else lower


@triton.jit
def places(
    dw_ptr, dw_strides, t, first_k, first_c, GROUP_K, GROUP_C, X_TAPS: tl.constexpr,
    DY_TAPS: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr, INT64: tl.constexpr,
    ROWS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """(pointers, mask) of the sums of one tap, [ROWS, SUMS]; `dw_ptr` is of the group."""
    row = first_k + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    column = first_c + tl.arange(0, SUMS)[None, :]  # [1, SUMS]
    r, s = t % WINDOW.R, t // WINDOW.R
    mask = (row < GROUP_K * DY_TAPS) & (column < GROUP_C * X_TAPS) & (s < COLUMNS)
    k, c, tap_of_row, tap_of_column = row, column, 0, 0
    if DY_TAPS > 1:
        k = row // DY_TAPS
        tap_of_row = row % DY_TAPS * tap_step(WINDOW.STRIDE_W, WINDOW.DIL_W)
        mask &= s + tap_of_row < WINDOW.S
    if X_TAPS > 1:
        c, tap_of_column = column // X_TAPS, column % X_TAPS
    down = widen(k, INT64) * dw_strides[1] + tap_of_row * dw_strides[4]
    across = c * dw_strides[2] + tap_of_column * dw_strides[4]
    place = dw_ptr + r * dw_strides[3] + s * dw_strides[4]
    return side_by_side_singly(place, down + across), mask
