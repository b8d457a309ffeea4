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
    tiles_q = 1 + gl.cdiv(gl.maximum(needed - TILE.BLOCK_W, 0), max(1, OUTPUTS))
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
    # Channels of a product: all of a step, but for operands in registers and a window of one row.
    CHUNK: gl.constexpr = MATRIX[1 if LAYOUT.CROSSWISE else 2]
    CHUNKS: gl.constexpr = BLOCK_K // CHUNK
    weights = gl.allocate_shared_memory(
        dtype, [STAGES * TAPS * CHUNKS, 1, MATRIX[1], MATRIX[2]], weight_desc.layout
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
    # Left operands that several columns of taps multiply are loaded to registers once; in TF32, all
    # are. The next ones get registers of earlier ones: the products of one row of taps are under
    # way. Others, from shared memory, are as many as can be.
    ROUNDS: gl.constexpr = WINDOW.R * CHUNKS
    LOADED: gl.constexpr = BITS == 32 or WINDOW.S > 1
    AHEAD: gl.constexpr = 1 if LOADED else min(ROUNDS, 7)
    for step in range(steps):
        slot = step % STAGES
        mbarrier.wait(loaded.index(slot), step // STAGES & 1)
        for i in gl.static_range(ROUNDS):
            rows = xs.index((slot * ROWS + i // CHUNKS * WINDOW.DIL_H) * PARTS)
            if BITS == 32:
                image = in_registers(rows, i % CHUNKS, CHUNK, PIXELS, TILE, SUMS)
            else:
                image = rows._reinterpret(dtype, [BLOCK_K, PIXELS], BOX)
                image = image.slice(i % CHUNKS * CHUNK, CHUNK, 0).permute([1, 0])
                if LOADED:
                    image = image.load(gl.DotOperandLayout(0, SUMS, k_width=2))
            first = (slot * TAPS + i // CHUNKS * WINDOW.S) * CHUNKS + i % CHUNKS
            sums = add_row(sums, image, weights, first, CHUNKS, LAYOUT.CROSSWISE)
            if i == AHEAD - 1 or LOADED:
                sums = wait_for(min(AHEAD * WINDOW.S, 7), sums)
            if i == AHEAD - 1:
                load_step(
                    x_desc, weight_desc, xs, weights, loaded, step + STAGES - 1, steps, corner,
                    weight_corner, WINDOW, LAYOUT, TILE, STAGES,
                )  # fmt: skip
    done = ()
    for s in gl.static_range(WINDOW.S):
        done += (warpgroup_mma_wait(0, deps=(sums[s],)),)
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(loaded.index(i))

    # Runs of pixels, side by side: 8 bytes of results.
    RUN: gl.constexpr = 64 // BITS
    SIDE: gl.constexpr = min(32, PIXELS // RUN)
    STORED: gl.constexpr = gl.BlockedLayout([1, RUN], [32 // SIDE, SIDE], [WARPS, 1], [1, 0])
    if BITS == 32:
        done = in_order(done, x_desc.block_type.shape[3])
    acc = shifted_sums(done, TILE.BLOCK_W, WINDOW.PAD_W, RUN, STORED)
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


@gluon.constexpr_function
def fragments(PIXELS, SPAN, CHUNK, DOWN, ACROSS):
    """The layout of [PIXELS / SPAN, CHUNK, SPAN] in which in_registers loads them.

    Of a fragment of 16 pixels and 8 channels, lanes have 8 pixels and 4 channels, and registers two
    of each. DOWN warps have 16 pixels each, and ACROSS times as many the same ones.
    """
    middle = [[0, 0, 1 << bit] for bit in range(2, SPAN.bit_length() - 2)]
    parts = [[1 << bit, 0, 0] for bit in range((PIXELS // SPAN).bit_length() - 1)]
    channels = [[0, 1 << bit, 0] for bit in range(CHUNK.bit_length() - 1)]
    pair, *rest = middle + parts
    down, across = DOWN.bit_length() - 1, ACROSS.bit_length() - 1
    registers = [pair, *channels[2:], *rest[down:]]
    warps = rest[:down] + [[0, 0, 0]] * across
    lanes = [*channels[:2], [0, 0, 1], [0, 0, 2], [0, 0, SPAN // 2]]
    shape = [PIXELS // SPAN, CHUNK, SPAN]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], shape)


@gluon.jit
def in_registers(
    rows, chunk, CHUNK: gl.constexpr, PIXELS: gl.constexpr, TILE: gl.constexpr, SUMS: gl.constexpr,
):  # fmt: skip
    """The left operand [pixels, channels] of BLOCK_P rows and CHUNK of their channels, in TF32.

    wgmma takes TF32 from shared memory only with channels innermost, but from registers too. Of the
    columns of a part, lanes get 4 neighbours of either half: 32 banks of shared memory. Pixels are
    (part, 4 columns of a half, half, column of the 4): in_order exchanges the axes again.
    """
    SPAN: gl.constexpr = rows.shape[3]
    PARTS: gl.constexpr = PIXELS // SPAN
    VIEW: gl.constexpr = gl.NVMMASharedLayout(4 * SPAN, 32, rank=3)
    WARPS: gl.constexpr = SUMS.warps_per_cta
    LOADED: gl.constexpr = fragments(PIXELS, SPAN, CHUNK, WARPS[0], WARPS[1])
    view = rows._reinterpret(rows.dtype, [PARTS, TILE.BLOCK_K, SPAN], VIEW)
    left = view.slice(chunk * CHUNK, CHUNK, 1).load(LOADED)
    left = left.reshape([PARTS, CHUNK, 2, SPAN // 8, 4]).permute([0, 3, 2, 4, 1])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SUMS, k_width=1)
    return gl.convert_layout(left.reshape([PIXELS, CHUNK]), LEFT, assert_trivial=True)


@gluon.jit
def in_order(sums, SPAN: gl.constexpr):
    """Sums [pixels, filters] of left operands in_registers, with the pixels in order."""
    PIXELS: gl.constexpr = sums[0].shape[0]
    BLOCK_F: gl.constexpr = sums[0].shape[1]
    ordered = ()
    for s in gl.static_range(len(sums)):
        axes = sums[s].reshape([PIXELS // SPAN, SPAN // 8, 2, 4, BLOCK_F])
        ordered += (axes.permute([0, 2, 1, 3, 4]).reshape([PIXELS, BLOCK_F]),)
    return ordered


@gluon.jit
def add_row(sums, image, weights, first, CHUNKS: gl.constexpr, CROSSWISE: gl.constexpr):
    """Starts to add the products of rows of pixels with a row of taps, from weight `first` on.

    `image` is [pixels, channels]. In 16 bits, either axis of an operand may be innermost in shared
    memory.
    """
    WEIGHT: gl.constexpr = [weights.shape[2], weights.shape[3]]
    MATRIX: gl.constexpr = gl.NVMMASharedLayout(
        weights.layout.swizzle_byte_width, weights.dtype.primitive_bitwidth, rank=2
    )
    added = ()
    for s in gl.static_range(len(sums)):
        weight = weights.index(first + s * CHUNKS)._reinterpret(weights.dtype, WEIGHT, MATRIX)
        if not CROSSWISE:
            weight = weight.permute([1, 0])
        added += (warpgroup_mma(image, weight, sums[s], is_async=True),)
    return added


@gluon.jit
def shifted_sums(
    sums, BLOCK_W: gl.constexpr, PAD_W: gl.constexpr, RUN: gl.constexpr, STORED: gl.constexpr
):
    """[filters, pixels]: what sums [pixels, filters] of each column of taps give to an output.

    Those of tap s are stored PAD_W - s columns to the right, so that each output loads its column
    of all of them. Filters are a RUN apart beside their pixels: no two lanes of a warp that store
    meet in a bank of shared memory.
    """
    PIXELS: gl.constexpr = sums[0].shape[0]
    BLOCK_F: gl.constexpr = sums[0].shape[1]
    COUNT: gl.constexpr = len(sums)
    SPREAD: gl.constexpr = gl.PaddedSharedLayout.with_identity_for(
        [[PIXELS, RUN]], [PIXELS, BLOCK_F], [0, 1]
    )
    # Elements before and behind the pixels of all filters, in whole loads.
    BEFORE: gl.constexpr = (max(COUNT - 1 - PAD_W, 0) + RUN - 1) // RUN * RUN
    BEHIND: gl.constexpr = (max(PAD_W, 0) + RUN - 1) // RUN * RUN
    SIZE: gl.constexpr = BEFORE + (PIXELS + RUN) * BLOCK_F + BEHIND
    ONE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    buffer = gl.allocate_shared_memory(gl.float32, [COUNT * SIZE, 1], ONE)
    # Pixels at an end of the box that nothing is stored for, in runs: read, though not used.
    END: gl.constexpr = gl.PaddedSharedLayout.with_identity_for(
        [[RUN, PIXELS]], [RUN, BLOCK_F], [0, 1]
    )
    WARPS: gl.constexpr = STORED.warps_per_cta[0]
    zeros = gl.zeros(
        [RUN, BLOCK_F], gl.float32, gl.BlockedLayout([RUN, 1], [1, 32], [1, WARPS], [0, 1])
    )
    for s in gl.static_range(COUNT):
        for i in gl.static_range((max(PAD_W - s, s - PAD_W) + RUN - 1) // RUN):
            end = RUN * i if s < PAD_W else PIXELS - RUN - RUN * i
            view = buffer.index(s * SIZE + BEFORE + end)
            view._reinterpret(gl.float32, [RUN, BLOCK_F], END).store(zeros)
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
    CHUNK: gl.constexpr = weight_desc.block_type.shape[1 if LAYOUT.CROSSWISE else 2]
    CHUNKS: gl.constexpr = TILE.BLOCK_K // CHUNK
    LOADED: gl.constexpr = (
        ROWS // RUN * PARTS * x_desc.block_type.nbytes
        + TAPS * CHUNKS * weight_desc.block_type.nbytes
    )
    mbarrier.expect(ready, LOADED, pred=exists)
    for i in gl.static_range(ROWS // RUN):
        for part in gl.static_range(PARTS):
            row = xs.index((slot * ROWS + i * RUN) * PARTS + part)
            tma.async_copy_global_to_shared(
                x_desc, [n, h + i * RUN, c + summed, w + part * SPAN], ready,
                row._reinterpret(x_desc.dtype, x_desc.block_type.shape, x_desc.layout), exists,
            )  # fmt: skip
    # No static range: the addresses of many boxes spill.
    for i in range(TAPS * CHUNKS):
        tap = i // CHUNKS
        if LAYOUT.FLIP:
            tap = TAPS - 1 - i // CHUNKS
        channel = summed + i % CHUNKS * CHUNK
        if LAYOUT.CROSSWISE:
            place = [tap, weight_row + channel, weight_column]
        else:
            place = [tap, weight_row, weight_column + channel]
        tma.async_copy_global_to_shared(
            weight_desc, place, ready, weights.index(slot * TAPS * CHUNKS + i), exists
        )
