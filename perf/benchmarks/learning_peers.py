"""Tasks of astronomers and image restorers, timed beside other libraries; `learn peers`.

    textbook     ten steps of gradient descent on the textbook's edge, beside the plain loop
    predict      a large kernel's output, beside SciPy's oaconvolve
    nonnegative  normal equations under constraints, beside SciPy's nnls on their Cholesky factor
    masked       a fit with one masked pixel, beside the same without
    field        a kernel that varies as a polynomial, beside normal equations in NumPy
    psf          the kernel between two noisy star images, beside photutils and pypher

Ours and its peers are timed in turns. The error is of the kernel (of `predict` the output), largest
deviation over largest element. A peer that is not installed has a row that says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from ...autograd.functional import corr2d
from ...learning.accumulator import KernelAccumulator
from ...learning.learn import learn_kernel, learn_kernel_field
from ...ops import fourier
from ..rows import Row
from ..timing.measure import Session
from ..timing.timers import interleave, one_line, quantile, ratio_fields

Call: TypeAlias = Callable[[], torch.Tensor]

#: Steps and step size of the textbook's loop.
STEPS, STEP_SIZE = 10, 3e-2


@dataclass(frozen=True)
class Contest:
    """A task, our answer and the peers' answers.

    Attributes:
        name: of the workload.
        truth: what the answers are compared with.
        ours: our name and call.
        peers: their names and calls; a module that `peers` needs and lacks raises ImportError.
        bound: of our error; None where steps end early or noise decides.
        dtype: of the images.
        steps: of a loop.
    """

    name: str
    truth: torch.Tensor
    ours: tuple[str, Call]
    peers: Mapping[str, Call]
    bound: float | None = None
    dtype: str = "float64"
    steps: int | None = None


def rows_of(contest: Contest, session: Session) -> Iterator[Row]:
    """Ours first, then its peers, timed in turns."""
    name, ours = contest.ours
    samplers, seconds, errors = {}, {}, {}
    missing = {}
    for way, call in {name: ours, **contest.peers}.items():
        session.announce(way, "NCHW")
        try:
            found = call()
        except ImportError as error:
            missing[way] = one_line(error)
            continue
        largest = float(contest.truth.abs().max())
        errors[way] = float((found.to(contest.truth) - contest.truth).abs().max()) / largest
        seconds[way] = session.timer.seconds(call)
        samplers[way] = session.timer.sampler(call, "warm", seconds[way], 0.0)
    samples = interleave(samplers, seconds, 3 * session.budget)
    for way, taken in samples.items():
        row = partial(session.row_of, contest.name, "learn", "learn", way, contest.dtype)
        values: dict[str, Any] = {"error": errors[way], "steps": contest.steps}
        if way == name and contest.bound is not None and not errors[way] <= contest.bound:
            yield row(status="wrong", note=f"off by {errors[way]:.2g}", **values)
            continue
        low, middle, high = (1e3 * quantile(taken, part) for part in (0.2, 0.5, 0.8))
        values |= {"ms": middle, "ms_low": low, "ms_high": high, "samples": len(taken)}
        if way == name:
            values["error_bound"] = contest.bound
        else:
            values |= ratio_fields(taken, samples[name])
        yield row(status="ok", note="", **values)
    for way, why in missing.items():
        yield session.row_of(
            contest.name, "learn", "learn", way, contest.dtype, status="unavailable", note=why
        )


def _images(size: int, window: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, target and kernel, random and exact."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(size, size, generator=random, dtype=torch.float64)
    true = torch.randn(window, window, generator=random, dtype=torch.float64)
    return x, fourier.correlate(x[None, None], true[None, None])[0, 0], true


def textbook() -> Contest:
    """The edge detector of 6 x 8 pixels, ten steps of a given size."""
    x = torch.ones(6, 8)
    x[:, 2:6] = 0
    true = torch.tensor([[1.0, -1.0]])
    y = corr2d(x, true)

    def loop() -> torch.Tensor:
        weight = torch.zeros(1, 1, 1, 2, requires_grad=True)
        with torch.enable_grad():
            for _ in range(STEPS):
                loss = ((F.conv2d(x[None, None], weight) - y) ** 2).sum()
                loss.backward()
                assert weight.grad is not None
                with torch.no_grad():
                    weight -= STEP_SIZE * weight.grad
                weight.grad = None
        return weight.detach()[0, 0]

    options: dict[str, Any] = {"steps": STEPS, "step_size": STEP_SIZE, "progress": False}

    def ours() -> torch.Tensor:
        return learn_kernel(x, y, (1, 2), **options).weight

    peers = {"pytorch-loop": loop}
    return Contest("textbook-6x8-1x2", true, ("tricorr-gd", ours), peers, None, "float32", STEPS)


def predict(size: int = 512, window: int = 31) -> Contest:
    """The output of a large kernel."""
    x, y, _ = _images(size, window)
    found = learn_kernel(x, y, window, progress=False)
    flipped = found.weight.numpy()[::-1, ::-1]

    def overlapped() -> torch.Tensor:
        from scipy.signal import oaconvolve

        return torch.from_numpy(oaconvolve(x.numpy(), flipped, mode="valid"))

    windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), (window, window))
    truth = torch.from_numpy(np.einsum("pqrs,rs->pq", windows, found.weight.numpy()))
    peers = {"scipy-oaconvolve": overlapped}
    name = f"predict-{size}x{size}-{window}x{window}"
    return Contest(name, truth, ("tricorr-predict", partial(found.predict, x)), peers, 1e-9)


def nonnegative(size: int = 256, window: int = 15) -> Contest:
    """Normal equations of a kernel of which most elements are zero, under noise."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(size, size, generator=random, dtype=torch.float64)
    true = torch.rand(window, window, generator=random, dtype=torch.float64)
    true *= torch.rand(window, window, generator=random) < 0.3
    y = corr2d(x, true)
    y += 0.1 * torch.randn(y.shape, generator=random, dtype=torch.float64)
    sums = KernelAccumulator(window).update(x, y)
    equations = sums.equations()
    gram, moments = equations.gram[0].numpy(), equations.moments[0].numpy()

    def active_set() -> torch.Tensor:
        from scipy.linalg import cholesky, solve_triangular
        from scipy.optimize import nnls

        factor = cholesky(gram)
        found, _ = nnls(factor, solve_triangular(factor, moments, trans="T"))
        return torch.from_numpy(found).view(window, window)

    def ours() -> torch.Tensor:
        return sums.solve(nonnegative=True).weight

    name = f"nonnegative-{window}x{window}"
    return Contest(name, active_set(), ("tricorr-normal", ours), {"scipy-nnls": active_set}, 1e-6)


