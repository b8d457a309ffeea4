"""Arguments that travel together: the window, the layout of operands, a tile, strides.

A tuple among the arguments of a kernel is bound element by element: a stride of one is a constant
to the compiler, a multiple of 16 is known as such.
"""

import functools
from collections import namedtuple
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import triton
import triton.language as tl

_Struct = TypeVar("_Struct", bound=NamedTuple)


class Window(NamedTuple):
    """How outputs read an image: h = p * STRIDE_H - PAD_H + r * DIL_H, w likewise.

    Attributes:
        R, S: rows and columns.
        STRIDE_H, STRIDE_W: input rows, columns from one output to the next.
        PAD_H, PAD_W: rows above the image, columns left of it.
        PAD_BOTTOM, PAD_RIGHT: rows below it, columns right of it.
        DIL_H, DIL_W: input rows, columns from one tap to the next.
        MODE: what is there: "zeros", "reflect", "replicate" or "circular".
    """

    R: int
    S: int
    STRIDE_H: int
    STRIDE_W: int
    PAD_H: int
    PAD_W: int
    PAD_BOTTOM: int
    PAD_RIGHT: int
    DIL_H: int
    DIL_W: int
    MODE: str


@triton.jit
def at(image, strides, n, c, h, w):
    """Pointer to an element of an image (N, C, H, W), or (N, K, P, Q).

    Terms are added in this order: what an outer loop knows comes first.
    """
    return image + n * strides[0] + c * strides[1] + h * strides[2] + w * strides[3]


@triton.jit
def tap_at(weight, strides, n, k, c, r, s):
    """Pointer to a tap of a bank of filters (N, K, C, R, S)."""
    bank = weight + n * strides[0] + k * strides[1]
    return bank + c * strides[2] + r * strides[3] + s * strides[4]


class GemmLayout(NamedTuple):
    """How the operands of a GEMM through pointers lie in memory, and how it walks through them.

    Attributes:
        PIXEL_AXIS: axis of every block along which pixels lie, see fprop_gemm.
        OTHER_AXIS: the same of the image that is written, or of dy in a weight gradient.
        X_ALIGN, WEIGHT_ALIGN, Y_ALIGN: elements of a piece, of 16 bytes at most, that starts at a
            multiple of it.
        FLATTEN_K: summed channels if they are few: a step then covers elements (r,s,channel).
        K_DIVIDES: a step covers channels that all exist.
        PREFETCH: the image is loaded a step ahead.
        ONE_TAP: all columns of a tile of a weight gradient belong to one tap.
        SPLIT: programs sum parts of an image's reduction, see fprop_gemm.
        IS_POINT: see Geometry.is_point. A stride of 1 here is not enough: one that yields a single
            output counts as 1 too, and leaves pixels of x without one.
        SPREAD: the weight lies in the order of the steps, see build_patch_weight.
        X_RUN, Y_RUN: of a weight gradient. 2 where all pixels of the image are equally far from
            one to the next, 1 where those of each plane are, 0 where those of a row are.
    """

    PIXEL_AXIS: int
    OTHER_AXIS: int
    X_ALIGN: int
    WEIGHT_ALIGN: int
    Y_ALIGN: int
    FLATTEN_K: int | None
    K_DIVIDES: bool
    PREFETCH: bool
    ONE_TAP: bool
    SPLIT: bool = False
    IS_POINT: bool = False
    SPREAD: bool = False
    X_RUN: int = 0
    Y_RUN: int = 0


class PatchAxis(NamedTuple):
    """How patches lie along one axis, and what they read: see Axis in ops/plan/patch.py.

    Attributes:
        PITCH: results from one patch to the next.
        SHIFT: results of the first patch that lie before the image.
        STEP: rows or columns that are read, from one patch to the next.
        PAD: of them before the image.
        WINDOW: of them that a patch reads.
        TAP_OF_PLACE, TAP_OF_RESULT, FIRST_TAP: see tap_at_place.
    """

    PITCH: int
    SHIFT: int
    STEP: int
    PAD: int
    WINDOW: int
    TAP_OF_PLACE: int
    TAP_OF_RESULT: int
    FIRST_TAP: int


