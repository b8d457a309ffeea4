"""Weight gradient from rows, for few channels per group: x and dy read once for all taps.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]        c of k's group
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view. A lane works on one group, for BLOCK_K of its filters, and on LANE_Q neighbouring
columns, as in fprop_rows; it keeps a sum for every tap. A program runs over strips of BLOCK_P x
BLOCK_Q outputs and walks down each: an input row, loaded once, meets the up to R rows of dy that
it touches, which stay in registers. Strips are counted through (n, rows of strips, columns of
strips); split i sums strips [i * SPLIT_STRIPS, (i+1) * SPLIT_STRIPS) and stores at
`i * dw_stride_split`: a partial for sum_partials, or dw itself when there is one split. A bank per
sample is a batch of such sums, each over the strips of its own sample. Sums in float32 (float64
for float64).
"""

import triton
import triton.language as tl

from .indexing import as_block, fold, next_digit, widen
from .rows import is_read, load_row, open_rows, tap_of


@triton.jit
def wgrad_rows(
    x_ptr, dy_ptr, dw_ptr,
    H, W, P, Q, SAMPLES, SPLITS, SPLIT_STRIPS, GROUPS, GROUP_K,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    dw_stride_split,
    dw_stride_n, dw_stride_g, dw_stride_k, dw_stride_c, dw_stride_r, dw_stride_s,
    GROUP_C: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    WIDE: tl.constexpr, INTERIOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    STEP_P: tl.constexpr, LANE_Q: tl.constexpr,
):  # fmt: skip
    program = widen(tl.program_id(0), WIDE)
    tile_k, program = next_digit(program, GROUP_K // BLOCK_K)
    tile_c, program = next_digit(program, tl.cdiv(GROUPS, BLOCK_C))
    split, batch = next_digit(program, SPLITS)
    group = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    k = group * GROUP_K + tile_k * BLOCK_K
    exists = group < GROUPS
    first = split * SPLIT_STRIPS

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    STEPS: tl.constexpr = (BLOCK_P + open_rows(R, STRIDE_H, DIL_H) + STEP_P - 2) // STEP_P
    sums = ()
    for _ in tl.static_range(BLOCK_K * GROUP_C * R * S):
        sums = sums + (tl.zeros([BLOCK_C, BLOCK_Q // LANE_Q], ACC),)  # noqa: RUF005
    for i in range(SPLIT_STRIPS):
        strip = first + widen(i, WIDE)
        tile_q, line = next_digit(strip, tl.cdiv(Q, BLOCK_Q))
        tile_p, n = next_digit(line, tl.cdiv(P, BLOCK_P))
        counted = exists & (as_block(n) < SAMPLES)
        p = tile_p * BLOCK_P
        q = tile_q * BLOCK_Q + tl.arange(0, BLOCK_Q // LANE_Q)[None, :] * LANE_Q  # [1, lanes]
        h = p * STRIDE_H - PAD_H
        first_w = tile_q * BLOCK_Q * STRIDE_W - PAD_W
        interior = (
            (h >= 0)
            & (h + STEPS * STEP_P * STRIDE_H <= H)
            & (first_w >= 0)
            & (first_w + (BLOCK_Q - 1) * STRIDE_W + (S - 1) * DIL_W < W)
            & (p + BLOCK_P <= P)
            & (tile_q * BLOCK_Q + BLOCK_Q <= Q)
            & (tile_c * BLOCK_C + BLOCK_C <= GROUPS)
            & (n < SAMPLES)
        )
        n += batch
        x_base = x_ptr + n * x_stride_n + group * GROUP_C * x_stride_c
        dy_base = dy_ptr + n * dy_stride_n + k * dy_stride_k
        if INTERIOR == "all" or (INTERIOR == "some" and interior):
            sums = _walk_down(
                sums, x_base, dy_base, h, p, q, counted, H, W, P, Q,
                x_stride_c, x_stride_h, x_stride_w, dy_stride_k, dy_stride_p, dy_stride_q,
                GROUP_C, R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE,
                BLOCK_P, BLOCK_K, STEP_P, LANE_Q, STEPS, MASKED=False,
            )  # fmt: skip
        else:
            sums = _walk_down(
                sums, x_base, dy_base, h, p, q, counted, H, W, P, Q,
                x_stride_c, x_stride_h, x_stride_w, dy_stride_k, dy_stride_p, dy_stride_q,
                GROUP_C, R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE,
                BLOCK_P, BLOCK_K, STEP_P, LANE_Q, STEPS, MASKED=True,
            )  # fmt: skip

    dw_base = dw_ptr + split * dw_stride_split + batch * dw_stride_n + group * dw_stride_g
    dw_base += tile_k * BLOCK_K * widen(dw_stride_k, WIDE)
    stride_k, stride_c = widen(dw_stride_k, WIDE), widen(dw_stride_c, WIDE)
    stride_r, stride_s = widen(dw_stride_r, WIDE), widen(dw_stride_s, WIDE)
    for tap in tl.static_range(BLOCK_K * GROUP_C * R * S):
        dw = tl.sum(sums[tap], axis=1, keep_dims=True)  # [BLOCK_C, 1]
        offset = tap // (GROUP_C * R * S) * stride_k + tap // (R * S) % GROUP_C * stride_c
        offset += tap // S % R * stride_r + tap % S * stride_s
        tl.store(dw_base + offset, dw.to(dw_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _walk_down(
    sums, x_base, dy_base, h, p, q, counted, H, W, P, Q,
    x_stride_c, x_stride_h, x_stride_w, dy_stride_k, dy_stride_p, dy_stride_q,
    GROUP_C: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, STEP_P: tl.constexpr, LANE_Q: tl.constexpr,
    STEPS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with those of a strip: input rows from h on, rows of dy from p on."""
    OPEN: tl.constexpr = open_rows(R, STRIDE_H, DIL_H)
    dys = ()  # of rows, and in each of filters, and in each of columns
    for _ in tl.static_range((OPEN - 1) * BLOCK_K * LANE_Q):
        dys = dys + (tl.zeros_like(sums[0]),)  # noqa: RUF005
    for step in range(STEPS):
        for new in tl.static_range(STEP_P):
            j = as_block(step * STEP_P + new)  # [1, 1]
            wanted = j < BLOCK_P
            if MASKED:
                wanted = wanted & counted & (p + j < P)
            for i in tl.static_range(BLOCK_K * LANE_Q):
                column = q + i % LANE_Q
                row = dy_base + i // LANE_Q * dy_stride_k + (p + step * STEP_P + new) * dy_stride_p
                inside = wanted
                if MASKED:
                    inside = inside & (column < Q)
                dy = tl.load(row + column * dy_stride_q, mask=inside, other=0.0)  # [BLOCK_C, lanes]
                dys = dys + (dy.to(sums[0].dtype),)  # noqa: RUF005
        for i in tl.static_range(STEP_P * STRIDE_H):
            if is_read(i + (OPEN - 1) * STRIDE_H, 0, OPEN + STEP_P - 2, R, STRIDE_H, DIL_H):
                row = h + step * (STEP_P * STRIDE_H) + i
                # Rows of padding are passed by, where nothing of the next row is under way.
                if MASKED and STEP_P == 1:
                    if fold(row, H, MODE)[1]:
                        sums = _add_row(
                            sums, x_base, dys, row, q, counted, H, W,
                            x_stride_c, x_stride_h, x_stride_w, i + (OPEN - 1) * STRIDE_H,
                            GROUP_C, R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE,
                            BLOCK_K, LANE_Q, MASKED,
                        )  # fmt: skip
                else:
                    sums = _add_row(
                        sums, x_base, dys, row, q, counted, H, W,
                        x_stride_c, x_stride_h, x_stride_w, i + (OPEN - 1) * STRIDE_H,
                        GROUP_C, R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE,
                        BLOCK_K, LANE_Q, MASKED,
                    )  # fmt: skip
        dys = dys[STEP_P * BLOCK_K * LANE_Q :]
    return sums


@triton.jit
def _add_row(
    sums, x_base, dys, row, q, counted, H, W, x_stride_c, x_stride_h, x_stride_w,
    i: tl.constexpr,
    GROUP_C: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    BLOCK_K: tl.constexpr, LANE_Q: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with what an input row gives to them, number i from the oldest row of dys."""
    for c in tl.static_range(GROUP_C):
        pixels = load_row(
            x_base + c * x_stride_c, row, q, counted, H, W, x_stride_h, x_stride_w,
            sums[0].dtype, S, STRIDE_W, PAD_W, DIL_W, LANE_Q, MODE, MASKED,
        )  # fmt: skip
        updated = ()
        for tap in tl.static_range(BLOCK_K * GROUP_C * R * S):
            total = sums[tap]
            if tap // (R * S) % GROUP_C == c:
                for j in tl.static_range(len(dys) // (BLOCK_K * LANE_Q)):
                    if tap_of(i, j, R, STRIDE_H, DIL_H) == tap // S % R:
                        for column in tl.static_range(LANE_Q):
                            total = tl.fma(
                                pixels[column * STRIDE_W + tap % S * DIL_W],
                                dys[(j * BLOCK_K + tap // (GROUP_C * R * S)) * LANE_Q + column],
                                total,
                            )
            updated = updated + (total,)  # noqa: RUF005
        sums = updated
    return sums
