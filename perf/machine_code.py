"""The machine code of a kernel launch, built ahead of time for a GPU that need not be there.

`build` turns a launch.Call into what Triton would run on a target: arguments are specialised by
Triton's own binder, so that the code is the one a launch with those arguments gets. Tensors may be
meta tensors. Kernels have to be compiled ones: TRITON_INTERPRET must be unset.

    python -m tricorr.perf codegen [sm_90 ...] [-k PATTERN]    checks configurations; prints a table
    python -m tricorr.perf codegen --sample --json FILE        records the representative ones
    python -m tricorr.perf codegen --check FILE                builds what FILE records; compares
    python -m tricorr.perf codegen sm_90 --drawn 500           calls drawn at random, as planned
    python -m tricorr.perf.machine_code --serve               answers JSON lines, for test_aot.py

What the table counts is static. "loop" is one pass of the loop that does the arithmetic. Per output
element, "loop" is that pass times how often it must run for the tile's multiply-adds, and "total"
adds everything outside of the loop, counted once: code of outer loops is counted too few times,
code that is jumped over too many. Instructions of a warp count once for each of its lanes, but an
MMA, whose lanes work together, counts once for its warp. Loads are global ones, of pixels and of
the weight. A weight gradient's outputs are those of a program, which sums its split of the pixels.
A rows kernel has its code twice, with masks and without, and a tile runs one of them: its "loop" is
the shorter one, its "total" has both, and a line named "interior" is built with the latter alone.

"bound" is the unit that takes longest for the whole launch by the rates of ops/plan/cost.py: "dram"
where each tensor moved once takes longer than all instructions ("issue") and all multiply-adds,
padding of tiles included ("arithmetic"); else how many times longer than that the other one takes.
Where one loop goes through several boxes ("-loop"), the code that stores a box is in it, counted
in every pass though all but one jump over it: no bound follows from that.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..ops.launch.arguments import BANDS_BLOCK, SUM_TILE
from ..ops.launch.call import Call
from ..ops.plan.cost import Work
from .cases import PARKED, TARGETS, Configuration, Target, configurations, drawn

#: The recorded table, and that of Triton 3.6.
TABLE = Path(__file__).parent / "results" / "codegen.json"
TABLE_3_6 = TABLE.with_name("codegen-triton-3.6.json")


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
        serialized: what ptxas says of wgmma where it waits for every product; else "".
        unfenced: products by wgmma or tcgen05 of what cp.async brought, without a proxy fence.
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

#: Ends of opcodes, and of what each is one.
MARKS = {
    "narrow": "global loads and stores of fewer than 32 bits",
    "register": "products whose first operand is in registers",
    "wait": "waits for products of a warpgroup",
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
    from triton.compiler import ASTSource, make_backend
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
    return ASTSource(kernel, signature, constexprs, attrs), parsed.__dict__


def build(call: Call, target: Target, disassemble: bool = True) -> Build:
    """Compiles `call` for `target`; `disassemble`, the slow half, fills in the instructions."""
    from triton.backends.compiler import GPUTarget

    gpu = GPUTarget(*target.gpu)
    source, options = source_of(call, gpu)
    compiled, said = _compiled(source, gpu, options)
    ptx = compiled.asm.get("ptx", "")

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
        serialized=next((line for line in said.splitlines() if "serialized due to" in line), ""),
        unfenced=_unfenced(ptx),
    )


def _compiled(source: Any, gpu: Any, options: dict[str, Any]) -> tuple[Any, str]:
    """What Triton makes of `source`, and what ptxas says of it where there is wgmma."""
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


#: (position, opcode, position that it jumps to or None), in the order of the code.
Instructions = list[tuple[int, str, int | None]]

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
    instructions: Instructions = []
    for position, opcode, operands in _SASS.findall(listing):
        jump = re.search(r"0x([0-9a-f]+)\s*$", operands) if opcode == "BRA" else None
        opcode += _mark(opcode, operands)
        instructions.append((int(position, 16), opcode, int(jump[1], 16) if jump else None))
    if disassemble and not instructions:
        raise RuntimeError(f"cuobjdump shows no instructions:\n{listing[:1000]}")
    touched = any(_kind(opcode) == "local" for _, opcode, _ in instructions)
    return registers, stack + local if touched else 0, instructions


def _mark(opcode: str, operands: str) -> str:
    """One of MARKS as the end of an opcode, or nothing."""
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


def problems(configuration: Configuration, target: Target, built: Build) -> list[str]:
    """What is wrong with the code, in words."""
    from ..kernels.versions import BEFORE_3_7

    found = []
    parked = PARKED if BEFORE_3_7 else target.parked
    if built.spills > parked or built.count("local", loop=True):
        inside, everywhere = built.count("local", loop=True), built.count("local")
        found.append(f"spills {built.spills} bytes ({inside} of {everywhere} accesses in the loop)")
    if built.registers > target.registers:
        found.append(f"{built.registers} registers, more than {target.registers}")
    if built.shared > target.shared:
        found.append(f"{built.shared} bytes of shared memory, more than {target.shared}")
    if built.serialized:
        found.append(f"every product is waited for: {built.serialized}")
    if built.unfenced and not (BEFORE_3_7 and target.name == "sm_100"):  # docs/limits.md
        found.append(f"{built.unfenced} products of copies to shared memory without a proxy fence")
    if built.opcodes and configuration.wants_mma(target) and not built.count("mma"):
        found.append("no matrix instructions")
    if built.opcodes and configuration.plan.family == "tma":
        if not built.opcodes.get("UTMALDG"):
            found.append("no loads through tensor descriptors")
        # A weight gradient's left operand, a box, does: Triton keeps only a plain matrix in place.
        through = ("HMMA",) if configuration.plan.op == "wgrad" else ("HMMA", "HGMMA_register")
        if any(map(built.opcodes.get, through)):
            found.append("operands of matrix instructions go through registers")
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


@dataclass(frozen=True)
class Entry:
    """A line of the table: one configuration on one target.

    Attributes:
        target, name: which.
        threads, registers, spills, shared: as in Build.
        outputs: result elements of one program.
        macs: multiply-adds of one program, padding of its tile included.
        passes: how often the loop runs for them, by the arithmetic in it.
        instructions: in the whole code, for one thread.
        loop: instructions of one pass of the loop, by kind: "all", "load", "fma", "mma", and those
            of MARKS.
        loop_per_output: those, times passes, for one output element.
        per_output: the same with what is outside of the loop.
        bound: see the module; "" for kernels that only help others, and for loops over boxes.
    """

    target: str
    name: str
    threads: int
    registers: int
    spills: int
    shared: int
    outputs: int
    macs: int
    passes: int
    instructions: int
    loop: dict[str, int]
    loop_per_output: dict[str, float]
    per_output: dict[str, float]
    bound: str = ""


_COUNTED = ("all", "load", "fma", "mma")


def entry_of(configuration: Configuration, target: Target, built: Build) -> Entry:
    """The table's line for a build with its instructions."""
    outputs, macs = _work_of_a_program(configuration, target)
    work = _work(configuration, target)
    fma = built.count("fma", loop=True)
    loop = {kind: built.count(kind, loop=True) for kind in (*_COUNTED, *MARKS)}
    passes = 1
    if loop["mma"] or configuration.kernel.endswith("_rows"):
        passes = max(1, round(work.steps))
    elif fma:
        passes = max(1, round(macs / (built.threads * fma)))
    whole = {kind: built.count(kind) for kind in _COUNTED}
    lanes = {kind: built.threads / (target.gpu[2] if kind == "mma" else 1) for kind in _COUNTED}
    in_loop = {k: loop[k] * passes * lanes[k] / outputs for k in _COUNTED}
    total = {k: in_loop[k] + (whole[k] - loop[k]) * lanes[k] / outputs for k in _COUNTED}
    return Entry(
        target.name,
        configuration.name,
        built.threads,
        built.registers,
        built.spills,
        built.shared,
        outputs,
        macs,
        passes,
        whole["all"],
        loop,
        {k: round(v, 4) for k, v in in_loop.items()},
        {k: round(v, 4) for k, v in total.items()},
        _bound(configuration, target, total["all"] * outputs, macs),
    )


