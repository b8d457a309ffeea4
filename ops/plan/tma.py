"""Matrix products whose operands come through tensor descriptors: many channels, sm_90 and sm_100.

The hardware fetches a whole box of what a descriptor describes into shared memory, and fills with
zeros what lies outside. `is_legal` says what it can do that for; gemm.py has the rest. Tiles are
those that build without spills for sm_90 and sm_100; on sm_90 they ran on an H100.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..geometry import Geometry, Pair
from .boxes import MAX_OVERHANG, Boxed, box_of, covered, covers_planes, pixel_planes, summed_box
from .cost import LINE, Code, Work, is_launchable, matrix_work, partial_bytes, splits_that_fill
from .device import ALL_REGISTERS, MAX_REGISTERS
from .integers import cdiv, filled, power_of_two
from .problem import Plan, Problem
from .tma_copies import (
    copied_problem,
    image_copies,
    may_copy,
    multiplies_crosswise,
    reads_crosswise,
    weight_copies,
)

#: Device.arch of the devices that these kernels are built and planned for.
ARCHITECTURES = ("90", "100")
#: Descriptors of x that a kernel takes, one for each phase that has taps.
MAX_PHASES = 4
#: Coordinates of a descriptor have 32 bits: each stays well below, sums of them too.
MAX_COORDINATE = 2**29
#: Bytes of reduced channels that one step loads for a pixel: the widest row that is swizzled.
ROW_BYTES = 128
#: Registers of a thread with which 512 threads fill a multiprocessor.
SIDE_BY_SIDE_REGISTERS = 128
#: Most stages of boxes of half as many pixels; assumed.
MAX_STAGES = 6
#: Strips that a split of a weight gradient sums at least, to make its last reduction worth it.
MIN_SPLIT_STRIPS = 4


@dataclass(frozen=True)
class TmaTile(Boxed):
    """A box of pixels of one program, its channels, and the launch options.

    Attributes:
        BLOCK_I: images of the box.
        BLOCK_P: rows of the box.
        BLOCK_Q: columns of the box.
        BLOCK_N: channels of the result; of x, in a weight gradient.
        BLOCK_K: reduced channels of one step; filters, of a weight gradient, which sums the pixels
            of a box instead.
        BLOCK_S: taps of a weight gradient that share what is loaded of dy.
        persistent: programs that deal out all boxes among them, each its boxes in one loop; 0 for a
            program for each box.
        copied: images that are not in the format of boxes that suits the kernel best are copied to
            it first, see `copied_problem`.
        num_warps, num_stages: of the launch.
    """

    BLOCK_I: int
    BLOCK_P: int
    BLOCK_Q: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    BLOCK_S: int = 1
    persistent: int = 0
    copied: bool = False

    family: ClassVar[str] = "tma"
    partials: ClassVar[int] = 1

    @property
    def is_run(self) -> bool:
        """Whether the pixels of the box are neighbours along one axis.

        Both operands of a weight gradient are then multiplied from shared memory (sm_90). Of other
        boxes, the left one goes through registers: Triton keeps only matrices in place.
        """
        return self.pixels == max(self.box)

    def programs(self, problem: Problem) -> int:
        """Programs that cover all results, before the reduction is split."""
        boxes = self.boxes(problem)
        return min(boxes, self.persistent) if self.persistent else boxes

    def boxes(self, problem: Problem) -> int:
        """Programs if each had one box."""
        g = problem.boxed
        if problem.op == "wgrad":
            blocks = cdiv(g.group_K, self.BLOCK_K) * cdiv(g.group_C, self.BLOCK_N)
            return g.groups * g.R * cdiv(g.S, self.BLOCK_S) * blocks
        boxes = covered(pixel_planes(problem), self.box) // self.pixels
        if problem.op == "dgrad":  # each phase has boxes of its own
            boxes *= math.prod(g.phases)
        return boxes * g.groups * cdiv(problem.group_channels, self.BLOCK_N)

    def strips(self, problem: Problem) -> int:
        """Boxes of pixels of dy that a weight gradient sums; steps of any other's shortest loop.

        One where a program goes on from box to box: then there are enough of those.
        """
        g = problem.boxed
        if problem.op == "wgrad":
            return covered((g.N, g.P, g.Q), self.box) // self.pixels
        if self.persistent:
            return 1
        return math.prod(problem.fewest_taps) * cdiv(problem.reduced, self.BLOCK_K)

    def step(self, op: str) -> tuple[int, int, int]:
        """(M, N, K) of one step: channels are the rows."""
        if op == "wgrad":
            return self.BLOCK_K, self.BLOCK_N * self.BLOCK_S, self.pixels
        return self.BLOCK_N, self.pixels, self.BLOCK_K

    def splits(self, problem: Problem) -> int:
        """Parts that a weight gradient's boxes are best dealt out to.

        One or two programs fill the shared memory of a multiprocessor. See cost.gradient_splits.
        """
        if problem.op != "wgrad":  # see cost.image_splits
            return 1
        most = cdiv(self.strips(problem), MIN_SPLIT_STRIPS)
        return splits_that_fill(self, problem, most, side_by_side=2)

    def shared_bytes(self, problem: Problem) -> int:
        """Bytes of shared memory of a program, about: the operands of every pipeline stage."""
        m, n, k = self.step(problem.op)
        return (m + n) * k * problem.dtype.itemsize * self.num_stages

    def max_registers(self, problem: Problem) -> int | None:
        """Registers of a thread that the compiler is limited to, see device.py."""
        if problem.precision != "ieee":  # float32 would spill with a limit, and 8 bytes without
            return ALL_REGISTERS if self.copied and problem.device.arch == "100" else None
        # So would 128 x 256 sums stored to planes, of a weight gradient, or on sm_100, and 64 x 128
        # with what is added to them (sm_90).
        m, n, _ = self.step(problem.op)
        few = m * n <= 64 * problem.threads(self) and self.BLOCK_S == 1
        if problem.op == "wgrad" and problem.device.arch == "90" and few:
            return SIDE_BY_SIDE_REGISTERS  # no spills (Triton 3.6, 3.7)
        large = m * n >= 128 * problem.threads(self)
        large &= problem.op == "wgrad" or problem.device.arch == "100"
        return ALL_REGISTERS if self.copied or large else MAX_REGISTERS

    def suits(self, problem: Problem) -> bool:
        """Whether a tile that was tuned for a problem near this one can serve it.

        The key of a tuned tile has neither the alignment nor the divisors of a plane.
        """
        return is_legal(problem, self)

    def flags(self, problem: Problem) -> Mapping[str, Any]:
        """Fields of a Plan that this family decides."""
        return {"precision": problem.precision, "as_rows": problem.layout.as_rows}

    def work(self, plan: Plan, problem: Problem) -> Work:
        """The work of a launch."""
        g, wgrad = problem.geometry, plan.op == "wgrad"
        if wgrad:
            programs, steps = plan.grid, float(plan.split_strips)
        else:
            programs = self.boxes(problem) * plan.splits
            phases = math.prod(g.phases) if plan.op == "dgrad" else 1  # the mean over them
            steps = g.R * g.S / phases * cdiv(problem.reduced, self.BLOCK_K) / plan.splits
        m, n, _ = self.step(plan.op)
        work = matrix_work(
            plan,
            problem,
            self.code(problem),
            steps,
            m * n,
            programs,
            image_first=False,
            descriptors=True,
            filled=self._filled(problem),
            slices=(cdiv(g.group_K, self.BLOCK_K), cdiv(g.group_C, self.BLOCK_N)),
        ).with_partials(partial_bytes(plan, problem))
        if self.copied and plan.op == "dgrad" and g.stride[1] > 1:
            # Lanes store single columns to planes: neighbours of a phase are apart.
            work = work._replace(scattered_bytes=LINE * m * n)
        return after_copies(work, problem, self.BLOCK_K, self.copied)

    def _filled(self, problem: Problem) -> tuple[float, float, float]:
        """Shares of (M, N, K) of a step inside of the tensors; the hardware reads no others."""
        planes, g = pixel_planes(problem), problem.geometry
        pixels = math.prod(planes) / max(1, covered(planes, self.box))
        if problem.op == "wgrad":
            return filled(g.group_K, self.BLOCK_K), filled(g.group_C, self.BLOCK_N), pixels
        channels = filled(problem.group_channels, self.BLOCK_N)
        return channels, pixels, filled(problem.reduced, self.BLOCK_K)

    def seen(self, problem: Problem) -> Problem:
        """The problem as the kernel meets it, which may be that of copies."""
        return copied_problem(problem) if self.copied else problem

    def code(self, problem: Problem) -> Code:
        """The code of a program, fitted to perf/results/codegen.json for sm_90; a test checks it.

        A pass takes as many instructions whatever its size.
        """
        m, n, _ = self.step(problem.op)
        sums = m * n / problem.threads(self)
        if problem.op == "wgrad":
            return Code(110 + 53 * self.BLOCK_S, 600 + 7 * sums, sums + 60)
        return Code(100, 450 + 3 * sums, sums + 28)


#: (channels of the result, pixels, num_warps, num_stages), largest first: those read each input the
#: fewest times.
TMA_SHAPES = (
    (128, 256, 8, 3),
    (128, 128, 8, 4),
    (64, 256, 8, 4),
    (64, 128, 4, 4),
    (64, 64, 4, 4),
)
#: (channels, filters, num_warps, num_stages) of a weight gradient, by the taps of a row that share
#: dy. Three taps side by side read (3 * 64 + 128) rows for what 128 x 128 reads (128 + 128) of
#: twice: 0.6 of the bytes.
TMA_GRADIENT_SHAPES: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    3: (
        (64, 128, 8, 4),
        (64, 64, 4, 4),
    ),
    2: (
        (64, 128, 8, 4),
        (64, 64, 4, 4),
    ),
    1: (
        (256, 128, 8, 3),
        (128, 128, 8, 3),
        (128, 64, 4, 4),
        (64, 128, 4, 4),
        (64, 64, 4, 4),
    ),
}


def is_legal(problem: Problem, tile: TmaTile | None = None) -> bool:
    """Whether a kernel of this family can compute this: with `tile`, or without a copied image.

    What each takes is described in kernels/.
    """
    if problem.op != "dgrad":
        phases, g = phases_with_taps(problem.boxed), problem.boxed
        if len(phases) > MAX_PHASES or any(a >= g.H or b >= g.W for a, b in phases):
            return False
    return has_boxes(problem, tile)


def has_boxes(problem: Problem, tile: TmaTile | None = None) -> bool:
    """is_legal but for the phases of x: each has a descriptor of its own."""
    if tile is not None and tile.copied:
        if not may_copy(problem) or (tile.persistent and not _exchanges_in_the_loop(tile, problem)):
            return False
        return is_legal(copied_problem(problem), replace(tile, copied=False))
    op, g, dtype, boxes = problem.op, problem.boxed, problem.dtype, problem.layout.boxes(problem.op)
    if op == "dgrad_frame" or problem.device.arch not in ARCHITECTURES or not boxes:
        return False
    planes, wgrad = boxes == "NCHW", op == "wgrad"
    # The hardware faults on boxes that do not start at a multiple of 16 bytes of a row.
    if planes and (g.S > 1 or g.padding[1][0]):
        return False
    pieces = [channels * dtype.itemsize % 16 for channels in (g.group_C, g.group_K)]
    if wgrad and not planes and g.groups > 1 and any(pieces):
        return False
    # Rows of planes are pixels of one channel: only a weight gradient sums those.
    if planes != wgrad and not multiplies_crosswise(dtype):
        return False
    if planes and op != "dgrad" and g.stride[1] > 1:
        return False  # a descriptor's innermost step is one element
    if planes and wgrad and g.Q < g.W:
        return False  # columns that are cut off may not be finite, and would be multiplied
    if g.per_sample or g.padding_mode != "zeros":
        return False
    if problem.product not in ("half", "tf32"):
        return False
    if not channel_block(problem):
        return False
    if tile is not None and not _takes(tile, problem):
        return False
    return has_coordinates(problem)


def has_coordinates(problem: Problem) -> bool:
    """Whether the coordinates of all boxes, and of what is beside an image, are small enough."""
    g = problem.boxed
    stride, dilation = g.stride, g.dilation
    reach = (
        extent + max(map(abs, pad)) + dil * window + step
        for extent, pad, dil, window, step in zip(
            (g.H, g.W), g.padding, dilation, (g.R, g.S), stride, strict=True
        )
    )
    # A copy of the weight may have up to ROW_BYTES more for each tap.
    columns = max(g.weight_numel // g.K, g.weight_numel // g.C) + g.R * g.S * ROW_BYTES
    return max(*reach, g.N, g.C, columns) <= MAX_COORDINATE


def _takes(tile: TmaTile, problem: Problem) -> bool:
    """Whether a tile is one that the kernels of a legal problem can have."""
    g, wgrad = problem.boxed, problem.op == "wgrad"
    planes = problem.layout.boxes(problem.op) == "NCHW"
    if planes and (tile.BLOCK_I > 1 or tile.BLOCK_P > 1):
        return False
    if wgrad and not (planes or covers_planes(g, tile.box, (1, tile.BLOCK_S))):
        return False
    if tile.persistent and not takes_boxes_in_turn(problem):
        return False
    if tile.BLOCK_S > (g.S if wgrad and g.stride[1] == 1 else 1):
        return False
    if wgrad:
        return True
    whole = g.groups == 1 or problem.reduced % tile.BLOCK_K == 0
    return whole and tile.BLOCK_K * problem.dtype.itemsize <= ROW_BYTES


def takes_boxes_in_turn(problem: Problem) -> bool:
    """Whether all boxes have one loop of as many steps: a program goes on from one to the next."""
    if problem.op == "fprop":
        return len(phases_with_taps(problem.boxed)) == 1
    return problem.op == "dgrad" and math.prod(problem.geometry.phases) == 1


def channel_block(problem: Problem) -> int:
    """Reduced channels of one step, or pixels of a weight gradient's; 0 where none is right.

    A step may overhang the channels where both operands are zero there. Behind the channels of a
    pixel they are, but for another group's. Behind those of the weight's tap are the next tap's, so
    its copy has zeros there, see `tap_columns`. A weight gradient sums pixels: any number will do.
    """
    g, dtype = problem.geometry, problem.dtype
    most = ROW_BYTES // dtype.itemsize
    if problem.op == "wgrad":
        return 0 if min(g.group_C, g.group_K) < 16 else most
    if problem.reduced < 16:
        return 0
    if g.groups == 1 and g.R * g.S == 1:
        return min(most, power_of_two(problem.reduced))
    blocks = [b for b in (most, most // 2, most // 4) if b >= 16]
    if g.groups > 1:
        return next((b for b in blocks if problem.reduced % b == 0), 0)

    def cost(block: int) -> tuple[int, bool]:
        """(about the time of a tap's steps, the shortest of which are no cheaper; copies)."""
        overhangs = problem.reduced % block > 0
        return cdiv(problem.reduced, block) * max(block, most // 2), overhangs

    return min(blocks, key=cost)


def after_copies(work: Work, problem: Problem, block: int, copied: bool) -> Work:
    """The work of a kernel with the launch before it that makes its copies, if there are any.

    That is of the weight, for steps of `block` channels, and of images if they are `copied`.
    """
    images, weight = image_copies(problem) if copied else [], weight_copies(problem, block)
    turned = problem.op == "dgrad" and not reads_crosswise(problem.precision)
    of_weight = bool(weight) and (problem.layout.repacks or turned)
    work = work.after_copies([*images, *weight])
    return work._replace(exchanges=not problem.layout.channels_last or of_weight)


@functools.lru_cache(maxsize=4096)
def phases_with_taps(geometry: Geometry) -> tuple[Pair, ...]:
    """The phases (h % stride, w % stride) of the input that any tap reads."""
    stride, dilation = geometry.stride, geometry.dilation
    rows, columns = (
        sorted({(tap * dil - pad[0]) % step for tap in range(min(window, step))})
        for window, step, dil, pad in zip(
            (geometry.R, geometry.S), stride, dilation, geometry.padding, strict=True
        )
    )
    return tuple(itertools.product(rows, columns))


def tiles(problem: Problem) -> list[TmaTile]:
    """The tiles that the planner may take: none of few channels, or if boxes mostly overhang."""
    if problem.has_few_channels:
        return []
    found = _fitting_tiles(problem)
    if may_copy(problem):
        for tile in _fitting_tiles(copied_problem(problem)):
            if problem.op == "dgrad" and _is_largest(tile) and _is_ragged(problem):
                continue  # spills up to 648 bytes (sm_90, Triton 3.6)
            alone = tile if _exchanges_in_the_loop(tile, problem) else replace(tile, persistent=0)
            found.append(replace(alone, copied=True))
    return found


def _is_largest(tile: TmaTile) -> bool:
    return (tile.BLOCK_N, tile.pixels) == TMA_SHAPES[0][:2]


def _is_ragged(problem: Problem) -> bool:
    """Whether channels of the result do not come in pieces of 16 bytes."""
    return problem.channels * problem.dtype.itemsize % 16 != 0


def _exchanges_in_the_loop(tile: TmaTile, problem: Problem) -> bool:
    """Whether results have room in shared memory beside the boxes that are loaded meanwhile.

    They pass it on their way to planes: of 128 x 256 in TF32 there is no room (sm_90).
    """
    results = tile.BLOCK_N * tile.pixels * problem.dtype.itemsize
    return tile.shared_bytes(problem) + results <= problem.device.limits.shared


def _fitting_tiles(problem: Problem) -> list[TmaTile]:
    """The tiles of boxes of the problem's format."""
    if not is_legal(problem):
        return []
    g, planes, wgrad = problem.geometry, pixel_planes(problem), problem.op == "wgrad"
    # With wgrad, BLOCK_N are channels of x and BLOCK_K filters.
    results, filters = (g.group_C, g.group_K) if wgrad else (problem.group_channels, 0)
    found = []
    for tile in shaped_tiles(problem):
        if (
            tile.BLOCK_N <= max(64, power_of_two(results))
            and (not wgrad or tile.BLOCK_K <= max(64, power_of_two(filters)))
            and tile.pixels >= 16
            and covered(planes, tile.box) * (1 - MAX_OVERHANG) <= math.prod(planes)
        ):
            found.append(dealt_out(tile, problem))
    return found


def dealt_out(tile: TmaTile, problem: Problem) -> TmaTile:
    """The tile with as many programs as run at once, where there are more boxes than that.

    Not with a heavy epilogue or 64-bit offsets: in one loop with the next sums those spill up to
    112 bytes (sm_90).
    """
    if problem.layout.heavy_epilogue or problem.layout.int64:
        return tile
    if not takes_boxes_in_turn(problem):
        return tile
    # Shared memory decides how many run side by side on a multiprocessor.
    device = problem.device
    side_by_side = max(1, device.limits.shared // tile.shared_bytes(problem))
    at_once = device.multiprocessors * side_by_side
    return replace(tile, persistent=at_once) if tile.boxes(problem) > at_once else tile


def shaped_tiles(problem: Problem) -> Iterator[TmaTile]:
    """The tiles of TMA_SHAPES or TMA_GRADIENT_SHAPES, each with the best box."""
    if problem.op != "wgrad":
        # 128 x 256 would spill before a heavy epilogue.
        for shape in TMA_SHAPES[1:] if problem.layout.heavy_epilogue else TMA_SHAPES:
            yield shaped_tile(problem, shape)
        return
    g = problem.boxed
    for taps, shapes in TMA_GRADIENT_SHAPES.items():
        if taps <= most_taps(g):
            yield from (shaped_tile(problem, shape, taps) for shape in shapes)


def shaped_tile(problem: Problem, shape: tuple[int, int, int, int], taps: int = 1) -> TmaTile:
    """The tile of one of the shapes, with the best box; `taps` of a weight gradient share dy."""
    block_n, size, warps, stages = shape
    planes, block_k = pixel_planes(problem), channel_block(problem)
    in_planes = problem.layout.boxes(problem.op) == "NCHW"
    if problem.op == "wgrad":
        box = summed_box(problem, block_k, taps)
        if 2 * math.prod(box) <= block_k:  # as many bytes under way
            stages = min(2 * stages, MAX_STAGES)
        return TmaTile(*box, block_n, size, warps, stages, taps)
    box = (1, 1, size) if in_planes else box_of(planes, size)
    return TmaTile(*box, block_n, block_k, warps, stages)


def most_taps(geometry: Geometry) -> int:
    """Taps of a row that can share dy: neighbours of strided columns read other phases of x."""
    return 1 if geometry.stride[1] > 1 else geometry.S


#: The types of this family's tiles.
KINDS: tuple[type[Any], ...] = (TmaTile,)


def neighbours(tile: TmaTile, problem: Problem) -> Iterator[TmaTile]:
    """The tiles that a tuner tries: other boxes and blocks of channels that divide the tile's."""
    planes = pixel_planes(problem)
    in_planes = tile.seen(problem).layout.boxes(problem.op) == "NCHW"
    for pixels, n, k, warps, stages in itertools.product(
        (32, 64, 128, 256), (32, 64, 128, 256), (16, 32, 64, 128), (4, 8), (2, 3, 4)
    ):
        found = []
        if problem.op == "wgrad":
            most, seen = most_taps(problem.boxed), tile.seen(problem)
            found = [
                TmaTile(*summed_box(seen, pixels, taps), n, k, warps, stages, taps)
                for taps in TMA_GRADIENT_SHAPES
                if taps <= most
            ]
        elif tile.BLOCK_K % k == 0:
            box = (1, 1, pixels) if in_planes else box_of(planes, pixels)
            numbers = {0, tile.persistent}
            found = [TmaTile(*box, n, k, warps, stages, persistent=number) for number in numbers]
        found = [replace(other, copied=tile.copied) for other in found]
        yield from (other for other in found if fits(other, problem))


def fits(tile: TmaTile, problem: Problem) -> bool:
    """Whether a program has room, by count: for its sums, and for the boxes of every stage."""
    if not is_launchable(tile, problem):
        return False
    m, n, _ = tile.step(problem.op)
    sums, limits = m * n / (32 * tile.num_warps), problem.device.limits
    return 1 <= sums <= limits.registers // 2 and tile.shared_bytes(problem) <= limits.shared
