"""The one index relation, and how a program finds its tile. Every kernel imports its algebra here.

    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise        (*)

Naming, in every kernel: upper case is an extent or a constexpr, one lower-case letter is a
coordinate (a scalar or a vector), a word is a tensor tile. `x_stride_h` is a stride in memory,
`STRIDE_H` the convolution's step. `w` is only ever the width coordinate; the filter is `weight`.
"""

import math

import triton
import triton.language as tl

from .versions import FIRST_AXIS_WINS


@triton.jit
def input_coordinate(
    out, tap, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr, EXTENT,
    MODE: tl.constexpr,
):  # fmt: skip
    """(*) forwards: the input coordinate that `out` reads through `tap`, and whether it exists."""
    return fold(out * STRIDE - PAD + tap * DIL, EXTENT, MODE)


@triton.jit
def read_by(p, q, r, s, x_shape, WINDOW: tl.constexpr, mask):
    """(*) forwards: the input (h, w) that output (p, q) reads through tap (r, s).

    Also returns `mask` where that exists.
    """
    h, h_inside = input_coordinate(
        p, r, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H, x_shape[0], WINDOW.MODE
    )
    w, w_inside = input_coordinate(
        q, s, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W, x_shape[1], WINDOW.MODE
    )
    return h, w, mask & h_inside & w_inside


@triton.jit
def reader_of(h, w, r, s, y_shape, WINDOW: tl.constexpr, mask):
    """(*) solved: the output (p, q) that reads input (h, w) through tap (r, s).

    Also returns `mask` where one does.
    """
    p, p_inside = output_coordinate(h, r, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H, y_shape[0])
    q, q_inside = output_coordinate(w, s, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W, y_shape[1])
    return p, q, mask & p_inside & q_inside


@triton.jit
def fold(coordinate, EXTENT, MODE: tl.constexpr):
    """Where the image holds what the padding shows at `coordinate`, and whether it does anywhere.

    One turn is enough: the host lets nothing be padded by more than that. What no output reads may
    still lie outside.
    """
    if MODE == "reflect":
        coordinate = EXTENT - 1 - tl.abs(EXTENT - 1 - tl.abs(coordinate))
    elif MODE == "replicate":
        coordinate = tl.minimum(tl.maximum(coordinate, 0), EXTENT - 1)
    elif MODE == "circular":
        coordinate += tl.where(coordinate < 0, EXTENT, 0)
        coordinate -= tl.where(coordinate < EXTENT, 0, EXTENT)
    else:
        tl.static_assert(MODE == "zeros", "MODE is zeros, reflect, replicate or circular")
    return coordinate, (coordinate >= 0) & (coordinate < EXTENT)


@triton.jit
def is_inside(coordinate, EXTENT):
    """0 <= coordinate < EXTENT by one comparison: without its sign, what is negative is large."""
    if coordinate.dtype == tl.int64:
        inside = tl.cast(coordinate, tl.uint64) < tl.cast(EXTENT, tl.uint64)
    else:
        inside = tl.cast(coordinate, tl.uint32) < tl.cast(EXTENT, tl.uint32)
    return inside


@triton.jit
def unfold(
    coordinate, image, EXTENT, BEFORE: tl.constexpr, AFTER: tl.constexpr, MODE: tl.constexpr
):
    """`fold` backwards: the padded coordinate that is number `image` of those which show this one.

    Image 0 is the coordinate itself. Also returns whether there is such an image; `images` counts.
    """
    if MODE == "replicate":
        before = (image <= BEFORE) & (coordinate == 0)
        after = (image > BEFORE) & (coordinate == EXTENT - 1)
        shown = tl.where(image <= BEFORE, -image, EXTENT - 1 + image - BEFORE)
        exists = before | after
    elif MODE == "reflect":
        shown = tl.where(image == 1, -coordinate, 2 * (EXTENT - 1) - coordinate)
        exists = tl.where(
            image == 1,
            (coordinate > 0) & (coordinate <= BEFORE),
            (coordinate < EXTENT - 1) & (coordinate >= EXTENT - 1 - AFTER),
        )
    else:
        tl.static_assert(MODE == "circular", "zeros show nothing")
        shown = tl.where(image == 1, coordinate - EXTENT, coordinate + EXTENT)
        exists = tl.where(image == 1, shown >= -BEFORE, shown < EXTENT + AFTER)
    return tl.where(image == 0, coordinate, shown), (image == 0) | exists


@triton.jit
def images(BEFORE: tl.constexpr, AFTER: tl.constexpr, MODE: tl.constexpr):
    """How many images `unfold` has to be asked for."""
    if MODE == "replicate":
        return 1 + BEFORE + AFTER
    return 3


