"""The planner's cost model: its arithmetic by hand, its constants against machine code."""

import json
from dataclasses import replace

import pytest
import torch
from plans import H200, OPS, PLAIN, boxed, planned

from tricorr.ops import geometry_of
from tricorr.ops.plan import tma
from tricorr.ops.plan.choose import plan_with_tile
from tricorr.ops.plan.cost import Work, device_bytes
from tricorr.ops.plan.device import COPY_SHARE, DEVICES, INTERPRETER
from tricorr.ops.plan.gemm import GEMM_GRADIENT_TILES, GEMM_TILES, GemmTile, tiles_with_room
from tricorr.ops.plan.integers import cdiv
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.stencil import StencilTile
from tricorr.ops.plan.times import (
    EXPOSED,
    MARGIN,
    MEMORY_EXPOSED,
    PARTIAL_SECONDS,
    TRANSPOSED,
    cheapest,
    seconds_of,
    times_of,
)
from tricorr.ops.plan.tma import TmaTile
from tricorr.perf.model.codegen import TABLE

CLOCK, L2 = H200.rates.clock, H200.rates.l2
SAME = ((1, 1), (1, 1))
LAYER = geometry_of((32, 256, 14, 14), (256, 256, 3, 3), padding=SAME)


def half(op, geometry=LAYER, layout=PLAIN, device=H200):
    return Problem(op, geometry, torch.bfloat16, layout=layout, device=device)


def work_of(problem, tile, splits=1):
    plan = plan_with_tile(problem, tile, splits)
    return plan.tile.work(plan, problem)


def test_the_time_of_every_unit_by_hand():
    work = Work(
        133, 256, dram_bytes=4.32e6, l2_bytes=6400, shared_bytes=12800, macs=16310,
        unit="half", instructions=100, resident=1,
    )  # fmt: skip
    found = times_of(work, H200)
    # One program more than multiprocessors: two waves for the units of a multiprocessor.
    assert found.dram == pytest.approx(1e-6)
    assert found.l2 == pytest.approx(133 * 6400 / L2 / CLOCK)
    assert times_of(work._replace(programs=1), H200).l2 == pytest.approx(6400 / 64 / CLOCK)
    assert found.shared == pytest.approx(2 * 100 / CLOCK)
    assert found.arithmetic == pytest.approx(2 * 10 / CLOCK)
    assert found.issue == pytest.approx(2 * 100 * 8 / 4 / CLOCK)
    assert found.latency == pytest.approx(2 * (H200.latency + 200) / CLOCK)
    assert found.bound == "dram"
    others = found.l2 + found.shared + found.arithmetic + found.issue
    chip = found.latency + EXPOSED["registers"] * others
    shorter, longer = sorted((1e-6, chip))
    expected = H200.launch_seconds + longer + MEMORY_EXPOSED * shorter
    assert found.predicted == pytest.approx(expected)
    # Bytes that several multiprocessors read are read once; lines of scattered stores are whole.
    many = work._replace(programs=1320, readers=2, scattered_bytes=128)
    assert times_of(many, H200).l2 == pytest.approx(1320 * (6400 / 2 + 128) / L2 / CLOCK)
    # Multiply-adds of no matrix unit are instructions.
    scalar = times_of(work._replace(unit="fma", instructions=100, macs=128 * 300), H200)
    assert scalar.arithmetic == pytest.approx(2 * 300 / CLOCK)
    assert scalar.issue == 0
    beside = times_of(work._replace(resident=2), H200)
    assert beside.latency == pytest.approx(found.latency / 2)
    assert beside.issue == found.issue


def test_what_a_kernel_leaves_is_written_then_read():
    alone = Work(1, 128, 0, 0, 0, 1, "half", 1)
    small = times_of(alone._replace(launches=2, between_bytes=7_000_525), H200)
    assert small.launch == pytest.approx(2 * H200.launch_seconds + 1e-6)  # 7 TB/s, from L2
    large = times_of(alone._replace(launches=2, between_bytes=43.2e6), H200)
    assert large.launch == pytest.approx(2 * H200.launch_seconds + 43.2e6 / (COPY_SHARE * 4.8e12))
    partial = times_of(alone.with_partials(5_000_000), H200)
    assert partial.launch == pytest.approx(H200.launch_seconds + PARTIAL_SECONDS + 4e-6)
    copied = times_of(alone.after_copies([2_160_000]), H200)
    assert copied.launch == pytest.approx(2 * H200.launch_seconds + TRANSPOSED * 1e-6)


