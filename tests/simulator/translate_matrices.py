"""Instructions of the matrix units."""

from __future__ import annotations

import re

from .faults import Unsupported
from .ptx import Instruction, bits_of
from .writer import Writer


class Matrices(Writer):
    """One method for each opcode, named op_ and the opcode's first word."""

    def op_ldmatrix(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        match = re.fullmatch(
            r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", ins.opcode
        )
        targets = self.vector(operands[0])
        if not match or int(match[1]) != len(targets) or self.guard:
            raise Unsupported(ins.opcode)
        address = self.address(operands[1], 32)
        result = self.emit(
            f"cta.shared.ldmatrix({address}, {len(targets)}, {bool(match[2])}, {self.mask()})"
        )
        for i, target in enumerate(targets):
            self.define(target, self.emit(f"{result}[{i}]"))

    def op_stmatrix(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        match = re.fullmatch(
            r"stmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", ins.opcode
        )
        sources = self.vector(operands[1])
        if not match or int(match[1]) != len(sources) or self.guard:
            raise Unsupported(ins.opcode)
        values = ", ".join(self.operand(s, 32) for s in sources)
        address = self.address(operands[0], 32)
        self.put(f"cta.shared.stmatrix({address}, [{values}], {bool(match[2])}, {self.mask()})")

    def op_mma(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        match = re.fullmatch(
            r"mma\.sync\.aligned\.m(\d+)n8k(\d+)\.row\.col\.(f32|f64)\.(\w+)\.(\w+)\.(f32|f64)",
            ins.opcode,
        )
        if not match or match[4] != match[5] or match[3] != match[6] or self.guard:
            raise Unsupported(ins.opcode)
        d, a, b, c = map(self.vector, operands)
        m, k, operand = int(match[1]), int(match[2]), match[4]
        per = {"bf16": 2, "f16": 2, "tf32": 1, "f64": 1}[operand]
        if len(a) != m * k // 32 // per or len(b) != 8 * k // 32 // per or len(c) != m * 8 // 32:
            raise Unsupported("registers of an mma")
        bits, acc = (64 if operand == "f64" else 32), bits_of(match[3])
        fragments = ", ".join(
            "[" + ", ".join(self.operand(r, width) for r in registers) + "]"
            for registers, width in ((a, bits), (b, bits), (c, acc))
        )
        self.put(f"whole_warps({self.mask()}, 'mma')")
        result = self.emit(f"mma({operand!r}, {match[3]!r}, {fragments})")
        for i, target in enumerate(d):
            self.define(target, self.emit(f"{result}[{i}]"))

    def op_wgmma(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if ins.opcode == "wgmma.fence.sync.aligned":
            return
        if ins.opcode == "wgmma.commit_group.sync.aligned":
            self.put("cta.wgmma.commit()")
            return
        if ins.opcode == "wgmma.wait_group.sync.aligned":
            self.put(f"cta.wgmma.wait({int(operands[0], 0)})")
            return
        match = re.fullmatch(
            r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+)", ins.opcode
        )
        if not match or match[3] != match[4] or self.guard:
            raise Unsupported(ins.opcode)
        n, k, name = int(match[1]), int(match[2]), match[3]
        if k != {"bf16": 16, "f16": 16, "tf32": 8}[name]:
            raise Unsupported(ins.opcode)
        d = self.vector(operands[0])
        if len(d) != n // 2:
            raise Unsupported("accumulators")
        from_registers = operands[1].startswith("{")
        registers: tuple[str, ...] = ()
        if from_registers:
            registers = tuple(self.vector(operands[1]))
            a = "[" + ", ".join(self.operand(r, 32) for r in registers) + "]"
        else:
            a = self.operand(operands[1], 64)
        b = self.operand(operands[2], 64)
        scale = operands[3]
        scale = self.register(scale) if scale in self.k.index else str(bool(int(scale)))
        numbers = [int(o, 0) for o in operands[4:]]
        scales, transposed = numbers[:2], numbers[2:]
        if name == "tf32":
            if transposed:
                raise Unsupported("transposed tf32")
            transposed = [0, 0]
        elif from_registers:
            transposed = [0, *transposed]
        if len(transposed) != 2:
            raise Unsupported("immediates")
        acc = ", ".join(self.operand(r, 32) for r in d)
        result = self.emit(
            f"cta.wgmma.multiply({n}, {k}, {name!r}, [{acc}], {a}, {b}, {scale}, "
            f"{(*scales, *transposed)}, {self.mask()}, {registers})"
        )
        for i, target in enumerate(d):
            self.define(target, self.emit(f"{result}[{i}]"))
