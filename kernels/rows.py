"""Shared by the rows kernels: the rows that meet through a tap, and loads of an input row.

Inputs and outputs are counted from a tile's first: out * STRIDE + tap * DIL = inp, which is the
index relation without padding. All of it is decided while compiling.
"""

import triton
import triton.language as tl

from .padding import fold
from .schedule import as_block, widen
from .structs import at, tap_at


@triton.constexpr_function
def open_rows(R, STRIDE, DIL):
    """Largest number of output rows still being summed after an input row, with the next one."""
    return (R - 1) * DIL // STRIDE + 1


@triton.constexpr_function
def tap_of(inp, out, WINDOW, STRIDE, DIL):
    """The tap through which output `out` reads input `inp`, both counted from a tile; -1: none."""
    offset = inp - out * STRIDE
    return offset // DIL if offset % DIL == 0 and 0 <= offset <= (WINDOW - 1) * DIL else -1


@triton.constexpr_function
def is_read(inp, first, last, WINDOW, STRIDE, DIL):
    """Whether any output of first..last reads input `inp`."""
    return any(tap_of(inp, out, WINDOW, STRIDE, DIL) >= 0 for out in range(first, last + 1))


@triton.constexpr_function
def reaches(out, tap, STRIDE, PAD, DIL):
    """Whether any input reaches output `out` of an input gradient through a tap."""
    return (out + PAD - tap * DIL) % STRIDE == 0


@triton.constexpr_function
def reached_from(out, tap, STRIDE, PAD, DIL):
    """That input, from 0 where `out` is counted from 0."""
    return (out + PAD - tap * DIL) // STRIDE


@triton.constexpr_function
def rows_before(inp, first, last, WINDOW, STRIDE, DIL):
    """How many of the inputs first..inp - 1 any output of 0..last reads."""
    return sum(is_read(i, 0, last, WINDOW, STRIDE, DIL) for i in range(first, inp))


@triton.constexpr_function
def tap_index(k, c, r, s, CHANNELS, R, S):
    """Where load_taps puts a tap."""
    return ((k * CHANNELS + c) * R + r) * S + s


@triton.constexpr_function
def loads_ahead(X_ALIGN, STEP_P, LANE_Q, STRIDE_H, STRIDE_W):
    """Whether lanes without vectors load the next step's pixels while they add this one's.

    So do lanes that are planes and have one row a step; with a stride that takes more registers
    than a thread has.
    """
    return X_ALIGN == 1 and STEP_P == 1 and LANE_Q > 1 and STRIDE_H == STRIDE_W == 1


