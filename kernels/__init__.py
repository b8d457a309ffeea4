"""What runs on the GPU: Triton device code and nothing else. Importing this imports triton."""

from .dgrad_frame_gemm import dgrad_frame_gemm
from .dgrad_frame_stencil import dgrad_frame_stencil
from .dgrad_gemm import dgrad_gemm
from .dgrad_stencil import dgrad_stencil
from .fprop_gemm import fprop_gemm
from .fprop_rows import fprop_rows
from .fprop_stencil import fprop_stencil
from .lag_sums import lag_sums
from .sum_partials import sum_partials
from .wgrad_gemm import wgrad_gemm
from .wgrad_rows import wgrad_rows
from .wgrad_stencil import wgrad_stencil

__all__ = [
    "dgrad_frame_gemm",
    "dgrad_frame_stencil",
    "dgrad_gemm",
    "dgrad_stencil",
    "fprop_gemm",
    "fprop_rows",
    "fprop_stencil",
    "lag_sums",
    "sum_partials",
    "wgrad_gemm",
    "wgrad_rows",
    "wgrad_stencil",
]
