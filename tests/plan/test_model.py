"""The model that the planner chooses by: its arithmetic by hand, its constants by machine code."""

import json
from dataclasses import replace

import pytest
import torch

from tricorr.ops import geometry_of
from tricorr.ops.plan.choose import (
    DEVICES,
    INTERPRETER,
    Layout,
    plan_dgrad,
    plan_fprop,
    plan_wgrad,
    plan_with_tile,
)
from tricorr.ops.plan.cost import (
    COPY_SHARE,
    LATENCY,
    LAUNCH_SECONDS,
    RATES,
    Work,
    code_of,
    gemm_work,
    reread_bytes,
    times_of,
)
from tricorr.ops.plan.tiles import (
    GEMM_GRADIENT_TILES,
    GEMM_TILES,
    GemmTile,
    StencilTile,
    gemm_tiles,
)
from tricorr.ops.plan.tma import TmaTile, tma_tiles
from tricorr.ops.plan.work import MARGIN, cheapest, passes, plan_work
from tricorr.perf.model import CODE

H200 = DEVICES["h200"]
CLOCK, L2 = RATES["90"].clock, RATES["90"].l2
SAME = ((1, 1), (1, 1))
PLANNERS = {"fprop": plan_fprop, "dgrad": plan_dgrad, "wgrad": plan_wgrad}
LAYER = geometry_of((32, 256, 14, 14), (256, 256, 3, 3), padding=SAME)


def test_the_time_of_every_unit_by_hand():
    work = Work(
        133, 256, dram_bytes=4.32e6, l2_bytes=6400, shared_bytes=12800, macs=16310,
        unit="half", instructions=100, resident=1,
    )  # fmt: skip
    found = times_of(work, H200)
    # One program more than multiprocessors: two waves for all that a multiprocessor does itself.
    assert found.dram == pytest.approx(1e-6)
    assert found.l2 == pytest.approx(133 * 6400 / L2 / CLOCK)
    assert times_of(replace(work, programs=1), H200).l2 == pytest.approx(6400 / 64 / CLOCK)
    assert found.shared == pytest.approx(2 * 100 / CLOCK)
    assert found.arithmetic == pytest.approx(2 * 10 / CLOCK)
    assert found.issue == pytest.approx(2 * 100 * 8 / 4 / CLOCK)
    assert found.latency == pytest.approx(2 * (LATENCY + 200) / CLOCK)
    assert found.bound == "dram"
    assert found.predicted == pytest.approx(LAUNCH_SECONDS + 1e-6)
    beside = times_of(replace(work, resident=2), H200)
    assert beside.latency == pytest.approx(found.latency / 2)
    assert beside.issue == found.issue


def test_what_one_kernel_leaves_to_the_next_is_read_when_it_is_done():
    alone = Work(1, 128, 0, 0, 0, 1, "half", 1)
    small = times_of(replace(alone, launches=2, between_bytes=7_000_525), H200)
    assert small.launch == pytest.approx(2 * LAUNCH_SECONDS + 1e-6)  # 7 TB/s, from L2
    large = times_of(replace(alone, launches=2, between_bytes=43.2e6), H200)
    assert large.launch == pytest.approx(2 * LAUNCH_SECONDS + 43.2e6 / (COPY_SHARE * 4.8e12))


def test_operands_in_shared_memory_are_read_once_for_64_rows():
    def bytes_of(family, gemm):
        code = code_of(family, "fprop", gemm, 256, False, "ieee")
        work = gemm_work(family, gemm, 1, 1, 256, 2**16, (2, 2), "half", 1, 0, code, H200)
        return work.l2_bytes, work.shared_bytes

    loaded, moved = bytes_of("tma", (128, 256, 64))
    assert loaded == 64 * (128 + 256) * 2
    assert moved == loaded + 64 * (128 + 2 * 256) * 2
    # Through pointers what is loaded passes L1 as well.
    assert bytes_of("gemm", (128, 256, 64)) == (loaded, moved + loaded)


def test_rows_of_a_box_of_planes_read_the_weight_again():
    tile = TmaTile(1, 4, 64, 128, 64, 8, 3)
    plan = plan_with_tile("fprop", LAYER, tile)
    once, again = (
        plan_work(plan, LAYER, torch.bfloat16, 2, H200, planes=planes) for planes in (False, True)
    )
    passes_made = passes(plan, LAYER)
    assert again.shared_bytes - once.shared_bytes == passes_made * 3 * 128 * 64 * 2
    assert again.instructions > once.instructions
    assert again.l2_bytes == once.l2_bytes


def test_pixels_that_a_window_moves_out_of_line_are_loaded_alone():
    tile = GEMM_TILES["half"][1]
    point = geometry_of((32, 256, 14, 14), (256, 256, 1, 1))
    for g, more in ((LAYER, True), (point, False)):
        plan = plan_with_tile("fprop", g, tile, one_tap=True)
        last, planes = (
            plan_work(plan, g, torch.bfloat16, 2, H200, planes=planes).instructions
            for planes in (False, True)
        )
        assert (planes > last) == more


