"""Plans of measured calls, and what they cost by arithmetic: bytes, waste and time, before any run.

    python -m tricorr.perf predict [--device h200] [--suite images] [--json]

The model predicts; it claims nothing, and nothing in it was measured. It exists to be compared with
rows: where a row is far from it, one of its assumptions is wrong, and which one says what to
change. ops/plan/cost.py and the families beside it have the arithmetic and the rates, by which the
planner chooses; here it is set beside the problem's own bound:

 - Every element that a program asks for comes through L1 once per use: nothing is shared between
   programs there, and a stencil's taps each load their pixel. Through L2 a program of few channels
   reads each pixel of its tile once, with what its window overhangs; a pipelined GEMM loads each
   element of its tiles once a step. Loads are assumed to be coalesced.
 - Instructions are those of perf/results/codegen.json where that has the plan's code for sm_90,
   else what the family says, fitted to it.
 - The roofline is the problem's, not the plan's: compulsory bytes at the rate of a copy or the
   FLOPs at the rate of the fastest unit that multiplies this dtype at this precision, whichever
   takes longer. Predicted fraction = roofline time / predicted time.

Calls are those of meta tensors (providers.make_operands), on a device that need not be there.
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
from ..ops.launch.layout import layout_of
from ..ops.plan import banded, choose, rows, stencil
from ..ops.plan.cost import Code, times_of
from ..ops.plan.device import DEVICES, Device
from ..ops.plan.problem import Plan, Problem, Tile
from .providers import TENSOR_DTYPES, Operands, make_operands
from .workloads import OPS, SUITES, Workload, select

#: The machine code that predictions are made of.
CODE = Path(__file__).parent / "results" / "codegen.json"


def problem_of(operands: Operands, device: Device, op: str = "") -> Problem:
    """What is planned for a call; `op` is "dgrad_frame" for what a padding mode adds to dgrad."""
    o, g = operands, operands.geometry
    last = o.format == "channels_last"
    memory_format = torch.channels_last if last else torch.contiguous_format

    def image(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)

    dtype = o.weight.dtype
    x = image(g.x_shape, dtype if o.op == "dgrad" else o.x.dtype)
    y = image(g.y_shape, dtype)
    residual = y if o.residual is not None and o.op == "fprop" else None
    activation = o.workload.activation if o.op == "fprop" else "none"
    layout = layout_of(g, x, o.weight, y, residual, activation)
    return Problem(op or o.op, g, dtype, o.precision, layout, device)


def alternatives(problem: Problem) -> list[Plan]:
    """The planner's plan, then the best of every other family that can run the call, by time."""
    own = choose.plan(problem)
    could: dict[str, list[Tile]] = {
        family.__name__: list(family.tiles(problem)) for family in choose.FAMILIES
    }
    # What the planner would not take, because another family is expected to do better.
    by_rows = rows.tile_for(problem) if rows.is_legal(problem) else None
    could[rows.__name__] = could[rows.__name__] or ([] if by_rows is None else [by_rows])
    could[stencil.__name__] = could[stencil.__name__] or [stencil.tile_for(problem)]
    if not could[banded.__name__] and banded.is_legal(problem):
        could[banded.__name__] = [t.fitted(problem) for t in banded.tiles_with_room(problem)]
    best = []
    for tiles in could.values():
        plans = [plan for tile in tiles for plan in _plans_with(tile, problem)]
        if plans and plans[0].family != own.family:
            best.append(min(plans, key=lambda plan: seconds_of(plan, problem)))
    return [own, *sorted(best, key=lambda plan: seconds_of(plan, problem))]


def _plans_with(tile: Tile, problem: Problem) -> Iterator[Plan]:
    try:
        yield choose.plan_with_tile(problem, tile, tile.splits(problem))
    except ArgumentError:  # more programs than a launch can have
        return


def seconds_of(plan: Plan, problem: Problem) -> float:
    """The static model's time of a plan."""
    work = plan.tile.work(plan, problem, recorded_code(plan, problem))
    return times_of(work, problem.device).predicted


