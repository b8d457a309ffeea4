"""Four published networks, converted, train like the networks of PyTorch's layers.

The reference is the network of PyTorch's layers in float64. How much rounding changes a network's
results depends on the network, so it is measured in two runs: PyTorch's layers in the same
precision, and a float64 run with perturbed filters. A sum of n products, rounded at every step, is
the exact sum with factors off by at most n * eps, so each filter is perturbed by that. The
converted network may be twice as far from the reference as the further of the two.

Where the terms of a gradient cancel, as in a bias before a batch normalisation, the result is
rounding error: one rounding of the step's largest gradient is allowed as well.

Batch normalisation over few pixels amplifies errors: in float32, three steps of the narrow
MobileNetV2 differ between any two implementations. So float64 is compared to ten digits.
"""

import copy
import gc
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from closeness import assert_close_to_reference, to_numpy
from networks import NETWORKS, UNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tricorr

LAYERS = {"resnet18": 20, "mobilenet_v2": 52, "convnext": 14, "unet": 13}
#: One element of an operand, and of a result, is off by this much when rounded to it.
BFLOAT16, TF32 = 2.0**-9, 2.0**-11


def train(network, images, steps=3, low=False):
    """Losses and gradients of some steps of gradient descent, by name."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    values = {}
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            outputs = network(images).to(images.dtype)
        targets = torch.randn(outputs.shape, generator=generator).to(outputs)
        loss = (outputs - targets).square().mean()
        loss.backward()
        optimizer.step()
        values[f"loss of step {step}"] = loss.detach()
        for name, parameter in network.named_parameters():
            values[f"gradient of {name} in step {step}"] = parameter.grad.clone()
    return values


def perturbed(network, unit, operand_unit):
    """The network with every filter changed by a bound of rounding errors, with random signs.

    Args:
        network: in float64.
        unit: relative error of one rounding of a sum.
        operand_unit: relative error of one rounding of an operand.
    """
    network = copy.deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            terms = layer.weight.numel() // layer.out_channels
            signs = torch.randint_like(layer.weight, 2) * 2 - 1
            layer.weight.data *= 1 + (terms * unit + 3 * operand_unit) * signs
    return network


def assert_same_training(network, ours, images, low=False, run=train, **options):
    """Fail unless `ours` trains as `network`, which has the same parameters in PyTorch's layers."""
    eps = torch.finfo(images.dtype).eps
    tf32 = images.is_cuda and images.dtype == torch.float32
    operand_unit = BFLOAT16 if low else TF32 if tf32 else 0
    exact = copy.deepcopy(network).double()
    truth = run(copy.deepcopy(exact), images.double(), **options)
    peers = [run(perturbed(exact, eps, operand_unit), images.double(), **options)]
    if images.dtype != torch.float64:
        peers.append(run(copy.deepcopy(network), images, low=low, **options))
    actual = run(ours, images, low=low, **options)
    assert list(actual) == list(truth)
    largest = max(float(value.abs().max()) for value in truth.values())
    for name, value in truth.items():
        value = to_numpy(value)
        peer = max((peer[name] for peer in peers), key=lambda p: abs(to_numpy(p) - value).max())
        scale, terms = np.full_like(value, largest), 1 + operand_unit / eps
        try:
            assert_close_to_reference(actual[name], value, scale, terms, peer=peer)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def networks_of(name, device="cpu", dtype=torch.float64):
    """PyTorch's network, the same converted, and a batch of images."""
    torch.manual_seed(len(name))
    make, shape = NETWORKS[name]
    network = make().to(device, dtype)
    ours = copy.deepcopy(network)
    conversion = tricorr.convert(ours)
    assert len(conversion.converted) == LAYERS[name]
    assert not conversion.left
    return network, ours, torch.randn(shape).to(device, dtype)


DEVICES = pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)


@DEVICES
@pytest.mark.parametrize("name", NETWORKS)
def test_trains_as_pytorchs(backend, name):
    assert_same_training(*networks_of(name, backend.device))


@DEVICES
@pytest.mark.parametrize("low", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", NETWORKS)
def test_trains_as_pytorchs_in_lower_precision(backend, name, low):
    assert_same_training(*networks_of(name, backend.device, torch.float32), low=low)


@DEVICES
@pytest.mark.parametrize("name", NETWORKS)
def test_trains_as_pytorchs_in_channels_last(backend, name):
    network, ours, images = networks_of(name, backend.device)
    for model in (network, ours):
        model.to(memory_format=torch.channels_last)
    assert_same_training(network, ours, images.to(memory_format=torch.channels_last))


@DEVICES
def test_channels_last_stays_so_through_a_network(backend):
    _, ours, images = networks_of("unet", backend.device)
    seen = []
    for layer in ours.modules():
        if isinstance(layer, (tricorr.Conv2D, tricorr.ConvTranspose2D)):
            layer.register_forward_hook(lambda _, args, y: seen.append(y))
    ours.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert len(seen) == LAYERS["unet"]
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in seen)


@DEVICES
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        *sorted(NETWORKS.keys() - {"mobilenet_v2"}),
    ],
)
def test_compiled_trains_as_pytorchs(backend, name):
    torch._dynamo.reset()
    network, ours, images = networks_of(name, backend.device)
    ours.compile(fullgraph=True, backend="aot_eager")  # in place: its parameters keep their names
    assert_same_training(network, ours, images)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_compiled_by_inductor_trains_as_pytorchs(backend):
    torch._dynamo.reset()
    network = UNet(width=2, depth=1, classes=2).double()
    ours = copy.deepcopy(network)
    tricorr.convert(ours)
    ours.compile(fullgraph=True)
    assert_same_training(network, ours, torch.randn(2, 3, 8, 8).double())


@pytest.mark.parametrize("backend", ["interpreter"], indirect=True)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_by_kernels_equals_pytorchs(backend, name):
    """Only one layer of every kind is converted, because the interpreter is slow."""
    network, _, images = networks_of(name)
    chosen = {
        (type(layer), layer.kernel_size, layer.groups > 1): layer_name
        for layer_name, layer in network.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    }
    ours = copy.deepcopy(network)
    conversion = tricorr.convert(ours, where=lambda name, layer: name in chosen.values())
    assert len(conversion.converted) == len(chosen) >= 3
    assert set(conversion.left.values()) == {"left out by where"}
    assert_same_training(network, ours, images[:, :, :16, :16], steps=1)


def run_on_a_rank(rank, ranks, rendezvous):
    from tricorr.ops import backend

    backend.CPU_DEVICE = None
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks
    )

    def run(network, images, **options):
        values = train(DistributedDataParallel(network), images, **options)
        own = torch.cat([value.flatten() for value in values.values() if value.dim()])
        everywhere = [torch.empty_like(own) for _ in range(ranks)]
        torch.distributed.all_gather(everywhere, own)
        assert all(torch.equal(a, b) for a, b in pairwise(everywhere))  # the mean over all ranks
        return values

    for name in NETWORKS:
        network, ours, images = networks_of(name)
        torch.manual_seed(rank)
        assert_same_training(network, ours, torch.randn_like(images), run=run)
    gc.collect()  # a process that ends while a network refers to the group may abort
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_ranks_train_as_pytorchs(tmp_path):
    torch.multiprocessing.spawn(run_on_a_rank, (2, tmp_path / "rendezvous"), nprocs=2)
