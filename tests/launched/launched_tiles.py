"""Calls with every tile of a kind that can take them, not only the tile that the planner takes."""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from launched_calls import DTYPES, image

from tricorr.ops import geometry_of
from tricorr.ops.errors import ArgumentError
from tricorr.ops.geometry import Geometry
from tricorr.ops.launch import entry
from tricorr.ops.launch.layout import device_of, layout_of
from tricorr.ops.plan import tma, tma_copies
from tricorr.ops.plan.choose import plan_with_tile
from tricorr.ops.plan.problem import Problem


def forced(count: int, seed: int) -> Iterator[tuple[str, Any, list[torch.Tensor]]]:
    """(label, call, operands) of `count` random geometries, with every tile of tensor maps."""
    rng = random.Random(seed)
    done = 0
    while done < count:
        kind = rng.choice(["half", "tf32"])
        dtype, precision = DTYPES[kind], "tf32" if kind == "tf32" else "ieee"
        geometry = _geometry(rng, 16 // dtype.itemsize)
        if geometry is None or not 0 < geometry.y_numel < 1e7 or geometry.x_numel > 1e7:
            continue
        done += 1
        memory = rng.choice(["NCHW", "channels_last"])
        x = _image(rng, geometry.x_shape, dtype, memory)
        dy = _image(rng, geometry.y_shape, dtype, memory)
        weight = _weight(rng, geometry, dtype)
        layout = layout_of(geometry, x, weight, dy)
        operands = {"fprop": [x, weight], "dgrad": [dy, weight], "wgrad": [x, dy]}
        for op, given in operands.items():
            problem = Problem(op, geometry, dtype, precision, layout, device_of(x))
            copied = tma_copies.copied_problem(problem)
            shaped = set(tma.shaped_tiles(problem))
            if tma_copies.may_copy(problem):
                shaped |= {replace(tile, copied=True) for tile in tma.shaped_tiles(copied)}
            shaped = {tile for tile in shaped if tma.is_legal(problem, tile)}
            near = {tile for one in shaped for tile in tma.neighbours(one, problem)}
            for tile in sorted(shaped | near, key=str):
                if not tma.is_legal(problem, tile):
                    continue
                plan = plan_with_tile(problem, tile, rng.choice([1, 4]))
                call = partial(_run, op, geometry, precision, plan)
                yield f"{done} {op} {kind} {memory} {tile} {geometry}", call, given


def _run(op: str, geometry: Any, precision: str, plan: Any, a: Any, b: Any) -> torch.Tensor:
    if op == "fprop":
        return entry.fprop(a, b, None, geometry, precision, plan=plan)
    return getattr(entry, op)(a, b, geometry, precision, plan=plan)


def _geometry(rng: random.Random, step: int) -> Geometry | None:
    """A geometry with any number of channels or a multiple of `step`; None if it is impossible."""
    groups = rng.choice([1, 1, 2])
    C, K = (rng.choice([step * rng.randint(16 // step, 20), rng.randint(16, 70)]) for _ in "ck")
    size = (rng.choice([1, 3, 8]), C * groups, *(rng.choice([7, 8, 16, 17, 28, 56]) for _ in "hw"))
    window = rng.randint(1, 5), rng.randint(1, 5)
    stride, dilation = ((rng.randint(1, most), rng.randint(1, most)) for most in (3, 2))
    padding = tuple((rng.randint(-1, 3), rng.randint(-1, 3)) for _ in "hw")
    shapes = size, (K * groups, C, *window)
    try:
        return geometry_of(*shapes, stride, padding, dilation, groups, rng.random() < 0.3)
    except ArgumentError:
        return None


def _image(
    rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, memory: str
) -> torch.Tensor:
    """An image that a tensor map can describe: offset, with gaps, or a crop of a larger one."""
    step = 16 // dtype.itemsize
    N, C, H, W = shape
    if rng.random() < 0.3:
        larger = image((N, C + step, H + 2, W + 2 * step), dtype, memory)
        return larger[:, :C, rng.randint(0, 2) :, step:][:, :, :H, :W]
    return image(shape, dtype, memory, rng.choice([0, step]), rng.choice([0, step, 5 * step]))


def _weight(rng: random.Random, geometry: Geometry, dtype: torch.dtype) -> torch.Tensor:
    """A weight in one of the formats that kernels read directly or copy first."""
    K, C, R, S = geometry.weight_shape
    plain = torch.zeros(K, C, R, S, dtype=dtype)
    return rng.choice(
        [
            plain,
            plain.to(memory_format=torch.channels_last),
            torch.zeros(C, K, R, S, dtype=dtype).transpose(0, 1),
            torch.zeros(plain.numel() + 1, dtype=dtype)[1:].view(K, C, R, S),
        ]
    )
