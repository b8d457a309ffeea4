"""Non-negative least squares on the normal matrix: Lawson and Hanson's active set.

C. L. Lawson and R. J. Hanson, Solving Least Squares Problems, chapter 23. Elements are free
(passive) or held at zero (active). The best answer over the free ones is found; if it is negative
somewhere, the way there ends where the first element reaches zero, and that one is held. When all
is well, the held element that would lower the loss most is freed. Unknowns of the background are
always free. A sum that is asked for adds one Lagrange multiplier, the same for every element.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from .normal import Constraints, Normal


def nonnegative_minimum(
    gram: torch.Tensor, moments: torch.Tensor, constraints: Constraints, guess: torch.Tensor
) -> torch.Tensor:
    """The best theta (D,) whose kernel part is not negative.

    Args:
        gram: (D, D).
        moments: (D,).
        constraints: sum_to must not be negative.
        guess: (D,), such as the best theta that may be negative: its signs are where to begin.
    """
    elements = constraints.elements
    bounded = torch.arange(len(gram), device=gram.device) < elements
    theta = _feasible(guess, constraints)
    free = ~bounded | (theta > 0)
    tolerance = 10 * len(gram) * torch.finfo(gram.dtype).eps * float(moments.abs().max())
    refused = torch.zeros_like(bounded)
    for _ in range(3 * len(gram) + 10):
        theta, free = _settle(gram, moments, constraints, theta, free, bounded)
        lowers = moments - gram @ theta - constraints.ridge * theta * bounded
        if constraints.sum_to is not None:
            support = free & bounded
            lowers = lowers - lowers[support].mean() * bounded if support.any() else lowers
        candidates = bounded & ~free & ~refused & (lowers > tolerance)
        if not candidates.any():
            return theta
        freed = int(torch.where(candidates, lowers, -torch.inf).argmax())
        free[freed] = True
        after = _best(gram, moments, constraints, theta, free)
        # Rounding can free an element only to want it below zero: that one is left where it is.
        if after[freed] <= 0:
            free[freed] = False
            refused[freed] = True
        else:
            refused[:] = False
    return theta


def _feasible(guess: torch.Tensor, constraints: Constraints) -> torch.Tensor:
    theta = guess.clone()
    kernel = theta[: constraints.elements]
    kernel.clamp_(min=0)
    if constraints.sum_to is not None:
        total = float(kernel.sum())
        if total > 0:
            kernel *= constraints.sum_to / total
        else:
            kernel += constraints.sum_to / constraints.elements
    return theta


def _settle(
    gram: torch.Tensor,
    moments: torch.Tensor,
    constraints: Constraints,
    theta: torch.Tensor,
    free: torch.Tensor,
    bounded: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best theta over the free elements, with those held that the way there takes to zero."""
    while True:
        target = _best(gram, moments, constraints, theta, free)
        wrong = free & bounded & (target <= 0)
        if not wrong.any():
            return target, free
        lengths = theta[wrong] / (theta[wrong] - target[wrong])
        theta = theta + float(lengths.nan_to_num(0.0).min()) * (target - theta)
        stopped = free & bounded & (theta <= 1e-14 * theta.abs().max()) & wrong
        if not stopped.any():  # rounding: hold the one that comes first
            stopped = torch.zeros_like(free)
            stopped[wrong.nonzero()[int(lengths.nan_to_num(0.0).argmin())]] = True
        free = free & ~stopped
        theta = torch.where(stopped, torch.zeros_like(theta), theta)


def _best(
    gram: torch.Tensor,
    moments: torch.Tensor,
    constraints: Constraints,
    theta: torch.Tensor,
    free: torch.Tensor,
) -> torch.Tensor:
    """theta with its free elements at their best and the others at zero."""
    where = free.nonzero().flatten()
    elements = int((where < constraints.elements).sum())
    best = torch.zeros_like(theta)
    if len(where):
        some = replace(constraints, elements=elements)
        if not elements:
            some = replace(some, sum_to=None)
        normal = Normal(gram[where][:, where], some)
        best[where] = normal.minimum(moments[where], theta[where])
    return best
