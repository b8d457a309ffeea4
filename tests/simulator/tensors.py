"""PyTorch's tensors as simulated memory: which bytes of a storage a kernel may read and write.

Memory that torch.empty and the like allocate while allocations are tracked may be written. It is
filled with poison, NaNs of one pattern; an element that is still poison was never written. In any
other storage, a kernel may read the elements of its tensors, and may write nothing.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .dtypes import Array, u1
from .faults import Unsupported
from .global_memory import Memory

#: A pattern that is a NaN in every floating-point type, by size in bytes.
POISON: dict[int, Any] = {
    2: np.uint16(0xFFF5),
    4: np.uint32(0xFFF5A5F5),
    8: np.uint64(0xFFFDA5F5A5F5A5F5),
}
_ALLOCATE = (
    (torch, ("empty", "empty_strided", "empty_like")),
    (torch.Tensor, ("new_empty", "new_empty_strided")),
)
#: Storages of more bytes are not shadowed as a whole.
LARGE = 2**28

#: Storages that may be written, by address. A weak reference keeps the address from being reused.
_writable: dict[int, StorageWeakRef] = {}


def _bytes_of(storage: torch.UntypedStorage) -> Array:
    memory = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
    return np.ctypeslib.as_array(memory)


def _poisoned(allocate: Callable[..., Any]) -> Callable[..., Any]:
    def allocated(*args: Any, **kwargs: Any) -> Any:
        made = allocate(*args, **kwargs)
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if caller.partition(".")[0] == "torch" or type(made) is not torch.Tensor:
            return made
        if made.device.type != "cpu" or not made.numel():
            return made
        if torch._C._functorch.is_functorch_wrapped_tensor(made):
            return made
        storage = made.untyped_storage()
        if len(_writable) > 5000:
            for key in [key for key, weak in _writable.items() if weak.expired()]:
                del _writable[key]
        _writable[storage._cdata] = StorageWeakRef(storage)
        if made.is_floating_point():
            pattern = POISON[made.itemsize]
            _bytes_of(storage).view(pattern.dtype)[:] = pattern
        return made

    return allocated


@contextmanager
def tracked_allocations() -> Iterator[None]:
    """Inside, kernels may write memory that torch.empty and the like allocate outside PyTorch."""
    # `with torch.device(...)` finds these functions by identity, so it must list the real ones.
    importlib.import_module("torch.utils._device")._device_constructors()
    before = [(owner, name, getattr(owner, name)) for owner, names in _ALLOCATE for name in names]
    for owner, name, allocate in before:
        setattr(owner, name, _poisoned(allocate))
    try:
        yield
    finally:
        for owner, name, allocate in before:
            setattr(owner, name, allocate)


def _reach(tensor: torch.Tensor, storage: torch.UntypedStorage) -> Array:
    """A mask of the bytes of a storage that are elements of the tensor."""
    mask = np.zeros((storage.nbytes() // tensor.itemsize, tensor.itemsize), bool)
    if tensor.numel():
        axes = [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s]
        shape, strides = [n for n, _ in axes], [s * tensor.itemsize for _, s in axes]
        first = mask[tensor.storage_offset() :, 0]
        np.lib.stride_tricks.as_strided(first, shape, strides)[...] = True
        mask[:] = mask[:, :1]
    whole = np.zeros(storage.nbytes(), bool)
    whole[: mask.size] = mask.ravel()
    return whole


def _walked_backwards(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a stride of a pointer is negative: x_ptr with x_stride_n, x_strides or x.strides."""
    prefix = re.split(r"_ptr|[.\[]", name)[0]
    return any(
        re.match(rf"{re.escape(prefix)}[_.]", other) and type(value) is int and value < 0
        for other, value in arguments.items()
    )


def _far_pieces(tensors: list[torch.Tensor], size: int) -> list[slice]:
    """The pieces of a large storage, in bytes, that together hold the tensors' elements."""
    pieces = []
    for t in tensors:
        axes = list(zip(t.shape, t.stride(), strict=True))
        far = [(n, s) for n, s in axes if s * size > 2**20]
        span = 1 + sum((n - 1) * s for n, s in axes if s * size <= 2**20)
        for index in itertools.product(*[range(n) for n, _ in far]):
            first = int(t.storage_offset()) + sum(
                i * s for i, (_, s) in zip(index, far, strict=True)
            )
            pieces.append([first * size // 16 * 16, (first + span) * size])
    merged: list[list[int]] = []
    for first, last in sorted(pieces):
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return [slice(first, last) for first, last in merged]


class Storages:
    """The storages of one launch, as simulated memory.

    Args:
        arguments: of the kernel, by name: tensors and integers; the integers include strides.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.memory = Memory()
        self._arguments = arguments
        self._copies: list[tuple[Array, Array, int]] = []
        uses: dict[int, tuple[torch.UntypedStorage, list[tuple[str, torch.Tensor]]]] = {}
        for name, argument in arguments.items():
            if isinstance(argument, torch.Tensor):
                storage = argument.untyped_storage()
                uses.setdefault(storage._cdata, (storage, []))[1].append((name, argument))
        self._bases = {cdata: self._add(*use) for cdata, use in uses.items()}

    def address(self, tensor: torch.Tensor) -> int:
        """The simulated address of a tensor's first element."""
        base = self._bases[tensor.untyped_storage()._cdata]
        return base + int(tensor.storage_offset()) * tensor.itemsize

    def copy_back(self) -> None:
        """Writes results to storages that had to be copied."""
        for real, data, before in self._copies:
            real[:] = data[before:]

    def _add(self, storage: torch.UntypedStorage, uses: list[tuple[str, torch.Tensor]]) -> int:
        name, first = uses[0]
        real, size, writable = _bytes_of(storage), first.itemsize, storage._cdata in _writable
        backwards = any(_walked_backwards(key, self._arguments) for key, _ in uses)
        # A tensor without axes stands for a pointer; one with a negative stride may begin anywhere.
        reached = [] if backwards else [tensor for _, tensor in uses if tensor.dim()]
        before = storage.data_ptr() % 16  # a GPU's storages start on 256 bytes; NumPy's need not
        parts = [slice(0, real.size)]
        if real.size > LARGE:
            if writable or before or not reached:
                raise Unsupported(f"all of a storage of {real.size} bytes")
            parts = _far_pieces(reached, size)
        windows = []
        for part in parts:
            data = real[part]
            may = np.ones(data.size, bool)
            if reached and not writable and real.size <= LARGE:
                may = np.logical_or.reduce([_reach(tensor, storage) for tensor in reached])
            holds = may
            if first.is_floating_point() and data.size % size == 0:
                empty = data.view(POISON[size].dtype) == POISON[size]
                holds = may & ~empty.repeat(size) if empty.any() else may
            if before:
                data = np.concatenate([np.zeros(before, u1), data])
                may, holds = (np.concatenate([np.zeros(before, bool), m]) for m in (may, holds))
                self._copies.append((real, data, before))
            windows.append((part.start, data, holds, may if writable else None))
        return self.memory.add_windows(name, windows) + before
