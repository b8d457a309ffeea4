"""Patches of results as boxes of a convolution, and weight gradients of few channels."""

import itertools
from dataclasses import replace

import pytest
import torch
from cases import SAME, in_format, tensors, whole_numbers
from closeness import check, check_exact, exact, operands
from plans import launched, problem_of
from simulator.driver import simulated

from tricorr.kernels.versions import HAS_GLUON
from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, reuse_gradient, spread, spread_gradient
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.reuse_gradient import ReuseGradientTile
from tricorr.ops.plan.spread import SpreadTile
from tricorr.ops.plan.spread_gradient import SpreadGradientTile

needs_gluon = pytest.mark.skipif(not HAS_GLUON, reason="Gluon is written for Triton 3.6 and 3.7")

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
#: (op, geometry, tile, parts, dtype): more than one box along every axis, the last with some left.
IMAGES = {
    "rows_left_over": (
        "fprop_bias", geometry_of((3, 16, 7, 5), (16, 16, 3, 3), padding=SAME),
        SpreadTile(2, 1, 4, 32, 16, 4, 1, 4, 2), 1, HALF,
    ),
    "tf32_three_rows_of_groups": (
        "fprop_bias", geometry_of((1, 32, 5, 6), (48, 16, 5, 1), (1, 1), ((2, 1), (0, 0)), groups=2,
                                  flip=True),
        SpreadTile(1, 1, 8, 32, 16, 3, 1, 4, 2), 2, FLOAT,
    ),
    "planes": (
        "fprop_bias", geometry_of((1, 24, 6, 9), (20, 24, 2, 3), padding=((1, 0), (-1, 2))),
        SpreadTile(1, 2, 4, 32, 16, 2, 1, 4, 2, copied=True), 1, HALF,
    ),
    "dilation_of_one_tap": (
        "fprop_bias", geometry_of((2, 16, 5, 8), (16, 16, 1, 3), (1, 1), ((1, 0), (1, 1)), (3, 1)),
        SpreadTile(1, 2, 8, 32, 16, 2, 1, 4, 2), 1, HALF,
    ),
    "gradient_of_rows": (
        "dgrad", geometry_of((2, 16, 6, 5), (16, 16, 3, 2), padding=((2, 1), (0, 1))),
        SpreadTile(1, 1, 8, 32, 16, 4, 1, 4, 2), 2, FLOAT,
    ),
    "phases": (
        "dgrad", geometry_of((2, 20, 7, 6), (16, 20, 3, 5), (2, 3), ((1, 1), (2, 2)), flip=True),
        SpreadTile(1, 2, 4, 32, 16, 1, 1, 4, 2), 1, HALF,
    ),
    "phases_side_by_side": (
        "dgrad", geometry_of((2, 20, 7, 9), (16, 20, 4, 3), (3, 2), ((1, 0), (1, 1))),
        SpreadTile(1, 2, 4, 32, 16, 1, 1, 4, 2, copied=True), 2, HALF,
    ),
    "few_results": (
        "fprop_bias", geometry_of((2, 16, 7, 5), (3, 16, 3, 3), padding=SAME),
        SpreadTile(2, 1, 4, 16, 16, 4, 1, 4, 2), 2, HALF,
    ),
    "few_results_of_planes": (
        "fprop_bias", geometry_of((1, 32, 6, 7), (2, 16, 1, 5), padding=((0, 0), (2, 2)), groups=2),
        SpreadTile(1, 1, 8, 16, 16, 2, 1, 4, 2, copied=True), 1, HALF,
    ),
    "few_phases": (
        "dgrad", geometry_of((2, 3, 9, 7), (16, 3, 5, 3), (2, 2), ((2, 2), (1, 1))),
        SpreadTile(1, 1, 4, 32, 16, 2, 1, 4, 2), 1, HALF,
    ),
    "few_phases_of_planes": (
        "dgrad", geometry_of((1, 3, 8, 12), (24, 3, 3, 5), (2, 2), SAME, flip=True),
        SpreadTile(1, 2, 4, 64, 32, 4, 1, 4, 2, copied=True), 2, HALF,
    ),
    "one_pixel_of_dy": (
        "dgrad", geometry_of((5, 16, 4, 3), (40, 16, 4, 3), (4, 4)),
        SpreadTile(4, 1, 4, 32, 32, 1, 1, 4, 2), 1, HALF,
    ),
}  # fmt: skip


