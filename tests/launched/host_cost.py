"""Host time of calls, including Triton's launcher and its encoding of tensor maps.

Run it with `python tests/launched/host_cost.py`. It needs no GPU: it runs on the stub driver, which
does nothing at a launch. Kernels are compiled once, into Triton's cache.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stub_driver import build, pretend


def paths() -> dict[str, Callable[[], Any]]:
    """Calls by name. Tensors reuse a few addresses, as in a network."""
    import torch

    import tricorr

    half, channels_last = torch.bfloat16, {"memory_format": torch.channels_last}
    cases = {
        "tiny 1x1x6x8, 1x2": (torch.rand(1, 1, 6, 8), torch.rand(1, 1, 1, 2)),
        "small 2x16x16x16, 3x3": (torch.rand(2, 16, 16, 16), torch.rand(16, 16, 3, 3)),
        "descriptors 32x64x56x56, 3x3": (
            torch.zeros(32, 64, 56, 56, dtype=half).to(**channels_last),
            torch.zeros(64, 64, 3, 3, dtype=half).to(**channels_last),
        ),
    }
    found: dict[str, Callable[[], Any]] = {}
    for name, (x, weight) in cases.items():
        K, C, R, S = weight.shape
        layer = tricorr.Conv2D(C, K, (R, S)).to(x.dtype)
        if "descriptors" in name:
            layer = layer.to(**channels_last)
        wanted = (x.detach().requires_grad_(), layer.weight, layer.bias)
        dy = torch.zeros_like(layer(x))
        crop = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride())
        found |= {
            f"{name}: corr2d": lambda x=x, weight=weight: tricorr.corr2d(x, weight),
            f"{name}: corr2d off 16 bytes": lambda x=crop, weight=weight: tricorr.corr2d(x, weight),
            f"{name}: Conv2D": lambda x=x, layer=layer: layer(x),
            f"{name}: Conv2D forward and backward": lambda layer=layer, wanted=wanted, dy=dy: (
                torch.autograd.grad(layer(wanted[0]), wanted, dy)
            ),
        }
    return found


def main() -> None:
    """Prints microseconds of CPU time for each path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="calls timed together")
    parser.add_argument("--repeats", type=int, default=41, help="how often, in turns")
    options = parser.parse_args()
    stub, _ = pretend(build(Path(tempfile.gettempdir()) / "tricorr-stub"))
    stub.record(False)

    import torch

    from tricorr.perf.benchmarks.host import least

    torch.set_num_threads(1)
    for name, microseconds in least(paths(), options.calls, options.repeats).items():
        print(f"{name:56} {microseconds:8.1f} us")


if __name__ == "__main__":
    main()
