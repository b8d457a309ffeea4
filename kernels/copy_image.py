"""A copy of an image, or of a bank of filters, in the order in which another kernel reads it.

    out[g * INNER + n, c, h, w] = x[g, n, c, h, w], and 0 for the channels c >= C of out

A tile of channels and pixels is loaded along the axis on which x is contiguous and stored along
that of out: where these differ, the compiler exchanges the axes in shared memory.
"""

import triton
import triton.language as tl

from .hints import align_extents, align_strides
from .schedule import next_digit, widen
from .structs import at


@triton.jit(do_not_specialize=["INNER"])
def copy_image(
    x_ptr, out_ptr,
    INNER, x_shape, CHANNELS, x_stride_g, x_strides, out_strides,
    LAYOUT: tl.constexpr, INT64: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    C, H, W = x_shape
    x_strides = align_strides(x_strides, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
    out_strides = align_strides(out_strides, LAYOUT.OUT_AXIS, LAYOUT.OUT_ALIGN)
    C, W = align_extents(C, W, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
    CHANNELS, W = align_extents(CHANNELS, W, LAYOUT.OUT_AXIS, LAYOUT.OUT_ALIGN)

    pixels = W if LAYOUT.ONE_ROW else H * W
    tile_p, program = next_digit(tl.program_id(0), tl.cdiv(pixels, BLOCK_P))
    tile_c, sample = next_digit(program, tl.cdiv(CHANNELS, BLOCK_C))
    n, group = next_digit(sample, INNER)
    c = widen(tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], INT64)  # [BLOCK_C, 1]
    pixel = widen(tile_p * BLOCK_P + tl.arange(0, BLOCK_P)[None, :], INT64)  # [1, BLOCK_P]
    h, w = 0, pixel
    if not LAYOUT.ONE_ROW:
        h, w = pixel // W, pixel % W
    x_ptr += widen(group, INT64) * x_stride_g
    values = tl.load(
        at(x_ptr, x_strides, widen(n, INT64), c, h, w), mask=(c < C) & (pixel < pixels), other=0.0
    )  # [BLOCK_C, BLOCK_P]
    tl.store(
        at(out_ptr, out_strides, widen(sample, INT64), c, h, w),
        values,
        mask=(c < CHANNELS) & (pixel < pixels),
    )
