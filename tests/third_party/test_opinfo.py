"""tricorr gives PyTorch's results for PyTorch's own sample inputs of convolutions.

The samples are part of PyTorch's torch.testing._internal: OpInfo for functions, ModuleInfo for
layers.
"""

import pytest
import torch
import torch.nn.functional as F
from derivatives import assert_same_derivatives
from torch import nn
from torch.func import functional_call

import tricorr
from tricorr.ops.arguments import FLOAT_DTYPES

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

FUNCTIONS = {
    "conv2d": (tricorr.corr2d, F.conv2d),
    "conv_transpose2d": (tricorr.corr_transpose2d, F.conv_transpose2d),
}
OPERATORS = {name: op for name in FUNCTIONS for op in op_db if op.name == f"nn.functional.{name}"}
LAYERS = {
    nn.Conv2d: tricorr.Conv2D,
    nn.LazyConv2d: tricorr.LazyConv2D,
    nn.ConvTranspose2d: tricorr.ConvTranspose2D,
    nn.LazyConvTranspose2d: tricorr.LazyConvTranspose2D,
}
#: Layers besides those of ModuleInfo: (class, arguments, input shape).
MORE_LAYERS = {
    "every_argument": (
        nn.Conv2d, {"in_channels": 4, "out_channels": 6, "kernel_size": (2, 3), "stride": (1, 2),
                    "padding": (2, 1), "dilation": (2, 1), "groups": 2, "bias": False},
        (2, 4, 5, 6),
    ),
    "reflect": (
        nn.Conv2d, {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1,
                    "padding_mode": "reflect"}, (2, 2, 4, 5),
    ),
    "circular_same_even_window": (
        nn.Conv2d, {"in_channels": 2, "out_channels": 3, "kernel_size": (2, 4), "padding": "same",
                    "padding_mode": "circular"}, (2, 2, 4, 5),
    ),
    "lazy_depthwise": (
        nn.LazyConv2d, {"out_channels": 6, "kernel_size": 3, "groups": 3, "padding": "valid"},
        (2, 3, 4, 5),
    ),
    "transposed_every_argument": (
        nn.ConvTranspose2d, {"in_channels": 4, "out_channels": 6, "kernel_size": (2, 3),
                             "stride": (3, 2), "padding": 1, "output_padding": (2, 0), "groups": 2,
                             "bias": False, "dilation": (1, 2)}, (2, 4, 3, 4),
    ),
}  # fmt: skip


def samples(name, device, dtype):
    return list(OPERATORS[name].sample_inputs(device, dtype))


def module_inputs(cls, device, dtype):
    (info,) = (info for info in module_db if info.module_cls is cls)
    return info.module_inputs_func(
        info, device=device, dtype=dtype, requires_grad=False, training=True
    )


SAMPLES = [
    pytest.param(name, index, id=f"{name}-{index}")
    for name in FUNCTIONS
    for index, _ in enumerate(samples(name, "cpu", torch.float32))
]
MODULES = [
    pytest.param(cls, index, id=f"{cls.__name__}-{index}")
    for cls in LAYERS
    for index, _ in enumerate(module_inputs(cls, "cpu", torch.float32))
]


def functions_and_tensors(name, index, backend, dtype):
    """tricorr's and PyTorch's functions of the sample's tensors, and the tensors."""
    sample = samples(name, backend.device, dtype)[index]
    tensors = [t for t in (sample.input, *sample.args) if t is not None]
    ours, theirs = FUNCTIONS[name]
    return (
        lambda *given: ours(*given, **sample.kwargs, precision="ieee"),
        lambda *given: theirs(*given, **sample.kwargs),
        tensors,
    )


def test_the_samples_of_pytorch_are_found():
    counts = {name: sum(name in sample.id for sample in SAMPLES) for name in FUNCTIONS}
    assert counts["conv2d"] >= 20
    assert counts["conv_transpose2d"] >= 10
    for cls in LAYERS:
        assert sum(case.values[0] is cls for case in MODULES) >= 2


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("name", "index"), SAMPLES)
def test_samples_have_pytorchs_values_and_gradients(backend, name, index):
    ours, theirs, tensors = functions_and_tensors(name, index, backend, torch.float64)
    # Samples come in pairs, batched and unbatched; the interpreter differentiates the batched one.
    batched = tensors[0].dim() == 4 or backend.name != "interpreter"
    assert_same_derivatives(ours, theirs, tensors, order=2 if batched else 0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "index"), SAMPLES)
