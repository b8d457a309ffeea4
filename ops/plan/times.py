"""Predicts the time of a launch from what each unit of the device has to do.

    seconds = launches * launch_seconds + partial sums + time to copy operands + exchanges
              + longer + MEMORY_EXPOSED * shorter   of device memory and the chip
    chip    = slowest + exposed * (sum of the others)   of L2, shared, arithmetic, issue, latency

The slowest unit hides only a part of the others: `exposed` is the share that it does not hide, see
EXPOSED. With n the programs of the busiest multiprocessor, ceil(programs / multiprocessors), and
per program and clock:

    device memory   bytes of the whole launch / rate of the device
    L2              the larger of  all bytes / rate of the device  and  n * bytes / 64; of what
                    matrix kernels read, several multiprocessors get the same bytes at once. A
                    store of a part of a line takes as long as the line
    shared          n * bytes / 128: written to shared memory, and read from it by matrix units,
                    which read the second operand once for every 64 rows of the first. L1 is the
                    same unit and takes one 128-byte line a clock: where the lanes of a load are
                    apart, each counts as up to 128 bytes. Asynchronous copies pass it once
    arithmetic      n * multiply-adds / rate of the unit, padding of tiles and channels included
    issue           n * instructions of all warps / 4. Multiply-adds of no matrix unit are among
                    them: both are one unit, as slow as the slower of the two
    latency         ceil(n / r) * (latencies + the slowest unit of one program alone), if r programs
                    fit on a multiprocessor side by side: one latency, and one for each pass that
                    waits for its loads. Where a pass waits for its products, the slowest unit and
                    the issue of the program's instructions come after each other

The ceilings in n and n / r are waves: a partly filled last wave takes as long as a full one.
device.py names the source of every rate, or holds measured ones; then the seconds of each kernel
are multiplied by its measured slowdown. Plans are compared on one device only, so only ratios of
rates matter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from .cost import Work
from .device import Device
from .integers import cdiv
from .measured import kernel_key
from .problem import Plan, Problem

#: Bytes that one multiprocessor takes from L2 in a clock: the width of the port.
L2_PORT = 64
#: Share of the shorter of two times that the longer one does not hide: that of device memory, and
#: that of all other units. With cold caches the first programs wait for memory, the last do not
#: read any.
MEMORY_EXPOSED = 0.6
#: The same share of a chip's other units beside the slowest, by how operands travel: "ahead" of
#: their use, by asynchronous copies to shared memory or as the vectors of the next step; through
#: "registers", where a program loads, multiplies and adds up in turn.
EXPOSED = {"ahead": 0.0, "registers": 0.4}
#: How many times a plain copy's time one takes that exchanges channels and pixels; fitted.
TRANSPOSED = 1.5
#: Seconds of a launch of an Exchange, beside its bytes at the rate of a plain copy. By 46 pairs of
#: rows of 16-bit weight gradients on an H100 (gpu-h100-*.jsonl), the same tile on channels_last
#: images and on copies in that format: the difference is 0.98 of the bytes' time and 2.6 us. What
#: the bytes leave is 2.5 us in the median, -1.2 to 4.5; rounded up.
EXCHANGE_SECONDS = 3e-6
#: Bytes per second that partial sums are written and read at, and seconds of the kernel that adds
#: them up: assumed, and right within a tenth for weight gradients in parts on an H100.
PARTIAL_RATE, PARTIAL_SECONDS = 2.5e12, 3e-6
#: Where channels are few, a matrix unit must be predicted below this share of the fastest kernel
#: without one, to allow for the model's error.
MARGIN = 0.75


#: Fields of Times that are units, first of all device memory.
_UNITS = ("dram", "l2", "shared", "arithmetic", "issue", "latency")


class Times(NamedTuple):
    """Seconds of every unit, see the module."""

    dram: float
    l2: float
    shared: float
    arithmetic: float
    issue: float
    latency: float
    launch: float
    exposed: float = 0
    exchange: float = 0

    @property
    def units(self) -> dict[str, float]:
        """Seconds of every unit that works while others do."""
        return dict(zip(_UNITS, self[: len(_UNITS)], strict=True))

    @property
    def bound(self) -> str:
        """The unit that takes longest."""
        units = self.units
        return max(units, key=lambda unit: units[unit])

    @property
    def predicted(self) -> float:
        """Seconds of the launch."""
        others = self[1 : len(_UNITS)]  # but for device memory
        slowest = max(others)
        chip = slowest + self.exposed * (sum(others) - slowest)
        shorter, longer = sorted((self.dram, chip))
        return self.launch + longer + MEMORY_EXPOSED * shorter + self.exchange


def seconds_of(plan: Plan, problem: Problem) -> float:
    """The predicted time of a plan, multiplied by what was measured of its kernel."""
    device = problem.device
    times = times_of(plan.work(problem), device)
    measured = device.measured
    slowdown = measured.slowdown(plan.family, key_of(plan, problem)) if measured else 1.0
    return (times.predicted - times.exchange) * slowdown + times.exchange


def key_of(plan: Plan, problem: Problem) -> str:
    """The name of the multiplier of a plan's kernel, see measured.kernel_key."""
    return kernel_key(plan.kernel, plan.seen(problem).layout.channels_last)


