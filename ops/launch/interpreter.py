"""Triton's interpreter, which runs the kernels on the CPU where TRITON_INTERPRET is set."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...kernels.versions import is_interpreted, mend_interpreter
from ..errors import BackendError

# The interpreter patches triton.language while it runs, so it takes one launch at a time.
_LOCK = threading.RLock()


@contextmanager
def one_launch() -> Iterator[None]:
    """The context of a launch in the interpreter.

    Raises:
        BackendError: Triton was imported before TRITON_INTERPRET was set, and compiles.
    """
    if not is_interpreted():
        raise BackendError(
            "TRITON_INTERPRET=1 was set after triton had been imported, which then compiles: set "
            "it in the shell, or before the first import of triton or torch._inductor"
        )
    # The interpreter computes with NumPy, which would warn about infinities; a GPU does not.
    with _LOCK, sys.modules["numpy"].errstate(all="ignore"):
        mend_interpreter()
        yield
