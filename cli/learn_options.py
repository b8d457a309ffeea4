"""The options of `tricorr learn`, which learn.py carries out."""

from __future__ import annotations

import argparse
from typing import Any

from .commands import numbers, words

DESCRIPTION = """Find the kernel whose cross-correlation with INPUT is nearest to TARGET in
squared error. TARGET has INPUT's size, or that size less the window, plus one.
Several pairs of images give one kernel for all of them.

Units: white is 1.0 in integer images of 8 and 16 bits. If only one image of a pair
has such a white, as uint16 beside float, the numbers of both files are used as they
are stored, and a note says so. Kernel, bias and errors are in these units."""
EXAMPLES = """examples:
  tricorr learn sharp.png blurred.png --kernel-size 5 -o kernel.npy --plot fit.png
  tricorr learn a.fits b.fits --kernel-size 11 --background 1 --mask good.npy -o psf.fits
  tricorr learn sharp.png shaken.png --kernel-size 15 --nonnegative --sum-to 1
  tricorr learn x1.png y1.png x2.png y2.png --kernel-size 3 --bias
  tricorr learn huge_x.npy huge_y.npy --kernel-size 5 --stream --progress
  tricorr learn x.npy y.npy --kernel-size 1 2 --steps 10 --step-size 3e-2 --log-every 2"""


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """The options of `tricorr learn`."""
    sub.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="INPUT TARGET, and any number of such pairs; colours are taken as Rec. 709 luma",
    )
    sub.add_argument(
        "-k",
        "--kernel-size",
        required=True,
        type=_size,
        metavar="ROWSxCOLUMNS",
        help="of the window, in pixels: 5, 5x7 or 5 7; or auto",
    )
    sub.add_argument("-o", "--output", metavar="KERNEL", help="the kernel: .npy, .npz or .fits")
    sub.add_argument(
        "--plot", metavar="PICTURE", help="a summary of the fit, as .png, .pdf or .svg"
    )
    sub.add_argument(
        "--residual", metavar="IMAGE", help="prediction less target, as .npy or .tif (one pair)"
    )
    sub.add_argument(
        "--difference",
        metavar="FILE",
        help="target less prediction and its variance, as .npz or .fits (one pair); the variance "
        "is 1 / WEIGHTS, and what the kernel makes of --input-noise",
    )
    _add_model(sub.add_argument_group("what is fitted"))
    _add_weights(sub.add_argument_group("which pixels count"))
    _add_solver(sub.add_argument_group("how it is found"))


def _ridge(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _size(text: str) -> list[Any]:
    return ["auto"] if text == "auto" else list(numbers(text))


def _add_model(group: Any) -> None:
    group.add_argument("--bias", action="store_true", help="a constant too: --background constant")
    group.add_argument(
        "--background",
        metavar="ORDER",
        help="constant, or the order of a polynomial that is added to the prediction",
    )
    group.add_argument(
        "--padding",
        type=words,
        metavar="N",
        help="what INPUT was padded with: one number; rows and columns; top, bottom, left and "
        "right; same; valid",
    )
    group.add_argument(
        "--padding-mode",
        choices=("zeros", "reflect", "replicate", "circular"),
        default="zeros",
        help="what the padding holds; default: zeros",
    )
    group.add_argument(
        "--convolution", action="store_true", help="a strict convolution: the kernel is flipped"
    )
    group.add_argument(
        "--ridge",
        type=_ridge,
        default=0.0,
        metavar="F",
        help="on the kernel's norm; gcv, or a part of the largest eigenvalue such as 0.1%%",
    )
    group.add_argument(
        "--smooth", type=float, default=0.0, metavar="F", help="on differences of neighbours"
    )
    group.add_argument(
        "--order",
        type=int,
        metavar="N",
        help="a kernel that varies over the target as a polynomial of order N, 0 to 3",
    )
    group.add_argument(
        "--scale-order", type=int, metavar="N", help="of the sum of that kernel; default: N"
    )
    group.add_argument("--nonnegative", action="store_true", help="no element below zero")
    group.add_argument("--sum-to", type=float, metavar="F", help="what all elements sum to")
    group.add_argument(
        "--tiles",
        type=numbers,
        metavar="ROWSxCOLUMNS",
        help="a kernel for each of so many tiles of the target",
    )


def _add_weights(group: Any) -> None:
    for name, text in (
        ("mask", "where TARGET is fitted: not zero"),
        ("input-mask", "where INPUT is known: not zero"),
        ("weights", "of TARGET's squared errors: 1 / variance"),
    ):
        group.add_argument(
            f"--{name}",
            nargs="+",
            default=[],
            metavar="IMAGE",
            help=f"{text}; one for all pairs, or one for each",
        )
    group.add_argument(
        "--dq",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="data quality of TARGET: not zero is bad, and left out",
    )
    group.add_argument(
        "--ext", metavar="EXT", help="extension of FITS images: a number or name; or a.fits[EXT]"
    )
    group.add_argument(
        "--input-noise", type=float, metavar="F", help="standard deviation of the noise in INPUT"
    )
    group.add_argument(
        "--loss",
        default="squared",
        choices=("squared", "huber", "tukey"),
        help="huber and tukey let outliers count less; default: squared",
    )


def _add_solver(group: Any) -> None:
    group.add_argument(
        "--solver",
        default="auto",
        metavar="NAME",
        help="normal: exact, one pass; cg: for large windows; gd: gradient descent as in the "
        "textbook; or an optimiser of torch.optim, such as adam; default: what suits",
    )
    group.add_argument(
        "--steps", type=int, metavar="N", help="default: 200 for gd, one per unknown for cg"
    )
    group.add_argument(
        "--step-size",
        type=float,
        metavar="F",
        help="of gd, on the summed squared error; default: half of the largest that converges",
    )
    group.add_argument(
        "--log-every", type=int, default=0, metavar="N", help="print the loss every N steps"
    )
    group.add_argument(
        "--stream",
        nargs="?",
        type=int,
        const=0,
        metavar="ROWS",
        help="read ROWS at a time (default: 4 million pixels), for images larger than memory: "
        ".npy, .tif, .fits; by --solver normal or gd",
    )
    group.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a bar with the loss and the time left; default: on a terminal",
    )
