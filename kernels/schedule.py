"""Decodes program ids to tiles and indices to pixels, as mixed-radix numbers."""

import triton
import triton.language as tl


@triton.jit
def widen(index, INT64: tl.constexpr):
    """`index` as int64 when the host found an offset of 2**31 or more, else as it is."""
    if INT64:
        index = tl.cast(index, tl.int64)  # not .to: interpreted loops count in Python's int
    return index


@triton.jit
def as_block(scalar):
    """A scalar as a block [1, 1]: a broadcast boolean is an integer to Triton 3.9's interpreter."""
    return tl.zeros([1, 1], tl.int32) + scalar


@triton.jit
def next_digit(number, base):
    """(number % base, number // base): program ids are mixed-radix numbers, fastest digit first."""
    return number % base, number // base


@triton.jit
def part_of(steps, part, PARTS):
    """(first, last + 1) of the steps of one of PARTS: as many as the others have, or one more.

    No part is empty if there are as many steps as parts.
    """
    least, longer = steps // PARTS, steps % PARTS
    first = part * least + tl.minimum(part, longer)
    return first, first + least + tl.where(part < longer, 1, 0)


@triton.jit
def first_pixel(extent, BLOCK: tl.constexpr, last, STRIDE: tl.constexpr):
    """Row or column of dy at which the first box of a weight gradient begins: 0, or before that.

    `last` is the row or column of x that the last of the taps that share a box reads for row or
    column 0 of dy. Where a box overhangs dy, x has to be zero too: zero times infinity is NaN. So
    boxes overhang before the first pixel if all taps read padding there, else behind the last one.
    """
    return tl.where(last < STRIDE, extent - tl.cdiv(extent, BLOCK) * BLOCK, 0)


#: Tiles of rows that are paired with one tile of columns before the next one.
TILE_GROUP = tl.constexpr(8)


@triton.jit
def next_tile(number, tiles_m, tiles_n):
    """(tile_m, tile_n, number // (tiles_m * tiles_n)), ordered so that little is read from memory.

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
def split_pixel(index, HEIGHT, WIDTH):
    """(n, row, column) of a pixel's index, columns fastest."""
    column = index % WIDTH
    line = index // WIDTH
    return line // HEIGHT, line % HEIGHT, column


@triton.jit
def next_pixel(n, row, column, HEIGHT, WIDTH, BLOCK: tl.constexpr):
    """split_pixel of the index plus BLOCK, by additions and carries instead of divisions."""
    column += BLOCK % WIDTH
    carry = column >= WIDTH
    column -= tl.where(carry, WIDTH, 0)
    row += BLOCK // WIDTH % HEIGHT + tl.where(carry, 1, 0)
    carry = row >= HEIGHT
    row -= tl.where(carry, HEIGHT, 0)
    return n + BLOCK // WIDTH // HEIGHT + tl.where(carry, 1, 0), row, column
