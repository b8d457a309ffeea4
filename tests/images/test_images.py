"""Image files of every usual kind are read and written."""

import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch

from tricorr import ArgumentError
from tricorr.images.output import check_output, replacing
from tricorr.images.read import LUMA, check_image_name, read_image, write_image

Image = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")

H, W = 5, 7


@pytest.fixture
def levels():
    """Random 16-bit colours (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 65536, (H, W, 3), dtype=np.uint16)


def expected(array, white):
    return torch.from_numpy(array.astype(np.float32) / np.float32(white))


def png(path, array, colour):
    """Write a 16-bit PNG. Pillow writes these only in grey."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".pgm", ".webp"])
def test_8_bit_grey_is_read(tmp_path, levels, suffix):
    grey = (levels[..., 0] >> 8).astype(np.uint8)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(grey).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    picture = read_image(path, grey=suffix == ".webp")  # WebP has no grey
    assert picture.pixels.dtype == torch.float32
    assert picture.white == 255
    assert picture.notes == ()
    torch.testing.assert_close(picture.pixels, expected(grey, 255), rtol=0, atol=1e-6)


def test_rgb_and_its_luma_are_read(tmp_path, levels):
    colour = (levels >> 8).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(colour).save(path)
    picture = read_image(path)
    assert picture.kind == "8-bit RGB PNG"
    assert torch.equal(picture.pixels, expected(colour, 255).permute(2, 0, 1))
    luma = torch.from_numpy((colour / 255 @ np.array(LUMA)).astype(np.float32))
    torch.testing.assert_close(read_image(path, grey=True).pixels, luma, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, levels, mode):
    channels = len(mode)
    samples = np.zeros((H, W, channels), np.uint8)
    samples[..., :-1] = (levels >> 8)[..., : channels - 1]
    path = tmp_path / "image.png"
    samples[..., -1] = 255
    Image.fromarray(samples, mode=None).save(path)
    opaque = read_image(path)
    assert opaque.notes == ()
    samples[0, :, -1], samples[1, :, -1] = 0, 51
    Image.fromarray(samples).save(path)
    picture = read_image(path)
    assert picture.notes == ("transparent pixels were laid over white",)
    assert (picture.pixels[..., 0, :] == 1).all()
    torch.testing.assert_close(
        picture.pixels[..., 1, :], opaque.pixels[..., 1, :] * 0.2 + 0.8, rtol=0, atol=1e-6
    )
    assert torch.equal(picture.pixels[..., 2:, :], opaque.pixels[..., 2:, :])


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_is_looked_up(tmp_path, transparent):
    image = Image.new("P", (W, H), 1)
    image.putpalette([0, 0, 0, 255, 0, 51])
    path = tmp_path / "image.png"
    image.save(path, **({"transparency": 1} if transparent else {}))
    picture = read_image(path)
    assert picture.pixels.shape == (3, H, W)
    colour = [1, 1, 1] if transparent else [1, 0, 0.2]
    assert torch.allclose(picture.pixels[:, 2, 3], torch.tensor(colour, dtype=torch.float32))
    assert bool(picture.notes) == transparent


def test_one_bit_images_are_read(tmp_path):
    array = np.arange(H * W).reshape(H, W) % 3 == 0
    path = tmp_path / "image.png"
    Image.fromarray(array).save(path)
    assert torch.equal(read_image(path).pixels, torch.from_numpy(array).float())


def test_cmyk_becomes_rgb_and_says_so(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=95)
    picture = read_image(path)
    assert picture.notes == ("CMYK was converted to RGB without its colour profile",)
    red = picture.pixels[:, 8, 8]
    assert red[0] > 0.95
    assert red[1:].max() < 0.05


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_the_camera_is_applied(tmp_path, orientation):
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255  # bright in the corner at the top left
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "image.jpg"
    Image.fromarray(np.ascontiguousarray(turn(upright))).save(path, exif=exif, quality=100)
    pixels = read_image(path).pixels
    torch.testing.assert_close(pixels, expected(upright, 255), rtol=0, atol=0.02)


def test_16_bit_grey_png_is_read(tmp_path, levels):
    path = tmp_path / "image.png"
    Image.fromarray(levels[..., 0]).save(path)
    picture = read_image(path)
    assert (picture.kind, picture.white, picture.notes) == ("16-bit grey PNG", 65535, ())
    assert torch.equal(picture.pixels, expected(levels[..., 0], 65535))


def test_16_bit_colour_png_keeps_its_bits(tmp_path, levels):
    pytest.importorskip("imagecodecs")
    path = tmp_path / "image.png"
    png(path, levels, 2)
    picture = read_image(path)
    assert (picture.notes, picture.kind) == ((), "16-bit RGB PNG")
    assert torch.equal(picture.pixels, expected(levels, 65535).permute(2, 0, 1))


