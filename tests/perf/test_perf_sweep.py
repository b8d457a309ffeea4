"""The sweep of planned calls: its estimates, classes and ranges."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from tricorr.ops import geometry_of
from tricorr.ops.plan.device import DEVICES
from tricorr.perf import rows
from tricorr.perf.model import sweep

ROOT = Path(sweep.__file__).resolve().parents[2]
H100 = replace(DEVICES["h100"], measured=None)


def test_an_estimate_is_divided_by_a_launch_and_the_roofline():
    pointwise = geometry_of((64, 64, 56, 56), (256, 64, 1, 1))  # nearly a copy
    found = sweep.estimate(pointwise, "fprop", "bfloat16", "channels_last", H100)
    moved = pointwise.compulsory_bytes(2, 2, 2) / H100.copy_rate
    assert found.ratio == pytest.approx(found.us * 1e-6 / (H100.launch_seconds + moved))
    assert 1 <= found.ratio < 1.4


def test_classes_follow_the_channels():
    kinds = {
        (64, 64, 1): "ordinary",
        (67, 71, 1): "odd channels",
        (3, 64, 1): "few channels",
        (64, 64, 64): "depthwise",
        (256, 256, 8): "grouped, ordinary",
        (96, 96, 8): "grouped, few channels",
    }
    for (c, k, groups), kind in kinds.items():
        g = geometry_of((1, c, 8, 8), (k, c // groups, 1, 1), groups=groups)
        assert sweep.kind_of(g) == kind


def test_the_sweep_covers_its_ranges_and_is_repeatable(capsys, monkeypatch):
    shapes = list(sweep.geometries())
    assert {g.H for g in shapes} == set(sweep.SIZES)
    assert {g.R for g in shapes} >= {1, 3, 31}
    assert {g.stride[0] for g in shapes} == {1, 2, 3, 4}
    assert {max(g.C, g.K) for g in shapes} >= {1, 2048}
    monkeypatch.setattr(sweep, "SAMPLE", 60)
    printed = []
    for _ in range(2):
        parser = argparse.ArgumentParser()
        sweep.add_arguments(parser)
        assert sweep.main(parser.parse_args(["--worst", "3", "--above", "5"])) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    worst = [line for line in printed[0].partition("the worst")[2].splitlines()[1:] if line]
    ratios = [float(line.split()[0]) for line in worst]
    assert len(worst) == 3
    assert ratios == sorted(ratios, reverse=True)
    assert all(float(line.split()[1]) > 5 for line in worst)


def _row(provider, ms, workload="resnet50-64x56x56-64-3x3", time="2026-01-01", **other):
    known = {"op": "fprop", "dtype": "bfloat16", "format": "NCHW", "cache": "cold", "kind": "gpu"}
    known |= {"suite": "", "status": "ok", "note": "", "device": "H100", "roofline_fraction": 1e-3}
    known |= dict.fromkeys(("revision", "torch", "tricorr"), "")
    row = {"workload": workload, "provider": provider, "ms": ms, "time": time}
    return rows.Row(**(known | row | other))


def test_measured_times_are_divided_by_the_floor_that_the_row_has():
    launch = H100.launch_seconds * 1e3
    found = [
        _row("tricorr", 9.0),
        _row("tricorr", 4.0, time="2026-01-02"),  # measured again
        _row("tricorr@gemm", 1.0),  # not the planner's
        _row("pytorch", 2.0),  # a floor of 2 us and a launch
        _row("pytorch", 1.0, format="channels_last"),  # in another format
        _row("torch.compile", 0.1),
        _row("tricorr", 1.0, op="dgrad"),  # without cuDNN's
    ]
    head, _, line = sweep.measured(found, H100)
    floor = launch + 2e-3
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["ordinary, bfloat16, NCHW", "1"]
    assert cells[2:4] == [f"{2 / floor:.2f}"] * 2
    assert cells[4:6] == [f"{4 / floor:.2f}"] * 2
    assert cells[6] == "1"
    assert head.count("|") == line.count("|")
    with pytest.raises(ValueError, match="expected rows of a GPU by both"):
        list(sweep.measured([replace(row, kind="cpu") for row in found], H100))


def test_the_percentile_is_the_nearest_rank():
    assert sweep.percentile_95([3.0]) == 3
    assert sweep.percentile_95([2.0, 1.0]) == 2
    assert sweep.percentile_95(range(1, 101)) == 95


def test_the_documentation_has_the_table_of_the_rows_on_file(capsys):
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    files = sorted(map(str, (ROOT / "perf" / "results").glob("gpu-h100-*.jsonl")))
    assert sweep.main(parser.parse_args(["--rows", *files])) == 0
    assert capsys.readouterr().out in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
