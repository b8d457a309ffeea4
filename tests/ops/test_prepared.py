"""Prepared calls, which are built once and then given other tensors.

They give the same results as calls that are built anew, and keep no tensor alive.
"""

import gc
import weakref

import pytest
import torch
from cases import SAME, in_format, tensors, whole_numbers
from closeness import OPS, check, check_exact, operands, run
from plans import launched, plan_on, planned, problem_of
from simulator.driver import simulated

from tricorr.kernels.versions import HAS_GLUON
from tricorr.ops import geometry_of
from tricorr.ops.plan.choose import FAMILIES, plan_with_tile
from tricorr.ops.plan.device import DEVICES, INTERPRETER
from tricorr.ops.plan.exchange.format_copies import Sampled
from tricorr.ops.plan.exchange.image_patches import Patches
from tricorr.ops.plan.exchange.windows import Merged
from tricorr.ops.plan.flat import FlatTile
from tricorr.ops.plan.problem import Layout
from tricorr.ops.plan.reuse import ReuseTile
from tricorr.ops.plan.tma import TmaTile

DEPTHWISE = geometry_of((2, 4, 9, 7), (4, 1, 3, 3), padding=SAME, groups=4)
# Geometries for which the planner takes each family, on the device beside them. INTERPRETER has
# four multiprocessors, so that weight gradients are split into partial sums.
CALLS = {
    "gemm": (geometry_of((2, 16, 4, 5), (16, 16, 2, 2), (1, 2), ((1, 0), (1, 0))), INTERPRETER),
    "rows": (DEPTHWISE, INTERPRETER),
    "stencil": (geometry_of((2, 2, 42, 9), (2, 2, 9, 3), dilation=(5, 1)), INTERPRETER),
    "columns": (geometry_of((2, 2, 19, 9), (2, 2, 9, 3)), INTERPRETER),
    "banded": (geometry_of((1, 1, 34, 34), (1, 1, 31, 31)), INTERPRETER),
    "patch": (geometry_of((1, 3, 128, 128), (24, 3, 4, 4), (4, 4)), INTERPRETER),
    "flipped": (geometry_of((2, 3, 9, 7), (4, 3, 2, 3), padding=SAME, flip=True), INTERPRETER),
    "framed": (
        geometry_of((1, 2, 7, 7), (2, 2, 3, 3), padding=SAME, padding_mode="reflect"),
        INTERPRETER,
    ),
    "tma": (geometry_of((1, 16, 8, 8), (16, 16, 3, 3), padding=SAME), DEVICES["h200"]),
    "strided_tma": (geometry_of((1, 16, 16, 16), (16, 16, 2, 2), (2, 2)), DEVICES["h200"]),
    "per_sample": (geometry_of((2, 3, 6, 6), (2, 4, 3, 2, 2)), INTERPRETER),
    "split": (geometry_of((1, 32, 3, 3), (32, 32, 5, 5), padding=((2, 2), (2, 2))), INTERPRETER),
}
#: Cases in float16 and channels_last.
HALF = {"banded", "tma", "strided_tma"}


def _recorded(function, names):
    def recorded(*args):
        names.append(function.__name__)
        return function(*args)

    return recorded


@pytest.fixture
def built(monkeypatch):
    """Names of the calls that the test builds. It starts without prepared calls."""
    from tricorr.ops.launch import entry as launch
    from tricorr.ops.launch.prepared import forget_prepared

    forget_prepared()
    names = []
    for name in ("fprop_call", "dgrad_call", "wgrad_calls"):
        build = getattr(launch, name)
        monkeypatch.setattr(launch, name, _recorded(build, names))
    yield names
    forget_prepared()


@pytest.fixture
def launch(kernel_backend, monkeypatch):
    """ops/launch/entry.py. On CPU, it plans for the device that is passed to `plan_for`."""
    from tricorr.ops.launch import entry as launch

    def plan_for(device):
        if kernel_backend.device == "cpu":
            monkeypatch.setattr(launch, "device_of", lambda tensor: device)

    monkeypatch.setattr(launch, "plan_for", plan_for, raising=False)
    return launch


def drawn(op, geometry, on, half=False):
    """New operands of `op`; if `half`, in float16 and channels_last, as tensor maps require."""
    made = tensors(geometry, torch.float16 if half else torch.float32, on)
    return operands(op, *(in_format(made) if half else made))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", CALLS)
