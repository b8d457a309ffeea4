"""Images as the kernel of a plan with an Exchange meets them, and the copies that make them so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..geometry import Geometry, Pair
from ..plan.exchange.format_copies import ChannelsLast, Planes, Sampled
from ..plan.exchange.image_patches import Patches
from ..plan.exchange.way import RESULT, Exchange
from ..plan.exchange.windows import Merged, Overlapping, overlap_of
from ..plan.integers import cdiv
from ..plan.problem import Plan
from .call import Call
from .copies import Copy, after_copies, channels_innermost, copy_calls, in_boxes
from .layout import can_merge, columns_together, merged_columns, order_of
from .patch_copies import patches_call, patches_like

Way = TypeVar("Way", bound=Exchange)


class Exchanged(Generic[Way]):
    """The tensors of one call as its kernel meets them: copies in `way.forms`, others as they lie.

    Ways that exchange more replace the methods of the tensors that differ.

    Attributes:
        way: the exchange.
        op, geometry: of the call.
        piece: elements of 16 bytes.
        seen: the geometry that the kernel meets.
        copies, launches: that make what the methods returned.
    """

    def __init__(self, way: Way, op: str, geometry: Geometry, itemsize: int) -> None:
        self.way, self.op, self.geometry, self.piece = way, op, geometry, 16 // itemsize
        self.forms, self.seen = way.forms(op), way.geometry(op, geometry, self.piece)
        self.copies: list[Copy] = []
        self.launches: list[Call] = []

    def x(self, x: Tensor) -> Tensor:
        """x as the kernel reads it."""
        return self.kept(*in_boxes(x, "NHWC")) if "x" in self.forms else x

    def y(self, y: Tensor) -> Tensor:
        """dy, or a residual, as the kernel reads it."""
        return self.kept(*in_boxes(y, "NHWC")) if "y" in self.forms else y

    def weight(self, weight: Tensor) -> Tensor:
        """The weight as the kernel reads it."""
        return weight

    def weight_gradient(self, dw: Tensor) -> Tensor:
        """A view of dw as the kernel stores it."""
        return dw

    def bias(self, bias: Tensor) -> Tensor:
        """The bias of the channels of dx that the kernel stores."""
        return bias

    def workspace(self, result: Tensor) -> Tensor:
        """Where the kernel stores y, or dx."""
        form = self.forms.get(RESULT[self.op])
        shape = self.seen.x_shape if self.op == "dgrad" else result.shape
        return result if form is None else _memory_like(result, shape, form == "NHWC")

    def after(self, call: Call) -> Call:
        """`call`, with the launches that make the copies before all of its own."""
        call = after_copies(call, *self.copies)
        return replace(call, before=(*self.launches, *call.before))

    def stored(self, call: Call, workspace: Tensor, result: Tensor, bias: Tensor | None) -> Call:
        """`call`, which fills the workspace, with the launch that copies it to the result."""
        return call if workspace is result else _copied(call, workspace, result)

    def kept(self, image: Tensor, copy: Copy | None) -> Tensor:
        """The image, which this copy makes, if it is one."""
        self.copies += [] if copy is None else [copy]
        return image


class InPlanes(Exchanged[Planes]):
    """Images in planes whose rows begin at multiples of 16 bytes."""

    def x(self, x: Tensor) -> Tensor:
        return self.in_pieces(x, self.seen.W)

    def y(self, y: Tensor) -> Tensor:
        return self.in_pieces(y, self.seen.Q) if "y" in self.forms else y

    def in_pieces(self, image: Tensor, columns: int) -> Tensor:
        """The image, or a copy whose rows have these columns: zeros behind those of the image."""
        N, C, H, W = image.shape
        if columns == W and columns_together(image) == self.piece:
            return image
        memory = image.new_empty(N, C, H, cdiv(columns, self.piece) * self.piece)
        planes = memory[..., :columns]
        return self.kept(planes, Copy(image[None], planes, memory))


class OfSamples(Exchanged[Sampled]):
    """The pixels of x, or dx, that a 1x1 window with a stride meets."""

    @property
    def step(self) -> Pair:
        """Rows and columns from one of them to the next; all there are where there is one."""
        g, (down, across) = self.geometry, self.geometry.stride
        return down if g.P > 1 else g.H, across if g.Q > 1 else g.W

    def x(self, x: Tensor) -> Tensor:
        down, across = self.step
        sampled = x[..., ::down, ::across]
        if self.forms["x"] == "NHWC":
            return super().x(sampled)
        out = _memory_like(x, sampled.shape, last=False)
        return self.kept(out, Copy(sampled[None], out, out))

    def stored(self, call: Call, workspace: Tensor, result: Tensor, bias: Tensor | None) -> Call:
        """Pixels of dx that no window meets get the bias, or 0."""
        if self.op != "dgrad":
            return super().stored(call, workspace, result, bias)
        bias = bias if self.step != (1, 1) else None
        return _copied(call, workspace, result, step=self.step, bias=bias)


class OfWindows(Exchanged[Way]):
    """Windows whose elements are channels of the weight and of dx."""

    def in_channels_last(self, weight: Tensor) -> Tensor:
        """A copy of the weight."""
        copy = channels_innermost(weight[None])
        self.launches += copy_calls(copy)
        return copy.out

    def repeated(self, bias: Tensor, rows: int, order: str) -> Tensor:
        """The bias of each channel of dx for each row and column, in an order of Layout.order."""
        g, step = self.geometry, bias.stride(0)
        groups = 1 if order == "crs" else g.groups
        channels = g.C // groups
        shape, steps = (groups, 1, channels, rows, g.S), (channels * step, 0, step, 0, 0)
        if order == "crs":
            out = bias.new_empty((groups, channels, rows, g.S))
        else:
            out = bias.new_empty((groups, rows, g.S, channels)).permute(0, 3, 1, 2)
        self.launches += copy_calls(Copy(bias.as_strided(shape, steps), out, out))
        return out.as_strided((g.C * rows * g.S,), (1,))


class AsMerged(OfWindows[Merged]):
    """x, dx and the weight as views whose channels are columns of the window too."""

    def x(self, x: Tensor) -> Tensor:
        return merged_columns(x, self.geometry)

    def weight(self, weight: Tensor) -> Tensor:
        is_view = can_merge(weight, self.geometry)
        return self.weight_gradient(weight if is_view else self.in_channels_last(weight))

    def weight_gradient(self, dw: Tensor) -> Tensor:
        return merged_columns(dw, self.geometry)

    def bias(self, bias: Tensor) -> Tensor:
        return self.repeated(bias, 1, "rsc")

    def workspace(self, result: Tensor) -> Tensor:
        return merged_columns(result, self.geometry) if self.op == "dgrad" else result

    def stored(self, call: Call, workspace: Tensor, result: Tensor, bias: Tensor | None) -> Call:
        """The workspace is a view of the result."""
        return call


class AsPatches(OfWindows[Patches]):
    """x and dx as patches; y and dy in channels_last, or as they lie."""

    def x(self, x: Tensor) -> Tensor:
        patches = patches_like(x, self.geometry)
        self.launches.append(patches_call(x, patches, self.geometry, self.way.order))
        return patches

    def weight(self, weight: Tensor) -> Tensor:
        is_view = order_of(weight) == self.way.order
        return self.weight_gradient(weight if is_view else self.in_channels_last(weight))

    def weight_gradient(self, dw: Tensor) -> Tensor:
        assert order_of(dw) == self.way.order, dw.stride()
        return dw.as_strided((self.geometry.K, dw[0].numel(), 1, 1), (dw.stride(0), 1, 1, 1))

    def bias(self, bias: Tensor) -> Tensor:
        return self.repeated(bias, self.geometry.R, self.way.order)

    def workspace(self, result: Tensor) -> Tensor:
        if self.op == "dgrad":
            return patches_like(result, self.geometry, dense=True)
        return super().workspace(result)

    def stored(self, call: Call, workspace: Tensor, result: Tensor, bias: Tensor | None) -> Call:
        """Pixels of dx that no window meets get the bias, or 0."""
        if self.op != "dgrad":
            return super().stored(call, workspace, result, bias)
        g, order = self.geometry, self.way.order
        back = patches_call(result, workspace, g, order, back=True, bias=bias)
        return replace(back, before=(call,))


class AsOverlapping(Exchanged[Overlapping]):
    """x, or dy, and the weight with a channel for each column of a window, see overlap_of."""

    def x(self, image: Tensor) -> Tensor:
        """A copy whose pixels are rows of windows."""
        made, (N, _, H, _) = overlap_of(self.op, self.geometry, self.piece), image.shape
        out = _memory_like(image, (N, made.channels, H, made.columns))
        steps = (out.stride(0), 1, out.stride(2), made.step * made.channels)
        pixels = out.as_strided((N, made.channels * made.taps, H, made.windows), steps)
        return self.kept(pixels, Copy(image[None], out, out, first=made.first))

    def y(self, y: Tensor) -> Tensor:
        return self.x(y) if self.op == "dgrad" else y

    def weight(self, weight: Tensor) -> Tensor:
        """A copy with summed channels (s, c), zero where the image has none.

        Of dy these are (s, k), the last column of the window first.
        """
        made, turned = overlap_of(self.op, self.geometry, self.piece), self.op == "dgrad"
        source = weight.transpose(0, 1) if turned else weight
        results, _, R, _ = source.shape
        out = _memory_like(weight, (results, made.channels, R, made.taps))
        row = made.channels * made.taps
        seen = out.as_strided((results, row, R, 1), (R * row, 1, row, row))
        return self.kept(
            seen.transpose(0, 1) if turned else seen, Copy(source[None], out, out, turned=turned)
        )


#: Makes the tensors of a call with an Exchange.
WAYS: dict[type[Exchange], type[Exchanged[Any]]] = {
    ChannelsLast: Exchanged,
    Planes: InPlanes,
    Sampled: OfSamples,
    Merged: AsMerged,
    Patches: AsPatches,
    Overlapping: AsOverlapping,
}


def exchanged(plan: Plan, geometry: Geometry, itemsize: int) -> tuple[Exchanged[Any], Plan]:
    """(the tensors of a call whose plan has an Exchange; the plan of the kernel alone)."""
    way = plan.exchange
    assert way is not None
    return WAYS[type(way)](way, plan.op, geometry, itemsize), replace(plan, exchange=None)


def _copied(call: Call, workspace: Tensor, result: Tensor, **options: Any) -> Call:
    """`call`, which fills the workspace, with the launch that copies it to the result."""
    (last,) = copy_calls(Copy(workspace[None], result, **options))
    return replace(last, before=(call,), scratch=(*last.scratch, workspace))


def _memory_like(like: Tensor, shape: tuple[int, ...], last: bool = True) -> Tensor:
    """Memory for a copy, in channels_last or contiguous."""
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)
