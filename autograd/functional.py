"""The public functions: arguments as PyTorch's, checked, then one operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..ops import as_shape
from ..ops.arguments import (
    Activation,
    PaddingLike,
    PaddingMode,
    PairLike,
    Precision,
    SidesLike,
    check_activation,
    check_precision,
    check_tensors,
    shape_of,
)
from .function import correlate, input_gradient, weight_gradient
from .operands import (
    Steps,
    forward_operands,
    gradient_geometry,
    residual_operand,
    transposed_operands,
)
from .settings import precision_of
from .shortcut import by_pytorch

if TYPE_CHECKING:
    from ..ops.explain import Explanation

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _overridable(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Lets operands whose class has a __torch_function__ take the call, as PyTorch's own do."""

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if has_torch_function_variadic(*args, *kwargs.values()):
            operands = (*args, *kwargs.values())
            return handle_torch_function(checked, operands, *args, **kwargs)
        return function(*args, **kwargs)

    return checked


def corr2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation | None = None,
    precision: Precision | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D cross-correlation, what deep-learning frameworks call convolution.

        y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} input[n,c,h,w] * weight[k,c,r,s])
        h = p * stride_h - pad_top + r * dilation_h        w likewise

    Differentiable to any order in input, weight, bias and residual. Bitwise repeatable on one
    device.

    Args:
        input: (..., H, W); float16, bfloat16, float32 or float64, or uint8 images.
        weight: (R, S), (K, C/groups, R, S) or (N, K, C/groups, R, S); the dtype of the input, or
            any of the four for uint8 images.
        bias: (K,), or one element for a (R, S) weight; the dtype of the weight.
        stride: step between windows, int or (h, w).
        padding: int, (h, w), ((top, bottom), (left, right)), "same" or "valid".
        dilation: step between taps of a window, int or (h, w).
        groups: channel groups, as in `torch.nn.functional.conv2d`; 1 for a (R, S) weight.
        padding_mode: what the padding shows: "zeros", "reflect" (the image mirrored at its
            outermost pixels, which are not repeated), "replicate" (those pixels) or "circular".
            No padded copy is made on a GPU.
        activation: None or "none", "relu", "relu6", "gelu" (by the error function) or "silu", of
            the sum before it is rounded to the output's dtype.
        precision: how float32 is multiplied on a GPU: "ieee", "tf32" or "tf32x3" (three tf32
            products, nearly exact). None follows `torch.backends.cudnn.conv.fp32_precision`.
        residual: of the output's shape and dtype, any strides: added before the activation, as
            the last block of a ResNet's branch wants it, and before the rounding.

    Returns:
        The output in the weight's dtype and the input's memory format. By the operands' forms:

        - (..., H, W) with (R, S), one kernel on every plane, gives (..., P, Q);
        - (N, C, H, W) with (K, C/groups, R, S), a filter bank, gives (N, K, P, Q);
        - (C, H, W) with (K, C/groups, R, S), a filter bank, gives (K, P, Q);
        - (N, C, H, W) with (N, K, C/groups, R, S), a filter bank per sample, gives (N, K, P, Q).

        P = (H + pad_top + pad_bottom - dilation_h * (R - 1) - 1) // stride_h + 1, Q likewise.

    Raises:
        ArgumentError: a value or shape cannot be used (a RuntimeError and a ValueError).
        ArgumentTypeError: a type, dtype, device or layout cannot be used (a RuntimeError and a
            TypeError).

    Example:
        >>> X = torch.arange(9.0).reshape(3, 3)
        >>> K = torch.arange(4.0).reshape(2, 2)
        >>> corr2d(X, K)
        tensor([[19., 25.],
                [37., 43.]])
    """
    plain = activation is None and precision is None and residual is None
    if plain and not has_torch_function_variadic(input, weight, bias):
        y = by_pytorch(input, weight, bias, stride, padding, dilation, groups, padding_mode)
        if y is not None:
            return y
    steps = Steps(stride, padding, dilation, groups, padding_mode)
    epilogue = (activation, precision, residual)
    return _correlate(corr2d, False, input, weight, bias, steps, *epilogue)


def convolve2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation | None = None,
    precision: Precision | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Strict 2-D convolution: `corr2d` with the kernel turned by 180 degrees.

        y[n,k,p,q] = act(bias[k] + residual[n,k,p,q]
                       + sum_{c,r,s} input[n,c,h,w] * weight[k,c,R-1-r,S-1-s])

    Arguments, result and errors are those of `corr2d`. No flipped copy of the kernel is made.

    Example:
        >>> X = torch.arange(9.0).reshape(3, 3)
        >>> K = torch.arange(4.0).reshape(2, 2)
        >>> torch.equal(convolve2d(X, K), corr2d(X, K.flip(0, 1)))
        True
    """
    steps = Steps(stride, padding, dilation, groups, padding_mode)
    epilogue = (activation, precision, residual)
    return _correlate(convolve2d, True, input, weight, bias, steps, *epilogue)


