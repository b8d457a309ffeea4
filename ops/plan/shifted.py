"""Weight gradients of few channels on one side: the other image is read once, where it lies.

A tensor descriptor brings boxes of neighbouring pixels of the image with many channels; a program
gathers the image with few, once for every tap. kernels/wgrad_shifted.py multiplies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..geometry import Geometry, Pair
from . import tma
from .cost import (
    Code,
    Work,
    is_launchable,
    line_bytes,
    matrix_work,
    partial_bytes,
    resident_programs,
    splits_that_fill,
)
from .integers import cdiv, filled, power_of_two
from .problem import Plan, Problem

#: Channels of the image that stays, or columns (channel, tap) of the other one, of a program.
BLOCKS = (16, 32, 64, 128)
#: Bytes of pixels of one step: the widest row that is swizzled.
ROW_BYTES = 128
#: Elements that a thread gathers for a step: 64 spill (sm_90, Triton 3.7.1).
MOST_GATHERED = 32
#: Channels of the image that is shifted up to which the planner compares such tiles.
MOST_CHANNELS = 48
#: The images that may be shifted.
SHIFTS = ("x", "dy")


@dataclass(frozen=True)
class ShiftedTile:
    """The sums of one program, the pixels of one step, and the launch options.

    Attributes:
        BLOCK_M: channels of the image that stays.
        BLOCK_N: columns (channel, tap) of the one that is shifted.
        BLOCK_K: pixels of a step.
        shifts: "x", or "dy" where the stride is 1.
        num_warps, num_stages: of the launch.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    shifts: str
    num_warps: int
    num_stages: int

    family: ClassVar[str] = "shifted"
    partials: ClassVar[int] = 1

    def blocks(self, problem: Problem) -> Pair:
        """Blocks of channels that stay, and of columns."""
        channels, shifted = channels_of(problem.geometry, self.shifts)
        columns = shifted * problem.geometry.R * problem.geometry.S
        return cdiv(channels, self.BLOCK_M), cdiv(columns, self.BLOCK_N)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        return problem.geometry.groups * math.prod(self.blocks(problem))

    def strips(self, problem: Problem) -> int:
        """Boxes of pixels of all images."""
        return problem.geometry.N * cdiv(pixels_of(problem.geometry, self.shifts), self.BLOCK_K)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step."""
        return self.BLOCK_M, self.BLOCK_N, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """Parts that boxes are best dealt out to. See cost.gradient_splits."""
        return splits_that_fill(self, problem, cdiv(self.strips(problem), tma.MIN_SPLIT_STRIPS))

    def shared_bytes(self, problem: Problem) -> int:
        """About what a program holds in shared memory: boxes of every stage, one of the others."""
        rows = self.BLOCK_M * self.num_stages + self.BLOCK_N
        return rows * self.BLOCK_K * problem.dtype.itemsize

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem, self.shifts) and fits(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        g, itemsize = problem.geometry, problem.dtype.itemsize
        m, n, k = self.step(plan.op)
        steps = plan.split_strips
        channels, shifted = channels_of(g, self.shifts)
        pixels = pixels_of(g, self.shifts)
        inside = pixels / (cdiv(pixels, k) * k)
        columns = filled(shifted * g.R * g.S, n)
        blocks_m, _ = self.blocks(problem)
        code = self.code(problem)
        work = matrix_work(
            plan,
            problem,
            code,
            steps,
            m * n,
            plan.grid,
            image_first=False,
            lone=n * k,
            # Taps of a row of the window read the same lines, from L1.
            filled=(filled(channels, m), columns / g.S, inside),
            slices=(1, blocks_m) if self.shifts == "dy" else (blocks_m, 1),
        ).with_partials(partial_bytes(plan, problem))
        # One column of all pixels is a load of a warp: of neighbours, unless channels or a stride
        # lie between them.
        last = problem.layout.channels_last
        step = itemsize * (g.groups * shifted if last else 1)
        step *= g.stride[1] if self.shifts == "x" else 1
        more = max(0.0, line_bytes(32, step) - 4)
        return work._replace(
            resident=resident_programs(plan, problem, self.shared_bytes(problem), code.registers),
            shared_bytes=work.shared_bytes + steps * n * k * more,
        )

    def code(self, problem: Problem) -> Code:
        """The code of a program, counted for sm_90 (Triton 3.7.1)."""
        threads = problem.threads(self)
        sums, lone = self.BLOCK_M * self.BLOCK_N / threads, self.BLOCK_N * self.BLOCK_K / threads
        each = 14 if problem.dtype.itemsize == 2 else 16
        return Code(130 + each * lone, 450 + 25 * sums + 20 * lone, 0.5 * sums + 4.2 * lone + 65)


def channels_of(geometry: Geometry, shifts: str) -> Pair:
    """Channels of a group of the image that stays, and of the one that is shifted."""
    pair = geometry.group_K, geometry.group_C
    return pair if shifts == "x" else pair[::-1]


def pixels_of(geometry: Geometry, shifts: str) -> int:
    """Pixels of a plane of the image that stays."""
    g = geometry
    return g.P * g.Q if shifts == "x" else g.H * g.W


def is_legal(problem: Problem, shifts: str) -> bool:
    """Whether the kernel can compute this: matrix units take TF32 with pixels innermost."""
    g, layout = problem.geometry, problem.layout
    if problem.op != "wgrad" or problem.product not in ("half", "tf32") or layout.converts:
        return False
    if problem.device.arch not in tma.ARCHITECTURES or layout.int64:
        return False
    if g.per_sample or g.padding_mode != "zeros":
        return False
    if shifts == "dy" and g.stride != (1, 1):
        return False
    row = layout.y_row if shifts == "x" else layout.x_row
    if row == "NHWC":  # boxes of a group start at a multiple of 16 bytes
        pieces = g.groups == 1 or channels_of(g, shifts)[0] * problem.dtype.itemsize % 16 == 0
        return pieces and problem.product == "half"
    return row == "NCHW"


def tiles(problem: Problem) -> list[ShiftedTile]:
    """The tiles that the planner may take: those that channels and columns fill, and half of it."""
    g, found = problem.geometry, []
    for shifts in SHIFTS:
        channels, shifted = channels_of(g, shifts)
        if shifted > MOST_CHANNELS or not is_legal(problem, shifts):
            continue
        pixels = ROW_BYTES // problem.dtype.itemsize
        for m, n in itertools.product(_blocks(channels), _blocks(shifted * g.R * g.S)):
            # 4 warps would have 64 elements of a step each, and spill.
            tile = ShiftedTile(m, n, pixels, shifts, 8 if n == BLOCKS[-1] else 4, 4)
            if fits(tile, problem):
                found.append(tile)
    return found


def _blocks(rows: int) -> list[int]:
    """The block that `rows` rows fill at least half of, and half of it."""
    most = max(BLOCKS[0], min(BLOCKS[-1], power_of_two(rows)))
    return [most, most // 2] if most > BLOCKS[0] else [most]


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (ShiftedTile,)


def neighbours(tile: ShiftedTile, problem: Problem) -> Iterator[ShiftedTile]:
    """The tiles that a tuner tries: other channels, columns, pixels, stages and warps."""
    pixels = ROW_BYTES // problem.dtype.itemsize
    for m, n, k, warps, stages in itertools.product(
        BLOCKS, BLOCKS, (pixels // 2, pixels, 2 * pixels), (4, 8), (2, 3, 4)
    ):
        other = ShiftedTile(m, n, k, tile.shifts, warps, stages)
        if fits(other, problem):
            yield other


def fits(tile: ShiftedTile, problem: Problem) -> bool:
    """Whether a program has room, by count: for its sums, for what it gathers, and for boxes."""
    threads = problem.threads(tile)
    sums, gathered = (tile.BLOCK_N * n / threads for n in (tile.BLOCK_M, tile.BLOCK_K))
    return (
        is_launchable(tile, problem)
        and 1 <= sums <= problem.device.limits.registers // 4 + 1
        and gathered <= MOST_GATHERED
        and tile.shared_bytes(problem) <= problem.device.limits.shared
    )
