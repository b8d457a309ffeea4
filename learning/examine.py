"""From the sums and the residual of a fit to its Quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .border import Scores, border_of, scores_of
from .gram import Sums, varies
from .normal import Constraints, Normal
from .notes import Reason, clipped_fraction, noise_of, notes_of
from .problem import Problem
from .quality import Quality, Residual
from .solve import normals_of
from .totals import row_blocks
from .units import UNCHANGED, Units

#: Correlation of neighbouring residuals above which, if significant, they are not independent
#: errors: the standard errors would be at least a fifth too small.
CORRELATED = 0.15
#: RMS error over the target's own variation above which a kernel explains next to nothing.
UNEXPLAINED = 0.9


@dataclass(frozen=True)
class Observation:
    """The facts that a Quality needs of the images; those of a fit from sums alone by default.

    Attributes:
        residual: prediction minus target and weights of each pair.
        statistics: `mean`, `largest` and `correlation` of a Quality.
        scores: to examine elements outside the window; None if they are not examined.
        clipped: the fraction of y's values that are its largest or its smallest.
        varying: images in which rows differ, and in which columns differ, (2,).
        x_noise: estimated standard deviation of the noise of x, 0 if the residual is only rounding;
            None if the fit subtracts that noise, or x is not there.
    """

    residual: Residual = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=lambda: statistics_of([]))
    scores: Scores | None = None
    clipped: float = 0.0
    varying: torch.Tensor | None = None
    x_noise: float | None = None


def observe(
    problem: Problem,
    residual: list[torch.Tensor],
    rounded: bool,
    examined: bool,
    noisy: bool,
) -> Observation:
    """The facts of the images of a fit.

    Args:
        problem: of the fit.
        residual: prediction minus target of each pair.
        rounded: whether the residual is only rounding.
        examined: whether the loss is squared error and there is a normal matrix; else only the
            residual's statistics are found.
        noisy: whether the fit subtracts the noise of x.
    """
    pairs = problem.pairs
    weighted = [(r, pair.weights) for r, pair in zip(residual, pairs, strict=True)]
    found = Observation(weighted, statistics_of(weighted))
    if not examined:
        return found
    found = replace(
        found,
        varying=torch.stack([varies(pair) for pair in pairs]).sum(0),
        x_noise=None if noisy else 0.0,
    )
    if rounded:
        return found
    scores = scores_of(pairs, residual, problem.background)
    return replace(
        found,
        scores=scores,
        clipped=0.0 if scores is None else clipped_fraction(pairs),
        x_noise=None if noisy else noise_of(pairs[0]),
    )


def quality_of(
    sums: Sums,
    constraints: Constraints,
    theta: torch.Tensor,
    error: torch.Tensor,
    weight_shape: tuple[int, ...],
    exact: bool | None,
    observed: Observation | Callable[[], Observation],
    normals: list[Normal] | None = None,
    units: Units | None = None,
    known: Sequence[str] = (),
    flip: bool = False,
) -> Quality:
    """The quality of a solution. Arguments are in the units of the fit, the result in the user's.

    Args:
        sums: of the images, their gram empty if it was too large to compute.
        constraints: of the fit.
        theta: (K, D), the solution.
        error: (K,), the (weighted) sum of squared errors of each filter.
        weight_shape: (K, C/groups, R, S).
        exact: True for the exact solution, False for the result of steps towards it; None if the
            loss is not squared error.
        observed: the facts of the images, or a function that finds them.
        normals: the matrices that were solved, if any.
        units: of the fit; None for the user's.
        known: notes that come before those found here.
        flip: whether the user's kernel is that of a strict convolution; theta is not.
    """
    units = units or UNCHANGED
    seen = observed() if callable(observed) else observed
    examined = len(sums.gram) > 0
    free = theta.shape[1] - (constraints.sum_to is not None)
    penalised = bool(constraints.ridge or constraints.smooth)
    solved = (normals or normals_of(sums, constraints)) if examined else []
    plain = solved
    if penalised:
        plain = normals_of(sums, replace(constraints, ridge=0.0, smooth=0.0)) if examined else []
    worst = max(plain, key=_badness, default=None)
    ranks = [n.rank for n in plain for _ in range(len(theta) // len(plain))]
    degrees = sums.pixels - sums.pixels.new_tensor(ranks or [free] * len(theta))
    spread = sums.squares - sums.target_sum.square() / sums.weight_sum.clamp(min=1e-300)
    total, weight = float(error.sum()), float(sums.weight_sum.sum())
    found = Quality(
        pixels=int(sums.pixels.sum()),
        weight_sum=weight,
        squared_error=total,
        excess=0.0 if exact else None,
        farthest=0.0 if exact else None,
        converged=True,
        rms=(total / weight) ** 0.5 if weight else 0.0,
        reblur_error=_ratio(total, float(spread.clamp(min=0).sum())) ** 0.5,
        **seen.statistics,
        unknowns=free,
        rank=worst.rank if worst is not None else None,
        noise=_ratio(total, float(degrees.clamp(min=0).sum())) ** 0.5,
        standard_error=None,
        background_error=None,
        normal=worst,
        elements=constraints.elements,
        weight_shape=weight_shape,
        flip=flip,
        residual=seen.residual,
    )
    precision = seen.residual[0][0].dtype if seen.residual else torch.float64
    rounding = least_error(sums, precision)
    rounded = total**0.5 <= rounding  # the residual is only rounding, which may be correlated
    correlated = not rounded and is_correlated(found.correlation, found.pixels)
    notes = [*known]
    if exact is not None and found.reblur_error > UNEXPLAINED and not rounded:
        held = ["nonnegative"] * constraints.nonnegative
        held += ["sum_to"] * (constraints.sum_to is not None)
        asked = f", does the kernel meet {' and '.join(held)}" if held else ""
        notes.append(
            f"the kernel explains next to nothing: the error is {100 * found.reblur_error:.3g} % "
            f"of the target's own variation (are these images of one scene{asked}, and is their "
            "shift smaller than the window?)"
        )
    if not examined:
        notes.append("whether the images determine the kernel was not examined (size)")
        return _in_user_units(replace(found, notes=notes), units)
    levels = units.levels(weight_shape)
    inverses = [normal.inverse() for normal in solved]
    found = _with_errors(found, sums, constraints, degrees, error, inverses, solved, plain, levels)
    if exact is False:
        found = _compared_with_the_best(found, sums, constraints, theta, precision, solved)
    border = None
    if exact is not None:
        if seen.scores is not None and not rounded and not found.undetermined and found.converged:
            per_gram = len(theta) // len(sums.noise)
            of_noise = sums.noise.repeat_interleave(per_gram, 0) * theta
            free_inverses = inverses
            if constraints.sum_to is not None:
                unheld = normals_of(sums, replace(constraints, sum_to=None))
                free_inverses = [normal.inverse() for normal in unheld]
            border = border_of(seen.scores, free_inverses, of_noise)
        reason = Reason(
            sums,
            constraints,
            theta,
            solved,
            units,
            correlated,
            rounding,
            border,
            seen.x_noise,
            seen.clipped,
            sums.varies if seen.varying is None else sums.varies + seen.varying,
        )
        notes += notes_of(found, reason)
    if border is not None:
        found = replace(found, cut=border.cuts)
    if correlated or found.cut:
        found = replace(found, standard_error=None, background_error=None)
    return _in_user_units(replace(found, notes=notes), units)


def _in_user_units(quality: Quality, units: Units) -> Quality:
    def times(value: Any, factor: float) -> Any:
        return None if value is None else value * factor

    to_weight = units.y / units.x
    errors = times(quality.standard_error, to_weight)
    return replace(
        quality,
        weight_sum=quality.weight_sum * units.weights,
        squared_error=quality.squared_error * units.loss,
        excess=times(quality.excess, units.loss),
        farthest=times(quality.farthest, to_weight),
        rms=quality.rms * units.y,
        mean=times(quality.mean, units.y),
        residual_unit=units.y,
        largest=times(quality.largest, units.y),
        noise=quality.noise * units.y * units.weights**0.5,
        standard_error=errors.flip(-2, -1) if quality.flip and errors is not None else errors,
        background_error=times(quality.background_error, units.y),
        eigenvalue_unit=units.x**2 * units.weights,
    )


def _badness(normal: Normal) -> tuple[int, float]:
    # For large matrices, eigenvalues cost too much just to choose between groups.
    return -normal.rank, normal.condition if len(normal.gram) <= 64 else 0.0


def _with_errors(
    found: Quality,
    sums: Sums,
    constraints: Constraints,
    degrees: torch.Tensor,
    error: torch.Tensor,
    inverses: list[torch.Tensor],
    solved: list[Normal],
    plain: list[Normal],
    levels: torch.Tensor | None,
) -> Quality:
    """`found` with the standard errors of every unknown."""
    noise = torch.where(degrees > 0, error.clamp(min=0) / degrees, torch.nan).sqrt()
    units = []
    for i, (normal, bare) in enumerate(zip(solved, plain, strict=True)):
        inverse = inverses[i]
        if normal is not bare or bool((sums.noise[i] > 0).any()):
            inverse = inverse @ sums.gram[i] @ inverse
        elements = constraints.elements
        variance = inverse.diagonal().clone()
        if levels is not None and inverse.shape[0] > elements:
            # The user's constant is this one minus the sum of weight * x_level.
            of_constant = inverse.new_zeros(len(inverse))
            of_constant[:elements] = -levels[i * len(levels) // len(solved)].to(inverse)
            of_constant[elements] = 1
            variance[elements] = of_constant @ inverse @ of_constant
        errors = variance.clamp(min=0).sqrt()
        if normal is bare and bare.rank < len(bare.reduced):
            blind = bare.null_space().norm(dim=1) > 1e-6
            errors = torch.where(blind, torch.inf, errors)
        units.append(errors)
    unit = torch.stack(units).repeat_interleave(len(error) // len(units), dim=0)
    errors = torch.where(unit.isinf(), torch.inf, noise[:, None] * unit)
    elements = constraints.elements
    return replace(
        found,
        standard_error=errors[:, :elements].reshape(found.weight_shape),
        background_error=errors[:, elements:] if errors.shape[1] > elements else None,
    )


def _compared_with_the_best(
    found: Quality,
    sums: Sums,
    constraints: Constraints,
    theta: torch.Tensor,
    precision: torch.dtype,
    normals: list[Normal],
) -> Quality:
    """`found` with the distance of the steps' result from the best kernel."""
    per_gram = len(theta) // len(normals)
    excess = farthest = 0.0
    for i, normal in enumerate(normals):
        filters = slice(i * per_gram, (i + 1) * per_gram)
        at = theta[filters].to(sums.gram)
        change = (normal.minimum(sums.moments[filters], at) - at) / normal.scale
        excess += float(((change @ normal.gram) * change).sum())
        farthest = max(farthest, float(change[:, : constraints.elements].abs().max()))
    # One standard error in each unknown raises the loss by noise^2, that of the best kernel's
    # residual; `rounding` is that of the loss.
    least = _ratio(found.squared_error - excess, found.squared_error)
    chance = found.unknowns * len(theta) * found.noise**2 * least
    rounding = torch.finfo(precision).eps * float(sums.squares.sum())
    converged = excess <= max(chance, rounding)
    return replace(found, excess=excess, farthest=farthest, converged=converged)


