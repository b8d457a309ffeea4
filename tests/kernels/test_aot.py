"""Every configuration that the planner can choose, compiled for GPUs that need not be there.

Kernels of this process may be interpreted, so another process compiles: one for each pytest
process. It answers each line of JSON that it receives with one line.
"""

import base64
import contextlib
import importlib.util
import itertools
import json
import os
import pickle
import queue
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import replace

import pytest
import random_calls

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from tricorr.ops.plan import columns
from tricorr.ops.plan.rows import MAX_HELD
from tricorr.ops.plan.tma import ARCHITECTURES
from tricorr.perf.model.choices import configurations, dealt
from tricorr.perf.model.configuration import TARGETS, Configuration

pytestmark = pytest.mark.aot

#: Products that have a test of their own; the others share "float32". Kernels other than GEMMs have
#: no product.
GROUPS = {"": "", "half": "half", "float64": "float64"}
TIMEOUT_S = 120


class Compiler:
    """The compiling process. It is started by the first request, and again after it died."""

    def __init__(self):
        self.process = None

    def ask(self, **request):
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.answers.get(timeout=TIMEOUT_S)
            reason = "the compiler died"
        except BrokenPipeError:
            answer, reason = None, "the compiler died"
        except queue.Empty:
            answer, reason = None, f"no answer in {TIMEOUT_S} s"
        if answer is None:
            return {"error": f"{reason}; its last output:\n{self.stop()}"}
        return json.loads(answer)

    def problems(self, target, configuration):
        """Problems of the compiled code, or the error that prevented compiling."""
        pickled = base64.b64encode(pickle.dumps(configuration)).decode()
        answer = self.ask(target=target.name, configuration=pickled)
        return [answer["error"]] if "error" in answer else answer["problems"]

    def start(self):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        # Compilers print much: to a file, because an unread pipe would fill up and block.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - stop() closes it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tricorr.perf.model.codegen", "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.answers = queue.SimpleQueue()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def stop(self):
        """Ends the process; returns the end of its output."""
        if self.process is None:
            return ""
        self.process.kill()
        self.process.wait()
        self.listener.join()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
        with self.log:
            self.log.seek(0)
            return self.log.read()[-4000:]


@pytest.fixture(scope="session")
def compiler():
    compiler = Compiler()
    yield compiler
    compiler.stop()


def _items():
    """One test for each target, kernel and kind of product, and a slow one with more of its tiles.

    sm_90, for which tiles are chosen, builds every choice of the planner. The others leave four of
    five tiles that every target has to the slow tests.
    """
    for place, (name, target) in enumerate(TARGETS.items()):
        groups = {}
        for count, configuration in enumerate(dealt(target)):
            left = name != "sm_90" and not configuration.is_rare and (count + place) % 5 > 0
            product = GROUPS.get(configuration.product, "float32")
            groups.setdefault((configuration.kernel, product, left), []).append(configuration)
        for (kernel, product, left), members in groups.items():
            label = "-".join(filter(None, (kernel, product, name, "more" * left)))
            yield pytest.param(target, members, id=label, marks=[pytest.mark.slow] * left)


@pytest.mark.parametrize(("target", "members"), list(_items()))
def test_machine_code(target, members, compiler):
    _need_tools(target)
    found = []
    for configuration in members:
        problems = compiler.problems(target, configuration)
        found += [f"{configuration.name}: {problem}" for problem in problems]
    assert not found, "\n".join(found)


def _need_tools(target):
    from triton import knobs
    from triton.backends import backends

    if ("amd" if target.is_amd else "nvidia") not in backends:
        pytest.skip(f"this triton has no compiler for {target.name}")
    if not target.is_amd:
        try:
            knobs.nvidia.cuobjdump.path  # noqa: B018 - raises if there is none
        except RuntimeError:
            pytest.skip("this triton has no cuobjdump to disassemble machine code")


def _whole(call):
    plan = call.plan
    # Where the weight lies is a rare choice: built for one target.
    tile = replace(plan.tile, in_place=False) if plan.family == "gemm" else plan.tile
    return tile, plan.op, plan.one_tap, plan.int64, _product(call)


def _product(call):
    """The same tile may serve two kinds of product: float64's and exact float32's."""
    if call.plan.family not in ("gemm", "banded", "patch"):
        return ""
    return "float64" if call.dtype == "float64" else call.plan.precision


def _banded(call):
    """BLOCK_H and BLOCK_W of a weight gradient depend on the image."""
    plan = call.plan
    if plan.op != "wgrad":
        return "fprop", plan.tile, plan.int64
    step = plan.tile.BLOCK_H * plan.tile.BLOCK_W
    return plan.op, replace(plan.tile, BLOCK_H=1, BLOCK_W=step), plan.int64


