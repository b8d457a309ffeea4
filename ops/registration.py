"""The three operators as PyTorch sees them: torch.ops.tricorr.fprop, dgrad and wgrad.

Each is registered with a schema, one implementation for every device (kernels, or PyTorch's own
convolution on CPU) and a fake implementation for meta tensors and compilers. Derivatives are
registered in autograd/function.py. The arguments of a Geometry travel as plain integers.

All three are bitwise repeatable on one device: no atomics, sums in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch

from . import decompositions, direct
from .geometry import Geometry
from .launch.formats import empty_in_format
from .schema import geometry_of_call, steps_of

_STEPS = (
    "int[] stride, int[] padding, int[] dilation, int groups, bool flip, str mode, str precision"
)
_LIBRARY = torch.library.Library("tricorr", "DEF")
_LIBRARY.define(
    "fprop(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation, "
    f"{_STEPS}) -> Tensor"
)
_LIBRARY.define(f"dgrad(Tensor dy, Tensor weight, Tensor? bias, SymInt[] size, {_STEPS}) -> Tensor")
_LIBRARY.define(f"wgrad(Tensor x, Tensor dy, SymInt[] weight_shape, {_STEPS}) -> Tensor")


def fprop(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    precision: str = "ieee",
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Forward: y = act(z), z[n,k,p,q] = bias[k] + residual[n,k,p,q] + the sum of products.

        sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s]

    Args:
        x: (N, C, H, W), any strides; the weight's dtype, or uint8.
        weight: (K, C/groups, R, S) or (N, K, C/groups, R, S), any strides; float16, bfloat16,
            float32 or float64.
        bias: (K,) in the weight's dtype, or None.
        geometry: of these shapes.
        precision: how float32 is multiplied: "ieee", "tf32" or "tf32x3".
        activation: "none", "relu", "relu6", "gelu" or "silu", applied before the rounding.
        residual: (N, K, P, Q), any strides, in the weight's dtype, or None: added to the sums
            before the activation and the rounding.

    Returns:
        y (N, K, P, Q) in the weight's dtype and the memory format of x. Sums are kept in float32
        (float64 for float64) and rounded once.
    """
    _learn_to_shard(x, weight)
    return torch.ops.tricorr.fprop(
        x, weight, bias, residual, activation, *steps_of(geometry), precision
    )


def dgrad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Input gradient: dx[n,c,h,w] = bias[c] + sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s].

    Args:
        dy: (N, K, P, Q), any strides; the weight's dtype.
        weight: as for fprop. An infinity or NaN in it spreads to every pixel of its channel, also
            where the window does not reach.
        geometry: of the forward call.
        precision: as for fprop.
        bias: (C,) in the weight's dtype, or None: makes it a transposed correlation.

    Returns:
        dx (N, C, H, W) in dtype and memory format of dy, summed as in fprop.
    """
    _learn_to_shard(dy, weight)
    size = (geometry.H, geometry.W)
    return torch.ops.tricorr.dgrad(dy, weight, bias, size, *steps_of(geometry), precision)


def wgrad(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, precision: str = "ieee"
) -> torch.Tensor:
    """Weight gradient: dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w].

    Args:
        x: as for fprop.
        dy: (N, K, P, Q), any strides; float16, bfloat16, float32 or float64.
        geometry: of the forward call.
        precision: as for fprop.

    Returns:
        dw, contiguous, shaped as the weight, in the dtype of dy. Pixels may be split into parts:
        partial sums are float32 (float64 for float64) and are added in a fixed order.
    """
    _learn_to_shard(x, dy)
    shape = geometry.weight_shape
    return torch.ops.tricorr.wgrad(x, dy, shape, *steps_of(geometry), precision)


def _learn_to_shard(*tensors: torch.Tensor) -> None:
    """Registers the rules for DTensors (ops/distributed/sharding.py) when the first one comes."""
    for kind in map(type, tensors):
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            continue
        if kind.__module__.startswith("torch.distributed.tensor"):
            from .distributed import sharding  # noqa: F401


def _fprop(*arguments: Any) -> torch.Tensor:
    x, weight, bias, residual, activation, *_, precision = arguments
    geometry = geometry_of_call("fprop", arguments)
    return direct.fprop(x, weight, bias, geometry, precision, activation, residual)


def _dgrad(*arguments: Any) -> torch.Tensor:
    dy, weight, bias, *_, precision = arguments
    return direct.dgrad(dy, weight, geometry_of_call("dgrad", arguments), precision, bias)


def _wgrad(*arguments: Any) -> torch.Tensor:
    x, dy, *_, precision = arguments
    return direct.wgrad(x, dy, geometry_of_call("wgrad", arguments), precision)


def _fprop_fake(*arguments: Any) -> torch.Tensor:
    x, weight = arguments[:2]
    return empty_in_format(geometry_of_call("fprop", arguments).y_shape, weight.dtype, like=x)


def _dgrad_fake(*arguments: Any) -> torch.Tensor:
    dy = arguments[0]
    return empty_in_format(geometry_of_call("dgrad", arguments).x_shape, dy.dtype, like=dy)


def _wgrad_fake(*arguments: Any) -> torch.Tensor:
    return arguments[1].new_empty(geometry_of_call("wgrad", arguments).weight_shape)


for _name, _implementation, _fake in (
    ("fprop", _fprop, _fprop_fake),
    ("dgrad", _dgrad, _dgrad_fake),
    ("wgrad", _wgrad, _wgrad_fake),
):
    _LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tricorr::{_name}", _fake, lib=_LIBRARY)

decompositions.register({"fprop": _fprop_fake, "dgrad": _dgrad_fake})
