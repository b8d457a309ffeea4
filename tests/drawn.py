"""Hypothesis strategies: geometries small enough for the interpreter, and plans for them.

A plan may be any that the planner or the tuner can choose: any tile of a family's tables or of the
tuner's search, any split, both index widths, flattened reductions or not.
"""

from dataclasses import replace
from typing import NamedTuple

import hypothesis
import torch
from hypothesis import strategies as st

from tricorr.ops import Geometry, geometry_of
from tricorr.ops.plan import banded, choose, columns, gemm, patch, rows, stencil, tma
from tricorr.ops.plan.problem import Layout, Plan, Problem

FAMILIES = ("gemm", "patch", "stencil", "rows", "columns", "banded", "tma")
#: Families whose forward kernels compute input gradients with stride 1; those that compute all.
TURNED, TURNED_ALWAYS = ("rows", "banded"), ("columns", "patch")
#: (product, dtype, precision) that kernels are planned for.
PRODUCTS = (
    ("half", torch.float16, "ieee"),
    ("half", torch.bfloat16, "ieee"),
    ("tf32", torch.float32, "tf32"),
    ("tf32x3", torch.float32, "tf32x3"),
    ("ieee", torch.float32, "ieee"),
    ("float64", torch.float64, "ieee"),
)
_MODES = {"zeros": 9, "replicate": 9, "reflect": -1, "circular": 0}
#: Most programs of a launch and rows of a program: each takes the interpreter milliseconds.
MOST_PROGRAMS, MOST_ROWS = 32, 16


class Drawn(NamedTuple):
    geometry: Geometry
    plan: Plan
    dtype: torch.dtype
    precision: str
    channels_last: bool


@st.composite
def axes(draw, window=3, stride=4, dilation=3, more=(0, 5)):
    """(extent, window, stride, padding, dilation) of one axis, the window inside the padding."""
    taps, gap = draw(st.integers(1, window)), draw(st.integers(1, dilation))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    least = max(1, gap * (taps - 1) + 1 - sum(padding))
    return (least + draw(st.integers(*more)), taps, draw(st.integers(1, stride)), padding, gap)


#: Either a few channels, for a stencil, or just enough for a matrix unit.
FEW_OR_MANY = st.integers(1, 3) | st.integers(16, 18)


@st.composite
def geometries(
    draw, C=FEW_OR_MANY, K=FEW_OR_MANY, least=0, groups=3, modes=tuple(_MODES), banks=True, **steps
):
    """A geometry with C channels and K filters in a group.

    Args:
        draw: from hypothesis.
        C: strategy for the channels of a group.
        K: strategy for its filters.
        least: fewest samples.
        groups: most groups.
        modes: padding modes.
        banks: whether every sample may have a filter bank.
        steps: the largest window, stride and dilation, and `more` pixels, see axes.
    """
    (H, R, stride_h, rows, dil_h), (W, S, stride_w, columns, dil_w) = (
        draw(axes(**steps)) for _ in "HW"
    )
    N, G = draw(st.integers(least, 3)), draw(st.integers(1, groups))
    group_C, group_K = draw(C), draw(K)
    # A stencil with many channels on both sides is slow in the interpreter.
    hypothesis.assume(group_C * group_K <= 18 or min(group_C, group_K) >= 16)
    weight = (G * group_K, group_C, R, S)
    fits = [m for m in modes if max(rows) <= H + _MODES[m] and max(columns) <= W + _MODES[m]]
    return geometry_of(
        (N, G * group_C, H, W),
        (N, *weight) if banks and draw(st.booleans()) else weight,
        (stride_h, stride_w),
        (rows, columns),
        (dil_h, dil_w),
        G,
        draw(st.booleans()),
        draw(st.sampled_from(fits)),
    )


def geometries_of(op, family, dtype):
    """Geometries that a family's kernels are likely to take."""
    few, one = st.integers(1, 3), st.just(1)
    # An input gradient is planned with padding by zeros; its frame has a separate plan.
    modes = ("zeros",) if op == "dgrad" or family == "tma" else tuple(_MODES)
    # A weight gradient can be split only if its pixels take more than one step.
    large = op == "wgrad" and family in ("gemm", "stencil")
    size = {"least": 1, "modes": modes, "more": (8, 14) if large else (0, 5)}
    if family == "rows":
        return geometries(few, few, **size)
    if family == "banded":
        most = one if op == "dgrad" else st.integers(1, 2)
        return geometries(one, most, window=12, stride=1 + (op == "wgrad"), dilation=1, **size)
    if family == "columns":
        return geometries(few, few, window=12, stride=3, dilation=1, **size)
    if family == "patch":
        return geometries(few, FEW_OR_MANY, dilation=1, banks=False, **size)
    if family == "tma":
        several = st.sampled_from([16, 24, 32, 48] if dtype.itemsize == 2 else [16, 20, 32])
        return geometries(several, several, groups=2, banks=False, stride=2, dilation=2, **size)
    if family == "stencil":  # many channels on at most one side
        return geometries(few, few | st.integers(16, 18), **size)
    return geometries(stride=2 if large else 4, **size)


