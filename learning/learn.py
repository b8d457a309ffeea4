"""learn_kernel: the kernel between images, by the solver that suits the call.

    loss(weight, background) = sum_{n,k,p,q} weights * (corr2d(x, weight) + background - y)^2
                               + ridge * sum weight^2

The loss is quadratic in the unknowns. With A the linear map from a kernel to its output, its
gradient is 2 A^T (A kernel - y), that is 2 * wgrad(x, residual), and its Hessian 2 A^T A, the same
for every filter. Gradient descent therefore converges if and only if step < 2 / largest eigenvalue
of 2 A^T A, conjugate gradients need about as many steps as a filter has unknowns, and the sums
G = A^T A, b = A^T y and c = y^T y give the best kernel without reading the images again.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias, overload

import torch

from ..autograd.functional import corr2d  # noqa: F401 - for the docstrings' examples
from ..autograd.modules import PaddingMode
from ..ops import ArgumentError, as_pair
from .field import VaryingKernel, learn_varying
from .fitting import learn
from .learned import LearnedKernel
from .options import Loss, Options, Solver, is_list
from .pairs import ImagePair
from .tiles import KernelField
from .window import WIDENINGS, chosen_window, largest_side

#: A tensor, an array, an image object of Astropy, or a sequence of them.
Images: TypeAlias = Any


def learn_kernel(
    x: Images,
    y: Images,
    kernel_size: Any,
    *,
    solver: Solver = "auto",
    steps: int | None = None,
    step_size: float | None = None,
    bias: bool = False,
    background: int | str | None = None,
    padding: Any = None,
    padding_mode: PaddingMode = "zeros",
    groups: int = 1,
    flip: bool = False,
    stride: Any = 1,
    mask: Images | None = None,
    input_mask: Images | None = None,
    weights: Images | None = None,
    input_noise: Any = None,
    ridge: float | str = 0.0,
    smooth: float = 0.0,
    nonnegative: bool = False,
    sum_to: float | None = None,
    loss: Loss = "squared",
    initial: torch.Tensor | None = None,
    log_every: int = 0,
    progress: bool | None = None,
) -> LearnedKernel:
    """The kernel (and background) whose cross-correlation with x is nearest to y.

    Args:
        x: (H, W), (C, H, W) or (N, C, H, W), or a list of such images, each with a y of its own:
            tensors, arrays, masked arrays, Astropy's NDData, CCDData or HDUs, Pillow images or
            names of files. Values keep their scale, also beside another kind: white is 255 in 8
            bits and 65535 in 16. NaN and masked pixels are left out. The result is float32 for
            float32, float16, bfloat16 and uint8 images, else float64.
        y: the target: (P, Q), (K, P, Q) or (N, K, P, Q), of the size of corr2d's output or of x.
            With the size of x and no `padding` given, the border pixels that no full window
            predicts are left out of the fit.
        kernel_size: R and S, int or (h, w). A window larger than the true kernel only adds noise.
            "auto" chooses the window with the least information criterion, from 1 x 1 to 63 x 63,
            and a wider one where the kernel goes on outside it; targets must have the size of x.
            The result's `reason` names the window.
        solver: the method; all minimise the same loss.

            - "auto": an optimiser ("lbfgs") if `loss` is a function; "normal" if `nonnegative`,
              `smooth` or `input_noise` is given; "gd" if the call has `steps`, `step_size` or
              `log_every`, which are options of a loop ("cg" with a robust loss or `sum_to`). Else
              "normal", or "cg" where the normal matrices take more than 128 MiB: filters of more
              than 4096 unknowns. The result's `solver` and `reason` give choice and reason.
            - "normal": one pass over the images computes the normal matrix in float64; exact, and
              the only one for `nonnegative`.
            - "cg": conjugate gradients on the same loss without that matrix, for large windows;
              needs about as many steps as a filter has unknowns.
            - "gd": gradient descent as in textbooks; its steps are computed from the normal matrix,
              which gives the same kernels and losses.
            - the name of a class in torch.optim, upper or lower case ("adam", "lbfgs"), or a
              function of a list of parameters that returns an optimiser, such as a class or a
              functools.partial of one; `step_size` is its learning rate.
        steps: number of steps; by default 200, and for "cg" the number of unknowns.
        step_size: of gradient descent. By default half of the largest that converges, which
            follows from the eigenvalues of the normal matrix.
        bias: whether to learn a constant per filter too; the same as background=0.
        background: "constant", or the order of a polynomial in the coordinates of y that is fitted
            together with the kernel.
        padding: as for corr2d; None means no padding.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        groups: channel groups, as for corr2d.
        flip: True learns the kernel of a strict convolution, `convolve2d`.
        stride: step between windows, int or (h, w): y is smaller than x by that factor, for
            example for the kernel of a camera that samples x.
        mask: which values of y to fit: True (not zero) is fitted, False is left out, as is NaN.
            Of y's shape, or any that broadcasts to it; a list for several pairs.
        input_mask: which values of x are known; outputs whose window contains an unknown one are
            left out. Of x's shape or any that broadcasts to it; a list for several pairs.
        weights: the factor of each squared error, 1 / variance of y; not negative; shaped as mask.
        input_noise: standard deviation of the noise in x, a number or a map shaped as x; a list of
            maps for several pairs. Such noise pulls the kernel towards zero; its share of the
            normal matrix is subtracted, at most half in directions that are more noise than image.
        ridge: added to the loss: ridge * sum weight^2 (not on the background). "gcv" chooses it by
            generalized cross-validation; "0.1%" takes that part of the normal matrix's largest
            eigenvalue; the result's `reason` has its value.
        smooth: added to the loss: smooth * sum of squared differences between neighbouring elements
            in rows and columns, with zeros outside the window.
        nonnegative: no element of the kernel may be negative.
        sum_to: the sum of each filter's elements, 1 for a kernel that keeps brightness.
        loss: "squared"; "huber" or "tukey", which give outliers less weight, by repeated weighted
            fits with the scale from the median absolute residual; or, for the solvers of
            torch.optim, any differentiable function of prediction and target that returns a
            scalar. Where masks leave values out, it gets the others, in one dimension.
        initial: the kernel to start from, shaped as the result; zeros by default. In directions
            that the images do not determine, the kernel keeps this value.
        log_every: prints the loss every `log_every` steps.
        progress: shows a progress bar; None shows one on a terminal after a second.

    Returns:
        A LearnedKernel; its `quality` says how well the images determine the kernel.

    Raises:
        ArgumentError: shapes that do not fit, options that a solver does not have, a step size
            that would diverge, or images that are not finite.
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
    options = Options(
        kernel_size=kernel_size,
        solver=solver,
        steps=steps,
        step_size=step_size,
        bias=bias,
        background=background,
        padding=padding,
        padding_mode=padding_mode,
        groups=groups,
        flip=flip,
        stride=stride,
        ridge=ridge,
        smooth=smooth,
        nonnegative=nonnegative,
        sum_to=sum_to,
        loss=loss,
        initial=initial,
        log_every=log_every,
        progress=progress,
    )
    images = (x, y, mask, input_mask, weights, input_noise)
    with torch.no_grad():
        size = ""
        if options.chooses_size:
            window, size = chosen_window(options, images)
            options = options.with_size(window)
        pairs, ranks, single = _checked(options, images)
        found = learn(options, pairs, ranks, single)
        for _ in range(WIDENINGS if size else 0):
            wider = (window[0] + 4, window[1] + 4)
            if not found.quality.cut or max(wider) > largest_side(pairs):
                break
            window, options = wider, options.with_size(wider)
            pairs, ranks, single = _checked(options, images)
            found = learn(options, pairs, ranks, single)
            size += f", then {wider[0]} x {wider[1]} as the kernel goes on outside"
    return replace(found, reason=f"{found.reason}; window {size}") if size else found


