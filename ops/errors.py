"""The exceptions for arguments that cannot be used.

`F.conv2d` raises RuntimeError for nearly every bad argument; Python users expect ValueError and
TypeError. Each class below is both, so that either `except` clause catches it.
"""

from __future__ import annotations

from typing import Any


class ArgumentError(RuntimeError, ValueError):
    """An argument has a value or a shape that cannot be used."""


class ArgumentTypeError(RuntimeError, TypeError):
    """An argument has a type, dtype, device or layout that cannot be used."""


class BackendError(RuntimeError):
    """The call is fine, but what it needs to run (Triton, a device) is missing."""


def shown(value: Any) -> str:
    """`value` on one line, shortened, for messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
