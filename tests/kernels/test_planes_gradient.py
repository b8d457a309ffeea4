"""Weight gradients of images in planes: in Gluon, so simulated only, see test_reuse."""

import re
from dataclasses import replace

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import check, operands, run, truth
from plans import H200, boxed
from simulator import Fault
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, planes_gradient
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.planes_gradient import PlanesGradientTile
from tricorr.ops.plan.problem import Problem

pytest.importorskip(
    "tricorr.kernels.wgrad_planes", reason="Gluon is written for Triton 3.6 and 3.7"
)

_SAME = ((1, 1), (1, 1))
FLOAT = torch.float32
PLANES = replace(boxed("NCHW"), gluon=True, x_row="NCHW", y_row="NCHW")
HALF, BFLOAT = torch.float16, torch.bfloat16
#: (geometry, tile, parts)
CALLS = {
    "rows_of_dy": (
        geometry_of((2, 40, 7, 36), (40, 40, 3, 3), padding=_SAME),
        PlanesGradientTile(2, 32, 1, 3, 3, 64, 40, 8, 3), 2,
    ),
    "rows_of_both": (
        geometry_of((1, 32, 6, 40), (24, 32, 5, 5), padding=((2, 2), (2, 2))),
        PlanesGradientTile(2, 32, 2, 3, 2, 32, 24, 8, 3), 2,
    ),
    "four_rows_of_x": (
        geometry_of((3, 12, 5, 8), (20, 12, 7, 7), padding=((3, 3), (3, 3))),
        PlanesGradientTile(1, 32, 4, 2, 2, 16, 24, 4, 3), 2,
    ),
    "one_tap": (
        geometry_of((2, 72, 3, 64), (136, 72, 1, 1)),
        PlanesGradientTile(3, 32, 1, 1, 1, 64, 72, 4, 3), 2,
    ),
    "groups_flipped": (
        geometry_of((2, 48, 5, 12), (40, 24, 3, 3), padding=_SAME, groups=2, flip=True),
        PlanesGradientTile(2, 32, 2, 1, 3, 32, 24, 4, 3), 1,
    ),
    "columns_apart": (
        geometry_of((1, 64, 6, 48), (16, 64, 2, 3), padding=((1, 0), (3, 3)), dilation=(1, 3)),
        PlanesGradientTile(2, 32, 1, 2, 3, 64, 16, 4, 3), 2,
    ),
    "cropped": (
        geometry_of((2, 16, 9, 40), (16, 16, 3, 5), padding=((-1, 2), (-2, 2))),
        PlanesGradientTile(2, 32, 8, 1, 5, 16, 16, 8, 3), 2,
    ),
    "two_rows": (
        geometry_of((3, 64, 7, 16), (40, 64, 3, 3), padding=((1, 0), (1, 1))),
        PlanesGradientTile(2, 32, 1, 3, 3, 64, 40, 8, 3, 2), 2,
    ),
    "four_rows_of_both": (
        geometry_of((3, 24, 9, 8), (12, 24, 5, 5), padding=((2, 2), (3, 1)), flip=True),
        PlanesGradientTile(2, 32, 2, 3, 2, 32, 16, 4, 3, 4), 2,
    ),
}  # fmt: skip
#: In 16 bits: (geometry, tile, parts, dtype). First taps read an odd column, then even ones.
HALF_CALLS = {
    "odd": (
        geometry_of((2, 40, 7, 72), (40, 40, 3, 3), padding=_SAME),
        PlanesGradientTile(2, 64, 1, 3, 3, 64, 40, 8, 3), 2, BFLOAT,
    ),
    "even_flipped": (
        geometry_of((1, 32, 6, 40), (24, 32, 5, 5), padding=((2, 2), (2, 2)), flip=True),
        PlanesGradientTile(2, 64, 2, 3, 2, 32, 24, 8, 3), 2, HALF,
    ),
    "odd_columns_apart": (
        geometry_of((2, 24, 5, 16), (40, 12, 3, 3), (1, 1), ((1, 1), (3, 3)), (1, 3), groups=2),
        PlanesGradientTile(2, 64, 4, 1, 3, 16, 24, 4, 3), 1, HALF,
    ),
    "even_columns_apart": (
        geometry_of((2, 64, 5, 64), (16, 64, 2, 3), padding=((1, 0), (2, 2)), dilation=(1, 2)),
        PlanesGradientTile(3, 64, 1, 2, 1, 64, 16, 4, 3), 2, BFLOAT,
    ),
    "odd_two_columns_apart": (
        geometry_of((1, 64, 3, 24), (8, 64, 3, 3), padding=((1, 1), (1, 3)), dilation=(1, 2)),
        PlanesGradientTile(2, 64, 1, 2, 2, 64, 8, 4, 4), 1, BFLOAT,
    ),
    "four_rows": (
        geometry_of((2, 24, 6, 16), (24, 24, 3, 3), padding=_SAME),
        PlanesGradientTile(2, 64, 2, 2, 3, 32, 24, 4, 3, 4), 2, HALF,
    ),
}  # fmt: skip


