"""Plans for the kernels that load through tensor descriptors: which calls they take, in which box.

The hardware fetches a whole box of what a descriptor describes into shared memory, and fills with
zeros what lies outside. `is_legal_tma` says what it can do that for; the rest is for the kernels
that take pointers. None of this was measured on a GPU yet: tiles are those that build without
spills for sm_90 and sm_100.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

import torch

from ..geometry import Geometry, Pair
from .integers import power_of_two

#: Device.arch of the devices that these kernels are built and planned for.
ARCHITECTURES = ("90", "100")
#: Descriptors of x that a kernel takes, one for each phase that has taps.
MAX_PHASES = 4
#: Coordinates of a descriptor have 32 bits: what is added up to one stays well below.
MAX_COORDINATE = 2**29
#: Elements of a box along one axis, by the hardware.
MAX_BOX = 256
#: Most of the pixels of all boxes that may lie outside of the image: beyond, pointers waste less.
#: Short rows of planes are slow besides: a matrix unit reads the weight again for each.
MAX_OVERHANG = {"pixels": 0.5, "planes": 0.25}
#: Bytes of summed channels that one step loads for a pixel: the widest row that is swizzled.
ROW_BYTES = 128
#: Rows of a box of planes: each has sums of its own, and their code is written out.
MAX_PLANE_ROWS = 4
#: Taps of a weight gradient whose sums a program keeps side by side.
MAX_TAPS = 3


@dataclass(frozen=True)
class TmaTile:
    """A box of pixels of one program, its channels, and what the compiler is told.

    Attributes:
        BLOCK_I: images of the box.
        BLOCK_P: rows of the box.
        BLOCK_Q: columns of the box.
        BLOCK_N: channels of the result.
        BLOCK_K: channels that one step of the loop sums; of a weight gradient, which sums the
            pixels of a box instead, the filters.
        BLOCK_S: taps of a weight gradient that share what is loaded of dy.
        programs: that deal out all boxes among them, each of its boxes in one loop; 0 for a program
            for each box.
        num_warps, num_stages: as Triton takes them.
    """

    BLOCK_I: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    BLOCK_S: int = 1
    programs: int = 0

    @property
    def pixels(self) -> int:
        """Pixels of the box: what BLOCK_M is to a GEMM."""
        return self.BLOCK_I * self.BLOCK_P * self.BLOCK_Q


#: (channels of the result, pixels, num_warps, num_stages), largest first: those read each input the
#: fewest times.
TMA_SHAPES = (
    (128, 256, 8, 3),
    (128, 128, 8, 4),
    (64, 256, 8, 4),
    (64, 128, 4, 4),
)
#: (channels, filters, num_warps, num_stages) of a weight gradient. Three taps side by side read
#: (3 * 64 + 128) rows for what 128 x 128 reads (128 + 128) of twice: 0.6 of the bytes. So they are
#: taken wherever there are taps to share.
TMA_GRADIENT_SHAPES: dict[bool, tuple[tuple[int, int, int, int], ...]] = {
    True: (
        (64, 128, 8, 4),
        (64, 64, 4, 4),
    ),
    False: (
        (128, 128, 8, 4),
        (128, 64, 4, 4),
        (64, 128, 4, 4),
        (64, 64, 4, 4),
    ),
}


def is_legal_tma(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    precision: str,
    arch: str,
    boxes: str,
    tile: TmaTile | None = None,
) -> bool:
    """Whether a kernel of this family can compute `op`: what it takes is described in kernels/.

    Args:
        op: as in Plan.
        geometry: of the call.
        dtype: of all tensors.
        precision: how float32 is multiplied.
        arch: as in Device.
        boxes: as Layout.boxes gives them.
        tile: that it would have; without one, whether there is any.
    """
    if op not in ("fprop", "dgrad", "wgrad") or arch not in ARCHITECTURES or not boxes:
        return False
    g, planes = geometry, boxes == "planes"
    # Rows of planes are pixels of one channel: what a weight gradient sums, and the others do not.
    if planes == (op != "wgrad") and not multiplies_crosswise(dtype):
        return False
    if planes and op != "dgrad" and g.steps(1)[0] > 1:
        return False  # a descriptor's innermost step is one element
    if planes and op == "wgrad" and min(g.padding[1]) < 0:
        return False  # what is cut off beside a row need not be finite, and would be multiplied
    if g.per_sample or g.padding_mode != "zeros":
        return False
    if dtype not in (torch.float16, torch.bfloat16) and (dtype, precision) != (
        torch.float32,
        "tf32",
    ):
        return False
    # Rows of the weight's matrix and of pixels start at multiples of 16 bytes.
    if any(channels * dtype.itemsize % 16 for channels in (g.group_C, g.group_K)):
        return False
    block = channel_block(op, g, dtype)
    if not block:
        return False
    if tile and planes and (tile.BLOCK_I > 1 or tile.BLOCK_P > (op == "wgrad" or MAX_PLANE_ROWS)):
        return False
    divided = tile is None or not (g.P % tile.BLOCK_P or g.Q % tile.BLOCK_Q)
    if op == "wgrad" and not (divided or planes or g.is_point):
        return False
    if tile and tile.programs and not takes_boxes_in_turn(op, geometry, tile, boxes):
        return False
    if tile and tile.BLOCK_S > (1 if op != "wgrad" or g.steps(1)[0] > 1 else g.S):
        return False
    if tile and op != "wgrad" and block % tile.BLOCK_K:
        return False
    stride, dilation = zip(g.steps(0), g.steps(1), strict=True)
    reach = (
        extent + max(map(abs, pad)) + dil * window + step
        for extent, pad, dil, window, step in zip(
            (g.H, g.W), g.padding, dilation, (g.R, g.S), stride, strict=True
        )
    )
    if max(*reach, g.N, g.C, g.weight_numel // g.K, g.weight_numel // g.C) > MAX_COORDINATE:
        return False
    if op == "dgrad":
        return True
    phases = phases_with_taps(g)
    return len(phases) <= MAX_PHASES and all(a < g.H and b < g.W for a, b in phases)


def takes_boxes_in_turn(op: str, geometry: Geometry, tile: TmaTile, boxes: str) -> bool:
    """Whether a program may go on from one box to the next in the loop of its sums.

    All boxes must have one loop of as many steps. Several rows of planes have sums of their own:
    in such a loop ptxas (12.8, 13.1) waits for each product before the next one.
    """
    if boxes == "planes" and tile.BLOCK_P > 1:
        return False
    if op == "fprop":
        return len(phases_with_taps(geometry)) == 1
    return op == "dgrad" and math.prod(geometry.phases) == 1


def multiplies_crosswise(dtype: torch.dtype) -> bool:
    """Whether matrix units read operands of this type with their axes exchanged."""
    return dtype.itemsize == 2


def channel_block(op: str, geometry: Geometry, dtype: torch.dtype) -> int:
    """Summed channels of one step, or pixels of a weight gradient's; 0 where none is right.

    A step may overhang the channels only where both operands are zero there: not into another
    group, nor into the weight's next tap. A weight gradient sums pixels: any number will do.
    """
    g = geometry
    if op == "wgrad":
        return ROW_BYTES // dtype.itemsize if min(g.group_C, g.group_K) >= 16 else 0
    summed, results = (g.group_C, g.group_K) if op == "fprop" else (g.group_K, g.group_C)
    most = ROW_BYTES // dtype.itemsize
    if min(summed, results) < 16:
        return 0
    taps_follow = g.R * g.S > 1 and not (op == "dgrad" and multiplies_crosswise(dtype))
    if g.groups == 1 and not taps_follow:
        return min(most, power_of_two(summed))
    return next((b for b in (most, most // 2, most // 4) if b >= 16 and summed % b == 0), 0)


@functools.lru_cache(maxsize=4096)
def phases_with_taps(geometry: Geometry) -> tuple[Pair, ...]:
    """The phases (h % stride, w % stride) of the input that any tap reads."""
    stride, dilation = zip(geometry.steps(0), geometry.steps(1), strict=True)
    rows, columns = (
        sorted({(tap * dil - pad[0]) % step for tap in range(min(window, step))})
        for window, step, dil, pad in zip(
            (geometry.R, geometry.S), stride, dilation, geometry.padding, strict=True
        )
    )
    return tuple(itertools.product(rows, columns))


def tma_tiles(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    precision: str,
    arch: str,
    boxes: str,
    crowded: bool = False,
) -> list[TmaTile]:
    """Tiles that a call may have; none where it is not legal, or boxes would mostly overhang."""
    if not is_legal_tma(op, geometry, dtype, precision, arch, boxes):
        return []
    g, planes = geometry, pixel_planes(op, geometry)
    results, summed = (g.group_K, g.group_C) if op == "fprop" else (g.group_C, g.group_K)
    tiles = []
    for shape in shapes(op, g, crowded):
        tile = shaped_tile(op, g, dtype, shape, boxes)
        loaded = covered(planes, (tile.BLOCK_I, tile.BLOCK_P, tile.BLOCK_Q))
        if (
            tile.BLOCK_N <= max(64, power_of_two(results))
            and (op != "wgrad" or tile.BLOCK_K <= max(64, power_of_two(summed)))
            and tile.pixels >= 16
            and loaded * (1 - MAX_OVERHANG[boxes]) <= math.prod(planes)
        ):
            tiles.append(tile)
    return tiles


def dealt_out(
    op: str,
    geometry: Geometry,
    tile: TmaTile,
    dtype: torch.dtype,
    boxes: str,
    multiprocessors: int,
    shared: int,
) -> TmaTile:
    """The tile with as many programs as run at once, where there are more boxes than that."""
    if not takes_boxes_in_turn(op, geometry, tile, boxes):
        return tile
    # Bytes of shared memory decide how many run side by side on a multiprocessor.
    resident = multiprocessors * max(1, shared // shared_bytes_tma(op, tile, dtype))
    return replace(tile, programs=resident) if tma_programs(op, geometry, tile) > resident else tile


def shapes(
    op: str, geometry: Geometry, crowded: bool = False
) -> tuple[tuple[int, int, int, int], ...]:
    """The rows of TMA_SHAPES or TMA_GRADIENT_SHAPES that are for a call.

    Sums of 128 x 256 are not for what is crowded, see Layout.
    """
    if op == "wgrad":
        return TMA_GRADIENT_SHAPES[taps_of(geometry) > 1]
    return TMA_SHAPES[1:] if crowded else TMA_SHAPES


def shaped_tile(
    op: str, geometry: Geometry, dtype: torch.dtype, shape: tuple[int, int, int, int], boxes: str
) -> TmaTile:
    """The tile of one of TMA_SHAPES, or of TMA_GRADIENT_SHAPES, with the best box."""
    block_n, size, warps, stages = shape
    planes, block_k = pixel_planes(op, geometry), channel_block(op, geometry, dtype)
    if op == "wgrad":
        whole = box_of if geometry.is_point else whole_box  # beside a plane, both images are zero
        box = (1, 1, block_k) if boxes == "planes" else whole(planes, block_k)
        return TmaTile(*box, block_n, size, warps, stages, taps_of(geometry))
    box = plane_box(planes, size) if boxes == "planes" else box_of(planes, size)
    return TmaTile(*box, block_n, block_k, warps, stages)


def taps_of(geometry: Geometry) -> int:
    """Taps that a program of a weight gradient sums side by side: a divisor of those of a row."""
    if geometry.steps(1)[0] > 1:
        return 1
    return next(taps for taps in range(MAX_TAPS, 0, -1) if geometry.S % taps == 0)


def plane_box(planes: tuple[int, int, int], pixels: int) -> tuple[int, int, int]:
    """(1, rows, columns), powers of two, of a box of planes that overhangs least.

    Of boxes that overhang as little, that with the longest rows: few products of large operands.
    """
    boxes = [(1, rows, pixels // rows) for rows in (1, 2, 4) if rows <= MAX_PLANE_ROWS]
    return min(boxes, key=lambda box: (covered(planes, box), box[1]))


def whole_box(planes: tuple[int, int, int], pixels: int) -> tuple[int, int, int]:
    """(images, rows, columns) of a box that divides rows and columns, of `pixels` at most.

    As many rows and columns as can be, and no more images than there are, up to a power of two.
    """
    images, rows, columns = planes
    most_rows, most_columns = rows & -rows, columns & -columns  # powers of two that divide them
    box_columns = min(most_columns, pixels)
    box_rows = min(most_rows, pixels // box_columns)
    box_images = min(power_of_two(images), pixels // (box_rows * box_columns))
    return box_images, box_rows, box_columns


def boxes(geometry: Geometry, tile: TmaTile) -> int:
    """Boxes of pixels of dy, that a weight gradient runs over."""
    box = (tile.BLOCK_I, tile.BLOCK_P, tile.BLOCK_Q)
    return covered((geometry.N, geometry.P, geometry.Q), box) // tile.pixels


def tma_programs(op: str, geometry: Geometry, tile: TmaTile) -> int:
    """How many programs cover all results, a weight gradient's before it is split."""
    if op == "wgrad":
        g = geometry
        tiles = -(-g.group_K // tile.BLOCK_K) * -(-g.group_C // tile.BLOCK_N)
        return g.groups * g.R * -(-g.S // tile.BLOCK_S) * tiles
    box = (tile.BLOCK_I, tile.BLOCK_P, tile.BLOCK_Q)
    programs = covered(pixel_planes(op, geometry), box) // tile.pixels
    if op == "dgrad":  # each phase has boxes of its own
        programs *= math.prod(geometry.phases)
    results = geometry.group_K if op == "fprop" else geometry.group_C
    return programs * geometry.groups * -(-results // tile.BLOCK_N)


def covered(planes: tuple[int, int, int], box: tuple[int, int, int]) -> int:
    """Pixels of all the boxes that cover (images, rows, columns)."""
    return math.prod(-(-n // block) * block for n, block in zip(planes, box, strict=True))


@functools.lru_cache(maxsize=4096)
def box_of(planes: tuple[int, int, int], pixels: int) -> tuple[int, int, int]:
    """(images, rows, columns), powers of two, of a box of so many pixels that overhangs least.

    Of boxes that overhang nearly as little, the one nearest to a square of a single image: its taps
    read the fewest pixels.
    """
    sizes = [1 << i for i in range(pixels.bit_length())]
    boxes = [
        (pixels // (rows * columns), rows, columns)
        for rows in sizes
        for columns in sizes
        if rows * columns <= pixels and max(pixels // (rows * columns), rows, columns) <= MAX_BOX
    ]
    least = min(covered(planes, box) for box in boxes)
    close = [box for box in boxes if covered(planes, box) <= 1.05 * least]
    return min(close, key=lambda box: (box[0] * (box[1] + box[2]), box))


def pixel_planes(op: str, geometry: Geometry) -> tuple[int, int, int]:
    """(images, rows, columns) of the pixels that boxes cover: of y or dy, or of a phase of dx."""
    g = geometry
    return g.phase_shape if op == "dgrad" else (g.N, g.P, g.Q)


def fits_tma(op: str, tile: TmaTile, dtype: torch.dtype, registers: int, shared: int) -> bool:
    """Whether a program has room, by count: for its sums, and for the boxes of every stage."""
    columns = tile.BLOCK_K * tile.BLOCK_S if op == "wgrad" else tile.pixels
    sums = tile.BLOCK_N * columns / (32 * tile.num_warps)
    return 1 <= sums <= registers // 2 and shared_bytes_tma(op, tile, dtype) <= shared


def shared_bytes_tma(op: str, tile: TmaTile, dtype: torch.dtype) -> int:
    """About what a program holds in shared memory: the operands of every stage of its pipeline."""
    if op == "wgrad":
        elements = (tile.BLOCK_N * tile.BLOCK_S + tile.BLOCK_K) * tile.pixels
    else:
        elements = (tile.BLOCK_N + tile.pixels) * tile.BLOCK_K
    return elements * dtype.itemsize * tile.num_stages
