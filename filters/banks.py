"""The kernels of well-known image filters, as weights for `corr2d`.

Every function returns a bank (K, 1, R, S) for one-channel images (N, 1, H, W), for
cross-correlation without flipping. x runs to the right and y downwards: the response of an x kernel
is positive where brightness rises to the right, that of a y kernel where it rises downwards. The
one exception is the textbook's [1, -1], whose response is positive where brightness falls.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..ops import ArgumentError, ArgumentTypeError, as_integer, shown

#: Smoothing weights across the direction of the derivative.
SMOOTHING: dict[str, tuple[int, int, int]] = {
    "sobel": (1, 2, 1),
    "scharr": (3, 10, 3),
    "prewitt": (1, 1, 1),
    "diff": (0, 1, 0),
}


def sobel_kernels(
    *, normalized: bool = False, dtype: torch.dtype = torch.float32, device: Any = None
) -> torch.Tensor:
    """Sobel and Feldman's derivative kernels: x, then y.

    Args:
        normalized: divides by 8, so that the response to a slope of 1 per pixel is 1.
        dtype: of the result.
        device: of the result; None is PyTorch's default.

    Returns:
        (2, 1, 3, 3).

    Example:
        >>> sobel_kernels()[0, 0]
        tensor([[-1.,  0.,  1.],
                [-2.,  0.,  2.],
                [-1.,  0.,  1.]])
    """
    return _derivatives("sobel", normalized, dtype, device)


def scharr_kernels(
    *, normalized: bool = False, dtype: torch.dtype = torch.float32, device: Any = None
) -> torch.Tensor:
    """Scharr's derivative kernels, closer to rotation invariance than Sobel's: x, then y.

    Args:
        normalized: divides by 32, so that the response to a slope of 1 per pixel is 1.
        dtype: of the result.
        device: of the result; None is PyTorch's default.

    Returns:
        (2, 1, 3, 3).
    """
    return _derivatives("scharr", normalized, dtype, device)


def prewitt_kernels(
    *, normalized: bool = False, dtype: torch.dtype = torch.float32, device: Any = None
) -> torch.Tensor:
    """Prewitt's derivative kernels: x, then y.

    Args:
        normalized: divides by 6, so that the response to a slope of 1 per pixel is 1.
        dtype: of the result.
        device: of the result; None is PyTorch's default.

    Returns:
        (2, 1, 3, 3).
    """
    return _derivatives("prewitt", normalized, dtype, device)


def difference_kernels(
    *, normalized: bool = False, dtype: torch.dtype = torch.float32, device: Any = None
) -> torch.Tensor:
    """Central differences, without smoothing across: x, then y.

    Args:
        normalized: divides by 2, so that the response to a slope of 1 per pixel is 1.
        dtype: of the result.
        device: of the result; None is PyTorch's default.

    Returns:
        (2, 1, 3, 3).
    """
    return _derivatives("diff", normalized, dtype, device)


def laplacian_kernel(
    neighbours: int = 4,
    *,
    normalized: bool = False,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> torch.Tensor:
    """A pixel's neighbours less the pixel: positive at dark spots, zero on ramps.

    Args:
        neighbours: 4, the sum of the second differences along x and y, or 8, with the corners.
        normalized: divides by the sum of absolute values, 8 or 16.
        dtype: of the result.
        device: of the result; None is PyTorch's default.

    Returns:
        (1, 1, 3, 3).

    Raises:
        ArgumentError: another number of neighbours.
    """
    if neighbours not in (4, 8):
        raise ArgumentError(f"neighbours must be 4 or 8, got {shown(neighbours)}")
    corner = int(neighbours == 8)
    rows = [[corner, 1, corner], [1, -neighbours, 1], [corner, 1, corner]]
    kernel = torch.tensor([[rows]], dtype=dtype, device=device)
    return kernel / (2 * neighbours) if normalized else kernel


def gaussian_window(sigma: float | torch.Tensor, size: int, *, device: Any = None) -> torch.Tensor:
    """A Gaussian sampled at the pixels of a one-dimensional window, normalised to sum 1.

        g(i) = exp(-x^2 / (2 * sigma^2)) / sum,  x = i - (size - 1) / 2

    Args:
        sigma: standard deviation in pixels, not negative; 0 gives weight to the middle pixel only,
            or to the middle two of an even window. A tensor of any shape gives a window for each
            of its elements, and is differentiable.
        size: of the window; even ones have their centre between two pixels.
        device: of the result; None is where a tensor sigma is, PyTorch's default for a number.

    Returns:
        A tensor of shape sigma.shape + (size,), float64.

    Example:
        >>> gaussian_window(0.0, 4)
        tensor([0.0000, 0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=device)
    x = torch.arange(size, dtype=torch.float64, device=sigma.device) - (size - 1) / 2
    # A narrower Gaussian is 1 at its middle and 0 elsewhere; softmax divides exp by its sum.
    return torch.softmax((x / sigma.clamp(min=1e-15).unsqueeze(-1)).square() / -2, dim=-1)


def gabor_kernels(
    frequency: float,
    theta: Any = 0.0,
    *,
    bandwidth: float = 1.0,
    n_stds: float = 3.0,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> torch.Tensor:
    """Even-symmetric Gabor filters: a cosine under a round Gaussian whose sum is about one.

        g(x, y) = exp(-(x^2 + y^2) / (2 * sigma^2)) / (2 * pi * sigma^2) * cos(2 * pi * f * u)
        u = x * cos(theta) + y * sin(theta)
        sigma = sqrt(ln(2) / 2) / (pi * f) * (2^b + 1) / (2^b - 1)

    The real part of `skimage.filters.gabor_kernel`, and in a window of its size: n_stds * sigma
    along the axes after rotation by theta, at least one pixel. The filters of a bank share the
    largest window. They do not sum to zero: the response to uniform brightness is small, not zero.

    Args:
        frequency: f, in cycles per pixel.
        theta: the direction, in radians from +x towards +y, in which brightness varies; or several.
        bandwidth: b, in octaves between the frequencies with half the largest response.
        n_stds: the window's reach, in standard deviations.
        dtype: of the result.
        device: of the result; None is PyTorch's default.

    Returns:
        (K, 1, R, S), K the number of directions, R and S odd.

    Raises:
        ArgumentError: no direction, or a number that is not positive and finite where it must be.
    """
    given = as_angles(theta)
    for name, value in (("frequency", frequency), ("bandwidth", bandwidth), ("n_stds", n_stds)):
        if not 0 < value < math.inf:
            raise ArgumentError(f"{name} must be positive, got {shown(value)}")
    octaves = (2**bandwidth + 1) / (2**bandwidth - 1)
    sigma = math.sqrt(math.log(2) / 2) / (math.pi * frequency) * octaves
    reach = float(torch.maximum(given.cos().abs(), given.sin().abs()).max())
    half = math.ceil(max(n_stds * sigma * reach, 1))
    angles = torch.tensor(given.tolist(), dtype=torch.float64, device=device).view(-1, 1, 1)
    y = torch.arange(-half, half + 1, dtype=torch.float64, device=device)[:, None]
    x = y.T
    turned = x * angles.cos() + y * angles.sin()
    envelope = torch.exp((x**2 + y**2) / (-2 * sigma**2)) / (2 * math.pi * sigma**2)
    return (envelope * torch.cos(2 * math.pi * frequency * turned)).unsqueeze(1).to(dtype)


def as_angles(theta: Any) -> torch.Tensor:
    """An angle, or a sequence, array or tensor of several, as float64 of shape () or (K,)."""
    try:
        angles = torch.as_tensor(theta, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(f"theta must be an angle or several, got {shown(theta)}") from None
    if angles.dim() > 1 or angles.numel() == 0 or not angles.isfinite().all():
        raise ArgumentError(f"theta must be a finite angle or several, got {shown(theta)}")
    return angles


def textbook_edge_kernel(*, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
    """The textbook's [[1, -1]]: +1 where white turns black, -1 where black turns white.

    Args:
        dtype: of the result.
        device: of the result; None is PyTorch's default.

    Returns:
        (1, 1, 1, 2).
    """
    return torch.tensor([[[[1, -1]]]], dtype=dtype, device=device)


def log_gabor_kernels(
    size: int = 21,
    orientations: int = 6,
    *,
    wavelength: float = 6.0,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
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
        wavelength: of the stripes with the largest response, in pixels; at least 2.
        dtype: of the result.
        device: of the result; None is PyTorch's default.

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
    # The frequency grid is finer than the window's, or the filter would wrap around.
    grid = 4 * size + 1
    frequency = torch.fft.fftfreq(grid, dtype=torch.float64, device=device)
    fy, fx = torch.meshgrid(frequency, frequency, indexing="ij")
    radius = torch.hypot(fx, fy)
    radius[0, 0] = 1
    radial = torch.exp(-((radius * wavelength).log() ** 2) / (2 * math.log(0.65) ** 2))
    radial[0, 0] = 0
    theta = torch.arange(orientations, dtype=torch.float64, device=device).view(-1, 1, 1)
    theta = theta * math.pi / orientations
    # The angle to an axis, not to a direction: that makes the spectrum even and the filter real.
    angle = torch.remainder(torch.atan2(fy, fx) - theta + math.pi / 2, math.pi) - math.pi / 2
    spectrum = radial * torch.exp(-(angle**2) / (2 * (math.pi / orientations / 1.5) ** 2))
    filters = torch.fft.fftshift(torch.fft.ifft2(spectrum).real, dim=(-2, -1))
    half = size // 2
    window = slice(grid // 2 - half, grid // 2 + half + 1)
    filters = filters[..., window, window]
    filters = filters - filters.mean(dim=(-2, -1), keepdim=True)  # subtract the remaining sum
    return ((filters + filters.flip(-2, -1)) / 2).unsqueeze(1).to(dtype)


def _derivatives(mode: str, normalized: bool, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """[-1, 0, 1] along one axis, the mode's smoothing along the other: x, then y."""
    smooth = torch.tensor(SMOOTHING[mode], dtype=dtype, device=device)
    x = smooth[:, None] * torch.tensor([-1, 0, 1], dtype=dtype, device=device)
    if normalized:
        x = x / (2 * sum(SMOOTHING[mode]))
    return torch.stack([x, x.T]).unsqueeze(1)
