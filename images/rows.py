"""Image files read a few rows at a time, so that they may be larger than memory.

.npy arrays and uncompressed TIFFs are mapped into memory, FITS images are read by astropy in
sections, compressed TIFFs strip by strip or tile by tile. A file is opened for each read and closed
after it, so nothing stays in memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..ops import ArgumentError, ArgumentTypeError, shown
from ..ops.geometry import Pair
from .extras import needs
from .read import (
    FITS_START,
    WHITE,
    as_rows,
    brightness,
    channels_first,
    checked_page,
    first_bytes,
    fits_extension,
    fits_numbers,
    is_channels_last,
    open_fits,
)

#: A file's name, or an array of (H, W) or (C, H, W) that is sliced as NumPy's are: np.memmap, h5py.
ImageSource: TypeAlias = Any

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class ImageRows:
    """An image that is read a few rows at a time.

    Attributes:
        source: its file, or an array.
        kind: "npy", "fits", "tiff" or "array".
        shape: (H, W) or (C, H, W) of what `read` gives, all rows taken.
        grey: whether colours become luma.
        white: the file's value that `read` scales to 1.0; -1 for values as stored.
    """

    source: ImageSource
    kind: str
    shape: tuple[int, ...]
    grey: bool
    white: float = 1.0

    def as_stored(self) -> ImageRows:
        """The same image in the file's own values, not scaled to [0, 1]."""
        return replace(self, white=-1.0)

    @property
    def extent(self) -> Pair:
        """(H, W)."""
        return self.shape[-2], self.shape[-1]

    def read(self, first: int, last: int) -> torch.Tensor:
        """Rows first up to last: (rows, W) or (C, rows, W), float32, or float64 if stored so.

        Integers are scaled as by `read_image`.
        """
        array = _rows_of(self.source, self.kind, first, last)
        pixels, white = brightness(array, double=True)
        if self.white == -1.0:
            pixels = pixels * pixels.dtype.type(white)
        return channels_first(pixels, self.grey, shown_source(self.source))


def open_rows(source: ImageSource, *, grey: bool = False) -> ImageRows:
    """Opens an image to read it by rows.

    Args:
        source: a .npy, FITS or TIFF file (of FITS the first image, of TIFF the first page); an
            array; or ImageRows, which are given back.
        grey: whether colours become Rec. 709 luma.

    Raises:
        OSError: the file is missing or may not be read.
        ArgumentError: it is of another format, damaged, or holds no image.
        ArgumentTypeError: no file and no array.
        ModuleNotFoundError: the library that reads it is not installed.
    """
    if isinstance(source, ImageRows):
        return source
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        kind = _kind(first_bytes(fits_extension(source)[0]), path)
    elif hasattr(source, "shape") and hasattr(source, "__getitem__"):
        kind, path = "array", source
    else:
        raise ArgumentTypeError(f"an image must be a file's name or an array, got {shown(source)}")
    try:
        height = _height(path, kind)
        top = ImageRows(path, kind, (), grey).read(0, min(1, height))
    except (ArgumentError, ModuleNotFoundError):
        raise
    # For damaged files the libraries raise almost anything, as in read.py.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ArgumentError(f"cannot read {shown_source(source)}: {text}") from error
    shape = (*top.shape[:-2], height, top.shape[-1])
    if 0 in shape:
        raise ArgumentError(f"cannot read {shown_source(source)}: it has no pixels (shape {shape})")
    return ImageRows(path, kind, shape, grey, WHITE.get(str(_stored_dtype(path, kind)), 1.0))


def _stored_dtype(source: ImageSource, kind: str) -> Any:
    """The dtype of the first row as it is read."""
    return _rows_of(source, kind, 0, 1).dtype


def shown_source(source: ImageSource) -> str:
    """A name for messages."""
    is_file = isinstance(source, str | os.PathLike)
    return str(source) if is_file else f"the {type(source).__name__}"


def _kind(start: bytes, path: Path) -> str:
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start == FITS_START:
        return "fits"
    if start.startswith(TIFF_STARTS):
        return "tiff"
    raise ArgumentError(
        f"cannot read {path} a few rows at a time: expected a .npy, TIFF or FITS file (others are "
        "read whole)"
    )