def forced(op, args, geometry, tile, parts, dtype, **more):
    """The result by this tile."""
    problem = problem_of(op, geometry, dtype, tile.copied)
    assert tile.suits(problem)
    plan = choose.plan_with_tile(problem, tile, parts)
    assert (plan.family, plan.splits) == (tile.family, parts)
    assert plan.grid > 1
    args = in_format(args, "NCHW" if tile.copied else "NHWC")
    return launched(op, args, geometry, plan, **more)


@pytest.mark.parametrize("name", IMAGES)
def test_every_patch_window_and_step(kernel_backend, name):
    op, geometry, tile, parts, dtype = IMAGES[name]
    made = tensors(geometry, dtype, kernel_backend.device, whole_numbers)
    args = operands(op, *made)
    actual = forced(op, args, geometry, tile, parts, dtype)
    check_exact(op, args, geometry, actual)
    if geometry.P * geometry.Q > 1:  # else dy has either format
        assert actual.is_contiguous(memory_format=torch.channels_last) != tile.copied


def test_random_operands(kernel_backend):
    op, geometry, tile, parts, dtype = IMAGES["gradient_of_rows"]
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device))
    actual = forced(op, args, geometry, tile, parts, dtype)
    check(op, args, geometry, actual=actual, precision="tf32")


@pytest.mark.parametrize("copied", [False, True])
def test_the_epilogue(kernel_backend, copied):
    op, geometry, tile, _, dtype = IMAGES["planes"]
    tile = replace(tile, copied=copied)
    made = tensors(geometry, dtype, kernel_backend.device, whole_numbers)
    args = operands(op, *made)
    residual = in_format([torch.ones_like(made[3])], "NCHW" if copied else "NHWC")[0]
    actual = forced(op, args, geometry, tile, 1, dtype, residual=residual, activation="relu")
    expected = (exact(op, args, geometry) + 1).relu().to(dtype)
    assert torch.equal(actual.cpu(), expected)


#: (geometry, tile, parts, dtype)
GRADIENTS = {
    "patches_of_four_rows": (
        geometry_of((3, 16, 8, 12), (16, 16, 3, 3), padding=SAME),
        SpreadGradientTile(2, 4, 8, 4, 16, 16, 4, 4, 3), 2, HALF,
    ),
    "boxes_that_overhang": (
        geometry_of((3, 24, 9, 13), (24, 24, 5, 3), padding=((2, 2), (1, 1))),
        SpreadGradientTile(2, 4, 8, 4, 32, 32, 2, 4, 3), 2, BFLOAT,
    ),
    "places_as_columns": (
        geometry_of((2, 16, 8, 16), (72, 16, 5, 5), padding=((2, 2), (2, 2))),
        SpreadGradientTile(1, 4, 16, 8, 64, 16, 1, 4, 3), 1, HALF,
    ),
    "two_tiles_of_places_of_planes": (
        geometry_of((2, 72, 8, 16), (16, 72, 5, 5), padding=((2, 2), (2, 2))),
        SpreadGradientTile(1, 8, 16, 4, 16, 64, 4, 4, 3, copied=True), 1, BFLOAT,
    ),
    "strides_and_groups": (
        geometry_of((3, 48, 8, 12), (48, 24, 7, 3), (2, 2), ((3, 3), (1, 1)), groups=2, flip=True),
        SpreadGradientTile(2, 4, 8, 8, 16, 32, 4, 4, 3), 2, HALF,
    ),
    "sixteen_phases": (
        geometry_of((2, 24, 16, 16), (16, 24, 11, 11), (4, 4), ((5, 5), (5, 5))),
        SpreadGradientTile(2, 4, 8, 2, 16, 16, 4, 4, 3, copied=True), 1, HALF,
    ),
    "sixteen_phases_of_many_channels": (
        geometry_of((3, 64, 16, 12), (72, 64, 5, 4), (4, 3), ((2, 1), (1, 0))),
        ReuseGradientTile(4, 2, 4, 1, 64, 64, 4, 3), 2, BFLOAT,
    ),
}  # fmt: skip


