"""Random geometries, and random plans, give the right result."""

import pytest
import torch
from cases import in_format, tensors, whole_numbers
from closeness import OPS, check_exact, operands, run
from plans import launched

from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.tma import ARCHITECTURES

hypothesis = pytest.importorskip("hypothesis")

from drawn import FAMILIES, calls, geometries  # noqa: E402 - needs hypothesis

# Taken by name, because torch.testing._internal, which other tests import, loads another profile.
PROFILE = hypothesis.settings.get_profile("tricorr")


@hypothesis.settings(PROFILE, max_examples=8)
@hypothesis.given(geometry=geometries())
@pytest.mark.parametrize("op", OPS)
def test_random_geometries_are_right(backend, op, geometry):
    # Whole numbers: results are exact.
    args = operands(op, *tensors(geometry, torch.float32, backend.device, whole_numbers))
    check_exact(op, args, geometry, run(op, args, geometry))


@hypothesis.settings(PROFILE, max_examples=5)
@hypothesis.given(data=hypothesis.strategies.data())
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_plans_are_right(kernel_backend, family, op, data):
    from tricorr.ops.launch.layout import device_of

    interpreted = kernel_backend.name == "interpreter"
    here = torch.empty(0, device=kernel_backend.device)
    device = DEVICES["h200"] if interpreted else device_of(here)
    if family == "tma" and device.arch not in ARCHITECTURES:
        pytest.skip("this GPU has no tensor maps")
    # On a GPU, only the planner's tiles: those of the tuner's search may not fit its memory.
    call = data.draw(calls(op.removesuffix("_bias"), family, device, search=interpreted))
    g = call.geometry
    made = tensors(g, call.dtype, kernel_backend.device, whole_numbers)
    args = operands(op, *(in_format(made) if call.channels_last else made))
    check_exact(op, args, g, launched(op, args, g, call.plan))
