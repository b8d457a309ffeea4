"""Instructions that access memory, wait, or exchange values between threads."""

from __future__ import annotations

import re

from .dtypes import u4
from .faults import Unsupported
from .ptx import Instruction, bits_of
from .writer import Writer

_LOAD_HINTS = {
    *("L1::evict_last", "L1::evict_first", "L1::no_allocate", "L2::cache_hint"),
    *("ca", "cg", "cs", "nc", "weak", "relaxed", "volatile"),
}
_STORE_HINTS = {"L2::cache_hint", "wb", "cg", "cs", "wt", "weak", "relaxed"}


class MemoryAccess(Writer):
    """One method for each opcode, named op_ and the opcode's first word."""

    def op_ld(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        space = kind[0]
        name = kind[-1]
        if space == "param":
            parameter, width = operands[1].strip("[]"), self.width(operands[0])
            if parameter not in {known for known, _, _ in self.k.entry.parameters}:
                raise Unsupported("a part of a parameter")
            self.define(operands[0], self.emit(f"cta.parameter({parameter!r}, {name!r}, {width})"))
            return
        modifiers = set(kind[1:-1])
        vector = [m for m in modifiers if re.fullmatch(r"v\d", m)]
        if modifiers - set(vector) - (_LOAD_HINTS if space == "global" else set()):
            raise Unsupported("modifier")
        targets = self.vector(operands[0])
        if vector and int(vector[0][1]) != len(targets):
            raise Unsupported("vector")
        bits = bits_of(name)
        if name[0] == "s" and (bits < 16 or any(self.width(t) > bits for t in targets if t != "_")):
            raise Unsupported("signed numbers in wider registers")
        for target in targets:
            if target != "_" and self.width(target) < max(16, bits):
                raise Unsupported("register narrower than what is loaded")
        function, width = {"global": ("memory.load", 64), "shared": ("shared.load", 32)}[space]
        address = self.address(operands[1], width)
        mask = self.mask()
        old, loaded = "None", f"u{max(16, bits) // 8}"
        if mask != "None":
            parts = [
                f"{self.register(t)}.astype({loaded}, copy=False)"
                if t != "_"
                else f"np.zeros(cta.T, {loaded})"
                for t in targets
            ]
            old = f"[{', '.join(parts)}]"
        result = self.emit(f"cta.{function}({address}, {mask}, {bits // 8}, {len(targets)}, {old})")
        self.guard = None
        for i, target in enumerate(targets):
            if target != "_":  # a wider register has zeros above
                wide = f"u{self.width(target) // 8}"
                self.define(target, self.emit(f"{result}[{i}].astype({wide}, copy=False)"))

    def op_st(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        space, name = kind[0], kind[-1]
        modifiers = set(kind[1:-1])
        vector = [m for m in modifiers if re.fullmatch(r"v\d", m)]
        if modifiers - set(vector) - (_STORE_HINTS if space == "global" else set()):
            raise Unsupported("modifier")
        sources = self.vector(operands[1])
        if vector and int(vector[0][1]) != len(sources):
            raise Unsupported("vector")
        bits = bits_of(name)
        function, width = {
            "global": ("memory.store(cta.program, ", 64),
            "shared": ("shared.store(", 32),
        }[space]
        address = self.address(operands[0], width)
        values = ", ".join(self.operand(s, max(16, bits)) for s in sources)
        self.put(f"cta.{function}{address}, {self.mask()}, {bits // 8}, [{values}])")

    def op_cp(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        opcode = ins.opcode
        if opcode == "cp.async.commit_group":
            self._whole("cp.async.commit_group")
            self.put("cta.copies.commit()")
        elif opcode == "cp.async.wait_group":
            self._whole("cp.async.wait_group")
            self.put(f"cta.copies.wait_group({int(operands[0], 0)})")
        elif re.fullmatch(r"cp\.async\.c[ag]\.shared\.global(\.L2::\w+)*", opcode):
            if "cache_hint" in opcode:
                operands = operands[:-1]
            target, source = self.address(operands[0], 32), self.address(operands[1], 64)
            size = int(operands[2], 0)
            if size not in ((16,) if ".cg." in opcode else (4, 8, 16)):
                raise Unsupported("cp.async size")
            live = self.operand(operands[3], 32) if len(operands) > 3 else self.k.constant(u4, size)
            self.put(f"cta.copies.cp_async({target}, {source}, {self.mask()}, {size}, {live})")
        elif opcode.startswith("cp.async.bulk"):
            self._bulk(opcode, operands)
        else:
            raise Unsupported(opcode)

    def _bulk(self, opcode: str, operands: list[str]) -> None:
        """Copies by TMA."""
        tensor = r"cp\.async\.bulk\.tensor\.(\d)d"
        if match := re.fullmatch(
            tensor + r"\.shared::(?:cta|cluster)\.global(?:\.tile)?\.mbarrier::complete_tx::bytes",
            opcode,
        ):
            target, barrier = self.address(operands[0], 32), self.address(operands[2], 32)
            box = self._box(operands[1], int(match[1]))
            self.put(f"cta.copies.tma_load({target}, {self.mask()}, {box}, {barrier})")
        elif match := re.fullmatch(
            tensor + r"\.global\.shared::cta(?:\.tile)?\.bulk_group", opcode
        ):
            box, source = self._box(operands[0], int(match[1])), self.address(operands[1], 32)
            self.put(f"cta.copies.tma_store({box}, {source}, {self.mask()})")
        elif opcode == "cp.async.bulk.commit_group":
            self.put(f"cta.copies.commit_stores({self.mask()})")
        elif re.fullmatch(r"cp\.async\.bulk\.wait_group(\.read)?", opcode):
            self.put(f"cta.copies.wait_stores({int(operands[0], 0)})")
        else:
            raise Unsupported(opcode)

    def _box(self, text: str, rank: int) -> str:
        """ "descriptor, [coordinates]" of [descriptor, {coordinates}]."""
        inner = re.fullmatch(r"\[([%\w]+),\s*\{([^}]*)\}\s*\]", text)
        coordinates = [self.operand(c, 32) for c in inner[2].split(",")] if inner else []
        if inner is None or len(coordinates) != rank:
            raise Unsupported(f"coordinates {text}")
        return f"{self.operand(inner[1], 64)}, [{', '.join(coordinates)}]"

    def _whole(self, name: str) -> None:
        if self.masked or self.guard:
            raise Unsupported(f"{name} by some of the threads")

    def op_bar(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if ins.opcode == "bar.warp.sync" and operands == ["-1"]:
            self.put(f"whole_warps({self.mask()}, 'bar.warp.sync')")
            return
        if ins.opcode != "bar.sync" or operands != ["0"]:
            raise Unsupported(ins.opcode)
        self.put(f"cta.shared.bar_sync({self.mask()})")

    def op_fence(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if ins.opcode not in ("fence.proxy.async", "fence.proxy.async.shared::cta"):
            raise Unsupported(ins.opcode)
        self.put("cta.shared.fence_async()")

    def op_elect(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, predicate = operands[0].split("|")
        if operands[1] != "-1":
            raise Unsupported("elect.sync of some")
        self.put(f"whole_warps({self.mask()}, 'elect.sync')")
        if target in self.k.index:
            self.define(target, self.emit("np.full(cta.T, cta.elected, u4)"))
        self.define(predicate, self.emit("(np.arange(cta.T) % 32) == cta.elected"))

    def op_shfl(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if kind[0] != "sync" or kind[2] != "b32":
            raise Unsupported("shfl")
        targets = operands[0].split("|")
        value, by, clamp = (self.operand(o, 32) for o in operands[1:4])
        if operands[4] != "-1":
            raise Unsupported("shfl of some lanes")
        result = self.emit(f"shuffle({value}, {kind[1]!r}, {by}, {clamp}, {self.mask()})")
        self.define(targets[0], self.emit(f"{result}[0]"))
        if len(targets) > 1:
            self.define(targets[1], self.emit(f"{result}[1]"))

    def op_redux(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        _, operation, name = kind
        form = "s" if name[0] == "s" else "u"
        value = self.operand(operands[1], 32, form)
        members = self.operand(operands[2], 32)
        reduce = {"max": "max", "min": "min", "add": "sum"}.get(operation)
        if reduce is None:
            raise Unsupported(operation)
        self.put(f"whole_warps({self.mask()}, 'redux')")
        self.put(f"if ({members} != u4(0xFFFFFFFF)).any(): raise Unsupported('redux of some')")
        dtype = "i4" if form == "s" else "u4"
        reduced = f"np.repeat({value}.reshape(-1, 32).{reduce}(1).astype({dtype}), 32)"
        self.define(operands[0], self.emit(reduced), form)

    def op_mbarrier(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        opcode = ins.opcode.replace(".shared.b64", ".shared::cta.b64")  # Triton 3.6 omits ::cta
        if opcode == "mbarrier.init.shared::cta.b64":
            address = self.address(operands[0], 32)
            self.put(f"cta.copies.mbarrier_init({address}, {self.mask()}, {int(operands[1], 0)})")
        elif opcode == "mbarrier.inval.shared::cta.b64":
            self.put(f"cta.copies.mbarrier_inval({self.address(operands[0], 32)}, {self.mask()})")
        elif opcode == "mbarrier.arrive.expect_tx.shared::cta.b64" and operands[0] == "_":
            address = self.address(operands[1], 32)
            known = operands[2] in self.k.index
            expected = self.operand(operands[2], 32) if known else str(int(operands[2], 0))
            self.put(f"cta.copies.mbarrier_arrive({address}, {self.mask()}, {expected})")
        elif opcode == "mbarrier.try_wait.parity.shared::cta.b64":
            address, parity = self.address(operands[1], 32), self.operand(operands[2], 32)
            waited = f"cta.copies.mbarrier_try_wait({address}, {parity}, {self.mask()})"
            self.define(operands[0], self.emit(waited))
        else:
            raise Unsupported(ins.opcode)
