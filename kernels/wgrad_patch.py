"""Weight gradient of few filters: the pixels of a patch of dy are rows of a GEMM.

    partial(a,b)[k,c,r,s] = sum_{n,u,v} dy[n, k, u * PATCH_P + a, v * PATCH_Q + b] * x[n,c,h,w]
    h = u * STEP_H - PAD_H + i        w likewise        r = i - a * stride        s likewise

    GEMM_M = (a,b,k) of one group    GEMM_N = (i,j,c)    GEMM_K = patches (n,u,v)

(a,b) are a pixel's row and column in its patch, (i,j) a place in the window that the patch reads.
That window is read once for all pixels of the patch. Each pixel (a,b) of a patch and each split
of the patches has a gradient of its own, number (split * PATCH_P + a) * PATCH_Q + b of the partials
for sum_partials. Places without a tap are computed too, but not stored.

Sums in float32 (float64 for float64). PIXEL_AXIS and ONE_TAP are explained in wgrad_gemm.
"""

import triton
import triton.language as tl

from .hints import align_strides, along, round_down, side_by_side_in_chunks
from .indexing import is_inside
from .padding import fold
from .patches import chunks_of_lanes, in_chunks, split_patch_column, tap_at_place
from .schedule import next_digit, next_pixel, next_tile, split_pixel, widen
from .structs import tap_at
from .versions import fence_copies
from .wgrad_gemm import pixels_of, split_column


