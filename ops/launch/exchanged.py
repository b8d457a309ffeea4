"""Images as the kernel of a plan with an Exchange meets them, and the copies that make them so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..geometry import Geometry, Pair
from ..plan.exchange import Exchange
from ..plan.integers import cdiv
from .call import Call
from .copies import Copy, after_copies, copy_calls, in_boxes
from .layout import columns_together


def geometry_seen(op: str, geometry: Geometry, exchange: Exchange, image: torch.Tensor) -> Geometry:
    """The geometry that the kernel meets, given any of the images."""
    return exchange.geometry(op, geometry, 16 // image.itemsize)


def x_read(
    x: torch.Tensor, geometry: Geometry, seen: Geometry, exchange: Exchange
) -> tuple[torch.Tensor, Copy | None]:
    """(x as the kernel reads it; the copy that it is, if it is one)."""
    if exchange.sampled:
        x = x[..., :: geometry.stride[0], :: geometry.stride[1]]
    if exchange.reads:
        return _read(x, seen.W, exchange)
    return _dense_copy(x) if exchange.sampled else (x, None)


def y_read(
    dy: torch.Tensor, seen: Geometry, exchange: Exchange
) -> tuple[torch.Tensor, Copy | None]:
    """(dy, or a residual, as the kernel reads it; the copy that it is, if it is one)."""
    return _read(dy, seen.Q, exchange) if exchange.reads else (dy, None)


def y_workspace(y: torch.Tensor, exchange: Exchange) -> torch.Tensor:
    """Where the kernel stores y."""
    return _workspace(y, y.shape, exchange.format == "NHWC") if exchange.result else y


def x_workspace(dx: torch.Tensor, seen: Geometry, exchange: Exchange) -> torch.Tensor:
    """Where the kernel stores dx."""
    if not (exchange.result or exchange.sampled):
        return dx
    last = exchange.result and exchange.format == "NHWC"
    return _workspace(dx, seen.x_shape, last)


def around(
    call: Call,
    read: Sequence[Copy | None],
    workspace: torch.Tensor,
    result: torch.Tensor,
    step: Pair = (1, 1),
    bias: torch.Tensor | None = None,
) -> Call:
    """The launches that fill `result`: `call` fills its workspace from what `read` makes.

    Args:
        call: of the kernel.
        read: the copies before it.
        workspace: what it fills.
        result: of the operator; may be the workspace.
        step: rows and columns of the result from one pixel of the workspace to the next.
        bias: of the pixels between them; zero if there is none.
    """
    call = after_copies(call, *read)
    if workspace is result:
        return call
    has_steps = step != (1, 1)
    back = Copy(workspace[None], result, step=step, bias=bias if has_steps else None)
    (last,) = copy_calls(back)
    return replace(last, before=(call,), scratch=(*last.scratch, workspace))


def _read(
    image: torch.Tensor, columns: int, exchange: Exchange
) -> tuple[torch.Tensor, Copy | None]:
    """(the image, or a copy in the format of an exchange with rows of so many columns; the copy).

    Zeros are in columns of planes that the image does not have.
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
