"""A compiled kernel that can be launched: its programs, one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import arithmetic, dtypes
from .control_flow import Blocks
from .copies import Copies
from .dtypes import UINT, Array, Mask, u2, u4, u8
from .faults import Fault, Unsupported
from .global_memory import Memory
from .matrices import Places, Wgmma, mma
from .ptx import Instruction, bits_of, parse
from .shared_memory import SharedMemory
from .tensor_maps import TensorMap
from .threads import whole_warps
from .translation import Translator

#: The most basic blocks that a program may execute; usual are some thousands.
MOST_BLOCKS = 10**7
#: The names that translated code uses.
_NAMES: dict[str, Any] = {
    "np": np,
    "Unsupported": Unsupported,
    "mma": mma,
    "whole_warps": whole_warps,
    **{
        name: getattr(dtypes, name)
        for name in ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
    },
    **{name: value for name, value in vars(arithmetic).items() if callable(value)},
}


@dataclass
class CTA:
    """One program: its memory and its asynchronous operations. Translated code uses the parts."""

    T: int  # threads
    program: int
    grid: int
    elected: int
    values: dict[str, int]
    addresses: dict[str, int]
    memory: Memory
    shared: SharedMemory
    copies: Copies
    wgmma: Wgmma
    blocks: int = 0  # executed so far
    _parameters: dict[tuple[str, str], Array] = field(default_factory=dict)

    def parameter(self, name: str, kind: str, width: int) -> Array:
        """ld.param into a register of `width` bits."""
        if (name, kind) not in self._parameters:
            bits = bits_of(kind)
            value = self.values[name] & ((1 << bits) - 1)
            if kind[0] == "s" and value >> (bits - 1):
                value -= 1 << bits
            value &= (1 << width) - 1
            self._parameters[name, kind] = np.full(self.T, value, UINT[width])
        return self._parameters[name, kind]


class Kernel:
    """One entry of PTX, translated to Python as its blocks are reached.

    Args:
        ptx: a module with one entry, as Triton writes it.
        shared: bytes of shared memory of a CTA.
    """

    def __init__(self, ptx: str, shared: int) -> None:
        self.ptx, self.shared = ptx, shared
        self.entry = parse(ptx)
        self.name, self.threads = self.entry.name, self.entry.threads
        self.symbols = self.entry.symbols
        self.blocks = Blocks(self.entry)
        self.index = {name: i for i, name in enumerate(self.entry.registers)}
        self.widths = {name: bits_of(kind) for name, kind in self.entry.registers.items()}
        #: Registers that wgmma reads its left operand from.
        self.left_operands = {
            name
            for found in re.findall(r"wgmma\.mma_async[^{;]*\{[^}]*\},\s*\{([^}]*)\}", ptx)
            for name in re.findall(r"%\w+", found)
        }
        self.constants: dict[str, Array] = {}
        self._places: Places = {}
        self._functions: dict[tuple[int, bool], Any] = {}
        self._origins: dict[tuple[int, bool], list[Instruction | None]] = {}

    @property
    def unit(self) -> str:
        """The unit that multiplies: "wgmma", "mma.sync" or "fma"."""
        if re.search(r"\bwgmma\.mma_async", self.ptx):
            return "wgmma"
        return "mma.sync" if re.search(r"\bmma\.sync", self.ptx) else "fma"

    def constant(self, dtype: Any, value: int) -> str:
        """The name of an array of all threads."""
        name = f"C_{np.dtype(dtype).name}_{value:x}"
        if name not in self.constants:
            self.constants[name] = np.full(self.threads, value, dtype)
        return name

    def origin(self, instruction: Instruction) -> str:
        """The place of an instruction in the PTX and in the kernel's source, as a text."""
        location = self.entry.locations[instruction.line - 1]
        came = f", from {location}" if location else ""
        return f"at PTX line {instruction.line}: {instruction.text}{came}"

    def launch(
        self,
        memory: Memory,
        grid: int,
        arguments: Sequence[int | TensorMap],
        *,
        programs: Iterable[int] | None = None,
        races: bool = True,
        elected: int = 0,
    ) -> None:
        """Runs programs of a grid on `memory`.

        Args:
            memory: has the allocations of all pointers and tensor maps among the arguments.
            grid: number of programs.
            arguments: for each parameter, a number or a tensor map.
            programs: the programs to run, None for all.
            races: whether shared memory is checked for races.
            elected: the lane that elect.sync elects.

        Raises:
            Fault: with the kernel, the program, the PTX line and the line of the kernel's source.
            Unsupported: with the instruction.
        """
        parameters = self.entry.parameters
        if len(arguments) != len(parameters):
            raise ValueError(f"{len(arguments)} arguments for {len(parameters)} parameters")
        maps: dict[int, TensorMap] = {}
        values: dict[str, int] = {}
        addresses: dict[str, int] = {}
        for i, (argument, (name, kind, size)) in enumerate(zip(arguments, parameters, strict=True)):
            address = addresses[name] = 0x7F00_0000_0000_0000 + i * 4096
            if isinstance(argument, TensorMap) != (size == 128):
                raise ValueError(f"{argument!r} for parameter {name} of {size or 'no'} bytes")
            if isinstance(argument, TensorMap):
                maps[address] = argument
            else:
                values[name] = int(argument) & ((1 << bits_of(kind)) - 1)
        memory.start_launch()
        for program in range(grid) if programs is None else programs:
            shared = SharedMemory(self.threads, self.shared, races)
            copies = Copies(shared, memory, maps, program)
            wgmma = Wgmma(shared, self._places)
            cta = CTA(
                self.threads, program, grid, elected, values, addresses, memory, shared, copies,
                wgmma,
            )  # fmt: skip
            try:
                self._run(cta)
                copies.finish()
            except (Fault, Unsupported) as error:
                where = f"{self.name}, program {program} of {grid}"
                raise type(error)(f"{where}: {error}{self._raised_at(error)}") from error

    def _raised_at(self, error: Exception) -> str:
        trace, found = error.__traceback__, ""
        while trace:
            match = re.fullmatch(r"<ptx (\d+) (\d)>", trace.tb_frame.f_code.co_filename)
            if match:
                origins = self._origins[int(match[1]), bool(int(match[2]))]
                instruction = origins[trace.tb_lineno - 2]
                found = f" {self.origin(instruction)}" if instruction else ""
            trace = trace.tb_next
        return found

    def _function(self, block: int, masked: bool) -> Any:
        key = block, masked
        if key not in self._functions:
            translator = Translator(self, block, masked)
            source = translator.translate()
            self._origins[key] = translator.origins
            space = {**_NAMES, **self.constants}
            exec(compile(source, f"<ptx {block} {int(masked)}>", "exec"), space)
            self._functions[key] = space["block"]
        return self._functions[key]

    def _execute(self, block: int, registers: list[Array], cta: CTA, mask: Mask) -> Any:
        cta.blocks += 1
        if cta.blocks > MOST_BLOCKS:
            raise Fault(f"no end after {MOST_BLOCKS} basic blocks")
        return self._function(block, mask is not None)(registers, cta, mask)

    def _run(self, cta: CTA) -> None:
        """Runs from the first block to the end, without a mask while all threads agree."""
        poison = {
            1: np.zeros(cta.T, bool),
            16: np.full(cta.T, 0x7E77, u2),
            32: np.full(cta.T, 0x7FE7E7E7, u4),
            64: np.full(cta.T, 0x7FFBADBADBADBAD0, u8),
        }
        registers = [poison[self.widths[name]] for name in self.entry.registers]
        block, everyone = 0, np.ones(cta.T, bool)
        with np.errstate(all="ignore"):
            while block < len(self.blocks.code):
                result = self._execute(block, registers, cta, None)
                if isinstance(result, int):
                    block = result
                else:
                    block = self._split(registers, cta, block, everyone, *result)

    def _split(
        self,
        registers: list[Array],
        cta: CTA,
        block: int,
        mask: Array,
        taken: Array,
        target: int,
        following: int,
    ) -> int:
        """Runs both sides of a branch up to the block where they meet, and returns that block."""
        stop = self.blocks.meets[block]
        for side, start in ((mask & taken, target), (mask & ~taken, following)):
            at = start
            while at not in (stop, len(self.blocks.code)):
                result = self._execute(at, registers, cta, side)
                if isinstance(result, int):
                    at = result
                else:
                    at = self._split(registers, cta, at, side, *result)
        return stop
