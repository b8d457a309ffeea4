"""KernelAccumulator: the kernel does not depend on how images are split, ordered or distributed."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from tricorr import ArgumentError, KernelAccumulator, convolve2d, corr2d, learn_kernel
from tricorr.learning.streaming import accumulate

pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

DOUBLE = torch.float64
SETTINGS = {"kernel_size": (3, 2), "background": 1}


def images(N=3, H=20, W=17):
    x = torch.randn(N, 2, H, W, dtype=DOUBLE)
    y = corr2d(x, torch.randn(2, 2, 3, 2, dtype=DOUBLE)) + torch.linspace(0, 3, W - 1, dtype=DOUBLE)
    return x, y + 0.1 * torch.randn_like(y), torch.rand(N, 1, H - 2, W - 1) > 0.2


def pieces(x, y, mask, rows, columns):
    """Arguments of `update` for every tile of an image, with the pixels of x its windows read."""
    P, Q = y.shape[-2:]
    for n in range(len(x)):
        for top in range(0, P, rows):
            for left in range(0, Q, columns):
                bottom, right = min(P, top + rows), min(Q, left + columns)
                part = (slice(n, n + 1), slice(None), slice(top, bottom), slice(left, right))
                reach = x[n : n + 1, :, top : bottom + 2, left : right + 1]
                place = {"origin": (top, left), "size": (P, Q)}
                yield (reach, y[part]), {"mask": mask[part], **place}


def gathered(x, y, mask):
    return KernelAccumulator(**SETTINGS).update(x, y, mask=mask)


def assert_same(found, expected):
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.background, expected.background, rtol=1e-10, atol=1e-11)
    assert found.loss == pytest.approx(expected.loss, rel=1e-9)
    assert found.quality.pixels == expected.quality.pixels
    errors = found.quality.standard_error, expected.quality.standard_error
    if errors[1] is not None:  # correlated residuals can be detected only with the images
        torch.testing.assert_close(*errors, rtol=1e-8, atol=0)


def test_sums_give_the_kernel_of_learn_kernel(backend):
    x, y, mask = images()
    expected = learn_kernel(x, y, (3, 2), background=1, mask=mask)
    assert_same(gathered(x, y, mask).solve(), expected)
    for options in ({"ridge": 5.0}, {"nonnegative": True}, {"sum_to": 1.0}):
        found = gathered(x, y, mask).solve(**options)
        assert_same(found, learn_kernel(x, y, (3, 2), background=1, mask=mask, **options))


@pytest.mark.parametrize("split", [(18, 16), (1, 16), (5, 4), (7, 1)], ids=str)
def test_any_split_in_any_order_gives_the_same(backend, split):
    x, y, mask = images()
    parts = list(pieces(x, y, mask, *split))
    sums = KernelAccumulator(**SETTINGS)
    for i in torch.randperm(len(parts)).tolist():
        arguments, options = parts[i]
        sums.update(*arguments, **options)
    assert sums.pairs == len(parts)
    assert_same(sums.solve(), gathered(x, y, mask).solve())


def test_merged_and_pickled_parts_give_the_same(backend):
    x, y, mask = images()
    # Weights that differ between filters need a matrix for each; others share one.
    own = torch.rand(1, 2, 18, 16, dtype=DOUBLE)
    parts = [
        KernelAccumulator(**SETTINGS).update(x[:2], y[:2], mask=mask[:2]),
        KernelAccumulator(**SETTINGS),
        KernelAccumulator(**SETTINGS).update(x[2:], y[2:], weights=own),
    ]
    merged = KernelAccumulator(**SETTINGS)
    for part in parts:
        merged.merge(pickle.loads(pickle.dumps(part)))
    counts = torch.cat([mask[:2].expand(2, 2, -1, -1).double(), own])
    assert_same(merged.solve(), learn_kernel(x, y, (3, 2), background=1, weights=counts))
    assert parts[0].sums.gram.shape[0] == 1
    assert merged.sums.gram.shape[0] == 2


def test_pieces_may_have_the_padding_of_their_edges(backend):
    x, weight = torch.randn(12, 9, dtype=DOUBLE), torch.randn(3, 3, dtype=DOUBLE)
    y = corr2d(x, weight, padding=1) + 0.1 * torch.randn(12, 9, dtype=DOUBLE)
    sums = KernelAccumulator(3, padding=1)
    sums.update(x[:6], y[:5], padding=((1, 0), (1, 1)))
    sums.update(x[4:], y[5:], padding=((0, 1), (1, 1)))
    expected = learn_kernel(x, y, 3, padding=1)
    torch.testing.assert_close(sums.solve().weight, expected.weight, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(sums.solve().predict(x), expected.predict(x))


@pytest.mark.parametrize("counted", ["all", "weights"])
@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_descent_on_the_sums_is_descent_on_the_images(backend, counted, ridge):
    x, y, _ = images()
    weights = torch.rand(y.shape, dtype=DOUBLE) if counted == "weights" else None
    sums = KernelAccumulator((3, 2), bias=True).update(x, y, weights=weights)
    start = torch.randn(2, 2, 3, 2, dtype=DOUBLE)
    options = {"steps": 60, "ridge": ridge, "initial": start, "solver": "gd"}
    found = sums.solve(**options)
    step = found.step_size
    images_found = learn_kernel(x, y, (3, 2), bias=True, weights=weights, step_size=step, **options)
    assert found.history == pytest.approx(images_found.history, rel=1e-11)
    assert found.loss == pytest.approx(images_found.loss, rel=1e-11)
    torch.testing.assert_close(found.weight, images_found.weight, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.bias, images_found.bias, rtol=1e-11, atol=1e-12)
    assert found.max_step_size == pytest.approx(images_found.max_step_size, rel=1e-3)
    with pytest.raises(ArgumentError, match="diverges on these images"):
        sums.solve("gd", step_size=found.max_step_size, ridge=ridge)


def test_loss_of_any_kernel_follows_from_the_sums(backend):
    x, y, mask = images()
    sums = KernelAccumulator((3, 2), bias=True, flip=True).update(x, y, mask=mask)
    weight, bias = torch.randn(2, 2, 3, 2, dtype=DOUBLE), torch.randn(2, dtype=DOUBLE)
    error = (convolve2d(x, weight, bias) - y).square() * mask
    assert sums.loss(weight, bias) == pytest.approx(float(error.sum()), rel=1e-12)


def test_plain_images_give_a_plain_kernel_in_their_precision(backend):
    x = torch.randint(0, 256, (9, 8), dtype=torch.uint8)
    sums = KernelAccumulator(2).update(x, corr2d(x, torch.tensor([[1.0, 2.0], [3.0, 4.0]])))
    found = sums.solve()
    assert found.weight.dtype == torch.float32
    torch.testing.assert_close(found.weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert found.residual is None
    assert found.quality.mean is None


def _rank(rank, world, images, settings, path):
    """One of the processes. It has every world-th image; the last process has none."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=world)
    try:
        sums = KernelAccumulator(**settings)
        x, y, mask = images
        for n in range(rank, len(x), world - 1) if rank < world - 1 else ():
            sums.update(x[n : n + 1], y[n : n + 1], mask=mask[n : n + 1])
        found = sums.reduce().solve()
        torch.save((found.weight, found.background, sums.pairs), f"{path}/{rank}")
        other = KernelAccumulator(3 + 2 * rank)
        try:
            other.reduce()
        except ArgumentError as error:
            assert "same settings" in str(error)  # noqa: PT017 - in a process of its own
        else:
            raise AssertionError("ranks of different settings were summed")
    finally:
        dist.destroy_process_group()


