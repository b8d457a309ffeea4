"""Which threads take part in an instruction."""

import numpy as np

from .dtypes import Array, Mask
from .faults import Fault


def active(values: Array, mask: Mask) -> tuple[Array | None, Array]:
    """(indices of the threads in `mask`, their values); None for the indices of all threads."""
    if mask is None:
        return None, values
    index = mask.nonzero()[0]
    if index.size == mask.size:
        return None, values
    return index, values[index]


def indices(mask: Mask, threads: int) -> Array:
    """The threads in `mask`."""
    return np.arange(threads) if mask is None else mask.nonzero()[0]


def whole_warps(mask: Mask, name: str) -> None:
    """Raises a Fault if only a part of a warp executes a warp-wide instruction."""
    if mask is None:
        return
    by_warp = mask.reshape(-1, 32)
    if (by_warp.any(1) != by_warp.all(1)).any():
        raise Fault(f"{name} by a part of a warp")


def merged(old: Array, value: Array, index: Array | None) -> Array:
    """`value` in the threads of `index`, `old` in the others."""
    if index is None:
        return value
    kept = old.copy()
    kept[index] = value
    return kept
