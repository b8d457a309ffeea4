"""Methods of learning a kernel: each finds it, and its time, memory and error make a row."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tricorr.perf import __main__ as command
from tricorr.perf import rows
from tricorr.perf.benchmarks import learning, learning_peers
from tricorr.perf.providers import PROVIDERS
from tricorr.perf.timing.machine import Machine, child_environment
from tricorr.perf.timing.measure import Session
from tricorr.perf.timing.timers import CpuTimer

FACTS = Machine("cpu", "a processor", "0123456789ab", "2.11", "0.1.0", None, None, None)

SESSION = Session(CpuTimer(), FACTS, PROVIDERS)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("way", list(learning.WAYS))
def test_every_method_finds_the_kernel(backend, way):
    if way in ("scipy-lstsq", "fft-toeplitz"):
        pytest.importorskip("scipy")
    x, y, true = learning.images(80, 3, "cpu")
    assert y.shape == (78, 78)
    found = learning.WAYS[way](x, y, 3)
    assert found.shape == (3, 3)
    error = float((found - true).abs().max() / true.abs().max())
    if way in ("tricorr-normal", "scipy-lstsq", "numpy-shifts"):
        assert error < 1e-5
    elif way == "fft-toeplitz":
        assert 1e-4 < error < 0.5  # the images have neither a periodic nor a zero border
    else:
        loop = learning.WAYS["pytorch-loop"](x, y, 3)
        torch.testing.assert_close(found, loop, rtol=0.15, atol=0.15)
        assert error < 1


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("size", [40, 300])
def test_learning_from_disk_is_a_row_and_leaves_no_files(backend, tmp_path, size):
    row = rows.validate(learning.stream(SESSION, size, 5, tmp_path, progress=False))
    assert (row.status, row.workload) == ("ok", f"stream-{size}x{size}-5x5")
    assert row.error < 1e-5
    assert not list(tmp_path.iterdir())


def test_resident_memory_is_measured():
    """In a process of its own: memory that other tests used here could be freed meanwhile."""
    code = """if True:
        from tricorr.perf.benchmarks import learning
        before = learning.resident()
        held = bytearray(b"x") * (64 * 2**20)
        print(learning.peak_since(before) // 2**20)
        del held
        print(learning.peak_since(learning.resident()) // 2**20)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    held, after = map(int, done.stdout.split())
    assert 64 <= held < 128
    assert after < 16


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_learning_is_timed_beside_the_loop(backend):
    session = Session(CpuTimer(sample_seconds=1e-4), FACTS, PROVIDERS, budget=0.001)
    found = {row.provider: rows.validate(row) for row in learning.run("learn-32x32-3x3", session)}
    assert set(found) == {"tricorr-gd", "tricorr-normal", "pytorch-loop", *learning.PEERS[3]}
    assert {row.status for row in found.values()} == {"ok"}
    assert found["pytorch-loop"].ratio_to > 0
    assert found["tricorr-normal"].error < learning.TOLERANCE < found["tricorr-gd"].error


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_an_inexact_result_of_an_exact_method_is_wrong(backend, monkeypatch):
    monkeypatch.setitem(learning.WAYS, "tricorr-normal", learning.WAYS["tricorr-gd"])
    session = Session(CpuTimer(sample_seconds=1e-4), FACTS, PROVIDERS, budget=0.001)
    found = {row.provider: rows.validate(row) for row in learning.run("learn-32x32-3x3", session)}
    assert (found["tricorr-normal"].status, found["tricorr-normal"].ms) == ("wrong", None)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_the_command_appends_rows(backend, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(learning, "local_session", lambda: SESSION)
    file = tmp_path / "learn.jsonl"
    arguments = ["stream", "--size", "40", "--dir", str(tmp_path), "--out", str(file)]
    assert command.main(["learn", *arguments]) == 0
    (row,) = rows.read(file)
    assert row.workload == "stream-40x40-5x5"
    assert "stream-40x40-5x5" in capsys.readouterr().out


SMALL = {
    "textbook": {},
    "predict": {"size": 64, "window": 5},
    "nonnegative": {"size": 48, "window": 5},
    "masked": {"size": 64, "window": 5},
    "field": {"size": 40, "window": 3, "order": 1},
    "psf": {"side": 31, "window": 15},
}


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("contest", learning_peers.CONTESTS, ids=lambda c: c.__name__)
def test_peers_solve_the_same_task(backend, contest):
    pytest.importorskip("scipy")
    asked = contest(**SMALL[contest.__name__])
    ours, *peers = learning_peers.rows_of(asked, replace(SESSION, budget=0.01))
    assert rows.validate(ours).status == "ok"
    assert ours.provider == asked.ours[0]
    assert [row.provider for row in peers] == list(asked.peers)
    for row in peers:
        rows.validate(row)
        if row.status == "unavailable":  # photutils and pypher are optional
            assert "No module named" in row.note
            continue
        assert row.ratio_to > 0
        # Noise, and steps that ended early, leave larger errors than rounding.
        assert row.error < (1e-3 if asked.bound else 0.1)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_wrong_result_has_no_time(backend):
    asked = learning_peers.predict(64, 5)
    wrong = replace(asked, truth=asked.truth + 1)
    row = next(learning_peers.rows_of(wrong, replace(SESSION, budget=0.01)))
    assert (row.status, row.ms) == ("wrong", None)
