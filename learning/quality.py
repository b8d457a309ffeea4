"""How far a learned kernel can be trusted: what the images tell, and what the fit left over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .gram import Sums
from .normal import Constraints, Normal

#: An element that many standard errors from zero is seen: chance does that to one in 16000.
SIGNIFICANT = 4


@dataclass(frozen=True)
class Quality:
    """How far a learned kernel can be trusted.

    What needs the normal matrix is None where that was not examined because of its size.

    Attributes:
        pixels: how many target values were fitted: those whose weight is not zero.
        weight_sum: the sum of their weights.
        squared_error: weighted sum of squared errors.
        excess: how far the loss, with the ridge, is above the least possible; None where the loss
            is a function, or that was not examined.
        farthest: the largest distance of an element from the best kernel's, as excess.
        converged: False where that is more than noise explains: the steps ended too early, and the
            standard errors are not all that is wrong with the kernel.
        rms: root of the weighted mean squared error, in the units of y.
        reblur_error: RMS error over the RMS of y about its mean: 0 for an exact fit, 1 for a
            kernel that says no more than a constant does.
        mean: weighted mean of prediction minus target; None after streaming, as the next two.
        robust: 1.4826 times the median absolute residual: a standard deviation that outliers do
            not move.
        largest: the largest absolute residual.
        unknowns: of one filter.
        rank: how many directions of these the images determine.
        condition: largest over smallest eigenvalue of the normal matrix; inf if some directions
            are undetermined.
        eigenvalues: (U,) of the normal matrix, ascending; of the worst group.
        null_space: (undetermined, C/groups, R, S): kernels that change no prediction, orthonormal;
            every kernel of the answer's quality is the answer plus some of these.
        noise: standard deviation of a target value of weight one about the prediction, with the
            unknowns counted: sqrt(squared_error / (pixels - rank)).
        standard_error: shaped as the weight: one standard deviation of each element if the errors
            of y are independent, of equal size but for the weights, and nothing is held at zero;
            inf where the images do not determine it. A robust loss's weights are taken as given:
            with loss="tukey" the errors are a sixth too small, with "huber" too large where there
            are strong outliers.
        background_error: (K, T), the same for the background's coefficients.
        notes: warnings in sentences.
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
    robust: float | None
    largest: float | None
    unknowns: int
    rank: int | None
    condition: float | None
    eigenvalues: torch.Tensor | None
    null_space: torch.Tensor | None
    noise: float
    standard_error: torch.Tensor | None
    background_error: torch.Tensor | None
    notes: list[str] = field(default_factory=list)

    @property
    def undetermined(self) -> int | None:
        """How many of a filter's unknowns the images leave open; None if not examined."""
        return None if self.rank is None else self.unknowns - self.rank


