"""Windows of several rows, over images read as NHWC: each row is loaded once for all its taps.

As tma.py, which says what descriptors can do, but for how operands come to shared memory: a step
loads BLOCK_P + R - 1 rows and multiplies R times BLOCK_P of them. Tiles are those that build
without spills for sm_90, and whose products ptxas overlaps. Weight gradients have tiles of their
own, in reuse_gradient.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..geometry import Geometry
from . import reuse_gradient, tma
from .cost import Code, Work, is_launchable, matrix_work
from .integers import cdiv
from .problem import Plan, Problem
from .tma_copies import copied_problem, may_copy

#: Bytes of channels of one step, which are rows of a swizzle: the wider the fewer steps. The last
#: is for channels that no other divides.
ROW_BYTES = (128, 64, 32)
#: Columns of a box: a period of the swizzle is 8 rows.
PERIOD = 8
#: Shared memory for barriers, beside that for boxes.
BARRIER_BYTES = 1024


@dataclass(frozen=True)
class ReuseTile:
    """A box of pixels of one program, its channels, and the launch options.

    Attributes:
        BLOCK_P: rows of the box.
        BLOCK_Q: columns of the box.
        BLOCK_F: channels of the result.
        BLOCK_K: reduced channels of one step.
        num_warps, num_stages: of the launch; stages are the places for boxes.
        copied: the image is not NHWC and is copied to it first, see copied_problem.
    """

    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_F: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    copied: bool = False

    family: ClassVar[str] = "reuse"
    partials: ClassVar[int] = 1

    @property
    def pixels(self) -> int:
        """Pixels of the box."""
        return self.BLOCK_P * self.BLOCK_Q

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results."""
        g = problem.correlated
        boxes = g.N * cdiv(g.P, self.BLOCK_P) * cdiv(g.Q, self.BLOCK_Q)
        return boxes * g.groups * cdiv(g.group_K, self.BLOCK_F)

    def strips(self, problem: Problem) -> int:
        """Steps of the reduction: columns of taps times blocks of channels."""
        return problem.correlated.S * cdiv(problem.reduced, self.BLOCK_K)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one product: channels are the rows."""
        return self.BLOCK_F, self.pixels, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """Parts of the reduction: one."""
        return 1

    def step_bytes(self, problem: Problem) -> int:
        """Bytes that one step loads: rows of pixels, and of each tap of a column the weights."""
        rows = problem.correlated.R
        pixels = (self.BLOCK_P + rows - 1) * self.BLOCK_Q
        return (pixels + rows * self.BLOCK_F) * self.BLOCK_K * problem.dtype.itemsize

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program: the operands of every stage."""
        return self.step_bytes(problem) * self.num_stages + BARRIER_BYTES

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem, self.copied) and fits(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision, "turned": problem.is_turned}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        products = self.strips(problem) * problem.correlated.R
        work = matrix_work(
            plan,
            problem,
            self.code(problem),
            products,
            self.BLOCK_F * self.pixels,
            plan.grid,
            image_first=False,
            descriptors=True,
        )
        loaded = self.strips(problem) * self.step_bytes(problem)
        room = problem.device.limits.shared // self.shared_bytes(problem)
        work = work._replace(
            l2_bytes=loaded,
            shared_bytes=work.shared_bytes - work.loaded_bytes + loaded,
            loaded_bytes=loaded,
            resident=max(1, min(work.resident, room)),
        )
        return tma.after_copies(work, problem, self.BLOCK_K, self.copied)

    def code(self, problem: Problem) -> Code:
        """The code of a program: of one product, and outside of the loop. Counted for sm_90."""
        sums = self.BLOCK_F * self.pixels / problem.threads(self)
        return Code(60, 450 + 6 * sums, sums + 48)


#: (channels of the result, pixels, num_warps), largest first: those read each input the fewest
#: times.
SHAPES = (
    (128, 256, 8),
    (128, 128, 8),
    (64, 256, 8),
    (64, 128, 4),
    (64, 64, 4),
)
#: Places for boxes, most first. With two, every load would be waited for: it starts when the
#: products of the step before its own do.
STAGES = (4, 3)


