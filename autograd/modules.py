"""The layers: PyTorch's own classes, with their parameters, on our kernels."""
# PyTorch annotates the numbers of its layers more narrowly than it takes them.
# mypy: disable-error-code="arg-type"

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..ops import ArgumentError, ArgumentTypeError, as_integer, as_pair, shown
from ..ops.arguments import Activation, PaddingLike, PairLike, check_activation
from ..ops.arguments import PaddingMode as PaddingMode
from .functional import corr2d, corr_transpose2d

# torch.fx.symbolic_trace keeps layers of torch.nn whole and looks into all others: what it sees
# there are the two functions, and these it keeps whole.
torch.fx.wrap("corr2d")
torch.fx.wrap("corr_transpose2d")


class Conv2D(nn.Conv2d):
    """`torch.nn.Conv2d` on Triton kernels: same arguments, parameters, initialisation, state_dict.

    Without channels, `Conv2D(kernel_size=(1, 2))` is the textbook's layer: one (R, S) weight and
    one scalar bias for a plain (H, W) image, or for every plane of a larger tensor.

    Args:
        in_channels: C, or None together with out_channels for the textbook's layer.
        out_channels: K.
        kernel_size: R and S, int or (h, w).
        stride, dilation, groups, bias, device, dtype: as for nn.Conv2d.
        padding: as for nn.Conv2d, or ((top, bottom), (left, right)).
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        activation: as for `corr2d`; of the layer's output.

    Example:
        >>> layer = Conv2D(3, 8, kernel_size=3, padding=1)
        >>> layer(torch.zeros(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
        >>> Conv2D(kernel_size=(1, 2))(torch.zeros(6, 8)).shape
        torch.Size([6, 7])
    """

    activation: Activation | None = None
    _every_plane = False  # of a layer that nn.Conv2d's __init__ has made

    def __init__(
        self,
        in_channels: int | None = None,
        out_channels: int | None = None,
        kernel_size: PairLike | None = None,
        stride: PairLike = 1,
        padding: PaddingLike = 0,
        dilation: PairLike = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation | None = None,
    ) -> None:
        check_activation(activation)
        if kernel_size is None:
            raise ArgumentTypeError(
                "Conv2D needs kernel_size, for example Conv2D(kernel_size=(1, 2))"
            )
        if (in_channels is None) != (out_channels is None):
            raise ArgumentTypeError(
                "Conv2D needs both in_channels and out_channels, or neither for one kernel on "
                f"every plane, got in_channels={in_channels} and out_channels={out_channels}"
            )
        self._every_plane = in_channels is None
        in_channels = 1 if in_channels is None else in_channels
        out_channels = 1 if out_channels is None else out_channels
        _check_layer(in_channels, out_channels, kernel_size, groups)
        super().__init__(
            in_channels,
            out_channels,
            as_pair("kernel_size", kernel_size),
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.activation = activation
        if self._every_plane:
            self.weight = nn.Parameter(self.weight.detach()[0, 0])

    def reset_parameters(self) -> None:
        """As nn.Conv2d: weight and bias uniform within 1 / sqrt(C/groups * R * S)."""
        if self.weight.dim() != 2:
            super().reset_parameters()
            return
        bound = 1 / math.sqrt(self.weight.numel())
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """As nn.Conv2d's, of any form that `corr2d` takes.

        Args:
            input: the image.
            residual: as for `corr2d`: added before the activation.
        """
        if residual is None:
            return self._conv_forward(input, self.weight, self.bias)
        return self._conv_forward(input, self.weight, self.bias, residual)

    def _conv_forward(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return corr2d(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            activation=self.activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        """nn.Conv2d's, without the channels that the textbook's layer does not have."""
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation}"
        return text.removeprefix("1, 1, ") if self._every_plane else text


# PyTorch's lazy classes annotate cls_to_become as their own layer's class, which ours extend.
class LazyConv2D(nn.LazyConv2d, Conv2D):  # type: ignore[misc]
    """`torch.nn.LazyConv2d` on Triton kernels: in_channels is read off the first input.

    Example:
        >>> layer = LazyConv2D(1, kernel_size=(1, 2), bias=False)
        >>> layer(torch.zeros(1, 1, 6, 8)).shape
        torch.Size([1, 1, 6, 7])
    """

    cls_to_become = Conv2D  # type: ignore[assignment]  # annotated as nn.Conv2d there

    def __init__(self, *args: Any, activation: Activation | None = None, **kwargs: Any) -> None:
        check_activation(activation)
        super().__init__(*args, **kwargs)
        self.activation = activation


class ConvTranspose2D(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on Triton kernels: same arguments, parameters and state_dict.

    Example:
        >>> layer = ConvTranspose2D(8, 3, kernel_size=2, stride=2)
        >>> layer(torch.zeros(2, 8, 5, 5)).shape
        torch.Size([2, 3, 10, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PairLike,
        stride: PairLike = 1,
        padding: PairLike = 0,
        output_padding: PairLike = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: PairLike = 1,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_layer(in_channels, out_channels, kernel_size, groups)
        super().__init__(
            in_channels,
            out_channels,
            as_pair("kernel_size", kernel_size),
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """(N, K, P, Q) or (K, P, Q) to (N, C, H, W) or (C, H, W).

        Args:
            input: the image.
            output_size: (H, W), where stride leaves several sizes possible.
        """
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            2,
            self.dilation,
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


# cls_to_become is annotated otherwise, as in LazyConv2D.
class LazyConvTranspose2D(nn.LazyConvTranspose2d, ConvTranspose2D):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose2d` on Triton kernels: in_channels as for `LazyConv2D`.

    Example:
        >>> layer = LazyConvTranspose2D(3, kernel_size=2, stride=2)
        >>> layer(torch.zeros(2, 8, 5, 5)).shape
        torch.Size([2, 3, 10, 10])
    """

    cls_to_become = ConvTranspose2D


def _check_layer(in_channels: Any, out_channels: Any, kernel_size: Any, groups: Any) -> None:
    """Raises where PyTorch's layers would not say which value was wrong, or only when called."""
    if min(as_pair("kernel_size", kernel_size)) < 1:
        raise ArgumentError(f"kernel_size must be positive, got {shown(kernel_size)}")
    if as_integer("groups", groups) < 1:
        raise ArgumentError(f"groups must be positive, got {groups}")
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if as_integer(name, channels) < 0:
            raise ArgumentError(f"{name} must not be negative, got {channels}")
        if channels % groups:
            raise ArgumentError(f"groups={groups} must divide {name}, got {channels}")
