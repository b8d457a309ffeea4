"""Kernels that measure a device: the rate of L2, the time of a load, the cost of a launch.

Importing this imports triton.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ...kernels import TensorDescriptor
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
#: Rows and columns of the box that a descriptor describes.
BOX = 32


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


@triton.jit
def copy_tile(x_ptr, out_ptr, BLOCK: tl.constexpr):
    """One program copies a tile through pointers."""
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + at, tl.load(x_ptr + at))


@triton.jit
def copy_box(x_desc, out_ptr, BLOCK: tl.constexpr):
    """The same, read through a tensor descriptor."""
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + at, x_desc.load([0, 0]))


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


def descriptor_seconds(timer: Timer) -> tuple[float, float, float]:
    """(descriptor, host_launch, host_descriptor) of Ceilings."""
    x, out = torch.rand(BOX, BOX, device="cuda"), torch.empty(BOX, BOX, device="cuda")

    def by_pointers() -> Any:
        return copy_tile[(1,)](x, out, BLOCK=BOX)

    def by_descriptor() -> Any:
        box = TensorDescriptor(x, [BOX, BOX], [BOX, 1], [BOX, BOX])
        return copy_box[(1,)](box, out, BLOCK=BOX)

    def host(call: Callable[[], Any]) -> float:
        return min(timer.host_seconds(call, timer.seconds(call)) or 0.0 for _ in range(5))

    device = median_seconds(timer, by_descriptor, "graph")
    without, by_host = median_seconds(timer, by_pointers, "graph"), host(by_pointers)
    if not torch.equal(out, x):
        raise RuntimeError("a box read through a descriptor is not the one that is described")
    return max(0.0, device - without), by_host, max(0.0, host(by_descriptor) - by_host)
