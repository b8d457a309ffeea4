"""Calls a function three times with different tensors and reports faults of its launches.

The first call is built, the second is prepared and launched by Triton's JIT, the third is launched
without the JIT (ops/launch/compiled.py). Their launches may differ in addresses only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from stub_driver import Record, StubDriver
from uncompiled import Compilations

TURNS = 3
#: Parameters of at least this value are addresses.
ADDRESS = 1 << 40
#: Larger memory, in elements, is not copied, because this would take most of the time.
LARGE = 10**6


@dataclass
class Report:
    """The launches of three calls, and their faults."""

    kernels: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    #: The largest numbers of registers and of bytes of shared memory of the compiled kernels.
    registers: int = 0
    shared: int = 0


def another(tensor: Any) -> Any:
    """A tensor like it in other memory, with the same alignment."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    elements = tensor.untyped_storage().nbytes() // tensor.itemsize + 1
    memory = torch.empty(elements, dtype=tensor.dtype)
    other = memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    assert other.data_ptr() % 16 == tensor.data_ptr() % 16
    if elements < LARGE:
        whole = tensor.detach().as_strided((elements - 1,), (1,), 0)
        memory[: elements - 1].copy_(whole)
    return other.requires_grad_(tensor.requires_grad)


class Observer:
    def __init__(self, stub: StubDriver, compilations: Compilations) -> None:
        self._stub, self._compilations = stub, compilations
        self._empty_grids: list[Any] = []
        self._watch_grids()

    def _watch_grids(self) -> None:
        """Records empty grids, which Triton skips without an error."""
        from triton.backends.nvidia import driver

        real, empty = driver.CudaLauncher.__call__, self._empty_grids

        def watched(launcher: Any, x: int, y: int, z: int, *rest: Any) -> Any:
            if min(x, y, z) < 1:
                empty.append((x, y, z))
            return real(launcher, x, y, z, *rest)

        driver.CudaLauncher.__call__ = watched

    def observe(
        self,
        call: Callable[..., Any],
        operands: list[Any],
        launches: bool = True,
        prepared: bool = True,
    ) -> Report:
        """Makes the call with the operands, then with others like them.

        Args:
            call: takes the operands; returns tensors, or anything.
            operands: tensors and other arguments of the call.
            launches: whether the call has anything to launch.
            prepared: whether the last call must be launched without the JIT.
        """
        report = Report()
        turns: list[list[Record]] = []
        earlier: list[Any] = []
        for turn in range(TURNS):
            given = [another(operand) for operand in operands] if turn else operands
            direct = prepared and turn == TURNS - 1
            records, result = self._one_turn(turn, call, given, direct, report)
            if records is None:
                return report
            turns.append(records)
            report.problems += _stale(turn, records, earlier)
            if isinstance(result, torch.Tensor) and records:
                report.problems += _unwritten(turn, records, result)
            earlier += [*given, result]
        report.kernels = [record.kernel for record in turns[0]]
        report.registers = max((record.regs for record in turns[0]), default=0)
        report.shared = max((record.shared for record in turns[0]), default=0)
        if launches != bool(turns[0]):
            report.problems.append(f"launched {report.kernels}")
        for turn in range(1, TURNS):
            report.problems += _differences(turn, turns[0], turns[turn])
        return report

    def _one_turn(
        self, turn: int, call: Callable[..., Any], given: list[Any], direct: bool, report: Report
    ) -> tuple[list[Record] | None, Any]:
        stub = self._stub
        launched, compiled = stub.launches, len(self._compilations.names)
        refused, others = stub.refusals, stub.others
        self._empty_grids.clear()
        try:
            result = call(*given)
        except Exception as error:  # whatever it is, it is reported
            reason = f" ({stub.reason})" if stub.refusals > refused else ""
            report.problems.append(f"call {turn}: {type(error).__name__}: {error}{reason}")
            return None, None
        if stub.refusals > refused:
            report.problems.append(f"call {turn}: refused: {stub.reason}")
        if self._empty_grids:
            report.problems.append(f"call {turn}: a grid of {self._empty_grids}")
        again = self._compilations.names[compiled:]
        if turn and again:
            report.problems.append(f"call {turn} compiled {again}")
        if direct and stub.others > others:
            report.problems.append(f"call {turn} asked the driver for more than launches")
        records = stub.records(launched)
        for record in records:
            if record.stack:
                report.problems.append(f"{record.kernel} spills {record.stack} bytes")
        return records, result


def _extent(tensor: torch.Tensor) -> range:
    """The addresses of a tensor's memory."""
    memory = tensor.untyped_storage()
    return range(memory.data_ptr(), memory.data_ptr() + memory.nbytes())


def _stale(turn: int, records: list[Record], earlier: list[Any]) -> Iterator[str]:
    for tensor in earlier:
        if not isinstance(tensor, torch.Tensor) or not tensor.numel():
            continue
        extent = _extent(tensor)
        for record in records:
            if any(value in extent for value in record.values):
                yield f"call {turn}: {record.kernel} got a pointer into an earlier call's tensor"


def _unwritten(turn: int, records: list[Record], result: torch.Tensor) -> Iterator[str]:
    extent = _extent(result)
    if result.numel() and not any(v in extent for record in records for v in record.values):
        yield f"call {turn}: no kernel was given the result"


def _differences(turn: int, first: list[Record], other: list[Record]) -> Iterator[str]:
    if [record.shape for record in first] != [record.shape for record in other]:
        shapes = [record.shape[:4] for record in first], [record.shape[:4] for record in other]
        yield f"call {turn} launches otherwise: {shapes[0]}, then {shapes[1]}"
        return
    for a, b in zip(first, other, strict=True):
        for number, (u, v) in enumerate(zip(a.values, b.values, strict=True)):
            if u != v and min(u, v) < ADDRESS:
                yield f"call {turn}: parameter {number} of {a.kernel}: {u}, then {v}"
