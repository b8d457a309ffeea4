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


def _key(call):
    # The same tile may serve two kinds of product: float64's and exact float32's.
    plan = call.plan
    precision = "float64" if call.dtype == "float64" else plan.precision
    product = precision if plan.family in ("gemm", "banded", "patch") else ""
    return plan.op, plan.tile, plan.one_tap, plan.int64, product


def _table_tile(plan):
    """The tile as in the table; a weight gradient's BLOCK_H and BLOCK_W depend on the image."""
    if plan.kernel != "wgrad_banded":
        return plan.tile
    step = plan.tile.BLOCK_H * plan.tile.BLOCK_W
    return replace(plan.tile, BLOCK_H=1, BLOCK_W=step)


def _every_banded():
    for target in TARGETS.values():
        yield from (c for c in configurations(target) if c.plan and c.plan.family == "banded")


def _shape(plan):
    tile = plan.tile
    size = tile.BLOCK_K if plan.op == "wgrad" else tile.pixels
    # Three taps hold more than two.
    shape = tile.BLOCK_N, size, tile.BLOCK_S > 1, tile.num_warps, tile.num_stages
    return plan.op, *shape, tile.persistent > 0, plan.precision


def _sums(plan, taps=True):
    number = taps and getattr(plan.tile, "BLOCK_R", 0)
    return plan.op, plan.tile.step(plan.op)[:2], number, plan.tile.num_warps, plan.precision


def _sums_of_a_thread(plan):
    m, n, _ = plan.tile.step(plan.op)
    return m * n // (32 * plan.tile.num_warps)


@pytest.mark.parametrize("name", TARGETS)
def test_every_planned_kernel_is_compiled(name):
    device, rng = TARGETS[name].device, random.Random(name)
    compiled = {
        _key(c.planned)
        for target in TARGETS.values()
        for c in dealt(target)
        if c.kernel not in ("sum_partials", "lag_sums", "fprop_separable")
    }
    banded = {(c.plan.op, _table_tile(c.plan), c.plan.int64) for c in _every_banded()}
    resident = {
        (c.plan.op, c.plan.tile.STACK) for c in dealt(TARGETS[name]) if c.family == "resident"
    }
    here = {c.plan.tile for c in dealt(TARGETS[name]) if c.plan}
    seen, rows, boxes, patches = 0, [], set(), set()
    reused, in_planes, spread, flat, shifted = set(), set(), set(), set(), set()
    products = {0}
    for call in itertools.islice(random_calls.calls(rng, device), 1000):
        plan = call.plan
        if plan.family == "banded":
            op = "wgrad" if plan.op == "wgrad" else "fprop"
            assert (op, _table_tile(plan), plan.int64) in banded, plan
        elif plan.family == "columns":
            assert plan.tile.held(call.problem(device)) <= columns.PER_THREAD, call
        elif plan.family == "rows":
            rows.append(call)
        elif plan.family == "tma":  # the shape of a box changes only shifts of its coordinates
            boxes.add(_shape(plan))
        elif plan.family == "reuse":  # rows, taps and stages are counts in the same code
            reused.add(_sums(plan))
        elif plan.kernel == "wgrad_planes":  # and so are rows, taps and filters
            products.add(_sums_of_a_thread(plan))
        elif plan.family == "planes":  # and so are parts of rows
            in_planes.add(_sums(plan))
        elif plan.family == "resident":  # lines, pieces and slots are counts in the same code
            op = "dgrad" if call.workload.geometry.stride != (1, 1) else "fprop"
            assert (op, plan.tile.STACK) in resident, plan
        elif plan.family == "spread":  # and so are places
            spread.add(_sums(plan, taps=False))
        elif plan.family == "flat":  # and so are the taps of copies
            flat.add((_sums(plan), plan.int64))
        elif plan.family == "shifted":  # and so are taps
            shifted.add(_sums(plan))
        elif plan.family == "patch":  # extents of a patch are constants in the same code
            patches.add((plan.kernel, plan.tile.shape, plan.one_tap, _key(call)[-1]))
        elif plan.op != "dgrad_frame":  # has smaller tiles of the same kernels
            seen += 1
            # Where the weight lies is a rare choice: built for one target.
            tile = replace(plan.tile, in_place=False) if plan.family == "gemm" else plan.tile
            assert tile in here, plan
            assert _key(call) in compiled, plan
    assert seen > 250
    assert boxes <= {
        _shape(c.plan)
        for target in TARGETS.values()
        for c in dealt(target)
        if c.plan and c.plan.family == "tma"
    }
    assert bool(boxes) == (device.arch in ARCHITECTURES)
    assert reused <= {_sums(c.plan) for c in dealt(TARGETS[name]) if c.family == "reuse"}
    assert bool(reused) == (name == "sm_90")
    assert in_planes <= {_sums(c.plan) for c in dealt(TARGETS[name]) if c.family == "planes"}
    assert spread <= {
        _sums(c.plan, taps=False) for c in dealt(TARGETS[name]) if c.family == "spread"
    }
    assert flat <= {
        (_sums(c.plan), c.plan.int64)
        for target in TARGETS.values()
        for c in dealt(target)
        if c.plan and c.plan.family == "flat"
    }
    assert shifted <= {_sums(c.plan) for c in dealt(TARGETS[name]) if c.family == "shifted"}
    most = max(
        _sums_of_a_thread(c.plan) for c in dealt(TARGETS["sm_90"]) if c.kernel == "wgrad_planes"
    )
    assert max(products) <= most
    assert patches <= {
        (c.plan.kernel, c.plan.tile.shape, c.plan.one_tap, _key(c.planned)[-1])
        for target in TARGETS.values()
        for c in dealt(target)
        if c.plan and c.plan.family == "patch"
    }
    # Tiles of rows kernels depend on the geometry; none holds more values than the compiled ones.
    assert len(rows) > 20
    for call in rows:
        problem = call.problem(device)
        assert call.plan.tile.held(problem) * problem.words <= MAX_HELD, call


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
