"""`tricorr demo`: the textbook's loop, then a kernel learned back from a photograph."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import Outcome, backend_of, device_named, matrix

# Everything else is imported where it is used: --help has to be quick.
if TYPE_CHECKING:
    import torch

#: The kernel of a shaken camera, normalised to sum 1.
MOTION_BLUR = [
    [0.00, 0.00, 0.00, 0.05, 0.10],
    [0.00, 0.00, 0.05, 0.20, 0.05],
    [0.00, 0.05, 0.15, 0.00, 0.00],
    [0.05, 0.15, 0.00, 0.00, 0.00],
    [0.05, 0.10, 0.00, 0.00, 0.00],
]


def demo(args: argparse.Namespace) -> Outcome:
    """`tricorr demo`."""
    import time
    from importlib.resources import files

    import torch

    from ..autograd.functional import corr2d
    from ..images.extras import needs
    from ..images.output import check_output
    from ..images.plots import check_figure_name, plot_learned, save_figure
    from ..images.read import read_image
    from ..learning.learn import learn_kernel
    from ..ops import backend

    directory = Path(args.output)
    directory.mkdir(parents=True, exist_ok=True)
    picture = directory / "tricorr-demo.png"
    check_output(picture)
    check_figure_name(picture)
    device = device_named(args.device)
    with needs("images"):
        photograph = files("skimage") / "data" / "camera.png"  # part of the wheel: no download
    x = read_image(str(photograph), grey=True).pixels.to(device)
    if device.type == "cpu" and backend.interprets():
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
    size = "x".join(map(str, x.shape))
    lines = [
        f"ran on: {backend_of(device)}",
        "",
        "The textbook: the kernel [1, -1] from a 6x8 image",
    ]
    lines += [f"  epoch {step}, loss {loss:.3f}" for step, loss in book_losses]
    lines += [
        f"  learned {[round(value, 3) for value in book_weight]}",
        "",
        f"A photograph, {size}, blurred by a shaking hand: the kernel from the two images",
        f"  loss of no kernel {first.history[0]:.4g}, after {len(first.history)} steps of gradient "
        f"descent {first.loss:.4g}, after {len(found.history)} of conjugate gradients "
        f"{found.loss:.4g}",
        "true kernel",
        matrix(true),
        "learned kernel",
        matrix(found.weight),
        f"largest error of an element: {error:.2g}",
        f"picture: {picture}",
        f"{seconds:.1f} s",
    ]
    data = {
        "backend": backend_of(device),
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
    """The textbook's loop: (epoch, loss) of every second epoch, and the learned kernel."""
    import torch

    from ..autograd.functional import corr2d
    from ..autograd.modules import LazyConv2D

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