def test_operands_in_shared_memory_are_read_once_for_64_rows():
    layer = replace(LAYER, H=16, W=16)

    def bytes_of_a_pass(tile, layout):
        work = work_of(half("fprop", layer, layout), tile)
        return work.l2_bytes / work.steps, work.shared_bytes / work.steps

    loaded, moved = bytes_of_a_pass(TmaTile(1, 16, 16, 128, 64, 8, 3), boxed("NHWC"))
    assert loaded == 64 * (128 + 256) * 2
    assert moved == loaded + 64 * (128 + 2 * 256) * 2
    # Loads through pointers are asynchronous copies, but for single elements of planes: L1 reads 4
    # bytes for each.
    last, planes = Layout(channels_last=True), Layout()
    assert bytes_of_a_pass(GemmTile(128, 256, 64, 8, 4), last) == (loaded, moved)
    assert bytes_of_a_pass(GemmTile(128, 256, 64, 8, 4), planes) == (loaded, moved + 128 * 64 * 4)


def test_what_a_tile_has_beyond_its_tensors_is_not_read_from_L2():
    """Of 40 filters, 40 channels and 14 x 14 pixels: in tiles of 64, 64 and 16 x 16."""
    few = replace(LAYER, C=40, K=40)
    box = work_of(half("fprop", few, boxed("NHWC")), TmaTile(1, 16, 16, 64, 64, 8, 4))
    assert box.l2_bytes == pytest.approx(9 * 40 * (40 + 14 * 14) * 2)
    assert box.macs == 9 * 64 * 64 * 256
    gradient = work_of(half("wgrad", few, boxed("NHWC")), TmaTile(1, 2, 2, 64, 64, 4, 4))
    assert gradient.l2_bytes == pytest.approx(gradient.steps * 4 * (40 + 40) * 2)


def test_waves_of_a_weight_gradient_read_their_slices_again():
    """The taps of a slice of x are neighbours: a wave reads little else than that slice."""
    g = geometry_of((64, 2048, 32, 32), (512, 2048, 5, 5))
    problem = half("wgrad", g)
    x, dy = problem.read_bytes
    sharers = 4 * 16 * 25
    waves = cdiv(sharers, 132)
    found = device_bytes(problem, sharers, sharers, (4, 16)) - problem.compulsory_bytes
    assert found == round((3 + (waves - 1) / 16) * x + (waves - 1) / 4 * dy)
    assert device_bytes(problem, sharers, sharers) == problem.compulsory_bytes + (waves - 1) * (
        x + dy
    )


def test_misaligned_pixels_are_loaded_one_by_one():
    tile = GEMM_TILES["half"][1]
    point = geometry_of((32, 256, 14, 14), (256, 256, 1, 1))
    for g, more in ((LAYER, True), (point, False)):
        last, planes = (
            work_of(half("fprop", g, Layout(channels_last=last)), tile).instructions
            for last in (True, False)
        )
        assert (planes > last) == more


def test_a_weight_larger_than_half_of_L2_is_read_by_every_wave():
    def again(filters, waves):
        # A pixel is 2 bytes; a filter of 2500 channels of 2x2 taps 20 kB.
        g = geometry_of((1, 2500, 41, 41), (filters, 2500, 2, 2))
        problem = half("fprop", g)
        return device_bytes(problem, 132 * waves, 1) - problem.compulsory_bytes

    assert again(1000, 3) == 0
    assert again(1500, 3) == 2 * 3 * 10**7
    assert again(1500, 1) == 0


def test_passes_are_those_of_the_kernels():
    few = geometry_of((1, 3, 8, 8), (64, 3, 3, 3), padding=SAME)
    tile = next(t for t in GEMM_TILES["half"] if t.BLOCK_K == 32)
    assert work_of(half("fprop", few), tile).steps == 1  # 27 of 32
    assert work_of(half("fprop"), tile).steps == 9 * 256 / 32
    strided = geometry_of((1, 64, 8, 8), (64, 64, 3, 3), (2, 2), SAME)
    assert work_of(half("dgrad", strided), tile).steps == 9 / 4 * 2
    assert work_of(half("wgrad", strided), TmaTile(1, 4, 4, 64, 64, 4, 4)).steps == 1


