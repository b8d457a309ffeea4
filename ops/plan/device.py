"""Devices by their datasheets; no device is queried here."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .measured import Measured, measured_on

#: A matrix unit multiplies 16 x 16 blocks: with fewer channels most products are with zeros.
GEMM_MIN = 16
#: Most bytes that partial sums, or the bands of a weight, may take.
MAX_WORKSPACE = 64 * 2**20
#: Most bytes that the copies of images may take in one call; assumed.
MAX_COPY_BYTES = 2**30
#: Registers per thread with which twelve warps fit on an NVIDIA multiprocessor, and eight. Without
#: a limit ptxas takes up to 192 for boxes with 128 x 256 sums, as that admits as many programs; for
#: other kernels it aims at a number that admits one program more, and spills 8 or 16 bytes per
#: thread for it (sm_90). With a limit it takes the registers that it needs.
MAX_REGISTERS, ALL_REGISTERS = 168, 255
#: Share of the datasheet's rate of device memory that a copy reaches: 4.3 of 4.8 TB/s, as measured
#: on a H200; assumed for the others.
COPY_SHARE = 0.9
#: Clocks of a load from device memory: about 600 to 800 on sm_80 and sm_90 by published
#: microbenchmarks; assumed.
LATENCY = 700
#: Seconds of a kernel's start and end; assumed.
LAUNCH_SECONDS = 2e-6


@dataclass(frozen=True)
class Limits:
    """Resources that one program may use on an architecture.

    Attributes:
        registers: of one thread.
        shared: bytes of shared memory (LDS).
        lanes: threads of a warp.
    """

    registers: int
    shared: int
    lanes: int = 32


@dataclass(frozen=True)
class Rates:
    """Throughput of one multiprocessor per clock, and the clock rate.

    Attributes:
        clock: Hz.
        dram: bytes per second of device memory, for devices whose datasheet is not known.
        l2: bytes per clock that L2 delivers to all multiprocessors together.
        l2_bytes: size of L2.
        shared: bytes through L1 and shared memory.
        issue: warp instructions.
        macs: multiply-adds by unit: "fma", "float64", "tf32", "half".
        rows: rows of the first operand that read the second from shared memory once: those of one
            warpgroup's instruction; None where every warp reads its own share.
    """

    clock: float
    dram: float
    l2: float
    l2_bytes: float
    shared: float
    issue: float
    macs: Mapping[str, float]
    rows: int | None


@dataclass(frozen=True)
class Device:
    """Facts about a device, for the planner.

    Attributes:
        name: as torch calls it.
        arch: compute capability times ten ("90"), a gfx name, or "interpreter".
        multiprocessors: how many programs run side by side, at least.
        bandwidth: bytes per second of device memory by the datasheet; None if not known here.
        flops_per_second: by the datasheet and without sparsity, for "fma" (float32), "float64",
            "tf32" and "half" (16-bit) products. Only explain() reads the last two.
        measured: constants that were measured on it; None for those that are assumed.
    """

    name: str
    arch: str
    multiprocessors: int
    bandwidth: float | None = None
    flops_per_second: Mapping[str, float] = field(default_factory=dict, hash=False)
    measured: Measured | None = field(default=None, hash=False)

    @functools.cached_property
    def limits(self) -> Limits:
        """Of its architecture; the smallest of all for one that is not in LIMITS."""
        return LIMITS.get(self.arch, SMALLEST)

    @functools.cached_property
    def rates(self) -> Rates:
        """Of its architecture; those of "90" for one that is not in RATES."""
        rates = RATES.get(self.arch, RATES["90"])
        if self.measured is None or self.measured.l2 is None:
            return rates
        return replace(rates, l2=self.measured.l2 / rates.clock)

    @functools.cached_property
    def copy_rate(self) -> float:
        """Bytes per second of device memory, as a copy reaches them."""
        if self.measured is not None and self.measured.copy is not None:
            return self.measured.copy
        return self.rates.dram if self.bandwidth is None else COPY_SHARE * self.bandwidth

    @functools.cached_property
    def latency(self) -> float:
        """Clocks of a load from device memory."""
        if self.measured is None or self.measured.latency is None:
            return LATENCY
        return self.measured.latency * self.rates.clock

    @functools.cached_property
    def launch_seconds(self) -> float:
        """Seconds of a kernel's start and end, in which none of its programs run."""
        found = None if self.measured is None else self.measured.launch
        return LAUNCH_SECONDS if found is None else found

    def slowdown(self, family: str, kernel: str = "") -> float:
        """How many times the model's time a kernel takes, see Measured."""
        return 1.0 if self.measured is None else self.measured.slowdown(family, kernel)

    def mac_rate(self, unit: str) -> float:
        """Multiply-adds per second of one kind of unit, all multiprocessors together."""
        return self.rates.macs[unit] * self.rates.clock * self.multiprocessors


