"""learn_kernel: the kernel between images, by the solver that suits the question.

    loss(weight, background) = sum_{n,k,p,q} weights * (corr2d(x, weight) + background - y)^2
                               + ridge * sum weight^2

The loss is quadratic in the unknowns. With A the linear map from a kernel to its output, its
gradient is 2 A^T (A kernel - y), that is 2 * wgrad(x, residual), and its Hessian 2 A^T A, the same
for every filter. Gradient descent therefore converges exactly when step < 2 / largest eigenvalue of
2 A^T A, conjugate gradients need about as many steps as a filter has unknowns, and from the sums
G = A^T A, b = A^T y and c = y^T y the best kernel follows without another look at the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias, overload

import torch

from ..ops import ArgumentError, ArgumentTypeError, as_integer, as_pair, shown
from .descent import (
    Reporter,
    checked_positive,
    checked_step,
    conjugate_gradients,
    gradient_descent,
    optimise,
    optimizer_named,
)
from .functional import corr2d  # noqa: F401 - for the docstrings' examples
from .gram import Sums, gather
from .learned import KernelField, LearnedKernel
from .modules import PaddingMode
from .pairs import ImagePair
from .problem import Point, Problem, from_flat
from .quality import quality_of
from .robust import LOSSES, reweighted
from .settings import Settings, as_constraints, as_pairs, as_settings
from .solve import Constraints, solve, with_sum

#: Most unknowns of one filter for which "auto" takes "normal", without weights and with them.
NORMAL_UNKNOWNS, WEIGHTED_UNKNOWNS = 2048, 512
#: Most multiply-adds spent on the normal matrix only to examine an answer, about a second on one
#: core, and most unknowns.
GRAM_BUDGET = 1e9
GRAM_UNKNOWNS = 1024

Images: TypeAlias = torch.Tensor | Sequence[torch.Tensor]
Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@overload
def learn_kernel(
    x: Images, y: Images, kernel_size: Any, *, tiles: None = None, **options: Any
) -> LearnedKernel: ...
@overload
def learn_kernel(
    x: Images, y: Images, kernel_size: Any, *, tiles: Any, **options: Any
) -> KernelField: ...
def learn_kernel(
    x: Images,
    y: Images,
    kernel_size: Any,
    *,
    solver: str | Callable[..., torch.optim.Optimizer] = "auto",
    steps: int | None = None,
    step_size: float | None = None,
    bias: bool = False,
    background: int | str | None = None,
    padding: Any = None,
    padding_mode: PaddingMode = "zeros",
    groups: int = 1,
    flip: bool = False,
    mask: Images | None = None,
    input_mask: Images | None = None,
    weights: Images | None = None,
    ridge: float = 0.0,
    nonnegative: bool = False,
    sum_to: float | None = None,
    loss: str | Loss = "squared",
    tiles: Any = None,
    initial: torch.Tensor | None = None,
    log_every: int = 0,
    progress: bool | None = None,
) -> LearnedKernel | KernelField:
    """The kernel (and background) whose cross-correlation with x is nearest to y.

    Args:
        x: (H, W), (C, H, W) or (N, C, H, W), or a list of such images, each with a y of its own;
            any float dtype or uint8. The answer is in float64 if an x or y is, else in float32.
        y: the target: (P, Q), (K, P, Q) or (N, K, P, Q), of the size that corr2d gives or of x's
            own size. In the latter case, unless `padding` says how its border came about, the
            border that no full window reaches is left out of the fit.
        kernel_size: R and S, int or (h, w). A window larger than the truth does no harm but noise.
        solver: how to find it; all of them minimise the same.

            - "auto": "gd" if the call has `steps`, `step_size` or `log_every`, which are a
              loop's, and an optimiser's ("lbfgs") if `loss` is a function. Else "normal", or "cg"
              for filters of more than 2048 unknowns, of more than 512 if there are weights or
              masks, or robust losses, which are weights. The answer's `solver` and `reason` say so.
            - "normal": one pass over the images gathers the normal matrix in float64; exact, and
              the only one for `nonnegative`.
            - "cg": conjugate gradients on the same loss without that matrix, for large windows;
              needs about as many steps as a filter has unknowns.
            - "gd": gradient descent as in the textbook.
            - the name of a class in torch.optim in any case ("adam", "lbfgs"), or something that
              makes an optimiser of a list of parameters, such as a class or a functools.partial
              of one; `step_size` is its learning rate.
        steps: how many; by default 200, and as many as there are unknowns for "cg".
        step_size: of gradient descent. By default half of the largest that converges, found by
            power iteration on the normal operator.
        bias: whether to learn a constant per filter too; the same as background=0.
        background: "constant", or the order of a polynomial in the coordinates of y that is fitted
            together with the kernel.
        padding: as for corr2d; None means no padding.
        padding_mode: what the padding holds: "zeros", "reflect", "replicate" or "circular".
        groups: channel groups, as for corr2d.
        flip: True learns the kernel of a strict convolution, `convolve2d`.
        mask: which values of y to fit: True (not zero) is fitted, False is left out, as are NaN
            there. Of y's shape, or any that broadcasts to it; a list for several pairs.
        input_mask: which values of x are known; what a window that reaches an unknown one predicts
            is left out. Of x's shape or any that broadcasts to it; a list for several pairs.
        weights: what a squared error counts, 1 / variance of y; not negative; shaped as mask.
        ridge: added to the loss: ridge * sum weight^2 (not on the background).
        nonnegative: no element of the kernel may be negative.
        sum_to: what the elements of each filter must sum to, 1 for a kernel that keeps brightness.
        loss: "squared"; "huber" or "tukey", by which outliers count less, from repeated weighted
            fits with the scale from the median absolute residual; or, for the solvers of
            torch.optim, any differentiable function of prediction and target that gives a scalar.
            Where values are left out by masks, it is given those that are not, in one dimension.
        tiles: rows and columns, int or (h, w): a kernel for each tile of the output, for one that
            varies over the field.
        initial: the kernel to start from, shaped as the result; zeros by default. Where the images
            do not determine the kernel, the answer stays there.
        log_every: prints the loss every so many steps, as the textbook does.
        progress: shows a progress bar; None shows one on a terminal after a second.

    Returns:
        A LearnedKernel, which also says how well the images determine the kernel; with tiles, a
        KernelField of them.

    Raises:
        ArgumentError: shapes that do not fit, options that a solver does not have, a step size
            with which the loop would diverge, or images that are not finite.
        ArgumentTypeError: arguments of a kind that cannot be used.

    Example:
        >>> X = torch.ones(6, 8); X[:, 2:6] = 0
        >>> Y = corr2d(X, torch.tensor([[1.0, -1.0]]))
        >>> found = learn_kernel(X, Y, (1, 2))
        >>> found.weight.round(decimals=3)
        tensor([[ 1., -1.]])
        >>> found.solver
        'normal'
    """
    settings = as_settings(kernel_size, bias, background, padding, padding_mode, groups, flip)
    single = not isinstance(x, Sequence)
    pairs = as_pairs(settings, x, y, mask, input_mask, weights)
    images = [x] if single else list(x)
    task = _Task(
        settings=settings,
        plain=images[0].dim() == 2,
        single=single,
        dtype=_dtype(images + ([y] if single else list(y))),
        constraints=as_constraints(
            pairs[0].geometry.weight_numel // pairs[0].geometry.K, ridge, nonnegative, sum_to
        ),
        solver=solver,
        steps=_checked_steps(steps),
        step_size=step_size,
        loss=_checked_loss(loss),
        initial=initial,
        log_every=as_integer("log_every", log_every),
        progress=progress,
    )
    with torch.no_grad():
        if tiles is None:
            return _learn(task, pairs)
        return _learn_tiles(task, pairs, as_pair("tiles", tiles))


@dataclass(frozen=True)
class _Task:
    """The arguments of learn_kernel that are not images."""

    settings: Settings
    plain: bool
    single: bool
    dtype: torch.dtype
    constraints: Constraints
    solver: Any
    steps: int | None
    step_size: float | None
    loss: Any
    initial: torch.Tensor | None
    log_every: int
    progress: bool | None


@dataclass(frozen=True)
class _Found:
    """What a solver returns: the kernel, and what only it knows."""

    point: Point
    history: list[float]
    sums: Sums | None = None
    loss: float | None = None
    step_size: float | None = None
    limit: float | None = None


def _dtype(images: list[torch.Tensor]) -> torch.dtype:
    return torch.float64 if torch.float64 in {i.dtype for i in images} else torch.float32


def _checked_steps(steps: Any) -> int | None:
    if steps is None:
        return None
    steps = as_integer("steps", steps)
    if steps < 0:
        raise ArgumentError(f"steps must not be negative, got {steps}")
    return steps


def _checked_loss(loss: Any) -> Any:
    if callable(loss) or loss in ("squared", *LOSSES):
        return loss
    raise ArgumentError(
        f"loss must be 'squared', 'huber', 'tukey' or a function, got {shown(loss)}"
    )


def _learn_tiles(task: _Task, pairs: list[ImagePair], tiles: tuple[int, int]) -> KernelField:
    P, Q = pairs[0].extent
    if any(pair.extent != (P, Q) for pair in pairs):
        raise ArgumentError("tiles need outputs of one size in all pairs")
    if not 1 <= tiles[0] <= P or not 1 <= tiles[1] <= Q:
        raise ArgumentError(f"tiles must be from 1 to {P} x {Q}, got {tiles[0]} x {tiles[1]}")
    rows, columns = ([n * i // t for i in range(t + 1)] for n, t in zip((P, Q), tiles, strict=True))
    kernels = [
        [
            _learn(task, [pair.crop(top, bottom, left, right) for pair in pairs])
            for left, right in pairwise(columns)
        ]
        for top, bottom in pairwise(rows)
    ]
    # A tile's own kernel predicts from the part of the padded image that it sees.
    kernels = [[replace(kernel, padding=((0, 0), (0, 0))) for kernel in row] for row in kernels]
    s = task.settings
    border = s.padding or ((0, 0), (0, 0))
    return KernelField(kernels, rows, columns, border, s.padding_mode, s.groups, s.flip)


def _learn(task: _Task, pairs: list[ImagePair]) -> LearnedKernel:
    weighted = any(pair.weights is not None for pair in pairs) or task.loss in LOSSES
    unknowns = task.constraints.elements + len(task.settings.background.terms)
    name, reason, make = _chosen_solver(task, unknowns, weighted)
    _check_options(task, name, make)
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
    loss = found.loss if found.loss is not None else problem.loss(residual, found.point)
    sums = found.sums or _examined(problem)
    quality = quality_of(
        sums,
        task.constraints,
        found.point.flat(),
        problem.squared(residual),
        problem.weight_shape,
        [(r, pair.weights) for r, pair in zip(residual, problem.pairs, strict=True)],
        exact=name in ("normal", "cg"),
    )
    shown_residual = [r[(0,) * (2 if task.plain else 0)] for r in residual]
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


def _chosen_solver(task: _Task, unknowns: int, weighted: bool) -> tuple[str, str, Any]:
    """(name, why, what makes an optimiser): the rule that learn_kernel documents."""
    if callable(task.solver):
        name = getattr(task.solver, "__name__", None) or getattr(
            getattr(task.solver, "func", None), "__name__", type(task.solver).__name__
        )
        return name.lower(), "asked for", task.solver
    if not isinstance(task.solver, str):
        raise ArgumentTypeError(
            f"solver must be a name or make an optimiser, got {shown(task.solver)}"
        )
    if task.solver in ("normal", "cg", "gd"):
        return task.solver, "asked for", None
    if task.solver != "auto":
        return task.solver.lower(), "asked for", optimizer_named(task.solver)
    if callable(task.loss):
        return "lbfgs", "chosen: the loss is a function", optimizer_named("lbfgs")
    if task.constraints.nonnegative:
        return "normal", "chosen: the only one for nonnegative", None
    loop = [n for n in ("steps", "step_size") if getattr(task, n) is not None]
    loop += ["log_every"] * (task.log_every > 0)
    if loop and task.loss == "squared" and task.constraints.sum_to is None:
        return "gd", f"chosen: {' and '.join(loop)} of a loop given", None
    most = WEIGHTED_UNKNOWNS if weighted else NORMAL_UNKNOWNS
    if unknowns <= most:
        return "normal", f"chosen: {unknowns} unknowns of a filter, at most {most}", None
    return "cg", f"chosen: {unknowns} unknowns of a filter, more than {most}", None


def _check_options(task: _Task, name: str, make: Any) -> None:
    """Raises ArgumentError for options that the solver does not have."""
    constraints = task.constraints
    if task.step_size is not None and name in ("normal", "cg"):
        how = "conjugate gradients compute it" if name == "cg" else "'normal' takes no steps"
        raise ArgumentError(f"step_size is for solver='gd' and optimisers; {how}")
    if task.steps is not None and name == "normal":
        raise ArgumentError("steps are for 'gd', 'cg' and optimisers; solver='normal' takes none")
    if constraints.nonnegative and name != "normal":
        raise ArgumentError(f"nonnegative needs solver='normal', got {name!r}")
    if constraints.sum_to is not None and name not in ("normal", "cg"):
        raise ArgumentError(f"sum_to needs solver='normal' or 'cg', got {name!r}")
    if callable(task.loss) and make is None:
        raise ArgumentError(
            f"a function as loss needs an optimiser of torch.optim as solver, got {name!r}"
        )
    if task.loss in LOSSES and name not in ("normal", "cg"):
        raise ArgumentError(
            f"loss={task.loss!r} is by repeated weighted fits: it needs solver='normal' or 'cg', "
            f"got {name!r} (optimisers take functions, such as torch.nn.functional.huber_loss)"
        )
    if task.step_size is not None:
        checked_positive(task.step_size)


def _start(task: _Task, problem: Problem) -> Point:
    initial = task.initial
    if isinstance(initial, torch.Tensor) and task.settings.flip and initial.dim() >= 2:
        initial = initial.flip(-2, -1)
    point = problem.start(initial, task.plain)
    if task.constraints.sum_to is None:
        return point
    flat = with_sum(point.flat(), task.constraints)
    return from_flat(flat, problem.weight_shape, problem.like)


def _by_normal_matrix(task: _Task, problem: Problem, start: Point) -> _Found:
    outputs = sum(pair.y.numel() for pair in problem.pairs)
    with Reporter(0, task.progress).over(None, total=outputs, unit="pixel") as bar:
        sums = gather(problem.pairs, problem.background, report=bar.update)
    theta = solve(sums, task.constraints, start.flat())
    point = from_flat(theta, problem.weight_shape, problem.like)
    before = problem.loss(problem.residual(start), start)
    return _Found(point, [before], sums)


def _by_steps(task: _Task, problem: Problem, start: Point, name: str, make: Any) -> _Found:
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
