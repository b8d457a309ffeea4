"""The table of machine code: kernels built, checked, recorded and compared.

    python -m tricorr.perf codegen [sm_90 ...] [-k PATTERN]    builds configurations, prints a table
    python -m tricorr.perf codegen --sample --json FILE        records the marked ones (cases.py)
    python -m tricorr.perf codegen --check [FILE]              builds what FILE records; compares
    python -m tricorr.perf.model.codegen --serve               answers JSON lines, for test_aot.py

All counts are static. "loop" is one pass of the loop that does the arithmetic. Per output element,
"loop" is that pass times the passes that the tile's multiply-adds need, and "total" adds the code
outside of the loop once: outer loops are counted too few times, code that is jumped over too often.
An instruction of a warp counts for each of its lanes, an MMA once for its warp. Loads are global
ones, of pixels and of the weight. Outputs of a weight gradient are those of one program, which sums
its split of the pixels. A rows kernel has its code twice, with masks and without, and a tile runs
one of them: its "loop" is the shorter one, its "total" has both; a case "-interior" is built with
the latter alone.

"flight" is the KB of global loads to registers that a multiprocessor has under way at once in that
loop, without those that L1 serves: bytes of a thread (machine_code.bytes_in_flight) times the share
of loaded bytes that L2 delivers, times the threads of all programs on a multiprocessor. By Little's
law an H100 (3 TB/s, a microsecond of latency) needs 12 KB on each multiprocessor for a kernel that
stores as much as it loads, 23 KB for one that stores little.

"bound" is the unit that takes longest for the whole launch at the rates of ops/plan/device.py:
"dram" where moving each tensor once takes longest, else "issue" (all instructions) or "arithmetic"
(all multiply-adds, padding included) and how many times longer than "dram" it takes. A case "-loop"
has none: the code that stores a box is in its loop, though all but one pass jump over it.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import pickle
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...ops.plan.cost import REGISTERS, THREADS
from ...ops.plan.integers import cdiv
from ..timing.timers import cause_of
from .choices import configurations
from .configuration import PARKED, TARGETS, Configuration, Target
from .helper_kernels import work_of_helper
from .machine_code import MARKS, Build, build

#: The recorded table, and that of Triton 3.6.
TABLE = Path(__file__).parent.parent / "results" / "codegen.json"
TABLE_3_6 = TABLE.with_name("codegen-triton-3.6.json")
#: Targets other than sm_90 of which the table has two kernels, so that a compiler that does well on
#: one target only is noticed.
ELSEWHERE = r"^(fprop_gemm-half-128x128x32-bfloat16-dense|fprop_stencil-512x1-float32-image)$"
#: Kinds of instructions that the table counts.
COUNTED = ("all", "load", "fma", "mma")
#: Margins over the recorded counts: registers (allocated in steps of 8), and a factor for
#: instructions.
MORE_REGISTERS = 8
MORE_INSTRUCTIONS = 1.05

Job = tuple[Configuration, Target]


def problems(configuration: Configuration, target: Target, built: Build) -> list[str]:
    """The faults of the code, in words."""
    from ...kernels import DESCRIPTORS
    from ...kernels.versions import BEFORE_3_7

    found, limits = [], target.device.limits
    parked = PARKED if BEFORE_3_7 else target.parked
    if built.spills > parked or built.count("local", loop=True):
        inside, everywhere = built.count("local", loop=True), built.count("local")
        found.append(f"spills {built.spills} bytes ({inside} of {everywhere} accesses in the loop)")
    if built.registers > limits.registers:
        found.append(f"{built.registers} registers, more than {limits.registers}")
    if built.shared > limits.shared:
        found.append(f"{built.shared} bytes of shared memory, more than {limits.shared}")
    if built.serialized:
        found.append(f"every product is waited for: {built.serialized}")
    if built.unfenced and not (BEFORE_3_7 and target.name == "sm_100"):  # docs/limits.md
        found.append(f"{built.unfenced} products of copies to shared memory without a proxy fence")
    if built.overwritten:
        found.append("registers of a product in flight are overwritten")
    if configuration.wants_mma(target) and not built.units["product"]:
        found.append("no matrix instructions")
    if any(isinstance(value, DESCRIPTORS) for value in configuration.call().arguments.values()):
        if not built.units["load through a descriptor"]:
            found.append("no loads through tensor descriptors")
        in_registers = built.units["left operand in registers"]
        in_place = configuration.plan.op != "wgrad" or getattr(
            configuration.plan.tile, "is_run", True
        )
        in_place &= configuration.family != "planes"
        if configuration.family == "strip":  # multiplies TF32 of planes from registers
            in_place &= configuration.product != "tf32" or configuration.planned.format != "NCHW"
        # wgmma has 64 rows; an operand of fewer is multiplied by warps.
        by_warps = configuration.plan.tile.step(configuration.plan.op)[0] < 64
        if (built.units["mma.sync"] and not by_warps) or (in_registers and in_place):
            found.append("operands of matrix instructions go through registers")
    return found


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
        loop: instructions of one pass of the loop, by kind: COUNTED, and those of MARKS.
        loop_per_output: those, times passes, for one output element.
        per_output: the same with the code outside of the loop.
        bound: see the module; "" for kernels that only help others, and for loops over boxes.
        in_flight: bytes of a multiprocessor's loads under way at once; 0 for those that only help.
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
    in_flight: int = 0


def entry_of(configuration: Configuration, target: Target, built: Build) -> Entry:
    """The table's line for a build with its instructions."""
    outputs, macs = _work_of_a_program(configuration, target)
    fma = built.count("fma", loop=True)
    loop = {kind: built.count(kind, loop=True) for kind in (*COUNTED, *MARKS)}
    passes = 1
    if loop["mma"] or configuration.kernel.endswith("_rows"):
        plan = configuration.plan
        passes = max(1, round(plan.work(configuration.problem(target)).steps))
    elif fma:
        passes = max(1, round(macs / (built.threads * fma)))
    whole = {kind: built.count(kind) for kind in COUNTED}
    lanes = {kind: built.threads / (target.gpu[2] if kind == "mma" else 1) for kind in COUNTED}
    in_loop = {k: loop[k] * passes * lanes[k] / outputs for k in COUNTED}
    total = {k: in_loop[k] + (whole[k] - loop[k]) * lanes[k] / outputs for k in COUNTED}
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
        _in_flight(configuration, target, built),
    )


