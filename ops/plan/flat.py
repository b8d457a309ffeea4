"""Weight gradients in TF32 through tensor descriptors, from copies of the images as flat planes.

Matrix units take TF32 with the summed pixels innermost, and a box has to start at a multiple of 16
bytes, which windows of several columns do not. kernels/wgrad_flat.py says how copies make them.
Windows of one column need none, see tma.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..geometry import Geometry
from . import tma
from .cost import Code, Work, is_launchable, matrix_work, partial_bytes, splits_that_fill
from .integers import cdiv, filled, power_of_two
from .problem import Plan, Problem

#: Elements of 16 bytes of float32.
PIECE = 4


@dataclass(frozen=True)
class FlatTile:
    """The sums of one program, the pixels of one step, and what the compiler is told.

    Attributes:
        BLOCK_F: filters.
        BLOCK_C: channels of x.
        BLOCK_L: elements of a flat plane that one step sums.
        BLOCK_S: taps of a row that share what is loaded of dy.
        num_warps, num_stages: of the launch.
    """

    BLOCK_F: int
    BLOCK_C: int
    BLOCK_L: int
    num_warps: int
    num_stages: int
    BLOCK_S: int = 1

    family: ClassVar[str] = "flat"
    partials: ClassVar[int] = 1

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        g = problem.geometry
        blocks = cdiv(g.group_K, self.BLOCK_F) * cdiv(g.group_C, self.BLOCK_C)
        return g.groups * g.R * cdiv(g.S, self.BLOCK_S) * blocks

    def strips(self, problem: Problem) -> int:
        """Boxes of dy."""
        return problem.geometry.N * cdiv(dy_length(problem.geometry), self.BLOCK_L)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step."""
        return self.BLOCK_F, self.BLOCK_C * self.BLOCK_S, self.BLOCK_L

    def splits(self, problem: Problem) -> int:
        """Parts that boxes are best dealt out to. See cost.gradient_splits."""
        most = cdiv(self.strips(problem), tma.MIN_SPLIT_STRIPS)
        return splits_that_fill(self, problem, most, side_by_side=2)

    def shared_bytes(self, problem: Problem) -> int:
        """About what a program holds in shared memory: the operands of every pipeline stage."""
        rows = self.BLOCK_F + self.BLOCK_C * self.BLOCK_S
        return rows * self.BLOCK_L * problem.dtype.itemsize * self.num_stages

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem) and fits(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch, and of the copies before it."""
        g = problem.geometry
        m, n, k = self.step(plan.op)
        work = matrix_work(
            plan,
            problem,
            self.code(problem),
            plan.split_strips,
            m * n,
            plan.grid,
            image_first=False,
            descriptors=True,
            filled=(filled(g.group_K, self.BLOCK_F), filled(g.group_C, self.BLOCK_C), 1),
            slices=(cdiv(g.group_K, self.BLOCK_F), cdiv(g.group_C, self.BLOCK_C)),
        ).with_partials(partial_bytes(plan, problem))
        work = work.after_copies(copy_bytes(problem), sum(problem.read_bytes))
        # The kernel reads copies in place of the images.
        read = work.copy_bytes - sum(problem.read_bytes)
        # Every tap's product reads dy from shared memory.
        again = plan.split_strips * (self.BLOCK_S - 1) * m * k * problem.dtype.itemsize
        return replace(
            work,
            dram_bytes=work.dram_bytes + read,
            shared_bytes=work.shared_bytes + again,
            exchanges=problem.layout.channels_last,
        )

    def code(self, problem: Problem) -> Code:
        """The code of a program, counted for sm_90 (Triton 3.6)."""
        sums = self.BLOCK_F * self.BLOCK_C * self.BLOCK_S / problem.threads(self)
        return Code(70 + 50 * self.BLOCK_S, 400 + 7 * sums, sums + 60)


#: (filters, channels, num_warps, num_stages, taps of a row that share dy).
SHAPES = (
    (128, 256, 8, 4, 1),
    (128, 128, 8, 3, 1),
    (64, 128, 4, 4, 1),
    (64, 64, 4, 4, 1),
    (128, 64, 8, 4, 3),
    (64, 64, 4, 3, 3),
)
#: Elements of a plane of one step: 128 bytes, the widest row that is swizzled.
BLOCK_L = 32


def pitch(geometry: Geometry) -> int:
    """Elements from one row of a flat plane to the next, a multiple of PIECE.

    Behind the columns are zeros for the columns of padding on either side. dy has the same pitch.
    """
    g = geometry
    return cdiv(max(g.W + max(g.padding[1]), g.Q), PIECE) * PIECE


def copies(geometry: Geometry) -> int:
    """Copies of x: the offsets of taps differ so much that no multiple of PIECE has all."""
    return min(geometry.S, PIECE // math.gcd(PIECE, geometry.steps(1)[1]))


def x_length(geometry: Geometry) -> int:
    """Elements of a plane of x, which begins up to PIECE - 1 elements behind that of the copy."""
    return geometry.H * pitch(geometry) + PIECE


def dy_length(geometry: Geometry) -> int:
    """Elements of a plane of dy."""
    return geometry.P * pitch(geometry)


def copy_bytes(problem: Problem) -> list[int]:
    """Bytes of the copies: of x, and of dy."""
    g, itemsize = problem.geometry, problem.dtype.itemsize
    x = copies(g) * g.N * g.C * x_length(g)
    return [x * itemsize, g.N * g.K * dy_length(g) * itemsize]


def is_legal(problem: Problem) -> bool:
    """Whether the kernel can compute this, and no other of tma.py reads the images in place."""
    g = problem.geometry
    if problem.op != "wgrad" or problem.product != "tf32" or problem.layout.converts:
        return False
    if problem.device.arch not in tma.ARCHITECTURES or g.per_sample or g.padding_mode != "zeros":
        return False
    if any(g.steps(axis)[0] != 1 for axis in (0, 1)) or min(map(min, g.padding)) < 0:
        return False
    if (g.S == 1 and not g.padding[1][0]) or not tma.channel_block(problem):
        return False
    reach = (g.H + sum(g.padding[0]) + g.R * g.steps(0)[1]) * pitch(g) + g.S * g.steps(1)[1]
    rows = max(copies(g) * g.C, g.K) * g.N
    return max(reach, rows) <= tma.MAX_COORDINATE and sum(copy_bytes(problem)) <= tma.MAX_COPY_BYTES


def tiles(problem: Problem) -> list[FlatTile]:
    """The tiles that the planner may take."""
    if problem.has_few_channels or not is_legal(problem):
        return []
    g = problem.geometry
    return [
        FlatTile(filters, channels, BLOCK_L, warps, stages, taps)
        for filters, channels, warps, stages, taps in SHAPES
        if filters <= max(64, power_of_two(g.group_K))
        and channels <= max(64, power_of_two(g.group_C))
        and taps <= g.S
    ]


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (FlatTile,)


def neighbours(tile: FlatTile, problem: Problem) -> Iterator[FlatTile]:
    """The tiles that a tuner tries: other filters, channels, pixels of a step and stages."""
    taps = (1, 3)[: 1 + (problem.geometry.S > 1)]
    for fields in itertools.product((64, 128), (64, 128, 256), (16, 32), (4, 8), (2, 3, 4), taps):
        if fits(other := FlatTile(*fields), problem):
            yield other


def fits(tile: FlatTile, problem: Problem) -> bool:
    """Whether a program has room, by count: for its sums, and for the boxes of every stage."""
    m, n, _ = tile.step(problem.op)
    sums, limits = m * n / problem.threads(tile), problem.device.limits
    return (
        is_launchable(tile, problem)
        and 1 <= sums <= limits.registers // 2 + 1
        and tile.shared_bytes(problem) <= limits.shared
    )