@triton.constexpr_function
def lane_count(BLOCK_Q, BLOCK_C, LANE_Q, X_ALIGN):
    """Lanes of a program along the axis of columns; of vectors, of all planes, and those idle."""
    if X_ALIGN == 1:
        return BLOCK_Q // LANE_Q
    return 1 << (BLOCK_Q // LANE_Q * BLOCK_C - 1).bit_length()


@triton.jit
def lanes_of(tile_c, first_q, PLANES, TILE: tl.constexpr, ACC: tl.constexpr):
    """(plane, q, mask, zeros, full) of a program's lanes.

    The plane, the first column and a block of sums of each lane, whether it has any, and whether
    all have. Of a tile with a single plane that is a number, not a block.
    """
    LANES: tl.constexpr = lane_count(TILE.BLOCK_Q, TILE.BLOCK_C, TILE.LANE_Q, TILE.X_ALIGN)
    WIDTH: tl.constexpr = TILE.BLOCK_Q // TILE.LANE_Q
    tl.static_assert(TILE.BLOCK_Q % TILE.LANE_Q == 0, "a tile has the columns of whole lanes")
    lane = tl.arange(0, LANES)[None, :]
    full = tile_c * TILE.BLOCK_C + TILE.BLOCK_C <= PLANES
    if TILE.BLOCK_C == 1:
        plane, mask, zeros = tile_c, lane < WIDTH, tl.zeros([1, LANES], ACC)
        full = full & (LANES == WIDTH)
    elif TILE.X_ALIGN > 1:
        plane = tile_c * TILE.BLOCK_C + lane // WIDTH
        mask = (lane < WIDTH * TILE.BLOCK_C) & (plane < PLANES)
        lane = lane % WIDTH
        zeros = tl.zeros([1, LANES], ACC)
        full = full & (LANES == WIDTH * TILE.BLOCK_C)
    else:
        plane = tile_c * TILE.BLOCK_C + tl.arange(0, TILE.BLOCK_C)[:, None]  # [BLOCK_C, 1]
        mask, zeros = plane < PLANES, tl.zeros([TILE.BLOCK_C, LANES], ACC)
    return plane, first_q + lane * TILE.LANE_Q, mask, zeros, full


@triton.jit
def inside_image(p, q, x_shape, y_shape, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Whether outputs from (p, q) on, and all that they read, are inside of their images."""
    OPEN: tl.constexpr = open_rows(WINDOW.R, WINDOW.STRIDE_H, WINDOW.DIL_H)
    # Input rows are loaded in whole steps.
    ROWS: tl.constexpr = (TILE.BLOCK_P + OPEN + TILE.STEP_P - 2) // TILE.STEP_P * TILE.STEP_P
    COLUMNS: tl.constexpr = (TILE.BLOCK_Q - 1) * WINDOW.STRIDE_W + (WINDOW.S - 1) * WINDOW.DIL_W
    h, w = p * WINDOW.STRIDE_H - WINDOW.PAD_H, q * WINDOW.STRIDE_W - WINDOW.PAD_W
    return (
        (h >= 0)
        & (h + ROWS * WINDOW.STRIDE_H <= x_shape[0])
        & (w >= 0)
        & (w + COLUMNS < x_shape[1])
        & (p + TILE.BLOCK_P <= y_shape[0])
        & (q + TILE.BLOCK_Q <= y_shape[1])
    )


@triton.jit
def widen_strides(strides, INT64: tl.constexpr):
    """The strides of a bank of filters, for products with numbers of the compiler."""
    return (
        strides[0],
        widen(strides[1], INT64),
        widen(strides[2], INT64),
        widen(strides[3], INT64),
        widen(strides[4], INT64),
    )


@triton.jit
def load_of_planes(pointers, planes):
    """One value for each plane; a single plane needs no mask."""
    if pointers.type.is_block():
        value = tl.load(pointers, mask=planes, other=0.0)
    else:
        value = tl.load(pointers)
    return value


@triton.jit
def load_taps(
    weight_ptr, strides, planes, FILTERS: tl.constexpr, CHANNELS: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, like,
):  # fmt: skip
    """The taps (k, c, r, s) of a bank, s fastest: a tuple of blocks like `like`.

    Those of a single plane come by a pointer and not by a block of one: NVIDIA's compiler then
    keeps them in uniform registers, of which the sums need none.
    """
    weights = ()
    for tap in tl.static_range(FILTERS * CHANNELS * R * S):
        k, c = tap // (CHANNELS * R * S), tap // (R * S) % CHANNELS
        pointer = tap_at(weight_ptr, strides, 0, k, c, tap // S % R, tap % S)
        weight = load_of_planes(pointer, planes)
        weights = weights + (tl.broadcast_to(weight.to(like.dtype), like.shape),)
    return weights


@triton.jit
def load_row(
    plane, strides, row, q, mask, x_shape, S: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_W: tl.constexpr, DIL_W: tl.constexpr, MODE: tl.constexpr, LANE_Q: tl.constexpr,
    ACC: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The pixels of an input row that LANE_Q columns from q on read, from the first to the last."""
    if MASKED:
        row, row_inside = fold(as_block(row), x_shape[0], MODE)  # [1, 1]
        mask = mask & row_inside
    pixels = ()
    for i in tl.static_range((LANE_Q - 1) * STRIDE_W + (S - 1) * DIL_W + 1):
        if is_read(i, 0, LANE_Q - 1, S, STRIDE_W, DIL_W):
            w = q * STRIDE_W - PAD_W + i
            if MASKED:
                w, w_inside = fold(w, x_shape[1], MODE)
                x = tl.load(at(plane, strides, 0, 0, row, w), mask=mask & w_inside, other=0.0)
            else:
                x = tl.load(at(plane, strides, 0, 0, row, w))  # [BLOCK_C, lanes]
            pixels = pixels + (x.to(ACC),)
        else:  # never read; keeps the tuple's index aligned
            pixels = pixels + (pixels[i - 1],)
    return pixels
