"""Plans of the planner, plans with a tile that a test chooses, and calls by such a plan."""

from dataclasses import replace

import torch
from closeness import run

from tricorr.ops.plan import choose
from tricorr.ops.plan.device import DEVICES, INTERPRETER
from tricorr.ops.plan.gemm import GemmTile
from tricorr.ops.plan.problem import Layout, Problem

OPS = ("fprop", "dgrad", "wgrad")
#: Without measured multipliers: plans of tests do not change when a device is measured again.
H200 = replace(DEVICES["h200"], measured=None)
PLAIN = Layout()


def boxed(boxes, as_rows=False):
    """The layout of images that tensor maps can describe in this format."""
    return Layout(boxes == "NHWC", x_boxes=boxes, y_boxes=boxes, as_rows=as_rows)


#: Layouts of images in descriptors' formats, for kernels in Gluon.
PIXELS = replace(boxed("NHWC"), gluon=True)
PLANES = replace(boxed("NCHW"), channels_last=False, gluon=True)


def problem_of(op, geometry, dtype=torch.float16, copied=False, **changes):
    """The problem of an H200 for kernels in Gluon; of planes, for tiles that copy the images."""
    precision = "tf32" if dtype == torch.float32 else "ieee"
    layout = PLANES if copied else PIXELS
    problem = Problem(op.removesuffix("_bias"), geometry, dtype, precision, layout, H200)
    return replace(problem, **changes)


def planned(op, geometry, dtype, layout=PLAIN, device=INTERPRETER, precision="ieee"):
    """The planner's plan."""
    return choose.plan(Problem(op, geometry, dtype, precision, layout, device))


def with_tile(op, geometry, tile, splits=1, precision="ieee", layout=PLAIN, **changes):
    """A plan with the given tile and changed fields."""
    problem = Problem(op.removesuffix("_bias"), geometry, torch.float32, precision, layout)
    return replace(choose.plan_with_tile(problem, tile, splits), **changes)


def plan_on(op, geometry, dtype, exchange, tile=None, splits=1):
    """The plan on copies, or without, with a tile: of a GEMM through pointers if none is given."""
    precision = "tf32" if dtype == torch.float32 else "ieee"
    problem = Problem(op.removesuffix("_bias"), geometry, dtype, precision, PLAIN, H200)
    tile = tile or GemmTile(32, 16, 16, num_warps=4, num_stages=2)
    seen = problem if exchange is None else exchange.seen(problem)
    return replace(choose.plan_with_tile(seen, tile, splits), exchange=exchange)


def launched(op, args, geometry, plan, **options):
    """The result of an operator by kernels with this plan.

    On a GPU, a second call must give the same bits. Elsewhere programs run in a fixed order.
    """
    from tricorr.ops.launch import entry

    def call():
        return run(op, args, geometry, entry, precision=plan.precision, plan=plan, **options)

    actual = call()
    if actual.is_cuda:
        torch.testing.assert_close(call(), actual, rtol=0, atol=0, equal_nan=True)
    return actual
