"""Derivatives and oriented filters of images, as thin functions over `corr2d`.

Images are (..., H, W) with any number of leading dimensions, every plane filtered on its own;
float16, bfloat16, float32 and float64 keep their dtype, uint8 gives float32 of the same scale
(0 to 255). The result has the image's extent and memory format and is differentiable. All taps are
those of cross-correlation; x runs to the right and y downwards. float32 on a GPU is multiplied as
corr2d does by default, by PyTorch's setting for convolutions.

`padding_mode` says what lies beyond the border: "zeros", "reflect" (the border pixel is not
repeated; SciPy calls this mirror), "replicate" (SciPy's nearest) or "circular" (SciPy's wrap).
SciPy's and scikit-image's own "reflect" repeats the border pixel, which corr2d does not offer; for
a 3x3 window it is "replicate".
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..autograd.modules import PaddingMode
from ..ops import ArgumentError, shown
from .apply import check_image, filtered, is_channels_last, responses, result_dtype
from .banks import (
    as_angles,
    difference_kernels,
    gabor_kernels,
    laplacian_kernel,
    log_gabor_kernels,
    prewitt_kernels,
    scharr_kernels,
    sobel_kernels,
)

_GRADIENTS = {
    "sobel": sobel_kernels,
    "scharr": scharr_kernels,
    "prewitt": prewitt_kernels,
    "diff": difference_kernels,
}


def spatial_gradient(
    input: torch.Tensor,
    mode: str = "sobel",
    *,
    normalized: bool = True,
    padding_mode: PaddingMode = "replicate",
) -> torch.Tensor:
    """The derivatives of an image along x and y, by one call with a bank of two filters.

    Border, scale and order of the two are those of `kornia.filters.spatial_gradient`. Twice the
    result is what scikit-image's `sobel_v` and `sobel_h` give; with normalized=False it is SciPy's
    `ndimage.sobel` along axis 1 and 0.

    Args:
        input: (..., H, W), float or uint8.
        mode: the kernels: "sobel", "scharr", "prewitt" or "diff", central differences.
        normalized: whether the result is in brightness per pixel; else the kernels are whole
            numbers.
        padding_mode: what lies beyond the border.

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
    check_image(input)
    if mode not in _GRADIENTS:
        expected = ", ".join(map(repr, _GRADIENTS))
        raise ArgumentError(f"mode must be one of {expected}, got {shown(mode)}")
    bank = _GRADIENTS[mode](normalized=normalized, dtype=result_dtype(input))
    return responses(input, bank, padding_mode)


def sobel(
    input: torch.Tensor,
    *,
    normalized: bool = True,
    eps: float = 0.0,
    padding_mode: PaddingMode = "replicate",
) -> torch.Tensor:
    """The magnitude of the gradient by Sobel and Feldman's kernels.

    `kornia.filters.sobel` is this with its eps of 1e-6. `skimage.filters.sobel` is this times the
    square root of two: it divides by 4, not 8, and takes the root of the mean square.

    Args:
        input: (..., H, W), float or uint8.
        normalized: whether the result is in brightness per pixel; else the kernels are whole
            numbers.
        eps: added to the squared magnitude. Without it the derivative on flat areas is zero.
        padding_mode: what lies beyond the border.

    Returns:
        (..., H, W), not negative: sqrt(gx^2 + gy^2 + eps).

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`, or a negative eps.

    Example:
        >>> sobel(torch.arange(6.0).expand(4, 6))[2]
        tensor([0.5000, 1.0000, 1.0000, 1.0000, 1.0000, 0.5000])
    """
    return _magnitude(input, "sobel", normalized, eps, padding_mode)


def scharr(
    input: torch.Tensor,
    *,
    normalized: bool = True,
    eps: float = 0.0,
    padding_mode: PaddingMode = "replicate",
) -> torch.Tensor:
    """The magnitude of the gradient by Scharr's kernels, which turn with the image better.

    `skimage.filters.scharr` is this times the square root of two. Arguments, result and errors are
    those of `sobel`.
    """
    return _magnitude(input, "scharr", normalized, eps, padding_mode)


def prewitt(
    input: torch.Tensor,
    *,
    normalized: bool = True,
    eps: float = 0.0,
    padding_mode: PaddingMode = "replicate",
) -> torch.Tensor:
    """The magnitude of the gradient by Prewitt's kernels.

    `skimage.filters.prewitt` is this times the square root of two. Arguments, result and errors are
    those of `sobel`.
    """
    return _magnitude(input, "prewitt", normalized, eps, padding_mode)


