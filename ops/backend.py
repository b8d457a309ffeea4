"""Which code runs a call: Triton on a GPU, Triton's interpreter, or PyTorch's CPU convolution."""

import functools
import importlib.util
import os

import torch

from .errors import BackendError
from .plan.device import INTERPRETER, Device

_SET = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
#: The device whose kernels CPU tensors run: Triton's interpreter, or a GPU that a Triton driver
#: simulates on the CPU (tests/simulator). None: CPU tensors take PyTorch's convolution.
#: TRITON_INTERPRET is read once, at import: Triton reads it only when it decorates a kernel.
CPU_DEVICE: Device | None = INTERPRETER if _SET else None


def interprets() -> bool:
    """Whether CPU tensors run the kernels in Triton's interpreter."""
    return CPU_DEVICE is not None and CPU_DEVICE.arch == INTERPRETER.arch


@functools.cache
def has_triton() -> bool:
    """Whether the triton package can be imported."""
    return importlib.util.find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Whether tensors on `device` are computed by the Triton kernels.

    Raises:
        BackendError: the device needs Triton and Triton is not installed.
    """
    if device.type == "cpu" and CPU_DEVICE is None:
        return False
    if device.type == "meta":
        return False
    if not has_triton():
        reason = "TRITON_INTERPRET is set" if device.type == "cpu" else f"tensors are on {device}"
        raise BackendError(f"triton is not installed, and {reason}: pip install triton")
    return True


def backend_name(device: torch.device) -> str:
    """The backend in words, for explain() and the command line."""
    if not runs_kernels(device):
        return "PyTorch's CPU convolution"
    if device.type == "cpu":
        simulated = CPU_DEVICE.name if CPU_DEVICE and not interprets() else ""
        where = f"simulated {simulated}" if simulated else "interpreter"
        return f"Triton kernels in the {where} (CPU)"
    return f"Triton kernels on {device}"
