"""The three operators: `fprop`, `dgrad` and `wgrad`, also registered as torch.ops.tricorr.

The functions here, the autograd Functions, and the implementations in launch/ and cpu.py share one
signature for each. The registered operators have a schema, in which a Geometry travels as plain
integers, one implementation for every device and a fake one for meta tensors and compilers; their
derivatives are registered in autograd/function.py.

PyTorch's dispatcher costs the host several times as much as the rest of a call, so a call skips it
if nothing needs it: the tensors are plain (no subclass, negated view, zero tangent or batch of
autograd's), and there is no derivative, dispatch mode (FakeTensorMode, FlopCounterMode, ...),
tracer or profiler.

All three are bitwise repeatable on one device: no atomics, sums in a fixed order.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

import torch
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad, profiler

from . import backend, cpu, decompositions
from .geometry import Geometry
from .launch.formats import empty_in_format
from .schema import geometry_of_call, steps_of

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_STEPS = (
    "int[] stride, int[] padding, int[] dilation, int groups, bool flip, str mode, str precision"
)
_LIBRARY = torch.library.Library("tricorr", "DEF")
_LIBRARY.define(
    "fprop(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation, "
    f"{_STEPS}) -> Tensor"
)
_LIBRARY.define(f"dgrad(Tensor dy, Tensor weight, Tensor? bias, SymInt[] size, {_STEPS}) -> Tensor")
_LIBRARY.define(f"wgrad(Tensor x, Tensor dy, SymInt[] weight_shape, {_STEPS}) -> Tensor")


def fprop(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    precision: str = "ieee",
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Forward: y = act(z), z[n,k,p,q] = bias[k] + residual[n,k,p,q] + the sum of products.

        sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s]

    Args:
        x: (N, C, H, W), any strides; the weight's dtype, or uint8.
        weight: (K, C/groups, R, S) or (N, K, C/groups, R, S), any strides; float16, bfloat16,
            float32 or float64.
        bias: (K,) in the weight's dtype, or None.
        geometry: of these shapes.
        precision: how float32 is multiplied: "ieee", "tf32" or "tf32x3".
        activation: "none", "relu", "relu6", "gelu" or "silu", applied before the rounding.
        residual: (N, K, P, Q), any strides, in the weight's dtype, or None: added to the sums
            before the activation and the rounding.

    Returns:
        y (N, K, P, Q) in the weight's dtype and the memory format of x. Sums are kept in float32
        (float64 for float64) and rounded once.
    """
    if only_the_device_sees(x, weight, bias, residual):
        run = implementation(x.device)
        return run.fprop(x, weight, bias, geometry, precision, activation, residual)
    _learn_to_shard(x, weight)
    return torch.ops.tricorr.fprop(
        x, weight, bias, residual, activation, *steps_of(geometry), precision
    )


def dgrad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Input gradient: dx[n,c,h,w] = bias[c] + sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s].

    Args:
        dy: (N, K, P, Q), any strides; the weight's dtype.
        weight: as for fprop. An infinity or NaN in it spreads to every pixel of its channel, also
            where the window does not reach.
        geometry: of the forward call.
        precision: as for fprop.
        bias: (C,) in the weight's dtype, or None: makes it a transposed correlation.

    Returns:
        dx (N, C, H, W) in dtype and memory format of dy, summed as in fprop.
    """
    if only_the_device_sees(dy, weight, bias):
        return implementation(dy.device).dgrad(dy, weight, geometry, precision, bias)
    _learn_to_shard(dy, weight)
    size = (geometry.H, geometry.W)
    return torch.ops.tricorr.dgrad(dy, weight, bias, size, *steps_of(geometry), precision)


def wgrad(
    x: torch.Tensor, dy: torch.Tensor, geometry: Geometry, precision: str = "ieee"
) -> torch.Tensor:
    """Weight gradient: dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w].

    Args:
        x: as for fprop.
        dy: (N, K, P, Q), any strides; float16, bfloat16, float32 or float64.
        geometry: of the forward call.
        precision: as for fprop.

    Returns:
        dw, shaped as the weight, in the dtype of dy and the memory format of x; a bank per sample
        is contiguous. Pixels may be split into parts: partial sums are float32 (float64 for
        float64) and are added in a fixed order.
    """
    if only_the_device_sees(x, dy):
        return implementation(x.device).wgrad(x, dy, geometry, precision)
    _learn_to_shard(x, dy)
    shape = geometry.weight_shape
    return torch.ops.tricorr.wgrad(x, dy, shape, *steps_of(geometry), precision)


def backward(
    x: torch.Tensor,
    dy: torch.Tensor,
    weight: torch.Tensor,
    geometry: Geometry,
    precision: str = "ieee",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dgrad(dy, weight), wgrad(x, dy)): one launch for both where that is planned.

    That reads dy once, see kernels/backward_rows.py; it is no registered operator. Where anything
    but the device has to see the call, and on CPU, two operators run.

    Args:
        x: as for fprop.
        dy: (N, K, P, Q), any strides; the weight's dtype.
        weight: as for fprop.
        geometry: of the forward call.
        precision: as for fprop.

    Returns:
        dx and dw, as dgrad and wgrad return them.
    """
    if backend.runs_kernels(dy.device) and _is_plain(x, dy, weight):
        if not profiler._is_profiler_enabled:
            return _launch().backward(x, dy, weight, geometry, precision)
        with profiler.record_function("tricorr::backward"):
            return _launch().backward(x, dy, weight, geometry, precision)
    return dgrad(dy, weight, geometry, precision), wgrad(x, dy, geometry, precision)


