"""Banded kernels: every kind of window, block and alignment, and when they are planned."""

import math
from dataclasses import replace

import pytest
import torch
from cases import DTYPES, image, moved, tensors, whole_numbers
from closeness import check, check_exact, operands
from plans import H200, OPS, launched, planned, with_tile

from tricorr.ops import geometry_of
from tricorr.ops.plan import banded, choose
from tricorr.ops.plan.banded import BANDED_TILES, BandedTile
from tricorr.ops.plan.banded_gradient import BANDED_GRAD_TILES, STRIDED_GRAD_TILES, BandedGradTile
from tricorr.ops.plan.bands import COLUMN_STEP
from tricorr.ops.plan.device import DEVICES, INTERPRETER
from tricorr.ops.plan.problem import Layout, Problem

GEOMETRIES = {
    # Several blocks along every axis; the last is partly filled.
    "prime_sizes": image(11, 29, 5, 11, (2, 5)),
    "rows_on_a_step": image(9, 40, 3, 9, (1, 4)),
    "even_window": image(7, 19, 4, 8, ((1, 2), (3, 4))),
    "planes": image(5, 17, 3, 5, (1, 2), N=2, C=3),
    "depthwise_of_small_planes": image(7, 7, 13, 13, (6, 6), N=3, C=2),
    "window_exceeds_image_but_padded": image(4, 5, 9, 11, (4, 5), N=2),
    "pad_exceeds_window": image(3, 19, 2, 3, ((3, 4), (5, 2))),
    "cropped": image(9, 31, 3, 4, ((-1, 0), (-9, -2))),
    "cropped_to_a_block": image(9, 31, 3, 4, ((-1, 0), (-17, -2))),
    "one_row": image(1, 33, 1, 9, (0, 4), N=2),
    "one_column": image(33, 1, 9, 1, (4, 0), N=2),
    "one_output": image(5, 9, 5, 9),
    "one_tap": image(3, 17, 1, 1),
    "only_padding_is_seen": image(2, 2, 1, 1, ((0, 0), (3, 4))),
    "flipped": image(5, 19, 3, 6, (1, 2), C=2, flip=True),
    "per_sample": image(5, 11, 3, 4, (1, 1), N=3, C=2, per_sample=True),
}
GEOMETRIES |= {
    "reflected": image(7, 19, 4, 8, ((3, 2), (3, 4)), padding_mode="reflect"),
    "replicated": image(3, 9, 4, 5, ((4, 2), (11, 4)), padding_mode="replicate"),
    "circular_planes": image(5, 8, 3, 5, (5, 8), N=2, C=3, padding_mode="circular"),
}
#: Their input gradients take no banded kernel.
MORE = {
    "multiplier": geometry_of((2, 2, 3, 13), (4, 1, 3, 5), padding=((1, 1), (2, 2)), groups=2),
    "filters_of_one_image": geometry_of((1, 1, 7, 12), (2, 1, 3, 5)),
}
#: Weight gradients alone take strides.
STRIDED = {
    "strided": image(13, 31, 5, 9, (2, 4), N=2, stride=(2, 2)),
    "stride_down": image(12, 20, 7, 5, ((3, 2), (1, 2)), C=2, stride=(2, 1)),
    "stride_across": image(9, 33, 4, 8, ((1, 2), (5, 4)), stride=(1, 2)),
    "strided_even_window": image(14, 18, 6, 4, (2, 1), C=2, stride=(2, 2)),
    "strided_rows_outside": image(7, 15, 3, 5, ((5, 4), (6, 3)), stride=(2, 2)),
    "strided_and_cropped": image(11, 26, 4, 6, ((-3, 1), (-5, 2)), stride=(2, 2)),
    "strided_window_of_one_tap": image(9, 17, 1, 1, stride=(2, 2)),
    "strided_and_reflected": image(9, 19, 5, 4, (2, 2), stride=(2, 2), padding_mode="reflect"),
    "strided_multiplier": geometry_of(
        (2, 2, 7, 13), (4, 1, 3, 5), padding=((1, 1), (2, 2)), groups=2, stride=(2, 2)
    ),
    "strided_per_sample": image(9, 13, 5, 4, (1, 1), N=3, C=2, per_sample=True, stride=(2, 2)),
    "one_row_of_a_stride": image(2, 13, 5, 7, (2, 3), N=2, stride=(2, 2)),
}
TILES = [BandedTile(16, 2, 8, 128, 4, 1), BandedTile(4, 4, 16, 256, 4, 1)]
GRAD_TILES = [BandedGradTile(8, 16, 16, 2, 4, 1), BandedGradTile(4, 32, 8, 4, 4, 1)]
# The input gradient runs the same kernel, so each of its cases gets one of the tiles.
CASES = [
    pytest.param("fprop_bias", geometry, tile, id=f"fprop_bias-{name}-{tile.BLOCK_M}")
    for name, geometry in (GEOMETRIES | MORE).items()
    for tile in TILES
] + [
    pytest.param("dgrad", geometry, TILES[i % 2], id=f"dgrad-{name}")
    for i, (name, geometry) in enumerate(GEOMETRIES.items())
]


