"""How far a learned kernel can be trusted: rank, standard errors, residual, and notes on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from .border import Border, border_of
from .gram import Sums
from .normal import Constraints, Normal
from .pairs import ImagePair
from .problem import Problem
from .solve import normals_of
from .totals import row_blocks
from .units import Units

#: Standard errors from zero at which an element is significant; by chance 1 in 16000 is.
SIGNIFICANT = 4
#: Correlation of neighbouring residuals above which, if significant, they are not independent
#: errors: the standard errors would be at least a fifth too small.
CORRELATED = 0.15
#: RMS error over the target's own variation above which a kernel explains next to nothing.
UNEXPLAINED = 0.9
#: If a larger fraction of y's values are its largest or smallest, it may be clipped.
CLIPPED = 0.002
#: Noise of x is noted if it changes an element by this many standard errors, and by this
#: fraction of the largest element.
NOISE_ERRORS, NOISE_BIAS = 2, 0.01
#: Noise of x is noted if it explains a part of the squared error within these limits.
NOISE_PARTS = 0.2, 2.0
#: An estimated noise above this many standard deviations of x is not told apart from the image.
MOST_NOISE = 0.5
#: Pixels along a side of the part of x in which its noise is estimated.
NOISE_PIXELS = 160


Residual: TypeAlias = list[tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class Quality:
    """How far a learned kernel can be trusted.

    Attributes that need the normal matrix are None if it was too large to compute.

    Attributes:
        pixels: number of fitted target values, those whose weight is not zero.
        weight_sum: the sum of their weights.
        squared_error: weighted sum of squared errors.
        excess: the loss, with penalties, minus the least possible; None if the loss is a function.
        farthest: the largest distance of an element from the best kernel's; None as `excess`.
        converged: False if `excess` is more than noise explains: the steps ended too early, and the
            kernel may be wrong by more than the standard errors.
        rms: root of the weighted mean squared error, in the units of y.
        reblur_error: RMS error over the RMS of y about its mean: 0 for an exact fit, 1 for a
            kernel that predicts no better than a constant.
        mean: weighted mean of prediction minus target; None after streaming, as the next two.
        largest: the largest absolute residual.
        correlation: of the residuals of neighbouring pixels, in rows or in columns, whichever is
            larger. It is 0 for independent errors of y, and larger for a window that is too small,
            noise in x, or a change that no kernel explains.
        unknowns: of one filter.
        rank: number of directions of these that the images determine.
        noise: standard deviation of a target value of weight one about the prediction, corrected
            for the number of unknowns: sqrt(squared_error / (pixels - rank)).
        standard_error: shaped as the weight: one standard deviation of each element, if the errors
            of y are independent, of equal size except for the weights, and no element is held at
            zero; inf where the images do not determine it; None if `correlation` shows errors that
            are not independent, or `cut` is True. The weights of a robust loss are
            taken as given: with loss="tukey" the errors are a sixth too small, with "huber" too
            large if there are strong outliers.
        background_error: (K, T), the same for the background's coefficients.
        cut: whether the window cuts the kernel off: elements just outside it would explain more of
            the residual than chance. None if that was not examined.
        notes: warnings for the user.
        normal: the normal matrix of the worst group, as it was solved.
        elements: of a filter's kernel.
        weight_shape: (K, C/groups, R, S).
        eigenvalue_unit: factor from eigenvalues in the fit's units to those of the images.
        residual: prediction minus target and weights of each pair, in the units of the fit.
        residual_unit: factor from residuals in the fit's units to the units of y.
    """

    pixels: int
    weight_sum: float
    squared_error: float
    excess: float | None
    farthest: float | None
    converged: bool
    rms: float
    reblur_error: float
    mean: float | None
    largest: float | None
    correlation: float | None
    unknowns: int
    rank: int | None
    noise: float
    standard_error: torch.Tensor | None
    background_error: torch.Tensor | None
    cut: bool | None = None
    notes: list[str] = field(default_factory=list)
    normal: Normal | None = field(default=None, repr=False, compare=False)
    elements: int = 0
    weight_shape: tuple[int, ...] = ()
    eigenvalue_unit: float = 1.0
    residual: Residual = field(default_factory=list, repr=False, compare=False)
    residual_unit: float = 1.0

    def __str__(self) -> str:
        """Lines with the error, the standard error and the condition number."""
        lines = [
            f"error: {self.rms:.3g} RMS over {self.pixels} pixels, "
            f"{100 * self.reblur_error:.3g} % of the target's own variation"
        ]
        if self.robust is not None and self.largest is not None:
            lines[0] += f"; {self.robust:.3g} by the median, {self.largest:.3g} at most"
        errors = self.standard_error
        if errors is not None and bool(errors.isfinite().all()) and self.converged:
            lines.append(f"each element is known to {float(errors.max()):.2g} (one standard error)")
        if self.condition is not None and self.condition < math.inf:
            ratio = math.sqrt(self.condition)
            meaning = "all parts of the kernel are determined about equally well"
            if ratio > 10:
                meaning = (
                    f"some parts of the kernel are determined {ratio:.2g} times less well than "
                    "others"
                )
            lines.append(f"condition number of the normal matrix {self.condition:.3g}: {meaning}")
        return "\n".join(lines)

    __repr__ = __str__

    @classmethod
    def of_a_file(
        cls, weight: torch.Tensor, rms: float, pixels: int, error: torch.Tensor | None
    ) -> Quality:
        """The quality of a kernel that was read from a file."""
        return cls(
            pixels=pixels,
            weight_sum=float(pixels),
            squared_error=rms * rms * pixels,
            excess=None,
            farthest=None,
            converged=True,
            rms=rms,
            reblur_error=math.nan,
            mean=None,
            largest=None,
            correlation=None,
            unknowns=weight[0].numel() if weight.dim() == 4 else weight.numel(),
            rank=None,
            noise=math.nan,
            standard_error=error,
            background_error=None,
        )

    @cached_property
    def robust(self) -> float | None:
        """1.4826 times the median absolute residual, insensitive to outliers; None if streamed."""
        if not self.residual:
            return None
        values = [
            image.flatten() if weights is None else image[weights.expand_as(image) > 0]
            for image, weights in self.residual
        ]
        distances = torch.cat(values).abs()
        median = float(distances.median()) if len(distances) else 0.0
        return 1.4826 * median * self.residual_unit

    @property
    def undetermined(self) -> int | None:
        """Number of a filter's unknowns that the images do not determine; None if not examined."""
        return None if self.rank is None else self.unknowns - self.rank

    @property
    def condition(self) -> float | None:
        """Largest over smallest eigenvalue of the normal matrix; inf if one counts as zero."""
        return None if self.normal is None else self.normal.condition

    @cached_property
    def eigenvalues(self) -> torch.Tensor | None:
        """(U,) of the normal matrix, ascending; of the worst group."""
        return None if self.normal is None else self.normal.eigenvalues * self.eigenvalue_unit

    @cached_property
    def null_space(self) -> torch.Tensor | None:
        """(undetermined, C/groups, R, S): kernels that change no prediction, orthonormal.

        Adding any combination of these to the learned kernel gives an equally good one.
        """
        if self.normal is None:
            return None
        directions = self.normal.null_space()[: self.elements]
        return directions.T.reshape(-1, *self.weight_shape[1:])