class PatchLayout(NamedTuple):
    """How the operands of a product over patches lie in memory.

    Attributes:
        PIXEL_AXIS, FLATTEN_K, K_DIVIDES, PREFETCH, ONE_TAP, SPREAD, SPLIT: as in GemmLayout, of the
            image that is read; of x, for a weight gradient.
        X_ALIGN: as there, of the same image.
        Y_AXIS, Y_ALIGN: 1 if pixels are contiguous in memory in the image that is written, or in
            dy, for a weight gradient, 0 if channels are; and its elements of a piece.
        RESULTS: channels of the result in one group; filters, of a weight gradient.
        ACROSS: order of columns, see split_patch_column.
        CHECKED: windows reach outside of the image that is read.
        CROPPED: patches reach outside of the image that is written; of dy, for a weight gradient.
        LOOSE: pieces of what is read are single elements.
        STORED_LANES: columns, or patches where Y_AXIS is 1 and not ACROSS, that threads run along
            before the next row as they store.
    """

    PIXEL_AXIS: int
    X_ALIGN: int
    Y_AXIS: int
    Y_ALIGN: int
    FLATTEN_K: int | None
    K_DIVIDES: bool
    PREFETCH: bool
    ONE_TAP: bool
    RESULTS: int
    ACROSS: bool
    CHECKED: bool
    CROPPED: bool
    LOOSE: bool
    STORED_LANES: int
    SPREAD: bool = True
    SPLIT: bool = False


class TmaLayout(NamedTuple):
    """How boxes and a weight that come through tensor descriptors lie in memory.

    Attributes:
        NCHW: images are (N, C, H, W), else (N, H, W, C).
        PHASES: of every descriptor of x the phase a * STRIDE_W + b of the input, or -1.
        FLIP: the window is turned.
        CROSSWISE: the weight is multiplied with its axes exchanged, see dgrad_tma.
        PERSISTENT: a program goes on from one box to the next.
        OUT_AXIS: 1 where columns of the result, and of what is added to it, are neighbours in
            memory, 0 where channels are.
        ALIGN: elements of a piece, of 16 bytes at most, that starts at a multiple of it in what is
            stored, and added to it.
        SPLIT: programs sum parts of the reduction, see fprop_tma.
        AXES: the axes of a weight gradient's boxes, outermost first: 0 to 3 for (n, h, w, c).
        IN_PLACE: a weight gradient's boxes are runs of one axis, which are multiplied from shared
            memory; other boxes of dy go through registers.
        REACHED: there is at least one tap and one channel to sum.
    """

    NCHW: bool
    PHASES: tuple[int, ...] = ()
    FLIP: bool = False
    CROSSWISE: bool = False
    PERSISTENT: bool = False
    OUT_AXIS: int = 0
    ALIGN: int = 1
    SPLIT: bool = False
    AXES: tuple[int, ...] = (0, 1, 2, 3)
    IN_PLACE: bool = False
    REACHED: bool = False


class SpreadLayout(NamedTuple):
    """How boxes and a spread weight that come through tensor descriptors lie in memory.

    Attributes:
        PHASES, OUT_AXIS, ALIGN, SPLIT: as in TmaLayout.
        RESULTS: channels of the result in one group.
        PITCH_H, PITCH_W: results from one patch to the next.
        SHIFT_H, SHIFT_W: results of the first patch that lie before the image.
        ACROSS: order of columns, see split_patch_column.
        NCHW, FLIP, CROSSWISE, REACHED: as in TmaLayout, fixed.
        FLATTEN_K: as in PatchLayout, fixed: a step covers channels of one place.
    """

    PHASES: tuple[int, ...]
    OUT_AXIS: int
    ALIGN: int
    SPLIT: bool
    RESULTS: int
    PITCH_H: int
    PITCH_W: int
    SHIFT_H: int
    SHIFT_W: int
    ACROSS: bool
    NCHW: bool = False
    FLIP: bool = False
    CROSSWISE: bool = False
    REACHED: bool = True
    FLATTEN_K: int | None = None


class StripLayout(NamedTuple):
    """How a strip of columns of an image and its results lie in memory, see fprop_strip.

    Attributes:
        NCHW, OUT_AXIS, ALIGN: as in TmaLayout.
        BLOCKS: blocks of reduced channels.
        RESULTS: channels of the result in one group.
        PLACES: rows of the image that a patch reads.
        STEP_H, PAD_H: rows of the image from one patch to the next, and of the first before it.
        PITCH_H, SHIFT_H: rows of the result likewise.
        PITCH_W, SHIFT_W: columns of the result from one column of the image to the next, and of the
            first before it.
        SHIFTS: columns of sums that are added up, up to a power of two.
        REACH: the last of them that has a tap.
        FIRST_W, STEP_W: first column of the first strip, and columns from one strip to the next.
    """

    NCHW: bool
    OUT_AXIS: int
    ALIGN: int
    BLOCKS: int
    RESULTS: int
    PLACES: int
    STEP_H: int
    PAD_H: int
    PITCH_H: int
    SHIFT_H: int
    PITCH_W: int
    SHIFT_W: int
    SHIFTS: int
    REACH: int
    FIRST_W: int
    STEP_W: int


