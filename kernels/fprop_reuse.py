"""Forward with every row of the input in shared memory once for all taps of a column: sm_90.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p - PAD_H + r        w = q - PAD_W + s

    GEMM_M = filters k of one group    GEMM_N = pixels (p,q) of one image
    GEMM_K = (c blocks, s, r, c)

A step is one column s of taps and BLOCK_K channels. It loads BLOCK_P + R - 1 rows of BLOCK_Q
pixels, which lie one after the other in shared memory: tap r multiplies the BLOCK_P rows from row
r on. For the same taps fprop_tma loads R times BLOCK_P rows.

x is (N, H, W, C) in memory, and BLOCK_K channels are 32, 64 or 128 bytes, so that rows of a
multiple of 8 pixels are whole periods of the swizzle. y has any strides. The weight is a matrix
(k, (r,s,c)) with TAP_COLUMNS columns for each tap. CROSSWISE: it is (c, (r,s,k)), in 16 bits, and
multiplied with its axes exchanged; that of an input gradient is. FLIP: the window is turned. Sums
in float32.

While a step is multiplied, boxes of the next STAGES - 1 are loaded. Those of the last of them go to
the place of the step before, once its products are done; the step's own still run.

In Gluon, which has views of shared memory and no interpreter.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .epilogue import activate, add_residual
from .hints import align_extents, align_strides
from .schedule import next_digit
from .structs import at


@gluon.jit(do_not_specialize=["N"])
def fprop_reuse(
    x_desc, x_rest_desc, weight_desc, bias_ptr, residual_ptr, y_ptr,
    N, y_shape, channels, TAP_COLUMNS, bias_stride, residual_strides, y_strides,
    WINDOW: gl.constexpr, LAYOUT: gl.constexpr, ACTIVATION: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    _, GROUP_C, GROUP_K = channels
    GROUP_K, Q = align_extents(GROUP_K, Q, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    residual_strides = align_strides(residual_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    y_strides = align_strides(y_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    PIXELS: gl.constexpr = TILE.BLOCK_P * TILE.BLOCK_Q
    BLOCK_F: gl.constexpr = TILE.BLOCK_F
    BLOCK_K: gl.constexpr = TILE.BLOCK_K
    ROWS: gl.constexpr = TILE.BLOCK_P + WINDOW.R - 1
    dtype: gl.constexpr = x_desc.dtype
    BITS: gl.constexpr = dtype.primitive_bitwidth
    # One warpgroup for every 64 filters, and for its share of the pixels.
    DOWN: gl.constexpr = BLOCK_F // 16
    ACROSS: gl.constexpr = WARPS // DOWN
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [DOWN, ACROSS], [16, PIXELS // ACROSS, 256 // BITS]
    )
    BOX: gl.constexpr = gl.NVMMASharedLayout(x_desc.layout.swizzle_byte_width, BITS, rank=2)

    tile_n, program = next_digit(gl.program_id(0), gl.cdiv(GROUP_K, BLOCK_F))
    tile_q, program = next_digit(program, gl.cdiv(Q, TILE.BLOCK_Q))
    tile_p, program = next_digit(program, gl.cdiv(P, TILE.BLOCK_P))
    n, group = next_digit(program, N)
    p, q = tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
    corner = (n, p - WINDOW.PAD_H, q - WINDOW.PAD_W, group * GROUP_C)
    if LAYOUT.CROSSWISE:
        weight_corner = (group * GROUP_C, tile_n * BLOCK_F)
    else:
        weight_corner = (group * GROUP_K + tile_n * BLOCK_F, 0)

    xs = gl.allocate_shared_memory(
        dtype, [STAGES * ROWS, 1, 1, TILE.BLOCK_Q, BLOCK_K], x_desc.layout
    )
    MATRIX: gl.constexpr = weight_desc.block_type.shape
    weights = gl.allocate_shared_memory(
        dtype, [STAGES * WINDOW.R, MATRIX[0], MATRIX[1]], weight_desc.layout
    )
    loaded = barriers(STAGES)

    # At least one, in a form that LLVM sees: ptxas serializes the products of a loop that may be
    # empty (Triton 3.6, TF32 with gelu; an assumption does not help).
    steps = gl.maximum(WINDOW.S * gl.cdiv(GROUP_C, BLOCK_K), 1)
    for i in gl.static_range(STAGES - 1):
        load_step(
            x_desc, x_rest_desc, weight_desc, xs, weights, loaded, i, steps, corner, weight_corner,
            TAP_COLUMNS, WINDOW, LAYOUT, TILE, STAGES,
        )  # fmt: skip
    acc = gl.zeros([BLOCK_F, PIXELS], gl.float32, SUMS)
    for step in range(steps):
        slot = step % STAGES
        mbarrier.wait(loaded.index(slot), step // STAGES & 1)
        for r in gl.static_range(WINDOW.R):
            image = xs.index(slot * ROWS + r)._reinterpret(dtype, [PIXELS, BLOCK_K], BOX)
            weight = weights.index(slot * WINDOW.R + r)
            if LAYOUT.CROSSWISE:
                weight = weight.permute([1, 0])
            acc = warpgroup_mma(weight, image.permute([1, 0]), acc, is_async=True)
        acc = warpgroup_mma_wait(WINDOW.R, deps=(acc,))  # those of the step before are done
        load_step(
            x_desc, x_rest_desc, weight_desc, xs, weights, loaded, step + STAGES - 1, steps, corner,
            weight_corner, TAP_COLUMNS, WINDOW, LAYOUT, TILE, STAGES,
        )  # fmt: skip
    acc = warpgroup_mma_wait(0, deps=(acc,))
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(loaded.index(i))

    # Pieces of 16 bytes, side by side: of channels, or of pixels of planes.
    PIECE: gl.constexpr = 128 // BITS
    if LAYOUT.OUT_AXIS == 0:
        SIDE: gl.constexpr = min(32, BLOCK_F // PIECE)
        STORED: gl.constexpr = gl.BlockedLayout([PIECE, 1], [SIDE, 32 // SIDE], [1, WARPS], [0, 1])
    else:
        SIDE: gl.constexpr = min(32, PIXELS // PIECE)
        STORED: gl.constexpr = gl.BlockedLayout([1, PIECE], [32 // SIDE, SIDE], [WARPS, 1], [1, 0])
    acc = gl.convert_layout(acc, STORED)
    group_k = tile_n * BLOCK_F + gl.arange(0, BLOCK_F, gl.SliceLayout(1, STORED))[:, None]
    m = gl.arange(0, PIXELS, gl.SliceLayout(0, STORED))[None, :]
    k, p, q = group * GROUP_K + group_k, p + m // TILE.BLOCK_Q, q + m % TILE.BLOCK_Q
    if bias_ptr is not None:
        acc += gl.load(bias_ptr + k * bias_stride, mask=group_k < GROUP_K, other=0.0)
    mask = (group_k < GROUP_K) & (p < P) & (q < Q)
    if residual_ptr is not None:
        acc = add_residual(acc, at(residual_ptr, residual_strides, n, k, p, q), mask)
    y = activate(acc, ACTIVATION, y_ptr.dtype.element_ty)
    gl.store(at(y_ptr, y_strides, n, k, p, q), y, mask=mask)


@gluon.jit
def barriers(STAGES: gl.constexpr):
    """A barrier for each stage, which one thread arrives at: the one that asks for boxes."""
    loaded = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(loaded.index(i), count=1)
    fence_async_shared()
    return loaded


@gluon.jit
def load_step(
    x_desc, x_rest_desc, weight_desc, xs, weights, loaded, step, steps, corner, weight_corner,
    TAP_COLUMNS,
    WINDOW: gl.constexpr, LAYOUT: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for the rows and the weights of a step, if there is such a step."""
    slot, exists = step % STAGES, step < steps
    n, h, w, c = corner
    weight_row, weight_column = weight_corner
    s, summed = step % WINDOW.S, step // WINDOW.S * TILE.BLOCK_K
    ready = loaded.index(slot)
    dtype: gl.constexpr = x_desc.dtype
    ROWS: gl.constexpr = TILE.BLOCK_P + WINDOW.R - 1
    REST: gl.constexpr = x_rest_desc.block_type.shape[1]
    LOADED: gl.constexpr = (
        x_desc.block_type.nbytes
        + (WINDOW.R - 1) // REST * x_rest_desc.block_type.nbytes
        + WINDOW.R * weight_desc.block_type.nbytes
    )
    mbarrier.expect(ready, LOADED, pred=exists)
    w, c = w + s, c + summed
    rows = xs.index(slot * ROWS)._reinterpret(dtype, x_desc.block_type.shape, x_desc.layout)
    tma.async_copy_global_to_shared(x_desc, [n, h, w, c], ready, rows, exists)
    for i in gl.static_range((WINDOW.R - 1) // REST):
        row = TILE.BLOCK_P + i * REST
        rows = xs.index(slot * ROWS + row)._reinterpret(
            dtype, x_rest_desc.block_type.shape, x_rest_desc.layout
        )
        tma.async_copy_global_to_shared(x_rest_desc, [n, h + row, w, c], ready, rows, exists)
    for r in gl.static_range(WINDOW.R):
        tap = r * WINDOW.S + s
        if LAYOUT.FLIP:
            tap = WINDOW.R * WINDOW.S - 1 - tap
        column = weight_column + tap * TAP_COLUMNS
        matrix = weights.index(slot * WINDOW.R + r)
        if LAYOUT.CROSSWISE:
            place = [weight_row + summed, column]
        else:
            place = [weight_row, column + summed]
        tma.async_copy_global_to_shared(weight_desc, place, ready, matrix, exists)
