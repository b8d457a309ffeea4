"""Non-negative least squares on the normal matrix: block principal pivoting.

J. J. Judice and F. M. Pires, A block principal pivoting algorithm for large-scale strictly monotone
linear complementarity problems, Computers and Operations Research 21 (1994). Elements are free or
held at zero. Each round solves for the free ones; then all wrong elements change sides at once:
free ones below zero, and held ones that would lower the loss. If that does not reduce their number,
only the last wrong one changes sides (Murty's rule), which always terminates. Unknowns of
the background are always free. A given sum adds one Lagrange multiplier.

Where the images do not determine some directions, the squared distance to the previous solution is
added to the loss and the fit repeated (proximal point method): the solution stays near its start.
"""

from __future__ import annotations

import torch

from .normal import Constraints, Normal

#: Exchanges of all wrong elements without progress before Murty's rule.
PATIENCE = 4
#: Proximal point method: factor of the squared distance, as a fraction of the largest diagonal
#: element; most repetitions; relative change at which they end.
DAMPING, REPEATS, STILL = 1e-9, 60, 1e-13


def nonnegative_minimum(
    normal: Normal, moments: torch.Tensor, constraints: Constraints, guess: torch.Tensor
) -> torch.Tensor:
    """The best theta (D,) whose kernel part is not negative.

    Args:
        normal: the matrix, with the constraints' penalties.
        moments: (D,).
        constraints: sum_to must not be negative.
        guess: (D,), such as the best theta without the constraint; positive elements start free.
    """
    gram, moments = normal.gram, moments * normal.scale
    theta = guess / normal.scale
    bounded = torch.arange(len(gram), device=gram.device) < constraints.elements
    free = ~bounded | (theta > 0)
    if constraints.sum_to == 0:
        free = ~bounded
    if normal.rank == len(normal.reduced):
        theta, _ = _pivot(gram, moments, constraints.sum_to, free, bounded)
        return theta * normal.scale
    damping = DAMPING * float(gram.diagonal().max())
    damped = gram + torch.diag(torch.full_like(moments, damping or 1.0))
    theta = torch.where(bounded, theta.clamp(min=0), theta)
    for _ in range(REPEATS):
        before = theta
        theta, free = _pivot(
            damped, moments + (damping or 1.0) * theta, constraints.sum_to, free, bounded
        )
        if float((theta - before).abs().max()) <= STILL * float(theta.abs().max()):
            break
    return theta * normal.scale


def _pivot(
    gram: torch.Tensor,
    moments: torch.Tensor,
    total: float | None,
    free: torch.Tensor,
    bounded: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best theta for a positive definite matrix, and which of its elements are free."""
    eps = torch.finfo(gram.dtype).eps
    tolerance = 10 * len(gram) * eps * float(moments.abs().max())
    fewest, patience = len(gram) + 1, PATIENCE
    while True:
        if total is not None and total > 0 and not bool((free & bounded).any()):
            free = free | bounded  # the sum needs a free element
        theta, multiplier = _best(gram, moments, total, free, bounded)
        raises = gram @ theta - moments + multiplier * bounded  # half the gradient
        smallest = 4 * eps * float(theta[bounded].abs().max()) if bool(bounded.any()) else 0.0
        wrong = torch.where(free, theta < -smallest, raises < -tolerance) & bounded
        if total == 0:
            wrong = wrong & free
        count = int(wrong.sum())
        if not count:
            return torch.where(bounded, theta.clamp(min=0), theta), free
        if count < fewest:
            fewest, patience = count, PATIENCE
        elif patience:
            patience -= 1
        else:
            last = int(wrong.nonzero()[-1])
            wrong = torch.zeros_like(wrong)
            wrong[last] = True
        free = free ^ wrong


def _best(
    gram: torch.Tensor,
    moments: torch.Tensor,
    total: float | None,
    free: torch.Tensor,
    bounded: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """theta with free elements optimal and the others zero, and the sum's multiplier."""
    theta = torch.zeros_like(moments)
    where = free.nonzero().flatten()
    if not len(where):
        return theta, 0.0
    part = gram[where][:, where]
    factor = torch.linalg.cholesky(part)
    right = torch.stack([moments[where], bounded[where].to(moments)], 1)
    found = torch.cholesky_solve(right, factor)
    found = found + torch.cholesky_solve(right - part @ found, factor)
    best, of_sum = found.T
    multiplier = 0.0
    if total is not None and bool(bounded[where].any()):
        ones = bounded[where]
        multiplier = float((best[ones].sum() - total) / of_sum[ones].sum())
        best = best - multiplier * of_sum
    theta[where] = best
    return theta, multiplier
