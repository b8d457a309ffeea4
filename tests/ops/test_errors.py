"""Bad arguments are refused with a message of one line; calls that PyTorch accepts are accepted.

A message names the argument, the expected value and the given one. ArgumentError is a RuntimeError
(the class that F.conv2d raises) and a ValueError; ArgumentTypeError is a RuntimeError and a
TypeError.
"""
# ruff: noqa: E501 - tables, one case a line

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tricorr
from tricorr import ArgumentError, ArgumentTypeError
from tricorr.ops import backend as by

HUGE = "too large for 64-bit offsets"
FLOATS = "must be float16, bfloat16, float32 or float64"


def x(*shape, **options):
    return torch.ones(shape or (2, 4, 6, 6), **options)


def w(*shape, **options):
    return torch.ones(shape or (6, 4, 3, 3), **options)


def dy(*shape):
    return torch.ones(shape or (2, 6, 4, 4))


def corr(*args, **kwargs):
    return lambda: tricorr.corr2d(*[arg() if callable(arg) else arg for arg in args], **kwargs)


def steps(**kwargs):
    return corr(x, w, **kwargs)


def dtypes(*args):
    """corr2d on tensors of these dtypes: input, weight, bias."""
    tensors = ((x, ()), (w, ()), (torch.ones, (6,)))
    return lambda: tricorr.corr2d(
        *[make(*shape).to(dtype) for (make, shape), dtype in zip(tensors, args, strict=False)]
    )


def transposed(*args, **kwargs):
    given = args or (x, lambda: w(4, 3, 3, 3))
    return lambda: tricorr.corr_transpose2d(*[a() if callable(a) else a for a in given], **kwargs)


def input_grad(size=(2, 4, 6, 6), weight=w, grad=dy, **kwargs):
    return lambda: tricorr.corr2d_input_grad(
        size, *[t() if callable(t) else t for t in (weight, grad)], **kwargs
    )


def weight_grad(image=x, size=(6, 4, 3, 3), grad=dy, **kwargs):
    return lambda: tricorr.corr2d_weight_grad(
        image() if callable(image) else image, size, grad() if callable(grad) else grad, **kwargs
    )


def quantized():
    return torch.quantize_per_tensor(x(), 0.1, 0, torch.quint8)


def nested():
    return torch.nested.nested_tensor([x(4, 6, 6), x(4, 5, 6)])


