"""Weight gradient in TF32 of a window of several columns, whose operands come through descriptors.

    dw[k,c,r,s] = sum_{n,j} dy'[n,k,j] * x'[n,c,j + (r * DIL_H - PAD_H) * PITCH + s * DIL_W - PAD_W]

x' and dy' are planes as one row of pixels, made by copy_flat: PITCH elements from one row to the
next, of which those behind the columns are zeros. So a tap is one offset, columns of padding
are the zeros between two rows, and rows of padding lie outside of the plane, where the hardware
fills in zeros. dy' is zero where a tap would reach into another row.

    GEMM_M = filters k of one group    GEMM_N = channels c    GEMM_K = pixels (n,j)

A box must start at a multiple of 16 bytes, so there are COPIES of x': copy s % COPIES lies
shift_of(s) elements further behind, which makes the offset a multiple of four. Matrix units take
TF32 with the summed axis innermost, as it is in both boxes. Where x is not finite, all results of
its channel may be so.

A program owns BLOCK_S neighbouring taps of one row of the window, which share what is loaded of dy.
Sums in float32; split i sums boxes [i * SPLIT_BOXES, (i+1) * SPLIT_BOXES) and stores at
`i * dw_stride_split`, as in wgrad_gemm.
"""

import triton
import triton.language as tl

from .copy_flat import shift_of
from .hints import side_by_side_singly
from .schedule import next_digit, widen


@triton.jit(do_not_specialize=["N", "SPLIT_BOXES"])
def wgrad_flat(
    x_desc, dy_desc, dw_ptr, N, PITCH, LENGTH, channels, SPLIT_BOXES, dw_stride_split, dw_strides,
    WINDOW: tl.constexpr, COPIES: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    GROUPS, GROUP_C, GROUP_K = channels
    # Taps vary fastest: their programs read the same boxes of dy and overlapping boxes of x.
    tile_s, program = next_digit(tl.program_id(0), tl.cdiv(WINDOW.S, TILE.BLOCK_S))
    r, program = next_digit(program, WINDOW.R)
    tile_c, program = next_digit(program, tl.cdiv(GROUP_C, TILE.BLOCK_C))
    tile_k, program = next_digit(program, tl.cdiv(GROUP_K, TILE.BLOCK_F))
    group, split = next_digit(program, GROUPS)
    c, k = group * GROUP_C + tile_c * TILE.BLOCK_C, group * GROUP_K + tile_k * TILE.BLOCK_F

    first, tiles = split * SPLIT_BOXES, tl.cdiv(LENGTH, TILE.BLOCK_L)
    last = tl.minimum(first + SPLIT_BOXES, N * tiles)
    # Every split has a box: without that, ptxas waits for each product, see wgrad_tma.
    tl.assume(last > first)
    accs, rows, offsets = (), (), ()
    for i in tl.static_range(TILE.BLOCK_S):
        s = tile_s * TILE.BLOCK_S + i
        column = s * WINDOW.DIL_W - WINDOW.PAD_W + shift_of(s, WINDOW.PAD_W, WINDOW.DIL_W)
        accs += (tl.zeros([TILE.BLOCK_F, TILE.BLOCK_C], tl.float32),)
        rows += (s % COPIES * N * GROUPS * GROUP_C + c,)
        offsets += ((r * WINDOW.DIL_H - WINDOW.PAD_H) * PITCH + column,)
    for box in range(first, last):
        tile, n = next_digit(box, tiles)
        j = tile * TILE.BLOCK_L
        dy = dy_desc.load([n * GROUPS * GROUP_K + k, j])  # [BLOCK_F, BLOCK_L]
        added = ()
        for i in tl.static_range(TILE.BLOCK_S):
            # [BLOCK_C, BLOCK_L]
            x = x_desc.load([n * GROUPS * GROUP_C + rows[i], j + offsets[i]])
            added += (tl.dot(dy, x.T, accs[i], input_precision=PRECISION),)
        accs = added

    group_k = tile_k * TILE.BLOCK_F + tl.arange(0, TILE.BLOCK_F)[:, None]  # [BLOCK_F, 1]
    group_c = tile_c * TILE.BLOCK_C + tl.arange(0, TILE.BLOCK_C)[None, :]  # [1, BLOCK_C]
    corner = dw_ptr + widen(split, INT64) * dw_stride_split + r * dw_strides[3]
    corner += widen(group * GROUP_K + group_k, INT64) * dw_strides[1]
    for i in tl.static_range(TILE.BLOCK_S):
        s = tile_s * TILE.BLOCK_S + i
        tl.store(
            side_by_side_singly(corner + s * dw_strides[4], group_c * dw_strides[2]),
            accs[i].to(dw_ptr.dtype.element_ty),
            mask=(group_k < GROUP_K) & (group_c < GROUP_C) & (s < WINDOW.S),
        )
