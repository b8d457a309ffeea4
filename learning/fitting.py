"""One fit: from checked pairs of images and options to a LearnedKernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from .examine import least_error, observe, quality_of
from .gram import Sums, block_pixels, gather
from .learned import LearnedKernel
from .normal import Constraints, Normal
from .options import Chosen, Options, chosen_solver
from .pairs import ImagePair
from .problem import Point, Problem, from_flat
from .quality import Examination
from .robust import LOSSES, reweighted
from .solve import (
    chosen_ridge,
    descend,
    largest_step,
    normals_of,
    penalty_of,
    solve,
    squared_error,
    with_sum,
)
from .steps import Reporter, checked_step, conjugate_gradients, optimise
from .units import UNCHANGED, Units, converted

#: A normal matrix that only `quality` needs is computed up to this many multiply-adds, about a
#: second on one core, and up to this many unknowns.
GRAM_BUDGET = 1e9
GRAM_UNKNOWNS = 1024
#: Relative increase from which a loss counts as risen.
RISEN = 1e-3
#: Change of a loss by rounding in float32, relative to the largest loss.
LOSS_ROUNDING = 1e-6
#: Steps of gradient descent on sums that end before a progress bar could be drawn.
FEW_STEPS = 1000
#: Elements of all images up to which these are copied, and examined when the quality is first read.
EXAMINED_LATER = 2**16


@dataclass(frozen=True)
class _Found:
    """Result of a solver, in the units of the fit.

    `how` is the rule by which the ridge of `constraints` was chosen, "" if it was given.
    """

    point: Point
    history: list[float]
    sums: Sums | None = None
    normals: list[Normal] | None = None
    loss: float | None = None
    step_size: float | None = None
    limit: float | None = None
    constraints: Constraints | None = None
    how: str = ""


@dataclass(frozen=True)
class _Fit:
    """A fit in its units.

    Attributes:
        options: of the call.
        chosen: the solver.
        constraints: on the kernel.
        units: of the problem; the user's own for an optimiser, whose steps depend on them.
        start: the initial kernel and background.
    """

    options: Options
    chosen: Chosen
    constraints: Constraints
    units: Units
    start: Point

    def by(self, problem: Problem) -> _Found:
        """The solution of a problem."""
        if self.chosen.name in ("normal", "gd"):
            return self._by_sums(problem)
        return self._by_steps(problem)

    def _by_sums(self, problem: Problem) -> _Found:
        options, start = self.options, self.start.flat()
        outputs = sum(pair.y.numel() for pair in problem.pairs)
        with Reporter(0, options.progress).over(None, total=outputs, unit="pixel") as bar:
            sums = gather(problem.pairs, problem.background, report=bar.update)
        if self.chosen.name == "gd":
            return self._descended(problem, sums)
        constraints, rule, how = self.constraints, options.ridge_rule, ""
        if rule is not None:
            ridge, how = chosen_ridge(sums, constraints, rule)
            constraints = replace(constraints, ridge=ridge)
        normals = normals_of(sums, constraints)
        theta = solve(sums, constraints, start, normals)
        point = from_flat(theta, problem.weight_shape)
        before = float(squared_error(sums, start).sum()) + penalty_of(constraints, start)
        return _Found(point, [max(0.0, before)], sums, normals, constraints=constraints, how=how)

    def _descended(self, problem: Problem, sums: Sums) -> _Found:
        """Gradient descent in the user's units, whose steps depend on them."""
        options, shape = self.options, problem.weight_shape
        own = converted(sums, self.units, UNCHANGED, shape)
        constraints = replace(
            self.constraints, ridge=self.constraints.ridge * self.units.x**2 * self.units.weights
        )
        limit = largest_step(own, constraints)
        step_size = checked_step(options.step_size, limit)
        start = self.units.user(self.start).flat()
        steps = 200 if options.steps is None else options.steps
        shown = options.log_every or options.progress or steps > FEW_STEPS
        report = Reporter(options.log_every, options.progress) if shown else None
        theta, history = descend(own, constraints, start, steps, step_size, report)
        point = self.units.own(from_flat(theta, shape))
        history = [loss / self.units.loss for loss in history]
        return _Found(point, history, sums, step_size=step_size, limit=limit)

    def _by_steps(self, problem: Problem) -> _Found:
        options, start = self.options, self.start
        report = Reporter(options.log_every, options.progress)
        start = Point(start.weight.to(problem.like), start.background.to(problem.like))
        if self.chosen.name == "cg":
            steps = problem.unknowns if options.steps is None else options.steps
            keep_sum = self.constraints.sum_to is not None
            point, history = conjugate_gradients(problem, start, steps, report, keep_sum)
            if keep_sum:  # but for rounding, which adds up from step to step
                flat = with_sum(point.flat(), self.constraints)
                point = from_flat(flat.to(problem.like), problem.weight_shape)
            return _Found(point, history)
        steps = 200 if options.steps is None else options.steps
        function = options.loss if callable(options.loss) else None
        assert self.chosen.make is not None
        point, history, loss = optimise(
            problem, start, steps, self.chosen.make, options.step_size, function, report
        )
        return _Found(point, history, loss=loss, step_size=options.step_size)


