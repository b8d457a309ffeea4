"""receptive_field: against the book, published networks, and gradients of the stack itself."""

import pytest
import torch
from torch import nn

from tricorr import ArgumentError, ArgumentTypeError, Conv2D, receptive_field


def test_two_stacked_2x2_layers_see_3x3():
    assert receptive_field([2, 2]).size == (3, 3)
    assert receptive_field([Conv2D(kernel_size=2), Conv2D(kernel_size=2)]).size == (3, 3)


@pytest.mark.parametrize(
    "stack",
    [
        nn.Sequential(nn.Conv2d(1, 1, (3, 2), stride=(2, 1)), nn.ReLU(), nn.Conv2d(1, 1, 3)),
        nn.Sequential(nn.Conv2d(1, 1, 3, dilation=(2, 3)), nn.AvgPool2d(2), nn.Conv2d(1, 1, 2)),
        nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Sequential(nn.AvgPool2d(3, 2, 1))),
        nn.Sequential(nn.Conv2d(1, 1, 5, stride=2, padding=2), nn.Conv2d(1, 1, 3, stride=2)),
    ],
    ids=["strided", "dilated_then_pooled", "padded_then_nested", "two_strides"],
)
def test_field_is_where_the_gradient_is_not_zero(stack):
    for parameter in stack.parameters():
        nn.init.constant_(parameter, 1.0)
    field = receptive_field(stack)
    x = torch.rand(1, 1, 40, 41, requires_grad=True)
    y = stack(x)
    p, q = y.shape[-2] // 2, y.shape[-1] // 2
    y[0, 0, p, q].backward()
    seen = x.grad[0, 0].nonzero()
    for axis, index in enumerate((p, q)):
        first, last = int(seen[:, axis].min()), int(seen[:, axis].max())
        assert first == field.start[axis] + index * field.step[axis]
        assert last == first + field.size[axis] - 1


def test_layers_as_numbers_and_mappings():
    stack = nn.Sequential(nn.Conv2d(1, 1, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(1, 1, (3, 5)))
    layers = [
        {"window": 7, "stride": 2, "padding": 3},
        {"window": 3, "stride": 2, "padding": 1},
        (3, 5),
    ]
    assert receptive_field(layers) == receptive_field(stack)
    assert receptive_field(stack[:2]).size == (11, 11)
    assert receptive_field([]).size == (1, 1)


@pytest.mark.parametrize(
    ("layers", "kind", "message"),
    [
        (nn.Linear(2, 2), ArgumentError, "receptive field of Linear is not known"),
        (["3"], ArgumentTypeError, "a layer must be a module, a window or a mapping, got str"),
        ([{"stride": 2}], ArgumentError, r"a layer is a mapping with window.* got \['stride'\]"),
        ([{"window": 3, "size": 2}], ArgumentError, r"got \['size', 'window'\]"),
        ([0], ArgumentError, "window must be positive, got 0"),
        ([{"window": 3, "stride": 0}], ArgumentError, "stride must be positive, got 0"),
        ([{"window": 3, "padding": -1}], ArgumentError, "padding must not be negative"),
        ([2.5], ArgumentTypeError, "got float"),
    ],
)
def test_layers_that_are_not_understood_are_named(layers, kind, message):
    with pytest.raises(kind, match=message):
        receptive_field(layers)
