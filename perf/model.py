"""What every workload's plan costs by arithmetic: bytes, waste and time, before any run.

    python -m tricorr.perf predict [--device h200] [--suite images] [--json]

The model predicts; it claims nothing, and nothing in it was measured. It exists to be compared with
rows: where a row is far from it, one of its assumptions is wrong, and which one says what to
change. ops/plan/cost.py has its arithmetic and its rates, by which the planner chooses among GEMMs;
here the other families are counted too, and set beside the problem's own bound:

 - Every element that a program asks for comes through L1 once per use: nothing is shared between
   programs there, and a stencil's taps each load their pixel. Through L2 a program of few channels
   reads each pixel of its tile once, with what its window overhangs; a pipelined GEMM loads each
   element of its tiles once a step. Loads are assumed to be coalesced.
 - Instructions are those of perf/results/codegen.json where that has the plan's code for sm_90,
   else what ops/plan/cost.py, and INSTRUCTIONS here, fitted to it.
 - The roofline is the problem's, not the plan's: compulsory bytes at the rate of a copy or the
   FLOPs at the rate of the fastest unit that multiplies this dtype at this precision, whichever
   takes longer. Predicted fraction = roofline time / predicted time.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..ops import ArgumentError
from ..ops.explain import device_named
from ..ops.geometry import Geometry
from ..ops.launch.layout import NARROW_LIMIT
from ..ops.plan import choose
from ..ops.plan.cost import Code, times_of
from ..ops.plan.device import DEVICES, Device
from ..ops.plan.problem import Layout, Plan, Problem
from .workloads import OPS, SUITES, Workload, select

#: The machine code that predictions are made of.
CODE = Path(__file__).parent / "results" / "codegen.json"


@dataclass(frozen=True)
class Prediction:
    """One operator of one workload, by the model.

    Attributes:
        workload, suite, op, dtype, format: which.
        kernel: the plan's kernel.
        tile: its extents, warps and stages.
        programs: of the launch.
        compulsory_bytes: each tensor moved once.
        device_bytes: through device memory, what L2 cannot keep and partial sums included.
        load_bytes: that programs ask L1 for.
        reread: load_bytes / (compulsory bytes of the two operands).
        waste: multiply-adds that are done, padding of tiles and taps that do not exist included,
            over those that the result needs.
        fill: share of the multiprocessors' time in which they have a program.
        instructions: of all warps.
        counted: the instructions of a pass are those of recorded machine code.
        dram_us, l2_us, shared_us, arithmetic_us, issue_us, latency_us: as in cost.Times.
        launch_us: start and end of the kernels, and what one reads of the one before.
        predicted_us: the longest of the units, and launch_us.
        bound: which unit that is.
        roofline_us: the problem's own bound.
        roofline_fraction: roofline_us / predicted_us.
    """

    workload: str
    suite: str
    op: str
    dtype: str
    format: str
    kernel: str
    tile: str
    programs: int
    compulsory_bytes: int
    device_bytes: int
    load_bytes: int
    reread: float
    waste: float
    fill: float
    instructions: float
    counted: bool
    dram_us: float
    l2_us: float
    shared_us: float
    arithmetic_us: float
    issue_us: float
    latency_us: float
    launch_us: float
    predicted_us: float
    bound: str
    roofline_us: float
    roofline_fraction: float


def predict(
    geometry: Geometry,
    op: str,
    dtype: torch.dtype,
    device: Device,
    *,
    channels_last: bool = False,
    precision: str = "ieee",
    plan: Plan | None = None,
    name: str = "",
    suite: str = "",
) -> Prediction:
    """The model's numbers for one operator.

    Args:
        geometry: of the call.
        op: "fprop", "dgrad" or "wgrad".
        dtype: of all tensors; uint8 is the input's, with float32 for the others.
        device: one whose datasheet is known.
        channels_last: memory format of x and y.
        precision: how float32 is multiplied.
        plan: instead of the planner's.
        name: of the workload.
        suite: of the workload.

    Raises:
        ValueError: the device's rates are not known.
    """
    if device.bandwidth is None:
        raise ValueError(f"the rates of {device.name} are not known")
    problem = problem_of(geometry, op, dtype, device, channels_last, precision)
    plan = plan or choose.plan(replace(problem, x_bytes=0))  # the planner does not know of uint8
    gathered = not channels_last and not geometry.is_point
    code = recorded_code(plan, dtype, gathered) if device.arch == "90" else None
    work = plan.tile.work(plan, problem, code)
    times = times_of(work, device)

    sms = device.multiprocessors
    programs = work.programs
    waves = -(-programs // sms)
    # A banded plan may leave out taps that lie in the padding: nobody has to do those.
    macs = min(geometry.macs, round(programs * work.macs))
    compulsory = problem.compulsory_bytes
    fastest = device.mac_rate(problem.unit)
    roofline = max(compulsory / device.copy_rate, problem.products * macs / fastest)
    loaded = round(programs * work.loaded_bytes)
    warps = work.threads / device.limits.lanes
    return Prediction(
        workload=name,
        suite=suite,
        op=op,
        dtype=str(dtype).removeprefix("torch."),
        format="channels_last" if channels_last else "NCHW",
        kernel=plan.kernel,
        tile=_tile_name(plan),
        programs=programs,
        compulsory_bytes=compulsory,
        device_bytes=round(work.dram_bytes + work.between_bytes),
        load_bytes=loaded,
        reread=loaded / max(1, sum(problem.read_bytes)),
        waste=round(programs * work.macs) / max(1, macs),
        fill=programs / (waves * sms) if programs else 1.0,
        instructions=work.instructions * warps * programs,
        counted=code is not None,
        **{f"{unit}_us": seconds * 1e6 for unit, seconds in vars(times).items()},
        predicted_us=times.predicted * 1e6,
        bound=times.bound,
        roofline_us=roofline * 1e6,
        roofline_fraction=roofline / times.predicted,
    )


def problem_of(
    geometry: Geometry,
    op: str,
    dtype: torch.dtype,
    device: Device,
    channels_last: bool,
    precision: str,
) -> Problem:
    """The problem of dense tensors; uint8 is the input's dtype, with float32 for the others."""
    operand = torch.float32 if dtype == torch.uint8 else dtype
    layout = dense_layout(geometry, dtype, channels_last)
    return Problem(op, geometry, operand, precision, layout, device, dtype.itemsize)


