"""Measured constants: the planner reads them, and avoids a family that was measured to be slow."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from plans import H200, boxed

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, device, measured
from tricorr.ops.plan.problem import Problem

FILE = {
    "device": "NVIDIA H200",
    "measured": "2026-01-02T03:04:05+00:00",
    "rates": {"copy": 4.2e12, "l2": 5.5e12, "latency": 4e-7, "launch": 3e-6},
    "families": {
        "rows": {"multiplier": 5.0, "calls": 9},
        "tma": {"multiplier": 3.0, "calls": 3},
        "gemm": {"multiplier": 9.0, "calls": 2},
    },
    "kernels": {
        "fprop_rows NCHW": {"multiplier": 4.0, "calls": 5},
        "fprop_tma NCHW": {"multiplier": 7.0, "calls": 1},
    },
}
SAME = ((1, 1), (1, 1))
IMAGE = geometry_of((1, 1, 4096, 4096), (1, 1, 3, 3), padding=SAME)
LAYER = geometry_of((32, 64, 56, 56), (64, 64, 3, 3), padding=SAME)


def test_measured_constants_replace_assumed_ones():
    found = replace(H200, measured=measured.parse(FILE))
    assert found.copy_rate == 4.2e12
    assert found.rates.l2 == pytest.approx(5.5e12 / H200.rates.clock)
    assert found.latency == pytest.approx(4e-7 * H200.rates.clock)
    assert found.launch_seconds == 3e-6
    assert [found.slowdown(name) for name in ("rows", "tma")] == [5.0, 3.0]
    assert found.slowdown("gemm") == measured.UNKNOWN  # two calls are too few
    assert found.slowdown("rows", measured.kernel_key("fprop_rows", False)) == 4.0
    assert found.slowdown("rows", measured.kernel_key("fprop_rows", True)) == 5.0
    assert found.slowdown("tma", measured.kernel_key("fprop_tma", False)) == 3.0
    some = measured.parse({**FILE, "rates": {}, "families": {}})
    assert replace(H200, measured=some).copy_rate == H200.copy_rate
    assert replace(H200, measured=some).rates == H200.rates
    assert some.slowdown("gemm") == 1.0


@pytest.mark.parametrize(
    ("problem", "was", "now"),
    [
        (Problem("fprop", IMAGE, torch.float32, device=H200), "rows", "columns"),
        (Problem("fprop", LAYER, torch.bfloat16, layout=boxed("NHWC"), device=H200), "tma", "gemm"),
    ],
    ids=["rows", "tma"],
)
def test_a_slow_family_gives_way(problem, was, now):
    slow = replace(H200, measured=measured.parse(FILE | {"rates": {}}))
    same = tuple((family.KINDS[0].family, 1.1) for family in choose.FAMILIES)
    fast = replace(slow, measured=replace(slow.measured, families=same, kernels=()))
    problem = replace(problem, device=replace(H200, measured=None))
    assert choose.plan(problem).family == was
    assert choose.plan(replace(problem, device=slow)).family == now
    assert choose.plan(replace(problem, device=fast)) == choose.plan(problem)


def test_the_file_of_a_device_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "DIRECTORY", tmp_path)
    (tmp_path / "nvidia_h200.json").write_text(json.dumps(FILE))
    measured.measured_on.cache_clear()
    try:
        assert device.device_called("NVIDIA H200", "90", 132).slowdown("tma") == 3.0
        assert device.device_called("NVIDIA A100-SXM4-80GB", "80", 108).measured is None
    finally:
        measured.measured_on.cache_clear()
