"""The three operators against the reference: every case, tile, layout and dtype."""

import itertools
import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, DTYPES, RICH_CASES, in_format, tensors, whole_numbers
from closeness import (
    OPS,
    assert_close_to_reference,
    check,
    check_exact,
    operands,
    run,
    terms,
    to_numpy,
    truth,
)
from plans import launched, with_tile

import tricorr
from tricorr import ops
from tricorr.ops import geometry_of, reference
from tricorr.ops.plan.gemm import GEMM_GRADIENT_TILES, GEMM_TILES, GemmTile
from tricorr.ops.plan.stencil import STENCIL_TILES

GEMM_DTYPES = {
    "half": torch.float16,
    "tf32": torch.float32,
    "tf32x3": torch.float32,
    "ieee": torch.float32,
    "float64": torch.float64,
}
GEMMS = [
    pytest.param(product, tile, id=f"{product}-{tile.BLOCK_M}x{tile.BLOCK_N}x{tile.BLOCK_K}")
    for product, tiles in GEMM_TILES.items()
    for tile in tiles
]
GRADIENT_GEMMS = [
    pytest.param(product, tile, id=f"{product}-{tile.BLOCK_M}x{tile.BLOCK_N}x{tile.BLOCK_K}")
    for product, tiles in GEMM_GRADIENT_TILES.items()
    for tile in (*tiles[:2], *tiles[3:])  # the third only differs in its warps
]
STENCILS = [pytest.param(tile, id=f"{tile.BLOCK_M}x{tile.BLOCK_C}") for tile in STENCIL_TILES]
ALL_OPS = pytest.mark.parametrize("op", OPS)


def dtype_id(value):
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


@ALL_OPS
@pytest.mark.parametrize("name", CASES)
def test_every_case(backend, op, name):
    if backend.name == "cpu" and name.startswith("huge_padding"):
        pytest.skip("PyTorch copies the padding")
    args = operands(op, *tensors(CASES[name], torch.float32, backend.device))
    check(op, args, CASES[name])


@ALL_OPS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("name", RICH_CASES)
def test_every_dtype(backend, op, dtype, name):
    args = operands(op, *tensors(CASES[name], dtype, backend.device))
    assert check(op, args, CASES[name]).dtype == dtype


@pytest.mark.parametrize("name", RICH_CASES)
def test_forward_without_bias(backend, name):
    x, weight, _, _ = tensors(CASES[name], torch.float32, backend.device)
    check("fprop", (x, weight, None), CASES[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["groups_of_a_matrix_unit", "per_sample_groups"])
def test_input_gradient_adds_a_bias_before_it_rounds(backend, name, dtype):
    g = CASES[name]
    _, weight, _, dy = tensors(g, dtype, backend.device)
    bias = torch.randn(2 * g.C, device=backend.device).to(dtype)[::2]
    args = [to_numpy(t) for t in (dy, weight, bias)]
    truth, absolute = (
        reference.dgrad(*operands[:2], g, operands[2])
        for operands in (args, [abs(a) for a in args])
    )
    actual = ops.dgrad(dy, weight, g, bias=bias)
    assert_close_to_reference(actual, truth, absolute, terms("dgrad", g) + 1)


@ALL_OPS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["asymmetric_padding", "leftover_rows", "per_sample_groups"])
def test_whole_numbers_are_exact(backend, op, name, dtype):
    args = operands(op, *tensors(CASES[name], dtype, backend.device, whole_numbers))
    check_exact(op, args, CASES[name], run(op, args, CASES[name]))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_strided_pointwise_weight_gradient_of_channels_last_does_not_crash(backend):
    g = geometry_of((2, 8, 56, 56), (16, 8, 1, 1), (2, 2))
    x, _, _, dy = in_format(tensors(g, torch.float32, backend.device))
    check("wgrad", (x, dy), g)


@ALL_OPS
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_padded_strided_pointwise_windows_of_channels_last(backend, op):
    """PyTorch 2.13 may crash: the CPU backend gives it the pixels that windows read."""
    g = geometry_of((2, 6, 8, 7), (4, 6, 1, 1), (1, 2), ((2, 2), (2, 2)))
    made = (t.to(memory_format=torch.channels_last) if t.dim() == 4 else t
            for t in tensors(g, torch.float32, backend.device))  # fmt: skip
    check(op, operands(op, *made), g)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_dilated_tap_that_reads_only_padding_does_not_crash(backend):
    """PyTorch 2.13 crashes in channels_last."""
    x = torch.randn(1, 4, 13, 1).to(memory_format=torch.channels_last)
    weight, bias, steps = torch.randn(2, 2, 3, 1), torch.randn(2), (3, 2, (1, 2), 2)
    plain = torch.conv2d(x, weight, bias, 3, 2, 1, 2)
    assert torch.equal(tricorr.corr2d(x, weight, bias, *steps), plain)


