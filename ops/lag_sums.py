"""Sums of products of two images at every lag, in float64: what normal matrices are made of.

    out[c,d,r,s] = sum_{n,p,q} a[n,c,p,q] * b[n,d,p+r,q+s]        0 <= r < R, 0 <= s < S

A weight gradient, of b with a as the output's gradient, but for its arithmetic: every operand is
brought to float64 before it is multiplied, and all sums are float64, whatever the images' types.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import backend
from .geometry import Pair

#: On a CPU, elements of the chunks that are written out at a time: they should stay in a cache.
CHUNK_ELEMENTS = 2**18


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
    return _by_products(a, b, lags)


def _by_products(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """By matrix products, on a CPU.

    Rows are cut into chunks of B columns. The product of all chunks of a (B columns) with those of
    b (B + S - 1 columns) has the sum for lag s spread over one of its diagonals. That multiplies
    (B + S - 1) / S times as much as is needed, at the speed of a matrix product.
    """
    R, S = lags
    N, C, P, Q = a.shape
    D = b.shape[1]
    B = max(S, 16 // max(C, D), 1)
    chunks = -(-Q // B)
    wide = B + S - 1
    total = torch.zeros(R, C, B, D, wide, dtype=torch.float64, device=a.device)
    rows = max(R, CHUNK_ELEMENTS // (chunks * (C * B + D * wide)))
    for n in range(N):
        for top in range(0, P, rows):
            bottom = min(P, top + rows)
            left = F.pad(a[n, :, top:bottom].double(), (0, chunks * B - Q))
            left = left.view(C, -1, chunks, B).permute(0, 3, 1, 2).reshape(C * B, -1)
            right = F.pad(b[n, :, top : bottom + R - 1].double(), (0, chunks * B - Q))
            right = right.unfold(2, wide, B).permute(1, 2, 0, 3).flatten(2)  # a copy
            for r in range(R):
                # (rows, chunks, D * wide), rows r to r + bottom - top of it
                part = right[r : r + bottom - top].flatten(0, 1)
                total[r] += (left @ part).view(C, B, D, wide)
    # Element (i, i + s) of each B x wide matrix belongs to lag s.
    step = total.stride()
    diagonals = total.as_strided((R, C, D, B, S), (step[0], step[1], step[3], step[2] + 1, 1))
    return diagonals.sum(3).permute(1, 2, 0, 3).contiguous()
