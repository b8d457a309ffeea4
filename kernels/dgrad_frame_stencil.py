"""Input gradient of the pixels that a padding mode shows more than once, by direct sums.

    dx[n,c,h,w] = bias[c] + sum over (h',w') of sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h' = p * STRIDE_H - PAD_H + r * DIL_H, w' likewise

(h',w') are the places of the padded image that show pixel (h,w): itself, and its images by
reflection, replication or rotation. All pixels that have images lie in a frame; another
kernel fills the rest, and what it left in the frame is overwritten here.

Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .dgrad_stencil import add_taps_stencil
from .indexing import images, next_digit, split_frame, unfold, widen


@triton.jit
def dgrad_frame_stencil(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    H, W, P, Q, FIRST_H, LAST_H, FIRST_W, LAST_W, PIXELS, GROUPS, GROUP_C, GROUP_K,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    weight_stride_n, weight_stride_k, weight_stride_c, weight_stride_r, weight_stride_s,
    bias_stride,
    dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    PAD_BOTTOM: tl.constexpr, PAD_RIGHT: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = GROUPS * GROUP_C
    program = widen(tl.program_id(0), WIDE)
    tile_c, program = next_digit(program, tl.cdiv(C, BLOCK_C))
    tile_m, batch = next_digit(program, tl.cdiv(PIXELS, BLOCK_M))

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]  # [1, BLOCK_M]
    n, h, w = split_frame(m, H, W, FIRST_H, LAST_H, FIRST_W, LAST_W)
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
    for i in range(images(PAD_H, PAD_BOTTOM, MODE)):
        shown_h, h_exists = unfold(h, widen(i, WIDE), H, PAD_H, PAD_BOTTOM, MODE)
        for j in range(images(PAD_W, PAD_RIGHT, MODE)):
            shown_w, w_exists = unfold(w, widen(j, WIDE), W, PAD_W, PAD_RIGHT, MODE)
            exists = (m < PIXELS) & h_exists & w_exists
            if tl.max(exists.to(tl.int32)) > 0:
                acc = add_taps_stencil(
                    acc, shown_h, shown_w, exists & (c < C), c < C,
                    dy_base, weight_base, P, Q, GROUP_K,
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
