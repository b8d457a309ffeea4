"""Both gradients of a depthwise correlation by one launch: its kernel, its plans, its callers."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import SAME, in_format, tensors, whole_numbers
from closeness import check
from plans import H200
from test_rows import GEOMETRIES as ROWS
from test_vectors import GEOMETRIES as VECTORS

from tricorr import corr2d, explain, ops
from tricorr.ops import geometry_of
from tricorr.ops.launch.call import Call
from tricorr.ops.launch.prepared import forget_prepared
from tricorr.ops.plan import backward, choose
from tricorr.ops.plan.backward import BackwardTile, takes_both
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.times import seconds_of

#: Every window and stride in whole vectors, and some in rows of any length.
GEOMETRIES = {name: g for name, g in VECTORS.items() if takes_both(g)} | {
    f"{name}_of_any_length": ROWS[name]
    for name in ("image", "one_column", "per_sample", "stride_gt_window", "strided_dilated_flipped")
}
#: The first has vectors where the rows of a geometry allow them.
TILES = {
    "lanes_are_columns": BackwardTile(4, 8, STEP_P=2, LANE_Q=4, num_warps=1),
    "lanes_of_samples": BackwardTile(3, 6, BLOCK_N=2, LANE_Q=2, num_warps=1),
    "lanes_are_planes": BackwardTile(2, 8, BLOCK_C=4, LANE_Q=4, num_warps=1),
}


def problem_of(x, dy, geometry):
    """The problem of both gradients of tensors that lie in memory as these do."""
    from tricorr.ops.launch.layout import layout_of

    layout = layout_of(geometry, x, x.new_empty(geometry.weight_shape), dy)
    return Problem("backward", geometry, x.dtype, layout=layout)


def forced(x, dy, weight, geometry, tile, splits=1, **changes):
    """(dx, dw) by one launch with a given tile, in vectors where the tensors have them."""
    from tricorr.ops.launch import entry as launch

    problem = problem_of(x, dy, geometry)
    if backward.is_vector(problem, tile.LANE_Q):
        columns = tile.LANE_Q * geometry.stride[1]
        tile = replace(tile, X_ALIGN=tile.LANE_Q, Y_ALIGN=columns)
    plan = choose.plan_with_tile(problem, tile, splits)
    return launch.backward(x, dy, weight, geometry, plan=replace(plan, **changes))


def check_both(x, dy, weight, geometry, results):
    """Compares dx and dw with the reference."""
    dx, dw = results
    check("dgrad", (dy, weight), geometry, actual=dx)
    check("wgrad", (x, dy), geometry, actual=dw)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_window_and_stride_of_both(kernel_backend, name):
    turn = list(GEOMETRIES).index(name)
    geometry, tile = GEOMETRIES[name], list(TILES.values())[turn % 3]
    if geometry.per_sample:
        tile = replace(tile, BLOCK_N=1)  # each sample is a problem of its own
    dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float64)[turn % 4]
    x, weight, _, dy = tensors(geometry, dtype, kernel_backend.device)
    changes = {"interior": ("none", "some")[turn % 2], "int64": turn % 5 == 0}
    results = forced(x, dy, weight, geometry, tile, 1 + turn % 3, **changes)
    check_both(x, dy, weight, geometry, results)


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_slices_are_read_in_vectors_only_if_aligned(kernel_backend, offset):
    """The vector kernel is taken where rows start at a multiple of 4 columns."""
    geometry = geometry_of((2, 1, 6, 16), (1, 1, 3, 3), padding=SAME)
    device = kernel_backend.device
    images = [whole_numbers((2, 1, 6, 20)).float().to(device) for _ in range(2)]
    x, dy = (image[..., offset : offset + 16] for image in images)
    weight = whole_numbers((1, 1, 3, 3)).float().to(device)
    assert backward.is_vector(problem_of(x, dy, geometry), 4) == (offset == 0)
    results = forced(x, dy, weight, geometry, TILES["lanes_are_columns"], 2)
    again = forced(x, dy, weight, geometry, TILES["lanes_are_columns"], 2)
    expected = ops.dgrad(dy, weight, geometry), ops.wgrad(x, dy, geometry)
    for one, two, exact in zip(results, again, expected, strict=True):
        assert torch.equal(one, exact)
        assert torch.equal(one, two)


#: Depthwise, so that both gradients can be one launch, and small.
DEPTHWISE = geometry_of((2, 3, 5, 8), (3, 1, 3, 3), padding=SAME, groups=3)


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that are launched; both gradients are one launch where they can be."""
    monkeypatch.setattr(choose, "GAIN_OF_BOTH", 0.0)
    names = []
    launches = Call.launches

    def recorded(call):
        made = list(launches(call))
        names.extend(launch.kernel.__name__ for launch in made)
        return iter(made)

    monkeypatch.setattr(Call, "launches", recorded)
    forget_prepared()
    choose.plan_both.cache_clear()
    yield names
    forget_prepared()
    choose.plan_both.cache_clear()


def layer(device, geometry=DEPTHWISE, dtype=torch.float32, last=False):
    """x, weight and bias that want gradients, and dy."""
    made = tensors(geometry, dtype, device)
    x, weight, bias, dy = in_format(made) if last else made
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), dy


