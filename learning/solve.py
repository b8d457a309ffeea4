"""Kernels from the sums G, b, c of `gram.py`: exact, constrained, or by gradient descent on them.

    loss(theta) = c - 2 b . theta + theta^T G theta + penalties of the kernel part of theta

All in float64. The images do not determine directions whose eigenvalue is below RANK_TOLERANCE of
the largest; there the solution keeps its initial value. The background's columns are first scaled
to the size of the kernel's, so that the rank does not depend on the units of x and y.
"""

from __future__ import annotations

from typing import Any

import torch

from .active_set import nonnegative_minimum
from .gram import Sums
from .normal import Constraints, Normal
from .steps import Reporter

#: Unknowns up to which NumPy takes a fifth of PyTorch's time for a step.
NUMPY_UNKNOWNS = 64


def normals_of(sums: Sums, constraints: Constraints) -> list[Normal]:
    """The normal matrices, one for each of sums.gram, with the noise of x subtracted."""
    return [Normal(gram, constraints) for gram in sums.noiseless(constraints.elements)[0]]


def solve(
    sums: Sums, constraints: Constraints, start: torch.Tensor, normals: list[Normal] | None = None
) -> torch.Tensor:
    """The best theta (K, D) under the constraints.

    Args:
        sums: of the images.
        constraints: of every filter.
        start: (K, D); kept in directions that the images do not determine.
        normals: `normals_of(sums, constraints)`, if computed already.
    """
    normals = normals_of(sums, constraints) if normals is None else normals
    per_gram = len(sums.moments) // len(normals)
    start = with_sum(start.to(sums.gram), constraints)
    found = []
    for i, normal in enumerate(normals):
        filters = slice(i * per_gram, (i + 1) * per_gram)
        theta = normal.minimum(sums.moments[filters], start[filters])
        if constraints.nonnegative:
            negative = (theta[:, : constraints.elements] < 0).any(1)
            for k in negative.nonzero().flatten().tolist():
                moments = sums.moments[filters][k]
                theta[k] = nonnegative_minimum(normal, moments, constraints, theta[k])
        found.append(theta)
    return torch.cat(found)


def chosen_ridge(sums: Sums, constraints: Constraints, rule: str | float) -> tuple[float, str]:
    """The ridge by a rule, and the rule's name for the user.

    G. H. Golub, M. Heath and G. Wahba, Generalized cross-validation as a method for choosing a good
    ridge parameter, Technometrics 21 (1979): the minimum of pixels * error / (pixels - freedom)^2,
    over a grid of tenths of a decade. The background is not penalised.

    Args:
        sums: of the images.
        constraints: whose elements are the kernel's.
        rule: "gcv", or a fraction of the largest eigenvalue.
    """
    elements = constraints.elements
    per_gram = len(sums.moments) // len(sums.gram)
    spectra = []
    for i, gram in enumerate(sums.noiseless(elements)[0]):
        filters = slice(i * per_gram, (i + 1) * per_gram)
        moments, squares = sums.moments[filters], sums.squares[filters]
        kernel, of_kernel = gram[:elements, :elements], moments[:, :elements]
        if gram.shape[0] > elements:  # the best background for each kernel
            inverse = torch.linalg.pinv(gram[elements:, elements:])
            behind = moments[:, elements:] @ inverse
            kernel = kernel - gram[:elements, elements:] @ inverse @ gram[elements:, :elements]
            of_kernel = of_kernel - behind @ gram[elements:, :elements]
            squares = squares - (behind * moments[:, elements:]).sum(1)
        values, vectors = torch.linalg.eigh(kernel)
        spectra.append((values.clamp(min=0), of_kernel @ vectors, squares))
    largest = max(float(values[-1]) for values, _, _ in spectra)
    if not isinstance(rule, str):
        return rule * largest, f"{100 * rule:g} % of the largest eigenvalue"
    pixels = float(sums.pixels.mean())
    terms = sums.moments.shape[1] - elements

    def score(ridge: float) -> float:
        total = 0.0
        for values, parts, squares in spectra:
            shrunk = parts / (values + ridge)
            error = squares.sum() - (2 * parts * shrunk - values * shrunk.square()).sum()
            freedom = float((values / (values + ridge)).sum()) + terms
            total += pixels * max(float(error), 0.0) / max(pixels - freedom, 1e-300) ** 2
        return total

    grid = [largest * 10 ** (k / 10) for k in range(-110, 21)]
    return min(grid, key=score) if largest > 0 else 0.0, "generalized cross-validation"


def squared_error(sums: Sums, theta: torch.Tensor) -> torch.Tensor:
    """The (weighted) sum of squared errors of each filter, (K,), for theta (K, D)."""
    by_gram = theta.view(len(sums.gram), -1, theta.shape[1])
    quadratic = ((by_gram @ sums.gram) * by_gram).sum(2).flatten()
    return sums.squares - 2 * (sums.moments * theta).sum(1) + quadratic


def penalty_of(constraints: Constraints, theta: torch.Tensor) -> float:
    """The penalties in the loss, of all filters."""
    if not constraints.ridge and not constraints.smooth:
        return 0.0
    return float((theta @ constraints.penalty(theta.shape[1], theta) * theta).sum())


def descend(
    sums: Sums,
    constraints: Constraints,
    start: torch.Tensor,
    steps: int,
    step_size: float,
    report: Reporter | None = None,
) -> tuple[torch.Tensor, list[float]]:
    """Gradient descent: theta (K, D) after `steps`, and the loss before each step.

    Each step equals that on the images up to rounding, at a cost of K * D^2. `report` shows the
    losses.
    """
    gram, groups, D = sums.gram, len(sums.gram), start.shape[1]
    if constraints.ridge:
        gram = gram + constraints.penalty(D, gram)
    arrays: Any = (gram, sums.moments.view(groups, -1, D), start.to(gram).view(groups, -1, D))
    if D <= NUMPY_UNKNOWNS:
        arrays = (tensor.numpy(force=True) for tensor in arrays)
    gram, moments, theta = arrays
    history, squares, stride = [], float(sums.squares.sum()), 2 * step_size
    for step in range(steps) if report is None else report.over(range(steps)):
        slope = theta @ gram - moments  # half of the gradient
        history.append(max(0.0, float((slope - moments).ravel() @ theta.ravel()) + squares))
        if report is not None:
            report.loss(step, history[-1])
        theta = theta - stride * slope
    return torch.as_tensor(theta, device=sums.gram.device).reshape(-1, D), history


def largest_step(sums: Sums, constraints: Constraints) -> float:
    """Gradient descent diverges from this step size on: 2 over the Hessian's top eigenvalue."""
    D = sums.gram.shape[-1]
    gram = sums.gram
    if constraints.ridge:
        kernel = torch.arange(D, device=gram.device) < constraints.elements
        gram = gram + torch.diag(constraints.ridge * kernel.to(gram))
    largest = float(torch.linalg.eigvalsh(gram).max())
    return 1 / largest if largest > 0 else float("inf")


def with_sum(theta: torch.Tensor, constraints: Constraints) -> torch.Tensor:
    """theta (K, D) with the least change that gives it the sum of the constraints."""
    if constraints.sum_to is None:
        return theta
    elements = constraints.elements
    lacks = (constraints.sum_to - theta[:, :elements].sum(1, keepdim=True)) / elements
    return torch.cat([theta[:, :elements] + lacks, theta[:, elements:]], 1)
