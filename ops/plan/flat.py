"""Weight gradients in TF32 through tensor descriptors, from copies of x and dy.

Matrix units take TF32 with the summed pixels innermost, and a box has to start at a multiple of 16
bytes. In the copies pixels of the same place in different images are neighbours, so that every tap
starts at such a multiple: kernels/wgrad_flat.py says how they lie.
"""

from __future__ import annotations

import functools
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
class Copies:
    """How copies of x and dy lie: planes of elements (row, column, lane), for each channel.

    A lane is a band of rows of dy of one image, with the rows of x that its taps read. Lanes lie in
    the order of (image, band).

    Attributes:
        bands: of an image, and
        band_rows: rows of dy of each.
        lanes: of one part, a multiple of PIECE.
        parts: that are copied and multiplied one after the other.
        first: row of x, over the stride, in the first row of a plane.
        x_rows: of a plane of x; a plane of dy has band_rows.
        x_columns: of a plane of x that are not padding.
        pitch: columns of a plane.
        x_planes, dy_planes: of each channel, and of each filter.
        x_taps, dy_taps: columns of the window that are rows of an operand, see kernels/wgrad_flat.
        taps: of the window that programs deal out among them.
        phases: of columns whose taps have no copy of dy in common.
    """

    bands: int
    band_rows: int
    lanes: int
    parts: int
    first: int
    x_rows: int
    x_columns: int
    pitch: int
    x_planes: int
    dy_planes: int
    x_taps: int
    dy_taps: int
    taps: int
    phases: int

    @property
    def x_length(self) -> int:
        """Elements of a plane of x."""
        return self.x_rows * self.pitch * self.lanes

    @property
    def dy_length(self) -> int:
        """Elements of a plane of dy."""
        return self.band_rows * self.pitch * self.lanes

    def elements(self, geometry: Geometry) -> tuple[int, int]:
        """Elements of the copies of one part: of x, and of dy."""
        x = geometry.C * self.x_planes * self.x_length
        return x, geometry.K * self.dy_planes * self.dy_length


@dataclass(frozen=True)
class FlatTile:
    """The sums of one program, the pixels of one step, and the launch options.

    Attributes:
        BLOCK_F: filters, or (column of the window, filter).
        BLOCK_C: channels of x, or (column of the window, channel).
        BLOCK_L: elements of a plane that one step sums.
        BLOCK_S: taps that share what is loaded of dy.
        num_warps, num_stages: of the launch.
        unfolded: "x" or "dy" if it has copies for every column of the window, else "".
    """

    BLOCK_F: int
    BLOCK_C: int
    BLOCK_L: int
    num_warps: int
    num_stages: int
    BLOCK_S: int = 1
    unfolded: str = ""

    family: ClassVar[str] = "flat"
    partials: ClassVar[int] = 1

    def copies(self, problem: Problem) -> Copies:
        """How the copies lie that the kernel reads."""
        return copies_of(problem.geometry, self.unfolded)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        taps = cdiv(self.copies(problem).taps, self.BLOCK_S)
        return problem.geometry.groups * taps * math.prod(self._blocks(problem))

    def strips(self, problem: Problem) -> int:
        """Boxes of dy in one part of the images."""
        return cdiv(self.copies(problem).dy_length, self.BLOCK_L)

    def _blocks(self, problem: Problem) -> tuple[int, int]:
        """Blocks of filters, and of channels."""
        filters, channels = rows_of(problem.geometry, self.unfolded)
        return cdiv(filters, self.BLOCK_F), cdiv(channels, self.BLOCK_C)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step."""
        return self.BLOCK_F, self.BLOCK_C * self.BLOCK_S, self.BLOCK_L

    def splits(self, problem: Problem) -> int:
        """Parts that boxes are best dealt out to. See cost.gradient_splits."""
        most = cdiv(self.strips(problem), tma.MIN_SPLIT_STRIPS)
        return splits_that_fill(self, problem, most, side_by_side=2)

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program, about: the operands of every pipeline stage."""
        rows = self.BLOCK_F + self.BLOCK_C * self.BLOCK_S
        return rows * self.BLOCK_L * problem.dtype.itemsize * self.num_stages

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to: it is not."""
        return None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem, self.unfolded) and fits(self, problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of all launches: the copies, and the products of each part of the images."""
        g, itemsize, made = problem.geometry, problem.dtype.itemsize, self.copies(problem)
        m, n, k = self.step(plan.op)
        steps = plan.split_strips * made.parts
        filters, channels = rows_of(g, self.unfolded)
        work = matrix_work(
            plan,
            problem,
            self.code(problem),
            steps,
            m * n,
            plan.grid,
            image_first=False,
            descriptors=True,
            filled=(filled(filters, self.BLOCK_F), filled(channels, self.BLOCK_C), 1),
            slices=self._blocks(problem),
        ).with_partials(partial_bytes(plan, problem))
        copied = [part * made.parts * itemsize for part in made.elements(g)]
        work = work.after_copies(copied, sum(problem.read_bytes))
        return work._replace(
            launches=work.launches + 2 * (made.parts - 1),
            parts=made.parts,
            # The kernel reads copies in place of the images.
            dram_bytes=work.dram_bytes + work.copy_bytes - sum(problem.read_bytes),
            # Every tap's product reads dy from shared memory.
            shared_bytes=work.shared_bytes + steps * (self.BLOCK_S - 1) * m * k * itemsize,
        )

    def code(self, problem: Problem) -> Code:
        """The code of a program, counted for sm_90 (Triton 3.6)."""
        sums = self.BLOCK_F * self.BLOCK_C * self.BLOCK_S / problem.threads(self)
        return Code(70 + 50 * self.BLOCK_S, 400 + 7 * sums, sums + 60)


