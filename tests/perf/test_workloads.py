"""The table of workloads: shapes agree with PyTorch, and small versions give right results."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tricorr import ops
from tricorr.perf import providers, workloads
from tricorr.perf.providers import PROVIDERS, TENSOR_DTYPES, make_operands
from tricorr.perf.timing.correctness import first_of, truth_of
from tricorr.perf.workloads import WORKLOADS

ALL = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)


def meta(shape):
    return torch.empty(shape, device="meta")


def test_names_are_unique():
    assert len(workloads.BY_NAME) == len(WORKLOADS)
    assert workloads.SUITES == (
        "resnet50",
        "convnext-t",
        "mobilenet-v2",
        "sd-unet",
        "replknet",
        "images",
        "epilogue",
        "kernelbench",
        "odd",
    )


@ALL
def test_output_is_pytorchs(workload):
    g = workload.geometry
    shapes, stride, dilation = (g.x_shape, g.weight_shape), g.given_stride, g.given_dilation
    steps = stride, g.padding, dilation, g.groups
    assert ops.geometry_of(*shapes, *steps, padding_mode=g.padding_mode) == g
    (top, bottom), (left, right) = g.padding
    if "transposed" in workload.tags:
        shape = (g.K, g.group_C, g.R, g.S)
        x = F.conv_transpose2d(
            meta(g.y_shape), meta(shape), None, stride, (top, left), 0, g.groups, dilation
        )
        assert tuple(x.shape) == g.x_shape
        return
    x, weight = meta(g.x_shape), meta(g.weight_shape[-4:])
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation, g.groups)
    assert tuple(y.shape) == g.y_shape


@ALL
def test_figures_and_names_of_a_workload(workload):
    assert set(workload.dtypes) <= set(TENSOR_DTYPES)
    assert set(workload.ops) <= set(workloads.ALL_OPS)
    assert workload.ops
    assert workloads.find(workload.name) is workload
    if workload.bias or workload.activation != "none" or workload.geometry.padding_mode != "zeros":
        assert workload.ops == ("fprop",)  # expected values exist only for this one
    assert ("padding_mode" in workload.tags) == (workload.geometry.padding_mode != "zeros")
    assert ("epilogue" in workload.tags) == (workload.activation != "none")
    if workload.shared:
        assert workload.ops == ("fprop",)
        assert workload.geometry.group_C == 1


@ALL
def test_small_version_has_the_same_structure(workload):
    g, small = workload.geometry, workload.scaled()
    s = small.geometry
    assert workloads.find(small.name) == small
    kept = ("R", "S", "stride", "padding", "dilation", "per_sample", "padding_mode")
    assert [getattr(s, name) for name in kept] == [getattr(g, name) for name in kept]
    assert (s.groups > 1, s.group_C > 1, s.group_K > 1) == (
        g.groups > 1,
        g.group_C > 1,
        g.group_K > 1,
    )
    assert s.macs <= max(2_000_000, 13_000_000 * (g.R > 13))
    assert min(s.P, s.Q) >= 1


@ALL
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_small_version_is_computed_right(workload, backend):
    small = workload.scaled(200_000)
    ours, pytorch = PROVIDERS[:2]
    for op in small.ops:
        problem = make_operands(small, op, "float32", "NCHW", backend.device)
        truth = truth_of(problem)
        result = ours.prepare(problem)()
        assert truth.error(result) <= truth.bound(first_of(result).dtype, "ieee")
        if pytorch.supports(small, op, "float32", "cpu") is None:
            theirs = pytorch.prepare(problem)()
            assert truth.error(theirs) <= truth.bound(first_of(result).dtype, "ieee")
            one = [(result, theirs)]
            pairs = zip(result, theirs, strict=True) if op == "backward" else one
            for ours_is, theirs_is in pairs:
                scale = theirs_is.abs().max().item()
                torch.testing.assert_close(ours_is, theirs_is, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["images-4096-3x3-reflect", "epilogue-64x56x56-64-3x3-relu"])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_forgotten_mode_bias_or_activation_is_wrong(name, backend):
    small = workloads.find(name).scaled(200_000)
    problem = make_operands(small, "fprop", "bfloat16", "NCHW", backend.device)
    truth = truth_of(problem)
    zeros = replace(small, geometry=small.geometry.without_padding_mode())
    spoilt = [
        replace(problem, workload=zeros),
        replace(problem, bias=None),
        replace(problem, workload=replace(small, activation="none")),
    ]
    changed = 0
    for other in spoilt:
        if (other.workload, other.bias) == (problem.workload, problem.bias):
            continue
        changed += 1
        result = PROVIDERS[0].prepare(other)()
        assert truth.error(result) > truth.bound(first_of(result).dtype, "ieee")
    assert changed == (2 if small.bias else 1)


@pytest.mark.parametrize("name", ["images-64x3x512-5x5-per-sample", "images-4096-3x3-circular"])
def test_peers_are_one_graph_for_a_compiler(name):
    problem = make_operands(workloads.find(name).scaled(50_000), "fprop", "float32", "NCHW", "cpu")
    function, tensors = providers._torch_function(problem)
    compiled = torch.compile(function, backend="eager", dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), function(*tensors), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activations_of_peers_are_one_graph_for_a_compiler(activation):
    layer = replace(workloads.find("epilogue-64x56x56-64-3x3-relu"), activation=activation)
    problem = make_operands(layer.scaled(50_000), "fprop", "float32", "NCHW", "cpu")
    function, tensors = providers._torch_function(problem)
    compiled = torch.compile(function, backend="eager", dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), function(*tensors), rtol=0, atol=0)
