"""Forward as a direct sum for large windows: a lane sums BLOCK_P outputs of one column at once.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r        w = q * STRIDE_W - PAD_W + s * DIL_W

No GEMM view; operands are converted to the dtype of the sums before they are multiplied. A tile is
BLOCK_P rows and BLOCK_Q columns of BLOCK_C planes: BLOCK_N samples of one filter, or BLOCK_K
filters of one sample. A lane multiplies each loaded pixel for up to BLOCK_P outputs, with one tap
of a column of the window for each: about one pixel and two taps are loaded for BLOCK_P products,
where a stencil loads a pixel and a tap for every product.

Counted from the first input row of a tile, row i meets output row j through tap
r = i - j * STRIDE_H. That tap exists for every j from row LEAD = (BLOCK_P - 1) * STRIDE_H to row
R - 1: a loop takes these rows, ROWS at a time. Rows before and after reach fewer outputs and are
unrolled, so that the compiler omits the missing taps. A missing tap is never multiplied, so an
infinity or NaN reaches only the windows that contain it.

The input gradient with stride 1 is the same correlation of dy with the window flipped, and runs
here too: see Geometry.adjoint. With a stride, each phase of the pixels is one, with every stride-th
tap: see Geometry.phase_gradient. Sums in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .padding import fold
from .schedule import as_block, next_digit, widen
from .structs import at, tap_at

#: Input rows loaded together.
ROWS = tl.constexpr(8)


@triton.jit
def fprop_columns(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, channels, N,
    x_strides, weight_strides, weight_stride_g, bias_stride, residual_strides, y_strides,
    STRIDE_R: tl.constexpr, WINDOW: tl.constexpr, ACTIVATION: tl.constexpr, INT64: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    K = GROUPS * GROUP_K
    BLOCK_P: tl.constexpr = TILE.BLOCK_P
    program = widen(tl.program_id(0), INT64)
    tile_k, program = next_digit(program, tl.cdiv(K, TILE.BLOCK_K))
    tile_q, program = next_digit(program, tl.cdiv(Q, TILE.BLOCK_Q))
    tile_p, tile_n = next_digit(program, tl.cdiv(P, BLOCK_P))
    p = tile_p * BLOCK_P
    lane = tl.arange(0, TILE.BLOCK_Q)[None, :]  # [1, BLOCK_Q]
    q = tile_q * TILE.BLOCK_Q + lane
    n = tile_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)[:, None]  # [BLOCK_N, 1]
    k = tile_k * TILE.BLOCK_K + tl.arange(0, TILE.BLOCK_K)[:, None]  # [BLOCK_K, 1]
    mask = (n < N) & (k < K)  # [BLOCK_C, 1]
    filters = tl.minimum(k, K - 1)  # loads of taps then need no mask
    bank = 0  # samples of one program share their filters
    if TILE.BLOCK_N == 1:
        bank = n
    weight_base = weight_ptr + bank * weight_strides[0] + filters // GROUP_K * weight_stride_g
    weight_base += filters % GROUP_K * weight_strides[1]  # [BLOCK_K, 1]
    x_base = at(x_ptr, x_strides, n, k // GROUP_K * GROUP_C, 0, 0)  # [BLOCK_C, 1]

    h = p * WINDOW.STRIDE_H - WINDOW.PAD_H
    w = q * WINDOW.STRIDE_W - WINDOW.PAD_W
    first_w = tile_q * (TILE.BLOCK_Q * WINDOW.STRIDE_W) - WINDOW.PAD_W
    REACH: tl.constexpr = (TILE.BLOCK_Q - 1) * WINDOW.STRIDE_W + (WINDOW.S - 1) * WINDOW.DIL_W
    interior = (first_w >= 0) & (first_w + REACH < x_shape[1])
    interior = interior & (tile_n * TILE.BLOCK_N + TILE.BLOCK_N <= N)
    interior = interior & (tile_k * TILE.BLOCK_K + TILE.BLOCK_K <= K)
    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    LEAD: tl.constexpr = (BLOCK_P - 1) * WINDOW.STRIDE_H
    FULL: tl.constexpr = max(0, WINDOW.R - LEAD) // ROWS * ROWS  # rows of the loop
    sums = ()
    for _ in tl.static_range(BLOCK_P):
        sums = sums + (tl.zeros([TILE.BLOCK_N * TILE.BLOCK_K, TILE.BLOCK_Q], ACC),)
    for group_c in range(GROUP_C):
        x_plane = at(x_base, x_strides, 0, widen(group_c, INT64), 0, 0)
        taps = tap_at(weight_base, weight_strides, 0, 0, widen(group_c, INT64), 0, 0)
        for first in tl.static_range(0, LEAD, ROWS):
            sums = _add_rows(
                sums, x_plane, taps, first, h, w, mask, interior, x_shape, x_strides,
                weight_strides, first, min(ROWS, LEAD - first), WINDOW, STRIDE_R, INT64,
            )  # fmt: skip
        for step in range(FULL // ROWS):
            sums = _add_rows(
                sums, x_plane, taps, LEAD + step * ROWS, h, w, mask, interior, x_shape,
                x_strides, weight_strides, None, ROWS, WINDOW, STRIDE_R, INT64,
            )  # fmt: skip
        for first in tl.static_range(LEAD + FULL, LEAD + WINDOW.R, ROWS):
            sums = _add_rows(
                sums, x_plane, taps, first, h, w, mask, interior, x_shape, x_strides,
                weight_strides, first, min(ROWS, LEAD + WINDOW.R - first), WINDOW, STRIDE_R, INT64,
            )  # fmt: skip

    bias = tl.zeros([TILE.BLOCK_K, 1], ACC)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + filters * bias_stride)
    for j in tl.static_range(BLOCK_P):
        y = sums[j] + bias
        inside = mask & (q < Q) & (as_block(p + j) < P)
        if residual_ptr is not None:
            y = add_residual(y, at(residual_ptr, residual_strides, n, k, p + j, q), inside)
        y = activate(y, ACTIVATION, y_ptr.dtype.element_ty)
        tl.store(at(y_ptr, y_strides, n, k, p + j, q), y, mask=inside)


@triton.constexpr_function
def _is_tap(r, R):
    """Whether row `r` of the window exists; r = None stands for a row that does."""
    return r is None or 0 <= r < R


@triton.constexpr_function
def _minus(first, number):
    return None if first is None else first - number


@triton.jit
def _add_rows(
    sums, x_plane, taps, first, h, w, mask, interior, x_shape, x_strides, weight_strides,
    FIRST: tl.constexpr, COUNT: tl.constexpr, WINDOW: tl.constexpr, STRIDE_R: tl.constexpr,
    INT64: tl.constexpr,
):  # fmt: skip
    """Adds COUNT input rows, from row `first` of the tile's, to the sums.

    FIRST is `first` where some taps may not exist, None where all do.
    """
    h += first
    if WINDOW.MODE == "zeros":
        seen = (h + COUNT > 0) & (h < x_shape[0])
    else:
        seen = True
    if interior & (h >= 0) & (h + COUNT <= x_shape[0]):
        sums = _add_window(
            sums, x_plane, taps, first, h, w, mask, x_shape, x_strides,
            weight_strides, FIRST, COUNT, WINDOW, STRIDE_R, INT64, False,
        )  # fmt: skip
    elif seen:
        sums = _add_window(
            sums, x_plane, taps, first, h, w, mask, x_shape, x_strides,
            weight_strides, FIRST, COUNT, WINDOW, STRIDE_R, INT64, True,
        )  # fmt: skip
    return sums


@triton.jit
def _add_window(
    sums, x_plane, taps, first, h, w, mask, x_shape, x_strides, weight_strides,
    FIRST: tl.constexpr, COUNT: tl.constexpr, WINDOW: tl.constexpr, STRIDE_R: tl.constexpr,
    INT64: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds input rows h to h + COUNT - 1 to the sums, one column of taps per step."""
    LEAD: tl.constexpr = (len(sums) - 1) * WINDOW.STRIDE_H
    rows, masks = (), ()
    for i in tl.static_range(COUNT):
        row, h_inside = h + i, mask
        if MASKED:
            row, h_inside = fold(as_block(h + i), x_shape[0], WINDOW.MODE)  # [1, 1]
            h_inside = h_inside & mask
        rows = rows + (x_plane + row * x_strides[2],)
        masks = masks + (h_inside,)
    taps += (first - LEAD) * STRIDE_R
    for j in range(WINDOW.S):
        s = widen(j, INT64)
        column = w + s * WINDOW.DIL_W  # [1, BLOCK_Q]
        if MASKED:
            column, w_inside = fold(column, x_shape[1], WINDOW.MODE)
        pixels = ()
        for i in tl.static_range(COUNT):
            if MASKED:
                x = tl.load(rows[i] + column * x_strides[3], mask=masks[i] & w_inside, other=0.0)
            else:
                x = tl.load(rows[i] + column * x_strides[3])  # [BLOCK_C, BLOCK_Q]
            pixels = pixels + (x.to(sums[0].dtype),)
        tap = taps + s * weight_strides[4]
        for i in tl.static_range(LEAD + COUNT):
            # The tap is in row first + i - LEAD of the window.
            if _is_tap(_minus(FIRST, LEAD - i), WINDOW.R):
                weight = tl.load(tap + i * STRIDE_R)  # [BLOCK_K, 1]
                sums = _add_tap(sums, pixels, weight.to(sums[0].dtype), i - LEAD, WINDOW.STRIDE_H)
    return sums


@triton.jit
def _add_tap(sums, pixels, weight, OFFSET: tl.constexpr, STRIDE: tl.constexpr):
    """Adds the products of a tap: with pixel j * STRIDE + OFFSET to sum j."""
    updated = ()
    for j in tl.static_range(len(sums)):
        total = sums[j]
        if 0 <= j * STRIDE + OFFSET and j * STRIDE + OFFSET < len(pixels):
            total = tl.fma(pixels[j * STRIDE + OFFSET], tl.broadcast_to(weight, total.shape), total)
        updated = updated + (total,)
    return updated