def forced(op, geometry, tile, args, *, splits=1, precision="ieee", int64=False):
    plan = with_tile(op, geometry, tile, splits, precision, int64=int64)
    actual = launched(op, args, geometry, plan)
    return check(op, args, geometry, actual=actual, precision=precision)


def holds_all_columns(tile, geometry):
    """Whether a weight gradient's tile is legal: groups of rows need all columns in one tile."""
    return tile.ROW_GROUP == 1 or tile.band(geometry).columns <= tile.BLOCK_I


def for_call(tile, geometry):
    """A weight gradient's tile with the call's stride, and sums of diagonals where it can."""
    whole = tile.band(geometry).columns <= tile.BLOCK_I
    step = geometry.stride[0]
    return replace(tile, STRIDE_H=step, PARTIALS=tile.ROW_GROUP if whole else COLUMN_STEP)


@pytest.mark.parametrize(("op", "geometry", "tile"), CASES)
def test_every_window_and_block(kernel_backend, op, geometry, tile):
    args = operands(op, *tensors(geometry, torch.float16, kernel_backend.device))
    forced(op, geometry, tile, args, int64=tile is TILES[1])


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("name", GEOMETRIES | MORE | STRIDED)
def test_weight_gradient_of_every_window_and_block(kernel_backend, name, splits):
    geometry = (GEOMETRIES | MORE | STRIDED)[name]
    args = operands("wgrad", *tensors(geometry, torch.float16, kernel_backend.device))
    tile = for_call(GRAD_TILES[splits % 2], geometry)
    forced("wgrad", geometry, tile, args, splits=splits, int64=splits == 3)


#: Several rows at a time, over all columns of a window at once.
GROUPED = [
    BandedGradTile(16, 16, 1, 16, 4, 1, ROW_GROUP=8),
    BandedGradTile(4, 32, 4, 4, 4, 1, ROW_GROUP=2),
]
SMALL = {
    "seven": image(13, 40, 7, 7, (3, 3)),
    "five_of_planes": image(16, 16, 5, 5, (2, 2), N=3, C=2),
    "nine_in_a_small_image": image(3, 8, 9, 9, (4, 4), N=2),
    "one_row_of_seven": image(1, 16, 7, 7, (3, 3)),
    "one_column_of_seven": image(17, 1, 7, 7, (3, 3)),
    "prime_sizes_of_seven": image(23, 37, 7, 7, ((3, 2), (3, 1))),
    "reflected_seven": image(11, 16, 7, 7, (3, 3), padding_mode="reflect"),
    "replicated_five": image(9, 16, 5, 5, (2, 2), padding_mode="replicate"),
    "circular_five": image(9, 24, 5, 5, (2, 2), padding_mode="circular"),
}


