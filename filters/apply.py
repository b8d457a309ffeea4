"""What the filters share: every plane of an image under a window, a bank, or separable windows."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..autograd.functional import corr2d
from ..ops import ArgumentError
from ..ops.checks import check_tensors

#: Taps that an H200 computes in the time of one byte to or from memory. At 4.8 TB/s there is time
#: for 57 instructions in the 8 bytes of a float32 output, and compiled row kernels take 1.2
#: (7x7, float32) to 1.6 (7x7, bfloat16) instructions a tap. Derived, not measured.
TAPS_PER_BYTE = 5


def responses(input: torch.Tensor, bank: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """(..., K, H, W): every plane under every filter of a bank (K, 1, R, S), by one operator."""
    if is_channels_last(input) and input.dim() == 3:
        return responses(_batch_of_one(input), bank, padding_mode).squeeze(0)
    *planes, H, W = input.shape
    bank = _beside(input, bank)
    if input.dim() == 4 and not input.is_contiguous():
        # Planes that are not stacked evenly stay channels: the same bank for each of them.
        C = input.shape[1]
        y = corr2d(input, bank.repeat(C, 1, 1, 1), None, 1, "same", 1, C, padding_mode=padding_mode)
    else:
        x = input.reshape(math.prod(planes), 1, H, W)
        y = corr2d(x, bank, padding="same", padding_mode=padding_mode)
    return y.reshape(*planes, len(bank), H, W)


def filtered(input: torch.Tensor, window: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """(..., H, W) under a window (R, S), or (N, C, H, W) under one per sample (N, R, S)."""
    if is_channels_last(input) and input.dim() == 3:
        return filtered(_batch_of_one(input), window, padding_mode).squeeze(0)
    window = _beside(input, window)
    if window.dim() == 2:
        return corr2d(input, window, padding="same", padding_mode=padding_mode)
    N, C = input.shape[:2]
    weight = window[:, None, None].expand(N, C, 1, *window.shape[1:])
    return corr2d(input, weight, padding="same", groups=C, padding_mode=padding_mode)


def separable(
    input: torch.Tensor, down: torch.Tensor, across: torch.Tensor, padding_mode: str
) -> torch.Tensor:
    """The image under down[r] * across[s]: windows (R,) and (S,), or one of each per sample."""
    column, row = down.unsqueeze(-1), across.unsqueeze(-2)
    sizes = (input.element_size(), result_dtype(input).itemsize)
    if _two_passes_are_cheaper((down.shape[-1], across.shape[-1]), sizes):
        return filtered(filtered(input, row, padding_mode), column, padding_mode)
    return filtered(input, column * row, padding_mode)


def _two_passes_are_cheaper(window: tuple[int, int], element_sizes: tuple[int, int]) -> bool:
    """Whether rows, then columns take less time than the window (R, S) at once.

    A pass takes as long as the slower of its taps and its bytes. From float32 to float32, two
    passes move 16 bytes a pixel: the time of 80 taps, so 9x9 is the first square of two passes.
    """
    R, S = window
    read, written = element_sizes

    def time(taps: int, bytes_moved: int) -> int:
        return max(taps, TAPS_PER_BYTE * bytes_moved)

    return time(S, read + written) + time(R, 2 * written) < time(R * S, read + written)


def check_image(input: Any) -> None:
    """Raises ArgumentError or ArgumentTypeError unless `input` is an image (..., H, W)."""
    check_tensors(images=("input",), input=input)
    if input.dim() < 2:
        raise ArgumentError(f"input must be (..., H, W), got shape {tuple(input.shape)}")


def result_dtype(input: torch.Tensor) -> torch.dtype:
    """The dtype of a filtered image, and so of its window."""
    return torch.float32 if input.dtype == torch.uint8 else input.dtype


def is_channels_last(input: torch.Tensor) -> bool:
    """Whether an image (N, C, H, W) or (C, H, W) is laid out so, and not also contiguous."""
    if input.dim() not in (3, 4) or input.is_contiguous():
        return False
    return input.movedim(-3, -1).is_contiguous()


def _beside(input: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """A window in the image's dtype on its device, without waiting for what runs there."""
    return window.to(input.device, result_dtype(input), non_blocking=True)


def _batch_of_one(input: torch.Tensor) -> torch.Tensor:
    """(1, C, H, W) of a channels_last (C, H, W), with the strides that say so."""
    return input.movedim(-3, -1).unsqueeze(0).movedim(-1, -3)