def _height(source: ImageSource, kind: str) -> int:
    if kind == "tiff":
        with needs("images"):
            import tifffile
        with tifffile.TiffFile(source) as file:
            page = file.pages.first
            checked_page(page, source)
            return int(page.shape[page.axes.index("Y")])
    if kind == "fits":
        with open_fits(source) as image:
            return _row_axis_length(image.shape)
    array = np.load(source, mmap_mode="r", allow_pickle=False) if kind == "npy" else source
    return _row_axis_length(tuple(array.shape))


def _row_axis_length(shape: tuple[int, ...]) -> int:
    if len(shape) not in (2, 3):
        raise ArgumentError(f"an image must be (H, W) or (C, H, W), got shape {shape}")
    return shape[0] if len(shape) == 2 or is_channels_last(shape) else shape[1]


def _rows_of(source: ImageSource, kind: str, first: int, last: int) -> NDArray[Any]:
    """Rows of a file as (rows, W) or (rows, W, C)."""
    if kind == "tiff":
        return _tiff_rows(source, first, last)
    if kind == "fits":
        with open_fits(source) as image:
            return fits_numbers(_cut(image, first, last, source))
    array = np.load(source, mmap_mode="r", allow_pickle=False) if kind == "npy" else source
    return _cut(array, first, last, source)


def _cut(array: Any, first: int, last: int, source: ImageSource) -> NDArray[Any]:
    shape = tuple(array.shape)
    if len(shape) == 2 or is_channels_last(shape):
        rows = np.asarray(array[first:last])
        if rows.ndim == 3:
            rows = rows.transpose(2, 0, 1)  # so that a few rows are not taken for channels
    else:
        rows = np.asarray(array[:, first:last])
    name = shown_source(source)
    if rows.ndim == 2:
        return as_rows(rows, name)
    return np.stack([as_rows(plane, name) for plane in rows], -1)


def _tiff_rows(path: Path, first: int, last: int) -> NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        photometric = checked_page(page, path)
        if page.is_memmappable:
            mapped = page.asarray(out="memmap")
            rows = mapped[:, first:last] if page.axes == "SYX" else mapped[first:last]
            rows = np.array(rows.transpose(1, 2, 0) if page.axes == "SYX" else rows)
            del mapped
        else:
            rows = _decoded_rows(page, first, last)
    if photometric == "MINISWHITE" and rows.dtype.kind == "u":
        rows = np.iinfo(rows.dtype).max - rows
    return rows


def _decoded_rows(page: Any, first: int, last: int) -> NDArray[Any]:
    """Rows of a compressed page: decodes only the strips or tiles that hold them."""
    planes = page.shape[0] if page.axes == "SYX" else 1
    samples = page.shape[2] if page.axes == "YXS" else 1
    width = page.shape[page.axes.index("X")]
    height, per_row, per_column = _segments(page)
    rows = np.zeros((planes, last - first, width, samples), page.dtype)
    wanted = [
        plane * per_column * per_row + i
        for plane in range(planes)
        for i in range(first // height * per_row, ((last - 1) // height + 1) * per_row)
    ]
    offsets, counts = (
        [values[i] for i in wanted] for values in (page.dataoffsets, page.databytecounts)
    )
    tables = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
    for data, index in page.parent.filehandle.read_segments(offsets, counts, indices=wanted):
        segment, (plane, _, top, left, _), _ = page.decode(data, index, **tables)
        if segment is None:
            continue  # a missing segment is zeros
        begin, end = max(first, top), min(last, top + segment.shape[1])
        right = min(width, left + segment.shape[2])
        part = segment[0, begin - top : end - top, : right - left]
        rows[plane, begin - first : end - first, left:right] = part
    found = rows[0] if planes == 1 else rows[..., 0].transpose(1, 2, 0)
    return found[..., 0] if found.shape[2] == 1 else found


def _segments(page: Any) -> tuple[int, int, int]:
    """Rows per strip or tile, and how many of these there are across and down."""
    height = page.tilelength if page.is_tiled else page.rowsperstrip
    length, width = (page.shape[page.axes.index(axis)] for axis in "YX")
    per_row = -(-width // page.tilewidth) if page.is_tiled else 1
    height = min(height, length) if not page.is_tiled else height
    return height, per_row, -(-length // height)
