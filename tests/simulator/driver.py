"""A driver for Triton whose device is the simulator: kernels launched on CPU tensors are simulated.

Triton's JIT binds, specialises, keys and compiles as usual; only the driver is replaced. Its
launcher runs every program of the grid on the tensors' memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from .compiler import compiling
from .faults import Unsupported
from .kernel import Kernel
from .ptx import without_lines
from .tensor_maps import TensorMap
from .tensors import Storages, tracked_allocations

#: (PyTorch's name of the device, kilobytes of shared memory, multiprocessors), by architecture.
DEVICES = {
    80: ("NVIDIA A100 80GB", 163, 108),
    90: ("NVIDIA H100 80GB HBM3", 227, 132),
    100: ("NVIDIA B200", 227, 148),  # without its matrix unit, tcgen05
}

_kernels: dict[tuple[str, int], Kernel] = {}


def translated(ptx: str, shared: int) -> Kernel:
    """A kernel of this PTX; the same one for the same code."""
    key = without_lines(ptx), shared
    if key not in _kernels:
        if len(_kernels) > 150:
            _kernels.clear()
        _kernels[key] = Kernel(ptx, shared)
    return _kernels[key]


@dataclass(frozen=True)
class Launch:
    """One launch, with its arguments at run time and the PTX of its kernel."""

    kernel: str
    arch: int
    unit: str
    grid: int
    seconds: float
    arguments: dict[str, Any] = field(repr=False)
    ptx: str = field(repr=False)


@dataclass
class Simulator:
    """A simulated device with the interface of Triton's drivers; its `utils` is itself.

    Attributes:
        arch: compute capability times ten.
        races: whether shared memory is checked for races.
        change: a function that tests use to damage PTX before it is simulated.
        change_arguments: a function that tests use to change a launch's integers, by name.
        launches: all launches so far.
    """

    arch: int = 90
    races: bool = True
    change: Callable[[str], str] | None = None
    change_arguments: Callable[[dict[str, int]], dict[str, int]] | None = None
    launches: list[Launch] = field(default_factory=list)

    @property
    def utils(self) -> Simulator:
        return self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> str:
        return f"sm_{self.arch}"  # Triton keys compiled kernels by it

    def set_current_device(self, device: Any) -> None:
        pass

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_device_properties(self, device: Any = None) -> dict[str, int]:
        _, shared, processors = DEVICES[self.arch]
        return {"max_shared_mem": shared * 1024, "multiprocessor_count": processors}

    def load_binary(self, name: str, binary: bytes, shared: int, device: Any) -> tuple[Any, ...]:
        """(module, function, registers, spills, most threads); see `keep_ptx`."""
        return object(), (binary.decode(), shared), 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Launcher:
        return Launcher(source, metadata)


class Launcher:
    """Launches one compiled kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.source, self.metadata = source, metadata

    def __call__(
        self,
        grid_0: int,
        grid_1: int,
        grid_2: int,
        stream: int,
        function: tuple[str, int],
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *bound: Any,
    ) -> None:
        """Run a launch. The arguments are Triton's. Raises Fault or Unsupported."""
        if (grid_1, grid_2) != (1, 1) or self.metadata.global_scratch_size:
            raise Unsupported("a grid of several dimensions, or global scratch")
        start = time.perf_counter()
        simulator = active()
        ptx, shared = function
        kernel = translated(simulator.change(ptx) if simulator.change else ptx, shared)
        named = dict(zip(self.source.fn.arg_names, bound, strict=True))
        flat = dict(_flattened(named, self.source.signature))
        if simulator.change_arguments:
            integers = {name: value for name, (_, value) in flat.items() if type(value) is int}
            for name, value in simulator.change_arguments(integers).items():
                flat[name] = flat[name][0], value
        storages = Storages({name: _tensor(value) for name, (_, value) in flat.items()})
        given = self._arguments(flat, storages)
        try:
            kernel.launch(storages.memory, grid_0, given, races=simulator.races)
        finally:
            storages.copy_back()
            seconds = time.perf_counter() - start
            values = {name: _recorded(value) for name, (_, value) in flat.items()}
            simulator.launches.append(
                Launch(
                    kernel.name, simulator.arch, kernel.unit, grid_0, seconds, values, kernel.ptx
                )
            )  # fmt: skip

    def _arguments(
        self, flat: Mapping[str, tuple[str, Any]], storages: Storages
    ) -> list[int | TensorMap]:
        maps = iter(self.metadata.tensordesc_meta or [])
        given: list[int | TensorMap] = []
        for _, value in flat.values():
            if hasattr(value, "block_shape"):  # a descriptor, Triton's or Gluon's
                how = next(maps)
                given.append(
                    TensorMap(
                        storages.address(value.base), how["elem_size"], value.shape, value.strides,
                        how["block_size"], how["swizzle"], value.padding == "nan",
                        getattr(value, "round_f32_to_tf32", False),
                    )
                )  # fmt: skip
                given += [*value.shape, *value.strides]
            elif isinstance(value, torch.Tensor):
                given.append(storages.address(value))
            elif isinstance(value, float):
                raise Unsupported("a floating-point argument")
            else:
                given.append(int(value))
        return [*given, 0, 0]  # no scratch memory


