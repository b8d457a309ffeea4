"""Optional libraries: which extra to install when one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Package names by module name, where the two differ.
PACKAGES = {"PIL": "pillow", "skimage": "scikit-image"}


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """A context for imports of what `pip install 'tricorr[extra]'` installs.

    Raises:
        ModuleNotFoundError: naming the missing module and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{error.name} is not installed: pip install {PACKAGES.get(module, module)} "
            f"(or all of the extra: pip install 'tricorr[{extra}]')",
            name=error.name,
        ) from error