def test_a_prepared_call_reads_its_own_tensors(name, op, launch, built, kernel_backend):
    from tricorr.ops.launch.prepared import forget_prepared

    geometry, device = CALLS[name]
    launch.plan_for(device)
    how = kernel_backend.device, name in HALF
    run(op, drawn(op, geometry, *how), geometry, launch)
    args = drawn(op, geometry, *how)
    built.clear()
    again = run(op, args, geometry, launch)
    assert not built
    check(op, args, geometry, actual=again)
    forget_prepared()
    plain = run(op, args, geometry, launch)
    assert built
    assert again.stride() == plain.stride()
    assert torch.equal(again, plain)


ODD = geometry_of((2, 19, 8, 10), (35, 19, 3, 3), padding=SAME)
POINTS = geometry_of((2, 18, 7, 9), (19, 18, 1, 1), (2, 3))
PATCHES = geometry_of((2, 16, 8, 16), (24, 16, 4, 4), (4, 4))


def plan_on_copies(way, op):
    """(geometry, plan) that copies images or the weight before its kernel, in float16 or TF32."""
    half, blocks = torch.float16, (2, 2, 8, 16, 32, 4, 2)
    if way == "flat":
        return ODD, plan_on("wgrad", ODD, torch.float32, None, FlatTile(16, 16, 16, 4, 2), 2)
    if way == "images":
        blocks = (2, 8, 2, 16, 32, 4, 2, 3) if op == "wgrad" else blocks
        return ODD, plan_on(op, ODD, half, None, TmaTile(*blocks, copied=True), 2)
    if way == "samples":
        return POINTS, plan_on(op, POINTS, half, Sampled(True, op == "dgrad"))
    exchange = Patches("crs", y_last=op != "fprop_bias") if way == "patches" else Merged()
    return PATCHES, plan_on(op, PATCHES, half, exchange)


def check_prepared(op, geometry, plan, built, device="cpu", format="NCHW"):
    """A second call, of other tensors, builds nothing and makes its own copies."""
    dtype = torch.float32 if plan.precision == "tf32" else torch.float16
    for turn in range(2):
        built.clear()
        x, weight, bias, dy = tensors(geometry, dtype, device, whole_numbers)
        x, dy = in_format((x, dy), format)
        args = operands(op, x, weight, bias, dy)
        check_exact(op, args, geometry, launched(op, args, geometry, plan))
        assert bool(built) == (turn == 0)


@pytest.mark.parametrize(
    ("way", "op"),
    [
        *((way, op) for way in ("images", "samples", "patches", "merged") for op in OPS),
        ("flat", "wgrad"),
    ],
)
def test_a_prepared_call_makes_its_own_copies(kernel_backend, built, way, op):
    geometry, plan = plan_on_copies(way, op)
    format = "NHWC" if way == "merged" else "NCHW"
    check_prepared(op, geometry, plan, built, kernel_backend.device, format)


@pytest.mark.skipif(not HAS_GLUON, reason="Gluon is written for Triton 3.6 and 3.7")
def test_a_kernel_in_gluon_is_prepared(built):
    geometry = geometry_of((2, 72, 5, 11), (48, 72, 2, 3), padding=((0, 1), (1, 1)))
    tile = ReuseTile(4, 8, 64, 16, 4, 3, copied=True)
    plan = plan_with_tile(problem_of("dgrad", geometry, copied=True), tile)
    with simulated(90):
        check_prepared("dgrad", geometry, plan, built)


def test_the_cases_above_plan_their_kernels():
    """Every family, with and without partial sums, turned views and padded images."""
    families = {}
    for name, (g, device) in CALLS.items():
        boxes = "NHWC" if name in HALF else ""
        layout = Layout(channels_last=name in HALF, x_boxes=boxes, y_boxes=boxes)
        dtype = torch.float16 if name in HALF else torch.float32
        families[name] = [
            planned(op, g, dtype, layout, device) for op in ("fprop", "dgrad", "wgrad")
        ]
    taken = {p.family for plans in families.values() for p in plans}
    # In Gluon, which has no interpreter: test_reuse.py and others in tests/kernels.
    taken |= {"reuse", "planes", "resident", "strip"}
    taken |= {"spread", "shifted"}  # of larger images: test_spread.py and test_shifted.py there
    taken.add("flat")  # TF32 alone: tests/kernels/test_flat.py
    assert taken == {kind.family for family in FAMILIES for kind in family.KINDS}
    assert any(plans[2].partials > 1 for plans in families.values())
    assert all(plan.splits > 1 for plan in families["split"][:2])
    assert families["rows"][1].turned


