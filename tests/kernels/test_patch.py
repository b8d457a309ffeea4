"""Patch kernels: every window, stride, patch and format, every tile, and when they are planned."""

import math
from dataclasses import replace

import pytest
import torch
from cases import DTYPES, in_format, tensors, whole_numbers
from closeness import check, check_exact, exact, operands
from plans import H200, OPS, launched, planned, with_tile

from tricorr.ops import geometry_of
from tricorr.ops.plan import patch
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.patch import PATCH_GRADIENT_SHAPES, PATCH_SHAPES, PatchTile
from tricorr.ops.plan.problem import Layout, Problem


def layer(x, weight, stride=1, padding=(0, 0), **more):
    """Padding (rows, columns), each a number or (before, after)."""
    steps = stride if isinstance(stride, tuple) else (stride, stride)
    sides = tuple(p if isinstance(p, tuple) else (p, p) for p in padding)
    return geometry_of(x, weight, steps, sides, **more)


GEOMETRIES = {
    "window": layer((2, 3, 11, 13), (5, 3, 3, 4), 1, ((1, 2), (0, 3))),
    "stem": layer((2, 3, 17, 19), (20, 3, 7, 5), (2, 3), ((3, 2), (2, 1))),
    "patchify": layer((2, 3, 12, 16), (18, 3, 4, 4), 4),
    "patchify_leaves_pixels_over": layer((1, 3, 13, 18), (18, 3, 4, 4), 4),
    "patches_of_sixteen": layer((1, 3, 32, 16), (18, 3, 16, 16), 16),
    "groups": layer((2, 6, 11, 9), (9, 2, 3, 3), (2, 1), (1, 1), groups=3, flip=True),
    "stride_exceeds_window": layer((2, 4, 11, 9), (9, 4, 2, 1), (3, 2), ((1, 0), (0, 1))),
    "cropped": layer((2, 3, 11, 13), (5, 3, 3, 2), (2, 1), ((-1, 2), (3, -2))),
    "pad_exceeds_window": layer((1, 2, 5, 6), (3, 2, 3, 3), 2, ((6, 5), (7, 4))),
    "one_output": layer((2, 3, 4, 5), (4, 3, 4, 5)),
    "many_channels": layer((1, 70, 9, 8), (3, 70, 3, 3), 1, (1, 1)),
    "row_exceeds_a_step": layer((1, 12, 7, 9), (3, 12, 3, 5), 1, (1, 2)),
    "reflected": layer((2, 3, 11, 13), (5, 3, 3, 4), 1, ((1, 2), (2, 3)), padding_mode="reflect"),
    "circular": layer((1, 2, 5, 6), (9, 2, 3, 3), 2, ((5, 2), (3, 6)), padding_mode="circular"),
}
PATCHES = [(1, 1), (2, 1), (2, 2), (1, 4), (8, 2)]
#: Each geometry and operator with one patch and one format, which alternate.
CASES = [
    pytest.param(op, name, PATCHES[(i + j) % len(PATCHES)], (i + j) % 2 == 1, id=f"{op}-{name}")
    for i, op in enumerate(("fprop_bias", "dgrad", "wgrad"))
    for j, name in enumerate(GEOMETRIES)
    if op == "dgrad" or name != "patches_of_sixteen"  # elsewhere it has too many zeros
]


def forced(op, g, tile, made, last=False, splits=1, precision="ieee", **more):
    """(operands, result) of the operator with this tile."""
    plan = with_tile(op, g, tile, splits, precision, Layout(channels_last=last))
    assert plan.splits >= splits
    args = operands(op, *(in_format(made) if last else made))
    return args, launched(op, args, g, plan, **more)


@pytest.mark.parametrize(("op", "name", "sides", "last"), CASES)
def test_every_window_step_and_patch(kernel_backend, op, name, sides, last):
    g, tile = GEOMETRIES[name], PatchTile(32, 32, 16, *sides, 4, 2)
    splits = 1 + ((tile.patches("wgrad", g) > 16) if op == "wgrad" else last)
    made = tensors(g, torch.float16, kernel_backend.device, whole_numbers)
    args, actual = forced(op, g, tile, made, last, splits)
    check_exact(op, args, g, actual)


KINDS = {
    "half": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "ieee": (torch.float32, "ieee"),
    "float64": (torch.float64, "ieee"),
}
TILES = [
    pytest.param(op, product, shape, id=f"{op}-{product}-{'x'.join(map(str, shape[:3]))}")
    for op, tables in (("dgrad", PATCH_SHAPES), ("wgrad", PATCH_GRADIENT_SHAPES))
    for product, shapes in tables.items()
    for shape in shapes
]


