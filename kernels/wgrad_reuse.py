"""Weight gradient with a row of the input in shared memory once for taps of a column: sm_90.

    dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n,c,h,w]
    h = p * STRIDE_H - PAD_H + r * DIL_H        w likewise

    GEMM_M = filters k of one group    GEMM_N = channels c    GEMM_K = pixels (p,n,q)

A program owns BLOCK_R neighbouring taps of one column s of the window, and sums over boxes of
pixels: BLOCK_P rows of BLOCK_Q columns of BLOCK_I images. A step loads such a box of dy, and
BLOCK_P + (BLOCK_R - 1) * DIL_H rows of x. In shared memory a row has the pixels of all images of
the box, and rows lie one after the other: tap r multiplies the BLOCK_P rows from row r * DIL_H on.
wgrad_tma loads a box of x for every tap. Where rows of x are strided, a program owns one tap.

Images are (N, H, W, C) in memory, of 16 bits: matrix units read both operands from shared memory
with their axes exchanged. A row of a box is a multiple of 8 pixels, whole periods of the swizzle.
Boxes overhang the last image, where both are zero, and a plane of dy only where x is zero too, see
first_pixel. Rows come in runs of powers of two, the longest first: 14 rows in 8, 4 and 2.
Each run of x or dy has a descriptor, and a product takes a run of dy. Of x with strides it is one
of (rows of a phase, phases, images, columns of a phase, channels of all phases of a column).

Sums in float32; split i sums boxes [i * SPLIT_BOXES, (i+1) * SPLIT_BOXES) and stores at
`i * dw_stride_split`, as in wgrad_gemm. The pipeline is that of fprop_reuse.
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
from .schedule import first_pixel, next_digit, widen


@gluon.jit(do_not_specialize=["N", "SPLIT_BOXES"])
def wgrad_reuse(
    x0_desc, x1_desc, x2_desc, dy0_desc, dy1_desc, dy2_desc, dw_ptr,
    N, y_shape, channels, SPLIT_BOXES, x_strides, dw_stride_split, dw_strides,
    WINDOW: gl.constexpr, INT64: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    GROUPS, GROUP_C, GROUP_K = channels
    BLOCK_F: gl.constexpr = TILE.BLOCK_F
    BLOCK_C: gl.constexpr = TILE.BLOCK_C
    TAPS: gl.constexpr = TILE.BLOCK_R
    ROWS: gl.constexpr = TILE.BLOCK_P + (TAPS - 1) * WINDOW.DIL_H
    x_descs = given(x0_desc, x1_desc, x2_desc)
    dy_descs = given(dy0_desc, dy1_desc, dy2_desc)
    RUNS: gl.constexpr = len(dy_descs)
    # One warpgroup for every 64 filters, and for its share of the channels.
    DOWN: gl.constexpr = BLOCK_F // 16
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [DOWN, WARPS // DOWN], [16, BLOCK_C // (WARPS // DOWN), 16]
    )

    # Taps vary fastest: their programs read the same boxes of dy and overlapping boxes of x.
    s, program = next_digit(gl.program_id(0), WINDOW.S)
    tile_r, program = next_digit(program, (WINDOW.R + TAPS - 1) // TAPS)
    tile_c, program = next_digit(program, gl.cdiv(GROUP_C, BLOCK_C))
    tile_k, program = next_digit(program, gl.cdiv(GROUP_K, BLOCK_F))
    group, split = next_digit(program, GROUPS)
    c, k = group * GROUP_C + tile_c * BLOCK_C, group * GROUP_K + tile_k * BLOCK_F
    h, phase_h = phase_of(tile_r * TAPS * WINDOW.DIL_H - WINDOW.PAD_H, WINDOW.STRIDE_H)
    w, phase_w = phase_of(s * WINDOW.DIL_W - WINDOW.PAD_W, WINDOW.STRIDE_W)
    last_r = gl.minimum(tile_r * TAPS + TAPS, WINDOW.R) - 1
    p = first_pixel(P, TILE.BLOCK_P, last_r * WINDOW.DIL_H - WINDOW.PAD_H, WINDOW.STRIDE_H)
    q = first_pixel(Q, TILE.BLOCK_Q, s * WINDOW.DIL_W - WINDOW.PAD_W, WINDOW.STRIDE_W)
    corner = (p, h, phase_h, q, w, phase_w * x_strides[3] + c, k)

    X_BOX: gl.constexpr = dy0_desc.layout
    xs, dys, loaded = stages_of(dy0_desc, X_BOX, ROWS, TILE, STAGES)
    first, steps, columns, rows = boxes_of_split(split, SPLIT_BOXES, N, y_shape, TILE)
    for i in gl.static_range(STAGES - 1):
        load_step(
            x_descs, dy_descs, xs, dys, loaded, i, steps, first, columns, rows, corner,
            WINDOW, TILE, STAGES,
        )  # fmt: skip
    accs = ()
    for _ in gl.static_range(TAPS):
        accs += (warpgroup_mma_init(gl.zeros([BLOCK_F, BLOCK_C], gl.float32, SUMS)),)
    # Runs that are multiplied before the products of the last step are waited for: those that take
    # 7 products at most.
    AHEAD: gl.constexpr = min(RUNS, 7 // TAPS)
    for step in range(steps):
        slot = step % STAGES
        mbarrier.wait(loaded.index(slot), step // STAGES & 1)
        for i in gl.static_range(RUNS):
            accs = add_run(accs, xs, dys, slot, dy_descs[i].block_type.shape[0], ROWS, WINDOW, TILE)
            if i == AHEAD - 1:
                accs = wait_for(AHEAD * TAPS, accs)
                load_step(
                    x_descs, dy_descs, xs, dys, loaded, step + STAGES - 1, steps, first,
                    columns, rows, corner, WINDOW, TILE, STAGES,
                )  # fmt: skip
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(loaded.index(i))

    STORED: gl.constexpr = stored_layout(dw_ptr.dtype.element_ty, BLOCK_C, WARPS)
    group_k = tile_k * BLOCK_F + gl.arange(0, BLOCK_F, gl.SliceLayout(1, STORED))[:, None]
    group_c = tile_c * BLOCK_C + gl.arange(0, BLOCK_C, gl.SliceLayout(0, STORED))[None, :]
    place = dw_ptr + widen(split, INT64) * dw_stride_split + s * dw_strides[4]
    place += widen(group * GROUP_K + group_k, INT64) * dw_strides[1] + group_c * dw_strides[2]
    for i in gl.static_range(TAPS):
        r = tile_r * TAPS + i
        sums = gl.convert_layout(warpgroup_mma_wait(0, deps=(accs[i],)), STORED)
        mask = (group_k < GROUP_K) & (group_c < GROUP_C) & (r < WINDOW.R)
        gl.store(place + r * dw_strides[3], sums.to(dw_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def given(first, second, third):
    """Those that are not None."""
    descs = (first,)
    if second is not None:
        descs += (second,)
    if third is not None:
        descs += (third,)
    return descs


@gluon.jit
def stages_of(
    dy_desc, X_BOX: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr
):
    """Shared memory of all stages: (ROWS rows of x, those of dy, barriers)."""
    dtype: gl.constexpr = dy_desc.dtype
    xs = gl.allocate_shared_memory(
        dtype, [STAGES * ROWS, 1, TILE.BLOCK_I, TILE.BLOCK_Q, TILE.BLOCK_C], X_BOX
    )
    dys = gl.allocate_shared_memory(
        dtype, [STAGES * TILE.BLOCK_P, 1, TILE.BLOCK_I, TILE.BLOCK_Q, TILE.BLOCK_F], dy_desc.layout
    )
    return xs, dys, barriers(STAGES)


@gluon.jit
def boxes_of_split(split, SPLIT_BOXES, N, y_shape, TILE: gl.constexpr):
    """(first box of a split, its boxes, columns and rows of boxes of an image)."""
    P, Q = y_shape
    first = split * SPLIT_BOXES
    columns, rows = gl.cdiv(Q, TILE.BLOCK_Q), gl.cdiv(P, TILE.BLOCK_P)
    steps = gl.minimum(SPLIT_BOXES, gl.cdiv(N, TILE.BLOCK_I) * rows * columns - first)
    # Every split has a box. If the loop might be skipped, LLVM zeroes the sums on the path around
    # it, and ptxas then waits for each product inside (Triton 3.7.1).
    gl.assume(steps > 0)
    return first, steps, columns, rows


@gluon.constexpr_function
def stored_layout(dtype, COLUMNS, WARPS):
    """The layout of sums [rows, COLUMNS] as they are stored in a gradient or partials of `dtype`.

    Channels of partials are neighbours: pieces of 16 bytes. Those of a gradient in 16 bits have the
    window between them.
    """
    piece = 4 if dtype.primitive_bitwidth == 32 else 1
    side = min(32, COLUMNS // piece)
    return gl.BlockedLayout([1, piece], [32 // side, side], [WARPS, 1], [1, 0])


@gluon.jit
def phase_of(first, STRIDE: gl.constexpr):
    """(step, phase) of a row or column `first`, which is step * STRIDE + phase."""
    phase = first % STRIDE
    phase += gl.where(phase < 0, STRIDE, 0)
    return (first - phase) // STRIDE, phase


@gluon.jit
def add_run(
    accs, xs, dys, slot, RUN: gl.constexpr, ROWS: gl.constexpr,
    WINDOW: gl.constexpr, TILE: gl.constexpr,
):  # fmt: skip
    """Starts to add the products of RUN rows of a box to sums [filters, channels], one per tap."""
    PIXELS: gl.constexpr = RUN * TILE.BLOCK_I * TILE.BLOCK_Q
    FIRST: gl.constexpr = TILE.BLOCK_P - TILE.BLOCK_P % (2 * RUN)
    BOX: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    dy = dys.index(slot * TILE.BLOCK_P + FIRST)
    dy = dy._reinterpret(dys.dtype, [PIXELS, TILE.BLOCK_F], BOX).permute([1, 0])
    added = ()
    for r in gl.static_range(len(accs)):
        x = xs.index(slot * ROWS + FIRST + r * WINDOW.DIL_H)
        x = x._reinterpret(xs.dtype, [PIXELS, TILE.BLOCK_C], BOX)
        added += (warpgroup_mma(dy, x, accs[r], is_async=True),)
    return added


@gluon.jit
def wait_for(PENDING: gl.constexpr, accs):
    """The sums, when no more than the last PENDING products are still computed."""
    waited = warpgroup_mma_wait(PENDING, deps=accs)
    if len(accs) == 1:
        waited = (waited,)
    added = ()
    for i in gl.static_range(len(accs)):
        added += (warpgroup_mma_init(waited[i]),)
    return added


@gluon.jit
def load_step(
    x_descs, dy_descs, xs, dys, loaded, step, steps, first, columns, rows, corner,
    WINDOW: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for the rows of a step, if there is such a step."""
    slot, exists = step % STAGES, step < steps
    first_p, h, phase_h, first_q, w, c, k = corner
    tile_q, line = next_digit(first + step, columns)
    tile_p, tile_i = next_digit(line, rows)
    n, p, q = tile_i * TILE.BLOCK_I, tile_p * TILE.BLOCK_P, tile_q * TILE.BLOCK_Q
    p, q = p + first_p, q + first_q
    ready = loaded.index(slot)
    ROWS: gl.constexpr = TILE.BLOCK_P + (TILE.BLOCK_R - 1) * WINDOW.DIL_H
    PIXEL_BYTES: gl.constexpr = TILE.BLOCK_I * TILE.BLOCK_Q * 2
    LOADED: gl.constexpr = PIXEL_BYTES * (ROWS * TILE.BLOCK_C + TILE.BLOCK_P * TILE.BLOCK_F)
    mbarrier.expect(ready, LOADED, pred=exists)
    load_rows(dy_descs, dys, ready, slot, p, (n, q, k), exists, TILE.BLOCK_P)
    place = (n, q + w, c)
    if WINDOW.STRIDE_H * WINDOW.STRIDE_W > 1:
        place = (phase_h, n, q + w, c)
    load_rows(x_descs, xs, ready, slot, p + h, place, exists, ROWS)


@gluon.jit
def load_rows(descs, boxes, ready, slot, row, place, exists, ROWS: gl.constexpr):
    """Asks for ROWS rows of an image from `row` on; `place` are the coordinates but for the row."""
    for i in gl.static_range(len(descs)):
        first = ROWS - ROWS % (2 * descs[i].block_type.shape[0])
        box = boxes.index(slot * ROWS + first)._reinterpret(
            descs[i].dtype, descs[i].block_type.shape, descs[i].layout
        )
        tma.async_copy_global_to_shared(descs[i], (row + first,) + place, ready, box, exists)