@overload
def learn_kernel_field(
    x: Images, y: Images, kernel_size: Any, tiles: Any, **options: Any
) -> KernelField: ...


@overload
def learn_kernel_field(
    x: Images,
    y: Images,
    kernel_size: Any,
    *,
    order: int,
    scale_order: int | None = None,
    **options: Any,
) -> VaryingKernel: ...


def learn_kernel_field(
    x: Images,
    y: Images,
    kernel_size: Any,
    tiles: Any = None,
    *,
    order: int | None = None,
    scale_order: int | None = None,
    **options: Any,
) -> KernelField | VaryingKernel:
    """A kernel that varies over the field: as a polynomial, or one for each tile of the output.

    With `order` every element of the kernel is a polynomial in the output's coordinates, of total
    degree `order`; all are fitted jointly, with the background. With `tiles`, `learn_kernel` fits a
    kernel to each tile of y alone, and to the part of x under its windows.

    Args:
        x, y, kernel_size: as for learn_kernel; several pairs must be of one size.
        tiles: number of tiles, int or (rows, columns); their sizes differ by at most one pixel.
        order: 0 to 3.
        scale_order: the order of the kernel's sum, the photometric scale; by default `order`.
        **options: with tiles those of learn_kernel; with order mask, input_mask, weights, bias,
            background, padding and ridge. The polynomials of a background span the whole output.

    Returns:
        A VaryingKernel with `order`; with `tiles` a KernelField of LearnedKernels.

    Raises:
        ArgumentError, ArgumentTypeError: as for learn_kernel, more tiles than pixels, both or none
            of tiles and order, or images with channels with `order`.

    Example:
        >>> X = torch.rand(20, 20, dtype=torch.float64)
        >>> Y = torch.cat([X[:, :10], 2 * X[:, 10:]], 1)
        >>> learn_kernel_field(X, Y, 1, tiles=(1, 2)).weight.flatten().round(decimals=6)
        tensor([1., 2.], dtype=torch.float64)
        >>> found = learn_kernel_field(X, X * torch.linspace(1, 2, 20), 1, order=1)
        >>> round(found.at(0, 0).item(), 6), round(found.at(7, 19).item(), 6)
        (1.0, 2.0)
    """
    if (tiles is None) == (order is None):
        raise ArgumentError("learn_kernel_field takes either tiles or order")
    names = ("mask", "input_mask", "weights", "input_noise")
    counts = [options.pop(name, None) for name in names]
    checked = Options(kernel_size=kernel_size, **options)
    pairs, ranks, single = _checked(checked, (x, y, *counts))
    with torch.no_grad():
        if order is None:
            return _learn_tiles(checked, pairs, ranks, single, as_pair("tiles", tiles))
        unused = set(options) - {
            "bias",
            "background",
            "padding",
            "padding_mode",
            "ridge",
            "progress",
        }
        if unused or counts[3] is not None:
            also = sorted(unused) or ["input_noise"]
            raise ArgumentError(
                f"order does not go with {', '.join(also)}: a kernel that varies is fitted by "
                "least squares with ridge alone (tiles= takes all options of learn_kernel)"
            )
        if isinstance(checked.ridge, str):
            raise ArgumentError(f"order takes a number as ridge, got {checked.ridge!r}")
        constraints = checked.constraints(pairs[0])
        return learn_varying(checked.settings, pairs, single, order, scale_order, constraints.ridge)


