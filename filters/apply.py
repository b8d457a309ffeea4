"""Applies a window, a bank or separable windows to every plane of an image."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, cast, overload

import torch

from ..autograd import separable as in_one_pass
from ..autograd.function import is_unwatched
from ..autograd.functional import corr2d
from ..autograd.modules import PaddingMode
from ..images.inputs import ArrayLike
from ..ops.arguments import PaddingLike
from ..ops.backend import runs_kernels
from ..ops.one_channel import MIN_PIXELS
from . import in_blocks
from .in_blocks import is_channels_last

if TYPE_CHECKING:
    from numpy.typing import NDArray

P = ParamSpec("P")
#: One-dimensional: numbers, or a float64 tensor.
Window: TypeAlias = "Sequence[float] | torch.Tensor"

#: Taps that an H200 computes in the time of one byte of memory traffic. At 4.8 TB/s, the 8 bytes
#: of a float32 output take as long as 57 instructions, and compiled rows kernels need 1.2 (7x7,
#: float32) to 1.6 (7x7, bfloat16) instructions per tap. Derived, not measured.
TAPS_PER_BYTE = 5


class Filter(Protocol[P]):
    """A function of an image: it returns a tensor for a tensor, else a NumPy array."""

    @overload
    def __call__(self, input: torch.Tensor, *args: P.args, **kwargs: P.kwargs) -> torch.Tensor: ...
    @overload
    def __call__(self, input: ArrayLike, *args: P.args, **kwargs: P.kwargs) -> NDArray[Any]: ...


def typed(function: Callable[Concatenate[Any, P], Any]) -> Filter[P]:
    """Returns `function` itself, typed so that checkers know the result by the input."""
    return cast("Filter[P]", function)


def responses(
    input: torch.Tensor,
    bank: torch.Tensor,
    padding_mode: PaddingMode,
    padding: PaddingLike = "same",
    then: torch.Tensor | None = None,
    plus: torch.Tensor | None = None,
) -> torch.Tensor:
    """(..., K, P, Q): every plane under every filter of a bank (K, 1, R, S), by one operator.

    A second one filters response k with filter k of the bank `then` (K, 1, R, S), if given. `plus`,
    other responses of this shape, is added before the (first) rounding.
    """
    if is_channels_last(input) and input.dim() == 3:
        more = plus if plus is None else plus.unsqueeze(0)
        return responses(_batch_of_one(input), bank, padding_mode, padding, then, more).squeeze(0)
    *planes, H, W = input.shape
    C = 1
    if input.dim() == 4 and not input.is_contiguous():
        # Planes with gaps cannot be viewed as samples: give each channel the same bank.
        C = input.shape[1]
        x, weight = input, bank.repeat(C, 1, 1, 1)
    else:
        x, weight = input.reshape(math.prod(planes), 1, H, W), bank
    if plus is not None:
        plus = plus.reshape(len(x), len(weight), *plus.shape[-2:])
    y = _correlated(x, weight, padding_mode, padding, groups=C, residual=plus)
    if then is not None:
        y = _correlated(y, then.repeat(C, 1, 1, 1), padding_mode, padding, groups=y.shape[1])
    return y.reshape(*planes, len(bank), *y.shape[-2:])


def responses_to_differences(
    input: torch.Tensor, bank: torch.Tensor, padding_mode: PaddingMode
) -> torch.Tensor:
    """`responses` to a bank whose filters sum to zero: exactly zero on flat images.

    By summation by parts, weights w that sum to zero act on differences of neighbours:

        sum_s w[s] x[s] = -sum_s c[s] (x[s+1] - x[s]),  c[s] = w[0] + ... + w[s]

    A single row of a filter need not sum to zero: its sum is moved to the middle column, to which
    the same formula is applied along y.
    """
    R, S = bank.shape[-2:]
    top, left = (R - 1) // 2, (S - 1) // 2
    rows, columns = (top, R - 1 - top), (left, S - 1 - left)
    of_rows = bank.sum(-1)
    along_x = bank.clone()
    along_x[..., left] -= of_rows
    difference = torch.tensor([[-1, 1]], dtype=torch.float64, device="cpu")
    dx = filtered(input, difference, padding_mode, padding=(rows, columns))
    dy = filtered(input, difference.T, padding_mode, padding=(rows, (0, 0)))
    y = responses(dx, -along_x.cumsum(-1)[..., :-1], padding_mode, "valid")
    down = -of_rows.cumsum(-1)[..., :-1, None]
    return responses(dy, down, padding_mode, "valid", plus=y)


def filtered(
    input: torch.Tensor,
    window: torch.Tensor,
    padding_mode: PaddingMode,
    plus: torch.Tensor | None = None,
    padding: PaddingLike = "same",
) -> torch.Tensor:
    """(..., H, W) under a window (R, S), or (N, C, H, W) under one per sample (N, R, S).

    Args:
        input: the image.
        window: of any float dtype, on any device.
        padding_mode: what lies beyond the border.
        plus: of the result's shape and dtype, added before the rounding.
        padding: as for corr2d.
    """
    if is_channels_last(input) and input.dim() == 3:
        more = plus if plus is None else _batch_of_one(plus)
        return filtered(_batch_of_one(input), window, padding_mode, more, padding).squeeze(0)
    if window.dim() == 2:
        return _correlated(input, window, padding_mode, padding, residual=plus)
    N, C = input.shape[:2]
    weight = window[:, None, None].expand(N, C, 1, *window.shape[1:])
    return _correlated(input, weight, padding_mode, padding, groups=C, residual=plus)


def separable(
    input: torch.Tensor, down: torch.Tensor, across: torch.Tensor, padding_mode: PaddingMode
) -> torch.Tensor:
    """The image under down[r] * across[s]: windows (R,) and (S,), or one of each per sample.

    Both are symmetric.
    """
    column, row = down.unsqueeze(-1), across.unsqueeze(-2)
    size = down.shape[-1], across.shape[-1]
    constant = input.is_cpu and _is_constant(down) and _is_constant(across)
    if constant and in_blocks.takes_separable(input, size):
        steps = in_blocks.separable(down, across)
        with _without_autocast(input.device.type):
            y = in_blocks.run(input, size, padding_mode, steps)
        if y is not None:
            return y
    y = _in_one_pass(input, down, across, padding_mode)
    if y is not None:
        return y
    if _two_passes_are_cheaper(input, (down.shape[-1], across.shape[-1])):
        return filtered(filtered(input, row, padding_mode), column, padding_mode)
    return filtered(input, column * row, padding_mode)


def _in_one_pass(
    input: torch.Tensor, down: torch.Tensor, across: torch.Tensor, padding_mode: PaddingMode
) -> torch.Tensor | None:
    """`separable` by one kernel, None where that is not the fastest way or not possible."""
    if input.dim() < 2 or not runs_kernels(input.device):
        return None
    with _without_autocast(input.device.type):
        y = in_one_pass.separable(_as_batch(input), down, across, padding_mode, result_dtype(input))
    return y if y is None else y.reshape(*input.shape[:-2], *y.shape[-2:])


def separable_bank(
    input: torch.Tensor,
    windows: Sequence[tuple[Window, Window]],
    padding_mode: PaddingMode,
    combine: str | None = None,
    root: float = 0.0,
) -> torch.Tensor | None:
    """Responses to K windows down[r] * across[s], reading the image once, where a kernel can.

    Args:
        input: the image.
        windows: (down, across) of each.
        padding_mode: what lies beyond the border.
        combine: None, "sum", or of two windows "magnitude": sqrt(y0^2 + y1^2 + root^2).
        root: see combine.

    Returns:
        (..., K, H, W), or combined (..., H, W); None where no kernel can: on CPU, and where
        autograd, a compiler or a transform watches.
    """
    if input.dim() < 2 or not runs_kernels(input.device):
        return None
    down, across = windows[0]
    taps = torch.stack([torch.cat([_as_window(d), _as_window(a)]) for d, a in windows])
    size, dtype = (len(down), len(across)), result_dtype(input)
    x = _as_batch(input)
    y = in_one_pass.separable_bank(x, taps, size, padding_mode, dtype, combine, root)
    if y is None:
        return None
    maps = () if combine else (len(windows),)
    return y.reshape(*input.shape[:-2], *maps, *y.shape[-2:])


def _as_window(taps: Window) -> torch.Tensor:
    if isinstance(taps, torch.Tensor):
        return taps
    return torch.tensor(taps, dtype=torch.float64, device="cpu")


def _as_batch(input: torch.Tensor) -> torch.Tensor:
    """An image (..., H, W) as (N, C, H, W): a view, for up to four dimensions."""
    if input.dim() == 4:
        return input
    planes = input.shape[:-2] if input.dim() == 3 else (math.prod(input.shape[:-2]),)
    return input.reshape(1, *planes, *input.shape[-2:])


def _is_constant(window: torch.Tensor) -> bool:
    """Whether this is one window for all samples, and no function of a watched sigma."""
    return window.dim() == 1 and is_unwatched(window)


def _two_passes_are_cheaper(input: torch.Tensor, window: tuple[int, int]) -> bool:
    """Whether a pass along rows and one along columns are cheaper than one with window (R, S).

    Where no kernel does both in one pass. On a GPU, a pass takes the longer of the times for its
    taps and its bytes. Two passes move 16 bytes per float32 pixel, as long as 80 taps take, so 9x9
    is the first square window with two passes. On a CPU the taps decide, except in small images,
    where a call's fixed cost does. 16-bit images follow the GPU's rule there too: a second pass
    rounds once more.
    """
    R, S = window
    read, written = input.element_size(), result_dtype(input).itemsize
    if written > 2 and not runs_kernels(input.device):
        return R + S < R * S and (R * S > 9 or input.numel() >= MIN_PIXELS)

    def time(taps: int, bytes_moved: int) -> int:
        return max(taps, TAPS_PER_BYTE * bytes_moved)

    return time(S, read + written) + time(R, 2 * written) < time(R * S, read + written)


def result_dtype(input: torch.Tensor) -> torch.dtype:
    """The dtype of a filtered image, and so of its window."""
    return torch.float32 if input.dtype == torch.uint8 else input.dtype


def _correlated(
    input: torch.Tensor,
    window: torch.Tensor,
    padding_mode: PaddingMode,
    padding: PaddingLike = "same",
    **options: Any,
) -> torch.Tensor:
    """corr2d without autocast, with the weight on the image's device and in the result's dtype."""
    # non_blocking: do not synchronise with the device.
    window = window.to(input.device, result_dtype(input), non_blocking=True)
    with _without_autocast(input.device.type):
        return corr2d(input, window, padding=padding, padding_mode=padding_mode, **options)


def _without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _batch_of_one(input: torch.Tensor) -> torch.Tensor:
    """(1, C, H, W) of a channels_last (C, H, W), with the strides that say so."""
    return input.movedim(-3, -1).unsqueeze(0).movedim(-1, -3)
