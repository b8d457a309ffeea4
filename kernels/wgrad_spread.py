"""Weight gradient of few channels: rows of dy and taps of x are rows and columns of a GEMM: sm_90.

    partial(a)[k,c,r,s] = sum_{n,u,q} dy[n, k, u * PATCH_P + a, q] * x[n,c,h,w]
    h = (u * PATCH_P + a) * STRIDE_H - PAD_H + r        w = q * STRIDE_W - PAD_W + s * DIL_W

    GEMM_M = (a, filters k)    GEMM_N = (i, channels c)    GEMM_K = pixels (n,q) of one row

Row a of a patch of PATCH_P rows of dy reads, through tap r, row i = a + r / STRIDE_H of one phase
of x. BLOCK_R such places i are columns of one product: 16 filters in patches of 4 rows fill the 64
rows of a matrix unit, and 16 channels in 8 places 128 columns. Places without a tap are multiplied
too, but not stored. Each row of a patch leaves a gradient of its own, number split * PATCH_P + a of
the partials for sum_partials.

Boxes, runs of rows, descriptors and the pipeline are those of wgrad_reuse, but boxes also overhang
planes of dy where x is not zero. Filters and channels of a box are a row of the swizzle (32, 64 or
128 bytes), so that the pixels of the next row are the next columns of a matrix that is read where
it lies. PATCH_P divides BLOCK_P.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from .schedule import next_digit, widen
from .wgrad_reuse import (
    boxes_of_split,
    given,
    load_step,
    phase_of,
    stages_of,
    stored_layout,
    wait_for,
)


@gluon.jit(do_not_specialize=["N", "SPLIT_BOXES"])
def wgrad_spread(
    x0_desc, x1_desc, x2_desc, dy0_desc, dy1_desc, dy2_desc, dw_ptr,
    N, y_shape, channels, SPLIT_BOXES, x_strides, dw_stride_split, dw_strides,
    WINDOW: gl.constexpr, INT64: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    GROUPS, GROUP_C, GROUP_K = channels
    BLOCK_F: gl.constexpr = TILE.BLOCK_F
    BLOCK_C: gl.constexpr = TILE.BLOCK_C
    PATCH: gl.constexpr = TILE.PATCH_P
    PLACES: gl.constexpr = TILE.BLOCK_R
    ROWS: gl.constexpr = TILE.BLOCK_P + PLACES - 1
    PIXELS: gl.constexpr = TILE.BLOCK_I * TILE.BLOCK_Q
    M: gl.constexpr = PATCH * BLOCK_F
    COLUMNS: gl.constexpr = PLACES * BLOCK_C
    # Taps of one phase of the stride, and the places that they reach from all rows of a patch.
    TAPS: gl.constexpr = (WINDOW.R + WINDOW.STRIDE_H - 1) // WINDOW.STRIDE_H
    TILES_I: gl.constexpr = (TAPS + PATCH - 1 + PLACES - 1) // PLACES
    x_descs = given(x0_desc, x1_desc, x2_desc)
    dy_descs = given(dy0_desc, dy1_desc, dy2_desc)
    dtype: gl.constexpr = dy0_desc.dtype
    # One warpgroup for every 64 rows.
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [M // 16, 1], [16, COLUMNS, 16])

    # Taps vary fastest: their programs read the same boxes of dy and overlapping boxes of x.
    s, program = next_digit(gl.program_id(0), WINDOW.S)
    first_r, program = next_digit(program, WINDOW.STRIDE_H)
    tile_i, program = next_digit(program, TILES_I)
    tile_c, program = next_digit(program, gl.cdiv(GROUP_C, BLOCK_C))
    tile_k, program = next_digit(program, gl.cdiv(GROUP_K, BLOCK_F))
    group, split = next_digit(program, GROUPS)
    c, k = group * GROUP_C + tile_c * BLOCK_C, group * GROUP_K + tile_k * BLOCK_F
    h, phase_h = phase_of(first_r - WINDOW.PAD_H, WINDOW.STRIDE_H)
    w, phase_w = phase_of(s * WINDOW.DIL_W - WINDOW.PAD_W, WINDOW.STRIDE_W)
    corner = (0, h + tile_i * PLACES, phase_h, 0, w, phase_w * x_strides[3] + c, k)

    # Of a box, a row of the swizzle is one pixel's channels.
    X_BOX: gl.constexpr = gl.NVMMASharedLayout(2 * BLOCK_C, 16, rank=4)
    xs, dys, loaded = stages_of(dy0_desc, X_BOX, ROWS, TILE, STAGES)
    first, steps, columns, rows = boxes_of_split(split, SPLIT_BOXES, N, y_shape, TILE)
    for i in gl.static_range(STAGES - 1):
        load_step(
            x_descs, dy_descs, xs, dys, loaded, i, steps, first, columns, rows, corner,
            WINDOW, TILE, STAGES,
        )  # fmt: skip
    acc = warpgroup_mma_init(gl.zeros([M, COLUMNS], gl.float32, SUMS))
    # Products that are started before those of the last step are waited for.
    PRODUCTS: gl.constexpr = TILE.BLOCK_P // PATCH
    AHEAD: gl.constexpr = min(PRODUCTS, 7)
    DY: gl.constexpr = gl.NVMMASharedLayout(2 * BLOCK_F, 16, rank=2)
    X: gl.constexpr = gl.NVMMASharedLayout(2 * BLOCK_C, 16, rank=2)
    for step in range(steps):
        slot = step % STAGES
        mbarrier.wait(loaded.index(slot), step // STAGES & 1)
        for u in gl.static_range(PRODUCTS):
            dy = dys.index(slot * TILE.BLOCK_P + u * PATCH)._reinterpret(dtype, [PIXELS, M], DY)
            x = xs.index(slot * ROWS + u * PATCH)._reinterpret(dtype, [PIXELS, COLUMNS], X)
            acc = warpgroup_mma(dy.permute([1, 0]), x, acc, is_async=True)
            if u == AHEAD - 1:
                (acc,) = wait_for(AHEAD, (acc,))
                load_step(
                    x_descs, dy_descs, xs, dys, loaded, step + STAGES - 1, steps, first,
                    columns, rows, corner, WINDOW, TILE, STAGES,
                )  # fmt: skip
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(loaded.index(i))

    STORED: gl.constexpr = stored_layout(dw_ptr.dtype.element_ty, COLUMNS, WARPS)
    row = gl.arange(0, M, gl.SliceLayout(1, STORED))[:, None]
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, STORED))[None, :]
    a, place = row // BLOCK_F, tile_i * PLACES + column // BLOCK_C
    group_k, group_c = tile_k * BLOCK_F + row % BLOCK_F, tile_c * BLOCK_C + column % BLOCK_C
    r = first_r + (place - a) * WINDOW.STRIDE_H
    mask = (group_k < GROUP_K) & (group_c < GROUP_C) & (place >= a) & (r < WINDOW.R)
    sums = gl.convert_layout(warpgroup_mma_wait(0, deps=(acc,)), STORED)
    target = dw_ptr + widen(split * PATCH + a, INT64) * dw_stride_split + s * dw_strides[4]
    target += widen(group * GROUP_K + group_k, INT64) * dw_strides[1]
    target += group_c * dw_strides[2] + r * dw_strides[3]
    gl.store(target, sums.to(dw_ptr.dtype.element_ty), mask=mask)
