"""Input gradient as a sliding set of rows, for few filters per group and a stride: dy read once.

    dx[n,c,h,w] = sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]        k of c's group
    h + PAD_H = p * STRIDE_H + r * DIL_H        w likewise

No GEMM view, and no product with a zero between dy's elements: counted from the padding's edge,
h + PAD_H = t * STRIDE_H + phase, and tap r reaches phase r * DIL_H % STRIDE_H alone, from row
p = t - r * DIL_H // STRIDE_H of dy; columns likewise. A lane works on one plane, (n, group), and on
LANE_Q neighbouring t of columns, with all their phases. A tile is BLOCK_P x BLOCK_Q such (t, t) of
BLOCK_C planes; it walks down the rows of dy, each loaded once, and feeds the dx rows that are open
at the time, whose sums stay in registers. Sums in float32 (float64 for float64).

With stride 1 the input gradient is a forward correlation: see Geometry.adjoint.
"""

import triton
import triton.language as tl

from .indexing import as_block, next_digit, widen
from .rows import load_row


@triton.jit
def dgrad_rows(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    H, W, P, Q, PLANES, GROUPS,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    weight_stride_n, weight_stride_g, weight_stride_k, weight_stride_c,
    weight_stride_r, weight_stride_s,
    bias_stride,
    dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w,
    GROUP_C: tl.constexpr, GROUP_K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    WIDE: tl.constexpr, INTERIOR: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
    LANE_Q: tl.constexpr,
):  # fmt: skip
    # The first t that any pixel of the image has, and how many t there are.
    T_H: tl.constexpr = PAD_H // STRIDE_H
    T_W: tl.constexpr = PAD_W // STRIDE_W
    tiles_q = tl.cdiv((W - 1 + PAD_W) // STRIDE_W + 1 - T_W, BLOCK_Q)
    tiles_p = tl.cdiv((H - 1 + PAD_H) // STRIDE_H + 1 - T_H, BLOCK_P)
    program = widen(tl.program_id(0), WIDE)
    tile_q, program = next_digit(program, tiles_q)
    tile_p, tile_c = next_digit(program, tiles_p)
    t_h = T_H + tile_p * BLOCK_P
    first_t = T_W + tile_q * BLOCK_Q
    t_w = first_t + tl.arange(0, BLOCK_Q // LANE_Q)[None, :] * LANE_Q  # [1, lanes]
    plane = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
    group, n = next_digit(plane, GROUPS)
    exists = plane < PLANES

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    weight_base = weight_ptr + n * weight_stride_n + group * weight_stride_g
    stride_k, stride_c = widen(weight_stride_k, WIDE), widen(weight_stride_c, WIDE)
    stride_r, stride_s = widen(weight_stride_r, WIDE), widen(weight_stride_s, WIDE)
    weights = ()
    for tap in tl.static_range(GROUP_K * GROUP_C * R * S):
        offset = tap // (GROUP_C * R * S) * stride_k + tap // (R * S) % GROUP_C * stride_c
        offset += tap // S % R * stride_r + tap % S * stride_s
        weight = tl.load(weight_base + offset, mask=exists, other=0.0)  # [BLOCK_C, 1]
        weight = tl.broadcast_to(weight.to(ACC), [BLOCK_C, BLOCK_Q // LANE_Q])
        weights = weights + (weight,)  # noqa: RUF005
    start = ()
    for c in tl.static_range(GROUP_C):
        first = tl.zeros([BLOCK_C, BLOCK_Q // LANE_Q], ACC)
        if bias_ptr is not None:
            first += tl.load(bias_ptr + (group * GROUP_C + c) * bias_stride, mask=exists, other=0.0)
        for _ in tl.static_range(LANE_Q * STRIDE_W):
            start = start + (first,)  # noqa: RUF005

    dy_base = dy_ptr + n * dy_stride_n + group * GROUP_K * dy_stride_k
    dx_base = dx_ptr + n * dx_stride_n + group * GROUP_C * dx_stride_c
    # Rows and columns of dy before t that a tile reads.
    BEFORE_H: tl.constexpr = (R - 1) * DIL_H // STRIDE_H
    BEFORE_W: tl.constexpr = (S - 1) * DIL_W // STRIDE_W
    interior = (
        (t_h - BEFORE_H >= 0)
        & (t_h + BLOCK_P <= P)
        & (first_t - BEFORE_W >= 0)
        & (first_t + BLOCK_Q <= Q)
        & (t_h * STRIDE_H >= PAD_H)
        & ((t_h + BLOCK_P) * STRIDE_H <= H + PAD_H)
        & (first_t * STRIDE_W >= PAD_W)
        & ((first_t + BLOCK_Q) * STRIDE_W <= W + PAD_W)
        & (tile_c * BLOCK_C + BLOCK_C <= PLANES)
    )
    if INTERIOR == "all" or (INTERIOR == "some" and interior):
        _walk_down(
            dy_base, weights, start, dx_base, t_h, t_w, exists, H, W, P, Q,
            dy_stride_k, dy_stride_p, dy_stride_q, dx_stride_c, dx_stride_h, dx_stride_w,
            GROUP_C, GROUP_K, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DIL_H, DIL_W,
            BLOCK_P, LANE_Q, BEFORE_H, BEFORE_W, MASKED=False,
        )  # fmt: skip
    else:
        _walk_down(
            dy_base, weights, start, dx_base, t_h, t_w, exists, H, W, P, Q,
            dy_stride_k, dy_stride_p, dy_stride_q, dx_stride_c, dx_stride_h, dx_stride_w,
            GROUP_C, GROUP_K, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DIL_H, DIL_W,
            BLOCK_P, LANE_Q, BEFORE_H, BEFORE_W, MASKED=True,
        )  # fmt: skip


@triton.jit
def _walk_down(
    dy_base, weights, start, dx_base, t_h, t_w, exists, H, W, P, Q,
    dy_stride_k, dy_stride_p, dy_stride_q, dx_stride_c, dx_stride_h, dx_stride_w,
    GROUP_C: tl.constexpr, GROUP_K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BLOCK_P: tl.constexpr, LANE_Q: tl.constexpr,
    BEFORE_H: tl.constexpr, BEFORE_W: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Loads the rows of dy, one after the other, and stores the rows of dx of all phases."""
    ROW: tl.constexpr = GROUP_C * LANE_Q * STRIDE_W  # sums of a dx row: channels, t, phases
    sums = ()  # of the dx rows that row p of dy and later ones reach
    for _ in tl.static_range(BEFORE_H * STRIDE_H):
        sums = sums + start
    for step in range(BLOCK_P + BEFORE_H):
        for _ in tl.static_range(STRIDE_H):
            sums = sums + start
        p = t_h - BEFORE_H + step
        # Rows of dy that do not exist are passed by.
        if MASKED:
            if (p >= 0) & (p < P):
                sums = _add_row(
                    sums, dy_base, weights, p, t_w, exists, P, Q,
                    dy_stride_k, dy_stride_p, dy_stride_q,
                    GROUP_C, GROUP_K, R, S, STRIDE_W, DIL_H, DIL_W, LANE_Q, BEFORE_W, MASKED,
                )  # fmt: skip
        else:
            sums = _add_row(
                sums, dy_base, weights, p, t_w, exists, P, Q,
                dy_stride_k, dy_stride_p, dy_stride_q,
                GROUP_C, GROUP_K, R, S, STRIDE_W, DIL_H, DIL_W, LANE_Q, BEFORE_W, MASKED,
            )  # fmt: skip
        for phase in tl.static_range(STRIDE_H):
            h = p * STRIDE_H + phase - PAD_H
            # Before the tile's own rows, it only collects what reaches into them.
            wanted = as_block(step) >= BEFORE_H  # [1, 1]
            if MASKED:
                wanted = wanted & exists & (as_block(h) >= 0) & (as_block(h) < H)
            for i in tl.static_range(ROW):
                column = t_w + i // STRIDE_W % LANE_Q
                w = column * STRIDE_W + i % STRIDE_W - PAD_W
                row = dx_base + i // (STRIDE_W * LANE_Q) * dx_stride_c + h * dx_stride_h
                dx = sums[phase * ROW + i].to(dx_base.dtype.element_ty)
                if MASKED:
                    tl.store(row + w * dx_stride_w, dx, mask=wanted & (w >= 0) & (w < W))
                else:
                    tl.store(row + w * dx_stride_w, dx, mask=wanted)
        sums = sums[STRIDE_H * ROW :]


@triton.jit
def _add_row(
    sums, dy_base, weights, p, t_w, exists, P, Q, dy_stride_k, dy_stride_p, dy_stride_q,
    GROUP_C: tl.constexpr, GROUP_K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    LANE_Q: tl.constexpr, BEFORE_W: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with what row p of dy gives to them: tap r reaches dx row r * DIL_H of them."""
    for k in tl.static_range(GROUP_K):
        dys = load_row(
            dy_base + k * dy_stride_k, p, t_w, exists, P, Q, dy_stride_p, dy_stride_q,
            sums[0].dtype, BEFORE_W + 1, 1, BEFORE_W, 1, LANE_Q, "zeros", MASKED,
        )  # fmt: skip
        updated = ()
        for i in tl.static_range(len(sums)):
            total = sums[i]
            for tap in tl.static_range(R * S):
                if (
                    i // (GROUP_C * LANE_Q * STRIDE_W) == tap // S * DIL_H
                    and i % STRIDE_W == tap % S * DIL_W % STRIDE_W
                ):
                    total = tl.fma(
                        dys[i // STRIDE_W % LANE_Q + BEFORE_W - tap % S * DIL_W // STRIDE_W],
                        weights[
                            (k * GROUP_C + i // (LANE_Q * STRIDE_W) % GROUP_C) * R * S + tap
                        ],
                        total,
                    )  # fmt: skip
            updated = updated + (total,)  # noqa: RUF005
        sums = updated
    return sums
