"""PyTorch's global settings that change a call: autocast, and how float32 is multiplied."""

from __future__ import annotations

from typing import Any

import torch


def autocast(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype in which autocast, where it is on, hands them to conv2d."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    return tuple(_lowered(t) if isinstance(t, torch.Tensor) else t for t in tensors)


def _lowered(tensor: torch.Tensor) -> torch.Tensor:
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensor
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def precision_of(tensor: torch.Tensor, precision: str | None, on_gpu: bool | None = None) -> str:
    """`precision`, or where it is None PyTorch's own setting for convolutions, which GPUs have."""
    if tensor.dtype != torch.float32:
        return "ieee"
    if precision is not None:
        return precision
    on_gpu = tensor.is_cuda if on_gpu is None else on_gpu
    return "tf32" if on_gpu and _allows_tf32() else "ieee"


def _allows_tf32() -> bool:
    """PyTorch's setting for convolutions; a compiled function keeps what it was compiled with."""
    # PyTorch adds this attribute at run time: it has no annotation.
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


# What torch.compiler.assume_constant_result sets, which would import the compiler and Triton.
_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]
