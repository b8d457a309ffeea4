"""Triton's interpreter, which runs the kernels on the CPU where TRITON_INTERPRET is set."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# The interpreter patches triton.language while it runs, so it takes one launch at a time.
_LOCK = threading.RLock()


@contextmanager
def one_launch() -> Iterator[None]:
    """What a launch in the interpreter has to be inside of."""
    # A GPU does not warn of infinities; NumPy, with which the interpreter computes, would.
    with _LOCK, sys.modules["numpy"].errstate(all="ignore"):
        _mend()
        yield


@functools.cache
def _mend() -> None:
    """Makes range(n) run in Triton 3.6 where the kernel computed n.

    It takes int() of an array with one element, which NumPy has refused since 2.4.
    """
    import triton
    from triton.runtime import interpreter

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7):
        return
    patch = interpreter._patch_lang_tensor

    def mended(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda number: number.handle.data.item())

    interpreter._patch_lang_tensor = mended
