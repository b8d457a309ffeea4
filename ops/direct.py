"""The three operators without PyTorch's dispatcher, for calls that only the device has to see.

Going through the dispatcher to a Python implementation takes the host several times as long as all
else here. A call may skip it when its tensors are plain ones below autograd, whose memory says
what they are (that of a negated view, of a tangent that is all zero or of autograd's batches does
not), and nobody listens: no dispatch mode (FakeTensorMode, FlopCounterMode, ...), no tracer and no
profiler. Signatures are those of registration.py, whose operators end here too.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import torch
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import profiler

from . import backend, cpu
from .geometry import Geometry

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def only_the_device_sees(*tensors: torch.Tensor | None) -> bool:
    """Whether a call with these tensors, below autograd, may skip the dispatcher."""
    if torch._C._len_torch_dispatch_stack():
        _tell_counters()
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or tensor.is_meta:
            return False
        if tensor.is_neg() or tensor._is_zerotensor():
            return False
        # Dynamo cannot ask, and sees no batches of this kind.
        if not torch.compiler.is_compiling() and is_legacy_batchedtensor(tensor):
            return False
    return not (torch._C._get_tracing_state() or profiler._is_profiler_enabled)


def _tell_counters() -> None:
    """Counters of FLOPs that were made before our formulas were there get them now."""
    if "torch.utils.flop_counter" in sys.modules:
        from . import flops

        flops.tell_counters()


def fprop(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    precision: str = "ieee",
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """y by kernels, or by PyTorch's own convolution on CPU; see registration.fprop."""
    if backend.runs_kernels(x.device):
        return _launch().fprop(x, weight, bias, geometry, precision, activation, residual=residual)
    return cpu.fprop(x, weight, bias, geometry, activation, residual)


def dgrad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """dx by kernels, or by PyTorch's own convolution on CPU; see registration.dgrad."""
    if backend.runs_kernels(dy.device):
        return _launch().dgrad(dy, weight, geometry, precision, bias)
    return cpu.dgrad(dy, weight, geometry, bias)


def wgrad(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, precision: str = "ieee"
) -> torch.Tensor:
    """dw by kernels, or by PyTorch's own convolution on CPU; see registration.wgrad."""
    if backend.runs_kernels(x.device):
        return _launch().wgrad(x, dy, geometry, precision)
    return cpu.wgrad(x, dy, geometry)


@functools.cache
def _launch() -> ModuleType:
    """ops/launch/arguments.py, imported with triton when the first call needs a kernel."""
    from .launch import arguments

    return arguments
