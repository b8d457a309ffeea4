"""Rows that are loaded once for all taps of a column: in Gluon, so compiled and simulated alone."""

from dataclasses import replace

import pytest
import torch
from cases import SAME, in_format, tensors, whole_numbers
from closeness import check, check_exact, operands
from plans import H200, OPS, PIXELS, PLANES, boxed, launched, planned, problem_of, with_tile
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, reuse
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.gemm import GemmTile
from tricorr.ops.plan.problem import Problem
from tricorr.ops.plan.reuse import ReuseTile
from tricorr.ops.plan.times import times_of

pytest.importorskip("tricorr.kernels.fprop_reuse", reason="Gluon is written for Triton 3.6 and 3.7")

HALF, FLOAT = torch.float16, torch.float32
#: (op, geometry, tile, dtype): more than one box along every axis, the last with some left over.
CALLS = {
    "leftovers": (
        "fprop_bias", geometry_of((2, 64, 5, 11), (72, 64, 3, 3), padding=SAME),
        ReuseTile(4, 8, 64, 64, 4, 2), HALF,
    ),
    "two_warpgroups_of_filters": (
        "fprop_bias", geometry_of((1, 64, 5, 9), (136, 64, 4, 2), padding=((2, 1), (0, 1))),
        ReuseTile(4, 8, 128, 64, 8, 2), torch.bfloat16,
    ),
    "two_warpgroups_of_pixels": (
        "dgrad", geometry_of((1, 144, 7, 9), (128, 72, 3, 5), (1, 1), ((1, 1), (2, 2)), groups=2,
                             flip=True),
        ReuseTile(4, 8, 64, 64, 8, 3), HALF,
    ),
    "gradient_of_planes": (
        "dgrad", geometry_of((2, 72, 5, 11), (48, 72, 2, 3), padding=((0, 1), (1, 1))),
        ReuseTile(4, 8, 64, 16, 4, 3, copied=True), HALF,
    ),
    "few_pixels": (
        "dgrad", geometry_of((2, 72, 9, 7), (96, 72, 3, 3), padding=SAME),
        ReuseTile(8, 8, 64, 32, 4, 4), torch.bfloat16,
    ),
    "tf32_planes_groups_flipped": (
        "fprop_bias", geometry_of((1, 64, 6, 10), (48, 32, 5, 9), (1, 1), ((2, 2), (4, 4)),
                                  groups=2, flip=True),
        ReuseTile(4, 8, 64, 16, 4, 3, copied=True), FLOAT,
    ),
    "tf32_gradient": (
        "dgrad", geometry_of((1, 40, 5, 9), (24, 40, 4, 2), padding=((1, 1), (0, 1))),
        ReuseTile(4, 8, 64, 8, 4, 3), FLOAT,
    ),
    "negative_padding": (
        "fprop_bias", geometry_of((1, 48, 9, 12), (64, 48, 3, 3), padding=((-1, 1), (1, -2))),
        ReuseTile(4, 8, 64, 16, 4, 4), HALF,
    ),
}  # fmt: skip


def computed(op, args, geometry, tile, dtype, **options):
    """The result, and that nothing but the kernel and copies of its operands ran for it."""
    problem = problem_of(op, geometry, dtype, tile.copied)
    assert reuse.is_legal(problem, tile.copied)
    plan = choose.plan_with_tile(problem, tile)
    assert plan.kernel == "fprop_reuse"
    assert plan.grid > 1
    args = in_format(args, "NCHW" if tile.copied else "NHWC")
    with simulated(90) as device:
        actual = launched(op, args, geometry, plan, **options)
    assert {found.kernel for found in device.launches} <= {"fprop_reuse", "copy_images"}
    assert [found.unit for found in device.launches][-1] == "wgmma"
    return actual


