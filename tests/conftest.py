"""Fixtures of all tests (backend, seed, poisoned memory), and the summary by tier."""

import json
import os
import random
import zlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
import torch

# Triton reads this when it is imported, so it has to be set before any test module is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# cuBLAS, which peers in GPU tests use, is repeatable only with this setting, and warns without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()

import triton
from simulator.driver import simulated  # before Triton's functions are patched

# Tests run many tiny operators in several processes: more threads would contend.
torch.set_num_threads(1)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TIERS = ("interpreter", "simulated", "launched", "cuda", "cpu", "aot", "host")
#: Name patterns of tests that run other projects' cases.
THEIRS = {
    "PyTorch OpInfo and ModuleInfo": "test_opinfo.py",
    "torch.library.opcheck": "test_opcheck",
    "ONNX node tests": "test_onnx.py",
}

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # hypothesis may be missing on a GPU machine
    pass
else:
    # The same examples in every run, at the interpreter's pace. One backend serves all examples
    # of a test, so fixtures that are set up once per test are right.
    settings.register_profile(
        "tricorr",
        deadline=None,
        derandomize=True,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.filter_too_much,
        ],
    )
    settings.load_profile("tricorr")


@pytest.fixture(autouse=True)
def _seeded(request):
    """Seeds depend only on the test's name: a failure repeats in any order and selection."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for code under test that uses the global generator
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fills torch.empty with NaN (integers: the largest), to reveal unwritten elements."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    # warn_only: some PyTorch operators that tests compare with have no deterministic version.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@dataclass(frozen=True)
class Backend:
    """How operators run: by PyTorch, or by the kernels interpreted, simulated or on a GPU."""

    name: str
    device: str


@pytest.fixture(params=["interpreter", "simulated", "cpu", "cuda"])
def backend(request, monkeypatch):
    """Every way to run an operator. To narrow: parametrize("backend", ["cpu"], indirect=True)."""
    yield from _select(request.param, monkeypatch)


@pytest.fixture(params=["interpreter", "simulated", "cuda"])
def kernel_backend(request, monkeypatch):
    """The backends on which Triton kernels run."""
    yield from _select(request.param, monkeypatch)


def _select(name, monkeypatch):
    module = import_module("tricorr.ops.backend")
    has_gpu = torch.cuda.is_available()
    if name == "interpreter" and not module.interprets():
        if has_gpu:
            pytest.skip("runs without a GPU: TRITON_INTERPRET=1")
        pytest.fail("CPU tensors are not interpreted: TRITON_INTERPRET was unset or came late")
    if name == "cuda" and not has_gpu:
        pytest.skip("needs a GPU")
    if name == "cuda" and module.interprets():
        pytest.skip("needs compiled kernels: TRITON_INTERPRET is set")
    with simulated() if name == "simulated" else nullcontext():
        if name == "cpu":
            monkeypatch.setattr(module, "CPU_DEVICE", None)
        yield Backend(name, device="cuda" if name == "cuda" else "cpu")


class _RootIsNoPackage:
    """Keeps pytest from importing the root's __init__.py under the name of its directory."""

    @staticmethod
    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(path, parent):
        if str(path) == ROOT:
            return pytest.Dir.from_parent(parent, path=path)
        return None


def pytest_configure(config):
    # A separate plugin: hooks in this conftest.py apply to tests/ but not to its parent.
    config.pluginmanager.register(_RootIsNoPackage())


def _tier(item):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    for tier in ("aot", "launched"):
        if item.get_closest_marker(tier):
            return tier
    if "simulator" in item.path.parts:
        return "simulated"
    return params.get("backend") or params.get("kernel_backend") or "host"


#: Tests that are slow in the interpreter, and their cases that are not marked `slow` there. Tiles
#: are also compiled ahead of time, and simulated by `make test-all`; other projects' cases test
#: code above the kernels, which the backend "cpu" covers.
INTERPRETED = {
    "test_gradients_of_both_orders_equal_numerical_ones": {"bank", "reflect"},
    "test_derivatives_equal_numerical_ones": {"gelu"},
    "test_one_step_by_kernels_equals_pytorchs": {"convnext", "mobilenet_v2", "resnet18"},
    "test_error_is_at_most_twice_that_of_pytorch": {"wgrad"},
    "test_every_gemm_tile": {"ieee"},
    "test_every_gemm_tile_of_wgrad": {"ieee"},
    "test_kernels_read_copies_through_descriptors": {"half", "brain"},
    "test_the_same_call_gives_the_same_bits": {"none"},  # one program after the other
    "test_every_shape_of_boxes": {"wgrad"},
    "test_opcheck": {"none"},
    "test_nodes_give_the_expected_output": {"none"},
    "test_layers_equal_pytorchs": {"none"},
    "test_samples_have_pytorchs_values_and_gradients": {"none"},
    "test_samples_have_pytorchs_values_in_lower_precision": {"none"},
    "test_the_sum_is_activated_and_rounded_once": {"rows"},
}
#: Files whose simulated tests are not `slow`: the textbook's calls, through the public functions.
SIMULATED = ("simulator", "test_textbook.py")


def _names(item):
    return {value for value in item.callspec.params.values() if isinstance(value, str)}


@pytest.hookimpl(tryfirst=True)  # before pytest looks for `slow`
def pytest_collection_modifyitems(items):
    for item in items:
        cases = INTERPRETED.get(getattr(item, "originalname", None))
        if cases and _tier(item) == "interpreter" and not cases & _names(item):
            item.add_marker("slow")
        if _tier(item) == "simulated" and not set(SIMULATED) & set(item.path.parts):
            item.add_marker("slow")  # many kernels to compile
        item.user_properties.append(
            ("tier", _tier(item))
        )  # user_properties reach the report, also from xdist's workers


def pytest_terminal_summary(terminalreporter):
    """Prints tests by tier: shows when a run passed without running any kernel."""
    counts = Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            tier = dict(getattr(report, "user_properties", ())).get("tier", "host")
            counts[tier, "failed" if outcome == "error" else outcome] += 1
    terminalreporter.section("tiers")
    terminalreporter.line(f"Triton {triton.__version__}, PyTorch {torch.__version__}")
    for tier in TIERS:
        passed, failed, skipped = (
            counts[tier, outcome] for outcome in ("passed", "failed", "skipped")
        )
        terminalreporter.line(f"{tier:12}{passed:6} passed{failed:6} failed{skipped:6} skipped")
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
    theirs = {whose: sum(part in nodeid for nodeid in passed) for whose, part in THEIRS.items()}
    if any(theirs.values()):
        found = ", ".join(f"{count} {whose}" for whose, count in theirs.items())
        terminalreporter.line(f"of these, other projects' own cases: {found}")


@pytest.fixture
def run(backend, capsys, tmp_path, monkeypatch):
    """Runs a command in an empty directory; returns (exit code, stdout, stderr)."""
    from tricorr.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def succeeds(run):
    def succeeds(*arguments):
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    return succeeds


@pytest.fixture
def prints_json(run):
    def prints_json(*arguments):
        code, out, err = run(*arguments, "--json")
        assert code == 0, err

        def no_constant(name):
            raise AssertionError(f"{name} is not JSON")

        return json.loads(out, parse_constant=no_constant)

    return prints_json


@pytest.fixture
def fails(run):
    """Runs a command that must fail with one line, and returns that line."""

    def fails(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert err.startswith("tricorr: error: ")
        assert "bug" not in err
        return err

    return fails
