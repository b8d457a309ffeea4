"""Few results: a program walks down a strip. In Gluon, so compiled and simulated alone."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import check, operands, run, truth
from plans import H200, OPS, boxed, planned, with_tile
from simulator import Fault
from simulator.driver import simulated

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, strip
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.gemm import GemmTile
from tricorr.ops.plan.problem import Problem
from tricorr.ops.plan.strip import StripTile

pytest.importorskip("tricorr.kernels.fprop_strip", reason="Gluon is written for Triton 3.6 and 3.7")

PIXELS = replace(boxed("NHWC"), gluon=True)
PLANES = replace(boxed("NCHW"), channels_last=False, gluon=True)
HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32


def around(rows, columns=None):
    """Padding of so many rows and columns on both sides."""
    return (rows, rows), (rows if columns is None else columns,) * 2


#: (op, geometry, tile, dtype, whether planes): strips and segments with some left over, rings that
#: turn several times, and one column of results more, or less, than strips hold.
CALLS = {
    "three_planes": (
        "fprop_bias", geometry_of((2, 24, 9, 136), (3, 24, 3, 3), padding=around(1)),
        StripTile(128, 16, 32, 1, 4, 2, 4), HALF, True,
    ),
    "three_pixels": (
        "fprop_bias", geometry_of((2, 24, 9, 70), (3, 24, 3, 3), padding=around(1)),
        StripTile(64, 32, 32, 2, 4, 3, 2), BFLOAT, False,
    ),
    "blocks_of_odd_channels": (
        "fprop_bias", geometry_of((1, 67, 7, 64), (1, 67, 5, 5), padding=around(2)),
        StripTile(64, 16, 16, 2, 4, 2, 2), HALF, True,
    ),
    "no_padding": (
        "fprop_bias", geometry_of((1, 8, 6, 72), (2, 8, 2, 3)),
        StripTile(64, 8, 16, 1, 4, 3, 5), HALF, True,
    ),
    "large_padding": (
        "fprop_bias", geometry_of((1, 16, 4, 40), (4, 16, 3, 2), padding=((4, 3), (9, 10))),
        StripTile(64, 16, 16, 2, 4, 2, 3), BFLOAT, True,
    ),
    "negative_padding": (
        "fprop_bias", geometry_of((1, 16, 9, 80), (1, 16, 3, 3), padding=((-1, 1), (1, -2))),
        StripTile(64, 16, 16, 4, 4, 2, 1), HALF, True,
    ),
    "one_column_of_taps": (
        "fprop_bias", geometry_of((1, 32, 6, 64), (5, 32, 4, 1), padding=((2, 1), (0, 0))),
        StripTile(64, 16, 32, 1, 4, 3, 2), HALF, False,
    ),
    "one_row_of_taps": (
        "fprop_bias", geometry_of((1, 32, 5, 136), (1, 32, 1, 9), padding=((0, 0), (4, 4))),
        StripTile(128, 16, 32, 1, 8, 2, 2), HALF, True,
    ),
    "groups": (
        "fprop_bias", geometry_of((1, 64, 6, 66), (4, 32, 3, 3), padding=around(1), groups=2),
        StripTile(64, 8, 32, 1, 4, 2, 3), HALF, False,
    ),
    "srcnn": (
        "dgrad", geometry_of((2, 1, 12, 64), (64, 1, 9, 9), padding=around(4), flip=True),
        StripTile(64, 32, 64, 2, 4, 2, 3), BFLOAT, True,
    ),
    "colours": (
        "dgrad", geometry_of((1, 3, 9, 128), (8, 3, 11, 11), padding=around(5)),
        StripTile(128, 64, 16, 1, 4, 3, 5), HALF, True,
    ),
    "stem": (
        "dgrad", geometry_of((1, 3, 22, 144), (64, 3, 7, 7), (2, 2), around(3)),
        StripTile(64, 64, 64, 1, 4, 3, 5), HALF, True,
    ),
    "stem_of_pixels": (
        "dgrad", geometry_of((2, 3, 23, 29), (32, 3, 7, 7), (2, 2), around(3), flip=True),
        StripTile(128, 64, 32, 1, 8, 2, 4), BFLOAT, False,
    ),
    "even_window_with_a_stride": (
        "dgrad", geometry_of((1, 1, 14, 32), (16, 1, 4, 4), (2, 2), around(1)),
        StripTile(64, 16, 16, 2, 4, 2, 2), HALF, True,
    ),
    "strides_that_differ": (
        "dgrad", geometry_of((1, 2, 12, 64), (16, 2, 5, 3), (3, 4), ((2, 0), (1, 1))),
        StripTile(64, 64, 16, 1, 4, 2, 2), HALF, True,
    ),
    "strided_rows": (
        "dgrad", geometry_of((1, 8, 9, 67), (16, 4, 3, 3), (2, 1), around(1), groups=2),
        StripTile(64, 32, 8, 1, 4, 2, 2), FLOAT, False,
    ),
    "tf32_planes": (
        "fprop_bias", geometry_of((1, 16, 7, 132), (3, 16, 3, 3), padding=around(1)),
        StripTile(128, 16, 16, 1, 4, 2, 4), FLOAT, True,
    ),
    "tf32_planes_of_a_stride": (
        "dgrad", geometry_of((2, 1, 16, 64), (40, 1, 4, 4), (2, 2), around(1)),
        StripTile(64, 8, 8, 1, 4, 3, 3), FLOAT, True,
    ),
    "tf32_planes_of_two_warpgroups": (
        "fprop_bias", geometry_of((1, 32, 6, 120), (2, 32, 2, 9), padding=((1, 0), (4, 4))),
        StripTile(128, 64, 32, 2, 8, 2, 2), FLOAT, True,
    ),
    "tf32": (
        "fprop_bias", geometry_of((1, 16, 9, 40), (6, 8, 2, 5), (1, 1), ((1, 0), (5, 2)), groups=2,
                                  flip=True),
        StripTile(64, 32, 8, 1, 4, 2, 4), FLOAT, False,
    ),
}  # fmt: skip


def laid(args, planes):
    """The operands, channels_last unless images are planes."""
    if planes:
        return args
    return [
        t.contiguous(memory_format=torch.channels_last) if t is not None and t.dim() == 4 else t
        for t in args
    ]


def problem_of(op, geometry, dtype=HALF, planes=False, device=H200):
    precision = "tf32" if dtype == FLOAT else "ieee"
    layout = PLANES if planes else PIXELS
    return Problem(op.removesuffix("_bias"), geometry, dtype, precision, layout, device)


def plan_of(op, geometry, tile, dtype, planes):
    problem = problem_of(op, geometry, dtype, planes)
    assert strip.is_legal(problem)
    assert strip.fits(tile, problem), strip.columns_of(tile, problem)
    plan = choose.plan_with_tile(problem, tile)
    assert plan.kernel == "fprop_strip"
    return plan


def launched(name, args, **options):
    """The result of a call, by one launch of the kernel after that of its weight."""
    from tricorr.ops.launch import entry as launch

    op, geometry, tile, dtype, planes = CALLS[name]
    plan = plan_of(op, geometry, tile, dtype, planes)
    with simulated(90) as device:
        actual = run(op, laid(args, planes), geometry, launch, plan=plan, **options)
    found = [(launch.kernel, launch.unit) for launch in device.launches]
    assert found == [("build_patch_weight", "fma"), ("fprop_strip", "wgmma")]
    return actual


@pytest.mark.parametrize("name", CALLS)
def test_every_window_and_tile(name):
    op, geometry, _, dtype, planes = CALLS[name]
    args = operands(op, *tensors(geometry, dtype, make=whole_numbers))
    actual = launched(name, args)
    assert torch.equal(actual, torch.from_numpy(truth(op, args, geometry)).to(dtype))
    assert actual.is_contiguous() or not planes


@pytest.mark.parametrize("name", ["three_planes", "stem", "tf32"])
def test_random_operands(name):
    op, geometry, _, dtype, _ = CALLS[name]
    args = operands(op, *tensors(geometry, dtype))
    actual = launched(name, args)
    check(op, args, geometry, actual=actual, precision="tf32" if dtype == FLOAT else "ieee")
    assert torch.equal(launched(name, args), actual)


@pytest.mark.parametrize(
    ("name", "activation"), [("three_planes", "gelu"), ("three_pixels", "none")]
)
def test_the_epilogue(name, activation):
    """Sums of whole numbers are exact: what follows them has the same bits in any kernel."""
    from tricorr.ops.launch import entry as launch

    _, geometry, _, dtype, planes = CALLS[name]
    x, weight, bias, dy = tensors(geometry, dtype, make=whole_numbers)
    args, residual = (x / 8, weight, bias), torch.randn_like(dy)
    options = {"activation": activation, "residual": laid([residual], planes)[0]}
    actual = launched(name, args, **options)
    plan = with_tile("fprop", geometry, GemmTile(64, 64, 32, 4, 3))
    with simulated(90):
        expected = launch.fprop(*laid(args, planes), geometry, plan=plan, **options)
    assert torch.equal(actual, expected)


def test_values_that_are_not_finite_stay_in_the_windows_that_contain_them():
    """Columns of sums without a tap are zero times what other windows contain."""
    op, geometry, _, dtype, _ = CALLS["three_planes"]
    x, weight, bias = operands(op, *tensors(geometry, dtype, make=whole_numbers))
    weight[weight == 0] = 1  # a zero tap spreads not-a-number by itself
    x[0, 1, 0, 0], x[0, 2, 4, 119], x[1, 23, 8, 135] = torch.inf, -torch.inf, torch.nan
    actual = launched("three_planes", (x, weight, bias))
    expected = torch.from_numpy(truth(op, (x, weight, bias), geometry)).to(dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert actual.isfinite().logical_not().sum() == 3 * (4 + 9 + 4)


def test_another_group_is_not_read():
    op, geometry, _, dtype, _ = CALLS["groups"]
    x, weight, bias = operands(op, *tensors(geometry, dtype, make=whole_numbers))
    x[:, 32:] = torch.inf
    actual = launched("groups", (x, weight, bias))
    assert actual[:, :2].isfinite().all()
    assert not strip.block_of(problem_of(op, replace(geometry, C=40, K=4)))


def test_calls_with_other_tensors_are_prepared(monkeypatch):
    from tricorr.ops.launch import entry as launch
    from tricorr.ops.launch.prepared import forget_prepared

    op, geometry, tile, dtype, planes = CALLS["even_window_with_a_stride"]
    plan = plan_of(op, geometry, tile, dtype, planes)
    monkeypatch.setattr(launch.choose, "plan", lambda problem: plan)
    forget_prepared()
    with simulated(90):
        for turn in range(2):
            if turn:
                monkeypatch.setattr(launch, "dgrad_call", None)  # built once
            args = operands(op, *tensors(geometry, dtype, make=whole_numbers))
            actual = launch.dgrad(*laid(args, planes), geometry)
            assert torch.equal(actual, torch.from_numpy(truth(op, args, geometry)).to(dtype))
    forget_prepared()


@pytest.mark.parametrize("align", [1, 8])
def test_strips_cover_every_result_once_and_read_the_columns_that_it_needs(align):
    for S, stride, pad, extent, block in itertools.product(
        (1, 3, 4, 9), (1, 2, 4), (-1, 0, 1, 4, 11), (40, 129), (64, 128)
    ):
        for op in ("fprop", "dgrad") if stride == 1 else ("dgrad",):
            if stride > S or extent + 2 * pad < S:
                continue
            g = geometry_of((1, 8, 9, extent), (8, 8, 1, S), (1, stride), around(0, pad))
            made = strip.strips_of(op, g, block, align)
            assert made.first % align == made.step % align == 0
            results = [
                column * made.pitch - made.shift + phase
                for i in range(made.count)
                for column in range(
                    made.first + i * made.step + made.reach,
                    made.first + (i * made.step) + made.reach + made.step,
                )
                for phase in range(made.pitch)
            ]
            covered = [q for q in results if 0 <= q < (g.W if op == "dgrad" else g.Q)]
            assert covered == list(range(g.W if op == "dgrad" else g.Q))
            assert made.reach + made.step <= block
            # Tap s of result q is j columns before column v of the sums.
            for q, s in itertools.product(covered[:9], range(S)):
                v, phase = divmod(q + made.shift, made.pitch)
                if op == "fprop":
                    j, read = made.first_tap - s, q - pad + s
                else:
                    place = s - made.first_tap
                    if place % made.pitch != phase:
                        continue
                    j, read = place // made.pitch, (q + pad - s) // stride
                assert 0 <= j <= made.reach < made.shifts
                assert v - j == read


#: (pattern in the PTX, pattern of the outcome). All occurrences are removed.
REMOVED = {
    "barriers": (r"bar\.sync\s+0;", "race|no mbarrier"),
    "waits_for_products": (r"wgmma\.wait_group\.sync\.aligned \d;", "wgmma in flight"),
    "waits_for_rows": (r"mbarrier\.try_wait[^;]*;\s*@!\w+ bra\S* \w+;", "on its way|never written"),
}


@pytest.mark.parametrize(("pattern", "noticed"), REMOVED.values(), ids=REMOVED)
def test_an_instruction_removed_from_its_ptx_is_noticed(pattern, noticed):
    from tricorr.ops.launch import entry as launch

    op, geometry, tile, dtype, planes = CALLS["three_planes"]
    args = operands(op, *tensors(geometry, dtype, make=whole_numbers))
    plan, changed = plan_of(op, geometry, tile, dtype, planes), []

    def change(ptx):
        changed.append(re.subn(pattern, "", ptx) if ".entry fprop_strip(" in ptx else (ptx, 0))
        return changed[-1][0]

    with simulated(90) as device:
        device.change = change
        with pytest.raises(Fault, match=noticed):
            run(op, args, geometry, launch, plan=plan)
    assert changed[-1][1] > 0


ONE = geometry_of((8, 32, 512, 512), (1, 32, 5, 5), padding=around(2))


@pytest.mark.parametrize("planes", [True, False], ids=["planes", "pixels"])
def test_it_is_taken_where_the_model_says_that_it_saves_much(planes):
    device = replace(H200, measured=None)
    stem = geometry_of((32, 3, 224, 224), (64, 3, 7, 7), (2, 2), around(3))
    for op, geometry in (("fprop", ONE), ("dgrad", stem)):
        problem = problem_of(op, geometry, BFLOAT, planes, device)
        plan = choose.plan(problem)
        assert plan.family == "strip"
        # Rows of the image are read once, but for those around a segment and beside a strip.
        tile, work = plan.tile, plan.tile.work(plan, problem)
        assert strip.fits(tile, problem)
        assert plan.grid * work.l2_bytes < 1.5 * problem.read_bytes[0]
        layout = replace(problem.layout, gluon=False)
        assert choose.plan(replace(problem, layout=layout)).family != "strip"
    many = replace(ONE, K=64)
    assert planned("fprop", many, BFLOAT, PIXELS, device).family != "strip"


@pytest.mark.parametrize(
    "changes",
    [
        {"given_stride": (1, 2)},
        {"given_dilation": (1, 2)},
        {"N": 2, "per_sample": True},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
def test_what_it_cannot_compute_is_left_to_others(changes):
    geometry = replace(ONE, **changes)
    for op in OPS:
        if op == "dgrad" and "given_dilation" not in changes:
            continue  # has phases; its inside has zeros around it
        assert not strip.is_legal(problem_of(op, geometry))
    strided = replace(ONE, given_stride=(1, 3))
    for problem in (
        problem_of("dgrad", strided),
        problem_of("fprop", ONE, device=DEVICES["b200"]),
        problem_of("fprop", replace(ONE, C=1024)),
        problem_of("fprop", replace(ONE, K=32)),
        problem_of("fprop", replace(ONE, C=4)),
        replace(problem_of("fprop", ONE), layout=replace(PIXELS, int64=True)),
        replace(problem_of("fprop", ONE), layout=replace(PIXELS, converts=True)),
    ):
        assert strip.tiles(problem) == []


def test_the_tuner_has_other_tiles():
    problem = problem_of("fprop", ONE)
    tile = choose.plan(problem).tile
    found = list(strip.neighbours(tile, problem))
    assert tile in found
    assert len({replace(other, segment=1) for other in found}) > 6