def problem_of(geometry, dtype=FLOAT, **more):
    return Problem(
        "wgrad",
        geometry,
        **{"dtype": dtype, "precision": "tf32", "layout": PLANES, "device": H200, **more},
    )


def launched(args, geometry, tile, parts):
    """The gradient by one launch of the kernel, and of sum_partials for several parts."""
    from tricorr.ops.launch import entry as launch

    problem = problem_of(geometry, args[0].dtype)
    assert planes_gradient.is_legal(problem)
    assert planes_gradient.fits(tile, problem)
    plan = choose.plan_with_tile(problem, tile, parts)
    assert (plan.kernel, plan.splits) == ("wgrad_planes", parts)
    with simulated(90) as device:
        actual = run("wgrad", args, geometry, launch, plan=plan)
    found = {launch.kernel: launch.unit for launch in device.launches}
    assert found.pop("wgrad_planes") == "wgmma"
    assert set(found) == {*["sum_partials"] * (parts > 1)}
    return actual


@pytest.mark.parametrize("name", CALLS)
def test_every_window_and_tile(name):
    geometry, tile, parts = CALLS[name]
    args = operands("wgrad", *tensors(geometry, FLOAT, make=whole_numbers))
    actual = launched(args, geometry, tile, parts)
    assert torch.equal(actual, torch.from_numpy(truth("wgrad", args, geometry)).to(FLOAT))


@pytest.mark.parametrize("name", HALF_CALLS)
def test_columns_of_16_bits(name):
    geometry, tile, parts, dtype = HALF_CALLS[name]
    args = operands("wgrad", *tensors(geometry, dtype, make=whole_numbers))
    actual = launched(args, geometry, tile, parts)
    assert torch.equal(actual, torch.from_numpy(truth("wgrad", args, geometry)).to(dtype))


def test_results_are_repeatable_and_near():
    geometry, tile, parts = CALLS["rows_of_both"]
    args = operands("wgrad", *tensors(geometry, FLOAT))
    runs = [launched(args, geometry, tile, parts) for _ in range(2)]
    assert torch.equal(*runs)
    check("wgrad", args, geometry, actual=runs[0], precision="tf32")


def test_values_that_are_not_finite_stay_in_their_channel():
    """Of x: its zeros beside dy are not those of PyTorch. Of dy, only taps that read them."""
    geometry, tile, parts = CALLS["rows_of_dy"]
    x, dy = operands("wgrad", *tensors(geometry, FLOAT, make=whole_numbers))
    x[0, 1, 0, 0], x[1, 5, 3, 20] = torch.inf, torch.nan
    actual = launched((x, dy), geometry, tile, parts)
    expected = torch.from_numpy(truth("wgrad", (x, dy), geometry)).to(FLOAT)
    others = [c for c in range(geometry.C) if c not in (1, 5)]
    assert torch.equal(actual[:, others], expected[:, others])
    assert not actual[:, [1, 5]][~expected[:, [1, 5]].isfinite()].isfinite().any()
    x.nan_to_num_(0, 0, 0)
    dy[0, 3, 0, 0], dy[1, 7, -1, -1], dy[0, 9, 3, 5] = torch.inf, torch.nan, -torch.inf
    actual = launched((x, dy), geometry, tile, parts)
    expected = torch.from_numpy(truth("wgrad", (x, dy), geometry)).to(FLOAT)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


