"""convert and convert_back: which layers change class, and that nothing else changes."""

import copy
import functools
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import tricorr
from tricorr import ArgumentTypeError, Conv2D, ConvTranspose2D, LazyConv2D, LazyConvTranspose2D

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

LAYERS = {
    "conv": (lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2), Conv2D),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), Conv2D),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), ConvTranspose2D),
    "lazy": (lambda: nn.LazyConv2d(3, 2), LazyConv2D),
    "lazy_transposed": (lambda: nn.LazyConvTranspose2d(3, 2), LazyConvTranspose2D),
    "double": (lambda: nn.Conv2d(2, 3, 2, dtype=torch.float64), Conv2D),
    "meta": (lambda: nn.Conv2d(2, 3, 2, device="meta"), Conv2D),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 2)), Conv2D),
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(2, 3, 2)), ConvTranspose2D,
    ),
    "pruned": (lambda: prune.l1_unstructured(nn.Conv2d(2, 3, 2), "weight", 3), Conv2D),
    "subclass": (lambda: Named(2, 3, 2), Conv2D),
    "lazy_subclass": (lambda: LazyNamed(3, 2), LazyConv2D),
    "parametrized_subclass": (lambda: parametrizations.weight_norm(Named(2, 3, 2)), Conv2D),
}  # fmt: skip


class Named(nn.Conv2d):
    """A subclass that computes as its base."""

    def describe(self):
        return f"{self.in_channels} to {self.out_channels}"


class LazyNamed(nn.LazyConv2d):
    cls_to_become = Named


class Standardized(nn.Conv2d):
    def forward(self, input):
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class OnStandardized(Standardized):
    pass


class LazyStandardized(nn.LazyConv2d):
    cls_to_become = Standardized


class Halved(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / 2, bias)


class Outwards(nn.ConvTranspose2d):
    def forward(self, input, output_size=None):
        return super().forward(input, output_size) + 1


class OfOurs(Conv2D):
    pass


def twice(make):
    """Two equal layers: PyTorch cannot copy layers whose weight is computed by a hook."""
    layers = []
    for _ in range(2):
        torch.manual_seed(1)
        layers.append(make())
    return layers


def image_for(layer):
    tensor = next(layer.parameters())
    return torch.randn(1, 2, 5, 4, device=tensor.device, dtype=tensor.dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_convert_and_convert_back_keep_parameters_and_results(backend, name):
    make, ours = LAYERS[name]
    layer, before = twice(lambda: make().eval())  # spectral_norm iterates in training
    original, parametrized = type(layer), parametrize.is_parametrized(layer)
    tensors, state = dict(layer.named_parameters()), dict(vars(layer))

    assert tricorr.convert(layer).converted == ("",)
    assert isinstance(layer, ours)
    assert isinstance(layer, original) or parametrized
    assert vars(layer) == state
    assert all(parameter is tensors[key] for key, parameter in layer.named_parameters())
    assert tricorr.convert(layer).converted == ()
    if not name.startswith("lazy"):
        image = image_for(layer)
        torch.testing.assert_close(layer(image), before(image))

    assert tricorr.convert_back(layer).converted == ("",)
    assert type(layer) is original or parametrized
    assert repr(layer) == repr(before)
    assert tricorr.convert_back(layer).converted == ()
    if not name.startswith("lazy"):
        torch.testing.assert_close(layer(image), before(image), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lazy", "lazy_transposed", "lazy_subclass"])
def test_lazy_layers_become_ours_at_the_first_call(backend, name):
    layer = LAYERS[name][0]()
    tricorr.convert(layer)
    y = layer(torch.randn(1, 2, 5, 4))
    initialized = {"lazy": Conv2D, "lazy_transposed": ConvTranspose2D, "lazy_subclass": Named}[name]
    assert isinstance(layer, initialized)
    assert isinstance(layer, (Conv2D, ConvTranspose2D))
    assert not isinstance(layer, nn.modules.lazy.LazyModuleMixin)
    tricorr.convert_back(layer)
    assert type(layer) is LAYERS[name][0]().cls_to_become
    torch.testing.assert_close(layer(y[:, :2]), copy.deepcopy(layer)(y[:, :2]))


def test_every_layer_is_converted_once(backend):
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 3),
            "body": nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, Named(4, 4, 1))),
            "rows": nn.Conv1d(4, 4, 3),
            "ours": Conv2D(4, 4, 3),
        }
    )
    conversion = tricorr.convert(model)
    assert conversion.converted == ("stem", "body.0", "body.2.1")
    assert conversion.left == {}
    assert str(conversion) == "3 of 3 layers converted"
    assert model["body"][0] is model["body"][2][0] is shared
    assert type(model["rows"]) is nn.Conv1d
    assert tricorr.convert_back(model).converted == ("stem", "body.0", "body.2.1", "ours")


