"""The launches of banded kernels: the bands, the product."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ... import kernels
from ...kernels.structs import BandLayout, constant
from ..geometry import Geometry
from ..plan.banded import BandedTile
from ..plan.bands import COLUMN_STEP, rows_read
from ..plan.problem import Plan
from .call import Call
from .kernel_arguments import Tensors, call_of, weight_walk
from .layout import alignment

#: Elements of the bands that one program of build_bands writes.
BANDS_BLOCK = 1024


def fprop_banded_call(tensors: Tensors, geometry: Geometry, plan: Plan) -> Call:
    """The launches that fill y: bands are made of the weight."""
    t = tensors
    tile: Any = plan.tile
    bands = t.weight.new_empty(tile.bands_shape(geometry))
    call = call_of(
        plan,
        geometry,
        x_ptr=t.x,
        bands_ptr=bands,
        y_ptr=t.y,
        x_strides=t.x.stride(),
        y_strides=t.y.stride(),
        **t.epilogue(),
        **band_arguments(t, geometry, plan),
    )
    first = build_bands_call(t.weight, bands, geometry, tile, plan.int64)
    return replace(call, before=(first,), scratch=(bands,))


def build_bands_call(
    weight: torch.Tensor, bands: torch.Tensor, geometry: Geometry, tile: BandedTile, wide: bool
) -> Call:
    """The launch that fills `bands`, of BandedTile.bands_shape, from the weight."""
    weight, strides = weight_walk(weight, geometry)
    band, elements = tile.band(geometry), bands.numel()
    return Call(
        kernels.build_bands,
        -(-elements // BANDS_BLOCK),
        {
            "weight_ptr": weight,
            "bands_ptr": bands,
            "ELEMENTS": elements,
            "FILTERS": geometry.K,
            "weight_strides": strides,
            "R": geometry.R,
            "S": geometry.S,
            "SHIFT": band.shift,
            "COLUMNS": band.columns,
            "INT64": wide,
            "BLOCK_P": tile.BLOCK_P,
            "BLOCK_Q": tile.BLOCK_Q,
            "BLOCK_E": BANDS_BLOCK,
        },
        num_warps=4,
        num_stages=2,
    )


def band_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """What banded kernels take besides tensors."""
    tile: Any = plan.tile
    band = tile.band(geometry)
    first_row, rows = rows_read(geometry)
    layout = BandLayout(
        FIRST_W=band.first,
        SHIFT=band.shift,
        COLUMNS=band.columns,
        COLUMN_GROUP=COLUMN_STEP,
        X_ALIGN=math.gcd(COLUMN_STEP, alignment(tensors.x, 3, geometry.W)),
        Y_ALIGN=math.gcd(COLUMN_STEP, alignment(tensors.y, 3, geometry.Q)),
    )
    groups = -(-rows // tile.ROW_GROUP) if plan.op == "wgrad" else rows
    return {"BAND": constant(layout), "FIRST_ROW": first_row, "ROWS": max(1, groups)}
