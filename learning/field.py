"""A kernel that varies over the image: each element is a polynomial in the position.

    y[p,q] = sum_t L_t(p,q) sum_{r,s} W[t,r,s] * x[p+r,q+s] + sum_b coefficient[b] * L_b(p,q)

L_t are the background's products of Legendre polynomials (`background.py`). All unknowns are
fitted jointly. The photometric scale, the kernel's sum, may have an order of its own. If it is
lower than the kernel's, the higher terms of the kernel sum to zero; if it is higher, the higher
terms change only the kernel's middle element.

C. Alard and R. H. Lupton, A method for optimal image subtraction, ApJ 503 (1998): the same
polynomials on a sum of Gaussians. L. Hu et al., Image subtraction in Fourier space, ApJ 936 (2022):
on free pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from ..images.output import StrPath, replacing
from ..ops import ArgumentError, as_integer, fourier
from ..ops.arguments import Pair
from . import polynomials
from .background import Background, Place
from .data import as_data, as_variance
from .examine import is_correlated, rounding_of, statistics_of
from .field_sums import FieldSums
from .normal import Constraints, Normal
from .options import Settings
from .pairs import ImagePair, four_dimensional, padded_image
from .units import Units

#: Highest total degree of a kernel's polynomial.
HIGHEST_ORDER = 3
#: Attributes that a file stores besides the arrays.
FACTS = (
    *("order", "scale_order", "extent", "padding", "pixels", "rms", "reblur_error", "noise"),
    *("unknowns", "rank", "notes"),
)
#: Bytes of the normal matrix above which a fit is refused: 16384 unknowns.
MOST_BYTES = 2**31


@dataclass(frozen=True)
class _Solved:
    """The solved equations, for standard errors.

    Attributes:
        normal: the matrix of the free unknowns.
        basis: (T * E + B, free): the unknowns from the free ones.
        unit: factor from standard errors in the fit's units to the user's.
    """

    normal: Normal
    basis: torch.Tensor
    unit: float


@dataclass(frozen=True)
class VaryingKernel:
    """Result of learn_kernel_field(order=...).

    Attributes:
        coefficients: (T, R, S), of the polynomials of each element, by total degree.
        background: (B,), the coefficients of the background; empty without one.
        order: of the kernel's polynomials.
        scale_order: of the polynomial of the photometric scale, the sum of the kernel's elements.
        extent: (P, Q), the output that the polynomials span.
        padding: ((top, bottom), (left, right)) zeros around x.
        residual: prediction minus target, (P, Q), a list for several pairs; None when loaded.
        pixels: number of fitted target values.
        rms: root of the (weighted) mean squared error, in the units of y.
        reblur_error: rms over the RMS of y about its mean.
        noise: standard deviation of a target value of weight one, corrected for the number of
            unknowns.
        unknowns: number of free unknowns.
        rank: number of directions of these that the images determine.
        notes: warnings for the user.
    """

    coefficients: torch.Tensor
    background: torch.Tensor
    order: int
    scale_order: int
    extent: Pair
    padding: tuple[Pair, Pair]
    residual: torch.Tensor | list[torch.Tensor] | None
    pixels: int
    rms: float
    reblur_error: float
    noise: float
    unknowns: int
    rank: int
    notes: list[str] = field(default_factory=list)
    solved: _Solved | None = field(default=None, repr=False, compare=False)

    def at(self, row: float, column: float) -> torch.Tensor:
        """The kernel (R, S) at a position in output pixels; fractions and outside are allowed."""
        values = self._terms(row, column).to(self.coefficients)
        return torch.tensordot(values, self.coefficients, 1)

    def standard_error(self, row: float, column: float) -> torch.Tensor | None:
        """One standard deviation of each element of `at`, (R, S), for independent errors of y.

        None for a loaded kernel, one that the images do not determine, or correlated residuals.
        """
        if self.solved is None or self.rank < self.unknowns:
            return None
        _, R, S = self.coefficients.shape
        values = self._terms(row, column).to(self.solved.basis)
        # The matrix from the unknowns to the elements of `at`.
        here = torch.kron(
            values[:, None], torch.eye(R * S, dtype=values.dtype, device=values.device)
        )
        here = self.solved.basis[: len(here)].T @ here
        variance = (here * self.solved.normal.solve(here)).sum(0)
        return (variance.clamp(min=0).sqrt() * self.solved.unit).view(R, S).to(self.coefficients)

    def scale(self) -> torch.Tensor:
        """The kernel's sum at every output pixel, (P, Q): the photometric scale."""
        sums = self.coefficients.sum((1, 2))[None]
        return self._surfaces(self._degree).evaluate(sums, self.extent, self._place())[0]

    def predict(self, x: Any, *, origin: Pair = (0, 0), padding: Any = None) -> Any:
        """The cross-correlation of x with the kernel, plus the background.

        Args:
            x: (H, W), a tensor, an array or an Astropy image.
            origin: (row, column) of the first output pixel, if x is a piece of the fitted image.
            padding: ((top, bottom), (left, right)) instead of the fit's.

        Returns:
            (P, Q), a tensor for a tensor, else an array.
        """
        image = as_data("x", x).values.to(self.coefficients)
        y = self._spread(image, self.coefficients, self._degree, origin, padding)
        if len(self.background):
            order = polynomials.order_of(len(self.background))
            place, extent = self._place(origin), (y.shape[0], y.shape[1])
            y = y + Background(order).evaluate(self.background[None], extent, place)[0]
        return y if isinstance(x, torch.Tensor) else y.numpy(force=True)

    def difference(
        self, x: Any, y: Any, *, x_variance: Any = None, y_variance: Any = None
    ) -> tuple[Any, Any]:
        """y minus its prediction, and the variance of that difference from the noise of y and x.

        Args:
            x, y: (H, W); y of x's size, or of the output's.
            x_variance, y_variance: of their noise, maps or numbers; None for zero.

        Returns:
            (difference, variance), each (P, Q); arrays for an array.
        """
        target = self._cropped(as_data("y", y).values.to(self.coefficients))
        prediction = self.predict(torch.as_tensor(as_data("x", x).values))
        variance = torch.zeros_like(prediction)
        if x_variance is not None:
            images = as_data("x", x).values
            given = as_variance("x_variance", x_variance, images).to(self.coefficients)
            T = len(self.coefficients)
            products = polynomials.products(self._degree, self._degree).to(self.coefficients)
            squares = torch.einsum(
                "tum,trs,urs->mrs", products, self.coefficients, self.coefficients
            )
            assert products.shape[0] == T
            variance = variance + self._spread(given, squares, 2 * self._degree, (0, 0), None)
        if y_variance is not None:
            given = as_variance("y_variance", y_variance, as_data("y", y).values)
            variance = variance + self._cropped(given.to(self.coefficients))
        found = target - prediction, variance.clamp(min=0)
        if isinstance(y, torch.Tensor):
            return found
        return found[0].numpy(force=True), found[1].numpy(force=True)

    def save(self, path: StrPath) -> None:
        """Writes coefficients, background and attributes to an .npz file."""
        import numpy as np

        if not str(path).endswith(".npz"):
            raise ArgumentError(f"a varying kernel is saved as .npz, got {str(path)!r}")
        facts = {name: getattr(self, name) for name in FACTS}
        arrays = {n: getattr(self, n).numpy(force=True) for n in ("coefficients", "background")}
        with replacing(path) as temporary:
            np.savez(temporary, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)

    @classmethod
    def load(cls, path: StrPath) -> VaryingKernel:
        """Reads a file of `save`; the result has no residual."""
        import numpy as np

        with np.load(path, allow_pickle=False) as stored:
            if "facts" not in stored or "coefficients" not in stored:
                raise ArgumentError(f"{path} holds no varying kernel")
            facts = json.loads(str(stored["facts"]))
            arrays: dict[str, Any] = {
                name: torch.from_numpy(stored[name]) for name in ("coefficients", "background")
            }
        extent, sides = facts.pop("extent"), facts.pop("padding")
        padding = tuple(sides[0]), tuple(sides[1])
        return cls(**arrays, extent=tuple(extent), padding=padding, residual=None, **facts)

    def __str__(self) -> str:
        _, R, S = self.coefficients.shape
        over = " x ".join(map(str, self.extent))
        lines = [
            f"kernel {R}x{S} of order {self.order} over {over} pixels, scale of order "
            f"{self.scale_order}, {self.unknowns} unknowns, RMS error {self.rms:.3g}"
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    @property
    def _degree(self) -> int:
        return max(self.order, self.scale_order)

    def _surfaces(self, order: int) -> Background:
        return Background(order)

    def _place(self, origin: Pair = (0, 0)) -> Place:
        return Place(origin, self.extent)

    def _terms(self, row: float, column: float) -> torch.Tensor:
        """L_t at one position, (T,)."""
        along = [
            polynomials.legendre(
                self._degree, self.coefficients.double().new_tensor([(2 * at + 1) / n - 1])
            )
            for at, n in zip((row, column), self.extent, strict=True)
        ]
        terms = Background(self._degree).terms
        return torch.stack([along[0][i, 0] * along[1][j, 0] for i, j in terms])

    def _spread(
        self, image: torch.Tensor, kernels: torch.Tensor, order: int, origin: Pair, padding: Any
    ) -> torch.Tensor:
        """sum_t L_t * corr(image, kernels[t]), (P, Q)."""
        border = self.padding if padding is None else padding
        padded = padded_image(four_dimensional(image), border, "zeros")
        R, S = kernels.shape[-2:]
        extent = padded.shape[-2] - R + 1, padded.shape[-1] - S + 1
        surfaces = Background(order).images(extent, self._place(origin), image)
        total = image.new_zeros(extent)
        for surface, kernel in zip(surfaces, kernels, strict=True):
            total += surface * _correlate(padded, kernel)
        return total

    def _cropped(self, y: torch.Tensor) -> torch.Tensor:
        """The part of y that full windows predict."""
        P, Q = self.extent
        if tuple(y.shape) == (P, Q):
            return y
        R, S = self.coefficients.shape[-2:]
        if tuple(y.shape) != (P + R - 1, Q + S - 1):
            raise ArgumentError(
                f"y must have {P} x {Q} pixels, or {P + R - 1} x {Q + S - 1} as x, got "
                f"{' x '.join(map(str, y.shape))}"
            )
        top, left = (R - 1) // 2, (S - 1) // 2
        return y[top : top + P, left : left + Q]


def learn_varying(
    settings: Settings,
    pairs: list[ImagePair],
    single: bool,
    order: Any,
    scale_order: Any,
    ridge: float,
) -> VaryingKernel:
    """The jointly best polynomial kernel, photometric scale and background.

    Raises:
        ArgumentError: orders out of range, images with channels, or too many unknowns.
    """
    order = as_integer("order", order)
    scale_order = order if scale_order is None else as_integer("scale_order", scale_order)
    for name, value in (("order", order), ("scale_order", scale_order)):
        if not 0 <= value <= HIGHEST_ORDER:
            raise ArgumentError(f"{name} must be from 0 to {HIGHEST_ORDER}, got {value}")
    if any(pair.rank != 2 for pair in pairs) or settings.stride != (1, 1) or settings.groups != 1:
        shape = tuple(pairs[0].x.shape[-pairs[0].rank :])
        raise ArgumentError(
            "order takes plain images (H, W), one channel at a time, with stride 1; got x of shape "
            f"{shape} and stride {settings.stride} (tiles= takes channels and strides)"
        )
    if len({pair.extent for pair in pairs}) > 1:
        raise ArgumentError("order needs outputs of one size in all pairs")
    degree, window = max(order, scale_order), settings.window
    taps, terms = window[0] * window[1], len(Background(degree).terms)
    if 8 * (taps * terms) ** 2 > MOST_BYTES:
        raise ArgumentError(
            f"{window[0]} x {window[1]} elements of order {degree} are {taps * terms} unknowns, "
            f"whose normal matrix takes more than {MOST_BYTES // 2**30} GiB; take a smaller window"
        )
    if settings.flip:
        raise ArgumentError("flip does not go with order: flip the kernel of the result")
    dtypes = {image.dtype for pair in pairs for image in (pair.x, pair.y)}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    units = Units.of(pairs, Background(None))
    background = settings.background
    sums = FieldSums.of([units.standard(pair, torch.float64) for pair in pairs], background, degree)
    basis = _basis(window, order, scale_order, len(background.terms)).to(sums.gram)
    reduced = sums.gram if scale_order == order else basis.T @ sums.gram @ basis
    free = basis.shape[1] - len(background.terms)
    penalty = ridge / (units.x**2 * units.weights)
    normal = Normal(reduced, Constraints(free, ridge=penalty))
    theta = normal.minimum((basis.T @ sums.moments)[None], reduced.new_zeros(1, len(reduced)))[0]
    full = basis @ theta
    coefficients = full[: terms * taps].view(terms, *window) * (units.y / units.x)
    of_background = full[terms * taps :] * units.y
    extent = pairs[0].extent
    found = VaryingKernel(
        coefficients.to(dtype), of_background.to(dtype), order, scale_order, extent,
        pairs[0].padding, None, 0, 0.0, 0.0, 0.0, len(reduced), normal.rank,
    )  # fmt: skip
    residual, total, weight, count, target, squares = [], 0.0, 0.0, 0, 0.0, 0.0
    for pair in pairs:
        left = found.predict(pair.x[0, 0].to(dtype)) - pair.y[0, 0].to(dtype)
        residual.append(left)
        counts = torch.ones_like(left) if pair.weights is None else pair.weights[0, 0].double()
        total += float((counts * left.double().square()).sum())
        weight += float(counts.sum())
        count += int((counts > 0).sum())
        y = pair.y[0, 0].double()
        mean = float((counts * y).sum()) / max(float(counts.sum()), 1e-300)
        target += float((counts * (y - mean).square()).sum())
        squares += float((counts * y.square()).sum())
    noise = (total / max(count - normal.rank, 1)) ** 0.5
    unit = noise / (units.x * units.weights**0.5)
    notes = [note for pair in pairs for note in pair.notes]
    if normal.rank < len(reduced):
        missing = len(reduced) - normal.rank
        notes.append(
            f"the images cannot determine the kernel: {missing} of {len(reduced)} directions leave "
            "the prediction unchanged (a lower order, a smaller window or ridge)"
        )
    rounded = total <= rounding_of(dtype) ** 2 * squares
    counts_of = [None if pair.weights is None else pair.weights[:, :1] for pair in pairs]
    images = [left[None, None] for left in residual]
    correlation = statistics_of(list(zip(images, counts_of, strict=True)))["correlation"]
    correlated = not rounded and is_correlated(correlation, count)
    if correlated:
        notes.append(
            f"the residuals of neighbouring pixels are correlated ({correlation:.2f}): they are "
            "not independent errors, so no standard errors are given (an order or a window that is "
            "too small, noise in x, or a change that is not a kernel)"
        )
    facts = vars(found) | {  # attributes that need the residual
        "residual": residual[0] if single else residual,
        "pixels": count,
        "rms": (total / weight) ** 0.5 if weight else 0.0,
        "reblur_error": (total / target) ** 0.5 if target else 0.0,
        "noise": noise,
        "notes": notes,
        "solved": None if correlated else _Solved(normal, basis, unit),
    }
    return VaryingKernel(**facts)


def _basis(window: Pair, order: int, scale_order: int, terms: int) -> torch.Tensor:
    """(T * E + B, free), orthonormal: directions that the orders of kernel and scale allow."""
    E = window[0] * window[1]
    whole = torch.eye(E, dtype=torch.float64, device="cpu")
    normal = torch.full((E,), E**-0.5, dtype=torch.float64, device="cpu")
    normal[0] += 1
    normal /= normal.norm()
    zero_sum = (whole - 2 * torch.outer(normal, normal))[:, 1:]
    centre = (window[0] - 1) // 2 * window[1] + (window[1] - 1) // 2
    blocks = []
    for i, j in Background(max(order, scale_order)).terms:
        if i + j > order:
            blocks.append(whole[:, centre : centre + 1])
        else:
            blocks.append(whole if i + j <= scale_order else zero_sum)
    behind = torch.eye(terms, dtype=torch.float64, device="cpu")
    return torch.block_diag(*blocks, behind)


def _correlate(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    if image.device.type == "cpu":
        return fourier.correlate(image, kernel[None, None])[0, 0]
    return F.conv2d(image, kernel[None, None])[0, 0]
