"""What is compiled for GPUs that need not be there: named cases with every tile, and drawn calls.

What the planner chooses decides a kernel's code: family, tile, index width, precision and, in a
GEMM, whether a step covers one tap. Types, strides and extents of the arguments decide the rest;
each of those appears with every tile, but not in every combination. `drawn` gives calls drawn at
random, as the planner would launch them, for what no table of cases thinks of: sizes are those of
photographs, of layers of networks and of what lies between; every operator, type, format, padding
mode and epilogue comes up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..ops.errors import ArgumentError
from ..ops.geometry import Geometry, geometry_of
from ..ops.launch.arguments import dgrad_call, fprop_call, wgrad_calls
from ..ops.launch.call import Call
from ..ops.launch.lag_launch import lag_sums_calls, tile_for
from ..ops.launch.layout import NARROW_LIMIT, is_heavy, layout_of
from ..ops.plan import banded, choose, tma
from ..ops.plan.banded import BANDED_GRAD_TILES, BANDED_TILES, AnyBandedTile
from ..ops.plan.device import DEVICES, Device
from ..ops.plan.gemm import (
    GEMM_GRADIENT_TILES,
    GEMM_TILES,
    LONE_RESULTS,
    LONG_STEP,
    WIDE_GEMM_TILES,
    GemmTile,
    tiles_with_room,
)
from ..ops.plan.problem import Layout, Plan, Problem, Tile
from ..ops.plan.stencil import STENCIL_TILES
from ..ops.plan.tma import ARCHITECTURES, TMA_GRADIENT_SHAPES, TMA_SHAPES
from ..ops.plan.tuned import tuned_for

#: See Target.parked.
PARKED = 16


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    Attributes:
        name: as compilers call it.
        gpu: backend, architecture and warp size, as triton's GPUTarget takes them.
        device: what the planner is told.
        float64_mma: whether Triton (3.6, 3.7) multiplies float64 on the matrix units.
        parked: bytes of a thread that ptxas may move to memory outside of the loop, which it does
            to stay at a number of registers where one program more fits: none on the target that
            is tuned for first. Triton 3.6, which tiles were not chosen with, may everywhere.
    """

    name: str
    gpu: tuple[str, int | str, int]
    device: Device
    float64_mma: bool = True
    parked: int = PARKED

    @property
    def is_amd(self) -> bool:
        return self.gpu[0] == "hip"

    @property
    def registers(self) -> int:
        """Most that one thread can have."""
        return self.device.limits.registers

    @property
    def shared(self) -> int:
        """Most bytes of shared memory (LDS) that one program can have."""
        return self.device.limits.shared


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", ("cuda", 80, 32), DEVICES["a100"]),
        Target("sm_90", ("cuda", 90, 32), DEVICES["h200"], parked=0),
        Target("sm_100", ("cuda", 100, 32), DEVICES["b200"], float64_mma=False),
        Target("gfx942", ("hip", "gfx942", 64), DEVICES["mi300x"]),
    )
}


@dataclass(frozen=True)
class Case:
    """Arguments with a reason to exist. dgrad gets them with the channels swapped.

    Attributes:
        geometry: of fprop and wgrad.
        channels_last: memory format of x and y.
        bias: whether fprop adds one.
        residual: whether it adds one, in the format of x and y.
        activation: what fprop does with the sum.
    """

    geometry: Geometry
    channels_last: bool = False
    bias: bool = False
    activation: str = "none"
    residual: bool = False

    @property
    def int64(self) -> bool:
        return max(self.geometry.x_numel, self.geometry.y_numel) > NARROW_LIMIT

    @property
    def layout(self) -> Layout:
        """Of tensors that descriptors cannot describe."""
        return Layout(self.channels_last, self.int64)

    @property
    def boxed(self) -> Layout:
        """Of tensors that descriptors can describe, and the epilogue."""
        boxes = "NHWC" if self.channels_last else "NCHW"
        heavy = is_heavy(self.residual, self.activation)
        as_rows = self.geometry.is_point
        return Layout(self.channels_last, self.int64, boxes, boxes, heavy, as_rows)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


_SAME = ((1, 1), (1, 1))
# Extents that nothing divides, a step, gaps and a turned window: no address is a simple one.
_ODD: dict[str, Any] = {
    "stride": (2, 1),
    "padding": ((2, 1), (1, 2)),
    "dilation": (1, 2),
    "flip": True,
}

