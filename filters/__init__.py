"""Image filters over `corr2d`, and the kernels that they use."""

from .banks import (
    difference_kernels,
    gabor_kernels,
    gaussian_window,
    laplacian_kernel,
    log_gabor_kernels,
    prewitt_kernels,
    scharr_kernels,
    sobel_kernels,
    textbook_edge_kernel,
)
from .blurs import box_blur, gaussian_blur, unsharp_mask
from .gradients import (
    gabor,
    laplacian,
    log_gabor,
    prewitt,
    scharr,
    sobel,
    spatial_gradient,
)

__all__ = [
    "box_blur",
    "difference_kernels",
    "gabor",
    "gabor_kernels",
    "gaussian_blur",
    "gaussian_window",
    "laplacian",
    "laplacian_kernel",
    "log_gabor",
    "log_gabor_kernels",
    "prewitt",
    "prewitt_kernels",
    "scharr",
    "scharr_kernels",
    "sobel",
    "sobel_kernels",
    "spatial_gradient",
    "textbook_edge_kernel",
    "unsharp_mask",
]
