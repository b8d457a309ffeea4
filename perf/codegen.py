"""The machine code of a kernel launch, built ahead of time for a GPU that need not be there.

`build` turns a launch.Call into what Triton would run on a target: arguments are specialised by
Triton's own binder, so that the code is the one a launch with those arguments gets. Tensors may be
meta tensors. Kernels have to be compiled ones: TRITON_INTERPRET must be unset.

    python -m tricorr.perf.codegen [sm_90 ...]    checks every configuration; prints a table
    python -m tricorr.perf.codegen --serve        answers JSON lines, for tests/test_aot.py
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..ops.launch import Call
from .configurations import TARGETS, Configuration, Target, configurations


@dataclass(frozen=True)
class Build:
    """What a launch is made of, on one target.

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
    """

    kernel: str
    target: str
    threads: int
    registers: int
    spills: int
    shared: int
    opcodes: dict[str, int] = field(default_factory=dict)
    loop: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str, loop: bool = False) -> int:
        """Instructions of one of KINDS, or "all", in the whole code or in its loop."""
        opcodes = self.loop if loop else self.opcodes
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

_KIND = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in KINDS.items()))


def _kind(opcode: str) -> str:
    match = _KIND.match(opcode)
    return next(k for k in KINDS if match[k]) if match else "other"


def build(call: Call, target: Target, disassemble: bool = True) -> Build:
    """Compiles `call` for `target`; `disassemble`, the slow half, fills in the instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    kernel = call.kernel
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("kernels are interpreted: unset TRITON_INTERPRET to compile them")
    gpu = GPUTarget(*target.gpu)
    # The steps of JITFunction.run, with a backend of our choice in place of the driver's.
    backend = make_backend(gpu)
    options = {"num_warps": call.num_warps, "num_stages": call.num_stages}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = binder(**call.arguments, **options)
    parsed, signature, constexprs, attrs = kernel._pack_args(
        backend, options, bound, specialization, rest
    )
    source = ASTSource(kernel, signature, constexprs, attrs)
    compiled = triton.compile(source, target=gpu, options=parsed.__dict__)

    if target.is_amd:
        registers, spills, instructions = _read_amd(compiled.asm["amdgcn"])
    else:
        registers, spills, instructions = _read_nvidia(compiled.asm["cubin"], disassemble)
    return Build(
        call.kernel.__name__,
        target.name,
        threads=call.num_warps * gpu.warp_size,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        opcodes=dict(Counter(opcode for _, opcode, _ in instructions)),
        loop=dict(Counter(opcode for _, opcode, _ in _hot_loop(instructions))),
    )


#: (position, opcode, position that it jumps to or None), in the order of the code.
Instructions = list[tuple[int, str, int | None]]

_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?([A-Z]\w*)([^;]*);")
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
    instructions: Instructions = []
    for position, opcode, operands in _SASS.findall(listing):
        jump = re.search(r"0x([0-9a-f]+)\s*$", operands) if opcode == "BRA" else None
        instructions.append((int(position, 16), opcode, int(jump[1], 16) if jump else None))
    if disassemble and not instructions:
        raise RuntimeError(f"cuobjdump shows no instructions:\n{listing[:1000]}")
    touched = any(_kind(opcode) == "local" for _, opcode, _ in instructions)
    return registers, stack + local if touched else 0, instructions


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
        (i, opcode, labels.get(operands) if "branch" in opcode else None)
        for i, (opcode, operands) in enumerate(code)
    ]
    return fact("vgpr_count"), sum(map(fact, spills)), instructions


def _hot_loop(instructions: Instructions) -> Instructions:
    """The shortest loop that holds most of the arithmetic that is in loops, if there is one."""

    def body(start: int, end: int) -> Instructions:
        return [i for i in instructions if start <= i[0] <= end]

    def arithmetic(part: Instructions) -> int:
        return sum(_kind(opcode) in ("mma", "fma") for _, opcode, _ in part)

    loops = [body(to, at) for at, _, to in instructions if to is not None and to < at]
    most = max(map(arithmetic, loops), default=0)
    return min((b for b in loops if 2 * arithmetic(b) >= most > 0), key=len, default=[])


#: ptxas parks a few values that only the code around the loop needs, to stay at a step (32, 80, 128
#: registers) where more programs fit on a multiprocessor: that many bytes, outside the loop, are no
#: shortage of registers.
MAX_PARKED = 16


def problems(configuration: Configuration, target: Target, built: Build) -> list[str]:
    """What is wrong with the code, in words."""
    found = []
    if built.spills > MAX_PARKED or built.count("local", loop=True):
        inside, everywhere = built.count("local", loop=True), built.count("local")
        found.append(f"spills {built.spills} bytes ({inside} of {everywhere} accesses in the loop)")
    if built.registers > target.registers:
        found.append(f"{built.registers} registers, more than {target.registers}")
    if built.shared > target.shared:
        found.append(f"{built.shared} bytes of shared memory, more than {target.shared}")
    if built.opcodes and configuration.wants_mma(target) and not built.count("mma"):
        found.append("no matrix instructions")
    return found


def serve(requests: Iterable[str]) -> None:
    """Answers {"target", "name", "disassemble"} with {"build", "problems"} or {"error"}."""
    # Compilers print: what they say must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tables = {t.name: {c.name: c for c in configurations(t)} for t in TARGETS.values()}
    for line in requests:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            target = TARGETS[request["target"]]
            configuration = tables[target.name][request["name"]]
            built = build(configuration.call(), target, request["disassemble"])
            answer = {
                "build": asdict(built),
                "problems": problems(configuration, target, built),
            }
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")


def check(targets: list[Target], pattern: str) -> int:
    """Builds every configuration for every target; prints a table; returns how many are wrong."""
    wrong = 0
    print(f"{'target':7} {'configuration':72} regs spill shared   all  load   fma   mma  (in loop)")
    for target in targets:
        for configuration in configurations(target):
            if not re.search(pattern, configuration.name):
                continue
            try:
                built = build(configuration.call(), target)
            except Exception as error:
                wrong += 1
                reason = traceback.format_exception_only(_cause(error))[-1].strip()
                print(f"{target.name:7} {configuration.name:72} {reason.splitlines()[-1]}")
                continue
            found = problems(configuration, target, built)
            wrong += bool(found)
            counts = " ".join(
                f"{built.count(kind, loop=True):5}" for kind in ("all", "load", "fma", "mma")
            )
            print(
                f"{target.name:7} {configuration.name:72} {built.registers:4} {built.spills:5} "
                f"{built.shared:6} {counts}  {'; '.join(found)}",
                flush=True,
            )
    return wrong


def _cause(error: BaseException) -> BaseException:
    """What went wrong first: Triton wraps an error in one for each function that it is inside."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the machine code of every configuration.")
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("-k", default="", metavar="PATTERN", help="only names that match")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(sys.stdin)
        return 0
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}")
    return min(1, check([TARGETS[name] for name in options.targets or TARGETS], options.k))


if __name__ == "__main__":
    sys.exit(main())
