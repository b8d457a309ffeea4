"""learn_kernel agrees with plain loops and dense least squares; its notes and messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from least_squares import best, columns, design_matrix

import tricorr
from tricorr import ArgumentError, corr2d, learn_kernel
from tricorr.learning import fitting, gram, lags
from tricorr.learning.lags import gram_matrix

on_cpu = pytest.mark.parametrize("backend", ["cpu"], indirect=True)


@pytest.fixture
def textbook():
    X = torch.ones(6, 8)
    X[:, 2:6] = 0
    return X, corr2d(X, torch.tensor([[1.0, -1.0]]))


def test_textbook_curve_is_exact(backend, textbook):
    X, Y = (t.to(backend.device) for t in textbook)
    found = learn_kernel(X, Y, (1, 2), steps=10, step_size=3e-2)
    # From zero the error is along (1, -1), whose eigenvalue is 12: each step multiplies it by
    # 1 - 0.03 * 12 = 0.64, and the loss, 12 at first, by 0.64 squared.
    expected = [12 * 0.64 ** (2 * step) for step in range(10)]
    np.testing.assert_allclose(found.history, expected, rtol=1e-5)
    assert found.loss == pytest.approx(12 * 0.64**20, rel=1e-4)
    learned = 1 - 0.64**10
    np.testing.assert_allclose(found.weight.cpu(), [[learned, -learned]], rtol=1e-5)
    assert found.max_step_size == pytest.approx(1 / 30, rel=1e-5)
    assert found.condition == pytest.approx(5)
    assert found.undetermined == 0
    assert found.quality.excess == pytest.approx(12 * 0.64**20, rel=1e-3)
    assert found.quality.farthest == pytest.approx(0.64**10, rel=1e-3)
    assert "the steps ended before they converged: the loss is 0.0016 above" in found.notes[0]


@on_cpu
def test_loss_is_printed_as_in_the_book(backend, textbook, capsys):
    learn_kernel(*textbook, (1, 2), steps=10, step_size=3e-2, log_every=2)
    printed = capsys.readouterr().out.split("\n")
    assert printed[0] == f"epoch 2, loss {12 * 0.64**2:.3f}"
    assert [line.split(",")[0] for line in printed if line] == [
        f"epoch {i}" for i in (2, 4, 6, 8, 10)
    ]


@on_cpu
def test_diverging_step_is_refused_with_the_largest_safe_one(backend, textbook):
    with pytest.raises(ArgumentError, match=r"step_size=0.04 diverges .* safe step is 0.03333"):
        learn_kernel(*textbook, (1, 2), step_size=0.04)
    assert learn_kernel(*textbook, (1, 2), steps=1, step_size=0.0333).step_size == 0.0333


@on_cpu
def test_just_below_the_limit_converges_and_just_above_diverges(backend):
    x, weight = torch.rand(24, 24, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    y = corr2d(x, weight)
    limit = learn_kernel(x, y, 3, steps=0).max_step_size
    largest = float(torch.linalg.eigvalsh(gram_matrix(x[None, None], 3, 3))[-1])
    assert limit == pytest.approx(1 / largest, rel=1e-4)
    history = learn_kernel(x, y, 3, steps=400, step_size=0.999 * limit).history
    assert history[-1] < history[0]


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@on_cpu
def test_gradient_descent_is_the_plain_loop_step_by_step(backend, bias):
    x = torch.rand(2, 3, 10, 9, dtype=torch.float64)
    y = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    found = learn_kernel(x, y, (3, 2), steps=20, bias=bias)
    weight = torch.zeros(4, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for loss in found.history:
        error = (F.conv2d(x, weight, offset if bias else None) - y).square().sum()
        assert loss == pytest.approx(float(error.detach()), rel=1e-12)
        error.backward()
        with torch.no_grad():
            weight -= found.step_size * weight.grad
            weight.grad.zero_()
            if bias:
                offset -= found.step_size * offset.grad
                offset.grad.zero_()
    torch.testing.assert_close(found.weight, weight.detach(), rtol=1e-11, atol=1e-12)
    if bias:
        torch.testing.assert_close(found.bias, offset.detach(), rtol=1e-11, atol=1e-12)
    assert found.step_size == pytest.approx(found.max_step_size / 2)


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("padding", [None, "same", ((0, 2), (1, 0))], ids=str)
@on_cpu
def test_conjugate_gradients_solve_the_least_squares(backend, bias, padding):
    x = torch.randn(2, 3, 12, 11, dtype=torch.float64)
    rows = design_matrix(x, (3, 2), padding or 0, order=0 if bias else None)
    y = corr2d(x, torch.randn(4, 3, 3, 2, dtype=torch.float64), padding=padding or 0)
    y = y + torch.randn_like(y)
    found = learn_kernel(x, y, (3, 2), solver="cg", steps=60, bias=bias, padding=padding)
    best = torch.linalg.lstsq(rows, y.permute(0, 2, 3, 1).reshape(len(rows), 4)).solution
    torch.testing.assert_close(found.weight.reshape(4, -1), best[:18].T, rtol=1e-9, atol=1e-11)
    if bias:
        torch.testing.assert_close(found.bias, best[18], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.loss, found.residual.square().sum(), rtol=1e-12)
    torch.testing.assert_close(found.predict(x) - y, found.residual)


@on_cpu
def test_target_of_the_input_size_is_fitted_where_windows_are_whole(backend):
    x, weight = torch.randn(9, 10, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    y = corr2d(x, weight, padding="same")
    y[0, :], y[:, -2:], y[-1, :], y[:, 0] = 77, 77, 77, 77
    found = learn_kernel(x, y, (3, 4), solver="cg", steps=40)
    torch.testing.assert_close(found.weight, weight)
    assert found.residual.shape == (7, 7)


@pytest.mark.parametrize("window", [(1, 1), (1, 4), (3, 1), (3, 4), (7, 5)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@on_cpu
def test_gram_matrix_is_that_of_the_explicit_patches(backend, window, channels):
    x = torch.randn(2, channels, 7, 9, dtype=torch.float64)
    rows = design_matrix(x, window)
    torch.testing.assert_close(gram_matrix(x, *window), rows.T @ rows)


@pytest.mark.parametrize("window", [(1, 1), (1, 4), (3, 1), (3, 4), (7, 5)], ids=str)
@on_cpu
def test_dot_products_of_blocks_are_those_of_the_explicit_patches(backend, window, monkeypatch):
    monkeypatch.setattr(lags, "BLOCK_ELEMENTS", 3 * 9)  # three rows
    x = torch.randint(-9, 10, (2, 1, 7, 9)).double()
    y = torch.randint(-9, 10, (2, 3, 8 - window[0], 10 - window[1])).double()
    gram, moments = lags.by_dots(x, y, *window)
    rows = design_matrix(x, window)
    assert torch.equal(gram, rows.T @ rows)
    assert torch.equal(moments, columns(y).T @ rows)


@on_cpu
def test_column_constant_image_leaves_a_3x3_kernel_undetermined(backend, textbook):
    X, _ = textbook
    found = learn_kernel(X, corr2d(X, torch.randn(3, 3)), 3, steps=5)
    assert found.undetermined == 6
    assert found.condition == float("inf")
    assert "6 of 9 directions" in found.notes[0]
    assert "every row of x is the same" in found.notes[0]
    assert found.notes[0] in str(found)


@pytest.mark.parametrize(
    ("image", "undetermined", "words"),
    [
        (torch.zeros(8, 8), 9, "the same everywhere"),
        (torch.full((8, 8), 0.5), 8, "the same everywhere"),
        (
            torch.arange(8.0).square().sin()[:, None].expand(8, 8),
            6,
            "every column of x is the same",
        ),
    ],
    ids=["black", "flat", "row_constant"],
)
@on_cpu
def test_images_that_do_not_determine_the_kernel_are_noted(backend, image, undetermined, words):
    found = learn_kernel(image, torch.zeros(6, 6), 3, solver="cg")
    assert found.undetermined == undetermined
    assert words in found.notes[0]
    assert found.weight.isfinite().all()


@on_cpu
def test_windows_too_large_to_examine_are_noted(backend, monkeypatch):
    monkeypatch.setattr(fitting, "GRAM_BUDGET", 10)
    found = learn_kernel(torch.rand(8, 8), torch.rand(6, 6), 3, solver="cg", steps=1)
    assert found.undetermined is None
    assert found.condition is None
    assert "not examined" in found.notes[-1]


def test_uint8_images_are_learned_from(backend):
    x = torch.randint(0, 256, (10, 9), dtype=torch.uint8, device=backend.device)
    weight = torch.tensor([[1.0, 2.0], [3.0, -4.0]], device=backend.device)
    found = learn_kernel(x, corr2d(x, weight), 2, solver="cg", steps=8)
    torch.testing.assert_close(found.weight, weight, rtol=1e-4, atol=1e-4)


def test_kernel_learned_by_strict_convolution_is_the_flipped_one(backend):
    x = torch.randn(9, 8, dtype=torch.float64, device=backend.device)
    weight = torch.randn(2, 3, dtype=torch.float64, device=backend.device)
    found = learn_kernel(x, tricorr.convolve2d(x, weight), (2, 3), solver="cg", steps=12)
    torch.testing.assert_close(found.weight.flip(0, 1), weight)
    torch.testing.assert_close(found.predict(x), tricorr.convolve2d(x, weight))


@on_cpu
def test_zero_steps_return_the_start(backend, textbook):
    start = torch.tensor([[0.25, 0.5]])
    found = learn_kernel(*textbook, (1, 2), steps=0, initial=start)
    assert torch.equal(found.weight, start)
    assert found.history == []


@on_cpu
def test_progress_draws_a_bar_on_stderr(backend, textbook, capsys):
    learn_kernel(*textbook, (1, 2), steps=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    learn_kernel(*textbook, (1, 2), steps=3, progress=False)
    assert capsys.readouterr().err == ""
    learn_kernel(*textbook, (1, 2), solver="normal", progress=True)
    assert "42.0/42.0" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@on_cpu
def test_saved_kernel_is_read_back(backend, textbook, tmp_path, suffix):
    found = learn_kernel(*textbook, (1, 2), steps=2, bias=True)
    path = tmp_path / f"kernel{suffix}"
    found.save(path)
    stored = np.load(path)
    weight = stored if suffix == ".npy" else stored["weight"]
    np.testing.assert_array_equal(weight, found.weight.numpy())
    if suffix == ".npz":
        np.testing.assert_array_equal(stored["bias"], found.bias.numpy())
        np.testing.assert_array_equal(stored["history"], found.history)


IMAGE, TARGET = torch.rand(6, 8), torch.rand(4, 6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGE[0], TARGET, 3), {}, r"x and y must both be \(H, W\).* got \(8,\) and \(4, 6\)"),
        ((IMAGE, TARGET[None], 3), {}, r"got \(6, 8\) and \(1, 4, 6\)"),
        ((IMAGE, TARGET[1:], 3), {}, r"y must hold 1 images of 4 x 6 \(no padding\) or 6 x 8"),
        ((IMAGE, TARGET, 3), {"padding": 1}, r"y must hold 1 images of 6 x 8 pixels"),
        ((IMAGE, TARGET, 7), {}, "the window is larger than the padded input"),
        (
            (IMAGE, TARGET, 3),
            {"solver": "newton"},
            "solver must be 'auto', 'normal'.* got 'newton'",
        ),
        ((IMAGE, TARGET, 3), {"steps": -1}, "steps must not be negative, got -1"),
        ((IMAGE, TARGET, 3), {"steps": 2.5}, "steps must be an integer, got 2.5"),
        ((IMAGE, TARGET, 3), {"step_size": 0}, "step_size must be a positive number, got 0"),
        ((IMAGE, TARGET, 3), {"step_size": "big"}, "step_size must be a positive number"),
        ((IMAGE, TARGET, 3), {"step_size": 1.0, "solver": "cg"}, "step_size is for solver='gd'"),
        ((IMAGE, TARGET, 3), {"initial": torch.zeros(2, 2)}, r"initial must be .* got \(2, 2\)"),
        ((IMAGE * float("nan"), TARGET, 3), {}, "x must hold numbers, got NaN in every pixel"),
        ((IMAGE, TARGET / 0, 3), {}, "y must be finite"),
        ((IMAGE * 1j, TARGET, 3), {}, "x must hold real numbers, got torch.complex64"),
        ((object(), TARGET, 3), {}, "x must be a tensor, an array or an Astropy image"),
        ((torch.rand(20, 18, 3),) * 2 + (3,), {}, r"looks like .* \(H, W, 3\).*permute\(2, 0, 1\)"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, options, message):
    with pytest.raises(RuntimeError, match=message) as caught:
        learn_kernel(*arguments, **options)
    assert isinstance(caught.value, ValueError | TypeError)
    assert "\n" not in str(caught.value)


@on_cpu
def test_unknown_file_type_is_refused(backend, textbook, tmp_path):
    found = learn_kernel(*textbook, (1, 2), steps=1)
    with pytest.raises(ArgumentError, match=r"saved as .npy, .npz or .fits, got 'kernel.txt'"):
        found.save(tmp_path / "kernel.txt")


@pytest.mark.parametrize("counted", ["all", "mask", "nonnegative"])
def test_normal_equations_agree_with_least_squares_on_every_backend(backend, counted):
    x = torch.randn(1, 2, 7, 8, dtype=torch.float64)
    y = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    mask = torch.rand(6, 6) > 0.2 if counted == "mask" else torch.ones(6, 6)
    theta = best(design_matrix(x, (2, 3), order=1), columns(y), mask.double().reshape(-1, 1))
    found = learn_kernel(
        x.to(backend.device),
        y.to(backend.device),
        (2, 3),
        background=1,
        mask=mask.to(backend.device) if counted == "mask" else None,
        nonnegative=counted == "nonnegative",
    )
    assert found.solver == "normal"
    if counted == "nonnegative":
        assert float(found.weight.min()) == 0
    else:
        torch.testing.assert_close(found.weight.cpu().flatten(1), theta[:12].T)
        torch.testing.assert_close(found.background.cpu(), theta[12:].T)
    torch.testing.assert_close(
        found.predict(x.to(backend.device)) - y.to(backend.device), found.residual
    )
    assert found.quality.standard_error.shape == found.weight.shape


def test_kernels_sum_by_lags(kernel_backend, monkeypatch):
    """By rows, a small fit is hundreds of products; on a CPU this one is."""
    taken = []
    by_rows = gram._by_rows
    monkeypatch.setattr(gram, "_by_rows", lambda *args: taken.append(1) or by_rows(*args))
    random = torch.Generator().manual_seed(0)
    x = torch.rand(12, 14, generator=random)
    true = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    y = corr2d(x, true)
    device = kernel_backend.device
    found = learn_kernel(x.to(device), y.to(device), (2, 2))
    assert not taken
    assert torch.allclose(found.weight.squeeze().cpu().to(true), true, atol=1e-5)