VALUES = {
    # Ranks.
    "input_0d": (corr(lambda: x().sum(), w), r"input of shape \(\) does not fit weight of shape \(6, 4, 3, 3\): expected"),
    "input_1d": (corr(lambda: x(4), w), r"input of shape \(4,\) does not fit weight"),
    "input_1d_every_plane": (corr(lambda: x(4), lambda: w(3, 3)), r"input of shape \(4,\) does not fit weight of shape \(3, 3\)"),
    "input_2d": (corr(lambda: x(6, 6), w), r"input of shape \(6, 6\) does not fit weight"),
    "input_5d": (corr(lambda: x(1, 2, 4, 6, 6), w), r"input of shape \(1, 2, 4, 6, 6\) does not fit"),
    "weight_0d": (corr(x, lambda: w().sum()), r"weight of shape \(\)"),
    "weight_1d": (corr(x, lambda: w(3)), r"weight of shape \(3,\)"),
    "weight_3d": (corr(x, lambda: w(4, 3, 3)), r"weight of shape \(4, 3, 3\)"),
    "weight_6d": (corr(x, lambda: w(1, 1, 6, 4, 3, 3)), r"weight of shape \(1, 1, 6, 4, 3, 3\)"),
    "weight_5d_of_unbatched": (corr(lambda: x(4, 6, 6), lambda: w(1, 6, 4, 3, 3)), r"does not fit weight of shape \(1, 6, 4, 3, 3\)"),
    # Channels, groups, samples.
    "channels": (corr(lambda: x(2, 3, 6, 6), w), r"weight of shape \(6, 4, 3, 3\) with groups=1 expects an input with 4 channels, got 3 \(input of shape \(2, 3, 6, 6\)\)"),
    "channels_of_empty_batch": (corr(lambda: x(0, 3, 6, 6), w), "with 4 channels, got 3"),
    "channels_in_padding_mode": (corr(lambda: x(2, 3, 6, 6), w, padding=1, padding_mode="reflect"), r"got 3 \(input of shape \(2, 3, 6, 6\)\)"),
    "channels_grouped": (corr(x, w, groups=2), "groups=2 expects an input with 8 channels, got 4"),
    "groups_do_not_divide_filters": (corr(x, lambda: w(5, 2, 3, 3), groups=2), "groups=2 must divide the number of filters, got 5"),
    "groups_exceed_filters": (corr(x, lambda: w(3, 1, 3, 3), groups=4), "groups=4 must divide the number of filters, got 3"),
    "groups_do_not_divide_channels": (corr(lambda: x(1, 5, 6, 6), lambda: w(6, 2, 3, 3), groups=2), "with 4 channels, got 5"),
    "groups_0": (steps(groups=0), "groups must be positive, got 0"),
    "groups_-1": (steps(groups=-1), "groups must be positive, got -1"),
    "groups_2**63": (steps(groups=2**63), "groups=9223372036854775808 must divide"),
    "groups_every_plane": (corr(x, lambda: w(3, 3), groups=2), "groups must be 1 for one kernel on every plane, got 2"),
    "samples": (corr(x, lambda: w(3, 6, 4, 3, 3)), r"a filter bank for each of 3 samples, but the input \(2, 4, 6, 6\) has 2"),
    # Bias.
    "bias_length": (corr(x, w, lambda: x(5)), r"bias must have shape \(6,\) for a weight of shape \(6, 4, 3, 3\), got \(5,\)"),
    "bias_one": (corr(x, w, lambda: x(1)), r"bias must have shape \(6,\).*, got \(1,\)"),
    "bias_2d": (corr(x, w, lambda: x(6, 1)), r"bias must have shape \(6,\).*, got \(6, 1\)"),
    "bias_0d": (corr(x, w, lambda: x().sum()), r"bias must have shape \(6,\).*, got \(\)"),
    "bias_every_plane": (corr(x, lambda: w(3, 3), lambda: x(2)), r"bias must have one element for a weight of shape \(3, 3\), got shape \(2,\)"),
    # Steps.
    "stride_0": (steps(stride=0), r"stride must be positive, got \(0, 0\)"),
    "stride_-1": (steps(stride=-1), r"stride must be positive, got \(-1, -1\)"),
    "stride_1_0": (steps(stride=(1, 0)), r"stride must be positive, got \(1, 0\)"),
    "stride_3": (steps(stride=(1, 1, 1)), r"stride must be one integer or two \(h, w\), got \(1, 1, 1\)"),
    "stride_none": (steps(stride=()), r"stride must be one integer or two \(h, w\), got \(\)"),
    "stride_2**63": (steps(stride=2**63), r"stride must fit 64-bit integers, got \(9223372036854775808"),
    "stride_matrix": (steps(stride=torch.ones(3, 3)), r"stride must be one integer or two \(h, w\), got tensor\("),
    "dilation_0": (steps(dilation=0), r"dilation must be positive, got \(0, 0\)"),
    "dilation_-1": (steps(dilation=(1, -1)), r"dilation must be positive, got \(1, -1\)"),
    "dilation_3": (steps(dilation=(1, 2, 3)), r"dilation must be one integer or two"),
    "dilation_large": (steps(dilation=3), r"the window is larger than the padded input: it is 7 high \(size 3, dilation 3\), the input 6 \(size 6, padding 0 and 0\)"),
    "dilation_2**31": (steps(dilation=2**31), "it is 4294967297 high"),
    "dilation_2**62": (steps(dilation=2**62), "it is 9223372036854775809 high"),
    "dilation_2**63": (steps(dilation=2**63), "dilation must fit 64-bit integers"),
    # Padding.
    "padding_-1": (steps(padding=-1), "padding must not be negative, got -1"),
    "padding_1_-1": (steps(padding=(1, -1)), r"padding must not be negative, got \(1, -1\)"),
    "padding_side": (steps(padding=((1, 1), (-1, 1))), r"padding must not be negative, got \(\(1, 1\), \(-1, 1\)\)"),
    "padding_foo": (steps(padding="foo"), "padding must be numbers, 'same' or 'valid', got 'foo'"),
    "padding_long_text": (steps(padding="a\nb" * 500), "padding must be numbers, 'same' or 'valid', got"),
    "padding_same_strided": (steps(padding="same", stride=2), r"padding='same' needs stride 1, got \(2, 2\)"),
    "padding_3": (steps(padding=(1, 1, 1)), r"padding must be one integer or two \(h, w\), got \(1, 1, 1\)"),
    "padding_4": (steps(padding=(1, 1, 1, 1)), r"padding must be one integer or two \(h, w\), got \(1, 1, 1, 1\)"),
    "padding_mixed": (steps(padding=((1, 2), 3)), r"padding must be \(\(top, bottom\), \(left, right\)\), got \(\(1, 2\), 3\)"),
    "padding_2**31": (steps(padding=2**31), rf"shape \(2, 6, 4294967300, 4294967300\) are {HUGE}"),
    "padding_2**62": (steps(padding=2**62), HUGE),
    "padding_2**63": (steps(padding=2**63), HUGE),
    "padding_mode": (steps(padding_mode="xyz"), "padding_mode must be 'zeros', 'reflect', 'replicate' or 'circular', got 'xyz'"),
    "padding_mode_none": (steps(padding_mode=None), "padding_mode must be .*, got None"),
    "reflect_too_far": (steps(padding=6, padding_mode="reflect"), r"padding_mode='reflect' can pad a height of 6 by at most 5, got \(6, 6\)"),
    "reflect_too_far_at_the_right": (steps(padding=((0, 0), (0, 7)), padding_mode="reflect"), r"can pad a width of 6 by at most 5, got \(0, 7\)"),
    "circular_too_far": (steps(padding=7, padding_mode="circular"), r"padding_mode='circular' can pad a height of 6 by at most 6, got \(7, 7\)"),
    "precision": (steps(precision="fp8"), "precision must be 'ieee', 'tf32', 'tf32x3' or None, got 'fp8'"),
    # Sizes.
    "window_large": (corr(x, lambda: w(6, 4, 7, 7)), r"it is 7 high \(size 7, dilation 1\), the input 6"),
    "window_wide": (corr(x, lambda: w(6, 4, 3, 7)), r"it is 7 wide \(size 7, dilation 1\), the input 6"),
    "window_large_every_plane": (corr(lambda: x(3, 3), lambda: w(4, 4)), "it is 4 high.*, the input 3"),
    "window_large_meta": (corr(lambda: x(device="meta"), lambda: w(6, 4, 7, 7, device="meta")), "it is 7 high"),
    "window_large_in_padding_mode": (corr(x, lambda: w(6, 4, 9, 9), padding=1, padding_mode="reflect"), r"the input 8 \(size 6, padding 1 and 1\)"),
    "window_empty": (corr(x, lambda: w(6, 4, 0, 3)), "the window must not be empty, got 0x3"),
    "window_empty_every_plane": (corr(lambda: x(6, 6), lambda: w(0, 0)), "the window must not be empty, got 0x0"),
    "no_filters": (corr(x, lambda: w(0, 4, 3, 3)), r"weight must hold at least one filter, got shape \(0, 4, 3, 3\)"),
    "no_height": (corr(lambda: x(2, 4, 0, 6), w), r"input must have a height and a width, got shape \(2, 4, 0, 6\)"),
    "no_height_but_padding": (corr(lambda: x(2, 4, 0, 6), w, padding=2), "input must have a height and a width"),
    "no_width_in_padding_mode": (corr(lambda: x(2, 4, 6, 0), w, padding=2, padding_mode="replicate"), "input must have a height and a width"),
    "no_height_every_plane": (corr(lambda: x(0, 5), lambda: w(2, 2)), "input must have a height and a width"),
    # The other functions.
    "convolve_window": (lambda: tricorr.convolve2d(x(), w(6, 4, 7, 7)), "it is 7 high"),
    "transposed_input_rank": (transposed(lambda: x(6, 6), lambda: w(4, 3, 3, 3)), r"takes input \(N, K, P, Q\) or \(K, P, Q\).*, got \(6, 6\) and \(4, 3, 3, 3\)"),
    "transposed_weight_rank": (transposed(x, lambda: w(3, 3)), r"got \(2, 4, 6, 6\) and \(3, 3\)"),
    "transposed_channels": (transposed(x, w), r"weight of shape \(6, 4, 3, 3\) expects an input with 6 channels, got 4"),
    "transposed_groups": (transposed(groups=3), "groups=3 must divide the number of filters, got 4"),
    "transposed_groups_0": (transposed(groups=0), "groups must be positive, got 0"),
    "transposed_bias": (transposed(x, lambda: w(4, 3, 3, 3), lambda: x(4)), r"bias must have shape \(3,\).*, got \(4,\)"),
    "transposed_stride_0": (transposed(stride=0), r"stride must be positive, got \(0, 0\)"),
    "transposed_dilation_0": (transposed(dilation=0), r"dilation must be positive, got \(0, 0\)"),
    "transposed_stride_2**62": (transposed(stride=2**62), HUGE),
    "transposed_stride_2**31": (transposed(stride=2**31), HUGE),
    "transposed_padding_-1": (transposed(padding=-1), "padding must not be negative, got -1"),
    "transposed_padding_a_column": (transposed(padding=(0, 4)), r"leaves nothing of the output: it would be 8 x 0"),
    "transposed_padding_all": (transposed(padding=4), r"padding \(\(4, 4\), \(4, 4\)\) leaves nothing of the output: it would be 0 x 0"),
    "output_padding": (transposed(output_padding=1), r"output_padding must be smaller than stride or dilation and not negative, got \(1, 1\) with stride \(1, 1\) and dilation \(1, 1\)"),
    "output_padding_-1": (transposed(output_padding=-1), r"output_padding .* not negative, got \(-1, -1\)"),
    "output_padding_3": (transposed(output_padding=(0, 0, 0)), "output_padding must be one integer or two"),
    "transposed_no_height": (transposed(lambda: x(2, 4, 0, 6), lambda: w(4, 3, 3, 3)), r"input and window must not be empty, got \(2, 4, 0, 6\)"),
    "transposed_no_filters": (transposed(lambda: x(2, 0, 6, 6), lambda: w(0, 3, 3, 3)), "weight must hold at least one filter"),
    "input_grad_shape": (input_grad((2, 4, 7, 6)), r"grad_output must have the output's shape \(2, 6, 5, 4\), got \(2, 6, 4, 4\)"),
    "input_grad_batch": (input_grad((3, 4, 6, 6)), r"grad_output must have the output's shape \(3, 6, 4, 4\)"),
    "input_grad_negative": (input_grad((2, 4, -6, 6)), r"got shape \(2, 4, -6, 6\)"),
    "input_grad_rank": (input_grad((4, 6, 6)), r"input_size must have four sizes \(N, C, H, W\) and the weight four or five, got \(4, 6, 6\) and \(6, 4, 3, 3\)"),
    "input_grad_stride": (input_grad(stride=0), "stride must be positive"),
    "input_grad_2**62": (input_grad((2, 4, 2**62, 6)), HUGE),
    "weight_grad_shape": (weight_grad(size=(6, 4, 3, 2)), r"grad_output must have the output's shape \(2, 6, 4, 5\), got \(2, 6, 4, 4\)"),
    "weight_grad_channels": (weight_grad(size=(6, 3, 3, 3)), "with 3 channels, got 4"),
    "weight_grad_rank": (weight_grad(lambda: x(4, 6, 6)), r"input must have four sizes .*, got \(4, 6, 6\)"),
    # Layers.
    "layer_kernel_3": (lambda: tricorr.Conv2D(4, 6, (3, 3, 3)), r"kernel_size must be one integer or two \(h, w\), got \(3, 3, 3\)"),
    "layer_kernel_0": (lambda: tricorr.Conv2D(4, 6, 0), "kernel_size must be positive, got 0"),
    "layer_kernel_-1": (lambda: tricorr.Conv2D(4, 6, (3, -1)), r"kernel_size must be positive, got \(3, -1\)"),
    "layer_in_-4": (lambda: tricorr.Conv2D(-4, 6, 3), "in_channels must not be negative, got -4"),
    "layer_out_-6": (lambda: tricorr.Conv2D(4, -6, 3), "out_channels must not be negative, got -6"),
    "layer_groups_in": (lambda: tricorr.Conv2D(4, 6, 3, groups=3), "groups=3 must divide in_channels, got 4"),
    "layer_groups_out": (lambda: tricorr.Conv2D(4, 6, 3, groups=4), "groups=4 must divide out_channels, got 6"),
    "layer_groups_0": (lambda: tricorr.Conv2D(4, 6, 3, groups=0), "groups must be positive, got 0"),
    "layer_stride_0_call": (lambda: tricorr.Conv2D(4, 6, 3, stride=0)(x()), r"stride must be positive, got \(0, 0\)"),
    "layer_dilation_0_call": (lambda: tricorr.Conv2D(4, 6, 3, dilation=0)(x()), r"dilation must be positive"),
    "layer_padding_-1_call": (lambda: tricorr.Conv2D(4, 6, 3, padding=-1)(x()), r"padding must not be negative, got \(-1, -1\)"),
    "layer_reflect_call": (lambda: tricorr.Conv2D(4, 6, 3, padding=6, padding_mode="reflect")(x()), "by at most 5"),
    "layer_channels_call": (lambda: tricorr.Conv2D(4, 6, 3)(x(2, 3, 6, 6)), "with 4 channels, got 3"),
    "transposed_layer_kernel_3": (lambda: tricorr.ConvTranspose2D(4, 6, (3, 3, 3)), "kernel_size must be one integer or two"),
    "transposed_layer_groups": (lambda: tricorr.ConvTranspose2D(4, 6, 3, groups=4), "groups=4 must divide out_channels, got 6"),
    "transposed_layer_channels_call": (lambda: tricorr.ConvTranspose2D(3, 6, 3)(x()), "with 3 channels, got 4"),
}  # fmt: skip

