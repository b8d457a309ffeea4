"""report: its text follows from the rows.

tests/data/rows.jsonl has the form of real results; every number in it is made up.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tricorr.perf import report
from tricorr.perf.compared import geomean, processors
from tricorr.perf.rows import Row, read
from tricorr.perf.targets import Verdict, times_over_zeros, verdicts

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent.parent / "data" / "rows.jsonl"
WORKLOAD = "resnet50-64x56x56-64-3x3"


def row(provider="tricorr", ms=1.0, **fields):
    defaults = {
        "workload": WORKLOAD,
        "suite": "resnet50",
        "op": "fprop",
        "dtype": "bfloat16",
        "format": "NCHW",
        "cache": "cold",
        "status": "ok",
        "note": "",
        "kind": "gpu",
        "device": "a GPU",
        "time": "2026-01-01T00:00:00Z",
        "revision": "1",
        "torch": "0",
        "tricorr": "0",
    }
    return Row(**{**defaults, "provider": provider, "ms": ms, **fields})


def run(*arguments):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.main(parser.parse_args([str(a) for a in arguments]))


def cases(*rows):
    (processor,) = processors(rows)
    return processor.cases()


def test_the_test_rows_are_marked_as_invented():
    for found in read(RECORDED):
        assert "made up" in found.note
        assert found.device.startswith("test ")


def test_the_best_peer_is_the_fastest_in_either_format():
    (case,) = cases(
        row(),
        row("pytorch", 2.0, ratio_to=2.1),
        row("pytorch", 0.9, format="channels_last"),
        row("kornia", 1.5, ratio_to=1.4),
    )
    assert case.best.format == "channels_last"
    assert case.ratio == pytest.approx(0.9)
    assert case.ratio_in("NCHW") == pytest.approx(1.4)


def test_ratios_within_turns_decide_in_the_same_format():
    (case,) = cases(row(), row("pytorch", 2.0, ratio_to=2.5))
    assert case.ratio == 2.5


def test_cases_need_a_tricorr_row_and_a_correct_peer():
    found = cases(
        row(),
        row("pytorch", None, status="wrong", note="x"),
        row("kornia", None, status="failed", note="x"),
        row("pytorch", 1.0, op="wgrad"),
        row("tricorr@abc", 0.5),
    )
    assert [(c.ours.op, c.best, c.ratio) for c in found] == [("fprop", None, None)]


def test_a_later_row_replaces_an_earlier_one_of_another_revision():
    (case,) = cases(row(ms=5.0, time="2026-02-01T00:00:00Z", revision="2"), row(ms=1.0))
    assert case.ours.ms == 5.0


def test_gpu_and_cpu_rows_are_not_compared():
    rows = [
        row(ms=1.0),
        row("pytorch", 0.5, kind="cpu", device="a CPU", cache="warm"),
        row(ms=4.0, kind="cpu", device="a CPU", cache="warm"),
    ]
    gpu, cpu = processors(rows)
    assert (gpu.kind, cpu.kind) == ("gpu", "cpu")
    assert [c.ratio for c in gpu.cases()] == [None]
    assert [c.ratio for c in cpu.cases()] == [0.125]
    text = report.page(rows)
    assert text.index("## a GPU") < text.index("## CPU: a CPU")
    assert "No kernel of ours runs here" in text
    assert text.count("### Targets") == 1


def test_losses_come_first_and_the_worst_of_them_leads():
    text = report.page(read(RECORDED))
    gpu = text[: text.index("## CPU")]
    assert gpu.index("### Wrong results") < gpu.index("### Targets") < gpu.index("### Losses first")
    table = gpu[gpu.index("### Losses first") :]
    losses = [float(r) for r in re.findall(r"\| \*\*~?([\d.]+)\*\* \|", table)]
    assert losses == sorted(losses)
    assert max(losses) < 1
    count = int(re.search(r"### Losses first: ours is slower in (\d+) of", table)[1])
    assert count == len(losses) > 5
    ratios = [c.ratio for c in processors(read(RECORDED))[0].cases() if c.ratio is not None]
    assert ratios == sorted(ratios)  # wins follow, the largest last


def test_rows_without_a_time_are_listed_with_the_reason():
    text = report.page(read(RECORDED))
    assert "### Wrong results: 1" in text
    assert "(error 0.3, bound 0.004)" in text
    assert "out of memory / asked for 12 GiB" in text
    assert re.search(r"- flaggems: flag_gems is not installed .*\(2 rows\)", text)


def test_every_table_is_valid_markdown():
    for block in re.findall(r"(?:^\|.*\n)+", report.page(read(RECORDED)), re.MULTILINE):
        columns = {line.count("|") for line in block.splitlines()}
        assert len(columns) == 1, block


def test_learning_rows_show_memory():
    learned = row("tricorr-cg", 2.0, workload="learn-64x64-3x3", op="learn", peak_bytes=3_500_000)
    text = report.page([learned])
    assert re.search(r"\| learn-64x64-3x3 \| tricorr-cg \|.*\| 3\.5 \|\n", text)
    assert "cold cache" not in text  # nothing was measured with one


def test_means_are_geometric():
    assert geomean([4.0, 1.0, None]) == pytest.approx(2.0)
    assert geomean([]) is None


def test_targets_are_met_missed_or_not_measured():
    rows = [row(), row("pytorch", 2.0, ratio_to=2.0)]
    (processor,) = processors(rows)
    found = {(v.regime, v.what): v for v in verdicts(processor)}
    dense = "dense 16-bit networks, all passes"
    assert found[dense, "geomean vs best peer"].outcome == "met"
    slow = [row(), row("pytorch", 0.5, ratio_to=0.5)]
    (processor,) = processors(slow)
    again = {(v.regime, v.what): v for v in verdicts(processor)}
    assert again[dense, "worst vs best peer"].outcome == "**missed**"
    assert again["KernelBench level 1", "geomean vs best peer"].outcome == "not measured"


def test_an_upper_limit_is_met_below_and_missed_above():
    assert Verdict("r", "w", 1.0, 1.2, at_most=True).outcome == "met"
    assert Verdict("r", "w", 1.3, 1.2, at_most=True).outcome == "**missed**"


def test_an_unknown_workload_has_a_row_and_no_target():
    rows = [row(workload="gone", suite="old"), row("pytorch", 2.0, workload="gone", suite="old")]
    assert "| gone |" in report.page(rows)
    (processor,) = processors(rows)
    assert all(v.measured is None for v in verdicts(processor))


def test_throttled_rows_are_marked():
    text = report.page([row(throttle="0x0000000000000008"), row("pytorch", throttle="0x1")])
    assert "clocks were held back during 1 of 2 rows" in text


def test_the_command_writes_a_page(tmp_path, capsys):
    assert run(RECORDED.parent, "--out", tmp_path) == 0
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == report.page(read(RECORDED))
    assert "140 rows" in capsys.readouterr().out


def test_a_missing_directory_is_an_error_and_an_empty_one_is_not(tmp_path, capsys):
    assert run(tmp_path) == 0
    assert "no rows" in capsys.readouterr().out
    assert run(tmp_path / "nothing") == 2


def test_readme_agrees_with_the_committed_rows():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.with_section(readme, report.readme_section()) == readme, (
        "run: python -m tricorr.perf report --readme"
    )


def test_readme_without_gpu_rows_claims_nothing(tmp_path):
    section = report.readme_section(tmp_path)
    assert "Nothing has been measured on a GPU yet" in section
    assert not re.search(r"\d\s*(x|times) (faster|the speed)", section)
    cpu = [replace(r, note="") for r in read(RECORDED) if r.kind == "cpu"]
    (tmp_path / "rows.jsonl").write_text("".join(report_line(r) for r in cpu), encoding="utf-8")
    section = report.readme_section(tmp_path)
    assert "Nothing has been measured on a GPU yet" in section
    assert f"{len(cpu)} rows of CPU times" in section


def report_line(found):
    from tricorr.perf.rows import to_json

    return to_json(found) + "\n"


def test_readme_with_gpu_rows_leads_with_losses():
    section = report.readme_section(RECORDED.parent)
    assert "Nothing has been measured" not in section
    assert "slower than the best peer in **19**" in section
    assert section.index("slower than") < section.index("| regime |")


def test_a_section_is_replaced_between_its_markers():
    section = f"{report.START}\nnew\n{report.END}"
    text = f"# a\n\n{report.START}\nold\n{report.END}\n\n## b\n"
    replaced = report.with_section(text, section)
    assert replaced == f"# a\n\n{section}\n\n## b\n"
    assert report.with_section(replaced, section) == replaced
    with pytest.raises(ValueError, match="no <!-- performance"):
        report.with_section("# a\n", section)


def test_a_padding_mode_is_held_against_zeros_in_its_own_dtype():
    image = {"suite": "images", "copy_gbps": 1.0, "gbps": 1.0}
    zeros, mode = "images-4096-3x3", "images-4096-3x3-reflect"
    (processor,) = processors(
        [
            row(ms=2.0, workload=zeros, dtype="float32", **image),
            row(ms=1.0, workload=zeros, **image),
            row(ms=2.2, workload=mode, dtype="float32", **image),
            row("pytorch", 5.5, workload=mode, dtype="float32", ratio_to=2.5, **image),
            row(ms=9.0, workload="images-4096-7x7-reflect", **image),  # has no row with zeros
        ]
    )
    assert times_over_zeros(processor.cases()) == [pytest.approx(1.1)]
    found = {(v.regime, v.asked): v for v in verdicts(processor)}
    assert found["padding modes", 1.02].outcome == "**missed**"
    assert found["padding modes", 2.0].measured == pytest.approx(2.5)
    assert found["padding modes", 2.0].outcome == "met"
    assert found["bias and activation in the epilogue", 1.15].outcome == "not measured"
