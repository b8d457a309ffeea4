"""What runs on the GPU: Triton device code and nothing else. Importing this imports triton."""

from triton.tools.tensor_descriptor import TensorDescriptor

from .backward_rows import backward_rows
from .build_bands import build_bands
from .build_lines import build_lines
from .build_patch_weight import build_patch_weight
from .copy_flat import copy_flat
from .copy_images import copy_images
from .copy_patches import copy_patches
from .dgrad_frame_gemm import dgrad_frame_gemm
from .dgrad_frame_stencil import dgrad_frame_stencil
from .dgrad_gemm import dgrad_gemm
from .dgrad_rows import dgrad_rows
from .dgrad_stencil import dgrad_stencil
from .dgrad_tma import dgrad_tma
from .fprop_banded import fprop_banded
from .fprop_columns import fprop_columns
from .fprop_gemm import fprop_gemm
from .fprop_patch import fprop_patch
from .fprop_rows import fprop_rows
from .fprop_separable import fprop_separable
from .fprop_spread import fprop_spread
from .fprop_stencil import fprop_stencil
from .fprop_tma import fprop_tma
from .lag_sums import lag_sums
from .sum_partials import sum_partials
from .versions import HAS_GLUON
from .wgrad_banded import wgrad_banded
from .wgrad_columns import wgrad_columns
from .wgrad_flat import wgrad_flat
from .wgrad_gemm import wgrad_gemm
from .wgrad_patch import wgrad_patch
from .wgrad_rows import wgrad_rows
from .wgrad_shifted import wgrad_shifted
from .wgrad_stencil import wgrad_stencil
from .wgrad_tma import wgrad_tma

if HAS_GLUON:
    from triton.experimental.gluon.language import NVMMASharedLayout as NVMMASharedLayout
    from triton.experimental.gluon.nvidia import hopper

    from .fprop_planes import fprop_planes
    from .fprop_resident import fprop_resident
    from .fprop_reuse import fprop_reuse
    from .fprop_strip import fprop_strip
    from .wgrad_planes import wgrad_planes
    from .wgrad_reuse import wgrad_reuse
    from .wgrad_spread import wgrad_spread

    GluonDescriptor = hopper.TensorDescriptor
    DESCRIPTORS: tuple[type, ...] = (TensorDescriptor, GluonDescriptor)
else:
    DESCRIPTORS = (TensorDescriptor,)

__all__ = [
    "TensorDescriptor",
    "backward_rows",
    "build_bands",
    "build_lines",
    "build_patch_weight",
    "copy_flat",
    "copy_images",
    "copy_patches",
    "dgrad_frame_gemm",
    "dgrad_frame_stencil",
    "dgrad_gemm",
    "dgrad_rows",
    "dgrad_stencil",
    "dgrad_tma",
    "fprop_banded",
    "fprop_columns",
    "fprop_gemm",
    "fprop_patch",
    "fprop_rows",
    "fprop_separable",
    "fprop_spread",
    "fprop_stencil",
    "fprop_tma",
    "lag_sums",
    "sum_partials",
    "wgrad_banded",
    "wgrad_columns",
    "wgrad_flat",
    "wgrad_gemm",
    "wgrad_patch",
    "wgrad_rows",
    "wgrad_shifted",
    "wgrad_stencil",
    "wgrad_tma",
]
__all__ += ["fprop_planes", "fprop_resident", "fprop_reuse", "fprop_strip"] * HAS_GLUON
__all__ += ["wgrad_planes", "wgrad_reuse", "wgrad_spread"] * HAS_GLUON
