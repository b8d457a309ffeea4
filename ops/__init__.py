"""What to run, on which tensors: geometry, plans, launches, and the operators themselves."""

from .errors import ArgumentError, ArgumentTypeError, BackendError, shown
from .geometry import Geometry, as_integer, as_padding, as_pair, as_shape, geometry_of
from .lag_sums import lag_sums
from .registration import dgrad, fprop, geometry_of_call, wgrad

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "Geometry",
    "as_integer",
    "as_padding",
    "as_pair",
    "as_shape",
    "dgrad",
    "fprop",
    "geometry_of",
    "geometry_of_call",
    "lag_sums",
    "shown",
    "wgrad",
]
