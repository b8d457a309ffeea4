"""Which taps of a window reach which phase, h % STRIDE, of the input: see (*) in indexing."""

import math

import triton
import triton.language as tl


@triton.jit
def phases(STRIDE: tl.constexpr, EXTENT):
    """Number of phases, h % STRIDE, of the inputs h < EXTENT."""
    if STRIDE == 1:
        return 1
    return tl.minimum(STRIDE, EXTENT)


@triton.constexpr_function
def tap_step(STRIDE, DIL):
    """Distance between taps that reach the same phase, h % STRIDE, by (*)."""
    return STRIDE // math.gcd(STRIDE, DIL)


@triton.constexpr_function
def most_taps(TAPS, STRIDE, DIL):
    """Largest number of taps of a phase, as a constexpr, which tl.cdiv is not in Triton 3.6."""
    return -(-TAPS // tap_step(STRIDE, DIL))


@triton.jit
def phase_taps(
    phase, TAPS: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DIL: tl.constexpr
):
    """The taps through which outputs p read inputs of one phase: h = phase + STRIDE * j.

    By (*), j = p + shift through the first of these taps. Each next one is `step` taps further and
    reads j + step_j. There may be no such taps.

    Returns (first tap, number of taps, shift, step, step_j).
    """
    step: tl.constexpr = tap_step(STRIDE, DIL)
    first = 0
    if STRIDE > 1:
        first = TAPS
        for i in tl.static_range(min(step, TAPS)):
            tap = min(step, TAPS) - 1 - i
            first = tl.where((tap * DIL - PAD - phase) % STRIDE == 0, tap, first)
    shift = (first * DIL - PAD - phase) // STRIDE  # exact where there are taps
    return first, tl.cdiv(TAPS - first, step), shift, step, DIL * step // STRIDE
