"""Stateless layers: a `forward` for PyTorch's layers, which keep their own state.

The Hugging Face kernels hub puts them into a model in place of the `forward` of nn.Conv2d and
nn.ConvTranspose2d (see publish.py). Its rules: no constructor, no members but `forward` and the two
flags, the same arguments as the layer's own `forward`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..autograd.functional import corr2d, corr_transpose2d
from ..autograd.modules import PaddingMode


class Conv2D(nn.Module):
    """The forward of nn.Conv2d: (N, C, H, W) or (C, H, W) to (N, K, P, Q) or (K, P, Q)."""

    has_backward = True
    can_torch_compile = True

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, int]
    padding: Any
    dilation: tuple[int, int]
    groups: int
    padding_mode: PaddingMode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Conv2d.forward, computed by `corr2d`."""
        return corr2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
        )


class ConvTranspose2D(nn.Module):
    """The forward of nn.ConvTranspose2d: (N, K, P, Q) to (N, C, H, W), or both without N."""

    has_backward = True
    can_torch_compile = True

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    kernel_size: tuple[int, int]
    groups: int

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """As nn.ConvTranspose2d.forward, computed by `corr_transpose2d`."""
        output_padding = self._output_padding(  # type: ignore[operator]  # the layer's own method
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        return corr_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )
