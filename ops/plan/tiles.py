"""The tiles that a plan may have: their fields, the tables, and which of them can be built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, get_args

import torch

from .bands import AnyBandedTile, BandedGradTile, BandedTile
from .device import GEMM_MIN, LIMITS, SMALLEST, Device, pipeline_bytes
from .rows import RowsTile
from .tma import TmaTile, fits_tma


@dataclass(frozen=True)
class GemmTile:
    """Extents of one program's GEMM, and what the compiler is told."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    @property
    def results(self) -> int:
        """Of one thread, of 32 to a warp."""
        return self.BLOCK_M * self.BLOCK_N // (32 * self.num_warps)


@dataclass(frozen=True)
class StencilTile:
    """One program's pixels and channels, and what the compiler is told."""

    BLOCK_M: int
    BLOCK_C: int
    num_warps: int = 4
    num_stages: int = 2


Tile: TypeAlias = GemmTile | StencilTile | RowsTile | BandedTile | BandedGradTile | TmaTile

#: By the type of a plan's tile.
FAMILIES: dict[type[Tile], str] = {
    GemmTile: "gemm",
    StencilTile: "stencil",
    RowsTile: "rows",
    BandedTile: "banded",
    BandedGradTile: "banded",
    TmaTile: "tma",
}

#: For each kind of product, tiles from the largest down, the last one for few columns. The largest
#: that fills the device is taken: it reads each input the fewest times. By machine code for sm_90,
#: a warp issues for 2048 multiply-adds in bf16 (4 cycles of a H100's matrix unit, 8 of an A100's)
#: and channels_last 1.1 instructions with 128x256x64, 2.2 with 128x128x64, 3.9 with 128x64x32 and
#: 6.3 with 64x64x32. None has been tuned on a GPU yet; each is checked ahead of time for spills on
#: sm_80, sm_90, sm_100 and gfx942.
GEMM_TILES: dict[str, tuple[GemmTile, ...]] = {
    "half": (
        # Four stages: by shared memory for sm_90 and sm_100 only. On sm_80 it would spill.
        GemmTile(128, 256, 64, num_warps=8, num_stages=4),
        GemmTile(128, 128, 64, num_warps=8, num_stages=3),
        GemmTile(128, 128, 32, num_warps=8, num_stages=3),
        GemmTile(128, 64, 32, num_warps=4, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(128, 32, 32, num_warps=4, num_stages=3),
    ),
    "tf32": (
        GemmTile(128, 128, 32, num_warps=8, num_stages=3),
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
        GemmTile(128, 64, 16, num_warps=8, num_stages=2),
        GemmTile(64, 64, 16, num_warps=8, num_stages=2),
        GemmTile(64, 32, 16, num_warps=4, num_stages=3),
    ),
    "float64": (
        GemmTile(64, 32, 16, num_warps=8, num_stages=2),
        GemmTile(32, 32, 16, num_warps=4, num_stages=2),
    ),
}

#: Summed channels of a step that only channels_last loads: in 16 bits, where pixels are neighbours
#: instead, every element passes through a register of its own, and more of them spill on sm_80.
LONG_STEP = 64

#: Most results of a thread where the channels of no, one and both of the images do not come in
#: pieces of 16 bytes: such elements are loaded and stored one by one, each at an offset of its own.
#: 64 results a thread spill with one such image, on sm_80 in the loop, on sm_90 behind it; with
#: two, WIDE_GEMM_TILES are left.
LONE_RESULTS = (math.inf, 32, 0)

#: Where every element has an offset of its own, see LONE_RESULTS, or a reduction or columns run
#: through several taps, and offsets have 64 bits, two registers each, or taps are counted at run
#: time, as those of an input gradient's phase are. Most tiles above spill there, none does with 16
#: results a thread.
WIDE_GEMM_TILES: dict[str, GemmTile] = {
    "half": GemmTile(64, 64, 32, num_warps=8, num_stages=3),
    "tf32": GemmTile(64, 64, 32, num_warps=8, num_stages=3),
    "tf32x3": GemmTile(64, 32, 32, num_warps=8, num_stages=2),
    "ieee": GemmTile(64, 64, 16, num_warps=8, num_stages=2),
    "float64": GemmTile(64, 32, 16, num_warps=8, num_stages=2),
}

#: Tiles of weight gradients: for many filters and columns, for few, and as WIDE_GEMM_TILES.
#: Rows are filters there, and splits fill the device, so the size does not depend on the pixels.
GEMM_GRADIENT_TILES: dict[str, tuple[GemmTile, GemmTile, GemmTile]] = {
    "half": (
        GemmTile(128, 128, 32, num_warps=8, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(64, 64, 32, num_warps=8, num_stages=3),
    ),
    "tf32": (
        GemmTile(128, 64, 32, num_warps=8, num_stages=3),
        GemmTile(64, 64, 32, num_warps=4, num_stages=3),
        GemmTile(64, 64, 32, num_warps=8, num_stages=3),
    ),
    "tf32x3": (
        GemmTile(64, 64, 32, num_warps=8, num_stages=2),
        GemmTile(64, 32, 32, num_warps=8, num_stages=2),
        GemmTile(64, 32, 32, num_warps=8, num_stages=2),
    ),
    "ieee": (
        GemmTile(64, 64, 16, num_warps=8, num_stages=3),
        GemmTile(64, 32, 16, num_warps=4, num_stages=2),
        GemmTile(64, 32, 16, num_warps=8, num_stages=3),
    ),
    "float64": (
        GemmTile(64, 32, 16, num_warps=4, num_stages=2),
        GemmTile(32, 32, 16, num_warps=4, num_stages=2),
        GemmTile(64, 32, 16, num_warps=8, num_stages=2),
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


#: Registers of a thread with which twelve warps fit on a NVIDIA multiprocessor, and eight.
MAX_REGISTERS, ALL_REGISTERS = 168, 255


def most_registers(op: str, tile: Tile, wide: bool, precision: str, double: bool) -> int | None:
    """What a thread may have at most on NVIDIA; None where that is left to the compiler.

    Left to itself, ptxas takes up to 192 for 128 x 256 sums of boxes, because as many programs fit
    either way. In the other kernels named here it does the contrary: it stays at some number where
    one program more fits, and moves 8 or 16 bytes of a thread to memory to get there. Told a limit,
    it takes what it needs.

    Args:
        op, tile, wide, precision: as in Plan.
        double: whether operands are float64.
    """
    if isinstance(tile, TmaTile):
        return MAX_REGISTERS if precision == "ieee" else None  # of 32 bits, it would spill
    if isinstance(tile, StencilTile):
        return ALL_REGISTERS if wide or double else MAX_REGISTERS  # offsets or sums of 64 bits
    lone_columns = isinstance(tile, RowsTile) and op == "wgrad" and tile.LANE_Q == 1
    return MAX_REGISTERS if lone_columns or (isinstance(tile, GemmTile) and double) else None


def tile_of(fields: Mapping[str, int]) -> Tile:
    """The tile with these fields: their names say of which family it is."""
    kinds: tuple[type[Tile], ...] = get_args(Tile)
    return next(kind(**fields) for kind in kinds if set(fields) == set(kind.__dataclass_fields__))


def shared_bytes(tile: Tile, dtype: torch.dtype, arch: str) -> int:
    """About what a program holds in shared memory: the operands of every stage of its pipeline."""
    if not isinstance(tile, GemmTile | BandedTile | BandedGradTile):
        return 0
    return pipeline_bytes(gemm_of(tile), dtype.itemsize, tile.num_stages, arch)


def gemm_of(tile: GemmTile | AnyBandedTile) -> tuple[int, int, int]:
    """Extents of one step on the matrix unit: (M, N, K)."""
    if isinstance(tile, GemmTile):
        return tile.BLOCK_M, tile.BLOCK_N, tile.BLOCK_K
    return tile.gemm


def is_legal(
    op: str, tile: Tile, dtype: torch.dtype, device: Device, precision: str = "ieee"
) -> bool:
    """Whether a tile has a chance: it can be compiled and neither spills nor overflows by count.

    A necessary condition, for a search to leave the hopeless out; only the compiler knows the rest.

    Args:
        op: "fprop", "dgrad" or "wgrad".
        tile: extents and launch parameters.
        dtype: of the operands.
        device: whose limits count.
        precision: how float32 is multiplied.
    """
    limits = LIMITS.get(device.arch, SMALLEST)
    if any(
        value < 1 or value & (value - 1)
        for name, value in vars(tile).items()
        if name not in ("num_stages", "BLOCK_P", "BLOCK_K", "STEP_P", "BLOCK_S", "programs")
    ):
        return False
    threads = tile.num_warps * limits.lanes
    if tile.num_stages < 1 or threads > 1024:
        return False
    words = 2 if dtype == torch.float64 else 1
    if isinstance(tile, TmaTile):
        return fits_tma(op, tile, dtype, limits.registers, limits.shared)
    if isinstance(tile, RowsTile):
        # A thread keeps at least three rows of sums or of dy, and three shifts of an input row.
        held = tile.BLOCK_Q // tile.LANE_Q * tile.BLOCK_C / threads
        return 1 <= held and held * 6 * words <= limits.registers // 2 and tile.BLOCK_P >= 1
    if isinstance(tile, StencilTile):
        # A thread keeps a sum, and about three values of 32 bits to address and load it.
        held = tile.BLOCK_M * tile.BLOCK_C / threads
        return 1 <= held and held * (words + 3) <= limits.registers // 2
    m, n, k = gemm_of(tile)
    if min(m, n, k) < GEMM_MIN:
        return False
    # Sums, and the addresses and values of the operands on their way to shared memory; tf32x3 has
    # both of its halves in registers. A weight gradient decodes pixels for both operands.
    sums = m * n / threads * words
    operands = (m + n) * k / threads
    operands *= dtype.itemsize / 4 * (2 if precision == "tf32x3" else 1) + (op == "wgrad")
    return (
        sums >= 1
        and sums + operands <= limits.registers
        and shared_bytes(tile, dtype, device.arch) <= limits.shared
    )


def gemm_tiles(product: str, device: Device) -> list[GemmTile]:
    """The tiles of GEMM_TILES whose operands a device has the shared memory for."""
    dtype = _DTYPES.get(product, torch.float32)
    shared = LIMITS.get(device.arch, SMALLEST).shared
    return [t for t in GEMM_TILES[product] if shared_bytes(t, dtype, device.arch) <= shared]


#: Of the rows of the tables that are not float32's.
_DTYPES = {"half": torch.float16, "float64": torch.float64}
