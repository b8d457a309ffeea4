"""Forward or input gradient of few channels: pixels of a patch are rows of a product of boxes.

    y[n, k, u * PITCH_H - SHIFT_H + a, v * PITCH_W - SHIFT_W + b] =
        act(bias[k] + residual + sum_{c,i,j} x[n,c,h,w] * spread[(a,b,k), (i,j,c)])
    h = u * STRIDE_H - PAD_H + i        w likewise

    GEMM_M = patches (n,u,v)    GEMM_N = (a,b,k) of one group    GEMM_K = (c blocks, i, j, c)

Patches, their places (i,j) and the spread weight are those of fprop_patch; operands and the loop
those of fprop_tma: to that, a patch is one result of a convolution with the window of places, and
STRIDE is the step from patch to patch. The weight is a matrix (group, a, b, k) by (i, j, c). x is
(N, H, W, C) in memory. Sums in float32. SPLIT is explained in fprop_gemm.
"""

import triton
import triton.language as tl

from .epilogue import activate, add_residual
from .fprop_tma import add_phase
from .hints import align_strides, at_least_one, round_down, side_by_side
from .indexing import is_inside
from .schedule import next_digit, widen
from .structs import at


@triton.jit(do_not_specialize=["N", "SPLITS"])
def fprop_spread(
    x0_desc, x1_desc, x2_desc, x3_desc, weight_desc, bias_ptr, residual_ptr, y_ptr,
    N, SPLITS, patch_shape, y_shape, GROUP_C, TAP_COLUMNS,
    bias_stride, residual_strides, y_strides, split_stride,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    U, V = patch_shape
    P, Q = y_shape
    RESULTS: tl.constexpr = LAYOUT.RESULTS
    SIZE: tl.constexpr = LAYOUT.PITCH_H * LAYOUT.PITCH_W * RESULTS
    if LAYOUT.OUT_AXIS == 1:
        Q = round_down(Q, LAYOUT.ALIGN)
    residual_strides = align_strides(residual_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    y_strides = align_strides(y_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)

    program, split = tl.program_id(0), 0
    if LAYOUT.SPLIT:
        split, program = next_digit(program, SPLITS)
        y_ptr += widen(split, INT64) * split_stride
    tile_n, program = next_digit(program, tl.cdiv(SIZE, TILE.BLOCK_N))
    tile_v, program = next_digit(program, tl.cdiv(V, TILE.BLOCK_Q))
    tile_u, program = next_digit(program, tl.cdiv(U, TILE.BLOCK_P))
    tile_i, group = next_digit(program, tl.cdiv(N, TILE.BLOCK_I))
    n, u, v = tile_i * TILE.BLOCK_I, tile_u * TILE.BLOCK_P, tile_v * TILE.BLOCK_Q
    row = group * SIZE + tile_n * TILE.BLOCK_N

    PIXELS: tl.constexpr = TILE.BLOCK_I * TILE.BLOCK_P * TILE.BLOCK_Q
    x_descs = (x0_desc, x1_desc, x2_desc, x3_desc)
    GROUP_C = at_least_one(GROUP_C)
    acc = tl.zeros([TILE.BLOCK_N, PIXELS], tl.float32)
    for i in tl.static_range(4):
        if LAYOUT.PHASES[i] >= 0:
            acc = add_phase(
                acc, x_descs[i], weight_desc, (n, u, v), group * GROUP_C, row, GROUP_C, TAP_COLUMNS,
                split, SPLITS, LAYOUT.PHASES[i], WINDOW, LAYOUT, PRECISION, TILE.BLOCK_K,
            )  # fmt: skip

    # ACROSS: columns b of patches side by side are columns of a row of the image.
    WIDE: tl.constexpr = LAYOUT.PITCH_W if LAYOUT.ACROSS else 1
    LINES: tl.constexpr = TILE.BLOCK_N // WIDE
    COLUMNS: tl.constexpr = TILE.BLOCK_Q * WIDE
    line = tile_n * LINES + tl.arange(0, LINES)[:, None]  # [LINES, 1]
    if LAYOUT.ACROSS:
        acc = acc.reshape(LINES, WIDE, PIXELS).permute(0, 2, 1).reshape(LINES, PIXELS * WIDE)
        a, k = next_digit(line, LAYOUT.PITCH_H)
        b = 0
    else:
        k, a = next_digit(line, RESULTS)
        b, a = next_digit(a, LAYOUT.PITCH_W)
    pixel = tl.arange(0, PIXELS * WIDE)[None, :]  # [1, pixels]
    n += pixel // (TILE.BLOCK_P * COLUMNS)
    p = (u + pixel // COLUMNS % TILE.BLOCK_P) * LAYOUT.PITCH_H - LAYOUT.SHIFT_H + a
    q = v * LAYOUT.PITCH_W - LAYOUT.SHIFT_W + b + pixel % COLUMNS * (LAYOUT.PITCH_W // WIDE)
    k = widen(group * RESULTS + k, INT64)
    mask = (line < SIZE // WIDE) & (n < N) & is_inside(p, P) & is_inside(q, Q)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + k * bias_stride, mask=line < SIZE // WIDE, other=0.0)
    if residual_ptr is not None:
        acc = add_residual(acc, at(residual_ptr, residual_strides, n, k, p, q), mask)
    y = activate(acc, ACTIVATION, y_ptr.dtype.element_ty)
    if LAYOUT.OUT_AXIS == 0 and RESULTS < 8:  # along pixels, see ops/plan/spread.py: FEW_RESULTS
        outputs = side_by_side(at(y_ptr, y_strides, n, k, p, 0), q * y_strides[3])
    else:
        outputs = at(y_ptr, y_strides, n, k, p, q)
    tl.store(outputs, y, mask=mask)
