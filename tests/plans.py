"""Plans of the planner, and plans with a tile that a test chooses."""

from dataclasses import replace

import torch

from tricorr.ops.plan import choose
from tricorr.ops.plan.device import DEVICES, INTERPRETER
from tricorr.ops.plan.problem import Layout, Problem

OPS = ("fprop", "dgrad", "wgrad")
#: Without measured multipliers: plans of tests do not change when a device is measured again.
H200 = replace(DEVICES["h200"], measured=None)
PLAIN = Layout()


def boxed(boxes, as_rows=False):
    """The layout of images that tensor maps can describe in this format."""
    return Layout(boxes == "NHWC", x_boxes=boxes, y_boxes=boxes, as_rows=as_rows)


def planned(op, geometry, dtype, layout=PLAIN, device=INTERPRETER, precision="ieee"):
    """The planner's plan."""
    return choose.plan(Problem(op, geometry, dtype, precision, layout, device))


def with_tile(op, geometry, tile, splits=1, precision="ieee", layout=PLAIN, **changes):
    """A plan with the given tile and changed fields."""
    problem = Problem(op, geometry, torch.float32, precision, layout)
    return replace(choose.plan_with_tile(problem, tile, splits), **changes)
