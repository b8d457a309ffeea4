"""One-channel images on CPU: bands, sums of taps and spectra compute the correlation.

Infinities and NaNs reach only the outputs whose windows contain them.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import tricorr
from tricorr.ops import blocks, one_channel
from tricorr.ops.geometry import geometry_of

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

#: (N, H, W), (K, R, S), padding, padding_mode
CASES = {
    "few_taps": ((2, 400, 257), (2, 3, 3), 1, "zeros"),
    "no_whole_block": ((1, 300, 333), (1, 7, 9), (3, 4), "circular"),
    "whole_blocks": ((1, 256, 272), (3, 5, 17), (2, 0), "zeros"),
    "column": ((1, 300, 301), (2, 25, 1), (12, 0), "reflect"),
    "row": ((1, 300, 301), (1, 1, 25), (0, 12), "replicate"),
    "many_taps": ((1, 211, 190), (3, 16, 17), 0, "zeros"),
}
DTYPES = [torch.float32, torch.float64]


def operands(name, dtype, values=torch.randn):
    (N, H, W), (K, R, S), padding, mode = CASES[name]
    image, weight = values(N, 1, H, W), values(K, 1, R, S)
    rows, columns = (padding, padding) if isinstance(padding, int) else padding
    geometry = geometry_of(
        tuple(image.shape), tuple(weight.shape), (1, 1), ((rows, rows), (columns, columns)),
        padding_mode=mode,
    )  # fmt: skip
    assert one_channel.takes(geometry, dtype)
    options = {"padding": padding, "padding_mode": mode}
    return image.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), options, geometry


def by_float64(image, weight, geometry):
    (top, bottom), (left, right) = geometry.padding
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    return F.conv2d(F.pad(image, (left, right, top, bottom), mode), weight)


def whole_numbers(*shape):
    return torch.randint(-4, 5, shape).float()


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2**14)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_close_to_float64(backend, name, dtype):
    torch.manual_seed(0)
    image, weight, options, geometry = operands(name, dtype)
    y = tricorr.corr2d(image, weight, **options)
    leaves = [t.detach().double().requires_grad_() for t in (image, weight)]
    expected = by_float64(*leaves, geometry)
    dy = torch.randn(y.shape, dtype=dtype)
    grads = torch.autograd.grad(y, (image, weight), dy)
    truths = torch.autograd.grad(expected, leaves, dy.double())
    # A sum of absolute values bounds the rounding error of the sum: eps for every term.
    leaves = [t.detach().double().abs().requires_grad_() for t in (image, weight)]
    sums = by_float64(*leaves, geometry)
    bounds = torch.autograd.grad(sums, leaves, dy.double().abs())
    for ours, truth, bound in zip((y, *grads), (expected, *truths), (sums, *bounds), strict=True):
        assert ours.dtype == dtype
        # All values computed by one spectrum have the error of the largest of them.
        limit = bound if name != "many_taps" else bound.max()
        assert bool(((ours.double() - truth).abs() <= 16 * torch.finfo(dtype).eps * limit).all())


@pytest.mark.parametrize("name", [name for name in CASES if name != "many_taps"])
def test_whole_numbers_are_exact(backend, name):
    image, weight, options, geometry = operands(name, torch.float32, whole_numbers)
    y = tricorr.corr2d(image, weight, **options)
    leaves = [t.detach().double().requires_grad_() for t in (image, weight)]
    expected = by_float64(*leaves, geometry)
    dy = whole_numbers(*y.shape)
    grads = torch.autograd.grad(y, (image, weight), dy)
    truths = torch.autograd.grad(expected, leaves, dy.double())
    for ours, truth in zip((y, *grads), (expected, *truths), strict=True):
        assert torch.equal(ours.double(), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["few_taps", "whole_blocks", "column", "many_taps"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_infinity_and_nan_reach_only_windows_that_contain_them(backend, name, value, dtype):
    image, weight, options, _ = operands(name, dtype)
    (_, R, S), padding = CASES[name][1:3]
    top, left = (padding, padding) if isinstance(padding, int) else padding
    with torch.no_grad():
        image[0, 0, 100, 100] = value
        y = tricorr.corr2d(image, weight, **options)
    reached = torch.zeros(y.shape[-2:], dtype=torch.bool)
    reached[100 + top - R + 1 : 101 + top, 100 + left - S + 1 : 101 + left] = True
    assert torch.equal(~y[0, 0].isfinite(), reached)


@pytest.mark.parametrize(("mode", "side"), [("reflect", 299), ("circular", 300)])
def test_padding_may_be_as_wide_as_the_image(backend, mode, side):
    image, weight = whole_numbers(1, 1, 100, 300), whole_numbers(1, 1, 5, 5)
    y = tricorr.corr2d(image, weight, padding=(0, side), padding_mode=mode)
    assert torch.equal(y, F.conv2d(F.pad(image, (side, side, 0, 0), mode), weight))


def test_weight_gradients_of_infinity_and_nan_equal_pytorchs(backend):
    image, weight, options, geometry = operands("whole_blocks", torch.float32, whole_numbers)
    with torch.no_grad():
        image[0, 0, 0, 0] = float("inf")  # under the window's first row and column alone
    (dw,) = torch.autograd.grad(tricorr.corr2d(image, weight, **options).sum(), weight)
    (expected,) = torch.autograd.grad(by_float64(image, weight, geometry).sum(), weight)
    assert torch.equal(dw.isfinite(), expected.isfinite())
    assert 0 < int(dw.isfinite().sum()) < dw.numel()


def test_two_dimensional_forms_have_second_derivatives(backend):
    image = torch.randn(300, 400, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    y = tricorr.corr2d(image, kernel)
    assert torch.allclose(y, F.conv2d(image[None, None], kernel[None, None])[0, 0])
    (dw,) = torch.autograd.grad(y.square().sum() / 2, kernel, create_graph=True)
    # sum(y^2) / 2 is quadratic in the kernel: its Hessian times the kernel is its gradient.
    (product,) = torch.autograd.grad(dw, kernel, kernel.detach())
    torch.testing.assert_close(product, dw)


@pytest.mark.parametrize("call", ["gaussian_blur(image, 3.0)", "box_blur(image, 25)"])
def test_a_float64_blur_takes_three_images_of_memory_besides_its_own(backend, call):
    code = (
        "import re, torch, tricorr\n"
        "torch.set_num_threads(1)\n"
        "status = lambda: open('/proc/self/status').read()\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', status())[1])\n"
        "blur = lambda image: tricorr.filters." + call + "\n"
        "blur(torch.ones(300, 400, dtype=torch.float64))\n"
        "image = torch.rand(2048, 2048, dtype=torch.float64)\n"
        "before = peak()\n"
        "blur(image)\n"
        "print((peak() - before) / (image.numel() * 8))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert 1 <= float(done.stdout) <= 3.2
