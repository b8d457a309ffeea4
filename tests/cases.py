"""The shapes that tests run, each named by the reason it exists."""

import torch

from tricorr.ops import Geometry, geometry_of


def _case(
    x, weight, stride=1, padding=0, dilation=1, groups=1, flip=False, mode="zeros"
) -> Geometry:
    def pair(value):
        return value if isinstance(value, tuple) else (value, value)

    rows, columns = pair(padding)
    sides = (pair(rows), pair(columns))
    return geometry_of(x, weight, pair(stride), sides, pair(dilation), groups, flip, mode)


CASES: dict[str, Geometry] = {
    # The window and the padding.
    "textbook": _case((1, 1, 3, 3), (1, 1, 2, 2)),
    "edge_detector": _case((1, 1, 6, 8), (1, 1, 1, 2)),
    "one_pixel": _case((1, 1, 1, 1), (1, 1, 1, 1)),
    "one_by_one_window": _case((2, 5, 4, 3), (6, 5, 1, 1)),
    "one_row": _case((2, 3, 1, 9), (2, 3, 1, 3), padding=(0, 1)),
    "one_column": _case((2, 3, 9, 1), (2, 3, 3, 1), padding=(1, 0)),
    "one_output": _case((2, 3, 4, 5), (4, 3, 4, 5)),
    "pad_exceeds_half": _case((2, 2, 5, 6), (3, 2, 3, 3), padding=4),
    "asymmetric_padding": _case((2, 3, 5, 6), (4, 3, 3, 4), padding=((0, 2), (3, 1))),
    "even_window_same": _case((2, 3, 6, 5), (4, 3, 2, 4), padding=((0, 1), (1, 2))),
    "window_exceeds_image_but_padded": _case((2, 2, 3, 2), (3, 2, 5, 7), padding=(2, 3)),
    "huge_padding_between_windows": _case(
        (1, 2, 2, 3), (2, 2, 1, 2), stride=(2**31, 1), padding=((2**31, 2**31), (1, 0))
    ),
    "flipped": _case((2, 3, 6, 5), (4, 3, 2, 3), padding=((0, 1), (2, 0)), flip=True),
    # Steps.
    "stride_gt_filter": _case((2, 3, 9, 11), (4, 3, 2, 1), stride=(3, 4)),
    "stride_leaves_pixels_over": _case((2, 3, 8, 9), (4, 3, 3, 2), stride=(3, 2), padding=(1, 0)),
    "dilated": _case((2, 3, 9, 11), (4, 3, 3, 2), padding=2, dilation=(2, 3)),
    "dilated_strided_flipped": _case(
        (2, 4, 9, 11), (6, 2, 3, 2), stride=(2, 3), padding=(3, 1), dilation=(3, 2), groups=2,
        flip=True,
    ),
    "huge_stride": _case((2, 3, 3, 4), (2, 3, 2, 3), stride=2**31),
    "huge_dilation_of_one_tap": _case((2, 3, 3, 4), (2, 3, 1, 1), dilation=2**31),
    # Channels and groups.
    "c_below_block": _case((1, 2, 4, 5), (17, 2, 2, 2), padding=1),
    "k_below_block": _case((1, 17, 4, 5), (2, 17, 2, 2), padding=1),
    "leftover_rows": _case((3, 17, 5, 6), (37, 17, 3, 2), padding=1),
    "prime_sizes": _case((3, 3, 7, 11), (5, 3, 3, 2), stride=(2, 1), padding=(1, 0)),
    "depthwise": _case((2, 5, 7, 6), (5, 1, 3, 3), padding=1, groups=5),
    "depthwise_multiplier": _case((2, 3, 7, 6), (12, 1, 3, 3), padding=1, groups=3),
    "groups_odd_channels": _case((2, 9, 4, 5), (15, 3, 2, 2), padding=1, groups=3),
    "groups_of_a_matrix_unit": _case((1, 34, 5, 6), (36, 17, 2, 3), padding=1, groups=2),
    # A filter bank for every sample.
    "per_sample": _case((3, 2, 6, 7), (3, 4, 2, 3, 2), padding=1),
    "per_sample_groups": _case((2, 4, 5, 4), (2, 6, 2, 3, 2), padding=1, groups=2, flip=True),
    "per_sample_of_a_matrix_unit": _case((3, 18, 5, 4), (3, 20, 18, 2, 2), stride=(1, 2)),
    # Padding modes other than zeros.
    "reflected_matrix_unit": _case(
        (2, 17, 6, 5), (20, 17, 3, 3), padding=((2, 1), (1, 3)), mode="reflect"
    ),
    "reflected_to_the_limit": _case((1, 2, 4, 3), (2, 1, 5, 4), padding=(3, 2), groups=2,
        mode="reflect"),
    "replicated_beyond_the_image": _case((2, 4, 3, 2), (2, 2, 4, 5), padding=((5, 3), (0, 6)),
        groups=2, mode="replicate"),
    "replicated_matrix_unit_per_sample": _case(
        (2, 16, 4, 5), (2, 16, 16, 2, 2), padding=((1, 2), (2, 0)), mode="replicate"
    ),
    "circular_full_turn_strided": _case((2, 3, 4, 5), (6, 1, 3, 3), stride=(3, 2), padding=(4, 5),
        groups=3, flip=True, mode="circular"),
    "circular_dilated_depthwise": _case((2, 3, 9, 7), (3, 1, 3, 3), padding=(4, 2), dilation=(4, 2),
        groups=3, mode="circular"),
    "one_row_reflected": _case((2, 3, 1, 9), (2, 3, 1, 4), padding=(0, (1, 2)), mode="reflect"),
    # Empty tensors.
    "empty_batch": _case((0, 3, 5, 6), (4, 3, 3, 3)),
    "empty_batch_per_sample": _case((0, 3, 5, 6), (0, 4, 3, 3, 3)),
    "no_channels": _case((2, 0, 5, 6), (4, 0, 3, 3)),
    # A weight gradient that is split.
    "many_pixels": _case((2, 1, 40, 37), (2, 1, 2, 3)),
}  # fmt: skip

