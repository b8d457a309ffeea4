"""profile: the table of ncu is read in any unit, and boiled down against the model.

tests/data/ncu.csv has the form of Nsight Compute's output; its numbers are made up.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from tricorr.ops.plan.choose import DEVICES
from tricorr.perf import profiling
from tricorr.perf.workloads import find

RECORDED = Path(__file__).parent.parent / "data" / "ncu.csv"
WORKLOAD = "images-4096-7x7"


def run(*arguments):
    parser = argparse.ArgumentParser()
    profiling.add_arguments(parser)
    return profiling.main(parser.parse_args(arguments))


def test_the_table_is_read_whatever_stands_around_it():
    profile = profiling.parse(RECORDED.read_text(encoding="utf-8"))
    assert profile.kernel == "fprop_stencil"
    assert profile.values["dram_read"] == 68_157_440
    assert profile.values["dram_write"] == pytest.approx(66.06e6)
    assert profile.values["time"] == pytest.approx(1e-4)
    assert profile.values["registers"] == 48
    assert "tensor_busy" not in profile.values, "n/a is no number"
    assert list(profile.stalls) == ["wait", "long_scoreboard"]


@pytest.mark.parametrize("text", ["", "==ERROR== no permission\n", '"ID","Metric Name"\n'])
def test_output_without_a_table_is_refused_with_a_reason(text):
    with pytest.raises(ValueError, match="ncu"):
        profiling.parse(text)


def test_a_recorded_launch_is_held_against_the_model(capsys):
    assert run(WORKLOAD, "--dtype", "float32", "--csv", str(RECORDED)) == 0
    text = capsys.readouterr().out
    assert "device memory    134.2 MB, the model says 134.2: 1.00 times that" in text
    assert "at 1,342 GB/s, 28 % of its peak" in text
    assert "issue 81 %" in text
    assert "fixed latency of the instruction before 5.2, global loads 3.5" in text


def test_json_has_both(capsys):
    assert run(WORKLOAD, "--dtype", "float32", "--csv", str(RECORDED), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["profile"]["kernel"] == "fprop_stencil"
    assert found["model"]["workload"] == WORKLOAD


def test_what_is_missing_is_said_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(WORKLOAD) == 1
    assert capsys.readouterr().out == ("profiling needs an NVIDIA GPU: PyTorch finds none here\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(profiling.shutil, "which", lambda name: None)
    assert run(WORKLOAD) == 1
    assert "no ncu on the PATH" in capsys.readouterr().out


def test_unknown_names_are_refused(capsys):
    assert run("nothing") == 2
    assert run(WORKLOAD, "--device", "abacus") == 2
    assert "abacus" in capsys.readouterr().out


def test_the_command_leaves_the_clocks_alone_and_takes_one_warm_launch():
    line = profiling.command(["python", "child"], "fprop_gemm")
    assert line[line.index("--clock-control") + 1] == "none"
    assert line[line.index("--launch-count") + 1] == "1"
    assert int(line[line.index("--launch-skip") + 1]) == profiling.WARM
    assert line[line.index("--kernel-name") + 1] == "regex:^fprop_gemm$"
    assert line[-2:] == ["python", "child"]


def test_ncu_is_run_around_the_workload(monkeypatch, capsys):
    lines = []

    def ncu(line, **_):
        lines.append(line)
        return argparse.Namespace(returncode=0, stdout=RECORDED.read_text(), stderr="")

    monkeypatch.setattr(profiling, "obstacle", lambda: None)
    monkeypatch.setattr(profiling.subprocess, "run", ncu)
    assert run(WORKLOAD, "--op", "fprop", "--dtype", "float32") == 0
    child = lines[0][lines[0].index("tricorr.perf.profiling") :]
    assert child[1] == WORKLOAD
    assert " ".join(child[2:]) == "--launch --op fprop --dtype float32 --format NCHW"
    plan_kernel = profiling._expected(
        find(WORKLOAD), "fprop", "float32", "NCHW", DEVICES["h200"]
    ).kernel
    assert f"regex:^{plan_kernel}$" in lines[0]


def test_metrics_that_this_gpu_does_not_have_are_left_out(monkeypatch):
    lacking = profiling.METRICS["tensor_busy"]
    asked = []

    def ncu(line, **_):
        asked.append(line[line.index("--metrics") + 1].split(","))
        if lacking in asked[-1]:
            text = f"==ERROR== Failed to find metric {lacking}\n"
            return argparse.Namespace(returncode=1, stdout=text, stderr="")
        return argparse.Namespace(returncode=0, stdout=RECORDED.read_text(), stderr="")

    monkeypatch.setattr(profiling.subprocess, "run", ncu)
    code, text = profiling.run_ncu(["child"], "fprop_stencil")
    assert code == 0
    assert profiling.parse(text).kernel == "fprop_stencil"
    assert [lacking in metrics for metrics in asked] == [True, False]
    assert len(asked[1]) == len(profiling.ASKED) - 1


def test_any_other_failure_is_passed_on(monkeypatch):
    def ncu(line, **_):
        text = "==ERROR== ERR_NVGPUCTRPERM - no permission"
        return argparse.Namespace(returncode=9, stdout="", stderr=text)

    monkeypatch.setattr(profiling.subprocess, "run", ncu)
    code, text = profiling.run_ncu(["child"], "fprop_stencil")
    assert code == 9
    assert "ERR_NVGPUCTRPERM" in text
