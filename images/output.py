"""Output files: checked before the work, and never left half-written."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from ..ops import ArgumentError
from .extras import needs

StrPath: TypeAlias = "str | os.PathLike[str]"
#: Of a FITS header: keyword to value and comment.
Cards: TypeAlias = dict[str, tuple[Any, str]]


def check_output(path: StrPath, inputs: tuple[StrPath, ...] = ()) -> None:
    """Checks, before anything is computed, that a file can be written.

    Args:
        path: of the file to be.
        inputs: files that must not be overwritten.

    Raises:
        ArgumentError: it is one of the inputs, no regular file, or its directory is missing.
        OSError: the directory or the file cannot be written to.
    """
    path = Path(path)
    parent = Path(os.path.realpath(path)).parent
    if not parent.is_dir():
        raise ArgumentError(f"cannot write {path}: there is no directory {parent}")
    if path.exists():
        if not path.is_file():
            raise ArgumentError(f"cannot write {path}: it is there, and not a file")
        if not os.access(path, os.W_OK):
            raise ArgumentError(f"cannot write {path}: it is there, and read-only")
        for other in map(Path, inputs):
            if other.exists() and other.samefile(path):
                raise ArgumentError(f"will not overwrite the input {other}: choose another output")
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ArgumentError(f"cannot write {path}: {error.strerror} ({parent})") from error


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """A temporary path in the same directory, renamed to `path` on success."""
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".tricorr-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: StrPath, arrays: dict[str, Any], cards: Cards | None = None) -> None:
    """Writes arrays to an .npz file by their names, or to a .fits file, the first as its primary.

    Args:
        path: ends in .npz or .fits, replaced if it exists.
        arrays: by name.
        cards: of the FITS header: keyword to value and comment.

    Raises:
        ModuleNotFoundError: .fits without astropy.
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        if not str(path).endswith(".fits"):
            import numpy as np

            np.savez(temporary, allow_pickle=False, **arrays)
            return
        with needs("fits"):
            from astropy.io import fits
        (_, first), *others = arrays.items()
        primary = fits.PrimaryHDU(first)
        for keyword, card in (cards or {}).items():
            primary.header[keyword] = card
        extensions = [fits.ImageHDU(array, name=name.upper()) for name, array in others]
        fits.HDUList([primary, *extensions]).writeto(temporary)
