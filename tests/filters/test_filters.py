"""The image filters on photographs, against SciPy, scikit-image and kornia."""
# ruff: noqa: E501 - a table of messages, one case a line

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tricorr import ArgumentError, ArgumentTypeError, corr2d, filters
from tricorr.filters import apply as filtering
from tricorr.filters import in_blocks
from tricorr.ops import blocks

#: PyTorch compiles some of its own forward derivatives when the first one is taken.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
on_cpu = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

#: SciPy's names of the padding modes; its "reflect" repeats the border pixel.
SCIPY_MODES = {"zeros": "constant", "reflect": "mirror", "replicate": "nearest", "circular": "wrap"}


def ndimage():
    return pytest.importorskip("scipy.ndimage")


def skimage():
    return pytest.importorskip("skimage.filters")


def magnitude(derivative, image, mode):
    return np.hypot(derivative(image, axis=1, mode=mode), derivative(image, axis=0, mode=mode))


# A filter and its equal from SciPy or scikit-image, as functions of image and padding mode.
SAME = {
    "sobel": (
        lambda x, m: filters.sobel(x, padding_mode=m),
        lambda x, m: magnitude(ndimage().sobel, x, m) / 8,
    ),
    "sobel_whole_numbers": (
        lambda x, m: filters.sobel(x, normalized=False, padding_mode=m),
        lambda x, m: magnitude(ndimage().sobel, x, m),
    ),
    "prewitt": (
        lambda x, m: filters.prewitt(x, padding_mode=m),
        lambda x, m: magnitude(ndimage().prewitt, x, m) / 6,
    ),
    "scharr": (
        lambda x, m: filters.scharr(x, padding_mode=m),
        lambda x, m: skimage().scharr(x, mode=m) / math.sqrt(2),
    ),
    "gradient_x": (
        lambda x, m: filters.spatial_gradient(x, padding_mode=m).select(-3, 0),
        lambda x, m: ndimage().sobel(x, axis=1, mode=m) / 8,
    ),
    "gradient_y": (
        lambda x, m: filters.spatial_gradient(x, "prewitt", padding_mode=m).select(-3, 1),
        lambda x, m: ndimage().prewitt(x, axis=0, mode=m) / 6,
    ),
    "differences": (
        lambda x, m: filters.spatial_gradient(x, "diff", padding_mode=m).select(-3, 1),
        lambda x, m: ndimage().correlate1d(x, [-0.5, 0, 0.5], axis=0, mode=m),
    ),
    "laplacian": (
        lambda x, m: filters.laplacian(x, padding_mode=m),
        lambda x, m: ndimage().laplace(x, mode=m),
    ),
    "gaussian": (
        lambda x, m: filters.gaussian_blur(x, (0.9, 0.4), padding_mode=m),
        lambda x, m: ndimage().gaussian_filter(x, (0.9, 0.4), mode=m),
    ),
    "gaussian_one_axis": (
        lambda x, m: filters.gaussian_blur(x, (0, 1.2), padding_mode=m),
        lambda x, m: ndimage().gaussian_filter(x, (0, 1.2), mode=m),
    ),
    "gaussian_two_passes": (
        lambda x, m: filters.gaussian_blur(x, 2.5, truncate=3, padding_mode=m),
        lambda x, m: ndimage().gaussian_filter(x, 2.5, truncate=3, mode=m),
    ),
    "box": (
        lambda x, m: filters.box_blur(x, (3, 5), padding_mode=m),
        lambda x, m: ndimage().uniform_filter(x, (3, 5), mode=m),
    ),
    "box_even": (  # SciPy's odd pixel is at the top and at the left, unless it is moved
        lambda x, m: filters.box_blur(x, (4, 2), padding_mode=m),
        lambda x, m: ndimage().uniform_filter(x, (4, 2), mode=m, origin=-1),
    ),
    "box_two_passes": (
        lambda x, m: filters.box_blur(x, (16, 13), padding_mode=m),
        lambda x, m: ndimage().uniform_filter(x, (16, 13), mode=m, origin=(-1, 0)),
    ),
    "unsharp": (
        lambda x, m: filters.unsharp_mask(x, 0.7, 1.5, padding_mode=m),
        lambda x, m: 2.5 * x - 1.5 * ndimage().gaussian_filter(x, 0.7, mode=m),
    ),
    "gabor": (
        lambda x, m: filters.gabor(x, 0.3, 0.4, padding_mode=m),
        lambda x, m: skimage().gabor(x, 0.3, 0.4, mode=m)[0],
    ),
}
SMALL = ("sobel", "gaussian", "box_even", "unsharp")


