"""Kernels that vary over the field, windows whose size is chosen, and ridges that are chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from least_squares import polynomials

from tricorr import ArgumentError, VaryingKernel, corr2d, learn_kernel, learn_kernel_field

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

DOUBLE = torch.float64


def surfaces(P, Q, order):
    return polynomials(P, Q, order).flatten(1)


def dense(x, y, window, order, background, weights):
    """All unknowns by LAPACK: a column for each element of each term, then the background."""
    P, Q = y.shape
    patches = torch.nn.functional.unfold(x[None, None], window)[0].T
    columns = [patches * surface[:, None] for surface in surfaces(P, Q, order)]
    rows = torch.cat([*columns, surfaces(P, Q, background).T], 1)
    root = weights.flatten().sqrt()
    target = (y.flatten() * root)[:, None]
    return torch.linalg.lstsq(rows * root[:, None], target, driver="gelsd").solution[:, 0]


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("counted", ["all", "mask", "weights"])
def test_the_field_is_the_joint_least_squares(backend, order, counted):
    x, y = torch.randn(40, 37, dtype=DOUBLE), torch.randn(36, 35, dtype=DOUBLE)
    weights, options = torch.ones(36, 35, dtype=DOUBLE), {}
    if counted == "mask":
        options["mask"] = torch.rand(36, 35) > 0.03
        weights = options["mask"].double()
    elif counted == "weights":
        options["weights"] = weights = torch.rand(36, 35, dtype=DOUBLE) + 0.1
    theta = dense(x, y, (5, 3), order, 1, weights)
    found = learn_kernel_field(x, y, (5, 3), order=order, background=1, **options)
    terms = len(found.coefficients)
    tolerance = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(found.coefficients.flatten(), theta[: 15 * terms], **tolerance)
    torch.testing.assert_close(found.background, theta[15 * terms :], **tolerance)
    torch.testing.assert_close(found.predict(x) - y, found.residual)
    expected = (weights * found.residual.square()).sum() / weights.sum()
    assert found.rms == pytest.approx(float(expected) ** 0.5)
    assert (found.rank, found.unknowns) == (len(theta), len(theta))
    if order == 0:
        plain = learn_kernel(x, y, (5, 3), background=1, **options)
        torch.testing.assert_close(found.at(3, 4), plain.weight, rtol=1e-9, atol=1e-11)
        errors = found.standard_error(3, 4), plain.quality.standard_error[0, 0]
        torch.testing.assert_close(*errors, rtol=1e-8, atol=0)


def test_an_order_that_is_too_low_is_noted(backend):
    x = torch.randn(40, 40, dtype=DOUBLE)
    y = torch.linspace(1, 2, 38, dtype=DOUBLE) * corr2d(x, torch.ones(3, 3, dtype=DOUBLE))
    y = y + 0.01 * torch.randn(38, 38, dtype=DOUBLE)
    low, enough = (learn_kernel_field(x, y, 3, order=order) for order in (0, 1))
    assert "an order or a window that is too small" in low.notes[0]
    assert low.standard_error(3, 4) is None
    assert enough.notes == []
    assert enough.standard_error(3, 4) is not None


def test_a_kernel_that_varies_is_found_everywhere(backend, tmp_path):
    x = torch.randn(50, 60, dtype=DOUBLE)
    terms = torch.randn(6, 3, 3, dtype=DOUBLE)
    images = polynomials(48, 58, 2)
    y = sum(image * corr2d(x, term) for image, term in zip(images, terms, strict=True)) + 3
    found = learn_kernel_field(x, y, 3, order=2, bias=True)
    torch.testing.assert_close(found.coefficients, terms, rtol=0, atol=1e-10)
    assert float(found.background[0]) == pytest.approx(3)
    expected = torch.tensordot(images[:, 7, 11], terms, 1)
    torch.testing.assert_close(found.at(7, 11), expected, rtol=0, atol=1e-10)
    scale = torch.tensordot(terms.sum((1, 2)), images, 1)
    torch.testing.assert_close(found.scale(), scale, rtol=0, atol=1e-9)
    piece = found.predict(x[10:30, 5:40], origin=(10, 5))
    torch.testing.assert_close(piece, y[10:28, 5:38], rtol=0, atol=1e-9)
    assert isinstance(found.predict(x.numpy()), np.ndarray)
    found.save(tmp_path / "field.npz")
    loaded = VaryingKernel.load(tmp_path / "field.npz")
    assert torch.equal(loaded.predict(x), found.predict(x))
    assert (loaded.order, loaded.extent, loaded.rms) == (2, (48, 58), found.rms)
    assert str(found).startswith("kernel 3x3 of order 2 over 48 x 58 pixels, scale of order 2, 55 ")


def test_the_scale_has_an_order_of_its_own(backend):
    x, y = torch.randn(40, 37, dtype=DOUBLE), torch.randn(36, 35, dtype=DOUBLE)
    steady = learn_kernel_field(x, y, (5, 3), order=2, scale_order=0)
    assert float(steady.scale().std()) < 1e-14
    assert steady.unknowns == 15 + 5 * 14
    changing = learn_kernel_field(x, y, (5, 3), order=0, scale_order=1)
    assert changing.unknowns == 15 + 2
    assert torch.count_nonzero(changing.coefficients[1]) == 1
    assert changing.coefficients[1, 2, 1] != 0


def test_noise_of_a_difference_is_its_variance(backend):
    x, weight = 5 * torch.rand(90, 90, dtype=DOUBLE), torch.rand(3, 3, dtype=DOUBLE)
    images = polynomials(88, 88, 1)
    exact = corr2d(x, weight) * (1 + 0.5 * images[1] - 0.3 * images[2])
    found = learn_kernel_field(x, exact, 3, order=1)
    noisy_x = x + 0.1 * torch.randn_like(x)
    noisy_y = exact + 0.2 * torch.randn_like(exact)
    difference, variance = found.difference(noisy_x, noisy_y, x_variance=0.01, y_variance=0.04)
    kernel_square = (1 + 0.5 * images[1] - 0.3 * images[2]).square() * weight.square().sum()
    torch.testing.assert_close(variance, 0.01 * kernel_square + 0.04, rtol=1e-6, atol=1e-9)
    pull = difference / variance.sqrt()
    assert float(pull.square().mean()) == pytest.approx(1, abs=0.1)
    whole = torch.nn.functional.pad(noisy_y, (1, 1, 1, 1))
    torch.testing.assert_close(found.difference(noisy_x, whole)[0], difference)
    with pytest.raises(ArgumentError, match="y must have 88 x 88 pixels, or 90 x 90 as x"):
        found.difference(noisy_x, noisy_y[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "takes either tiles or order"),
        ({"tiles": 2, "order": 1}, "takes either tiles or order"),
        ({"order": 4}, "order must be from 0 to 3, got 4"),
        ({"order": 1, "scale_order": -1}, "scale_order must be from 0 to 3, got -1"),
        ({"order": 1, "nonnegative": True}, "order does not go with nonnegative"),
        ({"order": 1, "input_noise": 1.0}, "order does not go with input_noise"),
    ],
    ids=lambda v: "-".join(v) or "nothing" if isinstance(v, dict) else "",
)
def test_options_that_do_not_go_together_are_refused(backend, options, message):
    with pytest.raises(ArgumentError, match=message):
        learn_kernel_field(torch.rand(9, 9), torch.rand(9, 9), 3, **options)
    with pytest.raises(ArgumentError, match="plain images"):
        learn_kernel_field(torch.rand(1, 9, 9), torch.rand(1, 9, 9), 3, order=1)


def test_a_window_is_chosen(backend):
    x = torch.rand(80, 80, dtype=DOUBLE)
    u = torch.arange(-6, 7, dtype=DOUBLE)
    profile = torch.exp(-u.square() / 2)
    blur = torch.outer(profile, profile) / profile.sum() ** 2
    blurred = corr2d(x, blur, padding=6) + 1e-3 * torch.randn_like(x)
    for y, size in ((x.roll((2, -1), (0, 1)), (5, 2)), (3 * x, (1, 1))):
        found = learn_kernel(x, y, "auto")
        assert found.weight.shape == size
        assert found.notes == []
        assert f"window {size[0]} x {size[1]} of up to 15 x 15" in found.reason
    assert 5 <= min(learn_kernel(x, blurred, "auto").weight.shape)
    assert max(learn_kernel(x, blurred, "auto").weight.shape) <= 9
    with pytest.raises(ArgumentError, match="y must hold 1 images"):
        learn_kernel(x, x[1:], "auto")
    with pytest.raises(ArgumentError, match="kernel_size must be numbers or 'auto', got 'large'"):
        learn_kernel(x, x, "large")


@pytest.mark.parametrize("solver", ["normal", "cg"])
def test_a_kernel_with_a_stride_is_found(backend, solver):
    x, weight = torch.rand(41, 40, dtype=DOUBLE), torch.randn(5, 4, dtype=DOUBLE)
    y = corr2d(x, weight, stride=(2, 3), padding=2)
    found = learn_kernel(x, y, (5, 4), stride=(2, 3), padding=2, solver=solver)
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.predict(x), y)
    torch.testing.assert_close(found.conv2d()(x), y)


def test_smoothness_is_a_penalty_on_differences(backend):
    x, y = torch.rand(30, 30, dtype=DOUBLE), torch.randn(26, 27, dtype=DOUBLE)
    found = learn_kernel(x, y, (5, 4), smooth=7.0)
    rows = torch.nn.functional.unfold(x[None, None], (5, 4))[0].T
    framed = torch.nn.functional.pad(torch.eye(20, dtype=DOUBLE).view(20, 5, 4), (1, 1, 1, 1))
    steps = [framed.diff(dim=1).flatten(1), framed.diff(dim=2).flatten(1)]
    penalty = 7.0**0.5 * torch.cat(steps, 1).T
    target = torch.cat([y.flatten(), y.new_zeros(len(penalty))])
    expected = torch.linalg.lstsq(torch.cat([rows, penalty]), target[:, None]).solution
    torch.testing.assert_close(found.weight.flatten(), expected[:, 0], rtol=1e-9, atol=1e-12)
    with pytest.raises(ArgumentError, match="smooth needs solver='normal', got 'cg'"):
        learn_kernel(x, y, (5, 4), smooth=1.0, solver="cg")


def test_a_ridge_is_chosen_by_cross_validation(backend):
    x, y = torch.rand(24, 24, dtype=DOUBLE), torch.randn(20, 20, dtype=DOUBLE)
    x = torch.nn.functional.avg_pool2d(x[None], 3, 1, 1)[0]
    y = y + corr2d(x, torch.rand(5, 5, dtype=DOUBLE))
    found = learn_kernel(x, y, 5, ridge="gcv", bias=True)
    ridge = float(found.reason.split("ridge ")[1].split()[0])
    assert "by generalized cross-validation" in found.reason
    rows = torch.nn.functional.unfold(x[None, None], 5)[0].T
    rows, target = rows - rows.mean(0), y.flatten() - y.mean()

    def score(ridge):
        hat = rows @ torch.linalg.solve(rows.T @ rows + ridge * torch.eye(25), rows.T)
        error = (target - hat @ target).square().sum()
        return float(error / (len(rows) - float(hat.trace()) - 1) ** 2)

    assert score(ridge) < min(score(1.3 * ridge), score(ridge / 1.3)) * (1 + 1e-6)
    fixed = learn_kernel(x, y, 5, ridge=ridge, bias=True)
    torch.testing.assert_close(found.weight, fixed.weight, rtol=1e-2, atol=1e-3)
    largest = float(torch.linalg.eigvalsh(rows.T @ rows)[-1])
    part = learn_kernel(x, y, 5, ridge="2%", bias=True)
    expected = learn_kernel(x, y, 5, ridge=0.02 * largest, bias=True)
    torch.testing.assert_close(part.weight, expected.weight, rtol=1e-8, atol=1e-10)
    with pytest.raises(ArgumentError, match="ridge must be a number, 'gcv', or a part"):
        learn_kernel(x, y, 5, ridge="much")