#: (filters, channels, num_warps, num_stages, taps that share dy).
SHAPES = (
    (128, 256, 8, 4, 1),
    (64, 256, 8, 4, 1),
    (128, 128, 8, 3, 1),
    (64, 128, 4, 4, 1),
    (64, 64, 4, 4, 1),
    (128, 64, 8, 4, 3),
    (64, 64, 4, 3, 3),
)
#: Elements of a plane of one step: 128 bytes, the widest row that is swizzled.
BLOCK_L = 32
#: Most bytes of the copies of one part of the images. Parts of that size fill a device, and copies
#: of all images in one part would need several times the memory of x and dy; assumed.
MAX_PART_BYTES = 2**29
#: Operands that may be unfolded, see FlatTile.
UNFOLDED = ("", "x", "dy")
#: Channels of a group up to which copies for every column of the window may pay.
MAX_UNFOLDED_CHANNELS = 128


@functools.lru_cache(maxsize=4096)
def copies_of(geometry: Geometry, unfolded: str = "") -> Copies:
    """How copies lie, in the fewest parts that are not too large, if there are such."""
    g = geometry
    step, dilation, before = g.stride[1], g.dilation[1], g.padding[1][0]
    period = step // math.gcd(step, dilation)
    phases = min(g.S, period)
    left = cdiv(before, step)
    right = max(0, ((g.S - 1) * dilation - before) // step)
    columns = min(g.Q + right, cdiv(g.W, step))
    pitch = max(columns + left, g.Q + right)
    x_taps = dy_taps = 1
    planes = (phases, 1)
    if unfolded == "x":
        columns = pitch = g.Q
        planes, x_taps, phases = (g.S, 1), g.S, 1
    elif unfolded == "dy":
        pitch, dy_taps = columns, cdiv(g.S, period)
        planes = (phases, phases * dy_taps)

    step, dilation, before = g.stride[0], g.dilation[0], g.padding[0][0]
    below = max(0, ((g.R - 1) * dilation - before) // step)
    lanes, most = PIECE // math.gcd(PIECE, g.N) * g.N, 0
    while True:
        bands = lanes // g.N
        band_rows = cdiv(g.P, bands)
        # Beside an image x is zero, but beside a band it has rows of its own.
        first = 0 if bands == 1 else -cdiv(before, step)
        x_rows = band_rows + below - first
        if bands == 1:
            x_rows = min(x_rows, cdiv(g.H, step))
        made = Copies(
            bands,
            band_rows,
            lanes=PIECE,
            parts=1,
            first=first,
            x_rows=x_rows,
            x_columns=columns,
            pitch=pitch,
            x_planes=planes[0] * min(g.R, step // math.gcd(step, dilation)),
            dy_planes=planes[1],
            x_taps=x_taps,
            dy_taps=dy_taps,
            taps=g.R * (phases if unfolded else g.S),
            phases=phases,
        )
        most = MAX_PART_BYTES // (4 * sum(made.elements(g))) * PIECE
        if most or bands >= g.P:
            break
        lanes *= 2
    parts = cdiv(lanes, max(most, PIECE))
    return replace(made, lanes=cdiv(lanes, parts * PIECE) * PIECE, parts=parts)


def rows_of(geometry: Geometry, unfolded: str) -> tuple[int, int]:
    """Rows of dy and of x that a group multiplies with each other: filters, and channels."""
    made = copies_of(geometry, unfolded)
    return made.dy_taps * geometry.group_K, made.x_taps * geometry.group_C


def is_legal(problem: Problem, unfolded: str = "") -> bool:
    """Whether the kernel can compute this."""
    g = problem.geometry
    if problem.op != "wgrad" or problem.product != "tf32" or problem.layout.converts:
        return False
    if problem.device.arch not in tma.ARCHITECTURES or g.per_sample or g.padding_mode != "zeros":
        return False
    if min(map(min, g.padding)) < 0 or not tma.channel_block(problem):
        return False
    made = copies_of(g, unfolded)
    if 4 * sum(made.elements(g)) > MAX_PART_BYTES:
        return False
    rows = g.H + sum(g.padding[0]) + g.R * g.dilation[0]
    return rows * made.pitch * made.lanes <= tma.MAX_COORDINATE


def tiles(problem: Problem) -> list[FlatTile]:
    """The tiles that the planner may take."""
    if problem.has_few_channels:
        return []
    g = problem.geometry
    found = []
    for unfolded in UNFOLDED:
        few = (g.group_K if unfolded == "dy" else g.group_C) <= MAX_UNFOLDED_CHANNELS
        if (unfolded and (g.S == 1 or not few)) or not is_legal(problem, unfolded):
            continue
        filters, channels = rows_of(g, unfolded)
        for block_f, block_c, warps, stages, taps in SHAPES:
            tile = FlatTile(block_f, block_c, BLOCK_L, warps, stages, taps, unfolded)
            most_f, most_c = (max(64, power_of_two(n)) for n in (filters, channels))
            if block_f <= most_f and block_c <= most_c and fits(tile, problem):
                found.append(tile)
    return found


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (FlatTile,)


def neighbours(tile: FlatTile, problem: Problem) -> Iterator[FlatTile]:
    """The tiles that a tuner tries: other filters, channels, pixels of a step, stages, copies."""
    for filters, channels, pixels, warps, stages, taps, unfolded in itertools.product(
        (64, 128), (64, 128, 256), (16, 32), (4, 8), (2, 3, 4), (1, 3), UNFOLDED
    ):
        other = FlatTile(filters, channels, pixels, warps, stages, taps, unfolded)
        if is_legal(problem, unfolded) and fits(other, problem):
            yield other


def fits(tile: FlatTile, problem: Problem) -> bool:
    """Whether a program has room, by count: for its sums, and for the boxes of every stage.

    The taps of one program that share a copy of dy have one phase.
    """
    m, n, _ = tile.step(problem.op)
    g, made = problem.geometry, tile.copies(problem)
    sums, limits = m * n / problem.threads(tile), problem.device.limits
    alone = tile.unfolded == "dy" and made.phases > 1 and g.R % tile.BLOCK_S
    # 8 bytes (128 x 64 sums for each of 3 taps, sm_100, Triton 3.7.1)
    spills = problem.device.arch == "100" and tile.unfolded == "dy" and tile.BLOCK_S > 1
    return (
        is_launchable(tile, problem)
        and not alone
        and not spills
        and tile.BLOCK_S <= made.taps
        and 1 <= sums <= limits.registers // 2 + 1
        and tile.shared_bytes(problem) <= limits.shared
    )
