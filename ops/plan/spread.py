"""Matrix products through tensor descriptors whose columns are pixels of a patch: few results.

As patch.py, which says what patches are, but operands come as tma.py has them: a patch of results
is one result of a convolution with a larger stride and window, whose filters are the weight spread
over that window. kernels/fprop_spread.py multiplies; weight gradients have tiles of their own, in
spread_gradient.py.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..geometry import Geometry
from . import patch, spread_gradient, tma
from .boxes import MAX_OVERHANG, Boxed, box_of, covered, pixel_planes
from .cost import Code, Work, is_launchable, line_bytes
from .device import ALL_REGISTERS, GEMM_MIN, MAX_COPY_BYTES
from .integers import filled, power_of_two
from .patch import Axis
from .problem import Plan, Problem
from .tma_copies import copied_problem, weight_copies

#: Rows of results in a patch: x has a descriptor for each of its rows, see tma.MAX_PHASES.
PATCH_ROWS = (2, 3, 4)
#: Channels of the result below which lanes of a store to channels_last run along pixels: channels
#: would fill half of a sector.
FEW_RESULTS = 8
#: Channels of the result of calls that the planner compares patches of several pixels for: more
#: fill the rows of a matrix unit by themselves.
MOST_CHANNELS = 48
#: Least share of a patch's products that are with a tap; assumed.
FEWEST_TAPS = 0.4


@dataclass(frozen=True)
class SpreadTile(Boxed):
    """A box of patches of one program, its columns, and the launch options.

    Attributes:
        BLOCK_I: images of the box.
        BLOCK_P: rows of patches of the box.
        BLOCK_Q: columns of patches of the box.
        BLOCK_N: columns (pixel of a patch, channel of the result).
        BLOCK_K: reduced channels of one step.
        PATCH_P, PATCH_Q: rows and columns of y, or dy, in a patch.
        num_warps, num_stages: of the launch.
        copied: the image is not NHWC and is copied to it first, see copied_problem.
    """

    BLOCK_I: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_N: int
    BLOCK_K: int
    PATCH_P: int
    PATCH_Q: int
    num_warps: int
    num_stages: int
    copied: bool = False

    family: ClassVar[str] = "spread"
    partials: ClassVar[int] = 1

    @property
    def boxes_tile(self) -> tma.TmaTile:
        """The tile of the same products as fprop_tma has them."""
        blocks = (*self.box, self.BLOCK_N, self.BLOCK_K)
        return tma.TmaTile(*blocks, self.num_warps, self.num_stages, copied=self.copied)

    def spread(self, problem: Problem) -> Problem:
        """The forward convolution whose results are patches."""
        return spread_problem(problem, self.PATCH_P, self.PATCH_Q)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        return self.boxes_tile.boxes(self.spread(problem))

    def strips(self, problem: Problem) -> int:
        """Steps of the shortest loop, which parts are made of."""
        return self.boxes_tile.strips(self.spread(problem))

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: channels of all pixels of a patch are the rows."""
        return self.BLOCK_N, self.pixels, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """One part: see cost.image_splits."""
        return 1

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program, about: the operands of every pipeline stage."""
        return self.boxes_tile.shared_bytes(self.spread(problem))

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to, see device.py."""
        return ALL_REGISTERS if problem.device.arch == "100" else None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision, "turned": problem.op == "dgrad"}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch, and of those that spread the weight and copy the image."""
        spread, tile = self.spread(problem), self.boxes_tile
        work = tile.work(replace(plan, op="fprop", tile=tile), spread)
        sums = self.BLOCK_N * self.pixels / problem.threads(self)
        code = Code(100, 450 + 6 * sums, sums + 40)
        more = code.outside - tile.code(spread).outside
        # Elements from one lane's to the next where neither channels nor columns are neighbours.
        step = axes_of(problem.op, problem.geometry, self.PATCH_P, self.PATCH_Q)[1].pitch
        if problem.layout.channels_last:
            step = step * problem.channels if problem.group_channels < FEW_RESULTS else 1
        elif is_power(step):
            step = 1
        scattered = 0.0
        if step > 1:
            rows = self.BLOCK_N * filled(spread.geometry.group_K, self.BLOCK_N)
            scattered = rows * self.pixels * line_bytes(32, step * problem.dtype.itemsize)
        return work._replace(
            launches=work.launches + self.copied,
            exchanges=not problem.layout.channels_last or problem.layout.repacks,
            instructions=work.instructions + more,
            outside=work.outside + more,
            scattered_bytes=scattered,
        )


def axes_of(op: str, geometry: Geometry, rows: int, columns: int) -> tuple[Axis, Axis]:
    """The axes of patches of rows x columns pixels of y, or dy.

    A single row of dy may have any stride: with that of its window, each tap reaches a phase of its
    own, and there are no zeros.
    """
    g, (down, across) = geometry, geometry.stride
    if op == "dgrad":
        down, across = g.R if g.P == 1 else down, g.S if g.Q == 1 else across
    return (
        patch.axis_of(op, g.H, g.P, g.R, down, g.padding[0][0], rows),
        patch.axis_of(op, g.W, g.Q, g.S, across, g.padding[1][0], columns),
    )


def is_power(number: int) -> bool:
    """Whether a number is a power of two."""
    return number & (number - 1) == 0


@functools.lru_cache(maxsize=4096)
def spread_problem(problem: Problem, rows: int, columns: int) -> Problem:
    """The forward convolution of which each result is a patch of rows x columns pixels."""
    g, turned = problem.geometry, problem.op == "dgrad"
    axes = axes_of(problem.op, g, rows, columns)
    extents = (g.P, g.Q) if turned else (g.H, g.W)
    below, right = (
        (axis.count - 1) * axis.step + axis.window - axis.pad - extent
        for axis, extent in zip(axes, extents, strict=True)
    )
    read, results = (g.K, g.C) if turned else (g.C, g.K)
    shown = replace(
        g,
        C=read,
        H=extents[0],
        W=extents[1],
        K=results * axes[0].pitch * axes[1].pitch,
        R=axes[0].window,
        S=axes[1].window,
        given_stride=(axes[0].step, axes[1].step),
        padding=((axes[0].pad, below), (axes[1].pad, right)),
        given_dilation=(1, 1),  # of one tap, which may have one, places are neighbours
        flip=False,
    )
    boxes = problem.layout.boxes(problem.op)
    layout = replace(problem.layout, x_boxes=boxes, y_boxes=boxes, repacks=True)
    return replace(problem, op="fprop", geometry=shown, layout=layout)


def is_legal(tile: SpreadTile, problem: Problem) -> bool:
    """Whether the kernel can compute this with `tile`."""
    if problem.op not in ("fprop", "dgrad") or problem.layout.as_rows or problem.layout.int64:
        return False
    if not patch.is_legal(problem):
        return False
    spread = tile.spread(problem)
    if spread_bytes(tile, problem) > MAX_COPY_BYTES:
        return False
    if not tile.copied and spread.layout.x_boxes != "NHWC":
        return False
    return tma.is_legal(spread, tile.boxes_tile)


def spread_bytes(tile: SpreadTile, problem: Problem) -> int:
    """Bytes of the spread weight."""
    return sum(weight_copies(tile.spread(problem), tile.BLOCK_K))


def tiles(problem: Problem) -> list[Any]:
    """The tiles that the planner may take, of patches with few zeros."""
    if problem.op == "wgrad":
        return list(spread_gradient.tiles(problem))
    if problem.op == "dgrad_frame" or problem.reduced < 16 or not patch.is_legal(problem):
        return []
    found: list[SpreadTile] = []
    last = problem.layout.channels_last
    pitch = axes_of(problem.op, problem.geometry, 1, 1)[1].pitch
    for rows, columns in _patches(problem):
        spread = spread_problem(problem, rows, columns)
        copied = spread.layout.x_boxes != "NHWC"
        planes = pixel_planes(spread)
        for shape in tma.shaped_tiles(copied_problem(spread)):
            if problem.layout.heavy_epilogue and not last and shape.BLOCK_N < 128:
                continue  # silu spills up to 56 bytes where rows are no pieces of 16 bytes (sm_90)
            # Where planes of phases are stored, more spill: TF32 32 bytes (sm_90), 128 x 128 in 16
            # bits 64 (sm_100).
            most = 64 * 256 if problem.device.arch == "90" else 64 * 128
            if not last and pitch > 1 and shape.BLOCK_N * shape.pixels > most:
                continue
            if shape.BLOCK_N > max(64, power_of_two(spread.group_channels)) or not shape.BLOCK_K:
                continue
            if covered(planes, shape.box) * (1 - MAX_OVERHANG) > math.prod(planes):
                continue
            blocks = (*shape.box, shape.BLOCK_N, shape.BLOCK_K, rows, columns)
            tile = SpreadTile(*blocks, shape.num_warps, shape.num_stages, copied)
            if is_legal(tile, problem):
                found.append(tile)
    return found


def _patches(problem: Problem) -> Iterator[tuple[int, int]]:
    """Rows and columns of patches to compare: of one pixel of dy, its phases are the patch."""
    g = problem.geometry
    phases = math.prod(axis.pitch for axis in axes_of(problem.op, g, 1, 1))
    # In channels_last, dgrad_tma's programs for each phase are as good for many channels.
    many = problem.layout.channels_last and problem.group_channels > MOST_CHANNELS
    numbers = [1] if phases > 1 and not many else []
    # One pixel's phases of few channels do not fill the rows either.
    fills = phases > 1 and phases * problem.group_channels >= GEMM_MIN
    if problem.group_channels <= MOST_CHANNELS and (g.stride == (1, 1) or not fills):
        numbers += PATCH_ROWS
    for rows in numbers:
        axes = axes_of(problem.op, g, rows, 1)
        products = math.prod(axis.window * axis.pitch for axis in axes)
        if g.R * g.S * rows >= FEWEST_TAPS * products:
            yield rows, 1


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (SpreadTile, spread_gradient.SpreadGradientTile)


def neighbours(tile: Any, problem: Problem) -> Iterator[Any]:
    """The tiles that a tuner tries: other boxes, columns and stages."""
    if problem.op == "wgrad":
        yield from spread_gradient.neighbours(tile, problem)
        return
    planes = pixel_planes(tile.spread(problem))
    for pixels, n, warps, stages in itertools.product((64, 128, 256), (64, 128), (4, 8), (2, 3, 4)):
        fields = {"BLOCK_N": n, "num_warps": warps, "num_stages": stages}
        box = dict(zip(("BLOCK_I", "BLOCK_P", "BLOCK_Q"), box_of(planes, pixels), strict=True))
        other = replace(tile, **box, **fields)
        if is_launchable(other, problem) and fits(other, problem):
            yield other


def fits(tile: SpreadTile, problem: Problem) -> bool:
    """Whether a program has room, by count: for its sums, and for the boxes of every stage."""
    return is_legal(tile, problem) and tma.fits(tile.boxes_tile, tile.spread(problem))
