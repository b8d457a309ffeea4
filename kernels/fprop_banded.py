"""Forward on the matrix units for one channel per group: a filter as a band matrix.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{r,s} x[n,c,h,w] * weight[k,0,r,s])
    c = k // GROUP_K        h = p - PAD_H + r        w = q - PAD_W + s

    GEMM_M = blocks of BLOCK_P x BLOCK_Q outputs, over planes (n) and their rows and columns
    GEMM_N = the outputs (p,q) of a block
    GEMM_K = the input (row,i) that a block reads: BLOCK_P + R - 1 rows of COLUMNS columns

    acc[block,(p,q)] += x[block,(row,i)] * bands[(row,i),(p,q)]
    bands[(row,i),(p,q)] = weight[row - p, i + SHIFT - q] inside the window, else 0

Per output, (BLOCK_P + R - 1) * COLUMNS / (BLOCK_P * BLOCK_Q) input elements are loaded instead of
R * S, and the matrix units do (BLOCK_P + R - 1) * COLUMNS products, most of them with zeros.
build_bands stores one line of rows for each q. Column (p,q) of the matrix is that line from its row
BLOCK_P - 1 - p on, so addresses are linear in (row,i).

Bound on an H200, derived from machine code and the datasheet, not measured: per output, a 31x31 in
16 bits with 256 blocks of 8x16 takes 1824 multiply-adds (3.7 ps at the matrix units' rate), 78
lane instructions (2.7 ps), 43 bytes from L2 (6 ps at 7 TB/s) and 4 bytes of device memory (0.9 ps);
a 9x9 takes 512 multiply-adds and 12 bytes from L2 (1.7 ps). L2 is the bound: a larger tile would
help, fewer instructions would not. The stencil issues about 15 instructions per tap: 14400 (490 ps)
for the 31x31.

Sums in float32. Because zeros are multiplied, an infinity or NaN reaches all outputs of the blocks
that load it. The input gradient is the same correlation of dy with the window flipped, and runs
here too: see Geometry.adjoint.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .hints import align_planes, at_least_one, round_down
from .indexing import input_coordinate
from .schedule import next_digit, widen
from .structs import at
from .versions import fence_copies, finish_products


@triton.jit
def fprop_banded(
    x_ptr, bands_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, SAMPLES, GROUPS, GROUP_K,
    x_strides, bias_stride, residual_strides, y_strides,
    WINDOW: tl.constexpr, BAND: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    P, Q = y_shape
    BLOCK_P: tl.constexpr = TILE.BLOCK_P
    BLOCK_Q: tl.constexpr = TILE.BLOCK_Q
    BLOCK_K: tl.constexpr = TILE.BLOCK_K
    LINE: tl.constexpr = (WINDOW.R + 2 * (BLOCK_P - 1)) * BAND.COLUMNS
    blocks_p, blocks_q = tl.cdiv(P, BLOCK_P), tl.cdiv(Q, BLOCK_Q)
    program = widen(tl.program_id(0), INT64)
    tile_m, program = next_digit(program, tl.cdiv(blocks_p * blocks_q * SAMPLES, TILE.BLOCK_M))
    k, batch = next_digit(program, GROUPS * GROUP_K)

    # Rows of blocks are the slowest digit of m, so that a tile reads the fewest input rows.
    m = tile_m * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)[:, None]  # [BLOCK_M, 1]
    block_q, line = next_digit(m, blocks_q)
    n, block_p = next_digit(line, SAMPLES)
    n += batch
    p, q = block_p * BLOCK_P, block_q * BLOCK_Q
    x_strides = align_planes(x_strides, BAND.X_ALIGN)
    x_base = at(x_ptr, x_strides, n, k // GROUP_K, 0, 0)

    pq = tl.arange(0, BLOCK_P * BLOCK_Q)[None, :]  # [1, BLOCK_P * BLOCK_Q]
    block_row, column = pq // BLOCK_Q, pq % BLOCK_Q
    bands_base = bands_ptr + (batch * (GROUPS * GROUP_K) + k) * (BLOCK_Q * LINE)
    bands_base += column * LINE + (BLOCK_P - 1 - block_row) * BAND.COLUMNS

    # Skip rows that are padding for the whole tile.
    first_p = tile_m * TILE.BLOCK_M // (blocks_q * SAMPLES) * BLOCK_P
    last_p = (tile_m * TILE.BLOCK_M + TILE.BLOCK_M - 1) // (blocks_q * SAMPLES) * BLOCK_P
    first = 0
    end = (BLOCK_P + WINDOW.R - 1) * BAND.COLUMNS
    if WINDOW.MODE == "zeros":
        first = tl.maximum(0, WINDOW.PAD_H - last_p) * BAND.COLUMNS
        end = tl.minimum(BLOCK_P + WINDOW.R - 1, H + WINDOW.PAD_H - first_p) * BAND.COLUMNS

    acc = tl.zeros([TILE.BLOCK_M, BLOCK_P * BLOCK_Q], tl.float32)
    start = first
    for _ in range(at_least_one(tl.cdiv(end - first, BLOCK_K))):
        lane = start + tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
        i, row = next_digit(lane, BAND.COLUMNS)
        h, h_inside = input_coordinate(p, row, 1, WINDOW.PAD_H, 1, H, WINDOW.MODE)
        w, w_inside = input_coordinate(
            q, i, 1, -BAND.FIRST_W, 1, round_down(W, BAND.X_ALIGN), WINDOW.MODE
        )
        x = tl.load(
            at(x_base, x_strides, 0, 0, h, w),
            mask=(block_p < blocks_p) & h_inside & w_inside & (lane < end),
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]
        lane = start + tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]
        bands = tl.load(
            bands_base + lane, mask=lane < end, other=0.0
        )  # [BLOCK_K, BLOCK_P * BLOCK_Q]
        fence_copies(bands, PRECISION)
        acc = tl.dot(x.to(bands.dtype), bands, acc, input_precision=PRECISION, out_dtype=tl.float32)
        if x.dtype != bands.dtype:  # x is in registers
            acc = finish_products(acc)
        start += BLOCK_K

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride)
    y_strides = align_planes(y_strides, BAND.Y_ALIGN)
    y_base = at(y_ptr, y_strides, n, k, p, q)  # [BLOCK_M, 1]
    mask = (block_p < blocks_p) & (block_row < P - p) & (column < round_down(Q, BAND.Y_ALIGN) - q)
    if residual_ptr is not None:
        residual = at(residual_ptr, residual_strides, n, k, p + block_row, q + column)
        acc = add_residual(acc, residual, mask)
    tl.store(
        y_base + (block_row * y_strides[2] + column * y_strides[3]),
        activate(acc, ACTIVATION, y_ptr.dtype.element_ty),
        mask=mask,
    )
