"""First pass of fprop_resident: every filter's bands, as they lie in shared memory.

    lines[n,k,c,j,phase,line,place,i] = weight[n,k,c,r,s] if that tap exists, else 0
    r = line * STRIDE_H + phase        s = (j * 16 + i) * UP_W + SHIFT - q * STRIDE_W

q is a column of a block of outputs, j * 16 + i one of the COLUMNS input columns that the block
reads; place is where q lies. Every element is a copied tap, float32 rounded to TF32, or zero; there
is no sum.
"""

import triton
import triton.language as tl

from .copy_flat import rounded
from .schedule import next_digit, widen
from .structs import tap_at


@triton.jit
def build_lines(
    weight_ptr, lines_ptr, ELEMENTS, FILTERS, weight_strides,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    UP_W: tl.constexpr, SHIFT: tl.constexpr, COLUMNS: tl.constexpr, LINES: tl.constexpr,
    CHANNELS: tl.constexpr, INT64: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    element = widen(tl.program_id(0), INT64) * BLOCK_E + tl.arange(0, BLOCK_E)  # [BLOCK_E]
    i, number = next_digit(element, 16)
    place, number = next_digit(number, 16)
    line, number = next_digit(number, LINES)
    phase, number = next_digit(number, STRIDE_H)
    j, number = next_digit(number, COLUMNS // 16)
    c, number = next_digit(number, CHANNELS)
    k, n = next_digit(number, FILTERS)
    # A lane of a product has columns 2t, 2t + 1 of each eight: four columns of y side by side.
    q = place % 8 // 2 * 4 + place // 8 * 2 + place % 2
    r = line * STRIDE_H + phase
    s = (j * 16 + i) * UP_W + SHIFT - q * STRIDE_W
    tap = tl.load(
        tap_at(weight_ptr, weight_strides, n, k, c, r, s),
        mask=(element < ELEMENTS) & (r < R) & (s >= 0) & (s < S),
        other=0.0,
    )  # [BLOCK_E]
    if tap.dtype == tl.float32:
        tap = rounded(tap)
    tl.store(lines_ptr + element, tap, mask=element < ELEMENTS)
