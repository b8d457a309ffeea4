"""Images in the forms that users have, with their bad pixels: arrays, masked arrays, NDData.

A mask of NumPy or Astropy is True where a pixel is bad; `learn_kernel`'s own masks are True where
it is good. NaN marks a bad pixel too.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch

from ..images.inputs import hold, is_pillow, looks_channels_last
from ..ops import ArgumentError, ArgumentTypeError, shown

#: Dtypes that are kept; other numbers become float64. (Filters, which have no sums over an image,
#: convert integers of 16 bits to float32.)
KEPT = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)


@dataclass(frozen=True)
class Data:
    """An image and which of its pixels are good.

    Attributes:
        values: of a dtype in KEPT, NaN replaced by zero.
        good: bool, shaped as values; None where all are.
        notes: for the user, the number of pixels left out.
    """

    values: torch.Tensor
    good: torch.Tensor | None
    notes: tuple[str, ...] = ()
    finite: bool = False


def as_data(name: str, given: Any) -> Data:
    """An image in any supported form.

    Args:
        name: of the argument, for messages.
        given: a tensor; a NumPy or masked array of any numbers and byte order; an object with
            `data` and `mask`, as Astropy's NDData and CCDData, or `data` and `header`, as its HDUs;
            a Pillow image or the name of a file; anything that NumPy converts to an array.

    Raises:
        ArgumentError: no pixel is good, or the shape looks like (H, W, 3).
        ArgumentTypeError: not an image.
    """
    bad = None
    if isinstance(given, str | os.PathLike) or is_pillow(given):
        given = hold(given, name=name).planes
    numpy = sys.modules.get("numpy")  # if `given` is an array, NumPy is imported
    if not isinstance(given, torch.Tensor) and not (numpy and isinstance(given, numpy.ndarray)):
        if hasattr(given, "data") and (hasattr(given, "mask") or hasattr(given, "header")):
            given, bad = given.data, getattr(given, "mask", None)
            if given is None:
                raise ArgumentTypeError(f"{name} holds no image: its data is None")
    elif numpy is not None and isinstance(given, numpy.ma.MaskedArray):
        given, bad = given.data, numpy.ma.getmaskarray(given)
    values = as_tensor(name, given)
    _check_channels_first(name, values)
    if not values.is_floating_point():
        return Data(values, None if bad is None else _good(name, bad, values), finite=True)
    if bad is None and all_finite(values):
        return Data(values, None, finite=True)
    good = ~values.isnan()
    notes: tuple[str, ...] = ()
    missing = values.numel() - int(good.sum())
    if missing:
        if missing == values.numel():
            raise ArgumentError(f"{name} must hold numbers, got NaN in every pixel")
        some = "1 pixel" if missing == 1 else f"{missing} pixels"
        is_nan = "is NaN and was" if missing == 1 else "are NaN and were"
        notes = (f"{some} of {name} {is_nan} left out",)
        values = torch.where(good, values, values.new_zeros(()))
    if bad is not None:
        good &= _good(name, bad, values)
    return Data(values, good if missing or bad is not None else None, notes)


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass, a second only if the sum is not finite."""
    if not values.is_floating_point():
        return True
    wide = torch.float32 if values.dtype.itemsize < 4 else values.dtype
    return math.isfinite(float(values.sum(dtype=wide))) or bool(values.isfinite().all())


def as_tensor(name: str, given: Any) -> torch.Tensor:
    """Numbers in any form as a tensor of a dtype in KEPT.

    Raises:
        ArgumentTypeError: not real numbers.
    """
    if isinstance(given, torch.Tensor):
        tensor = given.detach()
    elif hasattr(given, "__array__"):
        import numpy as np

        array = np.asarray(given)
        if array.dtype.kind not in "biuf":
            raise ArgumentTypeError(f"{name} must hold real numbers, got {array.dtype}")
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
            array = array.astype(np.float64)
        # PyTorch requires the machine's byte order and no negative strides.
        tensor = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    else:
        raise ArgumentTypeError(
            f"{name} must be a tensor, an array or an Astropy image, got {shown(type(given))}"
        )
    if tensor.is_complex():
        raise ArgumentTypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise ArgumentTypeError(f"{name} must be dense, got {tensor.layout}")
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8)
    return tensor if tensor.dtype in KEPT else tensor.double()


def as_counts(name: str, given: Any) -> Any:
    """A mask or weights in any form as a tensor; None stays None."""
    if given is None or isinstance(given, torch.Tensor):
        return given
    return as_tensor(name, given)


def as_variance(name: str, given: Any, like: torch.Tensor) -> torch.Tensor:
    """A number or a map as a map shaped as `like`, in float64.

    Raises:
        ArgumentError: it has another shape, or is negative somewhere.
    """
    if isinstance(given, int | float):
        values = torch.full_like(like, float(given), dtype=torch.float64)
    else:
        values = as_tensor(name, given).double().to(like.device)
    if values.shape != like.shape:
        raise ArgumentError(
            f"{name} must have shape {tuple(like.shape)}, got {tuple(values.shape)}"
        )
    if bool((values < 0).any()):
        raise ArgumentError(f"{name} must not be negative, got {float(values.min()):g}")
    return values


def _good(name: str, bad: Any, values: torch.Tensor) -> torch.Tensor:
    good = as_tensor(f"the mask of {name}", bad) == 0
    if not good.any():
        raise ArgumentError(f"{name} must hold good pixels: its mask is True (bad) everywhere")
    return good.to(values.device).expand(values.shape)


def _check_channels_first(name: str, values: torch.Tensor) -> None:
    shape = tuple(values.shape)
    if len(shape) == 3 and looks_channels_last(shape):
        raise ArgumentError(
            f"{name} looks like an image of shape (H, W, {shape[2]}), got {shape}; channels come "
            f"first here: {name}.permute(2, 0, 1), or np.moveaxis({name}, 2, 0). An image that is "
            f"{shape[2]} pixels wide is taken as {name}[None]"
        )
