"""Sums of products of two images at every lag, in float64: what normal matrices are made of.

    out[i,j,r,s] = sum_{n,p,q} a[n,i,p,q] * b[n,j,p+r,q+s]        0 <= r < R, 0 <= s < S

A weight gradient, of b with a as the output's gradient, but for its arithmetic: every operand is
brought to float64 before it is multiplied, and all sums are float64, whatever the images' types.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .geometry import Pair

#: On a CPU, elements of the chunks that are written out at a time: they should stay in a cache.
CHUNK_ELEMENTS = 2**19


def lag_sums(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """The sums of products of a and b at all lags.

    Args:
        a: (N, I, P, Q), any strides; float16, bfloat16, float32, float64 or uint8.
        b: (N, J, P + R - 1, Q + S - 1), likewise.
        lags: (R, S).

    Returns:
        (I, J, R, S), float64. Bitwise repeatable on one device: partial sums are added in a fixed
        order.
    """
    R, S = lags
    N, I, P, Q = a.shape  # noqa: E741 - the formula's letter
    assert b.shape == (N, b.shape[1], P + R - 1, Q + S - 1), (a.shape, b.shape, lags)
    if min(N, I, b.shape[1], P, Q) == 0:
        return a.new_zeros(I, b.shape[1], R, S, dtype=torch.float64)
    return _by_products(a, b, lags)


def _by_products(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """By matrix products, for any device.

    Rows are cut into chunks of B columns. The product of all chunks of a (B columns) with those of
    b (B + S - 1 columns) has the sum for lag s spread over one of its diagonals. That multiplies
    (B + S - 1) / S times as much as is needed, at the speed of a matrix product.
    """
    R, S = lags
    N, I, P, Q = a.shape  # noqa: E741
    J = b.shape[1]
    B = max(S, 16 // max(I, J), 1)
    chunks = -(-Q // B)
    wide = B + S - 1
    total = torch.zeros(R, I, B, J, wide, dtype=torch.float64, device=a.device)
    rows = max(1, CHUNK_ELEMENTS // (chunks * (I * B + J * wide)))
    for n in range(N):
        for top in range(0, P, rows):
            bottom = min(P, top + rows)
            left = F.pad(a[n, :, top:bottom].double(), (0, chunks * B - Q))
            left = left.view(I, -1, chunks, B).permute(0, 3, 1, 2).reshape(I * B, -1)
            right = F.pad(b[n, :, top : bottom + R - 1].double(), (0, chunks * B - Q))
            right = right.unfold(2, wide, B).permute(1, 2, 0, 3).flatten(2)  # a copy
            for r in range(R):
                # (rows, chunks, J * wide), rows r to r + bottom - top of it
                part = right[r : r + bottom - top].flatten(0, 1)
                total[r] += (left @ part).view(I, B, J, wide)
    # Element (i, i + s) of each B x wide matrix belongs to lag s.
    step = total.stride()
    diagonals = total.as_strided((R, I, J, B, S), (step[0], step[1], step[3], step[2] + 1, 1))
    return diagonals.sum(3).permute(1, 2, 0, 3).contiguous()
