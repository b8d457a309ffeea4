"""What a fit is of: the window, what is added to its output, and how it meets the border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..ops import ArgumentError, ArgumentTypeError, as_integer, as_padding, as_pair, shown
from ..ops.arguments import check_padding_mode
from ..ops.geometry import Pair
from .background import Background, as_background
from .normal import Constraints
from .pairs import ImagePair, as_image_pair


@dataclass(frozen=True)
class Settings:
    """What learn_kernel and KernelAccumulator take alike.

    Attributes:
        window: (R, S).
        background: polynomials that are fitted too.
        padding: ((top, bottom), (left, right)); None if the user said nothing, so that a target of
            the input's size loses its border.
        padding_mode, groups, flip: as for learn_kernel.
    """

    window: Pair
    background: Background
    padding: tuple[Pair, Pair] | None
    padding_mode: Any
    groups: int
    flip: bool

    def pair(self, *images: Any, **place: Any) -> ImagePair:
        """A checked pair of images; `images` are x, y, mask, input_mask and weights."""
        options = {
            "window": self.window,
            "padding": self.padding,
            "padding_mode": self.padding_mode,
            "groups": self.groups,
        }
        return as_image_pair(*images, **{**options, **place})


def as_settings(
    kernel_size: Any,
    bias: bool,
    background: Any,
    padding: Any,
    padding_mode: Any,
    groups: Any,
    flip: bool,
) -> Settings:
    """Checked settings.

    Raises:
        ArgumentError, ArgumentTypeError: one of them cannot be used.
    """
    window = as_pair("kernel_size", kernel_size)
    if min(window) < 1:
        raise ArgumentError(f"kernel_size must not be empty, got {shown(kernel_size)}")
    check_padding_mode(padding_mode)
    border = None if padding is None else as_padding(padding, window)
    return Settings(
        window,
        as_background(bias, background),
        border,
        padding_mode,
        as_integer("groups", groups),
        bool(flip),
    )


def as_constraints(elements: int, ridge: Any, nonnegative: bool, sum_to: Any) -> Constraints:
    """Checked constraints on kernels of so many elements.

    Raises:
        ArgumentError, ArgumentTypeError: one of them cannot be met.
    """
    for name, value in (("ridge", ridge), ("sum_to", 0 if sum_to is None else sum_to)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ArgumentTypeError(f"{name} must be a number, got {shown(value)}")
        if not abs(float(value)) < float("inf"):
            raise ArgumentError(f"{name} must be finite, got {value}")
    if ridge < 0:
        raise ArgumentError(f"ridge must not be negative, got {ridge}")
    if nonnegative and sum_to is not None and sum_to < 0:
        raise ArgumentError(f"sum_to must not be negative with nonnegative, got {sum_to}")
    total = None if sum_to is None else float(sum_to)
    return Constraints(elements, float(ridge), bool(nonnegative), total)


def as_pairs(
    settings: Settings, x: Any, y: Any, mask: Any, input_mask: Any, weights: Any
) -> list[ImagePair]:
    """One pair, or lists of equal length, as checked pairs."""
    if not isinstance(x, Sequence) and not isinstance(y, Sequence):
        return [settings.pair(x, y, mask, input_mask, weights)]
    if not isinstance(x, Sequence) or not isinstance(y, Sequence) or len(x) != len(y) or not x:
        counts = [f"{len(v)} of them" if isinstance(v, Sequence) else "one" for v in (x, y)]
        raise ArgumentError(
            f"x and y must be two images or two lists as long as each other, got {counts[0]} and "
            f"{counts[1]}"
        )
    columns = []
    for name, values in (("mask", mask), ("input_mask", input_mask), ("weights", weights)):
        if values is not None and (not isinstance(values, Sequence) or len(values) != len(x)):
            raise ArgumentError(f"{name} must be a list of {len(x)}, one for each pair of images")
        columns.append([None] * len(x) if values is None else values)
    pairs = [settings.pair(*row) for row in zip(x, y, *columns, strict=True)]
    for pair in pairs[1:]:
        for name, first, other in (("x", pairs[0].x, pair.x), ("y", pairs[0].y, pair.y)):
            if first.shape[1] != other.shape[1] or first.device != other.device:
                raise ArgumentError(
                    f"all pairs must have the same channels on the same device, got {name} of "
                    f"shape {tuple(first.shape)} on {first.device} and {tuple(other.shape)} on "
                    f"{other.device}"
                )
    return pairs