def test_16_bit_colour_png_without_a_reader_says_what_is_lost(tmp_path, levels, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    path = tmp_path / "image.png"
    png(path, levels, 2)
    picture = read_image(path)
    assert picture.notes == (
        "only the upper 8 of the 16 bits of each colour were read: pip install imagecodecs reads "
        "all",
    )
    torch.testing.assert_close(
        picture.pixels, expected(levels, 65535).permute(2, 0, 1), rtol=0, atol=1 / 255
    )


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": True}], ids=str)
def test_16_bit_tiff_is_read(tmp_path, levels, options):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, levels[..., 0], **options)
    picture = read_image(path)
    assert picture.white == 65535
    assert torch.equal(picture.pixels, expected(levels[..., 0], 65535))


def test_signed_bytes_of_a_tiff_are_signed(tmp_path):
    path = tmp_path / "image.tif"
    levels = np.array([[-5, 3], [100, -128]], np.int8)
    tifffile.imwrite(path, levels)
    assert read_image(path).pixels.tolist() == levels.tolist()


@pytest.mark.parametrize("planar", [False, True])
def test_16_bit_colour_tiff_keeps_its_bits(tmp_path, levels, planar):
    path = tmp_path / "image.tif"
    if planar:
        samples = np.ascontiguousarray(levels.transpose(2, 0, 1))
        tifffile.imwrite(path, samples, photometric="rgb", planarconfig="separate")
    else:
        tifffile.imwrite(path, levels, photometric="rgb")
    picture = read_image(path)
    assert picture.notes == ()
    assert torch.equal(picture.pixels, expected(levels, 65535).permute(2, 0, 1))


def test_16_bit_rgba_tiff_is_read(tmp_path, levels):
    path = tmp_path / "image.tif"
    samples = np.concatenate([levels, np.zeros((H, W, 1), np.uint16)], axis=2)
    tifffile.imwrite(path, samples, photometric="rgb", extrasamples=["unassalpha"])
    picture = read_image(path)
    assert (picture.pixels == 1).all()
    assert picture.notes == ("transparent pixels were laid over white",)


def test_inverted_16_bit_tiff_is_read(tmp_path, levels):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, levels[..., 0], photometric="miniswhite")
    assert torch.equal(read_image(path).pixels, expected(65535 - levels[..., 0], 65535))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint32", "int16"])
def test_other_numbers_of_a_tiff_are_kept(tmp_path, dtype):
    numbers = (np.arange(H * W).reshape(H, W) * 7 - (0 if dtype[0] == "u" else 20)).astype(dtype)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, numbers)
    picture = read_image(path)
    assert picture.white == 1
    assert torch.equal(picture.pixels, torch.from_numpy(numbers.astype(np.float32)))


def test_the_first_of_several_pages_is_read(tmp_path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.zeros((4, H, W), np.uint8), photometric="minisblack")
    assert read_image(path).notes == ("only the first of 4 images was read",)
    tifffile.imwrite(path, np.zeros((4, H, W), np.float64), photometric="minisblack")
    picture = read_image(path)
    assert picture.notes == ("only the first of 4 images was read",)
    assert picture.pixels.shape == (H, W)


@pytest.mark.parametrize(
    ("shape", "result"),
    [((H, W), (H, W)), ((1, H, W), (H, W)), ((2, H, W), (2, H, W)), ((H, W, 3), (3, H, W))],
)
def test_arrays_are_read(tmp_path, shape, result):
    path = tmp_path / "image.npy"
    np.save(path, np.full(shape, -2.5))
    pixels = read_image(path).pixels
    assert pixels.shape == result
    assert (pixels == -2.5).all()
    np.save(path, np.full(shape, 51, np.uint8))
    assert torch.allclose(read_image(path).pixels, torch.tensor(0.2))
    np.save(path, np.ones(shape, bool))
    assert (read_image(path).pixels == 1).all()


def refused(path, **options):
    with pytest.raises(ArgumentError) as error:
        read_image(path, **options)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 2), complex), "complex128 numbers are no brightness"),
        (np.array([[None]]), "Object arrays cannot be loaded"),
        (np.zeros(5), "expected (H, W) or (C, H, W), got shape (5,)"),
        (np.zeros((0, 5)), "it has no pixels (shape (0, 5))"),
        (np.array([["a"]]), "numbers are no brightness"),
    ],
)
def test_arrays_without_an_image_are_refused(tmp_path, array, reason):
    path = tmp_path / "image.npy"
    np.save(path, array, allow_pickle=True)
    assert reason in refused(path)


def test_files_without_an_image_are_refused(tmp_path, levels):
    path = tmp_path / "image.png"
    path.write_bytes(b"")
    assert "the file is empty" in refused(path)
    path.write_text("this is no image")
    assert "no image format that is known" in refused(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)
    np.save(tmp_path / "image.npy", np.zeros((H, W)))
    whole = (tmp_path / "image.npy").read_bytes()
    (tmp_path / "image.npy").write_bytes(whole[:-9])
    refused(tmp_path / "image.npy")
    tifffile.imwrite(tmp_path / "image.tif", levels)
    whole = (tmp_path / "image.tif").read_bytes()
    for length in (8, 30, len(whole) - 50):
        (tmp_path / "image.tif").write_bytes(whole[:length])
        refused(tmp_path / "image.tif")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


