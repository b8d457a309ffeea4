"""Input gradient of the pixels that a padding mode shows more than once, by direct sums.

    dx[n,c,h,w] = bias[c] + sum over (h',w') of sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h' = p * STRIDE_H - PAD_H + r * DIL_H, w' likewise

(h',w') are the places of the padded image that show pixel (h,w): itself, and its images by
reflection, replication or rotation. All pixels that have images lie in a frame. Another
kernel runs first, on the whole image; this one overwrites its results in the frame.

Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .dgrad_stencil import add_taps_stencil
from .padding import images, split_frame, unfold
from .schedule import next_digit, widen
from .structs import at


@triton.jit
def dgrad_frame_stencil(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    x_shape, hole, y_shape, channels, PIXELS,
    dy_strides, weight_strides, bias_stride, dx_strides,
    WINDOW: tl.constexpr, INT64: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    GROUPS, GROUP_C, _ = channels
    C = GROUPS * GROUP_C
    program = widen(tl.program_id(0), INT64)
    tile_c, program = next_digit(program, tl.cdiv(C, BLOCK_C))
    tile_m, batch = next_digit(program, tl.cdiv(PIXELS, BLOCK_M))

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]  # [1, BLOCK_M]
    n, h, w = split_frame(m, x_shape, hole)
    n += batch
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_C, BLOCK_M], ACC)
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
                acc = add_taps_stencil(
                    acc, dy_ptr, weight_ptr, n, c, shown_h, shown_w, mask & (c < C), batch,
                    y_shape, channels, dy_strides, weight_strides, WINDOW, INT64,
                )  # fmt: skip

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=c < C, other=0.0)
    dx = acc.to(dx_ptr.dtype.element_ty)
    tl.store(at(dx_ptr, dx_strides, n, c, h, w), dx, mask=(m < PIXELS) & (c < C))