@triton.jit(do_not_specialize=["SPLITS"])
def wgrad_patch(
    x_ptr, dy_ptr, dw_ptr,
    x_shape, y_shape, patch_shape, GROUP_C, PATCHES, SPLITS, SPLIT_PATCHES,
    x_strides, dy_strides, dw_stride_partial, dw_strides,
    R: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MODE: tl.constexpr, LAYOUT: tl.constexpr, PRECISION: tl.constexpr, INT64: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    U, V = patch_shape
    RESULTS: tl.constexpr = LAYOUT.RESULTS
    AXIS: tl.constexpr = LAYOUT.PIXEL_AXIS
    BLOCK_K: tl.constexpr = TILE.BLOCK_K
    SIZE: tl.constexpr = ROWS.PITCH * COLUMNS.PITCH * RESULTS
    PLACES: tl.constexpr = ROWS.WINDOW * COLUMNS.WINDOW
    if AXIS == 0:
        GROUP_C = round_down(GROUP_C, LAYOUT.X_ALIGN)
    x_strides = align_strides(x_strides, AXIS, LAYOUT.X_ALIGN)
    dy_strides = align_strides(dy_strides, LAYOUT.Y_AXIS, LAYOUT.Y_ALIGN)

    program = widen(tl.program_id(0), INT64)
    tile_m, tile_n, program = next_tile(
        program, tl.cdiv(SIZE, TILE.BLOCK_M), tl.cdiv(GROUP_C * PLACES, TILE.BLOCK_N)
    )
    split, group = next_digit(program, SPLITS)

    row = tile_m * TILE.BLOCK_M + along(0, TILE.BLOCK_M)
    a, b, group_k, _ = split_patch_column(row, ROWS, COLUMNS, RESULTS, False)
    k = group * RESULTS + group_k
    place, c = split_column(
        tile_n, along(1 - AXIS, TILE.BLOCK_N), GROUP_C, PLACES, LAYOUT.ONE_TAP, TILE
    )
    i, j = place // COLUMNS.WINDOW, place % COLUMNS.WINDOW
    x_base = x_ptr + (group * GROUP_C + c) * x_strides[1]
    if MODE == "zeros":
        x_base += i * x_strides[2] + j * x_strides[3]
    dy_base = dy_ptr + k * dy_strides[1] + a * dy_strides[2] + b * dy_strides[3]
    row_mask, place_mask = row < SIZE, place < PLACES

    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([TILE.BLOCK_M, TILE.BLOCK_N], ACC)
    first = split * SPLIT_PATCHES
    last = tl.minimum(first + SPLIT_PATCHES, PATCHES)
    dy_m, x_m = first + along(1, BLOCK_K), first + along(AXIS, BLOCK_K)
    dy_n, dy_u, dy_v = split_pixel(dy_m, U, V)
    x_n, x_u, x_v = split_pixel(x_m, U, V)
    if LAYOUT.PREFETCH:  # as in reduction.add_taps_gemm
        dy = load_dy_patches(
            dy_base, dy_n, dy_u, dy_v, a, b, row_mask & (dy_m < last), y_shape, dy_strides,
            ROWS, COLUMNS, LAYOUT,
        )  # fmt: skip
        x = load_x_patches(
            x_base, x_n, x_u, x_v, i, j, place_mask & (x_m < last), x_shape, x_strides,
            ROWS, COLUMNS, MODE, LAYOUT,
        )  # fmt: skip
    for _ in range(tl.cdiv(SPLIT_PATCHES, BLOCK_K)):
        if LAYOUT.PREFETCH:
            dy_m += BLOCK_K
            x_m += BLOCK_K
            dy_n, dy_u, dy_v = next_pixel(dy_n, dy_u, dy_v, U, V, BLOCK_K)
            x_n, x_u, x_v = next_pixel(x_n, x_u, x_v, U, V, BLOCK_K)
        next_dy = load_dy_patches(
            dy_base, dy_n, dy_u, dy_v, a, b, row_mask & (dy_m < last), y_shape, dy_strides,
            ROWS, COLUMNS, LAYOUT,
        )  # fmt: skip
        next_x = load_x_patches(
            x_base, x_n, x_u, x_v, i, j, place_mask & (x_m < last), x_shape, x_strides,
            ROWS, COLUMNS, MODE, LAYOUT,
        )  # fmt: skip
        if not LAYOUT.PREFETCH:
            dy, x = next_dy, next_x
            dy_m += BLOCK_K
            x_m += BLOCK_K
            dy_n, dy_u, dy_v = next_pixel(dy_n, dy_u, dy_v, U, V, BLOCK_K)
            x_n, x_u, x_v = next_pixel(x_n, x_u, x_v, U, V, BLOCK_K)
        columns = x.to(dy.dtype)  # [BLOCK_K, BLOCK_N] or its transpose
        if AXIS == 1:
            columns = columns.T
        fence_copies(dy, PRECISION)
        acc = tl.dot(dy, columns, acc, input_precision=PRECISION, out_dtype=ACC)
        if LAYOUT.PREFETCH:
            dy, x = next_dy, next_x

    # [chunk, row, lane]: see fprop_patch.
    row = tile_m * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)[None, :, None]
    a, b, group_k, _ = split_patch_column(row, ROWS, COLUMNS, RESULTS, False)
    lane = chunks_of_lanes(TILE.BLOCK_N, LAYOUT.STORED_LANES)
    place, c = split_column(tile_n, lane, GROUP_C, PLACES, LAYOUT.ONE_TAP, TILE)
    r = tap_at_place(place // COLUMNS.WINDOW, a, ROWS)
    s = tap_at_place(place % COLUMNS.WINDOW, b, COLUMNS)
    partial = ((split * ROWS.PITCH + a) * COLUMNS.PITCH + b) * dw_stride_partial
    sums = side_by_side_in_chunks(
        tap_at(dw_ptr + partial, dw_strides, 0, group * RESULTS + group_k, 0, 0, 0),
        c * dw_strides[2] + r * dw_strides[3] + s * dw_strides[4],
    )
    mask = (row < SIZE) & (place < PLACES) & is_inside(r, R) & is_inside(s, S)
    acc = in_chunks(acc, LAYOUT.STORED_LANES)
    tl.store(sums, acc.to(dw_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_dy_patches(
    dy_base, n, u, v, a, b, mask, y_shape, strides,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """The block [BLOCK_M, BLOCK_K] of a step: pixels of patches by patches."""
    p, q = u * ROWS.PITCH, v * COLUMNS.PITCH
    if LAYOUT.CROPPED:
        mask &= (p + a < y_shape[0]) & (q + b < y_shape[1])
    offset = pixels_of(n * strides[0] + p * strides[2], q * strides[3], LAYOUT.Y_AXIS, 1)
    return tl.load(dy_base + offset, mask=mask, other=0.0)


@triton.jit
def load_x_patches(
    x_base, n, u, v, i, j, mask, x_shape, strides,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MODE: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """The block [BLOCK_K, BLOCK_N] of a step, or its transpose."""
    h, w = u * ROWS.STEP - ROWS.PAD, v * COLUMNS.STEP - COLUMNS.PAD
    if MODE != "zeros":
        h, h_inside = fold(h + i, x_shape[0], MODE)
        w, w_inside = fold(w + j, x_shape[1], MODE)
        mask &= h_inside & w_inside
    elif LAYOUT.CHECKED:
        mask &= is_inside(h + i, x_shape[0]) & is_inside(w + j, x_shape[1])
    offset = pixels_of(n * strides[0] + h * strides[2], w * strides[3], LAYOUT.PIXEL_AXIS, 1)
    return tl.load(x_base + offset, mask=mask, other=0.0)
