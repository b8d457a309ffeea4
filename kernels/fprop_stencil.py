"""Forward as a direct sum over the window, for few channels per group.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view: each output is its own dot product, one fused multiply-add per tap, so a single
channel is not padded to the sixteen of a matrix unit. A tile is BLOCK_C filters (of any
groups) by BLOCK_M pixels (n,p,q). Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .indexing import read_by
from .schedule import next_digit, split_pixel, widen
from .structs import at, tap_at


@triton.jit
def fprop_stencil(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, channels, PIXELS,
    x_strides, weight_strides, bias_stride, residual_strides, y_strides,
    WINDOW: tl.constexpr, ACTIVATION: tl.constexpr, INT64: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    K = GROUPS * GROUP_K
    program = widen(tl.program_id(0), INT64)
    tile_c, program = next_digit(program, tl.cdiv(K, BLOCK_C))
    tile_m, batch = next_digit(program, tl.cdiv(PIXELS, BLOCK_M))

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]  # [1, BLOCK_M]
    n, p, q = split_pixel(m, P, Q)
    n += batch
    k = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    x_base = at(x_ptr, x_strides, n, (k // GROUP_K) * GROUP_C, 0, 0)
    weight_base = tap_at(weight_ptr, weight_strides, batch, k, 0, 0, 0)
    mask = (m < PIXELS) & (k < K)

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_C, BLOCK_M], ACC)
    for group_c in range(GROUP_C):
        c = widen(group_c, INT64)
        part = tl.zeros([BLOCK_C, BLOCK_M], ACC)
        for i in range(WINDOW.R):
            for j in range(WINDOW.S):
                r, s = widen(i, INT64), widen(j, INT64)
                h, w, inside = read_by(p, q, r, s, x_shape, WINDOW, mask)
                x = tl.load(
                    at(x_base, x_strides, 0, c, h, w), mask=inside, other=0.0
                )  # [BLOCK_C, BLOCK_M]
                weight = tl.load(
                    tap_at(weight_base, weight_strides, 0, 0, c, r, s),
                    mask=k < K,
                    other=0.0,
                )  # [BLOCK_C, 1]
                part += x.to(ACC) * weight.to(ACC)
        acc += part

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride, mask=k < K, other=0.0)
    if residual_ptr is not None:
        acc = add_residual(acc, at(residual_ptr, residual_strides, n, k, p, q), mask)
    y = activate(acc, ACTIVATION, y_ptr.dtype.element_ty)
    tl.store(at(y_ptr, y_strides, n, k, p, q), y, mask=mask)
