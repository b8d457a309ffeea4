"""Real data: any scale and level, NaN, masks, noise in x, images that do not belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from least_squares import best, columns, design_matrix

from tricorr import ArgumentError, KernelAccumulator, LearnedKernel, corr2d, learn_kernel
from tricorr.learning.active_set import nonnegative_minimum
from tricorr.learning.normal import Constraints, Normal

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

DOUBLE = torch.float64


def farthest(found, weight):
    """The largest error of an element, as a fraction of the largest element."""
    return float((found.weight - weight).abs().max() / weight.abs().max())


def gaussian(radius, sigma):
    u = torch.arange(-radius, radius + 1, dtype=DOUBLE)
    profile = torch.exp(-u.square() / (2 * sigma**2))
    return torch.outer(profile, profile) / profile.sum() ** 2


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("solver", ["auto", "cg"])
def test_a_large_window_is_exact_with_one_masked_pixel(backend, solver, dtype):
    x, weight = torch.rand(64, 64, dtype=DOUBLE), torch.randn(23, 23, dtype=DOUBLE)
    y, mask = corr2d(x, weight), torch.ones(42, 42, dtype=torch.bool)
    mask[5, 5] = False
    found = learn_kernel(x.to(dtype), y.to(dtype), 23, mask=mask, solver=solver)
    assert found.solver == ("normal" if solver == "auto" else "cg")
    # Of 1764 pixels and 529 unknowns: the condition of x itself is about 50.
    assert farthest(found, weight) < 1000 * torch.finfo(dtype).eps
    assert np.all(np.diff(found.history) <= 0)


@pytest.mark.parametrize("change", ["aligned", "shifted", "brighter"])
@pytest.mark.parametrize("size", [1, 3])
def test_brightness_is_kept_by_a_kernel_of_one_element(backend, change, size):
    x = torch.rand(20, 20, dtype=DOUBLE)
    y = {"aligned": x, "shifted": x.roll(1, 0), "brighter": 3 * x}[change]
    found = learn_kernel(x, y, size, nonnegative=True, sum_to=1)
    assert float(found.weight.sum()) == pytest.approx(1, abs=1e-12)
    assert float(found.weight.min()) >= 0
    assert float(learn_kernel(x, y, 1, sum_to=1).weight) == pytest.approx(1)
    if change == "aligned":
        assert farthest(found, found.weight.round()) < 1e-12


@pytest.mark.parametrize("solver", ["normal", "cg"])
def test_a_high_level_loses_no_precision(backend, solver):
    x, weight = 1e4 + torch.randn(48, 48, dtype=DOUBLE), torch.randn(11, 11, dtype=DOUBLE)
    found = learn_kernel(x, corr2d(x, weight) + 7, 11, bias=True, solver=solver)
    assert found.undetermined == 0
    assert farthest(found, weight) < 1e-9
    assert float(found.bias) == pytest.approx(7, abs=1e-5)
    sums = KernelAccumulator(11, bias=True)
    for top in (0, 20):
        rows = x[top : min(48, top + 30)]
        sums.update(rows, corr2d(rows, weight) + 7)
    assert farthest(sums.solve(), weight) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("solver", ["normal", "cg"])
@pytest.mark.parametrize("flux", [1e-17, 1e17])
@pytest.mark.parametrize("weight_unit", [1e-48, 1e42])
def test_units_of_the_images_do_not_matter(backend, dtype, solver, flux, weight_unit):
    x, weight = torch.randn(24, 24, dtype=DOUBLE), torch.randn(5, 5, dtype=DOUBLE)
    y = corr2d(x, weight) + 0.1 * torch.randn(20, 20, dtype=DOUBLE)
    weights = torch.rand(20, 20, dtype=DOUBLE) + 0.5
    options = {"bias": True, "solver": solver}
    expected = learn_kernel(x, y, 5, weights=weights, **options)
    scaled = (flux * image.to(DOUBLE) for image in (x, y))
    found = learn_kernel(
        *(image.to(dtype) for image in scaled), 5, weights=weights * weight_unit, **options
    )
    assert farthest(found, expected.weight) < 20 * torch.finfo(dtype).eps
    rel = 20 * torch.finfo(dtype).eps
    assert found.rms == pytest.approx(flux * expected.rms, rel=rel)
    noise = flux * weight_unit**0.5 * expected.quality.noise
    assert found.quality.noise == pytest.approx(noise, rel=rel)
    errors = found.quality.standard_error, expected.quality.standard_error
    torch.testing.assert_close(*errors, rtol=rel, atol=0)
    error = flux * expected.quality.background_error
    torch.testing.assert_close(found.quality.background_error, error, rtol=1e-4, atol=0)


def test_a_gradient_is_descended_in_the_users_units(backend):
    x, y = 40 + torch.rand(12, 12, dtype=DOUBLE), 9 + torch.rand(10, 10, dtype=DOUBLE)
    found = learn_kernel(x, y, 3, bias=True, steps=20)
    weight, bias = torch.zeros(3, 3, dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)
    for loss in found.history:
        residual = corr2d(x, weight) + bias - y
        assert loss == pytest.approx(float(residual.square().sum()), rel=1e-10)
        weight = weight - 2 * found.step_size * corr2d(x, residual)
        bias = bias - 2 * found.step_size * residual.sum()
    torch.testing.assert_close(found.weight, weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.bias[0], bias, rtol=1e-10, atol=1e-12)


def test_every_kind_of_number_is_accepted(backend):
    numbers = np.random.default_rng(0).integers(0, 200, (14, 13))
    weight = np.array([[1.0, 2.0], [-3.0, 4.0]])
    y = corr2d(torch.from_numpy(numbers.astype(float)), torch.from_numpy(weight)).numpy()
    for kind in ("u1", "i1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<f4", ">f4", "<f8", ">f8"):
        x = numbers.astype(kind) if kind != "i1" else (numbers // 2).astype("i1")
        found = learn_kernel(x, (y if kind != "i1" else y / 2).astype(">f8"), 2)
        assert found.weight.dtype == DOUBLE
        if kind != "i1":
            np.testing.assert_allclose(found.weight, weight, atol=1e-9)
        assert isinstance(found.predict(x), np.ndarray)
    found = learn_kernel(torch.from_numpy(numbers).short(), torch.from_numpy(y).float(), 2)
    torch.testing.assert_close(found.weight, torch.from_numpy(weight), rtol=0, atol=1e-5)


def test_nan_and_masked_arrays_are_left_out(backend):
    x, y = np.random.default_rng(0).random((2, 16, 15))
    y = y[1:-1, 1:-1].copy()
    bad_x, bad_y = np.zeros(x.shape, bool), np.zeros(y.shape, bool)
    bad_x[3, 4], bad_y[7, 2:5] = True, True
    expected = learn_kernel(x, y, 3, mask=~bad_y, input_mask=~bad_x)
    masked = learn_kernel(np.ma.array(x, mask=bad_x), np.ma.array(y, mask=bad_y), 3)
    torch.testing.assert_close(masked.weight, expected.weight)
    x[bad_x], y[bad_y] = np.nan, np.nan
    found = learn_kernel(x, y, 3)
    torch.testing.assert_close(found.weight, expected.weight)
    assert found.notes[:2] == [
        "1 pixel of x is NaN and was left out",
        "3 pixels of y are NaN and were left out",
    ]
    assert found.quality.pixels == expected.quality.pixels
    y[0, 0] = np.inf
    with pytest.raises(ArgumentError, match="y must be finite, got infinity"):
        learn_kernel(x, y, 3)


def test_astropys_images_are_accepted_with_their_masks(backend):
    nddata = pytest.importorskip("astropy.nddata")
    from astropy.io import fits

    x, y = np.random.default_rng(0).random((2, 16, 15))
    bad = np.zeros(y.shape, bool)
    bad[5, 6] = True
    expected = learn_kernel(x, y, 3, mask=~bad)
    image = nddata.CCDData(y, mask=bad, unit="adu")
    torch.testing.assert_close(learn_kernel(x, image, 3).weight, expected.weight)
    found = learn_kernel(fits.PrimaryHDU(x), nddata.NDData(y, mask=bad), 3)
    torch.testing.assert_close(found.weight, expected.weight)


def test_few_masked_pixels_are_subtracted_to_rounding(backend):
    x, y = torch.randn(2, 2, 24, 20, dtype=DOUBLE), torch.randn(2, 2, 22, 19, dtype=DOUBLE)
    mask = torch.rand(2, 1, 22, 19) > 0.02
    weights = columns(mask.double())
    theta = best(design_matrix(x, (3, 2), order=1), columns(y), weights)
    found = learn_kernel(x, y, (3, 2), background=1, mask=mask)
    torch.testing.assert_close(found.weight.flatten(1), theta[:12].T, rtol=1e-10, atol=1e-12)
    # Where x is huge under a mask, a subtraction would leave no correct digits.
    x[0, :, 4, 4] = 1e9
    mask[0, :, 2:5, 3:5] = False
    theta = best(design_matrix(x, (3, 2), order=1), columns(y), columns(mask.double()))
    found = learn_kernel(x, y, (3, 2), background=1, mask=mask)
    torch.testing.assert_close(found.weight.flatten(1), theta[:12].T, rtol=1e-9, atol=1e-11)


def star_field(size=160, count=120):
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    image = np.zeros((size, size))
    for _ in range(count):
        row, column, flux = *random.uniform(0, size, 2), 10 ** random.uniform(2.5, 4.5)
        image += flux / 4 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 1.3)
    return torch.from_numpy(image)


@pytest.mark.parametrize("form", ["number", "map"])
def test_noise_of_the_input_is_corrected_for(backend, form):
    weight, exact = gaussian(5, 1.2), star_field()
    noise = 120.0
    x = exact + noise * torch.randn(exact.shape, dtype=DOUBLE)
    y = corr2d(exact, weight, padding=5) + 5 * torch.randn(exact.shape, dtype=DOUBLE)
    careless = learn_kernel(x, y, 11)
    assert any("x seems to be noisy" in note for note in careless.notes)
    given = noise if form == "number" else torch.full(x.shape, noise)
    careful = learn_kernel(x, y, 11, input_noise=given)
    assert not any("x seems to be noisy" in note for note in careful.notes)
    assert any("the kernel spreads the noise of x over neighbours" in n for n in careful.notes)
    assert farthest(careless, weight) > 0.03
    assert abs(float(careful.weight.sum()) - 1) < 0.5 * abs(float(careless.weight.sum()) - 1)
    with pytest.raises(ArgumentError, match="input_noise must be finite and not negative, got -1"):
        learn_kernel(x, y, 11, input_noise=-1.0)
    with pytest.raises(ArgumentError, match="input_noise needs solver='normal', got 'cg'"):
        learn_kernel(x, y, 11, input_noise=1.0, solver="cg")


def test_noise_of_a_large_sample_is_subtracted_exactly(backend):
    x0, weight = torch.randn(300, 300, dtype=DOUBLE), torch.randn(3, 3, dtype=DOUBLE)
    x = x0 + 0.5 * torch.randn_like(x0)
    found = learn_kernel(x, corr2d(x0, weight), 3, input_noise=0.5, bias=True)
    plain = learn_kernel(x, corr2d(x0, weight), 3, bias=True)
    assert farthest(plain, 0.8 * weight) < 0.03  # 1 / (1 + 0.25)
    assert farthest(found, weight) < 0.03


def test_a_window_that_cuts_the_kernel_off_is_noted(backend):
    x = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 122, 122, dtype=DOUBLE), 3, 1)[0, 0]
    y = corr2d(x, gaussian(9, 3.0), padding=9)
    y = y + 1e-4 * torch.randn_like(y)
    found = learn_kernel(x, y, 7)
    assert "the window seems to cut the kernel off" in found.notes[0]
    assert "try 11 x 11" in found.notes[0]
    assert found.quality.standard_error is None
    assert found.quality.correlation > 0.3
    enough = learn_kernel(x[:60], y[:60], 19)
    assert not any("cut" in note for note in enough.notes)
    assert enough.quality.standard_error is not None


def test_a_smaller_window_in_a_note_fits_as_well(backend):
    x = torch.rand(40, 40, dtype=DOUBLE)
    shifted = learn_kernel(x, x.roll((2, -1), (0, 1)), 7)
    assert "5 x 2 about the same centre is as good" in shifted.notes[0]
    again = learn_kernel(x, x.roll((2, -1), (0, 1)), (5, 2))
    assert again.rms < 1e-12
    corner = torch.zeros(3, 3, dtype=DOUBLE)
    corner[1, 1], corner[2, 0] = 1, -1
    y = corr2d(x, corner, padding=1)
    embossed = learn_kernel(x, y, 3)
    assert "2 x 3 about the same centre is as good" in embossed.notes[0]
    assert learn_kernel(x, y, (2, 3)).rms < 1e-12


def test_unrelated_images_are_noted(backend):
    x, y = torch.rand(40, 40, dtype=DOUBLE), torch.rand(40, 40, dtype=DOUBLE)
    found = learn_kernel(x, y, 5, bias=True)
    assert "explains next to nothing" in found.notes[0]
    assert "of the target's own variation" in found.notes[0]
    negative = learn_kernel(x, -x, 5, nonnegative=True)
    assert "does the kernel meet nonnegative" in negative.notes[0]


@pytest.mark.parametrize("total", [None, 2.0, 0.0])
@pytest.mark.parametrize("open_directions", [0, 5])
def test_nonnegative_minima_meet_their_conditions(backend, total, open_directions):
    rows = torch.randn(60, 30 - open_directions, dtype=DOUBLE)
    rows = rows @ torch.randn(30 - open_directions, 30, dtype=DOUBLE)
    gram, moments = rows.T @ rows, rows.T @ torch.randn(60, dtype=DOUBLE)
    constraints = Constraints(28, nonnegative=True, sum_to=total)
    normal = Normal(gram, constraints)
    theta = nonnegative_minimum(normal, moments, constraints, torch.randn(30, dtype=DOUBLE))
    kernel = torch.arange(30) < 28
    assert float(theta[kernel].min()) >= 0
    slope = gram @ theta - moments
    free = (theta > 0) & kernel
    if total is not None:
        assert float(theta[kernel].sum()) == pytest.approx(total, abs=1e-9)
        slope = slope - slope[free].mean() * kernel if free.any() else slope
    limit = 1e-6 * float(moments.abs().max())
    assert float(slope[~kernel].abs().max()) < limit
    if total != 0:
        assert float(slope[free].abs().max()) < limit
        assert float(slope[kernel & ~free].min()) > -limit


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".fits"])
@pytest.mark.parametrize("channels", [False, True], ids=["plain", "channels"])
def test_a_saved_kernel_with_all_attributes_is_read_back(backend, suffix, channels, tmp_path):
    if suffix == ".fits":
        pytest.importorskip("astropy")
    x, y = torch.rand(1, 1, 20, 18, dtype=DOUBLE), torch.rand(1, 2 if channels else 1, 20, 18)
    x, y = (x, y) if channels else (x[0, 0], y[0, 0])
    options = {"padding": ((0, 2), (1, 1)), "padding_mode": "reflect", "background": 1}
    found = learn_kernel(x, y, 3, flip=True, **options)
    found.save(tmp_path / f"kernel{suffix}")
    loaded = LearnedKernel.load(tmp_path / f"kernel{suffix}")
    assert torch.equal(loaded.weight, found.weight)
    if suffix != ".npy":
        assert torch.equal(loaded.predict(x), found.predict(x))
        assert loaded.history == found.history
        assert (loaded.loss, loaded.rms, loaded.solver) == (found.loss, found.rms, "normal")
        assert loaded.quality.pixels == found.quality.pixels
    assert loaded.residual is None
    assert loaded.rejected is None
    with pytest.raises(ArgumentError, match="a kernel is saved as"):
        LearnedKernel.load(tmp_path / "kernel.txt")
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    with pytest.raises(ArgumentError, match="it holds no kernel"):
        LearnedKernel.load(tmp_path / "cube.npy")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.full((3, 3), np.nan), "elements that are NaN or infinite"),
        (np.ones((3, 3), complex), "it holds complex128, no real numbers"),
        (b"\x93NUMPY", "EOF"),
        (b"text", "pickled"),
    ],
    ids=["nan", "complex", "cut", "text"],
)
def test_files_without_a_kernel_are_refused(backend, tmp_path, kernel, message):
    path = tmp_path / "kernel.npy"
    path.write_bytes(kernel) if isinstance(kernel, bytes) else np.save(path, kernel)
    with pytest.raises(ArgumentError, match=f"cannot read .*kernel.npy: .*{message}"):
        LearnedKernel.load(path)


def test_kernels_of_other_numbers_are_read_as_floats(backend, tmp_path):
    for kernel in (np.eye(3, dtype=int), np.eye(3).astype(">f8")):
        np.save(tmp_path / "kernel.npy", kernel)
        loaded = LearnedKernel.load(tmp_path / "kernel.npy")
        assert torch.equal(loaded.weight, torch.eye(3, dtype=DOUBLE))


def test_rejected_pixels_are_a_map(backend):
    x, weight = torch.randn(24, 24, dtype=DOUBLE), torch.randn(3, 3, dtype=DOUBLE)
    y = corr2d(x, weight) + 0.1 * torch.randn(22, 22, dtype=DOUBLE)
    assert not learn_kernel(x, y, 3).rejected.any()
    y[4, 5], y[9, 9], mask = 50, torch.nan, torch.ones(22, 22, dtype=torch.bool)
    mask[0, 0] = False
    found = learn_kernel(x, y, 3, loss="tukey", mask=mask)
    assert found.rejected.shape == (22, 22)
    assert found.rejected[[0, 4, 9], [0, 5, 9]].all()
    assert found.rejected.sum() < 8
    several = learn_kernel([x[None]], [y[None]], 3, mask=[mask]).rejected
    assert several[0].nonzero().tolist() == [[0, 0, 0], [0, 9, 9]]


def test_a_loss_that_rises_is_noted(backend):
    x, weight = torch.rand(16, 16, dtype=DOUBLE), torch.randn(3, 3, dtype=DOUBLE)
    y = corr2d(x, weight)
    found = learn_kernel(x, y, 3, solver="adam", step_size=5.0, steps=8)
    assert "the loss rose: it ended at" in found.notes[0]
    assert found.loss > min(found.history)
    for solver, options in (("cg", {}), ("gd", {}), ("adam", {"step_size": 0.01, "steps": 5})):
        calm = learn_kernel(x, y, 3, solver=solver, **options)
        assert not any("the loss rose" in note for note in calm.notes)
    with pytest.raises(ArgumentError, match=r"the loss is inf after \d+ steps: they diverge"):
        learn_kernel(x.float(), y.float(), 3, solver="sgd", step_size=1e3, steps=99)


def test_a_difference_has_the_variance_of_both_images(backend):
    x, weight = torch.randn(40, 40, dtype=DOUBLE), torch.randn(3, 3, dtype=DOUBLE)
    y = torch.nn.functional.pad(corr2d(x, weight), (1, 1, 1, 1))
    found = learn_kernel(x, y, 3, bias=True)
    spread = torch.rand(40, 40, dtype=DOUBLE)
    difference, variance = found.difference(x, y + 1, x_variance=spread, y_variance=4.0)
    torch.testing.assert_close(difference, torch.ones(38, 38, dtype=DOUBLE))
    torch.testing.assert_close(variance, 4 + corr2d(spread, weight.square()))
    y[3, 4] = torch.nan
    difference, variance = found.difference(x.numpy(), y.numpy())
    assert np.isnan(difference).nonzero() == ([2], [3])
    assert not variance.any()
    with pytest.raises(ArgumentError, match=r"y must have shape \(38, 38\), as the prediction"):
        found.difference(x, y[:-1])
    with pytest.raises(ArgumentError, match="y_variance must not be negative, got -1"):
        found.difference(x, y, y_variance=-1.0)


def test_channels_at_the_end_are_refused(backend):
    picture = torch.rand(12, 11, 3)
    with pytest.raises(ArgumentError, match=r"looks like an image of shape \(H, W, 3\)"):
        learn_kernel(picture, picture, 3)
    assert learn_kernel(picture[None], picture[None], 1).weight.shape == (12, 12, 1, 1)