@ALL_OPS
@pytest.mark.parametrize("name", ["leftover_rows", "many_pixels", "per_sample_groups"])
def test_the_same_call_gives_the_same_bits(backend, op, name):
    args = operands(op, *tensors(CASES[name], torch.float32, backend.device))
    assert torch.equal(run(op, args, CASES[name]), run(op, args, CASES[name]))


def leftover_geometry(op, tile, per_sample=False):
    """More than one tile along every axis of a launch; the last is partly filled."""
    N, R, S, P = 2, 2, 2, 5
    groups = 1 if tile.family == "gemm" else 2
    if tile.family == "gemm":
        columns, reduced = tile.BLOCK_N + 3, tile.BLOCK_K + 1
        pixels = tile.BLOCK_K * 3 if op == "wgrad" else tile.BLOCK_M
        if op == "wgrad":
            columns, reduced = tile.BLOCK_M + 3, tile.BLOCK_N // (R * S) + 1
    else:
        columns, reduced, pixels = tile.BLOCK_C // groups + 1, 2, tile.BLOCK_M
    Q = pixels // (P * (1 if per_sample else N)) + 2
    # With this padding the output is as large as the input.
    C, K = (columns, reduced) if op == "dgrad" else (reduced, columns)
    weight = (K * groups, C, R, S)
    weight = (N, *weight) if per_sample else weight
    x = (N, C * groups, P, Q)
    return geometry_of(x, weight, padding=((0, 1), (1, 0)), groups=groups)


def check_forced(op, tile, dtype, device, precision="ieee", per_sample=False, choices=()):
    """The operator with `tile` and each of the choices, against one reference."""
    geometry = leftover_geometry(op, tile, per_sample)
    args = operands(op, *tensors(geometry, dtype, device))
    for choice in choices:
        plan = with_tile(op, geometry, tile, precision=precision, **choice)
        assert plan.splits >= choice.get("splits", 1)
        actual = launched(op, args, geometry, plan)
        check(op, args, geometry, actual=actual, precision=precision)


@pytest.mark.parametrize("op", ["fprop_bias", "dgrad"])
@pytest.mark.parametrize(("product", "tile"), GEMMS)
@pytest.mark.parametrize(
    ("wide", "one_tap"),
    [(False, False), (False, True), (True, True)],
    ids=["flattened", "one_tap", "one_tap-int64"],
)
def test_every_gemm_tile(kernel_backend, op, product, tile, wide, one_tap):
    precision = product if product in ("tf32", "tf32x3") else "ieee"
    choices = [{"int64": wide, "one_tap": one_tap}]
    check_forced(op, tile, GEMM_DTYPES[product], kernel_backend.device, precision, choices=choices)


@pytest.mark.parametrize(("product", "tile"), GRADIENT_GEMMS)
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
def test_every_gemm_tile_of_wgrad(kernel_backend, product, tile, wide):
    precision = product if product in ("tf32", "tf32x3") else "ieee"
    choices = [{"int64": wide, "splits": splits} for splits in ((4,) if wide else (1, 2, 4))]
    check_forced(
        "wgrad", tile, GEMM_DTYPES[product], kernel_backend.device, precision, choices=choices
    )


@pytest.mark.parametrize("op", ["fprop_bias", "dgrad"])
@pytest.mark.parametrize("tile", STENCILS)
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
def test_every_stencil_tile(kernel_backend, op, tile, wide):
    check_forced(op, tile, torch.float32, kernel_backend.device, choices=[{"int64": wide}])


@pytest.mark.parametrize("tile", STENCILS)
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
def test_every_stencil_tile_of_wgrad(kernel_backend, tile, wide):
    choices = [{"int64": wide, "splits": splits} for splits in (1, 2)]
    check_forced("wgrad", tile, torch.float32, kernel_backend.device, choices=choices)


