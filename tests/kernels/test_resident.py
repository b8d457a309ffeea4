"""Bands that stay in shared memory: in Gluon, so compiled and simulated alone."""

import math
import re
from dataclasses import replace

import pytest
import torch
from cases import FORMATS, image, in_format, tensors, whole_numbers
from closeness import check, check_exact, operands
from plans import H200, launched, with_tile
from simulator import Fault
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, resident
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.exchange.format_copies import Planes
from tricorr.ops.plan.exchange.offered import exchanges
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.resident import ResidentTile
from tricorr.ops.plan.stencil import StencilTile

pytest.importorskip("tricorr.kernels.fprop_resident", reason="Gluon is for Triton 3.6 and 3.7")

HALF = torch.float16
PLANES = Planes()
SINGLE, STACKED = (ResidentTile(64, 8, 16, stack, 4, 3) for stack in (1, 2))


#: Most have more than one block along every axis, the last with some left over.
GEOMETRIES = {
    "several_tiles": image(70, 136, 7, 9, (3, 4), N=2),
    "rows_of_eight_bytes": image(37, 28, 5, 11, (2, 5), N=2, C=2),
    "rows_of_four_bytes": image(19, 46, 3, 31, (1, 15)),
    "one_block_holds_a_row": image(14, 14, 13, 27, (6, 13), N=5, C=2),
    "one_row": image(1, 40, 1, 9, (0, 4), N=2),
    "one_row_is_left_of_a_window": image(1, 40, 9, 9, (4, 4)),
    "two_columns": image(33, 2, 9, 2, (4, 1), N=2),
    "one_row_of_outputs": image(6, 16, 6, 16, ((0, 0), (1, 0))),
    "one_tap": image(3, 18, 1, 1),
    "prime_rows": image(31, 24, 11, 5, ((5, 3), (1, 4))),
    "window_exceeds_the_image": image(4, 8, 19, 17, (9, 8), N=2),
    "pad_exceeds_the_window": image(9, 24, 3, 4, ((9, 4), (5, 2))),
    "padding_hides_a_stack": image(4, 24, 3, 3, ((20, 21), (1, 1))),
    "cropped": image(29, 46, 3, 4, ((-1, 0), (-9, -2))),
    "flipped": image(21, 40, 4, 6, (1, 2), C=2, flip=True),
    "per_sample": image(11, 40, 3, 4, (1, 1), N=3, C=2, per_sample=True),
}
STRIDED = {
    "stride_2": image(37, 56, 9, 9, (4, 4), N=2, stride=(2, 2)),
    "strides_differ": image(41, 48, 5, 7, (2, 3), C=2, stride=(3, 1)),
    "stride_exceeds_the_window": image(30, 48, 2, 3, stride=(3, 4)),
    "one_row_of_a_stride": image(2, 40, 5, 16, (2, 0), N=2, stride=(3, 2)),
}
#: Their input gradients have phases of their own; dy has rows of 2 pixels at least.
GRADIENTS = {
    "halves": image(37, 55, 9, 9, (4, 4), N=2, stride=(2, 2)),
    "halves_of_large_windows": image(32, 32, 31, 29, (15, 14), C=2, stride=(2, 2)),
    "quarter_rows": image(30, 28, 9, 8, ((4, 1), (3, 2)), stride=(4, 1)),
    "eighth_columns": image(13, 128, 5, 11, ((2, 2), (5, 1)), N=2, stride=(1, 8)),
    "taps_for_some_phases": image(33, 64, 3, 2, stride=(8, 4)),
    "last_pixels_unread": image(20, 37, 6, 7, ((2, 0), (3, 0)), stride=(2, 2)),
    "cropped_by_odd_numbers": image(21, 40, 7, 5, ((-1, 3), (-3, 5)), stride=(4, 2)),
    "far_padding": image(14, 16, 5, 6, ((9, 8), (11, 7)), stride=(2, 2)),
    "flipped": image(21, 40, 5, 6, (1, 2), C=2, stride=(2, 4), flip=True),
    "per_sample": image(19, 40, 6, 5, (1, 2), N=3, C=2, stride=(2, 2), per_sample=True),
    "one_row": image(9, 24, 9, 9, ((2, 0), (4, 4)), N=2, stride=(5, 2)),
    "colours": geometry_of((1, 3, 19, 40), (2, 3, 5, 11), stride=(2, 2), padding=((2, 2), (5, 5))),
    "multiplier": geometry_of((2, 2, 13, 33), (6, 1, 3, 5), (2, 2), ((1, 1), (2, 2)), groups=2),
}
CHANNELS = {
    "colours": geometry_of((1, 3, 19, 40), (2, 3, 5, 11), padding=((2, 2), (5, 5))),
    "multiplier": geometry_of((2, 2, 13, 24), (6, 1, 3, 5), padding=((1, 1), (2, 2)), groups=2),
    "groups_of_two": geometry_of((1, 4, 17, 40), (2, 2, 7, 3), (1, 2), groups=2),
}


