"""Offsets beyond 32 bits: the same bits as for the same numbers close together."""

import mmap
from dataclasses import replace

import pytest
import torch
from closeness import operands
from plans import launched

from tricorr.ops import geometry_of
from tricorr.ops.launch.layout import device_of, layout_of
from tricorr.ops.plan import banded, columns, gemm, rows, stencil
from tricorr.ops.plan.choose import plan_with_tile
from tricorr.ops.plan.problem import Problem


def far_apart(tensor):
    """The same values 2**30 elements apart: offsets beyond 2**31, pages only where touched."""
    assert tensor.numel() == 9
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, 2 * (2**31 + 64), flags=flags)
    storage = torch.frombuffer(memory, dtype=torch.float16)
    return storage.as_strided(tensor.shape, (1, 1, 2**30, 1)).copy_(tensor)


FAMILIES = {"gemm": gemm, "rows": rows, "stencil": stencil, "banded": banded, "columns": columns}


@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_past_32_bits(kernel_backend, op, family):
    """The channel counts, the window and its gaps suit the family."""
    if kernel_backend.name == "cuda":
        pytest.skip("address space without memory exists only on the CPU")
    wide_channels = 16 if family == "gemm" else 1
    # Taps added on each side: too many for rows.
    more = 2 if family in ("stencil", "banded", "columns") else 0
    gap = 2 if family == "stencil" else 1
    C, K = (wide_channels, 1) if op == "dgrad" else (1, wide_channels)
    before, after = (1, 2) if op == "wgrad" else (2, 2)
    geometry = geometry_of(
        (1, C, 3, 3),
        (K, C, *(before + after + 1 + 2 * more,) * 2),
        padding=(((before + more) * gap, (after + more) * gap),) * 2,
        dilation=(gap, gap),
    )
    shapes = (geometry.x_shape, geometry.weight_shape, (geometry.K,), geometry.y_shape)
    tensors = [torch.randn(shape).half() for shape in shapes]
    near = operands(op, *tensors)
    far = (far_apart(near[0]), *near[1:])
    layout = layout_of(geometry, *far[:2], tensors[3])
    assert layout.int64
    name = op.removesuffix("_bias")
    problem = Problem(name, geometry, torch.float16, "ieee", layout, device_of(far[0]))
    tile = FAMILIES[family].tiles(problem)[0]
    narrow = replace(problem, layout=replace(layout, int64=False))
    results = [
        launched(op, given, geometry, plan_with_tile(where, tile))
        for given, where in ((far, problem), (near, narrow))
    ]
    assert torch.equal(*results)