#: By Device.arch.
LIMITS = {
    "80": Limits(255, 163 * 1024),
    "86": Limits(255, 99 * 1024),
    "89": Limits(255, 99 * 1024),
    "90": Limits(255, 227 * 1024),
    "100": Limits(255, 227 * 1024),
    "120": Limits(255, 99 * 1024),
    "gfx942": Limits(512, 64 * 1024, lanes=64),
}
SMALLEST = Limits(255, 64 * 1024)

#: By Device.arch.
RATES = {
    # NVIDIA's A100 white paper: 1.41 GHz, L2 5120 bytes a clock, 1024 16-bit multiply-adds.
    "80": Rates(
        clock=1.41e9,
        dram=1.8e12,
        l2=5120,
        l2_bytes=40e6,
        shared=128,
        issue=4,
        macs={"fma": 64, "float64": 64, "tf32": 512, "half": 1024},
        rows=None,
    ),
    # 62 TFLOP/s of float32 and 31 TB/s of shared memory, as measured on a H200, are 1.835 GHz; of
    # 2048 16-bit multiply-adds a clock, 790 TFLOP/s leave 1631. L2: 7.0 TB/s, assumed.
    "90": Rates(
        clock=1.835e9,
        dram=4.3e12,
        l2=3815,
        l2_bytes=50e6,
        shared=128,
        issue=4,
        macs={"fma": 128, "float64": 128, "tf32": 815, "half": 1631},
        rows=64,
    ),
    # The datasheet's rates at 1.85 GHz, four fifths of them on matrix units as on a H200; L2 as
    # assumed for that.
    "100": Rates(
        clock=1.85e9,
        dram=7.2e12,
        l2=3815,
        l2_bytes=126e6,
        shared=128,
        issue=4,
        macs={"fma": 146, "float64": 73, "tf32": 1600, "half": 3280},
        rows=128,
    ),
    # AMD's CDNA 3 white paper: 2.1 GHz, 128 bytes a clock from each of 16 channels of L2 on 8 dies;
    # a wave's instruction takes a SIMD four clocks.
    "gfx942": Rates(
        clock=2.1e9,
        dram=4.8e12,
        l2=16384,
        l2_bytes=256e6,
        shared=64,
        issue=1,
        macs={"fma": 128, "float64": 128, "tf32": 410, "half": 820},
        rows=None,
    ),
}

INTERPRETER = Device("Triton interpreter", "interpreter", 4)

_H100 = measured_on("nvidia_h100_80gb_hbm3")

#: Devices that can be planned for without having one, by a word of what torch calls them. Datasheet
#: numbers, and what was measured on one of them: an H200 is an H100 with faster memory.
DEVICES = {
    "a100": Device(
        "NVIDIA A100-SXM4-80GB",
        "80",
        108,
        2.04e12,
        {"fma": 19.5e12, "float64": 19.5e12, "tf32": 156e12, "half": 312e12},
    ),
    "h100": Device(
        "NVIDIA H100 80GB HBM3",
        "90",
        132,
        3.35e12,
        {"fma": 67e12, "float64": 67e12, "tf32": 495e12, "half": 990e12},
        _H100,
    ),
    "h200": Device(
        "NVIDIA H200",
        "90",
        132,
        4.8e12,
        {"fma": 67e12, "float64": 67e12, "tf32": 495e12, "half": 990e12},
        _H100 and replace(_H100, copy=None),
    ),
    "b200": Device(
        "NVIDIA B200",
        "100",
        148,
        8e12,
        {"fma": 80e12, "float64": 40e12, "tf32": 1.1e15, "half": 2.25e15},
    ),
    "mi300x": Device(
        "AMD Instinct MI300X",
        "gfx942",
        304,
        5.3e12,
        {"fma": 163e12, "float64": 163e12, "tf32": 654e12, "half": 1.31e15},
    ),
}


def device_called(name: str, arch: str, multiprocessors: int) -> Device:
    """The device that torch describes by these facts, with datasheet numbers if DEVICES has it.

    An "NVIDIA H100 PCIe" does not match the H100 of the table: it has fewer multiprocessors and
    another memory.
    """
    measured = measured_on(slug_of(name))
    for word, known in DEVICES.items():
        same = (known.arch, known.multiprocessors) == (arch, multiprocessors)
        if same and re.search(rf"\b{word}\b", name, re.IGNORECASE):
            return replace(known, name=name, measured=measured or known.measured)
    return Device(name, arch, multiprocessors, measured=measured)


def slug_of(name: str) -> str:
    """A device's name as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
