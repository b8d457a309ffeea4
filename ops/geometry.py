"""The shape of one cross-correlation: every extent, step and count is computed here only.

    y[n,k,p,q] = sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s]
    h = p * stride_h - pad_top + r * dilation_h        w likewise        (*)

The letters are those of CUTLASS and cuDNN: input N C H W, weight K C R S, output N K P Q.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from .arguments import Pair as Pair
from .arguments import PairLike as PairLike
from .arguments import check_padding_mode, check_sides
from .errors import ArgumentError, shown

#: Sizes and offsets are 64-bit integers everywhere below Python.
INT64_MAX = 2**63 - 1

T = TypeVar("T")


class cached(Generic[T]):  # noqa: N801 - used as `property` is
    """A property that is computed once: functools.cached_property has a lock, Dynamo traces none.

    While Dynamo traces, sizes may be symbols: nothing is kept then.
    """

    def __init__(self, function: Callable[[Any], T]):
        self.function, self.__doc__ = function, function.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:  # of the class, for documentation
            return self  # type: ignore[return-value]  # readers of an instance get a T
        value = self.function(instance)
        if not torch.compiler.is_compiling():
            instance.__dict__[self.function.__name__] = value
        return value


@dataclass(frozen=True)
class Geometry:
    """One cross-correlation, without its tensors. Build it with `geometry_of`, which validates.

    Attributes:
        N, C, H, W: batch, channels, height and width of the input.
        K, R, S: filters, height and width of the window.
        given_stride: (h, w) step between windows, in input elements, that was asked for.
            `stride` is the one to compute with.
        padding: ((top, bottom), (left, right)) around the input, in elements. Negative padding
            crops; transposed convolutions express output_padding by it.
        given_dilation: (h, w) step between taps of a window that was asked for; see `dilation`.
        groups: channel groups; filter k sees the C/groups channels of group k // (K/groups).
        flip: True for strict convolution, whose window is turned by 180 degrees.
        per_sample: True when sample n has a filter bank of its own, weight (N, K, C/groups, R, S).
        padding_mode: values in the padding: "zeros", "reflect" (the image mirrored at its outermost
            pixels), "replicate" (those pixels) or "circular" (the image's other side). Always
            "zeros" where there is no padding.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    given_stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    given_dilation: Pair = (1, 1)
    groups: int = 1
    flip: bool = False
    per_sample: bool = False
    padding_mode: str = "zeros"

    @cached
    def P(self) -> int:
        """Height of the output."""
        stride, dilation = self.given_stride[0], self.given_dilation[0]
        return _output_extent(self.H, self.R, stride, self.padding[0], dilation)

    @cached
    def Q(self) -> int:
        """Width of the output."""
        stride, dilation = self.given_stride[1], self.given_dilation[1]
        return _output_extent(self.W, self.S, stride, self.padding[1], dilation)

    @cached
    def stride(self) -> Pair:
        """given_stride, but 1 along an axis with one output, where it has no effect.

        Huge values must not get into the kernels' arithmetic.
        """
        down, across = self.given_stride
        return down if self.P > 1 else 1, across if self.Q > 1 else 1

    @cached
    def dilation(self) -> Pair:
        """given_dilation, but 1 along an axis with one tap, where it has no effect."""
        down, across = self.given_dilation
        return down if self.R > 1 else 1, across if self.S > 1 else 1

    @cached
    def group_C(self) -> int:
        """Input channels of one group."""
        return self.C // self.groups

    @cached
    def group_K(self) -> int:
        """Filters of one group."""
        return self.K // self.groups

    @property
    def x_shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (self.N, self.C, self.H, self.W)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(K, C/groups, R, S), or with N in front for a bank per sample."""
        bank = (self.K, self.group_C, self.R, self.S)
        return (self.N, *bank) if self.per_sample else bank

    @property
    def y_shape(self) -> tuple[int, ...]:
        """(N, K, P, Q)."""
        return (self.N, self.K, self.P, self.Q)

    @cached
    def x_numel(self) -> int:
        """Elements of the input."""
        return self.N * self.C * self.H * self.W

    @cached
    def weight_numel(self) -> int:
        """Elements of the weight."""
        banks = self.N if self.per_sample else 1
        return banks * self.K * self.group_C * self.R * self.S

    @cached
    def y_numel(self) -> int:
        """Elements of the output."""
        return self.N * self.K * self.P * self.Q

    @cached
    def macs(self) -> int:
        """Multiply-accumulates of any of the three operators, taps in the padding included."""
        return self.y_numel * self.group_C * self.R * self.S

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def phases(self) -> Pair:
        """Number of phases (h % stride, w % stride) of input pixels.

        All pixels of one phase are reached by outputs through the same taps.
        """
        return min(self.stride[0], self.H), min(self.stride[1], self.W)

    @property
    def phase_shape(self) -> tuple[int, int, int]:
        """(N, rows, columns) of the largest phase of the input."""
        return self.N, -(-self.H // self.stride[0]), -(-self.W // self.stride[1])

    @property
    def is_point(self) -> bool:
        """Whether each output depends on the one input pixel at the same place."""
        window = (self.R, self.S, self.given_stride, self.padding)
        return window == (1, 1, (1, 1), ((0, 0), (0, 0)))

    def is_cut(self, axis: int) -> bool:
        """Whether windows lie side by side along axis 0, rows, or 1, columns: no two share any.

        Behind the last one there may be a rest of the image, which no window meets.
        """
        extent, outputs = ((self.R, self.P), (self.S, self.Q))[axis]
        apart = self.stride[axis] if outputs > 1 else extent
        return apart == extent and self.padding[axis] == (0, 0) and self.dilation[axis] == 1

    @property
    def merges_columns(self) -> bool:
        """Whether the columns of a window can be seen as channels, see merged_columns."""
        one_bank = self.groups == 1 and not self.per_sample
        return self.S > 1 and one_bank and not self.flip and self.is_cut(1)

    @property
    def is_patches(self) -> bool:
        """Whether it is a product of patches of the image, as large as the window, with filters."""
        window = self.R * self.S > 1 and not self.flip and not self.per_sample
        return window and self.is_cut(0) and self.is_cut(1)

    def of_patches(self) -> Geometry:
        """The same with a channel for each (c, r, s) of a patch, and a 1x1 window.

        Only if is_patches.
        """
        channels = self.C * self.R * self.S
        return replace(self, C=channels, H=self.P, W=self.Q, R=1, S=1, given_stride=(1, 1))

    def merged_columns(self) -> Geometry:
        """The same with channels (s, c) and a window of one column; only if merges_columns.

        Of x in channels_last and of a weight in that format it is a view.
        """
        stride = self.given_stride[0], 1
        return replace(self, C=self.S * self.C, W=self.Q, S=1, given_stride=stride)

    def as_rows(self) -> Geometry:
        """The same correlation with each plane as one row; only for a 1x1 window."""
        return replace(self, H=1, W=self.H * self.W)

    def without_padding_mode(self) -> Geometry:
        """The same with zeros in the padding."""
        return replace(self, padding_mode="zeros") if self.padding_mode != "zeros" else self

    @property
    def hole(self) -> tuple[Pair, Pair]:
        """((first, last + 1) rows, the same for columns) of pixels that no padding copies.

        The pixels around this rectangle are the frame: those whose input gradient padding_mode
        changes. Both pairs are (0, extent) for zero padding.
        """
        rows = _unshown(self.H, self.padding[0], self.padding_mode)
        columns = _unshown(self.W, self.padding[1], self.padding_mode)
        return rows, columns

    @property
    def frame_pixels(self) -> int:
        """Pixels of one plane of the frame, see `hole`."""
        (top, bottom), (left, right) = self.hole
        return self.H * self.W - (bottom - top) * (right - left)

    def adjoint(self) -> Geometry:
        """The correlation of dy, with stride - 1 zeros between its pixels, that is the gradient.

            dx[h] = sum_r dy[(h + pad - r * dilation) / stride] * weight[r]

        x and y, and in each group channels and filters, change places; the window is flipped. Its
        weight is this one's with the first two axes of each group swapped. There is no stride.
        """
        axes = []
        for axis, (extent, outputs, window) in enumerate(
            ((self.H, self.P, self.R), (self.W, self.Q, self.S))
        ):
            before, spread = self.padding[axis][0], (outputs - 1) * self.stride[axis] + 1
            over = self.dilation[axis] * (window - 1)
            axes.append((spread, (over - before, extent + before - spread)))
        (H, rows), (W, columns) = axes
        return replace(
            self, C=self.K, H=H, W=W, K=self.C, padding=(rows, columns), given_stride=(1, 1),
            flip=not self.flip,
        )  # fmt: skip

    def first_taps(self, phase: Pair) -> Pair:
        """The first (r, s) that reaches pixels of a phase (h % stride, w % stride).

        Those after it are a stride apart. There must be no dilation, and as many taps as a stride.
        """
        first_r, first_s = (
            (at + self.padding[axis][0]) % self.stride[axis] for axis, at in enumerate(phase)
        )
        return first_r, first_s

    def phase_gradient(self, phase: Pair) -> Geometry:
        """The correlation with stride 1 whose input gradient is this one's at pixels of a phase.

            h = phase + j * stride: dx[h] = sum_i dy[j + pad' - i] * weight[first + i * stride]
            pad' = (phase + pad - first) / stride

        Its input is every stride-th pixel, its window every stride-th tap from first_taps on.
        """
        axes = []
        for axis, (extent, outputs, window) in enumerate(
            ((self.H, self.P, self.R), (self.W, self.Q, self.S))
        ):
            stride, first = self.stride[axis], self.first_taps(phase)[axis]
            pixels, taps = -((phase[axis] - extent) // stride), -((first - window) // stride)
            before = (phase[axis] + self.padding[axis][0] - first) // stride
            axes.append((pixels, taps, (before, outputs + taps - 1 - pixels - before)))
        (H, R, rows), (W, S, columns) = axes
        return replace(self, H=H, W=W, R=R, S=S, given_stride=(1, 1), padding=(rows, columns))

    def compulsory_bytes(self, x_bytes: int, weight_bytes: int, y_bytes: int) -> int:
        """Bytes that any of the three operators must move: each tensor once.

        Args:
            x_bytes: bytes of one element of x (or of its gradient).
            weight_bytes: bytes of one element of the weight (or of its gradient).
            y_bytes: bytes of one element of y (or of its gradient).
        """
        return self.x_numel * x_bytes + self.weight_numel * weight_bytes + self.y_numel * y_bytes

    def __str__(self) -> str:
        (top, bottom), (left, right) = self.padding
        parts = [
            f"x {'x'.join(map(str, self.x_shape))}",
            f"weight {'x'.join(map(str, self.weight_shape))}",
            f"y {'x'.join(map(str, self.y_shape))}",
            f"stride {self.given_stride[0]}x{self.given_stride[1]}",
            f"padding top {top} bottom {bottom} left {left} right {right}",
            f"dilation {self.given_dilation[0]}x{self.given_dilation[1]}",
            f"groups {self.groups}",
        ]
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode {self.padding_mode}")
        if self.flip:
            parts.append("flipped window")
        return ", ".join(parts)


def geometry_of(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Pair = (1, 1),
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
    flip: bool = False,
    padding_mode: str = "zeros",
) -> Geometry:
    """The validated geometry of x (N, C, H, W) with a weight of four or five dimensions.

    Args:
        x_shape: (N, C, H, W).
        weight_shape: (K, C/groups, R, S), or (N, K, C/groups, R, S) for a bank per sample.
        stride: (h, w), positive.
        padding: ((top, bottom), (left, right)); negative padding crops the input.
        dilation: (h, w), positive.
        groups: positive, divides C and K.
        flip: strict convolution instead of cross-correlation.
        padding_mode: as in Geometry; modes other than "zeros" take no negative padding, and at most
            one image's extent.

    Raises:
        ArgumentError: the shapes do not fit together; the message names what, expected and got.
    """
    arguments = (x_shape, weight_shape, stride, padding, dilation, groups, flip, padding_mode)
    if torch.compiler.is_compiling():  # Dynamo warns about lru_cache
        return _validated_geometry(*arguments)
    try:
        return _cached_geometry(*arguments)
    except TypeError:  # a compiler's symbolic sizes cannot be hashed
        return _validated_geometry(*arguments)


def _validated_geometry(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int,
    flip: bool,
    padding_mode: str,
) -> Geometry:
    N, C, H, W = x_shape
    per_sample = len(weight_shape) == 5
    K, group_C, R, S = weight_shape[-4:]
    for name, pair in (("stride", stride), ("dilation", dilation)):
        if min(pair) < 1:
            raise ArgumentError(f"{name} must be positive, got {shown(pair)}")
        if max(pair) > INT64_MAX:
            raise ArgumentError(f"{name} must fit 64-bit integers, got {shown(pair)}")
    if groups < 1:
        raise ArgumentError(f"groups must be positive, got {groups}")
    if per_sample and weight_shape[0] != N:
        raise ArgumentError(
            f"weight of shape {_show(weight_shape)} has a filter bank for each of "
            f"{weight_shape[0]} samples, but the input {_show(x_shape)} has {N}"
        )
    if min(R, S) < 1:
        raise ArgumentError(f"the window must not be empty, got {R}x{S} (weight's last two sizes)")
    if K < 1:
        raise ArgumentError(
            f"weight must hold at least one filter, got shape {_show(weight_shape)}"
        )
    if K % groups:
        raise ArgumentError(
            f"groups={groups} must divide the number of filters, got {K} "
            f"(weight of shape {_show(weight_shape)})"
        )
    if group_C * groups != C:
        raise ArgumentError(
            f"weight of shape {_show(weight_shape)} with groups={groups} expects an input with "
            f"{group_C * groups} channels, got {C} (input of shape {_show(x_shape)})"
        )
    if H < 1 or W < 1:  # min(H, W) would add a guard on their order to a compiled program
        raise ArgumentError(f"input must have a height and a width, got shape {_show(x_shape)}")
    for name, extent, window, pad, dil in (
        ("high", H, R, padding[0], dilation[0]),
        ("wide", W, S, padding[1], dilation[1]),
    ):
        reach = dil * (window - 1) + 1
        if reach > extent + pad[0] + pad[1]:
            raise ArgumentError(
                f"the window is larger than the padded input: it is {reach} {name} (size {window}, "
                f"dilation {dil}), the input {extent + pad[0] + pad[1]} (size {extent}, "
                f"padding {pad[0]} and {pad[1]})"
            )
    check_padding_mode(padding_mode)
    if not any(padding[0] + padding[1]):
        padding_mode = "zeros"
    for name, extent, sides in (("height", H, padding[0]), ("width", W, padding[1])):
        check_sides(name, extent, sides, padding_mode)
    geometry = Geometry(
        N, C, H, W, K, R, S, stride, padding, dilation, groups, flip, per_sample, padding_mode
    )
    padded = (H + sum(padding[0]), W + sum(padding[1]))
    if _is_too_large(padded[0]) or _is_too_large(padded[1]):
        raise ArgumentError(
            f"an image of {padded[0]} x {padded[1]}, padding included, is too large for 64-bit "
            "offsets"
        )
    for shape, numel in (
        (geometry.x_shape, geometry.x_numel),
        (geometry.y_shape, geometry.y_numel),
    ):
        if _is_too_large(numel * 8):
            raise ArgumentError(f"images of shape {_show(shape)} are too large for 64-bit offsets")
    return geometry


_cached_geometry = functools.lru_cache(maxsize=4096)(_validated_geometry)


def _unshown(extent: int, sides: Pair, mode: str) -> Pair:
    """(first, last + 1) of the coordinates along one axis that no padding copies; may be empty."""
    before, after = sides
    if mode == "reflect":
        first, last = before + 1 if before else 0, extent - (after + 1 if after else 0)
    elif mode == "replicate":
        first, last = min(before, 1), extent - min(after, 1)
    elif mode == "circular":
        first, last = after, extent - before
    else:
        first, last = 0, extent
    return (first, last) if first < last else (extent, extent)


def _output_extent(extent: int, window: int, stride: int, pad: Pair, dilation: int) -> int:
    return (extent + pad[0] + pad[1] - dilation * (window - 1) - 1) // stride + 1


def _is_too_large(number: Any) -> bool:
    """False for symbolic sizes: a comparison would add a guard, which export refuses."""
    traced = torch.compiler.is_compiling() or isinstance(number, torch.SymInt)
    return not traced and number > INT64_MAX


def _show(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