def test_a_weight_larger_than_half_of_L2_is_read_by_every_wave():
    assert reread_bytes("fprop", 10**7, 2 * 10**7, 132 * 3, 1, H200) == 0
    assert reread_bytes("fprop", 10**7, 3 * 10**7, 132 * 3, 1, H200) == 2 * 3 * 10**7
    assert reread_bytes("fprop", 10**7, 3 * 10**7, 132, 1, H200) == 0


def test_passes_are_those_of_the_kernels():
    few = geometry_of((1, 3, 8, 8), (64, 3, 3, 3), padding=SAME)
    tile = next(t for t in GEMM_TILES["half"] if t.BLOCK_K == 32)
    assert passes(plan_with_tile("fprop", few, tile), few) == 1  # 27 of 32
    assert passes(plan_with_tile("fprop", LAYER, tile, one_tap=True), LAYER) == 9 * 256 / 32
    strided = geometry_of((1, 64, 8, 8), (64, 64, 3, 3), (2, 2), SAME)
    assert passes(plan_with_tile("dgrad", strided, tile, one_tap=True), strided) == 9 / 4 * 2
    box = TmaTile(1, 8, 8, 64, 64, 4, 4)
    assert (
        passes(plan_with_tile("wgrad", strided, replace(box, BLOCK_P=4, BLOCK_Q=4)), strided) == 1
    )


def _gemms():
    """(entry, what code_of says) for the pointer and descriptor kernels of codegen.json."""
    for entry in json.loads(CODE.read_text(encoding="utf-8"))["entries"]:
        kernel, product, blocks, *_ = entry["name"].split("-")
        op, _, family = kernel.partition("_")
        if entry["target"] != "sm_90" or family not in ("gemm", "tma"):
            continue
        if entry["name"].endswith("loop"):
            continue  # has what is outside in the loop
        sizes = [int(n) for n in blocks.split("x")]
        gemm, parts, alone = tuple(sizes), 1, 0
        planes = entry["name"].endswith("planes")
        if family == "tma":
            i, p, q, n, k, s = sizes
            parts = p if planes and op != "wgrad" else 1
            gemm = (k, n * s, i * p * q) if op == "wgrad" else (n, i * p * q, k)
        elif planes:
            alone = gemm[2] * (gemm[0] + gemm[1] * (op == "wgrad"))
        unit = {"ieee": "fma"}.get(product, product)
        flat = entry["name"].endswith("stem") and op != "wgrad"
        yield entry, code_of(family, op, gemm, entry["threads"], flat, unit, parts, alone)


def test_instructions_and_registers_are_near_those_of_machine_code():
    found = list(_gemms())
    assert len(found) > 20
    for entry, code in found:
        outside = entry["instructions"] - entry["loop"]["all"]
        assert code.loop == pytest.approx(entry["loop"]["all"], rel=0.5), entry["name"]
        assert code.outside == pytest.approx(outside, rel=0.5), entry["name"]
        assert code.registers == pytest.approx(entry["registers"], rel=0.55), entry["name"]


@pytest.mark.parametrize("device", [*DEVICES.values(), INTERPRETER], ids=lambda d: d.arch)
@pytest.mark.parametrize("op", PLANNERS)
def test_the_planner_takes_what_the_model_expects_to_be_done_first(op, device):
    layout = Layout(channels_last=True, x_boxes="pixels", y_boxes="pixels")
    chosen = PLANNERS[op](LAYER, torch.bfloat16, layout, device)
    others = tma_tiles(op, LAYER, torch.bfloat16, "ieee", device.arch, "pixels")
    table = GEMM_GRADIENT_TILES["half"][:2] if op == "wgrad" else gemm_tiles("half", device)
    tiles = [*table, *others]
    for tile in tiles:
        plan = plan_with_tile(op, LAYER, tile, one_tap=op != "wgrad", splits=chosen.splits)
        mine, its = (
            times_of(plan_work(p, LAYER, torch.bfloat16, 2, device), device).predicted
            for p in (chosen, plan)
        )
        assert mine <= 1.1 * its, tile


def test_descriptors_are_taken_because_they_do_not_pass_L1():
    layout = Layout(channels_last=True, x_boxes="pixels", y_boxes="pixels")
    boxes = plan_fprop(LAYER, torch.bfloat16, layout, H200)
    pointers = plan_fprop(LAYER, torch.bfloat16, replace(layout, x_boxes="", y_boxes=""), H200)
    assert (boxes.family, pointers.family) == ("tma", "gemm")
    mine, theirs = (
        times_of(plan_work(p, LAYER, torch.bfloat16, 2, H200), H200) for p in (boxes, pointers)
    )
    assert mine.predicted < theirs.predicted
    assert mine.shared < mine.arithmetic < theirs.shared


def test_a_stencil_stays_unless_another_takes_half_of_its_time():
    g = geometry_of((1, 1, 512, 512), (1, 1, 9, 9), stride=(2, 1))
    stencil = plan_with_tile("wgrad", g, StencilTile(512, 1), splits=7)
    gemm = plan_with_tile("wgrad", g, GemmTile(64, 64, 32, 4, 3), splits=125)
    times = [
        times_of(plan_work(p, g, torch.float16, 2, H200), H200).predicted for p in (stencil, gemm)
    ]
    assert MARGIN < times[1] / times[0] < 1
    assert cheapest([stencil, gemm], g, torch.float16, H200) == stencil
    assert cheapest([gemm], g, torch.float16, H200) == gemm