def masked(size: int = 512, window: int = 23) -> Contest:
    """A fit with one pixel left out, beside the same with all of them."""
    x, y, true = (image.float() for image in _images(size, window))
    mask = torch.ones(y.shape, dtype=torch.bool)
    mask[size // 3, size // 3] = False

    def fit(mask: torch.Tensor | None) -> torch.Tensor:
        return learn_kernel(x, y, window, mask=mask, progress=False).weight

    peers = {"tricorr-unmasked": partial(fit, None)}
    name = f"masked-{size}x{size}-{window}x{window}"
    return Contest(name, true, ("tricorr-normal", partial(fit, mask)), peers, 1e-3, "float32")


def field(size: int = 256, window: int = 9, order: int = 2) -> Contest:
    """A kernel whose elements are polynomials of the position, as at the middle of the output."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(size, size, generator=random, dtype=torch.float64)
    side = size - window + 1
    along = torch.linspace(-1, 1, side, dtype=torch.float64)
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    surfaces = torch.stack([torch.outer(along**i, along**j) for i, j in powers])
    shape = len(powers), window, window
    kernels = torch.randn(shape, generator=random, dtype=torch.float64)
    y = (surfaces * F.conv2d(x[None, None], kernels[:, None])[0]).sum(0)
    middle = (side - 1) / 2

    def polynomials() -> torch.Tensor:
        image, target, planes = x.numpy(), y.numpy(), surfaces.numpy()
        unknowns = len(powers) * window * window
        gram, moments = np.zeros((unknowns, unknowns)), np.zeros(unknowns)
        windows = np.lib.stride_tricks.sliding_window_view(image, (window, window))
        for first in range(0, side, 8):  # a few rows at a time, of which each pixel is a row
            band = windows[first : first + 8].reshape(-1, window * window)
            plane = planes[:, first : first + 8].reshape(len(powers), -1)
            rows = (plane.T[:, :, None] * band[:, None, :]).reshape(len(band), -1)
            gram += rows.T @ rows
            moments += rows.T @ target[first : first + 8].ravel()
        found = np.linalg.solve(gram, moments).reshape(shape)
        return torch.from_numpy(found[0])  # along is zero in the middle

    def ours() -> torch.Tensor:
        return learn_kernel_field(x, y, window, order=order).at(middle, middle)

    name = f"field-{size}x{size}-{window}x{window}-order{order}"
    peers = {"numpy-polynomial": polynomials}
    return Contest(name, kernels[0], ("tricorr-field", ours), peers, 1e-6)


def psf(side: int = 41, window: int = 21) -> Contest:
    """Between two images of a star, 1.5 and 2.5 pixels wide, with noise of 1e-4 of the peak."""
    along = torch.arange(side, dtype=torch.float64) - side // 2
    random = torch.Generator().manual_seed(0)

    def star(width: float) -> torch.Tensor:
        profile = torch.exp(-along.square() / (2 * width * width))
        return torch.outer(profile, profile) / profile.sum() ** 2

    inner = slice((side - window) // 2, (side + window) // 2)
    true = star((2.5**2 - 1.5**2) ** 0.5)[inner, inner]
    x, y = star(1.5), star(2.5)
    x, y = (
        s + 1e-4 * float(s.max()) * torch.randn(s.shape, generator=random, dtype=torch.float64)
        for s in (x, y)
    )

    def ours() -> torch.Tensor:
        return learn_kernel(x, y, window, padding="same", ridge="gcv", progress=False).weight

    def ratio() -> torch.Tensor:
        matching = importlib.import_module("photutils.psf_matching")
        taper = matching.SplitCosineBellWindow(0.4, 0.3)
        found = matching.make_kernel(x.numpy(), y.numpy(), window=taper)
        return torch.from_numpy(np.ascontiguousarray(found))[inner, inner]

    def wiener() -> torch.Tensor:
        pypher = importlib.import_module("pypher.pypher")
        found, _ = pypher.homogenization_kernel(y.numpy(), x.numpy(), reg_fact=1e-4)
        return torch.from_numpy(np.ascontiguousarray(found))[inner, inner]

    peers = {"photutils-ratio": ratio, "pypher-wiener": wiener}
    return Contest(f"psf-{side}x{side}-{window}x{window}", true, ("tricorr-normal", ours), peers)


CONTESTS = (textbook, predict, nonnegative, masked, field, psf)


def run(session: Session) -> Iterator[Row]:
    """All contests on a CPU."""
    for contest in CONTESTS:
        yield from rows_of(contest(), session)
