"""How the kernels of each family read operands, and the arguments that only they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...kernels.structs import constant
from ..geometry import Geometry
from ..plan.planes import piece_of
from ..plan.problem import Plan, Problem
from ..plan.tma_copies import reads_crosswise, tap_columns
from .banded_launch import band_arguments
from .copies import Copy, channels_innermost, filters_innermost, in_boxes
from .descriptors import is_matrix, tma_arguments
from .gemm_launch import gemm_arguments
from .kernel_arguments import Tensors, read_of_gradient
from .layout import as_row, is_read_as_it_is, is_row
from .patch_launch import patch_arguments
from .planes_gradient_launch import planes_gradient_arguments
from .planes_launch import planes_arguments
from .reuse_launch import reuse_arguments
from .shifted_launch import shifted_arguments

#: Makes the arguments that only the kernels of a family, or one kernel, takes.
ARGUMENTS: dict[str, Callable[[Tensors, Geometry, Plan], dict[str, Any]]] = {
    "banded": band_arguments,
    "gemm": gemm_arguments,
    "patch": patch_arguments,
    "tma": tma_arguments,
    "planes": planes_arguments,
    "reuse": reuse_arguments,
    "shifted": shifted_arguments,
    "spread": reuse_arguments,
    "wgrad_planes": planes_gradient_arguments,
}


def family_arguments(tensors: Tensors, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """The arguments of the plan's kernel that not every kernel of its operator takes."""
    if plan.kernel == "dgrad_rows":
        return {"READ": constant(read_of_gradient(geometry))}
    make = ARGUMENTS.get(plan.kernel, ARGUMENTS.get(plan.family))
    return make(tensors, geometry, plan) if make else {}


def packed(
    weight: torch.Tensor, geometry: Geometry, plan: Plan
) -> tuple[torch.Tensor, Copy | None]:
    """(the weight, or a copy, in the order in which the kernel reads it; that copy).

    The copy is never kept for another call: an update of the weight in place must not be missed.
    """
    tile: Any = plan.tile
    if plan.family in ("tma", "reuse", "planes"):
        problem = Problem(plan.op, geometry, weight.dtype, plan.precision)
        block = piece_of(problem) if plan.family == "planes" else tile.BLOCK_K
        columns = tap_columns(problem, block)
        turned = plan.op == "dgrad" and not reads_crosswise(plan.precision)
        is_read = not turned and is_matrix(weight) and weight.shape[1] == columns
    else:
        columns, turned = 0, False
        copies = plan.family == "gemm" and not tile.in_place
        is_read = not copies or is_read_as_it_is(weight)
    if is_read:
        return weight, None
    axes = filters_innermost(weight, geometry.groups) if turned else weight[None]
    copy = channels_innermost(axes, columns)
    return copy.out, copy


def as_read(image: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, Copy | None]:
    """(the image, or a copy, as the kernel reads it; that copy)."""
    if not getattr(plan.tile, "copied", False):
        return image, None
    planes = plan.op == "wgrad" and not reads_crosswise(plan.precision)
    return in_boxes(image, "NCHW" if planes else "NHWC")


def planes_as_rows(tensors: Tensors, geometry: Geometry, plan: Plan) -> tuple[Geometry, Tensors]:
    """Geometry and tensors with every plane as one row of H * W pixels, if the plan says so.

    Or if the kernel is a GEMM with a 1x1 window and the tensors allow it: longer rows come in
    pieces of 16 bytes more often.
    """
    t = tensors
    images = [t.x, t.y, *([] if t.residual is None else [t.residual])]
    if not plan.as_rows and not (
        plan.family == "gemm" and geometry.is_point and all(map(is_row, images))
    ):
        return geometry, t
    x, y, *residual = map(as_row, images)
    return geometry.as_rows(), replace(t, x=x, y=y, residual=residual[0] if residual else None)
