"""`tricorr learn`: the kernel between image files; its options are in learn_options.py."""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .commands import (
    Outcome,
    UsageError,
    backend_of,
    check_plot,
    device_named,
    grey_image,
    matrix,
    number_or_pair,
    padding_of,
    read_picture,
)

# Everything else is imported where it is used: --help has to be quick.
if TYPE_CHECKING:
    import torch

    from ..learning.accumulator import KernelAccumulator
    from ..learning.field import VaryingKernel
    from ..learning.learned import LearnedKernel
    from ..learning.tiles import KernelField

    Found: TypeAlias = LearnedKernel | KernelField | VaryingKernel

#: Side, in pixels, of the part of a streamed image that is drawn.
DRAWN = 512


def learn(args: argparse.Namespace) -> Outcome:
    """`tricorr learn`."""
    _check(args)
    device = device_named(args.device)
    with redirect_stdout(sys.stderr):  # losses go to stderr, the kernel to stdout
        found = _streamed(args, device) if args.stream is not None else _whole(args, device)
    if args.output:
        found.save(args.output)
    written = {"kernel": args.output, "picture": args.plot, "residual": args.residual}
    written["difference"] = args.difference
    lines = [*_in_words(found), *(f"{name}: {path}" for name, path in written.items() if path)]
    data = {**_as_data(found), "backend": backend_of(device), **written}
    return Outcome(data, "\n".join([*lines, f"ran on: {backend_of(device)}"]))


