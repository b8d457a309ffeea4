"""Maps padded coordinates to the pixels that a padding mode copies there, and back."""

import triton
import triton.language as tl


@triton.jit
def fold(coordinate, EXTENT, MODE: tl.constexpr):
    """The image coordinate whose pixel the padding copies to `coordinate`, and whether it exists.

    One reflection or wrap is enough: the host refuses wider padding. Coordinates that no output
    reads may still lie outside.
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
def unfold(
    coordinate, image, EXTENT, BEFORE: tl.constexpr, AFTER: tl.constexpr, MODE: tl.constexpr
):
    """The inverse of `fold`: the padded coordinate of copy number `image` of a pixel.

    Copy 0 is the pixel itself. Also returns whether this copy exists; `images` counts candidates.
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
        tl.static_assert(MODE == "circular", "zeros have no images")
        shown = tl.where(image == 1, coordinate - EXTENT, coordinate + EXTENT)
        exists = tl.where(image == 1, shown >= -BEFORE, shown < EXTENT + AFTER)
    return tl.where(image == 0, coordinate, shown), (image == 0) | exists


@triton.jit
def images(BEFORE: tl.constexpr, AFTER: tl.constexpr, MODE: tl.constexpr):
    """Number of candidates for `unfold`."""
    if MODE == "replicate":
        return 1 + BEFORE + AFTER
    return 3


@triton.jit
def split_frame(index, x_shape, hole):
    """(n, h, w) of a pixel by its index in the frame, which is the image without the hole.

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
