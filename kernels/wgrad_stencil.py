"""Weight gradient as one direct sum per tap, for few channels per group, split over pixels.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view: a program owns one tap (c,r,s) of BLOCK_C filters (of any groups) and sums over
BLOCK_M pixels (n,p,q) at a time, so a single channel is not padded to the sixteen of a matrix unit.
Sums in float32 (float64 for float64); splits and batches as in wgrad_gemm.
"""

import triton
import triton.language as tl

from .indexing import read_by
from .schedule import next_digit, split_pixel, widen
from .structs import at, tap_at


@triton.jit
def wgrad_stencil(
    x_ptr, dy_ptr, dw_ptr,
    x_shape, y_shape, channels, PIXELS, SPLITS, SPLIT_PIXELS,
    x_strides, dy_strides, dw_stride_split, dw_strides,
    WINDOW: tl.constexpr, INT64: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    K = GROUPS * GROUP_K
    program = widen(tl.program_id(0), INT64)
    s, program = next_digit(program, WINDOW.S)
    r, program = next_digit(program, WINDOW.R)
    c, program = next_digit(program, GROUP_C)
    tile_c, program = next_digit(program, tl.cdiv(K, BLOCK_C))
    split, batch = next_digit(program, SPLITS)

    k = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    x_base = at(x_ptr, x_strides, 0, (k // GROUP_K) * GROUP_C + c, 0, 0)
    dy_base = at(dy_ptr, dy_strides, 0, k, 0, 0)
    first = split * SPLIT_PIXELS
    last = tl.minimum(first + SPLIT_PIXELS, PIXELS)

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_C, BLOCK_M], ACC)
    for i in range(tl.cdiv(SPLIT_PIXELS, BLOCK_M)):
        m = first + widen(i, INT64) * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]  # [1, BLOCK_M]
        n, p, q = split_pixel(m, P, Q)
        n += batch
        mask = (m < last) & (k < K)
        h, w, inside = read_by(p, q, r, s, x_shape, WINDOW, mask)
        x = tl.load(at(x_base, x_strides, n, 0, h, w), mask=inside, other=0.0)  # [BLOCK_C, BLOCK_M]
        dy = tl.load(
            at(dy_base, dy_strides, n, 0, p, q), mask=mask, other=0.0
        )  # [BLOCK_C, BLOCK_M]
        acc += dy.to(ACC) * x.to(ACC)

    dw = tl.sum(acc, axis=1, keep_dims=True)  # [BLOCK_C, 1]
    tl.store(
        tap_at(dw_ptr + split * dw_stride_split, dw_strides, batch, k, c, r, s),
        dw.to(dw_ptr.dtype.element_ty),
        mask=k < K,
    )
