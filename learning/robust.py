"""Robust fits: least squares repeated with smaller weights for values with large residuals.

P. W. Holland and R. E. Welsch, Robust regression using iteratively reweighted least-squares,
Communications in Statistics 6 (1977). With u the residual over its scale,

    huber   weight 1 up to |u| = 1.345, then 1.345 / |u|
    tukey   weight (1 - (u / 4.685)^2)^2 up to |u| = 4.685, then 0

With these constants the fit is 95 % as efficient as least squares on normal errors. The scale is
1.4826 times the median absolute residual of a filter, recomputed for each fit. Where the median
alternates between two values, fits would too: after FREE_SCALES of them Huber's scale only shrinks.
Tukey's loss has several minima, so it starts from Huber's solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from .pairs import ImagePair
from .problem import Point, Problem

HUBER, TUKEY = 1.345, 4.685
LOSSES = ("huber", "tukey")
#: Most fits of one of the losses. With a third of outliers, all to one side, Huber's take over 100.
MOST_FITS = 200
FREE_SCALES = 20
#: Fits end when no unknown changes by more than this fraction of the largest, or by so many units
#: in the last place of the images' dtype.
TOLERANCE, UNITS = 1e-7, 16
#: Fits end, too, when so many in turn changed the unknowns no less than one before: rounding.
PATIENCE = 20


def reweighted(
    problem: Problem, kind: str, fit: Callable[[Problem], Point]
) -> tuple[Problem, int, float]:
    """The problem with the weights at which its solution converged.

    Args:
        problem: the images.
        kind: "huber" or "tukey".
        fit: solves a problem.

    Returns:
        (the problem, the number of fits, by how much the last one still changed an unknown as a
        fraction of the largest one: 0 if the fits converged).
    """
    tolerance = max(TOLERANCE, UNITS * torch.finfo(problem.like.dtype).eps)
    current, point, fits, left = problem, fit(problem), 1, 0.0
    for stage in ("huber",) if kind == "huber" else ("huber", "tukey"):
        scale, least, since = problem.like.new_empty(0), math.inf, 0
        for turn in range(MOST_FITS):
            previous, distances = point, _distances(problem, point)
            found = _scale(problem.pairs, distances)
            # Tukey's weights would all be zero if the scale were too small for an inexact fit.
            shrinks = stage == "huber" and turn >= FREE_SCALES
            scale = torch.minimum(found, scale) if shrinks else found
            current = _with_weights(problem, distances, scale, stage)
            point = fit(current)
            fits, change = fits + 1, _moved(previous, point)
            since = since + 1 if change >= least and turn >= FREE_SCALES else 0
            least = min(least, change)
            if change <= tolerance or since == PATIENCE:
                left = 0.0
                break
            left = change
    return current, fits, left


def _moved(before: Point, after: Point) -> float:
    before_flat, after_flat = before.flat(), after.flat()
    largest = float(after_flat.abs().max())
    return float((after_flat - before_flat).abs().max()) / largest if largest else 0.0


def _distances(problem: Problem, point: Point) -> list[torch.Tensor]:
    """Absolute residuals of every pair, times the root of their weights."""
    return [
        r.abs() if p.weights is None else r.abs() * p.weights.to(r).sqrt()
        for r, p in zip(problem.residual(point), problem.pairs, strict=True)
    ]


def _with_weights(
    problem: Problem, distances: list[torch.Tensor], scale: torch.Tensor, kind: str
) -> Problem:
    """The problem with every target value weighted by its distance over the filter's scale."""
    pairs = []
    for pair, distance in zip(problem.pairs, distances, strict=True):
        u = distance / scale[:, None, None]
        if kind == "huber":
            counts = HUBER / u.clamp(min=HUBER)
        else:
            counts = (1 - (u / TUKEY).clamp(max=1).square()).square()
        counts = counts if pair.weights is None else counts * pair.weights
        pairs.append(replace(pair, weights=counts))
    return Problem(pairs, problem.background, problem.ridge)


def _scale(pairs: list[ImagePair], distances: list[torch.Tensor]) -> torch.Tensor:
    """1.4826 times the median distance of each filter's values, (K,)."""
    scales = []
    for k in range(distances[0].shape[1]):
        values, targets = [], []
        for pair, distance in zip(pairs, distances, strict=True):
            own, target = distance[:, k].flatten(), pair.y[:, k].abs().flatten()
            if pair.weights is not None:
                counts = pair.weights[:, min(k, pair.weights.shape[1] - 1)].flatten()
                own, target = own[counts > 0], (target * counts.sqrt())[counts > 0]
            values.append(own)
            targets.append(target)
        together, target = torch.cat(values), torch.cat(targets)
        if not len(together):
            scales.append(together.new_ones(()))
            continue
        # If more than half of the values are fitted exactly, the median is rounding.
        rounding = 8 * torch.finfo(together.dtype).eps * target.max()
        least = torch.finfo(together.dtype).tiny
        scales.append((1.4826 * together.median()).clamp(min=rounding).clamp(min=least))
    return torch.stack(scales)
