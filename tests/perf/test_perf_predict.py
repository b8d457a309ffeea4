"""The static model: counts that are checked by hand, and bounds that hold for every workload."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import pytest
import torch
from plans import with_tile

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose
from tricorr.ops.plan.banded import BandedTile
from tricorr.ops.plan.device import DEVICES, INTERPRETER
from tricorr.ops.plan.gemm import GemmTile
from tricorr.ops.plan.stencil import StencilTile
from tricorr.ops.plan.tma import TmaTile
from tricorr.perf.model import predict
from tricorr.perf.model.planned import PlannedCall
from tricorr.perf.workloads import SUITES, WORKLOADS, Workload

H200 = DEVICES["h200"]
SAME = ((1, 1), (1, 1))
UNITS = ("dram", "l2", "shared", "arithmetic", "issue", "latency")


def predicted(geometry, op, dtype, device, *, channels_last=False, precision="ieee", plan=None):
    """The prediction of a call of dense tensors."""
    name = precision if precision != "ieee" else str(dtype).removeprefix("torch.")
    memory_format = "channels_last" if channels_last else "NCHW"
    workload = Workload("", "", geometry, (name,))
    return predict.predict(PlannedCall(workload, op, name, memory_format, plan), device)


def run(*arguments):
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    return predict.main(parser.parse_args(arguments))


def test_a_stencil_that_fits_wastes_nothing_and_loads_every_tap():
    image = geometry_of((1, 1, 1024, 1024), (1, 1, 3, 3), padding=SAME)
    plan = with_tile("fprop", image, StencilTile(512, 1))
    found = predicted(image, "fprop", torch.float32, H200, plan=plan)
    pixels = 1024 * 1024
    assert found.waste == 1
    assert found.load_bytes == 9 * 4 * pixels + plan.grid * 9 * 4
    assert found.device_bytes == found.compulsory_bytes == 4 * (2 * pixels + 9)
    assert found.dram_us == pytest.approx(found.compulsory_bytes / (0.9 * 4.8e12) * 1e6)


def test_edges_and_padding_of_channels_are_waste():
    # 3 channels of 9 taps are 27, padded to a step of 32; 40 filters to 64; 49 pixels to 64.
    layer = geometry_of((1, 3, 7, 7), (40, 3, 3, 3), padding=SAME)
    plan = with_tile("fprop", layer, GemmTile(64, 64, 32, 4, 2))
    found = predicted(layer, "fprop", torch.bfloat16, H200, plan=plan)
    assert found.waste == pytest.approx((32 / 27) * (64 / 40) * (64 / 49))
    assert found.fill == pytest.approx(1 / 132)


@pytest.mark.parametrize("channels_last", [False, True], ids=["pointers", "descriptors"])
def test_taps_that_no_output_reads_are_no_waste_of_a_strided_input_gradient(channels_last):
    layer = geometry_of((8, 64, 64, 64), (64, 64, 3, 3), stride=(2, 2), padding=SAME)
    workload, memory_format = Workload("", "", layer, ("bfloat16",)), "NCHW"
    tile = GemmTile(64, 64, 32, 4, 3)
    if channels_last:
        tile, memory_format = TmaTile(1, 8, 16, 64, 64, 4, 3), "channels_last"
    call = PlannedCall(workload, "dgrad", "bfloat16", memory_format)
    plan = choose.plan_with_tile(call.problem(H200), tile)
    found = predict.predict(replace(call, plan=plan), H200)
    assert found.waste == pytest.approx(1)


def test_splits_move_their_partial_sums_through_memory():
    layer = geometry_of((8, 64, 64, 64), (64, 64, 3, 3), padding=SAME)
    tile = GemmTile(64, 64, 32, 4, 3)
    one, four = (
        predicted(
            layer,
            "wgrad",
            torch.bfloat16,
            H200,
            plan=with_tile("wgrad", layer, tile, splits=splits),
        )
        for splits in (1, 4)
    )
    assert four.device_bytes - one.device_bytes == 2 * 4 * layer.weight_numel * 4
    assert four.fill > one.fill


def test_a_weight_that_L2_cannot_keep_is_read_again():
    small = geometry_of((64, 256, 56, 56), (256, 256, 3, 3), padding=SAME)
    large = geometry_of((64, 2048, 14, 14), (4096, 2048, 3, 3), padding=SAME)
    kept = predicted(small, "fprop", torch.bfloat16, H200, channels_last=True)
    lost = predicted(large, "fprop", torch.bfloat16, H200, channels_last=True)
    assert kept.device_bytes == kept.compulsory_bytes
    assert lost.device_bytes > 2 * lost.compulsory_bytes


@pytest.mark.parametrize("name", DEVICES)
def test_bounds_hold_for_every_workload(name):
    found = list(predict.predict_workloads(WORKLOADS, DEVICES[name]))
    assert {p.workload for p in found} == {w.name for w in WORKLOADS}
    for p in found:
        assert p.device_bytes >= p.compulsory_bytes
        assert p.waste >= 0.999, p
        assert 0 < p.fill <= 1
        assert 0 < p.roofline_fraction <= 1 + 1e-9, p
        units = {f"{unit}_us": getattr(p, f"{unit}_us") for unit in UNITS}
        assert p.launch_us + max(units.values()) < p.predicted_us
        assert p.predicted_us < p.launch_us + sum(units.values())
        assert f"{p.bound}_us" == max(units, key=units.get)
        assert all(math.isfinite(v) for v in vars(p).values() if isinstance(v, float))


def test_three_products_take_three_times_as_long():
    layer = geometry_of((8, 64, 64, 64), (64, 64, 3, 3), padding=SAME)
    plan = with_tile("fprop", layer, GemmTile(64, 64, 32, 4, 2), precision="tf32")
    once = predicted(layer, "fprop", torch.float32, H200, precision="tf32", plan=plan)
    plan = replace(plan, precision="tf32x3")
    thrice = predicted(layer, "fprop", torch.float32, H200, precision="tf32x3", plan=plan)
    assert thrice.arithmetic_us == pytest.approx(3 * once.arithmetic_us)


def test_a_banded_plan_counts_its_zeros_and_leaves_out_rows_in_the_padding():
    image = geometry_of((1, 1, 1024, 1024), (1, 1, 9, 9), padding=((4, 4), (4, 4)))
    plan = with_tile("fprop", image, BandedTile(128, 8, 16, 64, 8, 3))
    found = predicted(image, "fprop", torch.bfloat16, H200, plan=plan)
    # For 8x16 outputs, 16 rows of 32 columns: the window and its block take 24, aligned to 8.
    assert found.waste == pytest.approx(16 * 32 / 81)
    assert found.load_bytes == 2 * plan.grid * 16 * 32 * (128 + 128)
    small = geometry_of((64, 64, 14, 14), (64, 1, 27, 27), padding=((13, 13), (13, 13)), groups=64)
    # Tiles of 32 rows multiply by a warp's instruction, at half the rate of a warpgroup's.
    assert predicted(small, "dgrad", torch.bfloat16, H200).arithmetic_us < 2


def test_a_device_without_a_datasheet_is_refused():
    layer = geometry_of((1, 1, 8, 8), (1, 1, 3, 3))
    with pytest.raises(ValueError, match="not known"):
        predicted(layer, "fprop", torch.float32, INTERPRETER)


def test_the_table_names_every_workload_of_a_suite(capsys):
    assert run("--suite", "images", "--suite", "odd") == 0
    text = capsys.readouterr().out
    assert "by a model, not measured" in text
    for workload in WORKLOADS:
        shown = workload.name.removeprefix(f"{workload.suite}-") in text
        assert shown or workload.suite not in ("images", "odd")
    assert max(map(len, text.splitlines())) <= 200


def test_predictions_can_be_narrowed(capsys):
    assert run("--suite", SUITES[0], "--op", "wgrad", "--dtype", "tf32", "--device", "a100") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " tf32 " in line]
    assert lines
    assert all(" wgrad " in line for line in lines)
    with pytest.raises(ValueError, match="device must be one of"):
        run("--device", "abacus")
