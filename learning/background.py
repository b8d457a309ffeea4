"""The background of a fit: a polynomial in the output's coordinates, added to each filter's output.

    y[n,k,p,q] = sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s] + sum_t coefficient[k,t] * L_t(p,q)
    L_t(p,q) = P_i(u) * P_j(v)    u = (2p + 1) / P - 1    v = (2q + 1) / Q - 1    (i,j) = terms[t]

P_i is Legendre's polynomial of degree i. u and v run from -1 to 1 over an output of any size.
There the products are nearly orthogonal, so that the fit is well conditioned; with powers of u and
v it would not be. The first term is the constant, a layer's bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..ops import ArgumentError, as_integer, shown
from ..ops.arguments import Pair


@dataclass(frozen=True)
class Place:
    """Position of an output in the image that the polynomials span.

    Attributes:
        origin: (row, column) of its first pixel.
        size: (rows, columns) of the whole output that it is a part of.
    """

    origin: Pair
    size: Pair


@dataclass(frozen=True)
class Background:
    """All polynomials of total degree up to `order`; none for None."""

    order: int | None = None

    @property
    def terms(self) -> list[Pair]:
        """The degrees (i, j) in rows and columns, by total degree: (0, 0), (1, 0), (0, 1), ..."""
        if self.order is None:
            return []
        return [(total - j, j) for total in range(self.order + 1) for j in range(total + 1)]

    def images(self, extent: Pair, place: Place, like: torch.Tensor) -> torch.Tensor:
        """L_t over `extent` pixels at `place`: (T, rows, columns), dtype and device of `like`."""
        if self.order is None:
            return like.new_zeros(0, *extent)
        in_rows, in_columns = self._along(extent, place, like)
        images = [in_rows[i][:, None] * in_columns[j] for i, j in self.terms]
        return torch.stack(images)

    def evaluate(self, coefficients: torch.Tensor, extent: Pair, place: Place) -> torch.Tensor:
        """sum_t coefficients[k,t] * L_t: (K, rows, columns) from (K, T)."""
        in_rows, in_columns = self._along(extent, place, coefficients)
        table = coefficients.new_zeros(len(coefficients), len(in_rows), len(in_columns))
        for t, (i, j) in enumerate(self.terms):
            table[:, i, j] = coefficients[:, t]
        return in_rows.T @ table @ in_columns

    def moments(self, images: torch.Tensor, place: Place) -> torch.Tensor:
        """sum_{n,p,q} images[n,k,p,q] * L_t(p,q): (K, T) from (N, K, rows, columns)."""
        if self.order is None:
            return images.new_zeros(images.shape[1], 0)
        in_rows, in_columns = self._along((images.shape[-2], images.shape[-1]), place, images)
        table = (in_rows @ images @ in_columns.T).sum(0)
        terms = self.terms
        return table[:, [i for i, _ in terms], [j for _, j in terms]]

    def _along(
        self, extent: Pair, place: Place, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """P_i(u) (order + 1, rows) and P_j(v) (order + 1, columns)."""
        rows, columns = (
            self._legendre(count, first, whole, like)
            for count, first, whole in zip(extent, place.origin, place.size, strict=True)
        )
        return rows, columns

    def _legendre(self, count: int, first: int, whole: int, like: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(first, first + count, dtype=torch.float64, device=like.device)
        u = (2 * positions + 1) / whole - 1
        values = [torch.ones_like(u), u]
        for n in range(1, self.order or 0):  # Bonnet's recursion
            values.append(((2 * n + 1) * u * values[n] - n * values[n - 1]) / (n + 1))
        return torch.stack(values[: (self.order or 0) + 1]).to(like.dtype)


def as_background(bias: bool, background: Any) -> Background:
    """`bias` and `background` as learn_kernel takes them.

    Raises:
        ArgumentError: the background is neither an order nor "constant".
    """
    if background is None:
        return Background(0 if bias else None)
    if background == "constant":
        return Background(0)
    if isinstance(background, str):
        raise ArgumentError(
            f"background must be 'constant' or a polynomial's order, got {shown(background)}"
        )
    order = as_integer("background", background)
    if order < 0:
        raise ArgumentError(f"background must be an order of 0 or more, got {order}")
    return Background(order)
