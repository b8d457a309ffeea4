"""CPU tensors timed beside PyTorch and the image libraries, in one thread.

    calls    tricorr's calls, layers and their training beside PyTorch's own
    models   whole networks, all their layers converted, beside the same as they were
    filters  tricorr.filters beside SciPy, scikit-image, kornia and OpenCV, on float32 images

All providers of a line are called in turns; time is this process's on the CPU, which on a machine
of its own is the time on the clock. A line's ratio is the median, over the turns, of our time
over the fastest peer's. OpenCV has a ratio of its own: its filters are written for one border, one
dtype and no derivatives. Results differ between the libraries at borders only.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from ... import filters
from ...autograd.convert import convert
from ...autograd.functional import corr2d
from ...autograd.modules import Conv2D, ConvTranspose2D
from ..rows import Row, Writer
from ..timing.machine import machine
from ..timing.timers import quantile, ratio_fields
from .networks import MobileNetV2, ResNet18

Call = Callable[[], object]

#: Sides of the images that are filtered.
SIZES = (512, 2048)
#: Seconds that one turn of a provider takes, about; it is called once at least.
TURN = 2e-3
#: (in, out, window, options) of layers, and the input's shape.
LAYERS: dict[str, tuple[tuple[int, int, int], dict[str, Any], tuple[int, ...]]] = {
    "resnet18-stem": ((3, 64, 7), {"stride": 2, "padding": 3}, (1, 3, 224, 224)),
    "resnet18-56": ((64, 64, 3), {"padding": 1}, (1, 64, 56, 56)),
    "resnet18-28": ((128, 128, 3), {"padding": 1}, (1, 128, 28, 28)),
    "resnet18-7": ((512, 512, 3), {"padding": 1}, (1, 512, 7, 7)),
    "resnet18-shortcut": ((64, 128, 1), {"stride": 2}, (1, 64, 56, 56)),
    "depthwise-3x3": ((96, 96, 3), {"padding": 1, "groups": 96}, (4, 96, 28, 28)),
    "reflect-3x3": ((32, 32, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 32, 56, 56)),
}


@dataclass
class Line:
    """One line of the tables: our call and the peers' calls."""

    name: str
    op: str
    ours: Call
    peers: Mapping[str, Call]
    dtype: str = "float32"
    format: str = "NCHW"


@dataclass(frozen=True)
class Timed:
    """A line's medians in ms, and the ratios of our time to each peer's, turn by turn."""

    line: Line
    ms: dict[str, list[float]]

    def ratio(self, peer: str) -> float:
        """The median of our time over the peer's, both of one turn."""
        return median(a / b for a, b in zip(self.ms["tricorr"], self.ms[peer], strict=True))

    def best(self) -> str | None:
        """The fastest peer that is held against us; OpenCV is shown beside it."""
        peers = [name for name in self.line.peers if name != "opencv"]
        return max(peers, key=self.ratio) if peers else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--seconds", type=float, default=0.4, help="for each line (default 0.4)")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    parser.add_argument("names", nargs="*", help="only lines whose name has one of these in it")


def main(options: argparse.Namespace) -> int:
    """Prints the three tables, worst first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for title, lines in (("calls", calls()), ("models", models()), ("filters", filtered())):
            timed = []
            for line in lines:
                if not options.names or any(name in line.name for name in options.names):
                    timed.append(measure(line, options.seconds))
                    if options.out:
                        write(timed[-1], options.out)
            print("\n".join(table(title, timed)), flush=True)
    finally:
        torch.set_num_threads(before)
    return 0


def measure(line: Line, seconds: float) -> Timed:
    """Times all providers in turns for about `seconds`, five turns at least."""
    providers = {"tricorr": line.ours, **line.peers}
    repeats = {name: _calls_in_a_turn(call) for name, call in providers.items()}
    ms: dict[str, list[float]] = {name: [] for name in providers}
    end = time.perf_counter() + seconds
    order = list(providers.items())
    while len(ms["tricorr"]) < 5 or time.perf_counter() < end:
        for name, call in order:
            ms[name].append(_seconds(call, repeats[name]) * 1e3)
        order.reverse()  # caches and allocators favour whoever comes second: take turns
    return Timed(line, ms)


def _calls_in_a_turn(call: Call) -> int:
    """How often to call it in a turn: counted after a first call, which may import and prepare."""
    call()
    calls, end = 0, time.process_time() + TURN
    while calls == 0 or time.process_time() < end:
        call()
        calls += 1
    return calls


def _seconds(call: Call, repeats: int) -> float:
    """CPU time of a call: what other processes take from a shared processor does not count."""
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def table(title: str, timed: list[Timed]) -> list[str]:
    """Lines of text: our median, the best peer's, the ratio, and OpenCV's, worst first."""
    found = [t for t in timed if t.best() is not None]
    found.sort(key=lambda t: -t.ratio(t.best() or ""))
    threads = torch.get_num_threads()
    lines = [
        f"{title}: {threads} thread, medians of CPU time in ms; ratio above 1: tricorr is slower"
    ]
    lines.append(f"{'':34}{'tricorr':>10}{'best peer':>24}{'ratio':>8}{'opencv':>10}{'ratio':>8}")
    for t in found:
        best = t.best() or ""
        label = " ".join((t.line.name, t.line.op, t.line.dtype.replace("float32", "")))
        label += " channels_last" if t.line.format == "channels_last" else ""
        text = f"{label:34.34}{median(t.ms['tricorr']):10.4f}"
        text += f"{median(t.ms[best]):10.4f} {best:13.13}{t.ratio(best):8.2f}"
        if "opencv" in t.ms:
            text += f"{median(t.ms['opencv']):10.4f}{t.ratio('opencv'):8.2f}"
        lines.append(text)
    return [*lines, ""]


def write(timed: Timed, path: Path) -> None:
    """Appends the rows of a line: ours, then each peer's with its time over ours."""
    here, line, ours = machine("cpu"), timed.line, timed.ms["tricorr"]
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with Writer(path) as writer:
        for name, values in timed.ms.items():
            low, high = quantile(values, 0.2), quantile(values, 0.8)
            numbers: dict[str, Any] = {"ms_low": low, "ms_high": high}
            if name != "tricorr":
                numbers |= ratio_fields(values, ours)
            row = Row(
                line.name,
                "cpu",
                line.op,
                line.dtype,
                line.format,
                name,
                "warm",
                "ok",
                "one thread, CPU time",
                time=when,
                ms=quantile(values, 0.5),
                samples=len(values),
                **numbers,
                **asdict(here),
            )
            writer.write(row)