@pytest.mark.parametrize("name", CALLS)
def test_every_window_and_tile(name):
    op, geometry, tile, dtype = CALLS[name]
    args = operands(op, *tensors(geometry, dtype, make=whole_numbers))
    actual = computed(op, args, geometry, tile, dtype)
    check_exact(op, args, geometry, actual)
    assert actual.is_contiguous(memory_format=torch.channels_last) != tile.copied


@pytest.mark.parametrize("name", ["leftovers", "tf32_gradient"])
def test_random_operands(name):
    op, geometry, tile, dtype = CALLS[name]
    args = operands(op, *tensors(geometry, dtype))
    actual = computed(op, args, geometry, tile, dtype)
    check(op, args, geometry, actual=actual, precision="tf32" if dtype == FLOAT else "ieee")


@pytest.mark.parametrize(("activation", "copied"), [("none", False), ("gelu", True)])
def test_the_epilogue(activation, copied):
    """Sums of whole numbers are exact: what follows them has the same bits in any kernel."""
    _, geometry, tile, dtype = CALLS["leftovers"]
    tile = replace(tile, copied=copied)
    x, weight, bias, dy = tensors(geometry, dtype, make=whole_numbers)
    *args, residual = in_format(
        (x / 8, weight, bias, torch.randn_like(dy)), "NCHW" if copied else "NHWC"
    )
    options = {"activation": activation, "residual": residual}
    actual = computed("fprop", args, geometry, tile, dtype, **options)
    plan = with_tile("fprop", geometry, GemmTile(64, 64, 32, 4, 3))
    with simulated(90):
        expected = launched("fprop", args, geometry, plan, **options)
    assert torch.equal(actual, expected)


LAYER = geometry_of((32, 64, 64, 64), (64, 64, 3, 3), padding=SAME)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FLOAT], ids=str)
@pytest.mark.parametrize("op", ["fprop", "dgrad"])
def test_it_is_taken_where_the_model_says_that_it_saves_much(op, dtype):
    device = replace(H200, measured=None)
    layouts = (PIXELS, boxed("NHWC"))
    plans = [planned(op, LAYER, dtype, layout, device, "tf32") for layout in layouts]
    assert [plan.family for plan in plans] == ["reuse", "tma"]
    problem = Problem(op, LAYER, dtype, "tf32", PIXELS, device)
    ours, theirs = (times_of(p.tile.work(p, problem), device).predicted for p in plans)
    assert theirs > ours
    assert reuse.fits(plans[0].tile, problem)
    turned = op == "dgrad" and dtype == FLOAT  # the weight is copied with its axes exchanged
    for layout in (PIXELS, replace(PIXELS, repacks=True)):
        work = plans[0].tile.work(plans[0], replace(problem, layout=layout))
        copied = LAYER.weight_numel * dtype.itemsize if turned or layout.repacks else 0
        assert work.copy_bytes == copied
    few = geometry_of((1, 512, 7, 7), (512, 512, 3, 3), padding=SAME)
    assert planned(op, few, dtype, PIXELS, H200, "tf32").family != "reuse"


@pytest.mark.parametrize(
    "changes",
    [
        {"given_stride": (2, 2)},
        {"given_dilation": (2, 1)},
        {"R": 1, "padding": ((0, 0), (1, 1))},
        {"C": 72, "K": 72},
        {"N": 2, "per_sample": True},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(changes):
    geometry = replace(LAYER, **changes)
    for op in OPS:
        if op == "dgrad" and "padding_mode" in changes:
            continue  # its inside has zeros around it
        assert not reuse.is_legal(Problem(op, geometry, HALF, "ieee", PIXELS, H200))
    for problem in (
        Problem("fprop", LAYER, HALF, "ieee", replace(PIXELS, int64=True), H200),
        Problem("fprop", LAYER, HALF, "ieee", replace(PLANES, converts=True), H200),
        Problem("fprop", LAYER, FLOAT, "ieee", PIXELS, H200),
        Problem("fprop", LAYER, HALF, "ieee", PIXELS, DEVICES["b200"]),
    ):
        assert reuse.tiles(problem) == []
