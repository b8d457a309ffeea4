"""How fast a kernel is learned: learn_kernel against the loop that people write in PyTorch.

Two questions, each by size of the image: the time of ten steps of gradient descent, set-up
included (ours computes its step size, the loop is given one), and the time to a kernel that is
right to a thousandth, from nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..autograd.functional import corr2d
from ..learning.learn import learn_kernel

if TYPE_CHECKING:
    from .measure import Session
    from .rows import Row

#: Image and window sizes on a GPU, and on a CPU.
GPU_SIZES = ((512, 3), (2048, 3), (2048, 7), (8192, 3), (64, 3))
CPU_SIZES = ((64, 3), (256, 3), (512, 3))
STEPS = 10
#: A loop that has not found the kernel by then is not waited for.
MOST_STEPS = 400
TOLERANCE = 1e-3
#: A loop of MOST_STEPS that takes more seconds than this is not run.
LONGEST = 4.0


def names(kind: str) -> list[str]:
    """The workloads of a machine, as `run` takes them."""
    sizes = GPU_SIZES if kind == "gpu" else CPU_SIZES
    return [f"learn-{size}x{size}-{window}x{window}" for size, window in sizes]


def _sizes(name: str) -> tuple[int, int]:
    _, image, window = name.split("-")
    return int(image.partition("x")[0]), int(window.partition("x")[0])


def run(name: str, session: Session) -> list[Row]:
    """The rows of one size: ten steps and, as another workload, the time to the kernel."""
    size, window = _sizes(name)
    random = torch.Generator(session.timer.device).manual_seed(0)
    x = torch.rand(size, size, generator=random, device=session.timer.device)
    true = torch.randn(window, window, generator=random, device=session.timer.device)
    y = corr2d(x, true)
    limit = learn_kernel(x, y, window, solver="gd", steps=0, progress=False).max_step_size
    assert limit is not None  # gradient descent has one
    safe = limit / 2

    def ours(solver: str, steps: int) -> torch.Tensor:
        return learn_kernel(x, y, window, solver=solver, steps=steps, progress=False).weight

    unknowns = window * window
    fixed: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
        "tricorr-gd": (STEPS, lambda: ours("gd", STEPS)),
        "tricorr-cg": (STEPS, lambda: ours("cg", STEPS)),
        "pytorch-loop": (STEPS, lambda: pytorch_loop(x, y, window, STEPS, safe)),
    }
    rows = _measured(name, session, fixed, None)
    until: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
        "tricorr-cg": (unknowns, lambda: ours("cg", unknowns))
    }
    step_seconds = {row.provider: (row.ms or 0.0) / 1e3 / STEPS for row in rows}
    for provider, loop in (
        ("tricorr-gd", lambda steps: ours("gd", steps)),
        ("pytorch-loop", lambda steps: pytorch_loop(x, y, window, steps, safe)),
    ):
        needed = MOST_STEPS * step_seconds[provider]
        if needed > LONGEST:
            note = f"not run: {MOST_STEPS} steps would take {needed:.0f} s"
            values = {"status": "failed", "note": note, "steps": MOST_STEPS}
            rows.append(_row(f"{name}-to-kernel", session, provider, values))
            continue
        steps = _steps_needed(loop, true)
        until[provider] = (steps, lambda loop=loop, steps=steps: loop(steps))  # type: ignore[misc]
    return rows + _measured(f"{name}-to-kernel", session, until, true)


def pytorch_loop(
    x: torch.Tensor, y: torch.Tensor, window: int, steps: int, step_size: float
) -> torch.Tensor:
    """The textbook's loop in eager PyTorch: a layer, a squared error, a step along the gradient."""
    images, target = x[None, None], y[None, None]
    with torch.enable_grad():
        weight = torch.zeros(1, 1, window, window, device=x.device, requires_grad=True)
        for _ in range(steps):
            loss = ((F.conv2d(images, weight) - target) ** 2).sum()
            loss.backward()
            assert weight.grad is not None
            with torch.no_grad():
                weight -= step_size * weight.grad
            weight.grad = None
        return weight.detach()[0, 0]


