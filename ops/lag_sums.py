"""Sums of products of two images at every lag, in float64: the elements of normal matrices.

    out[c,d,r,s] = sum_{n,p,q} a[n,c,p,q] * b[n,d,p+r,q+s]        0 <= r < R, 0 <= s < S

This is the weight gradient of b with a as the output's gradient, but always in float64: operands
are converted before they are multiplied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import backend, fourier
from .arguments import Pair

#: On a CPU, elements of a block of rows for dot products: a block should stay in cache.
DOT_ELEMENTS = 2**15
#: On a CPU, elements of the windows that are copied at a time.
WINDOW_ELEMENTS = 2**18
#: Up to this many lags per transformed channel, dot products are cheaper than transforms.
DOT_LAGS = 16


def lag_sums(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """The sums of products of a and b at all lags.

    Args:
        a: (N, C, P, Q), any strides; float16, bfloat16, float32, float64 or uint8.
        b: (N, D, P + R - 1, Q + S - 1), likewise.
        lags: (R, S).

    Returns:
        (C, D, R, S), float64. Bitwise repeatable on one device: partial sums are added in a fixed
        order.
    """
    R, S = lags
    N, C, P, Q = a.shape
    assert b.shape == (N, b.shape[1], P + R - 1, Q + S - 1), (a.shape, b.shape, lags)
    if min(N, C, b.shape[1], P, Q) == 0:
        return a.new_zeros(C, b.shape[1], R, S, dtype=torch.float64)
    if backend.runs_kernels(a.device):
        from .launch import lag_launch

        return lag_launch.lag_sums(a, b, lags)
    D = b.shape[1]
    if C * D * R * S <= DOT_LAGS * (C + D):
        return _by_dots(a, b, lags)
    # Estimated nanoseconds on one core: matrix products (and copying the windows), transforms.
    direct = N * P * Q * D * R * S * (0.1 * C + 1)
    transformed = 5 * N * P * Q * (C + D) + 10 * C * D * (P + R) * (Q + S)
    if direct < transformed:
        return _by_windows(a, b, lags)
    return fourier.lag_sums(a, b, lags)


def _by_dots(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """One dot product of flattened rows per lag; sums of integers are exact.

    Rows of a are padded with zeros to the width W of b, so lag (r, s) is an offset of r * W + s.
    """
    R, S = lags
    N, C, P, Q = a.shape
    D, W = b.shape[1], b.shape[3]
    out = a.new_zeros(C, D, R, S, dtype=torch.float64)
    rows = max(1, DOT_ELEMENTS // W)
    for n in range(N):
        for top in range(0, P, rows):
            bottom = min(P, top + rows)
            left = F.pad(a[n, :, top:bottom].double(), (0, W - Q)).flatten(1)
            right = F.pad(b[n, :, top : bottom + R - 1].double().flatten(1), (0, S - 1))
            count = left.shape[1]
            sums = [
                torch.dot(left[c], right[d, r * W + s : r * W + s + count])
                for c in range(C)
                for d in range(D)
                for r in range(R)
                for s in range(S)
            ]
            out += torch.stack(sums).view(C, D, R, S)
    return out


def _by_windows(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """Matrix products of a with all windows of b: for many channels of few pixels."""
    R, S = lags
    N, C, P, Q = a.shape
    D = b.shape[1]
    out = a.new_zeros(C, D * R * S, dtype=torch.float64)
    pixels = max(1, WINDOW_ELEMENTS // (D * R * S))
    columns = min(Q, pixels)
    rows = max(1, pixels // columns)
    for n in range(N):
        for top in range(0, P, rows):
            for left in range(0, Q, columns):
                part = a[n, :, top : top + rows, left : left + columns].double()
                high, wide = part.shape[1:]
                reach = b[n, :, top : top + high + R - 1, left : left + wide + S - 1].double()
                windows = reach.unfold(1, high, 1).unfold(2, wide, 1)  # (D, R, S, high, wide)
                out += part.flatten(1) @ windows.reshape(D * R * S, -1).T
    return out.view(C, D, R, S)
