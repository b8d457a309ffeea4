"""Copies x and dy for wgrad_flat: planes as one row of pixels, zeros behind each row of an image.

    x_out[i, n, c, m] = x[n, c, h, w]      m = h * PITCH + w + shift_of(i)
    dy_out[n, k, m]   = dy[n, k, p, q]     m = p * PITCH + q

and 0 for every other m. Copy i of x is for taps s = i, i + COPIES, ... of a row, see wgrad_flat.
Values are rounded to the nearest TF32. One launch makes all copies: the first PROGRAMS programs
those of x. A tile of channels and pixels is loaded along the axis on which the image is contiguous
and stored along pixels.
"""

import triton
import triton.language as tl

from .hints import align_strides, round_down, side_by_side
from .schedule import next_digit, widen


@triton.jit(do_not_specialize=["N", "PROGRAMS"])
def copy_flat(
    x_ptr, x_out_ptr, x_sizes, x_strides, dy_ptr, dy_out_ptr, dy_sizes, dy_strides,
    N, PITCH, PROGRAMS, WINDOW: tl.constexpr, X_LAYOUT: tl.constexpr, DY_LAYOUT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < PROGRAMS:
        copy_planes(
            program, x_ptr, x_out_ptr, x_sizes, x_strides, N, PITCH,
            WINDOW.PAD_W, WINDOW.DIL_W, X_LAYOUT,
        )  # fmt: skip
    else:
        copy_planes(
            program - PROGRAMS,
            dy_ptr,
            dy_out_ptr,
            dy_sizes,
            dy_strides,
            N,
            PITCH,
            0,
            0,
            DY_LAYOUT,
        )


@triton.jit
def copy_planes(
    program, image_ptr, out_ptr, sizes, strides, N, PITCH,
    PAD_W: tl.constexpr, DIL_W: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """One tile of one copy of an image; `sizes` is (C, H, W, elements of its planes, copies)."""
    C, H, W, LENGTH, COPIES = sizes
    strides = align_strides(strides, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
    LENGTH = round_down(LENGTH, LAYOUT.OUT_ALIGN)

    tile_p, program = next_digit(program, tl.cdiv(LENGTH, LAYOUT.BLOCK_P))
    copy, program = next_digit(program, COPIES)  # the next copy reads what is in L2
    tile_c, n = next_digit(program, tl.cdiv(C, LAYOUT.BLOCK_C))
    c = tile_c * LAYOUT.BLOCK_C + tl.arange(0, LAYOUT.BLOCK_C)[:, None]  # [BLOCK_C, 1]
    m = tile_p * LAYOUT.BLOCK_P + tl.arange(0, LAYOUT.BLOCK_P)[None, :]  # [1, BLOCK_P]
    index = m - shift_of(copy, PAD_W, DIL_W)
    h, w = index // PITCH, index % PITCH
    inside = (index >= 0) & (h < H) & (w < W)
    h, w = widen(h, LAYOUT.INT64), widen(w, LAYOUT.INT64)
    plane = image_ptr + widen(n, LAYOUT.INT64) * strides[0]
    channels, pixels = widen(c, LAYOUT.INT64) * strides[1], h * strides[2] + w * strides[3]
    if LAYOUT.X_AXIS == 1:
        pointers = side_by_side(plane + channels, pixels)
    else:
        pointers = plane + pixels + channels
    values = tl.load(pointers, mask=(c < C) & inside, other=0.0)  # [BLOCK_C, BLOCK_P]
    rows = (widen(copy, LAYOUT.INT64) * N + n) * C + c
    tl.store(out_ptr + rows * LENGTH + m, rounded(values), mask=(c < C) & (m < LENGTH))


@triton.jit
def shift_of(copy, PAD_W: tl.constexpr, DIL_W: tl.constexpr):
    """Elements by which a copy of x lies behind x, so that its taps read at multiples of four."""
    return (PAD_W - copy * DIL_W) & 3


@triton.jit
def rounded(values):
    """float32 rounded to the nearest TF32, halves away from zero; infinities and NaNs kept."""
    bits = values.to(tl.int32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, (bits + 0x1000) & -0x2000, bits).to(tl.float32, bitcast=True)