def quality_of(
    sums: Sums,
    constraints: Constraints,
    theta: torch.Tensor,
    error: torch.Tensor,
    weight_shape: tuple[int, ...],
    residual: Residual,
    exact: bool | None,
    problem: Problem | None = None,
    normals: list[Normal] | None = None,
    units: Units | None = None,
    x_noise: Callable[[], float] | None = None,
) -> Quality:
    """The quality of a solution. Arguments are in the units of the fit, the result in the user's.

    Args:
        sums: of the images, their gram empty if it was too large to compute.
        constraints: of the fit.
        theta: (K, D), the solution.
        error: (K,), the (weighted) sum of squared errors of each filter.
        weight_shape: (K, C/groups, R, S).
        residual: prediction minus target and weights of each pair; empty after streaming.
        exact: True for the exact solution, False for the result of steps towards it; None if the
            loss is not squared error.
        problem: of the residual, to examine elements outside the window; None after streaming.
        normals: the matrices that were solved, if any.
        units: of the fit; None for the user's.
        x_noise: returns an estimated standard deviation of the noise of x; None if the fit
            subtracts that noise.
    """
    units = units or Units()
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
        **_statistics(residual),
        unknowns=free,
        rank=worst.rank if worst is not None else None,
        noise=_ratio(total, float(degrees.clamp(min=0).sum())) ** 0.5,
        standard_error=None,
        background_error=None,
        normal=worst,
        elements=constraints.elements,
        weight_shape=weight_shape,
        residual=residual,
    )
    precision = residual[0][0].dtype if residual else torch.float64
    eps = max(64 * torch.finfo(precision).eps, 2.0**-40)
    rounding = eps * float(sums.squares.sum()) ** 0.5
    rounded = total**0.5 <= rounding  # the residual is only rounding, which may be correlated
    correlated = not rounded and _is_correlated(found)
    notes = []
    if exact is not None and found.reblur_error > UNEXPLAINED and not rounded:
        notes.append(
            f"the kernel explains next to nothing: the error is {100 * found.reblur_error:.3g} % "
            "of the target's own variation (are these images of one scene, and is their shift "
            "smaller than the window?)"
        )
    if not examined:
        notes.append("whether the images determine the kernel was not examined (size)")
        return _in_user_units(replace(found, notes=notes), units)
    levels = units.levels(weight_shape)
    inverses = [normal.inverse() for normal in solved]
    found = _with_errors(found, sums, constraints, degrees, error, inverses, solved, plain, levels)
    if exact is False:
        found = _compared_with_the_best(found, sums, constraints, theta, precision, solved)
    border, clipped = None, 0.0
    if exact is not None:
        if problem is not None and not rounded and not found.undetermined and found.converged:
            per_gram = len(theta) // len(sums.noise)
            of_noise = sums.noise.repeat_interleave(per_gram, 0) * theta
            free_inverses = inverses
            if constraints.sum_to is not None:
                unheld = normals_of(sums, replace(constraints, sum_to=None))
                free_inverses = [normal.inverse() for normal in unheld]
            images = [image for image, _ in residual]
            border = border_of(problem.pairs, images, problem.background, free_inverses, of_noise)
            if border is not None and border.cuts:
                clipped = _clipped(problem.pairs)
        reason = _Reason(
            sums, constraints, theta, solved, units, correlated, rounding, x_noise, border, clipped
        )
        notes += _notes(found, reason)
    if border is not None:
        found = replace(found, cut=border.cuts)
    if correlated or found.cut:
        found = replace(found, standard_error=None, background_error=None)
    return _in_user_units(replace(found, notes=notes), units)


