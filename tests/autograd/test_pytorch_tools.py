"""tricorr's layers with PyTorch's tools: autocast, hooks, checkpoints, optimizers, threads."""

import copy
import itertools
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, ResNet18
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import tricorr

CPU = pytest.mark.parametrize("backend", ["cpu"], indirect=True)
SMALL = pytest.mark.parametrize("backend", ["cpu", "interpreter", "cuda"], indirect=True)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def stack(backend, dtype=torch.float64):
    """A layer of each kind, with an activation between them."""
    layers = [tricorr.Conv2D(2, 3, 2), nn.ReLU(), tricorr.ConvTranspose2D(3, 1, 2)]
    return nn.Sequential(*layers).to(backend.device, dtype)


def images(backend, dtype=torch.float64):
    return torch.randn(2, 2, 4, 5, dtype=dtype, device=backend.device)


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# Mixed precision.

PAIRS = {
    "conv": (tricorr.corr2d, F.conv2d),
    "transposed": (tricorr.corr_transpose2d, F.conv_transpose2d),
}


@CPU
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_autocast_lowers_every_dtype_as_pytorchs(backend, name, low):
    """float32 and both 16-bit types, also mixed, are lowered, with the bias; float64 is not."""
    for given in itertools.product(DTYPES, repeat=2):
        results = []
        for function in PAIRS[name]:
            x, w = (
                torch.ones(s, dtype=d)
                for s, d in zip(((1, 2, 4, 4), (2, 2, 3, 3)), given, strict=True)
            )
            try:
                with torch.autocast("cpu", low):
                    y = function(x, w, torch.ones(2, dtype=given[1]))
                    with torch.autocast("cpu", enabled=False):
                        plain = function(x, x).dtype
                results.append((y.dtype, plain))
            except RuntimeError:
                results.append(RuntimeError)
        assert results[0] == results[1], given


@SMALL
def test_grad_scaler_steps_and_skips(backend):
    """GradScaler unscales finite gradients, and skips a step if one is not finite."""
    model = stack(backend, torch.float32)
    plain = copy.deepcopy(model)
    scaler = torch.amp.GradScaler(backend.device, init_scale=2.0**7, growth_interval=1)
    batch = images(backend, torch.float32)
    for scaled in (True, False):
        network = model if scaled else plain
        optimizer = torch.optim.SGD(network.parameters(), lr=0.125)
        loss = network(batch).square().mean()
        if scaled:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
    assert_equal(list(model.parameters()), list(plain.parameters()))  # 128 is a power of two
    assert scaler.get_scale() == 2.0**8
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    scaler.scale(model(batch).square().mean()).backward()
    model[0].weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert_equal(model.state_dict(), before)
    assert scaler.get_scale() == 2.0**7


# Checkpointing, hooks, parametrizations, pruning.


@SMALL
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved_tensors", "reentrant"])
def test_checkpoint_gives_the_same_gradients(backend, reentrant):
    model = stack(backend)
    batch = images(backend).requires_grad_()
    model(batch).square().sum().backward()
    expected = [batch.grad, *gradients(model)]
    batch.grad = None
    model.zero_grad()
    checkpoint(model, batch, use_reentrant=reentrant).square().sum().backward()
    assert_equal([batch.grad, *gradients(model)], expected)


@CPU
def test_activations_can_be_saved_elsewhere(backend):
    """saved_tensors_hooks gets the image and the weight, and its result is used."""
    image, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 2, 2)
    saved = []

    def pack(tensor):
        saved.append(tensor.shape)
        return tensor.numpy(force=True).copy()

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        y = tricorr.corr2d(image, weight)
    y.sum().backward()
    assert saved == [image.shape, weight.shape]
    assert_equal(image.grad, torch.nn.grad.conv2d_input(image.shape, weight, torch.ones_like(y)))


@SMALL
def test_module_hooks_see_and_change(backend):
    layer = stack(backend)[0]
    image = images(backend).requires_grad_()
    plain, seen = layer(image), {}
    layer.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    layer.register_forward_hook(lambda _, args, y: seen.update(input=args[0]) or y - 1)
    layer.register_full_backward_hook(lambda _, dx, dy: seen.update(dx=dx[0], dy=dy[0]))
    y = layer(image)
    bias = layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(y, (plain - bias) * 2 + bias - 1)
    y.sum().backward()
    assert_equal(seen["input"], image * 2)
    assert_equal(image.grad, 2 * seen["dx"])
    assert_equal(seen["dy"], torch.ones_like(y))


REPARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda layer: prune.ln_structured(layer, "weight", 1, n=2, dim=0),
}


@SMALL
@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_reparametrized_layers_learn_as_pytorchs(backend, name):
    values = []
    for cls in (tricorr.Conv2D, nn.Conv2d):
        torch.manual_seed(0)
        layer = REPARAMETRIZED[name](cls(2, 3, 2).to(backend.device, torch.float64))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            loss = layer(images(backend)).square().mean()
            loss.backward()
            optimizer.step()
        values.append([loss, *layer.parameters()])
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-12)


