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

from .hints import align_strides, along, round_down, side_by_side
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
    BLOCK_K: tl.constexpr = TILE.BLOCK_K
    PADDED: tl.constexpr = (
        WINDOW.PAD_H != 0 or WINDOW.PAD_W != 0 or WINDOW.PAD_BOTTOM != 0 or WINDOW.PAD_RIGHT != 0
    )
    # Pixels per load. Taps, padding and strides misalign those of x, and pieces of dy alone would
    # need another block layout with pixel indices of its own.
    POINT: tl.constexpr = (
        WINDOW.R * WINDOW.S * WINDOW.STRIDE_H * WINDOW.STRIDE_W == 1 and not PADDED
    )
    PIECE: tl.constexpr = min(LAYOUT.X_ALIGN, LAYOUT.Y_ALIGN) if AXIS == 1 and POINT else 1
    if AXIS == 0:
        GROUP_C = round_down(GROUP_C, LAYOUT.X_ALIGN)
        GROUP_K = round_down(GROUP_K, LAYOUT.Y_ALIGN)
    x_strides = align_strides(x_strides, AXIS, LAYOUT.X_ALIGN)
    dy_strides = align_strides(dy_strides, AXIS, LAYOUT.Y_ALIGN)

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
    last = round_down(tl.minimum(first + SPLIT_PIXELS, PIXELS), PIECE)
    # Pixels of both blocks; the compiler merges them if they lie along the same axis.
    dy_m, x_m = first + along(1, BLOCK_K), first + along(AXIS, BLOCK_K)
    dy_n, dy_p, dy_q = split_pixel(dy_m, P, Q)
    x_n, x_p, x_q = split_pixel(x_m, P, Q)
    if LAYOUT.PREFETCH:  # as in reduction.add_taps_gemm
        dy = load_dy(
            dy_base, batch + dy_n, dy_p, dy_q, k_mask & (dy_m < last), dy_strides, AXIS, PIECE
        )
        x = load_x(
            x_base, batch + x_n, x_p, x_q, (x_m < last) & c_mask, r, s, x_shape, x_strides,
            WINDOW, PADDED, AXIS, PIECE,
        )  # fmt: skip
    for _ in range(tl.cdiv(SPLIT_PIXELS, BLOCK_K)):
        if LAYOUT.PREFETCH:
            dy_m += BLOCK_K
            x_m += BLOCK_K
            dy_n, dy_p, dy_q = next_pixel(dy_n, dy_p, dy_q, P, Q, BLOCK_K)
            x_n, x_p, x_q = next_pixel(x_n, x_p, x_q, P, Q, BLOCK_K)
        next_dy = load_dy(
            dy_base, batch + dy_n, dy_p, dy_q, k_mask & (dy_m < last), dy_strides, AXIS, PIECE
        )
        next_x = load_x(
            x_base, batch + x_n, x_p, x_q, (x_m < last) & c_mask, r, s, x_shape, x_strides,
            WINDOW, PADDED, AXIS, PIECE,
        )  # fmt: skip
        if not LAYOUT.PREFETCH:
            dy, x = next_dy, next_x
            dy_m += BLOCK_K
            x_m += BLOCK_K
            dy_n, dy_p, dy_q = next_pixel(dy_n, dy_p, dy_q, P, Q, BLOCK_K)
            x_n, x_p, x_q = next_pixel(x_n, x_p, x_q, P, Q, BLOCK_K)
        columns = x.to(dy.dtype)  # [BLOCK_K, BLOCK_N] or its transpose
        if AXIS == 1:
            columns = columns.T
        fence_copies(dy, PRECISION)
        acc = tl.dot(dy, columns, acc, input_precision=PRECISION, out_dtype=ACC)
        if LAYOUT.PREFETCH:
            dy, x = next_dy, next_x

    # The same columns, now along the last axis.
    tap, c = split_column(tile_n, along(1, TILE.BLOCK_N), GROUP_C, TAPS, LAYOUT.ONE_TAP, TILE)
    r, s = tap // WINDOW.S, tap % WINDOW.S
    sums = tap_at(dw_ptr + split * dw_stride_split, dw_strides, batch, k, 0, 0, 0)
    column = c * dw_strides[2] + r * dw_strides[3] + s * dw_strides[4]
    if not LAYOUT.ONE_TAP and (AXIS == 1 or LAYOUT.X_ALIGN == 1):
        sums = side_by_side(sums, column)
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
    if AXIS == 1:
        offset = side_by_side(line, column)
    else:
        offset = line + column
    if ALIGN > 1:
        offset = tl.max_contiguous(tl.multiple_of(offset, [1, ALIGN]), [1, ALIGN])
    return offset
