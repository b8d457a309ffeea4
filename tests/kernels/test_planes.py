"""Images in planes that are read as they lie: in Gluon, so compiled and simulated alone."""

import ast
import re
from dataclasses import replace

import pytest
import torch
from cases import SAME, tensors, whole_numbers
from closeness import check, check_exact, operands, truth
from plans import H200, OPS, PLANES, boxed, planned, with_tile
from plans import launched as result_of
from simulator import Fault
from simulator.driver import simulated
from simulator.mutants import planted

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, planes
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.gemm import GemmTile
from tricorr.ops.plan.planes import PlanesTile
from tricorr.ops.plan.problem import Problem

pytest.importorskip("tricorr.kernels.fprop_planes", reason="Gluon is written for Triton 3.6, 3.7")

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
PRECISION = {HALF: "ieee", BFLOAT: "ieee", FLOAT: "tf32"}
#: (op, geometry, tile, dtype): more than one box along every axis, the last with some left over.
CALLS = {
    "leftovers": (
        "fprop_bias", geometry_of((2, 40, 3, 72), (40, 40, 3, 3), padding=SAME),
        PlanesTile(2, 64, 64, 16, 4, 2), HALF,
    ),
    "two_boxes_of_a_whole_row": (
        "fprop_bias", geometry_of((1, 32, 5, 112), (136, 32, 3, 3), padding=SAME),
        PlanesTile(1, 64, 128, 16, 4, 3), BFLOAT,
    ),
    "parts_of_rows": (
        "fprop_bias", geometry_of((1, 32, 4, 144), (72, 32, 3, 5), padding=((0, 2), (2, 2))),
        PlanesTile(1, 128, 64, 16, 8, 2), HALF,
    ),
    "two_warpgroups_of_filters": (
        "fprop_bias", geometry_of((1, 48, 3, 72), (72, 48, 5, 5), padding=((2, 2), (2, 2))),
        PlanesTile(1, 64, 64, 16, 8, 2), BFLOAT,
    ),
    "narrow_images": (
        "dgrad", geometry_of((2, 72, 9, 24), (40, 72, 3, 3), padding=SAME),
        PlanesTile(4, 32, 64, 32, 8, 2), BFLOAT,
    ),
    "rows_of_16": (
        "fprop_bias", geometry_of((1, 32, 9, 16), (40, 32, 3, 3), padding=SAME),
        PlanesTile(4, 16, 64, 16, 4, 2), HALF,
    ),
    "gradient_flipped": (
        "dgrad", geometry_of((2, 72, 9, 25), (48, 72, 3, 2), padding=((1, 0), (0, 0)), flip=True),
        PlanesTile(2, 32, 64, 16, 4, 2), HALF,
    ),
    "gradient_of_groups": (
        "dgrad", geometry_of((1, 144, 5, 66), (64, 72, 1, 3), padding=((0, 0), (0, 0)), groups=2),
        PlanesTile(2, 64, 64, 32, 4, 2), HALF,
    ),
    "groups_and_dilated_rows": (
        "fprop_bias", geometry_of((1, 64, 12, 72), (48, 32, 5, 3), (1, 1), ((-1, 2), (2, 0)),
                                  (2, 1), groups=2, flip=True),
        PlanesTile(1, 64, 64, 32, 4, 2), BFLOAT,
    ),
    "negative_padding": (
        "fprop_bias", geometry_of((1, 16, 6, 88), (64, 16, 2, 4), padding=((-1, 1), (-3, -2))),
        PlanesTile(1, 64, 64, 16, 4, 2), HALF,
    ),
    "one_column": (
        "fprop_bias", geometry_of((1, 35, 6, 64), (136, 35, 3, 1), padding=((1, 1), (0, 0))),
        PlanesTile(1, 64, 128, 32, 4, 3), BFLOAT,
    ),
    "one_tap_with_padding": (
        "fprop_bias", geometry_of((1, 32, 6, 64), (72, 32, 1, 1), padding=((1, 0), (3, 9))),
        PlanesTile(2, 64, 64, 32, 4, 3), HALF,
    ),
    "tf32": (
        "fprop_bias", geometry_of((2, 40, 3, 72), (40, 40, 3, 3), padding=SAME),
        PlanesTile(2, 64, 64, 16, 8, 2), FLOAT,
    ),
    "tf32_rows_of_16": (
        "fprop_bias", geometry_of((2, 24, 5, 20), (40, 24, 2, 3), padding=((0, 1), (1, 1))),
        PlanesTile(4, 16, 32, 8, 4, 3), FLOAT,
    ),
    "tf32_gradient_flipped": (
        "dgrad", geometry_of((2, 40, 5, 36), (24, 40, 4, 2), padding=((1, 1), (0, 1)), flip=True),
        PlanesTile(4, 32, 16, 16, 4, 4), FLOAT,
    ),
    "tf32_warpgroups_of_filters": (
        "fprop_bias", geometry_of((1, 64, 7, 60), (272, 32, 3, 2), (1, 1), ((2, 1), (0, 3)), (2, 1),
                                  groups=2, flip=True),
        PlanesTile(1, 64, 128, 8, 8, 2), FLOAT,
    ),
    "tf32_one_row_of_taps": (
        "fprop_bias", geometry_of((1, 88, 3, 68), (24, 88, 1, 5), padding=((0, 0), (-1, 2))),
        PlanesTile(2, 32, 32, 32, 4, 2), FLOAT,
    ),
    "tf32_many_taps": (
        "fprop_bias", geometry_of((1, 16, 5, 40), (24, 16, 5, 5), padding=((2, 2), (2, 2))),
        PlanesTile(2, 32, 16, 8, 4, 2), FLOAT,
    ),
    "tf32_sums_in_two_registers": (
        "dgrad", geometry_of((1, 72, 5, 96), (24, 72, 3, 1), padding=((1, 1), (0, 0))),
        PlanesTile(2, 64, 64, 32, 4, 2), FLOAT,
    ),
}  # fmt: skip
#: Calls with a 1x1 window, whose planes are one row.
POINTS = {
    "leftovers": ("fprop_bias", geometry_of((2, 80, 7, 20), (88, 80, 1, 1)),
                  PlanesTile(1, 64, 64, 32, 4, 3)),
    "pairs_of_warpgroups": ("fprop_bias", geometry_of((1, 64, 6, 26), (24, 32, 1, 1), groups=2),
                            PlanesTile(1, 128, 16, 16, 4, 4)),
    "many_filters": ("dgrad", geometry_of((1, 264, 5, 28), (72, 264, 1, 1)),
                     PlanesTile(1, 128, 256, 32, 8, 2)),
}  # fmt: skip


