"""Input gradient of the pixels that a padding mode shows more than once, on the matrix units.

    dx[n,c,h,w] = bias[c] + sum over (h',w') of sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h' = p * STRIDE_H - PAD_H + r * DIL_H, w' likewise

(h',w') are the places of the padded image that show pixel (h,w): itself, and its images by
reflection, replication or rotation. All pixels that have images lie in a frame. Another
kernel runs first, on the whole image; this one overwrites its results in the frame.

    GEMM_M = pixels (n,h,w) of the frame    GEMM_N = channels c of one group    GEMM_K = (r,s,k)

Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .hints import along, side_by_side
from .padding import images, split_frame, unfold
from .reduction import add_taps_gemm
from .schedule import next_digit, next_tile, widen
from .structs import at


@triton.jit
def dgrad_frame_gemm(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    x_shape, hole, y_shape, channels, PIXELS,
    dy_strides, weight_strides, bias_stride, dx_strides,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    GROUPS, GROUP_C, GROUP_K = channels
    AXIS: tl.constexpr = LAYOUT.PIXEL_AXIS
    program = widen(tl.program_id(0), INT64)
    tiles_m, tiles_n = tl.cdiv(PIXELS, TILE.BLOCK_M), tl.cdiv(GROUP_C, TILE.BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    group, batch = next_digit(program, GROUPS)

    m = tile_m * TILE.BLOCK_M + along(AXIS, TILE.BLOCK_M)
    n, h, w = split_frame(m, x_shape, hole)
    n += batch
    group_c = tile_n * TILE.BLOCK_N + along(1 - AXIS, TILE.BLOCK_N)
    weight_base = weight_ptr + batch * weight_strides[0] + group * GROUP_K * weight_strides[1]

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros((m + group_c).shape, ACC)
    for i in range(images(WINDOW.PAD_H, WINDOW.PAD_BOTTOM, WINDOW.MODE)):
        shown_h, h_exists = unfold(
            h, widen(i, INT64), H, WINDOW.PAD_H, WINDOW.PAD_BOTTOM, WINDOW.MODE
        )
        for j in range(images(WINDOW.PAD_W, WINDOW.PAD_RIGHT, WINDOW.MODE)):
            shown_w, w_exists = unfold(
                w, widen(j, INT64), W, WINDOW.PAD_W, WINDOW.PAD_RIGHT, WINDOW.MODE
            )
            mask = (m < PIXELS) & h_exists & w_exists
            if tl.max(mask.to(tl.int32)) > 0:
                acc = add_taps_gemm(
                    acc,
                    dy_ptr + group * GROUP_K * dy_strides[1], n * dy_strides[0],
                    shown_h + WINDOW.PAD_H, shown_w + WINDOW.PAD_W, mask,
                    weight_base, group_c * weight_strides[2], group_c < GROUP_C,
                    y_shape, GROUP_K, (WINDOW.R, WINDOW.S), (-WINDOW.DIL_H, -WINDOW.DIL_W),
                    (WINDOW.STRIDE_H, WINDOW.STRIDE_W), dy_strides,
                    (weight_strides[1], weight_strides[3], weight_strides[4]), 0, 1,
                    "zeros", True, WINDOW.R * WINDOW.S == 1, True, AXIS == 1, WINDOW.S,
                    LAYOUT, PRECISION, INT64, TILE.BLOCK_K,
                )  # fmt: skip

    c = group * GROUP_C + group_c
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=group_c < GROUP_C, other=0.0)
    outputs = at(dx_ptr, dx_strides, n, c, h, 0)
    if AXIS == 1:
        outputs = side_by_side(outputs, w * dx_strides[3])
    else:
        outputs += w * dx_strides[3]
    tl.store(outputs, acc.to(dx_ptr.dtype.element_ty), mask=(m < PIXELS) & (group_c < GROUP_C))