def laplacian(
    input: torch.Tensor,
    neighbours: int = 4,
    *,
    normalized: bool = False,
    padding_mode: PaddingMode = "replicate",
) -> torch.Tensor:
    """A pixel's neighbours less the pixel: positive at dark spots, zero on ramps.

    As it stands it is `scipy.ndimage.laplace`, and `skimage.filters.laplace` with the opposite
    sign. `kornia.filters.laplacian` of size 3 is this with neighbours=8, normalized=True and
    padding_mode="reflect".

    Args:
        input: (..., H, W), float or uint8.
        neighbours: 4, the sum of the second differences along x and y, or 8, with the corners.
        normalized: divides by the sum of the kernel's absolute values, 8 or 16.
        padding_mode: what lies beyond the border.

    Returns:
        (..., H, W).

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`, or another number of neighbours.

    Example:
        >>> laplacian(torch.arange(5.0).square().expand(4, 5))[2, 1:-1]
        tensor([2., 2., 2.])
    """
    check_image(input)
    kernel = laplacian_kernel(neighbours, normalized=normalized, dtype=result_dtype(input))
    return filtered(input, kernel[0, 0], padding_mode)


def gabor(
    input: torch.Tensor,
    frequency: float,
    theta: Any = 0.0,
    *,
    bandwidth: float = 1.0,
    n_stds: float = 3.0,
    padding_mode: PaddingMode = "reflect",
) -> torch.Tensor:
    """The image under even-symmetric Gabor filters, all directions in one call.

    For one direction, the first result of `skimage.filters.gabor`, but for its border: scikit-image
    repeats the border pixel.

    Args:
        input: (..., H, W), float or uint8.
        frequency: in cycles per pixel.
        theta: the direction, in radians from +x towards +y, in which brightness varies; or several.
        bandwidth, n_stds: as for `gabor_kernels`.
        padding_mode: what lies beyond the border; "reflect" needs an image larger than half the
            window.

    Returns:
        (..., H, W), or (..., K, H, W) for a sequence of K directions.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d` and `gabor_kernels`.

    Example:
        >>> gabor(torch.zeros(3, 32, 40), 0.25, (0.0, 0.8, 1.6)).shape
        torch.Size([3, 3, 32, 40])
    """
    check_image(input)
    dtype = result_dtype(input)
    bank = gabor_kernels(frequency, theta, bandwidth=bandwidth, n_stds=n_stds, dtype=dtype)
    if as_angles(theta).dim():
        return responses(input, bank, padding_mode)
    return filtered(input, bank[0, 0], padding_mode)


def log_gabor(
    input: torch.Tensor,
    size: int = 21,
    orientations: int = 6,
    *,
    wavelength: float = 6.0,
    padding_mode: PaddingMode = "reflect",
) -> torch.Tensor:
    """The image under even-symmetric log-Gabor filters, after Field (1987), in one call.

    Args:
        input: (..., H, W), float or uint8.
        size, orientations, wavelength: as for `log_gabor_kernels`.
        padding_mode: what lies beyond the border; "reflect" needs an image larger than half the
            window.

    Returns:
        (..., orientations, H, W); map k is of stripes whose brightness varies in the direction
        pi * k / orientations, from +x towards +y.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d` and `log_gabor_kernels`.

    Example:
        >>> log_gabor(torch.zeros(3, 32, 40)).shape
        torch.Size([3, 6, 32, 40])
    """
    check_image(input)
    bank = log_gabor_kernels(size, orientations, wavelength=wavelength, dtype=result_dtype(input))
    return responses(input, bank, padding_mode)


def _magnitude(
    input: torch.Tensor, mode: str, normalized: bool, eps: float, padding_mode: PaddingMode
) -> torch.Tensor:
    if not 0 <= eps < math.inf:
        raise ArgumentError(f"eps must be finite and not negative, got {shown(eps)}")
    gradient = spatial_gradient(input, mode, normalized=normalized, padding_mode=padding_mode)
    # The norm, unlike a root of squares, has a derivative at zero and does not overflow in float16.
    if is_channels_last(input):  # a norm is laid out in the order of its dimensions
        pixels = gradient.movedim((-2, -1), (-4, -3))  # (..., H, W, C, 2)
        length = torch.linalg.vector_norm(pixels, dim=-1).movedim(-1, -3)
    else:
        length = torch.linalg.vector_norm(gradient, dim=-3)
    return torch.hypot(length, length.new_full((), math.sqrt(eps))) if eps else length
