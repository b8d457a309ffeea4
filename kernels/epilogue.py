"""What happens to a sum before the one rounding: a residual is added, then the activation.

    relu  max(z, 0)        gelu  z * (1 + erf(z / sqrt(2))) / 2
    relu6 min(max(z, 0), 6)        silu  z / (1 + exp(-z))

In the precision of the sum, float32 or float64. Not-a-number stays, as in PyTorch.

With Phi the normal distribution, gelu is max(z, 0) - |z| * Phi(-|z|). In float32,
log2(2 * Phi(-2h)) is a polynomial of h = |z| / 2 without a constant term, fitted for the smallest
largest error of gelu (linear programming, 4000 points up to h = 3.5, where Phi is below 2e-12; the
polynomial falls on from there). gelu is then wrong, before it is rounded, by

    of 16 bits    2 eps |z|, and a tenth of what float16 is rounded by at least, 2^-12 of the result
    of 32 bits    2 eps |z|: 0.1 are the polynomial's, 1 is ex2.approx's (2^-22 of Phi = 1/2),
                  the rest are roundings
"""

import triton
import triton.language as tl

#: Coefficients of log2(2 * Phi(-2h)), of the highest power first, for results of 16 and of 32 bits.
LOG_PHI_16 = tl.constexpr(
    (-0.013331647031009197, 0.10704807937145233, -0.40742990374565125, -1.8428713083267212,
     -2.3013784885406494)
)  # fmt: skip
LOG_PHI_32 = tl.constexpr(
    (-0.0007257370161823928, 0.005040341056883335, -0.01191552821546793, -0.004381971899420023,
     0.11301472783088684, -0.41996943950653076, -1.8368327617645264, -2.3022103309631348)
)  # fmt: skip


@triton.jit
def add_residual(z, residual_ptr, mask):
    """A block of sums plus what lies at the pointers, in the dtype of the sums."""
    return z + tl.load(residual_ptr, mask=mask, other=0.0).to(z.dtype)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """The activation of a block of sums, in their dtype, rounded to DTYPE: the one cast."""
    if ACTIVATION == "relu":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        z = tl.minimum(z, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        if z.dtype == tl.float64:
            z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
        elif DTYPE.primitive_bitwidth == 16:
            z = gelu_by(z, LOG_PHI_16, 5)
        else:
            z = gelu_by(z, LOG_PHI_32, 8)
    elif ACTIVATION == "silu":
        # exp2 would be four instructions fewer, but the unit of the two that stay decides the time,
        # and 64 results of a thread spill 32 bytes with it (fprop_gemm, sm_90, Triton 3.7.1).
        z = z / (1.0 + tl.exp(-z))
    else:
        tl.static_assert(ACTIVATION == "none", "an activation of ops/arguments.py")
    return z.to(DTYPE)


@triton.jit
def gelu_by(z, LOG_PHI: tl.constexpr, TERMS: tl.constexpr):
    """gelu in float32, see the module: -inf gives not-a-number, as in PyTorch."""
    half = 0.5 * z
    h = tl.minimum(tl.abs(half), 7.0)  # of infinity, h * 0 would be not-a-number
    power = LOG_PHI[0] * h + LOG_PHI[1]
    for i in tl.static_range(2, TERMS):
        power = power * h + LOG_PHI[i]
    return (half + tl.abs(half)) - h * tl.exp2(power * h)
