"""Separable windows in one pass: each row is summed across, and then added to open output rows.

    y[n,k,p,q] = sum_r down[k,r] * sum_s across[k,s] * x[n,c,h,w]
    h = p - PAD_H + r        w = q - PAD_W + s

Each of C channels has FILTERS such windows; with COMBINE, one result: their "sum", or of two the
"magnitude", sqrt(y0^2 + y1^2 + ROOT^2).

As in fprop_rows, lanes have LANE_Q neighbouring columns of a plane, and the kernel walks down the
input rows. The sum of a row across the window is made once, in registers, and is then multiplied by
a tap of the column for each of the R output rows that it belongs to: R + S products for an output
instead of R * S, and no image between two passes. Sums are in float32 (float64 for float64), and
rounded once.

The taps of a window lie one behind the other, those down first. Where rows consist of whole
aligned vectors (X_ALIGN > 1), a lane loads its own columns AHEAD rows before they are used, and the
vectors left and right of them, which are in cache by then, a step before; where a padding mode
shows pixels that are not neighbours, single pixels instead of those vectors.
"""

import triton
import triton.language as tl

from .padding import fold
from .rows import lanes_of, load_row, load_taps, tap_of
from .schedule import as_block, next_digit, widen
from .structs import at
from .vectors import (
    columns_per_word,
    join_last,
    load_words,
    masks_of,
    piece_beside,
    pieces_beside,
    pixels_of,
    vector_at,
)

#: Most taps that stay in registers at the border: NVIDIA's compiler has 63 uniform ones.
UNIFORM_TAPS = tl.constexpr(48)


