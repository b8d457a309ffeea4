"""Correlations on a CPU by fast Fourier transforms of tiles, in float64.

    lag_sums    out[c,d,r,s] = sum_{n,p,q} a[n,c,p,q] * b[n,d,p+r,q+s]
    correlate   y[n,k,p,q]   = sum_{c,r,s} x[n,c,p+r,q+s] * weight[k,c,r,s]

Tiles overlap by the window's extent less one, so that results which wrap around are discarded: up
to the border, the result is exact but for rounding. Tiles are small enough for a cache.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from .arguments import Pair

#: Elements that are transformed at a time, and the longest side of a tile.
TILE_ELEMENTS = 2**19
LONGEST_TRANSFORM = 512


def correlate(x: torch.Tensor, weight: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Cross-correlation without padding, stride 1.

    Args:
        x: (N, C, H, W), on a CPU.
        weight: (K, C/groups, R, S).
        groups: channel groups.

    Returns:
        (N, K, H - R + 1, W - S + 1) in x's dtype; computed in float64.
    """
    N, C, H, W = x.shape
    K, _, R, S = weight.shape
    P, Q = H - R + 1, W - S + 1
    high, wide = transform_length(P, R), transform_length(Q, S)
    rows, columns = high - R + 1, wide - S + 1
    across = -(-Q // columns)
    size = (high, wide)
    # (groups, K/groups, C/groups, high, wide / 2 + 1)
    taps = torch.fft.rfft2(weight.double(), s=size).conj().unflatten(0, (groups, K // groups))
    y = x.new_empty(N, K, P, Q)
    for n in range(N):
        for top in range(0, P, rows):
            reach = (across - 1) * columns + wide - W
            tiles = F.pad(x[n, :, top : top + high].double(), (0, reach)).unfold(2, wide, columns)
            spectra = torch.fft.rfft2(tiles.movedim(2, 0), s=size)  # (across, C, ...)
            spectra = spectra.unflatten(1, (groups, 1, C // groups))
            found = (spectra * taps).sum(3) if C > groups else spectra[:, :, :, 0] * taps[:, :, 0]
            part = torch.fft.irfft2(found.flatten(1, 2), s=size)[..., :rows, :columns]
            part = part.movedim(0, 2).flatten(2, 3)  # (K, rows, across * columns)
            y[n, :, top : top + rows] = part[:, : P - top, :Q]
    return y


def pays(geometry_window: Pair, channels: int, filters: int, groups: int) -> bool:
    """Whether transforms cost less than direct products for this window and these channels."""
    pairs = channels * filters // groups
    direct = geometry_window[0] * geometry_window[1] * pairs
    return direct > 14 * (channels + filters) + 2 * pairs


def lag_sums(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """`ops.lag_sums` of tensors on a CPU: multiplies the spectra of tiles and sums them.

    A tile of b has T + R - 1 rows and the tile of a T, so no lag below R wraps around.
    """
    R, S = lags
    N, C, P, Q = a.shape
    D = b.shape[1]
    high, wide = transform_length(P, R), transform_length(Q, S)
    rows, columns = high - R + 1, wide - S + 1
    across = -(-Q // columns)
    size = (high, wide)
    spectrum = a.new_zeros(C, D, high, wide // 2 + 1, dtype=torch.complex128)
    samples = max(1, TILE_ELEMENTS // (across * high * wide * max(C, D)))
    for first in range(0, N, samples):
        of_a, of_b = a[first : first + samples], b[first : first + samples]
        for top in range(0, P, rows):
            left = F.pad(of_a[:, :, top : top + rows].double(), (0, across * columns - Q))
            left = left.unfold(3, columns, columns).movedim(3, 1)  # (N, across, C, rows, columns)
            reach = (across - 1) * columns + wide - b.shape[3]
            right = F.pad(of_b[:, :, top : top + high].double(), (0, reach))
            right = right.unfold(3, wide, columns).movedim(3, 1)
            _multiply(
                torch.fft.rfft2(left, s=size).flatten(0, 1),
                torch.fft.rfft2(right, s=size).flatten(0, 1),
                spectrum,
            )
    return torch.fft.irfft2(spectrum, s=size)[..., :R, :S].contiguous()


def _multiply(left: torch.Tensor, right: torch.Tensor, total: torch.Tensor) -> None:
    """total[c,d] += sum_t conj(left[t,c]) * right[t,d], element by element of the spectra."""
    C, D = total.shape[:2]
    if C * D <= 4 * (C + D):
        for c in range(C):
            for d in range(D):
                total[c, d] += (left[:, c].conj() * right[:, d]).sum(0)
        return
    # (frequency, c, t) @ (frequency, t, d)
    matrix = left.flatten(2).permute(2, 1, 0).conj() @ right.flatten(2).permute(2, 0, 1)
    total += matrix.permute(1, 2, 0).reshape(total.shape)


@functools.cache
def transform_length(extent: int, lags: int) -> int:
    """The cheapest transform length for the tiles of one axis."""
    lengths = [n for n in _smooth_numbers(extent + lags - 1, lags) if n >= lags]

    def work(length: int) -> float:
        tiles = -(-extent // (length - lags + 1))
        return tiles * length * (math.log2(length) + 4)

    return min(lengths, key=work)


@functools.cache
def fast_length(extent: int) -> int:
    """The shortest length of a fast transform that holds `extent` elements."""
    return min(n for n in _smooth_numbers(extent, extent) if n >= extent)


def _smooth_numbers(whole: int, lags: int) -> list[int]:
    """Numbers 2^i * 3^j * 5^k up to LONGEST_TRANSFORM, or as long as the lags or axis need."""
    most = min(max(LONGEST_TRANSFORM, 4 * lags), 2 * whole)
    found = [1]
    for factor in (2, 3, 5):
        for n in list(found):
            while (n := n * factor) <= most:
                found.append(n)
    return sorted(found)
