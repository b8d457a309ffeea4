"""Sums over whole images in float64, a few rows at a time: no copy of an image is made for them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: On a CPU, elements of a block of rows, which should stay in a cache.
BLOCK_ELEMENTS = 2**16


def row_blocks(image: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of (N, K, P, Q): blocks on a CPU, all of them elsewhere."""
    N, K, P, Q = image.shape
    rows = P if not image.is_cpu else max(1, BLOCK_ELEMENTS // max(1, N * K * Q))
    for first in range(0, P, rows):
        yield slice(first, min(P, first + rows))


def squares(image: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """sum weights * image^2 of each channel of (N, K, P, Q), (K,) in float64.

    Args:
        image: (N, K, P, Q).
        weights: (N, 1 or K, P, Q); None where all are one.
    """
    parts = []
    for rows in row_blocks(image):
        part = image[:, :, rows].double()
        if weights is None:
            parts.append(torch.linalg.vector_norm(part, dim=(0, 2, 3)).square())
        else:
            parts.append((part.square() * weights[:, :, rows]).sum((0, 2, 3)))
    return _total(parts)


def sums_and_squares(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum and the sum of squares of each channel of (N, K, P, Q), (K,) in float64."""
    wide = torch.float64
    sums = [image[:, :, rows].sum((0, 2, 3), dtype=wide) for rows in row_blocks(image)]
    return _total(sums), squares(image)


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
