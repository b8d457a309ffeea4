"""Separable windows in one pass over the image, differentiable in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.autograd import forward_ad

from ..ops import Geometry, backend, geometry_of
from ..ops.operators import has_memory
from .function import _Function, input_gradient, is_unwatched
from .settings import precision_of

#: Dtypes of results.
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def separable(
    x: torch.Tensor,
    down: torch.Tensor,
    across: torch.Tensor,
    padding_mode: str,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """Every plane of x under down[r] * across[s] by one launch, padded to keep its size.

    Args:
        x: (N, C, H, W); `dtype`, or uint8.
        down: (R,), or (N, R) for a window per sample; symmetric.
        across: (S,) or (N, S), likewise.
        padding_mode: what lies beyond the border.
        dtype: of the result.

    Returns:
        (N, C, H, W), differentiable in x to any order; None where two passes or all taps at once
        are as fast, where PyTorch computes, and where a compiler, a transform or a derivative by
        the windows needs registered operators.
    """
    if not backend.runs_kernels(x.device) or not has_memory(x, down, across):
        return None
    if dtype not in FLOATS or x.layout is not torch.strided:
        return None
    if not is_unwatched(down, across):
        return None
    R, S = down.shape[-1], across.shape[-1]
    sides = ((R - 1) // 2, R // 2), ((S - 1) // 2, S // 2)
    C = x.shape[1]
    geometry = geometry_of(
        tuple(x.shape), (C, 1, R, S), padding=sides, groups=C, padding_mode=padding_mode
    )
    taps = torch.cat([down, across], -1).view(-1, R + S)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    # non_blocking: do not synchronise with the device.
    return _in_one_pass(x, taps.to(x.device, exact, non_blocking=True), dtype, geometry)


def separable_bank(
    x: torch.Tensor,
    windows: torch.Tensor,
    size: tuple[int, int],
    padding_mode: str,
    dtype: torch.dtype,
    combine: str | None = None,
    root: float = 0.0,
) -> torch.Tensor | None:
    """Every plane of x under several separable windows by one launch, padded to keep its size.

    Args:
        x, padding_mode, dtype: as for `separable`.
        windows: (K, R + S), the taps down, then those across.
        size: (R, S).
        combine: None, "sum", or of two windows "magnitude": sqrt(y0^2 + y1^2 + root^2).
        root: see combine.

    Returns:
        (N, C * K, H, W), or (N, C, H, W) of combined results; None where PyTorch computes, where
        autograd watches, and where a compiler or a transform needs registered operators.
    """
    if not backend.runs_kernels(x.device) or not has_memory(x) or not is_unwatched(x):
        return None
    if dtype not in FLOATS or x.layout is not torch.strided:
        return None
    from ..ops.launch import separable_launch

    R, S = size
    sides = ((R - 1) // 2, R // 2), ((S - 1) // 2, S // 2)
    C = x.shape[1]
    bank = (C * len(windows), 1, R, S)
    geometry = geometry_of(tuple(x.shape), bank, padding=sides, groups=C, padding_mode=padding_mode)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    taps = windows.to(x.device, exact, non_blocking=True)
    return separable_launch.separable_bank(x, taps, dtype, geometry, combine, root)


def _in_one_pass(
    x: torch.Tensor, taps: torch.Tensor, dtype: torch.dtype, geometry: Geometry
) -> torch.Tensor | None:
    from ..ops.launch import separable_launch

    if forward_ad._current_level >= 0:
        return None
    precision = precision_of(x, None) if x.dtype == dtype else precision_of(taps, None)
    if is_unwatched(x):
        return separable_launch.separable(x, taps, dtype, geometry, precision)
    if not separable_launch.is_faster(x, taps, dtype, geometry, precision):
        return None
    return SeparableCorrelation2D.apply(x, taps, dtype, geometry, precision)


class SeparableCorrelation2D(_Function):
    """y = separable(x); its gradient is one as well where zeros are beyond the border."""

    @staticmethod
    def forward(
        x: torch.Tensor, taps: torch.Tensor, dtype: torch.dtype, geometry: Geometry, precision: str
    ) -> torch.Tensor | None:
        from ..ops.launch import separable_launch

        return separable_launch.separable(x, taps, dtype, geometry, precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, taps, _, ctx.geometry, ctx.precision = inputs
        ctx.save_for_backward(taps)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if dy is None:
            return None, None, None, None, None
        (taps,) = ctx.saved_tensors
        return _gradient(dy, taps, ctx.geometry, ctx.precision), None, None, None, None


def _gradient(
    dy: torch.Tensor, taps: torch.Tensor, geometry: Geometry, precision: str
) -> torch.Tensor:
    """dx (N, C, H, W), differentiable in dy."""
    if geometry.padding_mode == "zeros" and has_memory(dy):
        # The windows are symmetric: turned by 180 degrees they are the same.
        dx = _in_one_pass(dy, taps, dy.dtype, replace(geometry.adjoint(), flip=False))
        if dx is not None:
            return dx
    rows, columns = geometry.padding
    R, C = geometry.R, geometry.C
    passes = (  # the last first
        (replace(geometry, S=1, padding=(rows, (0, 0))), taps[:, :R, None]),
        (replace(geometry, R=1, padding=((0, 0), columns)), taps[:, None, R:]),
    )
    for part, window in passes:
        weight = window[:, None, None].to(dy.dtype).expand(-1, C, 1, *window.shape[1:])
        if len(taps) == 1:
            weight = weight[0]
        dy = input_gradient(dy, weight, replace(part, per_sample=len(taps) > 1), precision)
    return dy
