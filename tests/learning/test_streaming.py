"""Kernels from image files that are read a few rows at a time."""

import numpy as np
import pytest
import torch

from tricorr import ArgumentError, ArgumentTypeError, KernelAccumulator, corr2d, learn_kernel
from tricorr.images import read_image
from tricorr.images.rows import open_rows
from tricorr.learning.streaming import accumulate

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

H, W = 29, 23


def numbers(shape, dtype=np.float64, seed=0):
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.random(shape).astype(dtype)
    return random.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def save(path, array):
    """Write the array in the format of the file's ending; the stem selects the kind of TIFF."""
    suffix = path.suffix
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".fits":
        pytest.importorskip("astropy.io.fits").PrimaryHDU(array).writeto(path)
    else:
        options = {
            "plain": {},
            "strips": {"compression": "zlib", "rowsperstrip": 8},
            "tiles": {"compression": "zlib", "tile": (16, 16)},
        }[path.stem]
        photometric = "rgb" if array.ndim == 3 else "minisblack"
        pytest.importorskip("tifffile").imwrite(path, array, photometric=photometric, **options)
    return path


def rows_one_by_one(image, step=1):
    H = image.extent[0]
    return torch.cat([image.read(i, min(H, i + step)) for i in range(0, H, step)], -2)


NAMES = ["image.npy", "image.fits", "plain.tif", "strips.tif", "tiles.tif"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_whole_image(backend, tmp_path, name, dtype):
    path = save(tmp_path / name, numbers((H, W), dtype))
    rows = open_rows(path)
    assert rows.shape == (H, W)
    whole = read_image(path).pixels
    for step in (1, 5, H):
        assert torch.equal(rows_one_by_one(rows, step), whole)
    assert torch.equal(rows.read(7, 9), whole[7:9])


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_kept(backend, tmp_path, name):
    path = save(tmp_path / name, numbers((H, W)))
    assert torch.equal(open_rows(path).read(0, H), torch.from_numpy(numbers((H, W))))
    if not name.endswith(".tif"):
        assert torch.equal(read_image(path, double=True).pixels, open_rows(path).read(0, H))


@pytest.mark.parametrize("name", ["plain.tif", "strips.tif", "tiles.tif"])
@pytest.mark.parametrize("planar", [False, True])
def test_colours_are_read_as_channels(backend, tmp_path, name, planar):
    tifffile = pytest.importorskip("tifffile")
    colours = numbers((H, W, 3), np.uint16)
    options = {"plain": {}, "strips": {"compression": "zlib", "rowsperstrip": 8}}
    options = options.get(name[:-4], {"compression": "zlib", "tile": (16, 16)})
    stored = colours.transpose(2, 0, 1) if planar else colours
    planes = {"planarconfig": "separate"} if planar else {}
    tifffile.imwrite(tmp_path / name, stored, photometric="rgb", **planes, **options)
    rows = open_rows(tmp_path / name)
    assert rows.shape == (3, H, W)
    expected = torch.from_numpy(colours.transpose(2, 0, 1) / np.float32(65535)).float()
    for step in (1, 9):
        assert torch.equal(rows_one_by_one(rows, step), expected)
    grey = rows_one_by_one(open_rows(tmp_path / name, grey=True))
    torch.testing.assert_close(grey, read_image(tmp_path / name, grey=True).pixels)


@pytest.mark.parametrize("shape", [(2, H, W), (H, W, 3), (1, H, W)])
def test_channels_of_arrays_are_those_of_read_image(backend, tmp_path, shape):
    path = save(tmp_path / "image.npy", numbers(shape, np.float32))
    whole = read_image(path).pixels
    for source in (path, np.load(path)):
        rows = open_rows(source)
        assert rows.shape == whole.shape
        assert torch.equal(rows_one_by_one(rows, 2), whole)  # two rows are not taken for channels


def test_inverted_numbers_are_turned_and_counts_are_kept(backend, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    levels = numbers((H, W), np.uint16)
    tifffile.imwrite(tmp_path / "negative.tif", levels, photometric="miniswhite")
    rows = open_rows(tmp_path / "negative.tif").read(3, 5)
    assert torch.equal(rows, torch.from_numpy((65535 - levels[3:5]) / np.float32(65535)).float())
    counts = open_rows(save(tmp_path / "counts.fits", levels)).read(0, H)
    assert torch.equal(counts, torch.from_numpy(levels.astype(np.float32)))  # not [0, 1]


def test_a_fits_image_in_an_extension_is_read(backend, tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    image = numbers((H, W), np.float32)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image)]).writeto(tmp_path / "second.fits")
    assert torch.equal(open_rows(tmp_path / "second.fits").read(0, H), torch.from_numpy(image))
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "none.fits")
    for read in (open_rows, read_image):
        with pytest.raises(ArgumentError, match="it holds no image"):
            read(tmp_path / "none.fits")


