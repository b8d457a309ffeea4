"""Forward of images in planes, read as they lie: sm_90.

    sums[s][(p,w),k] = sum_{c,r} x[n,c,h,w] * weight[k,c,r,s]        h = p - PAD_H + r * DIL_H
    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_s sums[s][(p, q - PAD_W + s), k])

    GEMM_M = pixels (p,w) of rows of x    GEMM_N = filters k of one group    GEMM_K = (r, c)

A box must begin at a multiple of 16 bytes of a row, so that columns of taps cannot have boxes of
their own. They share one, and results are shifted: each column s of taps has its own sums, of the
columns of x; what they give to an output lies s - PAD_W columns from it. The sums meet in shared
memory, each stored as many columns to the side.

A step is BLOCK_K channels. It loads BLOCK_P + (R - 1) * DIL_H rows of BLOCK_W columns, and the
weights of all taps. A row lies in shared memory as [channels, columns], in parts of at most 128
bytes of columns, so that BLOCK_P rows from any row on are a matrix [channels, pixels].

Boxes begin at column 0, then every OUTPUTS columns; see outputs_of. Columns beside a box are zeros
beyond the image, else they belong to outputs that another box has.

x is (N, C, H, W) in memory, with rows that begin at multiples of 16 bytes. y has any strides. The
weight is described as ((r,s), k, c). CROSSWISE: as ((r,s), c, k), in 16 bits, and multiplied with
its axes exchanged; that of an input gradient is. FLIP: the window is turned. Sums in float32.

In Gluon, which has views of shared memory and no interpreter.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from .epilogue import activate, add_residual
from .fprop_reuse import barriers
from .hints import align_extents, align_strides
from .schedule import next_digit
from .structs import at
from .wgrad_reuse import wait_for


@gluon.jit(do_not_specialize=["N"])
def fprop_planes(
    x_desc, weight_desc, bias_ptr, residual_ptr, y_ptr,
    N, x_shape, y_shape, channels, bias_stride, residual_strides, y_strides,
    WINDOW: gl.constexpr, LAYOUT: gl.constexpr, ACTIVATION: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    _, W = x_shape
    _, GROUP_C, GROUP_K = channels
    GROUP_K, Q = align_extents(GROUP_K, Q, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    residual_strides = align_strides(residual_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    y_strides = align_strides(y_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    PIXELS: gl.constexpr = TILE.BLOCK_P * TILE.BLOCK_W
    BLOCK_F: gl.constexpr = TILE.BLOCK_F
    BLOCK_K: gl.constexpr = TILE.BLOCK_K
    ROWS: gl.constexpr = TILE.BLOCK_P + (WINDOW.R - 1) * WINDOW.DIL_H
    TAPS: gl.constexpr = WINDOW.R * WINDOW.S
    dtype: gl.constexpr = x_desc.dtype
    BITS: gl.constexpr = dtype.primitive_bitwidth
    PARTS: gl.constexpr = TILE.BLOCK_W // x_desc.block_type.shape[3]
    # One warpgroup for every 64 pixels, and for its share of the filters.
    DOWN: gl.constexpr = min(WARPS, PIXELS // 16)
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [DOWN, WARPS // DOWN], [16, BLOCK_F // (WARPS // DOWN), 256 // BITS]
    )
    BOX: gl.constexpr = gl.NVMMASharedLayout(x_desc.layout.swizzle_byte_width, BITS, rank=2)

    OUTPUTS: gl.constexpr = outputs_of(TILE.BLOCK_W, WINDOW.S, WINDOW.PAD_W, 128 // BITS)
    LEFT: gl.constexpr = left_of(WINDOW.PAD_W, 128 // BITS)
    needed = gl.maximum(Q, gl.minimum(W, Q + WINDOW.S - 1 - WINDOW.PAD_W))
    tiles_q = 1 + gl.cdiv(gl.maximum(needed - TILE.BLOCK_W, 0), OUTPUTS)
    tile_n, program = next_digit(gl.program_id(0), gl.cdiv(GROUP_K, BLOCK_F))
    tile_q, program = next_digit(program, tiles_q)
    tile_p, program = next_digit(program, gl.cdiv(P, TILE.BLOCK_P))
    n, group = next_digit(program, N)
    p, w = tile_p * TILE.BLOCK_P, tile_q * OUTPUTS
    corner = (n, p - WINDOW.PAD_H, group * GROUP_C, w)
    if LAYOUT.CROSSWISE:
        weight_corner = (group * GROUP_C, tile_n * BLOCK_F)
    else:
        weight_corner = (group * GROUP_K + tile_n * BLOCK_F, 0)
    MATRIX: gl.constexpr = weight_desc.block_type.shape
    xs = gl.allocate_shared_memory(
        dtype, [STAGES * ROWS * PARTS, 1, 1, BLOCK_K, TILE.BLOCK_W // PARTS], x_desc.layout
    )
    weights = gl.allocate_shared_memory(
        dtype, [STAGES * TAPS, 1, MATRIX[1], MATRIX[2]], weight_desc.layout
    )
    loaded = barriers(STAGES)

    # At least one, see fprop_reuse.
    steps = gl.maximum(gl.cdiv(GROUP_C, BLOCK_K), 1)
    for i in gl.static_range(STAGES - 1):
        load_step(
            x_desc, weight_desc, xs, weights, loaded, i, steps, corner, weight_corner,
            WINDOW, LAYOUT, TILE, STAGES,
        )  # fmt: skip
    sums = ()
    for _ in gl.static_range(WINDOW.S):
        sums += (warpgroup_mma_init(gl.zeros([PIXELS, BLOCK_F], gl.float32, SUMS)),)
    # Products that are started before those of the last step are waited for: as many as can be.
    AHEAD: gl.constexpr = min(WINDOW.R, max(1, 7 // WINDOW.S))
    for step in range(steps):
        slot = step % STAGES
        mbarrier.wait(loaded.index(slot), step // STAGES & 1)
        for r in gl.static_range(WINDOW.R):
            image = xs.index((slot * ROWS + r * WINDOW.DIL_H) * PARTS)
            sums = add_row(
                sums, image._reinterpret(dtype, [BLOCK_K, PIXELS], BOX), weights,
                slot * TAPS + r * WINDOW.S, LAYOUT.CROSSWISE,
            )  # fmt: skip
            if r == AHEAD - 1:
                sums = wait_for(min(AHEAD * WINDOW.S, 7), sums)
                load_step(
                    x_desc, weight_desc, xs, weights, loaded, step + STAGES - 1, steps, corner,
                    weight_corner, WINDOW, LAYOUT, TILE, STAGES,
                )  # fmt: skip
    done = ()
    for s in gl.static_range(WINDOW.S):
        done += (warpgroup_mma_wait(0, deps=(sums[s],)),)
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(loaded.index(i))

    # Runs of 4 pixels, side by side: 16 bytes of sums.
    SIDE: gl.constexpr = min(32, PIXELS // 4)
    STORED: gl.constexpr = gl.BlockedLayout([1, 4], [32 // SIDE, SIDE], [WARPS, 1], [1, 0])
    acc = shifted_sums(done, TILE.BLOCK_W, WINDOW.PAD_W, STORED)
    group_k = tile_n * BLOCK_F + gl.arange(0, BLOCK_F, gl.SliceLayout(1, STORED))[:, None]
    m = gl.arange(0, PIXELS, gl.SliceLayout(0, STORED))[None, :]
    column = m % TILE.BLOCK_W
    k, p, q = group * GROUP_K + group_k, p + m // TILE.BLOCK_W, w + column
    if bias_ptr is not None:
        acc += gl.load(bias_ptr + k * bias_stride, mask=group_k < GROUP_K, other=0.0)
    # The outputs whose windows are in the box, but for padding beside the image.
    first = gl.minimum(tile_q, 1) * LEFT
    beyond = gl.minimum(tiles_q - 1 - tile_q, 1) * (TILE.BLOCK_W - LEFT - OUTPUTS)
    mask = (group_k < GROUP_K) & (p < P) & (q < Q)
    mask &= (column >= first) & (column < TILE.BLOCK_W - beyond)
    if residual_ptr is not None:
        acc = add_residual(acc, at(residual_ptr, residual_strides, n, k, p, q), mask)
    y = activate(acc, ACTIVATION, y_ptr.dtype.element_ty)
    gl.store(at(y_ptr, y_strides, n, k, p, q), y, mask=mask)


@gluon.constexpr_function
def left_of(PAD_W, PIECE):
    """Columns of a box but the first that belong to outputs of the box to the left of it."""
    return -(-PAD_W // PIECE) * PIECE


@gluon.constexpr_function
def outputs_of(BLOCK_W, S, PAD_W, PIECE):
    """Columns from one box to the next: outputs whose windows are in a box, in whole pieces."""
    return (BLOCK_W - S + 1 + PAD_W - left_of(PAD_W, PIECE)) // PIECE * PIECE


@gluon.jit
def add_row(sums, image, weights, first, CROSSWISE: gl.constexpr):
    """Starts to add the products of rows of pixels with a row of taps, from weight `first` on.

    `image` is [channels, pixels]. In 16 bits, either axis of an operand may be innermost in shared
    memory: its transposed view is the left one.
    """
    WEIGHT: gl.constexpr = [weights.shape[2], weights.shape[3]]
    MATRIX: gl.constexpr = gl.NVMMASharedLayout(
        weights.layout.swizzle_byte_width, weights.dtype.primitive_bitwidth, rank=2
    )
    added = ()
    for s in gl.static_range(len(sums)):
        weight = weights.index(first + s)._reinterpret(weights.dtype, WEIGHT, MATRIX)
        if not CROSSWISE:
            weight = weight.permute([1, 0])
        added += (warpgroup_mma(image.permute([1, 0]), weight, sums[s], is_async=True),)
    return added


@gluon.jit
def shifted_sums(sums, BLOCK_W: gl.constexpr, PAD_W: gl.constexpr, STORED: gl.constexpr):
    """[filters, pixels]: what sums [pixels, filters] of each column of taps give to an output.

    Those of tap s are stored PAD_W - s columns to the right, so that each output loads its column
    of all of them. Filters are 4 elements apart beside their pixels: no two lanes of a warp that
    store meet in a bank of shared memory.
    """
    PIXELS: gl.constexpr = sums[0].shape[0]
    BLOCK_F: gl.constexpr = sums[0].shape[1]
    COUNT: gl.constexpr = len(sums)
    SPREAD: gl.constexpr = gl.PaddedSharedLayout.with_identity_for(
        [[PIXELS, 4]], [PIXELS, BLOCK_F], [0, 1]
    )
    # Elements before and behind the pixels of all filters, in whole loads.
    BEFORE: gl.constexpr = (max(COUNT - 1 - PAD_W, 0) + 3) // 4 * 4
    SIZE: gl.constexpr = BEFORE + (PIXELS + 4) * BLOCK_F + (max(PAD_W, 0) + 3) // 4 * 4
    ONE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    buffer = gl.allocate_shared_memory(gl.float32, [COUNT * SIZE, 1], ONE)
    # Pixels at an end of the box that nothing is stored for, in fours: read, though not used.
    END: gl.constexpr = gl.PaddedSharedLayout.with_identity_for([[4, PIXELS]], [4, BLOCK_F], [0, 1])
    WARPS: gl.constexpr = STORED.warps_per_cta[0]
    zeros = gl.zeros(
        [4, BLOCK_F], gl.float32, gl.BlockedLayout([4, 1], [1, 32], [1, WARPS], [0, 1])
    )
    for s in gl.static_range(COUNT):
        for i in gl.static_range((max(PAD_W - s, s - PAD_W) + 3) // 4):
            end = 4 * i if s < PAD_W else PIXELS - 4 - 4 * i
            view = buffer.index(s * SIZE + BEFORE + end)
            view._reinterpret(gl.float32, [4, BLOCK_F], END).store(zeros)
    for s in gl.static_range(COUNT):
        view = buffer.index(s * SIZE + BEFORE + PAD_W - s)
        view._reinterpret(gl.float32, [PIXELS, BLOCK_F], SPREAD).store(sums[s])
    acc = gl.zeros([BLOCK_F, PIXELS], gl.float32, STORED)
    column = gl.arange(0, PIXELS, gl.SliceLayout(0, STORED))[None, :] % BLOCK_W - PAD_W
    for s in gl.static_range(COUNT):
        view = buffer.index(s * SIZE + BEFORE)
        view = view._reinterpret(gl.float32, [PIXELS, BLOCK_F], SPREAD)
        given = view.permute([1, 0]).load(STORED)
        acc += gl.where((column + s >= 0) & (column + s < BLOCK_W), given, 0.0)
    return acc


@gluon.jit
def load_step(
    x_desc, weight_desc, xs, weights, loaded, step, steps, corner, weight_corner,
    WINDOW: gl.constexpr, LAYOUT: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for the rows and the weights of a step, if there is such a step."""
    slot, exists = step % STAGES, step < steps
    n, h, c, w = corner
    weight_row, weight_column = weight_corner
    summed = step * TILE.BLOCK_K
    ready = loaded.index(slot)
    TAPS: gl.constexpr = WINDOW.R * WINDOW.S
    RUN: gl.constexpr = x_desc.block_type.shape[1]
    SPAN: gl.constexpr = x_desc.block_type.shape[3]
    PARTS: gl.constexpr = TILE.BLOCK_W // SPAN
    ROWS: gl.constexpr = TILE.BLOCK_P + (WINDOW.R - 1) * WINDOW.DIL_H
    LOADED: gl.constexpr = (
        ROWS // RUN * PARTS * x_desc.block_type.nbytes + TAPS * weight_desc.block_type.nbytes
    )
    mbarrier.expect(ready, LOADED, pred=exists)
    for i in gl.static_range(ROWS // RUN):
        for part in gl.static_range(PARTS):
            row = xs.index((slot * ROWS + i * RUN) * PARTS + part)
            tma.async_copy_global_to_shared(
                x_desc, [n, h + i * RUN, c + summed, w + part * SPAN], ready,
                row._reinterpret(x_desc.dtype, x_desc.block_type.shape, x_desc.layout), exists,
            )  # fmt: skip
    for i in gl.static_range(TAPS):
        tap = i
        if LAYOUT.FLIP:
            tap = TAPS - 1 - i
        if LAYOUT.CROSSWISE:
            place = [tap, weight_row + summed, weight_column]
        else:
            place = [tap, weight_row, weight_column + summed]
        tma.async_copy_global_to_shared(
            weight_desc, place, ready, weights.index(slot * TAPS + i), exists
        )