@pytest.mark.parametrize(
    ("tile", "geometry"),
    [
        pytest.param(tile, geometry, id=f"{tile.ROW_GROUP}-{name}")
        for tile in GROUPED
        for name, geometry in (SMALL | GEOMETRIES | MORE | STRIDED).items()
        if holds_all_columns(tile, geometry)
    ],
)
def test_weight_gradient_by_groups_of_rows(kernel_backend, tile, geometry):
    args = operands("wgrad", *tensors(geometry, torch.float16, kernel_backend.device))
    tile, wide = for_call(tile, geometry), tile is GROUPED[1]
    forced("wgrad", geometry, tile, args, splits=2, int64=wide)


def test_small_windows_in_16_bits_take_groups_of_rows():
    aligned = Layout(x_boxes="NCHW", y_boxes="NCHW", x_align=8, y_align=8)

    def tile(S, dtype=torch.bfloat16, layout=aligned, W=56, **more):
        geometry = image(56, W, S, S, (S // 2, S // 2), N=64, C=96, **more)
        return choose.plan(Problem("wgrad", geometry, dtype, layout=layout, device=H200)).tile

    assert tile(7) == tile(5) == BandedGradTile(16, 16, 8, 8, 8, 3, ROW_GROUP=8)
    assert tile(13) == BandedGradTile(16, 32, 8, 8, 8, 3, ROW_GROUP=4)
    halves = replace(aligned, x_align=4, y_align=4)
    assert tile(9, W=28, layout=halves) == BandedGradTile(16, 16, 16, 4, 8, 3, ROW_GROUP=8)
    strided = tile(9, stride=(2, 2))
    assert (strided.family, strided.ROW_GROUP, strided.STRIDE_H) == ("banded", 4, 2)
    assert tile(31, stride=(2, 2)) == BandedGradTile(16, 64, 16, 4, 8, 3, STRIDE_H=2, PARTIALS=1)
    by_rows = [
        tile(3),
        tile(7, torch.float32),
        tile(7, layout=Layout()),
        tile(7, layout=Layout(channels_last=True)),
        tile(7, layout=Layout(), W=57),
        tile(7, padding_mode="reflect"),
    ]
    assert {t.family for t in by_rows} <= {"rows", "columns"}


def _strided(tile):
    return "-strided" if getattr(tile, "STRIDE_H", 1) > 1 else ""


@pytest.mark.parametrize(
    ("op", "product", "tile"),
    [
        pytest.param(op, product, tile, id=f"{op}-{product}-{i}" + _strided(tile))
        for op, tables in (
            ("fprop_bias", BANDED_TILES),
            ("wgrad", BANDED_GRAD_TILES),
            ("wgrad", STRIDED_GRAD_TILES),
        )
        for product, tiles in tables.items()
        for i, tile in enumerate(tiles)
    ],
)
def test_every_tile_of_the_tables(kernel_backend, op, product, tile):
    step = getattr(tile, "STRIDE_H", 1)
    geometry = image(11, 37, 9, 12, ((5, 3), (4, 6)), stride=(step, step))
    if op == "wgrad":
        if not holds_all_columns(tile, geometry):
            geometry = image(19, 40, 7, 7, ((3, 3), (2, 4)), C=2, N=2, stride=(step, step))
        tile = for_call(tile, geometry)
    dtype = torch.float16 if product == "half" else torch.float32
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device))
    forced(op, geometry, tile, args, precision="ieee" if product == "half" else product)


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t != torch.float64], ids=str)
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
def test_every_dtype(kernel_backend, op, dtype):
    geometry = GEOMETRIES["planes"]
    args = operands(op, *tensors(geometry, dtype, kernel_backend.device))
    tile = GRAD_TILES[0] if op == "wgrad" else TILES[0]
    precision = "tf32x3" if dtype == torch.float32 else "ieee"
    forced(op, geometry, tile, args, precision=precision)


