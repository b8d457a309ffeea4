"""Weight gradient as an implicit GEMM, with operands loaded through tensor descriptors.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = filters k of one group    GEMM_N = channels c    GEMM_K = pixels (n,p,q)

A program owns BLOCK_S neighbouring taps of one row of the window (one tap where columns are
strided) and sums over boxes of pixels: a box of dy and, for each tap, a box of one
phase of x, see fprop_tma. Sums in float32; split i sums boxes [i * SPLIT_BOXES, (i+1) *
SPLIT_BOXES) and stores at `i * dw_stride_split`, as in wgrad_gemm.

Images (N, H, W, C) in memory: both boxes are multiplied with their axes exchanged, so operands have
16 bits. Boxes are counted through (n, p, q). They overhang the last image, where both are zero,
and a plane of dy only where x is zero too, see first_pixel. Images (N, C, H, W) (NCHW): a box is
BLOCK_Q pixels of one row, and windows have one column: what overhangs the row is zero in both.

A box whose pixels are along one axis (IN_PLACE) has this axis next to the channels (AXES): Triton
sees a matrix in it and multiplies it from shared memory, several products in flight. Of other boxes
dy goes through registers, and products are waited for, see finish_products.
"""

import triton
import triton.language as tl

from .hints import side_by_side_singly
from .schedule import first_pixel, next_digit, widen
from .versions import finish_products


@triton.jit(do_not_specialize=["N", "SPLIT_BOXES"])
def wgrad_tma(
    x0_desc, x1_desc, x2_desc, x3_desc, dy_desc, dw_ptr,
    N, y_shape, channels, SPLIT_BOXES, dw_stride_split, dw_strides,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr, INT64: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    x_descs = (x0_desc, x1_desc, x2_desc, x3_desc)
    # Taps vary fastest: their programs read the same boxes of dy and overlapping boxes of x.
    tile_s, program = next_digit(tl.program_id(0), tl.cdiv(WINDOW.S, TILE.BLOCK_S))
    r, program = next_digit(program, WINDOW.R)
    tile_n, program = next_digit(program, tl.cdiv(GROUP_C, TILE.BLOCK_N))
    tile_k, program = next_digit(program, tl.cdiv(GROUP_K, TILE.BLOCK_K))
    group, split = next_digit(program, GROUPS)
    s = tile_s * TILE.BLOCK_S

    tl.static_assert(
        TILE.BLOCK_S == 1 or WINDOW.STRIDE_W == 1, "neighbouring taps read other phases"
    )
    # Offset of the first tap, in rows and columns of its phase, by (*); phases are not negative.
    row, column = r * WINDOW.DIL_H - WINDOW.PAD_H, s * WINDOW.DIL_W - WINDOW.PAD_W
    phase_h, phase_w = row % WINDOW.STRIDE_H, column % WINDOW.STRIDE_W
    phase_h += tl.where(phase_h < 0, WINDOW.STRIDE_H, 0)
    phase_w += tl.where(phase_w < 0, WINDOW.STRIDE_W, 0)
    corner = (0, 0)
    if not LAYOUT.NCHW:
        last_s = tl.minimum(s + TILE.BLOCK_S, WINDOW.S) - 1
        corner = (
            first_pixel(P, TILE.BLOCK_P, row, WINDOW.STRIDE_H),
            first_pixel(Q, TILE.BLOCK_Q, last_s * WINDOW.DIL_W - WINDOW.PAD_W, WINDOW.STRIDE_W),
        )
    row, column = (row - phase_h) // WINDOW.STRIDE_H, (column - phase_w) // WINDOW.STRIDE_W
    phase = phase_h * WINDOW.STRIDE_W + phase_w
    c, k = group * GROUP_C + tile_n * TILE.BLOCK_N, group * GROUP_K + tile_k * TILE.BLOCK_K

    accs = ()
    for _ in tl.static_range(TILE.BLOCK_S):
        accs += (tl.zeros([TILE.BLOCK_K, TILE.BLOCK_N], tl.float32),)
    first = split * SPLIT_BOXES
    rows = tl.cdiv(N, TILE.BLOCK_I) * tl.cdiv(P, TILE.BLOCK_P)  # of boxes
    last = tl.minimum(first + SPLIT_BOXES, rows * tl.cdiv(Q, TILE.BLOCK_Q))
    # Every split has a box. If the loop might be skipped, LLVM zeroes the sums on the path around
    # it, and ptxas then waits for each product inside (Triton 3.7.1).
    tl.assume(last > first)
    for i in tl.static_range(4):
        if LAYOUT.PHASES[i] >= 0:
            if phase == LAYOUT.PHASES[i]:
                accs = add_boxes(
                    accs, x_descs[i], dy_desc, first, last, corner, row, column, c, k, y_shape,
                    WINDOW, LAYOUT, PRECISION, TILE,
                )  # fmt: skip

    group_k = tile_k * TILE.BLOCK_K + tl.arange(0, TILE.BLOCK_K)[:, None]  # [BLOCK_K, 1]
    group_c = tile_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)[None, :]  # [1, BLOCK_N]
    corner = dw_ptr + widen(split, INT64) * dw_stride_split + r * dw_strides[3]
    corner += widen(group * GROUP_K + group_k, INT64) * dw_strides[1]
    for i in tl.static_range(TILE.BLOCK_S):
        tl.store(
            side_by_side_singly(corner + (s + i) * dw_strides[4], group_c * dw_strides[2]),
            accs[i].to(dw_ptr.dtype.element_ty),
            mask=(group_k < GROUP_K) & (group_c < GROUP_C) & (s + i < WINDOW.S),
        )


