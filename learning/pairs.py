"""Pairs of images for a fit: checked, cropped, masked, cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from .. import ops
from ..ops import ArgumentError, ArgumentTypeError, Geometry, as_padding
from ..ops.arguments import Pair, check_padding_mode, check_sides
from .background import Place
from .data import all_finite, as_counts, as_data


@dataclass(frozen=True)
class ImagePair:
    """An input image and its target.

    Attributes:
        x: (N, C, H, W), as given or, for a padding mode other than zeros, padded.
        y: (N, K, P, Q).
        weights: (N, 1 or K, P, Q), not negative; None where all are one.
        window: (R, S).
        padding: ((top, bottom), (left, right)) zeros around x.
        groups: channel groups.
        place: position of y in the output that a polynomial background spans.
        stride: (h, w) step between windows, in pixels of x.
        x_variance: (N, 1 or C, H, W), of the noise of x, padded like x; None for no noise.
        notes: for the user, the pixels that were left out.
        rank: number of dimensions of the images as given.
    """

    x: torch.Tensor
    y: torch.Tensor
    weights: torch.Tensor | None
    window: Pair
    padding: tuple[Pair, Pair]
    groups: int
    place: Place
    stride: Pair = (1, 1)
    x_variance: torch.Tensor | None = None
    notes: tuple[str, ...] = ()
    rank: int = 4

    @cached_property
    def geometry(self) -> Geometry:
        """Geometry of the correlation of x with a kernel."""
        N, C, H, W = self.x.shape
        weight_shape = (self.y.shape[1], C // self.groups, *self.window)
        return ops.geometry_of(
            (N, C, H, W),
            weight_shape,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )

    @property
    def extent(self) -> Pair:
        """(P, Q)."""
        return self.y.shape[-2], self.y.shape[-1]

    def to(self, dtype: torch.dtype) -> ImagePair:
        """The pair in another dtype."""
        weights = None if self.weights is None else self.weights.to(dtype)
        return replace(self, x=self.x.to(dtype), y=self.y.to(dtype), weights=weights)

    def copy(self) -> ImagePair:
        """The same with images of its own."""
        weights = None if self.weights is None else self.weights.clone()
        return replace(self, x=self.x.clone(), y=self.y.clone(), weights=weights)

    def crop(self, top: int, bottom: int, left: int, right: int) -> ImagePair:
        """Output rows top .. bottom - 1, columns left .. right - 1, and the part of x under them.

        The tensors are views.
        """
        R, S = self.window
        (pad_top, _), (pad_left, _) = self.padding
        H, W = self.x.shape[-2:]
        down, across = self.stride
        rows, pad_rows = _inside(top * down - pad_top, (bottom - 1) * down - pad_top + R, H)
        columns, pad_columns = _inside(
            left * across - pad_left, (right - 1) * across - pad_left + S, W
        )
        row, column = self.place.origin
        weights, variance = self.weights, self.x_variance
        return replace(
            self,
            x=self.x[..., rows, columns],
            x_variance=None if variance is None else variance[..., rows, columns],
            y=self.y[..., top:bottom, left:right],
            weights=None if weights is None else weights[..., top:bottom, left:right],
            padding=(pad_rows, pad_columns),
            place=Place((row + top, column + left), self.place.size),
        )

    def blocks(self, pixels: int) -> Iterator[ImagePair]:
        """Pieces of whole output rows, each of about `pixels` outputs or of one row."""
        P, Q = self.extent
        if len(self.x) * P * Q <= pixels:
            yield self
            return
        rows = max(1, min(P, pixels // Q))
        samples = max(1, pixels // (P * Q)) if rows == P else 1
        for first in range(0, len(self.x), samples):
            last = first + samples
            weights = None if self.weights is None else self.weights[first:last]
            variance = None if self.x_variance is None else self.x_variance[first:last]
            batch = replace(
                self,
                x=self.x[first:last],
                y=self.y[first:last],
                weights=weights,
                x_variance=variance,
            )
            for top in range(0, P, rows):
                yield batch.crop(top, min(P, top + rows), 0, Q)


def _inside(first: int, last: int, extent: int) -> tuple[slice, Pair]:
    """The part of first .. last - 1 inside an image, at least one element; the numbers outside."""
    start = min(max(first, 0), extent - 1)
    end = max(min(last, extent), start + 1)
    return slice(start, end), (start - first, last - end)


def as_image_pair(
    x: Any,
    y: Any,
    mask: Any = None,
    input_mask: Any = None,
    weights: Any = None,
    input_noise: Any = None,
    *,
    window: Pair,
    padding: Any = None,
    padding_mode: str = "zeros",
    groups: int = 1,
    stride: Pair = (1, 1),
    origin: Pair = (0, 0),
    size: Pair | None = None,
) -> ImagePair:
    """A checked pair; arguments as for learn_kernel and KernelAccumulator.update.

    Raises:
        ArgumentError, ArgumentTypeError: as learn_kernel says.
    """
    of_x, of_y = as_data("x", x), as_data("y", y)
    x, y = of_x.values, of_y.values
    check_padding_mode(padding_mode)
    if x.device != y.device:
        raise ArgumentTypeError(f"x and y must be on the same device, got {x.device}, {y.device}")
    if x.dim() not in (2, 3, 4) or y.dim() != x.dim():
        raise ArgumentError(
            "x and y must both be (H, W), (C, H, W) or (N, C, H, W), "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    rank = x.dim()
    x, y = four_dimensional(x), four_dimensional(y)
    if not len(x):
        raise ArgumentError("x must hold at least one image, got an empty batch")
    if groups < 1 or x.shape[1] % groups or y.shape[1] % groups:
        raise ArgumentError(
            f"groups must divide the channels of x and y, {x.shape[1]} and {y.shape[1]}, "
            f"got {groups}"
        )
    border = ((0, 0), (0, 0)) if padding is None else as_padding(padding, window, stride)
    known = _both(
        None if input_mask is None else _spread("input_mask", input_mask, x) != 0, of_x.good
    )
    unknown = None
    if known is not None:
        known = known.expand(len(x), -1, *x.shape[-2:])
        unknown = padded_image((~known).any(1, keepdim=True).float(), border, padding_mode)
        x = torch.where(known, x, x.new_zeros(()))
    if not of_x.finite:
        _check_finite("x", x, "input_mask")
    variance = None if input_noise is None else _variance(input_noise, x)
    if padding_mode != "zeros":
        if variance is not None:
            variance = padded_image(variance, border, padding_mode)
        x, border = padded_image(x, border, padding_mode), ((0, 0), (0, 0))
    place = Place((0, 0), (1, 1))
    whole = ImagePair(x, y, None, window, border, groups, place, stride, variance)
    P, Q = whole.geometry.P, whole.geometry.Q
    rows, columns = _fitted_part(whole, x if padding is None and stride == (1, 1) else None)
    counts = _weights(mask, of_y.good, weights, y)
    y = y[..., rows, columns]
    if counts is not None:
        counts = counts[..., rows, columns]
    if unknown is not None:
        reached = F.max_pool2d(unknown, (window[0], 1), (stride[0], 1))
        reached = F.max_pool2d(reached, (1, window[1]), (1, stride[1]))
        counts = (1 - reached) if counts is None else counts * (1 - reached).to(counts.dtype)
    if counts is not None:
        left_out = (counts == 0) & ~y.isfinite()
        y = torch.where(left_out, y.new_zeros(()), y)
    if not of_y.finite:
        _check_finite("y", y, "mask")
    return replace(
        whole,
        rank=rank,
        y=y,
        weights=counts,
        place=Place(origin, size or (P, Q)),
        notes=(of_x.notes if input_mask is None else ()) + (of_y.notes if mask is None else ()),
    )


def four_dimensional(image: torch.Tensor) -> torch.Tensor:
    """(H, W) or (C, H, W) as (N, C, H, W)."""
    return image[(None,) * (4 - image.dim())]


def padded_image(x: torch.Tensor, padding: tuple[Pair, Pair], mode: str) -> torch.Tensor:
    """x (..., H, W) with `padding` written out.

    Raises:
        ArgumentError: the padding is too large for the mode.
    """
    (top, bottom), (left, right) = padding
    for name, extent, sides in zip(("height", "width"), x.shape[-2:], padding, strict=True):
        check_sides(name, extent, sides, mode)
    if not any((top, bottom, left, right)):
        return x
    kind = "constant" if mode == "zeros" else mode
    # PyTorch takes no (H, W) in modes other than constant.
    padded = F.pad(four_dimensional(x), (left, right, top, bottom), mode=kind)
    return padded[(0,) * (4 - x.dim())]


def _fitted_part(pair: ImagePair, cropped_as: torch.Tensor | None) -> tuple[slice, slice]:
    """Rows and columns of y that full windows predict; y may have the size of `cropped_as`."""
    g, y = pair.geometry, pair.y
    if len(y) == g.N and tuple(y.shape[-2:]) == (g.P, g.Q):
        return slice(None), slice(None)
    if cropped_as is not None and len(y) == g.N and y.shape[-2:] == cropped_as.shape[-2:]:
        top, left = (g.R - 1) // 2, (g.S - 1) // 2
        return slice(top, top + g.P), slice(left, left + g.Q)
    expected = f"{g.P} x {g.Q}"
    if cropped_as is not None:
        expected += f" (no padding) or {g.H} x {g.W} (as x)"
    raise ArgumentError(
        f"y must hold {g.N} images of {expected} pixels for x of shape "
        f"{tuple(pair.x.shape)} and a window of {g.R} x {g.S}, got shape {tuple(y.shape)}"
    )


def _weights(
    mask: Any, good: torch.Tensor | None, weights: Any, y: torch.Tensor
) -> torch.Tensor | None:
    """The product of masks and weights, (N, 1 or K, rows, columns), for all of y."""
    kept = _both(None if mask is None else _spread("mask", mask, y) != 0, good)
    if kept is not None and kept.shape[1] > 1 and bool((kept == kept[:, :1]).all()):
        kept = kept[:, :1]
    counts = None if kept is None else kept.expand(len(y), -1, *y.shape[-2:]).float()
    if weights is not None:
        given = _spread("weights", weights, y)
        given = given if given.is_floating_point() else given.float()
        if counts is not None:
            given = torch.where(counts > 0, given, given.new_zeros(()))
        if not given.isfinite().all() or bool((given < 0).any()):
            raise ArgumentError("weights must be finite and not negative")
        counts = given
    return counts


def _both(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    """Where both masks are True, (N, C, H, W)."""
    if second is None:
        return first
    second = four_dimensional(second)
    return second if first is None else first & second


def _variance(noise: Any, x: torch.Tensor) -> torch.Tensor:
    """The variance (N, 1 or C, H, W) of noise given as standard deviation, a number or a map."""
    if isinstance(noise, int | float) and not isinstance(noise, bool):
        if not 0 <= noise < float("inf"):
            raise ArgumentError(f"input_noise must be finite and not negative, got {noise}")
        return (
            x.new_full((1, 1, 1, 1), noise, dtype=torch.float64)
            .square()
            .expand(len(x), 1, *x.shape[-2:])
        )
    given = _spread("input_noise", noise, x).double()
    if not given.isfinite().all() or bool((given < 0).any()):
        raise ArgumentError("input_noise must be finite and not negative")
    return given.square()


def _spread(name: str, values: Any, image: torch.Tensor) -> torch.Tensor:
    """`values` broadcast to (N, 1 or C, H, W) of the image."""
    values = as_counts(name, values)
    if values.device != image.device:
        if values.device.type != "cpu":
            raise ArgumentTypeError(
                f"{name} must be on the device of the images, {image.device}, got {values.device}"
            )
        values = values.to(image.device)
    spread = four_dimensional(values.detach())
    fits = spread.dim() == 4 and all(
        n in (1, m) for n, m in zip(spread.shape, image.shape, strict=True)
    )
    if not fits:
        raise ArgumentError(
            f"{name} must have the shape of its image {tuple(image.shape)}, or one that "
            f"broadcasts to it, got {tuple(values.shape)}"
        )
    N, _, H, W = image.shape
    return spread.expand(N, -1, H, W)


def _check_finite(name: str, image: torch.Tensor, mask: str) -> None:
    if not all_finite(image):
        raise ArgumentError(f"{name} must be finite, got infinity ({mask}= leaves pixels out)")