TYPES = {
    # Not tensors.
    "input_numpy": (corr(np.ones((2, 4, 6, 6)), w), r"input must be a torch.Tensor, got numpy.ndarray"),
    "input_list": (corr([[1.0]], w), "input must be a torch.Tensor, got list"),
    "input_none": (corr(None, w), "input must be a torch.Tensor, got NoneType"),
    "input_str": (corr("image.png", w), "input must be a torch.Tensor, got str"),
    "weight_none": (corr(x, None), "weight must be a torch.Tensor, got NoneType"),
    "bias_float": (corr(x, w, 1.0), "bias must be a torch.Tensor, got float"),
    "transposed_none": (transposed(x, None), "weight must be a torch.Tensor, got NoneType"),
    "grad_none": (input_grad(grad=None), "grad_output must be a torch.Tensor, got NoneType"),
    "weight_grad_none": (weight_grad(image=None), "input must be a torch.Tensor, got NoneType"),
    "layer_none": (lambda: tricorr.Conv2D(4, 6, 3)(None), "input must be a torch.Tensor, got NoneType"),
    # Dtypes.
    "f32_f64": (dtypes(torch.float32, torch.float64), "input and weight must have the same dtype, got torch.float32 and torch.float64"),
    "f16_f32": (dtypes(torch.float16, torch.float32), "got torch.float16 and torch.float32"),
    "bias_f64": (dtypes(torch.float32, torch.float32, torch.float64), "input, weight and bias must have the same dtype, got torch.float32, torch.float32 and torch.float64"),
    "bias_f64_of_uint8": (dtypes(torch.uint8, torch.float32, torch.float64), "weight and bias must have the same dtype, got torch.float32 and torch.float64"),
    **{
        f"{dtype}_both": (dtypes(dtype, dtype), f"input {FLOATS}, or a uint8 image, got {dtype}")
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.bool, torch.uint16, torch.complex64, torch.complex128, torch.complex32, torch.float8_e4m3fn, torch.float8_e5m2)
    },
    "int64_weight": (dtypes(torch.float32, torch.int64), f"weight {FLOATS}, got torch.int64"),
    "uint8_both": (dtypes(torch.uint8, torch.uint8), f"weight {FLOATS}, got torch.uint8"),
    "int64_bias": (dtypes(torch.float32, torch.float32, torch.int64), f"bias {FLOATS}, got torch.int64"),
    "complex_input": (dtypes(torch.complex64, torch.float32), "input must be .*, got torch.complex64"),
    "transposed_uint8": (transposed(lambda: x().byte(), lambda: w(4, 3, 3, 3)), f"input {FLOATS}, got torch.uint8"),
    "weight_grad_f64": (weight_grad(lambda: x().double()), "input and grad_output must have the same dtype, got torch.float64 and torch.float32"),
    "layer_f64": (lambda: tricorr.Conv2D(4, 6, 3)(x().double()), "input, weight and bias must have the same dtype, got torch.float64, torch.float32 and torch.float32"),
    "layer_complex": (lambda: tricorr.Conv2D(4, 6, 3, dtype=torch.complex64)(x()), f"weight {FLOATS}, got torch.complex64"),
    "quantized": (corr(quantized, w), "input must be .*, got torch.quint8"),
    # Layouts and devices.
    "sparse_coo_input": (corr(lambda: x().to_sparse(), w), r"input must be a dense \(strided\) tensor, got layout torch.sparse_coo"),
    "sparse_coo_weight": (corr(x, lambda: w().to_sparse()), "weight must be a dense .*, got layout torch.sparse_coo"),
    "sparse_csr_weight": (corr(lambda: x(6, 6), lambda: w(3, 3).to_sparse_csr()), "weight must be a dense .*, got layout torch.sparse_csr"),
    "mkldnn_input": (corr(lambda: x().to_mkldnn(), w), "input must be a dense .*, got layout torch._mkldnn"),
    "nested_input": (corr(nested, w), r"input must be a dense \(strided\) tensor, got a nested tensor"),
    "meta_weight": (corr(x, lambda: w(device="meta")), "input and weight must be on the same device, got cpu and meta"),
    "meta_input": (corr(lambda: x(device="meta"), w), "input and weight must be on the same device, got meta and cpu"),
    "meta_uint8_input": (corr(lambda: x(device="meta").byte(), w), "must be on the same device, got meta and cpu"),
    "meta_bias": (corr(x, w, lambda: x(6, device="meta")), "input, weight and bias must be on the same device, got cpu, cpu and meta"),
    "meta_grad": (input_grad(grad=lambda: dy().to("meta")), "weight and grad_output must be on the same device"),
    # Numbers.
    "groups_float": (steps(groups=1.0), r"groups must be an integer, got 1.0 \(float\)"),
    "groups_true": (steps(groups=True), r"groups must be an integer, got True \(bool\)"),
    "groups_none": (steps(groups=None), r"groups must be an integer, got None \(NoneType\)"),
    "groups_text": (steps(groups="a\n" * 500), r"groups must be an integer, got 'a"),
    "stride_float": (steps(stride=1.5), r"stride must be an integer, got 1.5 \(float\)"),
    "stride_numpy_float": (steps(stride=np.float32(2)), r"stride must be an integer, got np.float32\(2.0\)"),
    "stride_false": (steps(stride=(1, False)), r"stride must be an integer, got False \(bool\)"),
    "stride_none": (steps(stride=None), r"stride must be an integer, got None"),
    "stride_dict": (steps(stride={"h": 1, "w": 2}), r"stride must be an integer, got {.*} \(dict\)"),
    "dilation_float": (steps(dilation=(1, 2.0)), r"dilation must be an integer, got 2.0 \(float\)"),
    "padding_float": (steps(padding=0.5), r"padding must be an integer, got 0.5 \(float\)"),
    "padding_side_float": (steps(padding=((0, 0.5), (0, 0))), r"padding must be an integer, got 0.5 \(float\)"),
    "padding_none": (steps(padding=None), r"padding must be an integer, got None"),
    "transposed_padding_same": (transposed(padding="same"), "padding of a transposed correlation must be numbers, got 'same'"),
    "transposed_padding_valid": (transposed(padding="valid"), "padding of a transposed correlation must be numbers, got 'valid'"),
    "output_padding_float": (transposed(output_padding=0.5), r"output_padding must be an integer, got 0.5 \(float\)"),
    "input_size_int": (input_grad(5), "input_size must be a sequence of integers, got 5"),
    "input_size_float": (input_grad((2, 4, 6.0, 6)), r"input_size must be an integer, got 6.0 \(float\)"),
    "weight_size_none": (weight_grad(size=None), "weight_size must be a sequence of integers, got None"),
    "layer_kernel_float": (lambda: tricorr.Conv2D(4, 6, 1.5), r"kernel_size must be an integer, got 1.5 \(float\)"),
    "layer_in_float": (lambda: tricorr.Conv2D(4.0, 6, 3), r"in_channels must be an integer, got 4.0 \(float\)"),
    "layer_groups_float": (lambda: tricorr.Conv2D(4, 6, 3, groups=1.0), r"groups must be an integer, got 1.0 \(float\)"),
    "layer_no_kernel": (lambda: tricorr.Conv2D(4, 6), r"Conv2D needs kernel_size, for example Conv2D\(kernel_size=\(1, 2\)\)"),
    "layer_one_channel_count": (lambda: tricorr.Conv2D(4, kernel_size=3), "both in_channels and out_channels, or neither.*, got in_channels=4 and out_channels=None"),
}  # fmt: skip

