"""fit: multipliers and shares are recovered from rows that the model itself has made."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from tricorr.ops.plan import choose
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.measured import FEWEST_CALLS, parse
from tricorr.ops.plan.times import EXPOSED, times_of
from tricorr.perf import __main__ as command
from tricorr.perf.model import fit
from tricorr.perf.model.calibration import calibration_of, samples
from tricorr.perf.model.planned import PlannedCall, alternatives, describe
from tricorr.perf.rows import Row, to_json
from tricorr.perf.workloads import find

DEVICE = replace(DEVICES["h100"], measured=None)
LAYER = "resnet50-128x28x28-128-3x3 fprop bfloat16 channels_last"
CALLS = [
    ("resnet50-64x56x56-64-3x3", "fprop"),
    ("resnet50-128x28x28-128-3x3", "fprop"),
    ("resnet50-256x14x14-256-3x3", "fprop"),
    ("convnext-t-96x56x56-96-7x7", "wgrad"),
]


def recorded(slow, exposed=None):
    """Rows of every plan; its kernel takes `slow(plan)` times what the model predicts."""
    rows = []
    for name, op in CALLS:
        call = PlannedCall(find(name), op, "bfloat16", "channels_last")
        problem = call.problem(DEVICE)
        for plan in alternatives(problem):
            times = times_of(plan.work(problem), DEVICE)
            times = times._replace(exposed=times.exposed if exposed is None else exposed)
            kernel = times.predicted - times.exchange
            ms = (slow(plan) * kernel + times.exchange) * 1e3
            rows.append(
                Row(
                    workload=name, suite="layers", op=op, dtype="bfloat16", format="channels_last",
                    provider="tricorr", cache="cold", status="ok", note="", kind="gpu",
                    device=DEVICE.name, time="2026-01-02", revision="r", torch="2",
                    tricorr="0", ms=ms, plan=describe(plan),
                )
            )  # fmt: skip
    return rows


def test_multipliers_are_recovered_and_the_planner_follows_them():
    name, op = CALLS[1]
    call = PlannedCall(find(name), op, "bfloat16", "channels_last")
    own = choose.plan(call.problem(DEVICE)).family
    found = samples(recorded(lambda plan: 4.0 if plan.family == own else 2.0), DEVICE, DEVICE)
    calibration = calibration_of(found, {"copy": 3e12})
    assert calibration.families[own].multiplier == pytest.approx(4)
    assert calibration.families["banded"].multiplier == pytest.approx(2)
    assert calibration.rates == {"copy": 3e12}
    before = {text.split(":")[0]: lost for *lost, text in fit.contests(found, DEVICE)}
    ratio, seconds = before[LAYER]
    assert ratio > fit.RIGHT
    assert seconds > 0
    calibrated = replace(DEVICE, measured=parse(asdict(replace(calibration, rates={}))))
    often = [s for s in found if calibration.families[s.plan.family].calls >= FEWEST_CALLS]
    assert len(often) > len(found) // 2
    assert all(sample.error(calibrated) < 1e-9 for sample in often)
    after = {text.split(":")[0]: ratio for ratio, _, text in fit.contests(found, calibrated)}
    assert after[LAYER] == 1


def test_multipliers_of_kernels_that_were_timed_too_seldom_are_kept():
    old = {"a": {"multiplier": 2.0, "calls": 9}, "b": {"multiplier": 3.0, "calls": 9}}
    new = {"a": {"multiplier": 5.0, "calls": 3}, "b": {"multiplier": 7.0, "calls": 2}}
    new["c"] = {"multiplier": 1.0, "calls": 1}
    assert fit.kept_of(new, old) == {"a": new["a"], "b": old["b"], "c": new["c"]}


def test_every_third_call_is_held_out_whole():
    found = samples(recorded(lambda plan: 1.0), DEVICE, DEVICE)
    kept, out = fit.split(found, 3)
    assert {sample.row.workload for sample in out} == {CALLS[2][0]}
    assert len(kept) + len(out) == len(found)
    assert not {sample.call for sample in kept} & {sample.call for sample in out}
    assert fit.split(found, 0) == (found, [])


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_the_share_of_units_that_do_not_overlap_is_recovered(share):
    found = samples(recorded(lambda plan: 1.0, share), DEVICE, DEVICE)
    shares = fit.shares(found)
    assert set(shares) == set(EXPOSED)
    for count, fitted in shares.values():
        assert count > 0
        assert fitted == pytest.approx(share, abs=0.06)


def test_the_command_writes_what_the_planner_reads(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(to_json(row) + "\n" for row in recorded(lambda plan: 2.0)))
    rates = tmp_path / "calibration.json"
    rates.write_text(json.dumps({"rates": {"copy": 3e12, "l2": 1e12}}))
    out = tmp_path / "out.json"
    arguments = ["fit", str(rows), "--device", "h100", "--rates", str(rates), "--write", str(out)]
    assert command.main(arguments) == 0
    written = json.loads(out.read_text())
    assert written["rates"] == {"copy": 3e12, "l2": 1e12}
    assert written["families"]["gemm"]["calls"] > 0
    assert "measured over predicted" in capsys.readouterr().out
    # The device's own constants stay where no others are given.
    assert command.main(["fit", str(rows), "--without", "fprop", "--write", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["rates"]["copy"] == DEVICES["h100"].copy_rate
    assert not any(name.startswith("fprop") for name in written["kernels"])
