"""The operands of a public function as the operators take them: checked, four-dimensional."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from ..ops import (
    ArgumentError,
    ArgumentTypeError,
    Geometry,
    as_integer,
    as_padding,
    as_pair,
    geometry_of,
    shown,
)
from ..ops.arguments import are_alike, check_tensors, shape_of
from .settings import autocast


class Steps(NamedTuple):
    """How the window moves over the image, as the caller gave it."""

    stride: Any
    padding: Any
    dilation: Any
    groups: Any
    padding_mode: str


def forward_operands(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    steps: Steps,
    flip: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Geometry]:
    """x (N, C, H, W), weight (K, C/groups, R, S) or with N before, bias (K,), their geometry."""
    if torch._C._is_any_autocast_enabled():
        input, weight, bias = autocast(input, weight, bias)
    if not (are_alike(input, weight) if bias is None else are_alike(input, weight, bias)):
        check_tensors(images=("input",), input=input, weight=weight, bias=bias)
    x, bank, groups = _four_dimensional(input, weight, as_integer("groups", steps.groups))
    geometry = _geometry(shape_of(x), shape_of(bank), steps, groups, flip)
    if bias is not None and weight.dim() == 2:
        if bias.numel() != 1:
            raise ArgumentError(
                f"bias must have one element for a weight of shape {_shape(weight)}, "
                f"got shape {_shape(bias)}"
            )
        bias = bias.reshape(1).expand(geometry.K)
    _check_bias(bias, geometry.K, weight)
    return x, bank, bias, geometry


def residual_operand(
    residual: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bank: torch.Tensor,
    geometry: Geometry,
) -> torch.Tensor:
    """`residual` as (N, K, P, Q): it must have the shape and dtype of the output.

    Args:
        residual: of the caller, as are input and weight.
        input: tells the output's shape.
        weight: tells the output's shape.
        bank: weight as `forward_operands` returned it.
        geometry: as `forward_operands` returned it.
    """
    (residual,) = autocast(residual)
    if not are_alike(bank, residual):
        check_tensors(weight=bank, residual=residual)
    if weight.dim() == 2:
        shape = (*input.shape[:-2], geometry.P, geometry.Q)
    else:
        shape = (*input.shape[:-3], geometry.K, geometry.P, geometry.Q)
    if residual.shape != shape:
        raise ArgumentError(
            f"residual must have the output's shape {shape}, got {_shape(residual)}"
        )
    return residual.reshape(geometry.y_shape)


def gradient_geometry(
    name: str,
    x_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    grad_output: torch.Tensor,
    steps: Steps,
) -> Geometry:
    """The geometry of the forward call whose gradient is asked for.

    Args:
        name: of the argument that `x_size` came from, for messages.
        x_size: (N, C, H, W).
        weight_size: (K, C/groups, R, S) or (N, K, C/groups, R, S).
        grad_output: (N, K, P, Q).
        steps: of the forward call.
    """
    if len(x_size) != 4 or len(weight_size) not in (4, 5):
        raise ArgumentError(
            f"{name} must have four sizes (N, C, H, W) and the weight four or five, got "
            f"{x_size} and {weight_size}"
        )
    geometry = _geometry(x_size, weight_size, steps, as_integer("groups", steps.groups))
    if shape_of(grad_output) != geometry.y_shape:
        raise ArgumentError(
            f"grad_output must have the output's shape {geometry.y_shape}, "
            f"got {_shape(grad_output)}"
        )
    return geometry


def transposed_operands(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    steps: Steps,
    output_padding: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Geometry]:
    """dy (N, K, P, Q), weight, bias (C,) and the geometry whose dgrad a transposed call is."""
    input, weight, bias = autocast(input, weight, bias)
    check_tensors(input=input, weight=weight, bias=bias)
    if weight.dim() != 4 or input.dim() not in (3, 4):
        raise ArgumentError(
            "a transposed correlation takes input (N, K, P, Q) or (K, P, Q) and weight "
            f"(K, C/groups, R, S), got {_shape(input)} and {_shape(weight)}"
        )
    dy = input if input.dim() == 4 else input.unsqueeze(0)
    K, group_C, R, S = shape_of(weight)
    N, channels, P, Q = shape_of(dy)
    groups = as_integer("groups", steps.groups)
    stride, dilation = as_pair("stride", steps.stride), as_pair("dilation", steps.dilation)
    extra = as_pair("output_padding", output_padding)
    if isinstance(steps.padding, str):
        raise ArgumentTypeError(
            f"padding of a transposed correlation must be numbers, got {shown(steps.padding)}"
        )
    padding = as_padding(steps.padding)
    if channels != K:
        raise ArgumentError(
            f"weight of shape {_shape(weight)} expects an input with {K} channels, got "
            f"{channels} (input of shape {_shape(input)})"
        )
    for name, pair in (("stride", stride), ("dilation", dilation)):
        if min(pair) < 1:
            raise ArgumentError(f"{name} must be positive, got {pair}")
    largest = map(max, stride, dilation)
    if min(extra) < 0 or any(e >= most for e, most in zip(extra, largest, strict=True)):
        raise ArgumentError(
            f"output_padding must be smaller than stride or dilation and not negative, got {extra} "
            f"with stride {stride} and dilation {dilation}"
        )
    if P < 1 or Q < 1 or min(R, S) < 1:
        raise ArgumentError(
            f"input and window must not be empty, got {_shape(input)} and {_shape(weight)}"
        )
    H, W = (
        (out - 1) * s - sum(pad) + d * (window - 1) + e + 1
        for out, s, pad, d, window, e in zip(
            (P, Q), stride, padding, dilation, (R, S), extra, strict=True
        )
    )
    if min(H, W) < 1:
        raise ArgumentError(
            f"padding {padding} leaves nothing of the output: it would be {H} x {W}"
        )
    # Output padding adds rows at the bottom by cutting less off there; columns likewise.
    (top, bottom), (left, right) = padding
    geometry = geometry_of(
        (N, group_C * groups, H, W),
        (K, group_C, R, S),
        stride,
        ((top, bottom - extra[0]), (left, right - extra[1])),
        dilation,
        groups,
    )
    _check_bias(bias, geometry.C, weight)
    return dy, weight, bias, geometry


def _four_dimensional(
    input: torch.Tensor, weight: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(x, bank, groups) of the operands in one of the four forms that `corr2d` lists."""
    if weight.dim() == input.dim() == 4:
        return input, weight, groups
    if weight.dim() == 2 and input.dim() >= 2:
        if groups != 1:
            raise ArgumentError(
                f"groups must be 1 for one kernel on every plane, got {groups} "
                f"(weight of shape {_shape(weight)})"
            )
        if input.dim() == 4 and not input.is_contiguous():
            # Planes with gaps cannot be viewed as samples: give each channel the same kernel.
            C = input.shape[1]
            return input, weight.expand(C, 1, *weight.shape), C
        planes = -1 if input.numel() else math.prod(input.shape[:-2])
        return input.reshape(planes, 1, *input.shape[-2:]), weight[None, None], 1
    if weight.dim() == 4 and input.dim() == 3:
        return input.unsqueeze(0), weight, groups
    if weight.dim() == 5 and input.dim() == 4:
        return input, weight, groups
    raise ArgumentError(
        f"input of shape {_shape(input)} does not fit weight of shape {_shape(weight)}: expected "
        "input (..., H, W) with weight (R, S), (N, C, H, W) or (C, H, W) with (K, C/groups, R, S), "
        "or (N, C, H, W) with (N, K, C/groups, R, S)"
    )


def _geometry(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    steps: Steps,
    groups: int,
    flip: bool = False,
) -> Geometry:
    N, C, H, W = x_shape
    stride, dilation = as_pair("stride", steps.stride), as_pair("dilation", steps.dilation)
    padding = as_padding(steps.padding, weight_shape[-2:], stride, dilation)
    return geometry_of(
        (N, C, H, W), weight_shape, stride, padding, dilation, groups, flip, steps.padding_mode
    )


def _check_bias(bias: torch.Tensor | None, filters: int, weight: torch.Tensor) -> None:
    if bias is not None and shape_of(bias) != (filters,):
        raise ArgumentError(
            f"bias must have shape ({filters},) for a weight of shape {_shape(weight)}, "
            f"got {_shape(bias)}"
        )


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))
