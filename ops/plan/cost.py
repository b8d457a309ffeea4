"""What a launch costs by arithmetic: the time of every unit that it keeps busy, before any run.

    seconds = launches * LAUNCH_SECONDS + time to read partial sums again
              + max(device memory, L2, shared, arithmetic, issue, latency)

The units are assumed to overlap perfectly, so the slowest decides. With n the programs of the
busiest multiprocessor, ceil(programs / multiprocessors), and per program and clock:

    device memory   bytes of the whole launch / rate of the device
    L2              the larger of  all bytes / rate of the device  and  n * bytes / 64
    shared          n * bytes / 128: what is written to shared memory, and what matrix units read
                    of it. They read the second operand once for every 64 rows of the first
    arithmetic      n * multiply-adds / rate of the unit, padding of tiles and channels included
    issue           n * instructions of all warps / 4
    latency         ceil(n / r) * (LATENCY + the slowest unit of one program alone), if r programs
                    fit on a multiprocessor side by side

The ceilings in n and n / r are the waves: a last wave that is not full takes as long as one that
is. Nothing is measured here. Rates are assumed, each from the source that RATES names; what is
compared are plans for one device, whose order depends on the ratios of these rates only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .device import LIMITS, SMALLEST, Device
from .integers import cdiv

#: Clocks from a load's start to its end when it comes from device memory: about 600 to 800 on sm_80
#: and sm_90 by published microbenchmarks; assumed.
LATENCY = 700
#: A kernel's start and end, in which none of its programs run; assumed.
LAUNCH_SECONDS = 2e-6
#: Share of the datasheet's rate of device memory that a copy reaches: 4.3 of 4.8 TB/s, as measured
#: on a H200; assumed for the others.
COPY_SHARE = 0.9
#: Bytes that one multiprocessor takes from L2 in a clock: the width of the port.
L2_PORT = 64
#: 32-bit registers of a multiprocessor, and threads that it holds.
REGISTERS, THREADS = 2**16, 2048


#: Lane instructions of a stencil for one tap of one output, by machine code for sm_90: fprop and
#: dgrad 12 to 15, wgrad 32 to 40 (perf/results/codegen.json).
STENCIL_LANES = {"fprop": 12, "dgrad": 12, "wgrad": 32}


@dataclass(frozen=True)
class Rates:
    """What one multiprocessor gets done in a clock, and how long that is.

    Attributes:
        clock: Hz.
        dram: bytes per second of device memory, for devices whose datasheet is not known.
        l2: bytes per clock that L2 delivers to all multiprocessors together.
        l2_bytes: size of L2.
        shared: bytes through L1 and shared memory.
        issue: warp instructions.
        macs: multiply-adds by unit: "fma", "float64", "tf32", "half".
        rows: of the first operand that read the second from shared memory once: those of one
            instruction of a warpgroup; None where every warp reads its own share.
    """

    clock: float
    dram: float
    l2: float
    l2_bytes: float
    shared: float
    issue: float
    macs: Mapping[str, float]
    rows: int | None


#: By Device.arch; of an architecture that is not here, the planner takes those of "90".
RATES = {
    # NVIDIA's A100 white paper: 1.41 GHz, L2 5120 bytes a clock, 1024 16-bit multiply-adds.
    "80": Rates(
        1.41e9,
        1.8e12,
        5120,
        40e6,
        128,
        4,
        {"fma": 64, "float64": 64, "tf32": 512, "half": 1024},
        None,
    ),
    # 62 TFLOP/s of float32 and 31 TB/s of shared memory, as measured on a H200, are 1.835 GHz; of
    # 2048 16-bit multiply-adds a clock, 790 TFLOP/s leave 1631. L2: 7.0 TB/s, assumed.
    "90": Rates(
        1.835e9,
        4.3e12,
        3815,
        50e6,
        128,
        4,
        {"fma": 128, "float64": 128, "tf32": 815, "half": 1631},
        64,
    ),
    # The datasheet's rates at 1.85 GHz, four fifths of them on matrix units as on a H200; L2 as
    # assumed for that.
    "100": Rates(
        1.85e9,
        7.2e12,
        3815,
        126e6,
        128,
        4,
        {"fma": 146, "float64": 73, "tf32": 1600, "half": 3280},
        128,
    ),
    # AMD's CDNA 3 white paper: 2.1 GHz, 128 bytes a clock from each of 16 channels of L2 on 8 dies;
    # a wave's instruction takes a SIMD four clocks.
    "gfx942": Rates(
        2.1e9,
        4.8e12,
        16384,
        256e6,
        64,
        1,
        {"fma": 128, "float64": 128, "tf32": 410, "half": 820},
        None,
    ),
}


def rates_of(device: Device) -> Rates:
    """The rates that a device is planned by."""
    return RATES.get(device.arch, RATES["90"])


def copy_rate(device: Device) -> float:
    """Bytes per second of device memory, as a copy reaches them."""
    return rates_of(device).dram if device.bandwidth is None else COPY_SHARE * device.bandwidth


def arithmetic_rate(device: Device, unit: str) -> float:
    """Multiply-adds per second of all multiprocessors."""
    rates = rates_of(device)
    return rates.macs[unit] * rates.clock * device.multiprocessors


@dataclass(frozen=True)
class Code:
    """What a thread of a program executes.

    Attributes:
        loop: instructions of one pass of the loop that does the arithmetic.
        outside: of everything else.
        registers: of a thread.
    """

    loop: float
    outside: float
    registers: float


def code_of(
    family: str,
    op: str,
    gemm: tuple[int, int, int],
    threads: int,
    flat: bool,
    precision: str,
    parts: int = 1,
    alone: int = 0,
) -> Code:
    """The code of a GEMM's program, where it was not counted.

    Fitted to perf/results/codegen.json for sm_90, whose entries a test holds these against: a
    pass of a pointer kernel loads every element of its operands that a thread has, in pieces of 16
    bytes, and alone where each has a tap of its own (`flat`); a pass through descriptors takes as
    many instructions whatever its size, and so nearly does one of a banded kernel.

    Args:
        family, op, gemm, threads: as in gemm_work.
        flat: every element of an operand has a tap of its own.
        precision: as in Plan, or "fma".
        parts: as in gemm_work.
        alone: as in gemm_work, of 16 bits, which are put in pairs besides.
    """
    m, n, k = gemm
    sums, elements = m * n / threads, (m + n) * k / threads
    if family == "tma":
        if op == "wgrad":
            return Code(100 + 0.9 * n, 500 + 11 * sums, sums + 60)  # n: of all its taps
        return Code(60 + 40 * parts, 450 + 3 * sums, sums + 28)
    if family == "banded":
        return Code(300 if op == "wgrad" else 180, 900, 120)
    loop = 85 + (2.5 if flat else 0.8) * elements + 2.7 * alone / threads
    if op == "wgrad":  # counts pixels
        loop += 70
    if precision == "tf32":
        loop += 40
    if precision == "tf32x3":  # both halves of every operand are made in registers
        loop += 18 * elements
    if precision == "fma":
        loop += sums * k
    return Code(loop, 400 + 10 * sums, sums + (30 if precision == "fma" else 60))


@dataclass(frozen=True)
class Work:
    """What a launch asks of a device.

    Attributes:
        programs: of the launch.
        threads: of a program.
        dram_bytes: through device memory, of the whole launch.
        l2_bytes: of one program, read from L2.
        shared_bytes: of one program, through L1 and shared memory.
        macs: multiply-adds of one program, what is padding included.
        unit: that does them, see Rates.macs.
        instructions: of one warp.
        resident: programs that a multiprocessor has room for.
        launches: kernels, those that only prepare or finish included.
        between_bytes: that one kernel leaves to the next, which starts when it is done.
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


