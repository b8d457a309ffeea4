"""Sums of products of two images at every lag, split over rows: what normal matrices are made of.

    out[c,d,r,s] = sum_{n,p,q} a[n,c,p,q] * b[n,d,p+r,q+s]

No GEMM view: a program owns BLOCK_S lags s of one (c,d,r) and sums over BLOCK_Q columns of one row
(n,p) at a time: a row of a is multiplied by the lagged rows of b in registers. Operands of any type
become float64 before the product, and sums are float64: float32 products would be exact for 16-bit
and 8-bit operands, but not for float32 ones.

Split i sums rows [i * SPLIT_ROWS, (i+1) * SPLIT_ROWS), counted through (n, p), and stores at
`i * out_stride_split`: a partial for sum_partials, or the result itself when there is one split.
"""

import triton
import triton.language as tl

from .schedule import as_block, next_digit, widen
from .structs import at


@triton.jit
def lag_sums(
    a_ptr, b_ptr, out_ptr,
    D, a_shape, lags, ROWS, SPLITS, SPLIT_ROWS,
    a_strides, b_strides, out_stride_split,
    INT64: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    P, Q = a_shape
    R, S = lags
    program = widen(tl.program_id(0), INT64)
    tile_s, program = next_digit(program, tl.cdiv(S, BLOCK_S))
    r, program = next_digit(program, R)
    d, program = next_digit(program, D)
    split, c = next_digit(program, SPLITS)
    s = tile_s * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]  # [BLOCK_S, 1]
    a_base = at(a_ptr, a_strides, 0, c, 0, 0)
    b_base = at(b_ptr, b_strides, 0, d, 0, s)
    first = split * SPLIT_ROWS
    last = tl.minimum(first + SPLIT_ROWS, ROWS)
    tiles = tl.cdiv(Q, BLOCK_Q)

    acc = tl.zeros([BLOCK_S, BLOCK_Q], tl.float64)
    for step in range(SPLIT_ROWS * tiles):
        tile_q, row = next_digit(widen(step, INT64), tiles)
        row += first
        p, n = next_digit(row, P)
        q = tile_q * BLOCK_Q + tl.arange(0, BLOCK_Q)[None, :]  # [1, BLOCK_Q]
        pixel = (as_block(row) < last) & (q < Q)
        a = tl.load(at(a_base, a_strides, n, 0, p, q), mask=pixel, other=0.0)  # [1, BLOCK_Q]
        b = tl.load(
            at(b_base, b_strides, n, 0, p + r, q), mask=pixel & (s < S), other=0.0
        )  # [BLOCK_S, BLOCK_Q]
        acc += a.to(tl.float64) * b.to(tl.float64)

    out = tl.sum(acc, axis=1, keep_dims=True)  # [BLOCK_S, 1]
    tl.store(out_ptr + split * out_stride_split + ((c * D + d) * R + r) * S + s, out, mask=s < S)