def _work_of_a_program(configuration: Configuration, target: Target) -> tuple[int, int]:
    """(result elements, multiply-adds) of one program."""
    helped = work_of_helper(configuration)
    if helped:
        return helped
    work = configuration.plan.work(configuration.problem(target))
    return work.outputs, round(work.macs)


def _bound(configuration: Configuration, target: Target, instructions: float, macs: int) -> str:
    """The slowest unit of a launch, from lane instructions and multiply-adds of one program."""
    plan, device, problem = configuration.plan, target.device, configuration.problem(target)
    if configuration.family in ("helper", "frame"):
        return ""
    work, rates = plan.work(problem), device.rates
    if work.programs > plan.grid:  # the code that stores a box is in the loop over boxes
        return ""
    lanes = rates.issue * target.gpu[2] * rates.clock * device.multiprocessors
    dram = problem.compulsory_bytes / device.copy_rate
    units = {
        "issue": work.programs * instructions / lanes,
        "arithmetic": work.programs * work.products * macs / device.mac_rate(work.unit),
    }
    longest = max(units, key=lambda name: units[name])
    times = units[longest] / dram
    return "dram" if times <= 1 else f"{longest} {times:.3g}"


def _in_flight(configuration: Configuration, target: Target, built: Build) -> int:
    """Bytes of loads that a multiprocessor has under way at once, see the module."""
    if configuration.family in ("helper", "frame") or not built.in_flight:
        return 0
    plan, device = configuration.plan, target.device
    work = plan.work(configuration.problem(target))
    registers = cdiv(built.registers, 8) * 8 * built.threads
    side_by_side = min(
        REGISTERS // registers,
        THREADS // built.threads,
        device.limits.shared // max(1, built.shared),
        cdiv(work.programs, device.multiprocessors),
    )
    fresh = min(1.0, work.l2_bytes / work.loaded_bytes) if work.loaded_bytes else 1.0
    return round(built.in_flight * fresh * built.threads * side_by_side)


