"""What to run: kernel family, tile, grid and splits for one operator on one geometry.

Planning is pure: geometry, dtype, layout and device facts go in, a printable Plan comes out, and
nothing is read from the machine or the environment. There is no tuning at run time: what was tuned
before is data of the package (tuned.py).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from ..errors import ArgumentError
from ..geometry import Geometry
from .banded import banded_tile, has_banded_kernel, in_pieces, suits
from .bands import (
    COLUMN_STEP,
    AnyBandedTile,
    BandedGradTile,
    BandedTile,
    banded_programs,
    grad_strips,
)
from .cost import STENCIL_LANES
from .device import DEVICES as DEVICES
from .device import GEMM_MIN as GEMM_MIN
from .device import INTERPRETER as INTERPRETER
from .device import LIMITS, MAX_WORKSPACE, SMALLEST
from .device import Device as Device
from .integers import cdiv
from .rows import (
    RowsTile,
    interior_tiles,
    is_turned,
    rows_programs,
    rows_strips,
    rows_tile,
)
from .tiles import (
    FAMILIES,
    GEMM_GRADIENT_TILES,
    LONE_RESULTS,
    LONG_STEP,
    STENCIL_TILES,
    WIDE_GEMM_TILES,
    GemmTile,
    StencilTile,
    Tile,
    gemm_of,
    gemm_tiles,
    tile_of,
)
from .tma import (
    TmaTile,
    boxes,
    dealt_out,
    is_legal_tma,
    tma_programs,
    tma_tiles,
)
from .tuned import key_of, nearest, tuned_for
from .work import cheapest


@dataclass(frozen=True)
class Layout:
    """What the planner knows of the tensors in memory.

    Attributes:
        channels_last: neighbouring channels are neighbours in memory.
        wide: some offset or pixel count needs 64 bits.
        x_boxes: as what boxes a tensor descriptor can describe x, see formats.boxes_of; "" if x
            and y are not of one dtype.
        y_boxes: the same of y.
        crowded: what follows the sums takes many registers of its own, see facts.is_crowded.
        as_rows: a window of one pixel reads planes that are one long row each; so x_boxes and
            y_boxes are taken of those.
    """

    channels_last: bool = False
    wide: bool = False
    x_boxes: str = ""
    y_boxes: str = ""
    crowded: bool = False
    as_rows: bool = False

    def boxes(self, op: str) -> str:
        """The boxes of all tensors that `op` reads, "" if they are not of one kind."""
        if op == "wgrad":
            return self.x_boxes if self.x_boxes == self.y_boxes else ""
        return self.x_boxes if op == "fprop" else self.y_boxes


#: Strips that a split of a weight gradient sums at least, to make its last reduction worth it.
MIN_SPLIT_STRIPS = 4

#: A split of a weight gradient sums at least this many pixels, so that partials stay few.
MIN_SPLIT_PIXELS = 1024
#: The largest grid that CUDA and HIP launch along the first axis.
MAX_GRID = 2**31 - 1


@dataclass(frozen=True)
class Plan:
    """One operator's kernel and how it is launched.

    Attributes:
        op: "fprop", "dgrad", "dgrad_frame" or "wgrad".
        tile: extents of a program; its type names the kernel family.
        grid: number of programs.
        wide: offsets are 64-bit.
        precision: how float32 is multiplied: "ieee", "tf32" or "tf32x3".
        one_tap: a reduction step of a GEMM covers channels of a single tap.
        splits: parts that a weight gradient's pixels are cut into.
        split_pixels: pixels of one part.
        split_strips: strips of one part, for a rows or a banded kernel, or boxes, for a tma kernel.
        interior: which tiles of a rows kernel run without masks: "none", "some" or "all".
        turned: an input gradient runs as a forward correlation, see Geometry.adjoint.
        as_rows: boxes of a tma kernel are those of Geometry.as_rows.
    """

    op: str
    tile: Tile
    grid: int
    wide: bool
    precision: str = "ieee"
    one_tap: bool = False
    splits: int = 1
    split_pixels: int = 0
    split_strips: int = 0
    interior: str = "none"
    turned: bool = False
    as_rows: bool = False

    @property
    def family(self) -> str:
        """The kernel family: gemm, tma, stencil, rows or banded."""
        return FAMILIES[type(self.tile)]

    @property
    def kernel(self) -> str:
        """The name of the kernel, which is also the name of its file in kernels/."""
        return f"{'fprop' if self.turned else self.op}_{self.family}"

    @property
    def gemm(self) -> tuple[int, int, int]:
        """(M, N, K) of one pass of the loop of a kernel that multiplies matrices."""
        tile = self.tile
        if isinstance(tile, TmaTile):
            if self.op == "wgrad":
                return tile.BLOCK_K, tile.BLOCK_N * tile.BLOCK_S, tile.pixels
            return tile.BLOCK_N, tile.pixels, tile.BLOCK_K
        assert isinstance(tile, GemmTile | BandedTile | BandedGradTile)
        return gemm_of(tile)

    @property
    def partials(self) -> int:
        """Results of a weight gradient that sum_partials adds up; 1 if there is nothing to add."""
        return self.splits * (COLUMN_STEP if isinstance(self.tile, BandedGradTile) else 1)


@functools.lru_cache(maxsize=4096)
def plan_fprop(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan:
    """The forward plan: rows are output pixels, columns filters, the reduction (r, s, c)."""
    return _plan_pixels(
        "fprop", geometry, dtype, layout, device, precision, geometry.K, geometry.group_C
    )


@functools.lru_cache(maxsize=4096)
def plan_dgrad(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan:
    """The input-gradient plan: rows are input pixels, columns channels, the reduction (r, s, k).

    It takes the padding for zeros: plan_dgrad_frame is for what padding modes add.
    """
    return _plan_pixels(
        "dgrad",
        geometry.without_padding_mode(),
        dtype,
        layout,
        device,
        precision,
        geometry.C,
        geometry.group_K,
    )


@functools.lru_cache(maxsize=4096)
def plan_dgrad_frame(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan | None:
    """The plan for the input gradient's frame, see Geometry.hole: None where there is none.

    It runs after plan_dgrad's, which takes the padding for zeros.
    """
    if not geometry.frame_pixels:
        return None
    return _plan_pixels(
        "dgrad_frame", geometry, dtype, layout, device, precision, geometry.C, geometry.group_K
    )


@functools.lru_cache(maxsize=4096)
def plan_wgrad(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan:
    """The weight-gradient plan: rows are filters, columns (r, s, c), the reduction pixels."""
    if found := _tuned_plan("wgrad", geometry, dtype, layout, device, precision):
        return found
    precise = _precision(dtype, precision, device)
    many, few, wide = GEMM_GRADIENT_TILES[_product(dtype, precision, device)]
    alone = layout.wide or _lone_operands(geometry, dtype) == 2
    tiles: list[Tile] = [wide] if alone else [many, few]
    if min(geometry.group_K, geometry.group_C * geometry.R * geometry.S) >= GEMM_MIN:
        geometry = geometry.as_rows() if layout.as_rows else geometry
        tiles += tma_tiles("wgrad", geometry, dtype, precise, device.arch, layout.boxes("wgrad"))
    else:
        direct = _direct_tile("wgrad", geometry, dtype, layout, device, precision, geometry.K)
        tiles = [direct, *tiles] if isinstance(direct, StencilTile) else [direct]
    plans = [
        plan_with_tile(
            "wgrad",
            geometry,
            tile,
            wide=layout.wide,
            precision=precise,
            splits=_splits(geometry, tile, dtype, device),
            as_rows=layout.as_rows,
        )
        for tile in tiles
    ]
    return cheapest(plans, geometry, dtype, device, not layout.channels_last)


def _splits(geometry: Geometry, tile: Tile, dtype: torch.dtype, device: Device) -> int:
    """Parts of a weight gradient's pixels that fill the device, as many as are worth it."""
    _, pixels = _pixels("wgrad", geometry)
    partial_bytes = geometry.weight_numel * (8 if dtype == torch.float64 else 4)
    if isinstance(tile, BandedGradTile):
        partial_bytes *= COLUMN_STEP
    # Programs of a tma kernel fill the shared memory of a multiprocessor one or two at a time.
    side_by_side = 2 if isinstance(tile, TmaTile) else 4
    return min(
        cdiv(side_by_side * device.multiprocessors, max(1, _programs("wgrad", geometry, tile))),
        _most_splits(geometry, tile, pixels),
        MAX_WORKSPACE // max(1, partial_bytes),
    )


