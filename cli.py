"""The command line: results on stdout, messages on stderr, errors in one line with exit code 2."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__

# Everything else is imported where it is used: --help has to be quick.
if TYPE_CHECKING:
    import torch

FILTERS = ("sobel", "scharr", "prewitt", "laplacian", "book")
DTYPES = ("float16", "bfloat16", "float32", "float64")
#: What doctor reports the versions of, after tricorr and Python.
PACKAGES = ("torch", "triton", "numpy", "pillow", "tifffile", "matplotlib", "scikit-image")


@dataclass(frozen=True)
class Outcome:
    """What a command found: `data` for --json, `text` for people."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


class UsageError(Exception):
    """The command line itself is wrong."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes them from the command line.

    Returns:
        The exit code: 0, 1 if doctor's self-check failed, 2 after an error, 130 after Ctrl-C.
    """
    try:
        args = parser().parse_args(arguments)
        outcome: Outcome = args.run(args)
        print(_json(outcome.data) if args.json else outcome.text)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("tricorr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away. What is still buffered must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("TRICORR_TRACEBACK"):
            raise
        print(f"tricorr: error: {_reason(error)}", file=sys.stderr)
        return 2
    return outcome.exit_code


def parser() -> Parser:
    """The whole command line."""
    root = Parser(
        prog="tricorr",
        description="2-D cross-correlation by Triton kernels: filter images, and learn kernels.",
        epilog="Each command has examples: tricorr learn --help. Images: any format that Pillow or "
        "tifffile reads, and .npy arrays. 8-bit and 16-bit images are taken as [0, 1]. "
        "TRICORR_TRACEBACK=1 shows where an error came from.",
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"tricorr {__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Outcome], **texts: str) -> Parser:
        sub: Parser = commands.add_parser(
            name,
            help=texts["help"],
            description=texts["description"],
            epilog=texts.get("epilog"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        return sub

    sub = command(
        "edges",
        edges,
        help="where an image changes",
        description="Filter an image for edges and write the answer as an image.\n\n"
        "sobel, scharr and prewitt give the gradient's magnitude, in brightness per pixel;\n"
        "laplacian and book (the textbook's [1, -1]) a signed response, drawn grey where it is 0.",
        epilog="examples:\n"
        "  tricorr edges photo.jpg -o edges.png\n"
        "  tricorr edges photo.tif -o edges.npy --filter scharr    the numbers, not a picture",
    )
    sub.add_argument("image", metavar="IMAGE", help="colours are taken as Rec. 709 luma")
    sub.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="rescaled to black and white; .npy and .tif keep the numbers",
    )
    sub.add_argument("--filter", choices=FILTERS, default="sobel", help="default: sobel")
    sub.add_argument("--plot", metavar="PICTURE", help="image and edges side by side, with a scale")
    _add_device(sub)

    sub = command(
        "learn",
        learn,
        help="the kernel between two images",
        description="Find the kernel whose cross-correlation with INPUT is nearest to TARGET in\n"
        "squared error. TARGET has INPUT's size, or that size less the window, plus one.",
        epilog="examples:\n"
        "  tricorr learn sharp.png blurred.png --kernel-size 5 5 --solver cg -o kernel.npy\n"
        "  tricorr learn before.tif after.tif --kernel-size 3 --bias --plot fit.png\n"
        "  tricorr learn x.npy y.npy --kernel-size 1 2 --steps 10 --step-size 3e-2 --log-every 2",
    )
    sub.add_argument("input", metavar="INPUT", help="an image; colours are taken as Rec. 709 luma")
    sub.add_argument("target", metavar="TARGET", help="the same image, filtered")
    sub.add_argument(
        "--kernel-size",
        required=True,
        nargs="+",
        type=int,
        metavar=("ROWS", "COLUMNS"),
        help="of the window, in pixels; one number for a square",
    )
    sub.add_argument("-o", "--output", metavar="KERNEL", help="the kernel, as .npy or .npz")
    sub.add_argument(
        "--plot", metavar="PICTURE", help="a summary of the fit, as .png, .pdf or .svg"
    )
    sub.add_argument(
        "--solver",
        choices=("gd", "cg"),
        default="gd",
        help="gradient descent as in the textbook (default), or conjugate gradients: exact, faster",
    )
    sub.add_argument(
        "--steps", type=int, metavar="N", help="default: 200 for gd, one per unknown for cg"
    )
    sub.add_argument(
        "--step-size",
        type=float,
        metavar="F",
        help="of gd, on the summed squared error; default: half of the largest that converges",
    )
    sub.add_argument("--bias", action="store_true", help="learn a constant too")
    sub.add_argument(
        "--log-every", type=int, default=0, metavar="N", help="print the loss every N steps"
    )
    _add_device(sub)

    sub = command(
        "features",
        features,
        help="feature maps under six oriented filters",
        description="Draw the feature maps of an image under six even-symmetric log-Gabor filters\n"
        "(Field 1987), one for every 30 degrees.",
        epilog="example:\n  tricorr features photo.jpg -o features.png --wavelength 8",
    )
    sub.add_argument("image", metavar="IMAGE", help="colours are taken as Rec. 709 luma")
    sub.add_argument("-o", "--output", required=True, metavar="PICTURE", help=".png, .pdf or .svg")
    sub.add_argument(
        "--size", type=int, default=21, metavar="N", help="of the filters, odd, in pixels (21)"
    )
    sub.add_argument(
        "--wavelength", type=float, default=6.0, metavar="F", help="of the stripes, in pixels (6)"
    )
    _add_device(sub)

    sub = command(
        "receptive-field",
        receptive_field,
        help="how much of the input a stack of layers sees",
        description="The region of the input that one output element sees, through all LAYERs,\n"
        "first one first: WINDOW[,stride=S][,padding=P][,dilation=D]; 3 means 3x3.",
        epilog="examples:\n"
        "  tricorr receptive-field 2 2\n"
        "  tricorr receptive-field 7,stride=2,padding=3 3,stride=2 3x1,dilation=2",
    )
    sub.add_argument("layers", nargs="+", metavar="LAYER", help="such as 3 or 7x7,dilation=2")

    sub = command(
        "explain",
        explain,
        help="which kernel a call would run, and its cost",
        description="Kernel, tile, grid, bytes, FLOPs and bound of corr2d and its two gradients.\n"
        "Nothing is computed, and the device need not be there.",
        epilog="examples:\n"
        "  tricorr explain --input 32 64 56 56 --weight 64 64 3 3 --padding 1 --device h200\n"
        "  tricorr explain --input 8 32 112 112 --weight 32 1 3 3 --groups 32 --dtype float16",
    )
    sub.add_argument(
        "--input", required=True, nargs="+", type=int, metavar="N", help="its shape: N C H W"
    )
    sub.add_argument(
        "--weight", required=True, nargs="+", type=int, metavar="K", help="its shape: K C R S"
    )
    for name, text in (
        ("stride", "one number, or rows and columns"),
        ("dilation", "one number, or rows and columns"),
    ):
        sub.add_argument(f"--{name}", nargs="+", type=int, default=[1], metavar="N", help=text)
    sub.add_argument(
        "--padding",
        nargs="+",
        default=["0"],
        metavar="N",
        help="one number; rows and columns; top, bottom, left and right; same; valid",
    )
    sub.add_argument("--groups", type=int, default=1, metavar="N", help="default: 1")
    sub.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    sub.add_argument(
        "--precision",
        choices=("ieee", "tf32", "tf32x3"),
        help="how float32 is multiplied; default: PyTorch's setting",
    )
    sub.add_argument("--channels-last", action="store_true", help="input and weight are NHWC")
    sub.add_argument(
        "--device", metavar="NAME", help="plan for a100, h100, h200, b200 or mi300x (default: here)"
    )

    sub = command(
        "doctor",
        doctor,
        help="versions, devices and a self-check, to paste into an issue",
        description="Versions, devices, what runs where, and a small case checked against\n"
        "float64. Exit code 1 if that check fails.",
    )

    sub = command(
        "demo",
        demo,
        help="learn a kernel from a photograph",
        description="The textbook's loop, then a kernel learned back from a photograph that\n"
        "scikit-image ships, and a picture of it.",
    )
    sub.add_argument(
        "-o", "--output", default=".", metavar="DIR", help="where tricorr-demo.png goes (here)"
    )
    _add_device(sub)
    return root


def edges(args: argparse.Namespace) -> Outcome:
    """`tricorr edges`."""
    from .autograd import filters
    from .autograd.functional import corr2d
    from .files import check_output
    from .images import check_image_name, write_image
    from .ops import ArgumentError

    check_output(args.output, (args.image,))
    check_image_name(args.output)
    _check_plot(args, args.image)
    device = _device(args.device)
    image = _grey_image(args.image).to(device)
    x = image[None, None]
    magnitude = args.filter in ("sobel", "scharr", "prewitt")
    if magnitude:
        bank = getattr(filters, args.filter)(normalized=True).to(device)
        gradient = corr2d(x, bank, padding=1, padding_mode="replicate")
        response = gradient.square().sum(dim=1).sqrt()[0]
    elif args.filter == "laplacian":
        bank = filters.laplacian().to(device)
        response = corr2d(x, bank, padding=1, padding_mode="replicate")[0, 0]
    else:
        response = corr2d(x, filters.textbook_edge().to(device))[0, 0]
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
    rms = (found.loss / max(1, found.residual.numel())) ** 0.5
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
        "rms": rms,
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
    from .autograd.filters import oriented_filters
    from .autograd.functional import corr2d
    from .files import check_output
    from .ops import ArgumentError
    from .plots import check_figure_name, plot_features, save_figure

    check_output(args.output, (args.image,))
    check_figure_name(args.output)
    bank = oriented_filters(args.size, wavelength=args.wavelength)
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


def doctor(args: argparse.Namespace) -> Outcome:
    """`tricorr doctor`."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from .ops import backend

    versions: dict[str, str | None] = {"tricorr": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    versions |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
    devices: dict[str, str] = {"cpu": platform.processor() or platform.machine()}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        devices[f"cuda:{index}"] = f"{facts.name}, {memory}, {facts.multi_processor_count} cores"
    runs = {name: _backend_or_reason(name) for name in [*devices, *_absent_gpu(devices)]}
    checks = {name: _self_check(name) for name in devices}
    passed = all(check["passed"] for check in checks.values())
    data = {
        "versions": versions,
        "platform": platform.platform(),
        "devices": devices,
        "backends": runs,
        "interpret": backend.INTERPRET,
        "threads": torch.get_num_threads(),
        "self_check": checks,
        "passed": passed,
    }
    lines = [f"{name:14}{number or '-'}" for name, number in versions.items()]
    lines.append(f"{'platform':14}{data['platform']}, {data['threads']} threads")
    lines += [f"{name:14}{what}" for name, what in devices.items()]
    lines += [f"{name + ' runs':14}{what}" for name, what in runs.items()]
    state = "set: CPU tensors run the kernels" if backend.INTERPRET else "not set"
    lines.append(f"TRITON_INTERPRET {state}")
    for name, check in checks.items():
        lines.append(
            f"self-check {name}: {'passed' if check['passed'] else 'FAILED'}, {check['text']}"
        )
    return Outcome(data, "\n".join(lines), exit_code=0 if passed else 1)


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
        x = x[96:160, 200:264].contiguous()  # the interpreter takes its time
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


#: What a hand does to a photograph while the shutter is open; its sum is one.
MOTION_BLUR = [
    [0.00, 0.00, 0.00, 0.05, 0.10],
    [0.00, 0.00, 0.05, 0.20, 0.05],
    [0.00, 0.05, 0.15, 0.00, 0.00],
    [0.05, 0.15, 0.00, 0.00, 0.00],
    [0.05, 0.10, 0.00, 0.00, 0.00],
]


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


def _self_check(device: str) -> dict[str, Any]:
    """Forward and both gradients of a small case against NumPy in float64."""
    import torch

    from .autograd.functional import corr2d
    from .ops import geometry_of, reference

    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, generator=random) for n in ((2, 3, 9, 11), (4, 3, 3, 2)))
    geometry = geometry_of((2, 3, 9, 11), (4, 3, 3, 2), (2, 1), ((1, 1), (1, 1)), (1, 2))
    dy = torch.randn(geometry.y_shape, generator=random)
    try:
        x_there, weight_there = (
            tensor.to(device, copy=True).requires_grad_() for tensor in (x, weight)
        )
        y = corr2d(x_there, weight_there, None, (2, 1), 1, (1, 2), precision="ieee")
        dx, dw = torch.autograd.grad(y, (x_there, weight_there), dy.to(device))
    except Exception as error:  # whatever is broken here is what doctor is asked to report
        return {"passed": False, "text": _reason(error), "errors": None}
    truth = {
        "forward": lambda a, b, dy: reference.fprop(a, b, None, geometry),
        "input gradient": lambda a, b, dy: reference.dgrad(dy, b, geometry),
        "weight gradient": lambda a, b, dy: reference.wgrad(a, dy, geometry),
    }
    tensors = [tensor.double().numpy() for tensor in (x, weight, dy)]
    errors, passed = {}, True
    found = {"forward": y, "input gradient": dx, "weight gradient": dw}
    for name, result in found.items():
        off = abs(result.detach().cpu().double().numpy() - truth[name](*tensors))
        # Higham's bound (see tests/closeness.py): no element adds more than 100 products.
        bound = 100 * torch.finfo(torch.float32).eps * truth[name](*map(abs, tensors))
        errors[name] = float(off.max())
        passed = passed and bool((off <= bound).all())
    text = "largest errors: " + ", ".join(f"{name} {off:.1e}" for name, off in errors.items())
    return {"passed": passed, "text": text, "errors": errors}


def _absent_gpu(devices: Mapping[str, str]) -> list[str]:
    return [] if any(name.startswith("cuda") for name in devices) else ["cuda"]


def _backend_or_reason(device: str) -> str:
    import torch

    from .ops import BackendError
    from .ops.backend import backend_name

    if device == "cuda":
        return "not there: PyTorch sees no GPU"
    try:
        return backend_name(torch.device(device))
    except BackendError as error:
        return f"nothing: {error}"


def _backend(device: torch.device) -> str:
    from .ops.backend import backend_name

    return backend_name(device)


def _add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda or cuda:1; default: the first GPU, if there is one",
    )


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


def _json(data: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return json.dumps(plain(data), indent=2, allow_nan=False, default=str)


def _reason(error: Exception) -> str:
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
