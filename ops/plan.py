"""What to run: kernel family, tile, grid and splits for one operator on one geometry.

Planning is pure: geometry, dtype, layout and device facts go in, a printable Plan comes out, and
nothing is read from the machine or the environment. There is no tuning at run time: what was tuned
before is data of the package (tuned.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, get_args

import torch

from .errors import ArgumentError
from .geometry import Geometry
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


@dataclass(frozen=True)
class RowsTile:
    """One program's output rows, columns and planes, and what the compiler is told."""

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_C: int
    num_warps: int = 4
    num_stages: int = 2


Tile: TypeAlias = GemmTile | StencilTile | RowsTile | TmaTile

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

#: Where a reduction or columns run through several taps, so that every element has offsets of its
#: own, and those have 64 bits, two registers each, or taps are counted at run time, as those of an
#: input gradient's phase are: most tiles above spill there, none does with 16 results a thread.
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

#: A rows kernel unrolls everything, so what it can hold depends on the window. For windows of at
#: most so many taps: output rows of a tile; outputs that are worked on at a time in the forward
#: correlation, and in the weight gradient, which keeps a sum for every tap and output; and whether
#: tiles inside the image get code without masks, which takes as long again to compile.
ROWS_LIMITS: dict[int, tuple[int, int, int, bool]] = {
    9: (16, 512, 256, True),
    25: (8, 512, 128, True),
    49: (8, 256, 128, False),
}
#: Largest window of a rows kernel along one axis.
ROWS_MAX_WINDOW = 7
#: Most input rows that a rows kernel unrolls.
ROWS_MAX_UNROLLED = 40
#: Strips that a split of a weight gradient sums at least, to make its last reduction worth it.
MIN_SPLIT_STRIPS = 4

#: A matrix unit works on 16 x 16; with fewer channels than that most of it would multiply zeros.
GEMM_MIN = 16
#: A split of a weight gradient sums at least this many pixels, so that partials stay few.
MIN_SPLIT_PIXELS = 1024
#: Most bytes that partials of a weight gradient may take.
MAX_WORKSPACE = 64 * 2**20
#: The largest grid that CUDA and HIP launch along the first axis.
MAX_GRID = 2**31 - 1


