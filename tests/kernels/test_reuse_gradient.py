"""Weight gradients whose rows are loaded once for taps of a column: in Gluon, see test_reuse."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import SAME, in_format, tensors, whole_numbers
from closeness import check, check_exact, operands
from plans import H200, boxed, launched
from plans import problem_of as problem_of_op
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, reuse_gradient
from tricorr.ops.plan.boxes import may_overhang
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.reuse_gradient import ReuseGradientTile

pytest.importorskip("tricorr.kernels.wgrad_reuse", reason="Gluon is written for Triton 3.6 and 3.7")

HALF, BFLOAT = torch.float16, torch.bfloat16
#: (geometry, tile, parts, dtype)
CALLS = {
    "channels_left_over": (
        geometry_of((3, 72, 8, 12), (72, 72, 3, 3), padding=SAME),
        ReuseGradientTile(2, 4, 4, 3, 64, 64, 4, 3), 2, HALF,
    ),
    "rows_in_three_runs": (
        geometry_of((5, 96, 14, 6), (160, 48, 3, 3), padding=SAME, groups=2, flip=True),
        ReuseGradientTile(4, 14, 2, 3, 128, 64, 8, 3), 2, BFLOAT,
    ),
    "rows_apart": (
        geometry_of((2, 64, 8, 8), (64, 64, 5, 2), (1, 1), ((4, 4), (2, 1)), (2, 3)),
        ReuseGradientTile(1, 4, 8, 3, 64, 64, 4, 3), 2, HALF,
    ),
    "single_columns_of_planes": (
        geometry_of((18, 40, 7, 7), (72, 40, 3, 3), padding=SAME),
        ReuseGradientTile(16, 7, 1, 3, 64, 64, 4, 3, copied=True), 1, BFLOAT,
    ),
    "one_tap": (
        geometry_of((2, 160, 8, 9), (136, 160, 2, 2), padding=((1, 0), (1, -1))),
        ReuseGradientTile(2, 4, 4, 1, 128, 128, 8, 4), 2, HALF,
    ),
    "strides": (
        geometry_of((3, 96, 8, 12), (80, 48, 3, 3), (2, 2), SAME, groups=2),
        ReuseGradientTile(4, 4, 2, 1, 64, 64, 4, 3), 2, BFLOAT,
    ),
    "strided_columns_of_planes": (
        geometry_of((4, 40, 8, 12), (64, 40, 2, 5), (1, 3), ((1, 0), (3, 3)), (1, 2)),
        ReuseGradientTile(4, 8, 2, 2, 64, 64, 4, 3, copied=True), 1, HALF,
    ),
    "patches_of_sixteen_phases": (
        geometry_of((3, 40, 16, 32), (72, 40, 4, 4), (4, 4)),
        ReuseGradientTile(2, 4, 8, 1, 64, 64, 4, 3), 2, BFLOAT,
    ),
    "point_that_overhangs": (
        geometry_of((2, 256, 5, 11), (64, 256, 1, 1)),
        ReuseGradientTile(1, 2, 16, 1, 128, 256, 8, 3), 2, BFLOAT,
    ),
    "odd_planes": (
        geometry_of((3, 67, 5, 11), (71, 67, 3, 3), padding=SAME),
        ReuseGradientTile(2, 2, 4, 1, 128, 128, 8, 3, copied=True), 2, BFLOAT,
    ),
    "taps_before_and_behind": (
        geometry_of((1, 64, 7, 7), (64, 64, 5, 3), padding=((2, 2), (2, 0)), flip=True),
        ReuseGradientTile(1, 4, 8, 3, 64, 64, 4, 3), 1, HALF,
    ),
    "strides_that_overhang": (
        geometry_of((2, 64, 10, 10), (72, 64, 3, 3), (2, 2), SAME),
        ReuseGradientTile(1, 2, 8, 1, 64, 64, 4, 3), 2, HALF,
    ),
}  # fmt: skip


def problem_of(geometry, *more, **changes):
    return problem_of_op("wgrad", geometry, *more, **changes)


def computed(args, geometry, tile, parts, dtype):
    """The gradient by one launch of the kernel, with copies of the images or a sum of its parts."""
    problem = problem_of(geometry, dtype, tile.copied)
    assert reuse_gradient.is_legal(problem, tile.copied)
    assert reuse_gradient.fits(tile, problem)
    plan = choose.plan_with_tile(problem, tile, parts)
    assert (plan.kernel, plan.splits) == ("wgrad_reuse", parts)
    args = in_format(args, "NCHW" if tile.copied else "NHWC")
    with simulated(90) as device:
        actual = launched("wgrad", args, geometry, plan)
    own = [found.unit for found in device.launches if found.kernel == "wgrad_reuse"]
    assert own == ["wgmma"]
    others = {found.kernel for found in device.launches} - {"wgrad_reuse"}
    assert others == {*["copy_images"] * tile.copied, *["sum_partials"] * (parts > 1)}
    return actual


@pytest.mark.parametrize("name", CALLS)
def test_every_window_and_tile(name):
    geometry, tile, parts, dtype = CALLS[name]
    args = operands("wgrad", *tensors(geometry, dtype, make=whole_numbers))
    check_exact("wgrad", args, geometry, computed(args, geometry, tile, parts, dtype))


def test_random_operands():
    geometry, tile, parts, dtype = CALLS["channels_left_over"]
    args = operands("wgrad", *tensors(geometry, dtype))
    check("wgrad", args, geometry, actual=computed(args, geometry, tile, parts, dtype))


@pytest.mark.parametrize("name", ["strides", "patches_of_sixteen_phases"])
def test_boxes_of_a_view_end_with_its_last_element(name):
    """Of strides, boxes may read between the channels of a view, but not behind its last one."""
    from tricorr.ops.launch.wgrad_launch import wgrad_calls

    geometry, tile, parts, dtype = CALLS[name]
    _, weight, _, dy = tensors(geometry, dtype)
    n, c, h, w = geometry.x_shape
    whole = torch.empty(n, c + 32, h, w, dtype=dtype, memory_format=torch.channels_last)
    x = whole[:, 32:]
    plan = choose.plan_with_tile(problem_of(geometry), tile, parts)
    dy = dy.contiguous(memory_format=torch.channels_last)
    [call, *_] = wgrad_calls(x, dy, torch.empty_like(weight), geometry, plan)
    described = [a for name, a in call.arguments.items() if name.startswith("x") and "desc" in name]
    assert described[0].base.data_ptr() == x.data_ptr()
    for one in filter(None, described):
        last = sum((n - 1) * step for n, step in zip(one.shape, one.strides, strict=True))
        assert last == sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))


LAYER = geometry_of((32, 64, 56, 56), (64, 64, 3, 3), padding=SAME)


@pytest.mark.parametrize("name", ["odd_planes", "taps_before_and_behind", "strides_that_overhang"])
def test_values_that_are_not_finite_stay_with_taps_that_read_them(name):
    """Zeros beside a plane of dy must not be multiplied with infinities of x, nor the reverse."""
    geometry, tile, parts, dtype = CALLS[name]
    x, dy = operands("wgrad", *tensors(geometry, dtype, make=whole_numbers))
    x[0, 1, 0, 0], x[0, 2, -1, -1], x[0, 3, -1, 0] = torch.inf, torch.nan, -torch.inf
    actual = computed((x, dy), geometry, tile, parts, dtype)
    check_exact("wgrad", (x, dy), geometry, actual)
    for channel in (1, 2, 3):
        assert 0 < actual[:, channel].isfinite().sum() < actual[:, channel].numel()
    x.nan_to_num_(0, 0, 0)
    dy[0, 1, 0, 0] = dy[0, 2, -1, -1] = torch.inf
    check_exact("wgrad", (x, dy), geometry, computed((x, dy), geometry, tile, parts, dtype))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("N", "H", "W"), [(32, 56, 28), (2, 16, 12), (1, 25, 21), (3, 20, 96)])
def test_boxes_divide_planes_or_may_overhang_them(N, H, W, stride):
    for pad in (0, 1):  # without padding, the middle tap reads pixels beside both ends of dy
        sizes = {"H": H // stride * stride, "W": W // stride * stride}
        changes = {**sizes, "N": N, "given_stride": (stride,) * 2, "padding": ((pad, pad),) * 2}
        geometry = replace(LAYER, **changes)
        tiles = reuse_gradient.tiles(problem_of(geometry))
        assert tiles or pad == 0
        assert {tile.BLOCK_R for tile in tiles} <= ({1, 3} if stride == 1 else {1})
        for tile in tiles:
            assert pad or stride > 1 or geometry.P % tile.BLOCK_P == geometry.Q % tile.BLOCK_Q == 0
            assert tile.BLOCK_R == 1 or geometry.P % tile.BLOCK_P == 0
            assert tile.BLOCK_I * tile.BLOCK_Q % 8 == 0  # a period of the swizzle


def test_where_boxes_may_overhang():
    """Compared with what every tap reads beside dy."""
    found = set()
    for window, extent, stride, dilation, pads, taps in itertools.product(
        (1, 2, 3, 5), (11, 12), (1, 2, 3), (1, 2), ((0, 0), (1, 1), (2, 1), (0, 2), (-1, 1)), (1, 3)
    ):
        changes = {"S": window, "given_stride": (1, stride), "given_dilation": (1, dilation)}
        geometry = replace(LAYER, W=extent, padding=((0, 0), pads), **changes)
        outside = np.array(  # (side, tap) of every pixel beside dy
            [
                [(q * stride + tap * dilation - pads[0]) % 2**32 >= extent for tap in range(window)]
                for q in (-1, geometry.Q)
            ]
        )
        allowed = all(
            outside[:, first : first + taps].all(1).any() for first in range(0, window, taps)
        )
        assert may_overhang(geometry, 1, taps) == allowed
        found.add((window, stride, pads, taps, allowed))
    assert {(3, 1, (1, 1), 1, True), (3, 1, (1, 1), 3, False), (3, 1, (0, 0), 1, False)} <= found


def test_it_is_taken_where_the_model_says_that_it_saves_much():
    device = replace(H200, measured=None)
    plan = choose.plan(problem_of(LAYER, BFLOAT, device=device))
    assert (plan.kernel, plan.tile.BLOCK_R) == ("wgrad_reuse", 3)
    without = problem_of(LAYER, BFLOAT, device=device, layout=boxed("NHWC"))
    assert choose.plan(without).family == "tma"
    # A step reads 14 rows of dy, and those and 2 more of x: 30/28 of what one tap would.
    rows = tuple(getattr(plan.tile, name) for name in ("BLOCK_I", "BLOCK_P", "BLOCK_Q"))
    work = plan.tile.work(plan, problem_of(LAYER, BFLOAT, device=device))
    assert rows == (1, 14, 8)
    assert work.l2_bytes == plan.split_strips * 8 * (14 + 16) * 64 * 2


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {}),
        (HALF, {"H": 57, "given_stride": (2, 1)}),
        (HALF, {"N": 2, "per_sample": True}),
        (HALF, {"padding_mode": "reflect"}),
        (HALF, {"C": 72, "K": 72, "groups": 6}),
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(dtype, changes):
    geometry = replace(LAYER, **changes)
    assert reuse_gradient.tiles(problem_of(geometry, dtype)) == []
    assert reuse_gradient.tiles(problem_of(LAYER, HALF)) != []
    assert reuse_gradient.tiles(problem_of(LAYER, HALF, device=DEVICES["b200"])) == []
