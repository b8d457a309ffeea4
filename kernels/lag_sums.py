"""Sums of products of two images at every lag, split over rows: what normal matrices are made of.

    out[c,d,r,s] = sum_{n,p,q} a[n,c,p,q] * b[n,d,p+r,q+s]

No GEMM view: a program owns BLOCK_R x BLOCK_S lags (r, s) of one (c,d), and a lane LANE_Q
neighbouring columns. A program runs over strips of BLOCK_P rows and BLOCK_Q columns of a, and walks
down each: a row of b is loaded once and multiplied by the rows of a that reach it, up to BLOCK_R of
them, in registers. Operands of any type become float64 when they are loaded, and sums are float64:
float32 products would be exact for 16-bit and 8-bit operands, but not for float32 ones.

Strips are counted through (n, rows of strips, columns of strips); split i sums strips
[i * SPLIT_STRIPS, (i+1) * SPLIT_STRIPS) and stores at `i * out_stride_split`: a partial for
sum_partials, or the result itself when there is one split.
"""

import triton
import triton.language as tl

from .hints import align_planes
from .pieces import columns_end, load_columns
from .schedule import as_block, next_digit, widen
from .structs import at


@triton.jit
def lag_sums(
    a_ptr, b_ptr, out_ptr,
    N, D, a_shape, lags, SPLITS, SPLIT_STRIPS,
    a_strides, b_strides, out_stride_split,
    ALIGN: tl.constexpr, INT64: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
    LANE_Q: tl.constexpr,
):  # fmt: skip
    P, Q = a_shape
    R, S = lags
    STEP_S: tl.constexpr = (BLOCK_S + ALIGN - 1) // ALIGN * ALIGN  # where pieces start
    program = widen(tl.program_id(0), INT64)
    tile_s, program = next_digit(program, tl.cdiv(S, STEP_S))
    tile_r, program = next_digit(program, tl.cdiv(R, BLOCK_R))
    d, program = next_digit(program, D)
    split, c = next_digit(program, SPLITS)
    r, s = tile_r * BLOCK_R, tile_s * STEP_S
    a_strides, b_strides = align_planes(a_strides, ALIGN), align_planes(b_strides, ALIGN)

    # Columns of b that the walk without masks reads: whole pieces, if rows are aligned.
    LAST: tl.constexpr = LANE_Q + BLOCK_S - 1
    READ: tl.constexpr = BLOCK_Q - LANE_Q + columns_end(0, LAST, ALIGN)
    sums = ()  # (r, s)
    for _ in tl.static_range(BLOCK_R * BLOCK_S):
        sums = sums + (tl.zeros([1, BLOCK_Q // LANE_Q], tl.float64),)
    for i in range(SPLIT_STRIPS):
        strip = split * SPLIT_STRIPS + widen(i, INT64)
        tile_q, line = next_digit(strip, tl.cdiv(Q, BLOCK_Q))
        tile_p, n = next_digit(line, tl.cdiv(P, BLOCK_P))
        p, first_q = tile_p * BLOCK_P, tile_q * BLOCK_Q
        q = first_q + tl.arange(0, BLOCK_Q // LANE_Q)[None, :] * LANE_Q  # [1, lanes]
        a_row = at(a_ptr, a_strides, n, c, p, q)
        b_row = at(b_ptr, b_strides, n, d, p + r, q + s)
        inside = (n < N) & (p + BLOCK_P <= P) & (r + BLOCK_R <= R) & (s + BLOCK_S <= S)
        if inside & (first_q + BLOCK_Q <= Q) & (first_q + s + READ < Q + S):
            sums = _walk_down(
                sums, a_row, b_row, a_strides, b_strides, BLOCK_P, 0, 0, 0,
                ALIGN, BLOCK_R, BLOCK_S, BLOCK_P, LANE_Q, False,
            )  # fmt: skip
        elif n < N:
            sums = _walk_down(
                sums, a_row, b_row, a_strides, b_strides, tl.minimum(P - p, BLOCK_P), R - r,
                Q - q, S - s, ALIGN, BLOCK_R, BLOCK_S, BLOCK_P, LANE_Q, True,
            )  # fmt: skip

    out = out_ptr + split * out_stride_split + ((c * D + d) * R + r) * S + s
    for lag in tl.static_range(BLOCK_R * BLOCK_S):
        total = tl.sum(sums[lag], axis=1, keep_dims=True)  # [1, 1]
        row, column = lag // BLOCK_S, lag % BLOCK_S
        exists = (as_block(r) + row < R) & (as_block(s) + column < S)
        tl.store(out + tl.zeros_like(total).to(tl.int32) + row * S + column, total, mask=exists)


@triton.jit
def _walk_down(
    sums, a_row, b_row, a_strides, b_strides, rows, R, Q, S,
    ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr,
    LANE_Q: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with those of a strip; R, S lags exist from its first one on, Q columns of a."""
    held = ()  # (row of a, column), the oldest row first
    for _ in tl.static_range((BLOCK_R - 1) * LANE_Q):
        held = held + (tl.zeros_like(sums[0]),)
    for j in range(BLOCK_P + BLOCK_R - 1):
        row = as_block(j)  # [1, 1]
        if ALIGN == LANE_Q and not MASKED:
            a = load_columns(a_row, row < rows, 0, LANE_Q, LANE_Q, tl.float64)
            b = load_columns(b_row, None, 0, LANE_Q + BLOCK_S - 1, LANE_Q, tl.float64)
        else:
            of_a, of_b = row < rows, row < rows + BLOCK_R - 1
            if MASKED:
                of_b = row < rows + R - 1
            a = _load(a_row, a_strides[3], of_a, Q, LANE_Q, MASKED)
            b = _load(b_row, b_strides[3], of_b, Q + S - 1, LANE_Q + BLOCK_S - 1, MASKED)
        held = held + a
        updated = ()
        for lag in tl.static_range(BLOCK_R * BLOCK_S):
            total = sums[lag]
            for i in tl.static_range(LANE_Q):
                pixel = held[(BLOCK_R - 1 - lag // BLOCK_S) * LANE_Q + i]
                total = tl.fma(pixel, b[lag % BLOCK_S + i], total)
            updated = updated + (total,)
        sums = updated
        held = held[LANE_Q:]
        a_row += a_strides[2]
        b_row += b_strides[2]
    return sums


@triton.jit
def _load(row, stride, mask, columns, COUNT: tl.constexpr, MASKED: tl.constexpr):
    """COUNT columns, one by one, of which `columns` exist if MASKED: a tuple of [1, lanes]."""
    loaded = ()
    for i in tl.static_range(COUNT):
        if MASKED:
            pixel = tl.load(row + i * stride, mask=mask & (i < columns), other=0.0)
        else:
            pixel = tl.load(row + i * stride, mask=mask, other=0.0)
        loaded = loaded + (pixel.to(tl.float64),)
    return loaded
