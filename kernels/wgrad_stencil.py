"""Weight gradient as one direct sum per tap, for few channels per group, split over pixels.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view: a program owns one tap (c,r,s) of BLOCK_C filters (of any groups) and sums over
BLOCK_M pixels (n,p,q) at a time, so a single channel is not padded to sixteen. Sums in float32
(float64 for float64); splits and batches as in wgrad_gemm.
"""

import triton
import triton.language as tl

from .indexing import input_coordinate, next_digit, split_pixel, widen


@triton.jit
def wgrad_stencil(
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
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    K = GROUPS * GROUP_K
    program = widen(tl.program_id(0), WIDE)
    s, program = next_digit(program, S)
    r, program = next_digit(program, R)
    c, program = next_digit(program, GROUP_C)
    tile_c, program = next_digit(program, tl.cdiv(K, BLOCK_C))
    split, batch = next_digit(program, SPLITS)

    k = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    x_base = x_ptr + ((k // GROUP_K) * GROUP_C + c) * x_stride_c
    dy_base = dy_ptr + k * dy_stride_k
    first = split * SPLIT_PIXELS
    last = tl.minimum(first + SPLIT_PIXELS, PIXELS)

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_C, BLOCK_M], ACC)
    for i in range(tl.cdiv(SPLIT_PIXELS, BLOCK_M)):
        m = first + widen(i, WIDE) * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]  # [1, BLOCK_M]
        n, p, q = split_pixel(m, P, Q)
        n += batch
        h, h_inside = input_coordinate(p, r, STRIDE_H, PAD_H, DIL_H, H, MODE)
        w, w_inside = input_coordinate(q, s, STRIDE_W, PAD_W, DIL_W, W, MODE)
        pixel = (m < last) & (k < K)
        x = tl.load(
            x_base + n * x_stride_n + h * x_stride_h + w * x_stride_w,
            mask=pixel & h_inside & w_inside,
            other=0.0,
        )  # [BLOCK_C, BLOCK_M]
        dy = tl.load(
            dy_base + n * dy_stride_n + p * dy_stride_p + q * dy_stride_q, mask=pixel, other=0.0
        )  # [BLOCK_C, BLOCK_M]
        acc += dy.to(ACC) * x.to(ACC)

    dw = tl.sum(acc, axis=1, keep_dims=True)  # [BLOCK_C, 1]
    tl.store(
        dw_ptr
        + split * dw_stride_split
        + batch * dw_stride_n
        + k * dw_stride_k
        + c * dw_stride_c
        + r * dw_stride_r
        + s * dw_stride_s,
        dw.to(dw_ptr.dtype.element_ty),
        mask=k < K,
    )