def test_damaged_files_never_raise_anything_else(tmp_path, levels):
    """With bytes changed at random, there is an image or an error with a message of one line."""
    random = np.random.default_rng(0)
    originals = {}
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp", "a.webp"):
        Image.fromarray((levels >> 8).astype(np.uint8)).save(tmp_path / name)
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", levels[..., 0].astype(np.float64))
    np.save(tmp_path / "a.npy", levels)
    for path in sorted(tmp_path.iterdir()):
        originals[path] = path.read_bytes()
    for path, whole in originals.items():
        for _ in range(25):
            damaged = np.frombuffer(whole, np.uint8).copy()
            damaged[random.integers(0, min(len(whole), 200), 4)] = random.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                read_image(path)
            except ArgumentError as error:
                assert "\n" not in str(error)  # noqa: PT017 - some are read all the same


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.new("L", (50, 50)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "more than 2000 pixels" in refused(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert read_image(path).pixels.shape == (50, 50)  # Pillow's warning is not passed on


def test_grey_of_other_channels_is_refused(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, np.zeros((5, H, W)))
    assert "as one grey image: it has 5 channels" in refused(path, grey=True)


@pytest.mark.parametrize(("missing", "name"), [("PIL", "a.png"), ("tifffile", "a.tif")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, missing, name):
    path = tmp_path / name
    if missing == "PIL":
        Image.new("L", (4, 4)).save(path)
    else:
        tifffile.imwrite(path, np.zeros((4, 4)))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing} is not .*'tricorr\[images\]'"):
        read_image(path)


@pytest.mark.parametrize("shape", [(H, W), (3, H, W)])
def test_written_images_are_read_back(tmp_path, shape):
    pixels = torch.rand(shape)
    for name in ("image.npy", "image.tif"):
        write_image(tmp_path / name, 5 * pixels - 2)
        assert torch.equal(read_image(tmp_path / name).pixels, 5 * pixels - 2)
    write_image(tmp_path / "image.png", pixels)
    torch.testing.assert_close(
        read_image(tmp_path / "image.png").pixels, pixels, rtol=0, atol=0.51 / 255
    )
    write_image(tmp_path / "image.png", torch.full(shape, 7.0))
    assert (read_image(tmp_path / "image.png").pixels == 1).all()
    assert sorted(os.listdir(tmp_path)) == ["image.npy", "image.png", "image.tif"]


def test_shapes_and_names_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"an image is \(H, W\) or \(3, H, W\), got shape"):
        write_image(tmp_path / "image.png", torch.zeros(2, 4, 4))
    for name in ("image", "image.xyz", "image.npz"):
        with pytest.raises(ArgumentError, match="no image name that can be written"):
            check_image_name(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "suffix", ["palm", "blp", "bufr", "emf", "grib", "h5", "hdf", "msp", "qoi", "wmf", "xbm"]
)
def test_formats_that_pillow_lists_and_cannot_write_are_refused(tmp_path, suffix):
    with pytest.raises(ArgumentError, match=f"a.{suffix} is no image name that can be written"):
        check_image_name(tmp_path / f"a.{suffix}")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    path.write_text("old")

    save = Image.Image.save

    def full(image, target, *of, **options):
        if not isinstance(target, os.PathLike):
            return save(image, target, *of, **options)
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_image(path, torch.zeros(4, 4))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["image.png"]


def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch):
    source = tmp_path / "source.png"
    source.write_text("data")
    (tmp_path / "link.png").symlink_to(source)
    check_output(tmp_path / "new.png", (source,))
    with pytest.raises(ArgumentError, match="there is no directory"):
        check_output(tmp_path / "no" / "new.png")
    with pytest.raises(ArgumentError, match="not a file"):
        check_output(tmp_path)
    with pytest.raises(ArgumentError, match="not a file"):
        check_output(os.devnull)
    for same in (source, tmp_path / "link.png"):
        with pytest.raises(ArgumentError, match="will not overwrite the input"):
            check_output(same, (source,))

    def read_only(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(ArgumentError, match="Permission denied"):
        check_output(tmp_path / "new.png")
    assert sorted(os.listdir(tmp_path)) == ["link.png", "source.png"]


def test_replacing_a_file_follows_links_and_keeps_usual_permissions(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(source)
    with replacing(link) as temporary:
        temporary.write_text("new")
        assert source.read_text() == "old"
    assert link.is_symlink()
    assert source.read_text() == "new"
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    assert source.stat().st_mode == plain.stat().st_mode
