"""Weight gradients of few channels: one image stays, the other is shifted by taps."""

from dataclasses import replace

import pytest
import torch
from cases import SAME, in_format, tensors, whole_numbers
from closeness import check, check_exact, operands
from plans import H200, launched, with_tile
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.launch.layout import layout_of
from tricorr.ops.plan import choose, shifted
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.shifted import ShiftedTile

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
#: Planes of several boxes, the last partly filled, and of one; blocks of channels and of columns
#: with some left over.
GEOMETRIES = {
    "filters": (geometry_of((2, 24, 6, 8), (3, 24, 3, 3), padding=SAME), "dy"),
    "one_filter_dilated": (
        geometry_of((1, 40, 7, 8), (1, 40, 2, 5), (1, 1), ((2, 1), (2, 5)), (2, 3)), "dy",
    ),
    "cropped_flipped": (
        geometry_of((3, 16, 9, 8), (2, 16, 3, 2), padding=((-1, 2), (1, -2)), flip=True), "dy",
    ),
    "groups": (
        geometry_of((2, 48, 4, 6), (10, 24, 3, 3), padding=SAME, groups=2, flip=True), "dy",
    ),
    "stem": (geometry_of((2, 3, 9, 15), (24, 3, 3, 3), (2, 2), ((1, 2), (1, 2))), "x"),
    "stem_of_groups": (
        geometry_of((1, 6, 9, 20), (48, 3, 3, 5), (2, 2), ((1, 1), (2, 2)), (1, 2), groups=2), "x",
    ),
    "patches": (geometry_of((3, 3, 16, 16), (16, 3, 4, 4), (4, 4)), "x"),
}  # fmt: skip


def computed(geometry, args, boxes, tile, splits=1, precision="ieee"):
    plan = with_tile("wgrad", geometry, tile, splits, precision)
    assert plan.kernel == "wgrad_shifted"
    assert plan.splits == splits  # there are enough boxes
    return launched("wgrad", in_format(args, boxes), geometry, plan)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_window(kernel_backend, name):
    """Whole numbers are exact, and split sums of them too."""
    geometry, shifts = GEOMETRIES[name]
    turn = list(GEOMETRIES).index(name) % 3
    boxes, dtype = (("NHWC", BFLOAT), ("NCHW", FLOAT), ("NCHW", HALF))[turn]
    precision = "tf32" if dtype == FLOAT else "ieee"
    args = operands("wgrad", *tensors(geometry, dtype, kernel_backend.device, make=whole_numbers))
    x, dy = in_format(args, boxes)
    layout = layout_of(geometry, x, x.new_empty(geometry.weight_shape), dy)
    assert shifted.is_legal(Problem("wgrad", geometry, dtype, precision, layout, H200), shifts)
    tile = ShiftedTile(16, (16, 32)[turn > 0], 16, shifts, 4, 2)
    actual = computed(geometry, args, boxes, tile, 1 + turn % 2, precision)
    check_exact("wgrad", args, geometry, actual)


#: More boxes than stages.
FILTERS = geometry_of((3, 72, 14, 16), (5, 72, 3, 3), padding=SAME)
STEM = geometry_of((5, 3, 15, 31), (72, 3, 5, 3), (2, 2), ((2, 2), (1, 1)))


@pytest.mark.parametrize(
    ("geometry", "boxes", "dtype", "blocks", "unit"),
    [
        (FILTERS, "NCHW", BFLOAT, (128, 32, 64), "wgmma"),
        (FILTERS, "NHWC", HALF, (64, 64, 64), "wgmma"),
        (FILTERS, "NCHW", FLOAT, (64, 16, 32), "wgmma"),
        (FILTERS, "NHWC", BFLOAT, (32, 16, 64), "mma.sync"),
        (STEM, "NCHW", HALF, (64, 128, 64), "wgmma"),
        (STEM, "NHWC", BFLOAT, (128, 64, 64), "wgmma"),
        (STEM, "NCHW", BFLOAT, (16, 64, 64), "mma.sync"),
        (STEM, "NCHW", FLOAT, (32, 128, 32), "mma.sync"),
    ],
)
def test_compiled_code(geometry, boxes, dtype, blocks, unit):
    shifts, warps = "x" if geometry is STEM else "dy", 8 if blocks[1] == 128 else 4
    tile = ShiftedTile(*blocks, shifts, warps, 4)
    assert shifted.fits(tile, Problem("wgrad", geometry, dtype, device=H200))
    args = operands("wgrad", *tensors(geometry, dtype, make=whole_numbers))
    precision = "tf32" if dtype == FLOAT else "ieee"
    with simulated(90) as device:
        actual = computed(geometry, args, boxes, tile, 2, precision)
    check_exact("wgrad", args, geometry, actual)
    first = device.launches[0]
    assert (first.kernel, first.unit) == ("wgrad_shifted", unit)