def chosen(targets: Iterable[str], pattern: str = "", sample: bool = False) -> list[Job]:
    """The configurations whose names match, of the recorded ones or of all."""
    return [
        (configuration, TARGETS[name])
        for name in targets
        for configuration in configurations(TARGETS[name])
        if re.search(pattern, configuration.name)
        if not sample or is_recorded(configuration, name)
    ]


def is_recorded(configuration: Configuration, target: str) -> bool:
    """Whether the table has a configuration of a target."""
    if target == "sm_90":
        return configuration.recorded
    return bool(re.search(ELSEWHERE, configuration.name))


def tabulate(jobs: Iterable[Job]) -> tuple[list[Entry], list[str]]:
    """Builds each job and prints its line at once; returns the entries and the faults."""
    entries, wrong = [], []
    print(
        f"{'':77}  in the loop, one pass  per output element                   per MAC\n"
        f"{'target':7} {'configuration':50} regs spill shared   all load  fma  mma"
        "    loop   total    load     fma    mma    all flight  bound"
    )
    for configuration, target in jobs:
        start = f"{target.name:7} {configuration.name:50}"
        try:
            built = build(configuration.call(), target)
        except Exception as error:  # whatever a compiler raises: the table goes on
            print(f"{start} {cause_of(error)}", flush=True)
            wrong.append(f"{target.name} {configuration.name}: {cause_of(error)}")
            continue
        entry = entry_of(configuration, target, built)
        entries.append(entry)
        found = problems(configuration, target, built)
        wrong += [f"{target.name} {configuration.name}: {problem}" for problem in found]
        loop, each = entry.loop, entry.per_output
        counts = " ".join(f"{loop[kind]:4}" for kind in ("load", "fma", "mma"))
        print(
            f"{start} {built.registers:4} {built.spills:5} {built.shared:6} {loop['all']:5} "
            f"{counts} {entry.loop_per_output['all']:7.4g} "
            f"{each['all']:7.4g} {each['load']:7.3g} {each['fma']:7.3g} {each['mma']:6.2g} "
            f"{each['all'] * entry.outputs / entry.macs:6.3g} {entry.in_flight / 1024:6.1f}  "
            f"{entry.bound:14} "
            f"{'; '.join(found)}".rstrip(),
            flush=True,
        )
    return entries, wrong


def write_table(entries: list[Entry], path: Path) -> None:
    """Writes the table, one entry a line, so that a difference can be read."""
    lines = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    head = f'"triton": {json.dumps(version("triton"))}, "entries"'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{{{head}: [\n{lines}\n]}}\n", encoding="utf-8")


def read_table(path: Path) -> tuple[str, list[Entry]]:
    """(version of Triton, entries) of a table."""
    table = json.loads(path.read_text(encoding="utf-8"))
    return table["triton"], [Entry(**entry) for entry in table["entries"]]


def committed() -> Path:
    """The committed table of the installed Triton."""
    from ...kernels.versions import BEFORE_3_7

    return TABLE_3_6 if BEFORE_3_7 else TABLE