#: Cases that together cover every feature and both kernel families.
RICH_CASES = (
    "asymmetric_padding",
    "dilated_strided_flipped",
    "groups_of_a_matrix_unit",
    "leftover_rows",
    "per_sample_groups",
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


#: One pixel of padding on all sides.
SAME = ((1, 1), (1, 1))
FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}


def in_format(tensors, format="NHWC"):
    """The tensors, with images and filters in a memory format, of one pixel too."""
    return [
        t.to(memory_format=FORMATS[format]) if t is not None and t.dim() == 4 else t
        for t in tensors
    ]


def moved(images, layout):
    """The images in channels_last, or in rows with gaps, or one that begins off alignment."""
    if layout == "channels_last":
        return images.to(memory_format=torch.channels_last)
    *planes, W = images.shape
    wide = images.new_full((*planes, W + (7 if layout == "rows_apart" else 3)), torch.nan)
    return (wide[..., :W] if layout == "rows_apart" else wide[..., 3:]).copy_(images)


def image(H, W, R, S, padding=(0, 0), N=1, C=1, K=None, groups=1, **more):
    """Planes with a window each, or filters of all channels of a group where K is given.

    Padding is (rows, columns), each a number or (before, after).
    """
    if K is None:
        K = groups = C
    sides = tuple(p if isinstance(p, tuple) else (p, p) for p in padding)
    bank = (N,) if more.pop("per_sample", False) else ()
    weight = (*bank, K, C // groups, R, S)
    return geometry_of((N, C, H, W), weight, padding=sides, groups=groups, **more)


def tensors(geometry, dtype, device="cpu", make=torch.randn):
    """x, weight, bias and dy of a geometry."""
    shapes = (geometry.x_shape, geometry.weight_shape, (geometry.K,), geometry.y_shape)
    return [make(shape).to(device, dtype) for shape in shapes]


def whole_numbers(shape):
    """Random integers, small enough that sums of a few hundred products are exact in float32."""
    return torch.randint(-2, 3, shape).double()
