"""The launches of `lag_sums`. Importing this imports triton: only lag_sums.py does so."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ... import kernels
from ..errors import ArgumentError
from ..geometry import Pair
from ..plan.choose import MAX_GRID
from .arguments import sum_partials_call
from .call import Call
from .layout import NARROW_LIMIT, device_of, last_offset

#: (lags, columns) of a program: float64 sums of 16 for each of 128 threads.
LAG_TILE = (8, 256)
#: Fewest rows of a split: each costs a partial result.
LEAST_ROWS = 16


def lag_sums(a: torch.Tensor, b: torch.Tensor, lags: Pair) -> torch.Tensor:
    """(C, D, R, S) by Triton kernels; see lag_sums.lag_sums."""
    out = a.new_empty(a.shape[1], b.shape[1], *lags, dtype=torch.float64)
    splits = split_rows(a, b, lags, device_of(a).multiprocessors)
    for call in lag_sums_calls(a, b, out, splits):
        call.run(a.device)
    return out


def split_rows(a: torch.Tensor, b: torch.Tensor, lags: Pair, multiprocessors: int) -> int:
    """Into how many parts the rows go, for about four programs on every multiprocessor."""
    programs = a.shape[1] * b.shape[1] * lags[0] * -(-lags[1] // LAG_TILE[0])
    wanted = -(-4 * multiprocessors // programs)
    return max(1, min(wanted, a.shape[0] * a.shape[2] // LEAST_ROWS))


def lag_sums_calls(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, splits: int
) -> Iterator[Call]:
    """The launches that fill out (C, D, R, S), contiguous: one, or partials and then their sum."""
    C, D, R, S = out.shape
    rows = a.shape[0] * a.shape[2]
    per_split = -(-rows // splits)
    splits = -(-rows // per_split)
    block_s, block_q = LAG_TILE
    grid = C * D * R * -(-S // block_s) * splits
    if grid > MAX_GRID:
        raise ArgumentError(f"the call needs {grid} programs, more than the {MAX_GRID} of a launch")
    target = out if splits == 1 else out.new_empty(splits, *out.shape)
    steps = per_split * -(-a.shape[3] // block_q)
    largest = max(*map(last_offset, (a, b)), target.numel(), steps, rows)
    arguments = {
        "a_ptr": a,
        "b_ptr": b,
        "out_ptr": target,
        "D": D,
        "a_shape": tuple(a.shape[2:]),
        "lags": (R, S),
        "ROWS": rows,
        "SPLITS": splits,
        "SPLIT_ROWS": per_split,
        "a_strides": a.stride(),
        "b_strides": b.stride(),
        "out_stride_split": out.numel(),
        "INT64": largest > NARROW_LIMIT,
        "BLOCK_S": block_s,
        "BLOCK_Q": block_q,
    }
    yield Call(kernels.lag_sums, grid, arguments, num_warps=4, num_stages=2)
    if splits > 1:
        yield sum_partials_call(target, out, splits)