def only_the_device_sees(*tensors: torch.Tensor | None) -> bool:
    """Whether a call with these tensors may skip the dispatcher."""
    return _is_plain(*tensors) and not profiler._is_profiler_enabled


def _is_plain(*tensors: torch.Tensor | None) -> bool:
    """Whether nothing but the device and a profiler sees a call with these tensors."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled():
        return False
    differentiable = torch.is_grad_enabled()
    if torch._C._len_torch_dispatch_stack():
        _tell_counters()
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or tensor.is_meta:
            return False
        if differentiable and tensor.requires_grad:
            return False
        if tensor.is_neg() or tensor._is_zerotensor():
            return False
        if is_legacy_batchedtensor(tensor):
            return False
    return not torch._C._get_tracing_state()


def has_memory(*tensors: torch.Tensor) -> bool:
    """Whether a kernel can read these tensors now: no tracer, transform or mode stands between."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    return not any(
        type(tensor) not in _PLAIN
        or tensor.is_meta
        or tensor.is_neg()
        or tensor._is_zerotensor()
        or is_legacy_batchedtensor(tensor)
        for tensor in tensors
    )


def _tell_counters() -> None:
    """Gives our formulas to FLOP counters that were constructed before `import tricorr`."""
    if "torch.utils.flop_counter" in sys.modules:
        from . import flops

        flops.tell_counters()


def implementation(device: torch.device) -> Any:
    """The module with the three operators for tensors on `device`: kernels, or cpu.py."""
    return _launch() if backend.runs_kernels(device) else cpu


@functools.cache
def _launch() -> ModuleType:
    """launch/entry.py, imported with triton when the first call needs a kernel."""
    from .launch import entry

    return entry


def _learn_to_shard(*tensors: torch.Tensor) -> None:
    """Registers the sharding rules (ops/distributed/sharding.py) if a tensor is a DTensor."""
    for kind in map(type, tensors):
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            continue
        if kind.__module__.startswith("torch.distributed.tensor"):
            from .distributed import sharding  # noqa: F401 - registers rules


def _fprop(*arguments: Any) -> torch.Tensor:
    x, weight, bias, residual, activation, *_, precision = arguments
    geometry = geometry_of_call("fprop", arguments)
    run = implementation(x.device)
    return run.fprop(x, weight, bias, geometry, precision, activation, residual)


def _dgrad(*arguments: Any) -> torch.Tensor:
    dy, weight, bias, *_, precision = arguments
    geometry = geometry_of_call("dgrad", arguments)
    return implementation(dy.device).dgrad(dy, weight, geometry, precision, bias)


def _wgrad(*arguments: Any) -> torch.Tensor:
    x, dy, *_, precision = arguments
    geometry = geometry_of_call("wgrad", arguments)
    return implementation(x.device).wgrad(x, dy, geometry, precision)


def _fprop_fake(*arguments: Any) -> torch.Tensor:
    x, weight = arguments[:2]
    return empty_in_format(geometry_of_call("fprop", arguments).y_shape, weight.dtype, like=x)


def _dgrad_fake(*arguments: Any) -> torch.Tensor:
    dy = arguments[0]
    return empty_in_format(geometry_of_call("dgrad", arguments).x_shape, dy.dtype, like=dy)


def _wgrad_fake(*arguments: Any) -> torch.Tensor:
    x, dy = arguments[:2]
    return empty_in_format(geometry_of_call("wgrad", arguments).weight_shape, dy.dtype, like=x)


for _name, _implementation, _fake in (
    ("fprop", _fprop, _fprop_fake),
    ("dgrad", _dgrad, _dgrad_fake),
    ("wgrad", _wgrad, _wgrad_fake),
):
    _LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tricorr::{_name}", _fake, lib=_LIBRARY)

decompositions.register({"fprop": _fprop_fake, "dgrad": _dgrad_fake})
