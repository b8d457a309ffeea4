"""A GEMM's loop over taps and channels, with operands through pointers and through descriptors."""

import triton
import triton.language as tl

from .hints import along, at_least_one, side_by_side
from .indexing import divide, is_inside
from .padding import fold
from .schedule import part_of, widen
from .versions import fence_copies, finish_products, one_by_one


@triton.constexpr_function
def rows_of_step(CHANNELS, MOST_S, BLOCK):
    """Rows (s, channel) of a window that BLOCK elements cover, at least one."""
    return max(1, BLOCK // (MOST_S * CHANNELS))


@triton.jit
def reduction_steps(
    CHANNELS, R, S, FLATTEN_K: tl.constexpr, MOST_S: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Number of steps that sum CHANNELS through R * S taps: see first_step."""
    if FLATTEN_K is None:
        steps = R * S * tl.cdiv(CHANNELS, BLOCK)
    else:
        rows = tl.cdiv(R, rows_of_step(FLATTEN_K, MOST_S, BLOCK))
        steps = rows * tl.cdiv(MOST_S * FLATTEN_K, BLOCK)
    return steps


@triton.jit
def first_step(
    step, lane, R, S, SPLIT: tl.constexpr,
    FLATTEN_K: tl.constexpr, MOST_S: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(r, s, channel) of a program's first step through taps and channels: 0, or `step` if SPLIT.

    If FLATTEN_K is None a step covers BLOCK channels of one tap. These are scalars, the channel the
    first of BLOCK. Otherwise FLATTEN_K is the number of channels, few, and a step covers BLOCK
    elements (r, s, channel) of the window, whole rows of it if it can: these are of element `lane`.
    """
    if FLATTEN_K is not None:
        r, s, channel = split_step(step, lane, R, FLATTEN_K, MOST_S, INT64, BLOCK)
    elif not SPLIT:
        r, s, channel = widen(0, INT64), widen(0, INT64), widen(0, INT64)
    else:
        taps, row = tl.maximum(R * S, 1), tl.maximum(S, 1)  # a phase may have no taps
        tap = step % taps
        r, s = widen(tap // row, INT64), widen(tap % row, INT64)
        channel = widen(step // taps, INT64) * BLOCK
    return r, s, channel


@triton.jit
def next_step(
    step, r, s, channel, lane, R, S,
    POINT: tl.constexpr, FLATTEN_K: tl.constexpr, MOST_S: tl.constexpr, INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(r, s, channel) of the step after number `step`, whose (r, s, channel) are given.

    Taps are innermost: their pixels overlap, so all but the first are cache hits. POINT: there is
    one tap, and the compiler sees that r and s stay zero.
    """
    if FLATTEN_K is not None:
        r, s, channel = split_step(step + 1, lane, R, FLATTEN_K, MOST_S, INT64, BLOCK)
    elif POINT:
        channel += BLOCK
    else:
        s += 1
        r += tl.where(s < S, 0, 1)
        s = tl.where(s < S, s, 0)
        channel += tl.where(r < R, 0, BLOCK)
        r = tl.where(r < R, r, 0)
    return r, s, channel


@triton.jit
def split_step(
    step, lane, R,
    FLATTEN_K: tl.constexpr, MOST_S: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(r, s, channel) of element `lane` in a step of BLOCK elements, see first_step.

    Rows are MOST_S taps long, a constant: s >= S or r >= R means that there is no such element. If
    steps are whole rows, s and channel are the same in all of them and are hoisted out of the loop.
    """
    row: tl.constexpr = MOST_S * FLATTEN_K
    rows: tl.constexpr = rows_of_step(FLATTEN_K, MOST_S, BLOCK)
    if rows > 1:
        index = widen(lane, INT64)
        r = tl.where(index // row < rows, step * rows + index // row, R)
        index %= row
    else:
        index = widen(step % tl.cdiv(row, BLOCK), INT64) * BLOCK + lane
        r = widen(step // tl.cdiv(row, BLOCK), INT64)
    return r, index // FLATTEN_K, index % FLATTEN_K


@triton.jit
def add_taps_gemm(
    acc, image_ptr, pixel, row, column, pixel_mask, weight_ptr, filter, filter_mask,
    image_shape, CHANNELS, taps, steps, divisors, image_strides, tap_strides, split, SPLITS,
    MODE: tl.constexpr, CHECKED: tl.constexpr, POINT: tl.constexpr, REACHED: tl.constexpr,
    LOOSE: tl.constexpr, MOST_S: tl.constexpr, LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc plus the image times the weight, over all taps and summed channels.

    LAYOUT.SPLIT: over steps of part `split` of SPLITS only, see part_of.

    Tap (r,s) of `taps`, (R, S), reads the image at (row + r * steps[0]) / divisors[0], where that
    is a whole number, and a column likewise. `pixel` and `filter` are offsets of what does not
    depend on the tap.

    Offsets of pixels and lanes are computed before the loop; a step adds one scalar for its tap and
    first channel. With few channels, LAYOUT.FLATTEN_K of them if not None, a step instead covers
    BLOCK_K elements (r,s,channel), one per lane.

    MOST_S is an upper bound of S. LAYOUT.K_DIVIDES: BLOCK_K divides the channels. CHECKED: pixels
    may read outside of the image. POINT: there is one tap. REACHED: there is at least one. LOOSE:
    pixels lie along the last axis, and the compiler sees no runs of addresses there.

    LAYOUT.PREFETCH: the image is loaded into registers one step ahead, because its pieces are too
    small for cp.async, by which Triton's pipeline copies to shared memory.
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

    number = reduction_steps(CHANNELS, R, S, FLAT, MOST_S, BLOCK_K)
    first = 0
    if LAYOUT.SPLIT:
        first, last = part_of(number, split, SPLITS)
        number = last - first
    r, s, c = first_step(first, lane, R, S, LAYOUT.SPLIT, FLAT, MOST_S, INT64, BLOCK_K)
    if PREFETCH:
        image = load_image(
            image_ptr, pixel, row, column, pixel_mask, r, s, c, lane, image_shape, CHANNELS,
            taps, steps, divisors, image_strides, MODE, CHECKED, LOOSE, LAYOUT, PRECISION,
        )  # fmt: skip
    for i in range(at_least_one(number) if REACHED else number):
        weight = load_weight(
            weight_ptr, filter, filter_mask, first + i, r, s, c, weight_lane, CHANNELS, taps,
            tap_strides, MOST_S, LAYOUT, INT64, BLOCK_K,
        )  # fmt: skip
        if PREFETCH:
            r, s, c = next_step(first + i, r, s, c, lane, R, S, POINT, FLAT, MOST_S, INT64, BLOCK_K)
        loaded = load_image(
            image_ptr, pixel, row, column, pixel_mask, r, s, c, lane, image_shape, CHANNELS,
            taps, steps, divisors, image_strides, MODE, CHECKED, LOOSE, LAYOUT, PRECISION,
        )  # fmt: skip
        if not PREFETCH:
            image = loaded
            r, s, c = next_step(first + i, r, s, c, lane, R, S, POINT, FLAT, MOST_S, INT64, BLOCK_K)
        image = image.to(weight.dtype)
        fence_copies(weight, PRECISION)
        if AXIS == 0:
            acc = tl.dot(image, weight, acc, input_precision=PRECISION, out_dtype=acc.dtype)
            if loaded.dtype != weight.dtype:  # the image is in registers
                acc = finish_products(acc)
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
    if LAYOUT.SPREAD:
        return tl.load(weight_ptr + filter + (i * BLOCK_K + lane), mask=mask, other=0.0)
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
    PRECISION: tl.constexpr,
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
    elif LAYOUT.PIXEL_AXIS == 1:
        pixels = one_by_one(image_ptr + offset, pixel, PRECISION)
    else:
        pixels = image_ptr + offset + pixel
    return tl.load(pixels, mask=mask, other=0.0)


@triton.jit
def add_taps_tma(
    acc, image_desc, weight_desc, corner, weight_corner, CHANNELS, TAP_COLUMNS, rows, columns,
    split, SPLITS,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sums [channels, pixels] of a box plus the image's boxes times the weight, tap by tap.

    `rows` is (first tap, number of taps, window rows and image rows from one to the next). Tap
    (i, j) of these rows and columns reads the box whose corner is (n, row + i * rows[3], ...),
    through CHANNELS channels from the corner's on. The weight is a matrix with TAP_COLUMNS columns
    for each tap of the window. Its rows are those of the sums and its columns the summed channels,
    or, CROSSWISE, the other way round. LAYOUT.SPLIT: the steps of part `split` of SPLITS only.
    """
    first_r, taps_r, step_r, step_row = rows
    first_s, taps_s, step_s, step_column = columns
    n, row, column, channel = corner
    weight_row, weight_column = weight_corner
    taps = taps_r * taps_s
    # Taps are innermost: their boxes overlap, and all but the first find them in L2.
    first, last = 0, taps * tl.cdiv(CHANNELS, BLOCK_K)
    if LAYOUT.SPLIT:
        first, last = part_of(last, split, SPLITS)
    elif LAYOUT.REACHED:
        tl.assume(last > first)  # as at_least_one
    for step in range(first, last):
        i, j = (step % taps) // taps_s, step % taps_s
        r, s, summed = first_r + i * step_r, first_s + j * step_s, step // taps * BLOCK_K
        if LAYOUT.FLIP:
            r, s = WINDOW.R - 1 - r, WINDOW.S - 1 - s
        first_column = (r * WINDOW.S + s) * TAP_COLUMNS + weight_column
        if LAYOUT.CROSSWISE:
            weight = weight_desc.load([weight_row + summed, first_column]).T
        else:
            weight = weight_desc.load([weight_row, first_column + summed])  # [BLOCK_N, BLOCK_K]
        h, w, c = row + i * step_row, column + j * step_column, channel + summed
        if LAYOUT.NCHW:
            image = image_desc.load([n, c, h, w]).reshape(BLOCK_K, acc.shape[1])
        else:
            image = image_desc.load([n, h, w, c]).reshape(acc.shape[1], BLOCK_K).T
        acc = tl.dot(weight, image, acc, input_precision=PRECISION)
    return acc
