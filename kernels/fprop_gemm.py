"""Forward as an implicit GEMM on the matrix units, with operands loaded through pointers.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = pixels (n,p,q)    GEMM_N = filters k of one group    GEMM_K = (r,s,c)

Pixels lie along PIXEL_AXIS of every block. Neighbouring threads load along the last axis, so
PIXEL_AXIS is 1 where pixels are contiguous in memory and 0 where channels are. OTHER_AXIS is the
same of y: single channels of x are read along pixels whatever its format.

Sums in float32 (float64 for float64). A bank per sample is a batch of GEMMs whose pixels are
(p,q) of one sample; otherwise the batch has one member.

With SPLIT, number i of SPLITS neighbouring programs sums part i of the steps of GEMM_K, see
part_of, and stores it at `i * split_stride`, for sum_partials.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .hints import align_strides, align_tap_strides, along, round_down, side_by_side
from .reduction import add_taps_gemm
from .schedule import next_digit, next_tile, split_pixel, widen
from .structs import at


@triton.jit(do_not_specialize=["PIXELS", "SPLITS"])
def fprop_gemm(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, channels, PIXELS, SPLITS,
    x_strides, weight_strides, bias_stride, residual_strides, y_strides, split_stride,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    AXIS: tl.constexpr = LAYOUT.PIXEL_AXIS
    Y_AXIS: tl.constexpr = LAYOUT.OTHER_AXIS
    if AXIS == 0:
        GROUP_C = round_down(GROUP_C, LAYOUT.X_ALIGN)
    if Y_AXIS == 0:
        GROUP_K = round_down(GROUP_K, LAYOUT.Y_ALIGN)
    else:
        Q, PIXELS = round_down(Q, LAYOUT.Y_ALIGN), round_down(PIXELS, LAYOUT.Y_ALIGN)
    x_strides = align_strides(x_strides, AXIS, LAYOUT.X_ALIGN)
    y_strides = align_strides(y_strides, Y_AXIS, LAYOUT.Y_ALIGN)
    weight_strides = align_tap_strides(weight_strides, LAYOUT.WEIGHT_ALIGN)

    program, split = widen(tl.program_id(0), INT64), 0
    if LAYOUT.SPLIT:
        split, program = next_digit(program, SPLITS)
        y_ptr += widen(split, INT64) * split_stride
    tiles_m, tiles_n = tl.cdiv(PIXELS, TILE.BLOCK_M), tl.cdiv(GROUP_K, TILE.BLOCK_N)
    tile_m, tile_n, program = next_tile(program, tiles_m, tiles_n)
    group, batch = next_digit(program, GROUPS)

    PADDED: tl.constexpr = max(WINDOW.PAD_H, WINDOW.PAD_W, WINDOW.PAD_BOTTOM, WINDOW.PAD_RIGHT) > 0
    POINT: tl.constexpr = WINDOW.R * WINDOW.S == 1
    STRIDED: tl.constexpr = WINDOW.STRIDE_H * WINDOW.STRIDE_W != 1
    m = tile_m * TILE.BLOCK_M + along(AXIS, TILE.BLOCK_M)
    # Clamp to the last pixel: padded loads are masked anyway, so no extra bounds test is needed.
    n, p, q = split_pixel(tl.minimum(m, PIXELS - 1) if PADDED else m, P, Q)
    n += batch
    # The input pixel of the first tap.
    h, w = p * WINDOW.STRIDE_H - WINDOW.PAD_H, q * WINDOW.STRIDE_W - WINDOW.PAD_W
    group_k = tile_n * TILE.BLOCK_N + along(1 - AXIS, TILE.BLOCK_N)
    k = group * GROUP_K + group_k
    # Columns past the last read other filters: were it one filter, all of them would wait for it.
    known_k = group * GROUP_K + group_k % GROUP_K

    ACC: tl.constexpr = tl.float64 if weight_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = add_taps_gemm(
        tl.zeros((m + group_k).shape, ACC),
        x_ptr + group * GROUP_C * x_strides[1], n * x_strides[0], h, w,
        True if PADDED else m < PIXELS,
        weight_ptr + batch * weight_strides[0], known_k * weight_strides[1], True,
        x_shape, GROUP_C, (WINDOW.R, WINDOW.S), (WINDOW.DIL_H, WINDOW.DIL_W), (1, 1),
        x_strides, (weight_strides[2], weight_strides[3], weight_strides[4]), split, SPLITS,
        WINDOW.MODE, PADDED, POINT, True, AXIS == 1 and (PADDED or STRIDED or not POINT),
        WINDOW.S, LAYOUT, PRECISION, INT64, TILE.BLOCK_K,
    )  # fmt: skip

    if Y_AXIS != AXIS:
        acc = acc.T
        m = tile_m * TILE.BLOCK_M + along(Y_AXIS, TILE.BLOCK_M)
        n, p, q = split_pixel(m, P, Q)
        n += batch
        group_k = tile_n * TILE.BLOCK_N + along(1 - Y_AXIS, TILE.BLOCK_N)
        k = group * GROUP_K + group_k
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride, mask=group_k < GROUP_K, other=0.0)
    mask = (m < PIXELS) & (group_k < GROUP_K)
    if residual_ptr is not None:
        acc = add_residual(acc, at(residual_ptr, residual_strides, n, k, p, q), mask)
    outputs = at(y_ptr, y_strides, n, k, p, 0)
    if Y_AXIS == 1 and (PADDED or LAYOUT.Y_ALIGN == 1):
        outputs = side_by_side(outputs, q * y_strides[3])
    else:
        outputs += q * y_strides[3]
    tl.store(outputs, activate(acc, ACTIVATION, y_ptr.dtype.element_ty), mask=mask)