@pytest.mark.parametrize("op", ["fprop_bias", "wgrad"])
def test_uint8_images_are_read(kernel_backend, op):
    geometry = GEOMETRIES["prime_sizes"]
    x, *others = tensors(geometry, torch.float32, kernel_backend.device)
    x = (x * 100).abs().to(torch.uint8)
    tile = GRAD_TILES[0] if op == "wgrad" else TILES[0]
    forced(op, geometry, tile, operands(op, x, *others), precision="tf32")


@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
@pytest.mark.parametrize("layout", ["channels_last", "rows_apart", "shifted"])
def test_every_alignment(kernel_backend, op, layout):
    geometry = image(4, 24, 3, 9, (1, 4), C=2)
    x, weight, bias, dy = tensors(geometry, torch.float16, kernel_backend.device, whole_numbers)
    args = operands(op, moved(x, layout), weight, bias, moved(dy, layout))
    plan = with_tile(op, geometry, GRAD_TILES[1] if op == "wgrad" else TILES[0])
    check_exact(op, args, geometry, launched(op, args, geometry, plan))


def test_a_nan_stays_in_the_blocks_that_load_it(kernel_backend):
    geometry = image(12, 64, 3, 5, (1, 2))
    x, weight, bias, _ = tensors(geometry, torch.float16, kernel_backend.device)
    x[0, 0, 6, 40] = torch.nan
    plan = with_tile("fprop", geometry, BandedTile(16, 4, 8, 64, 4, 1))
    y = launched("fprop", (x, weight, bias), geometry, plan)[0, 0]
    wrong = ~y.isfinite().cpu()
    assert wrong[5:8, 38:43].all()  # the outputs that use it
    wrong[4:8, 32:56] = False  # rows of blocks that read its row, and their columns aligned
    assert not wrong.any()


def test_the_alignment_given_to_the_kernel_is_true():
    from tricorr.ops.launch.layout import alignment

    def of_rows(image):
        return alignment(image, 3, image.shape[3])

    aligned = torch.empty(2, 3, 4, 24, dtype=torch.float16)
    assert of_rows(aligned) == 8
    assert of_rows(aligned.float()) == 4
    assert of_rows(aligned[..., :12]) == 4  # the width is a multiple of 4 columns
    assert of_rows(aligned[..., 4:]) == 1
    assert of_rows(aligned[:, :, :, ::2]) == 1
    assert of_rows(aligned.to(memory_format=torch.channels_last)) == 1
    assert of_rows(torch.empty(2, 3, 7, 7, dtype=torch.float16)) == 1
    assert of_rows(torch.empty(1, 1, 1, 14, dtype=torch.float16)) == 2


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        pytest.param(name, tile, id=f"{type(tile).__name__}-{name}-{i}")
        for i, tile in enumerate([*TILES, *GRAD_TILES])
        for name in (GEOMETRIES if i < len(TILES) else GEOMETRIES | STRIDED)
    ],
)
def test_a_band_holds_every_tap_of_every_column_inside_the_image(name, tile):
    g = (GEOMETRIES | STRIDED)[name]
    band = tile.band(g)
    block = getattr(tile, "BLOCK_Q", COLUMN_STEP)
    assert band.columns % COLUMN_STEP == band.first % COLUMN_STEP == 0
    for q in range(g.Q):
        for s in range(g.S):
            w = q * g.stride[1] - g.padding[1][0] + s
            i = w - (q - q % block) * g.stride[1] - band.first
            assert i + band.shift - q % block * g.stride[1] == s
            assert 0 <= i < band.columns or not 0 <= w < g.W


