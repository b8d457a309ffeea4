"""The package's layout: allowed imports, names of modules, and the cost of importing it."""

import ast
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import median

import pytest

import tricorr

ROOT = Path(__file__).resolve().parent.parent

# Modules that each folder may import besides itself and the standard library: only lower layers.
ALLOWED = {
    "kernels": {"triton"},
    "ops": {"tricorr.kernels", "torch", "numpy"},
    "autograd": {"tricorr.ops", "torch", "numpy"},
    "filters": {"tricorr.autograd", "tricorr.images", "tricorr.ops", "torch", "numpy"},
    "images": {
        "tricorr.ops",
        "torch",
        "numpy",
        "PIL",
        "tifffile",
        "imagecodecs",
        "astropy",
        "matplotlib",
    },
    "learning": {
        "tricorr.autograd",
        "tricorr.images",
        "tricorr.ops",
        "torch",
        "numpy",
        "tqdm",
        "astropy",
        "matplotlib",
    },
    "hub": {"tricorr.autograd", "torch"},
    "__init__": {"tricorr.autograd", "tricorr.filters", "tricorr.learning", "tricorr.ops", "torch"},
    "__main__": {"tricorr.cli"},
}
#: The only file outside kernels/ that imports Triton: it calls Triton's launcher.
LAUNCHER = Path("ops", "launch", "compiled.py")
#: The top layer, which may import anything of the package.
TOP = ("cli", "perf", "tests")
MODULES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.py", *(f"{part}/**/*.py" for part in ALLOWED))
    for path in ROOT.glob(pattern)
)


