"""The choice of the window's size: kernel_size="auto".

Windows about one centre are nested, so the sums of a large one contain those of all smaller ones,
over the same pixels: each is solved without reading the images again. The chosen window has the
least Bayesian information criterion (G. Schwarz, Annals of Statistics 6, 1978),

    pixels * log(squared error / pixels) + unknowns * log(pixels)

If it is nearly as large as the largest one tried, larger windows are tried too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..ops import ArgumentError
from ..ops.arguments import Pair
from .gram import Sums, gather
from .normal import Constraints, Normal
from .options import Options
from .pairs import ImagePair
from .solve import squared_error
from .units import Units

#: Largest side tried at first, and at last.
FIRST_SIDE, LAST_SIDE = 15, 63
#: How often a chosen window is widened at most while the kernel goes on outside it.
WIDENINGS = 3
#: A squared error of this fraction of the target's sum of squares is rounding of float64 sums.
ROUNDING = 1e-14


def chosen_window(options: Options, images: tuple[object, ...]) -> tuple[Pair, str]:
    """(R, S), and the reason for the user.

    Args:
        options: of a fit with kernel_size="auto".
        images: x, y, mask, input_mask, weights and input_noise, as given to learn_kernel.

    Raises:
        ArgumentError: y does not have the size of x, so that it fits only windows of one size.
    """
    side = FIRST_SIDE
    while True:
        tried = options.with_size((side, side))
        pairs = tried.settings.pairs(*images)
        if any(not _any_window(pair, tried) for pair in pairs):
            raise ArgumentError(
                "kernel_size='auto' needs a target of the input's size (and padding None or "
                f"'same'), got {pairs[0].extent[0]} x {pairs[0].extent[1]} fitted pixels of an "
                f"input of {pairs[0].x.shape[-2]} x {pairs[0].x.shape[-1]}"
            )
        background = tried.settings.background
        units = Units.of(pairs, background)
        standard = [units.standard(pair, torch.float64) for pair in pairs]
        sums = gather(standard, background)
        g = pairs[0].geometry
        size = _least(sums, g.group_C, (side, side), torch.finfo(pairs[0].y.dtype).eps ** 2)
        next_side = 2 * side + 1
        enough = max(size) < side - 2 or next_side > largest_side(pairs)
        if enough:
            reason = f"{size[0]} x {size[1]} of up to {side} x {side} by the information criterion"
            return size, reason
        side = next_side


def largest_side(pairs: list[ImagePair]) -> int:
    """Largest side of a window tried for images of this size."""
    return min(LAST_SIDE, min(min(pair.x.shape[-2:]) for pair in pairs) // 2)


def _any_window(pair: ImagePair, options: Options) -> bool:
    """Whether the target fits windows of all sizes."""
    g = pair.geometry
    if options.padding is None:
        return (g.P + g.R - 1, g.Q + g.S - 1) == (g.H, g.W)
    return options.padding == "same"


def _least(sums: Sums, channels: int, whole: Pair, rounding: float) -> Pair:
    """The window with the least criterion: among squares first, then fewer rows or columns."""
    found: dict[Pair, float] = {}

    def criterion(size: Pair) -> float:
        if size not in found:
            found[size] = _criterion(sums, channels, whole, size, rounding)
        return found[size]

    sides = range(1, whole[0] + 1, 2)
    best = min(((n, n) for n in sides), key=criterion)
    for axis in (0, 1):
        other = best[1 - axis]
        shapes = [(n, other) if axis == 0 else (other, n) for n in range(1, best[axis] + 1)]
        best = min(shapes, key=criterion)
    return best


def _criterion(sums: Sums, channels: int, whole: Pair, size: Pair, rounding: float) -> float:
    kept = inside(whole, size, sums.gram.device).flatten().repeat(channels)
    kept = F.pad(kept, (0, sums.gram.shape[-1] - len(kept)), value=True)
    elements = channels * size[0] * size[1]
    per_gram, total = len(sums.moments) // len(sums.gram), 0.0
    constraints = Constraints(elements)
    theta = torch.zeros_like(sums.moments)
    for i, gram in enumerate(sums.noiseless(channels * whole[0] * whole[1])[0]):
        filters = slice(i * per_gram, (i + 1) * per_gram)
        normal = Normal(gram[kept][:, kept], constraints)
        moments = sums.moments[filters][:, kept]
        theta[filters.start : filters.stop, kept] = normal.minimum(moments, 0 * moments)
    pixels = float(sums.pixels.sum())
    floor = max(ROUNDING, rounding) * float(sums.squares.sum())
    total = max(float(squared_error(sums, theta).sum()), floor, 1e-300)
    unknowns = int(kept.sum()) * len(sums.moments)
    return pixels * math.log(total / pixels) + unknowns * math.log(pixels)


def centred_size(taps: torch.Tensor, whole: int) -> int:
    """Side of the smallest window, about the centre of one with `whole` taps, that holds `taps`."""
    centre = (whole - 1) // 2
    before, after = centre - int(taps[0]), int(taps[-1]) - centre
    return max(1, 2 * before + 1 if before > 0 else 1, 2 * after if after > 0 else 1)


def inside(whole: tuple[int, int], size: tuple[int, int], device: Any = None) -> torch.Tensor:
    """Which taps of a window `whole` are in the window `size` about its centre, bool (R, S)."""
    axes = []
    for taps, some in zip(whole, size, strict=True):
        first = (taps - 1) // 2 - (some - 1) // 2
        place = torch.arange(taps, device=device)
        axes.append((place >= first) & (place < first + some))
    return axes[0][:, None] & axes[1]
