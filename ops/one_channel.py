"""Correlations of one-channel images on CPU, where PyTorch's own convolution is slow.

PyTorch's float32 convolution of one channel uses a small part of the processor, and its float64 one
first copies the image once per tap. These ways are faster and need little memory besides the padded
image:

- few taps: add shifted rows, one tap at a time, in blocks that stay in cache;
- float32: view 16 neighbouring pixels of a row as 16 channels (the same memory, channels_last) and
  the window as a banded bank of filters, which PyTorch convolves fast;
- float32 windows of one column: the same channels, each convolved on its own;
- float64, and long windows of one column: the same band as a matrix product, or Fourier transforms
  if there are many taps.

A band holds zeros beside the window, and zero times infinity or NaN is NaN. So an image with values
that are not finite is always added tap by tap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F

from .blocks import Block, padded_blocks
from .geometry import Geometry

#: Pixels that count as channels: the float32 lanes of the widest vector registers.
LANES = 16
#: From this many pixels of a float32 plane on, PyTorch's convolution takes its slow path...
MIN_PIXELS = 20480
#: ...and from this many multiply-adds of a filter on one plane (measured, as all below: Zen 5 with
#: AVX-512, PyTorch 2.13). Smaller planes take PyTorch's convolution, whose fixed cost is less.
MIN_WORK = {torch.float32: 2**21, torch.float64: 2**18}
#: Smaller images, whatever their window, are never worth asking `is_large`.
LEAST_PIXELS = 512
#: Most taps that are added one by one, by dtype.
FEW_TAPS = {torch.float32: 10, torch.float64: 49}
#: Fewest taps of a float64 window for which Fourier transforms beat bands.
MANY_TAPS = 200
#: Pixels that count as channels under windows of one column, and most rows of such a window for
#: which each channel's own convolution beats bands.
COLUMN_LANES, LONG_COLUMN = 32, 64
#: Outputs along a row or column per band.
BAND = 32


def takes(geometry: Geometry, dtype: torch.dtype) -> bool:
    """Whether one of the ways above serves this correlation."""
    g = geometry
    if g.C != 1 or g.per_sample or dtype not in FEW_TAPS:
        return False
    if not is_large(g.P * g.Q, g.R * g.S, dtype):
        return False
    if g.given_stride != (1, 1) or g.dilation != (1, 1) or g.W <= 2 * (g.S + LANES):
        return False
    # The right padding is widened to whole blocks: padding modes need as many pixels to copy.
    if g.padding_mode != "zeros" and g.padding[1][1] + COLUMN_LANES > g.W:
        return False
    return all(pad >= 0 for pair in g.padding for pad in pair)


def is_large(pixels: int, taps: int, dtype: torch.dtype) -> bool:
    """Whether a plane of so many pixels is worth the fixed cost, under a window of so many taps."""
    if pixels * taps >= MIN_WORK.get(dtype, pixels * taps + 1):
        return True
    return dtype == torch.float32 and pixels >= MIN_PIXELS


def fprop(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """y (N, K, P, Q), contiguous, of x (N, 1, H, W)."""
    g = geometry
    y = x.new_empty(g.y_shape)
    taps = weight[:, 0].nonzero().tolist()
    few = len(taps) <= FEW_TAPS[x.dtype] * g.K
    finite = (few and len(taps) == weight.numel()) or is_finite(x)
    if few or not finite:
        # Where all is finite, taps of zero need not be added.
        taps = taps if finite else torch.ones_like(weight[:, 0]).nonzero().tolist()
        values = weight[:, 0].tolist()
        for n, rows, pixels in _blocks(x, g, 0):
            _add_taps(pixels, values, taps, y[n, :, rows])
    elif g.S == 1 and g.R <= LONG_COLUMN and x.dtype == torch.float32:
        banks = [column_bank(column) for column in weight[:, 0, :, 0]]
        for n, rows, pixels in _blocks(x, g, -g.Q % COLUMN_LANES):
            for k, bank in enumerate(banks):
                y[n, k, rows] = as_channels(pixels, bank, COLUMN_LANES)[:, 0, :, : g.Q]
    elif g.S == 1:
        bands = _band(weight[:, 0, :, 0], BAND)
        for n, rows, pixels in _blocks(x, g, 0):
            _down(pixels, bands, y[n, :, rows])
    elif x.dtype == torch.float32:
        bank = banded_bank(weight)
        for n, rows, pixels in _blocks(x, g, filling(g.Q, g.S)):
            y[n, :, rows] = as_channels(pixels, bank, LANES)[..., : g.Q]
    elif g.R * g.S >= MANY_TAPS:
        _by_spectra(_padded(x, g, 0), weight, y)
    else:
        _across(_padded(x, g, 0), weight, y)
    return y


def dgrad(dy: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """dx (N, 1, H, W) of a geometry that pads with zeros."""
    turned = replace(geometry, K=1).adjoint()
    windows = weight.flip(-2, -1).split(1)
    dx = fprop(dy[:, :1], windows[0], turned)
    for k in range(1, geometry.K):
        dx += fprop(dy[:, k : k + 1], windows[k], turned)
    return dx


def wgrad(x: torch.Tensor, dy: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """dw (K, 1, R, S)."""
    g = geometry
    finite = is_finite(x) and is_finite(dy)
    if finite and x.dtype == torch.float32:
        return _gradient_as_channels(x, dy, g)
    padded = _padded(x, g, 0)
    dw = dy.new_zeros(g.weight_shape)
    if not finite:
        for r, s in product(range(g.R), range(g.S)):
            dw[:, 0, r, s] = (dy * padded[..., r : r + g.P, s : s + g.Q]).sum((0, 2, 3))
        return dw
    for q in range(0, g.Q, BAND):
        width = min(BAND, g.Q - q)
        for n in range(g.N):
            for k in range(g.K):
                right = dy[n, k, :, q : q + width]
                for r in range(g.R):
                    band = padded[n, 0, r : r + g.P, q : q + width + g.S - 1].T @ right
                    dw[k, 0, r] += _diagonals(band.T.contiguous(), g.S).sum(-2)
    return dw


def is_finite(image: torch.Tensor) -> bool:
    """Whether all pixels are finite; an overflowing sum counts as infinite, which is safe."""
    return bool(image.sum().isfinite())


def filling(columns: int, S: int) -> int:
    """Columns to add at the right so that as many outputs read whole blocks of LANES."""
    return -columns % LANES + -(S - 1) % LANES


def _padded(x: torch.Tensor, g: Geometry, filling: int) -> torch.Tensor:
    """The padded image, contiguous, with `filling` more columns at the right."""
    (top, bottom), (left, right) = g.padding
    sides = (left, right + filling, top, bottom)
    if not any(sides):
        return x.contiguous()
    mode = "constant" if g.padding_mode == "zeros" else g.padding_mode
    return F.pad(x, sides, mode=mode).contiguous()


def _blocks(x: torch.Tensor, g: Geometry, filling: int) -> Iterator[Block]:
    """The padded blocks of x (N, 1, H, W), with `filling` more columns at the right."""
    rows, (left, right) = g.padding
    padding = rows, (left, right + filling)
    return padded_blocks(x[:, 0], g.R, padding, g.padding_mode, x.dtype)


def _add_taps(
    pixels: torch.Tensor, values: list[list[list[float]]], taps: list[list[int]], y: torch.Tensor
) -> None:
    """y (n, K, rows, Q), a tap at a time."""
    started = set()
    _, K, P, Q = y.shape
    for k, r, s in taps:
        shifted = pixels[:, r : r + P, s : s + Q]
        if k in started:
            y[:, k].add_(shifted, alpha=values[k][r][s])
        else:
            torch.mul(shifted, values[k][r][s], out=y[:, k])
            started.add(k)
    for k in set(range(K)) - started:
        y[:, k] = 0


def _band(window: torch.Tensor, outputs: int) -> torch.Tensor:
    """(..., outputs, outputs + S - 1) of a window (..., S): row i holds it from column i on."""
    S = window.shape[-1]
    spread = F.pad(window.unsqueeze(-2).expand(*window.shape[:-1], outputs, S), (0, outputs))
    # Rows of one element more than the band's: reshaping shifts each row by one.
    return spread.flatten(-2)[..., :-outputs].unflatten(-1, (outputs, outputs + S - 1))


def _diagonals(band: torch.Tensor, S: int) -> torch.Tensor:
    """(..., outputs, S): the window of each row of a contiguous `_band`; its inverse."""
    *batch, outputs, _ = band.shape
    *steps, row, column = band.stride()
    return band.as_strided((*batch, outputs, S), (*steps, row + column, column))


def banded_bank(weight: torch.Tensor) -> torch.Tensor:
    """The banded bank (K * output lane, input lane, R, blocks) of a weight (K, 1, R, S)."""
    S = weight.shape[-1]
    bands = F.pad(_band(weight[:, 0], LANES), (0, -(S - 1) % LANES))  # (K, R, lane, block * lane)
    return bands.unflatten(-1, (-1, LANES)).permute(0, 2, 4, 1, 3).flatten(0, 1)


def column_bank(column: torch.Tensor) -> torch.Tensor:
    """The bank (lane, 1, R, 1) of a window (R,) of one column: each lane is convolved alone."""
    return column.view(1, 1, -1, 1).expand(COLUMN_LANES, 1, -1, 1)


def as_channels(pixels: torch.Tensor, bank: torch.Tensor, lanes: int) -> torch.Tensor:
    """(n, K, rows, columns) of float32 pixels (n, H, W), W a multiple of `lanes`, under a bank.

    Columns at the right that a window in the last lanes does not reach whole are computed too.
    """
    image = _lanes(pixels.contiguous(), lanes)
    sums = torch.conv2d(image, bank, groups=lanes // bank.shape[1])  # (n, K * lane, P, block)
    return sums.unflatten(1, (-1, lanes)).permute(0, 1, 3, 4, 2).flatten(-2)


def _lanes(image: torch.Tensor, lanes: int) -> torch.Tensor:
    """(N, H, W) as (N, lanes, H, W / lanes), channels_last."""
    return image.unflatten(-1, (-1, lanes)).permute(0, 3, 1, 2)


def _gradient_as_channels(x: torch.Tensor, dy: torch.Tensor, g: Geometry) -> torch.Tensor:
    """dw (K, 1, R, S): sums the gradient of `as_channels`' bank along its diagonals."""
    blocks = -(-(g.S - 1) // LANES) + 1
    bank = dy.new_empty(1).expand(g.K * LANES, LANES, g.R, blocks)
    total = dy.new_zeros(bank.shape)
    for n, rows, pixels in _blocks(x, g, filling(g.Q, g.S)):
        lanes = _lanes(pixels.contiguous(), LANES)
        grad = F.pad(dy[n, :, rows], (0, -g.Q % LANES)).unflatten(-1, (-1, LANES))
        grad = grad.permute(0, 1, 4, 2, 3).flatten(1, 2)  # (n, K * lane, P, block)
        _, part, _ = torch.ops.aten.convolution_backward(
            grad, lanes, bank, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False)
        )
        total += part
    # (K, lane, lane, R, block) -> (K, R, lane, block * lane)
    bands = total.unflatten(0, (g.K, LANES)).permute(0, 3, 1, 4, 2).flatten(-2).contiguous()
    return _diagonals(bands, g.S).sum(-2).unsqueeze(1)


