"""Stencils: a lane sums the taps of its own results. Few channels that no other family takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .cost import THREADS, Work, device_bytes, is_launchable, partial_bytes, splits_that_fill
from .device import ALL_REGISTERS, MAX_REGISTERS
from .integers import cdiv
from .problem import Plan, Problem

#: A split of a weight gradient sums at least this many pixels, so that partials stay few.
MIN_SPLIT_PIXELS = 1024
#: Lane instructions for one tap of one output (sm_90): 12 to 15 of pixels, 32 to 40 of a weight
#: gradient, see perf/results/codegen.json.
LANES_PER_TAP = {"fprop": 12, "dgrad": 12, "dgrad_frame": 12, "wgrad": 32}


@dataclass(frozen=True)
class StencilTile:
    """Pixels and channels of one program, and the launch options.

    Attributes:
        BLOCK_M: pixels; of a weight gradient, those of a step of its sum.
        BLOCK_C: channels of the result; filters, of a weight gradient.
        num_warps, num_stages: of the launch.
    """

    BLOCK_M: int
    BLOCK_C: int
    num_warps: int = 4
    num_stages: int = 2

    family: ClassVar[str] = "stencil"
    partials: ClassVar[int] = 1

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, a weight gradient's before it is split."""
        g = problem.geometry
        per_channel = cdiv(problem.pixels, self.BLOCK_M)
        if problem.op == "wgrad":
            per_channel = g.group_C * g.R * g.S
        return problem.banks * per_channel * cdiv(problem.channels, self.BLOCK_C)

    def strips(self, problem: Problem) -> int:
        """Runs of BLOCK_M pixels of one problem, that a weight gradient sums."""
        return cdiv(problem.pixels, self.BLOCK_M)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: a tap of BLOCK_C channels."""
        return (self.BLOCK_C, 1, self.BLOCK_M) if op == "wgrad" else (self.BLOCK_M, self.BLOCK_C, 1)

    def splits(self, problem: Problem) -> int:
        """Parts that a weight gradient's pixels are best cut into."""
        return splits_that_fill(self, problem, cdiv(problem.pixels, MIN_SPLIT_PIXELS))

    def shared_bytes(self, problem: Problem) -> int:
        """Shared memory of a program: none."""
        return 0

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to, see device.py."""
        long = problem.layout.int64 or problem.dtype == torch.float64  # offsets, or sums
        return ALL_REGISTERS if long else MAX_REGISTERS

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it: always."""
        return True

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides: none. It multiplies exactly."""
        return {}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch.

        Every tap of every channel that is summed loads its pixel through L1. From L2 comes, of each
        row of the window, the pixels that its taps do not share.
        """
        g, itemsize, pixel = problem.geometry, problem.dtype.itemsize, problem.image_bytes
        m, c, taps = self.BLOCK_M, self.BLOCK_C, g.R * g.S
        if plan.op == "wgrad":
            outputs, steps = c, plan.split_strips
            macs = steps * m * c
            loads = fresh = macs * (pixel + itemsize)
        else:
            outputs, steps = m * c, taps * problem.reduced
            macs = steps * m * c
            loads = macs * pixel + steps * c * itemsize
            row = min(m * g.stride[1] + (g.S - 1) * g.dilation[1], m * g.S)
            fresh = g.R * row * c * problem.reduced * pixel
        threads = problem.threads(self)
        return Work(
            plan.grid,
            threads,
            device_bytes(problem, plan.grid, taps * g.group_C),
            fresh,
            loads,
            macs,
            "float64" if problem.dtype == torch.float64 else "fma",
            LANES_PER_TAP[plan.op] * macs / threads,
            THREADS // 2 // threads,
            outputs=outputs,
            steps=steps,
            loaded_bytes=loads,
            stalls=steps if plan.op == "wgrad" else 0,
        ).with_partials(partial_bytes(plan, problem))


#: 512 elements each: a plane of pixels, few pixels of several channels, and for channels_last
#: neighbouring channels across the lanes.
STENCIL_TILES: tuple[StencilTile, ...] = (
    StencilTile(512, 1),
    StencilTile(128, 4),
    StencilTile(32, 16),
    StencilTile(8, 64),
)


def tiles(problem: Problem) -> list[StencilTile]:
    """The tile that the planner may take: one for few channels, none for many."""
    if not problem.has_few_channels:
        return []
    tile = tile_for(problem)
    if problem.op == "dgrad_frame":  # two loops around the sum leave registers for fewer pixels
        tile = replace(tile, BLOCK_M=tile.BLOCK_M // 4)
    return [tile]


def tile_for(problem: Problem) -> StencilTile:
    """The tile for a problem's channels and pixels, however many."""
    channels, pixels = problem.channels, problem.pixels
    if problem.layout.channels_last:
        return [t for t in STENCIL_TILES if t.BLOCK_C <= max(1, channels)][-1]
    if channels == 1:
        return STENCIL_TILES[0]
    return next((t for t in STENCIL_TILES[:3] if t.BLOCK_M <= pixels), STENCIL_TILES[2])


def lanes_per_output(problem: Problem) -> float:
    """Lane instructions for one output, lanes and multiprocessors without a pixel counted."""
    g, tile = problem.geometry, tile_for(problem)
    blocks = cdiv(problem.pixels, tile.BLOCK_M) * cdiv(problem.channels, tile.BLOCK_C)
    programs = problem.banks * blocks
    if problem.op != "wgrad":  # is split until the device is full
        sms = problem.device.multiprocessors
        programs = cdiv(programs, sms) * sms
    outputs = problem.banks * problem.pixels * problem.channels
    lanes = programs * tile.BLOCK_M * tile.BLOCK_C / outputs
    return LANES_PER_TAP[problem.op] * g.R * g.S * lanes


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (StencilTile,)


def neighbours(tile: StencilTile, problem: Problem) -> Iterator[StencilTile]:
    """The tiles that a tuner tries: 128 to 4096 elements, channels that fill half of a block."""
    sizes = itertools.product([2**i for i in range(3, 12)], [2**i for i in range(8)], (1, 2, 4, 8))
    for m, c, warps in sizes:
        if 128 <= m * c <= 4096 and c < 2 * problem.channels:
            found = StencilTile(m, c, warps)
            if fits(found, problem):
                yield found


def fits(tile: StencilTile, problem: Problem) -> bool:
    """Whether a tile does not spill, by count: a sum and three values to address and load it."""
    if not is_launchable(tile, problem):
        return False
    held = tile.BLOCK_M * tile.BLOCK_C / problem.threads(tile)
    return 1 <= held and held * (problem.words + 3) <= problem.device.limits.registers // 2
