"""What the commands of cli.py do: each takes parsed arguments and gives an Outcome."""

from __future__ import annotations

import argparse
import math
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Everything else is imported where it is used: --help has to be quick.
if TYPE_CHECKING:
    import torch

#: What a hand does to a photograph while the shutter is open; its sum is one.
MOTION_BLUR = [
    [0.00, 0.00, 0.00, 0.05, 0.10],
    [0.00, 0.00, 0.05, 0.20, 0.05],
    [0.00, 0.05, 0.15, 0.00, 0.00],
    [0.05, 0.15, 0.00, 0.00, 0.00],
    [0.05, 0.10, 0.00, 0.00, 0.00],
]


@dataclass(frozen=True)
class Outcome:
    """What a command found: `data` for --json, `text` for people."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


class UsageError(Exception):
    """The command line itself is wrong."""


def reason(error: Exception) -> str:
    """An error in one line."""
    from .ops import ArgumentError, ArgumentTypeError, BackendError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    known = (ArgumentError, ArgumentTypeError, BackendError, UsageError, ModuleNotFoundError)
    if isinstance(error, known):
        return text
    # PyTorch has no class of its own for what its CPU allocator cannot give.
    if "out of memory" in text or "allocate memory" in text or isinstance(error, MemoryError):
        return "not enough memory for images of this size"
    return f"{type(error).__name__}: {text} (this is a bug: TRICORR_TRACEBACK=1 shows more)"


def edges(args: argparse.Namespace) -> Outcome:
    """`tricorr edges`."""
    from . import filters
    from .autograd.functional import corr2d
    from .files import check_output
    from .images import check_image_name, write_image
    from .ops import ArgumentError

    check_output(args.output, (args.image,))
    check_image_name(args.output)
    _check_plot(args, args.image)
    device = _device(args.device)
    image = _grey_image(args.image).to(device)
    magnitude = args.filter in ("sobel", "scharr", "prewitt")
    if args.filter == "book":
        response = corr2d(image, filters.textbook_edge_kernel()[0, 0].to(device))
    else:
        response = getattr(filters, args.filter)(image)
    if not response.isfinite().all():
        raise ArgumentError(f"{args.image} has pixels that are NaN or infinite, or too large")
    low, high = float(response.min()), float(response.max())
    limit = max(abs(low), abs(high)) or 1.0
    numbers = Path(args.output).suffix.lower() in (".npy", ".tif", ".tiff")
    picture = response / limit if magnitude else 0.5 + 0.5 * response / limit
    write_image(args.output, response if numbers else picture)
    what = "gradient magnitude" if magnitude else "response"
    unit = "brightness per pixel" if magnitude else "brightness"
    if args.plot:
        from .plots import plot_edges, save_figure

        save_figure(args.plot, plot_edges(image, response, f"{args.filter}: {what}, {unit}"))
    black = 0.0 if magnitude else -limit
    scale = "as float32" if numbers else f"black is {black:.4g}, white is {limit:.4g}"
    size = "x".join(map(str, response.shape))
    text = (
        f"{args.output}: {args.filter}, {what} {low:.4g} to {high:.4g} ({unit}), {size}, {scale}\n"
        f"ran on: {_backend(device)}"
    )
    data = {
        "output": args.output,
        "plot": args.plot,
        "filter": args.filter,
        "quantity": what,
        "unit": unit,
        "min": low,
        "max": high,
        "black": None if numbers else black,
        "white": None if numbers else limit,
        "shape": list(response.shape),
        "backend": _backend(device),
    }
    return Outcome(data, text if not args.plot else f"{text}\npicture: {args.plot}")


def learn(args: argparse.Namespace) -> Outcome:
    """`tricorr learn`."""
    from .autograd.learning import learn_kernel
    from .files import check_output, replacing
    from .ops import ArgumentError

    inputs = (args.input, args.target)
    if args.output:
        check_output(args.output, inputs)
        if Path(args.output).suffix not in (".npy", ".npz"):
            raise ArgumentError(f"a kernel is saved as .npy or .npz, got {args.output!r}")
    _check_plot(args, *inputs)
    device = _device(args.device)
    x, y = (_grey_image(path).to(device) for path in inputs)
    with redirect_stdout(sys.stderr):  # losses on the way are messages, the kernel is the result
        found = learn_kernel(
            x,
            y,
            _pair("--kernel-size", args.kernel_size),
            solver=args.solver,
            steps=args.steps,
            step_size=args.step_size,
            bias=args.bias,
            log_every=args.log_every,
        )
    if args.output:
        with replacing(args.output) as temporary:
            found.save(temporary)
    if args.plot:
        from .plots import plot_learned, save_figure

        save_figure(args.plot, plot_learned(x, y, found))
    bias = None if found.bias is None else float(found.bias)
    lines = [str(found), _matrix(found.weight)]
    if bias is not None:
        lines.append(f"bias {bias:.6g}")
    if found.step_size is not None:
        lines.append(f"step size {found.step_size:.4g}, diverges from {found.max_step_size:.4g}")
    if found.condition is not None and found.condition < math.inf:
        lines.append(f"condition number of the normal matrix {found.condition:.3g}")
    lines += [f"{name}: {path}" for name, path in _written(args) if path]
    lines.append(f"ran on: {_backend(device)}")
    data = {
        "weight": found.weight.tolist(),
        "bias": bias,
        "loss": found.loss,
        "rms": found.rms,
        "history": found.history,
        "steps": len(found.history),
        "solver": found.solver,
        "step_size": found.step_size,
        "max_step_size": found.max_step_size,
        "undetermined": found.undetermined,
        "condition": found.condition,
        "notes": found.notes,
        "backend": _backend(device),
        **dict(_written(args)),
    }
    return Outcome(data, "\n".join(lines))


def features(args: argparse.Namespace) -> Outcome:
    """`tricorr features`."""
    from .autograd.filter_kernels import log_gabor_kernels
    from .autograd.functional import corr2d
    from .files import check_output
    from .ops import ArgumentError
    from .plots import check_figure_name, plot_features, save_figure

    check_output(args.output, (args.image,))
    check_figure_name(args.output)
    bank = log_gabor_kernels(args.size, wavelength=args.wavelength)
    device = _device(args.device)
    image = _grey_image(args.image).to(device)
    if not image.isfinite().all():
        raise ArgumentError(f"{args.image} has pixels that are NaN or infinite")
    maps = corr2d(
        image[None, None], bank.to(device), padding=args.size // 2, padding_mode="replicate"
    )[0]
    save_figure(args.output, plot_features(image, bank, maps))
    rms = maps.square().mean(dim=(1, 2)).sqrt().tolist()
    angles = [180 * k / len(rms) for k in range(len(rms))]
    lines = [f"{a:5.0f} degrees: response RMS {r:.4g}" for a, r in zip(angles, rms, strict=True)]
    lines += [f"picture: {args.output}", f"ran on: {_backend(device)}"]
    data = {
        "output": args.output,
        "degrees": angles,
        "rms": rms,
        "size": args.size,
        "wavelength": args.wavelength,
        "backend": _backend(device),
    }
    return Outcome(data, "\n".join(lines))


def receptive_field(args: argparse.Namespace) -> Outcome:
    """`tricorr receptive-field`."""
    from .autograd.receptive_field import receptive_field as field_of

    field = field_of([_layer(text) for text in args.layers])
    step, start = (", ".join(map(str, pair)) for pair in (field.step, field.start))
    text = (
        f"one output element sees {'x'.join(map(str, field.size))} input elements\n"
        f"neighbouring outputs are ({step}) apart in the input; the first begins at ({start})"
    )
    return Outcome(asdict(field), text)


def explain(args: argparse.Namespace) -> Outcome:
    """`tricorr explain`."""
    import torch

    from .autograd.functional import explain as explain_call
    from .ops import ArgumentError

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
        _pair("--stride", args.stride),
        _padding(args.padding),
        _pair("--dilation", args.dilation),
        args.groups,
        precision=args.precision,
        device=args.device,
    )
    return Outcome(found.as_dict(), str(found))


def demo(args: argparse.Namespace) -> Outcome:
    """`tricorr demo`."""
    import time
    from importlib.resources import files

    import torch

    from .autograd.functional import corr2d
    from .autograd.learning import learn_kernel
    from .extras import needs
    from .files import check_output
    from .images import read_image
    from .ops import backend
    from .plots import check_figure_name, plot_learned, save_figure

    directory = Path(args.output)
    directory.mkdir(parents=True, exist_ok=True)
    picture = directory / "tricorr-demo.png"
    check_output(picture)
    check_figure_name(picture)
    device = _device(args.device)
    with needs("images"):
        photograph = files("skimage") / "data" / "camera.png"  # in the wheel: nothing is downloaded
    x = read_image(str(photograph), grey=True).pixels.to(device)
    if device.type == "cpu" and backend.INTERPRET:
        x = x[100:124, 210:234].contiguous()
        print(
            "tricorr: note: in Triton's interpreter: on 24x24 pixels, in half a minute",
            file=sys.stderr,
        )
    began = time.perf_counter()
    book_losses, book_weight = _textbook(device)
    true = torch.tensor(MOTION_BLUR, device=device)
    y = corr2d(x, true)
    first = learn_kernel(x, y, true.shape, steps=15, progress=False)
    found = learn_kernel(x, y, true.shape, solver="cg", steps=60)
    seconds = time.perf_counter() - began
    error = float((found.weight - true).abs().max())
    save_figure(picture, plot_learned(x, y, found, true=true))
    lines = [f"ran on: {_backend(device)}", "", "The textbook: the kernel [1, -1] from a 6x8 image"]
    lines += [f"  epoch {step}, loss {loss:.3f}" for step, loss in book_losses]
    lines += [
        f"  learned {[round(value, 3) for value in book_weight]}",
        "",
        f"A photograph, {_size(x)}, blurred by a shaking hand: the kernel from the two images",
        f"  loss of no kernel {first.history[0]:.4g}, after {len(first.history)} steps of gradient "
        f"descent {first.loss:.4g}, after {len(found.history)} of conjugate gradients "
        f"{found.loss:.4g}",
        "true kernel",
        _matrix(true),
        "learned kernel",
        _matrix(found.weight),
        f"largest error of an element: {error:.2g}",
        f"picture: {picture}",
        f"{seconds:.1f} s",
    ]
    data = {
        "backend": _backend(device),
        "textbook": {"losses": [loss for _, loss in book_losses], "weight": book_weight},
        "true_kernel": true.tolist(),
        "learned_kernel": found.weight.tolist(),
        "max_error": error,
        "loss": found.loss,
        "picture": str(picture),
        "seconds": seconds,
    }
    return Outcome(data, "\n".join(lines))


def _textbook(device: torch.device) -> tuple[list[tuple[int, float]], list[float]]:
    """The textbook's loop as it is printed there: (epoch, loss) of every second, and the kernel."""
    import torch

    from .autograd.functional import corr2d
    from .autograd.modules import LazyConv2D

    image = torch.ones(6, 8, device=device)
    image[:, 2:6] = 0
    target = corr2d(image, torch.tensor([[1.0, -1.0]], device=device))
    X, Y = image.reshape(1, 1, 6, 8), target.reshape(1, 1, 6, 7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = LazyConv2D(1, kernel_size=(1, 2), bias=False).to(device)
        layer(X)
    losses = []
    for epoch in range(1, 11):
        loss = ((layer(X) - Y) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, layer.weight)
        with torch.no_grad():
            layer.weight.sub_(3e-2 * gradient)
        if epoch % 2 == 0:
            losses.append((epoch, loss.item()))
    return losses, layer.weight.flatten().tolist()


def _device(name: str) -> torch.device:
    import torch

    from .ops import ArgumentError

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


def _grey_image(path: str) -> torch.Tensor:
    """A grey image; says on stderr what was changed on the way."""
    import logging

    from .images import read_image

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs, it raises as well
    picture = read_image(path, grey=True)
    for note in picture.notes:
        print(f"tricorr: note: {path}: {note}", file=sys.stderr)
    return picture.pixels


def _check_plot(args: argparse.Namespace, *inputs: str) -> None:
    if not args.plot:
        return
    from .files import check_output
    from .ops import ArgumentError
    from .plots import check_figure_name

    check_output(args.plot, inputs)
    check_figure_name(args.plot)
    if args.output and os.path.realpath(args.output) == os.path.realpath(args.plot):
        raise ArgumentError(f"--output and --plot are the same file, {args.plot}")


def _written(args: argparse.Namespace) -> list[tuple[str, str | None]]:
    return [("kernel", args.output), ("picture", args.plot)]


def _pair(name: str, numbers: list[int]) -> int | tuple[int, int]:
    if len(numbers) > 2:
        raise UsageError(f"{name} takes one number or two, got {len(numbers)}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _padding(words: list[str]) -> Any:
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


def _matrix(weight: torch.Tensor) -> str:
    import numpy as np

    return np.array2string(
        weight.numpy(force=True), precision=4, suppress_small=True, max_line_width=120
    )


def _size(image: torch.Tensor) -> str:
    return "x".join(map(str, image.shape))


def _backend(device: torch.device) -> str:
    from .ops.backend import backend_name

    return backend_name(device)
