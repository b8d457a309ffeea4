"""Copies of operands that kernels with tensor descriptors read: of images, and of the weight."""

from __future__ import annotations

from dataclasses import replace

import torch

from .device import MAX_COPY_BYTES
from .integers import cdiv
from .problem import Problem


def copied_problem(problem: Problem) -> Problem:
    """The problem of a kernel that reads copies of the images."""
    boxes = copied_boxes(problem)
    return replace(problem, layout=replace(problem.layout, x_boxes=boxes, y_boxes=boxes))


def copied_boxes(problem: Problem) -> str:
    """The format of copies: the one that kernels take best.

    That is NHWC: a box of any shape is one operand, and rows, columns and channels may be of any
    number. A weight gradient in TF32 sums along the rows of planes, see `multiplies_crosswise`.
    """
    planes = problem.op == "wgrad" and not multiplies_crosswise(problem.dtype)
    return "NCHW" if planes else "NHWC"


def image_copies(problem: Problem) -> list[int]:
    """Bytes of every image that has to be copied into the format of `copied_boxes`."""
    layout, wanted = problem.layout, copied_boxes(problem)
    images = []
    if problem.op != "dgrad" and layout.x_boxes != wanted:
        images.append((problem.boxed.x_numel, problem.boxed.C, problem.boxed.W))
    if problem.op != "fprop" and layout.y_boxes != wanted:
        images.append((problem.boxed.y_numel, problem.boxed.K, problem.boxed.Q))
    # Rows of a copy, of channels or of columns, are filled up to whole pieces of 16 bytes.
    piece = 16 // problem.dtype.itemsize
    axis = 1 if wanted == "NHWC" else 2
    return [
        image[0] // image[axis] * cdiv(image[axis], piece) * 16 if image[0] else 0
        for image in images
    ]


def may_copy(problem: Problem) -> bool:
    """Whether there are images to copy, neither too large nor of another dtype."""
    layout = problem.layout
    if problem.op == "dgrad_frame" or layout.converts:
        return False
    return 0 < sum(image_copies(problem)) <= MAX_COPY_BYTES


def multiplies_crosswise(dtype: torch.dtype) -> bool:
    """Whether matrix units read operands of this type with their axes exchanged."""
    return dtype.itemsize == 2


def reads_crosswise(precision: str) -> bool:
    """Whether dgrad_tma reads the weight as fprop does, and exchanges its axes as it multiplies.

    Matrix units do that with 16 bits alone, also where these were widened for the interpreter.
    """
    return precision == "ieee"


def tap_columns(problem: Problem, block: int) -> int:
    """Columns of every tap in the weight's matrix: its channels and, in a copy, zeros.

    Rows of the matrix start at multiples of 16 bytes, and steps of `block` channels do not reach
    into the next tap.
    """
    g, piece = problem.geometry, 16 // problem.dtype.itemsize
    turned = problem.op == "dgrad" and not reads_crosswise(problem.precision)
    channels = g.group_K if turned else g.group_C
    if problem.op != "wgrad" and _taps_follow(problem):
        piece = block
    return cdiv(channels, piece) * piece


def weight_copies(problem: Problem, block: int) -> list[int]:
    """Bytes of the copy that is made of the weight for a descriptor; [] where it is read itself."""
    g = problem.geometry
    if problem.op == "wgrad":
        return []
    turned = problem.op == "dgrad" and not reads_crosswise(problem.precision)
    rows, channels = (g.C, g.group_K) if turned else (g.K, g.group_C)
    columns = tap_columns(problem, block)
    if not turned and not problem.layout.repacks and columns == channels:
        return []
    return [rows * g.R * g.S * columns * problem.dtype.itemsize]


def _taps_follow(problem: Problem) -> bool:
    """Whether behind the summed channels of a tap, the weight has those of the next one."""
    g = problem.geometry
    return g.R * g.S > 1 and not (problem.op == "dgrad" and reads_crosswise(problem.precision))