@needs_gluon
@pytest.mark.parametrize("name", GRADIENTS)
def test_every_gradient(name):
    geometry, tile, parts, dtype = GRADIENTS[name]
    args = operands("wgrad", *tensors(geometry, dtype, make=whole_numbers))
    with simulated(90) as device:
        actual = forced("wgrad", args, geometry, tile, parts, dtype)
    check_exact("wgrad", args, geometry, actual)
    own = [done.unit for done in device.launches if done.kernel == f"wgrad_{tile.family}"]
    assert own == ["wgmma"]


@needs_gluon
def test_random_gradients():
    geometry, tile, parts, dtype = GRADIENTS["boxes_that_overhang"]
    args = operands("wgrad", *tensors(geometry, dtype))
    with simulated(90):
        actual = forced("wgrad", args, geometry, tile, parts, dtype)
    check("wgrad", args, geometry, actual=actual)


def layer(C, K, size=56, R=5, stride=1, N=32):
    pads = ((R // 2, R // 2),) * 2 if stride < R else ((0, 0), (0, 0))
    return geometry_of((N, C, size, size), (K, C, R, R), (stride, stride), pads)


@pytest.mark.parametrize("copied", [False, True], ids=["channels_last", "planes"])
def test_few_channels_take_it(copied):
    def family(op, geometry, dtype=BFLOAT):
        return choose.plan(problem_of(op, geometry, dtype, copied)).family

    assert family("fprop", layer(256, 16)) == "spread"
    assert family("dgrad", layer(16, 256), FLOAT) == ("planes" if copied else "spread")
    if copied:
        assert family("dgrad", layer(40, 40, stride=2)) == "spread"
    for C, K in ((16, 16), (24, 24), (16, 256), (256, 16)):
        assert family("wgrad", layer(C, K)) == ("planes" if copied else "spread")
    for op in ("fprop", "dgrad", "wgrad"):
        assert family(op, layer(128, 128)) != "spread"


def test_multiply_adds_include_places_without_a_tap():
    geometry, tile = layer(128, 16), SpreadTile(1, 2, 64, 64, 64, 4, 1, 4, 4)
    problem = problem_of("fprop", geometry)
    work = tile.work(choose.plan_with_tile(problem, tile), problem)
    # Windows of 5 + 3 rows and 5 columns; rows of 56 patches in boxes of 64.
    assert work.programs * work.macs == 32 * 14 * 64 * 64 * 8 * 5 * 128
    geometry = layer(16, 16)
    rows = SpreadGradientTile(2, 4, 8, 8, 16, 16, 4, 4, 3)
    problem = problem_of("wgrad", geometry)
    work = rows.work(choose.plan_with_tile(problem, rows), problem)
    assert work.programs * work.macs == 5 * 32 * 14 * 56 * 64 * 128
    assert rows.partials == 4


def test_straight_copies_are_plain_ones():
    """67 channels of channels_last images become 72; copies of planes exchange the axes."""
    geometry, tile = layer(67, 16), SpreadTile(1, 2, 64, 64, 64, 4, 1, 4, 4, copied=True)
    for planes, repacks in itertools.product((False, True), repeat=2):
        problem = problem_of("fprop", geometry, BFLOAT, planes)
        boxes = "NCHW" if planes else ""
        layout = replace(problem.layout, x_boxes=boxes, repacks=repacks)
        problem = replace(problem, layout=layout)
        work = tile.work(choose.plan_with_tile(problem, tile), problem)
        assert work.exchanges == (planes or repacks)


@pytest.mark.parametrize(
    "changes",
    [
        {"given_dilation": (2, 1)},
        {"N": 2, "per_sample": True},
        {"padding_mode": "reflect"},
        {"C": 8, "K": 8},
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(changes):
    geometry = replace(layer(16, 16), **changes)
    for op in ("fprop", "wgrad"):
        assert spread.tiles(problem_of(op, geometry)) == []
        assert spread.tiles(problem_of(op, layer(16, 16))) != []
    assert spread_gradient.tiles(problem_of("wgrad", layer(16, 16), FLOAT)) == []
    b200 = DEVICES["b200"]
    assert spread.tiles(problem_of("wgrad", layer(16, 16), device=b200)) == []
    assert spread.tiles(problem_of("fprop", layer(16, 16), device=b200)) != []
    assert not reuse_gradient.is_legal(problem_of("wgrad", layer(64, 64, 57, stride=4)))