@ALL_OPS
@pytest.mark.parametrize("tile", [GEMM_TILES["ieee"][1], STENCIL_TILES[2]], ids=["gemm", "stencil"])
def test_a_bank_per_sample_in_both_families(kernel_backend, op, tile):
    choices = [{"splits": 2 if op == "wgrad" else 1, "int64": wide} for wide in (False, True)]
    device = kernel_backend.device
    check_forced(op, tile, torch.float32, device, per_sample=True, choices=choices)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("splits", [2, 33, 70])
def test_any_number_of_partials_is_summed(kernel_backend, dtype, splits):
    from tricorr.ops.launch.partial_sums import sum_partials_call

    if kernel_backend.name == "interpreter" and dtype == torch.bfloat16:
        dtype = torch.float32  # as ops/launch/entry.py does
    partials = whole_numbers((splits, 5, 9)).to(kernel_backend.device)
    partials = partials.to(torch.float64 if dtype == torch.float64 else torch.float32)
    out = torch.empty(5, 9, dtype=dtype, device=kernel_backend.device)
    sum_partials_call(partials, out, splits).run(out.device)
    assert torch.equal(out, partials.sum(0).to(dtype))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("family", ["gemm", "rows", "banded"])
@pytest.mark.parametrize(
    ("shape", "parts"), [((5, 7, 3, 3), 1), ((6, 70, 3, 3), 3), ((40, 34, 1, 2), 33)]
)
def test_partials_are_put_in_the_order_of_the_gradient(
    kernel_backend, family, memory_format, shape, parts
):
    from tricorr.ops.launch.partial_sums import gradient_partials, sum_partials_call

    empty = torch.empty(shape, memory_format=memory_format, device=kernel_backend.device)
    partials = gradient_partials(empty, parts, family)
    partials.copy_(whole_numbers((parts, *shape)))
    dw = torch.empty_like(empty)
    sum_partials_call(partials, dw, parts).run(dw.device)
    assert torch.equal(dw, partials.sum(0))


