"""Iterative solvers on the images: conjugate gradients and the optimisers of torch.optim."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from ..ops import ArgumentError, ArgumentTypeError, as_integer, shown
from .problem import Point, Problem

#: Conjugate gradients: a filter has converged after IDLE_STEPS steps that lower its loss by less
#: than STANDING squared rounding units; residuals are recomputed every REFRESH steps.
IDLE_STEPS, STANDING, REFRESH = 3, 1e3, 50


class _Silent:
    """Stands in for a progress bar that is not shown."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def update(self, _: int) -> None:
        """Does nothing."""

    def set_postfix(self, **_: Any) -> None:
        """Does nothing."""

    def write(self, text: str) -> None:
        """Prints the text."""
        print(text)


class Reporter:
    """Progress bar and printed losses of a loop."""

    def __init__(self, log_every: int, progress: bool | None) -> None:
        self.log_every = as_integer("log_every", log_every)
        self.progress = progress
        self.bar: Any = None

    def over(self, items: Any, total: int | None = None, unit: str = "step") -> Any:
        """A progress bar over `items`; if they are None, it advances by `update`."""
        if not self._shows():
            self.bar = _Silent(items)
            return self.bar
        from tqdm import tqdm

        self.bar = tqdm(
            items,
            total=total,
            desc="learning",
            unit=unit,
            unit_scale=unit != "step",
            **self._shown(),
        )
        return self.bar

    def stage(self, name: str) -> Any:
        """A context that shows a line with the name of work without steps."""
        if not self._shows():
            return _Silent(None)
        from tqdm import tqdm

        return tqdm(total=1, desc=name, bar_format="{desc} ...", leave=False, **self._shown())

    def _shows(self) -> bool:
        """Whether there is a bar, by default on a terminal."""
        if self.progress is not None:
            return self.progress
        return sys.stderr is not None and sys.stderr.isatty()

    def _shown(self) -> dict[str, Any]:
        """tqdm's delay in seconds before it draws."""
        return {"delay": 0 if self.progress else 0.3}

    def loss(self, step: int, loss: float) -> None:
        """Shows the loss before `step`, counted from 0."""
        if self.log_every and (step + 1) % self.log_every == 0:
            self.bar.write(f"epoch {step + 1}, loss {loss:.3f}")
        self.bar.set_postfix(loss=f"{loss:.3g}", refresh=False)


def checked_step(step_size: Any, limit: float) -> float:
    """The step size of gradient descent, by default half of the largest.

    Raises:
        ArgumentError: it is not a positive number, or would diverge.
    """
    if step_size is None:
        return limit / 2 if limit < float("inf") else 1.0
    checked_positive(step_size)
    if step_size >= limit:
        raise ArgumentError(
            f"step_size={step_size:g} diverges on these images: the largest safe step is "
            f"{limit:.6g} (default: half of it)"
        )
    return float(step_size)


def checked_positive(step_size: Any) -> None:
    """Raises ArgumentError unless it is a positive number."""
    if not isinstance(step_size, int | float) or not step_size > 0:
        raise ArgumentError(f"step_size must be a positive number, got {step_size!r}")


def conjugate_gradients(
    problem: Problem, point: Point, steps: int, report: Reporter, keep_sum: bool = False
) -> tuple[Point, list[float]]:
    """Hestenes and Stiefel's method on A^T A (CGLS), for each filter separately.

    Each step goes to the least loss along its direction, so that rounding cannot make the loss
    rise; a filter whose loss no longer falls stays as it is.

    Args:
        problem: the images.
        point: the initial point.
        steps: most steps.
        report: shows the loss.
        keep_sum: only directions that do not change the sum of each filter.
    """
    history: list[float] = []
    residual = problem.residual(point)
    downhill = _downhill(problem, residual, point, keep_sum)
    direction, slope = downhill, downhill.norm2()
    eps = torch.finfo(residual[0].dtype).eps
    least_slope = eps**2 * slope  # below this the gradient is rounding
    idle = torch.zeros_like(slope)
    for step in report.over(range(steps)):
        history.append(problem.loss(residual, point))
        report.loss(step, history[-1])
        moving = (slope > least_slope) & (idle < IDLE_STEPS)
        if not moving.any():
            break
        images = problem.apply(direction)
        penalty = problem.ridge * direction.weight.double().square().sum((1, 2, 3))
        curvature = problem.squared(images) + penalty
        fall = downhill.dot(direction)
        steep = moving & (curvature > 0) & (fall > 0)
        length = torch.where(steep, fall / curvature, torch.zeros_like(fall))
        point = point.plus(direction, length)
        if step % REFRESH == REFRESH - 1:
            residual = problem.residual(point)
        else:
            along = length.to(residual[0].dtype)[:, None, None]
            residual = [r + along * image for r, image in zip(residual, images, strict=True)]
        small = length * fall <= STANDING * eps**2 * (problem.squared(residual) + penalty)
        idle = torch.where(small, idle + 1, torch.zeros_like(idle))
        downhill = _downhill(problem, residual, point, keep_sum)
        previous, slope = slope, downhill.norm2()
        # If the direction did not lead down, restart with steepest descent.
        ratio = torch.where(steep, slope / previous, torch.zeros_like(slope))
        direction = downhill.plus(direction, ratio)
    return point, history