def calls() -> Iterator[Line]:
    """Calls and layers beside PyTorch's, forwards and with gradients."""
    x, weight = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 1, 2)
    image, kernel = x[0, 0], weight[0, 0]
    yield Line("tiny", "call", lambda: corr2d(x, weight), {"pytorch": lambda: F.conv2d(x, weight)})
    yield Line(
        "tiny-2d",
        "call",
        lambda: corr2d(image, kernel),
        {"pytorch": lambda: F.conv2d(image[None, None], kernel[None, None])[0, 0]},
    )
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    yield Line(
        "tiny",
        "train",
        lambda: corr2d(*leaves).sum().backward(),
        {"pytorch": lambda: F.conv2d(*leaves).sum().backward()},
    )
    for name, (channels, options, shape) in LAYERS.items():
        ours, theirs = Conv2D(*channels, **options), nn.Conv2d(*channels, **options)
        yield from _layer(name, ours, theirs, shape)
    layers = ConvTranspose2D(64, 32, 2, stride=2), nn.ConvTranspose2d(64, 32, 2, stride=2)
    yield from _layer("transposed-2x2", *layers, (1, 64, 28, 28))


def _layer(name: str, ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...]) -> Iterator[Line]:
    for dtype in (torch.float32, torch.bfloat16):
        for form in (torch.contiguous_format, torch.channels_last):
            image = torch.randn(shape).to(dtype=dtype, memory_format=form)
            for layer in (ours, theirs):
                layer.to(dtype=dtype)
                # PyTorch annotates `to` without memory_format alone.
                layer.to(memory_format=form)  # type: ignore[call-overload]
            which = "NCHW" if form is torch.contiguous_format else "channels_last"
            kind = str(dtype).removeprefix("torch.")
            for op, way in (("call", _forward), ("train", _train)):
                peers = {"pytorch": way(theirs, image)}
                yield Line(name, op, way(ours, image), peers, kind, which)


def models() -> Iterator[Line]:
    """Whole networks of our layers beside PyTorch's, evaluated and trained."""
    for name, network in (("resnet18", ResNet18), ("mobilenetv2", MobileNetV2)):
        for form in (torch.contiguous_format, torch.channels_last):
            # PyTorch annotates `to` without memory_format alone.
            theirs = network().to(memory_format=form)  # type: ignore[call-overload]
            ours = deepcopy(theirs)
            convert(ours)
            which = "NCHW" if form is torch.contiguous_format else "channels_last"
            image = torch.randn(1, 3, 224, 224).to(memory_format=form)
            peers = {"pytorch": _forward(deepcopy(theirs).eval(), image)}
            yield Line(name, "call", _forward(deepcopy(ours).eval(), image), peers, format=which)
            batch = torch.randn(2, 3, 96, 96).to(memory_format=form)
            peers = {"pytorch": _train(theirs, batch)}
            yield Line(name, "train", _train(ours, batch), peers, format=which)


def _forward(module: nn.Module, image: torch.Tensor) -> Call:
    def call() -> None:
        with torch.no_grad():
            module(image)

    return call


def _train(module: nn.Module, image: torch.Tensor) -> Call:
    leaf = image.detach().clone().requires_grad_()

    def call() -> None:
        module.zero_grad()
        leaf.grad = None
        y = module(leaf)
        y.backward(torch.ones_like(y))

    return call


