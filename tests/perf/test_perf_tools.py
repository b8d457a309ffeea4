"""NVIDIA's tools: they run on the right calls, missing ones are named, slow ones are stopped.

Scripts take the place of the tools.
"""

from __future__ import annotations

import pytest

from tricorr.perf import __main__ as command
from tricorr.perf.session import tools

SCRIPT = """#!/bin/sh
echo "$@" > "$0.asked"
{body}
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Returns a function that puts a tool with this body in the path.

    The function returns the file in which the tool records its arguments.
    """
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    def install(name, body):
        script = tmp_path / name
        script.write_text(SCRIPT.format(body=body))
        script.chmod(0o755)
        return tmp_path / f"{name}.asked"

    return install


def test_a_tool_that_is_missing_is_named(installed, tmp_path):
    said = []
    tools.sanitize(said.append, lambda: 100.0)
    tools.profile(tmp_path, said.append, lambda: 100.0)
    assert [line.split(":")[0] for line in said] == [
        "compute-sanitizer is not installed",
        "ncu is not installed",
    ]


def test_errors_of_the_sanitizer_are_reported(installed):
    said = []
    asked = installed("compute-sanitizer", 'echo "===== 2 errors"; exit 9')
    tools.sanitize(said.append, lambda: 100.0)
    assert said == ["memcheck: errors; ===== 2 errors", "racecheck: errors; ===== 2 errors"]
    assert "tricorr.perf.session.checks bfloat16|float32" in asked.read_text()
    installed("compute-sanitizer", 'echo "===== 0 errors"')
    tools.sanitize(said.append, lambda: 100.0)
    assert said[2:] == ["memcheck: none; ===== 0 errors", "racecheck: none; ===== 0 errors"]


def test_the_profiler_leaves_clocks_alone_and_writes_beside_the_rows(installed, tmp_path):
    said = []
    asked = installed("ncu", "exit 0")
    tools.profile(tmp_path, said.append, lambda: 100.0)
    assert said == [f"ncu: 6 launches are in {tmp_path / 'ncu.txt'}"]
    assert "--clock-control none" in asked.read_text()
    installed("ncu", 'echo "no rights to read counters" >&2; exit 1')
    tools.profile(tmp_path, said.append, lambda: 100.0)
    assert said[1] == "ncu failed: no rights to read counters"


def test_a_tool_that_takes_too_long_is_stopped(installed, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(tools, "LEAST", 0.1)
    installed("ncu", "exec sleep 60")
    tools.profile(tmp_path, said.append, lambda: 0.5)
    tools.profile(tmp_path, said.append, lambda: 0.0)
    assert said == ["ncu: stopped after 0 s", "ncu: no time"]


def test_profiled_launches_are_of_the_table():
    from tricorr.perf.workloads import find

    assert len(set(tools.PROFILED)) == 6
    for name, op, dtype, memory_format in tools.PROFILED:
        workload = find(name)
        assert op in workload.ops
        assert dtype in workload.dtypes
        assert memory_format in workload.formats


def test_the_commands_of_a_run_share_its_options(capsys):
    for name in ("gpu", "all", "tune"):
        with pytest.raises(SystemExit):
            command.main([name, "--help"])
        assert "--ncu" in capsys.readouterr().out
