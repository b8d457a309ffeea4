"""Reads and writes image files as tensors, by Pillow and tifffile."""

from __future__ import annotations

import gzip
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..ops import ArgumentError
from .extras import needs
from .output import StrPath, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

#: Rec. 709 luma: how bright red, green and blue look.
LUMA = (0.2126, 0.7152, 0.0722)
#: Integer types of pictures: their largest value becomes 1.0. Other values are kept.
WHITE = {"uint8": 255.0, "uint16": 65535.0}
#: The first eight bytes of every FITS file.
FITS_START = b"SIMPLE  "


@dataclass(frozen=True)
class Picture:
    """An image file as it was read.

    Attributes:
        pixels: float32 (or float64, if asked for), (H, W) if grey, else (C, H, W).
        kind: what the file holds, for people: "8-bit RGB JPEG".
        white: the number in the file that is 1.0 in `pixels`: 255, 65535, or 1.
        notes: sentences about what was dropped or converted.
    """

    pixels: torch.Tensor
    kind: str
    white: float
    notes: tuple[str, ...] = ()


def read_image(path: StrPath, *, grey: bool = False, double: bool = False) -> Picture:
    """An image of any usual format, or a NumPy array, as a float32 tensor.

    8-bit and 16-bit images are scaled to [0, 1], without a change of gamma; floats, wider integers
    and all FITS images keep their values. The camera's orientation (EXIF) is applied, palettes are
    looked up, CMYK and the like become RGB, transparent pixels are blended with white. Of several
    pages the first is read.

    Args:
        path: an image that Pillow or tifffile reads; a FITS file, perhaps with gzip, (its first
            image, or the extension in brackets: `a.fits[1]`, `a.fits[SCI]`, `a.fits[SCI,2]`; row 0
            is the first in the file, which astronomers draw at the bottom; BSCALE and BZERO are
            applied, BLANK becomes NaN); or a .npy file that holds (H, W), (C, H, W) or
            (H, W, 3 or 4) numbers.
        grey: whether colours become Rec. 709 luma, computed on the values as they are stored.
        double: whether float64 numbers stay what they are.

    Raises:
        OSError: the file is missing or may not be read.
        ArgumentError: it is empty, damaged, too large, or holds no image.
        ModuleNotFoundError: the library that reads it is not installed.
    """
    file_path, extension = fits_extension(path)
    path = Path(path)
    start = first_bytes(file_path)
    if not start:
        raise ArgumentError(f"cannot read {path}: the file is empty")
    is_array = start.startswith(b"\x93NUMPY")
    try:
        if is_array:
            array, kind, notes = _from_numpy(path)
        elif start == FITS_START:
            is_array, (array, kind, notes) = True, _from_fits(path)
        else:
            if extension is not None:
                raise ArgumentError(f"cannot read {path}: only FITS files have extensions")
            array, kind, notes = _from_pillow(path)
    except (ArgumentError, ModuleNotFoundError):
        raise
    except MemoryError as error:
        raise ArgumentError(f"cannot read {path}: it does not fit into memory") from error
    # For damaged files the libraries raise almost anything: SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise ArgumentError(f"cannot read {path}: {_one_line(error)}") from error
    if array.size == 0:
        raise ArgumentError(f"cannot read {path}: it has no pixels (shape {array.shape})")
    pixels, white = brightness(array, double)
    if pixels.ndim == 3 and not is_array:
        pixels = _without_alpha(pixels, notes)
    return Picture(channels_first(pixels, grey, path), kind, white, tuple(notes))


def brightness(array: NDArray[Any], double: bool) -> tuple[NDArray[Any], float]:
    """The values of a file as floats, and the value that became 1.0."""
    white = WHITE.get(array.dtype.name, 1.0)
    if double and array.dtype.name == "float64":
        return array.astype(np.float64), white
    return array.astype(np.float32) / np.float32(white), white


