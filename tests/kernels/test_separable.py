"""Separable windows in one pass: against float64, in every type, format, padding mode and tile."""

import dataclasses

import pytest
import torch
from closeness import assert_close_to_reference, to_numpy

from tricorr import filters
from tricorr.autograd import separable as differentiable
from tricorr.filters import gaussian_window
from tricorr.ops import geometry_of
from tricorr.ops.plan import separable as planned
from tricorr.ops.plan.device import DEVICES
from tricorr.ops.plan.problem import Layout, Problem

MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture
def in_one_pass(monkeypatch):
    """One pass wherever there is a plan of one; the plans are collected."""
    from tricorr.ops.launch.prepared import forget_prepared

    plans = []

    def plan(problem):
        plans.append(planned.plan(problem))
        return plans[-1]

    forget_prepared()
    monkeypatch.setattr(planned, "faster_plan", plan)
    yield plans
    forget_prepared()


def image(shape, dtype=torch.float32, device="cpu"):
    if dtype == torch.uint8:
        return torch.randint(256, shape, dtype=dtype, device=device)
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def blurred(x, down, across, mode, dtype):
    return differentiable.separable(x, down, across, mode, dtype)


def expected(x, down, across, mode):
    """float64, with the windows as the kernel takes them: in float32, float64 for float64."""
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    down, across = (w.to(exact).double().cpu() for w in (down, across))
    R, S = down.shape[-1], across.shape[-1]
    sides = ((S - 1) // 2, S // 2, (R - 1) // 2, R // 2)
    padded = torch.nn.functional.pad(
        x.double().cpu(), sides, mode="constant" if mode == "zeros" else mode
    )
    windows = padded.unfold(2, R, 1).unfold(3, S, 1)
    return torch.einsum("nchwrs,nr,ns->nchw", windows, down.view(-1, R).expand(len(x), R),
                        across.view(-1, S).expand(len(x), S))  # fmt: skip


def check(x, down, across, mode, actual):
    dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
    assert actual.dtype == dtype
    truth = to_numpy(expected(x, down, across, mode))
    sizes = to_numpy(expected(x.abs(), down, across, mode))
    # Two sums of R and of S products: the error of each is bounded by its number of terms.
    assert_close_to_reference(actual, truth, sizes, down.shape[-1] + across.shape[-1])


WINDOWS = gaussian_window(1.3, 4), gaussian_window(0.9, 5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1, 5, 72), (1, 2, 7, 11)], ids=str)
def test_every_padding_mode(kernel_backend, in_one_pass, shape, mode):
    x = image(shape, device=kernel_backend.device)
    check(x, *WINDOWS, mode, blurred(x, *WINDOWS, mode, x.dtype))
    vectors = shape[3] % 4 == 0
    assert (in_one_pass[0].tile.X_ALIGN > 1) == vectors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(kernel_backend, in_one_pass, dtype):
    x = image((1, 1, 3, 48), dtype, kernel_backend.device)
    of_y = torch.float32 if dtype == torch.uint8 else dtype
    check(x, *WINDOWS, "reflect", blurred(x, *WINDOWS, "reflect", of_y))


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((1, 1, 1, 13), (3, 3)),
        ((1, 1, 13, 1), (3, 3)),
        ((1, 1, 1, 1), (5, 4)),
        ((1, 1, 3, 4), (9, 11)),
        ((1, 1, 6, 8), (1, 7)),
        ((1, 1, 6, 8), (7, 1)),
    ],
    ids=["one_row", "one_column", "one_pixel", "large_window", "row", "column"],
)
def test_images_smaller_than_the_window(kernel_backend, in_one_pass, shape, window):
    x = image(shape, device=kernel_backend.device)
    windows = [torch.rand(size, dtype=torch.float64) for size in window]
    check(x, *windows, "zeros", blurred(x, *windows, "zeros", x.dtype))
    assert in_one_pass[0] is not None


