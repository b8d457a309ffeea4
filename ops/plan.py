"""What to run: kernel family, tile, grid and splits for one operator on one geometry.

Planning is pure: geometry, dtype, layout and device facts go in, a printable Plan comes out, and
nothing is read from the machine or the environment. There is no tuning at run time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import torch

from .errors import ArgumentError
from .geometry import Geometry


@dataclass(frozen=True)
class Device:
    """What the planner knows of a device.

    Attributes:
        name: for people.
        arch: compute capability times ten ("90"), a gfx name, or "interpreter".
        multiprocessors: how many programs run side by side, at least.
    """

    name: str
    arch: str
    multiprocessors: int


INTERPRETER = Device("Triton interpreter", "interpreter", 4)


@dataclass(frozen=True)
class Layout:
    """What the planner knows of the tensors in memory.

    Attributes:
        channels_last: neighbouring channels are neighbours in memory.
        wide: some offset or pixel count needs 64 bits.
    """

    channels_last: bool = False
    wide: bool = False


@dataclass(frozen=True)
class GemmTile:
    """Extents of one program's GEMM, and what the compiler is told."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class StencilTile:
    """One program's pixels and channels, and what the compiler is told."""

    BLOCK_M: int
    BLOCK_C: int
    num_warps: int = 4
    num_stages: int = 2


Tile: TypeAlias = GemmTile | StencilTile

