"""Translates PTX to Python: a function for each basic block, with and without a mask of threads."""

from __future__ import annotations

from .control_flow import ENDS
from .faults import Unsupported
from .ptx import Instruction
from .translate_arithmetic import Arithmetic
from .translate_matrices import Matrices
from .translate_memory import MemoryAccess


class Translator(Arithmetic, MemoryAccess, Matrices):
    """Writes the function of one basic block.

    The function takes the registers R, the CTA and the mask M of threads. It returns the next
    block, or, if threads disagree, (mask of those that branch, their block, the others' block).
    """

    def translate(self) -> str:
        """The source. `origins` has the instruction of each line except the first."""
        code = self.k.blocks.code[self.block]
        for instruction in code:
            self.ins, self.guard = instruction, None
            if instruction.parts[0] in ENDS:
                self._end(instruction)
                break
            self._translate(instruction)
        else:
            self._save()
            self.put(f"return {self.block + 1}")
        body = "\n    ".join(self.lines) or "pass"
        return f"def block(R, cta, M):\n    {body}\n"

    def _translate(self, instruction: Instruction) -> None:
        if instruction.predicate:
            guard = self.register(instruction.predicate)
            self.guard = self.emit(f"~{guard}") if instruction.negated else guard
        handler = getattr(self, "op_" + instruction.parts[0], None)
        try:
            if handler is None:
                raise Unsupported("opcode")
            handler(instruction, instruction.parts[1:], instruction.operands)
        except (Unsupported, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            place = self.k.origin(instruction)
            raise Unsupported(f"{type(error).__name__} ({error}) {place}") from error

    def _save(self) -> None:
        """Stores the registers that are read after the block."""
        index = self.k.index
        for name in sorted(
            self.defined & self.k.blocks.live_out[self.block], key=index.__getitem__
        ):
            variable, place = self.register(name, "u"), index[name]
            if self.masked:
                self.put(f"R[{place}] = np.where(M, {variable}, R[{place}])")
            else:
                self.put(f"R[{place}] = {variable}")

    def _end(self, instruction: Instruction) -> None:
        blocks = self.k.blocks
        target, following = len(blocks.code), self.block + 1
        if instruction.parts[0] == "brx":
            targets = blocks.successors(self.block)
            index = self.operand(instruction.operands[0], 32)
            self._save()
            if self.masked:
                raise Unsupported(f"in divergent code: {instruction.text}")
            self.put(f"if ({index} != {index}[0]).any(): raise Unsupported('divergent brx')")
            self.put(f"return {tuple(targets)}[int({index}[0])]")
            return
        if instruction.parts[0] == "bra":
            target = blocks.place(instruction.operands[0])
        if not instruction.predicate:
            self._save()
            self.put(f"return {target}")
            return
        guard = self.register(instruction.predicate)
        self._save()
        if instruction.negated:
            target, following = following, target
        test = f"({guard} | ~M)" if self.masked else guard
        self.put(f"if {test}.all(): return {target}")
        test = f"({guard} & M)" if self.masked else guard
        self.put(f"if not {test}.any(): return {following}")
        self.put(f"return {guard}, {target}, {following}")