GEMM_CASES = {
    "dense": Case(
        Geometry(8, 64, 56, 56, 64, 3, 3, padding=_SAME),
        channels_last=True,
        bias=True,
    ),
    "planes": Case(Geometry(8, 64, 56, 56, 64, 3, 3, padding=_SAME), bias=True),
    "planes_residual": Case(
        Geometry(8, 64, 56, 56, 64, 3, 3, padding=_SAME),
        bias=True,
        activation="silu",
        residual=True,
    ),
    "ragged": Case(Geometry(8, 67, 55, 57, 71, 3, 3, padding=_SAME), channels_last=True),
    "ragged_sum": Case(Geometry(8, 67, 55, 57, 64, 3, 3, padding=_SAME), channels_last=True),
    "ragged_result": Case(Geometry(8, 64, 55, 57, 71, 3, 3, padding=_SAME), channels_last=True),
    "ragged_point": Case(Geometry(64, 131, 1024, 1024, 257, 1, 1)),
    "pointwise": Case(Geometry(64, 128, 1024, 1024, 256, 1, 1)),
    "stem": Case(Geometry(8, 3, 224, 224, 64, 7, 7, stride=(2, 2), padding=((3, 3), (3, 3)))),
    "few": Case(Geometry(8, 3, 112, 112, 64, 3, 3, padding=_SAME)),
    "odd": Case(
        Geometry(
            311, 14, 1031, 1033, 34, 3, 3, groups=2, per_sample=True, padding_mode="reflect", **_ODD
        ),
        channels_last=True,
        bias=True,
        activation="silu",
        residual=True,
    ),
}
#: Cases of GEMM_CASES that ask for registers beside the sums: more, the smaller the elements are.
ONE_BY_ONE = ("planes", "planes_residual", "ragged_sum")

STENCIL_CASES = {
    "image": Case(Geometry(1, 1, 4096, 4096, 1, 3, 3, padding=_SAME)),
    "scale": Case(Geometry(64, 128, 1024, 1024, 128, 1, 1, groups=128)),
    "depthwise": Case(
        Geometry(32, 96, 112, 112, 96, 3, 3, padding=_SAME, groups=96),
        channels_last=True,
        bias=True,
    ),
    "odd": Case(
        Geometry(
            311,
            14,
            1031,
            1033,
            21,
            3,
            3,
            groups=7,
            per_sample=True,
            padding_mode="circular",
            **_ODD,
        ),
        channels_last=True,
        bias=True,
        activation="gelu",
        residual=True,
    ),
}

#: For rows kernels, whose tile follows from the geometry: each kind of window, layout and channels.
ROWS_CASES = {
    "image3": Case(Geometry(1, 1, 4096, 4096, 1, 3, 3, padding=_SAME)),
    "image5": Case(Geometry(1, 1, 4096, 4096, 1, 5, 5, padding=((2, 2), (2, 2)))),
    "image7": Case(Geometry(1, 1, 4096, 4096, 1, 7, 7, padding=((3, 3), (3, 3)))),
    "edge": Case(Geometry(1, 1, 4096, 4096, 1, 1, 2), bias=True),
    "planes3": Case(
        Geometry(64, 96, 56, 56, 96, 3, 3, padding=_SAME, groups=96, padding_mode="replicate"),
        bias=True,
        activation="relu6",
        residual=True,
    ),
    "planes7": Case(Geometry(64, 96, 56, 56, 96, 7, 7, padding=((3, 3), (3, 3)), groups=96)),
    "strided": Case(Geometry(64, 96, 112, 112, 96, 3, 3, stride=(2, 2), padding=_SAME, groups=96)),
    "last3": Case(
        Geometry(64, 144, 56, 56, 144, 3, 3, padding=_SAME, groups=144), channels_last=True
    ),
    "last7": Case(
        Geometry(64, 96, 56, 56, 96, 7, 7, padding=((3, 3), (3, 3)), groups=96), channels_last=True
    ),
    "strided_last": Case(
        Geometry(64, 96, 112, 112, 96, 3, 3, stride=(2, 2), padding=_SAME, groups=96),
        channels_last=True,
    ),
    "last_dilated": Case(
        Geometry(
            64,
            64,
            224,
            224,
            64,
            7,
            7,
            stride=(2, 1),
            padding=((6, 6), (6, 6)),
            dilation=(2, 2),
            groups=64,
        ),
        channels_last=True,
    ),
    "few_last": Case(
        Geometry(
            8, 3, 112, 112, 3, 1, 5, padding=((0, 0), (2, 2)), groups=3, padding_mode="replicate"
        ),
        channels_last=True,
        activation="gelu",
    ),
    "small": Case(Geometry(8, 64, 7, 7, 64, 3, 3, padding=_SAME, groups=64)),
    "two_filters": Case(Geometry(1, 1, 1024, 1024, 2, 3, 3, padding=_SAME)),
    "colours": Case(Geometry(1, 3, 2160, 3840, 1, 5, 5, padding=((2, 2), (2, 2)))),
    "odd": Case(
        Geometry(
            311,
            14,
            1031,
            1033,
            28,
            3,
            3,
            groups=14,
            per_sample=True,
            padding_mode="reflect",
            **_ODD,
        ),
        bias=True,
        activation="gelu",
    ),
}