def quality_of(
    sums: Sums,
    constraints: Constraints,
    theta: torch.Tensor,
    error: torch.Tensor,
    weight_shape: tuple[int, ...],
    residual: list[tuple[torch.Tensor, torch.Tensor | None]],
    exact: bool | None,
) -> Quality:
    """The quality of an answer.

    Args:
        sums: of the images, their gram empty if it was too large to gather.
        constraints: of the fit.
        theta: (K, D), the answer.
        error: (K,), the (weighted) sum of squared errors of each filter.
        weight_shape: (K, C/groups, R, S).
        residual: prediction minus target and weights of each pair; empty after streaming.
        exact: whether theta is the best answer, not one on the way there; None if it is, or is on
            the way to, the best by a loss other than squared error.
    """
    examined = len(sums.gram) > 0
    free = theta.shape[1] - (constraints.sum_to is not None)
    normals = [Normal(g, replace(constraints, ridge=0.0)) for g in sums.gram]
    worst = max(normals, key=lambda n: (-n.rank, n.condition), default=None)
    ranks = [n.rank for n in normals for _ in range(len(theta) // len(normals))]
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
        condition=worst.condition if worst is not None else None,
        eigenvalues=worst.eigenvalues if worst is not None else None,
        null_space=_null_space(worst, constraints, weight_shape) if worst is not None else None,
        noise=_ratio(total, float(degrees.clamp(min=0).sum())) ** 0.5,
        standard_error=None,
        background_error=None,
    )
    if not examined:
        note = "whether the images determine the kernel was not examined (size)"
        return replace(found, notes=[note])
    noise = torch.where(degrees > 0, error.clamp(min=0) / degrees, torch.nan).sqrt()
    grams = zip(sums.gram, normals, strict=True)
    unit = torch.stack([_unit_errors(gram, normal, constraints) for gram, normal in grams])
    unit = unit.repeat_interleave(len(theta) // len(unit), dim=0)
    errors = torch.where(unit.isinf(), torch.inf, noise[:, None] * unit)
    elements = constraints.elements
    found = replace(
        found,
        standard_error=errors[:, :elements].reshape(weight_shape),
        background_error=errors[:, elements:] if errors.shape[1] > elements else None,
    )
    if exact is False:
        precision = residual[0][0].dtype if residual else torch.float64
        found = _compared_with_the_best(found, sums, constraints, theta, precision)
    notes = _notes(found, sums, theta, weight_shape) if exact is not None else []
    return replace(found, notes=notes)


def _compared_with_the_best(
    found: Quality,
    sums: Sums,
    constraints: Constraints,
    theta: torch.Tensor,
    precision: torch.dtype,
) -> Quality:
    """With what steps towards the least loss have left undone."""
    normals = [Normal(gram, constraints) for gram in sums.gram]
    per_gram = len(theta) // len(normals)
    excess = farthest = 0.0
    for k, at in enumerate(theta.to(sums.gram)):
        normal = normals[k // per_gram]
        change = (normal.minimum(sums.moments[k], at) - at) / normal.scale
        excess += float(change @ normal.gram @ change)
        farthest = max(farthest, float(change[: constraints.elements].abs().max()))
    # One standard error in each unknown is a loss of noise^2; below the other there is rounding.
    chance = found.unknowns * len(theta) * found.noise**2
    rounding = torch.finfo(precision).eps * float(sums.squares.sum())
    converged = excess <= max(chance, rounding)
    return replace(found, excess=excess, farthest=farthest, converged=converged)


def _ratio(part: float, whole: float) -> float:
    part = max(part, 0.0)
    return part / whole if whole > 0 else (float("inf") if part > 0 else 0.0)


def _statistics(
    residual: list[tuple[torch.Tensor, torch.Tensor | None]],
) -> dict[str, Any]:
    if not residual:
        return {"mean": None, "robust": None, "largest": None}
    total, weight, values = 0.0, 0.0, []
    for image, weights in residual:
        if weights is None:
            total, weight = total + float(image.double().sum()), weight + image.numel()
            values.append(image.flatten())
        else:
            counts = weights.double().expand_as(image)
            total, weight = total + float((image * counts).sum()), weight + float(counts.sum())
            values.append(image[counts > 0])
    distances = torch.cat(values).abs()
    if not len(distances):
        return {"mean": 0.0, "robust": 0.0, "largest": 0.0}
    return {
        "mean": total / weight,
        "robust": 1.4826 * float(distances.median()),
        "largest": float(distances.max()),
    }


def _null_space(
    normal: Normal, constraints: Constraints, weight_shape: tuple[int, ...]
) -> torch.Tensor:
    directions = normal.null_space()[: constraints.elements]
    return directions.T.reshape(-1, *weight_shape[1:])


def _unit_errors(gram: torch.Tensor, normal: Normal, constraints: Constraints) -> torch.Tensor:
    """(D,): standard errors if the errors of y had a standard deviation of one."""
    if constraints.ridge:
        pull = Normal(gram, constraints).inverse()
        return (pull @ gram @ pull).diagonal().clamp(min=0).sqrt()
    errors = normal.inverse().diagonal().clamp(min=0).sqrt()
    blind = normal.null_space().norm(dim=1) > 1e-6
    return torch.where(blind, torch.inf, errors)


def _notes(
    found: Quality,
    sums: Sums,
    theta: torch.Tensor,
    weight_shape: tuple[int, ...],
) -> list[str]:
    notes = [_undetermined_note(found, sums)] if found.undetermined else []
    if not found.converged:
        notes.append(
            f"the steps ended before they converged: the loss is {found.excess:.3g} above the "
            f"least possible, and elements are up to {found.farthest:.2g} from where it is (more "
            "steps, or solver='normal', would help)"
        )
    if notes:
        return notes
    assert found.standard_error is not None
    elements = weight_shape[1] * weight_shape[2] * weight_shape[3]
    weight = theta[:, :elements].reshape(weight_shape).abs()
    largest = float(weight.max())
    error = found.standard_error.to(weight)
    if largest > 0 and not bool((weight > SIGNIFICANT * error).any()):
        return [
            f"the images barely tell: no element of the kernel differs from zero by {SIGNIFICANT} "
            "standard errors (a smaller window, more pixels, or ridge would help)"
        ]
    least = torch.full_like(error, 1e-6 * largest)
    seen = (weight > torch.maximum(SIGNIFICANT * error, least)).flatten(0, 1)
    rows, columns = seen.any(2).any(0).nonzero().flatten(), seen.any(1).any(0).nonzero().flatten()
    if not len(rows):
        return []
    box = [int(v) for v in (rows[0], rows[-1], columns[0], columns[-1])]
    size = (box[1] - box[0] + 1, box[3] - box[2] + 1)
    if size == tuple(weight_shape[2:]):
        return []
    return [
        f"the window is larger than the kernel: outside rows {box[0]} to {box[1]} and columns "
        f"{box[2]} to {box[3]} every element is zero within its error, so {size[0]} x {size[1]} "
        "would do"
    ]


def _undetermined_note(found: Quality, sums: Sums) -> str:
    note = (
        f"the images cannot determine the kernel: {found.undetermined} of {found.unknowns} "
        "directions leave the prediction unchanged, and there the answer is what it started from"
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
