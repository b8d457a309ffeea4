"""compute-sanitizer: run on the right calls, named if it is missing, stopped if it is slow.

A script takes its place.
"""

from __future__ import annotations

import pytest

from tricorr.perf.session import sanitizer

SCRIPT = """#!/bin/sh
echo "$@" > "$0.asked"
{body}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns a function that puts a sanitizer with this body in the path.

    The function returns the file in which the script records its arguments.
    """
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    def install(body):
        script = tmp_path / "compute-sanitizer"
        script.write_text(SCRIPT.format(body=body))
        script.chmod(0o755)
        return tmp_path / "compute-sanitizer.asked"

    return install


def said(left=100.0):
    lines = []
    sanitizer.sanitize(lines.append, lambda: left)
    return lines


@pytest.mark.usefixtures("install")
def test_a_missing_sanitizer_is_named():
    assert said() == ["compute-sanitizer is not installed: no memcheck, no racecheck"]


def test_errors_are_reported(install):
    asked = install('echo "===== 2 errors"; exit 9')
    assert said() == ["memcheck: errors; ===== 2 errors", "racecheck: errors; ===== 2 errors"]
    assert "tricorr.perf.session.checks bfloat16|float32" in asked.read_text()
    install('echo "===== 0 errors"')
    assert said() == ["memcheck: none; ===== 0 errors", "racecheck: none; ===== 0 errors"]


def test_a_sanitizer_that_takes_too_long_is_stopped(install, monkeypatch):
    install("exec sleep 60")
    assert said(10.0) == ["memcheck: no time", "racecheck: no time"]
    monkeypatch.setattr(sanitizer, "LEAST", 0.1)
    assert said(0.3) == ["memcheck: stopped after 0 s", "racecheck: stopped after 0 s"]
