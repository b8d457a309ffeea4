"""Weight gradient as an implicit GEMM whose operands come through tensor descriptors.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = filters k of one group    GEMM_N = channels c    GEMM_K = pixels (n,p,q)

A program owns one tap and sums over boxes of pixels: a box of dy and, through that tap, a box of
one phase of x, see fprop_tma; both are multiplied with their axes exchanged, so operands have 16
bits. Boxes are counted through (n, p, q) and may not overhang a plane of dy, where x need not be
zero; beyond the last image both are. Sums in float32; split i sums boxes [i * SPLIT_BOXES,
(i+1) * SPLIT_BOXES) and stores at `i * dw_stride_split`, as in wgrad_gemm.
"""

import triton
import triton.language as tl

from .indexing import next_digit, widen


@triton.jit
def wgrad_tma(
    x0_desc, x1_desc, x2_desc, x3_desc, dy_desc, dw_ptr,
    N, P, Q, SPLITS, SPLIT_BOXES, GROUPS, GROUP_C, GROUP_K,
    dw_stride_split,
    dw_stride_k, dw_stride_c, dw_stride_r, dw_stride_s,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    PHASE0: tl.constexpr, PHASE1: tl.constexpr, PHASE2: tl.constexpr, PHASE3: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Taps are fastest: their programs read the same boxes of dy, and boxes of x that overlap.
    s, program = next_digit(tl.program_id(0), S)
    r, program = next_digit(program, R)
    tile_n, program = next_digit(program, tl.cdiv(GROUP_C, BLOCK_N))
    tile_k, program = next_digit(program, tl.cdiv(GROUP_K, BLOCK_K))
    group, split = next_digit(program, GROUPS)

    # How far the tap looks, in rows and columns of its phase, by (*); phases are not negative.
    row, column = r * DIL_H - PAD_H, s * DIL_W - PAD_W
    phase_h, phase_w = row % STRIDE_H, column % STRIDE_W
    phase_h += tl.where(phase_h < 0, STRIDE_H, 0)
    phase_w += tl.where(phase_w < 0, STRIDE_W, 0)
    row, column = (row - phase_h) // STRIDE_H, (column - phase_w) // STRIDE_W
    phase = phase_h * STRIDE_W + phase_w
    c, k = group * GROUP_C + tile_n * BLOCK_N, group * GROUP_K + tile_k * BLOCK_K

    acc = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    first = split * SPLIT_BOXES
    last = tl.minimum(first + SPLIT_BOXES, tl.cdiv(N, BLOCK_I) * (P // BLOCK_P) * (Q // BLOCK_Q))
    if phase == PHASE0:
        acc = add_boxes(acc, x0_desc, dy_desc, first, last, row, column, c, k, P, Q,
                        BLOCK_I, BLOCK_P, BLOCK_Q)  # fmt: skip
    if PHASE1 >= 0:
        if phase == PHASE1:
            acc = add_boxes(acc, x1_desc, dy_desc, first, last, row, column, c, k, P, Q,
                            BLOCK_I, BLOCK_P, BLOCK_Q)  # fmt: skip
    if PHASE2 >= 0:
        if phase == PHASE2:
            acc = add_boxes(acc, x2_desc, dy_desc, first, last, row, column, c, k, P, Q,
                            BLOCK_I, BLOCK_P, BLOCK_Q)  # fmt: skip
    if PHASE3 >= 0:
        if phase == PHASE3:
            acc = add_boxes(acc, x3_desc, dy_desc, first, last, row, column, c, k, P, Q,
                            BLOCK_I, BLOCK_P, BLOCK_Q)  # fmt: skip

    group_k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]
    group_c = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    tl.store(
        dw_ptr
        + widen(split, WIDE) * dw_stride_split
        + widen(group * GROUP_K + group_k, WIDE) * dw_stride_k
        + group_c * dw_stride_c
        + r * dw_stride_r
        + s * dw_stride_s,
        acc.to(dw_ptr.dtype.element_ty),
        mask=(group_k < GROUP_K) & (group_c < GROUP_C),
    )


@triton.jit
def add_boxes(
    acc, x_desc, dy_desc, first, last, row, column, c, k, P, Q,
    BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """acc [filters, channels] plus boxes first to last - 1 of dy times those that a tap reads."""
    PIXELS: tl.constexpr = BLOCK_I * BLOCK_P * BLOCK_Q
    for box in range(first, last):
        tile_q, line = next_digit(box, Q // BLOCK_Q)
        tile_p, tile_i = next_digit(line, P // BLOCK_P)
        n, p, q = tile_i * BLOCK_I, tile_p * BLOCK_P, tile_q * BLOCK_Q
        dy = dy_desc.load([n, p, q, k]).reshape(PIXELS, acc.shape[0])
        x = x_desc.load([n, p + row, q + column, c]).reshape(PIXELS, acc.shape[1])
        acc = tl.dot(dy.T, x, acc)
    return acc
