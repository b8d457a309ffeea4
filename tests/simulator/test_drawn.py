"""Calls drawn at random, by every family, and calls with offsets near 2^31, are right.

Plans that the planner would not take are drawn in tests/kernels/test_random_geometries.py too.
"""
# mypy: ignore-errors

import random

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import assert_close_to_reference, check, operands, terms, to_numpy, truth

from simulator.calls import ARCHS
from simulator.driver import simulated
from tricorr import ArgumentError, ops
from tricorr.ops import backend, geometry_of
from tricorr.ops.launch import entry as launch
from tricorr.ops.launch.formats import empty_in_format
from tricorr.ops.launch.layout import layout_of
from tricorr.ops.plan.exchange.windows import Overlapping
from tricorr.ops.plan.problem import Problem
from tricorr.perf.model.planned import all_plans

pytestmark = pytest.mark.slow

#: Number of calls for each architecture, and the most multiply-adds of a call.
COUNT, MOST = 60, 4e6
#: Most programs of a forced plan.
MOST_PROGRAMS = 200
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Of weights and output gradients: subnormal, or so large that some sums are infinite.
SCALES = {torch.float16: (1, 1, 2.0**-24, 2.0**13), torch.bfloat16: (1, 1, 2.0**-133)}
MODES = (*["zeros"] * 4, "reflect", "replicate", "circular")


