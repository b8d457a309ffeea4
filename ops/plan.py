"""What to run: kernel family, tile, grid and splits for one operator on one geometry.

Planning is pure: geometry, dtype, layout and device facts go in, a printable Plan comes out, and
nothing is read from the machine or the environment. There is no tuning at run time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
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
        bandwidth: bytes per second of device memory by the datasheet; None if not known here.
        flops_per_second: by the datasheet and without sparsity, for "fma" (float32), "float64",
            "tf32" and "half" (16-bit) products. Only explain() reads the last two.
    """

    name: str
    arch: str
    multiprocessors: int
    bandwidth: float | None = None
    flops_per_second: Mapping[str, float] = field(default_factory=dict, hash=False)


INTERPRETER = Device("Triton interpreter", "interpreter", 4)

#: Devices that can be planned for without having one. Datasheet numbers: leads, not measurements.
DEVICES = {
    "a100": Device(
        "NVIDIA A100 80GB",
        "80",
        108,
        2.04e12,
        {"fma": 19.5e12, "float64": 19.5e12, "tf32": 156e12, "half": 312e12},
    ),
    "h100": Device(
        "NVIDIA H100 SXM",
        "90",
        132,
        3.35e12,
        {"fma": 67e12, "float64": 67e12, "tf32": 495e12, "half": 990e12},
    ),
    "h200": Device(
        "NVIDIA H200",
        "90",
        132,
        4.8e12,
        {"fma": 67e12, "float64": 67e12, "tf32": 495e12, "half": 990e12},
    ),
    "b200": Device(
        "NVIDIA B200",
        "100",
        148,
        8e12,
        {"fma": 80e12, "float64": 40e12, "tf32": 1.1e15, "half": 2.25e15},
    ),
    "mi300x": Device(
        "AMD MI300X",
        "gfx942",
        304,
        5.3e12,
        {"fma": 163e12, "float64": 163e12, "tf32": 654e12, "half": 1.31e15},
    ),
}


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

#: For 64-bit offsets, two registers each, where a reduction or columns run through several taps and
#: every element has its own: most tiles above spill there, none does with 16 results a thread.
WIDE_GEMM_TILES: dict[str, GemmTile] = {
    "half": GemmTile(64, 64, 32, num_warps=8, num_stages=3),
    "tf32": GemmTile(64, 64, 32, num_warps=8, num_stages=3),
    "tf32x3": GemmTile(64, 32, 32, num_warps=8, num_stages=2),
    "ieee": GemmTile(64, 64, 16, num_warps=8, num_stages=2),
    "float64": GemmTile(64, 32, 16, num_warps=8, num_stages=2),
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
        """The kernel family, gemm or stencil."""
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
    return _plan_pixels(
        "fprop", geometry, dtype, layout, device, precision, geometry.K, geometry.group_C
    )


@functools.lru_cache(maxsize=4096)
def plan_dgrad(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan:
    """The input-gradient plan: rows are input pixels, columns channels, the reduction (r, s, k)."""
    return _plan_pixels(
        "dgrad", geometry, dtype, layout, device, precision, geometry.C, geometry.group_K
    )


@functools.lru_cache(maxsize=4096)
def plan_wgrad(
    geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device, precision: str = "ieee"
) -> Plan:
    """The weight-gradient plan: rows are filters, columns (r, s, c), the reduction pixels."""
    _, pixels = _pixels("wgrad", geometry)
    columns = geometry.group_C * geometry.R * geometry.S
    tile: Tile
    if min(geometry.group_K, columns) >= GEMM_MIN:
        # The long side of a tile lies along the pixels in the other operators; here rows are
        # filters, and splits fill the device, so the size of the tile does not depend on it.
        product = _product(dtype, precision, device)
        tiles = (WIDE_GEMM_TILES[product],) * 2 if layout.wide else GEMM_TILES[product]
        tile = tiles[0] if min(geometry.group_K, columns) >= tiles[0].BLOCK_N else tiles[1]
    else:
        tile = _stencil_tile(geometry.K, pixels, layout)
    partial_bytes = geometry.weight_numel * (8 if dtype == torch.float64 else 4)
    splits = min(
        _cdiv(4 * device.multiprocessors, max(1, _programs("wgrad", geometry, tile))),
        _cdiv(pixels, MIN_SPLIT_PIXELS),
        MAX_WORKSPACE // max(1, partial_bytes),
    )
    return plan_with_tile(
        "wgrad",
        geometry,
        tile,
        wide=layout.wide,
        precision=_precision(dtype, precision, device),
        splits=splits,
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

    Raises:
        ArgumentError: the grid is larger than a launch can have.
    """
    grid = _programs(op, geometry, tile)
    split_pixels = 0
    if op == "wgrad":
        _, pixels = _pixels(op, geometry)
        step = tile.BLOCK_K if isinstance(tile, GemmTile) else tile.BLOCK_M
        split_pixels = _cdiv(_cdiv(max(1, pixels), max(1, splits)), step) * step
        splits = max(1, _cdiv(pixels, split_pixels))
        grid *= splits
    if grid > MAX_GRID:
        raise ArgumentError(f"the call needs {grid} programs, more than the {MAX_GRID} of a launch")
    return Plan(op, tile, grid, wide, precision, one_tap, splits, split_pixels)


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
    columns = channels // geometry.groups
    if min(columns, reduced * geometry.R * geometry.S) < GEMM_MIN:
        _, pixels = _pixels(op, geometry)
        stencil = _stencil_tile(channels, pixels, layout)
        return plan_with_tile(op, geometry, stencil, wide=layout.wide)
    product = _product(dtype, precision, device)
    tiles = GEMM_TILES[product]
    fits = [tile for tile in tiles if tile.BLOCK_N <= max(columns, tiles[-1].BLOCK_N)]
    enough = 2 * device.multiprocessors
    tile = next((t for t in fits if _programs(op, geometry, t) >= enough), fits[-1])
    if layout.wide and reduced < tile.BLOCK_K:
        tile = WIDE_GEMM_TILES[product]
    return plan_with_tile(
        op,
        geometry,
        tile,
        wide=layout.wide,
        precision=_precision(dtype, precision, device),
        one_tap=reduced >= tile.BLOCK_K,
    )


def _programs(op: str, geometry: Geometry, tile: Tile) -> int:
    """How many programs cover all results, a weight gradient's before it is split."""
    batches, pixels = _pixels(op, geometry)
    taps = geometry.group_C * geometry.R * geometry.S
    channels = geometry.C if op == "dgrad" else geometry.K
    if isinstance(tile, StencilTile):
        per_channel = taps if op == "wgrad" else _cdiv(pixels, tile.BLOCK_M)
        return batches * per_channel * _cdiv(channels, tile.BLOCK_C)
    columns = channels // geometry.groups
    rows, columns = (columns, taps) if op == "wgrad" else (pixels, columns)
    return batches * geometry.groups * _cdiv(rows, tile.BLOCK_M) * _cdiv(columns, tile.BLOCK_N)


def _pixels(op: str, geometry: Geometry) -> tuple[int, int]:
    """(independent problems, pixels of each): a bank per sample makes each sample a problem."""
    extent = geometry.H * geometry.W if op == "dgrad" else geometry.P * geometry.Q
    return (geometry.N, extent) if geometry.per_sample else (1, geometry.N * extent)


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


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
