"""Blurs and sharpening of images, as thin functions over `corr2d`.

Images, dtypes, formats and `padding_mode` are as in gradients.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from ..autograd.function import is_unwatched
from ..autograd.modules import PaddingMode
from ..images.inputs import ImageLike, hold
from ..ops import ArgumentError, ArgumentTypeError, as_pair, shown
from ..ops.arguments import PairLike
from ..ops.backend import runs_kernels
from . import in_blocks
from .apply import separable, separable_bank, typed
from .banks import gaussian_window

Sigma: TypeAlias = "float | tuple[float, float] | list[float] | torch.Tensor"


@typed
def gaussian_blur(
    input: ImageLike,
    sigma: Sigma,
    *,
    kernel_size: PairLike | None = None,
    truncate: float = 4.0,
    padding_mode: PaddingMode = "reflect",
    channel_axis: int | None = None,
) -> Any:
    """The image correlated with a Gaussian window, sampled at the pixels and normalised to sum 1.

    With kernel_size it equals `kornia.filters.gaussian_blur2d`, and torchvision's `gaussian_blur`
    but for the order of pairs: (w, h) there, (h, w) here. With truncate it uses the windows of
    SciPy's `gaussian_filter` and of `skimage.filters.gaussian`; the border of the latter is
    padding_mode="replicate", that of the former corr2d does not offer.

    Filters along the width and then along the height where that is cheaper, on a GPU in one pass
    over the image, see `filters/apply.py`. Two passes round a 16-bit image once more in between.

    Args:
        input: the image.
        sigma: standard deviation in pixels, a number or (h, w); 0 leaves an axis as it is. Also a
            float tensor of shape (), (2,) or, for an input (N, C, H, W), (N, 2): one pair for each
            sample. The result is differentiable in such a tensor; negative values count as 0.
        kernel_size: of the window, an int or (h, w), even ones too. A tensor sigma needs it: the
            size would have to be read back from the device.
        truncate: without kernel_size, the window's reach in standard deviations: its size is
            2 * int(truncate * sigma + 0.5) + 1 pixels.
        padding_mode: what lies beyond the border; "reflect" needs an image larger than half the
            window.
        channel_axis: where an array has its channels, if not before H and W.

    Returns:
        (..., H, W).

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`, or a sigma, size or truncate that cannot
            be used.

    Example:
        >>> dot = torch.zeros(5, 5)
        >>> dot[2, 2] = 1
        >>> gaussian_blur(dot, (0, 1), kernel_size=3)[2]
        tensor([0.0000, 0.2741, 0.4519, 0.2741, 0.0000])
    """
    image = hold(input, channel_axis)
    down, across = _windows(image.planes, sigma, kernel_size, truncate)
    return image.give_back(separable(image.planes, down, across, padding_mode))


@typed
def box_blur(
    input: ImageLike,
    kernel_size: PairLike,
    *,
    padding_mode: PaddingMode = "reflect",
    channel_axis: int | None = None,
) -> Any:
    """The mean over a window around every pixel.

    Equals `kornia.filters.box_blur` and, but for the border, SciPy's `uniform_filter`. The odd
    pixel of an even window is at the bottom and at the right, as with PyTorch's padding="same";
    SciPy puts it at the top and at the left.

    Filters along the width and then along the height where that is cheaper, on a GPU in one pass
    over the image, see `filters/apply.py`. Two passes round a 16-bit image once more in between.

    Args:
        input: the image.
        kernel_size: of the window, an int or (h, w).
        padding_mode: what lies beyond the border; "reflect" needs an image larger than half the
            window.
        channel_axis: where an array has its channels, if not before H and W.

    Returns:
        (..., H, W).

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`, or a size that is not positive.

    Example:
        >>> box_blur(torch.tensor([[0.0, 3.0, 6.0, 0.0]]), (1, 3))
        tensor([[2., 3., 3., 4.]])
    """
    image = hold(input, channel_axis)
    size = _extents("kernel_size", kernel_size)
    mean = in_blocks.run(image.planes, size, padding_mode, in_blocks.box(*size))
    if mean is not None:
        return image.give_back(mean)
    down, across = (torch.full((n,), 1 / n, dtype=torch.float64, device="cpu") for n in size)
    return image.give_back(separable(image.planes, down, across, padding_mode))


@typed
def unsharp_mask(
    input: ImageLike,
    sigma: Sigma = 1.0,
    amount: float = 1.0,
    *,
    kernel_size: PairLike | None = None,
    truncate: float = 4.0,
    padding_mode: PaddingMode = "reflect",
    channel_axis: int | None = None,
) -> Any:
    """Sharpens: input + amount * (input - blurred), blurred by `gaussian_blur`.

    `kornia.filters.unsharp_mask`, whose amount is 1. `skimage.filters.unsharp_mask` calls sigma
    radius and clips; this does not, which is its preserve_range=True.

    Args:
        input: the image.
        amount: how much sharper; 0 leaves the image as it is.
        sigma, kernel_size, truncate, padding_mode, channel_axis: as for `gaussian_blur`.

    Returns:
        (..., H, W), which may leave the range of the image.

    Raises:
        ArgumentError, ArgumentTypeError: as for `gaussian_blur`.

    Example:
        >>> unsharp_mask(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), (0, 1), kernel_size=(1, 3))
        tensor([[ 0.0000, -0.2741,  1.2741,  1.0000]])
    """
    image = hold(input, channel_axis)
    down, across = _windows(image.planes, sigma, kernel_size, truncate)
    sharp = _sharpened(image.planes, down, across, amount, padding_mode)
    if sharp is not None:
        return image.give_back(sharp)
    blurred = separable(image.planes, down, across, padding_mode)
    return image.give_back(torch.lerp(blurred, image.planes.to(blurred.dtype), 1 + amount))


def _sharpened(
    input: torch.Tensor,
    down: torch.Tensor,
    across: torch.Tensor,
    amount: Any,
    padding_mode: PaddingMode,
) -> torch.Tensor | None:
    """(1 + amount) times the image less amount times the blurred one, where one launch does it."""
    if not runs_kernels(input.device) or not down.is_cpu or isinstance(amount, torch.Tensor):
        return None
    if down.dim() > 1 or not is_unwatched(down, across):
        return None
    pixel = [torch.zeros_like(window) for window in (down, across)]
    for window in pixel:
        window[(len(window) - 1) // 2] = 1
    windows = (-amount * down, across), (pixel[0], (1 + amount) * pixel[1])
    return separable_bank(input, windows, padding_mode, "sum")


def _windows(
    input: torch.Tensor, sigma: Any, kernel_size: Any, truncate: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows of gaussian_blur down and across planes (..., H, W)."""
    sigma_h, sigma_w = _sigmas(sigma, input)
    if kernel_size is not None:
        size = _extents("kernel_size", kernel_size)
    elif isinstance(sigma_h, torch.Tensor) or isinstance(sigma_w, torch.Tensor):
        raise ArgumentError("kernel_size must be given when sigma is a tensor, got None")
    elif not 0 <= truncate < math.inf:
        raise ArgumentError(f"truncate must be finite and not negative, got {shown(truncate)}")
    else:
        size = 2 * int(truncate * sigma_h + 0.5) + 1, 2 * int(truncate * sigma_w + 0.5) + 1
    # device="cpu": torch.set_default_device must not move a number's window.
    device = None if isinstance(sigma_h, torch.Tensor) else "cpu"
    down = across = gaussian_window(sigma_h, size[0], device=device)
    if device is None or (sigma_h, size[0]) != (sigma_w, size[1]):
        across = gaussian_window(sigma_w, size[1], device=device)
    return down, across


