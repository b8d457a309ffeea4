"""The launches of fprop_resident: the bands of every filter, the product."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ... import kernels
from ...kernels.structs import ResidentLayout, constant
from ..geometry import Geometry
from ..plan.problem import Plan
from ..plan.resident import PIECE, Correlation, correlation_of
from .banded_launch import BANDS_BLOCK
from .call import Call
from .kernel_arguments import Tensors, call_of, weight_walk
from .layout import alignment


def resident_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launches that fill y; of an input gradient, x is dy and the geometry the adjoint."""
    t = tensors
    tile: Any = plan.tile
    correlation = correlation_of(geometry, (t.x.shape[2], t.x.shape[3]), 16 // t.x.itemsize)
    up = correlation.up
    lines = t.weight.new_empty(tile.lines_shape(correlation))
    band = tile.band(correlation)
    layout = ResidentLayout(
        FIRST_W=band.first,
        COLUMNS=band.columns,
        LINES=tile.phase_lines(geometry),
        CHANNELS=geometry.group_C,
        UP_H=up[0],
        UP_W=up[1],
        X_ALIGN=math.gcd(PIECE // up[1], alignment(t.x, 3, t.x.shape[3])),
        Y_ALIGN=math.gcd(4, alignment(t.y, 3, geometry.Q)),
    )
    call = call_of(
        plan,
        geometry,
        x_ptr=t.x,
        lines_ptr=lines,
        y_ptr=t.y,
        x_strides=t.x.stride(),
        y_strides=t.y.stride(),
        BAND=constant(layout),
        PARTS=tile.parts,
        **t.epilogue(),
    )
    first = build_lines_call(t.weight, lines, correlation, plan)
    arguments = call.arguments | {"x_shape": correlation.image}
    return replace(call, arguments=arguments, before=(first,), scratch=(lines,))


def build_lines_call(
    weight: torch.Tensor, lines: torch.Tensor, correlation: Correlation, plan: Plan
) -> Call:
    """The launch that fills `lines`, of ResidentTile.lines_shape, from the weight."""
    geometry = correlation.geometry
    weight, (n, k, c, r, s) = weight_walk(weight, geometry)
    if plan.turned:  # filters and channels change places
        k, c = (c if geometry.groups == 1 else geometry.group_C * k), k
    tile: Any = plan.tile
    band, elements = tile.band(correlation), lines.numel()
    return Call(
        kernels.build_lines,
        -(-elements // BANDS_BLOCK),
        {
            "weight_ptr": weight,
            "lines_ptr": lines,
            "ELEMENTS": elements,
            "FILTERS": geometry.K,
            "weight_strides": (n, k, c, r, s),
            "R": geometry.R,
            "S": geometry.S,
            "STRIDE_H": geometry.stride[0],
            "STRIDE_W": geometry.stride[1],
            "UP_W": correlation.up[1],
            "SHIFT": band.shift,
            "COLUMNS": band.columns,
            "LINES": lines.shape[-3],
            "CHANNELS": geometry.group_C,
            "INT64": plan.int64,
            "BLOCK_E": BANDS_BLOCK,
        },
        num_warps=4,
        num_stages=2,
    )
