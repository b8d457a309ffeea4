"""Plans whose kernels run on copies of the images: any family, every operator, the exact result."""

from dataclasses import replace

import pytest
import torch
from cases import FORMATS, SAME, in_format, tensors, whole_numbers
from closeness import check, check_exact, exact, operands
from plans import H200, PLAIN, launched, plan_on, problem_of

from tricorr import explain
from tricorr.ops import geometry_of
from tricorr.ops.plan import banded, choose
from tricorr.ops.plan.banded import BandedTile
from tricorr.ops.plan.banded_gradient import BandedGradTile
from tricorr.ops.plan.columns import ColumnsTile
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.exchange.format_copies import ChannelsLast, Planes, Sampled
from tricorr.ops.plan.exchange.offered import exchanges
from tricorr.ops.plan.exchange.windows import Overlapping
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.spread import SpreadTile
from tricorr.ops.plan.times import EXCHANGE_SECONDS, seconds_of, times_of
from tricorr.ops.plan.tma import TmaTile

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
GEOMETRIES = {
    "three_apart": geometry_of((2, 20, 7, 8), (24, 20, 3, 3), (3, 3), SAME),
    "patches": geometry_of((2, 16, 8, 6), (24, 16, 4, 2), (4, 2)),
    "odd_channels": geometry_of((1, 19, 5, 6), (21, 19, 2, 3), (2, 1), ((1, 0), (1, 2)), flip=True),
    "few_channels": geometry_of((2, 3, 6, 8), (5, 3, 3, 3), padding=SAME),
    "groups": geometry_of((2, 32, 5, 4), (34, 16, 2, 2), (2, 2), groups=2),
    "unstrided": geometry_of((2, 18, 5, 7), (17, 18, 3, 2), padding=((1, 1), (0, 1))),
    "reflected": geometry_of((1, 16, 6, 5), (16, 16, 3, 3), (2, 2), SAME, padding_mode="reflect"),
    "points": geometry_of((2, 18, 7, 9), (19, 18, 1, 1), (2, 3)),
    "points_whole": geometry_of((1, 16, 8, 8), (16, 16, 1, 1), (2, 2)),
    "points_one_axis": geometry_of((3, 16, 5, 8), (32, 16, 1, 1), (1, 2)),
    "points_of_one_row": geometry_of((3, 16, 5, 8), (32, 16, 1, 1), (2**31, 2)),
}
READS, BOTH = ChannelsLast(), ChannelsLast(result=True)
READS_PLANES, PLANES = Planes(), Planes(result=True)
OF_SAMPLES = (Sampled(), Sampled(True), Sampled(True, True))


def _cases():
    """float16 with one part and TF32 with two in turns; 1x1 windows read copies of their pixels."""
    turn = 0
    for i, name in enumerate(GEOMETRIES):
        for j, op in enumerate(("fprop_bias", "dgrad", "wgrad")):
            found = [READS if op == "wgrad" else (READS, BOTH)[(i + j) % 2]]
            if name.startswith("points"):
                found = OF_SAMPLES[: 2 if op == "wgrad" else 3]
            for exchange in found:
                turn += 1
                yield name, op, exchange, *((HALF, 1), (FLOAT, 2))[turn % 2]


@pytest.mark.parametrize(("name", "op", "exchange", "dtype", "splits"), list(_cases()), ids=str)
def test_every_operator(kernel_backend, name, op, exchange, dtype, splits):
    geometry = GEOMETRIES[name]
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device, make=whole_numbers))
    plan = plan_on(op, geometry, dtype, exchange, splits=splits)
    actual = launched(op, args, geometry, plan)
    check_exact(op, args, geometry, actual)
    assert actual.is_contiguous()