def _ratio(part: float, whole: float) -> float:
    part = max(part, 0.0)
    return part / whole if whole > 0 else (float("inf") if part > 0 else 0.0)


def rounding_of(dtype: torch.dtype) -> float:
    """A root of a squared error that is only rounding, relative to the norm of the target."""
    return max(64 * torch.finfo(dtype).eps, 2.0**-40)


def least_error(sums: Sums, dtype: torch.dtype) -> float:
    """The root of a squared error below which a residual of a dtype is only rounding."""
    return rounding_of(dtype) * float(sums.squares.sum()) ** 0.5


def statistics_of(residual: Residual) -> dict[str, Any]:
    """`mean`, `largest` and `correlation` of a Quality."""
    names = ("mean", "largest", "correlation")
    if not residual:
        return dict.fromkeys(names)
    total = weight = largest = square = down = across = 0.0
    for image, weights in residual:
        for rows in row_blocks(image):
            part = image[:, :, rows.start : rows.stop + 1].double()  # with the next row
            own = part[:, :, : rows.stop - rows.start]
            if weights is None:
                total, weight = total + float(own.sum()), weight + own.numel()
                low, high = own.aminmax()
            else:
                counts = weights[:, :, rows.start : rows.stop + 1].double().expand_as(part)
                low, high = (own * (counts[:, :, : own.shape[2]] > 0)).aminmax()
                part = part * counts.sqrt()
                own, counts = part[:, :, : own.shape[2]], counts[:, :, : own.shape[2]]
                total += float((own * counts.sqrt()).sum())
                weight += float(counts.sum())
            largest = max(largest, -float(low), float(high))
            square += float(torch.linalg.vector_norm(own)) ** 2
            across += float((own[..., :-1] * own[..., 1:]).sum())
            down += float((part[:, :, :-1] * part[:, :, 1:]).sum())
    return {
        "mean": total / weight if weight else 0.0,
        "largest": largest,
        "correlation": max(down, across) / square if square > 0 else 0.0,
    }


def is_correlated(correlation: float | None, pixels: int) -> bool:
    """Whether residuals are correlated by more than chance, so much that errors would be wrong."""
    if correlation is None or not pixels:
        return False
    return correlation > max(CORRELATED, 5 / math.sqrt(pixels))
