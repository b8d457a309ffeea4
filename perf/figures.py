"""The report's pictures, one set for each processor. Drawn by matplotlib, without a window."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images.extras import needs
from .report import OPS, OURS, Case, Machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's, told apart by people who do not tell red from green; shapes say the same again.
COLOURS = {"fprop": "#0072B2", "dgrad": "#E69F00", "wgrad": "#009E73"}
MARKERS = {"fprop": "o", "dgrad": "s", "wgrad": "^"}
PROVIDERS = ("#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#666666")
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
LOSS = "#F3E3DC"


def draw(machine: Machine, out: Path) -> list[tuple[str, str]]:
    """Draws what there are rows for into a directory; returns (title, file name) of each."""
    cases = machine.cases()
    slug = re.sub(r"[^a-z0-9]+", "-", machine.device.lower()).strip("-")[:40]
    label = f"{'CPU fallback: ' * (machine.kind == 'cpu')}{machine.device}, {machine.cache} cache"
    found = []
    for name, title, figure in (
        ("ratio", "Time of the best peer over ours", ratio_figure(cases, label)),
        ("roofline", "Share of the roofline", roofline_figure(cases, label)),
        ("scaling", "Time against size", scaling_figure(machine, label)),
    ):
        if figure is None:
            continue
        file = f"{name}-{machine.kind}-{slug}.png"
        figure.savefig(out / file, dpi=130)
        found.append((title, file))
    return found


def ratio_figure(cases: list[Case], label: str) -> Figure | None:
    """A line for each workload, a dot for each case; left of 1 the peer is faster."""
    shown = [case for case in cases if case.ratio is not None]
    if not shown:
        return None
    ratios = [case.ratio or 1.0 for case in shown]
    low, high = min(0.8, *ratios) / 1.15, max(1.25, *ratios) * 1.15

    def decorate(panel: Axes) -> None:
        panel.set_xscale("log")
        panel.set_xlim(low, high)
        panel.axvspan(low, 1, color=LOSS, zorder=0)
        panel.axvline(1, color="black", linewidth=1.2, zorder=2)
        far = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
        near = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 2.5)
        ticks = [t for t in (near if high / low < 5 else far) if low < t < high]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()

    return _dots(
        shown,
        [case.ratio or 1.0 for case in shown],
        "time of the best peer / ours (log scale): right of 1 ours is faster",
        f"Ours against the best peer in either memory format, a mark for each dtype\n{label}",
        decorate,
    )


def roofline_figure(cases: list[Case], label: str) -> Figure | None:
    """The same lines, with how much of the machine's own ceiling was reached."""
    shown = [case for case in cases if case.ours.roofline_fraction is not None]
    if not shown:
        return None

    def decorate(panel: Axes) -> None:
        panel.set_xlim(0, max(105, 100 * max(c.ours.roofline_fraction or 0 for c in shown) * 1.05))
        panel.axvline(100, color="black", linewidth=1.2, zorder=2)

    return _dots(
        shown,
        [100 * (case.ours.roofline_fraction or 0) for case in shown],
        "% of the roofline: least time by the measured copy and matrix rates / time",
        f"Ours against the machine's ceilings, a mark for each dtype\n{label}",
        decorate,
    )


def _dots(cases: list[Case], values: list[float], axis: str, title: str, decorate: Any) -> Figure:
    """Panels by suite below each other, workloads as lines, operators side by side in a line."""
    suites: dict[str, dict[str, list[tuple[Case, float]]]] = defaultdict(lambda: defaultdict(list))
    for case, value in zip(cases, values, strict=True):
        suites[case.ours.suite][case.ours.workload].append((case, value))
    counts = [len(workloads) for workloads in suites.values()]
    height = 1.9 + 0.27 * sum(counts) + 0.42 * len(counts)
    figure = _figure(9.5, height)
    panels = figure.subplots(
        len(counts), 1, sharex=True, squeeze=False, height_ratios=[n + 0.6 for n in counts]
    )[:, 0]
    several = len({case.ours.format for case in cases}) > 1
    for panel, (suite, workloads) in zip(panels, suites.items(), strict=True):
        decorate(panel)
        for y, found in enumerate(workloads.values()):
            ops = [op for op in OPS if any(case.ours.op == op for case, _ in found)]
            for case, value in found:
                op = case.ours.op
                filled = case.ours.format == "NCHW" or not several
                panel.plot(
                    value,
                    y + 0.24 * (ops.index(op) - (len(ops) - 1) / 2),
                    marker=MARKERS[op],
                    color=COLOURS[op],
                    markerfacecolor=COLOURS[op] if filled else "white",
                    markersize=5.5,
                    linestyle="none",
                    zorder=3,
                )
        names = [name.removeprefix(f"{suite}-") for name in workloads]
        panel.set_yticks(range(len(names)), names, fontsize=8.5)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.set_title(suite, loc="left", fontsize=10, fontweight="bold", pad=3)
        panel.grid(axis="both", color="#D8D8D8", linewidth=0.6, zorder=1)
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(length=0)
    panels[-1].set_xlabel(axis)
    panels[-1].tick_params(axis="x", length=3)
    _legend(figure, [op for op in OPS if any(c.ours.op == op for c in cases)], several)
    figure.suptitle(title, fontsize=12)
    return figure


