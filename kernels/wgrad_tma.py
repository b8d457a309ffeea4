"""Weight gradient as an implicit GEMM whose operands come through tensor descriptors.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = filters k of one group    GEMM_N = channels c    GEMM_K = pixels (n,p,q)

A program owns BLOCK_S neighbouring taps of one row of the window, more than one only where columns
are not strided, and sums over boxes of pixels: a box of dy and, through each tap, a box of one
phase of x, see fprop_tma. Sums in float32; split i sums boxes [i * SPLIT_BOXES, (i+1) *
SPLIT_BOXES) and stores at `i * dw_stride_split`, as in wgrad_gemm.

Of tensors that are (N, H, W, C) in memory, both boxes are multiplied with their axes exchanged, so
operands have 16 bits; boxes are counted through (n, p, q) and may not overhang a plane of dy, where
x need not be zero; beyond the last image both are. IN_PLANES, (N, C, H, W), a box is BLOCK_Q pixels
of one row, and may overhang it: dy is zero there, and what is read of x beside it must be finite.
"""

import triton
import triton.language as tl

from .indexing import next_digit, widen


@triton.jit(do_not_specialize=["N", "SPLITS", "SPLIT_BOXES"])
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
    IN_PLANES: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    # Taps are fastest: their programs read the same boxes of dy, and boxes of x that overlap.
    tile_s, program = next_digit(tl.program_id(0), tl.cdiv(S, BLOCK_S))
    r, program = next_digit(program, R)
    tile_n, program = next_digit(program, tl.cdiv(GROUP_C, BLOCK_N))
    tile_k, program = next_digit(program, tl.cdiv(GROUP_K, BLOCK_K))
    group, split = next_digit(program, GROUPS)
    s = tile_s * BLOCK_S

    tl.static_assert(BLOCK_S == 1 or STRIDE_W == 1, "neighbouring taps read other phases")
    # How far the first tap looks, in rows and columns of its phase, by (*); phases are from 0 on.
    row, column = r * DIL_H - PAD_H, s * DIL_W - PAD_W
    phase_h, phase_w = row % STRIDE_H, column % STRIDE_W
    phase_h += tl.where(phase_h < 0, STRIDE_H, 0)
    phase_w += tl.where(phase_w < 0, STRIDE_W, 0)
    row, column = (row - phase_h) // STRIDE_H, (column - phase_w) // STRIDE_W
    phase = phase_h * STRIDE_W + phase_w
    c, k = group * GROUP_C + tile_n * BLOCK_N, group * GROUP_K + tile_k * BLOCK_K

    accs = ()
    for _ in tl.static_range(BLOCK_S):
        accs += (tl.zeros([BLOCK_K, BLOCK_N], tl.float32),)
    first = split * SPLIT_BOXES
    rows = tl.cdiv(N, BLOCK_I) * tl.cdiv(P, BLOCK_P)  # of boxes
    last = tl.minimum(first + SPLIT_BOXES, rows * tl.cdiv(Q, BLOCK_Q))
    # A split has a box: else LLVM moves the zeros to the path around the loop, and ptxas waits for
    # each product of it (Triton 3.7.1).
    tl.assume(last > first)
    if phase == PHASE0:
        accs = add_boxes(
            accs, x0_desc, dy_desc, first, last, row, column, c, k, P, Q,
            DIL_W, IN_PLANES, PRECISION, BLOCK_I, BLOCK_P, BLOCK_Q, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    if PHASE1 >= 0:
        if phase == PHASE1:
            accs = add_boxes(
                accs, x1_desc, dy_desc, first, last, row, column, c, k, P, Q,
                DIL_W, IN_PLANES, PRECISION, BLOCK_I, BLOCK_P, BLOCK_Q, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    if PHASE2 >= 0:
        if phase == PHASE2:
            accs = add_boxes(
                accs, x2_desc, dy_desc, first, last, row, column, c, k, P, Q,
                DIL_W, IN_PLANES, PRECISION, BLOCK_I, BLOCK_P, BLOCK_Q, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    if PHASE3 >= 0:
        if phase == PHASE3:
            accs = add_boxes(
                accs, x3_desc, dy_desc, first, last, row, column, c, k, P, Q,
                DIL_W, IN_PLANES, PRECISION, BLOCK_I, BLOCK_P, BLOCK_Q, BLOCK_N, BLOCK_K,
            )  # fmt: skip

    group_k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]
    group_c = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    corner = dw_ptr + widen(split, WIDE) * dw_stride_split + r * dw_stride_r
    corner += widen(group * GROUP_K + group_k, WIDE) * dw_stride_k + group_c * dw_stride_c
    for i in tl.static_range(BLOCK_S):
        tl.store(
            corner + (s + i) * dw_stride_s,
            accs[i].to(dw_ptr.dtype.element_ty),
            mask=(group_k < GROUP_K) & (group_c < GROUP_C) & (s + i < S),
        )


@triton.jit
def add_boxes(
    accs, x_desc, dy_desc, first, last, row, column, c, k, P, Q,
    DIL_W: tl.constexpr, IN_PLANES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums [filters, channels], one for each tap, plus boxes first to last - 1 of dy times x's."""
    PIXELS: tl.constexpr = BLOCK_I * BLOCK_P * BLOCK_Q
    for box in range(first, last):
        tile_q, line = next_digit(box, tl.cdiv(Q, BLOCK_Q))
        tile_p, tile_i = next_digit(line, tl.cdiv(P, BLOCK_P))
        n, p, q = tile_i * BLOCK_I, tile_p * BLOCK_P, tile_q * BLOCK_Q
        if IN_PLANES:
            dy = dy_desc.load([n, k, p, q]).reshape(BLOCK_K, PIXELS)
        else:
            dy = dy_desc.load([n, p, q, k]).reshape(PIXELS, BLOCK_K).T
        added = ()
        for i in tl.static_range(len(accs)):
            h, w = p + row, q + column + i * DIL_W
            if IN_PLANES:
                x = x_desc.load([n, c, h, w]).reshape(BLOCK_N, PIXELS).T
            else:
                x = x_desc.load([n, h, w, c]).reshape(PIXELS, BLOCK_N)
            added += (tl.dot(dy, x, accs[i], input_precision=PRECISION),)
        accs = added
    return accs
