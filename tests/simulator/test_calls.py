"""Every kernel, compiled, on every unit, architecture and memory format, against the reference."""
# mypy: ignore-errors

import numpy as np
import pytest
import torch
from cases import tensors, whole_numbers
from closeness import check, operands

from simulator.calls import ARCHS, FORMATS, calls, newest_calls, planned_as_listed
from simulator.driver import simulated
from tricorr import kernels, ops
from tricorr.ops.launch import entry as launch
from tricorr.ops.launch.prepared import forget_prepared
from tricorr.ops.plan import choose
from tricorr.ops.plan.choose import plan_with_tile
from tricorr.ops.plan.problem import Layout, Problem

CALLS = [
    *[pytest.param(call, id=str(call)) for call in calls()],
    *[pytest.param(call, id=str(call), marks=pytest.mark.slow) for call in newest_calls()],
]


@pytest.mark.parametrize("call", CALLS)
def test_every_call_is_right(call):
    made = tensors(call.geometry, call.dtype)
    if call.x_dtype == torch.uint8:
        made[0] = torch.randint(0, 256, made[0].shape, dtype=torch.uint8)
    args = operands(call.op, *made)
    last = FORMATS[call.format]
    given = [t.contiguous(memory_format=last) if t.dim() == 4 else t for t in args]
    name, more = call.op.removesuffix("_bias"), {}
    if call.tile is not None:
        layout = Layout(channels_last=call.format == "pixels")
        problem = Problem(name, call.geometry, call.dtype, call.precision, layout)
        more["plan"] = plan_with_tile(problem, call.tile)
    with planned_as_listed(call), simulated(call.arch) as device:
        module = launch if more else ops
        actual = getattr(module, name)(*given, call.geometry, precision=call.precision, **more)
    check(call.op, args, call.geometry, actual=actual, precision=call.precision)
    launched = {(done.kernel, done.unit) for done in device.launches}
    # If the planner takes another kernel now, name it in calls.TABLE and add a call for this one.
    assert (call.kernel, call.unit) in launched
    assert BESIDE.get((call.name, call.op), call.kernel) in dict(launched)


#: Kernels that are tested in other files. The planner takes most of them for large images only.
ELSEWHERE = {"lag_sums", "fprop_reuse", "wgrad_reuse", "wgrad_flat", "copy_flat"}
ELSEWHERE |= {"fprop_resident", "build_lines", "fprop_separable", "fprop_spread", "wgrad_spread"}
ELSEWHERE |= {"backward_rows", "fprop_planes", "copy_patches", "wgrad_shifted"}
ELSEWHERE |= {"wgrad_planes", "fprop_strip"}
#: Kernels that run before or after another one, and the calls that have them.
BESIDE = {
    ("rows_out", "fprop_bias"): "copy_images",
    ("window", "fprop_bias"): "build_bands",
    ("few", "wgrad"): "sum_partials",
    ("head", "fprop_bias"): "build_patch_weight",
    ("stem", "dgrad"): "build_patch_weight",
    ("head", "wgrad"): "sum_partials",
}
#: The units with which a kernel, or a family's kernels, multiply, by architecture.
UNITS = {
    "gemm": {80: {"fma", "mma.sync"}, 90: {"fma", "mma.sync", "wgmma"}},
    "fprop_banded": {80: {"mma.sync"}, 90: {"mma.sync"}},
    "wgrad_banded": {80: {"mma.sync"}, 90: {"wgmma"}},
    "tma": {90: {"wgmma"}},
    "fprop_patch": {80: {"fma", "mma.sync"}, 90: {"fma", "wgmma"}},
    "wgrad_patch": {80: {"mma.sync"}, 90: {"wgmma"}},
    "rows": {80: {"fma"}, 90: {"fma"}},
    "stencil": {80: {"fma"}, 90: {"fma"}},
    "columns": {80: {"fma"}, 90: {"fma"}},
}


def test_every_kernel_has_its_calls():
    """Each kernel has calls on every unit and architecture, and in the formats that it reads."""
    made = list(calls())
    units = {(call.kernel, call.arch, call.unit) for call in made}
    formats = {(call.kernel, call.arch, call.format) for call in made}
    for kernel in set(kernels.__all__) - {"TensorDescriptor", *ELSEWHERE, *BESIDE.values()}:
        of_family = UNITS.get(kernel.rpartition("_")[2])
        for arch, wanted in UNITS.get(kernel, of_family).items():
            assert {(kernel, arch, unit) for unit in wanted} <= units
            read = ["planes"] if kernel.endswith("banded") else FORMATS
            assert {(kernel, arch, format) for format in read} <= formats


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("format", FORMATS)
def test_lag_sums_are_right(arch, format):
    """Sums of whole numbers are exact."""
    a = torch.randint(0, 256, (2, 2, 9, 260), dtype=torch.uint8)
    b = torch.randint(0, 256, (2, 1, 10, 262), dtype=torch.uint8)
    given = [t.contiguous(memory_format=FORMATS[format]) for t in (a, b)]
    with simulated(arch) as device:
        actual = ops.lag_sums(*given, (2, 3))
    x, y = a.numpy().astype(float), b.numpy().astype(float)
    expected = [
        [np.einsum("ncpq,ndpq->cd", x, y[..., r : r + 9, s : s + 260]) for s in range(3)]
        for r in range(2)
    ]
    assert np.array_equal(actual.numpy(), np.moveaxis(expected, (2, 3), (0, 1)))
    assert "lag_sums" in {launch.kernel for launch in device.launches}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("format", FORMATS)
def test_both_gradients_of_one_launch_are_right(arch, format, monkeypatch):
    """Rows of whole vectors and lanes of two samples, or of channels; whole numbers are exact."""
    monkeypatch.setattr(choose, "GAIN_OF_BOTH", 0.0)
    geometry = ops.geometry_of((3, 4, 5, 8), (4, 1, 3, 3), padding=((1, 1), (1, 1)), groups=4)
    x, weight, _, dy = tensors(geometry, torch.bfloat16, make=whole_numbers)
    x, dy = (t.contiguous(memory_format=FORMATS[format]) for t in (x, dy))
    forget_prepared()
    choose.plan_both.cache_clear()
    with simulated(arch) as device:
        dx, dw = ops.backward(x, dy, weight, geometry)
    forget_prepared()
    choose.plan_both.cache_clear()
    check("dgrad", (dy, weight), geometry, actual=dx)
    check("wgrad", (x, dy), geometry, actual=dw)
    assert device.launches[0].kernel == "backward_rows"