def _downhill(
    problem: Problem, residual: list[torch.Tensor], point: Point, keep_sum: bool
) -> Point:
    downhill = problem.gradient(residual, point).times(-1.0)
    if not keep_sum:
        return downhill
    weight = downhill.weight
    return Point(weight - weight.mean((1, 2, 3), keepdim=True), downhill.background)


def optimizer_named(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class in torch.optim of that name, upper or lower case; LBFGS with its line search.

    Raises:
        ArgumentError: no class has this name.
    """
    if name.lower() == "lbfgs":  # its default steps of length one diverge on losses with kinks
        return functools.partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")
    for attribute, kind in vars(torch.optim).items():
        is_optimizer = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        if is_optimizer and attribute.lower() == name.lower():
            return kind
    raise ArgumentError(
        "solver must be 'auto', 'normal', 'cg', 'gd' or the name of an optimiser in torch.optim, "
        f"got {shown(name)}"
    )


def optimise(
    problem: Problem,
    point: Point,
    steps: int,
    make: Callable[..., torch.optim.Optimizer],
    step_size: float | None,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
    report: Reporter,
) -> tuple[Point, list[float], float]:
    """Steps of an optimiser of torch.optim.

    Args:
        problem: the images.
        point: the initial point.
        steps: number of steps.
        make: makes the optimiser of a list of parameters (and `lr`, if there is a step size).
        step_size: the learning rate; None for the optimiser's own.
        loss: of prediction and target; None for the sum of squared errors.
        report: shows the loss.

    Returns:
        The kernel, the loss before each step, and its loss.
    """
    parameters = [t.clone().requires_grad_() for t in (point.weight, point.background)]
    found = Point(*parameters)
    trained = parameters if problem.background.terms else parameters[:1]
    options = {} if step_size is None else {"lr": step_size}
    optimizer = make(trained, **options)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentTypeError(f"solver must make a torch.optim.Optimizer, got {shown(optimizer)}")

    def objective() -> torch.Tensor:
        total = _total_loss(problem, found, loss)
        return total + problem.ridge * found.weight.square().sum() if problem.ridge else total

    def closure() -> Any:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = objective()
            value.backward()
        return value

    history = []
    for step in report.over(range(steps)):
        history.append(_checked_loss(float(optimizer.step(closure)), step))
        report.loss(step, history[-1])
    with torch.no_grad():
        last = _checked_loss(float(objective()), steps)
        return Point(*(p.detach() for p in parameters)), history, last


def _checked_loss(loss: float, step: int) -> float:
    """The loss itself.

    Raises:
        ArgumentError: it is infinite or NaN.
    """
    if not math.isfinite(loss):
        raise ArgumentError(
            f"the loss is {loss:g} after {step} steps: they diverge (a smaller step_size, or "
            "solver='normal')"
        )
    return loss


def _total_loss(problem: Problem, point: Point, loss: Any) -> torch.Tensor:
    total = problem.like.new_zeros(())
    for pair, output in zip(problem.pairs, problem.apply(point), strict=True):
        weights = pair.weights
        if loss is None:
            square = (output - pair.y).square()
            total = total + (square if weights is None else square * weights).sum()
            continue
        target = pair.y
        if weights is not None:
            kept = weights.expand_as(target) > 0
            output, target = output[kept], target[kept]
        value = loss(output, target)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise ArgumentError(
                f"loss must return a differentiable tensor of one element, got {shown(value)}"
            )
        total = total + value.reshape(())
    return total
