"""KernelAccumulator: a kernel from more images than fit in memory, or than one machine has.

The (weighted) squared error of any kernel follows from sums over the pixels:

    loss(theta) = c - 2 b . theta + theta^T G theta
    G = sum weights * a a^T    b = sum weights * a * y    c = sum weights * y^2

with a the window of x under a pixel of y, the background's polynomials appended. They are kept in
float64 and are added up in any order, over pieces of an image, images, processes or machines.
"""

from __future__ import annotations

from typing import Any

import torch

from ..ops.geometry import Pair
from .learned import LearnedKernel
from .modules import PaddingMode


class KernelAccumulator:
    """The sums that determine a kernel, gathered piece by piece; then any number of fits to them.

    It holds (C/groups * R * S + T)^2 numbers whatever it has seen. It can be pickled, and its
    tensors are on the CPU, so that it travels between processes; the work of `update` is done
    where the images are.

    Args:
        kernel_size: R and S, int or (h, w).
        bias, background, padding, padding_mode, groups, flip: as for learn_kernel.

    Attributes:
        gram: G, (groups, D, D), or (K, D, D) if weights differ between filters.
        moments: b, (K, D).
        squares: c, (K,).
        target_sum: sum weights * y, (K,).
        weight_sum: sum weights, (K,).
        pixels: how many values of y had a weight, (K,).
        pairs: how many calls of update it has seen.

    Example:
        >>> sums = KernelAccumulator((1, 2))
        >>> for _ in range(3):
        ...     x = torch.rand(8, 8, dtype=torch.float64)
        ...     sums.update(x, x[:, :-1] - x[:, 1:])
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
    ) -> None:
        raise NotImplementedError

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
            padding: of this piece, instead of the accumulator's: a piece from the inside of an
                image has none (0), one at its upper edge has it on top alone.
            origin: (row, column) of the piece's first output pixel, for a polynomial background.
            size: (rows, columns) of the whole output that it is a piece of; by default its own.

        Returns:
            self.

        Raises:
            ArgumentError, ArgumentTypeError: as for learn_kernel; channels or filters differ from
                earlier updates.
        """
        raise NotImplementedError

    def merge(self, other: KernelAccumulator) -> KernelAccumulator:
        """Adds what another accumulator of the same settings has seen; returns self.

        Raises:
            ArgumentError: its settings, channels or filters are others.
        """
        raise NotImplementedError

    def reduce(self, process_group: Any = None) -> KernelAccumulator:
        """Sums over all ranks of torch.distributed, on every one of them; returns self.

        Args:
            process_group: None for all ranks.

        Raises:
            ArgumentError: the ranks' settings, channels or filters differ.
        """
        raise NotImplementedError

    def solve(
        self,
        solver: str = "normal",
        *,
        ridge: float = 0.0,
        nonnegative: bool = False,
        sum_to: float | None = None,
        steps: int = 200,
        step_size: float | None = None,
        initial: torch.Tensor | None = None,
    ) -> LearnedKernel:
        """The best kernel for all that was seen, at no cost in pixels.

        Args:
            solver: "normal", exact; or "gd", whose losses and kernels are those of gradient
                descent on the images, step by step, to rounding.
            ridge, nonnegative, sum_to, initial: as for learn_kernel.
            steps, step_size: of "gd".

        Returns:
            A LearnedKernel without residual.

        Raises:
            ArgumentError: nothing was seen, or options that do not go together.
        """
        raise NotImplementedError

    def loss(self, weight: torch.Tensor, background: torch.Tensor | None = None) -> float:
        """The sum of squared errors of any kernel over all that was seen.

        Args:
            weight: (R, S) or (K, C/groups, R, S).
            background: (K, T) coefficients, or (K,) of a constant; none counts as zero.
        """
        raise NotImplementedError
