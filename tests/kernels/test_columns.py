"""Columns kernels: every kind of window, block, stride and layout."""

import pytest
import torch
from cases import DTYPES, image, moved, tensors
from closeness import check, operands
from plans import launched, with_tile

from tricorr.ops.plan.columns import MAX_STRIDE, ROWS, ColumnsGradTile, ColumnsTile

GEOMETRIES = {
    # With BLOCK_P 4: rows before the loop, none, one or two steps of it, a remainder, rows after.
    "shorter_than_a_block": image(11, 29, 2, 11, (1, 5)),
    "no_whole_step": image(13, 17, 3 + ROWS - 1, 5, (5, 2)),
    "one_step": image(13, 17, 3 + ROWS, 3, (5, 1)),
    "two_steps_and_a_rest": image(23, 9, 3 + 2 * ROWS + 3, 2, (9, (1, 0))),
    "colours_and_filters": image(7, 19, 4, 5, ((1, 2), (3, 2)), C=2, K=3),
    "filters_of_groups": image(5, 7, 9, 4, (4, (1, 2)), N=1, C=4, K=4, groups=2),
    "depthwise_of_small_planes": image(4, 7, 13, 13, (6, 6), N=2, C=2, K=2, groups=2),
    "window_exceeds_image_but_padded": image(4, 5, 9, 11, (4, 5), N=2),
    "pad_exceeds_window": image(3, 19, 2, 3, ((3, 4), (5, 2))),
    "cropped": image(9, 31, 3, 4, ((-1, 0), (-9, -2))),
    "one_row": image(1, 33, 1, 9, (0, 4), N=2),
    "one_column": image(33, 1, 9, 1, (4, 0), N=2),
    "one_output": image(11, 9, 11, 9),
    "one_tap": image(3, 17, 1, 1),
    "only_padding_is_seen": image(2, 2, 1, 1, ((0, 0), (3, 4))),
    "flipped": image(5, 19, 3, 6, (1, 2), C=2, K=2, groups=2, flip=True),
    "per_sample": image(5, 11, 3, 4, (1, 1), N=3, C=2, K=4, per_sample=True),
    "gaps_along_rows": image(9, 17, 5, 3, (2, 2), dilation=(1, 2)),
    "reflected": image(7, 19, 4, 8, ((3, 2), (3, 4)), padding_mode="reflect"),
    "replicated": image(3, 9, 6, 3, ((4, 2), (11, 4)), K=2, padding_mode="replicate"),
    "circular_planes": image(5, 8, 3, 5, (5, 8), N=2, C=3, K=3, groups=3, padding_mode="circular"),
}
#: With a stride, the input gradient is a forward correlation for each phase of the pixels.
STRIDED = {
    "stride_of_two": image(23, 29, 9, 7, (4, 3), C=2, K=2, groups=2, stride=(2, 2)),
    "stride_without_full_rows": image(17, 13, 4, 3, (1, 1), stride=(3, 1)),
    "largest_stride": image(37, 9, 21, 2, (3, 1), stride=(MAX_STRIDE, 3)),
    "stride_flipped_and_cropped": image(
        11, 14, 5, 4, ((1, -1), (2, 0)), N=2, C=2, K=4, groups=2, stride=(2, 3), flip=True,
        per_sample=True,
    ),
    "stride_of_which_phases_are_empty": image(2, 9, 5, 3, (4, 1), stride=(3, 3)),
    "stride_mirrored": image(19, 9, 5, 3, (2, 1), stride=(2, 1), padding_mode="reflect"),
}  # fmt: skip
# All lanes along one row; lanes across filters, across samples, across channels.
ROW, FILTERS, SAMPLES, ACROSS = (
    ColumnsTile(4, 32, num_warps=1),
    ColumnsTile(3, 8, BLOCK_K=4, num_warps=1),
    ColumnsTile(4, 8, BLOCK_N=4, num_warps=1),
    ColumnsTile(8, 4, BLOCK_K=32, num_warps=2),
)
# Taps that divide no window, strips that divide no image.
GRADIENTS = {
    ROW: ColumnsGradTile(3, 2, 2, 16, num_warps=1),
    FILTERS: ColumnsGradTile(2, 3, 3, 8, BLOCK_K=4, num_warps=1),
    SAMPLES: ColumnsGradTile(5, 2, 2, 8, BLOCK_N=4, num_warps=1),
    ACROSS: ColumnsGradTile(5, 2, 4, 2, BLOCK_K=32, num_warps=2),
}
#: Only weight gradients take these.
GAPS = {"gaps_along_columns": image(23, 11, 4, 3, (3, 1), stride=(2, 1), dilation=(3, 2))}
CASES = [
    pytest.param("fprop_bias", geometry, id=f"fprop_bias-{name}")
    for name, geometry in (GEOMETRIES | STRIDED).items()
] + [
    pytest.param("dgrad", geometry, id=f"dgrad-{name}")
    for name, geometry in (GEOMETRIES | STRIDED).items()
    if geometry.padding_mode == "zeros"  # the frame of the others has kernels of its own
]
CASES += [
    pytest.param("wgrad", geometry, id=f"wgrad-{name}")
    for name, geometry in (GEOMETRIES | STRIDED | GAPS).items()
]


def forced(op, geometry, tile, args, *, int64=False):
    splits = 1
    if op == "wgrad":
        tile, splits = GRADIENTS[tile], 2 if int64 else 1
    plan = with_tile(op, geometry, tile, splits, int64=int64)
    return check(op, args, geometry, actual=launched(op, args, geometry, plan))


@pytest.mark.parametrize(("op", "geometry"), CASES)
def test_every_window_and_block(kernel_backend, op, geometry):
    tile = FILTERS if geometry.K > 1 else SAMPLES if geometry.N > 1 else ROW
    args = operands(op, *tensors(geometry, torch.float32, kernel_backend.device))
    forced(op, geometry, tile, args, int64=tile is FILTERS)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
@pytest.mark.parametrize("op", ["fprop_bias", "dgrad", "wgrad"])
def test_every_dtype(kernel_backend, op, dtype):
    geometry = image(5, 9, 4, 3, (1, 1), C=2, K=2)
    floating = torch.float32 if dtype == torch.uint8 else dtype
    x, *others = tensors(geometry, floating, kernel_backend.device)
    if dtype == torch.uint8:
        x = (x * 100).abs().to(dtype)
    forced(op, geometry, ROW, operands(op, x, *others))


@pytest.mark.parametrize("op", ["fprop_bias", "wgrad"])
@pytest.mark.parametrize("layout", ["channels_last", "rows_apart", "shifted"])
def test_every_layout(kernel_backend, layout, op):
    geometry = image(5, 9, 6, 3, (2, 1), N=2, C=33, K=33, groups=33)
    x, weight, bias, dy = tensors(geometry, torch.float16, kernel_backend.device)
    forced(op, geometry, ACROSS, operands(op, moved(x, layout), weight, bias, dy))


def test_an_infinity_reaches_only_outputs_that_use_it(kernel_backend):
    geometry = image(20, 20, 13, 5, (6, 2))
    x, weight, bias, _ = tensors(geometry, torch.float32, kernel_backend.device)
    x[0, 0, 10, 9] = torch.inf
    args = operands("fprop_bias", x, weight, bias, None)
    y = forced("fprop_bias", geometry, ROW, args)[0, 0]
    wrong = ~y.isfinite().cpu()
    assert wrong[4:17, 7:12].all()
    assert wrong.sum() == 13 * 5
