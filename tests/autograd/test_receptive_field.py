"""receptive_field: textbook values, published networks, and gradients of the stack itself."""

import pytest
import torch
import torch.nn.functional as F
from networks import MobileNetV2, ResNet18
from torch import nn

from tricorr import ArgumentError, ArgumentTypeError, Conv2D, convert, corr2d, receptive_field


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


@pytest.mark.parametrize(
    "stack",
    [
        nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.ConvTranspose2d(1, 1, (4, 3), 2, (1, 0))),
        nn.Sequential(nn.ConvTranspose2d(1, 1, 3, (3, 2), 1, dilation=2), nn.Conv2d(1, 1, 3)),
        nn.Sequential(nn.AvgPool2d(3), nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3)),
        nn.Sequential(nn.AvgPool2d(3), nn.Upsample(scale_factor=(2, 3), mode="bilinear")),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2), nn.ReflectionPad2d((1, 2, 2, 0))),
    ],
    ids=["transposed", "dilated", "nearest", "bilinear", "shuffled"],
)
def test_fields_of_enlarged_maps_are_where_the_gradient_is_not_zero(stack):
    for parameter in stack.parameters():
        nn.init.constant_(parameter, 1.0)
    field = receptive_field(stack)
    x = torch.rand(1, 1, 40, 41, requires_grad=True)
    y = stack(x)
    sizes = [set(), set()]
    for index in range(12, 24):
        (grad,) = torch.autograd.grad(y[0, 0, index, index], x, retain_graph=True)
        for axis, seen in enumerate(grad[0, 0].nonzero().T.tolist()):
            sizes[axis].add(max(seen) - min(seen) + 1)
            if index % 6 == 0:  # whole periods from output 0
                assert min(seen) == field.start[axis] + index * field.step[axis]
    assert tuple(map(max, sizes)) == field.size


class Branches(nn.Module):
    """A shortcut, a wider branch, functions, and a gate computed of the whole image."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(2, 2, 3, stride=2, padding=1)
        self.right = nn.Conv2d(2, 2, 5, stride=2, dilation=2, padding=(4, 4))
        self.gate = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.mix = nn.Linear(2, 2)
        self.window = nn.Parameter(torch.ones(2, 2, 3, 2))

    def forward(self, x):
        y = F.relu(self.left(x)) + self.right(x)
        gate = torch.sigmoid(self.gate(y.mean((2, 3))))
        y = y * gate[:, :, None, None]
        y = corr2d(y, self.window, padding=((0, 1), (2, 0)))
        y = self.mix(self.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return F.avg_pool2d(torch.cat([y, y[:, :1]], 1), 2)


def test_a_branch_has_the_union_of_its_fields():
    model = Branches()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0)
    model.gate, model.norm = nn.Identity(), nn.Identity()  # the field leaves them out
    field = receptive_field(Branches())
    x = torch.rand(1, 2, 40, 41, requires_grad=True)
    # Without the gate's own derivative: it sees the whole image.
    model.gate.forward = lambda pooled: pooled.detach()
    y = model(x)
    p, q = y.shape[-2] // 2, y.shape[-1] // 2
    seen = torch.autograd.grad(y[0, 0, p, q], x)[0][0, 0].nonzero()
    for axis, index in enumerate((p, q)):
        first, last = int(seen[:, axis].min()), int(seen[:, axis].max())
        assert first == field.start[axis] + index * field.step[axis]
        assert last == first + field.size[axis] - 1


def test_networks_see_the_sum_of_their_windows():
    """Each window adds (window - 1) * step.

    In ResNet-18 7 + 2*2, 4*8, 8 + 3*16, 16 + 3*32, 32 + 3*64.
    In MobileNetV2 3 + 4, 4 + 8, 8 + 2*16, 16 + 3*32, 3*32, 32 + 2*64, 64.
    """
    resnet, mobilenet = receptive_field(ResNet18()), receptive_field(MobileNetV2())
    assert (resnet.size, resnet.step) == ((435, 435), (32, 32))
    assert (mobilenet.size, mobilenet.step) == ((491, 491), (32, 32))
    converted = ResNet18()
    convert(converted)
    assert receptive_field(converted) == resnet
    assert receptive_field([nn.Conv2d(3, 3, 3), ResNet18()]).size == (437, 437)


def test_gates_over_the_whole_image_are_left_out():
    class Excited(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2)
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

        def forward(self, x):
            x = self.first(x)
            return self.second(x * self.gate(x))

    field = receptive_field(Excited())
    assert (field.size, field.step) == ((5, 5), (2, 2))
    assert [name for name, _, _ in field.layers] == ["first", "second"]
    head = nn.Sequential(Excited(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    assert receptive_field(head) == field


def test_the_table_has_a_line_for_every_layer():
    field = receptive_field(ResNet18())
    assert len(field.layers) == 21  # 20 convolutions and a pool
    name, kind, stem = field.layers[0]
    assert (name, kind, stem.size, stem.start) == ("conv1", "Conv2d", (7, 7), (-3, -3))
    assert field.layers[-1][0] == "layer4.1.conv2"
    lines = str(field).splitlines()
    assert lines[0].split() == ["layer", "kind", "size", "step", "start"]
    assert " ".join(lines[2].split()) == "maxpool MaxPool2d 11 x 11 4 x 4 -5, -5"
    assert " ".join(lines[-1].split()) == "output 435 x 435 32 x 32 -217, -217"
    assert repr(receptive_field(2)) == "ReceptiveField(size=(2, 2), step=(1, 1), start=(0, 0))"


class OfValues(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Up(nn.Module):
    def forward(self, x):
        return F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:]) + x


class Uneven(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.MaxPool2d(2)

    def forward(self, x):
        return torch.cat([self.down(x), x[:, :, 1:]], 1)


def test_layers_may_be_numbers_and_mappings():
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
        (OfValues(), ArgumentError, "OfValues cannot be traced by torch.fx"),
        (Up(), ArgumentError, "receptive field of interpolate is not known"),
        (nn.UpsamplingBilinear2d(scale_factor=2), ArgumentError, "Bilinear2d is not known"),
        (Uneven(), ArgumentError, "receptive field of getitem is not known"),
        (
            nn.Sequential(nn.Flatten(), nn.Conv2d(1, 1, 3)),
            ArgumentError,
            "Conv2d takes what Flatten",
        ),
        (["3"], ArgumentTypeError, "a layer must be a module, a window or a mapping, got str"),
        ([{"stride": 2}], ArgumentError, r"a layer is a mapping with window.* got \['stride'\]"),
        ([{"window": 3, "size": 2}], ArgumentError, r"got \['size', 'window'\]"),
        ([0], ArgumentError, "window must be positive, got 0"),
        ([{"window": 3, "stride": 0}], ArgumentError, "stride must be positive, got 0"),
        ([{"window": 3, "padding": -1}], ArgumentError, "padding must not be negative"),
        ([2.5], ArgumentTypeError, "got float"),
    ],
)
def test_unknown_layers_are_refused_by_name(layers, kind, message):
    with pytest.raises(kind, match=message):
        receptive_field(layers)