@dataclass(frozen=True)
class Times:
    """Seconds of every unit, see the module."""

    dram: float
    l2: float
    shared: float
    arithmetic: float
    issue: float
    latency: float
    launch: float

    @property
    def bound(self) -> str:
        """The unit that takes longest."""
        units = {name: seconds for name, seconds in vars(self).items() if name != "launch"}
        return max(units, key=lambda unit: units[unit])

    @property
    def predicted(self) -> float:
        """Seconds of the launch."""
        return self.launch + max(
            self.dram, self.l2, self.shared, self.arithmetic, self.issue, self.latency
        )

    @property
    def busy(self) -> float:
        """Seconds of all units together: of two plans that take as long, the better has less."""
        return self.dram + self.l2 + self.shared + self.arithmetic + self.issue


def times_of(work: Work, device: Device) -> Times:
    """The time of every unit."""
    rates, sms = rates_of(device), device.multiprocessors
    busiest = cdiv(work.programs, sms)
    warps = work.threads / LIMITS.get(device.arch, SMALLEST).lanes
    shared = work.shared_bytes / rates.shared
    arithmetic = work.macs / rates.macs[work.unit]
    issue = work.instructions * warps / rates.issue
    alone = max(shared, arithmetic, issue, work.l2_bytes / L2_PORT)
    rounds = cdiv(busiest, max(1, min(work.resident, busiest)))
    l2 = max(work.programs * work.l2_bytes / rates.l2, busiest * work.l2_bytes / L2_PORT)
    # Read by the next kernel, from L2 where they still are there.
    kept = work.between_bytes <= rates.l2_bytes / 2
    again = work.between_bytes / (rates.l2 * rates.clock if kept else copy_rate(device))
    return Times(
        dram=work.dram_bytes / copy_rate(device),
        l2=l2 / rates.clock,
        shared=busiest * shared / rates.clock,
        arithmetic=busiest * arithmetic / rates.clock,
        issue=busiest * issue / rates.clock,
        latency=rounds * (LATENCY + alone) / rates.clock,
        launch=work.launches * LAUNCH_SECONDS + again,
    )


