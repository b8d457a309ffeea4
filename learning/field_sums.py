"""Sums of the normal equations of a kernel that varies over the image, see field.py.

The normal matrix follows from G_m = sum_{p,q} L_m(p,q) x[p+r,q+s] x[p+r',q+s'], because the
product of two polynomials is a sum of polynomials. With h = p + r and w = q + s, L_m(h - r, w - s)
is a sum of L_n(h, w) with factors that depend only on r and s. So the sums over lags of the images
L_n * x with x give all G_m, exactly up to the border, at the cost of a few transforms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import ops
from . import polynomials
from .background import Background, Place
from .gram import ROW_ELEMENTS
from .lags import window_sums
from .pairs import ImagePair, padded_image

#: Columns of a symmetric product computed at a time, from the diagonal down.
BLOCK_COLUMNS = 64


@dataclass(frozen=True)
class FieldSums:
    """G (D, D) and b (D,) of T * R * S + B unknowns."""

    gram: torch.Tensor
    moments: torch.Tensor

    @classmethod
    def of(cls, pairs: list[ImagePair], background: Background, degree: int) -> FieldSums:
        """The sums of all pairs; `degree` is the higher of the kernel's and the scale's."""
        parts = [_sums_of(pair, background, degree) for pair in pairs]
        gram, moments = parts[0]
        for more_gram, more_moments in parts[1:]:
            gram, moments = gram + more_gram, moments + more_moments
        return cls(gram, moments)


def _sums_of(
    pair: ImagePair, background: Background, degree: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """G and b of one pair."""
    R, S = pair.window
    x = padded_image(pair.x, pair.padding, "zeros")
    y = pair.y
    counts = None if pair.weights is None else pair.weights.double()
    y = y if counts is None else torch.where(counts > 0, y, y.new_zeros(())) * counts
    surfaces = Background(degree).images(pair.extent, pair.place, y)  # (T, P, Q)
    behind = background.images(pair.extent, pair.place, y)  # (B, P, Q)
    T, B, E = len(surfaces), len(behind), R * S
    of_kernel = ops.lag_sums(surfaces[None] * y, x, (R, S)).flatten()
    of_background = (behind * y[0]).sum((1, 2))
    gram = x.new_zeros(T * E + B, T * E + B)
    moments_of = _weighted_windows(pair, x, 2 * degree)  # (M, E, E)
    products = polynomials.products(degree, degree).to(x)
    kernel = torch.einsum("tum,mef->teuf", products, moments_of)
    gram[: T * E, : T * E] = kernel.reshape(T * E, T * E)
    if B:
        weighted = behind if counts is None else behind * counts[0]
        for b in range(B):
            cross = ops.lag_sums((weighted[b] * surfaces)[None], x, (R, S)).flatten()
            gram[T * E + b, : T * E] = cross
            gram[: T * E, T * E + b] = cross
        gram[T * E :, T * E :] = weighted.flatten(1) @ behind.flatten(1).T
    return gram, torch.cat([of_kernel, of_background])


def _weighted_windows(pair: ImagePair, x: torch.Tensor, order: int) -> torch.Tensor:
    """G_m = sum_{p,q} weights * L_m(p,q) * window * window^T, m up to an order: (M, E, E)."""
    few = pair.weights is not None and bool(((pair.weights == 0) | (pair.weights == 1)).all())
    P, Q = pair.extent
    S = pair.window[1]
    out = (pair.weights == 0).sum() if few and pair.weights is not None else 0
    if Q < S or (pair.weights is not None and (not few or int(out) * 8 > P * Q)):
        return _by_rows(pair, x, order)
    found = _by_lags(pair, x, order)
    if pair.weights is not None:
        p, q = (pair.weights[0, 0] == 0).nonzero().T
        surfaces = Background(order).images(pair.extent, pair.place, x)
        windows = x[0, 0].unfold(0, pair.window[0], 1).unfold(1, S, 1)
        step = max(1, ROW_ELEMENTS // found.shape[1])
        for first in range(0, len(p), step):
            at = p[first : first + step], q[first : first + step]
            rows = windows[at].flatten(1)
            for m, surface in enumerate(surfaces):
                found[m] -= (rows * surface[at][:, None]).T @ rows
    return found


def _by_lags(pair: ImagePair, x: torch.Tensor, order: int) -> torch.Tensor:
    """`_weighted_windows` of all pixels with weight 1, from sums over lags."""
    R, S = pair.window
    P, Q = pair.place.size
    row, column = pair.place.origin
    H, W = x.shape[-2:]
    place = Place((row, column), (P, Q))
    # The polynomials continue beyond the output, over all of x.
    images = Background(order).images((H, W), place, x)
    terms = Background(order).terms
    lags = window_sums(x * images[None], x, R, S)
    by_row = polynomials.shifts(order, R, P)  # (R, order + 1, order + 1)
    by_column = polynomials.shifts(order, S, Q)  # (S, order + 1, order + 1)
    i, j = ([pair_of[axis] for pair_of in terms] for axis in (0, 1))
    moved = by_row[:, i][:, :, i][:, None] * by_column[:, j][:, :, j][None]  # (R, S, M, M)
    moved = moved.to(x)
    found = x.new_zeros(len(terms), R, S, R, S)
    for lag, sums in enumerate(lags):
        part = torch.einsum("rsmn,nstr->mstr", moved[: R - lag], sums[:, :, 0])
        found.diagonal(lag, 1, 3).copy_(part)
        found.diagonal(-lag, 1, 3).copy_(part.transpose(1, 2))
    found = found.view(len(terms), R * S, R * S)
    return (found + found.mT) / 2


def _by_rows(pair: ImagePair, x: torch.Tensor, order: int) -> torch.Tensor:
    """`_weighted_windows` row by row: within a row, a polynomial in rows is a number."""
    R, S = pair.window
    P, Q = pair.extent
    weights = x.new_ones(P, Q) if pair.weights is None else pair.weights[0, 0].double()
    in_rows, in_columns = Background(order)._along(pair.extent, pair.place, x)
    terms = Background(order).terms
    found = x.new_zeros(len(terms), R * S, R * S)
    of_row = [[m for m, (_, b) in enumerate(terms) if b == degree] for degree in range(order + 1)]
    part = x.new_zeros(R * S, R * S)  # only the lower triangle is used
    for p in range(P):
        rows = x[0, 0, p : p + R].unfold(1, S, 1).permute(0, 2, 1).reshape(R * S, Q)
        for degree, members in enumerate(of_row):
            scaled = rows * (weights[p] * in_columns[degree])
            for first in range(0, R * S, BLOCK_COLUMNS):
                columns = slice(first, first + BLOCK_COLUMNS)
                torch.mm(rows[first:], scaled[columns].T, out=part[first:, columns])
            for m in members:
                found[m].add_(part, alpha=float(in_rows[terms[m][0], p]))
    lower = found.tril()
    return lower + lower.tril(-1).mT
