"""Second pass of a split reduction: partials summed in a fixed order, then an image's epilogue.

    out[e] = act(bias[k] + residual[n,k,p,q] + sum_i partials[i, e])

The image (N, K, P, Q) is dense, and element e of its memory is element e of each partial. Weight
gradients and sums of lags have no epilogue, and do not use the extents. With BLOCK_ROWS, element
(a, row, column) of a partial, ROWS x COLUMNS for each a, is element (a, column, row) of the result:
kernels store a partial in the order in which their threads hold it. A program then has a tile of
BLOCK_ROWS rows, and the compiler exchanges its axes in shared memory, so that loads and stores are
of whole lines.

Sums in float32, or float64 for float64. Partials j, j + BLOCK_S, ... are added one after the other,
and the BLOCK_S sums in a tree: the order depends only on the numbers of partials and elements, so
the same call gives the same bits. One partial may have 16 bits: a gradient in another order.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .schedule import next_digit, widen
from .structs import at


@triton.jit(do_not_specialize=["SPLITS"])
def sum_partials(
    partials_ptr, bias_ptr, residual_ptr, out_ptr,
    SPLITS, ELEMENTS, ROWS, COLUMNS, shape, strides, bias_stride, residual_strides,
    ACTIVATION: tl.constexpr, SAME_STRIDES: tl.constexpr, INT64: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK_E)[None, :]
    if BLOCK_ROWS is None:
        e = widen(tl.program_id(0), INT64) * BLOCK_E + lane
        mask = e < ELEMENTS
    else:
        BLOCK_COLUMNS: tl.constexpr = BLOCK_E // BLOCK_ROWS
        tile_c, tile = next_digit(tl.program_id(0), tl.cdiv(COLUMNS, BLOCK_COLUMNS))
        tile_r, a = next_digit(tile, tl.cdiv(ROWS, BLOCK_ROWS))
        row = tile_r * BLOCK_ROWS + lane // BLOCK_COLUMNS
        column = tile_c * BLOCK_COLUMNS + lane % BLOCK_COLUMNS
        e = (widen(a, INT64) * ROWS + row) * COLUMNS + column
        mask = (row < ROWS) & (column < COLUMNS)  # as e, [1, BLOCK_E]
    ACC: tl.constexpr = tl.float64 if partials_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_S, BLOCK_E], ACC)
    for i in range(tl.cdiv(SPLITS, BLOCK_S)):
        split = widen(i, INT64) * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]  # [BLOCK_S, 1]
        acc += tl.load(
            partials_ptr + split * ELEMENTS + e,
            mask=(split < SPLITS) & mask,
            other=0.0,
        ).to(ACC)  # [BLOCK_S, BLOCK_E]
    out = tl.sum(acc, axis=0, keep_dims=True)  # [1, BLOCK_E]
    if bias_ptr is not None:
        k = e // strides[1] % shape[1]
        out += tl.load(bias_ptr + k * bias_stride, mask=mask, other=0.0)
    if residual_ptr is not None:
        residual = residual_ptr + e
        if not SAME_STRIDES:
            n, k = e // strides[0] % shape[0], e // strides[1] % shape[1]
            p, q = e // strides[2] % shape[2], e // strides[3] % shape[3]
            residual = at(residual_ptr, residual_strides, n, k, p, q)
        out = add_residual(out, residual, mask)
    out = activate(out, ACTIVATION, out_ptr.dtype.element_ty)
    if BLOCK_ROWS is not None:
        out = out.reshape(BLOCK_ROWS, BLOCK_COLUMNS).T
        row = tile_r * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[None, :]
        column = tile_c * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[:, None]
        e = (widen(a, INT64) * COLUMNS + column) * ROWS + row  # [BLOCK_COLUMNS, BLOCK_ROWS]
        mask = (row < ROWS) & (column < COLUMNS)
    tl.store(out_ptr + e, out, mask=mask)