CASES = {
    "plain": {},
    "background": {"background": 2},
    "even_window": {"kernel_size": (2, 4), "bias": True},
    "one_row_window": {"kernel_size": (1, 3)},
    "zeros": {"padding": ((1, 0), (2, 1))},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": ((0, 3), (1, 1)), "padding_mode": "replicate"},
    "circular": {"padding": "same", "padding_mode": "circular", "flip": True},
    "weights": {"weights": True, "background": 1},
    "masks": {"mask": True, "input_mask": True, "background": "constant"},
    "masks_padded": {"mask": True, "input_mask": True, "padding": 1, "padding_mode": "circular"},
}


def case(name):
    """(x, y, settings, weights and masks) of a case."""
    settings = {"kernel_size": (3, 5), **CASES[name]}
    x = numbers((H, W))
    y = numbers((H, W), seed=1)
    if "padding" in settings and settings["padding"] != "same":
        empty = torch.from_numpy(x), torch.zeros(settings["kernel_size"], dtype=torch.float64)
        mode = settings.get("padding_mode", "zeros")
        shape = corr2d(*empty, padding=settings["padding"], padding_mode=mode).shape
        y = numbers(tuple(shape), seed=1)
    chosen = {}
    for key, image in (("mask", y), ("input_mask", x), ("weights", y)):
        if settings.pop(key, False):
            chosen[key] = numbers(image.shape, seed=2) * (numbers(image.shape, seed=3) > 0.15)
    for key, image in (("mask", y), ("input_mask", x)):
        if key in chosen:
            image[chosen[key] == 0] = np.nan
    return x, y, settings, chosen


@pytest.mark.parametrize("name", CASES)
def test_the_answer_does_not_depend_on_the_blocks(backend, tmp_path, name):
    x, y, settings, chosen = case(name)
    kernel_size = settings.pop("kernel_size")
    tensors = {key: torch.from_numpy(value) for key, value in chosen.items()}
    expected = learn_kernel(
        torch.from_numpy(x), torch.from_numpy(y), kernel_size, **settings, **tensors
    )
    files = {key: save(tmp_path / f"{key}.npy", value) for key, value in chosen.items()}
    paths = save(tmp_path / "x.npy", x), save(tmp_path / "y.npy", y)
    for rows in (1, 4, H, None):
        sums = accumulate(KernelAccumulator(kernel_size, **settings), *paths, rows=rows, **files)
        found = sums.solve()
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-10, atol=1e-11)
        assert found.quality.pixels == expected.quality.pixels
        assert found.rms == pytest.approx(expected.rms, rel=1e-9)
        assert found.notes == expected.notes
        for own, other in ((found.bias, expected.bias), (found.background, expected.background)):
            assert (own is None) == (other is None)
            if own is not None:
                torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("suffix", ["plain.tif", "tiles.tif", "image.fits"])
def test_formats_may_be_mixed(backend, tmp_path, suffix):
    x = numbers((H, W), np.float32)
    y = save(tmp_path / "y.npy", (x[:, :-1] - 2 * x[:, 1:]).astype(np.float64))
    sums = accumulate(KernelAccumulator((1, 2)), save(tmp_path / suffix, x), y, rows=6)
    torch.testing.assert_close(
        sums.solve().weight, torch.tensor([[1.0, -2.0]]).double(), rtol=0, atol=1e-5
    )


