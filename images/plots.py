"""Figures of fits, edges and feature maps, by matplotlib, without a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..ops import ArgumentError
from .extras import needs
from .output import StrPath, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..learning.field import VaryingKernel
    from ..learning.learned import LearnedKernel
    from ..learning.tiles import KernelField

#: Colours of signed numbers, zero in the middle; colour-blind safe.
SIGNED = "RdBu_r"
#: Pixels without a number, such as masked ones.
BLANK = "#c8d8b0"
#: Largest kernel whose elements are written into their cells.
MOST_CELLS = 7 * 7


def plot_learned(
    x: torch.Tensor,
    y: torch.Tensor,
    learned: LearnedKernel,
    *,
    true: torch.Tensor | None = None,
) -> Figure:
    """A summary of a fit: the images, the residual, the kernel and the loss curve.

    Args:
        x: the input, (H, W).
        y: the target, (H, W) or (P, Q).
        learned: what learn_kernel found for them.
        true: the kernel that it should have found, (R, S), if that is known.

    Returns:
        A matplotlib Figure, for `save_figure`.

    Raises:
        ArgumentError: images or kernels with channels.
    """
    plain = x.dim() == y.dim() == learned.weight.dim() == 2
    if not plain or not isinstance(learned.residual, torch.Tensor):
        raise ArgumentError(
            f"a picture is drawn of one plane, got x of shape {tuple(x.shape)} and a kernel of "
            f"shape {tuple(learned.weight.shape)}"
        )
    prediction = learned.predict(x.to(learned.weight))
    return plot_fit(x, y, learned, prediction=prediction, residual=learned.residual, true=true)


def plot_fit(
    x: torch.Tensor,
    y: torch.Tensor,
    learned: LearnedKernel,
    *,
    prediction: torch.Tensor,
    residual: torch.Tensor,
    true: torch.Tensor | None = None,
) -> Figure:
    """`plot_learned` for a prediction that is already computed, maybe of a part of the images.

    Args:
        x: (H, W).
        y: (H, W) or (P, Q).
        learned: of a plain kernel.
        prediction: (P, Q).
        residual: (P, Q); NaN is left blank.
        true: as for plot_learned.
    """
    columns = 3 if true is None else 4
    figure, top, bottom = _panels(columns, x)
    _images(top, x, y, prediction)
    _signed(bottom[0], residual, f"prediction - target, RMS {learned.rms:.2g}")
    shown = [("learned kernel", learned.weight)]
    if true is not None:
        shown.append(("true kernel", true))
    limit = max(float(weight.abs().max()) for _, weight in shown)
    for panel, (title, weight) in zip(bottom[1:], shown, strict=False):
        _kernel(panel, weight, f"{title}, {_size(weight)}", limit)
    curve = bottom[-1]
    if true is not None:
        _kernel(top[3], learned.weight - true, "learned - true kernel", None)
    _uncertainty(curve, learned)
    _masked_legend(figure, y, residual)
    return figure


def plot_kernel(learned: LearnedKernel, *, true: torch.Tensor | None = None) -> Figure:
    """The kernel of a fit, without its images.

    Args:
        learned: of a plain kernel (R, S).
        true: the kernel that it should be, (R, S), if that is known.

    Raises:
        ArgumentError: a kernel with channels.
    """
    if learned.weight.dim() != 2:
        raise ArgumentError(
            f"a picture is drawn of a plain kernel (R, S), got {tuple(learned.weight.shape)}"
        )
    shown = [("learned kernel", learned.weight)]
    if true is not None:
        shown += [("true kernel", true), ("learned - true kernel", learned.weight - true)]
    figure = new_figure(4.2 * (len(shown) + 1), 4.0)
    *panels, last = figure.subplots(1, len(shown) + 1)
    limit = max(float(weight.abs().max()) for _, weight in shown[:2])
    for panel, (title, weight) in zip(panels, shown, strict=True):
        of_both = None if title.startswith("learned -") else limit
        _kernel(panel, weight, f"{title}, {_size(weight)}", of_both)
    _uncertainty(last, learned)
    return figure


def plot_field(
    x: torch.Tensor,
    y: torch.Tensor,
    field: KernelField,
    *,
    prediction: torch.Tensor,
    residual: torch.Tensor,
) -> Figure:
    """A summary of a fit tile by tile: images, residual, every tile's kernel and error.

    Args:
        x: (H, W).
        y: (H, W) or (P, Q).
        field: of plain kernels.
        prediction: (P, Q).
        residual: (P, Q); NaN is left blank.
    """
    figure, top, bottom = _panels(3, x)
    _images(top, x, y, prediction)
    _signed(bottom[0], residual, f"prediction - target, RMS {field.rms:.2g}")
    weight = _array(field.weight)
    rows, columns, R, S = weight.shape
    gaps = np.full((rows * (R + 1) - 1, columns * (S + 1) - 1), np.nan)
    for i, j in np.ndindex(rows, columns):
        gaps[i * (R + 1) : i * (R + 1) + R, j * (S + 1) : j * (S + 1) + S] = weight[i, j]
    _signed(bottom[1], torch.from_numpy(gaps), f"kernels of {rows} x {columns} tiles")
    errors = np.array([[kernel.rms for kernel in row] for row in field.kernels])
    drawn = bottom[2].imshow(errors, cmap="magma", vmin=0, interpolation="none")
    _bar(bottom[2], drawn)
    _bare(bottom[2], "RMS error of each tile")
    _masked_legend(figure, y, residual)
    return figure


def plot_varying(
    x: torch.Tensor,
    y: torch.Tensor,
    field: VaryingKernel,
    *,
    prediction: torch.Tensor,
    residual: torch.Tensor,
) -> Figure:
    """A summary of a fit that varies: images, residual, kernels at nine places, photometric scale.

    Args:
        x: (H, W).
        y: (H, W) or (P, Q).
        field: the kernel.
        prediction: (P, Q).
        residual: (P, Q); NaN is left blank.
    """
    figure, top, bottom = _panels(3, x)
    _images(top, x, y, prediction)
    _signed(bottom[0], residual, f"prediction - target, RMS {field.rms:.2g}")
    (P, Q), (R, S) = field.extent, field.coefficients.shape[1:]
    kernels = np.full((3 * R + 2, 3 * S + 2), np.nan)
    for i, j in np.ndindex(3, 3):
        kernel = _array(field.at(i * (P - 1) / 2, j * (Q - 1) / 2))
        kernels[i * (R + 1) : i * (R + 1) + R, j * (S + 1) : j * (S + 1) + S] = kernel
    _signed(bottom[1], torch.from_numpy(kernels), "kernels at corners, edges, middle")
    drawn = bottom[2].imshow(_array(field.scale()), cmap="magma", interpolation="none")
    _bar(bottom[2], drawn)
    _bare(bottom[2], "sum of the kernel")
    _masked_legend(figure, y, residual)
    return figure


def plot_edges(image: torch.Tensor, response: torch.Tensor, title: str) -> Figure:
    """An image beside its edges, a gradient's magnitude or a signed response.

    Args:
        image: (H, W).
        response: (P, Q).
        title: what the response is.
    """
    H, W = image.shape
    figure = new_figure(11.0, 0.5 + 5.2 * min(1.6, max(0.3, H / W)))
    left, right = figure.subplots(1, 2)
    _grey(left, image, f"image, {_size(image)}", *_range(image))
    if float(response.min()) < 0:
        _signed(right, response, title)
    else:
        largest = float(response.max())
        limit = float(np.quantile(_array(response), 0.995)) or largest or 1.0
        drawn = right.imshow(
            _array(response), cmap="magma", vmin=0, vmax=limit, interpolation="none"
        )
        _bar(right, drawn, extend="max" if largest > limit else "neither")
        _bare(right, title)
    return figure


def plot_features(image: torch.Tensor, filters: torch.Tensor, maps: torch.Tensor) -> Figure:
    """The feature maps of an image under a bank of oriented filters, each with its filter.

    Args:
        image: (H, W).
        filters: (K, 1, R, S), filter k oriented at k * 180 / K degrees.
        maps: (K, P, Q).
    """
    count = len(maps)
    columns = min(3, count)
    rows = math.ceil(count / columns)
    H, W = image.shape
    figure = new_figure(4.2 * (columns + 1), 0.6 + rows * max(2.2, min(6.0, 3.9 * H / W)))
    grid = figure.add_gridspec(rows, columns + 1)
    panel = figure.add_subplot(grid[0, 0])
    _grey(panel, image, f"image, {_size(image)}", *_range(image))
    # One scale for all maps, so that weak ones look weak; a quantile, so that a few extreme pixels
    # do not make the rest pale.
    limit = float(np.quantile(np.abs(_array(maps)), 0.995)) or 1.0
    axes: list[Any] = []
    for k in range(count):
        panel = figure.add_subplot(grid[k // columns, 1 + k % columns])
        drawn = panel.imshow(_array(maps[k]), cmap=SIGNED, vmin=-limit, vmax=limit)
        _bare(panel, f"{180 * k / count:g}\N{DEGREE SIGN}")
        inset = panel.inset_axes((0.0, 0.78, 0.22, 0.22))
        strongest = float(filters[k].abs().max())
        inset.imshow(_array(filters[k, 0]), cmap=SIGNED, vmin=-strongest, vmax=strongest)
        inset.set(xticks=[], yticks=[], anchor="NW")
        axes.append(panel)
    figure.colorbar(drawn, ax=axes, fraction=0.03, extend="both", label="response")
    if rows > 1:
        panel = figure.add_subplot(grid[1, 0])
        energy = _array(maps).clip(0, None).max(axis=0)
        drawn = panel.imshow(energy, cmap="magma", vmin=0, vmax=limit)
        _bare(panel, "strongest response of all")
    return figure


def plot_receptive_field(layers: Sequence[tuple[str, tuple[int, int]]]) -> Figure:
    """The receptive field after every layer, as bars of rows and columns.

    Args:
        layers: name and (h, w) of each, in the order they run.
    """
    figure = new_figure(7.0, min(1.2 + 0.22 * len(layers), 40))
    panel = figure.add_subplot()
    places = range(len(layers))
    square = all(h == w for _, (h, w) in layers)
    for axis, name in enumerate(("rows" if not square else "rows and columns", "columns")):
        if axis and square:
            break
        thickness = 0.8 if square else 0.4
        panel.barh(
            [place + (0 if square else 0.4 * axis - 0.2) for place in places],
            [size[axis] for _, size in layers],
            height=thickness,
            color=("#3b6ea8", "#d98c3f")[axis],
            label=name,
        )
    for place, (_, (h, w)) in zip(places, layers, strict=True):
        panel.annotate(
            f" {h} x {w}", (max(h, w), place), va="center", ha="left", fontsize=7, color="#444444"
        )
    panel.set_yticks(list(places), [name for name, _ in layers], fontsize=7)
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.set_xlabel("input elements that one output element sees")
    panel.spines[["top", "right"]].set_visible(False)
    if not square:
        panel.legend(frameon=False, fontsize=8)
    return figure


def check_figure_name(path: StrPath) -> None:
    """Checks that matplotlib is installed and can write the format of this file name.

    Raises:
        ArgumentError: it does not know it.
        ModuleNotFoundError: matplotlib is not installed.
    """
    with needs("plots"):
        from matplotlib.backend_bases import FigureCanvasBase
    known = FigureCanvasBase.get_supported_filetypes().keys() - {"pgf"}  # needs LaTeX
    if Path(path).suffix.lower().removeprefix(".") not in known:
        raise ArgumentError(
            f"{Path(path).name} is no picture name: expected .{', .'.join(sorted(known))}"
        )


def save_figure(path: StrPath, figure: Figure, *, dpi: int = 110) -> None:
    """Writes a figure in the format of its name, completely or not at all.

    Raises:
        ArgumentError: matplotlib does not know the format.
        OSError: the file cannot be written.
    """
    check_figure_name(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    with needs("plots"):
        from matplotlib.figure import Figure
    # Not by pyplot, which opens windows and has global state.
    return Figure(figsize=(width, height), layout="constrained")


def _panels(columns: int, x: torch.Tensor) -> tuple[Figure, Any, Any]:
    """A figure and its two rows of panels: for images shaped as x, and for the rest."""
    shape = min(1.6, max(0.5, x.shape[0] / x.shape[1]))
    heights = [3.2 * shape + 0.4, 3.2 * max(0.9, shape) + 0.7]
    figure = new_figure(3.9 * columns, sum(heights))
    top, bottom = figure.subplots(2, columns, height_ratios=heights)
    return figure, top, bottom


def _images(panels: Any, x: torch.Tensor, y: torch.Tensor, prediction: torch.Tensor) -> None:
    """Draw input, target and prediction in one grey scale, or the input in its own."""
    scale, of_x, of_y = _range(x, y), _range(x), _range(y)
    if 3 * min(of_x[1] - of_x[0], of_y[1] - of_y[0]) < scale[1] - scale[0]:
        scale = of_y
        images = [("input, own scale", x, of_x)]
    else:
        images = [("input", x, scale)]
    images += [("target", y, scale), ("prediction", prediction, scale)]
    for panel, (title, image, (low, high)) in zip(panels, images, strict=False):
        _grey(panel, image, f"{title}, {_size(image)}", low, high)


def _grey(panel: Axes, image: torch.Tensor, title: str, low: float, high: float) -> None:
    panel.set_facecolor(BLANK)
    panel.imshow(_array(image), cmap="gray", vmin=low, vmax=high)
    _bare(panel, title)


def _signed(panel: Axes, image: torch.Tensor, title: str) -> None:
    array = _array(image)
    known = np.abs(array[np.isfinite(array)])
    largest = float(known.max(initial=0.0))
    limit = (float(np.quantile(known, 0.999)) if known.size else 0.0) or largest or 1.0
    extend = "both" if largest > limit else "neither"
    panel.set_facecolor(BLANK)
    drawn = panel.imshow(array, cmap=SIGNED, vmin=-limit, vmax=limit)
    _bar(panel, drawn, extend=extend)
    _bare(panel, title)


def _kernel(panel: Axes, weight: torch.Tensor, title: str, limit: float | None) -> None:
    """A kernel in signed colours around zero, up to +-limit (default: its largest element)."""
    limit = limit or float(weight.abs().max()) or 1.0
    unit, title = _unit(limit, title)
    array, limit = _array(weight) / unit, limit / unit
    drawn = panel.imshow(array, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="none")
    _cells(panel, array, title, lambda value: abs(value) > 0.6 * limit)
    _bar(panel, drawn)


def _uncertainty(panel: Axes, learned: LearnedKernel) -> None:
    """The loss curve, or the standard errors of an exact solution, which takes one step."""
    if len(learned.history) > 1:
        _loss_curve(panel, [*learned.history, learned.loss], learned.solver)
    else:
        _standard_errors(panel, learned)


def _standard_errors(panel: Axes, learned: LearnedKernel) -> None:
    """One standard error per element, or the reason why there is none."""
    errors = learned.quality.standard_error
    if errors is None or not bool(errors.isfinite().all()):
        _bare(panel, "standard errors")
        panel.text(0.5, 0.5, "not known: see the notes", ha="center", transform=panel.transAxes)
        panel.set_box_aspect(0.9)
        return
    limit = float(errors.max()) or 1.0
    unit, title = _unit(limit, "standard error of each element")
    array, limit = _array(errors.reshape(learned.weight.shape)) / unit, limit / unit
    drawn = panel.imshow(array, cmap="magma", vmin=0, vmax=limit, interpolation="none")
    _cells(panel, array, title, lambda value: value < 0.6 * limit)
    _bar(panel, drawn)


def _unit(limit: float, title: str) -> tuple[float, str]:
    """The power of ten by which numbers up to `limit` fit cells of four characters."""
    power = math.floor(math.log10(limit))
    if -1 <= power <= 1:
        return 1.0, title
    return 10.0**power, f"{title}, in units of 1e{power}"


def _cells(panel: Axes, array: NDArray[Any], title: str, dark: Callable[[float], bool]) -> None:
    """Numbers in the cells of a small matrix, white where the cell is dark; ticks and title."""
    if array.size <= MOST_CELLS:
        size = max(5.0, min(11.0, 48 / max(array.shape)))
        for (r, s), value in np.ndenumerate(array):
            text = f"{round(float(value), 2) + 0.0:.2f}"  # + 0.0: no -0.00
            colour = "white" if dark(float(value)) else "black"
            panel.text(s, r, text, ha="center", va="center", fontsize=size, color=colour)
    panel.set_title(title, fontsize=10)
    every = math.ceil(max(array.shape) / 12)  # more labels would touch each other
    panel.set_xticks(range(0, array.shape[1], every))
    panel.set_yticks(range(0, array.shape[0], every))
    panel.set_xlabel("column s", fontsize=9)
    panel.set_ylabel("row r", fontsize=9)


def _masked_legend(figure: Figure, *images: torch.Tensor) -> None:
    """Add a legend for masked pixels, if there are any."""
    if all(bool(image.isfinite().all()) for image in images):
        return
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(facecolor=BLANK, edgecolor="0.5", label="masked")],
        loc="outside lower left",
        fontsize=8,
        frameon=False,
    )


def _loss_curve(panel: Axes, losses: list[float], solver: str) -> None:
    shown = np.array(losses)
    shown[shown <= 0] = np.nan  # an exact fit has no place on a logarithmic axis
    panel.plot(shown, color="#0072b2", marker="." if len(losses) <= 60 else None)
    panel.set_yscale("log")
    name = {"gd": "gradient descent", "cg": "conjugate gradients"}.get(solver, solver)
    panel.set_title(f"loss, {name}", fontsize=10)
    panel.set_xlabel("step", fontsize=9)
    panel.set_ylabel("sum of squared errors", fontsize=9)
    panel.grid(alpha=0.3)
    panel.set_box_aspect(0.9)


def _bar(panel: Axes, drawn: Any, extend: str = "neither") -> None:
    """A scale that is as high as its panel."""
    scale = panel.inset_axes((1.03, 0, 0.05, 1))
    bar = panel.figure.colorbar(drawn, cax=scale, extend=extend)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.get_offset_text().set_fontsize(8)


def _bare(panel: Axes, title: str) -> None:
    panel.set(xticks=[], yticks=[])
    panel.set_title(title, fontsize=10)


def _range(*images: torch.Tensor) -> tuple[float, float]:
    """One grey scale for several images: [0, 1] if that holds them, else without a few extremes."""
    values = np.concatenate([_array(image).ravel() for image in images])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    if values.min() >= 0 and 0.1 < values.max() <= 1:
        return 0.0, 1.0
    low, high = (float(v) for v in np.quantile(values, (0.005, 0.99)))
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def _size(image: torch.Tensor) -> str:
    return " x ".join(map(str, image.shape))


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.detach().float().numpy(force=True)
