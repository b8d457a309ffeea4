"""A textbook's chapter on convolutional layers: every number of it."""

import pytest
import torch

import tricorr


@pytest.fixture
def edges(backend):
    """White, black, white: a 6x8 image of ones whose columns 2 to 5 are zero; and the kernel."""
    image = torch.ones(6, 8, device=backend.device)
    image[:, 2:6] = 0
    return image, torch.tensor([[1.0, -1.0]], device=backend.device)


def test_cross_correlation_by_hand(backend):
    image = torch.arange(9.0, device=backend.device).reshape(3, 3)
    kernel = torch.arange(4.0, device=backend.device).reshape(2, 2)
    assert tricorr.corr2d(image, kernel).tolist() == [[19, 25], [37, 43]]


@pytest.mark.parametrize(
    ("size", "window"), [((3, 3), (2, 2)), ((6, 8), (1, 2)), ((5, 4), (5, 4)), ((7, 5), (3, 1))]
)
def test_output_size(backend, size, window):
    result = tricorr.corr2d(*(torch.ones(s, device=backend.device) for s in (size, window)))
    assert result.shape == (size[0] - window[0] + 1, size[1] - window[1] + 1)


def test_layer_takes_a_plain_image(backend):
    layer = tricorr.Conv2D(kernel_size=(1, 2)).to(backend.device)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (1, 2),
        "bias": (1,),
    }
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
        layer.bias.fill_(0.5)
    image = torch.arange(48.0, device=backend.device).reshape(6, 8)
    assert torch.equal(layer(image), tricorr.corr2d(image, layer.weight) + layer.bias)
    assert torch.equal(layer(image), torch.full((6, 7), -0.5, device=backend.device))


def test_edges_are_found(backend, edges):
    image, kernel = edges
    expected = torch.zeros(6, 7, device=backend.device)
    expected[:, 1], expected[:, 5] = 1, -1
    assert torch.equal(tricorr.corr2d(image, kernel), expected)
    assert torch.equal(tricorr.corr2d(image.t(), kernel), torch.zeros(8, 5, device=backend.device))


def learn(image, target, start=None):
    """Losses and kernels of the textbook's loop: ten steps of 3e-2 on the summed squared error."""
    X = image.reshape((1, 1, 6, 8))
    Y = target.reshape((1, 1, 6, 7))
    conv2d = tricorr.LazyConv2D(1, kernel_size=(1, 2), bias=False, device=image.device)
    conv2d(X)
    if start is not None:
        conv2d.weight.data[:] = start
    lr = 3e-2
    losses, kernels = [], [conv2d.weight.detach().double().cpu().reshape(2)]
    for i in range(10):
        Y_hat = conv2d(X)
        loss = (Y_hat - Y) ** 2
        conv2d.zero_grad()
        loss.sum().backward()
        conv2d.weight.data[:] -= lr * conv2d.weight.grad
        losses.append(loss.sum().item())
        kernels.append(conv2d.weight.detach().double().cpu().reshape(2))
        if (i + 1) % 2 == 0:
            print(f"epoch {i + 1}, loss {loss.sum():.3f}")
    return losses, kernels


@pytest.mark.parametrize("start", ["drawn", "zero"])
def test_learning_follows_exact_arithmetic(backend, edges, start, capsys):
    """Squared error is e^T G e with G = [[18, 12], [12, 18]], so its Hessian 2 G has eigenvalue 60
    along (1, 1) and 12 along (1, -1): a step of 0.03 multiplies the error by -0.8 and by 0.64.
    """
    image, kernel = edges
    target = tricorr.corr2d(image, kernel)
    losses, kernels = learn(image, target, 0.0 if start == "zero" else None)

    axes = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    a, b = axes @ (kernels[0] - torch.tensor([1.0, -1.0], dtype=torch.float64))
    curve = [30 * (a * (-0.8) ** i) ** 2 + 6 * (b * 0.64**i) ** 2 for i in range(10)]
    torch.testing.assert_close(losses, [loss.item() for loss in curve], rtol=1e-4, atol=1e-5)
    for i, learned in enumerate(kernels):
        error = torch.stack([a * (-0.8) ** i, b * 0.64**i]) @ axes
        torch.testing.assert_close(learned - kernel.cpu().reshape(2), error, rtol=1e-4, atol=1e-5)
    if start == "zero":
        assert losses[0] == 12.0

    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"epoch {i}, loss {losses[i - 1]:.3f}" for i in (2, 4, 6, 8, 10)]


def test_learned_kernel_is_near(backend, edges):
    image, kernel = edges
    losses, kernels = learn(image, tricorr.corr2d(image, kernel), 0.0)
    assert 1e-3 < losses[-1] < 1e-1
    assert (kernels[-1] - kernel.cpu().reshape(2)).abs().max() < 0.05


def test_strict_convolution_flips_the_kernel(backend):
    image = torch.arange(30.0, device=backend.device).reshape(5, 6).square() % 7
    kernel = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.0, 5.0]], device=backend.device)
    flipped = kernel.flip(0, 1)
    assert torch.equal(tricorr.convolve2d(image, kernel), tricorr.corr2d(image, flipped))
    result = tricorr.convolve2d(image, kernel)
    by_hand = sum(kernel[r, s] * image[2 - 1 - r, 3 - 1 - s] for r in range(2) for s in range(3))
    assert result[0, 0] == by_hand


def test_kernel_learned_by_strict_convolution_is_the_flipped_one(backend):
    """Both give the same output, at every step."""
    image = torch.randn(5, 6, device=backend.device, dtype=torch.float64)
    target = tricorr.corr2d(image, torch.randn(2, 3).to(image))
    start = torch.randn(2, 3).to(image)
    learned = {}
    for function, kernel in ((tricorr.corr2d, start), (tricorr.convolve2d, start.flip(0, 1))):
        kernel = kernel.clone().requires_grad_()
        for _ in range(5):
            loss = (function(image, kernel) - target).square().sum()
            (gradient,) = torch.autograd.grad(loss, kernel)
            kernel.data -= 5e-3 * gradient
        learned[function] = kernel.detach()
    correlated, convolved = learned.values()
    torch.testing.assert_close(convolved.flip(0, 1), correlated, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        tricorr.convolve2d(image, convolved), tricorr.corr2d(image, correlated)
    )


def test_two_windows_of_two_see_three():
    window = {"window": 2, "stride": 1, "padding": 0, "dilation": 1}
    layer = tricorr.Conv2D(kernel_size=2)
    for layers in ([2, 2], [window, window], [layer, layer], [(2, 2), layer]):
        assert tricorr.receptive_field(layers).size == (3, 3)
