"""Activations: applied to the unrounded sum, and differentiated."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, tensors, whole_numbers

import tricorr
from tricorr import ops
from tricorr.ops import geometry_of

THEIRS = {"none": lambda z: z, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
ACTIVE = [name for name in THEIRS if name != "none"]
SAME = ((1, 1), (1, 1))
#: One geometry for every kernel family.
GEOMETRIES = {
    "gemm": geometry_of((2, 18, 3, 4), (16, 18, 2, 2)),
    "stencil": geometry_of((2, 3, 5, 4), (4, 3, 3, 3), padding=SAME),
    "rows": geometry_of((1, 1, 9, 40), (1, 1, 3, 3), padding=SAME),
}


def half_a_unit(expected, dtype):
    """The largest error of rounding to `dtype`."""
    info = torch.finfo(dtype)
    return expected.abs().clamp_min(info.tiny).log2().floor().exp2() * info.eps / 2


def _sums():
    """Every family with every activation; half of the dtypes of each in turns, the others slow."""
    for turn, (family, activation) in enumerate(itertools.product(GEOMETRIES, THEIRS)):
        for i, dtype in enumerate(DTYPES):
            marks = pytest.mark.slow if (turn + i) % 2 else ()
            yield pytest.param(family, activation, dtype, marks=marks)


@pytest.mark.parametrize(("family", "activation", "dtype"), list(_sums()), ids=str)
def test_the_sum_is_activated_and_rounded_once(kernel_backend, family, activation, dtype):
    g = GEOMETRIES[family]
    x, weight, bias, _ = tensors(g, dtype, kernel_backend.device, whole_numbers)
    # Sums are whole numbers, most too long for 16 bits: rounding before the activation would show.
    weight, bias = weight * 129, bias * 129 + 1
    z = ops.fprop(x.double(), weight.double(), bias.double(), g) / 256
    y = ops.fprop(x / 16, weight / 16, bias / 256, g, activation=activation)
    expected = THEIRS[activation](z)
    assert y.dtype == dtype
    allowed = half_a_unit(expected, dtype)
    allowed += error_of(activation, z, dtype, allowed)
    assert ((y.double() - expected).abs() <= allowed).all()


def error_of(activation, z, dtype, half):
    """The error before the rounding, see kernels/epilogue.py; `half` is that of the rounding."""
    if activation not in ("gelu", "silu"):
        return 0 * half
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    allowed = {"gelu": 2, "silu": 3}[activation] * torch.finfo(sums).eps * z.abs()
    # In 16 bits gelu is approximated with an error of a tenth of half a unit of float16.
    short = dtype.itemsize == 2 and activation == "gelu"
    return allowed + short * 0.1 * half * (0.125 if dtype == torch.bfloat16 else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations_are_right_for_every_number_of_16_bits_and_a_grid_of_others(
    kernel_backend, activation, dtype
):
    if dtype.itemsize == 2:
        z = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        z = torch.where(z.isnan(), math.nan, z)  # memory that nothing wrote holds another nan
    else:  # a grid, denser towards 0, and what lies beyond it
        z = torch.linspace(-16, 16, 2**13, dtype=torch.float64)
        z = torch.cat([z, z**3 / 2e4, z**9]).to(dtype)
    z = z.reshape(1, -1).to(kernel_backend.device)
    y = tricorr.corr2d(z, torch.ones(1, 1, dtype=dtype, device=z.device), activation=activation)
    z = z.double()
    if activation == "gelu":  # by erfc: 1 + erf has no digits left far below 0
        expected = z * torch.special.erfc(z * -math.sqrt(0.5)) / 2
    else:
        expected = z * torch.sigmoid(z)
    finite = z.isfinite()
    assert torch.equal(y.isfinite(), expected.to(dtype).isfinite())
    half = half_a_unit(expected, dtype)[finite]
    allowed = half + error_of(activation, z[finite], dtype, half)
    assert ((y.double() - expected)[finite].abs() <= allowed).all()


@pytest.mark.parametrize("activation", ACTIVE)
def test_nan_and_infinity_are_activated_as_in_pytorch(kernel_backend, activation):
    x = torch.tensor([[math.nan, math.inf, -math.inf, 0.0, -0.0, 200.0, -200.0]])
    x = x.to(kernel_backend.device)
    y = tricorr.corr2d(x, torch.ones(1, 1, device=kernel_backend.device), activation=activation)
    # In double: PyTorch 2.13's vectorised float32 gelu makes nan of infinity on CPU.
    expected = THEIRS[activation](x.double()).float()
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_layers_take_an_activation_and_keep_their_state_dict(backend):
    plain, active = torch.nn.Conv2d(2, 3, 3), tricorr.Conv2D(2, 3, 3, activation="relu6")
    active.load_state_dict(plain.state_dict())
    lazy = tricorr.LazyConv2D(3, 3, activation="relu6")
    image = torch.randn(1, 2, 5, 5) * 5
    lazy(image)
    lazy.load_state_dict(plain.state_dict())
    assert torch.equal(active(image), lazy(image))
    torch.testing.assert_close(active(image), F.relu6(plain(image)))
    assert "activation=relu6" in repr(active)
    assert "activation=relu6" in repr(lazy)
    assert "activation" not in repr(tricorr.Conv2D(2, 3, 3))
    strict = tricorr.convolve2d(image, plain.weight, activation="gelu")
    torch.testing.assert_close(strict, F.gelu(F.conv2d(image, plain.weight.flip(-2, -1))))


def test_an_unknown_activation_is_refused():
    message = "activation must be 'none', 'relu', 'relu6', 'gelu', 'silu' or None, got 'tanh'"
    with pytest.raises(tricorr.ArgumentError, match=message):
        tricorr.corr2d(torch.ones(3, 3), torch.ones(2, 2), activation="tanh")
    with pytest.raises(ValueError, match=message):
        tricorr.Conv2D(1, 1, 1, activation="tanh")
