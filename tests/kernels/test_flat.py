"""Weight gradients in TF32 from copies of x and dy whose lanes are images and bands of rows."""

from dataclasses import replace

import pytest
import torch
from cases import FORMATS, SAME, in_format, tensors, whole_numbers
from closeness import check, check_exact, operands, truth
from plans import H200, PLAIN, boxed, launched, planned, with_tile
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, flat
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.flat import FlatTile
from tricorr.ops.plan.problem import Problem

#: Lanes that are images, bands of rows or both; every phase of a stride; columns of the window as
#: rows of an operand; planes of which the last box is partly filled.
GEOMETRIES = {
    "odd_channels": geometry_of((2, 19, 5, 7), (37, 19, 3, 3), padding=SAME),
    "seven_columns": geometry_of((1, 16, 4, 9), (16, 16, 2, 7), padding=((0, 1), (3, 3))),
    "asymmetric_padding": geometry_of((2, 16, 6, 5), (16, 16, 2, 3), padding=((0, 3), (5, 1))),
    "dilated": geometry_of((1, 16, 9, 8), (24, 16, 3, 3), (1, 1), ((2, 2), (3, 3)), (2, 3)),
    "groups_flipped": geometry_of(
        (2, 34, 6, 6), (40, 17, 2, 3), padding=SAME, groups=2, flip=True
    ),
    "one_column_padded": geometry_of((3, 16, 3, 4), (16, 16, 2, 1), padding=((0, 1), (2, 1))),
    "four_images": geometry_of((4, 16, 3, 7), (16, 16, 2, 5)),
    "fewer_rows_than_bands": geometry_of((1, 16, 2, 9), (16, 16, 1, 3), padding=SAME),
    "stride": geometry_of((4, 16, 7, 9), (24, 16, 3, 3), (2, 2), SAME),
    "stride_of_groups": geometry_of((1, 34, 9, 8), (40, 17, 3, 3), (2, 2), SAME, groups=2),
    "stride_and_dilation": geometry_of(
        (1, 16, 12, 16), (16, 16, 3, 4), (4, 3), ((3, 1), (4, 2)), (2, 2), flip=True
    ),
    "strided_point": geometry_of((2, 16, 7, 16), (16, 16, 1, 1), (2, 3)),
    "patches": geometry_of((1, 16, 9, 12), (16, 16, 2, 2), (2, 2)),
    "window_below_stride": geometry_of((3, 16, 9, 16), (16, 16, 2, 3), (3, 5), SAME),
}  # fmt: skip
#: (operand with copies for every column of the window, taps that share dy, splits): what each test
#: takes in turn.
WAYS = (("", 1, 1), ("x", 1, 2), ("dy", 1, 1), ("", 3, 2))


def computed(geometry, args, boxes, tile, splits=1, **changes):
    plan = with_tile("wgrad", geometry, tile, splits, "tf32", **changes)
    assert plan.kernel == "wgrad_flat"
    assert plan.splits == splits  # there are enough boxes
    return launched("wgrad", in_format(args, boxes), geometry, plan)


