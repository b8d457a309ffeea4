"""Autograd's own batching of gradients (is_grads_batched, vectorize), which is not torch.vmap."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian, jacobian

import tricorr

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

CALLS = {
    "bank": (lambda x, w, b: tricorr.corr2d(x, w, b, padding=1), (1, 2, 3, 3), (2, 2, 2, 2)),
    "strided": (lambda x, w, b: tricorr.corr2d(x, w, b, 2, 1), (2, 1, 3, 4), (2, 1, 2, 2)),
    "grouped": (lambda x, w, b: tricorr.corr2d(x, w, b, groups=2), (1, 2, 3, 3), (2, 1, 2, 2)),
    "per_sample": (lambda x, w, b: tricorr.corr2d(x, w, b), (2, 1, 3, 3), (2, 2, 1, 2, 2)),
    "circular": (
        lambda x, w, b: tricorr.corr2d(x, w, b, padding=1, padding_mode="circular"),
        (1, 1, 3, 3),
        (2, 1, 2, 2),
    ),
    "silu": (
        lambda x, w, b: tricorr.corr2d(x, w, b, activation="silu"), (1, 1, 3, 3), (2, 1, 2, 2),
    ),
    "residual": (
        lambda x, w, b: tricorr.corr2d(x, w, b, padding="same", residual=x),
        (1, 2, 3, 3),
        (2, 2, 3, 3),
    ),
    "transposed": (
        lambda x, w, b: tricorr.corr_transpose2d(x, w, b, 2), (1, 2, 2, 2), (2, 2, 2, 2),
    ),
}  # fmt: skip


def operands(name, device="cpu"):
    _, *shapes = CALLS[name]
    make = {"dtype": torch.float64, "device": device, "requires_grad": True}
    return tuple(torch.randn(shape, **make) for shape in (*shapes, (2,)))


def assert_batch_is_stack(name, device):
    x, w, b = operands(name, device)
    y = CALLS[name][0](x, w, b)
    batch = torch.randn(2, *y.shape, dtype=y.dtype, device=y.device)
    ours = torch.autograd.grad(y, (x, w, b), batch, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, (x, w, b), dy, retain_graph=True) for dy in batch]
    for together, alone in zip(ours, zip(*each, strict=True), strict=True):
        # One launch makes both gradients of one dy, in another order of sums.
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_a_batch_of_gradients_is_their_stack(backend, name):
    assert_batch_is_stack(name, backend.device)


@pytest.mark.parametrize("name", ["grouped", "per_sample", "transposed"])
def test_kernels_take_batches_of_gradients(kernel_backend, name):
    assert_batch_is_stack(name, kernel_backend.device)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_gradcheck_batches(backend, name):
    assert torch.autograd.gradcheck(
        CALLS[name][0],
        operands(name),
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_gradgradcheck_batches(backend):
    x, w, _ = operands("strided", backend.device)
    x, w = x[:1, :, :2, :3].detach().requires_grad_(), w[:1].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(tricorr.corr2d, (x, w), check_batched_grad=True)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("create_graph", [False, True])
def test_vectorized_jacobian_and_hessian_are_pytorchs(backend, create_graph):
    inputs = operands("bank")

    def both(function):
        options = {"vectorize": True, "create_graph": create_graph}

        def cubed(*tensors):
            return function(*tensors).pow(3).sum()

        return jacobian(function, inputs, **options), hessian(cubed, inputs, **options)

    ours = both(CALLS["bank"][0])
    theirs = both(lambda x, w, b: F.conv2d(x, w, b, padding=1))
    torch.testing.assert_close(ours, theirs)
