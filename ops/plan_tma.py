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
from dataclasses import dataclass

import torch

from .geometry import Geometry, Pair
from .integers import power_of_two

#: Device.arch of the devices that these kernels are built and planned for.
ARCHITECTURES = ("90", "100")
#: Descriptors of x that a kernel takes, one for each phase that has taps.
MAX_PHASES = 4
#: Coordinates of a descriptor have 32 bits: what is added up to one stays well below.
MAX_COORDINATE = 2**29
#: Elements of a box along one axis, by the hardware.
MAX_BOX = 256
#: Most of the pixels of all boxes that may lie outside of the planes: beyond, pointers waste less.
MAX_OVERHANG = 0.5
#: Bytes of summed channels that one step loads for a pixel: the widest row that is swizzled.
ROW_BYTES = 128


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
        num_warps, num_stages: as Triton takes them.
    """

    BLOCK_I: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

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
#: (channels, filters, num_warps, num_stages) of a weight gradient, with a box of so many pixels.
TMA_GRADIENT_SHAPES = (
    (128, 128, 8, 4),
    (128, 64, 4, 4),
    (64, 128, 4, 4),
    (64, 64, 4, 4),
)
GRADIENT_PIXELS = 64


def is_legal_tma(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    precision: str,
    arch: str,
    descriptors: bool,
    tile: TmaTile | None = None,
) -> bool:
    """Whether a kernel of this family can compute `op`: what it takes is described in kernels/.

    Args:
        op: as in Plan.
        geometry: of the call.
        dtype: of all tensors.
        precision: how float32 is multiplied.
        arch: as in Device.
        descriptors: as in Layout.
        tile: that it would have; without one, whether there is any.
    """
    if op not in ("fprop", "dgrad", "wgrad") or arch not in ARCHITECTURES or not descriptors:
        return False
    if op == "wgrad" and not multiplies_crosswise(dtype):
        return False
    g = geometry
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
    if tile and op == "wgrad" and (g.P % tile.BLOCK_P or g.Q % tile.BLOCK_Q):
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


def multiplies_crosswise(dtype: torch.dtype) -> bool:
    """Whether matrix units read operands of this type with their axes exchanged."""
    return dtype.itemsize == 2


def channel_block(op: str, geometry: Geometry, dtype: torch.dtype) -> int:
    """Summed channels of one step; 0 where none is right.

    A step may overhang the channels only where both operands are zero there: not into another
    group, nor into the weight's next tap. A weight gradient sums pixels: any number will do.
    """
    g = geometry
    if op == "wgrad":
        return GRADIENT_PIXELS if min(g.group_C, g.group_K) >= 16 else 0
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
    descriptors: bool,
) -> list[TmaTile]:
    """Tiles that a call may have; none where it is not legal, or boxes would mostly overhang."""
    if not is_legal_tma(op, geometry, dtype, precision, arch, descriptors):
        return []
    g, planes = geometry, pixel_planes(op, geometry)
    results, summed = (g.group_K, g.group_C) if op == "fprop" else (g.group_C, g.group_K)
    return [
        tile
        for shape in (TMA_GRADIENT_SHAPES if op == "wgrad" else TMA_SHAPES)
        if (tile := shaped_tile(op, g, dtype, shape)).BLOCK_N <= max(64, power_of_two(results))
        and (op != "wgrad" or tile.BLOCK_K <= max(64, power_of_two(summed)))
        and tile.pixels >= 16
        and covered(planes, (tile.BLOCK_I, tile.BLOCK_P, tile.BLOCK_Q)) * (1 - MAX_OVERHANG)
        <= math.prod(planes)
    ]


def shaped_tile(
    op: str, geometry: Geometry, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> TmaTile:
    """The tile of one of TMA_SHAPES, or of TMA_GRADIENT_SHAPES, with the best box."""
    block_n, size, warps, stages = shape
    planes = pixel_planes(op, geometry)
    if op == "wgrad":
        return TmaTile(*whole_box(planes, GRADIENT_PIXELS), block_n, size, warps, stages)
    block_k = channel_block(op, geometry, dtype)
    return TmaTile(*box_of(planes, size), block_n, block_k, warps, stages)


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
        return g.groups * g.R * g.S * tiles
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
    columns = tile.BLOCK_K if op == "wgrad" else tile.pixels
    sums = tile.BLOCK_N * columns / (32 * tile.num_warps)
    return 1 <= sums <= registers // 2 and shared_bytes_tma(op, tile, dtype) <= shared


def shared_bytes_tma(op: str, tile: TmaTile, dtype: torch.dtype) -> int:
    """About what a program holds in shared memory: the operands of every stage of its pipeline."""
    if op == "wgrad":
        elements = (tile.BLOCK_N + tile.BLOCK_K) * tile.pixels
    else:
        elements = (tile.BLOCK_N + tile.pixels) * tile.BLOCK_K
    return elements * dtype.itemsize * tile.num_stages