#: For the frame of an input gradient.
FRAME_CASES = {
    "dense": Case(
        Geometry(8, 64, 56, 56, 64, 3, 3, padding=_SAME, padding_mode="reflect"),
        channels_last=True,
    ),
    "image": Case(
        Geometry(1, 1, 4096, 4096, 1, 5, 5, padding=((2, 2), (2, 2)), padding_mode="replicate")
    ),
    "odd": Case(
        Geometry(
            311,
            14,
            1031,
            1033,
            34,
            3,
            3,
            groups=2,
            per_sample=True,
            padding_mode="circular",
            **_ODD,
        )
    ),
}

#: For banded kernels: rows on a step of 16 bytes, rows that are not, numbers that are not even side
#: by side, and no simple address at all.
BANDED_CASES = {
    "image31": Case(Geometry(1, 1, 4096, 4096, 1, 31, 31, padding=((15, 15), (15, 15)))),
    "planes27": Case(
        Geometry(32, 512, 14, 14, 512, 27, 27, padding=((13, 13), (13, 13)), groups=512), bias=True
    ),
    "last27": Case(
        Geometry(32, 512, 14, 14, 512, 27, 27, padding=((13, 13), (13, 13)), groups=512),
        channels_last=True,
        activation="gelu",
    ),
    "odd": Case(
        Geometry(
            311, 14, 1031, 1033, 14, 9, 12, padding=((5, 3), (4, 6)), groups=14, flip=True,
            per_sample=True,
        ),
        channels_last=True,
        bias=True,
        residual=True,
    ),
}  # fmt: skip

#: For kernels that load through tensor descriptors: one loop, a loop for each phase of the input or
#: programs for each of the gradient's, and offsets of 64 bits with everything that is not simple.
TMA_CASES = {
    "dense": Case(
        Geometry(32, 256, 56, 56, 256, 3, 3, padding=_SAME),
        channels_last=True,
        bias=True,
    ),
    "strided": Case(
        Geometry(32, 128, 56, 56, 128, 3, 3, stride=(2, 2), padding=_SAME), channels_last=True
    ),
    "planes": Case(Geometry(32, 256, 56, 56, 256, 3, 3, padding=_SAME), bias=True),
    "pointwise": Case(Geometry(32, 256, 56, 56, 256, 1, 1), bias=True, activation="relu"),
    "pointwise_residual": Case(
        Geometry(32, 256, 56, 56, 256, 1, 1), bias=True, activation="relu", residual=True
    ),
    "residual": Case(
        Geometry(32, 256, 56, 56, 256, 3, 3, padding=_SAME),
        channels_last=True,
        bias=True,
        activation="relu",
        residual=True,
    ),
    "odd": Case(
        Geometry(311, 128, 1031, 1033, 128, 3, 3, groups=2, **_ODD),
        channels_last=True,
        bias=True,
    ),
    "gelu": Case(
        Geometry(32, 256, 56, 56, 256, 3, 3, padding=_SAME),
        channels_last=True,
        bias=True,
        activation="gelu",
    ),
    "odd_residual": Case(
        Geometry(311, 128, 1031, 1033, 128, 3, 3, groups=2, **_ODD),
        channels_last=True,
        bias=True,
        activation="silu",
        residual=True,
    ),
}

#: dtype and precision of the products in GEMM_TILES.
PRODUCTS: dict[str, tuple[tuple[torch.dtype, str], ...]] = {
    "half": ((torch.bfloat16, "ieee"), (torch.float16, "ieee")),
    "tf32": ((torch.float32, "tf32"),),
    "tf32x3": ((torch.float32, "tf32x3"),),
    "ieee": ((torch.float32, "ieee"),),
    "float64": ((torch.float64, "ieee"),),
}
STENCIL_DTYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.float16, torch.float64)
OPS = ("fprop", "dgrad", "wgrad")


