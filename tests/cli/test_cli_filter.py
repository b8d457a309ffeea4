"""`tricorr filter` and `tricorr apply`; folders, standard input and output, and completion."""

import io
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tricorr import corr2d, filters, learn_kernel
from tricorr.images import read_image

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tifffile")

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

#: Options of each filter, and the equivalent call.
CALLS = {
    "gaussian": (("--sigma", 1.5), lambda x: filters.gaussian_blur(x, 1.5)),
    "box": (("--size", 3), lambda x: filters.box_blur(x, 3)),
    "unsharp": (("--sigma", 2, "--amount", 0.5), lambda x: filters.unsharp_mask(x, 2.0, 0.5)),
    "sobel": (("--border", "reflect"), lambda x: filters.sobel(x, padding_mode="reflect")),
    "scharr": ((), filters.scharr),
    "prewitt": ((), filters.prewitt),
    "gradient-x": ((), lambda x: filters.spatial_gradient(x).select(-3, 0)),
    "gradient-y": ((), lambda x: filters.spatial_gradient(x).select(-3, 1)),
    "laplacian": ((), filters.laplacian),
    "gabor": (("--frequency", 0.3, "--angle", 90), lambda x: filters.gabor(x, 0.3, torch.pi / 2)),
    "log-gabor": (("--size", 9, "--grey"), lambda x: filters.log_gabor(x, 9)),
}


@pytest.fixture
def photo(tmp_path):
    """A colour photograph of 20 x 26 pixels."""
    levels = np.random.default_rng(0).integers(0, 256, (20, 26, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(levels).save(path)
    return path


@pytest.mark.parametrize("name", CALLS)
def test_every_filter_by_name(prints_json, photo, tmp_path, name):
    options, call = CALLS[name]
    found = prints_json("filter", "--name", name, *options, photo, "-o", "out.npy")
    expected = call(read_image(photo, grey="--grey" in options).pixels)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-6)
    assert found["shape"] == list(expected.shape)
    assert found["white"] is None


def test_every_function_of_filters_has_a_name(backend):
    from tricorr.cli.filter import FILTERS

    functions = {name for name in filters.__all__ if "kernel" not in name and "window" not in name}
    assert functions == {chosen.function for chosen in FILTERS.values()}
    assert set(CALLS) == set(FILTERS)


def test_pictures_keep_colours_and_say_what_they_clip(prints_json, photo, tmp_path):
    found = prints_json("filter", photo, "--name", "unsharp", "--amount", 9, "-o", "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == "RGB"
    values = filters.unsharp_mask(read_image(photo).pixels, 1.0, 9.0)
    outside = float(((values < 0) | (values > 1)).float().mean())
    assert outside > 0.2
    assert found["clipped"] == pytest.approx(outside, abs=0.01)


def test_a_flat_picture_has_black_edges(succeeds, tmp_path):
    """Rounding errors are not scaled up to white."""
    Image.new("L", (16, 12), 128).save(tmp_path / "grey.png")
    succeeds("edges", "grey.png", "-o", "edges.png")
    with Image.open(tmp_path / "edges.png") as image:
        assert image.getextrema() == (0, 0)


def test_several_images_go_into_a_folder(prints_json, photo, tmp_path):
    np.save(tmp_path / "other.npy", np.eye(9, dtype=np.float32))
    found = prints_json("edges", photo, "other.npy", "-o", "out/")
    assert [image["output"] for image in found["images"]] == ["out/photo.png", "out/other.npy"]
    assert np.load(tmp_path / "out" / "other.npy").shape == (9, 9)
    prints_json("edges", photo, "-o", "out", "--format", "tif")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "other.npy",
        "photo.png",
        "photo.tif",
    ]


def test_two_images_of_one_name_are_refused_before_the_work(fails, photo, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "photo.png").write_bytes(photo.read_bytes())
    message = fails("edges", photo, "sub/photo.png", "-o", "out/")
    assert "two images would become out/photo.png" in message
    assert not list((tmp_path / "out").iterdir())


def test_kernels_written_by_learn_are_applied(prints_json, succeeds, photo, tmp_path):
    kernel = np.array([[0.1, 0.2, 0.0], [0.3, 0.5, -0.1]])
    x = read_image(photo).pixels
    np.save(tmp_path / "k.npy", kernel)
    succeeds("apply", "k.npy", photo, "-o", "out.npy")
    weight = torch.from_numpy(kernel).float()
    expected = corr2d(x, weight, padding="same", padding_mode="replicate")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-6)
    succeeds("apply", "k.npy", photo, "-o", "out.npy", "--convolution", "--border", "crop")
    expected = corr2d(x, weight.flip(0, 1))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-6)
    # The kernel from `learn` reproduces the second image from the first.
    grey = read_image(photo, grey=True).pixels
    np.save(tmp_path / "x.npy", grey)
    np.save(tmp_path / "y.npy", corr2d(grey, weight) + 0.25)
    for name in ("found.npz", "found.npy"):
        succeeds("learn", "-k", "2x3", "--bias", "x.npy", "y.npy", "-o", name)
        succeeds("apply", name, "x.npy", "-o", "again.npy", "--border", "crop")
        missing = 0.0 if name.endswith("z") else 0.25  # .npy has only the weight
        off = np.load(tmp_path / "again.npy") + missing - np.load(tmp_path / "y.npy")
        assert np.abs(off).max() < 1e-5


