"""The sums of a least-squares fit, in float64: G = A^T W A, b = A^T W y and c = y^T W y.

    G[(c,r,s), (c',r',s')] = sum_{n,p,q} weights * x[n,c,p+r,q+s] * x[n,c',p+r',q+s']

There are three ways to compute G, all over pieces of the images, so that the windows
(R * S * H * W numbers) are never stored at once.

- Without weights, an entry depends on the lag (r'-r, s'-s) and, only at the border, on (r, s): the
  sum of a product image for each of (2R-1)(2S-1)/2 lags; then, for each further r or s, the row or
  column that enters is added and the one that leaves is subtracted.
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
from .background import Background
from .pairs import ImagePair

Report: TypeAlias = Callable[[int], object]
#: Elements of windows held at a time; outputs of a block where lags are summed.
ROW_ELEMENTS = 2**20
LAG_PIXELS = 2**22
#: Elements of a few rows of windows, which fit in a cache.
BAND_ELEMENTS = 2**18
#: Rows of a matrix up to which its product with itself is cheaper row by row.
FEW_ROWS = 12
#: Nanoseconds on one core, assumed: one product of a dot product, the transforms per pixel, and the
#: fixed cost of sums by lags.
DOT, TRANSFORMS, LAG_OVERHEAD = 0.4, 25, 2e6
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
        varies: (2,): number of images in which rows differ, and in which columns differ.
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
    gram = torch.zeros(0, unknowns, unknowns, dtype=torch.float64, device=y.device)
    moments = gram.new_zeros(g.K, unknowns)
    if with_gram:
        gram, moments = _gram_and_moments(pair, background)
    wide = torch.float64
    if weights is None:
        squares = torch.linalg.vector_norm(y, dim=(0, 2, 3), dtype=wide).square()
        target_sum = y.sum((0, 2, 3), dtype=wide)
        weight_sum = gram.new_full((g.K,), y.numel() // g.K)
        pixels = weight_sum.clone()
    else:
        counts = weights.double().expand(y.shape)
        weighted = y * counts
        squares, target_sum = (weighted * y).sum((0, 2, 3)), weighted.sum((0, 2, 3))
        weight_sum, pixels = counts.sum((0, 2, 3)), (counts > 0).sum((0, 2, 3), dtype=wide)
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
        # From the whole image, because a block may be a single row.
        total.varies += total.varies.new_tensor([_changes(pair.x, axis) for axis in (-2, -1)])
    assert total is not None
    return total


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
    if (g.stride[0], g.stride[1]) != (1, 1) or g.Q < g.S:
        return False
    unknowns, pixels = g.group_C * g.R * g.S, g.groups * g.N * g.P * g.Q
    lags = g.group_C * g.R * (3 * g.S - 1)
    by_lags = pixels * g.group_C * min(DOT * lags, TRANSFORMS) + LAG_OVERHEAD
    if pixels * unknowns * (0.6 + 0.1 * unknowns) < by_lags:
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
        # The background's polynomials are additional targets.
        products = ops.lag_sums(torch.cat([filters, surfaces], 1), channels, (g.R, g.S))
        of_filters, cross = products.flatten(1).split([g.group_K, T])
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
    windows = x.unfold(2, g.R, g.stride[0]).unfold(3, g.S, g.stride[1])  # (N,C,P,Q,R,S), a view
    windows = windows.permute(1, 4, 5, 0, 2, 3)
    surfaces = background.images(pair.extent, pair.place, x.new_empty(0, dtype=torch.float64))
    size = elements + T + (g.group_K if shared else 1)
    step = max(1, BAND_ELEMENTS // (size * g.N * g.Q))
    matrix = torch.empty(size, g.N, step, g.Q, dtype=torch.float64, device=x.device)
    products = matrix.new_zeros(g.groups if shared else g.K, size, size)
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
    if len(rows) > FEW_ROWS:
        total.addmm_(rows, rows.T)
        return
    for i, row in enumerate(rows):
        products = rows[i:] @ row
        total[i, i:] += products
        total[i + 1 :, i] += products[1:]


def gram_matrix(x: torch.Tensor, R: int, S: int) -> torch.Tensor:
    """A^T A of the map from one filter (C, R, S) to its output, in float64, by lags.

    Args:
        x: (N, C, H, W), padding included, with at least S columns of output: W >= 2 * S - 1.
        R: rows of the window.
        S: its columns.

    Returns:
        (C*R*S, C*R*S), symmetric, on the device of x.
    """
    C = x.shape[1]
    gram = x.new_zeros(C, R, S, C, R, S, dtype=torch.float64)
    for lag, sums in enumerate(window_sums(x, x, R, S)):
        gram.diagonal(lag, 1, 4).copy_(sums)
        gram.diagonal(-lag, 1, 4).copy_(sums.permute(2, 3, 0, 1, 4))
    gram = gram.view(C * R * S, C * R * S)
    return (gram + gram.T) / 2


def window_sums(a: torch.Tensor, b: torch.Tensor, R: int, S: int) -> list[torch.Tensor]:
    """sum_{n, p < P, q < Q} a[n,c,p+r,q+s] * b[n,d,p+r',q+s'] for r <= r', by lag r' - r.

    Args:
        a: (N, C, H, W), W >= 2 * S - 1, of which P = H - R + 1 and Q = W - S + 1 are summed.
        b: (N, D, H, W).
        R, S: the window.

    Returns:
        For each lag from 0 to R - 1, (C, S, D, S, R - lag): c, s, d, s', r.
    """
    base = _first_rows(a, b, R, S)  # (C, S, R, D, S)
    if R == 1:
        return [base[:, :, 0, :, :, None]]
    change = _row_changes(a, b, R, S)  # (C, R - 1, S, D, R - 1, S)
    sums = []
    for lag in range(R):
        first = base[:, :, lag][..., None]
        steps = change.diagonal(lag, 1, 4)  # (C, S, D, S, R - 1 - lag)
        sums.append(torch.cat([first, first + steps.cumsum(-1)], -1))
    return sums


def _first_rows(a: torch.Tensor, b: torch.Tensor, R: int, S: int) -> torch.Tensor:
    """sum_{n, p < P, q < Q} a[n,c,p,q+s] * b[n,d,p+lag,q+t] as (C, S, R, D, S): c, s, lag, d, t.

    Columns S - 1 .. Q - 1 are under every tap s, so their sums depend only on t - s. The few
    columns left and right of them are added separately.
    """
    C, D = a.shape[1], b.shape[1]
    P, Q = a.shape[2] - R + 1, a.shape[3] - S + 1
    inner = ops.lag_sums(a[:, :, :P, S - 1 : Q], b, (R, 2 * S - 1))  # (C, D, R, 2S - 1)
    if S == 1:
        return inner.permute(0, 2, 1, 3)[:, None]
    # With w = q + s, the rest are columns w = s .. S - 2 and w = Q .. Q + s - 1: each column is
    # treated as an image of its own.
    sides = []
    for first, reach in ((0, 0), (Q, Q - S + 1)):
        here = a[:, :, :P, first : first + S - 1].transpose(2, 3).flatten(1, 2)
        there = b[:, :, :, reach : reach + 2 * S - 2].transpose(2, 3).flatten(1, 2)
        side = ops.lag_sums(here[:, :, None], there[:, :, None], (1, R))  # columns as rows
        sides.append(side.view(C, S - 1, D, 2 * S - 2, R).permute(0, 2, 4, 1, 3))
    before = F.pad(sides[0], (S - 1, S - 1))  # column v is at w' = v - (S - 1)
    after = F.pad(sides[1], (0, 2 * S - 2))  # column v is at w' = Q - S + 1 + v
    from_right = _diagonals(before, S).flip(3).cumsum(3).flip(3)
    left = F.pad(from_right, (0, 0, 0, 1))  # [s] sums w = s .. S - 2
    right = F.pad(_diagonals(after, S).cumsum(3), (0, 0, 1, 0))  # [s] sums w = Q .. Q + s - 1
    by_lag = inner[:, :, :, None] + left + right  # (C, D, R, S, 2S - 1): s and t - s + S - 1
    # [s, t] is element t - s + S - 1 of row s.
    *steps, step, _ = by_lag.stride()
    found = by_lag.as_strided((C, D, R, S, S), (*steps, step - 1, 1), S - 1)
    return found.permute(0, 3, 2, 1, 4)


def _diagonals(products: torch.Tensor, S: int) -> torch.Tensor:
    """[..., w, e] = products[..., w, w + e] for 2S - 1 values of e, a view."""
    products = products.contiguous()
    *outer, rows, _ = products.shape
    *steps, step, _ = products.stride()
    return products.as_strided((*outer, rows, 2 * S - 1), (*steps, step + 1, 1))


def _row_changes(a: torch.Tensor, b: torch.Tensor, R: int, S: int) -> torch.Tensor:
    """Change of the sums from (r, r') to (r + 1, r' + 1): rows P + r, P + r' enter, r, r' leave.

        out[c,r,s,d,r',s'] = sum_{n,q} a[n,c,P+r,q+s] * b[n,d,P+r',q+s'] - (the same without P)

    From (s, s') to (s + 1, s' + 1), columns Q + s and Q + s' enter likewise.

    Returns:
        (C, R - 1, S, D, R - 1, S).
    """
    (C, H, W), D = a.shape[1:], b.shape[1]
    P, Q, rows = H - R + 1, W - S + 1, R - 1
    # Rows that enter, then rows that leave, negated in `left`: (2N, C * rows, W).
    enter, leave = slice(P, P + rows), slice(0, rows)
    left = torch.cat([a[:, :, enter], -a[:, :, leave].double()]).flatten(1, 2)
    right = torch.cat([b[:, :, enter], b[:, :, leave]]).double().flatten(1, 2)
    found = left.new_empty(S, C * rows, D * rows, S)  # s, (c, r), (d, r'), s'
    found[0] = ops.lag_sums(left[:, :, None, :Q], right[:, :, None], (1, S))[:, :, 0]
    backward = ops.lag_sums(right[:, :, None, :Q], left[:, :, None], (1, S))[:, :, 0]
    found[1:, :, :, 0] = backward.permute(2, 1, 0)[1:]
    # Columns that enter, then those that leave: (4N, C * rows); (4N, D * rows * (S - 1)) for all s'
    enters, leaves = right[..., Q : Q + S - 1], right[..., : S - 1]
    there = torch.cat([enters, leaves]).flatten(1)
    for s in range(S - 1):
        here = torch.cat([left[..., Q + s], -left[..., s]])
        found[s + 1, ..., 1:] = found[s, ..., :-1] + (here.T @ there).view(*found.shape[1:3], S - 1)
    return found.view(S, C, rows, D, rows, S).permute(1, 2, 0, 3, 4, 5)
