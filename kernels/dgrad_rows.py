"""Input gradient as a sliding set of rows, for few filters per group and a stride.

    dx[n,c,h,w] = sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]        k of c's group
    h + PAD_H = p * STRIDE_H + r * DIL_H        w likewise

No GEMM view, and no product with a zero between dy's elements. h = t * STRIDE_H + phase: t is a
group of STRIDE_H rows. A group reads the rows t - READ.PAD_H .. t - READ.PAD_H + READ.R - 1 of dy;
columns likewise. A lane works on one plane, (n, group), and on LANE_Q neighbouring groups of
columns. A tile is BLOCK_P groups of rows x BLOCK_Q groups of columns of BLOCK_C planes. The kernel
walks down the rows of dy, loads each once and adds it to the dx rows that are still being summed,
in registers. Sums in float32 (float64 for float64).

Where rows consist of whole aligned vectors (X_ALIGN > 1), lanes load LANE_Q columns of dy as a
vector, the next row's while those of this one are added, and store vectors of Y_ALIGN columns of
dx: single columns of one phase would be half a sector of memory each. See vectors.py.

With stride 1 the input gradient is a forward correlation: see Geometry.adjoint.
"""

import triton
import triton.language as tl

from .rows import (
    lanes_of,
    load_of_planes,
    load_row,
    load_taps,
    reached_from,
    reaches,
    tap_index,
    tap_of,
    widen_strides,
)
from .schedule import as_block, next_digit, widen
from .structs import at
from .vectors import columns_per_word, join_last, load_vector, masks_of, pixels_of, vector_at


