"""Input gradient as an implicit GEMM on the matrix units.

    dx[n,c,h,w] = bias[c] + sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h = p * STRIDE_H - PAD_H + r * DIL_H, w likewise

    GEMM_M = pixels (n,h,w) of one phase    GEMM_N = channels c of one group
    GEMM_K = (r,s,k) over the taps that reach the phase

The pixels h = phase + STRIDE_H * row of a phase are reached through the same taps, as if by an
input gradient of stride 1 with only those: nothing is multiplied by the zeros between strides.

Sums in float32 (float64 for float64). A bank per sample is a batch of GEMMs, as in fprop_gemm.
"""

import triton
import triton.language as tl

from .indexing import (
    next_digit,
    output_coordinate,
    phase_taps,
    phases,
    reduction_steps,
    split_pixel,
    split_reduction,
    widen,
)


@triton.jit
def dgrad_gemm(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    H, W, P, Q, SAMPLES, GROUPS, GROUP_C, GROUP_K,
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q,
    weight_stride_n, weight_stride_k, weight_stride_c, weight_stride_r, weight_stride_s,
    bias_stride,
    dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, ONE_TAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = widen(tl.program_id(0), WIDE)
    tile_n, program = next_digit(program, tl.cdiv(GROUP_C, BLOCK_N))
    phase_w, program = next_digit(program, phases(STRIDE_W, W))
    phase_h, program = next_digit(program, phases(STRIDE_H, H))
    largest = SAMPLES * tl.cdiv(H, STRIDE_H) * tl.cdiv(W, STRIDE_W)
    tile_m, program = next_digit(program, tl.cdiv(largest, BLOCK_M))
    group, batch = next_digit(program, GROUPS)

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    rows, columns = tl.cdiv(H - phase_h, STRIDE_H), tl.cdiv(W - phase_w, STRIDE_W)
    exists = m < SAMPLES * rows * columns
    n, row, column = split_pixel(m, rows, columns)
    n += batch
    group_c = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    first_r, taps_r, shift_h, step_r, step_h = phase_taps(phase_h, R, STRIDE_H, PAD_H, DIL_H)
    first_s, taps_s, shift_w, step_s, step_w = phase_taps(phase_w, S, STRIDE_W, PAD_W, DIL_W)
    dy_base = dy_ptr + n * dy_stride_n + group * GROUP_K * dy_stride_k
    weight_base = (
        weight_ptr
        + batch * weight_stride_n
        + group * GROUP_K * weight_stride_k
        + group_c * weight_stride_c
        + widen(first_r, WIDE) * weight_stride_r
        + widen(first_s, WIDE) * weight_stride_s
    )

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    acc = add_taps_gemm(
        acc, row - shift_h, column - shift_w, exists, group_c < GROUP_C,
        dy_base, weight_base, P, Q, GROUP_K,
        dy_stride_k, dy_stride_p, dy_stride_q,
        weight_stride_k, weight_stride_r * step_r, weight_stride_s * step_s,
        taps_r, taps_s, 1, 1, 0, 0, step_h, step_w,
        WIDE, PRECISION, ONE_TAP, BLOCK_K,
    )  # fmt: skip

    h, w = phase_h + row * STRIDE_H, phase_w + column * STRIDE_W
    c = group * GROUP_C + group_c
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=group_c < GROUP_C, other=0.0)
    tl.store(
        dx_ptr + n * dx_stride_n + c * dx_stride_c + h * dx_stride_h + w * dx_stride_w,
        acc.to(dx_ptr.dtype.element_ty),
        mask=exists & (group_c < GROUP_C),
    )


@triton.jit
def add_taps_gemm(
    acc, h, w, pixel_valid, c_valid, dy_base, weight_base, P, Q, GROUP_K,
    dy_stride_k, dy_stride_p, dy_stride_q,
    weight_stride_k, weight_stride_r, weight_stride_s,
    R, S,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, ONE_TAP: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_M, BLOCK_N] plus what the taps bring to the pixels (h, w) [BLOCK_M, 1]."""
    for i in range(reduction_steps(GROUP_K, R, S, BLOCK_K, ONE_TAP)):
        step = widen(i, WIDE)
        lane = tl.arange(0, BLOCK_K)[None, :]
        r, s, k, k_valid = split_reduction(step, lane, GROUP_K, R, S, BLOCK_K, ONE_TAP)
        p, p_inside = output_coordinate(h, r, STRIDE_H, PAD_H, DIL_H, P)
        q, q_inside = output_coordinate(w, s, STRIDE_W, PAD_W, DIL_W, Q)
        dy = tl.load(
            dy_base + k * dy_stride_k + p * dy_stride_p + q * dy_stride_q,
            mask=pixel_valid & p_inside & q_inside & k_valid,
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]

        lane = tl.arange(0, BLOCK_K)[:, None]
        r, s, k, k_valid = split_reduction(step, lane, GROUP_K, R, S, BLOCK_K, ONE_TAP)
        weight = tl.load(
            weight_base + k * weight_stride_k + r * weight_stride_r + s * weight_stride_s,
            mask=c_valid & k_valid,
            other=0.0,
        )  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(dy, weight, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc
