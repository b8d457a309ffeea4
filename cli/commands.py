"""Commands that print (features, explain, receptive-field) and helpers of all commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Everything else is imported where it is used: --help has to be quick.
if TYPE_CHECKING:
    import torch

    from ..autograd.receptive_field import ReceptiveField
    from ..images.read import Picture


#: The name that stands for standard input or output.
STANDARD = "-"


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes:
        data: for --json.
        text: for people.
        exit_code: of the program.
        binary: a file for standard output, which moves the text to standard error.
    """

    data: dict[str, Any]
    text: str
    exit_code: int = 0
    binary: bytes | None = None


class UsageError(Exception):
    """The command line itself is wrong."""


def reason(error: Exception) -> str:
    """An error in one line."""
    from ..ops import ArgumentError, ArgumentTypeError, BackendError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    known = (ArgumentError, ArgumentTypeError, BackendError, UsageError, ModuleNotFoundError)
    if isinstance(error, known):
        return text
    # PyTorch raises a plain RuntimeError when its CPU allocator fails.
    if "out of memory" in text or "allocate memory" in text or isinstance(error, MemoryError):
        return "not enough memory for images of this size"
    return f"{type(error).__name__}: {text} (this is a bug: TRICORR_TRACEBACK=1 shows more)"


def features(args: argparse.Namespace) -> Outcome:
    """`tricorr features`."""
    from ..filters import log_gabor, log_gabor_kernels
    from ..images.output import check_output
    from ..images.plots import check_figure_name, plot_features, save_figure
    from ..ops import ArgumentError

    check_output(args.output, (args.image,))
    check_figure_name(args.output)
    bank = log_gabor_kernels(args.size, wavelength=args.wavelength)
    device = device_named(args.device)
    image = grey_image(args.image, double=True).to(device)
    if not image.isfinite().all():
        raise ArgumentError(f"{args.image} has pixels that are NaN or infinite")
    maps = log_gabor(image, args.size, wavelength=args.wavelength, padding_mode="replicate")
    save_figure(args.output, plot_features(image, bank, maps))
    rms = maps.square().mean(dim=(1, 2)).sqrt().tolist()
    angles = [180 * k / len(rms) for k in range(len(rms))]
    lines = [f"{a:5.0f} degrees: response RMS {r:.4g}" for a, r in zip(angles, rms, strict=True)]
    lines += [f"picture: {args.output}", f"ran on: {backend_of(device)}"]
    data = {
        "output": args.output,
        "degrees": angles,
        "rms": rms,
        "size": args.size,
        "wavelength": args.wavelength,
        "backend": backend_of(device),
    }
    return Outcome(data, "\n".join(lines))


def receptive_field(args: argparse.Namespace) -> Outcome:
    """`tricorr receptive-field`."""
    from ..autograd.receptive_field import receptive_field as field_of

    if args.plot:
        from ..images.plots import check_figure_name

        check_figure_name(args.plot)
    if len(args.layers) == 1 and (module := _module(args.layers[0])) is not None:
        field = field_of(module)
    else:
        field = field_of([_layer(text) for text in args.layers])
    step, start = (", ".join(map(str, pair)) for pair in (field.step, field.start))
    text = (
        f"one output element sees {'x'.join(map(str, field.size))} input elements\n"
        f"neighbouring outputs are ({step}) apart in the input; the first begins at ({start})"
    )
    if len(field.layers) > 1:
        text += f"\n\n{field}"
    numbers = ("size", "step", "start")

    def in_numbers(seen: ReceptiveField) -> dict[str, Any]:
        pairs = {name: getattr(seen, name) for name in numbers}
        return {n: [v if isinstance(v, int) else float(v) for v in p] for n, p in pairs.items()}

    data = in_numbers(field)
    data["layers"] = [
        {"layer": name, "kind": kind} | in_numbers(seen) for name, kind, seen in field.layers
    ]
    if args.plot:
        from ..images.plots import plot_receptive_field, save_figure

        sizes = [(name, seen.size) for name, _, seen in field.layers]
        save_figure(args.plot, plot_receptive_field(sizes))
        text += f"\npicture: {args.plot}"
    return Outcome(data, text)


def explain(args: argparse.Namespace) -> Outcome:
    """`tricorr explain`."""
    import torch

    from ..autograd.functional import explain as explain_call
    from ..ops import ArgumentError

    for name in ("input", "weight"):
        if min(getattr(args, name)) < 0:
            raise ArgumentError(f"--{name} is a shape: no size in it is negative")
    dtype = getattr(torch, args.dtype)
    try:
        x, weight = (
            torch.empty(shape, dtype=dtype, device="meta") for shape in (args.input, args.weight)
        )
    except RuntimeError as error:
        raise ArgumentError("--input and --weight are too large for any tensor") from error
    if args.channels_last:
        if x.dim() != 4 or weight.dim() != 4:
            raise ArgumentError("--channels-last needs an input and a weight of four sizes")
        x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
    found = explain_call(
        x,
        weight,
        None,
        number_or_pair("--stride", args.stride),
        padding_of(args.padding),
        number_or_pair("--dilation", args.dilation),
        args.groups,
        precision=args.precision,
        device=args.device,
    )
    return Outcome(found.as_dict(), str(found))


