"""Reductions to an image in parts: the same sums for any number of parts, then the epilogue."""

from dataclasses import replace

import pytest
import torch
from cases import FORMATS, SAME, in_format, tensors, whole_numbers
from closeness import check, check_exact, operands
from plans import H200, boxed, launched, planned, with_tile

import tricorr
from tricorr.ops import geometry_of
from tricorr.ops.plan.choose import plans_with_tile
from tricorr.ops.plan.cost import partial_bytes
from tricorr.ops.plan.device import MAX_WORKSPACE
from tricorr.ops.plan.gemm import GEMM_TILES, GemmTile
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.tma import TmaTile, is_legal

#: More channels than a step has, and indivisible numbers of pixels, channels and steps.
GEOMETRIES = {
    "leftovers": geometry_of((1, 20, 5, 7), (35, 20, 2, 3), padding=SAME),
    "point": geometry_of((2, 100, 5, 3), (19, 100, 1, 1)),
    "few_channels": geometry_of((1, 5, 5, 6), (18, 5, 3, 3), padding=SAME),
    "groups_flipped": geometry_of((1, 68, 5, 6), (36, 34, 2, 3), padding=SAME, groups=2, flip=True),
    "phases": geometry_of((1, 33, 7, 8), (34, 33, 3, 3), (2, 2), SAME),
    "phases_without_taps": geometry_of((1, 33, 7, 9), (40, 33, 2, 1), (3, 2)),
    "dilated": geometry_of((1, 33, 9, 8), (17, 33, 2, 3), (2, 1), SAME, (2, 2)),
}
FORWARD = {
    "reflected": geometry_of((1, 33, 5, 6), (17, 33, 3, 3), padding=SAME, padding_mode="reflect"),
    "per_sample": geometry_of((2, 33, 4, 5), (2, 17, 33, 2, 2)),
}
GEMM_CASES = [
    *(("fprop_bias", name, g) for name, g in (GEOMETRIES | FORWARD).items()),
    *(("dgrad", name, g) for name, g in GEOMETRIES.items()),
]
SMALL = GemmTile(32, 32, 16, num_warps=4, num_stages=2)
BOXES = {
    "leftovers": geometry_of((1, 80, 5, 6), (48, 80, 2, 3), padding=SAME),
    "groups_flipped": geometry_of((1, 96, 5, 8), (96, 48, 2, 3), padding=SAME, groups=2, flip=True),
    "phases": geometry_of((1, 48, 9, 8), (64, 48, 3, 3), (2, 2), SAME),
    "phases_without_taps": geometry_of((1, 48, 9, 10), (32, 48, 1, 1), (3, 2)),
}
#: Boxes of planes: of a window of one column.
PLANES = {
    "leftovers": geometry_of((1, 32, 3, 24), (48, 32, 2, 1), padding=((1, 1), (0, 0))),
    "rows_strided": geometry_of((1, 32, 9, 8), (96, 32, 3, 1), (2, 1), ((1, 1), (0, 0))),
}
BOX_CASES = [
    (op, boxes, name, g)
    for op in ("fprop_bias", "dgrad")
    for boxes, cases in (("NHWC", BOXES), ("NCHW", PLANES))
    for name, g in cases.items()
]


def in_parts(op, args, geometry, plan, **more):
    """The result of a split plan."""
    assert plan.splits > 1
    return launched(op, args, geometry, plan, **more)


@pytest.mark.parametrize(
    ("op", "name", "geometry", "format"),
    [
        pytest.param(*case, list(FORMATS)[turn % 2], id="-".join(case[:2]))
        for turn, case in enumerate(GEMM_CASES)
    ],
)
def test_parts_are_right_through_pointers(kernel_backend, op, name, geometry, format):
    """Three parts, the last a shorter one, and parts of one step each."""
    dtype = [torch.float16, torch.float64][format == "NCHW"]
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device, whole_numbers))
    few = name == "few_channels"
    for parts in (3, 1000):
        tile = replace(SMALL, in_place=parts == 3)  # reads what weight there is
        plan = with_tile(op, geometry, tile, parts, int64=parts == 3, one_tap=not few)
        actual = in_parts(op, in_format(args, format), geometry, plan)
        check_exact(op, args, geometry, actual)
        if not geometry.per_sample:
            assert actual.is_contiguous(memory_format=FORMATS[format])


