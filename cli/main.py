"""The command line: results on stdout, messages on stderr, errors in one line with exit code 2."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .. import __version__
from . import learn_options
from .commands import (
    Outcome,
    UsageError,
    explain,
    features,
    numbers,
    reason,
    receptive_field,
    words,
)
from .completion import SHELLS, completion
from .demo import demo
from .doctor import doctor
from .filter import (
    add_apply,
    add_edges,
    add_filter,
    apply,
    edges,
    filter_images,
    print_binary,
)
from .learn import learn

DTYPES = ("float16", "bfloat16", "float32", "float64")


#: Options of several numbers, `--padding 1 2`, which may be joined: `--padding 1x2`.
SEVERAL = frozenset(
    f"--{name}"
    for name in ("kernel-size", "tiles", "padding", "stride", "dilation", "input", "weight")
) | {"-k"}


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        if "required: IMAGE" in message and self.prog.endswith(" learn"):
            message += (
                "; files after --mask, --input-mask or --weights are theirs: IMAGEs come first"
            )
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes them from the command line.

    Returns:
        The exit code: 0, 1 if doctor's self-check failed, 2 after an error, 130 after Ctrl-C
        (and 143 after SIGTERM, by SystemExit).
    """
    if arguments is None:
        # SIGTERM must remove temporary files as Ctrl-C does.
        signal.signal(signal.SIGTERM, _terminated)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not given:
            parser().print_help()
            return 0
        args = parser().parse_args(_in_one_word(given))
        outcome: Outcome = args.run(args)
        told = _json(outcome.data) if args.json else outcome.text
        if outcome.binary is None:
            print(told)
        else:
            print(told, file=sys.stderr)
            print_binary(outcome.binary)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("tricorr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader closed the pipe: flushing the buffer at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # every error is one line, unless a traceback is asked for
        if os.environ.get("TRICORR_TRACEBACK"):
            raise
        print(f"tricorr: error: {reason(error)}", file=sys.stderr)
        return 2
    return outcome.exit_code


def _in_one_word(arguments: Sequence[str]) -> list[str]:
    """Joins `--kernel-size 5 7 a.png` to `--kernel-size 5x7 a.png`, or argparse takes the file."""
    found: list[str] = []
    arguments = list(arguments)
    while arguments:
        found.append(arguments.pop(0))
        if found[-1] in SEVERAL:
            count = 0
            while count < len(arguments) and arguments[count].lstrip("-").isdecimal():
                count += 1
            if count > 1:
                found.append("x".join(arguments[:count]))
                del arguments[:count]
    return found


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


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
        "filter",
        filter_images,
        help="blur, sharpen or differentiate images",
        description="Filter images by name; colours are kept, each filtered on its own.\n\n"
        "gaussian, box and unsharp give images, which pictures clip to black and white;\n"
        "sobel, scharr and prewitt a gradient's magnitude, black where it is 0; the others\n"
        "signed responses, grey where they are 0. White is the 99.5th percentile.",
        epilog="examples:\n"
        "  tricorr filter --name gaussian --sigma 2 photo.jpg -o blurred.png\n"
        "  tricorr filter --name unsharp *.jpg -o sharper/\n"
        "  curl -s URL | tricorr filter --name sobel - -o - > edges.png",
    )
    add_filter(sub)
    _add_device(sub)

    sub = command(
        "apply",
        apply,
        help="filter images with a kernel from a file",
        description="Cross-correlate images with a kernel, such as `tricorr learn` found;\n"
        "colours are kept, each filtered on its own. The result has the image's size.",
        epilog="examples:\n"
        "  tricorr learn before.png after.png -k 5 -o kernel.npy\n"
        "  tricorr apply kernel.npy photo.jpg -o out.png",
    )
    add_apply(sub)
    _add_device(sub)

    sub = command(
        "edges",
        edges,
        help="where an image changes",
        description="Filter grey images for edges and write the answer as an image.\n\n"
        "sobel, scharr and prewitt give the gradient's magnitude, in brightness per pixel;\n"
        "laplacian and book (the textbook's [1, -1]) a signed response, drawn grey where it is 0.\n"
        "White is the 99.5th percentile of the response. Colours are taken as Rec. 709 luma.",
        epilog="examples:\n"
        "  tricorr edges photo.jpg -o edges.png\n"
        "  tricorr edges photo.tif -o edges.npy --filter scharr    the numbers, not a picture",
    )
    add_edges(sub)
    _add_device(sub)

    sub = command(
        "learn",
        learn,
        help="the kernel between two images",
        description=learn_options.DESCRIPTION,
        epilog=learn_options.EXAMPLES,
    )
    learn_options.add_arguments(sub)
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
        "first one first: WINDOW[,stride=S][,padding=P][,dilation=D]; 3 means 3x3.\n"
        "Or of a torch module: a file or an importable module and what in it makes one, after a\n"
        "colon; or a .pt file that torch.save wrote. Their code is run: only files you trust.",
        epilog="examples:\n"
        "  tricorr receptive-field 2 2\n"
        "  tricorr receptive-field 7,stride=2,padding=3 3,stride=2 3x1,dilation=2\n"
        "  tricorr receptive-field model.py:make_net\n"
        "  tricorr receptive-field model.pt",
    )
    sub.add_argument(
        "layers", nargs="+", metavar="LAYER", help="such as 3 or 7x7,dilation=2; or one MODULE"
    )
    sub.add_argument(
        "--plot", metavar="FILE", help="draws how the region grows from layer to layer"
    )

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
        "--input", required=True, type=numbers, metavar="N", help="its shape: N C H W, or NxCxHxW"
    )
    sub.add_argument(
        "--weight", required=True, type=numbers, metavar="K", help="its shape: K C R S, or KxCxRxS"
    )
    for name, text in (
        ("stride", "one number, or rows and columns"),
        ("dilation", "one number, or rows and columns"),
    ):
        sub.add_argument(f"--{name}", type=numbers, default=[1], metavar="N", help=text)
    sub.add_argument(
        "--padding",
        type=words,
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
        "completion",
        completion,
        help="what a shell needs to complete tricorr's options",
        description="Print a script that completes commands, options and file names.",
        epilog="examples:\n"
        '  eval "$(tricorr completion bash)"                       for this shell\n'
        "  tricorr completion zsh > ~/.zsh/completions/_tricorr    for good",
    )
    sub.add_argument("shell", choices=SHELLS)
    sub.set_defaults(parser=root)

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


def _add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda or cuda:1; default: the first GPU, if there is one",
    )


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
