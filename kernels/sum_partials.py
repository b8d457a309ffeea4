"""Second pass of a split reduction: partials summed in a fixed order, then an image's epilogue.

    out[e] = act(bias[k] + residual[n,k,p,q] + sum_i partials[i, e])

The image (N, K, P, Q) is dense, and element e of its memory is element e of each partial. Weight
gradients and sums of lags have no epilogue, and do not use the extents. With TRANSPOSED, element
(a, row, column) of a partial, ROWS x COLUMNS for each a, is element (a, column, row) of the result:
kernels store a partial in the order in which their threads hold it.

Sums in the partials' type (float32, or float64 for float64). Partials j, j + BLOCK_S, ... are added
one after the other, and the BLOCK_S sums in a tree: the order depends only on the numbers of
partials and elements, so the same call gives the same bits.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .schedule import widen
from .structs import at


@triton.jit(do_not_specialize=["SPLITS"])
def sum_partials(
    partials_ptr, bias_ptr, residual_ptr, out_ptr,
    SPLITS, ELEMENTS, ROWS, COLUMNS, shape, strides, bias_stride, residual_strides,
    ACTIVATION: tl.constexpr, TRANSPOSED: tl.constexpr, SAME_STRIDES: tl.constexpr,
    INT64: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    e = widen(tl.program_id(0), INT64) * BLOCK_E + tl.arange(0, BLOCK_E)[None, :]  # [1, BLOCK_E]
    acc = tl.zeros([BLOCK_S, BLOCK_E], partials_ptr.dtype.element_ty)
    for i in range(tl.cdiv(SPLITS, BLOCK_S)):
        split = widen(i, INT64) * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]  # [BLOCK_S, 1]
        acc += tl.load(
            partials_ptr + split * ELEMENTS + e,
            mask=(split < SPLITS) & (e < ELEMENTS),
            other=0.0,
        )  # [BLOCK_S, BLOCK_E]
    out = tl.sum(acc, axis=0, keep_dims=True)  # [1, BLOCK_E]
    mask = e < ELEMENTS
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
    out = activate(out, ACTIVATION)
    if TRANSPOSED:
        row = e // COLUMNS
        e = (row // ROWS * COLUMNS + e % COLUMNS) * ROWS + row % ROWS
    tl.store(out_ptr + e, out.to(out_ptr.dtype.element_ty), mask=mask)