#: Kernel families by the type of their tiles.
FAMILIES: dict[type, str] = {
    GemmTile: "gemm",
    StencilTile: "stencil",
    RowsTile: "rows",
    TmaTile: "tma",
}


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
        split_strips: strips of one part, for a rows kernel, or boxes, for a tma kernel.
        interior: a rows kernel has code without masks for the tiles inside the image.
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
    interior: bool = False

    @property
    def family(self) -> str:
        """The kernel family: gemm, stencil, rows or tma."""
        return FAMILIES[type(self.tile)]

    @property
    def kernel(self) -> str:
        """The name of the kernel, which is also the name of its file in kernels/."""
        # With stride 1 the input gradient is a forward correlation of dy, see Geometry.adjoint.
        op = "fprop" if self.op == "dgrad" and self.family == "rows" else self.op
        return f"{op}_{self.family}"


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
        # The long side of a tile lies along the pixels in the other operators; here rows are
        # filters, and splits fill the device, so the size of the tile does not depend on it.
        product = _product(dtype, precision, device)
        tiles = (WIDE_GEMM_TILES[product],) * 2 if layout.wide else GEMM_TILES[product]
        tile = tiles[0] if min(geometry.group_K, columns) >= tiles[0].BLOCK_N else tiles[1]
    else:
        rows = _rows_tile("wgrad", geometry, dtype, layout, device)
        tile = rows or _stencil_tile(geometry.K, pixels, layout)
    partial_bytes = geometry.weight_numel * (8 if dtype == torch.float64 else 4)
    # Programs of a tma kernel fill the shared memory of a multiprocessor one or two at a time.
    side_by_side = 2 if isinstance(tile, TmaTile) else 4
    splits = min(
        _cdiv(side_by_side * device.multiprocessors, max(1, _programs("wgrad", geometry, tile))),
        _cdiv(_strips(geometry, tile), MIN_SPLIT_STRIPS)
        if isinstance(tile, RowsTile | TmaTile)
        else _cdiv(pixels, MIN_SPLIT_PIXELS),
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
    precision = precision if isinstance(tile, GemmTile | TmaTile) else "ieee"
    split_pixels = split_strips = 0
    if op == "wgrad" and isinstance(tile, RowsTile | TmaTile):
        strips = _strips(geometry, tile)
        split_strips = _cdiv(max(1, strips), max(1, splits))
        splits = max(1, _cdiv(strips, split_strips))
        grid *= splits
    elif op == "wgrad":
        assert isinstance(tile, GemmTile | StencilTile)
        _, pixels = _pixels(op, geometry)
        step = tile.BLOCK_K if isinstance(tile, GemmTile) else tile.BLOCK_M
        split_pixels = _cdiv(_cdiv(max(1, pixels), max(1, splits)), step) * step
        splits = max(1, _cdiv(pixels, split_pixels))
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
        interior=isinstance(tile, RowsTile) and _mostly_interior(op, geometry, tile),
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
        rows = _rows_tile(op, geometry, dtype, layout, device)
        direct = rows or _stencil_tile(channels, pixels, layout)
        return plan_with_tile(op, geometry, direct, wide=layout.wide)
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
    tiles = GEMM_TILES[product]
    fits = [tile for tile in tiles if tile.BLOCK_N <= max(columns, tiles[-1].BLOCK_N)]
    enough = 2 * device.multiprocessors
    tile = next((t for t in fits if _programs(op, geometry, t) >= enough), fits[-1])
    by_phases = op == "dgrad" and math.prod(geometry.phases) > 1
    if (layout.wide or by_phases) and reduced < tile.BLOCK_K:
        tile = WIDE_GEMM_TILES[product]
    return plan_with_tile(
        op,
        geometry,
        tile,
        wide=layout.wide,
        precision=precise,
        one_tap=takes_one_tap(op, geometry, tile),
    )


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
    if not isinstance(tile, GemmTile):
        return 0
    # Triton's pipeline keeps one stage of AMD's in registers.
    stages = max(1, tile.num_stages - arch.startswith("gfx"))
    return (tile.BLOCK_M + tile.BLOCK_N) * tile.BLOCK_K * dtype.itemsize * stages


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
        if name not in ("num_stages", "BLOCK_P")
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
        held = tile.BLOCK_Q * tile.BLOCK_C / threads
        return 1 <= held and held * 6 * words <= limits.registers // 2 and tile.BLOCK_P >= 1
    if isinstance(tile, StencilTile):
        # A thread keeps a sum, and about three values of 32 bits to address and load it.
        held = tile.BLOCK_M * tile.BLOCK_C / threads
        return 1 <= held and held * (words + 3) <= limits.registers // 2
    if min(tile.BLOCK_M, tile.BLOCK_N, tile.BLOCK_K) < GEMM_MIN:
        return False
    # Sums, and the addresses and values of the operands on their way to shared memory; tf32x3 has
    # both of its halves in registers. A weight gradient decodes pixels for both operands.
    sums = tile.BLOCK_M * tile.BLOCK_N / threads * words
    operands = (tile.BLOCK_M + tile.BLOCK_N) * tile.BLOCK_K / threads
    operands *= dtype.itemsize / 4 * (2 if precision == "tf32x3" else 1) + (op == "wgrad")
    return (
        sums >= 1
        and sums + operands <= limits.registers
        and shared_bytes(tile, dtype, device.arch) <= limits.shared
    )


def _programs(op: str, geometry: Geometry, tile: Tile) -> int:
    """How many programs cover all results, a weight gradient's before it is split."""
    if isinstance(tile, TmaTile):
        return tma_programs(op, geometry, tile)
    if isinstance(tile, RowsTile):
        if op == "wgrad":
            return (geometry.N if geometry.per_sample else 1) * _cdiv(geometry.K, tile.BLOCK_C)
        g = geometry.adjoint() if op == "dgrad" else geometry
        planes = _cdiv(g.N * g.K, tile.BLOCK_C)
        return planes * _cdiv(g.P, tile.BLOCK_P) * _cdiv(g.Q, tile.BLOCK_Q)
    batches, pixels = _pixels(op, geometry)
    taps = geometry.group_C * geometry.R * geometry.S
    channels = geometry.C if op.startswith("dgrad") else geometry.K
    if isinstance(tile, StencilTile):
        per_channel = taps if op == "wgrad" else _cdiv(pixels, tile.BLOCK_M)
        return batches * per_channel * _cdiv(channels, tile.BLOCK_C)
    columns = channels // geometry.groups
    rows, columns = (columns, taps) if op == "wgrad" else (pixels, columns)
    if op == "dgrad":  # each phase has programs of its own
        samples, *plane = geometry.phase_shape
        rows = math.prod(plane) * (1 if geometry.per_sample else samples)
        batches *= math.prod(geometry.phases)
    return batches * geometry.groups * _cdiv(rows, tile.BLOCK_M) * _cdiv(columns, tile.BLOCK_N)


def _pixels(op: str, geometry: Geometry) -> tuple[int, int]:
    """(independent problems, pixels of each): a bank per sample makes each sample a problem."""
    extent = {"dgrad": geometry.H * geometry.W, "dgrad_frame": geometry.frame_pixels}.get(
        op, geometry.P * geometry.Q
    )
    return (geometry.N, extent) if geometry.per_sample else (1, geometry.N * extent)


def _strips(geometry: Geometry, tile: RowsTile | TmaTile) -> int:
    """Tiles of output rows and columns of one problem, that a weight gradient runs over."""
    if isinstance(tile, TmaTile):
        return boxes(geometry, tile)
    samples = 1 if geometry.per_sample else geometry.N
    return samples * _cdiv(geometry.P, tile.BLOCK_P) * _cdiv(geometry.Q, tile.BLOCK_Q)


def has_rows_kernel(op: str, geometry: Geometry) -> bool:
    """Whether a rows kernel can compute `op`, in any layout."""
    if geometry.group_C != 1 or max(geometry.R, geometry.S) > ROWS_MAX_WINDOW:
        return False
    if op == "dgrad_frame":
        return False
    return op != "dgrad" or (geometry.group_K == 1 and geometry.stride == (1, 1))


def _rows_tile(
    op: str, geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device
) -> RowsTile | None:
    """The tile of a rows kernel; None where a stencil serves the call better."""
    # In channels_last neighbouring columns are not neighbours in memory: lanes are channels there.
    if layout.channels_last or geometry.y_numel == 0 or not has_rows_kernel(op, geometry):
        return None
    g = geometry.adjoint() if op == "dgrad" else geometry
    if g.R * g.S > _rows_taps(dtype, device):
        return None
    most, forward, weight_gradient, _ = _rows_limits(g)
    elements = forward
    if op == "wgrad":
        elements = weight_gradient
        if g.stride[0] > 1:  # a higher strip leaves no registers for the rows between
            most = min(most, 8)
    if dtype == torch.float64:  # two registers for each
        most, elements = most // 2, elements // 2
    block_q = _row_block(g.Q, elements)
    block_c = min(elements // block_q, _power_of_two(g.K if op == "wgrad" else g.N * g.K))
    stride = g.stride[0] if g.P > 1 else 1
    tile = None
    for height in (most, most // 2, most // 4):
        rows = _cdiv(g.P, _cdiv(g.P, height))  # tiles of one height, none nearly empty
        if (rows - 1) * stride + (g.R - 1) * g.dilation[0] < ROWS_MAX_UNROLLED:
            tile = RowsTile(rows, block_q, block_c)
            if op == "wgrad" or _programs(op, geometry, tile) >= 2 * device.multiprocessors:
                break
    return tile


def _rows_taps(dtype: torch.dtype, device: Device) -> int:
    """The largest window, in taps, that a rows kernel holds in registers."""
    if dtype == torch.float64:
        return 9
    # Built for sm_100, 49 taps of 16-bit numbers spill with every tile that was tried.
    return 25 if dtype.itemsize == 2 and device.arch == "100" else 49


def _rows_limits(geometry: Geometry) -> tuple[int, int, int, bool]:
    taps = geometry.R * geometry.S
    return next(limits for most, limits in ROWS_LIMITS.items() if taps <= most)


def _mostly_interior(op: str, geometry: Geometry, tile: RowsTile) -> bool:
    """Whether at least half of the tiles need no masks: code of their own pays, else it waits."""
    if op == "wgrad" or not _rows_limits(geometry)[-1]:
        return False
    g = geometry.adjoint() if op == "dgrad" else geometry
    inside = total = 1
    for out, extent, window, block, axis in (
        (g.P, g.H, g.R, tile.BLOCK_P, 0),
        (g.Q, g.W, g.S, tile.BLOCK_Q, 1),
    ):
        reach = (block - 1) * g.stride[axis] + (window - 1) * g.dilation[axis]
        start = g.padding[axis][0]
        # Tiles t with 0 <= t * block * stride - pad and t * block * stride - pad + reach < extent.
        first = max(0, _cdiv(start, block * g.stride[axis]))
        last = min((extent - 1 - reach + start) // (block * g.stride[axis]), out // block - 1)
        inside *= max(0, last - first + 1)
        total *= _cdiv(out, block)
    return 2 * inside >= total


def _row_block(columns: int, most: int) -> int:
    """Columns of a tile: the most that leave little more of the last tile empty than any do."""
    blocks = [most >> i for i in range(most.bit_length()) if most >> i >= 32]
    covered = {block: _cdiv(columns, block) * block for block in blocks}
    close = [block for block, width in covered.items() if width <= 1.1 * min(covered.values())]
    return min(close[0], _power_of_two(columns))


def _power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()


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
