"""Every tile of the GEMM tables: a call that takes it, and a run with partly filled tiles.

Tiles of GEMM_TILES and STENCIL_TILES run in test_kernels.py, of banded kernels in test_banded.py,
of rows kernels, whose tiles depend on the geometry, in test_rows.py; all of them, with random
plans, in test_random_geometries.py.
"""

from dataclasses import replace

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import operands, run, truth
from plans import H200, OPS, boxed, planned, with_tile

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.gemm import GEMM_GRADIENT_TILES, GEMM_TILES, WIDE_GEMM_TILES
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.tma import TMA_GRADIENT_SHAPES, TMA_SHAPES, is_legal, shaped_tile
from tricorr.ops.plan.tma_copies import multiplies_crosswise

A100, B200 = DEVICES["a100"], DEVICES["b200"]
KINDS = {
    "half": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "ieee": (torch.float32, "ieee"),
    "float64": (torch.float64, "ieee"),
}
#: Together they take every tile, on an H200, A100 or B200: few and many pixels and channels.
CALLS = [
    geometry_of((N, C, size, size), (K, C, R, R), (step, step), ((R // 2,) * 2,) * 2)
    for N, size, C, K, R, step in (
        (1, 7, 3, 16, 3, 1),
        (1, 7, 16, 16, 1, 2),
        (1, 7, 64, 256, 3, 1),
        (1, 7, 64, 512, 3, 1),
        (1, 7, 128, 512, 3, 2),
        (1, 7, 256, 512, 3, 1),
        (1, 14, 16, 16, 1, 1),
        (1, 14, 128, 512, 3, 1),
        (1, 28, 3, 256, 3, 1),
        (1, 28, 3, 512, 3, 1),
        (1, 56, 3, 256, 3, 1),
        (1, 56, 3, 512, 3, 1),
        (1, 56, 16, 16, 1, 1),
        (1, 56, 16, 256, 1, 1),
        (1, 56, 16, 256, 3, 1),
        (1, 56, 16, 512, 1, 1),
        (1, 56, 16, 512, 2, 1),
        (1, 56, 64, 256, 3, 1),
        (1, 56, 64, 512, 1, 1),
        (1, 56, 64, 512, 2, 1),
        (1, 56, 128, 16, 3, 2),
        (1, 56, 256, 512, 1, 1),
        (1, 112, 3, 16, 3, 1),
        (1, 112, 16, 256, 1, 1),
        (1, 112, 64, 256, 1, 1),
        (8, 56, 16, 16, 3, 1),
        (8, 112, 32, 8, 3, 1),
        (8, 112, 64, 24, 3, 1),
        (8, 28, 128, 256, 3, 1),
        (8, 28, 256, 128, 3, 1),
        (8, 28, 512, 64, 3, 1),
        (8, 56, 16, 64, 1, 1),
        (8, 56, 64, 128, 3, 1),
        (8, 56, 128, 16, 1, 1),
        (8, 56, 128, 256, 3, 2),
        (8, 16, 1280, 1280, 5, 1),
        (8, 32, 512, 512, 3, 1),
        (8, 32, 512, 2048, 5, 2),
        (4, 64, 64, 1024, 3, 1),
        (32, 56, 128, 32, 3, 2),
        (64, 14, 96, 96, 5, 2),
        (1, 56, 64, 1024, 3, 1),
    )
] + [  # patch kernels take no dilation
    geometry_of((8, C, 112, 112), (K, C, 3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2))
    for C, K in ((32, 8), (64, 24))
]


SHAPES_OF = {
    False: TMA_SHAPES,
    True: dict.fromkeys(shape for table in TMA_GRADIENT_SHAPES.values() for shape in table),
}


def shape_of(op, tile):
    """The entry of TMA_SHAPES or TMA_GRADIENT_SHAPES that a tile was made from."""
    size = tile.BLOCK_K if op == "wgrad" else tile.pixels
    return (tile.BLOCK_N, size, tile.num_warps, tile.num_stages)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("product", KINDS)
def test_every_tile_of_the_tables_is_planned_for_some_call(op, product):
    dtype, precision = KINDS[product]
    taken = set()
    for g in CALLS:
        g = replace(g, C=g.K, K=g.C) if op == "dgrad" else g
        aligned = all(n * dtype.itemsize % 16 == 0 for n in (g.C, g.K))
        boxes = "NHWC" if aligned else ""
        layouts = (Layout(), Layout(int64=True), Layout(True), Layout(True, False, boxes, boxes))
        for layout in layouts:
            for device in (H200, A100, B200):
                plan = planned(op, g, dtype, layout, device, precision)
                taken.add(shape_of(op, plan.tile) if plan.family == "tma" else plan.tile)
    tables = {*(GEMM_GRADIENT_TILES if op == "wgrad" else GEMM_TILES)[product]}
    if op != "wgrad":  # in a weight gradient it is the last of the table
        tables.add(WIDE_GEMM_TILES[product])
    if product == "half" or (product == "tf32" and op != "wgrad"):
        tables |= {*SHAPES_OF[op == "wgrad"]}
    assert not tables - taken, tables - taken


def exact(op, g, plan, dtype, device, precision, channels_last):
    """Compares the exact result for whole numbers."""
    from tricorr.ops.launch import entry as launch

    made = tensors(g, dtype, device, whole_numbers)
    if channels_last:
        made = [
            t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made
        ]
    args = operands(op, *made)
    actual = run(op, args, g, launch, precision=precision, plan=plan)
    assert torch.equal(actual.cpu(), torch.from_numpy(truth(op, args, g)).to(dtype))


SHAPES = [
    pytest.param(op, product, shape, id=f"{op}-{product}-{shape[0]}x{shape[1]}")
    for op, product in (
        ("fprop_bias", "half"), ("fprop_bias", "tf32"), ("dgrad", "half"), ("dgrad", "tf32"),
        ("wgrad", "half"),
    )
    for shape in SHAPES_OF[op == "wgrad"]
]  # fmt: skip


@pytest.mark.parametrize(("op", "product", "shape"), SHAPES)
def test_every_shape_of_boxes(kernel_backend, op, product, shape):
    """More than one box of pixels and block of channels; the last are partly filled."""
    name = op.removesuffix("_bias")
    dtype, precision = KINDS[product]
    device = kernel_backend.device
    if device == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this GPU has no such descriptors")
    results, summed = shape[0] + 8, 64
    if op == "wgrad":  # boxes divide the planes; the last has fewer images
        summed = shape[1] + 8
    C, K = (results, summed) if op != "fprop_bias" else (summed, results)
    # Every tap is a program of its own in a weight gradient.
    rows, columns, R = (8, 8, 1) if op == "wgrad" else (10, 18, 3)
    g = geometry_of((2, C, rows, columns), (K, C, R, 2), padding=((R // 2, R // 2), (0, 1)))
    problem = Problem(name, g, dtype, precision, boxed("NHWC"), H200)
    tile = shaped_tile(problem, shape)
    assert is_legal(problem, tile)
    plan = choose.plan_with_tile(problem, tile, splits=2)
    assert plan.grid > 1
    assert multiplies_crosswise(dtype) == (product == "half")
    exact(op, g, plan, dtype, device, precision, channels_last=True)


@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
@pytest.mark.parametrize("product", KINDS)
def test_every_tile_of_wide_offsets(kernel_backend, op, product):
    """Reduction steps across several taps, because there are few channels."""
    name = op.removesuffix("_bias")
    dtype, precision = KINDS[product]
    tile = WIDE_GEMM_TILES[product]
    C, K = (tile.BLOCK_N + 3, 5) if op == "dgrad" else (5, tile.BLOCK_N + 3)
    g = geometry_of((2, C, 9, 11), (K, C, 3, 3), (1, 2), ((1, 1), (1, 1)))
    plan = with_tile(name, g, tile, 2, precision, int64=True, one_tap=False)
    assert plan.grid > 1
    exact(op, g, plan, dtype, kernel_backend.device, precision, channels_last=product == "tf32")
