"""Weight gradients whose rows are loaded once for taps of a column: in Gluon, see test_reuse."""

from dataclasses import replace

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import check, operands, run, truth
from plans import H200, boxed
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, reuse_gradient
from tricorr.ops.plan.problem import Problem
from tricorr.ops.plan.reuse_gradient import ReuseGradientTile

pytest.importorskip("tricorr.kernels.wgrad_reuse", reason="Gluon is written for Triton 3.6 and 3.7")

_SAME = ((1, 1), (1, 1))
PIXELS = replace(boxed("NHWC"), gluon=True)
PLANES = replace(boxed("NCHW"), channels_last=False, gluon=True)
HALF, BFLOAT = torch.float16, torch.bfloat16
#: (geometry, tile, parts, dtype)
CALLS = {
    "channels_left_over": (
        geometry_of((3, 72, 8, 12), (72, 72, 3, 3), padding=_SAME),
        ReuseGradientTile(2, 4, 4, 3, 64, 64, 4, 3), 2, HALF,
    ),
    "rows_in_three_runs": (
        geometry_of((5, 96, 14, 6), (160, 48, 3, 3), padding=_SAME, groups=2, flip=True),
        ReuseGradientTile(4, 14, 2, 3, 128, 64, 8, 3), 2, BFLOAT,
    ),
    "rows_apart": (
        geometry_of((2, 64, 8, 8), (64, 64, 5, 2), (1, 1), ((4, 4), (2, 1)), (2, 3)),
        ReuseGradientTile(1, 4, 8, 3, 64, 64, 4, 3), 2, HALF,
    ),
    "single_columns_of_planes": (
        geometry_of((18, 40, 7, 7), (72, 40, 3, 3), padding=_SAME),
        ReuseGradientTile(16, 7, 1, 3, 64, 64, 4, 3, copied=True), 1, BFLOAT,
    ),
    "one_tap": (
        geometry_of((2, 160, 8, 9), (136, 160, 2, 2), padding=((1, 0), (1, -1))),
        ReuseGradientTile(2, 4, 4, 1, 128, 128, 8, 4), 2, HALF,
    ),
    "strides": (
        geometry_of((3, 96, 8, 12), (80, 48, 3, 3), (2, 2), _SAME, groups=2),
        ReuseGradientTile(4, 4, 2, 1, 64, 64, 4, 3), 2, BFLOAT,
    ),
    "strided_columns_of_planes": (
        geometry_of((4, 40, 8, 12), (64, 40, 2, 5), (1, 3), ((1, 0), (3, 3)), (1, 2)),
        ReuseGradientTile(4, 8, 2, 2, 64, 64, 4, 3, copied=True), 1, HALF,
    ),
    "point_that_overhangs": (
        geometry_of((2, 256, 5, 11), (64, 256, 1, 1)),
        ReuseGradientTile(1, 2, 16, 1, 128, 256, 8, 3), 2, BFLOAT,
    ),
}  # fmt: skip


def problem_of(geometry, dtype=HALF, copied=False, **more):
    layout = PLANES if copied else PIXELS
    return Problem("wgrad", geometry, dtype, "ieee", layout, **{"device": H200, **more})


def launched(args, geometry, tile, parts, dtype):
    """The gradient by one launch of the kernel, with copies of the images or a sum of its parts."""
    from tricorr.ops.launch import arguments as launch

    problem = problem_of(geometry, dtype, tile.copied)
    assert reuse_gradient.is_legal(problem, tile.copied)
    assert reuse_gradient.fits(tile, problem)
    plan = choose.plan_with_tile(problem, tile, parts)
    assert (plan.kernel, plan.splits) == ("wgrad_reuse", parts)
    if not tile.copied:
        args = [t.contiguous(memory_format=torch.channels_last) for t in args]
    with simulated(90) as device:
        actual = run("wgrad", args, geometry, launch, plan=plan)
    own = [found.unit for found in device.launches if found.kernel == "wgrad_reuse"]
    assert own == ["wgmma"]
    others = {found.kernel for found in device.launches} - {"wgrad_reuse"}
    assert others == {*["copy_images"] * tile.copied, *["sum_partials"] * (parts > 1)}
    return actual


@pytest.mark.parametrize("name", CALLS)
def test_every_window_and_tile(name):
    geometry, tile, parts, dtype = CALLS[name]
    args = operands("wgrad", *tensors(geometry, dtype, make=whole_numbers))
    actual = launched(args, geometry, tile, parts, dtype)
    assert torch.equal(actual, torch.from_numpy(truth("wgrad", args, geometry)).to(dtype))


def test_random_operands():
    geometry, tile, parts, dtype = CALLS["channels_left_over"]
    args = operands("wgrad", *tensors(geometry, dtype))
    check("wgrad", args, geometry, actual=launched(args, geometry, tile, parts, dtype))
