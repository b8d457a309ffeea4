"""Weight gradient as an implicit GEMM on the matrix units, split over pixels.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = filters k of one group    GEMM_N = (r,s,c)    GEMM_K = pixels (n,p,q)

Sums in float32 (float64 for float64). Split i sums pixels [i * SPLIT_PIXELS, (i+1) * SPLIT_PIXELS)
and stores at `i * dw_stride_split`: a partial for sum_partials, or dw itself when there is one
split. A bank per sample is a batch of GEMMs, each over the pixels (p,q) of its own sample.
"""

import triton
import triton.language as tl

from .indexing import input_coordinate, next_digit, split_pixel, split_reduction, widen


@triton.jit
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
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = widen(tl.program_id(0), WIDE)
    tile_m, program = next_digit(program, tl.cdiv(GROUP_K, BLOCK_M))
    tile_n, program = next_digit(program, tl.cdiv(GROUP_C * R * S, BLOCK_N))
    split, program = next_digit(program, SPLITS)
    group, batch = next_digit(program, GROUPS)

    group_k = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    k = group * GROUP_K + group_k
    lane = tl.arange(0, BLOCK_N)[None, :]
    r, s, c, c_valid = split_reduction(tile_n, lane, GROUP_C, R, S, BLOCK_N, False)  # [1, BLOCK_N]
    x_base = x_ptr + (group * GROUP_C + c) * x_stride_c
    dy_base = dy_ptr + k * dy_stride_k
    first = split * SPLIT_PIXELS
    last = tl.minimum(first + SPLIT_PIXELS, PIXELS)

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for i in range(tl.cdiv(SPLIT_PIXELS, BLOCK_K)):
        start = first + widen(i, WIDE) * BLOCK_K
        m = start + tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
        n, p, q = split_pixel(m, P, Q)
        dy = tl.load(
            dy_base + (batch + n) * dy_stride_n + p * dy_stride_p + q * dy_stride_q,
            mask=(group_k < GROUP_K) & (m < last),
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]

        m = start + tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]
        n, p, q = split_pixel(m, P, Q)
        h, h_inside = input_coordinate(p, r, STRIDE_H, PAD_H, DIL_H, H, MODE)
        w, w_inside = input_coordinate(q, s, STRIDE_W, PAD_W, DIL_W, W, MODE)
        x = tl.load(
            x_base + (batch + n) * x_stride_n + h * x_stride_h + w * x_stride_w,
            mask=(m < last) & h_inside & w_inside & c_valid,
            other=0.0,
        )  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(dy, x.to(dy.dtype), acc, input_precision=PRECISION, out_dtype=ACC)

    tl.store(
        dw_ptr
        + split * dw_stride_split
        + batch * dw_stride_n
        + k * dw_stride_k
        + c * dw_stride_c
        + r * dw_stride_r
        + s * dw_stride_s,
        acc.to(dw_ptr.dtype.element_ty),
        mask=(group_k < GROUP_K) & c_valid,
    )
