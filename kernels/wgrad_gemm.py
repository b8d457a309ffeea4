"""Weight gradient as an implicit GEMM on the matrix units, split over pixels.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = filters k of one group    GEMM_N = (r,s,c)    GEMM_K = pixels (n,p,q)

The block of x has its pixels along PIXEL_AXIS, see fprop_gemm; if that is 1, it is transposed
before the product. With ONE_TAP all columns of a tile belong to one tap.

Sums in float32 (float64 for float64). Split i sums pixels [i * SPLIT_PIXELS, (i+1) * SPLIT_PIXELS)
and stores at `i * dw_stride_split`: a partial for sum_partials, or dw itself when there is one
split. A bank per sample is a batch of GEMMs, each over the pixels (p,q) of its own sample.
"""

import triton
import triton.language as tl

from .hints import align_strides, along, round_down, side_by_side, side_by_side_singly
from .indexing import is_inside
from .padding import fold
from .schedule import next_digit, next_pixel, next_tile, split_pixel, widen
from .structs import tap_at
from .versions import fence_copies


@triton.jit(do_not_specialize=["PIXELS", "SPLITS"])
def wgrad_gemm(
    x_ptr, dy_ptr, dw_ptr,
    x_shape, y_shape, channels, PIXELS, SPLITS, SPLIT_PIXELS,
    x_strides, dy_strides, dw_stride_split, dw_strides,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    AXIS: tl.constexpr = LAYOUT.PIXEL_AXIS
    Y_AXIS: tl.constexpr = LAYOUT.OTHER_AXIS
    BLOCK_K: tl.constexpr = TILE.BLOCK_K
    PADDED: tl.constexpr = (
        WINDOW.PAD_H != 0 or WINDOW.PAD_W != 0 or WINDOW.PAD_BOTTOM != 0 or WINDOW.PAD_RIGHT != 0
    )
    # Pixels per load. Taps, padding and strides misalign those of x, and pieces of dy beside single
    # pixels of x would need another block layout with pixel indices of its own.
    POINT: tl.constexpr = LAYOUT.IS_POINT
    X_ALIGN: tl.constexpr = LAYOUT.X_ALIGN if AXIS == 1 and POINT else 1
    Y_ALIGN: tl.constexpr = LAYOUT.Y_ALIGN if Y_AXIS == 1 else 1
    X_PIECE: tl.constexpr = min(X_ALIGN, Y_ALIGN) if AXIS == Y_AXIS else X_ALIGN
    Y_PIECE: tl.constexpr = min(X_ALIGN, Y_ALIGN) if AXIS == Y_AXIS else Y_ALIGN
    PREFETCH_DY: tl.constexpr = LAYOUT.PREFETCH and Y_AXIS == 1 and Y_PIECE == 1
    if AXIS == 0:
        GROUP_C = round_down(GROUP_C, LAYOUT.X_ALIGN)
    if Y_AXIS == 0:
        GROUP_K = round_down(GROUP_K, LAYOUT.Y_ALIGN)
    x_strides = align_strides(x_strides, AXIS, LAYOUT.X_ALIGN)
    dy_strides = align_strides(dy_strides, Y_AXIS, LAYOUT.Y_ALIGN)

    program = widen(tl.program_id(0), INT64)
    tiles_m = tl.cdiv(GROUP_K, TILE.BLOCK_M)
    tiles_n = tl.cdiv(GROUP_C * WINDOW.R * WINDOW.S, TILE.BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    split, program = next_digit(program, SPLITS)
    group, batch = next_digit(program, GROUPS)

    group_k = tile_m * TILE.BLOCK_M + along(0, TILE.BLOCK_M)
    k = group * GROUP_K + group_k
    TAPS: tl.constexpr = WINDOW.R * WINDOW.S
    tap, c = split_column(
        tile_n, along(1 - AXIS, TILE.BLOCK_N), GROUP_C, TAPS, LAYOUT.ONE_TAP, TILE
    )
    r, s = tap // WINDOW.S, tap % WINDOW.S
    x_base = x_ptr + (group * GROUP_C + c) * x_strides[1]
    if WINDOW.MODE == "zeros":
        x_base += r * WINDOW.DIL_H * x_strides[2] + s * WINDOW.DIL_W * x_strides[3]
    dy_base = dy_ptr + k * dy_strides[1]
    k_mask, c_mask = group_k < GROUP_K, tap < TAPS

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([TILE.BLOCK_M, TILE.BLOCK_N], ACC)
    first = split * SPLIT_PIXELS
    last = round_down(tl.minimum(first + SPLIT_PIXELS, PIXELS), max(X_PIECE, Y_PIECE))
    # Pixels of both blocks; the compiler merges them if they lie along the same axis.
    dy_m, x_m = first + along(1, BLOCK_K), first + along(AXIS, BLOCK_K)
    dy_n, dy_p, dy_q = first_pixel(dy_m, P, Q, LAYOUT.Y_RUN)
    x_n, x_p, x_q = first_pixel(x_m, P, Q, LAYOUT.X_RUN)
    if PREFETCH_DY:  # as in reduction.add_taps_gemm
        dy = load_dy(
            dy_base, batch + dy_n, dy_p, dy_q, k_mask & (dy_m < last), dy_strides, Y_AXIS, Y_PIECE
        )
    if LAYOUT.PREFETCH:
        x = load_x(
            x_base, batch + x_n, x_p, x_q, (x_m < last) & c_mask, r, s, x_shape, x_strides,
            WINDOW, PADDED, AXIS, X_PIECE,
        )  # fmt: skip
    for _ in range(tl.cdiv(SPLIT_PIXELS, BLOCK_K)):
        if PREFETCH_DY:
            dy_m += BLOCK_K
            dy_n, dy_p, dy_q = pixel_after(dy_n, dy_p, dy_q, P, Q, LAYOUT.Y_RUN, BLOCK_K)
        if LAYOUT.PREFETCH:
            x_m += BLOCK_K
            x_n, x_p, x_q = pixel_after(x_n, x_p, x_q, P, Q, LAYOUT.X_RUN, BLOCK_K)
        next_dy = load_dy(
            dy_base, batch + dy_n, dy_p, dy_q, k_mask & (dy_m < last), dy_strides, Y_AXIS, Y_PIECE
        )
        next_x = load_x(
            x_base, batch + x_n, x_p, x_q, (x_m < last) & c_mask, r, s, x_shape, x_strides,
            WINDOW, PADDED, AXIS, X_PIECE,
        )  # fmt: skip
        if not PREFETCH_DY:
            dy = next_dy
            dy_m += BLOCK_K
            dy_n, dy_p, dy_q = pixel_after(dy_n, dy_p, dy_q, P, Q, LAYOUT.Y_RUN, BLOCK_K)
        if not LAYOUT.PREFETCH:
            x = next_x
            x_m += BLOCK_K
            x_n, x_p, x_q = pixel_after(x_n, x_p, x_q, P, Q, LAYOUT.X_RUN, BLOCK_K)
        columns = x.to(dy.dtype)  # [BLOCK_K, BLOCK_N] or its transpose
        if AXIS == 1:
            columns = columns.T
        fence_copies(dy, PRECISION)
        acc = tl.dot(dy, columns, acc, input_precision=PRECISION, out_dtype=ACC)
        if PREFETCH_DY:
            dy = next_dy
        if LAYOUT.PREFETCH:
            x = next_x

    # The same columns, now along the last axis.
    tap, c = split_column(tile_n, along(1, TILE.BLOCK_N), GROUP_C, TAPS, LAYOUT.ONE_TAP, TILE)
    r, s = tap // WINDOW.S, tap % WINDOW.S
    sums = tap_at(dw_ptr + split * dw_stride_split, dw_strides, batch, k, 0, 0, 0)
    column = c * dw_strides[2] + r * dw_strides[3] + s * dw_strides[4]
    if not LAYOUT.ONE_TAP:  # the compiler sees no runs of columns
        sums = side_by_side(sums, column)
    elif TAPS > 1:
        sums = side_by_side_singly(sums, column)
    else:
        sums += column
    mask = (group_k < GROUP_K) & (tap < TAPS)
    tl.store(sums, acc.to(dw_ptr.dtype.element_ty), mask=mask)


@triton.jit
def split_column(
    tile, lane, GROUP_C, TAPS: tl.constexpr, ONE_TAP: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """(tap, c) of a column (r,s,c).

    With ONE_TAP, all taps of a block of channels are next to each other: they read the same part
    of x.
    """
    if ONE_TAP:
        tap, c = tile % TAPS, tile // TAPS * TILE.BLOCK_N + lane
    else:
        index = tile * TILE.BLOCK_N + lane
        tap, c = index // GROUP_C, index % GROUP_C
    return tap, c


@triton.jit
def first_pixel(m, P, Q, RUN: tl.constexpr):
    """(n, row, column) of pixel m, see split_pixel, in an image whose RUN is one row.

    RUN is GemmLayout.X_RUN or Y_RUN.
    """
    if RUN == 2:
        n, row, column = 0, 0, m
    elif RUN == 1:
        n, row, column = m // (P * Q), 0, m % (P * Q)
    else:
        n, row, column = split_pixel(m, P, Q)
    return n, row, column


@triton.jit
def pixel_after(n, row, column, P, Q, RUN: tl.constexpr, BLOCK: tl.constexpr):
    """first_pixel of m + BLOCK."""
    if RUN == 2:
        column += BLOCK
    elif RUN == 1:
        n, _, column = next_pixel(n, 0, column, 1, P * Q, BLOCK)
    else:
        n, row, column = next_pixel(n, row, column, P, Q, BLOCK)
    return n, row, column


@triton.jit
def load_dy(dy_base, n, p, q, mask, strides, AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """The block [BLOCK_M, BLOCK_K] of a step; runs of ALIGN pixels are neighbours in memory."""
    line = n * strides[0] + p * strides[2]
    return tl.load(dy_base + pixels_of(line, q * strides[3], AXIS, ALIGN), mask=mask, other=0.0)


@triton.jit
def load_x(
    x_base, n, p, q, mask, r, s, x_shape, strides,
    WINDOW: tl.constexpr, PADDED: tl.constexpr, AXIS: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The block [BLOCK_K, BLOCK_N] of a step, or its transpose."""
    H, W = x_shape
    h, w = p * WINDOW.STRIDE_H - WINDOW.PAD_H, q * WINDOW.STRIDE_W - WINDOW.PAD_W
    if WINDOW.MODE != "zeros":
        h, h_inside = fold(h + r * WINDOW.DIL_H, H, WINDOW.MODE)
        w, w_inside = fold(w + s * WINDOW.DIL_W, W, WINDOW.MODE)
        mask &= h_inside & w_inside
    elif PADDED:
        mask &= is_inside(h + r * WINDOW.DIL_H, H) & is_inside(w + s * WINDOW.DIL_W, W)
    line = n * strides[0] + h * strides[2]
    return tl.load(x_base + pixels_of(line, w * strides[3], AXIS, ALIGN), mask=mask, other=0.0)


@triton.jit
def pixels_of(line, column, AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """Offsets of pixels; runs of ALIGN pixels are neighbours in memory."""
    if AXIS == 1 and ALIGN == 1:
        return side_by_side(line, column)
    offset = line + column
    if ALIGN > 1:
        offset = tl.max_contiguous(tl.multiple_of(offset, [1, ALIGN]), [1, ALIGN])
    return offset