@triton.jit
def split_frame(index, x_shape, hole):
    """(n, h, w) of a pixel counted through the frame: all that is not in the hole.

    Whole rows above and below the hole, (top, bottom, left, right), come first, then what is left
    and right of it.
    """
    H, W = x_shape
    HOLE_TOP, HOLE_BOTTOM, HOLE_LEFT, HOLE_RIGHT = hole
    beside = W - HOLE_RIGHT + HOLE_LEFT
    whole = (H - HOLE_BOTTOM + HOLE_TOP) * W
    pixels = whole + (HOLE_BOTTOM - HOLE_TOP) * beside
    n, index = index // pixels, index % pixels
    side = tl.maximum(index - whole, 0)
    divisor = tl.maximum(beside, 1)
    in_rows = index < whole
    h = tl.where(in_rows, index // W, HOLE_TOP + side // divisor)
    w = tl.where(in_rows, index % W, side % divisor)
    h += tl.where(in_rows & (h >= HOLE_TOP), HOLE_BOTTOM - HOLE_TOP, 0)
    w += tl.where(in_rows | (w < HOLE_LEFT), 0, HOLE_RIGHT - HOLE_LEFT)
    return n, h, w


@triton.jit
def output_coordinate(inp, tap, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr, EXTENT):
    """(*) solved for the output: which output reads `inp` through `tap`, and whether one does."""
    return divide(inp + PAD - tap * DIL, STRIDE, EXTENT)


@triton.jit
def divide(scaled, STRIDE: tl.constexpr, EXTENT):
    """scaled / STRIDE, and whether that is a whole coordinate inside the image."""
    coordinate = scaled // STRIDE
    inside = (scaled >= 0) & (coordinate < EXTENT)
    if STRIDE > 1:
        inside &= coordinate * STRIDE == scaled
    return coordinate, inside


@triton.jit
def split_pixel(index, HEIGHT, WIDTH):
    """(n, row, column) of a pixel counted through whole planes, columns fastest."""
    column = index % WIDTH
    line = index // WIDTH
    return line // HEIGHT, line % HEIGHT, column


@triton.jit
def next_pixel(n, row, column, HEIGHT, WIDTH, BLOCK: tl.constexpr):
    """What split_pixel gives for the index plus BLOCK: additions and carries, but no divisions."""
    column += BLOCK % WIDTH
    carry = column >= WIDTH
    column -= tl.where(carry, WIDTH, 0)
    row += BLOCK // WIDTH % HEIGHT + tl.where(carry, 1, 0)
    carry = row >= HEIGHT
    row -= tl.where(carry, HEIGHT, 0)
    return n + BLOCK // WIDTH // HEIGHT + tl.where(carry, 1, 0), row, column


@triton.jit
def side_by_side(pointers, offset):
    """Their sum, of two axes, read by threads along the last: the compiler sees no runs in either.

    Before Triton 3.7 a run of two is claimed for that. Of no alignment: accesses stay single ones.
    The sum is made here because a hint belongs to an operation, and an argument is none.
    """
    pointers += offset
    if FIRST_AXIS_WINS:
        pointers = tl.max_contiguous(tl.multiple_of(pointers, [1, 1]), [1, 2])
    return pointers


@triton.constexpr_function
def rows_of_step(CHANNELS, MOST_S, BLOCK):
    """How many rows (s, channel) of a window BLOCK elements cover, one at least."""
    return max(1, BLOCK // (MOST_S * CHANNELS))


@triton.jit
def reduction_steps(
    CHANNELS, R, S, FLATTEN_K: tl.constexpr, MOST_S: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """How many steps sum CHANNELS through R * S taps: see first_step."""
    if FLATTEN_K is None:
        steps = R * S * tl.cdiv(CHANNELS, BLOCK)
    else:
        rows = tl.cdiv(R, rows_of_step(FLATTEN_K, MOST_S, BLOCK))
        steps = rows * tl.cdiv(MOST_S * FLATTEN_K, BLOCK)
    return steps


@triton.jit
def first_step(
    lane, R, FLATTEN_K: tl.constexpr, MOST_S: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr
):
    """(r, s, channel) of the first step of a reduction through taps and channels.

    If FLATTEN_K is None a step covers BLOCK channels of one tap. These are scalars, the channel the
    first of BLOCK. Otherwise FLATTEN_K is the number of channels, few, and a step covers BLOCK
    elements (r, s, channel) of the window, whole rows of it if it can: these are of element `lane`.
    """
    if FLATTEN_K is None:
        r, s, channel = widen(0, INT64), widen(0, INT64), widen(0, INT64)
    else:
        r, s, channel = split_step(0, lane, R, FLATTEN_K, MOST_S, INT64, BLOCK)
    return r, s, channel


@triton.jit
def next_step(
    step, r, s, channel, lane, R, S,
    POINT: tl.constexpr, FLATTEN_K: tl.constexpr, MOST_S: tl.constexpr, INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(r, s, channel) of the step after number `step`, of which they are given.

    Taps are innermost: what they read overlaps, and all but the first find it in a cache. POINT:
    there is one tap, and the compiler sees that r and s stay zero.
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

    Rows have MOST_S taps, a constant; S or more of them, or R rows, say that there is no such
    element. A step of whole rows has the same s and channels as any other: the compiler finds them
    before the loop.
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
def widen(index, INT64: tl.constexpr):
    """`index` as int64 when the host found an offset of 2**31 or more, else as it is."""
    if INT64:
        index = tl.cast(index, tl.int64)  # not .to: interpreted loops count in Python's int
    return index


@triton.jit
def as_block(scalar):
    """A scalar as a block [1, 1]: Triton 3.9's interpreter makes integers of broadcast booleans."""
    return tl.zeros([1, 1], tl.int32) + scalar


@triton.jit
def next_digit(number, base):
    """(number % base, number // base): program ids are mixed-radix numbers, fastest digit first."""
    return number % base, number // base


#: Tiles of rows that take one tile of columns before the next one.
TILE_GROUP = tl.constexpr(8)


@triton.jit
def next_tile(number, tiles_m, tiles_n):
    """(tile_m, tile_n, number // (tiles_m * tiles_n)) in an order that reads little from memory.

    Programs that run side by side, 132 on a H100, are 8 tiles of rows by 16.5 of columns. Columns
    first, if there are 64 tiles of them, these would be 2 by 64: in tiles of 128 they read 3100
    rows and columns, not 8500, and no less where columns have 16 tiles or fewer. In bf16 with 3x3
    taps of 512 channels 3100 are 8 * 128 * 512 * 2 bytes (1 MB) of pixels, halos apart, and
    16.5 * 128 * 4608 * 2 (19 MB) of the weight, which L2 keeps (40 MB on an A100, 50 on a H100).
    """
    index, number = next_digit(number, tiles_m * tiles_n)
    first = index // (TILE_GROUP * tiles_n) * TILE_GROUP
    height = tl.minimum(tiles_m - first, TILE_GROUP)
    index -= first * tiles_n
    return first + index % height, index // height, number


@triton.jit
def at_least_one(steps):
    """`steps` of a loop that the compiler now sees to be entered.

    Else LLVM moves the zeros that sums start with to the way around the loop, and ptxas waits for
    each of its products (Triton 3.6, wgmma).
    """
    return tl.maximum(steps, 1)


@triton.jit
def along(AXIS: tl.constexpr, SIZE: tl.constexpr):
    """0, 1, ... SIZE - 1 along one axis of two."""
    return tl.expand_dims(tl.arange(0, SIZE), 1 - AXIS)


@triton.jit
def round_down(number, BASE: tl.constexpr):
    """`number`, of which the host knows that BASE divides it: so the compiler sees that too."""
    return number // BASE * BASE


@triton.jit
def align_strides(strides, PIXEL_AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """An image's strides: the compiler now sees that ALIGN divides all but the innermost."""
    n, c, h, w = strides
    if PIXEL_AXIS == 0:
        w = round_down(w, ALIGN)
    else:
        c = round_down(c, ALIGN)
    return round_down(n, ALIGN), c, round_down(h, ALIGN), w


@triton.jit
def align_planes(strides, ALIGN: tl.constexpr):
    """An image's strides: the compiler now sees that ALIGN divides all but that of columns."""
    n, c, h, w = strides
    return round_down(n, ALIGN), round_down(c, ALIGN), round_down(h, ALIGN), w


@triton.jit
def align_tap_strides(strides, ALIGN: tl.constexpr):
    """A filter bank's strides: the compiler now sees that ALIGN divides those of k, r and s."""
    n, k, c, r, s = strides
    return n, round_down(k, ALIGN), c, round_down(r, ALIGN), round_down(s, ALIGN)


@triton.jit
def align_extents(c, w, PIXEL_AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """An image's channels and columns: the compiler now sees that ALIGN divides the innermost."""
    if PIXEL_AXIS == 0:
        c = round_down(c, ALIGN)
    else:
        w = round_down(w, ALIGN)
    return c, w


@triton.jit
def phases(STRIDE: tl.constexpr, EXTENT):
    """How many phases, h % STRIDE, the inputs h < EXTENT have."""
    if STRIDE == 1:
        return 1
    return tl.minimum(STRIDE, EXTENT)


@triton.constexpr_function
def tap_step(STRIDE, DIL):
    """Every how many taps (*) comes to the same phase, h % STRIDE, again."""
    return STRIDE // math.gcd(STRIDE, DIL)


@triton.constexpr_function
def most_taps(TAPS, STRIDE, DIL):
    """How many taps a phase has at most, a constexpr: in Triton 3.6 tl.cdiv gives none."""
    return -(-TAPS // tap_step(STRIDE, DIL))


@triton.jit
def phase_taps(
    phase, TAPS: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr
):
    """The taps through which outputs p read inputs of one phase: h = phase + STRIDE * j.

    By (*), j = p + shift through the first of these taps. Each next one is `step` taps further and
    reads j + step_j. There may be no such taps.

    Returns (first tap, number of taps, shift, step, step_j).
    """
    step: tl.constexpr = tap_step(STRIDE, DIL)
    first = 0
    if STRIDE > 1:
        first = TAPS
        for i in tl.static_range(min(step, TAPS)):
            tap = min(step, TAPS) - 1 - i
            first = tl.where((tap * DIL - PAD - phase) % STRIDE == 0, tap, first)
    shift = (first * DIL - PAD - phase) // STRIDE  # exact where there are taps
    return first, tl.cdiv(TAPS - first, step), shift, step, DIL * step // STRIDE
