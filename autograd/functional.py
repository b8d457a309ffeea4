"""The public functions: arguments as PyTorch's, one validated Geometry, one operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .. import ops
from ..ops import (
    ArgumentError,
    ArgumentTypeError,
    Geometry,
    as_integer,
    as_padding,
    as_pair,
    as_shape,
    cpu,
    one_channel,
    shown,
)
from ..ops.arguments import (
    PADDING_MODES,
    Activation,
    PaddingLike,
    PaddingMode,
    PairLike,
    Precision,
    SidesLike,
    are_alike,
    check_activation,
    check_precision,
    check_tensors,
    shape_of,
)
from .function import correlate, input_gradient, weight_gradient

if TYPE_CHECKING:
    from ..ops.explain import Explanation

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _overridable(function: _Function) -> _Function:
    """Lets operands whose class has a __torch_function__ take the call, as PyTorch's own do."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if has_torch_function_variadic(*args, *kwargs.values()):
            operands = (*args, *kwargs.values())
            return handle_torch_function(checked, operands, *args, **kwargs)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


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
    if has_torch_function_variadic(input, weight, bias, residual):
        return handle_torch_function(
            corr2d,
            (input, weight, bias, residual),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            padding_mode=padding_mode,
            activation=activation,
            precision=precision,
            residual=residual,
        )
    if activation is None and precision is None and residual is None:
        y = _by_pytorch(input, weight, bias, stride, padding, (dilation, groups), padding_mode)
        if y is not None:
            return y
    return _apply(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        activation,
        precision,
        residual,
        False,
    )


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
    if has_torch_function_variadic(input, weight, bias, residual):
        return handle_torch_function(
            convolve2d,
            (input, weight, bias, residual),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            padding_mode=padding_mode,
            activation=activation,
            precision=precision,
            residual=residual,
        )
    return _apply(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        activation,
        precision,
        residual,
        True,
    )


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
        steps = (output_padding, groups, dilation)
        y = _by_pytorch(input, weight, bias, stride, padding, steps, None)
        if y is not None:
            return y
    input, weight, bias = _autocast(input, weight, bias)
    check_tensors(input=input, weight=weight, bias=bias)
    check_precision(precision)
    if weight.dim() != 4 or input.dim() not in (3, 4):
        raise ArgumentError(
            "a transposed correlation takes input (N, K, P, Q) or (K, P, Q) and weight "
            f"(K, C/groups, R, S), got {_shape(input)} and {_shape(weight)}"
        )
    dy = input if input.dim() == 4 else input.unsqueeze(0)
    K, group_C, R, S = weight.shape
    groups = as_integer("groups", groups)
    step, spread = as_pair("stride", stride), as_pair("dilation", dilation)
    extra = as_pair("output_padding", output_padding)
    if isinstance(padding, str):
        raise ArgumentTypeError(
            f"padding of a transposed correlation must be numbers, got {shown(padding)}"
        )
    border = as_padding(padding)
    if dy.shape[1] != K:
        raise ArgumentError(
            f"weight of shape {_shape(weight)} expects an input with {K} channels, got "
            f"{dy.shape[1]} (input of shape {_shape(input)})"
        )
    for name, pair in (("stride", step), ("dilation", spread)):
        if min(pair) < 1:
            raise ArgumentError(f"{name} must be positive, got {pair}")
    if min(extra) < 0 or any(e >= max(s, d) for e, s, d in zip(extra, step, spread, strict=True)):
        raise ArgumentError(
            f"output_padding must be smaller than stride or dilation and not negative, got {extra} "
            f"with stride {step} and dilation {spread}"
        )
    if min(dy.shape[-2:]) < 1 or min(R, S) < 1:
        raise ArgumentError(
            f"input and window must not be empty, got {_shape(input)} and {_shape(weight)}"
        )
    H, W = (
        (out - 1) * s - sum(pad) + d * (window - 1) + e + 1
        for out, s, pad, d, window, e in zip(
            dy.shape[-2:], step, border, spread, (R, S), extra, strict=True
        )
    )
    if min(H, W) < 1:
        raise ArgumentError(f"padding {border} leaves nothing of the output: it would be {H} x {W}")
    # Rows added at the bottom are rows that the padding there does not cut off.
    (top, bottom), (left, right) = border
    geometry = ops.geometry_of(
        (dy.shape[0], group_C * groups, H, W),
        tuple(weight.shape),
        step,
        ((top, bottom - extra[0]), (left, right - extra[1])),
        spread,
        groups,
    )
    _check_bias(bias, geometry.C, weight)
    y = input_gradient(dy, weight, geometry, _precision(dy, precision), bias)
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
    geometry = _gradient_geometry(
        "input_size",
        as_shape("input_size", input_size),
        tuple(weight.shape),
        grad_output,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
    )
    return input_gradient(grad_output, weight, geometry, _precision(weight, precision))


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
        dw of `weight_size`, in the dtype of grad_output. Differentiable in input and grad_output.

    Raises:
        ArgumentError, ArgumentTypeError: as for `corr2d`.
    """
    check_tensors(images=("input",), input=input, grad_output=grad_output)
    check_precision(precision)
    geometry = _gradient_geometry(
        "input",
        tuple(input.shape),
        as_shape("weight_size", weight_size),
        grad_output,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
    )
    return weight_gradient(input, grad_output, geometry, _precision(grad_output, precision))


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
    x, bank, _, geometry = _prepare(
        input, weight, bias, stride, padding, dilation, groups, padding_mode, precision, False
    )
    chosen = _precision(bank, precision, on_gpu=target is not None or bank.is_cuda)
    y = torch.empty(geometry.y_shape, dtype=bank.dtype, device="meta")
    return explain(geometry, x, bank, y, chosen, target)


def _by_pytorch(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    steps: tuple[Any, ...],
    padding_mode: str | None,
) -> torch.Tensor | None:
    """PyTorch's own function of these arguments, if it does all that ours would.

    It checks them, and faster. Where it refuses, and wherever ours would differ, None is returned:
    our own checks say why.

    Args:
        input, weight, bias, stride, padding: as for `corr2d`.
        steps: the other arguments of torch.conv2d, or of torch.conv_transpose2d.
        padding_mode: as for `corr2d`; None for a transposed correlation.
    """
    if torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled():
        return None
    if not cpu.suffices(input, weight, bias) or input.dtype is not weight.dtype:
        return None
    if stride != 1 and cpu.crashes(input, weight, stride):
        return None
    dims = input.dim(), weight.dim()
    pixels = input.numel()
    large = pixels >= one_channel.MIN_PIXELS or pixels * weight.numel() >= one_channel.MIN_WORK
    if large and (dims[1] == 2 or (dims[0] > 2 and input.shape[-3] == 1)):
        return None  # there may be a faster way
    try:
        if type(padding) is not int:
            h, w = padding  # a string's letters are no numbers either
            if not (type(h) is type(w) is int):
                return None
        if padding_mode is None:
            y = torch.conv_transpose2d(input, weight, bias, stride, padding, *steps)
        else:
            if padding_mode != "zeros":
                h, w = (padding, padding) if type(padding) is int else padding
                if padding_mode not in PADDING_MODES or min(h, w) < 0 or dims[0] < 3:
                    return None
                input, padding = F.pad(input, (w, w, h, h), padding_mode), 0
            if dims == (2, 2):
                planes = input.unsqueeze(0), weight.view(1, 1, *weight.shape)
                return torch.conv2d(*planes, bias, stride, padding, *steps).squeeze(0)
            if dims[1] != 4:
                return None
            y = torch.conv2d(input, weight, bias, stride, padding, *steps)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    # Where only the weight is channels_last, PyTorch's result is too.
    same = y.is_contiguous() == input.is_contiguous() or dims[0] != 4
    return y if same else cpu.in_format(y, like=input)


def _apply(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: str,
    activation: str | None,
    precision: str | None,
    residual: torch.Tensor | None,
    flip: bool,
) -> torch.Tensor:
    x, bank, bias, geometry = _prepare(
        input, weight, bias, stride, padding, dilation, groups, padding_mode, precision, flip
    )
    if activation is None:
        activation = "none"
    else:
        check_activation(activation)
    if residual is not None:
        residual = _residual(residual, input, weight, bank, geometry)
    y = correlate(x, bank, bias, geometry, _precision(bank, precision), activation, residual)
    if weight.dim() == 2 and shape_of(y)[:2] != shape_of(input)[:-2]:
        return y.reshape(*input.shape[:-2], geometry.P, geometry.Q)
    return y if input.dim() == 4 else y.squeeze(0)


def _prepare(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: str,
    precision: str | None,
    flip: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Geometry]:
    """Validated: x (N, C, H, W), a weight of four or five dimensions, bias (K,), their geometry."""
    if torch._C._is_any_autocast_enabled():
        input, weight, bias = _autocast(input, weight, bias)
    if not (are_alike(input, weight) if bias is None else are_alike(input, weight, bias)):
        check_tensors(images=("input",), input=input, weight=weight, bias=bias)
    if precision is not None:
        check_precision(precision)
    x, bank, groups = _four_dimensional(input, weight, as_integer("groups", groups))
    x_shape, bank_shape = shape_of(x), shape_of(bank)
    step, spread = as_pair("stride", stride), as_pair("dilation", dilation)
    border = as_padding(padding, bank_shape[-2:], step, spread)
    geometry = ops.geometry_of(
        x_shape,
        bank_shape,
        step,
        border,
        spread,
        groups,
        flip,
        padding_mode,
    )
    if bias is not None and weight.dim() == 2:
        if bias.numel() != 1:
            raise ArgumentError(
                f"bias must have one element for a weight of shape {_shape(weight)}, "
                f"got shape {_shape(bias)}"
            )
        bias = bias.reshape(1).expand(geometry.K)
    _check_bias(bias, geometry.K, weight)
    return x, bank, bias, geometry


def _four_dimensional(
    input: torch.Tensor, weight: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """x (N, C, H, W), a weight of four or five dimensions, groups: the forms of the table."""
    if weight.dim() == input.dim() == 4:
        return input, weight, groups
    if weight.dim() == 2 and input.dim() >= 2:
        if groups != 1:
            raise ArgumentError(
                f"groups must be 1 for one kernel on every plane, got {groups} "
                f"(weight of shape {_shape(weight)})"
            )
        if input.dim() == 4 and not input.is_contiguous():
            # Planes that are not stacked evenly stay channels: the same kernel for each of them.
            C = input.shape[1]
            return input, weight.expand(C, 1, *weight.shape), C
        planes = input.reshape(-1, 1, *input.shape[-2:]) if input.numel() else _no_planes(input)
        return planes, weight[None, None], 1
    if weight.dim() == 4 and input.dim() == 3:
        return input.unsqueeze(0), weight, groups
    if weight.dim() == 5 and input.dim() == 4:
        return input, weight, groups
    raise ArgumentError(
        f"input of shape {_shape(input)} does not fit weight of shape {_shape(weight)}: expected "
        "input (..., H, W) with weight (R, S), (N, C, H, W) or (C, H, W) with (K, C/groups, R, S), "
        "or (N, C, H, W) with (N, K, C/groups, R, S)"
    )


def _no_planes(input: torch.Tensor) -> torch.Tensor:
    """(planes, 1, H, W) of an input without elements, where reshape cannot tell one size."""
    planes = 1
    for size in input.shape[:-2]:
        planes *= size
    return input.reshape(planes, 1, *input.shape[-2:])


def _gradient_geometry(
    name: str,
    x_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    grad_output: torch.Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: str,
) -> Geometry:
    if len(x_size) != 4 or len(weight_size) not in (4, 5):
        raise ArgumentError(
            f"{name} must have four sizes (N, C, H, W) and the weight four or five, got "
            f"{x_size} and {weight_size}"
        )
    step, spread = as_pair("stride", stride), as_pair("dilation", dilation)
    window = (weight_size[-2], weight_size[-1])
    geometry = ops.geometry_of(
        (x_size[0], x_size[1], x_size[2], x_size[3]),
        weight_size,
        step,
        as_padding(padding, window, step, spread),
        spread,
        as_integer("groups", groups),
        padding_mode=padding_mode,
    )
    if tuple(grad_output.shape) != geometry.y_shape:
        raise ArgumentError(
            f"grad_output must have the output's shape {geometry.y_shape}, "
            f"got {_shape(grad_output)}"
        )
    return geometry


def _check_bias(bias: torch.Tensor | None, filters: int, weight: torch.Tensor) -> None:
    if bias is not None and shape_of(bias) != (filters,):
        raise ArgumentError(
            f"bias must have shape ({filters},) for a weight of shape {_shape(weight)}, "
            f"got {_shape(bias)}"
        )


def _residual(
    residual: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bank: torch.Tensor,
    geometry: Geometry,
) -> torch.Tensor:
    """Validated: (N, K, P, Q), of a residual that has the output's shape and dtype."""
    (residual,) = _autocast(residual)
    if not are_alike(bank, residual):
        check_tensors(weight=bank, residual=residual)
    _, *rest = geometry.y_shape
    shape = (*input.shape[:-3], *rest) if weight.dim() != 2 else None
    shape = shape or (*input.shape[:-2], geometry.P, geometry.Q)
    if residual.shape != shape:
        raise ArgumentError(
            f"residual must have the output's shape {shape}, got {_shape(residual)}"
        )
    return residual.reshape(geometry.y_shape)


def _autocast(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors as autocast would hand them to conv2d: in its low precision, where it is on."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    return tuple(_lowered(t) if isinstance(t, torch.Tensor) else t for t in tensors)


def _lowered(tensor: torch.Tensor) -> torch.Tensor:
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensor
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def _precision(tensor: torch.Tensor, precision: str | None, on_gpu: bool | None = None) -> str:
    """`precision`, or PyTorch's own setting for convolutions where it has one: on GPUs."""
    if tensor.dtype != torch.float32:
        return "ieee"
    if precision is not None:
        return precision
    on_gpu = tensor.is_cuda if on_gpu is None else on_gpu
    return "tf32" if on_gpu and _allows_tf32() else "ieee"


def _allows_tf32() -> bool:
    """PyTorch's setting for convolutions; a compiled function keeps what it was compiled with."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


# What torch.compiler.assume_constant_result sets, which would import the compiler and Triton.
_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))