@triton.jit
def dgrad_rows(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    x_shape, y_shape, PLANES, GROUPS,
    dy_strides, weight_strides, weight_stride_g, bias_stride, dx_strides,
    GROUP_C: tl.constexpr, GROUP_K: tl.constexpr, WINDOW: tl.constexpr, READ: tl.constexpr,
    INTERIOR: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    P, Q = y_shape
    tiles_q = tl.cdiv(tl.cdiv(W, WINDOW.STRIDE_W), TILE.BLOCK_Q)
    tiles_p = tl.cdiv(tl.cdiv(H, WINDOW.STRIDE_H), TILE.BLOCK_P)
    program = widen(tl.program_id(0), INT64)
    tile_q, program = next_digit(program, tiles_q)
    tile_p, tile_c = next_digit(program, tiles_p)
    first_h, first_w = tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    plane, t_w, mask, zeros, full = lanes_of(tile_c, first_w, PLANES, TILE, ACC)
    group, n = next_digit(plane, GROUPS)

    weights = load_taps(
        weight_ptr + n * weight_strides[0] + group * weight_stride_g,
        widen_strides(weight_strides, INT64), mask,
        GROUP_K, GROUP_C, WINDOW.R, WINDOW.S, zeros,
    )  # fmt: skip
    start = ()  # (c, column)
    for c in tl.static_range(GROUP_C):
        first = zeros
        if bias_ptr is not None:
            first += load_of_planes(bias_ptr + (group * GROUP_C + c) * bias_stride, mask)
        for _ in tl.static_range(TILE.LANE_Q * WINDOW.STRIDE_W):
            start = start + (first,)

    dy_base = at(dy_ptr, dy_strides, n, group * GROUP_K, 0, 0)
    dx_base = at(dx_ptr, dx_strides, n, group * GROUP_C, 0, 0)
    p, q = first_h - READ.PAD_H, first_w - READ.PAD_W
    interior = (
        full
        & (p >= 0)
        & (p + TILE.BLOCK_P + READ.R - 1 <= P)
        & (q >= 0)
        & (q + TILE.BLOCK_Q + READ.S - 1 <= Q)
        & ((first_h + TILE.BLOCK_P) * WINDOW.STRIDE_H <= H)
        & ((first_w + TILE.BLOCK_Q) * WINDOW.STRIDE_W <= W)
    )
    if INTERIOR == "all" or (INTERIOR == "some" and interior):
        _walk_down(
            dy_base, weights, start, dx_base, first_h, t_w, mask, x_shape, y_shape,
            dy_strides, dx_strides, GROUP_C, GROUP_K, WINDOW, READ, TILE, False,
        )  # fmt: skip
    else:
        _walk_down(
            dy_base, weights, start, dx_base, first_h, t_w, mask, x_shape, y_shape,
            dy_strides, dx_strides, GROUP_C, GROUP_K, WINDOW, READ, TILE, True,
        )  # fmt: skip


@triton.jit
def _walk_down(
    dy_base, weights, start, dx_base, first_h, t_w, planes, x_shape, y_shape, dy_strides,
    dx_strides, GROUP_C: tl.constexpr, GROUP_K: tl.constexpr, WINDOW: tl.constexpr,
    READ: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Loads the rows of dy one after the other, and stores the rows of dx of all phases."""
    OPEN: tl.constexpr = READ.R - 1
    STEPS: tl.constexpr = TILE.BLOCK_P + OPEN
    LANE_W: tl.constexpr = TILE.LANE_Q * WINDOW.STRIDE_W  # columns of dx of a lane
    ROW: tl.constexpr = GROUP_C * LANE_W
    DTYPE: tl.constexpr = dy_base.dtype.element_ty
    WORD: tl.constexpr = columns_per_word(DTYPE)
    columns, masks = (), ()
    loaded = ()  # (k, word or piece)
    if TILE.X_ALIGN > 1:
        if MASKED:
            columns, masks = masks_of(t_w, planes, y_shape, READ, TILE.LANE_Q, WORD)
        for k in tl.static_range(GROUP_K):
            loaded = loaded + load_vector(
                at(dy_base, dy_strides, 0, k, 0, 0) + t_w, columns, masks, first_h - READ.PAD_H,
                dy_strides, y_shape, READ, TILE.LANE_Q, WORD, MASKED,
            )  # fmt: skip
    sums = ()  # (row of dx that row p of dy or a later one reaches, c, column)
    for _ in tl.static_range(OPEN * WINDOW.STRIDE_H):
        sums = sums + start
    for step in range(STEPS):
        for _ in tl.static_range(WINDOW.STRIDE_H):
            sums = sums + start
        p = first_h - READ.PAD_H + step
        if TILE.X_ALIGN > 1:
            later = ()
            for k in tl.static_range(GROUP_K):
                dys = pixels_of(loaded, k, DTYPE, sums[0].dtype, READ, TILE.LANE_Q, WORD)
                # The last step loads its own row again, which is in cache.
                later = later + load_vector(
                    at(dy_base, dy_strides, 0, k, 0, 0) + t_w, columns, masks,
                    first_h - READ.PAD_H + tl.minimum(step + 1, STEPS - 1),
                    dy_strides, y_shape, READ, TILE.LANE_Q, WORD, MASKED,
                )  # fmt: skip
                sums = _add_row(sums, dys, weights, k, GROUP_C, WINDOW, READ, TILE)
            loaded = later
        else:
            exists = True
            if MASKED:  # skip rows that dy does not have
                exists = (p >= 0) & (p < y_shape[0])
            if exists:
                for k in tl.static_range(GROUP_K):
                    dys = load_row(
                        at(dy_base, dy_strides, 0, k, 0, 0), dy_strides, p, t_w, planes, y_shape,
                        READ.S, 1, READ.PAD_W, 1, "zeros", TILE.LANE_Q, sums[0].dtype, MASKED,
                    )  # fmt: skip
                    sums = _add_row(sums, dys, weights, k, GROUP_C, WINDOW, READ, TILE)
        for phase in tl.static_range(WINDOW.STRIDE_H):
            h = (first_h + step - OPEN) * WINDOW.STRIDE_H + phase
            # Rows of dx above the tile belong to another program.
            mask = as_block(step) >= OPEN  # [1, 1]
            if MASKED:
                mask = mask & planes & (as_block(h) < x_shape[0])
            for i in tl.static_range(ROW // TILE.Y_ALIGN):
                w = t_w * WINDOW.STRIDE_W + i * TILE.Y_ALIGN % LANE_W
                wanted = mask
                if MASKED:
                    wanted = mask & (w < x_shape[1])
                _store(
                    sums, phase * ROW + i * TILE.Y_ALIGN,
                    at(dx_base, dx_strides, 0, i * TILE.Y_ALIGN // LANE_W, h, w), wanted, TILE,
                )  # fmt: skip
        sums = sums[WINDOW.STRIDE_H * ROW :]


@triton.jit
def _store(sums, first: tl.constexpr, pointers, mask, TILE: tl.constexpr):
    """Stores the Y_ALIGN columns of dx whose sums start at number `first`."""
    dx = sums[first]
    if TILE.Y_ALIGN > 1:
        dx, pointers = join_last(sums, first, TILE.Y_ALIGN), vector_at(pointers, TILE.Y_ALIGN)
        mask = tl.expand_dims(mask, 2)
    tl.store(pointers, dx.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _add_row(
    sums, dys, weights, k: tl.constexpr, GROUP_C: tl.constexpr, WINDOW: tl.constexpr,
    READ: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Adds a row of dy to the sums: its tap r reaches row FIRST + r * DIL_H of them."""
    FIRST: tl.constexpr = (READ.R - 1 - READ.PAD_H) * WINDOW.STRIDE_H - WINDOW.PAD_H
    R: tl.constexpr = WINDOW.R
    S: tl.constexpr = WINDOW.S
    LANE_W: tl.constexpr = TILE.LANE_Q * WINDOW.STRIDE_W
    updated = ()
    for i in tl.static_range(len(sums)):
        total = sums[i]
        if tap_of(i // (GROUP_C * LANE_W) - FIRST, 0, R, 1, WINDOW.DIL_H) >= 0:
            for s in tl.static_range(S):
                if reaches(i % LANE_W, s, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W):
                    total = tl.fma(
                        dys[
                            reached_from(
                                i % LANE_W, s, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W
                            )
                            + READ.PAD_W
                        ],
                        weights[
                            tap_index(
                                k, i // LANE_W % GROUP_C,
                                tap_of(i // (GROUP_C * LANE_W) - FIRST, 0, R, 1, WINDOW.DIL_H), s,
                                GROUP_C, R, S,
                            )
                        ],
                        total,
                    )  # fmt: skip
        updated = updated + (total,)
    return updated
