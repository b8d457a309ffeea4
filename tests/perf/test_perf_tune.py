"""tune: plans that win by more than the noise are kept, and the planner takes them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import plans
import pytest
import torch
from plans import boxed

from tricorr.ops import geometry_of
from tricorr.ops.plan import choose, tuned
from tricorr.ops.plan.banded import MAX_LONE_RESULTS
from tricorr.ops.plan.device import DEVICES, Device
from tricorr.ops.plan.gemm import GEMM_GRADIENT_TILES, WIDE_GEMM_TILES, GemmTile, tiles_with_room
from tricorr.ops.plan.problem import Layout, Problem
from tricorr.ops.plan.stencil import STENCIL_TILES, StencilTile
from tricorr.perf.model.planned import PlannedCall, alternatives, describe
from tricorr.perf.session import tune
from tricorr.perf.session.rig import Entrant, GpuRig
from tricorr.perf.session.tune import Comparison, table_plan
from tricorr.perf.timing.timers import CpuTimer
from tricorr.perf.workloads import find

DEVICE = replace(DEVICES["h200"], name="A Test Device, 8 GB", measured=None)
DTYPES = {"half": torch.bfloat16, "float64": torch.float64}
DENSE = PlannedCall(find("resnet50-64x56x56-64-3x3"), "fprop", "bfloat16", "channels_last")


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty directory for tuned files, and a planner that has read none."""
    monkeypatch.setattr(tuned, "DIRECTORY", tmp_path)
    forget()
    yield tmp_path
    forget()


def fits(tile, problem):
    return choose.family_of(tile).fits(tile, problem)


def results(tile):
    """Accumulator elements per thread of a banded tile, 0 of others."""
    return tile.results if tile.family == "banded" else 0


def forget():
    tuned.tuned_for.cache_clear()
    choose.plan.cache_clear()


class Bench:
    """Times plans by a table of the test; each timing takes one second of the bench's clock."""

    def __init__(self, ms, noise=0.01, problem=None):
        self.ms, self.noise, self.problem = ms, noise, problem or (lambda p: "")
        self.now, self.asked = 0.0, []

    def clock(self):
        return self.now

    def __call__(self, job, base, candidate, turns):
        self.now += 1.0
        self.asked.append((candidate, turns))
        if problem := self.problem(candidate):
            return Comparison(problem=problem)
        ratio = self.ms(base) / self.ms(candidate)
        low, high = ratio * (1 - self.noise), ratio * (1 + self.noise)
        return Comparison(self.ms(base), self.ms(candidate), ratio, low, high)


def search(bench, job=DENSE, seconds=1000):
    return tune.search(job, DEVICE, bench, seconds, bench.clock)


def test_the_fastest_plan_outside_the_noise_wins():
    target = tune.candidates(DENSE, DEVICE)[7]
    found = search(Bench(lambda p: 0.8 if p == target else 1.0), seconds=4000)
    assert found.best == target
    assert found.comparison.ratio == pytest.approx(1.25)
    assert found.tried == found.candidates == len(tune.candidates(DENSE, DEVICE))


@pytest.mark.parametrize(("gain", "noise"), [(1.10, 0.12), (1.015, 0.001)])
def test_a_gain_within_the_noise_or_too_small_is_not_kept(gain, noise):
    base = table_plan(DENSE, DEVICE)
    found = search(Bench(lambda p: 1.0 if p == base else 1 / gain, noise))
    assert found.best is None
    assert found.comparison.ratio == pytest.approx(gain)


def test_a_wrong_or_failing_plan_never_wins():
    base = table_plan(DENSE, DEVICE)
    bench = Bench(
        lambda p: 1.0 if p == base else 0.1,
        problem=lambda p: "" if p == base else "error 0.5 is above 0.01",
    )
    found = search(bench)
    assert found.best is None
    assert len(found.problems) == found.tried
    assert "error 0.5" in found.problems[0]


def test_nothing_is_tried_where_the_table_itself_does_not_run():
    found = search(Bench(lambda p: 1.0, problem=lambda p: "out of memory"))
    assert (found.best, found.tried, found.problems) == (None, 0, ("out of memory",))


def test_a_search_ends_inside_its_budget_and_decides_with_more_turns():
    best = tune.candidates(DENSE, DEVICE)[2]
    bench = Bench(lambda p: 0.5 if p == best else 1.0)
    found = search(bench, seconds=20)
    assert bench.now <= 21
    assert found.tried < found.candidates
    assert found.best == best
    assert (best, tune.DECIDE_TURNS) in bench.asked


