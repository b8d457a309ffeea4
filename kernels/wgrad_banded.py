"""Weight gradient on the matrix units for one channel per group: every tap from shifted rows.

    dw[k,0,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]        c = k // GROUP_K
    h = p - PAD_H + r        w = q - PAD_W + s

    GEMM_M = (r,column)    GEMM_N = i    GEMM_K = (n,row,q / COLUMN_GROUP)

    acc[(r,column),i] += dy[n,k,row - r,q + column] * x[n,c,row - PAD_H,q + FIRST_W + i]
    dw[r,s] = sum_column acc[(r,column), s + column - SHIFT]

A row of the padded image meets the rows of dy that its taps r lead to, in groups of COLUMN_GROUP
columns, which are neighbours in memory for both operands: nothing is loaded a number at a time.
The price is that a sum lies on a diagonal of COLUMN_GROUP elements, and products beside the band.
Each of those diagonals is stored as a partial of its own, for sum_partials.

On a H200, derived and not measured: a 31x31 in 16 bits takes for a pixel of dy 2048 multiply-adds
(4.1 ps at the matrix units' rate), 131 instructions of a lane (4.4 ps) and 80 bytes from L2 (11 ps
at 7 TB/s); the stencil issues about 32 instructions for each of its 961 taps (1040 ps).

Rows, counted through (n, row), are cut into strips of BLOCK_H rows by BLOCK_W groups; split i sums
strips [i * SPLIT_STRIPS, (i+1) * SPLIT_STRIPS). A bank per sample is a batch of such sums, each
over the rows of its own sample. Sums in float32. Zeros stand for rows and columns that dy does not
have, so an infinity or nan at the border of x can reach taps that do not use it.
"""

import triton
import triton.language as tl

from .indexing import at_least_one, input_coordinate, next_digit, round_down, widen
from .versions import fence_copies


@triton.jit
def wgrad_banded(
    x_ptr, dy_ptr, dw_ptr,
    H, W, P, Q, SAMPLES, SPLITS, SPLIT_STRIPS, GROUPS, GROUP_K, FIRST_ROW, ROWS,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    dw_stride_split,
    dw_stride_n, dw_stride_k, dw_stride_r, dw_stride_s,
    R: tl.constexpr, S: tl.constexpr,
    PAD_H: tl.constexpr, MODE: tl.constexpr,
    FIRST_W: tl.constexpr, SHIFT: tl.constexpr, COLUMNS: tl.constexpr, COLUMN_GROUP: tl.constexpr,
    X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    BLOCK_M: tl.constexpr = BLOCK_R * COLUMN_GROUP
    BLOCK_K: tl.constexpr = BLOCK_H * BLOCK_W
    program = widen(tl.program_id(0), WIDE)
    tile_i, program = next_digit(program, tl.cdiv(COLUMNS, BLOCK_I))
    tile_r, program = next_digit(program, tl.cdiv(R, BLOCK_R))
    split, program = next_digit(program, SPLITS)
    k, batch = next_digit(program, GROUPS * GROUP_K)

    m = tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    r, column = tile_r * BLOCK_R + m // COLUMN_GROUP, m % COLUMN_GROUP
    i = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]  # [1, BLOCK_I]
    x_base = x_ptr + (k // GROUP_K) * round_down(x_stride_c, X_ALIGN)
    dy_base = dy_ptr + k * round_down(dy_stride_k, Y_ALIGN) + column * dy_stride_q
    x_stride_n, x_stride_h = round_down(x_stride_n, X_ALIGN), round_down(x_stride_h, X_ALIGN)
    dy_stride_n, dy_stride_p = round_down(dy_stride_n, Y_ALIGN), round_down(dy_stride_p, Y_ALIGN)
    W, Q = round_down(W, X_ALIGN), round_down(Q, Y_ALIGN)

    acc = tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
    for step in range(at_least_one(SPLIT_STRIPS)):
        strip = split * SPLIT_STRIPS + widen(step, WIDE)
        tile_w, tile_h = next_digit(strip, tl.cdiv(Q, BLOCK_W * COLUMN_GROUP))
        lane = tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
        row, n = next_digit(tile_h * BLOCK_H + lane // BLOCK_W, ROWS)
        q = (tile_w * BLOCK_W + lane % BLOCK_W) * COLUMN_GROUP
        p = FIRST_ROW + row - r
        dy = tl.load(
            dy_base + (batch + n) * dy_stride_n + p * dy_stride_p + q * dy_stride_q,
            mask=(n < SAMPLES) & (r < R) & (p >= 0) & (p < P) & (column < Q - q),
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]

        lane = tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]
        row, n = next_digit(tile_h * BLOCK_H + lane // BLOCK_W, ROWS)
        q = (tile_w * BLOCK_W + lane % BLOCK_W) * COLUMN_GROUP
        h, h_inside = input_coordinate(FIRST_ROW + row, 0, 1, PAD_H, 1, H, MODE)
        w, w_inside = input_coordinate(q, i, 1, -FIRST_W, 1, W, MODE)
        x = tl.load(
            x_base + (batch + n) * x_stride_n + h * x_stride_h + w * x_stride_w,
            mask=(n < SAMPLES) & h_inside & w_inside,
            other=0.0,
        )  # [BLOCK_K, BLOCK_I]
        fence_copies(dy, PRECISION)
        acc = tl.dot(dy, x.to(dy.dtype), acc, input_precision=PRECISION, out_dtype=tl.float32)

    s = i + SHIFT - column  # [BLOCK_M, BLOCK_I]
    dw_base = dw_ptr + batch * dw_stride_n + k * dw_stride_k
    partial = split * COLUMN_GROUP + column
    stride_split, stride_r = widen(dw_stride_split, WIDE), widen(dw_stride_r, WIDE)
    tl.store(
        dw_base + partial * stride_split + r * stride_r + s * widen(dw_stride_s, WIDE),
        acc.to(dw_ptr.dtype.element_ty),
        mask=(r < R) & (s >= 0) & (s < S),
    )
