"""Rows kernels: every kind of window, tile and stride, with and without code without masks."""

from dataclasses import replace

import pytest
import torch
from cases import DTYPES, SAME, tensors, whole_numbers
from closeness import OPS, check, check_exact, operands
from plans import H200, launched, planned, with_tile

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, rows
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.rows import MAX_HELD, RowsTile, is_legal

#: Several tiles along every axis, the last partly filled, where they fit.
GEOMETRIES = {
    "image": geometry_of((1, 1, 8, 17), (1, 1, 3, 3), padding=SAME),
    "even_window": geometry_of((1, 1, 9, 20), (1, 1, 2, 4), padding=((0, 1), (1, 2))),
    "seven": geometry_of((1, 1, 5, 9), (1, 1, 7, 7), padding=((3, 3), (3, 3))),
    "one_by_two": geometry_of((2, 1, 5, 18), (1, 1, 1, 2)),
    "one_row": geometry_of((1, 2, 1, 17), (2, 1, 1, 3), padding=((0, 0), (1, 1)), groups=2),
    "one_column": geometry_of((1, 2, 11, 1), (2, 1, 3, 1), padding=((1, 1), (0, 0)), groups=2),
    "smaller_than_a_tile": geometry_of((1, 3, 2, 3), (3, 1, 3, 3), padding=SAME, groups=3),
    "window_exceeds_image_but_padded": geometry_of(
        (1, 2, 2, 3), (2, 1, 5, 7), padding=((2, 3), (3, 2)), groups=2
    ),
    "planes": geometry_of((2, 3, 7, 9), (3, 1, 3, 3), padding=SAME, groups=3),
    "pad_exceeds_window": geometry_of(
        (1, 2, 4, 9), (2, 1, 2, 2), padding=((3, 4), (3, 2)), groups=2
    ),
    "dilated": geometry_of(
        (1, 2, 11, 19), (2, 1, 3, 2), padding=((2, 1), (0, 3)), dilation=(2, 3), groups=2
    ),
    "flipped": geometry_of((1, 2, 7, 19), (2, 1, 3, 2), groups=2, flip=True),
    "per_sample": geometry_of((3, 2, 6, 11), (3, 2, 1, 3, 2), padding=((1, 0), (0, 1)), groups=2),
    "reflected": geometry_of(
        (1, 2, 5, 9), (2, 1, 3, 3), padding=((2, 1), (1, 2)), groups=2, padding_mode="reflect"
    ),
    "circular_few_to_few": geometry_of(
        (1, 2, 5, 9), (2, 2, 3, 2), padding=((1, 2), (1, 1)), padding_mode="circular"
    ),
    "strided": geometry_of((1, 2, 13, 23), (2, 1, 3, 3), (2, 2), SAME, groups=2),
    "strides_differ": geometry_of((1, 2, 11, 17), (2, 1, 3, 2), (3, 1), ((2, 0), (0, 1)), groups=2),
    "stride_gt_window": geometry_of((1, 2, 13, 23), (2, 1, 2, 1), (3, 2), groups=2),
    "strided_dilated_flipped": geometry_of(
        (2, 2, 11, 13), (2, 1, 3, 2), (2, 3), ((3, 1), (1, 2)), (3, 2), groups=2, flip=True
    ),
    "multiplier": geometry_of((2, 2, 7, 10), (6, 1, 3, 2), padding=((1, 1), (0, 1)), groups=2),
    "strided_multiplier_per_sample": geometry_of(
        (2, 2, 7, 10), (2, 4, 1, 3, 2), (2, 1), ((1, 1), (0, 1)), groups=2
    ),
    "filters_of_one_image": geometry_of((1, 1, 9, 12), (2, 1, 3, 3), padding=SAME),
    "colours_to_gray": geometry_of((2, 3, 6, 9), (1, 3, 3, 3), padding=SAME),
    "few_to_few": geometry_of((1, 4, 5, 9), (6, 2, 2, 3), padding=((1, 0), (1, 1)), groups=2),
    "strided_cropped": geometry_of(
        (1, 2, 13, 23), (2, 1, 3, 3), (2, 2), ((-1, 0), (-2, 1)), groups=2
    ),
    "strided_few_to_few": geometry_of((1, 4, 6, 9), (6, 2, 2, 3), (2, 2), SAME, groups=2),
}
TILES = {
    "lanes_are_columns": RowsTile(3, 8, 2),
    "two_rows_a_step": RowsTile(2, 16, 1, STEP_P=2),
    "lanes_are_planes": RowsTile(2, 8, 4, LANE_Q=4),
}
CASES = [
    pytest.param(op, name, list(TILES)[(i + j) % 3], ("none", "some")[(i + j) // 3 % 2],
                 id=f"{op}-{name}")
    for j, op in enumerate(OPS)
    for i, name in enumerate(GEOMETRIES)
]  # fmt: skip


def forced(op, geometry, tile, device, dtype=torch.float32, splits=1, make=torch.randn, **changes):
    """(operands, result) of the operator by rows with a given tile."""
    args = operands(op, *tensors(geometry, dtype, device, make))
    filters = geometry.group_C if op == "dgrad" else geometry.group_K
    if op == "dgrad" and geometry.stride != (1, 1):
        filters = 1  # of a program, which has all channels
    tile = replace(tile, BLOCK_K=next(k for k in (3, 2, 1) if filters % k == 0))
    plan = with_tile(op, geometry, tile, splits=splits)
    return args, launched(op, args, geometry, replace(plan, **changes))


@pytest.mark.parametrize(("op", "name", "tile", "interior"), CASES)
def test_every_window_and_step(kernel_backend, op, name, tile, interior):
    geometry, device = GEOMETRIES[name], kernel_backend.device
    changes = {"interior": interior, "int64": interior == "some"}
    args, actual = forced(op, geometry, TILES[tile], device, **changes)
    check(op, args, geometry, actual=actual)


@pytest.mark.parametrize("splits", [2, 100])
@pytest.mark.parametrize("name", ["image", "multiplier", "per_sample"])
def test_split_weight_gradients(kernel_backend, name, splits):
    tile = TILES["lanes_are_columns"]
    args, actual = forced("wgrad", GEOMETRIES[name], tile, kernel_backend.device, splits=splits)
    check("wgrad", args, GEOMETRIES[name], actual=actual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_every_dtype(kernel_backend, op, dtype):
    name = "strided_few_to_few" if op == "dgrad" else "smaller_than_a_tile"
    tile = TILES["lanes_are_planes"]
    args, actual = forced(op, GEOMETRIES[name], tile, kernel_backend.device, dtype)
    check(op, args, GEOMETRIES[name], actual=actual)


@pytest.mark.parametrize(("op", "name"), [("fprop_bias", "image"), ("dgrad", "strided")])
def test_code_without_masks_gives_the_same_bits(kernel_backend, op, name):
    geometry, device, tile = GEOMETRIES[name], kernel_backend.device, TILES["lanes_are_columns"]
    for interior in ("none", "some"):
        args, actual = forced(op, geometry, tile, device, make=whole_numbers, interior=interior)
        check_exact(op, args, geometry, actual)


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_tiles_that_are_all_inside_need_no_masks(kernel_backend, op):
    # All windows of dgrad are inside dy with full padding, those of fprop inside x without any.
    size, padding = ((6, 16), ((2, 2), (2, 2))) if op == "dgrad" else ((8, 18), ((0, 0), (0, 0)))
    geometry = geometry_of((1, 2, *size), (2, 1, 3, 3), padding=padding, groups=2)
    tile = RowsTile(3, 8, 2)
    assert with_tile(op, geometry, tile).interior == "all"
    args, actual = forced(op, geometry, tile, kernel_backend.device)
    check(op, args, geometry, actual=actual)


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [64, 2048])
def test_code_without_masks_is_compiled_only_if_most_tiles_use_it(op, stride, size):
    geometry = geometry_of((1, 1, size, size), (1, 1, 3, 3), (stride, stride), SAME)
    plan = with_tile(op, geometry, RowsTile(16, 64, 1))
    assert plan.interior == ("some" if size == 2048 else "none")


SERVED = {
    "depthwise": geometry_of((64, 96, 56, 56), (96, 1, 7, 7), padding=((3, 3), (3, 3)), groups=96),
    "strided_depthwise": geometry_of((64, 96, 112, 112), (96, 1, 3, 3), (2, 2), SAME, groups=96),
    "multiplier": geometry_of((8, 16, 56, 56), (64, 1, 3, 3), padding=SAME, groups=16),
    "two_filters": geometry_of((1, 1, 1024, 1024), (2, 1, 3, 3), padding=SAME),
    "colours_to_gray": geometry_of((1, 3, 1024, 1024), (1, 3, 5, 5), padding=((2, 2), (2, 2))),
}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("name", SERVED)
def test_few_channels_are_offered_rows(name, op, last):
    geometry = SERVED[name]
    problem = Problem(op, geometry, layout=Layout(channels_last=last), device=H200)
    plan = choose.plan_with_tile(problem, rows.tiles(problem)[0])
    filters = geometry.group_C if plan.turned else geometry.group_K
    if plan.kernel != "dgrad_rows":
        assert plan.tile.BLOCK_K == filters, "the image is read once for all of them"
    assert (plan.tile.LANE_Q > 1) == (last and geometry.groups > 8)


def test_lanes_have_as_many_columns_as_a_thread_can_hold():
    held = {}
    for dilation in ((1, 1), (2, 2), (2, 4)):
        pads = tuple((3 * n, 3 * n) for n in dilation)
        geometry = geometry_of(
            (64, 64, 224, 224), (64, 1, 7, 7), padding=pads, dilation=dilation, groups=64
        )
        last = Layout(channels_last=True)
        problem = Problem("wgrad", geometry, layout=last, device=H200)
        tile = choose.plan(problem).tile
        assert tile.held(problem) <= MAX_HELD
        held[dilation] = tile.LANE_Q
    assert held == {(1, 1): 4, (2, 2): 4, (2, 4): 2}


def test_heavy_epilogues_take_fewer_filters():
    geometry = geometry_of((64, 144, 224, 224), (576, 1, 3, 1), dilation=(3, 3), groups=144)
    last = Layout(channels_last=True)
    tiles = [
        planned("fprop", geometry, torch.bfloat16, layout, H200).tile
        for layout in (last, replace(last, epilogue=10))
    ]
    assert [tile.BLOCK_K for tile in tiles] == [4, 2]


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_windows_too_large_for_a_thread_have_no_rows_kernel(op):
    for weight, steps in (((1, 1, 8, 8), {}), ((1, 1, 3, 3), {"dilation": (99, 1)})):
        assert not is_legal(Problem(op, geometry_of((1, 1, 512, 512), weight, **steps)))
    far = geometry_of((1, 1, 512, 512), (1, 1, 3, 3), (40, 40))
    assert is_legal(Problem(op, far)) == (op != "dgrad")


def test_the_adjoint_of_the_adjoint_is_the_geometry():
    for geometry in GEOMETRIES.values():
        if geometry.given_stride == (1, 1):
            assert geometry.adjoint().adjoint() == geometry
            assert geometry.adjoint().y_shape == geometry.x_shape
