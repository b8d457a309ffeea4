"""Hand-written Triton kernels for 2-D cross-correlation, at home in PyTorch."""

from .autograd.functional import (
    convolve2d,
    corr2d,
    corr2d_input_grad,
    corr2d_weight_grad,
    corr_transpose2d,
)
from .autograd.modules import Conv2D, ConvTranspose2D, LazyConv2D
from .ops.errors import ArgumentError, ArgumentTypeError, BackendError

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "Conv2D",
    "ConvTranspose2D",
    "LazyConv2D",
    "convolve2d",
    "corr2d",
    "corr2d_input_grad",
    "corr2d_weight_grad",
    "corr_transpose2d",
]
