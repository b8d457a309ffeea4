"""Measuring: known delays give known ratios, wrong results have no time, a crash fails one row."""

import dataclasses
import math
import time

import pytest
import torch

from tricorr.ops import Geometry, reference
from tricorr.perf import __main__ as command
from tricorr.perf import rows
from tricorr.perf.providers import PROVIDERS, Provider, make_operands
from tricorr.perf.timing.ceilings import Ceilings
from tricorr.perf.timing.correctness import truth_of
from tricorr.perf.timing.machine import Machine
from tricorr.perf.timing.measure import Job, Session, run_job
from tricorr.perf.timing.timers import (
    LEAST,
    MOST,
    CpuTimer,
    GpuTimer,
    PoisonedError,
    interleave,
    quantile,
)
from tricorr.perf.workloads import Workload

FACTS = Machine("cpu", "a processor", "0123456789ab", "2.11", "0.1.0", None, None, None)
SMALL = Workload("tiny", "test", Geometry(1, 2, 8, 9, 4, 3, 3), ("float32",))
JOB = Job(SMALL, "fprop", "float32")
PYTORCH = PROVIDERS[1]


class Clock:
    """A clock that advances only when its `now` is increased."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def fake(name, clock, seconds, change=lambda result: result, formats=("NCHW",), **others):
    """A provider that takes `seconds` and returns the right result, changed by `change`."""

    def build(problem):
        right = PYTORCH.prepare(problem)

        def call():
            clock.now += seconds() if callable(seconds) else seconds
            return change(right())

        return call

    return Provider(name, "core", build, formats=formats, **others)


def measured(clock, *providers, job=JOB, **others):
    session = Session(CpuTimer(clock), FACTS, providers, **others)
    found = run_job(job, session)
    for row in found:
        rows.validate(row)
    return {row.provider: row for row in found}


def test_known_delays_give_the_known_ratio():
    clock = Clock()
    found = measured(clock, fake("tricorr", clock, 0.002), fake("peer", clock, 0.003))
    assert found["peer"].ratio_to == pytest.approx(1.5)
    assert found["tricorr"].ms == pytest.approx(2.0)
    assert found["peer"].ms == pytest.approx(3.0)
    assert found["tricorr"].ratio_to is None
    flops = SMALL.geometry.flops
    assert found["tricorr"].tflops == pytest.approx(flops / 0.002 / 1e12)


def test_drift_does_not_change_the_ratio():
    """On a machine that gets slower, the peer would lose if it were measured after tricorr."""
    clock = Clock()

    def slower(seconds):
        return lambda: seconds * (1 + clock.now)

    found = measured(
        clock, fake("tricorr", clock, slower(0.002)), fake("peer", clock, slower(0.003))
    )
    assert found["peer"].ratio_to == pytest.approx(1.5, rel=0.02)
    assert found["peer"].ms_high > 1.05 * found["peer"].ms_low


def test_turns_alternate():
    order = []
    samplers = {name: lambda name=name: order.append(name) or 1.0 for name in "AB"}
    interleave(samplers, {"A": 1.0, "B": 1.0})
    assert order == ["A", "B"] * 3  # three turns are enough, as they are long


def test_formats_are_compared_only_with_the_same_format():
    clock = Clock()
    both = ("NCHW", "channels_last")
    session = Session(
        CpuTimer(clock),
        FACTS,
        [fake("tricorr", clock, 0.002, formats=both), fake("peer", clock, 0.001, formats=both)],
    )
    found = {(row.provider, row.format): row for row in run_job(JOB, session)}
    assert len(found) == 4
    assert found["peer", "channels_last"].ratio_to == pytest.approx(0.5)


def test_the_fraction_of_the_roofline_is_its_time_over_the_measured_one():
    clock, g = Clock(), SMALL.geometry
    moved = 4 * (g.x_numel + g.weight_numel + g.y_numel)
    ceilings = Ceilings(copy=moved / 0.001, matmul={"float32": g.flops / 0.0005})
    found = measured(clock, fake("tricorr", clock, 0.002), ceilings=ceilings)
    assert found["tricorr"].roofline_fraction == pytest.approx(0.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y * 1.01,
        lambda y: y.roll(1, -1),
        lambda y: y.index_fill(-1, torch.tensor([y.shape[-1] - 1]), 0.0),
        lambda y: y.index_fill(0, torch.tensor([0]), math.nan),
        lambda y: y[..., :-1],
    ],
    ids=["off by a hundredth", "shifted", "last column missing", "nan", "too small"],
)
def test_a_wrong_result_is_wrong_and_not_fast(change):
    clock = Clock()
    found = measured(clock, fake("tricorr", clock, 0.002), fake("peer", clock, 1e-6, change))
    assert found["peer"].status == "wrong"
    assert found["peer"].ms is None
    assert found["peer"].note
    assert found["tricorr"].status == "ok"


def test_without_a_tricorr_time_there_is_no_ratio():
    clock = Clock()
    wrong = fake("tricorr", clock, 0.002, lambda y: -y)
    found = measured(clock, wrong, fake("peer", clock, 0.001))
    assert found["tricorr"].status == "wrong"
    assert found["peer"].status == "ok"
    assert found["peer"].ratio_to is None


def test_errors_are_compared_with_pytorchs_by_root_mean_square():
    """tricorr has twice PyTorch's error everywhere, and the other provider none."""
    clock = Clock()

    def off(steps):
        return lambda y: (y.double() + steps * 1e-3 * torch.sign(y.double())).float()

    found = measured(
        clock,
        fake("tricorr", clock, 0.002, off(8e-3)),
        fake("pytorch", clock, 0.002, off(4e-3)),
        fake("other", clock, 0.002),
    )
    assert found["tricorr"].error_to == pytest.approx(2, rel=0.1)
    assert found["pytorch"].error_to == 1
    assert found["other"].error_to < 0.2
    alone = measured(clock, fake("tricorr", clock, 0.002))
    assert alone["tricorr"].error_to is None


