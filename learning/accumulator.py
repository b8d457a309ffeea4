"""KernelAccumulator: a kernel from images that do not fit in memory or lie on several machines.

The (weighted) squared error of any kernel follows from sums over the pixels:

    loss(theta) = c - 2 b . theta + theta^T G theta
    G = sum weights * a a^T    b = sum weights * a * y    c = sum weights * y^2

where a is the window of x under a pixel of y, followed by the background's polynomials. The sums
are float64 and can be added in any order, over pieces of an image, images, processes or machines.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch

from ..autograd.modules import PaddingMode
from ..ops import ArgumentError, as_integer
from ..ops.arguments import Pair
from .examine import Observation, quality_of
from .fitting import dtype_of
from .gram import Report, Sums, gather, varies
from .learned import LearnedKernel
from .normal import Constraints
from .options import as_constraints, as_settings
from .pairs import ImagePair
from .problem import Point, from_flat
from .quality import Examination
from .solve import descend, largest_step, normals_of, penalty_of, solve, squared_error, with_sum
from .steps import checked_step
from .units import UNCHANGED, Units, converted


class KernelAccumulator:
    """The sums that determine a kernel, gathered piece by piece; then any number of fits to them.

    It holds (C/groups * R * S + T)^2 numbers, independent of the number of images. Its tensors are
    on the CPU and it can be pickled, for use in several processes; `update` computes on the
    device of the images.

    Args:
        kernel_size: R and S, int or (h, w).
        bias, background, padding, padding_mode, groups, flip, stride: as for learn_kernel.

    Attributes:
        settings: the arguments, checked.
        sums: G, b, c and the counts, see `Sums`, in `units`; None before the first update.
        units: units of the sums, from the first update.
        pairs: number of updates.

    Example:
        >>> sums = KernelAccumulator((1, 2))
        >>> for _ in range(3):
        ...     x = torch.rand(8, 8, dtype=torch.float64)
        ...     _ = sums.update(x, x[:, :-1] - x[:, 1:])
        >>> sums.solve().weight.round(decimals=6) + 0.0
        tensor([[ 1., -1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        kernel_size: Any,
        *,
        bias: bool = False,
        background: int | str | None = None,
        padding: Any = None,
        padding_mode: PaddingMode = "zeros",
        groups: int = 1,
        flip: bool = False,
        stride: Any = 1,
    ) -> None:
        self.settings = as_settings(
            kernel_size, bias, background, padding, padding_mode, groups, flip, stride
        )
        self.sums: Sums | None = None
        self.units = UNCHANGED
        self.pairs = 0
        self._weight_shape: tuple[int, ...] = ()
        self._plain = True
        self._dtype = torch.float32

    def update(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        input_mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        padding: Any = None,
        origin: Pair = (0, 0),
        size: Pair | None = None,
    ) -> KernelAccumulator:
        """Adds a pair of images, or a piece of one, to the sums.

        Args:
            x: (H, W), (C, H, W) or (N, C, H, W); any float dtype or uint8.
            y, mask, input_mask, weights: as for learn_kernel.
            padding: of this piece, instead of the accumulator's: 0 for a piece from the inside of
                an image, on top only for one at its upper edge.
            origin: (row, column) of the piece's first output pixel, for a polynomial background.
            size: (rows, columns) of the whole image's output; by default that of the piece.

        Returns:
            self.

        Raises:
            ArgumentError, ArgumentTypeError: as for learn_kernel; channels or filters differ from
                earlier updates.
        """
        place: dict[str, Any] = {"origin": origin, "size": size}
        if padding is not None:
            place["padding"] = padding
        pair = self.settings.pair(x, y, mask, input_mask, weights, **place)
        return self.add(pair, pair.rank == 2, dtype_of([pair]))

    def add(
        self, pair: ImagePair, plain: bool, dtype: torch.dtype, report: Report | None = None
    ) -> KernelAccumulator:
        """`update` with a checked pair.

        Args:
            pair: with this accumulator's settings.
            plain: whether the images are (H, W).
            dtype: of the result.
            report: called with the number of outputs after each block of them.
        """
        shape = pair.geometry.weight_shape
        if self.sums is not None and shape != self._weight_shape:
            raise ArgumentError(
                f"all images must have the same channels: earlier ones give a kernel of shape "
                f"{self._weight_shape}, these one of shape {shape}"
            )
        background = self.settings.background
        units = Units.of([pair], background) if self.sums is None else self.units
        kept = pair.x.dtype if pair.x.is_floating_point() else torch.float32
        standard = units.standard(pair, kept)
        sums = gather([standard], background, report=report).to("cpu")
        sums.varies = varies(standard).cpu()
        self._take(sums, units, 1, shape, plain, dtype)
        return self

    def equations(self) -> Sums:
        """The sums in the units of the images: G, b and c of the normal equations.

        Raises:
            ArgumentError: there was no update.
        """
        return converted(self._seen(), self.units, UNCHANGED, self._weight_shape)

    def merge(self, other: KernelAccumulator) -> KernelAccumulator:
        """Adds the sums of another accumulator with the same settings; returns self.

        Raises:
            ArgumentError: its settings, channels or filters differ.
        """
        if not isinstance(other, KernelAccumulator) or other.settings != self.settings:
            raise ArgumentError("merge takes a KernelAccumulator of the same settings")
        if other.sums is None:
            return self
        if self.sums is not None and other._weight_shape != self._weight_shape:
            raise ArgumentError(
                f"merge takes sums for kernels of the same shape, {self._weight_shape}, got "
                f"{other._weight_shape}"
            )
        self._take(
            other.sums, other.units, other.pairs, other._weight_shape, other._plain, other._dtype
        )
        return self

    def _take(
        self,
        sums: Sums,
        units: Units,
        pairs: int,
        shape: tuple[int, ...],
        plain: bool,
        dtype: torch.dtype,
    ) -> None:
        """Adds sums for kernels of the same shape, given in any units."""
        if self.sums is None:
            self.sums, self.units = Sums(**vars(sums)), units
        else:
            self.sums.add(converted(sums, units, self.units, shape))
        self.pairs += pairs
        self._weight_shape = shape
        self._plain = self._plain and plain
        if dtype == torch.float64:
            self._dtype = dtype

    def reduce(self, process_group: Any = None) -> KernelAccumulator:
        """Adds the sums of all ranks of torch.distributed, on every rank; returns self.

        Args:
            process_group: None for all ranks.

        Raises:
            ArgumentError: the ranks' settings, channels or filters differ.
        """
        import torch.distributed as dist

        own = None if self.sums is None else (self._weight_shape, len(self.sums.gram))
        facts = (self.settings, own, self.units, self.pairs, self._plain, self._dtype)
        everyone: list[Any] = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(everyone, facts, group=process_group)
        shapes = {held for _, held, *_ in everyone if held is not None}
        if len({settings for settings, *_ in everyone}) > 1 or len({s for s, _ in shapes}) > 1:
            raise ArgumentError("all ranks must have the same settings and kernels of one shape")
        if not shapes:
            return self
        shape, grams = next(iter(shapes))[0], max(count for _, count in shapes)
        units = next(units for _, held, units, *_ in everyone if held is not None)
        mine = Sums.zeros(grams, shape, len(self.settings.background.terms))
        if self.sums is not None:
            mine.add(converted(self.sums, self.units, units, shape))
        flat = torch.cat([getattr(mine, f.name).flatten() for f in fields(Sums)])
        on_gpu = dist.get_backend(process_group) == "nccl"
        flat = flat.to("cuda" if on_gpu else "cpu")
        dist.all_reduce(flat, group=process_group)
        self.sums, start = mine, 0
        for field in fields(Sums):
            old = getattr(mine, field.name)
            setattr(mine, field.name, flat[start : start + old.numel()].cpu().view(old.shape))
            start += old.numel()
        self._weight_shape, self.units = shape, units
        self.pairs = sum(pairs for *_, pairs, _, _ in everyone)
        self._plain = all(plain for _, held, *_, plain, _ in everyone if held is not None)
        if any(dtype == torch.float64 for *_, dtype in everyone):
            self._dtype = torch.float64
        return self

    def solve(
        self,
        solver: str = "normal",
        *,
        ridge: float = 0.0,
        smooth: float = 0.0,
        nonnegative: bool = False,
        sum_to: float | None = None,
        steps: int = 200,
        step_size: float | None = None,
        initial: torch.Tensor | None = None,
    ) -> LearnedKernel:
        """The best kernel for all images added so far, without reading them again.

        Args:
            solver: "normal", exact; or "gd", gradient descent with the same losses and kernels at
                each step as on the images, up to rounding.
            ridge, smooth, nonnegative, sum_to, initial: as for learn_kernel.
            steps, step_size: of "gd".

        Returns:
            A LearnedKernel without residual.

        Raises:
            ArgumentError: there was no update, or options that do not go together.
        """
        sums, shape, units = self._seen(), self._weight_shape, self.units
        given = as_constraints((shape[1], shape[2], shape[3]), ridge, nonnegative, sum_to, smooth)
        constraints = units.constraints(given)
        start = self._own(self._start(initial))
        limit: float | None = None
        normals = normals_of(sums, constraints)
        if solver == "normal":
            if step_size is not None:
                raise ArgumentError("step_size is for solver='gd'; 'normal' needs none")
            start = with_sum(start, constraints)
            theta = solve(sums, constraints, start, normals)
            history = [self._loss(start, constraints)]
        elif solver == "gd":
            if nonnegative or sum_to is not None or smooth:
                raise ArgumentError("nonnegative, sum_to and smooth need solver='normal', got 'gd'")
            own = converted(sums, units, UNCHANGED, shape)
            limit = largest_step(own, given)
            step_size = checked_step(step_size, limit)
            theta, history = descend(
                own, given, self._start(initial), as_integer("steps", steps), step_size
            )
            theta = self._own(theta)
        else:
            raise ArgumentError(f"solver must be 'normal' or 'gd' here, got {solver!r}")
        error = squared_error(sums, theta).clamp(min=0)
        seen = replace(sums, varies=sums.varies.clone())  # later updates change that one in place
        examination = Examination(
            partial(
                quality_of,
                seen,
                constraints,
                theta,
                error,
                shape,
                solver == "normal",
                Observation(),
                normals=normals,
                units=units,
                flip=self.settings.flip,
            )
        )
        point = units.user(from_flat(theta, shape))
        return LearnedKernel.of(
            Point(point.weight.to(self._dtype), point.background.to(self._dtype)),
            self.settings,
            self._plain,
            history=history,
            loss=max(0.0, self._loss(theta, constraints)),
            residual=None,
            solver=solver,
            reason="asked for" if solver != "normal" else "the sums determine the exact answer",
            step_size=step_size,
            max_step_size=limit,
            examination=examination,
        )

    def loss(self, weight: torch.Tensor, background: torch.Tensor | None = None) -> float:
        """The sum of squared errors of any kernel over all images added so far.

        Args:
            weight: (R, S) or (K, C/groups, R, S).
            background: (K, T) coefficients, or (K,) of a constant; None for zero.
        """
        theta = self._start(weight)
        terms = len(self.settings.background.terms)
        if background is not None:
            given = background.detach().to(theta).reshape(len(theta), -1)
            if given.shape[1] > terms:
                raise ArgumentError(
                    f"background must have {terms} coefficients for each filter, got shape "
                    f"{tuple(background.shape)}"
                )
            first = theta.shape[1] - terms
            theta[:, first : first + given.shape[1]] = given
        return self._loss(self._own(theta), None)

    def _loss(self, theta: torch.Tensor, constraints: Constraints | None) -> float:
        """The loss in the user's units, of a kernel in the units of the sums."""
        penalty = 0.0 if constraints is None else penalty_of(constraints, theta)
        return (float(squared_error(self._seen(), theta).sum()) + penalty) * self.units.loss

    def _own(self, theta: torch.Tensor) -> torch.Tensor:
        """theta (K, D), converted from the user's units to those of the sums."""
        return self.units.own(from_flat(theta, self._weight_shape)).flat()

    def _seen(self) -> Sums:
        if self.sums is None:
            raise ArgumentError("nothing to learn from: call update with a pair of images first")
        return self.sums

    def _start(self, initial: torch.Tensor | None) -> torch.Tensor:
        """theta (K, D) of a kernel in the user's layout, without a background; zeros for None."""
        gram, shape = self._seen().gram, self._weight_shape
        theta = gram.new_zeros(shape[0], gram.shape[-1])
        if initial is None:
            return theta
        expected = shape[-2:] if self._plain else shape
        if not isinstance(initial, torch.Tensor) or tuple(initial.shape) != tuple(expected):
            got = tuple(initial.shape) if isinstance(initial, torch.Tensor) else initial
            raise ArgumentError(f"a kernel must be a tensor of shape {tuple(expected)}, got {got}")
        kernel = initial.detach().to(theta).reshape(shape)
        kernel = kernel.flip(-2, -1) if self.settings.flip else kernel
        theta[:, : shape[1] * shape[2] * shape[3]] = kernel.flatten(1)
        return theta
