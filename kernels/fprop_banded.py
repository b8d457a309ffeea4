"""Forward on the matrix units for one channel per group: a filter as a matrix with a band.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{r,s} x[n,c,h,w] * weight[k,0,r,s])
    c = k // GROUP_K        h = p - PAD_H + r        w = q - PAD_W + s

    GEMM_M = blocks of BLOCK_P x BLOCK_Q outputs, over planes (n) and their rows and columns
    GEMM_N = the outputs (p,q) of a block
    GEMM_K = the input (row,i) that a block reads: BLOCK_P + R - 1 rows of COLUMNS columns

    acc[block,(p,q)] += x[block,(row,i)] * bands[(row,i),(p,q)]
    bands[(row,i),(p,q)] = weight[row - p, i + SHIFT - q] inside the window, else 0

So an input element is read (BLOCK_P + R - 1) * COLUMNS / (BLOCK_P * BLOCK_Q) times instead of R * S
times, and that many products are done for an output, most of them with zeros, on units that are
that much faster. build_bands stores one column q of the matrix as a line of rows, in which the
column (p,q) starts BLOCK_P - 1 - p rows after the first: addresses are linear in (row,i).

What bounds it on a H200, derived from machine code and the datasheet, not measured: a 31x31 in 16
bits with blocks of 8x16, 128 of them, takes for an output 1824 multiply-adds (3.7 ps at the matrix
units' rate), 93 instructions of a lane (3.2 ps) and 57 bytes from L2 (8 ps at 7 TB/s), while its
4 bytes of device memory take 0.9 ps; a 9x9 takes 512 multiply-adds and 16 bytes from L2 (2.3 ps).
So it waits for L2, and a larger tile, not fewer instructions, would make it wait less. The stencil
issues about 15 instructions for a tap: 14400 (490 ps) for the 31x31.

Sums in float32. Because zeros are multiplied, an infinity or nan reaches all outputs of the blocks
that load it. The input gradient is the same correlation of dy with the window turned, and runs
here too: see Geometry.adjoint.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .indexing import at_least_one, input_coordinate, next_digit, round_down, widen
from .versions import fence_copies


@triton.jit
def fprop_banded(
    x_ptr, bands_ptr, bias_ptr, residual_ptr, y_ptr,
    H, W, P, Q, SAMPLES, GROUPS, GROUP_K,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    bias_stride,
    residual_stride_n, residual_stride_k, residual_stride_p, residual_stride_q,
    y_stride_n, y_stride_k, y_stride_p, y_stride_q,
    R: tl.constexpr,
    PAD_H: tl.constexpr, MODE: tl.constexpr, ACTIVATION: tl.constexpr,
    FIRST_W: tl.constexpr, COLUMNS: tl.constexpr, X_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    LINE: tl.constexpr = (R + 2 * (BLOCK_P - 1)) * COLUMNS
    blocks_p, blocks_q = tl.cdiv(P, BLOCK_P), tl.cdiv(Q, BLOCK_Q)
    program = widen(tl.program_id(0), WIDE)
    tile_m, program = next_digit(program, tl.cdiv(blocks_p * blocks_q * SAMPLES, BLOCK_M))
    k, batch = next_digit(program, GROUPS * GROUP_K)

    # Rows of blocks are the slowest digit of m: a tile reads as few rows of the input as can be.
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    block_q, line = next_digit(m, blocks_q)
    n, block_p = next_digit(line, SAMPLES)
    n += batch
    p, q = block_p * BLOCK_P, block_q * BLOCK_Q
    stride_n, stride_h = round_down(x_stride_n, X_ALIGN), round_down(x_stride_h, X_ALIGN)
    x_base = x_ptr + n * stride_n + (k // GROUP_K) * round_down(x_stride_c, X_ALIGN)

    pq = tl.arange(0, BLOCK_P * BLOCK_Q)[None, :]  # [1, BLOCK_P * BLOCK_Q]
    block_row, column = pq // BLOCK_Q, pq % BLOCK_Q
    bands_base = bands_ptr + (batch * (GROUPS * GROUP_K) + k) * (BLOCK_Q * LINE)
    bands_base += column * LINE + (BLOCK_P - 1 - block_row) * COLUMNS

    # Rows of zeros are left out where they are so for the whole tile.
    first_p = tile_m * BLOCK_M // (blocks_q * SAMPLES) * BLOCK_P
    last_p = (tile_m * BLOCK_M + BLOCK_M - 1) // (blocks_q * SAMPLES) * BLOCK_P
    first = 0
    end = (BLOCK_P + R - 1) * COLUMNS
    if MODE == "zeros":
        first = tl.maximum(0, PAD_H - last_p) * COLUMNS
        end = tl.minimum(BLOCK_P + R - 1, H + PAD_H - first_p) * COLUMNS

    acc = tl.zeros([BLOCK_M, BLOCK_P * BLOCK_Q], tl.float32)
    start = first
    for _ in range(at_least_one(tl.cdiv(end - first, BLOCK_K))):
        lane = start + tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
        i, row = next_digit(lane, COLUMNS)
        h, h_inside = input_coordinate(p, row, 1, PAD_H, 1, H, MODE)
        w, w_inside = input_coordinate(q, i, 1, -FIRST_W, 1, round_down(W, X_ALIGN), MODE)
        x = tl.load(
            x_base + h * stride_h + w * x_stride_w,
            mask=(block_p < blocks_p) & h_inside & w_inside & (lane < end),
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]
        lane = start + tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]
        bands = tl.load(
            bands_base + lane, mask=lane < end, other=0.0
        )  # [BLOCK_K, BLOCK_P * BLOCK_Q]
        fence_copies(bands, PRECISION)
        acc = tl.dot(x.to(bands.dtype), bands, acc, input_precision=PRECISION, out_dtype=tl.float32)
        start += BLOCK_K

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride)
    y_base = y_ptr + n * round_down(y_stride_n, Y_ALIGN) + k * round_down(y_stride_k, Y_ALIGN)
    y_stride_p = round_down(y_stride_p, Y_ALIGN)
    y_base += p * y_stride_p + q * y_stride_q  # [BLOCK_M, 1]
    exists = (block_p < blocks_p) & (block_row < P - p) & (column < round_down(Q, Y_ALIGN) - q)
    if residual_ptr is not None:
        residual = residual_ptr + n * residual_stride_n + k * residual_stride_k
        residual += (p + block_row) * residual_stride_p + (q + column) * residual_stride_q
        acc = add_residual(acc, residual, exists)
    tl.store(
        y_base + (block_row * y_stride_p + column * y_stride_q),
        activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty),
        mask=exists,
    )
