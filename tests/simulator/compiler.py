"""Triton's functions in two forms: those of the interpreter, and those of the compiler.

With TRITON_INTERPRET=1, `triton.jit` makes interpreted functions, and Triton's own (tl.sum,
tl.cdiv) are interpreted too. Interpreted and compiled functions both keep the Python function they
were made of. `compiling` replaces interpreted functions by compiled ones in every module that
kernels use, and restores them at the end, so that tests of both kinds run in one process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

#: Modules with functions for kernels, by the beginnings of their names.
MODULES = ("triton.language", "tricorr.kernels", "simulator")
# The interpreter changes these while it runs and does not restore all of them (Triton 3.6, 3.7).
_CHANGED: tuple[Any, ...] = (tl, tl.core, tl.math, tl.core.tensor, tl.core.dtype)
_PRISTINE = [(place, dict(vars(place))) for place in _CHANGED]

_compiled: dict[int, tuple[Any, Any]] = {}  # by id: (interpreted, compiled)


def compiled(function: Any) -> Any:
    """The compiler's form of a function that was decorated with triton.jit."""
    if not isinstance(function, InterpretedFunction):
        return function
    if id(function) not in _compiled:
        _compiled[id(function)] = function, JITFunction(function.fn, **function.kwargs)
    return _compiled[id(function)][1]


def _interpreted() -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(namespace, name, function) of all interpreted functions."""
    for name, module in list(sys.modules.items()):
        if name.startswith(MODULES):
            for attribute, value in list(vars(module).items()):
                if isinstance(value, InterpretedFunction):
                    yield vars(module), attribute, value


def _load(
    pointer: Any,
    mask: Any = None,
    other: Any = None,
    *rest: Any,
    _semantic: Any = None,
    **options: Any,
) -> Any:
    """tl.load, which gives NaN where the mask is off and `other` is not given.

    The value is undefined there; Triton (3.6, 3.7) happens to give zeros on NVIDIA's GPUs.
    """
    given, value = (tl.core._unwrap_if_constexpr(argument) for argument in (mask, other))
    if given is not None and value is None:
        other = float("nan") if pointer.dtype.element_ty.is_floating() else 113
    return _LOAD(pointer, mask, other, *rest, _semantic=_semantic, **options)


_LOAD = tl.load
_load = tl.core.builtin(_load)


@contextmanager
def compiling() -> Iterator[None]:
    """Inside, functions are the compiler's, and triton.jit makes functions for the compiler."""
    _restore()
    knobs = triton.knobs
    swapped = list(_interpreted())
    members = {name: value for _, name, value in swapped if _is_member(name)}
    before = {name: vars(tl.core.tensor)[name] for name in members}
    with knobs.runtime.scope(), knobs.cache.scope():
        knobs.runtime.interpret = False
        # Kernels differ from ordinary ones by _load and driver.keep_ptx: they have their own cache.
        knobs.cache.dir = os.path.join(knobs.cache.dir, "simulated")
        tl.load = tl.core.load = _load
        for where, name, value in swapped:
            where[name] = compiled(value)
        for name, value in members.items():
            setattr(tl.core.tensor, name, compiled(value))
        try:
            yield
        finally:
            tl.load = tl.core.load = _LOAD
            for where, name, value in swapped:
                where[name] = value
            for name, value in before.items():
                setattr(tl.core.tensor, name, value)


def _is_member(name: str) -> bool:
    """Whether a function of triton.language is a method of tensors, too: x.sum()."""
    method = vars(tl.core.tensor).get(name)
    return hasattr(method, "signature") and not tl.core.is_builtin(method)


def _restore() -> None:
    """Restores the attributes that the interpreter changed."""
    for place, attributes in _PRISTINE:
        for name, value in list(vars(place).items()):
            if name not in attributes and isinstance(place, type):
                delattr(place, name)
            elif name in attributes and value is not attributes[name]:
                setattr(place, name, attributes[name])


def mended(ptx: str) -> str:
    """PTX with the fence between cp.async and wgmma that Triton before 3.7 omits.

    See triton-lang/triton, pull requests 9610 and 10537. The package's kernels contain the fence.
    """
    return ptx.replace(
        "wgmma.fence.sync.aligned;", "fence.proxy.async.shared::cta; wgmma.fence.sync.aligned;"
    )


def build(
    function: Any,
    arch: int,
    signature: dict[str, str],
    constexprs: dict[str, Any] | None = None,
    divisible: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """A kernel compiled for an architecture, without a device.

    Args:
        function: decorated with triton.jit.
        arch: compute capability times ten.
        signature: types of the arguments that are not constexprs.
        constexprs: values of the constexprs.
        divisible: arguments that are multiples of 16.
        options: num_warps and other options of the compiler.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    with compiling():
        kernel = compiled(function)
        index = kernel.arg_names.index
        source = ASTSource(
            kernel,
            {name: signature.get(name, "constexpr") for name in kernel.arg_names},
            {(index(name),): value for name, value in (constexprs or {}).items()},
            {(index(name),): [["tt.divisibility", 16]] for name in divisible},
        )
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
