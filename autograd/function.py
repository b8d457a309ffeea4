"""The three operators as autograd sees them, each other's derivatives to every order.

    y  = F(x, weight)            its gradients are D(dy, weight) and G(x, dy)
    dx = D(dy, weight)           its gradients are F and G
    dw = G(x, dy)                its gradients are D and F

F is fprop, D dgrad, G wgrad. All three are bilinear, so this small set serves reverse mode,
forward mode and any order of both. The bias is the weight of an extra channel whose pixels are all
one: its gradient is G again. A residual is added to the sum: its gradient is that of the sum.

Three ways lead to an operator:

- compilers trace the registered operators, whose derivatives are registered at the end of this
  file;
- eager mode and torch.func run the autograd.Functions, which add forward mode and vmap;
- on CPU, PyTorch's own differentiable operators run instead (ops/cpu.py), except for large images
  of one channel, for which ops/one_channel.py is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad

from .. import ops
from ..ops import BackendError, Geometry, backend, cpu, decompositions, one_channel
from ..ops.cpu import ACTIVATION_FUNCTIONS
from ..ops.schema import steps_of
from .batching import fold_bias, fold_weighted, fold_wgrad


def correlate(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    precision: str,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """fprop, differentiable in x, weight, bias and residual."""
    arguments = (x, weight, bias, geometry, precision, activation, residual)
    if _is_traced():
        return ops.fprop(*arguments)
    if cpu.suffices(x, weight, bias, residual) and _is_differentiable(geometry, weight.dtype):
        return cpu.fprop(*arguments)
    if is_unwatched(x, weight, bias, residual):
        return ops.fprop(*arguments)
    return CrossCorrelation2D.apply(*arguments)


def input_gradient(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """dgrad, differentiable in dy, weight and bias."""
    if _is_traced():
        if torch._C._get_tracing_state():  # the tracer cannot record an argument of type SymInt[]
            return _by_pytorch(dy, weight, geometry, precision, bias)
        return ops.dgrad(dy, weight, geometry, precision, bias)
    if cpu.suffices(dy, weight, bias) and _is_differentiable(geometry, weight.dtype):
        return cpu.dgrad(dy, weight, geometry, precision, bias)
    if is_unwatched(dy, weight, bias):
        return ops.dgrad(dy, weight, geometry, precision, bias)
    return InputGradient2D.apply(dy, weight, geometry, precision, bias)


def _by_pytorch(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """dgrad by PyTorch's transposed convolution, for torch.jit.trace."""
    size = (geometry.H, geometry.W)
    y = decompositions.dgrad(dy, weight, bias, size, *steps_of(geometry), precision)
    if y is NotImplemented:
        raise BackendError(
            "torch.jit.trace cannot record an input gradient with a padding mode or a filter bank "
            "per sample: use torch.export"
        )
    return y


def weight_gradient(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, precision: str
) -> torch.Tensor:
    """wgrad, differentiable in x and dy."""
    if _is_traced():
        return ops.wgrad(x, dy, geometry, precision)
    if cpu.suffices(x, dy) and _is_differentiable(geometry, dy.dtype):
        return cpu.wgrad(x, dy, geometry, precision)
    if is_unwatched(x, dy):
        return ops.wgrad(x, dy, geometry, precision)
    return WeightGradient2D.apply(x, dy, geometry, precision)


