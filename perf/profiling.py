"""One launch under Nsight Compute, boiled down and held against the static model.

    python -m tricorr.perf profile resnet50-64x56x56-64-3x3 --op fprop

Runs `ncu` around this module as a child, which makes the call a few times; the last launch of the
plan's kernel is profiled. Clocks are left alone. docs/profiling.md says how to read the result, and
how to run compute-sanitizer.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..ops import ArgumentError
from ..ops.explain import device_named
from ..ops.plan.choose import DEVICES, Device
from .model import PRODUCTS, Prediction, predict
from .worker import child_environment
from .workloads import FORMATS, OPS, Workload, find

#: Our name -> Nsight Compute's.
METRICS = {
    "time": "gpu__time_duration.sum",
    "dram_read": "dram__bytes_read.sum",
    "dram_write": "dram__bytes_write.sum",
    "l2": "lts__t_bytes.sum",
    "l1_loads": "l1tex__t_bytes_pipe_lsu_mem_global_op_ld.sum",
    "l1_hit": "l1tex__t_sector_hit_rate.pct",
    "l2_hit": "lts__t_sector_hit_rate.pct",
    "dram_busy": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1_busy": "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "issue_busy": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "fma_busy": "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "tensor_busy": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "shared": "launch__shared_mem_per_block",
    "instructions": "sm__inst_executed.sum",
}
_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
#: Nsight Compute's reason -> what it means here.
STALLS = {
    "long_scoreboard": "global loads",
    "short_scoreboard": "shared memory",
    "lg_throttle": "too many global loads at once",
    "mio_throttle": "too many shared memory operations at once",
    "math_pipe_throttle": "arithmetic units",
    "gmma": "wgmma",
    "barrier": "other warps at a barrier",
    "wait": "fixed latency of the instruction before",
    "not_selected": "other warps were ready too",
    "dispatch_stall": "dispatch",
    "no_instruction": "instruction cache",
}
#: Factors of the prefixes of units, for versions that do not know `--print-units base`.
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SECONDS = {"nsecond": 1e-9, "usecond": 1e-6, "msecond": 1e-3, "second": 1.0}
_SECONDS |= {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Profile:
    """What one launch did; a metric that this GPU or version does not have is missing.

    Attributes:
        kernel: its name.
        values: by the names of METRICS, in bytes, seconds, percent and counts.
        stalls: cycles that a warp waits for each reason between two instructions, largest first.
    """

    kernel: str
    values: dict[str, float]
    stalls: dict[str, float]


#: What is asked for; a GPU does not have them all.
ASKED = (*METRICS.values(), *(_STALL.format(name) for name in STALLS))


def command(report_of: list[str], kernel: str, metrics: Iterable[str] = ASKED) -> list[str]:
    """The command line that profiles the last launch of a kernel in `report_of`."""
    return [
        "ncu",
        "--clock-control",
        "none",
        "--csv",
        "--print-units",
        "base",
        "--kernel-name",
        f"regex:^{kernel}$",
        "--launch-skip",
        str(WARM),
        "--launch-count",
        "1",
        "--metrics",
        ",".join(metrics),
        *report_of,
    ]


#: Calls before the one that is profiled.
WARM = 3


def parse(text: str) -> Profile:
    """What `ncu --csv` printed: one metric a line, between whatever else the program said.

    Raises:
        ValueError: there is no table in it, or an empty one.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if "Metric Name" in line), None)
    if start is None:
        raise ValueError(f"ncu printed no table:\n{text[-2000:]}")
    rows = list(csv.DictReader(line for line in lines[start:] if line.startswith('"')))
    if not rows:
        raise ValueError("ncu profiled no launch: no kernel of that name ran")
    found = {
        row["Metric Name"]: number
        for row in rows
        if (number := _number(row["Metric Value"], row["Metric Unit"])) is not None
    }
    stalls = {name: found[key] for name in STALLS if (key := _STALL.format(name)) in found}
    return Profile(
        rows[0]["Kernel Name"],
        {name: found[metric] for name, metric in METRICS.items() if metric in found},
        dict(sorted(stalls.items(), key=lambda item: -item[1])),
    )


def _number(value: str, unit: str) -> float | None:
    """In base units; None for "n/a"."""
    try:
        number = float(value.replace(",", ""))
    except ValueError:
        return None
    if unit in _SECONDS:
        return number * _SECONDS[unit]
    prefix = re.fullmatch(r"([KMGT]?)byte(/.*)?", unit)
    return number * _PREFIXES[prefix[1].lower()] if prefix else number


