"""Forward as a sliding set of output rows, for few channels per group: input rows are read once.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    c of k's group        h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view. A lane works on one plane, (n, group), for BLOCK_K of the group's filters, and on
LANE_Q neighbouring columns; a tile is BLOCK_P rows and BLOCK_Q columns of BLOCK_C planes. The
kernel walks down the input rows, loads each once and adds it to the open output rows: those still
being summed, up to R of them, in registers. STEP_P output rows are unrolled. Sums in float32
(float64 for float64).

Where rows consist of whole aligned vectors (X_ALIGN > 1), lanes load and store vectors, see
vectors.py, and load the rows of the next step while those of this one are added; the lanes
of a program are counted through (plane, column), so that rows of any length fill them. Else, where
neighbouring columns are neighbours in memory, lanes are columns and LANE_Q is 1; in channels_last
lanes are planes, and a pixel is loaded once for all LANE_Q columns that read it.

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
    lanes_of,
    load_of_planes,
    load_row,
    load_taps,
    loads_ahead,
    open_rows,
    rows_before,
    tap_index,
    tap_of,
    widen_strides,
)
from .schedule import as_block, next_digit, widen
from .structs import at
from .vectors import (
    columns_per_piece,
    join_last,
    load_vector,
    masks_of,
    pixels_of,
    vector_at,
)


@triton.jit
def fprop_rows(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, PLANES, GROUPS, GROUP_K,
    x_strides, weight_strides, weight_stride_g, bias_stride, residual_strides, y_strides,
    GROUP_C: tl.constexpr, WINDOW: tl.constexpr, ACTIVATION: tl.constexpr,
    INTERIOR: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    program = widen(tl.program_id(0), INT64)
    tile_k, program = next_digit(program, GROUP_K // TILE.BLOCK_K)
    tile_q, program = next_digit(program, tl.cdiv(Q, TILE.BLOCK_Q))
    tile_p, tile_c = next_digit(program, tl.cdiv(P, TILE.BLOCK_P))
    p, first_q = tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    plane, q, mask, zeros, full = lanes_of(tile_c, first_q, PLANES, TILE, ACC)
    group, n = next_digit(plane, GROUPS)
    k = group * GROUP_K + tile_k * TILE.BLOCK_K

    taps = widen_strides(weight_strides, INT64)
    weight_base = weight_ptr + n * weight_strides[0] + group * weight_stride_g
    weight_base += tile_k * TILE.BLOCK_K * taps[1]
    weights = load_taps(weight_base, taps, mask, TILE.BLOCK_K, GROUP_C, WINDOW.R, WINDOW.S, zeros)
    start = ()  # (k, column)
    for i in tl.static_range(TILE.BLOCK_K):
        first = zeros
        if bias_ptr is not None:
            first += load_of_planes(bias_ptr + (k + i) * bias_stride, mask)
        for _ in tl.static_range(TILE.LANE_Q):
            start = start + (first,)

    x_base = at(x_ptr, x_strides, n, group * GROUP_C, 0, 0)
    y_base = at(y_ptr, y_strides, n, k, 0, 0)
    residual_base = residual_ptr
    if residual_ptr is not None:
        residual_base = at(residual_ptr, residual_strides, n, k, 0, 0)
    interior = full & inside_image(p, first_q, x_shape, y_shape, WINDOW, TILE)
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
    """Loads the input rows of a tile one after the other, and stores its output rows."""
    OPEN: tl.constexpr = open_rows(WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H)
    ROW: tl.constexpr = TILE.BLOCK_K * TILE.LANE_Q
    STEPS: tl.constexpr = (TILE.BLOCK_P + OPEN + TILE.STEP_P - 2) // TILE.STEP_P
    INPUTS: tl.constexpr = TILE.STEP_P * WINDOW.STRIDE_H
    #: The first input row of a step, counted from the oldest open output row's.
    FIRST: tl.constexpr = (OPEN - 1) * WINDOW.STRIDE_H
    LAST: tl.constexpr = OPEN + TILE.STEP_P - 2
    DTYPE: tl.constexpr = x_base.dtype.element_ty
    FOLDED: tl.constexpr = MASKED and WINDOW.MODE != "zeros"
    PIECE: tl.constexpr = 1 if FOLDED else columns_per_piece(DTYPE, WINDOW, TILE.LANE_Q)
    h = p * WINDOW.STRIDE_H - WINDOW.PAD_H
    w = q * WINDOW.STRIDE_W
    AHEAD: tl.constexpr = loads_ahead(
        TILE.X_ALIGN, TILE.STEP_P, TILE.LANE_Q, WINDOW.STRIDE_H, WINDOW.STRIDE_W
    )
    PIXELS: tl.constexpr = (TILE.LANE_Q - 1) * WINDOW.STRIDE_W + (WINDOW.S - 1) * WINDOW.DIL_W + 1
    columns, masks = (), ()
    loaded = ()  # (input row of a step, channel, word or piece, or pixel)
    first = 0
    if AHEAD:
        for i in tl.static_range(INPUTS):
            if is_read(FIRST + i, 0, LAST, WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H):
                for c in tl.static_range(GROUP_C):
                    loaded = loaded + load_row(
                        at(x_base, x_strides, 0, c, 0, 0), x_strides, h + i, q, planes, x_shape,
                        WINDOW.S, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W, WINDOW.MODE,
                        TILE.LANE_Q, DTYPE, MASKED,
                    )  # fmt: skip
    if TILE.X_ALIGN > 1:
        if MASKED:
            columns, masks = masks_of(w, planes, x_shape, WINDOW, TILE.LANE_Q, PIECE)
            if WINDOW.MODE == "zeros":  # skip steps of padding alone, before the first output
                first = tl.minimum(tl.maximum(-h, 0) // INPUTS, (OPEN - 1) // TILE.STEP_P)
        for i in tl.static_range(INPUTS):
            if is_read(FIRST + i, 0, LAST, WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H):
                for c in tl.static_range(GROUP_C):
                    loaded = loaded + load_vector(
                        at(x_base, x_strides, 0, c, 0, 0) + w, columns, masks,
                        h + first * INPUTS + i, x_strides, x_shape, WINDOW, TILE.LANE_Q, PIECE,
                        MASKED,
                    )  # fmt: skip
    sums = ()  # (open row, k, column)
    for _ in tl.static_range(OPEN - 1):
        sums = sums + start
    for step in range(first, STEPS):
        for _ in tl.static_range(TILE.STEP_P):
            sums = sums + start
        # The oldest open row is row `oldest` of the tile.
        oldest = step * TILE.STEP_P - (OPEN - 1)
        later = ()
        for i in tl.static_range(INPUTS):
            if is_read(FIRST + i, 0, LAST, WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H):
                row = h + step * INPUTS + i
                inside = True
                if MASKED and TILE.X_ALIGN == 1 and TILE.STEP_P == 1:
                    # Skip rows of padding: no later row is in flight.
                    inside = fold(row, x_shape[0], WINDOW.MODE)[1]
                for c in tl.static_range(GROUP_C):
                    plane = at(x_base, x_strides, 0, c, 0, 0)
                    if TILE.X_ALIGN > 1:
                        pixels = pixels_of(
                            loaded,
                            c + GROUP_C * rows_before(
                                FIRST + i, FIRST, LAST,
                                WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H,
                            ),
                            DTYPE, sums[0].dtype, WINDOW, TILE.LANE_Q, PIECE,
                        )  # fmt: skip
                        # The last step loads its own rows again, which are in cache.
                        after = h + tl.minimum(step + 1, STEPS - 1) * INPUTS + i
                        later = later + load_vector(
                            plane + w, columns, masks, after, x_strides, x_shape, WINDOW,
                            TILE.LANE_Q, PIECE, MASKED,
                        )  # fmt: skip
                        sums = _add_row(sums, pixels, weights, FIRST + i, c, GROUP_C, WINDOW, TILE)
                    elif AHEAD:
                        pixels = ()
                        for j in tl.static_range(PIXELS):
                            pixels = pixels + (loaded[len(later) + j].to(sums[0].dtype),)
                        # The last step loads its own rows again, which are in cache.
                        later = later + load_row(
                            plane, x_strides, h + tl.minimum(step + 1, STEPS - 1) * INPUTS + i, q,
                            planes, x_shape, WINDOW.S, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W,
                            WINDOW.MODE, TILE.LANE_Q, DTYPE, MASKED,
                        )  # fmt: skip
                        if inside:
                            sums = _add_row(
                                sums, pixels, weights, FIRST + i, c, GROUP_C, WINDOW, TILE
                            )
                    elif inside:
                        pixels = load_row(
                            plane, x_strides, row, q, planes, x_shape, WINDOW.S, WINDOW.STRIDE_W,
                            WINDOW.PAD_W, WINDOW.DIL_W, WINDOW.MODE, TILE.LANE_Q,
                            sums[0].dtype, MASKED,
                        )  # fmt: skip
                        sums = _add_row(sums, pixels, weights, FIRST + i, c, GROUP_C, WINDOW, TILE)
        for done in tl.static_range(TILE.STEP_P):
            j = as_block(oldest + done)  # [1, 1]
            mask = (j >= 0) & (j < TILE.BLOCK_P)
            if MASKED:
                mask = mask & planes & (p + j < y_shape[0])
            for i in tl.static_range(ROW // TILE.Y_ALIGN):
                row, column = p + oldest + done, q + i * TILE.Y_ALIGN % TILE.LANE_Q
                wanted = mask
                if MASKED:
                    wanted = mask & (column < y_shape[1])
                _store(
                    sums, done * ROW + i * TILE.Y_ALIGN, i * TILE.Y_ALIGN // TILE.LANE_Q,
                    y_base, y_strides, residual_base, residual_strides, row, column, wanted,
                    ACTIVATION, TILE,
                )  # fmt: skip
        sums = sums[TILE.STEP_P * ROW :]
        loaded = later


@triton.jit
def _store(
    sums, first: tl.constexpr, k: tl.constexpr, y_base, y_strides, residual_base,
    residual_strides, row, column, mask, ACTIVATION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Stores the outputs of Y_ALIGN columns, whose sums start at number `first`."""
    y, y_ptrs, residuals = sums[first], at(y_base, y_strides, 0, k, row, column), residual_base
    if residual_base is not None:
        residuals = at(residual_base, residual_strides, 0, k, row, column)
    if TILE.Y_ALIGN > 1:
        y, y_ptrs = join_last(sums, first, TILE.Y_ALIGN), vector_at(y_ptrs, TILE.Y_ALIGN)
        mask = tl.expand_dims(mask, 2)
        if residual_base is not None:
            residuals = vector_at(residuals, TILE.Y_ALIGN)
    if residual_base is not None:
        y = add_residual(y, residuals, mask)
    tl.store(y_ptrs, activate(y, ACTIVATION, y_ptrs.dtype.element_ty), mask=mask)


@triton.jit
def _add_row(
    sums, pixels, weights, i: tl.constexpr, c: tl.constexpr, GROUP_C: tl.constexpr,
    WINDOW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Adds an input row of channel c to the sums: number i from the oldest open row's first."""
    ROW: tl.constexpr = TILE.BLOCK_K * TILE.LANE_Q
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
        updated = updated + (total,)
    return updated
