"""Derivatives of every order and mode, and PyTorch's tools on the operators."""

import copy
import io
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from derivatives import assert_same_derivatives, direction
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import tricorr
from tricorr import ops
from tricorr.ops import geometry_of

#: PyTorch's rules for forward mode still use TorchScript.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

#: name: (function, shapes of its tensors), small: derivatives take many calls.
FUNCTIONS = {
    "bank": (
        lambda x, w, b: tricorr.corr2d(x, w, b, (2, 1), ((0, 1), (2, 0)), (1, 2), 2),
        [(2, 2, 3, 4), (4, 1, 2, 2), (4,)],
    ),
    "flipped": (
        lambda x, w: tricorr.convolve2d(x, w, padding=((1, 0), (0, 2))),
        [(1, 2, 3, 3), (2, 2, 2, 3)],
    ),
    "unbatched": (lambda x, w: tricorr.corr2d(x, w, padding="same"), [(2, 3, 3), (2, 2, 2, 2)]),
    "every_plane": (
        lambda x, w, b: tricorr.corr2d(x, w, b, stride=(1, 2), padding=1), [(3, 4), (2, 2), (1,)],
    ),
    "every_plane_of_channels_last": (
        lambda x, w: tricorr.corr2d(x.to(memory_format=torch.channels_last), w),
        [(2, 2, 3, 3), (2, 2)],
    ),
    "per_sample": (
        lambda x, w, b: tricorr.corr2d(x, w, b, padding=(1, 0), groups=2),
        [(2, 2, 3, 3), (2, 2, 1, 2, 2), (2,)],
    ),
    "transposed": (
        lambda x, w, b: tricorr.corr_transpose2d(x, w, b, (2, 3), ((1, 0), (0, 1)), (1, 2), 2),
        [(1, 2, 2, 2), (2, 1, 2, 2), (2,)],
    ),
    "input_grad": (
        lambda w, dy: tricorr.corr2d_input_grad((1, 2, 4, 3), w, dy, (2, 1), ((0, 1), (1, 0))),
        [(2, 2, 2, 2), (1, 2, 2, 3)],
    ),
    "weight_grad": (
        lambda x, dy: tricorr.corr2d_weight_grad(x, (2, 1, 2, 2), dy, 1, ((0, 1), (1, 0)), 1, 2),
        [(1, 2, 3, 3), (1, 2, 3, 3)],
    ),
    "reflect": (
        lambda x, w: tricorr.corr2d(x, w, padding=((0, 2), (1, 0)), padding_mode="reflect"),
        [(1, 1, 3, 3), (1, 1, 2, 2)],
    ),
}  # fmt: skip


@pytest.fixture
def tensors(backend):
    def make(*shapes, dtype=torch.float64, requires_grad=True):
        return [
            torch.randn(shape, dtype=dtype, device=backend.device).requires_grad_(requires_grad)
            for shape in shapes
        ]

    return make


@FORWARD_MODE
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_both_orders_equal_numerical_ones(backend, tensors, name):
    function, shapes = FUNCTIONS[name]
    leaves = tensors(*shapes)
    # Forward mode takes many launches: one case of it in the interpreter.
    fast = backend.name != "interpreter"
    assert gradcheck(function, leaves, fast_mode=True, check_forward_ad=fast or name == "bank")
    assert gradgradcheck(function, leaves, fast_mode=True, check_fwd_over_rev=fast)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["asymmetric", "same_even_window"])
