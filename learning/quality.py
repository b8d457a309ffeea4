"""How far a learned kernel can be trusted: rank, standard errors, residual, and notes on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch

from .normal import Normal

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
        standard_error: (K, C/groups, R, S), also of plain images: one standard deviation of each
            element of the weight, if the errors of y are independent, of equal size except for the
            weights, and no element is held at zero; inf where the images do not determine it; None
            if `correlation` shows errors that are not independent, or `cut` is True. The weights of
            a robust loss are taken as given: with loss="tukey" the errors are a sixth too small,
            with "huber" too large if there are strong outliers.
        background_error: (K, T), the same for the background's coefficients.
        cut: whether the window cuts the kernel off: elements just outside it would explain more of
            the residual than chance. None if that was not examined.
        notes: warnings for the user.
        normal: the normal matrix of the worst group, as it was solved.
        elements: of a filter's kernel.
        weight_shape: (K, C/groups, R, S).
        flip: whether the weight is that of a strict convolution, turned by 180 degrees.
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
    flip: bool = False
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
        kernels = directions.T.reshape(-1, *self.weight_shape[1:])
        return kernels.flip(-2, -1) if self.flip else kernels


class Examination:
    """A Quality that is computed when it is first read.

    Args:
        examine: computes it; called at most once.
    """

    def __init__(self, examine: Callable[[], Quality]) -> None:
        self._examine: Callable[[], Quality] | None = examine
        self._quality: Quality | None = None

    @classmethod
    def done(cls, quality: Quality) -> Examination:
        """One that is known already."""
        found = cls(lambda: quality)
        found._examine, found._quality = None, quality
        return found

    @property
    def quality(self) -> Quality:
        """The result."""
        if self._quality is None:
            assert self._examine is not None
            with torch.no_grad():
                self._quality = self._examine()
            self._examine = None  # it holds the images
        return self._quality
