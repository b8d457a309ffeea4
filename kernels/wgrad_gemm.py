"""Weight gradient as an implicit GEMM on the matrix units, split over pixels.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = filters k of one group    GEMM_N = (r,s,c)    GEMM_K = pixels (n,p,q)

The block of x has its pixels along PIXEL_AXIS, see fprop_gemm, and is multiplied transposed where
that is the last. With ONE_TAP all columns of a tile belong to one tap.

Sums in float32 (float64 for float64). Split i sums pixels [i * SPLIT_PIXELS, (i+1) * SPLIT_PIXELS)
and stores at `i * dw_stride_split`: a partial for sum_partials, or dw itself when there is one
split. A bank per sample is a batch of GEMMs, each over the pixels (p,q) of its own sample.
"""

import triton
import triton.language as tl

from .indexing import (
    align_strides,
    along,
    at_least_one,
    fold,
    is_inside,
    next_digit,
    next_pixel,
    next_tile,
    round_down,
    side_by_side,
    split_pixel,
    widen,
)
from .versions import fence_copies


@triton.jit(do_not_specialize=["SPLITS"])
def wgrad_gemm(
    x_ptr, dy_ptr, dw_ptr,
    H, W, P, Q, PIXELS, SPLITS, SPLIT_PIXELS, GROUPS, GROUP_C, GROUP_K,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    dw_stride_split,
    dw_stride_n, dw_stride_k, dw_stride_c, dw_stride_r, dw_stride_s,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    PAD_BOTTOM: tl.constexpr, PAD_RIGHT: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    PIXEL_AXIS: tl.constexpr, X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    ONE_TAP: tl.constexpr, AHEAD: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PADDED: tl.constexpr = PAD_H != 0 or PAD_W != 0 or PAD_BOTTOM != 0 or PAD_RIGHT != 0
    # Pixels that follow one another in memory. Taps, padding and steps move those of x out of line,
    # and dy alone is not loaded in pieces: its block would need a layout and pixels of its own.
    POINT: tl.constexpr = R * S * STRIDE_H * STRIDE_W == 1 and not PADDED
    PIECE: tl.constexpr = min(X_ALIGN, Y_ALIGN) if PIXEL_AXIS == 1 and POINT else 1
    if PIXEL_AXIS == 0:
        GROUP_C, GROUP_K = round_down(GROUP_C, X_ALIGN), round_down(GROUP_K, Y_ALIGN)
    x_stride_n, x_stride_c, x_stride_h, x_stride_w = align_strides(
        x_stride_n, x_stride_c, x_stride_h, x_stride_w, PIXEL_AXIS, X_ALIGN
    )
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q = align_strides(
        dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q, PIXEL_AXIS, Y_ALIGN
    )

    program = widen(tl.program_id(0), WIDE)
    tiles_m, tiles_n = tl.cdiv(GROUP_K, BLOCK_M), tl.cdiv(GROUP_C * R * S, BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    split, program = next_digit(program, SPLITS)
    group, batch = next_digit(program, GROUPS)

    group_k = tile_m * BLOCK_M + along(0, BLOCK_M)
    k = group * GROUP_K + group_k
    tap, c = split_column(tile_n, along(1 - PIXEL_AXIS, BLOCK_N), GROUP_C, ONE_TAP, BLOCK_N)
    r, s = tap // S, tap % S
    x_base = x_ptr + (group * GROUP_C + c) * x_stride_c
    if MODE == "zeros":
        x_base += r * DIL_H * x_stride_h + s * DIL_W * x_stride_w
    dy_base = dy_ptr + k * dy_stride_k
    k_valid, c_valid = group_k < GROUP_K, tap < R * S

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    first = split * SPLIT_PIXELS
    last = round_down(tl.minimum(first + SPLIT_PIXELS, PIXELS), PIECE)
    # The pixels of either block, of which the compiler keeps one if they lie along one axis.
    dy_m, x_m = first + along(1, BLOCK_K), first + along(PIXEL_AXIS, BLOCK_K)
    dy_n, dy_p, dy_q = split_pixel(dy_m, P, Q)
    x_n, x_p, x_q = split_pixel(x_m, P, Q)
    if AHEAD:  # as in add_taps_gemm of fprop_gemm
        dy = load_dy(
            dy_base, batch + dy_n, dy_p, dy_q, k_valid & (dy_m < last),
            dy_stride_n, dy_stride_p, dy_stride_q, PIXEL_AXIS, PIECE,
        )  # fmt: skip
        x = load_x(
            x_base, batch + x_n, x_p, x_q, (x_m < last) & c_valid, r, s, H, W,
            x_stride_n, x_stride_h, x_stride_w,
            STRIDE_H, STRIDE_W, PAD_H, PAD_W, DIL_H, DIL_W, MODE, PADDED,
            PIXEL_AXIS, PIECE,
        )  # fmt: skip
    for _ in range(at_least_one(tl.cdiv(SPLIT_PIXELS, BLOCK_K))):
        if AHEAD:
            dy_m += BLOCK_K
            x_m += BLOCK_K
            dy_n, dy_p, dy_q = next_pixel(dy_n, dy_p, dy_q, P, Q, BLOCK_K)
            x_n, x_p, x_q = next_pixel(x_n, x_p, x_q, P, Q, BLOCK_K)
        next_dy = load_dy(
            dy_base, batch + dy_n, dy_p, dy_q, k_valid & (dy_m < last),
            dy_stride_n, dy_stride_p, dy_stride_q, PIXEL_AXIS, PIECE,
        )  # fmt: skip
        next_x = load_x(
            x_base, batch + x_n, x_p, x_q, (x_m < last) & c_valid, r, s, H, W,
            x_stride_n, x_stride_h, x_stride_w,
            STRIDE_H, STRIDE_W, PAD_H, PAD_W, DIL_H, DIL_W, MODE, PADDED,
            PIXEL_AXIS, PIECE,
        )  # fmt: skip
        if not AHEAD:
            dy, x = next_dy, next_x
            dy_m += BLOCK_K
            x_m += BLOCK_K
            dy_n, dy_p, dy_q = next_pixel(dy_n, dy_p, dy_q, P, Q, BLOCK_K)
            x_n, x_p, x_q = next_pixel(x_n, x_p, x_q, P, Q, BLOCK_K)
        columns = x.to(dy.dtype)  # [BLOCK_K, BLOCK_N] or its transpose
        if PIXEL_AXIS == 1:
            columns = columns.T
        fence_copies(dy, PRECISION)
        acc = tl.dot(dy, columns, acc, input_precision=PRECISION, out_dtype=ACC)
        if AHEAD:
            dy, x = next_dy, next_x

    # Again, along the last axis.
    tap, c = split_column(tile_n, along(1, BLOCK_N), GROUP_C, ONE_TAP, BLOCK_N)
    r, s = tap // S, tap % S
    sums = dw_ptr + split * dw_stride_split + batch * dw_stride_n + k * dw_stride_k
    column = c * dw_stride_c + r * dw_stride_r + s * dw_stride_s
    if not ONE_TAP and (PIXEL_AXIS == 1 or X_ALIGN == 1):
        sums = side_by_side(sums, column)
    else:
        sums += column
    tl.store(
        sums,
        acc.to(dw_ptr.dtype.element_ty),
        mask=(group_k < GROUP_K) & (tap < R * S),
    )


@triton.jit
def split_column(tile, lane, GROUP_C, ONE_TAP: tl.constexpr, BLOCK_N: tl.constexpr):
    """(tap, c) of a column (r,s,c)."""
    if ONE_TAP:
        tiles = GROUP_C // BLOCK_N  # of one tap
        tap, c = tile // tiles, tile % tiles * BLOCK_N + lane
    else:
        index = tile * BLOCK_N + lane
        tap, c = index // GROUP_C, index % GROUP_C
    return tap, c


@triton.jit
def load_dy(
    dy_base, n, p, q, valid, dy_stride_n, dy_stride_p, dy_stride_q,
    PIXEL_AXIS: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The block [BLOCK_M, BLOCK_K] of a step, ALIGN pixels of which are neighbours in memory."""
    line = n * dy_stride_n + p * dy_stride_p
    if PIXEL_AXIS == 1:
        offset = side_by_side(line, q * dy_stride_q)
    else:
        offset = line + q * dy_stride_q
    if ALIGN > 1:
        offset = tl.max_contiguous(tl.multiple_of(offset, [1, ALIGN]), [1, ALIGN])
    return tl.load(dy_base + offset, mask=valid, other=0.0)


@triton.jit
def load_x(
    x_base, n, p, q, valid, r, s, H, W, x_stride_n, x_stride_h, x_stride_w,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr, PADDED: tl.constexpr,
    PIXEL_AXIS: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The block [BLOCK_K, BLOCK_N] of a step, or its transpose."""
    h, w = p * STRIDE_H - PAD_H, q * STRIDE_W - PAD_W
    if MODE != "zeros":
        h, h_inside = fold(h + r * DIL_H, H, MODE)
        w, w_inside = fold(w + s * DIL_W, W, MODE)
        valid &= h_inside & w_inside
    elif PADDED:
        valid &= is_inside(h + r * DIL_H, H) & is_inside(w + s * DIL_W, W)
    line = n * x_stride_n + h * x_stride_h
    if PIXEL_AXIS == 1:
        offset = side_by_side(line, w * x_stride_w)
    else:
        offset = line + w * x_stride_w
    if ALIGN > 1:
        offset = tl.max_contiguous(tl.multiple_of(offset, [1, ALIGN]), [1, ALIGN])
    return tl.load(x_base + offset, mask=valid, other=0.0)
