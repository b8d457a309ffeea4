"""Partial sums: their memory, and the launch that adds them in a fixed order."""

from __future__ import annotations

import torch

from ... import kernels
from .call import Call
from .kernel_arguments import residual_arguments
from .layout import NARROW_LIMIT


def partials_of(image: torch.Tensor, splits: int) -> torch.Tensor:
    """Memory for as many partial sums of an image, each with the strides of it, which is dense."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    memory = image.new_empty(splits * image.numel(), dtype=dtype)
    return memory.as_strided((splits, *image.shape), (image.numel(), *image.stride()))


def sum_partials_call(
    partials: torch.Tensor,
    out: torch.Tensor,
    splits: int,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str = "none",
) -> Call:
    """The launch that sums `splits` dense partials into dense `out`, in its order of elements.

    A bias or a residual, as fprop adds them, is for an image (N, K, P, Q).
    """
    elements = out.numel()
    block_s, block_e = sum_tile(splits)
    image = bias is not None or residual is not None
    return Call(
        kernels.sum_partials,
        -(-elements // block_e),
        {
            "partials_ptr": partials,
            "bias_ptr": bias,
            **residual_arguments(residual),
            "out_ptr": out,
            "SPLITS": splits,
            "ELEMENTS": elements,
            "shape": tuple(out.shape) if image else (1, 1, 1, 1),
            "strides": tuple(out.stride()) if image else (1, 1, 1, 1),
            "bias_stride": 0 if bias is None else bias.stride(0),
            "ACTIVATION": activation,
            "INT64": splits * elements > NARROW_LIMIT,
            "BLOCK_S": block_s,
            "BLOCK_E": block_e,
        },
        num_warps=4,
        num_stages=2,
    )


def sum_tile(splits: int) -> tuple[int, int]:
    """(splits, elements) that one program of sum_partials adds at a time."""
    return (8, 128) if splits <= 8 else (32, 32)