def _sigmas(sigma: Any, input: torch.Tensor) -> tuple[float | torch.Tensor, float | torch.Tensor]:
    """Standard deviations (h, w): two numbers, or two tensors of shape () or (N,)."""
    if isinstance(sigma, torch.Tensor):
        if not sigma.is_floating_point():
            raise ArgumentTypeError(f"sigma must be a float tensor, got {sigma.dtype}")
        if sigma.dim() == 0:
            return sigma, sigma
        if sigma.shape == (2,) or (input.dim() == 4 and sigma.shape == (input.shape[0], 2)):
            return sigma[..., 0], sigma[..., 1]
        raise ArgumentError(
            "sigma must have shape (), (2,) or, for an input (N, C, H, W), (N, 2), got "
            f"{tuple(sigma.shape)} for an input of shape {tuple(input.shape)}"
        )
    numbers = tuple(sigma) if isinstance(sigma, Sequence) else (sigma, sigma)
    try:
        numbers = tuple(map(float, numbers))
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"sigma must be a number, two (h, w) or a tensor, got {shown(sigma)}"
        ) from None
    if len(numbers) != 2 or not all(0 <= number < math.inf for number in numbers):
        raise ArgumentError(
            f"sigma must be one number or two (h, w), finite and not negative, got {shown(sigma)}"
        )
    return numbers[0], numbers[1]


def _extents(name: str, value: Any) -> tuple[int, int]:
    R, S = as_pair(name, value)
    if min(R, S) < 1:
        raise ArgumentError(f"{name} must be positive, got {shown(value)}")
    return R, S
