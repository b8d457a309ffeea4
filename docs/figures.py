"""Draws the pictures of README and docs/: `make pictures`.

Pictures of the textbook page are drawn here; pictures of the guides are written by the guides' own
examples and commands. All are compressed to MOST_BYTES.
"""

from __future__ import annotations

import doctest
import io
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from tricorr import corr2d, receptive_field
from tricorr.cli.main import main as command
from tricorr.images.plots import new_figure, save_figure
from tricorr.learning.accumulator import KernelAccumulator

DOCS = Path(__file__).resolve().parent
#: Size limit of a picture, so that pages load fast on a telephone.
MOST_BYTES = 80_000
#: Pages whose commands write pictures.
GUIDES = (
    "large_images.md",
    "motion_blur.md",
    "star_fields.md",
    "unknown_filter.md",
    "varying_kernel.md",
)
#: Pictures made by one command on a photograph.
BY_COMMAND = {
    "edges.png": "edges photo.png -o edges.npy --plot edges.png",
    "features.png": "features photo.png -o features.png",
    "tricorr-demo.png": "demo",
}

#: Step sizes drawn: half of the largest that converges, the textbook's, and one that diverges.
STEP_SIZES = (1 / 60, 3e-2, 3.45e-2)
DESCENT_STEPS = 10
#: Steps of a diverging path drawn on the plane; later ones leave the picture.
DIVERGING_STEPS = 4


def correlation_figure() -> Figure:
    """The window at each of its places over a 3 x 3 image, and the sum of products there."""
    X, K = torch.arange(9.0).reshape(3, 3), torch.arange(4.0).reshape(2, 2)
    Y = corr2d(X, K)
    figure = new_figure(13.0, 3.9)
    figure.suptitle("cross-correlation: the sum of the products under the window", fontsize=12)
    for place, panel in enumerate(figure.subplots(1, 4)):
        p, q = divmod(place, 2)
        _numbers(panel, X.numpy(), {(p + r, q + s) for r in range(2) for s in range(2)})
        terms = " + ".join(
            f"{X[p + r, q + s]:.0f}\N{MULTIPLICATION SIGN}{K[r, s]:.0f}"
            for r in range(2)
            for s in range(2)
        )
        panel.set_title(f"output ({p}, {q})", fontsize=11)
        panel.set_xlabel(f"{terms} = {Y[p, q]:.0f}", fontsize=11)
        for r in range(2):
            for s in range(2):
                text = f"\N{MULTIPLICATION SIGN}{K[r, s]:.0f}"
                panel.text(q + s + 0.28, p + r + 0.32, text, fontsize=10, color="#8b2500")
    return figure


def descent_figure() -> Figure:
    """Gradient descent on the textbook's loss: its paths over the two weights, and its losses."""
    X = torch.ones(6, 8, dtype=torch.float64)
    X[:, 2:6] = 0
    true = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    sums = KernelAccumulator((1, 2)).update(X, corr2d(X, true))
    across, down = np.linspace(-2.2, 2.8, 51), np.linspace(-2.8, 2.2, 51)
    losses = [[sums.loss(torch.tensor([[u, v]])) for u in across] for v in down]
    figure = new_figure(11.5, 4.9)
    plane, curves = figure.subplots(1, 2)
    levels = np.geomspace(0.1, np.max(losses), 12)
    plane.contour(across, down, losses, levels=levels, colors="0.75", linewidths=0.8)
    for step_size, colour in zip(STEP_SIZES, ("#0072b2", "#009e73", "#d55e00"), strict=True):
        path, history = _descent(sums, step_size)
        label = f"step {step_size:.3g}"
        drawn = path[: DIVERGING_STEPS + 1] if history[-1] > history[0] else path
        plane.plot(drawn[:, 0], drawn[:, 1], ".-", color=colour, linewidth=1)
        curves.plot(history, ".-", color=colour, label=label)
    plane.plot(*true[0].tolist(), "k+", markersize=12, label="the kernel, (1, -1)")
    plane.set(xlim=(-2.2, 2.8), ylim=(-2.8, 2.2), aspect="equal", xlabel="K[0]", ylabel="K[1]")
    plane.set_title("loss over the two weights, and the way down from (1.5, 1.5)", fontsize=10)
    plane.legend(fontsize=8, loc="upper left")
    curves.set(yscale="log", xlabel="step", ylabel="sum of squared errors")
    curves.set_title("1/30 is the largest step that converges", fontsize=10)
    curves.legend(fontsize=8, loc="lower left")
    curves.grid(alpha=0.3)
    return figure


