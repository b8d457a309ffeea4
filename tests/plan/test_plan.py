"""Plans as data: the results they cover, and the families they take; nothing runs."""

import itertools

import pytest
import torch
from cases import CASES, DTYPES
from plans import H200, OPS, planned

from tricorr.ops import ArgumentError, geometry_of
from tricorr.ops.plan import choose, gemm, rows
from tricorr.ops.plan.cost import partial_bytes
from tricorr.ops.plan.device import DEVICES as KNOWN
from tricorr.ops.plan.device import GEMM_MIN, INTERPRETER, MAX_WORKSPACE, Device
from tricorr.ops.plan.gemm import GEMM_GRADIENT_TILES, GEMM_TILES, WIDE_GEMM_TILES
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.stencil import STENCIL_TILES

DEVICES = (INTERPRETER, Device("a GPU", "90", 132), Device("another GPU", "gfx942", 304))
LARGE = {
    "large_gemm": geometry_of((32, 256, 56, 56), (256, 256, 3, 3), padding=((1, 1), (1, 1))),
    "large_depthwise": geometry_of((32, 256, 56, 56), (256, 1, 3, 3), groups=256),
    "large_image": geometry_of((1, 1, 8192, 8192), (1, 1, 5, 5)),
    "large_window": geometry_of(
        (4, 8, 99, 128), (8, 1, 31, 15), padding=((15, 15), (7, 7)), groups=8
    ),
    "large_per_sample": geometry_of((8, 3, 512, 512), (8, 32, 3, 3, 3)),
}
ALL = CASES | LARGE


def plans(op, geometry):
    """(problem, plan) for every dtype, precision, layout and device."""
    precisions = ("ieee", "tf32", "tf32x3")
    for dtype, precision, last, device in itertools.product(
        DTYPES, precisions, (False, True), DEVICES
    ):
        problem = Problem(op, geometry, dtype, precision, Layout(channels_last=last), device)
        yield problem, choose.plan(problem)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ALL)
def test_the_grid_covers_every_result_once(op, name):
    g = ALL[name]
    results = {"fprop": g.y_numel, "dgrad": g.x_numel, "wgrad": g.weight_numel}[op]
    for problem, p in plans(op, g):
        work = p.work(problem)  # persistent programs compute several tiles each
        assert work.programs * work.outputs >= results * p.splits
        assert p.grid <= max(1, results) * p.splits, "a program without a result"


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("name", ALL)
def test_parts_of_an_image_are_bounded_and_none_is_empty(name, op):
    for problem, p in plans(op, ALL[name]):
        assert partial_bytes(p, problem) <= MAX_WORKSPACE
        assert p.splits == 1 or p.splits <= p.tile.strips(problem)


@pytest.mark.parametrize("name", ALL)
def test_splits_cover_every_pixel_and_none_is_empty(name):
    g = ALL[name]
    pixels = g.P * g.Q * (1 if g.per_sample else g.N)
    for problem, p in plans("wgrad", g):
        partials = p.partials * g.weight_numel * (8 if problem.dtype == torch.float64 else 4)
        assert p.splits == 1 or partials <= MAX_WORKSPACE
        strips = p.tile.strips(problem)
        assert (p.splits - 1) * p.split_strips < max(1, strips) <= p.splits * p.split_strips
        if p.family in ("gemm", "stencil"):
            assert p.splits * p.split_pixels >= pixels
            assert (p.splits - 1) * p.split_pixels < max(1, pixels)
        if p.family == "rows":
            columns, rows = -(-g.Q // p.tile.BLOCK_Q), -(-g.P // p.tile.BLOCK_P)
            assert strips == columns * rows * (1 if g.per_sample else g.N)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ALL)
def test_channels_decide_between_gemm_and_rows(op, name):
    g = ALL[name]
    taps = g.R * g.S
    shorter = {
        "fprop": min(g.group_K, g.group_C * taps),
        "dgrad": min(g.group_C, g.group_K * taps),
        "wgrad": min(g.group_K, g.group_C * taps),
    }[op]
    for problem, p in plans(op, g):
        if shorter >= GEMM_MIN:
            boxed = ["tma", "spread", "flat", "shifted"] * (problem.device.arch == "90")
            products = ("gemm", "patch", *boxed)
            assert p.family in products
        elif p.family == "gemm":  # a stencil would have to sum many channels
            assert op == "wgrad" or (g.group_C if op == "fprop" else g.group_K) >= p.tile.BLOCK_K
        assert p.family != "rows" or rows.is_legal(problem)
        turned = op == "dgrad" and p.family in ("rows", "banded") and g.stride == (1, 1)
        turned |= op == "dgrad" and p.family in ("columns", "patch", "spread")
        assert p.kernel == f"{'fprop' if turned else op}_{p.family}"


