"""Weight gradients in TF32 from copies of the images as flat planes."""

from dataclasses import replace

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import check, operands, run, truth
from plans import H200, PLAIN, boxed, planned, with_tile
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import flat
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.flat import FlatTile
from tricorr.ops.plan.problem import Problem

_SAME = ((1, 1), (1, 1))
FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
#: Every residue of a tap's offset, and planes of which the last box is partly filled.
GEOMETRIES = {
    "odd_channels": geometry_of((2, 19, 5, 7), (37, 19, 3, 3), padding=_SAME),
    "seven_columns": geometry_of((1, 16, 4, 9), (16, 16, 2, 7), padding=((0, 1), (3, 3))),
    "asymmetric_padding": geometry_of((2, 16, 6, 5), (16, 16, 2, 3), padding=((0, 3), (5, 1))),
    "dilated": geometry_of((1, 16, 9, 8), (24, 16, 3, 3), (1, 1), ((2, 2), (3, 3)), (2, 3)),
    "dilated_by_two": geometry_of((1, 16, 5, 9), (16, 16, 1, 3), dilation=(1, 2)),
    "groups_flipped": geometry_of(
        (2, 34, 6, 6), (40, 17, 2, 3), padding=_SAME, groups=2, flip=True
    ),
    "one_column_padded": geometry_of((3, 16, 3, 4), (16, 16, 2, 1), padding=((0, 1), (2, 1))),
    "no_padding": geometry_of((1, 16, 3, 12), (16, 16, 2, 5)),
}  # fmt: skip


def computed(geometry, args, boxes, tile, splits=1, **changes):
    from tricorr.ops.launch import arguments as launch

    given = [t.contiguous(memory_format=FORMATS[boxes]) for t in args]
    plan = with_tile("wgrad", geometry, tile, splits, "tf32", **changes)
    assert plan.kernel == "wgrad_flat"
    assert plan.splits == splits
    return run("wgrad", given, geometry, launch, plan=plan)


@pytest.mark.parametrize("boxes", FORMATS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_window(kernel_backend, name, boxes):
    """Whole numbers are exact, and split sums of them too."""
    geometry = GEOMETRIES[name]
    assert flat.is_legal(Problem("wgrad", geometry, precision="tf32", device=H200))
    args = operands(
        "wgrad", *tensors(geometry, torch.float32, kernel_backend.device, make=whole_numbers)
    )
    taps, changes = (1, {"int64": True}) if boxes == "NHWC" else (3, {"splits": 2})
    actual = computed(geometry, args, boxes, FlatTile(16, 16, 16, 4, 2, taps), **changes)
    assert torch.equal(actual.cpu().double(), torch.from_numpy(truth("wgrad", args, geometry)))


#: More boxes than stages.
BOXES = geometry_of((3, 19, 12, 11), (37, 19, 3, 3), padding=_SAME)


@pytest.mark.parametrize(
    ("geometry", "boxes", "shape"),
    [
        (GEOMETRIES["groups_flipped"], "NCHW", (128, 256, 8, 4, 1)),
        (BOXES, "NHWC", (128, 256, 8, 4, 1)),
        (BOXES, "NCHW", (128, 128, 8, 3, 1)),
        (BOXES, "NHWC", (64, 128, 4, 4, 1)),
        (BOXES, "NHWC", (64, 64, 4, 4, 1)),
        (BOXES, "NCHW", (128, 64, 8, 4, 3)),
        (GEOMETRIES["seven_columns"], "NHWC", (64, 64, 4, 3, 3)),
        (BOXES, "NCHW", (64, 64, 4, 3, 3)),
    ],
)
def test_compiled_code(geometry, boxes, shape):
    assert shape in flat.SHAPES
    filters, channels, *more = shape
    args = operands("wgrad", *tensors(geometry, torch.float32, make=whole_numbers))
    with simulated(90) as device:
        actual = computed(geometry, args, boxes, FlatTile(filters, channels, 32, *more))
    assert [(done.kernel, done.unit) for done in device.launches][-1] == ("wgrad_flat", "wgmma")
    assert torch.equal(actual.double(), torch.from_numpy(truth("wgrad", args, geometry)))


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
    geometry = GEOMETRIES["no_padding"]
    args = operands("wgrad", *tensors(geometry, torch.float32, kernel_backend.device))
    args[0][:, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    args[0][:, 5] = torch.inf
    actual = computed(geometry, args, "NCHW", FlatTile(16, 16, 16, 4, 2))
    assert actual[:, 3].isnan().all()
    assert not actual[:, 5].isfinite().any()
    assert actual[:, [0, 1, 2, 4, *range(6, 16)]].isfinite().all()


def test_calls_with_other_tensors_are_prepared(monkeypatch):
    from tricorr.ops.launch import arguments as launch
    from tricorr.ops.launch.prepared import forget_prepared

    geometry = GEOMETRIES["odd_channels"]
    plan = with_tile("wgrad", geometry, FlatTile(64, 64, 32, 4, 4), 2, "tf32")
    monkeypatch.setattr(launch.choose, "plan", lambda problem: plan)
    forget_prepared()
    with simulated(90):
        for turn in range(2):
            if turn:
                monkeypatch.setattr(launch, "wgrad_calls", None)  # built once
            args = operands("wgrad", *tensors(geometry, torch.float32, make=whole_numbers))
            actual = launch.wgrad(*args, geometry)
            assert torch.equal(actual.double(), torch.from_numpy(truth("wgrad", args, geometry)))
    forget_prepared()


LAYER = geometry_of((32, 256, 14, 14), (256, 256, 3, 3), padding=_SAME)


@pytest.mark.parametrize("layout", [PLAIN, boxed("NHWC")])
def test_it_is_taken_for_dense_layers(layout):
    plan = planned("wgrad", LAYER, torch.float32, layout, H200, "tf32")
    assert plan.kernel == "wgrad_flat"
    problem = Problem("wgrad", LAYER, torch.float32, "tf32", layout, H200)
    assert flat.fits(plan.tile, problem)
    # Rows of 14 columns and one of padding are 16 apart; three copies of x.
    planes = [3 * (14 * 16 + 4), 14 * 16]
    assert plan.tile.work(plan, problem).copy_bytes == 4 * 32 * 256 * sum(planes)


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": (1, 2)},
        {"S": 1, "padding": ((1, 1), (0, 0))},
        {"padding": ((1, -1), (1, 1))},
        {"padding_mode": "reflect"},
        {"per_sample": True},
        {"C": 8},
        {"N": 2**14},
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
