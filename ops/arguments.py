"""Checks and normalises the arguments that users give: numbers, pairs, padding, tensors.

geometry.py checks that shapes fit together.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch

from .errors import ArgumentError, ArgumentTypeError, shown

Pair: TypeAlias = tuple[int, int]
#: What callers may give where (h, w) is meant.
PairLike: TypeAlias = int | tuple[int, int] | list[int]
#: (h, w) in any form, or ((top, bottom), (left, right)).
SidesLike: TypeAlias = PairLike | tuple[tuple[int, int], tuple[int, int]] | list[list[int]]
PaddingLike: TypeAlias = SidesLike | Literal["same", "valid"]
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
Activation: TypeAlias = Literal["none", "relu", "relu6", "gelu", "silu"]
Precision: TypeAlias = Literal["ieee", "tf32", "tf32x3"]

FLOAT_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_STRIDED = torch.strided
PRECISIONS: tuple[str, ...] = get_args(Precision)
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


def check_tensors(bias: Any = None, images: tuple[str, ...] = (), **tensors: Any) -> None:
    """Raises unless all are dense tensors of one float dtype on one device.

    Args:
        bias: a tensor like the others, or None.
        images: names of tensors that may be uint8 whatever the dtype of the others.
        **tensors: by their argument names.

    Raises:
        ArgumentTypeError: names the argument, what was expected and what came.
    """
    given = tensors if bias is None else {**tensors, "bias": bias}
    if are_alike(*given.values()):
        return
    for name, tensor in given.items():
        _check_dense(name, tensor)
        if tensor.dtype == torch.uint8 and name in images:
            continue
        if tensor.dtype not in FLOAT_DTYPES:
            also = ", or a uint8 image" if name in images else ""
            raise ArgumentTypeError(
                f"{name} must be float16, bfloat16, float32 or float64{also}, got {tensor.dtype}"
                f" ({_remedy(name, tensor.dtype)})"
            )
    typed = {n: t for n, t in given.items() if not (t.dtype == torch.uint8 and n in images)}
    if len({t.dtype for t in typed.values()}) > 1:
        dtypes = _words(t.dtype for t in typed.values())
        raise ArgumentTypeError(
            f"{_words(typed)} must have the same dtype, got {dtypes} ({_alike(typed, 'dtype')})"
        )
    if len({t.device for t in given.values()}) > 1:
        devices = _words(t.device for t in given.values())
        raise ArgumentTypeError(
            f"{_words(given)} must be on the same device, got {devices} ({_alike(given, 'device')})"
        )


def _remedy(name: str, dtype: torch.dtype) -> str:
    """How to convert a tensor of an unsupported dtype."""
    if dtype.is_complex:
        return f"correlate {name}.real and {name}.imag one by one"
    return f"convert it, for example by {name}.float()"


def _alike(tensors: dict[str, torch.Tensor], what: str) -> str:
    """How to give the first tensor that differs the `what` (dtype or device) of the weight."""
    like = "weight" if "weight" in tensors else next(iter(tensors))
    wanted = getattr(tensors[like], what)
    other = next(name for name, t in tensors.items() if getattr(t, what) != wanted)
    return f"convert one, for example by {other}.to({like}.{what})"


def are_alike(*tensors: Any) -> bool:
    """Whether these are plain dense tensors of one float dtype on one device: the fast check."""
    dtype = device = None
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return False
        if tensor.layout is not _STRIDED or tensor.is_nested:
            return False
        if dtype is None:
            dtype, device = tensor.dtype, tensor.device
        elif tensor.dtype is not dtype or tensor.device != device:
            return False
    return dtype in FLOAT_DTYPES


def _check_dense(name: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        kind = type(tensor)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        remedy = f" (torch.from_numpy({name}) is one)" if module == "numpy." else ""
        raise ArgumentTypeError(
            f"{name} must be a torch.Tensor, got {module}{kind.__qualname__}{remedy}"
        )
    if tensor.is_nested or tensor.layout != torch.strided:
        layout = "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
        raise ArgumentTypeError(f"{name} must be a dense (strided) tensor, got {layout}")


def check_precision(precision: Any) -> None:
    """Raises ArgumentError unless `precision` is one of PRECISIONS or None."""
    if precision is not None:
        _check_choice("precision", precision, (*PRECISIONS, None))


def check_padding_mode(padding_mode: Any) -> None:
    """Raises ArgumentError unless `padding_mode` is one of PADDING_MODES."""
    _check_choice("padding_mode", padding_mode, PADDING_MODES)


def check_activation(activation: Any) -> None:
    """Raises ArgumentError unless `activation` is one of ACTIVATIONS or None, which is "none"."""
    if activation is not None:
        _check_choice("activation", activation, (*ACTIVATIONS, None))


def _check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        expected = _words(map(repr, choices), "or")
        raise ArgumentError(f"{name} must be {expected}, got {shown(value)}")


def _words(items: Any, conjunction: str = "and") -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def as_integer(name: str, value: Any) -> int:
    """`value` as an int; NumPy integers and one-element integer tensors count, bool does not."""
    if type(value) is int:  # fast path, as in the functions below
        return value
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ArgumentTypeError(
        f"{name} must be an integer, got {shown(value)} ({type(value).__name__})"
    )


def as_pair(name: str, value: Any) -> Pair:
    """An int or a sequence of one or two ints as (h, w), the forms that PyTorch accepts."""
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    items = _items(value)
    if items is None:
        number = as_integer(name, value)
        return number, number
    if len(items) not in (1, 2):
        raise ArgumentError(f"{name} must be one integer or two (h, w), got {shown(value)}")
    numbers = [as_integer(name, item) for item in items]
    return numbers[0], numbers[-1]


def as_shape(name: str, value: Any) -> tuple[int, ...]:
    """A sequence of integers as a tuple."""
    items = _items(value)
    if items is None:
        raise ArgumentTypeError(f"{name} must be a sequence of integers, got {shown(value)}")
    return tuple(as_integer(name, item) for item in items)


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """A tensor's sizes as ints; under torch.jit.trace, `tensor.shape` would hold tensors."""
    if torch.compiler.is_compiling() or not torch._C._get_tracing_state():
        return tensor.shape
    recording = torch._C._get_tracing_state()
    # PyTorch has no annotation of this function.
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return tuple(tensor.shape)
    finally:
        torch._C._set_tracing_state(recording)  # type: ignore[attr-defined]