def plan_of(op, geometry, tile, dtype=HALF, layout=PLANES):
    problem = Problem(op.removesuffix("_bias"), geometry, dtype, "tf32", layout, H200)
    assert tile.suits(problem)
    plan = choose.plan_with_tile(problem, tile)
    assert plan.kernel == "fprop_planes"
    return plan


def launched(op, args, geometry, plan, **options):
    """The result, and that nothing but the kernel and a copy of the weight ran for it."""
    with simulated(90) as device:
        actual = result_of(op, args, geometry, plan, **options)
    *before, last = ((found.kernel, found.unit) for found in device.launches)
    assert last == ("fprop_planes", "wgmma")
    assert len(before) <= 1
    return actual


@pytest.mark.parametrize("name", CALLS)
def test_every_window_and_tile(name):
    op, geometry, tile, dtype = CALLS[name]
    plan = plan_of(op, geometry, tile, dtype)
    assert plan.grid > 1
    args = operands(op, *tensors(geometry, dtype, make=whole_numbers))
    actual = launched(op, args, geometry, plan)
    check_exact(op, args, geometry, actual)
    assert actual.is_contiguous()


@pytest.mark.parametrize("name", POINTS)
def test_planes_as_rows(name):
    op, geometry, tile = POINTS[name]
    plan = plan_of(op, geometry, tile, FLOAT, replace(PLANES, as_rows=True))
    args = operands(op, *tensors(geometry, FLOAT, make=whole_numbers))
    check_exact(op, args, geometry, launched(op, args, geometry, plan))


