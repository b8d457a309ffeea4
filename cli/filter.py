"""`tricorr filter`, `tricorr edges` and `tricorr apply`: images in, filtered images out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands import (
    STANDARD,
    Outcome,
    UsageError,
    backend_of,
    check_plot,
    device_named,
    read_picture,
)

# Everything else is imported where it is used: --help has to be quick.
if TYPE_CHECKING:
    import torch

#: Quantile of the response that a picture shows as white.
BRIGHTEST = 0.995
#: Responses up to this many units in the last place of the image's largest value are rounding.
ROUNDING = 64
#: Formats that store the response's values; all others store a picture of it.
NUMBERS = (".npy", ".tif", ".tiff")


@dataclass(frozen=True)
class Filter:
    """A function of tricorr.filters as the command line knows it.

    Attributes:
        function: its name in tricorr.filters.
        kind: of the result: "image", "gradient magnitude" or "response" (signed).
        unit: of the result.
        options: the keyword argument behind each option of the command line.
        needed: options without a default.
        plane: index of the plane to keep, for filters that return one plane per kernel.
    """

    function: str
    kind: str
    unit: str = "brightness"
    options: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    plane: int | None = None


_SLOPE = "brightness per pixel"
FILTERS = {
    "gaussian": Filter("gaussian_blur", "image", options={"sigma": "sigma"}, needed=("sigma",)),
    "box": Filter("box_blur", "image", options={"size": "kernel_size"}, needed=("size",)),
    "unsharp": Filter("unsharp_mask", "image", options={"sigma": "sigma", "amount": "amount"}),
    "sobel": Filter("sobel", "gradient magnitude", _SLOPE),
    "scharr": Filter("scharr", "gradient magnitude", _SLOPE),
    "prewitt": Filter("prewitt", "gradient magnitude", _SLOPE),
    "gradient-x": Filter("spatial_gradient", "response", _SLOPE, plane=0),
    "gradient-y": Filter("spatial_gradient", "response", _SLOPE, plane=1),
    "laplacian": Filter("laplacian", "response"),
    "gabor": Filter(
        "gabor",
        "response",
        options={"frequency": "frequency", "angle": "theta"},
        needed=("frequency",),
    ),
    "log-gabor": Filter(
        "log_gabor", "response", options={"size": "size", "wavelength": "wavelength"}
    ),
}
#: The textbook's [1, -1], which is a kernel and not a function of tricorr.filters.
BOOK = Filter("book", "response")
#: The filters of `tricorr edges`.
EDGES = {name: FILTERS[name] for name in ("sobel", "scharr", "prewitt", "laplacian")} | {
    "book": BOOK
}
OPTIONS = ("sigma", "size", "amount", "frequency", "angle", "wavelength")


def filter_images(args: argparse.Namespace) -> Outcome:
    """`tricorr filter`."""
    chosen = FILTERS[args.name]
    arguments = _arguments(args, chosen)
    if args.border is not None:
        arguments["padding_mode"] = args.border

    def run(image: torch.Tensor) -> torch.Tensor:
        from .. import filters

        response: torch.Tensor = getattr(filters, chosen.function)(image, **arguments)
        return response if chosen.plane is None else response.select(-3, chosen.plane)

    return _each_image(args, args.name, chosen, run)


def edges(args: argparse.Namespace) -> Outcome:
    """`tricorr edges`."""
    from .. import filters
    from ..autograd.functional import corr2d

    def run(image: torch.Tensor) -> torch.Tensor:
        if args.filter == "book":
            return corr2d(image, filters.textbook_edge_kernel()[0, 0].to(image))
        response: torch.Tensor = getattr(filters, args.filter)(image)
        return response

    args.grey = True
    return _each_image(args, args.filter, EDGES[args.filter], run)


def apply(args: argparse.Namespace) -> Outcome:
    """`tricorr apply`."""
    from ..autograd.functional import convolve2d, corr2d
    from ..learning.learned import LearnedKernel
    from ..ops import ArgumentError, as_padding, shown

    learned = LearnedKernel.load(args.kernel)
    weight, bias = learned.weight, learned.bias
    if weight.dim() != 2:
        raise ArgumentError(
            f"a kernel to apply is (R, S), got {tuple(weight.shape)} in {args.kernel}"
        )
    if learned.stride != (1, 1):
        raise ArgumentError(
            f"{args.kernel} was learned with a stride of {shown(learned.stride)}, which apply does "
            "not have (LearnedKernel.load(...).predict(image) does)"
        )
    operator = convolve2d if args.convolution or learned.flip else corr2d
    crop = args.border == "crop"
    window = tuple(weight.shape)
    padding = as_padding("valid" if crop else "same", window)
    sides = zip(learned.padding, padding, strict=True)
    # Row and column of the first output pixel in the output of the fit's padding.
    top, left = (of_fit[0] - of_this[0] for of_fit, of_this in sides)

    def run(image: torch.Tensor) -> torch.Tensor:
        y = operator(
            image,
            weight.to(image),
            padding=padding,
            padding_mode="zeros" if crop else args.border,
        )
        y = y if bias is None else y + bias.to(image)
        rows, columns = (
            extent + sum(of_fit) - taps + 1
            for extent, of_fit, taps in zip(image.shape[-2:], learned.padding, window, strict=True)
        )
        surface = learned.surface((y.shape[-2], y.shape[-1]), (top, left), (rows, columns))
        return y if surface is None else y + surface[0].to(image)

    return _each_image(args, args.kernel, Filter("apply", "image"), run)


def _arguments(args: argparse.Namespace, chosen: Filter) -> dict[str, Any]:
    """Keyword arguments of a filter from the options that were given."""
    import math

    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    for name in given:
        if name not in chosen.options:
            takers = [n for n, f in FILTERS.items() if name in f.options]
            raise UsageError(f"--{name} is an option of {', '.join(takers)}, not of {args.name}")
    for name in chosen.needed:
        if name not in given:
            raise UsageError(f"{args.name} needs --{name}")
    if "angle" in given:
        given["angle"] = math.radians(given["angle"])
    return {chosen.options[name]: value for name, value in given.items()}


def _each_image(
    args: argparse.Namespace,
    name: str,
    chosen: Filter,
    run: Callable[[torch.Tensor], torch.Tensor],
) -> Outcome:
    """Filters every image of the command line, after checking all file names."""
    targets = _targets(args)
    plot = getattr(args, "plot", None)
    if plot and len(targets) > 1:
        raise UsageError(f"--plot takes one image, got {len(targets)}")
    if plot:
        check_plot(args, *targets)
    device = device_named(args.device)
    outcomes = [
        _one_image(args, source, target, name, chosen, run, device)
        for source, target in targets.items()
    ]
    ran = f"ran on: {backend_of(device)}"
    text = "\n".join([*(outcome.text for outcome in outcomes), ran])
    if len(outcomes) == 1:
        return Outcome(outcomes[0].data, text, binary=outcomes[0].binary)
    return Outcome({"images": [outcome.data for outcome in outcomes]}, text)


def _targets(args: argparse.Namespace) -> dict[str, Path]:
    """The output path of every image: files in a folder if `--output` is one.

    Raises:
        UsageError: several images and one file, or two images with one name.
        ArgumentError: an output that cannot be written, or is an input.
    """
    from ..images.output import check_output
    from ..images.read import check_image_name

    sources = tuple(args.images)
    if len(set(sources)) < len(sources):
        raise UsageError("an image is named twice")
    if args.format is not None and not args.format.startswith("."):
        args.format = f".{args.format}"
    if args.output == STANDARD:
        if len(sources) > 1:
            raise UsageError(f"-o {STANDARD} takes one image, got {len(sources)}")
        check_image_name(f"name{args.format or '.png'}")
        return {sources[0]: Path(STANDARD)}
    folder = Path(args.output)
    if not (folder.is_dir() or args.output.endswith("/") or len(sources) > 1):
        if args.format is not None:
            raise UsageError("--format is for folders and standard output: a file's name says it")
        check_output(folder, sources)
        check_image_name(folder)
        return {sources[0]: folder}
    if folder.suffix and not folder.is_dir() and not args.output.endswith("/"):
        raise UsageError(
            f"{len(sources)} images go into a folder: -o {folder} is a file's name; say {folder}/"
        )
    folder.mkdir(parents=True, exist_ok=True)
    targets: dict[str, Path] = {}
    for source in sources:
        stem, suffix = ("stdin", ".png") if source == STANDARD else _parts(source)
        target = folder / f"{stem}{args.format or suffix}"
        if target in targets.values():
            raise UsageError(f"two images would become {target}: their names are the same")
        check_output(target, sources)
        check_image_name(target)
        targets[source] = target
    return targets


def _parts(source: str) -> tuple[str, str]:
    """Stem and output suffix: the input's, or .png if that format cannot be written."""
    from ..images.read import check_image_name
    from ..ops import ArgumentError

    path = Path(source)
    try:
        check_image_name(path)
    except ArgumentError:
        return path.stem, ".png"
    return path.stem, path.suffix


