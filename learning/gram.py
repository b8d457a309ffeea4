"""The sums of a least-squares fit, in float64: G = A^T W A, b = A^T W y and c = y^T W y.

    G[(c,r,s), (c',r',s')] = sum_{n,p,q} weights * x[n,c,p+r,q+s] * x[n,c',p+r',q+s']

There are three ways to compute G, all over pieces of the images, so that the windows
(R * S * H * W numbers) are never stored at once.

- Without weights, from sums of products by lag (`lags.py`).
- If a mask leaves few pixels out: the same, minus the products of their windows.
- With other weights: matrix products of the windows of a few thousand pixels at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F

from .. import ops
from ..ops.backend import runs_kernels
from .background import Background
from .lags import by_dots, gram_matrix, takes_dots
from .pairs import ImagePair
from .totals import row_blocks, sums_and_squares

Report: TypeAlias = Callable[[int], object]
#: Elements of windows held at a time; outputs of a block where lags are summed.
ROW_ELEMENTS = 2**20
LAG_PIXELS = 2**22
#: Elements of a few rows of windows, which fit in a cache.
BAND_ELEMENTS = 2**18
#: Rows of a matrix up to which its product with itself is cheaper row by row.
FEW_ROWS = 12
#: Elements of a row from which that is so.
LONG_ROWS = 4096
#: Nanoseconds on one core, assumed: one product of a dot product, the transforms per pixel, and the
#: fixed cost of sums by lags, with transforms and with dot products.
DOT, TRANSFORMS, LAG_OVERHEAD, DOT_OVERHEAD = 0.4, 25, 2e6, 3e5
#: If subtracting the windows of masked pixels leaves less than this fraction of a sum of squares,
#: cancellation has lost too many digits.
CANCELLED = 1e-4


@dataclass
class Sums:
    """The sums of a fit: K filters of D = C/groups * R * S + T unknowns.

    Attributes:
        gram: (groups, D, D), or (K, D, D) if the weights differ between filters; (0, D, D) where
            it was not computed.
        moments: (K, D).
        squares: sum weights * y^2, (K,).
        target_sum: sum weights * y, (K,).
        weight_sum: sum weights, (K,).
        pixels: number of values of y whose weight is not zero, (K,).
        varies: (2,): images in which rows differ, and in which columns differ; `gather` leaves 0.
        noise: share of the noise of x in the diagonal of gram, (groups or K, D), or zeros.
    """

    gram: torch.Tensor
    moments: torch.Tensor
    squares: torch.Tensor
    target_sum: torch.Tensor
    weight_sum: torch.Tensor
    pixels: torch.Tensor
    varies: torch.Tensor
    noise: torch.Tensor

    def noiseless(self, elements: int) -> tuple[torch.Tensor, int]:
        """The gram without the noise of x, and the number of directions that are mostly noise.

        In units of the noise, one is subtracted from each eigenvalue, but at most half of it:
        in directions with more noise than image, chance could make the difference negative.

        Args:
            elements: of a filter's kernel; the other unknowns are the background's.
        """
        if not bool((self.noise > 0).any()):
            return self.gram, 0
        found, mostly_noise = self.gram.clone(), 0
        for gram, noise in zip(found, self.noise, strict=True):
            root = noise[:elements].clamp(min=1e-300).sqrt()
            kernel, cross = gram[:elements, :elements], gram[:elements, elements:]
            alone = kernel
            if cross.shape[1]:
                alone = kernel - cross @ torch.linalg.pinv(gram[elements:, elements:]) @ cross.T
            values, vectors = torch.linalg.eigh(alone / root[:, None] / root)
            mostly_noise = max(mostly_noise, int((values < 2).sum()))
            taken = (vectors * (values.clamp(min=0) / 2).clamp(max=1)) @ vectors.T
            kernel -= taken * root[:, None] * root
        return found, mostly_noise

    @classmethod
    def zeros(cls, grams: int, weight_shape: tuple[int, ...], terms: int) -> Sums:
        """Sums over no image, on the CPU."""
        filters, channels, R, S = weight_shape
        unknowns = channels * R * S + terms
        shapes = ((grams, unknowns, unknowns), (filters, unknowns), *[(filters,)] * 4, (2,))
        shapes += ((grams, unknowns),)
        return cls(*(torch.zeros(shape, dtype=torch.float64, device="cpu") for shape in shapes))

    def add(self, other: Sums) -> None:
        """Adds the sums over other pixels to these."""
        filters = len(self.moments)
        if self.gram.shape != other.gram.shape:
            for sums in (self, other):
                sums.gram, sums.noise = (_per_filter(m, filters) for m in (sums.gram, sums.noise))
        for name in (
            "gram",
            "noise",
            "moments",
            "squares",
            "target_sum",
            "weight_sum",
            "pixels",
            "varies",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to(self, device: torch.device | str) -> Sums:
        """These sums on another device."""
        return Sums(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def _per_filter(gram: torch.Tensor, filters: int) -> torch.Tensor:
    return gram.repeat_interleave(filters // len(gram), dim=0)


def sums_of(pair: ImagePair, background: Background, with_gram: bool = True) -> Sums:
    """The sums over one pair in one piece; `gather` takes several pairs of any size."""
    g, weights, y = pair.geometry, pair.weights, pair.y
    unknowns = g.group_C * g.R * g.S + len(background.terms)
    if with_gram:
        gram, moments = _gram_and_moments(pair, background)
    else:
        gram = torch.zeros(0, unknowns, unknowns, dtype=torch.float64, device=y.device)
        moments = gram.new_zeros(g.K, unknowns)
    if weights is None:
        target_sum, squares = sums_and_squares(y)
        weight_sum = pixels = gram.new_full((g.K,), y.numel() // g.K)
    else:
        weight_sum, target_sum, squares, pixels = gram.new_zeros(4, g.K)
        for rows in row_blocks(y):
            counts = weights[:, :, rows].double().expand(y[:, :, rows].shape)
            weighted = y[:, :, rows] * counts
            weight_sum += counts.sum((0, 2, 3))
            target_sum += weighted.sum((0, 2, 3))
            squares += (weighted * y[:, :, rows]).sum((0, 2, 3))
            pixels += (counts > 0).sum((0, 2, 3))
    return Sums(
        gram,
        moments,
        squares,
        target_sum,
        weight_sum,
        pixels,
        varies=gram.new_zeros(2),
        noise=_noise(pair, len(gram), unknowns),
    )


def gather(
    pairs: list[ImagePair],
    background: Background,
    with_gram: bool = True,
    report: Report | None = None,
) -> Sums:
    """The sums over all pairs, a block of rows at a time.

    Args:
        pairs: at least one.
        background: fitted too.
        with_gram: False leaves out G and b, which are most of the work.
        report: called with the number of outputs after each block.
    """
    total: Sums | None = None
    for pair in pairs:
        for block in pair.blocks(block_pixels(pair, background)):
            part = sums_of(block, background, with_gram)
            if total is None:
                total = part
            else:
                total.add(part)
            if report is not None:
                report(block.y.numel())
    assert total is not None
    return total


def varies(pair: ImagePair) -> torch.Tensor:
    """Whether rows of x differ, and whether columns do, (2,) as numbers for `Sums.varies`."""
    found = [_changes(pair.x, axis) for axis in (-2, -1)]
    return torch.tensor(found, dtype=torch.float64, device=pair.x.device)


def _changes(x: torch.Tensor, axis: int) -> bool:
    """Whether x changes along an axis; a corner is checked first, which is nearly always enough."""
    parts = x[..., :16, :16], x
    return any(bool((part != part.narrow(axis, 0, 1)).any()) for part in parts)


def block_pixels(pair: ImagePair, background: Background) -> int:
    """Outputs of a block for `sums_of`."""
    g = pair.geometry
    if _has_lags(pair):
        return max(LAG_PIXELS, g.R * g.S * g.Q)  # with fewer rows, borders dominate the cost
    return max(1, ROW_ELEMENTS // (g.group_C * g.R * g.S + len(background.terms)))


def _has_lags(pair: ImagePair) -> bool:
    """Whether G is summed by lags, minus the windows of masked pixels if there are any."""
    g = pair.geometry
    if g.given_stride != (1, 1) or g.Q < g.S:
        return False
    unknowns, pixels = g.group_C * g.R * g.S, g.groups * g.N * g.P * g.Q
    if takes_dots(g.group_C, g.group_K, g.R, g.S, pair.x.device):
        by_lags = pixels * DOT * g.R * (2 * g.S - 1) + DOT_OVERHEAD
    else:
        lags = g.group_C * g.R * (3 * g.S - 1)
        by_lags = pixels * g.group_C * min(DOT * lags, TRANSFORMS) + LAG_OVERHEAD
    by_rows = pixels * unknowns * (0.6 + 0.1 * unknowns)
    if by_rows < by_lags and not runs_kernels(pair.x.device):  # rows are many small products
        return False
    if pair.weights is None:
        return True
    return pair.weights.shape[1] == 1 and 2 * len(_left_out(pair)) <= g.N * g.P * g.Q


def _left_out(pair: ImagePair) -> torch.Tensor:
    """Indices (n, p, q) of pixels of weight zero, (M, 3); all pixels if a weight is not 0 or 1."""
    assert pair.weights is not None
    weights = pair.weights[:, 0]
    if bool(((weights != 0) & (weights != 1)).any()):
        return weights.new_zeros(1).expand(weights.numel())
    return (weights == 0).nonzero()


def _gram_and_moments(pair: ImagePair, background: Background) -> tuple[torch.Tensor, torch.Tensor]:
    """gram (groups or K, D, D) and moments (K, D)."""
    if not _has_lags(pair):
        return _by_rows(pair, background)
    if pair.weights is None:
        return _by_lags(pair, background)
    target = torch.where(pair.weights > 0, pair.y, pair.y.new_zeros(()))
    gram, moments = _by_lags(replace(pair, y=target), background)
    largest = gram.diagonal(dim1=1, dim2=2).clone()
    where = _left_out(pair)
    step = max(1, ROW_ELEMENTS // gram.shape[-1])
    for first in range(0, len(where), step):
        rows = _windows_at(pair, background, where[first : first + step])
        gram -= rows @ rows.mT
    if bool((gram.diagonal(dim1=1, dim2=2) < CANCELLED * largest).any()):
        return _by_rows(pair, background)  # x is huge at masked pixels
    return gram, moments


def _windows_at(pair: ImagePair, background: Background, where: torch.Tensor) -> torch.Tensor:
    """Windows and background of some pixels (n, p, q): (groups, D, M)."""
    g = pair.geometry
    (top, bottom), (left, right) = g.padding
    n, p, q = where.T
    x = F.pad(pair.x, (left, right, top, bottom))
    windows = x.unfold(2, g.R, 1).unfold(3, g.S, 1).permute(0, 2, 3, 1, 4, 5)[n, p, q]
    windows = windows.double().reshape(len(where), g.groups, -1).permute(1, 2, 0)
    surfaces = background.images(pair.extent, pair.place, windows)[:, p, q]
    return torch.cat([windows, surfaces.expand(g.groups, -1, -1)], 1)


def _noise(pair: ImagePair, grams: int, unknowns: int) -> torch.Tensor:
    """(grams, D): sum weights * variance of x under each element of the window."""
    noise = pair.x.new_zeros(grams, unknowns, dtype=torch.float64)
    if pair.x_variance is None or not grams:
        return noise
    g = pair.geometry
    (top, bottom), (left, right) = g.padding
    variance = F.pad(pair.x_variance.double(), (left, right, top, bottom))
    weights = variance.new_ones(1, 1, 1, 1) if pair.weights is None else pair.weights.double()
    weights = weights.expand(g.N, -1, g.P, g.Q)
    apart = variance.new_zeros(  # the weights with stride - 1 zeros between them
        g.N, weights.shape[1], (g.P - 1) * g.stride[0] + 1, (g.Q - 1) * g.stride[1] + 1
    )
    apart[..., :: g.stride[0], :: g.stride[1]] = weights
    reach = apart.shape[-2] + g.R - 1, apart.shape[-1] + g.S - 1
    sums = ops.lag_sums(apart, variance[..., : reach[0], : reach[1]], (g.R, g.S))
    for i in range(grams):
        group = i * g.groups // grams
        channels = sums[min(i, len(sums) - 1) if len(sums) > 1 else 0]
        channels = channels.expand(g.C, g.R, g.S)[group * g.group_C : (group + 1) * g.group_C]
        noise[i, : channels.numel()] = channels.flatten()
    return noise


def _by_lags(pair: ImagePair, background: Background) -> tuple[torch.Tensor, torch.Tensor]:
    """gram (groups, D, D) and moments (K, D) of a pair without weights."""
    g, T = pair.geometry, len(background.terms)
    (top, bottom), (left, right) = g.padding
    x = F.pad(pair.x, (left, right, top, bottom)) if any((top, bottom, left, right)) else pair.x
    y, surfaces = pair.y, x.new_zeros(0, g.P, g.Q, dtype=torch.float64)
    if T:
        y, surfaces = y.double(), background.images(pair.extent, pair.place, surfaces)
    constant = g.N * surfaces.flatten(1) @ surfaces.flatten(1).T
    dots = takes_dots(g.group_C, g.group_K + T, g.R, g.S, x.device)
    grams, moments = [], []
    for group in range(g.groups):
        channels = x[:, group * g.group_C : (group + 1) * g.group_C]
        targets = y[:, group * g.group_K : (group + 1) * g.group_K]
        if T:  # the background's polynomials are additional targets
            targets = torch.cat([targets, surfaces.expand(g.N, T, g.P, g.Q)], 1)
        if dots:
            kernel, products = by_dots(channels, targets, g.R, g.S)
        else:
            kernel = gram_matrix(channels, g.R, g.S)
            products = ops.lag_sums(targets, channels, (g.R, g.S)).flatten(1)
        of_filters, cross = products.split([g.group_K, T])
        upper = torch.cat([kernel, cross.T], 1)
        grams.append(torch.cat([upper, torch.cat([cross, constant], 1)], 0))
        moments.append(of_filters)
    of_background = background.moments(y, pair.place)
    return torch.stack(grams), torch.cat([torch.cat(moments), of_background], 1)


def _by_rows(pair: ImagePair, background: Background) -> tuple[torch.Tensor, torch.Tensor]:
    """gram (groups or K, D, D) and moments (K, D) of any pair.

    Windows, background and targets are the rows of one matrix, for a few image rows at a time. Both
    results are parts of its product with its transpose.
    """
    g, T = pair.geometry, len(background.terms)
    elements, shared = g.group_C * g.R * g.S, pair.weights is None or pair.weights.shape[1] == 1
    (top, bottom), (left, right) = g.padding
    x = F.pad(pair.x, (left, right, top, bottom)) if any((top, bottom, left, right)) else pair.x
    down, across = g.given_stride
    windows = x.unfold(2, g.R, down).unfold(3, g.S, across)  # (N,C,P,Q,R,S), a view
    windows = windows.permute(1, 4, 5, 0, 2, 3)
    size = elements + T + (g.group_K if shared else 1)
    step = min(g.P, max(1, BAND_ELEMENTS // (size * g.N * g.Q)))
    matrix = torch.empty(size, g.N, step, g.Q, dtype=torch.float64, device=x.device)
    products = matrix.new_zeros(g.groups if shared else g.K, size, size)
    surfaces = background.images(pair.extent, pair.place, matrix) if T else None
    for first in range(0, g.P, step):
        band = slice(first, min(first + step, g.P))
        rows = matrix[:, :, : band.stop - first]
        for i in range(len(products)):
            group = i if shared else i // g.group_K
            channels = slice(group * g.group_C, (group + 1) * g.group_C)
            filters = slice(i * g.group_K, (i + 1) * g.group_K) if shared else slice(i, i + 1)
            rows[:elements].view(g.group_C, g.R, g.S, *rows.shape[1:]).copy_(
                windows[channels, :, :, :, band]
            )
            if surfaces is not None:
                rows[elements : elements + T] = surfaces[:, None, band]
            rows[elements + T :] = pair.y[:, filters, band].transpose(0, 1)
            if pair.weights is not None:
                counts = pair.weights[:, 0 if shared else i, band]
                rows *= counts.double().sqrt()
            _add_products(rows.flatten(1), products[i])
    known = elements + T
    return products[:, :known, :known], products[:, known:, :known].flatten(0, 1)


def _add_products(rows: torch.Tensor, total: torch.Tensor) -> None:
    """total += rows @ rows.T; for few rows only half of the products, which is symmetric."""
    if len(rows) > FEW_ROWS or rows.shape[1] < LONG_ROWS:
        total.addmm_(rows, rows.T)
        return
    for i, row in enumerate(rows):
        products = rows[i:] @ row
        total[i, i:] += products
        total[i + 1 :, i] += products[1:]