@pytest.mark.parametrize("name", ["leftovers", "narrow_images", "tf32", "tf32_one_row_of_taps"])
def test_random_operands_and_the_same_bits_again(name):
    op, geometry, _, dtype = CALLS[name]
    args = operands(op, *tensors(geometry, dtype))
    first, second = (launched(op, args, geometry, plan_of(*CALLS[name])) for _ in range(2))
    check(op, args, geometry, actual=first, precision=PRECISION[dtype])
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["leftovers", "tf32"])
def test_infinities_reach_the_outputs_whose_windows_hold_them_alone(name):
    """At borders of the image, of boxes, and of rows that lie side by side in a box."""
    _, geometry, tile, dtype = CALLS[name]
    x, weight, *_ = tensors(geometry, dtype, make=whole_numbers)
    weight = weight.abs() + 1
    seen = torch.zeros_like(x)
    for n, c, h, w in ((0, 3, 0, 0), (0, 39, 2, 71), (1, 0, 1, 63), (1, 5, 2, 55), (1, 7, 0, 49)):
        seen[n, c, h, w] = 1
    args = (torch.where(seen > 0, torch.inf, x), weight, None)
    actual = launched("fprop", args, geometry, plan_of("fprop", geometry, tile, dtype))
    reached = torch.from_numpy(truth("fprop", (seen, weight, None), geometry)) > 0
    assert torch.equal(actual == torch.inf, reached)
    expected = torch.from_numpy(truth("fprop", (x, weight, None), geometry)).to(dtype)
    assert torch.equal(actual[~reached], expected[~reached])


@pytest.mark.parametrize(
    ("name", "activation"), [("leftovers", "none"), ("leftovers", "gelu"), ("tf32", "gelu")]
)
def test_the_epilogue(name, activation):
    """Sums of whole numbers are exact: what follows them has the same bits in any kernel."""
    _, geometry, tile, dtype = CALLS[name]
    x, weight, bias, dy = tensors(geometry, dtype, make=whole_numbers)
    args = (x / 8, weight, bias)
    options = {"activation": activation, "residual": torch.randn_like(dy)}
    actual = launched("fprop", args, geometry, plan_of("fprop", geometry, tile, dtype), **options)
    plan = with_tile("fprop", geometry, GemmTile(64, 64, 32, 4, 3))
    with simulated(90):
        expected = result_of("fprop", args, geometry, plan, **options)
    assert torch.equal(actual, expected)


def test_rows_with_gaps_and_a_result_in_channels_last():
    """What is beside a row of x is not read, and y has any strides."""
    _, geometry, tile, dtype = CALLS["gradient_flipped"]
    geometry = replace(geometry, flip=False)
    x, weight, bias, dy = tensors(geometry, dtype, make=whole_numbers)
    wide = torch.full((*x.shape[:3], 32), torch.inf, dtype=dtype)
    wide[..., : x.shape[3]] = x
    residual = torch.ones_like(dy).contiguous(memory_format=torch.channels_last)
    args, options = (wide[..., : x.shape[3]], weight, bias), {"residual": residual}
    actual = launched("fprop", args, geometry, plan_of("fprop", geometry, tile), **options)
    expected = torch.from_numpy(truth("fprop_bias", (x, weight, bias), geometry)) + 1
    assert torch.equal(actual, expected.to(dtype))


def _without_zeros_beside_a_box(tree):
    """Takes what lies beside the columns of a row of the box."""
    calls = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "gl.where"
    ]  # fmt: skip
    for call in calls:
        call.args[0] = ast.parse("column == column", mode="eval").body
    return bool(calls)


def _with_columns_of_the_next_box(tree):
    """Takes no notice of the box that an output belongs to."""
    found = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.AugAssign) and "beyond" in ast.unparse(node)
    ]  # fmt: skip
    for node in found:
        node.value = ast.parse("q < Q", mode="eval").body
    return bool(found)


FAULTS = {
    "beside_a_box": ("shifted_sums", _without_zeros_beside_a_box, "wrong"),
    "of_the_next_box": ("fprop_planes", _with_columns_of_the_next_box, "which program . stored"),
}


