"""Partial sums: their memory, and the launch that adds them in a fixed order."""

from __future__ import annotations

import torch

from ... import kernels
from ..plan.cost import BY_CHANNELS
from ..plan.integers import cdiv, power_of_two
from .call import Call
from .formats import suggests_channels_last
from .kernel_arguments import residual_arguments
from .layout import NARROW_LIMIT

#: Bytes that a program of sum_partials adds at a time: 8 loads of 16 bytes for each of its threads.
PASS_BYTES = 16384
#: Programs that sum_partials has, if elements allow: two for each multiprocessor of an H100.
PROGRAMS = 264
#: Bytes of a partial that a program adds, at least (a line of L1) and at most.
ROW_BYTES = (128, 4096)
#: Rows at most, and columns at least, of a tile whose axes are exchanged.
MAX_ROWS, MIN_COLUMNS = 32, 32
#: Families whose threads hold neighbouring filters of a weight gradient. Those of BY_CHANNELS hold
#: channels, others taps.
BY_FILTERS = ("columns", "rows", "stencil")


def partials_of(image: torch.Tensor, splits: int) -> torch.Tensor:
    """Memory for as many partial sums of an image, each with the strides of it, which is dense."""
    memory = image.new_empty(splits * image.numel(), dtype=_partial_dtype(image))
    return memory.as_strided((splits, *image.shape), (image.numel(), *image.stride()))


def gradient_partials(dw: torch.Tensor, parts: int, family: str) -> torch.Tensor:
    """Memory for as many partial sums of dw, in the order in which the family's kernel stores them.

    It is (parts, *dw.shape) for any family: strides differ. One part has the dtype of dw.
    """
    k, c, r, s = dw.shape[-4:]
    if family in BY_CHANNELS:
        strides = (c * r * s, 1, s * c, c)
    elif family in BY_FILTERS and is_channels_last(dw):
        strides = (1, k, s * c * k, c * k)
    elif family in BY_FILTERS:
        strides = (1, r * s * k, s * k, k)
    else:
        strides = (c * r * s, r * s, s, 1)
    dtype = dw.dtype if parts == 1 else _partial_dtype(dw)
    memory = dw.new_empty(parts * dw.numel(), dtype=dtype)
    return memory.as_strided((parts, *dw.shape), (dw.numel(), *dw.stride()[:-4], *strides))


def is_channels_last(dw: torch.Tensor) -> bool:
    """Whether channels of a weight gradient are innermost; a bank per sample is contiguous."""
    return dw.dim() == 4 and suggests_channels_last(dw)


def _partial_dtype(result: torch.Tensor) -> torch.dtype:
    return torch.float64 if result.dtype == torch.float64 else torch.float32


def sum_partials_call(
    partials: torch.Tensor,
    out: torch.Tensor,
    splits: int,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str = "none",
) -> Call:
    """The launch that sums `splits` dense partials into dense `out`.

    Partials have out's strides, or are gradient_partials of out. A bias or a residual, as fprop
    adds them, is for an image (N, K, P, Q).
    """
    elements = out.numel()
    block_s, block_e = sum_tile(splits, elements, partials.itemsize)
    image = bias is not None or residual is not None
    rows, columns = _transposed(partials, out)
    programs, block_rows = cdiv(elements, block_e), None
    if rows > 1:
        block_rows = min(power_of_two(rows), MAX_ROWS, max(1, block_e // MIN_COLUMNS))
        block_columns = min(power_of_two(columns), block_e // block_rows)
        block_e = block_rows * block_columns
        programs = (
            elements // (rows * columns) * cdiv(rows, block_rows) * cdiv(columns, block_columns)
        )
    return Call(
        kernels.sum_partials,
        programs,
        {
            "partials_ptr": partials,
            "bias_ptr": bias,
            **residual_arguments(residual),
            "out_ptr": out,
            "SPLITS": splits,
            "ELEMENTS": elements,
            "ROWS": rows,
            "COLUMNS": columns,
            "shape": tuple(out.shape) if image else (1, 1, 1, 1),
            "strides": tuple(out.stride()) if image else (1, 1, 1, 1),
            "bias_stride": 0 if bias is None else bias.stride(0),
            "ACTIVATION": activation,
            "SAME_STRIDES": residual is not None and residual.stride() == out.stride(),
            "INT64": splits * elements > NARROW_LIMIT,
            "BLOCK_S": block_s,
            "BLOCK_E": block_e,
            "BLOCK_ROWS": block_rows,
        },
        num_warps=4,
        num_stages=2,
    )


def _transposed(partials: torch.Tensor, out: torch.Tensor) -> tuple[int, int]:
    """ROWS and COLUMNS of sum_partials; (1, 1) where partials have out's order."""
    if partials.stride()[1:] == out.stride():
        return 1, 1
    k, c, r, s = out.shape[-4:]
    if partials.stride(-4) == 1:
        rows, columns = c * r * s, k
    else:
        rows, columns = (c, r * s) if is_channels_last(out) else (r * s, c)
    return (rows, columns) if min(rows, columns) > 1 else (1, 1)


def sum_tile(splits: int, elements: int, itemsize: int) -> tuple[int, int]:
    """(partials, elements) that one program of sum_partials adds at a time.

    Few partials: many elements of each, in pieces of 16 bytes, so that every thread has several
    loads in flight. Many: programs share out the elements, down to one line, and threads the rest.
    """
    least, most = (size // itemsize for size in ROW_BYTES)
    block_s = power_of_two(splits)
    # One load of 16 bytes for each of 128 threads, at least.
    block_e = max(least, PASS_BYTES // 8 // itemsize // block_s)
    while block_e < most and elements >= 2 * block_e * PROGRAMS:
        block_e *= 2
    return min(block_s, PASS_BYTES // itemsize // block_e), block_e
