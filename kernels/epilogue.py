"""What happens to a sum before the one rounding: a residual is added, then the activation.

    relu  max(z, 0)        gelu  z * (1 + erf(z / sqrt(2))) / 2
    relu6 min(max(z, 0), 6)        silu  z / (1 + exp(-z))

In the precision of the sum, float32 or float64. Not-a-number stays, as in PyTorch.
"""

import triton
import triton.language as tl


@triton.jit
def add_residual(z, residual_ptr, mask):
    """A block of sums plus what lies at the pointers, in the dtype of the sums."""
    return z + tl.load(residual_ptr, mask=mask, other=0.0).to(z.dtype)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation of a block of sums, in their dtype."""
    if ACTIVATION == "relu":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        z = tl.minimum(z, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "silu":
        z = z / (1.0 + tl.exp(-z))
    else:
        tl.static_assert(ACTIVATION == "none", "an activation of ops/arguments.py")
    return z
