"""Launching a compiled kernel past Triton's JIT. Importing this imports triton.

Calls of one prepared launch differ only in addresses. Triton's JIT would still bind all arguments,
specialise each and look the kernel up: 12 to 20 us of host time for 45 arguments, where the launch
itself takes 3. Here the C launcher is called directly with the kernel's run-time arguments. A
tensor map depends on an address and a layout only, so maps are cached by address.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime import driver

#: Versions of Triton, (major, minor), whose C launcher has the signature used below.
KNOWN_VERSIONS = ((3, 6), (3, 7), (3, 8), (3, 9))
#: Most tensor maps cached per descriptor of a launch; when it is reached, the cache is cleared.
MAX_TENSOR_MAPS = 64


@dataclass(frozen=True)
class Place:
    """A placeholder among the arguments of a launch for a pointer into a tensor of the call."""

    #: Which of the call's tensors.
    tensor: int
    #: Bytes from the tensor's start.
    offset: int
    #: A descriptor whose `base` belongs there, or None for a pointer.
    descriptor: Any = None


def is_watched() -> bool:
    """Whether launches must go through the JIT because hooks or debug options are set now."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(
        getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or runtime.debug
        or getattr(knobs.compilation, "instrumentation_mode", None)
        or getattr(runtime, "add_stages_inspection_hook", None)
    )


def current_stream(device: torch.device) -> int:
    """PyTorch's current stream of `device`, as a handle for Triton's driver."""
    active = driver.active
    index = active.get_current_device() if device.index is None else device.index
    return active.get_current_stream(index)


@dataclass(frozen=True)
class _Maps:
    """The tensor maps of one descriptor by address."""

    place: int
    tensor: int
    offset: int
    encode: Callable[[int], Any]
    kept: dict[int, Any] = field(default_factory=dict)

    def at(self, address: int) -> Any:
        """Encodes the map for `address` and caches it."""
        if len(self.kept) >= MAX_TENSOR_MAPS:
            self.kept.clear()
        found = self.kept[address] = self.encode(address)
        return found


@dataclass(frozen=True)
class DirectLaunch:
    """Launches a compiled kernel on tensors at given addresses."""

    launch: Callable[..., None]
    #: What the C launcher takes before the stream, and between stream and arguments.
    grid: tuple[int, int, int]
    middle: tuple[Any, ...]
    arguments: list[Any]
    #: (place among the arguments, tensor, bytes from its start)
    pointers: list[tuple[int, int, int]]
    maps: list[_Maps]
    #: Whether the launcher takes the arguments one by one.
    spread: bool

    def __call__(self, addresses: Sequence[int], stream: int) -> None:
        """Queues the kernel on the current device's `stream`; `addresses` of the call's tensors."""
        arguments = self.arguments.copy()
        for place, tensor, offset in self.pointers:
            arguments[place] = addresses[tensor] + offset
        for maps in self.maps:
            address = addresses[maps.tensor] + maps.offset
            arguments[maps.place] = maps.kept.get(address) or maps.at(address)
        if self.spread:
            self.launch(*self.grid, stream, *self.middle, *arguments)
        else:
            self.launch(*self.grid, stream, *self.middle, arguments)


def direct_launch(compiled: Any, grid: int, arguments: Sequence[Any]) -> DirectLaunch | None:
    """How to launch `compiled` without the JIT.

    Args:
        compiled: what `kernel[grid](...)` returned.
        grid: number of programs.
        arguments: of the kernel, in its order; a Place stands for what differs between calls.

    Returns:
        None where Triton's version, its driver or the kernel is not one that this knows.
    """
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    launcher = compiled.run
    if version not in KNOWN_VERSIONS or type(launcher).__name__ != "CudaLauncher":
        return None
    nvidia = sys.modules[type(launcher).__module__]
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return None
    kinds = list(compiled.src.signature.values())
    metas = iter(getattr(compiled.metadata, "tensordesc_meta", None) or ())
    spread = version < (3, 7)
    # From 3.7 on one launcher serves all kernels and takes only run-time arguments, described by
    # `signature`. An older one is compiled per kernel, takes all arguments and skips constants.
    given = zip(kinds, arguments, strict=True) if spread else _at_run_time(kinds, arguments)
    flat: list[Any] = []
    pointers, maps = [], []
    for kind, argument in given:
        if not isinstance(argument, Place):
            if _holds_place(argument):
                return None
            flat.append(argument)
        elif argument.descriptor is None:
            pointers.append((len(flat), argument.tensor, argument.offset))
            flat.append(None)
        else:
            meta = next(metas, None)
            if meta is None or not kind.startswith("tensordesc"):
                return None
            encode = _encoder(nvidia.make_tensordesc_arg, argument.descriptor, meta)
            maps.append(_Maps(len(flat), argument.tensor, argument.offset, encode))
            flat += [None, *argument.descriptor.shape, *argument.descriptor.strides]
    options = (compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl)
    metadata, nothing = compiled.packed_metadata, (None, None)
    middle: tuple[Any, ...]
    if spread:
        middle = (*options, *nothing, metadata, None, *nothing)
        launch = launcher.launch
        if maps:  # within a function that encodes descriptors at every launch
            launch = inspect.getclosurevars(launch).nonlocals["launcher"]
    else:
        signature = launcher.kernel_signature
        annotations = nvidia.annotate_arguments(["i32"] * len(flat))
        middle = (*options, metadata, None, *nothing, *nothing, annotations, signature)
        launch = driver.active.utils.launch
        if len(signature) != len(flat):
            return None
    return DirectLaunch(launch, (grid, 1, 1), middle, flat, pointers, maps, spread)


def _at_run_time(kinds: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """(kind, value) of every argument that is not a compile-time constant, tuples flattened."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _at_run_time(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _holds_place(argument: Any) -> bool:
    if isinstance(argument, tuple):
        return any(map(_holds_place, argument))
    return isinstance(argument, Place)


def _encoder(make: Callable[..., list[Any]], descriptor: Any, meta: Any) -> Callable[[int], Any]:
    """A function from an address to the tensor map of `descriptor` there, as Triton makes it."""
    facts = {name: value for name, value in vars(descriptor).items() if name != "base"}
    rest = [None] * (len(inspect.signature(make).parameters) - 2)  # Triton 3.9: the signature

    def encode(address: int) -> Any:
        base = SimpleNamespace(data_ptr=lambda: address)
        return make(SimpleNamespace(base=base, **facts), meta, *rest)[0]

    return encode
