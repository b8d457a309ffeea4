"""Forward as an implicit GEMM whose operands come through tensor descriptors: sm_90 and later.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = pixels (n,p,q)    GEMM_N = filters k of one group    GEMM_K = (c blocks, r, s, c)

Through one tap, a box of BLOCK_I x BLOCK_P x BLOCK_Q outputs reads every STRIDE-th row and column
of x: a box of phase x[:, :, a::STRIDE_H, b::STRIDE_W], which has a descriptor of its own. PHASEi is
a * STRIDE_W + b of xi_desc, or -1. What lies outside of the image, also at negative coordinates,
is filled with zeros by the hardware. Pixels are the columns of the sums, [filters, pixels]: so both
operands are multiplied from shared memory. Sums in float32.

x is (N, H, W, C) in memory, and a box one operand [pixels, channels]; or, IN_PLANES, it is
(N, C, H, W), columns are not strided, and a box is an operand [channels, BLOCK_Q] for each of its
rows: they have sums of their own, and share what is loaded of the weight.

A program owns every num_programs-th box. FLATTEN, where there are more boxes than programs and one
phase: both loops become one, so that loads of the next box overlap the end of the last.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .indexing import align_extents, align_strides, next_digit, phase_taps, widen


@triton.jit(do_not_specialize=["N"])
def fprop_tma(
    x0_desc, x1_desc, x2_desc, x3_desc, weight_desc, bias_ptr, residual_ptr, y_ptr,
    N, P, Q, GROUPS, GROUP_C, GROUP_K,
    bias_stride,
    residual_stride_n, residual_stride_k, residual_stride_p, residual_stride_q,
    y_stride_n, y_stride_k, y_stride_p, y_stride_q,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    PHASE0: tl.constexpr, PHASE1: tl.constexpr, PHASE2: tl.constexpr, PHASE3: tl.constexpr,
    FLIP: tl.constexpr, IN_PLANES: tl.constexpr, Y_ALIGN: tl.constexpr,
    FLATTEN: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    GROUP_K, Q = align_extents(GROUP_K, Q, IN_PLANES, Y_ALIGN)
    residual_stride_n, residual_stride_k, residual_stride_p, residual_stride_q = align_strides(
        residual_stride_n, residual_stride_k, residual_stride_p, residual_stride_q,
        IN_PLANES, Y_ALIGN,
    )  # fmt: skip
    y_stride_n, y_stride_k, y_stride_p, y_stride_q = align_strides(
        y_stride_n, y_stride_k, y_stride_p, y_stride_q, IN_PLANES, Y_ALIGN
    )

    tiles = tl.cdiv(GROUP_K, BLOCK_N) * tl.cdiv(Q, BLOCK_Q) * tl.cdiv(P, BLOCK_P)
    tiles *= tl.cdiv(N, BLOCK_I) * GROUPS
    first, last, step = tl.program_id(0), tl.program_id(0) + 1, 1
    if FLATTEN:
        last, step = tiles, tl.num_programs(0)
    for tile in tl.range(first, last, step, flatten=FLATTEN):
        tile_n, program = next_digit(tile, tl.cdiv(GROUP_K, BLOCK_N))
        tile_q, program = next_digit(program, tl.cdiv(Q, BLOCK_Q))
        tile_p, program = next_digit(program, tl.cdiv(P, BLOCK_P))
        tile_i, group = next_digit(program, tl.cdiv(N, BLOCK_I))
        corner = (tile_i * BLOCK_I, tile_p * BLOCK_P, tile_q * BLOCK_Q)
        c, k = group * GROUP_C, group * GROUP_K + tile_n * BLOCK_N

        accs = no_sums(IN_PLANES, BLOCK_I, BLOCK_P, BLOCK_Q, BLOCK_N)
        accs = add_phase(
            accs, x0_desc, weight_desc, corner, c, k, GROUP_C, R, S, STRIDE_H, STRIDE_W,
            PAD_H, PAD_W, DIL_H, DIL_W, PHASE0, FLIP, IN_PLANES, PRECISION, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        if PHASE1 >= 0:
            accs = add_phase(
                accs, x1_desc, weight_desc, corner, c, k, GROUP_C, R, S, STRIDE_H, STRIDE_W,
                PAD_H, PAD_W, DIL_H, DIL_W, PHASE1, FLIP, IN_PLANES, PRECISION, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        if PHASE2 >= 0:
            accs = add_phase(
                accs, x2_desc, weight_desc, corner, c, k, GROUP_C, R, S, STRIDE_H, STRIDE_W,
                PAD_H, PAD_W, DIL_H, DIL_W, PHASE2, FLIP, IN_PLANES, PRECISION, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        if PHASE3 >= 0:
            accs = add_phase(
                accs, x3_desc, weight_desc, corner, c, k, GROUP_C, R, S, STRIDE_H, STRIDE_W,
                PAD_H, PAD_W, DIL_H, DIL_W, PHASE3, FLIP, IN_PLANES, PRECISION, BLOCK_N, BLOCK_K,
            )  # fmt: skip

        group_k = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]  # [BLOCK_N, 1]
        k = widen(group * GROUP_K + group_k, WIDE)
        bias = 0.0
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + k * bias_stride, mask=group_k < GROUP_K, other=0.0)
        for i in tl.static_range(len(accs)):
            # [1, pixels]
            n, p, q = box_pixels(corner, i, len(accs), BLOCK_I, BLOCK_P, BLOCK_Q, WIDE)
            exists = (group_k < GROUP_K) & (n < N) & (p < P) & (q < Q)
            acc = accs[i] + bias
            if residual_ptr is not None:
                pixel = n * residual_stride_n + p * residual_stride_p + q * residual_stride_q
                acc = add_residual(acc, residual_ptr + pixel + k * residual_stride_k, exists)
            tl.store(
                y_ptr + n * y_stride_n + k * y_stride_k + p * y_stride_p + q * y_stride_q,
                activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty),
                mask=exists,
            )


@triton.jit
def no_sums(
    IN_PLANES: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tuple of zeros: of [BLOCK_N, pixels] for a box, or of [BLOCK_N, BLOCK_Q] for each row."""
    parts: tl.constexpr = BLOCK_P if IN_PLANES else 1
    tl.static_assert(not IN_PLANES or BLOCK_I == 1, "rows of several planes are no operand")
    zeros = ()
    for _ in tl.static_range(parts):
        zeros += (tl.zeros([BLOCK_N, BLOCK_I * BLOCK_P * BLOCK_Q // parts], tl.float32),)
    return zeros


@triton.jit
def add_phase(
    accs, x_desc, weight_desc, corner, c, k, GROUP_C,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    PHASE: tl.constexpr, FLIP: tl.constexpr, IN_PLANES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sums of a box plus what the taps bring that read one phase of x."""
    first_r, taps_r, shift_h, step_r, step_h = phase_taps(
        PHASE // STRIDE_W, R, STRIDE_H, PAD_H, DIL_H
    )
    first_s, taps_s, shift_w, step_s, step_w = phase_taps(
        PHASE % STRIDE_W, S, STRIDE_W, PAD_W, DIL_W
    )
    n, p, q = corner
    return add_taps_tma(
        accs, x_desc, weight_desc, n, p + shift_h, q + shift_w, c, k, 0, GROUP_C, GROUP_C,
        first_r, taps_r, step_r, step_h, first_s, taps_s, step_s, step_w,
        R, S, FLIP, IN_PLANES, False, PRECISION, BLOCK_K,
    )  # fmt: skip


@triton.jit
def add_taps_tma(
    accs, image_desc, weight_desc, n, row, column, channel, weight_row, weight_column,
    CHANNELS, TAP_COLUMNS,
    first_r, taps_r, step_r, step_row, first_s, taps_s, step_s, step_column,
    R: tl.constexpr, S: tl.constexpr,
    FLIP: tl.constexpr, IN_PLANES: tl.constexpr, CROSSWISE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sums of a box, see no_sums, plus the image's boxes times the weight, tap by tap.

    Tap (i, j) of taps_r x taps_s is tap (first_r + i * step_r, ...) of the window, and reads the
    box whose corner is (row + i * step_row, ...) through CHANNELS channels from `channel` on. The
    weight is a matrix with TAP_COLUMNS columns for each tap of the window. Its rows are those of
    the sums and its columns the summed channels, or, CROSSWISE, the other way round.
    """
    taps = taps_r * taps_s
    # Taps are innermost: their boxes overlap, and all but the first find them in L2.
    for step in range(taps * tl.cdiv(CHANNELS, BLOCK_K)):
        i, j = (step % taps) // taps_s, step % taps_s
        r, s, summed = first_r + i * step_r, first_s + j * step_s, step // taps * BLOCK_K
        if FLIP:
            r, s = R - 1 - r, S - 1 - s
        first_column = (r * S + s) * TAP_COLUMNS + weight_column
        if CROSSWISE:
            weight = weight_desc.load([weight_row + summed, first_column]).T
        else:
            weight = weight_desc.load([weight_row, first_column + summed])  # [BLOCK_N, BLOCK_K]
        h, w, c = row + i * step_row, column + j * step_column, channel + summed
        added = ()
        for part in tl.static_range(len(accs)):
            if IN_PLANES:
                image = image_desc.load([n, c, h + part, w]).reshape(BLOCK_K, accs[part].shape[1])
            else:
                image = image_desc.load([n, h, w, c]).reshape(accs[part].shape[1], BLOCK_K).T
            added += (tl.dot(weight, image, accs[part], input_precision=PRECISION),)
        accs = added
    return accs


@triton.jit
def box_pixels(
    corner, part, parts: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(image, row, column) [1, pixels] of the pixels of one of a box's parts, columns fastest."""
    PIXELS: tl.constexpr = BLOCK_I * BLOCK_P * BLOCK_Q // parts
    index = widen(part * PIXELS + tl.arange(0, PIXELS)[None, :], WIDE)
    image, row, column = corner
    return (
        image + index // (BLOCK_P * BLOCK_Q),
        row + index // BLOCK_Q % BLOCK_P,
        column + index % BLOCK_Q,
    )