def _gemms():
    """(entry, the code that its tile counts) for the products of codegen.json on sm_90."""
    for entry in json.loads(TABLE.read_text(encoding="utf-8"))["entries"]:
        name = entry["name"].split("-")
        op, _, family = name[0].partition("_")
        if entry["target"] != "sm_90" or family not in ("gemm", "tma") or name[-1] == "loop":
            continue  # its loop contains the code outside as well
        product, blocks, case = name[1], name[2], name[-1]
        sizes, warps = [int(n) for n in blocks.split("x")], entry["threads"] // 32
        layout = boxed("NCHW" if case == "planes" else "NHWC")
        dtype = {"half": torch.bfloat16, "float64": torch.float64}.get(product, torch.float32)
        problem = Problem(op, LAYER, dtype, product, layout, H200)
        if family == "tma":
            yield entry, TmaTile(*sizes[:5], warps, 3, sizes[5]).code(problem)
        else:
            tile = GemmTile(*sizes, warps, 3)
            plan = replace(plan_with_tile(problem, tile), one_tap=case != "stem")
            yield entry, tile.code(plan, problem)


def test_instructions_and_registers_are_near_those_of_machine_code():
    found = list(_gemms())
    assert len(found) > 20
    for entry, code in found:
        outside = entry["instructions"] - entry["loop"]["all"]
        assert code.loop == pytest.approx(entry["loop"]["all"], rel=0.5), entry["name"]
        assert code.outside == pytest.approx(outside, rel=0.5), entry["name"]
        assert code.registers == pytest.approx(entry["registers"], rel=0.55), entry["name"]


@pytest.mark.parametrize("device", [*DEVICES.values(), INTERPRETER], ids=lambda d: d.arch)
@pytest.mark.parametrize("op", OPS)
def test_the_planner_takes_the_least_predicted_time(op, device):
    problem = half(op, layout=boxed("NHWC"), device=device)
    chosen = planned(op, LAYER, torch.bfloat16, problem.layout, device)
    table = GEMM_GRADIENT_TILES["half"][:2] if op == "wgrad" else tiles_with_room(problem)
    for tile in [*table, *tma.tiles(problem)]:
        plan = plan_with_tile(problem, tile, chosen.splits)
        assert seconds_of(chosen, problem) <= 1.1 * seconds_of(plan, problem), tile


def test_descriptors_are_taken_because_no_lane_computes_their_addresses():
    boxes, pointers = half("fprop", layout=boxed("NHWC")), half("fprop", layout=Layout(True))
    plan = planned("fprop", LAYER, torch.bfloat16, boxes.layout, H200)
    assert plan.family == "tma"
    mine = times_of(plan.tile.work(plan, boxes), H200)
    theirs = times_of(work_of(pointers, GEMM_TILES["half"][1]), H200)
    assert mine.predicted < theirs.predicted
    assert mine.issue < theirs.issue
    assert mine.latency < theirs.latency
    assert mine.arithmetic == theirs.arithmetic


def test_columns_of_a_phase_are_stored_to_lines_of_their_own():
    strided = geometry_of((32, 128, 56, 56), (128, 128, 3, 3), stride=(2, 2), padding=SAME)
    tiles = (TmaTile(8, 4, 4, 128, 64, 8, 4, copied=True), 1), (GEMM_TILES["half"][2], 8)
    for tile, neighbours in tiles:
        work = work_of(half("dgrad", strided), tile)
        assert work.scattered_bytes == 128 * work.outputs / neighbours
        plain = replace(strided, given_stride=(1, 1))
        assert work_of(half("dgrad", plain), tile).scattered_bytes == 0
    last = half("dgrad", strided, Layout(channels_last=True))
    assert work_of(last, GEMM_TILES["half"][2]).scattered_bytes == 0


def test_pixels_between_windows_are_not_read():
    g = geometry_of((2, 16, 8, 8), (32, 16, 1, 1), stride=(2, 2))
    planes, last = half("fprop", g), half("fprop", g, Layout(channels_last=True))
    assert planes.read_bytes[0] == g.x_numel * 2 // 2
    assert last.read_bytes[0] == g.x_numel * 2 // 4
    assert last.compulsory_bytes == (g.x_numel // 4 + g.y_numel + g.weight_numel) * 2
    whole = half("dgrad", g, Layout(channels_last=True))
    assert whole.compulsory_bytes == g.compulsory_bytes(2, 2, 2)


def test_a_stencil_stays_unless_another_is_clearly_faster():
    g = geometry_of((1, 1, 512, 512), (1, 1, 9, 9), stride=(2, 1))
    device = replace(H200, measured=None)
    problem = Problem("wgrad", g, torch.float16, layout=Layout(True), device=device)
    stencil = plan_with_tile(problem, StencilTile(512, 1), splits=60)
    gemm = plan_with_tile(problem, GemmTile(64, 64, 32, 4, 3), splits=60)
    assert MARGIN < seconds_of(gemm, problem) / seconds_of(stencil, problem) < 1
    assert cheapest([stencil, gemm], problem, ["stencil"]) == stencil
    assert cheapest([gemm], problem) == gemm