def _down(pixels: torch.Tensor, bands: torch.Tensor, y: torch.Tensor) -> None:
    """y (n, K, rows, Q) for windows of one column: bands (K, output, row) times blocks of rows."""
    reach = bands.shape[-1] - BAND
    for image, planes in zip(pixels, y, strict=True):
        for k, plane in enumerate(planes):
            for p, out in enumerate(plane.split(BAND)):
                above = image[p * BAND : p * BAND + len(out) + reach]
                torch.mm(bands[k, : len(out), : len(above)], above, out=out)


def _across(padded: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> None:
    """y by bands: one matrix product per row of the window and strip of BAND columns."""
    _, _, R, S = weight.shape
    bands = _band(weight[:, 0], BAND).mT.contiguous()  # (K, R, column, output)
    P, Q = y.shape[-2:]
    for n in range(len(y)):
        for k in range(len(weight)):
            for q in range(0, Q, BAND):
                width = min(BAND, Q - q)
                columns = slice(q, q + width + S - 1)
                out = y[n, k, :, q : q + width].zero_()
                for r in range(R):
                    out.addmm_(
                        padded[n, 0, r : r + P, columns], bands[k, r, : width + S - 1, :width]
                    )


def _by_spectra(padded: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> None:
    """y by Fourier transforms of overlapping strips of rows."""
    R = weight.shape[2]
    width = _smooth(padded.shape[-1])
    height = _smooth(max(256, 4 * R))
    spectra = torch.fft.rfft2(weight[:, 0], (height, width)).conj_physical()
    rows = height - R + 1
    for n in range(len(y)):
        for p in range(0, y.shape[2], rows):
            strip = torch.fft.rfft2(padded[n, 0, p : p + height], (height, width))
            for k in range(len(weight)):
                sums = torch.fft.irfft2(strip * spectra[k], (height, width))
                out = y[n, k, p : p + rows]
                out.copy_(sums[: len(out), : out.shape[-1]])


def _smooth(size: int) -> int:
    """The next number with no prime factors but 2, 3 and 5, for which transforms are fast."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
