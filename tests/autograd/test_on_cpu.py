"""On CPU, calls run PyTorch's own operators where these are equivalent."""

import pytest
import torch

import tricorr

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autograd_sees_one_convolution(backend, dtype):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("PyTorch sums bfloat16 gradients in bfloat16 on this processor")
    layer = tricorr.Conv2D(2, 4, 3, padding=1, dtype=dtype)
    image = torch.randn(1, 2, 5, 6, dtype=dtype, requires_grad=True)
    y = layer(image)
    assert y.grad_fn.name() == "ConvolutionBackward0"
    expected = torch.nn.functional.conv2d(image, layer.weight, layer.bias, padding=1)
    assert torch.equal(y, expected)
    leaves = [image, *layer.parameters()]
    grads, theirs = (torch.autograd.grad(out.sum(), leaves) for out in (y, expected))
    assert all(map(torch.equal, grads, theirs))
    transposed = tricorr.corr_transpose2d(image, layer.weight[:2, :1])
    assert transposed.grad_fn.name() == "ConvolutionBackward0"


def test_float16_gradients_are_summed_in_float32(backend):
    x = torch.full((1, 1, 64, 64), 1.0, dtype=torch.float16)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float16, requires_grad=True)
    # In float16, 2048 + 1 is 2048, so a sum of ones would stop at 2048.
    (dw,) = torch.autograd.grad(tricorr.corr2d(x, weight).sum(), weight)
    assert dw.item() == 4096


@pytest.mark.parametrize("channels_last", ["image", "weight"])
@pytest.mark.parametrize("channels", [3, 8, 64])
def test_strided_pointwise_layers_train_in_channels_last(backend, channels, channels_last):
    image = torch.randn(2, channels, 56, 56)
    layer = tricorr.Conv2D(channels, channels, 1, stride=2)
    expected = torch.autograd.grad(layer(image).square().sum(), list(layer.parameters()))
    if channels_last == "image":
        image = image.to(memory_format=torch.channels_last)
    else:
        layer = layer.to(memory_format=torch.channels_last)
    y = layer(image)
    assert y.is_contiguous(memory_format=torch.channels_last) == (channels_last == "image")
    grads = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("image_format", ["contiguous", "channels_last", "transposed"])
def test_format_follows_the_image_and_not_the_weight(backend, image_format):
    image = torch.randn(2, 4, 6, 7)
    if image_format == "channels_last":
        image = image.to(memory_format=torch.channels_last)
    elif image_format == "transposed":
        image = image.mT.contiguous().mT
    weight = torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)
    y = tricorr.corr2d(image, weight)
    form = torch.channels_last if image_format == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=form)


@pytest.mark.parametrize(
    ("name", "value"),
    [("groups", True), ("padding", -1), ("padding", (1, -1)), ("padding", ()), ("stride", 0),
     ("stride", 1.5), ("dilation", 0), ("padding_mode", "constant"), ("padding", 2**70)],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_pytorch(backend, name, value):
    arguments = {"padding": 1, "padding_mode": "replicate", name: value}
    with pytest.raises((tricorr.ArgumentError, tricorr.ArgumentTypeError), match=name):
        tricorr.corr2d(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 3, 3), **arguments)


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 1, 5, 4), (2, 2, 3, 5, 4)], ids=str)
def test_a_plain_kernel_of_one_element_with_a_stride(backend, shape):
    x, weight = torch.randn(shape), torch.randn(1, 1)
    assert torch.equal(tricorr.corr2d(x, weight, stride=(1, 2)), x[..., ::2] * weight)
