"""PyTorch's own convolution in place of ours, where it does all that ours would: on CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..ops import cpu, one_channel
from ..ops.arguments import PADDING_MODES


def by_pytorch(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    rest: Sequence[Any],
    padding_mode: str | None,
) -> torch.Tensor | None:
    """The result by PyTorch's own function, or None where ours must run.

    Ours runs where a result would differ, and where PyTorch refuses the arguments: our checks then
    say why. PyTorch's own checks are the faster ones for arguments that are right.

    Args:
        input, weight, bias, stride, padding: as for `corr2d`.
        rest: the other arguments of torch.conv2d, or of torch.conv_transpose2d, in their order.
        padding_mode: as for `corr2d`; None for a transposed correlation.
    """
    if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():
        return None
    if not cpu.suffices(input, weight, bias) or input.dtype is not weight.dtype:
        return None
    if stride != 1 and cpu.crashes(input, weight, stride):
        return None
    dim, weight_dim = input.dim(), weight.dim()
    one = weight_dim == 2 or (dim > 2 and input.shape[-3] == 1)
    if one and one_channel.is_large(input.numel(), weight.numel(), weight.dtype):
        return None  # ops/one_channel.py may be faster
    try:
        if type(padding) is not int:
            h, w = padding  # fails on "same" and "valid"
            if not (type(h) is type(w) is int):
                return None
        if padding_mode is None:
            y = torch.conv_transpose2d(input, weight, bias, stride, padding, *rest)
        else:
            if padding_mode != "zeros":
                h, w = (padding, padding) if type(padding) is int else padding
                if padding_mode not in PADDING_MODES or min(h, w) < 0 or dim < 3:
                    return None
                input, padding = F.pad(input, (w, w, h, h), padding_mode), 0
            if dim == weight_dim == 2:
                image, kernel = input.unsqueeze(0), weight.unsqueeze(0).unsqueeze(0)
                return torch.conv2d(image, kernel, bias, stride, padding, *rest).squeeze(0)
            if weight_dim != 4:
                return None
            y = torch.conv2d(input, weight, bias, stride, padding, *rest)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None  # our own checks say what is wrong
    # Where only the weight is channels_last, PyTorch's result is too.
    same = y.is_contiguous() == input.is_contiguous() or dim != 4
    return y if same else cpu.in_format(y, like=input)
