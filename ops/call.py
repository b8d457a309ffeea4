"""One kernel launch: built with its tensors, or once for all calls that differ only in those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch

from ..kernels import TensorDescriptor
from . import backend
from .formats import channels_innermost
from .interpreter import one_launch

_HERE = nullcontext()

#: What a kernel is given for a tensor: itself, a place in it, a descriptor of it.
Pointer: TypeAlias = Callable[[torch.Tensor], Any]


@dataclass(frozen=True)
class Call:
    """One kernel launch: everything that Triton is given, so that tests can build it instead."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    #: Registers that a thread has at most, on NVIDIA; None for as many as the compiler takes.
    maxnreg: int | None = None
    first: Call | None = None
    #: Memory of this call and the one before or after, which the earlier of them fills.
    scratch: torch.Tensor | None = None
    #: A copy of an operand with its channels innermost, and the operand.
    packed: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.maxnreg is None or torch.version.hip:
            return options
        return options | {"maxnreg": self.maxnreg}

    def run(self, device: torch.device) -> None:
        """Launches the kernel on `device`, which holds the tensors among the arguments.

        What this launch reads may have to be made by another one, `first`.
        """
        if self.first is not None:
            self.first.run(device)
        with _on_device(device):
            self.kernel[(self.grid,)](**self.arguments, **self.options)


class Prepared:
    """The calls of one operator as far as they do not depend on where its tensors lie.

    Building a call costs the host several times what this does: a plan and forty arguments, of
    which all but the tensors follow from the geometry and the facts (`facts_of`) of the operands.
    """

    def __init__(
        self, result: torch.Tensor, scratch: Sequence[torch.Tensor], launches: list[_Launch]
    ) -> None:
        self._made = [(t.shape, t.stride(), t.dtype) for t in (result, *scratch)]
        self._launches = launches

    def run(self, operands: tuple[torch.Tensor | None, ...], device: torch.device) -> torch.Tensor:
        """The operator's result, in new memory on `device`, which holds the operands."""
        made = [
            torch.empty_strided(shape, strides, dtype=dtype, device=device)
            for shape, strides, dtype in self._made
        ]
        tensors = (*operands, *made)
        with _on_device(device):
            for launch in self._launches:
                launch.run(tensors)
        return made[0]


@dataclass(frozen=True)
class _Launch:
    """A Call whose arguments are in the kernel's order, with the places where tensors belong."""

    kernel: Any
    grid: tuple[int]
    arguments: tuple[Any, ...]
    options: dict[str, int]
    #: (argument, tensor, pointer or None for the tensor itself)
    places: tuple[tuple[int, int, Pointer | None], ...]

    def run(self, tensors: Sequence[Any]) -> None:
        arguments = list(self.arguments)
        for place, index, pointer in self.places:
            tensor = tensors[index]
            arguments[place] = tensor if pointer is None else pointer(tensor)
        self.kernel[self.grid](*arguments, **self.options)


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
    tensor is two operands. These start on 16 bytes: operands that do not are not prepared for.
    """
    tensors = (*operands, result)
    if key in _PREPARED or any(t is not None and t.data_ptr() % 16 for t in tensors):
        return
    stand_ins = [None if t is None else _stand_in(t) for t in tensors]
    calls = []
    for call in calls_with(*stand_ins):
        calls += [call] if call.first is None else [call.first, call]
    scratch = list({id(c.scratch): c.scratch for c in calls if c.scratch is not None}.values())
    launches = [_launch_of(call, [*stand_ins, *scratch]) for call in calls]
    if len(_PREPARED) >= MAX_PREPARED:
        _PREPARED.clear()
    whole = [launch for launch in launches if launch is not None]
    _PREPARED[key] = Prepared(result, scratch, whole) if len(whole) == len(calls) else None


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _launch_of(call: Call, tensors: Sequence[torch.Tensor | None]) -> _Launch | None:
    """`call` without its tensors; None if it has others than `tensors`."""
    places = []
    arguments = [call.arguments[name] for name in call.kernel.arg_names]
    for place, argument in enumerate(arguments):
        described = isinstance(argument, TensorDescriptor)
        tensor = argument.base if described else argument
        if not isinstance(tensor, torch.Tensor):
            continue
        index = _index_of(tensor, tensors)
        offset = int(tensor.storage_offset())  # a stand-in begins where its storage does
        pointer = _at(offset) if offset else None
        if index is None and call.packed and _index_of(tensor, call.packed[:1]) == 0:
            index, pointer = _index_of(call.packed[1], tensors), _of_a_copy(pointer)
        if index is None:
            return None
        if described:
            pointer = _described(argument, pointer)
        arguments[place] = None
        places.append((place, index, pointer))
    return _Launch(call.kernel, (call.grid,), tuple(arguments), call.options, tuple(places))


def _index_of(view: torch.Tensor, tensors: Sequence[torch.Tensor | None]) -> int | None:
    """Which of `tensors` has the memory of `view`."""
    memory = view.untyped_storage()._cdata
    for index, tensor in enumerate(tensors):
        if tensor is not None and tensor.untyped_storage()._cdata == memory:
            return index
    return None


def _at(offset: int) -> Pointer:
    """A pointer so many elements behind the first: of a tensor, Triton takes where it begins."""
    return lambda tensor: tensor.as_strided((), (), tensor.storage_offset() + offset)


def _of_a_copy(pointer: Pointer | None) -> Pointer:
    """`pointer`, of a copy with its channels innermost that is made for each launch."""
    if pointer is None:
        return channels_innermost
    return lambda weight: pointer(channels_innermost(weight))


def _described(descriptor: TensorDescriptor, pointer: Pointer | None) -> Pointer:
    """The descriptor, of another tensor."""
    _, *rest = (getattr(descriptor, field.name) for field in fields(descriptor))

    def pointed(tensor: torch.Tensor) -> TensorDescriptor:
        return TensorDescriptor(tensor if pointer is None else pointer(tensor), *rest)

    return pointed


def _on_device(device: torch.device) -> Any:
    """Triton launches on the current device: make that the tensors' device."""
    if backend.INTERPRET:
        return one_launch()
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        return torch.cuda.device(device)
    return _HERE
