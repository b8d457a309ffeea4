"""Arguments that kernels of every family take: window, strides, epilogue, numbers of the plan."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch

from ... import kernels
from ...kernels.structs import Window, constant, tile_struct
from ..geometry import Geometry
from ..plan.problem import Plan
from ..plan.rows_walk import gradient_reads
from .call import Call


@dataclass(frozen=True)
class Tensors:
    """The tensors of a launch, and the activation of its sums.

    Attributes:
        x: the image (N, C, H, W), or its gradient.
        weight: the filters, or their gradient.
        y: the correlation (N, K, P, Q), or its gradient.
        bias: of the channels of the image that is stored.
        activation: of y, see kernels/epilogue.py.
        residual: added to y before the activation, (N, K, P, Q).
    """

    x: torch.Tensor
    weight: torch.Tensor
    y: torch.Tensor
    bias: torch.Tensor | None = None
    activation: str = "none"
    residual: torch.Tensor | None = None

    def adjoint(self) -> Tensors:
        """Those of Geometry.adjoint: x and y change places."""
        return replace(self, x=self.y, y=self.x)

    def epilogue(self) -> dict[str, Any]:
        """Arguments for the steps from the sums to the result: bias, residual, activation."""
        return {
            "bias_ptr": self.bias,
            "bias_stride": 0 if self.bias is None else self.bias.stride(0),
            "ACTIVATION": self.activation,
            **residual_arguments(self.residual),
        }


def call_of(plan: Plan, geometry: Geometry, **arguments: Any) -> Call:
    """A launch of the plan's kernel, which takes those of all these arguments that it names."""
    tile = plan.tile
    extents = {name: value for name, value in vars(tile).items() if name.isupper()}
    arguments |= {
        "x_shape": (geometry.H, geometry.W),
        "y_shape": (geometry.P, geometry.Q),
        "channels": (geometry.groups, geometry.group_C, geometry.group_K),
        "hole": tuple(itertools.chain(*geometry.hole)),
        "N": geometry.N,
        "PLANES": geometry.N * geometry.groups,
        "SAMPLES": samples_of(geometry),
        "GROUPS": geometry.groups,
        "GROUP_C": geometry.group_C,
        "GROUP_K": geometry.group_K,
        "SPLITS": plan.splits,
        "SPLIT_PIXELS": plan.split_pixels,
        "SPLIT_STRIPS": plan.split_strips,
        "SPLIT_BOXES": plan.split_strips,
        "WINDOW": constant(window_of(geometry)),
        "TILE": constant(tile_struct(extents)),
        "INT64": plan.int64,
        "PRECISION": plan.precision,
        "INTERIOR": plan.interior,
        "STAGES": tile.num_stages,
        "WARPS": tile.num_warps,
        **extents,
    }
    kernel = getattr(kernels, plan.kernel)
    taken = {name: arguments[name] for name in kernel.arg_names}
    return Call(kernel, plan.grid, taken, tile.num_warps, tile.num_stages, plan.max_registers)


def window_of(geometry: Geometry) -> Window:
    """The window as kernels take it."""
    (pad_h, pad_bottom), (pad_w, pad_right) = geometry.padding
    (stride_h, stride_w), (dil_h, dil_w) = geometry.stride, geometry.dilation
    return Window(
        R=geometry.R,
        S=geometry.S,
        STRIDE_H=stride_h,
        STRIDE_W=stride_w,
        PAD_H=pad_h,
        PAD_W=pad_w,
        PAD_BOTTOM=pad_bottom,
        PAD_RIGHT=pad_right,
        DIL_H=dil_h,
        DIL_W=dil_w,
        MODE=geometry.padding_mode,
    )


def read_of_gradient(geometry: Geometry) -> Window:
    """The window of dy that the results of one step of the stride read."""
    (first_h, rows), (first_w, columns) = (gradient_reads(geometry, axis) for axis in (0, 1))
    return Window(
        R=rows,
        S=columns,
        STRIDE_H=1,
        STRIDE_W=1,
        PAD_H=-first_h,
        PAD_W=-first_w,
        PAD_BOTTOM=first_h + rows - 1,
        PAD_RIGHT=first_w + columns - 1,
        DIL_H=1,
        DIL_W=1,
        MODE="zeros",
    )


def samples_of(geometry: Geometry) -> int:
    """Samples whose pixels are counted through in one problem."""
    return 1 if geometry.per_sample else geometry.N


def residual_arguments(residual: torch.Tensor | None) -> dict[str, Any]:
    """Arguments for the tensor (N, K, P, Q) that is added to the sums, if there is one."""
    strides = (0, 0, 0, 0) if residual is None else residual.stride()
    return {"residual_ptr": residual, "residual_strides": strides}


def weight_walk(weight: torch.Tensor, geometry: Geometry) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Where a kernel starts in the weight, and its strides over (n, k, c, r, s).

    A flipped window is walked backwards from its last tap: no copy, nothing for kernels to know.
    """
    strides = weight.stride() if geometry.per_sample else (0, *weight.stride())
    if geometry.flip:
        weight = weight[..., geometry.R - 1 :, geometry.S - 1 :]
        strides = (*strides[:3], -strides[3], -strides[4])
    return weight, strides
