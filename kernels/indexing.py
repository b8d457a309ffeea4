"""The one index relation, and how a program finds its tile. Every kernel imports its algebra here.

    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise        (*)

Naming, in every kernel: upper case is an extent or a constexpr, one lower-case letter is a
coordinate (a scalar or a vector), a word is a tensor tile. `x_stride_h` is a stride in memory,
`STRIDE_H` the convolution's step. `w` is only ever the width coordinate; the filter is `weight`.
"""

import triton
import triton.language as tl


@triton.jit
def input_coordinate(out, tap, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr, EXTENT):
    """(*) forwards: the input coordinate that `out` reads through `tap`, and whether it exists."""
    coordinate = out * STRIDE - PAD + tap * DIL
    return coordinate, (coordinate >= 0) & (coordinate < EXTENT)


@triton.jit
def output_coordinate(inp, tap, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr, EXTENT):
    """(*) solved for the output: which output reads `inp` through `tap`, and whether one does."""
    scaled = inp + PAD - tap * DIL
    coordinate = scaled // STRIDE
    reads = (scaled >= 0) & (coordinate < EXTENT)
    if STRIDE > 1:
        reads &= coordinate * STRIDE == scaled
    return coordinate, reads


@triton.jit
def split_pixel(index, HEIGHT, WIDTH):
    """(n, row, column) of a pixel counted through whole planes, columns fastest."""
    column = index % WIDTH
    line = index // WIDTH
    return line // HEIGHT, line % HEIGHT, column


@triton.jit
def split_reduction(
    step, lane, CHANNELS, R: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
    ONE_TAP: tl.constexpr,
):  # fmt: skip
    """(r, s, channel, valid) of reduction element `lane` in `step`.

    ONE_TAP: a step covers BLOCK channels of one tap, so r and s are scalars. Otherwise it covers
    BLOCK elements of the flattened (r, s, channel), which wastes nothing on few channels.
    """
    if ONE_TAP:
        blocks = tl.cdiv(CHANNELS, BLOCK)
        tap = step // blocks
        channel = (step % blocks) * BLOCK + lane
        valid = channel < CHANNELS
    else:
        index = step * BLOCK + lane
        tap = index // CHANNELS
        channel = index % CHANNELS
        valid = tap < R * S
    return tap // S, tap % S, channel, valid


@triton.jit
def reduction_steps(
    CHANNELS, R: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, ONE_TAP: tl.constexpr
):
    """How many steps `split_reduction` needs to cover R * S * CHANNELS elements."""
    if ONE_TAP:
        return R * S * tl.cdiv(CHANNELS, BLOCK)
    return tl.cdiv(R * S * CHANNELS, BLOCK)


@triton.jit
def widen(index, WIDE: tl.constexpr):
    """`index` as int64 when the host found an offset of 2**31 or more, else as it is."""
    if WIDE:
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


@triton.jit
def round_down(number, BASE: tl.constexpr):
    """`number`, of which the host knows that BASE divides it: so the compiler sees that too."""
    return number // BASE * BASE
