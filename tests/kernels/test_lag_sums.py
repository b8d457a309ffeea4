"""Sums of products at every lag: against NumPy, in every type, layout and split."""

import sys

import numpy as np
import pytest
import torch

from tricorr import ArgumentError
from tricorr.ops import lag_sums

#: (N, C, D, P, Q, R, S)
CASES = {
    "one_pixel": (1, 1, 1, 1, 1, 1, 1),
    "textbook": (1, 1, 1, 6, 7, 1, 2),
    "more_lags_than_pixels": (1, 1, 1, 2, 3, 5, 19),
    "lags_leave_a_tile_over": (1, 1, 1, 4, 9, 2, 11),
    "columns_leave_a_tile_over": (1, 1, 1, 3, 259, 2, 2),
    "channels": (2, 2, 1, 3, 6, 2, 4),
    "aligned": (1, 2, 1, 9, 16, 3, 5),
    "unaligned": (1, 1, 2, 5, 16, 2, 6),
    "aligned_tiles_of_lags": (1, 1, 1, 4, 20, 11, 17),
    "prime_sizes": (3, 1, 1, 67, 5, 3, 7),
    "rows_leave_a_split_over": (2, 1, 1, 11, 5, 2, 3),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)


def images(case, dtype=torch.float64, device="cpu"):
    N, C, D, P, Q, R, S = CASES[case]
    shapes = (N, C, P, Q), (N, D, P + R - 1, Q + S - 1)
    if dtype == torch.uint8:
        made = [torch.randint(0, 256, shape, dtype=dtype) for shape in shapes]
    else:
        made = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    return [image.to(device) for image in made], (R, S)


def expected(a, b, lags):
    """One lag at a time, in float64, and the same of the absolute values."""
    a, b = (t.double().cpu().numpy() for t in (a, b))
    P, Q = a.shape[-2:]
    out = np.empty((2, a.shape[1], b.shape[1], *lags))
    for r, s in np.ndindex(*lags):
        part = b[..., r : r + P, s : s + Q]
        out[0, :, :, r, s] = np.einsum("ncpq,ndpq->cd", a, part)
        out[1, :, :, r, s] = np.einsum("ncpq,ndpq->cd", abs(a), abs(part))
    return out


def check(actual, a, b, lags):
    values, sizes = expected(a, b, lags)
    assert actual.dtype == torch.float64
    assert actual.shape == values.shape
    # Float64 sums of a few thousand terms; errors of float32 sums would be far larger.
    assert (np.abs(actual.cpu().numpy() - values) <= 1e-14 * sizes).all()


@pytest.mark.parametrize("case", CASES)
def test_every_case(backend, case):
    (a, b), lags = images(case, device=backend.device)
    check(lag_sums(a, b, lags), a, b, lags)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_summed_in_float64(backend, dtype):
    (a, b), lags = images("channels", dtype, backend.device)
    check(lag_sums(a, b, lags), a, b, lags)
    check(lag_sums(a.double(), b, lags), a, b, lags)


def test_any_strides(backend):
    (a, b), lags = images("channels", device=backend.device)
    transposed = a.transpose(2, 3).contiguous().transpose(2, 3)
    last = b.to(memory_format=torch.channels_last)
    check(lag_sums(transposed, last, lags), a, b, lags)
    constant = a.new_ones(1).expand_as(a)
    check(lag_sums(constant, b, lags), constant, b, lags)
    H, W = b.shape[-2:]
    inner = b[:, :, : H - lags[0] + 1, : W - lags[1] + 1]
    check(lag_sums(inner, b, lags), inner, b, lags)


@pytest.mark.parametrize("splits", [1, 2, 5, 1000])
def test_every_split(kernel_backend, splits):
    from tricorr.ops.launch import lag_launch

    (a, b), lags = images("rows_leave_a_split_over", device=kernel_backend.device)
    out = a.new_empty(1, 1, *lags)
    tile, _ = lag_launch.tile_for(a, b, lags, 4)
    for call in lag_launch.lag_sums_calls(a, b, out, tile, splits):
        call.run(a.device)
    check(out, a, b, lags)


