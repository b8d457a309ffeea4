"""Calls with a plan: prepared as users' calls are, and with a copy timed whole."""

from __future__ import annotations

import pytest
import torch

from tricorr.ops.launch import arguments
from tricorr.ops.plan import choose
from tricorr.ops.plan.device import DEVICES
from tricorr.perf.checks import TINY, whole_truth
from tricorr.perf.planned import PlannedCall, alternatives
from tricorr.perf.rig import Entrant, GpuRig

RIG = GpuRig(device="cpu")
POINT = next(workload for workload in TINY if workload.name == "point")


def planned(memory_format, op="fprop"):
    call = PlannedCall(POINT, op, "float16", memory_format)
    return call, choose.plan(call.problem(DEVICES["h200"]))


@pytest.fixture
def on_kernels(kernel_backend):
    if kernel_backend.device == "cuda":
        pytest.skip("plans are an H200's: the command itself runs them")


def test_a_call_with_a_plan_is_prepared_once(on_kernels, monkeypatch):
    call, _ = planned("NCHW")
    built = []
    real = arguments.fprop_call
    monkeypatch.setattr(arguments, "fprop_call", lambda *a: built.append(1) or real(*a))
    operands = call.operands("cpu")
    for plan in alternatives(call.problem(DEVICES["h200"]))[:2]:  # each has a launch of its own
        run = RIG.call(operands, Entrant("tricorr", "NCHW", plan))
        first, before = run(), len(built)
        assert before
        assert torch.equal(run(), first)
        assert len(built) == before
        built.clear()


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_a_call_after_a_copy_gives_back_the_format_that_it_got(op, on_kernels):
    call, _ = planned("NCHW", op)
    _, plan = planned("channels_last", op)
    operands = call.operands("cpu")
    found = RIG.call(operands, Entrant("tricorr@copied", "NCHW", plan, copied=True))()
    truth = whole_truth(operands)
    assert found.is_contiguous()
    assert truth.error(found) <= truth.bound(found.dtype, "ieee")
