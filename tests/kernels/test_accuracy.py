"""Errors against float64, compared with PyTorch's in the same dtype, for all workloads scaled down.

Scaling keeps (most of) the length of the sums, on which errors depend, and few pixels and other
channels. Both errors are root mean squares over all elements: among a few hundred elements the
largest error is a draw from the tail, and the ratio of two such draws says little, while the root
mean square of n elements is known to 1 / sqrt(2 n). Results with few elements, such as the gradient
of a 1x2 window, are computed for several draws of the operands.

Plans are the planner's for an H200, so tiles and splits are those that run there. The interpreter
shows the order of the sums, their precision, and how often a result is rounded: float32 products
are NumPy's, exact up to one rounding, and 16-bit operands are summed in float32, as on a GPU;
bfloat16 is widened before the launch and rounded once after it (ops/launch/entry.py), so it
shows only the order. It does not show the truncation of matrix units, nor TF32: for these, the rows
of perf have the same ratio on a GPU, `error_to`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import in_format, tensors
from closeness import operands, run, to_numpy, truth
from plans import H200, launched, planned, with_tile

from tricorr.ops import cpu
from tricorr.ops.plan.banded_gradient import BANDED_GRAD_TILES
from tricorr.ops.plan.gemm import GEMM_TILES
from tricorr.ops.plan.problem import Layout
from tricorr.ops.plan.rows import RowsTile
from tricorr.ops.plan.stencil import STENCIL_TILES
from tricorr.ops.plan.tma import TmaTile
from tricorr.perf.workloads import OPS, WORKLOADS

#: Limits: channels that are not summed over; outputs along an axis; taps along an axis of a window
#: that is not summed over; channels that are summed over; pixels of a plane that are summed over.
OTHERS, OUTPUTS, MOST_TAPS = 16, 4, 9
MOST_CHANNELS, MOST_PIXELS = 192, 144
#: Largest ratio of tricorr's error to PyTorch's. Errors up to a quarter of a unit in the last
#: place, about one rounding of the exact result, always pass.
MOST = 2.0
#: Operands are drawn anew until the results have this many elements, or this many times.
ELEMENTS, MOST_DRAWS = 50, 16


def small(geometry, op):
    """One group, with the sums of `op` at full length within the limits."""
    g = geometry
    group_C, group_K = g.group_C, g.group_K
    if op != "fprop":
        group_C = OTHERS if group_C >= OTHERS else 1
    if op != "dgrad":
        group_K = OTHERS if group_K >= OTHERS else 1
    if op == "wgrad":
        g = replace(g, R=min(g.R, MOST_TAPS), S=min(g.S, MOST_TAPS))
    # Few channels have more pixels: a root mean square needs some elements.
    outputs = OUTPUTS * (1 if max(group_C, group_K) >= OTHERS else 2)
    outputs = int(MOST_PIXELS**0.5) if op == "wgrad" else outputs
    H, W = (
        min(extent, max(1, dil * (window - 1) + 1 + stride * (outputs - 1) - sum(pad)))
        for extent, window, stride, pad, dil in zip(
            (g.H, g.W), (g.R, g.S), g.stride, g.padding, g.dilation, strict=True
        )
    )
    N = min(g.N, 2) if g.per_sample or op == "wgrad" else 1
    group_C, group_K = min(group_C, MOST_CHANNELS), min(group_K, MOST_CHANNELS)
    return replace(g, N=N, C=group_C, K=group_K, H=H, W=W, groups=1)


def _cases():
    """(op, geometry, dtype, channels_last), each geometry once; dtypes and formats alternate."""
    seen = set()
    for workload in WORKLOADS:
        for op in OPS:
            if op not in workload.ops:  # both gradients by one launch: test_backward.py
                continue
            g = small(workload.geometry, op)
            if (op, g) in seen:
                continue
            seen.add((op, g))
            turn = len(seen)
            # In 16 bits the last rounding is most of the error: float32 shows the sums.
            halves = {0: [torch.bfloat16], 5: [torch.float16]}.get(turn % 10, [])
            for dtype in (torch.float32, *halves):
                name = f"{workload.name}-{op}-{str(dtype)[6:]}"
                yield pytest.param(op, g, dtype, turn % 3 > 0, id=name)


def root_mean_square(arrays):
    return float(np.sqrt(np.mean(np.square(arrays))))


@pytest.mark.parametrize("backend", ["interpreter"], indirect=True)
@pytest.mark.parametrize(("op", "g", "dtype", "last"), list(_cases()))
def test_error_is_at_most_twice_that_of_pytorch(backend, op, g, dtype, last):
    aligned = last and all(channels * dtype.itemsize % 16 == 0 for channels in (g.C, g.K))
    boxes = "NHWC" if aligned else ""
    plan = planned(op, g, dtype, Layout(last, x_boxes=boxes, y_boxes=boxes), H200)
    exact, our_errors, their_errors = [], [], []
    while len(exact) < MOST_DRAWS and np.size(exact) < ELEMENTS:
        made = tensors(g, dtype)
        args = operands(op, *(in_format(made) if last else made))
        exact.append(truth(op, args, g))
        our_errors.append(to_numpy(launched(op, args, g, plan)) - exact[-1])
        their_errors.append(to_numpy(run(op, args, g, cpu)) - exact[-1])
    ours, theirs = root_mean_square(our_errors), root_mean_square(their_errors)
    scale = root_mean_square(exact)
    print(f"{ours / scale:.3g} {theirs / scale:.3g} {ours / max(theirs, 1e-30):.3f} {plan.kernel}")
    assert ours <= MOST * theirs or ours <= torch.finfo(dtype).eps / 4 * scale


#: One tile of every family that splits, with a call that it takes.
SPLIT = {
    "gemm": ((2, 16, 8, 8), 16, 1, GEMM_TILES["half"][1]),
    "tma": ((2, 16, 8, 8), 16, 1, TmaTile(1, 4, 4, 16, 16, 4, 2)),
    "stencil": ((2, 2, 8, 8), 2, 2, STENCIL_TILES[2]),
    "rows": ((2, 2, 8, 8), 2, 2, RowsTile(4, 8, 2)),
    "banded": ((2, 2, 16, 32), 2, 2, replace(BANDED_GRAD_TILES["half"][1], BLOCK_H=16, BLOCK_W=4)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", SPLIT)
def test_partial_sums_have_32_bits(family, dtype):
    from tricorr.ops import geometry_of
    from tricorr.ops.launch import entry as launch

    shape, K, groups, tile = SPLIT[family]
    g = geometry_of(shape, (K, shape[1] // groups, 3, 3), padding=((1, 1), (1, 1)), groups=groups)
    plan = with_tile("wgrad", g, tile, splits=2)
    assert plan.family == family
    assert plan.splits == 2
    x, weight, _, dy = in_format(tensors(g, dtype))
    first, second = launch.wgrad_calls(x, dy, torch.empty_like(weight), g, plan)
    assert first.arguments["dw_ptr"].dtype == torch.float32
    assert second.arguments["partials_ptr"].dtype == torch.float32
    assert second.arguments["out_ptr"].dtype == dtype
