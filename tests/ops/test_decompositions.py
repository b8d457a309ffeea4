"""Exporters that do not know our operators find them decomposed into PyTorch's."""

import functools

import pytest
import torch
from torch import nn
from torch._decomp import decomposition_table

import tricorr

pytestmark = [
    pytest.mark.parametrize("backend", ["cpu"], indirect=True),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class PerSample(nn.Module):
    def forward(self, x):
        bank = x[:, :, None, :2, :2].expand(-1, -1, 3, 2, 2)
        return tricorr.convolve2d(x, bank, padding=1)


class WithResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = tricorr.Conv2D(3, 3, 3, padding=1, activation="gelu")

    def forward(self, x):
        return self.layer(x, x)


MODELS = {
    "padded": (lambda: tricorr.Conv2D(3, 4, 3, 2, 1, 2), ["Conv"]),
    "grouped": (lambda: tricorr.Conv2D(3, 6, 2, groups=3, activation="relu"), ["Conv", "Relu"]),
    "sides": (lambda: tricorr.Conv2D(3, 4, 2, padding=((0, 1), (2, 0))), ["Conv"]),
    "reflect": (
        lambda: tricorr.Conv2D(3, 4, 3, padding=1, padding_mode="reflect"), ["Pad", "Conv"]
    ),
    "residual": (WithResidual, None),
    "per_sample": (PerSample, None),
    "transposed": (
        lambda: tricorr.ConvTranspose2D(3, 4, 3, 2, 1, 1, dilation=2), ["ConvTranspose"]
    ),
    "transposed_pairs": (lambda: tricorr.ConvTranspose2D(3, 4, (3, 2), (1, 3)), ["ConvTranspose"]),
}  # fmt: skip


def exported(name, dynamic=False):
    torch.manual_seed(0)
    model, image = MODELS[name][0]().eval(), torch.randn(2, 3, 7, 6)
    auto = torch.export.Dim.AUTO
    return model, image, ({0: auto, 2: auto, 3: auto},) if dynamic else None


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_decomposed_program_is_pytorchs_own(backend, name, dynamic):
    model, image, shapes = exported(name, dynamic and name != "per_sample")
    program = torch.export.export(model, (image,), dynamic_shapes=shapes)
    decomposed = program.run_decompositions(dict(decomposition_table))
    ours = {str(node.target) for node in decomposed.graph.nodes if "tricorr" in str(node.target)}
    assert not ours
    torch.testing.assert_close(decomposed.module()(image), model(image))
    if dynamic and name != "per_sample":
        other = torch.randn(3, 3, 9, 8)
        torch.testing.assert_close(decomposed.module()(other), model(other))


def test_a_border_that_pytorch_does_not_have_is_cropped(backend):
    """Rows left out at one side alone, as by corr_transpose2d with padding by side."""
    dy, weight, bias = torch.randn(2, 3, 4, 5), torch.randn(3, 2, 3, 2), torch.randn(2)
    for padding in (((1, 0), (0, 1)), ((2, 1), (1, 0))):
        call = functools.partial(
            tricorr.corr_transpose2d, weight=weight, bias=bias, stride=2, padding=padding
        )
        graph = torch.fx.experimental.proxy_tensor.make_fx(
            call, decomposition_table=decomposition_table
        )(dy)
        assert not any("tricorr" in str(node.target) for node in graph.graph.nodes)
        torch.testing.assert_close(graph(dy), call(dy))


def test_pytorchs_own_exports_keep_the_operators(backend):
    model, image, _ = exported("padded")
    program = torch.export.export(model, (image,)).run_decompositions()
    assert torch.ops.tricorr.fprop.default in {node.target for node in program.graph.nodes}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_computes_the_same(backend, name):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    evaluate = pytest.importorskip("onnx.reference").ReferenceEvaluator
    model, image, _ = exported(name)
    proto = torch.onnx.export(model, (image,), dynamo=True, verbose=False).model_proto
    expected = MODELS[name][1]
    assert expected in (None, [node.op_type for node in proto.graph.node])
    (result,) = evaluate(proto).run(None, {proto.graph.input[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(image))
