"""Derivatives and oriented filters of images, as thin functions over `corr2d`.

Images are (..., H, W) with any number of leading dimensions, every plane filtered on its own: a
tensor, a NumPy array, a Pillow image or the name of a file; `channel_axis` names the channels of an
array that has them elsewhere. A tensor gives a tensor, all else a NumPy array with the channels
where they were. Floats keep their dtype, also under autocast; bool and integers give float32 of the
same scale (0 to 255 for uint8), those of more than 16 bits float64. The result has the image's
extent and memory format and is differentiable. All taps are those of cross-correlation; x runs to
the right and y downwards. float32 on a GPU is multiplied as corr2d does by default, by PyTorch's
setting for convolutions.

Derivatives are exactly zero where the image is constant: neighbours are subtracted first, and what
is smoothed or added after are zeros. So are the derivatives of a magnitude there, of every order,
which is the convention where the root has none.

`padding_mode` says what lies beyond the border: "zeros", "reflect" (the border pixel is not
repeated; SciPy calls this mirror), "replicate" (SciPy's nearest) or "circular" (SciPy's wrap).
SciPy's and scikit-image's own "reflect" repeats the border pixel, which corr2d does not offer; for
a 3x3 window it is "replicate".
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch

from ..autograd.function import is_unwatched
from ..autograd.modules import PaddingMode
from ..images.inputs import ImageLike, hold
from ..ops import ArgumentError, shown
from ..ops.backend import runs_kernels
from . import in_blocks
from .apply import (
    filtered,
    responses,
    responses_to_differences,
    result_dtype,
    separable_bank,
    typed,
)
from .banks import SMOOTHING, as_angles, gabor_kernels, log_gabor_kernels

GradientMode: TypeAlias = Literal["sobel", "scharr", "prewitt", "diff"]

#: The second differences that a Laplacian adds: along x and y, then along the diagonals.
_SECOND_DIFFERENCES = (
    ((1, -2, 1),),
    ((1,), (-2,), (1,)),
    ((1, 0, 0), (0, -2, 0), (0, 0, 1)),
    ((0, 0, 1), (0, -2, 0), (1, 0, 0)),
)
#: The first two in one window, for kernels: by rows or by columns, sums over a constant a are a,
#: 2a, -2a, -a and 0, of which none is rounded. The diagonals in one would have an order with -3a.
_CROSS = ((0, 1, 0), (1, -4, 1), (0, 1, 0))
#: All eight neighbours as two separable windows that subtract neighbours first: the second
#: difference along x in each of three rows, and three times that along y.
_ALL_AROUND = (((1, 1, 1), (1, -2, 1)), ((1, -2, 1), (0, 3, 0)))


@typed
def spatial_gradient(
    input: ImageLike,
    mode: GradientMode = "sobel",
    *,
    normalized: bool = True,
    padding_mode: PaddingMode = "replicate",
    channel_axis: int | None = None,
) -> Any:
    """The derivatives of an image along x and y.

    Border, scale and order of the two are those of `kornia.filters.spatial_gradient`. Twice the
    result is what scikit-image's `sobel_v` and `sobel_h` give; with normalized=False it is SciPy's
    `ndimage.sobel` along axis 1 and 0.

    Args:
        input: the image.
        mode: the kernels: "sobel", "scharr", "prewitt" or "diff", central differences.
        normalized: whether the result is in brightness per pixel; else the kernels are whole
            numbers.
        padding_mode: what lies beyond the border.
        channel_axis: where an array has its channels, if not before H and W.

    Returns:
        (..., 2, H, W): d/dx, positive where brightness rises to the right, then d/dy, positive
        where it rises downwards.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`, or a mode that is none of the four.

    Example:
        >>> ramp = torch.arange(6.0).expand(4, 6)
        >>> spatial_gradient(ramp)[:, 2, 2]
        tensor([1., 0.])
    """
    image = hold(input, channel_axis)
    smooth = _smoothing(mode, normalized)
    steps = in_blocks.gradient(smooth)
    gradient = in_blocks.run(image.planes, (3, 3), padding_mode, steps, maps=2)
    if gradient is not None:
        return image.give_back(gradient)
    gradient = separable_bank(image.planes, _pair(smooth), padding_mode)
    if gradient is not None:
        return image.give_back(gradient)
    if runs_kernels(image.planes.device):
        gradient = _by_banks(image.planes, mode, normalized, padding_mode)
    else:
        gradient = torch.stack(_derivatives(image.planes, mode, normalized, padding_mode), -3)
    return image.give_back(gradient)


@typed
def sobel(
    input: ImageLike,
    *,
    normalized: bool = True,
    eps: float = 0.0,
    padding_mode: PaddingMode = "replicate",
    channel_axis: int | None = None,
) -> Any:
    """The magnitude of the gradient by Sobel and Feldman's kernels.

    `kornia.filters.sobel` is this with its eps of 1e-6. `skimage.filters.sobel` is this times the
    square root of two: it divides by 4, not 8, and takes the root of the mean square.

    Args:
        input: the image.
        normalized: whether the result is in brightness per pixel; else the kernels are whole
            numbers.
        eps: added to the squared magnitude. Without it the derivative on flat areas is zero.
        padding_mode: what lies beyond the border.
        channel_axis: where an array has its channels, if not before H and W.

    Returns:
        (..., H, W), not negative: sqrt(gx^2 + gy^2 + eps).

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`, or a negative eps.

    Example:
        >>> sobel(torch.arange(6.0).expand(4, 6))[2]
        tensor([0.5000, 1.0000, 1.0000, 1.0000, 1.0000, 0.5000])
    """
    image = hold(input, channel_axis)
    return image.give_back(_magnitude(image.planes, "sobel", normalized, eps, padding_mode))


@typed
def scharr(
    input: ImageLike,
    *,
    normalized: bool = True,
    eps: float = 0.0,
    padding_mode: PaddingMode = "replicate",
    channel_axis: int | None = None,
) -> Any:
    """The magnitude of the gradient by Scharr's kernels, which turn with the image better.

    `skimage.filters.scharr` is this times the square root of two. Arguments, result and errors are
    those of `sobel`.
    """
    image = hold(input, channel_axis)
    return image.give_back(_magnitude(image.planes, "scharr", normalized, eps, padding_mode))


@typed
def prewitt(
    input: ImageLike,
    *,
    normalized: bool = True,
    eps: float = 0.0,
    padding_mode: PaddingMode = "replicate",
    channel_axis: int | None = None,
) -> Any:
    """The magnitude of the gradient by Prewitt's kernels.

    `skimage.filters.prewitt` is this times the square root of two. Arguments, result and errors are
    those of `sobel`.
    """
    image = hold(input, channel_axis)
    return image.give_back(_magnitude(image.planes, "prewitt", normalized, eps, padding_mode))


@typed
def laplacian(
    input: ImageLike,
    neighbours: int = 4,
    *,
    normalized: bool = False,
    padding_mode: PaddingMode = "replicate",
    channel_axis: int | None = None,
) -> Any:
    """A pixel's neighbours less the pixel: positive at dark spots, zero on ramps.

    As it stands it is `scipy.ndimage.laplace`, and `skimage.filters.laplace` with the opposite
    sign. `kornia.filters.laplacian` of size 3 is this with neighbours=8, normalized=True and
    padding_mode="reflect".

    Args:
        input: the image.
        neighbours: 4, the sum of the second differences along x and y, or 8, with the corners.
        normalized: divides by the sum of the kernel's absolute values, 8 or 16.
        padding_mode: what lies beyond the border.
        channel_axis: where an array has its channels, if not before H and W.

    Returns:
        (..., H, W).

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`, or another number of neighbours.

    Example:
        >>> laplacian(torch.arange(5.0).square().expand(4, 5))[2, 1:-1]
        tensor([2., 2., 2.])
    """
    if neighbours not in (4, 8):
        raise ArgumentError(f"neighbours must be 4 or 8, got {shown(neighbours)}")
    image = hold(input, channel_axis)
    scale = 1 / (2 * neighbours) if normalized else 1
    steps = in_blocks.laplacian(neighbours, scale)
    total = in_blocks.run(image.planes, (3, 3), padding_mode, steps)
    if total is not None:
        return image.give_back(total)
    if neighbours == 8:
        scaled = [(down, [scale * tap for tap in across]) for down, across in _ALL_AROUND]
        total = separable_bank(image.planes, scaled, padding_mode, "sum")
        if total is not None:
            return image.give_back(total)
    windows = _SECOND_DIFFERENCES[: neighbours // 2]
    if runs_kernels(image.planes.device):
        windows = (_CROSS, *windows[2:])
    for window in windows:
        taps = scale * torch.tensor(window, dtype=torch.float64, device="cpu")
        total = filtered(image.planes, taps, padding_mode, plus=total)
    assert total is not None
    return image.give_back(total)


@typed
def gabor(
    input: ImageLike,
    frequency: float,
    theta: Any = 0.0,
    *,
    bandwidth: float = 1.0,
    n_stds: float = 3.0,
    padding_mode: PaddingMode = "reflect",
    channel_axis: int | None = None,
) -> Any:
    """The image under even-symmetric Gabor filters, all directions in one call.

    For one direction, the first result of `skimage.filters.gabor`, but for its border: scikit-image
    repeats the border pixel.

    Args:
        input: the image.
        frequency: in cycles per pixel.
        theta: the direction, in radians from +x towards +y, in which brightness varies; or several.
        bandwidth, n_stds: as for `gabor_kernels`.
        padding_mode: what lies beyond the border; "reflect" needs an image larger than half the
            window.
        channel_axis: where an array has its channels, if not before H and W.

    Returns:
        (..., H, W), or (..., K, H, W) for a sequence of K directions.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d` and `gabor_kernels`.

    Example:
        >>> gabor(torch.zeros(3, 32, 40), 0.25, (0.0, 0.8, 1.6)).shape
        torch.Size([3, 3, 32, 40])
    """
    image = hold(input, channel_axis)
    dtype = result_dtype(image.planes)
    bank = gabor_kernels(
        frequency, theta, bandwidth=bandwidth, n_stds=n_stds, dtype=dtype, device="cpu"
    )
    if as_angles(theta).dim():
        return image.give_back(responses(image.planes, bank, padding_mode))
    return image.give_back(filtered(image.planes, bank[0, 0], padding_mode))


@typed
def log_gabor(
    input: ImageLike,
    size: int = 21,
    orientations: int = 6,
    *,
    wavelength: float = 6.0,
    padding_mode: PaddingMode = "reflect",
    channel_axis: int | None = None,
) -> Any:
    """The image under even-symmetric log-Gabor filters, after Field (1987).

    The filters sum to zero, and so the answer on a flat image is exactly zero.

    Args:
        input: the image.
        size, orientations, wavelength: as for `log_gabor_kernels`.
        padding_mode: what lies beyond the border; "reflect" needs an image larger than half the
            window.
        channel_axis: where an array has its channels, if not before H and W.

    Returns:
        (..., orientations, H, W); map k is of stripes whose brightness varies in the direction
        pi * k / orientations, from +x towards +y.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d` and `log_gabor_kernels`.

    Example:
        >>> log_gabor(torch.zeros(3, 32, 40)).shape
        torch.Size([3, 6, 32, 40])
    """
    image = hold(input, channel_axis)
    # float64: the filters' sums stay zero, and are rounded with the taps of the differences alone.
    bank = log_gabor_kernels(
        size, orientations, wavelength=wavelength, dtype=torch.float64, device="cpu"
    )
    return image.give_back(responses_to_differences(image.planes, bank, padding_mode))


def _derivatives(
    image: torch.Tensor, mode: str, normalized: bool, padding_mode: PaddingMode
) -> tuple[torch.Tensor, torch.Tensor]:
    """d/dx and d/dy, each a difference along its own axis, smoothed along the other.

    The two taps of a difference cancel in whatever order they are added, on every backend. All taps
    of a kernel at once would not: a multiple of a constant may have been rounded on the way.
    """
    if runs_kernels(image.device):
        dx, dy = _by_banks(image, mode, normalized, padding_mode).unbind(-3)
        return dx, dy
    difference, smooth = _windows(mode, normalized)
    dx = filtered(image, difference[None, :], padding_mode)
    dy = filtered(image, difference[:, None], padding_mode)
    if mode == "diff":
        return dx, dy
    return (
        filtered(dx, smooth[:, None], padding_mode),
        filtered(dy, smooth[None, :], padding_mode),
    )


def _pair(
    smooth: tuple[float, float, float],
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
    """d/dx and d/dy as separable windows: differences of neighbours, smoothed across."""
    return (smooth, (-1, 0, 1)), ((-1, 0, 1), smooth)


def _by_banks(
    image: torch.Tensor, mode: str, normalized: bool, padding_mode: PaddingMode
) -> torch.Tensor:
    """_derivatives as (..., 2, H, W): kernels read the image once for both, and both once."""
    difference, smooth = _windows(mode, normalized)
    differences, smoothing = torch.zeros(2, 2, 1, 3, 3, dtype=torch.float64, device="cpu")
    differences[0, 0, 1], differences[1, 0, :, 1] = difference, difference
    smoothing[0, 0, :, 1], smoothing[1, 0, 1] = smooth, smooth
    then = None if mode == "diff" else smoothing
    return responses(image, differences, padding_mode, then=then)


def _smoothing(mode: str, normalized: bool) -> tuple[float, float, float]:
    """Weights of the difference of two neighbours and of those of the lines beside it."""
    if mode not in SMOOTHING:
        expected = ", ".join(map(repr, SMOOTHING))
        raise ArgumentError(f"mode must be one of {expected}, got {shown(mode)}")
    side, middle, _ = SMOOTHING[mode]
    scale = 2 * sum(SMOOTHING[mode]) if normalized else 1
    return side / scale, middle / scale, side / scale


def _windows(mode: str, normalized: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The difference along one axis and the smoothing along the other."""
    difference = torch.tensor([-1, 0, 1], dtype=torch.float64, device="cpu")
    smooth = torch.tensor(SMOOTHING[mode], dtype=torch.float64, device="cpu")
    return (difference / 2, smooth / smooth.sum()) if normalized else (difference, smooth)


def _magnitude(
    image: torch.Tensor, mode: str, normalized: bool, eps: float, padding_mode: PaddingMode
) -> torch.Tensor:
    if not 0 <= eps < math.inf:
        raise ArgumentError(f"eps must be finite and not negative, got {shown(eps)}")
    smooth = _smoothing(mode, normalized)
    y = in_blocks.run(image, (3, 3), padding_mode, in_blocks.magnitude(smooth, eps))
    if y is None:
        root = math.sqrt(eps)
        y = separable_bank(image, _pair(smooth), padding_mode, "magnitude", root)
    if y is not None:
        return y
    dx, dy = _derivatives(image, mode, normalized, padding_mode)
    # hypot, unlike a root of squares, does not overflow in float16.
    if eps:
        return torch.hypot(dx, torch.hypot(dy, dy.new_full((), math.sqrt(eps))))
    if is_unwatched(dx, dy):
        return torch.hypot(dx, dy)
    flat = (dx == 0) & (dy == 0)
    return torch.where(flat, 0, torch.hypot(torch.where(flat, 1, dx), dy))
