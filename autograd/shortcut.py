"""PyTorch's own convolution in place of ours, where it does all that ours would: on CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..ops import cpu, one_channel
from ..ops.arguments import PADDING_MODES

# Looked up once: the checks of a small call take as long as half its convolution.
_is_compiling = torch.compiler.is_dynamo_compiling
_any_autocast = torch._C._is_any_autocast_enabled
_STRIDED = torch.strided


def by_pytorch(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: str | None,
    output_padding: Any = 0,
) -> torch.Tensor | None:
    """The result by PyTorch's own function, or None where ours must run.

    Ours runs where a result would differ, and where PyTorch refuses the arguments: our checks then
    say why. PyTorch's own checks are the faster ones for arguments that are right.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as for `corr2d`.
        padding_mode: as for `corr2d`; None for a transposed correlation.
        output_padding: of a transposed correlation.
    """
    # `suffices` allows its first operand to be uint8, and PyTorch's function takes no uint8 image.
    if _is_compiling() or _any_autocast() or not cpu.suffices(weight, input, bias):
        return None
    if not 0 < input.numel() < one_channel.LEAST_PIXELS and _is_ours(input, weight):
        return None
    for steps in (stride, dilation):
        if type(steps) not in (int, tuple, list):  # arrays and tensors do not compare to one bool
            return None
    if stride != 1 and stride != (1, 1) and cpu.crashes(input, weight, stride):
        return None
    if dilation != 1 and dilation != (1, 1) and 1 in weight.shape[-2:]:
        return None  # PyTorch may crash, see cpu.fprop
    try:
        if type(padding) is not int:
            h, w = padding  # fails on "same" and "valid"
            if not (type(h) is type(w) is int):
                return None
        if padding_mode is None:
            sides = (padding, output_padding, groups, dilation)
            y = torch.conv_transpose2d(input, weight, bias, stride, *sides)
        else:
            if padding_mode != "zeros":
                h, w = (padding, padding) if type(padding) is int else padding
                if padding_mode not in PADDING_MODES or min(h, w) < 0 or input.dim() < 3:
                    return None
                input, padding = F.pad(input, (w, w, h, h), padding_mode), 0
            if weight.dim() == 4:
                ones = stride == dilation == groups == 1 and bias is None and padding == 0
                if ones and type(stride) is type(dilation) is type(groups) is int:
                    y = torch.conv2d(input, weight)  # defaults: nothing more to parse
                else:
                    y = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
            elif input.dim() == weight.dim() == 2:
                image, kernel = input.unsqueeze(0), weight.unsqueeze(0).unsqueeze(0)
                sums = torch.conv2d(image, kernel, bias, stride, padding, dilation, groups)
                return sums.squeeze(0)
            else:
                return None
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None  # our own checks say what is wrong
    # Of a padding that leaves nothing, PyTorch's float32 and bfloat16 make an empty result.
    if y.layout is not _STRIDED or not y.numel():
        return None
    # Where only the weight is channels_last, PyTorch's result is too.
    return y if y.is_contiguous() or y.dim() != 4 else cpu.in_format(y, like=input)


def _is_ours(input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ours must run: on empty inputs, and on images for which one_channel.py is faster."""
    pixels = input.numel()
    if pixels == 0:
        return True
    if weight.dim() != 2 and (input.dim() < 3 or input.shape[-3] != 1):
        return False
    return one_channel.is_large(pixels, weight.numel(), weight.dtype)
