"""What to run: kernel family, tile, grid and splits for one operator on one geometry.

Planning is pure: geometry, dtype, layout and device facts go in, a printable Plan comes out, and
nothing is read from the machine or the environment. There is no tuning at run time: what was tuned
before is data of the package (tuned.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, get_args

import torch

from .bands import (
    COLUMN_STEP,
    AnyBandedTile,
    BandedGradTile,
    BandedTile,
    banded_programs,
    banded_steps,
    bands_shape,
    grad_strips,
)
from .errors import ArgumentError
from .geometry import Geometry
from .integers import cdiv, power_of_two
from .plan_rows import (
    RowsTile,
    interior_tiles,
    is_turned,
    rows_programs,
    rows_strips,
    rows_tile,
)
from .plan_tma import (
    TmaTile,
    boxes,
    fits_tma,
    is_legal_tma,
    tma_programs,
    tma_tile,
)
from .tuned import key_of, tuned_for


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
        descriptors: tensor descriptors can describe x and y, which have one dtype, see
            formats.fits_descriptor.
    """

    channels_last: bool = False
    wide: bool = False
    descriptors: bool = False


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

#: Where every element has an offset of its own: channels do not come in pieces of 16 bytes, or a
#: reduction or columns run through several taps, and offsets have 64 bits, two registers each, or
#: taps are counted at run time, as those of an input gradient's phase are. Most tiles above spill
#: there, none does with 16 results a thread.
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
        GemmTile(64, 32, 16, num_warps=8, num_stages=2),
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

#: Strips that a split of a weight gradient sums at least, to make its last reduction worth it.
MIN_SPLIT_STRIPS = 4

