"""The machine code of a kernel launch, built ahead of time for a GPU that need not be there.

`build` turns a launch.Call into what Triton would run on a target: arguments are specialised by
Triton's own binder, so the code is the one that a launch with those arguments gets. Tensors may be
meta tensors. Kernels have to be compiled ones: TRITON_INTERPRET must be unset.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ...ops.launch.call import Call

if TYPE_CHECKING:
    from .configuration import Target


@dataclass(frozen=True)
class Build:
    """The code and resources of a launch on one target.

    Attributes:
        kernel: the kernel's name.
        target: the target's name.
        threads: threads of one program.
        registers: of one thread; on AMD vector registers of both kinds.
        spills: bytes of local memory that one thread uses; on AMD spilled vector registers and
            bytes of scratch (scalar registers are spilled into vector ones, not to memory).
        shared: bytes of shared memory (LDS) of one program.
        opcodes: instructions in the code, by opcode without its modifiers; empty unless asked for.
        loop: the part of `opcodes` that is in the loop that does the arithmetic.
        serialized: ptxas' message where wgmma waits for every product; else "".
        unfenced: products by wgmma or tcgen05 of data that cp.async brought, without a proxy fence.
        overwritten: loops that write registers of a wgmma's left operand without a wait for it.
        units: instructions for matrix units and descriptors in PTX or AMDGCN, by kind of UNITS.
        in_flight: bytes of a thread's global loads that are under way at once in that loop, see
            `bytes_in_flight`.
    """

    kernel: str
    target: str
    threads: int
    registers: int
    spills: int
    shared: int
    opcodes: dict[str, int] = field(default_factory=dict)
    loop: dict[str, int] = field(default_factory=dict)
    serialized: str = ""
    unfenced: int = 0
    overwritten: int = 0
    units: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0

    def count(self, kind: str, loop: bool = False) -> int:
        """Instructions of one of KINDS, "all", or one of MARKS, in the whole code or its loop."""
        opcodes = self.loop if loop else self.opcodes
        if kind in MARKS:
            return sum(n for opcode, n in opcodes.items() if opcode.endswith(f"_{kind}"))
        return sum(n for opcode, n in opcodes.items() if kind in ("all", _kind(opcode)))


#: Classes of instructions by how their opcodes begin, NVIDIA | AMD. The rest is "other".
KINDS = {
    "mma": r"HMMA|HGMMA|DMMA|UTC\w*MMA|v_mfma",
    "fma": r"FFMA|HFMA2|DFMA|v_fma|v_pk_fma|v_mad_f|v_dot",
    "load": r"LDG|UTMALDG|(buffer|global|flat)_load",
    "store": r"STG|UTMASTG|(buffer|global|flat)_store",
    "shared": r"LDS|STS|ds_",
    "local": r"LDL|STL|scratch_",
}

#: Suffixes of opcodes, and the kind of instruction that each marks.
MARKS = {
    "narrow": "global loads and stores of fewer than 32 bits",
    "register": "products whose first operand is in registers",
    "wait": "waits for products of a warpgroup",
}

#: Instructions of PTX | AMDGCN that assemblers translate one to one: disassembling takes longer.
UNITS = {
    "product": r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma)",
    "mma.sync": r"\bmma\.sync",
    "left operand in registers": r"wgmma\.mma_async\S*\s*\{[^}]*\},\s*\{",
    "load through a descriptor": r"cp\.async\.bulk\.tensor\.\w+\.shared",
}

_KIND = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in KINDS.items()))


def _kind(opcode: str) -> str:
    match = _KIND.match(opcode)
    return next(k for k in KINDS if match[k]) if match else "other"


def source_of(call: Call, gpu: Any) -> tuple[Any, dict[str, Any]]:
    """(source, options) of a launch as Triton's JIT would compile it for a GPUTarget.

    Arguments are specialised by Triton's own binder: what `triton.compile` makes of the source, a
    launch of these arguments finds in the cache.
    """
    from triton.compiler import make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    kernel = call.kernel
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("kernels are interpreted: unset TRITON_INTERPRET to compile them")
    call = replace(call, maxnreg=None) if gpu.backend == "hip" else call
    # The steps of JITFunction.run, with a backend of our choice in place of the driver's.
    backend = make_backend(gpu)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = binder(**call.arguments, **call.options)
    parsed, signature, constexprs, attrs = kernel._pack_args(
        backend, call.options, bound, specialization, rest
    )
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as Source
    else:
        from triton.compiler import ASTSource as Source
    return Source(kernel, signature, constexprs, attrs), parsed.__dict__


def build(call: Call, target: Target, disassemble: bool = True) -> Build:
    """Compiles `call` for `target`; `disassemble`, the slow half, fills in the opcodes.

    Code that may spill is disassembled anyway.
    """
    from triton.backends.compiler import GPUTarget

    gpu = GPUTarget(*target.gpu)
    source, options = source_of(call, gpu)
    compiled, said = _compiled(source, gpu, options)
    text = compiled.asm["amdgcn" if target.is_amd else "ptx"]
    if target.is_amd:
        registers, spills, instructions = _read_amd(text)
    else:
        registers, spills, instructions = _read_nvidia(compiled.asm["cubin"], disassemble)
    loop = _hot_loop(instructions)
    return Build(
        call.kernel.__name__,
        target.name,
        threads=call.num_warps * gpu.warp_size,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        opcodes=dict(Counter(i.opcode for i in instructions)),
        loop=dict(Counter(i.opcode for i in loop)),
        serialized=next((line for line in said.splitlines() if "serialized due to" in line), ""),
        unfenced=_unfenced(text),
        overwritten=_overwritten(text),
        units={kind: len(re.findall(pattern, text)) for kind, pattern in UNITS.items()},
        in_flight=bytes_in_flight(loop),
    )


def _compiled(source: Any, gpu: Any, options: dict[str, Any]) -> tuple[Any, str]:
    """Triton's compiled kernel, and ptxas' messages about it where there is wgmma."""
    import triton
    from triton import knobs

    said = io.StringIO()
    with knobs.nvidia.scope(), contextlib.redirect_stdout(said):
        knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=gpu, options=options)
    ptx = compiled.asm.get("ptx", "")
    if "ptxas info" in said.getvalue() or not re.search(r"wgmma|tcgen05\.mma", ptx):
        return compiled, said.getvalue()
    # It was compiled before, and ptxas did not run.
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    name = f"--gpu-name={sm_arch_from_capability(gpu.arch)}"
    command = [get_ptxas(gpu.arch).path, "-v", name, "-", "-o", os.devnull]
    ran = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True)
    return compiled, ran.stderr


def _unfenced(ptx: str) -> int:
    """Products in the order of the text after a wait for cp.async and before a proxy fence."""
    unfenced, waited = 0, False
    for line in ptx.splitlines():
        if "cp.async.wait" in line:
            waited = True
        elif "fence.proxy.async" in line:
            waited = False
        elif waited and re.search(r"wgmma\.mma_async|tcgen05\.mma", line):
            unfenced += 1
    return unfenced


_LEFT_IN_REGISTERS = re.compile(r"wgmma\.mma_async[^{]*\{[^}]*\},\s*\{([^}]*)\}")
_WAIT_FOR_GROUPS = re.compile(r"wgmma\.wait_group\S*\s+(\d+)")
#: The registers that a PTX instruction writes: its first operand, one register or a vector.
_WRITTEN = re.compile(r"^\s*(?:@\S+\s+)?[a-z]\S*\s+(\{[^}]*\}|%\w+)", re.MULTILINE)


def _overwritten(ptx: str) -> int:
    """Loops that write registers of a wgmma's left operand while it may still read them.

    A product that one pass leaves in flight may read what the next one writes (triton issue 9433),
    so two passes are read. Products end where `wgmma.wait_group` leaves fewer groups in flight.
    """
    starts = {found[1]: found.end() for found in re.finditer(r"^(\$L__BB\w+):", ptx, re.MULTILINE)}
    overwritten = 0
    for jump in re.finditer(r"\bbra(?:\.uni)?\s+(\$L__BB\w+)", ptx):
        loop = ptx[starts.get(jump[1], jump.start()) : jump.start()]
        if _LEFT_IN_REGISTERS.search(loop):
            overwritten += _writes_operands(2 * loop.split(";"))
    return overwritten


def _writes_operands(statements: list[str]) -> bool:
    """Whether one of the statements writes a register that a product in flight reads."""
    found = False
    begun: set[str] = set()  # registers of products of the group that is not committed
    groups: list[set[str]] = []  # of those in flight, the oldest first
    for statement in statements:
        if product := _LEFT_IN_REGISTERS.search(statement):
            begun.update(re.findall(r"%\w+", product[1]))
        elif "wgmma.commit_group" in statement:
            groups, begun = [*groups, begun], set()
        elif wait := _WAIT_FOR_GROUPS.search(statement):
            groups = groups[max(0, len(groups) - int(wait[1])) :]
        elif "wgmma" not in statement and (written := _WRITTEN.search(statement)):
            busy = begun.union(*groups)
            found |= not busy.isdisjoint(re.findall(r"%\w+", written[1]))
    return found


class Instruction(NamedTuple):
    """An instruction of a listing.

    Attributes:
        position: of it in the code.
        opcode: without modifiers; marked ones end in "_" and one of MARKS.
        jump: position that it jumps to, if it does.
        operands: modifiers and operands as NVIDIA's disassembler prints them; "" for AMD.
    """

    position: int
    opcode: str
    jump: int | None = None
    operands: str = ""


#: A listing, in the order of the code.
Instructions = list[Instruction]

_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?([A-Z]\w*)([^;]*);")
#: The sums, then the left operand: a register of it, or where it lies in shared memory.
_FROM_REGISTERS = re.compile(r"R\d+, R\d+")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


def _read_nvidia(cubin: bytes, disassemble: bool) -> tuple[int, int, Instructions]:
    """(registers, bytes of local memory, instructions) of a cubin with one kernel."""
    from triton import knobs

    def listing_of(*options: str) -> str:
        command = [knobs.nvidia.cuobjdump.path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage_listing = listing_of("-res-usage")
        usage = _USAGE.search(usage_listing)
        if usage is None:
            raise RuntimeError(f"cuobjdump tells no resource usage:\n{usage_listing[:1000]}")
        registers, stack, local = map(int, usage.groups())
        # A stack frame alone is no spill: some are reserved and never touched. Look for accesses.
        disassemble = disassemble or stack + local > 0
        listing = listing_of("-sass") if disassemble else ""
    instructions = read_sass(listing)
    if disassemble and not instructions:
        raise RuntimeError(f"cuobjdump shows no instructions:\n{listing[:1000]}")
    touched = any(_kind(i.opcode) == "local" for i in instructions)
    return registers, stack + local if touched else 0, instructions


def read_sass(listing: str) -> Instructions:
    """The instructions of a listing by NVIDIA's disassembler."""
    instructions: Instructions = []
    for position, opcode, operands in _SASS.findall(listing):
        jump = re.search(r"0x([0-9a-f]+)\s*$", operands) if opcode == "BRA" else None
        opcode += _mark(opcode, operands)
        target = int(jump[1], 16) if jump else None
        instructions.append(Instruction(int(position, 16), opcode, target, operands))
    return instructions


