"""The rows kernels' part of planning: which calls they serve, with which tile, and its counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .geometry import Geometry
from .integers import cdiv, power_of_two

if TYPE_CHECKING:
    from .plan import Device, Layout


@dataclass(frozen=True)
class RowsTile:
    """One program's output rows, columns and planes, and what the compiler is told."""

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_C: int
    num_warps: int = 4
    num_stages: int = 2


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


def has_rows_kernel(op: str, geometry: Geometry) -> bool:
    """Whether a rows kernel can compute `op`, in any layout."""
    if geometry.group_C != 1 or max(geometry.R, geometry.S) > ROWS_MAX_WINDOW:
        return False
    return op != "dgrad" or (geometry.group_K == 1 and geometry.stride == (1, 1))


def rows_tile(
    op: str, geometry: Geometry, dtype: torch.dtype, layout: Layout, device: Device
) -> RowsTile | None:
    """The tile of a rows kernel; None where a stencil serves the call better."""
    # In channels_last neighbouring columns are not neighbours in memory: lanes are channels there.
    if layout.channels_last or geometry.y_numel == 0 or not has_rows_kernel(op, geometry):
        return None
    g = geometry.adjoint() if op == "dgrad" else geometry
    if g.R * g.S > _rows_taps(dtype, device):
        return None
    most, forward, weight_gradient, _ = rows_limits(g)
    elements = forward
    if op == "wgrad":
        elements = weight_gradient
        if g.stride[0] > 1:  # a higher strip leaves no registers for the rows between
            most = min(most, 8)
    if dtype == torch.float64:  # two registers for each
        most, elements = most // 2, elements // 2
    block_q = _row_block(g.Q, elements)
    block_c = min(elements // block_q, power_of_two(g.K if op == "wgrad" else g.N * g.K))
    stride = g.stride[0] if g.P > 1 else 1
    tile = None
    for height in (most, most // 2, most // 4):
        rows = cdiv(g.P, cdiv(g.P, height))  # tiles of one height, none nearly empty
        if (rows - 1) * stride + (g.R - 1) * g.dilation[0] < ROWS_MAX_UNROLLED:
            tile = RowsTile(rows, block_q, block_c)
            if op == "wgrad" or rows_programs(op, geometry, tile) >= 2 * device.multiprocessors:
                break
    return tile


def _rows_taps(dtype: torch.dtype, device: Device) -> int:
    """The largest window, in taps, that a rows kernel holds in registers."""
    if dtype == torch.float64:
        return 9
    # Built for sm_100, 49 taps of 16-bit numbers spill with every tile that was tried.
    return 25 if dtype.itemsize == 2 and device.arch == "100" else 49


def rows_limits(geometry: Geometry) -> tuple[int, int, int, bool]:
    """The entry of ROWS_LIMITS for a geometry's window."""
    taps = geometry.R * geometry.S
    return next(limits for most, limits in ROWS_LIMITS.items() if taps <= most)


def rows_programs(op: str, geometry: Geometry, tile: RowsTile) -> int:
    """How many programs cover all results, a weight gradient's before it is split."""
    if op == "wgrad":
        return (geometry.N if geometry.per_sample else 1) * cdiv(geometry.K, tile.BLOCK_C)
    g = geometry.adjoint() if op == "dgrad" else geometry
    planes = cdiv(g.N * g.K, tile.BLOCK_C)
    return planes * cdiv(g.P, tile.BLOCK_P) * cdiv(g.Q, tile.BLOCK_Q)


def rows_strips(geometry: Geometry, tile: RowsTile) -> int:
    """Tiles of output rows and columns of one problem, that a weight gradient runs over."""
    samples = 1 if geometry.per_sample else geometry.N
    return samples * cdiv(geometry.P, tile.BLOCK_P) * cdiv(geometry.Q, tile.BLOCK_Q)


def mostly_interior(op: str, geometry: Geometry, tile: RowsTile) -> bool:
    """Whether at least half of the tiles need no masks: code of their own pays, else it waits."""
    if op == "wgrad" or not rows_limits(geometry)[-1]:
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
        first = max(0, cdiv(start, block * g.stride[axis]))
        last = min((extent - 1 - reach + start) // (block * g.stride[axis]), out // block - 1)
        inside *= max(0, last - first + 1)
        total *= cdiv(out, block)
    return 2 * inside >= total


def _row_block(columns: int, most: int) -> int:
    """Columns of a tile: the most that leave little more of the last tile empty than any do."""
    blocks = [most >> i for i in range(most.bit_length()) if most >> i >= 32]
    covered = {block: cdiv(columns, block) * block for block in blocks}
    close = [block for block, width in covered.items() if width <= 1.1 * min(covered.values())]
    return min(close[0], power_of_two(columns))