@pytest.mark.parametrize("last", [False, True])
def test_autograd_makes_both_gradients_by_one_launch(kernel_backend, launched, last):
    x, weight, bias, dy = layer(kernel_backend.device, last=last)
    y = corr2d(x, weight, bias, padding=1, groups=3)
    hooked = []
    weight.register_hook(hooked.append)
    launched.clear()
    y.backward(dy, retain_graph=True)
    assert launched[0] == "backward_rows"
    assert not {"dgrad_rows", "fprop_rows"} & set(launched)
    check("dgrad", (dy, weight), DEPTHWISE, actual=x.grad)
    check("wgrad", (x, dy), DEPTHWISE, actual=weight.grad)
    torch.testing.assert_close(bias.grad, dy.sum((0, 2, 3)))
    assert x.grad.stride() == x.stride()
    assert hooked[0].stride() == ops.wgrad(x, dy, DEPTHWISE).stride()
    first = [t.grad.clone() for t in (x, weight)]
    x.grad = weight.grad = None
    y.backward(dy)  # by the prepared launch
    assert all(torch.equal(t.grad, g) for t, g in zip((x, weight), first, strict=True))


def test_one_gradient_alone_is_its_own_operator(backend, launched):
    x, weight, _, dy = layer(backend.device)
    for op, image, taps in (("dgrad", x, weight.detach()), ("wgrad", x.detach(), weight)):
        corr2d(image, taps, padding=1, groups=3).backward(dy)
        wanted = x if op == "dgrad" else weight
        check(op, (dy, weight) if op == "dgrad" else (x, dy), DEPTHWISE, actual=wanted.grad)
    assert "backward_rows" not in launched


@pytest.mark.parametrize("backend", ["interpreter"], indirect=True)
def test_gradients_that_are_differentiated_are_two_operators(backend, launched):
    x, weight, _, dy = layer(backend.device)
    y = corr2d(x, weight, padding=1, groups=3)
    dx, dw = torch.autograd.grad(y, (x, weight), dy, create_graph=True)
    assert "backward_rows" not in launched
    (second,) = torch.autograd.grad((dx * dx).sum() + (dw * dw).sum(), weight)
    other = F.conv2d(x, weight, padding=1, groups=3)
    dx, dw = torch.autograd.grad(other, (x, weight), dy, create_graph=True)
    (expected,) = torch.autograd.grad((dx * dx).sum() + (dw * dw).sum(), weight)
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", ["interpreter"], indirect=True)
def test_a_profiler_sees_the_same_launch(backend, launched):
    x, weight, _, dy = layer(backend.device)
    y = corr2d(x, weight, padding=1, groups=3)
    launched.clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y.backward(dy)
    assert launched[0] == "backward_rows"
    assert "tricorr::backward" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(
    "changes",
    [
        {"padding_mode": "reflect"},
        {"padding_mode": "circular"},
        {"padding_mode": "replicate"},
        {"groups": 1, "C": 1},
    ],
)
@pytest.mark.parametrize("backend", ["interpreter"], indirect=True)
def test_other_calls_are_two_launches(backend, launched, changes):
    """Padding modes add to dx what they fold back, and several filters read one channel."""
    geometry = replace(DEPTHWISE, **changes)
    x, weight, _, dy = tensors(geometry, torch.float32, backend.device)
    dx, dw = ops.backward(x, dy, weight, geometry)
    assert "backward_rows" not in launched
    check("dgrad", (dy, weight), geometry, actual=dx)
    check("wgrad", (x, dy), geometry, actual=dw)


LAYERS = {
    "mobilenet": geometry_of((64, 144, 56, 56), (144, 1, 3, 3), padding=SAME, groups=144),
    "strided": geometry_of((64, 96, 112, 112), (96, 1, 3, 3), (2, 2), SAME, groups=96),
    "image": geometry_of((1, 1, 4096, 4096), (1, 1, 5, 5), padding=((2, 2), (2, 2))),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_bound_layers_are_predicted_faster_by_one_launch(name, dtype):
    layout = Layout(x_align=16 // dtype.itemsize, y_align=16 // dtype.itemsize)
    dgrad, wgrad = (
        Problem(op, LAYERS[name], dtype, layout=layout, device=H200) for op in ("dgrad", "wgrad")
    )
    plan = choose.plan_both(dgrad, wgrad)
    problem = backward.both(dgrad, wgrad)
    assert plan is not None
    assert plan.kernel == "backward_rows"
    assert 1.1 * seconds_of(plan, problem) <= choose.seconds_of_two(dgrad, wgrad)
    # x, dy and dx once, where two launches read dy twice.
    assert problem.compulsory_bytes < dgrad.compulsory_bytes + wgrad.compulsory_bytes
    strips = plan.tile.strips(problem)
    assert plan.splits * plan.split_strips >= strips > (plan.splits - 1) * plan.split_strips


def test_explain_says_that_both_gradients_are_one_launch():
    x = torch.empty(64, 144, 56, 56, device="meta")
    weight = torch.empty(144, 1, 3, 3, device="meta")
    call = explain(x, weight, padding=1, groups=144, device="h100")
    assert call.passes["backward"].plan.kernel == "backward_rows"
    assert call.passes["backward"].flops == 2 * call.passes["dgrad"].flops
    assert "backward (dgrad and wgrad): backward_rows" in str(call)
    assert "backward" not in explain(x, weight, padding=1, groups=144, padding_mode="reflect",
                                     device="h100").passes  # fmt: skip