@pytest.mark.parametrize("op", ["fprop_bias", "dgrad"])
@pytest.mark.parametrize("dtype", [BRAIN, FLOAT], ids=str)
def test_boxes_of_copies(kernel_backend, op, dtype):
    """A kernel that loads the copies through tensor descriptors, with a split sum."""
    geometry = GEOMETRIES["unstrided"]
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device))
    plan = plan_on(op, geometry, dtype, BOTH, TmaTile(2, 2, 8, 16, 16, 4, 2), splits=2)
    actual = launched(op, args, geometry, plan)
    check(op, args, geometry, actual=actual, precision=plan.precision)


@pytest.mark.parametrize("exchange", [OF_SAMPLES[-1], BOTH], ids=str)
def test_pixels_that_no_window_reaches_have_the_bias(kernel_backend, exchange):
    geometry = GEOMETRIES["points"]
    made = tensors(geometry, FLOAT, kernel_backend.device, make=whole_numbers)
    dy, weight = operands("dgrad", *made)
    bias = torch.arange(geometry.C, device=dy.device, dtype=FLOAT)
    plan = plan_on("dgrad", geometry, FLOAT, exchange)
    actual = launched("dgrad", (dy, weight), geometry, plan, bias=bias)
    expected = exact("dgrad", (dy, weight), geometry)
    expected += bias.cpu().double()[:, None, None]
    assert torch.equal(actual.cpu().double(), expected)


_WIDE = geometry_of((2, 3, 7, 13), (3, 1, 5, 6), padding=((2, 2), (3, 4)), groups=3)
#: Rows of x, and of dy, are no whole pieces of 16 bytes.
IN_PLANES = {
    "wide": _WIDE,
    "flipped": replace(_WIDE, flip=True),
    "per_sample": replace(_WIDE, per_sample=True),
    "strided": replace(_WIDE, W=23, given_stride=(2, 2)),
    "one_column": replace(_WIDE, W=6, padding=((2, 2), (0, 0))),
    "reflected": replace(_WIDE, padding=((2, 2), (3, 2)), padding_mode="reflect"),
    "filters_of_colours": geometry_of((1, 3, 9, 14), (5, 3, 5, 5), padding=((2, 2), (2, 2))),
}
_PLANES_CASES = [
    (name, op, dtype)
    for i, name in enumerate(IN_PLANES)
    for j, op in enumerate(("fprop_bias", "dgrad", "wgrad"))
    for dtype in [(HALF, FLOAT)[(i + j) % 2]]
]


@pytest.mark.parametrize(("name", "op", "dtype"), _PLANES_CASES, ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "planes"])
def test_images_in_planes(kernel_backend, name, op, dtype, last):
    """Rows of the copies end with zeros; the result has the format of the images."""
    geometry, gradient = IN_PLANES[name], op == "wgrad"
    x, weight, bias, dy = tensors(geometry, dtype, kernel_backend.device, make=whole_numbers)
    form = "NHWC" if last else "NCHW"
    x, dy = in_format((x, dy), form)
    args = operands(op, x, weight, bias, dy)
    exchange = PLANES if last and not gradient else READS_PLANES
    tile = ColumnsTile(8, 8) if name == "strided" and op == "fprop_bias" else None
    problem = problem_of(op, geometry, dtype, layout=PLAIN)
    if banded.is_legal(problem):
        tile = BandedGradTile(8, 16, 16, 2, 4, 1) if gradient else BandedTile(16, 2, 8, 128, 4, 1)
    actual = launched(op, args, geometry, plan_on(op, geometry, dtype, exchange, tile))
    check_exact(op, args, geometry, actual)
    assert gradient or actual.is_contiguous(memory_format=FORMATS[form])


OVERLAPPING = Overlapping()
#: Margins on both sides, columns cut off, columns behind the last window, single channels.
STEMS = {
    "stem": geometry_of((2, 3, 9, 12), (20, 3, 7, 7), (2, 2), ((3, 3), (3, 3))),
    "cropped": geometry_of((1, 3, 9, 17), (16, 3, 3, 5), (2, 2), ((-1, 2), (-2, 1)), (2, 1)),
    "one_channel": geometry_of((2, 1, 6, 16), (17, 1, 2, 7), (1, 4)),
    "unstrided": geometry_of((1, 12, 5, 7), (7, 12, 3, 3), padding=SAME),
}