def raising(error, after):
    """Raises after this number of calls."""
    calls = iter(range(10**6))

    def change(result):
        if next(calls) >= after:
            raise error
        return result

    return change


@pytest.mark.parametrize("after", [0, 1, 30], ids=["first call", "warm-up", "while it is timed"])
@pytest.mark.parametrize(
    "error",
    [ValueError("a bad argument\nin two lines"), torch.OutOfMemoryError("out of memory")],
    ids=["error", "memory"],
)
def test_a_provider_that_raises_fails_alone(after, error):
    clock = Clock()
    peer = fake("peer", clock, 0.001, raising(error, after))
    found = measured(clock, fake("tricorr", clock, 0.002), peer, fake("other", clock, 0.004))
    assert found["peer"].status == "failed"
    assert type(error).__name__ in found["peer"].note
    assert "\n" not in found["peer"].note
    assert found["other"].ratio_to == pytest.approx(2.0)


def test_a_poisoned_device_ends_the_job():
    class Poisoned(CpuTimer):
        def recover(self):
            raise PoisonedError("an illegal memory access")

    clock, at = Clock(), []
    peer = fake("peer", clock, 0.001, raising(RuntimeError("illegal memory access"), 0))
    session = Session(
        Poisoned(clock), FACTS, [peer], announce=lambda *announced: at.append(announced)
    )
    with pytest.raises(PoisonedError):
        run_job(JOB, session)
    assert at[-1] == ("peer", "NCHW")
    found = run_job(
        JOB, dataclasses.replace(session, timer=CpuTimer(clock)), {("peer", "NCHW"): "it crashed"}
    )
    assert [(row.status, row.note) for row in found] == [("failed", "it crashed")]


def test_quantiles_are_those_of_the_sorted_values():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert quantile([0.1] * 7, 0.2) == quantile([0.1] * 7, 0.8) == 0.1


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("draws", [10**9, 40], ids=["all", "some"])
def test_expected_values_are_the_references(per_sample, draws, monkeypatch):
    monkeypatch.setattr("tricorr.perf.timing.correctness.DRAWS", draws)
    monkeypatch.setattr("tricorr.perf.timing.correctness.WGRAD_DRAWS", draws)
    geometry = Geometry(
        3,
        4,
        9,
        8,
        6,
        3,
        2,
        given_stride=(2, 1),
        padding=((2, 1), (0, 3)),
        given_dilation=(1, 2),
        groups=2,
        per_sample=per_sample,
    )
    workload = Workload("odd", "test", geometry, ("float32",), bias=True)
    for op in workload.ops:
        problem = make_operands(workload, op, "float32", "NCHW", "cpu")
        x, weight, dy = (t.double().numpy() for t in (problem.x, problem.weight, problem.dy))
        bias = problem.bias.double().numpy()
        given = {"fprop": (x, weight, bias), "dgrad": (dy, weight), "wgrad": (x, dy)}[op]
        expected = getattr(reference, op)(*given, geometry)
        truth = truth_of(problem)
        assert truth.shape == expected.shape
        found = torch.from_numpy(expected)[truth.at]
        torch.testing.assert_close(truth.values, found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["all", "--minutes", "0"], "--minutes must be positive"),
        (["all", "--suite", "odd", "--op", "learn"], "nothing to measure"),
        (["gpu", "nothing"], "no workload is called nothing"),
        (["tune", "images-4096-3x3"], "PyTorch finds no GPU here"),
        (["predict", "--suite", "odd", "--dtype", "float64"], "no workload of these suites"),
        (["codegen", "sm_1"], "no target is called sm_1"),
        (["codegen", "-k", "[", "--list"], "must be a regular expression"),
        (["codegen", "-k", "nothing_is_called_so", "--list"], "no configuration matches"),
    ],
)
def test_an_error_is_one_line(arguments, said, capsys):
    assert command.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_workloads_are_listed(capsys):
    assert command.main(["workloads", "--suite", "odd", "--small"]) == 0
    assert command.main(["all", "--list", "--suite", "odd"]) == 0
    assert "odd-64x64x64-64-3x3-d2" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_the_gpu_timer_times_a_copy(backend):
    """A copy of 256 MB takes between 10 us and 10 ms, with warm and cold caches."""
    x = torch.rand(2**26, device="cuda")
    timer = GpuTimer()
    seconds = timer.seconds(x.clone)
    host = timer.host_seconds(x.clone, seconds)
    assert 0 < host < 1e-2
    assert timer.peak_bytes(x.clone) >= 2**28
    for cache in timer.caches:
        sample = timer.sampler(x.clone, cache, seconds, host)
        assert 1e-5 < quantile([sample() for _ in range(5)], 0.5) < 1e-2
    timer.recover()


def test_a_wrong_estimate_does_not_delay_the_run():
    taken = interleave({"slow": lambda: time.sleep(0.01) or 0.01}, {"slow": 1e-6}, budget=0.001)
    assert len(taken["slow"]) == LEAST < MOST
