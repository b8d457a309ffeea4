"""fprop, dgrad and wgrad of DTensors: how a mesh of ranks divides the work.

Each axis of the mesh divides the correlation in one way, a Split, which places the tensors of all
three operators:

    split      x            weight       y             communication
    batch      N sharded    replicated   N sharded     none
    rows       H sharded    replicated   P sharded     the halo of the image that is read
    columns    W sharded    replicated   Q sharded     the same
    groups     C sharded    K sharded    K sharded     none
    filters    replicated   K sharded    K sharded     none
    channels   C sharded    C sharded    replicated    none

Where the table says replicated, a result is a partial sum on every rank (DTensor's Partial): the
weight gradient of a batch, the input gradient of filters, the output of channels, which must be
reduced before an activation. An axis takes the first split of this table for which an operand is
already sharded, images before weights. Operands sharded otherwise are redistributed, as are rows
and columns under a padding mode other than zeros. Axes of a mesh combine: rows and columns divide
an image into tiles.

Not every build of PyTorch has torch.distributed, so this module is imported only when an operator
gets a DTensor. The rules use torch.library.register_torch_dispatch because DTensor's own
register_sharding cannot change an operator's arguments, and each share of the rows has its own
padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from ..cpu import ACTIVATION_FUNCTIONS
from ..errors import ArgumentError, ArgumentTypeError
from ..geometry import Geometry
from ..launch.formats import format_like
from ..schema import geometry_of_call
from .halo import Rows, axes, exchange, shares


@dataclass(frozen=True)
class Split:
    """How one axis of a mesh divides a correlation: the dimension of each tensor that is sharded.

    Attributes:
        x, y: of the images, None where each rank has all of it.
        weight: counted from the last, as a bank per sample has N in front of K C R S.
    """

    x: int | None = None
    weight: int | None = None
    y: int | None = None

    def dim(self, tensor: str, geometry: Geometry) -> int | None:
        """The sharded dimension of "x", "weight" or "y"."""
        dim: int | None = getattr(self, tensor)
        if tensor == "weight" and dim is not None:
            dim += len(geometry.weight_shape)
            return dim if dim >= 0 else None
        return dim


BATCH = Split(x=0, weight=-5, y=0)
ROWS = Split(x=2, y=2)
COLUMNS = Split(x=3, y=3)
GROUPS = Split(x=1, weight=-4, y=1)
FILTERS = Split(weight=-4, y=1)
CHANNELS = Split(x=1, weight=-3)
WHOLE = Split()
SPLITS = (BATCH, ROWS, COLUMNS, GROUPS, FILTERS, CHANNELS)

#: The operands of each operator, the image that is read through the window first; its result.
_OPERANDS = {"fprop": ("x", "weight"), "dgrad": ("y", "weight"), "wgrad": ("x", "y")}
_RESULT = {"fprop": "y", "dgrad": "x", "wgrad": "weight"}


def splits_of(name: str, operands: Sequence[DTensor], geometry: Geometry) -> list[Split]:
    """The split of each axis of the operands' mesh, for operator `name`."""
    mesh = operands[0].device_mesh
    chosen: list[Split] = []
    for axis in range(mesh.ndim):
        candidates = (
            split
            for tensor, operand in zip(_OPERANDS[name], operands, strict=True)
            for split in SPLITS
            if _is_sharded(operand.placements[axis], split.dim(tensor, geometry))
            and _is_possible(split, chosen, geometry, mesh)
        )
        chosen.append(next(candidates, WHOLE))
    return chosen


def _is_sharded(placement: Placement, dim: int | None) -> bool:
    return dim is not None and type(placement) is Shard and placement.dim == dim


def _is_possible(split: Split, before: list[Split], geometry: Geometry, mesh: DeviceMesh) -> bool:
    """Whether the mesh's next axis can use this split, given the splits of the axes before."""
    if split in (ROWS, COLUMNS):
        # A share of a share is not a chunk of the image, and other ranks hold what padding shows.
        return split not in before and geometry.padding_mode == "zeros"
    if split is GROUPS:
        ways = _ways(GROUPS, [*before, split], mesh)
        return geometry.groups > 1 and geometry.groups % ways == 0
    return geometry.groups == 1 or split is BATCH


