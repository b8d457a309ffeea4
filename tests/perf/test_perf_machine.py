"""Queries of nvidia-smi and the reading of its answers. A script takes the place of nvidia-smi."""

from __future__ import annotations

import types

import pytest
import torch

from tricorr.perf.timing import machine
from tricorr.perf.timing.ceilings import Ceilings

#: Answers as a driver does: an unknown field is an error on stdout, with exit code 2.
SCRIPT = """#!/bin/sh
echo "$@" >> "$0.asked"
case "$1" in
{cases}
*) echo "Field is not a valid field to query."; exit 2;;
esac
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Returns a function that installs an nvidia-smi with these fields.

    The function returns the file in which the nvidia-smi records its arguments.
    """

    def install(**answers):
        cases = (
            f"--query-gpu={fields.replace('__', ',').replace('0', '.')}) echo '{line}';;"
            for fields, line in answers.items()
        )
        script = tmp_path / "nvidia-smi"
        script.write_text(SCRIPT.format(cases="\n".join(cases)))
        script.chmod(0o755)
        return tmp_path / "nvidia-smi.asked"

    properties = types.SimpleNamespace(uuid="12345678-9abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return install


def test_a_query_names_the_gpu_and_asks_for_bare_values(driver):
    asked = driver(driver_version="580.95.05")
    assert machine.smi("driver_version") == ["580.95.05"]
    assert asked.read_text().split() == [
        "--query-gpu=driver_version",
        "--format=csv,noheader,nounits",
        "--id=GPU-12345678-9abc",
    ]


def test_clocks_are_read_beside_the_measurement_and_not_too_often(driver):
    asked = driver(clocks0sm__clocks_event_reasons0active="1980, 0x0000000000000004")
    clocks = machine.Clocks(interval=1000.0)
    for _ in range(3):
        clocks.start()
        assert clocks.read() == (1980, "0x0000000000000004")
    assert len(asked.read_text().splitlines()) == 1


def test_an_older_driver_knows_the_reasons_by_another_name(driver):
    driver(clocks0sm__clocks_throttle_reasons0active="1410, 0x0000000000000000")
    clocks = machine.Clocks(interval=0.0)
    for _ in range(2):
        clocks.start()
        assert clocks.read() == (1410, "0x0000000000000000")


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("[N/A], 0x0000000000000001", (None, "0x0000000000000001")),
        ("", (None, None)),
        ("1980", (None, None)),
    ],
)
def test_values_that_the_driver_lacks_are_none(driver, line, read):
    driver(clocks0sm__clocks_event_reasons0active=line)
    clocks = machine.Clocks()
    clocks.start()
    assert clocks.read() == read


def test_without_nvidia_smi_all_values_are_none(driver, monkeypatch, tmp_path):
    driver()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert machine.smi("driver_version") is None
    clocks = machine.Clocks()
    clocks.start()
    assert clocks.read() == (None, None)


def test_a_ceiling_is_the_slower_of_memory_and_arithmetic():
    ceilings = Ceilings(4e12, {"float32": 5e13, "bfloat16": 8e14})
    assert ceilings.seconds(10**12, 4 * 10**9, "bfloat16") == pytest.approx(10**12 / 8e14)
    assert ceilings.seconds(10**9, 4 * 10**9, "bfloat16") == pytest.approx(1e-3)
    assert ceilings.rate("uint8") == ceilings.rate("float32")
