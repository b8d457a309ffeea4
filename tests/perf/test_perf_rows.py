"""The schema of rows: rows are read back as written, and wrong fields are refused by name."""

import dataclasses
import json
from pathlib import Path

import pytest

from tricorr.perf import rows
from tricorr.perf.rows import Row, RowError

ROOT = Path(__file__).resolve().parents[2]
ROW = Row(
    workload="resnet50-64x56x56-64-3x3",
    suite="resnet50",
    op="fprop",
    dtype="bfloat16",
    format="channels_last",
    provider="pytorch",
    cache="cold",
    status="ok",
    note="",
    kind="gpu",
    device="NVIDIA H200",
    time="2026-01-02T03:04:05+00:00",
    revision="0123456789ab",
    torch="2.11.0",
    tricorr="0.1.0",
    ms=0.031,
    ms_low=0.030,
    ms_high=0.033,
    samples=20,
    ratio_to=1.1,
    ratio_low=1.0,
    ratio_high=1.2,
)


def test_a_row_is_read_back_as_it_was_written():
    line = rows.to_json(ROW)
    assert "\n" not in line
    assert rows.from_json(line) == ROW
    assert "sm_clock" not in json.loads(line)  # unknown is left out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("op", "forward"),
        ("dtype", "fp32"),
        ("format", "NHWC"),
        ("cache", "hot"),
        ("status", "fine"),
        ("kind", "tpu"),
        ("workload", ""),
        ("provider", None),
        ("ms", "0.1"),
        ("ms", None),
        ("ms", 0.0),
        ("ms", float("nan")),
        ("ms", True),
        ("tflops", -1.0),
        ("tflops", float("inf")),
        ("samples", 1.5),
        ("ms_low", 1.0),
        ("ratio_high", 0.5),
        ("revision", ""),
    ],
)
def test_a_wrong_field_is_named(name, value):
    with pytest.raises(RowError, match=rf"\b{name}\b"):
        rows.validate(dataclasses.replace(ROW, **{name: value}))


def test_a_row_without_a_time_says_why():
    blank = dict.fromkeys(("ms", "ms_low", "ms_high", "ratio_to", "ratio_low", "ratio_high"))
    for status in ("wrong", "failed", "unavailable"):
        row = dataclasses.replace(ROW, status=status, note="no kernel", **blank)
        assert rows.validate(row) is row
        with pytest.raises(RowError, match="note"):
            rows.validate(dataclasses.replace(row, note=""))
        with pytest.raises(RowError, match="ms must be None"):
            rows.validate(dataclasses.replace(row, ms=1.0))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a line of JSON"),
        ("[]", "must be a JSON object"),
        (rows.to_json(ROW)[:-1] + ', "speed": 1}', "unknown field speed"),
        ('{"op": "fprop"}', "missing field workload"),
    ],
)
def test_a_line_that_is_not_a_row_is_refused(line, said):
    with pytest.raises(RowError, match=said):
        rows.from_json(line)


def test_reading_names_file_and_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text(f"{rows.to_json(ROW)}\n{{}}\n")
    with pytest.raises(RowError, match=r"rows\.jsonl:2: missing field"):
        rows.read(tmp_path)


def test_an_incomplete_last_line_is_dropped(tmp_path):
    path = tmp_path / rows.FILE
    path.write_text(f"{rows.to_json(ROW)}\n{rows.to_json(ROW)[:40]}")
    assert rows.read(tmp_path) == [ROW]
    with rows.Writer(path) as writer:
        writer.write(ROW)
        assert rows.read(path) == [ROW, ROW]  # already on the disk


def test_a_measurement_taken_again_replaces_the_first():
    again = dataclasses.replace(ROW, ms=0.0305, time="2026-01-03T00:00:00+00:00")
    other = dataclasses.replace(ROW, revision="fedcba987654")
    assert rows.latest([ROW, other, again]) == [again, other]


def test_every_field_is_documented():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(Row):
        assert f"`{field.name}`" in page