LAYER = geometry_of((8, 32, 112, 112), (40, 32, 3, 3), padding=_SAME)


@pytest.mark.parametrize(
    ("channels", "filters", "window"),
    [(32, 40, (3, 3)), (16, 16, (3, 3)), (24, 24, (7, 7)), (12, 8, (5, 1)), (256, 512, (3, 3))],
)
def test_tiles_for_the_planner(channels, filters, window):
    padding = tuple((n // 2, n // 2) for n in window)
    problem = problem_of(
        geometry_of((8, channels, 56, 56), (filters, channels, *window), padding=padding)
    )
    tiles = planes_gradient.tiles(problem)
    assert len(tiles) > 1
    assert all(planes_gradient.fits(tile, problem) for tile in tiles)
    assert set(tiles) <= set(planes_gradient.neighbours(tiles[0], problem))
    for tile in tiles:  # rows of both images are all taps, and no fewer would be
        assert tile.taps >= window[0] or problem.geometry.R > tile.taps
        assert tile.programs(problem) * tile.step("wgrad")[0] >= channels


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT])
@pytest.mark.parametrize("columns", [8, 16, 24])
def test_short_rows_fill_boxes_where_planes_have_no_gaps(dtype, columns):
    shape = 64, 32, columns, columns
    problem = problem_of(geometry_of(shape, (32, 32, 3, 3), padding=_SAME), dtype)
    pixels = 128 // dtype.itemsize
    tiles = planes_gradient.tiles(problem)
    assert {tile.FOLDED for tile in tiles} == {pixels // columns if columns < 24 else 1}
    gaps = replace(problem, layout=replace(PLANES, x_row=""))
    assert {tile.FOLDED for tile in planes_gradient.tiles(gaps)} == {1}
    cropped = replace(problem, geometry=replace(problem.geometry, padding=((1, 1), (0, 0))))
    assert {tile.FOLDED for tile in planes_gradient.tiles(cropped)} == {1}


def test_it_is_taken_where_copies_of_images_take_long():
    plan = choose.plan(problem_of(LAYER))
    assert (plan.kernel, plan.exchange) == ("wgrad_planes", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "fprop"},
        {"dtype": torch.float64},
        {"precision": "ieee"},
        {"geometry": replace(LAYER, padding_mode="reflect")},
        {"geometry": replace(LAYER, per_sample=True)},
        {"geometry": replace(LAYER, given_stride=(2, 1))},
        {"geometry": replace(LAYER, given_dilation=(2, 1))},
        {"geometry": replace(LAYER, C=3)},
        {"layout": replace(PLANES, x_boxes="")},
        {"layout": replace(PLANES, converts=True)},
        {"layout": replace(PLANES, gluon=False)},
        {"layout": replace(PLANES, x_boxes="NHWC", y_boxes="NHWC")},
        {"device": DEVICES["b200"]},
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(changes):
    assert planes_gradient.tiles(problem_of(LAYER))
    assert planes_gradient.tiles(replace(problem_of(LAYER), **changes)) == []


@pytest.mark.parametrize(
    ("pattern", "noticed"),
    [
        (r"wgmma\.wait_group\.sync\.aligned 1;", "a wgmma in flight reads"),
        (r"bar\.sync\s+0;", "race"),
        (r"fence\.proxy\.async\.shared::cta;", "fence.proxy.async"),
    ],
    ids=["wait", "barrier", "fence"],
)
def test_an_instruction_that_is_left_out_is_noticed(pattern, noticed):
    from tricorr.ops.launch import entry as launch

    geometry, tile, _ = CALLS["four_rows_of_x"]
    args = operands("wgrad", *tensors(geometry, FLOAT, make=whole_numbers))
    plan = choose.plan_with_tile(problem_of(geometry), tile)
    with simulated(90) as device:
        device.change = lambda ptx: re.sub(pattern, "", ptx)
        with pytest.raises(Fault, match=noticed):
            run("wgrad", args, geometry, launch, plan=plan)
