"""Weight gradient of images in planes, which are read as they lie: sm_90.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p - PAD_H + r        w = q - PAD_W + s * DIL_W

    GEMM_M = rows and channels (i,c) of x    GEMM_N = rows and filters (j,k) of dy
    GEMM_K = pixels of one row

Matrix units take operands with the summed axis innermost, TF32 no others: in planes it is. Boxes in
shared memory begin at multiples of 16 bytes, but the columns of x that tap s reads do not. So x
goes through registers, where a product may take its left operand from: a thread loads 32 bits from
any column. In 16 bits these are two columns from an even one on, and those from an odd one on are
put together from two such words. dy stays in shared memory.

A step has BLOCK_P rows h of x, BLOCK_R - 1 more of dy, and BLOCK_Q columns, which are 128 bytes.
Row h is multiplied by BLOCK_R rows of dy, for as many taps of a column; where channels are few, so
are rows h + BLOCK_R, ..., h + (BLOCK_I - 1) * BLOCK_R at the same time:

    r = first_r + i * BLOCK_R + BLOCK_R - 1 - j        i < BLOCK_I, j < BLOCK_R

Rows of dy have BLOCK_F filters each, one below the other: BLOCK_R of them are columns of a product,
with others behind them up to a power of two. BLOCK_S neighbouring taps of a row have sums each.

FOLDED: rows of both images are as long and lie without gaps, so that BLOCK_Q columns are FOLDED of
them, and a plane is one row to the tensor maps. A tap reads what is beside its row: in registers
that becomes zero.

Tensor maps bring rows of x without gaps. In a copy of them in shared memory they are 272 bytes
apart: threads of a warp then find 8 rows and 4 words in different banks, at any shift. Outside of x
and dy are zeros. Where x is not finite, other taps of its channel may be so.

Sums in float32; split i sums boxes [i * SPLIT_BOXES, (i+1) * SPLIT_BOXES) and stores at
`i * dw_stride_split`, as in wgrad_gemm.
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

from .fprop_reuse import barriers
from .schedule import next_digit, widen
from .wgrad_reuse import given, wait_for

#: Words of a thread that are copied at a time, at most, but for one row.
COPIED = gl.constexpr(48)
#: Products that run while the next operand is loaded to registers of its own.
RUNNING = gl.constexpr(1)


@gluon.jit(do_not_specialize=["N", "SPLIT_BOXES"])
def wgrad_planes(
    x_desc, x_rest_desc, dy0_desc, dy1_desc, dy2_desc, dw_ptr,
    N, y_shape, channels, SPLIT_BOXES, dw_stride_split, dw_strides,
    WINDOW: gl.constexpr, INT64: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    BLOCK_I: gl.constexpr = TILE.BLOCK_I
    BLOCK_R: gl.constexpr = TILE.BLOCK_R
    BLOCK_S: gl.constexpr = TILE.BLOCK_S
    BLOCK_C: gl.constexpr = TILE.BLOCK_C
    BLOCK_F: gl.constexpr = TILE.BLOCK_F
    M: gl.constexpr = BLOCK_I * BLOCK_C
    COLUMNS: gl.constexpr = columns_of(BLOCK_R * BLOCK_F)
    PIXELS: gl.constexpr = TILE.BLOCK_Q
    FOLDED: gl.constexpr = TILE.FOLDED
    dtype: gl.constexpr = x_desc.dtype
    BITS: gl.constexpr = dtype.primitive_bitwidth
    PIECE: gl.constexpr = 128 // BITS
    PITCH: gl.constexpr = 2 * PIXELS + PIECE
    # One warpgroup for every 64 rows, and for its share of the columns.
    DOWN: gl.constexpr = M // 16
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [DOWN, WARPS // DOWN], [16, COLUMNS // (WARPS // DOWN), 256 // BITS]
    )

    # Taps vary fastest: their programs read the same boxes of dy and overlapping boxes of x.
    tile_s, program = next_digit(gl.program_id(0), gl.cdiv(WINDOW.S, BLOCK_S))
    tile_r, program = next_digit(program, gl.cdiv(WINDOW.R, BLOCK_I * BLOCK_R))
    tile_c, program = next_digit(program, gl.cdiv(GROUP_C, BLOCK_C))
    tile_k, program = next_digit(program, gl.cdiv(GROUP_K, BLOCK_F))
    group, split = next_digit(program, GROUPS)
    first_r, first_s = tile_r * (BLOCK_I * BLOCK_R), tile_s * BLOCK_S
    # The columns that the first tap reads begin `shift` behind a multiple of 16 bytes.
    w = first_s * WINDOW.DIL_W - WINDOW.PAD_W
    shift = w & (PIECE - 1)
    corner = (first_r - WINDOW.PAD_H, w - shift, group * GROUP_C + tile_c * BLOCK_C,
              1 - BLOCK_R, group * GROUP_K + tile_k * BLOCK_F)  # fmt: skip

    boxes = gl.cdiv(Q, PIXELS), gl.cdiv(P + BLOCK_R - 1, FOLDED * TILE.BLOCK_P)
    first = split * SPLIT_BOXES
    steps = gl.minimum(SPLIT_BOXES, N * boxes[0] * boxes[1] - first)
    # Every split has a box: without that, ptxas waits for each product, see wgrad_reuse.
    gl.assume(steps > 0)

    # Boxes of x are free once they are copied, those of dy when two more steps have begun.
    AHEAD: gl.constexpr = STAGES - 2
    # Rows of x from one of a step to the next: more are loaded for products of several.
    EACH: gl.constexpr = FOLDED if BLOCK_I > 1 else 1
    X_ROWS: gl.constexpr = EACH * (TILE.BLOCK_P - 1) + (BLOCK_I - 1) * BLOCK_R + 1
    X_BOX: gl.constexpr = gl.NVMMASharedLayout(0, BITS, rank=2)
    REST: gl.constexpr = x_rest_desc.block_type.shape[3]
    # Memory of its own for each row, and for rows that one product reads: the compiler puts a
    # barrier between accesses to the same memory.
    APART: gl.constexpr = BLOCK_R if BLOCK_I > 1 else X_ROWS
    xs, rests, copies = (), (), ()
    for _ in gl.static_range(X_ROWS):
        xs += (gl.allocate_shared_memory(dtype, [AHEAD, BLOCK_C, PIXELS], X_BOX),)
        rests += (gl.allocate_shared_memory(dtype, [AHEAD, BLOCK_C, REST], X_BOX),)
    SLOT: gl.constexpr = BLOCK_C * PITCH
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    for i in gl.static_range(APART):
        copies += (
            gl.allocate_shared_memory(dtype, [(X_ROWS - i + APART - 1) // APART * SLOT, 1], FLAT),
        )
    # Products of the last row read zeros behind it.
    Y_ROWS: gl.constexpr = FOLDED * (TILE.BLOCK_P - 1) + BLOCK_R
    DY_ROWS: gl.constexpr = (Y_ROWS - BLOCK_R) * BLOCK_F + COLUMNS
    DY_BOX: gl.constexpr = gl.NVMMASharedLayout(128, BITS, rank=2)
    dys = gl.allocate_shared_memory(dtype, [STAGES * DY_ROWS // 8, 8, PIXELS], DY_BOX)
    # Before the fence of `barriers`.
    ZEROS: gl.constexpr = gl.BlockedLayout([1, PIECE], [4, 8], [WARPS, 1], [1, 0])
    for stage in gl.static_range(STAGES):
        for i in gl.static_range((COLUMNS - BLOCK_R * BLOCK_F) // 8):
            rows = dys.index((stage * DY_ROWS + Y_ROWS * BLOCK_F) // 8 + i)
            rows.store(gl.zeros([8, PIXELS], dtype, ZEROS))
    loaded = barriers(STAGES)
    x_descs, dy_descs = (x_desc, x_rest_desc), given(dy0_desc, dy1_desc, dy2_desc)
    places = (xs, rests, dys, loaded)
    BOXES: gl.constexpr = max(X_ROWS, Y_ROWS * len(dy_descs))

    for i in gl.static_range(AHEAD):
        asked = step_at(i, first, steps, boxes, corner, TILE)
        load_boxes(x_descs, dy_descs, places, asked, 0, BOXES, TILE, STAGES)
    accs = ()
    for _ in gl.static_range(BLOCK_S):
        accs += (warpgroup_mma_init(gl.zeros([M, COLUMNS], gl.float32, SUMS)),)
    PRODUCTS: gl.constexpr = TILE.BLOCK_P * BLOCK_S
    for step in range(steps):
        slot = step % STAGES
        mbarrier.wait(loaded.index(slot), step // STAGES & 1)
        copy_rows(xs, rests, copies, step % AHEAD, X_ROWS, APART, WARPS)
        # dy goes to the place of the step before the last, whose products are done, of all warps.
        asked = step_at(step + AHEAD, first, steps, boxes, corner, TILE)
        for row in gl.static_range(TILE.BLOCK_P):
            dy = dys.index((slot * DY_ROWS + FOLDED * row * BLOCK_F) // 8)
            dy = dy._reinterpret(dtype, [COLUMNS, PIXELS], DY_BOX).permute([1, 0])
            for s in gl.static_range(BLOCK_S):
                place = EACH * row // APART * SLOT + shift + s * WINDOW.DIL_W
                if BITS == 32:
                    x = load_rows(copies[EACH * row % APART], place, M, PIXELS, SUMS)
                elif (WINDOW.PAD_W + s * WINDOW.DIL_W) % 2 == 0:
                    if s == 0 or WINDOW.DIL_W > 1:
                        held = load_rows(copies[EACH * row % APART], place, M, PIXELS, SUMS)
                    x = held
                else:  # `held` is what the tap before, or behind, reads
                    if s == 0 or WINDOW.DIL_W > 1:
                        held = load_rows(copies[EACH * row % APART], place - 1, M, PIXELS, SUMS)
                    behind = load_rows(copies[EACH * row % APART], place + 1, M, PIXELS, SUMS)
                    x, held = between(held, behind), behind
                if FOLDED > 1:
                    x = inside_of_row(x, w + s * WINDOW.DIL_W, PIXELS // FOLDED)
                sums = warpgroup_mma(x, dy, accs[s], is_async=True)  # TF32 of float32
                accs = wait_for(RUNNING, accs[:s] + (sums,) + accs[s + 1 :])
                # One by one, while a product runs: the compiler puts barriers between them.
                load_boxes(
                    x_descs, dy_descs, places, asked, (row * BLOCK_S + s) * BOXES // PRODUCTS,
                    (row * BLOCK_S + s + 1) * BOXES // PRODUCTS, TILE, STAGES,
                )  # fmt: skip
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(loaded.index(i))

    row = gl.arange(0, M, gl.SliceLayout(1, SUMS))[:, None]
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, SUMS))[None, :]
    c, k = tile_c * BLOCK_C + row % BLOCK_C, tile_k * BLOCK_F + column % BLOCK_F
    r = first_r + row // BLOCK_C * BLOCK_R + (BLOCK_R - 1 - column // BLOCK_F)
    # Scalars first: numbers of all sums at once are registers that the sums have.
    first = dw_ptr + widen(split, INT64) * dw_stride_split + first_s * dw_strides[4]
    offset = widen(group * GROUP_K + k, INT64) * dw_strides[1] + c * dw_strides[2]
    offset += r * dw_strides[3]
    mask = (c < GROUP_C) & (k < GROUP_K) & (column < BLOCK_R * BLOCK_F) & (r < WINDOW.R)
    for i in gl.static_range(BLOCK_S):
        sums = warpgroup_mma_wait(0, deps=(accs[i],))
        exists = mask & (first_s + i < WINDOW.S)
        gl.store(first + offset, sums.to(dw_ptr.dtype.element_ty), mask=exists)
        first += dw_strides[4]


@gluon.constexpr_function
def columns_of(rows):
    """Columns of a product with `rows` rows of dy: the next power of two."""
    return 1 << (rows - 1).bit_length()


@gluon.constexpr_function
def copied_layout(COLUMNS, BITS, WARPS):
    """The layout of a row [BLOCK_C, COLUMNS] between its places: pieces of 16 bytes."""
    piece = 128 // BITS
    side = COLUMNS // piece
    return gl.BlockedLayout([1, piece], [32 // side, side], [WARPS, 1], [1, 0])


@gluon.constexpr_function
def pitched(ROWS, WIDTH, BITS):
    """The layout of ROWS rows of WIDTH elements, each with a gap of 16 bytes behind it."""
    return gl.PaddedSharedLayout.with_identity_for([[WIDTH, 128 // BITS]], [ROWS, WIDTH], [1, 0])


@gluon.jit
def copy_rows(
    xs, rests, copies, slot, ROWS: gl.constexpr, APART: gl.constexpr, WARPS: gl.constexpr
):
    """Copies boxes of rows of x to rows that lie apart: some loads, then as many stores."""
    BLOCK_C: gl.constexpr = xs[0].shape[1]
    PIXELS: gl.constexpr = xs[0].shape[2]
    REST: gl.constexpr = rests[0].shape[2]
    BITS: gl.constexpr = xs[0].dtype.primitive_bitwidth
    SLOT: gl.constexpr = BLOCK_C * (2 * PIXELS + 128 // BITS)
    EACH: gl.constexpr = BLOCK_C * (PIXELS + REST) * BITS // (32 * 32 * WARPS)
    CHUNK: gl.constexpr = max(1, COPIED // max(1, EACH))
    X: gl.constexpr = copied_layout(PIXELS, BITS, WARPS)
    BESIDE: gl.constexpr = copied_layout(REST, BITS, WARPS)
    for first in gl.static_range(0, ROWS, CHUNK):
        rows, besides = (), ()
        for i in gl.static_range(first, min(first + CHUNK, ROWS)):
            rows += (xs[i].index(slot).load(X),)
            besides += (rests[i].index(slot).load(BESIDE),)
        for i in gl.static_range(first, min(first + CHUNK, ROWS)):
            store_rows(rows[i - first], copies[i % APART], i // APART * SLOT, PIXELS)
        for i in gl.static_range(first, min(first + CHUNK, ROWS)):
            store_rows(besides[i - first], copies[i % APART], i // APART * SLOT + PIXELS, PIXELS)


@gluon.jit
def rows_at(copy, place, ROWS: gl.constexpr, PIXELS: gl.constexpr, COLUMNS: gl.constexpr):
    """COLUMNS columns of ROWS rows of a copy, from element `place` on."""
    WIDTH: gl.constexpr = 2 * PIXELS
    LAYOUT: gl.constexpr = pitched(ROWS, WIDTH, copy.dtype.primitive_bitwidth)
    rows = copy.index(place)._reinterpret(copy.dtype, [ROWS, WIDTH], LAYOUT)
    return rows.slice(0, COLUMNS, 1)


@gluon.jit
def store_rows(x, copy, place, PIXELS: gl.constexpr):
    """Stores a block [BLOCK_C, columns] to rows of a copy, from element `place` on."""
    rows_at(copy, place, x.shape[0], PIXELS, x.shape[1]).store(x)


@gluon.jit
def load_rows(copy, place, M: gl.constexpr, PIXELS: gl.constexpr, SUMS: gl.constexpr):
    """The left operand of a product: columns of M rows of a copy, from element `place` on."""
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, SUMS, 32 // copy.dtype.primitive_bitwidth)
    return rows_at(copy, place, M, PIXELS, PIXELS).load(OPERAND)


@gluon.jit
def between(x, behind):
    """Of 16 bits: the operand one column behind x, whose other columns are in that two behind x."""
    return gl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x5432;", "=r,r,r", [x, behind], x.dtype, is_pure=True, pack=2
    )


@gluon.jit
def inside_of_row(x, first, W: gl.constexpr):
    """The operand x of several rows of W columns, without what is not in the row of its pixel.

    `first` is the column that the first pixel of a row reads.
    """
    column = gl.arange(0, x.shape[1], gl.SliceLayout(0, x.type.layout))[None, :] % W + first
    return gl.where((column >= 0) & (column < W), x, 0.0)


@gluon.jit
def step_at(step, first, steps, boxes, corner, TILE: gl.constexpr):
    """(step, whether there is such a step, coordinates of its boxes of x, of dy)."""
    h, w, c, p, k = corner
    tile_h, line = next_digit(first + step, boxes[1])
    tile_q, n = next_digit(line, boxes[0])
    row, q = tile_h * (TILE.FOLDED * TILE.BLOCK_P), tile_q * TILE.BLOCK_Q
    return step, step < steps, (n, c, h + row, w + q), (n, k, p + row, q)


@gluon.jit
def load_boxes(
    x_descs, dy_descs, places, asked, FIRST: gl.constexpr, LAST: gl.constexpr,
    TILE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for the boxes FIRST to LAST - 1 of a step, if there is such a step.

    Box i is that of row i of x, with the columns beside it, and the i-th of dy, if there is one.
    """
    step, exists, x_corner, dy_corner = asked
    xs, rests, dys, loaded = places
    x_desc, rest_desc = x_descs
    n, c, h, w = x_corner
    n, k, p, q = dy_corner
    BLOCK_F: gl.constexpr = TILE.BLOCK_F
    RUNS: gl.constexpr = len(dy_descs)
    Y_ROWS: gl.constexpr = TILE.FOLDED * (TILE.BLOCK_P - 1) + TILE.BLOCK_R
    COLUMNS: gl.constexpr = columns_of(TILE.BLOCK_R * BLOCK_F)
    DY_ROWS: gl.constexpr = (Y_ROWS - TILE.BLOCK_R) * BLOCK_F + COLUMNS
    # Rows of x that are loaded: of products of one row, those that they begin at.
    EACH: gl.constexpr = TILE.FOLDED if TILE.BLOCK_I == 1 else 1
    ready, x_slot = loaded.index(step % STAGES), step % (STAGES - 2)
    if FIRST == 0 and LAST > 0:
        LOADED: gl.constexpr = (
            len(xs) * (x_desc.block_type.nbytes + rest_desc.block_type.nbytes)
            + Y_ROWS * BLOCK_F * 128
        )
        mbarrier.expect(ready, LOADED, pred=exists)
    for i in gl.static_range(FIRST, LAST):
        if i < len(xs):
            box = row_at(n, c, h + EACH * i, w, TILE)
            load_box(x_desc, xs[i].index(x_slot), box, ready, exists)
            box = row_at(n, c, h + EACH * i, w + TILE.BLOCK_Q, TILE)
            load_box(rest_desc, rests[i].index(x_slot), box, ready, exists)
        if i < Y_ROWS * RUNS:
            dy_desc = dy_descs[i % RUNS]
            before = BLOCK_F - BLOCK_F % (2 * dy_desc.block_type.shape[1])
            place = dys.index((step % STAGES * DY_ROWS + i // RUNS * BLOCK_F + before) // 8)
            box = row_at(n, k + before, p + i // RUNS, q, TILE)
            load_box(dy_desc, place, box, ready, exists)


@gluon.jit
def row_at(n, c, row, column, TILE: gl.constexpr):
    """Coordinates of a box that begins at this row and column of a plane, which may be one row."""
    place = (n, c, row, column)
    if TILE.FOLDED > 1:
        place = (n, c, 0, row * (TILE.BLOCK_Q // TILE.FOLDED) + column)
    return place


@gluon.jit
def load_box(desc, place, corner, ready, exists):
    """Asks for a box of a descriptor at these coordinates."""
    place = place._reinterpret(desc.dtype, desc.block_type.shape, desc.layout)
    tma.async_copy_global_to_shared(desc, corner, ready, place, exists)
