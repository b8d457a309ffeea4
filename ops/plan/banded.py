"""The banded kernels' part of planning: which calls they serve, with which tile, and what it costs.

Extents of a band are counted in bands.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..geometry import Geometry
from .bands import (
    COLUMN_STEP,
    AnyBandedTile,
    BandedGradTile,
    BandedTile,
    banded_programs,
    banded_steps,
    bands_shape,
)
from .cost import RATES
from .device import DEVICES, LIMITS, MAX_WORKSPACE, SMALLEST, Device, pipeline_bytes
from .integers import cdiv, power_of_two

if TYPE_CHECKING:
    from .choose import Layout

#: For each kind of product, tiles of banded kernels. The one that loads the least is taken.
BANDED_TILES: dict[str, tuple[BandedTile, ...]] = {
    "half": (
        BandedTile(128, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(64, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(32, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(32, 8, 8, 64, num_warps=8, num_stages=3),
    ),
    "tf32": (
        BandedTile(128, 8, 16, 32, num_warps=8, num_stages=3),
        BandedTile(32, 8, 16, 32, num_warps=8, num_stages=3),
        BandedTile(32, 8, 8, 32, num_warps=8, num_stages=3),
    ),
    "tf32x3": (
        BandedTile(128, 8, 8, 32, num_warps=8, num_stages=2),
        BandedTile(64, 8, 8, 32, num_warps=8, num_stages=2),
    ),
}
#: The same of their weight gradients. BLOCK_H and BLOCK_W here are for wide images: what a step
#: covers is as wide as the image needs.
BANDED_GRAD_TILES: dict[str, tuple[BandedGradTile, ...]] = {
    "half": (
        BandedGradTile(32, 64, 1, 64, num_warps=8, num_stages=3),
        BandedGradTile(16, 32, 1, 64, num_warps=4, num_stages=3),
    ),
    "tf32": (
        BandedGradTile(16, 64, 1, 32, num_warps=4, num_stages=3),
        BandedGradTile(16, 32, 1, 32, num_warps=4, num_stages=3),
    ),
    "tf32x3": (BandedGradTile(16, 32, 1, 32, num_warps=4, num_stages=2),),
}

#: Most results of a thread whose columns do not come in pieces of 16 bytes, see in_pieces: each is
#: stored, and what is added to it loaded, at a place of its own. 32 spill up to 200 bytes, 64 up to
#: 1500, and on sm_80 also where only the columns of x do not.
MAX_LONE_RESULTS = 16

#: Instructions of one lane that a H200 issues while L2 delivers a byte: 4.4. A banded kernel issues
#: 1.3 to 1.6 for a byte, by machine code for sm_90, and a matrix unit multiplies 15 to 60 pairs
#: meanwhile: L2 is what it waits for.
LANES_PER_BYTE = (
    RATES["90"].issue * LIMITS["90"].lanes * DEVICES["h200"].multiprocessors / RATES["90"].l2
)
#: Bytes that L2 delivers for a number whose neighbours in memory are not wanted.
SECTOR = 32
#: Lane instructions for a number that is loaded alone, by the same machine code.
LANES_PER_NUMBER = 25
#: Lane instructions of a banded kernel outside of its loop, for one output: its start and its end.
BANDED_LANES = 50


def has_banded_kernel(op: str, geometry: Geometry, dtype: torch.dtype, precision: str) -> bool:
    """Whether a banded kernel can compute `op`, in any layout."""
    g = geometry
    if op == "dgrad_frame" or g.group_C != 1 or g.stride != (1, 1) or g.dilation != (1, 1):
        return False
    if dtype.itemsize > 2 and (dtype != torch.float32 or precision == "ieee"):
        return False
    return op != "dgrad" or g.group_K == 1


def banded_tile(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    layout: Layout,
    device: Device,
    precision: str,
    most: float,
) -> AnyBandedTile | None:
    """The tile of a banded kernel; None where it costs no less than `most`, which a stencil does.

    Of two kernels whose arithmetic hides behind what feeds it, the cheaper to feed is taken: a
    stencil issues a dozen instructions for every tap, a banded kernel reads (BLOCK_P + R - 1) *
    COLUMNS * (1 / BLOCK_M + 1 / BLOCK_N) numbers from L2 for every output. Rows kernels hold
    windows of up to 7x7, and are asked first: their instruction or two for a tap are as cheap as
    the band of a 7x7, 116 lane instructions for an output in 16 bits. Every square window above is
    banded; on large images a 1xN is from 8 taps in 16 bits, from 12 or 13 in float32.
    """
    product = "half" if dtype.itemsize == 2 else precision
    g = geometry.adjoint() if op == "dgrad" else geometry
    tiles = [
        _fitted(tile, g) if isinstance(tile, BandedGradTile) else tile
        for tile in banded_tiles(op, product, in_pieces(g, layout), device)
        if isinstance(tile, BandedGradTile) or _workspace(g, tile, dtype) <= MAX_WORKSPACE
    ]
    costs = {tile: _banded_cost(g, tile, dtype, layout, device) for tile in tiles}
    best = min(tiles, key=lambda tile: costs[tile], default=None)
    return best if best and costs[best] < most else None


def in_pieces(geometry: Geometry, layout: Layout) -> bool:
    """Whether columns come in pieces of 16 bytes, at places that 32 bits hold, in x and in y."""
    in_planes = not (layout.channels_last or layout.wide)
    return in_planes and geometry.W % COLUMN_STEP == geometry.Q % COLUMN_STEP == 0


def suits(tile: BandedTile, pieces: bool) -> bool:
    """Whether a tile does not spill where in_pieces says `pieces`."""
    return pieces or tile.results <= MAX_LONE_RESULTS


def banded_tiles(op: str, product: str, pieces: bool, device: Device) -> list[AnyBandedTile]:
    """The tiles that an operator may be planned with on a device, for one kind of product.

    Args:
        op: "fprop", "dgrad" or "wgrad".
        product: a row of BANDED_TILES.
        pieces: what in_pieces says.
        device: whose shared memory counts.
    """
    dtype = torch.float16 if product == "half" else torch.float32
    shared = LIMITS.get(device.arch, SMALLEST).shared
    tiles: list[AnyBandedTile] = []
    if op == "wgrad":
        tiles += BANDED_GRAD_TILES[product]
    else:
        tiles += [tile for tile in BANDED_TILES[product] if suits(tile, pieces)]
    return [
        tile
        for tile in tiles
        if pipeline_bytes(tile.gemm, dtype.itemsize, tile.num_stages, device.arch) <= shared
    ]


def _workspace(geometry: Geometry, tile: BandedTile, dtype: torch.dtype) -> int:
    """Bytes of the bands of all filters."""
    return math.prod(bands_shape(geometry, tile)) * dtype.itemsize


def _fitted(tile: BandedGradTile, geometry: Geometry) -> BandedGradTile:
    """The tile with steps as wide as the image, and so much higher if it is narrow."""
    step = tile.BLOCK_H * tile.BLOCK_W
    width = min(step, power_of_two(cdiv(geometry.Q, COLUMN_STEP)))
    return replace(tile, BLOCK_H=step // width, BLOCK_W=width)


def _banded_cost(
    geometry: Geometry, tile: AnyBandedTile, dtype: torch.dtype, layout: Layout, device: Device
) -> float:
    """Lane instructions for one output, waiting for L2 counted as instructions.

    What a multiprocessor without a program could have done in the time is counted, too.
    """
    g = geometry
    m, n, k = tile.gemm
    banded = pixel = dtype.itemsize * LANES_PER_BYTE
    if layout.channels_last:
        pixel = SECTOR * LANES_PER_BYTE
    elif g.W % COLUMN_STEP or g.Q % COLUMN_STEP or g.padding_mode != "zeros":
        pixel = max(pixel, LANES_PER_NUMBER)
    programs = banded_programs(g, tile)
    if isinstance(tile, BandedTile):  # a weight gradient is split until the device is full
        programs = cdiv(programs, device.multiprocessors) * device.multiprocessors
    else:
        banded = pixel  # both operands are images
    loads = programs * k * banded_steps(g, tile)
    return loads * (m * pixel + n * banded) / g.y_numel + BANDED_LANES
