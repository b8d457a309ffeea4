"""Neighbouring columns of a lane: loaded in aligned pieces, split in registers.

A lane that owns columns q .. q + LANE - 1, with q a multiple of LANE, also reads some beside them.
Blocks of LANE columns are aligned. Of each block, the lane loads the smallest aligned piece, of at
least 4 bytes, that has all columns it reads.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def piece_count(first, count, LANE):
    """Pieces that hold columns first .. first + count - 1, counted from the lane's first."""
    return (first + count - 1) // LANE - first // LANE + 1


@triton.constexpr_function
def piece_size(i, first, count, LANE, LEAST):
    """Columns of piece i."""
    block = (first // LANE + i) * LANE
    start, end = max(first, block) - block, min(first + count, block + LANE) - block
    size = min(LEAST, LANE)
    while start // size != (end - 1) // size:
        size *= 2
    return size


@triton.constexpr_function
def piece_start(i, first, count, LANE, LEAST):
    """First column of piece i, counted from the lane's first."""
    block = (first // LANE + i) * LANE
    size = piece_size(i, first, count, LANE, LEAST)
    return block + (max(first, block) - block) // size * size


@triton.constexpr_function
def columns_end(first, count, LANE):
    """First column after all pieces, counted from the lane's first."""
    return ((first + count - 1) // LANE + 1) * LANE


@triton.jit
def load_columns(
    pointers, mask, FIRST: tl.constexpr, COUNT: tl.constexpr, LANE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Columns FIRST .. FIRST + COUNT - 1 of a row, counted from each lane's first, as ACC.

    `pointers` [rows, lanes] point to the lanes' first columns, at multiples of LANE elements; all
    columns of a piece must exist. Lanes whose `mask` (broadcast to [rows, lanes]) is false get
    zeros; with None all lanes load. Returns a tuple of blocks [rows, lanes].
    """
    LEAST: tl.constexpr = max(1, 32 // pointers.dtype.element_ty.primitive_bitwidth)
    columns = ()
    for i in tl.static_range(piece_count(FIRST, COUNT, LANE)):
        columns = columns + _load_piece(
            pointers, mask, piece_start(i, FIRST, COUNT, LANE, LEAST),
            piece_size(i, FIRST, COUNT, LANE, LEAST), FIRST, COUNT, ACC,
        )  # fmt: skip
    return columns


@triton.jit
def _load_piece(
    pointers, mask, START: tl.constexpr, SIZE: tl.constexpr, FIRST: tl.constexpr,
    COUNT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The columns of a piece that are among FIRST .. FIRST + COUNT - 1."""
    addresses = tl.expand_dims(pointers + START, 2) + tl.arange(0, SIZE)[None, None, :]
    if mask is None:
        piece = tl.load(addresses)  # [rows, lanes, SIZE]
    else:
        piece = tl.load(addresses, mask=tl.expand_dims(mask, 2), other=0.0)
    parts = (piece.to(ACC),)
    if SIZE >= 2:
        parts = _halve(parts, SIZE // 2)
    if SIZE >= 4:
        parts = _halve(parts, SIZE // 4)
    if SIZE >= 8:
        parts = _halve(parts, SIZE // 8)
    columns = ()
    for i in tl.static_range(SIZE):
        if FIRST <= START + i and START + i < FIRST + COUNT:
            column = tl.reshape(parts[i], [pointers.shape[0], pointers.shape[1]])
            columns = columns + (column,)
    return columns


@triton.jit
def _halve(blocks, HALF: tl.constexpr):
    """The first and second half of each block [rows, lanes, 2 * HALF], one after the other."""
    halves = ()
    for i in tl.static_range(len(blocks)):
        pairs = tl.reshape(blocks[i], [blocks[i].shape[0], blocks[i].shape[1], 2, HALF])
        first, second = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
        halves = halves + (first, second)
    return halves
