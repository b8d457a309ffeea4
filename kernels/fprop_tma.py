"""Forward as an implicit GEMM, with operands loaded through tensor descriptors: sm_90 and later.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = pixels (n,p,q)    GEMM_N = filters k of one group    GEMM_K = (c blocks, r, s, c)

Through one tap, a box of BLOCK_I x BLOCK_P x BLOCK_Q outputs reads every STRIDE-th row and column
of x: a box of phase x[:, :, a::STRIDE_H, b::STRIDE_W], which has a descriptor of its own. PHASES[i]
is a * STRIDE_W + b of xi_desc, or -1. The hardware returns zeros for coordinates outside the image,
negative ones included. Pixels are the columns of the sums, [filters, pixels], so that both
operands are multiplied from shared memory. Sums in float32.

If x is (N, H, W, C) in memory, a box is an operand [pixels, channels]. If it is (N, C, H, W)
(NCHW), a box is BLOCK_Q pixels of one row, an operand [channels, pixels]. Boxes start at multiples
of 16 bytes: windows of planes have one column, without padding or stride.

With SPLIT, program i of SPLITS neighbours sums part i of every phase's steps, as in fprop_gemm.

A program owns every num_programs-th box. With PERSISTENT (more boxes than programs, and one phase)
the loops over boxes and steps become one, so that loads of a box overlap the end of the one before.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .hints import align_extents, align_strides
from .phases import phase_taps
from .reduction import add_taps_tma
from .schedule import next_digit, widen
from .structs import at


@triton.jit(do_not_specialize=["N", "SPLITS"])
def fprop_tma(
    x0_desc, x1_desc, x2_desc, x3_desc, weight_desc, bias_ptr, residual_ptr, y_ptr,
    N, SPLITS, y_shape, channels, TAP_COLUMNS,
    bias_stride, residual_strides, y_strides, split_stride,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    GROUP_K, Q = align_extents(GROUP_K, Q, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    residual_strides = align_strides(residual_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    y_strides = align_strides(y_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    x_descs = (x0_desc, x1_desc, x2_desc, x3_desc)

    tiles = tl.cdiv(GROUP_K, TILE.BLOCK_N) * tl.cdiv(Q, TILE.BLOCK_Q) * tl.cdiv(P, TILE.BLOCK_P)
    tiles *= tl.cdiv(N, TILE.BLOCK_I) * GROUPS
    program, split = tl.program_id(0), 0
    if LAYOUT.SPLIT:
        split, program = next_digit(program, SPLITS)
        y_ptr += widen(split, INT64) * split_stride
    first, last, step = program, program + 1, 1
    if LAYOUT.PERSISTENT:
        last, step = tiles, tl.num_programs(0)
    for tile in tl.range(first, last, step, flatten=LAYOUT.PERSISTENT):
        tile_n, program = next_digit(tile, tl.cdiv(GROUP_K, TILE.BLOCK_N))
        tile_q, program = next_digit(program, tl.cdiv(Q, TILE.BLOCK_Q))
        tile_p, program = next_digit(program, tl.cdiv(P, TILE.BLOCK_P))
        tile_i, group = next_digit(program, tl.cdiv(N, TILE.BLOCK_I))
        corner = (tile_i * TILE.BLOCK_I, tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q)
        c, k = group * GROUP_C, group * GROUP_K + tile_n * TILE.BLOCK_N

        acc = tl.zeros([TILE.BLOCK_N, TILE.BLOCK_I * TILE.BLOCK_P * TILE.BLOCK_Q], tl.float32)
        for i in tl.static_range(4):
            if LAYOUT.PHASES[i] >= 0:
                acc = add_phase(
                    acc, x_descs[i], weight_desc, corner, c, k, GROUP_C, TAP_COLUMNS,
                    split, SPLITS, LAYOUT.PHASES[i], WINDOW, LAYOUT, PRECISION, TILE.BLOCK_K,
                )  # fmt: skip

        group_k = tile_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)[:, None]  # [BLOCK_N, 1]
        k = widen(group * GROUP_K + group_k, INT64)
        bias = 0.0
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + k * bias_stride, mask=group_k < GROUP_K, other=0.0)
        n, p, q = box_pixels(corner, TILE, INT64)  # [1, pixels]
        mask = (group_k < GROUP_K) & (n < N) & (p < P) & (q < Q)
        acc += bias
        if residual_ptr is not None:
            acc = add_residual(acc, at(residual_ptr, residual_strides, n, k, p, q), mask)
        y = activate(acc, ACTIVATION, y_ptr.dtype.element_ty)
        tl.store(at(y_ptr, y_strides, n, k, p, q), y, mask=mask)


@triton.jit
def add_phase(
    acc, x_desc, weight_desc, corner, c, k, GROUP_C, TAP_COLUMNS, split, SPLITS,
    PHASE: tl.constexpr,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Adds the taps that read one phase of x to the sums of a box."""
    first_r, taps_r, shift_h, step_r, step_h = phase_taps(
        PHASE // WINDOW.STRIDE_W, WINDOW.R, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H
    )
    first_s, taps_s, shift_w, step_s, step_w = phase_taps(
        PHASE % WINDOW.STRIDE_W, WINDOW.S, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W
    )
    n, p, q = corner
    return add_taps_tma(
        acc, x_desc, weight_desc, (n, p + shift_h, q + shift_w, c), (k, 0), GROUP_C, TAP_COLUMNS,
        (first_r, taps_r, step_r, step_h), (first_s, taps_s, step_s, step_w), split, SPLITS,
        WINDOW, LAYOUT, PRECISION, BLOCK_K,
    )  # fmt: skip


@triton.jit
def box_pixels(corner, TILE: tl.constexpr, INT64: tl.constexpr):
    """(image, row, column) [1, pixels] of the pixels of a box, columns fastest."""
    PIXELS: tl.constexpr = TILE.BLOCK_I * TILE.BLOCK_P * TILE.BLOCK_Q
    index = widen(tl.arange(0, PIXELS)[None, :], INT64)
    image, row, column = corner
    return (
        image + index // (TILE.BLOCK_P * TILE.BLOCK_Q),
        row + index // TILE.BLOCK_Q % TILE.BLOCK_P,
        column + index % TILE.BLOCK_Q,
    )
