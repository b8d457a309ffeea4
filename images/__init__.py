"""Image files in and out, and the pictures that commands draw."""

from typing import Any

__all__ = ["read_image", "write_image"]


def __getattr__(name: str) -> Any:
    """Imports NumPy and the readers on first use, to keep `import tricorr` fast."""
    if name in __all__:
        from . import read

        return getattr(read, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
