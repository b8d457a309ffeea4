"""The host-time benchmark replaces kernels while it runs, and restores them."""

import argparse

import pytest
import torch

from tricorr import corr2d, kernels
from tricorr.ops import backend as backends
from tricorr.ops import cpu
from tricorr.perf import rows
from tricorr.perf.benchmarks import host
from tricorr.perf.providers import PROVIDERS
from tricorr.perf.timing.machine import Machine
from tricorr.perf.timing.measure import Session
from tricorr.perf.timing.timers import CpuTimer

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)


def test_kernels_are_replaced_and_restored(backend, monkeypatch):
    done = []
    monkeypatch.setattr(cpu, "fprop", lambda *args: done.append(args))
    monkeypatch.setattr(kernels.fprop_rows, "run", lambda *args, **kwargs: done.append(args))
    real = backends.CPU_DEVICE, kernels.fprop_rows
    with host.without_work():
        y = corr2d(torch.ones(3, 4, requires_grad=True), torch.ones(2, 2))
        for call in host.paths().values():
            call()
    assert not done
    assert y.shape == (2, 3)
    assert y.requires_grad
    assert (backends.CPU_DEVICE, kernels.fprop_rows) == real


def test_every_path_is_printed_with_its_ratio(backend, capsys):
    assert host.main(argparse.Namespace(calls=2, repeats=1)) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(host.paths())
    assert all(" us " in line and " x " in line for line in lines)
    with pytest.raises(ValueError, match="at least 1"):
        host.main(argparse.Namespace(calls=0, repeats=1))


def test_every_path_is_a_row_of_a_run(backend):
    facts = Machine("gpu", "a GPU", "0123456789ab", "2.11", "0.1.0", None, None, None)
    found = [rows.validate(row) for row in host.run(Session(CpuTimer(), facts, PROVIDERS), 2, 1)]
    assert len(found) == len(host.paths())
    assert {row.op for row in found} == {"host"}
    assert {row.provider for row in found} == {"tricorr", "pytorch"}
