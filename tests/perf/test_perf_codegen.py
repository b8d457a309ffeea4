"""codegen: the recorded table of machine code is right, and no kernel is worse than recorded.

Kernels of this process may be interpreted, so another process compiles. These tests compile a few
kernels; `python -m tricorr.perf codegen --check` compares the whole table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from tricorr.perf.model import codegen, machine_code
from tricorr.perf.model.choices import configurations
from tricorr.perf.model.codegen import Entry
from tricorr.perf.model.configuration import TARGETS
from tricorr.perf.model.machine_code import MARKS, Build

#: The recorded configurations that the tests build: each family, and every kind of arithmetic.
BUILT = (
    r"sm_90 fprop_gemm-half-128x128x32-bfloat16-dense",
    r"sm_90 wgrad_gemm-half-64x64x32-bfloat16-dense",
    r"sm_90 dgrad_gemm-ieee-128x64x16-float32-dense",
    r"sm_90 fprop_stencil-512x1-float32-image",
    r"sm_90 wgrad_stencil-8x64-bfloat16-depthwise",
)
TRITON = importlib.metadata.version("triton")
RECORDED = codegen.read_table(codegen.TABLE)[1]
VERSION, COMMITTED = codegen.read_table(codegen.committed())


def run(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tricorr.perf.model.codegen", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def configuration(name, target="sm_90"):
    return next(c for c in configurations(TARGETS[target]) if c.name == name)


def entry(**fields):
    counts = {"all": 100, "load": 4, "fma": 36, "mma": 0}
    rates = {kind: float(n) for kind, n in counts.items()}
    defaults = {
        "target": "sm_90",
        "name": "x",
        "threads": 128,
        "registers": 64,
        "spills": 0,
        "shared": 1024,
        "outputs": 512,
        "macs": 4608,
        "passes": 1,
        "instructions": 200,
        "loop": counts,
        "loop_per_output": rates,
        "per_output": rates,
    }
    return Entry(**(defaults | fields))


def test_the_table_is_the_sample_and_nothing_in_it_spills():
    sample = [(t.name, c.name) for c, t in codegen.chosen(TARGETS, sample=True)]
    assert [(e.target, e.name) for e in RECORDED] == [
        (target.name, name)
        for target in TARGETS.values()
        for of, name in sample
        if of == target.name
    ], "run: python -m tricorr.perf codegen --sample --json perf/results/codegen.json"
    assert 100 <= len(RECORDED) <= 160
    assert set(BUILT) <= {f"{e.target} {e.name}" for e in RECORDED}
    for e in RECORDED:
        assert e.spills == 0, e.name
        assert e.registers <= TARGETS[e.target].device.limits.registers
        assert e.shared <= TARGETS[e.target].device.limits.shared
        assert e.per_output["all"] >= e.loop_per_output["all"]
        wants = configuration(e.name, e.target).wants_mma(TARGETS[e.target])
        assert bool(e.loop["mma"]) == wants, e.name


#: Limits of instructions for one output inside an image. An H200 issues 57 instructions while 8
#: bytes (float32) pass at 4.8 TB/s, and 28 while 4 bytes (bfloat16) pass. So 3x3 windows must stay
#: below these times, while 7x7 windows are bound by their own multiply-adds.
BUDGETS = {
    "float32-image3": 18,
    "bfloat16-image3": 20,
    "float32-image5": 36,
    "bfloat16-image5": 46,
    "float32-image7": 64,
}


@pytest.mark.parametrize("case", BUDGETS)
def test_an_output_inside_an_image_stays_within_the_time_of_its_memory(case):
    (found,) = [
        e
        for e in RECORDED
        if e.target == "sm_90" and re.fullmatch(rf"fprop_rows-[^-]+-{case}-interior", e.name)
    ]
    assert found.per_output["all"] <= BUDGETS[case]
    assert found.per_output["load"] <= 2
    assert found.spills == 0


@pytest.mark.parametrize("op", ["fprop", "wgrad"])
def test_rows_of_images_have_16_kb_of_loads_in_flight(op):
    """Memory delivers 12 KB to a multiprocessor of an H100 in a microsecond."""
    found = [
        e
        for e in RECORDED
        if re.fullmatch(rf"{op}_rows-.*-image[357]-interior", e.name)
        # Its code uses one of two rows before it loads the other again.
        if not e.name.startswith("fprop_rows-64x512x1x1-float32-image7")
    ]
    assert len(found) == 6 - (op == "fprop")
    for e in found:
        assert e.in_flight > 15.5 * 1024, e.name


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("fprop_rows-50x512x1x1-float32-image3-interior", "dram"),
        ("fprop_rows-32x1024x1x1-bfloat16-image3-interior", "dram"),
        ("fprop_rows-64x512x1x1-float32-image5-interior", "dram"),
        # 66 instructions, 58 of them multiply-adds; 28 would take as long as the memory traffic.
        ("fprop_rows-32x1024x1x1-bfloat16-image7-interior", "issue 2.2"),
        ("fprop_tma-half-4x8x8x128x64x1-bfloat16-dense", "arithmetic 6.2"),
        ("sum_partials-float32-narrow", ""),
    ],
)
def test_the_table_names_what_bounds_a_launch(name, bound):
    (found,) = [e for e in RECORDED if (e.target, e.name) == ("sm_90", name)]
    assert found.bound.startswith(bound) if bound else not found.bound


def test_the_bound_is_the_slowest_unit_by_the_rates_of_the_device():
    stencil = configuration("fprop_stencil-512x1-float32-image")
    device = TARGETS["sm_90"].device
    dram = 8 * 4096**2 / device.copy_rate  # one image is read and one written
    clocks = dram * device.rates.clock * device.multiprocessors
    for times in (0.5, 2):  # multiples of the lane instructions issued in that time
        lanes = times * clocks * device.rates.issue * 32
        per_thread = round(lanes / (4096**2 / 512) / 128)
        built = Build("fprop_stencil", "sm_90", 128, 40, 0, 0, {"IMAD": per_thread}, {})
        found = codegen.entry_of(stencil, TARGETS["sm_90"], built)
        if times < 1:
            assert found.bound == "dram"
        else:
            unit, factor = found.bound.split()
            assert unit == "issue"
            assert float(factor) == pytest.approx(times, rel=0.01)


def test_kernels_that_load_through_descriptors_leave_room_for_three_warpgroups():
    found = {
        e.name: e for e in RECORDED if re.match(r"[fd]\w+_tma-half", e.name) and e.target == "sm_90"
    }
    for name in ("dense", "dense-loop", "pointwise-loop"):
        largest = [n for n in found if re.search(rf"x128x64x1-bfloat16-{name}$", n)]
        assert any(found[n].outputs == 128 * 256 for n in largest), name
    for e in found.values():
        assert e.registers <= 168, e.name
        assert e.spills == 0, e.name
        assert e.loop["mma"], e.name


def test_calls_that_would_spill_have_a_register_limit(monkeypatch):
    call = configuration("fprop_stencil-512x1-float32-image").call()
    assert call.options["maxnreg"] == 168
    monkeypatch.setattr(torch.version, "hip", "6.2")  # its compiler does not have the option
    assert "maxnreg" not in call.options


def test_a_program_does_the_multiply_adds_that_its_code_has():
    for e in RECORDED:
        if e.loop["fma"] and not e.loop["mma"]:
            done = e.loop["fma"] * e.passes * e.threads
            assert done == pytest.approx(e.macs, rel=0.1), e.name


def test_counts_are_for_one_output():
    stencil = configuration("fprop_stencil-512x1-float32-image")
    built = Build(
        "fprop_stencil",
        "sm_90",
        threads=128,
        registers=40,
        spills=0,
        shared=0,
        opcodes={"FFMA": 12, "LDG": 15, "IMAD": 93, "STG": 4},
        loop={"FFMA": 12, "LDG": 12, "IMAD": 76},
    )
    found = codegen.entry_of(stencil, TARGETS["sm_90"], built)
    # 512 outputs by 128 threads, nine taps: 36 multiply-adds a thread, in three passes of twelve.
    assert (found.outputs, found.macs, found.passes) == (512, 512 * 9, 3)
    assert found.loop_per_output == {"all": 75.0, "load": 9.0, "fma": 9.0, "mma": 0.0}
    assert found.per_output["all"] == 75 + 24 / 4
    assert found.per_output["load"] == 9 + 3 / 4


def test_an_mma_counts_once_for_a_warp():
    gemm = configuration("fprop_gemm-half-64x64x32-bfloat16-dense")
    built = Build("fprop_gemm", "sm_90", 128, 80, 0, 0, {"HGMMA": 2}, {"HGMMA": 2})
    found = codegen.entry_of(gemm, TARGETS["sm_90"], built)
    steps = 9 * 64 // 32
    assert found.passes == steps
    assert found.per_output["mma"] == round(2 * steps * 4 / (64 * 64), 4)


#: Instructions in a loop, by kind.
LOOP = {"all": 100, "load": 4, "fma": 0, "mma": 4, **dict.fromkeys(MARKS, 1)}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"spills": 4}, "spills 4 bytes"),
        ({"registers": 73}, "73 registers, recorded 64"),
        ({"shared": 2048}, "shared memory"),
        ({"instructions": 211}, "211 instructions"),
        ({"per_output": {"all": 106.0}}, "106 instructions per output, recorded 100"),
        ({"in_flight": 15000}, "15000 bytes of loads in flight, recorded 16384"),
        ({"loop": {**LOOP, "mma": 0}}, "no matrix instructions in the loop any more"),
    ],
)
def test_regressions_are_found(fields, what):
    recorded = {"in_flight": 16384, "loop": LOOP}
    found = codegen.regressions(entry(**recorded), entry(**(recorded | fields)))
    assert len(found) == 1
    assert what in found[0]


def test_changes_within_the_margins_are_no_regressions():
    assert not codegen.regressions(entry(), entry(registers=72, instructions=209))
    assert not codegen.regressions(entry(spills=8), entry(registers=32, instructions=100))


@pytest.mark.parametrize("mark", MARKS)
def test_an_additional_mark_in_the_loop_is_a_regression(mark):
    found = codegen.regressions(entry(loop=LOOP), entry(loop=LOOP | {mark: 2}))
    assert found == [f"2 {MARKS[mark]} in the loop, recorded 1"]


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ("LDG.E.U16.CONSTANT R4, desc[UR4][R2.64]", "narrow"),
        ("LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", None),
        ("STG.E.S8 desc[UR4][R2.64], R8", "narrow"),
        ("HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR12], R24", "register"),
        ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12].tnspB, R24", None),
        ("WARPGROUP.DEPBAR.LE gsb0, 0x1", "wait"),
        ("WARPGROUP.ARRIVE", None),
    ],
)
def test_instructions_that_cost_more_are_marked(line, mark):
    opcode, operands = re.match(r"([A-Z]+)(.*)", line).groups()
    assert machine_code._mark(opcode, operands) == (f"_{mark}" if mark else "")


#: A loop whose 16 bytes and 2 bytes are used in the next pass, and whose 4 bytes at once.
LISTING = """
        /*0090*/                   LDG.E.128 R12, desc[UR4][R2.64] ;                  /* 0x1 */
                                                                                      /* 0x2 */
        /*00a0*/                   FFMA R6, R12, UR6, R6 ;                            /* 0x3 */
        /*00b0*/              @!P0 LDG.E.128 R12, desc[UR4][R2.64+0x10] ;             /* 0x4 */
        /*00c0*/                   LDG.E.U16.CONSTANT R16, desc[UR4][R2.64+0x20] ;    /* 0x5 */
        /*00d0*/                   LDG.E R5, desc[UR4][R2.64+0x22] ;                  /* 0x6 */
        /*00e0*/                   FADD R7, R7, R5 ;                                  /* 0x7 */
        /*00f0*/                   FFMA R9, R17, R8, R9 ;                             /* 0x8 */
        /*0100*/               @P1 BRA 0xa0 ;                                         /* 0x9 */