def learn(
    options: Options, pairs: list[ImagePair], ranks: list[int], single: bool
) -> LearnedKernel:
    """The best kernel between pairs of images, by the given or chosen solver.

    Args:
        options: of the call.
        pairs: checked.
        ranks: number of dimensions of the images of each pair.
        single: whether the user gave one pair and not a list.
    """
    settings, constraints = options.settings, options.constraints(pairs[0])
    dtype = dtype_of(pairs)
    g = pairs[0].geometry
    unknowns = constraints.elements + len(settings.background.terms)
    apart = any(pair.weights is not None and pair.weights.shape[1] > 1 for pair in pairs)
    noisy = any(pair.x_variance is not None for pair in pairs)
    chosen = chosen_solver(options, unknowns, g.K if apart else g.groups, noisy)
    units = UNCHANGED if chosen.make is not None else Units.of(pairs, settings.background)
    constraints = units.constraints(constraints)
    problem = Problem(
        [units.standard(pair, dtype) for pair in pairs], settings.background, constraints.ridge
    )
    plain = all(rank == 2 for rank in ranks)
    start = _start(options, problem, plain, units, constraints)
    fit = _Fit(options, chosen, constraints, units, start)
    reason, notes = chosen.reason, [note for pair in pairs for note in pair.notes]
    if options.loss in LOSSES:
        problem, fits, change = reweighted(problem, str(options.loss), lambda p: fit.by(p).point)
        reason = f"{reason}; {fits} weighted fits for loss={options.loss!r}"
        if change:
            notes.append(
                f"the {fits} weighted fits for loss={options.loss!r} did not converge: the last "
                f"one still changed the kernel by {change:.2g} of its largest element"
            )
    found = fit.by(problem)
    if found.constraints is not None:
        constraints = found.constraints
    if found.how:
        ridge = constraints.ridge * units.x**2 * units.weights
        reason = f"{reason}; ridge {ridge:.3g} by {found.how}"
    with Reporter(0, options.progress).stage("examining the result"):
        point = Point(*(t.to(problem.like) for t in (found.point.weight, found.point.background)))
        residual = problem.residual(point)
        errors = problem.squared(residual)
        error = float(errors.sum())
        sums = found.sums or _examined(problem)
        theta = found.point.flat()
        loss = found.loss
        if loss is None:
            loss = error + penalty_of(constraints, theta)
        history = [loss * units.loss for loss in found.history]
        notes += _risen(history, loss * units.loss, found)
        mostly_noise = sums.noiseless(constraints.elements)[1] if noisy else 0
        if mostly_noise:
            notes.append(
                f"in {mostly_noise} of {constraints.elements} directions x is noise more than "
                "image, and there the kernel stays pulled towards zero"
            )
        later = sum(pair.x.numel() + pair.y.numel() for pair in pairs) <= EXAMINED_LATER
        if later:  # of copies: the user may change the images, or the residual, until then
            problem = Problem([p.copy() for p in problem.pairs], settings.background)
        examined = [r.clone() for r in residual] if later else residual
        observed = partial(
            observe,
            problem,
            examined,
            rounded=error**0.5 <= least_error(sums, residual[0].dtype),
            examined=not callable(options.loss) and len(sums.gram) > 0,
            noisy=noisy,
        )
        examination = Examination(
            partial(
                quality_of,
                sums,
                constraints,
                theta,
                errors,
                problem.weight_shape,
                exact=None if callable(options.loss) else chosen.name == "normal",
                observed=observed if later else observed(),
                normals=found.normals,
                units=units,
                known=notes,
                flip=settings.flip,
            )
        )
    user = units.user(Point(found.point.weight.double(), found.point.background.double()))
    user = Point(user.weight.to(dtype), user.background.to(dtype))
    shown = [
        (r if units.y == 1 else r * units.y)[(0,) * (4 - n)]
        for r, n in zip(residual, ranks, strict=True)
    ]
    return LearnedKernel.of(
        user,
        settings,
        plain,
        history=history,
        loss=loss * units.loss,
        residual=shown[0] if single else shown,
        solver=chosen.name,
        reason=reason,
        step_size=found.step_size,
        max_step_size=found.limit,
        examination=examination,
    )


def _risen(history: list[float], loss: float, found: _Found) -> list[str]:
    """The note for a loss that ended above its lowest value, if it did."""
    if not history or found.normals is not None:
        return []
    if loss <= min(history) * (1 + RISEN) + LOSS_ROUNDING * max(history):
        return []
    best = min(range(len(history)), key=history.__getitem__)
    return [
        f"the loss rose: it ended at {loss:.3g} and was {history[best]:.3g} before step {best + 1} "
        f"of {len(history)} (a smaller step_size, or solver='normal')"
    ]


def dtype_of(pairs: list[ImagePair]) -> torch.dtype:
    """float64 if an image is, else float32."""
    found = {image.dtype for pair in pairs for image in (pair.x, pair.y)}
    return torch.float64 if torch.float64 in found else torch.float32


def _start(
    options: Options, problem: Problem, plain: bool, units: Units, constraints: Constraints
) -> Point:
    initial = options.initial
    if isinstance(initial, torch.Tensor) and options.flip and initial.dim() >= 2:
        initial = initial.flip(-2, -1)
    point = problem.start(initial, plain)
    point = units.own(Point(point.weight.double(), point.background.double()))
    if constraints.sum_to is None:
        return point
    flat = with_sum(point.flat(), constraints)
    return from_flat(flat, problem.weight_shape)


def _examined(problem: Problem) -> Sums:
    """The sums; with the normal matrix only within GRAM_BUDGET and GRAM_UNKNOWNS."""
    work = 0.0
    for pair in problem.pairs:
        g = pair.geometry
        pixels = g.N * g.P * g.Q
        by_lags = block_pixels(pair, problem.background) >= g.R * g.S * g.Q
        work += pixels * (64 * g.C * g.group_C if by_lags else problem.unknowns**2 / 2)
    affordable = problem.unknowns <= GRAM_UNKNOWNS and work <= GRAM_BUDGET
    return gather(problem.pairs, problem.background, with_gram=affordable)
