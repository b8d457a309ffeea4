"""Legendre polynomials P_i of one coordinate, and the products L_t of two of them."""

from __future__ import annotations

from functools import lru_cache

import torch

from .background import Background


@lru_cache
def products(first: int, second: int) -> torch.Tensor:
    """L_t * L_u = sum_m [t, u, m] * L_m: (T, U, M), m up to total degree first + second."""
    in_one = _line_products(first, second)
    terms = Background(first + second).terms
    rows, columns = Background(first).terms, Background(second).terms
    table = [
        [[in_one[i, k, a] * in_one[j, n, b] for a, b in terms] for k, n in columns] for i, j in rows
    ]
    return torch.tensor(table, dtype=torch.float64, device="cpu")


def _line_products(first: int, second: int) -> torch.Tensor:
    """P_i * P_k = sum_a [i, k, a] * P_a, by Gauss and Legendre's quadrature, which is exact."""
    count = first + second + 1
    nodes, weights = _quadrature(count)
    values = legendre(count - 1, nodes)  # (count, nodes)
    norm = (2 * torch.arange(count, dtype=torch.float64, device="cpu") + 1) / 2
    return torch.einsum(
        "ix,kx,ax,x,a->ika", values[: first + 1], values[: second + 1], values, weights, norm
    )


def shifts(order: int, count: int, extent: int) -> torch.Tensor:
    """P_i(u - 2 r / extent) = sum_a [r, i, a] * P_a(u): (count, order + 1, order + 1)."""
    nodes, weights = _quadrature(order + 1)
    steps = 2 * torch.arange(count, dtype=torch.float64, device="cpu") / extent
    moved = legendre(order, (nodes - steps[:, None]).flatten()).view(order + 1, count, -1)
    values = legendre(order, nodes)
    norm = (2 * torch.arange(order + 1, dtype=torch.float64, device="cpu") + 1) / 2
    return torch.einsum("irx,ax,x,a->ria", moved, values, weights, norm)


def _quadrature(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights on (-1, 1) that integrate polynomials of degree 2 * count - 1 exactly."""
    k = torch.arange(1, count, dtype=torch.float64, device="cpu")
    off = k / (4 * k * k - 1).sqrt()  # Golub and Welsch's matrix
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, 2 * vectors[0].square()


def legendre(order: int, at: torch.Tensor) -> torch.Tensor:
    """P_0 to P_order, (order + 1, points), by Bonnet's recursion."""
    values = [torch.ones_like(at), at]
    for n in range(1, order):
        values.append(((2 * n + 1) * at * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack(values[: order + 1])


def order_of(terms: int) -> int:
    """The total degree up to which there are `terms` products of two polynomials."""
    return round((2 * terms + 0.25) ** 0.5 - 1.5)
