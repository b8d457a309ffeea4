"""Tensors to descriptors, for the kernels that load through them.

A descriptor is made on the host, so that a launch needs no memory of its own on the device.
"""

from __future__ import annotations

from typing import Any

import torch

from ..kernels import TensorDescriptor
from .geometry import Geometry
from .plan_tma import MAX_PHASES, TmaTile, multiplies_crosswise, phases_with_taps


def fprop_descriptors(
    x: torch.Tensor, weight: torch.Tensor, geometry: Geometry, tile: TmaTile
) -> dict[str, Any]:
    """What fprop_tma takes beside what every fprop kernel does."""
    arguments = _phase_descriptors(x, geometry, tile, tile.BLOCK_K)
    arguments["FLIP"] = geometry.flip
    rows = _rows(weight.permute(0, 2, 3, 1))  # [K, (r, s, c)]
    arguments["weight_desc"] = _describe(rows, [tile.BLOCK_N, tile.BLOCK_K])
    return arguments


def dgrad_descriptors(
    dy: torch.Tensor, weight: torch.Tensor, geometry: Geometry, tile: TmaTile
) -> dict[str, Any]:
    """What dgrad_tma takes beside what every dgrad kernel does."""
    crosswise = multiplies_crosswise(weight.dtype)
    block = [tile.BLOCK_N, tile.BLOCK_K]
    if crosswise:
        rows = _rows(weight.permute(0, 2, 3, 1))  # [K, (r, s, c)]
        block.reverse()
    else:
        grouped = weight.unflatten(0, (geometry.groups, geometry.group_K))
        rows = _rows(grouped.permute(0, 2, 3, 4, 1).flatten(0, 1))  # [C, (r, s, k)]
    return {
        "FLIP": geometry.flip,
        "CROSSWISE": crosswise,
        "dy_desc": _pixels_descriptor(dy, tile, tile.BLOCK_K),
        "weight_desc": _describe(rows, block),
    }


def wgrad_descriptors(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, tile: TmaTile
) -> dict[str, Any]:
    """What wgrad_tma takes beside what every wgrad kernel does."""
    arguments = _phase_descriptors(x, geometry, tile, tile.BLOCK_N)
    return arguments | {"dy_desc": _pixels_descriptor(dy, tile, tile.BLOCK_K)}


def _phase_descriptors(
    x: torch.Tensor, geometry: Geometry, tile: TmaTile, channels: int
) -> dict[str, Any]:
    """A descriptor for each phase of x that a tap reads, None for the others a kernel takes."""
    (stride_h, _), (stride_w, _) = geometry.steps(0), geometry.steps(1)
    arguments: dict[str, Any] = {}
    for i in range(MAX_PHASES):
        arguments |= {f"x{i}_desc": None, f"PHASE{i}": -1}
    for i, (a, b) in enumerate(phases_with_taps(geometry)):
        phase = x[:, :, a::stride_h, b::stride_w]
        arguments[f"x{i}_desc"] = _pixels_descriptor(phase, tile, channels)
        arguments[f"PHASE{i}"] = a * stride_w + b
    return arguments


def _pixels_descriptor(pixels: torch.Tensor, tile: TmaTile, channels: int) -> TensorDescriptor:
    """Of boxes of (N, C, H, W), which formats.fits_descriptor, with so many channels."""
    block = [tile.BLOCK_I, tile.BLOCK_P, tile.BLOCK_Q, channels]
    return _describe(pixels.permute(0, 2, 3, 1), block)


def _rows(weight: torch.Tensor) -> torch.Tensor:
    """A weight (rows, R, S, channels) as a matrix of its rows.

    One with its channels innermost, as channels_last has it, is used as it stands, and so is a 1x1
    window in either format. Any other is copied, its bytes read and written once a call. The copy
    is never kept: an update of the weight in place must not be missed.
    """
    row_bytes = weight.stride(0) * weight.itemsize
    if weight[0].is_contiguous() and row_bytes % 16 == 0 and weight.data_ptr() % 16 == 0:
        return weight.flatten(1)
    return weight.clone(memory_format=torch.contiguous_format).flatten(1)


def _describe(tensor: torch.Tensor, block: list[int]) -> TensorDescriptor:
    """A descriptor of a tensor whose last axis is contiguous.

    The step along an axis of one element may be anything; a descriptor wants multiples of 16 bytes.
    """
    sizes, strides = list(tensor.shape), list(tensor.stride())
    for axis in reversed(range(tensor.dim() - 1)):
        if sizes[axis] == 1:
            strides[axis] = sizes[axis + 1] * strides[axis + 1]
    return TensorDescriptor(tensor, sizes, strides, block)