def problem_of(op, geometry, dtype=HALF, device=H200):
    """The problem of contiguous planes."""
    piece = 16 // dtype.itemsize
    aligned = {"x_align": math.gcd(piece, geometry.W), "y_align": math.gcd(piece, geometry.Q)}
    layout = Layout(x_boxes="NCHW", y_boxes="NCHW", gluon=True, **aligned)
    precision = "tf32" if dtype == torch.float32 else "ieee"
    return Problem(op.removesuffix("_bias"), geometry, dtype, precision, layout, device)


#: Images that are copied first, as their rows are no whole pieces.
COPIED = {
    "small_planes": image(7, 7, 13, 13, (6, 6), N=5, C=2),
    "odd_columns": image(12, 45, 3, 9, ((1, 1), (4, 6)), N=2),
    "odd_columns_strided": image(13, 37, 5, 6, (2, 3), C=3, stride=(2, 2)),
}


def seen_by(problem):
    """The problem that the kernel meets, and the copies that are made for it."""
    exchange = None if resident.is_legal(problem) else PLANES
    return (problem if exchange is None else exchange.seen(problem)), exchange


def cases():
    """(op, name, geometry, tile). Input gradients without phases run forward's kernel."""
    direct = GEOMETRIES | STRIDED | CHANNELS
    for turn, op in enumerate(("fprop_bias", "dgrad")):
        for i, (name, geometry) in enumerate(direct.items()):
            if resident.is_legal(problem_of(op, geometry)):
                yield op, name, geometry, (SINGLE, STACKED)[(i + turn) % 2]
        for name, geometry in COPIED.items():
            assert not resident.is_legal(problem_of(op, geometry))
            yield op, name, geometry, (STACKED, SINGLE)[turn]
    for name, geometry in GRADIENTS.items():
        for tile in (SINGLE, STACKED):
            yield "dgrad", "phases-" + name, geometry, tile


CASES = [
    pytest.param(op, geometry, tile, id=f"{op}-{name}-{tile.STACK}")
    for op, name, geometry, tile in cases()
    if resident.fits(tile, seen_by(problem_of(op, geometry))[0])
]


def plan_of(op, geometry, tile, dtype=HALF):
    """The plan with a tile, in two parts where there are two tiles."""
    seen, exchange = seen_by(problem_of(op, geometry, dtype))
    plan = choose.plan_with_tile(seen, replace(tile, parts=min(2, tile.tiles(seen))))
    return replace(plan, exchange=exchange)


def computed(op, args, geometry, tile, dtype=HALF):
    plan = plan_of(op, geometry, tile, dtype)
    with simulated(90) as device:
        actual = launched(op, args, geometry, plan)
    copies = ["copy_images"] * (plan.exchange is not None)
    assert [found.kernel for found in device.launches] == [*copies, "build_lines", "fprop_resident"]
    assert device.launches[-1].unit == "wgmma"
    return actual


