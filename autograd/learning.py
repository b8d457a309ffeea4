"""Finding the kernel between two images: least squares on our own operators.

    loss(weight, bias) = sum_{n,k,p,q} (corr2d(x, weight) + bias - y)^2

The loss is quadratic in the kernel. With A the linear map from a kernel to its output, its gradient
is 2 A^T (A kernel - y), that is 2 * wgrad(x, residual), and its Hessian 2 A^T A, the same for every
filter. Gradient descent therefore converges exactly when step < 2 / largest eigenvalue of 2 A^T A.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import ops
from ..ops import ArgumentError, Geometry, as_integer, as_padding, as_pair
from ..ops.checks import check_tensors
from .function import bias_gradient, correlate, weight_gradient
from .functional import corr2d
from .gram import gram_matrix

SOLVERS = ("gd", "cg")
#: Eigenvalues of the normal matrix below this fraction of the largest count as zero: far above the
#: rounding of float64 sums, far below what 8-bit or float32 images can tell apart.
RANK_TOLERANCE = 1e-10
#: Most multiply-adds spent on the normal matrix, about a second on one core.
GRAM_BUDGET = 1e9
#: Most unknowns of one filter whose normal matrix is decomposed.
GRAM_UNKNOWNS = 1024


@dataclass(frozen=True)
class LearnedKernel:
    """What learn_kernel found.

    Attributes:
        weight: (R, S) for plain images, else (K, C, R, S).
        bias: (K,), or None if none was asked for.
        history: sum of squared errors before each step.
        loss: sum of squared errors of the kernel found.
        residual: prediction minus target, shaped as the part of the target that was fitted.
        solver: "gd" or "cg".
        step_size: the step that gradient descent used, None for other solvers.
        max_step_size: gradient descent diverges from here on; None for other solvers.
        undetermined: how many of a filter's unknowns the images leave open; None if not examined.
        condition: largest over smallest eigenvalue of the normal matrix; inf if some are
            undetermined, None if not examined.
        notes: what a user should know about the answer, in sentences.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    history: list[float]
    loss: float
    residual: torch.Tensor
    solver: str
    step_size: float | None
    max_step_size: float | None
    undetermined: int | None
    condition: float | None
    notes: list[str] = field(default_factory=list)
    padding: Any = 0

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """`corr2d(x, weight, bias)` with the padding of the fit."""
        return corr2d(x, self.weight, self.bias, padding=self.padding)

    def save(self, path: str | Path) -> None:
        """Writes the weight as .npy, or weight, bias and history as .npz."""
        path = Path(path)
        weight = self.weight.numpy(force=True)
        if path.suffix == ".npy":
            np.save(path, weight)
        elif path.suffix == ".npz":
            arrays = {"weight": weight, "history": np.array(self.history)}
            if self.bias is not None:
                arrays["bias"] = self.bias.numpy(force=True)
            np.savez(path, allow_pickle=False, **arrays)
        else:
            raise ArgumentError(f"a kernel is saved as .npy or .npz, got {path.name!r}")

    @property
    def rms(self) -> float:
        """Root of the mean squared error, in the units of y."""
        return (self.loss / max(1, self.residual.numel())) ** 0.5

    def __str__(self) -> str:
        window = "x".join(map(str, self.weight.shape))
        lines = [
            f"kernel {window} by {self.solver}, {len(self.history)} steps, "
            f"loss {self.loss:.6g}, RMS error {self.rms:.3g}"
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def learn_kernel(
    x: torch.Tensor,
    y: torch.Tensor,
    kernel_size: Any,
    *,
    solver: str = "gd",
    steps: int | None = None,
    step_size: float | None = None,
    bias: bool = False,
    padding: Any = None,
    initial: torch.Tensor | None = None,
    log_every: int = 0,
    progress: bool | None = None,
) -> LearnedKernel:
    """The kernel (and bias) whose cross-correlation with x is nearest to y in squared error.

    Args:
        x: (H, W), (C, H, W) or (N, C, H, W); any float dtype or uint8. The fit is in float64 if
            x or y is, else in float32.
        y: the target: (P, Q), (K, P, Q) or (N, K, P, Q), of the size that corr2d gives or of x's
            own size. In the latter case, unless `padding` says how its border came about, the
            border that no full window reaches is left out of the fit.
        kernel_size: R and S, int or (h, w).
        solver: "gd", gradient descent as in the textbook, or "cg", conjugate gradients on the same
            loss, which need about as many steps as the window has elements.
        steps: how many; by default 200 for "gd" and as many as there are unknowns for "cg".
        step_size: of gradient descent. By default half of the largest that converges, found by
            power iteration on the normal operator.
        bias: whether to learn a constant per filter too.
        padding: as for corr2d; None means no padding.
        initial: the kernel to start from, shaped as the result; zeros by default.
        log_every: prints the loss every so many steps, as the textbook does.
        progress: shows a progress bar; None shows one on a terminal after a second.

    Returns:
        A LearnedKernel, which also says how well the images determine the kernel.

    Raises:
        ArgumentError: shapes that do not fit, a step size with which the loop would diverge, or
            images that are not finite.
        ArgumentTypeError: arguments of a kind that cannot be used.

    Example:
        >>> X = torch.ones(6, 8); X[:, 2:6] = 0
        >>> Y = corr2d(X, torch.tensor([[1.0, -1.0]]))
        >>> found = learn_kernel(X, Y, (1, 2), solver="cg")
        >>> found.weight.round(decimals=3)
        tensor([[ 1., -1.]])
    """
    problem = _Problem(x, y, as_pair("kernel_size", kernel_size), bias, padding)
    if solver not in SOLVERS:
        raise ArgumentError(f"solver must be {' or '.join(map(repr, SOLVERS))}, got {solver!r}")
    if steps is None:
        steps = 200 if solver == "gd" else problem.unknowns
    steps = as_integer("steps", steps)
    if steps < 0:
        raise ArgumentError(f"steps must not be negative, got {steps}")
    start = problem.start(initial)
    with torch.no_grad():
        limit = None
        report = _Reporter(steps, log_every, progress)
        if solver == "gd":
            curvature = problem.curvature()
            limit = 2 / curvature if curvature > 0 else float("inf")
            step_size = _checked_step(step_size, limit)
            kernel, history = _gradient_descent(problem, start, steps, step_size, report)
        else:
            if step_size is not None:
                raise ArgumentError("step_size is for solver='gd'; conjugate gradients compute it")
            kernel, history = _conjugate_gradients(problem, start, steps, report)
        residual = problem.residual(kernel)
        undetermined, condition, notes = problem.examine()
    return LearnedKernel(
        weight=problem.public_weight(kernel.weight),
        bias=kernel.bias,
        history=history,
        loss=_square(residual),
        residual=problem.public_image(residual),
        solver=solver,
        step_size=step_size,
        max_step_size=limit,
        undetermined=undetermined,
        condition=condition,
        notes=notes,
        padding=problem.padding,
    )


@dataclass(frozen=True)
class _Kernel:
    """A point or a direction in the space of the unknowns: weight (K, C, R, S), bias (K,)."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def plus(self, other: _Kernel, factor: float) -> _Kernel:
        bias = None
        if self.bias is not None and other.bias is not None:
            bias = self.bias + factor * other.bias
        return _Kernel(self.weight + factor * other.weight, bias)

    def times(self, factor: float) -> _Kernel:
        bias = None if self.bias is None else self.bias * factor
        return _Kernel(self.weight * factor, bias)

    def norm2(self) -> float:
        return _square(self.weight) + (0.0 if self.bias is None else _square(self.bias))


class _Problem:
    """One least-squares fit: images as (N, C, H, W) in a float dtype, and the maps between them."""

    def __init__(self, x: Any, y: Any, window: ops.geometry.Pair, bias: bool, padding: Any) -> None:
        check_tensors(images=("x", "y"), x=x, y=y)
        if x.dim() not in (2, 3, 4) or y.dim() != x.dim():
            raise ArgumentError(
                "x and y must both be (H, W), (C, H, W) or (N, C, H, W), "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        self.rank = x.dim()
        dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        self.x, y = (t.detach()[(None,) * (4 - t.dim())].to(dtype) for t in (x, y))
        self.padding = ((0, 0), (0, 0)) if padding is None else as_padding(padding, window)
        self.with_bias = bias
        self.geometry = self._geometry(y.shape[1], window)
        self.y = self._target(y, padding is None)
        for name, image in (("x", self.x), ("y", self.y)):
            if not image.isfinite().all():
                raise ArgumentError(f"{name} must be finite, got NaN or infinity in it")
        self.unknowns = self.geometry.group_C * window[0] * window[1] + bias

    def _geometry(self, filters: int, window: ops.geometry.Pair) -> Geometry:
        N, C, H, W = self.x.shape
        return ops.geometry_of((N, C, H, W), (filters, C, *window), padding=self.padding)

    def _target(self, y: torch.Tensor, crop: bool) -> torch.Tensor:
        g = self.geometry
        if crop and y.shape[-2:] == self.x.shape[-2:]:
            top, left = (g.R - 1) // 2, (g.S - 1) // 2
            y = y[..., top : top + g.P, left : left + g.Q]
        if tuple(y.shape) != g.y_shape:
            expected = f"{g.P} x {g.Q}"
            if crop:
                expected += f" (no padding) or {g.H} x {g.W} (as x)"
            raise ArgumentError(
                f"y must hold {g.N} images of {expected} pixels for x of shape "
                f"{tuple(self.x.shape)} and a window of {g.R} x {g.S}, got shape {tuple(y.shape)}"
            )
        return y

    def start(self, initial: torch.Tensor | None) -> _Kernel:
        shape = self.geometry.weight_shape
        bias = self.x.new_zeros(self.geometry.K) if self.with_bias else None
        if initial is None:
            return _Kernel(self.x.new_zeros(shape), bias)
        expected = shape[-2:] if self.rank == 2 else shape
        if not isinstance(initial, torch.Tensor) or tuple(initial.shape) != tuple(expected):
            got = tuple(initial.shape) if isinstance(initial, torch.Tensor) else initial
            raise ArgumentError(f"initial must be a tensor of shape {expected}, got {got}")
        return _Kernel(initial.detach().to(self.x).reshape(shape), bias)

    def apply(self, kernel: _Kernel) -> torch.Tensor:
        """A: a kernel to its output."""
        geometry = self._geometry(kernel.weight.shape[0], (self.geometry.R, self.geometry.S))
        return correlate(self.x, kernel.weight, kernel.bias, geometry, "ieee")

    def adjoint(self, image: torch.Tensor) -> _Kernel:
        """A^T: an output to the kernels that would make it."""
        geometry = self._geometry(image.shape[1], (self.geometry.R, self.geometry.S))
        weight = weight_gradient(self.x, image, geometry, "ieee")
        return _Kernel(weight, bias_gradient(image) if self.with_bias else None)

    def residual(self, kernel: _Kernel) -> torch.Tensor:
        return self.apply(kernel) - self.y

    def curvature(self, iterations: int = 200, tolerance: float = 1e-6) -> float:
        """The largest eigenvalue of the Hessian 2 A^T A, by power iteration.

        The normal operator is the same for every filter, so one filter stands for all. The start is
        random, with a fixed seed: a regular one can be orthogonal to what is looked for.
        """
        g = self.geometry
        random = torch.Generator().manual_seed(0)
        draw = torch.randn(1, g.C, g.R, g.S, generator=random, dtype=torch.float64)
        bias = torch.randn(1, generator=random, dtype=torch.float64) if self.with_bias else None
        kernel = _Kernel(draw.to(self.x), None if bias is None else bias.to(self.x))
        estimate = 0.0
        for _ in range(iterations):
            length = kernel.norm2() ** 0.5
            if length == 0:
                return 0.0
            image = self.apply(kernel.times(1 / length))
            previous, estimate = estimate, 2 * _square(image)
            if abs(estimate - previous) <= tolerance * estimate:
                break
            kernel = self.adjoint(image)
        return estimate

    def examine(self) -> tuple[int | None, float | None, list[str]]:
        """(undetermined unknowns, condition number, sentences) from the normal matrix."""
        g = self.geometry
        lags = g.C * g.C * 2 * g.R * g.S
        if self.unknowns > GRAM_UNKNOWNS or lags * self.x[:, 0].numel() > GRAM_BUDGET:
            return None, None, ["whether the images determine the kernel was not examined (size)"]
        normal = gram_matrix(self.x, g, with_ones=self.with_bias)
        eigenvalues = torch.linalg.eigvalsh(normal)
        largest = float(eigenvalues[-1])
        undetermined = int((eigenvalues <= RANK_TOLERANCE * largest).sum())
        if not undetermined:
            return 0, largest / float(eigenvalues[0]), []
        note = (
            f"the images cannot determine the kernel: {undetermined} of {self.unknowns} directions "
            "leave the prediction unchanged, and there the answer is what it started from"
        )
        same_rows, same_columns = (not self.x.diff(dim=axis).any() for axis in (-2, -1))
        if same_rows and same_columns:
            note += " (x is the same everywhere)"
        elif same_rows or same_columns:
            note += f" (every {'row' if same_rows else 'column'} of x is the same)"
        return undetermined, float("inf"), [note]

    def public_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[0, 0] if self.rank == 2 else weight

    def public_image(self, image: torch.Tensor) -> torch.Tensor:
        return image[(0,) * (4 - self.rank)]


def _checked_step(step_size: float | None, limit: float) -> float:
    if step_size is None:
        return limit / 2 if limit < float("inf") else 1.0
    if not isinstance(step_size, int | float) or not step_size > 0:
        raise ArgumentError(f"step_size must be a positive number, got {step_size!r}")
    if step_size >= limit:
        raise ArgumentError(
            f"step_size={step_size:g} diverges on these images: the largest safe step is "
            f"{limit:.6g} (default: half of it)"
        )
    return float(step_size)


def _gradient_descent(
    problem: _Problem, kernel: _Kernel, steps: int, step_size: float, report: _Reporter
) -> tuple[_Kernel, list[float]]:
    history = []
    for step in report(range(steps)):
        residual = problem.residual(kernel)
        history.append(_square(residual))
        report.loss(step, history[-1])
        kernel = kernel.plus(problem.adjoint(residual), -2 * step_size)
    return kernel, history


def _conjugate_gradients(
    problem: _Problem, kernel: _Kernel, steps: int, report: _Reporter
) -> tuple[_Kernel, list[float]]:
    """Hestenes and Stiefel's method on A^T A (CGLS), all filters as one system."""
    history: list[float] = []
    residual = problem.residual(kernel)
    downhill = problem.adjoint(-residual)
    direction, slope = downhill, downhill.norm2()
    first_slope = slope
    for step in report(range(steps)):
        history.append(_square(residual))
        report.loss(step, history[-1])
        # Below this the gradient is rounding: further steps would only stir it.
        if slope <= torch.finfo(residual.dtype).eps ** 2 * first_slope:
            break
        image = problem.apply(direction)
        length = slope / _square(image)
        kernel = kernel.plus(direction, length)
        residual = residual + length * image
        downhill = problem.adjoint(-residual)
        previous, slope = slope, downhill.norm2()
        direction = downhill.plus(direction, slope / previous)
    return kernel, history


class _Reporter:
    """Progress bar and printed losses of a loop."""

    def __init__(self, steps: int, log_every: int, progress: bool | None) -> None:
        self.log_every = as_integer("log_every", log_every)
        self.progress = progress
        self.bar: Any = None

    def __call__(self, steps: range) -> Any:
        from tqdm import tqdm

        # disable=None: on a terminal only. A bar that would vanish within a second is not drawn.
        disable = None if self.progress is None else not self.progress
        delay = 0 if self.progress else 1
        self.bar = tqdm(steps, desc="learning", unit="step", disable=disable, delay=delay)
        return self.bar

    def loss(self, step: int, loss: float) -> None:
        if self.log_every and (step + 1) % self.log_every == 0:
            self.bar.write(f"epoch {step + 1}, loss {loss:.3f}")
        self.bar.set_postfix(loss=f"{loss:.3g}", refresh=False)


def _square(tensor: torch.Tensor) -> float:
    """The sum of squares, in float64."""
    return float(tensor.double().square().sum())
