"""Instructions that compute with registers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .dtypes import UINT
from .faults import Unsupported
from .ptx import Instruction, bits_of
from .writer import Writer

#: Special registers. Those of .y and .z are always 0, or 1 if they count.
_SPECIAL = {"%tid.x", "%ctaid.x", "%nctaid.x", "%ntid.x", "%laneid", "%ctaid.y", "%ctaid.z",
            "%nctaid.y", "%nctaid.z", "%tid.y", "%tid.z"}  # fmt: skip
_SHORT_FLOATS = ("bf16", "bf16x2", "f16", "f16x2")
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
                "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}  # fmt: skip

#: Translates an instruction: (translator, instruction, its kind, operands).
Op = Callable[[Any, Instruction, list[str], list[str]], None]


def _form(name: str) -> str:
    """The form of an integer or float type."""
    if name.startswith("bf"):
        raise Unsupported(f"type {name}")
    return {"f": "f", "s": "s"}.get(name[0], "u")


def _integer(form: str, bits: int) -> str:
    """NumPy's short name of an integer type."""
    return f"{'i' if form == 's' else 'u'}{bits // 8}"


def _only(kind: list[str], *allowed: str) -> None:
    """Refuses modifiers before the type that are not allowed."""
    if set(kind[:-1]) - set(allowed):
        raise Unsupported("modifier")