@pytest.mark.parametrize("boxes", FORMATS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_window(kernel_backend, name, boxes):
    """Whole numbers are exact, and split sums of them too."""
    geometry = GEOMETRIES[name]
    args = operands(
        "wgrad", *tensors(geometry, torch.float32, kernel_backend.device, make=whole_numbers)
    )
    turn = list(GEOMETRIES).index(name) + 2 * (boxes == "NCHW")
    unfolded, taps, splits = WAYS[turn % len(WAYS)]
    assert flat.is_legal(Problem("wgrad", geometry, precision="tf32", device=H200), unfolded)
    taps = min(taps, flat.copies_of(geometry, unfolded).taps)
    tile = FlatTile(16, 16, 16, 4, 2, taps, unfolded)
    actual = computed(geometry, args, boxes, tile, splits, int64=boxes == "NHWC")
    check_exact("wgrad", args, geometry, actual)


@pytest.fixture
def part_bytes(monkeypatch):
    """Sets the most bytes of the copies of one part."""

    def set_to(most):
        monkeypatch.setattr(flat, "MAX_PART_BYTES", most)
        flat.copies_of.cache_clear()

    yield set_to
    flat.copies_of.cache_clear()


@pytest.mark.parametrize(
    ("shape", "unfolded", "most", "parts", "bands"),
    [
        ((12, 16, 5, 7), "", 60_000, 2, 1),
        ((9, 16, 5, 7), "x", 60_000, 3, 4),
        ((1, 16, 17, 7), "dy", 30_000, 2, 8),
    ],
)
def test_copies_in_parts(kernel_backend, part_bytes, shape, unfolded, most, parts, bands):
    """The launch of every part but the first adds to what is there."""
    part_bytes(most)
    geometry = geometry_of(shape, (20, 16, 3, 3), (1, 2), padding=SAME)
    made = flat.copies_of(geometry, unfolded)
    assert (made.parts, made.bands) == (parts, bands)
    args = operands(
        "wgrad", *tensors(geometry, torch.float32, kernel_backend.device, make=whole_numbers)
    )
    for boxes, splits in (("NHWC", 1), ("NCHW", 2)):
        tile = FlatTile(16, 16, 16, 4, 2, 1, unfolded)
        check_exact("wgrad", args, geometry, computed(geometry, args, boxes, tile, splits))


#: More boxes than stages.
BOXES = geometry_of((3, 19, 12, 11), (37, 19, 3, 3), padding=SAME)
STRIDED = geometry_of((4, 19, 19, 18), (37, 19, 3, 3), (2, 2), SAME)
#: 16 channels, with those of the other columns of the window, fill more than one tile.
FEW = geometry_of((4, 16, 9, 9), (80, 16, 3, 5), padding=SAME)


@pytest.mark.parametrize(
    ("geometry", "boxes", "shape", "unfolded"),
    [
        (GEOMETRIES["groups_flipped"], "NCHW", (128, 256, 8, 4, 1), ""),
        (BOXES, "NHWC", (128, 256, 8, 4, 1), ""),
        (STRIDED, "NHWC", (64, 256, 8, 4, 1), "x"),
        (STRIDED, "NCHW", (128, 128, 8, 3, 1), ""),
        (BOXES, "NHWC", (64, 128, 4, 4, 1), ""),
        (BOXES, "NHWC", (64, 64, 4, 4, 1), "dy"),
        (BOXES, "NCHW", (128, 64, 8, 4, 3), ""),
        (FEW, "NHWC", (128, 64, 8, 4, 3), "x"),
        (STRIDED, "NCHW", (64, 64, 4, 3, 3), "dy"),
    ],
)
def test_compiled_code(geometry, boxes, shape, unfolded):
    assert shape in flat.SHAPES
    filters, channels, *more = shape
    args = operands("wgrad", *tensors(geometry, torch.float32, make=whole_numbers))
    with simulated(90) as device:
        actual = computed(geometry, args, boxes, FlatTile(filters, channels, 32, *more, unfolded))
    check_exact("wgrad", args, geometry, actual)
    assert [(done.kernel, done.unit) for done in device.launches][-1] == ("wgrad_flat", "wgmma")


def test_compiled_code_of_parts(part_bytes):
    part_bytes(80_000)
    args = operands("wgrad", *tensors(BOXES, torch.float32, make=whole_numbers))
    with simulated(90) as device:
        actual = computed(BOXES, args, "NCHW", FlatTile(64, 64, 32, 4, 4), splits=2)
    check_exact("wgrad", args, BOXES, actual)
    launched = [done.kernel for done in device.launches]
    assert launched == ["copy_flat", "wgrad_flat"] * 2 + ["sum_partials"]


def test_random_operands_in_parts(part_bytes):
    part_bytes(80_000)
    args = operands("wgrad", *tensors(BOXES, torch.float32))
    with simulated(90):
        actual = computed(BOXES, args, "NHWC", FlatTile(64, 64, 32, 4, 4), splits=2)
    check("wgrad", args, BOXES, actual=actual, precision="tf32")


def test_rounded_operands_leave_no_bias():
    """Truncated operands would make sums of positive products 7e-4 too small."""
    geometry = GEOMETRIES["odd_channels"]
    args = operands("wgrad", *(t.abs() + 0.5 for t in tensors(geometry, torch.float32)))
    with simulated(90):
        actual = computed(geometry, args, "NCHW", FlatTile(64, 64, 32, 4, 4))
    check("wgrad", args, geometry, actual=actual, precision="tf32")
    assert abs((actual.double().numpy() / truth("wgrad", args, geometry) - 1).mean()) < 2e-5


def test_values_that_are_not_finite_stay_so(kernel_backend):
    """Rounding to TF32 adds to the bits: those of a NaN must not overflow to a number."""
    geometry = GEOMETRIES["four_images"]
    args = operands("wgrad", *tensors(geometry, torch.float32, kernel_backend.device))
    args[0][:, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    args[0][:, 5] = torch.inf
    actual = computed(geometry, args, "NCHW", FlatTile(16, 16, 16, 4, 2))
    assert actual[:, 3].isnan().all()
    assert not actual[:, 5].isfinite().any()
    assert actual[:, [0, 1, 2, 4, *range(6, 16)]].isfinite().all()


LAYER = geometry_of((32, 256, 14, 14), (256, 256, 3, 3), padding=SAME)


@pytest.mark.parametrize("layout", [PLAIN, boxed("NHWC")])
def test_it_is_taken_for_dense_layers(layout):
    plan = planned("wgrad", LAYER, torch.float32, layout, H200, "tf32")
    assert plan.kernel == "wgrad_flat"
    problem = Problem("wgrad", LAYER, torch.float32, "tf32", layout, H200)
    assert flat.fits(plan.tile, problem)
    # Rows of 14 columns and one of padding, of both images.
    assert plan.tile.work(plan, problem).copy_bytes == 4 * 32 * 256 * 2 * 14 * 15


def test_large_copies_are_made_in_parts():
    problem = Problem("wgrad", replace(LAYER, N=2**14), torch.float32, "tf32", device=H200)
    plan = choose.plan(problem)
    assert plan.kernel == "wgrad_flat"
    work = plan.tile.work(plan, problem)
    assert work.copy_bytes / work.parts <= flat.MAX_PART_BYTES < work.copy_bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"padding": ((1, -1), (1, 1))},
        {"padding_mode": "reflect"},
        {"per_sample": True},
        {"C": 8},
        {"C": 2**22, "K": 2**8, "groups": 2**4},
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(changes):
    problem = Problem("wgrad", replace(LAYER, **changes), torch.float32, "tf32", device=H200)
    assert flat.tiles(problem) == []


def test_other_types_and_devices_are_left_to_others():
    problem = Problem("wgrad", LAYER, torch.float32, "tf32", device=H200)
    assert flat.tiles(problem)
    for changes in (
        {"op": "fprop"},
        {"dtype": torch.bfloat16},
        {"precision": "tf32x3"},
        {"layout": replace(PLAIN, converts=True)},
        {"device": DEVICES["a100"]},
    ):
        assert flat.tiles(replace(problem, **changes)) == []
