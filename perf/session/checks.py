"""Correctness before timing: tiny calls for each kernel, dtype, format and branch of its code.

Each runs twice on memory that is filled with NaN; both results must be equal in every bit and as
near to float64 as rounding explains. The whole result is compared, with `ops/reference.py`.

    python -m tricorr.perf.session.checks [PATTERN]     on the GPU of this process, in turn
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...ops import Geometry, reference
from ...ops.lag_sums import lag_sums
from ...ops.launch.layout import device_of
from ...ops.plan import choose
from ...ops.plan.backward import takes_both
from ..model.planned import NO_PLAN, PlannedCall, alternatives, lagged, launches_of, problem_of
from ..providers import Operands, Result, make_operands
from ..timing.correctness import ACTIVATIONS, Truth, first_of
from ..timing.machine import Machine
from ..workloads import ALL_OPS, OPS, Workload
from .rig import Entrant, GpuRig

if TYPE_CHECKING:
    from ...ops.plan.device import Device


def _tiny(name: str, *shape: int, epilogue: str = "none", **steps: Any) -> Workload:
    """From (N, C, H, W, K, R, S), with the padding that keeps the size unless another is given."""
    N, C, H, W, K, R, S = shape
    same = (((R - 1) // 2, R // 2), ((S - 1) // 2, S // 2))
    geometry = Geometry(N, C, H, W, K, R, S, **{"padding": same, **steps})
    gradients = ALL_OPS[1:] if takes_both(geometry) else OPS[1:]
    return Workload(
        name,
        "check",
        geometry,
        DTYPES,
        ("fprop", *(() if epilogue != "none" else gradients)),
        bias=True,
        activation=epilogue,
        residual=epilogue != "none",
    )


#: Dtypes of tiny calls, as in rows.
DTYPES = ("bfloat16", "float16", "float32", "tf32", "uint8", "tf32x3", "float64")
#: Each takes a path through the kernels that no other one takes.
TINY: tuple[Workload, ...] = (
    _tiny("dense", 2, 32, 24, 20, 48, 3, 3),
    _tiny("phases", 2, 32, 13, 14, 48, 3, 3, given_stride=(2, 2)),
    _tiny("ragged", 2, 19, 11, 13, 21, 3, 3),
    _tiny("point", 2, 32, 8, 8, 48, 1, 1),
    _tiny("flattened", 2, 3, 20, 22, 32, 5, 5, given_stride=(2, 2)),
    _tiny("epilogue", 2, 32, 12, 16, 48, 3, 3, epilogue="gelu"),
    _tiny("frame", 2, 16, 10, 12, 16, 3, 3, padding_mode="reflect"),
    _tiny("image", 1, 1, 40, 300, 1, 3, 3),
    _tiny("image_frame", 1, 1, 40, 70, 1, 5, 5, padding_mode="replicate"),
    _tiny("image_epilogue", 1, 1, 40, 70, 2, 3, 3, epilogue="silu"),
    _tiny("depthwise", 2, 24, 18, 20, 24, 3, 3, groups=24),
    _tiny("depthwise7", 2, 24, 18, 20, 24, 7, 7, groups=24, padding_mode="circular"),
    _tiny("depthwise_phases", 2, 24, 18, 20, 24, 3, 3, groups=24, given_stride=(2, 2)),
    _tiny("window", 1, 1, 48, 80, 1, 13, 13),
    _tiny("windows", 2, 4, 14, 14, 4, 13, 13, groups=4),
    _tiny("windows_apart", 2, 4, 29, 28, 4, 13, 13, groups=4, given_stride=(2, 2)),
    _tiny("multiplier", 2, 8, 9, 11, 12, 3, 3, groups=4),
    _tiny("patches", 2, 3, 17, 16, 32, 4, 4, given_stride=(4, 4), padding=((0, 0), (0, 0))),
    _tiny("per_sample", 2, 3, 20, 24, 3, 5, 5, groups=3, per_sample=True),
)


def checks(device: Device) -> Iterator[PlannedCall]:
    """The calls for a device: each kernel in each dtype and format, and each way through it."""
    seen: set[Any] = set()
    for workload, op in itertools.product(TINY, ALL_OPS):
        for i, dtype in enumerate(workload.dtypes if op in workload.ops else ()):
            if dtype == "uint8" and (op in ("dgrad", "backward") or workload.geometry.group_C > 3):
                continue
            formats = workload.formats[:: (-1) ** i]  # each dtype begins with another one
            for memory_format in formats:
                operands = make_operands(workload, op, dtype, memory_format, "meta")
                frame = _frame_kernel(operands, device)
                for plan in alternatives(problem_of(operands, device)):
                    if dtype.startswith("tf32") and plan.precision == "ieee":
                        continue  # it multiplies float32 as it is
                    new = {
                        (plan.kernel, way)
                        for way in (
                            dtype,
                            memory_format,
                            ("one tap", plan.one_tap),
                            ("split", plan.splits > 1),
                            ("interior", plan.interior),
                            ("rows", plan.as_rows),
                            ("turned", plan.turned and workload.geometry.stride != (1, 1)),
                            ("copied", getattr(plan.tile, "copied", False)),
                            ("on", plan.exchange),
                            ("in place", getattr(plan.tile, "in_place", False)),
                            ("with", frame),
                            workload.name in ("phases", "epilogue", "image_epilogue")
                            and workload.name,
                        )
                    }
                    if not new <= seen:
                        seen |= new
                        yield PlannedCall(workload, op, dtype, memory_format, plan)
    images = [w for w in TINY if w.name in ("image", "image_frame")]
    for dtype in ("float32", "uint8", "bfloat16"):
        yield PlannedCall(images[0], "lag_sums", dtype, "NCHW")
        for image in images:
            yield PlannedCall(image, "fprop_separable", dtype, "NCHW")


def _frame_kernel(operands: Operands, device: Device) -> str:
    """The kernel that fills the frame of an input gradient; "" where there is no frame."""
    if operands.op != "dgrad" or not operands.geometry.frame_pixels:
        return ""
    return choose.plan(problem_of(operands, device, "dgrad_frame")).kernel


def whole_truth(operands: Operands) -> Truth:
    """Every element of a tiny result, in float64."""
    g, o = operands.geometry, operands
    if o.op == "backward":
        dx, dw = (whole_truth(replace(o, op=op)) for op in ("dgrad", "wgrad"))
        return replace(dx, dw=dw)
    x, weight, dy = (t.double().numpy(force=True) for t in (o.x, o.weight, o.dy))
    roundings = 1
    if o.op == "fprop":
        bias = None if o.bias is None else o.bias.double().numpy(force=True)
        values = torch.from_numpy(reference.fprop(x, weight, bias, g))
        if o.residual is not None:
            values = values + o.residual.double().cpu()
        values = ACTIVATIONS[o.workload.activation](values)
        terms, shape = g.group_C * g.R * g.S + 2, g.y_shape
    elif o.op == "dgrad":
        values = torch.from_numpy(reference.dgrad(dy, weight, g))
        terms, shape = g.group_K * g.R * g.S, g.x_shape
        roundings += g.padding_mode != "zeros"  # the frame is added to a rounded result
    else:
        values = torch.from_numpy(reference.wgrad(x, dy, g))
        terms, shape = g.P * g.Q * (1 if g.per_sample else g.N), g.weight_shape
    device = o.weight.device
    at = torch.unravel_index(torch.arange(values.numel(), device=device), shape)
    return Truth(at, values.flatten().to(device), terms, shape, roundings)


def run(check: PlannedCall, rig: GpuRig) -> str:
    """The fault of the call's result in words, "" for a right one."""
    operands = check.operands(rig.device)
    with torch.no_grad(), poisoned():
        if check.op == "lag_sums":
            return _run_lag_sums(operands)
        if check.op == "fprop_separable":
            return _run_separable(operands)
        truth = whole_truth(operands)
        call = rig.call(operands, Entrant("tricorr", check.format, check.plan))
        return _fault(truth, call(), call(), operands.precision)