@pytest.mark.parametrize(("function", "change", "noticed"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_noticed(function, change, noticed):
    with planted(function, change):
        assert re.search(noticed, outcome())
    assert outcome() == "right"


def test_a_left_operand_loaded_before_its_product_is_done_is_noticed():
    """Of the two sets of registers that take turns, triton issue 9433."""
    late = r"(wgmma\.wait_group\.sync\.aligned) [1-9];"
    assert "which a wgmma in flight reads" in outcome(
        lambda ptx: re.sub(late, r"\1 7;", ptx), "tf32_one_row_of_taps"
    )


def test_a_barrier_removed_between_sums_is_noticed():
    assert "race" in outcome(lambda ptx: re.sub(r"bar\.sync\s+0;", "", ptx))


def outcome(damage=None, name="leftovers"):
    """Runs a call, whose code may be damaged, and compares it with the reference: a text."""
    op, geometry, tile, dtype = CALLS[name]
    args = operands(op, *tensors(geometry, dtype))
    try:
        with simulated(90) as device:
            device.change = damage
            actual = result_of(op, args, geometry, plan_of(op, geometry, tile, dtype))
        check(op, args, geometry, actual=actual, precision=PRECISION[dtype])
    except Fault as fault:
        return str(fault)
    except AssertionError as wrong:
        return f"wrong: {wrong}"
    return "right"


def test_boxes_of_a_row():
    """A box beside others has fewer outputs than columns; a row that fits has one box."""
    same = geometry_of((1, 16, 8, 64), (16, 16, 3, 3), padding=SAME)
    assert [planes.boxes_of_row(same, columns, 8) for columns in (32, 64)] == [3, 1]
    wide = replace(same, W=112)
    assert planes.outputs_of(wide, 64, 8) == 48
    assert planes.boxes_of_row(wide, 64, 8) == 2
    assert planes.boxes_of_row(replace(wide, W=113), 64, 8) == 3
    assert planes.outputs_of(replace(wide, padding=((0, 0), (0, 0))), 64, 8) == 56


LAYER = geometry_of((8, 64, 56, 56), (80, 64, 3, 3), padding=SAME)


POINT = geometry_of((8, 256, 32, 32), (256, 256, 1, 1))


@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT], ids=str)
@pytest.mark.parametrize("op", ["fprop", "dgrad"])
def test_it_is_taken_where_the_model_says_that_it_saves_a_copy(op, dtype):
    assert planned(op, LAYER, dtype, PLANES, H200, "tf32").family == "planes"
    without = replace(PLANES, gluon=False)
    assert planned(op, LAYER, dtype, without, H200, "tf32").family != "planes"
    problem = Problem(op, LAYER, dtype, "tf32", replace(PLANES, repacks=True), H200)
    tile = planes.tiles(problem)[0]
    assert all(other.suits(problem) for other in planes.tiles(problem))
    work = tile.work(choose.plan_with_tile(problem, tile), problem)
    assert work.copy_bytes == LAYER.weight_numel * dtype.itemsize


def test_planes_are_read_as_rows_in_tf32_alone():
    layout = replace(PLANES, as_rows=True)
    plan = planned("fprop", POINT, FLOAT, layout, H200, "tf32")
    assert (plan.family, plan.as_rows, plan.tile.BLOCK_P) == ("planes", True, 1)
    assert planned("fprop", POINT, BFLOAT, layout, H200).family == "tma"


@pytest.mark.parametrize(
    "changes",
    [
        {"given_stride": (2, 2)},
        {"given_dilation": (1, 2)},
        {"N": 2, "per_sample": True},
        {"padding_mode": "reflect"},
        {"groups": 2, "C": 144, "K": 144},
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(changes):
    geometry = replace(LAYER, **changes)
    for op in OPS:
        if op == "dgrad" and "padding_mode" in changes:
            continue  # its inside has zeros around it
        assert not planes.is_legal(Problem(op, geometry, HALF, "ieee", PLANES, H200))
    for problem in (
        Problem("fprop", LAYER, HALF, "ieee", replace(PLANES, int64=True), H200),
        Problem("fprop", LAYER, HALF, "ieee", boxed("NHWC"), H200),
        Problem("fprop", LAYER, FLOAT, "ieee", PLANES, H200),
        Problem("fprop", replace(LAYER, R=6, S=5), FLOAT, "tf32", PLANES, H200),
        Problem("fprop", LAYER, HALF, "ieee", PLANES, DEVICES["b200"]),
    ):
        assert planes.tiles(problem) == []