def test_any_strides(kernel_backend, in_one_pass):
    x = image((2, 9, 4, 10), device=kernel_backend.device)
    views = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "off_alignment": x[..., 1:],
        "transposed": x.transpose(2, 3),
        "expanded": x[:, :1].expand(2, 3, 4, 10),
    }
    for name, view in views.items():
        y = blurred(view, *WINDOWS, "zeros", x.dtype)
        check(view, *WINDOWS, "zeros", y)
        last = name == "channels_last"
        assert y.is_contiguous(memory_format=torch.channels_last) == last, name


def test_a_window_for_each_sample(kernel_backend, in_one_pass):
    x = image((2, 2, 5, 8), device=kernel_backend.device)
    shared = gaussian_window(0.8, 5), torch.ones(3).double()  # its launch is prepared
    check(x, *shared, "zeros", blurred(x, *shared, "zeros", x.dtype))
    down, across = gaussian_window(torch.tensor([0.4, 1.5]), 5), torch.ones(2, 3).double()
    check(x, down, across, "zeros", blurred(x, down, across, "zeros", x.dtype))


@pytest.mark.parametrize(("step", "ahead"), [(1, 3), (2, 3)])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_every_kind_of_tile(kernel_backend, mode, step, ahead):
    """Several tiles along each axis, some of them inside of the image."""
    from tricorr.ops.launch import separable_launch

    x = image((1, 1, 15, 400), device=kernel_backend.device)
    geometry = geometry_of(
        (1, 1, 15, 400), (1, 1, 4, 5), padding=((1, 2), (2, 2)), padding_mode=mode
    )
    tile = planned.SeparableTile(4, 128, 1, step, 4, 4, 4, ahead)
    problem = Problem("fprop", geometry)
    plan = planned.choose.plan_with_tile(problem, tile)
    taps = torch.cat(WINDOWS).float()[None].to(x.device)
    y = separable_launch.separable(x, taps, x.dtype, geometry, plan=plan)
    check(x, *WINDOWS, mode, y)


def test_infinity_and_nan_stay_in_their_windows(kernel_backend, in_one_pass):
    x = torch.zeros(1, 1, 9, 12, device=kernel_backend.device)
    x[0, 0, 2, 3], x[0, 0, 7, 9] = torch.inf, torch.nan
    y = blurred(x, torch.ones(3), torch.ones(3), "zeros", x.dtype)
    reached = torch.zeros(1, 1, 9, 12, dtype=torch.bool)
    reached[..., 1:4, 2:5] = reached[..., 6:9, 8:11] = True
    assert torch.equal(~y.isfinite().cpu(), reached)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_gradients(kernel_backend, in_one_pass, mode):
    """First and second order: the map is linear, so they are its adjoint and itself."""
    x = image((1, 2, 5, 8), torch.float64, kernel_backend.device).requires_grad_()
    y = blurred(x, *WINDOWS, mode, x.dtype)
    dy = torch.randn_like(y).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    other = torch.randn_like(dx)
    (back,) = torch.autograd.grad(dx, dy, other)
    check(other, *WINDOWS, mode, back)
    assert torch.allclose((dx * other).sum(), (dy * back).sum())


def test_filters_take_it_and_agree_with_two_passes(kernel_backend, in_one_pass, monkeypatch):
    x = image((3, 6, 9), torch.uint8, kernel_backend.device)
    y = filters.gaussian_blur(x, 0.8, kernel_size=5)
    assert len(in_one_pass) == 1
    monkeypatch.setattr(planned, "faster_plan", lambda problem: None)
    from tricorr.ops.launch.prepared import forget_prepared

    forget_prepared()
    torch.testing.assert_close(y, filters.gaussian_blur(x, 0.8, kernel_size=5))


def test_a_watched_sigma_takes_differentiable_operators(kernel_backend, in_one_pass):
    sigma = torch.tensor(1.0, device=kernel_backend.device, requires_grad=True)
    x = image((4, 6), device=kernel_backend.device)
    filters.gaussian_blur(x, sigma, kernel_size=3).sum().backward()
    assert sigma.grad is not None
    assert not in_one_pass


