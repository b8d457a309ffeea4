"""Forward as an implicit GEMM on the matrix units, its operands loaded through pointers.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = pixels (n,p,q)    GEMM_N = filters k of one group    GEMM_K = (r,s,c)

Pixels lie along PIXEL_AXIS of every block: along the last, whose elements neighbouring threads
load, where they are neighbours in memory, and along the first where channels are.

Sums in float32 (float64 for float64). A bank per sample is a batch of GEMMs whose pixels are
(p,q) of one sample; otherwise the batch has one member.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .indexing import (
    align_strides,
    align_tap_strides,
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
from .structs import at
from .versions import fence_copies


@triton.jit(do_not_specialize=["PIXELS"])
def fprop_gemm(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, channels, PIXELS,
    x_strides, weight_strides, bias_stride, residual_strides, y_strides,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    AXIS: tl.constexpr = LAYOUT.PIXEL_AXIS
    if AXIS == 0:
        GROUP_C = round_down(GROUP_C, LAYOUT.X_ALIGN)
        GROUP_K = round_down(GROUP_K, LAYOUT.Y_ALIGN)
    else:
        Q, PIXELS = round_down(Q, LAYOUT.Y_ALIGN), round_down(PIXELS, LAYOUT.Y_ALIGN)
    x_strides = align_strides(x_strides, AXIS, LAYOUT.X_ALIGN)
    y_strides = align_strides(y_strides, AXIS, LAYOUT.Y_ALIGN)
    weight_strides = align_tap_strides(weight_strides, LAYOUT.WEIGHT_ALIGN)

    program = widen(tl.program_id(0), INT64)
    tiles_m, tiles_n = tl.cdiv(PIXELS, TILE.BLOCK_M), tl.cdiv(GROUP_K, TILE.BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    group, batch = next_digit(program, GROUPS)

    PADDED: tl.constexpr = max(WINDOW.PAD_H, WINDOW.PAD_W, WINDOW.PAD_BOTTOM, WINDOW.PAD_RIGHT) > 0
    POINT: tl.constexpr = WINDOW.R * WINDOW.S == 1
    STRIDED: tl.constexpr = WINDOW.STRIDE_H * WINDOW.STRIDE_W != 1
    m = tile_m * TILE.BLOCK_M + along(AXIS, TILE.BLOCK_M)
    # Clamp to the last pixel: padded loads are masked anyway, so no extra bounds test is needed.
    n, p, q = split_pixel(tl.minimum(m, PIXELS - 1) if PADDED else m, P, Q)
    n += batch
    # Through the first tap.
    h, w = p * WINDOW.STRIDE_H - WINDOW.PAD_H, q * WINDOW.STRIDE_W - WINDOW.PAD_W
    group_k = tile_n * TILE.BLOCK_N + along(1 - AXIS, TILE.BLOCK_N)
    k = group * GROUP_K + group_k
    known_k = group * GROUP_K + tl.minimum(group_k, GROUP_K - 1)

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = add_taps_gemm(
        tl.zeros((m + group_k).shape, ACC),
        x_ptr + group * GROUP_C * x_strides[1], n * x_strides[0], h, w,
        True if PADDED else m < PIXELS,
        weight_ptr + batch * weight_strides[0], known_k * weight_strides[1], True,
        x_shape, GROUP_C, (WINDOW.R, WINDOW.S), (WINDOW.DIL_H, WINDOW.DIL_W), (1, 1),
        x_strides, (weight_strides[2], weight_strides[3], weight_strides[4]),
        WINDOW.MODE, PADDED, POINT, True, AXIS == 1 and (PADDED or STRIDED or not POINT),
        WINDOW.S, LAYOUT, PRECISION, INT64, TILE.BLOCK_K,
    )  # fmt: skip

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride, mask=group_k < GROUP_K, other=0.0)
    mask = (m < PIXELS) & (group_k < GROUP_K)
    if residual_ptr is not None:
        acc = add_residual(acc, at(residual_ptr, residual_strides, n, k, p, q), mask)
    outputs = at(y_ptr, y_strides, n, k, p, 0)
    if AXIS == 1 and (PADDED or LAYOUT.Y_ALIGN == 1):
        outputs = side_by_side(outputs, q * y_strides[3])
    else:
        outputs += q * y_strides[3]
    tl.store(outputs, activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_taps_gemm(
    acc, image_ptr, pixel, row, column, pixel_mask, weight_ptr, filter, filter_mask,
    image_shape, CHANNELS, taps, steps, divisors, image_strides, tap_strides,
    MODE: tl.constexpr, CHECKED: tl.constexpr, POINT: tl.constexpr, REACHED: tl.constexpr,
    LOOSE: tl.constexpr, MOST_S: tl.constexpr, LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc plus the image times the weight, over all taps and summed channels.

    Tap (r,s) of `taps`, (R, S), reads the image at (row + r * steps[0]) / divisors[0], where that
    is a whole number, and a column likewise. `pixel` and `filter` are offsets of what does not
    depend on the tap.

    What depends on pixels and lanes is found before the loop, a step adds to it one scalar for its
    tap and first channel. There is an exception for few channels, LAYOUT.FLATTEN_K of them if not
    None: a step covers BLOCK_K elements (r,s,channel), and every lane has its own. MOST_S is a
    constant that S is at most. LAYOUT.K_DIVIDES says that BLOCK_K divides the channels, CHECKED
    that pixels may read outside of the image, POINT that there is one tap, REACHED that there is
    one at least, and LOOSE that pixels lie along the last axis, in no runs of addresses that the
    compiler could see.

    LAYOUT.PREFETCH: the image is loaded a step ahead into registers, because it comes in pieces too
    small for the copies to shared memory that Triton's pipeline is made of.
    """
    AXIS: tl.constexpr = LAYOUT.PIXEL_AXIS
    FLAT: tl.constexpr = LAYOUT.FLATTEN_K
    PREFETCH: tl.constexpr = LAYOUT.PREFETCH
    R, S = taps
    lane, weight_lane = along(1 - AXIS, BLOCK_K), along(AXIS, BLOCK_K)
    if MODE == "zeros" and divisors[0] * divisors[1] == 1:
        pixel += row * image_strides[2] + column * image_strides[3]
    if FLAT is None:
        pixel += lane * image_strides[1]
        filter += weight_lane * tap_strides[0]

    r, s, c = first_step(lane, R, FLAT, MOST_S, INT64, BLOCK_K)
    if PREFETCH:
        image = load_image(
            image_ptr, pixel, row, column, pixel_mask, r, s, c, lane, image_shape, CHANNELS,
            taps, steps, divisors, image_strides, MODE, CHECKED, LOOSE, LAYOUT,
        )  # fmt: skip
    number = reduction_steps(CHANNELS, R, S, FLAT, MOST_S, BLOCK_K)
    for i in range(at_least_one(number) if REACHED else number):
        weight = load_weight(
            weight_ptr, filter, filter_mask, i, r, s, c, weight_lane, CHANNELS, taps, tap_strides,
            MOST_S, LAYOUT, INT64, BLOCK_K,
        )  # fmt: skip
        if PREFETCH:
            r, s, c = next_step(i, r, s, c, lane, R, S, POINT, FLAT, MOST_S, INT64, BLOCK_K)
        loaded = load_image(
            image_ptr, pixel, row, column, pixel_mask, r, s, c, lane, image_shape, CHANNELS,
            taps, steps, divisors, image_strides, MODE, CHECKED, LOOSE, LAYOUT,
        )  # fmt: skip
        if not PREFETCH:
            image = loaded
            r, s, c = next_step(i, r, s, c, lane, R, S, POINT, FLAT, MOST_S, INT64, BLOCK_K)
        image = image.to(weight.dtype)
        fence_copies(weight, PRECISION)
        if AXIS == 0:
            acc = tl.dot(image, weight, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        else:
            acc = tl.dot(weight, image, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        if PREFETCH:
            image = loaded
    return acc


@triton.jit
def load_weight(
    weight_ptr, filter, mask, i, r, s, c, lane, CHANNELS, taps, tap_strides,
    MOST_S: tl.constexpr, LAYOUT: tl.constexpr, INT64: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK_N] or its transpose: the weight of step i of add_taps_gemm."""
    FLAT: tl.constexpr = LAYOUT.FLATTEN_K
    if FLAT is not None:  # r, s and c are those of lanes along the image's axis
        r, s, c = split_step(i, lane, taps[0], FLAT, MOST_S, INT64, BLOCK_K)
        mask &= (r < taps[0]) & (s < taps[1])
    elif not LAYOUT.K_DIVIDES:
        mask &= c + lane < CHANNELS
    offset = c * tap_strides[0] + r * tap_strides[1] + s * tap_strides[2]
    if LAYOUT.PIXEL_AXIS == 1 and FLAT is not None and FLAT % 2 == 1:
        weights = side_by_side(weight_ptr + offset, filter)
    else:
        weights = weight_ptr + offset + filter
    return tl.load(weights, mask=mask, other=0.0)


@triton.jit
def load_image(
    image_ptr, pixel, row, column, mask, r, s, c, lane, image_shape, CHANNELS,
    taps, steps, divisors, strides,
    MODE: tl.constexpr, CHECKED: tl.constexpr, LOOSE: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_K] or its transpose: the image in the step of add_taps_gemm at (r,s,c)."""
    ROWS, COLUMNS = image_shape
    if MODE == "zeros" and divisors[0] * divisors[1] == 1:
        offset = c * strides[1] + r * steps[0] * strides[2] + s * steps[1] * strides[3]
        if CHECKED:
            mask &= is_inside(row + r * steps[0], ROWS)
            mask &= is_inside(column + s * steps[1], COLUMNS)
    else:
        h, w = row + r * steps[0], column + s * steps[1]
        if MODE == "zeros":
            h, h_inside = divide(h, divisors[0], ROWS)
            w, w_inside = divide(w, divisors[1], COLUMNS)
        else:
            h, h_inside = fold(h, ROWS, MODE)
            w, w_inside = fold(w, COLUMNS, MODE)
        offset = c * strides[1] + h * strides[2] + w * strides[3]
        mask &= h_inside & w_inside
    if LAYOUT.FLATTEN_K is not None:
        mask &= (r < taps[0]) & (s < taps[1])
    elif not LAYOUT.K_DIVIDES:
        mask &= c + lane < CHANNELS
    elif LAYOUT.PREFETCH:
        mask &= c < CHANNELS
    if LOOSE:
        pixels = side_by_side(image_ptr + offset, pixel)
    else:
        pixels = image_ptr + offset + pixel
    return tl.load(pixels, mask=mask, other=0.0)