def both_gradients(
    x: torch.Tensor, dy: torch.Tensor, weight: torch.Tensor, geometry: Geometry, precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_gradient, weight_gradient), differentiable; by one launch where nothing watches."""
    if not _is_traced() and is_unwatched(x, dy, weight) and backend.runs_kernels(dy.device):
        return ops.backward(x, dy, weight, geometry, precision)
    return (
        input_gradient(dy, weight, geometry, precision),
        weight_gradient(x, dy, geometry, precision),
    )


def _is_differentiable(geometry: Geometry, dtype: torch.dtype) -> bool:
    """Whether all that ops/cpu.py does for this geometry are differentiable PyTorch operators."""
    return geometry.macs != 0 and not one_channel.takes(geometry, dtype)


def _is_traced() -> bool:
    """Whether a compiler or torch.jit.trace records and can record the registered operator.

    Not inside torch.func's transforms: a registered operator has no forward mode (its tangents
    would be zero) and no vmap. Dynamo breaks the graph at the Functions that run there instead.
    """
    reads = torch.compiler.is_compiling() or torch._C._get_tracing_state()
    return bool(reads) and not torch._C._are_functorch_transforms_active()


def is_unwatched(*tensors: torch.Tensor | None) -> bool:
    """Whether neither autograd nor a transform needs this call: it can skip Function.apply."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return False
    return True


def bias_gradient(dy: torch.Tensor) -> torch.Tensor:
    """db[k] = sum_{n,p,q} dy[n,k,p,q]; on a GPU as the depthwise 1x1 weight gradient of ones."""
    if not backend.runs_kernels(dy.device):
        return dy.sum((0, 2, 3))
    N, K, P, Q = dy.shape
    ones = dy.new_ones(1).expand(N, K, P, Q)
    geometry = ops.geometry_of((N, K, P, Q), (K, 1, 1, 1), groups=K)
    return weight_gradient(ones, dy, geometry, "ieee").view(K)


def through_activation(
    activation: str, grad: torch.Tensor, y: torch.Tensor, z: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """grad * act'(z), where y = act(z): the gradient of z, or in forward mode the tangent of y.

    Args:
        activation: as for fprop.
        grad: the gradient of y, or in forward mode the tangent of z.
        y: the output, which is enough for relu and relu6.
        z: recomputes z for gelu and silu: a second correlation, so that z need not be stored.
    """
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, y, 0)
    if activation == "relu6":
        return torch.ops.aten.hardtanh_backward(grad, y, 0, 6)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, z())
    if activation == "silu":
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(grad, z())
        sigma = torch.sigmoid(activated := z())  # PyTorch's own kernel has no derivative
        return grad * sigma * (1 + activated * (1 - sigma))
    return grad


def _fprop_backward(
    needs: tuple[bool, ...],
    saved: tuple[torch.Tensor, ...],
    dy: torch.Tensor,
    geometry: Geometry,
    precision: str,
    activation: str,
) -> tuple[torch.Tensor | None, ...]:
    x, weight, bias, residual, y = saved
    dz = through_activation(
        activation,
        dy,
        y,
        lambda: correlate(x, weight, bias, geometry, precision, residual=residual),
    )
    dx = dw = None
    if needs[0] and needs[1]:
        dx, dw = both_gradients(x, dz, weight, geometry, precision)
    elif needs[0]:
        dx = input_gradient(dz, weight, geometry, precision)
    elif needs[1]:
        dw = weight_gradient(x, dz, geometry, precision)
    return dx, dw, bias_gradient(dz) if needs[2] else None, dz if needs[3] else None


def _dgrad_backward(
    needs: tuple[bool, ...],
    saved: tuple[torch.Tensor, ...],
    ddx: torch.Tensor,
    geometry: Geometry,
    precision: str,
) -> tuple[torch.Tensor | None, ...]:
    dy, weight = saved
    return (
        correlate(ddx, weight, None, geometry, precision) if needs[0] else None,
        weight_gradient(ddx, dy, geometry, precision) if needs[1] else None,
        bias_gradient(ddx) if needs[2] else None,
    )


def _wgrad_backward(
    needs: tuple[bool, ...],
    saved: tuple[torch.Tensor, ...],
    ddw: torch.Tensor,
    geometry: Geometry,
    precision: str,
) -> tuple[torch.Tensor | None, ...]:
    x, dy = saved
    return (
        input_gradient(dy, ddw, geometry, precision) if needs[0] else None,
        correlate(x, ddw, None, geometry, precision) if needs[1] else None,
    )


