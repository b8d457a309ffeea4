"""Forward as an implicit GEMM on the matrix units.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = pixels (n,p,q)    GEMM_N = filters k of one group    GEMM_K = (r,s,c)

Sums in float32 (float64 for float64). A bank per sample is a batch of GEMMs whose pixels are
(p,q) of one sample; otherwise the batch has one member and `weight_stride_n` is not used.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .indexing import (
    input_coordinate,
    next_digit,
    reduction_steps,
    split_pixel,
    split_reduction,
    widen,
)


@triton.jit
def fprop_gemm(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    H, W, P, Q, PIXELS, GROUPS, GROUP_C, GROUP_K,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    weight_stride_n, weight_stride_k, weight_stride_c, weight_stride_r, weight_stride_s,
    bias_stride,
    residual_stride_n, residual_stride_k, residual_stride_p, residual_stride_q,
    y_stride_n, y_stride_k, y_stride_p, y_stride_q,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, ONE_TAP: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = widen(tl.program_id(0), WIDE)
    tile_n, program = next_digit(program, tl.cdiv(GROUP_K, BLOCK_N))
    tile_m, program = next_digit(program, tl.cdiv(PIXELS, BLOCK_M))
    group, batch = next_digit(program, GROUPS)

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    n, p, q = split_pixel(m, P, Q)
    n += batch
    group_k = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    k = group * GROUP_K + group_k
    x_base = x_ptr + n * x_stride_n + group * GROUP_C * x_stride_c
    weight_base = weight_ptr + batch * weight_stride_n + k * weight_stride_k

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for i in range(reduction_steps(GROUP_C, R, S, BLOCK_K, ONE_TAP)):
        step = widen(i, WIDE)
        lane = tl.arange(0, BLOCK_K)[None, :]
        r, s, c, c_valid = split_reduction(step, lane, GROUP_C, R, S, BLOCK_K, ONE_TAP)
        h, h_inside = input_coordinate(p, r, STRIDE_H, PAD_H, DIL_H, H, MODE)
        w, w_inside = input_coordinate(q, s, STRIDE_W, PAD_W, DIL_W, W, MODE)
        x = tl.load(
            x_base + c * x_stride_c + h * x_stride_h + w * x_stride_w,
            mask=(m < PIXELS) & h_inside & w_inside & c_valid,
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]

        lane = tl.arange(0, BLOCK_K)[:, None]
        r, s, c, c_valid = split_reduction(step, lane, GROUP_C, R, S, BLOCK_K, ONE_TAP)
        weight = tl.load(
            weight_base + c * weight_stride_c + r * weight_stride_r + s * weight_stride_s,
            mask=(group_k < GROUP_K) & c_valid,
            other=0.0,
        )  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(x.to(weight.dtype), weight, acc, input_precision=PRECISION, out_dtype=ACC)

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride, mask=group_k < GROUP_K, other=0.0)
    exists = (m < PIXELS) & (group_k < GROUP_K)
    if residual_ptr is not None:
        pixel = n * residual_stride_n + p * residual_stride_p + q * residual_stride_q
        acc = add_residual(acc, residual_ptr + pixel + k * residual_stride_k, exists)
    tl.store(
        y_ptr + n * y_stride_n + k * y_stride_k + p * y_stride_p + q * y_stride_q,
        activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty),
        mask=exists,
    )
