"""Rows kernels: every kind of window, tile and step, with and without the code for the inside."""

from dataclasses import replace

import pytest
import torch
from cases import DTYPES, tensors
from closeness import check, operands, run

from tricorr.ops import geometry_of
from tricorr.ops.plan import plan_with_tile
from tricorr.ops.plan_rows import RowsTile

#: Several tiles along every axis, the last of each with something left over.
GEOMETRIES = {
    "image": geometry_of((1, 1, 13, 21), (1, 1, 3, 3), padding=((1, 1), (1, 1))),
    "even_window": geometry_of((1, 1, 9, 20), (1, 1, 2, 4), padding=((0, 1), (1, 2))),
    "seven": geometry_of((1, 1, 12, 19), (1, 1, 7, 7), padding=((3, 3), (3, 3))),
    "one_by_two": geometry_of((2, 1, 5, 18), (1, 1, 1, 2)),
    "planes": geometry_of((2, 3, 7, 9), (3, 1, 3, 3), padding=((1, 1), (1, 1)), groups=3),
    "pad_exceeds_window": geometry_of(
        (1, 2, 4, 9), (2, 1, 2, 2), padding=((3, 4), (3, 2)), groups=2
    ),
    "dilated": geometry_of(
        (1, 2, 11, 19), (2, 1, 3, 2), padding=((2, 1), (0, 3)), dilation=(2, 3), groups=2
    ),
    "flipped": geometry_of((1, 2, 7, 19), (2, 1, 3, 2), groups=2, flip=True),
    "per_sample": geometry_of((3, 2, 6, 11), (3, 2, 1, 3, 2), padding=((1, 0), (0, 1)), groups=2),
}
#: The input gradient is a rows kernel for none of these.
MORE = {
    "strided": geometry_of((1, 2, 13, 23), (2, 1, 3, 3), (2, 3), ((1, 1), (1, 1)), groups=2),
    "stride_gt_window": geometry_of((1, 2, 13, 23), (2, 1, 2, 1), (3, 2), groups=2),
    "multiplier": geometry_of((2, 2, 7, 10), (6, 1, 3, 2), padding=((1, 1), (0, 1)), groups=2),
    "filters_of_one_image": geometry_of((1, 1, 9, 12), (3, 1, 3, 3)),
}
TILES = [RowsTile(3, 8, 2), RowsTile(2, 16, 1)]
TILE_IDS = [f"{t.BLOCK_P}x{t.BLOCK_Q}x{t.BLOCK_C}" for t in TILES]
CASES = [
    pytest.param(op, geometry, id=f"{op}-{name}")
    for op in ("fprop_bias", "dgrad")
    for name, geometry in (GEOMETRIES | (MORE if op == "fprop_bias" else {})).items()
]


def forced(op, geometry, tile, device, dtype=torch.float32, **changes):
    from tricorr.ops import launch

    args = operands(op, *tensors(geometry, dtype, device))
    splits = changes.pop("splits", 1)
    plan = plan_with_tile(op.removesuffix("_bias"), geometry, tile, splits=splits)
    actual = run(op, args, geometry, launch, plan=replace(plan, **changes))
    check(op, args, geometry, actual=actual)


@pytest.mark.parametrize("interior", [False, True], ids=["masks", "interior"])
@pytest.mark.parametrize("tile", TILES, ids=TILE_IDS)
@pytest.mark.parametrize(("op", "geometry"), CASES)
def test_every_window_and_step(kernel_backend, op, geometry, tile, interior):
    forced(op, geometry, tile, kernel_backend.device, interior=interior, wide=interior)


@pytest.mark.parametrize("splits", [1, 2, 100])
@pytest.mark.parametrize("name", GEOMETRIES | MORE)
def test_weight_gradient_of_every_window_and_step(kernel_backend, name, splits):
    geometry = (GEOMETRIES | MORE)[name]
    tile = TILES[splits % 2]
    forced("wgrad", geometry, tile, kernel_backend.device, splits=splits, wide=splits == 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
def test_every_dtype(kernel_backend, op, dtype):
    forced(op, GEOMETRIES["planes"], TILES[0], kernel_backend.device, dtype)


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("size", [64, 2048])
def test_code_without_masks_is_there_when_most_tiles_use_it(op, size):
    geometry = geometry_of((1, 1, size, size), (1, 1, 3, 3), padding=((1, 1), (1, 1)))
    plan = plan_with_tile(op, geometry, RowsTile(16, 64, 1))
    assert plan.interior == (size == 2048)


def test_the_adjoint_of_the_adjoint_is_the_geometry():
    for geometry in GEOMETRIES.values():
        assert geometry.adjoint().adjoint() == geometry
        assert geometry.adjoint().y_shape == geometry.x_shape
