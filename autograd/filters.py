"""Kernels that people know by name, as weights for `corr2d`.

Every function returns a bank (K, 1, R, S) for one-channel images (N, 1, H, W), to be used by
cross-correlation as it stands, without flipping. x runs to the right and y downwards: an x kernel
answers with a positive number where brightness rises to the right, a y kernel where it rises
downwards. The one exception is the textbook's [1, -1], which is positive where brightness falls.
"""

from __future__ import annotations

import math

import torch

from ..ops import ArgumentError, as_integer


def sobel(*, normalized: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Sobel and Feldman's derivative kernels: x, then y.

    Args:
        normalized: divides by 8, so that a ramp of one per pixel answers with one.
        dtype: of the result.

    Returns:
        (2, 1, 3, 3).

    Example:
        >>> sobel()[0, 0]
        tensor([[-1.,  0.,  1.],
                [-2.,  0.,  2.],
                [-1.,  0.,  1.]])
    """
    return _derivatives((1, 2, 1), normalized, dtype)


def scharr(*, normalized: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scharr's derivative kernels, which turn with the image better than Sobel's: x, then y.

    Args:
        normalized: divides by 32, so that a ramp of one per pixel answers with one.
        dtype: of the result.

    Returns:
        (2, 1, 3, 3).
    """
    return _derivatives((3, 10, 3), normalized, dtype)


def prewitt(*, normalized: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Prewitt's derivative kernels: x, then y.

    Args:
        normalized: divides by 6, so that a ramp of one per pixel answers with one.
        dtype: of the result.

    Returns:
        (2, 1, 3, 3).
    """
    return _derivatives((1, 1, 1), normalized, dtype)


def laplacian(*, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The five-point sum of the second derivatives: positive at dark spots, zero on ramps.

    Args:
        dtype: of the result.

    Returns:
        (1, 1, 3, 3).
    """
    return torch.tensor([[[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]], dtype=dtype)


def textbook_edge(*, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The textbook's [[1, -1]]: +1 where white turns black, -1 where black turns white.

    Args:
        dtype: of the result.

    Returns:
        (1, 1, 1, 2).
    """
    return torch.tensor([[[[1, -1]]]], dtype=dtype)


def oriented_filters(
    size: int = 21,
    orientations: int = 6,
    *,
    wavelength: float = 6.0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Even-symmetric log-Gabor filters, one for each orientation, after Field (1987).

    Filter k is made in the frequency domain, where with f the distance from zero and a the angle to
    the axis of theta_k = pi * k / orientations it is

        G_k = exp(-ln(f * wavelength)^2 / (2 * ln(0.65)^2)) * exp(-a^2 / (2 * sigma^2)),  G_k(0) = 0

    a bandwidth of 1.5 octaves, with sigma = pi / orientations / 1.5. theta is the direction in
    which brightness varies, from +x towards +y: filter 0 answers to vertical stripes. Each filter
    is real and its own mirror image in the centre, sums to zero, and answers about 1 to stripes of
    amplitude 1 in its direction and wavelength.

    D. J. Field, "Relations between the statistics of natural images and the response properties of
    cortical cells", J. Opt. Soc. Am. A 4, 2379-2394 (1987), with the angular part of P. Kovesi,
    "Image features from phase congruency", Videre 1(3), 1-26 (1999).

    Args:
        size: of the window, odd.
        orientations: how many filters.
        wavelength: of the stripes that are answered to most, in pixels; at least 2.
        dtype: of the result.

    Returns:
        (orientations, 1, size, size).

    Raises:
        ArgumentError: a size that is even or too small, no orientation, or too short a wavelength.
    """
    size, orientations = as_integer("size", size), as_integer("orientations", orientations)
    if size < 3 or size % 2 == 0:
        raise ArgumentError(f"size must be odd and at least 3, got {size}")
    if orientations < 1:
        raise ArgumentError(f"orientations must be positive, got {orientations}")
    if not 2 <= wavelength < math.inf:
        raise ArgumentError(f"wavelength must be at least 2 pixels, got {wavelength!r}")
    # A grid finer than the window's own, or the filter would wrap around into itself.
    grid = 4 * size + 1
    frequency = torch.fft.fftfreq(grid, dtype=torch.float64)
    fy, fx = torch.meshgrid(frequency, frequency, indexing="ij")
    radius = torch.hypot(fx, fy)
    radius[0, 0] = 1
    radial = torch.exp(-((radius * wavelength).log() ** 2) / (2 * math.log(0.65) ** 2))
    radial[0, 0] = 0
    theta = torch.arange(orientations, dtype=torch.float64).view(-1, 1, 1) * math.pi / orientations
    # The angle to an axis, not to a direction: that makes the spectrum even and the filter real.
    angle = torch.remainder(torch.atan2(fy, fx) - theta + math.pi / 2, math.pi) - math.pi / 2
    spectrum = radial * torch.exp(-(angle**2) / (2 * (math.pi / orientations / 1.5) ** 2))
    filters = torch.fft.fftshift(torch.fft.ifft2(spectrum).real, dim=(-2, -1))
    half = size // 2
    window = slice(grid // 2 - half, grid // 2 + half + 1)
    filters = filters[..., window, window]
    filters = filters - filters.mean(dim=(-2, -1), keepdim=True)  # what was cut off
    return ((filters + filters.flip(-2, -1)) / 2).unsqueeze(1).to(dtype)


def _derivatives(
    smoothing: tuple[int, int, int], normalized: bool, dtype: torch.dtype
) -> torch.Tensor:
    """[-1, 0, 1] along one axis, `smoothing` along the other: x, then y."""
    smooth = torch.tensor(smoothing, dtype=dtype)
    x = smooth[:, None] * torch.tensor([-1, 0, 1], dtype=dtype)
    if normalized:
        x = x / (2 * sum(smoothing))
    return torch.stack([x, x.T]).unsqueeze(1)