def channels_first(pixels: NDArray[Any], grey: bool, path: StrPath) -> torch.Tensor:
    """(H, W) or (H, W, C) as (H, W) or (C, H, W); colours as luma if `grey`.

    Raises:
        ArgumentError: `grey`, and channels that are no colours.
    """
    if pixels.ndim == 3 and grey and pixels.shape[2] == 3:
        pixels = pixels @ np.array(LUMA, pixels.dtype)
    elif pixels.ndim == 3 and grey and pixels.shape[2] > 1:
        raise ArgumentError(
            f"cannot read {path} as one grey image: it has {pixels.shape[2]} channels"
        )
    if pixels.ndim == 3:
        pixels = pixels.transpose(2, 0, 1)
        pixels = pixels[0] if len(pixels) == 1 else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels))


def check_image_name(path: StrPath) -> None:
    """Checks that `write_image` knows the format of this file name.

    Raises:
        ArgumentError: it does not.
        ModuleNotFoundError: Pillow is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".npy", ".tif", ".tiff"):
        return
    with needs("images"):
        from PIL import Image
    try:
        # Pillow also lists formats that it cannot write: try grey and colours.
        for mode in ("L", "RGB"):
            Image.new(mode, (16, 16)).save(BytesIO(), Image.registered_extensions()[suffix])
    except (KeyError, OSError, ValueError) as error:
        raise ArgumentError(
            f"{Path(path).name} is no image name that can be written: expected .png, .jpg, .webp, "
            ".tif (float32 values), .npy (float32 values) or another that Pillow writes"
        ) from error


def write_image(path: StrPath, pixels: torch.Tensor) -> None:
    """Writes an image in the format of its name, completely or not at all.

    .npy and .tif store float32 values. All other formats store 8 bits: 0 is black, 1 is white, and
    values outside are clipped.

    Args:
        path: the file, replaced if it exists.
        pixels: (H, W) or (3, H, W), any dtype and device; .npy takes any (C, H, W).

    Raises:
        ArgumentError: another shape, or a name of no known format.
        OSError: the file cannot be written.
    """
    check_image_name(path)
    suffix = Path(path).suffix.lower()
    array = pixels.detach().float().numpy(force=True)
    if array.ndim != 2 and (array.ndim != 3 or (suffix != ".npy" and array.shape[0] != 3)):
        raise ArgumentError(f"an image is (H, W) or (3, H, W), got shape {tuple(array.shape)}")
    with replacing(path) as temporary:
        if suffix == ".npy":
            np.save(temporary, array)
            return
        if array.ndim == 3:
            array = np.ascontiguousarray(array.transpose(1, 2, 0))
        if suffix in (".tif", ".tiff"):
            with needs("images"):
                import tifffile
            tifffile.imwrite(temporary, array, photometric="rgb" if array.ndim == 3 else None)
            return
        from PIL import Image

        levels = np.nan_to_num(array.clip(0, 1) * 255).round().astype(np.uint8)
        Image.fromarray(levels).save(temporary)


def _from_numpy(path: Path) -> tuple[NDArray[Any], str, list[str]]:
    array = np.load(path, allow_pickle=False)
    return as_rows(array, path), f"{array.dtype} array {array.shape}", []


def as_rows(array: NDArray[Any], path: StrPath) -> NDArray[Any]:
    """(H, W) or (C, H, W) as (H, W) or (H, W, C); (H, W, 3 or 4) is taken for the latter.

    Raises:
        ArgumentError: another shape, or no numbers.
    """
    shape = array.shape
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "uif":
        raise ArgumentError(f"cannot read {path}: {array.dtype} numbers are no brightness")
    if array.ndim not in (2, 3):
        raise ArgumentError(f"cannot read {path}: expected (H, W) or (C, H, W), got shape {shape}")
    if array.ndim == 3 and not is_channels_last(shape):
        array = array.transpose(1, 2, 0)
    return array


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an array is (H, W, 3 or 4), and not (C, H, W)."""
    return len(shape) == 3 and shape[2] in (3, 4) and shape[0] > 4


