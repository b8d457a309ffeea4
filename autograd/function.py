"""The three operators as autograd sees them, each other's derivatives to every order.

    y  = F(x, weight)            its gradients are D(dy, weight) and G(x, dy)
    dx = D(dy, weight)           its gradients are F and G
    dw = G(x, dy)                its gradients are D and F

F is fprop, D dgrad, G wgrad. All three are bilinear, so this small set serves reverse mode,
forward mode and any order of both. The bias is the weight of an extra channel whose pixels are all
one: its gradient is G again.

Compilers trace the registered operators, whose derivatives are registered at the end of this file;
eager mode runs the autograd.Functions, which also have forward-mode derivatives.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .. import ops
from ..ops import Geometry


def correlate(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    precision: str,
) -> torch.Tensor:
    """fprop, differentiable in x, weight and bias."""
    if torch.compiler.is_compiling():
        return ops.fprop(x, weight, bias, geometry, precision)
    return CrossCorrelation2D.apply(x, weight, bias, geometry, precision)


def input_gradient(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """dgrad, differentiable in dy, weight and bias."""
    if torch.compiler.is_compiling():
        return ops.dgrad(dy, weight, geometry, precision, bias)
    return InputGradient2D.apply(dy, weight, bias, geometry, precision)


def weight_gradient(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, precision: str
) -> torch.Tensor:
    """wgrad, differentiable in x and dy."""
    if torch.compiler.is_compiling():
        return ops.wgrad(x, dy, geometry, precision)
    return WeightGradient2D.apply(x, dy, geometry, precision)


def bias_gradient(dy: torch.Tensor) -> torch.Tensor:
    """db[k] = sum_{n,p,q} dy[n,k,p,q]: the weight gradient of a depthwise 1x1 window on ones."""
    N, K, P, Q = dy.shape
    ones = dy.new_ones(1).expand(N, K, P, Q)
    geometry = ops.geometry_of((N, K, P, Q), (K, 1, 1, 1), groups=K)
    return weight_gradient(ones, dy, geometry, "ieee").view(K)


def _fprop_backward(
    needs: tuple[bool, ...],
    x: torch.Tensor,
    weight: torch.Tensor,
    dy: torch.Tensor,
    geometry: Geometry,
    precision: str,
) -> tuple[torch.Tensor | None, ...]:
    return (
        input_gradient(dy, weight, geometry, precision) if needs[0] else None,
        weight_gradient(x, dy, geometry, precision) if needs[1] else None,
        bias_gradient(dy) if needs[2] else None,
    )


def _dgrad_backward(
    needs: tuple[bool, ...],
    dy: torch.Tensor,
    weight: torch.Tensor,
    ddx: torch.Tensor,
    geometry: Geometry,
    precision: str,
) -> tuple[torch.Tensor | None, ...]:
    return (
        correlate(ddx, weight, None, geometry, precision) if needs[0] else None,
        weight_gradient(ddx, dy, geometry, precision) if needs[1] else None,
        bias_gradient(ddx) if needs[2] else None,
    )


def _wgrad_backward(
    needs: tuple[bool, ...],
    x: torch.Tensor,
    dy: torch.Tensor,
    ddw: torch.Tensor,
    geometry: Geometry,
    precision: str,
) -> tuple[torch.Tensor | None, ...]:
    return (
        input_gradient(dy, ddw, geometry, precision) if needs[0] else None,
        correlate(x, ddw, None, geometry, precision) if needs[1] else None,
    )


def _sum(terms: list[torch.Tensor]) -> torch.Tensor | None:
    return sum(terms[1:], start=terms[0]) if terms else None


class CrossCorrelation2D(torch.autograd.Function):
    """y = fprop(x, weight, bias)."""

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry,
        precision: str,
    ) -> torch.Tensor:
        return ops.fprop(x, weight, bias, geometry, precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, _, ctx.geometry, ctx.precision = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if dy is None:
            return None, None, None, None, None
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grads = _fprop_backward(needs, x, weight, dy, ctx.geometry, ctx.precision)
        return (*grads, None, None)

    @staticmethod
    def jvp(
        ctx: Any,
        tx: torch.Tensor | None,
        tweight: torch.Tensor | None,
        tbias: torch.Tensor | None,
        *_: None,
    ) -> torch.Tensor | None:
        x, weight = ctx.saved_tensors
        terms = []
        if tx is not None:
            terms.append(correlate(tx, weight, None, ctx.geometry, ctx.precision))
        if tweight is not None:
            terms.append(correlate(x, tweight, None, ctx.geometry, ctx.precision))
        if tbias is not None:
            terms.append(tbias.view(-1, 1, 1).expand(ctx.geometry.y_shape))
        return _sum(terms)


class InputGradient2D(torch.autograd.Function):
    """dx = dgrad(dy, weight, bias)."""

    @staticmethod
    def forward(
        dy: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry,
        precision: str,
    ) -> torch.Tensor:
        return ops.dgrad(dy, weight, geometry, precision, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        dy, weight, _, ctx.geometry, ctx.precision = inputs
        ctx.save_for_backward(dy, weight)
        ctx.save_for_forward(dy, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if ddx is None:
            return None, None, None, None, None
        dy, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grads = _dgrad_backward(needs, dy, weight, ddx, ctx.geometry, ctx.precision)
        return (*grads, None, None)

    @staticmethod
    def jvp(
        ctx: Any,
        tdy: torch.Tensor | None,
        tweight: torch.Tensor | None,
        tbias: torch.Tensor | None,
        *_: None,
    ) -> torch.Tensor | None:
        dy, weight = ctx.saved_tensors
        terms = []
        if tdy is not None:
            terms.append(input_gradient(tdy, weight, ctx.geometry, ctx.precision))
        if tweight is not None:
            terms.append(input_gradient(dy, tweight, ctx.geometry, ctx.precision))
        if tbias is not None:
            terms.append(tbias.view(-1, 1, 1).expand(ctx.geometry.x_shape))
        return _sum(terms)


class WeightGradient2D(torch.autograd.Function):
    """dw = wgrad(x, dy)."""

    @staticmethod
    def forward(
        x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, precision: str
    ) -> torch.Tensor:
        return ops.wgrad(x, dy, geometry, precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, dy, ctx.geometry, ctx.precision = inputs
        ctx.save_for_backward(x, dy)
        ctx.save_for_forward(x, dy)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, ddw: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if ddw is None:
            return None, None, None, None
        x, dy = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grads = _wgrad_backward(needs, x, dy, ddw, ctx.geometry, ctx.precision)
        return (*grads, None, None)

    @staticmethod
    def jvp(
        ctx: Any, tx: torch.Tensor | None, tdy: torch.Tensor | None, *_: None
    ) -> torch.Tensor | None:
        x, dy = ctx.saved_tensors
        terms = []
        if tx is not None:
            terms.append(weight_gradient(tx, dy, ctx.geometry, ctx.precision))
        if tdy is not None:
            terms.append(weight_gradient(x, tdy, ctx.geometry, ctx.precision))
        return _sum(terms)


def _register(name: str, backward: Any) -> None:
    """Gives a registered operator the derivative `backward`, by its two leading tensors."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = ops.geometry_of_call(name, inputs)
        ctx.precision = inputs[-1]
        ctx.arguments = len(inputs)

    def gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = backward(ctx.needs_input_grad, *saved, grad, ctx.geometry, ctx.precision)
        return (*grads, *[None] * (ctx.arguments - len(grads)))

    torch.library.register_autograd(f"tricorr::{name}", gradients, setup_context=setup_context)


_register("fprop", _fprop_backward)
_register("dgrad", _dgrad_backward)
_register("wgrad", _wgrad_backward)

# torch.autograd.Function.apply asks for this signature at every call, and working it out takes
# longer than all the rest of a small call on the host.
for _function in (CrossCorrelation2D, InputGradient2D, WeightGradient2D):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[union-attr]
