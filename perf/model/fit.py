"""How recorded rows differ from the static model, and the constants of it that would fit them.

    python -m tricorr.perf fit rows.jsonl --write tricorr/ops/plan/measured/DEVICE.json

Printed are the kernels with their multipliers and what is left of the differences, the shares of
EXPOSED that make the median of measured over predicted 1, and the calls of which several plans were
timed, with how much longer the planner's takes than the fastest. `--write` writes the multipliers,
for ops/plan/measured/. `--hold-out 5` fits without every fifth call and prints both parts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...ops.explain import device_named
from ...ops.plan import choose
from ...ops.plan.device import DEVICES, Device
from ...ops.plan.measured import FEWEST_CALLS, parse
from ...ops.plan.times import EXPOSED
from ..rows import Row, read
from .calibration import Sample, calibration_of, samples, with_constants
from .planned import describe

#: Shares of EXPOSED that are tried.
SHARES = [step / 20 for step in range(41)]
#: Measured constants that are taken: a launch in a graph is shorter than one with cold caches.
CONSTANTS = ["copy", "l2", "latency"]
#: Fields of a calibration that have multipliers.
MULTIPLIERS = ("families", "kernels")
#: A plan within this factor of the fastest counts as right.
RIGHT = 1.1


def shares(found: Sequence[Sample]) -> dict[str, tuple[int, float]]:
    """(samples, the share that brings their median ratio nearest 1), by entry of EXPOSED."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in found:
        groups[sample.plan.work(sample.problem).operands].append(sample)

    def off(group: list[Sample], share: float) -> float:
        return abs(math.log(statistics.median(sample.ratio(share) for sample in group)))

    return {
        name: (len(group), min(SHARES, key=lambda share: off(group, share)))
        for name, group in sorted(groups.items())
    }


def contests(found: Sequence[Sample], device: Device) -> list[tuple[float, float, str]]:
    """For each call with several plans: the planner's time over the fastest, the loss, the call.

    The loss is in seconds. Where the planner takes a plan that was not timed, they are those of the
    timed plan that it puts first.
    """
    groups: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in found:
        groups[sample.call].append(sample)
    lines = []
    for call, group in groups.items():
        best = min(group, key=lambda sample: sample.seconds)
        own = choose.plan(replace(best.problem, device=device))
        taken = [s for s in group if describe(s.plan) == describe(own)]
        mine = taken[0] if taken else min(group, key=lambda sample: sample.predicted(device))
        if len(group) > 1:
            text = (
                f"{' '.join(call)}: {describe(mine.plan)} {mine.seconds * 1e6:.1f} us, predicted "
                f"{mine.predicted(device) * 1e6:.1f}; {describe(best.plan)} "
                f"{best.seconds * 1e6:.1f}, predicted {best.predicted(device) * 1e6:.1f}"
            )
            text += "" if taken else f"; the planner takes {describe(own)}, which was not timed"
            lines.append((mine.seconds / best.seconds, mine.seconds - best.seconds, text))
    return sorted(lines, reverse=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf fit`."""
    parser.add_argument("rows", type=Path, nargs="+", help="rows.jsonl of a run on the device")
    parser.add_argument("--device", default="h100", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument(
        "--rates", type=Path, help="calibration.json with constants; default: the device's own"
    )
    parser.add_argument("--constants", nargs="*", default=CONSTANTS, help="those to take")
    parser.add_argument(
        "--without", default="", help="pattern of `call: plan` of rows to leave out"
    )
    parser.add_argument("--hold-out", type=int, default=0, help="fit without every N-th call")
    parser.add_argument("--write", type=Path, help="file for the multipliers and constants")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="that file's multipliers of kernels timed too seldom now",
    )


def main(options: argparse.Namespace) -> int:
    """Prints how the rows differ from the model."""
    device = device_named(options.device)
    known = asdict(device.measured) if device.measured is not None else {}
    if options.rates is not None:
        known = json.loads(options.rates.read_text(encoding="utf-8"))["rates"]
    rates = {name: known[name] for name in options.constants if known.get(name) is not None}
    constants = with_constants(device, rates)
    rows = [row for path in options.rows for row in read(path)]
    if options.without:
        rows = [row for row in rows if not re.search(options.without, name_of(row))]
    found = samples(rows, constants, constants)
    if not found:
        print("no row is of a plan that the planner still offers")
        return 1
    kept, held_out = split(found, options.hold_out)
    fitted = calibration_of(kept, rates)
    calibrated = replace(device, measured=parse(asdict(fitted)))
    print(f"{len(kept)} plans timed on {fitted.device}\n\nmeasured over predicted, and the error:")
    for name, kernel in fitted.kernels.items():
        error = statistics.median(s.error(calibrated) for s in kept if s.kernel == name)
        print(
            f"  {name:28} {kernel.multiplier:5.2f} ({kernel.low:.2f} to {kernel.high:.2f}, "
            f"{kernel.calls} plans) {error:.3f}"
        )
    print("\nshares of EXPOSED that fit:")
    for name, (count, share) in shares(kept).items():
        print(f"  {name:10} {share:.2f}, not {EXPOSED[name]:.2f} ({count} plans)")
    for name, group in (("fitted", kept), ("held out", held_out)):
        if group:
            print(f"\n{name}: {len(group)} plans")
            _print_quality(group, calibrated)
    if options.write is not None:
        written = asdict(fitted)
        if options.keep:
            old = json.loads(options.write.read_text(encoding="utf-8"))
            written |= {field: kept_of(written[field], old[field]) for field in MULTIPLIERS}
        options.write.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


def kept_of(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Multipliers of a fit, and those of the one before where too few calls were timed now."""
    often = {name: entry for name, entry in new.items() if entry["calls"] >= FEWEST_CALLS}
    return dict(sorted({**new, **old, **often}.items()))


def name_of(row: Row) -> str:
    """The call and the plan of a row, in a line."""
    return f"{row.workload} {row.op} {row.dtype} {row.format}: {row.plan}"


def split(found: Sequence[Sample], every: int) -> tuple[list[Sample], list[Sample]]:
    """(samples to fit, samples of every N-th call, held out; none of these if `every` is 0)."""
    calls = list(dict.fromkeys(sample.call for sample in found))
    out = set(calls[every - 1 :: every]) if every else set()
    return [s for s in found if s.call not in out], [s for s in found if s.call in out]


def _print_quality(group: Sequence[Sample], calibrated: Device) -> None:
    errors = [sample.error(calibrated) for sample in group]
    print(f"median of |log(measured / calibrated)|: {statistics.median(errors):.3f}")
    lost = contests(group, calibrated)
    right = sum(ratio <= RIGHT for ratio, _, _ in lost)
    print(f"the planner's plan is within {RIGHT} of the fastest in {right} of {len(lost)} calls;")
    print("of the others, measured over the fastest, and what is lost:")
    for ratio, seconds, text in lost:
        if ratio > RIGHT:
            print(f"  {ratio:5.2f} {seconds * 1e6:7.1f} us  {text}")
