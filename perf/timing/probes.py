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

#: Elements of the buffer that is read from L2, in float32 (8 MiB), and how often it is read.
L2_ELEMENTS, L2_PASSES = 2**21, 64
#: Elements of the buffer whose loads depend on each other (256 MiB), and how many those are.
CHAIN_ELEMENTS, CHAIN_LOADS = 2**26, 512
#: Rows and columns of the box that a descriptor describes.
BOX = 32


@triton.jit
def read_again(x_ptr, out_ptr, ELEMENTS, PASSES, BLOCK: tl.constexpr):
    """Every program reads the whole buffer; its passes begin at different places."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    offsets = tl.arange(0, BLOCK)
    for step in range(PASSES):
        start = ((program + step * tl.num_programs(0)) * BLOCK) % ELEMENTS
        total += tl.load(x_ptr + start + offsets, cache_modifier=".cg")
    tl.store(out_ptr + program * BLOCK + offsets, total)


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
    programs, block = 8 * multiprocessors, 2048
    x = torch.rand(L2_ELEMENTS, device="cuda")
    out = torch.empty(programs * block, device="cuda")
    seconds = median_seconds(
        timer, lambda: read_again[(programs,)](x, out, L2_ELEMENTS, L2_PASSES, BLOCK=block)
    )
    return programs * L2_PASSES * block * 4 / seconds


def load_seconds(timer: Timer) -> float:
    """Seconds of a load from device memory."""
    # Steps of about a hundred thousand elements: no two loads share a line or a row of memory.
    step = 104_729
    chain = (torch.arange(CHAIN_ELEMENTS, device="cuda", dtype=torch.int32) + step) % CHAIN_ELEMENTS
    out = torch.empty(1, device="cuda", dtype=torch.int32)
    seconds = median_seconds(timer, lambda: follow[(1,)](chain, out, CHAIN_LOADS))
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
