"""Targets for the kernels on a GPU, regime by regime, and whether the rows meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .compared import Case, Processor, geomean, median_of
from .providers import OURS
from .rows import Row
from .workloads import Workload


def _copy_shares(cases: Iterable[Case]) -> Iterator[float]:
    for row in (case.ours for case in cases):
        if row.gbps and row.copy_gbps:
            yield row.gbps / row.copy_gbps


def _host_ratios(cases: Iterable[Case]) -> Iterator[float]:
    for case in cases:
        for peer in case.peers:
            same = (peer.provider, peer.format) == ("pytorch", case.ours.format)
            if same and peer.host_us and case.ours.host_us:
                yield case.ours.host_us / peer.host_us


#: Measures that a target can name: (label, function of the cases of a regime).
MEASURES: dict[str, tuple[str, Callable[[list[Case]], float | None]]] = {
    "geomean": ("geomean vs best peer", lambda cs: geomean(c.ratio for c in cs)),
    "nchw": ("geomean vs best peer in NCHW", lambda cs: geomean(c.ratio_in("NCHW") for c in cs)),
    "worst": (
        "worst vs best peer",
        lambda cs: min((c.ratio for c in cs if c.ratio is not None), default=None),
    ),
    "copy": ("share of the copy rate, median", lambda cs: median_of(_copy_shares(cs))),
    "roofline": (
        "share of the roofline forward, median",
        lambda cs: median_of(c.ours.roofline_fraction for c in cs if c.ours.op == "fprop"),
    ),
    "host": ("our host time over PyTorch's", lambda cs: max(_host_ratios(cs), default=None)),
}


def _taps(workload: Workload) -> int:
    return max(workload.geometry.R, workload.geometry.S)


def _is_image(workload: Workload) -> bool:
    return "image" in workload.tags and workload.geometry.N * workload.geometry.H > 100


_HALF = ("bfloat16", "float16")
_NETS = ("resnet50", "convnext-t", "sd-unet")

#: (regime, whether a case belongs to it, least value of each measure; "host" is a most).
TARGETS: tuple[tuple[str, Callable[[Row, Workload], bool], dict[str, float]], ...] = (
    (
        "images, windows to 7x7, forward",
        lambda row, w: (
            (_is_image(w) and _taps(w) <= 7 and row.op == "fprop")
            and not {"per_sample", "padding_mode"} & set(w.tags)
        ),
        {"geomean": 2.0, "copy": 0.9},
    ),
    (
        "windows from 9x9, image or depthwise, 16 bits or tf32",
        lambda row, w: _taps(w) >= 9 and w.geometry.group_C == 1 and row.dtype in (*_HALF, "tf32"),
        {"geomean": 3.0},
    ),
    ("a kernel per sample", lambda row, w: w.geometry.per_sample, {"geomean": 2.0}),
    (
        "depthwise 3x3 to 7x7, all passes",
        lambda row, w: "depthwise" in w.tags and 3 <= _taps(w) <= 7 and w.suite != "kernelbench",
        {"geomean": 1.5, "worst": 1.0, "roofline": 0.85},
    ),
    (
        "dense 16-bit networks, all passes",
        lambda row, w: (
            (w.suite in _NETS and row.dtype in _HALF) and bool({"dense", "pointwise"} & set(w.tags))
        ),
        {"geomean": 1.0, "nchw": 1.3, "worst": 0.85},
    ),
    (
        "KernelBench level 1",
        lambda row, w: w.suite == "kernelbench",
        {"geomean": 1.3, "worst": 0.95},
    ),
    (
        "weight gradient of one huge image",
        lambda row, w: _is_image(w) and w.geometry.H >= 8192 and row.op == "wgrad",
        {"copy": 0.8},
    ),
    (
        "host cost of a forward call",
        lambda row, w: w.name.startswith("images-6x8") and row.op == "fprop",
        {"host": 1.2},
    ),
    ("padding modes", lambda row, w: "padding_mode" in w.tags, {"geomean": 2.0}),
    ("bias and activation in the epilogue", lambda row, w: "epilogue" in w.tags, {"geomean": 1.15}),
)


@dataclass(frozen=True)
class Verdict:
    """A target and the measured number, None where nothing was measured."""

    regime: str
    what: str
    measured: float | None
    asked: float
    at_most: bool = False

    @property
    def outcome(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.asked if self.at_most else self.measured >= self.asked
        return "met" if met else "**missed**"


def verdicts(processor: Processor) -> list[Verdict]:
    """Every target, held against the rows of one GPU."""
    cases = processor.cases()
    found = []
    for regime, applies, asked in TARGETS:
        mine = [c for c in cases if (w := c.workload) is not None and applies(c.ours, w)]
        for name, least in asked.items():
            label, measure = MEASURES[name]
            found.append(Verdict(regime, label, measure(mine), least, at_most=name == "host"))
    over_zeros = geomean(times_over_zeros(cases))
    label = "our time over that with zeros, geomean, not in turns"
    found.append(Verdict("padding modes", label, over_zeros, 1.02, at_most=True))
    ok = {(row.workload, row.provider): row for row in processor.rows if row.status == "ok"}
    loop = ok.get(("learn-512x512-3x3", "pytorch-loop"))
    ratio = None if loop is None else loop.ratio_to
    learning = "learning: ten steps, 512x512, 3x3"
    found.append(Verdict(learning, "time of the PyTorch loop over ours", ratio, 50.0))
    start = [
        row.ms
        for key in (
            ("startup-import", OURS),
            ("startup-first-call-warm", OURS),
            ("startup-first-call-warm", "pytorch"),
        )
        if (row := ok.get(key)) is not None and row.ms is not None
    ]
    beyond = (start[0] + start[1] - start[2]) / 1e3 if len(start) == 3 else None
    what = "s beyond PyTorch's first call"
    return [*found, Verdict("start-up, warm disk cache", what, beyond, 0.3, at_most=True)]


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