def test_ranks_give_the_kernel_of_one_process(backend, tmp_path):
    world = 3
    data = images()
    multiprocessing.spawn(_rank, args=(world, data, SETTINGS, str(tmp_path)), nprocs=world)
    expected = gathered(*data).solve()
    kernels = [torch.load(tmp_path / str(rank)) for rank in range(world)]
    for weight, background, pairs in kernels:
        torch.testing.assert_close(weight, expected.weight, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(background, expected.background, rtol=1e-10, atol=1e-11)
        assert torch.equal(weight, kernels[0][0])
        assert pairs == 3


def test_images_and_sums_that_do_not_fit_are_refused(backend):
    x, y, _ = images()
    sums = KernelAccumulator((3, 2))
    with pytest.raises(ArgumentError, match="nothing to learn from: call update"):
        sums.solve()
    sums.update(x, y)
    with pytest.raises(ArgumentError, match=r"same channels: earlier ones .* \(2, 2, 3, 2\)"):
        sums.update(x[:, :1], y)
    with pytest.raises(ArgumentError, match="merge takes a KernelAccumulator of the same settings"):
        sums.merge(KernelAccumulator((3, 2), bias=True))
    with pytest.raises(ArgumentError, match="merge takes sums for kernels of the same shape"):
        sums.merge(KernelAccumulator((3, 2)).update(x[:, :1], y))
    with pytest.raises(ArgumentError, match="solver must be 'normal' or 'gd' here, got 'cg'"):
        sums.solve("cg")
    with pytest.raises(ArgumentError, match="nonnegative, sum_to and smooth need solver='normal'"):
        sums.solve("gd", nonnegative=True)
    with pytest.raises(ArgumentError, match=r"a kernel must be a tensor of shape \(2, 2, 3, 2\)"):
        sums.solve(initial=torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match="background must have 0 coefficients"):
        sums.loss(torch.zeros(2, 2, 3, 2), torch.zeros(2))


def test_images_are_accumulated_with_a_stride(backend):
    x, weight = torch.rand(23, 21, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    y = corr2d(x, weight, stride=(2, 3), padding=1)
    sums = accumulate(KernelAccumulator((3, 2), stride=(2, 3), padding=1), x, y, rows=4)
    found = sums.solve()
    torch.testing.assert_close(found.weight, weight)
    assert found.stride == (2, 3)
    torch.testing.assert_close(found.predict(x), y)


def test_quality_is_of_what_was_seen_when_it_was_solved(backend):
    x, y = torch.rand(12, 12, dtype=torch.float64), torch.rand(10, 10, dtype=torch.float64)
    sums = KernelAccumulator(3).update(x, y)
    found, expected = sums.solve(), sums.solve().quality
    sums.update(y, x[:8, :8])
    assert (found.rms, found.notes) == (expected.rms, expected.notes)
    assert found.quality.pixels == 100
    torch.testing.assert_close(found.quality.standard_error, expected.standard_error)
