"""The launches of banded kernels: the bands, the product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ... import kernels
from ...kernels.structs import BandLayout, constant
from ..geometry import Geometry
from ..plan.banded import COLUMN_STEP, BandedTile, rows_read
from ..plan.problem import Plan
from .call import Call
from .kernel_arguments import call_of, residual_arguments, weight_walk
from .layout import alignment

#: Elements of the bands that one program of build_bands writes.
BANDS_BLOCK = 1024


def fprop_banded_call(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> Call:
    """The launches that fill y: bands are made of the weight."""
    tile: Any = plan.tile
    bands = weight.new_empty(tile.bands_shape(geometry))
    call = call_of(
        plan,
        geometry,
        x_ptr=x,
        bands_ptr=bands,
        bias_ptr=bias,
        y_ptr=y,
        ACTIVATION=activation,
        **residual_arguments(residual),
        x_strides=x.stride(),
        bias_stride=0 if bias is None else bias.stride(0),
        y_strides=y.stride(),
        **band_arguments(x, weight, y, geometry, plan),
    )
    first = build_bands_call(weight, bands, geometry, tile, plan.int64)
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


def band_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    added: Sequence[torch.Tensor] = (),
) -> dict[str, Any]:
    """What banded kernels take besides tensors; of a weight gradient, y is dy."""
    tile: Any = plan.tile
    band = tile.band(geometry)
    first_row, rows = rows_read(geometry)
    layout = BandLayout(
        FIRST_W=band.first,
        SHIFT=band.shift,
        COLUMNS=band.columns,
        COLUMN_GROUP=COLUMN_STEP,
        X_ALIGN=math.gcd(COLUMN_STEP, alignment(x, 3, geometry.W)),
        Y_ALIGN=math.gcd(COLUMN_STEP, alignment(y, 3, geometry.Q)),
    )
    groups = -(-rows // tile.ROW_GROUP) if plan.op == "wgrad" else rows
    return {"BAND": constant(layout), "FIRST_ROW": first_row, "ROWS": max(1, groups)}
