"""Geometries that nobody thought of, small enough for the interpreter."""

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import OPS, operands, run, truth

from tricorr.ops import geometry_of

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies


@st.composite
def axes(draw):
    """(extent, window, stride, padding, dilation) of one axis, the window inside the padding."""
    window, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    least = max(1, dilation * (window - 1) + 1 - sum(padding))
    return (
        draw(st.integers(least, least + 5)),
        window,
        draw(st.integers(1, 4)),
        padding,
        dilation,
    )


@st.composite
def geometries(draw):
    (H, R, stride_h, rows, dil_h), (W, S, stride_w, columns, dil_w) = draw(axes()), draw(axes())
    N, groups = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    # Either a few channels, for a stencil, or just enough for a matrix unit.
    group_C, group_K = (draw(st.integers(1, 3) | st.integers(16, 18)) for _ in "CK")
    # Two many-channelled sides of a stencil would be slow in the interpreter.
    hypothesis.assume(group_C * group_K <= 18 or min(group_C, group_K) >= 16)
    weight = (groups * group_K, group_C, R, S)
    limits = {"zeros": 9, "replicate": 9, "reflect": -1, "circular": 0}
    modes = [
        mode for mode, more in limits.items() if max(rows) <= H + more and max(columns) <= W + more
    ]
    return geometry_of(
        (N, groups * group_C, H, W),
        (N, *weight) if draw(st.booleans()) else weight,
        (stride_h, stride_w),
        (rows, columns),
        (dil_h, dil_w),
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(modes)),
    )


# By name: torch.testing._internal, which other tests import, loads a profile of its own.
@hypothesis.settings(hypothesis.settings.get_profile("tricorr"), max_examples=12)
@hypothesis.given(geometry=geometries())
@pytest.mark.parametrize("op", OPS)
def test_any_geometry(backend, op, geometry):
    # Whole numbers: no tolerance to hide in.
    args = operands(op, *tensors(geometry, torch.float32, backend.device, whole_numbers))
    expected = torch.from_numpy(truth(op, args, geometry)).float()
    assert torch.equal(run(op, args, geometry).cpu(), expected)