@pytest.fixture(scope="module", params=["camera", "coins", "astronaut"])
def photograph(request):
    """A uint8 photograph: grey (53, 64), or the colours of a portrait (3, 53, 64)."""
    data = pytest.importorskip("skimage.data")
    image = getattr(data, request.param)()[80:133, 180:244]
    return torch.from_numpy(np.moveaxis(image, -1, 0).copy() if image.ndim == 3 else image.copy())


def planewise(function, image, *args):
    """A function of one plane, applied to every plane."""
    if image.ndim == 2:
        return np.asarray(function(image, *args))
    return np.stack([planewise(function, plane, *args) for plane in image])


def assert_same(ours, theirs, tolerance=1e-13):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.numpy(force=True), theirs, rtol=0, atol=tolerance)


@on_cpu
@pytest.mark.parametrize("padding_mode", SCIPY_MODES)
@pytest.mark.parametrize("name", SAME)
def test_photographs_are_filtered_as_by_scipy(backend, monkeypatch, photograph, name, padding_mode):
    monkeypatch.setattr(blocks, "BLOCK", 20 * photograph.shape[-1])
    ours, theirs = SAME[name]
    image = photograph.double() / 255
    expected = planewise(theirs, image.numpy(), SCIPY_MODES[padding_mode])
    assert_same(ours(image, padding_mode), expected)
    assert_same(ours(image.requires_grad_(), padding_mode), expected)  # by corr2d


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("shape", "padding_mode"),
    [((9, 11), "reflect"), ((1, 7), "replicate"), ((6, 1), "zeros"), ((1, 1), "replicate")],
    ids=["prime_width", "one_row", "one_column", "one_pixel"],
)
def test_small_images_are_filtered_as_by_scipy(backend, name, shape, padding_mode):
    ours, theirs = SAME[name]
    image = torch.rand(2, *shape, dtype=torch.float64)
    expected = planewise(theirs, image.numpy(), SCIPY_MODES[padding_mode])
    assert_same(ours(image.to(backend.device), padding_mode), expected)


@on_cpu
def test_defaults_are_those_of_scikit_image(backend, photograph):
    image = photograph.double() / 255
    for name in ("sobel", "scharr", "prewitt"):
        theirs = planewise(getattr(skimage(), name), image.numpy())
        assert_same(math.sqrt(2) * getattr(filters, name)(image), theirs)
    # scikit-image's laplace leaves its border at zero.
    theirs = planewise(skimage().laplace, image.numpy())[..., 1:-1, 1:-1]
    assert_same(-filters.laplacian(image)[..., 1:-1, 1:-1], theirs)
    theirs = planewise(lambda plane: skimage().gaussian(plane, 1.5), image.numpy())
    assert_same(filters.gaussian_blur(image, 1.5, padding_mode="replicate"), theirs)
    # Its unsharp_mask repeats the border pixel: within the window's reach the two differ.
    theirs = planewise(
        lambda plane: skimage().unsharp_mask(plane, 1.0, 1.0, preserve_range=True), image.numpy()
    )
    assert_same(filters.unsharp_mask(image)[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4])


