"""Weight gradient as a direct sum for large windows: a lane sums a block of taps over one column.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w = q * STRIDE_W - PAD_W + s * DIL_W

No GEMM view; operands are converted to the dtype of the sums before they are multiplied. A program
owns TAPS_R x TAPS_S taps of one channel, for one filter or for BLOCK_K filters across its lanes. It
sums over strips of BLOCK_P rows and BLOCK_Q columns of BLOCK_N samples, with one output column per
lane; the lanes are added up at the end. For each strip, a lane loads BLOCK_P elements of dy and,
for each s, the rows of x that they meet through any of the taps:
(BLOCK_P - 1) * STRIDE_H + (TAPS_R - 1) * DIL_H + 1 loads for BLOCK_P * TAPS_R products, where a
stencil loads both factors of every product.

Split i sums strips [i * SPLIT_STRIPS, (i+1) * SPLIT_STRIPS). A bank per sample is a batch of such
sums. Sums in float32 (float64 for float64). Below the last output row, zeros take the place of dy
and are multiplied with x: an infinity or NaN in x can reach taps of neighbouring windows.
"""

import triton
import triton.language as tl

from .padding import fold
from .rows import is_read
from .schedule import as_block, next_digit, widen
from .structs import at, tap_at


@triton.jit
def wgrad_columns(
    x_ptr, dy_ptr, dw_ptr,
    x_shape, y_shape, SAMPLES, SPLITS, SPLIT_STRIPS, channels,
    x_strides, dy_strides, dw_stride_split, dw_strides,
    WINDOW: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    K = GROUPS * GROUP_K
    program = widen(tl.program_id(0), INT64)
    tile_s, program = next_digit(program, tl.cdiv(WINDOW.S, TILE.TAPS_S))
    tile_r, program = next_digit(program, tl.cdiv(WINDOW.R, TILE.TAPS_R))
    c, program = next_digit(program, GROUP_C)
    tile_k, program = next_digit(program, tl.cdiv(K, TILE.BLOCK_K))
    split, batch = next_digit(program, SPLITS)
    r, s = tile_r * TILE.TAPS_R, tile_s * TILE.TAPS_S
    lane = tl.arange(0, TILE.BLOCK_Q)[None, :]  # [1, BLOCK_Q]
    sample = tl.arange(0, TILE.BLOCK_N)[:, None]  # [BLOCK_N, 1]
    k = tile_k * TILE.BLOCK_K + tl.arange(0, TILE.BLOCK_K)[:, None]  # [BLOCK_K, 1]
    channel = k // GROUP_K * GROUP_C + c

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    ROWS: tl.constexpr = (TILE.BLOCK_P - 1) * WINDOW.STRIDE_H + (TILE.TAPS_R - 1) * WINDOW.DIL_H + 1
    REACH: tl.constexpr = (TILE.BLOCK_Q - 1) * WINDOW.STRIDE_W + (TILE.TAPS_S - 1) * WINDOW.DIL_W
    sums = ()  # (r, s)
    for _ in tl.static_range(TILE.TAPS_R * TILE.TAPS_S):
        sums = sums + (tl.zeros([TILE.BLOCK_N * TILE.BLOCK_K, TILE.BLOCK_Q], ACC),)
    for step in range(SPLIT_STRIPS):
        # Rows are the fastest digit: neighbouring strips of a column read the same rows of x.
        strip = split * SPLIT_STRIPS + widen(step, INT64)
        tile_p, strip = next_digit(strip, tl.cdiv(P, TILE.BLOCK_P))
        tile_q, tile_n = next_digit(strip, tl.cdiv(Q, TILE.BLOCK_Q))
        n = tile_n * TILE.BLOCK_N + sample
        mask = (n < SAMPLES) & (k < K)  # [BLOCK_N or BLOCK_K, 1]
        p, q = tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
        h = p * WINDOW.STRIDE_H - WINDOW.PAD_H + r * WINDOW.DIL_H
        w = q * WINDOW.STRIDE_W - WINDOW.PAD_W + s * WINDOW.DIL_W
        x_plane = at(x_ptr, x_strides, batch + n, channel, 0, 0)
        dy_plane = at(dy_ptr, dy_strides, batch + n, k, 0, 0)
        interior = (h >= 0) & (h + ROWS <= x_shape[0]) & (w >= 0) & (w + REACH < x_shape[1])
        interior = interior & (p + TILE.BLOCK_P <= P) & (q + TILE.BLOCK_Q <= Q)
        interior = interior & (tile_n * TILE.BLOCK_N + TILE.BLOCK_N <= SAMPLES)
        if interior & (tile_k * TILE.BLOCK_K + TILE.BLOCK_K <= K):
            sums = _add_strip(
                sums, x_plane, dy_plane, h, w, p, q, lane, mask, x_shape, y_shape, x_strides,
                dy_strides, WINDOW, TILE, ROWS, False,
            )  # fmt: skip
        else:
            sums = _add_strip(
                sums, x_plane, dy_plane, h, w, p, q, lane, mask, x_shape, y_shape, x_strides,
                dy_strides, WINDOW, TILE, ROWS, True,
            )  # fmt: skip

    dw_base = dw_ptr + split * widen(dw_stride_split, INT64)
    filters = tile_k * TILE.BLOCK_K + tl.arange(0, TILE.BLOCK_K)  # [BLOCK_K]
    for i in tl.static_range(TILE.TAPS_R * TILE.TAPS_S):
        total = tl.sum(sums[i], 1)  # [BLOCK_N or BLOCK_K]
        if TILE.BLOCK_N > 1:
            total = tl.expand_dims(tl.sum(total, 0), 0)
        row, column = r + i // TILE.TAPS_S, s + i % TILE.TAPS_S
        tl.store(
            tap_at(dw_base, dw_strides, batch, filters, c, row, column),
            total.to(dw_ptr.dtype.element_ty),
            mask=(filters < K) & (row < WINDOW.R) & (column < WINDOW.S),
        )


@triton.jit
def _add_strip(
    sums, x_plane, dy_plane, h, w, p, q, lane, mask, x_shape, y_shape, x_strides, dy_strides,
    WINDOW: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds the products of a strip: its first output meets x at (h, w) through the first tap."""
    ACC: tl.constexpr = sums[0].dtype
    inside = mask & (q + lane < y_shape[1])  # [BLOCK_C, BLOCK_Q]
    gradients = ()
    for i in tl.static_range(TILE.BLOCK_P):
        pointer = at(dy_plane, dy_strides, 0, 0, p + i, q + lane)
        if MASKED:
            dy = tl.load(pointer, mask=inside & (as_block(p + i) < y_shape[0]), other=0.0)
        else:
            dy = tl.load(pointer)  # [BLOCK_C, BLOCK_Q]
        gradients = gradients + (dy.to(ACC),)
    rows, masks = (), ()
    for i in tl.static_range(ROWS):
        row, h_inside = h + i, inside
        if MASKED:
            row, h_inside = fold(as_block(h + i), x_shape[0], WINDOW.MODE)  # [1, 1]
            h_inside = h_inside & inside
        rows = rows + (x_plane + row * x_strides[2],)
        masks = masks + (h_inside,)
    updated = ()
    for j in tl.static_range(TILE.TAPS_S):
        column = w + lane * WINDOW.STRIDE_W + j * WINDOW.DIL_W  # [1, BLOCK_Q]
        if MASKED:
            column, w_inside = fold(column, x_shape[1], WINDOW.MODE)
        pixels = ()
        for i in tl.static_range(ROWS):
            if is_read(i, 0, TILE.BLOCK_P - 1, TILE.TAPS_R, WINDOW.STRIDE_H, WINDOW.DIL_H):
                pointer = rows[i] + column * x_strides[3]
                if MASKED:
                    x = tl.load(pointer, mask=masks[i] & w_inside, other=0.0)
                else:
                    x = tl.load(pointer)  # [BLOCK_C, BLOCK_Q]
                pixels = pixels + (x.to(ACC),)
            else:  # never read; keeps the tuple's index aligned
                pixels = pixels + (pixels[i - 1],)
        for tap in tl.static_range(TILE.TAPS_R):
            total = sums[tap * TILE.TAPS_S + j]
            for i in tl.static_range(TILE.BLOCK_P):
                x = pixels[i * WINDOW.STRIDE_H + tap * WINDOW.DIL_H]
                total = tl.fma(x, gradients[i], total)
            updated = updated + (total,)  # (s, r)
    sums = ()
    for i in tl.static_range(TILE.TAPS_R * TILE.TAPS_S):
        sums = sums + (updated[i % TILE.TAPS_S * TILE.TAPS_R + i // TILE.TAPS_S],)
    return sums
