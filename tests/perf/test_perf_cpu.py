"""cpu: known times give known ratios, rows are written, and the documentation shows the rows."""

import argparse
import re
from pathlib import Path

import pytest

from tricorr.perf import rows
from tricorr.perf.benchmarks import cpu

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "perf" / "results" / "cpu.jsonl"


class Clock:
    """A process's time that advances only in calls."""

    def __init__(self):
        self.now = 0.0

    def takes(self, seconds):
        def call():
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cpu.time, "process_time", lambda: clock.now)
    monkeypatch.setattr(cpu.time, "perf_counter", lambda: clock.now)
    return clock


def test_ratios_are_those_to_the_fastest_peer_and_to_opencv(clock, tmp_path):
    peers = {"scipy": clock.takes(0.2), "kornia": clock.takes(0.1), "opencv": clock.takes(0.01)}
    timed = cpu.measure(cpu.Line("blur", "filter", clock.takes(0.05), peers), 2.0)
    assert timed.best() == "kornia"
    assert timed.ratio("kornia") == pytest.approx(0.5)
    assert timed.ratio("opencv") == pytest.approx(5)
    assert "kornia" in cpu.table("filters", [timed])[2]
    cpu.write(timed, tmp_path / "rows.jsonl")
    found = {row.provider: row for row in rows.read(tmp_path / "rows.jsonl")}
    assert found["tricorr"].ms == pytest.approx(50)
    assert found["scipy"].ratio_to == pytest.approx(4)


def test_the_worst_line_stands_first(clock):
    lines = [
        cpu.Line(name, "call", clock.takes(ours), {"pytorch": clock.takes(0.1)})
        for name, ours in (("good", 0.05), ("bad", 0.3), ("even", 0.1))
    ]
    printed = cpu.table("calls", [cpu.measure(line, 1.0) for line in lines])
    assert [line.split()[0] for line in printed[2:-1]] == ["bad", "even", "good"]


def test_the_command_measures_only_the_named_lines(capsys, tmp_path):
    parser = argparse.ArgumentParser()
    cpu.add_arguments(parser)
    out = tmp_path / "rows.jsonl"
    options = parser.parse_args(["tiny-2d", "--seconds", "0.01", "--out", str(out)])
    assert cpu.main(options) == 0
    assert "tiny-2d" in capsys.readouterr().out
    assert {row.provider for row in rows.read(out)} == {"tricorr", "pytorch"}


def test_the_documentation_shows_the_rows_on_file():
    found = rows.read(RESULTS)
    ours = {(r.workload, r.op, r.dtype, r.format): r for r in found if r.provider == "tricorr"}
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([\w.-]+)`, (\w+), (\w+), (\w+) \| ([\d.]+) \|", text, re.M)
    assert len(shown) > 20
    for *key, ms in shown:
        assert f"{ours[tuple(key)].ms:.3g}" == f"{float(ms):.3g}"
    # Peers that need less than 1 / 1.15 of tricorr's time are shown too, besides OpenCV.
    lost = [r for r in found if r.provider not in ("tricorr", "opencv") and r.ratio_to < 1 / 1.15]
    assert {tuple(key) for *key, _ in shown} >= {
        (r.workload, r.op, r.dtype, r.format) for r in lost
    }
