"""The region of the input that one output element of a module, or of a stack of layers, sees."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..ops import ArgumentError, ArgumentTypeError, as_padding, as_pair
from ..ops.arguments import Pair
from .functional import convolve2d, corr2d

#: Layers that act on each pixel alone (a normalisation's statistics are not counted).
_POINTWISE = (
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
#: Layers whose output has no rows and columns.
_WHOLE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Unflatten)
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

#: The field of a tensor; the name of the layer that mixed the whole image; None for no image.
_Seen: TypeAlias = "ReceptiveField | str | None"


@dataclass(frozen=True)
class ReceptiveField:
    """What one output element sees of the input. `str()` gives a table with a line per layer.

    Attributes:
        size: (h, w) extent of the region, in input elements.
        step: (h, w) distance in the input between neighbouring outputs.
        start: (h, w) input coordinate where the region of output (0, 0) begins; negative in the
            padding.
        layers: name, kind and field of every layer with a window, in the order they run.
    """

    size: Pair = (1, 1)
    step: Pair = (1, 1)
    start: Pair = (0, 0)
    layers: tuple[tuple[str, str, ReceptiveField], ...] = field(
        default=(), compare=False, repr=False
    )

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

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "kind", "size", "step", "start")]
        for name, kind, seen in (*self.layers, ("output", "", self)):
            size, step = (f"{h} x {w}" for h, w in (seen.size, seen.step))
            rows.append((name, kind, size, step, "{}, {}".format(*seen.start)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def receptive_field(layers: Any) -> ReceptiveField:
    """The receptive field of a module, or of a stack of layers, first layer first.

    A module is traced by torch.fx, so branches and shortcuts count: where they meet, the result is
    the union of their regions. Where the whole image is pooled or flattened, the result is that of
    the last feature map before. Normalisation statistics and factors computed from the whole image
    (squeeze and excitation) are not counted.

    Args:
        layers: a module or a sequence of layers. Supported modules are convolutions, max and
            average pooling and everything that acts on single pixels. A layer may also be given as
            its window, an int or (h, w), or as a mapping with "window" and, optionally, "stride",
            "padding" and "dilation".

    Returns:
        Size, step and start of what one output element sees, and the same after every layer.

    Raises:
        ArgumentError, ArgumentTypeError: a layer that is not understood, or a module whose forward
            depends on values.

    Example:
        >>> receptive_field([2, 2]).size
        (3, 3)
        >>> print(receptive_field(nn.Sequential(nn.Conv2d(1, 8, 7, stride=2), nn.MaxPool2d(3, 2))))
        layer   kind       size     step   start
        0       Conv2d     7 x 7    2 x 2  0, 0
        1       MaxPool2d  11 x 11  4 x 4  0, 0
        output             11 x 11  4 x 4  0, 0
    """
    seen, rows = ReceptiveField(), []
    for name, kind, step in _flatten(layers, ""):
        inside = step if isinstance(step, ReceptiveField) else ReceptiveField().then(*step)
        rows += [(n, k, _after(seen, one)) for n, k, one in inside.layers] or [
            (name, kind, _after(seen, inside))
        ]
        seen = _after(seen, inside)
    return ReceptiveField(seen.size, seen.step, seen.start, tuple(rows))


def _after(outer: ReceptiveField, inner: ReceptiveField) -> ReceptiveField:
    """The field of two stacks, one after the other."""
    return outer.then(inner.size, inner.step, (-inner.start[0], -inner.start[1]), (1, 1))


def _flatten(layer: Any, name: str) -> Iterator[tuple[str, str, Any]]:
    """Name, kind and field, or (window, stride, pad, dilation), of every layer inside."""
    if isinstance(layer, nn.Module) and not isinstance(layer, nn.ModuleList):
        yield name or "0", type(layer).__name__, _field_of_module(layer)
    elif isinstance(layer, Mapping):
        unknown = set(layer) - {"window", "stride", "padding", "dilation"}
        if unknown or "window" not in layer:
            raise ArgumentError(
                "a layer is a mapping with window, stride, padding, dilation, got "
                f"{sorted(map(str, layer))}"
            )
        yield name or "0", "window", _checked(**layer)
    elif isinstance(layer, int) or (
        isinstance(layer, tuple) and len(layer) == 2 and all(isinstance(n, int) for n in layer)
    ):
        yield name or "0", "window", _checked(layer)
    elif isinstance(layer, Iterable) and not isinstance(layer, str):
        for index, inner in enumerate(layer):
            yield from _flatten(inner, f"{name}.{index}" if name else str(index))
    else:
        raise ArgumentTypeError(
            f"a layer must be a module, a window or a mapping, got {type(layer).__name__}"
        )


class _Tracer(fx.Tracer):
    """Traces into modules other than the layers that _after_module knows."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        return ours or super().is_leaf_module(module, name)