def dense_layout(geometry: Geometry, x_dtype: torch.dtype, channels_last: bool) -> Layout:
    """The layout of dense tensors of this geometry, as facts.layout_of finds it."""
    g = geometry.as_rows() if geometry.is_point else geometry
    return Layout(
        channels_last,
        is_wide(g),
        as_rows=g.is_point,
        x_boxes=_dense_boxes(g.C, (g.H, g.W), x_dtype, channels_last),
        y_boxes=_dense_boxes(g.K, (g.P, g.Q), x_dtype, channels_last),
    )


def _dense_boxes(
    channels: int, plane: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> str:
    """As formats.boxes_of says of a dense image of several samples; x and y are of one dtype."""
    step, (height, width) = 16 // dtype.itemsize, plane
    if dtype == torch.uint8:
        return ""
    if channels_last or height == width == 1:
        return "" if channels % step else "NHWC"
    return "" if width % step else "NCHW"


def is_wide(geometry: Geometry) -> bool:
    """Whether dense tensors of this geometry need 64-bit offsets."""
    return (
        max(
            geometry.x_numel,
            geometry.y_numel,
            geometry.weight_numel,
            geometry.N * geometry.H * geometry.W,
        )
        > NARROW_LIMIT
    )


@functools.cache
def _codes() -> dict[tuple[str, int], Code]:
    """What codegen.json has for sm_90, by the start of a configuration's name and by threads."""
    found: dict[tuple[str, int], Code] = {}
    if not CODE.exists():
        return found
    for entry in json.loads(CODE.read_text(encoding="utf-8"))["entries"]:
        name, loop = entry["name"], entry["loop"]["all"]
        # Where a program has several boxes, what follows a sum is in the loop too.
        if entry["target"] == "sm_90" and loop and not name.endswith(("pointwise", "-loop")):
            whole = re.search("stem$|_gemm-.*-planes$", name)
            start = name if whole else name.rsplit("-", 1)[0]
            if "_tma-" in name:
                start = _any_box(start, name.endswith("planes"))
            start = start.removesuffix("-image3").removesuffix("-image5").removesuffix("-image7")
            code = Code(loop, entry["instructions"] - loop, entry["registers"])
            found.setdefault((start, entry["threads"]), code)
    return found


def recorded_code(plan: Plan, dtype: torch.dtype, gathered: bool = False) -> Code | None:
    """The code of a plan's program on sm_90, where codegen.json has such a tile.

    Args:
        plan: of the launch.
        dtype: of the tensors.
        gathered: pixels are neighbours in memory, but a window moves them out of line.
    """
    tile = plan.tile
    blocks = "x".join(str(v) for k, v in vars(tile).items() if k.startswith("BLOCK"))
    product = ""
    if plan.family in ("gemm", "tma", "banded"):
        product = {2: "half", 8: "float64"}.get(dtype.itemsize, plan.precision)
    if plan.family == "stencil":  # a whole window is one pass of some, one row of others
        return None
    half = dtype.itemsize == 2 and dtype.is_floating_point
    name = "bfloat16" if half else str(dtype).removeprefix("torch.")
    start = "-".join(filter(None, (plan.kernel, product, blocks, name)))
    if plan.family == "tma":
        start = _any_box(start, gathered)
    if plan.family == "gemm" and plan.op != "wgrad" and not plan.one_tap:
        start += "-stem"
    elif plan.family == "gemm" and gathered:
        start += "-planes"
    return _codes().get((start, 32 * tile.num_warps))


def _any_box(start: str, planes: bool) -> str:
    """The start of a name with the number of a box's pixels for its shape, which code hardly shows.

    Rows of planes do: each has products of its own.
    """
    kernel, product, blocks, dtype = start.split("-")
    images, rows, columns, *rest = map(int, blocks.split("x"))
    parts = rows if planes and not kernel.startswith("wgrad") else 1
    blocks = "x".join(map(str, (parts, images * rows * columns, *rest)))
    return "-".join((kernel, product, blocks, dtype))


def _tile_name(plan: Plan) -> str:
    blocks = "x".join(str(v) for k, v in vars(plan.tile).items() if k.startswith("BLOCK"))
    split = f" /{plan.splits}" if plan.splits > 1 else ""
    return f"{blocks} w{plan.tile.num_warps} s{plan.tile.num_stages}{split}"


#: dtype of a row -> (dtype of the tensors, precision).
PRODUCTS = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
    "uint8": (torch.uint8, "ieee"),
    "float64": (torch.float64, "ieee"),
}