@pytest.mark.parametrize("op", OPS)
def test_few_results_of_many_channels_take_no_stencil(op):
    # The input gradient for a photograph, and a layer that makes one: a matrix unit uses a fifth of
    # its columns, but a stencil has 64 * 49 taps for every pixel at 12 instructions each.
    C, K = (64, 3) if op == "fprop" else (3, 64)
    g = geometry_of((32, C, 112, 112), (K, C, 7, 7), padding=((3, 3), (3, 3)))
    for device in KNOWN.values():
        assert planned(op, g, torch.bfloat16, Layout(), device).family in (
            "gemm",
            "columns",
            "patch",
            "spread",
        )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_depthwise_takes_the_rows_in_both_formats(op, last):
    g = geometry_of((8, 32, 56, 56), (32, 1, 3, 3), padding=((1, 1), (1, 1)), groups=32)
    p = planned(op, g, torch.float32, Layout(channels_last=last), H200)
    assert p.family == "rows"
    assert (p.tile.LANE_Q > 1) == last


def test_a_window_too_large_to_unroll_takes_columns_or_the_stencil_without_matrix_units():
    for family, window, steps in (
        ("columns", 8, {}),
        ("columns", 9, {"stride": (2, 2), "dilation": (1, 3)}),
        ("stencil", 9, {"stride": (5, 1)}),
        ("stencil", 3, {"dilation": (50, 1)}),
    ):
        g = geometry_of((1, 1, 512, 512), (1, 1, window, window), **steps)
        assert planned("fprop", g, torch.float32, Layout(), INTERPRETER).family == family


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ALL)
def test_plans_come_from_the_tables_print_and_hash(op, name):
    tiles = {tile for table in GEMM_TILES.values() for tile in table} | set(STENCIL_TILES)
    tiles |= set(WIDE_GEMM_TILES.values())
    tiles |= {tile for table in GEMM_GRADIENT_TILES.values() for tile in table}
    for _, p in plans(op, ALL[name]):
        assert p.tile in tiles or p.family in (
            "rows", "columns", "banded", "tma", "patch", "spread", "flat", "shifted"
        )  # fmt: skip
        assert p in {p}
        assert str(p).startswith(f"Plan(op='{op}', tile=")
        assert op == "wgrad" or p.splits == 1 or p.family in ("gemm", "patch", "spread")


def test_precision_is_for_float32_only_and_amd_has_no_tf32x3():
    for dtype, precision, device in itertools.product(DTYPES, ("tf32", "tf32x3"), DEVICES):
        p = planned("fprop", LARGE["large_gemm"], dtype, Layout(), device, precision)
        exact = dtype != torch.float32 or (precision == "tf32x3" and device.arch == "gfx942")
        assert p.precision == ("ieee" if exact else precision)


def test_many_pixels_of_one_filter_are_split():
    for _, p in plans("wgrad", CASES["many_pixels"]):
        assert p.splits > 1 or p.family == "columns"  # whose strips are few


def test_equal_calls_get_the_same_plan_object():
    first, second = (
        planned("fprop", LARGE["large_gemm"], torch.float16, Layout(), INTERPRETER)
        for _ in range(2)
    )
    assert first is second


def test_a_grid_too_large_to_launch_is_refused():
    geometry = geometry_of((2**19, 1, 2**10, 2**10), (1, 1, 1, 1))
    assert planned("fprop", geometry, torch.float16, Layout(int64=True), INTERPRETER)
    too_large = geometry_of((2**30, 1, 2**10, 2**10), (1, 1, 1, 8))
    layout = Layout(channels_last=True, int64=True)
    with pytest.raises(ArgumentError, match=r"\d programs, more than the 2147483647"):
        planned("fprop", too_large, torch.float16, layout, INTERPRETER)


def test_one_product_in_tf32_is_no_gemm():
    """Triton may write registers of such an image while a wgmma reads them."""
    for op, C, K in (("fprop", 1, 64), ("dgrad", 64, 1)):
        for R in (1, 3):
            g = geometry_of((2, C, 7, 7), (K, C, R, R))
            problem = Problem(op, g, torch.float32, "tf32", device=H200)
            assert bool(gemm.tiles(problem)) == (R > 1)