def test_padding_modes_equal_a_padded_copy(tensors, mode, padding):
    image, weight = tensors((2, 2, 4, 5), (3, 2, 2, 4))
    given, (left, right, top, bottom) = {
        "asymmetric": (((0, 2), (3, 1)), (3, 1, 0, 2)),
        "same_even_window": ("same", (1, 2, 0, 1)),
    }[padding]
    assert_same_derivatives(
        lambda x, w: tricorr.corr2d(x, w, padding=given, padding_mode=mode),
        lambda x, w: F.conv2d(F.pad(x, (left, right, top, bottom), mode=mode), w),
        [image, weight],
        order=1,
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dilation", [1, (3, 1)])
def test_same_padding_of_even_windows_equals_pytorchs(tensors, dilation):
    assert_same_derivatives(
        lambda x, w: tricorr.corr2d(x, w, padding="same", dilation=dilation),
        lambda x, w: F.conv2d(x, w, padding="same", dilation=dilation),
        tensors((1, 2, 5, 4), (2, 2, 2, 4)),
        order=1,
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_gradient_functions_equal_pytorchs(tensors, groups):
    x, w, dy = tensors((2, 4, 5, 6), (6, 4 // groups, 2, 3), (2, 6, 3, 5), requires_grad=False)
    steps = {"stride": (2, 1), "padding": (1, 1), "dilation": (2, 1)}
    x, dy = x[..., :5], dy[..., :5]
    dx = torch.nn.grad.conv2d_input(x.shape, w, dy, groups=groups, **steps)
    dw = torch.nn.grad.conv2d_weight(x, w.shape, dy, groups=groups, **steps)
    ours = tricorr.corr2d_input_grad(x.shape, w, dy, groups=groups, **steps)
    torch.testing.assert_close(ours, dx, rtol=1e-12, atol=1e-12)
    ours = tricorr.corr2d_weight_grad(x, w.shape, dy, groups=groups, **steps)
    torch.testing.assert_close(ours, dw, rtol=1e-12, atol=1e-12)


class CountedCalls(TorchDispatchMode):
    """Counts the calls of our operators that reach the backend."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tricorr":
            self.counts[func._opname] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("needed", "calls"),
    [
        ("xwb", {"fprop": 1, "dgrad": 1, "wgrad": 2}),
        ("x", {"fprop": 1, "dgrad": 1}),
        ("w", {"fprop": 1, "wgrad": 1}),
        ("b", {"fprop": 1, "wgrad": 1}),
        ("", {"fprop": 1}),
    ],
)
def test_unneeded_gradients_are_not_launched(needed, calls):
    leaves = dict(
        zip("xwb", (torch.randn(s) for s in ((1, 2, 4, 4), (2, 2, 3, 3), (2,))), strict=True)
    )
    for name in needed:
        leaves[name].requires_grad_()
    with CountedCalls() as counted:
        y = tricorr.corr2d(*leaves.values())
        if needed:
            y.sum().backward()
    assert counted.counts == calls
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == list(needed)


def test_unneeded_second_gradients_are_not_launched():
    x, w = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3)
    dy = torch.randn(1, 2, 2, 2)
    with CountedCalls() as counted:
        (dx,) = torch.autograd.grad(tricorr.corr2d(x, w), x, dy, create_graph=True)
    assert counted.counts == {"fprop": 1, "dgrad": 1}
    assert not dx.requires_grad  # it depends on nothing that needs a gradient


@pytest.mark.parametrize("form", ["bank", "per_sample", "every_plane"])
def test_expanded_cotangents_are_accepted(tensors, form):
    weight = {"bank": (3, 2, 2, 3), "per_sample": (2, 3, 2, 2, 3), "every_plane": (2, 3)}[form]
    x, w = tensors((2, 2, 4, 5), weight)
    y = tricorr.corr2d(x, w)
    y.sum().backward()
    expected = torch.autograd.grad(
        y.new_ones(()).mul(tricorr.corr2d(x, w)), (x, w), torch.ones_like(y)
    )
    torch.testing.assert_close((x.grad, w.grad), expected, rtol=1e-12, atol=1e-12)


def test_expanded_weight_sums_its_gradient(tensors):
    x, w = tensors((2, 3, 4, 4), (1, 1, 2, 2))
    assert_same_derivatives(
        lambda x, w: tricorr.corr2d(x, w.expand(3, 1, 2, 2), groups=3),
        lambda x, w: F.conv2d(x, w.expand(3, 1, 2, 2), groups=3),
        [x, w],
    )


def test_double_backward_twice(tensors):
    x, w = tensors((1, 2, 4, 4), (2, 2, 3, 3))
    y = tricorr.corr2d(x, w)
    first = torch.autograd.grad(y, (x, w), direction(y).requires_grad_(), create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    once = torch.autograd.grad(penalty, (x, w), retain_graph=True)
    twice = torch.autograd.grad(penalty, (x, w), create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    (third,) = torch.autograd.grad(sum(g.sum() for g in twice), x)
    assert third.shape == x.shape


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_third_gradients(tensors):
    def cube(function):
        def third(x, w):
            y = function(x, w).pow(3).sum()
            (dx,) = torch.autograd.grad(y, x, create_graph=True)
            (dw,) = torch.autograd.grad(dx.square().sum(), w, create_graph=True)
            return torch.autograd.grad(dw.sum(), x)[0]

        return third

    x, w = tensors((1, 2, 4, 4), (2, 2, 3, 3))
    expected = cube(F.conv2d)(x, w)
    torch.testing.assert_close(cube(tricorr.corr2d)(x, w), expected, rtol=1e-10, atol=1e-8)


@FORWARD_MODE
def test_forward_mode_has_tangents(tensors):
    """Registered operators alone would give zero tangents, without an error."""
    x, w, dx, dw = tensors(*[(1, 2, 4, 4), (2, 2, 3, 3)] * 2, requires_grad=False)
    with forward_ad.dual_level():
        dual = tricorr.corr2d(forward_ad.make_dual(x, dx), forward_ad.make_dual(w, dw))
        tangent = forward_ad.unpack_dual(dual).tangent
    expected = F.conv2d(dx, w) + F.conv2d(x, dw)
    torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight_shape", [(4, 3, 3, 2), (2, 4, 3, 3, 2), (3, 2)], ids=str)
def test_results_can_be_changed_in_place(tensors, weight_shape):
    x, w = tensors((2, 3, 5, 6), weight_shape)
    (expected,) = torch.autograd.grad(tricorr.corr2d(x, w).relu().sum(), w)
    (changed,) = torch.autograd.grad(tricorr.corr2d(x, w).relu_().sum(), w)
    assert torch.equal(changed, expected)


def test_saved_input_changed_in_place_is_noticed(tensors):
    x, w = tensors((1, 2, 4, 4), (2, 2, 3, 3))
    image = x + 0
    y = tricorr.corr2d(image, w)
    image.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_twice_needs_retain_graph(tensors):
    x, w = tensors((1, 2, 4, 4), (2, 2, 3, 3))
    y = tricorr.corr2d(x, w).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_lowers_as_for_conv2d(backend, dtype):
    image = torch.randn(2, 3, 5, 5, device=backend.device)
    layers = [tricorr.Conv2D(3, 4, 3), tricorr.Conv2D(4, 2, 2), tricorr.ConvTranspose2D(2, 2, 2)]
    stack = torch.nn.Sequential(*layers).to(backend.device)
    with torch.autocast(backend.device, dtype=dtype):
        y = stack(image)  # the second layer sees a low input and float32 parameters
        expected = F.conv2d(image, stack[0].weight, stack[0].bias)
        one = stack[0](image)
        doubles = tricorr.corr2d(image.double(), stack[0].weight.double())
        assert doubles.dtype == F.conv2d(image.double(), stack[0].weight.double()).dtype
    assert y.dtype == one.dtype == expected.dtype == dtype
    torch.testing.assert_close(one, expected, rtol=2e-2, atol=2e-2)
    y.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in stack.parameters())


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


OPERATORS = {
    "fprop": lambda t, g: (t[0], t[1], t[2], None, "none"),
    "fprop_without_bias": lambda t, g: (t[0], t[1], None, t[3], "none"),
    "fprop_activated": lambda t, g: (t[0], t[1], t[2], t[3], "gelu"),
    "dgrad": lambda t, g: (t[3], t[1], None, (g.H, g.W)),
    "dgrad_with_bias": lambda t, g: (t[3], t[1], leaf(t[2][: g.C]), (g.H, g.W)),
    "wgrad": lambda t, g: (t[0], t[3], g.weight_shape),
    "wgrad_channels_last": lambda t, g: (leaf(channels_last(t[0])), t[3], g.weight_shape),
}


@pytest.mark.parametrize("per_sample", [False, True], ids=["bank", "per_sample"])
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(tensors, name, per_sample):
    weight = (2, 4, 1, 2, 2) if per_sample else (4, 1, 2, 2)
    mode = "zeros" if per_sample else "reflect"
    g = geometry_of((2, 2, 4, 3), weight, (2, 1), ((1, 0), (0, 1)), groups=2, padding_mode=mode)
    given = tensors(g.x_shape, g.weight_shape, (g.K,), g.y_shape)
    (top, bottom), (left, right) = g.padding
    sides = (top, bottom, left, right)
    steps = (g.given_stride, sides, g.given_dilation, g.groups, g.flip, mode, "ieee")
    operator = getattr(torch.ops.tricorr, name.split("_")[0]).default
    torch.library.opcheck(operator, (*OPERATORS[name](given, g), *steps))


COMPILED = {
    "bank": lambda x, w, b: tricorr.corr2d(x, w, b, stride=(1, 2), padding=((1, 0), (0, 1))),
    "flipped_same": lambda x, w, b: tricorr.convolve2d(x, w, b, padding="same"),
    "reflect": lambda x, w, b: tricorr.corr2d(x, w, b, padding=1, padding_mode="reflect"),
    "every_plane": lambda x, w, b: tricorr.corr2d(x, w[0, 0], b[:1]),
    "transposed": lambda x, w, b: tricorr.corr_transpose2d(x, w.transpose(0, 1), b, stride=2),
}


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("name", "dynamic"), [("bank", False), *((name, True) for name in COMPILED)]
)
def test_compiled_calls_equal_eager_ones(tensors, name, dynamic):
    torch._dynamo.reset()
    function = COMPILED[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    shapes = [(2, 2, 5, 4), (1, 2, 6, 5)] if dynamic else [(2, 2, 5, 4)]
    for shape in shapes:
        leaves = tensors(shape, (3, 2, 3, 2), (3,))
        y, expected = compiled(*leaves), function(*leaves)
        assert y.stride() == expected.stride()
        grads = torch.autograd.grad(y, leaves, direction(y))
        expected_grads = torch.autograd.grad(expected, leaves, direction(y))
        assert torch.equal(y, expected)
        # Eager gradients are PyTorch's, summed in another order.
        torch.testing.assert_close(grads, expected_grads)


LAYERS = {
    "conv": lambda: tricorr.Conv2D(2, 4, 3, padding=((0, 1), (1, 2)), groups=2),
    "every_plane": lambda: tricorr.Conv2D(kernel_size=(1, 2)),
    "lazy": lambda: tricorr.LazyConv2D(3, 2, padding="same"),
    "transposed": lambda: tricorr.ConvTranspose2D(2, 3, 2, stride=2),
}


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_can_be_copied_pickled_and_saved(backend, name):
    image = torch.randn(1, 2, 4, 5)
    layer = LAYERS[name]()
    expected = layer(image)
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(saved, weights_only=False),
    ):
        assert type(other) is type(layer)
        assert repr(other) == repr(layer)
        assert torch.equal(other(image), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_meta_and_fake_tensors_have_the_right_strides(kind, memory_format):
    def facts(function, device):
        x = torch.ones(2, 4, 6, 5, device=device).to(memory_format=memory_format).requires_grad_()
        w = torch.ones(6, 4, 3, 2, device=device, requires_grad=True)
        y = function(x, w, padding=1)
        dx, dw = torch.autograd.grad(y, (x, w), torch.ones_like(y))
        assert {t.device.type for t in (y, dx, dw)} == {device}
        return [(tuple(t.shape), t.stride(), t.dtype) for t in (y, dx, dw)]

    if kind == "meta":
        ours = facts(tricorr.corr2d, "meta")
    else:
        with FakeTensorMode():
            ours = facts(tricorr.corr2d, "cpu")
    assert ours == facts(F.conv2d, "cpu")  # real tensors: PyTorch's meta tensors lose the format


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_operators_are_closed_under_differentiation(tensors):
    """<y, dy> = <x, dx> = <weight, dw>: each operator is the others' adjoint."""
    g = geometry_of((2, 2, 5, 4), (4, 1, 3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2)
    x, w, dy = tensors(g.x_shape, g.weight_shape, g.y_shape, requires_grad=False)
    products = torch.stack(
        [
            (ops.fprop(x, w, None, g) * dy).sum(),
            (x * ops.dgrad(dy, w, g)).sum(),
            (w * ops.wgrad(x, dy, g)).sum(),
        ]
    )
    torch.testing.assert_close(products, products[:1].expand(3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_gradient_functions_take_padding_modes(tensors, mode):
    x, weight = tensors((2, 2, 4, 5), (3, 2, 3, 3))
    options = {"padding": 1, "padding_mode": mode}
    y = tricorr.corr2d(x, weight, **options)
    dy = direction(y)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    assert torch.equal(tricorr.corr2d_input_grad(x.shape, weight, dy, **options), dx)
    assert torch.equal(tricorr.corr2d_weight_grad(x, weight.shape, dy, **options), dw)