def _boxes(call):
    """Other shapes of a box with as many pixels change only how coordinates are shifted."""
    plan, tile = call.plan, call.plan.tile
    size = tile.BLOCK_K if plan.op == "wgrad" else tile.pixels
    # Three taps hold more than two.
    shape = tile.BLOCK_N, size, tile.BLOCK_S > 1, tile.num_warps, tile.num_stages
    return plan.op, *shape, tile.persistent > 0, plan.precision


def _sums(call):
    """Rows, stages, places and parts of rows are numbers in the same code."""
    plan, tile = call.plan, call.plan.tile
    taps = 0 if plan.family == "spread" else getattr(tile, "BLOCK_R", 0)
    return plan.op, tile.step(plan.op)[:2], taps, tile.num_warps, plan.precision


#: What the code of a family's kernels depends on.
CODE = {
    "banded": _banded,
    "tma": _boxes,
    "reuse": _sums,
    "planes": _sums,
    "spread": _sums,
    "shifted": _sums,
    "strip": _sums,
    "flat": lambda call: (*_sums(call), call.plan.int64),
    # Lines, pieces and slots are numbers in the same code.
    "resident": lambda call: (call.kernel, call.plan.tile.STACK),
    # So are the extents of a patch.
    "patch": lambda c: (c.kernel, c.plan.tile.shape, c.plan.one_tap, _product(c)),
}
#: Each target builds all choices of these; of others, a choice may be built on another target.
EVERYWHERE = ("reuse", "planes", "spread", "shifted", "strip", "resident")


def _code(call):
    return call.plan.family, CODE.get(call.plan.family, _whole)(call)


def _sums_of_a_thread(plan):
    m, n, _ = plan.tile.step(plan.op)
    return m * n // (32 * plan.tile.num_warps)


@pytest.mark.parametrize("name", TARGETS)
def test_every_planned_kernel_is_compiled(name):
    """The kernel of every drawn call is built, or one whose code differs in numbers alone."""
    target = TARGETS[name]
    here = {_code(c.planned) for c in _built(target)}
    tiles = {code[0] for family, code in here if family not in CODE}
    anywhere = {_code(c.planned) for other in TARGETS.values() for c in _built(other)}
    ours = [c.plan for c in dealt(TARGETS["sm_90"]) if c.kernel == "wgrad_planes"]
    most = max(map(_sums_of_a_thread, ours))
    found = Counter()
    for call in itertools.islice(random_calls.calls(random.Random(name), target.device), 1000):
        plan, problem = call.plan, call.problem(target.device)
        found[plan.family] += 1
        if plan.family == "columns":
            assert plan.tile.held(problem) <= columns.PER_THREAD, call
        elif plan.family == "rows":  # tiles depend on the geometry
            assert plan.tile.held(problem) * problem.words <= MAX_HELD, call
        elif plan.kernel == "wgrad_planes":
            assert _sums_of_a_thread(plan) <= most, call
        elif plan.op != "dgrad_frame":  # has smaller tiles of the same kernels
            family, code = _code(call)
            assert (family, code) in (here if family in EVERYWHERE else anywhere), call
            assert family in CODE or code[0] in tiles, call
    assert found["gemm"] > 250
    assert found["rows"] > 20
    assert bool(found["tma"]) == (target.device.arch in ARCHITECTURES)
    assert bool(found["reuse"]) == (name == "sm_90")


def _built(target):
    """Configurations whose kernels are those of their plans."""
    banded = [c for c in configurations(target) if c.family == "banded"]
    others = ("helper", "frame", "rows", "columns", "banded")
    return banded + [c for c in dealt(target) if c.family not in others]


def test_rows_kernels_are_compiled_with_the_most_values_per_thread():
    fullest = {}
    for target in TARGETS.values():
        for c in dealt(target):
            if c.plan and c.family == "rows":
                problem = c.problem(target)
                held = c.plan.tile.held(problem) * problem.words
                fullest[c.kernel] = max(held, fullest.get(c.kernel, 0))
    assert set(fullest) == {"fprop_rows", "dgrad_rows", "wgrad_rows"}
    assert min(fullest.values()) > 0.75 * MAX_HELD, fullest


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_drawn_calls_do_not_spill(name, compiler):
    """Some seconds for ten calls; DRAWN=500 in the environment draws more, SEED=1 other ones."""
    target = TARGETS[name]
    _need_tools(target)
    rng, count = random.Random(int(os.environ.get("SEED", "0"))), os.environ.get("DRAWN", "15")
    found = []
    for call in itertools.islice(random_calls.calls(rng, target.device), int(count)):
        made = Configuration("drawn", str(call), call.kernel, call, "")
        found += [f"{call}: {problem}" for problem in compiler.problems(target, made)]
    assert not found, "\n".join(found)