@pytest.mark.parametrize("flip", [False, True], ids=["correlation", "convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_id)
def test_large_contiguous_gradients_are_put_in_order(kernel_backend, monkeypatch, dtype, flip):
    """A single part is stored with channels innermost; a second launch exchanges its axes."""
    from tricorr.ops.launch import entry as launch
    from tricorr.ops.launch.prepared import forget_prepared
    from tricorr.ops.plan import cost

    forget_prepared()
    monkeypatch.setattr(cost, "REORDERED_ELEMENTS", 1)
    g = geometry_of((1, 20, 5, 6), (18, 20, 2, 3), padding=((1, 0), (1, 1)), flip=flip)
    plan = with_tile("wgrad", g, GEMM_TILES["half" if dtype == torch.float16 else "ieee"][1])
    args = operands("wgrad", *tensors(g, dtype, kernel_backend.device))
    dw = args[1].new_empty(g.weight_shape)
    assert len(list(launch.wgrad_calls(*args, dw, g, plan))) == 2
    actual = launch.wgrad(*args, g, plan=plan)
    forget_prepared()
    check("wgrad", args, g, actual=actual)


def with_gaps(t):
    padded = t.new_full([2 * n + 1 for n in t.shape], float("nan"))
    view = padded[tuple(slice(1, None, 2) for _ in t.shape)]
    return view.copy_(t)


def with_odd_strides_on_axes_of_one(t):
    strides = [7 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)]
    return t.as_strided(t.shape, strides)


LAYOUTS = {
    "channels_last": lambda t: t.movedim(-3, -1).contiguous().movedim(-1, -3),
    "transposed": lambda t: t.mT.contiguous().mT,
    "batch_innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "with_gaps": with_gaps,
    "odd_strides_on_axes_of_one": with_odd_strides_on_axes_of_one,
    "zero_strides": lambda t: t.reshape(-1)[:1].expand(t.shape),
    "zero_strides_over_the_batch": lambda t: t[:1].expand(t.shape),
}
STRIDED_CASES = {
    "gemm": geometry_of((2, 17, 5, 4), (18, 17, 2, 3), padding=((1, 0), (1, 1))),
    "stencil_per_sample": geometry_of((2, 2, 5, 4), (2, 3, 2, 2, 3), flip=True),
    "pointwise_gemm": geometry_of((2, 17, 5, 4), (18, 17, 1, 1)),
    "axes_of_one": geometry_of((1, 1, 6, 1), (3, 1, 1, 1)),
}


@ALL_OPS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", STRIDED_CASES)
def test_any_strides(backend, op, layout, name):
    x, weight, bias, dy = tensors(STRIDED_CASES[name], torch.float32, backend.device)
    x, weight, dy = map(LAYOUTS[layout], (x, weight, dy))
    bias = bias.repeat_interleave(3)[::3]
    check(op, operands(op, x, weight, bias, dy), STRIDED_CASES[name])


@pytest.mark.parametrize("channels", [3, 8, 12, 24, 32])
@pytest.mark.parametrize("layout", [*LAYOUTS, "contiguous", "sliced", "offset"])
def test_the_alignment_given_to_a_gemm_is_true(layout, channels):
    """The interpreter ignores the alignment, but compiled kernels load whole pieces by it."""
    from tricorr.ops.launch.layout import alignment

    make = LAYOUTS | {
        "contiguous": lambda t: t,
        "sliced": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
        "offset": lambda t: t.new_empty(t.numel() + 1)[1:].view(t.shape),
    }
    x = make[layout](torch.zeros(2, 2 * channels, 4, 16, dtype=torch.float16))
    for axis, extent in ((1, channels), (3, x.shape[3])):
        piece = alignment(x, axis, extent)
        assert piece in (1, 2, 4, 8)
        assert extent % piece == 0
        if piece > 1:
            assert x.stride(axis) == 1
            assert x.data_ptr() % 16 == 0
            assert all(x.stride(i) % piece == 0 for i in range(4) if i != axis)
    expected = {"channels_last": (math.gcd(channels, 8), 1), "contiguous": (1, 8)}
    if layout in expected:
        found = (alignment(x, 1, channels), alignment(x, 3, 16))
        assert found == expected[layout]


@ALL_OPS
@pytest.mark.parametrize("which", list(itertools.product([False, True], repeat=3)), ids=str)
def test_every_mixture_of_memory_formats(backend, op, which):
    geometry = STRIDED_CASES["gemm"]
    x, weight, bias, dy = tensors(geometry, torch.float32, backend.device)
    x, weight, dy = (
        t.contiguous(memory_format=torch.channels_last) if last else t
        for t, last in zip((x, weight, dy), which, strict=True)
    )
    check(op, operands(op, x, weight, bias, dy), geometry)


@pytest.mark.parametrize("name", ["leftover_rows", "k_below_block", "one_row"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_result_has_the_memory_format_that_pytorch_gives(backend, name, memory_format):
    g = CASES[name]
    x, weight, _, dy = tensors(g, torch.float32, backend.device)
    x = x.contiguous(memory_format=memory_format)
    dy = dy.contiguous(memory_format=memory_format)
    padding = tuple(pad for pad, _ in g.padding)
    theirs = F.conv2d(x, weight, None, g.given_stride, padding)
    assert run("fprop", (x, weight, None), g).stride() == theirs.stride()
    dx = run("dgrad", (dy, weight), g)
    assert dx.stride() == torch.empty(g.x_shape).to(memory_format=memory_format).stride()
    dw = run("wgrad", (x, dy), g)
    assert dw.stride() == torch.empty(g.weight_shape).to(memory_format=memory_format).stride()


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_points_of_a_stride_with_one_row_or_column_of_outputs(kernel_backend, op):
    """Pixels of x that no output reads have none of dy either."""
    for size, stride in (((2, 16), (2, 1)), ((11, 2), (1, 2)), ((2, 2), (2, 2))):
        geometry = geometry_of((2, 17, *size), (16, 17, 1, 1), stride)
        args = operands(op, *tensors(geometry, torch.float16, kernel_backend.device))
        plan = with_tile(op, geometry, GemmTile(16, 16, 16, num_warps=4, num_stages=2))
        check(op, args, geometry, actual=launched(op, args, geometry, plan))


# In the interpreter NumPy warns of NaN, where a GPU does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize(
    ("op", "where"),
    [("fprop", "x"), ("fprop", "weight"), ("dgrad", "dy"), ("wgrad", "x"), ("wgrad", "dy")],
)
@pytest.mark.parametrize("name", ["leftover_rows", "asymmetric_padding", "dilated_strided_flipped"])
def test_infinity_and_nan_spread_as_in_the_reference(kernel_backend, name, op, where, value):
    geometry = CASES[name]
    x, weight, _, dy = tensors(geometry, torch.float32, kernel_backend.device)
    target = {"x": x, "weight": weight, "dy": dy}[where]
    target[0, -1, 0, 0] = target[-1, 0, -1, -1] = value
    args = operands(op, x, weight, None, dy)
    plan = None
    if name != "leftover_rows":  # rows kernels, which would be planned, are tested below
        plan = with_tile(op, geometry, STENCIL_TILES[2])
    actual = run(op, args, geometry, import_module("tricorr.ops.launch.entry"), plan=plan)
    check(op, args, geometry, actual=actual)
    assert 0 < actual.isfinite().sum() < actual.numel()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["asymmetric_padding", "dilated_strided_flipped"])
def test_rows_kernels_keep_infinity_and_nan(kernel_backend, name, value):
    """Rows of padding are skipped, and weight gradients multiply zeros beside a strip."""
    geometry = CASES[name]
    x, weight, _, dy = tensors(geometry, torch.float32, kernel_backend.device)
    for target in (x, weight, dy):
        clean = target.clone()
        target[0, -1, 0, 0] = value
        for op in ("fprop", "wgrad"):
            args = operands(op, x, weight, None, dy)
            finite = run(op, args, geometry).isfinite().cpu()
            expected = torch.from_numpy(truth(op, args, geometry)).isfinite()
            assert finite.all() == expected.all()
            if op == "fprop" and target is weight:
                assert (finite | ~expected).all()
            elif op == "fprop":
                assert torch.equal(finite, expected)
        target.copy_(clean)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["asymmetric_padding", "leftover_rows"])