@pytest.mark.parametrize(
    ("op", "boxes", "name", "geometry"),
    [pytest.param(*case, id="-".join(case[:3])) for case in BOX_CASES],
)
def test_parts_are_right_through_descriptors(kernel_backend, op, boxes, name, geometry):
    if kernel_backend.device == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this GPU has no such descriptors")
    tile = TmaTile(1, 4, 8, 32, 16, 4, 2) if boxes == "NHWC" else TmaTile(1, 1, 16, 32, 16, 4, 2)
    args = operands(op, *tensors(geometry, torch.float16, kernel_backend.device, whole_numbers))
    problem = Problem(
        op.removesuffix("_bias"), geometry, torch.float16, layout=boxed(boxes), device=H200
    )
    assert is_legal(problem, tile)
    plan = with_tile(op, geometry, tile, 3, layout=boxed(boxes), int64=name == "leftovers")
    check_exact(op, args, geometry, in_parts(op, in_format(args, boxes), geometry, plan))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad"])
def test_parts_of_float32(kernel_backend, op, precision):
    """The bound of an unsplit sum holds."""
    geometry = GEOMETRIES["leftovers"]
    args = operands(op, *tensors(geometry, torch.float32, kernel_backend.device))
    tile = GEMM_TILES[precision][-1]
    plan = with_tile(op, geometry, tile, 4, precision)
    actual = in_parts(op, args, geometry, plan)
    check(op, args, geometry, actual=actual, precision=precision)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_the_epilogue_follows_the_last_part(kernel_backend, activation, format):
    """Sums of whole numbers are exact, so the result has the same bits as without parts."""
    geometry = geometry_of((2, 40, 3, 5), (5, 40, 1, 1))
    x, weight, bias, dy = tensors(geometry, torch.float16, kernel_backend.device, whole_numbers)
    x, residual = in_format([x / 8, torch.randn_like(dy)], format)
    plans = [with_tile("fprop", geometry, SMALL, parts) for parts in (1, 3)]
    for bias_given, added in (
        (bias, residual),
        (None, residual.contiguous()),
        (bias[:1].expand(geometry.K), residual[:1].expand(residual.shape)),
    ):
        options = {"activation": activation, "residual": added}
        args = x, weight, bias_given
        whole = launched("fprop", args, geometry, plans[0], **options)
        parts = in_parts("fprop", args, geometry, plans[1], **options)
        assert torch.equal(parts, whole)


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("layout", [Layout(), boxed("NHWC")], ids=FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_few_programs_with_long_sums_are_split_on_a_large_device(op, layout, dtype):
    for size, channels in ((7, 512), (14, 256), (16, 1280)):
        layer = geometry_of((1, channels, size, size), (channels, channels, 3, 3), padding=SAME)
        plan = planned(op, layer, dtype, layout, H200, "tf32")
        assert plan.splits > 1
        assert plan.grid > H200.multiprocessors // 2
        problem = Problem(op, layer, dtype, "tf32", layout, H200)
        assert 0 < partial_bytes(plan, problem) <= MAX_WORKSPACE


def test_many_programs_or_short_sums_are_not_split():
    for layer in (
        geometry_of((64, 256, 56, 56), (256, 256, 3, 3), padding=SAME),
        geometry_of((1, 64, 14, 14), (64, 64, 1, 1)),
    ):
        for op in ("fprop", "dgrad"):
            assert planned(op, layer, torch.bfloat16, boxed("NHWC"), H200).splits == 1


def test_memory_of_parts_is_bounded():
    layer = geometry_of((2, 4096, 56, 56), (64, 4096, 3, 3), padding=SAME)
    problem = Problem("fprop", layer, torch.float32, "tf32", Layout(), H200)
    plans = plans_with_tile(problem, GEMM_TILES["tf32"][0])
    assert any(plan.splits > 1 for plan in plans)
    assert all(partial_bytes(plan, problem) <= MAX_WORKSPACE for plan in plans)
    dense = geometry_of((512, 512, 56, 56), (512, 512, 3, 3), padding=SAME)  # 3.3 GB of results
    problem = Problem("fprop", dense, torch.float32, "tf32", Layout(int64=True), H200)
    assert [p.splits for p in plans_with_tile(problem, GEMM_TILES["tf32"][0])] == [1]


def test_parts_and_their_memory_are_explained():
    x = torch.empty(1, 512, 7, 7, device="meta")
    weight = torch.empty(512, 512, 3, 3, device="meta")
    explanation = tricorr.explain(x, weight, padding=1, precision="tf32", device="h200")
    told = explanation.passes["fprop"]
    assert told.plan.splits > 1
    assert told.workspace_bytes == told.plan.splits * 512 * 7 * 7 * 4
    line = str(explanation).splitlines()[2]
    assert f"{told.plan.splits} splits of {told.plan.split_strips} strips" in line
    assert "B of partial sums" in line
