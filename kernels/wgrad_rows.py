"""Weight gradient from rows, for one channel per group: x and dy read once for all taps.

    dw[k,0,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]        c = k // GROUP_K
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view. A program keeps R * S sums for BLOCK_C filters and runs over strips of BLOCK_P x
BLOCK_Q outputs: an input row, loaded S times, shifted, meets the up to R rows of dy that it
touches. Strips are counted through (n, rows of strips, columns of strips); split i sums strips
[i * SPLIT_STRIPS, (i+1) * SPLIT_STRIPS) and stores at `i * dw_stride_split`: a partial for
sum_partials, or dw itself when there is one split. A bank per sample is a batch of such sums, each
over the strips of its own sample. Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .indexing import as_block, fold, next_digit, widen


@triton.jit
def wgrad_rows(
    x_ptr, dy_ptr, dw_ptr,
    H, W, P, Q, SAMPLES, SPLITS, SPLIT_STRIPS, GROUPS, GROUP_K,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    dw_stride_split,
    dw_stride_n, dw_stride_k, dw_stride_r, dw_stride_s,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    K = GROUPS * GROUP_K
    program = widen(tl.program_id(0), WIDE)
    tile_c, program = next_digit(program, tl.cdiv(K, BLOCK_C))
    split, batch = next_digit(program, SPLITS)
    k = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    exists = k < K
    first = split * SPLIT_STRIPS

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    sums = ()
    for _ in tl.static_range(R * S):
        sums = sums + (tl.zeros([BLOCK_C, BLOCK_Q], ACC),)  # noqa: RUF005
    for step in range(SPLIT_STRIPS):
        strip = first + widen(step, WIDE)
        tile_q, line = next_digit(strip, tl.cdiv(Q, BLOCK_Q))
        tile_p, n = next_digit(line, tl.cdiv(P, BLOCK_P))
        counted = exists & (as_block(n) < SAMPLES)
        n += batch
        p = tile_p * BLOCK_P
        q = tile_q * BLOCK_Q + tl.arange(0, BLOCK_Q)[None, :]  # [1, BLOCK_Q]
        h = p * STRIDE_H - PAD_H
        x_base = x_ptr + n * x_stride_n + (k // GROUP_K) * x_stride_c
        dy_base = dy_ptr + n * dy_stride_n + k * dy_stride_k + q * dy_stride_q
        dys = ()
        for i in tl.static_range((BLOCK_P - 1) * STRIDE_H + (R - 1) * DIL_H + 1):
            if i % STRIDE_H == 0 and i // STRIDE_H < BLOCK_P:
                row = p + i // STRIDE_H
                dy = tl.load(
                    dy_base + row * dy_stride_p,
                    mask=counted & (as_block(row) < P) & (q < Q),
                    other=0.0,
                )  # [BLOCK_C, BLOCK_Q]
                dys = dys + (dy.to(ACC),)  # noqa: RUF005
            input_row, row_inside = fold(as_block(h + i), H, MODE)  # [1, 1]
            taps = ()
            for s in tl.static_range(S):
                w, w_inside = fold(q * STRIDE_W - PAD_W + s * DIL_W, W, MODE)
                x = tl.load(
                    x_base + input_row * x_stride_h + w * x_stride_w,
                    mask=counted & row_inside & w_inside,
                    other=0.0,
                )  # [BLOCK_C, BLOCK_Q]
                taps = taps + (x.to(ACC),)  # noqa: RUF005
            # Input row i meets dy's row j through tap r when i == j * STRIDE_H + r * DIL_H.
            updated = ()
            for r in tl.static_range(R):
                for s in tl.static_range(S):
                    total = sums[r * S + s]
                    for j in tl.static_range(BLOCK_P):
                        if i == j * STRIDE_H + r * DIL_H:
                            total += dys[j] * taps[s]
                    updated = updated + (total,)  # noqa: RUF005
            sums = updated

    stride_r, stride_s = widen(dw_stride_r, WIDE), widen(dw_stride_s, WIDE)
    dw_base = dw_ptr + split * dw_stride_split + batch * dw_stride_n + k * dw_stride_k
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            dw = tl.sum(sums[r * S + s], axis=1, keep_dims=True)  # [BLOCK_C, 1]
            tl.store(
                dw_base + r * stride_r + s * stride_s,
                dw.to(dw_ptr.dtype.element_ty),
                mask=exists,
            )
