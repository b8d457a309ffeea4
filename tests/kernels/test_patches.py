"""Windows that lie side by side: products of patches, and columns of a window seen as channels."""

from dataclasses import replace

import pytest
import torch
from cases import in_format, tensors, whole_numbers
from closeness import check, check_exact, exact, operands
from plans import launched, plan_on

from tricorr import explain
from tricorr.ops import geometry_of
from tricorr.ops.launch.layout import layout_of, order_of
from tricorr.ops.plan import choose, rows
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.exchange.image_patches import PatchCopy, Patches
from tricorr.ops.plan.exchange.offered import exchanges
from tricorr.ops.plan.exchange.windows import Merged
from tricorr.ops.plan.problem import Problem
from tricorr.ops.plan.times import EXCHANGE_SECONDS, seconds_of, times_of
from tricorr.ops.plan.tma import TmaTile

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
FORMATS = {"crs": torch.contiguous_format, "rsc": torch.channels_last}
LAST = torch.channels_last
OPS = ("fprop_bias", "dgrad", "wgrad")
GEOMETRIES = {
    "whole": geometry_of((2, 16, 8, 16), (24, 16, 4, 4), (4, 4)),
    "rest": geometry_of((2, 6, 9, 11), (20, 6, 2, 4), (2, 4)),
    "odd_channels": geometry_of((1, 5, 6, 10), (17, 5, 3, 3), (3, 3)),
    "groups": geometry_of((2, 8, 4, 9), (20, 4, 2, 4), (2, 4), groups=2),
    "one_row": geometry_of((2, 20, 3, 9), (18, 20, 1, 2), (1, 2)),
    "one_window": geometry_of((3, 4, 6, 7), (18, 4, 4, 5), (9, 9)),
}
#: Windows that lie side by side along rows; in columns they may overlap, have gaps or padding.
MERGED = {
    **{name: GEOMETRIES[name] for name in ("whole", "rest", "odd_channels", "one_window")},
    "rows_meet": geometry_of((2, 8, 7, 8), (18, 8, 3, 4), (2, 4), ((1, 1), (0, 0)), (2, 1)),
}


def in_patches(x, g, order):
    """Patches of x (N, C, H, W), by views."""
    cut = x[..., : g.P * g.R, : g.Q * g.S].reshape(g.N, g.groups, -1, g.P, g.R, g.Q, g.S)
    axes = {"crs": (0, 1, 2, 4, 6, 3, 5), "rsc": (0, 1, 4, 6, 2, 3, 5)}[order]
    return cut.permute(axes).reshape(g.of_patches().x_shape)


def _copies():
    """Rows and windows of whole pieces, of single elements, and larger than a tile."""
    yield from ((geometry, FLOAT) for geometry in GEOMETRIES.values())
    for x, window, dtype in (
        ((1, 3, 34, 48), (16, 16), HALF),
        ((1, 70, 4, 16), (2, 2), HALF),
        ((2, 3, 15, 29), (14, 14), HALF),
        ((1, 2, 5, 70), (2, 70), FLOAT),
        ((1, 130, 3, 8), (3, 4), HALF),
    ):
        yield geometry_of(x, (16, x[1], *window), window), dtype


@pytest.mark.parametrize(("geometry", "dtype"), list(_copies()), ids=str)
@pytest.mark.parametrize("order", FORMATS)
def test_every_element_has_its_place(kernel_backend, geometry, dtype, order):
    """Images have any format; pixels that no window meets get the bias, or zero."""
    from tricorr.ops.launch.patch_copies import patches_call, patches_like

    device = kernel_backend.device
    dense = torch.randn(geometry.x_shape, device=device).to(dtype)
    wide = torch.randn((*geometry.x_shape[:3], geometry.W + 3), device=device).to(dtype)
    for x in (dense, dense.contiguous(memory_format=LAST), wide[..., 1:-2]):
        patches = patches_like(x, geometry)
        patches_call(x, patches, geometry, order).run(x.device)
        assert torch.equal(patches, in_patches(x, geometry, order))
        assert patches.stride(1) == 1
        assert all(step * x.itemsize % 16 == 0 for step in patches.stride()[2:])
    bias = torch.randn(geometry.C, device=device).to(dtype)
    for added in (None, bias):
        back = torch.empty_like(dense)
        call = patches_call(back, patches, geometry, order, back=True, bias=added)
        call.run(back.device)
        filled = torch.zeros(geometry.x_shape, device=device, dtype=dtype)
        if added is not None:
            filled += added[:, None, None]
        met = (..., slice(geometry.P * geometry.R), slice(geometry.Q * geometry.S))
        filled[met] = x[met]
        assert torch.equal(back, filled)


