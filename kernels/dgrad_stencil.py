"""Input gradient as a direct sum over the window, for few channels per group.

    dx[n,c,h,w] = bias[c] + sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h = p * STRIDE_H - PAD_H + r * DIL_H, w likewise

No GEMM view, as in fprop_stencil. A tile is BLOCK_C channels (of any groups) by BLOCK_M pixels
(n,h,w). Sums in float32 (float64 for float64). A bias makes it a transposed correlation.
"""

import triton
import triton.language as tl

from .indexing import reader_of
from .schedule import next_digit, split_pixel, widen
from .structs import at, tap_at


@triton.jit
def dgrad_stencil(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    x_shape, y_shape, channels, PIXELS,
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
    n, h, w = split_pixel(m, H, W)
    n += batch
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    mask = (m < PIXELS) & (c < C)

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_C, BLOCK_M], ACC)
    acc = add_taps_stencil(
        acc, dy_ptr, weight_ptr, n, c, h, w, mask, batch, y_shape, channels,
        dy_strides, weight_strides, WINDOW, INT64,
    )  # fmt: skip
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=c < C, other=0.0)
    dx = acc.to(dx_ptr.dtype.element_ty)
    tl.store(at(dx_ptr, dx_strides, n, c, h, w), dx, mask=mask)


@triton.jit
def add_taps_stencil(
    acc, dy_ptr, weight_ptr, n, c, h, w, mask, batch, y_shape, channels,
    dy_strides, weight_strides, WINDOW: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    """Adds the products of all taps to acc [BLOCK_C, BLOCK_M]: channels c of pixels (n, h, w).

    c is [BLOCK_C, 1]; n, h and w are [1, BLOCK_M]; `mask` is true for the sums to compute.
    """
    GROUPS, GROUP_C, GROUP_K = channels
    first_k, group_c = (c // GROUP_C) * GROUP_K, c % GROUP_C
    for group_k in range(GROUP_K):
        k = first_k + widen(group_k, INT64)
        part = tl.zeros_like(acc)
        for i in range(WINDOW.R):
            for j in range(WINDOW.S):
                r, s = widen(i, INT64), widen(j, INT64)
                p, q, inside = reader_of(h, w, r, s, y_shape, WINDOW, mask)
                dy = tl.load(
                    at(dy_ptr, dy_strides, n, k, p, q), mask=inside, other=0.0
                )  # [BLOCK_C, BLOCK_M]
                weight = tl.load(
                    tap_at(weight_ptr, weight_strides, batch, k, group_c, r, s),
                    mask=c < GROUPS * GROUP_C,
                    other=0.0,
                )  # [BLOCK_C, 1]
                part += dy.to(acc.dtype) * weight.to(acc.dtype)
        acc += part
    return acc
