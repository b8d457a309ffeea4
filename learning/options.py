"""Options of learn_kernel, checked: model, constraints, and the choice of the solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, TypeAlias

import torch

from ..autograd.modules import PaddingMode
from ..ops import ArgumentError, ArgumentTypeError, as_integer, as_padding, as_pair, shown
from ..ops.arguments import Pair, check_padding_mode
from .background import Background, as_background
from .normal import Constraints
from .pairs import ImagePair, as_image_pair
from .robust import LOSSES
from .steps import checked_positive, optimizer_named

Solver: TypeAlias = str | Callable[..., torch.optim.Optimizer]
Loss: TypeAlias = str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: Bytes of the normal matrices up to which "auto" takes "normal": 4096 unknowns of one filter.
NORMAL_BYTES = 2**27


def is_list(images: Any) -> bool:
    """Whether the argument is several images."""
    return isinstance(images, list | tuple)


@dataclass(frozen=True)
class Settings:
    """The model: arguments that learn_kernel and KernelAccumulator share.

    Attributes:
        window: (R, S).
        background: polynomials that are fitted too.
        padding: ((top, bottom), (left, right)); None if the user gave none, so that a target of
            the input's size loses its border.
        padding_mode, groups, flip: as for learn_kernel.
        stride: (h, w).
    """

    window: Pair
    background: Background
    padding: tuple[Pair, Pair] | None
    padding_mode: Any
    groups: int
    flip: bool
    stride: Pair = (1, 1)

    def pair(self, *images: Any, **place: Any) -> ImagePair:
        """A checked pair; `images` are x, y, mask, input_mask, weights and input_noise."""
        options = {
            "window": self.window,
            "padding": self.padding,
            "padding_mode": self.padding_mode,
            "groups": self.groups,
            "stride": self.stride,
        }
        return as_image_pair(*images, **{**options, **place})

    def pairs(
        self, x: Any, y: Any, mask: Any, input_mask: Any, weights: Any, input_noise: Any
    ) -> list[ImagePair]:
        """One pair, or lists of equal length, as checked pairs."""
        if not is_list(x) and not is_list(y):
            return _with_pixels([self.pair(x, y, mask, input_mask, weights, input_noise)])
        if not is_list(x) or not is_list(y) or len(x) != len(y) or not x:
            counts = [f"{len(v)} of them" if is_list(v) else "one" for v in (x, y)]
            raise ArgumentError(
                f"x and y must be two images or two lists of equal length, got {counts[0]} "
                f"and {counts[1]}"
            )
        if isinstance(input_noise, int | float):
            input_noise = [input_noise] * len(x)
        columns = []
        for name, values in (
            ("mask", mask),
            ("input_mask", input_mask),
            ("weights", weights),
            ("input_noise", input_noise),
        ):
            if values is not None and (not is_list(values) or len(values) != len(x)):
                raise ArgumentError(
                    f"{name} must be a list of {len(x)}, one for each pair of images"
                )
            columns.append([None] * len(x) if values is None else values)
        pairs = [self.pair(*row) for row in zip(x, y, *columns, strict=True)]
        for pair in pairs[1:]:
            for name, first, other in (("x", pairs[0].x, pair.x), ("y", pairs[0].y, pair.y)):
                if first.shape[1] != other.shape[1] or first.device != other.device:
                    raise ArgumentError(
                        f"all pairs must have the same channels on the same device, got {name} of "
                        f"shape {tuple(first.shape)} on {first.device} and {tuple(other.shape)} on "
                        f"{other.device}"
                    )
        return _with_pixels(pairs)


def _with_pixels(pairs: list[ImagePair]) -> list[ImagePair]:
    """The pairs.

    Raises:
        ArgumentError: every weight is zero.
    """
    if all(pair.weights is not None and not bool(pair.weights.any()) for pair in pairs):
        raise ArgumentError("there is nothing to fit: masks and weights leave out every pixel of y")
    return pairs


def as_settings(
    kernel_size: Any,
    bias: bool,
    background: Any,
    padding: Any,
    padding_mode: Any,
    groups: Any,
    flip: bool,
    stride: Any = 1,
) -> Settings:
    """Checked settings.

    Raises:
        ArgumentError, ArgumentTypeError: one of them cannot be used.
    """
    if isinstance(kernel_size, str):
        raise ArgumentError(f"kernel_size must be numbers or 'auto', got {shown(kernel_size)}")
    window, steps = as_pair("kernel_size", kernel_size), as_pair("stride", stride)
    if min(window) < 1:
        raise ArgumentError(f"kernel_size must not be empty, got {shown(kernel_size)}")
    if min(steps) < 1:
        raise ArgumentError(f"stride must be positive, got {shown(stride)}")
    check_padding_mode(padding_mode)
    border = None if padding is None else as_padding(padding, window, steps)
    return Settings(
        window,
        as_background(bias, background),
        border,
        padding_mode,
        as_integer("groups", groups),
        bool(flip),
        steps,
    )


def as_constraints(
    window: tuple[int, int, int], ridge: Any, nonnegative: bool, sum_to: Any, smooth: Any = 0.0
) -> Constraints:
    """Checked constraints on kernels (C/groups, R, S).

    Raises:
        ArgumentError, ArgumentTypeError: one of them cannot be met.
    """
    given = (("ridge", ridge), ("smooth", smooth), ("sum_to", 0 if sum_to is None else sum_to))
    for name, value in given:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ArgumentTypeError(f"{name} must be a number, got {shown(value)}")
        if not abs(float(value)) < float("inf"):
            raise ArgumentError(f"{name} must be finite, got {value}")
        if name != "sum_to" and value < 0:
            raise ArgumentError(f"{name} must not be negative, got {value}")
    if nonnegative and sum_to is not None and sum_to < 0:
        raise ArgumentError(f"sum_to must not be negative with nonnegative, got {sum_to}")
    total = None if sum_to is None else float(sum_to)
    elements = window[0] * window[1] * window[2]
    return Constraints(elements, float(ridge), bool(nonnegative), total, float(smooth), window)


@dataclass(frozen=True)
class Options:
    """The arguments of learn_kernel except the images; documented there."""

    kernel_size: Any
    solver: Solver = "auto"
    steps: int | None = None
    step_size: float | None = None
    bias: bool = False
    background: int | str | None = None
    padding: Any = None
    padding_mode: PaddingMode = "zeros"
    groups: int = 1
    flip: bool = False
    stride: Any = 1
    ridge: float | str = 0.0
    smooth: float = 0.0
    nonnegative: bool = False
    sum_to: float | None = None
    loss: Loss = "squared"
    initial: torch.Tensor | None = None
    log_every: int = 0
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and as_integer("steps", self.steps) < 0:
            raise ArgumentError(f"steps must not be negative, got {self.steps}")
        if not callable(self.loss) and self.loss not in ("squared", *LOSSES):
            raise ArgumentError(
                f"loss must be 'squared', 'huber', 'tukey' or a function, got {shown(self.loss)}"
            )
        as_integer("log_every", self.log_every)
        if not self.chooses_size:
            _ = self.settings
        _ = self.ridge_rule

    @property
    def ridge_rule(self) -> str | float | None:
        """The rule for the ridge: "gcv" or a fraction of the largest eigenvalue; None for a number.

        Raises:
            ArgumentError: another text.
        """
        text = self.ridge
        if not isinstance(text, str) or text == "gcv":
            return text if isinstance(text, str) else None
        try:
            percent = float(text.removesuffix("%")) if text.endswith("%") else -1.0
        except ValueError:
            percent = -1.0
        if not 0 <= percent < float("inf"):
            raise ArgumentError(
                "ridge must be a number, 'gcv', or a part of the largest eigenvalue such as "
                f"'0.1%', got {shown(text)}"
            )
        return percent / 100

    @property
    def chooses_size(self) -> bool:
        """Whether the size of the window is chosen, kernel_size="auto"."""
        return isinstance(self.kernel_size, str) and self.kernel_size == "auto"

    @cached_property
    def settings(self) -> Settings:
        """The model."""
        return as_settings(
            self.kernel_size,
            self.bias,
            self.background,
            self.padding,
            self.padding_mode,
            self.groups,
            self.flip,
            self.stride,
        )

    def constraints(self, pair: ImagePair) -> Constraints:
        """The constraints on every filter."""
        g = pair.geometry
        window = (g.group_C, g.R, g.S)
        ridge = 0.0 if self.ridge_rule is not None else self.ridge
        return as_constraints(window, ridge, self.nonnegative, self.sum_to, self.smooth)

    def with_size(self, window: Pair) -> Options:
        """The same options with another window."""
        return replace(self, kernel_size=window)


@dataclass(frozen=True)
class Chosen:
    """A solver.

    Attributes:
        name: "normal", "cg", "gd" or an optimiser's.
        reason: for the user, why it was chosen.
        make: function of parameters that returns an optimiser; None for the first three.
    """

    name: str
    reason: str
    make: Callable[..., torch.optim.Optimizer] | None = None


def chosen_solver(options: Options, unknowns: int, matrices: int, noisy: bool) -> Chosen:
    """The solver by the rule in learn_kernel's docstring, after checking its options.

    Args:
        options: of the call.
        unknowns: of one filter.
        matrices: number of normal matrices.
        noisy: whether the noise of x is subtracted.

    Raises:
        ArgumentError, ArgumentTypeError: options that the solver does not have.
    """
    chosen = _solver(options, unknowns, matrices, noisy)
    _check_options(options, chosen, noisy)
    return chosen


def _solver(options: Options, unknowns: int, matrices: int, noisy: bool) -> Chosen:
    solver = options.solver
    if callable(solver):
        made = getattr(solver, "func", solver)  # the function in a functools.partial
        name = getattr(made, "__name__", type(made).__name__).replace("<lambda>", "optimiser")
        return Chosen(name.lower(), "asked for", solver)
    if not isinstance(solver, str):
        raise ArgumentTypeError(f"solver must be a name or make an optimiser, got {shown(solver)}")
    if solver in ("normal", "cg", "gd"):
        return Chosen(solver, "asked for")
    if solver != "auto":
        return Chosen(solver.lower(), "asked for", optimizer_named(solver))
    if callable(options.loss):
        return Chosen("lbfgs", "chosen: the loss is a function", optimizer_named("lbfgs"))
    for name, needed in (
        ("nonnegative", options.nonnegative),
        ("input_noise", noisy),
        ("smooth", options.smooth != 0),
        (f"ridge={options.ridge!r}", isinstance(options.ridge, str)),
    ):
        if needed:
            return Chosen("normal", f"chosen: the only one for {name}")
    loop = [n for n in ("steps", "step_size") if getattr(options, n) is not None]
    loop += ["log_every"] * (options.log_every > 0)
    if loop:
        plain = options.loss == "squared" and options.sum_to is None
        reason = f"chosen: {' and '.join(loop)} given, for a loop"
        return Chosen("gd" if plain else "cg", reason)
    needed_bytes = 8 * unknowns**2 * matrices
    size = f"{unknowns} unknowns of a filter, whose normal equations take"
    if needed_bytes <= NORMAL_BYTES:
        return Chosen("normal", f"chosen: {size} {_shown_bytes(needed_bytes)}")
    most = _shown_bytes(NORMAL_BYTES)
    return Chosen("cg", f"chosen: {size} {_shown_bytes(needed_bytes)}, more than {most}")


def _shown_bytes(count: int) -> str:
    return f"{count} B" if count < 2**10 else f"{count / 2**20:.3g} MiB"


def _check_options(options: Options, chosen: Chosen, noisy: bool) -> None:
    name = chosen.name
    if options.step_size is not None and name in ("normal", "cg"):
        how = "conjugate gradients compute it" if name == "cg" else "'normal' takes no steps"
        raise ArgumentError(f"step_size is for solver='gd' and optimisers; {how}")
    if options.steps is not None and name == "normal":
        raise ArgumentError("steps are for 'gd', 'cg' and optimisers; solver='normal' takes none")
    for option, given in (
        ("nonnegative", options.nonnegative),
        ("input_noise", noisy),
        ("smooth", options.smooth != 0),
        (f"ridge={options.ridge!r}", isinstance(options.ridge, str)),
    ):
        if given and name != "normal":
            raise ArgumentError(f"{option} needs solver='normal', got {name!r}")
    if options.sum_to is not None and name not in ("normal", "cg"):
        raise ArgumentError(f"sum_to needs solver='normal' or 'cg', got {name!r}")
    if callable(options.loss) and chosen.make is None:
        raise ArgumentError(
            f"a function as loss needs an optimiser of torch.optim as solver, got {name!r}"
        )
    if options.loss in LOSSES and name not in ("normal", "cg"):
        raise ArgumentError(
            f"loss={options.loss!r} takes repeated weighted fits: it needs solver='normal' or "
            f"'cg', got {name!r} (optimisers take functions, such as "
            "torch.nn.functional.huber_loss)"
        )
    if options.step_size is not None:
        checked_positive(options.step_size)