_WIDTH = re.compile(r"\.(?:[US]?(8|16|64|128))\b")
_REGISTER = re.compile(r"\bR(\d+)\b")


def bytes_in_flight(loop: Instructions) -> int:
    """The most bytes of global loads of one thread that are under way at once in a loop.

    A load is under way until an instruction names one of the registers that it fills: the hardware
    waits there. Loads that the next pass uses are under way across the jump back. Copies to shared
    memory fill no register and do not count.
    """
    most, under_way = 0, dict[int, int]()  # bytes by the first register
    for instruction in (*loop, *loop):
        named = {int(number) for number in _REGISTER.findall(instruction.operands)}
        for first, size in list(under_way.items()):
            if named & set(range(first, first + max(1, size // 4))):
                del under_way[first]
        if instruction.opcode.startswith("LDG"):
            modifiers, _, operands = instruction.operands.partition(" ")
            filled, width = _REGISTER.match(operands.strip()), _WIDTH.search(modifiers)
            if filled:
                under_way[int(filled[1])] = int(width[1]) // 8 if width else 4
        most = max(most, sum(under_way.values()))
    return most


def _mark(opcode: str, operands: str) -> str:
    """The suffix of an opcode that one of MARKS applies to, or ""."""
    if opcode == "HGMMA" and _FROM_REGISTERS.search(operands):
        return "_register"
    if opcode in ("LDG", "STG") and re.search(r"\.[US](8|16)\b", operands):
        return "_narrow"
    return "_wait" if opcode == "WARPGROUP" and operands.startswith(".DEPBAR") else ""


def _read_amd(assembly: str) -> tuple[int, int, Instructions]:
    """(vector registers, of them spilled + scratch bytes, instructions) of one kernel."""

    def fact(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s*(\d+)", assembly, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"no .{name} in the kernel's metadata")
        return int(found[1])

    spills = ("vgpr_spill_count", "private_segment_fixed_size")
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in assembly.split("\t.section\t", 1)[0].splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s+([a-z]+_\w+)\s*(.*)", line):
            code.append((found[1], found[2].split(";")[0].strip()))
    instructions = [
        Instruction(i, opcode, labels.get(operands) if "branch" in opcode else None)
        for i, (opcode, operands) in enumerate(code)
    ]
    return fact("vgpr_count"), sum(map(fact, spills)), instructions


def _hot_loop(instructions: Instructions) -> Instructions:
    """The shortest loop that holds most of the arithmetic that is in loops, if there is one."""

    def body(start: int, end: int) -> Instructions:
        return [i for i in instructions if start <= i.position <= end]

    def arithmetic(part: Instructions) -> int:
        return sum(_kind(i.opcode) in ("mma", "fma") for i in part)

    jumps = [i for i in instructions if i.jump is not None and i.jump < i.position]
    loops = [body(i.jump, i.position) for i in jumps if i.jump is not None]
    most = max(map(arithmetic, loops), default=0)
    return min((b for b in loops if 2 * arithmetic(b) >= most > 0), key=len, default=[])
