"""A kernel from images that do not fit into memory: one pass over overlapping blocks of rows.

A block of output rows needs the rows of x under it and R - 1 more (the halo), which the next block
reads again. The sums of all blocks are those of the whole image, so the size of the blocks changes
the kernel only by rounding in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..images.rows import ImageRows, ImageSource, open_rows, shown_source
from ..ops import ArgumentError, as_integer, geometry_of
from ..ops.arguments import Pair
from .accumulator import KernelAccumulator
from .options import Settings
from .steps import Reporter

#: Pixels of a block by default: 16 MiB of float32.
BLOCK_PIXELS = 2**22


def accumulate(
    sums: KernelAccumulator,
    x: ImageSource,
    y: ImageSource,
    *,
    mask: ImageSource = None,
    input_mask: ImageSource = None,
    weights: ImageSource = None,
    rows: int | None = None,
    grey: bool = False,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> KernelAccumulator:
    """Adds a pair of image files to an accumulator, a block of rows at a time.

    Args:
        sums: the accumulator, with window, background, padding and so on.
        x, y: .npy, TIFF or FITS files, or arrays (H, W) or (C, H, W) that can be sliced like
            NumPy's; y of a size that learn_kernel takes. White is 1.0 in integers of 8 and 16 bits,
            unless only one of the two holds such integers: then both count as stored.
        mask, input_mask, weights: the same, of the size of y, x and y; as for learn_kernel.
        rows: output rows of a block; by default about 4 million pixels.
        grey: whether to convert colours to luma.
        device: that computes the sums.
        progress: shows a progress bar with the time left; None shows one on a terminal after a
            second.

    Returns:
        `sums`.

    Raises:
        ArgumentError, ArgumentTypeError, OSError, ModuleNotFoundError: as for KernelAccumulator's
            update and open_rows, or sizes that do not fit together.

    Example:
        >>> import numpy as np, tempfile, os
        >>> from tricorr import KernelAccumulator
        >>> directory = tempfile.mkdtemp()
        >>> x, y = (os.path.join(directory, name) for name in ("x.npy", "y.npy"))
        >>> image = np.random.default_rng(0).random((40, 30))
        >>> np.save(x, image); np.save(y, image[:, :-1] - image[:, 1:])
        >>> sums = accumulate(KernelAccumulator((1, 2)), x, y, rows=7)
        >>> sums.solve().weight.round(decimals=6) + 0.0
        tensor([[ 1., -1.]], dtype=torch.float64)
    """
    names = ("x", "y", "mask", "input_mask", "weights")
    given = zip(names, (x, y, mask, input_mask, weights), strict=True)
    # Masks in colours are read as grey.
    images = {
        name: open_rows(source, grey=grey or name not in ("x", "y"))
        for name, source in given
        if source is not None
    }
    if len({images[name].white != 1 for name in ("x", "y")}) > 1:
        # Only one file has a white level: use the stored numbers of both.
        images |= {name: images[name].as_stored() for name in ("x", "y")}
    P, Q = output_extent(sums.settings, images["x"])
    top_row: torch.Tensor | None = None
    with Reporter(0, progress).over(None, total=P * Q, unit="pixel") as bar:
        for block in row_blocks(sums.settings, images, rows):
            tensors = {n: block[n].to(device) for n in images}
            dtype = torch.promote_types(tensors["x"].dtype, tensors["y"].dtype)
            tensors |= {n: tensors[n].to(dtype) for n in ("x", "y")}
            sums.update(**{**block, **tensors})
            bar.update(block["y"].shape[-2] * block["y"].shape[-1])
            first = block["x"][..., :1, :]
            top_row = first if top_row is None else top_row
            if sums.sums is not None and not torch.equal(first, top_row):
                # If blocks share no rows, changes of x between blocks show only here.
                sums.sums.varies[0] += 1
    return sums


def row_blocks(
    settings: Settings, images: dict[str, ImageRows], rows: int | None = None
) -> Iterator[dict[str, Any]]:
    """Blocks of whole output rows, as the arguments of KernelAccumulator.update.

    Processes can share the blocks, and merge or reduce their sums.

    Args:
        settings: of the accumulator.
        images: "x" and "y" and, optionally, "mask", "input_mask" and "weights".
        rows: output rows of a block; by default about 4 million pixels.
    """
    P, Q = output_extent(settings, images["x"])
    row, column = fitted_origin(settings, images["x"], images["y"], (P, Q))
    for name, like in (("mask", "y"), ("input_mask", "x"), ("weights", "y")):
        if name in images and images[name].extent != images[like].extent:
            expected, got = _size(images[like]), _size(images[name])
            raise ArgumentError(f"{name} must have the size of {like}, {expected}, got {got}")
    rows = max(1, BLOCK_PIXELS // Q) if rows is None else as_integer("rows", rows)
    if rows < 1:
        raise ArgumentError(f"rows must be positive, got {rows}")
    (pad_top, _), sides = settings.padding or ((0, 0), (0, 0))
    down = settings.stride[0]
    for top in range(0, P, rows):
        bottom = min(P, top + rows)
        block: dict[str, Any] = {"padding": ((0, 0), sides), "origin": (top, 0), "size": (P, Q)}
        for name, image in images.items():
            if name in ("x", "input_mask"):
                last = (bottom - 1) * down + settings.window[0]
                span = (top * down - pad_top, last - pad_top)
                outside = 0.0 if name == "x" else 1.0
                block[name] = _padded_rows(image, *span, settings.padding_mode, outside)
            else:
                block[name] = image.read(row + top, row + bottom)[..., column : column + Q]
        yield block


def output_extent(settings: Settings, x: ImageRows) -> Pair:
    """(P, Q), the size of the output of x."""
    border = settings.padding or ((0, 0), (0, 0))
    shapes = (1, 1, *x.extent), (1, 1, *settings.window)
    g = geometry_of(*shapes, stride=settings.stride, padding=border)
    return g.P, g.Q


def fitted_origin(settings: Settings, x: ImageRows, y: ImageRows, extent: Pair) -> Pair:
    """(row, column) in y of the first pixel that a full window predicts; y may have x's size."""
    if y.extent == extent:
        return 0, 0
    as_large = settings.padding is None and settings.stride == (1, 1)
    if as_large and y.extent == x.extent:
        return (settings.window[0] - 1) // 2, (settings.window[1] - 1) // 2
    expected = f"{extent[0]} x {extent[1]}"
    if as_large:
        expected += f" (no padding) or {_size(x)} (as x)"
    raise ArgumentError(
        f"{shown_source(y.source)} must have {expected} pixels for a window of "
        f"{settings.window[0]} x {settings.window[1]}, got {_size(y)}"
    )