def family(op, window, dtype=torch.bfloat16, precision="tf32", size=2048, last=False, **more):
    pads = tuple((n // 2, (n - 1) // 2) for n in window)
    g = replace(image(size, size, 1, 1, **more), R=window[0], S=window[1], padding=pads)
    piece = 1 if last and g.C > 1 else math.gcd(16 // dtype.itemsize, size)
    layout = Layout(channels_last=last, x_align=piece, y_align=piece)
    return planned(op, g, dtype, layout, H200, precision).family


@pytest.mark.parametrize("op", OPS)
def test_large_windows_are_banded_where_a_matrix_unit_multiplies_their_numbers(op):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        half = dtype != torch.float32
        for n in (9, 15, 31, 63):
            direct = n == 9 and not half and op != "wgrad"
            assert family(op, (n, n), dtype) == ("columns" if direct else "banded")
        for n in (3, 5):
            grouped = op == "wgrad" and half and n == 5
            assert family(op, (n, n), dtype) == ("banded" if grouped else "rows")
    assert family(op, (31, 31), torch.float32, "tf32x3") == "banded"
    assert family(op, (31, 31), torch.float32, "ieee") == "columns"
    assert family(op, (31, 31), torch.float64) == "columns"
    assert family(op, (31, 31), last=True, C=64) == family(op, (31, 31), last=True) == "banded"
    for size, n in ((56, 31), (28, 29), (14, 27), (7, 13)):  # RepLKNet's
        if op != "wgrad" or size == 56:
            assert family(op, (n, n), size=size, C=128, N=32) == "banded"


@pytest.mark.parametrize(
    ("size", "layout"),
    [(512, Layout()), (508, Layout()), (512, Layout(int64=True))],
    ids=["in_pieces", "between_pieces", "wide"],
)
def test_unaligned_columns_take_tiles_with_few_results_per_thread(size, layout):
    pads = ((15, 15), (15, 15))
    g = geometry_of((32, 64, size, size), (64, 1, 31, 31), padding=pads, groups=64)
    problem = Problem("fprop", g, torch.float16, layout=layout, device=H200)
    (tile,) = banded.tiles(problem)
    few = tile.results <= banded.MAX_LONE_RESULTS
    assert few == (size % 8 > 0 or layout.int64)


@pytest.mark.parametrize("op", OPS)
def test_strides_of_images_and_dilations_are_not_banded(op):
    for steps in ({"stride": (2, 1)}, {"stride": (3, 3)}, {"dilation": (1, 2)}):
        g = geometry_of((1, 1, 512, 512), (1, 1, 9, 9), **steps)
        banded_too = op == "wgrad" and steps == {"stride": (2, 1)}
        aligned = Layout(x_align=8, y_align=8)
        assert (planned(op, g, torch.float16, aligned, H200).family == "banded") == banded_too
    several = geometry_of((1, 1, 512, 512), (3, 1, 9, 9))
    problem = Problem(op, several, torch.float16, layout=Layout(), device=H200)
    assert bool(banded.tiles(problem)) == (op != "dgrad")


def test_bands_too_large_for_the_workspace_are_not_planned(monkeypatch):
    monkeypatch.setattr(banded, "MAX_WORKSPACE", 2**20)
    choose.plan.cache_clear()
    many = geometry_of((1, 512, 64, 64), (512, 1, 31, 31), groups=512)
    assert planned("fprop", many, torch.float16, Layout(), H200).family != "banded"
    choose.plan.cache_clear()
    monkeypatch.undo()
    assert planned("fprop", many, torch.float16, Layout(), H200).family == "banded"


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("device", [INTERPRETER, *DEVICES.values()], ids=lambda d: d.arch)
@pytest.mark.parametrize("product", BANDED_TILES)
def test_every_device_has_room_for_a_tile(op, device, product):
    dtype = torch.float16 if product == "half" else torch.float32
    g = geometry_of((1, 1, 99, 99), (1, 1, 31, 31))
    problem = Problem(op, g, dtype, product, device=device)
    if problem.product == "ieee":  # AMD's tf32x3
        assert not banded.is_legal(problem)
    else:
        assert banded.tiles_with_room(problem)