def script(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(layer)


def replaced(name):
    layer = nn.Conv2d(2, 3, 2)
    setattr(layer, name, getattr(layer, name))
    return layer


def qat():
    from torch.ao.nn.qat import Conv2d
    from torch.ao.quantization import get_default_qat_qconfig

    return Conv2d(2, 3, 2, qconfig=get_default_qat_qconfig("x86"))


def quantized():
    from torch.ao.nn.quantized import ConvTranspose2d

    return ConvTranspose2d(2, 3, 2)


def sparse():
    layer = nn.Conv2d(2, 3, 2)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return layer


def frozen_in_float8():
    layer = nn.Conv2d(2, 3, 2, bias=False)
    weight = layer.weight.detach().to(torch.float8_e4m3fn)
    del layer.weight
    layer.register_buffer("weight", weight)
    return layer


def changed(**attributes):
    """A circular layer that pads by 1 on each side, whatever its attributes say later."""
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def with_another_weight():
    layer = nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular")
    layer.weight = nn.Parameter(torch.randn(3, 2, 5, 5))
    return layer


class Quantized(torch.Tensor):
    """A tensor class that may redefine operations."""


def in_another_tensor():
    layer = nn.Conv2d(2, 3, 3, bias=False)
    layer.weight = nn.Parameter(torch.randn(3, 2, 3, 3).as_subclass(Quantized))
    return layer


STALE = (
    "PyTorch's layer pads by [1, 1, 1, 1] (left, right, top, bottom), as it was made, and not by "
    "its padding="
)
LEFT = {
    "padding_changed": (lambda: changed(padding=(2, 2)), STALE + "(2, 2)"),
    "same_padding_later": (
        lambda: changed(padding="same", dilation=(2, 2)), STALE + "'same'"
    ),
    "another_weight": (with_another_weight, STALE + "'same'"),
    "stride_of_three": (
        lambda: changed(stride=(1, 2, 3)),
        "stride must be one integer or two (h, w), got (1, 2, 3)",
    ),
    "activation": (
        lambda: changed(activation=torch.tanh),
        "it has an activation of its own, here <built-in method tanh of type object at "
    ),
    "another_tensor": (
        in_another_tensor, "it holds a Quantized, whose operations may be its own"
    ),
    "forward": (lambda: Standardized(2, 3, 2), "Standardized overrides forward"),
    "inherited": (lambda: OnStandardized(2, 3, 2), "Standardized overrides forward"),
    "conv_forward": (lambda: Halved(2, 3, 2), "Halved overrides _conv_forward"),
    "transposed": (lambda: Outwards(2, 3, 2), "Outwards overrides forward"),
    "parametrized": (
        lambda: parametrizations.weight_norm(Halved(2, 3, 2)), "Halved overrides _conv_forward",
    ),
    "lazy": (lambda: LazyStandardized(3, 2), "Standardized overrides forward"),
    "one_forward": (lambda: replaced("forward"), "forward is replaced on this very layer"),
    "one_conv": (lambda: replaced("_conv_forward"), "_conv_forward is replaced on this very layer"),
    "complex": (
        lambda: nn.Conv2d(2, 3, 2, dtype=torch.complex64),
        "it holds torch.complex64, not float16, bfloat16, float32 or float64",
    ),
    "float8": (
        frozen_in_float8, "it holds torch.float8_e4m3fn, not float16, bfloat16, float32 or float64",
    ),
    "sparse": (sparse, "it holds a tensor of layout torch.sparse_coo"),
    "qat": (qat, "Conv2d is a layer for quantization"),
    "quantized": (quantized, "ConvTranspose2d is a layer for quantization"),
    "torchscript": (lambda: script(nn.Conv2d(2, 3, 2)), "it is compiled by TorchScript"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
@pytest.mark.parametrize("name", LEFT)
def test_layers_that_may_differ_are_left_with_a_reason(backend, name):
    make, reason = LEFT[name]
    model = nn.Sequential(nn.Conv2d(2, 2, 1), make())
    cls = type(model[1])
    conversion = tricorr.convert(model)
    assert conversion.left["1"].startswith(reason)
    assert str(conversion) == f"1 of 2 layers converted\n  1: {conversion.left['1']}"
    assert type(model[1]) is cls
    assert tricorr.convert(model[1]).left[""].startswith(reason)


@pytest.mark.parametrize(
    ("owner", "name", "layer"),
    [
        (nn.Conv2d, "_conv_forward", lambda: nn.Conv2d(2, 3, 2)),
        (nn.Conv2d, "forward", lambda: Named(2, 3, 2)),
        (nn.ConvTranspose2d, "forward", lambda: nn.ConvTranspose2d(2, 3, 2)),
        (nn.functional, "conv2d", lambda: nn.Conv2d(2, 3, 2)),
        (nn.functional, "conv_transpose2d", lambda: nn.ConvTranspose2d(2, 3, 2)),
    ],
)
def test_layers_are_left_while_pytorch_is_patched(backend, monkeypatch, owner, name, layer):
    original = getattr(owner, name)

    @functools.wraps(original)
    def doubled(*args, **kwargs):
        return 2 * original(*args, **kwargs)

    monkeypatch.setattr(owner, name, doubled)
    model, image = layer(), torch.randn(1, 2, 5, 4)
    expected = model(image)
    assert tricorr.convert(model).left == {"": f"{owner_name(owner)}.{name} has been replaced"}
    assert torch.equal(model(image), expected)
    monkeypatch.undo()
    assert tricorr.convert(model).left == {}


def owner_name(owner):
    return f"nn.{owner.__name__}" if isinstance(owner, type) else owner.__name__


@pytest.mark.parametrize("padding", [1, (1,), (1, 1)])
@pytest.mark.parametrize("stride", [2, (2,)])
def test_equivalent_numbers_are_converted(backend, padding, stride):
    layer = changed(padding=padding, stride=stride)
    image = torch.randn(1, 2, 5, 6)
    expected = layer(image)
    assert tricorr.convert(layer).left == {}
    torch.testing.assert_close(layer(image), expected)
    assert tricorr.convert_back(layer).left == {}
    assert torch.equal(layer(image), expected)


def padded_later():
    layer = Conv2D(2, 3, 3, padding=1, padding_mode="reflect")
    layer.padding = 2
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (padded_later, STALE + "2"),
        (
            lambda: Conv2D(2, 3, 2, activation="relu"),
            "PyTorch's layer has no activation, here 'relu'",
        ),
        (lambda: Conv2D(kernel_size=2), "nn.Conv2d has no layer without channels"),
        (
            lambda: Conv2D(2, 3, 2, padding=((0, 1), (1, 0))),
            "PyTorch's layer has no padding by side, here ((0, 1), (1, 0))",
        ),
        (lambda: OfOurs(2, 3, 2), "OfOurs is written on tricorr's layer"),
        (
            lambda: parametrizations.weight_norm(OfOurs(2, 3, 2)),
            "OfOurs is written on tricorr's layer",
        ),
    ],
    ids=["padded_later", "activation", "every_plane", "sides", "subclass", "parametrized_subclass"],
)
def test_layers_without_an_equal_are_not_converted_back(backend, layer, reason):
    layer = layer()
    cls = type(layer)
    assert tricorr.convert_back(layer).left == {"": reason}
    assert type(layer) is cls
    assert tricorr.convert(layer).left == {}


def test_where_selects_layers(backend):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), Halved(4, 4, 1))
    asked = []

    def depthwise(name, layer):
        asked.append(name)
        return layer.groups == layer.in_channels

    conversion = tricorr.convert(model, where=depthwise)
    assert conversion.converted == ("1",)
    assert conversion.left["0"] == "left out by where"
    assert asked == ["0", "1"]
    tricorr.convert(model)
    assert tricorr.convert_back(model, where=depthwise).converted == ("1",)
    assert type(model[0]) is Conv2D


