"""torch.jit.trace, default devices, and TRITON_INTERPRET set too late."""

import io
import os
import subprocess
import sys

import pytest
import torch

import tricorr

on_cpu = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")


@pytest.mark.parametrize("grad", [False, True])
def test_a_traced_layer_computes_and_is_saved(backend, grad):
    layer = tricorr.Conv2D(1, 2, 2, activation="relu").to(backend.device).requires_grad_(grad)
    image, other = (
        torch.randn(shape, device=backend.device) for shape in ((1, 1, 3, 4), (2, 1, 4, 3))
    )
    saved = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, image), saved)
    saved.seek(0)
    traced = torch.jit.load(saved)
    assert torch.equal(traced(other), layer(other))  # any size, not only the traced one
    if grad:
        traced(other).sum().backward()
        (weight,) = (p for p in traced.parameters() if p.dim() == 4)
        (expected,) = torch.autograd.grad(layer(other).sum(), layer.weight)
        assert torch.equal(weight.grad, expected)


@on_cpu
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": 3, "padding": 1, "output_padding": 2, "bias": False},
        {"dilation": 2, "padding": 2},
    ],
    ids=str,
)
def test_a_traced_transposed_layer_takes_any_size(backend, options):
    layer = tricorr.ConvTranspose2D(3, 4, 2, **options)
    traced = torch.jit.trace(layer, torch.randn(2, 3, 5, 6))
    other = torch.randn(1, 3, 9, 7)
    torch.testing.assert_close(traced(other), layer(other))


@on_cpu
def test_an_input_gradient_is_traced_without_padding_modes(backend):
    weight, dy = torch.randn(4, 3, 3, 3), torch.randn(2, 4, 5, 5)

    def gradient(weight, dy, mode="zeros"):
        size = (2, 3, 5, 5)
        return tricorr.corr2d_input_grad(size, weight, dy, padding=1, padding_mode=mode)

    traced = torch.jit.trace(gradient, (weight, dy))
    torch.testing.assert_close(traced(weight, dy), gradient(weight, dy))
    with pytest.raises(tricorr.BackendError, match="cannot record an input gradient with a pad"):
        torch.jit.trace(lambda *both: gradient(*both, mode="reflect"), (weight, dy))


@on_cpu
def test_results_are_on_the_device_of_the_operands(backend):
    """With another default device, a tensor made on it by mistake would fail with the others."""
    x, y = torch.rand(2, 8, 8).double().unbind()
    weight = torch.rand(3, 3, dtype=torch.float64)
    options = {"solver": "normal", "background": 1}

    def everything():
        accumulator = tricorr.KernelAccumulator((3, 3))
        accumulator.update(x, y)
        image = x.clone().requires_grad_()
        circular = tricorr.corr2d(image, weight, padding=1, padding_mode="circular")
        return [
            accumulator.solve().weight,
            tricorr.learn_kernel(x, y, (3, 3), nonnegative=True, sum_to=1.0, **options).weight,
            tricorr.learn_kernel(x, y, (3, 3), solver="gd", steps=3).weight,
            tricorr.learn_kernel(x, y, (3, 3), loss="huber", mask=y > 0.1, weights=y).weight,
            tricorr.learn_kernel_field(x, y, (3, 3), (2, 2), **options).weight,
            *torch.autograd.grad(circular.sum(), image),
        ]

    expected = everything()
    with torch.device("meta"):
        found = everything()
    for ours, same in zip(found, expected, strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("first", ["triton", "torch._inductor.utils"])
def test_an_interpreter_set_too_late_is_refused(tmp_path, first):
    pytest.importorskip("triton")
    code = (
        f"import os, torch, {first}\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "import tricorr\n"
        "try:\n"
        "    tricorr.corr2d(torch.ones(3, 3), torch.ones(2, 2))\n"
        "except tricorr.BackendError as error:\n"
        "    print(error)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert run.stdout.startswith("TRITON_INTERPRET=1 was set after triton had been imported")
    assert len(run.stdout.splitlines()) == 1
