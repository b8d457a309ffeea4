"""Memory formats of results: the output follows its input, as PyTorch's does."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def suggests_channels_last(tensor: torch.Tensor) -> bool:
    """Whether the strides of a 4-D tensor say channels_last: c innermost, then w, h and n.

    The rule is PyTorch's own `suggest_memory_format`: gaps are allowed, and where sizes of one let
    both formats fit, the strides decide.
    """
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    innermost = 0
    for axis in (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < innermost:
            return False
        if axis == 0 and innermost == strides[1]:
            return False  # (N, 1, 1, 1) fits both formats
        innermost = strides[axis] * max(1, sizes[axis])
    return True


def empty_in_format(shape: Sequence[int], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """An uninitialised 4-D tensor on the device and in the memory format of `like`."""
    channels_last = suggests_channels_last(like)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)
