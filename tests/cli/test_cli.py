"""The command line: results, exit codes, files, and one line for every error."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tricorr import __version__, corr2d
from tricorr.cli import main as command_line

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
tifffile = pytest.importorskip("tifffile")

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)
# matplotlib rounds inches to pixels, so only a lower bound of a picture's size is tested.
SMALLEST_PICTURE = (600, 300)


@pytest.fixture
def photo(tmp_path):
    """A 40 x 50 image in a directory of its own."""
    directory = tmp_path / "images"
    directory.mkdir()
    path = directory / "photo.png"
    levels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


@pytest.fixture
def pair(tmp_path):
    """(input, target, kernel): two files, and the kernel between them."""
    directory = tmp_path / "pair"
    directory.mkdir()
    x = torch.rand(30, 40)
    kernel = torch.tensor([[0.0, 1.0, 2.0], [-1.0, 0.5, 0.0]])
    np.save(directory / "x.npy", x.numpy())
    np.save(directory / "y.npy", torch.nn.functional.conv2d(x[None], kernel[None, None])[0].numpy())
    return directory / "x.npy", directory / "y.npy", kernel


def picture_size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def assert_is_picture(path):
    width, height = picture_size(path)
    assert (width, height) >= SMALLEST_PICTURE
    assert height >= SMALLEST_PICTURE[1]


@pytest.mark.parametrize("name", ["sobel", "scharr", "prewitt", "laplacian", "book"])
def test_edges_writes_pictures_and_numbers(prints_json, succeeds, photo, tmp_path, name):
    found = prints_json("edges", photo, "-o", "edges.png", "--filter", name)
    width = 49 if name == "book" else 50
    text = succeeds("edges", photo, "-o", "edges.npy", "--filter", name)
    assert text.startswith(f"edges.npy: {name}, ")
    numbers = np.load(tmp_path / "edges.npy")
    assert numbers.dtype == np.float32
    assert (numbers.min(), numbers.max()) == (found["min"], found["max"])
    assert picture_size(tmp_path / "edges.png") == (width, 40)
    assert found["shape"] == [40, width]
    signed = name in ("laplacian", "book")
    assert (found["min"] < 0) == signed
    assert found["white"] == pytest.approx(float(np.quantile(np.abs(numbers), 0.995)))
    assert found["black"] == (-found["white"] if signed else 0)
    assert found["backend"]
    with Image.open(tmp_path / "edges.png") as image:
        levels = np.asarray(image).astype(float)
    scaled = 255 * (numbers - found["black"]) / (found["white"] - found["black"])
    assert np.abs(levels - scaled.clip(0, 255)).max() <= 0.51


def test_edges_of_the_textbook(succeeds, tmp_path):
    image = np.ones((6, 8), np.uint8) * 255
    image[:, 2:6] = 0
    Image.fromarray(image).save(tmp_path / "book.png")
    text = succeeds("edges", "book.png", "-o", "edges.tif", "--filter", "book")
    assert "response -1 to 1 (brightness), 6x7" in text
    assert tifffile.imread(tmp_path / "edges.tif").tolist() == [[0, 1, 0, 0, 0, -1, 0]] * 6


def test_edges_of_a_flat_transparent_image(run, tmp_path):
    Image.new("RGBA", (12, 9), (10, 20, 30, 128)).save(tmp_path / "flat.png")
    code, out, err = run("edges", "flat.png", "-o", "edges.png", "--plot", "plot.png")
    assert code == 0
    assert err == "tricorr: note: flat.png: transparent pixels were laid over white\n"
    assert "picture: plot.png" in out
    assert_is_picture(tmp_path / "plot.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edges.png", "flat.png", "plot.png"]


def test_learn(prints_json, pair, tmp_path):
    x, y, kernel = pair
    options = ("--kernel-size", 2, 3, "--solver", "cg", "--plot", "fit.png", "-o", "k.npy")
    found = prints_json("learn", x, y, *options)
    assert np.abs(np.array(found["weight"]) - kernel.numpy()).max() < 1e-4
    assert np.allclose(np.load(tmp_path / "k.npy"), found["weight"])
    assert found["undetermined"] == 0
    assert found["history"][0] > found["loss"]
    assert found["steps"] == len(found["history"])
    assert found["bias"] is None
    assert (found["kernel"], found["picture"]) == ("k.npy", "fit.png")
    assert_is_picture(tmp_path / "fit.png")


def test_learn_with_bias_in_words(succeeds, pair, tmp_path):
    x, y, kernel = pair
    np.save(y, np.load(y) + 0.25)
    text = succeeds("learn", x, y, "--kernel-size", 2, 3, "--solver", "cg", "--bias", "-o", "k.npz")
    assert text.startswith("kernel 2x3 by cg, ")
    assert "bias 0.25\n" in text
    assert "condition number" in text
    assert "ran on: " in text
    with np.load(tmp_path / "k.npz") as saved:
        assert np.abs(saved["weight"] - kernel.numpy()).max() < 1e-4
        assert saved["bias"] == pytest.approx(0.25, abs=1e-4)


def test_learn_as_the_textbook_does(run, tmp_path):
    image = np.ones((6, 8), np.float32)
    image[:, 2:6] = 0
    np.save(tmp_path / "x.npy", image)
    target = corr2d(torch.from_numpy(image), torch.tensor([[1.0, -1.0]]))
    np.save(tmp_path / "y.npy", target.numpy())
    options = ("--kernel-size", 1, 2, "--steps", 10, "--step-size", "3e-2", "--log-every", 2)
    code, out, err = run("learn", "x.npy", "y.npy", *options, "--json")
    assert code == 0
    found = json.loads(out)
    # From the zero kernel the error is (1, -1) times 0.64^steps, and the loss 12 times its square.
    assert found["weight"][0] == pytest.approx([1 - 0.64**10, -1 + 0.64**10], abs=1e-5)
    assert found["history"] == pytest.approx([12 * 0.64 ** (2 * n) for n in range(10)], rel=1e-4)
    assert [line.split(",")[0] for line in err.splitlines() if line.startswith("epoch")] == [
        f"epoch {n}" for n in (2, 4, 6, 8, 10)
    ]
    assert found["max_step_size"] == pytest.approx(1 / 30, rel=1e-3)


def test_learn_notes_an_undetermined_kernel(prints_json, succeeds, tmp_path):
    np.save(tmp_path / "x.npy", np.tile(np.random.default_rng(0).random(20), (20, 1)))
    np.save(tmp_path / "y.npy", np.load(tmp_path / "x.npy")[1:-1, 1:-1])
    arguments = ("learn", "x.npy", "y.npy", "--kernel-size", 3, "--solver", "cg")
    found = prints_json(*arguments)
    assert found["undetermined"] == 6
    assert found["condition"] is None
    assert "every row of x is the same" in found["notes"][0]
    assert "note: the images cannot determine the kernel" in succeeds(*arguments)


def test_features(prints_json, succeeds, photo, tmp_path):
    found = prints_json("features", photo, "-o", "maps.png", "--size", 9)
    assert found["degrees"] == [0, 30, 60, 90, 120, 150]
    assert len(found["rms"]) == 6
    assert_is_picture(tmp_path / "maps.png")
    text = succeeds("features", photo, "-o", "maps.svg", "--wavelength", 4)
    assert "30 degrees: response RMS" in text
    assert "<svg" in (tmp_path / "maps.svg").read_text()


@pytest.mark.parametrize(
    ("layers", "size", "step", "start"),
    [
        (["2", "2"], [3, 3], [1, 1], [0, 0]),
        (["3"], [3, 3], [1, 1], [0, 0]),
        (["3,stride=2,padding=1", "7x7,dilation=2"], [27, 27], [2, 2], [-1, -1]),
        (["3x5,stride=1x2", "3"], [5, 9], [1, 2], [0, 0]),
    ],
)
def test_receptive_field(prints_json, succeeds, layers, size, step, start):
    found = prints_json("receptive-field", *layers)
    assert found == {"size": size, "step": step, "start": start, "layers": found["layers"]}
    assert f"sees {size[0]}x{size[1]} input elements" in succeeds("receptive-field", *layers)
    assert found["layers"][-1]["size"] == size
    assert len(found["layers"]) == len(layers)


def test_receptive_field_is_drawn(succeeds, tmp_path):
    pytest.importorskip("matplotlib")
    text = succeeds("receptive-field", "7,stride=2", "3x1", "--plot", tmp_path / "field.png")
    assert "1       window  11 x 7  2 x 2  0, 0" in text.splitlines()
    assert (tmp_path / "field.png").stat().st_size > 1000


def test_explain(prints_json, succeeds):
    shapes = ("explain", "--input", 8, 32, 56, 56, "--weight", 64, 32, 3, 3)
    found = prints_json(*shapes, "--padding", 1, "--device", "h200", "--dtype", "float16")
    assert found["geometry"]["P"] == 56
    assert found["dtype"] == "float16"
    assert found["passes"]["fprop"]["plan"]["kernel"] in ("fprop_tma", "fprop_reuse")
    assert found["passes"]["fprop"]["flops"] == 2 * 8 * 64 * 56 * 56 * 32 * 9
    assert "planned for NVIDIA H200" in succeeds(*shapes, "--device", "h200", "--channels-last")
    for padding in (("same",), ("valid",), (1, 2), (0, 1, 2, 3)):
        succeeds(*shapes, "--padding", *padding)
    two = prints_json("explain", "--input", 9, 9, "--weight", 3, 3, "--stride", 2, 1)
    assert (two["geometry"]["P"], two["geometry"]["Q"]) == (4, 7)


def test_doctor(prints_json, succeeds):
    found = prints_json("doctor")
    assert found["passed"] is True
    assert found["versions"]["tricorr"] == __version__
    assert found["versions"]["torch"]
    assert found["interpret"] is False
    assert found["backends"]["cpu"] == "PyTorch's CPU convolution"
    assert set(found["self_check"]["cpu"]["errors"]) == {
        "forward",
        "input gradient",
        "weight gradient",
    }
    assert "self-check cpu: passed" in succeeds("doctor")


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_doctor_fails_if_the_operators_do(run, monkeypatch, fault):
    def faulty(*arguments, **options):
        if fault == "broken":
            raise RuntimeError("no kernel\nimage is available")
        return 1.0001 * corr2d(*arguments, **options)

    monkeypatch.setattr("tricorr.autograd.functional.corr2d", faulty)
    code, out, err = run("doctor")
    assert (code, err) == (1, "")
    assert "self-check cpu: FAILED" in out


def test_demo(run, tmp_path):
    pytest.importorskip("skimage")
    code, out, err = run("demo", "-o", "pictures")
    assert code == 0, err
    assert "ran on: " in out
    assert "epoch 10, loss" in out
    assert "picture: pictures/tricorr-demo.png" in out
    (error,) = [line for line in out.splitlines() if line.startswith("largest error")]
    assert float(error.split()[-1]) < 1e-3
    assert_is_picture(tmp_path / "pictures" / "tricorr-demo.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blur"], "invalid choice: 'blur'"),
        (["edges"], "required: IMAGE, -o/--output (see tricorr edges --help)"),
        (["edges", "no.png", "-o", "out.png"], "no.png: No such file or directory"),
        (["edges", ".", "-o", "out.png"], ".: Is a directory"),
        (["edges", "photo.png", "-o", "out.png", "--filter", "canny"], "invalid choice: 'canny'"),
        (["edges", "photo.png", "-o", "no/out.png"], "there is no directory"),
        (["edges", "photo.png", "-o", "out.xyz"], "out.xyz is no image name"),
        (["edges", "photo.png", "-o", "out"], "out is no image name"),
        (["edges", "photo.png", "-o", "./photo.png"], "will not overwrite the input photo.png"),
        (["edges", "photo.png", "-o", "/dev/null"], "it is there, and not a file"),
        (["edges", "text.png", "-o", "out.png"], "text.png: no image format that is known"),
        (["edges", "empty.png", "-o", "out.png"], "empty.png: the file is empty"),
        (["edges", "cut.tif", "-o", "out.png"], "cannot read cut.tif: "),
        (["edges", "nan.npy", "-o", "out.png"], "nan.npy has pixels that are NaN or infinite"),
        (["edges", "five.npy", "-o", "out.png"], "it has 5 channels"),
        (["edges", "dot.npy", "-o", "out.png", "--filter", "book"], "window"),
        (["edges", "photo.png", "-o", "a.png", "--device", "tpu"], "--device must be auto, cpu"),
        (["edges", "photo.png", "-o", "a.png", "--device", "cuda:77"], "PyTorch sees"),
        (["edges", "photo.png", "-o", "a.png", "--plot", "a.png"], "are the same file, a.png"),
        (["edges", "photo.png", "-o", "a.png", "--plot", "b.npy"], "b.npy is no picture name"),
        (["learn", "photo.png", "photo.png"], "required: -k/--kernel-size"),
        (
            ["learn", "photo.png", "photo.png", "--kernel-size", "x"],
            "expected a whole number, or several such as 5x7, got 'x'",
        ),
        (["learn", "photo.png", "photo.png", "--kernel-size", "1", "2", "3"], "one number or two"),
        (["learn", "photo.png", "photo.png", "--kernel-size", "0"], "must not be empty"),
        (["learn", "photo.png", "photo.png", "--kernel-size", "99"], "99"),
        (["learn", "photo.png", "five.npy", "--kernel-size", "3"], "it has 5 channels"),
        (["learn", "photo.png", "dot.png", "--kernel-size", "3"], "y must hold 1 images of"),
        (
            ["learn", "nan.npy", "nan.npy", "--kernel-size", "3"],
            "x must hold numbers, got NaN in every pixel",
        ),
        (
            ["learn", "photo.png", "photo.png", "--kernel-size", "3", "--step-size", "9"],
            "the largest safe step is",
        ),
        (
            ["learn", "photo.png", "photo.png", "--kernel-size", "3", "--steps", "-1"],
            "steps must not be negative",
        ),
        (
            ["learn", "photo.png", "photo.png", "--kernel-size", "3", "-o", "k.txt"],
            "a kernel is saved as .npy, .npz or .fits, got 'k.txt'",
        ),
        (
            ["learn", "-k", "3", "--mask", "photo.png", "photo.png", "photo.png"],
            "files after --mask, --input-mask or --weights are theirs: IMAGEs come first",
        ),
        (["filter", "photo.png", "-o", "a.png", "--name", "gaussian"], "gaussian needs --sigma"),
        (
            ["filter", "photo.png", "-o", "a.png", "--name", "sobel", "--sigma", "2"],
            "--sigma is an option of gaussian, unsharp, not of sobel",
        ),
        (
            ["filter", "photo.png", "-o", "a.png", "--name", "log-gabor", "--size", "3"],
            "log-gabor has 6 planes for photo.png: no picture, write a .npy file",
        ),
        (
            ["filter", "photo.png", "five.npy", "-o", "a.png", "--name", "sobel"],
            "2 images go into a folder: -o a.png is a file's name; say a.png/",
        ),
        (
            ["filter", "photo.png", "-o", "a.png", "--format", "npy", "--name", "sobel"],
            "--format is for folders and standard output",
        ),
        (
            ["filter", "photo.png", "five.npy", "-o", "-", "--name", "sobel"],
            "-o - takes one image, got 2",
        ),
        (["filter", "photo.png", "-o", "a.palm", "--name", "sobel"], "a.palm is no image name"),
        (["apply", "five.npy", "photo.png", "-o", "a.png"], "it holds no kernel (R, S)"),
        (["apply", "no.npz", "photo.png", "-o", "a.png"], "no.npz: No such file"),
        (["features", "photo.png", "-o", "out.npy"], "out.npy is no picture name"),
        (["features", "photo.png", "-o", "out.png", "--size", "8"], "size must be odd"),
        (["features", "nan.npy", "-o", "out.png"], "NaN or infinite"),
        (["receptive-field", "3,size=2"], "got '3,size=2'"),
        (["receptive-field", "3x3x3"], "got '3x3x3'"),
        (["receptive-field", ""], "got ''"),
        (["receptive-field", "3,stride=0"], "stride must be positive, got 0"),
        (["explain", "--input", "1", "1", "9", "9", "--weight", "1", "2", "3", "3"], "channels"),
        (["explain", "--input", "9", "9", "--weight", "99", "99"], "99"),
        (["explain", "--input", "9", "-9", "--weight", "3", "3"], "no size in it is negative"),
        (["explain", "--input", *["99999999"] * 4, "--weight", "3", "3"], "too large for any"),
        (["explain", "--input", "9", "9", "--weight", "3", "3", "--padding", "x"], "got 'x'"),
        (["explain", "--input", "9", "9", "--weight", "3", "3", "--device", "x"], "one of a100"),
        (["explain", "--input", "9", "9", "--weight", "3", "3", "--channels-last"], "four sizes"),
        (["demo", "-o", "photo.png"], "photo.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_take_one_line(fails, tmp_path, arguments, message):
    Image.new("L", (30, 20), 100).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    tifffile.imwrite(tmp_path / "cut.tif", np.zeros((20, 30)))
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:-100])
    np.save(tmp_path / "nan.npy", np.full((9, 9), np.nan))
    np.save(tmp_path / "five.npy", np.zeros((5, 9, 9)))
    np.save(tmp_path / "dot.npy", np.zeros((1, 1)))
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert message in fails(*arguments)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("option", ["-o", "--plot"])
def test_outputs_are_checked_before_images_are_read(fails, monkeypatch, option):
    def read_image(*arguments, **options):
        raise AssertionError("images were read first")

    monkeypatch.setattr("tricorr.images.read.read_image", read_image)
    path = "no/kernel.npy" if option == "-o" else "no/plot.png"
    message = fails("learn", "x.npy", "y.npy", "--kernel-size", 3, option, path)
    assert "there is no directory" in message


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("PIL", "images", ("edges", "{photo}", "-o", "out.png")),
        ("matplotlib.figure", "plots", ("features", "{photo}", "-o", "out.png")),
        ("matplotlib.backend_bases", "plots", ("features", "{photo}", "-o", "out.png")),
        ("skimage", "images", ("demo",)),
    ],
)
def test_a_missing_library_is_an_error(fails, monkeypatch, photo, missing, extra, arguments):
    if missing == "skimage":
        pytest.importorskip("skimage")
    monkeypatch.setitem(sys.modules, missing, None)
    message = fails(*(argument.format(photo=photo) for argument in arguments))
    package = {"PIL": "pillow", "skimage": "scikit-image"}.get(missing, "matplotlib")
    assert f"{missing} is not installed: pip install {package} " in message
    assert f"pip install 'tricorr[{extra}]'" in message


def test_an_unexpected_exception_takes_one_line(run, monkeypatch):
    def broken(args):
        raise ZeroDivisionError("several\nlines")

    monkeypatch.setattr(command_line, "doctor", broken)
    code, out, err = run("doctor")
    assert (code, out) == (2, "")
    assert err.startswith("tricorr: error: ZeroDivisionError: several lines (this is a bug")
    monkeypatch.setenv("TRICORR_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        command_line.main(["doctor"])


def test_interrupted(run, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "doctor", interrupted)
    assert run("doctor") == (130, "", "tricorr: interrupted\n")


@pytest.mark.parametrize(
    "command",
    [
        None,
        "filter",
        "apply",
        "edges",
        "learn",
        "features",
        "receptive-field",
        "explain",
        "doctor",
        "completion",
        "demo",
    ],
)
def test_help(backend, capsys, command):
    with pytest.raises(SystemExit) as left:
        command_line.main(["--help"] if command is None else [command, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: tricorr {command or ''}".rstrip())
    assert "example" in out or command in ("doctor", "demo")
    assert max(map(len, out.splitlines())) <= 110


def tricorr(*arguments, directory, **options):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tricorr", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=directory, env=env, **pipes, **options)


def test_it_runs_as_a_program(backend, photo, tmp_path):
    process = tricorr("edges", photo, "-o", "edges.png", "--json", directory=tmp_path)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["output"] == "edges.png"
    process = tricorr("edges", "no.png", "-o", "edges.png", directory=tmp_path)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err == "tricorr: error: no.png: No such file or directory\n"


def test_version_and_a_closed_pipe(backend, tmp_path):
    process = tricorr("--version", directory=tmp_path)
    assert process.communicate()[0] == f"tricorr {__version__}\n"
    assert process.returncode == 0
    process = tricorr("receptive-field", "3", directory=tmp_path)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (1, "")
