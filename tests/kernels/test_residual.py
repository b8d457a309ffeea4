"""Residuals: added to the unrounded sum before the activation, and differentiated."""

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, tensors, whole_numbers
from plans import with_tile
from test_epilogue import FORWARD_MODE, GEOMETRIES, SAME, THEIRS, half_a_unit
from torch.autograd import gradcheck, gradgradcheck

import tricorr
from tricorr.ops import geometry_of, reference
from tricorr.ops.plan.banded import BandedTile
from tricorr.ops.plan.tma import TmaTile

#: Families that the planner takes only for larger images in 16 bits: here their tiles are forced.
TILED = {
    "banded": (
        geometry_of((2, 2, 5, 19), (2, 1, 3, 6), padding=((1, 1), (2, 2)), groups=2),
        BandedTile(4, 4, 16, 256, 4, 1),
    ),
    "tma": (
        geometry_of((1, 16, 9, 5), (16, 16, 3, 3), padding=SAME),
        TmaTile(1, 8, 4, 32, 16, 4, 2),
    ),
}
FAMILIES = {name: (geometry, None) for name, geometry in GEOMETRIES.items()} | TILED
CASES = [(f, d) for f in FAMILIES for d in DTYPES if f not in TILED or d.itemsize == 2]
#: Functions that change the strides of a residual.
ORDERS = {
    "channels_last": lambda r: r.to(memory_format=torch.channels_last),
    "transposed": lambda r: r.transpose(0, 3).contiguous().transpose(0, 3),
    "gaps": lambda r: F.pad(r, (1, 2, 3, 1))[:, :, 3:-1, 1:-2],
    "one_pixel_for_all": lambda r: r[:1, :1, :1, :1].expand(r.shape),
}