@triton.jit
def add_boxes(
    accs, x_desc, dy_desc, first, last, corner, row, column, c, k, y_shape,
    WINDOW: tl.constexpr, LAYOUT: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Adds the products of boxes first .. last - 1 to sums [filters, channels], one per tap."""
    PIXELS: tl.constexpr = TILE.BLOCK_I * TILE.BLOCK_P * TILE.BLOCK_Q
    for box in range(first, last):
        tile_q, line = next_digit(box, tl.cdiv(y_shape[1], TILE.BLOCK_Q))
        tile_p, tile_i = next_digit(line, tl.cdiv(y_shape[0], TILE.BLOCK_P))
        n, p, q = tile_i * TILE.BLOCK_I, tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
        p, q = p + corner[0], q + corner[1]
        dy = load_box(dy_desc, (n, p, q, k), LAYOUT)
        if LAYOUT.NCHW:
            dy = dy.reshape(TILE.BLOCK_K, PIXELS)
        else:
            dy = dy.reshape(PIXELS, TILE.BLOCK_K).T
        added = ()
        for i in tl.static_range(len(accs)):
            x = load_box(x_desc, (n, p + row, q + column + i * WINDOW.DIL_W, c), LAYOUT)
            if LAYOUT.NCHW:
                x = x.reshape(TILE.BLOCK_N, PIXELS).T
            else:
                x = x.reshape(PIXELS, TILE.BLOCK_N)
            added += (tl.dot(dy, x, accs[i], input_precision=PRECISION),)
        if LAYOUT.IN_PLACE:
            accs = added
        else:
            accs = finish_last(added)
    return accs


@triton.jit
def load_box(desc, corner, LAYOUT: tl.constexpr):
    """The box at `corner` (n, h, w, c)."""
    AXES: tl.constexpr = LAYOUT.AXES
    return desc.load([corner[AXES[0]], corner[AXES[1]], corner[AXES[2]], corner[AXES[3]]])


@triton.jit
def finish_last(accs):
    """`accs` after finish_products of the last: it waits for all products."""
    kept = ()
    for i in tl.static_range(len(accs) - 1):
        kept += (accs[i],)
    return kept + (finish_products(accs[len(accs) - 1]),)
