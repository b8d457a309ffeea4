"""What is known of devices by their datasheets: nothing here asks one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Device:
    """What the planner knows of a device.

    Attributes:
        name: as torch calls it.
        arch: compute capability times ten ("90"), a gfx name, or "interpreter".
        multiprocessors: how many programs run side by side, at least.
        bandwidth: bytes per second of device memory by the datasheet; None if not known here.
        flops_per_second: by the datasheet and without sparsity, for "fma" (float32), "float64",
            "tf32" and "half" (16-bit) products. Only explain() reads the last two.
    """

    name: str
    arch: str
    multiprocessors: int
    bandwidth: float | None = None
    flops_per_second: Mapping[str, float] = field(default_factory=dict, hash=False)


INTERPRETER = Device("Triton interpreter", "interpreter", 4)

#: Devices that can be planned for without having one, by a word of what torch calls them. Datasheet
#: numbers: leads, not measurements.
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
    ),
    "h200": Device(
        "NVIDIA H200",
        "90",
        132,
        4.8e12,
        {"fma": 67e12, "float64": 67e12, "tf32": 495e12, "half": 990e12},
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
    """A device that torch describes so, with its datasheet's numbers if DEVICES has them.

    A "NVIDIA H100 PCIe" has fewer multiprocessors and another memory than the H100 of the table: it
    is no such device.
    """
    for word, known in DEVICES.items():
        same = (known.arch, known.multiprocessors) == (arch, multiprocessors)
        if same and re.search(rf"\b{word}\b", name, re.IGNORECASE):
            return replace(known, name=name)
    return Device(name, arch, multiprocessors)


@dataclass(frozen=True)
class Limits:
    """What one program may use on an architecture.

    Attributes:
        registers: of one thread.
        shared: bytes of shared memory (LDS).
        lanes: threads of a warp.
    """

    registers: int
    shared: int
    lanes: int = 32


#: By Device.arch. An architecture that is not here gets the smallest of them.
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

#: A matrix unit works on 16 x 16; with fewer channels than that most of it would multiply zeros.
GEMM_MIN = 16

#: Most bytes that partials of a weight gradient, or the bands of a weight, may take.
MAX_WORKSPACE = 64 * 2**20


def pipeline_bytes(gemm: tuple[int, int, int], itemsize: int, stages: int, arch: str) -> int:
    """About what a program holds in shared memory: the operands of every stage of its pipeline."""
    m, n, k = gemm
    # Triton's pipeline keeps one stage of AMD's in registers.
    return (m + n) * k * itemsize * max(1, stages - arch.startswith("gfx"))
