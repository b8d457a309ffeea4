"""The linear map from a kernel to its outputs, its adjoint and the loss, on tricorr's operators."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .. import ops
from ..autograd.function import bias_gradient, correlate, weight_gradient
from ..ops import ArgumentError, Geometry, fourier
from ..ops.arguments import Pair
from .background import Background
from .pairs import ImagePair
from .totals import squares

#: On a CPU, PyTorch stores all windows of float64 images: most elements of them at a time.
UNFOLDED_ELEMENTS = 2**23


@dataclass(frozen=True)
class Point:
    """A point or a direction in the space of the unknowns.

    Attributes:
        weight: (K, C/groups, R, S).
        background: (K, T), T being 0 without a background.
    """

    weight: torch.Tensor
    background: torch.Tensor

    def plus(self, other: Point, factor: float | torch.Tensor) -> Point:
        """self + factor * other; a tensor (K,) has one factor for each filter."""
        change = other.times(factor)
        return Point(self.weight + change.weight, self.background + change.background)

    def times(self, factor: float | torch.Tensor) -> Point:
        """factor * self."""
        if isinstance(factor, torch.Tensor):
            each = factor.to(self.weight.dtype)[:, None]
            return Point(self.weight * each[..., None, None], self.background * each)
        return Point(self.weight * factor, self.background * factor)

    def norm2(self) -> torch.Tensor:
        """The sum of squares of each filter's unknowns, (K,) in float64."""
        return self.dot(self)

    def dot(self, other: Point) -> torch.Tensor:
        """The inner product of each filter's unknowns, (K,) in float64."""
        return (self.flat() * other.flat()).sum(1)

    def flat(self) -> torch.Tensor:
        """(K, C/groups * R * S + T) in float64: the order of the normal matrix."""
        return torch.cat([self.weight.flatten(1), self.background], 1).double()


def from_flat(flat: torch.Tensor, weight_shape: tuple[int, ...]) -> Point:
    """A Point of (K, D) unknowns."""
    K, *window = weight_shape
    elements = window[0] * window[1] * window[2]
    return Point(flat[:, :elements].reshape(K, *window), flat[:, elements:].clone())


