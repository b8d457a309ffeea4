"""Pairs of images between which a kernel is sought: checked, cropped, masked, cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from .. import ops
from ..ops import ArgumentError, ArgumentTypeError, Geometry, as_padding, shown
from ..ops.arguments import Pair, check_padding_mode, check_sides, check_tensors
from .background import Place


@dataclass(frozen=True)
class ImagePair:
    """An input and the output that a kernel should make of it.

    Attributes:
        x: (N, C, H, W), as the user gave it or with what a padding mode adds around it.
        y: (N, K, P, Q).
        weights: (N, 1 or K, P, Q), not negative; None where all are one.
        window: (R, S).
        padding: ((top, bottom), (left, right)) zeros around x.
        groups: channel groups.
        place: where y lies in the output that a polynomial background spans.
    """

    x: torch.Tensor
    y: torch.Tensor
    weights: torch.Tensor | None
    window: Pair
    padding: tuple[Pair, Pair]
    groups: int
    place: Place

    @property
    def geometry(self) -> Geometry:
        """Of the correlation of x with a kernel."""
        N, C, H, W = self.x.shape
        weight_shape = (self.y.shape[1], C // self.groups, *self.window)
        return ops.geometry_of((N, C, H, W), weight_shape, padding=self.padding, groups=self.groups)

    @property
    def extent(self) -> Pair:
        """(P, Q)."""
        return self.y.shape[-2], self.y.shape[-1]

    def to(self, dtype: torch.dtype) -> ImagePair:
        """The same in another dtype."""
        weights = None if self.weights is None else self.weights.to(dtype)
        return replace(self, x=self.x.to(dtype), y=self.y.to(dtype), weights=weights)

    def crop(self, top: int, bottom: int, left: int, right: int) -> ImagePair:
        """Output rows top up to bottom, columns left up to right, with the x that they depend on.

        Views, no copies.
        """
        R, S = self.window
        (pad_top, _), (pad_left, _) = self.padding
        H, W = self.x.shape[-2:]
        rows, pad_rows = _inside(top - pad_top, bottom - pad_top + R - 1, H)
        columns, pad_columns = _inside(left - pad_left, right - pad_left + S - 1, W)
        row, column = self.place.origin
        weights = self.weights
        return replace(
            self,
            x=self.x[..., rows, columns],
            y=self.y[..., top:bottom, left:right],
            weights=None if weights is None else weights[..., top:bottom, left:right],
            padding=(pad_rows, pad_columns),
            place=Place((row + top, column + left), self.place.size),
        )

    def blocks(self, pixels: int) -> Iterator[ImagePair]:
        """Pieces of whole output rows, each of about `pixels` outputs or of one row."""
        P, Q = self.extent
        rows = max(1, min(P, pixels // Q))
        samples = max(1, pixels // (P * Q)) if rows == P else 1
        for first in range(0, len(self.x), samples):
            last = first + samples
            weights = None if self.weights is None else self.weights[first:last]
            batch = replace(self, x=self.x[first:last], y=self.y[first:last], weights=weights)
            for top in range(0, P, rows):
                yield batch.crop(top, min(P, top + rows), 0, Q)


def _inside(first: int, last: int, extent: int) -> tuple[slice, Pair]:
    """What of first up to last an image has, at least one element, and how many it lacks."""
    start = min(max(first, 0), extent - 1)
    end = max(min(last, extent), start + 1)
    return slice(start, end), (start - first, last - end)


def as_image_pair(
    x: Any,
    y: Any,
    mask: Any = None,
    input_mask: Any = None,
    weights: Any = None,
    *,
    window: Pair,
    padding: Any = None,
    padding_mode: str = "zeros",
    groups: int = 1,
    origin: Pair = (0, 0),
    size: Pair | None = None,
) -> ImagePair:
    """A checked pair; arguments as for learn_kernel and KernelAccumulator.update.

    Raises:
        ArgumentError, ArgumentTypeError: as learn_kernel says.
    """
    check_tensors(images=("x", "y"), x=x, y=y)
    check_padding_mode(padding_mode)
    if x.dim() not in (2, 3, 4) or y.dim() != x.dim():
        raise ArgumentError(
            "x and y must both be (H, W), (C, H, W) or (N, C, H, W), "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = (four_dimensional(t.detach()) for t in (x, y))
    if not len(x):
        raise ArgumentError("x must hold at least one image, got an empty batch")
    if groups < 1 or x.shape[1] % groups or y.shape[1] % groups:
        raise ArgumentError(
            f"groups must divide the channels of x and y, {x.shape[1]} and {y.shape[1]}, "
            f"got {groups}"
        )
    border = ((0, 0), (0, 0)) if padding is None else as_padding(padding, window)
    unknown = None
    if input_mask is not None:
        known = _spread("input_mask", input_mask, x) != 0
        unknown = padded_image((~known).any(1, keepdim=True).float(), border, padding_mode)
        x = torch.where(known, x, torch.zeros((), dtype=x.dtype, device=x.device))
    _check_finite("x", x, "input_mask")
    if padding_mode != "zeros":
        x, border = padded_image(x, border, padding_mode), ((0, 0), (0, 0))
    place = Place((0, 0), (1, 1))
    whole = ImagePair(x, y, None, window, border, groups, place)
    P, Q = whole.geometry.P, whole.geometry.Q
    rows, columns = _fitted_part(whole, x if padding is None else None)
    counts = _weights(mask, weights, y)
    y = y[..., rows, columns]
    if counts is not None:
        counts = counts[..., rows, columns]
    if unknown is not None:
        reached = F.max_pool2d(F.max_pool2d(unknown, (window[0], 1), 1), (1, window[1]), 1)
        counts = (1 - reached) if counts is None else counts * (1 - reached).to(counts.dtype)
    if counts is not None:
        left_out = (counts == 0) & ~y.isfinite()
        y = torch.where(left_out, torch.zeros((), dtype=y.dtype, device=y.device), y)
    _check_finite("y", y, "mask")
    return replace(whole, y=y, weights=counts, place=Place(origin, size or (P, Q)))


def four_dimensional(image: torch.Tensor) -> torch.Tensor:
    """(H, W) or (C, H, W) as (N, C, H, W)."""
    return image[(None,) * (4 - image.dim())]


def padded_image(x: torch.Tensor, padding: tuple[Pair, Pair], mode: str) -> torch.Tensor:
    """x (..., H, W) with `padding` written out.

    Raises:
        ArgumentError: the mode has not that much to put there.
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
    """The rows and columns of y that full windows predict; y may have the size of x if given."""
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


def _weights(mask: Any, weights: Any, y: torch.Tensor) -> torch.Tensor | None:
    """The product of mask and weights, (N, 1 or K, rows, columns), before any cropping of y."""
    counts = None
    if mask is not None:
        counts = (_spread("mask", mask, y) != 0).float()
    if weights is not None:
        given = _spread("weights", weights, y)
        given = given if given.is_floating_point() else given.float()
        if not given.isfinite().all() or bool((given < 0).any()):
            raise ArgumentError("weights must be finite and not negative")
        counts = given if counts is None else given * counts
    return counts


def _spread(name: str, values: Any, image: torch.Tensor) -> torch.Tensor:
    """`values` over the image (N, C, H, W), with one channel if they are the same for all."""
    if not isinstance(values, torch.Tensor):
        raise ArgumentTypeError(f"{name} must be a torch.Tensor, got {shown(type(values))}")
    if values.device != image.device:
        raise ArgumentTypeError(
            f"{name} must be on the device of the images, {image.device}, got {values.device}"
        )
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
    if not image.isfinite().all():
        raise ArgumentError(
            f"{name} must be finite, got NaN or infinity in it ({mask} leaves pixels out)"
        )
