"""Launches kernels without compiling them, which allows thousands of calls a minute.

Triton binds arguments, keys, encodes tensor maps and launches as usual. This module fakes the
compiler's metadata: registers and shared memory are zero, boxes of tensor maps are computed.
"""

import re
from types import SimpleNamespace
from typing import Any

from stub_driver import StubDriver

#: (bytes, Triton's code of a tensor map's elements) by the type's name in a signature.
_ELEMENTS = {"fp16": (2, 6), "bf16": (2, 10), "fp32": (4, 7), "fp64": (8, 8), "u8": (1, 0)}
#: Bytes of a parameter; all other types have eight.
_SIZES = {"i1": 4, "i32": 4, "nvTmaDesc": 128}


def boxes(kinds: list[Any]) -> list[dict[str, Any]]:
    """The compiler's metadata of each tensor map: rows of at most 128 bytes, swizzled."""
    found = []
    for kind in kinds:
        if not (isinstance(kind, str) and kind.startswith("tensordesc")):
            continue
        dtype, shape = re.match(r"tensordesc<([^[>]*)\[([^]]*)\]", kind).groups()
        (size, code), block = _ELEMENTS[dtype], [int(extent) for extent in shape.split(",")]
        row = block[-1] * size
        swizzle = 3 if row >= 128 else 2 if row >= 64 else 1 if row >= 32 else 0
        if swizzle:
            block[-1] = min(block[-1], (16 << swizzle) // size)
        found.append(
            {
                "swizzle": swizzle,
                "elem_size": size,
                "elem_type": code,
                "block_size": block,
                "fp4_padded": False,
            }
        )
    return found


def parameters(kinds: list[Any], metas: list[dict[str, Any]]) -> list[int]:
    """Bytes of each parameter of a kernel with such a signature."""
    flat: list[str] = []

    def flatten(kinds: Any) -> None:
        for kind in kinds:
            if isinstance(kind, tuple):
                flatten(kind)
            elif kind.startswith("tensordesc"):
                rank = kind.partition("[")[2].partition("]")[0].count(",") + 1
                flat.extend(["nvTmaDesc", *["i32"] * rank, *["i64"] * rank])
            elif kind != "constexpr":
                flat.append(kind)

    flatten(kinds)
    return [_SIZES.get(kind, 8) for kind in flat] + [8, 8]  # the last are scratch pointers


class _Kernel:
    """Has the attributes of a compiled kernel that a launch needs."""

    def __init__(self, stub: StubDriver, source: Any, options: Any) -> None:
        from triton.backends.nvidia import driver

        kinds = list(source.signature.values())
        metas = boxes(kinds)
        self.src = source
        self.metadata = SimpleNamespace(
            tensordesc_meta=metas,
            num_ctas=1,
            global_scratch_size=0,
            global_scratch_align=1,
            profile_scratch_size=0,
            profile_scratch_align=1,
            launch_cooperative_grid=False,
            launch_pdl=False,
        )
        self.run = driver.CudaLauncher(source, self.metadata)
        self.function = stub.function(source.fn.fn.__name__, parameters(kinds, metas))
        self.packed_metadata = (options.num_warps, 1, 0)

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        """A function that launches, like that of a compiled kernel."""
        from triton.compiler.compiler import CompiledKernel

        return CompiledKernel.__getitem__(self, grid)

    def _init_handles(self) -> None:
        """Nothing to load."""

    def launch_metadata(self, *_: Any) -> None:
        """None, as metadata for hooks requires a compiled kernel."""


def without_compiler(stub: StubDriver) -> None:
    """Makes Triton launch kernels without compiling them."""
    from triton.runtime.jit import JITFunction

    def take(
        self: Any,
        key: str,
        signature: Any,
        device: int,
        constexprs: Any,
        options: Any,
        attrs: Any,
        warmup: bool,
    ) -> _Kernel:
        kernel = _Kernel(stub, self.ASTSource(self, signature, constexprs, attrs), options)
        self.device_caches[device][0][key] = kernel
        return kernel

    JITFunction._do_compile = take


class Compilations:
    """Names of the kernels that Triton has compiled or found on disk since this object was made."""

    def __init__(self) -> None:
        from triton.runtime.jit import JITFunction

        self.names: list[str] = []
        real, names = JITFunction._do_compile, self.names

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            names.append(self.fn.__name__)
            return real(self, *args, **kwargs)

        JITFunction._do_compile = counted