def _check(args: argparse.Namespace) -> None:
    """Checks all options before an image is read."""
    from ..images.output import check_output
    from ..images.read import check_image_name
    from ..learning.kernel_files import check_kernel_name
    from ..ops import ArgumentError

    if len(args.images) % 2:
        raise UsageError(f"images come as INPUT TARGET [INPUT TARGET ...], got {len(args.images)}")
    pairs = len(args.images) // 2
    extra = [*args.mask, *args.input_mask, *args.weights, *args.dq]
    for name in ("mask", "input_mask", "weights", "dq"):
        count = len(getattr(args, name))
        if count not in (0, 1, pairs):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} takes one image, or one for each of {pairs}, got {count}")
    if args.output:
        check_output(args.output, (*args.images, *extra))
        check_kernel_name(args.output)
    check_plot(args, *args.images, *extra)
    if args.residual:
        if pairs > 1 or args.stream is not None:
            raise UsageError("--residual is for one pair, without --stream")
        check_output(args.residual, (*args.images, *extra))
        if Path(args.residual).suffix.lower() not in (".npy", ".tif", ".tiff"):
            raise ArgumentError(f"a residual is saved as .npy or .tif, got {args.residual!r}")
        check_image_name(args.residual)
    if args.difference:
        if pairs > 1 or args.stream is not None or args.tiles:
            raise UsageError("--difference is for one pair, without --stream and --tiles")
        check_output(args.difference, (*args.images, *extra))
        if Path(args.difference).suffix.lower() not in (".npz", ".fits"):
            raise ArgumentError(
                f"a difference and its variance are saved as .npz or .fits, got {args.difference!r}"
            )
    if args.order is not None:
        if args.tiles or args.stream is not None or args.solver != "auto":
            raise UsageError("--order goes without --tiles, --stream and --solver")
        for name in ("convolution", "nonnegative", "sum_to", "smooth", "input_noise", "steps"):
            if getattr(args, name):
                raise UsageError(f"--order goes without --{name.replace('_', '-')}")
        if args.loss != "squared":
            raise UsageError("--order goes with --loss squared")
        if args.output and not args.output.endswith(".npz"):
            raise UsageError(f"with --order the kernel is saved as .npz, got {args.output}")
    elif args.scale_order is not None:
        raise UsageError("--scale-order goes with --order")
    if args.stream is not None:
        if args.kernel_size == ["auto"] or args.input_noise or args.dq or args.ext:
            raise UsageError(
                "--stream goes without --kernel-size auto, --input-noise, --dq and --ext (write "
                "file.fits[EXT])"
            )
        if args.solver not in ("auto", "normal", "gd") or args.loss != "squared" or args.tiles:
            raise UsageError(
                "--stream goes with --solver normal or gd and --loss squared, without --tiles"
            )
        if args.log_every:
            raise UsageError("--stream has no losses on the way: --log-every is not for it")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments common to learn_kernel and KernelAccumulator."""
    background = args.background
    if background is not None and background != "constant":
        try:
            background = int(background)
        except ValueError as error:
            raise UsageError(
                f"--background takes constant or an order, got {background}"
            ) from error
    return {
        "bias": args.bias,
        "background": background,
        "padding": None if args.padding is None else padding_of(args.padding),
        "padding_mode": args.padding_mode,
        "flip": args.convolution,
    }


def _size(args: argparse.Namespace) -> Any:
    sides = args.kernel_size
    return "auto" if sides == ["auto"] else number_or_pair("--kernel-size", sides)


def _constraints(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "ridge": args.ridge,
        "smooth": args.smooth,
        "nonnegative": args.nonnegative,
        "sum_to": args.sum_to,
    }


def _for_each_pair(images: list[str], pairs: int) -> list[Any]:
    return images * pairs if len(images) == 1 else images or [None] * pairs


def _whole(args: argparse.Namespace, device: torch.device) -> Found:
    """Fits images that fit in memory; draws the fit for --plot."""
    import torch

    from ..learning.learn import learn_kernel, learn_kernel_field

    pairs = len(args.images) // 2
    images = [image.to(device) for image in _in_one_unit(args)]
    dtype = images[0].dtype
    for image in images:
        dtype = torch.promote_types(dtype, image.dtype)
    images = [image.to(dtype) for image in images]
    options: dict[str, Any] = {
        **_settings(args),
        **_constraints(args),
        **{n: getattr(args, n) for n in ("solver", "steps", "step_size", "loss", "log_every")},
        "progress": args.progress,
    }
    if args.input_noise:
        options["input_noise"] = args.input_noise
    for name in ("mask", "input_mask", "weights"):
        paths = getattr(args, name)
        if paths:
            read = [grey_image(path, double=True).to(device) for path in paths]
            options[name] = read * pairs if len(read) == 1 else read
    size = _size(args)
    x, y = images[::2], images[1::2]
    found: Found
    if args.dq:
        planes = [grey_image(path, double=True).to(device) == 0 for path in args.dq]
        planes = planes * pairs if len(planes) == 1 else planes
        kept = options.get("mask", planes)
        options["mask"] = (
            [good & (mask != 0) for good, mask in zip(planes, kept, strict=True)]
            if "mask" in options
            else planes
        )
    if args.order is not None:
        used = ("bias", "background", "padding", "padding_mode", "ridge", "mask", "input_mask")
        some = {name: options[name] for name in (*used, "weights") if name in options}
        found = learn_kernel_field(
            x, y, size, order=args.order, scale_order=args.scale_order, **some
        )
    elif args.tiles:
        tiles = number_or_pair("--tiles", args.tiles)
        found = learn_kernel_field(x, y, size, tiles, **options)
    else:
        found = learn_kernel(x, y, size, **options)
    assert isinstance(found.residual, list)
    residual = found.residual[0]
    if args.residual:
        from ..images.read import write_image

        write_image(args.residual, residual)
    if args.difference:
        _write_difference(args, found, x[0], y[0], options)
    if args.plot:
        mask = options["mask"][0] if "mask" in options else None
        shown = _blanked(y[0], mask), found.predict(x[0]), _blanked(residual, mask)
        _draw(args.plot, found, x[0], *shown)
    return found


def _write_difference(
    args: argparse.Namespace,
    found: Found,
    x: torch.Tensor,
    y: torch.Tensor,
    options: dict[str, Any],
) -> None:
    """Writes target less prediction, and the variance in it: infinite where a weight is zero."""
    from ..images.output import write_arrays
    from ..learning.tiles import KernelField

    assert not isinstance(found, KernelField)
    weights = options["weights"][0] if "weights" in options else None
    images = found.difference(
        x,
        y,
        x_variance=args.input_noise**2 if args.input_noise else None,
        y_variance=None if weights is None else 1 / weights.expand_as(y),
    )
    names = ("difference", "variance")
    write_arrays(
        args.difference,
        {name: image.numpy(force=True) for name, image in zip(names, images, strict=True)},
    )


def _in_one_unit(args: argparse.Namespace) -> list[torch.Tensor]:
    """The images in one unit per pair: white is 1.0, or the files' own numbers."""
    pictures = [
        read_picture(_named(path, args.ext), grey=True, double=True) for path in args.images
    ]
    images = []
    for i in range(0, len(pictures), 2):
        pair, names = pictures[i : i + 2], args.images[i : i + 2]
        mixed = len({picture.white != 1 for picture in pair}) > 1
        for path, picture in zip(names, pair, strict=True):
            scaled = mixed and picture.white != 1
            if scaled:
                print(
                    f"note: {path} is used as stored, 0 to {picture.white:g}, because the other "
                    "image has no white level",
                    file=sys.stderr,
                )
            images.append(picture.pixels * picture.white if scaled else picture.pixels)
    return images


