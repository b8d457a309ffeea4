"""Kernels from the sums G, b, c of `gram.py`: exact, constrained, or by gradient descent on them.

    loss(theta) = c - 2 b . theta + theta^T G theta + ridge * |kernel part of theta|^2

All in float64. A symmetric eigendecomposition decides the rank: directions whose eigenvalue is
below RANK_TOLERANCE of the largest are the images' blind spots, and there the answer stays where it
started. The background's columns are first scaled to the size of the kernel's, so that the units of
x and y do not decide.
"""

from __future__ import annotations

import torch

from .active_set import nonnegative_minimum
from .gram import Sums
from .normal import Constraints, Normal


def solve(sums: Sums, constraints: Constraints, start: torch.Tensor) -> torch.Tensor:
    """The best theta (K, D) under the constraints.

    Args:
        sums: of the images.
        constraints: of every filter.
        start: (K, D); the answer stays near it where the images do not tell.
    """
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
