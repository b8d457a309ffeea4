"""Networks of torchvision and timm give the same results after conversion, and convert back."""

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tricorr

# In the interpreter each of these would take hours.
pytestmark = pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)

MODELS = [
    ("torchvision", "resnet18"),
    ("torchvision", "mobilenet_v2"),
    ("torchvision", "convnext_tiny"),
    ("timm", "efficientnet_b0"),
    ("timm", "regnetx_002"),
]


@pytest.fixture(params=MODELS, ids=[name for _, name in MODELS])
def model(request, backend):
    library, name = request.param
    pytest.importorskip(library, reason=f"needs pip install {library}")
    if library == "timm":
        made = importlib.import_module("timm").create_model(name, num_classes=10)
    else:
        made = getattr(importlib.import_module("torchvision.models"), name)(num_classes=10)
    for layer in made.modules():
        if hasattr(layer, "p"):  # dropout, which would draw other elements in every dtype
            layer.p = 0.0
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield made.to(backend.device)


def images(backend):
    return torch.randn(4, 3, 64, 64, device=backend.device)


def convolutions(model):
    return [type(layer) for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def converted(model):
    ours = copy.deepcopy(model)
    conversion = tricorr.convert(ours)
    assert len(conversion.converted) == len(convolutions(model)) > 15
    assert not conversion.left
    assert set(convolutions(ours)) == {tricorr.Conv2D}
    return ours


def step(model, x):
    """Loss and gradients of one training step, all as one vector of float64."""
    model.train().zero_grad()
    target = torch.arange(len(x), device=x.device)
    loss = F.cross_entropy(model(x), target)
    loss.backward()
    gradients = (parameter.grad.flatten() for parameter in model.parameters())
    return torch.cat([loss.detach().view(1), *gradients]).double()


def off(found, truth):
    return float((found - truth).norm() / truth.norm())


def assert_as_close(ours, theirs, truth):
    """Error at most four times that of PyTorch's float32: the sums are in another order."""
    assert off(ours, truth) <= 4 * off(theirs, truth) + 1e-6


def test_forward_equals_the_original(backend, model):
    x = images(backend)
    model.eval()
    with torch.no_grad():
        results = converted(model)(x).double(), model(x).double()
        assert_as_close(*results, copy.deepcopy(model).double()(x.double()))


def test_one_training_step_equals_the_original(backend, model):
    x = images(backend)
    results = step(converted(model), x), step(model, x)
    assert_as_close(*results, step(copy.deepcopy(model).double(), x.double()))


def test_state_loads_both_ways_and_classes_are_restored(backend, model):
    x, ours, theirs = images(backend), converted(model), model.state_dict()
    assert list(ours.state_dict()) == list(theirs)
    step(ours, x)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter -= 0.01 * parameter.grad
    assert not torch.equal(*(next(m.parameters()) for m in (ours, model)))
    model.load_state_dict(ours.state_dict())
    fresh = converted(model)
    fresh.load_state_dict(model.state_dict())
    tricorr.convert_back(ours)
    assert convolutions(ours) == convolutions(model)
    for m in (model, fresh, ours):
        m.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), model(x), rtol=0, atol=0)
        truth = copy.deepcopy(model).double()(x.double())
        assert_as_close(fresh(x).double(), model(x).double(), truth)
