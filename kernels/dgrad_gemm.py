"""Input gradient as an implicit GEMM on the matrix units.

    dx[n,c,h,w] = bias[c] + sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h = p * STRIDE_H - PAD_H + r * DIL_H, w likewise

    GEMM_M = pixels (n,h,w) of one phase    GEMM_N = channels c of one group
    GEMM_K = (r,s,k) over the taps that reach the phase

The pixels h = phase + STRIDE_H * row of a phase are reached through the same taps, as if by an
input gradient of stride 1 with only those: nothing is multiplied by the zeros between strides.

Sums in float32 (float64 for float64). A bank per sample is a batch of GEMMs, as in fprop_gemm,
which also says what PIXEL_AXIS is.
"""

import triton
import triton.language as tl

from .fprop_gemm import add_taps_gemm
from .indexing import (
    align_strides,
    along,
    most_taps,
    next_digit,
    next_tile,
    phase_taps,
    phases,
    round_down,
    side_by_side,
    split_pixel,
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
    PIXEL_AXIS: tl.constexpr,
    X_ALIGN: tl.constexpr, WEIGHT_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr,
    FLAT: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    if PIXEL_AXIS == 0:
        GROUP_C, GROUP_K = round_down(GROUP_C, X_ALIGN), round_down(GROUP_K, Y_ALIGN)
    else:
        W = round_down(W, X_ALIGN)
    dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q = align_strides(
        dy_stride_n, dy_stride_k, dy_stride_p, dy_stride_q, PIXEL_AXIS, Y_ALIGN
    )
    dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w = align_strides(
        dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w, PIXEL_AXIS, X_ALIGN
    )
    weight_stride_k = round_down(weight_stride_k, WEIGHT_ALIGN)
    weight_stride_r = round_down(weight_stride_r, WEIGHT_ALIGN)
    weight_stride_s = round_down(weight_stride_s, WEIGHT_ALIGN)

    program = widen(tl.program_id(0), WIDE)
    phase_w, program = next_digit(program, phases(STRIDE_W, W))
    phase_h, program = next_digit(program, phases(STRIDE_H, H))
    largest = SAMPLES * tl.cdiv(H, STRIDE_H) * tl.cdiv(W, STRIDE_W)
    tiles_m, tiles_n = tl.cdiv(largest, BLOCK_M), tl.cdiv(GROUP_C, BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    group, batch = next_digit(program, GROUPS)

    CHECKED: tl.constexpr = R * S * STRIDE_H * STRIDE_W != 1 or PAD_H != 0 or PAD_W != 0
    LOOSE: tl.constexpr = PIXEL_AXIS == 1 and CHECKED
    m = tile_m * BLOCK_M + along(PIXEL_AXIS, BLOCK_M)
    rows, columns = tl.cdiv(H - phase_h, STRIDE_H), tl.cdiv(W - phase_w, STRIDE_W)
    exists = m < SAMPLES * rows * columns
    n, row, column = split_pixel(m, rows, columns)
    n += batch
    group_c = tile_n * BLOCK_N + along(1 - PIXEL_AXIS, BLOCK_N)
    first_r, taps_r, shift_h, step_r, step_h = phase_taps(phase_h, R, STRIDE_H, PAD_H, DIL_H)
    first_s, taps_s, shift_w, step_s, step_w = phase_taps(phase_w, S, STRIDE_W, PAD_W, DIL_W)
    MOST_S: tl.constexpr = most_taps(S, STRIDE_W, DIL_W)
    weight_base = (
        weight_ptr
        + batch * weight_stride_n
        + group * GROUP_K * weight_stride_k
        + widen(first_r, WIDE) * weight_stride_r
        + widen(first_s, WIDE) * weight_stride_s
    )

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = add_taps_gemm(
        tl.zeros((m + group_c).shape, ACC),
        dy_ptr + group * GROUP_K * dy_stride_k, n * dy_stride_n,
        row - shift_h, column - shift_w, exists,
        weight_base, group_c * weight_stride_c, group_c < GROUP_C,
        P, Q, GROUP_K, taps_r, taps_s, -step_h, -step_w,
        dy_stride_k, dy_stride_p, dy_stride_q,
        weight_stride_k, weight_stride_r * step_r, weight_stride_s * step_s,
        1, 1, "zeros", CHECKED, R * S == 1, STRIDE_H * STRIDE_W == 1, PIXEL_AXIS, LOOSE,
        FLAT, MOST_S, EVEN, AHEAD, WIDE, PRECISION, BLOCK_K,
    )  # fmt: skip

    h, w = phase_h + row * STRIDE_H, phase_w + column * STRIDE_W
    c = group * GROUP_C + group_c
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=group_c < GROUP_C, other=0.0)
    outputs = dx_ptr + n * dx_stride_n + c * dx_stride_c + h * dx_stride_h
    if PIXEL_AXIS == 1 and (STRIDE_W > 1 or X_ALIGN == 1):
        outputs = side_by_side(outputs, w * dx_stride_w)
    else:
        outputs += w * dx_stride_w
    tl.store(
        outputs,
        acc.to(dx_ptr.dtype.element_ty),
        mask=exists & (group_c < GROUP_C),
    )
