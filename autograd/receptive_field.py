"""How much of the input one output element of a stack of layers sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..ops import ArgumentError, ArgumentTypeError, as_padding, as_pair
from ..ops.geometry import Pair

#: Layers that look at one pixel at a time.
_POINTWISE = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.modules.batchnorm._BatchNorm,
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


@dataclass(frozen=True)
class ReceptiveField:
    """What one output element sees of the input.

    Attributes:
        size: (h, w) extent of the region, in input elements.
        step: (h, w) distance in the input between neighbouring outputs.
        start: (h, w) input coordinate where the region of output (0, 0) begins; negative in the
            padding.
    """

    size: Pair = (1, 1)
    step: Pair = (1, 1)
    start: Pair = (0, 0)

    def then(self, window: Pair, stride: Pair, pad: Pair, dilation: Pair) -> ReceptiveField:
        """The field after one more layer, whose padding begins with `pad` (top, left).

        size' = size + (window - 1) * dilation * step, step' = step * stride,
        start' = start - pad * step (Dumoulin and Visin 2016, section 2).
        """
        axes = zip(self.size, self.step, self.start, window, stride, pad, dilation, strict=True)
        size, step, start = zip(
            *((n + (k - 1) * d * j, j * s, b - p * j) for n, j, b, k, s, p, d in axes), strict=True
        )
        return ReceptiveField(size, step, start)


def receptive_field(layers: Any) -> ReceptiveField:
    """The receptive field of a stack of layers, first layer first.

    Args:
        layers: a module or a sequence. Of modules, convolutions, max and average pooling and
            layers that work on single pixels are understood, and containers whose children run one
            after the other (nn.Sequential). A layer can also be its window, an int or (h, w), or a
            mapping with "window" and, optionally, "stride", "padding" and "dilation".

    Returns:
        Size, step and start of what one output element sees.

    Raises:
        ArgumentError, ArgumentTypeError: a layer that is not understood.

    Example:
        >>> receptive_field([2, 2]).size
        (3, 3)
        >>> receptive_field(nn.Sequential(nn.Conv2d(1, 8, 7, stride=2), nn.MaxPool2d(3, 2))).size
        (11, 11)
    """
    field = ReceptiveField()
    for window, stride, padding, dilation in _flatten(layers):
        (top, _), (left, _) = as_padding(padding, window, stride, dilation)
        field = field.then(window, stride, (top, left), dilation)
    return field


def _flatten(layer: Any) -> Iterable[tuple[Pair, Pair, Any, Pair]]:
    """(window, stride, padding, dilation) of every layer inside that has a window."""
    if isinstance(layer, nn.Module):
        yield from _module(layer)
    elif isinstance(layer, Mapping):
        unknown = set(layer) - {"window", "stride", "padding", "dilation"}
        if unknown or "window" not in layer:
            raise ArgumentError(
                "a layer is a mapping with window, stride, padding, dilation, got "
                f"{sorted(map(str, layer))}"
            )
        yield _checked(
            layer["window"],
            layer.get("stride", 1),
            layer.get("padding", 0),
            layer.get("dilation", 1),
        )
    elif isinstance(layer, int) or (
        isinstance(layer, tuple) and len(layer) == 2 and all(isinstance(n, int) for n in layer)
    ):
        yield _checked(layer)
    elif isinstance(layer, Iterable) and not isinstance(layer, str):
        for inner in layer:
            yield from _flatten(inner)
    else:
        raise ArgumentTypeError(
            f"a layer must be a module, a window or a mapping, got {type(layer).__name__}"
        )


def _module(module: nn.Module) -> Iterable[tuple[Pair, Pair, Any, Pair]]:
    if isinstance(module, nn.Conv2d | nn.MaxPool2d):
        yield _checked(module.kernel_size, module.stride, module.padding, module.dilation)
    elif isinstance(module, nn.AvgPool2d | nn.LPPool2d):
        padding = getattr(module, "padding", 0)
        yield _checked(module.kernel_size, module.stride or module.kernel_size, padding)
    elif isinstance(module, nn.Sequential | nn.ModuleList):
        for inner in module:
            yield from _module(inner)
    elif not isinstance(module, _POINTWISE):
        raise ArgumentError(
            f"the receptive field of {type(module).__name__} is not known: expected convolutions, "
            "pooling, layers on single pixels and nn.Sequential"
        )


def _checked(
    window: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> tuple[Pair, Pair, Any, Pair]:
    pairs = {"window": window, "stride": stride, "dilation": dilation}
    for name, value in pairs.items():
        pairs[name] = as_pair(name, value)
        if min(pairs[name]) < 1:
            raise ArgumentError(f"{name} must be positive, got {value!r}")
    return pairs["window"], pairs["stride"], padding, pairs["dilation"]
