"""Hand-written Triton kernels for 2-D cross-correlation, at home in PyTorch."""

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
from .learning.learn import learn_kernel, learn_kernel_field
from .learning.learned import KernelField, LearnedKernel
from .learning.quality import Quality
from .ops.errors import ArgumentError, ArgumentTypeError, BackendError

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