def test_a_polynomial_background_is_applied_whole(succeeds, photo, tmp_path):
    """In the fit's coordinates, also where the result has the border that the fit left out."""
    x = read_image(photo, grey=True).pixels
    slopes = torch.linspace(0, 1, x.shape[0] - 1)[:, None] - torch.linspace(0, 2, x.shape[1] - 2)
    y = corr2d(x, torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.5, -0.1]])) + slopes
    learn_kernel(x, y, (2, 3), background=1).save(tmp_path / "k.npz")
    np.save(tmp_path / "x.npy", x)
    for border, part in (("crop", np.s_[:, :]), ("replicate", np.s_[:-1, 1:-1])):
        succeeds("apply", "k.npz", "x.npy", "-o", "again.npy", "--border", border)
        assert np.abs(np.load(tmp_path / "again.npy")[part] - y.numpy()).max() < 1e-5


def test_kernels_of_a_stride_are_not_applied_without_it(fails, photo, tmp_path):
    x = torch.rand(20, 20)
    learn_kernel(x, x[::2, ::2], 1, stride=2).save(tmp_path / "k.npz")
    message = fails("apply", "k.npz", photo, "-o", "out.npy")
    assert "k.npz was learned with a stride of (2, 2)" in message


def test_options_may_come_before_the_files(prints_json, tmp_path):
    x = torch.rand(12, 14)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", corr2d(x, torch.ones(2, 3)))
    found = [
        prints_json("learn", *words)
        for words in (
            ("--kernel-size", 2, 3, "x.npy", "y.npy"),
            ("-k", "2x3", "--padding", 0, 0, "x.npy", "y.npy"),
            ("x.npy", "y.npy", "--kernel-size", 2, 3),
        )
    ]
    assert found[0]["weight"] == found[1]["weight"] == found[2]["weight"]


def test_standard_input_and_output(monkeypatch, capfdbinary, photo, backend):
    from tricorr.cli.main import main

    def piped(*arguments):
        data = io.BytesIO(photo.read_bytes())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
        assert main(["filter", "--name", "box", "--size", "3", "-", *arguments]) == 0
        return capfdbinary.readouterr()

    out, err = piped("-o", "-")
    with Image.open(io.BytesIO(out)) as image:
        assert image.size == (26, 20)
    assert b"-: box, image" in err
    out, err = piped("-o", "-", "--format", "npy", "--json")
    expected = filters.box_blur(read_image(photo).pixels, 3)
    np.testing.assert_allclose(np.load(io.BytesIO(out)), expected, rtol=1e-5, atol=1e-6)
    assert b'"output": "-"' in err


def test_standard_input_that_is_not_an_image_is_refused(fails, monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO(b"no image"))
    monkeypatch.setattr(sys, "stdin", stdin)
    message = fails("edges", "-", "-o", "out.png")
    assert "cannot read standard input: no image format that is known" in message


def test_features_of_one_pixel(succeeds, tmp_path):
    pytest.importorskip("matplotlib")
    Image.new("L", (1, 1), 7).save(tmp_path / "one.png")
    assert "response RMS" in succeeds("features", "one.png", "-o", "features.png")


def test_bare_command_prints_help(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out.startswith("usage: tricorr")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_files(succeeds, shell):
    pytest.importorskip("shtab")
    script = succeeds("completion", shell)
    assert "receptive-field" in script
    assert "kernel-size" in script


def test_help_does_not_import_torch(backend, tmp_path):
    code = (
        "import sys, runpy\n"
        "sys.argv = ['-m', '--help']\n"
        "try:\n"
        "    runpy.run_module('tricorr', run_name='__main__', alter_sys=False)\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    began = time.perf_counter()
    command = [sys.executable, "-m", "tricorr", "--help"]
    out = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert out.startswith("usage: tricorr")
    assert time.perf_counter() - began < 1.5  # 0.1 s on a quiet machine, 2 s with torch


def test_a_model_file_can_import_tricorr(backend, tmp_path):
    """A model file that `tricorr receptive-field` runs may import tricorr."""
    (tmp_path / "model.py").write_text(
        "import tricorr\n\n\ndef net():\n    return tricorr.Conv2D(1, 1, 5)\n"
    )
    command = [sys.executable, "-m", "tricorr", "receptive-field", "model.py:net"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "sees 5x5 input elements" in run.stdout, run.stderr
