"""The one index relation, forwards and solved.

    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise        (*)

Naming, in every kernel: upper case is an extent, a constant or a struct of these, one lower-case
letter is a coordinate (a scalar or a vector), a word is a tensor tile. `x_strides` are strides in
memory, `WINDOW.STRIDE_H` is the convolution's step. `w` is only ever the width coordinate; the
filter is `weight`.
"""

import triton
import triton.language as tl

from .padding import fold


@triton.jit
def input_coordinate(
    out, tap, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr, EXTENT,
    MODE: tl.constexpr,
):  # fmt: skip
    """(*) forwards: the input coordinate that `out` reads through `tap`, and whether it exists."""
    return fold(out * STRIDE - PAD + tap * DIL, EXTENT, MODE)


@triton.jit
def read_by(p, q, r, s, x_shape, WINDOW: tl.constexpr, mask):
    """(*) forwards: the input (h, w) that output (p, q) reads through tap (r, s).

    Also returns `mask` where that exists.
    """
    h, h_inside = input_coordinate(
        p, r, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H, x_shape[0], WINDOW.MODE
    )
    w, w_inside = input_coordinate(
        q, s, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W, x_shape[1], WINDOW.MODE
    )
    return h, w, mask & h_inside & w_inside


@triton.jit
def output_coordinate(inp, tap, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr, EXTENT):
    """(*) solved for the output: which output reads `inp` through `tap`, and whether one does."""
    return divide(inp + PAD - tap * DIL, STRIDE, EXTENT)


@triton.jit
def divide(scaled, STRIDE: tl.constexpr, EXTENT):
    """scaled / STRIDE, and whether that is a whole coordinate inside the image."""
    coordinate = scaled // STRIDE
    inside = (scaled >= 0) & (coordinate < EXTENT)
    if STRIDE > 1:
        inside &= coordinate * STRIDE == scaled
    return coordinate, inside


@triton.jit
def reader_of(h, w, r, s, y_shape, WINDOW: tl.constexpr, mask):
    """(*) solved: the output (p, q) that reads input (h, w) through tap (r, s).

    Also returns `mask` where one does.
    """
    p, p_inside = output_coordinate(h, r, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H, y_shape[0])
    q, q_inside = output_coordinate(w, s, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W, y_shape[1])
    return p, q, mask & p_inside & q_inside


@triton.jit
def is_inside(coordinate, EXTENT):
    """0 <= coordinate < EXTENT by one unsigned comparison: negative numbers become large."""
    if coordinate.dtype == tl.int64:
        inside = tl.cast(coordinate, tl.uint64) < tl.cast(EXTENT, tl.uint64)
    else:
        inside = tl.cast(coordinate, tl.uint32) < tl.cast(EXTENT, tl.uint32)
    return inside
