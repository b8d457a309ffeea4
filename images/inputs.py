"""Images as tensors and back: from tensors, arrays, Pillow images and files."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..ops import ArgumentError, ArgumentTypeError, as_integer
from ..ops.arguments import FLOAT_DTYPES, check_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

#: Images other than tensors; functions return NumPy arrays for them.
ArrayLike: TypeAlias = "NDArray[Any] | Image | str | os.PathLike[str]"
ImageLike: TypeAlias = "torch.Tensor | ArrayLike"

#: Integer dtypes that float32 holds exactly; wider ones become float64.
_NARROW = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16})
_WIDE = frozenset({torch.int32, torch.uint32, torch.int64, torch.uint64})
#: A last axis up to this long is taken for channels.
_COLOURS = 4


@dataclass(frozen=True)
class Held:
    """An image as a tensor, and the form that it came in.

    Attributes:
        planes: (..., H, W), float or uint8; channels, where there are some, before H and W.
        channel_axis: where the owner has the channels, counted from the end; None if they are
            before H and W, or if there are none.
        as_array: whether the owner works with NumPy.
    """

    planes: torch.Tensor
    channel_axis: int | None
    as_array: bool

    def give_back(self, result: torch.Tensor) -> Any:
        """Converts a result to the form that the image came in.

        Args:
            result: (..., H, W), or (..., maps, H, W) with a dimension that `planes` does not have.

        Returns:
            The same with the channels where the owner has them; an array for an array, a Pillow
            image or a file.
        """
        if self.channel_axis is not None:
            channels = self.planes.dim() - 3 - result.dim()
            result = result.movedim(channels, self.channel_axis)
        return result.contiguous().numpy(force=True) if self.as_array else result


def hold(image: Any, channel_axis: int | None = None, *, name: str = "input") -> Held:
    """Converts an image of any kind to a tensor of planes.

    Values keep their scale: a white pixel of 8 bits is 255. Floats and uint8 keep their dtype, bool
    and integers of up to 16 bits become float32, wider integers float64.

    Args:
        image: a tensor or array (..., H, W), or with channels in the axis `channel_axis`; a Pillow
            image; or a file that `read_image` reads. The latter two know their channels.
        channel_axis: where a tensor or array has its channels, if not before H and W.
        name: of the argument, for messages.

    Raises:
        ArgumentError: fewer than two dimensions, an axis that is not there, a file that cannot be
            read, or channels in the last axis that channel_axis does not name.
        ArgumentTypeError: another kind of object, or numbers that are no brightness.
        OSError: the file is missing or may not be read.
    """
    if isinstance(image, torch.Tensor):
        tensor, as_array = image, False
    else:
        tensor, as_array = _from_object(name, image), True
        knows_channels = is_pillow(image) or isinstance(image, str | os.PathLike)
        if knows_channels and tensor.dim() == 3 and channel_axis is None:
            channel_axis = -1
    tensor = _as_brightness(name, tensor)
    if tensor.dim() < 2:
        raise ArgumentError(f"{name} must be (..., H, W), got shape {tuple(tensor.shape)}")
    if channel_axis is None:
        _refuse_trailing_channels(name, tuple(tensor.shape))
        return Held(tensor, None, as_array)
    axis = as_integer("channel_axis", channel_axis)
    if tensor.dim() < 3 or not -tensor.dim() <= axis < tensor.dim():
        raise ArgumentError(
            f"channel_axis={axis} is no axis beside H and W of {name}, of shape "
            f"{tuple(tensor.shape)}"
        )
    axis = axis - tensor.dim() if axis >= 0 else axis
    if axis < -2:
        return Held(tensor, None, as_array)
    return Held(tensor.movedim(axis, -3), axis, as_array)


def is_pillow(image: Any) -> bool:
    """Whether this is a Pillow image, without importing Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _from_object(name: str, image: Any) -> torch.Tensor:
    """The array, (H, W) or (H, W, C), of an object that is not a tensor."""
    # Imported here so that `import tricorr` does not import NumPy.
    if isinstance(image, str | os.PathLike):
        from .read import read_image

        picture = read_image(image, double=True)
        pixels = picture.pixels * picture.white if picture.white != 1 else picture.pixels
        return pixels.movedim(0, -1) if pixels.dim() == 3 else pixels
    import numpy as np

    if is_pillow(image):
        from .read import pillow_array

        array = pillow_array(image)
    elif isinstance(image, np.ma.MaskedArray):
        raise ArgumentTypeError(
            f"{name} must not be a masked array, whose mask would be lost: fill it first, for "
            "example with .filled(0)"
        )
    elif hasattr(image, "__array__"):
        array = np.asarray(image)
    else:
        kind = type(image)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        raise ArgumentTypeError(
            f"{name} must be a tensor, a NumPy array, a Pillow image or the name of a file, got "
            f"{module}{kind.__qualname__}"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # PyTorch supports neither
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise ArgumentTypeError(
            f"{name} must hold numbers of at most 64 bits, got an array of {array.dtype}"
        ) from None


def _as_brightness(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype in FLOAT_DTYPES or tensor.dtype == torch.uint8:
        check_tensors(images=(name,), **{name: tensor})
        return tensor
    if tensor.dtype in _NARROW:
        return tensor.float()
    if tensor.dtype in _WIDE:
        return tensor.double()
    raise ArgumentTypeError(f"{name} must be real numbers, got {tensor.dtype}")


def looks_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an array of three axes or more looks like (H, W, C): its last axis is short."""
    return len(shape) > 2 and 0 < shape[-1] <= _COLOURS < min(shape[-3:-1])


def _refuse_trailing_channels(name: str, shape: tuple[int, ...]) -> None:
    """Raises where filtering (H, W, C) along its last two axes would be wrong without an error."""
    if looks_channels_last(shape):
        raise ArgumentError(
            f"{name} of shape {shape} looks like (H, W, channels): give channel_axis=-1 if it is, "
            f"or channel_axis=-3 for images that are {shape[-1]} pixels wide"
        )