def test_candidates_are_legal_and_in_the_order_of_the_model():
    for job in (DENSE, PlannedCall(find("images-4096-3x3"), "wgrad", "float32", "NCHW")):
        base, found = table_plan(job, DEVICE), tune.candidates(job, DEVICE)
        assert base not in found
        assert len(set(found)) == len(found) > 10
        assert {p.family for p in found} > {base.family}
        assert all(fits(p.tile, job.problem(DEVICE)) for p in found)
        problem = job.problem(DEVICE)
        origins = {p.family: p for p in alternatives(problem)}
        costs = [tune._cost(p, origins[p.family], problem) for p in found]
        assert costs == sorted(costs)


def test_the_planner_takes_what_was_written_and_only_for_its_key(directory):
    candidates = tune.candidates(DENSE, DEVICE)
    boxes = (p for p in candidates if p.family == "tma" and not p.tile.persistent)
    target = next(p for p in boxes if p.tile.BLOCK_N == 32)
    outcome = search(Bench(lambda p: 0.5 if p == target else 1.0))
    path = tuned.file_of(DEVICE.name)
    assert path == directory / "a_test_device_8_gb.json"
    assert tune.update(path, DEVICE, [outcome], {"driver": "none"}) == 1

    geometry = DENSE.workload.geometry
    forget()
    last = replace(boxed("NHWC"), gluon=True)

    def planned(geometry=geometry, dtype=torch.bfloat16, layout=last, device=DEVICE):
        return plans.planned("fprop", geometry, dtype, layout, device)

    assert planned() == target
    assert planned(replace(geometry, H=geometry.H - 9)) != planned(), "another grid"
    assert planned(replace(geometry, H=geometry.H - 1)).tile == target.tile, "near"
    assert planned(replace(geometry, H=2 * geometry.H)).tile == target.tile, "near"
    tables = table_plan(DENSE, DEVICE).tile
    assert planned(replace(geometry, N=8 * geometry.N)).tile != target.tile, "too far"
    assert planned(replace(geometry, padding=((0, 0), (0, 0)))).tile == target.tile
    assert planned(replace(geometry, given_stride=(2, 2))).tile != target.tile
    assert planned(dtype=torch.float16).tile == tables
    assert planned(layout=Layout()).tile != target.tile, "planes are copied or read by pointers"
    assert planned(layout=replace(last, int64=True)).tile != target.tile
    assert planned(layout=replace(last, epilogue=10)).tile != target.tile
    assert planned(device=replace(DEVICE, name="Another")).tile == tables
    assert plans.planned("dgrad", geometry, torch.bfloat16, last, DEVICE).tile == tables
    assert table_plan(DENSE, DEVICE).tile == tables, "a search starts from the tables"


def test_the_planner_takes_a_register_limit_that_won(directory):
    job = PlannedCall(find("images-4096-7x7"), "fprop", "float32", "NCHW")
    base = table_plan(job, DEVICE)
    found = [p for p in tune.candidates(job, DEVICE) if p.tile == base.tile]
    assert {p.max_registers for p in found} == set(tune.REGISTERS) - {base.max_registers}
    for target in found:
        outcome = search(Bench(lambda p, t=target: 0.5 if p == t else 1.0), job, 10_000)
        tune.update(tuned.file_of(DEVICE.name), DEVICE, [outcome], {})
        forget()
        assert choose.plan(job.problem(DEVICE)) == target


def test_a_tile_for_aligned_columns_does_not_serve_unaligned_ones(directory):
    job = PlannedCall(find("replknet-128x56x56-128-31x31"), "fprop", "bfloat16", "NCHW")
    target = next(p for p in tune.candidates(job, DEVICE) if results(p.tile) > MAX_LONE_RESULTS)
    outcome = search(Bench(lambda p: 0.5 if p == target else 1.0), job)
    tune.update(tuned.file_of(DEVICE.name), DEVICE, [outcome], {})
    forget()
    geometry = job.workload.geometry
    for size in (48, 56, 55):
        near = replace(geometry, H=size, W=size)
        tile = plans.planned("fprop", near, torch.bfloat16, device=DEVICE).tile
        assert (tile == target.tile) == (size % 8 == 0)
        assert results(tile) <= MAX_LONE_RESULTS or size % 8 == 0


