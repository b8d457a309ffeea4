"""PyTorch's layers inside a model to ours, and back, in place.

A layer is converted by giving the same object another class, as PyTorch itself does with lazy and
parametrized layers. So nothing else changes: parameters and buffers, the optimizer's references,
hooks, pruning masks, parametrizations, training mode and every place the layer is used from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from ..ops import ArgumentError, ArgumentTypeError, as_padding, as_pair, shown
from ..ops.arguments import FLOAT_DTYPES
from .modules import Conv2D, ConvTranspose2D, LazyConv2D, LazyConvTranspose2D

#: Lazy classes first: they are subclasses of the others.
OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LazyConv2d: LazyConv2D,
    nn.LazyConvTranspose2d: LazyConvTranspose2D,
    nn.Conv2d: Conv2D,
    nn.ConvTranspose2d: ConvTranspose2D,
}
PYTORCHS = {ours: theirs for theirs, ours in OURS.items()}


@dataclass(frozen=True)
class Conversion:
    """What a conversion did; its text is one line, and one more for every layer left alone.

    Attributes:
        converted: names of the layers, as in `model.named_modules()`; "" is the model itself.
        left: name of every layer left as it was, and the reason.
    """

    converted: tuple[str, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        count = len(self.converted)
        lines = [f"{count} of {count + len(self.left)} layers converted"]
        lines += [f"  {name or 'the model'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)

    __repr__ = __str__


def convert(model: nn.Module, where: Callable[[str, nn.Module], bool] | None = None) -> Conversion:
    """Makes every nn.Conv2d, nn.ConvTranspose2d and lazy form of them inside a model ours.

    In place: each layer stays the same object, with its parameters, hooks, parametrizations and
    mode, and runs on our kernels from now on. Layers that are ours already are skipped, so a
    second call changes nothing. A compiled model is compiled again at its next call.

    A layer is converted only where ours provably computes the same. It is left alone if

    - its class overrides `forward` or `_conv_forward`, or these were replaced in PyTorch's own
      classes or on the layer;
    - its padding was changed after construction, which PyTorch ignores in some padding modes;
    - an attribute would mean something else to our layer;
    - it is quantized, complex or TorchScript.

    A subclass stays an instance of its class.

    Args:
        model: any module; it may itself be the layer.
        where: called with the name and the layer; returns False for layers to leave alone.

    Returns:
        The names of the layers converted, and of those left alone with the reasons.

    Raises:
        ArgumentTypeError: model is not a module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> convert(model)
        1 of 1 layers converted
        >>> model[0]
        Conv2D(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    return _exchange(model, where, _reason_to_leave, _our_class)


def convert_back(
    model: nn.Module, where: Callable[[str, nn.Module], bool] | None = None
) -> Conversion:
    """Makes every layer of ours inside a model PyTorch's again: undoes `convert`.

    Layers constructed as ours become PyTorch's too, except for features that PyTorch lacks: the
    textbook's layer without channels, padding that is asymmetric or was changed after construction,
    an activation, a subclass of one of ours.

    Args:
        model, where: as for `convert`.

    Returns:
        As `convert`.

    Raises:
        ArgumentTypeError: model is not a module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), Conv2D(kernel_size=2))
        >>> _ = convert(model)
        >>> convert_back(model)
        1 of 2 layers converted
          1: nn.Conv2d has no layer without channels
        >>> model[0]
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    return _exchange(model, where, _reason_to_keep, _pytorch_class)


def _exchange(
    model: nn.Module,
    where: Callable[[str, nn.Module], bool] | None,
    reason_against: Callable[[Any], str | None],
    counterpart: Callable[[type], type],
) -> Conversion:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {shown(model)}")
    converted, left = [], {}
    for name, layer in _layers(model, ours=counterpart is _pytorch_class):
        reason = reason_against(layer)
        if reason is None and where is not None and not where(name, layer):
            reason = "left out by where"
        if reason is None:
            layer.__class__ = counterpart(type(layer))
            # Dynamo checks a layer's class again only if the layer's __dict__ has changed.
            layer.training = vars(layer).pop("training")
            converted.append(name)
        else:
            left[name] = reason
    return Conversion(tuple(converted), left)


def _layers(model: nn.Module, ours: bool) -> Iterator[tuple[str, nn.Module]]:
    """Each 2-D convolution in the model, once: ours, or PyTorch's."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, (Conv2D, ConvTranspose2D)) == ours and (ours or _is_layer(layer)):
            yield name, layer


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in {cls.__name__ for cls in OURS}
    quantized = _is_quantized(module) and not isinstance(module, nn.Sequential)
    return isinstance(module, tuple(OURS)) or (quantized and _names_a_layer(type(module).__name__))


def _names_a_layer(name: str) -> bool:
    return "Conv" in name and "2d" in name


def _is_quantized(module: nn.Module) -> bool:
    return any(cls.__module__.startswith("torch.ao.nn.") for cls in type(module).__mro__)


def _reason_to_leave(layer: Any) -> str | None:
    """Why one of PyTorch's layers cannot become ours, or None."""
    cls = type(layer)
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is compiled by TorchScript"
    if _is_quantized(layer):
        return f"{cls.__name__} is a layer for quantization"
    replaced = {"forward", "_conv_forward"} & vars(layer).keys()
    if replaced:
        return f"{min(replaced)} is replaced on this very layer"
    if getattr(layer, "activation", None) is not None:
        return f"it has an activation of its own, here {shown(layer.activation)}"
    for form in (cls, getattr(cls, "cls_to_become", None) or cls):
        overrides = _override(form)
        if overrides:
            return overrides
    unclear = _replaced_in_pytorch(cls) or _stale_numbers(layer)
    if unclear:
        return unclear
    for tensor in _operands(layer):
        if type(tensor).__module__.partition(".")[0] != "torch":
            return f"it holds a {type(tensor).__name__}, whose operations may be its own"
        if tensor.dtype not in FLOAT_DTYPES:
            return f"it holds {tensor.dtype}, not float16, bfloat16, float32 or float64"
        if tensor.layout != torch.strided:
            return f"it holds a tensor of layout {tensor.layout}"
    return None


def _override(cls: type) -> str | None:
    base = nn.Conv2d if issubclass(cls, nn.Conv2d) else nn.ConvTranspose2d
    for name in ("forward", "_conv_forward"):
        if getattr(cls, name, None) is not getattr(base, name, None):
            owner = next(owner for owner in cls.__mro__ if name in vars(owner))
            return f"{owner.__name__} overrides {name}"
    return None


def _replaced_in_pytorch(cls: type) -> str | None:
    """The name of a PyTorch function that the layer runs and that was monkeypatched, or None."""
    base = nn.Conv2d if issubclass(cls, nn.Conv2d) else nn.ConvTranspose2d
    for name in ("forward", "_conv_forward"):
        method = getattr(base, name, None)
        if method is not None and not _is_written_in(method, nn.modules.conv.__file__):
            return f"nn.{base.__name__}.{name} has been replaced"
    name = "conv2d" if base is nn.Conv2d else "conv_transpose2d"
    if not isinstance(getattr(F, name), BuiltinFunctionType):
        return f"torch.nn.functional.{name} has been replaced"
    return None


def _is_written_in(function: Any, file: str) -> bool:
    return isinstance(function, FunctionType) and function.__code__.co_filename == file


def _stale_numbers(layer: Any) -> str | None:
    """Why the layer's attributes do not describe what PyTorch's layer computes, or None.

    Unless it pads with zeros, PyTorch's layer pads by a private list made at construction; ours
    reads the attributes at every call.
    """
    weight = layer._parameters.get("weight")
    if weight is None:
        weight = layer._buffers.get("weight")
    known = weight is not None and not nn.parameter.is_lazy(weight)
    window = tuple(weight.shape[-2:]) if known else as_pair("kernel_size", layer.kernel_size)
    try:
        stride, dilation = as_pair("stride", layer.stride), as_pair("dilation", layer.dilation)
        (top, bottom), (left, right) = as_padding(layer.padding, window, stride, dilation)
    except (ArgumentError, ArgumentTypeError) as error:
        return str(error)
    if layer.padding_mode == "zeros":
        return None
    made_with = list(layer._reversed_padding_repeated_twice)
    if made_with == [left, right, top, bottom]:
        return None
    return (
        f"PyTorch's layer pads by {made_with} (left, right, top, bottom), as it was made, and not "
        f"by its padding={layer.padding!r}"
    )


def _operands(layer: nn.Module) -> Iterator[torch.Tensor]:
    """The parameters behind weight and bias, without running a parametrization."""
    yield from layer.parameters()
    yield from (buffer for name, buffer in layer.named_buffers() if name in ("weight", "bias"))


def _reason_to_keep(layer: Any) -> str | None:
    """Why one of our layers cannot become PyTorch's, or None."""
    cls = type(layer)
    written = cls.__bases__[0] if _is_parametrized(cls) else cls
    if written not in PYTORCHS and "_pytorch_class" not in vars(written):
        return f"{written.__name__} is written on tricorr's layer"
    if getattr(layer, "_every_plane", False):
        return "nn.Conv2d has no layer without channels"
    if getattr(layer, "activation", None) not in (None, "none"):
        return f"PyTorch's layer has no activation, here {layer.activation!r}"
    if isinstance(layer.padding, tuple) and isinstance(layer.padding[0], tuple):
        return f"PyTorch's layer has no padding by side, here {layer.padding}"
    return _stale_numbers(layer)


def _our_class(cls: type) -> type:
    if _is_parametrized(cls):
        return _on_another_base(cls, _our_class(cls.__bases__[0]))
    return OURS.get(cls) or _mixed(cls)


def _pytorch_class(cls: type) -> type:
    if _is_parametrized(cls):
        return _on_another_base(cls, _pytorch_class(cls.__bases__[0]))
    original: type = PYTORCHS.get(cls) or vars(cls)["_pytorch_class"]
    return original


def _is_parametrized(cls: type) -> bool:
    """Whether torch.nn.utils.parametrize made the class, as it does for each layer."""
    function = vars(cls).get("__getstate__")
    return getattr(function, "__module__", None) == parametrize.__name__


def _on_another_base(cls: type, base: type) -> type:
    """A copy of the class made by parametrize, with `base` as its base class."""
    namespace = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), namespace)


@functools.cache
def _mixed(cls: type) -> type:
    """A subclass of `cls` in which our layer comes before PyTorch's in the order of methods."""
    ours = next(ours for theirs, ours in OURS.items() if issubclass(cls, theirs))
    namespace = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__reduce_ex__": _reduce_converted,
        "_pytorch_class": cls,
    }
    if issubclass(cls, nn.modules.lazy.LazyModuleMixin) and cls.cls_to_become is not None:
        namespace["cls_to_become"] = _our_class(cls.cls_to_become)
    return type(cls)(f"Tricorr{cls.__name__}", (cls, ours), namespace)


def _reduce_converted(layer: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickles a converted subclass by its original class, which can be imported by name."""
    state = object.__reduce_ex__(layer, 2)[2:]
    return (_new_converted, (vars(type(layer))["_pytorch_class"],), *state)


def _new_converted(cls: type) -> object:
    return object.__new__(_our_class(cls))
