"""learn_kernel: the kernel between images, by the solver that suits the question.

    loss(weight, background) = sum_{n,k,p,q} weights * (corr2d(x, weight) + background - y)^2
                               + ridge * sum weight^2

The loss is quadratic in the unknowns. With A the linear map from a kernel to its output, its
gradient is 2 A^T (A kernel - y), that is 2 * wgrad(x, residual), and its Hessian 2 A^T A, the same
for every filter. Gradient descent therefore converges exactly when step < 2 / largest eigenvalue of
2 A^T A, conjugate gradients need about as many steps as a filter has unknowns, and from the sums
G = A^T A, b = A^T y and c = y^T y the best kernel follows without another look at the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, overload

import torch

from .learned import KernelField, LearnedKernel
from .modules import PaddingMode

Images: TypeAlias = torch.Tensor | Sequence[torch.Tensor]
Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@overload
def learn_kernel(
    x: Images, y: Images, kernel_size: Any, *, tiles: None = None, **options: Any
) -> LearnedKernel: ...
@overload
def learn_kernel(
    x: Images, y: Images, kernel_size: Any, *, tiles: Any, **options: Any
) -> KernelField: ...
def learn_kernel(
    x: Images,
    y: Images,
    kernel_size: Any,
    *,
    solver: str | Callable[..., torch.optim.Optimizer] = "auto",
    steps: int | None = None,
    step_size: float | None = None,
    bias: bool = False,
    background: int | str | None = None,
    padding: Any = None,
    padding_mode: PaddingMode = "zeros",
    groups: int = 1,
    flip: bool = False,
    mask: Images | None = None,
    input_mask: Images | None = None,
    weights: Images | None = None,
    ridge: float = 0.0,
    nonnegative: bool = False,
    sum_to: float | None = None,
    loss: str | Loss = "squared",
    tiles: Any = None,
    initial: torch.Tensor | None = None,
    log_every: int = 0,
    progress: bool | None = None,
) -> LearnedKernel | KernelField:
    """The kernel (and background) whose cross-correlation with x is nearest to y.

    Args:
        x: (H, W), (C, H, W) or (N, C, H, W), or a list of such images, each with a y of its own;
            any float dtype or uint8. The answer is in float64 if an x or y is, else in float32.
        y: the target: (P, Q), (K, P, Q) or (N, K, P, Q), of the size that corr2d gives or of x's
            own size. In the latter case, unless `padding` says how its border came about, the
            border that no full window reaches is left out of the fit.
        kernel_size: R and S, int or (h, w). A window larger than the truth does no harm but noise.
        solver: how to find it; all of them minimise the same.

            - "auto": "gd" if the call has `steps`, `step_size`, `log_every` or 200 steps' worth of
              nothing else to do with them; else "normal" where its normal matrix costs less than
              about a minute of one core, else "cg". The answer's `solver` and `reason` say which.
            - "normal": one pass over the images gathers the normal matrix in float64; exact, and
              the only one for `nonnegative`.
            - "cg": conjugate gradients on the same loss without that matrix, for large windows;
              needs about as many steps as a filter has unknowns.
            - "gd": gradient descent as in the textbook.
            - the name of a class in torch.optim in any case ("adam", "lbfgs"), or something that
              makes an optimiser of a list of parameters, such as a class or a functools.partial
              of one; `step_size` is its learning rate.
        steps: how many; by default 200, and as many as there are unknowns for "cg".
        step_size: of gradient descent. By default half of the largest that converges, found by
            power iteration on the normal operator.
        bias: whether to learn a constant per filter too; the same as background=0.
        background: "constant", or the order of a polynomial in the coordinates of y that is fitted
            together with the kernel.
        padding: as for corr2d; None means no padding.
        padding_mode: what the padding holds: "zeros", "reflect", "replicate" or "circular".
        groups: channel groups, as for corr2d.
        flip: True learns the kernel of a strict convolution, `convolve2d`.
        mask: which values of y to fit: True (not zero) is fitted, False is left out, as are NaN
            there. Of y's shape, or any that broadcasts to it; a list for several pairs.
        input_mask: which values of x are known; what a window that reaches an unknown one predicts
            is left out. Of x's shape or any that broadcasts to it; a list for several pairs.
        weights: what a squared error counts, 1 / variance of y; not negative; shaped as mask.
        ridge: added to the loss: ridge * sum weight^2 (not on the background).
        nonnegative: no element of the kernel may be negative.
        sum_to: what the elements of each filter must sum to, 1 for a kernel that keeps brightness.
        loss: "squared"; "huber" or "tukey", by which outliers count less, from repeated weighted
            fits with the scale from the median absolute residual; or, for the solvers of
            torch.optim, any differentiable function of prediction and target that gives a scalar.
            Where values are left out by masks, it is given those that are not, in one dimension.
        tiles: rows and columns, int or (h, w): a kernel for each tile of the output, for one that
            varies over the field.
        initial: the kernel to start from, shaped as the result; zeros by default. Where the images
            do not determine the kernel, the answer stays there.
        log_every: prints the loss every so many steps, as the textbook does.
        progress: shows a progress bar; None shows one on a terminal after a second.

    Returns:
        A LearnedKernel, which also says how well the images determine the kernel; with tiles, a
        KernelField of them.

    Raises:
        ArgumentError: shapes that do not fit, options that a solver does not have, a step size
            with which the loop would diverge, or images that are not finite.
        ArgumentTypeError: arguments of a kind that cannot be used.

    Example:
        >>> X = torch.ones(6, 8); X[:, 2:6] = 0
        >>> Y = corr2d(X, torch.tensor([[1.0, -1.0]]))
        >>> found = learn_kernel(X, Y, (1, 2))
        >>> found.weight.round(decimals=3)
        tensor([[ 1., -1.]])
        >>> found.solver
        'normal'
    """
    raise NotImplementedError
