"""Input gradient of the pixels that a padding mode shows more than once, on the matrix units.

    dx[n,c,h,w] = bias[c] + sum over (h',w') of sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h' = p * STRIDE_H - PAD_H + r * DIL_H, w' likewise

(h',w') are the places of the padded image that show pixel (h,w): itself, and its images by
reflection, replication or rotation. All pixels that have images lie in a frame; another
kernel fills the rest, and what it left in the frame is overwritten here.

    GEMM_M = pixels (n,h,w) of the frame    GEMM_N = channels c of one group    GEMM_K = (r,s,k)

Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .fprop_gemm import add_taps_gemm
from .indexing import (
    along,
    images,
    next_digit,
    next_tile,
    side_by_side,
    split_frame,
    unfold,
    widen,
)


@triton.jit
def dgrad_frame_gemm(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    H, W, P, Q, HOLE_TOP, HOLE_BOTTOM, HOLE_LEFT, HOLE_RIGHT, PIXELS, GROUPS, GROUP_C, GROUP_K,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    weight_stride_n, weight_stride_k, weight_stride_c, weight_stride_r, weight_stride_s,
    bias_stride,
    dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    PAD_BOTTOM: tl.constexpr, PAD_RIGHT: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    PIXEL_AXIS: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = widen(tl.program_id(0), WIDE)
    tiles_m, tiles_n = tl.cdiv(PIXELS, BLOCK_M), tl.cdiv(GROUP_C, BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    group, batch = next_digit(program, GROUPS)

    m = tile_m * BLOCK_M + along(PIXEL_AXIS, BLOCK_M)
    n, h, w = split_frame(m, (H, W), (HOLE_TOP, HOLE_BOTTOM, HOLE_LEFT, HOLE_RIGHT))
    n += batch
    group_c = tile_n * BLOCK_N + along(1 - PIXEL_AXIS, BLOCK_N)
    weight_base = weight_ptr + batch * weight_stride_n + group * GROUP_K * weight_stride_k

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros((m + group_c).shape, ACC)
    for i in range(images(PAD_H, PAD_BOTTOM, MODE)):
        shown_h, h_exists = unfold(h, widen(i, WIDE), H, PAD_H, PAD_BOTTOM, MODE)
        for j in range(images(PAD_W, PAD_RIGHT, MODE)):
            shown_w, w_exists = unfold(w, widen(j, WIDE), W, PAD_W, PAD_RIGHT, MODE)
            exists = (m < PIXELS) & h_exists & w_exists
            if tl.max(exists.to(tl.int32)) > 0:
                acc = add_taps_gemm(
                    acc,
                    dy_ptr + group * GROUP_K * dy_stride_k, n * dy_stride_n,
                    shown_h + PAD_H, shown_w + PAD_W, exists,
                    weight_base, group_c * weight_stride_c, group_c < GROUP_C,
                    P, Q, GROUP_K, R, S, -DIL_H, -DIL_W,
                    dy_stride_k, dy_stride_p, dy_stride_q,
                    weight_stride_k, weight_stride_r, weight_stride_s,
                    STRIDE_H, STRIDE_W, "zeros", True, R * S == 1, True,
                    PIXEL_AXIS, PIXEL_AXIS == 1, FLAT, S, EVEN, AHEAD, WIDE, PRECISION, BLOCK_K,
                )  # fmt: skip

    c = group * GROUP_C + group_c
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=group_c < GROUP_C, other=0.0)
    outputs = dx_ptr + n * dx_stride_n + c * dx_stride_c + h * dx_stride_h
    if PIXEL_AXIS == 1:
        outputs = side_by_side(outputs, w * dx_stride_w)
    else:
        outputs += w * dx_stride_w
    tl.store(
        outputs,
        acc.to(dx_ptr.dtype.element_ty),
        mask=(m < PIXELS) & (group_c < GROUP_C),
    )
