"""The sweep of planned calls: its estimates, classes and ranges."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from tricorr.ops import geometry_of
from tricorr.ops.plan.device import DEVICES
from tricorr.perf.model import sweep

H100 = replace(DEVICES["h100"], measured=None)


def test_an_estimate_is_divided_by_a_launch_and_the_roofline():
    pointwise = geometry_of((64, 64, 56, 56), (256, 64, 1, 1))  # nearly a copy
    found = sweep.estimate(pointwise, "fprop", "bfloat16", "channels_last", H100)
    moved = pointwise.compulsory_bytes(2, 2, 2) / H100.copy_rate
    assert found.ratio == pytest.approx(found.us * 1e-6 / (H100.launch_seconds + moved))
    assert 1 <= found.ratio < 1.4


def test_classes_follow_the_channels():
    kinds = {
        (64, 64, 1): "ordinary",
        (67, 71, 1): "odd channels",
        (3, 64, 1): "few channels",
        (64, 64, 64): "depthwise",
        (256, 256, 8): "grouped, ordinary",
        (96, 96, 8): "grouped, few channels",
    }
    for (c, k, groups), kind in kinds.items():
        g = geometry_of((1, c, 8, 8), (k, c // groups, 1, 1), groups=groups)
        assert sweep.kind_of(g) == kind


def test_the_sweep_covers_its_ranges_and_is_repeatable(capsys, monkeypatch):
    shapes = list(sweep.geometries())
    assert {g.H for g in shapes} == set(sweep.SIZES)
    assert {g.R for g in shapes} >= {1, 3, 31}
    assert {g.stride[0] for g in shapes} == {1, 2, 3, 4}
    assert {max(g.C, g.K) for g in shapes} >= {1, 2048}
    monkeypatch.setattr(sweep, "SAMPLE", 60)
    printed = []
    for _ in range(2):
        parser = argparse.ArgumentParser()
        sweep.add_arguments(parser)
        assert sweep.main(parser.parse_args(["--worst", "3", "--above", "5"])) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    worst = [line for line in printed[0].partition("the worst")[2].splitlines()[1:] if line]
    ratios = [float(line.split()[0]) for line in worst]
    assert len(worst) == 3
    assert ratios == sorted(ratios, reverse=True)
    assert all(float(line.split()[1]) > 5 for line in worst)