@pytest.mark.parametrize(("op", "product", "shape"), TILES)
def test_every_tile_of_the_tables(kernel_backend, op, product, shape):
    """More than one tile along every axis; the last is partly filled."""
    dtype, precision = KINDS[product]
    m, n, k, warps, stages = shape
    if op == "dgrad":
        g = layer((1, n // 4 + 1, 14, 2 * (m // 7) + 2), (k // 2 + 3, n // 4 + 1, 3, 2), 2, (1, 1))
        tile = PatchTile(m, n, k, 1, 1, warps, stages)
    else:
        g = layer((1, n // 12 + 1, 9, 21), (m // 4 + 1, n // 12 + 1, 2, 3), 1, (1, 1))
        tile = PatchTile(m, n, k, 2, 2, warps, stages)
    last = product != "tf32"
    problem = Problem(op, g, dtype, precision, Layout(channels_last=last))
    assert tile.programs(problem) > 1
    made = tensors(g, dtype, kernel_backend.device)
    args, actual = forced(op, g, tile, made, last, 1 + (op == "wgrad"), precision)
    check(op, args, g, actual=actual, precision=precision)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_with_an_epilogue(kernel_backend, dtype):
    g = GEOMETRIES["window"]
    made = tensors(g, dtype, kernel_backend.device)
    residual = torch.randn(g.y_shape, device=kernel_backend.device).to(dtype)
    tile = PatchTile(32, 32, 16, 2, 2, 4, 2)
    args, actual = forced(
        "fprop_bias", g, tile, made, dtype == torch.float16, residual=residual, activation="relu"
    )
    plain = exact("fprop_bias", args, g) + residual.cpu().double()
    absolute = exact("fprop_bias", [t.abs() for t in args], g)
    bound = 40 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    error = (actual.cpu().double() - plain.relu()).abs()
    limit = bound * (absolute + residual.cpu().double().abs())
    assert (error <= limit + torch.finfo(dtype).eps / 2 * plain.abs()).all()


def test_input_gradients_take_a_bias_and_images_may_be_uint8(kernel_backend):
    g = GEOMETRIES["stem"]
    tile = PatchTile(32, 32, 16, 1, 1, 4, 2)
    x, weight, bias, dy = tensors(g, torch.float32, kernel_backend.device, whole_numbers)
    added = torch.arange(g.C, dtype=torch.float32, device=kernel_backend.device)
    args, actual = forced("dgrad", g, tile, (x, weight, bias, dy), bias=added)
    expected = exact("dgrad", args, g).float()
    assert torch.equal(actual.cpu(), expected + added.cpu()[:, None, None])
    x = torch.randint(0, 9, g.x_shape, dtype=torch.uint8).to(kernel_backend.device)
    args, actual = forced("fprop_bias", g, PatchTile(32, 64, 16, 2, 1, 4, 2), (x, weight, bias, dy))
    check_exact("fprop_bias", args, g, actual)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("sides", PATCHES, ids=str)
def test_patches_cover_every_result_and_reach_every_tap_once(op, name, sides):
    g = GEOMETRIES[name]
    extents = {"fprop": (g.P, g.H), "dgrad": (g.H, g.P), "wgrad": (g.P, g.H)}[op]
    axis = PatchTile(16, 16, 16, *sides, 4, 2).axes(op, g)[0]
    stride, pad = g.stride[0], g.padding[0][0]
    found = []
    for u in range(axis.count):
        for b in range(axis.pitch):
            for i in range(axis.window):
                result, read = u * axis.pitch + b - axis.shift, u * axis.step - axis.pad + i
                tap = i * axis.of_place + b * axis.of_result + axis.first
                if 0 <= result < extents[0] and 0 <= read < extents[1] and 0 <= tap < g.R:
                    p, h = (read, result) if op == "dgrad" else (result, read)
                    found.append((p, h, tap))
    every = [(p, p * stride - pad + r, r) for p in range(g.P) for r in range(g.R)]
    assert sorted(found) == sorted(t for t in every if 0 <= t[1] < g.H)
    assert axis.count * axis.pitch - axis.shift >= extents[0]


def test_a_nan_stays_in_the_patches_that_read_it(kernel_backend):
    g = layer((1, 3, 12, 16), (3, 3, 3, 3), 1, (1, 1))
    x, weight, bias, dy = tensors(g, torch.float16, kernel_backend.device)
    x[0, 0, 5, 7] = torch.nan
    _, y = forced("fprop_bias", g, PatchTile(32, 64, 16, 4, 4, 4, 2), (x, weight, bias, dy))
    wrong = ~y.isfinite().cpu()
    assert wrong[0, :, 4:7, 6:9].all()  # the outputs that use it
    assert not wrong[0, :, :, :4].any()
    assert not wrong[0, :, 8:].any()


def few(op, C, K, size=256, R=3, stride=1, dtype=torch.bfloat16, last=False, N=8, **more):
    pads = ((R // 2, R // 2),) * 2 if stride < R else ((0, 0), (0, 0))
    g = layer((N, C, size, size), (K, C // more.get("groups", 1), R, R), stride, pads, **more)
    return planned(op, g, dtype, Layout(channels_last=last), H200, "tf32")


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_few_channels_take_matrix_units(last, dtype):
    kind = {"dtype": dtype, "last": last}
    for found in (
        few("dgrad", 3, 64, R=7, stride=2, **kind),
        few("dgrad", 3, 96, R=4, stride=4, **kind),
        few("dgrad", 3, 768, 224, R=16, stride=16, N=64, **kind),
        few("fprop", 64, 3, **kind),
        few("wgrad", 64, 3, **kind),
        *(few(op, 12, 12, **kind) for op in OPS),
    ):
        assert found.family not in ("columns", "stencil", "rows"), found
    for op in OPS:
        assert few(op, 128, 128, **kind).family != "patch"
        assert few(op, 12, 12, dilation=(2, 2), **kind).family != "patch"


def test_patches_with_zeros_are_planned_only_where_products_are_cheap():
    """Patches of several pixels multiply zeros, phases of a stride do not."""
    for dtype, precision in ((torch.float32, "ieee"), (torch.float64, "ieee")):
        g = layer((8, 3, 64, 64), (64, 3, 4, 4), 4)
        found = patch.tiles(Problem("dgrad", g, dtype, precision, device=H200))
        assert {tile.partials for tile in found} == {1}
        for op in ("fprop", "wgrad"):
            assert not patch.tiles(Problem(op, g, dtype, precision, device=H200))


def test_heavy_epilogues_take_tiles_with_few_results_per_thread():
    g = layer((8, 16, 256, 256), (6, 16, 3, 3), 1, (1, 1))
    for last in (False, True):
        layout = Layout(channels_last=last, epilogue=10)
        found = patch.tiles(Problem("fprop", g, torch.bfloat16, layout=layout, device=H200))
        assert found
        for tile in found:
            threads = 32 * tile.num_warps
            assert tile.BLOCK_M * tile.BLOCK_N <= patch.HEAVY_RESULTS * threads


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_and_workspaces_fit_every_device(device):
    for op, (C, K) in (("fprop", (32, 3)), ("dgrad", (3, 512)), ("wgrad", (2048, 3))):
        g = layer((8, C, 64, 64), (K, C, 9, 9), 1 + (op == "dgrad"), (4, 4))
        problem = Problem(op, g, torch.bfloat16, device=DEVICES[device])
        for tile in patch.tiles(problem):
            assert tile.shared_bytes(problem) <= problem.device.limits.shared
            assert patch.workspace_bytes(tile, problem) <= patch.MAX_WORKSPACE
            assert tile.splits(problem) * tile.partials <= max(tile.partials, patch.MAX_PARTIALS)


def test_products_with_zeros_are_counted():
    """Multiply-adds include places without a tap."""
    g = layer((8, 16, 256, 256), (3, 16, 3, 3), 1, (1, 1))
    problem = Problem("fprop", g, torch.bfloat16, layout=Layout(channels_last=True), device=H200)
    tile = PatchTile(128, 64, 32, 4, 4, 4, 3)
    assert tile.columns("fprop", g) == 48
    assert tile.steps("fprop", g, one_tap=False) == 6 * 3  # rows of 6 places of 16 channels
    plan = with_tile("fprop", g, tile, layout=problem.layout)
    work = tile.work(plan, problem)
    assert work.macs == 128 * 64 * 32 * 18
    assert work.launches == 2
    one = tile.work(replace(plan, one_tap=True), problem)
    assert math.isclose(one.macs, 2 * work.macs)
