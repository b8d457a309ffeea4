"""Forward or input gradient of few channels: every row is multiplied once for all columns: sm_90.

    T[(k,a,j,b), w] = sum_{c,i} x[n,c,h,w] * weight[k,c,r,s]      h = u * STEP_H - PAD_H + i
    y[n,k,p,q] = act(bias[k] + residual[n,k,p,q] + sum_{j} T[(k,a,j,b), v - j])
    p = u * PITCH_H - SHIFT_H + a        q = v * PITCH_W - SHIFT_W + b

    GEMM_M = columns w of one row    GEMM_N = (k,a,j,b) of one group    GEMM_K = (rows i, c)

Row a of a patch of PITCH_H rows of results reads row i of the image through tap r, see tap_at_place
in patches.py. Column s of the window, counted from its end in a forward call, is j * PITCH_W + b:
PITCH_W phases of an input gradient's stride, else one. Every column of the window has sums T of its
own, so that a row of the image is multiplied once for all of them. Rows j of T are stored to shared
memory with one distance between them and loaded with a distance that is less by one, which moves
row j by j columns.

A program walks down a strip of BLOCK_Q columns of one image, SEGMENT patches long. A row of it is
loaded once, to a slot of a ring, and stays for all patches that read it. The weight, a matrix
((group,k,a,j,b), (i,c)), stays throughout. While a patch is multiplied, sums T of the one before
are added up and stored. x is (N, C, H, W) or (N, H, W, C) in memory. Sums in float32.
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
from .fprop_planes import in_order, in_registers
from .fprop_reuse import barriers
from .hints import align_extents, align_strides
from .schedule import next_digit
from .structs import at
from .wgrad_reuse import wait_for


@gluon.jit(do_not_specialize=["PATCHES", "STRIPS", "SEGMENT"])
def fprop_strip(
    x_desc, weight_desc, bias_ptr, residual_ptr, y_ptr,
    y_shape, PATCHES, STRIPS, SEGMENT, GROUPS, GROUP_C, bias_stride, residual_strides, y_strides,
    LAYOUT: gl.constexpr, ACTIVATION: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    P, Q = y_shape
    RESULTS: gl.constexpr = LAYOUT.RESULTS
    if LAYOUT.OUT_AXIS == 1:
        _, Q = align_extents(RESULTS, Q, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    residual_strides = align_strides(residual_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    y_strides = align_strides(y_strides, LAYOUT.OUT_AXIS, LAYOUT.ALIGN)
    PIXELS: gl.constexpr = TILE.BLOCK_Q
    BLOCK_N: gl.constexpr = TILE.BLOCK_N
    BLOCK_K: gl.constexpr = TILE.BLOCK_K
    BLOCKS: gl.constexpr = LAYOUT.BLOCKS
    PITCH: gl.constexpr = LAYOUT.PITCH_H
    PHASES: gl.constexpr = LAYOUT.PITCH_W
    SHIFTS: gl.constexpr = LAYOUT.SHIFTS
    LINES: gl.constexpr = BLOCK_N // (SHIFTS * PHASES)  # (k,a)
    PLACES: gl.constexpr = LAYOUT.PLACES
    RING: gl.constexpr = PLACES + LAYOUT.STEP_H * (STAGES - 1)
    dtype: gl.constexpr = x_desc.dtype
    BITS: gl.constexpr = dtype.primitive_bitwidth

    strip, program = next_digit(gl.program_id(0), STRIPS)
    part, program = next_digit(program, gl.cdiv(PATCHES, SEGMENT))
    group, n = next_digit(program, GROUPS)
    u, w = part * SEGMENT, strip * LAYOUT.STEP_W + LAYOUT.FIRST_W
    h, c = u * LAYOUT.STEP_H - LAYOUT.PAD_H, group * GROUP_C
    # At least one, in a form that LLVM sees, see fprop_reuse.
    steps = gl.maximum(gl.minimum(SEGMENT, PATCHES - u), 1)
    rows = (steps - 1) * LAYOUT.STEP_H + PLACES

    xs = gl.allocate_shared_memory(dtype, [RING * BLOCKS] + x_desc.block_type.shape, x_desc.layout)
    weights = gl.allocate_shared_memory(
        dtype, [PLACES * BLOCKS, BLOCK_N, BLOCK_K], weight_desc.layout
    )
    loaded = barriers(RING + 1)  # the last is that of the weight
    mbarrier.expect(loaded.index(RING), PLACES * BLOCKS * weight_desc.block_type.nbytes)
    for i in gl.static_range(PLACES * BLOCKS):
        tma.async_copy_global_to_shared(
            weight_desc, [group * RESULTS * PITCH * SHIFTS * PHASES, i * BLOCK_K],
            loaded.index(RING), weights.index(i),
        )  # fmt: skip
    for i in gl.static_range(RING):
        load_row(x_desc, xs, loaded, i, rows, (n, c, h, w), LAYOUT, BLOCK_K, RING)

    ACROSS: gl.constexpr = min(WARPS, PIXELS // 32)
    LOADED: gl.constexpr = gl.BlockedLayout(
        [1, SHIFTS, PHASES, 1], [1, 1, 1, 32], [WARPS // ACROSS, 1, 1, ACROSS], [3, 2, 1, 0]
    )
    STORED: gl.constexpr = gl.BlockedLayout([1, PHASES], [1, 32], [WARPS // ACROSS, ACROSS], [1, 0])
    sums = gl.allocate_shared_memory(
        gl.float32, [BLOCK_N, PIXELS], rows_apart([BLOCK_N, PIXELS], SHIFTS, PHASES, 2)
    )
    shifted = sums._reinterpret(
        gl.float32,
        [LINES, SHIFTS, PHASES, PIXELS],
        rows_apart([LINES, SHIFTS, PHASES, PIXELS], SHIFTS, PHASES, 1),
    )
    # Rows are loaded where none has stored: beside those columns that are results.
    shifted.store(gl.zeros([LINES, SHIFTS, PHASES, PIXELS], gl.float32, LOADED))

    line = gl.arange(0, LINES, gl.SliceLayout(1, STORED))[:, None]
    column = gl.arange(0, PIXELS * PHASES, gl.SliceLayout(0, STORED))[None, :]
    k, a = line // PITCH, line % PITCH
    v, q = column // PHASES, w * PHASES - LAYOUT.SHIFT_W + column
    inside = (v >= LAYOUT.REACH) & (v < LAYOUT.REACH + LAYOUT.STEP_W) & (q >= 0) & (q < Q)
    inside &= k < RESULTS
    bias = gl.zeros([LINES, 1], gl.float32, STORED)
    if bias_ptr is not None:
        bias += gl.load(bias_ptr + (group * RESULTS + k) * bias_stride, mask=k < RESULTS, other=0.0)
    k, p = group * RESULTS + k, u * PITCH - LAYOUT.SHIFT_H + a

    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 256 // BITS])
    BOX: gl.constexpr = gl.NVMMASharedLayout(x_desc.layout.swizzle_byte_width, BITS, rank=2)
    # wgmma takes TF32 from shared memory only with channels innermost, but from registers too.
    IN_REGISTERS: gl.constexpr = LAYOUT.NCHW and BITS == 32
    SPAN: gl.constexpr = 1024 // BITS  # columns of a row of the swizzle
    PART: gl.constexpr = gl.NVMMASharedLayout(128, BITS, rank=4)
    mbarrier.wait(loaded.index(RING), 0)
    for i in gl.static_range(PLACES - LAYOUT.STEP_H):
        mbarrier.wait(loaded.index(i), 0)
    for step in range(steps):
        first = step * LAYOUT.STEP_H
        for i in gl.static_range(PLACES - LAYOUT.STEP_H, PLACES):
            mbarrier.wait(loaded.index((first + i) % RING), (first + i) // RING & 1)
        acc = warpgroup_mma_init(gl.zeros([PIXELS, BLOCK_N], gl.float32, SUMS))
        for i in gl.static_range(PLACES):
            for block in gl.static_range(BLOCKS):
                image = xs.index((first + i) % RING * BLOCKS + block)
                if IN_REGISTERS:
                    rows_of_parts = image._reinterpret(dtype, [1, 1, BLOCK_K, SPAN], PART)
                    image = in_registers(rows_of_parts, 0, BLOCK_K, PIXELS, TILE, SUMS)
                elif LAYOUT.NCHW:
                    image = image._reinterpret(dtype, [BLOCK_K, PIXELS], BOX).permute([1, 0])
                else:
                    image = image._reinterpret(dtype, [PIXELS, BLOCK_K], BOX)
                weight = weights.index(i * BLOCKS + block).permute([1, 0])
                acc = warpgroup_mma(image, weight, acc, is_async=True)
                if IN_REGISTERS:  # the next product gets registers of the one before this
                    (acc,) = wait_for(1, (acc,))
        # While these are multiplied, results of the patch before.
        store_results(
            shifted, bias, residual_ptr, y_ptr, residual_strides, y_strides,
            n, k, p + (step - 1) * PITCH, q, inside & (step > 0), P, LAYOUT, ACTIVATION,
            LOADED, STORED,
        )  # fmt: skip
        acc = warpgroup_mma_wait(0, deps=(acc,))
        for i in gl.static_range(LAYOUT.STEP_H):
            load_row(
                x_desc, xs, loaded, first + i + RING, rows, (n, c, h, w), LAYOUT, BLOCK_K, RING
            )  # fmt: skip
        if IN_REGISTERS:
            (acc,) = in_order((acc,), SPAN)
        sums.store(acc.permute([1, 0]))
    store_results(
        shifted, bias, residual_ptr, y_ptr, residual_strides, y_strides,
        n, k, p + (steps - 1) * PITCH, q, inside, P, LAYOUT, ACTIVATION, LOADED, STORED,
    )  # fmt: skip
    for i in gl.static_range(RING + 1):
        mbarrier.invalidate(loaded.index(i))


@gluon.constexpr_function
def rows_apart(shape, SHIFTS, PHASES, more):
    """Rows (k,a,j,b) of pixels in shared memory, `more` * j elements apart beside what all are.

    Element w of row j is element w + j of the same rows if `more` is less by one.
    """
    pixels, lines = shape[-1], shape[0] if len(shape) > 2 else shape[0] // (SHIFTS * PHASES)
    pads = {pixels: 2, pixels * PHASES: more}
    if PHASES == 1 and SHIFTS > 2:  # eight pixels of every other row lie in 32 banks
        pads[pixels * 2] = 4
    if lines > 1:  # all SHIFTS rows, together with these, are as far apart for any `more`
        pads[pixels * PHASES * SHIFTS] = (3 - more) * SHIFTS
    return gl.PaddedSharedLayout.with_identity_for(
        [[every, pad] for every, pad in pads.items()], shape, list(range(len(shape)))[::-1]
    )


@gluon.jit
def store_results(
    shifted, bias, residual_ptr, y_ptr, residual_strides, y_strides, n, k, p, q, mask, P,
    LAYOUT: gl.constexpr, ACTIVATION: gl.constexpr, LOADED: gl.constexpr, STORED: gl.constexpr,
):  # fmt: skip
    """Adds up the sums of a patch and stores its results (k, p, q) where `mask` is."""
    LINES: gl.constexpr = shifted.shape[0]
    tap = gl.arange(
        0, LAYOUT.SHIFTS, gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, LOADED)))
    )
    is_tap = tap[None, :, None, None] <= LAYOUT.REACH
    y = gl.sum(gl.where(is_tap, shifted.load(LOADED), 0.0), axis=1)  # [LINES, PHASES, PIXELS]
    y = y.permute([0, 2, 1]).reshape([LINES, shifted.shape[3] * LAYOUT.PITCH_W])
    y = gl.convert_layout(y, STORED) + bias
    mask &= (p >= 0) & (p < P)
    if residual_ptr is not None:
        y = add_residual(y, at(residual_ptr, residual_strides, n, k, p, q), mask)
    y = activate(y, ACTIVATION, y_ptr.dtype.element_ty)
    gl.store(at(y_ptr, y_strides, n, k, p, q), y, mask=mask)


@gluon.jit
def load_row(
    x_desc, xs, loaded, row, rows, corner, LAYOUT: gl.constexpr, BLOCK_K: gl.constexpr,
    RING: gl.constexpr,
):  # fmt: skip
    """Asks for a row of the strip, all its blocks of channels, if it is one of `rows`."""
    n, c, h, w = corner
    slot, exists = row % RING, row < rows
    mbarrier.expect(loaded.index(slot), LAYOUT.BLOCKS * x_desc.block_type.nbytes, pred=exists)
    for block in gl.static_range(LAYOUT.BLOCKS):
        if LAYOUT.NCHW:
            place = [n, c + block * BLOCK_K, h + row, w]
        else:
            place = [n, h + row, w, c + block * BLOCK_K]
        tma.async_copy_global_to_shared(
            x_desc, place, loaded.index(slot), xs.index(slot * LAYOUT.BLOCKS + block), exists
        )  # fmt: skip