class BandLayout(NamedTuple):
    """The input that a block of outputs reads, as columns of a matrix; see Band in ops/plan.

    Attributes:
        FIRST_W, SHIFT, COLUMNS: of the band.
        COLUMN_GROUP: columns that a weight gradient takes together.
        X_ALIGN, Y_ALIGN: elements of a piece, of 16 bytes at most, that starts at a multiple of it.
    """

    FIRST_W: int
    SHIFT: int
    COLUMNS: int
    COLUMN_GROUP: int
    X_ALIGN: int
    Y_ALIGN: int


class ResidentLayout(NamedTuple):
    """The bands of a filter as they lie in shared memory; see ResidentTile in ops/plan.

    Attributes:
        FIRST_W: column of the first piece that a block reads, from its first output's column on.
        COLUMNS: of the band, a multiple of a piece.
        LINES: of one phase of the stride.
        CHANNELS: of the image that a filter sums over.
        UP_H, UP_W: rows, columns from one pixel of the image to the next one; there are zeros
            between them.
        X_ALIGN: columns that are copied at once, of 16 bytes at most.
        Y_ALIGN: columns that are stored at once, 4 at most.
    """

    FIRST_W: int
    COLUMNS: int
    LINES: int
    CHANNELS: int
    UP_H: int
    UP_W: int
    X_ALIGN: int
    Y_ALIGN: int


class CopyLayout(NamedTuple):
    """How an image and its copy lie in memory.

    Attributes:
        X_AXIS, OUT_AXIS: 1 where columns are neighbours in memory, 0 where channels are.
        X_ALIGN, OUT_ALIGN: elements of a piece, of 16 bytes at most, that starts at a multiple of
            it.
        ONE_ROW: there is one row of pixels.
        STEP_H, STEP_W: rows, columns of the copy from one pixel of the image to the next; there are
            zeros, or the bias, between them. Not with ONE_ROW.
        OUT_ROW: the copy's pixels are one row in memory. Not with ONE_ROW.
        COLUMNS: of the image, where rows of the copy are longer: zeros beside them; else 0.
        FIRST_COLUMN: column of the copy that has the first one of the image. Not with a step.
        INT64: offsets are 64-bit.
        BLOCK_C, BLOCK_P: channels and pixels of a program.
    """

    X_AXIS: int
    OUT_AXIS: int
    X_ALIGN: int
    OUT_ALIGN: int
    ONE_ROW: bool
    INT64: bool
    BLOCK_C: int
    BLOCK_P: int
    STEP_H: int = 1
    STEP_W: int = 1
    OUT_ROW: bool = False
    COLUMNS: int = 0
    FIRST_COLUMN: int = 0


class PatchCopyLayout(NamedTuple):
    """How an image and its patches lie in memory; see copy_patches.

    Attributes:
        R, S: rows and columns of a patch.
        CHANNELS_LAST: channels of patches are in the order (g,r,s,c), else (g,c,r,s).
        BACK: patches are copied to the image.
        X_ALIGN, Z_ALIGN: elements of a piece of each, of 16 bytes at most, that starts at a
            multiple of it.
        INT64: offsets are 64-bit.
        BLOCK_C, BLOCK_R, BLOCK_Q, BLOCK_S: channels, rows, patches and columns of a program.
    """

    R: int
    S: int
    CHANNELS_LAST: bool
    BACK: bool
    X_ALIGN: int
    Z_ALIGN: int
    INT64: bool
    BLOCK_C: int
    BLOCK_R: int
    BLOCK_Q: int
    BLOCK_S: int


@functools.cache
def _tile_type(names: tuple[str, ...]) -> type[tuple[int, ...]]:
    return namedtuple("Tile", names)  # type: ignore[misc]  # mypy wants names that it can read


def tile_struct(extents: Mapping[str, int]) -> Any:
    """The extents of a tile of ops/plan, by the names that it has there."""
    return _tile_type(tuple(extents))(*extents.values())


def constant(struct: _Struct) -> _Struct:
    """A struct as a kernel takes it: each field a tl.constexpr, but plain where it is interpreted.

    The compiler takes a string of a struct, or a number of it as the bound of tl.static_range, only
    in the former form; the interpreter only in the latter.
    """
    if not isinstance(at, triton.JITFunction):
        return struct
    return type(struct)(*map(tl.constexpr, struct))
