"""The region of the input that one output element of a module, or of a stack of layers, sees."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

from torch import fx, nn

from ..ops import ArgumentError, ArgumentTypeError
from ..ops.arguments import Pair
from .reach import Reach, checked, kind_of, reach_of_function, reach_of_module

#: The rows (or columns) of a map: the first and last input that each of a period of them sees.
_Spans: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ReceptiveField:
    """What one output element sees of the input. `str()` gives a table with a line per layer.

    Attributes:
        size: (h, w) extent of the region, in input elements. Where a layer enlarges its input,
            outputs see regions of different extents: the largest.
        step: (h, w) distance in the input between neighbouring outputs, integers or Fractions.
        start: (h, w) input coordinate where the region of output (0, 0) begins; negative in the
            padding.
        layers: name, kind and field of every layer with a window, in the order they run.
    """

    size: Pair = (1, 1)
    step: tuple[int | Fraction, int | Fraction] = (1, 1)
    start: Pair = (0, 0)
    layers: tuple[tuple[str, str, ReceptiveField], ...] = field(
        default=(), compare=False, repr=False
    )

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
        layers: a module or a sequence of layers. Supported are convolutions, transposed ones too,
            max and average pooling, padding, nearest and bilinear enlargement by whole factors and
            everything that acts on single pixels. A layer may also be given as its window, an int
            or (h, w), or as a mapping with "window" and, optionally, "stride", "padding" and
            "dilation".

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
    seen = _Map()
    rows: list[tuple[str, str, ReceptiveField]] = []
    for name, kind, layer in _flatten(layers, ""):
        if isinstance(layer, Reach):
            seen = seen.through(layer)
            rows.append((name, kind, seen.field()))
        else:
            seen, inside = _through_module(layer, seen)
            rows += inside or [(name, kind, seen.field())]
    return seen.field(tuple(rows))


@dataclass(frozen=True)
class _Map:
    """A feature map: what its rows and columns see of the input.

    Row q + len(spans) sees what row q does, moved by step * len(spans) rows of the input.
    """

    step: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    spans: tuple[_Spans, _Spans] = (((0, 0),), ((0, 0),))

    def at(self, axis: int, q: int) -> tuple[int, int]:
        """The first and the last row of the input that row q sees."""
        spans = self.spans[axis]
        periods, place = divmod(q, len(spans))
        moved = int(periods * len(spans) * self.step[axis])
        return spans[place][0] + moved, spans[place][1] + moved

    def through(self, reach: Reach) -> _Map:
        """The map after one more layer."""
        steps, spans = [], []
        for axis in range(2):
            stride, up = reach.stride[axis], reach.up[axis]
            rows = len(self.spans[axis]) * up  # so many outputs move by whole periods of this map
            period = rows // math.gcd(rows, stride)
            read = (reach.read(axis, q) for q in range(period))
            spans.append(tuple((self.at(axis, i)[0], self.at(axis, j)[1]) for i, j in read))
            steps.append(self.step[axis] * Fraction(stride, up))
        return _Map((steps[0], steps[1]), (spans[0], spans[1]))

    def field(self, layers: tuple[tuple[str, str, ReceptiveField], ...] = ()) -> ReceptiveField:
        """As it is shown."""
        h, w = (max(last - first + 1 for first, last in spans) for spans in self.spans)
        step_h, step_w = (int(s) if s.denominator == 1 else s for s in self.step)
        start = (self.spans[0][0][0], self.spans[1][0][0])
        return ReceptiveField((h, w), (step_h, step_w), start, layers)


#: What a traced value sees; the name of the layer that mixed the whole image; None for no image.
_Seen: TypeAlias = "_Map | str | None"


def _flatten(layer: Any, name: str) -> Iterator[tuple[str, str, Any]]:
    """Name, kind and module, or Reach, of every layer of a stack."""
    if isinstance(layer, nn.Module) and not isinstance(layer, nn.ModuleList):
        yield name or "0", type(layer).__name__, layer
    elif isinstance(layer, Mapping):
        unknown = set(layer) - {"window", "stride", "padding", "dilation"}
        if unknown or "window" not in layer:
            raise ArgumentError(
                "a layer is a mapping with window, stride, padding, dilation, got "
                f"{sorted(map(str, layer))}"
            )
        yield name or "0", "window", checked(**layer)
    elif isinstance(layer, int) or (
        isinstance(layer, tuple) and len(layer) == 2 and all(isinstance(n, int) for n in layer)
    ):
        yield name or "0", "window", checked(layer)
    elif isinstance(layer, Iterable) and not isinstance(layer, str):
        for index, inner in enumerate(layer):
            yield from _flatten(inner, f"{name}.{index}" if name else str(index))
    else:
        raise ArgumentTypeError(
            f"a layer must be a module, a window or a mapping, got {type(layer).__name__}"
        )


class _Tracer(fx.Tracer):
    """Traces into modules other than the layers that reach_of_module knows."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        return ours or super().is_leaf_module(module, name)