def _correlate(
    public: Callable[..., torch.Tensor],
    flip: bool,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    steps: Steps,
    activation: str | None,
    precision: str | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """`corr2d`, or with `flip` `convolve2d`; `public` is the one that was called."""
    if has_torch_function_variadic(input, weight, bias, residual):
        return handle_torch_function(
            public,
            (input, weight, bias, residual),
            input,
            weight,
            bias,
            *steps[:4],
            padding_mode=steps.padding_mode,
            activation=activation,
            precision=precision,
            residual=residual,
        )
    check_activation(activation)
    check_precision(precision)
    x, bank, bias, geometry = forward_operands(input, weight, bias, steps, flip)
    if residual is not None:
        residual = residual_operand(residual, input, weight, bank, geometry)
    chosen = precision_of(bank, precision)
    y = correlate(x, bank, bias, geometry, chosen, activation or "none", residual)
    if weight.dim() == 2 and shape_of(y)[:2] != shape_of(input)[:-2]:
        return y.reshape(*input.shape[:-2], geometry.P, geometry.Q)
    return y if input.dim() == 4 else y.squeeze(0)


@_overridable
def corr_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: PairLike = 1,
    padding: SidesLike = 0,
    output_padding: PairLike = 0,
    groups: int = 1,
    dilation: PairLike = 1,
    *,
    precision: Precision | None = None,
) -> torch.Tensor:
    """Transposed cross-correlation, the adjoint of `corr2d`: arguments as F.conv_transpose2d.

    With N K P Q the input's extents, as in the gradient that this is:

        y[n,c,h,w] = bias[c] + sum_{k,r,s} input[n,k,p,q] * weight[k,c,r,s]
        over the (p,r), (q,s) with h = p * stride_h - pad_top + r * dilation_h, w likewise

    Args:
        input: (N, K, P, Q) or (K, P, Q).
        weight: (K, C/groups, R, S), the dtype of the input.
        bias: (C,) or None.
        stride: int or (h, w).
        padding: int, (h, w) or ((top, bottom), (left, right)): how much of the result's border is
            left out.
        output_padding: int or (h, w): rows and columns added at the bottom and the right; smaller
            than stride or dilation.
        groups: channel groups.
        dilation: int or (h, w).
        precision: as for `corr2d`.

    Returns:
        (N, C, H, W) or (C, H, W), with
        H = (P - 1) * stride_h - pad_top - pad_bottom + dilation_h * (R - 1) + output_padding_h + 1.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`.

    Example:
        >>> corr_transpose2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).squeeze()
        tensor([[1., 2., 1.],
                [2., 4., 2.],
                [1., 2., 1.]])
    """
    if precision is None:
        y = by_pytorch(input, weight, bias, stride, padding, dilation, groups, None, output_padding)
        if y is not None:
            return y
    check_precision(precision)
    steps = Steps(stride, padding, dilation, groups, "zeros")
    dy, weight, bias, geometry = transposed_operands(input, weight, bias, steps, output_padding)
    y = input_gradient(dy, weight, geometry, precision_of(dy, precision), bias)
    return y if input.dim() == 4 else y.squeeze(0)


