"""Rows into a page that a person can act on, and into the README's section.

python -m tricorr.perf report [DIR ...] [--out DIR] [--readme [FILE]]
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..images.extras import needs
from ..ops.plan.tuned import DIRECTORY as TUNED
from .compared import Case, Processor, geomean, median_of, processors
from .providers import OURS
from .rows import Row, read
from .targets import verdicts
from .workloads import ALL_OPS, BY_NAME, OPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
TABLE = RESULTS / "codegen.json"
START, END = "<!-- performance -->", "<!-- /performance -->"
#: Okabe and Ito's colour-blind safe colours; markers tell the operators apart too.
MARKS = {"fprop": ("o", "#0072B2"), "dgrad": ("s", "#E69F00"), "wgrad": ("^", "#009E73")}


def page(rows: list[Row], pictures: dict[tuple[str, str], list[tuple[str, str]]]) -> str:
    """The whole page.

    Args:
        rows: all of them.
        pictures: (title, file) of every picture, by (kind, device).
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
    found = processors(rows)
    if not any(processor.kind == "gpu" for processor in found):
        lines += ["**Nothing here was measured on a GPU.**", ""]
    for processor in found:
        lines += _processor(processor, pictures.get((processor.kind, processor.device), []))
    return "\n".join(lines).rstrip() + "\n"


def _processor(processor: Processor, pictures: list[tuple[str, str]]) -> Iterator[str]:
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
    for title, file in pictures:
        yield from [f"![{title}]({file})", ""]
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
    """Learning and start-up, which are no single operator."""
    for op, title in (
        ("learn", "Learning a kernel"),
        ("host", "Host time of a call without its kernels"),
        ("startup", "Start-up"),
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
            "taken on one is in `perf/results/`. What is known without a GPU:",
            "",
            *_known(),
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


def _known() -> Iterator[str]:
    """What is known without a GPU, as a list."""
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
    if not list(TUNED.glob("*.json")):
        yield ""
        yield "No tile has been tuned on a device."


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


def draw(processor: Processor, out: Path) -> list[tuple[str, str]]:
    """Draws the ratios, if there are any; returns (title, file name) of each picture."""
    points = [(case, case.ratio) for case in processor.cases() if case.ratio is not None]
    if not points:
        return []
    slug = re.sub(r"[^a-z0-9]+", "-", processor.device.lower()).strip("-")[:40]
    fallback = "CPU fallback: " * (processor.kind == "cpu")
    title, file = "Time of the best peer over ours", f"ratio-{processor.kind}-{slug}.png"
    label = f"{title}, a mark for each dtype\n{fallback}{processor.device}, {processor.cache} cache"
    _dots(points, label).savefig(out / file)
    return [(title, file)]


def _dots(points: list[tuple[Case, float]], title: str) -> Figure:
    """Workloads as lines, in the table's order; operators side by side in a line."""
    with needs("plots"):
        from matplotlib.figure import Figure
    present = {case.ours.workload for case, _ in points}
    known = [name for full in BY_NAME for name in (full, f"{full}-small") if name in present]
    names = [*known, *sorted(present - set(known))]
    figure = Figure(figsize=(9.5, 1.6 + 0.27 * len(names)), layout="constrained", dpi=100)
    panel = figure.subplots()
    panel.set_title(title, fontsize=11)
    panel.set_xlabel("time of the best peer / ours (log scale): right of 1 ours is faster")
    panel.set_xscale("log")
    low = min(0.8, *(ratio for _, ratio in points)) / 1.15
    panel.set_xlim(low, max(1.25, *(ratio for _, ratio in points)) * 1.15)
    panel.axvspan(low, 1, color="#F3E3DC", zorder=0)
    panel.axvline(1, color="black", linewidth=1.2, zorder=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.xaxis.set_minor_formatter("")
    for op in OPS:
        marker, colour = MARKS[op]
        for memory_format, face in (("NCHW", colour), ("channels_last", "white")):
            mine = [
                (value, names.index(case.ours.workload) + 0.24 * (OPS.index(op) - 1))
                for case, value in points
                if (case.ours.op, case.ours.format) == (op, memory_format)
            ]
            if mine:
                panel.plot(
                    *zip(*mine, strict=True),
                    marker=marker,
                    color=colour,
                    markerfacecolor=face,
                    markersize=5.5,
                    linestyle="none",
                    zorder=3,
                    label=f"{op}, {memory_format}",
                )
    panel.set_yticks(range(len(names)), names, fontsize=8.5)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(color="#D8D8D8", linewidth=0.6, zorder=1)
    panel.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


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
    path, pictures = write(rows, out, plots=not options.no_plots)
    drawn = f", with {', '.join(pictures)}" if pictures else ""
    print(f"{path} from {len(rows)} rows{drawn}")
    return 0


def write(rows: list[Row], out: Path, plots: bool = True, head: str = "") -> tuple[Path, list[str]]:
    """Writes report.md and its pictures into a directory; returns their names.

    Args:
        rows: all of them.
        out: the directory.
        plots: whether to draw.
        head: what a run has to say, before the tables.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = {(p.kind, p.device): draw(p, out) for p in processors(rows)} if plots else {}
    path = out / "report.md"
    text = f"```\n{head}\n```\n\n" if head else ""
    path.write_text(text + page(rows, pictures), encoding="utf-8")
    return path, [file for found in pictures.values() for _, file in found]
