"""Whether a window cuts its kernel off: would elements outside it explain part of the residual?

The window is moved by one row and one column, in each of the four diagonal directions. With A' the
map from the moved kernel, G the normal matrix and r the residual, Newton's step there is
G^-1 A'^T r. Only the row and the column outside the fitted window matter. With e their score (with
the other elements eliminated) and S their Schur complement in G, they lower the loss by
e^T S^-1 e.

Noise alone lowers the loss too. To estimate by how much, the image is divided into blocks with
scores e_i: noise, of any size and correlated over a few pixels, gives about
sum_i e_i^T S^-1 e_i. If the kernel goes on outside the window, the e_i of all blocks are similar,
and their sum e gives far more. Each e_i is first divided by the root of its length, so that a few
blocks of high contrast do not dominate. The ratio of the two is distributed as chi-squared over its
degrees of freedom, which are estimated from the e_i.

K.-Y. Liang and S. L. Zeger, Biometrika 73 (1986): scores of clusters. F. E. Satterthwaite,
Biometrics Bulletin 2 (1946): degrees of freedom. E. B. Wilson and M. M. Hilferty, PNAS 17 (1931):
chi-squared as a cube of a normal variable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..ops import fourier
from ..ops.arguments import Pair
from .background import Background
from .pairs import ImagePair

#: Approximate number of blocks of all images together; with fewer than the second, no result.
BLOCKS, FEWEST_BLOCKS = 64, 9
#: The shortest side of a block, in outputs.
SHORTEST_SIDE = 4
#: Outputs in all blocks: this number, or this fraction of all outputs if that is more.
PIXELS, FRACTION = 2**15, 1 / 8
#: A group's channels times filters above which a window is not examined.
MOST_CHANNELS = 64
#: Standard deviations above which the ratio counts as significant; chance is 1 in 300 000.
CERTAIN = 4.5


@dataclass(frozen=True)
class Border:
    """Result of the test for elements just outside a window.

    Attributes:
        deviation: of the ratio from its expectation for noise, in standard deviations.
        largest: magnitude of the largest such element, in the units of the kernel.
    """

    deviation: float
    largest: float

    @property
    def cuts(self) -> bool:
        """Whether the kernel goes on outside the window."""
        return self.deviation > CERTAIN


@dataclass(frozen=True)
class Scores:
    """Scores of blocks of the outputs, for a window that is larger by one on each side.

    Attributes:
        kernel: (blocks, K, C/groups, R + 2, S + 2).
        background: (blocks, K, T).
        part: the fraction of all outputs that is in the blocks.
    """

    kernel: torch.Tensor
    background: torch.Tensor
    part: float


def scores_of(
    pairs: list[ImagePair], residual: list[torch.Tensor], background: Background
) -> Scores | None:
    """The scores of a fit.

    Args:
        pairs: of the fit.
        residual: prediction minus target of each, (N, K, P, Q).
        background: of the fit.

    Returns:
        None for too few pixels or too many channels.
    """
    g = pairs[0].geometry
    if g.group_C * g.group_K > MOST_CHANNELS:
        return None
    parts, seen, whole = [], 0, 0
    for pair, image in zip(pairs, residual, strict=True):
        *found, pixels = _scores(pair, image, background, BLOCKS // len(pairs) or 1)
        parts.append(found)
        seen, whole = seen + pixels, whole + image[:, 0].numel()
    kernel, behind = (torch.cat(part) for part in zip(*parts, strict=True))
    if len(kernel) < FEWEST_BLOCKS or seen == 0:
        return None
    return Scores(kernel, behind, seen / whole)


def border_of(scores: Scores, inverses: list[torch.Tensor], noise: torch.Tensor) -> Border:
    """Elements just outside the window, from the scores of the best kernel inside.

    Args:
        scores: of the fit.
        inverses: of the normal matrices, (D, D) for each group or each filter.
        noise: (K, D), contribution of the noise of x to the scores of all pixels.
    """
    blocks, filters, channels = scores.kernel.shape[:3]
    R, S = (n - 2 for n in scores.kernel.shape[3:])
    deviation = largest = 0.0
    elements = channels * R * S
    share = noise.to(scores.kernel) * (scores.part / blocks)
    of_kernel = share[:, :elements].view(filters, channels, R, S)
    kernel = scores.kernel - F.pad(of_kernel, (1, 1, 1, 1))
    behind = scores.background - share[:, elements:]
    corners = [(r, s) for r in (0, 2) for s in (0, 2)]
    where = _outside(channels, R, S, corners).to(kernel.device)
    for k in range(filters):
        inverse = inverses[k * len(inverses) // filters]
        moved = [kernel[:, k, :, r : r + R, s : s + S].flatten(1) for r, s in corners]
        score = torch.cat([torch.stack(moved), behind[:, k].expand(4, -1, -1)], 2)
        columns = inverse[:, where].transpose(0, 1)  # (4, D, outside)
        steps = score @ columns  # (4, blocks, outside)
        chances = _deviations(steps, inverse[where[:, :, None], where[:, None]])
        chance = max(chances)
        if chance > deviation:
            deviation = chance
            largest = float(steps[chances.index(chance)].sum(0).abs().max()) / scores.part
    return Border(deviation, largest)


def _outside(channels: int, R: int, S: int, corners: list[Pair]) -> torch.Tensor:
    """Elements of a window, moved to each corner, that lie outside of its place: (4, elements)."""
    outside = torch.zeros(len(corners), channels, R, S, dtype=torch.bool, device="cpu")
    for moved, (r, s) in zip(outside, corners, strict=True):
        moved[:, 0 if r == 0 else -1] = True
        moved[..., 0 if s == 0 else -1] = True
    return outside.flatten(1).nonzero()[:, 1].view(len(corners), -1)


def _deviations(steps: torch.Tensor, inverse: torch.Tensor) -> list[float]:
    """Deviations of summed steps from their expectation for noise, in standard deviations.

    Args:
        steps: (sums, blocks, elements).
        inverse: S^-1, (sums, elements, elements).

    Returns:
        One for each sum; 0 where S^-1 is not positive definite or all steps are zero.
    """
    factor, failed = torch.linalg.cholesky_ex(inverse)
    root = torch.linalg.solve_triangular(factor, steps.mT, upper=False)  # (sums, elements, blocks)
    root = root / root.norm(dim=1, keepdim=True).clamp(min=1e-300).sqrt()
    by_chance = root.square().sum((1, 2))
    ratio = root.sum(2).square().sum(1) / by_chance
    products = root - root.mean(2, keepdim=True)
    products = products.mT @ products
    own = products.diagonal(dim1=1, dim2=2)
    others = products.square().sum((1, 2)) - own.square().sum(1)
    freedom = (own.sum(1).square() / others.clamp(min=1e-300)).clamp(min=1)
    spread = 2 / (9 * freedom)
    deviations = (ratio ** (1 / 3) - 1 + spread) / spread.sqrt()
    known = (failed == 0) & (by_chance > 0)
    found: list[float] = torch.where(known, deviations, 0.0).tolist()
    return found


def _scores(
    pair: ImagePair, residual: torch.Tensor, background: Background, blocks: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scores of a window that is larger by one on each side, for blocks of one pair's outputs.

        score[b,k,c,r,s] = sum_{(p,q) in b} weights[p,q] * residual[k,p,q] * x[c,p+r-1,q+s-1]

    Returns:
        (blocks, K, C/groups, R + 2, S + 2); scores of the background (blocks, K, T); the number of
        outputs in all blocks.
    """
    g, (R, S) = pair.geometry, pair.window
    (top, bottom), (left, right) = pair.padding
    images = min(g.N, blocks)
    x, residual = pair.x[:images], residual[:images]
    if any((top, bottom, left, right)):
        x = F.pad(x, (left, right, top, bottom))
    pixels = max(PIXELS, int(FRACTION * g.N * g.P * g.Q))
    grid = _grid((g.P - 2, g.Q - 2), max(1, blocks // images), pixels // images)
    (rows, down, high), (columns, across, wide) = grid

    def cut(image: torch.Tensor, firsts: Pair, steps: Pair, sides: Pair) -> torch.Tensor:
        """(N, C, H, W) into (N * rows * columns, C, *sides)."""
        image = image[..., firsts[0] :, firsts[1] :]
        tiles = image.unfold(2, sides[0], steps[0]).unfold(3, sides[1], steps[1])
        tiles = tiles[:, :, :rows, :columns].permute(0, 2, 3, 1, 4, 5)
        return tiles.flatten(0, 2)

    if min(rows, columns) == 0:
        shape = (0, g.K, g.group_C, R + 2, S + 2)
        nothing = pair.x.new_zeros(shape, dtype=torch.float64)
        return nothing, nothing.new_zeros(0, g.K, len(background.terms)), 0
    stride = pair.stride
    first = (stride[0] - 1, stride[1] - 1)  # the window of output 1, less one row and column
    apart = ((high - 1) * stride[0] + 1, (wide - 1) * stride[1] + 1)
    steps = (down * stride[0], across * stride[1])
    windows = cut(x, first, steps, (apart[0] + R + 1, apart[1] + S + 1))
    outputs = (1, 1), (down, across), (high, wide)
    left_over = cut(residual, *outputs).double()
    if pair.weights is not None:
        left_over = left_over * cut(pair.weights[:images], *outputs)
    surfaces = background.images(pair.extent, pair.place, left_over)
    behind = cut(surfaces.expand(images, -1, -1, -1), *outputs)
    of_background = torch.einsum("bkpq,btpq->bkt", left_over, behind)
    size = [fourier.fast_length(n) for n in windows.shape[-2:]]
    scores = []
    step = max(1, fourier.TILE_ELEMENTS // (size[0] * size[1] * max(g.C, g.K)))
    for i in range(0, len(windows), step):
        part = left_over[i : i + step]
        spread = part.new_zeros(*part.shape[:2], *apart)
        spread[..., :: stride[0], :: stride[1]] = part
        taps = torch.fft.rfft2(spread, s=size).conj().unflatten(1, (g.groups, g.group_K, 1))
        spectra = torch.fft.rfft2(windows[i : i + step].double(), s=size)
        spectra = spectra.unflatten(1, (g.groups, 1, g.group_C))
        scores.append(torch.fft.irfft2(taps * spectra, s=size)[..., : R + 2, : S + 2])
    return torch.cat(scores).flatten(1, 2), of_background, len(left_over) * high * wide


def _grid(extent: Pair, blocks: int, pixels: int) -> tuple[tuple[int, int, int], ...]:
    """(number of blocks, distance between their starts, side), for rows and for columns.

    Args:
        extent: of the outputs that are divided.
        blocks: approximate number of blocks.
        pixels: most outputs in all blocks.
    """
    most = [n // SHORTEST_SIDE for n in extent]
    if min(most) < 1:
        return ((0, 1, 1), (0, 1, 1))
    rows = round((blocks * extent[0] / extent[1]) ** 0.5)
    rows = min(max(rows, 1), most[0])
    columns = min(max(blocks // rows, 1), most[1])
    shrink = min(1.0, (pixels / (extent[0] * extent[1])) ** 0.5)
    found = []
    for n, count in zip(extent, (rows, columns), strict=True):
        step = n // count
        found.append((count, step, max(SHORTEST_SIDE, int(step * shrink))))
    return tuple(found)
