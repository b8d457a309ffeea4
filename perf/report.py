"""Makes report.md, and the README's section on performance, from rows.

python -m tricorr.perf report [DIR ...] [--out DIR] [--readme [FILE]]
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from .compared import Case, Processor, geomean, median_of, processors
from .providers import OURS
from .rows import Row, read
from .targets import verdicts
from .workloads import ALL_OPS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
START, END = "<!-- performance -->", "<!-- /performance -->"


def page(rows: list[Row]) -> str:
    """The whole page."""
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
    found = processors(rows)
    if not any(processor.kind == "gpu" for processor in found):
        lines += ["**Nothing here was measured on a GPU.**", ""]
    for processor in found:
        lines += _processor(processor)
    return "\n".join(lines).rstrip() + "\n"


def _processor(processor: Processor) -> Iterator[str]:
    if processor.kind == "cpu":
        yield f"## CPU: {processor.device}"
        yield ""
        yield (
            "CPU times. No kernel of ours runs here: `tricorr` is its CPU fallback, PyTorch's own "
            "convolution behind our functions. They say nothing of a GPU."
        )
    else:
        yield f"## {processor.device}"
    yield from ["", _provenance(processor), ""]
    yield from _troubles(processor)
    if processor.kind == "gpu":
        yield from ["### Targets", "", *_targets(processor)]
    yield from _cases(processor.cases())
    yield from _others(processor)


def _provenance(processor: Processor) -> str:
    def every(field: str) -> str:
        values = {str(v) for row in processor.rows if (v := getattr(row, field)) is not None}
        return ", ".join(sorted(values)) or "none"

    parts = [f"revision {every('revision')}", f"PyTorch {every('torch')}"]
    parts.append(f"Triton {every('triton')}")
    if processor.kind == "gpu":
        parts += [f"cuDNN {every('cudnn')}", f"driver {every('driver')}"]
    days = sorted(row.time[:10] for row in processor.rows)
    parts.append(days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}")
    if any(row.op in ALL_OPS for row in processor.rows):
        parts.append(f"{processor.cache} cache")
    clocks = [row.sm_clock for row in processor.rows if row.sm_clock]
    if clocks:
        parts.append(f"SM clock {min(clocks)} to {max(clocks)} MHz")
    held = sum(_throttled(row) for row in processor.rows)
    if held:
        parts.append(f"**clocks were held back during {held} of {len(processor.rows)} rows**")
    copy = median_of(row.copy_gbps for row in processor.rows)
    if copy is not None:
        parts.append(f"copy {copy:,.0f} GB/s")
    return "; ".join(parts) + "."


def _throttled(row: Row) -> bool:
    """Whether the driver gives a reason other than none and idle."""
    try:
        return bool(int(row.throttle or "0", 16) & ~1)
    except ValueError:
        return False


def _targets(processor: Processor) -> Iterator[str]:
    yield "| regime | what | measured | asked for | |"
    yield "|---|---|---:|---:|---|"
    for v in verdicts(processor):
        asked = f"{'at most ' * v.at_most}{v.asked:g}"
        yield f"| {v.regime} | {v.what} | {_number(v.measured)} | {asked} | {v.outcome} |"
    yield ""


def _cases(cases: list[Case]) -> Iterator[str]:
    """One table of all cases, losses first, after a line for each suite."""
    if not cases:
        return
    compared = [case.ratio for case in cases if case.ratio is not None]
    losses = sum(ratio < 1 for ratio in compared)
    yield f"### Losses first: ours is slower in {losses} of {len(compared)} cases"
    yield ""
    by_suite = defaultdict(list)
    for case in cases:
        by_suite[case.ours.suite].append(case.ratio)
    for suite, ratios in by_suite.items():
        if mean := geomean(ratios):
            yield f"- {suite}: geometric mean of {len(ratios)} ratios **{mean:.2f}**"
    yield ""
    yield (
        "| workload | op | dtype | format | ms | best peer | its ms | ratio | spread | roofline "
        "| TFLOP/s | GB/s | host us |"
    )
    yield "|---|---|---|---|---:|---|---:|---:|---|---:|---:|---:|---:|"
    for case in cases:
        row, best, ratio = case.ours, case.best, case.ratio
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
            f"| {row.workload} | {row.op} | {row.dtype} | {row.format} | {_number(row.ms)} | {peer}"
            f" | {ms} | {ratio_text} | {spread} | {_percent(row.roofline_fraction)} "
            f"| {_number(row.tflops)} | {_number(row.gbps)} | {_number(row.host_us)} |"
        )
    yield ""


def _others(processor: Processor) -> Iterator[str]:
    """Learning and host time, which are no single operator."""
    for op, title in (
        ("learn", "Learning a kernel"),
        ("host", "Host time of a call without its kernels"),
    ):
        rows = [row for row in processor.rows if row.op == op and row.status == "ok"]
        if not rows:
            continue
        yield from [f"### {title}", ""]
        yield "| workload | provider | ms | steps | ms a step | over ours | peak MB |"
        yield "|---|---|---:|---:|---:|---:|---:|"
        for row in sorted(
            rows, key=lambda r: (len(r.workload), r.workload, OURS not in r.provider, r.provider)
        ):
            step = None if not row.steps or row.ms is None else row.ms / row.steps
            peak = None if row.peak_bytes is None else row.peak_bytes / 1e6
            yield (
                f"| {row.workload} | {row.provider} | {_number(row.ms)} | {row.steps or ''} "
                f"| {_number(step)} | {_number(row.ratio_to)} | {_number(peak)} |"
            )
        yield ""


def _troubles(processor: Processor) -> Iterator[str]:
    """Rows without a time: wrong and failed ones one by one, unavailable peers together."""
    for status, title in (("wrong", "Wrong results"), ("failed", "Failed")):
        rows = [row for row in processor.rows if row.status == status]
        if not rows:
            continue
        yield from [f"### {title}: {len(rows)}", ""]
        for row in sorted(rows, key=lambda row: not row.provider.startswith(OURS)):
            error = ""
            if row.error is not None and row.error_bound is not None:
                error = f" (error {row.error:.2g}, bound {row.error_bound:.2g})"
            where = f"{row.workload} {row.op} {row.dtype} {row.format} {row.cache}"
            yield f"- **{row.provider}**, {where}: {_line(row.note)}{error}"
        yield ""
    absent = Counter((r.provider, r.note) for r in processor.rows if r.status == "unavailable")
    if absent:
        yield from ["### Unavailable", ""]
        for (provider, note), count in sorted(absent.items()):
            yield f"- {provider}: {_line(note)} ({count} row{'s' * (count != 1)})"
        yield ""


def _line(text: str, limit: int = 200) -> str:
    """The first line, without the bars that would end a cell of a table."""
    first = (text.strip().splitlines() or [""])[0].replace("|", "/")
    return first if len(first) <= limit else first[: limit - 3] + "..."


def _number(value: float | None) -> str:
    """Three digits, with an exponent only below 0.0001; "" for None."""
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
    """The README's section on performance, from the committed rows alone; markers included."""
    found = processors(read(results) if results.exists() else [])
    gpus = [processor for processor in found if processor.kind == "gpu"]
    lines = [START]
    if not gpus:
        lines += [
            "**Nothing has been measured on a GPU yet**, so nothing is claimed about speed: no row",
            "taken on one is in `perf/results/`.",
        ]
    for processor in gpus:
        lines += [*_summary(processor), ""]
    cpus = sum(len(processor.rows) for processor in found if processor.kind == "cpu")
    if cpus:
        lines += [
            "",
            f"`perf/results/` also has {cpus} rows of CPU times. On a CPU PyTorch's own",
            "convolution runs behind our functions, so they say nothing of the kernels.",
        ]
    lines += [
        "",
        "`python -m tricorr.perf gpu` measures on your machine, `python -m tricorr.perf report`",
        "makes the page, and this section, from the rows.",
        END,
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _summary(processor: Processor) -> Iterator[str]:
    """One GPU in a few lines: the worst losses, and the targets."""
    compared = [case for case in processor.cases() if case.ratio is not None]
    losses = [case for case in compared if (case.ratio or 0) < 1]
    yield f"Measured on one {processor.device}: {_provenance(processor)}"
    yield ""
    end = ":" if losses else "."
    yield (f"Of {len(compared)} cases, ours is slower than the best peer in **{len(losses)}**{end}")
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
    yield from _targets(processor)


def with_section(text: str, section: str) -> str:
    """The README with its section replaced.

    Raises:
        ValueError: the text has no markers.
    """
    if START not in text or END not in text:
        raise ValueError(f"no {START} ... {END} in the text")
    head, rest = text.split(START, 1)
    return head + section + rest.split(END, 1)[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf report`."""
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="DIR", help="with rows (perf/results)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the page (the first DIR)")
    parser.add_argument(
        "--readme",
        nargs="?",
        type=Path,
        const=ROOT / "README.md",
        metavar="FILE",
        help="rewrite the performance section there, always from perf/results",
    )


def main(options: argparse.Namespace) -> int:
    """Writes the page, and the README's section if asked to."""
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
    print(f"{write(rows, out)} from {len(rows)} rows")
    return 0


def write(rows: list[Row], out: Path, head: str = "") -> Path:
    """Writes report.md into a directory; `head` stands before the tables."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.md"
    text = f"```\n{head}\n```\n\n" if head else ""
    path.write_text(text + page(rows), encoding="utf-8")
    return path