@dataclass(frozen=True)
class Configuration:
    """A kernel with everything that decides its code.

    Attributes:
        kernel: its name.
        product: the row of GEMM_TILES or BANDED_TILES, "" for kernels without matrix units.
        case: a name in one of the tables of cases.
        arguments: what that name stands for.
        plan: what the planner decides.
        dtype: of all tensors, but uint8 is only x's and the others are float32 then.
    """

    kernel: str
    product: str
    case: str
    arguments: Case
    plan: Plan
    dtype: torch.dtype

    @property
    def geometry(self) -> Geometry:
        """Of the launch."""
        return launched_geometry(self.plan.op, self.arguments)

    @property
    def name(self) -> str:
        blocks = {k: v for k, v in vars(self.plan.tile).items() if k.startswith("BLOCK")}
        planned = self.kernel not in ("sum_partials", "lag_sums")
        tile = "x".join(map(str, blocks.values())) if planned else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join(filter(None, (self.kernel, self.product, tile, dtype, self.case)))

    def wants_mma(self, target: Target) -> bool:
        """Whether the matrix units should do the arithmetic."""
        if self.product == "float64":
            return target.float64_mma
        return self.product not in ("", "ieee")

    def problem(self, target: Target) -> Problem:
        """What is planned."""
        plan, case = self.plan, self.arguments
        weights = torch.float32 if self.dtype == torch.uint8 else self.dtype
        layout = case.boxed if plan.family == "tma" else case.layout
        precision, x_bytes = plan.precision, self.dtype.itemsize
        return Problem(plan.op, self.geometry, weights, precision, layout, target.device, x_bytes)

    def call(self) -> Call:
        """The launch, of meta tensors: however large, they take no memory."""
        geometry, plan = self.geometry, self.plan
        dtype = torch.float32 if self.dtype == torch.uint8 else self.dtype
        x_dtype = dtype if plan.op == "dgrad" else self.dtype
        x = self._empty(geometry.x_shape, x_dtype)
        if self.kernel == "lag_sums":
            out = x.new_empty(*2 * [geometry.C], geometry.R, geometry.S, dtype=torch.float64)
            rows, columns = geometry.H - geometry.R + 1, geometry.W - geometry.S + 1
            a, lags = x[..., :rows, :columns], (geometry.R, geometry.S)
            tile, splits = tile_for(a, x, lags, DEVICES["h200"].multiprocessors)
            return next(lag_sums_calls(a, x, out, tile, splits))
        y = self._empty(geometry.y_shape, dtype)
        weight = torch.empty(geometry.weight_shape, dtype=dtype, device="meta")
        if plan.op == "fprop":
            bias = weight.new_empty(geometry.K) if self.arguments.bias else None
            residual = torch.empty_like(y) if self.arguments.residual else None
            activation = self.arguments.activation
            call = fprop_call(x, weight, bias, y, geometry, plan, activation, residual)
            return call.before[0] if self.kernel == "build_bands" else call
        if plan.op.startswith("dgrad"):
            return dgrad_call(y, weight, None, x, geometry, plan)
        calls = list(wgrad_calls(x, y, weight, geometry, plan))
        return next(call for call in calls if call.kernel.__name__ == self.kernel)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        memory_format = self.arguments.memory_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def launched_geometry(op: str, case: Case) -> Geometry:
    """dgrad reduces over filters where fprop does over channels: it gets those swapped."""
    if op != "dgrad":
        return case.geometry
    return replace(case.geometry, C=case.geometry.K, K=case.geometry.C)


