"""KernelField: a kernel for each tile of the output."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..autograd.modules import PaddingMode
from ..images.output import StrPath
from ..ops import ArgumentError, as_padding, geometry_of
from ..ops.arguments import Pair
from .kernel_files import check_kernel_name, write_kernel
from .learned import LearnedKernel
from .pairs import padded_image


@dataclass(frozen=True)
class KernelField:
    """A kernel for each tile of the output: result of learn_kernel_field(tiles=...).

    Attributes:
        kernels: a LearnedKernel for each tile, by rows and columns of tiles.
        rows: borders of the tiles: tile i has output rows rows[i] .. rows[i + 1] - 1.
        columns: the same for columns.
        padding, padding_mode, groups, flip: of the fit.
    """

    kernels: list[list[LearnedKernel]]
    rows: list[int]
    columns: list[int]
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    padding_mode: PaddingMode = "zeros"
    groups: int = 1
    flip: bool = False

    @property
    def weight(self) -> torch.Tensor:
        """(rows, columns) of tiles, then the shape of a weight."""
        return torch.stack([torch.stack([k.weight for k in row]) for row in self.kernels])

    @property
    def bias(self) -> torch.Tensor | None:
        """(rows, columns, K), or None."""
        biases = [[k.bias for k in row if k.bias is not None] for row in self.kernels]
        return torch.stack([torch.stack(row) for row in biases]) if biases[0] else None

    @property
    def residual(self) -> torch.Tensor | list[torch.Tensor]:
        """Prediction minus target, all tiles put together; a list for several pairs."""
        tiles: Any = [[k.residual for k in row] for row in self.kernels]
        if isinstance(tiles[0][0], list):
            return [
                _assemble([[tile[i] for tile in row] for row in tiles])
                for i in range(len(tiles[0][0]))
            ]
        return _assemble(tiles)

    @property
    def loss(self) -> float:
        """The sum of the tiles' losses."""
        return sum(k.loss for row in self.kernels for k in row)

    @property
    def rms(self) -> float:
        """Root of the (weighted) mean squared error over all tiles."""
        found = [k.quality for row in self.kernels for k in row]
        total = sum(q.weight_sum for q in found)
        return (sum(q.squared_error for q in found) / total) ** 0.5 if total else 0.0

    @property
    def notes(self) -> list[str]:
        """Warnings for the user, with the tile that each is about."""
        return [
            f"tile {i}, {j}: {note}"
            for i, row in enumerate(self.kernels)
            for j, kernel in enumerate(row)
            for note in kernel.notes
        ]

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """The output of x, each tile by its own kernel.

        Raises:
            ArgumentError: x does not have the size of the fit.
        """
        window = self.kernels[0][0].weight.shape[-2:]
        padding = as_padding(self.padding, (window[0], window[1]))
        geometry = geometry_of(
            (1, 1, x.shape[-2], x.shape[-1]), (1, 1, window[0], window[1]), padding=padding
        )
        if (geometry.P, geometry.Q) != (self.rows[-1], self.columns[-1]):
            raise ArgumentError(
                f"x must give an output of {self.rows[-1]} x {self.columns[-1]} pixels, as the fit "
                f"had, got {geometry.P} x {geometry.Q} (x of shape {tuple(x.shape)})"
            )
        size = (geometry.P, geometry.Q)
        padded = padded_image(x, padding, self.padding_mode)
        return _assemble(
            [
                [
                    kernel.predict(
                        padded[..., top : bottom + window[0] - 1, left : right + window[1] - 1],
                        origin=(top, left),
                        size=size,
                    )
                    for kernel, (left, right) in zip(row, pairwise(self.columns), strict=True)
                ]
                for row, (top, bottom) in zip(self.kernels, pairwise(self.rows), strict=True)
            ]
        )

    def save(self, path: StrPath) -> None:
        """Writes the weights of all tiles, (rows, columns, ...), as .npy, .npz or .fits.

        Raises:
            ArgumentError: another ending.
            ModuleNotFoundError: .fits without astropy.
        """
        suffix = check_kernel_name(path)
        arrays = {"weight": self.weight.numpy(force=True)}
        if self.bias is not None:
            arrays["bias"] = self.bias.numpy(force=True)
        arrays |= {"rows": np.array(self.rows), "columns": np.array(self.columns)}
        write_kernel(path, suffix, arrays, self.kernels[0][0].cards())

    def __str__(self) -> str:
        tiles = f"{len(self.kernels)} x {len(self.kernels[0])} tiles"
        first = self.kernels[0][0]
        window = "x".join(map(str, first.weight.shape))
        lines = [f"kernels {window} of {tiles} by {first.solver}, RMS error {self.rms:.3g}"]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def _assemble(tiles: list[list[torch.Tensor]]) -> torch.Tensor:
    return torch.cat([torch.cat(row, -1) for row in tiles], -2)
