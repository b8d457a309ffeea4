"""Both gradients of a depthwise correlation by rows: dy is read once for the two of them.

    dx[n,g,h,w] = sum_{r,s} dy[n,g,p,q] * weight[g,r,s]        one channel and filter per group
    dw[g,r,s] = sum_{n,h,w} x[n,g,h,w] * dy[n,g,p,q]
    h + PAD_H = p * STRIDE_H + r * DIL_H        w likewise

No GEMM view: at a pixel (h, w) both need the same elements of dy, which are loaded once, and each
tap is used only where it reaches. h = t * STRIDE_H + phase: t is a group of STRIDE_H rows, which
reads the rows t - READ.PAD_H .. t - READ.PAD_H + READ.R - 1 of dy; columns likewise.

A lane works on one group and one sample, on LANE_Q neighbouring groups of columns, and keeps a sum
for every tap. A tile is BLOCK_P groups of rows x BLOCK_Q groups of columns of BLOCK_N samples of
BLOCK_C groups. The kernel walks down its rows with READ.R rows of dy in registers, and loads those
of the next step, and its pixels of x, while it adds this one's. Tiles are the strips of a weight
gradient, counted through (samples, rows, columns); split i sums strips [i * SPLIT_STRIPS, (i+1) *
SPLIT_STRIPS) and stores at `i * dw_stride_split`: a partial for sum_partials, or dw itself when
there is one split. A bank per sample is a batch of such sums. Sums in float32 (float64 for
float64).

Where rows consist of whole aligned vectors (X_ALIGN > 1), lanes load and store vectors, see
vectors.py. With one group (BLOCK_C = 1) the lanes of a program are counted through (sample,
column), so that short rows fill them and all have the same taps; in channels_last lanes are groups.
"""

import triton
import triton.language as tl

from .rows import load_row, load_taps, widen_strides
from .schedule import as_block, next_digit, widen
from .structs import at, tap_at
from .vectors import (
    columns_per_word,
    join_last,
    load_vector,
    load_words,
    masks_of,
    pixels_of,
    pixels_of_words,
    vector_at,
)


