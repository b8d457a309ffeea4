"""Forward as an implicit GEMM on the matrix units, its operands loaded through pointers.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = pixels (n,p,q)    GEMM_N = filters k of one group    GEMM_K = (r,s,c)

Pixels lie along PIXEL_AXIS of every block: along the last, whose elements neighbouring threads
load, where they are neighbours in memory, and along the first where channels are.

Sums in float32 (float64 for float64). A bank per sample is a batch of GEMMs whose pixels are
(p,q) of one sample; otherwise the batch has one member and `weight_stride_n` is not used.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .indexing import (
    align_strides,
    along,
    at_least_one,
    divide,
    first_step,
    fold,
    is_inside,
    next_digit,
    next_step,
    next_tile,
    reduction_steps,
    round_down,
    side_by_side,
    split_pixel,
    split_step,
    widen,
)
from .versions import fence_copies


@triton.jit(do_not_specialize=["PIXELS"])
def fprop_gemm(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    H, W, P, Q, PIXELS, GROUPS, GROUP_C, GROUP_K,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    weight_stride_n, weight_stride_k, weight_stride_c, weight_stride_r, weight_stride_s,
    bias_stride,
    residual_stride_n, residual_stride_k, residual_stride_p, residual_stride_q,
    y_stride_n, y_stride_k, y_stride_p, y_stride_q,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    PAD_BOTTOM: tl.constexpr, PAD_RIGHT: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr,
    PIXEL_AXIS: tl.constexpr,
    X_ALIGN: tl.constexpr, WEIGHT_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    FLAT: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    if PIXEL_AXIS == 0:
        GROUP_C, GROUP_K = round_down(GROUP_C, X_ALIGN), round_down(GROUP_K, Y_ALIGN)
    else:
        Q, PIXELS = round_down(Q, Y_ALIGN), round_down(PIXELS, Y_ALIGN)
    x_stride_n, x_stride_c, x_stride_h, x_stride_w = align_strides(
        x_stride_n, x_stride_c, x_stride_h, x_stride_w, PIXEL_AXIS, X_ALIGN
    )
    y_stride_n, y_stride_k, y_stride_p, y_stride_q = align_strides(
        y_stride_n, y_stride_k, y_stride_p, y_stride_q, PIXEL_AXIS, Y_ALIGN
    )
    weight_stride_k = round_down(weight_stride_k, WEIGHT_ALIGN)
    weight_stride_r = round_down(weight_stride_r, WEIGHT_ALIGN)
    weight_stride_s = round_down(weight_stride_s, WEIGHT_ALIGN)

    program = widen(tl.program_id(0), WIDE)
    tiles_m, tiles_n = tl.cdiv(PIXELS, BLOCK_M), tl.cdiv(GROUP_K, BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    group, batch = next_digit(program, GROUPS)

    PADDED: tl.constexpr = max(PAD_H, PAD_W, PAD_BOTTOM, PAD_RIGHT) > 0
    LOOSE: tl.constexpr = PIXEL_AXIS == 1 and (PADDED or R * S * STRIDE_H * STRIDE_W != 1)
    m = tile_m * BLOCK_M + along(PIXEL_AXIS, BLOCK_M)
    # With padding every load has a mask anyway: lanes past the end read what the last pixel does.
    n, p, q = split_pixel(tl.minimum(m, PIXELS - 1) if PADDED else m, P, Q)
    n += batch
    h, w = p * STRIDE_H - PAD_H, q * STRIDE_W - PAD_W  # through the first tap
    group_k = tile_n * BLOCK_N + along(1 - PIXEL_AXIS, BLOCK_N)
    k = group * GROUP_K + group_k
    known_k = group * GROUP_K + tl.minimum(group_k, GROUP_K - 1)

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    pixel_valid = True if PADDED else m < PIXELS
    acc = add_taps_gemm(
        tl.zeros((m + group_k).shape, ACC),
        x_ptr + group * GROUP_C * x_stride_c, n * x_stride_n, h, w, pixel_valid,
        weight_ptr + batch * weight_stride_n, known_k * weight_stride_k, True,
        H, W, GROUP_C, R, S, DIL_H, DIL_W,
        x_stride_c, x_stride_h, x_stride_w, weight_stride_c, weight_stride_r, weight_stride_s,
        1, 1, MODE, PADDED, R * S == 1, True, PIXEL_AXIS, LOOSE, FLAT, S, EVEN, AHEAD,
        WIDE, PRECISION, BLOCK_K,
    )  # fmt: skip

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride, mask=group_k < GROUP_K, other=0.0)
    exists = (m < PIXELS) & (group_k < GROUP_K)
    if residual_ptr is not None:
        pixel = n * residual_stride_n + p * residual_stride_p + q * residual_stride_q
        acc = add_residual(acc, residual_ptr + pixel + k * residual_stride_k, exists)
    outputs = y_ptr + n * y_stride_n + k * y_stride_k + p * y_stride_p
    if PIXEL_AXIS == 1 and (PADDED or Y_ALIGN == 1):
        outputs = side_by_side(outputs, q * y_stride_q)
    else:
        outputs += q * y_stride_q
    tl.store(
        outputs,
        activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty),
        mask=exists,
    )


@triton.jit
def add_taps_gemm(
    acc,
    image_ptr, pixel, row, column, pixel_valid,
    weight_ptr, filter, filter_valid,
    ROWS, COLUMNS, CHANNELS, R, S, row_step, column_step,
    image_stride_c, image_stride_h, image_stride_w,
    weight_stride_c, weight_stride_r, weight_stride_s,
    DIVIDE_H: tl.constexpr, DIVIDE_W: tl.constexpr, MODE: tl.constexpr, CHECKED: tl.constexpr,
    POINT: tl.constexpr, REACHED: tl.constexpr, PIXEL_AXIS: tl.constexpr, LOOSE: tl.constexpr,
    FLAT: tl.constexpr, MOST_S: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc plus the image times the weight, over all taps and summed channels.

    Tap (r,s) reads the image at (row + r * row_step) / DIVIDE_H, where that is a whole number, and
    a column likewise. `pixel` and `filter` are offsets of what does not depend on the tap.

    What depends on pixels and lanes is found before the loop, a step adds to it one scalar for its
    tap and first channel. There is an exception for few channels, FLAT of them if not None: a step
    covers BLOCK_K elements (r,s,channel), and every lane has its own. MOST_S is a constant that S
    is at most. EVEN says that BLOCK_K divides the channels, CHECKED that pixels may read outside
    of the image, POINT that there is one tap, REACHED that there is one at least, and LOOSE that
    pixels lie along the last axis, in no runs of addresses that the compiler could see.

    AHEAD: the image is loaded a step ahead into registers, because it comes in pieces too small
    for the copies to shared memory that Triton's pipeline is made of.
    """
    lane, weight_lane = along(1 - PIXEL_AXIS, BLOCK_K), along(PIXEL_AXIS, BLOCK_K)
    if MODE == "zeros" and DIVIDE_H * DIVIDE_W == 1:
        pixel += row * image_stride_h + column * image_stride_w
    if FLAT is None:
        pixel += lane * image_stride_c
        filter += weight_lane * weight_stride_c

    r, s, c = first_step(lane, R, FLAT, MOST_S, WIDE, BLOCK_K)
    if AHEAD:
        image = load_step(
            image_ptr, pixel, row, column, pixel_valid, r, s, c, lane, ROWS, COLUMNS, CHANNELS,
            R, S, row_step, column_step, image_stride_c, image_stride_h, image_stride_w,
            DIVIDE_H, DIVIDE_W, MODE, CHECKED, LOOSE, FLAT, EVEN, AHEAD,
        )  # fmt: skip
    steps = reduction_steps(CHANNELS, R, S, FLAT, MOST_S, BLOCK_K)
    for i in range(at_least_one(steps) if REACHED else steps):
        weight = load_weight(
            weight_ptr, filter, filter_valid, i, r, s, c, weight_lane, CHANNELS, R, S,
            weight_stride_c, weight_stride_r, weight_stride_s,
            PIXEL_AXIS, FLAT, MOST_S, EVEN, WIDE, BLOCK_K,
        )  # fmt: skip
        if AHEAD:
            r, s, c = next_step(i, r, s, c, lane, R, S, POINT, FLAT, MOST_S, WIDE, BLOCK_K)
        loaded = load_step(
            image_ptr, pixel, row, column, pixel_valid, r, s, c, lane, ROWS, COLUMNS, CHANNELS,
            R, S, row_step, column_step, image_stride_c, image_stride_h, image_stride_w,
            DIVIDE_H, DIVIDE_W, MODE, CHECKED, LOOSE, FLAT, EVEN, AHEAD,
        )  # fmt: skip
        if not AHEAD:
            image = loaded
            r, s, c = next_step(i, r, s, c, lane, R, S, POINT, FLAT, MOST_S, WIDE, BLOCK_K)
        image = image.to(weight.dtype)
        fence_copies(weight, PRECISION)
        if PIXEL_AXIS == 0:
            acc = tl.dot(image, weight, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        else:
            acc = tl.dot(weight, image, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        if AHEAD:
            image = loaded
    return acc


@triton.jit
def load_weight(
    weight_ptr, filter, valid, i, r, s, c, lane, CHANNELS, R, S,
    weight_stride_c, weight_stride_r, weight_stride_s,
    PIXEL_AXIS: tl.constexpr, FLAT: tl.constexpr, MOST_S: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK_N] or its transpose: the weight of step i of add_taps_gemm."""
    if FLAT is not None:  # r, s and c are those of lanes along the image's axis
        r, s, c = split_step(i, lane, R, FLAT, MOST_S, WIDE, BLOCK_K)
        valid &= (r < R) & (s < S)
    elif not EVEN:
        valid &= c + lane < CHANNELS
    offset = c * weight_stride_c + r * weight_stride_r + s * weight_stride_s
    if PIXEL_AXIS == 1 and FLAT is not None and FLAT % 2 == 1:
        weights = side_by_side(weight_ptr + offset, filter)
    else:
        weights = weight_ptr + offset + filter
    return tl.load(weights, mask=valid, other=0.0)


@triton.jit
def load_step(
    image_ptr, pixel, row, column, pixel_valid, r, s, c, lane, ROWS, COLUMNS, CHANNELS,
    R, S, row_step, column_step, image_stride_c, image_stride_h, image_stride_w,
    DIVIDE_H: tl.constexpr, DIVIDE_W: tl.constexpr, MODE: tl.constexpr, CHECKED: tl.constexpr,
    LOOSE: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_K] or its transpose: the image in the step of add_taps_gemm at (r,s,c)."""
    valid = pixel_valid
    if MODE == "zeros" and DIVIDE_H * DIVIDE_W == 1:
        offset = (
            c * image_stride_c + r * row_step * image_stride_h + s * column_step * image_stride_w
        )
        if CHECKED:
            valid &= is_inside(row + r * row_step, ROWS)
            valid &= is_inside(column + s * column_step, COLUMNS)
    else:
        h, w = row + r * row_step, column + s * column_step
        if MODE == "zeros":
            h, h_inside = divide(h, DIVIDE_H, ROWS)
            w, w_inside = divide(w, DIVIDE_W, COLUMNS)
        else:
            h, h_inside = fold(h, ROWS, MODE)
            w, w_inside = fold(w, COLUMNS, MODE)
        offset = c * image_stride_c + h * image_stride_h + w * image_stride_w
        valid &= h_inside & w_inside
    if FLAT is not None:
        valid &= (r < R) & (s < S)
    elif not EVEN:
        valid &= c + lane < CHANNELS
    elif AHEAD:
        valid &= c < CHANNELS
    if LOOSE:
        pixels = side_by_side(image_ptr + offset, pixel)
    else:
        pixels = image_ptr + offset + pixel
    return tl.load(pixels, mask=valid, other=0.0)
