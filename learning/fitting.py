"""One fit: from checked pairs of images and a task to a LearnedKernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .choice import Task, check_options, chosen_solver
from .gram import Sums, gather
from .learned import LearnedKernel
from .pairs import ImagePair
from .problem import Point, Problem, from_flat
from .quality import quality_of
from .robust import LOSSES, reweighted
from .solve import solve, squared_error, with_sum
from .steps import (
    Reporter,
    checked_step,
    conjugate_gradients,
    gradient_descent,
    optimise,
)

#: Most multiply-adds spent on the normal matrix only to examine an answer, about a second on one
#: core, and most unknowns.
GRAM_BUDGET = 1e9
GRAM_UNKNOWNS = 1024


@dataclass(frozen=True)
class _Found:
    """What a solver returns: the kernel, and what only it knows."""

    point: Point
    history: list[float]
    sums: Sums | None = None
    loss: float | None = None
    step_size: float | None = None
    limit: float | None = None


def learn(task: Task, pairs: list[ImagePair]) -> LearnedKernel:
    """The best kernel between pairs of images, by the solver that the task asks for or gets."""
    weighted = any(pair.weights is not None for pair in pairs) or task.loss in LOSSES
    unknowns = task.constraints.elements + len(task.settings.background.terms)
    name, reason, make = chosen_solver(task, unknowns, weighted)
    check_options(task, name, make)
    converted = [pair.to(task.dtype) for pair in pairs]
    problem = Problem(converted, task.settings.background, task.constraints.ridge)
    start = _start(task, problem)

    def fit(problem: Problem) -> _Found:
        if name == "normal":
            return _by_normal_matrix(task, problem, start)
        return _by_steps(task, problem, start, name, make)

    if task.loss in LOSSES:
        problem, fits = reweighted(problem, task.loss, lambda p: fit(p).point)
        reason = f"{reason}; {fits} weighted fits for loss={task.loss!r}"
    found = fit(problem)
    residual = problem.residual(found.point)
    errors = problem.squared(residual)
    loss = found.loss
    if loss is None:
        loss = float(errors.sum()) + problem.penalty(found.point)
    sums = found.sums or _examined(problem)
    quality = quality_of(
        sums,
        task.constraints,
        found.point.flat(),
        errors,
        problem.weight_shape,
        [(r, pair.weights) for r, pair in zip(residual, problem.pairs, strict=True)],
        exact=None if callable(task.loss) else name == "normal",
    )
    shown_residual = [r[(0,) * (4 - n)] for r, n in zip(residual, task.ranks, strict=True)]
    return LearnedKernel.of(
        found.point,
        task.settings,
        task.plain,
        history=found.history,
        loss=loss,
        residual=shown_residual[0] if task.single else shown_residual,
        solver=name,
        reason=reason,
        step_size=found.step_size,
        max_step_size=found.limit,
        quality=quality,
    )


def _start(task: Task, problem: Problem) -> Point:
    initial = task.initial
    if isinstance(initial, torch.Tensor) and task.settings.flip and initial.dim() >= 2:
        initial = initial.flip(-2, -1)
    point = problem.start(initial, task.plain)
    if task.constraints.sum_to is None:
        return point
    flat = with_sum(point.flat(), task.constraints)
    return from_flat(flat, problem.weight_shape, problem.like)


def _by_normal_matrix(task: Task, problem: Problem, start: Point) -> _Found:
    outputs = sum(pair.y.numel() for pair in problem.pairs)
    with Reporter(0, task.progress).over(None, total=outputs, unit="pixel") as bar:
        sums = gather(problem.pairs, problem.background, report=bar.update)
    theta = solve(sums, task.constraints, start.flat())
    point = from_flat(theta, problem.weight_shape, problem.like)
    before = float(squared_error(sums, start.flat()).sum()) + problem.penalty(start)
    return _Found(point, [before], sums)


def _by_steps(task: Task, problem: Problem, start: Point, name: str, make: Any) -> _Found:
    report = Reporter(task.log_every, task.progress)
    steps = task.steps
    if steps is None:
        steps = problem.unknowns if name == "cg" else 200
    if name == "cg":
        keep_sum = task.constraints.sum_to is not None
        point, history = conjugate_gradients(problem, start, steps, report, keep_sum)
        return _Found(point, history)
    if name == "gd":
        curvature = problem.curvature()
        limit = 2 / curvature if curvature > 0 else float("inf")
        step_size = checked_step(task.step_size, limit)
        point, history = gradient_descent(problem, start, steps, step_size, report)
        return _Found(point, history, step_size=step_size, limit=limit)
    function = task.loss if callable(task.loss) else None
    point, history, loss = optimise(problem, start, steps, make, task.step_size, function, report)
    return _Found(point, history, loss=loss, step_size=task.step_size)


def _examined(problem: Problem) -> Sums:
    """The sums, with the normal matrix if that is no great work."""
    work = 0
    for pair in problem.pairs:
        g = pair.geometry
        products = g.group_C * g.group_C * 2 * g.R * g.S * g.groups
        if pair.weights is not None:
            products = problem.unknowns**2 * (1 if pair.weights.shape[1] == 1 else g.K) // 2
        work += products * g.N * g.H * g.W
    affordable = problem.unknowns <= GRAM_UNKNOWNS and work <= GRAM_BUDGET
    return gather(problem.pairs, problem.background, with_gram=affordable)
