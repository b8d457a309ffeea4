"""Derived error bounds of results.

An operator adds `terms` products and rounds once at the end. In whatever order they are added, the
sum in an accumulator of precision eps is off by at most (Higham, Accuracy and Stability, 4.2)

    terms * eps * sum_i |a_i * b_i|

and that last sum is the operator applied to absolute values. eps is a whole unit in the last place
rather than half of one, because matrix units truncate instead of rounding. Rounding to the result's
dtype adds half a unit in its last place, and half the smallest number above zero. TF32 operands
keep ten bits of mantissa: each is off by 2**-10 at most, which counts twice. TF32x3 corrects all
but the product of two such errors.

On the CPU backend PyTorch's own convolution computes, which may use a fast algorithm or accumulate
in float16. There, twice PyTorch's largest error in the same dtype is allowed as well.
"""

import numpy as np
import torch

from tricorr import ops
from tricorr.ops import reference

_OPERAND_ERROR = {"ieee": 0.0, "tf32": 2 * 2.0**-10, "tf32x3": 4 * 2.0**-20}


def to_numpy(tensor):
    """Any tensor as a float64 array, without loss."""
    return None if tensor is None else tensor.detach().cpu().double().numpy()


def assert_close_to_reference(
    actual, reference64, absolute_reference64, terms, *, precision="ieee", peer=None
):
    """Fails unless every element of `actual` is within its bound of the reference.

    Args:
        actual: a tensor; its dtype decides the bound.
        reference64: the reference. Where it is inf or nan, `actual` must be the same.
        absolute_reference64: the reference of the operands' absolute values.
        terms: number of products per element (GEMM_K), plus one for a bias.
        precision: how float32 was multiplied.
        peer: PyTorch's result in the same dtype, where PyTorch computed `actual`.
    """
    assert actual.shape == reference64.shape
    if actual.numel() == 0:
        return
    dtype = actual.dtype
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    out = torch.finfo(dtype)
    unit = terms * torch.finfo(accumulator).eps + _OPERAND_ERROR[precision] * (
        dtype == torch.float32
    )
    actual = to_numpy(actual)
    finite = np.isfinite(reference64)
    with np.errstate(invalid="ignore"):
        bound = unit * absolute_reference64 + out.eps / 2 * np.abs(reference64)
        bound += out.smallest_normal * out.eps / 2 + torch.finfo(accumulator).smallest_normal
        error = np.abs(actual - reference64)
        if peer is not None:
            peer_error = np.abs(to_numpy(peer) - reference64)
            bound = np.maximum(bound, 2 * np.max(peer_error, initial=0.0, where=finite))
        same = (actual == reference64) | (np.isnan(actual) & np.isnan(reference64))
        wrong = np.where(finite, ~(error <= bound), ~same)
    if not wrong.any():
        return
    error = np.where(same, 0.0, error)
    excess = np.where(wrong, np.nan_to_num(error / bound, nan=np.inf, posinf=np.inf), 0.0)
    worst = [np.unravel_index(i, wrong.shape) for i in np.argsort(-excess, axis=None)[:5]]
    lines = [
        f"{wrong.sum()} of {wrong.size} elements ({dtype}, {terms} terms) are out of bound; "
        f"max error {error.max():.3g}, RMS error {np.sqrt(np.mean(error**2)):.3g}, "
        f"{np.isnan(actual).sum()} nan",
        *(
            f"  at {tuple(map(int, i))}: got {actual[i]:.9g}, expected {reference64[i]:.9g}, "
            f"error {error[i]:.3g}, bound {bound[i]:.3g}"
            for i in worst
            if wrong[i]
        ),
    ]
    raise AssertionError("\n".join(lines))


OPS = ("fprop_bias", "dgrad", "wgrad")


def operands(op, x, weight, bias, dy):
    """The operands of an operator, out of x, weight, bias and dy."""
    taken = {"fprop": (x, weight, None), "fprop_bias": (x, weight, bias), "dgrad": (dy, weight)}
    return taken.get(op, (x, dy))


def run(op, args, geometry, module=ops, **options):
    """An operator by its name, as implemented in `module`."""
    return getattr(module, op.removesuffix("_bias"))(*args, geometry, **options)


def truth(op, args, geometry):
    return run(op, [to_numpy(t) for t in args], geometry, reference)


def exact(op, args, geometry):
    """The result for whole numbers, whose sums have no error, on CPU in float64."""
    return torch.from_numpy(truth(op, args, geometry))


def check_exact(op, args, geometry, actual):
    """Compares the result for whole numbers: equal but for the one rounding to its dtype."""
    expected = exact(op, args, geometry).to(actual.dtype)
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def terms(op, geometry):
    """Number of products per element of the result: GEMM_K, plus one for a bias."""
    g = geometry
    if op == "wgrad":
        return (1 if g.per_sample else g.N) * g.P * g.Q
    channels = g.group_K if op == "dgrad" else g.group_C
    return channels * g.R * g.S + (op == "fprop_bias")


def check(op, args, geometry, *, actual=None, precision="ieee"):
    """Runs an operator, or takes its result, and compares it with the reference."""
    if actual is None:
        actual = run(op, args, geometry, precision=precision)
    absolute = truth(op, [None if t is None else t.abs() for t in args], geometry)
    count = terms(op, geometry)
    assert_close_to_reference(
        actual, truth(op, args, geometry), absolute, count, precision=precision
    )
    return actual
