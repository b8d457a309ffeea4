"""Kernels that load through tensor descriptors: every kind of stride, box and channel block."""

from dataclasses import replace

import pytest
import torch
from cases import FORMATS, SAME, in_format, tensors
from closeness import check, operands, truth
from plans import H200, OPS, boxed, launched, planned, with_tile

from tricorr.ops import geometry_of
from tricorr.ops.launch.layout import boxes_of, layout_of
from tricorr.ops.plan import tma
from tricorr.ops.plan.boxes import box_of, covered, gradient_box
from tricorr.ops.plan.choose import plan_with_tile
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.times import cheapest
from tricorr.ops.plan.tma import TmaTile, channel_block, is_legal, most_taps, phases_with_taps
from tricorr.ops.plan.tma import tiles as tma_tiles


def _case(x, k, window, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1, **more):
    return geometry_of(x, (k, x[1] // groups, *window), stride, padding, dilation, groups, **more)


PIXELS = boxed("NHWC")
#: Several boxes along every axis; the last is partly filled.
GEOMETRIES = {
    "leftovers": _case((3, 32, 9, 5), 48, (3, 3), padding=SAME),
    "pointwise_overhanging_channels": _case((2, 24, 5, 6), 40, (1, 1)),
    "asymmetric_padding": _case((1, 16, 6, 9), 16, (2, 3), padding=((0, 3), (2, 1))),
    "negative_padding": _case((1, 16, 8, 7), 16, (3, 2), padding=((-1, 2), (1, -2))),
    "dilated": _case((1, 16, 9, 8), 16, (3, 2), padding=SAME, dilation=(2, 3)),
    "flipped": _case((2, 16, 5, 6), 32, (2, 3), padding=((0, 1), (2, 0)), flip=True),
    "groups": _case((2, 32, 5, 4), 64, (2, 2), padding=SAME, groups=2),
    "stride_2": _case((2, 16, 9, 8), 16, (3, 3), (2, 2), SAME),
    "stride_2_groups_flipped": _case((1, 32, 9, 8), 96, (3, 2), (2, 2), SAME, groups=2, flip=True),
    "stride_2_pixels_left_over": _case((1, 16, 8, 9), 16, (2, 2), (2, 2)),
    "one_axis_strided": _case((1, 16, 9, 8), 16, (3, 3), (1, 3), SAME),
    "phases_without_taps": _case((2, 16, 9, 10), 32, (1, 1), (3, 2)),
    "stride_gt_window_padded": _case((1, 16, 10, 11), 16, (1, 2), (4, 3), ((1, 0), (2, 1))),
    "dilation_shares_a_phase": _case((1, 16, 12, 11), 16, (3, 2), (2, 2), SAME, (2, 4)),
    "dilation_and_stride_prime": _case((1, 16, 13, 12), 16, (3, 2), (2, 2), SAME, (3, 1)),
    "one_output": _case((3, 16, 4, 3), 16, (4, 3), (2, 2)),
}
#: Only for the input gradient: the forward kernel has descriptors for four phases.
NINE_PHASES = {"stride_3": _case((1, 16, 8, 7), 16, (4, 3), (3, 3), SAME)}
TILES = [TmaTile(1, 8, 4, 32, 16, 4, 2), TmaTile(2, 4, 8, 16, 16, 4, 2)]
CASES = [
    pytest.param(op, geometry, turn % 2, id=f"{op}-{name}")
    for op in ("fprop_bias", "dgrad")
    for turn, (name, geometry) in enumerate(
        (GEOMETRIES | (NINE_PHASES if op == "dgrad" else {})).items()
    )
]


def forced(
    op, geometry, tile, device, dtype=torch.float32, boxes="NHWC", as_rows=False, splits=1,
    **changes,
):  # fmt: skip
    """(result, plan, operands) with a legal tile; the result is right and in the format."""
    precision = "tf32" if dtype == torch.float32 else "ieee"
    args = in_format(operands(op, *tensors(geometry, dtype, device)), boxes)
    read = args[:2] if op == "wgrad" else args[:1]
    assert as_rows or all(boxes_of(image) == boxes for image in read)
    layout = boxed(boxes, as_rows)
    problem = Problem(op.removesuffix("_bias"), geometry, dtype, precision, layout, H200)
    assert is_legal(problem, tile)
    plan = with_tile(op, geometry, tile, splits, precision, layout, **changes)
    actual = launched(op, args, geometry, plan)
    check(op, args, geometry, actual=actual, precision=precision)
    if op != "wgrad":
        assert actual.is_contiguous(memory_format=FORMATS[boxes])
    return actual, plan, args


@pytest.mark.parametrize(("op", "geometry", "turn"), CASES)
def test_every_window_and_step(kernel_backend, op, geometry, turn):
    forced(op, geometry, TILES[turn], kernel_backend.device, int64=turn == 1)


@pytest.mark.parametrize("name", ["leftovers", "groups"])
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad"])
def test_few_programs_compute_all_boxes(kernel_backend, op, name):
    geometry, tile = GEOMETRIES[name], TILES[1]
    one_each, plan, args = forced(op, geometry, tile, kernel_backend.device)
    assert plan.grid > 3
    few = with_tile(plan.op, geometry, replace(tile, persistent=3), precision="tf32")
    assert few.grid == 3
    assert torch.equal(launched(op, args, geometry, few), one_each)


def _plans(problem):
    """The plans of all tiles of this family."""
    return [plan_with_tile(problem, tile) for tile in tma.tiles(problem)]


@pytest.mark.parametrize("device", [H200, DEVICES["b200"]], ids=lambda d: d.arch)
def test_more_boxes_than_multiprocessors_take_persistent_programs(device):
    def plans(n, window, stride, layout=PIXELS):
        geometry = _case((n, 256, 56, 56), 256, window, stride, padding=SAME)
        problems = [Problem(op, geometry, torch.bfloat16, "ieee", layout, device) for op in OPS]
        return [cheapest(_plans(problem), problem) for problem in problems]

    fprop, dgrad, wgrad = plans(32, (3, 3), (1, 1))
    assert fprop.grid == dgrad.grid == device.multiprocessors
    for one_each in ({"epilogue": 10}, {"int64": True}):
        assert plans(32, (3, 3), (1, 1), replace(PIXELS, **one_each))[0].tile.persistent == 0
    assert wgrad.tile.persistent == 0
    assert all(getattr(plan.tile, "persistent", 0) == 0 for plan in plans(1, (3, 3), (1, 1)))
    assert all(plan.tile.persistent == 0 for plan in plans(32, (3, 3), (2, 2)))
    dealt = [getattr(plan.tile, "persistent", 0) > 0 for plan in plans(32, (1, 1), (2, 2))]
    assert dealt == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad"])
def test_sixteen_bits_and_any_weight(kernel_backend, op, dtype):
    geometry = GEOMETRIES["stride_2_groups_flipped"]
    actual, plan, args = forced(op, geometry, TILES[0], kernel_backend.device, dtype)
    copied = [args[0], args[1].contiguous(), *args[2:]]  # a weight that no descriptor can describe
    assert torch.equal(launched(op, copied, geometry, plan), actual)


@pytest.mark.parametrize(("dtype", "rounds"), [(torch.float32, True), (torch.float16, False)])
def test_descriptors_round_tf32_operands(dtype, rounds):
    pytest.importorskip("triton", "3.7", reason="descriptors round from Triton 3.7 on")
    from tricorr.kernels import TensorDescriptor
    from tricorr.ops.launch import entry as launch
    from tricorr.ops.launch.kernel_arguments import Tensors

    geometry = GEOMETRIES["leftovers"]
    x, weight, y = in_format(
        torch.empty(shape, dtype=dtype, device="meta")
        for shape in (geometry.x_shape, geometry.weight_shape, geometry.y_shape)
    )
    precision = "tf32" if rounds else "ieee"
    plans = [with_tile(op, geometry, TILES[0], precision=precision) for op in ("fprop", "dgrad")]
    calls = [
        launch.fprop_call(Tensors(x, weight, y), geometry, plans[0]),
        launch.dgrad_call(Tensors(x, weight, y), geometry, plans[1]),
    ]
    for call in calls:
        arguments = call.arguments.values()
        found = [d.round_f32_to_tf32 for d in arguments if isinstance(d, TensorDescriptor)]
        assert found == [rounds] * 2


@pytest.mark.parametrize(
    ("op", "boxes", "tile"),
    [
        ("fprop_bias", "NHWC", TmaTile(1, 4, 16, 64, 32, 4, 3)),
        ("dgrad", "NHWC", TmaTile(1, 4, 16, 64, 32, 4, 3)),
        ("wgrad", "NCHW", TmaTile(1, 1, 16, 64, 64, 4, 3)),
    ],
)
def test_rounded_operands_leave_no_bias(op, boxes, tile):
    """Truncated operands would make sums of positive products 7e-4 too small."""
    pytest.importorskip("triton", "3.7", reason="descriptors round from Triton 3.7 on")
    from simulator.driver import simulated

    window, pad = ((3, 1), _ROWS) if boxes == "NCHW" else ((3, 3), SAME)
    geometry = _case((2, 64, 4, 16), 64, window, padding=pad)
    positive = [t.abs() + 0.5 for t in tensors(geometry, torch.float32)]
    args = in_format(operands(op, *positive), boxes)
    plan = with_tile(op, geometry, tile, precision="tf32")
    with simulated():
        actual = launched(op, args, geometry, plan).double().numpy()
    assert abs((actual / truth(op, args, geometry) - 1).mean()) < 1e-5


#: Padding of windows of one column: rows of x and dy stay multiples of 16 bytes.
_ROWS = ((1, 1), (0, 0))
PLANES = {
    "leftovers": _case((2, 32, 5, 24), 48, (3, 1), padding=_ROWS),
    "asymmetric_padding": _case((1, 16, 6, 16), 16, (2, 1), padding=((0, 3), (0, 8))),
    "negative_padding": _case((1, 16, 8, 24), 16, (3, 1), padding=((-1, 2), (0, -8))),
    "dilated": _case((1, 16, 9, 16), 16, (3, 1), padding=_ROWS, dilation=(2, 3)),
    "flipped": _case((2, 16, 5, 8), 32, (2, 1), padding=((0, 1), (0, 0)), flip=True),
    "groups": _case((2, 32, 5, 8), 64, (2, 1), padding=_ROWS, groups=2),
    "rows_strided": _case((2, 16, 9, 8), 16, (3, 1), (2, 1), _ROWS),
    "rows_strided_flipped": _case((1, 32, 9, 8), 96, (3, 1), (2, 1), _ROWS, groups=2, flip=True),
    "rows_of_no_phase": _case((2, 16, 9, 8), 32, (1, 1), (3, 1), _ROWS),
    "pointwise": _case((2, 24, 3, 8), 40, (1, 1)),
}
PLANE_CASES = {
    "fprop_bias": PLANES,
    "dgrad": PLANES
    | {
        "both_strided": _case((2, 16, 7, 15), 16, (3, 1), (2, 2), _ROWS),
        "columns_without_taps": _case((1, 16, 3, 22), 16, (2, 1), (1, 3)),
    },
    "wgrad": {name: g for name, g in PLANES.items() if min(g.padding[1]) >= 0},
}


@pytest.mark.parametrize(
    ("op", "name", "turn"),
    [(op, name, turn) for op, cases in PLANE_CASES.items() for turn, name in enumerate(cases)],
)
def test_planes_need_no_transposed_copy(kernel_backend, op, name, turn):
    geometry = PLANE_CASES[op][name]
    dtype = [torch.float16, torch.bfloat16][turn % 2]
    if op == "wgrad":
        tile = TmaTile(1, 1, [16, 32][turn % 2], 16, 32, 4, 2)
    else:
        block = channel_block(Problem(op.removesuffix("_bias"), geometry, dtype))
        tile = TmaTile(1, 1, [16, 32][turn % 2], 32, min(block, 16), 4, 2)
    forced(op, geometry, tile, kernel_backend.device, dtype, "NCHW", int64=turn % 3 == 0)


def test_planes_give_a_weight_gradient_in_tf32(kernel_backend):
    tile = TmaTile(1, 1, 16, 32, 16, 4, 2)
    geometry = PLANES["asymmetric_padding"]
    forced("wgrad", geometry, tile, kernel_backend.device, boxes="NCHW")


#: Rows are not multiples of 16 bytes, but whole planes are.
POINTS = {
    "leftovers": _case((3, 24, 4, 6), 40, (1, 1)),
    "groups_flipped": _case((2, 32, 2, 12), 64, (1, 1), groups=2, flip=True),
}


@pytest.mark.parametrize("boxes", FORMATS)
@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
def test_a_window_of_one_pixel_reads_planes_as_rows(kernel_backend, op, name, boxes):
    tile = TmaTile(1, 1, 16, 16, 32 if op == "wgrad" else 16, 4, 2)
    forced(
        op, POINTS[name], tile, kernel_backend.device, torch.float16, boxes, as_rows=True, splits=2
    )


@pytest.mark.parametrize("boxes", FORMATS)
def test_the_planner_reads_planes_as_rows_where_the_tensors_allow_it(boxes):
    geometry = _case((128, 256, 28, 28), 256, (1, 1))
    x, y = (torch.empty(128, 256, 28, 28, dtype=torch.bfloat16, device="meta") for _ in range(2))
    weight = torch.empty(256, 256, 1, 1, dtype=torch.bfloat16, device="meta")
    if boxes == "NHWC":
        x, y = in_format([x, y])
    assert (boxes_of(x) == "NHWC") == (boxes == "NHWC"), "28 columns are 56 bytes"
    layout = layout_of(geometry, x, weight, y)
    for op in OPS:
        problem = Problem(op, geometry, torch.bfloat16, layout=layout, device=H200)
        plan = cheapest([plan_with_tile(problem, tile) for tile in tma_tiles(problem)], problem)
        assert (plan.family, plan.as_rows) == ("tma", True)
        assert (plan.tile.BLOCK_P, plan.grid > 0) == (1, True)
    cropped = torch.empty(128, 256, 30, 30, dtype=torch.bfloat16, device="meta")[..., 1:-1, 1:-1]
    for layout in (
        layout_of(geometry, cropped, weight, y),
        layout_of(geometry, x, weight, y, cropped),
    ):
        assert not layout.as_rows
        assert not planned("fprop", geometry, torch.bfloat16, layout, H200).as_rows


def test_boxes_of_one_pixel_windows_may_overhang_in_a_weight_gradient(kernel_backend):
    """Outside the image x and dy are both zero, so a box need not divide planes of 7 x 5."""
    geometry, tile = _case((3, 16, 7, 5), 24, (1, 1)), TmaTile(1, 4, 4, 16, 32, 4, 2)
    forced("wgrad", geometry, tile, kernel_backend.device, torch.float16, splits=3)


def test_heavy_epilogues_take_smaller_tiles():
    geometry = _case((64, 320, 64, 64), 256, (3, 3), padding=SAME)
    x, weight, y = (
        torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for shape in (geometry.x_shape, geometry.weight_shape, geometry.y_shape)
    )
    x, y = in_format([x, y])
    sums = {}
    for name in ("none", "relu", "relu6", "gelu", "silu", "residual"):
        added = (y, "none") if name == "residual" else (None, name)
        layout = replace(layout_of(geometry, x, weight, y, *added), gluon=False)
        tiles = tma.tiles(Problem("fprop", geometry, torch.bfloat16, "ieee", layout, H200))
        sums[name] = max(tile.BLOCK_N * tile.pixels for tile in tiles)
        dealt = {tile.persistent > 0 for tile in tiles}
        assert dealt == {name in ("none", "relu", "relu6")}
    assert sums["none"] == sums["relu"] == sums["relu6"] == 128 * 256
    assert max(sums["gelu"], sums["silu"], sums["residual"]) < 128 * 256


@pytest.mark.parametrize("boxes", FORMATS)
def test_a_residual_is_added_in_both_formats(kernel_backend, boxes):
    from tricorr.ops.launch import entry as launch

    geometry = POINTS["leftovers"]
    x, weight, bias, dy = tensors(geometry, torch.float16, kernel_backend.device)
    residual = torch.randn_like(dy)
    x, residual = in_format([x, residual], boxes)
    tile = TmaTile(1, 1, 16, 16, 16, 4, 2)
    plan = with_tile("fprop", geometry, tile, layout=boxed(boxes, as_rows=True))
    linear = launch.fprop(x.float(), weight.float(), bias.float(), geometry)
    for added in (residual, residual.contiguous(), *in_format([residual])):
        y = launched("fprop", (x, weight, bias), geometry, plan, residual=added)
        assert torch.allclose(y.float(), linear + residual.float(), rtol=1e-3, atol=1e-2)


#: Boxes that divide the planes of y, may overhang the last image, and the last three planes too.
GRADIENTS = {
    "leftovers": (_case((3, 24, 6, 8), 40, (3, 3), padding=SAME), (2, 2, 4)),
    "one_pixel_boxes": (_case((9, 16, 3, 5), 16, (2, 1), padding=((1, 0), (0, 0))), (16, 1, 1)),
    "dilated_flipped": (
        _case((2, 16, 8, 6), 16, (2, 3), padding=SAME, dilation=(3, 2), flip=True),
        (4, 1, 4),
    ),
    "groups": (_case((2, 48, 4, 4), 32, (2, 2), padding=((0, 1), (1, 0)), groups=2), (1, 4, 4)),
    "strided": (_case((3, 16, 8, 9), 16, (3, 3), (2, 2), ((1, 1), (1, 0))), (2, 2, 4)),
    "phases_without_taps": (_case((2, 16, 8, 12), 16, (1, 1), (2, 3)), (1, 4, 4)),
    "unread_pixels": (_case((2, 16, 7, 7), 16, (2, 2), (3, 3)), (4, 2, 2)),
    "run_of_images": (_case((19, 16, 5, 4), 24, (2, 3), (2, 1), SAME), (16, 1, 1)),
    "run_of_rows": (_case((2, 24, 17, 5), 16, (2, 3), (1, 2), ((0, 0), (1, 1))), (1, 16, 1)),
    "odd_planes": (_case((2, 24, 5, 7), 16, (3, 1), padding=((1, 1), (0, 0))), (1, 4, 4)),
    "odd_strided": (_case((3, 16, 9, 10), 16, (3, 3), (2, 2), ((1, 1), (1, 0))), (2, 2, 4)),
    "overhanging_run": (_case((2, 16, 3, 13), 16, (2, 5), (1, 2), ((0, 0), (2, 2))), (1, 1, 16)),
}


@pytest.mark.parametrize("splits", [1, 2, 100])
@pytest.mark.parametrize("name", GRADIENTS)
def test_weight_gradient(kernel_backend, name, splits):
    geometry, box = GRADIENTS[name]
    dtype = [torch.float16, torch.bfloat16][splits % 2]
    taps = min({1: 3, 2: 1, 100: 2}[splits], most_taps(geometry))  # also one that leaves taps over
    tile, wide = TmaTile(*box, 16, 32, 4, 2, taps), splits == 2
    forced("wgrad", geometry, tile, kernel_backend.device, dtype, splits=splits, int64=wide)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("name", ["odd_planes", "odd_strided", "overhanging_run"])
def test_infinities_beside_boxes_that_overhang(kernel_backend, name):
    """Beside a plane of dy, zeros must not be multiplied with infinities of x, nor the reverse."""
    geometry, box = GRADIENTS[name]
    plan = with_tile("wgrad", geometry, TmaTile(*box, 16, 16, 4, 2))
    x, _, _, dy = tensors(geometry, torch.float16, kernel_backend.device)
    for image in (x, dy):
        clean = image.clone()
        image[0, 1, 0, 0], image[0, 2, -1, -1], image[1, 3, -1, 0] = torch.inf, torch.nan, torch.inf
        dw = launched("wgrad", in_format([x, dy]), geometry, plan)
        expected = torch.from_numpy(truth("wgrad", [x, dy], geometry))
        assert torch.equal(dw.isfinite().cpu(), expected.isfinite())
        assert 0 < dw.isfinite().sum() < dw.numel()
        image.copy_(clean)


def test_pixels_that_no_window_reads_do_not_reach_the_result(kernel_backend):
    geometry, box = GRADIENTS["unread_pixels"]
    x, _, _, dy = tensors(geometry, torch.float16, kernel_backend.device)
    x[:, :, 2::3], x[:, :, -1] = float("nan"), float("nan")
    plan = with_tile("wgrad", geometry, TmaTile(*box, 16, 16, 4, 2))
    assert launched("wgrad", in_format([x, dy]), geometry, plan).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_of_filters_may_overhang_although_taps_follow(kernel_backend, dtype):
    """The weight is multiplied crosswise: its rows are filters, and zeros follow the last one."""
    geometry = _case((2, 16, 5, 6), 24, (2, 3), padding=((1, 0), (1, 1)))
    assert channel_block(Problem("dgrad", geometry, dtype)) == 32
    forced("dgrad", geometry, TmaTile(1, 4, 4, 16, 32, 4, 2), kernel_backend.device, dtype)


@pytest.mark.parametrize("op", ["fprop_bias", "dgrad"])
def test_a_sum_of_channels_may_overhang_with_a_single_tap(kernel_backend, op):
    geometry = GEOMETRIES["pointwise_overhanging_channels"]
    assert channel_block(Problem(op.removesuffix("_bias"), geometry)) == 32
    tile = TmaTile(1, 4, 4, 16, 32, 4, 2)
    forced(op, geometry, tile, kernel_backend.device)


def test_activations_come_before_the_rounding(kernel_backend):
    geometry = GEOMETRIES["pointwise_overhanging_channels"]
    args = in_format(tensors(geometry, torch.float16, kernel_backend.device)[:3])
    plan = with_tile("fprop", geometry, TmaTile(1, 4, 8, 32, 32, 4, 2))
    linear = launched("fprop", args, geometry, plan)
    actual = launched("fprop", args, geometry, plan, activation="relu")
    assert torch.equal(actual, linear.relu())


def test_the_planner_takes_descriptors_where_it_can():
    geometry = _case((32, 256, 14, 14), 256, (3, 3), padding=SAME)
    layout = PIXELS
    for op in OPS:
        for name, family in {
            "h200": "tma",
            "b200": "tma",
            "a100": "gemm",
            "mi300x": "gemm",
        }.items():
            device = replace(DEVICES[name], measured=None)
            plan = planned(op, geometry, torch.bfloat16, layout, device)
            assert plan.family == family
            assert plan.kernel == f"{plan.op}_{family}"
        pointers = Layout(channels_last=True)
        plan = planned(op, geometry, torch.bfloat16, pointers, H200)
        assert plan.family == "gemm" or plan.tile.copied
        for precision in ("ieee", "tf32x3"):
            plan = planned(op, geometry, torch.float32, layout, H200, precision)
            assert plan.family == "gemm"


def test_boxes_start_at_multiples_of_16_bytes_of_a_row():
    def legal(boxes, window=(3, 1), padding=_ROWS, stride=(1, 1), dtype=torch.bfloat16, groups=1):
        geometry = _case((32, 64, 64, 64), 64, window, stride, padding, groups=groups)
        problems = (Problem(op, geometry, dtype, "tf32", boxed(boxes), H200) for op in OPS)
        return [is_legal(problem) for problem in problems]

    assert legal("NCHW") == legal("NCHW", (1, 1), ((0, 0), (0, 0))) == [True] * 3
    assert legal("NCHW", stride=(2, 1)) == [True] * 3
    assert legal("NCHW", stride=(1, 2)) == [False, True, False], "no descriptor steps over pixels"
    assert legal("NCHW", stride=(1, 64)) == [True, True, False], "columns are cut off"
    assert legal("NCHW", (1, 3)) == legal("NCHW", padding=SAME) == [False] * 3
    assert legal("NCHW", dtype=torch.float32) == [False, False, True]
    assert legal("NHWC", (3, 3), SAME, groups=2) == [True] * 3
    geometry = _case((32, 60, 16, 16), 60, (3, 3), padding=SAME, groups=3)
    for op in OPS:  # the second group starts at channel 20
        assert not is_legal(Problem(op, geometry, torch.bfloat16, "ieee", PIXELS, H200))


def test_a_nan_stays_in_its_channel(kernel_backend):
    """Boxes of planes overhang rows: taps multiply pixels there by 0, and NaN stays NaN."""
    geometry = PLANES["leftovers"]
    x, _, _, dy = tensors(geometry, torch.float16, kernel_backend.device)
    x[0, 3, :, -1] = float("nan")
    plan = with_tile("wgrad", geometry, TmaTile(1, 1, 16, 16, 32, 4, 2))
    dw = launched("wgrad", (x, dy), geometry, plan)
    assert dw[:, 3].isnan().all()
    assert dw[:, :3].isfinite().all()
    assert dw[:, 4:].isfinite().all()


@pytest.mark.parametrize(
    "changes",
    {
        "few_channels": {"C": 8},
        "groups_follow_what_overhangs": {"C": 80, "groups": 2},
        "nine_phases": {"given_stride": (3, 3)},
        "no_pixels_in_a_phase": {"H": 1, "given_stride": (2, 1), "padding": ((3, 3), (1, 1))},
        "coordinates_past_32_bits": {
            "padding": ((2**29, 2**29), (1, 1)),
            "given_stride": (2**28, 1),
        },
        "per_sample": {"per_sample": True},
        "mode": {"padding_mode": "reflect"},
    }.items(),
    ids=lambda item: item[0],
)
def test_tma_tiles_are_not_legal_for_these_calls(changes):
    geometry = replace(_case((2, 64, 8, 8), 64, (3, 3), padding=SAME), **changes[1])
    assert geometry.P > 0
    assert not is_legal(Problem("fprop", geometry, torch.bfloat16, "ieee", PIXELS, H200))


def test_a_tile_of_another_problem_is_refused():
    geometry = _case((2, 96, 9, 8), 128, (3, 3), padding=SAME, groups=2)

    def legal(op, tile):
        return is_legal(Problem(op, geometry, torch.bfloat16, "ieee", PIXELS, H200), tile)

    assert legal("fprop", TmaTile(2, 8, 8, 64, 16, 4, 4))
    assert not legal("fprop", TmaTile(2, 8, 8, 64, 32, 4, 4)), "32 of 48 channels, twice"
    assert legal("dgrad", TmaTile(2, 8, 8, 64, 64, 4, 4))
    assert legal("wgrad", TmaTile(8, 1, 8, 64, 64, 4, 4))
    assert legal("wgrad", TmaTile(1, 8, 16, 64, 64, 4, 4)), "each tap has the overhang on its side"
    assert not legal("wgrad", TmaTile(1, 1, 16, 64, 64, 4, 4, 3)), "three taps have no common side"


def test_descriptors_need_steps_of_sixteen_bytes():
    geometry = _case((2, 64, 8, 8), 64, (3, 3), padding=SAME)
    x, weight, _, y = tensors(geometry, torch.float16)

    def kinds(x, y=y):
        layout = layout_of(geometry, x, weight, y)
        return layout.x_boxes, layout.y_boxes

    assert kinds(x) == ("NCHW", "NCHW")
    last, y = in_format([x, y])
    assert kinds(last, y) == ("NHWC", "NHWC")
    assert kinds(x, y) == ("NCHW", "NHWC")
    assert kinds(x.byte(), y) == ("", "")
    wide = torch.randn(2, 8, 8, 68).half()
    flat = torch.randn(2 * 64 * 8 * 8 + 1).half()
    shifted = flat[1:].view(2, 8, 8, 64)
    for view in (
        wide.permute(0, 3, 1, 2)[:, :64],
        shifted.permute(0, 3, 1, 2),
        shifted,
        wide[..., :64],
        last[:1].expand(2, -1, -1, -1),
        x[:, :1].expand(-1, 64, -1, -1),
    ):
        assert boxes_of(view) == ""  # fmt: skip
    assert boxes_of(x[:, :, :, ::2]) == "", "columns apart"
    assert boxes_of(x[:, 2:9, 1::2]) == "NCHW", "whole rows, whichever"
    assert boxes_of(x[:1, :, :1].expand(3, -1, -1, -1)) == ""
    assert boxes_of(torch.randn(4, 8, 1, 1)) == "NHWC", "planes of one pixel are pixels"


def test_boxes_of_a_weight_gradient_divide_the_planes():
    expected = {
        (16, 56, 56): (1, 8, 8),
        (16, 14, 14): (16, 2, 2),
        (32, 14, 14): (32, 1, 1),
        (60, 7, 7): (64, 1, 1),
        (40, 14, 14): (16, 2, 2),
        (3, 12, 5): (4, 4, 1),
        (2, 64, 64): (1, 1, 64),
        (16, 30, 96): (1, 1, 32),
    }
    assert {planes: gradient_box(planes, 64) for planes in expected} == expected


def test_a_smaller_tile_is_taken_where_the_device_has_less_to_do():
    layout = PIXELS
    many, few = (
        _case((n, 128, size, size), 256, (3, 3), padding=SAME) for n, size in ((64, 64), (2, 32))
    )
    large, small = (planned("fprop", g, torch.bfloat16, layout, H200) for g in (many, few))
    assert (large.tile.BLOCK_N, large.tile.pixels, large.splits) == (128, 256, 1)
    assert small.tile.BLOCK_N * small.tile.pixels < 128 * 256
    assert small.grid * small.splits >= 64


@pytest.mark.parametrize("pixels", [128, 256])
@pytest.mark.parametrize(
    ("planes", "most"), [((32, 56, 56), 1.0), ((32, 14, 14), 1.15), ((32, 7, 7), 1.15)]
)
def test_boxes_of_small_planes_hold_several_images(planes, most, pixels):
    box = box_of(planes, pixels)
    assert box[0] * box[1] * box[2] == pixels
    assert covered(planes, box) <= most * 32 * planes[1] * planes[2]


def test_phases_with_taps_are_those_that_a_tap_reads():
    for geometry in GEOMETRIES.values():
        g = geometry
        stride, dilation = g.stride, g.dilation
        read = {
            ((r * dilation[0] - g.padding[0][0]) % stride[0],
             (s * dilation[1] - g.padding[1][0]) % stride[1])
            for r in range(g.R) for s in range(g.S)
        }  # fmt: skip
        assert set(phases_with_taps(g)) == read