def plan_with_tile(
    op: str,
    geometry: Geometry,
    tile: Tile,
    *,
    wide: bool = False,
    precision: str = "ieee",
    one_tap: bool = False,
    splits: int = 1,
    as_rows: bool = False,
) -> Plan:
    """The plan that runs `op` with `tile`, whichever tile the planner would choose.

    Args:
        op: "fprop", "dgrad" or "wgrad".
        geometry: what to run it on.
        tile: its type chooses the kernel family.
        wide: as in Plan.
        precision: as in Plan; a stencil multiplies exactly.
        one_tap: as in Plan; for fprop and dgrad by a GEMM.
        splits: about how many parts a weight gradient's pixels are cut into: parts are whole steps
            of the tile, so there may be fewer.
        as_rows: as in Plan; without a meaning to other kernels.

    Raises:
        ArgumentError: the grid is larger than a launch can have.
    """
    if op == "dgrad":
        geometry = geometry.without_padding_mode()
    as_rows &= isinstance(tile, TmaTile)
    geometry = geometry.as_rows() if as_rows else geometry
    grid = _programs(op, geometry, tile)
    if isinstance(tile, TmaTile) and tile.programs:
        grid = min(grid, tile.programs)
    if not isinstance(tile, GemmTile | TmaTile | BandedTile | BandedGradTile):
        precision = "ieee"
    split_pixels = split_strips = 0
    if op == "wgrad" and isinstance(tile, RowsTile | TmaTile | BandedGradTile):
        strips = _strips(geometry, tile)
        split_strips = cdiv(max(1, strips), max(1, splits))
        splits = max(1, cdiv(strips, split_strips))
        grid *= splits
    elif op == "wgrad":
        assert isinstance(tile, GemmTile | StencilTile)
        _, pixels = _pixels(op, geometry)
        step = tile.BLOCK_K if isinstance(tile, GemmTile) else tile.BLOCK_M
        split_pixels = cdiv(cdiv(max(1, pixels), max(1, splits)), step) * step
        splits = max(1, cdiv(pixels, split_pixels))
        grid *= splits
    if grid > MAX_GRID:
        raise ArgumentError(f"the call needs {grid} programs, more than the {MAX_GRID} of a launch")
    return Plan(
        op,
        tile,
        grid,
        wide,
        precision,
        one_tap,
        splits,
        split_pixels,
        split_strips,
        interior=interior_tiles(op, geometry, tile) if isinstance(tile, RowsTile) else "none",
        turned=isinstance(tile, RowsTile | BandedTile) and is_turned(op, geometry),
        as_rows=as_rows,
    )


