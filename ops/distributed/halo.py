"""Rows of an image divided among ranks: which a rank owns, which it needs, how they are exchanged.

Everything here holds for columns (W, Q) as for rows (H, P). The window of output row p covers the
input rows h = p * stride - pad_top + r * dilation, r = 0 ... R-1, so a rank needs a halo of rows
beyond its own. Every rank computes all ranks' rows from the geometry; one all-to-all moves them,
from however many neighbours.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch.distributed import ProcessGroup
from torch.distributed import _functional_collectives as collectives

from ..geometry import Geometry, Pair
from ..launch.formats import suggests_channels_last

#: First row, and the one after the last.
Rows: TypeAlias = tuple[int, int]


class Axis(NamedTuple):
    """One of the two axes of a correlation, and the rows of x and y that a rank works on."""

    extent: int
    outputs: int
    window: int
    stride: int
    padding: Pair
    dilation: int

    @property
    def reach(self) -> int:
        """Rows from the first to the last tap of a window."""
        return self.dilation * (self.window - 1) + 1

    def inputs_of(self, outputs: Rows) -> Rows:
        """The input rows that the windows of these output rows cover.

        Not empty unless `outputs` is: where windows cover padding only, the nearest row.
        """
        first, end = outputs
        if first == end:
            return 0, 0
        begin = _clamp(first * self.stride - self.padding[0], 0, self.extent - 1)
        covered = (end - 1) * self.stride - self.padding[0] + self.reach
        return begin, _clamp(covered, begin + 1, self.extent)

    def outputs_of(self, inputs: Rows) -> Rows:
        """The output rows whose windows may cover these input rows.

        Not empty unless `inputs` is: where no window does, the nearest row.
        """
        first, end = (row + self.padding[0] for row in inputs)
        if first == end:
            return 0, 0
        begin = _clamp(-((self.reach - 1 - first) // self.stride), 0, self.outputs - 1)
        return begin, _clamp((end - 1) // self.stride + 1, begin + 1, self.outputs)

    def padding_of(self, inputs: Rows, outputs: Rows) -> Pair:
        """The padding with which these input rows alone give these output rows.

        Both sides may be negative, as in any Geometry: rows that no window covers.
        """
        top = self.padding[0] + inputs[0] - outputs[0] * self.stride
        covered = (outputs[1] - outputs[0] - 1) * self.stride + self.reach
        return top, covered - (inputs[1] - inputs[0]) - top


def axes(geometry: Geometry) -> tuple[Axis, Axis]:
    """Rows and columns."""
    g = geometry
    return (
        Axis(g.H, g.P, g.R, g.given_stride[0], g.padding[0], g.given_dilation[0]),
        Axis(g.W, g.Q, g.S, g.given_stride[1], g.padding[1], g.given_dilation[1]),
    )


def shares(extent: int, ranks: int) -> list[Rows]:
    """The rows of each rank as DTensor divides them (torch.chunk): the last may have none."""
    size = -(-extent // ranks)
    return [(min(i * size, extent), min((i + 1) * size, extent)) for i in range(ranks)]


def exchange(
    local: torch.Tensor,
    dim: int,
    owned: list[Rows],
    needed: list[Rows],
    rank: int,
    group: ProcessGroup,
) -> torch.Tensor:
    """The rows `needed[rank]`, of which `local` holds those that are in `owned[rank]`.

    Args:
        local: rows owned[rank] along `dim`.
        dim: the dimension of the rows.
        owned: each rank's rows, in order.
        needed: each rank's rows after the exchange.
        rank: this one.
        group: of len(owned) ranks, each of which makes this call.

    Returns:
        Rows needed[rank], in the memory format of `local`.
    """
    begin = owned[rank][0]

    def part(rows: Rows) -> torch.Tensor:
        return local.narrow(dim, rows[0] - begin if rows[0] < rows[1] else 0, rows[1] - rows[0])

    own = part(_common(owned[rank], needed[rank]))
    ranks = range(len(owned))
    if not any(_travelling(owned[i], needed[j]) for i in ranks for j in ranks if i != j):
        return own
    nothing = (0, 0)
    leaving = [nothing if i == rank else _common(owned[rank], needed[i]) for i in ranks]
    coming = [nothing if i == rank else _common(owned[i], needed[rank]) for i in ranks]
    shape = list(local.shape)
    row = math.prod(shape[:dim] + shape[dim + 1 :])
    received = collectives.all_to_all_single(
        torch.cat([part(rows).reshape(-1) for rows in leaving]),
        [row * (end - first) for first, end in coming],
        [row * (end - first) for first, end in leaving],
        group,
    )
    received = collectives.wait_tensor(received)
    pieces = list(received.split([row * (end - first) for first, end in coming]))
    for i, (first, end) in enumerate(coming):
        pieces[i] = pieces[i].view(*shape[:dim], end - first, *shape[dim + 1 :])
    pieces[rank] = own
    whole = torch.cat(pieces, dim)
    if suggests_channels_last(local):
        return whole.contiguous(memory_format=torch.channels_last)
    return whole


def _travelling(owned: Rows, needed: Rows) -> bool:
    first, end = _common(owned, needed)
    return first < end


def _common(one: Rows, other: Rows) -> Rows:
    """The rows in both: (0, 0) where there are none."""
    first, end = max(one[0], other[0]), min(one[1], other[1])
    return (first, end) if first < end else (0, 0)


def _clamp(value: int, lowest: int, highest: int) -> int:
    return min(max(value, lowest), highest)