@pytest.mark.parametrize("name", STEMS)
def test_windows_as_pixels_that_overlap(kernel_backend, name):
    """Both formats, by a GEMM through pointers and through descriptors, or by patches."""
    geometry, turn = STEMS[name], list(STEMS).index(name)
    dtype, splits = ((HALF, 1), (FLOAT, 2))[turn % 2]
    x, *others = tensors(geometry, dtype, kernel_backend.device, make=whole_numbers)
    args = operands("fprop_bias", *in_format([x], ("NCHW", "NHWC")[turn // 2]), *others)
    boxes = TmaTile(1, 2, 8, 16, 16, 4, 2)
    patches = SpreadTile(1, 1, 8, 32, 16, 3, 1, 4, 2)
    for tile in (None, patches if name == "unstrided" else boxes):
        plan = plan_on("fprop_bias", geometry, dtype, OVERLAPPING, tile, splits)
        actual = launched("fprop_bias", args, geometry, plan)
        check_exact("fprop_bias", args, geometry, actual)


_NARROW = {
    "same": STEMS["unstrided"],
    "wide": geometry_of((2, 16, 6, 9), (3, 16, 2, 5), padding=((0, 1), (6, 1)), dilation=(2, 1)),
    "cropped": geometry_of((1, 17, 5, 11), (8, 17, 3, 4), padding=((1, 1), (-2, 1))),
    "one_column": geometry_of((1, 16, 3, 19), (5, 16, 2, 4), (1, 17)),
}


@pytest.mark.parametrize("name", _NARROW)
def test_gradients_in_pixels_of_dy_that_overlap(kernel_backend, name):
    """The window of dy is turned, and begins in columns that dy does not have."""
    geometry, turn = _NARROW[name], list(_NARROW).index(name)
    dtype, splits = ((HALF, 1), (FLOAT, 2))[turn % 2]
    *others, dy = tensors(geometry, dtype, kernel_backend.device, make=whole_numbers)
    args = operands("dgrad", *others, *in_format([dy], ("NCHW", "NHWC")[turn // 2]))
    boxes, patches = TmaTile(1, 2, 8, 16, 16, 4, 2), SpreadTile(1, 1, 8, 32, 16, 3, 1, 4, 2)
    for tile in (None, boxes if name == "wide" else patches):
        plan = plan_on("dgrad", geometry, dtype, OVERLAPPING, tile, splits)
        actual = launched("dgrad", args, geometry, plan)
        check_exact("dgrad", args, geometry, actual)


def test_a_stem_takes_windows_as_pixels():
    from tricorr.ops.launch.fprop_launch import fprop_call
    from tricorr.ops.launch.kernel_arguments import Tensors

    stem = geometry_of((32, 3, 224, 224), (64, 3, 7, 7), (2, 2), ((3, 3), (3, 3)))
    for last in (False, True):
        boxes = "NHWC" * last
        layout = Layout(last, y_boxes=boxes or "NCHW", repacks=True)
        problem = Problem("fprop", stem, BRAIN, layout=layout, device=DEVICES["h100"])
        plan = choose.plan(problem)
        assert (plan.exchange, plan.kernel) == (OVERLAPPING, "fprop_tma")
        # 4 channels, and 230 columns for windows of 8.
        assert OVERLAPPING.memory(problem) == 32 * 224 * 230 * 4 * 2
        assert OVERLAPPING.seen(problem).geometry.x_shape == (32, 32, 224, 112)
    x, weight, _, y = (t.to("meta") for t in tensors(stem, BRAIN))
    call = fprop_call(Tensors(x, weight, y), stem, plan)
    assert [one.kernel.__name__ for one in call.launches()] == ["copy_images", "fprop_tma"]
    for changes in (
        {"flip": True},
        {"given_dilation": (1, 2)},
        {"C": 17},
        {"given_stride": (2, 7)},
    ):
        other = replace(problem, geometry=replace(stem, **changes))
        assert OVERLAPPING not in exchanges(other)
    assert OVERLAPPING not in exchanges(replace(problem, op="wgrad"))
    layer = geometry_of((8, 12, 256, 256), (12, 12, 3, 3), padding=SAME)
    narrow = replace(problem, op="dgrad", geometry=layer)
    assert choose.plan(narrow).exchange == OVERLAPPING
    strided = replace(layer, given_stride=(2, 1))
    assert OVERLAPPING not in exchanges(replace(narrow, geometry=strided))


def test_a_residual_is_copied_to_planes(kernel_backend):
    geometry = IN_PLANES["wide"]
    made = tensors(geometry, HALF, kernel_backend.device, make=whole_numbers)
    x, weight, bias, residual = in_format(made)
    tile = BandedTile(16, 2, 8, 128, 4, 1)
    plan = plan_on("fprop", geometry, HALF, PLANES, tile)
    actual, direct = (
        launched("fprop", (x, weight, bias), geometry, one, residual=residual)
        for one in (plan, replace(plan, exchange=None))
    )
    assert torch.equal(actual, direct)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_epilogue_is_the_kernels(kernel_backend, activation):
    geometry = GEOMETRIES["unstrided"]
    made = tensors(geometry, FLOAT, kernel_backend.device, make=whole_numbers)
    x, weight, bias, residual = made
    more = {"activation": activation, "residual": residual if activation == "gelu" else None}
    plan = plan_on("fprop", geometry, FLOAT, READS if activation == "gelu" else BOTH)
    actual = launched("fprop", (x, weight, bias), geometry, plan, **more)
    direct = launched("fprop", (x, weight, bias), geometry, replace(plan, exchange=None), **more)
    assert torch.equal(actual, direct)


def test_one_launch_copies_the_image_and_the_weight():
    from tricorr.ops.launch.fprop_launch import fprop_call
    from tricorr.ops.launch.kernel_arguments import Tensors

    geometry = geometry_of((2, 32, 9, 9), (16, 32, 3, 3), (3, 3))
    x, weight, _, y = (t.to("meta") for t in tensors(geometry, HALF))
    for splits in (1, 2):
        plan = plan_on("fprop", geometry, HALF, BOTH, splits=splits)
        call = fprop_call(Tensors(x, weight, y), geometry, plan)
        names = [one.kernel.__name__ for one in call.launches()]
        partial = ["sum_partials"] * (splits > 1)
        assert names == ["copy_images", "fprop_gemm", *partial, "copy_images"]


#: Every second column of its planes is read, or stored.
LAYER = geometry_of((32, 256, 56, 56), (512, 256, 1, 1), (2, 2))


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_strided_planes_are_copied_where_that_is_predicted_to_be_faster(op):
    layout = Layout(repacks=op == "wgrad")
    problem = Problem(op, LAYER, BRAIN, layout=layout, device=DEVICES["h100"])
    plan, direct = choose.plan(problem), choose.direct_plan(problem)
    assert isinstance(plan.exchange, Sampled)
    assert direct.exchange is None
    assert seconds_of(plan, problem) < choose.EXCHANGE_MARGIN * seconds_of(direct, problem)
    last = replace(layout, channels_last=True, x_boxes="NHWC", y_boxes="NHWC")
    assert choose.plan(replace(problem, layout=last)).exchange is None
    assert choose.plan(replace(problem, device=DEVICES["a100"])).exchange is None


def test_copies_that_cannot_be_made_are_not_compared():
    strided = geometry_of((8, 64, 28, 28), (64, 64, 3, 3), (2, 2), SAME)
    problem = Problem("fprop", strided, BRAIN, device=H200)
    assert exchanges(problem) == [READS, BOTH]
    assert exchanges(replace(problem, op="dgrad")) == [BOTH]
    assert exchanges(replace(problem, op="wgrad")) == [READS]
    heavy = replace(problem, layout=Layout(epilogue=10))
    assert exchanges(heavy) == [READS]  # a residual lies in the result's format
    huge = replace(problem, geometry=replace(strided, N=2**16))
    few = replace(problem, geometry=replace(strided, K=3))
    exact = replace(problem, dtype=FLOAT)
    assert not any(map(exchanges, (huge, few, exact)))
    assert exchanges(replace(few, op="wgrad")) == [READS]


def test_large_windows_of_few_channels_are_copied_to_planes():
    pads = ((4, 4), (4, 4))
    deep = geometry_of((64, 120, 28, 28), (120, 1, 9, 9), padding=pads, groups=120)
    last = Layout(channels_last=True, x_boxes="NHWC", y_boxes="NHWC", gluon=True)
    problem = Problem("fprop", deep, BRAIN, layout=last, device=DEVICES["h100"])
    assert exchanges(problem) == exchanges(replace(problem, op="dgrad")) == [PLANES]
    assert exchanges(replace(problem, op="wgrad")) == [READS_PLANES]
    seen = PLANES.seen(problem)
    assert (seen.layout.x_boxes, seen.layout.x_align, seen.geometry.W) == ("NCHW", 8, 32)
    assert (seen.layout.y_boxes, seen.layout.y_align, seen.geometry.Q) == ("", 4, 28)
    assert choose.plan(problem).exchange == PLANES
    assert PLANES.memory(problem) == deep.x_numel * 2 * 32 // 28 + deep.y_numel * 2
    rows = replace(last, channels_last=False, x_boxes="", y_boxes="", x_align=4, y_align=8)
    assert exchanges(replace(problem, layout=rows)) == [READS_PLANES]
    assert exchanges(replace(problem, layout=rows, op="dgrad")) == []
    single = geometry_of((1, 1, 28, 28), (1, 1, 9, 9))  # its formats are the same
    assert exchanges(replace(problem, geometry=single, layout=replace(last, x_align=8))) == []
    small = geometry_of((64, 120, 28, 28), (120, 1, 3, 3), groups=120)
    assert exchanges(replace(problem, geometry=small)) == []
    for precision in ("ieee", "tf32", "tf32x3"):
        assert exchanges(replace(problem, dtype=FLOAT, precision=precision)) == [PLANES]


def test_copies_cost_their_bytes_and_their_launches():
    """The measured multiplier of a kernel does not apply to its copies."""
    problem = Problem("wgrad", LAYER, BRAIN, device=DEVICES["h100"])
    exchange = Sampled(reads=True)
    (plan,) = (one for one in choose.plans_on_copies(problem) if one.exchange == exchange)
    read = 32 * 256 * 28 * 56 * 2 + LAYER.y_numel * 2  # whole rows of x
    copies = (32 * 256 * 28 * 28 + LAYER.y_numel) * 2
    times = times_of(plan.work(problem), problem.device)
    assert exchange.memory(problem) == copies
    assert times.exchange == EXCHANGE_SECONDS + (read + copies) / problem.device.copy_rate
    alone = seconds_of(replace(plan, exchange=None), exchange.seen(problem))
    assert seconds_of(plan, problem) == pytest.approx(alone + times.exchange)


def test_explain_says_what_is_copied():
    shapes = LAYER.x_shape, LAYER.weight_shape
    x, weight = (torch.empty(shape, dtype=BRAIN, device="meta") for shape in shapes)
    call = explain(x, weight, stride=2, device="h100")
    for op, entry in call.passes.items():
        assert isinstance(entry.plan.exchange, Sampled), op
        assert entry.copy_bytes >= 32 * 256 * 28 * 28 * 2
    assert "copies of every stride-th pixel" in str(call)
    assert call.as_dict()["passes"]["dgrad"]["plan"]["exchange"]["name"] == "sampled"
