"""Copies of operands: every element in its place, whatever the strides."""

import pytest
import torch

from tricorr.ops import geometry_of

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def _views(image):
    """The image as it is, and views that are contiguous along neither axis or one of them."""
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
    from tricorr.ops.launch.copies import copied

    image = torch.randn(shape).to(dtype).to(kernel_backend.device)
    for name, view in _views(image.to(memory_format=FORMATS[format])):
        copy, (call,) = copied(view[None])
        call.run(view.device)
        assert torch.equal(copy, view), name
        assert copy.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("groups", [1, 3])
def test_filters_become_the_innermost_axis(kernel_backend, groups):
    from tricorr.ops.launch.copies import copied, filters_innermost

    weight = torch.randn(12, 5, 2, 3, device=kernel_backend.device)
    copy, (call,) = copied(filters_innermost(weight, groups))
    call.run(weight.device)
    for group, part in enumerate(weight.chunk(groups)):
        assert torch.equal(copy[5 * group : 5 * group + 5], part.transpose(0, 1))


def test_no_copy_of_a_weight_outlives_its_call(kernel_backend):
    """An update of the weight in place must not be missed, by a prepared call neither."""
    from tricorr.ops.launch import arguments as launch

    geometry = geometry_of((1, 16, 5, 6), (16, 16, 3, 3))
    x = torch.randn(geometry.x_shape, device=kernel_backend.device)
    weight = torch.randn(geometry.weight_shape, device=kernel_backend.device)
    for _ in range(3):
        y = launch.fprop(x, weight, None, geometry)
        weight.data.mul_(2)  # what autograd's version counter does not see
        assert torch.equal(launch.fprop(x, weight, None, geometry), 2 * y)
