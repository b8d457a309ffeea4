"""Weight gradient by rows, for few channels per group: x and dy are read once for all taps.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]        c of k's group
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

No GEMM view. A lane works on one group, for BLOCK_K of its filters, and on LANE_Q neighbouring
columns; it keeps a sum for every tap. A program takes strips of BLOCK_P x BLOCK_Q outputs and walks
down each: an input row is loaded once and multiplied by the rows of dy that read it, up to R, in
registers. Where rows consist of whole aligned vectors (X_ALIGN > 1), lanes load vectors, see
vectors.py, and load the rows of the next step while those of this one are multiplied.

Strips are counted through (n, rows of strips, columns of strips); split i sums strips
[i * SPLIT_STRIPS, (i+1) * SPLIT_STRIPS) and stores at `i * dw_stride_split`: a partial for
sum_partials, or dw itself when there is one split. A bank per sample is a batch of such sums, each
over the strips of its own sample. Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .padding import fold
from .rows import (
    inside_image,
    is_read,
    load_row,
    loads_ahead,
    open_rows,
    rows_before,
    tap_of,
    widen_strides,
)
from .schedule import as_block, next_digit, widen
from .structs import at, tap_at
from .vectors import (
    columns_per_piece,
    join_last,
    load_vector,
    load_words,
    masks_of,
    pixels_of,
    pixels_of_words,
)


@triton.constexpr_function
def parts_of(number):
    """How many powers of two add up to a number."""
    return bin(number).count("1")


@triton.constexpr_function
def part_size(part, number):
    """Number `part` of these powers, from the largest on."""
    return [1 << bit for bit in range(32) if number >> bit & 1][-1 - part]


@triton.jit
def wgrad_rows(
    x_ptr, dy_ptr, dw_ptr,
    x_shape, y_shape, SAMPLES, SPLITS, SPLIT_STRIPS, GROUPS, GROUP_K,
    x_strides, dy_strides, dw_stride_split, dw_strides, dw_stride_g,
    GROUP_C: tl.constexpr, WINDOW: tl.constexpr, INTERIOR: tl.constexpr, INT64: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    LANES: tl.constexpr = TILE.BLOCK_Q // TILE.LANE_Q
    R: tl.constexpr = WINDOW.R
    S: tl.constexpr = WINDOW.S
    program = widen(tl.program_id(0), INT64)
    tile_k, program = next_digit(program, GROUP_K // TILE.BLOCK_K)
    tile_c, program = next_digit(program, tl.cdiv(GROUPS, TILE.BLOCK_C))
    split, batch = next_digit(program, SPLITS)
    group = tile_c * TILE.BLOCK_C + tl.arange(0, TILE.BLOCK_C)[:, None]  # [BLOCK_C, 1]
    k = group * GROUP_K + tile_k * TILE.BLOCK_K
    first = split * SPLIT_STRIPS

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    sums = ()  # (k, c, r, s)
    for _ in tl.static_range(TILE.BLOCK_K * GROUP_C * R * S):
        sums = sums + (tl.zeros([TILE.BLOCK_C, LANES], ACC),)
    for i in range(SPLIT_STRIPS):
        strip = first + widen(i, INT64)
        tile_q, line = next_digit(strip, tl.cdiv(Q, TILE.BLOCK_Q))
        tile_p, n = next_digit(line, tl.cdiv(P, TILE.BLOCK_P))
        mask = (group < GROUPS) & (as_block(n) < SAMPLES)
        p, first_q = tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
        q = first_q + tl.arange(0, LANES)[None, :] * TILE.LANE_Q  # [1, LANES]
        interior = inside_image(p, first_q, x_shape, y_shape, WINDOW, TILE)
        interior = interior & (tile_c * TILE.BLOCK_C + TILE.BLOCK_C <= GROUPS) & (n < SAMPLES)
        n += batch
        x_base = at(x_ptr, x_strides, n, group * GROUP_C, 0, 0)
        dy_base = at(dy_ptr, dy_strides, n, k, 0, 0)
        if INTERIOR == "all" or (INTERIOR == "some" and interior):
            sums = _walk_down(
                sums, x_base, dy_base, p, q, mask, x_shape, y_shape, x_strides, dy_strides,
                GROUP_C, WINDOW, TILE, False,
            )  # fmt: skip
        else:
            sums = _walk_down(
                sums, x_base, dy_base, p, q, mask, x_shape, y_shape, x_strides, dy_strides,
                GROUP_C, WINDOW, TILE, True,
            )  # fmt: skip

    taps = widen_strides(dw_strides, INT64)
    dw_base = dw_ptr + split * dw_stride_split + batch * dw_strides[0] + group * dw_stride_g
    dw_base += tile_k * TILE.BLOCK_K * taps[1]
    TAPS: tl.constexpr = TILE.BLOCK_K * GROUP_C * R * S
    for part in tl.static_range(parts_of(TAPS)):
        _store_taps(
            sums, dw_base, taps, group < GROUPS, GROUP_C, R, S,
            TAPS // (2 * part_size(part, TAPS)) * (2 * part_size(part, TAPS)),
            part_size(part, TAPS),
        )  # fmt: skip


@triton.jit
def _store_taps(
    sums, dw_base, strides, mask, GROUP_C: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    FIRST: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Adds up the lanes of COUNT sums, a power of two, in one pass through shared memory."""
    dw = tl.sum(join_last(sums, FIRST, COUNT), axis=1)  # [BLOCK_C, COUNT]
    tap = FIRST + tl.arange(0, COUNT)[None, :]
    c, r, s = tap // (R * S) % GROUP_C, tap // S % R, tap % S
    pointers = tap_at(dw_base, strides, 0, tap // (GROUP_C * R * S), c, r, s)
    tl.store(pointers, dw.to(dw_base.dtype.element_ty), mask=mask)


@triton.jit
def _walk_down(
    sums, x_base, dy_base, p, q, planes, x_shape, y_shape, x_strides, dy_strides,
    GROUP_C: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds a strip to the sums; p is its first row of dy, q each lane's first column."""
    OPEN: tl.constexpr = open_rows(WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H)
    ROW: tl.constexpr = TILE.BLOCK_K * TILE.LANE_Q
    X_DTYPE: tl.constexpr = x_base.dtype.element_ty
    DY_DTYPE: tl.constexpr = dy_base.dtype.element_ty
    FOLDED: tl.constexpr = MASKED and WINDOW.MODE != "zeros"
    PIECE: tl.constexpr = 1 if FOLDED else columns_per_piece(X_DTYPE, WINDOW, TILE.LANE_Q)
    INPUTS: tl.constexpr = TILE.STEP_P * WINDOW.STRIDE_H
    #: The first input row of a step, counted from the first that the oldest row of dys reads.
    FIRST: tl.constexpr = (OPEN - 1) * WINDOW.STRIDE_H
    LAST: tl.constexpr = OPEN + TILE.STEP_P - 2
    STEPS: tl.constexpr = (TILE.BLOCK_P + OPEN + TILE.STEP_P - 2) // TILE.STEP_P
    AHEAD: tl.constexpr = loads_ahead(
        TILE.X_ALIGN, TILE.STEP_P, TILE.LANE_Q, WINDOW.STRIDE_H, WINDOW.STRIDE_W
    )
    PIXELS: tl.constexpr = (TILE.LANE_Q - 1) * WINDOW.STRIDE_W + (WINDOW.S - 1) * WINDOW.DIL_W + 1
    h = p * WINDOW.STRIDE_H - WINDOW.PAD_H
    w = q * WINDOW.STRIDE_W
    columns, masks = (), ()
    if TILE.X_ALIGN > 1 and MASKED:
        columns, masks = masks_of(w, planes, x_shape, WINDOW, TILE.LANE_Q, PIECE)
    dys = ()  # (row, k, column)
    for _ in tl.static_range((OPEN - 1) * ROW):
        dys = dys + (tl.zeros_like(sums[0]),)
    next_dys, loaded = (), ()  # (row of a step, k, word or column), (row, c, word or pixel)
    if TILE.X_ALIGN > 1:
        next_dys = _load_dy_words(dy_base, p, 0, q, planes, y_shape, dy_strides, TILE, MASKED)
    elif AHEAD:
        next_dys = _load_dys(dy_base, p, 0, q, planes, y_shape, dy_strides, TILE, MASKED)
    for i in tl.static_range(INPUTS):
        if is_read(FIRST + i, 0, LAST, WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H):
            for c in tl.static_range(GROUP_C):
                plane = at(x_base, x_strides, 0, c, 0, 0)
                if TILE.X_ALIGN > 1:
                    loaded = loaded + load_vector(
                        plane + w, columns, masks, h + i, x_strides, x_shape, WINDOW, TILE.LANE_Q,
                        PIECE, MASKED,
                    )  # fmt: skip
                elif AHEAD:
                    loaded = loaded + load_row(
                        plane, x_strides, h + i, q, planes, x_shape, WINDOW.S, WINDOW.STRIDE_W,
                        WINDOW.PAD_W, WINDOW.DIL_W, WINDOW.MODE, TILE.LANE_Q, X_DTYPE, MASKED,
                    )  # fmt: skip
    for step in range(STEPS):
        # The last step loads its own rows of x again, which are in cache, and none of dy.
        after = tl.minimum(step + 1, STEPS - 1) * INPUTS
        later = ()
        if TILE.X_ALIGN > 1:
            dys = dys + pixels_of_words(next_dys, DY_DTYPE, sums[0].dtype)
            next_dys = _load_dy_words(
                dy_base, p, (step + 1) * TILE.STEP_P, q, planes, y_shape, dy_strides, TILE, MASKED
            )
        elif AHEAD:
            for i in tl.static_range(ROW):
                dys = dys + (next_dys[i].to(sums[0].dtype),)
            next_dys = _load_dys(dy_base, p, step + 1, q, planes, y_shape, dy_strides, TILE, MASKED)
        else:
            for new in tl.static_range(TILE.STEP_P):
                row_of_dy = _load_dys(
                    dy_base, p, step * TILE.STEP_P + new, q, planes, y_shape, dy_strides, TILE,
                    MASKED,
                )  # fmt: skip
                for i in tl.static_range(ROW):
                    dys = dys + (row_of_dy[i].to(sums[0].dtype),)
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
                            X_DTYPE, sums[0].dtype, WINDOW, TILE.LANE_Q, PIECE,
                        )  # fmt: skip
                        sums = _add_row(sums, pixels, dys, FIRST + i, c, GROUP_C, WINDOW, TILE)
                        later = later + load_vector(
                            plane + w, columns, masks, h + after + i, x_strides, x_shape, WINDOW,
                            TILE.LANE_Q, PIECE, MASKED,
                        )  # fmt: skip
                    elif AHEAD:
                        pixels = ()
                        for j in tl.static_range(PIXELS):
                            pixels = pixels + (loaded[len(later) + j].to(sums[0].dtype),)
                        later = later + load_row(
                            plane, x_strides, h + after + i, q, planes, x_shape, WINDOW.S,
                            WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W, WINDOW.MODE, TILE.LANE_Q,
                            X_DTYPE, MASKED,
                        )  # fmt: skip
                        if inside:
                            sums = _add_row(sums, pixels, dys, FIRST + i, c, GROUP_C, WINDOW, TILE)
                    elif inside:
                        pixels = load_row(
                            plane, x_strides, row, q, planes, x_shape, WINDOW.S, WINDOW.STRIDE_W,
                            WINDOW.PAD_W, WINDOW.DIL_W, WINDOW.MODE, TILE.LANE_Q, sums[0].dtype,
                            MASKED,
                        )  # fmt: skip
                        sums = _add_row(sums, pixels, dys, FIRST + i, c, GROUP_C, WINDOW, TILE)
        dys = dys[TILE.STEP_P * ROW :]
        loaded = later
    return sums


@triton.jit
def _load_dy_words(
    dy_base, p, number, q, planes, y_shape, dy_strides, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The words of a step's rows of dy, of each filter; zeros beyond the strip."""
    words = ()
    for new in tl.static_range(TILE.STEP_P):
        j = as_block(number + new)  # [1, 1]
        mask = j < TILE.BLOCK_P
        if MASKED:
            mask = mask & planes & (p + j < y_shape[0]) & (q < y_shape[1])
        for i in tl.static_range(TILE.BLOCK_K):
            pointers = at(dy_base, dy_strides, 0, i, p + number + new, q)
            words = words + load_words(pointers, mask, TILE.LANE_Q)
    return words


@triton.jit
def _load_dys(
    dy_base, p, number, q, planes, y_shape, dy_strides, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The columns of row `number` of a strip of dy, of each filter; zeros beyond the strip."""
    j = as_block(number)  # [1, 1]
    mask = j < TILE.BLOCK_P
    if MASKED:
        mask = mask & planes & (p + j < y_shape[0])
    dys = ()
    for i in tl.static_range(TILE.BLOCK_K * TILE.LANE_Q):
        column = q + i % TILE.LANE_Q
        wanted = mask
        if MASKED:
            wanted = wanted & (column < y_shape[1])
        pointer = at(dy_base, dy_strides, 0, i // TILE.LANE_Q, p + number, column)
        dys = dys + (tl.load(pointer, mask=wanted, other=0.0),)  # [BLOCK_C, LANES]
    return dys


@triton.jit
def _add_row(
    sums, pixels, dys, i: tl.constexpr, c: tl.constexpr, GROUP_C: tl.constexpr,
    WINDOW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Adds an input row of channel c: number i from the first that the oldest row of dys reads."""
    ROW: tl.constexpr = TILE.BLOCK_K * TILE.LANE_Q
    R: tl.constexpr = WINDOW.R
    S: tl.constexpr = WINDOW.S
    updated = ()
    for tap in tl.static_range(len(sums)):
        total = sums[tap]
        if tap // (R * S) % GROUP_C == c:
            for j in tl.static_range(len(dys) // ROW):
                if tap_of(i, j, R, WINDOW.STRIDE_H, WINDOW.DIL_H) == tap // S % R:
                    for column in tl.static_range(TILE.LANE_Q):
                        total = tl.fma(
                            pixels[column * WINDOW.STRIDE_W + tap % S * WINDOW.DIL_W],
                            dys[
                                (j * TILE.BLOCK_K + tap // (GROUP_C * R * S)) * TILE.LANE_Q + column
                            ],
                            total,
                        )
        updated = updated + (total,)
    return updated