def test_the_file_justifies_its_entries_and_a_new_search_replaces_them(directory):
    path = tuned.file_of(DEVICE.name)
    base = table_plan(DENSE, DEVICE)
    won = search(Bench(lambda p: 1.0 if p == base else 0.5))
    other = replace(won, job=replace(DENSE, format="NCHW"))
    assert tune.update(path, DEVICE, [won, other], {"driver": "1.2", "time": "now"}) == 2
    file = json.loads(path.read_text(encoding="utf-8"))
    assert file["device"] == DEVICE.name
    evidence = file["entries"][0]["evidence"]
    assert evidence["workload"] == DENSE.workload.name
    assert evidence["table"] == describe(base)
    assert evidence["driver"] == "1.2"
    assert {"ms", "base_ms", "ratio_low", "ratio_high", "noise", "turns", "tried"} <= set(evidence)
    lost = search(Bench(lambda p: 1.0))
    assert tune.update(path, DEVICE, [lost], {}) == 1
    assert len(tuned.parse(json.loads(path.read_text(encoding="utf-8")))) == 1


def tuned_to_more_splits(job):
    """The plan that a search found for a weight gradient, now in the device's file."""
    base = table_plan(job, DEVICE)
    target = next(p for p in tune.candidates(job, DEVICE) if p.splits > base.splits)
    outcome = search(Bench(lambda p: 0.5 if p == target else 1.0), job)
    tune.update(tuned.file_of(DEVICE.name), DEVICE, [outcome], {})
    forget()
    return target


def test_splits_of_a_weight_gradient_are_tuned_too(directory):
    job = PlannedCall(find("images-4096-3x3"), "wgrad", "float32", "NCHW")
    target = tuned_to_more_splits(job)
    assert choose.plan(job.problem(DEVICE)) == target


