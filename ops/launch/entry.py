"""Tensors to kernels: allocate the result, ask for the plan, launch. One function per operator.

Importing this imports triton: only operators.py does so, when a call needs a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .. import backend
from ..geometry import Geometry
from ..plan import choose
from ..plan.backward import takes_both
from ..plan.problem import Plan, Problem
from .backward_launch import backward_calls
from .call import Call
from .dgrad_launch import dgrad_call
from .formats import empty_in_format
from .fprop_launch import fprop_call
from .kernel_arguments import Tensors
from .layout import device_of, layout_of
from .prepared import facts_of, is_separate, keep_separate, prepare, prepared
from .wgrad_launch import wgrad_calls


def fprop(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    precision: str = "ieee",
    activation: str = "none",
    residual: torch.Tensor | None = None,
    plan: Plan | None = None,
) -> torch.Tensor:
    """y (N, K, P, Q) by a Triton kernel; see operators.fprop. `plan` replaces the planner's."""
    operands = (x, weight, bias, residual)
    key = ("fprop", geometry, precision, activation, plan, *map(facts_of, operands))
    if ready := prepared(key):
        return ready.run(operands, x.device)[0]
    if _is_too_narrow(x, weight):
        return fprop(x.double(), weight, bias, geometry, precision, activation, residual, plan)
    y = empty_in_format(geometry.y_shape, weight.dtype, like=x)
    if y.numel() == 0:
        return y
    layout = layout_of(geometry, x, weight, y, residual, activation)
    chosen = plan or choose.plan(
        Problem(
            "fprop", geometry, weight.dtype, precision, layout, device_of(x), _bytes_of(x, weight)
        )
    )

    def calls(x: Any, weight: Any, bias: Any, residual: Any, y: Any) -> Iterator[Call]:
        yield fprop_call(Tensors(x, weight, y, bias, activation, residual), geometry, chosen)

    return run_calls(key, list(operands), [y], calls)[0]


def dgrad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    bias: torch.Tensor | None = None,
    plan: Plan | None = None,
) -> torch.Tensor:
    """dx (N, C, H, W) by a Triton kernel; see operators.dgrad. `plan` replaces the planner's."""
    key = ("dgrad", geometry, precision, plan, facts_of(dy), facts_of(weight), facts_of(bias))
    if ready := prepared(key):
        return ready.run((dy, weight, bias), dy.device)[0]
    dx = empty_in_format(geometry.x_shape, dy.dtype, like=dy)
    if dx.numel() == 0:
        return dx
    layout = layout_of(geometry, dx, weight, dy)
    chosen = plan or choose.plan(
        Problem("dgrad", geometry, dy.dtype, precision, layout, device_of(dy))
    )
    frame = None
    if geometry.frame_pixels:
        frame = choose.plan(
            Problem("dgrad_frame", geometry, dy.dtype, precision, layout, device_of(dy))
        )

    def calls(dy: Any, weight: Any, bias: Any, dx: Any) -> Iterator[Call]:
        tensors = Tensors(dx, weight, dy, bias)
        yield dgrad_call(tensors, geometry, chosen)
        if frame:
            yield dgrad_call(tensors, geometry, frame)

    return run_calls(key, [dy, weight, bias], [dx], calls)[0]


def wgrad(
    x: torch.Tensor,
    dy: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    plan: Plan | None = None,
) -> torch.Tensor:
    """dw, shaped as the weight, by Triton kernels; see operators.wgrad."""
    key = ("wgrad", geometry, precision, plan, facts_of(x), facts_of(dy))
    if ready := prepared(key):
        return ready.run((x, dy), x.device)[0]
    if _is_too_narrow(x, dy):
        return wgrad(x.double(), dy, geometry, precision, plan)
    dw = empty_in_format(geometry.weight_shape, dy.dtype, like=x)
    if dw.numel() == 0:
        return dw
    layout = layout_of(geometry, x, dw, dy)
    chosen = plan or choose.plan(
        Problem("wgrad", geometry, dy.dtype, precision, layout, device_of(x), _bytes_of(x, dy))
    )

    def calls(x: Any, dy: Any, dw: Any) -> Iterator[Call]:
        return wgrad_calls(x, dy, dw, geometry, chosen)

    return run_calls(key, [x, dy], [dw], calls)[0]


def backward(
    x: torch.Tensor,
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dw), by one Triton kernel where that is faster than two; see operators.backward."""
    both = None
    if plan is not None or (x.dtype == dy.dtype == weight.dtype and takes_both(geometry)):
        both = _both(x, dy, weight, geometry, precision, plan)
    if both is None:
        return dgrad(dy, weight, geometry, precision), wgrad(x, dy, geometry, precision)
    return both


def _both(
    x: torch.Tensor,
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str,
    plan: Plan | None,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`backward` by one kernel; None where two launches are planned."""
    key = ("backward", geometry, precision, plan, facts_of(x), facts_of(dy), facts_of(weight))
    if ready := prepared(key):
        dx, dw = ready.run((x, dy, weight), x.device)
        return dx, dw
    if is_separate(key):
        return None
    dx = empty_in_format(geometry.x_shape, dy.dtype, like=dy)
    dw = empty_in_format(geometry.weight_shape, dy.dtype, like=x)
    layouts = layout_of(geometry, dx, weight, dy), layout_of(geometry, x, dw, dy)
    chosen = plan or choose.plan_both(
        *(
            Problem(op, geometry, dy.dtype, precision, layout, device_of(x))
            for op, layout in zip(("dgrad", "wgrad"), layouts, strict=True)
        )
    )
    if chosen is None:
        keep_separate(key)
        return None

    def calls(x: Any, dy: Any, weight: Any, dx: Any, dw: Any) -> Iterator[Call]:
        return backward_calls(x, dy, weight, dx, dw, geometry, chosen)

    dx, dw = run_calls(key, [x, dy, weight], [dx, dw], calls)
    return dx, dw


def run_calls(
    key: Any,
    operands: list[torch.Tensor | None],
    results: list[torch.Tensor],
    calls: Callable[..., Iterable[Call]],
) -> list[torch.Tensor]:
    """The results, filled by the calls; these are prepared for the next time."""
    device = results[0].device
    given, targets = _interpretable(operands, results)
    for call in calls(*given, *targets):
        call.run(device)
    if targets is not results:
        return [result.copy_(target) for result, target in zip(results, targets, strict=True)]
    prepare(key, tuple(operands), results, calls)
    return results


def _is_too_narrow(x: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether Triton 3.7 may fail to compile a matrix product: of bytes and float64."""
    return x.dtype == torch.uint8 and other.dtype == torch.float64


def _bytes_of(x: torch.Tensor, other: torch.Tensor) -> int:
    """Bytes of an element of x where it is of another type, see Problem.x_bytes."""
    return x.itemsize if x.dtype != other.dtype else 0


def _interpretable(
    tensors: list[Any], results: list[torch.Tensor]
) -> tuple[list[Any], list[torch.Tensor]]:
    """Operands and results as float32 if they are bfloat16 and the interpreter runs.

    Triton 3.6 to 3.8 interpret tl.dot on bfloat16 wrongly and truncate where a GPU rounds. Every
    bfloat16 is a float32, and kernels round once, at the store, so this computes the same thing.
    """
    if not backend.interprets() or results[0].dtype != torch.bfloat16:
        return tensors, results
    widened = [t.float() if t is not None and t.dtype == torch.bfloat16 else t for t in tensors]
    return widened, [torch.empty_like(result, dtype=torch.float32) for result in results]