def _descent(sums: Any, step_size: float) -> tuple[NDArray[np.float64], list[float]]:
    """Path and losses of plain gradient descent, which `solve` refuses where it diverges."""
    equations = sums.equations()
    gram, moments = equations.gram[0], equations.moments[0]
    point = torch.full((2,), 1.5, dtype=torch.float64)
    path, history = [point], [sums.loss(point[None])]
    for _ in range(DESCENT_STEPS):
        point = point - step_size * 2 * (gram @ point - moments)
        path.append(point)
        history.append(sums.loss(point[None]))
    return np.stack([p.numpy() for p in path]), history


def receptive_field_figure() -> Figure:
    """The input elements that one output of two stacked 2 x 2 layers depends on."""
    figure = new_figure(9.5, 4.3)
    figure.suptitle("one output element of two 2 x 2 layers sees 3 x 3 input elements", fontsize=12)
    stack: list[int] = [2, 2]
    titles = ("input", "after the first layer", "after the second layer")
    for depth, (panel, title) in enumerate(zip(figure.subplots(1, 3), titles, strict=True)):
        side = 5 - depth
        field = receptive_field(stack[depth:]) if depth < len(stack) else receptive_field([])
        rows, columns = field.size
        _numbers(panel, np.full((side, side), np.nan), set(np.ndindex(rows, columns)))
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(f"{rows} x {columns} of {side} x {side}", fontsize=10)
    return figure


def _numbers(panel: Any, array: NDArray[Any], marked: set[Any]) -> None:
    """A grid of numbers with some of its cells in colour."""
    height, width = array.shape
    shades = np.zeros(array.shape)
    for cell in marked:
        shades[cell] = 1
    panel.imshow(shades, cmap="Blues", vmin=0, vmax=2.5)
    for (row, column), value in np.ndenumerate(array):
        if np.isfinite(value):
            panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=14)
    panel.set_xticks(np.arange(width + 1) - 0.5, labels=[])
    panel.set_yticks(np.arange(height + 1) - 0.5, labels=[])
    panel.grid(color="0.5", linewidth=0.8)
    panel.tick_params(length=0)


FIGURES: dict[str, Callable[[], Figure]] = {
    "correlation": correlation_figure,
    "descent": descent_figure,
    "receptive-field": receptive_field_figure,
}


def main() -> None:
    """Draw every picture and put it beside the pages."""
    with _empty_directory(), redirect_stdout(io.StringIO()):
        for name, draw in FIGURES.items():
            save_figure(f"{name}.png", draw())
        for page in GUIDES:
            _walk(DOCS / page)
        Image.fromarray(data.camera()).save("photo.png")
        for arguments in BY_COMMAND.values():
            assert command(shlex.split(arguments)) == 0
        of_guides = (page.replace(".md", ".png") for page in GUIDES)
        for name in (*(f"{name}.png" for name in FIGURES), *BY_COMMAND, *of_guides):
            _shrink(Path(name), DOCS / Path(name).with_suffix(".webp"))
    for picture in sorted(DOCS.glob("*.webp")):
        size = picture.stat().st_size
        print(f"{picture.name}: {size / 1000:.0f} kB")
        assert size <= MOST_BYTES, picture


def _walk(page: Path) -> None:
    """Runs the examples of a page, then its commands."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    doctest.DocTestRunner(verbose=False).run(test)
    for line in re.findall(r"^tricorr (.*)$", text, re.MULTILINE):
        assert command(shlex.split(line)) == 0


def _shrink(source: Path, target: Path) -> None:
    """A WebP of at most MOST_BYTES, at the best quality that fits."""
    with Image.open(source) as picture:
        for quality in range(90, 20, -5):
            picture.convert("RGB").save(target, quality=quality, method=6)
            if target.stat().st_size <= MOST_BYTES:
                return


@contextmanager
def _empty_directory() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


if __name__ == "__main__":
    main()