def test_a_call_with_one_tensor_as_two_operands_serves_two_tensors(launch, built, kernel_backend):
    geometry = geometry_of((2, 2, 3, 3), (2, 2, 3, 3), padding=SAME)
    one = torch.randn(2, 2, 3, 3, device=kernel_backend.device)
    other, another = torch.randn_like(one), torch.randn_like(one)
    for args in ((one, one, None), (other, another, None)):
        check("fprop", args, geometry, actual=launch.fprop(*args, geometry))
    assert len(built) == 2  # one for the tensors, one for their stand-ins


@pytest.mark.parametrize("name", ["gemm", "rows", "tma"])
def test_unaligned_tensors_are_prepared_separately(name, launch, built, kernel_backend):
    """Crops, and views of flat parameter buffers: a prepared call for each alignment."""
    geometry, device = CALLS[name]
    launch.plan_for(device)
    args = drawn("fprop_bias", geometry, kernel_backend.device, name in HALF)
    for start in (1, 2):
        shifted = [_shifted(tensor, start) for tensor in args]
        for turn in range(3):
            built.clear()
            y = launch.fprop(*shifted, geometry)
            check("fprop_bias", shifted, geometry, actual=y)
            assert bool(built) == (turn == 0)


def _shifted(tensor, start):
    """A copy of the tensor that begins `start` elements after a multiple of 16 bytes."""
    numel = tensor.untyped_storage().nbytes() // tensor.itemsize
    storage = torch.empty(numel + start, dtype=tensor.dtype, device=tensor.device)
    shifted = storage.as_strided(tensor.shape, tensor.stride(), start)
    assert shifted.data_ptr() % 16 == start * tensor.itemsize
    return shifted.copy_(tensor)


def test_weights_that_are_copied_are_copied_at_every_call(launch, built, kernel_backend):
    """A copy that is kept would not show the values that an optimiser writes to the weight."""
    geometry, device = CALLS["tma"]
    launch.plan_for(device)
    x, weight, bias = drawn("fprop_bias", geometry, kernel_backend.device, half=True)
    weight = weight.contiguous()
    for _ in range(3):
        weight.mul_(-0.5)
        y = launch.fprop(x, weight, bias, geometry)
        check("fprop_bias", (x, weight, bias), geometry, actual=y)


def test_no_tensor_is_kept(launch, kernel_backend):
    args = drawn("fprop", DEPTHWISE, kernel_backend.device)
    for _ in range(2):
        result = launch.fprop(*args, DEPTHWISE)
    kept = [weakref.ref(t) for t in (*args[:2], result)]
    del args, result
    gc.collect()
    assert all(ref() is None for ref in kept)


def test_the_number_of_prepared_calls_is_bounded(launch, built, kernel_backend, monkeypatch):
    from tricorr.ops.launch import prepared

    monkeypatch.setattr(prepared, "MAX_PREPARED", 2)
    for width in (3, 4, 5, 3):
        geometry = geometry_of((1, 1, 3, width), (1, 1, 2, 2))
        x, weight = tensors(geometry, torch.float32, kernel_backend.device)[:2]
        launch.fprop(x, weight, None, geometry)
        assert 1 <= len(prepared._PREPARED) <= 2


def test_a_different_call_is_not_taken_for_a_prepared_one(launch, built, kernel_backend):
    """Each call differs from the first in one thing that a launch depends on."""
    geometry = geometry_of((2, 2, 4, 4), (2, 2, 3, 3), padding=SAME)
    x, weight, bias = tensors(geometry, torch.float32, kernel_backend.device)[:3]
    flipped = geometry_of((2, 2, 4, 4), (2, 2, 3, 3), padding=SAME, flip=True)
    several = [
        ((x, weight, bias), geometry),
        ((x, weight, None), geometry),
        ((x, weight, bias), flipped),
        ((x.transpose(2, 3), weight, bias), geometry),
        ((x, weight.transpose(2, 3), bias), geometry),
        ((x, weight, torch.randn(4, device=x.device)[::2]), geometry),
        ((x.double(), weight.double(), bias.double()), geometry),
        ((x.byte(), weight, bias), geometry),
    ]
    for args, one in several * 2:
        check("fprop_bias", args, one, actual=launch.fprop(*args, one))
    for _ in range(2):
        residual = torch.randn_like(x)
        y = launch.fprop(x, weight, None, geometry, residual=residual)
        torch.testing.assert_close(y, launch.fprop(x, weight, None, geometry) + residual)
        y = launch.fprop(x, weight, bias, geometry, activation="relu")
        assert torch.equal(y, launch.fprop(x, weight, bias, geometry).relu())