def cheapest(plans: Sequence[Plan], problem: Problem, direct: Collection[str] = ()) -> Plan:
    """The plan that the model expects to be done first.

    Args:
        plans: to choose from.
        problem: that they solve.
        direct: families without matrix units: where channels are few, the others must beat the
            fastest of these by MARGIN.
    """
    if len(plans) == 1:
        return plans[0]
    seconds = [seconds_of(plan, problem) for plan in plans]
    fastest = min(range(len(plans)), key=seconds.__getitem__)
    if problem.has_few_channels:
        others = [i for i, plan in enumerate(plans) if plan.family in direct]
        best = min(others, key=seconds.__getitem__, default=fastest)
        fastest = fastest if seconds[fastest] < MARGIN * seconds[best] else best
    return plans[fastest]


def times_of(work: Work, device: Device) -> Times:
    """The time of every unit."""
    rates, sms = device.rates, device.multiprocessors
    busiest = cdiv(work.programs, sms)
    warps = work.threads / device.limits.lanes
    shared = work.shared_bytes / rates.shared
    arithmetic = work.macs * work.products / rates.macs[work.unit]
    issue = work.instructions * warps / rates.issue
    longest = max(shared, arithmetic, work.l2_bytes / L2_PORT)
    outside = work.outside * warps / rates.issue
    alone = issue + longest if work.waits else max(issue - outside, longest) + outside
    rounds = cdiv(busiest, max(1, min(work.resident, busiest)))
    from_l2 = work.l2_bytes / work.readers + work.scattered_bytes
    l2 = max(work.programs * from_l2 / rates.l2, busiest * work.l2_bytes / L2_PORT)
    # The next kernel reads from L2 what still is there.
    kept = work.between_bytes <= rates.l2_bytes / 2
    again = work.between_bytes / (rates.l2 * rates.clock if kept else device.copy_rate)
    if work.partial_bytes:
        again += PARTIAL_SECONDS + 2 * work.partial_bytes / PARTIAL_RATE
    if work.unit in ("fma", "float64"):  # its products are instructions
        arithmetic, issue = max(arithmetic, issue), 0
    copies = (work.copy_bytes + work.copied_bytes) * (TRANSPOSED if work.exchanges else 1)
    return Times(
        dram=work.dram_bytes / device.copy_rate,
        l2=l2 / rates.clock,
        shared=busiest * shared / rates.clock,
        arithmetic=busiest * arithmetic / rates.clock,
        issue=busiest * issue / rates.clock,
        latency=rounds * ((1 + work.stalls) * device.latency + alone) / rates.clock,
        launch=work.launches * device.launch_seconds + again + copies / device.copy_rate,
        exposed=EXPOSED[work.operands],
        exchange=exchange_seconds(work.exchange_launches, work.exchanged_bytes, device),
    )


def exchange_seconds(launches: int, moved: float, device: Device) -> float:
    """The time of the copies of an Exchange: launches that move so many bytes."""
    return launches * EXCHANGE_SECONDS + moved / device.copy_rate
