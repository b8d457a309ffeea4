"""Whether tensors can be used at all: kind, layout, dtype and device. Shapes are Geometry's."""

from __future__ import annotations

from typing import Any

import torch

from .errors import ArgumentError, ArgumentTypeError, shown

FLOAT_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_STRIDED = torch.strided
PRECISIONS = ("ieee", "tf32", "tf32x3")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

ACTIVATIONS = ("none", "relu", "relu6", "gelu", "silu")


def check_tensors(bias: Any = None, images: tuple[str, ...] = (), **tensors: Any) -> None:
    """Raises unless all are dense tensors of one float dtype on one device.

    Args:
        bias: the only one that may be None.
        images: names of tensors that may be uint8 whatever the dtype of the others.
        **tensors: by the name that the user gave them.

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
            )
    typed = {n: t for n, t in given.items() if not (t.dtype == torch.uint8 and n in images)}
    if len({t.dtype for t in typed.values()}) > 1:
        dtypes = _words(t.dtype for t in typed.values())
        raise ArgumentTypeError(f"{_words(typed)} must have the same dtype, got {dtypes}")
    if len({t.device for t in given.values()}) > 1:
        devices = _words(t.device for t in given.values())
        raise ArgumentTypeError(f"{_words(given)} must be on the same device, got {devices}")


def are_alike(*tensors: Any) -> bool:
    """Whether these are plain dense tensors of one float dtype on one device: nearly always."""
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
        raise ArgumentTypeError(f"{name} must be a torch.Tensor, got {module}{kind.__qualname__}")
    if tensor.is_nested or tensor.layout != torch.strided:
        layout = "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
        raise ArgumentTypeError(f"{name} must be a dense (strided) tensor, got {layout}")


def check_precision(precision: Any) -> None:
    """Raises ArgumentError unless `precision` is one of PRECISIONS or None."""
    _check_choice("precision", precision, (*PRECISIONS, None))


def check_padding_mode(padding_mode: Any) -> None:
    """Raises ArgumentError unless `padding_mode` is one of PADDING_MODES."""
    _check_choice("padding_mode", padding_mode, PADDING_MODES)


def check_activation(activation: Any) -> None:
    """Raises ArgumentError unless `activation` is one of ACTIVATIONS or None, which is "none"."""
    _check_choice("activation", activation, (*ACTIVATIONS, None))


def _check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        expected = _words(map(repr, choices), "or")
        raise ArgumentError(f"{name} must be {expected}, got {shown(value)}")


def _words(items: Any, conjunction: str = "and") -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} {conjunction} {last}" if first else last