def _ways(split: Split, splits: list[Split], mesh: DeviceMesh) -> int:
    return math.prod(mesh.size(axis) for axis, other in enumerate(splits) if other is split)


def _operator(
    name: str, _: type, operator: Any, __: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> DTensor:
    """An operator on DTensors: redistributes the operands, then runs each rank's share."""
    rest = [(kwargs or {})[argument.name] for argument in operator._schema.arguments[len(args) :]]
    arguments = [*args, *rest]
    geometry = geometry_of_call(name, arguments)
    operands, bias = arguments[:2], None if name == "wgrad" else arguments[2]
    residual, activation = arguments[3:5] if name == "fprop" else (None, "none")
    mesh = _common_mesh(name, operands, bias=bias, residual=residual)
    splits = splits_of(name, operands, geometry)
    dims = [split.dim(_RESULT[name], geometry) for split in splits]
    placements = [
        Replicate() if split is WHOLE else Partial() if dim is None else Shard(dim)
        for split, dim in zip(splits, dims, strict=True)
    ]
    with torch.no_grad():
        tensors = {
            tensor: _local(operand, [split.dim(tensor, geometry) for split in splits])
            for tensor, operand in zip(_OPERANDS[name], operands, strict=True)
        }
        if bias is not None:
            bias = _local(bias, [0 if dim == 1 else None for dim in dims])
            bias = bias if _adds_bias(mesh, placements) else None
        if residual is not None:
            residual = _local(residual, dims)
            residual = residual if _adds_bias(mesh, placements) else None
        partial_sums = any(place.is_partial() for place in placements)
        now, later = ("none", activation) if partial_sums else (activation, "none")
        if mesh.get_coordinate() is None:  # this rank has no share
            result = operands[0].to_local().new_empty(0)
        else:
            result = _share(name, tensors, bias, residual, now, geometry, arguments, splits, mesh)
        shares = _distributed(name, result, operands[0], geometry, mesh, placements)
        if later == "none":
            return shares
        whole = [Replicate() if place.is_partial() else place for place in placements]
        sums = shares.redistribute(placements=whole)
        return cast(DTensor, ACTIVATION_FUNCTIONS[later](sums))


def _adds_bias(mesh: DeviceMesh, placements: Sequence[Placement]) -> bool:
    """Whether this rank adds bias and residual: the first of the ranks that share a sum."""
    coordinate = mesh.get_coordinate() or [0] * mesh.ndim
    return not any(i for i, place in zip(coordinate, placements, strict=True) if place.is_partial())


def _common_mesh(name: str, operands: Sequence[Any], **addends: Any) -> DeviceMesh:
    """The mesh of all of them."""
    given = dict(zip(_OPERANDS[name], operands, strict=True))
    given |= {addend: value for addend, value in addends.items() if value is not None}
    for tensor, value in given.items():
        if not isinstance(value, DTensor):
            raise ArgumentTypeError(
                f"{name} takes DTensors or plain tensors, not both: {tensor} is a plain tensor; "
                "torch.distributed.tensor.distribute_tensor or distribute_module shares it out"
            )
    meshes = [value.device_mesh for value in given.values()]
    if any(mesh != meshes[0] for mesh in meshes):
        raise ArgumentError(f"{name} takes DTensors of one mesh, got {', '.join(map(str, meshes))}")
    return meshes[0]


def _local(tensor: DTensor, dims: list[int | None]) -> torch.Tensor:
    """This rank's share of a tensor sharded in `dims`, one for each axis of the mesh."""
    placements = [Replicate() if dim is None else Shard(dim) for dim in dims]
    # Detached: else PyTorch 2.11 calls detach_ on the result, which DTensor does not support.
    detached = cast(DTensor, tensor.detach())
    return detached.redistribute(placements=placements).to_local()


def _share(
    name: str,
    tensors: dict[str, torch.Tensor],
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    geometry: Geometry,
    arguments: Sequence[Any],
    splits: list[Split],
    mesh: DeviceMesh,
) -> torch.Tensor:
    """The operator on this rank's operands, halo fetched, with a geometry of their own."""
    padding, sizes = list(geometry.padding), [(geometry.H, geometry.P), (geometry.W, geometry.Q)]
    for axis, split in enumerate(splits):
        if split in (ROWS, COLUMNS):
            i = (ROWS, COLUMNS).index(split)
            image = _OPERANDS[name][0]
            tensors[image], rows = _with_halo(name, tensors[image], geometry, i, mesh, axis)
            padding[i] = axes(geometry)[i].padding_of(*rows)
            sizes[i] = (rows[0][1] - rows[0][0], rows[1][1] - rows[1][0])
    groups = geometry.groups // _ways(GROUPS, splits, mesh)
    shapes = _shapes(tensors, geometry, groups, sizes)
    operands = [tensors[tensor] for tensor in _OPERANDS[name]]
    shape = shapes[_RESULT[name]]
    if 0 in (*shapes["x"][2:], *shapes["y"][1:]):  # a share that the operators would refuse
        nothing = torch.zeros(shape, dtype=operands[1].dtype, device=operands[1].device)
        sums = nothing if bias is None else nothing + bias.view(-1, 1, 1)
        sums = sums if residual is None else sums + residual
        return ACTIVATION_FUNCTIONS[activation](sums)
    stride, _, dilation, _, flip, mode, precision = arguments[-7:]
    steps = (stride, (*padding[0], *padding[1]), dilation, groups, flip, mode, precision)
    if name == "wgrad":
        return torch.ops.tricorr.wgrad(*operands, shape, *steps)
    if name == "dgrad":
        return torch.ops.tricorr.dgrad(*operands, bias, shape[2:], *steps)
    return torch.ops.tricorr.fprop(*operands, bias, residual, activation, *steps)


def _shapes(
    tensors: dict[str, torch.Tensor], geometry: Geometry, groups: int, sizes: list[tuple[int, int]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of a rank's x, weight and y from the two that it holds."""
    (H, P), (W, Q) = sizes
    N = (tensors["x"] if "x" in tensors else tensors["y"]).shape[0]
    C = tensors["x"].shape[1] if "x" in tensors else tensors["weight"].shape[-3] * groups
    K = tensors["y"].shape[1] if "y" in tensors else tensors["weight"].shape[-4]
    bank = (K, C // groups, geometry.R, geometry.S)
    weight = (N, *bank) if geometry.per_sample else bank
    return {"x": (N, C, H, W), "weight": weight, "y": (N, K, P, Q)}


def _with_halo(
    name: str, image: torch.Tensor, geometry: Geometry, i: int, mesh: DeviceMesh, axis: int
) -> tuple[torch.Tensor, tuple[Rows, Rows]]:
    """The rows of the image (i = 1: columns) that a rank reads; its rows of x and of y."""
    rows, ranks, rank = axes(geometry)[i], mesh.size(axis), mesh.get_local_rank(axis)
    inputs, outputs = shares(rows.extent, ranks), shares(rows.outputs, ranks)
    if name == "dgrad":
        owned = outputs
        needed = outputs = [rows.outputs_of(share) for share in inputs]
    else:
        owned = inputs
        needed = inputs = [rows.inputs_of(share) for share in outputs]
    image = exchange(image, 2 + i, owned, needed, rank, mesh.get_group(axis))
    return image, (inputs[rank], outputs[rank])


def _distributed(
    name: str,
    result: torch.Tensor,
    like: DTensor,
    geometry: Geometry,
    mesh: DeviceMesh,
    placements: Sequence[Placement],
) -> DTensor:
    """The ranks' results as one tensor in the memory format of `like`."""
    shape = getattr(geometry, f"{_RESULT[name]}_shape")
    memory_format = format_like(like, len(shape))
    if result.dim() == len(shape):
        result = result.contiguous(memory_format=memory_format)
    stride = torch.empty(shape, device="meta", memory_format=memory_format).stride()
    return DTensor.from_local(
        result, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


for _name in _OPERANDS:
    torch.library.register_torch_dispatch(f"tricorr::{_name}", DTensor, partial(_operator, _name))
