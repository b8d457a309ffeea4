"""Patches of Triton's interpreter for the tests, for speed alone.

- The interpreter computes every integer sum again in 64 bits to check for overflow, even without
  `debug`, where it ignores the result. The patch skips that.
- Each call of a device function patches all of `triton.language` again, though the launch has
  patched it already. The patch skips that.
- Each launch looks through all of `triton.language` for the functions to patch: the patch does so
  once. Each operation makes a table of all types: the patch keeps what was looked up.
- Each result makes its type, and the type's shape three times as objects of the compiler: the patch
  makes a shape once. The compiler itself stays as it is: these changes last as long as a launch.
"""

import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_call_any = interpreter.InterpretedFunction.__call__
_np_dtype = functools.cache(interpreter._get_np_dtype)
_patch_lang_tensor = interpreter._patch_lang_tensor
_init_block, _init_tensor = tl.block_type.__init__, tl.tensor.__init__
_broadcast = interpreter.interpreter_semantic.broadcast_impl_value
#: For a module or class, (name, function, the interpreter's) of what the interpreter replaces.
_builtins: dict[object, list[tuple[str, Any, Any]]] = {}


@dataclass(frozen=True)
class _Shape:
    """Fields of a block's type and tensor that depend on the shape alone."""

    of_type: Any
    numel: int
    of_tensor: Any
    tensor_numel: Any


_shapes: dict[tuple, _Shape] = {}
#: Shape and size of a tensor that is no block.
_SCALAR = tl.tuple([]), tl.constexpr(1)


def _call(function, *args, **kwargs):
    # Triton's own device functions (tl.zeros, tl.sum, ...) live in these modules.
    if not function.fn.__module__.startswith("tricorr."):
        return _call_any(function, *args, **kwargs)
    return function.rewrite()(*args, **kwargs)


def _patch_builtin(package, builder, scope):
    for name, member, new in _builtins[package]:
        if getattr(package, name) is member:  # else it is patched already
            scope.set_attr(package, name, new)


def _interpreted(member):
    """A function of `triton.language` as the interpreter calls it."""
    function = getattr(member, "__wrapped__", member)
    semantic = interpreter.interpreter_semantic

    def call(*args, **kwargs):
        kwargs["_semantic"] = semantic
        return function(*args, **kwargs)

    return call


def _get_np_dtype(dtype):
    if isinstance(dtype.scalar, tl.pointer_type):
        return np.dtype(np.uint64)
    return _np_dtype(dtype.scalar)


def _make_block_type(self, element_ty, shape):
    key = tuple([n.value if isinstance(n, tl.constexpr) else n for n in shape])
    found = _shapes.get(key)
    if found is None:
        _init_block(self, element_ty, shape)
        made = object.__new__(tl.tensor)
        _init_tensor(made, None, self)
        _shapes[key] = self.made = _Shape(self.shape, self.numel, made.shape, made.numel)
        return
    self.made, self.element_ty = found, element_ty
    self.shape, self.numel = found.of_type, found.numel
    self.name = f"<{key}, {element_ty}>"


def _make_tensor(self, handle, type):
    made = getattr(type, "made", None)
    if made is None and type.is_block():  # made before the launch
        _init_tensor(self, handle, type)
        return
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = (made.of_tensor, made.tensor_numel) if made else _SCALAR


def _broadcast_impl_value(lhs, rhs):
    shapes = [getattr(operand.type, "made", None) for operand in (lhs, rhs)]
    if shapes[0] is not None and shapes[0] is shapes[1]:
        return lhs, rhs
    return _broadcast(lhs, rhs)


def _patch_types(tensor, scope):
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__init__", _make_tensor)
    scope.set_attr(tl.block_type, "__init__", _make_block_type)


def install() -> None:
    """Make all changes for this process, before anything is interpreted."""
    for package in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base):
        members = inspect.getmembers(package, tl.core.is_builtin)
        _builtins[package] = [(name, member, _interpreted(member)) for name, member in members]
    interpreter._patch_builtin = _patch_builtin
    interpreter._patch_lang_tensor = _patch_types
    interpreter._get_np_dtype = _get_np_dtype
    interpreter.interpreter_semantic.broadcast_impl_value = _broadcast_impl_value
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter.InterpretedFunction.__call__ = _call