@pytest.mark.parametrize(("dtype", "precision"), [(BFLOAT, "ieee"), (FLOAT, "tf32")])
def test_random_operands(dtype, precision):
    args = operands("wgrad", *tensors(FILTERS, dtype))
    tile = ShiftedTile(64, 64, 128 // dtype.itemsize, "dy", 4, 4)
    with simulated(90):
        actual = computed(FILTERS, args, "NCHW", tile, 3, precision)
    check("wgrad", args, FILTERS, actual=actual, precision=precision)


def test_values_that_are_not_finite_stay_in_their_channel(kernel_backend):
    geometry, shifts = GEOMETRIES["filters"]
    args = operands("wgrad", *tensors(geometry, HALF, kernel_backend.device))
    args[0][:, 5], args[1][:, 1] = torch.inf, torch.nan
    actual = computed(geometry, args, "NCHW", ShiftedTile(16, 32, 16, shifts, 4, 2))
    assert actual[1].isnan().all()
    assert not actual[:, 5].isfinite().any()
    assert actual[[0, 2]][:, [*range(5), *range(6, 24)]].isfinite().all()


LAYER = geometry_of((8, 64, 224, 224), (3, 64, 3, 3), padding=SAME)
PLANES, PIXELS = (
    Layout(boxes == "NHWC", x_boxes=boxes, y_boxes=boxes, x_row=boxes, y_row=boxes)
    for boxes in ("NCHW", "NHWC")
)


@pytest.mark.parametrize("layout", [PLANES, PIXELS], ids=["NCHW", "NHWC"])
def test_it_is_taken_for_few_filters(layout):
    problem = Problem("wgrad", LAYER, BFLOAT, layout=layout, device=H200)
    plan = choose.plan(problem)
    assert (plan.kernel, plan.tile.shifts, plan.tile.step("wgrad")[:2]) == (
        "wgrad_shifted", "dy", (64, 32),
    )  # fmt: skip
    assert set(shifted.tiles(problem)) <= set(shifted.neighbours(plan.tile, problem))


def test_planes_with_gaps_are_no_rows():
    """A box of pixels goes on from one row of a plane to the next."""
    x = torch.empty(2, 64, 8, 24, dtype=BFLOAT)
    dy, weight = torch.empty(2, 3, 6, 14, dtype=BFLOAT), torch.empty(3, 64, 3, 3, dtype=BFLOAT)
    geometry = geometry_of((2, 64, 8, 16), weight.shape)
    rows = [
        (layout.x_row, layout.y_row)
        for layout in (
            layout_of(geometry, x[..., :16], weight, dy),
            layout_of(geometry, x[..., :16].contiguous(), weight, dy),
            layout_of(geometry, x[..., :16].to(memory_format=torch.channels_last), weight, dy),
        )
    ]
    # The bytes of a plane of 6 * 14 pixels are no multiple of 16.
    assert rows == [("", ""), ("NCHW", ""), ("NHWC", "")]


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "fprop"},
        {"dtype": torch.float32},
        {"geometry": replace(LAYER, padding_mode="reflect")},
        {"geometry": replace(LAYER, per_sample=True)},
        {"geometry": replace(LAYER, given_stride=(2, 1))},
        {"geometry": replace(LAYER, C=128, K=128)},
        {"layout": replace(PLANES, x_row="")},
        {"layout": replace(PLANES, converts=True)},
        {"layout": replace(PLANES, int64=True)},
        {"layout": PIXELS, "geometry": replace(LAYER, C=84, K=7, groups=7)},
        {"layout": PIXELS, "dtype": torch.float32, "precision": "tf32"},
        {"device": DEVICES["a100"]},
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(changes):
    layout = replace(PLANES, y_row="")  # filters alone may be shifted
    problem = Problem("wgrad", LAYER, BFLOAT, layout=layout, device=H200)
    assert shifted.tiles(problem)
    assert shifted.tiles(replace(problem, **changes)) == []
