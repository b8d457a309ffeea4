"""Writes Python source for instructions: variables, operands, results, predicates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from .dtypes import FLOAT, SINT, UINT, f4, f8, u4, u8
from .faults import Unsupported
from .ptx import Instruction

if TYPE_CHECKING:
    from .kernel import Kernel


class Writer:
    """The Python source of one basic block while it is written.

    A variable of the source has a form: "u" for unsigned integers (the form of registers), "s" for
    signed integers, "f" for floating point. A predicate is an array of bool.
    """

    def __init__(self, kernel: Kernel, block: int, masked: bool) -> None:
        self.k, self.block, self.masked = kernel, block, masked
        self.lines: list[str] = []
        self.fresh = 0
        self.origins: list[Instruction | None] = []  # of each line
        self.ins: Instruction | None = None
        self.guard: str | None = None  # variable of the instruction's predicate
        self.known: dict[str, dict[str, str]] = {}  # register: {form: variable}
        self.defined: set[str] = set()

    def put(self, line: str) -> None:
        """Adds a line."""
        self.lines.append(line)
        self.origins.append(self.ins)

    def new(self) -> str:
        """A fresh variable."""
        self.fresh += 1
        return f"v{self.fresh}"

    def emit(self, expression: str) -> str:
        """A fresh variable with the value of an expression."""
        name = self.new()
        self.put(f"{name} = {expression}")
        return name

    def width(self, register: str) -> int:
        """Bits of a register."""
        return self.k.widths[register]

    def view(self, variable: str, width: int, kind: str, have: str) -> str:
        """A variable in another form."""
        if kind == have:
            return variable
        dtype = np.dtype({"u": UINT, "s": SINT, "f": FLOAT}[kind][width])
        return self.emit(f"{variable}.view({dtype.kind}{dtype.itemsize})")

    def register(self, name: str, kind: str = "u") -> str:
        """A variable with a register's value."""
        forms = self.known.get(name)
        if forms is None:
            variable = self.emit(f"R[{self.k.index[name]}]")
            forms = self.known[name] = {"u": variable}
        if kind in forms:
            return forms[kind]
        if self.width(name) == 1:
            return forms["u"]
        have = next(iter(forms))
        forms[kind] = self.view(forms[have], self.width(name), kind, have)
        return forms[kind]

    def operand(self, text: str, width: int, kind: str = "u") -> str:
        """A variable with the value of an operand of `width` bits."""
        text = text.strip()
        if text.startswith("!"):
            return self.emit(f"~{self.operand(text[1:], width, kind)}")
        if text in self.k.index:
            have = self.width(text)
            if have == width:
                return self.register(text, kind)
            if have > width:  # the low bits
                short = {8: "u1", 16: "u2", 32: "u4"}[width]
                name = self.emit(f"{self.register(text)}.astype({short})")
                return self.view(name, width, kind, "u")
            raise Unsupported(f"operand {text} of {have} bits where {width} are wanted")
        value = self.immediate(text, width)
        if width == 1:
            return self.k.constant(bool, value)
        if kind == "u":
            return self.k.constant(UINT[width], value)
        name = self.k.constant(UINT[width], value)
        alias = f"{name}_{kind}"
        if alias not in self.k.constants:
            dtype = {"s": SINT, "f": FLOAT}[kind][width]
            self.k.constants[alias] = self.k.constants[name].view(dtype)
        return alias

    def immediate(self, text: str, width: int) -> int:
        """The bits of a number or of a symbol's address."""
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            value = int(text[2:], 16)
            if width == 64:
                value = int(np.array(value, u4).view(f4).astype(f8).view(u8))
            return value
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return int(text[2:], 16)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            value = int(text.rstrip("U"), 0)
            if width == 1:
                return int(value != 0)
            return value & ((1 << width) - 1)
        if text in self.k.symbols:
            return self.k.symbols[text]
        raise Unsupported(f"operand {text!r}")

    def define(self, name: str, variable: str, kind: str = "u") -> None:
        """Gives a register the value of a variable, where the predicate holds."""
        if name == "_":
            return
        if name not in self.k.index:
            raise Unsupported(f"destination {name!r}")
        if name in self.k.left_operands:
            self.put(f"cta.wgmma.check_free({name!r})")
        if self.guard is not None:
            old = self.register(name, "u")
            new = (
                self.view(variable, self.width(name), "u", kind)
                if self.width(name) > 1
                else variable
            )
            variable, kind = self.emit(f"np.where({self.guard}, {new}, {old})"), "u"
        self.known[name] = {kind: variable}
        self.defined.add(name)

    def mask(self) -> str:
        """An expression for the threads that execute the instruction, "None" for all."""
        if self.guard is None:
            return "M" if self.masked else "None"
        return self.emit(f"{self.guard} & M") if self.masked else self.guard

    def address(self, text: str, width: int) -> str:
        """A variable with the address in [register + offset]."""
        inner = text.strip()[1:-1].strip()
        match = re.fullmatch(r"([%$\w]+)\s*(?:\+\s*(-?\w+))?", inner)
        if not match:
            raise Unsupported(f"address {text}")
        base = self.operand(match[1], width)
        offset = int(match[2], 0) if match[2] else 0
        if offset:
            base = self.emit(
                f"{base} + {self.k.constant(UINT[width], offset & ((1 << width) - 1))}"
            )
        return base

    @staticmethod
    def vector(text: str) -> list[str]:
        """The registers in {a, b}, or the only one."""
        text = text.strip()
        return [t.strip() for t in text[1:-1].split(",")] if text.startswith("{") else [text]