def _from_fits(path: Path) -> tuple[NDArray[Any], str, list[str]]:
    with open_fits(path) as image:
        array = fits_numbers(image[...])
    return as_rows(array, path), f"{array.dtype} FITS {array.shape}", []


def fits_numbers(array: NDArray[Any]) -> NDArray[Any]:
    """FITS integers as floats of the same value, not scaled by a white level."""
    if array.dtype.kind == "f":
        return array
    return array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)


def fits_extension(path: StrPath) -> tuple[Path, str | None]:
    """The file name and the extension in brackets after it: "1", "SCI" or "SCI,2"."""
    text = str(path)
    found = re.fullmatch(r"(.+)\[([^\[\]]+)\]", text)
    if found is None or Path(text).exists():
        return Path(path), None
    return Path(found[1]), found[2]


def first_bytes(path: Path) -> bytes:
    """The first eight bytes of a file, after decompression by gzip."""
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith(b"\x1f\x8b"):
        return start
    with gzip.open(path) as file:
        return file.read(8)


@contextmanager
def open_fits(path: StrPath) -> Iterator[Any]:
    """An image of a FITS file that is read when it is sliced.

    Args:
        path: the file, of which the first image is taken, or `file[extension]`.

    Raises:
        ArgumentError: it holds none, or none of that name or number.
        ModuleNotFoundError: astropy is not installed.
    """
    with needs("fits"):
        from astropy.io import fits
    file_path, extension = fits_extension(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about nonstandard headers
        with fits.open(file_path, memmap=False) as units:
            for unit in units if extension is None else [_unit(units, extension, path)]:
                if unit.is_image and unit.shape:
                    yield unit.section
                    return
    raise ArgumentError(f"cannot read {path}: it holds no image")


def _unit(units: Any, extension: str, path: StrPath) -> Any:
    """A unit of an open FITS file by number, name, or name and version."""
    name, _, version = extension.partition(",")
    try:
        if name.isdecimal():
            return units[int(name)]
        return units[(name, int(version))] if version else units[name]
    except (KeyError, IndexError, ValueError):
        held = ", ".join(f"{i} {unit.name}".strip() for i, unit in enumerate(units))
        raise ArgumentError(f"cannot read {path}: no such extension, it holds {held}") from None


def _from_pillow(path: Path) -> tuple[NDArray[Any], str, list[str]]:
    with needs("images"):
        from PIL import Image, ImageOps, UnidentifiedImageError
    with warnings.catch_warnings():
        # Pillow warns about large images and odd metadata, and refuses images twice that size.
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(path)
        except Image.DecompressionBombError as error:
            raise ArgumentError(
                f"cannot read {path}: it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; "
                "as a .npy file it would be read"
            ) from error
        except UnidentifiedImageError as error:
            if _is_tiff(path):
                return _from_tifffile(path)
            raise ArgumentError(f"cannot read {path}: no image format that is known") from error
        with opened as image:
            notes = []
            if getattr(image, "n_frames", 1) > 1:
                notes.append(f"only the first of {getattr(image, 'n_frames', 1)} images was read")
            # Pillow takes signed bytes for unsigned ones, cuts colours of 16 bits down to 8, and
            # does not invert deep inverted greys.
            if image.format == "TIFF" and 2 in _tiff_tag(image, 339, 1):
                return _from_tifffile(path)
            if image.format == "TIFF" and max(_tiff_tag(image, 258, 1)) > 8:
                exact = image.mode in ("I;16", "I;16B", "F") and _tiff_tag(image, 262, 1) == (1,)
                if not exact:
                    return _from_tifffile(path)
            raw = str(image.tile[0][3]) if image.tile else ""
            grey = image.mode.startswith(("I", "F"))
            if ";16" in raw and not grey:
                deep = _colours_of_16_bits(path)
                if deep is not None:
                    return deep, f"16-bit {image.mode} {image.format}", notes
                notes.append(
                    "only the upper 8 of the 16 bits of each colour were read: "
                    "pip install imagecodecs reads all"
                )
            bits = 16 if ";16" in raw or _is_16_bits(image) else 32 if grey else 8
            mode = "grey" if grey or image.mode == "L" else image.mode
            kind = f"{1 if mode == '1' else bits}-bit {mode} {image.format}"
            turned = ImageOps.exif_transpose(image)
            array = _samples(turned, notes)
            return array.astype(np.uint16) if _is_16_bits(image) else array, kind, notes


def _colours_of_16_bits(path: Path) -> NDArray[Any] | None:
    """(H, W, C) with 16 bits a colour, which Pillow cannot hold; None without imagecodecs."""
    try:
        import imagecodecs
    except ModuleNotFoundError:
        return None
    array: NDArray[Any] = imagecodecs.imread(path)
    return array


def pillow_array(image: Image) -> NDArray[Any]:
    """(H, W) or (H, W, 3) of a Pillow image in its own values, transparent pixels over white.

    Like `read_image` of a file, but without applying the EXIF orientation.
    """
    array = _samples(image, [])
    if array.ndim == 2:
        return array
    pixels, white = brightness(array, double=False)
    return _without_alpha(pixels, []) * np.float32(white)


def _samples(image: Image, notes: list[str]) -> NDArray[Any]:
    """The samples of an open image, (H, W) or (H, W, C), in its own type."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        notes.append(f"{image.mode} was converted to RGB without its colour profile")
        image = image.convert("RGB")
    return np.asarray(image)


def _is_16_bits(image: Image) -> bool:
    """Whether the values are of 16 bits though Pillow's reader gives 32-bit integers."""
    return image.mode == "I" and image.format in ("PNG", "PPM")


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _from_tifffile(path: Path) -> tuple[NDArray[Any], str, list[str]]:
    with needs("images"):
        import tifffile
    with tifffile.TiffFile(path) as file:
        notes = []
        if len(file.pages) > 1:
            notes.append(f"only the first of {len(file.pages)} images was read")
        page = file.pages.first
        photometric = checked_page(page, path)
        array = page.asarray()
        if page.axes == "SYX":
            array = array.transpose(1, 2, 0)
    if photometric == "MINISWHITE" and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    colours = "RGB" if photometric == "RGB" else "grey"
    return array, f"{array.dtype} {colours} TIFF", notes


def checked_page(page: Any, path: StrPath) -> str:
    """The photometric interpretation of a TIFF page: MINISBLACK, MINISWHITE or RGB.

    Raises:
        ArgumentError: in another way, or it is no plane of numbers.
    """
    import tifffile

    turned = page.tags.get("Orientation")
    if turned is not None and turned.value != 1:
        raise ArgumentError(
            f"cannot read {path}: orientation {int(turned.value)} of a TIFF with more than 8 "
            "bits is not supported; turn the image first"
        )
    photometric = tifffile.PHOTOMETRIC(page.photometric).name
    if photometric not in ("MINISBLACK", "MINISWHITE", "RGB"):
        raise ArgumentError(
            f"cannot read {path}: a TIFF with more than 8 bits must be grey or RGB, "
            f"not {photometric}"
        )
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ArgumentError(f"cannot read {path}: it is no plane of pixels (axes {page.axes})")
    if page.dtype.kind not in "uif":
        raise ArgumentError(f"cannot read {path}: {page.dtype} numbers are no brightness")
    return photometric


def _without_alpha(pixels: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """Grey or RGB of (H, W, 2) or (H, W, 4), over white where it is transparent."""
    if pixels.shape[2] not in (2, 4):
        return pixels
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if (alpha >= 1).all():
        return colour
    notes.append("transparent pixels were laid over white")
    return colour * alpha + (1 - alpha)


def _tiff_tag(image: Image, tag: int, default: int) -> tuple[Any, ...]:
    value = getattr(image, "tag_v2", {}).get(tag, default)  # a number or a tuple
    return value if isinstance(value, tuple) else (value,)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
