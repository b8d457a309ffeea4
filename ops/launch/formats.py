"""Memory formats of results: outputs and gradients follow the image, as PyTorch's do."""

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


def format_like(image: torch.Tensor, axes: int = 4) -> torch.memory_format:
    """The memory format of a result, of `axes` axes, of a call that reads this image.

    A bank per sample has five, and is contiguous.
    """
    channels_last = axes == 4 and suggests_channels_last(image)
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_in_format(
    shape: Sequence[int], dtype: torch.dtype, like: torch.Tensor, device: torch.device | str = ""
) -> torch.Tensor:
    """An uninitialised tensor in the memory format of `like`, on its device or another."""
    device = device or like.device
    memory_format = format_like(like, len(shape))
    return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
