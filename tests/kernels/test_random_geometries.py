"""Random geometries, and random plans, give the right result."""

import pytest
import torch
from cases import tensors, whole_numbers
from closeness import OPS, operands, run, truth

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
    expected = torch.from_numpy(truth(op, args, geometry)).float()
    assert torch.equal(run(op, args, geometry).cpu(), expected)


@hypothesis.settings(PROFILE, max_examples=5)
@hypothesis.given(data=hypothesis.strategies.data())
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_plans_are_right(kernel_backend, family, op, data):
    from tricorr.ops.launch import entry as launch
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
    if call.channels_last:
        made = [
            t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made
        ]
    args = operands(op, *made)
    actual = run(op, args, g, launch, precision=call.precision, plan=call.plan)
    expected = torch.from_numpy(truth(op, args, g)).to(call.dtype)
    assert torch.equal(actual.cpu(), expected)
