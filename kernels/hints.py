"""Hints to the compiler about alignment, axes and loops. None of them changes a result."""

import triton
import triton.language as tl

from .versions import FIRST_AXIS_WINS


@triton.jit
def side_by_side(pointers, offset):
    """pointers + offset, hinted so that threads run along the last axis.

    Triton < 3.7 picks the first axis when it sees no contiguity, so a run of two is claimed along
    the last one; without alignment, accesses still take one element each. The sum is made here
    because a hint belongs to an operation.
    """
    pointers += offset
    if FIRST_AXIS_WINS:
        pointers = tl.max_contiguous(tl.multiple_of(pointers, [1, 1]), [1, 2])
    return pointers


@triton.jit
def side_by_side_singly(pointers, offset):
    """side_by_side with one element of a thread in each access, however the pointers lie.

    Sums of a large tile in pieces of 16 bytes would need as many registers again (sm_90).
    """
    return tl.max_contiguous(tl.multiple_of(pointers + offset, [1, 1]), [1, 2])


@triton.jit
def side_by_side_in_chunks(pointers, offset):
    """side_by_side for blocks [chunk, row, lane]."""
    pointers += offset
    if FIRST_AXIS_WINS:
        pointers = tl.max_contiguous(tl.multiple_of(pointers, [1, 1, 1]), [1, 1, 2])
    return pointers


@triton.jit
def along(AXIS: tl.constexpr, SIZE: tl.constexpr):
    """0, 1, ... SIZE - 1 along one axis of two."""
    return tl.expand_dims(tl.arange(0, SIZE), 1 - AXIS)


@triton.jit
def round_down(number, BASE: tl.constexpr):
    """`number`, known to the compiler as a multiple of BASE; the host has checked that it is."""
    return number // BASE * BASE


@triton.jit
def align_strides(strides, PIXEL_AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """An image's strides, all but the innermost known to the compiler as multiples of ALIGN."""
    n, c, h, w = strides
    if PIXEL_AXIS == 0:
        w = round_down(w, ALIGN)
    else:
        c = round_down(c, ALIGN)
    return round_down(n, ALIGN), c, round_down(h, ALIGN), w


@triton.jit
def align_planes(strides, ALIGN: tl.constexpr):
    """An image's strides, all but that of columns known to the compiler as multiples of ALIGN."""
    n, c, h, w = strides
    return round_down(n, ALIGN), round_down(c, ALIGN), round_down(h, ALIGN), w


@triton.jit
def align_tap_strides(strides, ALIGN: tl.constexpr):
    """A bank's strides, those of k, r and s known to the compiler as multiples of ALIGN."""
    n, k, c, r, s = strides
    return n, round_down(k, ALIGN), c, round_down(r, ALIGN), round_down(s, ALIGN)


@triton.jit
def align_extents(c, w, PIXEL_AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """Channels and columns, the innermost known to the compiler as a multiple of ALIGN."""
    if PIXEL_AXIS == 0:
        c = round_down(c, ALIGN)
    else:
        w = round_down(w, ALIGN)
    return c, w


@triton.jit
def at_least_one(steps):
    """The step count of a loop that always runs, in a form that shows this to the compiler.

    If the loop might be skipped, LLVM zeroes the sums on the path around it, and ptxas then waits
    for each wgmma inside (Triton 3.6).
    """
    return tl.maximum(steps, 1)