def gemm_work(
    family: str,
    gemm: tuple[int, int, int],
    steps: float,
    programs: int,
    threads: int,
    shared: int,
    itemsizes: tuple[int, int],
    unit: str,
    products: int,
    dram_bytes: float,
    code: Code,
    device: Device,
    between_bytes: int = 0,
    parts: int = 1,
    alone: int = 0,
) -> Work:
    """The work of a kernel that multiplies [M, K] by [K, N] in every pass of its loop.

    Args:
        family: "gemm", "tma" or "banded".
        gemm: (M, N, K) of a pass.
        steps: passes of a program.
        programs: of the launch.
        threads: of a program.
        shared: bytes of shared memory that one holds.
        itemsizes: bytes of an element of both operands.
        unit: that multiplies.
        products: for each product that the result has, three in tf32x3.
        dram_bytes: as in Work.
        code: of a program.
        device: that it runs on.
        between_bytes: as in Work.
        parts: products that the columns are cut into, each of which reads the rows again.
        alone: elements of a pass that a lane loads one by one: L1 takes as long for 4 bytes each.
    """
    m, n, k = gemm
    loaded = k * (m * itemsizes[0] + n * itemsizes[1])
    lanes = LIMITS.get(device.arch, SMALLEST).lanes
    rows = rates_of(device).rows
    if rows and unit != "fma":
        reads_first, reads_second = parts, cdiv(m, rows)
    else:  # warps lie in a grid, and each reads its rows and its columns
        warps = threads // lanes
        reads_first = 2 if warps >= 4 else 1
        reads_second = max(1, warps // reads_first)
    read = k * (m * itemsizes[0] * reads_first + n * itemsizes[1] * reads_second)
    # What does not come through descriptors passes L1 on its way to shared memory.
    moved = loaded * (1 if family == "tma" else 2) + read * products
    moved += alone * max(0, 4 - itemsizes[0])
    room = LIMITS.get(device.arch, SMALLEST).shared
    resident = min(
        room // max(1, shared),
        int(REGISTERS * (lanes // 32) // (threads * code.registers)),
        THREADS // threads,
    )
    return Work(
        programs,
        threads,
        dram_bytes,
        steps * loaded,
        steps * moved,
        steps * m * n * k * products,
        unit,
        steps * code.loop + code.outside,
        max(1, resident),
        2 if between_bytes else 1,
        between_bytes,
    )


def reread_bytes(
    op: str, first: int, second: int, programs: int, sharers: int, device: Device
) -> int:
    """Bytes read from device memory again, because L2 did not keep them from wave to wave.

    What a wave touches is in L2 for the next one if both fit into half of it.

    Args:
        op: "fprop", "dgrad" or "wgrad".
        first: bytes of the image that is read.
        second: of the weight, or of the other image.
        programs: of the launch.
        sharers: of a weight gradient, the programs that read the same pixels.
        device: whose L2 it is.
    """
    sms, room = device.multiprocessors, rates_of(device).l2_bytes / 2
    waves = cdiv(programs, sms)
    if waves <= 1:
        return 0
    if op == "wgrad":
        # Their ids are neighbours. If they are more than a wave and their pixels do not stay in
        # L2, every wave of them reads those again.
        shared = (first + second) * sharers / programs
        return (
            0 if sharers <= sms or shared <= room else (cdiv(sharers, sms) - 1) * (first + second)
        )
    # Neighbouring programs share pixels, so those are read once; every wave wants all the weight.
    return 0 if second + first / waves <= room else (waves - 1) * second