#: Refused by PyTorch's layers or by Python, with the same message as for nn.Conv2d.
PYTORCHS_OWN = {
    "padding_text": (ValueError, lambda: tricorr.Conv2D(4, 6, 3, padding="foo"), "Invalid padding string 'foo'"),
    "padding_same_strided": (ValueError, lambda: tricorr.Conv2D(4, 6, 3, padding="same", stride=2), "not supported for strided"),
    "padding_mode": (ValueError, lambda: tricorr.Conv2D(4, 6, 3, padding_mode="xyz"), "padding_mode='xyz'"),
    "int64_parameters": (RuntimeError, lambda: tricorr.Conv2D(4, 6, 3, dtype=torch.int64), "Only Tensors of floating point"),
    "state_dict": (RuntimeError, lambda: tricorr.Conv2D(4, 6, 3).load_state_dict(nn.Conv2d(4, 5, 3).state_dict()), "size mismatch for weight"),
    "state_dict_bias": (RuntimeError, lambda: tricorr.Conv2D(4, 6, 3).load_state_dict({"weight": w()}), "Missing key.*bias"),
    "lazy_rank": (RuntimeError, lambda: tricorr.LazyConv2D(6, 3)(x(6, 6)), r"Expected 3D \(unbatched\) or 4D \(batched\) input to LazyConv2D"),
    "lazy_groups": (ValueError, lambda: tricorr.LazyConv2D(6, 3, groups=3)(x()), "in_channels must be divisible by groups"),
    "lazy_numel": (ValueError, lambda: tricorr.LazyConv2D(6, 3).weight.numel(), "uninitialized parameter"),
    "transposed_padding_mode": (ValueError, lambda: tricorr.ConvTranspose2D(4, 6, 3, padding_mode="reflect"), 'Only "zeros" padding mode'),
    "transposed_output_size": (ValueError, lambda: tricorr.ConvTranspose2D(4, 6, 3)(x(), output_size=(20, 20)), r"requested an output size of \(20, 20\)"),
    "no_weight": (TypeError, lambda: tricorr.corr2d(x()), "missing 1 required positional argument: 'weight'"),
    "unknown_keyword": (TypeError, lambda: tricorr.corr2d(x(), w(), foo=1), "unexpected keyword argument 'foo'"),
    "out": (TypeError, lambda: tricorr.corr2d(x(), w(), out=dy()), "unexpected keyword argument 'out'"),
    "backward_shape": (RuntimeError, lambda: tricorr.corr2d(x(), w().requires_grad_()).backward(dy(2, 6, 3, 3)), "Mismatch in shape"),
    "backward_not_scalar": (RuntimeError, lambda: tricorr.corr2d(x(), w().requires_grad_()).backward(), "scalar outputs"),
}  # fmt: skip


