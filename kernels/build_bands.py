"""First pass of fprop_banded: every filter of one channel as a band matrix.

    bands[n,k,q,row,i] = weight[n,k,0,r,s] if that tap exists, else 0
    r = row - (BLOCK_P - 1)        s = i + SHIFT - q

q is a column of a block of BLOCK_P x BLOCK_Q outputs, i one of the COLUMNS input columns that the
block reads. The rows of zeros above and below the window are taps that some output rows of a
block do not have: see fprop_banded. Every element is a copied tap or zero; there is no sum.
"""

import triton
import triton.language as tl

from .schedule import next_digit, widen
from .structs import tap_at


@triton.jit
def build_bands(
    weight_ptr, bands_ptr, ELEMENTS, FILTERS, weight_strides,
    R: tl.constexpr, S: tl.constexpr, SHIFT: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, INT64: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    element = widen(tl.program_id(0), INT64) * BLOCK_E + tl.arange(0, BLOCK_E)  # [BLOCK_E]
    i, line = next_digit(element, COLUMNS)
    row, line = next_digit(line, R + 2 * (BLOCK_P - 1))
    q, line = next_digit(line, BLOCK_Q)
    k, n = next_digit(line, FILTERS)
    r = row - (BLOCK_P - 1)
    s = i + SHIFT - q
    tap = tl.load(
        tap_at(weight_ptr, weight_strides, n, k, 0, r, s),
        mask=(element < ELEMENTS) & (r >= 0) & (r < R) & (s >= 0) & (s < S),
        other=0.0,
    )  # [BLOCK_E]
    tl.store(bands_ptr + element, tap, mask=element < ELEMENTS)
