"""The commands that check, measure and tune on a GPU within a time budget.

python -m tricorr.perf gpu --minutes 9 --out DIR     all stages (stages.py); again: goes on
python -m tricorr.perf all --minutes 8 --out DIR     rows only, also on a CPU
python -m tricorr.perf tune WORKLOAD --out DIR       tiny calls, then a search of tiles
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from ..providers import OURS, PROVIDERS
from ..rows import CHOICES
from ..workloads import ALL_OPS, BY_NAME, SUITES
from .processes import ProcessError
from .rig import CpuRig, GpuRig
from .run import STAGES, Run
from .stages import carry_out
from .tasks import tasks_of

#: Suites and operators that are no convolutions.
OTHERS = ("learn", "host", "startup")
PEERS = tuple(provider.name for provider in PROVIDERS if provider.name != OURS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gpu`, `all` and `tune`."""
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="only these")
    parser.add_argument("--minutes", type=float, default=9.0, help="budget (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("perf-results"), metavar="DIR",
        help="results; those that are there are not measured again (default: %(default)s)",
    )  # fmt: skip
    for name, what, choices in (
        ("stage", "stages", STAGES),
        ("suite", "suites of workloads", (*SUITES, *OTHERS)),
        ("op", "operators", (*ALL_OPS, *OTHERS)),
        ("dtype", "dtypes", CHOICES["dtype"]),
    ):
        parser.add_argument(
            f"--{name}", nargs="+", default=[], choices=choices, metavar=name.upper(),
            help=f"only these {what}, of {', '.join(choices)}",
        )  # fmt: skip
    parser.add_argument(
        "--peer", nargs="*", choices=PEERS, metavar="PEER",
        help=f"only these peers, of {', '.join(PEERS)}; none if none is named",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the rows in order and stop")


def main(options: argparse.Namespace) -> int:
    """Runs, or prints what would be run."""
    if not options.minutes > 0 or not math.isfinite(options.minutes):
        raise ValueError(f"--minutes must be positive, got {options.minutes}")
    unknown = sorted(set(options.workloads) - set(BY_NAME))
    if unknown:
        raise ValueError(
            f"no workload is called {unknown[0]}; `python -m tricorr.perf workloads` lists them"
        )
    stages = options.stage or list(STAGES)
    rig = GpuRig() if torch.cuda.is_available() else CpuRig()
    if rig.kind == "cpu" and not options.list and "rows" not in stages:
        raise ValueError("PyTorch finds no GPU here: only `all` measures its CPU fallback")
    tasks = tasks_of(
        rig.kind,
        names=options.workloads,
        suites=options.suite,
        ops=options.op,
        dtypes=options.dtype,
        peers=options.peer,
    )
    if not tasks:
        why = "" if rig.kind == "gpu" else "; with no GPU only float32 is measured"
        raise ValueError(f"nothing to measure: no workload passes the filters{why}")
    if options.list:
        for task in tasks:
            print(f"{task.rank:6.2f}  {task}")
        return 0
    run = Run(
        rig,
        options.out,
        60 * options.minutes,
        stages if rig.kind == "gpu" else ["rows"],
        tasks,
        PEERS if options.peer is None else tuple(options.peer),
    )
    try:
        carry_out(run)
    except ProcessError as error:
        raise ValueError(f"the measuring process did not start: {error}") from error
    except KeyboardInterrupt:
        print(f"\nstopped: {len(run.recorded)} rows are in {options.out}; the same command goes on")
        return 130
    print(f"everything is in {options.out}; the same command goes on with {len(run.left)} jobs")
    if rig.kind == "cpu":
        print(
            "No GPU: these are times of PyTorch's CPU convolution behind tricorr's API, on scaled "
            "workloads; they say nothing of the kernels."
        )
    return 0
