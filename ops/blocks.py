"""Blocks of images on CPU: padded one at a time, so that all steps on a block stay in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .geometry import Pair

#: Pixels of a block. It and its result take 2 MiB as float32. Fewer cost more calls per pixel, more
#: leave the cache (measured on Zen 5: 2**16 and 2**20 are slower).
BLOCK = 2**18

#: One or several images and rows of their results, and the padded pixels under these rows' windows.
Block = tuple[slice, slice, torch.Tensor]


def padded_blocks(
    images: torch.Tensor,
    window_rows: int,
    padding: tuple[Pair, Pair],
    padding_mode: str,
    dtype: torch.dtype,
) -> Iterator[Block]:
    """Yields the blocks of images (N, H, W) under a window of so many rows, of stride 1.

    Args:
        images: of any dtype and strides.
        window_rows: rows of the window.
        padding: ((top, bottom), (left, right)), not negative.
        padding_mode: as for `corr2d`.
        dtype: of the pixels in the blocks.

    Yields:
        (images, rows, pixels): pixels (n, len(rows) + window_rows - 1, W + left + right).
    """
    (top, bottom), (left, right) = padding
    N, H, W = images.shape
    P = H + top + bottom - window_rows + 1
    mode = "constant" if padding_mode == "zeros" else padding_mode
    # Not lower than the window: each block's windows reach into the rows of others.
    height, together = max(1, BLOCK // W, window_rows), max(1, BLOCK // (H * W))
    padded = None
    for p in range(0, P, height):
        rows = slice(p, min(P, p + height))
        first, last = p - top, rows.stop + window_rows - 1 - top
        inside = slice(max(first, 0), min(last, H))
        above, below = inside.start - first, last - inside.stop
        sides = (left, right, above, below)
        # Padding that copies rows of another block needs the whole image.
        reach = max(above, below)
        whole = reach and (mode == "circular" or inside.stop - inside.start <= reach)
        if whole and padded is None:
            padded = F.pad(images.to(dtype), (left, right, top, bottom), mode)
        for n in range(0, N, together):
            some = slice(n, n + together)
            if whole:
                assert padded is not None
                yield some, rows, padded[some, p : rows.stop + window_rows - 1]
            else:
                pixels = images[some, inside].to(dtype)
                yield some, rows, F.pad(pixels, sides, mode) if any(sides) else pixels