def _cases():
    """float16 with one part and TF32 with two take turns."""
    turn = 0
    for name in GEOMETRIES:
        for op in OPS:
            for order in FORMATS if op != "wgrad" else ("crs",):
                turn += 1
                exchange = Patches(order, y_last=turn % 2 == 0)
                yield name, op, exchange, *((HALF, 1), (FLOAT, 2))[turn % 2]


def weights_in(op, args, order):
    """The operands, the weight in the format of this order."""
    args = list(args)
    if op != "wgrad":
        args[1] = args[1].contiguous(memory_format=FORMATS[order])
    return args


@pytest.mark.parametrize(("name", "op", "exchange", "dtype", "splits"), list(_cases()), ids=str)
def test_products_of_patches(kernel_backend, name, op, exchange, dtype, splits):
    geometry = GEOMETRIES[name]
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device, make=whole_numbers))
    args = weights_in(op, args, exchange.order)
    plan = plan_on(op, geometry, dtype, exchange, splits=splits)
    actual = launched(op, args, geometry, plan)
    check_exact(op, args, geometry, actual)
    assert actual.is_contiguous()


def _merged_cases():
    turn = 0
    for name, geometry in MERGED.items():
        for op in OPS:
            if op == "dgrad" and geometry.W > geometry.Q * geometry.S:
                continue
            turn += 1
            yield name, op, *((HALF, "crs"), (FLOAT, "rsc"), (HALF, "rsc"))[turn % 3]


@pytest.mark.parametrize(("name", "op", "dtype", "order"), list(_merged_cases()), ids=str)
def test_columns_of_a_window_are_channels(kernel_backend, name, op, dtype, order):
    geometry = MERGED[name]
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device, make=whole_numbers))
    args = weights_in(op, in_format(args), order)
    plan = plan_on(op, geometry, dtype, Merged())
    actual = launched(op, args, geometry, plan)
    check_exact(op, args, geometry, actual)
    assert actual.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("op", ["fprop_bias", "wgrad"])
def test_columns_of_one_channel_are_no_longer_side_by_side(kernel_backend, op):
    """A row of planes comes in vectors; in a view, its columns are as far apart as windows."""
    geometry = geometry_of((1, 1, 9, 12), (5, 1, 4, 4), (2, 4), ((1, 0), (0, 0)))
    args = operands(op, *tensors(geometry, FLOAT, kernel_backend.device, make=whole_numbers))
    args = in_format(args)
    problem = problem_of(op.removesuffix("_bias"), geometry, LAST)
    assert problem.layout.x_align > 1
    seen = Merged().seen(problem)
    assert seen.layout.x_align == 1
    tile = rows.tile_for(replace(seen, dtype=FLOAT, precision="tf32"))
    plan = replace(choose.plan_with_tile(seen, tile), exchange=Merged())
    actual = launched(op, args, geometry, replace(plan, precision="tf32"))
    check_exact(op, args, geometry, actual)


@pytest.mark.parametrize("dtype", [BRAIN, FLOAT], ids=str)
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad"])
@pytest.mark.parametrize("form", ["patches", "merged"])
def test_boxes(kernel_backend, op, dtype, form):
    """A kernel that loads patches through tensor descriptors, with a split sum."""
    geometry = GEOMETRIES["whole"]
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device))
    exchange = Patches("crs", y_last=True)
    if form == "merged":
        args, exchange = in_format(args), Merged()
    plan = plan_on(op, geometry, dtype, exchange, TmaTile(2, 2, 4, 16, 16, 4, 2), splits=2)
    actual = launched(op, args, geometry, plan)
    check(op, args, geometry, actual=actual, precision=plan.precision)