def test_several_pairs_of_arrays_give_one_kernel(backend, tmp_path):
    sums = KernelAccumulator(3, bias=True)
    images = [(numbers((H, W), seed=n), numbers((H, W), seed=n + 9)) for n in range(2)]
    for x, y in images:
        accumulate(sums, x, y, rows=5)
    tensors = [
        [torch.from_numpy(image) for image in images] for images in zip(*images, strict=True)
    ]
    expected = learn_kernel(*tensors, 3, bias=True)
    torch.testing.assert_close(sums.solve().weight, expected.weight, rtol=1e-10, atol=1e-11)


def test_changes_of_x_between_blocks_are_seen(backend):
    """Windows of one row do not overlap, so that variation is found only between blocks."""
    x = np.repeat(numbers((8, 1)), 9, axis=1)
    for rows in (1, 3, 8):
        found = accumulate(KernelAccumulator((1, 3)), x, x, rows=rows).solve()
        assert "(every column of x is the same)" in found.notes[0], rows


def test_progress_is_shown(backend, capsys):
    image = numbers((H, W))
    accumulate(KernelAccumulator(3), image, image, rows=9, progress=True)
    assert "learning: 100%" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_image(backend):
    """Every read is at most a block and its halo."""
    asked = []

    class Watched:
        shape = (400, 12)

        def __getitem__(self, rows):
            asked.append(rows.stop - rows.start)
            return numbers(self.shape, np.float32)[rows]

    accumulate(KernelAccumulator((5, 3)), Watched(), Watched(), rows=10)
    assert max(asked) == 14


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((9, 9), (5, 9)), {}, "must have 7 x 7 (no padding) or 9 x 9 (as x) pixels"),
        (((9, 9), (7, 7)), {"mask": (9, 9)}, "mask must have the size of y, 7 x 7, got 9 x 9"),
        (((9, 9), (7, 7)), {"input_mask": (7, 7)}, "input_mask must have the size of x, 9 x 9"),
        (((2, 9), (2, 9)), {}, "window"),
        (((9,), (9,)), {}, "must be (H, W) or (C, H, W)"),
        (((9, 0), (9, 0)), {}, "it has no pixels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(backend, arguments, options, message):
    arrays = [np.ones(shape) for shape in arguments]
    options = {name: np.ones(shape) for name, shape in options.items()}
    with pytest.raises(ArgumentError) as error:
        accumulate(KernelAccumulator(3), *arrays, **options)
    assert message in str(error.value)


def test_padding_larger_than_the_image_is_refused(backend):
    sums = KernelAccumulator(9, padding=4, padding_mode="reflect")
    with pytest.raises(ArgumentError, match="can pad a height of 3 by at most 2, got 4"):
        accumulate(sums, np.ones((3, 12)), np.ones((3, 12)))


@pytest.mark.parametrize(
    ("library", "start"),
    [("numpy", b"\x93NUMPY\1\0"), ("tifffile", b"II*\0\0\0\0\0"), ("astropy", b"SIMPLE  ")],
)
def test_damaged_files_are_refused(backend, tmp_path, library, start):
    pytest.importorskip(library)
    (tmp_path / "damaged").write_bytes(start + bytes(20))
    with pytest.raises(ArgumentError, match="cannot read"):
        open_rows(tmp_path / "damaged")


def test_files_without_an_image_are_refused(backend, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    with pytest.raises(ArgumentError, match=r"expected a \.npy, TIFF or FITS file"):
        open_rows(tmp_path / "photo.png")
    np.save(tmp_path / "text.npy", np.array([["a", "b"]]))
    with pytest.raises(ArgumentError, match="numbers are no brightness"):
        open_rows(tmp_path / "text.npy")
    with pytest.raises(ArgumentTypeError, match="a file's name or an array, got 5"):
        open_rows(5)
    with pytest.raises(ArgumentError, match="rows must be positive, got 0"):
        accumulate(KernelAccumulator(1), np.ones((3, 3)), np.ones((3, 3)), rows=0)
    with pytest.raises(OSError, match="No such file"):
        open_rows(tmp_path / "missing.npy")
