"""`tricorr learn` and `tricorr receptive-field`: all options; files are whole or absent."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tricorr import KernelAccumulator, VaryingKernel, corr2d, learn_kernel, learn_kernel_field

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

KERNEL = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.5, 0.0]], dtype=torch.float64)


@pytest.fixture
def images(tmp_path):
    """x0, y0, x1, y1: two pairs with noise in the targets, as tensors and saved as .npy."""
    made = {}
    for n in range(2):
        random = torch.Generator().manual_seed(n)
        x = torch.rand(24, 31, dtype=torch.float64, generator=random)
        y = corr2d(x, KERNEL)
        y = y + 0.01 * torch.randn(y.shape, dtype=torch.float64, generator=random)
        for name, image in ((f"x{n}", x), (f"y{n}", y)):
            np.save(tmp_path / f"{name}.npy", image.numpy())
            made[name] = image
    random = torch.Generator().manual_seed(9)
    made["mask"] = (torch.rand(made["y0"].shape, generator=random) > 0.2).double()
    made["weights"] = torch.rand(made["y0"].shape, generator=random, dtype=torch.float64)
    made["known"] = (torch.rand(made["x0"].shape, generator=random) > 0.05).double()
    for name in ("mask", "weights", "known"):
        np.save(tmp_path / f"{name}.npy", made[name].numpy())
    return made


PAIR = ("learn", "x0.npy", "y0.npy", "--kernel-size", 2, 3)
CASES = {
    "background": (("--background", 2), {"background": 2}),
    "constant": (("--background", "constant"), {"background": "constant"}),
    "bias": (("--bias",), {"bias": True}),
    "mask": (("--mask", "mask.npy"), {"mask": "mask"}),
    "input_mask": (("--input-mask", "known.npy"), {"input_mask": "known"}),
    "weights": (("--weights", "weights.npy"), {"weights": "weights"}),
    "ridge": (("--ridge", 3.5), {"ridge": 3.5}),
    "nonnegative": (("--nonnegative",), {"nonnegative": True}),
    "sum_to": (("--sum-to", 1), {"sum_to": 1.0}),
    "convolution": (("--convolution",), {"flip": True}),
    "huber": (("--loss", "huber"), {"loss": "huber"}),
    "cg": (("--solver", "cg"), {"solver": "cg"}),
    "gd": (("--steps", 7), {"steps": 7}),
    "adam": (
        ("--solver", "adam", "--steps", 5, "--step-size", 0.1),
        {"solver": "adam", "steps": 5, "step_size": 0.1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_options_are_those_of_learn_kernel(prints_json, images, name):
    arguments, options = CASES[name]
    found = prints_json(*PAIR, *arguments)
    options = {key: images.get(value, value) for key, value in options.items()}
    expected = learn_kernel(images["x0"], images["y0"], (2, 3), **options)
    assert found["weight"] == pytest.approx(expected.weight.numpy(), rel=1e-9, abs=1e-12)
    assert found["solver"] == expected.solver
    assert found["rms"] == pytest.approx(expected.rms)
    assert found["background"] == (
        None if expected.background is None else pytest.approx(expected.background[0].tolist())
    )
    assert found["notes"] == expected.notes


def test_padding(prints_json, images, tmp_path):
    y = corr2d(images["x0"], KERNEL, padding=((1, 0), (1, 1)), padding_mode="reflect")
    np.save(tmp_path / "same.npy", y.numpy())
    options = ("--padding", 1, 0, 1, 1, "--padding-mode", "reflect")
    found = prints_json("learn", "x0.npy", "same.npy", "--kernel-size", 2, 3, *options)
    assert found["weight"] == pytest.approx(KERNEL.numpy(), abs=1e-9)
    assert found["pixels"] == 24 * 31


def test_several_pairs(prints_json, images):
    names = ("x0.npy", "y0.npy", "x1.npy", "y1.npy")
    found = prints_json("learn", *names, "--kernel-size", 2, 3, "--mask", "mask.npy")
    pairs = [images["x0"], images["x1"]], [images["y0"], images["y1"]]
    expected = learn_kernel(*pairs, (2, 3), mask=[images["mask"]] * 2)
    assert found["weight"] == pytest.approx(expected.weight.numpy(), rel=1e-9)
    assert found["pixels"] == 2 * int(images["mask"].sum())


@pytest.mark.parametrize("options", [(), ("--plot", "field.png")])
def test_tiles(run, prints_json, images, tmp_path, options):
    found = prints_json(*PAIR, "--tiles", 2, 3, "-o", "field.npy", *options)
    expected = learn_kernel_field(images["x0"], images["y0"], (2, 3), (2, 3))
    np.testing.assert_allclose(np.load(tmp_path / "field.npy"), expected.weight, rtol=1e-9)
    assert np.shape(found["weight"]) == (2, 3, 2, 3)
    assert [len(row) for row in found["tiles"]] == [3, 3]
    assert (found["rows"], found["columns"]) == (expected.rows, expected.columns)
    if options:
        assert (tmp_path / "field.png").stat().st_size > 10_000
        code, out, _ = run(*PAIR, "--tiles", 2)
        assert code == 0
        assert "tile 1, 1: RMS error" in out


@pytest.mark.parametrize(
    "options", [(), ("--mask", "mask.npy"), ("--background", 1, "--stream", 4)]
)
def test_streamed_and_drawn(run, prints_json, images, tmp_path, monkeypatch, options):
    monkeypatch.setattr("tricorr.cli.learn.DRAWN", 10)
    whole = [o for o in options if o not in ("--stream", 4)]
    expected = prints_json(*PAIR, *whole)
    options = options if "--stream" in options else (*options, "--stream")
    found = prints_json(*PAIR, *options, "--plot", "fit.png", "-o", "kernel.npy")
    assert found["weight"] == pytest.approx(np.array(expected["weight"]), rel=1e-9, abs=1e-12)
    assert np.load(tmp_path / "kernel.npy") == pytest.approx(np.array(found["weight"]))
    assert found["rms"] == pytest.approx(expected["rms"])
    assert (tmp_path / "fit.png").stat().st_size > 10_000
    losses = prints_json(*PAIR, *options, "--steps", 5)["history"]
    sums = KernelAccumulator((2, 3))
    if options == ("--stream",):
        sums.update(images["x0"], images["y0"])
        assert losses == pytest.approx(sums.solve("gd", steps=5).history)
    code, _, err = run(*PAIR, *options, "--progress")
    assert code == 0
    assert "learning: 100%" in err


def test_progress_has_loss_and_time_left(run, images):
    code, _, err = run(*PAIR, "--steps", 60, "--progress")
    assert code == 0
    assert "60/60 [00:0" in err
    assert "loss=" in err
    assert "<00:0" in err
    assert run(*PAIR, "--steps", 60, "--no-progress")[2] == ""


def test_steps_that_ended_early_print_no_standard_errors(run, images):
    _, out, _ = run(*PAIR, "--steps", 2)
    assert "note: the steps ended before they converged" in out
    assert "each element is known to" not in out


@pytest.mark.parametrize("order", [(), ("--order", 1)], ids=["one kernel", "varying"])
@pytest.mark.parametrize("suffix", [".npz", ".fits"])
def test_a_difference_is_written_with_its_variance(run, images, tmp_path, order, suffix):
    weights = np.full(images["y0"].shape, 4.0)
    weights[0, 1] = 0
    np.save(tmp_path / "w.npy", weights)
    name = f"difference{suffix}"
    code, out, _ = run(
        *PAIR, "--weights", "w.npy", "--difference", name, "--residual", "r.npy", *order
    )
    assert code == 0
    assert f"difference: {name}" in out
    if suffix == ".npz":
        difference, variance = np.load(name)["difference"], np.load(name)["variance"]
    else:
        fits = pytest.importorskip("astropy.io.fits")
        difference, variance = fits.getdata(name, 0), fits.getdata(name, "VARIANCE")
    np.testing.assert_allclose(difference, -np.load("r.npy"), rtol=1e-4, atol=1e-5)
    assert variance[0, 1] == np.inf
    variance[0, 1] = 0.25
    np.testing.assert_allclose(variance, 0.25)


def test_residual_and_quality_in_words(run, images, tmp_path):
    code, out, _ = run(*PAIR, "--residual", "left.npy", "--plot", "fit.svg", "-o", "k.npz")
    assert code == 0
    found = learn_kernel(images["x0"], images["y0"], (2, 3))
    np.testing.assert_allclose(np.load(tmp_path / "left.npy"), found.residual, rtol=1e-4, atol=1e-6)
    assert "% of the target's own variation" in out
    assert "each element is known to" in out
    assert "all parts of the kernel are determined about equally well" in out
    assert "residual: left.npy" in out
    assert "chosen: 6 unknowns of a filter" in out
    assert (tmp_path / "fit.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x0.npy",), "images come as INPUT TARGET [INPUT TARGET ...], got 1"),
        (("x0.npy", "y0.npy", "--mask", "a", "b"), "--mask takes one image, or one for each of 1"),
        (("x0.npy", "y0.npy", "--background", "sky"), "--background takes constant or an order"),
        (("x0.npy", "y0.npy", "--background", "-1"), "background must be an order of 0 or more"),
        (("x0.npy", "y0.npy", "--padding", "some"), "--padding takes same, valid, or 1, 2 or 4"),
        (("x0.npy", "y0.npy", "--ridge", "-2"), "ridge must not be negative, got -2"),
        (("x0.npy", "y0.npy", "--tiles", "0"), "tiles must be from 1 to 23 x 29"),
        (("x0.npy", "y0.npy", "--solver", "magic"), "solver must be"),
        (("x0.npy", "y0.npy", "--nonnegative", "--solver", "cg"), "nonnegative needs solver="),
        (("x0.npy", "y0.npy", "--mask", "x0.npy"), "mask must have the shape of its image"),
        (("x0.npy", "y0.npy", "--mask", "y0.npy", "-o", "y0.npy"), "will not overwrite the input"),
        (("x0.npy", "y0.npy", "--mask", "mask.npy", "--plot", "mask.npy"), "overwrite the input"),
        (("x0.npy", "y0.npy", "--difference", "d.npy"), "saved as .npz or .fits"),
        (
            ("x0.npy", "y0.npy", "--difference", "d.npz", "--tiles", "2"),
            "--difference is for one pair",
        ),
        (("x0.npy", "y0.npy", "--residual", "r.png"), "a residual is saved as .npy or .tif"),
        (("x0.npy", "y0.npy", "x1.npy", "y1.npy", "--residual", "r.npy"), "is for one pair"),
        (("x0.npy", "y0.npy", "--stream", "--tiles", "2"), "--stream goes with --solver normal"),
        (("x0.npy", "y0.npy", "--stream", "--solver", "cg"), "--stream goes with --solver normal"),
        (("x0.npy", "y0.npy", "--stream", "--log-every", "2"), "no losses on the way"),
        (("x0.npy", "y0.npy", "--stream", "-3"), "rows must be positive, got -3"),
        (("photo.png", "photo.png", "--stream"), "expected a .npy, TIFF or FITS file"),
    ],
)
def test_errors_take_one_line(fails, images, tmp_path, arguments, message):
    Image.new("L", (30, 20), 100).save(tmp_path / "photo.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert message in fails("learn", *arguments, "--kernel-size", 2, 3)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fits_images_and_kernels(prints_json, images, tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    for name in ("x0", "y0"):
        fits.PrimaryHDU(images[name].numpy()).writeto(tmp_path / f"{name}.fits")
    options = ("--kernel-size", 2, 3, "-o", "kernel.fits")
    found = prints_json("learn", "x0.fits", "y0.fits", *options)
    expected = prints_json(*PAIR)["weight"]
    assert found["weight"] == pytest.approx(np.array(expected), rel=1e-12)
    np.testing.assert_allclose(fits.getdata(tmp_path / "kernel.fits"), expected, rtol=1e-12)


# Stops half-way through the first file that NumPy writes, and prints a line there.
HALF_WAY = """
import signal, sys, time
import numpy
from tricorr.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` starts it ignored
def save(path, array, **options):
    with open(path, "wb") as file:
        file.write(b"half of a kernel")
        file.flush()
        print("writing", flush=True)
        time.sleep(60)
numpy.save = save
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_half_written_file(images, backend, tmp_path, number):
    old = b"the kernel of yesterday"
    (tmp_path / "kernel.npy").write_bytes(old)
    before = {path.name for path in tmp_path.iterdir()}
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", HALF_WAY, *map(str, PAIR), "-o", "kernel.npy"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(number)
    _, err = process.communicate()
    assert "Traceback" not in err
    assert (tmp_path / "kernel.npy").read_bytes() == old
    left = {path.name for path in tmp_path.iterdir()} - before
    if number == signal.SIGKILL:  # no clean-up can run: the partial file has a temporary name
        assert process.returncode == -signal.SIGKILL
        assert all(name.startswith(".tricorr-") for name in left)
    else:
        assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        assert not left


def test_a_run_killed_while_it_learns_leaves_nothing(backend, tmp_path):
    for name in ("x.npy", "y.npy"):
        np.save(tmp_path / name, np.random.default_rng(0).random((60, 60)))
    command = [sys.executable, "-m", "tricorr", "learn", "x.npy", "y.npy", "--kernel-size", "3"]
    command += ["--steps", "100000000", "--log-every", "1", "-o", "kernel.npy", "--plot", "fit.png"]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("epoch 1, loss")
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    process.communicate()
    assert process.returncode == 143
    assert time.monotonic() - started < 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]


MODEL = """
import torch
def net(): return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.MaxPool2d(2))
ready = torch.nn.Conv2d(1, 1, 5, stride=2)
number = 5
def broken(): raise KeyError("no\\nnet")
"""


def test_receptive_field_of_modules(prints_json, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    assert prints_json("receptive-field", "model.py:net")["size"] == [4, 4]
    assert prints_json("receptive-field", "model.py:ready")["step"] == [2, 2]
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 7)), tmp_path / "model.pt")
    assert prints_json("receptive-field", "model.pt")["size"] == [7, 7]
    assert prints_json("receptive-field", "torch.nn:Identity")["size"] == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.py:nothing", "model.py has no nothing"),
        ("model.py:number", "must be a torch.nn.Module, got int"),
        ("model.py:broken", "cannot run model.py:broken: KeyError"),
        ("missing.py:net", "missing.py: No such file"),
        ("no.such.package:net", "cannot run no.such.package: ModuleNotFoundError"),
        ("wrong.py:net", "cannot run wrong.py: SyntaxError"),
        ("missing.pt", "missing.pt: No such file"),
        ("wrong.pt", "cannot load wrong.pt: "),
        ("torch:nn", "must be a torch.nn.Module, got module"),
    ],
)
def test_wrong_modules_are_refused(fails, tmp_path, text, message):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "wrong.py").write_text("this is no Python")
    (tmp_path / "wrong.pt").write_text("this is no module")
    assert message in fails("receptive-field", text)


@pytest.fixture
def observed(tmp_path, monkeypatch):
    """FITS files in counts, with extensions and data quality, and the kernel between them."""
    fits = pytest.importorskip("astropy.io.fits")
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    x, weight = random.integers(0, 60000, (30, 28)), np.array([[0.1, 0.2], [0.3, 0.4]])
    y = corr2d(torch.from_numpy(x.astype(float)), torch.from_numpy(weight)).numpy()
    bad = np.zeros(y.shape, np.int16)
    bad[4, 5] = 8
    spoilt = np.where(bad, 1e9, y)
    units = [fits.PrimaryHDU(), fits.ImageHDU(spoilt, name="SCI"), fits.ImageHDU(bad, name="DQ")]
    fits.HDUList(units).writeto("y.fits.gz")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(x.astype("u2"), name="SCI")]).writeto("x.fits")
    np.save("x.npy", x.astype(np.uint16))
    np.save("y.npy", y)
    return x, y, weight


def test_extensions_and_data_quality_of_fits(prints_json, observed):
    _, _, weight = observed
    command = ["learn", "x.fits", "y.fits.gz", "-k", "2", "--ext", "SCI", "--dq", "y.fits.gz[DQ]"]
    found = prints_json(*command)
    np.testing.assert_allclose(found["weight"], weight, atol=1e-9)
    found = prints_json("learn", "x.fits[1]", "y.fits.gz[SCI,1]", "-k", "2", "--dq", "y.fits.gz[2]")
    np.testing.assert_allclose(found["weight"], weight, atol=1e-9)


@pytest.mark.parametrize("way", ["whole", "stream"])
def test_integers_beside_floats_keep_their_values(prints_json, observed, way):
    found = prints_json("learn", "x.npy", "y.npy", "-k", "2", *(["--stream"] * (way == "stream")))
    np.testing.assert_allclose(found["weight"], observed[2], atol=1e-9)


def test_order_and_automatic_window_are_options(prints_json, observed):
    x, y, weight = observed
    ramp = np.linspace(1, 2, y.shape[1])
    np.save("ramp.npy", y * ramp)
    command = ["learn", "x.npy", "ramp.npy", "-k", "2", "--order", "1", "-o", "field.npz"]
    found = prints_json(*command, "--plot", "field.png")
    assert found["order"] == 1
    field = VaryingKernel.load("field.npz")
    np.testing.assert_allclose(field.at(0, 0), weight, atol=1e-9)
    np.testing.assert_allclose(field.at(3, y.shape[1] - 1), 2 * weight, atol=1e-9)
    np.save("same.npy", 3 * x)
    assert prints_json("learn", "x.npy", "same.npy", "-k", "auto")["weight"] == [[3.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.fits[9]", "y.npy", "-k", "2"], "no such extension, it holds 0 PRIMARY, 1 SCI"),
        (["y.npy", "y.npy", "-k", "1", "--mask", "none.npy"], "leave out every pixel"),
        (["x.npy", "y.npy", "-k", "2", "--scale-order", "1"], "--scale-order goes with --order"),
        (["x.npy", "y.npy", "-k", "2", "--order", "1", "-o", "k.npy"], "saved as .npz"),
        (["x.npy", "y.npy", "-k", "2", "--order", "1", "--tiles", "2"], "goes without --tiles"),
    ],
)
def test_errors_with_fits_files_take_one_line(backend, fails, observed, arguments, message):
    np.save("none.npy", np.zeros((29, 27)))
    assert message in fails("learn", *arguments)
