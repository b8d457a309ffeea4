"""Forward as a sliding set of output rows, for few channels per group: each input row read once.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    c of k's group        h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view. A lane works on one plane, (n, group), for BLOCK_K of the group's filters, and on
LANE_Q neighbouring columns; a tile is BLOCK_P rows and BLOCK_Q columns of BLOCK_C planes. It walks
down the input rows, loads each once and adds it to the output rows that are still being summed, up
to R of them, in registers. STEP_P output rows are unrolled. Sums in float32 (float64 for float64).

Where neighbouring columns are neighbours in memory, lanes are columns and LANE_Q is 1; in
channels_last lanes are planes and LANE_Q columns share what they load.

The input gradient with stride 1 is the same correlation of dy with the window flipped, and runs
here too: see Geometry.adjoint.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .padding import fold
from .rows import (
    inside_image,
    is_read,
    load_row,
    load_taps,
    open_rows,
    tap_index,
    tap_of,
    widen_strides,
)
from .schedule import as_block, next_digit, widen
from .structs import at


@triton.jit
def fprop_rows(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, PLANES, GROUPS, GROUP_K,
    x_strides, weight_strides, weight_stride_g, bias_stride, residual_strides, y_strides,
    GROUP_C: tl.constexpr, WINDOW: tl.constexpr, ACTIVATION: tl.constexpr,
    INTERIOR: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    LANES: tl.constexpr = TILE.BLOCK_Q // TILE.LANE_Q
    program = widen(tl.program_id(0), INT64)
    tile_k, program = next_digit(program, GROUP_K // TILE.BLOCK_K)
    tile_q, program = next_digit(program, tl.cdiv(Q, TILE.BLOCK_Q))
    tile_p, tile_c = next_digit(program, tl.cdiv(P, TILE.BLOCK_P))
    p, first_q = tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
    q = first_q + tl.arange(0, LANES)[None, :] * TILE.LANE_Q  # [1, LANES]
    plane = tile_c * TILE.BLOCK_C + tl.arange(0, TILE.BLOCK_C)[:, None]  # [BLOCK_C, 1]
    group, n = next_digit(plane, GROUPS)
    k = group * GROUP_K + tile_k * TILE.BLOCK_K
    mask = plane < PLANES

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    taps = widen_strides(weight_strides, INT64)
    weight_base = weight_ptr + n * weight_strides[0] + group * weight_stride_g
    weight_base += tile_k * TILE.BLOCK_K * taps[1]
    weights = load_taps(
        weight_base, taps, mask, TILE.BLOCK_K, GROUP_C, WINDOW.R, WINDOW.S, ACC, LANES
    )
    start = ()  # (k, column)
    for i in tl.static_range(TILE.BLOCK_K):
        first = tl.zeros([TILE.BLOCK_C, LANES], ACC)
        if bias_ptr is not None:
            first += tl.load(bias_ptr + (k + i) * bias_stride, mask=mask, other=0.0)
        for _ in tl.static_range(TILE.LANE_Q):
            start = start + (first,)  # noqa: RUF005

    x_base = at(x_ptr, x_strides, n, group * GROUP_C, 0, 0)
    y_base = at(y_ptr, y_strides, n, k, 0, 0)
    residual_base = residual_ptr
    if residual_ptr is not None:
        residual_base = at(residual_ptr, residual_strides, n, k, 0, 0)
    interior = inside_image(p, first_q, x_shape, y_shape, WINDOW, TILE)
    interior = interior & (tile_c * TILE.BLOCK_C + TILE.BLOCK_C <= PLANES)
    if INTERIOR == "all" or (INTERIOR == "some" and interior):
        _walk_down(
            x_base, weights, start, residual_base, y_base, p, q, mask, x_shape, y_shape,
            x_strides, residual_strides, y_strides, GROUP_C, WINDOW, ACTIVATION, TILE, False,
        )  # fmt: skip
    else:
        _walk_down(
            x_base, weights, start, residual_base, y_base, p, q, mask, x_shape, y_shape,
            x_strides, residual_strides, y_strides, GROUP_C, WINDOW, ACTIVATION, TILE, True,
        )  # fmt: skip


@triton.jit
def _walk_down(
    x_base, weights, start, residual_base, y_base, p, q, planes, x_shape, y_shape,
    x_strides, residual_strides, y_strides,
    GROUP_C: tl.constexpr, WINDOW: tl.constexpr, ACTIVATION: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Loads the input rows of a tile, one after the other, and stores its output rows."""
    OPEN: tl.constexpr = open_rows(WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H)
    ROW: tl.constexpr = TILE.BLOCK_K * TILE.LANE_Q
    h = p * WINDOW.STRIDE_H - WINDOW.PAD_H
    sums = ()  # (open row, k, column)
    for _ in tl.static_range(OPEN - 1):
        sums = sums + start
    for step in range((TILE.BLOCK_P + OPEN + TILE.STEP_P - 2) // TILE.STEP_P):
        for _ in tl.static_range(TILE.STEP_P):
            sums = sums + start
        # The first open row is row `oldest` of the tile.
        oldest = step * TILE.STEP_P - (OPEN - 1)
        for i in tl.static_range(TILE.STEP_P * WINDOW.STRIDE_H):
            if is_read(
                i + (OPEN - 1) * WINDOW.STRIDE_H, 0, OPEN + TILE.STEP_P - 2,
                WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H,
            ):  # fmt: skip
                row = h + step * (TILE.STEP_P * WINDOW.STRIDE_H) + i
                inside = True
                if MASKED and TILE.STEP_P == 1:  # skip rows of padding: no later row is in flight
                    inside = fold(row, x_shape[0], WINDOW.MODE)[1]
                if inside:
                    sums = _add_row(
                        sums, x_base, weights, row, q, planes, x_shape, x_strides,
                        i + (OPEN - 1) * WINDOW.STRIDE_H, GROUP_C, WINDOW, TILE, MASKED,
                    )  # fmt: skip
        for done in tl.static_range(TILE.STEP_P):
            j = as_block(oldest + done)  # [1, 1]
            mask = (j >= 0) & (j < TILE.BLOCK_P)
            if MASKED:
                mask = mask & planes & (p + j < y_shape[0])
            for i in tl.static_range(ROW):
                k, row, column = i // TILE.LANE_Q, p + oldest + done, q + i % TILE.LANE_Q
                y = sums[done * ROW + i]
                if residual_base is not None:
                    residual = at(residual_base, residual_strides, 0, k, row, column)
                    y = add_residual(y, residual, mask & (column < y_shape[1]))
                y = activate(y, ACTIVATION).to(y_base.dtype.element_ty)
                if MASKED:
                    wanted = mask & (column < y_shape[1])
                else:
                    wanted = mask
                tl.store(at(y_base, y_strides, 0, k, row, column), y, mask=wanted)
        sums = sums[TILE.STEP_P * ROW :]


@triton.jit
def _add_row(
    sums, x_base, weights, row, q, mask, x_shape, x_strides, i: tl.constexpr,
    GROUP_C: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with what an input row gives to them, number i from the oldest open output row's."""
    ROW: tl.constexpr = TILE.BLOCK_K * TILE.LANE_Q
    for c in tl.static_range(GROUP_C):
        pixels = load_row(
            at(x_base, x_strides, 0, c, 0, 0), x_strides, row, q, mask, x_shape, WINDOW.S,
            WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W, WINDOW.MODE, TILE.LANE_Q,
            sums[0].dtype, MASKED,
        )  # fmt: skip
        updated = ()
        for j in tl.static_range(len(sums)):
            total = sums[j]
            if tap_of(i, j // ROW, WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H) >= 0:
                for s in tl.static_range(WINDOW.S):
                    total = tl.fma(
                        pixels[j % TILE.LANE_Q * WINDOW.STRIDE_W + s * WINDOW.DIL_W],
                        weights[
                            tap_index(
                                j // TILE.LANE_Q % TILE.BLOCK_K, c,
                                tap_of(i, j // ROW, WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H), s,
                                GROUP_C, WINDOW.R, WINDOW.S,
                            )
                        ],
                        total,
                    )  # fmt: skip
            updated = updated + (total,)  # noqa: RUF005
        sums = updated
    return sums