def _checked(options: Options, images: tuple[Any, ...]) -> tuple[list[ImagePair], list[int], bool]:
    """Checked pairs, the number of dimensions of their images, and whether x was a single image.

    Args:
        options: of the call.
        images: x, y, mask, input_mask, weights and input_noise, as the user gave them.
    """
    x, *_, weights, _ = images
    pairs = options.settings.pairs(*images)
    if callable(options.loss) and weights is not None:
        raise ArgumentError(
            "weights are for squared errors: with a function as loss, use mask instead"
        )
    single = not is_list(x)
    return pairs, [pair.rank for pair in pairs], single


def _learn_tiles(
    options: Options,
    pairs: list[ImagePair],
    ranks: list[int],
    single: bool,
    tiles: tuple[int, int],
) -> KernelField:
    P, Q = pairs[0].extent
    if any(pair.extent != (P, Q) for pair in pairs):
        raise ArgumentError("tiles need outputs of one size in all pairs")
    if not 1 <= tiles[0] <= P or not 1 <= tiles[1] <= Q:
        raise ArgumentError(f"tiles must be from 1 to {P} x {Q}, got {tiles[0]} x {tiles[1]}")
    rows, columns = ([n * i // t for i in range(t + 1)] for n, t in zip((P, Q), tiles, strict=True))
    kernels = [
        [
            learn(options, [pair.crop(top, bottom, left, right) for pair in pairs], ranks, single)
            for left, right in pairwise(columns)
        ]
        for top, bottom in pairwise(rows)
    ]
    # A tile's kernel predicts from its part of the padded image, without padding of its own.
    kernels = [[replace(kernel, padding=((0, 0), (0, 0))) for kernel in row] for row in kernels]
    s = options.settings
    border = s.padding or ((0, 0), (0, 0))
    return KernelField(kernels, rows, columns, border, s.padding_mode, s.groups, s.flip)
