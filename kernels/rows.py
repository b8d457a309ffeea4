"""What the rows kernels share: which rows meet through which tap, and how an input row is loaded.

Inputs and outputs are counted from a tile's first: out * STRIDE + tap * DIL = inp, which is the
index relation without padding. All of it is decided while compiling.
"""

import triton
import triton.language as tl

from .indexing import as_block, fold


@triton.constexpr_function
def open_rows(R, STRIDE, DIL):
    """Most output rows that are begun and not done between two input rows, the next one counted."""
    return (R - 1) * DIL // STRIDE + 1


@triton.constexpr_function
def tap_of(inp, out, WINDOW, STRIDE, DIL):
    """The tap through which output `out` reads input `inp`, both counted from a tile; -1: none."""
    offset = inp - out * STRIDE
    return offset // DIL if offset % DIL == 0 and 0 <= offset <= (WINDOW - 1) * DIL else -1


@triton.constexpr_function
def is_read(inp, first, last, WINDOW, STRIDE, DIL):
    """Whether any output of first..last reads input `inp`."""
    return any(tap_of(inp, out, WINDOW, STRIDE, DIL) >= 0 for out in range(first, last + 1))


@triton.jit
def load_row(
    x_plane, row, q, exists, H, W, x_stride_h, x_stride_w,
    ACC: tl.constexpr, S: tl.constexpr, STRIDE_W: tl.constexpr, PAD_W: tl.constexpr,
    DIL_W: tl.constexpr, LANE_Q: tl.constexpr, MODE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The pixels of an input row that LANE_Q columns from q on read, from the first to the last."""
    if MASKED:
        row, row_inside = fold(as_block(row), H, MODE)  # [1, 1]
        exists = exists & row_inside
    pixels = ()
    for i in tl.static_range((LANE_Q - 1) * STRIDE_W + (S - 1) * DIL_W + 1):
        if is_read(i, 0, LANE_Q - 1, S, STRIDE_W, DIL_W):
            w = q * STRIDE_W - PAD_W + i
            if MASKED:
                w, w_inside = fold(w, W, MODE)
                pointer = x_plane + row * x_stride_h + w * x_stride_w
                x = tl.load(pointer, mask=exists & w_inside, other=0.0)  # [BLOCK_C, lanes]
            else:
                x = tl.load(x_plane + row * x_stride_h + w * x_stride_w)
            pixels = pixels + (x.to(ACC),)  # noqa: RUF005
        else:  # nobody looks
            pixels = pixels + (pixels[i - 1],)  # noqa: RUF005
    return pixels
