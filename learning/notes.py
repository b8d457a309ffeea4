"""What a user should know about a fit, in sentences: what is wrong, and what would help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .border import Border
from .gram import Sums
from .normal import Constraints, Normal
from .pairs import ImagePair
from .quality import Quality
from .units import Units
from .window import centred_size, inside

#: Standard errors from zero at which an element is significant; by chance 1 in 16000 is.
SIGNIFICANT = 4
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


@dataclass(frozen=True)
class Reason:
    """The facts that notes are made from.

    Attributes:
        sums, constraints, theta, units: as for quality_of.
        solved: the normal matrices, with penalties.
        correlated: whether residuals are correlated.
        rounding: root of a squared error that is only rounding.
        border: elements outside the window, if examined.
        x_noise, clipped, varying: as in an Observation.
    """

    sums: Sums
    constraints: Constraints
    theta: torch.Tensor
    solved: list[Normal]
    units: Units
    correlated: bool
    rounding: float
    border: Border | None
    x_noise: float | None
    clipped: float
    varying: torch.Tensor

    @property
    def per_matrix(self) -> int:
        """Filters that share a normal matrix."""
        return len(self.theta) // len(self.solved)


def notes_of(found: Quality, reason: Reason) -> list[str]:
    """The notes on a fit."""
    notes = [_undetermined_note(found, reason.sums, reason.varying)] if found.undetermined else []
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
        return [*noisy, _correlated_note(found, reason)]
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


def _undetermined_note(found: Quality, sums: Sums, varying: torch.Tensor) -> str:
    note = (
        f"the images cannot determine the kernel: {found.undetermined} of {found.unknowns} "
        "directions leave the prediction unchanged, and along these it keeps its initial value"
    )
    same_rows, same_columns = (not bool(v) for v in varying)
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


def _cut_note(reason: Reason, weight: torch.Tensor) -> str:
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


def _correlated_note(found: Quality, reason: Reason) -> str:
    reasons = ["rounding of y", "noise in x", "a change that is not a kernel"]
    if reason.x_noise is None:  # it was subtracted from the normal matrix, not from the residual
        reasons = ["the kernel spreads the noise of x over neighbours", "rounding of y"]
    if reason.constraints.ridge or reason.constraints.smooth:
        reasons.insert(0, "ridge or smooth too large")
    reasons += ["a window that is too small"] * (reason.border is None)
    larger = "; a larger window is no better" if reason.border is not None else ""
    return (
        f"the residuals of neighbouring pixels are correlated ({found.correlation:.2f}): they are "
        "not independent errors, so no standard errors are given "
        f"({', '.join(reasons[:-1])} or {reasons[-1]}{larger})"
    )


def _noise_note(found: Quality, reason: Reason, weight: torch.Tensor) -> list[str]:
    """The note for noise in x, which pulls the kernel towards zero, if the residual shows it."""
    known = reason.x_noise is None or reason.constraints.nonnegative
    if known or found.squared_error <= reason.rounding**2:
        return []
    assert reason.x_noise is not None
    variance = reason.x_noise**2
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


def _smaller_window_note(found: Quality, reason: Reason, seen: torch.Tensor) -> list[str]:
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


def clipped_fraction(pairs: Sequence[ImagePair]) -> float:
    """The fraction of y's values that are its largest or its smallest."""
    ends = [pair.y.aminmax() for pair in pairs]
    extremes = {float(min(low for low, _ in ends)), float(max(high for _, high in ends))}
    at_end = sum(_count(pair.y, value) for pair in pairs for value in extremes)
    return at_end / sum(pair.y.numel() for pair in pairs)


def _count(image: torch.Tensor, value: float) -> int:
    if image.device.type == "cpu":  # NumPy takes a fifth of PyTorch's time
        return int(np.count_nonzero(image.numpy(force=True) == value))
    return int((image == value).sum())