def _elementwise(expression: str) -> Op:
    """An operation of one or two operands of the instruction's type."""

    def op(self: Any, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self.compute(kind, operands[0], operands[1:], expression)

    return op


def _of_bits(expression: str) -> Op:
    """An operation on bits, without a type."""

    def op(self: Any, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        values = [self.operand(o, bits_of(kind[-1])) for o in operands[1:]]
        self.define(operands[0], self.emit(expression.format(*values)))

    return op


class Arithmetic(Writer):
    """One method for each opcode, named op_ and the opcode's first word."""

    # --- moves

    def op_mov(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, source = operands
        bits = bits_of(kind[0])
        if target.startswith("{"):
            self._unpack(self.vector(target), self.operand(source, bits), bits)
        elif source.startswith("{"):
            self.define(target, self._packed(self.vector(source), bits))
        elif source in _SPECIAL:
            self.define(target, self.special(source, bits))
        elif any(source == name for name, _, _ in self.k.entry.parameters):
            self.define(target, self.emit(f"np.full(cta.T, cta.addresses[{source!r}], u8)"))
        elif source in self.k.index and self.width(source) == bits and self.guard is None:
            self.register(source)
            self.known[target] = dict(self.known[source])
            self.defined.add(target)
        else:
            self.define(target, self.operand(source, bits))

    def _unpack(self, parts: list[str], value: str, bits: int) -> None:
        small = bits // len(parts)
        made = []
        for i, part in enumerate(parts):
            if part != "_":
                place = self.k.constant(UINT[bits], small * i)
                shifted = self.emit(f"{value} >> {place}") if i else value
                made.append((part, self.emit(f"{shifted}.astype(u{small // 8})")))
        for part, variable in made:  # the source may be among them
            self.define(part, variable)

    def _packed(self, parts: list[str], bits: int) -> str:
        small, total = bits // len(parts), ""
        for i, part in enumerate(parts):
            piece = self.emit(f"{self.operand(part, small)}.astype(u{bits // 8})")
            if i:
                piece = self.emit(f"{piece} << {self.k.constant(UINT[bits], small * i)}")
            total = self.emit(f"{total} | {piece}") if total else piece
        return total

    def special(self, name: str, bits: int) -> str:
        short = f"u{bits // 8}"
        expressions = {
            "%tid.x": f"np.arange(cta.T, dtype={short})",
            "%laneid": f"np.arange(cta.T, dtype={short}) & {short}(31)",
            "%ctaid.x": f"np.full(cta.T, cta.program, {short})",
            "%nctaid.x": f"np.full(cta.T, cta.grid, {short})",
            "%ntid.x": f"np.full(cta.T, cta.T, {short})",
        }
        constant = f"np.full(cta.T, {int(name.startswith('%n'))}, {short})"
        return self.emit(expressions.get(name, constant))

    def op_cvta(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self.op_mov(ins, ["b64"], operands)

    def op_selp(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, yes, no, predicate = operands
        bits = bits_of(kind[0])
        chosen = self.operand(predicate, 1)
        a, b = self.operand(yes, bits), self.operand(no, bits)
        self.define(target, self.emit(f"np.where({chosen}, {a}, {b})"))

    # --- sums and products

    op_add = _elementwise("{0} + {1}")
    op_sub = _elementwise("{0} - {1}")

    def op_ex2(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self.floats(kind, operands[0], operands[1:], "np.exp2({0})")

    def op_sqrt(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self.floats(kind, operands[0], operands[1:], "np.sqrt({0})")

    def op_rcp(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self.floats(kind, operands[0], operands[1:], f"f{bits_of(kind[-1]) // 8}(1) / {{0}}")

    def compute(self, kind: list[str], target: str, operands: list[str], expression: str) -> None:
        """An expression of operands of one type; floating point is rounded once."""
        name = kind[-1]
        if kind[:-1] == ["rn", "f32"] and name in ("f16", "bf16"):
            # 16-bit floats and, last, a float32, on sm_100
            *short, last = operands
            values = [*(self._widened(o, name) for o in short), self.operand(last, 32, "f")]
            self.define(target, self.emit(expression.format(*values)), "f")
        elif name in _SHORT_FLOATS:
            self._narrow(kind, target, operands, expression)
        elif name == "f32x2":  # two float32 in a register of 64 bits, on sm_100
            _only(kind, "rn")
            values = [f"{self.operand(o, 64)}.view(f4)" for o in operands]
            self.define(target, self.emit(f"({expression.format(*values)}).view(u8)"))
        elif name in ("s16x2", "u16x2"):  # nothing is carried from the lower half to the upper
            halves = [f"{self.operand(o, 32)}.view(u2)" for o in operands]
            self.define(target, self.emit(f"({expression.format(*halves)}).view(u4)"))
        elif name[0] == "f":
            self.floats(kind, target, operands, expression)
        else:
            _only(kind)
            values = [self.operand(o, bits_of(name)) for o in operands]
            self.define(target, self.emit(expression.format(*values)))

    def floats(self, kind: list[str], target: str, operands: list[str], expression: str) -> None:
        """An expression of float32 or float64, denormal numbers flushed if the instruction says."""
        _only(kind, "ftz", "rn", "approx")
        values = [self.operand(o, bits_of(kind[-1]), _form(kind[-1])) for o in operands]
        if "ftz" in kind:
            values = [self.emit(f"flush({value})") for value in values]
        value = self.emit(expression.format(*values))
        self.define(target, self.emit(f"flush({value})") if "ftz" in kind else value, "f")

    def _widened(self, operand: str, name: str) -> str:
        """A float32 from a 16-bit float."""
        value = self.operand(operand, 16)
        return f"bf16_to({value})" if name == "bf16" else f"{value}.view(f2).astype(f4)"

    def _narrow(self, kind: list[str], target: str, operands: list[str], expression: str) -> None:
        """Arithmetic of one or two 16-bit floats, rounded once from float32."""
        _only(kind, "rn")
        name = kind[-1]
        two = ".view(u2)" if name.endswith("x2") else ""
        values = [f"{self.operand(o, bits_of(name))}{two}" for o in operands]
        if name.startswith("bf"):
            wide = expression.format(*(f"bf16_to({v})" for v in values))
        else:
            wide = expression.format(*(f"{v}.view(f2).astype(f4)" for v in values))
        result = f"{name.removesuffix('x2')}_of({wide})"
        self.define(target, self.emit(result + (".view(u4)" if two else "")))

    def op_mul(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if kind[-1][0] in "fb":
            self.compute(kind, operands[0], operands[1:], "{0} * {1}")
        else:
            self.define(operands[0], *self._product(kind, *operands[1:]))

    def _product(self, kind: list[str], a: str, b: str) -> tuple[str, str]:
        mode, name = kind
        bits, form = bits_of(name), _form(name)
        if mode == "lo":
            return self.emit(f"{self.operand(a, bits)} * {self.operand(b, bits)}"), "u"
        x, y = self.operand(a, bits, form), self.operand(b, bits, form)
        if mode == "hi" and bits == 64:
            return self.emit(f"mulhi_{form}64({x}, {y})"), form
        wide = _integer(form, 2 * bits)
        product = self.emit(f"{x}.astype({wide}) * {y}.astype({wide})")
        if mode == "wide":
            return product, form
        if mode == "hi":
            short = _integer(form, bits)
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

    def op_fma(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        name = kind[-1]
        if kind[0] != "rn" or name not in ("f32", "f64", "f32x2", "f16", "bf16"):
            raise Unsupported("modifier or type")
        if name in ("f16", "bf16") and kind[1:-1] != ["f32"]:
            raise Unsupported("modifier or type")
        function = "fma64" if name == "f64" else "fma32"
        self.compute(kind, operands[0], operands[1:], function + "({0}, {1}, {2})")

    def op_div(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        target, a, b = operands
        name = kind[-1]
        if name in ("f32", "f64"):
            if kind[0] not in ("full", "rn", "approx") or "ftz" in kind:
                raise Unsupported("modifier")
            bits = bits_of(name)
            x, y = self.operand(a, bits, "f"), self.operand(b, bits, "f")
            self.define(target, self.emit(f"{x} / {y}"), "f")
        else:
            self._quotient(operands, name, "div")

    def op_rem(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._quotient(operands, kind[-1], "rem")

    def _quotient(self, operands: list[str], name: str, what: str) -> None:
        form = _form(name)
        x, y = (self.operand(o, bits_of(name), form) for o in operands[1:])
        function = f"{what}_{'signed' if form == 's' else 'unsigned'}"
        self.define(operands[0], self.emit(f"{function}({x}, {y})"), form)

    def op_neg(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        name = kind[-1]
        bits, form = bits_of(name), _form(name)
        if form == "u" or (form == "f" and bits == 16):
            raise Unsupported(name)
        self.define(operands[0], self.emit(f"-{self.operand(operands[1], bits, form)}"), form)

    def op_abs(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        form = {"f": "f", "s": "s"}[kind[-1][0]]
        value = self.operand(operands[1], bits_of(kind[-1]), form)
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
        name, function = kind[-1], with_nan
        if name in ("f32", "f64"):
            form, function = "f", with_nan if "NaN" in kind else without_nan
            _only(kind, "NaN")
        else:
            form = {"s": "s", "u": "u"}[name[0]]
        a, b = (self.operand(o, bits_of(name), form) for o in operands[1:])
        self.define(operands[0], self.emit(f"np.{function}({a}, {b})"), form)

    # --- bits

    op_and = _of_bits("{0} & {1}")
    op_or = _of_bits("{0} | {1}")
    op_xor = _of_bits("{0} ^ {1}")
    op_not = _of_bits("~{0}")
    op_popc = _of_bits("np.bitwise_count({0}).astype(u4)")

    def op_shl(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._shift(kind, operands, "<<")

    def op_shr(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        self._shift(kind, operands, ">>")

    def _shift(self, kind: list[str], operands: list[str], sign: str) -> None:
        name = kind[-1]
        bits, form = bits_of(name), _form(name)
        value = self.operand(operands[1], bits, form)
        if operands[2] in self.k.index:
            by = self.operand(operands[2], 32)
            by = self.emit(f"np.minimum({by}, u4({bits})).astype({_integer(form, bits)})")
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
        bits, form = bits_of(name), _form(name)
        position, length = int(operands[2], 0), int(operands[3], 0)
        if not (0 < length and position + length <= bits):
            raise Unsupported("bfe")
        value = self.operand(operands[1], bits, form)
        up = self.operand(str(bits - position - length), bits, form)
        down = self.operand(str(bits - length), bits, form)
        self.define(operands[0], self.emit(f"({value} << {up}) >> {down}"), form)

    def op_prmt(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if kind != ["b32"]:
            raise Unsupported("modifier")
        a, b, c = (self.operand(o, 32) for o in operands[1:])
        self.define(operands[0], self.emit(f"prmt({a}, {b}, {c})"))

    def op_setp(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        if len(kind) != 2 or "|" in operands[0]:
            raise Unsupported("setp with more")
        comparison, name = kind
        form = _form(name)
        a, b = (self.operand(o, bits_of(name), form) for o in operands[1:])
        unordered = f"np.isnan({a}) | np.isnan({b})"
        if form == "f" and comparison in ("num", "nan"):
            expression = unordered if comparison == "nan" else f"~({unordered})"
        elif form == "f" and comparison == "ne":
            expression = f"({a} != {b}) & ~({unordered})"
        elif form == "f" and comparison in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
            expression = f"({a} {_COMPARISONS[comparison[:-1]]} {b}) | {unordered}"
        else:
            expression = f"{a} {_COMPARISONS[comparison]} {b}"
        self.define(operands[0], self.emit(expression))

    # --- conversions

    def op_cvt(self, ins: Instruction, kind: list[str], operands: list[str]) -> None:
        flags, (to, source) = set(kind[:-2]), kind[-2:]
        target, read = operands[0], operands[1]
        integers = re.compile(r"[su]\d+")
        if integers.fullmatch(to) and integers.fullmatch(source):
            if flags:
                raise Unsupported("modifier")
            self._integer_of(target, read, to, source)
        elif integers.fullmatch(source) and to in ("f32", "f64", "f16", "bf16") and flags <= {"rn"}:
            value = self.operand(read, bits_of(source), _form(source))
            if to == "bf16":  # once more than a GPU, above 2^24
                self.define(target, self.emit(f"bf16_of({value}.astype(f4))"))
            elif to == "f16":
                self.define(target, self.emit(f"{value}.astype(f2).view(u2)"))
            else:
                self.define(target, self.emit(f"{value}.astype(f{bits_of(to) // 8})"), "f")
        elif source in ("f16", "bf16") and to in ("f32", "f64") and not flags:
            value = self.operand(read, 16)
            wide = f"bf16_to({value})" if source == "bf16" else f"{value}.view(f2)"
            self.define(target, self.emit(f"{wide}.astype(f{bits_of(to) // 8})"), "f")
        elif (to, source, flags) in (("f64", "f32", set()), ("f32", "f64", {"rn"})):
            value = self.operand(read, bits_of(source), "f")
            self.define(target, self.emit(f"{value}.astype(f{bits_of(to) // 8})"), "f")
        elif (to, source, flags) == ("f32", "f32", {"rni"}):
            self.define(target, self.emit(f"np.rint({self.operand(read, 32, 'f')})"), "f")
        elif flags == {"rn"} and (to, source) in (("f16", "f64"), ("f16", "f32"), ("bf16", "f32")):
            self.define(target, self.emit(f"{to}_of({self.operand(read, bits_of(source), 'f')})"))
        elif source == "f32" and to in ("bf16x2", "f16x2") and flags == {"rn"}:
            high, low = (self.operand(o, 32, "f") for o in operands[1:])
            function = f"{to[:-2]}_of"
            packed = f"{function}({low}).astype(u4) | ({function}({high}).astype(u4) << u4(16))"
            self.define(target, self.emit(packed))
        elif (to, source, flags) == ("tf32", "f32", {"rna"}):
            self.define(target, self.emit(f"tf32_rna({self.operand(read, 32, 'f')})"))
        else:
            raise Unsupported("conversion")

    def _integer_of(self, target: str, read: str, to: str, source: str) -> None:
        bits, width, form = bits_of(to), self.width(target), _form(source)
        value = self.operand(read, bits_of(source), "u")
        if form == "s":
            value = self.view(value, bits_of(source), "s", "u")
        if bits < width:  # the result is extended to the register's width, as its type requires
            value = self.emit(f"{value}.astype({_integer(_form(to), bits)})")
            wide = _integer(_form(to), width)
            self.define(target, self.emit(f"{value}.astype({wide}).view(u{width // 8})"))
        else:
            self.define(target, self.emit(f"{value}.astype({_integer(form, bits)})"), form)
