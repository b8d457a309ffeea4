"""Copies x and dy for wgrad_flat: planes as one row of elements (row, column, lane).

    x_out[g, a, b, c, (i, j, lane)] = x[n, g * GROUP_C + c, h, w]
    h = (i + FIRST + band * BAND_ROWS) * STRIDE_H + a'        n, band = divmod(lane, BANDS)
    w = j * STRIDE_W + b'
    dy_out[g, k, (p, q, lane)] = dy[n, g * GROUP_K + k, p + band * BAND_ROWS, q]

and 0 outside of the images. Planes (a, b) of x are the phases a' = (a * DIL_H - PAD_H) % STRIDE_H,
b' likewise, that taps read, see wgrad_flat. UNFOLDED copies have a plane for each tap s of a row of
the window, next to each other for every channel:

    "x"     x_out[g, a, c, s]        with b' = s * DIL_W - PAD_W
    "dy"    dy_out[g, b, k, e]       of s = b + e * tap_step(STRIDE_W, DIL_W), whose column q lies
                                     where this tap reads x

Values are rounded to the nearest TF32. One launch makes both copies, of LANES lanes from FIRST_LANE
on: the first PROGRAMS programs that of x. A tile is loaded along the axis on which the image is
contiguous, channels or columns, and stored along lanes.
"""

import triton
import triton.language as tl

from .hints import align_strides, round_down, side_by_side
from .phases import most_taps, tap_step
from .schedule import next_digit, widen


