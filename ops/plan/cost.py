"""The work of a launch: bytes, products and instructions. times.py turns them into seconds.

Also numbers of parts of a reduction to compare, and which tiles a device and a compiler take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..geometry import Geometry
from .device import GEMM_MIN, MAX_WORKSPACE
from .integers import cdiv
from .problem import Plan, Problem, Tile

#: Bytes of a line of L1, which takes one in a clock.
LINE = 128
#: 32-bit registers of a multiprocessor, and threads that it holds.
REGISTERS, THREADS = 2**16, 2048
#: Bytes that multiprocessors receive for one that L2 reads, where programs side by side read the
#: same rows of a matrix: a layer's tiles get up to twice the rate that a probe measures. Fitted to
#: calls on an H100, as the next two (python -m tricorr.perf fit).
L2_READERS = 1.5
#: Families whose threads hold neighbouring channels of a weight gradient.
BY_CHANNELS = ("flat", "gemm", "patch", "planes", "reuse", "shifted", "spread", "tma")
#: Elements from which on a contiguous weight gradient of such a family is stored in two steps, see
#: is_reordered. Assumed: fewer take as long as the second launch.
REORDERED_ELEMENTS = 100_000
#: Issue slots of a warp for one result of each of its threads, counted in fprop_gemm and
#: fprop_reuse (sm_90, Triton 3.6 and 3.7): 4 to 7 instructions of a residual, 10 of gelu in 16 bits
#: and 13 in 32, 13 of silu, two of them ex2 and a reciprocal, whose unit takes 8 clocks for each.
EPILOGUE_SLOTS = {"residual": 5, "gelu of 16 bits": 10, "gelu": 13, "silu": 16}


class Code(NamedTuple):
    """Instructions and registers of a thread of a program.

    Attributes:
        loop: instructions of one pass of the loop that does the arithmetic.
        outside: instructions of everything else.
        registers: of a thread.
    """

    loop: float
    outside: float
    registers: float


class Work(NamedTuple):
    """The work of a launch: bytes, products, instructions, and how they are dealt out.

    Attributes:
        programs: of the launch; one for each box of a kernel whose programs have several.
        threads: of a program.
        dram_bytes: through device memory, of the whole launch.
        l2_bytes: of one program, read from L2.
        shared_bytes: of one program, through L1 and shared memory.
        macs: multiply-adds of one program, padding of its tile included.
        unit: that does them, see Rates.macs.
        instructions: of one warp.
        resident: programs that a multiprocessor has room for.
        launches: kernels, those that only prepare included.
        between_bytes: that one kernel leaves to the next, which starts when it is done.
        products: products of the unit for each multiply-add.
        outputs: results of one program.
        steps: passes of its loop.
        loaded_bytes: bytes that one program loads, masked lanes included, from whatever cache.
        copy_bytes: of copies of operands, which a launch before it makes, see times.TRANSPOSED.
        copied_bytes: that the copies are made from: several may be made of one image.
        exchanges: whether copies exchange channels and pixels.
        waits: in a pass of its loop, instructions and products come after each other.
        stalls: passes of one program that wait for their loads, beside the first.
        operands: how they travel, see times.EXPOSED.
        outside: of `instructions`, those before and after the loop: no other unit works meanwhile
            but for programs side by side.
        readers: multiprocessors that receive a byte that L2 reads, see L2_READERS.
        scattered_bytes: of the lines that stores of one program touch, if each is of few elements.
        partial_bytes: of partial sums, which a kernel of its own adds up, see times.PARTIAL_RATE.
        exchanged_bytes: read and written by the copies of an Exchange.
        exchange_launches: that make them.
        parts: of the images that are copied and multiplied one after the other: one part of the
            copies is in memory at a time.
    """

    programs: int
    threads: int
    dram_bytes: float
    l2_bytes: float
    shared_bytes: float
    macs: float
    unit: str
    instructions: float
    resident: int = 1
    launches: int = 1
    between_bytes: float = 0
    products: int = 1
    outputs: int = 0
    steps: float = 1
    loaded_bytes: float = 0
    copy_bytes: float = 0
    copied_bytes: float = 0
    exchanges: bool = True
    waits: bool = False
    stalls: float = 0
    operands: str = "registers"
    outside: float = 0
    readers: float = 1
    scattered_bytes: float = 0
    partial_bytes: float = 0
    exchanged_bytes: float = 0
    exchange_launches: int = 0
    parts: int = 1

    def after_copies(self, copies: Sequence[float], copied: float | None = None) -> Work:
        """The work with a launch before it that makes copies of these sizes in bytes, if any.

        It reads as many bytes as it writes, or `copied`.
        """
        if not copies and not copied:
            return self
        return self._replace(
            launches=self.launches + bool(copies),
            copy_bytes=self.copy_bytes + sum(copies),
            copied_bytes=self.copied_bytes + (sum(copies) if copied is None else copied),
        )

    def with_partials(self, partial_bytes: int) -> Work:
        """The work with a kernel after it that adds up partial sums, if there are any."""
        return self._replace(partial_bytes=partial_bytes) if partial_bytes else self


def matrix_work(
    plan: Plan,
    problem: Problem,
    code: Code,
    steps: float,
    outputs: int,
    programs: int,
    *,
    image_first: bool,
    descriptors: bool = False,
    lone: int = 0,
    between_bytes: int = 0,
    filled: tuple[float, float, float] = (1, 1, 1),
    slices: tuple[int, int] = (1, 1),
    operands: str | None = None,
) -> Work:
    """The work of a kernel that multiplies [M, K] by [K, N] in every pass of its loop.

    Args:
        plan: of the launch.
        problem: that it is for.
        code: of a program.
        steps: passes of a program.
        outputs: results of a program.
        programs: as in Work.
        image_first: the operand of M rows is the image, not the weight or dy.
        descriptors: loads need no lane of the program.
        lone: elements of a pass that a lane loads one by one and stores to shared memory itself: L1
            takes as long for 4 bytes each.
        operands: as in Work; None for those ahead, unless some are lone or are of a weight gradient
            through pointers.
        between_bytes: as in Work.
        filled: shares of M, N and K that are elements: what lies beyond is not read from L2.
        slices: of dy and of x, see device_bytes.
    """
    tile, device, itemsize = plan.tile, problem.device, problem.dtype.itemsize
    m, n, k = tile.step(plan.op)
    first, second = problem.image_bytes, itemsize
    first, second = (first, second) if image_first else (second, first)
    loaded = k * (m * first + n * second)
    elements = filled[2] * k * (filled[0] * m * first + filled[1] * n * second)
    lanes, rows = device.limits.lanes, device.rates.rows
    threads = problem.threads(tile)
    products = problem.products
    if rows and problem.unit != "fma" and m >= rows:
        reads_first, reads_second = 1, cdiv(m, rows)
    else:  # warps lie in a grid, and each reads its rows and its columns
        warps = threads // lanes
        reads_first = 2 if warps >= 4 else 1
        reads_second = max(1, warps // reads_first)
        # Too few rows for a warpgroup: a warp's own instruction has half the rate (assumed).
        products *= 2 if rows and problem.unit != "fma" else 1
    read = k * (m * first * reads_first + n * second * reads_second)
    moved = loaded + read * problem.products + lone * max(4, first)
    shared = (m + n) * k * itemsize * tile.num_stages
    resident = resident_programs(plan, problem, shared, code.registers)
    epilogue = problem.layout.epilogue * outputs / threads
    if operands is None:
        through = problem.op == "wgrad" or lone > 0
        operands = "registers" if through and not descriptors else "ahead"
    # Programs that share the pixels of a weight gradient.
    sharers = programs // max(1, plan.splits * problem.geometry.groups * problem.banks)
    return Work(
        programs,
        threads,
        # Results for the next kernel, between_bytes, are written.
        device_bytes(problem, programs, sharers, slices) + between_bytes,
        steps * elements,
        steps * moved,
        steps * m * n * k,
        problem.unit,
        steps * code.loop + code.outside + epilogue,
        resident,
        2 if between_bytes else 1,
        between_bytes,
        products,
        outputs,
        steps,
        steps * loaded,
        waits=lone > 0,
        operands=operands,
        outside=code.outside + epilogue,
        readers=L2_READERS,
    )


def resident_programs(plan: Plan, problem: Problem, shared: int, registers: float) -> int:
    """Programs that a multiprocessor has room for.

    Args:
        plan: of the launch.
        problem: that it is for.
        shared: bytes of shared memory of a program.
        registers: of a thread.
    """
    limits, threads = problem.device.limits, problem.threads(plan.tile)
    held = int(REGISTERS * (limits.lanes // 32) // (threads * registers))
    return max(1, min(limits.shared // max(1, shared), held, THREADS // threads))


def epilogue_slots(residual: bool, activation: str, dtype: torch.dtype) -> int:
    """Issue slots for one result of `dtype`, see EPILOGUE_SLOTS; 0 for relu, which takes few."""
    kind = "gelu of 16 bits" if activation == "gelu" and dtype.itemsize == 2 else activation
    return EPILOGUE_SLOTS.get(kind, 0) + residual * EPILOGUE_SLOTS["residual"]


def line_bytes(lanes: int, step: float) -> float:
    """Bytes that L1 reads for each lane of a load, in whole lines.

    Args:
        lanes: of a warp that lie one after the other; the next ones are in other lines.
        step: bytes from one of them to the next.
    """
    lanes = max(1, min(32, lanes))
    return max(LINE / lanes, min(LINE, step))


def device_bytes(
    problem: Problem, programs: int, sharers: int, slices: tuple[int, int] = (1, 1)
) -> int:
    """Bytes through device memory: each tensor once, and what L2 did not keep between waves.

    Data of one wave is still in L2 for the next if both fit into half of it.

    Args:
        problem: whose tensors are read.
        programs: of the launch.
        sharers: programs of a weight gradient that read the same pixels.
        slices: that sharers cut the channels of dy and of x into, all taps of a slice of x next to
            each other, and all slices of x before the next of dy.
    """
    device, (first, second) = problem.device, problem.read_bytes
    sms, room = device.multiprocessors, device.rates.l2_bytes / 2
    waves = cdiv(programs, sms)
    again = 0.0
    if problem.op == "wgrad":
        # The ids of sharers are neighbours. If they are more than a wave and their pixels do not
        # stay in L2, every wave of them reads its slices again.
        if waves > 1 and sharers > sms and (first + second) * sharers / programs > room:
            of_dy, of_x = slices
            waves = cdiv(sharers, sms)
            again = (min(waves, of_dy + (waves - 1) / of_x) - 1) * first
            again += (min(waves, 1 + (waves - 1) / of_dy) - 1) * second
    elif waves > 1 and second + first / waves > room:
        # Neighbouring programs share pixels, so those are read once; every wave wants all of the
        # weight.
        again = (waves - 1) * second
    return round(problem.compulsory_bytes + again)


def is_reordered(plan: Plan, geometry: Geometry, taps_innermost: bool) -> bool:
    """Whether a weight gradient of one part is stored with its channels innermost at first.

    sum_partials then exchanges the axes: lanes with neighbouring channels would store elements
    that a window keeps apart, one to a sector.
    """
    large = geometry.weight_numel >= REORDERED_ELEMENTS
    return plan.partials == 1 and plan.family in BY_CHANNELS and taps_innermost and large


def partial_bytes(plan: Plan, problem: Problem) -> int:
    """Bytes of partial sums, or of a gradient in another order, which sum_partials reads."""
    if plan.op == "wgrad" and is_reordered(plan, problem.geometry, problem.layout.repacks):
        return problem.result_numel * problem.dtype.itemsize
    if plan.partials == 1 or (plan.op != "wgrad" and plan.splits == 1):
        return 0
    return plan.partials * problem.result_numel * max(4, problem.dtype.itemsize)


def repacked_bytes(problem: Problem) -> list[int]:
    """Bytes of the copy of the weight that a GEMM through pointers reads, of none where it is [].

    A weight gradient reads no weight.
    """
    if problem.op == "wgrad" or not problem.layout.repacks:
        return []
    return [problem.geometry.weight_numel * problem.dtype.itemsize]


def pipeline_bytes(tile: Tile, problem: Problem) -> int:
    """Approximate shared memory of a program: the operands of every pipeline stage."""
    m, n, k = tile.step(problem.op)
    # Triton's pipeline keeps one stage of AMD's in registers.
    stages = max(1, tile.num_stages - problem.device.arch.startswith("gfx"))
    return (m + n) * k * problem.dtype.itemsize * stages


def splits_that_fill(tile: Tile, problem: Problem, most: int, side_by_side: int = 4) -> int:
    """The number of parts of a weight gradient that fill the device and are worth it.

    Args:
        tile: of the launch.
        problem: that it is for.
        most: parts that are worth a reduction of their own.
        side_by_side: programs that one multiprocessor runs.
    """
    partial = problem.geometry.weight_numel * (8 if problem.dtype == torch.float64 else 4)
    return min(
        cdiv(side_by_side * problem.device.multiprocessors, max(1, tile.programs(problem))),
        most,
        MAX_WORKSPACE // max(1, partial * tile.partials),
    )


#: Waves of programs that parts of a reduction are to fill.
SPLIT_WAVES = (1, 2, 3)
#: Steps that a part of an image's reduction sums at least.
MIN_SPLIT_STEPS = 2


def image_splits(tile: Tile, problem: Problem) -> list[int]:
    """Numbers of parts of an image's reduction to compare: one, and those that fill whole waves."""
    device, programs = problem.device, max(1, tile.programs(problem))
    most = min(
        tile.strips(problem) // MIN_SPLIT_STEPS,
        MAX_WORKSPACE // max(1, problem.result_numel * max(4, problem.dtype.itemsize)),
    )
    filling = (min(most, waves * device.multiprocessors // programs) for waves in SPLIT_WAVES)
    return sorted({1, *(parts for parts in filling if parts > 1)})


def gradient_splits(tile: Tile, problem: Problem) -> list[int]:
    """Numbers of parts of a weight gradient's reduction to compare.

    One, those that fill whole waves, and the most, which `tile.splits` says.
    """
    most, programs = tile.splits(problem), max(1, tile.programs(problem))
    filling = (waves * problem.device.multiprocessors // programs for waves in SPLIT_WAVES)
    return sorted({1, most, *(parts for parts in filling if 1 < parts < most)})


#: Fields of tiles that need not be powers of two.
_ANY_NUMBER = (
    "TAPS_R",
    "TAPS_S",
    "num_stages",
    "BLOCK_P",
    "BLOCK_K",
    "BLOCK_R",
    "STEP_P",
    "BLOCK_S",
    "persistent",
    "copied",
    "in_place",
    "shifts",
    "unfolded",
)


def is_launchable(tile: Tile, problem: Problem) -> bool:
    """Whether the compiler takes the tile's extents, and the device its number of threads."""
    powers = [n for name, n in vars(tile).items() if name not in _ANY_NUMBER]
    if any(n < 1 or n & (n - 1) for n in powers):
        return False
    return tile.num_stages >= 1 and problem.threads(tile) <= 1024


def fits_matrix_unit(tile: Tile, problem: Problem) -> bool:
    """Whether a matrix tile neither spills nor exceeds shared memory, by count.

    A necessary condition that a search uses to skip hopeless tiles; only the compiler knows more.
    """
    if not is_launchable(tile, problem):
        return False
    m, n, k = tile.step(problem.op)
    if min(m, n, k) < GEMM_MIN:
        return False
    # Sums, and the addresses and values of the operands on their way to shared memory; tf32x3 has
    # both of its halves in registers. A weight gradient decodes pixels for both operands.
    threads, limits = problem.threads(tile), problem.device.limits
    sums = m * n / threads * problem.words
    operands = (m + n) * k / threads
    operands *= problem.dtype.itemsize / 4 * (2 if problem.precision == "tf32x3" else 1) + (
        problem.op == "wgrad"
    )
    return (
        sums >= 1
        and sums + operands <= limits.registers
        and tile.shared_bytes(problem) <= limits.shared
    )
