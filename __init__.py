"""Hand-written Triton kernels for 2-D cross-correlation, at home in PyTorch."""

import os
import sys
from typing import TYPE_CHECKING, Any

# The program `tricorr` (`python -m tricorr`) answers --help without waiting for PyTorch.
_IS_PROGRAM = os.path.basename((sys.argv or [""])[0]) in ("tricorr", "-m")

if TYPE_CHECKING or not _IS_PROGRAM or "torch" in sys.modules:
    from . import filters
    from .autograd.convert import Conversion, convert, convert_back
    from .autograd.functional import (
        convolve2d,
        corr2d,
        corr2d_input_grad,
        corr2d_weight_grad,
        corr_transpose2d,
        explain,
    )
    from .autograd.modules import Conv2D, ConvTranspose2D, LazyConv2D, LazyConvTranspose2D
    from .autograd.receptive_field import ReceptiveField, receptive_field
    from .learning.accumulator import KernelAccumulator
    from .learning.field import VaryingKernel
    from .learning.learn import learn_kernel, learn_kernel_field
    from .learning.learned import LearnedKernel
    from .learning.quality import Quality
    from .learning.tiles import KernelField
    from .ops.errors import ArgumentError, ArgumentTypeError, BackendError
else:

    def __getattr__(name: str) -> Any:
        """Import the public names when the program, or code that it runs, asks for the first."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        import torch  # noqa: F401 - with it loaded, this file imports all public names

        del globals()["__getattr__"]
        return getattr(importlib.reload(sys.modules[__name__]), name)


__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "Conv2D",
    "ConvTranspose2D",
    "Conversion",
    "KernelAccumulator",
    "KernelField",
    "LazyConv2D",
    "LazyConvTranspose2D",
    "LearnedKernel",
    "Quality",
    "ReceptiveField",
    "VaryingKernel",
    "convert",
    "convert_back",
    "convolve2d",
    "corr2d",
    "corr2d_input_grad",
    "corr2d_weight_grad",
    "corr_transpose2d",
    "explain",
    "filters",
    "learn_kernel",
    "learn_kernel_field",
    "receptive_field",
]
