"""The normal matrix of a kernel fit: inner products of every pair of window positions.

    G[(c,r,s), (c',r',s')] = sum_{n,p,q} x[n,c,p+r,q+s] * x[n,c',p+r',q+s']

An entry depends on the lag (r'-r, s'-s) and, through the border alone, on (r, s). So one product
image per lag serves every entry of that lag: its sum over the first position's pixels, then for
each further row or column what enters minus what leaves. That is (2R-1)(2S-1)/2 passes over the
image instead of (R*S)^2 / 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..ops import Geometry


def gram_matrix(x: torch.Tensor, geometry: Geometry, with_ones: bool = False) -> torch.Tensor:
    """A^T A of the map from one filter (C, R, S) to its output, in float64.

    Args:
        x: (N, C, H, W).
        geometry: of the fit; stride and dilation 1, one group.
        with_ones: adds the unknown of a bias, whose window is an image of ones, as the last.

    Returns:
        (C*R*S, C*R*S), symmetric, on the device of x; one more row and column with_ones.
    """
    (top, bottom), (left, right) = geometry.padding
    x = F.pad(x.double(), (left, right, top, bottom))
    C, R, S, P, Q = geometry.C, geometry.R, geometry.S, geometry.P, geometry.Q
    gram = x.new_zeros(C, R, S, C, R, S)
    for lag_r in range(R):
        for lag_s in range(-S + 1 if lag_r else 0, S):
            # Positions (r, s) for which (r + lag_r, s + lag_s) is a position too.
            r = torch.arange(R - lag_r, device=x.device)[:, None]
            s = torch.arange(max(0, -lag_s), S - max(0, lag_s), device=x.device)[None, :]
            rows, columns = P + R - 1 - lag_r, Q + S - 1 - abs(lag_s)
            first, second = max(0, -lag_s), max(0, lag_s)
            here = x[..., :rows, first : first + columns]
            there = x[..., lag_r : lag_r + rows, second : second + columns]
            for c in range(C):
                for other in range(C):
                    sums = _window_sums((here[:, c] * there[:, other]).sum(0), P, Q)
                    gram[c, r, s, other, r + lag_r, s + lag_s] = sums
                    gram[other, r + lag_r, s + lag_s, c, r, s] = sums
    gram = gram.reshape(C * R * S, C * R * S)
    if not with_ones:
        return gram
    window_sums = torch.stack([_window_sums(x[:, c].sum(0), P, Q) for c in range(C)]).reshape(-1)
    count = x.new_full((1,), geometry.N * P * Q)
    last = torch.cat([window_sums, count])
    return torch.cat([torch.cat([gram, window_sums[:, None]], 1), last[None]], 0)


def _window_sums(image: torch.Tensor, P: int, Q: int) -> torch.Tensor:
    """Sums of `image` over every P x Q window that fits, one after the other."""
    columns = image.shape[1] - Q
    entering = image[:, Q : Q + columns] - image[:, :columns]
    strips = F.pad(entering.cumsum(1), (1, 0)) + image[:, :Q].sum(1, keepdim=True)
    rows = image.shape[0] - P
    entering = strips[P : P + rows] - strips[:rows]
    return F.pad(entering.cumsum(0), (0, 0, 1, 0)) + strips[:P].sum(0, keepdim=True)
