"""The launches of one operator, built once for all calls that differ only in their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...kernels import TensorDescriptor
from .. import backend
from .call import Call, on_device
from .compiled import DirectLaunch, Place, current_stream, direct_launch, is_watched


class Prepared:
    """The calls of one operator as far as they do not depend on where its tensors lie.

    Building a call costs the host several times what this does: a plan and forty arguments, of
    which all but the tensors follow from the geometry and the facts (`facts_of`) of the operands.
    """

    def __init__(
        self,
        result: torch.Tensor,
        scratch: Sequence[torch.Tensor],
        launches: list[_Launch],
    ) -> None:
        self._made = [(t.shape, t.stride(), t.dtype) for t in (result, *scratch)]
        self._launches = launches

    def run(self, operands: tuple[torch.Tensor | None, ...], device: torch.device) -> torch.Tensor:
        """The operator's result, in new memory on `device`, which holds the operands."""
        made = [
            torch.empty_strided(shape, strides, dtype=dtype, device=device)
            for shape, strides, dtype in self._made
        ]
        tensors: list[Any] = [*operands, *made]
        context = on_device(device)
        if context is None:
            self._launch(tensors, device)
        else:
            with context:
                self._launch(tensors, device)
        return made[0]

    def _launch(self, tensors: list[Any], device: torch.device) -> None:
        if backend.interprets() or is_watched():
            for launch in self._launches:
                launch.through_jit(tensors)
            return
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        stream = current_stream(device)
        for launch in self._launches:
            launch.run(tensors, addresses, stream)


@dataclass
class _Launch:
    """A Call whose arguments are in the kernel's order, with Places where tensors belong."""

    kernel: Any
    grid: int
    arguments: tuple[Any, ...]
    options: dict[str, int]
    #: What the JIT launched, and how to do without it; None before the first launch.
    compiled: Any = None
    direct: DirectLaunch | None = None

    def run(self, tensors: Sequence[Any], addresses: Sequence[int], stream: int) -> None:
        """Launches the kernel that the JIT found the first time."""
        if self.compiled is None or self.kernel.pre_run_hooks:
            self.compiled = self.through_jit(tensors)
            if self.compiled is not None:
                self.direct = direct_launch(self.compiled, self.grid, self.arguments)
        elif self.direct is not None:
            self.direct(addresses, stream)
        else:
            self.compiled[self.grid, 1, 1](*_filled(self.arguments, tensors))

    def through_jit(self, tensors: Sequence[Any]) -> Any:
        """Launches as any caller of a Triton kernel does; returns what was compiled."""
        return self.kernel[(self.grid,)](*_filled(self.arguments, tensors), **self.options)


def _filled(arguments: tuple[Any, ...], tensors: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments, with tensors and descriptors in their places."""
    items = []
    for argument in arguments:
        if isinstance(argument, Place):
            items.append(_placed(argument, tensors))
        elif isinstance(argument, tuple):
            items.append(_filled(argument, tensors))
        else:
            items.append(argument)
    if hasattr(arguments, "_fields"):
        return type(arguments)(*items)
    return tuple(items)


def _placed(place: Place, tensors: Sequence[Any]) -> Any:
    tensor = tensors[place.tensor]
    if place.offset:
        # Of a tensor, Triton takes where it begins.
        offset = tensor.storage_offset() + place.offset // tensor.itemsize
        tensor = tensor.as_strided((), (), offset)
    return tensor if place.descriptor is None else replace(place.descriptor, base=tensor)


#: By the facts that they were prepared for; None where they read what PyTorch has to make.
_PREPARED: dict[Any, Prepared | None] = {}
#: Entries beyond this make room for themselves by clearing all: they are made again when needed.
MAX_PREPARED = 4096


def facts_of(tensor: torch.Tensor | None) -> Any:
    """All that a call can depend on in one of its tensors, besides the shape: hashable."""
    if tensor is None:
        return None
    return tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % 16


def prepared(key: Any) -> Prepared | None:
    """What `prepare` made for this key."""
    return _PREPARED.get(key)


def forget_prepared() -> None:
    """Clears what `prepare` made: whoever changes what planners decide has to."""
    _PREPARED.clear()


def prepare(
    key: Any,
    operands: tuple[torch.Tensor | None, ...],
    result: torch.Tensor,
    calls_with: Callable[..., Iterable[Call]],
) -> None:
    """Keeps for `key` what `calls_with`, called with operands and result, would launch.

    It is called with stand-ins, so that each tensor is known among the arguments, even where one
    tensor is two operands. They start as far from 16 bytes as what they stand for.
    """
    tensors = (*operands, result)
    if key in _PREPARED or any(t is not None and t.data_ptr() % t.itemsize for t in tensors):
        return
    stand_ins = [None if t is None else _stand_in(t) for t in tensors]
    calls = [call for last in calls_with(*stand_ins) for call in last.launches()]
    scratch = list({id(c.scratch): c.scratch for c in calls if c.scratch is not None}.values())
    known = [*stand_ins, *scratch]
    launches = [_launch_of(call, known) for call in calls]
    if len(_PREPARED) >= MAX_PREPARED:
        _PREPARED.clear()
    whole = [launch for launch in launches if launch is not None]
    if len(whole) < len(launches):
        _PREPARED[key] = None
        return
    _PREPARED[key] = Prepared(result, scratch, whole)


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without memory: shape, strides, dtype and alignment are those of `tensor`."""
    first = tensor.data_ptr() % 16 // tensor.itemsize
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.empty(first + last + 1, dtype=tensor.dtype, device="meta")
    return memory.as_strided(tensor.shape, tensor.stride(), first)


def _launch_of(call: Call, tensors: Sequence[torch.Tensor | None]) -> _Launch | None:
    """`call` without its tensors; None if it has others than `tensors`."""
    arguments = tuple(call.arguments[name] for name in call.kernel.arg_names)
    try:
        placed = _with_places(arguments, tensors)
    except LookupError:
        return None
    return _Launch(call.kernel, call.grid, placed, call.options)


def _with_places(
    arguments: tuple[Any, ...], tensors: Sequence[torch.Tensor | None]
) -> tuple[Any, ...]:
    """The arguments with a Place for each tensor and descriptor.

    Raises:
        LookupError: a tensor has other memory than all `tensors`.
    """
    items: list[Any] = []
    for argument in arguments:
        descriptor = argument if isinstance(argument, TensorDescriptor) else None
        tensor = argument.base if descriptor is not None else argument
        if isinstance(tensor, torch.Tensor):
            index = _index_of(tensor, tensors)
            if index is None:
                raise LookupError("an argument lies in none of the call's tensors")
            start: Any = tensors[index]
            items.append(Place(index, tensor.data_ptr() - start.data_ptr(), descriptor))
        elif isinstance(argument, tuple):
            items.append(_with_places(argument, tensors))
        else:
            items.append(argument)
    if hasattr(arguments, "_fields"):
        return type(arguments)(*items)
    return tuple(items)


def _index_of(view: torch.Tensor, tensors: Sequence[torch.Tensor | None]) -> int | None:
    """Which of `tensors` has the memory of `view`."""
    memory = view.untyped_storage()._cdata
    for index, tensor in enumerate(tensors):
        if tensor is not None and tensor.untyped_storage()._cdata == memory:
            return index
    return None
