"""What the compiler is told of alignment, axes and loops: each of these changes nothing else."""

import triton
import triton.language as tl

from .versions import FIRST_AXIS_WINS


@triton.jit
def side_by_side(pointers, offset):
    """Their sum, of two axes, read by threads along the last: the compiler sees no runs in either.

    Before Triton 3.7 a run of two is claimed for that. Of no alignment: accesses stay single ones.
    The sum is made here because a hint belongs to an operation, and an argument is none.
    """
    pointers += offset
    if FIRST_AXIS_WINS:
        pointers = tl.max_contiguous(tl.multiple_of(pointers, [1, 1]), [1, 2])
    return pointers


@triton.jit
def along(AXIS: tl.constexpr, SIZE: tl.constexpr):
    """0, 1, ... SIZE - 1 along one axis of two."""
    return tl.expand_dims(tl.arange(0, SIZE), 1 - AXIS)


@triton.jit
def round_down(number, BASE: tl.constexpr):
    """`number`, of which the host knows that BASE divides it: so the compiler sees that too."""
    return number // BASE * BASE


@triton.jit
def align_strides(strides, PIXEL_AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """An image's strides: the compiler now sees that ALIGN divides all but the innermost."""
    n, c, h, w = strides
    if PIXEL_AXIS == 0:
        w = round_down(w, ALIGN)
    else:
        c = round_down(c, ALIGN)
    return round_down(n, ALIGN), c, round_down(h, ALIGN), w


@triton.jit
def align_planes(strides, ALIGN: tl.constexpr):
    """An image's strides: the compiler now sees that ALIGN divides all but that of columns."""
    n, c, h, w = strides
    return round_down(n, ALIGN), round_down(c, ALIGN), round_down(h, ALIGN), w


@triton.jit
def align_tap_strides(strides, ALIGN: tl.constexpr):
    """A filter bank's strides: the compiler now sees that ALIGN divides those of k, r and s."""
    n, k, c, r, s = strides
    return n, round_down(k, ALIGN), c, round_down(r, ALIGN), round_down(s, ALIGN)


@triton.jit
def align_extents(c, w, PIXEL_AXIS: tl.constexpr, ALIGN: tl.constexpr):
    """An image's channels and columns: the compiler now sees that ALIGN divides the innermost."""
    if PIXEL_AXIS == 0:
        c = round_down(c, ALIGN)
    else:
        w = round_down(w, ALIGN)
    return c, w


@triton.jit
def at_least_one(steps):
    """`steps` of a loop that the compiler now sees to be entered.

    Else LLVM moves the zeros that sums start with to the way around the loop, and ptxas waits for
    each of its products (Triton 3.6, wgmma).
    """
    return tl.maximum(steps, 1)