def refused(call, classes, pattern):
    with pytest.raises(classes[0]) as raised:
        call()
    message = str(raised.value)
    assert all(isinstance(raised.value, cls) for cls in classes)
    assert re.search(pattern, message), message
    return message


def refused_in_one_line(call, classes, pattern, monkeypatch):
    """By the kernels and by PyTorch's own convolution, with the same message."""
    message = refused(call, classes, pattern)
    assert "\n" not in message
    assert 10 < len(message) < 300
    assert "triton" not in message
    assert "Traceback" not in message
    monkeypatch.setattr(by, "CPU_DEVICE", None)
    assert refused(call, classes, pattern) == message


@pytest.mark.parametrize("case", VALUES)
def test_wrong_values_and_shapes_are_refused(case, monkeypatch):
    call, pattern = VALUES[case]
    refused_in_one_line(call, (ArgumentError, RuntimeError, ValueError), pattern, monkeypatch)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz:DeprecationWarning")
@pytest.mark.parametrize("case", TYPES)
def test_wrong_types_are_refused(case, monkeypatch):
    call, pattern = TYPES[case]
    refused_in_one_line(call, (ArgumentTypeError, RuntimeError, TypeError), pattern, monkeypatch)


@pytest.mark.parametrize("case", PYTORCHS_OWN)
def test_calls_that_pytorch_refuses_are_refused(case):
    cls, call, pattern = PYTORCHS_OWN[case]
    refused(call, (cls,), pattern)


