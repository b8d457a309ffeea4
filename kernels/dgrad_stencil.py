"""Input gradient as a direct sum over the window, for few channels per group.

    dx[n,c,h,w] = bias[c] + sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h = p * STRIDE_H - PAD_H + r * DIL_H, w likewise

No GEMM view, as in fprop_stencil. A tile is BLOCK_C channels (of any groups) by BLOCK_M pixels
(n,h,w). Sums in float32 (float64 for float64). A bias makes it a transposed correlation.
"""

import triton
import triton.language as tl

from .indexing import next_digit, output_coordinate, split_pixel, widen


@triton.jit
def dgrad_stencil(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    H, W, P, Q, PIXELS, GROUPS, GROUP_C, GROUP_K,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    weight_stride_n, weight_stride_k, weight_stride_c, weight_stride_r, weight_stride_s,
    bias_stride,
    dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = GROUPS * GROUP_C
    program = widen(tl.program_id(0), WIDE)
    tile_c, program = next_digit(program, tl.cdiv(C, BLOCK_C))
    tile_m, batch = next_digit(program, tl.cdiv(PIXELS, BLOCK_M))

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]  # [1, BLOCK_M]
    n, h, w = split_pixel(m, H, W)
    n += batch
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    first_k = (c // GROUP_C) * GROUP_K
    dy_base = dy_ptr + n * dy_stride_n + first_k * dy_stride_k
    weight_base = (
        weight_ptr
        + batch * weight_stride_n
        + first_k * weight_stride_k
        + (c % GROUP_C) * weight_stride_c
    )

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_C, BLOCK_M], ACC)
    acc = add_taps_stencil(
        acc, h, w, (m < PIXELS) & (c < C), c < C, dy_base, weight_base, P, Q, GROUP_K,
        dy_stride_k, dy_stride_p, dy_stride_q,
        weight_stride_k, weight_stride_r, weight_stride_s,
        R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DIL_H, DIL_W, WIDE,
    )  # fmt: skip

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=c < C, other=0.0)
    tl.store(
        dx_ptr + n * dx_stride_n + c * dx_stride_c + h * dx_stride_h + w * dx_stride_w,
        acc.to(dx_ptr.dtype.element_ty),
        mask=(m < PIXELS) & (c < C),
    )


@triton.jit
def add_taps_stencil(
    acc, h, w, valid, c_valid, dy_base, weight_base, P, Q, GROUP_K,
    dy_stride_k, dy_stride_p, dy_stride_q,
    weight_stride_k, weight_stride_r, weight_stride_s,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_C, BLOCK_M] plus what the taps bring to the pixels (h, w) [1, BLOCK_M]."""
    for group_k in range(GROUP_K):
        k = widen(group_k, WIDE)
        part = tl.zeros_like(acc)
        for i in range(R):
            r = widen(i, WIDE)
            p, p_inside = output_coordinate(h, r, STRIDE_H, PAD_H, DIL_H, P)
            for j in range(S):
                s = widen(j, WIDE)
                q, q_inside = output_coordinate(w, s, STRIDE_W, PAD_W, DIL_W, Q)
                dy = tl.load(
                    dy_base + k * dy_stride_k + p * dy_stride_p + q * dy_stride_q,
                    mask=valid & p_inside & q_inside,
                    other=0.0,
                )  # [BLOCK_C, BLOCK_M]
                weight = tl.load(
                    weight_base + k * weight_stride_k + r * weight_stride_r + s * weight_stride_s,
                    mask=c_valid,
                    other=0.0,
                )  # [BLOCK_C, 1]
                part += dy.to(acc.dtype) * weight.to(acc.dtype)
        acc += part
    return acc
