"""Digits of the patch kernels' matrix columns, see ops/plan/patch.py; blocks as chunks of lanes."""

import triton
import triton.language as tl

from .schedule import next_digit


@triton.jit
def split_patch_column(
    column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, ACROSS: tl.constexpr
):
    """(a, b, channel, group) of a column: row and column in a patch, channel of the group.

    Channels are the fastest digit. ACROSS: they come after the pixels of the patch, so that
    neighbouring columns are neighbours in a row of an image in planes.
    """
    if ACROSS:
        b, column = next_digit(column, COLUMNS.PITCH)
        a, column = next_digit(column, ROWS.PITCH)
        channel, group = next_digit(column, CHANNELS)
    else:
        channel, column = next_digit(column, CHANNELS)
        b, column = next_digit(column, COLUMNS.PITCH)
        a, group = next_digit(column, ROWS.PITCH)
    return a, b, channel, group


@triton.jit
def tap_at_place(place, result, AXIS: tl.constexpr):
    """The tap (maybe outside the window) through which a patch's result reads a place."""
    return place * AXIS.TAP_OF_PLACE + result * AXIS.TAP_OF_RESULT + AXIS.FIRST_TAP


@triton.jit
def in_chunks(block, LANES: tl.constexpr):
    """A block [rows, columns] as [chunk, row, lane], with LANES columns in a chunk."""
    ROWS: tl.constexpr = block.shape[0]
    return block.reshape(ROWS, block.shape[1] // LANES, LANES).permute(1, 0, 2)


@triton.jit
def chunks_of_lanes(SIZE: tl.constexpr, LANES: tl.constexpr):
    """0, 1, ... SIZE - 1 as [chunk, 1, lane]."""
    chunk = tl.arange(0, SIZE // LANES)[:, None, None]
    return chunk * LANES + tl.arange(0, LANES)[None, None, :]
