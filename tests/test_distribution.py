"""The wheel and the sdist: their files, and that they work outside the repository."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="building needs setuptools")

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "",
    "kernels",
    "ops",
    "ops/distributed",
    "ops/launch",
    "ops/plan",
    "ops/plan/exchange",
    "autograd",
    "filters",
    "images",
    "learning",
    "cli",
    "perf",
    "perf/benchmarks",
    "perf/model",
    "perf/session",
    "perf/timing",
)
CODE = {
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in ((ROOT / package).glob("*.py"))
} | {"py.typed", *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("ops/plan/*/*.json"))}
FOR_READERS = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
}


def call(*command, cwd, **environment):
    command = [sys.executable, *map(str, command)]
    run = subprocess.run(
        command, cwd=cwd, env=environment or None, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def build(kind, source, directory):
    """Path of the built file, made as pip and build make it, without a network."""
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(directory)!r})"
    call("-W", "ignore", "-c", code, cwd=source)
    (built,) = directory.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "any-name"  # building leaves files behind
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """From the sdist, as pip does where there is no wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    (source,) = directory.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("built"))


def test_sdist_has_the_code_and_files_for_readers(sdist):
    with tarfile.open(sdist) as archive:
        names = {
            name.partition("/")[2]
            for name in archive.getnames()
            if archive.getmember(name).isfile()
        }
    generated = {"PKG-INFO", "setup.cfg"}
    assert {
        n for n in names if not n.startswith("tricorr.egg-info/")
    } == CODE | FOR_READERS | generated


def test_wheel_has_the_code_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    assert names - info == {f"tricorr/{name}" for name in CODE}
    assert {name.partition("/")[2] for name in info} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }


def test_wheel_works_without_the_repository(wheel, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target)
    call(*pip, "--disable-pip-version-check", wheel, cwd=elsewhere)
    code = (
        "import torch, tricorr\n"
        "x, weight = torch.arange(9.0).view(3, 3), torch.arange(4.0).view(2, 2)\n"
        "print(tricorr.__file__, tricorr.corr2d(x, weight).tolist(), sep='\\n')\n"
    )
    where, result = call("-c", code, cwd=elsewhere, PYTHONPATH=str(target)).splitlines()
    assert Path(where) == target / "tricorr" / "__init__.py"
    assert result == "[[19.0, 25.0], [37.0, 43.0]]"
