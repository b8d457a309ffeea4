"""The weight of a patch for fprop_patch and fprop_spread: spread over the window that it reads.

    spread[group, column, step, lane] = weight[tap (r,s)] if there is one, else 0
    column = (row a, column b of the patch, channel of the result)
    (step, lane) = element (place (i,j), channel) of the sum

r and s: see tap_at_place. Elements have the order in which the loop of fprop_patch reads them,
see reduction.first_step. Every element is a copied tap or zero; there is no sum.
"""

import triton
import triton.language as tl

from .patches import split_patch_column, tap_at_place
from .reduction import split_step
from .schedule import next_digit, widen


@triton.jit
def build_patch_weight(
    weight_ptr, spread_ptr, ELEMENTS, GROUP_C, weight_strides,
    R: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    LAYOUT: tl.constexpr, STEPS: tl.constexpr, INT64: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    WINDOW_H: tl.constexpr = ROWS.WINDOW
    WINDOW_W: tl.constexpr = COLUMNS.WINDOW
    element = widen(tl.program_id(0), INT64) * BLOCK_E + tl.arange(0, BLOCK_E)  # [BLOCK_E]
    lane, line = next_digit(element, BLOCK_K)
    step, line = next_digit(line, STEPS)
    if LAYOUT.FLATTEN_K is None:
        place, part = next_digit(step, WINDOW_H * WINDOW_W)
        i, j, channel = place // WINDOW_W, place % WINDOW_W, part * BLOCK_K + lane
    else:
        i, j, channel = split_step(step, lane, WINDOW_H, LAYOUT.FLATTEN_K, WINDOW_W, INT64, BLOCK_K)
    a, b, result, group = split_patch_column(line, ROWS, COLUMNS, LAYOUT.RESULTS, LAYOUT.ACROSS)
    r, s = tap_at_place(i, a, ROWS), tap_at_place(j, b, COLUMNS)
    exists = (element < ELEMENTS) & (i < WINDOW_H) & (j < WINDOW_W) & (channel < GROUP_C)
    exists &= (r >= 0) & (r < R) & (s >= 0) & (s < S)
    of_group, of_result, of_channel, of_r, of_s = weight_strides
    taps = weight_ptr + group * of_group + result * of_result + channel * of_channel
    tap = tl.load(taps + r * of_r + s * of_s, mask=exists, other=0.0)  # [BLOCK_E]
    tl.store(spread_ptr + element, tap, mask=element < ELEMENTS)