class Problem:
    """One least-squares fit.

        minimise sum weights * (A theta - y)^2 + ridge * sum weight^2

    Attributes:
        pairs: images in the dtype of the fit.
        background: the polynomials that are fitted too.
        ridge: not negative.
        weight_shape: (K, C/groups, R, S).
        unknowns: of one filter.
    """

    def __init__(self, pairs: list[ImagePair], background: Background, ridge: float = 0.0) -> None:
        self.pairs = pairs
        self.background = background
        self.ridge = ridge
        self.weight_shape = pairs[0].geometry.weight_shape
        self.unknowns = self.weight_shape[1] * self.weight_shape[2] * self.weight_shape[3]
        self.unknowns += len(background.terms)

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the dtype and on the device of the fit."""
        return self.pairs[0].x

    def start(self, initial: torch.Tensor | None, plain: bool) -> Point:
        """The initial point: zeros, or the user's kernel, (R, S) if `plain`.

        Raises:
            ArgumentError: the kernel has another shape.
        """
        shape = self.weight_shape
        background = self.like.new_zeros(shape[0], len(self.background.terms))
        if initial is None:
            return Point(self.like.new_zeros(shape), background)
        expected = shape[-2:] if plain else shape
        if not isinstance(initial, torch.Tensor) or tuple(initial.shape) != tuple(expected):
            got = tuple(initial.shape) if isinstance(initial, torch.Tensor) else initial
            raise ArgumentError(f"initial must be a tensor of shape {tuple(expected)}, got {got}")
        return Point(initial.detach().to(self.like, copy=True).reshape(shape), background)

    def apply(self, point: Point) -> list[torch.Tensor]:
        """A: a kernel, of any number of filters, to its outputs."""
        return [
            _joined([self._output(piece, point) for piece in self._pieces(pair)], pair)
            for pair in self.pairs
        ]

    def adjoint(self, images: list[torch.Tensor]) -> Point:
        """A^T: outputs to a kernel."""
        found: Point | None = None
        for pair, image in zip(self.pairs, images, strict=True):
            for piece in self._pieces(replace(pair, y=image, weights=None)):
                part = self._pull_back(piece)
                found = part if found is None else found.plus(part, 1.0)
        assert found is not None
        return found

    def residual(self, point: Point) -> list[torch.Tensor]:
        """Prediction minus target."""
        outputs = self.apply(point)
        return [out.sub_(pair.y) for out, pair in zip(outputs, self.pairs, strict=True)]

    def weighted(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """weights * images."""
        return [
            image if pair.weights is None else image * pair.weights
            for image, pair in zip(images, self.pairs, strict=True)
        ]

    def squared(self, images: list[torch.Tensor]) -> torch.Tensor:
        """sum weights * images^2 of each filter, (K,) in float64."""
        parts = [squares(r, p.weights) for r, p in zip(images, self.pairs, strict=True)]
        return torch.stack(parts).sum(0)

    def loss(self, residual: list[torch.Tensor], point: Point) -> float:
        """The loss that is minimised, in float64."""
        return float(self.squared(residual).sum()) + self.penalty(point)

    def penalty(self, point: Point) -> float:
        """ridge * sum weight^2."""
        if not self.ridge:
            return 0.0
        return self.ridge * float(point.weight.double().square().sum())

    def gradient(self, residual: list[torch.Tensor], point: Point) -> Point:
        """Half the gradient of the loss: A^T (weights * residual) + ridge * weight."""
        gradient = self.adjoint(self.weighted(residual))
        if not self.ridge:
            return gradient
        return Point(gradient.weight + self.ridge * point.weight, gradient.background)

    def _pieces(self, pair: ImagePair) -> list[ImagePair]:
        g = pair.geometry
        if pair.x.device.type != "cpu" or pair.x.dtype != torch.float64 or _by_fourier(g, pair):
            return [pair]
        return list(pair.blocks(max(1, UNFOLDED_ELEMENTS // max(1, g.C * g.R * g.S))))

    def _output(self, piece: ImagePair, point: Point) -> torch.Tensor:
        geometry, K = piece.geometry, len(point.weight)
        geometry = geometry if K == geometry.K else replace(geometry, K=K)
        if _by_fourier(geometry, piece):
            output = correlated(piece.x, point.weight, piece.padding, piece.groups)
            if self.background.order is not None:
                surface = self.background.evaluate(point.background, piece.extent, piece.place)
                output += surface.to(output)
            return output
        # A constant background is the operator's bias.
        bias = point.background[:, 0] if self.background.order == 0 else None
        output = correlate(piece.x, point.weight, bias, geometry, "ieee")
        if self.background.order:
            surface = self.background.evaluate(point.background, piece.extent, piece.place)
            output = output + surface
        return output

    def _pull_back(self, piece: ImagePair) -> Point:
        g = piece.geometry
        if _by_fourier(g, piece):
            weight = _lag_gradient(piece)
        else:
            weight = weight_gradient(piece.x, piece.y, g, "ieee")
        if self.background.order is None:
            return Point(weight, weight.new_zeros(len(weight), 0))
        if self.background.order == 0:
            return Point(weight, bias_gradient(piece.y)[:, None])
        return Point(weight, self.background.moments(piece.y, piece.place))


def _by_fourier(geometry: Geometry, pair: ImagePair) -> bool:
    """Whether Fourier transforms are cheaper than PyTorch's convolution."""
    g = geometry
    on_cpu = pair.x.device.type == "cpu" and g.given_stride == (1, 1)
    return on_cpu and fourier.pays((g.R, g.S), g.C, g.K, g.groups)


def correlated(
    x: torch.Tensor, weight: torch.Tensor, padding: tuple[Pair, Pair], groups: int
) -> torch.Tensor:
    """Cross-correlation of x (N, C, H, W) with zero padding, by Fourier transforms."""
    (top, bottom), (left, right) = padding
    return fourier.correlate(F.pad(x, (left, right, top, bottom)), weight, groups)


def _lag_gradient(pair: ImagePair) -> torch.Tensor:
    """sum_{n,p,q} y[n,k,p,q] * x[n,c,p+r,q+s]: (K, C/groups, R, S)."""
    (top, bottom), (left, right) = pair.padding
    x = F.pad(pair.x, (left, right, top, bottom))
    parts = zip(pair.y.chunk(pair.groups, 1), x.chunk(pair.groups, 1), strict=True)
    return torch.cat([ops.lag_sums(y, images, pair.window) for y, images in parts]).to(pair.x)


def _joined(pieces: list[torch.Tensor], pair: ImagePair) -> torch.Tensor:
    """The outputs of a pair's blocks, joined."""
    if len(pieces) == 1:
        return pieces[0]
    N, _, P, Q = pair.y.shape
    K = pieces[0].shape[1]
    joined = pieces[0].new_empty(N, K, P, Q)
    sample, row = 0, 0
    for piece in pieces:
        joined[sample : sample + len(piece), :, row : row + piece.shape[2]] = piece
        row += piece.shape[2]
        if row == P:
            sample, row = sample + len(piece), 0
    return joined