#: (call of F's function or of tricorr's, shape of the result).
ACCEPTED = {
    "unbatched": (lambda f: f(x(4, 6, 6), w()), (6, 4, 4)),
    "padding_1_tuple": (lambda f: f(x(), w(), padding=(1,)), (2, 6, 6, 6)),
    "padding_list": (lambda f: f(x(), w(), padding=[0, 1]), (2, 6, 4, 6)),
    "padding_valid": (lambda f: f(x(), w(), padding="valid"), (2, 6, 4, 4)),
    "padding_same_even": (lambda f: f(x(), w(6, 4, 2, 4), padding="same"), (2, 6, 6, 6)),
    "stride_exceeds_input": (lambda f: f(x(), w(), stride=9), (2, 6, 1, 1)),
    "stride_2**31": (lambda f: f(x(), w(), stride=2**31), (2, 6, 1, 1)),
    "stride_tensor": (lambda f: f(x(), w(), stride=torch.tensor(2)), (2, 6, 2, 2)),
    "stride_numpy": (lambda f: f(x(), w(), stride=(np.int64(2), np.uint8(1))), (2, 6, 2, 4)),
    "bias_none": (lambda f: f(x(), w(), None), (2, 6, 4, 4)),
    "window_larger_but_padded": (lambda f: f(x(), w(6, 4, 7, 7), padding=1), (2, 6, 2, 2)),
    "empty_batch": (lambda f: f(x(0, 4, 6, 6), w()), (0, 6, 4, 4)),
    "expanded_input": (lambda f: f(x(1).expand(2, 4, 6, 6), w()), (2, 6, 4, 4)),
    "expanded_weight": (lambda f: f(x(), w(1).expand(6, 4, 3, 3)), (2, 6, 4, 4)),
    "channels_last": (lambda f: f(x().to(memory_format=torch.channels_last), w()), (2, 6, 4, 4)),
    "float16": (lambda f: f(x().half(), w().half()), (2, 6, 4, 4)),
    "bfloat16": (lambda f: f(x().bfloat16(), w().bfloat16()), (2, 6, 4, 4)),
    "meta": (lambda f: f(x(device="meta"), w(device="meta"), x(6, device="meta")), (2, 6, 4, 4)),
    "inference_input": (lambda f: f(inference(), w()), (2, 6, 4, 4)),
}  # fmt: skip