def _bound(configuration: Configuration, target: Target, instructions: float, macs: int) -> str:
    """What bounds a launch whose programs have so many lane instructions and multiply-adds."""
    plan, device = configuration.plan, target.device
    if not configuration.kernel.startswith(f"{plan.op}_") or plan.op == "dgrad_frame":
        return ""
    work, rates = _work(configuration, target), device.rates
    if work.programs > plan.grid:  # a program has several boxes, and what is outside in its loop
        return ""
    lanes = rates.issue * target.gpu[2] * rates.clock * device.multiprocessors
    dram = configuration.problem(target).compulsory_bytes / device.copy_rate
    units = {
        "issue": work.programs * instructions / lanes,
        "arithmetic": work.programs * work.products * macs / device.mac_rate(work.unit),
    }
    longest = max(units, key=lambda name: units[name])
    times = units[longest] / dram
    return "dram" if times <= 1 else f"{longest} {times:.3g}"


def _work(configuration: Configuration, target: Target) -> Work:
    """What its family counts of a configuration."""
    plan = configuration.plan
    return plan.tile.work(plan, configuration.problem(target))


def _work_of_a_program(configuration: Configuration, target: Target) -> tuple[int, int]:
    """(result elements, multiply-adds) of one program; two kernels add or copy where others do."""
    if configuration.kernel == "sum_partials":
        return SUM_TILE[1], configuration.plan.splits * SUM_TILE[1]
    if configuration.kernel == "lag_sums":
        call = configuration.call().arguments
        lags = call["BLOCK_R"] * call["BLOCK_S"]
        rows = call["SPLIT_STRIPS"] * (call["BLOCK_P"] + call["BLOCK_R"] - 1)
        return lags, lags * rows * call["BLOCK_Q"]
    if configuration.kernel == "build_bands":
        return BANDS_BLOCK, BANDS_BLOCK
    work = _work(configuration, target)
    return work.outputs, round(work.macs)