def _one_image(
    args: argparse.Namespace,
    source: str,
    target: Path,
    name: str,
    chosen: Filter,
    run: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
) -> Outcome:
    from ..ops import ArgumentError

    shown = "standard input" if source == STANDARD else source
    image = read_picture(source, grey=args.grey, double=True).pixels.to(device)
    response = run(image)
    if not response.isfinite().all():
        raise ArgumentError(f"{shown} has pixels that are NaN or infinite, or too large")
    suffix = (args.format or ".png") if str(target) == STANDARD else target.suffix
    numbers = suffix.lower() in NUMBERS
    if response.dim() == 3 and response.shape[0] != 3 and suffix.lower() != ".npy":
        raise ArgumentError(
            f"{name} has {response.shape[0]} planes for {shown}: no picture, write a .npy file"
        )
    if response.dim() > 3:
        raise ArgumentError(f"{name} has a plane for each kernel and colour: add --grey")
    black, white = 0.0, 1.0
    if chosen.kind != "image":
        white = _white(image, response)
        black = 0.0 if chosen.kind == "gradient magnitude" else -white
    picture = response if numbers else (response - black) / (white - black)
    binary = _write(target, suffix, picture)
    low, high = float(response.min()), float(response.max())
    scale = "as float32" if numbers else f"black is {black:.4g}, white is {white:.4g}"
    clipped = 0.0
    if not numbers and chosen.kind == "image":
        clipped = float(((picture < 0) | (picture > 1)).float().mean())
        scale += f", {100 * clipped:.3g} % of the values clipped" if clipped else ""
    size = "x".join(map(str, response.shape))
    text = (
        f"{target}: {name}, {chosen.kind} {low:.4g} to {high:.4g} ({chosen.unit}), {size}, {scale}"
    )
    plot = getattr(args, "plot", None)
    if plot:
        from ..images.plots import plot_edges, save_figure

        save_figure(plot, plot_edges(image, response, f"{name}: {chosen.kind}, {chosen.unit}"))
        text += f"\npicture: {plot}"
    data = {
        "input": source,
        "output": str(target),
        "plot": plot,
        "filter": name,
        "quantity": chosen.kind,
        "unit": chosen.unit,
        "min": low,
        "max": high,
        "black": None if numbers else black,
        "white": None if numbers else white,
        "clipped": clipped,
        "shape": list(response.shape),
        "backend": backend_of(device),
    }
    return Outcome(data, text, binary=binary)