#: For each kind of product, tiles from the largest down, the last one for few columns. The largest
#: that fills the device is taken: it reads each input the fewest times. None has been tuned on a
#: GPU yet; each is checked ahead of time for spills on sm_80, sm_90, sm_100 and gfx942.
GEMM_TILES: dict[str, tuple[GemmTile, ...]] = {
    "half": (
        GemmTile(128, 128, 32, num_warps=8, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(128, 32, 32, num_warps=4, num_stages=3),
    ),
    "tf32": (
        GemmTile(128, 64, 32, num_warps=8, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(128, 32, 32, num_warps=4, num_stages=3),
    ),
    # Three products per product: operands are held twice, so tiles are smaller.
    "tf32x3": (
        GemmTile(64, 64, 32, num_warps=8, num_stages=2),
        GemmTile(64, 32, 32, num_warps=4, num_stages=2),
    ),
    # No matrix unit multiplies float32 exactly: fused multiply-adds from registers.
    "ieee": (
        GemmTile(64, 64, 16, num_warps=8, num_stages=2),
        GemmTile(64, 32, 16, num_warps=4, num_stages=2),
    ),
    "float64": (
        GemmTile(64, 32, 16, num_warps=4, num_stages=2),
        GemmTile(32, 32, 16, num_warps=4, num_stages=2),
    ),
}

#: 512 elements each: a plane of pixels, few pixels of several channels, and for channels_last
#: neighbouring channels across the lanes.
STENCIL_TILES: tuple[StencilTile, ...] = (
    StencilTile(512, 1),
    StencilTile(128, 4),
    StencilTile(32, 16),
    StencilTile(8, 64),
)

#: A matrix unit works on 16 x 16; with fewer channels than that most of it would multiply zeros.
GEMM_MIN = 16
#: A split of a weight gradient sums at least this many pixels, so that partials stay few.
MIN_SPLIT_PIXELS = 1024
#: Most bytes that partials of a weight gradient may take.
MAX_WORKSPACE = 64 * 2**20
#: The largest grid that CUDA and HIP launch along the first axis.
MAX_GRID = 2**31 - 1


@dataclass(frozen=True)
class Plan:
    """One operator's kernel and how it is launched.

    Attributes:
        op: "fprop", "dgrad" or "wgrad".
        tile: extents of a program; its type names the kernel family.
        grid: number of programs.
        wide: offsets are 64-bit.
        precision: how float32 is multiplied: "ieee", "tf32" or "tf32x3".
        one_tap: a reduction step of a GEMM covers channels of a single tap.
        splits: parts that a weight gradient's pixels are cut into.
        split_pixels: pixels of one part.
    """

    op: str
    tile: Tile
    grid: int
    wide: bool
    precision: str = "ieee"
    one_tap: bool = False
    splits: int = 1
    split_pixels: int = 0

    @property
    def family(self) -> str:
        """"gemm" or "stencil"."""
        return "gemm" if isinstance(self.tile, GemmTile) else "stencil"

    @property
    def kernel(self) -> str:
        """The name of the kernel, which is also the name of its file in kernels/."""
        return f"{self.op}_{self.family}"


@functools.lru_cache(maxsize=4096)
def plan_fprop(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan:
    """The forward plan: rows are output pixels, columns filters, the reduction (r, s, c)."""
    pixels = geometry.y_numel // max(1, geometry.K)
    return _plan_pixels(
        "fprop", geometry, dtype, layout, device, precision, pixels, geometry.K, geometry.group_C
    )


@functools.lru_cache(maxsize=4096)
def plan_dgrad(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan:
    """The input-gradient plan: rows are input pixels, columns channels, the reduction (r, s, k)."""
    pixels = geometry.N * geometry.H * geometry.W
    return _plan_pixels(
        "dgrad", geometry, dtype, layout, device, precision, pixels, geometry.C, geometry.group_K
    )


@functools.lru_cache(maxsize=4096)
def plan_wgrad(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan:
    """The weight-gradient plan: rows are filters, columns (r, s, c), the reduction pixels."""
    batches, pixels = _batches(geometry, geometry.y_numel // max(1, geometry.K))
    columns = geometry.group_C * geometry.R * geometry.S
    tile: Tile
    if min(geometry.group_K, columns) >= GEMM_MIN:
        # The long side of a tile lies along the pixels in the other operators; here rows are
        # filters, and splits fill the device, so the size of the tile does not depend on it.
        tiles = GEMM_TILES[_product(dtype, precision, device)]
        tile = tiles[0] if min(geometry.group_K, columns) >= tiles[0].BLOCK_N else tiles[1]
        programs = geometry.groups * _cdiv(geometry.group_K, tile.BLOCK_M)
        programs *= batches * _cdiv(columns, tile.BLOCK_N)
        step = tile.BLOCK_K
    else:
        tile = _stencil_tile(geometry.K, pixels, layout)
        programs = batches * _cdiv(geometry.K, tile.BLOCK_C) * columns
        step = tile.BLOCK_M
    partial_bytes = geometry.weight_numel * (8 if dtype == torch.float64 else 4)
    splits = min(
        _cdiv(4 * device.multiprocessors, max(1, programs)),
        _cdiv(pixels, MIN_SPLIT_PIXELS),
        MAX_WORKSPACE // max(1, partial_bytes),
    )
    return split_wgrad(
        Plan(
            "wgrad",
            tile,
            grid=programs,
            wide=layout.wide,
            precision=_precision(dtype, precision, device),
        ),
        pixels,
        step,
        splits,
    )


def split_wgrad(plan: Plan, pixels: int, step: int, splits: int) -> Plan:
    """`plan`, unsplit so far, with its pixels cut into about `splits` parts of whole steps."""
    split_pixels = _cdiv(_cdiv(max(1, pixels), max(1, splits)), step) * step
    splits = max(1, _cdiv(pixels, split_pixels))
    return Plan(
        plan.op,
        plan.tile,
        grid=_checked_grid(plan.grid * splits),
        wide=plan.wide,
        precision=plan.precision,
        splits=splits,
        split_pixels=split_pixels,
    )


def _plan_pixels(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    layout: Layout,
    device: Device,
    precision: str,
    pixels: int,
    channels: int,
    reduced: int,
) -> Plan:
    """The plan of fprop or dgrad, which differ in what is a pixel, a column and reduced."""
    batches, pixels = _batches(geometry, pixels)
    columns = channels // geometry.groups
    if min(columns, reduced * geometry.R * geometry.S) < GEMM_MIN:
        stencil = _stencil_tile(channels, pixels, layout)
        grid = batches * _cdiv(pixels, stencil.BLOCK_M) * _cdiv(channels, stencil.BLOCK_C)
        return Plan(op, stencil, _checked_grid(grid), layout.wide)

    def programs(tile: GemmTile) -> int:
        per_group = _cdiv(pixels, tile.BLOCK_M) * _cdiv(columns, tile.BLOCK_N)
        return batches * geometry.groups * per_group

    tiles = GEMM_TILES[_product(dtype, precision, device)]
    fits = [tile for tile in tiles if tile.BLOCK_N <= max(columns, tiles[-1].BLOCK_N)]
    tile = next((t for t in fits if programs(t) >= 2 * device.multiprocessors), fits[-1])
    return Plan(
        op,
        tile,
        _checked_grid(programs(tile)),
        layout.wide,
        precision=_precision(dtype, precision, device),
        one_tap=reduced >= tile.BLOCK_K,
    )


def _batches(geometry: Geometry, pixels: int) -> tuple[int, int]:
    """(independent problems, pixels of each): a bank per sample makes each sample a problem."""
    if geometry.per_sample:
        return geometry.N, pixels // max(1, geometry.N)
    return 1, pixels


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


def _checked_grid(grid: int) -> int:
    if grid > MAX_GRID:
        raise ArgumentError(f"the call needs {grid} programs, more than the {MAX_GRID} of a launch")
    return grid


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
