"""Forward as a sliding set of output rows, for few channels per group: each input row read once.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    c of k's group        h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view. A lane works on one plane, (n, group), for BLOCK_K of the group's filters, and on
LANE_Q neighbouring columns; a tile is BLOCK_P rows and BLOCK_Q columns of BLOCK_C planes. It walks
down the rows: an input row is loaded once, with the columns that its neighbours share, and feeds
the up to R output rows that are open at the time, whose sums stay in registers. STEP_P output rows
are unrolled. Sums in float32 (float64 for float64).

Where neighbouring columns are neighbours in memory, lanes are columns and LANE_Q is 1; in
channels_last lanes are planes and LANE_Q columns share what they load.

The input gradient with stride 1 is the same correlation of dy with the window flipped, and runs
here too: see Geometry.adjoint.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .indexing import as_block, fold, next_digit, widen
from .rows import is_read, load_row, open_rows, tap_of


@triton.jit
def fprop_rows(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    H, W, P, Q, PLANES, GROUPS, GROUP_K,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    weight_stride_n, weight_stride_g, weight_stride_k, weight_stride_c,
    weight_stride_r, weight_stride_s,
    bias_stride,
    residual_stride_n, residual_stride_k, residual_stride_p, residual_stride_q,
    y_stride_n, y_stride_k, y_stride_p, y_stride_q,
    GROUP_C: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    WIDE: tl.constexpr, ACTIVATION: tl.constexpr, INTERIOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    STEP_P: tl.constexpr, LANE_Q: tl.constexpr,
):  # fmt: skip
    program = widen(tl.program_id(0), WIDE)
    tile_k, program = next_digit(program, GROUP_K // BLOCK_K)
    tile_q, program = next_digit(program, tl.cdiv(Q, BLOCK_Q))
    tile_p, tile_c = next_digit(program, tl.cdiv(P, BLOCK_P))
    p = tile_p * BLOCK_P
    q = tile_q * BLOCK_Q + tl.arange(0, BLOCK_Q // LANE_Q)[None, :] * LANE_Q  # [1, lanes]
    plane = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    group, n = next_digit(plane, GROUPS)
    k = group * GROUP_K + tile_k * BLOCK_K
    exists = plane < PLANES

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    weight_base = weight_ptr + n * weight_stride_n + group * weight_stride_g
    weight_base += tile_k * BLOCK_K * widen(weight_stride_k, WIDE)
    stride_k, stride_c = widen(weight_stride_k, WIDE), widen(weight_stride_c, WIDE)
    stride_r, stride_s = widen(weight_stride_r, WIDE), widen(weight_stride_s, WIDE)
    weights = ()
    for tap in tl.static_range(BLOCK_K * GROUP_C * R * S):
        offset = tap // (GROUP_C * R * S) * stride_k + tap // (R * S) % GROUP_C * stride_c
        offset += tap // S % R * stride_r + tap % S * stride_s
        weight = tl.load(weight_base + offset, mask=exists, other=0.0)  # [BLOCK_C, 1]
        weight = tl.broadcast_to(weight.to(ACC), [BLOCK_C, BLOCK_Q // LANE_Q])
        weights = weights + (weight,)  # noqa: RUF005
    start = ()
    for i in tl.static_range(BLOCK_K):
        first = tl.zeros([BLOCK_C, BLOCK_Q // LANE_Q], ACC)
        if bias_ptr is not None:
            first += tl.load(bias_ptr + (k + i) * bias_stride, mask=exists, other=0.0)
        for _ in tl.static_range(LANE_Q):
            start = start + (first,)  # noqa: RUF005

    x_base = x_ptr + n * x_stride_n + group * GROUP_C * x_stride_c
    y_base = y_ptr + n * y_stride_n + k * y_stride_k
    residual_base = residual_ptr
    if residual_ptr is not None:
        residual_base += n * residual_stride_n + k * residual_stride_k
    h = p * STRIDE_H - PAD_H
    first_w = tile_q * BLOCK_Q * STRIDE_W - PAD_W
    STEPS: tl.constexpr = (BLOCK_P + open_rows(R, STRIDE_H, DIL_H) + STEP_P - 2) // STEP_P
    interior = (
        (h >= 0)
        & (h + STEPS * STEP_P * STRIDE_H <= H)
        & (first_w >= 0)
        & (first_w + (BLOCK_Q - 1) * STRIDE_W + (S - 1) * DIL_W < W)
        & (p + BLOCK_P <= P)
        & (tile_q * BLOCK_Q + BLOCK_Q <= Q)
        & (tile_c * BLOCK_C + BLOCK_C <= PLANES)
    )
    if INTERIOR == "all" or (INTERIOR == "some" and interior):
        _walk_down(
            x_base, weights, start, y_base, h, p, q, exists, H, W, P, Q,
            x_stride_c, x_stride_h, x_stride_w, y_stride_k, y_stride_p, y_stride_q,
            residual_base, residual_stride_k, residual_stride_p, residual_stride_q,
            GROUP_C, R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE,
            ACTIVATION, BLOCK_P, BLOCK_K, STEP_P, LANE_Q, STEPS, MASKED=False,
        )  # fmt: skip
    else:
        _walk_down(
            x_base, weights, start, y_base, h, p, q, exists, H, W, P, Q,
            x_stride_c, x_stride_h, x_stride_w, y_stride_k, y_stride_p, y_stride_q,
            residual_base, residual_stride_k, residual_stride_p, residual_stride_q,
            GROUP_C, R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE,
            ACTIVATION, BLOCK_P, BLOCK_K, STEP_P, LANE_Q, STEPS, MASKED=True,
        )  # fmt: skip


@triton.jit
def _walk_down(
    x_base, weights, start, y_base, h, p, q, exists, H, W, P, Q,
    x_stride_c, x_stride_h, x_stride_w, y_stride_k, y_stride_p, y_stride_q,
    residual_base, residual_stride_k, residual_stride_p, residual_stride_q,
    GROUP_C: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, STEP_P: tl.constexpr, LANE_Q: tl.constexpr,
    STEPS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Loads the input rows from h on, one after the other, and stores the output rows from p on."""
    OPEN: tl.constexpr = open_rows(R, STRIDE_H, DIL_H)
    sums = ()  # of open rows, and in each of filters, and in each of columns
    for _ in tl.static_range(OPEN - 1):
        sums = sums + start
    for step in range(STEPS):
        for _ in tl.static_range(STEP_P):
            sums = sums + start
        # The first open row is row `oldest` of the tile.
        oldest = step * STEP_P - (OPEN - 1)
        for i in tl.static_range(STEP_P * STRIDE_H):
            if is_read(i + (OPEN - 1) * STRIDE_H, 0, OPEN + STEP_P - 2, R, STRIDE_H, DIL_H):
                row = h + step * (STEP_P * STRIDE_H) + i
                # Rows of padding are passed by, where nothing of the next row is under way.
                if MASKED and STEP_P == 1:
                    if fold(row, H, MODE)[1]:
                        sums = _add_row(
                            sums, x_base, weights, row, q, exists, H, W,
                            x_stride_c, x_stride_h, x_stride_w, i + (OPEN - 1) * STRIDE_H,
                            GROUP_C, R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE,
                            BLOCK_K, LANE_Q, MASKED,
                        )  # fmt: skip
                else:
                    sums = _add_row(
                        sums, x_base, weights, row, q, exists, H, W,
                        x_stride_c, x_stride_h, x_stride_w, i + (OPEN - 1) * STRIDE_H,
                        GROUP_C, R, S, STRIDE_H, STRIDE_W, PAD_W, DIL_H, DIL_W, MODE,
                        BLOCK_K, LANE_Q, MASKED,
                    )  # fmt: skip
        for done in tl.static_range(STEP_P):
            j = as_block(oldest + done)  # [1, 1]
            wanted = (j >= 0) & (j < BLOCK_P)
            if MASKED:
                wanted = wanted & exists & (p + j < P)
            for i in tl.static_range(BLOCK_K * LANE_Q):
                column = q + i % LANE_Q
                y_row = y_base + i // LANE_Q * y_stride_k + (p + oldest + done) * y_stride_p
                y = sums[done * BLOCK_K * LANE_Q + i]
                if residual_base is not None:
                    residual = residual_base + i // LANE_Q * residual_stride_k
                    residual += (p + oldest + done) * residual_stride_p
                    residual += column * residual_stride_q
                    y = add_residual(y, residual, wanted & (column < Q))
                y = activate(y, ACTIVATION).to(y_base.dtype.element_ty)
                if MASKED:
                    tl.store(y_row + column * y_stride_q, y, mask=wanted & (column < Q))
                else:
                    tl.store(y_row + column * y_stride_q, y, mask=wanted)
        sums = sums[STEP_P * BLOCK_K * LANE_Q :]


