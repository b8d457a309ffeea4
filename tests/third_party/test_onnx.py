"""ONNX's backend tests of Conv and ConvTranspose, which are part of the onnx package.

Some are Python code that calls `expect`, others are recorded models with inputs and outputs.
"""

from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from derivatives import assert_same_derivatives

import tricorr

onnx = pytest.importorskip("onnx", reason="the tests come with onnx")

#: Above this many multiply-accumulates the interpreter runs a corner of one image.
MANY_MACS = 2_000_000


@dataclass(frozen=True)
class Recorded:
    """One node with its attributes, its inputs and the output that ONNX expects."""

    name: str
    op: str
    attributes: dict[str, Any]
    inputs: tuple[np.ndarray, ...]
    output: np.ndarray


def recorded(name, node, inputs, outputs):
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return Recorded(name, node.op_type, attributes, tuple(inputs), outputs[0])


def cases_in_code():
    """Cases of onnx.backend.test.case.node: each call of `expect` is one case."""
    found = []

    def expect(node, inputs, outputs, name, **_):
        found.append(recorded(name, node, inputs, outputs))

    for module_name, class_name in (("conv", "Conv"), ("convtranspose", "ConvTranspose")):
        module = import_module(f"onnx.backend.test.case.node.{module_name}")
        exports = vars(getattr(module, class_name))
        with patch.object(module, "expect", expect):
            for name in exports:
                if name.startswith("export"):
                    getattr(getattr(module, class_name), name)()
    return found


def cases_in_files():
    """Models that PyTorch exported, with data."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    found = []
    for directory in sorted(data.glob("pytorch-*/*[cC]onv*")):
        model = onnx.load(directory / "model.onnx")
        (node,) = model.graph.node
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        for kind, names in (("input", model.graph.input), ("output", model.graph.output)):
            given = [value.name for value in names if value.name not in tensors]
            for index, name in enumerate(given):
                path = directory / "test_data_set_0" / f"{kind}_{index}.pb"
                tensors[name] = onnx.numpy_helper.to_array(onnx.load_tensor(path))
        inputs = [tensors[name] for name in node.input]
        found.append(recorded(directory.name, node, inputs, [tensors[node.output[0]]]))
    return found


CASES = {case.name: case for case in (*cases_in_code(), *cases_in_files())}
#: ONNX's Conv has any number of dimensions, tricorr's has two.
CASES_2D = {name: case for name, case in CASES.items() if case.inputs[0].ndim == 4}


def split(total, at_end):
    """Split padding in two parts, with the odd element at the end or at the start."""
    return (total // 2, total - total // 2) if at_end else (total - total // 2, total // 2)


def arguments(case):
    """ONNX's attributes as tricorr's keyword arguments."""
    given = dict(case.attributes)
    image, window = case.inputs[0].shape[2:], case.inputs[1].shape[2:]
    assert tuple(given.pop("kernel_shape", window)) == window
    stride, dilation = given.pop("strides", [1, 1]), given.pop("dilations", [1, 1])
    top, left, bottom, right = given.pop("pads", [0, 0, 0, 0])
    auto_pad = given.pop("auto_pad", b"NOTSET").decode()
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
    common = {"stride": stride, "dilation": dilation, "groups": given.pop("group", 1)}
    at_end = auto_pad == "SAME_UPPER"
    padding = ((top, bottom), (left, right))

    if case.op == "Conv":
        assert not given
        if auto_pad.startswith("SAME"):
            outputs = [-(-i // s) for i, s in zip(image, stride, strict=True)]
            padding = tuple(
                split(max((o - 1) * s + r - i, 0), at_end)
                for o, s, r, i in zip(outputs, stride, reach, image, strict=True)
            )
        return {**common, "padding": padding}

    extra = given.pop("output_padding", [0, 0])
    size = given.pop("output_shape", None)
    assert not given
    if auto_pad.startswith("SAME"):
        size = [i * s for i, s in zip(image, stride, strict=True)]
    if size is not None:
        totals = [
            s * (i - 1) + e + r - o
            for s, i, e, r, o in zip(stride, image, extra, reach, size, strict=True)
        ]
        # An output larger than the windows reach has a border of zeros at the end.
        extra = [e + max(-total, 0) for e, total in zip(extra, totals, strict=True)]
        padding = tuple(split(max(total, 0), at_end) for total in totals)
    return {**common, "padding": padding, "output_padding": extra}


def theirs(case, padding, **given):
    """The same function in PyTorch, which has symmetric padding only."""
    (top, bottom), (left, right) = padding
    if case.op == "Conv":
        return lambda x, *rest: F.conv2d(F.pad(x, (left, right, top, bottom)), *rest, **given)

    def transposed(x, *rest):
        return F.pad(F.conv_transpose2d(x, *rest, **given), (-left, -right, -top, -bottom))

    # PyTorch adds output_padding before the border is cut, so the cut comes after.
    return transposed


def test_the_cases_of_onnx_are_found():
    counts = Counter(case.op for case in CASES_2D.values())
    assert counts["Conv"] >= 15
    assert counts["ConvTranspose"] >= 8


@pytest.mark.parametrize("name", CASES_2D)
def test_nodes_give_the_expected_output(backend, name):
    case = CASES_2D[name]
    given = arguments(case)
    operator = tricorr.corr2d if case.op == "Conv" else tricorr.corr_transpose2d

    def ours(*tensors):
        return operator(*tensors, **given, precision="ieee")

    tensors = [torch.from_numpy(np.array(array)).to(backend.device) for array in case.inputs]
    many = case.output.size * case.inputs[1][0].size > MANY_MACS and backend.name == "interpreter"
    expected = case.output
    if many:
        assert case.op == "Conv"
        assert (given["stride"], given["padding"]) == ([1, 1], ((0, 0), (0, 0)))
        tensors[0], expected = tensors[0][:1, :, :10, :10], expected[:1, :, :8, :8]
    # These are ONNX's own tolerances.
    np.testing.assert_allclose(ours(*tensors).cpu().numpy(), expected, rtol=1e-3, atol=1e-7)

    doubles = [t.double() for t in tensors]
    assert_same_derivatives(ours, theirs(case, **given), doubles, order=1)
