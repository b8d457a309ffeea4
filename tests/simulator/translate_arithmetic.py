"""Instructions that compute with registers."""

from __future__ import annotations

import re

from .dtypes import UINT
from .faults import Unsupported
from .ptx import Instruction, bits_of
from .writer import Writer

#: Special registers. Those of .y and .z are always 0, or 1 if they count.
_SPECIAL = {"%tid.x", "%ctaid.x", "%nctaid.x", "%ntid.x", "%laneid", "%ctaid.y", "%ctaid.z",
            "%nctaid.y", "%nctaid.z", "%tid.y", "%tid.z"}  # fmt: skip


class Arithmetic(Writer):
    """One method for each opcode, named op_ and the opcode's first word."""

    # --- moves

    def op_mov(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, source = operands
        bits = bits_of(kind[0])
        if target.startswith("{"):
            parts = self.vector(target)
            value = self.operand(source, bits)
            small = bits // len(parts)
            short = {8: "u1", 16: "u2", 32: "u4"}[small]
            made = []
            for i, part in enumerate(parts):
                if part == "_":
                    continue
                shifted = value
                if i:
                    shifted = self.emit(f"{value} >> {self.k.constant(UINT[bits], small * i)}")
                made.append((part, self.emit(f"{shifted}.astype({short})")))
            for part, variable in made:
                self.define(part, variable)
            return
        if source.startswith("{"):
            parts = self.vector(source)
            small = bits // len(parts)
            wide = {16: "u2", 32: "u4", 64: "u8"}[bits]
            total = ""
            for i, part in enumerate(parts):
                piece = self.emit(f"{self.operand(part, small)}.astype({wide})")
                if i:
                    piece = self.emit(f"{piece} << {self.k.constant(UINT[bits], small * i)}")
                total = self.emit(f"{total} | {piece}") if total else piece
            self.define(target, total)
            return
        if source in _SPECIAL:
            self.define(target, self.special(source, bits))
            return
        if any(source == name for name, _, _ in self.k.entry.parameters):
            value = self.emit(f"np.full(cta.T, cta.addresses[{source!r}], u8)")
            self.define(target, value)
            return
        if source in self.k.index and self.width(source) == bits:
            self.register(source)
            forms = self.known[source]
            if self.guard is None:
                self.known[target] = dict(forms)
                self.defined.add(target)
                return
        self.define(target, self.operand(source, bits))

    def special(self, name: str, bits: int) -> str:
        short = {16: "u2", 32: "u4", 64: "u8"}[bits]
        expressions = {
            "%tid.x": f"np.arange(cta.T, dtype={short})",
            "%laneid": f"np.arange(cta.T, dtype={short}) & {short}(31)",
            "%ctaid.x": f"np.full(cta.T, cta.program, {short})",
            "%nctaid.x": f"np.full(cta.T, cta.grid, {short})",
            "%ntid.x": f"np.full(cta.T, cta.T, {short})",
        }
        if name in expressions:
            return self.emit(expressions[name])
        return self.emit(f"np.full(cta.T, {int(name.startswith('%n'))}, {short})")

    def op_cvta(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self.op_mov(ins, ["b64"], operands)

    def op_selp(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, yes, no, predicate = operands
        bits = bits_of(kind[0])
        chosen = self.operand(predicate, 1)
        a, b = self.operand(yes, bits), self.operand(no, bits)
        self.define(target, self.emit(f"np.where({chosen}, {a}, {b})"))

    # --- integers

    def op_add(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._sum(kind, operands, "+")

    def op_sub(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._sum(kind, operands, "-")

    def _sum(self, kind: list[str], operands: list[str], sign: str) -> None:
        target, a, b = operands
        name = kind[-1]
        if name in ("bf16", "bf16x2", "f16", "f16x2"):
            if kind[:-1] == ["rn", "f32"]:  # a 16-bit float and a float32, on sm_100
                value = f"{self._widened(a, name)} {sign} {self.operand(b, 32, 'f')}"
                self.define(target, self.emit(value), "f")
            else:
                self._narrow(kind, target, [a, b], f"{{0}} {sign} {{1}}")
            return
        if name == "f32x2":
            self._pairs(kind, target, [a, b], f"{{0}} {sign} {{1}}")
            return
        if name in ("s16x2", "u16x2"):  # nothing is carried from the lower half to the upper
            halves = [f"{self.operand(o, 32)}.view(u2)" for o in (a, b)]
            self.define(target, self.emit(f"({halves[0]} {sign} {halves[1]}).view(u4)"))
            return
        if set(kind[:-1]) - {"ftz", "rn"}:
            raise Unsupported("modifier")
        bits = bits_of(name)
        if name[0] == "f":
            x, y = self.operand(a, bits, "f"), self.operand(b, bits, "f")
            if "ftz" in kind:
                x, y = self.emit(f"flush({x})"), self.emit(f"flush({y})")
            value = self.emit(f"{x} {sign} {y}")
            if "ftz" in kind:
                value = self.emit(f"flush({value})")
            self.define(target, value, "f")
            return
        self.define(target, self.emit(f"{self.operand(a, bits)} {sign} {self.operand(b, bits)}"))

    def _pairs(self, kind: list[str], target: str, operands: list[str], expression: str) -> None:
        """Arithmetic of two float32 in a register of 64 bits, on sm_100."""
        if set(kind[:-1]) - {"rn"}:
            raise Unsupported("modifier")
        values = [f"{self.operand(o, 64)}.view(f4)" for o in operands]
        self.define(target, self.emit(f"({expression.format(*values)}).view(u8)"))

    def _widened(self, operand: str, name: str) -> str:
        """A float32 from a 16-bit float."""
        value = self.operand(operand, 16)
        return f"bf16_to({value})" if name == "bf16" else f"{value}.view(f2).astype(f4)"

    def _narrow(self, kind: list[str], target: str, operands: list[str], expression: str) -> None:
        """Arithmetic of one or two 16-bit floats, rounded once from float32."""
        if set(kind[:-1]) - {"rn"}:
            raise Unsupported("modifier")
        name = kind[-1]
        values = [self.operand(o, bits_of(name)) for o in operands]
        if name.endswith("x2"):
            values = [f"{v}.view(u2)" for v in values]
        if name.startswith("bf"):
            inner = expression.format(*(f"bf16_to({v})" for v in values))
            result = f"bf16_of({inner})"
        else:
            inner = expression.format(*(f"{v}.view(f2).astype(f4)" for v in values))
            result = f"f16_of({inner})"
        if name.endswith("x2"):
            result += ".view(u4)"
        self.define(target, self.emit(result))

    def op_mul(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, a, b = operands
        name = kind[-1]
        if name[0] == "f" and name in ("f32", "f64"):
            if set(kind[:-1]) - {"ftz", "rn"}:
                raise Unsupported("modifier")
            bits = bits_of(name)
            x, y = self.operand(a, bits, "f"), self.operand(b, bits, "f")
            if "ftz" in kind:
                x, y = self.emit(f"flush({x})"), self.emit(f"flush({y})")
            value = self.emit(f"{x} * {y}")
            if "ftz" in kind:
                value = self.emit(f"flush({value})")
            self.define(target, value, "f")
            return
        if name in ("bf16", "bf16x2", "f16", "f16x2"):
            self._narrow(kind, target, [a, b], "{0} * {1}")
            return
        if name == "f32x2":
            self._pairs(kind, target, [a, b], "{0} * {1}")
            return
        self.define(target, *self._product(kind, a, b))

    def _product(self, kind: list[str], a: str, b: str) -> tuple[str, str]:
        mode, name = kind
        bits = bits_of(name)
        if mode == "lo":
            return self.emit(f"{self.operand(a, bits)} * {self.operand(b, bits)}"), "u"
        form = "s" if name[0] == "s" else "u"
        x, y = self.operand(a, bits, form), self.operand(b, bits, form)
        if mode == "hi" and bits == 64:
            return self.emit(f"mulhi_{'s' if form == 's' else 'u'}64({x}, {y})"), form
        wide = ("i" if form == "s" else "u") + {16: "4", 32: "8"}[bits]
        product = self.emit(f"{x}.astype({wide}) * {y}.astype({wide})")
        if mode == "wide":
            return product, form
        if mode == "hi":
            short = ("i" if form == "s" else "u") + {16: "2", 32: "4"}[bits]
            return self.emit(f"({product} >> {wide}({bits})).astype({short})"), form
        raise Unsupported(mode)

    def op_mad(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, a, b, c = operands
        mode, name = kind
        if mode not in ("lo", "wide"):
            raise Unsupported(mode)
        product, form = self._product(kind, a, b)
        bits = bits_of(name) * (2 if mode == "wide" else 1)
        self.define(target, self.emit(f"{product} + {self.operand(c, bits, form)}"), form)

    def op_div(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, a, b = operands
        name = kind[-1]
        if name in ("f32", "f64"):
            if kind[0] not in ("full", "rn", "approx") or "ftz" in kind:
                raise Unsupported("modifier")
            bits = bits_of(name)
            x, y = self.operand(a, bits, "f"), self.operand(b, bits, "f")
            self.define(target, self.emit(f"{x} / {y}"), "f")
            return
        self._quotient(target, a, b, name, "div")

    def op_rem(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, a, b = operands
        self._quotient(target, a, b, kind[-1], "rem")

    def _quotient(self, target: str, a: str, b: str, name: str, what: str) -> None:
        bits = bits_of(name)
        form = "s" if name[0] == "s" else "u"
        x, y = self.operand(a, bits, form), self.operand(b, bits, form)
        function = f"{what}_{'signed' if form == 's' else 'unsigned'}"
        self.define(target, self.emit(f"{function}({x}, {y})"), form)

    def op_neg(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        name = kind[-1]
        bits = bits_of(name)
        if name[0] == "f" and bits > 16:
            self.define(operands[0], self.emit(f"-{self.operand(operands[1], bits, 'f')}"), "f")
        elif name[0] == "s":
            self.define(operands[0], self.emit(f"-{self.operand(operands[1], bits, 's')}"), "s")
        else:
            raise Unsupported(name)

    def op_abs(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        name = kind[-1]
        bits = bits_of(name)
        form = {"f": "f", "s": "s"}[name[0]]
        value = self.operand(operands[1], bits, form)
        if "ftz" in kind:
            value = self.emit(f"flush({value})")
        self.define(operands[0], self.emit(f"np.abs({value})"), form)

    def op_min(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._extremum(kind, operands, "minimum", "fmin")

    def op_max(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._extremum(kind, operands, "maximum", "fmax")

    def _extremum(
        self, kind: list[str], operands: list[str], with_nan: str, without_nan: str
    ) -> None:
        name = kind[-1]
        bits = bits_of(name)
        function = with_nan
        if name in ("f32", "f64"):
            form = "f"
            if "NaN" not in kind:
                function = without_nan
            if set(kind[:-1]) - {"NaN"}:
                raise Unsupported("modifier")
        else:
            form = {"s": "s", "u": "u"}[name[0]]
        a, b = self.operand(operands[1], bits, form), self.operand(operands[2], bits, form)
        self.define(operands[0], self.emit(f"np.{function}({a}, {b})"), form)

    def _logic(self, kind: list[str], operands: list[str], sign: str) -> None:
        bits = bits_of(kind[-1])
        a, b = self.operand(operands[1], bits), self.operand(operands[2], bits)
        self.define(operands[0], self.emit(f"{a} {sign} {b}"))

    def op_and(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._logic(kind, operands, "&")

    def op_or(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._logic(kind, operands, "|")

    def op_xor(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._logic(kind, operands, "^")

    def op_not(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self.define(operands[0], self.emit(f"~{self.operand(operands[1], bits_of(kind[-1]))}"))

    def op_shl(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._shift(kind, operands, "<<")

    def op_shr(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._shift(kind, operands, ">>")

    def _shift(self, kind: list[str], operands: list[str], sign: str) -> None:
        name = kind[-1]
        bits = bits_of(name)
        form = "s" if name[0] == "s" else "u"
        value = self.operand(operands[1], bits, form)
        dtype = ("i" if form == "s" else "u") + {16: "2", 32: "4", 64: "8"}[bits]
        if operands[2] in self.k.index:
            by = self.operand(operands[2], 32)
            by = self.emit(f"np.minimum({by}, u4({bits})).astype({dtype})")
        else:
            by = self.operand(str(min(bits, int(operands[2], 0))), bits, form)
        self.define(operands[0], self.emit(f"{value} {sign} {by}"), form)

    def op_shf(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        """Shifts the 64 bits of the second and third operand, and takes the upper or lower 32."""
        if kind not in (["l", "wrap", "b32"], ["r", "wrap", "b32"]):
            raise Unsupported("modifier")
        low, high, by = (self.operand(o, 32) for o in operands[1:])
        pair = self.emit(f"({high}).astype(u8) << u8(32) | ({low}).astype(u8)")
        by = self.emit(f"(({by}) & u4(31)).astype(u8)")
        shifted = f"({pair} << {by}) >> u8(32)" if kind[0] == "l" else f"{pair} >> {by}"
        self.define(operands[0], self.emit(f"({shifted}).astype(u4)"))

    def op_bfe(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        name = kind[-1]
        bits = bits_of(name)
        position, length = int(operands[2], 0), int(operands[3], 0)
        if not (0 < length and position + length <= bits):
            raise Unsupported("bfe")
        form = "s" if name[0] == "s" else "u"
        value = self.operand(operands[1], bits, form)
        up = self.operand(str(bits - position - length), bits, form)
        down = self.operand(str(bits - length), bits, form)
        self.define(operands[0], self.emit(f"({value} << {up}) >> {down}"), form)

    def op_prmt(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if kind != ["b32"]:
            raise Unsupported("modifier")
        a, b, c = (self.operand(o, 32) for o in operands[1:])
        self.define(operands[0], self.emit(f"prmt({a}, {b}, {c})"))

    def op_popc(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        value = self.operand(operands[1], bits_of(kind[-1]))
        self.define(operands[0], self.emit(f"np.bitwise_count({value}).astype(u4)"))

    def op_setp(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if len(kind) != 2 or "|" in operands[0]:
            raise Unsupported("setp with more")
        comparison, name = kind
        bits = bits_of(name)
        form = "f" if name in ("f32", "f64") else "s" if name[0] == "s" else "u"
        a, b = self.operand(operands[1], bits, form), self.operand(operands[2], bits, form)
        signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
                 "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}  # fmt: skip
        if form == "f":
            if comparison == "num":
                expression = f"~(np.isnan({a}) | np.isnan({b}))"
            elif comparison == "nan":
                expression = f"np.isnan({a}) | np.isnan({b})"
            elif comparison == "ne":
                expression = f"({a} != {b}) & ~(np.isnan({a}) | np.isnan({b}))"
            elif comparison in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
                expression = f"({a} {signs[comparison[:-1]]} {b}) | np.isnan({a}) | np.isnan({b})"
            else:
                expression = f"{a} {signs[comparison]} {b}"
        else:
            expression = f"{a} {signs[comparison]} {b}"
        self.define(operands[0], self.emit(expression))

    def op_fma(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        name = kind[-1]
        if kind[:-1] == ["rn", "f32"] and name in ("f16", "bf16"):  # two 16-bit floats, a float32
            x, y = (self._widened(o, name) for o in operands[1:3])
            value = self.emit(f"fma32({x}, {y}, {self.operand(operands[3], 32, 'f')})")
            self.define(operands[0], value, "f")
            return
        if name == "f32x2":
            self._pairs(kind, operands[0], operands[1:], "fma32({0}, {1}, {2})")
            return
        if kind[0] != "rn" or set(kind[1:-1]) - {"ftz"} or name not in ("f32", "f64"):
            raise Unsupported("modifier or type")
        bits = bits_of(name)
        a, b, c = (self.operand(o, bits, "f") for o in operands[1:])
        if "ftz" in kind:
            a, b, c = (self.emit(f"flush({v})") for v in (a, b, c))
        value = self.emit(f"fma{bits}({a}, {b}, {c})")
        if "ftz" in kind:
            value = self.emit(f"flush({value})")
        self.define(operands[0], value, "f")

    def _unary(self, kind: list[str], operands: list[str], expression: str) -> None:
        bits = bits_of(kind[-1])
        value = self.operand(operands[1], bits, "f")
        if "ftz" in kind:
            value = self.emit(f"flush({value})")
        value = self.emit(expression.format(value))
        if "ftz" in kind:
            value = self.emit(f"flush({value})")
        self.define(operands[0], value, "f")

    def op_ex2(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._unary(kind, operands, "np.exp2({0})")

    def op_rcp(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        dtype = {"f32": "f4", "f64": "f8"}[kind[-1]]
        self._unary(kind, operands, dtype + "(1) / {0}")

    def op_sqrt(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._unary(kind, operands, "np.sqrt({0})")

    def op_cvt(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        modifiers, (to, source) = kind[:-2], kind[-2:]
        target = operands[0]
        integers = re.compile(r"[su]\d+")
        if integers.fullmatch(to) and integers.fullmatch(source):
            if modifiers:
                raise Unsupported("modifier")
            from_bits, to_bits = bits_of(source), bits_of(to)
            signed = source[0] == "s"
            register = operands[1]
            value = self.operand(register, from_bits, "u")
            if signed:
                value = self.view(value, from_bits, "s", "u")
            # The result is extended to the destination register's width, as its type requires.
            width = self.width(target)
            if to_bits < width:
                middle = ("i" if to[0] == "s" else "u") + str(to_bits // 8)
                value = self.emit(f"{value}.astype({middle})")
                final = ("i" if to[0] == "s" else "u") + str(width // 8)
                self.define(target, self.emit(f"{value}.astype({final}).view(u{width // 8})"))
                return
            final = ("i" if signed else "u") + str(to_bits // 8)
            value = self.emit(f"{value}.astype({final})")
            self.define(target, value, "s" if signed else "u")
            return
        flags = set(modifiers)
        if integers.fullmatch(source) and to in ("f32", "f64", "f16"):
            if flags - {"rn"}:
                raise Unsupported("modifier")
            bits = bits_of(source)
            value = self.operand(operands[1], bits, "s" if source[0] == "s" else "u")
            if to == "f16":
                self.define(target, self.emit(f"{value}.astype(f2).view(u2)"))
            else:
                self.define(target, self.emit(f"{value}.astype(f{bits_of(to) // 8})"), "f")
            return
        if source in ("f16", "bf16") and to in ("f32", "f64"):
            if flags:
                raise Unsupported("modifier")
            value = self.operand(operands[1], 16)
            wide = f"bf16_to({value})" if source == "bf16" else f"{value}.view(f2)"
            self.define(target, self.emit(f"{wide}.astype(f{bits_of(to) // 8})"), "f")
            return
        if (to, source) == ("f64", "f32"):
            if flags:
                raise Unsupported("modifier")
            self.define(target, self.emit(f"{self.operand(operands[1], 32, 'f')}.astype(f8)"), "f")
            return
        if (to, source) == ("f32", "f64") and flags == {"rn"}:
            self.define(target, self.emit(f"{self.operand(operands[1], 64, 'f')}.astype(f4)"), "f")
            return
        if source == "f64" and to == "f16" and flags == {"rn"}:
            self.define(target, self.emit(f"f16_of({self.operand(operands[1], 64, 'f')})"))
            return
        if (to, source) == ("f32", "f32") and flags == {"rni"}:
            self.define(target, self.emit(f"np.rint({self.operand(operands[1], 32, 'f')})"), "f")
            return
        if source == "f32" and to in ("bf16", "f16") and flags == {"rn"}:
            value = self.operand(operands[1], 32, "f")
            self.define(target, self.emit(f"{to}_of({value})"))
            return
        if source == "f32" and to in ("bf16x2", "f16x2") and flags == {"rn"}:
            high, low = (self.operand(o, 32, "f") for o in operands[1:])
            function = f"{to[:-2]}_of"
            packed = f"{function}({low}).astype(u4) | ({function}({high}).astype(u4) << u4(16))"
            self.define(target, self.emit(packed))
            return
        if (to, source) == ("tf32", "f32") and flags == {"rna"}:
            self.define(target, self.emit(f"tf32_rna({self.operand(operands[1], 32, 'f')})"))
            return
        raise Unsupported("conversion")
