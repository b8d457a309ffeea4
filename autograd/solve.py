"""Kernels from the sums G, b, c of `gram.py`: exact, constrained, or by gradient descent on them.

    loss(theta) = c - 2 b . theta + theta^T G theta + ridge * |kernel part of theta|^2

All in float64. A symmetric eigendecomposition decides the rank: directions whose eigenvalue is
below RANK_TOLERANCE of the largest are the images' blind spots, and there the answer stays where it
started. The background's columns are first scaled to the size of the kernel's, so that the units of
x and y do not decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .gram import Sums

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


def solve(sums: Sums, constraints: Constraints, start: torch.Tensor) -> torch.Tensor:
    """The best theta (K, D) under the constraints.

    Args:
        sums: of the images.
        constraints: of every filter.
        start: (K, D); the answer stays near it where the images do not tell.
    """
    from .active_set import nonnegative_minimum

    filters = len(sums.moments)
    per_gram = filters // len(sums.gram)
    start = with_sum(start.to(sums.gram), constraints)
    found = []
    for i, gram in enumerate(sums.gram):
        normal = Normal(gram, constraints)
        for k in range(i * per_gram, (i + 1) * per_gram):
            theta = normal.minimum(sums.moments[k], start[k])
            if constraints.nonnegative:
                theta = nonnegative_minimum(gram, sums.moments[k], constraints, theta)
            found.append(theta)
    return torch.stack(found)


def squared_error(sums: Sums, theta: torch.Tensor) -> torch.Tensor:
    """The (weighted) sum of squared errors of each filter, (K,), for theta (K, D)."""
    gram = sums.gram.repeat_interleave(len(theta) // len(sums.gram), dim=0)
    quadratic = torch.einsum("kd,kde,ke->k", theta, gram, theta)
    return sums.squares - 2 * (sums.moments * theta).sum(1) + quadratic


def descend(
    sums: Sums, constraints: Constraints, start: torch.Tensor, steps: int, step_size: float
) -> tuple[torch.Tensor, list[float]]:
    """Gradient descent: theta (K, D) after `steps`, and the loss before each step.

    The same as on the images, step by step, to rounding; a step costs K * D^2.
    """
    theta = start.to(sums.gram)
    kernel = (torch.arange(theta.shape[1], device=theta.device) < constraints.elements).to(theta)
    gram = sums.gram.repeat_interleave(len(theta) // len(sums.gram), dim=0)
    ridge = constraints.ridge * kernel
    history = []
    for _ in range(steps):
        penalty = (ridge * theta.square()).sum()
        history.append(float(squared_error(sums, theta).sum() + penalty))
        gradient = torch.einsum("kde,ke->kd", gram, theta) - sums.moments + ridge * theta
        theta = theta - 2 * step_size * gradient
    return theta, history


def largest_step(sums: Sums, constraints: Constraints) -> float:
    """Gradient descent diverges from this step size on: 2 over the Hessian's top eigenvalue."""
    kernel = torch.arange(sums.gram.shape[-1], device=sums.gram.device) < constraints.elements
    ridge = torch.diag(constraints.ridge * kernel.to(sums.gram))
    largest = float(torch.linalg.eigvalsh(sums.gram + ridge).max())
    return 1 / largest if largest > 0 else float("inf")


def with_sum(theta: torch.Tensor, constraints: Constraints) -> torch.Tensor:
    """theta (K, D) moved as little as possible to have the sum that is asked for."""
    if constraints.sum_to is None:
        return theta
    elements = constraints.elements
    lacks = (constraints.sum_to - theta[:, :elements].sum(1, keepdim=True)) / elements
    return torch.cat([theta[:, :elements] + lacks, theta[:, elements:]], 1)


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