@_overridable
def corr2d_input_grad(
    input_size: Sequence[int],
    weight: torch.Tensor,
    grad_output: torch.Tensor,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    precision: Precision | None = None,
) -> torch.Tensor:
    """Gradient of `corr2d` with respect to its input; arguments as torch.nn.grad.conv2d_input.

        dx[n,c,h,w] = sum_{k,r,s} grad_output[n,k,p,q] * weight[k,c,r,s]

    Args:
        input_size: (N, C, H, W).
        weight: (K, C/groups, R, S) or (N, K, C/groups, R, S).
        grad_output: (N, K, P, Q), the dtype of the weight.
        stride, padding, dilation, groups, padding_mode, precision: as for `corr2d`.

    Returns:
        dx (N, C, H, W). Differentiable in weight and grad_output.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`.
    """
    check_tensors(weight=weight, grad_output=grad_output)
    check_precision(precision)
    steps = Steps(stride, padding, dilation, groups, padding_mode)
    x_shape, weight_shape = as_shape("input_size", input_size), tuple(shape_of(weight))
    geometry = gradient_geometry("input_size", x_shape, weight_shape, grad_output, steps)
    return input_gradient(grad_output, weight, geometry, precision_of(weight, precision))


@_overridable
def corr2d_weight_grad(
    input: torch.Tensor,
    weight_size: Sequence[int],
    grad_output: torch.Tensor,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    precision: Precision | None = None,
) -> torch.Tensor:
    """Gradient of `corr2d` with respect to its weight; arguments as torch.nn.grad.conv2d_weight.

        dw[k,c,r,s] = sum_{n,p,q} grad_output[n,k,p,q] * input[n,c,h,w]

    Args:
        input: (N, C, H, W); uint8 images are allowed.
        weight_size: (K, C/groups, R, S), or (N, K, C/groups, R, S) for a gradient per sample.
        grad_output: (N, K, P, Q).
        stride, padding, dilation, groups, padding_mode, precision: as for `corr2d`.

    Returns:
        dw of `weight_size`, in the dtype of grad_output and the memory format of input.
        Differentiable in input and grad_output.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`.
    """
    check_tensors(images=("input",), input=input, grad_output=grad_output)
    check_precision(precision)
    steps = Steps(stride, padding, dilation, groups, padding_mode)
    x_shape, weight_shape = tuple(shape_of(input)), as_shape("weight_size", weight_size)
    geometry = gradient_geometry("input", x_shape, weight_shape, grad_output, steps)
    return weight_gradient(input, grad_output, geometry, precision_of(grad_output, precision))


def explain(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: PairLike = 1,
    padding: PaddingLike = 0,
    dilation: PairLike = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    precision: Precision | None = None,
    device: str | None = None,
) -> Explanation:
    """Which kernel, tile, grid, bytes, FLOPs and bound `corr2d` and its gradients would use.

    Nothing is computed and no memory is allocated: tensors on the meta device will do.

    Args:
        input, weight, bias, stride, padding, dilation, groups, padding_mode, precision: as for
            `corr2d`.
        device: plan for a device by name ("a100", "h100", "h200", "b200", "mi300x") instead of for
            the one the tensors are on.

    Returns:
        An Explanation, which shows itself in lines; `.as_dict()` is for programs.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`.

    Example:
        >>> explain(torch.empty(6, 8), torch.empty(1, 2))
        x 1x1x6x8, weight 1x1x1x2, y 1x1x6x7, stride 1x1, padding ..., dilation 1x1, groups 1
        dtype float32, PyTorch's CPU convolution
        fprop: 168 FLOP, 368 B compulsory
        dgrad: 168 FLOP, 368 B compulsory
        wgrad: 168 FLOP, 368 B compulsory
        >>> image, kernel = torch.empty(512, 512, device="meta"), torch.empty(3, 3, device="meta")
        >>> explain(image, kernel, device="h200").passes["fprop"].plan.kernel
        'fprop_rows'
    """
    from ..ops.explain import device_named, explain  # and with it the planner

    target = None if device is None else device_named(device)
    check_precision(precision)
    steps = Steps(stride, padding, dilation, groups, padding_mode)
    x, bank, _, geometry = forward_operands(input, weight, bias, steps)
    chosen = precision_of(bank, precision, on_gpu=target is not None or bank.is_cuda)
    y = torch.empty(geometry.y_shape, dtype=bank.dtype, device="meta")
    return explain(geometry, x, bank, y, chosen, target)
