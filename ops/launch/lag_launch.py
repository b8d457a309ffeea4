"""The launches of `lag_sums`. Importing this imports triton: only lag_sums.py does so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from ... import kernels
from ..errors import ArgumentError
from ..geometry import Pair
from ..plan.choose import MAX_GRID
from ..plan.integers import cdiv, power_of_two
from .call import Call
from .entry import run_calls
from .layout import NARROW_LIMIT, alignment, device_of, last_offset
from .partial_sums import sum_partials_call
from .prepared import facts_of, prepared

#: Lags of a program, at most: float64 sums of a lane, two registers each.
MAX_LAGS = 28
#: Lags s of a program, at most.
MAX_COLUMNS = 8
#: Neighbouring columns of a lane: float32 elements of 16 bytes.
LANE_Q = 4
#: Lanes of a program.
THREADS = 128
#: Rows of a strip, at most and at least. The rows of b that a strip reads beyond its own are loaded
#: again: 2 of 66 for three lags r.
ROWS = (64, 16)
#: Programs of a multiprocessor that splits provide; with 15 lags, 5 fit (sm_90).
SIDE_BY_SIDE = 5


class LagTile(NamedTuple):
    """Lags of a program and the strips that it runs over, see kernels/lag_sums.py."""

    BLOCK_R: int
    BLOCK_S: int
    BLOCK_P: int
    BLOCK_Q: int

    def tiles(self, lags: Pair) -> int:
        """Tiles that hold all lags."""
        return cdiv(lags[0], self.BLOCK_R) * cdiv(lags[1], self.BLOCK_S)

    def strips(self, shape: torch.Size) -> int:
        """Strips of images of a's shape."""
        return shape[0] * cdiv(shape[2], self.BLOCK_P) * cdiv(shape[3], self.BLOCK_Q)


def lag_sums(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """(C, D, R, S) by Triton kernels; see lag_sums.lag_sums."""
    key = ("lag_sums", a.shape, b.shape, facts_of(a), facts_of(b))
    if ready := prepared(key):
        return ready.run((a, b), a.device)[0]
    out = a.new_empty(a.shape[1], b.shape[1], *lags, dtype=torch.float64)
    tile, splits = tile_for(a, b, lags, device_of(a).multiprocessors)

    def calls(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Iterator[Call]:
        return lag_sums_calls(a, b, out, tile, splits)

    return run_calls(key, [a, b], [out], calls)[0]


def tile_for(
    a: torch.Tensor, b: torch.Tensor, lags: Pair, multiprocessors: int
) -> tuple[LagTile, int]:
    """The tile for images of these shapes, and into how many parts their strips go."""
    R, S = lags
    block_s = cdiv(S, cdiv(S, MAX_COLUMNS))
    block_r = cdiv(R, cdiv(R, max(1, MAX_LAGS // block_s)))
    columns = min(THREADS * LANE_Q, max(LANE_Q, power_of_two(a.shape[3])))
    most, least = ROWS
    tile = LagTile(block_r, block_s, min(most, a.shape[2]), columns)
    programs = a.shape[1] * b.shape[1] * tile.tiles(lags)
    wanted = cdiv(SIDE_BY_SIDE * multiprocessors, programs)
    while tile.strips(a.shape) < wanted and tile.BLOCK_P >= 2 * least:
        tile = tile._replace(BLOCK_P=cdiv(tile.BLOCK_P, 2))
    return tile, min(wanted, tile.strips(a.shape))


def lag_sums_calls(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, tile: LagTile, splits: int
) -> Iterator[Call]:
    """The launches that fill out (C, D, R, S), contiguous: one, or partials and then their sum."""
    C, D, R, S = out.shape
    strips = tile.strips(a.shape)
    per_split = cdiv(strips, splits)
    splits = cdiv(strips, per_split)
    grid = C * D * tile.tiles((R, S)) * splits
    if grid > MAX_GRID:
        raise ArgumentError(f"the call needs {grid} programs, more than the {MAX_GRID} of a launch")
    target = out if splits == 1 else out.new_empty(splits, *out.shape)
    # Tiles of lags start where pieces do.
    aligned = S == tile.BLOCK_S or tile.BLOCK_S % LANE_Q == 0
    aligned = aligned and all(alignment(t, 3, LANE_Q) == LANE_Q for t in (a, b))
    largest = max(*map(last_offset, (a, b)), target.numel(), splits * per_split)
    arguments = {
        "a_ptr": a,
        "b_ptr": b,
        "out_ptr": target,
        "N": a.shape[0],
        "D": D,
        "a_shape": tuple(a.shape[2:]),
        "lags": (R, S),
        "SPLITS": splits,
        "SPLIT_STRIPS": per_split,
        "a_strides": a.stride(),
        "b_strides": b.stride(),
        "out_stride_split": out.numel(),
        "ALIGN": LANE_Q if aligned else 1,
        "INT64": largest > NARROW_LIMIT,
        **tile._asdict(),
        "LANE_Q": LANE_Q,
    }
    call = Call(kernels.lag_sums, grid, arguments, num_warps=THREADS // 32, num_stages=2)
    if splits == 1:
        yield call
    else:
        yield replace(call, scratch=(target,))
        yield sum_partials_call(target, out, splits)
