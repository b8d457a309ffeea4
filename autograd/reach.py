"""Which inputs one output of a layer or function reads, along rows and columns."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..ops import ArgumentError, as_padding, as_pair
from ..ops.arguments import Pair
from .functional import convolve2d, corr2d


@dataclass(frozen=True)
class Reach:
    """Output q reads the inputs i with i * up = q * stride - pad + r * dilation, 0 <= r < window.

    A convolution has up = 1. A transposed convolution of stride s has up = s and stride = 1.
    """

    window: Pair
    stride: Pair = (1, 1)
    pad: Pair = (0, 0)
    dilation: Pair = (1, 1)
    up: Pair = (1, 1)

    def read(self, axis: int, q: int) -> tuple[int, int]:
        """The first and the last input that output q reads; the nearest one if it reads none."""
        begin = q * self.stride[axis] - self.pad[axis]
        end = begin + (self.window[axis] - 1) * self.dilation[axis]
        first, last = -(-begin // self.up[axis]), end // self.up[axis]
        return first, max(first, last)


def checked(window: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Reach:
    """The Reach of a window with these numbers in any form that `corr2d` takes."""
    pairs = {"window": window, "stride": stride, "dilation": dilation}
    for name, value in pairs.items():
        pairs[name] = as_pair(name, value)
        if min(pairs[name]) < 1:
            raise ArgumentError(f"{name} must be positive, got {value!r}")
    window, stride, dilation = pairs.values()
    (top, _), (left, _) = as_padding(padding, window, stride, dilation)
    return Reach(window, stride, (top, left), dilation)


def _transposed(window: Any, stride: Any, padding: Any, dilation: Any) -> Reach:
    plain = checked(window, stride, padding, dilation)
    axes = zip(plain.window, plain.dilation, plain.pad, strict=True)
    pad_h, pad_w = ((k - 1) * d - p for k, d, p in axes)
    return Reach(plain.window, (1, 1), (pad_h, pad_w), plain.dilation, plain.stride)


def _enlarged(factor: Any, mode: str, align_corners: Any) -> Reach | str:
    """The Reach of F.interpolate by whole factors, "" for other ones."""
    factors = factor if isinstance(factor, tuple | list) else (factor, factor)
    if len(factors) != 2 or not all(isinstance(f, int | float) and f == int(f) for f in factors):
        return ""
    h, w = (int(f) for f in factors)
    if mode == "nearest":  # i = q // f
        return Reach((h, w), pad=(h - 1, w - 1), up=(h, w))
    if mode == "bilinear" and not align_corners:  # all i with |i - (q + 1/2) / f + 1/2| < 1
        window, pad = (4 * h - 1, 4 * w - 1), (3 * h - 2, 3 * w - 2)
        return Reach(window, (2, 2), pad, up=(2 * h, 2 * w))
    return ""


#: Layers that act on each pixel alone (a normalisation's statistics are not counted).
POINTWISE = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Softmax,
    nn.ChannelShuffle,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.Softshrink,
    nn.Hardshrink,
    nn.Tanhshrink,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.LogSigmoid,
    nn.Threshold,
    nn.Softmax2d,
)
#: Layers that add a border; what a padding mode copies there is not counted.
PADDINGS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
#: Layers whose output has no rows and columns.
WHOLE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Unflatten)
_CONVOLUTIONS = frozenset({F.conv2d, torch.conv2d, corr2d, convolve2d})
_POOLS = frozenset({F.max_pool2d, torch.max_pool2d, F.avg_pool2d})
#: Functions and methods that act on each pixel alone; a trailing _ (in place) is allowed.
_POINTWISE_NAMES = frozenset(
    [
        "abs",
        "add",
        "alpha_dropout",
        "batch_norm",
        "cat",
        "celu",
        "chunk",
        "clamp",
        "clip",
        "clone",
        "concat",
        "contiguous",
        "cos",
        "detach",
        "div",
        "dropout",
        "dropout2d",
        "elu",
        "exp",
        "feature_dropout",
        "float",
        "gelu",
        "getitem",
        "group_norm",
        "half",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "iadd",
        "imul",
        "instance_norm",
        "layer_norm",
        "leaky_relu",
        "log",
        "maximum",
        "minimum",
        "mish",
        "mul",
        "multiply",
        "neg",
        "pow",
        "prelu",
        "relu",
        "relu6",
        "rsqrt",
        "selu",
        "sigmoid",
        "silu",
        "sin",
        "softmax",
        "softplus",
        "split",
        "sqrt",
        "square",
        "stochastic_depth",
        "sub",
        "subtract",
        "tanh",
        "to",
        "truediv",
        "type",
        "where",
    ]
)
_WHOLE_NAMES = frozenset(
    [
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "amax",
        "flatten",
        "mean",
        "reshape",
        "squeeze",
        "sum",
        "view",
    ]
)


def reach_of_module(layer: nn.Module) -> Reach | str:
    """The Reach of a layer, "same" if it acts on each pixel, "whole" if it mixes them, else ""."""
    if isinstance(layer, nn.Conv2d):
        return checked(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, nn.ConvTranspose2d):
        return _transposed(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, nn.MaxPool2d):
        return checked(
            layer.kernel_size, layer.stride or layer.kernel_size, layer.padding, layer.dilation
        )
    if isinstance(layer, nn.AvgPool2d | nn.LPPool2d):
        padding = getattr(layer, "padding", 0)
        return checked(layer.kernel_size, layer.stride or layer.kernel_size, padding)
    if isinstance(layer, nn.Upsample):
        return _enlarged(layer.scale_factor, layer.mode, layer.align_corners)
    if isinstance(layer, nn.PixelShuffle):
        return _enlarged(layer.upscale_factor, "nearest", None)
    if isinstance(layer, nn.PixelUnshuffle):
        return checked(layer.downscale_factor, layer.downscale_factor)
    if isinstance(layer, PADDINGS):
        left, _, top, _ = layer.padding
        return Reach((1, 1), pad=(top, left))
    if isinstance(layer, WHOLE):
        return "whole"
    return "same" if isinstance(layer, POINTWISE) else ""


def reach_of_function(node: fx.Node, root: nn.Module) -> Reach | str:
    """`reach_of_module` for a function or method with its arguments.

    Besides, "none" if its result is no tensor, and "to_last" or "to_first" for a permutation to
    (N, H, W, C) or back.
    """
    given = dict(enumerate(node.args)) | node.kwargs

    def argument(position: int, name: str, default: Any) -> Any:
        return given.get(name, given.get(position, default))

    if node.target in _CONVOLUTIONS:
        weight = argument(1, "weight", None)
        if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
            return ""
        window = operator.attrgetter(str(weight.target))(root).shape[-2:]
        numbers = (argument(3, "stride", 1), argument(4, "padding", 0), argument(5, "dilation", 1))
        return checked(tuple(window), *numbers)
    if node.target in _POOLS:
        window = argument(1, "kernel_size", None)
        stride = argument(2, "stride", None) or window
        dilation = 1 if node.target is F.avg_pool2d else argument(4, "dilation", 1)
        return checked(window, stride, argument(3, "padding", 0), dilation)
    if node.target is F.interpolate:
        options = (argument(3, "mode", "nearest"), argument(4, "align_corners", None))
        return _enlarged(argument(2, "scale_factor", None), *options)
    if node.target in (F.pixel_shuffle, torch.pixel_shuffle):
        return _enlarged(argument(1, "upscale_factor", None), "nearest", None)
    name = kind_of(node, None).rstrip("_")
    if name in ("size", "getattr", "dim"):
        return "none"
    if name == "permute":
        order = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return {(0, 2, 3, 1): "to_last", (0, 3, 1, 2): "to_first"}.get(tuple(order), "")
    if name == "getitem" and not _keeps_pixels(given.get(1)):
        return ""
    if name == "mean" and argument(1, "dim", None) in (1, (1,), [1]):
        return "same"
    if name in _WHOLE_NAMES:
        return "whole"
    return "same" if name in _POINTWISE_NAMES else ""


def _keeps_pixels(index: Any) -> bool:
    """Whether x[index] indexes only the samples and channels of (N, C, H, W)."""
    first = index if isinstance(index, tuple) else (index,)
    return Ellipsis not in first and all(part == slice(None) for part in first[2:])


def kind_of(node: fx.Node, layer: nn.Module | None) -> str:
    """The name of a layer's class, or of a function or method."""
    if layer is not None:
        return type(layer).__name__
    return str(getattr(node.target, "__name__", node.target))