def test_a_problem_near_a_tuned_one_takes_its_tile_and_splits_of_its_own(directory):
    job = PlannedCall(find("images-4096-3x3"), "wgrad", "float32", "NCHW")
    target = tuned_to_more_splits(job)
    quarter = replace(job.workload.geometry, H=job.workload.geometry.H // 4)
    problem = replace(job.problem(DEVICE), geometry=quarter)
    found = choose.plan(problem)
    splits = target.tile.splits(problem)
    assert found == choose.plan_with_tile(problem, target.tile, splits)
    assert found.splits != target.splits


def _key(N=32, C=64, K=64, P=56, **changes):
    geometry = geometry_of((N, C, P, 56), (K, C, 3, 3), padding=((1, 1), (1, 1)))
    problem = Problem("fprop", geometry, torch.float16, layout=Layout(channels_last=True))
    return replace(tuned.key_of(problem), **changes)


def test_the_nearest_of_the_entries_serves():
    entries = {_key(N=n, C=c): tuned.Tuned({"BLOCK_M": n + c}) for n in (8, 64) for c in (64, 128)}
    for key, near, distance in (
        (_key(N=64), 64 + 64, 0),
        (_key(N=48), 64 + 64, math.log2(64 / 48)),
        (_key(N=14), 8 + 64, math.log2(14 / 8)),
        (_key(N=8, C=96), 8 + 128, math.log2(128 / 96)),
        (_key(N=8, C=96, P=28), 8 + 128, math.log2(128 / 96) + 1),
    ):
        found, away = tuned.nearest(entries, key)
        assert found.tile["BLOCK_M"] == near
        assert away == pytest.approx(distance)
    for key in (_key(N=1), _key(K=72), _key(op="dgrad"), _key(dtype="float32"), _key(C=65)):
        assert tuned.nearest(entries, key) == (None, math.inf), key
    assert tuned.nearest({}, _key()) == (None, math.inf)


def test_few_channels_have_no_near_problems():
    entries = {_key(C=1, K=1): tuned.Tuned({"BLOCK_M": 1})}
    assert tuned.nearest(entries, _key(C=1, K=1, N=16))[1] == 1
    assert tuned.nearest(entries, _key(C=1, K=3))[0] is None


def test_every_tuned_file_that_is_shipped_can_be_read():
    for path in tuned.DIRECTORY.glob("*.json"):
        file = json.loads(path.read_text(encoding="utf-8"))
        assert tuned.file_of(file["device"]).name == path.name
        for found in tuned.parse(file).values():
            assert vars(choose.tile_of(found.tile)).items() >= found.tile.items()
        assert all(entry["evidence"]["ratio_low"] > 1 for entry in file["entries"])


def test_tuned_tiles_are_compiled_ahead_of_time_like_the_tables(directory):
    pytest.importorskip("triton")
    from tricorr.perf.model.choices import dealt
    from tricorr.perf.model.configuration import TARGETS

    target = TARGETS["sm_90"]
    names = [c.name for c in dealt(target)]
    job = PlannedCall(find("images-4096-3x3"), "fprop", "float32", "NCHW")
    outcomes = [
        search(Bench(lambda p, t=t: 0.5 if p == t else 1.0), j)
        for j, t in (
            (DENSE, tune.candidates(DENSE, DEVICE)[0]),
            (job, tune.candidates(job, DEVICE)[0]),
        )
    ]
    tune.update(tuned.file_of(target.device.name), target.device, outcomes, {})
    forget()
    found = {c.name: c for c in dealt(target)}
    new = [c for name, c in found.items() if name not in names]
    assert {c.plan.tile for c in new} == {o.best.tile for o in outcomes}
    assert all("-tuned-w" in c.name for c in new)


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_plans_are_checked_and_timed_in_turns(op, kernel_backend):
    if kernel_backend.device == "cuda":
        pytest.skip("times plans in the interpreter, by a clock that counts")
    ticks = iter(range(10**6))
    timer = CpuTimer(clock=lambda: float(next(ticks)))
    job = PlannedCall(find("images-6x8-1x2"), op, "float32", "NCHW")
    base, *others = (p for p in tune.candidates(job, DEVICE) if p.family == "rows")
    other = next(p for p in others if p.tile != base.tile)
    rig = GpuRig(device="cpu")

    def call_of(operands, plan):
        return rig.call(operands, Entrant("tricorr", operands.format, plan))

    measure = tune.measure_by(timer, call_of)
    found = measure(job, base, other, 5)
    assert found == Comparison(found.base_ms, found.ms, 1.0, 1.0, 1.0)
    assert found.ms > 0
    # A plan that Triton refuses does not run; the reason is reported.
    broken = replace(other, tile=replace(other.tile, BLOCK_Q=3, LANE_Q=1, X_ALIGN=1, Y_ALIGN=1))
    assert "power of" in measure(job, base, broken, 5).problem


def test_without_a_file_or_device_name_the_tables_decide(directory):
    assert tuned.tuned_for("a device that nobody has") == {}
    assert not tuned.file_of("").exists()


@pytest.mark.parametrize("name", DEVICES)
def test_the_tables_are_legal_everywhere(name):
    def problem(op, product):
        dtype = DTYPES.get(product, torch.float32)
        return Problem(op, DENSE.workload.geometry, dtype, product, device=DEVICES[name])

    for product, wide in WIDE_GEMM_TILES.items():
        for tile in (*tiles_with_room(problem("fprop", product)), wide):
            assert fits(tile, problem("fprop", product)), tile
        for tile in GEMM_GRADIENT_TILES[product]:
            assert fits(tile, problem("wgrad", product)), tile
    for tile in STENCIL_TILES:
        for product in ("half", "ieee", "float64"):
            assert fits(tile, problem("fprop", product)), tile


@pytest.mark.parametrize(
    ("tile", "why"),
    [
        (GemmTile(128, 128, 64, 4, 8), "shared memory"),
        (GemmTile(256, 256, 32, 4, 2), "registers"),
        (GemmTile(128, 8, 32, 4, 2), "the matrix unit wants 16"),
        (GemmTile(96, 64, 32, 4, 2), "not a power of two"),
        (GemmTile(128, 64, 32, 64, 2), "threads"),
        (StencilTile(32, 1), "a thread without work"),
        (StencilTile(4096, 8), "registers"),
    ],
)
def test_tiles_that_cannot_be_best_are_left_out(tile, why):
    assert not fits(tile, DENSE.problem(DEVICES["a100"])), why


def test_an_unknown_architecture_gets_the_smallest_limits():
    tile = GemmTile(128, 128, 64, 8, 3)
    assert fits(tile, DENSE.problem(DEVICES["h200"]))
    assert not fits(tile, DENSE.problem(Device("new", "990", 10)))


def test_the_kind_of_a_problem_is_readable():
    geometry = geometry_of((32, 64, 56, 56), (72, 64, 3, 3), padding=((1, 1), (1, 1)))
    expected = "groups 1 window 3x3 stride 1x1 dilation 1x1 channels by 16 and 8"
    assert tuned.kind_of(geometry) == expected
