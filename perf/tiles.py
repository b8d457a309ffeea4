"""What the tuner tries: the tiles of one kernel family around one that the planner takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from ..ops import Geometry
from ..ops.plan.bands import BandedGradTile, BandedTile
from ..ops.plan.rows import RowsTile
from ..ops.plan.tiles import GemmTile, StencilTile, Tile
from ..ops.plan.tma import TmaTile, box_of, pixel_planes, plane_box, taps_of, whole_box


def tiles_like(op: str, geometry: Geometry, tile: object, boxes: str = "") -> Iterator[Tile]:
    """Tiles of the family of `tile`, whether or not they are legal; none of an unknown family.

    Args:
        op: "fprop", "dgrad" or "wgrad".
        geometry: what they are for.
        tile: one of them.
        boxes: as Layout.boxes gives them.
    """
    if isinstance(tile, GemmTile):
        return _gemm_tiles(op, geometry)
    if isinstance(tile, StencilTile):
        return _stencil_tiles(op, geometry)
    if isinstance(tile, BandedTile):
        return _banded_tiles()
    if isinstance(tile, BandedGradTile):
        return _banded_grad_tiles(geometry, tile)
    if isinstance(tile, TmaTile):
        return _tma_tiles(op, geometry, tile, boxes)
    if isinstance(tile, RowsTile):
        return _rows_tiles(op, geometry, tile)
    return iter(())


def _gemm_tiles(op: str, geometry: Geometry) -> Iterator[GemmTile]:
    rows, columns = {
        "fprop": (math.inf, geometry.group_K),
        "dgrad": (math.inf, geometry.group_C),
        "wgrad": (geometry.group_K, geometry.group_C * geometry.R * geometry.S),
    }[op]
    for m, n, *rest in itertools.product(
        (32, 64, 128, 256), (16, 32, 64, 128, 256), (16, 32, 64, 128), (4, 8), (2, 3, 4)
    ):
        if m < 2 * max(rows, 32) and n < 2 * max(columns, 16):
            yield GemmTile(m, n, *rest)


def _stencil_tiles(op: str, geometry: Geometry) -> Iterator[StencilTile]:
    channels = geometry.C if op == "dgrad" else geometry.K
    sizes = itertools.product([2**i for i in range(3, 12)], [2**i for i in range(8)], (1, 2, 4, 8))
    for m, c, warps in sizes:
        if 128 <= m * c <= 4096 and c < 2 * channels:
            yield StencilTile(m, c, warps)


def _banded_tiles() -> Iterator[BandedTile]:
    extents = itertools.product(
        (16, 32, 64, 128, 256), (2, 4, 8, 16), (8, 16, 32), (16, 32, 64), (4, 8), (2, 3, 4)
    )
    return (BandedTile(*extent) for extent in extents)


def _banded_grad_tiles(geometry: Geometry, tile: BandedGradTile) -> Iterator[BandedGradTile]:
    width = tile.BLOCK_W
    steps = itertools.product((4, 8, 16, 32), (16, 32, 64, 128), (16, 32, 64), (4, 8), (2, 3))
    for r, i, step, warps, stages in steps:
        if step >= width and r < 2 * geometry.R:
            yield BandedGradTile(r, i, step // width, width, warps, stages)


def _tma_tiles(op: str, geometry: Geometry, tile: TmaTile, boxes: str) -> Iterator[TmaTile]:
    """Other boxes and blocks: summed channels may be fewer than the tile's, which divide them."""
    planes = pixel_planes(op, geometry)
    for pixels, n, k, warps, stages in itertools.product(
        (32, 64, 128, 256), (32, 64, 128, 256), (16, 32, 64, 128), (4, 8), (2, 3, 4)
    ):
        if op == "wgrad":
            box = (1, 1, pixels) if boxes == "planes" else whole_box(planes, pixels)
            for taps in {1, taps_of(geometry)}:
                yield TmaTile(*box, n, k, warps, stages, taps)
        elif tile.BLOCK_K % k == 0:
            box = plane_box(planes, pixels) if boxes == "planes" else box_of(planes, pixels)
            for programs in {0, tile.programs}:
                yield TmaTile(*box, n, k, warps, stages, programs=programs)


def _rows_tiles(op: str, geometry: Geometry, tile: RowsTile) -> Iterator[RowsTile]:
    channels = geometry.groups * (1 if op == "wgrad" else geometry.N)
    blocks = itertools.product(
        (8, 16, 32, 64), [2**i for i in range(3, 11)], [2**i for i in range(8)], (1, 2, 4, 8)
    )
    for p, q, c, warps in blocks:
        if 128 <= q * c <= 1024 and c < 2 * channels:
            block_q = q * tile.LANE_Q
            yield replace(tile, BLOCK_P=p, BLOCK_Q=block_q, BLOCK_C=c, num_warps=warps)