@triton.jit(do_not_specialize=["N", "PROGRAMS", "FIRST_LANE"])
def copy_flat(
    x_ptr, x_out_ptr, x_sizes, x_strides, dy_ptr, dy_out_ptr, dy_sizes, dy_strides,
    N, PITCH, LANES, FIRST_LANE, bands, PROGRAMS,
    WINDOW: tl.constexpr, UNFOLDED: tl.constexpr, X_LAYOUT: tl.constexpr, DY_LAYOUT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    LANES = round_down(LANES, 4)
    if program < PROGRAMS:
        PLANES: tl.constexpr = (
            WINDOW.S if UNFOLDED == "x" else min(WINDOW.S, tap_step(WINDOW.STRIDE_W, WINDOW.DIL_W))
        )
        copy_planes(
            program, x_ptr, x_out_ptr, x_sizes, x_strides, N, PITCH, LANES, FIRST_LANE, bands,
            min(WINDOW.R, tap_step(WINDOW.STRIDE_H, WINDOW.DIL_H)), PLANES,
            WINDOW.S if UNFOLDED == "x" else 1, WINDOW.STRIDE_H, WINDOW.STRIDE_W, True, WINDOW,
            UNFOLDED, X_LAYOUT,
        )  # fmt: skip
    else:
        PERIOD: tl.constexpr = tap_step(WINDOW.STRIDE_W, WINDOW.DIL_W)
        TAPS: tl.constexpr = most_taps(WINDOW.S, WINDOW.STRIDE_W, WINDOW.DIL_W)
        copy_planes(
            program - PROGRAMS, dy_ptr, dy_out_ptr, dy_sizes, dy_strides, N, PITCH, LANES,
            FIRST_LANE, bands, 1, min(WINDOW.S, PERIOD) * TAPS if UNFOLDED == "dy" else 1,
            TAPS if UNFOLDED == "dy" else 1, 1, 1, False, WINDOW, UNFOLDED, DY_LAYOUT,
        )  # fmt: skip


@triton.jit
def copy_planes(
    program, image_ptr, out_ptr, sizes, strides, N, PITCH, LANES, FIRST_LANE, bands,
    PLANES_H: tl.constexpr, PLANES_W: tl.constexpr, TAPS: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr, IS_X: tl.constexpr, WINDOW: tl.constexpr,
    UNFOLDED: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """One tile of one plane of a copy.

    `sizes` is (C, channels of a group, H, W, rows and columns of a plane, its first row), `bands`
    (BANDS, BAND_ROWS); TAPS of the PLANES_H * PLANES_W planes are those of one channel.
    """
    C, GROUP, H, W, ROWS, COLUMNS, FIRST = sizes
    BANDS, BAND_ROWS = bands
    BLOCK_P: tl.constexpr = LAYOUT.BLOCK_P
    strides = align_strides(strides, LAYOUT.X_AXIS, LAYOUT.X_ALIGN)
    cells = ROWS * PITCH
    if LAYOUT.X_AXIS == 1:  # a tile is lanes by cells, of several channels if those are small
        tile_p, program = next_digit(program, tl.cdiv(C * cells, BLOCK_P))
        plane, tile_l = next_digit(program, PLANES_H * PLANES_W)  # the next one reads what is in L2
        lane = tile_l * LAYOUT.BLOCK_C + tl.arange(0, LAYOUT.BLOCK_C)[:, None]  # [BLOCK_C, 1]
        index = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]  # [1, BLOCK_P]
        c, cell = index // cells, index % cells
        element = cell * LANES + lane
        mask = (lane < LANES) & (c < C)
    else:  # channels by elements of a plane
        tile_p, program = next_digit(program, tl.cdiv(cells * LANES, BLOCK_P))
        plane, tile_c = next_digit(program, PLANES_H * PLANES_W)
        c = tile_c * LAYOUT.BLOCK_C + tl.arange(0, LAYOUT.BLOCK_C)[:, None]  # [BLOCK_C, 1]
        element = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]  # [1, BLOCK_P]
        cell, lane = element // LANES, element % LANES
        mask = (c < C) & (cell < cells)

    first_h, first_w, exists = first_of(plane, PLANES_W, IS_X, WINDOW, UNFOLDED)
    n, band = (FIRST_LANE + lane) // BANDS, (FIRST_LANE + lane) % BANDS
    column = cell % PITCH
    begin = band * BAND_ROWS * STEP_H
    h, w = (cell // PITCH + FIRST) * STEP_H + first_h, column * STEP_W + first_w
    inside = (n < N) & (h + begin >= 0) & (h + begin < H) & (w >= 0) & (w < W) & exists
    inside &= (column < COLUMNS) & mask
    n, begin, c = widen(n, LAYOUT.INT64), widen(begin, LAYOUT.INT64), widen(c, LAYOUT.INT64)
    h, w = widen(h, LAYOUT.INT64), widen(w, LAYOUT.INT64)
    image_ptr += n * strides[0] + begin * strides[2]
    channels, pixels = c * strides[1], h * strides[2] + w * strides[3]
    if LAYOUT.X_AXIS == 1:
        pointers = side_by_side(image_ptr, channels + pixels)
    else:
        pointers = image_ptr + pixels + channels
    values = tl.load(pointers, mask=inside, other=0.0)  # [BLOCK_C, BLOCK_P]
    row = c // GROUP * (PLANES_H * PLANES_W // TAPS - 1) + plane // TAPS
    row = (row * GROUP + c) * TAPS + plane % TAPS
    tl.store(out_ptr + row * (cells * LANES) + element, rounded(values), mask=mask)


@triton.jit
def first_of(
    plane, PLANES: tl.constexpr, IS_X: tl.constexpr, WINDOW: tl.constexpr, UNFOLDED: tl.constexpr
):
    """(row, column) of an image in the first cell of a plane, and whether there is such a plane."""
    a, b = plane // PLANES, plane % PLANES
    first_h, first_w, s = a * 0, b * 0, b * 0
    if IS_X:
        first_h = phase_of(a, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H)
        if UNFOLDED == "x":
            first_w = b * WINDOW.DIL_W - WINDOW.PAD_W
        else:
            first_w = phase_of(b, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W)
    elif UNFOLDED == "dy":
        TAPS: tl.constexpr = most_taps(WINDOW.S, WINDOW.STRIDE_W, WINDOW.DIL_W)
        s = b // TAPS + b % TAPS * tap_step(WINDOW.STRIDE_W, WINDOW.DIL_W)
        first_w = -steps_of(s, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W)
    return first_h, first_w, s < WINDOW.S


@triton.jit
def steps_of(tap, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr):
    """(tap * DIL - PAD) / STRIDE, rounded down."""
    BEFORE: tl.constexpr = (PAD + STRIDE - 1) // STRIDE
    return (tap * DIL - PAD + BEFORE * STRIDE) // STRIDE - BEFORE


@triton.jit
def phase_of(tap, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr):
    """(tap * DIL - PAD) % STRIDE, not negative."""
    BEFORE: tl.constexpr = (PAD + STRIDE - 1) // STRIDE
    return (tap * DIL - PAD + BEFORE * STRIDE) % STRIDE


@triton.jit
def rounded(values):
    """float32 rounded to the nearest TF32, halves away from zero; infinities and NaNs kept."""
    bits = values.to(tl.int32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, (bits + 0x1000) & -0x2000, bits).to(tl.float32, bitcast=True)
