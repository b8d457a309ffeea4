"""Learned kernels: quality, notes, files, layers, tiles and pictures."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from least_squares import best, columns, design_matrix

from tricorr import (
    ArgumentError,
    ArgumentTypeError,
    Conv2D,
    KernelAccumulator,
    convolve2d,
    corr2d,
    learn_kernel,
    learn_kernel_field,
)

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

DOUBLE = torch.float64


def noisy(C=2, K=2, H=16, W=15, noise=0.2, window=(3, 2)):
    x = torch.randn(1, C, H, W, dtype=DOUBLE)
    y = corr2d(x, torch.randn(K, C, *window, dtype=DOUBLE)) + 5
    return x, y + noise * torch.randn_like(y)


@pytest.mark.parametrize("counted", ["all", "weights"])
@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_quality_equals_linear_regression(backend, counted, ridge):
    x, y = noisy()
    weights = torch.rand(y.shape[-2:], dtype=DOUBLE) + 0.5 if counted == "weights" else None
    found = learn_kernel(x, y, (3, 2), background=1, weights=weights, ridge=ridge)
    rows, targets = design_matrix(x, (3, 2), order=1), columns(y)
    counts = torch.ones(len(rows), 1, dtype=DOUBLE)
    counts = counts if weights is None else weights.reshape(-1, 1)
    theta = best(rows, targets, counts, ridge, 12)
    residual = rows @ theta - targets
    gram = rows.T @ (rows * counts)
    pull = torch.linalg.inv(gram + ridge * torch.diag((torch.arange(15) < 12).to(DOUBLE)))
    squared = (counts * residual.square()).sum(0)
    errors = (squared[:, None] / (len(rows) - 15) * (pull @ gram @ pull).diagonal()).sqrt()
    quality = found.quality
    torch.testing.assert_close(quality.standard_error.flatten(1), errors[:, :12])
    torch.testing.assert_close(quality.background_error, errors[:, 12:])
    assert quality.noise == pytest.approx(float(squared.sum() / (2 * (len(rows) - 15))) ** 0.5)
    mean = (counts * targets).sum(0) / counts.sum()
    spread = (counts * (targets - mean).square()).sum()
    assert quality.reblur_error == pytest.approx(float(squared.sum() / spread) ** 0.5)
    assert quality.rms == pytest.approx(float(squared.sum() / (2 * counts.sum())) ** 0.5)
    assert quality.mean == pytest.approx(float((counts * residual).sum() / (2 * counts.sum())))
    assert quality.robust == pytest.approx(1.4826 * float(residual.abs().median()))
    assert quality.largest == pytest.approx(float(residual.abs().max()))
    assert (quality.rank, quality.unknowns, quality.undetermined) == (15, 15, 0)
    assert quality.pixels == 2 * len(rows)


def test_standard_errors_equal_the_scatter_of_kernels(backend):
    x = torch.randn(20, 20, dtype=DOUBLE)
    weight = torch.randn(3, 3, dtype=DOUBLE)
    y = corr2d(x, weight)
    fits = [learn_kernel(x, y + torch.randn_like(y), 3) for _ in range(200)]
    scatter = torch.stack([f.weight for f in fits]).std(0)
    claimed = torch.stack([f.quality.standard_error[0, 0] for f in fits]).mean(0)
    assert float((scatter / claimed - 1).abs().max()) < 0.2  # 200 draws: 5 % each
    assert np.mean([f.quality.noise for f in fits]) == pytest.approx(1, abs=0.05)


def test_directions_that_images_do_not_determine_are_named(backend):
    x = torch.arange(14, dtype=DOUBLE).sin().expand(14, 14)
    found = learn_kernel(x, torch.randn(12, 12, dtype=DOUBLE), 3, bias=True)
    assert found.undetermined == 7  # sin is a two-term recurrence
    assert found.quality.null_space.shape == (7, 1, 3, 3)
    for direction in found.quality.null_space[:, 0]:
        change = corr2d(x, direction)
        assert float((change - change.mean()).abs().max()) < 1e-6
    assert found.quality.standard_error.isinf().all()
    assert found.condition == float("inf")


def test_errors_and_directions_of_a_strict_convolution_are_turned_as_its_kernel(backend):
    x = torch.randn(12, 12, dtype=DOUBLE) * torch.linspace(1, 4, 12, dtype=DOUBLE)
    y = torch.randn(10, 10, dtype=DOUBLE)
    plain, turned = (learn_kernel(x, y, 3, flip=flip) for flip in (False, True))
    sums = KernelAccumulator(3, flip=True).update(x, y).solve()
    errors = plain.quality.standard_error.flip(-2, -1)
    torch.testing.assert_close(turned.quality.standard_error, errors)
    torch.testing.assert_close(sums.quality.standard_error, errors)
    x[:] = x[:, :1]
    directions = learn_kernel(x, y, 3, flip=True).quality.null_space[:, 0]
    assert len(directions)
    assert all(float(convolve2d(x, direction).abs().max()) < 1e-12 for direction in directions)


@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_steps_that_ended_early_are_noted(backend, ridge):
    x, y = noisy(noise=0.01)
    best = learn_kernel(x, y, (3, 2), bias=True, ridge=ridge)
    assert (best.quality.excess, best.quality.farthest, best.quality.converged) == (0, 0, True)
    early = learn_kernel(x, y, (3, 2), bias=True, ridge=ridge, steps=5)
    assert early.quality.excess == pytest.approx(early.loss - best.loss)
    away = float((early.weight - best.weight).abs().max())
    assert early.quality.farthest == pytest.approx(away)
    assert not early.quality.converged
    assert f"elements are up to {away:.2g} from the best ones" in early.notes[0]
    late = learn_kernel(x, y, (3, 2), bias=True, ridge=ridge, steps=300)
    assert (late.quality.converged, late.notes) == (True, [])
    assert late.quality.farthest < float(best.quality.standard_error.max())
    sums = KernelAccumulator((3, 2), bias=True).update(x, y).solve("gd", steps=5, ridge=ridge)
    assert sums.quality.farthest == pytest.approx(away, rel=1e-3)  # the steps differ by 1e-5
    other = learn_kernel(x, y, (3, 2), bias=True, loss=F.huber_loss, steps=3)
    assert (other.quality.excess, other.quality.converged, other.notes) == (None, True, [])


def test_steps_that_ended_early_are_noted_with_few_pixels(backend):
    """The residual that further steps would explain is no noise."""
    x = torch.randn(10, 10, dtype=DOUBLE)
    y = corr2d(x, torch.randn(5, 5, dtype=DOUBLE))
    found = learn_kernel(x, y, 5, solver="cg", steps=10)
    assert found.quality.excess == pytest.approx(found.loss)
    assert not found.quality.converged


@pytest.mark.parametrize("solver", ["cg", "gd"])
def test_rounding_is_not_noted_as_steps_that_ended_early(backend, solver):
    x = torch.randn(16, 16)
    y = corr2d(x, torch.randn(3, 3))
    found = learn_kernel(x, y, 3, solver=solver, steps=100)
    assert (found.quality.converged, found.notes) == (True, [])


def test_a_window_that_is_too_large_is_noted(backend):
    x = torch.randn(20, 20, dtype=DOUBLE)
    weight = torch.zeros(7, 7, dtype=DOUBLE)
    weight[2:5, 1:3] = 1
    found = learn_kernel(x, corr2d(x, weight) + 0.01 * torch.randn(14, 14, dtype=DOUBLE), 7)
    assert len(found.notes) == 1
    assert "a fit with 3 x 5 about the same centre is as good" in found.notes[0]
    exact = learn_kernel(x, corr2d(x, weight), 7)
    assert "3 x 5" in exact.notes[0]
    assert learn_kernel(x, corr2d(x, torch.ones(2, 2, dtype=DOUBLE)), 2).notes == []
    few = learn_kernel(x[:8, :8], corr2d(x[:8, :8], weight), 7)
    assert "a filter has 49 unknowns and 4 target values" in few.notes[0]
    blurred = F.avg_pool2d(torch.randn(1, 1, 24, 24, dtype=DOUBLE), 5, 1)[0, 0]
    vague = learn_kernel(blurred, torch.randn(16, 16, dtype=DOUBLE), 5)
    assert "the images barely determine the kernel" in vague.notes[1]
    assert "explains next to nothing" in vague.notes[0]


def test_results_describe_themselves(backend):
    x, y = noisy(C=1, K=1)
    text = str(learn_kernel(x, y, (3, 2), bias=True))
    assert text.startswith("kernel 1x1x3x2 by normal, 1 step, loss ")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".fits"])
@pytest.mark.parametrize("channels", [False, True], ids=["plain", "channels"])
def test_saved_kernels_are_read_back(backend, suffix, channels, tmp_path):
    if suffix == ".fits":
        pytest.importorskip("astropy")
    x, y = noisy() if channels else (image[0, 0] for image in noisy(C=1, K=1))
    found = learn_kernel(x, y, (3, 2), background=1)
    path = tmp_path / f"kernel{suffix}"
    found.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(path), found.weight)
        return
    if suffix == ".npz":
        stored = dict(np.load(path))
    else:
        from astropy.io import fits

        with fits.open(path) as units:
            header = units[0].header
            stored = {unit.name.lower(): np.array(unit.data) for unit in units}
        stored["weight"] = stored.pop("primary")
        assert header["SOLVER"] == "normal"
        assert header["RMS"] == pytest.approx(found.rms)
        assert header["PADDING"] == "0,0,0,0"
    np.testing.assert_array_equal(stored["weight"], found.weight)
    np.testing.assert_array_equal(stored["bias"], found.bias)
    np.testing.assert_array_equal(stored["background"], found.background)
    np.testing.assert_array_equal(stored["standard_error"], found.quality.standard_error)
    np.testing.assert_array_equal(stored["history"], found.history)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".fits"])
def test_a_failed_save_leaves_the_old_file(backend, suffix, tmp_path, monkeypatch):
    fits = pytest.importorskip("astropy.io.fits") if suffix == ".fits" else None
    x, y = noisy()
    found = learn_kernel(x, y, (3, 2))
    path = tmp_path / f"kernel{suffix}"
    found.save(path)
    before = path.read_bytes()

    def half(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", half)
    monkeypatch.setattr(np, "savez", half)
    if fits is not None:
        monkeypatch.setattr(fits.HDUList, "writeto", half)
    with pytest.raises(OSError, match="no space left"):
        found.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("channels", [False, True], ids=["plain", "channels"])
@pytest.mark.parametrize("flip", [False, True], ids=["correlation", "convolution"])
def test_a_kernel_becomes_a_layer(backend, channels, flip):
    x, y = noisy(C=4, K=2, window=(3, 3))
    x, y = (x, y) if channels else (x[0, 0], y[0, 0])
    y = F.pad(y, (1, 1, 1, 1))
    options = {"groups": 2} if channels else {}
    found = learn_kernel(
        x, y, 3, bias=True, padding=1, padding_mode="reflect", flip=flip, **options
    )
    layer = found.conv2d()
    assert isinstance(layer, Conv2D)
    torch.testing.assert_close(layer(x), found.predict(x))
    assert found.conv2d(background=False).bias is None
    sloped = learn_kernel(x, y, 3, background=1, padding=1, **options)
    with pytest.raises(ArgumentError, match="a layer has no polynomial background"):
        sloped.conv2d()
    assert sloped.conv2d(background=False).bias is None


def test_prediction_of_a_piece_has_the_background_of_its_place(backend):
    x, y = noisy()
    found = learn_kernel(x, y, (3, 2), background=2)
    whole = found.predict(x)
    part = found.predict(x[..., 4:10, 3:9], origin=(4, 3), size=(14, 14))
    torch.testing.assert_close(part, whole[..., 4:8, 3:8])


def test_a_kernel_is_drawn(backend):
    pytest.importorskip("matplotlib")
    x, y = noisy()
    found = learn_kernel(x[0, 0], y[0, 0], (3, 2), bias=True)
    assert len(found.plot(x[0, 0], y[0, 0]).axes) >= 6
    pairs = learn_kernel([x[0, 0]], [y[0, 0]], (3, 2))
    with pytest.raises(ArgumentError, match="a picture is drawn of one plane"):
        pairs.plot(x[0, 0], y[0, 0])


def test_an_input_of_another_scale_is_drawn_in_its_own_scale(backend):
    pytest.importorskip("matplotlib")
    x = torch.rand(16, 16)
    for factor, title in ((1.0, "input, 16 x 16"), (40.0, "input, own scale, 16 x 16")):
        y = factor * corr2d(x, torch.full((2, 2), 0.25))
        panels = learn_kernel(x, y, 2).plot(x, y).axes
        assert panels[0].get_title() == title
        low, high = panels[0].images[0].get_clim()
        assert 0.5 < high - low < 1.5
        assert panels[1].images[0].get_clim() == panels[2].images[0].get_clim()


@pytest.mark.parametrize("padding", [None, "same"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_tiles_have_kernels_of_their_own(backend, padding, mode, tmp_path):
    x = torch.randn(21, 23, dtype=DOUBLE)
    weights = torch.randn(2, 3, 3, 3, dtype=DOUBLE)
    shape = (21, 23) if padding else (19, 21)
    rows, edges = [0, shape[0] // 2, shape[0]], [0, 7, 15 if padding else 14, shape[1]]
    y = torch.empty(shape, dtype=DOUBLE)
    for i in range(2):
        for j in range(3):
            part = slice(rows[i], rows[i + 1]), slice(edges[j], edges[j + 1])
            y[part] = corr2d(x, weights[i, j], padding=padding or 0, padding_mode=mode)[part]
    found = learn_kernel_field(x, y, 3, (2, 3), padding=padding, padding_mode=mode)
    assert (found.rows, found.columns) == (rows, edges)
    torch.testing.assert_close(found.weight, weights)
    torch.testing.assert_close(found.predict(x), y)
    assert found.residual.shape == y.shape
    assert float(found.residual.abs().max()) < 1e-9
    assert found.rms < 1e-9
    found.save(tmp_path / "field.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "field.npz")["weight"], found.weight)
    assert str(found).startswith("kernels 3x3 of 2 x 3 tiles by normal")
    with pytest.raises(ArgumentError, match="x must give an output of"):
        found.predict(x[1:])


def test_tiles_share_options_and_the_span_of_the_background(backend):
    xs = [torch.randn(2, 14, 12, dtype=DOUBLE) for _ in range(2)]
    surface = torch.linspace(-1, 1, 12, dtype=DOUBLE)[:, None]
    ys = [corr2d(x, torch.ones(1, 2, 3, 2, dtype=DOUBLE)) + 3 * surface for x in xs]
    masks = [torch.ones(12, 11, dtype=torch.bool) for _ in xs]
    for y, mask in zip(ys, masks, strict=True):
        y[0, 3, 4], mask[3, 4] = torch.nan, False
    found = learn_kernel_field(xs, ys, (3, 2), (2, 1), background=1, mask=masks)
    torch.testing.assert_close(found.weight, torch.ones(2, 1, 1, 2, 3, 2, dtype=DOUBLE))
    assert [r.shape for r in found.residual] == [y.shape for y in ys]
    slopes = [row[0].background[0] for row in found.kernels]
    torch.testing.assert_close(slopes[0], slopes[1])
    torch.testing.assert_close(found.predict(xs[0])[0, 4:], ys[0][0, 4:])
    with pytest.raises(ArgumentError, match="tiles must be from 1 to 12 x 11, got 13 x 1"):
        learn_kernel_field(xs, ys, (3, 2), (13, 1), mask=masks)
    ys = [torch.randn(1, 12, 11), torch.randn(1, 11, 11)]
    with pytest.raises(ArgumentError, match="tiles need outputs of one size"):
        learn_kernel_field([xs[0].float(), xs[0][:, 1:].float()], ys, (3, 2), 2)


SOLVERS = {
    "by_name": ("SGD", {"step_size": 1e-3}),
    "by_class": (torch.optim.SGD, {"step_size": 1e-3}),
    "by_partial": (functools.partial(torch.optim.SGD, lr=1e-3), {}),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_an_optimiser_takes_the_steps_of_a_plain_loop(backend, solver, masked):
    x, y = noisy()
    mask = torch.rand(y.shape) > 0.2 if masked else torch.ones(y.shape, dtype=torch.bool)
    make, options = SOLVERS[solver]
    found = learn_kernel(
        x, y, (3, 2), solver=make, steps=9, bias=True, ridge=2.0, mask=mask, **options
    )
    weight = torch.zeros(2, 2, 3, 2, dtype=DOUBLE, requires_grad=True)
    bias = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1e-3)
    for loss in found.history:
        error = (F.conv2d(x, weight, bias) - y)[mask].square().sum() + 2 * weight.square().sum()
        assert loss == pytest.approx(float(error.detach()), rel=1e-12)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    torch.testing.assert_close(found.weight, weight.detach(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.bias, bias.detach(), rtol=1e-11, atol=1e-13)
    assert found.solver == "sgd"


def test_any_differentiable_loss_is_minimized(backend):
    x, y = noisy(C=1, K=1, noise=0.0)
    y[0, 0, 3:5, 2:9] += 50
    clean = torch.ones(y.shape, dtype=torch.bool)
    found = learn_kernel(x, y, (3, 2), bias=True, loss=F.l1_loss, steps=60, solver="lbfgs")
    exact = learn_kernel(x, y, (3, 2), bias=True)
    truth = learn_kernel(x, y, (3, 2), bias=True, mask=(y - y.median()).abs() < 30)
    errors = [float((f.weight - truth.weight).abs().max()) for f in (found, exact)]
    assert errors[0] < 0.1 * errors[1]
    value = F.l1_loss(found.predict(x)[clean], y[clean])
    assert found.loss == pytest.approx(float(value), rel=1e-12)
    with pytest.raises(ArgumentError, match="must return a differentiable tensor of one element"):
        learn_kernel(x, y, (3, 2), loss=lambda p, t: p - t, solver="adam")
    with pytest.raises(ArgumentTypeError, match=r"solver must make a torch.optim.Optimizer"):
        learn_kernel(x, y, (3, 2), solver=lambda parameters: None)


def test_a_kernel_has_repr_and_picture(backend):
    """repr is a readable summary; notebooks show a picture."""
    x = torch.rand(20, 24, dtype=torch.float64)
    found = learn_kernel(x, corr2d(x, torch.ones(2, 3, dtype=torch.float64)), (2, 3))
    assert repr(found).startswith("kernel 2x3 by normal, ")
    assert "tensor([[1" in repr(found)
    assert "residual" not in repr(found)
    assert repr(found.quality).startswith("error: ")
    assert "condition number" in str(found.quality)
    pytest.importorskip("matplotlib")
    png = found._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert len(found.plot(true=torch.ones(2, 3)).axes) >= 4
    channels = learn_kernel(x[None, None], x[None, None], 1)
    assert channels._repr_png_() is None
    with pytest.raises(ArgumentError, match="plain kernel"):
        channels.plot()


@pytest.mark.parametrize("copied_up_to", [0, 2**16])
@pytest.mark.parametrize("window", [3, 5])
def test_quality_is_of_the_images_as_they_were(backend, monkeypatch, copied_up_to, window):
    """Small images are copied; of larger ones the facts are taken before the fit returns."""
    monkeypatch.setattr("tricorr.learning.fitting.EXAMINED_LATER", copied_up_to)
    x = torch.rand(48, 48, dtype=DOUBLE)
    y = corr2d(x, torch.rand(5, 5, dtype=DOUBLE)) + torch.rand(44, 44, dtype=DOUBLE) / 10
    if window == 3:  # elements outside the window, and clipped values: both are noted
        x, y = x[1:-1, 1:-1].clone(), y.clamp(max=float(y.quantile(0.9)))
    at_once = learn_kernel(x, y, window)
    expected = (at_once.rms, at_once.notes, at_once.quality.standard_error)
    assert ("Or y is clipped" in "".join(at_once.notes)) == (window == 3)
    found = learn_kernel(x, y, window, weights=(weights := torch.ones(44, 44, dtype=DOUBLE)))
    for tensor in (x, y, weights, found.residual):
        tensor.zero_()
    copies = pickle.loads(pickle.dumps(found)), copy.deepcopy(found)  # before anything was read
    for kernel in (found, *copies):
        assert (kernel.rms, kernel.notes) == (pytest.approx(expected[0]), expected[1])
        torch.testing.assert_close(kernel.quality.standard_error, expected[2])