def _legend(figure: Figure, ops: list[str], several: bool) -> None:
    from matplotlib.lines import Line2D

    def handle(label: str, marker: str, colour: str, face: str) -> Line2D:
        return Line2D(
            [], [], marker=marker, color=colour, markerfacecolor=face, linestyle="none", label=label
        )

    handles = [handle(op, MARKERS[op], COLOURS[op], COLOURS[op]) for op in ops]
    if several:
        handles += [
            handle("NCHW", "o", "#555555", "#555555"),
            handle("channels_last", "o", "#555555", "white"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def scaling_figure(machine: Machine, label: str) -> Figure | None:
    """Time against the number of pixels and against the size of the window, by provider."""
    by_size: dict[str, dict[float, float]] = defaultdict(dict)
    by_window: dict[str, dict[float, float]] = defaultdict(dict)
    learning: dict[str, dict[float, float]] = defaultdict(dict)
    windows: list[tuple[Case, int]] = []
    for case in machine.cases():
        workload = case.workload
        if workload is None or workload.suite != "images" or case.ours.op != "fprop":
            continue
        g = workload.geometry
        if (g.C, g.K) != (1, 1) or case.ours.dtype != "float32" or g.padding_mode != "zeros":
            continue
        pixels = g.N * g.P * g.Q
        if (g.R, g.S) == (3, 3) or workload.name.startswith("images-6x8"):
            for provider, ms in _times(case):
                by_size[provider][pixels] = ms
        windows.append((case, pixels))
    common = max((p for _, p in windows), key=[p for _, p in windows].count, default=None)
    for case, size_of_case in windows:
        if size_of_case == common and case.workload is not None:
            for provider, ms in _times(case):
                by_window[provider][case.workload.geometry.R * case.workload.geometry.S] = ms
    for row in machine.rows:
        size = re.fullmatch(r"learn-(\d+)x(\d+)-3x3", row.workload)
        if row.op == "learn" and row.status == "ok" and row.ms and size:
            learning[row.provider][int(size[1]) * int(size[2])] = row.ms
    panels = [
        (by_size, "output pixels", "forward, 3x3 (6x8 pixels: 1x2), float32"),
        (by_window, "taps of the window", f"forward, float32, {common or 0:,} pixels"),
        (learning, "pixels of the image", "learning a 3x3 kernel, ten steps"),
    ]
    panels = [p for p in panels if max((len(times) for times in p[0].values()), default=0) > 1]
    if not panels:
        return None
    names = sorted(
        {n for times, _, _ in panels for n in times}, key=lambda n: (not n.startswith(OURS), n)
    )
    styles = {
        n: (PROVIDERS[i % len(PROVIDERS)], SHAPES[i % len(SHAPES)]) for i, n in enumerate(names)
    }
    figure = _figure(5.2 * len(panels), 4.8)
    for panel, (times, axis, title) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name in [n for n in names if n in times]:
            points = sorted(times[name].items())
            colour, marker = styles[name]
            panel.loglog(
                *zip(*points, strict=True),
                marker=marker,
                color=colour,
                label=name,
                markersize=5.5,
                linewidth=2.4 if name.startswith(OURS) else 1.3,
                zorder=4 if name.startswith(OURS) else 3,
            )
        panel.set_xlabel(axis)
        panel.set_ylabel("ms")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if axis.startswith("taps"):
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_title(title, fontsize=10)
        panel.grid(which="major", color="#D8D8D8", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles = {line.get_label(): line for panel in figure.axes for line in panel.get_lines()}
    figure.legend(
        handles=list(handles.values()),
        loc="outside lower center",
        ncols=min(5, len(handles)),
        frameon=False,
    )
    figure.suptitle(f"Time of a call (log scales)\n{label}", fontsize=12)
    return figure


def _times(case: Case) -> list[tuple[str, float]]:
    """(provider, ms) of a case, in ours's memory format."""
    rows = [case.ours, *(peer for peer in case.peers if peer.format == case.ours.format)]
    return [(row.provider, row.ms) for row in rows if row.ms]


def _figure(width: float, height: float) -> Figure:
    with needs("plots"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")