@triton.jit
def _add_row(
    sums, x_base, weights, row, q, exists, H, W, x_stride_c, x_stride_h, x_stride_w,
    i: tl.constexpr,
    GROUP_C: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    BLOCK_K: tl.constexpr, LANE_Q: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with what an input row gives to them, number i from the oldest open output row's."""
    for c in tl.static_range(GROUP_C):
        pixels = load_row(
            x_base + c * x_stride_c, row, q, exists, H, W, x_stride_h, x_stride_w,
            sums[0].dtype, S, STRIDE_W, PAD_W, DIL_W, LANE_Q, MODE, MASKED,
        )  # fmt: skip
        updated = ()
        for j in tl.static_range(len(sums)):
            total = sums[j]
            if tap_of(i, j // (BLOCK_K * LANE_Q), R, STRIDE_H, DIL_H) >= 0:
                for s in tl.static_range(S):
                    total = tl.fma(
                        pixels[j % LANE_Q * STRIDE_W + s * DIL_W],
                        weights[
                            ((j // LANE_Q % BLOCK_K * GROUP_C + c) * R
                             + tap_of(i, j // (BLOCK_K * LANE_Q), R, STRIDE_H, DIL_H)) * S + s
                        ],
                        total,
                    )  # fmt: skip
            updated = updated + (total,)  # noqa: RUF005
        sums = updated
    return sums