def draw_geometry(rng, least=5):
    """Small images of every kind: one, few or many channels, groups, a bank for every sample."""
    kind = rng.choice(["image", "few", "depthwise", "multiplier", "bank", "many", "many", "many"])
    groups = 1
    if kind == "image":
        C, K = 1, rng.choice([1, 1, 2, 3, 8])
    elif kind == "few":
        C, K = rng.choice([2, 3, 4]), rng.choice([1, 2, 3, 8, 16, 24])
    elif kind == "bank":
        C, K, groups = rng.choice([(1, 1, 1), (3, 3, 3), (2, 4, 1), (24, 16, 1), (32, 40, 2)])
    elif kind == "many":
        C, K = rng.choice([16, 24, 32, 40, 64, 67]), rng.choice([16, 24, 32, 48, 64, 67, 128])
        groups = rng.choice([1, 1, 1, 2]) if C % 2 == K % 2 == 0 else 1
    else:
        C = groups = rng.choice([3, 12, 32])
        K = groups * (rng.choice([2, 3]) if kind == "multiplier" else 1)
    R = min(rng.choice([1, 1, 2, 3, 3, 3, 5, 7, 9, 11]), 5 if C // groups > 8 else 11)
    S = rng.choice([R, R, R, 1, 3, 5])
    dilation = rng.choice([1, 1, 1, 2]), rng.choice([1, 1, 1, 2, 3])
    padding = []
    for taps, gap in zip((R, S), dilation, strict=True):
        same = (taps - 1) * gap // 2
        padding.append(rng.choice([(same, same), (same, same), (0, 0), (same, 0), (1, 2), (-1, 1)]))
    N = rng.choice([1, 2, 3])
    weight = (K, C // groups, R, S)
    few = list(range(least, 5))
    far = [(1, 16), (16, 1), (16, 2)] if few else []  # one row, or column, of outputs
    return geometry_of(
        (
            N,
            C,
            rng.choice([*few, 5, 7, 8, 11, 14, 16, 19]),
            rng.choice([*few, 5, 7, 8, 13, 14, 16, 24, 31]),
        ),
        (N, *weight) if kind == "bank" else weight,
        rng.choice([(1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (1, 2), (3, 3), *far]),
        tuple(padding),
        dilation,
        groups,
        rng.random() < 0.25,
        rng.choice(MODES),
    )


def in_a_larger_one(image, rng):
    """The image as a slice of a larger one, which is filled with NaN."""
    n, c, h, w = image.shape
    step = 16 // image.itemsize if rng.random() < 0.5 else 1  # keeps 16-byte alignment, or not
    large = image.new_full((n, c + 2 * step, h + 1, w + 2 * step), float("nan"))
    view = large[:, step : c + step, :h, step : w + step]
    return view.copy_(image)


def in_pixels(made):
    return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]


def draw(rng):
    """(operator, geometry, dtype, precision, operands, residual, activation)."""
    geometry = None
    while geometry is None or not geometry.y_numel or geometry.macs > MOST:
        try:
            geometry = draw_geometry(rng)
        except ArgumentError:
            geometry = None
    op, dtype = rng.choice(["fprop_bias", "fprop", "dgrad", "wgrad"]), rng.choice(DTYPES)
    precision = rng.choice(["ieee", "tf32", "tf32x3"]) if dtype == torch.float32 else "ieee"
    made = tensors(geometry, dtype)
    if rng.random() < 0.5:
        made = in_pixels(made)
    if rng.random() < 0.2:
        made[0], made[3] = in_a_larger_one(made[0], rng), in_a_larger_one(made[3], rng)
    if dtype == torch.float32 and op.startswith("fprop") and rng.random() < 0.15:
        made[0] = torch.randint(0, 256, geometry.x_shape, dtype=torch.uint8)
    residual = torch.randn_like(made[3]) if rng.random() < 0.3 else None
    activation = rng.choice(["none", "none", "relu", "relu6"])
    return op, geometry, dtype, precision, operands(op, *made), residual, activation


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("number", range(COUNT))
def test_drawn_calls_are_right(arch, number):
    rng = random.Random(1000 * arch + number)
    op, geometry, _, precision, args, residual, activation = draw(rng)
    if not op.startswith("fprop"):
        with simulated(arch):
            actual = getattr(ops, op)(*args, geometry, precision=precision)
        check(op, args, geometry, actual=actual, precision=precision)
        return
    with simulated(arch):
        actual = ops.fprop(*args, geometry, precision, activation, residual)
    expected = truth(op, args, geometry)
    absolute = truth(op, [None if t is None else t.abs() for t in args], geometry)
    if residual is not None:
        expected, absolute = (sums + f(to_numpy(residual)) for sums, f in
                              ((expected, lambda t: t), (absolute, abs)))  # fmt: skip
    if activation != "none":  # neither activation increases differences
        expected = expected.clip(0, 6 if activation == "relu6" else None)
    count = terms(op, geometry) + (residual is not None)
    assert_close_to_reference(actual, expected, absolute, count, precision=precision)


def plan_of_each_family(op, args, geometry, dtype, precision, rng):
    """One plan of each family that could run a call, on the images and on copies of them."""
    read = args[0]
    shape = {"fprop": geometry.y_shape, "dgrad": geometry.x_shape, "wgrad": geometry.weight_shape}
    made = empty_in_format(shape[op], dtype, like=read)
    x, weight, y = {
        "fprop": (*args[:2], made), "dgrad": (made, args[1], read), "wgrad": (read, made, args[1])
    }[op]  # fmt: skip
    layout = layout_of(geometry, x, weight, y)
    x_bytes = x.itemsize if x.dtype != dtype else 0
    problem = Problem(op, geometry, dtype, precision, layout, backend.CPU_DEVICE, x_bytes)
    found = {}
    for plan in all_plans(problem):
        found.setdefault((plan.family, str(plan.exchange)), []).append(plan)
    plans = [rng.choice(plans) for plans in found.values()]
    return [plan for plan in plans if plan.grid <= MOST_PROGRAMS]


@pytest.mark.parametrize("number", range(COUNT))
def test_every_family_computes_a_drawn_call(number):
    """Also of a few pixels: a stride may yield one row, a dilation have one tap; of bytes; of
    subnormal numbers, and of sums beyond the range.
    """
    rng, geometry = random.Random(number), None
    while geometry is None or not geometry.y_numel or geometry.macs > MOST / 4:
        try:
            geometry = draw_geometry(rng, least=1)
        except ArgumentError:
            geometry = None
    op, dtype = rng.choice(["fprop", "dgrad", "wgrad"]), rng.choice(DTYPES)
    made = list(tensors(geometry, dtype, make=whole_numbers))
    made = in_pixels(made) if rng.random() < 0.5 else made
    if rng.random() < 0.2:
        made[0] = made[0].abs().to(torch.uint8)
    args = operands(op, *made)
    args[1].mul_(rng.choice(SCALES.get(dtype, (1,))))
    expected = torch.from_numpy(truth(op, args, geometry)).to(dtype)
    with simulated(90):
        for plan in plan_of_each_family(op, args, geometry, dtype, "tf32", rng):
            actual = getattr(launch, op)(*args, geometry, precision="tf32", plan=plan)
            assert torch.equal(actual, expected), plan


#: Families whose results an infinity of an operand may reach though they do not read it, see
#: docs/limits.md. Any family may spread one in the weight of an input gradient.
SPREADING = {
    ("fprop", "x"): {"banded", "resident", "patch", "strip", "spread"},
    ("dgrad", "dy"): {"banded", "resident", "patch", "strip", "spread"},
    ("wgrad", "x"): {"rows", "columns", "banded", "flat", "shifted", "spread", "planes"},
    ("wgrad", "dy"): {"rows", "columns", "shifted", "spread"},
}


def may_reach(op, name, place, geometry):
    """The results of the same sample and group, or channel, as an operand's element, as a mask."""
    g = geometry
    shape = {"fprop": g.y_shape, "dgrad": g.x_shape, "wgrad": g.weight_shape}[op]
    reached = torch.zeros(shape, dtype=torch.bool)
    n, channel = place[:2]
    if name == "weight":  # of an input gradient: all pixels of the channel
        k, c = place[-4:-2]
        samples = n if g.per_sample else slice(None)
        reached[samples, k // g.group_K * g.group_C + c] = True
    elif op == "wgrad":
        sample = reached[n] if g.per_sample else reached
        if name == "dy":
            sample[channel] = True
        else:
            group, c = divmod(channel, g.group_C)
            sample[group * g.group_K : (group + 1) * g.group_K, c] = True
    else:
        read, made = (g.group_C, g.group_K) if op == "fprop" else (g.group_K, g.group_C)
        group = channel // read
        reached[n, group * made : (group + 1) * made] = True
    return reached


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("number", range(COUNT // 2))
def test_infinities_and_nans_reach_the_results_that_are_documented(number):
    """At least those that read the value, of any family no others but as docs/limits.md says."""
    rng, geometry = random.Random(5000 + number), None
    while geometry is None or not geometry.y_numel or geometry.macs > MOST / 4:
        try:
            geometry = draw_geometry(rng, least=1)
        except ArgumentError:
            geometry = None
    op, dtype = rng.choice(["fprop", "dgrad", "wgrad"]), rng.choice(DTYPES)
    made = tensors(geometry, dtype)
    args = list(operands(op, *(in_pixels(made) if rng.random() < 0.5 else made)))
    which = rng.choice([0, 0, 1])
    name = {"fprop": ("x", "weight"), "dgrad": ("dy", "weight"), "wgrad": ("x", "dy")}[op][which]
    ones = [None if t is None else torch.ones_like(t) for t in args]
    place = tuple(rng.randrange(extent) for extent in args[which].shape)
    ones[which].zero_()[place] = 1
    args[which][place] = rng.choice([torch.inf, -torch.inf, torch.nan])
    read = torch.from_numpy(truth(op, ones, geometry)) > 0
    met = torch.from_numpy(truth(op, args, geometry)).isfinite().logical_not()  # also by a zero
    with simulated(90):
        for plan in plan_of_each_family(op, args, geometry, dtype, "tf32", rng):
            actual = getattr(launch, op)(*args, geometry, precision="tf32", plan=plan)
            reached = actual.isfinite().logical_not()
            assert reached[read].all(), plan
            spreads = (op, name) == ("dgrad", "weight") or (
                plan.family in SPREADING.get((op, name), ())
                or isinstance(plan.exchange, Overlapping)
            )
            allowed = met | may_reach(op, name, place, geometry) if spreads else met
            assert not reached[~allowed].any(), plan


#: Elements from one image to the next, with which the last offset fits in 32 bits or does not.
STEPS = {"below": 2**31 - 2**16 - 2**14, "beyond": 2**31 + 2**12}
FAR = {
    "dense": geometry_of((2, 32, 8, 8), (32, 32, 3, 3), padding=((1, 1), (1, 1))),
    "point": geometry_of((2, 32, 8, 8), (32, 32, 1, 1)),
    "few": geometry_of((2, 3, 9, 11), (16, 3, 3, 3), padding=((1, 1), (1, 1))),
    "depthwise": geometry_of((2, 8, 8, 16), (8, 1, 3, 3), padding=((1, 1), (1, 1)), groups=8),
    "image": geometry_of((2, 1, 24, 24), (1, 1, 11, 11), padding=((5, 5), (5, 5))),
}


def far_apart(image, step):
    """A copy with `step` elements from image to image. Memory between images is never touched."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    far = torch.empty_strided(image.shape, (step, *image.stride()[1:]), dtype=image.dtype)
    torch.utils.deterministic.fill_uninitialized_memory = True
    return far.copy_(image)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("last", [False, True], ids=["planes", "pixels"])
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
@pytest.mark.parametrize("name", FAR)
def test_calls_with_64_bit_offsets_are_right(arch, step, last, op, name):
    geometry = FAR[name]
    made = tensors(geometry, torch.float16)
    if last:
        made = in_pixels(made)
    args = operands(op, *made)
    given = [far_apart(args[0], STEPS[step]), *args[1:]]
    with simulated(arch):
        actual = getattr(ops, op.removesuffix("_bias"))(*given, geometry)
    check(op, args, geometry, actual=actual)
