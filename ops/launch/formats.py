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
            return False  # (N, 1, 1, 1): nothing tells the formats apart
        innermost = strides[axis] * max(1, sizes[axis])
    return True


def boxes_of(tensor: torch.Tensor) -> str:
    """The format in which a tensor descriptor can describe (N, C, H, W), with steps of 16 bytes.

    Returns "NHWC", channels innermost, "NCHW", contiguous rows of planes, or "" for neither.
    """
    if tensor.data_ptr() % 16:
        return ""
    n, c, h, w = tensor.stride()
    N, C, H, W = tensor.shape
    step = 16 // tensor.itemsize
    if (N > 1 and not _is_step(n, step)) or (H > 1 and not _is_step(h, step)):
        return ""
    if c == 1 and (W == 1 or _is_step(w, step)):
        return "NHWC"
    return "NCHW" if w == 1 and (C == 1 or _is_step(c, step)) else ""


def _is_step(stride: int, step: int) -> bool:
    return stride > 0 and stride % step == 0


def is_row(image: torch.Tensor) -> bool:
    """Whether the rows of a plane follow one another as its columns do: so it is one long row."""
    return image.shape[2] == 1 or image.stride(2) == image.shape[3] * image.stride(3)


def as_row(image: torch.Tensor) -> torch.Tensor:
    """An image (N, C, H, W) that is_row as (N, C, 1, H * W)."""
    n, c, h, w = image.shape
    return image.as_strided((n, c, 1, h * w), (*image.stride()[:2], 0, image.stride(3)))


def channels_innermost(weight: torch.Tensor) -> torch.Tensor:
    """A copy of (K, C, R, S) whose memory is (K, R, S, C).

    It is never kept for another call: an update of the weight in place must not be missed.
    """
    return weight.clone(memory_format=torch.channels_last)


def empty_in_format(shape: Sequence[int], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """An uninitialised 4-D tensor on the device and in the memory format of `like`."""
    channels_last = suggests_channels_last(like)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)
