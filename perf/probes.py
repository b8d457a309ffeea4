"""Kernels that measure a device: how fast L2 is read, and how long one load takes.

Importing this imports triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from .measure import Timer

#: Elements of the buffer that is read from L2, in float32 (8 MiB), and how often it is read.
L2_ELEMENTS, L2_PASSES = 2**21, 64
#: Elements of the buffer whose loads depend on each other (256 MiB), and how many those are.
CHAIN_ELEMENTS, CHAIN_LOADS = 2**26, 512


@triton.jit  # type: ignore[untyped-decorator]
def read_again(x_ptr, out_ptr, ELEMENTS, PASSES, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Every program reads the whole buffer: each pass begins where another program's does."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    offsets = tl.arange(0, BLOCK)
    for step in range(PASSES):
        start = ((program + step * tl.num_programs(0)) * BLOCK) % ELEMENTS
        total += tl.load(x_ptr + start + offsets, cache_modifier=".cg")
    tl.store(out_ptr + program * BLOCK + offsets, total)


@triton.jit
def follow(next_ptr, out_ptr, LOADS):  # type: ignore[no-untyped-def]
    """One lane loads the place of its next load."""
    place = tl.load(next_ptr)
    for _ in range(LOADS):
        place = tl.load(next_ptr + place)
    tl.store(out_ptr, place)


def l2_rate(timer: Timer, multiprocessors: int) -> float:
    """Bytes per second that are read of a buffer which fits into L2."""
    from .measure import median_seconds

    programs, block = 8 * multiprocessors, 2048
    x = torch.rand(L2_ELEMENTS, device="cuda")
    out = torch.empty(programs * block, device="cuda")
    seconds = median_seconds(
        timer, lambda: read_again[(programs,)](x, out, L2_ELEMENTS, L2_PASSES, BLOCK=block)
    )
    return programs * L2_PASSES * block * 4 / seconds


def load_seconds(timer: Timer) -> float:
    """Seconds of a load from device memory."""
    from .measure import median_seconds

    # Steps of about a hundred thousand elements: no two loads share a line or a row of memory.
    step = 104_729
    chain = (torch.arange(CHAIN_ELEMENTS, device="cuda", dtype=torch.int32) + step) % CHAIN_ELEMENTS
    out = torch.empty(1, device="cuda", dtype=torch.int32)
    seconds = median_seconds(timer, lambda: follow[(1,)](chain, out, CHAIN_LOADS))
    return seconds / CHAIN_LOADS


def launch_seconds(timer: Timer) -> float:
    """Seconds of a kernel that hardly does anything, between others in a graph."""
    from .measure import quantile

    x = torch.zeros(1, device="cuda")
    seconds = timer.seconds(x.zero_)
    sample = timer.sampler(x.zero_, "graph", seconds, 0.0)
    return quantile([sample() for _ in range(15)], 0.5)