def boil_down(profile: Profile, expected: Prediction) -> Iterator[str]:
    """Lines: what was measured, what the model says, and where they part."""
    v = profile.values
    yield f"{profile.kernel}, {expected.tile}, {expected.programs} programs"
    if "time" in v:
        yield _against("time", v["time"] * 1e6, expected.predicted_us, "us")
    if "dram_read" in v and "dram_write" in v:
        moved = v["dram_read"] + v["dram_write"]
        yield _against("device memory", moved / 1e6, expected.device_bytes / 1e6, "MB")
        if v.get("time"):
            rate, busy = moved / v["time"] / 1e9, v.get("dram_busy")
            yield f"  at {rate:,.0f} GB/s" + (f", {busy:.0f} % of its peak" if busy else "")
    if "l1_loads" in v:
        yield _against("loads from L1", v["l1_loads"] / 1e6, expected.load_bytes / 1e6, "MB")
    if "instructions" in v:
        yield _against("warp instructions", v["instructions"], expected.instructions, "issued")
    hits = [f"{n.upper()} {v[key]:.0f} %" for n in ("l1", "l2") if (key := f"{n}_hit") in v]
    if hits:
        yield f"{'hits':16} {', '.join(hits)}"
    units = {
        unit: v[key]
        for unit, key in (
            ("dram", "dram_busy"),
            ("shared", "l1_busy"),
            ("issue", "issue_busy"),
            ("fma", "fma_busy"),
            ("tensor", "tensor_busy"),
        )
        if key in v
    }
    if units:
        order = sorted(units, key=lambda unit: -units[unit])
        shown = ", ".join(f"{unit} {units[unit]:.0f} %" for unit in order)
        yield f"{'busy':16} {shown}; the model's bound is {expected.bound}"
    facts = [
        f"{v[key]:,.0f} {label}"
        for key, label in (
            ("occupancy", "% occupancy"),
            ("registers", "registers a thread"),
            ("shared", "bytes of shared memory"),
            ("instructions", "warp instructions"),
        )
        if key in v
    ]
    if facts:
        yield f"{'launch':16} {', '.join(facts)}"
    waits = [
        f"{STALLS[name]} {cycles:.1f}" for name, cycles in profile.stalls.items() if cycles >= 0.1
    ]
    if waits:
        yield f"{'warps wait for':16} {', '.join(waits[:5])} (cycles between two instructions)"


def _against(what: str, measured: float, model: float, unit: str) -> str:
    factor = measured / model if model else float("inf")
    return f"{what:16} {measured:.4g} {unit}, the model says {model:.4g}: {factor:.2f} times that"


def run_ncu(child: list[str], kernel: str) -> tuple[int, str]:
    """(exit code, what ncu printed), without the metrics that it says it does not know."""
    metrics = list(ASKED)
    while True:
        line = command(child, kernel, metrics)
        run = subprocess.run(
            line, capture_output=True, text=True, check=False, env=child_environment()
        )
        printed = run.stdout + run.stderr
        lines = [text for text in printed.splitlines() if "find metric" in text.lower()]
        unknown = {metric for metric in metrics if any(metric in text for text in lines)}
        if "Metric Value" in run.stdout or not unknown:
            return run.returncode, printed if run.returncode else run.stdout
        metrics = [metric for metric in metrics if metric not in unknown]


def obstacle() -> str | None:
    """Why nothing can be profiled here, in one line."""
    if not torch.cuda.is_available():
        return "profiling needs an NVIDIA GPU: PyTorch finds none here"
    if shutil.which("ncu") is None:
        return "profiling needs Nsight Compute: no ncu on the PATH (it comes with the CUDA toolkit)"
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf profile`."""
    parser.add_argument("workload", metavar="WORKLOAD", help="a name from the table")
    parser.add_argument("--op", default=None, choices=OPS, help="the workload's first if not given")
    parser.add_argument("--dtype", default=None, choices=sorted(PRODUCTS))
    parser.add_argument("--format", default="NCHW", choices=FORMATS)
    parser.add_argument(
        "--device", default="h200", help=f"for the model, of {', '.join(DEVICES)} (%(default)s)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="read what ncu printed before")
    parser.add_argument("--json", action="store_true", help="profile and prediction as JSON")
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> int:
    """Profiles and prints; says what is missing where it cannot."""
    try:
        workload, device = find(options.workload), device_named(options.device)
    except KeyError as error:
        print(f"no workload is called {error}; `python -m tricorr.perf workloads` lists them")
        return 2
    except ArgumentError as error:
        print(error)
        return 2
    op = options.op or workload.ops[0]
    dtype = options.dtype or workload.dtypes[0]
    if options.launch:
        _launch(workload, op, dtype, options.format)
        return 0
    expected = _expected(workload, op, dtype, options.format, device)
    if options.csv is not None:
        text = options.csv.read_text(encoding="utf-8")
    else:
        child = [sys.executable, "-m", "tricorr.perf.profiling", workload.name, "--launch"]
        child += ["--op", op, "--dtype", dtype, "--format", options.format]
        missing = obstacle()
        if missing is not None:
            print(missing)
            return 1
        code, text = run_ncu(child, expected.kernel)
        if code:
            print(f"ncu ended with {code}:\n{text[-2000:]}")
            return 1
    try:
        profile = parse(text)
    except ValueError as error:
        print(error)
        return 1
    if options.json:
        print(json.dumps({"profile": asdict(profile), "model": asdict(expected)}))
    else:
        print(f"{workload.name} {op} {dtype} {options.format}")
        print("\n".join(boil_down(profile, expected)))
    return 0


def _expected(
    workload: Workload, op: str, dtype: str, memory_format: str, device: Device
) -> Prediction:
    tensor_dtype, precision = PRODUCTS[dtype]
    return predict(
        workload.geometry,
        op,
        tensor_dtype,
        device,
        channels_last=memory_format == "channels_last",
        precision=precision,
        name=workload.name,
        suite=workload.suite,
    )


def _launch(workload: Workload, op: str, dtype: str, memory_format: str) -> None:
    """What the child does: the call, so often that the last launch is a warm one."""
    from .providers import make_problem
    from .tune import call_of

    call = call_of(make_problem(workload, op, dtype, memory_format, "cuda"))
    for _ in range(WARM + 1):
        call()
    torch.cuda.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The launches that ncu looks at.")
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