@triton.jit
def fprop_separable(
    x_ptr, weight_ptr, y_ptr,
    x_shape, y_shape, PLANES, GROUPS,
    x_strides, weight_strides, y_strides,
    WINDOW: tl.constexpr, FILTERS: tl.constexpr, COMBINE: tl.constexpr, ROOT: tl.constexpr,
    INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    program = widen(tl.program_id(0), INT64)
    tile_q, program = next_digit(program, tl.cdiv(Q, TILE.BLOCK_Q))
    tile_p, tile_c = next_digit(program, tl.cdiv(P, TILE.BLOCK_P))
    p, first_q = tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    plane, q, mask, zeros, full = lanes_of(tile_c, first_q, PLANES, TILE, ACC)
    channel, n = next_digit(plane, GROUPS)
    taps = weight_ptr + n * weight_strides[0]
    x_base = at(x_ptr, x_strides, n, channel, 0, 0)
    RESULTS: tl.constexpr = FILTERS if COMBINE is None else 1
    y_base = at(y_ptr, y_strides, n, channel * RESULTS, 0, 0)
    if full & _is_inside(p, first_q, x_shape, y_shape, WINDOW, TILE):
        _walk_down(
            x_base, taps, y_base, p, q, mask, zeros, x_shape, y_shape, x_strides,
            weight_strides, y_strides, WINDOW, FILTERS, COMBINE, ROOT, TILE, TILE.LANE_Q, False,
        )  # fmt: skip
    elif WINDOW.MODE == "zeros":
        _walk_down(
            x_base, taps, y_base, p, q, mask, zeros, x_shape, y_shape, x_strides,
            weight_strides, y_strides, WINDOW, FILTERS, COMBINE, ROOT, TILE, TILE.LANE_Q, True,
        )  # fmt: skip
    else:
        _walk_down(
            x_base, taps, y_base, p, q, mask, zeros, x_shape, y_shape, x_strides,
            weight_strides, y_strides, WINDOW, FILTERS, COMBINE, ROOT, TILE, 1, True,
        )  # fmt: skip


@triton.constexpr_function
def steps_down(R, BLOCK_P, STEP_P):
    """Passes of the loop down the input rows of a tile."""
    return -(-(BLOCK_P + R - 1) // STEP_P)


@triton.constexpr_function
def columns_left(PAD, LANE_Q, X_ALIGN):
    """Columns that are loaded left of a tile, in whole vectors where X_ALIGN > 1."""
    return PAD if X_ALIGN == 1 else -(-PAD // LANE_Q) * LANE_Q


@triton.constexpr_function
def columns_right(S, PAD, LANE_Q, X_ALIGN):
    """Columns that are loaded right of a tile, likewise."""
    beyond = max(0, S - 1 - PAD)
    return beyond if X_ALIGN == 1 else -(-beyond // LANE_Q) * LANE_Q


@triton.jit
def _is_inside(p, q, x_shape, y_shape, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Whether outputs from (p, q) on, and all that is loaded for them, are inside of the images."""
    ROWS: tl.constexpr = steps_down(WINDOW.R, TILE.BLOCK_P, TILE.STEP_P) * TILE.STEP_P
    LEFT: tl.constexpr = columns_left(WINDOW.PAD_W, TILE.LANE_Q, TILE.X_ALIGN)
    RIGHT: tl.constexpr = columns_right(WINDOW.S, WINDOW.PAD_W, TILE.LANE_Q, TILE.X_ALIGN)
    return (
        (p >= WINDOW.PAD_H)
        & (p - WINDOW.PAD_H + ROWS <= x_shape[0])
        & (q >= LEFT)
        & (q + TILE.BLOCK_Q + RIGHT <= x_shape[1])
        & (p + TILE.BLOCK_P <= y_shape[0])
        & (q + TILE.BLOCK_Q <= y_shape[1])
    )


@triton.jit
def _walk_down(
    x_base, taps, y_base, p, q, planes, zeros, x_shape, y_shape, x_strides, weight_strides,
    y_strides, WINDOW: tl.constexpr, FILTERS: tl.constexpr, COMBINE: tl.constexpr,
    ROOT: tl.constexpr, TILE: tl.constexpr, PIECE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Loads the input rows of a tile one after the other, and stores its output rows."""
    R: tl.constexpr = WINDOW.R
    TAPS: tl.constexpr = R + WINDOW.S
    ROW: tl.constexpr = FILTERS * TILE.LANE_Q  # sums of an output row
    STEPS: tl.constexpr = steps_down(R, TILE.BLOCK_P, TILE.STEP_P)
    LAST: tl.constexpr = STEPS * TILE.STEP_P - 1
    DTYPE: tl.constexpr = x_base.dtype.element_ty
    OWN: tl.constexpr = TILE.LANE_Q // columns_per_word(DTYPE) if TILE.X_ALIGN > 1 else 0
    #: Where padding has registers of its own, taps that fit into no uniform ones are loaded again.
    RELOAD: tl.constexpr = MASKED and FILTERS * TAPS > UNIFORM_TAPS
    held = ()
    if not RELOAD:
        held = load_taps(taps, weight_strides, planes, 1, 1, FILTERS, TAPS, zeros)
    h = p - WINDOW.PAD_H
    columns, masks = (), (planes,)
    if MASKED and TILE.X_ALIGN > 1:
        columns, masks = masks_of(q, planes, x_shape, WINDOW, TILE.LANE_Q, PIECE)
    own, beside = (), ()  # (row, word), those of rows to come
    if TILE.X_ALIGN > 1:
        for i in tl.static_range(TILE.AHEAD):
            own = own + _load_own(
                x_base, x_strides, h + min(i, LAST), q, masks, x_shape, WINDOW, TILE, MASKED
            )
    for i in tl.static_range(TILE.STEP_P):
        beside = beside + (
            _load_beside(
                x_base, x_strides, h + i, q, columns, masks, x_shape, WINDOW, TILE, PIECE, MASKED
            ),
        )
    sums = ()  # (open row, filter, column)
    for _ in tl.static_range((R - 1) * ROW):
        sums = sums + (zeros,)
    for step in range(STEPS):
        first = step * TILE.STEP_P
        for _ in tl.static_range(TILE.STEP_P * ROW):
            sums = sums + (zeros,)
        weights = held
        if RELOAD:
            weights = load_taps(taps, weight_strides, planes, 1, 1, FILTERS, TAPS, zeros)
        later = ()
        for i in tl.static_range(TILE.STEP_P):
            loaded = own[i * OWN : i * OWN + OWN] + beside[i]
            across = _across(loaded, weights, DTYPE, WINDOW, FILTERS, TILE, PIECE)
            # The last rows are loaded again, from cache.
            if TILE.X_ALIGN > 1:
                own = own + _load_own(
                    x_base, x_strides, h + tl.minimum(first + i + TILE.AHEAD, LAST), q, masks,
                    x_shape, WINDOW, TILE, MASKED,
                )  # fmt: skip
            later = later + (
                _load_beside(
                    x_base, x_strides, h + tl.minimum(first + i + TILE.STEP_P, LAST), q, columns,
                    masks, x_shape, WINDOW, TILE, PIECE, MASKED,
                ),
            )  # fmt: skip
            sums = _add_row(sums, across, weights, i + R - 1, R, TAPS, FILTERS, TILE.LANE_Q)
        for done in tl.static_range(TILE.STEP_P):
            j = as_block(first - (R - 1) + done)  # [1, 1]
            mask = (j >= 0) & (j < TILE.BLOCK_P)
            if MASKED:
                mask = mask & planes & (p + j < y_shape[0])
            row = p + first - (R - 1) + done
            results = sums[done * ROW : done * ROW + ROW]
            if COMBINE is not None:
                results = _combined(results, FILTERS, COMBINE, ROOT, y_base.dtype.element_ty)
            for i in tl.static_range(0, len(results), TILE.Y_ALIGN):
                column = q + i % TILE.LANE_Q
                wanted = mask
                if MASKED:
                    wanted = mask & (column < y_shape[1])
                pointers = at(y_base, y_strides, 0, i // TILE.LANE_Q, row, column)
                _store(results, i, pointers, wanted, TILE.Y_ALIGN)
        sums = sums[TILE.STEP_P * ROW :]
        own, beside = own[TILE.STEP_P * OWN :], later


@triton.jit
def _load_own(
    x_base, x_strides, row, q, masks, x_shape, WINDOW: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The words of a lane's own columns in an input row."""
    mask = None
    if MASKED:
        row, inside = fold(as_block(row), x_shape[0], WINDOW.MODE)  # [1, 1]
        mask = masks[0] & inside
    return load_words(x_base + row * x_strides[2] + q, mask, TILE.LANE_Q)


@triton.jit
def _load_beside(
    x_base, x_strides, row, q, columns, masks, x_shape, WINDOW: tl.constexpr, TILE: tl.constexpr,
    PIECE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Columns beside a lane's own; all columns that it reads where it has no vectors."""
    if TILE.X_ALIGN == 1:
        loaded = load_row(
            x_base, x_strides, row, q, masks[0], x_shape, WINDOW.S, 1, WINDOW.PAD_W, 1,
            WINDOW.MODE, TILE.LANE_Q, x_base.dtype.element_ty, MASKED,
        )  # fmt: skip
    else:
        inside = True
        if MASKED:
            row, inside = fold(as_block(row), x_shape[0], WINDOW.MODE)  # [1, 1]
        lanes = x_base + row * x_strides[2] + q
        loaded = ()
        for i in tl.static_range(pieces_beside(WINDOW, TILE.LANE_Q, PIECE)):
            if PIECE == 1 and MASKED:
                pixel = tl.load(lanes + columns[i], mask=masks[i + 1] & inside, other=0)
                loaded = loaded + (pixel,)
            else:
                mask = None
                if MASKED:
                    mask = masks[i + 1] & inside
                pointers = lanes + piece_beside(i, WINDOW, TILE.LANE_Q, PIECE)
                loaded = loaded + load_words(pointers, mask, PIECE)
    return loaded


@triton.jit
def _across(
    loaded, weights, DTYPE: tl.constexpr, WINDOW: tl.constexpr, FILTERS: tl.constexpr,
    TILE: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The sums of a row across the windows, one for each filter and column of a lane."""
    ACC: tl.constexpr = weights[0].dtype
    TAPS: tl.constexpr = WINDOW.R + WINDOW.S
    pixels = ()
    if TILE.X_ALIGN > 1:
        pixels = pixels_of(loaded, 0, DTYPE, ACC, WINDOW, TILE.LANE_Q, PIECE)
    else:
        for i in tl.static_range(len(loaded)):
            pixels = pixels + (loaded[i].to(ACC),)
    sums = ()
    for k in tl.static_range(FILTERS):
        for i in tl.static_range(TILE.LANE_Q):
            total = pixels[i] * weights[k * TAPS + WINDOW.R]
            for s in tl.static_range(1, WINDOW.S):
                total = tl.fma(pixels[i + s], weights[k * TAPS + WINDOW.R + s], total)
            sums = sums + (total,)
    return sums


@triton.jit
def _add_row(
    sums, across, weights, row: tl.constexpr, R: tl.constexpr, TAPS: tl.constexpr,
    FILTERS: tl.constexpr, LANE_Q: tl.constexpr,
):  # fmt: skip
    """Adds input row `row`, counted from the oldest open output row's first, to the sums."""
    ROW: tl.constexpr = FILTERS * LANE_Q
    updated = ()
    for j in tl.static_range(len(sums)):
        total = sums[j]
        if tap_of(row, j // ROW, R, 1, 1) >= 0:
            total = tl.fma(
                across[j % ROW],
                weights[j // LANE_Q % FILTERS * TAPS + tap_of(row, j // ROW, R, 1, 1)],
                total,
            )
        updated = updated + (total,)
    return updated


@triton.jit
def _combined(
    sums, FILTERS: tl.constexpr, COMBINE: tl.constexpr, ROOT: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """One result of those of all filters, for each column."""
    COLUMNS: tl.constexpr = len(sums) // FILTERS
    results = ()
    for i in tl.static_range(COLUMNS):
        if COMBINE == "magnitude":
            tl.static_assert(FILTERS == 2, "a magnitude is that of two results")
            result = _magnitude(sums[i], sums[COLUMNS + i], ROOT, DTYPE)
        else:
            tl.static_assert(COMBINE == "sum", "COMBINE is None, sum or magnitude")
            result = sums[i]
            for k in tl.static_range(1, FILTERS):
                result += sums[k * COLUMNS + i]
        results = results + (result,)
    return results


@triton.jit
def _magnitude(a, b, ROOT: tl.constexpr, DTYPE: tl.constexpr):
    """sqrt(a^2 + b^2 + ROOT^2), scaled by a power of two where squares would leave the range."""
    root = tl.zeros_like(a) + ROOT
    largest = tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), root)
    up, down = largest < 2.0**-60, largest > 2.0**60
    scale = tl.where(up, 2.0**100, tl.where(down, 2.0**-70, 1.0)).to(a.dtype)
    back = tl.where(up, 2.0**-100, tl.where(down, 2.0**70, 1.0)).to(a.dtype)
    a, b, root = a * scale, b * scale, root * scale
    square = tl.fma(a, a, tl.fma(b, b, root * root))
    length = tl.sqrt(square)
    if DTYPE == tl.float32:  # rounded results of 16 bits do not show the last bit
        length = tl.sqrt_rn(square)
    return length * back


@triton.jit
def _store(sums, first: tl.constexpr, pointers, mask, COUNT: tl.constexpr):
    """Stores the outputs of COUNT columns, whose sums start at number `first`."""
    y = sums[first]
    if COUNT > 1:
        y, pointers = join_last(sums, first, COUNT), vector_at(pointers, COUNT)
        mask = tl.expand_dims(mask, 2)
    tl.store(pointers, y.to(pointers.dtype.element_ty), mask=mask)