def _plan_pixels(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    layout: Layout,
    device: Device,
    precision: str,
    channels: int,
    reduced: int,
) -> Plan:
    """The plan of fprop or dgrad, which differ in what is a column and what is reduced."""
    if found := _tuned_plan(op, geometry, dtype, layout, device, precision):
        return found
    precise = _precision(dtype, precision, device)
    product = _product(dtype, precision, device)
    gemms = _gemm_tiles(op, geometry, dtype, layout, device, product)
    if layout.crowded:  # 128 x 256 sums would spill, and 128 x 128 of contiguous images
        gemms = [tile for tile in gemms if tile.BLOCK_N < (256 if layout.channels_last else 128)]
    tiles: list[Tile] = [*gemms]
    columns = channels // geometry.groups
    if min(columns, reduced * geometry.R * geometry.S) >= GEMM_MIN:
        geometry = geometry.as_rows() if layout.as_rows else geometry
        boxes = layout.boxes(op)
        tiles += tma_tiles(op, geometry, dtype, precise, device.arch, boxes, layout.crowded)
    else:
        direct = _direct_tile(op, geometry, dtype, layout, device, precision, channels)
        fewest = min(gemms, key=lambda tile: tile.BLOCK_N)
        # Of a matrix unit most multiplies zeros, but a stencil walks through all that is summed.
        walks = isinstance(direct, StencilTile) and reduced >= fewest.BLOCK_K
        tiles = [direct, fewest] if walks else [direct]
    plans = [
        plan_with_tile(
            op,
            geometry,
            tile,
            wide=layout.wide,
            precision=precise,
            one_tap=takes_one_tap(op, geometry, tile),
            as_rows=layout.as_rows,
        )
        for tile in tiles
    ]
    best = cheapest(plans, geometry, dtype, device, not layout.channels_last)
    # In one loop with the next sums, that and offsets of 64 bits spill up to 112 bytes.
    if not isinstance(best.tile, TmaTile) or layout.crowded or layout.wide:
        return best
    shared = LIMITS.get(device.arch, SMALLEST).shared
    boxes = layout.boxes(op)
    tile = dealt_out(op, geometry, best.tile, dtype, boxes, device.multiprocessors, shared)
    return replace(best, tile=tile, grid=tile.programs or best.grid)


