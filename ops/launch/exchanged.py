"""Images as the kernel of a plan with an Exchange meets them, and the copies that make them so."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..geometry import Geometry, Pair
from ..plan.exchange import Exchange, overlap_of
from ..plan.integers import cdiv
from .call import Call
from .copies import Copy, after_copies, channels_innermost, copy_calls, in_boxes
from .layout import can_merge, columns_together, merged_columns, order_of
from .patch_copies import patches_call, patches_like


def geometry_seen(op: str, geometry: Geometry, exchange: Exchange, image: torch.Tensor) -> Geometry:
    """The geometry that the kernel meets, given any of the images."""
    return exchange.geometry(op, geometry, 16 // image.itemsize)


def x_read(
    x: torch.Tensor, geometry: Geometry, seen: Geometry, exchange: Exchange
) -> tuple[torch.Tensor, Copy | Call | None]:
    """(x as the kernel reads it; the copy that it is, or the launch that makes it, if any)."""
    if exchange.merged:
        return merged_columns(x, geometry), None
    if exchange.overlapped:
        return _overlapped(x, geometry, exchange)
    if exchange.patches:
        patches = patches_like(x, geometry)
        return patches, patches_call(x, patches, geometry, exchange.patches)
    if exchange.sampled:
        down, across = _sampling(geometry)
        x = x[..., ::down, ::across]
    if exchange.reads:
        return _read(x, seen.W, exchange)
    return _dense_copy(x) if exchange.sampled else (x, None)


def weight_read(
    weight: torch.Tensor, geometry: Geometry, exchange: Exchange
) -> tuple[torch.Tensor, Copy | Call | None]:
    """(the weight as the kernel reads it; the copy that it is, or the launch that makes it)."""
    if exchange.overlapped:
        return _with_taps(weight, geometry, exchange)
    if not (exchange.merged or exchange.patches) or _is_view(weight, geometry, exchange):
        return weight_seen(weight, geometry, exchange), None
    copy = channels_innermost(weight[None])
    (call,) = copy_calls(copy)
    return weight_seen(copy.out, geometry, exchange), call


def _overlapped(
    image: torch.Tensor, geometry: Geometry, exchange: Exchange
) -> tuple[torch.Tensor, Copy]:
    """(a copy whose pixels are rows of windows, see plan.exchange.overlap_of; that copy)."""
    made = overlap_of(exchange.overlapped, geometry, 16 // image.itemsize)
    N, _, H, _ = image.shape
    out = _workspace(image, (N, made.channels, H, made.columns), channels_last=True)
    steps = (out.stride(0), 1, out.stride(2), made.step * made.channels)
    pixels = out.as_strided((N, made.channels * made.taps, H, made.windows), steps)
    return pixels, Copy(image[None], out, out, first=made.first)


def _with_taps(
    weight: torch.Tensor, geometry: Geometry, exchange: Exchange
) -> tuple[torch.Tensor, Copy]:
    """(a copy of the weight with summed channels (s, c), zero where the image has none; that copy).

    Of dy these are (s, k), the last column of the window first.
    """
    made = overlap_of(exchange.overlapped, geometry, 16 // weight.itemsize)
    turned = exchange.overlapped == "dy"
    source = weight.transpose(0, 1) if turned else weight
    results, _, R, _ = source.shape
    out = _workspace(weight, (results, made.channels, R, made.taps), channels_last=True)
    row = made.channels * made.taps
    seen = out.as_strided((results, row, R, 1), (R * row, 1, row, row))
    copy = Copy(source[None], out, out, turned=turned)
    return (seen.transpose(0, 1) if turned else seen), copy


def weight_seen(weight: torch.Tensor, geometry: Geometry, exchange: Exchange) -> torch.Tensor:
    """The weight, or its gradient, as the kernel meets it: a view."""
    if not (exchange.merged or exchange.patches):
        return weight
    if exchange.merged:
        return merged_columns(weight, geometry)
    assert order_of(weight) == exchange.patches, weight.stride()
    return weight.as_strided((geometry.K, weight[0].numel(), 1, 1), (weight.stride(0), 1, 1, 1))


def _is_view(weight: torch.Tensor, geometry: Geometry, exchange: Exchange) -> bool:
    if exchange.merged:
        return can_merge(weight, geometry)
    return order_of(weight) == exchange.patches


def bias_read(
    bias: torch.Tensor | None, geometry: Geometry, exchange: Exchange
) -> tuple[torch.Tensor | None, Call | None]:
    """(the bias of the channels of dx that the kernel stores; the launch that repeats it)."""
    if bias is None or not (exchange.merged or exchange.patches):
        return bias, None
    g = geometry
    rows = g.R if exchange.patches else 1
    groups = 1 if exchange.patches == "crs" else g.groups
    channels, step = g.C // groups, bias.stride(0)
    repeated = bias.as_strided((groups, 1, channels, rows, g.S), (channels * step, 0, step, 0, 0))
    if exchange.patches == "crs":
        out = bias.new_empty((groups, channels, rows, g.S))
    else:
        out = bias.new_empty((groups, rows, g.S, channels)).permute(0, 3, 1, 2)
    (call,) = copy_calls(Copy(repeated, out, out))
    return out.as_strided((g.C * rows * g.S,), (1,)), call


def y_read(
    dy: torch.Tensor, geometry: Geometry, seen: Geometry, exchange: Exchange
) -> tuple[torch.Tensor, Copy | None]:
    """(dy, or a residual, as the kernel reads it; the copy that it is, if it is one)."""
    if exchange.overlapped == "dy":
        return _overlapped(dy, geometry, exchange)
    return _read(dy, seen.Q, exchange) if exchange.reads else (dy, None)


def y_workspace(y: torch.Tensor, exchange: Exchange) -> torch.Tensor:
    """Where the kernel stores y."""
    return _workspace(y, y.shape, exchange.format == "NHWC") if exchange.result else y


def x_workspace(
    dx: torch.Tensor, geometry: Geometry, seen: Geometry, exchange: Exchange
) -> torch.Tensor:
    """Where the kernel stores dx."""
    if exchange.merged:
        return merged_columns(dx, geometry)
    if exchange.patches:
        return patches_like(dx, geometry, dense=True)
    if not (exchange.result or exchange.sampled):
        return dx
    last = exchange.result and exchange.format == "NHWC"
    return _workspace(dx, seen.x_shape, last)


def after(call: Call, *made: Copy | Call | None) -> Call:
    """`call`, with these launches, and that of these copies, before all of its own."""
    call = after_copies(call, *(one for one in made if isinstance(one, Copy)))
    first = (one for one in made if isinstance(one, Call))
    return replace(call, before=(*first, *call.before))


def y_copied(call: Call, workspace: torch.Tensor, y: torch.Tensor) -> Call:
    """`call`, which fills the workspace, with the launch that copies it to y, if it is not y."""
    return call if workspace is y else _copied(call, Copy(workspace[None], y), workspace)


def x_copied(
    call: Call,
    workspace: torch.Tensor,
    dx: torch.Tensor,
    geometry: Geometry,
    exchange: Exchange,
    bias: torch.Tensor | None,
) -> Call:
    """The same of dx; pixels of dx that no window meets get the bias, or 0."""
    if workspace is dx or exchange.merged:
        return call
    if exchange.patches:
        last = patches_call(dx, workspace, geometry, exchange.patches, back=True, bias=bias)
        return replace(last, before=(call,))
    step = _sampling(geometry) if exchange.sampled else (1, 1)
    bias = bias if step != (1, 1) else None
    return _copied(call, Copy(workspace[None], dx, step=step, bias=bias), workspace)


def _sampling(geometry: Geometry) -> Pair:
    """Rows and columns from one sampled pixel to the next; all there are where one is sampled."""
    g, (down, across) = geometry, geometry.stride
    return down if g.P > 1 else g.H, across if g.Q > 1 else g.W


def _copied(call: Call, copy: Copy, workspace: torch.Tensor) -> Call:
    (last,) = copy_calls(copy)
    return replace(last, before=(call,), scratch=(*last.scratch, workspace))


def _read(
    image: torch.Tensor, columns: int, exchange: Exchange
) -> tuple[torch.Tensor, Copy | None]:
    """(the image, or a copy in the format of the exchange; that copy).

    Planes get rows of `columns` columns: zeros behind those of the image.
    """
    if exchange.format == "NHWC":
        return in_boxes(image, "NHWC")
    N, C, H, W = image.shape
    piece = 16 // image.itemsize
    if columns == W and columns_together(image) == piece:
        return image, None
    memory = image.new_empty(N, C, H, cdiv(columns, piece) * piece)
    planes = memory[..., :columns]
    return planes, Copy(image[None], planes, memory)


def _workspace(like: torch.Tensor, shape: tuple[int, ...], channels_last: bool) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _dense_copy(image: torch.Tensor) -> tuple[torch.Tensor, Copy]:
    out = _workspace(image, image.shape, channels_last=False)
    return out, Copy(image[None], out, out)