def device_named(name: str) -> torch.device:
    """The device that --device asks for."""
    import torch

    from ..ops import ArgumentError

    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count() if available else 0
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ArgumentError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= count:
        raise ArgumentError(f"--device {name}: PyTorch sees {count or 'no'} GPUs here")
    return torch.device(kind if kind == "cpu" else name)


def read_picture(path: str, *, grey: bool = False, double: bool = False) -> Picture:
    """Reads an image file or standard input; prints conversions to stderr."""
    import logging
    import tempfile

    from ..images.read import read_image
    from ..ops import ArgumentError

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # tifffile also raises what it logs
    if path != STANDARD:
        picture = read_image(path, grey=grey, double=double)
    else:
        with tempfile.NamedTemporaryFile(suffix=".image") as file:
            file.write(sys.stdin.buffer.read())
            file.flush()
            try:
                picture = read_image(file.name, grey=grey, double=double)
            except ArgumentError as error:
                raise ArgumentError(str(error).replace(file.name, "standard input")) from error
    for note in picture.notes:
        print(f"tricorr: note: {path}: {note}", file=sys.stderr)
    return picture


def grey_image(path: str, *, double: bool = False) -> torch.Tensor:
    """Reads a grey image; prints conversions to stderr."""
    return read_picture(path, grey=True, double=double).pixels


def check_plot(args: argparse.Namespace, *inputs: str) -> None:
    """Checks before the work that --plot can be written."""
    if not args.plot:
        return
    from ..images.output import check_output
    from ..images.plots import check_figure_name
    from ..ops import ArgumentError

    check_output(args.plot, inputs)
    check_figure_name(args.plot)
    if args.output and os.path.realpath(args.output) == os.path.realpath(args.plot):
        raise ArgumentError(f"--output and --plot are the same file, {args.plot}")


def number_or_pair(name: str, numbers: Sequence[int]) -> int | tuple[int, int]:
    """The value of an option that takes one number or two."""
    if len(numbers) > 2:
        raise UsageError(f"{name} takes one number or two, got {len(numbers)}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def numbers(text: str) -> list[int]:
    """`5` or `5x7` as the numbers of an option."""
    try:
        return [int(number) for number in text.replace(",", "x").split("x")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a whole number, or several such as 5x7, got {text!r}"
        ) from None


def words(text: str) -> list[str]:
    """`same`, `1` or `1x2` as the words of an option."""
    several = text.replace(",", "x").split("x")
    return several if all(word.lstrip("-").isdecimal() for word in several) else [text]


def padding_of(words: list[str]) -> Any:
    """--padding in the form that corr2d takes."""
    if words in (["same"], ["valid"]):
        return words[0]
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        numbers = []
    match numbers:
        case [both]:
            return both
        case [rows, columns]:
            return (rows, columns)
        case [top, bottom, left, right]:
            return ((top, bottom), (left, right))
    raise UsageError(
        f"--padding takes same, valid, or 1, 2 or 4 whole numbers, got {' '.join(words)!r}"
    )


def _module(text: str) -> Any:
    """The module that FILE.py:FACTORY, PACKAGE.MODULE:FACTORY or a .pt file names, else None."""
    import importlib
    import runpy

    import torch

    from ..ops import ArgumentError

    if Path(text).suffix in (".pt", ".pth"):
        Path(text).open("rb").close()  # a missing file is an OSError
        try:
            module = torch.load(text, map_location="cpu", weights_only=False)
        except Exception as error:  # whatever unpickling raises
            raise ArgumentError(f"cannot load {text}: {type(error).__name__}: {error}") from error
    elif ":" in text:
        file, _, name = text.rpartition(":")
        try:
            if file.endswith(".py"):
                made = runpy.run_path(file).get(name)
            else:
                made = getattr(importlib.import_module(file), name, None)
        except OSError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise ArgumentError(f"cannot run {file}: {type(error).__name__}: {error}") from error
        if made is None:
            raise ArgumentError(f"{file} has no {name}")
        try:
            module = made if isinstance(made, torch.nn.Module) or not callable(made) else made()
        except Exception as error:  # whatever the user's code raises
            raise ArgumentError(f"cannot run {text}: {type(error).__name__}: {error}") from error
    else:
        return None
    if not isinstance(module, torch.nn.Module):
        raise ArgumentError(f"{text} must be a torch.nn.Module, got {type(module).__name__}")
    return module


def _layer(text: str) -> dict[str, Any]:
    """`7x7,stride=2` as the mapping that receptive_field takes."""
    window, *options = text.split(",")
    layer: dict[str, Any] = {}
    for item in (f"window={window}", *options):
        name, _, value = item.partition("=")
        numbers = value.split("x")
        if (
            name not in ("window", "stride", "padding", "dilation")
            or name in layer
            or len(numbers) > 2
            or not all(number.isdecimal() for number in numbers)
        ):
            raise UsageError(
                f"a layer is WINDOW[,stride=S][,padding=P][,dilation=D] with numbers such as 3 or "
                f"3x5, got {text!r}"
            )
        pair = tuple(map(int, numbers))
        layer[name] = pair if len(pair) == 2 else pair[0]
    return layer


def matrix(weight: torch.Tensor) -> str:
    """A kernel as text."""
    import numpy as np

    return np.array2string(
        weight.numpy(force=True), precision=4, suppress_small=True, max_line_width=120
    )


def backend_of(device: torch.device) -> str:
    """The name of what computes on a device."""
    from ..ops.backend import backend_name

    return backend_name(device)