def configurations(target: Target, thin: bool = False) -> Iterator[Configuration]:
    """The configurations to compile for a target.

    Args:
        target: GPU to compile for.
        thin: every tile of every operator, with cases and types dealt out among the targets: what
            one target leaves out, another has. Otherwise everything.
    """
    turn = list(TARGETS).index(target.name)
    # What a tile is compiled with moves on by one from tile to tile, operator to operator and
    # target to target.
    for i, op in enumerate(OPS):
        for row, (product, types) in enumerate(PRODUCTS.items()):
            if product == "tf32x3" and target.is_amd:
                continue  # planned as ieee
            problem = Problem(op, GEMM_CASES["dense"].geometry, *types[0], device=target.device)
            too_large = set(GEMM_TILES[product]) - set(tiles_with_room(problem))
            for j, (tile, cases) in enumerate(_gemm_tiles(op, product)):
                if tile in too_large:
                    continue
                chosen = types
                if thin:
                    if cases[-1] == "odd" and (i + row + turn) % len(OPS):
                        # Slow to compile: one operator for each target, and of the tile that no
                        # other has the quick case.
                        if product != "ieee" or len(cases) == 1:
                            continue
                        cases = cases[:-1]
                    seldom = cases == ["stem"] or cases[0].startswith(("planes", "ragged"))
                    if seldom and (row + j + turn) % len(TARGETS):
                        continue  # one of the targets builds it
                    if cases[0] in ONE_BY_ONE and product not in ("half", "tf32"):
                        continue  # fewest there
                    cases = [cases[(i + j + turn) % len(cases)]]
                    chosen = (types[(j + turn) % len(types)],)
                for case in cases:
                    for dtype, precision in chosen:
                        yield _configuration(op, product, case, tile, dtype, precision)
                    if product == "ieee" and case == "stem" and op != "dgrad":
                        yield _configuration(op, product, case, tile, torch.uint8, "ieee")
        for j, stencil in enumerate(STENCIL_TILES):
            cases = list(STENCIL_CASES)
            dtypes = [t for t in STENCIL_DTYPES if op != "dgrad" or t != torch.uint8]
            if thin:
                cases = [cases[(i + j + turn) % len(cases)]]
                dtypes = [dtypes[(i + j - turn) % len(dtypes)]]
            for case in cases:
                for dtype in dtypes:
                    yield _configuration(op, "", case, stencil, dtype, "ieee")
    yield from _rows(target, thin)
    yield from _tma(target, thin)
    yield from _frames(target, thin)
    yield from _banded(target, thin)
    yield from _tuned(target)
    yield from _sums(target, thin)
    yield from _lags(target, thin)