# State.


@CPU
@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["adam", "sgd"])
def test_optimizer_state_moves_between_pytorchs_layers_and_ours(backend, momentum):
    """Converting a model in the middle of training does not change the results."""

    def optimizer_of(model):
        if momentum:
            return torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
        return torch.optim.Adam(model.parameters(), lr=0.01)

    def steps(model, optimizer, count):
        torch.manual_seed(count)
        for _ in range(count):
            optimizer.zero_grad()
            model(images(backend)).square().mean().backward()
            optimizer.step()

    model = stack(backend)
    tricorr.convert_back(model)
    optimizer = optimizer_of(model)
    steps(model, optimizer, 2)
    other = copy.deepcopy(model)
    resumed = optimizer_of(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    tricorr.convert(other)
    steps(model, optimizer, 3)
    steps(other, resumed, 3)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=1e-12, atol=1e-12)


@CPU
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_checkpoints_load_into_both_kinds_of_layers(backend, name, tmp_path):
    make, _ = NETWORKS[name]
    theirs, ours = make(), make()
    tricorr.convert(ours)
    for way, source, target in (("there", theirs, ours), ("back", ours, theirs)):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        expected = copy.deepcopy(source.state_dict())
        torch.save(expected, tmp_path / way)
        state = torch.load(tmp_path / way, weights_only=True, mmap=True)
        assert str(target.load_state_dict(state, assign=True)) == "<All keys matched successfully>"
        assert_equal(target.state_dict(), expected)


#: Some keys of torchvision's resnet18-f37072fd.pth, one of every kind, with their shapes.
TORCHVISION = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.running_mean": (64,),
    "bn1.num_batches_tracked": (),
    "layer1.1.conv2.weight": (64, 64, 3, 3),
    "layer3.0.downsample.0.weight": (256, 128, 1, 1),
    "layer3.0.downsample.1.bias": (256,),
    "layer4.1.conv1.weight": (512, 512, 3, 3),
    "fc.weight": (1000, 512),
}


@CPU
def test_a_torchvision_checkpoint_loads(backend):
    with torch.device("meta"):
        network = ResNet18()
    assert len(tricorr.convert(network).converted) == 20
    state = network.state_dict()
    assert len(state) == 122
    assert TORCHVISION.items() <= {key: tuple(value.shape) for key, value in state.items()}.items()
    published = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}
    network.load_state_dict(published, assign=True)
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)


# Processes and threads.


def train_shared(model, batch):
    from tricorr.ops import backend

    backend.CPU_DEVICE = None
    torch.set_num_threads(1)
    model(batch).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad


@CPU
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_train_a_shared_model(backend, method):
    model, batch = stack(backend), images(backend)
    alone = copy.deepcopy(model)
    model.share_memory()
    assert all(parameter.is_shared() for parameter in model.parameters())
    context = torch.multiprocessing.get_context(method)
    process = context.Process(target=train_shared, args=(model, batch))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    train_shared(alone, batch)
    torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=1e-12, atol=1e-12)


class Filtered(Dataset):
    """Images that are filtered in the worker that loads them."""

    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 4

    def __getitem__(self, index):
        from tricorr.ops import backend

        backend.CPU_DEVICE = None
        with torch.no_grad():
            return self.layer(torch.full((2, 4, 5), float(index), dtype=torch.float64))


@CPU
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers_filter(backend, method):
    filtered = Filtered(stack(backend))
    loader = DataLoader(filtered, batch_size=2, num_workers=1, multiprocessing_context=method)
    expected = torch.stack([filtered[index] for index in range(4)])
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=1e-12, atol=1e-12)


@SMALL
def test_threads_do_not_disturb_each_other(backend):
    """Every thread has its own model and batch and runs the same kernels, forward and backward."""
    models = [stack(backend) for _ in range(2 if backend.name == "interpreter" else 8)]
    batches = [images(backend) for _ in models]
    expected = []
    for model, batch in zip(models, batches, strict=True):
        model(batch).square().mean().backward()
        expected.append(gradients(model))
        model.zero_grad()
    barrier = threading.Barrier(len(models))

    def run(model, batch):
        barrier.wait()
        for _ in range(2):
            model.zero_grad()
            model(batch).square().mean().backward()

    threads = [
        threading.Thread(target=run, args=pair) for pair in zip(models, batches, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_equal([gradients(model) for model in models], expected)


@CPU
def test_a_whole_model_is_pickled_with_its_optimizer(backend):
    model = stack(backend)
    optimizer = torch.optim.Adam(model.parameters())
    model(images(backend)).sum().backward()
    optimizer.step()
    other, resumed = pickle.loads(pickle.dumps((model, optimizer)))
    assert resumed.param_groups[0]["params"][0] is other[0].weight
    batch = images(backend)
    assert_equal(other(batch), model(batch))