def regressions(recorded: Entry, now: Entry) -> list[str]:
    """The counts that got worse beyond the margins, in words. Any new spill is a regression."""
    found = []
    if now.spills > recorded.spills:
        found.append(f"spills {now.spills} bytes, recorded {recorded.spills}")
    if now.registers > recorded.registers + MORE_REGISTERS:
        found.append(f"{now.registers} registers, recorded {recorded.registers}")
    if now.shared > recorded.shared:
        found.append(f"{now.shared} bytes of shared memory, recorded {recorded.shared}")
    in_loop = now.loop_per_output["all"], recorded.loop_per_output["all"]
    for what, after, before in (
        ("instructions", now.instructions, recorded.instructions),
        ("instructions per output in the loop", *in_loop),
        ("instructions per output", now.per_output["all"], recorded.per_output["all"]),
    ):
        if after > before * MORE_INSTRUCTIONS:
            found.append(f"{after:.4g} {what}, recorded {before:.4g}")
    if recorded.in_flight > now.in_flight * MORE_INSTRUCTIONS:
        found.append(f"{now.in_flight} bytes of loads in flight, recorded {recorded.in_flight}")
    for mark, what in MARKS.items():
        if now.loop.get(mark, 0) > recorded.loop.get(mark, math.inf):
            found.append(f"{now.loop[mark]} {what} in the loop, recorded {recorded.loop[mark]}")
    if recorded.loop["mma"] and not now.loop["mma"]:
        found.append("no matrix instructions in the loop any more")
    return found


def compare(path: Path, pattern: str = "", targets: Iterable[str] = TARGETS) -> int:
    """Builds the configurations of a table and prints what got worse.

    Returns 0 if nothing did, 1 if something did, 2 for the table of another Triton.
    """
    theirs, recorded = read_table(path)
    if theirs != version("triton"):
        print(f"{path} is of Triton {theirs}, this is {version('triton')}: not compared")
        return 2
    known = {(target.name, made.name): (made, target) for made, target in chosen(TARGETS)}
    before = {
        (e.target, e.name): e
        for e in recorded
        if e.target in targets and re.search(pattern, e.name)
    }
    entries, wrong = tabulate(known[key] for key in before if key in known)
    wrong += [
        f"{' '.join(key)}: not a configuration any more: record again"
        for key in before
        if key not in known
    ]
    for entry in entries:
        found = regressions(before[entry.target, entry.name], entry)
        wrong += [f"{entry.target} {entry.name}: {problem}" for problem in found]
    print(f"{len(entries)} compared with {path}, {len(wrong)} worse", *wrong, sep="\n")
    return min(1, len(wrong))


def serve(requests: Iterable[str]) -> None:
    """Answers {"target", "configuration"} with {"problems"} or {"error"}.

    A configuration comes pickled, in base 64.
    """
    # Compilers print to stdout: keep their output apart from the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in requests:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            target = TARGETS[request["target"]]
            configuration = pickle.loads(base64.b64decode(request["configuration"]))
            built = build(configuration.call(), target, disassemble=False)
            answer = {"problems": problems(configuration, target, built)}
        except Exception:  # whatever a compiler raises is the answer
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf codegen`."""
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("-k", default="", metavar="PATTERN", help="only names that match")
    parser.add_argument("--sample", action="store_true", help="only those that the table records")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument(
        "--check", type=Path, nargs="?", const=Path(), metavar="FILE",
        help="build what FILE records (default: the committed table of this Triton) and print what "
        "is worse",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print names, build nothing")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> int:
    """Builds, prints and compares; 0 if no configuration is wrong or worse."""
    if options.serve:
        serve(sys.stdin)
        return 0
    if options.check and str(options.check) in TARGETS:  # argparse takes it for FILE
        options.targets, options.check = [str(options.check), *options.targets], Path()
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        raise ValueError(f"no target is called {unknown[0]}: expected one of {', '.join(TARGETS)}")
    try:
        re.compile(options.k)
    except re.error as error:
        raise ValueError(f"-k must be a regular expression, got {options.k!r}: {error}") from error
    names = options.targets or list(TARGETS)
    if options.check:
        return compare(options.check if options.check.name else committed(), options.k, names)
    jobs = chosen(names, options.k, options.sample)
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
    command = argparse.ArgumentParser(description="The machine code of every configuration.")
    add_arguments(command)
    sys.exit(main(command.parse_args()))
