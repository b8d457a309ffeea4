"""`tricorr doctor`: versions, devices and a self-check, ready to paste into an issue."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .. import __version__
from .commands import Outcome, reason

#: Packages whose versions doctor reports, after tricorr and Python.
PACKAGES = ("torch", "triton", "numpy", "pillow", "tifffile", "matplotlib", "scikit-image")


def doctor(args: argparse.Namespace) -> Outcome:
    """`tricorr doctor`."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from ..ops import backend

    versions: dict[str, str | None] = {"tricorr": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    versions |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
    devices: dict[str, str] = {"cpu": platform.processor() or platform.machine()}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        devices[f"cuda:{index}"] = f"{facts.name}, {memory}, {facts.multi_processor_count} cores"
    runs = {name: _backend_or_reason(name) for name in [*devices, *_absent_gpu(devices)]}
    checks = {name: _self_check(name) for name in devices}
    passed = all(check["passed"] for check in checks.values())
    data = {
        "versions": versions,
        "platform": platform.platform(),
        "devices": devices,
        "backends": runs,
        "interpret": backend.interprets(),
        "threads": torch.get_num_threads(),
        "self_check": checks,
        "passed": passed,
    }
    lines = [f"{name:14}{number or '-'}" for name, number in versions.items()]
    lines.append(f"{'platform':14}{data['platform']}, {data['threads']} threads")
    lines += [f"{name:14}{what}" for name, what in devices.items()]
    lines += [f"{name + ' runs':14}{what}" for name, what in runs.items()]
    state = "set: CPU tensors run the kernels" if backend.interprets() else "not set"
    lines.append(f"TRITON_INTERPRET {state}")
    for name, check in checks.items():
        lines.append(
            f"self-check {name}: {'passed' if check['passed'] else 'FAILED'}, {check['text']}"
        )
    return Outcome(data, "\n".join(lines), exit_code=0 if passed else 1)


def _self_check(device: str) -> dict[str, Any]:
    """Forward and both gradients of a small case against NumPy in float64."""
    import torch

    from ..autograd.functional import corr2d
    from ..ops import geometry_of, reference

    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, generator=random) for n in ((2, 3, 9, 11), (4, 3, 3, 2)))
    geometry = geometry_of((2, 3, 9, 11), (4, 3, 3, 2), (2, 1), ((1, 1), (1, 1)), (1, 2))
    dy = torch.randn(geometry.y_shape, generator=random)
    try:
        x_there, weight_there = (
            tensor.to(device, copy=True).requires_grad_() for tensor in (x, weight)
        )
        y = corr2d(x_there, weight_there, None, (2, 1), 1, (1, 2), precision="ieee")
        dx, dw = torch.autograd.grad(y, (x_there, weight_there), dy.to(device))
    except Exception as error:  # report any failure
        return {"passed": False, "text": reason(error), "errors": None}
    truth = {
        "forward": lambda a, b, dy: reference.fprop(a, b, None, geometry),
        "input gradient": lambda a, b, dy: reference.dgrad(dy, b, geometry),
        "weight gradient": lambda a, b, dy: reference.wgrad(a, dy, geometry),
    }
    tensors = [tensor.double().numpy() for tensor in (x, weight, dy)]
    errors, passed = {}, True
    found = {"forward": y, "input gradient": dx, "weight gradient": dw}
    for name, result in found.items():
        off = abs(result.detach().cpu().double().numpy() - truth[name](*tensors))
        # Higham's bound (see tests/closeness.py): no element adds more than 100 products.
        bound = 100 * torch.finfo(torch.float32).eps * truth[name](*map(abs, tensors))
        errors[name] = float(off.max())
        passed = passed and bool((off <= bound).all())
    text = "largest errors: " + ", ".join(f"{name} {off:.1e}" for name, off in errors.items())
    return {"passed": passed, "text": text, "errors": errors}


def _absent_gpu(devices: Mapping[str, str]) -> list[str]:
    return [] if any(name.startswith("cuda") for name in devices) else ["cuda"]


def _backend_or_reason(device: str) -> str:
    import torch

    from ..ops import BackendError
    from ..ops.backend import backend_name

    if device == "cuda":
        return "not there: PyTorch sees no GPU"
    try:
        return backend_name(torch.device(device))
    except BackendError as error:
        return f"nothing: {error}"
