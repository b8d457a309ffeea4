"""Tests that need a GPU: graphs, streams, several devices, no synchronization."""

import threading

import pytest
import torch
import torch.nn.functional as F
from plans import planned

import tricorr
from tricorr.ops import geometry_of

pytestmark = pytest.mark.parametrize("backend", ["cuda"], indirect=True)

#: One call for each kernel family, and one with two launches for each gradient.
CALLS = {
    "gemm": ((4, 32, 14, 14), (64, 32, 3, 3), {"padding": 1}),
    "rows": ((2, 8, 28, 28), (8, 1, 3, 3), {"padding": 1, "groups": 8}),
    "banded": ((1, 1, 512, 512), (1, 1, 31, 31), {"padding": 15}),
    "stencil": ((2, 3, 17, 13), (5, 3, 9, 9), {"padding": 4, "stride": 2}),
    "reflected": ((2, 16, 9, 9), (16, 16, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
}


def leaves(name, seed=0, dtype=torch.float16):
    generator = torch.Generator("cuda").manual_seed(seed)
    shapes = CALLS[name][:2]
    return [
        torch.randn(shape, generator=generator, device="cuda").to(dtype).requires_grad_()
        for shape in shapes
    ]


def step(name, x, weight):
    """y and both gradients of its squares' sum."""
    y = tricorr.corr2d(x, weight, activation="relu", **CALLS[name][2])
    return (y, *torch.autograd.grad(y.float().square().sum(), (x, weight)))


@pytest.mark.parametrize("name", CALLS)
def test_a_captured_step_replays_on_new_data(backend, name):
    x, weight = leaves(name)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and warms the allocator up
        step(name, x, weight)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(name, x, weight)
    for seed in (1, 2):
        new = leaves(name, seed)
        with torch.no_grad():
            x.copy_(new[0])
            weight.copy_(new[1])
        graph.replay()
        for ours, expected in zip(captured, step(name, *new), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", CALLS)
def test_kernels_run_on_the_current_stream(backend, name):
    x, weight = leaves(name)
    expected = step(name, x, weight)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # the operands are written late, only on this stream
        late = [t.detach().clone().requires_grad_() for t in (x, weight)]
        found = step(name, *late)
    torch.cuda.current_stream().wait_stream(side)
    for ours, other in zip(found, expected, strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_does_not_synchronize(backend, name):
    x, weight = leaves(name)
    step(name, x, weight)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(name, x, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_threads_share_the_device(backend):
    expected = {name: step(name, *leaves(name)) for name in CALLS}
    wrong = []

    def work(name):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                found = step(name, *leaves(name))
                torch.cuda.current_stream().synchronize()
                pairs = zip(found, expected[name], strict=True)
                wrong.extend(name for a, b in pairs if not torch.equal(a, b))

    threads = [threading.Thread(target=work, args=(name,)) for name in CALLS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_every_device_runs_its_own_tensors(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, weight = leaves("gemm")
    there = [t.detach().to("cuda:1").requires_grad_() for t in (x, weight)]
    with torch.cuda.device(0):
        found = step("gemm", *there)
    for ours, expected in zip(found, step("gemm", x, weight), strict=True):
        assert ours.device.index == 1
        assert torch.equal(ours.to("cuda:0"), expected)


def test_a_layer_captured_with_pytorchs_own_helper_trains(backend):
    layer = tricorr.Conv2D(8, 8, 3, padding=1, device="cuda")
    plain = torch.nn.Conv2d(8, 8, 3, padding=1, device="cuda")
    plain.load_state_dict(layer.state_dict())
    image = torch.randn(2, 8, 12, 12, device="cuda")
    captured = torch.cuda.make_graphed_callables(layer, (image.clone(),))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = F.conv2d(image, plain.weight, plain.bias, padding=1)
    y = captured(image)
    torch.testing.assert_close(y, expected, rtol=2e-3, atol=2e-3)  # ours may be TF32
    y.sum().backward()
    assert layer.weight.grad is not None


def test_peak_memory_of_a_reflection_is_that_of_zeros(backend):
    x = torch.randn(1, 1, 2048, 2048, device="cuda")
    weight = torch.randn(1, 1, 3, 3, device="cuda")
    peaks = {}
    for mode in ("zeros", "reflect"):
        tricorr.corr2d(x, weight, padding=1, padding_mode=mode)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        tricorr.corr2d(x, weight, padding=1, padding_mode=mode)
        peaks[mode] = torch.cuda.max_memory_allocated()
    assert peaks["reflect"] == peaks["zeros"]


def test_the_cases_above_plan_their_families(backend):
    from tricorr.ops.launch import entry as launch

    for name in ("gemm", "rows", "banded", "stencil"):
        x, weight = leaves(name)
        options = dict(CALLS[name][2])
        pad, stride = options.pop("padding"), options.pop("stride", 1)
        sides = ((pad, pad), (pad, pad))
        shapes = (tuple(x.shape), tuple(weight.shape))
        geometry = geometry_of(*shapes, (stride, stride), sides, **options)
        y = torch.empty(geometry.y_shape, device="meta")
        layout = launch.layout_of(geometry, x, weight, y)
        plan = planned("fprop", geometry, x.dtype, layout, launch.device_of(x))
        expected = {"gemm": ("gemm", "tma"), "banded": ("banded", "resident")}.get(name, (name,))
        assert plan.family in expected
