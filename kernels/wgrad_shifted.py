"""Weight gradient of few filters or few channels: one image stays, the other is shifted by taps.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]        h, w by (*)

    GEMM_M = channels of the image that stays, of one group    GEMM_K = its pixels (n,i,j)
    GEMM_N = (channel, r, s) of the other image, which is shifted: (r,s,c) of x, or (k,r,s) of dy

The image that stays is read once, in boxes of BLOCK_K neighbouring pixels that start at a multiple
of 16 bytes whatever the taps. The other one, whose channels are few, has an element for each tap
and pixel, which a program loads and stores to shared memory itself. READ is the window through
which (i,j) reads it: that of the call for x, (*) solved for dy where the stride is 1. Its taps
outside of the image are zero, so where the other image is not finite, all results of its channel
may be so.

Boxes are counted through (n, pixels of a plane); beyond the plane the image that stays is zero.
With NHWC it is (N, H, W, C) in memory, else (N, C, H, W). Sums in float32; split i sums boxes
[i * SPLIT_BOXES, (i+1) * SPLIT_BOXES) and stores at `i * dw_stride_split`, as in wgrad_gemm.
"""

import triton
import triton.language as tl

from .copy_flat import rounded
from .hints import side_by_side, side_by_side_singly
from .indexing import is_inside
from .schedule import next_digit, widen

#: A row that no image has.
OUTSIDE = tl.constexpr(2**30)


@triton.jit(do_not_specialize=["SPLIT_BOXES"])
def wgrad_shifted(
    still_desc, shifted_ptr, dw_ptr,
    N, still_shape, shifted_shape, GROUPS, GROUP_M, GROUP_N, SPLIT_BOXES, shifted_strides,
    dw_stride_split, dw_strides,
    READ: tl.constexpr, OF_X: tl.constexpr, NHWC: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    H, W = still_shape
    TAPS: tl.constexpr = READ.R * READ.S
    tile_n, program = next_digit(tl.program_id(0), tl.cdiv(GROUP_N * TAPS, TILE.BLOCK_N))
    tile_m, program = next_digit(program, tl.cdiv(GROUP_M, TILE.BLOCK_M))
    group, split = next_digit(program, GROUPS)
    channel = group * GROUP_M + tile_m * TILE.BLOCK_M

    column = tile_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)[:, None]  # [BLOCK_N, 1]
    other, r, s = split_tap(column, GROUP_N, READ, OF_X)
    down, across = r * READ.DIL_H, s * READ.DIL_W
    corner = (group * GROUP_N + other) * shifted_strides[1]
    corner += down * shifted_strides[2] + across * shifted_strides[3]
    down = tl.where(column < GROUP_N * TAPS, down, OUTSIDE)

    boxes = tl.cdiv(H * W, TILE.BLOCK_K)  # of a plane
    first = split * SPLIT_BOXES
    last = tl.minimum(first + SPLIT_BOXES, N * boxes)
    # Every split has a box: without that, ptxas waits for each product, see wgrad_tma.
    tl.assume(last > first)
    acc = tl.zeros([TILE.BLOCK_M, TILE.BLOCK_N], tl.float32)
    shifted = load_shifted(
        shifted_ptr, corner, down, across, first, boxes, W, shifted_shape, shifted_strides,
        READ, PRECISION, TILE.BLOCK_K,
    )  # fmt: skip
    for box in range(first, last):
        # Load a step ahead. The last step loads its own box again, and that is not multiplied.
        following = load_shifted(
            shifted_ptr, corner, down, across, tl.minimum(box + 1, last - 1), boxes, W,
            shifted_shape, shifted_strides, READ, PRECISION, TILE.BLOCK_K,
        )  # fmt: skip
        tile, n = next_digit(box, boxes)
        if NHWC:
            still = still_desc.load([n, tile * TILE.BLOCK_K, channel])
            still = still.reshape(TILE.BLOCK_K, TILE.BLOCK_M).T
        else:
            still = still_desc.load([n, channel, tile * TILE.BLOCK_K])
            still = still.reshape(TILE.BLOCK_M, TILE.BLOCK_K)
        acc = tl.dot(still, shifted.T, acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        shifted = following

    # Channels of x lie along the last axis: those of partials are neighbours.
    if OF_X:
        row = tile_m * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)[:, None]
        column = tile_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)[None, :]
        c, r, s = split_tap(column, GROUP_N, READ, OF_X)
        k, first_k = row, group * GROUP_M
    else:
        acc = acc.T
        row = tile_m * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)[None, :]
        column = tile_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)[:, None]
        k, r, s = split_tap(column, GROUP_N, READ, OF_X)
        c, first_k = row, group * GROUP_N
    down = dw_ptr + widen(split, True) * dw_stride_split + first_k * dw_strides[1]
    across = k * dw_strides[1] + c * dw_strides[2] + r * dw_strides[3] + s * dw_strides[4]
    mask = (row < GROUP_M) & (column < GROUP_N * TAPS)
    tl.store(side_by_side_singly(down, across), acc.to(dw_ptr.dtype.element_ty), mask=mask)


@triton.jit
def split_tap(column, CHANNELS, READ: tl.constexpr, OF_X: tl.constexpr):
    """(channel, r, s) of a column: channels of x are the fastest digit, of dy the slowest."""
    if OF_X:
        channel, tap = column % CHANNELS, column // CHANNELS
    else:
        channel, tap = column // (READ.R * READ.S), column % (READ.R * READ.S)
    return channel, tap // READ.S, tap % READ.S


@triton.jit
def load_shifted(
    shifted_ptr, corner, down, across, box, boxes, W, shape, strides,
    READ: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The elements [BLOCK_N, BLOCK_K] that the pixels of a box read through each column's tap.

    Those of pixels beyond the plane are not masked: the other operand is zero there.
    """
    tile, n = next_digit(box, boxes)
    pixel = tile * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
    h = pixel // W * READ.STRIDE_H - READ.PAD_H
    w = pixel % W * READ.STRIDE_W - READ.PAD_W
    mask = is_inside(h + down, shape[0]) & is_inside(w + across, shape[1])
    offset = n * strides[0] + h * strides[2] + w * strides[3]
    block = tl.load(side_by_side(shifted_ptr, corner + offset), mask=mask, other=0.0)
    if PRECISION == "tf32":
        block = rounded(block)
    return block
