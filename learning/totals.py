"""Sums over whole images in float64, a few rows at a time: no copy of an image is made for them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: On a CPU, elements of a block of rows, which should stay in a cache.
BLOCK_ELEMENTS = 2**16


def row_blocks(image: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of (N, K, P, Q): blocks on a CPU, all of them elsewhere."""
    N, K, P, Q = image.shape
    rows = P if image.device.type != "cpu" else max(1, BLOCK_ELEMENTS // max(1, N * K * Q))
    for first in range(0, P, rows):
        yield slice(first, min(P, first + rows))


def squares(image: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """sum weights * image^2 of each channel of (N, K, P, Q), (K,) in float64.

    Args:
        image: (N, K, P, Q).
        weights: (N, 1 or K, P, Q); None where all are one.
    """
    total = image.new_zeros(image.shape[1], dtype=torch.float64)
    for rows in row_blocks(image):
        part = image[:, :, rows].double()
        if weights is None:
            total += torch.linalg.vector_norm(part, dim=(0, 2, 3)).square()
        else:
            total += (part.square() * weights[:, :, rows]).sum((0, 2, 3))
    return total


def sums_and_squares(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum and the sum of squares of each channel of (N, K, P, Q), (K,) in float64."""
    total, square = image.new_zeros(2, image.shape[1], dtype=torch.float64)
    for rows in row_blocks(image):
        part = image[:, :, rows].double()
        total += part.sum((0, 2, 3))
        square += torch.linalg.vector_norm(part, dim=(0, 2, 3)).square()
    return total, square