#: For each kind of product, tiles of banded kernels. The one that loads the least is taken.
BANDED_TILES: dict[str, tuple[BandedTile, ...]] = {
    "half": (
        BandedTile(128, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(64, 8, 16, 64, num_warps=8, num_stages=3),
        BandedTile(32, 8, 8, 64, num_warps=4, num_stages=3),
    ),
    "tf32": (
        BandedTile(128, 8, 16, 32, num_warps=8, num_stages=3),
        BandedTile(32, 8, 8, 32, num_warps=4, num_stages=3),
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

    @property
    def family(self) -> str:
        """The kernel family: gemm, tma, stencil, rows or banded."""
        return FAMILIES[type(self.tile)]

    @property
    def kernel(self) -> str:
        """The name of the kernel, which is also the name of its file in kernels/."""
        return f"{'fprop' if self.turned else self.op}_{self.family}"

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
    _, pixels = _pixels("wgrad", geometry)
    columns = geometry.group_C * geometry.R * geometry.S
    tile: Tile
    precise = _precision(dtype, precision, device)
    facts = device.arch, device.multiprocessors, layout.descriptors
    if box := tma_tile("wgrad", geometry, dtype, precise, *facts):
        tile = box
    elif min(geometry.group_K, columns) >= GEMM_MIN:
        product = _product(dtype, precision, device)
        many, few, wide = GEMM_GRADIENT_TILES[product]
        tile = many if min(geometry.group_K, columns) >= many.BLOCK_N else few
        tile = wide if layout.wide or _has_lone_channels(geometry, dtype) else tile
    else:
        tile = (
            rows_tile("wgrad", geometry, dtype, layout, device)
            or _banded_tile("wgrad", geometry, dtype, layout, device, precision)
            or _stencil_tile(geometry.K, pixels, layout)
        )
    partial_bytes = geometry.weight_numel * (8 if dtype == torch.float64 else 4)
    if isinstance(tile, BandedGradTile):
        partial_bytes *= COLUMN_STEP
    # Programs of a tma kernel fill the shared memory of a multiprocessor one or two at a time.
    side_by_side = 2 if isinstance(tile, TmaTile) else 4
    splits = min(
        cdiv(side_by_side * device.multiprocessors, max(1, _programs("wgrad", geometry, tile))),
        _most_splits(geometry, tile, pixels),
        MAX_WORKSPACE // max(1, partial_bytes),
    )
    return plan_with_tile(
        "wgrad",
        geometry,
        tile,
        wide=layout.wide,
        precision=precise,
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
    if op == "dgrad":
        geometry = geometry.without_padding_mode()
    grid = _programs(op, geometry, tile)
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
    columns = channels // geometry.groups
    if min(columns, reduced * geometry.R * geometry.S) < GEMM_MIN:
        _, pixels = _pixels(op, geometry)
        direct = (
            rows_tile(op, geometry, dtype, layout, device)
            or _banded_tile(op, geometry, dtype, layout, device, precision)
            or _stencil_tile(channels, pixels, layout)
        )
        if op == "dgrad_frame":  # two loops around the sum leave registers for fewer pixels
            assert isinstance(direct, StencilTile)
            fewer = 4 if dtype == torch.float64 else 2
            direct = replace(direct, BLOCK_M=direct.BLOCK_M // fewer)
        precision = _precision(dtype, precision, device)
        return plan_with_tile(op, geometry, direct, wide=layout.wide, precision=precision)
    precise = _precision(dtype, precision, device)
    facts = device.arch, device.multiprocessors, layout.descriptors
    if box := tma_tile(
        op,
        geometry,
        dtype,
        precise,
        *facts,
    ):
        return plan_with_tile(op, geometry, box, wide=layout.wide, precision=precise)
    product = _product(dtype, precision, device)
    long_steps = layout.channels_last and reduced % LONG_STEP == 0 and not layout.wide
    tiles = [t for t in gemm_tiles(product, device) if long_steps or t.BLOCK_K < LONG_STEP]
    fits = [tile for tile in tiles if tile.BLOCK_N <= max(columns, tiles[-1].BLOCK_N)]
    enough = 2 * device.multiprocessors
    tile = next((t for t in fits if _programs(op, geometry, t) >= enough), fits[-1])
    by_phases = op == "dgrad" and math.prod(geometry.phases) > 1
    several_taps = reduced < tile.BLOCK_K
    if (several_taps and (layout.wide or by_phases)) or (
        not several_taps and _has_lone_channels(geometry, dtype)
    ):
        tile = WIDE_GEMM_TILES[product]
    return plan_with_tile(
        op,
        geometry,
        tile,
        wide=layout.wide,
        precision=precise,
        one_tap=takes_one_tap(op, geometry, tile),
    )


def _has_lone_channels(geometry: Geometry, dtype: torch.dtype) -> bool:
    """Whether the channels of a group do not come in pieces of 16 bytes: they are loaded alone."""
    piece = max(1, 16 // dtype.itemsize)
    return bool(geometry.group_C % piece or geometry.group_K % piece)


def _tuned_plan(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    layout: Layout,
    device: Device,
    precision: str,
) -> Plan | None:
    """The plan by the device's tuned file, if that has this very class of problem."""
    tuned = {} if layout.wide else tuned_for(device.name)
    if not tuned:
        return None
    precision = _precision(dtype, precision, device)
    found = tuned.get(key_of(op, geometry, dtype, precision, layout.channels_last))
    if found is None:
        return None
    tile = tile_of(found.tile)
    if isinstance(tile, TmaTile) and not is_legal_tma(
        op, geometry, dtype, precision, device.arch, layout.descriptors, tile
    ):
        return None  # its key says nothing of alignment, nor what divides a plane
    return plan_with_tile(
        op,
        geometry,
        tile,
        precision=precision,
        one_tap=takes_one_tap(op, geometry, tile),
        splits=found.splits,
    )


def tile_of(fields: Mapping[str, int]) -> Tile:
    """The tile with these fields: their names say of which family it is."""
    kinds: tuple[type[Tile], ...] = get_args(Tile)
    return next(kind(**fields) for kind in kinds if set(fields) == set(kind.__dataclass_fields__))


def takes_one_tap(op: str, geometry: Geometry, tile: Tile) -> bool:
    """Whether a step of this tile is filled by the channels of one tap, see Plan.one_tap."""
    if op == "wgrad" or not isinstance(tile, GemmTile):
        return False
    return (geometry.group_C if op == "fprop" else geometry.group_K) >= tile.BLOCK_K


@dataclass(frozen=True)
class Limits:
    """What one program may use on an architecture.

    Attributes:
        registers: of one thread.
        shared: bytes of shared memory (LDS).
        lanes: threads of a warp.
    """

    registers: int
    shared: int
    lanes: int = 32


#: By Device.arch. An architecture that is not here gets the smallest of them.
LIMITS = {
    "80": Limits(255, 163 * 1024),
    "86": Limits(255, 99 * 1024),
    "89": Limits(255, 99 * 1024),
    "90": Limits(255, 227 * 1024),
    "100": Limits(255, 227 * 1024),
    "120": Limits(255, 99 * 1024),
    "gfx942": Limits(512, 64 * 1024, lanes=64),
}
SMALLEST = Limits(255, 64 * 1024)


def shared_bytes(tile: Tile, dtype: torch.dtype, arch: str) -> int:
    """About what a program holds in shared memory: the operands of every stage of its pipeline."""
    if not isinstance(tile, GemmTile | BandedTile | BandedGradTile):
        return 0
    m, n, k = _gemm_of(tile)
    # Triton's pipeline keeps one stage of AMD's in registers.
    stages = max(1, tile.num_stages - arch.startswith("gfx"))
    return (m + n) * k * dtype.itemsize * stages


def _gemm_of(tile: GemmTile | AnyBandedTile) -> tuple[int, int, int]:
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
        if name not in ("num_stages", "BLOCK_P", "BLOCK_K", "STEP_P")
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
    m, n, k = _gemm_of(tile)
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


#: Reading a byte from L2 takes a H200 as long as issuing so many instructions of one lane: 132
#: multiprocessors issue 29.6e12 a second (128 lanes at 1.75 GHz), L2 delivers about 5.5e12 bytes.
#: Neither is measured here. A banded kernel issues 1.3 to 1.6 for a byte, by machine code for
#: sm_90, and a matrix unit multiplies 15 to 60 pairs meanwhile: L2 is what it waits for.
LANES_PER_BYTE = 5.4
#: Bytes that L2 delivers for a number whose neighbours in memory are not wanted.
SECTOR = 32
#: Lane instructions for a number that is loaded alone, by the same machine code.
LANES_PER_NUMBER = 25
#: Lane instructions of a banded kernel outside of its loop, for one output: its start and its end.
BANDED_LANES = 50
#: Lane instructions of a stencil for one tap of one output, by machine code for sm_90: fprop and
#: dgrad 12 to 15, wgrad 32 to 40 (perf/results/codegen.json).
STENCIL_LANES = {"fprop": 12, "dgrad": 12, "wgrad": 32}


def has_banded_kernel(op: str, geometry: Geometry, dtype: torch.dtype, precision: str) -> bool:
    """Whether a banded kernel can compute `op`, in any layout."""
    g = geometry
    if op == "dgrad_frame" or g.group_C != 1 or g.stride != (1, 1) or g.dilation != (1, 1):
        return False
    if dtype.itemsize > 2 and (dtype != torch.float32 or precision == "ieee"):
        return False
    return op != "dgrad" or g.group_K == 1


def _banded_tile(
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    layout: Layout,
    device: Device,
    precision: str,
) -> AnyBandedTile | None:
    """The tile of a banded kernel; None where a stencil is expected to take no longer.

    Of two kernels whose arithmetic hides behind what feeds it, the cheaper to feed is taken: a
    stencil issues a dozen instructions for every tap, a banded kernel reads (BLOCK_P + R - 1) *
    COLUMNS * (1 / BLOCK_M + 1 / BLOCK_N) numbers from L2 for every output. Rows kernels hold
    windows of up to 7x7, and are asked first: their instruction or two for a tap are as cheap as
    the band of a 7x7, 116 lane instructions for an output in 16 bits. Every square window above is
    banded; on large images a 1xN is from 8 taps in 16 bits, from 12 or 13 in float32.
    """
    product = _product(dtype, precision, device)
    if geometry.y_numel == 0 or not has_banded_kernel(
        op, geometry, dtype, _precision(dtype, precision, device)
    ):
        return None
    g = geometry.adjoint() if op == "dgrad" else geometry
    tiles = [
        _fitted(tile, g) if isinstance(tile, BandedGradTile) else tile
        for tile in banded_tiles(op, product, layout.wide, device)
        if isinstance(tile, BandedGradTile) or _workspace(g, tile, dtype) <= MAX_WORKSPACE
    ]
    costs = {tile: _banded_cost(g, tile, dtype, layout, device) for tile in tiles}
    best = min(tiles, key=lambda tile: costs[tile], default=None)
    return best if best and costs[best] < _stencil_cost(op, geometry, layout, device) else None


def banded_tiles(op: str, product: str, wide: bool, device: Device) -> list[AnyBandedTile]:
    """The tiles that an operator may be planned with on a device, for one kind of product."""
    dtype = torch.float16 if product == "half" else torch.float32
    shared = LIMITS.get(device.arch, SMALLEST).shared
    tiles: list[AnyBandedTile] = []
    if op == "wgrad":
        tiles += BANDED_GRAD_TILES[product]
    else:
        # With 64 sums a thread and a 64-bit place in y for each, the largest of the others spill.
        tiles += [tile for tile in BANDED_TILES[product] if tile.BLOCK_M <= 64 or not wide]
    return [tile for tile in tiles if shared_bytes(tile, dtype, device.arch) <= shared]


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