def without_types(source):
    """The syntax tree without imports that only annotations need."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return tree


def imported_modules(source, package):
    """Yield the absolute name of every module that the source imports when it runs."""
    for node in ast.walk(without_types(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            module = ".".join([*parents, *([node.module] if node.module else [])])
            if module == "tricorr":  # `from .. import ops`: the name is the module
                yield from (f"tricorr.{alias.name}" for alias in node.names)
            else:
                yield module


def within(module, allowed):
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize(
    ("source", "package", "modules"),
    [
        ("import triton.language as tl", "tricorr.kernels", ["triton.language"]),
        ("from . import plan", "tricorr.ops", ["tricorr.ops"]),
        ("from .. import kernels, cli", "tricorr.ops", ["tricorr.kernels", "tricorr.cli"]),
        ("def f():\n    from ..ops.plan import Plan", "tricorr.autograd", ["tricorr.ops.plan"]),
        ("from .autograd import corr2d", "tricorr", ["tricorr.autograd"]),
    ],
)
def test_imports_are_resolved(source, package, modules):
    assert list(imported_modules(source, package)) == modules


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path):
    part = path.parts[0].removesuffix(".py")
    assert part in ALLOWED, f"{path}: add its allowed imports to ALLOWED"
    allowed = ALLOWED[part] | ({f"tricorr.{part}"} if len(path.parts) > 1 else set())
    if path == LAUNCHER:
        allowed = allowed | {"triton"}
    package = ".".join(["tricorr", *path.parts[:-1]])
    imported = imported_modules((ROOT / path).read_text(encoding="utf-8"), package)
    wrong = {
        module
        for module in imported
        if module.partition(".")[0] not in sys.stdlib_module_names and not within(module, allowed)
    }
    assert not wrong, f"{path} may import {sorted(allowed)}, not {sorted(wrong)}"


def imported_files(path):
    """Files of the package that a file imports at run time, without those for annotations only."""
    tree = without_types((ROOT / path).read_text(encoding="utf-8"))
    package = ["tricorr", *path.parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base = [*base[1:], *(node.module or "").split(".")]
            folder = ROOT.joinpath(*filter(None, base))
            for name in (alias.name for alias in node.names):
                for file in (folder / f"{name}.py", folder.with_suffix(".py")):
                    if file.is_file():
                        yield file.relative_to(ROOT)
                        break


#: Layers inside ops: files that a folder may import besides its own.
FLOORS = {
    "ops/plan": ("ops/geometry.py", "ops/arguments.py", "ops/errors.py"),
    "ops/launch": (
        "kernels/",
        "ops/plan/",
        "ops/geometry.py",
        "ops/arguments.py",
        "ops/errors.py",
        "ops/backend.py",
    ),
}


@pytest.mark.parametrize("folder", FLOORS)
def test_floors_inside_ops_import_what_is_below_them(folder):
    files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 5
    for path in files:
        for found in imported_files(path):
            name = found.as_posix()
            assert name.startswith((f"{folder}/", *FLOORS[folder])), f"{path} imports {name}"


#: Files of planners and launches that ask for the given steps, and why.
ASK_FOR_GIVEN = {"separable.py": "a filter has none, also where a stride yields a single row"}


@pytest.mark.parametrize("folder", ["plan", "launch"])
def test_planners_and_launches_compute_with_steps_that_have_an_effect(folder):
    """Kernels get `Geometry.stride` and `.dilation`; those given may only be passed on."""
    for path in (ROOT / "ops" / folder).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        given = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr.startswith("given_")]
        keywords = [n for n in nodes if isinstance(n, ast.keyword) and "given_" in (n.arg or "")]
        passed_on = {id(part) for keyword in keywords for part in ast.walk(keyword.value)}
        read = any(id(node) not in passed_on for node in given)
        assert read == (path.name in ASK_FOR_GIVEN), path


def circles():
    """Groups of files of the package that import each other, directly or through others."""
    files = [
        p.relative_to(ROOT) for part in (*ALLOWED, *TOP[:-1]) for p in ROOT.glob(f"{part}/**/*.py")
    ]
    below = {file: set(imported_files(file)) for file in files}
    for _ in files:  # the transitive closure: one more import deep each time
        grown = {
            file: found.union(*(below.get(f, ()) for f in found)) for file, found in below.items()
        }
        if grown == below:
            break
        below = grown
    return {
        frozenset(other for other in found if file in below.get(other, ()))
        for file, found in below.items()
        if file in found
    }


def test_no_files_import_each_other():
    found = [" <-> ".join(sorted(map(str, circle))) for circle in circles()]
    assert not found, "\n".join(found)


def test_root_has_one_name():
    assert Path(tricorr.__file__).resolve() == ROOT / "__init__.py"
    names = {
        name
        for name, module in sys.modules.copy().items()
        if (file := getattr(module, "__file__", None))
        and Path(file).resolve() == ROOT / "__init__.py"
    }
    assert names == {"tricorr"}


def test_root_has_one_name_where_pytest_starts_below_it():
    test = f"{Path(__file__).resolve()}::test_root_has_one_name"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    # Drop xdist's variables: this run is not one of its workers.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        command, cwd=ROOT / "tests", env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def fresh(code, directory):
    """Return what the code prints in a new interpreter, outside the root, compiling kernels."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, cwd=directory, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_only_tricorr_is_installed(tmp_path):
    try:
        top_level = distribution("tricorr").read_text("top_level.txt")
    except PackageNotFoundError:
        pytest.skip("tricorr is on the path, not installed")
    assert top_level.split() == ["tricorr"]
    code = (
        "from importlib.util import find_spec\n"
        "for name in ('kernels', 'ops', 'autograd', 'perf', 'cli', 'tests'):\n"
        "    spec = find_spec(name)\n"  # another project may have a module of that name
        "    if spec:\n"
        "        print(spec.origin, *(spec.submodule_search_locations or []), sep='\\n')\n"
    )
    found = [path for path in fresh(code, tmp_path).splitlines() if path != "None"]
    assert not [path for path in found if Path(path).resolve().is_relative_to(ROOT)]


def test_import_loads_nothing_third_party_but_torch(tmp_path):
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import tricorr\n"
        "assert 'triton' not in sys.modules, 'importing tricorr imported triton'\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names - {'torch', 'tricorr'}))\n"
    )
    assert fresh(code, tmp_path) == ""


def test_works_without_triton(tmp_path):
    code = (
        "import sys\n"
        "class NoTriton:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'triton':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, NoTriton())\n"
        "import torch, tricorr\n"
        "x, weight = torch.arange(9.0).reshape(3, 3), torch.arange(4.0).reshape(2, 2)\n"
        "print(tricorr.corr2d(x, weight).tolist())\n"
    )
    assert fresh(code, tmp_path) == "[[19.0, 25.0], [37.0, 43.0]]"


@pytest.mark.slow
def test_import_costs_little_beyond_torch(tmp_path, monkeypatch):
    # With compiled Python, as after an installation; process time, so other load does not count.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    code = (
        "import time, torch\n"
        "start = time.process_time()\n"
        "import tricorr\n"
        "print(time.process_time() - start)\n"
    )
    fresh("import tricorr", tmp_path)
    seconds = [float(fresh(code, tmp_path)) for _ in range(5)]
    assert median(seconds) <= 0.1, f"importing tricorr took {sorted(seconds)} s beyond torch"
