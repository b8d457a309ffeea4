"""Input gradient as an implicit GEMM on the matrix units.

    dx[n,c,h,w] = bias[c] + sum_{k,r,s} dy[n,k,p,q] * weight[k,c,r,s]
    over the (p,r), (q,s) with h = p * STRIDE_H - PAD_H + r * DIL_H, w likewise

    GEMM_M = pixels (n,h,w) of one phase    GEMM_N = channels c of one group
    GEMM_K = (r,s,k) over the taps that reach the phase

The pixels h = phase + STRIDE_H * row of a phase are reached through the same taps. Each phase is an
input gradient of stride 1 with these taps alone, so no zeros between strides are multiplied.

Sums in float32 (float64 for float64). A bank per sample is a batch of GEMMs, as in fprop_gemm,
which explains PIXEL_AXIS, OTHER_AXIS (of dx) and SPLIT.
"""

import triton
import triton.language as tl

from .hints import align_strides, align_tap_strides, along, round_down, side_by_side
from .phases import most_taps, phase_taps, phases
from .reduction import add_taps_gemm
from .schedule import next_digit, next_tile, split_pixel, widen
from .structs import at


@triton.jit(do_not_specialize=["SPLITS"])
def dgrad_gemm(
    dy_ptr, weight_ptr, bias_ptr, dx_ptr,
    x_shape, y_shape, channels, SAMPLES, SPLITS,
    dy_strides, weight_strides, bias_stride, dx_strides, split_stride,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    H, W = x_shape
    GROUPS, GROUP_C, GROUP_K = channels
    STRIDE_H: tl.constexpr = WINDOW.STRIDE_H
    STRIDE_W: tl.constexpr = WINDOW.STRIDE_W
    AXIS: tl.constexpr = LAYOUT.PIXEL_AXIS
    X_AXIS: tl.constexpr = LAYOUT.OTHER_AXIS
    if AXIS == 0:
        GROUP_K = round_down(GROUP_K, LAYOUT.Y_ALIGN)
    if X_AXIS == 0:
        GROUP_C = round_down(GROUP_C, LAYOUT.X_ALIGN)
    else:
        W = round_down(W, LAYOUT.X_ALIGN)
    dy_strides = align_strides(dy_strides, AXIS, LAYOUT.Y_ALIGN)
    dx_strides = align_strides(dx_strides, X_AXIS, LAYOUT.X_ALIGN)
    weight_strides = align_tap_strides(weight_strides, LAYOUT.WEIGHT_ALIGN)

    program, split = widen(tl.program_id(0), INT64), 0
    if LAYOUT.SPLIT:
        split, program = next_digit(program, SPLITS)
        dx_ptr += widen(split, INT64) * split_stride
    phase_w, program = next_digit(program, phases(STRIDE_W, W))
    phase_h, program = next_digit(program, phases(STRIDE_H, H))
    largest = SAMPLES * tl.cdiv(H, STRIDE_H) * tl.cdiv(W, STRIDE_W)
    tiles_m, tiles_n = tl.cdiv(largest, TILE.BLOCK_M), tl.cdiv(GROUP_C, TILE.BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    group, batch = next_digit(program, GROUPS)

    POINT: tl.constexpr = WINDOW.R * WINDOW.S == 1
    ONE_PHASE: tl.constexpr = STRIDE_H * STRIDE_W == 1
    CHECKED: tl.constexpr = not LAYOUT.IS_POINT
    m = tile_m * TILE.BLOCK_M + along(AXIS, TILE.BLOCK_M)
    rows, columns = tl.cdiv(H - phase_h, STRIDE_H), tl.cdiv(W - phase_w, STRIDE_W)
    exists = m < SAMPLES * rows * columns
    n, row, column = split_pixel(m, rows, columns)
    n += batch
    group_c = tile_n * TILE.BLOCK_N + along(1 - AXIS, TILE.BLOCK_N)
    first_r, taps_r, shift_h, step_r, step_h = phase_taps(
        phase_h, WINDOW.R, STRIDE_H, WINDOW.PAD_H, WINDOW.DIL_H
    )
    first_s, taps_s, shift_w, step_s, step_w = phase_taps(
        phase_w, WINDOW.S, STRIDE_W, WINDOW.PAD_W, WINDOW.DIL_W
    )
    weight_base = (
        weight_ptr
        + batch * weight_strides[0]
        + group * GROUP_K * weight_strides[1]
        + widen(first_r, INT64) * weight_strides[3]
        + widen(first_s, INT64) * weight_strides[4]
    )

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = add_taps_gemm(
        tl.zeros((m + group_c).shape, ACC),
        dy_ptr + group * GROUP_K * dy_strides[1], n * dy_strides[0],
        row - shift_h, column - shift_w, exists,
        weight_base, group_c * weight_strides[2], group_c < GROUP_C,
        y_shape, GROUP_K, (taps_r, taps_s), (-step_h, -step_w), (1, 1),
        dy_strides,
        (weight_strides[1], weight_strides[3] * step_r, weight_strides[4] * step_s), split, SPLITS,
        "zeros", CHECKED, POINT, ONE_PHASE, AXIS == 1 and CHECKED,
        most_taps(WINDOW.S, STRIDE_W, WINDOW.DIL_W), LAYOUT, PRECISION, INT64, TILE.BLOCK_K,
    )  # fmt: skip

    if X_AXIS != AXIS:
        acc = acc.T
        m = tile_m * TILE.BLOCK_M + along(X_AXIS, TILE.BLOCK_M)
        exists = m < SAMPLES * rows * columns
        n, row, column = split_pixel(m, rows, columns)
        n += batch
        group_c = tile_n * TILE.BLOCK_N + along(1 - X_AXIS, TILE.BLOCK_N)
    h, w = phase_h + row * STRIDE_H, phase_w + column * STRIDE_W
    c = group * GROUP_C + group_c
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=group_c < GROUP_C, other=0.0)
    outputs = at(dx_ptr, dx_strides, n, c, h, 0)
    if X_AXIS == 1 and (STRIDE_W > 1 or LAYOUT.X_ALIGN == 1):
        outputs = side_by_side(outputs, w * dx_strides[3])
    else:
        outputs += w * dx_strides[3]
    tl.store(outputs, acc.to(dx_ptr.dtype.element_ty), mask=exists & (group_c < GROUP_C))
