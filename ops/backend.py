"""Which code runs a call: Triton on a GPU, Triton's interpreter, or PyTorch's CPU convolution."""

import functools
import importlib.util
import os

import torch

from .errors import BackendError

#: True when CPU tensors run the Triton kernels in Triton's interpreter. Read once, at import:
#: Triton itself looks at the variable only when it decorates a kernel.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def has_triton() -> bool:
    """Whether the triton package can be imported."""
    return importlib.util.find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Whether tensors on `device` are computed by the Triton kernels.

    Raises:
        BackendError: the device needs Triton and Triton is not installed.
    """
    if device.type == "cpu" and not INTERPRET:
        return False
    if device.type == "meta":
        return False
    if not has_triton():
        reason = "TRITON_INTERPRET is set" if device.type == "cpu" else f"tensors are on {device}"
        raise BackendError(f"triton is not installed, and {reason}: pip install triton")
    return True


def backend_name(device: torch.device) -> str:
    """The backend in words, for people: shown by explain() and by the command line."""
    if not runs_kernels(device):
        return "PyTorch's CPU convolution"
    if device.type == "cpu":
        return "Triton kernels in the interpreter (CPU)"
    return f"Triton kernels on {device}"
