"""Output files: checked before the work, and never left half-written."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from ..ops import ArgumentError

StrPath: TypeAlias = "str | os.PathLike[str]"


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
