"""Configurations of kernels that prepare operands or add up: copies, bands, partial sums, lags."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ...ops.launch.banded_launch import BANDS_BLOCK
from ...ops.launch.copies import TILE as COPY_TILE
from ...ops.launch.patch_launch import PATCH_WEIGHT_BLOCK
from ...ops.plan import banded, choose, gemm
from ...ops.plan.exchange.format_copies import ChannelsLast, Planes, Sampled
from ...ops.plan.exchange.image_patches import Patches
from ...ops.plan.exchange.windows import Overlapping
from .cases import CASES, EXACT, PRODUCTS, Case, case_of
from .configuration import TARGETS, Configuration, variants_of
from .planned import PlannedCall

#: (kernel, case, dtype) of helpers in the table of machine code.
RECORDED_HELPERS = (
    ("copy_flat", "dense", "tf32"),
    ("copy_patches", "pixels", "bfloat16"),
    ("fprop_separable", "9x9", "float32"),
    ("lag_sums", "narrow", "float32"),
    ("sum_partials", "narrow", "float32"),
    ("sum_partials", "planes", "bfloat16"),
)


def helper_configurations() -> Iterator[Configuration]:
    """Kernels that prepare or add up, in every dtype, with offsets of 32 bits and of 64."""
    wide = case_of(8, 2**15, 56, 56, 2**16, 1, 1, ops="wgrad")
    epilogue = case_of(8, 64, 56, 56, 64, 3, 3, bias=True, residual=True, activation="gelu")
    image = case_of(1, 1, 4096, 4096, 1, 7, 7)
    images = case_of(32, 3, 8192, 8192, 1, 5, 5, last=True)
    windows = {
        f"{R}x{S}": case_of(
            *shape, R, S, ops="fprop", padding_mode=mode, last=last, groups=shape[1]
        )
        for shape, R, S, mode, last in (
            ((1, 1, 4096, 4096, 1), 3, 5, "replicate", False),
            ((1, 1, 4096, 4096, 1), 9, 9, "reflect", False),
            ((1, 1, 4096, 4096, 1), 31, 31, "reflect", False),
            ((1, 1, 4096, 4096, 1), 25, 25, "zeros", False),
            ((8, 3, 47, 56, 3), 15, 13, "circular", False),
            ((8, 3, 2161, 3839, 3), 12, 11, "reflect", False),
            ((8, 64, 56, 56, 64), 7, 7, "zeros", True),
        )
    }
    half, some = PRODUCTS["half"], ("bfloat16", "tf32")
    #: (kernel, name, family, its case, operator, dtypes)
    made: list[tuple[str, str, str, str | Case, str, Iterable[str]]] = [
        ("build_bands", "image31", "banded", "image31", "fprop", (*half, "tf32")),
        ("build_lines", "image31", "resident", "image31", "fprop", half),
        ("copy_images", "weight", "gemm", "planes", "fprop", (*half, "float32", "float64")),
        ("copy_images", "short_rows-fprop", "tma", "short_rows", "fprop", some),
        ("copy_images", "ragged-fprop", "tma", "ragged", "fprop", some),
        ("copy_images", "ragged-wgrad", "tma", "ragged", "wgrad", some[:1]),
        ("copy_images", "ragged_planes-wgrad", "tma", "ragged_planes", "wgrad", some),
        *(
            ("copy_flat", name, "flat", name, "wgrad", ("tf32",))
            for name in ("dense", "last", "strided")
        ),
        ("build_patch_weight", "head", "patch", "head", "fprop", (*half, "tf32")),
        ("sum_partials", "narrow", "gemm", "dense", "wgrad", EXACT),
        ("sum_partials", "wide", "gemm", wide, "wgrad", EXACT),
        ("sum_partials", "planes", "gemm", "planes", "wgrad", ("bfloat16", "float32")),
        ("sum_partials", "image", "gemm", epilogue, "fprop", ("bfloat16", "float64")),
        ("lag_sums", "narrow", "stencil", image, "wgrad", EXACT),
        ("lag_sums", "wide", "stencil", images, "wgrad", EXACT),
        *(
            ("fprop_separable", n, "stencil", case, "fprop", EXACT if n == "9x9" else EXACT[:3])
            for n, case in windows.items()
        ),
    ]
    for kernel, name, family, key, op, dtypes in made:
        case = CASES[family][key] if isinstance(key, str) else key
        for dtype in dtypes:
            if (kernel, dtype) == ("sum_partials", "uint8"):
                continue
            if kernel in ("lag_sums", "fprop_separable"):
                planned = PlannedCall(case.workload, kernel, dtype, case.format)
            else:
                variants = next(variants_of(family, case, op, dtype, TARGETS["sm_90"]))
                planned = next(iter(variants.values()))
            if kernel == "sum_partials":
                planned = replace(planned, plan=replace(planned.plan, splits=100))
            recorded = (kernel, name, dtype) in RECORDED_HELPERS
            yield Configuration("helper", name, kernel, planned, "", recorded)
    yield from _on_copies()


def _on_copies() -> Iterator[Configuration]:
    """Copies of what a stride reads or reaches, in planes, of patches, and a kernel between."""
    points = case_of(32, 256, 56, 56, 512, 1, 1, stride=2, ops="fprop dgrad")
    strided = case_of(32, 128, 57, 56, 256, 3, 3, stride=3, ops="fprop")
    last = case_of(64, 120, 28, 28, 120, 9, 9, groups=120, ops="fprop", last=True)
    cut: dict[str, Any] = {"padding": ((0, 0), (0, 0)), "ops": "fprop dgrad"}
    pixels = case_of(64, 3, 224, 224, 768, 16, 16, stride=16, **cut)
    narrow = case_of(32, 3, 224, 224, 1024, 14, 14, stride=14, **cut)
    deep = case_of(8, 2048, 28, 28, 512, 4, 4, stride=4, **cut)
    ragged = case_of(8, 67, 57, 59, 64, 3, 5, stride=(3, 5), **cut)
    stem = case_of(32, 3, 224, 224, 64, 7, 7, stride=2, ops="fprop")
    stem_last = replace(stem, format="channels_last")
    planes, crs, rsc = Planes(result=True), Patches("crs"), Patches("rsc")
    for kernel, name, case, op, exchange in (
        ("copy_images", "samples", points, "fprop", Sampled()),
        ("copy_images", "spreads", points, "dgrad", Sampled()),
        ("copy_images", "rows", last, "fprop", planes),
        ("copy_images", "stem", stem, "fprop", Overlapping()),
        ("copy_images", "stem-last", stem_last, "fprop", Overlapping()),
        ("copy_patches", "pixels", pixels, "fprop", crs),
        ("copy_patches", "pixels-back", pixels, "dgrad", crs),
        ("copy_patches", "pixels-rsc", pixels, "fprop", rsc),
        ("copy_patches", "pixels-rsc-back", pixels, "dgrad", rsc),
        ("copy_patches", "narrow", narrow, "fprop", crs),
        ("copy_patches", "deep", deep, "fprop", crs),
        ("copy_patches", "deep-rsc-back", deep, "dgrad", rsc),
        ("copy_patches", "ragged", ragged, "fprop", rsc),
        ("copy_patches", "ragged-back", ragged, "dgrad", crs),
        ("fprop_gemm", "mixed", strided, "fprop", ChannelsLast()),
    ):
        for dtype in ("bfloat16", "tf32"):
            call = PlannedCall(case.workload, op, dtype, case.format)
            seen = exchange.seen(call.problem(TARGETS["sm_90"].device))
            tile = (banded if exchange is planes else gemm).tiles(seen)[0]
            plan = replace(choose.plan_with_tile(seen, tile), exchange=exchange)
            recorded = (kernel, name, dtype) in RECORDED_HELPERS
            yield Configuration("helper", name, kernel, replace(call, plan=plan), "", recorded)


def work_of_helper(configuration: Configuration) -> tuple[int, int] | None:
    """(result elements, multiply-adds) of one program; one of these for each element copied.

    None for kernels whose plan counts their work.
    """
    kernel, call = configuration.kernel, configuration.call().arguments
    if kernel == "sum_partials":
        return call["BLOCK_E"], call["SPLITS"] * call["BLOCK_E"]
    if kernel == "lag_sums":
        lags = call["BLOCK_R"] * call["BLOCK_S"]
        rows = call["SPLIT_STRIPS"] * (call["BLOCK_P"] + call["BLOCK_R"] - 1)
        return lags, lags * rows * call["BLOCK_Q"]
    if kernel == "fprop_separable":
        tile, window = call["TILE"], call["WINDOW"]
        size = (tile.BLOCK_P, tile.BLOCK_Q, tile.BLOCK_C, window.R, window.S)
        rows, columns, planes, R, S = map(int, size)
        return rows * columns * planes, (rows + R - 1) * columns * planes * (R + S)
    blocks: tuple[Any, ...] = ()
    if kernel in ("build_bands", "build_lines"):
        blocks = (BANDS_BLOCK,)
    elif kernel in ("copy_images", "copy_flat"):
        blocks = COPY_TILE
    elif kernel == "copy_patches":
        layout = call["LAYOUT"]
        blocks = (layout.BLOCK_C, layout.BLOCK_R, layout.BLOCK_Q, layout.BLOCK_S)
    elif kernel == "build_patch_weight":
        blocks = (PATCH_WEIGHT_BLOCK,)
    elements = math.prod(map(int, blocks))
    return (elements, elements) if blocks else None