def filtered() -> Iterator[Line]:
    """Our filters beside those of the installed libraries."""
    libraries = _libraries()
    for size in SIZES:
        image = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
        for name, (ours, theirs) in _filters(image).items():
            peers = {n: partial(call, libraries[n]) for n, call in theirs.items() if n in libraries}
            yield Line(f"{name}-{size}", "filter", ours, peers)


#: Calls of other libraries by their names, each with the library's module as its argument.
Peers: TypeAlias = dict[str, Callable[[Any], object]]


def _filters(image: torch.Tensor) -> dict[str, tuple[Call, Peers]]:
    """Our filter and the peers' filters of an image, by name."""
    a, x, bank = image.numpy(), image[None, None], filters.gabor_kernels(0.25)[0, 0]
    table: dict[str, tuple[Call, Peers]] = {
        "sobel": (
            lambda: filters.sobel(image),
            {
                "scikit-image": lambda sk: sk.sobel(a),
                "kornia": lambda kornia: kornia.sobel(x),
                "opencv": lambda cv: cv.magnitude(*_sobel_pair(cv, a)),
            },
        ),
        "scharr": (lambda: filters.scharr(image), {"scikit-image": lambda sk: sk.scharr(a)}),
        "prewitt": (lambda: filters.prewitt(image), {"scikit-image": lambda sk: sk.prewitt(a)}),
        "spatial_gradient": (
            lambda: filters.spatial_gradient(image),
            {
                "scipy": lambda ndi: (ndi.sobel(a, 1), ndi.sobel(a, 0)),
                "kornia": lambda kornia: kornia.spatial_gradient(x),
                "opencv": lambda cv: _sobel_pair(cv, a),
            },
        ),
        "laplacian": (
            lambda: filters.laplacian(image),
            {
                "scipy": lambda ndi: ndi.laplace(a),
                "scikit-image": lambda sk: sk.laplace(a),
                "kornia": lambda kornia: kornia.laplacian(x, 3),
                "opencv": lambda cv: cv.Laplacian(a, cv.CV_32F),
            },
        ),
        "unsharp_mask-1": (
            lambda: filters.unsharp_mask(image, 1.0),
            {
                "scikit-image": lambda sk: sk.unsharp_mask(a, 1.0, preserve_range=True),
                "kornia": lambda kornia: kornia.unsharp_mask(x, (9, 9), (1.0, 1.0)),
            },
        ),
    }
    for sigma in (1, 3, 10):
        table[f"gaussian_blur-{sigma}"] = _gaussian(image, sigma)
    for side in (3, 9, 31):
        table[f"box_blur-{side}"] = _box(image, side)
    if len(image) == SIZES[0]:
        table["gabor-0.25"] = (
            lambda: filters.gabor(image, 0.25),
            {
                "scipy": lambda ndi: ndi.correlate(a, bank.numpy()),
                "kornia": lambda kornia: kornia.filter2d(x, bank[None]),
                "opencv": lambda cv: cv.filter2D(a, -1, bank.numpy()),
            },
        )
    return table


def _gaussian(image: torch.Tensor, sigma: int) -> tuple[Call, Peers]:
    a, x, window = image.numpy(), image[None, None], (8 * sigma + 1, 8 * sigma + 1)
    return lambda: filters.gaussian_blur(image, sigma), {
        "scipy": lambda ndi: ndi.gaussian_filter(a, sigma),
        "scikit-image": lambda sk: sk.gaussian(a, sigma),
        "kornia": lambda kornia: kornia.gaussian_blur2d(x, window, (float(sigma),) * 2),
        "opencv": lambda cv: cv.GaussianBlur(a, window, sigma),
    }


def _box(image: torch.Tensor, side: int) -> tuple[Call, Peers]:
    a, x, window = image.numpy(), image[None, None], (side, side)
    return lambda: filters.box_blur(image, side), {
        "scipy": lambda ndi: ndi.uniform_filter(a, side),
        "kornia": lambda kornia: kornia.box_blur(x, window),
        "opencv": lambda cv: cv.blur(a, window),
    }


def _sobel_pair(cv: Any, image: Any) -> tuple[Any, Any]:
    return cv.Sobel(image, cv.CV_32F, 1, 0), cv.Sobel(image, cv.CV_32F, 0, 1)


def _libraries() -> dict[str, Any]:
    """The modules of the libraries that are installed, by provider."""
    modules = {
        "scipy": "scipy.ndimage",
        "scikit-image": "skimage.filters",
        "kornia": "kornia.filters",
        "opencv": "cv2",
    }
    found = {}
    for name, module in modules.items():
        try:
            found[name] = importlib.import_module(module)
        except ImportError as error:
            print(f"without {name}: {error}")
    if "opencv" in found:
        found["opencv"].setNumThreads(1)
    return found