#: Calls that PyTorch refuses, computes wrongly or does not have.
ACCEPTED_BEYOND_PYTORCH = {
    "no_channels": (lambda: tricorr.corr2d(x(2, 0, 6, 6), w(6, 0, 3, 3)), (2, 6, 4, 4)),
    "no_channels_reflect": (
        lambda: tricorr.corr2d(x(2, 0, 6, 6), w(6, 0, 3, 3), padding=1, padding_mode="reflect"),
        (2, 6, 6, 6),
    ),
    "no_channels_transposed": (
        lambda: tricorr.corr_transpose2d(x(), w(4, 0, 3, 3)), (2, 0, 8, 8)
    ),
    "stride_int64_max": (lambda: tricorr.corr2d(x(), w(), stride=2**63 - 1), (2, 6, 1, 1)),
    "dilation_of_one_tap": (
        lambda: tricorr.corr2d(x(), w(6, 4, 1, 1), dilation=2**63 - 1), (2, 6, 6, 6)
    ),
    "uint8_image": (lambda: tricorr.corr2d(x().byte(), w()), (2, 6, 4, 4)),
    "uint8_image_reflect": (
        lambda: tricorr.corr2d(x().byte(), w(), padding=1, padding_mode="reflect"), (2, 6, 6, 6)
    ),
    "one_pixel_every_plane": (lambda: tricorr.corr2d(x(1, 1), w(1, 1), x(1)[0]), (1, 1)),
    "no_planes": (lambda: tricorr.corr2d(x(0, 3, 6, 6), w(3, 3)), (0, 3, 4, 4)),
    "asymmetric": (lambda: tricorr.corr2d(x(), w(), padding=((0, 1), (2, 3))), (2, 6, 5, 9)),
    "stride_array": (lambda: tricorr.corr2d(x(), w(), stride=np.array([2, 1])), (2, 6, 2, 4)),
    "asymmetric_array": (lambda: tricorr.corr2d(x(), w(), padding=np.array([[0, 1], [2, 3]])), (2, 6, 5, 9)),
}  # fmt: skip


