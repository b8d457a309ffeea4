"""Calls with a plan are prepared as users' calls are."""

from __future__ import annotations

import pytest
import torch

from tricorr.ops.launch import entry
from tricorr.ops.plan.device import DEVICES
from tricorr.perf.model.planned import PlannedCall, alternatives
from tricorr.perf.session.checks import TINY
from tricorr.perf.session.rig import Entrant, GpuRig

RIG = GpuRig(device="cpu")
POINT = next(workload for workload in TINY if workload.name == "point")


def test_a_call_with_a_plan_is_prepared_once(kernel_backend, monkeypatch):
    if kernel_backend.device == "cuda":
        pytest.skip("plans are an H200's: the command itself runs them")
    call = PlannedCall(POINT, "fprop", "float16", "NCHW")
    built = []
    real = entry.fprop_call
    monkeypatch.setattr(entry, "fprop_call", lambda *a: built.append(1) or real(*a))
    operands = call.operands("cpu")
    for plan in alternatives(call.problem(DEVICES["h200"]))[:2]:  # each has a launch of its own
        run = RIG.call(operands, Entrant("tricorr", "NCHW", plan))
        first, before = run(), len(built)
        assert before
        assert torch.equal(run(), first)
        assert len(built) == before
        built.clear()
