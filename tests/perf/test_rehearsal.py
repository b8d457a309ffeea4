"""The command `gpu`, rehearsed on a fake GPU.

Every process, limit, file and decision is real. Results are computed by PyTorch on CPU, and times
are the static model's with two per cent of noise, on a device whose L2 is slower than assumed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import fake_gpu
import pytest

from tricorr.ops.plan import measured
from tricorr.perf import rows
from tricorr.perf.session import run, stages
from tricorr.perf.session.processes import Child, ProcessError
from tricorr.perf.session.tasks import tasks_of

WRONG, HANGING = ("fprop_rows", "bfloat16"), ("wgrad_rows", "bfloat16")
FAILING, SLOW = ("dgrad_gemm", "bfloat16"), "tma"
NAMES = ("resnet50-64x56x56-64-3x3", "resnet50-256x14x14-256-3x3", "convnext-t-96x56x56-96-7x7")
RIG = fake_gpu.FakeGpu(
    names=NAMES,
    wrong=WRONG,
    hanging=HANGING,
    failing=FAILING,
    slow=SLOW,
    only=(WRONG, HANGING, FAILING, ("fprop_gemm", "bfloat16"), ("wgrad_tma", "bfloat16")),
)
#: Far more than a run takes, so that it ends with its work, also on a busy machine.
SECONDS = 200.0


def tasks():
    found = tasks_of("gpu", names=NAMES, dtypes=["bfloat16"])
    small = [
        replace(task, job=replace(task.job, workload=RIG.workload(task.name))) for task in found
    ]
    return [task for task in small if task.group == "core"]


def a_run(out, seconds=SECONDS, rig=RIG, **options):
    said = []
    started = run.Run(
        rig, out, seconds, tasks=tasks(), peers=("pytorch",), say=said.append, **options
    )
    start = time.monotonic()
    stages.carry_out(started)
    return started, "\n".join(said), time.monotonic() - start


def test_a_run_reports_wrong_kernels_calibrates_and_resumes(tmp_path):
    """One test, because a run takes long. The functions below check its parts."""
    done, said, _ = a_run(tmp_path)
    faults_are_named_and_their_calls_take_other_kernels(tmp_path, done, said)
    feedback_changes_the_plans_that_it_should(tmp_path, done, said)
    a_second_call_goes_on_where_the_first_stopped(tmp_path)


def faults_are_named_and_their_calls_take_other_kernels(out, done, said):
    text = (out / "report.md").read_text(encoding="utf-8")
    assert set(done.off) == {WRONG, HANGING, FAILING}
    for kernel, why in ((WRONG, "is above"), (HANGING, "hangs"), (FAILING, "does not compile")):
        line = next(line for line in text.splitlines() if line.startswith(f"  {kernel[0]} bfl"))
        assert why in line
    assert re.search(r"^tma +takes (2\.9|3\.0)", text, re.MULTILINE)
    assert text.count("FAR FROM THE MODEL") == 1
    recorded = rows.read(out / rows.FILE)
    right = [row for row in recorded if (row.status, row.dtype) == ("ok", "bfloat16")]
    ours = [row for row in right if row.provider == "tricorr"]
    jobs = [task.job for task in tasks()]
    assert {(row.workload, row.op, row.format) for row in ours} >= {
        (job.workload.name, job.op, f) for job in jobs for f in job.workload.formats
    }
    assert not {row.plan.split()[0] for row in ours} & {WRONG[0], HANGING[0], FAILING[0]}
    assert said.index("kernels off: 3") < said.index("slower in ")


def feedback_changes_the_plans_that_it_should(out, done, said):
    file = json.loads((out / "calibration.json").read_text())
    found = measured.parse(file)
    assert found.slowdown(SLOW) == pytest.approx(3, rel=0.05)
    assert found.slowdown("gemm") == pytest.approx(1, rel=0.05)
    assert found.l2 == fake_gpu.CEILINGS.l2
    changed = [(c["was"].split()[0], c["now"].split()[0]) for c in file["changes"]]
    assert any(was.endswith(SLOW) and not now.endswith(SLOW) for was, now in changed)
    assert all(was.endswith(SLOW) or not now.endswith(SLOW) for was, now in changed)
    won = [(outcome.base.family, outcome.best.family) for outcome in done.outcomes if outcome.best]
    assert any(base == SLOW != best for base, best in won)  # a search crosses families
    assert not {(o.base.kernel, o.job.dtype) for o in done.outcomes} & set(done.off)
    assert not re.search("search of .* took more than", said)
    assert all(base == SLOW or best != SLOW for base, best in won)


def a_second_call_goes_on_where_the_first_stopped(out):
    before = rows.read(out / rows.FILE)
    checked = (out / "checks.jsonl").read_text()
    missing = (NAMES[1], "fprop")
    kept = [row for row in before if (row.workload, row.op) != missing]
    (out / rows.FILE).write_text("".join(rows.to_json(row) + "\n" for row in kept))
    again, _, _ = a_run(out)
    new = again.recorded[len(kept) :]
    assert {(row.workload, row.op) for row in new} == {missing}
    assert set(again.off) == {WRONG, HANGING, FAILING}
    assert (out / "checks.jsonl").read_text() == checked
    assert not again.outcomes


def test_the_budget_is_kept(tmp_path):
    done, _, seconds = a_run(tmp_path, seconds=5.0)
    assert seconds < 5 + 15
    assert (tmp_path / "report.md").exists()
    assert done.left


def test_a_process_that_hangs_is_ended_with_what_it_started(tmp_path):
    child = Child(tmp_path / "log", hang, tmp_path / "pid")
    child.ask("anything")
    with pytest.raises(ProcessError, match=r"took more than [\d.]+ s") as error:
        child.answer(time.monotonic() + 5)
    assert error.value.timed_out
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} is still there")


def hang(connection, file):
    connection.recv()
    with subprocess.Popen(["sleep", "60"]) as started:
        file.write_text(str(started.pid))
        started.wait()


def test_a_process_that_ends_says_how(tmp_path):
    child = Child(tmp_path / "log", crash)
    child.ask("anything")
    with pytest.raises(ProcessError, match=r"exit code 7"):
        child.answer(time.monotonic() + 30)
    assert "here" in (tmp_path / "log").read_text()


def crash(connection):
    connection.recv()
    print("here", flush=True)
    os._exit(7)
