"""The loops of a rows kernel: extents, vectors of columns, tiles that touch no border."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..geometry import Geometry
from .integers import cdiv
from .problem import Problem


class Extents(NamedTuple):
    """Extents of the loops of a rows kernel, for any operator.

    Attributes:
        planes: that lanes can be.
        rows, columns: of outputs.
        reduced, filters: channels of a group that are loaded, and that are computed.
        open: largest number of output rows still being summed when another one is finished.
        row: sums of one lane and column in one output row, for one filter.
    """

    planes: int
    rows: int
    columns: int
    reduced: int
    filters: int
    open: int
    row: int


def is_strided_gradient(problem: Problem) -> bool:
    """Whether it is an input gradient that is no forward correlation of dy: of dgrad_rows."""
    return problem.op == "dgrad" and not problem.is_turned


def gradient_reads(geometry: Geometry, axis: int) -> tuple[int, int]:
    """(first, number) of dy's rows or columns that dx's from 0 to one step of the stride read."""
    g, stride, pad = geometry, geometry.stride[axis], geometry.padding[axis][0]
    first = -((((g.R, g.S)[axis] - 1) * g.dilation[axis] - pad) // stride)
    return first, cdiv(pad, stride) - first + 1


def extents(problem: Problem) -> Extents:
    """The extents of a problem's walk."""
    g = problem.geometry
    (stride_h, stride_w), (dil_h, _) = g.stride, g.dilation
    if is_strided_gradient(problem):
        row = stride_h * stride_w * g.group_C  # a program has all channels
        return Extents(
            g.N * g.groups,
            cdiv(g.H, stride_h),
            cdiv(g.W, stride_w),
            g.group_K,
            1,
            gradient_reads(g, 0)[1] - 1,
            row,
        )
    unfinished = (g.R - 1) * dil_h // stride_h
    g = problem.correlated
    planes = g.groups if problem.op == "wgrad" else g.N * g.groups
    return Extents(planes, g.P, g.Q, g.group_C, g.group_K, unfinished, 1)


def row_macs(problem: Problem) -> int:
    """Multiply-adds for one output row of one lane and filter."""
    g = problem.geometry
    strided = is_strided_gradient(problem)
    channels = g.group_C * g.group_K if strided else extents(problem).reduced
    return channels * g.R * g.S


def vector_of(problem: Problem, lane_q: int) -> tuple[int, int]:
    """(columns that a lane of LANE_Q loads, and stores, as a vector); (1, 1): none."""
    g, layout = problem.correlated, problem.layout
    read, written = layout.x_align, layout.y_align
    if problem.op == "dgrad":
        read, written = written, read
    strided = is_strided_gradient(problem)
    x, y = lane_q * g.stride[1], math.gcd(lane_q, written)
    if problem.op == "wgrad" and written % lane_q:
        return 1, 1
    if strided:
        x, y = lane_q, math.gcd(lane_q * g.stride[1], written)
    if x < 2 or read % x or not 4 <= x * problem.image_bytes <= 16:
        return 1, 1
    if y * problem.dtype.itemsize < 4:
        return 1, 1
    # Columns that a padding mode mirrors or wraps do not lie side by side in the image.
    if not strided and g.padding_mode != "zeros" and cdiv(g.Q, lane_q) * x > g.W:
        return 1, 1
    return x, y


def columns_beside(problem: Problem, lane_q: int, piece: int) -> int:
    """Pieces of `piece` columns that a lane's outputs read beside the lane's own columns."""
    g = problem.correlated
    stride, dilation, pad = g.stride[1], g.dilation[1], g.padding[1][0]
    if is_strided_gradient(problem):
        first, count = gradient_reads(g, 1)
        columns = range(first, first + count + lane_q - 1)
        return len({c // piece for c in columns if not 0 <= c < lane_q})
    read = {q * stride + s * dilation - pad for q in range(lane_q) for s in range(g.S)}
    return len({c // piece for c in read if not 0 <= c < lane_q * stride})


def pieces_beside(problem: Problem, lane_q: int) -> tuple[int, int]:
    """(loads, columns of each) that a lane makes beside its own vector; see kernels/vectors.py."""
    word = max(1, 4 // problem.image_bytes)
    if is_strided_gradient(problem):
        return columns_beside(problem, lane_q, word), word
    most = min(lane_q * problem.correlated.stride[1], max(1, 16 // problem.image_bytes))
    sizes = [word << i for i in range(3) if word << i <= most]
    return min((columns_beside(problem, lane_q, size), size) for size in sizes)


def clear_tiles(problem: Problem, axis: int, block: int, step: int) -> tuple[int, int]:
    """(tiles along an axis, how many of them load and store inside the image only)."""
    g = problem.correlated
    stride, dilation, pad = g.stride[axis], g.dilation[axis], g.padding[axis][0]
    inputs, outputs, window = ((g.H, g.P, g.R), (g.W, g.Q, g.S))[axis]
    reach = (window - 1) * dilation
    if is_strided_gradient(problem):
        first, count = gradient_reads(g, axis)
        tiles = range(0, cdiv(inputs, stride), block)
        clear = [
            t
            for t in tiles
            if t + first >= 0
            and t + first + block + count - 1 <= outputs
            and (t + block) * stride <= inputs
        ]
        return len(tiles), len(clear)
    if axis == 0:  # whole steps are loaded
        reach = cdiv(block + reach // stride, step) * step * stride - 1
    else:
        reach += (block - 1) * stride
    # Tiles t with 0 <= t * block * stride - pad and t * block * stride - pad + reach < inputs.
    first = max(0, cdiv(pad, block * stride))
    last = min((inputs - 1 - reach + pad) // (block * stride), outputs // block - 1)
    return cdiv(outputs, block), max(0, last - first + 1)