#: What the recorded table holds: every kernel, tile and kind of product of the target that is tuned
#: for first, and a few on the others, so that a compiler that does well on one only is noticed.
SAMPLE = {
    "sm_90": r"(?x) ^[fdw](prop|grad)_gemm-half-.*-bfloat16-dense$"
    r"| ^(fprop|wgrad)_gemm-half-128x128x32-bfloat16-(planes|pointwise)$"
    r"| ^fprop_gemm-half-128x64x32-bfloat16-stem$"
    r"| ^(fprop|wgrad)_gemm-(tf32|ieee|float64)-(128x(128|64)|64x64x1|64x32)[x\d]+-float\d+-dense$"
    r"| ^dgrad_gemm-ieee-64x32x16-float32-dense$"
    r"| ^fprop_gemm-tf32x3-64x64x32-float32-dense$"
    r"| ^fprop_stencil-512x1-(float32|bfloat16|uint8)-image$"
    r"| ^(dgrad|wgrad)_stencil-512x1-float32-image$"
    r"| ^\w+_stencil-8x64-bfloat16-depthwise$ | ^fprop_stencil-(128x4|32x16)-float32-depthwise$"
    r"| ^fprop_rows-\S+-(float32|bfloat16)-image[357]-interior$"
    r"| ^fprop_rows-\S+-float32-(planes3|last3|last7)$"
    r"| ^wgrad_rows-\S+-float32-(image[37]-interior|last3)$"
    r"| ^dgrad_rows-\S+-float32-strided(_last)?$"
    r"| ^(fprop|wgrad)_banded-half-(128x8x16x64|32x64x1x64)-bfloat16-image31$"
    r"| ^(fprop|wgrad)_banded-tf32-(128x8x16|16x64x1)x32-float32-image31$"
    r"| ^dgrad_frame_(gemm-half|stencil)-\S+-bfloat16-(dense|image)$"
    r"| ^[fdw](prop|grad)_tma-half-\S+-bfloat16-dense$"
    r"| ^[fdw](prop|grad)_tma-half-\S+x(128x64x1|64x128x3)-bfloat16-planes$"
    r"| ^[fd](prop|grad)_tma-half-\S+x128x64x1-bfloat16-(dense|pointwise)-loop$"
    r"| ^sum_partials-float32-narrow$",
    "sm_80": r"^(fprop_gemm-half-128x128x32-bfloat16-dense|fprop_stencil-512x1-float32-image)$",
    "sm_100": r"^(fprop_gemm-half-128x128x32-bfloat16-dense|fprop_stencil-512x1-float32-image)$",
    "gfx942": r"^(fprop_gemm-half-128x128x32-bfloat16-dense|fprop_stencil-512x1-float32-image)$",
}