def _gemm_tiles(
    op: str, geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, product: str
) -> list[GemmTile]:
    """The tiles of a GEMM that computes fprop or dgrad through pointers."""
    reduced = geometry.group_C if op == "fprop" else geometry.group_K
    long_steps = layout.channels_last and reduced % LONG_STEP == 0 and not layout.wide
    table = [t for t in gemm_tiles(product, device) if long_steps or t.BLOCK_K < LONG_STEP]
    if op == "dgrad_frame":  # has few pixels, and two loops that take registers
        table = table[-1:]
    by_phases = op == "dgrad" and math.prod(geometry.phases) > 1
    alone = _lone_operands(geometry, dtype)
    kept = [
        tile
        for tile in table
        if (
            tile.results <= LONE_RESULTS[alone]
            if reduced >= tile.BLOCK_K
            else not (layout.wide or by_phases)
        )
    ]
    return kept if len(kept) == len(table) else [*kept, WIDE_GEMM_TILES[product]]


def _direct_tile(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    layout: Layout,
    device: Device,
    precision: str,
    channels: int,
) -> Tile:
    """The tile for few channels: of rows kernels, else of banded ones, else of a stencil."""
    _, pixels = _pixels(op, geometry)
    direct = (
        rows_tile(op, geometry, dtype, layout, device)
        or _banded_tile(op, geometry, dtype, layout, device, precision)
        or _stencil_tile(channels, pixels, layout)
    )
    if op == "dgrad_frame":  # two loops around the sum leave registers for fewer pixels
        assert isinstance(direct, StencilTile)
        direct = replace(direct, BLOCK_M=direct.BLOCK_M // 4)
    return direct


def _lone_operands(geometry: Geometry, dtype: torch.dtype) -> int:
    """How many of x and y have channels that do not come in pieces of 16 bytes."""
    piece = max(1, 16 // dtype.itemsize)
    return sum(channels % piece != 0 for channels in (geometry.group_C, geometry.group_K))


def _tuned_plan(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    layout: Layout,
    device: Device,
    precision: str,
) -> Plan | None:
    """The plan by the device's tuned file, if that has this problem or one near it."""
    # Tuned without what takes registers, they may spill with it.
    tuned = {} if layout.wide or layout.crowded else tuned_for(device.name)
    if not tuned:
        return None
    precision = _precision(dtype, precision, device)
    key = key_of(op, geometry, dtype, precision, layout.channels_last)
    found, distance = nearest(tuned, key)
    if found is None:
        return None
    tile = tile_of(found.tile)
    geometry = geometry.as_rows() if layout.as_rows and isinstance(tile, TmaTile) else geometry
    if isinstance(tile, TmaTile) and not is_legal_tma(
        op, geometry, dtype, precision, device.arch, layout.boxes(op), tile
    ):
        return None  # its key says nothing of alignment, nor what divides a plane
    if distance and isinstance(tile, BandedTile) and not suits(tile, in_pieces(geometry, layout)):
        return None
    splits = _splits(geometry, tile, dtype, device) if op == "wgrad" and distance else found.splits
    return plan_with_tile(
        op,
        geometry,
        tile,
        precision=precision,
        one_tap=takes_one_tap(op, geometry, tile),
        splits=splits,
        as_rows=layout.as_rows,
    )


def takes_one_tap(op: str, geometry: Geometry, tile: Tile) -> bool:
    """Whether a step of this tile is filled by the channels of one tap, see Plan.one_tap."""
    if op == "wgrad" or not isinstance(tile, GemmTile):
        return False
    return (geometry.group_C if op == "fprop" else geometry.group_K) >= tile.BLOCK_K


def _programs(op: str, geometry: Geometry, tile: Tile) -> int:
    """How many programs cover all results, a weight gradient's before it is split."""
    if isinstance(tile, BandedTile | BandedGradTile):
        return banded_programs(geometry.adjoint() if op == "dgrad" else geometry, tile)
    if isinstance(tile, TmaTile):
        return tma_programs(op, geometry, tile)
    if isinstance(tile, RowsTile):
        return rows_programs(op, geometry, tile)
    batches, pixels = _pixels(op, geometry)
    taps = geometry.group_C * geometry.R * geometry.S
    channels = geometry.C if op.startswith("dgrad") else geometry.K
    if isinstance(tile, StencilTile):
        per_channel = taps if op == "wgrad" else cdiv(pixels, tile.BLOCK_M)
        return batches * per_channel * cdiv(channels, tile.BLOCK_C)
    columns = channels // geometry.groups
    rows, columns = (columns, taps) if op == "wgrad" else (pixels, columns)
    if op == "dgrad":  # each phase has programs of its own
        samples, *plane = geometry.phase_shape
        rows = math.prod(plane) * (1 if geometry.per_sample else samples)
        batches *= math.prod(geometry.phases)
    return batches * geometry.groups * cdiv(rows, tile.BLOCK_M) * cdiv(columns, tile.BLOCK_N)


def _pixels(op: str, geometry: Geometry) -> tuple[int, int]:
    """(independent problems, pixels of each): a bank per sample makes each sample a problem."""
    extent = {"dgrad": geometry.H * geometry.W, "dgrad_frame": geometry.frame_pixels}.get(
        op, geometry.P * geometry.Q
    )
    return (geometry.N, extent) if geometry.per_sample else (1, geometry.N * extent)


def _strips(geometry: Geometry, tile: RowsTile | TmaTile | BandedGradTile) -> int:
    """Strips, or boxes, of one problem that a weight gradient runs over."""
    if isinstance(tile, TmaTile):
        return boxes(geometry, tile)
    if isinstance(tile, BandedGradTile):
        return grad_strips(geometry, tile)
    return rows_strips(geometry, tile)


def _most_splits(geometry: Geometry, tile: Tile, pixels: int) -> int:
    """The most parts of a weight gradient that are worth a reduction of their own."""
    if isinstance(tile, BandedGradTile):
        return cdiv(grad_strips(geometry, tile), MIN_SPLIT_STRIPS)
    if isinstance(tile, TmaTile):
        return cdiv(boxes(geometry, tile), MIN_SPLIT_STRIPS)
    if isinstance(tile, RowsTile):
        return rows_strips(geometry, tile)
    return cdiv(pixels, MIN_SPLIT_PIXELS)


def _banded_tile(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    layout: Layout,
    device: Device,
    precision: str,
) -> AnyBandedTile | None:
    """The tile of a banded kernel; None where a stencil is expected to take no longer."""
    precise = _precision(dtype, precision, device)
    if geometry.y_numel == 0 or not has_banded_kernel(op, geometry, dtype, precise):
        return None
    most = _stencil_cost(op, geometry, layout, device)
    return banded_tile(op, geometry, dtype, layout, device, precise, most)


def _stencil_cost(op: str, geometry: Geometry, layout: Layout, device: Device) -> float:
    """The same for the stencil that would do it, lanes without a pixel counted."""
    g = geometry
    channels = g.C if op == "dgrad" else g.K
    batches, pixels = _pixels(op, g)
    tile = _stencil_tile(channels, pixels, layout)
    programs = batches * cdiv(pixels, tile.BLOCK_M) * cdiv(channels, tile.BLOCK_C)
    if op != "wgrad":
        programs = cdiv(programs, device.multiprocessors) * device.multiprocessors
    lanes = programs * tile.BLOCK_M * tile.BLOCK_C / (batches * pixels * channels)
    return STENCIL_LANES[op] * g.R * g.S * lanes


def _stencil_tile(channels: int, pixels: int, layout: Layout) -> StencilTile:
    if layout.channels_last:
        fits = [t for t in STENCIL_TILES if t.BLOCK_C <= max(1, channels)]
        return fits[-1]
    if channels == 1:
        return STENCIL_TILES[0]
    return next((t for t in STENCIL_TILES[:3] if t.BLOCK_M <= pixels), STENCIL_TILES[2])


def _precision(dtype: torch.dtype, precision: str, device: Device) -> str:
    """The input precision that Triton is given. AMD has no tf32x3: ieee is at least as exact."""
    if dtype != torch.float32 or (precision == "tf32x3" and device.arch.startswith("gfx")):
        return "ieee"
    return precision


def _product(dtype: torch.dtype, precision: str, device: Device) -> str:
    """Which row of GEMM_TILES a dtype and precision takes."""
    if dtype == torch.float32:
        return _precision(dtype, precision, device)
    return "float64" if dtype == torch.float64 else "half"
