"""Filters on all kinds of input: arrays, Pillow images, files, integers, channels at the end."""

import contextlib

import numpy as np
import pytest
import torch

from tricorr import filters

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

EVERY = {
    "sobel": filters.sobel,
    "spatial_gradient": filters.spatial_gradient,
    "laplacian": filters.laplacian,
    "gaussian": lambda x, **k: filters.gaussian_blur(x, 1.0, **k),
    "box": lambda x, **k: filters.box_blur(x, 3, **k),
    "unsharp": filters.unsharp_mask,
    "gabor": lambda x, **k: filters.gabor(x, 0.4, (0.0, 1.0), **k),
    "log_gabor": lambda x, **k: filters.log_gabor(x, 5, 3, **k),
}
MAPS = ("spatial_gradient", "gabor", "log_gabor")


@pytest.fixture
def colours():
    """A uint8 image (H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (12, 14, 3), np.uint8)


@pytest.mark.parametrize("name", EVERY)
def test_arrays_give_arrays(backend, name):
    array = np.random.default_rng(0).random((12, 14))
    result = EVERY[name](array)
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, EVERY[name](torch.from_numpy(array)).numpy())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_channels_come_back_where_they_were(backend, name, kind, colours):
    planes = EVERY[name](torch.from_numpy(colours).movedim(-1, 0))
    result = EVERY[name](kind(colours), channel_axis=-1)
    assert type(result) is type(kind(colours))
    assert result.shape == ((planes.shape[1],) if name in MAPS else ()) + (12, 14, 3)
    assert torch.equal(torch.as_tensor(result).movedim(-1, 0), planes)
    assert (EVERY[name](kind(colours), channel_axis=2) == result).all()
    batch = kind(np.stack([colours, colours[::-1]]))
    np.testing.assert_array_equal(EVERY[name](batch, channel_axis=3)[0], result)
    between = EVERY[name](kind(np.ascontiguousarray(colours.swapaxes(1, 2))), channel_axis=1)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(between), -2, -1), result)


def test_leading_channels_may_be_named(backend):
    narrow = torch.rand(64, 48, 3)
    result = filters.sobel(narrow, channel_axis=0)
    assert torch.equal(result[5], filters.sobel(narrow[5]))


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        *((kind, np.float32) for kind in (np.bool_, np.int8, np.uint8, np.int16, np.uint16)),
        *((kind, np.float64) for kind in (np.int32, np.uint32, np.int64, np.uint64)),
        *((kind, np.dtype(kind).newbyteorder("=")) for kind in (np.float16, ">f4", np.float64)),
    ],
    ids=str,
)
def test_numbers_keep_their_scale(backend, dtype, result):
    least, most = (0, 1) if np.dtype(dtype).kind in "bf" else (
        np.iinfo(dtype).min, np.iinfo(dtype).max
    )  # fmt: skip
    if np.dtype(dtype).itemsize == 8 and np.dtype(dtype).kind in "iu":
        least, most = 0, 2**52  # float64 holds no larger ones
    array = np.array([[least, most, most]] * 3).astype(dtype)
    for image in (array, array[::-1], np.asfortranarray(array)):
        response = filters.spatial_gradient(image, "diff", normalized=False)
        assert response.dtype == result
        assert response[0].tolist() == [[most - least, most - least, 0]] * 3
    if np.dtype(dtype).isnative:
        tensor = filters.spatial_gradient(torch.from_numpy(array), "diff", normalized=False)
        np.testing.assert_array_equal(tensor.numpy(), response)


def test_files_and_pillow_images_give_the_results_of_their_arrays(backend, colours, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    expected = filters.laplacian(colours, channel_axis=-1)
    image = pillow.fromarray(colours)
    image.save(tmp_path / "colours.png")
    image.convert("L").save(tmp_path / "grey.png")
    for held in (image, tmp_path / "colours.png", str(tmp_path / "colours.png")):
        np.testing.assert_array_equal(filters.laplacian(held), expected)
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(filters.sobel(tmp_path / "grey.png"), filters.sobel(grey))
    palette = image.quantize(16)
    looked_up = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(filters.sobel(palette), filters.sobel(looked_up, channel_axis=-1))
    deep = (grey.astype(np.uint16) * 257) ^ 3
    pillow.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(filters.sobel(tmp_path / "deep.png"), filters.sobel(deep))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(backend, name, dtype, low):
    image = (255 * torch.rand(12, 13)).to(dtype)
    expected = EVERY[name](image)
    with torch.autocast("cpu", low):
        result = EVERY[name](image)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("where", ["context", "default"])
def test_the_default_device_does_not_matter(backend, name, where):
    image = torch.rand(12, 13)
    expected = EVERY[name](image)
    if where == "context":
        context = torch.device("meta")
    else:
        context = contextlib.ExitStack()
        context.callback(torch.set_default_device, None)
        torch.set_default_device("meta")
    with context:
        result = EVERY[name](image)
    assert torch.equal(result, expected)
    assert EVERY[name](image.to("meta")).shape == expected.shape


def test_banks_are_made_on_the_given_device(backend):
    banks = (
        filters.sobel_kernels,
        filters.scharr_kernels,
        filters.prewitt_kernels,
        filters.difference_kernels,
        filters.laplacian_kernel,
        filters.textbook_edge_kernel,
        filters.log_gabor_kernels,
        lambda **k: filters.gabor_kernels(0.2, (0.0, 1.0), **k),
        lambda **k: filters.gaussian_window(1.0, 5, **k),
    )
    for bank in banks:
        assert bank(device="meta").is_meta
        with torch.device("meta"):
            assert bank().is_meta
            assert torch.equal(bank(device="cpu"), bank(device=torch.device("cpu")))
