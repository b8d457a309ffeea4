"""Rows into a page that a person can read, losses first, and into the README's section.

    python -m tricorr.perf report [DIR ...] [--out DIR] [--readme [FILE]]

Rows of a GPU and rows of a CPU never meet in a table, a mean or a picture. A case is one operator
of one workload in one dtype and memory format; its ratio is the time of the best peer over ours, so
that above 1 ours is faster. The best peer is the fastest in either memory format: in the format of
ours it is compared by the ratio of the turns (A B A B), in the other by medians.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..ops.plan.tuned import DIRECTORY as TUNED
from .rows import Row, latest, read
from .workloads import BY_NAME, Workload

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
TABLE = RESULTS / "codegen.json"
PREDICTED = RESULTS / "predicted-h200.json"
OURS = "tricorr"
START, END = "<!-- performance -->", "<!-- /performance -->"
#: Which cache state the tables compare in: the first that was measured.
CACHES = ("cold", "graph", "warm")
OPS = ("fprop", "dgrad", "wgrad")


@dataclass(frozen=True)
class Case:
    """One operator of one workload in a dtype and memory format: ours, and every peer.

    Attributes:
        ours: our row.
        peers: rows of peers that are ok, in either memory format.
    """

    ours: Row
    peers: tuple[Row, ...]

    def ratio_to(self, peer: Row) -> float:
        """The peer's time over ours."""
        if peer.format == self.ours.format and peer.ratio_to is not None:
            return peer.ratio_to
        return (peer.ms or math.nan) / (self.ours.ms or math.nan)

    @property
    def best(self) -> Row | None:
        """The fastest peer."""
        return min(self.peers, key=self.ratio_to, default=None)

    @property
    def ratio(self) -> float | None:
        """The best peer's time over ours: above 1 ours is faster."""
        return None if self.best is None else self.ratio_to(self.best)

    def ratio_in(self, memory_format: str) -> float | None:
        """The same among the peers in one memory format."""
        ratios = [self.ratio_to(p) for p in self.peers if p.format == memory_format]
        return min(ratios, default=None)

    @property
    def workload(self) -> Workload | None:
        """From the table; None if the row's is not in it any more."""
        small = self.ours.workload.removesuffix("-small")
        known = BY_NAME.get(small)
        return known.scaled() if known and small != self.ours.workload else known


@dataclass(frozen=True)
class Machine:
    """The rows of one processor."""

    kind: str
    device: str
    rows: tuple[Row, ...]

    @property
    def cache(self) -> str:
        """The cache state that is compared."""
        measured = {row.cache for row in self.rows if row.status == "ok" and row.op in OPS}
        return next((cache for cache in CACHES if cache in measured), CACHES[0])

    def cases(self, cache: str | None = None) -> list[Case]:
        """Every operator that ours ran, in the order of the table of workloads."""
        cache = cache or self.cache
        ok = [r for r in self.rows if r.status == "ok" and r.cache == cache and r.op in OPS]
        peers = defaultdict(list)
        for row in ok:
            if row.provider.partition("@")[0] != OURS:
                peers[row.workload, row.op, row.dtype].append(row)
        found = [
            Case(row, tuple(peers[row.workload, row.op, row.dtype]))
            for row in ok
            if row.provider == OURS
        ]
        order = {name: i for i, name in enumerate(BY_NAME)}
        return sorted(
            found,
            key=lambda c: (
                order.get(c.ours.workload.removesuffix("-small"), len(order)),
                c.ours.workload,
                OPS.index(c.ours.op),
                c.ours.dtype,
                c.ours.format,
            ),
        )