def chosen(
    targets: Iterable[Target], pattern: str = "", sample: bool = False
) -> Iterator[tuple[Configuration, Target]]:
    """The configurations whose names match, of the representative ones or of all."""
    for target in targets:
        for configuration in configurations(target):
            if sample and not re.search(SAMPLE[target.name], configuration.name):
                continue
            if re.search(pattern, configuration.name):
                yield configuration, target


def tabulate(
    jobs: Iterable[tuple[Configuration, Target]],
) -> tuple[list[Entry], list[str]]:
    """Builds each job, prints its line as it comes; returns the entries and what is wrong."""
    entries, wrong = [], []
    print(
        f"{'':77}  in the loop, one pass  per output element                   per MAC\n"
        f"{'target':7} {'configuration':50} regs spill shared   all load  fma  mma"
        "    loop   total    load     fma    mma    all  bound"
    )
    for configuration, target in jobs:
        try:
            built = build(configuration.call(), target)
        except Exception as error:
            reason = traceback.format_exception_only(_cause(error))[-1].strip().splitlines()[-1]
            print(f"{target.name:7} {configuration.name:50} {reason}", flush=True)
            wrong.append(f"{target.name} {configuration.name}: {reason}")
            continue
        entry = entry_of(configuration, target, built)
        entries.append(entry)
        found = problems(configuration, target, built)
        wrong += [f"{target.name} {configuration.name}: {problem}" for problem in found]
        loop, each = entry.loop, entry.per_output
        counts = " ".join(f"{loop[kind]:4}" for kind in ("load", "fma", "mma"))
        print(
            f"{target.name:7} {configuration.name:50} {built.registers:4} {built.spills:5} "
            f"{built.shared:6} {loop['all']:5} {counts} {entry.loop_per_output['all']:7.4g} "
            f"{each['all']:7.4g} {each['load']:7.3g} {each['fma']:7.3g} {each['mma']:6.2g} "
            f"{each['all'] * entry.outputs / entry.macs:6.3g}  {entry.bound:14} "
            f"{'; '.join(found)}".rstrip(),
            flush=True,
        )
    return entries, wrong


def survey(target: Target, count: int, seed: int) -> list[str]:
    """Builds calls drawn at random; returns what is wrong, and prints it as it comes."""
    wrong, families = [], Counter[str]()
    for configuration in drawn(target, count, seed):
        families[configuration.plan.family] += 1
        try:
            built = build(configuration.call(), target, disassemble=False)
            if built.spills:
                built = build(configuration.call(), target)
            found = problems(configuration, target, built)
        except Exception as error:
            found = [traceback.format_exception_only(_cause(error))[-1].strip().splitlines()[-1]]
        if found:
            wrong.append(f"{configuration.name}, {configuration.plan.tile}: {'; '.join(found)}")
            print(f"{target.name:7} {wrong[-1]}", flush=True)
    kinds = ", ".join(f"{n} {family}" for family, n in families.most_common())
    print(f"{target.name:7} {count} calls ({kinds}), seed {seed}: {len(wrong)} wrong")
    return wrong


def triton_version() -> str:
    """The installed Triton's, which decides the code."""
    from importlib.metadata import version

    return version("triton")


def committed() -> Path:
    """The committed table of the installed Triton."""
    from ..kernels.versions import BEFORE_3_7

    return TABLE_3_6 if BEFORE_3_7 else TABLE


def write_table(entries: list[Entry], path: Path) -> None:
    """Writes the table, one entry a line, so that a difference can be read."""
    lines = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'{{"triton": {json.dumps(triton_version())}, "entries": [\n{lines}\n]}}\n',
        encoding="utf-8",
    )


def read_table(path: Path) -> tuple[str, list[Entry]]:
    """(version of Triton, entries) of a table."""
    table = json.loads(path.read_text(encoding="utf-8"))
    return table["triton"], [Entry(**entry) for entry in table["entries"]]


#: How much more a build may take than the table says before that counts as a regression: registers
#: (the allocator works in steps of 8), and instructions, as a factor.
MORE_REGISTERS = 8
MORE_INSTRUCTIONS = 1.05


