"""Weight gradient on the matrix units for one channel per group: every tap from shifted rows.

    dw[k,0,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]        c = k // GROUP_K
    h = p - PAD_H + r        w = q - PAD_W + s

    GEMM_M = (r,column)    GEMM_N = i    GEMM_K = (n,row,q / COLUMN_GROUP)

    acc[(r,column),i] += dy[n,k,row - r,q + column] * x[n,c,row - PAD_H,q + FIRST_W + i]
    dw[r,s] = sum_column acc[(r,column), s + column - SHIFT]

Each row of the padded image is multiplied by the rows of dy that its taps r reach, COLUMN_GROUP
columns at a time, which are neighbours in memory for both operands: all loads are whole pieces. In
return the sum of a tap lies on a diagonal of COLUMN_GROUP elements, and products beside the band
are wasted. Each element of a diagonal is stored as a partial, for sum_partials.

On a H200, derived and not measured: per pixel of dy, a 31x31 in 16 bits takes 2048 multiply-adds
(4.1 ps at the matrix units' rate), 131 lane instructions (4.4 ps) and 80 bytes from L2 (11 ps at
7 TB/s); the stencil issues about 32 instructions for each of its 961 taps (1040 ps).

Rows, counted through (n, row), are cut into strips of BLOCK_H rows by BLOCK_W groups; split i sums
strips [i * SPLIT_STRIPS, (i+1) * SPLIT_STRIPS). A bank per sample is a batch of such sums, each
over the rows of its own sample. Sums in float32. Zeros stand for rows and columns that dy does not
have, so an infinity or NaN at the border of x can reach taps that do not use it.
"""

import triton
import triton.language as tl

from .hints import align_planes, at_least_one, round_down
from .indexing import input_coordinate
from .schedule import next_digit, widen
from .structs import at
from .versions import fence_copies


@triton.jit
def wgrad_banded(
    x_ptr, dy_ptr, dw_ptr,
    x_shape, y_shape, SAMPLES, SPLITS, SPLIT_STRIPS, GROUPS, GROUP_K, FIRST_ROW, ROWS,
    x_strides, dy_strides, dw_stride_split, dw_strides,
    WINDOW: tl.constexpr, BAND: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    P, Q = y_shape
    GROUP: tl.constexpr = BAND.COLUMN_GROUP
    BLOCK_W: tl.constexpr = TILE.BLOCK_W
    BLOCK_M: tl.constexpr = TILE.BLOCK_R * GROUP
    BLOCK_K: tl.constexpr = TILE.BLOCK_H * BLOCK_W
    program = widen(tl.program_id(0), INT64)
    tile_i, program = next_digit(program, tl.cdiv(BAND.COLUMNS, TILE.BLOCK_I))
    tile_r, program = next_digit(program, tl.cdiv(WINDOW.R, TILE.BLOCK_R))
    split, program = next_digit(program, SPLITS)
    k, batch = next_digit(program, GROUPS * GROUP_K)

    m = tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    r, column = tile_r * TILE.BLOCK_R + m // GROUP, m % GROUP
    i = tile_i * TILE.BLOCK_I + tl.arange(0, TILE.BLOCK_I)[None, :]  # [1, BLOCK_I]
    x_strides = align_planes(x_strides, BAND.X_ALIGN)
    dy_strides = align_planes(dy_strides, BAND.Y_ALIGN)
    W, Q = round_down(W, BAND.X_ALIGN), round_down(Q, BAND.Y_ALIGN)
    x_base = at(x_ptr, x_strides, 0, k // GROUP_K, 0, 0)
    dy_base = at(dy_ptr, dy_strides, 0, k, 0, column)

    acc = tl.zeros([BLOCK_M, TILE.BLOCK_I], tl.float32)
    for step in range(at_least_one(SPLIT_STRIPS)):
        strip = split * SPLIT_STRIPS + widen(step, INT64)
        tile_w, tile_h = next_digit(strip, tl.cdiv(Q, BLOCK_W * GROUP))
        lane = tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
        row, n = next_digit(tile_h * TILE.BLOCK_H + lane // BLOCK_W, ROWS)
        q = (tile_w * BLOCK_W + lane % BLOCK_W) * GROUP
        p = FIRST_ROW + row - r
        dy = tl.load(
            at(dy_base, dy_strides, batch + n, 0, p, q),
            mask=(n < SAMPLES) & (r < WINDOW.R) & (p >= 0) & (p < P) & (column < Q - q),
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]

        lane = tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]
        row, n = next_digit(tile_h * TILE.BLOCK_H + lane // BLOCK_W, ROWS)
        q = (tile_w * BLOCK_W + lane % BLOCK_W) * GROUP
        h, h_inside = input_coordinate(FIRST_ROW + row, 0, 1, WINDOW.PAD_H, 1, H, WINDOW.MODE)
        w, w_inside = input_coordinate(q, i, 1, -BAND.FIRST_W, 1, W, WINDOW.MODE)
        x = tl.load(
            at(x_base, x_strides, batch + n, 0, h, w),
            mask=(n < SAMPLES) & h_inside & w_inside,
            other=0.0,
        )  # [BLOCK_K, BLOCK_I]
        fence_copies(dy, PRECISION)
        acc = tl.dot(dy, x.to(dy.dtype), acc, input_precision=PRECISION, out_dtype=tl.float32)

    s = i + BAND.SHIFT - column  # [BLOCK_M, BLOCK_I]
    dw_base = dw_ptr + batch * dw_strides[0] + k * dw_strides[1]
    partial = split * GROUP + column
    stride_split, stride_r = widen(dw_stride_split, INT64), widen(dw_strides[3], INT64)
    tl.store(
        dw_base + partial * stride_split + r * stride_r + s * widen(dw_strides[4], INT64),
        acc.to(dw_ptr.dtype.element_ty),
        mask=(r < WINDOW.R) & (s >= 0) & (s < WINDOW.S),
    )