@pytest.mark.parametrize(
    ("name", "exchange"),
    [
        ("rest", Patches("crs")),
        ("rest", Patches("rsc", y_last=True)),
        ("groups", Patches("rsc")),
        ("whole", Merged()),
    ],
    ids=str,
)
def test_the_bias_of_an_input_gradient_is_added_before_the_one_rounding(
    kernel_backend, name, exchange
):
    geometry = GEOMETRIES[name]
    dy, weight = operands(
        "dgrad", *tensors(geometry, FLOAT, kernel_backend.device, make=whole_numbers)
    )
    if exchange == Merged():
        dy = dy.contiguous(memory_format=LAST)
    dy, weight = weights_in("dgrad", (dy, weight), getattr(exchange, "order", "rsc"))
    bias = torch.arange(2 * geometry.C, device=dy.device, dtype=FLOAT)[::2]
    plan = plan_on("dgrad", geometry, FLOAT, exchange)
    actual = launched("dgrad", (dy, weight), geometry, plan, bias=bias)
    expected = exact("dgrad", (dy, weight), geometry)
    expected += bias.cpu().double()[:, None, None]
    assert torch.equal(actual.cpu().double(), expected)


@pytest.mark.parametrize("merged", [False, True])
def test_the_epilogue_is_the_kernels(kernel_backend, merged):
    geometry = GEOMETRIES["rest"]
    given = tensors(geometry, FLOAT, kernel_backend.device, make=whole_numbers)
    x, weight, bias, residual = given
    exchange = Patches("crs")
    if merged:
        x, weight = in_format((x, weight))
        exchange = Merged()
    plan = plan_on("fprop", geometry, FLOAT, exchange)
    more = {"activation": "gelu", "residual": residual}
    actual = launched("fprop", (x, weight, bias), geometry, plan, **more)
    direct = launched("fprop", (x, weight, bias), geometry, replace(plan, exchange=None), **more)
    assert torch.equal(actual, direct)


#: 16 x 16 patches of images.
PIXELS = geometry_of((64, 3, 224, 224), (768, 3, 16, 16), (16, 16))


def problem_of(op, geometry, form=torch.contiguous_format, order="crs"):
    """The problem of bfloat16 tensors on an H100."""
    shapes = geometry.x_shape, geometry.weight_shape, geometry.y_shape
    formats = form, form if op == "wgrad" else FORMATS[order], form
    made = (
        torch.empty(shape, dtype=BRAIN, device="meta", memory_format=memory_format)
        for shape, memory_format in zip(shapes, formats, strict=True)
    )
    return Problem(op, geometry, BRAIN, layout=layout_of(geometry, *made), device=DEVICES["h100"])


@pytest.mark.parametrize(
    ("op", "form"),
    [(op, LAST) for op in ("fprop", "dgrad", "wgrad")]
    + [(op, torch.contiguous_format) for op in ("fprop", "wgrad")],
    ids=str,
)
def test_patches_are_planned_where_that_is_predicted_to_be_faster(op, form):
    problem = problem_of(op, PIXELS, form)
    plan, direct = choose.plan(problem), choose.direct_plan(problem)
    assert plan.exchange in ([Merged()] if form == LAST else [Patches("crs"), Patches("crs", True)])
    assert direct.exchange is None
    assert seconds_of(plan, problem) < choose.EXCHANGE_MARGIN * seconds_of(direct, problem)


@pytest.mark.parametrize("order", FORMATS)
def test_patches_have_the_order_of_the_weight(order):
    """So that it is not copied."""
    problem = problem_of("fprop", PIXELS, order=order)
    plan = choose.plan(problem)
    assert plan.exchange.order == order
    assert plan.work(problem).copy_bytes == 0


def test_which_calls_are_patches():
    only, last = Patches("crs"), Patches("crs", y_last=True)
    wanted = {"fprop": [only, last], "dgrad": [last], "wgrad": [last]}
    for op, found in wanted.items():
        assert _of_patches(problem_of(op, PIXELS)) == found
    whole = geometry_of((64, 3, 256, 256), (768, 3, 16, 16), (16, 16))
    assert _of_patches(problem_of("dgrad", whole)) == [only, last]  # rows of dy are whole pieces
    odd = geometry_of((64, 5, 60, 60), (16, 5, 5, 5), (5, 5))
    assert not any(_of_patches(problem_of(op, odd)) for op in wanted)
    heavy = problem_of("fprop", PIXELS)
    assert _of_patches(replace(heavy, layout=replace(heavy.layout, epilogue=10))) == [only]
    x, weight = (8, 16, 28, 28), (16, 16, 4, 4)
    for other in (
        geometry_of(x, weight, (4, 2)),
        geometry_of(x, weight, (4, 4), ((0, 0), (0, 1))),
        geometry_of(x, weight, (4, 4), dilation=(1, 2)),
        geometry_of(x, weight, (4, 4), flip=True),
    ):
        assert not _of_patches(problem_of("fprop", other))
        assert not _is_merged(problem_of("fprop", other, LAST))
    assert not _of_patches(problem_of("fprop", geometry_of(x, (16, 16, 1, 1))))
    assert not _of_patches(problem_of("fprop", geometry_of((8, 1, 28, 28), (16, 1, 2, 2), (2, 2))))
    steps = problem_of("fprop", geometry_of(x, weight, (1, 4), ((1, 2), (0, 0))), LAST)
    assert _is_merged(steps)  # rows may meet