def _steps_needed(loop: Callable[[int], torch.Tensor], true: torch.Tensor) -> int:
    """The fewest steps, of a doubling number, that lead to the kernel; MOST_STEPS if none do."""
    steps = STEPS
    while steps < MOST_STEPS and _distance(loop(steps), true) > TOLERANCE:
        steps = min(MOST_STEPS, 2 * steps)
    return steps


def _distance(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).abs().max() / true.abs().max())


def _measured(
    name: str,
    session: Session,
    calls: dict[str, tuple[int, Callable[[], torch.Tensor]]],
    true: torch.Tensor | None,
) -> list[Row]:
    """Rows of loops timed in turn. With `true`, one that does not find it is wrong."""
    from .measure import interleave, quantile, ratio_fields
    from .providers import configure

    configure("float32", session.timer.device)
    rows: list[Row] = []
    samplers, seconds, errors = {}, {}, {}
    for provider, (steps, call) in calls.items():
        session.announce(provider, "NCHW")
        if true is not None:
            errors[provider] = _distance(call(), true)
            if not errors[provider] <= TOLERANCE:
                note = f"off by {errors[provider]:.2g} after {steps} steps"
                values = {"status": "wrong", "note": note, "steps": steps}
                rows.append(_row(name, session, provider, values))
                continue
        seconds[provider] = session.timer.seconds(call)
        samplers[provider] = session.timer.sampler(call, "warm", seconds[provider], 0.0)
    samples = interleave(samplers, seconds, 3 * session.budget)
    for provider, taken in samples.items():
        # The question is how ours compares with the loop: tricorr-gd stands for ours.
        ours = samples.get("tricorr-gd") if provider == "pytorch-loop" else None
        median = quantile(taken, 0.5)
        values = {
            "status": "ok",
            "note": f"{calls[provider][0] / median:.4g} steps per second",
            "steps": calls[provider][0],
            "ms": median * 1e3,
            "ms_low": quantile(taken, 0.2) * 1e3,
            "ms_high": quantile(taken, 0.8) * 1e3,
            "samples": len(taken),
            "error": errors.get(provider),
            "error_bound": TOLERANCE if true is not None else None,
            **ratio_fields(taken, ours),
        }
        rows.append(_row(name, session, provider, values))
    return rows


def _row(name: str, session: Session, provider: str, values: dict[str, Any]) -> Row:
    return session.row_of(name, "learn", "learn", provider, **values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, nargs="*", help="sides of the image; all if none given")


def main(options: argparse.Namespace) -> int:
    from .bench import local_session

    session = local_session()
    kind = session.machine.kind
    sizes = {_sizes(name)[0] for name in names(kind)}
    if unknown := set(options.size or ()) - sizes:
        known = ", ".join(map(str, sorted(sizes)))
        raise ValueError(f"--size must be of {known} on a {kind}, got {min(unknown)}")
    print(f"learning a kernel, {kind}: {session.machine.device}")
    print(f"{'workload':32} {'provider':14} {'steps':>5} {'ms':>10} {'steps/s':>10}  times ours")
    for name in names(kind):
        if options.size and _sizes(name)[0] not in options.size:
            continue
        for row in run(name, session):
            if row.ms is None:
                print(f"{row.workload:32} {row.provider:14} {row.steps:5} {row.status}: {row.note}")
                continue
            assert row.steps is not None
            ratio = "" if row.ratio_to is None else f"{row.ratio_to:.2f}"
            print(
                f"{row.workload:32} {row.provider:14} {row.steps:5} {row.ms:10.3f} "
                f"{row.steps / row.ms * 1e3:10.1f}  {ratio}"
            )
            sys.stdout.flush()
    return 0
