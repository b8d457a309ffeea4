"""The launch of a separable window in one pass. Importing this imports triton."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..geometry import Geometry
from ..plan import separable as planned
from ..plan.problem import Plan, Problem
from .call import Call
from .entry import run_calls
from .formats import empty_in_format
from .kernel_arguments import call_of
from .layout import device_of, layout_of
from .prepared import facts_of, prepared


def separable(
    x: torch.Tensor,
    taps: torch.Tensor,
    dtype: torch.dtype,
    geometry: Geometry,
    precision: str = "ieee",
    plan: Plan | None = None,
) -> torch.Tensor | None:
    """The planes of x under a separable window, or None where other ways are as fast.

    Args:
        x: (N, C, H, W), any strides; `dtype`, or uint8.
        taps: (1, R + S) or (N, R + S): those down, then those across; float64 for float64, else
            float32.
        dtype: of the result.
        geometry: of the whole window R x S on each plane.
        precision: how the other ways would multiply float32; one pass does so exactly.
        plan: replaces the planner's, which may be that one pass is not the fastest way.

    Returns:
        (N, C, P, Q) in the memory format of x. Sums are kept in float32 (float64 for float64), the
        sum of a row across the window too, and rounded once.
    """
    key = ("separable", geometry, dtype, precision, plan, facts_of(x), len(taps), facts_of(taps))
    if ready := prepared(key):
        return ready.run((x, taps), x.device)[0]
    y = empty_in_format(geometry.y_shape, dtype, like=x)
    if y.numel() == 0:
        return y
    chosen = plan or planned.faster_plan(_problem(x, taps, y, geometry, precision))
    if chosen is None:
        return None

    def calls(x: Any, taps: Any, y: Any) -> Iterator[Call]:
        yield separable_call(x, taps, y, geometry, chosen)

    return run_calls(key, [x, taps], [y], calls)[0]


def separable_bank(
    x: torch.Tensor,
    taps: torch.Tensor,
    dtype: torch.dtype,
    geometry: Geometry,
    combine: str | None = None,
    root: float = 0.0,
) -> torch.Tensor | None:
    """The planes of x under several separable windows, read once; None where that would spill.

    Args:
        x, dtype: as for `separable`.
        taps: (K, R + S), as there, of the windows of every plane.
        geometry: of K whole windows on each plane.
        combine: None, "sum", or of two windows "magnitude": sqrt(y0^2 + y1^2 + root^2).
        root: see combine.

    Returns:
        (N, C * K, P, Q), or (N, C, P, Q) of results that are combined before the rounding.
    """
    key = ("separable", geometry, dtype, combine, root, facts_of(x), facts_of(taps))
    if ready := prepared(key):
        return ready.run((x, taps), x.device)[0]
    shape = geometry.y_shape if combine is None else geometry.x_shape
    y = empty_in_format(shape, dtype, like=x)
    if y.numel() == 0:
        return y
    chosen = planned.plan(_problem(x, taps, y, geometry, "ieee"))
    if chosen is None:
        return None

    def calls(x: Any, taps: Any, y: Any) -> Iterator[Call]:
        yield _call(x, taps, y, geometry, chosen, (0, taps.stride(0)), combine, root)

    return run_calls(key, [x, taps], [y], calls)[0]


def is_faster(
    x: torch.Tensor, taps: torch.Tensor, dtype: torch.dtype, geometry: Geometry, precision: str
) -> bool:
    """Whether `separable` returns an image for these arguments."""
    if geometry.y_numel == 0:
        return True
    y = empty_in_format(geometry.y_shape, dtype, like=x, device="meta")
    return planned.faster_plan(_problem(x, taps, y, geometry, precision)) is not None


def _problem(
    x: torch.Tensor, taps: torch.Tensor, y: torch.Tensor, geometry: Geometry, precision: str
) -> Problem:
    x_bytes = x.itemsize if x.dtype != y.dtype else 0
    layout = layout_of(geometry, x, taps[:, None, None, None], y)
    return Problem("fprop", geometry, y.dtype, precision, layout, device_of(x), x_bytes)


def separable_call(
    x: torch.Tensor, taps: torch.Tensor, y: torch.Tensor, geometry: Geometry, plan: Plan
) -> Call:
    """The launch that fills y."""
    steps = taps.stride(0) if taps.shape[0] > 1 else 0, 0
    return _call(x, taps, y, geometry, plan, steps)


def _call(
    x: torch.Tensor,
    taps: torch.Tensor,
    y: torch.Tensor,
    geometry: Geometry,
    plan: Plan,
    steps: tuple[int, int],
    combine: str | None = None,
    root: float = 0.0,
) -> Call:
    """The launch; `steps` are elements from one sample's taps, and one filter's, to the next."""
    sample, window = steps
    return call_of(
        plan,
        geometry,
        x_ptr=x,
        weight_ptr=taps,
        y_ptr=y,
        x_strides=x.stride(),
        weight_strides=(sample, 0, 0, window, taps.stride(1)),
        y_strides=y.stride(),
        ROOT=root,
        FILTERS=geometry.group_K,
        COMBINE=combine,
    )