"""


@pytest.mark.parametrize(
    ("old", "new", "most"),
    [
        ("", "", 16 + 2 + 4),
        # Something names the last of the four registers before the next load is issued.
        ("R17, R8", "R15, R8", 16 + 2 + 4),
        ("LDG.E R5, desc[UR4][R2.64+0x22]", "FADD R5, R15, R5", 16 + 2),
        ("LDG.E R5, desc[UR4][R2.64+0x22]", "LDG.E.64 R16, desc[UR4][R2.64]", 16 + 8),
        # Everything is used before the next load.
        ("LDG.E.U16.CONSTANT R16, desc[UR4][R2.64+0x20]", "FADD R3, R13, R3", 16),
        # A copy to shared memory fills no register.
        ("LDG.E R5, desc[UR4][R2.64+0x22]", "LDGSTS.E [R5], desc[UR4][R2.64]", 16 + 2),
    ],
)
def test_bytes_in_flight_are_of_loads_that_no_instruction_has_used(old, new, most):
    loop = machine_code._hot_loop(machine_code.read_sass(LISTING.replace(old, new)))
    assert loop[0].position == 0xA0
    assert machine_code.bytes_in_flight(loop) == most


def test_programs_side_by_side_share_the_loads_in_flight():
    rows = configuration("fprop_rows-32x1024x1x1-bfloat16-image3-interior")
    built = Build("fprop_rows", "sm_90", 128, 72, 0, 0, {"FFMA": 9}, {"FFMA": 9}, in_flight=48)
    found = codegen.entry_of(rows, TARGETS["sm_90"], built).in_flight
    # Of two rows, 32 of 48 bytes are a lane's own. 512 programs: four on a multiprocessor.
    assert found == 32 * 128 * 4
    built = replace(built, registers=160)
    assert codegen.entry_of(rows, TARGETS["sm_90"], built).in_flight == 32 * 128 * 3


def test_a_product_of_copies_needs_a_proxy_fence_after_the_wait():
    wait, fence, product = (
        "cp.async.wait_group 2;",
        "fence.proxy.async.shared::cta;",
        "wgmma.mma_async",
    )
    for missing in ((wait, product, fence), (fence, wait, product, product)):
        assert machine_code._unfenced("\n".join(missing)) == missing.count(product)
    assert machine_code._unfenced("\n".join((wait, fence, product, product))) == 0


def test_registers_of_a_product_in_flight_are_not_written():
    load, other = "ldmatrix.x4 {%r8, %r9}, [%r1];", "@%p1 ld.shared.b32 %r7, [%r9];"
    left = "wgmma.mma_async.f32 {%f1, %f2}, {%r8,%r9}, %rd1, 1;"
    right = "wgmma.mma_async.f32 {%f1, %f2}, {%r7}, %rd1, 1;"
    shared = "wgmma.mma_async.f32 {%f1, %f2}, %rd2, %rd1, 1;"
    commit, jump = "wgmma.commit_group.sync.aligned;", "@%p1 bra $L__BB0_1;"

    def wait(groups):
        return f"wgmma.wait_group.sync.aligned {groups};"

    def count(*lines):
        return machine_code._overwritten("\n".join(("$L__BB0_1:", *lines, jump)))

    assert count(load, left, commit) == count(load, wait(0), left, commit) == 1
    assert count(load, left, commit, wait(1)) == count(load, left, wait(0)) == 1
    assert count(load, left, commit, wait(0)) == count(wait(0), load, left, commit) == 0
    assert count(load, shared, commit) == 0
    # Two sets of registers: each is loaded while products of the other run.
    load = "// begin inline asm\n" + load
    turns = (load, left, commit, wait(1), other, right, commit)
    assert count(*turns, wait(1)) == count(*turns, shared, commit, wait(2)) == 0
    assert count(*turns, wait(2)) == count(load, left, commit, other, right, commit, load) == 1
    assert machine_code._overwritten("\n".join((load, left, commit, load))) == 0  # no loop


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"serialized": "wgmma.mma_async instructions are serialized"}, "every product is waited"),
        ({"unfenced": 2}, "2 products of copies"),
        ({"overwritten": 1}, "in flight are overwritten"),
        ({"product": 0}, "no matrix instructions"),
        ({"load through a descriptor": 0}, "no loads through tensor descriptors"),
        ({"left operand in registers": 12}, "go through registers"),
        ({"mma.sync": 12}, "go through registers"),
    ],
    ids=str,
)
def test_faults_of_a_kernel_of_descriptors(fault, problem):
    units = {"product": 12, "load through a descriptor": 4}
    units = dict.fromkeys(machine_code.UNITS, 0) | units
    fields = {name: fault[name] for name in fault if name not in units}
    right = Build("fprop_tma", "sm_90", 128, 150, 0, 1024, units=units)
    wrong = replace(right, units=units | {k: fault[k] for k in fault if k in units}, **fields)
    made = configuration("fprop_tma-half-4x8x8x128x64x1-bfloat16-dense")
    assert not codegen.problems(made, TARGETS["sm_90"], right)
    (found,) = codegen.problems(made, TARGETS["sm_90"], wrong)
    assert problem in found


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1}, {%r1}", "product, mma.sync"),
        ("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%f1}, %rd1, %rd2", "product"),
        (
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%f1,%f2}, {%r1,%r2}, %rd2",
            "product, left operand in registers",
        ),
        ("tcgen05.mma.cta_group::1.kind::tf32 [ %r544 + 0 ], %rd11", "product"),
        ("v_mfma_f32_32x32x8_f16 a[0:15], v[2:3]", "product"),
        (
            "cp.async.bulk.tensor.4d.shared::cta.global.mbarrier::complete_tx::bytes",
            "load through a descriptor",
        ),
        ("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group", ""),
    ],
)
def test_units_are_told_apart_in_a_compilers_text(line, kinds):
    found = [kind for kind, pattern in machine_code.UNITS.items() if re.search(pattern, line)]
    assert ", ".join(found) == kinds


def test_a_table_survives_being_written(tmp_path):
    path = tmp_path / "deep" / "table.json"
    codegen.write_table([entry(), entry(name="y")], path)
    assert codegen.read_table(path) == (TRITON, [entry(), entry(name="y")])


def test_tables_of_another_triton_are_not_compared(tmp_path, capsys, monkeypatch):
    codegen.write_table([entry()], tmp_path / "t.json")
    monkeypatch.setattr(codegen, "version", lambda package: "0.0")
    assert codegen.compare(tmp_path / "t.json") == 2
    assert "not compared" in capsys.readouterr().out


def test_a_removed_kernel_must_be_recorded_again(tmp_path, capsys):
    codegen.write_table([entry(name="fprop_gone")], tmp_path / "t.json")
    assert codegen.compare(tmp_path / "t.json") == 1
    assert "fprop_gone: not a configuration any more" in capsys.readouterr().out


def test_a_target_after_check_is_no_file(monkeypatch):
    asked = []
    monkeypatch.setattr(codegen, "compare", lambda *given: asked.append(given) or 0)
    parser = argparse.ArgumentParser()
    codegen.add_arguments(parser)
    for given in (["--check", "sm_90", "sm_100"], ["sm_90", "sm_100", "--check"]):
        assert codegen.main(parser.parse_args(given)) == 0
    assert asked == [(codegen.committed(), "", ["sm_90", "sm_100"])] * 2


@pytest.mark.aot
@pytest.mark.skipif(
    TRITON != VERSION, reason=f"the table was recorded with Triton {VERSION}, this is {TRITON}"
)
def test_no_kernel_got_worse_than_recorded(tmp_path):
    chosen = [e for e in COMMITTED if f"{e.target} {e.name}" in BUILT]
    codegen.write_table(chosen, tmp_path / "table.json")
    ran = run("--check", tmp_path / "table.json")
    if "no cuobjdump" in ran.stdout + ran.stderr:
        pytest.skip("this triton has no cuobjdump")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(BUILT)} compared" in ran.stdout


@pytest.mark.aot
@pytest.mark.skipif(TRITON != VERSION, reason="recorded with another Triton")
def test_a_regression_fails_the_command(tmp_path):
    better = next(e for e in COMMITTED if e.name == "fprop_stencil-512x1-float32-image")
    better = replace(better, target="sm_90", instructions=better.instructions // 2)
    codegen.write_table([better], tmp_path / "table.json")
    ran = run("--check", tmp_path / "table.json")
    if "no cuobjdump" in ran.stdout + ran.stderr:
        pytest.skip("this triton has no cuobjdump")
    assert ran.returncode == 1
    assert "instructions, recorded" in ran.stdout