KORNIA = {
    "spatial_gradient": (filters.spatial_gradient, lambda k, x: k.spatial_gradient(x)),
    "spatial_gradient_diff": (
        lambda x: filters.spatial_gradient(x, "diff", normalized=False),
        lambda k, x: k.spatial_gradient(x, "diff", normalized=False),
    ),
    "sobel": (lambda x: filters.sobel(x, eps=1e-6), lambda k, x: k.sobel(x)),
    "laplacian": (
        lambda x: filters.laplacian(x, 8, normalized=True, padding_mode="reflect"),
        lambda k, x: k.laplacian(x, 3),
    ),
    "gaussian": (
        lambda x: filters.gaussian_blur(x, (1.5, 0.8), kernel_size=(7, 5)),
        lambda k, x: k.gaussian_blur2d(x, (7, 5), (1.5, 0.8)),
    ),
    "gaussian_per_sample": (
        lambda x: filters.gaussian_blur(x, torch.tensor([[1.0, 0.5], [2.0, 3.0]]), kernel_size=9),
        lambda k, x: k.gaussian_blur2d(x, 9, torch.tensor([[1.0, 0.5], [2.0, 3.0]]).to(x)),
    ),
    "box": (lambda x: filters.box_blur(x, (3, 6)), lambda k, x: k.box_blur(x, (3, 6))),
    "unsharp": (
        lambda x: filters.unsharp_mask(x, 1.5, kernel_size=5),
        lambda k, x: k.unsharp_mask(x, 5, (1.5, 1.5)),
    ),
}


@on_cpu
@pytest.mark.parametrize("name", KORNIA)
def test_defaults_are_those_of_kornia(backend, photograph, name):
    kornia = pytest.importorskip("kornia.filters")
    ours, theirs = KORNIA[name]
    image = photograph.double().expand(2, 3, -1, -1) / 255
    assert_same(ours(image), theirs(kornia, image).numpy())


def test_uint8_images_are_filtered_without_loss(backend):
    image = torch.randint(256, (1, 2, 7, 10), dtype=torch.uint8, device=backend.device)
    gradient = filters.spatial_gradient(image, normalized=False)
    exact = filters.spatial_gradient(image.cpu().double(), normalized=False)
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient.cpu().double(), exact)  # whole numbers: nothing is rounded


EVERY = {
    "sobel": filters.sobel,
    "scharr_eps": lambda x: filters.scharr(x, eps=1e-4),
    "spatial_gradient": filters.spatial_gradient,
    "laplacian": filters.laplacian,
    "gaussian": lambda x: filters.gaussian_blur(x, 0.5),
    "gaussian_two_passes": lambda x: filters.gaussian_blur(x, 2, kernel_size=11),
    "box": lambda x: filters.box_blur(x, (2, 3)),
    "unsharp": filters.unsharp_mask,
    "gabor": lambda x: filters.gabor(x, 0.4),
    "log_gabor": lambda x: filters.log_gabor(x, 5, 3),
}
MAPS = {"spatial_gradient": 2, "log_gabor": 3}  # how many maps a plane becomes, if not one


@on_cpu
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8]
)
def test_dtypes_are_kept(backend, name, dtype):
    image = torch.randint(256, (3, 12, 13)).to(dtype)
    result = EVERY[name](image)
    exact = EVERY[name](image.double())
    assert result.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    # Pixels up to 255 under windows whose absolute values sum to at most 2, rounded once per pass
    # and once in the window: a coarse bound, but any error other than rounding is far larger.
    bound = 6 * 255 * torch.finfo(result.dtype).eps
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=bound)


