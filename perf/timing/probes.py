"""Kernels that measure a device: the rate of L2, the time of a load, the cost of a launch.

Importing this imports triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .timers import median_seconds

if TYPE_CHECKING:
    from .timers import Timer

#: Elements of the buffer that is read from L2, a power of two, in float32 (8 MiB).
L2_ELEMENTS = 2**21
#: Blocks of a program that are loaded together, how often, and elements of a block: 16 loads of 16
#: bytes are under way for each of 128 threads.
L2_TOGETHER, L2_PASSES, L2_BLOCK = 4, 16, 2048
#: Elements of the buffer whose loads depend on each other (256 MiB), and how many those are.
CHAIN_ELEMENTS, CHAIN_LOADS = 2**26, 512


@triton.jit
def read_again(
    x_ptr, out_ptr, PASSES,
    ELEMENTS: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs read blocks of the buffer, each at another place, through L2 alone."""
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0)
    for _ in range(PASSES):
        for _together in tl.static_range(TOGETHER):
            # Hinted, because the compiler does not see that 16 bytes divide a remainder.
            start = tl.multiple_of((first * BLOCK) % ELEMENTS, BLOCK)
            total += tl.load(x_ptr + start + offsets, cache_modifier=".cg")
            first += tl.num_programs(0)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + offsets, total)


@triton.jit
def follow(next_ptr, out_ptr, LOADS):
    """One lane loads the place of its next load."""
    place = tl.load(next_ptr)
    for _ in range(LOADS):
        place = tl.load(next_ptr + place)
    tl.store(out_ptr, place)


def l2_rate(timer: Timer, multiprocessors: int) -> float:
    """Bytes per second that are read of a buffer which fits into L2."""
    programs = 8 * multiprocessors
    x = torch.rand(L2_ELEMENTS, device="cuda")
    out = torch.empty(programs * L2_BLOCK, device="cuda")

    def read() -> Any:
        return read_again[(programs,)](
            x, out, L2_PASSES, ELEMENTS=L2_ELEMENTS, TOGETHER=L2_TOGETHER, BLOCK=L2_BLOCK
        )

    return programs * L2_PASSES * L2_TOGETHER * L2_BLOCK * 4 / median_seconds(timer, read)


def load_seconds(timer: Timer) -> float:
    """Seconds of a load from device memory: caches are flushed before each chain of loads."""
    # Steps of about a hundred thousand elements: no two loads share a line or a row of memory.
    step = 104_729
    chain = (torch.arange(CHAIN_ELEMENTS, device="cuda", dtype=torch.int32) + step) % CHAIN_ELEMENTS
    out = torch.empty(1, device="cuda", dtype=torch.int32)
    seconds = median_seconds(timer, lambda: follow[(1,)](chain, out, CHAIN_LOADS), "cold")
    return seconds / CHAIN_LOADS


def launch_seconds(timer: Timer) -> float:
    """Device seconds of a kernel that hardly does anything, between others in a graph."""
    return median_seconds(timer, torch.zeros(1, device="cuda").zero_, "graph")
