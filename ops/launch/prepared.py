"""The launches of one operator, built once for all calls that differ only in their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...kernels import DESCRIPTORS
from .. import backend
from .call import Call, on_device
from .compiled import DirectLaunch, Place, current_stream, direct_launch, is_watched


class Prepared:
    """The launches of one operator, complete but for the tensors' addresses.

    Building a launch costs the host several times as much as running this: a plan and forty
    arguments, which all follow from the geometry and the operands' `facts_of`, except for tensors.
    """

    def __init__(
        self,
        results: Sequence[torch.Tensor],
        scratch: Sequence[torch.Tensor],
        launches: list[_Launch],
    ) -> None:
        self._made = [(t.shape, t.stride(), t.dtype) for t in (*results, *scratch)]
        self._results = len(results)
        self._launches = launches

    def run(
        self, operands: tuple[torch.Tensor | None, ...], device: torch.device
    ) -> list[torch.Tensor]:
        """The operator's results, in new memory on `device`, which holds the operands."""
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
        return made[: self._results]

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
    """A Call with its arguments in the kernel's order and Places instead of tensors."""

    kernel: Any
    grid: int
    arguments: tuple[Any, ...]
    options: dict[str, int]
    #: The compiled kernel and how to launch it directly; None before the first launch.
    compiled: Any = None
    direct: DirectLaunch | None = None

    def run(self, tensors: Sequence[Any], addresses: Sequence[int], stream: int) -> None:
        """Launches the compiled kernel; the first time through the JIT."""
        if self.compiled is None or self.kernel.pre_run_hooks:
            self.compiled = self.through_jit(tensors)
            if self.compiled is not None:
                self.direct = direct_launch(self.compiled, self.grid, self.arguments)
        elif self.direct is not None:
            self.direct(addresses, stream)
        else:
            self.compiled[self.grid, 1, 1](*_filled(self.arguments, tensors))

    def through_jit(self, tensors: Sequence[Any]) -> Any:
        """Launches through Triton's JIT; returns the compiled kernel."""
        return self.kernel[(self.grid,)](*_filled(self.arguments, tensors), **self.options)


def _filled(arguments: tuple[Any, ...], tensors: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments with tensors and descriptors instead of Places."""
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
        # Triton takes the address of a tensor's first element.
        offset = tensor.storage_offset() + place.offset // tensor.itemsize
        tensor = tensor.as_strided((), (), offset)
    return tensor if place.descriptor is None else replace(place.descriptor, base=tensor)


#: By the facts that they were prepared for; None where they read what PyTorch has to make.
_PREPARED: dict[Any, Prepared | None] = {}
#: The same facts of gradients that are planned as two launches.
_SEPARATE: set[Any] = set()
#: When there are more entries, all are cleared; they are made again when needed.
MAX_PREPARED = 4096


def facts_of(tensor: torch.Tensor | None) -> Any:
    """The facts of a tensor that a launch depends on, besides its shape, as a hashable key."""
    if tensor is None:
        return None
    return tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % 16


def prepared(key: Any) -> Prepared | None:
    """The launches that `prepare` kept for this key, or None."""
    return _PREPARED.get(key)


def forget_prepared() -> None:
    """Clears all prepared launches; to be called when the planner's decisions change."""
    _PREPARED.clear()
    _SEPARATE.clear()


def is_separate(key: Any) -> bool:
    """Whether `keep_separate` was called with this key."""
    return key in _SEPARATE


def keep_separate(key: Any) -> None:
    """Keeps that the gradients of this key are two launches, so that they are not planned again."""
    if len(_SEPARATE) >= MAX_PREPARED:
        _SEPARATE.clear()
    _SEPARATE.add(key)


def prepare(
    key: Any,
    operands: tuple[torch.Tensor | None, ...],
    results: Sequence[torch.Tensor],
    calls_with: Callable[..., Iterable[Call]],
) -> None:
    """Keeps for `key` the launches of `calls_with(*operands, *results)`.

    It is called with stand-ins, distinct even where two operands are one tensor, so that each can
    be found among the arguments. A stand-in has the alignment of its tensor.
    """
    tensors = (*operands, *results)
    if key in _PREPARED or any(t is not None and t.data_ptr() % t.itemsize for t in tensors):
        return
    stand_ins = [None if t is None else _stand_in(t) for t in tensors]
    calls = [call for last in calls_with(*stand_ins) for call in last.launches()]
    scratch = list({id(t): t for call in calls for t in call.scratch}.values())
    known = [*stand_ins, *scratch]
    launches = [_launch_of(call, known) for call in calls]
    if len(_PREPARED) >= MAX_PREPARED:
        _PREPARED.clear()
    whole = [launch for launch in launches if launch is not None]
    if len(whole) < len(launches):
        _PREPARED[key] = None
        return
    _PREPARED[key] = Prepared(results, scratch, whole)


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without memory: shape, strides, dtype and alignment are those of `tensor`."""
    first = tensor.data_ptr() % 16 // tensor.itemsize
    last = sum(max(n - 1, 0) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.empty(first + last + 1, dtype=tensor.dtype, device="meta")
    return memory.as_strided(tensor.shape, tensor.stride(), first)


def _launch_of(call: Call, tensors: Sequence[torch.Tensor | None]) -> _Launch | None:
    """`call` with Places for its tensors; None if it uses others than `tensors`."""
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
        LookupError: a tensor shares memory with none of `tensors`.
    """
    items: list[Any] = []
    for argument in arguments:
        descriptor = argument if isinstance(argument, DESCRIPTORS) else None
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
    """The index of the tensor that shares its memory with `view`."""
    memory = view.untyped_storage()._cdata
    for index, tensor in enumerate(tensors):
        if tensor is not None and tensor.untyped_storage()._cdata == memory:
            return index
    return None
