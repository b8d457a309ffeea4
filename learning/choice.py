"""Which solver a call of learn_kernel gets, and which options each of them has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..ops import ArgumentError, ArgumentTypeError, shown
from .normal import Constraints
from .options import Settings
from .robust import LOSSES
from .steps import checked_positive, optimizer_named

#: Most unknowns of one filter for which "auto" takes "normal", without weights and with them.
NORMAL_UNKNOWNS, WEIGHTED_UNKNOWNS = 2048, 512


@dataclass(frozen=True)
class Task:
    """The arguments of learn_kernel that are not images, checked, but for the solver.

    Attributes:
        ranks: how many dimensions the images of each pair have.
        single: whether there is one pair, and not a list.
        dtype: of the fit.
    """

    settings: Settings
    ranks: list[int]
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

    @property
    def plain(self) -> bool:
        """Whether all images are (H, W), and the kernel (R, S)."""
        return all(rank == 2 for rank in self.ranks)


def chosen_solver(task: Task, unknowns: int, weighted: bool) -> tuple[str, str, Any]:
    """(name, why, what makes an optimiser): the rule that learn_kernel documents."""
    if callable(task.solver):
        made = getattr(task.solver, "func", task.solver)  # what a functools.partial is of
        name = getattr(made, "__name__", type(made).__name__).replace("<lambda>", "optimiser")
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
    if loop:
        plain = task.loss == "squared" and task.constraints.sum_to is None
        return "gd" if plain else "cg", f"chosen: {' and '.join(loop)} of a loop given", None
    most = WEIGHTED_UNKNOWNS if weighted else NORMAL_UNKNOWNS
    if unknowns <= most:
        return "normal", f"chosen: {unknowns} unknowns of a filter, at most {most}", None
    return "cg", f"chosen: {unknowns} unknowns of a filter, more than {most}", None


def check_options(task: Task, name: str, make: Any) -> None:
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