def _field_of_module(module: nn.Module) -> ReceptiveField:
    root = nn.Sequential(module) if _Tracer().is_leaf_module(module, "") else module
    try:
        graph = _Tracer().trace(root, _defaults(root))
    except Exception as error:  # a forward may do anything with a traced value
        raise ArgumentError(
            f"{type(module).__name__} cannot be traced by torch.fx ({error}): give its layers as a "
            "list"
        ) from error
    seen: dict[fx.Node, _Seen] = {}
    channels_last: set[fx.Node] = set()  # maps whose dimensions were permuted to (N, H, W, C)
    rows: list[tuple[str, str, ReceptiveField]] = []
    last = ReceptiveField()  # the last map before all of it was mixed
    for node in graph.nodes:
        inputs = [seen[other] for other in node.all_input_nodes]
        if node.op == "placeholder":
            seen[node] = ReceptiveField()
        elif node.op == "get_attr":
            seen[node] = None
        elif node.op == "output":
            result = _meet(inputs, "the output")
            last = result if isinstance(result, ReceptiveField) else last
        else:
            before = _meet(inputs, node.name)
            layer = root.get_submodule(node.target) if node.op == "call_module" else None
            step = _step_of_module(layer) if layer is not None else _step_of_function(node, root)
            kind = _kind(node, layer)
            permuted = any(other in channels_last for other in node.all_input_nodes)
            if kind in ("Linear", "linear") and permuted:
                step = "same"
            if (permuted or step == "to_last") and step not in ("to_first", "none", "whole"):
                channels_last.add(node)
                step = "" if isinstance(step, tuple) else step
            seen[node] = _step(before, step, kind)
            if isinstance(before, ReceptiveField):
                last = before
            after = seen[node]
            if isinstance(step, tuple) and isinstance(after, ReceptiveField):
                name = node.target if layer is not None else node.name
                rows.append((str(name), kind, after))
                last = after
    return ReceptiveField(last.size, last.step, last.start, tuple(rows))


def _defaults(root: nn.Module) -> dict[str, Any]:
    """None for each optional argument of forward, so that it is traced with one image only."""
    parameters = list(inspect.signature(root.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _kind(node: fx.Node, layer: nn.Module | None) -> str:
    if layer is not None:
        return type(layer).__name__
    return str(getattr(node.target, "__name__", node.target))


def _meet(inputs: list[_Seen], where: str) -> _Seen:
    """The smallest region that holds the regions of all operands."""
    maps = [seen for seen in inputs if isinstance(seen, ReceptiveField)]
    if not maps:
        return next((seen for seen in inputs if seen is not None), None)
    if len({seen.step for seen in maps}) > 1:
        steps = " and ".join(sorted({str(seen.step) for seen in maps}))
        raise ArgumentError(f"maps of different steps, {steps}, meet in {where}")
    starts, sizes = [], []
    for axis in range(2):
        first = min(seen.start[axis] for seen in maps)
        starts.append(first)
        sizes.append(max(seen.start[axis] + seen.size[axis] for seen in maps) - first)
    return ReceptiveField((sizes[0], sizes[1]), maps[0].step, (starts[0], starts[1]))


def _step(before: _Seen, step: Any, kind: str) -> _Seen:
    """The field of the result of a layer or function.

    Args:
        before: the fields of its operands.
        step: (window, stride, pad, dilation), or a word: "same" or one of the two permutations,
            "whole" if it mixes the whole image, "none" if the result is no tensor, "" if unknown.
        kind: the layer's name.
    """
    if step == "none":
        return None
    if isinstance(step, tuple) and isinstance(before, ReceptiveField):
        return before.then(*step)
    if isinstance(before, ReceptiveField) and step == "":
        raise ArgumentError(
            f"the receptive field of {kind} is not known: expected convolutions, pooling, and what "
            "works on single pixels"
        )
    if isinstance(step, tuple) and not (before and step[0] == (1, 1)):
        raise ArgumentError(f"{kind} takes what {before or 'no image'} gives, which is no map")
    return kind if step == "whole" and isinstance(before, ReceptiveField) else before


def _step_of_module(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Conv2d):
        return _checked(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, nn.MaxPool2d):
        return _checked(
            layer.kernel_size, layer.stride or layer.kernel_size, layer.padding, layer.dilation
        )
    if isinstance(layer, nn.AvgPool2d | nn.LPPool2d):
        padding = getattr(layer, "padding", 0)
        return _checked(layer.kernel_size, layer.stride or layer.kernel_size, padding)
    if isinstance(layer, _WHOLE):
        return "whole"
    return "same" if isinstance(layer, _POINTWISE) else ""


def _step_of_function(node: fx.Node, root: nn.Module) -> Any:
    """`_step_of_module` for a function or method with its arguments."""
    given = dict(enumerate(node.args)) | node.kwargs

    def argument(position: int, name: str, default: Any) -> Any:
        return given.get(name, given.get(position, default))

    if node.target in _CONVOLUTIONS:
        weight = argument(1, "weight", None)
        if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
            return ""
        window = operator.attrgetter(str(weight.target))(root).shape[-2:]
        numbers = (argument(3, "stride", 1), argument(4, "padding", 0), argument(5, "dilation", 1))
        return _checked(tuple(window), *numbers)
    if node.target in _POOLS:
        window = argument(1, "kernel_size", None)
        stride = argument(2, "stride", None) or window
        dilation = 1 if node.target is F.avg_pool2d else argument(4, "dilation", 1)
        return _checked(window, stride, argument(3, "padding", 0), dilation)
    name = _kind(node, None).rstrip("_")
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


def _checked(window: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Any:
    """(window, stride, pad, dilation) as pairs, pad at the top and at the left."""
    pairs = {"window": window, "stride": stride, "dilation": dilation}
    for name, value in pairs.items():
        pairs[name] = as_pair(name, value)
        if min(pairs[name]) < 1:
            raise ArgumentError(f"{name} must be positive, got {value!r}")
    window, stride, dilation = pairs.values()
    (top, _), (left, _) = as_padding(padding, window, stride, dilation)
    return window, stride, (top, left), dilation
