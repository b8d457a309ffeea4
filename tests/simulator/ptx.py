"""Parses PTX into instructions, each with its line in the PTX and in Python."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .faults import Unsupported
from .shared_memory import SHARED_BASE

_LABEL = re.compile(r"([$\w.]+):(?!:)")


class Instruction:
    """One instruction.

    Attributes:
        text: the instruction, in one line.
        line: its line in the PTX.
        predicate: the register that guards it, None for none; `negated` if "!" precedes it.
        opcode: with its modifiers; `parts` are its parts between dots.
        operands: as text.
    """

    __slots__ = ("line", "negated", "opcode", "operands", "parts", "predicate", "text")

    def __init__(self, text: str, line: int, scope: dict[str, str]) -> None:
        self.text, self.line = " ".join(text.split()), line
        self.predicate: str | None = None
        self.negated = False
        rest = self.text
        if match := re.match(r"@(!?)([%\w$]+)\s+", rest):
            self.negated, self.predicate = bool(match[1]), scope.get(match[2], match[2])
            rest = rest[match.end() :]
        self.opcode, _, rest = rest.partition(" ")
        self.parts = self.opcode.split(".")
        if scope:
            rest = re.sub(r"[%$\w]+", lambda m: scope.get(m[0], m[0]), rest)
        self.operands = split_operands(rest)


@dataclass
class Label:
    """A target of branches."""

    name: str


@dataclass
class Targets:
    """A table of labels for brx.idx."""

    name: str
    labels: list[str]


@dataclass
class Entry:
    """One kernel of a PTX module.

    Attributes:
        name: of the kernel.
        parameters: (name, type, bytes or 0 for a scalar).
        threads: of a CTA.
        registers: their types by name.
        items: instructions, labels and tables of labels.
        symbols: addresses of variables.
        locations: for each line of PTX, the Python lines that it came from, as a text.
    """

    name: str
    parameters: list[tuple[str, str, int]]
    threads: int
    registers: dict[str, str] = field(default_factory=dict)
    items: list[Instruction | Label | Targets] = field(default_factory=list)
    symbols: dict[str, int] = field(default_factory=dict)
    locations: list[str] = field(default_factory=list)


def split_operands(text: str) -> list[str]:
    """Operands at commas outside of brackets."""
    out, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
        elif char == "," and depth == 0:
            out.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*out, last] if last else out


def bits_of(kind: str) -> int:
    """Bits of a type: b32, f16x2, pred."""
    if kind == "pred":
        return 1
    match = re.fullmatch(r"(?:[busf]|bf|tf)(\d+)(x2)?", kind)
    if not match or kind in ("s16x2", "u16x2"):  # pairs, which few instructions support
        raise Unsupported(f"type {kind}")
    return int(match[1]) * (2 if match[2] else 1)


def without_lines(ptx: str) -> str:
    """PTX without line numbers: the same text for the same code."""
    return re.sub(r"(?m)^\s*\.(loc|file).*$", "", ptx)


def _locations(ptx: str) -> list[str]:
    """The Python line that each line of PTX came from, "kernel.py:12", and the lines it calls.

    A comment behind .loc has the whole chain of inlined calls, innermost first:
    "indexing.py:40:12 @[ fprop_gemm.py:112:20 ]".
    """
    files = dict(re.findall(r'(?m)^\s*\.file\s+(\d+)\s+"(.*)"', ptx))
    found, current = [], ""
    for line in ptx.split("\n"):
        if match := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)\s+\d+[^/]*(?://\s*(.*))?", line):
            chain = re.findall(r"([^\s@\[\]]+):(\d+):\d+", match[3] or "")
            chain = chain or [(str(files.get(match[1])).rpartition("/")[2], match[2])]
            places = [f"{file}:{number}" for file, number in chain]
            current = places[-1]
            if len(places) > 1:
                current += f" (in {', '.join(places[-2::-1])})"
        found.append(current)
    return found


def _code(ptx: str) -> str:
    """The text without comments, line information and debug sections. Line numbers are kept."""
    if end := re.search(r"^\s*\.section", ptx, re.MULTILINE):
        ptx = ptx[: end.start()]
    lines = [line.split("//")[0] for line in ptx.split("\n")]
    skipped = re.compile(r"\s*\.(loc|file|version|target|address_size)\b")
    text = "\n".join("" if skipped.match(line) else line for line in lines)
    return re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)


def parse(ptx: str) -> Entry:
    """The one entry of a module.

    Raises:
        Unsupported: the module has something that Triton does not write.
    """
    text = _code(ptx)
    entry = re.search(r"\.entry\s+(\w+)\s*\(", text)
    if not entry:
        raise Unsupported("no entry")
    if ".func" in text:
        raise Unsupported("functions")
    close = text.index(")", entry.end())
    start = text.index("{", close)
    threads = re.search(r"\.reqntid\s+(\d+)", text[close + 1 : start])
    if not threads:
        raise Unsupported("no .reqntid")
    made = Entry(
        entry[1], _parameters(text[entry.end() : close]), int(threads[1]), locations=_locations(ptx)
    )
    pattern = r"\.(\w+)\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d*)\]"
    for match in re.finditer(pattern, text[: entry.start()]):
        if match[1] == "shared":  # a use of any other variable raises
            if match[4]:
                raise Unsupported(f"module variable {match[0]}")
            made.symbols[match[3]] = SHARED_BASE
    _Body(text, start + 1, made).read()
    return made


def _parameters(text: str) -> list[tuple[str, str, int]]:
    found = []
    for declaration in filter(None, map(str.strip, text.split(","))):
        match = re.match(r"\.param\s+(.*?)(\w+)(?:\[(\d+)\])?$", declaration)
        kind = match and re.search(r"\.([busf]\d+)", match[1])
        if not match or not kind:
            raise Unsupported(declaration)
        found.append((match[2], kind[1], int(match[3] or 0)))
    return found


class _Body:
    """Reads the body of an entry."""

    def __init__(self, text: str, position: int, entry: Entry) -> None:
        self.text, self.position, self.entry = text, position, entry
        self.line = text.count("\n", 0, position) + 1
        self.scopes: list[dict[str, str]] = [{}]
        self.fresh = 0

    def _pass(self, stop: int) -> None:
        self.line += self.text.count("\n", self.position, stop)
        self.position = stop

    def read(self) -> None:
        text, items = self.text, self.entry.items
        while True:
            while text[self.position] in " \t\n":
                self._pass(self.position + 1)
            char = text[self.position]
            if char == "{":
                self._open()
            elif char == "}":
                self.scopes.pop()
                self._pass(self.position + 1)
                if not self.scopes:
                    return
            elif match := _LABEL.match(text, self.position):
                name = self.scopes[-1].get(match[1], match[1])
                self._pass(match.end())
                rest = re.match(r"\s*\.branchtargets\s+([^;]*);", text[self.position :])
                if rest:
                    items.append(Targets(name, [t.strip() for t in rest[1].split(",")]))
                    self._pass(self.position + rest.end())
                else:
                    items.append(Label(name))
            else:
                stop = text.index(";", self.position)
                if statement := text[self.position : stop].strip():
                    self._statement(statement)
                self._pass(stop + 1)

    def _open(self) -> None:
        """Opens a scope, whose registers and labels get unique names."""
        self.scopes.append(dict(self.scopes[-1]))
        depth, at = 1, self.position + 1
        while depth:  # vectors have braces too
            depth += {"{": 1, "}": -1}.get(self.text[at], 0)
            at += 1
        inner = self.text[self.position + 1 : at - 1]
        for match in re.finditer(r"\.reg\s+\.(\w+)\s+([^;]+);", inner):
            for name in match[2].split(","):
                self.fresh += 1
                self.scopes[-1][name.strip()] = f"%scoped{self.fresh}"
                self.entry.registers[f"%scoped{self.fresh}"] = match[1]
        for match in re.finditer(r"(?:^|[\n;])\s*([A-Za-z_]\w*):(?!:)", inner):
            self.fresh += 1
            self.scopes[-1][match[1]] = f"$scoped{self.fresh}"
        self._pass(self.position + 1)

    def _statement(self, statement: str) -> None:
        registers = self.entry.registers
        if match := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL):
            for name in map(str.strip, match[2].split(",")):
                if ranged := re.match(r"(%\w+)<(\d+)>", name):
                    for i in range(int(ranged[2])):
                        registers[f"{ranged[1]}{i}"] = match[1]
                elif len(self.scopes) == 1 or name not in self.scopes[-1]:
                    registers[name] = match[1]
        elif not statement.startswith("."):
            self.entry.items.append(Instruction(statement, self.line, self.scopes[-1]))
        elif not statement.startswith(".pragma"):
            raise Unsupported(statement)
