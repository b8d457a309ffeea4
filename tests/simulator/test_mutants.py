"""Simulated calls notice faults planted in kernels, in their launches and in their PTX."""
# mypy: ignore-errors

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import tensors
from closeness import check, operands
from plans import with_tile

from simulator import Fault
from simulator.calls import FORMATS, calls, planned_as_listed
from simulator.driver import simulated
from simulator.mutants import planted, up_to_and_including, without, without_condition
from tricorr import ops
from tricorr.ops import geometry_of
from tricorr.ops.launch import entry
from tricorr.ops.launch.patch_copies import patches_call, patches_like
from tricorr.ops.plan.planes_gradient import PlanesGradientTile
from tricorr.ops.plan.shifted import ShiftedTile

CALLS = {str(call): call for call in calls()}
FEW = CALLS["sm_90-fprop_stencil-fma-float32-planes-gaps"]
FEW_GRADIENT = CALLS["sm_90-wgrad_stencil-fma-float32-planes-gaps"]
DENSE = CALLS["sm_90-fprop_gemm-wgmma-float16-planes-dense"]
OLDER = CALLS["sm_80-fprop_gemm-mma.sync-tf32-pixels-strided"]
IMAGE = CALLS["sm_90-fprop_rows-fma-float32-planes-image"]
BOXES = CALLS["sm_90-fprop_tma-wgmma-float16-planes-rows_out"]
WINDOW_GRADIENT = CALLS["sm_90-wgrad_banded-wgmma-float16-planes-strided_window"]
#: The left operand of its products, boxes of 8 x 8 pixels, is in registers.
BOXES_GRADIENT = replace(
    CALLS["sm_90-wgrad_tma-wgmma-bfloat16-pixels-boxes"],
    geometry=geometry_of((2, 16, 8, 8), (16, 16, 1, 2), padding=((0, 0), (0, 1))),
)


def outcome(made):
    """Makes a call, or calls `made`, which compares its own results; the outcome as a text."""
    try:
        made() if callable(made) else compare(made)
    except Fault as fault:
        return str(fault)
    except AssertionError as wrong:
        return f"wrong: {wrong}"
    return "right"


def compare(call):
    args = operands(call.op, *tensors(call.geometry, call.dtype))
    last = FORMATS[call.format]
    given = [t.contiguous(memory_format=last) if t.dim() == 4 else t for t in args]
    with planned_as_listed(call):
        operator = getattr(ops, call.op.removesuffix("_bias"))
        actual = operator(*given, call.geometry, precision=call.precision)
    check(call.op, args, call.geometry, actual=actual, precision=call.precision)


def copied_patches(rest, back):
    """Copies an image to patches, or back, in the order of a channels_last weight.

    With `rest`, there are pixels that no window meets.
    """
    geometry = geometry_of((1, 5, 7, 10) if rest else (1, 5, 6, 9), (1, 5, 3, 3), (3, 3))
    whole = (..., slice(6), slice(9))
    image, x = torch.randn(geometry.x_shape), torch.empty(geometry.x_shape)
    cut = image[whole].reshape(1, 5, 2, 3, 3, 3).permute(0, 3, 5, 1, 2, 4).reshape(1, 45, 2, 3)
    patches = patches_like(image, geometry)
    if back:
        patches.copy_(cut)
    patches_call(x if back else image, patches, geometry, "rsc", back).run(x.device)
    filled = torch.zeros_like(image)
    filled[whole] = image[whole]
    assert torch.equal(x, filled) if back else torch.equal(patches, cut)


def shifted_gradient():
    """A weight gradient of three filters, whose dy is shifted by nine taps."""
    geometry = geometry_of((2, 24, 6, 8), (3, 24, 3, 3), padding=((1, 1), (1, 1)))
    args = operands("wgrad", *tensors(geometry, torch.bfloat16))
    plan = with_tile("wgrad", geometry, ShiftedTile(64, 64, 64, "dy", 4, 4))
    check("wgrad", args, geometry, actual=entry.wgrad(*args, geometry, plan=plan))


def planes_gradient():
    """A weight gradient of 24 channels and filters, in boxes of 32 and of 24."""
    geometry = geometry_of((1, 24, 5, 16), (24, 24, 3, 3), padding=((1, 1), (1, 1)))
    args = operands("wgrad", *tensors(geometry, torch.bfloat16))
    plan = with_tile("wgrad", geometry, PlanesGradientTile(2, 64, 2, 2, 3, 32, 24, 4, 3))
    check("wgrad", args, geometry, actual=entry.wgrad(*args, geometry, plan=plan))


