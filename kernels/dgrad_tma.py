"""Input gradient as an implicit GEMM, with operands loaded through tensor descriptors.

    dx[n,c,h,w] = bias[c] + sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h = p * STRIDE_H - PAD_H + r * DIL_H, w likewise

    GEMM_M = pixels (n,h,w) of one phase    GEMM_N = channels c of one group
    GEMM_K = (k blocks, r, s, k), over the taps that reach the phase

The pixels of phase (a, b), dx[:, :, a::STRIDE_H, b::STRIDE_W], are reached through the same taps;
through one tap, a box of dy reaches a box of them: no zeros between strides are multiplied. The
rest is as in fprop_tma; dx may be strided along the columns of an NCHW dy. With CROSSWISE, the
weight is a matrix (k, (r,s,c)) that is multiplied with its axes exchanged, which matrix units do
for 16-bit operands only; otherwise it is (c, (r,s,k)).
"""

import triton
import triton.language as tl

from .fprop_tma import box_pixels
from .hints import align_extents, align_strides, side_by_side
from .phases import phase_taps, phases
from .reduction import add_taps_tma
from .schedule import next_digit, widen
from .structs import at


@triton.jit(do_not_specialize=["N", "SPLITS"])
def dgrad_tma(
    dy_desc, weight_desc, bias_ptr, dx_ptr,
    N, SPLITS, x_shape, channels, TAP_COLUMNS, bias_stride, dx_strides, split_stride,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    GROUPS, GROUP_C, GROUP_K = channels
    STRIDE_H: tl.constexpr = WINDOW.STRIDE_H
    STRIDE_W: tl.constexpr = WINDOW.STRIDE_W
    GROUP_C, W = align_extents(GROUP_C, W, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    dx_strides = align_strides(dx_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)

    tiles = tl.cdiv(GROUP_C, TILE.BLOCK_N) * phases(STRIDE_H, H) * phases(STRIDE_W, W) * GROUPS
    tiles *= tl.cdiv(tl.cdiv(W, STRIDE_W), TILE.BLOCK_Q)
    tiles *= tl.cdiv(tl.cdiv(H, STRIDE_H), TILE.BLOCK_P)
    tiles *= tl.cdiv(N, TILE.BLOCK_I)
    program, split = tl.program_id(0), 0
    if LAYOUT.SPLIT:
        split, program = next_digit(program, SPLITS)
        dx_ptr += widen(split, INT64) * split_stride
    first, last, step = program, program + 1, 1
    if LAYOUT.PERSISTENT:
        last, step = tiles, tl.num_programs(0)
    for tile in tl.range(first, last, step, flatten=LAYOUT.PERSISTENT):
        tile_n, program = next_digit(tile, tl.cdiv(GROUP_C, TILE.BLOCK_N))
        phase_w, program = next_digit(program, phases(STRIDE_W, W))
        phase_h, program = next_digit(program, phases(STRIDE_H, H))
        tile_w, program = next_digit(program, tl.cdiv(tl.cdiv(W, STRIDE_W), TILE.BLOCK_Q))
        tile_h, program = next_digit(program, tl.cdiv(tl.cdiv(H, STRIDE_H), TILE.BLOCK_P))
        tile_i, group = next_digit(program, tl.cdiv(N, TILE.BLOCK_I))
        corner = (tile_i * TILE.BLOCK_I, tile_h * TILE.BLOCK_P, tile_w * TILE.BLOCK_Q)
        n, row, column = corner
        c, k = tile_n * TILE.BLOCK_N, group * GROUP_K

        first_r, taps_r, shift_h, step_r, step_h = phase_taps(
            phase_h, WINDOW.R, STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H
        )
        first_s, taps_s, shift_w, step_s, step_w = phase_taps(
            phase_w, WINDOW.S, STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W
        )
        if LAYOUT.CROSSWISE:
            weight_row, weight_column = k, c
        else:
            weight_row, weight_column = group * GROUP_C + c, 0
        acc = tl.zeros([TILE.BLOCK_N, TILE.BLOCK_I * TILE.BLOCK_P * TILE.BLOCK_Q], tl.float32)
        acc = add_taps_tma(
            acc, dy_desc, weight_desc,
            (n, row - shift_h, column - shift_w, k), (weight_row, weight_column),
            GROUP_K, TAP_COLUMNS,
            (first_r, taps_r, step_r, -step_h), (first_s, taps_s, step_s, -step_w), split, SPLITS,
            WINDOW, LAYOUT, PRECISION, TILE.BLOCK_K,
        )  # fmt: skip

        group_c = c + tl.arange(0, TILE.BLOCK_N)[:, None]  # [BLOCK_N, 1]
        c = widen(group * GROUP_C + group_c, INT64)
        bias = 0.0
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + c * bias_stride, mask=group_c < GROUP_C, other=0.0)
        n, h, w = box_pixels(corner, TILE, INT64)  # [1, pixels]
        h, w = phase_h + h * STRIDE_H, phase_w + w * STRIDE_W
        dx = (acc + bias).to(dx_ptr.dtype.element_ty)
        mask = (group_c < GROUP_C) & (n < N) & (h < H) & (w < W)
        pixels = at(dx_ptr, dx_strides, n, c, h, 0)
        if LAYOUT.OUT_AXIS == 1 and WINDOW.STRIDE_W > 1:  # the compiler sees no runs of columns
            pixels = side_by_side(pixels, w * dx_strides[3])
        else:
            pixels += w * dx_strides[3]
        tl.store(pixels, dx, mask=mask)