def is_legal(problem: Problem, copied: bool = False) -> bool:
    """Whether the kernel can compute this: from the image as it lies, or from a copy of it.

    Views of whole rows are what taps read only where neither rows nor taps are apart; weights of
    channels past the last would be those of the next tap.
    """
    if copied:
        return may_copy(problem) and is_legal(copied_problem(problem))
    g, layout = problem.correlated, problem.layout
    if problem.op not in ("fprop", "dgrad") or problem.device.arch != "90" or not layout.gluon:
        return False
    if layout.as_rows or layout.int64 or layout.boxes(problem.op) != "NHWC":
        return False
    if {g.stride, g.dilation} != {(1, 1)} or g.R == 1:
        return False
    pieces = 16 // problem.dtype.itemsize
    return bool(_blocks(problem) and problem.group_channels % pieces == 0 and tma.is_legal(problem))


def _blocks(problem: Problem) -> list[int]:
    """Channels that steps may have: those that divide the reduced ones."""
    blocks = [row // problem.dtype.itemsize for row in ROW_BYTES]
    blocks = [block for block in blocks if problem.reduced % block == 0]
    return blocks[:-1] or blocks


def tiles(problem: Problem) -> list[Any]:
    """The tiles that the planner may take: of each shape the box that overhangs least.

    With as many channels and stages as there is room for.
    """
    if problem.op == "wgrad":
        return list(reuse_gradient.tiles(problem))
    copied = not is_legal(problem)
    if problem.has_few_channels or (copied and not is_legal(problem, copied)):
        return []
    g = problem.correlated
    found: list[ReuseTile] = []
    for channels, pixels, warps in SHAPES:
        if channels > 64 and channels >= 2 * g.group_K:
            continue
        if channels * pixels > 128 * 128 and problem.layout.heavy_epilogue:
            continue  # gelu spills up to 88 bytes (sm_90, Triton 3.7.1)
        boxes = [
            (pixels // columns, columns) for columns in (8, 16, 32, 64) if columns <= pixels // 2
        ]
        rows, columns = min(boxes, key=lambda box: (_covered(g, box), _halo(g, box)))
        if _covered(g, (rows, columns)) > 2 * g.P * g.Q:
            continue
        tile = ReuseTile(rows, columns, channels, 0, warps, 0, copied)
        found += itertools.islice(_with_stages(tile, problem), 1)
    return found


def _with_stages(tile: ReuseTile, problem: Problem) -> Iterator[ReuseTile]:
    """The tile with every block of channels and number of stages that there is room for."""
    for block, stages in itertools.product(_blocks(problem), STAGES):
        staged = replace(tile, BLOCK_K=block, num_stages=stages)
        if staged.shared_bytes(problem) <= problem.device.limits.shared:
            yield staged


def _covered(geometry: Geometry, box: tuple[int, int]) -> int:
    rows, columns = box
    return cdiv(geometry.P, rows) * rows * cdiv(geometry.Q, columns) * columns


def _halo(geometry: Geometry, box: tuple[int, int]) -> int:
    """Pixels that a column of taps reads beside those of the box."""
    return (geometry.R - 1) * box[1]


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (ReuseTile, reuse_gradient.ReuseGradientTile)


def neighbours(tile: Any, problem: Problem) -> Iterator[Any]:
    """The tiles that a tuner tries: other boxes, channels and stages."""
    if problem.op == "wgrad":
        yield from reuse_gradient.neighbours(tile, problem)
        return
    for channels, pixels, columns, warps, block, stages in itertools.product(
        (64, 128), (128, 256), (8, 16, 32, 64), (4, 8), _blocks(problem), (*STAGES, 2)
    ):
        other = ReuseTile(pixels // columns, columns, channels, block, warps, stages, tile.copied)
        if fits(other, problem):
            yield other


def fits(tile: ReuseTile, problem: Problem) -> bool:
    """Whether warps share the sums evenly and have room for them, and boxes in shared memory."""
    sums = tile.BLOCK_F * tile.pixels / problem.threads(tile)
    return (
        is_launchable(tile, problem)
        and tile.BLOCK_F in (64, 128)
        and tile.num_warps % (tile.BLOCK_F // 16) == 0
        and tile.BLOCK_Q % PERIOD == 0
        and tile.BLOCK_K in _blocks(problem)
        and tile.num_stages > 1
        and sums <= problem.device.limits.registers // 2 + 1
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )
