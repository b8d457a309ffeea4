"""`explain` reports the plans and costs of the call that would run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from plans import OPS, boxed, planned

from tricorr import ArgumentError, corr2d, explain
from tricorr.ops.geometry import geometry_of
from tricorr.ops.launch import layout
from tricorr.ops.plan.device import DEVICES, Device, device_called
from tricorr.ops.plan.problem import Plan


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_bytes_and_flops_are_those_of_the_arithmetic():
    call = explain(meta(2, 6, 9, 8), meta(4, 3, 3, 3), stride=2, padding=1, groups=2)
    y_numel = 2 * 4 * 5 * 4
    assert call.passes["fprop"].flops == 2 * y_numel * 3 * 9
    assert call.passes["fprop"].compulsory_bytes == 4 * (2 * 6 * 9 * 8 + 4 * 3 * 9 + y_numel)
    assert call.geometry.P == 5


@pytest.mark.parametrize("name", DEVICES)
def test_every_known_device_can_be_planned_for(name):
    call = explain(meta(8, 64, 28, 28), meta(64, 64, 3, 3), padding=1, device=name)
    for op, cost in call.passes.items():
        assert cost.plan.family in ("gemm", "tma", "reuse", "planes", "flat"), op
        assert cost.bound in ("memory", "arithmetic")
        assert cost.floor_seconds > 0
    assert DEVICES[name].name in str(call)
    json.dumps(call.as_dict())


def test_the_memory_of_copies_is_reported():
    x, weight = meta(32, 67, 14, 14, dtype=torch.bfloat16), meta(71, 67, 3, 3, dtype=torch.bfloat16)
    call = explain(x, weight, padding=1, device="h100")
    fprop = call.passes["fprop"]
    assert fprop.plan.tile.copied
    pixels, taps, step = 32 * 14 * 14, 71 * 9, fprop.plan.tile.BLOCK_K
    assert fprop.copy_bytes == 2 * (pixels * 72 + taps * step * -(-67 // step))
    assert "B of copies" in str(call)
    last = explain(*(t.to(memory_format=torch.channels_last) for t in (
        meta(32, 64, 14, 14, dtype=torch.bfloat16), meta(64, 64, 3, 3, dtype=torch.bfloat16)
    )), padding=1, device="h100")  # fmt: skip
    assert [last.passes[op].copy_bytes for op in ("fprop", "dgrad")] == [0, 0]


def test_huge_tensors_need_64_bit_offsets_and_no_memory():
    call = explain(meta(1, 1, 2**17, 2**17), meta(1, 1, 3, 3), device="h200")
    assert call.passes["fprop"].plan.int64
    assert "64-bit offsets" in str(call)


@pytest.mark.parametrize("name", ["h100", "h200", "a100", "b200"])
def test_a_device_of_the_table_has_the_tables_figures(monkeypatch, name):
    known = DEVICES[name]
    major, minor = known.arch[:-1], known.arch[-1]
    found = SimpleNamespace(
        name=known.name, major=int(major), minor=int(minor),
        multi_processor_count=known.multiprocessors,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    in_process = layout._gpu.__wrapped__(torch.device("cuda"))
    assert in_process == known
    layer = geometry_of((32, 256, 14, 14), (256, 256, 3, 3), padding=((1, 1), (1, 1)))
    for op in OPS:
        devices = (in_process, known)
        plans = [planned(op, layer, torch.bfloat16, boxed("NHWC"), d) for d in devices]
        assert plans[0] == plans[1]
        assert in_process.bandwidth == known.bandwidth


def test_a_variant_of_a_device_does_not_have_the_tables_figures():
    for called in (("NVIDIA H100 PCIe", "90", 114), ("NVIDIA GH200 480GB", "90", 132)):
        assert device_called(*called) == Device(*called)
    assert device_called("NVIDIA H200 141GB", "90", 132).bandwidth == 4.8e12


def test_without_a_device_the_cpu_convolution_is_named():
    call = explain(meta(5, 5), meta(2, 2))
    assert call.passes["fprop"].plan is None
    assert call.passes["fprop"].bound is None


def test_the_reported_plan_is_the_one_that_runs(kernel_backend, monkeypatch):
    from tricorr.ops.launch import entry as launch
    from tricorr.ops.launch.prepared import forget_prepared

    x = torch.randn(1, 2, 6, 6, device=kernel_backend.device)
    weight = torch.randn(3, 2, 3, 3, device=kernel_backend.device)
    told = explain(x, weight, padding=1).passes["fprop"].plan
    ran = []
    build = launch.fprop_call

    def recorded(*arguments):
        ran.append(next(a for a in arguments if isinstance(a, Plan)))
        return build(*arguments)

    monkeypatch.setattr(launch, "fprop_call", recorded)
    forget_prepared()
    corr2d(x, weight, padding=1)
    assert set(ran) == {told}


def test_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(ArgumentError, match=r"device must be one of a100, .*, got 'gtx'"):
        explain(meta(5, 5), meta(2, 2), device="gtx")


def test_bad_calls_are_refused_as_the_call_itself_would_be():
    with pytest.raises(ArgumentError, match="the window is larger than the padded input"):
        explain(meta(3, 3), meta(4, 4))
