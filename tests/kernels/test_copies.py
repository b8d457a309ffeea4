"""Copies of operands: every element in its place, for any strides."""

import pytest
import torch
from cases import FORMATS, SAME, in_format, tensors
from closeness import check, operands
from plans import H200, launched

from tricorr.ops import geometry_of
from tricorr.ops.launch.formats import empty_in_format
from tricorr.ops.launch.layout import boxes_of, layout_of
from tricorr.ops.plan import choose
from tricorr.ops.plan.boxes import whole_box
from tricorr.ops.plan.problem import Problem
from tricorr.ops.plan.tma import TmaTile, is_legal, most_taps
from tricorr.ops.plan.tma_copies import may_copy


def _views(image):
    """The image, and views that are contiguous along one axis or none."""
    yield "dense", image
    yield "cropped", image[..., 1:, 2:]
    yield "strided", image[:, :, ::2, ::3]
    yield "every other channel", image[:, ::2]
    yield "one row", image[:, :, :1]
    yield "expanded", image[:1, :, :1, :1].expand(2, -1, 5, 3)


@pytest.mark.parametrize("shape", [(2, 70, 9, 11), (3, 16, 8, 8), (1, 3, 1, 130)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_copy_has_its_channels_innermost(kernel_backend, shape, format, dtype):
    from tricorr.ops.launch.copies import channels_innermost, copy_calls

    image = torch.randn(shape).to(dtype).to(kernel_backend.device)
    for name, view in _views(image.to(memory_format=FORMATS[format])):
        copy = channels_innermost(view[None])
        copy_calls(copy)[0].run(view.device)
        assert torch.equal(copy.out, view), name
        assert copy.out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("groups", [1, 3])
def test_filters_become_the_innermost_axis(kernel_backend, groups):
    from tricorr.ops.launch.copies import channels_innermost, copy_calls, filters_innermost

    weight = torch.randn(12, 5, 2, 3, device=kernel_backend.device)
    copy = channels_innermost(filters_innermost(weight, groups))
    copy_calls(copy)[0].run(weight.device)
    for group, part in enumerate(weight.chunk(groups)):
        assert torch.equal(copy.out[5 * group : 5 * group + 5], part.transpose(0, 1))


def test_one_launch_makes_two_copies_and_pads_with_zeros(kernel_backend):
    from tricorr.ops.launch.copies import channels_innermost, copy_calls, in_boxes

    device = kernel_backend.device
    weight = torch.randn(5, 19, 3, 3, device=device).half()
    image = torch.randn(2, 3, 4, 7, device=device)
    filters = channels_innermost(weight[None], 32)
    planes, copy = in_boxes(image, "NCHW")
    (call,) = copy_calls(filters, copy)
    call.run(weight.device)
    assert torch.equal(filters.out[:, :19], weight)
    assert not filters.out[:, 19:].any()
    assert torch.equal(planes, image)
    assert boxes_of(planes) == "NCHW"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(2, 70, 5, 11), (1, 3, 7, 7), (2, 2, 1, 5)], ids=str)
def test_rows_of_a_copy_are_filled_up_with_zeros(kernel_backend, shape, format):
    from tricorr.ops.launch.copies import Copy, copy_calls

    image = torch.randn(shape, device=kernel_backend.device).half()
    for name, view in _views(image.to(memory_format=FORMATS[format])):
        n, c, h, w = view.shape
        out = torch.empty(n, c, h, -(-w // 8) * 8 + 8, dtype=view.dtype, device=view.device)
        copy_calls(Copy(view[None], out, out))[0].run(view.device)
        assert torch.equal(out[..., :w], view), name
        assert not out[..., w:].any(), name


#: Images that no descriptor can describe as NHWC: planes, or an odd number of channels. Boxes of 16
#: pixels divide the planes of y, as a weight gradient requires.
GEOMETRIES = {
    "rows_of_28_bytes": geometry_of((2, 32, 8, 14), (24, 32, 3, 3), padding=SAME),
    "odd_channels": geometry_of((2, 19, 8, 10), (35, 19, 3, 3), padding=SAME),
    "step_overhangs": geometry_of((2, 40, 7, 6), (24, 40, 2, 3), padding=SAME, flip=True),
    "strided": geometry_of((2, 18, 15, 10), (33, 18, 3, 2), (2, 2), SAME),
    "groups": geometry_of((2, 32, 5, 7), (48, 16, 2, 2), padding=SAME, groups=2),
    "one_column": geometry_of((2, 20, 8, 10), (24, 20, 3, 1), padding=((1, 1), (0, 0))),
    "pointwise": geometry_of((3, 17, 5, 7), (21, 17, 1, 1)),
}
KINDS = {
    "half": (torch.float16, "ieee"),
    "brain": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
}


def _calls():
    for turn, name in enumerate(GEOMETRIES):
        for op in ("fprop_bias", "dgrad", "wgrad"):
            for i, kind in enumerate(KINDS):
                geometry = GEOMETRIES[name]
                needs = geometry.group_K if op == "dgrad" else geometry.group_C
                if geometry.groups > 1 and op != "wgrad" and needs % 16:
                    continue  # a step of 16 channels would reach into the next group
                if (op, kind) == ("wgrad", "tf32") and geometry.S > 1:
                    continue  # boxes of planes start at multiples of 16 bytes of a row
                if kind == "brain" and name != "odd_channels":
                    continue  # its elements are as wide as those of half
                yield op, name, kind, ("NCHW", "NHWC")[(turn + i) % 2]


@pytest.mark.parametrize(("op", "name", "kind", "format"), list(_calls()))
def test_kernels_read_copies_through_descriptors(kernel_backend, op, name, kind, format):
    geometry, (dtype, precision) = GEOMETRIES[name], KINDS[kind]
    args = in_format(operands(op, *tensors(geometry, dtype, kernel_backend.device)), format)
    read = args[:2] if op == "wgrad" else args[:1]
    layout = layout_of(geometry, *_as_called(op, args, geometry))
    problem = Problem(op.removesuffix("_bias"), geometry, dtype, precision, layout, H200)
    block = 32 if dtype.itemsize == 2 else 16
    if geometry.groups > 1:
        block = 16
    if op == "wgrad":
        taps = min(3, most_taps(geometry))
        box = (1, 1, 16)
        if precision == "ieee" and not geometry.is_point:
            box = whole_box((geometry.N, geometry.P, geometry.Q), 16)
        tile = TmaTile(*box, 16, 32, 4, 2, taps, copied=True)
    else:
        tile = TmaTile(2, 2, 8, 16, block, 4, 2, copied=True)
    assert is_legal(problem, tile) == may_copy(problem)
    if not may_copy(problem):
        assert all(boxes_of(image) for image in read)
        return
    plan = choose.plan_with_tile(problem, tile, splits=3)
    actual = launched(op, args, geometry, plan)
    check(op, args, geometry, actual=actual, precision=precision)
    if op != "wgrad":
        assert actual.is_contiguous(memory_format=FORMATS[format])


def _as_called(op, args, geometry):
    """x, weight and y of the call; for missing ones, empty tensors with the same strides."""

    def like(shape, given):
        return empty_in_format(shape, given.dtype, like=given)

    if op == "wgrad":
        x, dy = args[:2]
        return x, x.new_empty(geometry.weight_shape), dy
    if op == "dgrad":
        return like(geometry.x_shape, args[0]), args[1], args[0]
    return args[0], args[1], like(geometry.y_shape, args[0])