def regressions(recorded: Entry, now: Entry) -> list[str]:
    """What got worse beyond the margins, in words. Any spill that was not there is a regression."""
    found = []
    if now.spills > recorded.spills:
        found.append(f"spills {now.spills} bytes, recorded {recorded.spills}")
    if now.registers > recorded.registers + MORE_REGISTERS:
        found.append(f"{now.registers} registers, recorded {recorded.registers}")
    if now.shared > recorded.shared:
        found.append(f"{now.shared} bytes of shared memory, recorded {recorded.shared}")
    for what, before, after in (
        ("instructions", recorded.instructions, now.instructions),
        (
            "instructions per output in the loop",
            recorded.loop_per_output["all"],
            now.loop_per_output["all"],
        ),
        ("instructions per output", recorded.per_output["all"], now.per_output["all"]),
    ):
        if after > before * MORE_INSTRUCTIONS:
            found.append(f"{after:.4g} {what}, recorded {before:.4g}")
    for mark in MARKS:
        if now.loop.get(mark, 0) > recorded.loop.get(mark, math.inf):
            found.append(
                f"{now.loop[mark]} {MARKS[mark]} in the loop, recorded {recorded.loop[mark]}"
            )
    if recorded.loop["mma"] and not now.loop["mma"]:
        found.append("no matrix instructions in the loop any more")
    return found


def compare(path: Path, pattern: str = "", targets: Iterable[str] = TARGETS) -> int:
    """Builds what a table records and prints what is worse; 0 if nothing, 2 if incomparable."""
    version, recorded = read_table(path)
    if version != triton_version():
        print(
            f"{path} was recorded with Triton {version}, this is {triton_version()}: not compared"
        )
        return 2
    known = {(t.name, c.name): (c, t) for t in TARGETS.values() for c in configurations(t)}
    selected = [e for e in recorded if e.target in targets and re.search(pattern, e.name)]
    missing = [e for e in selected if (e.target, e.name) not in known]
    entries, wrong = tabulate(
        known[e.target, e.name] for e in selected if (e.target, e.name) in known
    )
    before = {(e.target, e.name): e for e in selected}
    wrong += [f"{e.target} {e.name}: not a configuration any more: record again" for e in missing]
    for entry in entries:
        found = regressions(before[entry.target, entry.name], entry)
        wrong += [f"{entry.target} {entry.name}: {problem}" for problem in found]
    print(f"{len(entries)} compared with {path}, {len(wrong)} worse")
    print("\n".join(wrong), end="\n" if wrong else "")
    return min(1, len(wrong))


def _cause(error: BaseException) -> BaseException:
    """What went wrong first: Triton wraps an error in one for each function that it is inside."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf codegen`."""
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("-k", default="", metavar="PATTERN", help="only names that match")
    parser.add_argument(
        "--sample", action="store_true", help="only the representative ones that the table records"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument(
        "--check",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="FILE",
        help="build what FILE records (if not given, the committed table of this Triton) and say "
        "what is worse",
    )
    parser.add_argument("--list", action="store_true", help="print names, build nothing")
    parser.add_argument(
        "--drawn", type=int, metavar="N", help="instead, N calls drawn at random for each target"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --drawn; 0 if not given")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> int:
    """Builds, prints and compares; 0 if no configuration is wrong or worse."""
    if options.serve:
        serve(sys.stdin)
        return 0
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        print(f"unknown target {', '.join(sorted(unknown))}: of {', '.join(TARGETS)}")
        return 2
    try:
        re.compile(options.k)
    except re.error as error:
        raise ValueError(f"-k must be a regular expression, got {options.k!r}: {error}") from error
    names = options.targets or list(TARGETS)
    if options.drawn is not None:
        if options.drawn < 1:
            raise ValueError(f"--drawn must be positive, got {options.drawn}")
        if options.k or options.sample or options.json or options.check:
            raise ValueError(
                "--drawn takes its calls from no list: no -k, --sample, --json, --check"
            )
        return min(1, sum(len(survey(TARGETS[n], options.drawn, options.seed)) for n in names))
    if options.check:
        return compare(options.check if options.check.name else committed(), options.k, names)
    jobs = list(chosen([TARGETS[name] for name in names], options.k, options.sample))
    if not jobs:
        raise ValueError(f"no configuration matches {options.k}")
    if options.list:
        print("\n".join(f"{target.name:7} {configuration.name}" for configuration, target in jobs))
        return 0
    entries, wrong = tabulate(jobs)
    if options.json:
        write_table(entries, options.json)
        print(f"{len(entries)} entries written to {options.json}")
    if wrong:
        print(f"{len(wrong)} wrong:", *wrong, sep="\n  ")
    return min(1, len(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The machine code of every configuration.")
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
