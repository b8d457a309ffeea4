"""Calls that skip PyTorch's dispatcher still respect everything that it takes care of.

A call without gradients, transforms or subclasses launches its kernel directly. These tests make
calls that must not take this short way, or that must give the same result on it.
"""

import pytest
import torch
import torch.nn.functional as F
from closeness import check

from tricorr import ArgumentTypeError, Conv2D, convolve2d, corr2d
from tricorr.ops import geometry_of

GEOMETRY = geometry_of((2, 2, 4, 5), (3, 2, 2, 2))


def negated(shape):
    """A view with the negative bit set: its memory holds the values with the opposite sign."""
    view = torch.view_as_complex(torch.randn(*shape, 2)).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("which", ["image", "weight"])
def test_negated_views_are_read_with_their_sign(backend, which):
    x, weight = torch.randn(GEOMETRY.x_shape), torch.randn(GEOMETRY.weight_shape)
    x, weight = (negated(x.shape), weight) if which == "image" else (x, negated(weight.shape))
    x, weight = x.to(backend.device), weight.to(backend.device)
    args = (x.resolve_neg(), weight.resolve_neg(), None)
    check("fprop", args, GEOMETRY, actual=corr2d(x, weight))


def test_zero_tangents_without_memory_are_accepted(backend):
    zero = torch._efficientzerotensor(GEOMETRY.x_shape, device=backend.device)
    weight = torch.randn(GEOMETRY.weight_shape, device=backend.device)
    assert torch.equal(corr2d(zero, weight).cpu(), torch.zeros(GEOMETRY.y_shape))


def test_tensors_that_outlived_a_transform_are_accepted(backend):
    weight = torch.randn(GEOMETRY.weight_shape, device=backend.device, requires_grad=True)
    left = []

    def leak(x):
        left.append(x * 1)
        return x.sum()

    torch.func.grad(leak)(torch.ones(GEOMETRY.x_shape, device=backend.device))
    y = corr2d(left[0], weight)
    y.sum().backward()
    args = (torch.ones(GEOMETRY.x_shape, device=backend.device), weight.detach(), None)
    check("fprop", args, GEOMETRY, actual=y.detach())
    assert torch.equal(weight.grad, torch.full_like(weight, 2 * 3 * 4))


@pytest.mark.parametrize("stride", [True, (True, 1), 1.0, (1, 1.0)], ids=str)
def test_a_valid_call_does_not_admit_an_equal_invalid_one(stride):
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)
    for good in (1, (1, 1)):
        corr2d(x, weight, stride=good, padding=good, dilation=good)
    for name in ("stride", "padding", "dilation"):
        with pytest.raises(ArgumentTypeError, match=f"{name} must be an integer"):
            corr2d(x, weight, **{name: stride})


def test_a_tensor_with_a_torch_function_takes_the_call():
    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function, args[3:], kwargs

    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2).as_subclass(Watched)
    named = {"padding_mode": "circular", "activation": "relu", "precision": "ieee"}
    named["residual"] = None
    for function in (corr2d, convolve2d):
        taken = function(x, weight, None, 2, padding=1, groups=1, **named)
        assert taken == (function, (2, 1, 1, 1), named)


@pytest.mark.parametrize("padding", [(1, 2), [1, 2], ((1, 1), (2, 2)), torch.tensor([1, 2])])
def test_all_forms_of_padding_are_equal(padding):
    x, weight = torch.randn(1, 2, 4, 5), torch.randn(3, 2, 2, 2)
    expected = F.conv2d(x, weight, padding=(1, 2))
    torch.testing.assert_close(corr2d(x, weight, padding=padding), expected)


def test_subclasses_may_change_how_the_layer_is_applied():
    class Doubled(Conv2D):
        def _conv_forward(self, input, weight, bias):
            return 2 * super()._conv_forward(input, weight, bias)

    layer = Doubled(1, 1, 2)
    x = torch.randn(1, 1, 3, 3)
    assert torch.equal(layer(x), 2 * corr2d(x, layer.weight, layer.bias))
