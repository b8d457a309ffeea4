"""Forward or input gradient of few channels: the pixels of a patch are columns of a GEMM.

    y[n, k, u * PITCH_H - SHIFT_H + a, v * PITCH_W - SHIFT_W + b] =
        act(bias[k] + residual + sum_{c,i,j} x[n,c,h,w] * spread[(a,b,k), (i,j,c)])
    h = u * STEP_H - PAD_H + i        w likewise

    GEMM_M = patches (n,u,v)    GEMM_N = (a,b,k) of one group    GEMM_K = (i,j,c)

(a,b) are a pixel's row and column in its patch, (i,j) a place in the window that the patch reads.
That window is read once for all pixels of the patch. build_patch_weight writes zeros where a pixel
has no tap at a place: those products are exact, but an infinity or NaN of x reaches every pixel of
the patches that read it. For an input gradient x is dy, y is dx, and the pixels of a patch are the
phases of the stride, of one or several pixels of dy.

Sums in float32 (float64 for float64). PIXEL_AXIS and SPLIT are explained in fprop_gemm.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .hints import align_strides, along, round_down, side_by_side_in_chunks
from .indexing import is_inside
from .patches import chunks_of_lanes, in_chunks, split_patch_column
from .reduction import add_taps_gemm
from .schedule import next_digit, next_tile, split_pixel, widen
from .structs import at


@triton.jit(do_not_specialize=["PATCHES", "SPLITS"])
def fprop_patch(
    x_ptr, spread_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, patch_shape, GROUP_C, PATCHES, SPLITS,
    x_strides, bias_stride, residual_strides, y_strides, split_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MODE: tl.constexpr, LAYOUT: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, STEPS: tl.constexpr, INT64: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    U, V = patch_shape
    RESULTS: tl.constexpr = LAYOUT.RESULTS
    AXIS: tl.constexpr = LAYOUT.PIXEL_AXIS
    SIZE: tl.constexpr = ROWS.PITCH * COLUMNS.PITCH * RESULTS
    LENGTH: tl.constexpr = STEPS * TILE.BLOCK_K
    if AXIS == 0:
        GROUP_C = round_down(GROUP_C, LAYOUT.X_ALIGN)
    if LAYOUT.Y_AXIS == 1:
        V, PATCHES = round_down(V, LAYOUT.Y_ALIGN), round_down(PATCHES, LAYOUT.Y_ALIGN)
    x_strides = align_strides(x_strides, AXIS, LAYOUT.X_ALIGN)
    y_strides = align_strides(y_strides, LAYOUT.Y_AXIS, LAYOUT.Y_ALIGN)

    program, split = widen(tl.program_id(0), INT64), 0
    if LAYOUT.SPLIT:
        split, program = next_digit(program, SPLITS)
        y_ptr += widen(split, INT64) * split_stride
    tile_m, tile_n, group = next_tile(
        program, tl.cdiv(PATCHES, TILE.BLOCK_M), tl.cdiv(SIZE, TILE.BLOCK_N)
    )
    m = tile_m * TILE.BLOCK_M + along(AXIS, TILE.BLOCK_M)
    # Clamp to the last patch: padded loads are masked anyway, so no extra bounds test is needed.
    n, u, v = split_pixel(tl.minimum(m, PATCHES - 1) if LAYOUT.CHECKED else m, U, V)
    column = tile_n * TILE.BLOCK_N + along(1 - AXIS, TILE.BLOCK_N)
    known = group * SIZE + column % SIZE  # past the last: others, as one would be waited for

    ACC: tl.constexpr = tl.float64 if spread_ptr.dtype.element_ty == tl.float64 else tl.float32
    POINT: tl.constexpr = ROWS.WINDOW * COLUMNS.WINDOW == 1
    acc = add_taps_gemm(
        tl.zeros((m + column).shape, ACC),
        x_ptr + group * GROUP_C * x_strides[1], n * x_strides[0],
        u * ROWS.STEP - ROWS.PAD, v * COLUMNS.STEP - COLUMNS.PAD,
        True if LAYOUT.CHECKED else m < PATCHES,
        spread_ptr, known * LENGTH, True,
        x_shape, GROUP_C, (ROWS.WINDOW, COLUMNS.WINDOW), (1, 1), (1, 1),
        x_strides, (0, 0, 0), split, SPLITS,
        MODE, LAYOUT.CHECKED, POINT, True, LAYOUT.LOOSE,
        COLUMNS.WINDOW, LAYOUT, PRECISION, INT64, TILE.BLOCK_K,
    )  # fmt: skip

    # [chunk, row, lane]: a thread stores few rows of few columns, because the parts of addresses
    # take registers for each row and each column.
    LANES: tl.constexpr = LAYOUT.STORED_LANES
    if LAYOUT.Y_AXIS == 0 or LAYOUT.ACROSS:
        acc = in_chunks(acc if AXIS == 0 else acc.T, LANES)
        m = tile_m * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)[None, :, None]
        column = tile_n * TILE.BLOCK_N + chunks_of_lanes(TILE.BLOCK_N, LANES)
    else:
        acc = in_chunks(acc.T if AXIS == 0 else acc, LANES)
        m = tile_m * TILE.BLOCK_M + chunks_of_lanes(TILE.BLOCK_M, LANES)
        column = tile_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)[None, :, None]
    n, u, v = split_pixel(m, U, V)
    a, b, group_k, _ = split_patch_column(column, ROWS, COLUMNS, RESULTS, LAYOUT.ACROSS)
    k = group * RESULTS + group_k
    p, q = u * ROWS.PITCH - ROWS.SHIFT, v * COLUMNS.PITCH - COLUMNS.SHIFT
    mask = (m < PATCHES) & (column < SIZE)
    if LAYOUT.CROPPED:
        mask &= is_inside(p + a, y_shape[0]) & is_inside(q + b, y_shape[1])
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride, mask=column < SIZE, other=0.0)
    if residual_ptr is not None:
        added = at(residual_ptr, residual_strides, 0, k, a, b)
        added = side_by_side_in_chunks(added, at(0, residual_strides, n, 0, p, q))
        acc = add_residual(acc, added, mask)
    outputs = at(y_ptr, y_strides, 0, k, a, b)
    outputs = side_by_side_in_chunks(outputs, at(0, y_strides, n, 0, p, q))
    tl.store(outputs, activate(acc, ACTIVATION, y_ptr.dtype.element_ty), mask=mask)
