"""Tiny calls: every kernel has one, right results pass, and wrong results are reported."""

from __future__ import annotations

import itertools

import pytest
import torch

from tricorr import kernels
from tricorr.ops.plan import choose, tma
from tricorr.ops.plan.device import DEVICES
from tricorr.perf.model.planned import PlannedCall, describe, launches_of
from tricorr.perf.session import checks
from tricorr.perf.session.rig import GpuRig
from tricorr.perf.workloads import WORKLOADS

ALL = list(checks.checks(DEVICES["h200"]))
#: Calls that take less than a second in the interpreter and the simulator.
QUICK = [
    next(c for c in ALL if (c.kernel, c.workload.name) == name)
    for name in (("fprop_tma", "point"), ("wgrad_tma", "point"))
]


def test_every_kernel_has_a_call_in_every_format_it_takes():
    found = {check.op for check in ALL if check.plan is None}
    for check in ALL:
        if check.plan is not None:
            _, calls = launches_of(check.operands("meta"), check.plan, DEVICES["h200"])
            for call in itertools.chain.from_iterable(c.launches() for c in calls):
                found.add(getattr(call.kernel, "fn", call.kernel).__name__)
    names = {name for name in kernels.__all__ if hasattr(getattr(kernels, name), "arg_names")}
    assert found == names
    assert len({str(check) for check in ALL}) == len(ALL)
    for kernel in ("fprop_gemm", "fprop_stencil", "dgrad_gemm", "wgrad_gemm"):
        mine = [check for check in ALL if check.kernel == kernel]
        assert {check.format for check in mine} == {"NCHW", "channels_last"}
        assert {"bfloat16", "float16", "float32", "float64"} <= {check.dtype for check in mine}


@pytest.mark.parametrize("check", QUICK, ids=lambda check: check.kernel)
def test_a_correct_result_passes(check, kernel_backend):
    if kernel_backend.device == "cuda":
        pytest.skip("plans are an H200's: the command itself runs them")
    assert checks.run(check, GpuRig(device="cpu")) == ""


class Spoilt(GpuRig):
    """A rig whose calls return a changed result."""

    changes = iter(())

    def call(self, operands, entrant):
        right = checks.whole_truth(operands).values.view(operands.geometry.y_shape)
        result = right.to(operands.weight.dtype)
        return lambda: next(Spoilt.changes)(result.clone())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([lambda y: y, lambda y: y], ""),
        ([lambda y: y + 0.5 * y.std()] * 2, "is above"),
        ([lambda y: y.index_fill(1, torch.tensor([0]), torch.nan)] * 2, "error inf"),
        ([lambda y: y[..., :-1]] * 2, "error inf"),
        ([lambda y: y, lambda y: y.nextafter(torch.tensor(torch.inf))], "other bits"),
    ],
    ids=["right", "off", "nan", "shape", "changing"],
)
def test_wrong_results_are_reported(changes, said):
    check = next(c for c in ALL if (c.kernel, c.dtype) == ("fprop_rows", "float32"))
    Spoilt.changes = iter(changes)
    problem = checks.run(check, Spoilt(device="cpu"))
    assert said in problem
    assert bool(problem) == bool(said)


def test_memory_is_poisoned_only_during_a_check():
    before = torch.are_deterministic_algorithms_enabled()
    with checks.poisoned():
        assert torch.empty(100).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_different_plans_have_different_names():
    """Rows are keyed by these descriptions."""
    for workload in WORKLOADS[:20]:
        for memory_format in workload.formats:
            call = PlannedCall(workload, "fprop", "bfloat16", memory_format)
            tiles = tma.tiles(call.problem(DEVICES["h200"]))
            plans = [choose.plan_with_tile(call.problem(DEVICES["h200"]), tile) for tile in tiles]
            assert len({describe(plan) for plan in plans}) == len(plans), workload.name
