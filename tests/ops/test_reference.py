"""The NumPy reference agrees with numbers by hand, PyTorch and the adjoint identities."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, tensors, whole_numbers

from tricorr.ops import geometry_of, reference

# PyTorch would make a padded copy of 16 GiB.
TORCH_CASES = [name for name in CASES if name != "huge_padding_between_windows"]


def torch_fprop(x, weight, bias, geometry):
    """The forward operator in terms of F.pad and F.conv2d, for autograd to differentiate."""
    g = geometry
    if g.flip:
        weight = weight.flip(-2, -1)
    mode = "constant" if g.padding_mode == "zeros" else g.padding_mode
    x = F.pad(x, (*g.padding[1], *g.padding[0]), mode=mode)
    steps = (g.given_stride, 0, g.given_dilation)
    if not g.per_sample:
        return F.conv2d(x, weight, bias, *steps, g.groups)
    samples = x.reshape(1, g.N * g.C, *x.shape[-2:])
    y = F.conv2d(samples, weight.flatten(0, 1), bias.repeat(g.N), *steps, g.groups * g.N)
    return y.reshape(g.y_shape)


def test_reference_gives_the_textbooks_numbers():
    geometry = CASES["textbook"]
    x = np.arange(9.0).reshape(1, 1, 3, 3)
    weight = np.arange(4.0).reshape(1, 1, 2, 2)
    y = reference.fprop(x, weight, None, geometry)
    assert y.tolist() == [[[[19, 25], [37, 43]]]]
    assert reference.fprop(x, weight, [0.5], geometry).tolist() == [[[[19.5, 25.5], [37.5, 43.5]]]]
    dy = np.array([[[[1.0, 0], [0, 2]]]])
    assert reference.dgrad(dy, weight, geometry).tolist() == [[[[0, 1, 0], [2, 3, 2], [0, 4, 6]]]]
    assert reference.wgrad(x, dy, geometry).tolist() == [[[[8, 11], [17, 20]]]]
    assert reference.bias_grad(dy).tolist() == [3]


def test_reference_finds_the_textbooks_edges():
    x = np.ones((1, 1, 6, 8))
    x[..., 2:6] = 0
    y = reference.fprop(x, [[[[1.0, -1.0]]]], None, CASES["edge_detector"])
    assert y.tolist() == [[[[0, 1, 0, 0, 0, -1, 0]] * 6]]


def test_padding_stride_and_dilation_agree_with_numbers_by_hand():
    geometry = geometry_of((1, 1, 1, 5), (1, 1, 1, 2), (1, 2), ((0, 0), (1, 2)), (1, 3))
    # x padded: 0 1 2 3 4 5 0 0; windows read elements (0, 3), (2, 5), (4, 7) of it.
    y = reference.fprop([[[[1, 2, 3, 4, 5]]]], [[[[10, 1]]]], None, geometry)
    assert y.tolist() == [[[[3, 25, 40]]]]
    dx = reference.dgrad([[[[1, 2, 3]]]], [[[[10, 1]]]], geometry)
    assert dx.tolist() == [[[[0, 20, 1, 30, 2]]]]


def test_flip_reverses_the_window():
    geometry = geometry_of((1, 1, 3, 3), (1, 1, 2, 2), flip=True)
    x = np.arange(9.0).reshape(1, 1, 3, 3)
    y = reference.fprop(x, [[[[3.0, 2.0], [1.0, 0.0]]]], None, geometry)
    assert y.tolist() == [[[[19, 25], [37, 43]]]]


def test_groups_and_samples_use_only_their_own_filters():
    x = np.arange(1.0, 5).reshape(2, 2, 1, 1)
    grouped = geometry_of((2, 2, 1, 1), (2, 1, 1, 1), groups=2)
    y = reference.fprop(x, np.reshape([10.0, 100.0], (2, 1, 1, 1)), None, grouped)
    assert y.ravel().tolist() == [10, 200, 30, 400]
    per_sample = geometry_of((2, 2, 1, 1), (2, 1, 2, 1, 1))
    bank = np.reshape([1.0, 10.0, 100.0, 1000.0], per_sample.weight_shape)
    assert reference.fprop(x, bank, None, per_sample).ravel().tolist() == [21, 4300]


def test_padding_is_read_but_has_no_gradient():
    geometry = geometry_of((1, 1, 1, 1), (1, 1, 1, 3), padding=((0, 0), (1, 1)))
    one, inf = [[[[1.0]]]], float("inf")
    assert np.isnan(reference.fprop(one, [[[[inf, 1, 1]]]], None, geometry)).all()
    dw = reference.wgrad(one, [[[[inf]]]], geometry)
    assert np.isnan(dw[..., [0, 2]]).all()
    assert dw[..., 1] == inf
    assert reference.dgrad(one, [[[[inf, 1, 1]]]], geometry).tolist() == one


@pytest.mark.parametrize("name", TORCH_CASES)
def test_agrees_with_pytorch_and_its_autograd(name):
    geometry = CASES[name]
    x, weight, bias, dy = tensors(geometry, torch.float64, make=whole_numbers)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    if geometry.macs == 0:
        y = torch.einsum("k,nkpq->nkpq", bias, torch.ones(geometry.y_shape).double())
        dx, dw, dbias = torch.zeros_like(x), torch.zeros_like(weight), dy.sum((0, 2, 3))
    else:
        y = torch_fprop(*leaves, geometry)
        dx, dw, dbias = torch.autograd.grad(y, leaves, dy)
    x, weight, bias, y = (t.detach().numpy() for t in (x, weight, bias, y))
    np.testing.assert_array_equal(reference.fprop(x, weight, bias, geometry), y)
    np.testing.assert_array_equal(reference.dgrad(dy, weight, geometry), dx)
    np.testing.assert_array_equal(reference.wgrad(x, dy, geometry), dw)
    np.testing.assert_array_equal(reference.bias_grad(dy), dbias)


@pytest.mark.parametrize("name", CASES)
def test_operators_are_adjoint(name):
    geometry = CASES[name]
    x, weight, _, dy = (t.numpy() for t in tensors(geometry, torch.float64, make=whole_numbers))
    forward = np.vdot(reference.fprop(x, weight, None, geometry), dy)
    assert np.vdot(x, reference.dgrad(dy, weight, geometry)) == forward
    assert np.vdot(weight, reference.wgrad(x, dy, geometry)) == forward


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_any_dtype_is_summed_in_float64(dtype):
    x = np.full((1, 1, 1, 3), 200).astype(dtype)
    geometry = geometry_of((1, 1, 1, 3), (1, 1, 1, 3))
    y = reference.fprop(x, np.full((1, 1, 1, 3), 200, np.float16), None, geometry)
    assert y.dtype == np.float64
    assert y.item() == 120000