def _fault(truth: Truth, first: Result, again: Result, precision: str) -> str:
    error, bound = truth.error(first, precision), truth.bound(first_of(first).dtype, precision)
    if not error <= bound:
        return f"error {error:.3g} is above {bound:.3g}"
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[first_of(first).element_size()]
    pairs = zip(_parts(first), _parts(again), strict=True)
    same = all(torch.equal(a.view(bits), b.view(bits)) for a, b in pairs)
    return "" if same else "a second call gives other bits"


def _run_separable(operands: Operands) -> str:
    """The fault of one pass with the first column and row of the weight as windows."""
    down, across = operands.weight[:, :, :, :1].double(), operands.weight[:, :, :1].double()
    whole = replace(operands, op="fprop", weight=down * across, bias=None)

    def found() -> torch.Tensor:
        y, calls = launches_of(operands, NO_PLAN, device_of(operands.x))
        for call in calls:
            call.run(y.device)
        return y

    return _fault(whole_truth(whole), found(), found(), "ieee")


def _parts(result: Result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _run_lag_sums(operands: Operands) -> str:
    lags = operands.geometry.R, operands.geometry.S
    x, part = operands.x, lagged(operands)
    found = lag_sums(part, x, lags)
    truth = lag_sums(part.double().cpu(), x.double().cpu(), lags).to(found)
    scale = float(truth.abs().max())
    error = float((found - truth).abs().max()) / scale
    if not error <= part.numel() * torch.finfo(torch.float64).eps:
        return f"error {error:.3g} of float64 sums"
    same = torch.equal(found.view(torch.int64), lag_sums(part, x, lags).view(torch.int64))
    return "" if same else "a second call gives other bits"


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """While it lasts, torch.empty returns NaN."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


class Notes:
    """The outcomes of checks in a file, so that a run which goes on repeats none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, machine: Machine) -> dict[str, str]:
        """The note of every check on this machine with these sources; "" of one that was right."""
        if not self.path.exists():
            return {}
        here = [machine.device, machine.revision.rpartition("+")[2]]
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return {f["check"]: f["note"] for f in found if [f["device"], f["sources"]] == here}

    def write(self, check: PlannedCall, note: str, machine: Machine) -> None:
        """Appends an outcome."""
        fields = {
            "check": str(check),
            "note": note,
            "device": machine.device,
            "sources": machine.revision.rpartition("+")[2],
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")


def main(pattern: str = "") -> int:
    """Runs the calls whose names match, here; for compute-sanitizer."""
    rig = GpuRig()
    wrong = 0
    for check in checks(rig.planned_for()):
        if re.search(pattern, str(check)):
            problem = run(check, rig)
            wrong += bool(problem)
            print(f"{check}: {problem or 'right'}", flush=True)
    return min(1, wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
