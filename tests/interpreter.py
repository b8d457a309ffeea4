"""Five patches of Triton's interpreter for the tests: four for speed, one for descriptors.

- The interpreter computes every integer sum again in 64 bits to check for overflow, even without
  `debug`, where it ignores the result. The patch skips that.
- Each call of a device function patches all of `triton.language` again, though the launch has
  patched it already. The patch skips that; both together save two thirds of the time.
- Each launch looks through all of `triton.language` for the functions to patch: the patch does so
  once. Each operation makes a table of all types: the patch keeps what was looked up. A quarter of
  the rest.
- The interpreter requires the innermost coordinate of a box to be a multiple of 16 bytes. The
  hardware requires that only of addresses and strides (CUDA C++ Programming Guide, alignment of
  bulk tensor copies). The patch drops the check.
"""

import functools
import inspect
from dataclasses import replace

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_call_any = interpreter.InterpretedFunction.__call__
_np_dtype = functools.cache(interpreter._get_np_dtype)
#: (module or class, names of its functions that the interpreter replaces), filled by `install`.
_builtins: dict[object, list[str]] = {}


def _call(function, *args, **kwargs):
    # Triton's own device functions (tl.zeros, tl.sum, ...) live in these modules.
    if not function.fn.__module__.startswith("tricorr."):
        return _call_any(function, *args, **kwargs)
    return function.rewrite()(*args, **kwargs)


def _materialize_pointers(descriptor, offsets):
    """(pointers, masks) of the box whose corner is at `offsets`, of any alignment."""
    itemsize = descriptor.base.dtype.element_ty.primitive_bitwidth // 8
    pointers = np.broadcast_to(descriptor.base.data, descriptor.block_shape)
    masks = np.ones(descriptor.block_shape, dtype=bool)
    for axis, extent in enumerate(descriptor.block_shape):
        shape = [1] * descriptor.ndim
        shape[axis] = extent
        index = (offsets[axis].data + np.arange(extent)).reshape(shape)
        step = itemsize * descriptor.strides[axis].data
        pointers = pointers + (index * step).astype(np.uint64)
        masks = masks & (index >= 0) & (index < descriptor.shape[axis].data)
    return interpreter.TensorHandle(pointers, descriptor.base.dtype.scalar), masks


def _patch_builtin(package, builder, scope):
    for name in _builtins[package]:
        member = getattr(package, name)
        if tl.core.is_builtin(member):  # else it is patched already
            interpreter._patch_attr(package, name, member, builder, scope)


def _get_np_dtype(dtype):
    if isinstance(dtype.scalar, tl.pointer_type):
        return np.dtype(np.uint64)
    return _np_dtype(dtype.scalar)


def install() -> None:
    """Make all changes for this process, before anything is interpreted."""
    for package in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base):
        members = inspect.getmembers(package, tl.core.is_builtin)
        _builtins[package] = [name for name, _ in members]
    interpreter._patch_builtin = _patch_builtin
    interpreter._get_np_dtype = _get_np_dtype
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter.InterpretedFunction.__call__ = _call
    interpreter.TensorDescHandle.materialize_pointers = _materialize_pointers