def _through_module(
    module: nn.Module, image: _Map
) -> tuple[_Map, list[tuple[str, str, ReceptiveField]]]:
    """The last map of a module that is given `image`, and a row for each layer with a window."""
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
    last = image  # the last map before all of it was mixed
    for node in graph.nodes:
        inputs = [seen[other] for other in node.all_input_nodes]
        if node.op == "placeholder":
            seen[node] = image
        elif node.op == "get_attr":
            seen[node] = None
        elif node.op == "output":
            result = _meet(inputs, "the output")
            last = result if isinstance(result, _Map) else last
        else:
            before = _meet(inputs, node.name)
            layer = root.get_submodule(node.target) if node.op == "call_module" else None
            step = reach_of_module(layer) if layer is not None else reach_of_function(node, root)
            kind = kind_of(node, layer)
            permuted = any(other in channels_last for other in node.all_input_nodes)
            if kind in ("Linear", "linear") and permuted:
                step = "same"
            if (permuted or step == "to_last") and step not in ("to_first", "none", "whole"):
                channels_last.add(node)
                step = "" if isinstance(step, Reach) else step
            seen[node] = _step(before, step, kind)
            if isinstance(before, _Map):
                last = before
            after = seen[node]
            if isinstance(step, Reach) and isinstance(after, _Map):
                name = node.target if layer is not None else node.name
                rows.append((str(name), kind, after.field()))
                last = after
    return last, rows


def _defaults(root: nn.Module) -> dict[str, Any]:
    """None for each optional argument of forward, so that it is traced with one image only."""
    parameters = list(inspect.signature(root.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _meet(inputs: list[_Seen], where: str) -> _Seen:
    """The map whose elements see what those of any operand see."""
    maps = [seen for seen in inputs if isinstance(seen, _Map)]
    if not maps:
        return next((seen for seen in inputs if seen is not None), None)
    if len({seen.step for seen in maps}) > 1:
        steps = " and ".join(sorted({"({}, {})".format(*seen.step) for seen in maps}))
        raise ArgumentError(f"maps of different steps, {steps}, meet in {where}")
    spans = []
    for axis in range(2):
        period = math.lcm(*(len(seen.spans[axis]) for seen in maps))
        rows = ([seen.at(axis, q) for seen in maps] for q in range(period))
        spans.append(tuple((min(row)[0], max(last for _, last in row)) for row in rows))
    return _Map(maps[0].step, (spans[0], spans[1]))


def _step(before: _Seen, step: Reach | str, kind: str) -> _Seen:
    """The field of the result of a layer or function.

    Args:
        before: the fields of its operands.
        step: the layer's Reach, or a word as from `reach_of_function`.
        kind: the layer's name.
    """
    if step == "none":
        return None
    if isinstance(step, Reach) and isinstance(before, _Map):
        return before.through(step)
    if isinstance(before, _Map) and step == "":
        raise ArgumentError(
            f"the receptive field of {kind} is not known: expected convolutions, pooling, "
            "enlargement by whole factors, and what works on single pixels"
        )
    if isinstance(step, Reach) and not (before and step.window == (1, 1)):
        raise ArgumentError(f"{kind} takes what {before or 'no image'} gives, which is no map")
    return kind if step == "whole" and isinstance(before, _Map) else before
