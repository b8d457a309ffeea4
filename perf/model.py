"""What a plan costs by arithmetic alone: bytes, waste and time at datasheet rates, before any run.

    python -m tricorr.perf predict [--device h200] [--suite images] [--json]

The model predicts; it claims nothing. It exists to be compared with rows: where a row is far from
it, one of its assumptions is wrong, and which one says what to change. They are:

 - Three units overlap perfectly, and the slowest decides: device memory, the load path from L1, and
   the arithmetic unit that the plan's kernel uses. Latency, launch, address arithmetic, masks and
   instruction issue take no time, so a prediction is a bound from below for this plan, not for
   the problem.
 - Rates are the datasheet's. L1 delivers 128 bytes a clock and multiprocessor (64 on CDNA), at the
   clock the datasheet's float32 rate implies.
 - Every element that a program asks for comes through L1 once per use: nothing is shared between
   programs there, and a stencil's taps each load their pixel. A pipelined GEMM loads each element
   of its tiles once a step. Loads are assumed to be coalesced.
 - Programs start in the order of their ids, one per multiprocessor, in waves. What a wave
   touches is in L2 for the next wave if both fit into half of it; otherwise an operand that
   every wave wants is read from device memory again by every wave.
 - A last wave that is not full takes as long as a full one.
 - The roofline is the problem's, not the plan's: compulsory bytes at the memory rate or the
   FLOPs at the rate of the fastest unit that multiplies this dtype at this precision, whichever
   takes longer. Predicted fraction = roofline time / predicted time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import torch

from ..ops import ArgumentError
from ..ops.bands import BandedGradTile, BandedTile, banded_steps, bands_shape
from ..ops.explain import device_named
from ..ops.facts import NARROW_LIMIT
from ..ops.geometry import Geometry
from ..ops.plan import (
    DEVICES,
    Device,
    GemmTile,
    Layout,
    Plan,
    StencilTile,
    plan_dgrad,
    plan_fprop,
    plan_wgrad,
)
from ..ops.plan_rows import RowsTile, rows_work
from ..ops.plan_tma import TmaTile
from .workloads import OPS, SUITES, Workload, select

_PLANNERS = {"fprop": plan_fprop, "dgrad": plan_dgrad, "wgrad": plan_wgrad}

#: Bytes of the last cache that all multiprocessors share, by Device.arch; published.
L2_BYTES = {"80": 40e6, "90": 50e6, "100": 126e6, "gfx942": 256e6}
#: Float32 multiply-adds of one multiprocessor in a clock, as the datasheet's rate counts them.
FMA_LANES = {"80": 64, "90": 128, "100": 128, "gfx942": 128}
#: Bytes that L1 of one multiprocessor delivers in a clock.
L1_BYTES = {"80": 128, "90": 128, "100": 128, "gfx942": 64}


class UnknownPlanError(ValueError):
    """A plan of a family that the model has no arithmetic for."""


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
        memory_us, load_us, arithmetic_us: time of each unit.
        predicted_us: the longest of these.
        bound: which that is: "memory", "loads" or "arithmetic".
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
    memory_us: float
    load_us: float
    arithmetic_us: float
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
        UnknownPlanError: the plan's kernel is of a family that the model does not know.
    """
    if device.bandwidth is None:
        raise ValueError(f"the rates of {device.name} are not known")
    operand = torch.float32 if dtype == torch.uint8 else dtype
    plan = plan or _PLANNERS[op](
        geometry, operand, dense_layout(geometry, dtype, channels_last), device, precision
    )
    x_bytes = operand.itemsize if op == "dgrad" else dtype.itemsize
    sizes = {
        "x": geometry.x_numel * x_bytes,
        "weight": geometry.weight_numel * operand.itemsize,
        "y": geometry.y_numel * operand.itemsize,
    }
    compulsory = geometry.compulsory_bytes(x_bytes, operand.itemsize, operand.itemsize)
    work = _work(plan, geometry, x_bytes, operand.itemsize)

    sms = device.multiprocessors
    waves = -(-plan.grid // sms)
    fill = plan.grid / (waves * sms) if plan.grid else 1.0
    device_bytes = compulsory + _spilled(plan, geometry, sizes, waves, device)
    if plan.partials > 1:  # partial sums are written and read
        device_bytes += 2 * plan.partials * geometry.weight_numel * max(4, operand.itemsize)

    if isinstance(plan.tile, BandedTile):  # bands are written and read
        turned = geometry.adjoint() if op == "dgrad" else geometry
        device_bytes += 2 * math.prod(bands_shape(turned, plan.tile)) * operand.itemsize

    rate = device.flops_per_second[_unit(plan, operand)]
    fastest = device.flops_per_second[_fastest_unit(operand, precision)]
    clock = device.flops_per_second["fma"] / (2 * FMA_LANES[device.arch] * sms)
    products = 3 if plan.precision == "tf32x3" else 1
    times = {
        "memory": device_bytes / device.bandwidth,
        "loads": work.load_bytes / (L1_BYTES[device.arch] * sms * clock) / fill,
        "arithmetic": 2 * products * work.macs / rate / fill,
    }
    bound = max(times, key=lambda unit: times[unit])
    needed = 3 if precision == "tf32x3" and operand == torch.float32 else 1
    # A banded plan may leave out taps that lie in the padding: nobody has to do those.
    macs = min(geometry.macs, work.macs)
    roofline = max(compulsory / device.bandwidth, needed * 2 * macs / fastest)
    read = sizes[_READ[op][0]] + sizes[_READ[op][1]]
    return Prediction(
        workload=name,
        suite=suite,
        op=op,
        dtype=str(dtype).removeprefix("torch."),
        format="channels_last" if channels_last else "NCHW",
        kernel=plan.kernel,
        tile=_tile_name(plan),
        programs=plan.grid,
        compulsory_bytes=compulsory,
        device_bytes=device_bytes,
        load_bytes=work.load_bytes,
        reread=work.load_bytes / max(1, read),
        waste=work.macs / max(1, macs),
        fill=fill,
        memory_us=times["memory"] * 1e6,
        load_us=times["loads"] * 1e6,
        arithmetic_us=times["arithmetic"] * 1e6,
        predicted_us=times[bound] * 1e6,
        bound=bound,
        roofline_us=roofline * 1e6,
        roofline_fraction=roofline / times[bound] if times[bound] else 1.0,
    )


def dense_layout(geometry: Geometry, x_dtype: torch.dtype, channels_last: bool) -> Layout:
    """The layout of dense tensors of this geometry, as facts.layout_of finds it."""
    g = geometry
    step = 16 // x_dtype.itemsize
    return Layout(
        channels_last,
        is_wide(g),
        descriptors=(
            channels_last and x_dtype != torch.uint8 and g.C % step == 0 and g.K % step == 0
        ),
    )


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


#: The two tensors that an operator reads.
_READ = {"fprop": ("x", "weight"), "dgrad": ("y", "weight"), "wgrad": ("x", "y")}


@dataclass(frozen=True)
class _Work:
    """What all programs do together: bytes that they load, multiply-adds with all padding."""

    load_bytes: int
    macs: int


def window_steps(rows: int, columns: int, channels: int, block: int) -> int:
    """Steps of a GEMM through all taps of few channels, whole rows of the window if they fit."""
    row = columns * channels
    return -(-rows // max(1, block // row)) * -(-row // block)


def _work(plan: Plan, geometry: Geometry, x_bytes: int, itemsize: int) -> _Work:
    """Counted as the kernels loop; masked lanes do arithmetic, and are counted as loads too."""
    g, tile = geometry, plan.tile
    first = itemsize if plan.op == "dgrad" else x_bytes
    taps = g.R * g.S
    # Those of an input gradient are dealt out among the phases: on average.
    reached = taps / math.prod(g.phases) if plan.op == "dgrad" else taps
    if isinstance(tile, TmaTile) and plan.op == "wgrad":
        boxes = plan.grid * plan.split_strips * tile.pixels
        return _Work(
            boxes * (tile.BLOCK_N + tile.BLOCK_K) * itemsize, boxes * tile.BLOCK_N * tile.BLOCK_K
        )
    if isinstance(tile, TmaTile):
        steps = reached * -(-(g.group_C if plan.op == "fprop" else g.group_K) // tile.BLOCK_K)
        rows = tile.pixels + tile.BLOCK_N
        return _Work(
            round(plan.grid * steps * tile.BLOCK_K * rows * itemsize),
            round(plan.grid * steps * tile.BLOCK_K * tile.pixels * tile.BLOCK_N),
        )
    if isinstance(tile, GemmTile):
        if plan.op == "wgrad":
            steps = -(-plan.split_pixels // tile.BLOCK_K)
            bytes_a_step = tile.BLOCK_K * (tile.BLOCK_M * itemsize + tile.BLOCK_N * x_bytes)
        else:
            reduced = g.group_C if plan.op == "fprop" else g.group_K
            steps = reached * -(-reduced // tile.BLOCK_K)
            if not plan.one_tap:
                phases_h, phases_w = g.phases if plan.op == "dgrad" else (1, 1)
                steps = window_steps(
                    -(-g.R // phases_h), -(-g.S // phases_w), reduced, tile.BLOCK_K
                )
            bytes_a_step = tile.BLOCK_K * (tile.BLOCK_M * first + tile.BLOCK_N * itemsize)
        return _Work(
            round(plan.grid * steps * bytes_a_step),
            round(plan.grid * steps * tile.BLOCK_M * tile.BLOCK_N * tile.BLOCK_K),
        )
    if isinstance(tile, BandedTile | BandedGradTile):
        turned = g.adjoint() if plan.op == "dgrad" else g
        m, n, k = tile.gemm
        steps = plan.grid * k * (plan.split_strips or banded_steps(turned, tile))
        sizes = (itemsize, x_bytes) if plan.op == "wgrad" else (first, itemsize)
        return _Work(steps * (m * sizes[0] + n * sizes[1]), steps * m * n)
    blocks = {name: size for name, size in vars(tile).items() if name.startswith("BLOCK")}
    if isinstance(tile, RowsTile):
        work = rows_work(plan.op, g, tile)
        read, strips = work.loads * first, 1
        if plan.op == "wgrad":
            dy = tile.BLOCK_P * tile.BLOCK_Q * tile.BLOCK_C * tile.BLOCK_K
            read, strips = work.loads * x_bytes + dy * itemsize, plan.split_strips
        return _Work(plan.grid * strips * read, plan.grid * strips * work.macs)
    if not isinstance(tile, StencilTile):
        raise UnknownPlanError(f"the model does not know {plan.kernel}")
    lanes = blocks["BLOCK_M"] * blocks["BLOCK_C"]
    if plan.op == "wgrad":  # one tap of BLOCK_C filters
        steps = -(-plan.split_pixels // blocks["BLOCK_M"])
        return _Work(plan.grid * steps * lanes * (x_bytes + itemsize), plan.grid * steps * lanes)
    steps = taps * (g.group_C if plan.op == "fprop" else g.group_K)
    return _Work(
        plan.grid * steps * (lanes * first + blocks["BLOCK_C"] * itemsize),
        plan.grid * steps * lanes,
    )


def _spilled(
    plan: Plan, geometry: Geometry, sizes: dict[str, int], waves: int, device: Device
) -> int:
    """Bytes read from device memory again because L2 did not keep them from wave to wave."""
    if waves <= 1:
        return 0
    first, second = (sizes[name] for name in _READ[plan.op])
    sms, room = device.multiprocessors, L2_BYTES[device.arch] / 2
    if plan.op == "wgrad":
        # The programs that read the same pixels have neighbouring ids. If they are more than a
        # wave and their pixels do not stay in L2, every wave of them reads those again.
        batches = geometry.N if geometry.per_sample else 1
        if isinstance(plan.tile, GemmTile | TmaTile | BandedGradTile):
            sharers = plan.grid // (plan.splits * geometry.groups * batches)
        else:
            sharers = geometry.R * geometry.S * geometry.group_C
        shared = (first + second) * sharers / plan.grid
        if sharers <= sms or shared <= room:
            return 0
        return (-(-sharers // sms) - 1) * (first + second)
    # Neighbouring programs share pixels, so those are read once; every wave wants all the weight.
    if second + first / waves <= room:
        return 0
    return (waves - 1) * second


def _unit(plan: Plan, dtype: torch.dtype) -> str:
    """Which of a device's rates the plan's kernel runs at."""
    if dtype == torch.float64:
        return "float64"
    if plan.family not in ("gemm", "tma", "banded"):
        return "fma"
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    return "fma" if plan.precision == "ieee" else "tf32"


def _fastest_unit(dtype: torch.dtype, precision: str) -> str:
    """Which rate the problem could run at."""
    if dtype == torch.float64:
        return "float64"
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    return "fma" if precision == "ieee" else "tf32"


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
    unknown: list[str] | None = None,
) -> Iterator[Prediction]:
    """Every operator and format of the workloads, in each one's first dtype if none is named.

    Args:
        workloads: to predict.
        device: to plan for.
        ops: only these.
        dtypes: these instead of each one's first.
        unknown: takes why there is none for a plan that the model does not know; None raises.
    """
    ops, dtypes = set(ops), list(dtypes)
    for workload in workloads:
        for dtype in [d for d in workload.dtypes if d in dtypes] if dtypes else workload.dtypes[:1]:
            for op in (op for op in workload.ops if op in ops):
                for memory_format in workload.formats:
                    tensor_dtype, precision = PRODUCTS[dtype]
                    try:
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
                    except UnknownPlanError as error:
                        if unknown is None:
                            raise
                        unknown.append(str(error))
                        continue
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
    unknown: list[str] = []
    workloads = select(options.suite)
    ops = options.op or OPS
    found = list(predict_workloads(workloads, device, ops, options.dtype, unknown))
    if not found and not unknown:
        raise ValueError("no workload of these suites has such an operator and dtype")
    for line, cases in Counter(unknown).items():
        print(f"{line}: {cases} cases are left out", file=sys.stderr)
    if options.json:
        print("\n".join(json.dumps(asdict(p)) for p in found))
        return 0
    print(
        f"Predicted for {device.name} from its datasheet; nothing is measured here.\n"
        "A bound from below for these kernels: perf/model.py says what is left out.\n"
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
                f"{p.suite:32} op    dtype    format        kernel        tile                 "
                "   min MB moved MB  loads  waste fill        us bound       roofline"
            )
        suite = p.suite
        yield (
            f"{p.workload.removeprefix(p.suite + '-'):32} {p.op:5} {p.dtype:8} "
            f"{'both' if len(formats) > 1 else formats[0]:13} {p.kernel:13} {p.tile:20} "
            f"{p.compulsory_bytes / 1e6:9.3g} {p.device_bytes / 1e6:8.3g} {p.reread:6.3g} "
            f"{p.waste:6.3g} {p.fill:4.2f} {p.predicted_us:9.4g} {p.bound:10} "
            f"{p.roofline_fraction:9.1%}"
        )
    yield (
        "\nmin MB: each tensor moved once. moved MB: what L2 cannot keep and partial sums added. "
        "loads: bytes asked of L1\nover bytes of the operands. waste: multiply-adds done over "
        "needed. fill: share of multiprocessors at work.\nus, bound: the slowest unit's time, and "
        "which. roofline: the problem's own bound over us."
    )