def test_infinity_and_nan_in_a_weight_stay_in_its_channel_of_dx(kernel_backend, name, value):
    """They reach the pixels of the reference, and no channel that the filter does not."""
    geometry = CASES[name]
    _, weight, _, dy = tensors(geometry, torch.float32, kernel_backend.device)
    weight[0, 0, 0, 0] = value
    finite = run("dgrad", (dy, weight), geometry).isfinite().cpu()
    reached = torch.from_numpy(truth("dgrad", (dy, weight), geometry)).isfinite().logical_not()
    assert reached.any()
    assert not finite[reached].any()
    assert finite[:, 1:].all()


@pytest.mark.parametrize("name", RICH_CASES)
def test_uint8_images_take_float_weights(backend, name):
    geometry = CASES[name]
    _, weight, bias, dy = tensors(geometry, torch.float32, backend.device)
    x = torch.randint(256, geometry.x_shape, dtype=torch.uint8).to(backend.device)
    assert check("fprop_bias", (x, weight, bias), geometry).dtype == torch.float32
    assert check("wgrad", (x, dy), geometry).dtype == torch.float32


@pytest.mark.parametrize("op", ["fprop_bias", "wgrad"])
def test_uint8_images_take_float64_weights(backend, op):
    """Triton 3.7.1 does not compile the product of bytes and float64: they are converted first."""
    geometry = geometry_of((2, 16, 9, 8), (32, 16, 3, 3), padding=((1, 1), (1, 1)))
    _, *rest = tensors(geometry, torch.float64, backend.device)
    x = torch.randint(256, geometry.x_shape, dtype=torch.uint8).to(backend.device)
    assert check(op, operands(op, x, *rest), geometry).dtype == torch.float64


def test_an_empty_batch_of_a_view_has_a_weight_gradient_of_zeros(backend):
    x = torch.empty(0, 6, 3, 7, device=backend.device).to(memory_format=torch.channels_last)[:, :3]
    dy = torch.empty(0, 24, 3, 7, device=backend.device)
    for _ in range(2):  # the second call is prepared
        dw = tricorr.corr2d_weight_grad(x, (24, 1, 1, 3), dy, padding=(0, 1), groups=3)
        assert not dw.any()


def test_failures_name_the_worst_elements():
    from closeness import assert_close_to_reference

    truth64 = to_numpy(torch.ones(3, 4))
    actual = torch.ones(3, 4)
    actual[2, 1], actual[0, 3] = 1.5, float("nan")
    with pytest.raises(AssertionError, match=r"2 of 12 elements .*1 nan") as error:
        assert_close_to_reference(actual, truth64, truth64, terms=3)
    assert "at (0, 3): got nan" in str(error.value)
    assert "at (2, 1): got 1.5, expected 1, error 0.5" in str(error.value)