def inference():
    with torch.inference_mode():
        return x()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", ACCEPTED)
def test_calls_that_pytorch_accepts_are_accepted(backend, case):
    call, shape = ACCEPTED[case]
    with torch.device(backend.device):
        result, expected = call(tricorr.corr2d), call(F.conv2d)
    assert tuple(result.shape) == tuple(expected.shape) == shape
    assert (result.dtype, result.device) == (expected.dtype, expected.device)
    if case != "empty_batch":  # PyTorch does not keep the memory format of an empty batch
        assert result.stride() == expected.stride()
    if result.device.type != "meta":
        assert torch.equal(result, expected)  # whole numbers: exact in any order


@pytest.mark.parametrize("case", ACCEPTED_BEYOND_PYTORCH)
def test_calls_beyond_pytorchs_are_accepted(backend, case):
    call, shape = ACCEPTED_BEYOND_PYTORCH[case]
    with torch.device(backend.device):
        result = call()
    assert tuple(result.shape) == shape
    assert result.dtype == torch.float32
    if case.startswith("no_channels"):
        assert not result.any()


def test_huge_expanded_input_is_not_copied(kernel_backend):
    """A copy would take 4 TB. PyTorch makes one."""
    side = 2**20
    image = torch.ones(1, device=kernel_backend.device).expand(1, 1, side, side)
    result = tricorr.corr2d(image, w(1, 1, 3, 3).to(image.device), stride=side // 2)
    assert torch.equal(result.cpu(), torch.full((1, 1, 2, 2), 9.0))


def test_huge_padding_on_meta_needs_no_memory():
    result = tricorr.corr2d(x(device="meta"), w(device="meta"), padding=2**18)
    assert result.shape == (2, 6, 524292, 524292)


def test_inference_tensor_is_not_saved_for_backward():
    call = corr(inference, lambda: w().requires_grad_())
    refused(call, (RuntimeError,), "Inference tensors cannot be saved for backward")


def test_layer_works_after_a_refused_call(backend):
    layer = tricorr.Conv2D(4, 6, 3).to(backend.device)
    image = x().to(backend.device)
    before = layer(image)
    for wrong in (image[:, :3], image.double(), image[..., :2], None):
        with pytest.raises(RuntimeError):
            layer(wrong)
    assert torch.equal(layer(image), before)
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_lazy_layer_works_after_a_refused_call():
    layer = tricorr.LazyConv2D(6, 3)
    with pytest.raises(RuntimeError):
        layer(x(6, 6))
    assert layer.has_uninitialized_params()
    assert layer(x()).shape == (2, 6, 4, 4)
