"""Forward as a sliding set of output rows, for one channel per group: each input row read once.

    y[n,k,p,q] = act(bias[k] + sum_{r,s} x[n,c,h,w] * weight[k,0,r,s])        c = k // GROUP_K
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view. A tile is BLOCK_P x BLOCK_Q outputs of BLOCK_C planes (n,k). An input row is loaded S
times, shifted, and feeds up to R rows of sums that are open at the time: S * (BLOCK_P + R - 1) /
BLOCK_P loads for an output instead of R * S. Everything is unrolled, so that the sums stay in
registers. Sums in float32 (float64 for float64).

The input gradient with stride 1 is the same correlation of dy with the window flipped, and runs
here too: see Geometry.adjoint.
"""

import triton
import triton.language as tl

from .epilogue import activate
from .indexing import as_block, fold, next_digit, widen


@triton.jit
def fprop_rows(
    x_ptr, weight_ptr, bias_ptr, y_ptr,
    H, W, P, Q, PLANES, GROUPS, GROUP_K,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    weight_stride_n, weight_stride_k, weight_stride_r, weight_stride_s,
    bias_stride,
    y_stride_n, y_stride_k, y_stride_p, y_stride_q,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    WIDE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_INTERIOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = widen(tl.program_id(0), WIDE)
    tile_q, program = next_digit(program, tl.cdiv(Q, BLOCK_Q))
    tile_p, tile_c = next_digit(program, tl.cdiv(P, BLOCK_P))
    p = tile_p * BLOCK_P
    q = tile_q * BLOCK_Q + tl.arange(0, BLOCK_Q)[None, :]  # [1, BLOCK_Q]
    plane = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    k, n = next_digit(plane, GROUPS * GROUP_K)
    exists = plane < PLANES

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    weight_base = weight_ptr + n * weight_stride_n + k * weight_stride_k
    stride_r, stride_s = widen(weight_stride_r, WIDE), widen(weight_stride_s, WIDE)
    weights = ()
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            tap = tl.load(
                weight_base + r * stride_r + s * stride_s, mask=exists, other=0.0
            )  # [BLOCK_C, 1]
            weights = weights + (tap.to(ACC),)  # noqa: RUF005
    start = tl.zeros([BLOCK_C, BLOCK_Q], ACC)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + k * bias_stride, mask=exists, other=0.0)

    x_base = x_ptr + n * x_stride_n + (k // GROUP_K) * x_stride_c
    y_base = y_ptr + n * y_stride_n + k * y_stride_k
    h = p * STRIDE_H - PAD_H
    first_w = tile_q * BLOCK_Q * STRIDE_W - PAD_W
    interior = (
        (h >= 0)
        & (h + (BLOCK_P - 1) * STRIDE_H + (R - 1) * DIL_H < H)
        & (first_w >= 0)
        & (first_w + (BLOCK_Q - 1) * STRIDE_W + (S - 1) * DIL_W < W)
        & (p + BLOCK_P <= P)
        & (tile_q * BLOCK_Q + BLOCK_Q <= Q)
        & (tile_c * BLOCK_C + BLOCK_C <= PLANES)
    )
    if HAS_INTERIOR and interior:
        _sum_rows(
            x_base, weights, start, y_base, h, p, q, exists, H, W, P, Q,
            x_stride_h, x_stride_w, y_stride_p, y_stride_q,
            R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE, ACTIVATION, BLOCK_P, MASKED=False,
        )  # fmt: skip
    else:
        _sum_rows(
            x_base, weights, start, y_base, h, p, q, exists, H, W, P, Q,
            x_stride_h, x_stride_w, y_stride_p, y_stride_q,
            R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE, ACTIVATION, BLOCK_P, MASKED=True,
        )  # fmt: skip


@triton.jit
def _sum_rows(
    x_base, weights, start, y_base, h, p, q, exists, H, W, P, Q,
    x_stride_h, x_stride_w, y_stride_p, y_stride_q,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_P: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Loads the input rows from h on, one after the other, and stores the output rows from p on."""
    sums = ()
    for _ in tl.static_range(BLOCK_P):
        sums = sums + (start,)  # noqa: RUF005
    for i in tl.static_range((BLOCK_P - 1) * STRIDE_H + (R - 1) * DIL_H + 1):
        row = h + i
        if MASKED:
            row, row_inside = fold(as_block(row), H, MODE)  # [1, 1]
        taps = ()
        for s in tl.static_range(S):
            w = q * STRIDE_W - PAD_W + s * DIL_W
            if MASKED:
                w, w_inside = fold(w, W, MODE)
                inside = exists & row_inside & w_inside
                pointer = x_base + row * x_stride_h + w * x_stride_w
                x = tl.load(pointer, mask=inside, other=0.0)  # [BLOCK_C, BLOCK_Q]
            else:
                x = tl.load(x_base + row * x_stride_h + w * x_stride_w)
            taps = taps + (x.to(start.dtype),)  # noqa: RUF005
        # Output row j reads input row i through tap r when i == j * STRIDE_H + r * DIL_H.
        updated = ()
        for j in tl.static_range(BLOCK_P):
            total = sums[j]
            for r in tl.static_range(R):
                if i == j * STRIDE_H + r * DIL_H:
                    for s in tl.static_range(S):
                        total += taps[s] * weights[r * S + s]
                    if r == R - 1:
                        y_row = y_base + (p + j) * y_stride_p + q * y_stride_q
                        y = activate(total, ACTIVATION).to(y_base.dtype.element_ty)
                        if MASKED:
                            tl.store(y_row, y, mask=exists & (as_block(p + j) < P) & (q < Q))
                        else:
                            tl.store(y_row, y)
            updated = updated + (total,)  # noqa: RUF005
        sums = updated