def test_views_reach_all_that_they_store():
    """An input gradient is not merged if columns are left over, nor a contiguous weight's."""
    rest = geometry_of((8, 16, 28, 30), (16, 16, 4, 4), (4, 4))
    found = {op: _is_merged(problem_of(op, rest, LAST)) for op in ("fprop", "dgrad", "wgrad")}
    assert found == {"fprop": True, "dgrad": False, "wgrad": True}
    problem = problem_of("wgrad", rest, LAST)
    assert not _is_merged(replace(problem, layout=replace(problem.layout, repacks=True)))


def _is_merged(problem):
    return Merged() in exchanges(problem)


def _of_patches(problem):
    return [one for one in exchanges(problem) if isinstance(one, Patches)]


def test_orders_of_a_weight():
    weight = torch.empty(6, 4, 3, 2)
    last = weight.contiguous(memory_format=LAST)
    assert (order_of(weight), order_of(last), order_of(last[:, :2])) == ("crs", "rsc", "")
    assert order_of(weight[..., :1]) == order_of(weight.transpose(2, 3)) == ""


def test_patches_cost_their_bytes_and_their_launches():
    problem = problem_of("wgrad", PIXELS)
    exchange = Patches("crs", y_last=True)
    (plan,) = (one for one in choose.plans_on_copies(problem) if one.exchange == exchange)
    copies = (PIXELS.x_numel + PIXELS.y_numel) * 2
    times = times_of(plan.work(problem), problem.device)
    assert exchange.memory(problem) == copies
    # Patches and dy, each read and written; two kernels make them.
    assert times.exchange == 2 * EXCHANGE_SECONDS + 2 * copies / problem.device.copy_rate


def test_copies_of_single_elements_cost_their_instructions():
    """5 x 5 windows of 12 channels fill less than half of a program."""
    problem = problem_of("fprop", geometry_of((64, 12, 60, 60), (16, 12, 5, 5), (5, 5)))
    plans = choose.plans_on_copies(problem)
    plan = next(plan for plan in plans if isinstance(plan.exchange, Patches))
    moved = plan.work(problem).exchanged_bytes
    least = PatchCopy(problem.geometry, "crs").seconds(2, problem.device)
    assert moved == pytest.approx(least * problem.device.copy_rate)
    assert moved > 1.5 * 4 * problem.geometry.x_numel


def test_a_view_costs_nothing_but_the_copy_of_a_contiguous_weight():
    for order, copied in (("rsc", 0), ("crs", PIXELS.weight_numel * 2)):
        problem = problem_of("fprop", PIXELS, LAST, order)
        plan = next(plan for plan in choose.plans_on_copies(problem) if plan.exchange == Merged())
        work = plan.work(problem)
        assert (work.copy_bytes, work.exchange_launches, work.launches) == (
            copied,
            0,
            1 + (copied > 0),
        )
        assert plan.exchange.memory(problem) == 0


def test_explain_says_what_becomes_of_the_image():
    shapes = PIXELS.x_shape, PIXELS.weight_shape
    x, weight = (torch.empty(shape, dtype=BRAIN, device="meta") for shape in shapes)
    call = explain(x, weight, stride=16, device="h100")
    assert "patches (c, r, s) as pixels" in str(call)
    assert call.passes["fprop"].copy_bytes == PIXELS.x_numel * 2
    x, weight = (t.contiguous(memory_format=LAST) for t in (x, weight))
    call = explain(x, weight, stride=16, device="h100")
    assert "columns of the window seen as channels" in str(call)
    assert call.passes["fprop"].copy_bytes == 0