@dataclass(frozen=True)
class _Reason:
    """The facts that notes are made from.

    Attributes:
        sums, constraints, theta, units, x_noise: as for quality_of.
        solved: the normal matrices, with penalties.
        correlated: whether residuals are correlated.
        rounding: root of a squared error that is only rounding.
        border: elements outside the window, if examined.
        clipped: the fraction of y's values that are its largest or its smallest.
    """

    sums: Sums
    constraints: Constraints
    theta: torch.Tensor
    solved: list[Normal]
    units: Units
    correlated: bool
    rounding: float
    x_noise: Callable[[], float] | None
    border: Border | None
    clipped: float

    @property
    def per_matrix(self) -> int:
        """Filters that share a normal matrix."""
        return len(self.theta) // len(self.solved)


def _in_user_units(quality: Quality, units: Units) -> Quality:
    def times(value: Any, factor: float) -> Any:
        return None if value is None else value * factor

    to_weight = units.y / units.x
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
        standard_error=times(quality.standard_error, to_weight),
        background_error=times(quality.background_error, units.y),
        eigenvalue_unit=units.x**2 * units.weights,
    )


def noise_of(pair: ImagePair) -> float:
    """Estimate of the noise in x, a standard deviation, by second differences; texture adds to it.

    0 if x is mostly noise by this estimate, because texture then looks the same.

    J. Immerkaer, Fast noise variance estimation, Computer Vision and Image Understanding 64 (1996),
    with the median in place of the mean.
    """
    H, W = pair.x.shape[-2:]
    if min(H, W) < 3:
        return 0.0
    rows, columns = (
        slice(max(0, (n - NOISE_PIXELS) // 2), (n + NOISE_PIXELS) // 2) for n in (H, W)
    )
    x = pair.x[:1, :1, rows, columns].double()
    deviation = float(x.std())
    for axis in (2, 3):
        n = x.shape[axis] - 2
        x = x.narrow(axis, 0, n) - 2 * x.narrow(axis, 1, n) + x.narrow(axis, 2, n)
    noise = 1.4826 * float(x.abs().median()) / 6
    return noise if noise < MOST_NOISE * deviation else 0.0


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


def _clipped(pairs: list[ImagePair]) -> float:
    """The fraction of y's values that are its largest or its smallest."""
    ends = [pair.y.aminmax() for pair in pairs]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    at_end = sum(int(((pair.y == low) | (pair.y == high)).sum()) for pair in pairs)
    return at_end / sum(pair.y.numel() for pair in pairs)


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
    # One standard error in each unknown raises the loss by noise^2; `rounding` is that of the loss.
    chance = found.unknowns * len(theta) * found.noise**2
    rounding = torch.finfo(precision).eps * float(sums.squares.sum())
    converged = excess <= max(chance, rounding)
    return replace(found, excess=excess, farthest=farthest, converged=converged)


def _ratio(part: float, whole: float) -> float:
    part = max(part, 0.0)
    return part / whole if whole > 0 else (float("inf") if part > 0 else 0.0)


def _statistics(residual: Residual) -> dict[str, Any]:
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


def _is_correlated(found: Quality) -> bool:
    if found.correlation is None or not found.pixels:
        return False
    return found.correlation > max(CORRELATED, 5 / math.sqrt(found.pixels))


def _notes(found: Quality, reason: _Reason) -> list[str]:
    notes = [_undetermined_note(found, reason.sums)] if found.undetermined else []
    if not found.converged:
        assert found.excess is not None
        assert found.farthest is not None
        units = reason.units
        notes.append(
            f"the steps ended before they converged: the loss is {found.excess * units.loss:.3g} "
            "above the least possible, and elements are up to "
            f"{found.farthest * units.y / units.x:.2g} from the best ones (more steps, or "
            "solver='normal', would help)"
        )
    if notes:
        return notes
    elements = reason.constraints.elements
    weight = reason.theta[:, :elements].reshape(found.weight_shape)
    noisy = _noise_note(found, reason, weight)
    if reason.border is not None and reason.border.cuts:
        return [*noisy, _cut_note(reason, weight)]
    if reason.correlated:
        return [*noisy, _correlated_note(found, reason.border is not None)]
    assert found.standard_error is not None
    largest = float(weight.abs().max())
    error = found.standard_error.to(weight)
    if largest > 0 and not bool((weight.abs() > SIGNIFICANT * error).any()):
        return [
            "the images barely determine the kernel: no element differs from zero by "
            f"{SIGNIFICANT} standard errors (a smaller window, more pixels, or ridge would help)",
        ]
    least = torch.full_like(error, 1e-6 * largest)
    seen = weight.abs() > torch.maximum(SIGNIFICANT * error, least)
    return noisy + _smaller_window_note(found, reason, seen)


def _cut_note(reason: _Reason, weight: torch.Tensor) -> str:
    assert reason.border is not None
    R, S = weight.shape[-2:]
    part = 100 * reason.border.largest / max(float(weight.abs().max()), 1e-300)
    note = (
        "the window seems to cut the kernel off: elements just outside it would explain part of "
        f"the residual, and reach about {part:.2g} % of the largest element; try {R + 4} x {S + 4} "
        "or kernel_size='auto', unless the change between the images is not a kernel. No standard "
        "errors are given, because they would be too small"
    )
    if reason.clipped > CLIPPED:
        note += (
            f". Or y is clipped: {100 * reason.clipped:.2g} % of its values are its largest or its "
            "smallest (mask= leaves them out)"
        )
    return note


def _correlated_note(found: Quality, looked_outside: bool) -> str:
    reasons = "rounding of y, noise in x, a change that is not a kernel"
    if looked_outside:
        reasons += "; a larger window is no better"
    else:
        reasons += ", or a window that is too small"
    return (
        f"the residuals of neighbouring pixels are correlated ({found.correlation:.2f}): they are "
        f"not independent errors, so no standard errors are given ({reasons})"
    )


def _noise_note(found: Quality, reason: _Reason, weight: torch.Tensor) -> list[str]:
    """The note for noise in x, which pulls the kernel towards zero, if the residual shows it."""
    known = reason.x_noise is None or reason.constraints.nonnegative
    if known or found.squared_error <= reason.rounding**2:
        return []
    assert reason.x_noise is not None
    variance = reason.x_noise() ** 2
    passed_on = variance * float(weight.square().sum()) / len(weight)
    part = passed_on * found.weight_sum / max(found.squared_error, 1e-300)
    if not NOISE_PARTS[0] < part < NOISE_PARTS[1]:
        return []
    # The kernel spreads noise of x over neighbours: without that correlation, x is not noisy.
    alike = [
        (weight.narrow(d, 0, n) * weight.narrow(d, 1, n)).sum()
        for d, n in ((2, weight.shape[2] - 1), (3, weight.shape[3] - 1))
    ]
    expected = part * float(max(alike)) / float(weight.square().sum())
    if (found.correlation or 0.0) < expected / 2:
        return []
    flat, change = weight.flatten(1), 0.0
    for i, normal in enumerate(reason.solved):
        first = i * reason.per_matrix
        mine = flat[first : first + reason.per_matrix]
        right = F.pad(mine, (0, len(normal.gram) - flat.shape[1])).T
        moved = normal.solve(float(reason.sums.weight_sum[first]) * variance * right)
        change = max(change, float(moved[: flat.shape[1]].abs().max()))
    largest = float(weight.abs().max())
    error = found.standard_error
    certain = float(error.max()) if error is not None else 0.0
    if change <= max(NOISE_ERRORS * certain, NOISE_BIAS * largest):
        return []
    return [
        "x seems to be noisy: unless y was computed from this x, its noise pulls the kernel "
        f"towards zero by about {100 * change / largest:.2g} % (input_noise=, a standard deviation "
        "or a map, corrects for it)"
    ]


def _smaller_window_note(found: Quality, reason: _Reason, seen: torch.Tensor) -> list[str]:
    """The note for a smaller window about the same centre that fits as well, if there is one."""
    constraints, theta, sums = reason.constraints, reason.theta, reason.sums
    rows = seen.flatten(0, 1).any(2).any(0).nonzero().flatten()
    columns = seen.flatten(0, 1).any(1).any(0).nonzero().flatten()
    if not len(rows) or constraints.nonnegative or constraints.sum_to is not None:
        return []
    _, channels, R, S = found.weight_shape
    size = (centred_size(rows, R), centred_size(columns, S))
    if size == (R, S):
        return []
    kept = inside((R, S), size, sums.gram.device).flatten().repeat(channels)
    kept = F.pad(kept, (0, theta.shape[1] - len(kept)), value=True)
    some = replace(constraints, elements=channels * size[0] * size[1], window=(channels, *size))
    rise = 0.0
    for i, gram in enumerate(sums.noiseless(constraints.elements)[0]):
        filters = slice(i * reason.per_matrix, (i + 1) * reason.per_matrix)
        moments, whole = sums.moments[filters], theta[filters].to(gram)
        normal = Normal(gram[kept][:, kept], some)
        part = torch.zeros_like(whole)
        part[:, kept] = normal.minimum(moments[:, kept], whole[:, kept])
        change = part - whole
        rise += float(((change @ gram) * change).sum())
    dropped = len(theta) * int((~kept).sum())
    chance = (dropped + SIGNIFICANT * math.sqrt(2 * dropped)) * found.noise**2
    if rise > max(chance, reason.rounding**2):
        return []
    return [
        f"the window is larger than the kernel: a fit with {size[0]} x {size[1]} about the same "
        "centre is as good"
    ]


def centred_size(taps: torch.Tensor, whole: int) -> int:
    """Side of the smallest window, about the centre of one with `whole` taps, that holds `taps`."""
    centre = (whole - 1) // 2
    before, after = centre - int(taps[0]), int(taps[-1]) - centre
    return max(1, 2 * before + 1 if before > 0 else 1, 2 * after if after > 0 else 1)


def inside(whole: tuple[int, int], size: tuple[int, int], device: Any = None) -> torch.Tensor:
    """Which taps of a window `whole` are in the window `size` about its centre, bool (R, S)."""
    axes = []
    for taps, some in zip(whole, size, strict=True):
        first = (taps - 1) // 2 - (some - 1) // 2
        place = torch.arange(taps, device=device)
        axes.append((place >= first) & (place < first + some))
    return axes[0][:, None] & axes[1]


def _undetermined_note(found: Quality, sums: Sums) -> str:
    note = (
        f"the images cannot determine the kernel: {found.undetermined} of {found.unknowns} "
        "directions leave the prediction unchanged, and along these it keeps its initial value"
    )
    same_rows, same_columns = (not bool(v) for v in sums.varies)
    if same_rows and same_columns:
        return f"{note} (x is the same everywhere)"
    if same_rows or same_columns:
        return f"{note} (every {'row' if same_rows else 'column'} of x is the same)"
    fewest = int(sums.pixels.min())
    if fewest < found.unknowns:
        return (
            f"{note} (the window is too large for the images: a filter has {found.unknowns} "
            f"unknowns and {fewest} target values)"
        )
    return note
