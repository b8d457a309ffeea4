"""The normal matrix of a fit, its rank, and what a kernel is constrained to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Eigenvalues of the normal matrix below this fraction of the largest count as zero: far above the
#: rounding of float64 sums, far below what 8-bit or float32 images can tell apart.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Constraints:
    """What a kernel must be.

    Attributes:
        elements: how many of a filter's unknowns are the kernel's; the rest is background.
        ridge: added to the loss: ridge * the kernel's sum of squares.
        nonnegative: no element of the kernel is below zero.
        sum_to: what the kernel's elements sum to; None if that is free.
    """

    elements: int
    ridge: float = 0.0
    nonnegative: bool = False
    sum_to: float | None = None


class Normal:
    """One normal matrix, prepared: (G + ridge) on the directions that a sum leaves free.

    Attributes:
        gram: G + ridge (D, D), scaled.
        scale: (D,): unknowns are scale times the scaled ones.
        basis: (D, free), orthonormal: the directions that keep the kernel's sum.
        eigenvalues: (free,), ascending.
        vectors: (free, free).
        rank: how many eigenvalues count.
    """

    def __init__(self, gram: torch.Tensor, constraints: Constraints) -> None:
        elements = constraints.elements
        self.scale = background_scale(gram, elements)
        self.gram = gram * self.scale[:, None] * self.scale
        kernel = torch.arange(len(gram), device=gram.device) < elements
        self.gram = self.gram + torch.diag(constraints.ridge * kernel.to(gram))
        self.basis = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        if constraints.sum_to is not None:
            self.basis = _sum_keeping(kernel.to(gram))
        reduced = self.basis.T @ self.gram @ self.basis
        self.eigenvalues, self.vectors = torch.linalg.eigh((reduced + reduced.T) / 2)
        self.rank = int(_counts(self.eigenvalues).sum())

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; inf if some count as zero."""
        if self.rank < len(self.eigenvalues) or not self.rank:
            return float("inf")
        return float(self.eigenvalues[-1] / self.eigenvalues[0])

    def inverse(self) -> torch.Tensor:
        """The pseudo-inverse on the free directions, in the unknowns' own scale: (D, D)."""
        vectors = self.basis @ self.vectors[:, len(self.eigenvalues) - self.rank :]
        vectors = vectors * self.scale[:, None]
        return (vectors / self.eigenvalues[len(self.eigenvalues) - self.rank :]) @ vectors.T

    def null_space(self) -> torch.Tensor:
        """Directions that leave the loss as it is, (D, undetermined), orthonormal when scaled."""
        blind = self.vectors[:, : len(self.eigenvalues) - self.rank]
        return (self.basis @ blind) * self.scale[:, None]

    def minimum(self, moments: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """The best theta (D,), from a `start` that has the right sum."""
        theta, moments = start / self.scale, moments * self.scale
        determined = self.vectors[:, len(self.eigenvalues) - self.rank :]
        values = self.eigenvalues[len(self.eigenvalues) - self.rank :]
        for _ in range(2):  # the second time refines what the first one's rounding left
            downhill = self.basis.T @ (moments - self.gram @ theta)
            theta = theta + self.basis @ (determined @ (determined.T @ downhill / values))
        return theta * self.scale


def background_scale(gram: torch.Tensor, elements: int) -> torch.Tensor:
    """(D,): 1 for the kernel, and what brings the background's columns to the kernel's size."""
    diagonal = gram.diagonal()
    size = diagonal[:elements].mean() if elements else diagonal.new_zeros(())
    ratio = (size / diagonal[elements:]).sqrt()
    usable = ratio.isfinite() & (ratio > 0)
    ones = torch.ones_like(diagonal[:elements])
    return torch.cat([ones, torch.where(usable, ratio, torch.ones_like(ratio))])


def _counts(eigenvalues: torch.Tensor) -> torch.Tensor:
    return eigenvalues > RANK_TOLERANCE * eigenvalues[-1]


def _sum_keeping(kernel: torch.Tensor) -> torch.Tensor:
    """(D, D - 1), orthonormal: what is orthogonal to `kernel`, by Householder's reflection."""
    vector = kernel / kernel.norm()
    vector[0] += 1  # the kernel's first element is 1 / its norm: no cancellation
    reflection = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    reflection = reflection - torch.outer(vector, vector) * (2 / vector.dot(vector))
    return reflection[:, 1:]
