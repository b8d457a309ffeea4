"""Files of kernels: .npy, .npz and .fits, their arrays and their cards."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import numpy as np

from ..images.extras import needs
from ..images.output import Cards, StrPath, replacing, write_arrays
from ..ops import ArgumentError

#: Endings of the names that a kernel may be saved under.
KERNEL_SUFFIXES = (".npy", ".npz", ".fits")
#: What NumPy and Astropy raise for files that are damaged, or another kind than their names say.
_DAMAGED = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile)


def check_kernel_name(path: StrPath) -> str:
    """The ending of a file name for a kernel.

    Raises:
        ArgumentError: the name has another ending.
    """
    name = str(path)
    for suffix in KERNEL_SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise ArgumentError(
        f"a kernel is saved as .npy, .npz or .fits, got {name.rpartition('/')[2]!r}"
    )


def write_kernel(path: StrPath, suffix: str, arrays: dict[str, Any], cards: Cards) -> None:
    """Writes the arrays; to .npy the weight alone."""
    if suffix != ".npy":
        write_arrays(path, arrays, cards)
        return
    with replacing(path) as temporary:
        np.save(temporary, arrays["weight"])


def read_kernel(path: StrPath) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a kernel's file by name, and its cards. The weight is one of floats.

    Raises:
        ArgumentError: another ending, a damaged file, or no kernel in it.
        OSError, ModuleNotFoundError: it is missing; .fits without astropy.
    """
    suffix = check_kernel_name(path)
    with open(path, "rb"):  # raises where it is missing
        pass
    try:
        arrays, cards = _read_fits(path) if suffix == ".fits" else _read_numpy(path, suffix)
    except _DAMAGED as error:
        raise ArgumentError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    arrays["weight"] = _checked_weight(arrays.get("weight"), path)
    return arrays, cards


def _checked_weight(weight: Any, path: StrPath) -> Any:
    """The weight in a float dtype that PyTorch has."""
    if weight is None or weight.ndim not in (2, 4) or not weight.size:
        raise ArgumentError(f"cannot read {path}: it holds no kernel (R, S) or (K, C, R, S)")
    if weight.dtype.kind not in "iuf":
        raise ArgumentError(f"cannot read {path}: it holds {weight.dtype}, no real numbers")
    if not np.isfinite(weight).all():
        raise ArgumentError(f"cannot read {path}: its kernel has elements that are NaN or infinite")
    return weight if weight.dtype in (np.float16, np.float32, np.float64) else weight.astype(float)


def _read_numpy(path: StrPath, suffix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a .npy or .npz file, and its cards."""
    if suffix == ".npy":
        return {"weight": np.load(path, allow_pickle=False)}, {}
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "cards"}
        return arrays, json.loads(str(stored["cards"])) if "cards" in stored.files else {}


def _read_fits(path: StrPath) -> tuple[dict[str, Any], dict[str, Any]]:
    with needs("fits"):
        from astropy.io import fits
    with fits.open(path, memmap=False) as units:
        arrays = {
            unit.name.lower(): unit.data.astype(unit.data.dtype.newbyteorder("="))
            for unit in units
            if unit.data is not None
        }
        cards = dict(units[0].header)
    if "primary" in arrays:
        arrays["weight"] = arrays.pop("primary")
    return arrays, cards