def _white(image: torch.Tensor, response: torch.Tensor) -> float:
    """The response shown as white: a high quantile, but more than rounding errors."""
    import numpy as np
    import torch

    sizes = np.abs(response.numpy(force=True))
    limit = float(np.quantile(sizes, BRIGHTEST)) or float(sizes.max())
    rounding = ROUNDING * torch.finfo(response.dtype).eps * float(image.abs().max())
    return limit if limit > rounding else 1.0


def _write(target: Path, suffix: str, picture: torch.Tensor) -> bytes | None:
    """Writes a file; for standard output returns the bytes, which are printed last."""
    import tempfile

    from ..images.read import write_image

    if str(target) != STANDARD:
        write_image(target, picture)
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"out{suffix}")
        write_image(path, picture)
        return path.read_bytes()


def add_filter(sub: argparse.ArgumentParser) -> None:
    """The options of `tricorr filter`."""
    _add_files(sub)
    sub.add_argument(
        "--name", required=True, choices=tuple(FILTERS), metavar="NAME", help=", ".join(FILTERS)
    )
    for name, kind, text in (
        ("sigma", float, "of gaussian and unsharp, in pixels"),
        ("size", int, "of the window of box and log-gabor, in pixels"),
        ("amount", float, "of unsharp (1)"),
        ("frequency", float, "of gabor, in cycles per pixel"),
        ("angle", float, "of gabor, in degrees from right to down (0)"),
        ("wavelength", float, "of log-gabor, in pixels (6)"),
    ):
        sub.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "F", help=text)
    sub.add_argument(
        "--border",
        choices=("zeros", "reflect", "replicate", "circular"),
        help="what lies beyond the image; default: the filter's own, see docs/filters.md",
    )
    sub.add_argument("--grey", action="store_true", help="take colours as Rec. 709 luma")


def add_edges(sub: argparse.ArgumentParser) -> None:
    """The options of `tricorr edges`."""
    _add_files(sub)
    sub.add_argument("--filter", choices=tuple(EDGES), default="sobel", help="default: sobel")
    sub.add_argument("--plot", metavar="PICTURE", help="image and edges side by side, with a scale")


def add_apply(sub: argparse.ArgumentParser) -> None:
    """The options of `tricorr apply`."""
    sub.add_argument("kernel", metavar="KERNEL", help=".npy, .npz or .fits, such as learn writes")
    _add_files(sub)
    sub.add_argument(
        "--border",
        choices=("replicate", "reflect", "circular", "zeros", "crop"),
        default="replicate",
        help="what lies beyond the image; crop: leave out what the window cannot reach",
    )
    sub.add_argument(
        "--convolution", action="store_true", help="flip the kernel: strict convolution"
    )
    sub.add_argument("--grey", action="store_true", help="take colours as Rec. 709 luma")


def _add_files(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("images", nargs="+", metavar="IMAGE", help=f"{STANDARD}: standard input")
    sub.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="a file; a folder, for several images; "
        f"{STANDARD}: standard output. .npy and .tif keep the numbers",
    )
    sub.add_argument(
        "--format", metavar="SUFFIX", help="of outputs in a folder or on standard output (.png)"
    )


def print_binary(data: bytes) -> None:
    """Standard output as bytes."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