def _padded_rows(
    image: ImageRows, first: int, last: int, mode: str, outside: float
) -> torch.Tensor:
    """Rows first .. last - 1 of the image, padded above and below by a padding mode."""
    height = image.extent[0]
    begin, end = min(max(first, 0), height), max(min(last, height), 0)
    parts = [_continued(image, i, mode, outside) for i in range(first, min(last, 0))]
    parts += [image.read(begin, end)] if begin < end else []
    parts += [_continued(image, i, mode, outside) for i in range(max(first, height), last)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _continued(image: ImageRows, i: int, mode: str, outside: float) -> torch.Tensor:
    """Row i of the padded image, outside the image itself."""
    height = image.extent[0]
    if mode == "zeros":
        return torch.full_like(image.read(0, 1), outside)
    reach = -i if i < 0 else i - height + 1
    limit = {"reflect": height - 1, "circular": height}.get(mode, reach)
    if reach > limit:
        raise ArgumentError(
            f"padding_mode={mode!r} can pad a height of {height} by at most {limit}, got {reach}"
        )
    source = {
        "reflect": abs(i) if i < 0 else 2 * (height - 1) - i,
        "replicate": min(max(i, 0), height - 1),
        "circular": i % height,
    }[mode]
    return image.read(source, source + 1)


def _size(image: ImageRows) -> str:
    return f"{image.extent[0]} x {image.extent[1]}"