TO_PATCHES, FROM_PATCHES = (
    partial(copied_patches, False, False),
    partial(copied_patches, False, True),
)
WITH_A_REST = partial(copied_patches, True, True)
#: (call, or a function that makes one, the kernel's function, change, pattern of the outcome)
PLANTED = {
    "mask_of_an_image": (FEW, "fprop_stencil", without("mask", "load", "x"), "load .* x_ptr"),
    "mask_of_a_weight": (
        FEW, "fprop_stencil", without("mask", "load", "weight"), "load .* weight_ptr",
    ),
    "mask_of_a_store": (FEW, "fprop_stencil", without("mask", "store", "y"), "store .* y_ptr"),
    "zero_outside_of_an_image": (FEW, "fprop_stencil", without("other", "load", "x"), "wrong"),
    "zero_outside_of_a_sum": (
        FEW_GRADIENT, "wgrad_stencil", without("other", "load", "dy"), "wrong",
    ),
    "mask_of_a_gradient": (
        FEW_GRADIENT, "wgrad_stencil", without("mask", "load", "dy"), "load .* dy_ptr",
    ),
    "halo": (FEW, "fold", up_to_and_including("EXTENT"), "wrong|load .* x_ptr"),
    "halo_of_a_product": (DENSE, "is_inside", up_to_and_including("EXTENT"), "x_ptr"),
    "mask_of_a_product": (
        DENSE, "fprop_gemm", without("mask", "store", "outputs"), "store .* y_ptr",
    ),
    "mask_of_rows_of_a_gradient": (
        WINDOW_GRADIENT, "wgrad_banded", without("mask", "load", "dy_base"), "load .* dy_ptr",
    ),
    "mask_of_rows_of_an_image": (
        WINDOW_GRADIENT, "wgrad_banded", without("mask", "load", "x_base"), "load .* x_ptr",
    ),
    "mask_of_taps": (
        WINDOW_GRADIENT, "wgrad_banded", without("mask", "store", "dw_base"), "store .* dw_ptr",
    ),
    "registers_of_a_product": (
        BOXES_GRADIENT, "finish_products", without_condition("wgmma"), "a wgmma in flight reads",
    ),
    "mask_of_an_image_copied": (
        TO_PATCHES, "copy_patches", without("mask", "load", "pixels"), "load .* x_ptr",
    ),
    "mask_of_patches": (
        TO_PATCHES, "copy_patches", without("mask", "store", "channels"), "store .* z_ptr",
    ),
    "mask_of_patches_read": (
        WITH_A_REST, "copy_patches", without("mask", "load", "channels"), "load .* z_ptr",
    ),
    "mask_of_an_image_stored": (
        FROM_PATCHES, "copy_patches", without("mask", "store", "pixels"), "store .* x_ptr",
    ),
    "zero_of_the_rest": (
        WITH_A_REST, "copy_patches", without("other", "load", "channels"), "wrong",
    ),
    "mask_of_a_shifted_image": (
        shifted_gradient, "load_shifted", without("mask", "load", "side_by_side"),
        "wrong|load .* dy_ptr|shifted_ptr",
    ),
    "halo_of_a_shifted_image": (
        shifted_gradient, "is_inside", up_to_and_including("EXTENT"), "wrong|shifted_ptr",
    ),
    "mask_of_shifted_sums": (
        shifted_gradient, "wgrad_shifted", without("mask", "store", "side_by_side_singly"),
        "store .* dw_ptr",
    ),
    "mask_of_sums_of_planes": (
        planes_gradient, "wgrad_planes", without("mask", "store", "first"), "store .* dw_ptr",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "function", "change", "noticed"), PLANTED.values(), ids=PLANTED)
def test_a_fault_in_a_kernel_is_noticed(made, function, change, noticed):
    with simulated(getattr(made, "arch", 90)):
        with planted(function, change):
            assert re.search(noticed, outcome(made), re.DOTALL)
        assert outcome(made) == "right"


@pytest.mark.parametrize(
    ("call", "name"),
    [(FEW, "x_stride"), (FEW, "weight_stride"), (IMAGE, "y_stride"), (DENSE, "x_stride")],
    ids=["image", "weight", "result", "product"],
)
def test_a_wrong_stride_is_noticed(call, name):
    """A stride that is one too large: between rows of an image, or between filters of a weight."""

    def change(arguments):
        keys = [key for key in arguments if key.startswith(name) and arguments[key] > 1]
        return arguments | {keys[-1]: arguments[keys[-1]] + 1}

    with simulated(call.arch) as device:
        device.change_arguments = change
        assert outcome(call) != "right"


def test_a_barrier_removed_from_a_copy_of_patches_is_noticed():
    with simulated(90) as device:
        device.change = lambda ptx: re.sub(r"bar\.sync\s+0;", "", ptx)
        assert "race" in outcome(TO_PATCHES)


#: (call, pattern in its PTX, pattern of the outcome). Each occurrence is removed alone.
REMOVED = {
    "barrier": (DENSE, r"bar\.sync\s+0;", "race"),
    "older_barrier": (OLDER, r"bar\.sync\s+0;", "race"),
    "wait_for_copies": (OLDER, r"cp\.async\.wait_group\s+\d;", "on its way|never written"),
    "wait_for_products": (DENSE, r"wgmma\.wait_group\.sync\.aligned \d;", "wgmma in flight"),
    "fence": (DENSE, r"fence\.proxy\.async\.shared::cta;", "fence.proxy.async"),
    "barrier_of_boxes": (BOXES, r"bar\.sync\s+0;", "race|wgmma in flight|no mbarrier"),
}


@pytest.mark.parametrize(("call", "pattern", "noticed"), REMOVED.values(), ids=REMOVED)
def test_an_instruction_removed_from_ptx_is_noticed(call, pattern, noticed):
    """At least one removal, or that of all, is noticed: some barriers are superfluous."""
    places, outcomes = [], []

    def change(ptx):
        if f".entry {call.kernel}(" not in ptx:  # a copy before it, or partial sums after it
            return ptx
        places[:] = [found.span() for found in re.finditer(pattern, ptx)]
        if len(outcomes) == len(places):
            return re.sub(pattern, "", ptx)
        start, end = places[len(outcomes)]
        return ptx[:start] + ptx[end:]

    with simulated(call.arch) as device:
        assert outcome(call) == "right"
        device.change = change
        while len(outcomes) <= len(places):
            outcomes.append(outcome(call))
            if re.search(noticed, outcomes[-1]):
                return
    pytest.fail(f"not noticed: {outcomes}")