@pytest.mark.parametrize(("op", "geometry", "tile"), CASES)
def test_every_window_and_tile(op, geometry, tile):
    args = operands(op, *tensors(geometry, HALF, make=whole_numbers))
    check_exact(op, args, geometry, computed(op, args, geometry, tile))


@pytest.mark.parametrize("tile", [SINGLE, STACKED], ids=["single", "stacked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_random_operands(tile, dtype):
    geometry = GEOMETRIES["several_tiles"]
    args = operands("fprop_bias", *tensors(geometry, dtype))
    actual = computed("fprop_bias", args, geometry, tile, dtype)
    precision = "tf32" if dtype == torch.float32 else "ieee"
    check("fprop_bias", args, geometry, actual=actual, precision=precision)


#: Rows in pieces of 16, 8 and 4 bytes; one to five pieces; several channels; strides.
FLOATS = {
    "one_piece": ("dgrad", image(37, 56, 9, 9, (4, 4), N=2, stride=(2, 2))),
    "two_pieces": ("fprop_bias", image(37, 30, 5, 11, (2, 5), N=2, C=2)),
    "three_pieces": ("fprop_bias", image(31, 53, 11, 31, (5, 15))),
    "four_pieces": ("fprop_bias", image(21, 96, 3, 31, (1, 15), stride=(1, 2))),
    "five_pieces": ("dgrad", image(12, 96, 3, 55, (1, 27))),
    "colours": ("fprop_bias", CHANNELS["colours"]),
    "per_sample": ("dgrad", GEOMETRIES["per_sample"]),
}


@pytest.mark.parametrize("name", FLOATS)
def test_float32_is_multiplied_as_tf32(name):
    """Numbers halfway between two of TF32 are rounded away from zero; the sums are exact."""
    op, geometry = FLOATS[name]
    args = operands(op, *tensors(geometry, torch.float32, make=whole_numbers))
    given, which = list(args), list(FLOATS).index(name) % 2  # the image or the weight
    given[which] = args[which] * (1 + 2**-11)  # becomes 1 + 2**-10
    args = [t * (1 + 2**-10) if i == which else t for i, t in enumerate(args)]
    tile = SINGLE if name == "four_pieces" else STACKED
    check_exact(op, args, geometry, computed(op, given, geometry, tile, torch.float32))


@pytest.mark.parametrize(("activation", "tile"), [("none", SINGLE), ("gelu", STACKED)])
@pytest.mark.parametrize("last", [False, True], ids=["planes", "through_copies"])
def test_the_epilogue(activation, tile, last):
    """Sums of whole numbers are exact: what follows them has the same bits in any kernel."""
    geometry = image(19, 40, 3, 9, (1, 4), N=2, C=3)
    x, weight, bias, dy = tensors(geometry, HALF, make=whole_numbers)
    form = "NHWC" if last else "NCHW"
    x, residual = in_format((x / 8, torch.randn_like(dy)), form)
    options = {"activation": activation, "residual": residual}
    exchange = Planes(result=True)
    problem = problem_of("fprop", geometry)
    plan = choose.plan_with_tile(exchange.seen(problem) if last else problem, tile)
    with simulated(90):
        actual, expected = (
            launched("fprop", (x, weight, bias), geometry, plan, **options)
            for plan in (
                replace(plan, exchange=exchange if last else None),
                with_tile("fprop", geometry, StencilTile(128, 1, 4, 2)),
            )
        )
    assert torch.equal(actual, expected)
    assert actual.is_contiguous(memory_format=FORMATS[form])


def test_an_image_that_starts_off_alignment_is_copied():
    from tricorr.ops.launch.layout import layout_of

    geometry = image(12, 40, 9, 9, (4, 4))
    _, weight, _, dy = tensors(geometry, HALF)
    for shift, align in ((0, 8), (4, 4), (2, 2), (3, 1)):
        rows = torch.zeros(12, 64, dtype=HALF)[:, shift : shift + 40]
        layout = replace(layout_of(geometry, rows[None, None], weight, dy), gluon=True)
        problem = Problem("fprop", geometry, HALF, "ieee", layout, H200)
        assert resident.aligned(problem) == align
        assert resident.is_legal(problem) == (align > 1)
        assert exchanges(problem) == [PLANES] * (align < 8)
        assert resident.tiles(PLANES.seen(problem))


def family(geometry, op="fprop", device=H200, dtype=torch.bfloat16):
    problem = problem_of(op, geometry, dtype, device)
    return choose.plan(problem).family


@pytest.mark.parametrize(
    ("op", "pattern", "noticed"),
    [
        ("fprop", r"fence\.proxy\.async\S*;", "fence"),
        ("dgrad", r"cp\.async\.wait_group\S*\s+1;", "on its way"),
        ("fprop", r"wgmma\.wait_group\.sync\.aligned [1-9]\d*;", "wgmma in flight"),
    ],
    ids=["fence", "wait_for_copies", "wait_for_products"],
)
def test_damage_to_it_is_noticed(op, pattern, noticed):
    geometry = image(30, 40, 5, 9, (2, 4), stride=(2, 2) if op == "dgrad" else (1, 1))
    args = operands(op, *tensors(geometry, HALF))
    with simulated(90) as device:
        device.change = lambda ptx: re.sub(pattern, "", ptx)
        with pytest.raises(Fault, match=noticed):
            launched(op, args, geometry, plan_of(op, geometry, SINGLE))


def test_stacked_blocks_share_a_row():
    for stride, stacked in (((1, 1), True), ((5, 1), False)):
        problem = problem_of("fprop", image(40, 40, 5, 5, stride=stride))
        assert resident.fits(SINGLE, problem)
        assert resident.fits(STACKED, problem) == stacked


def test_it_is_taken_for_large_windows():
    for size, window, n, c in (
        (4096, 31, 1, 1),
        (4096, 9, 1, 1),
        (56, 31, 32, 128),
        (28, 29, 32, 256),
    ):
        g = image(size, size, window, window, (window // 2,) * 2, N=n, C=c)
        for op in ("fprop", "dgrad"):
            assert family(g, op) == "resident"
            assert family(g, op, dtype=torch.float32) == "resident"
            assert family(g, op, DEVICES["a100"]) != "resident"
    pads = ((5, 5), (5, 5))
    assert family(geometry_of((4, 3, 1024, 1024), (8, 3, 11, 11), padding=pads)) == "resident"
    for op in ("fprop", "dgrad"):
        assert family(image(56, 56, 9, 9, (4, 4), N=64, C=60, stride=(2, 2)), op) == "resident"
    assert family(image(4096, 4096, 7, 7, (3, 3))) == "rows"


LARGE = problem_of("fprop", image(40, 40, 9, 9, (4, 4), C=4))


@pytest.mark.parametrize(
    "changes",
    [
        {"geometry": replace(LARGE.geometry, given_dilation=(2, 1))},
        {"geometry": replace(LARGE.geometry, padding_mode="reflect")},
        {"geometry": image(40, 2, 9, 2, (4, 0))},  # one column of outputs
        {"dtype": torch.float32},
        {"dtype": torch.float32, "precision": "tf32x3"},
        {"device": DEVICES["b200"]},
        {"op": "wgrad"},
        {"layout": replace(LARGE.layout, int64=True)},
        {"layout": replace(LARGE.layout, converts=True)},
        {"layout": replace(LARGE.layout, gluon=False)},
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(changes):
    assert resident.is_legal(LARGE)
    assert resident.tiles(replace(LARGE, **changes)) == []


def test_input_gradients_take_strides_of_powers_of_two():
    for stride, gradient in (((2, 8), True), ((3, 1), False), ((1, 6), False)):
        strided = replace(LARGE, geometry=replace(LARGE.geometry, given_stride=stride))
        assert resident.is_legal(strided), stride
        assert resident.is_legal(replace(strided, op="dgrad")) == gradient, stride