@on_cpu
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("planes", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_any_leading_dimensions(backend, name, planes):
    images = torch.rand(*planes, 12, 13)
    result = EVERY[name](images)
    maps = (MAPS[name],) if name in MAPS else ()
    assert result.shape == (*planes, *maps, 12, 13)
    if result.numel():
        one = EVERY[name](images[(-1,) * len(planes)])
        torch.testing.assert_close(result[(-1,) * len(planes)], one, rtol=0, atol=1e-6)


@on_cpu
@pytest.mark.parametrize(
    "name", ["sobel", "gaussian", "gaussian_two_passes", "unsharp", "log_gabor"]
)
@pytest.mark.parametrize("layout", ["channels_last", "one_image", "pixels", "sliced", "transposed"])
def test_any_strides(backend, name, layout):
    image = {
        "channels_last": lambda: torch.rand(2, 12, 10, 3).permute(0, 3, 1, 2),
        "one_image": lambda: torch.rand(1, 12, 10, 3).permute(0, 3, 1, 2),
        "pixels": lambda: torch.rand(12, 10, 3).permute(2, 0, 1),  # as NumPy holds colours
        "sliced": lambda: torch.rand(2, 4, 12, 20)[:, 1:, :, ::2],
        "transposed": lambda: torch.rand(2, 3, 10, 12).mT,
    }[layout]()
    result = EVERY[name](image.to(backend.device))
    expected = EVERY[name](image.contiguous().to(backend.device))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    if name not in MAPS and layout in ("channels_last", "one_image", "pixels"):
        assert result.movedim(-3, -1).is_contiguous()


def test_a_bank_on_channels_last(backend):
    image = torch.randint(256, (1, 2, 4, 5), dtype=torch.uint8, device=backend.device)
    pixels = image.contiguous(memory_format=torch.channels_last)
    result = filters.spatial_gradient(pixels, normalized=False)
    assert torch.equal(result, filters.spatial_gradient(image, normalized=False))


PASSES = {
    "sobel": 4,
    "scharr_eps": 4,
    "spatial_gradient": 4,
    "laplacian": 2,
    "gaussian_two_passes": 2,
    "unsharp": 2,
    "log_gabor": 4,
}


class Operators(TorchDispatchMode):
    """Records the names of tricorr's operators as they are called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tricorr":
            self.called.append(func._opname)
        return func(*args, **(kwargs or {}))


@on_cpu
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_a_filter_calls_few_operators(backend, monkeypatch, name, layout):
    """On a GPU all directions of a bank are one operator; differences come before smoothing."""
    monkeypatch.setattr(filtering, "runs_kernels", lambda device: True)
    image = torch.rand(2, 3, 12, 13)
    if layout == "channels_last":
        image = image.contiguous(memory_format=torch.channels_last)
    with Operators() as operators:
        EVERY[name](image)
    assert operators.called == ["fprop"] * PASSES.get(name, 1)


@pytest.mark.parametrize(
    ("dtype", "largest"),  # square windows up to this size run at once on a GPU
    [(torch.float32, 8), (torch.float16, 6), (torch.uint8, 8), (torch.float64, 12)],
    ids=str,
)
def test_passes_follow_from_bytes_and_taps(monkeypatch, dtype, largest):
    monkeypatch.setattr(filtering, "runs_kernels", lambda device: True)
    image = torch.zeros(8, 8, dtype=dtype)

    def at_once(*window):
        return not filtering._two_passes_are_cheaper(image, window)

    assert [n for n in range(1, 64) if at_once(n, n)] == list(range(1, largest + 1))
    assert at_once(1, 63)
    assert at_once(63, 1)


def test_passes_on_a_cpu_follow_from_taps(monkeypatch):
    monkeypatch.setattr(filtering, "runs_kernels", lambda device: False)
    small, large = torch.zeros(8, 8), torch.zeros(256, 256)
    for image, largest in ((small, 3), (large, 2), (large.bfloat16(), 6)):
        squares = [n for n in range(1, 20) if not filtering._two_passes_are_cheaper(image, (n, n))]
        assert squares == list(range(1, largest + 1))


@on_cpu
@pytest.mark.parametrize("width", [160, 171])
def test_large_images_are_blurred_by_long_windows(backend, monkeypatch, width):
    monkeypatch.setattr(blocks, "BLOCK", 40 * width)
    image, (R, S) = torch.rand(2, 150, width), (13, 33)
    assert in_blocks.takes_separable(image, (R, S))
    expected = filters.gaussian_blur(image.double(), (1.5, 4))
    # Each of the two sums, of R or S terms and at most 1, is rounded once per term.
    limit = (R + S) * torch.finfo(torch.float32).eps
    ours = filters.gaussian_blur(image, (1.5, 4))
    assert (ours - expected).abs().max() <= limit
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(filters.gaussian_blur(image, (1.5, 4)), ours)
    image[0, 70, 80] = math.inf
    reached = torch.zeros(image.shape, dtype=torch.bool)
    reached[0, 70 - R // 2 : 71 + R // 2, 80 - S // 2 : 81 + S // 2] = True
    assert torch.equal(filters.gaussian_blur(image, (1.5, 4)).isinf(), reached)


@on_cpu
@pytest.mark.parametrize("padding_mode", SCIPY_MODES)
@pytest.mark.parametrize("size", [(5, 3), (4, 6)])
def test_one_pass_and_two_give_the_same(backend, monkeypatch, size, padding_mode):
    image = torch.rand(2, 11, 13, dtype=torch.float64)
    results = []
    for choice in (False, True):
        monkeypatch.setattr(filtering, "_two_passes_are_cheaper", lambda *_, c=choice: c)
        results.append(
            filters.gaussian_blur(image, (1, 2), kernel_size=size, padding_mode=padding_mode)
        )
    torch.testing.assert_close(*results, rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [3, 10], ids=["one_pass", "two_passes"])
def test_a_sigma_per_sample(backend, size):
    images = torch.rand(2, 1, 6, 7, dtype=torch.float64, device=backend.device)
    sigma = torch.tensor([[0.5, 2.0], [3.0, 0.0]], device=backend.device)
    result = filters.gaussian_blur(images, sigma, kernel_size=size)
    for image, pair, blurred in zip(images, sigma.tolist(), result, strict=True):
        alone = filters.gaussian_blur(image, pair, kernel_size=size)
        torch.testing.assert_close(blurred, alone, rtol=0, atol=1e-14)


@on_cpu
@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
@pytest.mark.parametrize("size", [(3, 4), 13])
def test_blur_is_differentiable_in_image_and_sigma(backend, shape, size):
    image = torch.rand(2, 1, 7, 7, dtype=torch.float64, requires_grad=True)
    sigma = (0.5 + torch.rand(shape, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, s: filters.gaussian_blur(x, s, kernel_size=size), (image, sigma), fast_mode=True
    )


@on_cpu
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_magnitude_is_differentiable(backend, eps):
    image = torch.rand(2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: filters.sobel(x, eps=eps), (image,))
    assert torch.autograd.gradgradcheck(
        lambda x: filters.sobel(x, eps=eps), (image[:1, :3, :3],), fast_mode=True
    )


DIFFERENCES = {
    "sobel": filters.sobel,
    "sobel_whole_numbers": lambda x: filters.sobel(x, normalized=False),
    "scharr": filters.scharr,
    "prewitt": filters.prewitt,
    "spatial_gradient": lambda x: filters.spatial_gradient(x, "scharr"),
    "differences": lambda x: filters.spatial_gradient(x, "diff"),
    "laplacian": filters.laplacian,
    "laplacian_8": lambda x: filters.laplacian(x, 8, normalized=True),
}


def flat_and_step(dtype, level, device):
    """A flat image, and one with a step between two flat halves."""
    halves = torch.tensor([level] * 5 + [0.7] * 5, dtype=dtype, device=device).repeat(4, 1)
    return torch.full((2, 5, 9), level, dtype=dtype, device=device), halves


@on_cpu
@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("level", [128 / 255, 77.7])  # three times which is rounded
def test_flat_areas_are_exactly_zero(backend, name, dtype, level):
    flat, step = flat_and_step(dtype, level, backend.device)
    assert not DIFFERENCES[name](flat).any()
    response = DIFFERENCES[name](step)
    assert not response[..., :4].any()
    assert not response[..., 6:].any()
    assert response[..., 4:6].any()


@on_cpu
@pytest.mark.parametrize("size", [5, 21])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_log_gabor_filters_are_zero_on_flat_images(backend, size, dtype):
    assert not filters.log_gabor(torch.full((30, 37), 128 / 255, dtype=dtype), size).any()


@pytest.mark.parametrize("name", ["sobel", "scharr", "prewitt", "laplacian", "laplacian_8"])
@pytest.mark.parametrize("level", [128 / 255, 77.7])
def test_flat_areas_are_exactly_zero_by_kernels(kernel_backend, name, level):
    flat, step = flat_and_step(torch.float32, level, kernel_backend.device)
    assert not DIFFERENCES[name](flat).any()
    response = DIFFERENCES[name](step)
    assert not response[..., :4].any()
    assert not response[..., 6:].any()


@pytest.mark.parametrize("layout", ["planes", "channels_last", "one_image_last", "columns_apart"])
def test_derivatives_by_kernels_in_every_layout(kernel_backend, layout):
    x = torch.randint(0, 256, (2, 3, 7, 9)).float().to(kernel_backend.device)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "one_image_last":
        x = x.to(memory_format=torch.channels_last)[0]
    elif layout == "columns_apart":
        x = x.repeat_interleave(2, -1)[..., ::2]
    padded = F.pad(x.reshape(-1, 1, 7, 9).cpu(), (1, 1, 1, 1), mode="replicate")
    # Whole numbers: whatever the order, nothing is rounded.
    gradient = F.conv2d(padded, filters.scharr_kernels()).view(*x.shape[:-2], 2, 7, 9)
    found = filters.spatial_gradient(x, "scharr", normalized=False)
    assert torch.equal(found.cpu(), gradient)
    second = F.conv2d(padded, filters.laplacian_kernel(8)).view(x.shape)
    assert torch.equal(filters.laplacian(x, 8).cpu(), second)


@on_cpu
@FORWARD_MODE
@pytest.mark.parametrize("name", DIFFERENCES)
def test_derivatives_on_flat_areas_are_zero(backend, name):
    flat = torch.full((6, 7), 128 / 255, requires_grad=True)
    magnitude = name.partition("_")[0] in ("sobel", "scharr", "prewitt")
    grad, *_ = torch.autograd.grad(DIFFERENCES[name](flat).sum(), flat, create_graph=True)
    assert not grad[1:-1, 1:-1].any()
    if magnitude:  # by convention: there the root has no derivative
        assert not grad.any()
        (second,) = torch.autograd.grad((grad * torch.randn(6, 7)).sum(), flat)
        assert not second.any()
        _, tangent = torch.func.jvp(DIFFERENCES[name], (flat.detach(),), (torch.randn(6, 7),))
        assert not tangent.any()


@on_cpu
def test_eps_makes_magnitudes_smooth(backend):
    """On flat areas the magnitude is sqrt(eps + |gradient|^2): its Hessian is G^T G / sqrt(eps)."""
    eps = 1e-6
    flat = torch.full((4, 5), 128 / 255, dtype=torch.float64, requires_grad=True)
    assert torch.equal(filters.sobel(flat, eps=eps), torch.full_like(flat, math.sqrt(eps)))
    hessian = torch.autograd.functional.hessian(lambda x: filters.sobel(x, eps=eps).sum(), flat)
    gradient = torch.autograd.functional.jacobian(filters.spatial_gradient, flat).reshape(-1, 20)
    expected = gradient.T @ gradient / math.sqrt(eps)
    torch.testing.assert_close(hessian.reshape(20, 20), expected, rtol=1e-10, atol=1e-9)
    (grad,) = torch.autograd.grad(filters.sobel(flat, eps=eps).sum(), flat)
    assert not grad.any()


@on_cpu
def test_magnitude_does_not_overflow(backend):
    steep = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]], dtype=torch.float16)
    assert filters.sobel(steep).max() == 500  # whose square float16 does not hold


@on_cpu
def test_directions_of_gabor_filters(backend, photograph):
    image = photograph.double() / 255
    # Angles whose windows have the same size in scikit-image too.
    angles = np.array([0.3, 0.3 + math.pi / 2])
    maps = filters.gabor(image, 0.2, angles, bandwidth=1.5)
    assert maps.shape == (*image.shape[:-2], 2, *image.shape[-2:])
    for k, angle in enumerate(angles):
        theirs = planewise(
            lambda plane, t=angle: skimage().gabor(plane, 0.2, t, bandwidth=1.5, mode="mirror")[0],
            image.numpy(),
        )
        assert_same(maps.select(-3, k), theirs)
    assert torch.equal(maps, filters.gabor(image, 0.2, torch.from_numpy(angles), bandwidth=1.5))
    assert torch.equal(maps, filters.gabor(image, 0.2, list(angles), bandwidth=1.5))


@on_cpu
def test_log_gabor_maps_are_those_of_the_bank(backend, photograph):
    image = photograph.double() / 255
    bank = filters.log_gabor_kernels(9, 4, wavelength=4, dtype=torch.float64)
    maps = filters.log_gabor(image, 9, 4, wavelength=4)
    for k in range(4):
        one = corr2d(image, bank[k, 0], padding=4, padding_mode="reflect")
        torch.testing.assert_close(maps.select(-3, k), one, rtol=0, atol=1e-13)


@on_cpu
@pytest.mark.parametrize("name", ["sobel", "unsharp", "log_gabor"])
def test_filters_compile_without_a_break(backend, name):
    torch._dynamo.reset()
    # float64: for float32, corr2d reads PyTorch's precision setting, which breaks Dynamo's graph.
    image = torch.rand(2, 12, 13, dtype=torch.float64)
    compiled = torch.compile(EVERY[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), EVERY[name](image), rtol=0, atol=1e-14)


x = torch.zeros(2, 3, 8, 9)
#: (call, the whole message)
REFUSED = [
    (lambda: filters.sobel(torch.zeros(5)), "input must be (..., H, W), got shape (5,)"),
    (lambda: filters.sobel([[1.0]]), "input must be a tensor, a NumPy array, a Pillow image or the name of a file, got list"),
    (lambda: filters.laplacian(x.cfloat()), "input must be real numbers, got torch.complex64"),
    (lambda: filters.laplacian(x.to_sparse()), "input must be a dense (strided) tensor, got layout torch.sparse_coo"),
    (lambda: filters.laplacian(np.array(["a"])), "input must hold numbers of at most 64 bits, got an array of <U1"),
    (lambda: filters.laplacian(np.ma.masked_equal(np.eye(3), 0)), "input must not be a masked array, whose mask would be lost: fill it first, for example with .filled(0)"),
    (lambda: filters.sobel(torch.zeros(2, 64, 48, 3)), "input of shape (2, 64, 48, 3) looks like (H, W, channels): give channel_axis=-1 if it is, or channel_axis=-3 for images that are 3 pixels wide"),
    (lambda: filters.box_blur(x, 3, channel_axis=4), "channel_axis=4 is no axis beside H and W of input, of shape (2, 3, 8, 9)"),
    (lambda: filters.sobel(x, eps=-1.0), "eps must be finite and not negative, got -1.0"),
    (lambda: filters.spatial_gradient(x, "roberts"), "mode must be one of 'sobel', 'scharr', 'prewitt', 'diff', got 'roberts'"),
    (lambda: filters.prewitt(x, padding_mode="mirror"), "padding_mode must be 'zeros', 'reflect', 'replicate' or 'circular', got 'mirror'"),
    (lambda: filters.laplacian(x, 5), "neighbours must be 4 or 8, got 5"),
    (lambda: filters.gaussian_blur(x, -1), "sigma must be one number or two (h, w), finite and not negative, got -1"),
    (lambda: filters.gaussian_blur(x, (1, 2, 3)), "sigma must be one number or two (h, w), finite and not negative, got (1, 2, 3)"),
    (lambda: filters.gaussian_blur(x, "wide"), "sigma must be a number, two (h, w) or a tensor, got 'wide'"),
    (lambda: filters.gaussian_blur(x, torch.ones(())), "kernel_size must be given when sigma is a tensor, got None"),
    (lambda: filters.gaussian_blur(x, torch.ones(3, 2), kernel_size=3), "sigma must have shape (), (2,) or, for an input (N, C, H, W), (N, 2), got (3, 2) for an input of shape (2, 3, 8, 9)"),
    (lambda: filters.gaussian_blur(x, torch.ones(2, dtype=torch.int64), kernel_size=3), "sigma must be a float tensor, got torch.int64"),
    (lambda: filters.gaussian_blur(x, 1, truncate=math.nan), "truncate must be finite and not negative, got nan"),
    (lambda: filters.box_blur(x, (3, 0)), "kernel_size must be positive, got (3, 0)"),
    (lambda: filters.box_blur(x, 2.5), "kernel_size must be an integer, got 2.5 (float)"),
    (lambda: filters.gabor(x, 0), "frequency must be positive, got 0"),
    (lambda: filters.gabor(x, 0.2, []), "theta must be a finite angle or several, got []"),
    (lambda: filters.gabor(x, 0.2, "up"), "theta must be an angle or several, got 'up'"),
    (lambda: filters.gabor(x, 0.2, bandwidth=0), "bandwidth must be positive, got 0"),
    (lambda: filters.log_gabor(x, 4), "size must be odd and at least 3, got 4"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED)
@on_cpu
def test_wrong_arguments_of_filters_are_refused(backend, call, message):
    with pytest.raises((ArgumentError, ArgumentTypeError)) as refused:
        call()
    assert str(refused.value) == message