@triton.constexpr_function
def lanes_along(BLOCK_Q, BLOCK_N, LANE_Q):
    """Lanes of a program along (sample, column), those idle included."""
    return 1 << (BLOCK_Q // LANE_Q * BLOCK_N - 1).bit_length()


@triton.jit
def backward_rows(
    x_ptr, dy_ptr, weight_ptr, dx_ptr, dw_ptr,
    x_shape, y_shape, SAMPLES, SPLITS, SPLIT_STRIPS, GROUPS,
    x_strides, dy_strides, weight_strides, dx_strides, dw_stride_split, dw_strides,
    WINDOW: tl.constexpr, READ: tl.constexpr, INTERIOR: tl.constexpr, INT64: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    P, Q = y_shape
    LANES: tl.constexpr = lanes_along(TILE.BLOCK_Q, TILE.BLOCK_N, TILE.LANE_Q)
    WIDTH: tl.constexpr = TILE.BLOCK_Q // TILE.LANE_Q
    tl.static_assert(TILE.BLOCK_Q % TILE.LANE_Q == 0, "a tile has the columns of whole lanes")
    tl.static_assert(TILE.BLOCK_P % TILE.STEP_P == 0, "a tile has the rows of whole steps")
    tiles_q = tl.cdiv(tl.cdiv(W, WINDOW.STRIDE_W), TILE.BLOCK_Q)
    tiles_p = tl.cdiv(tl.cdiv(H, WINDOW.STRIDE_H), TILE.BLOCK_P)
    program = widen(tl.program_id(0), INT64)
    tile_c, program = next_digit(program, tl.cdiv(GROUPS, TILE.BLOCK_C))
    split, batch = next_digit(program, SPLITS)
    groups = tile_c * TILE.BLOCK_C + tl.arange(0, TILE.BLOCK_C)[:, None]  # [BLOCK_C, 1]
    group = groups
    if TILE.BLOCK_C == 1:  # taps of one group stay in uniform registers
        group = tile_c
    lane = tl.arange(0, LANES)[None, :]

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    zeros = tl.zeros([TILE.BLOCK_C, LANES], ACC)
    taps = widen_strides(weight_strides, INT64)
    weights = load_taps(
        weight_ptr + batch * weight_strides[0] + group * taps[1], taps, group < GROUPS,
        1, 1, WINDOW.R, WINDOW.S, zeros,
    )  # fmt: skip
    sums = ()  # (r, s)
    for _ in tl.static_range(WINDOW.R * WINDOW.S):
        sums = sums + (zeros,)
    for i in range(SPLIT_STRIPS):
        strip = split * SPLIT_STRIPS + widen(i, INT64)
        tile_q, line = next_digit(strip, tiles_q)
        tile_p, tile_n = next_digit(line, tiles_p)
        sample = tile_n * TILE.BLOCK_N + lane // WIDTH  # [1, LANES]
        mask = (lane < WIDTH * TILE.BLOCK_N) & (sample < SAMPLES) & (groups < GROUPS)
        first_t, first_w = tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
        t_w = first_w + lane % WIDTH * TILE.LANE_Q  # [1, LANES]
        p, q = first_t - READ.PAD_H, first_w - READ.PAD_W
        interior = (
            (tile_n * TILE.BLOCK_N + TILE.BLOCK_N <= SAMPLES)
            & (tile_c * TILE.BLOCK_C + TILE.BLOCK_C <= GROUPS)
            & (p >= 0)
            & (p + TILE.BLOCK_P + READ.R - 1 <= P)
            & (q >= 0)
            & (q + TILE.BLOCK_Q + READ.S - 1 <= Q)
            & ((first_t + TILE.BLOCK_P) * WINDOW.STRIDE_H <= H)
            & ((first_w + TILE.BLOCK_Q) * WINDOW.STRIDE_W <= W)
        )
        n = sample + batch
        if TILE.BLOCK_N == 1:
            n = tile_n + batch
        x_base = at(x_ptr, x_strides, n, group, 0, 0)
        dy_base = at(dy_ptr, dy_strides, n, group, 0, 0)
        dx_base = at(dx_ptr, dx_strides, n, group, 0, 0)
        FULL: tl.constexpr = LANES == WIDTH * TILE.BLOCK_N
        if FULL and (INTERIOR == "all" or (INTERIOR == "some" and interior)):
            sums = _walk_down(
                sums, weights, x_base, dy_base, dx_base, first_t, t_w, mask, x_shape, y_shape,
                x_strides, dy_strides, dx_strides, WINDOW, READ, TILE, False,
            )  # fmt: skip
        else:
            sums = _walk_down(
                sums, weights, x_base, dy_base, dx_base, first_t, t_w, mask, x_shape, y_shape,
                x_strides, dy_strides, dx_strides, WINDOW, READ, TILE, True,
            )  # fmt: skip

    taps = widen_strides(dw_strides, INT64)
    dw_base = dw_ptr + split * dw_stride_split + batch * dw_strides[0] + groups * taps[1]
    for tap in tl.static_range(WINDOW.R * WINDOW.S):
        dw = tl.sum(sums[tap], axis=1, keep_dims=True)  # [BLOCK_C, 1]
        pointer = tap_at(dw_base, taps, 0, 0, 0, tap // WINDOW.S, tap % WINDOW.S)
        tl.store(pointer, dw.to(dw_ptr.dtype.element_ty), mask=groups < GROUPS)


@triton.jit
def _walk_down(
    sums, weights, x_base, dy_base, dx_base, first_t, t_w, mask, x_shape, y_shape,
    x_strides, dy_strides, dx_strides, WINDOW: tl.constexpr, READ: tl.constexpr,
    TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds a strip to the sums of all taps, and stores its rows of dx."""
    STEPS: tl.constexpr = TILE.BLOCK_P // TILE.STEP_P
    X_ROWS: tl.constexpr = TILE.STEP_P * WINDOW.STRIDE_H  # of a step
    LANE_W: tl.constexpr = TILE.LANE_Q * WINDOW.STRIDE_W  # columns of x of a lane
    ROW: tl.constexpr = TILE.LANE_Q + READ.S - 1  # columns of dy that it reads
    DTYPE: tl.constexpr = dy_base.dtype.element_ty
    ACC: tl.constexpr = sums[0].dtype
    w = t_w * WINDOW.STRIDE_W
    columns, masks = (), ()
    if TILE.X_ALIGN > 1 and MASKED:
        columns, masks = masks_of(t_w, mask, y_shape, READ, TILE.LANE_Q, columns_per_word(DTYPE))
    dys = ()  # (row of dy, column)
    before = _load_dys(
        dy_base, first_t - READ.PAD_H, t_w, columns, masks, mask, y_shape, dy_strides, READ, TILE,
        READ.R - 1, MASKED,
    )  # fmt: skip
    for i in tl.static_range(READ.R - 1):
        dys = dys + _dys_of(before, i, DTYPE, ACC, READ, TILE)
    next_dys = _load_dys(
        dy_base, first_t - READ.PAD_H + READ.R - 1, t_w, columns, masks, mask, y_shape, dy_strides,
        READ, TILE, TILE.STEP_P, MASKED,
    )  # fmt: skip
    next_xs = _load_xs(
        x_base, first_t * WINDOW.STRIDE_H, w, mask, x_shape, x_strides, TILE, X_ROWS, LANE_W, MASKED
    )
    for step in range(STEPS):
        xs = ()  # (row of x, column)
        for i in tl.static_range(X_ROWS):
            xs = xs + _xs_of(next_xs, i, DTYPE, ACC, TILE, LANE_W)
        for i in tl.static_range(TILE.STEP_P):
            dys = dys + _dys_of(next_dys, i, DTYPE, ACC, READ, TILE)
        # The last step loads its own rows again, which are in cache.
        t = first_t + tl.minimum(step + 1, STEPS - 1) * TILE.STEP_P
        next_dys = _load_dys(
            dy_base, t - READ.PAD_H + READ.R - 1, t_w, columns, masks, mask, y_shape, dy_strides,
            READ, TILE, TILE.STEP_P, MASKED,
        )  # fmt: skip
        next_xs = _load_xs(
            x_base, t * WINDOW.STRIDE_H, w, mask, x_shape, x_strides, TILE, X_ROWS, LANE_W, MASKED
        )
        for i in tl.static_range(X_ROWS):
            h = (first_t + step * TILE.STEP_P) * WINDOW.STRIDE_H + i
            dxs = _row_of_dx(dys, weights, i, WINDOW, READ, LANE_W, ROW)
            for first in tl.static_range(0, LANE_W, TILE.Y_ALIGN):
                wanted = mask
                if MASKED:
                    wanted = mask & (as_block(h) < x_shape[0]) & (w + first < x_shape[1])
                _store(dxs, first, at(dx_base, dx_strides, 0, 0, h, w + first), wanted, TILE)
            sums = _add_row(sums, xs, dys, i, WINDOW, READ, LANE_W, ROW)
        dys = dys[TILE.STEP_P * ROW :]
    return sums


@triton.jit
def _load_dys(
    dy_base, p, t_w, columns, masks, mask, y_shape, dy_strides, READ: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What lanes read of rows p .. p + ROWS - 1 of dy: words and pieces of vectors, or elements."""
    DTYPE: tl.constexpr = dy_base.dtype.element_ty
    loaded = ()
    for i in tl.static_range(ROWS):
        if TILE.X_ALIGN > 1:
            loaded = loaded + load_vector(
                dy_base + t_w, columns, masks, p + i, dy_strides, y_shape, READ, TILE.LANE_Q,
                columns_per_word(DTYPE), MASKED,
            )  # fmt: skip
        else:
            loaded = loaded + load_row(
                dy_base, dy_strides, p + i, t_w, mask, y_shape, READ.S, 1, READ.PAD_W, 1, "zeros",
                TILE.LANE_Q, DTYPE, MASKED,
            )  # fmt: skip
    return loaded


@triton.jit
def _dys_of(
    loaded, row: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr, READ: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The elements of a row of what _load_dys returns."""
    if TILE.X_ALIGN > 1:
        dys = pixels_of(loaded, row, DTYPE, ACC, READ, TILE.LANE_Q, columns_per_word(DTYPE))
    else:
        dys = _as_sums(loaded, row * (TILE.LANE_Q + READ.S - 1), TILE.LANE_Q + READ.S - 1, ACC)
    return dys


@triton.jit
def _load_xs(
    x_base, h, w, mask, x_shape, x_strides, TILE: tl.constexpr, ROWS: tl.constexpr,
    LANE_W: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The LANE_W pixels of rows h .. h + ROWS - 1 of x that lanes own: words, or elements."""
    loaded = ()
    for i in tl.static_range(ROWS):
        if TILE.X_ALIGN > 1:
            pointers = x_base + (h + i) * x_strides[2] + w
            if MASKED:
                inside = mask & (as_block(h + i) < x_shape[0]) & (w < x_shape[1])
                loaded = loaded + load_words(pointers, inside, LANE_W)
            else:
                loaded = loaded + load_words(pointers, None, LANE_W)
        else:
            loaded = loaded + load_row(
                x_base, x_strides, h + i, w, mask, x_shape, 1, 1, 0, 1, "zeros", LANE_W,
                x_base.dtype.element_ty, MASKED,
            )  # fmt: skip
    return loaded


@triton.jit
def _xs_of(
    loaded, row: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr, TILE: tl.constexpr,
    LANE_W: tl.constexpr,
):  # fmt: skip
    """The pixels of a row of what _load_xs returns."""
    if TILE.X_ALIGN > 1:
        WORDS: tl.constexpr = LANE_W // columns_per_word(DTYPE)
        xs = pixels_of_words(loaded[row * WORDS : (row + 1) * WORDS], DTYPE, ACC)
    else:
        xs = _as_sums(loaded, row * LANE_W, LANE_W, ACC)
    return xs


@triton.jit
def _as_sums(values, first: tl.constexpr, COUNT: tl.constexpr, ACC: tl.constexpr):
    """COUNT of the values in the type of sums."""
    cast = ()
    for i in tl.static_range(COUNT):
        cast = cast + (values[first + i].to(ACC),)
    return cast


@triton.jit
def _row_of_dx(
    dys, weights, i: tl.constexpr, WINDOW: tl.constexpr, READ: tl.constexpr, LANE_W: tl.constexpr,
    ROW: tl.constexpr,
):  # fmt: skip
    """The columns of row i of a step's rows of dx."""
    dxs = ()
    for column in tl.static_range(LANE_W):
        total = tl.zeros_like(dys[0])
        for tap in tl.static_range(WINDOW.R * WINDOW.S):
            if _place(i, column, tap, WINDOW, READ, ROW) >= 0:
                dy = dys[_place(i, column, tap, WINDOW, READ, ROW)]
                total = tl.fma(dy, weights[tap], total)
        dxs = dxs + (total,)
    return dxs


@triton.jit
def _add_row(
    sums, xs, dys, i: tl.constexpr, WINDOW: tl.constexpr, READ: tl.constexpr,
    LANE_W: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """Adds row i of a step's rows of x to the sums of all taps through which dy reaches it."""
    updated = ()
    for tap in tl.static_range(WINDOW.R * WINDOW.S):
        total = sums[tap]
        for column in tl.static_range(LANE_W):
            if _place(i, column, tap, WINDOW, READ, ROW) >= 0:
                dy = dys[_place(i, column, tap, WINDOW, READ, ROW)]
                total = tl.fma(xs[i * LANE_W + column], dy, total)
        updated = updated + (total,)
    return updated


@triton.constexpr_function
def _place(row, column, tap, WINDOW, READ, ROW):
    """Index in the rows of dy of the element that reaches (row, column) of x through a tap.

    -1: none does.
    """
    _, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, _, _, DIL_H, DIL_W = _numbers_of(WINDOW)
    _, _, _, _, FIRST_H, FIRST_W, *_ = _numbers_of(READ)
    p, p_misses = divmod(row + PAD_H - tap // S * DIL_H, STRIDE_H)
    q, q_misses = divmod(column + PAD_W - tap % S * DIL_W, STRIDE_W)
    return -1 if p_misses or q_misses else (p + FIRST_H) * ROW + q + FIRST_W


@triton.constexpr_function
def _numbers_of(WINDOW):
    """The numbers of a window, by index: Triton 3.6 drops the fields' names."""
    return [getattr(field, "value", field) for field in WINDOW][:10]


@triton.jit
def _store(dxs, first: tl.constexpr, pointers, mask, TILE: tl.constexpr):
    """Stores Y_ALIGN columns of dx, from number `first` of a lane's on."""
    dx = dxs[first]
    if TILE.Y_ALIGN > 1:
        dx, pointers = join_last(dxs, first, TILE.Y_ALIGN), vector_at(pointers, TILE.Y_ALIGN)
        mask = tl.expand_dims(mask, 2)
    tl.store(pointers, dx.to(pointers.dtype.element_ty), mask=mask)