def as_padding(
    value: Any, window: Sequence[int] = (1, 1), stride: Pair = (1, 1), dilation: Pair = (1, 1)
) -> tuple[Pair, Pair]:
    """Any accepted padding as ((top, bottom), (left, right)).

    Args:
        value: an int, (h, w), ((top, bottom), (left, right)), "valid" or "same". As in PyTorch,
            "same" puts the odd element of an even window at the bottom and at the right.
        window: (R, S), needed by "same".
        stride: (h, w); "same" needs (1, 1).
        dilation: (h, w), needed by "same".
    """
    if type(value) is int and value >= 0:
        return (value, value), (value, value)
    if type(value) is tuple and len(value) == 2:
        h, w = value
        if type(h) is type(w) is int and h >= 0 and w >= 0:
            return (h, h), (w, w)
    if isinstance(value, str):
        if value == "valid":
            return (0, 0), (0, 0)
        if value != "same":
            raise ArgumentError(f"padding must be numbers, 'same' or 'valid', got {shown(value)}")
        if tuple(stride) != (1, 1):
            raise ArgumentError(f"padding='same' needs stride 1, got {shown(stride)}")
        total_h, total_w = (d * (k - 1) for k, d in zip(window, dilation, strict=True))
        return (total_h // 2, total_h - total_h // 2), (total_w // 2, total_w - total_w // 2)
    items = _items(value)
    if items is not None and len(items) == 2 and any(_items(item) is not None for item in items):
        sides = [_items(item) for item in items]
        if any(side is None or len(side) != 2 for side in sides):
            raise ArgumentError(
                f"padding must be ((top, bottom), (left, right)), got {shown(value)}"
            )
        top, bottom, left, right = (as_integer("padding", i) for side in sides for i in side or ())
    else:
        top, left = as_pair("padding", value)
        bottom, right = top, left
    if min(top, bottom, left, right) < 0:
        raise ArgumentError(f"padding must not be negative, got {shown(value)}")
    return (top, bottom), (left, right)


def _items(value: Any) -> Sequence[Any] | None:
    """The elements of a sequence (list, tuple, 1-D array or tensor), None for anything else."""
    if isinstance(value, str) or getattr(value, "ndim", 1) == 0:
        return None
    return list(value) if isinstance(value, Sequence) or hasattr(value, "ndim") else None


def check_sides(name: str, extent: int, sides: Pair, mode: str) -> None:
    """Raises ArgumentError if the image is too small for this padding mode along one axis."""
    if mode == "zeros":
        return
    # reflect does not repeat the border pixel; circular shows at most one whole image.
    limit = {"reflect": extent - 1, "circular": extent}.get(mode, max(sides))
    if max(sides) > limit:
        raise ArgumentError(
            f"padding_mode={mode!r} can pad a {name} of {extent} by at most {limit}, got {sides}"
        )
    if min(sides) < 0:
        raise ArgumentError(f"padding_mode={mode!r} needs padding >= 0, got {sides}")