def predict_workloads(
    workloads: Iterable[Workload],
    device: Device,
    ops: Iterable[str] = OPS,
    dtypes: Iterable[str] = (),
) -> Iterator[Prediction]:
    """Every operator and format of the workloads, in each one's first dtype if none is named.

    Args:
        workloads: to predict.
        device: to plan for.
        ops: only these.
        dtypes: these instead of each one's first.
    """
    ops, dtypes = set(ops), list(dtypes)
    for workload in workloads:
        for dtype in [d for d in workload.dtypes if d in dtypes] if dtypes else workload.dtypes[:1]:
            for op in (op for op in workload.ops if op in ops):
                for memory_format in workload.formats:
                    tensor_dtype, precision = PRODUCTS[dtype]
                    found = predict(
                        workload.geometry,
                        op,
                        tensor_dtype,
                        device,
                        channels_last=memory_format == "channels_last",
                        precision=precision,
                        name=workload.name,
                        suite=workload.suite,
                    )
                    yield replace(found, dtype=dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf predict`."""
    parser.add_argument("--device", default="h200", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--suite", action="append", default=[], choices=SUITES)
    parser.add_argument("--op", action="append", default=[], choices=OPS)
    parser.add_argument("--dtype", action="append", default=[], choices=sorted(PRODUCTS))
    parser.add_argument("--json", action="store_true", help="one prediction a line")


def main(options: argparse.Namespace) -> int:
    """Prints the table; nothing is run."""
    try:
        device = device_named(options.device)
    except ArgumentError as error:
        print(error)
        return 2
    workloads = select(options.suite)
    ops = options.op or OPS
    found = list(predict_workloads(workloads, device, ops, options.dtype))
    if not found:
        raise ValueError("no workload of these suites has such an operator and dtype")
    if options.json:
        print("\n".join(json.dumps(asdict(p)) for p in found))
        return 0
    print(
        f"Predicted for {device.name} by a model, not measured.\n"
        "ops/plan/cost.py says what is assumed, and what is left out.\n"
    )
    print("\n".join(table(found)))
    return 0


def table(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Lines for people: formats that the model does not tell apart share one."""
    merged: dict[Prediction, list[str]] = {}
    for p in predictions:
        merged.setdefault(replace(p, format=""), []).append(p.format)
    suite = None
    for p, formats in merged.items():
        if p.suite != suite:
            yield (
                f"{p.suite:24} op    dtype    format        kernel        tile                    "
                "moved MB  waste fill  dram    l2 share arith issue laten       us bound      "
                "roofline"
            )
        suite = p.suite
        units = ("dram", "l2", "shared", "arithmetic", "issue", "latency")
        seconds = [getattr(p, f"{unit}_us") for unit in units]
        times = " ".join(f"{us:5.0f}" if us >= 100 else f"{us:5.1f}" for us in seconds)
        yield (
            f"{p.workload.removeprefix(p.suite + '-'):24} {p.op:5} {p.dtype:8} "
            f"{'both' if len(formats) > 1 else formats[0]:13} {p.kernel:13} {p.tile:23} "
            f"{p.device_bytes / 1e6:8.3g} {p.waste:6.3g} {p.fill:4.2f} {times} "
            f"{p.predicted_us:8.4g} {p.bound:10} {p.roofline_fraction:7.1%}"
        )
    yield (
        "\nmoved MB: each tensor once, what L2 cannot keep and partial sums. waste: multiply-adds "
        "done over needed.\nfill: share of multiprocessors at work. dram to latency: microseconds "
        "of each unit. us, bound: the slowest's and\nthe launch's, and which. roofline: the "
        "problem's own bound over us."
    )
