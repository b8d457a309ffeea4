"""How far a learned kernel can be trusted: what the images tell, and what the fit left over."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Quality:
    """How far a learned kernel can be trusted.

    What needs the normal matrix is None where that was not examined because of its size.

    Attributes:
        pixels: how many target values were fitted: those whose weight is not zero.
        weight_sum: the sum of their weights.
        squared_error: weighted sum of squared errors.
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
            of y are independent; inf where the images do not determine it.
        background_error: (K, T), the same for the background's coefficients.
        notes: warnings in sentences.
    """

    pixels: int
    weight_sum: float
    squared_error: float
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
