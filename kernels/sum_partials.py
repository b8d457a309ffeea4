"""Second pass of a split weight gradient: partials summed in a fixed order.

    out[e] = sum_i partials[i, e]

Sums in the partials' type (float32, or float64 for float64). The order depends on SPLITS and the
tile alone, never on timing: the same call gives the same bits.
"""

import triton
import triton.language as tl

from .schedule import widen


@triton.jit(do_not_specialize=["SPLITS"])
def sum_partials(
    partials_ptr, out_ptr,
    SPLITS, ELEMENTS,
    INT64: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
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
    tl.store(out_ptr + e, out.to(out_ptr.dtype.element_ty), mask=e < ELEMENTS)
