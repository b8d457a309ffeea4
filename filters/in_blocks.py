"""Filters of CPU images in one pass over memory: all steps on a block while it is in cache.

The steps are additions of shifted pixels, of which PyTorch does 16 at once, or convolutions with
neighbouring pixels as channels (ops/one_channel.py). They have no derivatives: an image that
autograd watches takes corr2d, like an image on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ..autograd.function import is_unwatched
from ..ops import cpu, one_channel
from ..ops.arguments import PADDING_MODES
from ..ops.blocks import padded_blocks
from ..ops.launch.formats import suggests_channels_last
from ..ops.one_channel import COLUMN_LANES, LANES, LONG_COLUMN

#: Computes results (n, rows, W), or (n, maps, rows, W), from pixels (n, rows + R - 1, W + S - 1).
Steps = Callable[[torch.Tensor, torch.Tensor], None]

#: Most taps of one axis for which additions are faster than ops/one_channel.py's other ways.
MOST_TAPS = 10
_DTYPES = {
    torch.uint8: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def run(
    image: torch.Tensor,
    window: tuple[int, int],
    padding_mode: str,
    steps: Steps,
    maps: int | None = None,
) -> torch.Tensor | None:
    """The image under `steps`, or None where it has to take corr2d.

    Args:
        image: (..., H, W).
        window: (R, S) that the steps see around a pixel, (R - 1) // 2 rows of it above.
        padding_mode: as for `corr2d`.
        steps: fills in the results of a block.
        maps: results per pixel, for a dimension before the last two.

    Returns:
        (..., H, W) or (..., maps, H, W).
    """
    R, S = window
    padding = ((R - 1) // 2, R // 2), ((S - 1) // 2, S // 2)
    if not _serves(image, padding, padding_mode):
        return None
    *planes, H, W = image.shape
    dtype = _DTYPES[image.dtype]
    images = image.contiguous().view(math.prod(planes), H, W)
    shape = (len(images), H, W) if maps is None else (len(images), maps, H, W)
    y = images.new_empty(shape, dtype=dtype)
    for some, rows, pixels in padded_blocks(images, R, padding, padding_mode, dtype):
        steps(pixels, y[some, ..., rows, :])
    y = y.view(*planes, *shape[1:])
    if maps is None and not image.is_contiguous() and _wants_channels_last(image):
        return y.movedim(-3, -1).contiguous().movedim(-1, -3)
    return y


def _wants_channels_last(image: torch.Tensor) -> bool:
    """Whether corr2d's result would be channels_last."""
    return suggests_channels_last(image) if image.dim() == 4 else is_channels_last(image)


def _serves(
    image: torch.Tensor, padding: tuple[tuple[int, int], tuple[int, int]], padding_mode: str
) -> bool:
    """Whether nobody watches, and PyTorch can pad so much."""
    if torch.compiler.is_compiling() or not image.is_cpu or not is_unwatched(image):
        return False
    if image.dtype not in _DTYPES or image.dim() < 2 or image.numel() == 0:
        return False
    stand_in = torch.empty((), dtype=_DTYPES[image.dtype], device="cpu")
    if not cpu.suffices(image, stand_in) or image.layout is not torch.strided:
        return False
    if padding_mode not in PADDING_MODES:
        return False
    copied = {"reflect": 1, "circular": 0}.get(padding_mode, -math.inf)
    extents = zip(padding, image.shape[-2:], strict=True)
    return all(max(sides) + copied <= extent for sides, extent in extents)


def is_channels_last(image: torch.Tensor) -> bool:
    """Whether an image (N, C, H, W) or (C, H, W) is channels_last and not also contiguous."""
    if image.dim() not in (3, 4) or image.is_contiguous():
        return False
    return image.movedim(-3, -1).is_contiguous()


def takes_separable(image: torch.Tensor, size: tuple[int, int]) -> bool:
    """Whether `separable` is the fastest way for a window (R, S), if `run` takes the image."""
    R, S = size
    if max(size) <= MOST_TAPS:
        return True
    is_large = image.shape[-2:].numel() >= one_channel.MIN_PIXELS
    return is_large and image.dtype != torch.float64 and R <= LONG_COLUMN and R + S < R * S


def separable(down: torch.Tensor, across: torch.Tensor) -> Steps:
    """The steps of the window down[r] * across[s]."""

    def add_taps(pixels: torch.Tensor, y: torch.Tensor) -> None:
        _taps(_taps(pixels, across.tolist(), -1), down.tolist(), -2, y)

    R, S = len(down), len(across)
    if max(R, S) <= MOST_TAPS:
        return add_taps
    row = one_channel.banded_bank(across.float().view(1, 1, 1, S))
    column = one_channel.column_bank(down.float())

    def convolve_lanes(pixels: torch.Tensor, y: torch.Tensor) -> None:
        if not one_channel.is_finite(pixels):
            add_taps(pixels, y)
            return
        W = y.shape[-1]
        more = -W % COLUMN_LANES  # outputs, so that the rows between are whole blocks of lanes
        pixels = F.pad(pixels, (0, more + one_channel.filling(W + more, S)))
        between = one_channel.as_channels(pixels, row, LANES)[:, 0]
        y.copy_(one_channel.as_channels(between, column, COLUMN_LANES)[:, 0, :, :W])

    return convolve_lanes


