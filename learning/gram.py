"""The sums of a least-squares fit, in float64: G = A^T W A, b = A^T W y and c = y^T W y.

    G[(c,r,s), (c',r',s')] = sum_{n,p,q} weights * x[n,c,p+r,q+s] * x[n,c',p+r',q+s']

Two ways to G, both over pieces of the images, so that the windows (R * S * H * W numbers) are never
written out. With weights, windows of a few thousand pixels at a time and their matrix product.
Without, an entry depends on the lag (r'-r, s'-s) and, through the border alone, on (r, s): the sum
of a product image for each of (2R-1)(2S-1)/2 lags, instead of (R*S)^2 / 2 of them, and then, for
each further row or column, what enters minus what leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F

from .. import ops
from .background import Background
from .pairs import ImagePair

Report: TypeAlias = Callable[[int], object]
#: Elements of the windows that are held at a time, and pixels where lags are summed.
ROW_ELEMENTS = 2**20
LAG_PIXELS = 2**20


@dataclass
class Sums:
    """What a fit needs to know of the images: D = C/groups * R * S + T unknowns of K filters.

    Attributes:
        gram: (groups, D, D), or (K, D, D) if the weights differ between filters; (0, D, D) where
            it was not asked for.
        moments: (K, D).
        squares: sum weights * y^2, (K,).
        target_sum: sum weights * y, (K,).
        weight_sum: sum weights, (K,).
        pixels: values of y whose weight is not zero, (K,).
        varies: whether x changes from row to row and from column to column, (2,), as counts.
    """

    gram: torch.Tensor
    moments: torch.Tensor
    squares: torch.Tensor
    target_sum: torch.Tensor
    weight_sum: torch.Tensor
    pixels: torch.Tensor
    varies: torch.Tensor

    @classmethod
    def zeros(cls, grams: int, weight_shape: tuple[int, ...], terms: int) -> Sums:
        """Those of no image, on the CPU."""
        filters, channels, R, S = weight_shape
        unknowns = channels * R * S + terms
        shapes = ((grams, unknowns, unknowns), (filters, unknowns), *[(filters,)] * 4, (2,))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device="cpu") for shape in shapes))

    def add(self, other: Sums) -> None:
        """Adds the sums over other pixels to these."""
        filters = len(self.moments)
        if self.gram.shape != other.gram.shape:
            self.gram, grown = (_per_filter(s.gram, filters) for s in (self, other))
            self.gram = self.gram + grown
        else:
            self.gram = self.gram + other.gram
        for name in ("moments", "squares", "target_sum", "weight_sum", "pixels", "varies"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to(self, device: torch.device | str) -> Sums:
        """The same on another device."""
        return Sums(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def _per_filter(gram: torch.Tensor, filters: int) -> torch.Tensor:
    return gram.repeat_interleave(filters // len(gram), dim=0)


def sums_of(pair: ImagePair, background: Background, with_gram: bool = True) -> Sums:
    """The sums over one pair in one piece; `gather` takes many, and any size."""
    weights = pair.weights
    y = pair.y.double()
    ones = y.new_ones(1).expand(y.shape) if weights is None else weights.double().expand(y.shape)
    weighted = y if weights is None else y * ones
    g = pair.geometry
    unknowns = g.group_C * g.R * g.S + len(background.terms)
    gram, moments = y.new_zeros(0, unknowns, unknowns), y.new_zeros(g.K, unknowns)
    if with_gram:
        gram, moments = (_by_lags if _has_lags(pair) else _by_rows)(pair, background)
    return Sums(
        gram,
        moments,
        squares=(weighted * y).sum((0, 2, 3)),
        target_sum=weighted.sum((0, 2, 3)),
        weight_sum=ones.sum((0, 2, 3)),
        pixels=(ones > 0).sum((0, 2, 3)).double(),
        varies=y.new_zeros(2),
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
        with_gram: False leaves G and b out, which are nearly all of the work.
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
        # Of the whole image: a block may be a single row.
        changes = [(pair.x != pair.x.narrow(axis, 0, 1)).any() for axis in (-2, -1)]
        total.varies = total.varies + torch.stack(changes).double()
    assert total is not None
    return total


def block_pixels(pair: ImagePair, background: Background) -> int:
    """Outputs of a block for `sums_of`."""
    g = pair.geometry
    if _has_lags(pair):
        return max(LAG_PIXELS, g.R * g.S * g.Q)  # fewer rows cost less than their borders
    return max(1, ROW_ELEMENTS // (g.group_C * g.R * g.S + len(background.terms)))


def _has_lags(pair: ImagePair) -> bool:
    """Whether sums by lags are possible, and not more work."""
    g = pair.geometry
    return pair.weights is None and g.Q >= g.S


def _by_lags(pair: ImagePair, background: Background) -> tuple[torch.Tensor, torch.Tensor]:
    """gram (groups, D, D) and moments (K, D) of a pair without weights."""
    g, T = pair.geometry, len(background.terms)
    (top, bottom), (left, right) = g.padding
    x = F.pad(pair.x, (left, right, top, bottom))
    y = pair.y.double()
    images = background.images(pair.extent, pair.place, y)
    surfaces = images.expand(g.N, T, g.P, g.Q)
    constant = g.N * images.flatten(1) @ images.flatten(1).T
    grams, moments = [], []
    for group in range(g.groups):
        channels = x[:, group * g.group_C : (group + 1) * g.group_C]
        filters = y[:, group * g.group_K : (group + 1) * g.group_K]
        kernel = gram_matrix(channels, g.R, g.S)
        # The background is a few targets more.
        products = ops.lag_sums(torch.cat([filters, surfaces], 1), channels, (g.R, g.S))
        of_filters, cross = products.flatten(1).split([g.group_K, T])
        upper = torch.cat([kernel, cross.T], 1)
        grams.append(torch.cat([upper, torch.cat([cross, constant], 1)], 0))
        moments.append(of_filters)
    of_background = background.moments(y, pair.place)
    return torch.stack(grams), torch.cat([torch.cat(moments), of_background], 1)


def _by_rows(pair: ImagePair, background: Background) -> tuple[torch.Tensor, torch.Tensor]:
    """gram (groups or K, D, D) and moments (K, D) of any pair."""
    g = pair.geometry
    (top, bottom), (left, right) = g.padding
    x = F.pad(pair.x.double(), (left, right, top, bottom))
    windows = x.unfold(2, g.R, 1).unfold(3, g.S, 1)  # (N, C, P, Q, R, S), a view
    windows = windows.permute(1, 4, 5, 0, 2, 3).reshape(g.groups, g.group_C * g.R * g.S, -1)
    surfaces = background.images(pair.extent, pair.place, x)[:, None]
    surfaces = surfaces.expand(-1, g.N, -1, -1).reshape(1, len(surfaces), g.N * g.P * g.Q)
    rows = torch.cat([windows, surfaces.expand(g.groups, -1, -1)], 1)  # (groups, D, pixels)
    weights = x.new_ones(1).expand(g.N, 1, g.P, g.Q) if pair.weights is None else pair.weights
    shared = weights.shape[1] == 1
    root = weights.double().sqrt().transpose(0, 1).flatten(1)  # (1 or K, pixels)
    y = pair.y.double().transpose(0, 1).flatten(1) * root  # (K, pixels)
    grams, moments = [], []
    for k in range(g.K):
        if not shared or k % g.group_K == 0:
            scaled = rows[k // g.group_K] * root[0 if shared else k]
            grams.append(scaled @ scaled.T)
        moments.append(scaled @ y[k])
    return torch.stack(grams), torch.stack(moments)


def gram_matrix(x: torch.Tensor, R: int, S: int) -> torch.Tensor:
    """A^T A of the map from one filter (C, R, S) to its output, in float64, by lags.

    Args:
        x: (N, C, H, W), padding included, with at least S columns of output: W >= 2 * S - 1.
        R: rows of the window.
        S: its columns.

    Returns:
        (C*R*S, C*R*S), symmetric, on the device of x.
    """
    C, P = x.shape[1], x.shape[2] - R + 1
    gram = x.new_zeros(C, R, S, C, R, S, dtype=torch.float64)
    base = _first_rows(x, R, S)
    top, bottom = (_row_products(x[:, :, first : first + R - 1], S) for first in (0, P))
    for lag in range(R):
        sums = base[:, :, lag]  # (C, S, C, S): of rows 0 up to P with rows lag up to P + lag
        for r in range(R - lag):
            if r:  # row P + r - 1 enters, row r - 1 leaves
                sums = sums + bottom[:, r - 1, :, :, r - 1 + lag] - top[:, r - 1, :, :, r - 1 + lag]
            gram[:, r, :, :, r + lag] = sums
            gram[:, r + lag, :, :, r] = sums.permute(2, 3, 0, 1)
    gram = gram.reshape(C * R * S, C * R * S)
    return (gram + gram.T) / 2


def _first_rows(x: torch.Tensor, R: int, S: int) -> torch.Tensor:
    """sum_{n, p < P, q < Q} x[n,c,p,q+s] * x[n,d,p+lag,q+t] as (C, S, R, C, S): c, s, lag, d, t.

    Columns S - 1 up to Q are under every tap s: their sums depend on t - s alone. What is left and
    right of them is a few columns.
    """
    P, Q = x.shape[2] - R + 1, x.shape[3] - S + 1
    inner = ops.lag_sums(x[:, :, :P, S - 1 : Q], x, (R, 2 * S - 1))  # (C, C, R, 2S - 1)
    # With w = q + s the rest is w from s up to S - 1, and from Q up to Q + s.
    edges = x.double()
    lagged = edges.unfold(2, P, 1)  # (N, C, R, W, P), a view: rows lag up to lag + P
    sides = []
    for first, reach in ((0, 0), (Q, Q - S + 1)):
        here = edges[:, :, :P, first : first + S - 1]
        there = lagged[:, :, :, reach : reach + 2 * S - 2]
        sides.append(torch.einsum("ncpw,ndrvp->cdrwv", here, there))
    before = F.pad(sides[0], (S - 1, S - 1))  # column v is at w' = v - (S - 1)
    after = F.pad(sides[1], (0, 2 * S - 2))  # column v is at w' = Q - S + 1 + v
    from_right = _diagonals(before, S).flip(3).cumsum(3).flip(3)
    left = F.pad(from_right, (0, 0, 0, 1))  # [s] sums w from s up to S - 1
    right = F.pad(_diagonals(after, S).cumsum(3), (0, 0, 1, 0))  # [s] sums w from Q up to Q + s
    by_lag = inner[:, :, :, None] + left + right  # (C, C, R, S, 2S - 1): s and t - s + S - 1
    s = torch.arange(S, device=x.device)
    found = by_lag[:, :, :, s[:, None], s[None, :] - s[:, None] + S - 1]
    return found.permute(0, 3, 2, 1, 4)


def _diagonals(products: torch.Tensor, S: int) -> torch.Tensor:
    """[..., w, e] = products[..., w, w + e] for 2S - 1 values of e."""
    w = torch.arange(products.shape[-2], device=products.device)[:, None]
    e = torch.arange(2 * S - 1, device=products.device)
    return products[..., w, w + e]


def _row_products(rows: torch.Tensor, S: int) -> torch.Tensor:
    """sum_{n,q} rows[n,c,h,q+s] * rows[n,d,i,q+t] as (C, h, S, C, i, S)."""
    C, count = rows.shape[1], rows.shape[2]
    total = rows.new_zeros(C * count * S, C * count * S, dtype=torch.float64)
    Q = rows.shape[3] - S + 1
    step = max(1, ROW_ELEMENTS // max(1, C * count * S))
    for image in rows:
        for q in range(0, Q, step):
            piece = image[..., q : min(Q, q + step) + S - 1].double().unfold(2, S, 1)
            windows = piece.permute(0, 1, 3, 2).reshape(C * count * S, piece.shape[2])
            total += windows @ windows.T
    return total.view(C, count, S, C, count, S)