def _named(path: str, extension: str | None) -> str:
    """A FITS file's extension, unless the name has one of its own."""
    from ..images.read import FITS_START, first_bytes, fits_extension

    file, own = fits_extension(path)
    if extension is None or own is not None or not file.is_file():
        return path
    return f"{path}[{extension}]" if first_bytes(file) == FITS_START else path


def _streamed(args: argparse.Namespace, device: torch.device) -> LearnedKernel:
    """Fits images that are read a few rows at a time."""
    from ..learning.accumulator import KernelAccumulator
    from ..learning.streaming import accumulate

    size = _size(args)
    sums = KernelAccumulator(size, **_settings(args))
    pairs = len(args.images) // 2
    others = [_for_each_pair(getattr(args, n), pairs) for n in ("mask", "input_mask", "weights")]
    for x, y, mask, input_mask, weights in zip(
        args.images[::2], args.images[1::2], *others, strict=True
    ):
        accumulate(
            sums,
            x,
            y,
            mask=mask,
            input_mask=input_mask,
            weights=weights,
            rows=args.stream or None,
            grey=True,
            device=device,
            progress=args.progress,
        )
    loop = args.solver == "gd" or args.steps is not None or args.step_size is not None
    solver = ("gd" if loop else "normal") if args.solver == "auto" else args.solver
    steps = {} if args.steps is None else {"steps": args.steps}
    found = sums.solve(solver, step_size=args.step_size, **steps, **_constraints(args))
    if args.plot:
        _draw_middle(args, found, sums)
    return found


def _draw_middle(args: argparse.Namespace, found: LearnedKernel, sums: KernelAccumulator) -> None:
    """Draws the middle of the first pair, and reads only that part."""
    from ..images.rows import open_rows
    from ..learning.streaming import fitted_origin, output_extent

    input_rows, target_rows = (open_rows(path, grey=True) for path in args.images[:2])
    extent = output_extent(sums.settings, input_rows)
    row, column = fitted_origin(sums.settings, input_rows, target_rows, extent)
    (pad_top, _), (pad_left, _) = found.padding
    window = found.weight.shape[-2:]
    spans = []
    for whole, pads, taps in zip(extent, found.padding, window, strict=True):
        # Only outputs whose window lies inside this part.
        first, last = pads[0], whole - pads[1]
        count = min(DRAWN, last - first)
        begin = first + (last - first - count) // 2
        spans.append((begin, begin + count, taps - 1))
    (top, bottom, more_rows), (left, right, more_columns) = spans
    x = input_rows.read(top - pad_top, bottom - pad_top + more_rows)
    x = x[:, left - pad_left : right - pad_left + more_columns]
    y = target_rows.read(row + top, row + bottom)[:, column + left : column + right]
    inner = replace(found, padding=((0, 0), (0, 0)))
    prediction = inner.predict(x, origin=(top, left), size=extent)
    mask = None
    if args.mask:
        mask = open_rows(args.mask[0], grey=True).read(row + top, row + bottom)
        mask = mask[:, column + left : column + right]
    residual = _blanked(prediction - y.to(prediction), mask)
    _draw(args.plot, found, x, _blanked(y, mask), prediction, residual)