def launched(family, dtype, device, activation, order=lambda r: r):
    """(y, z): a family's result for whole numbers, most too long for 16 bits; the exact sum."""
    from tricorr.ops.launch import entry as launch

    g, tile = FAMILIES[family]
    x, weight, bias, residual = tensors(g, dtype, device, whole_numbers)
    x, weight, bias, residual = x / 16, weight * 129 / 16, bias + 1 / 256, residual * 129 / 256
    if family == "tma":
        x = x.to(memory_format=torch.channels_last)
    plan = tile and with_tile("fprop", g, tile)
    residual = order(residual)
    y = launch.fprop(x, weight, bias, g, "ieee", activation, residual, plan)
    sums = reference.fprop(*(t.double().cpu().numpy() for t in (x, weight, bias)), g)
    return y, torch.from_numpy(sums).to(device) + residual.double()


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
def test_it_is_added_before_activation_and_rounding(kernel_backend, family, activation, dtype):
    y, z = launched(family, dtype, kernel_backend.device, activation)
    expected = THEIRS[activation](z)
    allowed = half_a_unit(expected, dtype)
    if activation == "silu":
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        allowed += 4 * torch.finfo(sums).eps * z.abs()
    assert y.dtype == dtype
    assert ((y.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_residual_may_have_any_strides(kernel_backend, family, order):
    dtype = torch.float16
    y, z = launched(family, dtype, kernel_backend.device, "relu", ORDERS[order])
    assert ((y.double() - z.relu()).abs() <= half_a_unit(z.relu(), dtype)).all()


@FORWARD_MODE
@pytest.mark.parametrize("activation", THEIRS)
def test_derivatives_equal_numerical_ones(backend, activation):
    g = geometry_of((1, 2, 3, 4), (2, 1, 2, 2), groups=2)
    leaves = [t.requires_grad_() for t in tensors(g, torch.float64, backend.device)]

    def function(x, weight, bias, residual=None):
        return tricorr.corr2d(x, weight, bias, groups=2, activation=activation, residual=residual)

    forward_mode = backend.name == "cpu"
    for given in (leaves, leaves[:3]):
        assert gradcheck(function, given, fast_mode=True, check_forward_ad=forward_mode)
        assert gradgradcheck(function, given, fast_mode=True)
    alone = leaves[3]
    x, weight, bias = (t.detach() for t in leaves[:3])
    assert gradcheck(lambda r: function(x, weight, bias, r), alone, check_forward_ad=forward_mode)


# Shapes of x, weight and residual for every form of the operands.
FORMS = {
    "bank": ((2, 2, 4, 5), (3, 2, 2, 2), (2, 3, 3, 4)),
    "bank_on_one_image": ((2, 4, 5), (3, 2, 2, 2), (3, 3, 4)),
    "per_sample": ((2, 2, 4, 5), (2, 3, 2, 2, 2), (2, 3, 3, 4)),
    "image": ((4, 5), (2, 2), (3, 4)),
    "planes": ((2, 3, 1, 4, 5), (2, 2), (2, 3, 1, 3, 4)),
    "empty_batch": ((0, 2, 4, 5), (3, 2, 2, 2), (0, 3, 3, 4)),
    "no_channels": ((2, 0, 4, 5), (3, 0, 2, 2), (2, 3, 3, 4)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_has_the_outputs_shape(backend, name):
    x, weight, residual = (torch.randn(shape, device=backend.device) for shape in FORMS[name])
    for function in (tricorr.corr2d, tricorr.convolve2d):
        y = function(x, weight, residual=residual, activation="relu6")
        torch.testing.assert_close(y, F.relu6(function(x, weight) + residual))


@pytest.mark.parametrize("form", ["channels_last", "evenly_spaced"])
def test_a_residual_of_planes_is_added_to_channels(backend, form):
    x = torch.randn(2, 3, 4, 5, device=backend.device)
    x = x.to(memory_format=torch.channels_last) if form == "channels_last" else x[:, :, :, ::2]
    weight = torch.randn(2, 2, device=backend.device)
    residual = torch.randn(*x.shape[:2], x.shape[2] - 1, x.shape[3] - 1, device=backend.device)
    y = tricorr.corr2d(x, weight, residual=residual)
    torch.testing.assert_close(y, tricorr.corr2d(x, weight) + residual)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_compiled_calls_equal_eager_ones(backend, activation):
    torch._dynamo.reset()
    leaves = [t.requires_grad_() for t in tensors(GEOMETRIES["stencil"], torch.float32)]

    def function(x, weight, bias, residual):
        return tricorr.corr2d(x, weight, bias, padding=1, activation=activation, residual=residual)

    y = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves)
    expected = function(*leaves)
    assert torch.equal(y, expected)
    dy = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(out, leaves, dy) for out in (y, expected))
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    "dims", [(0, None, 0), (None, None, 1), (None, 0, None), (0, 0, 2), (0, None, None)], ids=str
)
def test_vmap_is_a_loop(backend, dims):
    shapes = ((2, 2, 4, 5), (3, 2, 2, 2), (2, 3, 3, 4))
    batched = []
    for shape, dim in zip(shapes, dims, strict=True):
        whole = torch.randn(4, *shape, dtype=torch.float64)
        batched.append(whole[0] if dim is None else whole.movedim(0, dim))

    def function(x, weight, residual):
        return tricorr.corr2d(x, weight, residual=residual, activation="relu")

    found = torch.func.vmap(function, in_dims=dims)(*batched)
    for i in range(4):
        one = [t if dim is None else t.select(dim, i) for t, dim in zip(batched, dims, strict=True)]
        torch.testing.assert_close(found[i], function(*one))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_residual_block_equals_pytorchs(backend):
    """relu(conv(x) + shortcut), alone, under autocast, and with the layer's own call."""
    theirs, ours = (
        torch.nn.Conv2d(4, 4, 3, padding=1),
        tricorr.Conv2D(4, 4, 3, padding=1, activation="relu"),
    )
    ours.load_state_dict(theirs.state_dict())
    lazy = tricorr.LazyConv2D(4, 3, padding=1, activation="relu")
    x = torch.randn(2, 4, 5, 6)
    lazy(x, residual=x)
    lazy.load_state_dict(theirs.state_dict())
    expected = F.relu(theirs(x) + x)
    torch.testing.assert_close(ours(x, x), expected)
    torch.testing.assert_close(lazy(x, residual=x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(ours)(x, x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x, residual=x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.02)


X, K = torch.ones(1, 2, 3, 3), torch.ones(4, 2, 2, 2)


@pytest.mark.parametrize(
    ("residual", "error", "message"),
    [
        (torch.ones(1, 4, 3, 3), ValueError, r"shape \(1, 4, 2, 2\), got \(1, 4, 3, 3\)"),
        (torch.ones(4, 2, 2), ValueError, r"shape \(1, 4, 2, 2\), got \(4, 2, 2\)"),
        (torch.ones(1, 4, 1, 1), ValueError, r"shape \(1, 4, 2, 2\), got \(1, 4, 1, 1\)"),
        (torch.ones(1, 4, 2, 2).half(), TypeError, "weight and residual must have the same dtype"),
        (torch.ones(1, 4, 2, 2, device="meta"), TypeError, "must be on the same device"),
        (torch.ones(1, 4, 2, 2).to_sparse(), TypeError, "residual must be a dense"),
        (1.0, TypeError, "residual must be a torch.Tensor, got float"),
    ],
    ids=["larger", "image", "broadcast", "dtype", "device", "sparse", "number"],
)
def test_a_residual_that_cannot_be_added_is_refused(residual, error, message):
    with pytest.raises(error, match=message):
        tricorr.corr2d(X, K, residual=residual)
