"""The three operators by PyTorch's CPU convolution, where the interpreter is not on.

PyTorch's convolution has neither asymmetric padding, nor padding modes, nor flipped windows, nor a
filter bank per sample. Here F.pad copies the padding, the window is flipped and samples become
groups. All steps are differentiable PyTorch operators, so autograd, torch.func and forward mode
work through them and a call costs what PyTorch's costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeAlias

import torch
import torch.nn.functional as F
from torch.autograd import profiler

from . import backend, one_channel
from .geometry import Geometry, Pair
from .launch.formats import format_like, suggests_channels_last

#: By the names in arguments.ACTIVATIONS.
ACTIVATION_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
}

_PAD_BACKWARD = {
    "reflect": torch.ops.aten.reflection_pad2d_backward,
    "replicate": torch.ops.aten.replication_pad2d_backward,
}
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_tracing = torch._C._is_tracing
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_P = ParamSpec("_P")
_Operator: TypeAlias = Callable[Concatenate[torch.Tensor, _P], torch.Tensor]


def suffices(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> bool:
    """Whether PyTorch's operators can compute a call of these operands; `image` may be uint8.

    Not if a compiler, tracer, profiler, dispatch mode or subclass must see tricorr's operators, or
    if PyTorch would accumulate in 16 bits.
    """
    if backend.CPU_DEVICE is not None or profiler._is_profiler_enabled:
        return False
    if _dispatch_modes() or _is_tracing():
        return False
    if type(image) not in _PLAIN or type(weight) not in _PLAIN:
        return False
    if not (image.is_cpu and weight.is_cpu) or weight.dtype not in _native_dtypes():
        return False
    if bias is not None and (type(bias) not in _PLAIN or not bias.is_cpu):
        return False
    return residual is None or (type(residual) in _PLAIN and residual.is_cpu)


@functools.cache
def _native_dtypes() -> frozenset[torch.dtype]:
    """The dtypes whose gradients PyTorch accumulates in float32 or better: not float16."""
    wide = frozenset({torch.float32, torch.float64})
    # Without AVX-512 or AMX, PyTorch's bfloat16 path accumulates over samples in bfloat16.
    return wide | {torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else wide


def _without_autocast(operator: _Operator[_P]) -> _Operator[_P]:
    """Runs `operator` without autocast, which would cast 16-bit tensors to float32 in F.pad."""

    @functools.wraps(operator)
    def plain(first: torch.Tensor, /, *rest: _P.args, **named: _P.kwargs) -> torch.Tensor:
        if not torch._C._is_any_autocast_enabled():
            return operator(first, *rest, **named)
        with torch.autocast(first.device.type, enabled=False):
            return operator(first, *rest, **named)

    return plain


@_without_autocast
def fprop(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    precision: str = "ieee",
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """y (N, K, P, Q); see operators.fprop. PyTorch's CPU convolution has no precisions."""
    act = ACTIVATION_FUNCTIONS[activation]
    if geometry.macs == 0:
        y = weight.new_zeros(geometry.y_shape)
        for term in (None if bias is None else bias.view(-1, 1, 1), residual):
            y = y if term is None else y + term
        return in_format(act(y), like=x)
    if geometry.flip:
        weight = weight.flip(-2, -1)
    if one_channel.takes(geometry, weight.dtype):
        sums = one_channel.fprop(x.to(weight.dtype), weight, geometry)
        for term in (None if bias is None else bias.view(-1, 1, 1), residual):
            sums = sums if term is None else sums.add_(term)
        return in_format(act(sums), like=x)
    image, padding = _symmetric(x.to(weight.dtype), geometry)
    # geometry.dilation: PyTorch 2.13 may crash where a single tap is dilated (channels_last).
    stride, groups = geometry.given_stride, geometry.groups
    if geometry.per_sample:
        image, weight = _samples_as_groups(image), weight.flatten(0, 1)
        groups *= geometry.N
        bias = None if bias is None else bias.repeat(geometry.N)
    elif crashes(image, weight, stride):
        image, stride, padding = _sampled(image, stride, padding), (1, 1), (0, 0)
    y = torch.conv2d(image, weight, bias, stride, padding, geometry.dilation, groups)
    if geometry.per_sample:  # not a view, so that the caller may write to it in place
        y = torch.ops.aten._unsafe_view(y, geometry.y_shape)
    return in_format(act(y if residual is None else y + residual), like=x)


@_without_autocast
def dgrad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """dx (N, C, H, W); see operators.dgrad."""
    if geometry.macs == 0:
        zeros = dy.new_zeros(geometry.x_shape)
        return in_format(zeros if bias is None else zeros + bias.view(-1, 1, 1), like=dy)
    padding, (top, bottom), (left, right) = _split_padding(geometry)
    padded = (geometry.N, geometry.C, geometry.H + top + bottom, geometry.W + left + right)
    # A bias is added before the rounding.
    wide_dy, weight = _summable(dy, bias is not None), _summable(weight, bias is not None)
    if geometry.flip:
        weight = weight.flip(-2, -1)
    if one_channel.takes(geometry, dy.dtype):
        sides = (padding[0], padding[0]), (padding[1], padding[1])
        plain = replace(geometry, H=padded[2], W=padded[3], padding=sides, padding_mode="zeros")
        dx = one_channel.dgrad(dy, weight, plain)
    else:
        dx = _gradients(None, wide_dy, weight, geometry, padding, padded)[0].reshape(padded)
    if geometry.padding_mode != "zeros":
        dx = _add_images(dx, geometry)
    elif top or bottom or left or right:
        dx = F.pad(dx, (-left, -right, -top, -bottom))
    if bias is not None:
        dx = dx + bias.view(-1, 1, 1)
    return in_format(dx.to(dy.dtype), like=dy)