def box(R: int, S: int) -> Steps:
    """The steps of the mean of R x S pixels: sums of 1, 2, 4, ... pixels, then those of R and S.

    About log2(R) + log2(S) additions for a pixel; no sum has pixels of another window, so that
    rounding, infinity and NaN stay where they belong.
    """

    def steps(pixels: torch.Tensor, y: torch.Tensor) -> None:
        torch.div(_sums(_sums(pixels, R, -2), S, -1, y), R * S, out=y)

    return steps


def laplacian(neighbours: int, scale: float) -> Steps:
    """The steps of the sum of 4 or 8 neighbours less the pixel so many times, scaled.

    Its sums over a constant a are a, 2a, -2a, -a and 0, none of which is rounded.
    """

    def steps(pixels: torch.Tensor, y: torch.Tensor) -> None:
        _, P, Q = y.shape
        at = [[pixels[:, r : r + P, s : s + Q] for s in range(3)] for r in range(3)]
        torch.add(at[0][1], at[1][0], out=y)
        y.add_(at[1][1], alpha=-4).add_(at[1][2]).add_(at[2][1])
        if neighbours == 8:
            y.add_(at[0][0]).add_(at[0][2]).add_(at[1][1], alpha=-4)
            y.add_(at[2][0]).add_(at[2][2])
        if scale != 1:
            y.mul_(scale)

    return steps


def gradient(smooth: Sequence[float]) -> Steps:
    """The steps of d/dx and d/dy: a difference of two neighbours, smoothed across by three taps."""

    def steps(pixels: torch.Tensor, y: torch.Tensor) -> None:
        dx, dy = y.unbind(-3)
        _derivative(pixels, -1, smooth, dx)
        _derivative(pixels, -2, smooth, dy)

    return steps


def magnitude(smooth: Sequence[float], eps: float) -> Steps:
    """The steps of sqrt(dx^2 + dy^2 + eps), of the derivatives of `gradient`."""

    def steps(pixels: torch.Tensor, y: torch.Tensor) -> None:
        dx = _derivative(pixels, -1, smooth, torch.empty_like(y))
        _derivative(pixels, -2, smooth, y)
        if eps:
            torch.hypot(y, y.new_full((), math.sqrt(eps)), out=y)
        torch.hypot(dx, y, out=y)

    return steps


def _derivative(
    pixels: torch.Tensor, axis: int, smooth: Sequence[float], out: torch.Tensor
) -> torch.Tensor:
    """Differences along an axis, smoothed along the other by (side, middle, side)."""
    side, middle, _ = smooth
    n, across = pixels.shape[axis] - 2, -3 - axis
    difference = pixels.narrow(axis, 2, n) - pixels.narrow(axis, 0, n)
    before, here, after = (difference.narrow(across, i, out.shape[across]) for i in range(3))
    if side == 0:
        return torch.mul(here, middle, out=out)
    torch.add(before, after, out=out)
    if side != 1:
        out.mul_(side)
    return out.add_(here, alpha=middle)


def _taps(
    pixels: torch.Tensor, taps: Sequence[float], axis: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The pixels under a window of one row (axis -1) or column (axis -2)."""
    n = pixels.shape[axis] - len(taps) + 1
    first, *others = taps
    y = torch.mul(pixels.narrow(axis, 0, n), first, out=out)
    for i, tap in enumerate(others, 1):
        y.add_(pixels.narrow(axis, i, n), alpha=tap)
    return y


def _sums(
    pixels: torch.Tensor, size: int, axis: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Sums of `size` neighbours along an axis; the pixels themselves if that is one."""
    if size == 1:
        return pixels
    n, width, rest = pixels.shape[axis] - size + 1, 1, []
    while True:  # `pixels` are sums of `width` neighbours, half of the largest power of two or less
        if size & width:
            rest.append((pixels, width))
        if 4 * width > size:
            break
        reach = pixels.shape[axis] - width
        pixels = pixels.narrow(axis, 0, reach) + pixels.narrow(axis, width, reach)
        width *= 2
    y = torch.add(pixels.narrow(axis, 0, n), pixels.narrow(axis, width, n), out=out)
    done = 2 * width
    for part, width in rest:
        y.add_(part.narrow(axis, done, n))
        done += width
    return y
