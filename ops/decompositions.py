"""fprop and dgrad decomposed into PyTorch's operators, for exporters that know only those.

torch.onnx.export(dynamo=True) decomposes operators that it cannot translate: a correlation becomes
an ONNX Conv (with a Pad for padding modes and asymmetric padding), a transposed one ConvTranspose.
Compilers do not use this table, so they keep the operators and their kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch._decomp import register_decomposition

from .arguments import shape_of
from .cpu import ACTIVATION_FUNCTIONS


def register(fakes: dict[str, Callable[..., torch.Tensor]]) -> None:
    """Registers the decompositions with PyTorch.

    Args:
        fakes: the fake implementations by operator. Registered as meta decompositions too, or
            PyTorch would infer symbolic shapes and strides from the decomposition.
    """
    for name, function in (("fprop", fprop), ("dgrad", dgrad)):
        operator = getattr(torch.ops.tricorr, name).default
        register_decomposition(operator)(function)
        register_decomposition(operator, type="meta")(fakes[name])


def fprop(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    flip: bool,
    mode: str,
    precision: str,
) -> torch.Tensor:
    """torch.ops.tricorr.fprop by F.pad and F.conv2d."""
    top, bottom, left, right = padding
    x = x.to(weight.dtype)
    border = (top, left)
    if mode != "zeros" or top != bottom or left != right:
        kind = "constant" if mode == "zeros" else mode
        x, border = F.pad(x, (left, right, top, bottom), mode=kind), (0, 0)
    weight = weight.flip(-2, -1) if flip else weight
    N = x.shape[0]
    per_sample = weight.dim() == 5
    if per_sample:
        x, weight, groups = x.flatten(0, 1).unsqueeze(0), weight.flatten(0, 1), groups * N
        bias = None if bias is None else bias.repeat(N)
    y = F.conv2d(x, weight, bias, tuple(stride), border, tuple(dilation), groups)
    if per_sample:
        y = y.squeeze(0).unflatten(0, (N, -1))
    return ACTIVATION_FUNCTIONS[activation](y if residual is None else y + residual)


def dgrad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    size: Sequence[Any],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    flip: bool,
    mode: str,
    precision: str,
) -> torch.Tensor:
    """torch.ops.tricorr.dgrad with zeros beyond the border, by F.conv_transpose2d."""
    if mode != "zeros" or weight.dim() == 5:
        return NotImplemented
    top, _, left, _ = padding
    weight = weight.flip(-2, -1) if flip else weight
    window, outputs = shape_of(weight)[-2:], shape_of(dy)[-2:]
    reached = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(outputs, stride, dilation, window, strict=True)
    ]
    extra = [n - full + 2 * p for n, full, p in zip(size, reached, (top, left), strict=True)]
    steps = tuple(stride), tuple(dilation)
    if min(top, left) >= 0 and all(0 <= e < max(*s) for e, *s in zip(extra, *steps, strict=True)):
        return F.conv_transpose2d(
            dy, weight, bias, steps[0], (top, left), tuple(extra), groups, steps[1]
        )
    full = F.conv_transpose2d(dy, weight, None, steps[0], 0, 0, groups, steps[1])
    (full_h, full_w), (H, W) = reached, size
    dx = F.pad(full, (-left, W + left - full_w, -top, H + top - full_h))
    return dx if bias is None else dx + bias.view(-1, 1, 1)
