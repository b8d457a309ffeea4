"""Copies images, or a bank of filters, into the memory format that another kernel reads.

    out[g * INNER + n, c, h, w] = x[g, n, c, h, w], and 0 for the channels c >= C of out

One launch makes one copy or two: the first PROGRAMS programs make the first. A tile of channels and
pixels is loaded along the axis on which x is contiguous and stored along that of out; where these
differ, the compiler exchanges the axes in shared memory.
"""

import triton
import triton.language as tl

from .hints import align_extents, align_strides
from .schedule import next_digit, widen
from .structs import at


@triton.jit(do_not_specialize=["INNER", "INNER2", "PROGRAMS"])
def copy_images(
    x_ptr, out_ptr, INNER, sizes, x_strides, out_strides,
    x2_ptr, out2_ptr, INNER2, sizes2, x2_strides, out2_strides,
    PROGRAMS, LAYOUT: tl.constexpr, LAYOUT2: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if x2_ptr is None:
        copy_tile(program, x_ptr, out_ptr, INNER, sizes, x_strides, out_strides, LAYOUT)
    elif program < PROGRAMS:
        copy_tile(program, x_ptr, out_ptr, INNER, sizes, x_strides, out_strides, LAYOUT)
    else:
        copy_tile(
            program - PROGRAMS, x2_ptr, out2_ptr, INNER2, sizes2, x2_strides, out2_strides, LAYOUT2
        )


@triton.jit
def copy_tile(program, x_ptr, out_ptr, INNER, sizes, x_strides, out_strides, LAYOUT: tl.constexpr):
    """One tile of one copy; `sizes` is (C, H, W, channels of out, stride of g)."""
    C, H, W, CHANNELS, stride_g = sizes
    BLOCK_C: tl.constexpr = LAYOUT.BLOCK_C
    BLOCK_P: tl.constexpr = LAYOUT.BLOCK_P
    x_strides = align_strides(x_strides, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
    out_strides = align_strides(out_strides, LAYOUT.OUT_AXIS, LAYOUT.OUT_ALIGN)
    C, W = align_extents(C, W, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
    CHANNELS, W = align_extents(CHANNELS, W, LAYOUT.OUT_AXIS, LAYOUT.OUT_ALIGN)

    pixels = W if LAYOUT.ONE_ROW else H * W
    tile_p, program = next_digit(program, tl.cdiv(pixels, BLOCK_P))
    tile_c, sample = next_digit(program, tl.cdiv(CHANNELS, BLOCK_C))
    n, group = next_digit(sample, INNER)
    c = widen(tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], LAYOUT.INT64)  # [BLOCK_C, 1]
    pixel = widen(tile_p * BLOCK_P + tl.arange(0, BLOCK_P)[None, :], LAYOUT.INT64)  # [1, BLOCK_P]
    h, w = 0, pixel
    if not LAYOUT.ONE_ROW:
        h, w = pixel // W, pixel % W
    x_ptr += widen(group, LAYOUT.INT64) * stride_g
    values = tl.load(
        at(x_ptr, x_strides, widen(n, LAYOUT.INT64), c, h, w),
        mask=(c < C) & (pixel < pixels),
        other=0.0,
    )  # [BLOCK_C, BLOCK_P]
    tl.store(
        at(out_ptr, out_strides, widen(sample, LAYOUT.INT64), c, h, w),
        values,
        mask=(c < CHANNELS) & (pixel < pixels),
    )
