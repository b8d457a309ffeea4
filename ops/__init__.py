"""What to run, on which tensors: geometry, plans, launches, and the operators themselves."""

import sys

from .arguments import as_integer, as_padding, as_pair, as_shape
from .errors import ArgumentError, ArgumentTypeError, BackendError, shown
from .geometry import Geometry, geometry_of
from .lag_sums import lag_sums
from .operators import backward, dgrad, fprop, wgrad
from .schema import geometry_of_call

if "torch.utils.flop_counter" in sys.modules:
    from . import flops  # noqa: F401 - registers the formulas

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "Geometry",
    "as_integer",
    "as_padding",
    "as_pair",
    "as_shape",
    "backward",
    "dgrad",
    "fprop",
    "geometry_of",
    "geometry_of_call",
    "lag_sums",
    "shown",
    "wgrad",
]
