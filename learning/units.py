"""Units in which a fit is well conditioned: the images minus a level, divided by a scale.

    x' = (x - x_level) / x_scale    y' = (y - y_level) / y_scale    weights' = weights / w_scale

Scales are powers of two, and one where the images' own is near it; levels are multiples of a power
of two: no digit is lost. Levels are subtracted only if the background has a constant, which absorbs
them:

    weight = weight' * y_scale / x_scale
    constant = constant' * y_scale + y_level - sum_{c,r,s} weight * x_level[c]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from .background import Background
from .gram import Sums
from .normal import Constraints
from .pairs import ImagePair, padded_image
from .problem import Point
from .totals import row_blocks, squares

#: Powers of two between these are replaced by a scale of one.
PLAIN = 2.0**-8, 2.0**8


@dataclass(frozen=True)
class Units:
    """The units of a fit, expressed in the user's units.

    Attributes:
        x, y, weights: the scales.
        x_level: of each input channel; empty if no levels are subtracted.
        y_level: of each filter, likewise.
    """

    x: float = 1.0
    y: float = 1.0
    weights: float = 1.0
    x_level: tuple[float, ...] = ()
    y_level: tuple[float, ...] = ()

    @classmethod
    def of(cls, pairs: list[ImagePair], background: Background) -> Units:
        """Units in which deviations of the images from their mean are about one."""
        centred = background.order is not None
        counts = [pair.weights for pair in pairs]
        positive = [float(c.double().sum()) for c in counts if c is not None]
        count = sum(int((c > 0).sum()) for c in counts if c is not None)
        weights = _power_of_two(sum(positive) / count) if count else 1.0
        x, x_level = _level_and_scale([pair.x for pair in pairs], [None] * len(pairs), centred)
        y, y_level = _level_and_scale([pair.y for pair in pairs], counts, centred)
        return cls(x, y, weights, x_level, y_level)

    @property
    def loss(self) -> float:
        """The factor from losses in these units to the user's."""
        return self.y * self.y * self.weights

    def standard(self, pair: ImagePair, dtype: torch.dtype) -> ImagePair:
        """The pair in these units."""
        x, padding = pair.x, pair.padding
        if any(self.x_level):  # the padding's zeros become minus the level
            x, padding = padded_image(x, padding, "zeros"), ((0, 0), (0, 0))
        weights, variance = pair.weights, pair.x_variance
        if weights is not None:
            weights = _over(weights, self.weights).to(dtype)
        if variance is not None:
            variance = (
                padded_image(variance, pair.padding, "zeros") if x is not pair.x else variance
            )
            variance = variance.double() / self.x**2
        return replace(
            pair,
            x=_less(x, self.x_level, self.x, dtype),
            y=_less(pair.y, self.y_level, self.y, dtype),
            weights=weights,
            padding=padding,
            x_variance=variance,
        )

    def constraints(self, constraints: Constraints) -> Constraints:
        """The same constraints on a kernel in these units."""
        if self == UNCHANGED:
            return constraints
        total, curvature = constraints.sum_to, self.x * self.x * self.weights
        return replace(
            constraints,
            ridge=constraints.ridge / curvature,
            smooth=constraints.smooth / curvature,
            sum_to=None if total is None else total * (self.x / self.y),
        )

    def user(self, point: Point) -> Point:
        """A kernel in these units, converted to the user's."""
        if self == UNCHANGED:
            return point
        weight = point.weight * (self.y / self.x)
        background = point.background * self.y
        if background.shape[1] and self.y_level:
            background = background.clone()
            background[:, 0] += self._offset(weight)
        return Point(weight, background)

    def own(self, point: Point) -> Point:
        """A kernel in the user's units, converted to these."""
        if self == UNCHANGED:
            return point
        background = point.background
        if background.shape[1] and self.y_level:
            background = background.clone()
            background[:, 0] -= self._offset(point.weight)
        return Point(point.weight * (self.x / self.y), background / self.y)

    def levels(self, weight_shape: tuple[int, ...]) -> torch.Tensor | None:
        """The level subtracted from x under each element, in these units: (groups, elements)."""
        if not any(self.x_level):
            return None
        _, channels, R, S = weight_shape
        level = torch.tensor(self.x_level, dtype=torch.float64, device="cpu") / self.x
        level = level.view(-1, channels)
        return level.repeat_interleave(R * S, 1)

    def _offset(self, weight: torch.Tensor) -> torch.Tensor:
        """y_level - sum weight * x_level of each filter, (K,), for a weight in the user's units."""
        level = weight.new_tensor(self.x_level).view(-1, weight.shape[1])  # (groups, C/groups)
        each = level.repeat_interleave(len(weight) // len(level), 0)
        return weight.new_tensor(self.y_level) - (weight.sum((2, 3)) * each).sum(1)


#: The user's own units.
UNCHANGED = Units()


def _level_and_scale(
    images: list[torch.Tensor], counts: list[torch.Tensor | None], centred: bool
) -> tuple[float, tuple[float, ...]]:
    """One scale for all channels, and each channel's level; no levels if not `centred`."""
    if not centred and all(count is None for count in counts):
        sums = sum(float(squares(image).sum()) for image in images)
        unit = _power_of_two(math.sqrt(sums / max(1, sum(image.numel() for image in images))))
        return _scale(unit), ()
    moments = [_moments(image, count) for image, count in zip(images, counts, strict=True)]
    size, total, square = torch.stack(moments).sum(0)
    mean = total / size.clamp(min=torch.finfo(torch.float64).tiny)
    if centred:
        about = [_moments(image, count, mean) for image, count in zip(images, counts, strict=True)]
        square = torch.stack(about).sum(0)[2]
    deviation = math.sqrt(float(square.sum()) / max(float(size.sum()), 1.0))
    unit = _power_of_two(deviation or float(mean.abs().max()))
    if not centred:
        return _scale(unit), ()
    level = ((mean / unit).round() * unit).tolist()
    return _scale(unit), tuple(level) if any(level) else (0.0,) * len(level)


def _moments(
    image: torch.Tensor, count: torch.Tensor | None, centre: torch.Tensor | None = None
) -> torch.Tensor:
    """Per channel, over weights above zero: pixels, sum, sum of squares about a centre, (3, K)."""
    found = torch.zeros(3, image.shape[1], dtype=torch.float64, device=image.device)
    for rows in row_blocks(image):
        part = image[:, :, rows].double()
        if centre is not None:
            part = part - centre.to(part).view(-1, 1, 1)
        if count is None:
            found[0] += part[:, 0].numel()
        else:
            counts = (count[:, :, rows] > 0).expand(part.shape)
            part = torch.where(counts, part, part.new_zeros(()))
            found[0] += counts.sum((0, 2, 3))
        found[1] += part.sum((0, 2, 3))
        found[2] += torch.linalg.vector_norm(part, dim=(0, 2, 3)).square()
    return found.cpu()


def _scale(unit: float) -> float:
    """1 if the images' own unit is near it, so that they need not be copied."""
    return 1.0 if PLAIN[0] <= unit <= PLAIN[1] else unit


def _power_of_two(value: float) -> float:
    return 2.0 ** round(math.log2(value)) if 0 < value < math.inf else 1.0


def _less(
    image: torch.Tensor, level: tuple[float, ...], scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """(image - level) / scale."""
    if any(level):
        less = image.new_tensor(level, dtype=torch.float64).view(-1, 1, 1)
        exact = bool((less.to(dtype) == less).all())  # then a difference is rounded once
        wide = dtype if exact else torch.float64
        image = image.to(wide) - less.to(wide)
    if image.dtype == dtype and 1e-20 < scale < 1e20:
        return image if scale == 1 else image / scale  # exact: a power of two
    return _over(image, scale).to(dtype)


def _over(image: torch.Tensor, scale: float) -> torch.Tensor:
    """image / scale, in float64 unless that is one."""
    return image if scale == 1 else image.double() / scale


def converted(sums: Sums, old: Units, new: Units, weight_shape: tuple[int, ...]) -> Sums:
    """Sums converted from one system of units to another.

    Args:
        sums: in the old units.
        old, new: of images with the same channels and filters.
        weight_shape: (K, C/groups, R, S).
    """
    if old == new:
        return sums
    device = sums.moments.device
    _, channels, R, S = weight_shape
    elements, taps = channels * R * S, R * S
    filters, grams = len(sums.moments), len(sums.gram)
    weights, x, y = old.weights / new.weights, old.x / new.x, old.y / new.y
    shift = _difference(old.x_level, new.x_level) / new.x
    rise = (_difference(old.y_level, new.y_level).expand(filters) / new.y).to(device)
    groups = max(1, len(shift) // channels)
    unknowns = sums.moments.shape[1]
    # The matrix from a window of each group in the old units to the new ones.
    change = torch.eye(unknowns, dtype=torch.float64, device="cpu").repeat(groups, 1, 1)
    change[:, range(elements), range(elements)] = x
    if unknowns > elements:
        steps = shift.expand(groups * channels).view(groups, -1).repeat_interleave(taps, 1)
        change[:, :elements, elements] = steps
    change = change.to(device)
    of_gram = change.repeat_interleave(max(1, grams // groups), 0)[:grams]
    of_filter = change.repeat_interleave(filters // groups, 0)
    moments = y * sums.moments
    if grams and unknowns > elements:
        constant = sums.gram[:, :, elements].repeat_interleave(filters // grams, 0)
        moments = moments + rise[:, None] * constant
    target_sum = y * sums.target_sum + rise * sums.weight_sum
    squares = y * y * sums.squares + 2 * rise * y * sums.target_sum
    if unknowns == elements or not bool(shift.any()):  # only scales change
        scales = change.diagonal(dim1=1, dim2=2)[0]
        gram = sums.gram * (weights * torch.outer(scales, scales))
    else:
        gram = weights * (of_gram @ sums.gram @ of_gram.mT)
    return Sums(
        gram=gram,
        moments=weights * (of_filter @ moments[..., None])[..., 0],
        squares=weights * (squares + rise.square() * sums.weight_sum),
        target_sum=weights * target_sum,
        weight_sum=weights * sums.weight_sum,
        pixels=sums.pixels,
        varies=sums.varies,
        noise=weights * x * x * sums.noise,
    )


def _difference(old: tuple[float, ...], new: tuple[float, ...]) -> torch.Tensor:
    """old - new levels; empty ones count as zero."""
    first, second = (
        torch.tensor(level or (0.0,), dtype=torch.float64, device="cpu") for level in (old, new)
    )
    return first - second
