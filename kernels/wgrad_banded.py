"""Weight gradient on the matrix units for one channel per group: every tap from shifted rows.

    dw[k,0,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]        c = k // GROUP_K
    h = p * STRIDE_H - PAD_H + r        w = q * STRIDE_W - PAD_W + s

    GEMM_M = (j,column)    GEMM_N = (i,element)    GEMM_K = (n,row / ROW_GROUP,q / COLUMN_GROUP)

    acc[(j,column),(i,element)] +=
        dy[n,k,row - j,q + column] *
        x[n,c,row * STRIDE_H - PAD_H + i,q * STRIDE_W + FIRST_W + element]
    dw[r,s] = sum_{i,column} acc[((r - i) / STRIDE_H,column),(i,s - SHIFT + column * STRIDE_W)]

ROW_GROUP * STRIDE_H rows of the padded image are multiplied by all rows of dy that meet them
through a tap r = j * STRIDE_H + i, COLUMN_GROUP columns of dy at a time. These columns are
neighbours in memory for both operands, so loads are pieces of up to 16 bytes, whatever the stride.
The price: the sum of a tap is spread over a diagonal of COLUMN_GROUP elements for each i, and
products beside the band are wasted.

An element of dy is loaded (ROW_GROUP + J - 1) / ROW_GROUP times, J = R / STRIDE_H rounded up.
Diagonals are summed here if a program has all columns of the window; it stores ROW_GROUP partials,
for sum_partials. Of a wider window, ROW_GROUP is 1, and every element of a diagonal is a partial.

On an H200, derived and not measured: per pixel of dy, a 31x31 in 16 bits takes 2048 multiply-adds
(4.1 ps at the matrix units' rate), 131 lane instructions (4.4 ps) and 80 bytes from L2 (11 ps at
7 TB/s); the stencil issues about 32 instructions for each of its 961 taps (1040 ps).

Groups of rows, counted through (n, row / ROW_GROUP), are cut into strips of BLOCK_H groups by
BLOCK_W groups of columns; split i sums strips [i * SPLIT_STRIPS, (i+1) * SPLIT_STRIPS). A bank per
sample is a batch of such sums, each over the rows of its own sample. Sums in float32. Zeros take
the place of dy outside its rows and columns and are multiplied with x: an infinity or NaN at the
border of x can reach taps that do not use it.
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
    ROW_GROUP: tl.constexpr = TILE.ROW_GROUP
    BLOCK_W: tl.constexpr = TILE.BLOCK_W
    BLOCK_M: tl.constexpr = TILE.BLOCK_R * GROUP
    IMAGE_ROWS: tl.constexpr = ROW_GROUP * WINDOW.STRIDE_H
    DY_ROWS: tl.constexpr = (WINDOW.R - 1) // WINDOW.STRIDE_H + 1  # that a row of x meets
    BLOCK_N: tl.constexpr = IMAGE_ROWS * TILE.BLOCK_I
    BLOCK_K: tl.constexpr = TILE.BLOCK_H * BLOCK_W
    program = widen(tl.program_id(0), INT64)
    tile_i, program = next_digit(program, tl.cdiv(BAND.COLUMNS, TILE.BLOCK_I))
    tile_r, program = next_digit(program, tl.cdiv(DY_ROWS + ROW_GROUP - 1, TILE.BLOCK_R))
    split, program = next_digit(program, SPLITS)
    k, batch = next_digit(program, GROUPS * GROUP_K)

    m = tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    j, column = tile_r * TILE.BLOCK_R + m // GROUP - (ROW_GROUP - 1), m % GROUP
    place = tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    i, element = place // TILE.BLOCK_I, tile_i * TILE.BLOCK_I + place % TILE.BLOCK_I
    x_strides = align_planes(x_strides, BAND.X_ALIGN)
    dy_strides = align_planes(dy_strides, BAND.Y_ALIGN)
    W, Q = round_down(W, BAND.X_ALIGN), round_down(Q, BAND.Y_ALIGN)
    tl.assume(P > 0)
    tl.assume(H > 0)
    tl.assume(W > 0)
    x_base = at(x_ptr, x_strides, 0, k // GROUP_K, 0, 0)
    dy_base = at(dy_ptr, dy_strides, 0, k, 0, column)
    IN_PIECES: tl.constexpr = BAND.X_ALIGN > 2 and BAND.Y_ALIGN > 2

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(at_least_one(SPLIT_STRIPS)):
        strip = split * SPLIT_STRIPS + widen(step, INT64)
        tile_w, tile_h = next_digit(strip, tl.cdiv(Q, BLOCK_W * GROUP))
        lane = tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
        row, n = _rows_of(lane // BLOCK_W, tile_h, ROWS, TILE.BLOCK_H, IN_PIECES)
        q = (tile_w * BLOCK_W + lane % BLOCK_W) * GROUP
        p = FIRST_ROW + row * ROW_GROUP - j
        offset = (batch + n) * dy_strides[0] + p * dy_strides[2] + q * dy_strides[3]
        dy = tl.load(
            dy_base + offset,
            mask=(n < SAMPLES) & (j < DY_ROWS) & (p >= 0) & (p < P) & (column < Q - q),
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]

        lane = tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]
        row, n = _rows_of(lane // BLOCK_W, tile_h, ROWS, TILE.BLOCK_H, IN_PIECES)
        q = (tile_w * BLOCK_W + lane % BLOCK_W) * GROUP
        row = FIRST_ROW + row * ROW_GROUP
        h, h_inside = input_coordinate(row, i, WINDOW.STRIDE_H, WINDOW.PAD_H, 1, H, WINDOW.MODE)
        w, w_inside = input_coordinate(
            q, element, WINDOW.STRIDE_W, -BAND.FIRST_W, 1, W, WINDOW.MODE
        )
        offset = (batch + n) * x_strides[0] + h * x_strides[2] + w * x_strides[3]
        x = tl.load(
            x_base + offset, mask=(n < SAMPLES) & h_inside & w_inside, other=0.0
        )  # [BLOCK_K, BLOCK_N]
        fence_copies(dy, PRECISION)
        acc = tl.dot(dy, x.to(dy.dtype), acc, input_precision=PRECISION, out_dtype=tl.float32)

    dw_base = dw_ptr + batch * dw_strides[0] + k * dw_strides[1]
    stride_split, stride_r = widen(dw_stride_split, INT64), widen(dw_strides[3], INT64)
    stride_s = widen(dw_strides[4], INT64)
    if TILE.PARTIALS > ROW_GROUP:
        r = j * WINDOW.STRIDE_H + i  # [BLOCK_M, BLOCK_N]
        s = element + BAND.SHIFT - column * WINDOW.STRIDE_W
        partial = split * GROUP + column
        tl.store(
            dw_base + partial * stride_split + r * stride_r + s * stride_s,
            acc.to(dw_ptr.dtype.element_ty),
            mask=(r >= 0) & (r < WINDOW.R) & (s >= 0) & (s < WINDOW.S),
        )
    else:
        # With (column, element) in one row, the elements of a diagonal are BLOCK_I + STRIDE_W
        # apart.
        TAPS: tl.constexpr = triton.next_power_of_2(WINDOW.S)
        shape: tl.constexpr = [TILE.BLOCK_R, GROUP, IMAGE_ROWS, TILE.BLOCK_I]
        rows = tl.permute(tl.reshape(acc, shape), (0, 2, 1, 3))
        rows = tl.reshape(rows, [TILE.BLOCK_R * IMAGE_ROWS, GROUP * TILE.BLOCK_I])
        place = tl.arange(0, GROUP * TAPS)[None, :]  # (column, s)
        place = place // TAPS * (TILE.BLOCK_I + WINDOW.STRIDE_W) + place % TAPS - BAND.SHIFT
        place = tl.minimum(place, GROUP * TILE.BLOCK_I - 1)  # for s >= S, which are not stored
        place = tl.broadcast_to(place, [TILE.BLOCK_R * IMAGE_ROWS, GROUP * TAPS])
        diagonals = tl.reshape(
            tl.gather(rows, place, axis=1), [TILE.BLOCK_R * IMAGE_ROWS, GROUP, TAPS]
        )
        dw = tl.sum(diagonals, axis=1)  # [(j,i), s]
        row = tl.arange(0, TILE.BLOCK_R * IMAGE_ROWS)[:, None]
        i, s = row % IMAGE_ROWS, tl.arange(0, TAPS)[None, :]
        j = tile_r * TILE.BLOCK_R + row // IMAGE_ROWS - (ROW_GROUP - 1)
        r = j * WINDOW.STRIDE_H + i
        partial = split * ROW_GROUP + i // WINDOW.STRIDE_H
        tl.store(
            dw_base + partial * stride_split + r * stride_r + s * stride_s,
            dw.to(dw_ptr.dtype.element_ty),
            mask=(r >= 0) & (r < WINDOW.R) & (s < WINDOW.S),
        )


@triton.jit
def _rows_of(line, tile, ROWS, BLOCK: tl.constexpr, KEPT: tl.constexpr):
    """(group of rows, n) of a tile's lines; KEPT: the quotient of `line` is kept across steps."""
    if BLOCK == 1:
        row, n = next_digit(tile, ROWS)
    elif KEPT:
        row, n = next_digit(line, ROWS)
        first_row, first_n = next_digit(tile * BLOCK, ROWS)
        row += first_row
        carry = row >= ROWS
        n += first_n + tl.where(carry, 1, 0)
        row -= tl.where(carry, ROWS, 0)
    else:
        row, n = next_digit(tile * BLOCK + line, ROWS)
    return row, n
