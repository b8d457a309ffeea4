"""Sums of products of a window's elements, in float64, by lags: no window is written out.

    gram[(c,r,s), (c',r',s')] = sum_{n,p,q} x[n,c,p+r,q+s] * x[n,c',p+r',q+s']

With h = p + r and w = q + s, the product at (h, w) depends on the lag (r' - r, s' - s) alone; r and
s decide which pixels (h, w) are summed. Pixels under every tap are summed once for each lag.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import ops

#: Elements of a block of rows that should stay in a cache with its targets.
BLOCK_ELEMENTS = 2**16
#: Dot products per pixel, over lags and targets, up to which they are cheaper than transforms.
MOST_DOTS = 100


def takes_dots(channels: int, targets: int, R: int, S: int, device: torch.device) -> bool:
    """Whether `by_dots` is the way: one channel on a CPU, few lags and targets."""
    dots = (R * (2 * S - 1) - (S - 1)) * (targets + 1)
    return device.type == "cpu" and channels == 1 and dots <= MOST_DOTS


def by_dots(
    x: torch.Tensor, targets: torch.Tensor, R: int, S: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gram matrix of one channel, and its products with targets.

    Rows of the image are laid end to end, so lag (r, s) is an offset of r * W + s. One
    matrix-vector product per lag serves the targets and the image itself.

    Args:
        x: (N, 1, H, W), padding included, W >= 2 * S - 1.
        targets: (N, T, P, Q), P = H - R + 1 and Q = W - S + 1.
        R: rows of the window.
        S: its columns.

    Returns:
        (R*S, R*S), and sum_{n,p,q} targets[n,t,p,q] * x[n,0,p+r,q+s] as (T, R*S).
    """
    (N, _, H, W), T = x.shape, targets.shape[1]
    P, Q = H - R + 1, W - S + 1
    lags = [(r, s) for r in range(R) for s in range(1 - S, S) if r or s >= 0]
    height = max(1, min(P, BLOCK_ELEMENTS // W))
    left = x.new_zeros(T + 1, height, W, dtype=torch.float64)  # zeros right of the outputs
    right = left.new_zeros((height + R - 1) * W + S - 1)
    sums = left.new_zeros(len(lags), T + 1)
    for n in range(N):
        for first in range(0, P, height):
            rows = min(height, P - first)
            pixels = right[: (rows + R - 1) * W].view(-1, W)
            pixels.copy_(x[n, 0, first : first + rows + R - 1])
            left[:T, :rows, :Q] = targets[n, :, first : first + rows]
            left[T, :rows, S - 1 : Q] = pixels[:rows, S - 1 : Q]
            left[T, : max(0, R - 1 - first)] = 0  # tap R - 1 does not reach these rows
            flat = left[:, :rows].flatten(1)
            count = flat.shape[1]
            offsets = [r * W + s for r, s in lags]
            sums += torch.stack([flat @ right[i : i + count] for i in offsets])
    r, s = (t.flatten() for t in torch.meshgrid(_upto(R, x), _upto(S, x), indexing="ij"))
    by_tap = sums[:, T] + _frame(x, r, s, lags)
    # Lag (r' - r, s' - s) is this row of `lags` where it is not negative.
    lag = (r - r[:, None]) * (2 * S - 1) + s - s[:, None]
    gram = by_tap.gather(1, lag.clamp(min=0)).triu()
    # Lags without negative columns are those of the targets.
    return gram + gram.triu(1).T, sums[r * (2 * S - 1) + s, :T].T


def _upto(count: int, x: torch.Tensor) -> torch.Tensor:
    return torch.arange(count, device=x.device)


def _frame(
    x: torch.Tensor, r: torch.Tensor, s: torch.Tensor, lags: list[tuple[int, int]]
) -> torch.Tensor:
    """Products of pixels that some taps do not reach, summed for each tap: (taps, lags).

    Where a lag leads from a tap out of the window, the sum means nothing.
    """
    R, S = int(r[-1]) + 1, int(s[-1]) + 1
    H, W = x.shape[-2:]
    P, Q = H - R + 1, W - S + 1
    rows, columns = _upto(H, x), _upto(W, x)
    outer_rows, inner_rows = rows[(rows < R - 1) | (rows >= P)], rows[R - 1 : P]
    outer_columns = columns[(columns < S - 1) | (columns >= Q)]
    h = torch.cat(
        [outer_rows.repeat_interleave(W), inner_rows.repeat_interleave(len(outer_columns))]
    )
    w = torch.cat([columns.repeat(len(outer_rows)), outer_columns.repeat(len(inner_rows))])
    flat, here = x.reshape(-1, H * W), h * W + w
    offsets = torch.tensor([[down * W + across] for down, across in lags], device=x.device)
    there = (here + offsets).clamp(0, H * W - 1)  # (lags, frame)
    pixels = flat.index_select(1, here).double()[:, None]  # (N, 1, frame)
    others = flat.index_select(1, there.flatten()).view(len(flat), *there.shape)
    products = (pixels * others).sum(0)
    r, s = r[:, None], s[:, None]
    reached = (h >= r) & (h < r + P) & (w >= s) & (w < s + Q)  # (taps, frame)
    return reached.double() @ products.T


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
        mirrored = sums.permute(2, 3, 0, 1, 4)
        if lag == 0:
            sums = mirrored = (sums + mirrored) / 2
        gram.diagonal(lag, 1, 4).copy_(sums)
        gram.diagonal(-lag, 1, 4).copy_(mirrored)
    return gram.view(C * R * S, C * R * S)


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
