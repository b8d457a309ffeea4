"""The best rates that a device reaches, measured in the run that compares with them."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from .timers import Timer, median_seconds

if TYPE_CHECKING:
    from ...ops.plan.device import Device

#: Bytes that are copied, and rows and columns of the matrices that are multiplied.
COPIED, SIDE = 2**30, 8192


@dataclass(frozen=True)
class Ceilings:
    """Rates and fixed costs of a device; None for what was not measured.

    Attributes:
        copy: bytes per second of a large copy, read and written.
        matmul: floating-point operations per second of a large product, by a row's dtype.
        l2: bytes per second that all multiprocessors read from L2.
        launch: device seconds of a kernel that does nothing, between others in a graph.
        latency: seconds of a load from device memory on which the next one depends.
    """

    copy: float
    matmul: dict[str, float]
    l2: float | None = None
    launch: float | None = None
    latency: float | None = None

    def __str__(self) -> str:
        parts = [f"copy {self.copy / 1e12:.2f} TB/s"]
        parts += [f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in self.matmul.items()]
        parts += [f"L2 {self.l2 / 1e12:.2f} TB/s"] if self.l2 else []
        parts += [f"latency {self.latency * 1e9:.0f} ns"] if self.latency else []
        parts += [f"launch {self.launch * 1e6:.1f} us"] if self.launch else []
        return ", ".join(parts)

    def constants(self) -> dict[str, float]:
        """The measured constants except matrix products, by name."""
        found = {name: value for name, value in asdict(self).items() if name != "matmul"}
        return {name: value for name, value in found.items() if value is not None}

    def seconds(self, flops: int, moved: int, dtype: str) -> float:
        """No call takes less."""
        return max(moved / self.copy, flops / self.rate(dtype))

    def rate(self, dtype: str) -> float:
        """Operations per second in a row's dtype."""
        return self.matmul["float32" if dtype == "uint8" else dtype]


def measure_ceilings(timer: Timer, device: Device) -> Ceilings:
    """The ceilings of the GPU of this process."""
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    copy = 2 * COPIED / median_seconds(timer, partial(target.copy_, source))
    del source, target
    rates = {}
    for dtype in ("bfloat16", "float16", "tf32", "float32"):
        kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=kind) for _ in range(2))
        out = torch.empty_like(a)
        rates[dtype] = 2 * SIDE**3 / median_seconds(timer, partial(torch.mm, a, b, out=out))
    torch.backends.cuda.matmul.allow_tf32 = False
    found = Ceilings(copy, rates)
    try:
        from . import probes

        found = replace(
            found,
            l2=probes.l2_rate(timer, device.multiprocessors),
            latency=probes.load_seconds(timer),
            launch=probes.launch_seconds(timer),
        )
    except Exception as error:  # a run goes on with the constants that are assumed
        print(f"some constants of the device are not measured: {error}", file=sys.stderr)
    return found
