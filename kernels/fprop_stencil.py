"""Forward as a direct sum over the window, for few channels per group.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view: each output is its own dot product, one fused multiply-add per tap, so a single
channel is not padded to the sixteen that a matrix unit wants. A tile is BLOCK_C filters (of any
groups) by BLOCK_M pixels (n,p,q). Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .indexing import input_coordinate, next_digit, split_pixel, widen


@triton.jit
def fprop_stencil(
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
    WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    K = GROUPS * GROUP_K
    program = widen(tl.program_id(0), WIDE)
    tile_c, program = next_digit(program, tl.cdiv(K, BLOCK_C))
    tile_m, batch = next_digit(program, tl.cdiv(PIXELS, BLOCK_M))

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]  # [1, BLOCK_M]
    n, p, q = split_pixel(m, P, Q)
    n += batch
    k = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    x_base = x_ptr + n * x_stride_n + (k // GROUP_K) * GROUP_C * x_stride_c
    weight_base = weight_ptr + batch * weight_stride_n + k * weight_stride_k

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_C, BLOCK_M], ACC)
    for group_c in range(GROUP_C):
        c = widen(group_c, WIDE)
        part = tl.zeros([BLOCK_C, BLOCK_M], ACC)
        for i in range(R):
            r = widen(i, WIDE)
            h, h_inside = input_coordinate(p, r, STRIDE_H, PAD_H, DIL_H, H, MODE)
            for j in range(S):
                s = widen(j, WIDE)
                w, w_inside = input_coordinate(q, s, STRIDE_W, PAD_W, DIL_W, W, MODE)
                x = tl.load(
                    x_base + c * x_stride_c + h * x_stride_h + w * x_stride_w,
                    mask=(m < PIXELS) & (k < K) & h_inside & w_inside,
                    other=0.0,
                )  # [BLOCK_C, BLOCK_M]
                weight = tl.load(
                    weight_base + c * weight_stride_c + r * weight_stride_r + s * weight_stride_s,
                    mask=k < K,
                    other=0.0,
                )  # [BLOCK_C, 1]
                part += x.to(ACC) * weight.to(ACC)
        acc += part

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride, mask=k < K, other=0.0)
    exists = (m < PIXELS) & (k < K)
    if residual_ptr is not None:
        pixel = n * residual_stride_n + p * residual_stride_p + q * residual_stride_q
        acc = add_residual(acc, residual_ptr + pixel + k * residual_stride_k, exists)
    tl.store(
        y_ptr + n * y_stride_n + k * y_stride_k + p * y_stride_p + q * y_stride_q,
        activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty),
        mask=exists,
    )
