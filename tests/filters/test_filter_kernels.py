"""Banks of named kernels, against other libraries and against their definitions."""

import math

import pytest
import torch

from tricorr import ArgumentError, convolve2d, corr2d
from tricorr.filters import (
    laplacian_kernel,
    log_gabor_kernels,
    prewitt_kernels,
    scharr_kernels,
    sobel_kernels,
    textbook_edge_kernel,
)

on_cpu = pytest.mark.parametrize("backend", ["cpu"], indirect=True)


@pytest.fixture(scope="module")
def photograph():
    """128 x 160 pixels of a real photograph, in float64."""
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.camera()[80:208, 180:340].copy()).double() / 255


@on_cpu
@pytest.mark.parametrize("function", [sobel_kernels, scharr_kernels, prewitt_kernels])
def test_derivatives_are_positive_where_brightness_rises(backend, function):
    ramp = torch.arange(8.0).expand(6, 8)
    bank = function(normalized=True)
    assert bank.shape == (2, 1, 3, 3)
    x, y = corr2d(ramp[None, None], bank)[0]
    torch.testing.assert_close(x, torch.ones(4, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(y, torch.zeros(4, 6), rtol=0, atol=1e-5)
    x, y = corr2d(ramp.T.contiguous()[None, None], bank)[0]
    torch.testing.assert_close(x, torch.zeros(6, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(y, torch.ones(6, 4), rtol=0, atol=1e-5)


def test_derivatives_are_whole_numbers_unless_normalized():
    assert sobel_kernels()[0, 0].tolist() == [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    assert laplacian_kernel()[0, 0].tolist() == [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
    assert scharr_kernels()[1, 0].tolist() == [[-3, -10, -3], [0, 0, 0], [3, 10, 3]]
    assert prewitt_kernels(dtype=torch.float64)[0, 0].tolist() == [[-1, 0, 1]] * 3


@on_cpu
def test_textbook_edge_is_positive_where_white_turns_black(backend):
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    response = corr2d(image[None, None], textbook_edge_kernel())[0, 0]
    assert torch.equal(response, torch.tensor([0.0, 1, 0, 0, 0, -1, 0]).expand(6, 7))
    assert not corr2d(image.T.contiguous()[None, None], textbook_edge_kernel()).any()


@pytest.mark.parametrize(("size", "orientations"), [(21, 6), (9, 4), (15, 1), (31, 8)])
def test_log_gabor_kernels_are_even_and_sum_to_zero(size, orientations):
    bank = log_gabor_kernels(size, orientations, dtype=torch.float64)
    assert bank.shape == (orientations, 1, size, size)
    assert torch.equal(bank, bank.flip(-2, -1))
    assert bank.sum(dim=(-2, -1)).abs().max() < 1e-14


def test_log_gabor_kernels_are_the_transpose_and_the_mirror_image_of_each_other():
    bank = log_gabor_kernels(dtype=torch.float64)[:, 0]
    torch.testing.assert_close(bank[3], bank[0].T, rtol=0, atol=1e-15)
    torch.testing.assert_close(bank[5], bank[1].flip(0), rtol=0, atol=1e-15)


@on_cpu
def test_even_filters_are_the_same_for_convolution(backend, photograph):
    bank = log_gabor_kernels(9, dtype=torch.float64)
    x = photograph[None, None]
    torch.testing.assert_close(corr2d(x, bank), convolve2d(x, bank), rtol=0, atol=1e-13)


def stripes(degrees, wavelength, size=61):
    """A grating of amplitude 1 whose brightness varies in this direction, from +x towards +y."""
    at = torch.arange(size, dtype=torch.float64) - size // 2
    angle = math.radians(degrees)
    along = at * math.cos(angle) + at[:, None] * math.sin(angle)
    return torch.cos(2 * math.pi * along / wavelength)


@on_cpu
@pytest.mark.parametrize("k", range(6))
def test_log_gabor_kernels_are_largest_for_stripes_in_their_direction(backend, k):
    bank = log_gabor_kernels(dtype=torch.float64)
    degrees = range(0, 180, 5)
    images = torch.stack([stripes(d, 6.0) for d in degrees])[:, None]
    strength = corr2d(images, bank).abs().amax(dim=(-2, -1))  # (images, filters)
    assert degrees[int(strength[:, k].argmax())] == 30 * k
    assert strength[6 * k].argmax() == k
    assert strength[6 * k, k] == pytest.approx(1, abs=0.1)
    across = (6 * k + 18) % 36
    assert strength[across, k] < 0.02


@on_cpu
def test_log_gabor_kernels_are_largest_for_stripes_of_their_wavelength(backend):
    bank = log_gabor_kernels(31, wavelength=7, dtype=torch.float64)[:1]
    wavelengths = [3, 4, 5, 6, 7, 8, 10, 14]
    images = torch.stack([stripes(0, w, 81) for w in wavelengths])[:, None]
    strength = corr2d(images, bank).abs().amax(dim=(-2, -1))
    assert wavelengths[int(strength.argmax())] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 20}, "size must be odd and at least 3, got 20"),
        ({"size": 1}, "size must be odd and at least 3, got 1"),
        ({"orientations": 0}, "orientations must be positive, got 0"),
        ({"wavelength": 1.5}, "wavelength must be at least 2 pixels, got 1.5"),
        ({"wavelength": math.nan}, "wavelength must be at least 2 pixels, got nan"),
    ],
)
def test_wrong_arguments_of_log_gabor_kernels_are_refused(arguments, message):
    with pytest.raises(ArgumentError) as refused:
        log_gabor_kernels(**arguments)
    assert str(refused.value) == message
