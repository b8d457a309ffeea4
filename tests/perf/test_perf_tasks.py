"""The order of rows: every regime comes once before any comes twice.

Compilers come early on KernelBench's workloads and late on others.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tricorr.perf import workloads
from tricorr.perf.providers import PROVIDERS
from tricorr.perf.session import tasks
from tricorr.perf.session.tasks import tasks_of
from tricorr.perf.workloads import WORKLOADS, find


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_every_regime_comes_once_before_any_comes_twice(kind):
    found = tasks_of(kind)
    jobs = [task.job for task in found if task.job]
    regimes = {workloads.regime(w) for w in WORKLOADS}
    first = {}
    for place, job in enumerate(jobs):
        first.setdefault(workloads.regime(find(job.workload.name.removesuffix("-small"))), place)
    assert set(first) == regimes
    assert max(first.values()) < 3 * len(regimes)  # each in three passes at most
    names = {job.workload.name.removesuffix("-small") for job in jobs}
    assert names == {workload.name for workload in WORKLOADS}
    assert {"learn", "host", "startup"} <= {task.group for task in found}
    only = tasks_of(kind, suites=["odd"], ops=["wgrad"], dtypes=["float32"])
    assert {(t.job.workload.suite, t.job.op, t.job.dtype) for t in only} <= {
        ("odd", "wgrad", "float32")
    }


def test_all_passes_of_the_first_of_each_regime_come_before_a_second_of_any():
    """In their first dtype, beside peers that need no compiler."""
    seen, second = {}, None
    for place, task in enumerate(t for t in tasks_of("gpu") if t.group == "core"):
        workload = find(task.name)
        if task.dtype == workload.dtypes[0]:
            of_regime = seen.setdefault(workloads.regime(workload), {})
            if len(of_regime | {task.name: 0}) > 1 and second is None:
                second = place
            of_regime.setdefault(task.name, set()).add((place, task.op))
    for first in (next(iter(found.items())) for found in seen.values()):
        name, passes = first
        assert {op for _, op in passes} == set(find(name).ops)
        assert max(place for place, _ in passes) < second, name


def test_compilers_run_early_on_kernelbench_and_late_elsewhere(monkeypatch):
    there = [replace(provider, available=lambda: None) for provider in PROVIDERS]
    monkeypatch.setattr(tasks, "PROVIDERS", there)
    found = tasks.tasks_of("gpu")
    compiled = [task for task in found if task.group == "compile"]
    first, last = compiled[0], next(t for t in compiled if not t.name.startswith("kernelbench"))
    second = next(task for task in found if task.group == "core" and task.rank == 1.0)
    assert first.name.startswith("kernelbench")
    assert found.index(first) < found.index(second) < found.index(last)
    assert max(t.rank for t in found if t.name == first.name and t.group == "core") < first.rank