def problem(size, window, dtype=torch.float32, device="h100", **options):
    g = geometry_of(
        (1, 1, size, size), (1, 1, window, window), padding=((window // 2,) * 2,) * 2, **options
    )
    align = 16 // dtype.itemsize
    layout = Layout(x_boxes="NCHW", y_boxes="NCHW", x_align=align, y_align=align)
    return Problem("fprop", g, dtype, "tf32", layout, DEVICES[device])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_windows_take_one_pass_and_small_ones_all_taps_at_once(dtype):
    assert planned.faster_plan(problem(4096, 3, torch.float32)) is None
    for window in (9, 15, 25):
        plan = planned.faster_plan(problem(4096, window, dtype, padding_mode="reflect"))
        assert plan is not None
        assert plan.tile.held(problem(4096, window, dtype)) <= planned.MAX_HELD


def test_other_correlations_have_no_plan_of_one_pass():
    strided = dataclasses.replace(problem(64, 5).geometry, given_stride=(2, 1))
    dense = geometry_of((1, 4, 64, 64), (8, 4, 5, 5), padding=((2, 2), (2, 2)))
    for geometry in (strided, dense):
        assert planned.plan(dataclasses.replace(problem(64, 5), geometry=geometry)) is None


FUSED = {
    "sobel": lambda x: filters.sobel(x),
    "sobel_eps": lambda x: filters.sobel(x, eps=1e-6, padding_mode="zeros"),
    "scharr": lambda x: filters.scharr(x, padding_mode="circular"),
    "gradient": lambda x: filters.spatial_gradient(x, "prewitt"),
    "differences": lambda x: filters.spatial_gradient(x, "diff", padding_mode="reflect"),
    "laplacian": lambda x: filters.laplacian(x, 8, normalized=True),
    "unsharp": lambda x: filters.unsharp_mask(x, 0.7, 1.5, kernel_size=(3, 4)),
}


def launches(monkeypatch, call):
    """(result, launches) of a call that prepares no launch for later ones."""
    from tricorr.ops.launch import entry
    from tricorr.ops.launch.call import Call
    from tricorr.ops.launch.prepared import forget_prepared

    made, run = [], Call.run
    forget_prepared()
    with monkeypatch.context() as patch:
        patch.setattr(Call, "run", lambda self, device: (made.append(self), run(self, device)))
        patch.setattr(entry, "prepare", lambda *_: None)
        return call(), made


@pytest.mark.parametrize("name", FUSED)
def test_derivatives_read_the_image_once(kernel_backend, monkeypatch, name):
    """And agree with corr2d, which a watched image takes."""
    x = image((2, 5, 8), device=kernel_backend.device)
    y, made = launches(monkeypatch, lambda: FUSED[name](x))
    assert len(made) == 1
    watched = FUSED[name](x.clone().requires_grad_())
    torch.testing.assert_close(y, watched.detach())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["sobel", "gradient"])
def test_derivatives_of_every_type_and_format(kernel_backend, dtype, name):
    x = image((2, 9, 4, 5), dtype, kernel_backend.device)
    y = FUSED[name](x.to(memory_format=torch.channels_last))
    exact = FUSED[name](x.double().cpu().requires_grad_()).detach()
    tolerance = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
    assert (y.double().cpu() - exact).abs().max() <= tolerance * x.double().abs().max() * 4


@pytest.mark.parametrize("name", FUSED)
def test_derivatives_of_flat_images_are_zero(kernel_backend, name):
    x = torch.full((4, 8), 128 / 255, device=kernel_backend.device)
    y = FUSED[name](x)
    if name == "sobel_eps":
        torch.testing.assert_close(y[1:-1, 1:-1], torch.full_like(y[1:-1, 1:-1], 1e-3))
    elif name == "unsharp":
        torch.testing.assert_close(y, x)
    else:
        assert not y.any()


@pytest.mark.parametrize("scale", [2.0**-140, 1e-30, 1.0, 1e30])
def test_magnitudes_of_all_sizes(kernel_backend, scale):
    """Squares would leave the range of float32."""
    ramp = (3 * torch.arange(8.0) + 4 * torch.arange(5.0)[:, None]) * scale
    y = filters.sobel(ramp.to(kernel_backend.device))
    torch.testing.assert_close(y[2, 2:6].cpu(), torch.full((4,), 5 * scale), atol=0, rtol=1e-6)
