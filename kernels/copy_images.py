"""Copies images, or a bank of filters, into the memory format that another kernel reads.

    out[g * INNER + n, c, h, w] = x[g, n, c, h / STEP_H, w / STEP_W]

and 0 for the channels c >= C of out, and bias[c], or 0, where a step does not divide h or w.
Without a step, column w + FIRST_COLUMN of out has column w of x, and columns that x lacks are 0.
One launch makes one copy or two: the first PROGRAMS programs make the first, which may have a bias.
A tile of channels and pixels is loaded along the axis on which x is contiguous and stored along
that of out; where these differ, the compiler exchanges the axes in shared memory.
"""

import triton
import triton.language as tl

from .hints import align_extents, align_strides, round_down, side_by_side
from .indexing import is_inside
from .schedule import next_digit, widen
from .structs import at


@triton.jit(do_not_specialize=["INNER", "INNER2", "PROGRAMS"])
def copy_images(
    x_ptr, out_ptr, INNER, sizes, x_strides, out_strides,
    x2_ptr, out2_ptr, INNER2, sizes2, x2_strides, out2_strides,
    bias_ptr, bias_stride,
    PROGRAMS, LAYOUT: tl.constexpr, LAYOUT2: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if x2_ptr is None:
        copy_tile(
            program, x_ptr, out_ptr, INNER, sizes, x_strides, out_strides, bias_ptr, bias_stride,
            LAYOUT,
        )  # fmt: skip
    elif program < PROGRAMS:
        copy_tile(
            program, x_ptr, out_ptr, INNER, sizes, x_strides, out_strides, bias_ptr, bias_stride,
            LAYOUT,
        )  # fmt: skip
    else:
        copy_tile(
            program - PROGRAMS, x2_ptr, out2_ptr, INNER2, sizes2, x2_strides, out2_strides, None, 0,
            LAYOUT2,
        )  # fmt: skip


@triton.jit
def copy_tile(
    program, x_ptr, out_ptr, INNER, sizes, x_strides, out_strides, bias_ptr, bias_stride,
    LAYOUT: tl.constexpr,
):  # fmt: skip
    """One tile of one copy; `sizes` is (C, H, W, channels of out, stride of g)."""
    C, H, W, CHANNELS, stride_g = sizes
    BLOCK_C: tl.constexpr = LAYOUT.BLOCK_C
    BLOCK_P: tl.constexpr = LAYOUT.BLOCK_P
    x_strides = align_strides(x_strides, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
    out_strides = align_strides(out_strides, LAYOUT.OUT_AXIS, LAYOUT.OUT_ALIGN)
    HAS_STEPS: tl.constexpr = LAYOUT.STEP_H * LAYOUT.STEP_W > 1
    if LAYOUT.OUT_ROW or HAS_STEPS:  # W may be no multiple of what rows of the images are
        C, _ = align_extents(C, W, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
        CHANNELS, _ = align_extents(CHANNELS, W, LAYOUT.OUT_AXIS, LAYOUT.OUT_ALIGN)
    else:
        C, W = align_extents(C, W, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
        CHANNELS, W = align_extents(CHANNELS, W, LAYOUT.OUT_AXIS, LAYOUT.OUT_ALIGN)

    pixels = W if LAYOUT.ONE_ROW else H * W
    if LAYOUT.OUT_ROW and LAYOUT.OUT_AXIS == 1:
        pixels = round_down(pixels, LAYOUT.OUT_ALIGN)
    tile_p, program = next_digit(program, tl.cdiv(pixels, BLOCK_P))
    tile_c, sample = next_digit(program, tl.cdiv(CHANNELS, BLOCK_C))
    n, group = next_digit(sample, INNER)
    c = widen(tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], LAYOUT.INT64)  # [BLOCK_C, 1]
    pixel = widen(tile_p * BLOCK_P + tl.arange(0, BLOCK_P)[None, :], LAYOUT.INT64)  # [1, BLOCK_P]
    h, w = 0, pixel
    if not LAYOUT.ONE_ROW:
        h, w = pixel // W, pixel % W
    x_ptr += widen(group, LAYOUT.INT64) * stride_g
    n, sample = widen(n, LAYOUT.INT64), widen(sample, LAYOUT.INT64)
    mask = (c < C) & (pixel < pixels)
    column = w
    if LAYOUT.FIRST_COLUMN != 0:
        column = w - LAYOUT.FIRST_COLUMN
        mask &= is_inside(column, LAYOUT.COLUMNS)
    elif LAYOUT.COLUMNS > 0:
        mask &= w < LAYOUT.COLUMNS
    if HAS_STEPS:
        reached = (h % LAYOUT.STEP_H == 0) & (w % LAYOUT.STEP_W == 0)
        mask &= reached
        row, column = h // LAYOUT.STEP_H, w // LAYOUT.STEP_W
    else:
        row = h
    SINGLE: tl.constexpr = HAS_STEPS or LAYOUT.X_ALIGN == 1
    if LAYOUT.X_AXIS == 1 and SINGLE and not LAYOUT.ONE_ROW:  # the compiler sees no runs of pixels
        pointers = side_by_side(at(x_ptr, x_strides, n, c, row, 0), column * x_strides[3])
    else:
        pointers = at(x_ptr, x_strides, n, c, row, column)
    values = tl.load(pointers, mask=mask, other=0.0)  # [BLOCK_C, BLOCK_P]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + c * bias_stride, mask=c < C, other=0.0)
        values = tl.where(reached, values, bias.to(values.dtype))
    if LAYOUT.OUT_ROW:
        h, w = 0, pixel
    tl.store(
        at(out_ptr, out_strides, sample, c, h, w),
        values,
        mask=(c < CHANNELS) & (pixel < pixels),
    )