def describe(plan: Plan) -> str:
    """A plan in a few words: kernel, tile, warps, stages, splits, programs, register limit."""
    blocks = "x".join(str(v) for k, v in vars(plan.tile).items() if k.startswith("BLOCK"))
    rest = {k: v for k, v in vars(plan.tile).items() if k in ("LANE_Q", "persistent") and v > 1}
    return (
        f"{plan.kernel} {blocks} w{plan.tile.num_warps} s{plan.tile.num_stages}"
        + "".join(f" {name.lower()}{value}" for name, value in rest.items())
        + f" /{plan.splits}" * (plan.splits > 1)
        + (f" r{plan.max_registers}" if plan.max_registers else "")
    )


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
    problem: Problem,
    plan: Plan | None = None,
    *,
    x_bytes: int = 0,
    workload: Workload | None = None,
) -> Prediction:
    """The model's numbers for one problem.

    Args:
        problem: of a device whose datasheet is known.
        plan: instead of the planner's.
        x_bytes: of an element of x, if that is not of the weight's dtype.
        workload: that it is of.

    Raises:
        ValueError: the device's rates are not known.
    """
    device, geometry = problem.device, problem.geometry
    if device.bandwidth is None:
        raise ValueError(f"the rates of {device.name} are not known")
    plan = plan or choose.plan(problem)
    problem = replace(problem, x_bytes=x_bytes)
    code = recorded_code(plan, problem)
    work = plan.tile.work(plan, problem, code)
    found = times_of(work, device)

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
    image = problem.op != "dgrad" and x_bytes == 1
    return Prediction(
        workload="" if workload is None else workload.name,
        suite="" if workload is None else workload.suite,
        op=problem.op,
        dtype="uint8" if image else str(problem.dtype).removeprefix("torch."),
        format="channels_last" if problem.layout.channels_last else "NCHW",
        kernel=plan.kernel,
        tile=describe(plan).partition(" ")[2],
        programs=programs,
        compulsory_bytes=compulsory,
        device_bytes=round(work.dram_bytes + work.between_bytes),
        load_bytes=loaded,
        reread=loaded / max(1, sum(problem.read_bytes)),
        waste=round(programs * work.macs) / max(1, macs),
        fill=programs / (waves * sms) if programs else 1.0,
        instructions=work.instructions * warps * programs,
        counted=code is not None,
        **{f"{unit}_us": seconds * 1e6 for unit, seconds in vars(found).items()},
        predicted_us=found.predicted * 1e6,
        bound=found.bound,
        roofline_us=roofline * 1e6,
        roofline_fraction=roofline / found.predicted,
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


def recorded_code(plan: Plan, problem: Problem) -> Code | None:
    """The code of a plan's program on sm_90, where codegen.json has such a tile."""
    if problem.device.arch != "90" or plan.family == "stencil":
        return None  # a whole window is one pass of some stencils, one row of others
    tile, dtype = plan.tile, problem.dtype
    # Pixels are neighbours in memory, but a window moves them out of line.
    gathered = not problem.layout.channels_last and not problem.geometry.is_point
    blocks = "x".join(str(v) for k, v in vars(tile).items() if k.startswith("BLOCK"))
    product = ""
    if plan.family in ("gemm", "tma", "banded"):
        product = {2: "half", 8: "float64"}.get(dtype.itemsize, plan.precision)
    name = "bfloat16" if dtype.itemsize == 2 else str(dtype).removeprefix("torch.")
    name = "uint8" if problem.image_bytes == 1 else name
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
                    operands = make_operands(workload, op, dtype, memory_format, "meta")
                    found = predict(
                        problem_of(operands, device),
                        x_bytes=0 if op == "dgrad" else operands.x.itemsize,
                        workload=workload,
                    )
                    yield replace(found, dtype=dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m tricorr.perf predict`."""
    parser.add_argument("--device", default="h200", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--suite", action="append", default=[], choices=SUITES)
    parser.add_argument("--op", action="append", default=[], choices=OPS)
    parser.add_argument("--dtype", action="append", default=[], choices=sorted(TENSOR_DTYPES))
    parser.add_argument("--json", action="store_true", help="one prediction a line")


def main(options: argparse.Namespace) -> int:
    """Prints the table; nothing is run."""
    device = device_named(options.device)
    ops = options.op or OPS
    found = list(predict_workloads(select(options.suite), device, ops, options.dtype))
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
