"""Dense windows over images in planes, which are read as they lie: results are shifted, not boxes.

kernels/fprop_planes.py says how. Other kernels through descriptors read such images from a copy in
channels_last, unless the window has one column: a box must begin at a multiple of 16 bytes of a
row. Tiles are those that build without spills for sm_90, and whose products ptxas overlaps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..geometry import Geometry
from . import tma
from .cost import Code, Work, is_launchable, matrix_work
from .integers import cdiv, power_of_two
from .problem import Plan, Problem
from .reuse import BARRIER_BYTES

#: Columns of a box: of whole rows, or of at least half of a row of the widest swizzle, 128 bytes.
COLUMNS = (16, 32, 64, 128, 256)
#: Most registers of a thread for sums, of all columns of taps, and left operands; of which may be
#: sums. ptxas needs up to 45 beside them.
MOST_REGISTERS, MOST_SUMS = 208, 192
#: Limits in TF32, beyond which it spills (sm_90, Triton 3.7.1): taps, rows of taps, boxes of the
#: image in a step.
MOST_TAPS, MOST_ROWS, MOST_BOXES = 25, 8, 20
#: The same of registers, for sums and left operands, three for each of these boxes and, in TF32,
#: one for each box of weights.
MOST_WITH_ADDRESSES = {"half": 226, "tf32": 225}
#: (filters, pixels, num_warps) by kind of product, largest first: those read each input the fewest
#: times.
SHAPES = {
    "half": (
        (128, 128, 8),
        (64, 256, 8),
        (64, 128, 8),
        (128, 64, 4),
        (64, 128, 4),
        (64, 64, 4),
    ),
    "tf32": (
        (256, 128, 8),
        (128, 128, 8),
        (64, 128, 8),
        (128, 64, 4),
        (64, 128, 4),
        (64, 64, 4),
        (32, 128, 4),
        (16, 128, 4),
    ),
}
#: Bytes of the channels of one product, which are rows of a swizzle of weights, and places for
#: steps, best first: both where there is room for.
ROW_BYTES, STAGES = (128, 64, 32), (4, 3, 2)


@dataclass(frozen=True)
class PlanesTile:
    """A box of pixels of one program, its channels, and the launch options.

    Attributes:
        BLOCK_P: rows of results.
        BLOCK_W: columns of the box.
        BLOCK_F: channels of the result.
        BLOCK_K: reduced channels of one step.
        num_warps, num_stages: of the launch; stages are the places for boxes.
    """

    BLOCK_P: int
    BLOCK_W: int
    BLOCK_F: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    family: ClassVar[str] = "planes"
    partials: ClassVar[int] = 1

    @property
    def pixels(self) -> int:
        """Pixels whose products are summed: rows of results, columns of the box."""
        return self.BLOCK_P * self.BLOCK_W

    def rows(self, geometry: Geometry) -> int:
        """Rows of the image that a program reads."""
        return self.BLOCK_P + (geometry.R - 1) * geometry.dilation[0]

    def run(self, geometry: Geometry, itemsize: int) -> int:
        """Rows of one load: of boxes in several parts one, else as many as divide all rows."""
        rows = self.rows(geometry)
        return rows & -rows if self.BLOCK_W * itemsize <= tma.ROW_BYTES else 1

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results."""
        g = shown(problem)
        boxes = g.N * cdiv(g.P, self.BLOCK_P) * boxes_of_row(g, self.BLOCK_W, piece_of(problem))
        return boxes * g.groups * cdiv(g.group_K, self.BLOCK_F)

    def strips(self, problem: Problem) -> int:
        """Steps of the reduction: blocks of channels."""
        return cdiv(problem.reduced, self.BLOCK_K)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one product: pixels are the rows."""
        return self.pixels, self.BLOCK_F, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """Parts of the reduction: one."""
        return 1

    def step_bytes(self, problem: Problem) -> int:
        """Bytes that one step loads: rows of pixels, and the weights of all taps."""
        g = shown(problem)
        elements = self.rows(g) * self.BLOCK_W + g.R * g.S * self.BLOCK_F
        return elements * self.BLOCK_K * problem.dtype.itemsize

    def exchanged_bytes(self, problem: Problem) -> int:
        """Bytes of the sums of all columns of taps, which meet in shared memory."""
        return 4 * problem.correlated.S * (self.pixels + 4) * self.BLOCK_F

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program: the operands of every stage, then the sums."""
        operands = self.step_bytes(problem) * self.num_stages
        return max(operands, self.exchanged_bytes(problem)) + BARRIER_BYTES

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem) and fits(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {
            "precision": problem.precision,
            "turned": problem.is_turned,
            "as_rows": problem.layout.as_rows,
        }

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        g = shown(problem)
        work = matrix_work(
            plan,
            problem,
            self.code(problem),
            self.strips(problem) * g.R * g.S,
            self.BLOCK_F * self.pixels,
            plan.grid,
            image_first=True,
            descriptors=True,
        )
        loaded = self.strips(problem) * self.step_bytes(problem)
        read = work.shared_bytes - work.loaded_bytes
        if in_registers(problem):  # the left operand is read once for a row of taps
            left = self.strips(problem) * g.R * self.pixels * self.BLOCK_K * problem.image_bytes
            read += left * (max(1, 16 * self.num_warps // self.pixels) - g.S)
        exchanged = 2 * self.exchanged_bytes(problem)
        room = problem.device.limits.shared // self.shared_bytes(problem)
        # Instructions that its warps could issue while its sums pass shared memory.
        rates = problem.device.rates
        waiting = exchanged / rates.shared * rates.issue / self.num_warps
        work = work._replace(
            l2_bytes=loaded,
            shared_bytes=read + loaded + exchanged,
            loaded_bytes=loaded,
            resident=max(1, min(work.resident, room)),
            outside=max(work.outside, waiting),
        )
        return tma.after_copies(work, problem, piece_of(problem), copied=False)

    def code(self, problem: Problem) -> Code:
        """The code of a program: of one product, and outside of the loop. Counted for sm_90."""
        sums = self.BLOCK_F * self.pixels / problem.threads(self)
        g = shown(problem)
        outside, left = 450 + (6 + 4 * g.S) * sums, self.left_registers(problem)
        if problem.product != "tf32":
            return Code(45, outside, sums * g.S + left + 35)
        loop = (50 + 17 * sum(self.loads(problem))) / (g.R * g.S) + 10 * chunks_of(g, problem.dtype)
        return Code(loop + left, outside, sums * g.S + left + 35)

    def loads(self, problem: Problem) -> tuple[int, int]:
        """Boxes of one step: (of rows of the image, of weights)."""
        g, itemsize = shown(problem), problem.dtype.itemsize
        parts = cdiv(self.BLOCK_W * itemsize, tma.ROW_BYTES)
        images = self.rows(g) // self.run(g, itemsize) * parts
        return images, g.R * g.S * chunks_of(g, problem.dtype)

    def left_registers(self, problem: Problem) -> int:
        """Registers of a thread for left operands: of two products."""
        if not in_registers(problem):
            return 0
        chunk = self.BLOCK_K // chunks_of(shown(problem), problem.dtype)
        return chunk * max(1, self.pixels // (16 * self.num_warps)) * problem.dtype.itemsize // 4


def shown(problem: Problem) -> Geometry:
    """The geometry of the forward correlation, with planes as rows if layout.as_rows."""
    g = problem.correlated
    return g.as_rows() if problem.layout.as_rows else g


def in_registers(problem: Problem) -> bool:
    """Whether left operands are loaded to registers: in TF32, or for several columns of taps."""
    return problem.product == "tf32" or shown(problem).S > 1


def chunks_of(geometry: Geometry, dtype: torch.dtype) -> int:
    """Products that the channels of a step are cut into, of each tap.

    Two if the window has one row and operands are in_registers: one is loaded while the other is
    multiplied.
    """
    return 2 if geometry.R == 1 and (dtype == torch.float32 or geometry.S > 1) else 1


def piece_of(problem: Problem) -> int:
    """Columns of 16 bytes."""
    return 16 // problem.dtype.itemsize


def outputs_of(geometry: Geometry, columns: int, piece: int) -> int:
    """Columns from one box to the next, see outputs_of in kernels/fprop_planes.py."""
    pad = geometry.padding[1][0]
    return (columns - geometry.S + 1 + pad - cdiv(pad, piece) * piece) // piece * piece


def boxes_of_row(geometry: Geometry, columns: int, piece: int) -> int:
    """Boxes that a row of results is computed from."""
    beyond = max(needed_columns(geometry) - columns, 0)
    return 1 + cdiv(beyond, max(1, outputs_of(geometry, columns, piece)))


def needed_columns(geometry: Geometry) -> int:
    """Columns from the first one of the image to the last that boxes have to hold."""
    g = geometry
    return max(g.Q, min(g.W, g.Q + g.S - 1 - g.padding[1][0]))


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this: from the image as it lies."""
    g, layout = problem.correlated, problem.layout
    if problem.op not in ("fprop", "dgrad") or problem.device.arch != "90" or not layout.gluon:
        return False
    if layout.int64 or layout.boxes(problem.op) != "NCHW":
        return False
    if g.stride != (1, 1) or g.dilation[1] != 1:
        return False
    if problem.product == "tf32":
        if g.R * g.S > MOST_TAPS or g.R > MOST_ROWS:
            return False
    elif problem.product != "half" or layout.as_rows:  # fprop_tma and dgrad_tma read such rows
        return False
    if g.per_sample or g.padding_mode != "zeros":
        return False
    return bool(_blocks(problem)) and tma.has_coordinates(problem)


def _blocks(problem: Problem) -> list[int]:
    """Channels that steps may have: behind the last one are zeros, or another group's."""
    g, dtype = problem.correlated, problem.dtype
    blocks = [row // dtype.itemsize * chunks_of(g, dtype) for row in ROW_BYTES]
    most = max(blocks[-1], power_of_two(problem.reduced))
    return [n for n in blocks if n <= most and not (g.groups > 1 and problem.reduced % n)]


def tiles(problem: Problem) -> list[PlanesTile]:
    """The tiles that the planner may take: of each shape, the boxes that hold the most outputs."""
    if problem.has_few_channels or not is_legal(problem):
        return []
    g, shapes, found = shown(problem), SHAPES[problem.product], list[PlanesTile]()
    fewest = min(filters for filters, *_ in shapes)
    for filters, pixels, warps in shapes:
        if filters > fewest and filters >= 2 * g.group_K:
            continue
        boxes = [(pixels // columns, columns) for columns in COLUMNS if columns <= pixels]
        boxes = [(rows, columns) for rows, columns in boxes if rows < 2 * g.P]
        for rows, columns in boxes:
            tile = PlanesTile(rows, columns, filters, 0, warps, 0)
            # One program to a multiprocessor, or two, one of which multiplies as the other stores.
            side_by_side = warps == 4 or problem.product == "tf32"
            for programs in (1, 2) if side_by_side else (1,):
                room = problem.device.limits.shared // programs
                found += itertools.islice(_with_stages(tile, problem, room), 1)
    least = min((_multiplied(tile, problem) for tile in found), default=0)
    found = [tile for tile in found if _multiplied(tile, problem) <= 2 * least]
    return list(dict.fromkeys(found))


def _multiplied(tile: PlanesTile, problem: Problem) -> int:
    """Results that programs compute, those of no use included."""
    return tile.programs(problem) * tile.pixels * tile.BLOCK_F


def _with_stages(tile: PlanesTile, problem: Problem, room: int) -> Iterator[PlanesTile]:
    """The tile with every block of channels and number of stages that there is room for."""
    for stages, block in itertools.product(STAGES, _blocks(problem)):
        staged = replace(tile, BLOCK_K=block, num_stages=stages)
        if fits(staged, problem) and staged.shared_bytes(problem) <= room:
            yield staged


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (PlanesTile,)


def neighbours(tile: PlanesTile, problem: Problem) -> Iterator[PlanesTile]:
    """The tiles that a tuner tries: other boxes, channels and stages."""
    for filters, pixels, columns, warps, block, stages in itertools.product(
        (16, 32, 64, 128, 256), (64, 128, 256), COLUMNS, (4, 8), _blocks(problem), STAGES
    ):
        if columns <= pixels:
            other = PlanesTile(pixels // columns, columns, filters, block, warps, stages)
            if fits(other, problem):
                yield other


def fits(tile: PlanesTile, problem: Problem) -> bool:
    """Whether warps share the sums evenly and have room for them, and boxes in shared memory."""
    g = shown(problem)
    # Rows of 32 bytes are loaded only where they are whole rows of the image.
    whole = needed_columns(g) <= tile.BLOCK_W
    outputs = outputs_of(g, tile.BLOCK_W, piece_of(problem))
    sums = g.S * tile.BLOCK_F * tile.pixels / problem.threads(tile)
    registers = sums + tile.left_registers(problem)
    images, weights = tile.loads(problem)
    addresses = 3 * images + (weights if problem.product == "tf32" else 0)
    if problem.product == "tf32" and images > MOST_BOXES:
        return False
    return (
        is_launchable(tile, problem)
        and tile.BLOCK_W * problem.dtype.itemsize >= tma.ROW_BYTES // (4 if whole else 2)
        and tile.pixels % 64 == 0
        and tile.num_warps % 4 == 0
        and tile.BLOCK_K in _blocks(problem)
        and tile.num_stages > 1
        and (whole or outputs > 0)
        and sums <= MOST_SUMS
        and registers <= MOST_REGISTERS
        and registers + addresses <= MOST_WITH_ADDRESSES[problem.product]
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )
