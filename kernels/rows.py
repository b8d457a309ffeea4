"""What the rows kernels share: which rows meet through which tap, and how an input row is loaded.

Inputs and outputs are counted from a tile's first: out * STRIDE + tap * DIL = inp, which is the
index relation without padding. All of it is decided while compiling.
"""

import triton
import triton.language as tl

from .indexing import as_block


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
    x_row, row, q, exists, H, W, x_stride_w,
    ACC: tl.constexpr, S: tl.constexpr, STRIDE_W: tl.constexpr, PAD_W: tl.constexpr,
    DIL_W: tl.constexpr, LANE_Q: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The pixels of one input row that LANE_Q columns read, from the first to the last."""
    pixels = ()
    for i in tl.static_range((LANE_Q - 1) * STRIDE_W + (S - 1) * DIL_W + 1):
        if is_read(i, 0, LANE_Q - 1, S, STRIDE_W, DIL_W):
            w = q * STRIDE_W - PAD_W + i
            if MASKED:
                line = as_block(row)  # [1, 1]
                inside = exists & (line >= 0) & (line < H) & (w >= 0) & (w < W)
                x = tl.load(x_row + w * x_stride_w, mask=inside, other=0.0)  # [BLOCK_C, lanes]
            else:
                x = tl.load(x_row + w * x_stride_w)
            pixels = pixels + (x.to(ACC),)  # noqa: RUF005
        else:  # nobody looks
            pixels = pixels + (pixels[i - 1],)  # noqa: RUF005
    return pixels
