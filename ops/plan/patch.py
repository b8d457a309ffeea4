"""Matrix products whose columns are the pixels of a patch: few channels on one side.

With few channels of the result a GEMM has few columns, and reads its image once for every tap. The
pixels of a patch as further columns fill the tile, and share what they read: a patch of outputs
reads a window that is larger by the patch, once. The weight is spread over that window, with zeros
where a pixel has no tap: see kernels/build_patch_weight.py.

An input gradient of stride s has a column for each of the s x s phases of a pixel: all phases read
the same pixels of dy, through taps of their own. A window that is as large as the stride (patchify)
has one tap for each phase: then it is a plain product without zeros.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..geometry import Geometry
from .cost import (
    LINE,
    Code,
    Work,
    fits_matrix_unit,
    line_bytes,
    matrix_work,
    partial_bytes,
    pipeline_bytes,
    splits_that_fill,
)
from .device import ALL_REGISTERS, GEMM_MIN, MAX_WORKSPACE
from .gemm import LONG_STEP, MIN_SPLIT_PIXELS
from .integers import cdiv, filled
from .problem import Plan, Problem

#: Rows of y in a patch, and columns.
PATCH_ROWS, PATCH_COLUMNS = (1, 2, 4, 8, 16), (1, 2, 4, 8)
#: Most columns of a patch of several pixels: more would not fit into one tile.
MAX_COLUMNS = 128
#: Of channels or filters, whichever are fewer: more fill the columns of a GEMM by themselves.
MOST_CHANNELS = 32
#: Fewest pixels of y: below, there are not enough patches for the rows of a tile.
MIN_PIXELS = 64
#: Most accumulator elements per thread before a residual, gelu or silu: 64 spill 88 bytes, and 32
#: with steps of 64 elements 16 bytes (sm_90, 16 bits).
HEAVY_RESULTS = 32
#: Partials that sum_partials adds up in few microseconds: 16 passes of its loop.
MAX_PARTIALS = 512


@dataclass(frozen=True)
class Axis:
    """How patches lie along one axis of the result, and what they read.

    Patch u has results u * pitch + b - shift for b < pitch, through window places i < window of
    the image, u * step - pad + i: tap i * of_place + b * of_result + first of the weight.

    Attributes:
        pitch: results from one patch to the next.
        shift: results of the first patch that lie before the image.
        count: patches.
        step: image rows or columns from one patch to the next.
        pad: of them before the image.
        window: image rows or columns that a patch reads.
        of_place, of_result, first: of the tap, see above.
    """

    pitch: int
    shift: int
    count: int
    step: int
    pad: int
    window: int
    of_place: int
    of_result: int
    first: int


@dataclass(frozen=True)
class PatchTile:
    """One program's GEMM, the patch, and the launch options.

    Attributes:
        BLOCK_M: patches; columns (pixel of a patch, filter), of a weight gradient.
        BLOCK_N: columns (pixel of a patch, channel of the result); columns (place of the window
            that a patch reads, channel), of a weight gradient.
        BLOCK_K: elements (place, channel) of a step of the sum; patches, of a weight gradient.
        PATCH_P, PATCH_Q: rows and columns of y, or dy, in a patch.
        num_warps, num_stages: of the launch.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    PATCH_P: int
    PATCH_Q: int
    num_warps: int
    num_stages: int

    family: ClassVar[str] = "patch"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The entry of PATCH_SHAPES or PATCH_GRADIENT_SHAPES that the tile was made of."""
        return self.BLOCK_M, self.BLOCK_N, self.BLOCK_K, self.num_warps, self.num_stages

    @property
    def partials(self) -> int:
        """Each pixel of a patch leaves a weight gradient of its own."""
        return self.PATCH_P * self.PATCH_Q

    def axes(self, op: str, geometry: Geometry) -> tuple[Axis, Axis]:
        """Rows and columns."""
        g = geometry
        rows = (g.H, g.P, g.R, g.stride[0], g.padding[0][0], self.PATCH_P)
        columns = (g.W, g.Q, g.S, g.stride[1], g.padding[1][0], self.PATCH_Q)
        return axis_of(op, *rows), axis_of(op, *columns)

    def columns(self, op: str, geometry: Geometry) -> int:
        """Columns (pixel of a patch, channel of the result) of one group."""
        rows, columns = self.axes(op, geometry)
        channels = geometry.group_C if op == "dgrad" else geometry.group_K
        return rows.pitch * columns.pitch * channels

    def patches(self, op: str, geometry: Geometry) -> int:
        """Patches of the batch."""
        rows, columns = self.axes(op, geometry)
        return geometry.N * rows.count * columns.count

    def steps(self, op: str, geometry: Geometry, one_tap: bool) -> int:
        """Steps of the sum over (place, channel), each of one place or of several."""
        rows, columns = (axis.window for axis in self.axes(op, geometry))
        channels = geometry.group_K if op == "dgrad" else geometry.group_C
        if one_tap:
            return rows * columns * cdiv(channels, self.BLOCK_K)
        row = columns * channels
        return cdiv(rows, max(1, self.BLOCK_K // row)) * cdiv(row, self.BLOCK_K)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, a weight gradient's before it is split."""
        op, g = problem.op, problem.geometry
        m, n = self.patches(op, g), self.columns(op, g)
        if problem.op == "wgrad":
            rows, columns = self.axes(op, g)
            m, n = n, rows.window * columns.window * problem.reduced
        return g.groups * cdiv(m, self.BLOCK_M) * cdiv(n, self.BLOCK_N)

    def strips(self, problem: Problem) -> int:
        """Runs of BLOCK_K patches that a weight gradient sums; steps of another's loop."""
        if problem.op != "wgrad":
            one_tap = bool(self.flags(problem)["one_tap"])
            return self.steps(problem.op, problem.geometry, one_tap)
        return cdiv(self.patches(problem.op, problem.geometry), self.BLOCK_K)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step of the loop."""
        return self.BLOCK_M, self.BLOCK_N, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """Parts that a weight gradient's patches are best cut into."""
        if problem.op != "wgrad":  # see cost.image_splits
            return 1
        most = min(cdiv(problem.pixels, MIN_SPLIT_PIXELS), MAX_PARTIALS // self.partials)
        return splits_that_fill(self, problem, most)

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program, about: the operands of every pipeline stage."""
        return pipeline_bytes(self, problem)

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to, see device.py."""
        # To stay at 96 it would spill 24 bytes with 16 columns (sm_80), and 8 with 32 of phases
        # (sm_90, TF32 in parts).
        most = {"fprop": 16, "dgrad": 32}.get(problem.op, 0)
        return ALL_REGISTERS if self.BLOCK_N <= most else None

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it."""
        return is_legal(problem)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        fills_a_step = problem.reduced >= self.BLOCK_K
        fills_half = self._decodes_places(problem) and 2 * problem.reduced > self.BLOCK_K
        one_tap = problem.op != "wgrad" and (fills_a_step or fills_half)
        return {
            "precision": problem.precision,
            "one_tap": one_tap,
            "turned": problem.op == "dgrad",
        }

    def spread_shape(self, op: str, geometry: Geometry, one_tap: bool) -> tuple[int, int, int]:
        """Shape of the spread weight: (group, column, step and element of it)."""
        elements = self.steps(op, geometry, one_tap) * self.BLOCK_K
        return geometry.groups, self.columns(op, geometry), elements

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch, and of those that spread the weight and add partials."""
        g, between = problem.geometry, 0
        steps: float = plan.split_strips
        if plan.op != "wgrad":
            steps = self.steps(plan.op, g, plan.one_tap) / plan.splits
            spread = self.spread_shape(plan.op, g, plan.one_tap)
            between = math.prod(spread) * problem.dtype.itemsize
        lone = self._lone(problem)
        work = matrix_work(
            plan,
            problem,
            self.code(plan, problem),
            steps,
            self.BLOCK_M * self.BLOCK_N,
            plan.grid,
            image_first=plan.op != "wgrad",
            lone=lone,
            between_bytes=between,
            filled=self._filled(problem),
            slices=(1, g.group_C // self.BLOCK_N if g.group_C % self.BLOCK_N == 0 else 1),
        )
        work = work.with_partials(partial_bytes(plan, problem))
        if self._multiplies_by_warps(problem):
            work = work._replace(products=2 * work.products)
        more = max(0, self._line_bytes(problem) - 4)
        return work._replace(shared_bytes=work.shared_bytes + steps * lone * more)

    def _line_bytes(self, problem: Problem) -> float:
        """Bytes that L1 reads for an element that is loaded alone.

        In planes, neighbouring lanes have neighbouring patches, then those of the next row; in
        channels_last, they have the channels of a group, then the next place of the window.
        """
        g, pixel = problem.geometry, problem.image_bytes
        if problem.layout.channels_last:
            place = problem.reduced * g.groups * pixel
            return max(LINE / 32, min(place, LINE) / problem.reduced)
        rows, columns = self.axes(problem.op, g)
        height, width = (g.P, g.Q) if problem.op == "dgrad" else (g.H, g.W)
        patches = rows.count * columns.count
        return min(
            line_bytes(columns.count, columns.step * pixel),
            line_bytes(patches, height * width * pixel / patches),
        )

    def _filled(self, problem: Problem) -> tuple[float, float, float]:
        """Shares of (M, N, K) of a step that are elements: other lanes load nothing."""
        op, g = problem.op, problem.geometry
        columns = self.columns(op, g)
        if op == "wgrad":
            rows, places = self.axes(op, g)
            read = rows.window * places.window * problem.reduced
            return filled(columns, self.BLOCK_M), filled(read, self.BLOCK_N), 1
        return filled(self.patches(op, g), self.BLOCK_M), filled(columns, self.BLOCK_N), 1

    def _lone(self, problem: Problem) -> int:
        """Elements of a pass that are loaded one by one: of planes, and of odd channels."""
        g, last = problem.geometry, problem.layout.channels_last
        image = not last or problem.reduced % 2
        if problem.op == "wgrad":
            dy = not last or g.group_K % 2
            return self.BLOCK_K * (self.BLOCK_M * dy + self.BLOCK_N * image)
        return self.BLOCK_K * self.BLOCK_M * image

    def _multiplies_by_warps(self, problem: Problem) -> bool:
        """Whether the columns, which come first where patches lie along lanes, are too few rows."""
        rows = problem.device.rates.rows
        first = problem.op != "wgrad" and not problem.layout.channels_last
        return first and rows is not None and problem.unit != "fma" and self.BLOCK_N < rows

    def _decodes_places(self, problem: Problem) -> bool:
        """Whether steps of several places differ in them, while threads run along patches.

        Then every thread finds the place of each of its elements in every step.
        """
        if problem.layout.channels_last or problem.reduced >= self.BLOCK_K:
            return False
        columns = self.axes(problem.op, problem.geometry)[1].window
        return self.BLOCK_K < columns * problem.reduced

    def code(self, plan: Plan, problem: Problem) -> Code:
        """The code of a program, fitted to machine code for sm_90 (Triton 3.7.1)."""
        threads = problem.threads(self)
        sums = self.BLOCK_M * self.BLOCK_N / threads
        elements = (self.BLOCK_M + self.BLOCK_N) * self.BLOCK_K / threads
        lone = self._lone(problem) / threads
        half = problem.dtype.itemsize == 2
        if plan.op == "wgrad":
            loop = 130 + (5.2 if half else 4) * lone
        else:
            loop = 110 + 30 * (not plan.one_tap) + (3.5 if half else 1) * lone
            if not plan.one_tap and self._decodes_places(problem):
                loop += 20 * self.BLOCK_M * self.BLOCK_K / threads
        loop += 70 * self._multiplies_by_warps(problem)
        if problem.product == "tf32x3":  # both halves of every operand are made in registers
            loop += 18 * elements
        if problem.unit == "fma":
            loop += sums * self.BLOCK_K
        return Code(loop, 600 + 16 * sums, sums + 80)


@functools.lru_cache(maxsize=4096)
def axis_of(
    op: str, inputs: int, outputs: int, taps: int, stride: int, pad: int, patch: int
) -> Axis:
    """The patches along an axis with these numbers of inputs (of x), outputs (of y) and taps."""
    if op != "dgrad":
        window = stride * (patch - 1) + taps
        return Axis(patch, 0, cdiv(outputs, patch), stride * patch, pad, window, 1, -stride, 0)
    reach = cdiv(taps, stride)  # taps of a phase
    shift, pitch = pad % stride, patch * stride
    return Axis(
        pitch,
        shift,
        cdiv(inputs + shift, pitch),
        patch,
        reach - 1 - pad // stride,
        patch - 1 + reach,
        -stride,
        1,
        stride * (reach - 1),
    )


#: For each kind of product, tiles of fprop and dgrad, and of wgrad. Each is checked ahead of time
#: for spills on sm_80, sm_90, sm_100 and gfx942.
PATCH_SHAPES: dict[str, tuple[tuple[int, int, int, int, int], ...]] = {
    "half": (
        (128, 128, 64, 8, 3),
        (128, 64, 64, 8, 3),
        (128, 64, 32, 4, 3),
        (128, 32, 32, 4, 3),
        (128, 16, 32, 4, 3),
    ),
    "tf32": (
        (128, 128, 32, 8, 3),
        (128, 64, 64, 8, 2),
        (128, 64, 32, 8, 3),
        (128, 32, 32, 4, 3),
        (128, 16, 32, 4, 3),
    ),
    "tf32x3": ((64, 64, 32, 8, 2), (64, 32, 32, 4, 2)),
    "ieee": ((128, 64, 16, 8, 2), (64, 32, 16, 4, 3)),
    "float64": ((64, 32, 16, 8, 2),),
}
PATCH_GRADIENT_SHAPES: dict[str, tuple[tuple[int, int, int, int, int], ...]] = {
    "half": (
        (64, 128, 32, 8, 3),
        (64, 64, 32, 4, 3),
        (32, 128, 32, 8, 3),
        (16, 128, 32, 8, 3),
    ),
    "tf32": (
        (128, 64, 32, 8, 3),
        (64, 64, 32, 4, 3),
        (32, 128, 32, 8, 3),
        (16, 128, 32, 4, 3),
    ),
    "tf32x3": ((64, 64, 32, 8, 2),),
}


def is_legal(problem: Problem) -> bool:
    """Whether patch kernels can compute this."""
    g = problem.geometry
    if problem.op == "dgrad_frame" or g.per_sample or problem.layout.int64:
        return False
    return g.dilation[0] == g.dilation[1] == 1 and problem.reduced > 0


def tiles(problem: Problem) -> list[PatchTile]:
    """The tiles that the planner may take, each with the patches whose pixels fill its columns.

    Only a matrix unit multiplies zeros for less than it takes to read an image again: on other
    units a patch is one pixel of dy, with the phases of its stride.
    """
    g = problem.geometry
    few = min(g.group_C, g.group_K) <= MOST_CHANNELS
    return legal_tiles(problem) if few and g.N * g.P * g.Q >= MIN_PIXELS else []


def legal_tiles(problem: Problem) -> list[PatchTile]:
    """The same, however many channels and few pixels there are."""
    g = problem.geometry
    if not is_legal(problem):
        return []
    shapes = PATCH_GRADIENT_SHAPES if problem.op == "wgrad" else PATCH_SHAPES
    phases = math.prod(g.phases) if problem.op == "dgrad" else 1
    # 16-bit elements of planes pass through registers, and spill without a warpgroup's product.
    long_steps = problem.layout.channels_last or problem.device.rates.rows is not None
    # Single channels side by side have an address for each of a thread's patches.
    single = problem.layout.channels_last and problem.reduced % 2 and not problem.device.rates.rows
    # Weight gradients in TF32 spill 8 to 96 bytes with 64 x 64 results (sm_80, Triton 3.7.1).
    crowded = problem.op == "wgrad" and problem.unit == "tf32" and not problem.device.rates.rows
    found = []
    for p, q in itertools.product(PATCH_ROWS, PATCH_COLUMNS):
        if p * q > 1 and problem.unit not in ("half", "tf32"):
            continue
        columns = p * q * phases * problem.group_channels
        if (p * q == 1 and phases == 1) or (p * q > 1 and columns > MAX_COLUMNS):
            continue
        if p > 2 * g.P or q > 2 * g.Q:
            continue
        for m, n, k, warps, stages in shapes.get(problem.product, ()):
            if n > 64 and k >= LONG_STEP and not long_steps:
                continue
            if single and m * n > HEAVY_RESULTS * 32 * warps and k < LONG_STEP:
                continue
            if crowded and (m, n) == (64, 64):
                continue
            registers = m * n > HEAVY_RESULTS * 32 * warps or k >= LONG_STEP
            if problem.layout.heavy_epilogue and registers:
                continue
            tile = PatchTile(m, n, k, p, q, warps, stages)
            filled = m if problem.op == "wgrad" else n
            if filled < 2 * max(columns, GEMM_MIN) and fits(tile, problem):
                found.append(tile)
    return found


def workspace_bytes(tile: PatchTile, problem: Problem) -> int:
    """Bytes of the spread weight, or of the partials of one split of a weight gradient."""
    g = problem.geometry
    if problem.op == "wgrad":
        return tile.partials * g.weight_numel * max(4, problem.dtype.itemsize)
    one_tap = bool(tile.flags(problem)["one_tap"])
    return math.prod(tile.spread_shape(problem.op, g, one_tap)) * problem.dtype.itemsize


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (PatchTile,)


def neighbours(tile: PatchTile, problem: Problem) -> Iterator[PatchTile]:
    """The tiles that a tuner tries: of any size that the columns can fill half of."""
    sizes = itertools.product((64, 128, 256), (16, 32, 64, 128), (16, 32, 64), (4, 8), (2, 3, 4))
    for p, q in itertools.product(PATCH_ROWS, PATCH_COLUMNS):
        for m, n, k, warps, stages in sizes:
            found = PatchTile(m, n, k, p, q, warps, stages)
            columns = found.columns(problem.op, problem.geometry)
            filled = m if problem.op == "wgrad" else n
            if filled < 2 * max(columns, GEMM_MIN) and fits(found, problem):
                yield found


def fits(tile: PatchTile, problem: Problem) -> bool:
    """Whether a tile neither spills nor overflows, by count."""
    if not is_legal(problem) or workspace_bytes(tile, problem) > MAX_WORKSPACE:
        return False
    return fits_matrix_unit(tile, problem)
