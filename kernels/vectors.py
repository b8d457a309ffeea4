"""Image rows with contiguous columns, loaded and stored as vectors: several columns per lane.

A lane loads the LANE_Q * STRIDE_W columns that it owns of an input row at once, in 32-bit words, or
in elements where those are larger. Columns that its outputs read left and right of these are loaded
separately, in pieces: words, several words where these take fewer loads, or single pixels where
padded columns are not neighbours in the image.
Columns are counted from a lane's first one.
"""

import triton
import triton.language as tl

from .padding import fold
from .rows import is_read
from .schedule import as_block


@triton.constexpr_function
def columns_per_word(dtype):
    """Elements of this type in 32 bits; 1 of a larger type."""
    return max(1, 32 // dtype.primitive_bitwidth)


@triton.constexpr_function
def _columns_of(WINDOW):
    """(S, STRIDE_W, PAD_W, DIL_W) of a window, by index: Triton 3.6 drops the fields' names."""
    fields = [getattr(field, "value", field) for field in WINDOW]
    return fields[1], fields[3], fields[5], fields[9]


@triton.constexpr_function
def _pieces(WINDOW, LANE_Q, PIECE):
    """First columns of the pieces that a lane reads beside the columns it owns."""
    S, STRIDE, PAD, DIL = _columns_of(WINDOW)
    read = {q * STRIDE + s * DIL - PAD for q in range(LANE_Q) for s in range(S)}
    return sorted({c // PIECE * PIECE for c in read if not 0 <= c < LANE_Q * STRIDE})


@triton.constexpr_function
def columns_per_piece(dtype, WINDOW, LANE_Q):
    """Columns of a piece, of those with which a lane makes the fewest loads beside its own."""
    bits = dtype.primitive_bitwidth
    own = LANE_Q * _columns_of(WINDOW)[1]
    word, most = max(1, 32 // bits), min(own, max(1, 128 // bits))
    sizes = [word << i for i in range(3) if word << i <= most] or [word]
    return min(sizes, key=lambda size: (len(_pieces(WINDOW, LANE_Q, size)), size))


@triton.constexpr_function
def pieces_beside(WINDOW, LANE_Q, PIECE):
    """Number of pieces, of PIECE columns, that a lane reads beside the columns it owns."""
    return len(_pieces(WINDOW, LANE_Q, PIECE))


@triton.constexpr_function
def piece_beside(index, WINDOW, LANE_Q, PIECE):
    """First column of piece `index`."""
    return _pieces(WINDOW, LANE_Q, PIECE)[index]


@triton.constexpr_function
def words_of_row(WINDOW, LANE_Q, PIECE, WORD):
    """Values that load_vector returns for a row: a lane's own words, then those of its pieces."""
    own = LANE_Q * _columns_of(WINDOW)[1] // WORD
    return own + len(_pieces(WINDOW, LANE_Q, PIECE)) * max(1, PIECE // WORD)


@triton.constexpr_function
def place_of(column, WINDOW, LANE_Q, PIECE, WORD):
    """Index of a column's value among those of a row."""
    own = LANE_Q * _columns_of(WINDOW)[1]
    if 0 <= column < own:
        return column // WORD
    piece = _pieces(WINDOW, LANE_Q, PIECE).index(column // PIECE * PIECE)
    return own // WORD + piece * max(1, PIECE // WORD) + column % PIECE // WORD


@triton.constexpr_function
def log2(number):
    """The binary logarithm of a power of two."""
    return number.bit_length() - 1


@triton.constexpr_function
def bits_reversed(number, BITS):
    """The number with its lowest BITS bits in reverse order."""
    return sum((number >> i & 1) << (BITS - 1 - i) for i in range(BITS))


@triton.jit
def split_last(block, COUNT: tl.constexpr):
    """The COUNT slices of a block [A, B, COUNT], a power of two: a tuple of blocks [A, B]."""
    A: tl.constexpr = block.shape[0]
    B: tl.constexpr = block.shape[1]
    parts = (block,)  # halving puts slice i at the place of its reversed bits
    for level in tl.static_range(log2(COUNT)):
        halves = ()
        for i in tl.static_range(2**level):
            even, odd = tl.split(tl.reshape(parts[i], [A, B, COUNT // 2 ** (level + 1), 2]))
            halves = halves + (even, odd)
        parts = halves
    slices = ()
    for i in tl.static_range(COUNT):
        part = tl.reshape(parts[bits_reversed(i, log2(COUNT))], [A, B])
        slices = slices + (part,)
    return slices


@triton.jit
def join_last(slices, first: tl.constexpr, COUNT: tl.constexpr):
    """The inverse of split_last, for COUNT blocks from number `first` on."""
    A: tl.constexpr = slices[0].shape[0]
    B: tl.constexpr = slices[0].shape[1]
    parts = slices[first : first + COUNT]
    for level in tl.static_range(log2(COUNT)):
        pairs = ()
        for i in tl.static_range(COUNT // 2 ** (level + 1)):
            pair = tl.join(parts[i], parts[i + COUNT // 2 ** (level + 1)])
            pairs = pairs + (pair,)
        parts = pairs
    return tl.reshape(parts[0], [A, B, COUNT])


@triton.jit
def vector_at(pointers, COUNT: tl.constexpr):
    """Pointers [A, B, COUNT] to COUNT elements, a power of two, that start at a multiple of it."""
    BYTES: tl.constexpr = COUNT * pointers.dtype.element_ty.primitive_bitwidth // 8
    pointers = tl.expand_dims(pointers, 2) + tl.arange(0, COUNT)[None, None, :]
    return tl.multiple_of(pointers, [1, 1, BYTES])


@triton.jit
def masks_of(w, planes, x_shape, WINDOW: tl.constexpr, LANE_Q: tl.constexpr, PIECE: tl.constexpr):
    """(columns, masks) for load_vector, of lanes that own the columns from w on.

    `columns` has the first column of each piece, counted from w; `masks` the mask of a lane's own
    columns, then one for each piece.
    """
    columns = ()
    masks = (planes & (w < x_shape[1]),)
    for i in tl.static_range(pieces_beside(WINDOW, LANE_Q, PIECE)):
        beside = w + piece_beside(i, WINDOW, LANE_Q, PIECE)
        folded, inside = fold(beside, x_shape[1], WINDOW.MODE)
        columns = columns + (folded - w,)
        masks = masks + (planes & inside,)
    return columns, masks


@triton.jit
def load_words(lanes, mask, COLUMNS: tl.constexpr):
    """The words of COLUMNS columns, to the first of which `lanes` [A, LANES] point.

    Lanes whose mask is false get zeros; with None all lanes load.
    """
    WORD: tl.constexpr = columns_per_word(lanes.dtype.element_ty)
    COUNT: tl.constexpr = COLUMNS // WORD
    words = lanes
    if WORD > 1:
        words = lanes.to(tl.pointer_type(tl.uint32), bitcast=True)
    if COUNT == 1:
        if mask is None:
            found = (tl.load(words),)
        else:
            found = (tl.load(words, mask=mask, other=0),)
    else:
        if mask is None:
            own = tl.load(vector_at(words, COUNT))  # [A, LANES, COUNT]
        else:
            own = tl.load(vector_at(words, COUNT), mask=tl.expand_dims(mask, 2), other=0)
        found = split_last(own, COUNT)
    return found


@triton.jit
def load_vector(
    lanes, columns, masks, row, x_strides, x_shape, WINDOW: tl.constexpr, LANE_Q: tl.constexpr,
    PIECE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The words of an input row that lanes own, then the pieces beside them.

    Args:
        lanes: pointers to the first column that each lane owns, in row 0.
        columns, masks: from masks_of, if MASKED.
        row: number of the input row.
        x_strides, x_shape: of the image.
    """
    OWN: tl.constexpr = LANE_Q * WINDOW.STRIDE_W
    inside = True
    if MASKED:
        row, inside = fold(as_block(row), x_shape[0], WINDOW.MODE)  # [1, 1]
    lanes += row * x_strides[2]
    if MASKED:
        loaded = load_words(lanes, masks[0] & inside, OWN)
    else:
        loaded = load_words(lanes, None, OWN)
    for i in tl.static_range(pieces_beside(WINDOW, LANE_Q, PIECE)):
        mask = None
        if MASKED:
            mask = masks[i + 1] & inside
        if MASKED and WINDOW.MODE != "zeros":
            loaded = loaded + (tl.load(lanes + columns[i], mask=mask, other=0),)
        else:
            loaded = loaded + load_words(
                lanes + piece_beside(i, WINDOW, LANE_Q, PIECE), mask, PIECE
            )
    return loaded


@triton.jit
def pixel_of(word, column: tl.constexpr, DTYPE: tl.constexpr):
    """The pixel of a column in its word, of type DTYPE, as float32 if it is smaller."""
    if DTYPE.primitive_bitwidth >= 32:
        pixel = word
    elif DTYPE == tl.bfloat16:  # the upper half of a float32
        if column % 2 == 0:
            pixel = (word << 16).to(tl.float32, bitcast=True)
        else:
            pixel = (word & 0xFFFF0000).to(tl.float32, bitcast=True)
    elif DTYPE == tl.float16:
        half = (word >> (column % 2 * 16)).to(tl.uint16)
        pixel = half.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        tl.static_assert(DTYPE == tl.uint8, "pixels are floats or uint8")
        # The byte becomes the last bits of the float 2**23, which is then subtracted: a permutation
        # and a sum are faster than a conversion.
        byte = (word >> (column % 4 * 8)) & 0xFF
        pixel = (byte | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    return pixel


@triton.jit
def pixels_of_words(words, DTYPE: tl.constexpr, ACC: tl.constexpr):
    """The pixels of all columns of what load_words returns."""
    WORD: tl.constexpr = columns_per_word(DTYPE)
    pixels = ()
    for i in tl.static_range(len(words) * WORD):
        pixels = pixels + (pixel_of(words[i // WORD], i, DTYPE).to(ACC),)
    return pixels


@triton.jit
def pixels_of(
    loaded, number: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr, WINDOW: tl.constexpr,
    LANE_Q: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The pixels that LANE_Q outputs read of row `number` in `loaded`, in the order of load_row."""
    WORD: tl.constexpr = columns_per_word(DTYPE)
    OWN: tl.constexpr = LANE_Q * WINDOW.STRIDE_W
    FIRST: tl.constexpr = number * words_of_row(WINDOW, LANE_Q, PIECE, WORD)
    pixels = ()
    for i in tl.static_range((LANE_Q - 1) * WINDOW.STRIDE_W + (WINDOW.S - 1) * WINDOW.DIL_W + 1):
        if is_read(i, 0, LANE_Q - 1, WINDOW.S, WINDOW.STRIDE_W, WINDOW.DIL_W):
            x = loaded[FIRST + place_of(i - WINDOW.PAD_W, WINDOW, LANE_Q, PIECE, WORD)]
            if PIECE >= WORD or (i - WINDOW.PAD_W >= 0 and i - WINDOW.PAD_W < OWN):
                x = pixel_of(x, i - WINDOW.PAD_W, DTYPE)
            pixels = pixels + (x.to(ACC),)
        else:  # never read; keeps the tuple's index aligned
            pixels = pixels + (pixels[i - 1],)
    return pixels
