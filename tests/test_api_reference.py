"""Checks the sources of the pages that `make docs` builds."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tricorr

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = (DOCS / "api.md").read_text(encoding="utf-8")


def named():
    """(directive, full name) of every object that the reference names."""
    current = ""
    for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", REFERENCE, re.MULTILINE):
        if kind in ("currentmodule", "automodule"):
            current = name
        yield kind, name if name.startswith("tricorr") else f"{current}.{name}"


def resolved(name):
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_every_public_name_is_in_the_reference():
    names = {name for _, name in named()}
    assert {f"tricorr.{name}" for name in tricorr.__all__} <= names


@pytest.mark.parametrize(
    ("kind", "name"),
    [pair for pair in named() if pair[0] != "currentmodule"],
    ids=[name for kind, name in named() if kind != "currentmodule"],
)
def test_named_objects_exist_and_have_docstrings(kind, name):
    found = resolved(name)
    assert found.__doc__
    if kind == "autofunction":
        assert callable(found)
    if kind in ("autoclass", "autoexception"):
        assert isinstance(found, type)
        assert issubclass(found, BaseException) == (kind == "autoexception")


def test_configuration_loads():
    configuration = {}
    exec((DOCS / "conf.py").read_text(encoding="utf-8"), configuration)
    assert configuration["release"] == tricorr.__version__


def test_built_without_a_warning(tmp_path):
    for module in ("sphinx", "myst_parser"):
        pytest.importorskip(module, reason="needs pip install 'tricorr[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, tmp_path]
    path = os.pathsep.join([str(Path(tricorr.__file__).parent.parent), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