def test_samples_have_pytorchs_values_in_lower_precision(backend, name, index, dtype):
    ours, theirs, tensors = functions_and_tensors(name, index, backend, dtype)
    assert_same_derivatives(ours, theirs, tensors, order=0, peer=backend.name == "cpu")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize(("name", "index"), SAMPLES)
def test_forward_mode_and_vmap_equal_pytorchs(backend, name, index):
    ours, theirs, tensors = functions_and_tensors(name, index, backend, torch.float64)
    tensors = tuple(tensors)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    actual, expected = (torch.func.jvp(f, tensors, tangents) for f in (ours, theirs))
    torch.testing.assert_close(actual, expected)
    dims = [(0,) * len(tensors)]  # all tensors batched, then each alone
    dims += [tuple(0 if i == j else None for j in range(len(tensors))) for i in range(len(tensors))]
    for in_dims in dims:
        given = [
            t if d is None else torch.stack([t, t * 2, t - 1])
            for t, d in zip(tensors, in_dims, strict=True)
        ]
        actual, expected = (torch.vmap(f, in_dims)(*given) for f in (ours, theirs))
        torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize(("name", "index"), SAMPLES)
def test_meta_tensors_have_the_results_metadata(backend, name, index):
    ours, _, tensors = functions_and_tensors(name, index, backend, torch.float32)
    y, meta = ours(*tensors), ours(*(t.to("meta") for t in tensors))
    assert meta.is_meta
    assert (meta.shape, meta.stride(), meta.dtype) == (y.shape, y.stride(), y.dtype)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize(("name", "index"), SAMPLES[::4])
def test_compiled_samples_equal_eager_ones(backend, name, index):
    torch._dynamo.reset()
    ours, _, tensors = functions_and_tensors(name, index, backend, torch.float32)
    leaves = [t.detach().requires_grad_() for t in tensors]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    y, expected = compiled(*leaves), ours(*leaves)
    # Eager results are PyTorch's, which sums in another order.
    torch.testing.assert_close(y, expected)
    grads, expected_grads = (torch.autograd.grad(out.sum(), leaves) for out in (y, expected))
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples_of_other_dtypes_are_refused(name):
    others = OPERATORS[name].dtypes - set(FLOAT_DTYPES)
    assert {torch.int64, torch.complex64} <= others
    for dtype in others:
        for sample in samples(name, "cpu", dtype):
            with pytest.raises(tricorr.ArgumentTypeError, match=f"must be float16.*, got {dtype}"):
                FUNCTIONS[name][0](sample.input, *sample.args, **sample.kwargs)


def test_error_inputs_of_conv2d_are_refused():
    errors = list(OPERATORS["conv2d"].error_inputs("cpu"))
    assert len(errors) >= 5
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type) as raised:
            tricorr.corr2d(sample.input, *sample.args, **sample.kwargs)
        assert isinstance(raised.value, (tricorr.ArgumentError, tricorr.ArgumentTypeError))


@pytest.mark.parametrize(("cls", "index"), MODULES)
def test_layers_equal_pytorchs(backend, cls, index):
    inputs = module_inputs(cls, backend.device, torch.float64)[index]
    construct = inputs.constructor_input
    assert not inputs.forward_input.kwargs
    (image,) = inputs.forward_input.args
    assert_same_layer(backend, cls, construct.args, construct.kwargs, image)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", MORE_LAYERS)
def test_more_layers_equal_pytorchs(backend, case):
    cls, arguments, shape = MORE_LAYERS[case]
    image = torch.randn(shape, dtype=torch.float64, device=backend.device)
    assert_same_layer(backend, cls, (), arguments, image)


def assert_same_layer(backend, cls, args, kwargs, image):
    """tricorr's layer draws the same parameters as PyTorch's, and then is the same function."""
    layers = []
    for layer_cls in (cls, LAYERS[cls]):
        torch.manual_seed(3)
        layers.append(layer_cls(*args, **kwargs, device=backend.device, dtype=torch.float64))
        if issubclass(cls, nn.modules.lazy.LazyModuleMixin):
            with torch.no_grad():
                layers[-1](image)  # draws the parameters
    theirs, ours = layers
    assert isinstance(ours, type(theirs))
    assert repr(ours).replace("2D(", "2d(") == repr(theirs)
    assert_same_state(ours, theirs)

    names = list(theirs.state_dict())

    def function(layer):
        def call(x, *parameters):
            return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

        return call

    assert_same_derivatives(
        function(ours), function(theirs), [image, *ours.state_dict().values()], order=1
    )
    for source, target in ((ours, theirs), (theirs, ours)):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same_state(target, source)


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value.cpu(), other[name].cpu())
