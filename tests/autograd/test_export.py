"""torch.export and AOTInductor on a layer."""

import shutil

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import tricorr

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)


def network():
    layers = (
        tricorr.Conv2D(3, 4, 3, padding=1),
        nn.ReLU(),
        tricorr.Conv2D(4, 6, (2, 3), stride=2, groups=2, bias=False),
        tricorr.ConvTranspose2D(6, 2, 3, padding=1),
    )
    return nn.Sequential(*layers).double().eval()


def image(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_exported_network_takes_any_batch_and_size(backend, strict):
    model = network()
    sizes = {0: Dim("n"), 2: Dim("h", min=7), 3: Dim("w", min=6)}
    program = export(model, (image(2, 3, 9, 8),), strict=strict, dynamic_shapes=(sizes,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in called if name.startswith("tricorr")] == [
        "tricorr.fprop.default",
        "tricorr.fprop.default",
        "tricorr.dgrad.default",
    ]
    for shape in ((2, 3, 9, 8), (1, 3, 7, 17), (5, 3, 12, 7)):
        x = image(*shape)
        assert torch.equal(program.module()(x), model(x))


# A warning of PyTorch 2.11 itself, which reads the parameters of a saved program from bytes.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_exported_network_is_saved_and_trains(backend, tmp_path):
    model, x = network(), image(2, 3, 9, 8)
    torch.export.save(export(model, (x,)), tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    y = loaded(x)
    assert torch.equal(y, model(x))
    grads = torch.autograd.grad(y.square().sum(), list(loaded.parameters()))
    # Eager gradients are PyTorch's, summed in another order.
    torch.testing.assert_close(grads, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # PyTorch's own
@pytest.mark.skipif(shutil.which("c++") is None, reason="AOTInductor needs a C++ compiler")
def test_aot_inductor_calls_the_operators(backend, tmp_path):
    # The package calls torch.ops.tricorr, so the process that loads it imports tricorr.
    model, x = network(), image(2, 3, 9, 8)
    with torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(
            export(model, (x,)),
            package_path=str(tmp_path / "network.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
        )
        compiled = torch._inductor.aoti_load_package(package)
        assert torch.equal(compiled(x), model(x))
