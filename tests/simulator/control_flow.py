"""Basic blocks: their successors, the registers read after them, the places where branches meet."""

from __future__ import annotations

import re

from .faults import Unsupported
from .ptx import Entry, Instruction, Label, Targets

_REGISTER = re.compile(r"%[A-Za-z_$][\w$]*")
ENDS = ("bra", "brx", "ret", "exit")
#: Instructions whose first operand is not a result.
_NO_RESULT = {"st", "bra", "brx", "ret", "bar", "stmatrix", "fence", "exit", "membar"}
_NO_RESULT_PREFIXES = ("cp.async", "wgmma.fence", "wgmma.commit", "wgmma.wait")


class Blocks:
    """The basic blocks of an entry; block len(code) is the end.

    Attributes:
        code: of each block, its instructions; only the last one branches.
        live_out: of each block, the registers that are read after it.
        meets: of each block, the next block that all paths from it to the end go through.
    """

    def __init__(self, entry: Entry) -> None:
        self.registers = entry.registers
        self.code: list[list[Instruction]] = [[]]
        self.labels: dict[str, int] = {}
        self.targets: dict[str, list[str]] = {}
        for item in entry.items:
            self._append(item)
        while (
            len(self.code) > 1
            and not self.code[-1]
            and len(self.code) - 1 not in self.labels.values()
        ):
            self.code.pop()
        self.live_out = self._live()
        self.meets = self._post_dominators()

    def _append(self, item: Instruction | Label | Targets) -> None:
        if isinstance(item, Targets):
            self.targets[item.name] = item.labels
        elif isinstance(item, Label):
            if not re.match(r"\$L__(tmp|func)", item.name):
                if self.code[-1]:
                    self.code.append([])
                self.labels[item.name] = len(self.code) - 1
        else:
            self.code[-1].append(item)
            if item.parts[0] in ENDS:
                self.code.append([])

    def place(self, label: str) -> int:
        """The block of a label."""
        if label not in self.labels:
            raise Unsupported(f"label {label}")
        return self.labels[label]

    def successors(self, block: int) -> list[int]:
        """Blocks that may follow a block; none where the program ends."""
        last = self.code[block][-1] if self.code[block] else None
        if last is None or last.parts[0] not in ENDS:
            return [block + 1] if block + 1 < len(self.code) else []
        if last.parts[0] in ("ret", "exit"):
            return [block + 1] if last.predicate else []
        if last.parts[0] == "brx":
            return [self.place(label) for label in self.targets[last.operands[1]]]
        target = self.place(last.operands[0])
        return [target, block + 1] if last.predicate else [target]

    def _touched(self, instruction: Instruction) -> tuple[set[str], set[str]]:
        """(registers read, registers written). One written under a predicate counts as read too."""
        names = [
            {name for name in _REGISTER.findall(operand) if name in self.registers}
            for operand in instruction.operands
        ]
        guard = {instruction.predicate} if instruction.predicate else set()
        opcode = instruction.opcode
        no_result = instruction.parts[0] in _NO_RESULT or opcode.startswith(_NO_RESULT_PREFIXES)
        no_result |= opcode.startswith("mbarrier") and "wait" not in opcode
        if no_result or not names:
            return set().union(*names, guard), set()
        read = set().union(*names[1:], guard)
        if guard or instruction.parts[0] == "wgmma":
            read |= names[0]
        return read, names[0]

    def _live(self) -> list[set[str]]:
        uses: list[set[str]] = []
        defs: list[set[str]] = []
        for code in self.code:
            used: set[str] = set()
            defined: set[str] = set()
            for instruction in code:
                read, written = self._touched(instruction)
                used |= read - defined
                defined |= written
            uses.append(used)
            defs.append(defined)
        live_in = [set(u) for u in uses]
        live_out: list[set[str]] = [set() for _ in self.code]
        changed = True
        while changed:
            changed = False
            for block in reversed(range(len(self.code))):
                out: set[str] = set()
                for successor in self.successors(block):
                    if successor < len(self.code):
                        out |= live_in[successor]
                before = uses[block] | (out - defs[block])
                if out != live_out[block] or before != live_in[block]:
                    live_out[block], live_in[block], changed = out, before, True
        return live_out

    def _post_dominators(self) -> list[int]:
        """Post-dominators, by Cooper, Harvey and Kennedy (2001) on the reversed graph."""
        end = len(self.code)
        after = [self.successors(block) or [end] for block in range(end)] + [[]]
        before: list[list[int]] = [[] for _ in range(end + 1)]
        for block, following in enumerate(after):
            for successor in following:
                before[successor].append(block)
        order: list[int] = []
        seen, stack = {end}, [(end, iter(before[end]))]
        while stack:
            node, rest = stack[-1]
            step = next((n for n in rest if n not in seen), None)
            if step is None:
                order.append(node)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(before[step])))
        number = {block: i for i, block in enumerate(order)}
        found = {end: end}
        changed = True
        while changed:
            changed = False
            for block in reversed(order[:-1]):
                new: int | None = None
                for other in after[block]:
                    if other not in found:
                        continue
                    if new is None:
                        new = other
                        continue
                    while new != other:
                        while number[new] < number[other]:
                            new = found[new]
                        while number[other] < number[new]:
                            other = found[other]
                if new is not None and found.get(block) != new:
                    found[block], changed = new, True
        return [found.get(block, end) for block in range(end)]
