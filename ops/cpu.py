"""The three operators by PyTorch's own convolution, for CPU tensors without the interpreter.

PyTorch's convolution has no asymmetric padding, no padding but zeros, no flipped window and no
filter bank per sample: here the padding is copied, the window is flipped, samples become groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from .geometry import Geometry, Pair
from .launch.formats import empty_in_format

#: What checks.ACTIVATIONS name, for tensors.
ACTIVATION_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
}

_Operator = TypeVar("_Operator", bound=Callable[..., torch.Tensor])


def _without_autocast(operator: _Operator) -> _Operator:
    """Our tensors have the types they should have: autocast would pad them in float32."""

    @functools.wraps(operator)
    def plain(first: torch.Tensor, *rest: Any) -> torch.Tensor:
        if not torch._C._is_any_autocast_enabled():
            return operator(first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return operator(first, *rest)

    return plain  # type: ignore[return-value]


@_without_autocast
def fprop(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """y (N, K, P, Q); see registration.fprop."""
    y = empty_in_format(geometry.y_shape, weight.dtype, like=x)
    act = ACTIVATION_FUNCTIONS[activation]
    if geometry.macs == 0:
        y.zero_()
        for term in (None if bias is None else bias.view(-1, 1, 1), residual):
            y = y if term is None else y.add_(term)
        return y.copy_(act(y))
    x, padding = _symmetric(x.to(weight.dtype), geometry)
    if geometry.flip:
        weight = weight.flip(-2, -1)
    groups = geometry.groups
    if geometry.per_sample:
        x, weight, groups = _samples_as_groups(x), weight.flatten(0, 1), groups * geometry.N
        bias = None if bias is None else bias.repeat(geometry.N)
    result = torch.ops.aten.convolution(
        x,
        weight,
        bias,
        geometry.stride,
        padding,
        geometry.dilation,
        False,
        (0, 0),
        groups,
    )
    if geometry.per_sample:  # not a view: autograd would let nobody write to it in place
        result = torch.ops.aten._unsafe_view(result, y.shape)
    result = act(result if residual is None else result + residual)
    return result if result.stride() == y.stride() else y.copy_(result)


@_without_autocast
def dgrad(
    dy: torch.Tensor, weight: torch.Tensor, geometry: Geometry, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """dx (N, C, H, W); see registration.dgrad."""
    dx = empty_in_format(geometry.x_shape, dy.dtype, like=dy)
    if geometry.macs == 0:
        return dx.copy_(bias.view(-1, 1, 1).expand_as(dx)) if bias is not None else dx.zero_()
    dy, weight = _summable(dy), _summable(weight)
    if geometry.flip:
        weight = weight.flip(-2, -1)
    padding, (top, bottom), (left, right) = _split_padding(geometry)
    padded = (geometry.H + top + bottom, geometry.W + left + right)
    dx_padded = _backward(None, dy, weight, geometry, padding, padded)
    if geometry.padding_mode == "zeros":
        result = F.pad(dx_padded, (-left, -right, -top, -bottom))
    else:
        result = _add_images(dx_padded, geometry)
    return dx.copy_(result if bias is None else result + bias.view(-1, 1, 1))


@_without_autocast
def wgrad(x: torch.Tensor, dy: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """dw, shaped as the weight; see registration.wgrad."""
    dw = dy.new_empty(geometry.weight_shape)
    if geometry.macs == 0:
        return dw.zero_()
    dy = _summable(dy)
    # PyTorch 2.13 on one thread crashes on a channels_last image under a strided 1x1 window.
    x, padding = _symmetric(x.to(dy.dtype).contiguous(), geometry)
    result = _backward(x, dy, None, geometry, padding, (x.shape[-2], x.shape[-1]))
    return dw.copy_(result.flip(-2, -1) if geometry.flip else result)


def _backward(
    x: torch.Tensor | None,
    dy: torch.Tensor,
    weight: torch.Tensor | None,
    geometry: Geometry,
    padding: Pair,
    padded: Pair,
) -> torch.Tensor:
    """The gradient of whichever of x (N, C, *padded) and weight is None, shaped like it."""
    # aten asks for both operands and reads only the shape of the one whose gradient it computes.
    stand_in = dy.new_empty(1)
    x_shape = (geometry.N, geometry.C, *padded)
    operand = stand_in.expand(x_shape) if x is None else x
    filters = stand_in.expand(geometry.weight_shape) if weight is None else weight
    groups = geometry.groups
    if geometry.per_sample:
        operand, dy = _samples_as_groups(operand), _samples_as_groups(dy)
        filters, groups = filters.flatten(0, 1), groups * geometry.N
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy,
        operand,
        filters,
        None,
        geometry.stride,
        padding,
        geometry.dilation,
        False,
        (0, 0),
        groups,
        (x is None, weight is None, False),
    )
    if x is None:
        return dx.reshape(x_shape)
    return dw.reshape(geometry.weight_shape)


def _add_images(dx_padded: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The adjoint of F.pad(mode=...): each pixel's sum over the places that show it."""
    mode = geometry.padding_mode
    for axis, extent, (before, after) in (
        (-2, geometry.H, geometry.padding[0]),
        (-1, geometry.W, geometry.padding[1]),
    ):
        place = torch.arange(-before, extent + after, device=dx_padded.device)
        if mode == "reflect":
            place = extent - 1 - (extent - 1 - place.abs()).abs()
        elif mode == "replicate":
            place = place.clamp(0, extent - 1)
        else:
            place = place % extent
        shape = list(dx_padded.shape)
        shape[axis] = extent
        dx_padded = dx_padded.new_zeros(shape).index_add_(axis, place, dx_padded)
    return dx_padded


def _summable(tensor: torch.Tensor) -> torch.Tensor:
    """16-bit tensors as float32: PyTorch's CPU backward would keep float16 sums in float16."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _samples_as_groups(tensor: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as (1, N * C, H, W)."""
    return tensor.flatten(0, 1).unsqueeze(0)


def _split_padding(geometry: Geometry) -> tuple[Pair, Pair, Pair]:
    """((h, w) for PyTorch, (top, bottom), (left, right) to copy): the latter zero if symmetric."""
    rows, columns = geometry.padding
    if geometry.padding_mode != "zeros":
        return (0, 0), rows, columns
    if rows[0] == rows[1] >= 0 and columns[0] == columns[1] >= 0:
        return (rows[0], columns[0]), (0, 0), (0, 0)
    return (0, 0), rows, columns


def _symmetric(x: torch.Tensor, geometry: Geometry) -> tuple[torch.Tensor, Pair]:
    """x and the (h, w) padding left for PyTorch to do."""
    padding, rows, columns = _split_padding(geometry)
    if padding == (0, 0):
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x = F.pad(x, (*columns, *rows), mode=mode) if any(rows + columns) else x
    return x, padding