def machines(rows: Iterable[Row]) -> list[Machine]:
    """Rows by processor, GPUs first; of each measurement the last, whatever revision it is of."""
    groups: dict[tuple[str, str], dict[tuple[str, ...], Row]] = defaultdict(dict)
    for row in sorted(latest(rows), key=lambda row: row.time):
        key = (row.workload, row.op, row.dtype, row.format, row.provider, row.cache)
        groups[row.kind, row.device][key] = row
    return [
        Machine(kind, device, tuple(found.values()))
        for (kind, device), found in sorted(groups.items(), key=lambda g: (g[0][0] != "gpu", g[0]))
    ]


def geomean(values: Iterable[float | None]) -> float | None:
    """Of what is there; None if nothing is."""
    logs = [math.log(value) for value in values if value]
    return math.exp(statistics.fmean(logs)) if logs else None


@dataclass(frozen=True)
class Verdict:
    """A number that PERFORMANCE.md asks for, and what was measured.

    Attributes:
        regime, what: which number.
        measured: None if it was not.
        asked: least of it, or most.
        at_most: which of the two.
    """

    regime: str
    what: str = ""
    measured: float | None = None
    asked: float = 0.0
    at_most: bool = False

    @property
    def outcome(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.asked if self.at_most else self.measured >= self.asked
        return "met" if met else "**missed**"

    @property
    def asked_text(self) -> str:
        return f"{'at most ' * self.at_most}{self.asked:g}"


@dataclass(frozen=True)
class Target:
    """What PERFORMANCE.md asks for in one regime; a number that is None is not asked for.

    Attributes:
        name: of the regime.
        applies: whether a case belongs to it.
        geomean: of the ratio to the best peer.
        nchw: geometric mean of the ratio to the best peer in NCHW.
        worst: smallest ratio to the best peer.
        copy: compulsory bytes a second over the copy rate of the run, the median.
        roofline: share of the roofline, the median of the forward passes.
        host: our host time of a call over PyTorch's, at most.
    """

    name: str
    applies: Callable[[Case, Workload], bool]
    geomean: float | None = None
    nchw: float | None = None
    worst: float | None = None
    copy: float | None = None
    roofline: float | None = None
    host: float | None = None

    def judge(self, cases: Iterable[Case]) -> list[Verdict]:
        """Every number that is asked for."""
        mine = [c for c in cases if c.workload is not None and self.applies(c, c.workload)]
        ratios = [c.ratio for c in mine if c.ratio is not None]
        forward = [c.ours.roofline_fraction for c in mine if c.ours.op == "fprop"]
        rates = [c.ours.gbps / c.ours.copy_gbps for c in mine if c.ours.gbps and c.ours.copy_gbps]
        hosts = [
            c.ours.host_us / peer.host_us
            for c in mine
            for peer in c.peers
            if peer.provider == "pytorch" and peer.host_us and c.ours.host_us
            if peer.format == c.ours.format
        ]
        measured = {
            "geomean": geomean(ratios),
            "nchw": geomean(c.ratio_in("NCHW") for c in mine),
            "worst": min(ratios, default=None),
            "copy": _median(rates),
            "roofline": _median(f for f in forward if f is not None),
            "host": max(hosts, default=None),
        }
        return [
            Verdict(self.name, label, measured[what], asked, at_most=what == "host")
            for what, label in _LABELS.items()
            if (asked := getattr(self, what)) is not None
        ]


_LABELS = {
    "geomean": "geomean vs best peer",
    "nchw": "geomean vs best peer in NCHW",
    "worst": "worst vs best peer",
    "copy": "share of the copy rate, median",
    "roofline": "share of the roofline forward, median",
    "host": "our host time over PyTorch's",
}


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _taps(workload: Workload) -> int:
    return max(workload.geometry.R, workload.geometry.S)


def _is_image(workload: Workload) -> bool:
    return "image" in workload.tags and workload.geometry.N * workload.geometry.H > 100


_NETS = ("resnet50", "convnext-t", "sd-unet")
_HALF = ("bfloat16", "float16")

TARGETS = (
    Target(
        "images, windows to 7x7, forward",
        lambda c, w: (
            _is_image(w)
            and _taps(w) <= 7
            and c.ours.op == "fprop"
            and not {"per_sample", "padding_mode"} & set(w.tags)
        ),
        geomean=2.0,
        copy=0.90,
    ),
    Target(
        "windows from 9x9, image or depthwise, 16 bits or tf32",
        lambda c, w: _taps(w) >= 9 and w.geometry.group_C == 1 and c.ours.dtype in (*_HALF, "tf32"),
        geomean=3.0,
    ),
    Target("a kernel per sample", lambda c, w: w.geometry.per_sample, geomean=2.0),
    Target(
        "depthwise 3x3 to 7x7, all passes",
        lambda c, w: "depthwise" in w.tags and 3 <= _taps(w) <= 7 and w.suite != "kernelbench",
        geomean=1.5,
        worst=1.0,
        roofline=0.85,
    ),
    Target(
        "dense 16-bit networks, all passes",
        lambda c, w: (
            w.suite in _NETS
            and bool({"dense", "pointwise"} & set(w.tags))
            and c.ours.dtype in _HALF
        ),
        geomean=1.0,
        nchw=1.3,
        worst=0.85,
    ),
    Target(
        "KernelBench level 1",
        lambda c, w: w.suite == "kernelbench",
        geomean=1.3,
        worst=0.95,
    ),
    Target(
        "weight gradient of one huge image",
        lambda c, w: _is_image(w) and w.geometry.H >= 8192 and c.ours.op == "wgrad",
        copy=0.80,
    ),
    Target(
        "host cost of a forward call",
        lambda c, w: w.name.startswith("images-6x8") and c.ours.op == "fprop",
        host=1.2,
    ),
    Target("padding modes", lambda c, w: "padding_mode" in w.tags, geomean=2.0),
    Target("bias and activation in the epilogue", lambda c, w: "epilogue" in w.tags, geomean=1.15),
)


def times_over_zeros(cases: Iterable[Case]) -> list[float]:
    """Our times under a padding mode over those of the same workload with zeros in the padding."""
    found = {(c.workload, c.ours.op, c.ours.dtype, c.ours.format): c.ours.ms for c in cases}
    zeros = {
        (w.geometry, *rest): ms
        for (w, *rest), ms in found.items()
        if w is not None and w.geometry.padding_mode == "zeros" and "image" in w.tags
    }
    return [
        ms / other
        for (w, *rest), ms in found.items()
        if w is not None and "padding_mode" in w.tags
        if ms and (other := zeros.get((w.geometry.without_padding_mode(), *rest)))
    ]


def verdicts(machine: Machine) -> list[Verdict]:
    """Every target of PERFORMANCE.md, held against the rows of one GPU."""
    cases = machine.cases()
    found = [verdict for target in TARGETS for verdict in target.judge(cases)]
    over_zeros = geomean(times_over_zeros(cases))
    label = "our time over that with zeros, geomean, not in turns"
    found.append(Verdict("padding modes", label, over_zeros, 1.02, at_most=True))
    ok = {(r.workload, r.provider): r for r in machine.rows if r.status == "ok"}
    loop = ok.get(("learn-512x512-3x3", "pytorch-loop"))
    found.append(
        Verdict(
            "learning: ten steps, 512x512, 3x3",
            "time of the PyTorch loop over ours",
            None if loop is None else loop.ratio_to,
            50.0,
        )
    )
    times = {
        what: row.ms / 1e3
        for what, key in (
            ("import", ("startup-import", OURS)),
            ("ours", ("startup-first-call-warm", OURS)),
            ("torch", ("startup-first-call-warm", "pytorch")),
        )
        if (row := ok.get(key)) is not None and row.ms is not None
    }
    beyond = times["import"] + times["ours"] - times["torch"] if len(times) == 3 else None
    found.append(
        Verdict("start-up, warm disk cache", "s beyond PyTorch's first call", beyond, 0.3, True)
    )
    return found


def page(rows: list[Row], pictures: dict[tuple[str, str], list[tuple[str, str]]]) -> str:
    """The whole page.

    Args:
        rows: all of them.
        pictures: for each (kind, device) the (title, file) of what was drawn.
    """
    lines = [
        "# Measurements",
        "",
        f"{len(rows)} rows, put together by `python -m tricorr.perf report`. A ratio is the time",
        "of the best peer over ours: **above 1 ours is faster**. The best peer is the fastest of",
        "all, in either memory format, with its tensors already in it; a `~` marks a ratio across",
        "formats, of medians that were not taken in turn. Roofline: the least time that this",
        "machine's own copy and matrix rates allow, over the time taken.",
        "",
    ]
    found = machines(rows)
    if not any(machine.kind == "gpu" for machine in found):
        lines += ["**Nothing here was measured on a GPU.**", ""]
    for machine in found:
        lines += _machine(machine, pictures.get((machine.kind, machine.device), []))
    lines += _predicted()
    return "\n".join(lines).rstrip() + "\n"


def _machine(machine: Machine, pictures: list[tuple[str, str]]) -> Iterator[str]:
    cases = machine.cases()
    if machine.kind == "cpu":
        yield f"## CPU: {machine.device}"
        yield ""
        yield (
            "CPU times. No kernel of ours runs here: `tricorr` is its CPU fallback, PyTorch's own "
            "convolution behind our functions. They say nothing of a GPU."
        )
    else:
        yield f"## {machine.device}"
    yield ""
    yield _provenance(machine)
    yield ""
    for title, file in pictures:
        yield f"![{title}]({file})"
        yield ""
    if machine.kind == "gpu":
        yield "### Targets"
        yield ""
        yield from _targets(machine)
    yield from _losses(cases)
    suites = dict.fromkeys(case.ours.suite for case in cases)
    for suite in suites:
        yield f"### {suite}"
        yield ""
        yield from _cases([case for case in cases if case.ours.suite == suite])
    yield from _others(machine)
    yield from _troubles(machine)


def _predicted() -> Iterator[str]:
    """The recorded predictions, those of dense and few-channelled workloads alike."""
    if not PREDICTED.exists():
        return
    table = json.loads(PREDICTED.read_text(encoding="utf-8"))
    yield f"## {table['device']}: predicted by a model, not measured"
    yield ""
    yield (
        "What `ops/plan/cost.py` expects of the plans at the rates that it assumes; the planner "
        "chooses among GEMMs by it. Roofline: the problem's own bound over the predicted time. "
        "Where a measured row is far from its line here, an assumption is wrong."
    )
    yield ""
    yield "| workload | op | dtype | format | kernel | tile | us | slowest | waste | roofline |"
    yield "|---|---|---|---|---|---|---:|---|---:|---:|"
    for entry in table["entries"]:
        yield (
            f"| {entry['workload']} | {entry['op']} | {entry['dtype']} | {entry['format']} | "
            f"{entry['kernel']} | {entry['tile']} | {_number(entry['predicted_us'])} | "
            f"{entry['bound']} | {entry['waste']:.2f} | {_percent(entry['roofline_fraction'])} |"
        )
    yield ""


def _provenance(machine: Machine) -> str:
    def every(field: str) -> str:
        values = {str(v) for row in machine.rows if (v := getattr(row, field)) is not None}
        return ", ".join(sorted(values)) or "none"

    parts = [f"revision {every('revision')}", f"PyTorch {every('torch')}"]
    parts.append(f"Triton {every('triton')}")
    if machine.kind == "gpu":
        parts += [f"cuDNN {every('cudnn')}", f"driver {every('driver')}"]
    days = sorted(row.time[:10] for row in machine.rows)
    parts.append(days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}")
    if any(row.op in OPS for row in machine.rows):
        parts.append(f"{machine.cache} cache")
    clocks = [row.sm_clock for row in machine.rows if row.sm_clock]
    if clocks:
        parts.append(f"SM clock {min(clocks)} to {max(clocks)} MHz")
    held = sum(_throttled(row) for row in machine.rows)
    if held:
        parts.append(f"**clocks were held back during {held} of {len(machine.rows)} rows**")
    copies = [row.copy_gbps for row in machine.rows if row.copy_gbps]
    if copies:
        parts.append(f"copy {statistics.median(copies):,.0f} GB/s")
    return "; ".join(parts) + "."


def _throttled(row: Row) -> bool:
    """Whether the driver gives a reason other than none and idle."""
    try:
        return bool(int(row.throttle or "0", 16) & ~1)
    except ValueError:
        return False


def _targets(machine: Machine) -> Iterator[str]:
    yield "| regime | what | measured | asked for | |"
    yield "|---|---|---:|---:|---|"
    for v in verdicts(machine):
        yield f"| {v.regime} | {v.what} | {_number(v.measured)} | {v.asked_text} | {v.outcome} |"
    yield ""


def _losses(cases: list[Case]) -> Iterator[str]:
    compared = [case for case in cases if case.ratio is not None]
    losses = sorted((c for c in compared if (c.ratio or 0) < 1), key=lambda c: c.ratio or 0)
    yield f"### Losses: {len(losses)} of {len(compared)} cases"
    yield ""
    if not compared:
        yield "Nothing was compared with a peer."
    elif not losses:
        yield "None: no peer was faster in any case that was measured."
    else:
        yield from _table(losses, full_names=True)
    yield ""


def _cases(cases: list[Case]) -> Iterator[str]:
    """A line for the suite, and its table folded away: what matters of it is among the losses."""
    ratios = [case.ratio for case in cases if case.ratio is not None]
    mean = geomean(ratios)
    if mean is not None:
        slower = sum(ratio < 1 for ratio in ratios)
        yield f"Geometric mean of {len(ratios)} ratios: **{mean:.2f}**; slower in {slower}."
        yield ""
    yield f"<details><summary>all {len(cases)} cases</summary>"
    yield ""
    yield from _table(cases)
    yield ""
    yield "</details>"
    yield ""


def _table(cases: Iterable[Case], full_names: bool = False) -> Iterator[str]:
    yield (
        "| workload | op | dtype | format | ms | best peer | its ms | ratio | spread | roofline "
        "| TFLOP/s | GB/s | host us |"
    )
    yield "|---|---|---|---|---:|---|---:|---:|---|---:|---:|---:|---:|"
    for case in cases:
        row, best, ratio = case.ours, case.best, case.ratio
        name = row.workload if full_names else row.workload.removeprefix(f"{row.suite}-")
        ratio_text = spread = peer = ms = ""
        if best is not None and ratio is not None:
            across = best.format != row.format
            peer = f"{best.provider}, {best.format}" if across else best.provider
            ms = _number(best.ms)
            ratio_text = f"{'~' * across}{ratio:.3g}"
            ratio_text = f"**{ratio_text}**" if ratio < 1 else ratio_text
            if not across and best.ratio_low is not None and best.ratio_high is not None:
                spread = f"{best.ratio_low:.2f} to {best.ratio_high:.2f}"
        yield (
            f"| {name} | {row.op} | {row.dtype} | {row.format} | {_number(row.ms)} | {peer} | {ms} "
            f"| {ratio_text} | {spread} | {_percent(row.roofline_fraction)} "
            f"| {_number(row.tflops)} | {_number(row.gbps)} | {_number(row.host_us)} |"
        )


def _others(machine: Machine) -> Iterator[str]:
    """Learning and start-up, which are no single operator."""
    for op, title in (("learn", "Learning a kernel"), ("startup", "Start-up")):
        rows = [row for row in machine.rows if row.op == op and row.status == "ok"]
        if not rows:
            continue
        yield f"### {title}"
        yield ""
        yield "| workload | provider | cache | ms | steps | ms a step | over ours | peak MB |"
        yield "|---|---|---|---:|---:|---:|---:|---:|"
        for row in sorted(
            rows,
            key=lambda r: (
                len(r.workload),
                r.workload,
                not r.provider.startswith(OURS),
                r.provider,
            ),
        ):
            step = None if not row.steps or row.ms is None else row.ms / row.steps
            peak = None if row.peak_bytes is None else row.peak_bytes / 1e6
            yield (
                f"| {row.workload} | {row.provider} | {row.cache} | {_number(row.ms)} "
                f"| {row.steps or ''} | {_number(step)} | {_number(row.ratio_to)} "
                f"| {_number(peak)} |"
            )
        yield ""


def _troubles(machine: Machine) -> Iterator[str]:
    """What has no time: wrong and failed one by one, unavailable together."""
    for status, title in (("wrong", "Wrong results"), ("failed", "Failed")):
        rows = [row for row in machine.rows if row.status == status]
        if not rows:
            continue
        yield f"### {title}: {len(rows)}"
        yield ""
        for row in rows:
            error = ""
            if row.error is not None and row.error_bound is not None:
                error = f" (error {row.error:.2g}, bound {row.error_bound:.2g})"
            where = f"{row.workload} {row.op} {row.dtype} {row.format} {row.cache}"
            yield f"- **{row.provider}**, {where}: {_line(row.note)}{error}"
        yield ""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for row in machine.rows:
        if row.status == "unavailable":
            counts[row.provider, row.note] += 1
    if counts:
        yield "### Unavailable"
        yield ""
        for (provider, note), count in sorted(counts.items()):
            yield f"- {provider}: {_line(note)} ({count} {'row' if count == 1 else 'rows'})"
        yield ""


def _line(text: str, limit: int = 200) -> str:
    """The first line, without what Markdown would take for a table."""
    first = (text.strip().splitlines() or [""])[0].replace("|", "/")
    return first if len(first) <= limit else first[: limit - 3] + "..."


def _number(value: float | None) -> str:
    """Three digits, no exponent for what people measure in."""
    if value is None:
        return ""
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"


def _percent(value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if value >= 0.01 else "< 1 %"


def readme_section(results: Path = RESULTS) -> str:
    """What the README says of performance, from the committed rows alone; markers included."""
    rows = read(results) if results.exists() else []
    found = machines(rows)
    lines = [START]
    gpus = [machine for machine in found if machine.kind == "gpu"]
    if not gpus:
        lines += [
            "**Nothing has been measured on a GPU yet**, so nothing is claimed about speed: no row",
            "taken on one is in `perf/results/`. What is known without a GPU:",
            "",
            *_known(),
        ]
    for machine in gpus:
        lines += [*_summary(machine), ""]
    cpus = sum(len(machine.rows) for machine in found if machine.kind == "cpu")
    if cpus:
        lines += [
            "",
            f"`perf/results/` also has {cpus} rows of CPU times. On a CPU PyTorch's own",
            "convolution runs behind our functions, so they say nothing of the kernels.",
        ]
    lines += [
        "",
        "`python -m tricorr.perf all` measures on your machine, `python -m tricorr.perf report`",
        "makes the page, and this section, from the rows.",
        END,
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _known() -> Iterator[str]:
    """What needs no GPU, as a list."""
    yield (
        "- kernels of every family build for sm_80, sm_90, sm_100 and gfx942 (those that load\n"
        "  through tensor descriptors for sm_90 and sm_100), with tiles, dtypes and cases dealt\n"
        "  out among the targets; on sm_90 no register is spilled, on the others none in the loop\n"
        "  that does the arithmetic (`tests/kernels/test_aot.py`);"
    )
    if TABLE.exists():
        table = json.loads(TABLE.read_text(encoding="utf-8"))
        entries = table["entries"]
        mma = sum(bool(entry["loop"]["mma"]) for entry in entries)
        yield (
            f"- the machine code of {len(entries)} representative ones, {mma} of them on matrix\n"
            f"  units: `perf/results/codegen.json` has registers, shared memory and instructions\n"
            f"  per output, built with Triton {table['triton']}; tests fail when one gets worse;"
        )
    yield (
        "- bounds by arithmetic: `python -m tricorr.perf predict` gives bytes, waste and the\n"
        "  slowest unit of every workload at datasheet rates: predictions, and optimistic ones."
    )
    tuned = sorted(TUNED.glob("*.json")) if TUNED.exists() else []
    if not tuned:
        yield ""
        yield "No tile has been tuned on a device."


def _summary(machine: Machine) -> Iterator[str]:
    """One GPU in a few lines: targets, and the worst losses."""
    cases = machine.cases()
    compared = [case for case in cases if case.ratio is not None]
    losses = sorted((c for c in compared if (c.ratio or 0) < 1), key=lambda c: c.ratio or 0)
    yield f"Measured on one {machine.device}: {_provenance(machine)}"
    yield ""
    yield (
        f"Of {len(compared)} cases, ours is slower than the best peer in **{len(losses)}**"
        + (":" if losses else ".")
    )
    yield ""
    for case in losses[:5]:
        row, best = case.ours, case.best
        if best is not None:
            yield (
                f"- {row.workload}, {row.op}, {row.dtype}, {row.format}: {case.ratio:.2f} of the "
                f"speed of {best.provider} ({best.format})"
            )
    if len(losses) > 5:
        yield f"- and {len(losses) - 5} more, in the report"
    yield ""
    yield from _targets(machine)


def with_section(text: str, section: str) -> str:
    """A README with its section replaced; without markers, the section called Performance.

    Raises:
        ValueError: there is neither.
    """
    if START in text and END in text:
        head, rest = text.split(START, 1)
        return head + section + rest.split(END, 1)[1]
    heading = re.search(r"^## Performance\n+.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if heading is None:
        raise ValueError(f"no {START} ... {END} in the text, and no heading Performance")
    new = f"## Performance\n\n{section}\n\n"
    return text[: heading.start()] + new + text[heading.end() :]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf report`."""
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="DIR", help="with rows (perf/results)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the page (the first DIR)")
    parser.add_argument("--no-plots", action="store_true", help="only the text")
    parser.add_argument(
        "--readme",
        nargs="?",
        type=Path,
        const=ROOT / "README.md",
        metavar="FILE",
        help="rewrite the performance section there, always from perf/results",
    )


def main(options: argparse.Namespace) -> int:
    """Writes the page and its pictures, and the README's section if asked to."""
    sources: list[Path] = options.results or [RESULTS]
    missing = [source for source in sources if not source.exists()]
    if missing and options.results:
        print(f"there is no {missing[0]}")
        return 2
    if options.readme is not None:
        text = options.readme.read_text(encoding="utf-8")
        options.readme.write_text(with_section(text, readme_section()), encoding="utf-8")
        print(f"performance section of {options.readme} written from {RESULTS}")
    rows = [row for source in sources if source.exists() for row in read(source)]
    if not rows:
        print(f"no rows in {', '.join(map(str, sources))}: `python -m tricorr.perf all` takes some")
        return 0
    out: Path = options.out or (sources[0] if sources[0].is_dir() else sources[0].parent)
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[tuple[str, str], list[tuple[str, str]]] = {}
    if not options.no_plots:
        from .figures import draw

        for machine in machines(rows):
            pictures[machine.kind, machine.device] = draw(machine, out)
    path = out / "report.md"
    path.write_text(page(rows, pictures), encoding="utf-8")
    drawn = [file for files in pictures.values() for _, file in files]
    print(f"{path} from {len(rows)} rows" + (f", with {', '.join(drawn)}" if drawn else ""))
    return 0