def test_offsets_beyond_32_bits(kernel_backend):
    from tricorr.ops.launch import lag_launch

    # Only the first and last row of this tensor are touched; the memory between is never written.
    rows = torch.zeros(2**31 + 64, dtype=torch.uint8, device=kernel_backend.device)
    a = rows.as_strided((1, 1, 2, 8), (1, 1, 2**31, 1))
    a.fill_(3)
    out = torch.empty(1, 1, 1, 1, dtype=torch.float64, device=a.device)
    tile, _ = lag_launch.tile_for(a, a, (1, 1), 4)
    call, *_ = lag_launch.lag_sums_calls(a, a, out, tile, 1)
    assert call.arguments["INT64"]
    call.run(a.device)
    assert out.item() == 16 * 9


def test_strips_fill_the_device():
    pytest.importorskip("triton")
    from tricorr.ops.launch.lag_launch import LagTile, tile_for

    def of(size, lags):
        image = torch.empty(1, 1, size, size, device="meta")
        return tile_for(image, image, lags, 132)

    assert of(4096, (3, 5)) == (LagTile(3, 5, 32, 512), 660)  # five programs each
    assert of(20, (3, 5)) == (LagTile(3, 5, 20, 32), 1)
    assert of(4096, (31, 61)) == (LagTile(3, 8, 64, 512), 8)
    assert of(4096, (7, 13)) == (LagTile(4, 7, 64, 512), 165)


def test_images_of_the_same_kind_are_launched_as_before(kernel_backend, monkeypatch):
    from tricorr.ops.launch import lag_launch

    (a, b), lags = images("rows_leave_a_split_over", device=kernel_backend.device)
    check(lag_sums(a, b, lags), a, b, lags)
    monkeypatch.setattr(lag_launch, "lag_sums_calls", None)  # building a call would fail
    (a, b), lags = images("rows_leave_a_split_over", device=kernel_backend.device)
    check(lag_sums(a, b, lags), a, b, lags)


def test_too_many_programs_are_refused():
    pytest.importorskip("triton")
    from tricorr.ops.launch.lag_launch import LagTile, lag_sums_calls

    a = torch.empty(1, 2**16, 1, 1, device="meta")
    out = torch.empty(2**16, 2**16, 1, 1, device="meta")
    with pytest.raises(ArgumentError, match="the call needs 4294967296 programs"):
        next(lag_sums_calls(a, a, out, LagTile(1, 1, 1, 4), 1))


def test_empty_images_give_zeros(backend):
    a = torch.empty(0, 2, 3, 4, device=backend.device)
    assert lag_sums(a, torch.empty(0, 1, 4, 5, device=backend.device), (2, 2)).sum() == 0


@pytest.mark.parametrize(
    ("a_shape", "D", "lags"),
    [
        ((2, 1, 9, 11), 1, (3, 4)),
        ((1, 3, 40, 7), 2, (5, 1)),
        ((1, 12, 1, 60), 9, (1, 7)),
        ((1, 1, 700, 20), 1, (31, 17)),
    ],
    ids=["few_lags", "columns", "rows_as_channels", "several_tiles"],
)
def test_methods_on_a_cpu_agree(a_shape, D, lags):
    from tricorr.ops import fourier

    ways = sys.modules["tricorr.ops.lag_sums"]  # tricorr.ops.lag_sums is the function
    N, _, P, Q = a_shape
    a = torch.randint(-9, 9, a_shape).double()
    b = torch.randint(-9, 9, (N, D, P + lags[0] - 1, Q + lags[1] - 1)).double()
    exact = ways._by_dots(a, b, lags)
    assert torch.equal(ways._by_windows(a, b, lags), exact)
    # Whole numbers: the transforms' rounding is far below a half.
    assert torch.equal(fourier.lag_sums(a, b, lags).round(), exact)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("size", [(9, 12), (700, 30)], ids=["one_tile", "several_tiles"])
def test_correlation_by_transforms(groups, size):
    from tricorr.ops import fourier

    x = torch.randint(-9, 9, (2, 4, *size)).double()
    weight = torch.randint(-9, 9, (8, 4 // groups, 5, 7)).double()
    expected = torch.nn.functional.conv2d(x, weight, groups=groups)
    assert torch.equal(fourier.correlate(x, weight, groups).round(), expected)