@_without_autocast
def wgrad(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, precision: str = "ieee"
) -> torch.Tensor:
    """dw, shaped as the weight; see operators.wgrad."""
    if geometry.macs == 0:
        return in_format(dy.new_zeros(geometry.weight_shape), like=x)
    if one_channel.takes(geometry, dy.dtype):
        dw = one_channel.wgrad(x.to(dy.dtype), dy, geometry)
        return in_format(dw.flip(-2, -1) if geometry.flip else dw, like=x)
    wide_dy = _summable(dy)
    image, padding = _symmetric(x.to(wide_dy.dtype), geometry)
    _, dw = _gradients(image, wide_dy, None, geometry, padding, image.shape)
    dw = dw.reshape(geometry.weight_shape).to(dy.dtype)
    return in_format(dw.flip(-2, -1) if geometry.flip else dw, like=x)


def _gradients(
    x: torch.Tensor | None,
    dy: torch.Tensor,
    weight: torch.Tensor | None,
    geometry: Geometry,
    padding: Pair,
    x_shape: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, None) if x is None, (None, dw) if weight is None; samples become groups if needed."""
    # aten reads only the shape of the operand whose gradient it computes.
    stand_in = dy.new_empty(1)
    image = stand_in.expand(x_shape) if x is None else x
    filters = stand_in.expand(geometry.weight_shape) if weight is None else weight
    stride, groups = geometry.given_stride, geometry.groups
    if geometry.per_sample:
        image, dy = _samples_as_groups(image), _samples_as_groups(dy)
        filters, groups = filters.flatten(0, 1), groups * geometry.N
    elif weight is None and crashes(image, filters, stride):
        image, stride, padding = _sampled(image, stride, padding), (1, 1), (0, 0)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy,
        image,
        filters,
        None,
        stride,
        padding,
        geometry.dilation,
        False,
        (0, 0),
        groups,
        (x is None, weight is None, False),
    )
    return dx, dw


def in_format(result: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A result in the memory format of `like`; a bank per sample contiguous.

    PyTorch's convolution does this too, unless only the weight is channels_last. vmap has no
    formats.
    """
    if torch._C._are_functorch_transforms_active():
        return result
    return result.contiguous(memory_format=format_like(like, result.dim()))


def crashes(x: torch.Tensor, weight: torch.Tensor, stride: Any) -> bool:
    """Whether PyTorch 2.13's weight gradient may crash the process (seen on one thread).

    It may for strided 1x1 windows if channels are not multiples of 16 and image or weight is
    channels_last. The caller takes the pixels that the windows meet, see _sampled.
    """
    if weight.shape[-2:] != (1, 1) or x.dtype != torch.float32 or stride in (1, (1, 1)):
        return False
    if x.dim() != 4 or weight.dim() != 4:
        return False
    if x.shape[-3] % 16 == 0 and weight.shape[0] % 16 == 0:
        return False
    return suggests_channels_last(x) or suggests_channels_last(weight)


def _sampled(x: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
    """The pixels of padded x that 1x1 windows with a stride meet."""
    h, w = padding
    return F.pad(x, (w, w, h, h))[..., :: stride[0], :: stride[1]]


def _add_images(dx_padded: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The adjoint of F.pad(mode=...): adds each padded position to the pixel that it copies."""
    rows, columns = geometry.padding
    if geometry.padding_mode != "circular":
        adjoint = _PAD_BACKWARD[geometry.padding_mode]
        # aten asks for the image and reads only its shape.
        image = dx_padded.new_empty(1).expand(geometry.x_shape)
        return adjoint(dx_padded, image, (*columns, *rows))
    for axis, extent, (before, after) in ((-2, geometry.H, rows), (-1, geometry.W, columns)):
        place = torch.arange(-before, extent + after, device=dx_padded.device) % extent
        shape = list(dx_padded.shape)
        shape[axis] = extent
        dx_padded = dx_padded.new_zeros(shape).index_add(axis, place, dx_padded)
    return dx_padded


def _summable(tensor: torch.Tensor, added_to: bool = False) -> torch.Tensor:
    """A 16-bit tensor as float32 if PyTorch would sum in 16 bits, or if a bias is `added_to` it."""
    if tensor.itemsize > 2 or (tensor.dtype in _native_dtypes() and not added_to):
        return tensor
    return tensor.float()


def _samples_as_groups(tensor: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as (1, N * C, H, W)."""
    return tensor.flatten(0, 1).unsqueeze(0)


def _split_padding(geometry: Geometry) -> tuple[Pair, Pair, Pair]:
    """(h, w) that PyTorch pads, and (top, bottom), (left, right) that F.pad must copy."""
    rows, columns = geometry.padding
    if geometry.padding_mode != "zeros":
        return (0, 0), rows, columns
    if rows[0] == rows[1] >= 0 and columns[0] == columns[1] >= 0:
        return (rows[0], columns[0]), (0, 0), (0, 0)
    return (0, 0), rows, columns


def _symmetric(x: torch.Tensor, geometry: Geometry) -> tuple[torch.Tensor, Pair]:
    """x with the padding that must be copied, and the (h, w) padding that PyTorch does."""
    padding, rows, columns = _split_padding(geometry)
    if padding == (0, 0):
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x = F.pad(x, (*columns, *rows), mode=mode) if any(rows + columns) else x
    return x, padding