def _blanked(image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The image with NaN where the mask, which may have a wider border, is zero."""
    if mask is None:
        return image
    H, W = image.shape
    top, left = mask.shape[0] - H, mask.shape[1] - W
    kept = mask[top // 2 : top // 2 + H, left // 2 : left // 2 + W] != 0
    return image.masked_fill(~kept, math.nan)


def _draw(path: str, found: Found, *images: torch.Tensor) -> None:
    """Draws input, target, prediction and residual with the kernel."""
    from ..images.plots import plot_field, plot_fit, plot_varying, save_figure
    from ..learning.field import VaryingKernel
    from ..learning.tiles import KernelField

    x, y, prediction, residual = images
    draw: Any = plot_field if isinstance(found, KernelField) else plot_fit
    if isinstance(found, VaryingKernel):
        draw = plot_varying
    save_figure(path, draw(x, y, found, prediction=prediction, residual=residual))


def _in_words(found: Found) -> list[str]:
    from ..learning.field import VaryingKernel
    from ..learning.tiles import KernelField

    if isinstance(found, VaryingKernel):
        lines = [
            str(found),
            f"error: {found.rms:.3g} RMS over {found.pixels} pixels, "
            f"{100 * found.reblur_error:.3g} % of the target's own variation",
        ]
        P, Q = found.extent
        for at in ((0, 0), (P // 2, Q // 2), (P - 1, Q - 1)):
            lines += [f"at row {at[0]}, column {at[1]}:", matrix(found.at(*at))]
        return lines
    if isinstance(found, KernelField):
        lines = [str(found)]
        for i, row in enumerate(found.kernels):
            for j, kernel in enumerate(row):
                lines += [f"tile {i}, {j}: RMS error {kernel.rms:.3g}", matrix(kernel.weight)]
        return lines
    lines = [str(found), f"solver: {found.solver} ({found.reason})", matrix(found.weight)]
    if found.bias is not None:
        lines.append(f"bias {float(found.bias):.6g}")
    if found.background is not None:
        numbers = ", ".join(f"{v:.4g}" for v in found.background[0].tolist())
        lines.append(f"background, Legendre coefficients by degree: {numbers}")
    if found.step_size is not None and found.max_step_size is not None:
        lines.append(f"step size {found.step_size:.4g}, diverges from {found.max_step_size:.4g}")
    return [*lines, str(found.quality)]


def _as_data(found: Found) -> dict[str, Any]:
    """A fit for --json."""
    from ..learning.field import FACTS, VaryingKernel
    from ..learning.tiles import KernelField

    if isinstance(found, VaryingKernel):
        return {
            "coefficients": found.coefficients.tolist(),
            "background": found.background.tolist(),
            **{name: getattr(found, name) for name in FACTS},
        }
    if isinstance(found, KernelField):
        return {
            "weight": found.weight.tolist(),
            "bias": None if found.bias is None else found.bias.tolist(),
            "rows": found.rows,
            "columns": found.columns,
            "loss": found.loss,
            "rms": found.rms,
            "tiles": [[_as_data(kernel) for kernel in row] for row in found.kernels],
            "notes": found.notes,
        }
    quality, errors = found.quality, found.quality.standard_error
    plain = errors[0, 0].tolist() if errors is not None else None
    names = ["pixels", "reblur_error", "mean", "robust", "largest", "unknowns", "rank", "noise"]
    names += ["excess", "converged"]
    return {
        "weight": found.weight.tolist(),
        "bias": None if found.bias is None else float(found.bias),
        "background": None if found.background is None else found.background[0].tolist(),
        "loss": found.loss,
        "rms": found.rms,
        "history": found.history,
        "steps": len(found.history),
        "solver": found.solver,
        "reason": found.reason,
        "step_size": found.step_size,
        "max_step_size": found.max_step_size,
        "undetermined": found.undetermined,
        "condition": found.condition,
        "standard_error": plain,
        **{name: getattr(quality, name) for name in names},
        "notes": found.notes,
    }
