"""Input gradient as a sliding set of rows, for few filters per group and a stride.

    dx[n,c,h,w] = sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]        k of c's group
    h + PAD_H = p * STRIDE_H + r * DIL_H        w likewise

No GEMM view, and no product with a zero between dy's elements. Counted from the padding's edge,
h + PAD_H = t * STRIDE_H + phase: t is a group of STRIDE_H rows. Tap r reaches only phase
r * DIL_H % STRIDE_H, from row p = t - r * DIL_H // STRIDE_H of dy; columns likewise. A lane works
on one plane, (n, group), and on LANE_Q neighbouring groups of columns, with all their phases. A
tile is BLOCK_P groups of rows x BLOCK_Q groups of columns of BLOCK_C planes. The kernel walks down
the rows of dy, loads each once and adds it to the dx rows that are still being summed, in
registers. Sums in float32 (float64 for float64).

With stride 1 the input gradient is a forward correlation: see Geometry.adjoint.
"""

import triton
import triton.language as tl

from .rows import lanes_of, load_of_planes, load_row, load_taps, tap_index, widen_strides
from .schedule import as_block, next_digit, widen
from .structs import at


@triton.jit
def dgrad_rows(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    x_shape, y_shape, PLANES, GROUPS,
    dy_strides, weight_strides, weight_stride_g, bias_stride, dx_strides,
    GROUP_C: tl.constexpr, GROUP_K: tl.constexpr, WINDOW: tl.constexpr,
    INTERIOR: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    P, Q = y_shape
    # t of the image's first row and column.
    T_H: tl.constexpr = WINDOW.PAD_H // WINDOW.STRIDE_H
    T_W: tl.constexpr = WINDOW.PAD_W // WINDOW.STRIDE_W
    tiles_q = tl.cdiv((W - 1 + WINDOW.PAD_W) // WINDOW.STRIDE_W + 1 - T_W, TILE.BLOCK_Q)
    tiles_p = tl.cdiv((H - 1 + WINDOW.PAD_H) // WINDOW.STRIDE_H + 1 - T_H, TILE.BLOCK_P)
    program = widen(tl.program_id(0), INT64)
    tile_q, program = next_digit(program, tiles_q)
    tile_p, tile_c = next_digit(program, tiles_p)
    t_h = T_H + tile_p * TILE.BLOCK_P
    first_t = T_W + tile_q * TILE.BLOCK_Q
    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    plane, t_w, mask, zeros, full = lanes_of(tile_c, first_t, PLANES, TILE, ACC)
    group, n = next_digit(plane, GROUPS)

    weights = load_taps(
        weight_ptr + n * weight_strides[0] + group * weight_stride_g,
        widen_strides(weight_strides, INT64), mask,
        GROUP_K, GROUP_C, WINDOW.R, WINDOW.S, zeros,
    )  # fmt: skip
    start = ()  # (c, t, phase)
    for c in tl.static_range(GROUP_C):
        first = zeros
        if bias_ptr is not None:
            first += load_of_planes(bias_ptr + (group * GROUP_C + c) * bias_stride, mask)
        for _ in tl.static_range(TILE.LANE_Q * WINDOW.STRIDE_W):
            start = start + (first,)

    dy_base = at(dy_ptr, dy_strides, n, group * GROUP_K, 0, 0)
    dx_base = at(dx_ptr, dx_strides, n, group * GROUP_C, 0, 0)
    # Rows and columns of dy that a tile reads before its first t.
    BEFORE_H: tl.constexpr = (WINDOW.R - 1) * WINDOW.DIL_H // WINDOW.STRIDE_H
    BEFORE_W: tl.constexpr = (WINDOW.S - 1) * WINDOW.DIL_W // WINDOW.STRIDE_W
    interior = (
        full
        & (t_h - BEFORE_H >= 0)
        & (t_h + TILE.BLOCK_P <= P)
        & (first_t - BEFORE_W >= 0)
        & (first_t + TILE.BLOCK_Q <= Q)
        & (t_h * WINDOW.STRIDE_H >= WINDOW.PAD_H)
        & ((t_h + TILE.BLOCK_P) * WINDOW.STRIDE_H <= H + WINDOW.PAD_H)
        & (first_t * WINDOW.STRIDE_W >= WINDOW.PAD_W)
        & ((first_t + TILE.BLOCK_Q) * WINDOW.STRIDE_W <= W + WINDOW.PAD_W)
    )
    if INTERIOR == "all" or (INTERIOR == "some" and interior):
        _walk_down(
            dy_base, weights, start, dx_base, t_h, t_w, mask, x_shape, y_shape,
            dy_strides, dx_strides, GROUP_C, GROUP_K, WINDOW, TILE, False,
        )  # fmt: skip
    else:
        _walk_down(
            dy_base, weights, start, dx_base, t_h, t_w, mask, x_shape, y_shape,
            dy_strides, dx_strides, GROUP_C, GROUP_K, WINDOW, TILE, True,
        )  # fmt: skip


@triton.jit
def _walk_down(
    dy_base, weights, start, dx_base, t_h, t_w, planes, x_shape, y_shape, dy_strides, dx_strides,
    GROUP_C: tl.constexpr, GROUP_K: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Loads the rows of dy one after the other, and stores the rows of dx of all phases."""
    BEFORE: tl.constexpr = (WINDOW.R - 1) * WINDOW.DIL_H // WINDOW.STRIDE_H
    STRIDE_W: tl.constexpr = WINDOW.STRIDE_W
    ROW: tl.constexpr = GROUP_C * TILE.LANE_Q * STRIDE_W
    sums = ()  # (row of dx that row p of dy or a later one reaches, c, t, phase of columns)
    for _ in tl.static_range(BEFORE * WINDOW.STRIDE_H):
        sums = sums + start
    for step in range(TILE.BLOCK_P + BEFORE):
        for _ in tl.static_range(WINDOW.STRIDE_H):
            sums = sums + start
        p = t_h - BEFORE + step
        exists = True
        if MASKED:  # skip rows that dy does not have
            exists = (p >= 0) & (p < y_shape[0])
        if exists:
            sums = _add_row(
                sums, dy_base, weights, p, t_w, planes, y_shape, dy_strides,
                GROUP_C, GROUP_K, WINDOW, TILE, MASKED,
            )  # fmt: skip
        for phase in tl.static_range(WINDOW.STRIDE_H):
            h = p * WINDOW.STRIDE_H + phase - WINDOW.PAD_H
            # Rows of dx above the tile belong to another program.
            mask = as_block(step) >= BEFORE  # [1, 1]
            if MASKED:
                mask = mask & planes & (as_block(h) >= 0) & (as_block(h) < x_shape[0])
            for i in tl.static_range(ROW):
                column = t_w + i // STRIDE_W % TILE.LANE_Q
                w = column * STRIDE_W + i % STRIDE_W - WINDOW.PAD_W
                pointer = at(dx_base, dx_strides, 0, i // (STRIDE_W * TILE.LANE_Q), h, w)
                dx = sums[phase * ROW + i].to(dx_base.dtype.element_ty)
                if MASKED:
                    wanted = mask & (w >= 0) & (w < x_shape[1])
                else:
                    wanted = mask
                tl.store(pointer, dx, mask=wanted)
        sums = sums[WINDOW.STRIDE_H * ROW :]


@triton.jit
def _add_row(
    sums, dy_base, weights, p, t_w, mask, y_shape, dy_strides,
    GROUP_C: tl.constexpr, GROUP_K: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Adds row p of dy to the sums: its tap r reaches dx row r * DIL_H of them."""
    BEFORE: tl.constexpr = (WINDOW.S - 1) * WINDOW.DIL_W // WINDOW.STRIDE_W
    LANE_Q: tl.constexpr = TILE.LANE_Q
    R: tl.constexpr = WINDOW.R
    S: tl.constexpr = WINDOW.S
    STRIDE_W: tl.constexpr = WINDOW.STRIDE_W
    for k in tl.static_range(GROUP_K):
        dys = load_row(
            at(dy_base, dy_strides, 0, k, 0, 0), dy_strides, p, t_w, mask, y_shape,
            BEFORE + 1, 1, BEFORE, 1, "zeros", LANE_Q, sums[0].dtype, MASKED,
        )  # fmt: skip
        updated = ()
        for i in tl.static_range(len(sums)):
            total = sums[i]
            for r in tl.static_range(R):
                for s in tl.static_range(S):
                    if (
                        i // (GROUP_C * LANE_Q * STRIDE_W) == r * WINDOW.DIL_H
                        and i % STRIDE_W == s * WINDOW.DIL_W % STRIDE_W
                    ):
                        total = tl.fma(
                            dys[i // STRIDE_W % LANE_Q + BEFORE - s * WINDOW.DIL_W // STRIDE_W],
                            weights[
                                tap_index(
                                    k, i // (LANE_Q * STRIDE_W) % GROUP_C, r, s, GROUP_C, R, S
                                )
                            ],
                            total,
                        )
            updated = updated + (total,)
        sums = updated
    return sums