def table_tiles(family, problem):
    """The planner's tiles of a family, fitted to the problem."""
    if family == "gemm":
        return [*gemm.GEMM_TILES[problem.product], gemm.WIDE_GEMM_TILES[problem.product]]
    if family == "stencil":
        return list(stencil.STENCIL_TILES)
    if family == "rows":
        tile = rows.tile_for(problem)
        return [tile] if tile else []
    if family == "patch":
        return patch.legal_tiles(problem)
    if family == "columns":
        return [columns.tile_for(problem)]
    if family == "banded":
        return banded.tiles_with_room(problem)
    return list(tma.shaped_tiles(problem))


def has_kernel(family, problem):
    kinds = {"rows": rows, "columns": columns, "banded": banded, "tma": tma, "patch": patch}
    return family not in kinds or kinds[family].is_legal(problem)


def products_of(op, family):
    """The (product, dtype, precision) that a family supports for an operator."""
    if family == "gemm":
        return PRODUCTS
    if family in ("stencil", "rows", "columns"):
        return [kind for kind in PRODUCTS if kind[2] == "ieee"]
    kinds = [kind for kind in PRODUCTS if kind[0] in ("half", "tf32", "tf32x3")]
    if family in ("banded", "patch"):
        return kinds
    return kinds[:3] if op != "wgrad" else kinds[:2]


@st.composite
def calls(draw, op, family, device, search):
    """A geometry and a plan of that family for it.

    Args:
        draw: from hypothesis.
        op: "fprop", "dgrad" or "wgrad".
        family: of kernels.
        device: that tiles have to fit.
        search: whether to draw tiles that only the tuner would try, too.
    """
    _, dtype, precision = draw(st.sampled_from(products_of(op, family)))
    geometry = draw(geometries_of(op, family, dtype))
    channels_last = family == "tma" or draw(st.booleans())
    boxes = "NHWC" if family == "tma" else ""
    int64 = family != "patch" and draw(st.booleans())  # patch kernels have only 32-bit offsets
    as_rows = family == "tma" and geometry.is_point and draw(st.booleans())
    layout = Layout(channels_last, int64, boxes, boxes, as_rows=as_rows)
    problem = Problem(op, geometry, dtype, precision, layout, device)
    hypothesis.assume(has_kernel(family, problem))
    tiles = table_tiles(family, problem)
    hypothesis.assume(tiles)
    faster = 1 if search else 16  # compiled programs run faster
    if search and draw(st.booleans()):
        seed = draw(st.sampled_from(tiles))
        tiles = list(choose.family_of(seed).neighbours(seed, problem))
    tiles = [
        tile
        for tile in tiles
        if ((family == "rows" and not search) or choose.family_of(tile).fits(tile, problem))
        and (family == "rows") * getattr(tile, "BLOCK_P", 0) <= MOST_ROWS * faster
        and (family != "tma" or tma.is_legal(problem, tile))
        and (search or family != "tma" or tile.pixels >= 16)  # compilers multiply no fewer
    ]
    either = family == "gemm" and op != "wgrad"
    one_tap = {"one_tap": draw(st.booleans())} if either else {}

    def planned(tile, splits=1):
        return replace(choose.plan_with_tile(problem, tile, splits), **one_tap)

    # Exclude slow tiles before drawing, so that few draws are rejected.
    most = MOST_PROGRAMS * faster
    tiles = [tile for tile in tiles if planned(tile).grid <= most]
    hypothesis.assume(tiles)
    if op == "wgrad" and draw(st.booleans()):  # few pixels are one step of most tiles
        plans = [planned(tile, splits) for tile in tiles for splits in (2, 5, 100)]
        plans = [p for p in plans if p.splits > 1 and p.grid <= 2 * most]
        plans = list(dict.fromkeys(plans)) or [planned(tile) for tile in tiles]
        found = draw(st.sampled_from(plans))
    else:
        found = planned(draw(st.sampled_from(tiles)))
    if family == "rows" and found.interior == "none" and draw(st.booleans()):
        found = replace(found, interior="some")
    turned = op == "dgrad" and family in TURNED_ALWAYS
    turned |= family in TURNED and problem.is_turned
    assert found.turned == turned
    return Drawn(geometry, found, dtype, precision, channels_last)