def _sum(terms: list[torch.Tensor]) -> torch.Tensor | None:
    return sum(terms[1:], start=terms[0]) if terms else None


class _Function(torch.autograd.Function):
    """An autograd.Function whose apply takes a third of the host time."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Function.apply without binding default arguments, which it does at every call."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        # Function.apply does this too: unwrap tensors that outlived their functorch transform.
        alive = [unwrap_if_dead(arg) if type(arg) is torch.Tensor else arg for arg in args]
        quick: Any = super(torch.autograd.Function, cls)
        return quick.apply(*alive)


def _save(ctx: Any, *tensors: torch.Tensor | None) -> None:
    """Saves for backward; for forward mode only inside a dual level, where jvp follows at once."""
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)


class CrossCorrelation2D(_Function):
    """y = fprop(x, weight, bias, residual), activated."""

    forward = staticmethod(ops.fprop)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, bias, ctx.geometry, ctx.precision, ctx.activation, residual = inputs
        plain = ctx.activation == "none"
        _save(ctx, *((x, weight) if plain else (x, weight, bias, residual, output)))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if dy is None:
            return None, None, None, None, None, None, None
        saved = (*ctx.saved_tensors, None, None, None)[:5]
        needs = ctx.needs_input_grad
        options = (ctx.geometry, ctx.precision, ctx.activation)
        *grads, dresidual = _fprop_backward((*needs[:3], needs[6]), saved, dy, *options)
        return (*grads, None, None, None, dresidual)

    @staticmethod
    def jvp(
        ctx: Any,
        tx: torch.Tensor | None,
        tweight: torch.Tensor | None,
        tbias: torch.Tensor | None,
        _geometry: None,
        _precision: None,
        _activation: None,
        tresidual: torch.Tensor | None,
    ) -> torch.Tensor | None:
        x, weight, bias, residual, y = (*ctx.saved_tensors, None, None, None)[:5]
        geometry, precision = ctx.geometry, ctx.precision
        terms = []
        if tx is not None:
            terms.append(correlate(tx, weight, None, geometry, precision))
        if tweight is not None:
            terms.append(correlate(x, tweight, None, geometry, precision))
        if tbias is not None:
            terms.append(tbias.view(-1, 1, 1).expand(geometry.y_shape))
        if tresidual is not None:
            terms.append(tresidual.clone())
        tz = _sum(terms)
        if tz is None:
            return None
        return through_activation(
            ctx.activation,
            tz,
            y,
            lambda: correlate(x, weight, bias, geometry, precision, residual=residual),
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry,
        precision: str,
        activation: str,
        residual: torch.Tensor | None,
    ) -> tuple[torch.Tensor, int]:
        if residual is not None:  # one residual per sample of vmap: added after the folded call
            if any(dim is not None for dim in in_dims[:3]):
                plain = (*in_dims[:3], None, None, None, None)
                sums, dim = CrossCorrelation2D.vmap(
                    info, plain, x, weight, bias, geometry, precision, "none", None
                )
                sums = sums.movedim(dim, 0)
            else:
                sums = correlate(x, weight, bias, geometry, precision)
            residual = residual if in_dims[6] is None else residual.movedim(in_dims[6], 0)
            return ACTIVATION_FUNCTIONS[activation](sums + residual), 0

        def run(
            activation: str,
            x: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            geometry: Geometry,
        ) -> torch.Tensor:
            return correlate(x, weight, bias, geometry, precision, activation)

        operands = (x, weight, bias)
        return _vmap_weighted("fprop", run, info, in_dims, *operands, geometry, activation)


class InputGradient2D(_Function):
    """dx = dgrad(dy, weight, bias)."""

    forward = staticmethod(ops.dgrad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        dy, weight, ctx.geometry, ctx.precision, _ = inputs
        _save(ctx, dy, weight)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if ddx is None:
            return None, None, None, None, None
        needs = ctx.needs_input_grad
        needs = (needs[0], needs[1], needs[4])
        *grads, dbias = _dgrad_backward(needs, ctx.saved_tensors, ddx, ctx.geometry, ctx.precision)
        return (*grads, None, None, dbias)

    @staticmethod
    def jvp(
        ctx: Any,
        tdy: torch.Tensor | None,
        tweight: torch.Tensor | None,
        _geometry: None,
        _precision: None,
        tbias: torch.Tensor | None,
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

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: torch.Tensor,
        weight: torch.Tensor,
        geometry: Geometry,
        precision: str,
        bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, int]:
        def run(
            _: str,
            dy: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            geometry: Geometry,
        ) -> torch.Tensor:
            return input_gradient(dy, weight, geometry, precision, bias)

        dims = (*in_dims[:2], in_dims[4])
        return _vmap_weighted("dgrad", run, info, dims, dy, weight, bias, geometry)


class WeightGradient2D(_Function):
    """dw = wgrad(x, dy)."""

    forward = staticmethod(ops.wgrad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, dy, ctx.geometry, ctx.precision = inputs
        _save(ctx, x, dy)

    @staticmethod
    def backward(ctx: Any, ddw: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if ddw is None:
            return None, None, None, None
        needs = ctx.needs_input_grad
        grads = _wgrad_backward(needs, ctx.saved_tensors, ddw, ctx.geometry, ctx.precision)
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

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: torch.Tensor,
        dy: torch.Tensor,
        geometry: Geometry,
        precision: str,
    ) -> tuple[torch.Tensor, int]:
        dims = (in_dims[0], in_dims[1])
        x, dy, geometry, unfold = fold_wgrad(info.batch_size, dims, x, dy, geometry)
        return unfold(weight_gradient(x, dy, geometry, precision))


def _vmap_weighted(
    op: str,
    run: Callable[..., torch.Tensor],
    info: Any,
    in_dims: tuple[int | None, ...],
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    activation: str = "none",
) -> tuple[torch.Tensor, int]:
    """vmap of fprop or dgrad, `run` with (activation, image, weight, bias, geometry)."""
    image_dim, weight_dim, bias_dim = in_dims[:3]
    if bias is not None and bias_dim is not None:  # the operator takes one bias for all samples
        if image_dim is None and weight_dim is None:
            sums = run("none", image, weight, None, geometry).unsqueeze(0)
        else:
            sums, dim = _vmap_weighted(op, run, info, in_dims, image, weight, None, geometry)
            sums = sums.movedim(dim, 0)
        biases = bias.movedim(bias_dim, 0)[:, None, :, None, None]
        return ACTIVATION_FUNCTIONS[activation](sums + biases), 0
    dims = (image_dim, weight_dim)
    image, weight, more, unfold = fold_weighted(op, info.batch_size, dims, image, weight, geometry)
    bias = fold_bias(bias, more.K if op == "fprop" else more.C)
    return unfold(run(activation, image, weight, bias, more))


def _register(name: str, backward: Any) -> None:
    """Gives a registered operator the derivative `backward`."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.geometry = ops.geometry_of_call(name, inputs)
        ctx.rest = (inputs[-1], inputs[4]) if name == "fprop" else (inputs[-1],)
        plain = name != "fprop" or inputs[4] == "none"
        ctx.save_for_backward(*(inputs[:2] if plain else (*inputs[:4], output)))
        ctx.arguments = len(inputs)

    def gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        if name == "fprop":
            saved = (*saved, None, None, None)[:5]
        grads = backward(ctx.needs_input_grad, saved, grad, ctx.geometry, *ctx.rest)
        return (*grads, *[None] * (ctx.arguments - len(grads)))

    torch.library.register_autograd(f"tricorr::{name}", gradients, setup_context=setup_context)


_register("fprop", _fprop_backward)
_register("dgrad", _dgrad_backward)
_register("wgrad", _wgrad_backward)