def _recorded(value: Any) -> Any:
    """An argument of a launch, as a text if it is a tensor, which would keep memory alive."""
    if not isinstance(value, torch.Tensor):
        return str(value) if hasattr(value, "block_shape") else value
    return f"{value.dtype} {tuple(value.shape)} {value.stride()}"


def _tensor(value: Any) -> Any:
    return value.base if hasattr(value, "block_shape") else value


def _flattened(
    arguments: Mapping[str, Any], signature: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, Any]]]:
    """(name, (type, value)) of a kernel's parameters: elements of tuples, without constexprs."""
    for name, kind in signature.items():
        value = arguments[name]
        if isinstance(kind, tuple):
            fields = getattr(value, "_fields", None)
            names = [f"{name}.{f}" for f in fields] if fields else [
                f"{name}[{i}]" for i in range(len(kind))
            ]  # fmt: skip
            yield from _flattened(
                dict(zip(names, value, strict=True)), dict(zip(names, kind, strict=True))
            )
        elif kind != "constexpr":
            yield name, (kind, value)


def keep_ptx(backend: Any = None, stages: Any = None, *rest: Any) -> Any:
    """Triton's hook for the stages of a compilation. The PTX takes the place of the cubin.

    Called without arguments, it returns (key, hash), by which Triton caches its results.
    """
    if stages is None:
        return "simulator", "simulator"
    stages["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


def active() -> Simulator:
    """The simulator that is Triton's driver."""
    driver = triton.runtime.driver.active
    assert isinstance(driver, Simulator)
    return driver


@contextmanager
def simulated(arch: int = 90, races: bool = True) -> Iterator[Simulator]:
    """Inside, CPU tensors run tricorr's kernels, compiled for `arch` and simulated."""
    from tricorr.ops import backend
    from tricorr.ops.launch.prepared import forget_prepared
    from tricorr.ops.plan.device import device_called

    name, _, processors = DEVICES[arch]
    simulator = Simulator(arch, races)
    drivers = triton.runtime.driver
    before, cpu_device = drivers._active, backend.CPU_DEVICE
    knobs = triton.knobs
    with compiling(), tracked_allocations(), knobs.runtime.scope():
        knobs.runtime.add_stages_inspection_hook = keep_ptx
        drivers.set_active(simulator)
        backend.CPU_DEVICE = device_called(name, str(arch), processors)
        forget_prepared()
        try:
            yield simulator
        finally:
            forget_prepared()
            backend.CPU_DEVICE = cpu_device
            drivers.set_active(before)