def _rows(target: Target, thin: bool) -> Iterator[Configuration]:
    """Rows kernels as planned; dgrad with stride 1 runs fprop's, so it is not listed."""
    turn = list(TARGETS).index(target.name)
    for i, op in enumerate(OPS):
        for j, (name, case) in enumerate(ROWS_CASES.items()):
            dtypes = [t for t in STENCIL_DTYPES if op != "dgrad" or t != torch.uint8]
            if thin:
                if (i + j + turn) % len(TARGETS):
                    continue  # one of the targets builds it
                dtypes = [dtypes[(i + j // 3 + turn) % len(dtypes)]]
            geometry = launched_geometry(op, case)
            for dtype in dtypes:
                weights = torch.float32 if dtype == torch.uint8 else dtype
                problem = Problem(op, geometry, weights, "ieee", case.layout, target.device)
                plan = choose.plan(problem)
                if plan.family != "rows" or plan.turned:
                    continue
                yield Configuration(plan.kernel, "", name, case, plan, dtype)
                if plan.interior == "some" and not thin:
                    alone = replace(plan, interior="all")
                    yield Configuration(plan.kernel, "", f"{name}-interior", case, alone, dtype)


def _tma(target: Target, thin: bool) -> Iterator[Configuration]:
    """Kernels that load through tensor descriptors, with every shape of tile."""
    if target.device.arch not in ARCHITECTURES:
        return
    turn = ARCHITECTURES.index(target.device.arch)
    # Every shape of tile of an operator and kind of product; thin, each architecture has half.
    jobs = [(op, product) for op in OPS for product in ("half", "tf32")]
    for i, (op, product) in enumerate(jobs):
        tables = TMA_GRADIENT_SHAPES.values() if op == "wgrad" else (TMA_SHAPES,)
        rows = [(table, shape) for table in tables for shape in table]
        for j, (table, shape) in enumerate(rows):
            types = PRODUCTS[product]
            cases = [n for n in TMA_CASES if _takes_boxes(op, n, table, shape, *types[0], target)]
            loops = [n for n in cases if _takes_boxes_in_turn(op, n, shape, *types[0], target)]
            if thin:
                types = (types[j % len(types)],)
                pick = i + j // 2 + turn
                cases, loops = ([n[pick % len(n)]] if n else [] for n in (cases, loops))
                cases = [] if (i + j + turn) % 2 else cases
            for name in cases:
                for dtype, precision in types:
                    yield _tma_configuration(op, product, name, shape, dtype, precision, target)
            for name in loops:
                for dtype, precision in types:
                    loop = target.device.multiprocessors
                    made = _tma_configuration(
                        op, product, name, shape, dtype, precision, target, loop
                    )
                    yield replace(made, case=f"{name}-loop")


def _tma_problem(op: str, name: str, dtype: torch.dtype, precision: str, target: Target) -> Problem:
    case = TMA_CASES[name]
    geometry = launched_geometry(op, case)
    return Problem(op, geometry, dtype, precision, case.boxed, target.device)


def _tma_configuration(
    op: str,
    product: str,
    name: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    precision: str,
    target: Target,
    persistent: int = 0,
) -> Configuration:
    case, problem = TMA_CASES[name], _tma_problem(op, name, dtype, precision, target)
    tile = replace(tma.shaped_tile(problem, shape), persistent=persistent)
    plan = choose.plan_with_tile(problem, tile, splits=2 if case.bias else 1)
    return Configuration(plan.kernel, product, name, case, plan, dtype)


def _takes_boxes_in_turn(
    op: str,
    name: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    precision: str,
    target: Target,
) -> bool:
    """Whether a program may have several boxes, one after the other."""
    problem = _tma_problem(op, name, dtype, precision, target)
    if problem.layout.heavy_epilogue:  # a program has one box then
        return False
    return tma.takes_boxes_in_turn(tma.shaped_tile(problem, shape), problem)


def _takes_boxes(
    op: str,
    name: str,
    table: tuple[tuple[int, int, int, int], ...],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    precision: str,
    target: Target,
) -> bool:
    problem = _tma_problem(op, name, dtype, precision, target)
    if op != "fprop" and problem.layout.heavy_epilogue:
        return False
    found = tma.shapes(problem)
    return tma.is_legal(problem) and shape in found and set(found) <= set(table)


def _frames(target: Target, thin: bool) -> Iterator[Configuration]:
    """The frame of an input gradient, as planned."""
    turn = list(TARGETS).index(target.name)
    products = [(p, *kind) for p, kinds in PRODUCTS.items() for kind in kinds[:1]]
    if target.is_amd:
        products = [kind for kind in products if kind[0] != "tf32x3"]
    for i, (name, case) in enumerate(FRAME_CASES.items()):
        chosen = [products[(i + turn) % len(products)]] if thin else products
        for product, dtype, precision in chosen:
            geometry, layout = case.geometry, case.layout
            plan = choose.plan(
                Problem("dgrad_frame", geometry, dtype, precision, layout, target.device)
            )
            if plan.family == "gemm":
                yield Configuration(plan.kernel, product, name, case, plan, dtype)
            elif thin or not product.startswith("tf32"):
                yield Configuration(plan.kernel, "", name, case, plan, dtype)


def _banded(target: Target, thin: bool) -> Iterator[Configuration]:
    """Banded kernels; dgrad runs fprop's, with the window turned, so it is not listed.

    Of each tile, thin has one case and type on one of the targets.
    """
    tables: list[tuple[str, str, AnyBandedTile]] = []
    tables += [("fprop", p, tile) for p, tiles in BANDED_TILES.items() for tile in tiles]
    tables += [("wgrad", p, tile) for p, tiles in BANDED_GRAD_TILES.items() for tile in tiles]
    for j, (op, product, tile) in enumerate(tables):
        # AMD's tf32x3 is planned as ieee.
        able = [t for t in TARGETS.values() if not (t.is_amd and product == "tf32x3")]
        found = []
        for name, case in BANDED_CASES.items():
            problem = Problem(op, case.geometry, *PRODUCTS[product][0], case.layout, target.device)
            if target in able and tile in banded.tiles_with_room(problem):
                for dtype, precision in PRODUCTS[product]:
                    found.append(_configuration(op, product, name, tile, dtype, precision))
        if found and product == "tf32":
            found.append(replace(found[0], dtype=torch.uint8))
        if found and thin:  # the first for the target that is tuned for first
            found = [found[j % len(found)]] if able[(j + 1) % len(able)] == target else []
        yield from found
        if j == 0:
            yield from (replace(made, kernel="build_bands", product="") for made in found)


def _gemm_tiles(op: str, product: str) -> Iterator[tuple[GemmTile, list[str]]]:
    """The tiles that an operator may be planned with, each with the cases it is planned for."""
    if op == "wgrad":
        many, few, wide, *narrow = GEMM_GRADIENT_TILES[product]
        yield many, ["dense", "planes", "stem"]
        yield few, ["dense", "planes", "stem"]
        yield wide, ["ragged"]
        yield wide, ["pointwise", "odd"]
        for tile in narrow:
            yield tile, ["dense", "planes", "stem"]
        return
    # Few channels: the forward operator takes any step, the input gradient with one takes phases.
    for tile in GEMM_TILES[product]:
        if tile.BLOCK_K >= LONG_STEP:
            yield tile, ["dense"]
        else:
            yield tile, ["dense", "pointwise", "stem" if op == "fprop" else "few"]
            yield tile, ["planes"]
            if op == "fprop" and tile.BLOCK_N < 128:
                yield tile, ["planes_residual"]
            if tile.results <= LONE_RESULTS[1]:
                yield tile, ["ragged_sum", "ragged_result"]
    yield WIDE_GEMM_TILES[product], ["ragged"]
    yield WIDE_GEMM_TILES[product], ["ragged_point"]
    if op == "dgrad":
        yield WIDE_GEMM_TILES[product], ["stem"]
    yield WIDE_GEMM_TILES[product], ["odd"]


def _configuration(
    op: str, product: str, name: str, tile: Tile, dtype: torch.dtype, precision: str
) -> Configuration:
    cases = {"gemm": GEMM_CASES, "banded": BANDED_CASES}
    case = cases.get(tile.family, STENCIL_CASES)[name]
    weights = torch.float32 if dtype == torch.uint8 else dtype
    problem = Problem(op, launched_geometry(op, case), weights, precision, case.layout)
    plan = choose.plan_with_tile(problem, tile, splits=2 if case.bias else 1)
    return Configuration(plan.kernel, product, name, case, plan, dtype)


def _tuned(target: Target) -> Iterator[Configuration]:
    """The tiles of the device's tuned file, each in a case that the tables have for its kind."""
    for key, found in tuned_for(target.device.name).items():
        tile, dtype = choose.tile_of(found.tile), getattr(torch, key.dtype)
        product = key.precision if dtype == torch.float32 else "half"
        product = "float64" if dtype == torch.float64 else product
        name = "depthwise" if key.channels_last else "image"
        name = {"gemm": "dense", "banded": "image31"}.get(tile.family, name)
        on_matrix_unit = tile.family in ("gemm", "banded")
        precision = key.precision if on_matrix_unit else "ieee"
        made = _configuration(key.op, product * on_matrix_unit, name, tile, dtype, precision)
        launch = f"w{tile.num_warps}-s{tile.num_stages}"
        yield replace(made, case=f"{name}-tuned-{launch}")


def _sums(target: Target, thin: bool) -> Iterator[Configuration]:
    """sum_partials for every type of the result, with offsets that fit in 32 bits and beyond."""
    narrow = GEMM_CASES["dense"]
    wide = Case(Geometry(8, 2**15, 56, 56, 2**16, 1, 1))
    turn = list(TARGETS).index(target.name)
    for i, (name, case) in enumerate((("narrow", narrow), ("wide", wide))):
        for j, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, torch.float64)):
            if thin and (i + j + turn) % len(TARGETS):
                continue  # one of the targets builds it
            tile = GEMM_GRADIENT_TILES["half"][0]
            plan = choose.plan_with_tile(Problem("wgrad", case.geometry), tile, splits=2)
            yield Configuration("sum_partials", "", name, case, plan, dtype)


def _lags(target: Target, thin: bool) -> Iterator[Configuration]:
    """lag_sums for every type of image, with offsets that fit in 32 bits and beyond."""
    cases = {
        "narrow": Case(Geometry(1, 1, 4096, 4096, 1, 7, 7)),
        "wide": Case(Geometry(32, 3, 8192, 8192, 1, 5, 5), channels_last=True),
    }
    turn = list(TARGETS).index(target.name)
    for i, (name, case) in enumerate(cases.items()):
        for j, dtype in enumerate(STENCIL_DTYPES):
            if thin and (i + j + turn) % 2:
                continue
            problem = Problem("wgrad", case.geometry)
            plan = choose.plan_with_tile(problem, STENCIL_TILES[0], splits=100)
            yield Configuration("lag_sums", "", name, case, plan, dtype)


#: (activation, whether a tensor is added) of calls that are drawn.
_EPILOGUES = [("none", False), ("relu", False), ("relu", True), ("gelu", False), ("silu", True)]


def drawn(target: Target, count: int, seed: int) -> Iterator[Configuration]:
    """`count` planned calls for a target; the same ones for the same seed.

    The name of a case says all of it: its place here, the geometry and the options.
    """
    rng = random.Random(seed)
    made = 0
    while made < count:
        try:
            op, dtype, precision, case = _draw(rng)
            plan = _plan(op, dtype, precision, case, target)
        except ArgumentError:  # or there are more programs than a launch can have
            continue
        if plan is None:
            continue
        made += 1
        name = f"drawn{made} ({_options(precision, case)}) {case.geometry}"
        case = replace(case, geometry=launched_geometry(op, case))  # Configuration turns it back
        yield Configuration(plan.kernel, "", name, case, plan, dtype)


def _options(precision: str, case: Case) -> str:
    given = {"channels_last": case.channels_last, "bias": case.bias, "residual": case.residual}
    return ", ".join([precision, case.activation, *(name for name, on in given.items() if on)])


def _draw(rng: random.Random) -> tuple[str, torch.dtype, str, Case]:
    """(op, dtype, precision, case).

    Raises:
        ArgumentError: there is no such correlation.
    """
    channels, filters, groups, banks = _channels(rng)
    height = rng.choice([7, 14, 28, 56, 112, 224, 250, 1024])
    width = height + rng.choice([0, 0, 0, 3])
    R = rng.choice([1, 1, 2, 3, 3, 3, 3, 5, 5, 7, 7, 9, 11, 13, 15, 21, 31])
    R = min(R, 7) if channels // groups > 8 else R
    S = rng.choice([R, R, R, R, R, 1, 3, 5, 9])
    dilation = rng.choice([1, 1, 1, 1, 2, 3])
    same = rng.random() < 0.8
    pad_h, pad_w = ((n - 1) * dilation // 2 if same else 0 for n in (R, S))
    N = rng.choice([1, 8, 64])
    geometry = geometry_of(
        (N, channels, height, width),
        ((N,) if banks else ()) + (filters, channels // groups, R, S),
        stride=rng.choice([(1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (3, 3)]),
        padding=((pad_h, pad_h), (pad_w, pad_w)),
        dilation=(dilation, dilation),
        groups=groups,
        padding_mode=rng.choice([*4 * ["zeros"], "reflect", "replicate", "circular"]),
    )
    op = rng.choice(["fprop", "fprop", "dgrad", "wgrad"])
    if op == "dgrad" and geometry.padding_mode != "zeros":
        op = rng.choice(["dgrad", "dgrad_frame"])
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]
    dtype = rng.choice(dtypes + ([] if op.startswith("dgrad") else [torch.uint8]))
    activation, residual = rng.choice(_EPILOGUES) if op == "fprop" else ("none", False)
    case = Case(
        geometry,
        channels_last=rng.random() < 0.5,
        bias=rng.random() < 0.5,
        activation=activation,
        residual=residual,
    )
    return op, dtype, rng.choice(["ieee", "tf32", "tf32x3"]), case


def _channels(rng: random.Random) -> tuple[int, int, int, bool]:
    """(channels, filters, groups, whether each sample has a bank): images and depthwise, mostly."""
    kind = rng.choice(["image", "few", "depthwise", "depthwise", "multiplier", "bank", "many"])
    if kind == "image":
        return 1, rng.choice([1, 1, 2, 3, 4, 8]), 1, False
    if kind == "few":
        return rng.choice([2, 3, 4]), rng.choice([1, 2, 3, 4, 8, 16]), 1, False
    if kind == "bank":
        return *rng.choice([(1, 1, 1), (3, 3, 3), (2, 4, 1)]), True
    if kind == "many":
        sizes = [16, 24, 32, 64, 67, 128, 256]
        return rng.choice(sizes), rng.choice(sizes), 1, False
    groups = rng.choice([3, 12, 32, 64, 96, 144, 384])
    times = rng.choice([2, 3, 4]) if kind == "multiplier" else 1
    return groups, groups * times, groups, False


def _plan(op: str, dtype: torch.dtype, precision: str, case: Case, target: Target) -> Plan | None:
    """What the planner decides for contiguous or channels_last tensors."""
    geometry = case.geometry
    floating = torch.float32 if dtype == torch.uint8 else dtype
    x, y = (
        torch.empty(shape, dtype=kind, device="meta", memory_format=case.memory_format)
        for shape, kind in ((geometry.x_shape, dtype), (geometry.y_shape, floating))
    )
    if y.numel() == 0 or (op == "dgrad_frame" and not geometry.frame_pixels):
        return None
    weight = torch.empty(geometry.weight_shape, dtype=floating, device="meta")
    layout = layout_of(geometry, x, weight, y, y if case.residual else None, case.activation)
    return choose.plan(Problem(op, geometry, floating, precision, layout, target.device))
