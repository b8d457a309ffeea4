"""The normal matrix of a fit, its rank, and the constraints on a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

#: Eigenvalues of the normal matrix below this fraction of the largest count as zero: far above the
#: rounding of float64 sums, far below the precision of 8-bit or float32 images.
RANK_TOLERANCE = 1e-10
#: From FACTORED_UNKNOWNS on, a Cholesky factor replaces the eigenvalues, if an estimate of the
#: smallest one is this many times the tolerance.
CLEARLY_DETERMINED = 100
FACTORED_UNKNOWNS = 48
#: Random vectors that estimate the trace of an inverse. Its largest eigenvalue exceeds
#: CLEARLY_DETERMINED times the estimate with a chance of 1 in 10 million (chi-squared with 8
#: degrees of freedom below 8 / CLEARLY_DETERMINED).
PROBES = 8
#: Power iterations of an estimate: within a factor of two for a thousand unknowns.
ITERATIONS = 16


@dataclass(frozen=True)
class Constraints:
    """Constraints and penalties on the kernel of a filter.

    Attributes:
        elements: number of a filter's unknowns that are the kernel's; the rest is background.
        ridge: added to the loss: ridge * the kernel's sum of squares.
        nonnegative: no element of the kernel is below zero.
        sum_to: the sum of the kernel's elements; None for a free sum.
        smooth: added to the loss: smooth * the sum of squared differences between neighbours.
        window: (C/groups, R, S), the order of the elements.
    """

    elements: int
    ridge: float = 0.0
    nonnegative: bool = False
    sum_to: float | None = None
    smooth: float = 0.0
    window: tuple[int, int, int] = (1, 1, 1)

    def penalty(self, unknowns: int, like: torch.Tensor) -> torch.Tensor:
        """The quadratic form that is added to the loss, (unknowns, unknowns)."""
        kernel = torch.arange(unknowns, device=like.device) < self.elements
        penalty = torch.diag(self.ridge * kernel.to(like))
        if self.smooth:
            penalty[: self.elements, : self.elements] += self.smooth * roughness(self.window, like)
        return penalty


def roughness(window: tuple[int, int, int], like: torch.Tensor) -> torch.Tensor:
    """D^T D, D being differences of neighbours in rows and columns, with zeros outside the window.

    Returns:
        (C*R*S, C*R*S).
    """
    along = []
    for count in window[1:]:
        off = like.new_ones(count - 1)
        along.append(2 * _identity(count, like) - torch.diag(off, 1) - torch.diag(off, -1))
    rows, columns = along
    eye_rows, eye_columns = _identity(len(rows), like), _identity(len(columns), like)
    plane = torch.kron(rows, eye_columns) + torch.kron(eye_rows, columns)
    return torch.kron(_identity(window[0], like), plane)


def _identity(count: int, like: torch.Tensor) -> torch.Tensor:
    return torch.eye(count, dtype=like.dtype, device=like.device)


class Normal:
    """One normal matrix with its penalties, restricted to the directions that keep a given sum.

    Attributes:
        gram: G plus the penalties (D, D), scaled.
        scale: (D,): unknowns are scale times the scaled ones.
        reduced: gram on the free directions.
        rank: number of eigenvalues that do not count as zero.
    """

    def __init__(self, gram: torch.Tensor, constraints: Constraints) -> None:
        elements = constraints.elements
        self.scale = background_scale(gram, elements)
        self.gram = gram
        if constraints.ridge or constraints.smooth:
            self.gram = gram + constraints.penalty(len(gram), gram)
        if len(gram) > elements:
            self.gram = self.gram * self.scale[:, None] * self.scale
        self._mirror: torch.Tensor | None = None
        self.reduced = self.gram
        if constraints.sum_to is not None:
            # A Householder reflection maps the sum to the first axis, which is then left out. The
            # vector's first element is 1 + 1 / sqrt(elements): no cancellation.
            kernel = torch.arange(len(gram), device=gram.device) < elements
            self._mirror = kernel.to(gram) / elements**0.5
            self._mirror[0] += 1
            self._mirror /= self._mirror.norm()
            self.reduced = self._reflected(self._reflected(self.gram).T)[1:, 1:]
            self.reduced = (self.reduced + self.reduced.T) / 2
        self._factor = self._cholesky() if len(self.reduced) >= FACTORED_UNKNOWNS else None
        self.rank = len(self.reduced)
        if self._factor is None and self.rank:
            values = self._eigen[0]
            self.rank = int((values > RANK_TOLERANCE * values[-1]).sum())

    @cached_property
    def eigenvalues(self) -> torch.Tensor:
        """(free,), ascending."""
        if self._factor is None:
            return self._eigen[0]
        return torch.linalg.eigvalsh(self.reduced)

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; inf if one counts as zero."""
        free = len(self.reduced)
        if self.rank < free or not free:
            return float("inf") if free else 1.0
        return float(self.eigenvalues[-1] / self.eigenvalues[0])

    def inverse(self) -> torch.Tensor:
        """The pseudo-inverse on the free directions, in the unknowns' own scale: (D, D)."""
        if self._factor is not None:
            inverse = torch.cholesky_inverse(self._factor)
        else:
            values, vectors = self._determined
            inverse = (vectors / values) @ vectors.T
        if self._mirror is not None:
            inverse = self._expanded(self._expanded(inverse).T)
        if bool((self.scale == 1).all()):
            return inverse
        return inverse * self.scale[:, None] * self.scale

    def null_space(self) -> torch.Tensor:
        """Directions that do not change the loss, (D, undetermined), orthonormal when scaled."""
        if self.rank == len(self.reduced):
            return self.gram.new_zeros(len(self.gram), 0)
        blind = self._eigen[1][:, : len(self.reduced) - self.rank]
        return self._expanded(blind) * self.scale[:, None]

    def minimum(self, moments: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """The best theta (K, D) for moments (K, D), from a `start` that has the given sum."""
        theta, moments = (start / self.scale).T, (moments * self.scale).T
        for _ in range(2):  # the second pass removes the rounding errors of the first
            theta = theta + self._solved(moments - self.gram @ theta)
        return theta.T * self.scale

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """The pseudo-inverse times `right` (D, columns), in the unknowns' own scale."""
        return self._solved(right * self.scale[:, None]) * self.scale[:, None]

    def _solved(self, right: torch.Tensor) -> torch.Tensor:
        right = right if self._mirror is None else self._reflected(right)[1:]
        if self._factor is not None:
            return self._expanded(_by_factor(self._factor, right))
        values, vectors = self._determined
        return self._expanded(vectors @ (vectors.T @ right / values[:, None]))

    @cached_property
    def _eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = torch.linalg.eigh(self.reduced)
        return values, vectors

    @property
    def _determined(self) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = self._eigen
        first = len(values) - self.rank
        return values[first:], vectors[:, first:]

    def _reflected(self, columns: torch.Tensor) -> torch.Tensor:
        assert self._mirror is not None
        return columns - torch.outer(2 * self._mirror, self._mirror @ columns)

    def _expanded(self, columns: torch.Tensor) -> torch.Tensor:
        """Columns over the free directions as columns of D elements."""
        if self._mirror is None:
            return columns
        return self._reflected(torch.cat([columns.new_zeros(1, columns.shape[1]), columns]))

    def _cholesky(self) -> torch.Tensor | None:
        """The Cholesky factor; None unless all eigenvalues are clearly above the tolerance."""
        factor, failed = torch.linalg.cholesky_ex(self.reduced)
        if int(failed):
            return None
        clear = CLEARLY_DETERMINED * RANK_TOLERANCE
        cpu = torch.device("cpu")
        random = torch.Generator(cpu).manual_seed(0)
        shape = (len(factor), PROBES)
        probes = torch.randn(shape, generator=random, dtype=torch.float64, device=cpu).to(factor)
        # Traces bound the largest eigenvalues of a matrix and of its inverse, whose trace is the
        # expected square of inverse(factor) @ probe.
        squares = torch.linalg.solve_triangular(factor, probes, upper=False).square()
        if PROBES / float(squares.sum()) > clear * float(self.reduced.trace()):
            return factor
        low = high = probes[:, :1]
        for _ in range(ITERATIONS):
            low = _by_factor(factor, low / low.norm())
            high = self.reduced @ (high / high.norm())
        return factor if float(1 / low.norm()) > clear * float(high.norm()) else None


def _by_factor(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The inverse of factor @ factor.T, times `right`; cholesky_solve would copy the factor."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def background_scale(gram: torch.Tensor, elements: int) -> torch.Tensor:
    """(D,): 1 for the kernel; for the background, factors that give its columns the same size."""
    diagonal = gram.diagonal()
    if len(diagonal) == elements:
        return torch.ones_like(diagonal)
    size = diagonal[:elements].mean() if elements else diagonal.new_zeros(())
    ratio = (size / diagonal[elements:]).sqrt()
    usable = ratio.isfinite() & (ratio > 0)
    ones = torch.ones_like(diagonal[:elements])
    return torch.cat([ones, torch.where(usable, ratio, torch.ones_like(ratio))])
