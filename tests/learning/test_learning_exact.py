"""Every linear solver agrees with dense least squares on the explicit patches, to 1e-10."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from least_squares import best, columns, design_matrix
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tricorr import ArgumentError, ArgumentTypeError, convolve2d, corr2d, learn_kernel
from tricorr.learning import robust

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

SOLVERS = ("normal", "cg")
DOUBLE = torch.float64


@pytest.fixture
def optimize():
    """scipy.optimize. Tests that need it are skipped where SciPy is not installed."""
    return pytest.importorskip("scipy.optimize")


def images(N=2, C=1, K=1, H=15, W=14, window=(3, 2), padding=0, groups=1):
    """x and a noisy y, so that the best fit is not exact."""
    x = torch.randn(N, C, H, W, dtype=DOUBLE)
    weight = torch.randn(K, C // groups, *window, dtype=DOUBLE)
    y = corr2d(x, weight, padding=padding, groups=groups)
    return x, y + 0.3 * torch.randn_like(y)


def assert_same(found, theta, elements):
    """To 1e-10 of the largest unknown."""
    weight, rest = theta[:elements].T, theta[elements:].T
    scale = float(theta.abs().max())
    tolerance = {"rtol": 0.0, "atol": 1e-10 * scale}
    torch.testing.assert_close(found.weight.reshape(weight.shape), weight, **tolerance)
    if rest.shape[1]:
        torch.testing.assert_close(found.bias, rest[:, 0], **tolerance)
    if rest.shape[1] > 1:
        torch.testing.assert_close(found.background, rest, **tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("order", [None, 0, 2], ids=["plain", "constant", "quadratic"])
@pytest.mark.parametrize("counted", ["all", "mask", "weights", "both_per_filter"])
@pytest.mark.parametrize("ridge", [0.0, 7.5])
def test_channels_backgrounds_weights_and_ridges_equal_least_squares(
    backend, solver, order, counted, ridge
):
    x, y = images(C=2, K=3)
    if order is not None:
        y = y + torch.linspace(0, 2, y.shape[-1], dtype=DOUBLE).square()
    options, weights = {}, None
    if counted == "mask":
        options["mask"] = torch.rand(y.shape[-2:]) > 0.2
        weights = columns(options["mask"].double().expand(2, 1, -1, -1))
    elif counted == "weights":
        options["weights"] = torch.rand(2, 1, *y.shape[-2:], dtype=DOUBLE) + 0.1
        weights = columns(options["weights"])
    elif counted == "both_per_filter":
        options["mask"] = torch.rand(y.shape) > 0.2
        options["weights"] = torch.rand(y.shape, dtype=DOUBLE) + 0.1
        weights = columns(options["mask"] * options["weights"])
    theta = best(design_matrix(x, (3, 2), order=order), columns(y), weights, ridge, 12)
    found = learn_kernel(
        x, y, (3, 2), solver=solver, background=order, ridge=ridge, **options,
        **({"steps": 100} if solver == "cg" else {}),
    )  # fmt: skip
    assert_same(found, theta, 12)
    assert found.solver == solver
    fit = design_matrix(x, (3, 2), order=order) @ theta
    residual = fit - columns(y)
    count = torch.ones_like(residual) if weights is None else weights.expand_as(residual)
    expected = (count * residual.square()).sum() + ridge * theta[:12].square().sum()
    assert found.loss == pytest.approx(float(expected), rel=1e-10)
    torch.testing.assert_close(columns(found.predict(x)), fit, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("groups", [2, 4], ids=["two_groups", "depthwise"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_groups_equal_least_squares_of_each(backend, solver, groups, masked):
    x, y = images(C=4, K=8, groups=groups, padding=1)
    mask = torch.rand(y.shape[-2:]) > 0.1 if masked else None
    weights = columns(mask.double().expand(2, 1, -1, -1)) if masked else None
    options = {"steps": 60} if solver == "cg" else {}
    found = learn_kernel(
        x, y, (3, 2), solver=solver, groups=groups, padding=1, bias=True, mask=mask, **options
    )
    assert found.weight.shape == (8, 4 // groups, 3, 2)
    for group, (part, target) in enumerate(
        zip(x.chunk(groups, 1), y.chunk(groups, 1), strict=True)
    ):
        theta = best(design_matrix(part, (3, 2), 1, order=0), columns(target), weights)
        of_group = slice(group * 8 // groups, (group + 1) * 8 // groups)
        expected = theta[:-1].T.reshape(found.weight[of_group].shape)
        torch.testing.assert_close(found.weight[of_group], expected, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(found.bias[of_group], theta[-1], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.predict(x) - y, found.residual)


def test_images_with_channels_alone_keep_their_form(backend):
    x, y = images(N=1, C=2, K=3)
    found, batch = learn_kernel(x[0], y[0], (3, 2)), learn_kernel(x, y, (3, 2))
    assert found.residual.shape == y.shape[1:]
    torch.testing.assert_close(found.residual, batch.residual[0])
    torch.testing.assert_close(found.predict(x[0]) - y[0], found.residual)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_equal_least_squares(backend, solver, mode):
    x = torch.randn(1, 2, 9, 8, dtype=DOUBLE)
    y = torch.randn(1, 2, 9, 8, dtype=DOUBLE)
    theta = best(design_matrix(x, (3, 4), "same", mode), columns(y))
    options = {"steps": 60} if solver == "cg" else {}
    found = learn_kernel(x, y, (3, 4), solver=solver, padding="same", padding_mode=mode, **options)
    assert_same(found, theta, 24)
    torch.testing.assert_close(found.predict(x) - y, found.residual)


@pytest.mark.parametrize("solver", SOLVERS)
def test_pairs_of_several_sizes_equal_least_squares(backend, solver):
    pairs = [images(H=H, W=W, C=2, K=2) for H, W in ((9, 8), (12, 7), (4, 15))]
    masks = [torch.rand(y.shape[-2:]) > 0.1 for _, y in pairs]
    theta = best(
        torch.cat([design_matrix(x, (3, 2), order=1) for x, _ in pairs]),
        torch.cat([columns(y) for _, y in pairs]),
        torch.cat([columns(m.double().expand(2, 1, -1, -1)) for m in masks]),
    )
    xs, ys = zip(*pairs, strict=True)
    options = {"steps": 60} if solver == "cg" else {}
    found = learn_kernel(xs, ys, (3, 2), solver=solver, background=1, mask=masks, **options)
    assert_same(found, theta, 12)
    assert [r.shape for r in found.residual] == [y.shape for y in ys]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_sum_is_kept_as_the_karush_kuhn_tucker_system_says(backend, solver, ridge):
    x, y = images(C=2, K=2)
    rows, targets = design_matrix(x, (3, 2), order=0), columns(y)
    D, one = 13, torch.ones(13, 1, dtype=DOUBLE)
    one[-1] = 0
    gram = rows.T @ rows + ridge * torch.diag(one[:, 0])
    system = torch.cat([torch.cat([gram, one], 1), F.pad(one.T, (0, 1))])
    right = torch.cat([rows.T @ targets, torch.ones(1, 2, dtype=DOUBLE)])
    theta = torch.linalg.solve(system, right)[:D]
    options = {"steps": 80} if solver == "cg" else {}
    found = learn_kernel(x, y, (3, 2), solver=solver, bias=True, sum_to=1.0, ridge=ridge, **options)
    assert_same(found, theta, 12)
    torch.testing.assert_close(found.weight.sum((1, 2, 3)), torch.ones(2, dtype=DOUBLE))


def test_a_sum_is_kept_in_float32_too(backend):
    """Rounding of every step of conjugate gradients would change it by 3e-4."""
    x = torch.randint(0, 256, (3, 1, 15, 13), dtype=torch.uint8)
    y = 3 * corr2d(x, torch.randn(2, 1, 1, 4)) - 250
    found = learn_kernel(x, y, (1, 4), solver="cg", bias=True, sum_to=1.0)
    torch.testing.assert_close(found.weight.sum((1, 2, 3)), torch.ones(2))


@pytest.mark.parametrize("ridge", [0.0, 4.0])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_nonnegative_kernels_equal_scipys(backend, optimize, ridge, masked):
    x, y = images(N=1, C=1, K=3, H=20, W=20, window=(5, 5))
    mask = torch.rand(y.shape[-2:]) > 0.2 if masked else torch.ones(y.shape[-2:])
    found = learn_kernel(x, y, 5, nonnegative=True, mask=mask, ridge=ridge)
    rows = design_matrix(x, (5, 5)) * mask.flatten()[:, None]
    rows = torch.cat([rows, ridge**0.5 * torch.eye(25, dtype=DOUBLE)])
    for k in range(3):
        target = F.pad((y[0, k] * mask).flatten(), (0, 25))
        expected, _ = optimize.nnls(rows.numpy(), target.numpy())
        weight = found.weight[k].flatten().numpy()
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-10 * expected.max())
        assert (weight[expected == 0] == 0).all()
        assert (expected == 0).any()


@pytest.mark.parametrize("sum_to", [None, 1.0], ids=["free", "sum_to_one"])
def test_nonnegative_with_a_background_is_the_bounded_least_squares(backend, sum_to):
    x, y = images(N=1, H=18, W=17, window=(4, 3))
    found = learn_kernel(x[0, 0], y[0, 0], (4, 3), nonnegative=True, background=1, sum_to=sum_to)
    rows = design_matrix(x, (4, 3), order=1)
    gram, moments = (rows.T @ rows).numpy(), (rows.T @ columns(y)).numpy()[:, 0]
    theta = np.concatenate([found.weight.flatten(), found.background[0]])
    # Karush-Kuhn-Tucker conditions: the gradient is zero for positive elements, and moving an
    # element away from zero does not lower the loss.
    downhill = moments - gram @ theta
    kernel, free = np.arange(15) < 12, (theta > 0) | (np.arange(15) >= 12)
    if sum_to is not None:
        assert theta[:12].sum() == pytest.approx(1)
        downhill -= downhill[kernel & free].mean() * kernel
    limit = 1e-9 * np.abs(moments).max()
    assert (theta[:12] >= 0).all()
    assert np.abs(downhill[free]).max() < limit
    assert downhill[~free].max() < limit
    assert (~free).any()


def test_a_large_nonnegative_window_equals_scipys(backend, optimize):
    x = torch.rand(40, 40, dtype=DOUBLE)
    h = torch.arange(-5.0, 6, dtype=DOUBLE)
    psf = torch.exp(-(h[:, None].square() + h.square()) / 4)
    y = corr2d(x, psf) + 0.05 * torch.randn(30, 30, dtype=DOUBLE)
    found = learn_kernel(x, y, 11, nonnegative=True)
    rows = design_matrix(x[None, None], (11, 11))
    expected, _ = optimize.nnls(rows.numpy(), y.flatten().numpy())
    np.testing.assert_allclose(found.weight.flatten(), expected, rtol=0, atol=1e-9)


def test_masked_values_may_be_anything(backend):
    x, y = images(N=1)
    good = torch.rand(y.shape[-2:]) > 0.3
    known = torch.rand(x.shape[-2:]) > 0.05
    clean = learn_kernel(x, y, (3, 2), mask=good, input_mask=known)
    x, y = torch.where(known, x, torch.inf), torch.where(good, y, torch.nan)
    spoilt = learn_kernel(x, y, (3, 2), mask=good, input_mask=known)
    torch.testing.assert_close(clean.weight, spoilt.weight, rtol=1e-12, atol=1e-13)
    reached = F.max_pool2d((~known).double()[None, None], (3, 2), 1)[0, 0]
    counted = (good & (reached == 0)).double()
    x = torch.where(known, x, 0.0)
    y = torch.where(good, y, 0.0)
    theta = best(design_matrix(x, (3, 2)), columns(y), counted.reshape(-1, 1))
    assert_same(clean, theta, 6)
    assert clean.quality.pixels == int(counted.sum())


def test_mask_of_a_target_of_the_inputs_size_loses_the_same_border(backend):
    x, weight = torch.randn(9, 10, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    y = corr2d(x, weight, padding="same")
    y[4, 5] = 1e6
    mask = torch.ones(9, 10, dtype=torch.bool)
    mask[4, 5] = False
    found = learn_kernel(x, y, (3, 4), mask=mask)
    torch.testing.assert_close(found.weight, weight)
    assert found.quality.pixels == 48


@pytest.mark.parametrize("solver", ["normal", "cg", "gd", "lbfgs"])
def test_strict_convolution_is_learned_as_such(backend, solver):
    x, weight = torch.randn(12, 11, dtype=DOUBLE), torch.randn(2, 3, dtype=DOUBLE)
    y = convolve2d(x, weight, padding=1) + 0.5
    options = {"initial": weight + 0.1} if solver in ("gd", "lbfgs") else {}
    found = learn_kernel(x, y, (2, 3), solver=solver, flip=True, bias=True, padding=1, **options)
    tolerance = {"rtol": 0, "atol": 1e-9 if solver in ("normal", "cg") else 1e-2}
    torch.testing.assert_close(found.weight, weight, **tolerance)
    torch.testing.assert_close(found.predict(x), y, **tolerance)
    torch.testing.assert_close(found.conv2d()(x), found.predict(x))


@pytest.mark.parametrize("solver", SOLVERS)
def test_undetermined_directions_keep_the_start(backend, solver):
    x = torch.arange(12, dtype=DOUBLE).sin().expand(12, 12)
    start = torch.randn(3, 3, dtype=DOUBLE)
    target = corr2d(x, torch.randn(3, 3, dtype=DOUBLE))
    found = learn_kernel(x, target, 3, solver=solver, initial=start)
    torch.testing.assert_close(found.predict(x), target)
    # Every row of x is the same: only the sums of the kernel's columns can move.
    moved = found.weight - start
    torch.testing.assert_close(moved, moved.mean(0).expand(3, 3))


def test_float32_images_give_a_float32_kernel_from_float64_sums(backend):
    x, weight = torch.rand(40, 30) * 255, torch.randn(5, 5)
    found = learn_kernel(x, corr2d(x.double(), weight.double()).float(), 5)
    assert found.weight.dtype == torch.float32
    torch.testing.assert_close(found.weight, weight, rtol=1e-4, atol=1e-6)


def test_blocks_of_rows_change_nothing(backend, monkeypatch):
    from tricorr.learning import gram, problem

    x, y = images(N=3, C=2, K=2, padding=2)
    weights = torch.rand(y.shape[-2:], dtype=DOUBLE)
    calls = [
        {"solver": "normal"},
        {"solver": "normal", "weights": weights},
        {"solver": "cg", "steps": 40},
        {"solver": "gd", "steps": 7, "weights": weights},
    ]
    whole = [learn_kernel(x, y, (3, 2), padding=2, background=1, **c) for c in calls]
    monkeypatch.setattr(gram, "ROW_ELEMENTS", 700)
    monkeypatch.setattr(gram, "LAG_PIXELS", 1)
    monkeypatch.setattr(problem, "UNFOLDED_ELEMENTS", 400)
    for call, expected in zip(calls, whole, strict=True):
        found = learn_kernel(x, y, (3, 2), padding=2, background=1, **call)
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.background, expected.background, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found.residual, expected.residual, rtol=1e-9, atol=1e-10)


def score(found, x, y, kind):
    """sum psi(residual / scale) * window, which is 0, for each root of the number of pixels.

    The scale is that of the median absolute residual.
    """
    residual = found.predict(x) - y
    u = residual / (1.4826 * residual.abs().median())
    psi = {
        "huber": u.clamp(-1.345, 1.345),
        "tukey": u * (1 - (u / 4.685).clamp(-1, 1).square()).square(),
    }[kind]
    sums = design_matrix(x[None, None], tuple(found.weight.shape)).T @ psi.flatten()
    return float(sums.abs().max()) / psi.numel() ** 0.5


def fits_of(found):
    return int(re.search(r"(\d+) weighted fits", found.reason)[1])


@pytest.mark.parametrize("kind", ["huber", "tukey"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_robust_fits_meet_their_own_equations(backend, kind, solver):
    x, weight = torch.randn(20, 20, dtype=DOUBLE), torch.randn(3, 3, dtype=DOUBLE)
    noise = 0.1 * torch.randn(18, 18, dtype=DOUBLE)
    outliers = torch.rand(18, 18) < 0.1
    y = corr2d(x, weight) + noise + 30 * outliers
    found = learn_kernel(x, y, 3, loss=kind, solver=solver)
    plain = learn_kernel(x, y, 3, solver=solver)
    error, plain_error = (float((f.weight - weight).abs().max()) for f in (found, plain))
    assert error < 0.06 < plain_error
    assert score(found, x, y, kind) < 1e-4
    assert "weighted fits" in found.reason


def test_robust_fits_of_many_outliers_converge(backend):
    """To one side, so that the scale falls slowly: 50 fits were too few."""
    x, weight = torch.rand(24, 28, dtype=DOUBLE), torch.randn(5, 1, dtype=DOUBLE)
    y = corr2d(x, weight)
    outliers = 10 * torch.randn_like(y).abs() * (torch.rand_like(y) < 0.3)
    y += 0.01 * torch.randn_like(y) + outliers
    found = learn_kernel(x, y, (5, 1), loss="huber")
    assert score(found, x, y, "huber") < 1e-4
    assert fits_of(found) > 51
    assert not any("converge" in note for note in found.notes)


def test_a_scale_that_alternates_ends(backend, monkeypatch):
    """A median between two values would change the weights, and those the median, for ever."""
    medians = iter([1.0, 1.1] * 60)
    given = robust._scale
    monkeypatch.setattr(robust, "_scale", lambda *images: given(*images) * next(medians))
    x, y = images()
    found = learn_kernel(x, y, (3, 2), loss="huber")
    assert fits_of(found) < 2 * robust.FREE_SCALES
    assert not any("converge" in note for note in found.notes)


def test_weighted_fits_that_do_not_converge_are_noted(backend, monkeypatch):
    monkeypatch.setattr(robust, "MOST_FITS", 1)
    x, y = images()
    y[0, 0, :3, :3] += 100
    [note] = [n for n in learn_kernel(x, y, (3, 2), loss="huber").notes if "converge" in n]
    assert note.startswith("the 2 weighted fits for loss='huber' did not converge: the last one")


def test_a_robust_fit_ignores_outliers_in_exact_data(backend):
    x, weight = torch.randn(2, 20, 20, dtype=DOUBLE), torch.randn(2, 2, 3, 3, dtype=DOUBLE)
    y = corr2d(x, weight)
    y[0, 3:5, 3:9] += 100
    found = learn_kernel(x, y, 3, loss="tukey")
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "solver", "reason"),
    [
        ({}, "normal", "9 unknowns"),
        ({"steps": 3}, "gd", "steps given, for a loop"),
        ({"step_size": 1e-4, "log_every": 9}, "gd", "step_size and log_every"),
        ({"nonnegative": True}, "normal", "nonnegative"),
        ({"loss": F.l1_loss}, "lbfgs", "function"),
        ({"sum_to": 1.0, "steps": 5}, "cg", "steps given, for a loop"),
    ],
    ids=lambda v: "-".join(v) or "nothing" if isinstance(v, dict) else "",
)
def test_the_automatic_solver_gives_its_reason(backend, call, solver, reason):
    found = learn_kernel(torch.rand(9, 9), torch.rand(7, 7), 3, **call)
    assert found.solver == solver
    assert reason in found.reason
    assert found.reason.startswith("chosen")


def test_normal_equations_are_taken_where_they_fit_in_memory(backend, monkeypatch):
    from tricorr.learning import options

    monkeypatch.setattr(options, "NORMAL_BYTES", 8 * 20**2)
    x, y = torch.rand(9, 9), torch.rand(7, 7)
    assert learn_kernel(x, y, 3).solver == "normal"
    assert learn_kernel(x, y, 3, mask=torch.rand(7, 7) > 0.5).solver == "normal"
    found = learn_kernel(x, torch.rand(5, 5), 5)
    assert found.solver == "cg"
    assert "25 unknowns of a filter, whose normal equations take" in found.reason


IMAGE, TARGET = torch.rand(6, 8), torch.rand(4, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "cg", "nonnegative": True}, "nonnegative needs solver='normal', got 'cg'"),
        ({"solver": "gd", "sum_to": 1.0}, "sum_to needs solver='normal' or 'cg', got 'gd'"),
        ({"solver": "normal", "steps": 3}, "steps are for 'gd', 'cg' and optimisers"),
        ({"solver": "normal", "step_size": 0.1}, "step_size is for solver='gd'"),
        ({"solver": "normal", "loss": F.l1_loss}, "needs an optimiser of torch.optim"),
        ({"solver": "adam", "loss": "huber"}, "it needs solver='normal' or 'cg', got 'adam'"),
        ({"solver": 3}, "solver must be a name or make an optimiser, got 3"),
        ({"loss": "absolute"}, "loss must be 'squared', 'huber', 'tukey' or a function"),
        ({"ridge": -1.0}, "ridge must not be negative, got -1"),
        ({"ridge": "much"}, "ridge must be a number, 'gcv', or a part .* got 'much'"),
        ({"sum_to": float("nan")}, "sum_to must be finite, got nan"),
        ({"sum_to": -1, "nonnegative": True}, "sum_to must not be negative with nonnegative"),
        ({"background": "linear"}, "background must be 'constant' or a polynomial's order"),
        ({"background": -1}, "background must be an order of 0 or more, got -1"),
        ({"groups": 2}, "groups must divide the channels of x and y, 1 and 1, got 2"),
        ({"padding_mode": "edge"}, "padding_mode must be 'zeros'"),
        ({"padding": 6, "padding_mode": "reflect"}, "can pad a height of 6 by at most 5"),
        ({"mask": torch.ones(3, 6)}, r"mask must have the shape of its image \(1, 1, 4, 6\)"),
        ({"mask": [TARGET]}, "mask must be a tensor, an array"),
        ({"weights": TARGET, "loss": F.l1_loss}, "with a function as loss, use mask"),
        ({"weights": -TARGET}, "weights must be finite and not negative"),
        ({"input_mask": torch.ones(4, 6)}, r"input_mask must have the shape of its image"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_options_that_do_not_go_together_are_refused_in_one_line(backend, options, message):
    with pytest.raises(RuntimeError, match=message) as caught:
        learn_kernel(IMAGE, TARGET, 3, **options)
    assert isinstance(caught.value, ArgumentError | ArgumentTypeError)
    assert "\n" not in str(caught.value)


def test_lists_that_do_not_fit_are_refused(backend):
    with pytest.raises(ArgumentError, match="two lists of equal length, got 2 of them and 1"):
        learn_kernel([IMAGE, IMAGE], [TARGET], 3)
    with pytest.raises(ArgumentError, match="mask must be a list of 1"):
        learn_kernel([IMAGE], [TARGET], 3, mask=TARGET)
    with pytest.raises(ArgumentError, match="all pairs must have the same channels"):
        learn_kernel([IMAGE[None], IMAGE.expand(2, 6, 8)], [TARGET[None]] * 2, 3)


class _Largest(TorchDispatchMode):
    """Records the largest number of elements of a tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 8)
        return made


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weights"])
def test_memory_does_not_grow_with_the_window(backend, weighted, monkeypatch):
    from tricorr.learning import gram

    monkeypatch.setattr(gram, "ROW_ELEMENTS", 2**16)
    H = W = 160
    for size in (3, 15):
        x, y = torch.rand(H, W), torch.rand(H - size + 1, W - size + 1)
        weights = torch.rand_like(y) if weighted else None
        with _Largest() as largest:
            learn_kernel(x, y, size, weights=weights)
        # A few images, a block of rows and its chunks; R * S * H * W would be 5.8 million.
        assert largest.elements <= max(4 * H * W, 3 * 2**19)
