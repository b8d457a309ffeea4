"""Forward for large windows of few channels, with the bands in shared memory: sm_90.

    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{c,r,s} x[n,c,h,w] * weight[k,c,r,s])
    h = p * STRIDE_H - PAD_H + r        w = q * STRIDE_W - PAD_W + s

    GEMM_M = blocks of BLOCK_P x BLOCK_Q outputs, over planes (n) and their rows and columns
    GEMM_N = the outputs (p,q) of a block
    GEMM_K = (c,row,i): the input that a block reads, rows of COLUMNS columns

fprop_banded multiplies the same matrices. Here a program computes tile after tile of one filter,
whose bands it copies to shared memory first:

    lines[c,j,phase,line,q,i] = weight[k,c,r,s] if that tap exists, else 0
    r = (line - (BLOCK_P - 1)) * STRIDE_H + phase
    s = (j * BLOCK_Q + i) * UP_W + SHIFT - q * STRIDE_W

build_lines has written them so, but for BLOCK_P - 1 lines of zeros above and below each window.

Output row p of a block meets input row `row` in line row // STRIDE_H + BLOCK_P - 1 - p of phase
row % STRIDE_H, so the matrix of an input row is BLOCK_P lines from some line on. A line is 16 x 16
elements: whole periods of the swizzle.

An input gradient is the correlation of dy with zeros between its pixels, UP_H rows and UP_W columns
apart, see Geometry.adjoint. No zero is read: h = (p - PAD_H + r) / UP_H where that is whole, so row
`row` of a block meets lines of r = row * UP_H + PAD_H % UP_H. Blocks begin at multiples of UP_H and
UP_W outputs, which makes that remainder the same for all of them.

A step is one input row of BLOCK_M blocks, whose COLUMNS columns come as pieces of BLOCK_Q. While it
is multiplied, the rows of the next STAGES - 1 steps are copied to other slots; while sums are
stored, those of the next tile are. STACK 2: a program has the sums of two blocks, one above the
other, which share the rows that both read.

Float32 is multiplied as TF32, rounded to nearest: bands by build_lines, a row of the image in its
slot, while the products of the row before go on.

Sums in float32. Because zeros are multiplied, an infinity or NaN reaches all outputs of the blocks
that load it. In Gluon, which has views of shared memory and no interpreter.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .epilogue import activate, add_residual
from .hints import align_planes, at_least_one, round_down
from .schedule import next_digit
from .structs import at


@gluon.jit
def fprop_resident(
    x_ptr, lines_ptr, bias_ptr, residual_ptr, y_ptr,
    x_shape, y_shape, SAMPLES, GROUPS, GROUP_K, PARTS,
    x_strides, bias_stride, residual_strides, y_strides,
    WINDOW: gl.constexpr, BAND: gl.constexpr, ACTIVATION: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    dtype: gl.constexpr = x_ptr.dtype.element_ty
    BLOCK_N: gl.constexpr = TILE.BLOCK_P * TILE.BLOCK_Q
    PIECES: gl.constexpr = BAND.COLUMNS // TILE.BLOCK_Q
    # Input rows from block to block.
    HEIGHT: gl.constexpr = TILE.BLOCK_P * WINDOW.STRIDE_H // BAND.UP_H
    LINES: gl.constexpr = BAND.CHANNELS * PIECES * WINDOW.STRIDE_H * BAND.LINES
    BITS: gl.constexpr = dtype.primitive_bitwidth
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 256 // BITS])
    BOX: gl.constexpr = gl.NVMMASharedLayout(2 * BITS, BITS, rank=2)

    part, program = next_digit(gl.program_id(0), PARTS)
    k, batch = next_digit(program, GROUPS * GROUP_K)
    blocks_p, blocks_q = gl.cdiv(P, TILE.STACK * TILE.BLOCK_P), gl.cdiv(Q, TILE.BLOCK_Q)
    tiles = gl.cdiv(blocks_p * blocks_q * SAMPLES, TILE.BLOCK_M)
    x_strides = align_planes(x_strides, BAND.X_ALIGN)
    x_base = at(x_ptr, x_strides, batch, k // GROUP_K * BAND.CHANNELS, 0, 0)
    y_base = at(y_ptr, y_strides, batch, k, 0, 0)
    bias = 0.0
    if bias_ptr is not None:
        bias = gl.load(bias_ptr + k * bias_stride).to(gl.float32)

    xs = gl.allocate_shared_memory(dtype, [STAGES * PIECES, TILE.BLOCK_M, TILE.BLOCK_Q], BOX)
    lines = gl.allocate_shared_memory(dtype, [(LINES + 7) // 8 * 8, 16, 16], BOX)
    WINDOWS: gl.constexpr = LINES // BAND.LINES
    SOME: gl.constexpr = BAND.LINES - 2 * (TILE.BLOCK_P - 1)  # lines with taps
    filter_ptr = lines_ptr + (batch * (GROUPS * GROUP_K) + k) * (WINDOWS * SOME * 256)
    copy_lines(lines, filter_ptr, WINDOWS, SOME, TILE.BLOCK_P - 1, BOX)
    pixels, h, w, rows, row_ahead, c_ahead = begin_tile(
        xs, x_base, x_strides, part, tiles, blocks_p, blocks_q, SAMPLES, x_shape, WINDOW, BAND,
        TILE, STAGES,
    )  # fmt: skip
    for tile in range(part, tiles, PARTS):
        upper = gl.zeros([TILE.BLOCK_M, BLOCK_N], gl.float32, SUMS)
        lower = gl.zeros([TILE.BLOCK_M, BLOCK_N], gl.float32, SUMS)
        slot = 0
        for c in range(BAND.CHANNELS):
            # Rows of the upper block alone, of both, and of the lower one alone.
            for turn in gl.static_range(2 * TILE.STACK - 1):
                start, stop = rows[turn]
                for i in range(at_least_one(stop - start)):
                    row = start + i
                    async_copy.wait_group(STAGES - 2)
                    if BITS == 32:
                        round_row(xs, slot * PIECES, PIECES, BOX)
                    fence_async_shared()
                    for j in gl.static_range(PIECES):
                        image = xs.index(slot * PIECES + j)
                        if turn < 2:
                            band = band_of(lines, c, j, row, WINDOW, BAND, TILE, BOX)
                            upper = warpgroup_mma(image, band, upper, is_async=True)
                        if turn > 0:
                            band = band_of(lines, c, j, row - HEIGHT, WINDOW, BAND, TILE, BOX)
                            lower = warpgroup_mma(image, band, lower, is_async=True)
                    # Those of the step before are done: its slot is free.
                    upper, lower = wait_for(PIECES * (2 if turn == 1 else 1), upper, lower, TILE)
                    free = gl.where(slot == 0, STAGES - 1, slot - 1)
                    row_ahead, c_ahead = copy_row(
                        xs, free, pixels, h, w, rows, row_ahead, c_ahead, x_shape, x_strides,
                        BAND, TILE,
                    )  # fmt: skip
                    slot = gl.where(slot == STAGES - 1, 0, slot + 1)
                upper, lower = wait_for(0, upper, lower, TILE)

        pixels, h, w, rows, row_ahead, c_ahead = begin_tile(
            xs, x_base, x_strides, tile + PARTS, tiles, blocks_p, blocks_q, SAMPLES, x_shape,
            WINDOW, BAND, TILE, STAGES,
        )  # fmt: skip
        for i in gl.static_range(TILE.STACK):
            store_blocks(
                upper if i == 0 else lower, tile, i, blocks_p, blocks_q, SAMPLES, bias,
                residual_ptr, y_base, y_shape, batch, k, residual_strides, y_strides,
                BAND, ACTIVATION, TILE,
            )  # fmt: skip
    async_copy.wait_group(0)


@gluon.jit
def wait_for(PENDING: gl.constexpr, upper, lower, TILE: gl.constexpr):
    """The sums when all products but the last PENDING are done; `lower` has none if not stacked."""
    if TILE.STACK == 1:
        upper = warpgroup_mma_wait(PENDING, deps=(upper,))
    else:
        upper, lower = warpgroup_mma_wait(PENDING, deps=(upper, lower))
    return upper, lower


@gluon.jit
def round_row(xs, first, PIECES: gl.constexpr, BOX: gl.constexpr):
    """Rounds pieces from the first one on to the nearest TF32.

    As many at a time as can be: the compiler puts barriers between the times.
    """
    for i in gl.static_range(PIECES // 4):
        round_pieces(xs, first + 4 * i, 4, BOX)
    if PIECES & 2:
        round_pieces(xs, first + PIECES // 4 * 4, 2, BOX)
    if PIECES & 1:
        round_pieces(xs, first + PIECES - 1, 1, BOX)


@gluon.jit
def round_pieces(xs, first, NUMBER: gl.constexpr, BOX: gl.constexpr):
    ORDER: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [4, 1], [1, 0])
    pieces = xs.index(first)._reinterpret(xs.dtype, [NUMBER * xs.shape[1], xs.shape[2]], BOX)
    values = gl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;",
        "=r,r",
        [pieces.load(ORDER)],
        dtype=gl.float32,
        is_pure=True,
        pack=1,
    )
    pieces.store(values)


@gluon.jit
def copy_lines(
    lines, lines_ptr,
    WINDOWS: gl.constexpr, SOME: gl.constexpr, MARGIN: gl.constexpr, BOX: gl.constexpr,
):  # fmt: skip
    """Copies the bands of a filter, eight lines at a time.

    WINDOWS runs of SOME lines in memory get MARGIN lines of zeros on both sides.
    """
    VECTOR: gl.constexpr = 128 // lines.dtype.primitive_bitwidth
    ORDER: gl.constexpr = gl.BlockedLayout([1, VECTOR], [2 * VECTOR, 16 // VECTOR], [4, 1], [1, 0])
    LINES: gl.constexpr = SOME + 2 * MARGIN
    place = gl.arange(0, 128, gl.SliceLayout(1, ORDER))[:, None]
    column = gl.arange(0, 16, gl.SliceLayout(0, ORDER))[None, :]
    for i in range((WINDOWS * LINES + 7) // 8):
        line, window = next_digit(i * 8 + place // 16, LINES)
        exists = (window < WINDOWS) & (line >= MARGIN) & (line < MARGIN + SOME)
        line = window * SOME + line - MARGIN
        eight = lines.index(i * 8)._reinterpret(lines.dtype, [128, 16], BOX)
        pointers = lines_ptr + (line * 16 + place % 16) * 16 + column
        async_copy.async_copy_global_to_shared(eight, pointers, exists)
    async_copy.commit_group()


@gluon.jit
def begin_tile(
    xs, x_base, x_strides, tile, tiles, blocks_p, blocks_q, SAMPLES, x_shape,
    WINDOW: gl.constexpr, BAND: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copies the first rows of a tile, if there is such a tile.

    Returns pointers to row 0 of its blocks, the h and w there, the rows to read, and the row and
    channel to copy next.
    """
    ALIGN: gl.constexpr = BAND.X_ALIGN
    LOADED: gl.constexpr = gl.BlockedLayout([1, ALIGN], [2 * ALIGN, 16 // ALIGN], [4, 1], [1, 0])
    BETWEEN: gl.constexpr = TILE.BLOCK_P * WINDOW.STRIDE_H // BAND.UP_H
    HEIGHT: gl.constexpr = TILE.STACK * BETWEEN
    ABOVE: gl.constexpr = WINDOW.PAD_H // BAND.UP_H
    LAST: gl.constexpr = (TILE.STACK * TILE.BLOCK_P - 1) * WINDOW.STRIDE_H + WINDOW.R - 1
    READ: gl.constexpr = (LAST - WINDOW.PAD_H % BAND.UP_H) // BAND.UP_H + 1
    # Columns of blocks are the fastest digit of m, rows of blocks the slowest.
    m = tile * TILE.BLOCK_M + gl.arange(0, TILE.BLOCK_M, gl.SliceLayout(1, LOADED))[:, None]
    block_q, line = next_digit(m, blocks_q)
    n, block_p = next_digit(line, SAMPLES)
    h = block_p * HEIGHT - ABOVE
    w = block_q * (TILE.BLOCK_Q * WINDOW.STRIDE_W // BAND.UP_W) + BAND.FIRST_W
    w += gl.arange(0, TILE.BLOCK_Q, gl.SliceLayout(0, LOADED))[None, :]
    pixels = at(x_base, x_strides, n, 0, h, w)
    h = gl.where(block_p < blocks_p, h, x_shape[0])  # blocks that do not exist read nothing

    # Rows that a block of the tile may find in the image.
    last = gl.minimum(
        (tile * TILE.BLOCK_M + TILE.BLOCK_M - 1) // (blocks_q * SAMPLES), blocks_p - 1
    )
    top = tile * TILE.BLOCK_M // (blocks_q * SAMPLES) * HEIGHT - ABOVE
    first = ABOVE - last * HEIGHT
    end = x_shape[0] - top
    if TILE.STACK == 1:
        rows = (some_of(first, end, 0, READ),)
    else:
        rows = (
            some_of(first, end, 0, BETWEEN),
            some_of(first, end, BETWEEN, READ - BETWEEN),
            some_of(first, end, READ - BETWEEN, READ),
        )
    row, c = rows[0][0], gl.where(tile < tiles, 0, BAND.CHANNELS)
    for i in gl.static_range(STAGES - 1):
        row, c = copy_row(xs, i, pixels, h, w, rows, row, c, x_shape, x_strides, BAND, TILE)
    return pixels, h, w, rows, row, c


@gluon.jit
def some_of(first, end, START: gl.constexpr, STOP: gl.constexpr):
    """(first, end) cut to a range, but for one row at least: ptxas waits in loops without one."""
    start = gl.minimum(gl.maximum(first, START), STOP - 1)
    return start, gl.maximum(gl.minimum(end, STOP), start + 1)


@gluon.jit
def copy_row(
    xs, slot, pixels, h, w, rows, row, c, x_shape, x_strides,
    BAND: gl.constexpr, TILE: gl.constexpr,
):  # fmt: skip
    """Copies a row of the blocks to a slot, if there is one; (row, c) of the next one."""
    PIECES: gl.constexpr = BAND.COLUMNS // TILE.BLOCK_Q
    if c < BAND.CHANNELS:
        H, W = x_shape
        row_inside = (h + row >= 0) & (h + row < H)
        from_row = pixels + (c * x_strides[1] + row * x_strides[2])
        for j in gl.static_range(PIECES):
            column = w + j * TILE.BLOCK_Q
            inside = row_inside & (column >= 0) & (column < round_down(W, BAND.X_ALIGN))
            async_copy.async_copy_global_to_shared(
                xs.index(slot * PIECES + j), from_row + j * TILE.BLOCK_Q * x_strides[3], inside
            )
    async_copy.commit_group()
    row += 1
    if TILE.STACK == 2:
        row = gl.where(row == rows[0][1], rows[1][0], row)
        row = gl.where(row == rows[1][1], rows[2][0], row)
    ends = row == rows[2 * TILE.STACK - 2][1]
    return gl.where(ends, rows[0][0], row), gl.where(ends, c + 1, c)


@gluon.jit
def band_of(
    lines, c, j, row,
    WINDOW: gl.constexpr, BAND: gl.constexpr, TILE: gl.constexpr, BOX: gl.constexpr,
):  # fmt: skip
    """The matrix (i, (p,q)) of a piece of an input row, the last p first."""
    PIECES: gl.constexpr = BAND.COLUMNS // TILE.BLOCK_Q
    r = row * BAND.UP_H + WINDOW.PAD_H % BAND.UP_H
    phase = (c * PIECES + j) * WINDOW.STRIDE_H + r % WINDOW.STRIDE_H
    line = lines.index(phase * BAND.LINES + r // WINDOW.STRIDE_H)
    BLOCK_N: gl.constexpr = TILE.BLOCK_P * TILE.BLOCK_Q
    return line._reinterpret(lines.dtype, [BLOCK_N, TILE.BLOCK_Q], BOX).permute([1, 0])


@gluon.jit
def store_blocks(
    acc, tile, stacked, blocks_p, blocks_q, SAMPLES, bias, residual_ptr, y_base, y_shape, batch, k,
    residual_strides, y_strides,
    BAND: gl.constexpr, ACTIVATION: gl.constexpr, TILE: gl.constexpr,
):  # fmt: skip
    """The epilogue of one block of each stack.

    Lanes have two neighbouring columns of a product in eight: those of two eights are four columns
    of y, see the order in build_lines.
    """
    BLOCK_P: gl.constexpr = TILE.BLOCK_P
    BLOCK_N: gl.constexpr = BLOCK_P * TILE.BLOCK_Q
    STORED: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [8, 0], [0, 16], [0, 32], [0, 64]],
        lane_bases=[[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[TILE.BLOCK_M, BLOCK_N],
    )
    acc = acc.reshape([TILE.BLOCK_M, BLOCK_P, 2, 4, 2]).permute([0, 1, 3, 2, 4])
    acc = gl.convert_layout(acc.reshape([TILE.BLOCK_M, BLOCK_N]), STORED, assert_trivial=True)
    m = tile * TILE.BLOCK_M + gl.arange(0, TILE.BLOCK_M, gl.SliceLayout(1, STORED))[:, None]
    pq = gl.arange(0, BLOCK_N, gl.SliceLayout(0, STORED))[None, :]
    block_q, line = next_digit(m, blocks_q)
    n, block_p = next_digit(line, SAMPLES)
    p = (block_p * TILE.STACK + stacked) * BLOCK_P + (BLOCK_P - 1 - pq // TILE.BLOCK_Q)
    q = block_q * TILE.BLOCK_Q + pq % TILE.BLOCK_Q
    P, Q = y_shape
    mask = (block_p < blocks_p) & (p < P) & (q < round_down(Q, BAND.Y_ALIGN))
    acc += bias
    if residual_ptr is not None:
        acc = add_residual(acc, at(residual_ptr, residual_strides, batch + n, k, p, q), mask)
    y = activate(acc, ACTIVATION, y_base.dtype.element_ty)
    gl.store(at(y_base, align_planes(y_strides, BAND.Y_ALIGN), n, 0, p, q), y, mask=mask)