@pytest.mark.parametrize("function", [tricorr.convert, tricorr.convert_back])
def test_arguments_that_are_not_modules_are_refused(backend, function):
    with pytest.raises(ArgumentTypeError, match=r"model must be a torch.nn.Module, got \[\]"):
        function([])


def test_parametrizations_keep_working(backend):
    layer = nn.Conv2d(2, 3, 2)
    parametrizations.spectral_norm(layer)
    vectors = [buffer.clone() for buffer in layer.buffers()]
    tricorr.convert(layer)
    # Reading the weight in training would have made a step of the power iteration.
    assert all(torch.equal(a, b) for a, b in zip(vectors, layer.buffers(), strict=True))
    layer(torch.randn(1, 2, 5, 4)).sum().backward()
    assert not torch.equal(vectors[0], next(layer.buffers()))
    assert layer.parametrizations.weight.original.grad is not None
    parametrize.register_parametrization(layer, "bias", nn.Softplus())
    assert (layer.bias > 0).all()
    copied = copy.deepcopy(layer)
    assert type(copied) is type(layer)
    parametrize.remove_parametrizations(layer, "bias")
    tricorr.convert_back(layer)
    assert parametrize.is_parametrized(layer, "weight")
    tricorr.convert(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is Conv2D


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_norms_by_hooks_keep_working(backend, norm):
    layer, other = twice(lambda: norm(nn.Conv2d(2, 3, 2)))
    image = torch.randn(1, 2, 5, 4)
    tricorr.convert(other)
    for _ in range(2):
        torch.testing.assert_close(other(image), layer(image))


def test_pruning_keeps_working(backend):
    layer = nn.Conv2d(2, 3, 2)
    prune.random_unstructured(layer, "weight", 0.5)
    tricorr.convert(layer)
    layer(torch.randn(1, 2, 5, 4)).sum().backward()
    assert (layer.weight_orig.grad[layer.weight_mask == 0] == 0).all()
    prune.l1_unstructured(layer, "weight", 2)
    assert (layer.weight == 0).sum() == 14
    prune.remove(layer, "weight")
    assert (layer.weight == 0).sum() == 14
    assert isinstance(layer.weight, nn.Parameter)


def test_hooks_mode_and_references_are_kept(backend):
    layer, seen = nn.Conv2d(2, 3, 2), []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.weight.register_hook(lambda grad: seen.append("weight"))
    layer.bias.requires_grad_(False)
    layer.eval()
    optimizer = torch.optim.Adam([layer.weight])
    referring = [layer]
    tricorr.convert(layer)
    assert referring[0] is layer
    assert not layer.training
    assert not layer.bias.requires_grad
    before = layer.weight.detach().clone()
    layer(torch.randn(1, 2, 5, 4, requires_grad=True)).sum().backward()
    assert sorted(seen) == ["after", "backward", "before", "weight"]
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_tied_weights_stay_tied(backend):
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model[1].weight = model[0].weight
    tricorr.convert(model)
    assert model[1].weight is model[0].weight
    model(torch.randn(1, 2, 6, 6)).sum().backward()
    assert len(list(model.parameters())) == 3


def test_converted_subclasses_can_be_copied_and_pickled(backend):
    layer = Named(2, 3, 2)
    tricorr.convert(layer)
    assert layer.describe() == "2 to 3"
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    for other in (
        copy.copy(layer),
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(saved, weights_only=False),
    ):
        assert type(other) is type(layer)
        assert vars(other).keys() == vars(layer).keys()
        image = torch.randn(1, 2, 5, 4)
        assert torch.equal(other(image), layer(image))
    assert repr(layer) == "TricorrNamed(2, 3, kernel_size=(2, 2), stride=(1, 1))"


def test_a_compiled_model_is_compiled_again(backend):
    torch._dynamo.reset()
    called = []

    def remember(graph, example_inputs):
        called.append({str(node.target) for node in graph.graph.nodes})
        return graph

    model = nn.Sequential(nn.Conv2d(2, 3, 2)).double()
    compiled = torch.compile(model, backend=remember)
    image = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    expected = compiled(image)
    tricorr.convert(compiled)
    torch.testing.assert_close(compiled(image), expected)
    assert ["tricorr.fprop" in targets for targets in called] == [False, True]


def test_fx_traces_the_functions_as_single_nodes(backend):
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2))
    tricorr.convert(model)
    traced = torch.fx.symbolic_trace(model)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [tricorr.corr2d, tricorr.corr_transpose2d]
    image = torch.randn(1, 2, 5, 4)
    assert torch.equal(traced(image), model(image))


def test_a_wrapped_model_is_converted_inside(backend):
    averaged = torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Conv2d(2, 3, 2)))
    assert tricorr.convert(averaged).converted == ("module.0",)
